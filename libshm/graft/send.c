/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando_graft(): a slot from the broker, letting go, telling the broker.
 *
 * All three under the handle's turn, so that a handle has one slot at most that is reserved and not
 * announced: when it asks for another one, the broker knows that the last was given up. What can be refused is
 * refused before letting go, with the buffer as it was: no such client, no right, no room.
 *
 * The receiver's number, which process_vm_mmap() wants, is read from the pidfd that came with the slot,
 * right before the call: see "Where it lands" in docs/design/graft.md.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "common/fail.h"
#include "common/inject.h"

const char *pando_graft_way_name(unsigned int way)
{
	static const char *const names[] = {"auto", "memfd", "mmap"};

	return way < sizeof(names) / sizeof(names[0]) ? names[way] : NULL;
}

/* The pidfd that has come with a reply, as the caller's own; -1: none. */
static int take_pidfd(struct pando *p)
{
	int pidfd = -1;

	pthread_mutex_lock(&p->lock);
	if (p->nfds == 1) {
		pidfd = p->fds[0];
		p->nfds = 0;
	}
	pando__close_fds(p);
	pthread_mutex_unlock(&p->lock);
	return pidfd;
}

static int reserve(struct pando *p, uint64_t receiver, size_t bytes, uint64_t tag, uint32_t way,
		   uint32_t flags, struct pando__msg *reply)
{
	struct pando__msg request;

	pando__msg_init(&request, PANDO__MSG_GRAFT_RESERVE, 0);
	request.graft_reserve.receiver = receiver;
	request.graft_reserve.bytes = bytes;
	request.graft_reserve.tag = tag;
	request.graft_reserve.flags = flags;
	request.graft_reserve.way = way;
	return pando__call(p, &request, PANDO__MSG_GRAFT_SLOT, 0, reply);
}

int pando__graft_look(struct pando *p, uint64_t receiver, int *pidfd)
{
	struct pando__msg reply;
	int rc = pando__begin(p);

	*pidfd = -1;
	if (rc == 0)
		rc = reserve(p, receiver, 0, 0, PANDO_GRAFT_MMAP, PANDO__GRAFT_LOOK, &reply);
	if (rc == 0)
		*pidfd = take_pidfd(p);
	pando__end(p);
	return rc;
}

/* Moves the pages to where the slot is. Returns 0 or a negative errno with a sentence. */
static int move(struct pando *p, struct pando_buffer *b, size_t length, uint64_t receiver,
		uint64_t address)
{
	int pidfd = take_pidfd(p), rc;
	pid_t pid = pidfd >= 0 ? pando__pidfd_pid(pidfd) : 0;

	if (pid > 0)
		rc = pando__buffer_move(b, length, pid, address);
	else
		rc = pando__fail(ESRCH,
				 "the process of client %" PRIu64
				 " has ended or cannot be seen from here",
				 receiver);
	if (pidfd >= 0)
		close(pidfd);
	return rc;
}

/* The slot is not needed; the reason stays the thread's last sentence. */
static void cancel(struct pando *p, uint64_t id, bool left)
{
	struct pando__msg request, reply;
	char sentence[PANDO__ERROR_MAX];

	snprintf(sentence, sizeof(sentence), "%s", pando_strerror_last());
	pando__msg_init(&request, PANDO__MSG_GRAFT_CANCEL, 0);
	request.graft_one.id = id;
	request.graft_one.flags = left ? PANDO__GRAFT_LEFT : 0;
	(void)pando__call(p, &request, PANDO__MSG_DONE, 0, &reply);
	(void)pando__fail(EIO, "%s", sentence);
}

static int announce(struct pando *p, struct pando_buffer *b, uint64_t id)
{
	struct pando__msg request, reply;
	int rc;

	pando__msg_init(&request, PANDO__MSG_GRAFT_SEND, 0);
	request.graft_send.id = id;
	request.graft_send.way = b->way;
	rc = pando__call_with(p, &request, b->fd, PANDO__MSG_DONE, 0, &reply);
	PANDO_INJECT("client.graft.sent");
	return rc;
}

static int hand_over(struct pando *p, uint64_t receiver, struct pando_buffer *b, size_t bytes,
		     uint64_t tag)
{
	const size_t length = (size_t)pando__graft_pages(bytes);
	struct pando__msg slot;
	bool gone;
	int rc = reserve(p, receiver, bytes, tag, b->way, 0, &slot);

	if (rc < 0)
		return rc;
	PANDO_INJECT("client.graft.reserved");
	if (b->way == PANDO_GRAFT_MMAP)
		rc = move(p, b, length, receiver, slot.graft_slot.address);
	else
		rc = pando__buffer_seal(b, length);
	gone = rc == 0 && b->way == PANDO_GRAFT_MMAP;
	PANDO_INJECT("client.graft.let_go");
	if (rc == 0)
		rc = announce(p, b, slot.graft_slot.id);
	if (rc < 0 && rc != -ECONNRESET && rc != -ETIMEDOUT)
		cancel(p, slot.graft_slot.id, gone);
	if (b->state == PANDO__BUFFER_GONE)
		pando__buffer_close(b);
	return rc;
}

static int check(const struct pando_buffer *b, size_t bytes)
{
	if (b->state == PANDO__BUFFER_GONE)
		return pando__fail(EINVAL, "the buffer has been handed over already");
	if (b->state == PANDO__BUFFER_PARENTS)
		return pando__fail(EINVAL, "the buffer is the parent process's");
	if (bytes == 0 || bytes > b->size)
		return pando__fail(EINVAL, "%zu bytes cannot be handed over of a buffer of %zu",
				   bytes, b->size);
	return 0;
}

int pando_graft(struct pando *p, uint64_t receiver, struct pando_buffer *b, size_t bytes,
		uint64_t tag)
{
	int rc = check(b, bytes);

	if (rc < 0)
		return rc;
	rc = pando__begin(p);
	if (rc == 0)
		rc = hand_over(p, receiver, b, bytes, tag);
	if (rc == 0) {
		pthread_mutex_lock(&p->lock);
		p->grafting.stat.way = b->way;
		p->grafting.stat.sent++;
		p->grafting.stat.sent_bytes += bytes;
		pthread_mutex_unlock(&p->lock);
	}
	pando__end(p);
	return rc;
}
