/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Receiving: the reservation, the event descriptor, what has been accepted.
 *
 * A reservation is address space without memory (PROT_NONE). In it lie slots, which the broker hands
 * out. A slot that the broker names is checked all the same: it must lie in the reservation, and over
 * none that is accepted. On the memfd way the slot is mapped when it is accepted; on the mmap way the
 * sender has put the pages there before, and what is left to do is to make sure that they can be
 * used: if a sender has lied and moved nothing, they are zeroes, not a fault.
 *
 * The broker keeps a graft at the head of its queue until it is told that it was taken, so asking
 * twice for it does no harm. It is told at once, and nobody waits for the answer; if it could not be
 * sent, the next request says so as well.
 *
 * The event descriptor has one byte for each graft that waits. Whoever takes one out of the queue
 * takes a byte. A restarted broker may have sent one too many; so when nothing waits, but there are
 * bytes, all of them are taken and the broker is asked once more, and told so. Some of them may have
 * been for what has come since the first question: the broker sends a byte for all that waits then.
 *
 * fork(): the child has copies of accepted grafts, and can give them back. What waits in the
 * reservation is the parent's; in the child it is replaced by nothing. It does not listen.
 *
 * The list and the mappings change under the handle's lock, so a fork() in another thread finds them in
 * agreement.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "common/fail.h"
#include "common/inject.h"

#define DEFAULT_SIZE (16ull << 30)
/* Where nothing else lies: above the regions' window, below programs and libraries. */
#define ZONE (72ull << 40)
#define ZONE_GIB 8192u

/* ---- the reservation ------------------------------------------------------ */

/* Nothing lies there any more. Returns 0 or a negative errno. */
static int clear(uint64_t address, uint64_t length)
{
	void *at = (void *)(uintptr_t)address;

	return mmap(at, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
		    -1, 0) == at
		       ? 0
		       : -errno;
}

/* A random place of the zone, or wherever there is room. 0: nowhere. */
static uint64_t find_place(uint64_t size)
{
	uint64_t base;
	uint32_t random = 0;
	char *at;

	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
		random = (uint32_t)getpid();
	at = mmap((void *)(uintptr_t)(ZONE + ((uint64_t)(random % ZONE_GIB) << 30)),
		  size + PANDO__GRAFT_HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		  -1, 0);
	if (at == MAP_FAILED)
		return 0;
	base = ((uintptr_t)at + PANDO__GRAFT_HUGE - 1) & ~(uint64_t)(PANDO__GRAFT_HUGE - 1);
	if (base > (uintptr_t)at)
		munmap(at, base - (uintptr_t)at);
	munmap((void *)(uintptr_t)(base + size),
	       (uintptr_t)at + PANDO__GRAFT_HUGE - (uintptr_t)base);
	return base;
}

static int reserve(struct pando *p, uint64_t size)
{
	struct pando__reservation *r = malloc(sizeof(*r));

	if (!r)
		return pando__fail(ENOMEM, "no memory to take grafts");
	pthread_mutex_lock(&p->lock);
	r->size = size;
	r->base = find_place(size);
	if (r->base) {
		r->next = p->grafting.reservations;
		p->grafting.reservations = r;
	}
	pthread_mutex_unlock(&p->lock);
	if (r->base)
		return 0;
	free(r);
	return pando__fail(ENOMEM,
			   "there is no room for %" PRIu64
			   " bytes of address space; lift the limit on it (ulimit -v), or ask for "
			   "less",
			   size);
}

static void unreserve(struct pando *p)
{
	struct pando__reservation *r;

	pthread_mutex_lock(&p->lock);
	r = p->grafting.reservations;
	p->grafting.reservations = r->next;
	munmap((void *)(uintptr_t)r->base, r->size);
	pthread_mutex_unlock(&p->lock);
	free(r);
}

static bool event_is_ours(const struct pando__grafting *g)
{
	struct stat st;

	return g->event >= 0 && fstat(g->event, &st) == 0 && st.st_dev == g->event_device &&
	       st.st_ino == g->event_inode;
}

static void drop_event(struct pando__grafting *g)
{
	if (event_is_ours(g))
		close(g->event);
	g->event = -1;
}

/* The event descriptor that has come. Under lock. */
static int take_event(struct pando *p)
{
	struct pando__grafting *g = &p->grafting;
	struct stat st;

	if (p->nfds != 1 || fstat(p->fds[0], &st) < 0)
		return pando__fail(EPROTO, "the broker sent no event descriptor");
	g->event = p->fds[0];
	g->event_device = st.st_dev;
	g->event_inode = st.st_ino;
	p->nfds = 0;
	g->listening = true;
	return 0;
}

static int listen_call(struct pando *p, uint64_t size, uint64_t limit)
{
	struct pando__msg request, reply;
	int rc = reserve(p, size);

	if (rc < 0)
		return rc;
	pando__msg_init(&request, PANDO__MSG_GRAFT_LISTEN, 0);
	request.graft_listen.base = p->grafting.reservations->base;
	request.graft_listen.size = size;
	request.graft_listen.limit = limit;
	rc = pando__call(p, &request, PANDO__MSG_GRAFT_LISTENING, 0, &reply);
	if (rc == 0) {
		pthread_mutex_lock(&p->lock);
		rc = take_event(p);
		pando__close_fds(p);
		pthread_mutex_unlock(&p->lock);
	}
	if (rc < 0)
		unreserve(p);
	return rc;
}

int pando_graft_listen_sized(struct pando *p, const struct pando_graft_listen_options *options,
			     size_t options_size)
{
	struct pando_graft_listen_options o = {0};
	int rc;

	if (options)
		memcpy(&o, options, options_size < sizeof(o) ? options_size : sizeof(o));
	for (size_t i = sizeof(o); options && i < options_size; i++)
		if (((const char *)options)[i])
			return pando__fail(EINVAL, "the options have members that this library "
						   "does not know");
	if (o.size > PANDO__GRAFT_ROOM_MAX)
		return pando__fail(EINVAL,
				   "%" PRIu64 " bytes are more than can be reserved for grafts",
				   o.size);
	o.size = o.size ? (o.size + PANDO__GRAFT_HUGE - 1) & ~(uint64_t)(PANDO__GRAFT_HUGE - 1)
			: DEFAULT_SIZE;
	rc = pando__begin(p);
	if (rc == 0 && !p->grafting.listening)
		rc = listen_call(p, o.size, o.limit);
	pando__end(p);
	return rc;
}

static int not_listening(void)
{
	return pando__fail(ENOTCONN,
			   "this process does not take grafts; call pando_graft_listen() first");
}

int pando_event_fd(struct pando *p)
{
	int fd = -1;
	bool listening;

	pando__check_mark(p);
	pthread_mutex_lock(&p->lock);
	listening = p->grafting.listening;
	if (event_is_ours(&p->grafting))
		fd = p->grafting.event;
	pthread_mutex_unlock(&p->lock);
	if (!listening)
		return not_listening();
	return fd < 0 ? pando__fail(EBADF, "the event descriptor was closed by this program") : fd;
}

/* Takes one byte, or all. Returns how many there were. */
static int drain(struct pando *p, bool all)
{
	char bytes[256];
	int count = 0;
	ssize_t n;

	if (!event_is_ours(&p->grafting))
		return 0;
	do {
		n = recv(p->grafting.event, bytes, all ? sizeof(bytes) : 1, MSG_DONTWAIT);
		count += n > 0 ? (int)n : 0;
	} while (all && n > 0);
	return count;
}

/* ---- accepting ------------------------------------------------------------ */

/* The link before which `address` belongs, or which leads to it. */
static struct pando__accepted **find(struct pando *p, uint64_t address)
{
	struct pando__accepted **link = &p->grafting.accepted;

	while (*link && (*link)->address < address)
		link = &(*link)->next;
	return link;
}

/* True if the slot is one of our reservation, and free as far as we know. Under lock. */
static bool slot_sound(struct pando *p, uint64_t address, uint64_t length)
{
	const struct pando__reservation *r = p->grafting.reservations;

	if (address < r->base || length > r->size || address - r->base > r->size - length)
		return false;
	for (const struct pando__accepted *a = p->grafting.accepted; a; a = a->next)
		if (a->address < address + length && address < a->address + a->length)
			return false;
	return true;
}

/* Tells the broker, and does not wait for its answer. */
static void tell_taken(struct pando *p, uint64_t id)
{
	struct pando__msg msg;

	p->grafting.taken = id;
	pando__msg_init(&msg, PANDO__MSG_GRAFT_TAKEN, p->seq + 1);
	msg.graft_one.id = id;
	if (pando__msg_send(p->socket, &msg, NULL, 0, MSG_DONTWAIT) == 0)
		p->seq++;
}

static int release_call(struct pando *p, uint64_t id, uint32_t flags)
{
	struct pando__msg request, reply;

	pando__msg_init(&request, PANDO__MSG_GRAFT_RELEASE, 0);
	request.graft_one.id = id;
	request.graft_one.flags = flags;
	return pando__call(p, &request, PANDO__MSG_DONE, 0, &reply);
}

/* Puts the memory where it belongs. Under lock. Returns 0 or a negative errno. */
static int map_slot(struct pando *p, const struct pando__msg_grafted *m, uint64_t length)
{
	void *at = (void *)(uintptr_t)m->address;

	if (m->way == PANDO_GRAFT_MMAP)
		return mprotect(at, length, PROT_READ | PROT_WRITE) < 0 ? -errno : 0;
	if (p->nfds != 1)
		return -EPROTO;
	return mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, p->fds[0], 0) == at
		       ? 0
		       : -errno;
}

static int adopt(struct pando *p, const struct pando__msg_grafted *m)
{
	const uint64_t length = pando__graft_pages(m->bytes);
	struct pando__accepted *a = malloc(sizeof(*a)), **link;
	int rc;

	if (!a)
		return pando__fail(ENOMEM, "no memory to accept a graft");
	*a = (struct pando__accepted){.id = m->id, .address = m->address, .length = length};
	pthread_mutex_lock(&p->lock);
	rc = slot_sound(p, m->address, length) ? map_slot(p, m, length) : -EPROTO;
	pando__close_fds(p);
	if (rc == 0) {
		link = find(p, m->address);
		a->next = *link;
		*link = a;
		p->grafting.stat.way = m->way;
		p->grafting.stat.accepted++;
		p->grafting.stat.accepted_bytes += m->bytes;
		p->grafting.stat.held++;
	}
	pthread_mutex_unlock(&p->lock);
	if (rc == 0)
		return 0;
	free(a);
	return pando__fail(-rc, "cannot map a graft of %" PRIu64 " bytes at 0x%" PRIx64 ": %s",
			   m->bytes, m->address,
			   rc == -EPROTO ? "the broker placed it where it does not belong"
					 : strerror(-rc));
}

static int ask(struct pando *p, uint32_t flags, struct pando__msg *reply)
{
	struct pando__msg request;

	pando__msg_init(&request, PANDO__MSG_GRAFT_ACCEPT, 0);
	request.graft_accept.taken = p->grafting.taken;
	request.graft_accept.flags = flags;
	return pando__call(p, &request, PANDO__MSG_GRAFTED, 0, reply);
}

/* A dead sender has left something there, perhaps. */
static int clear_void(struct pando *p, const struct pando__msg_grafted *m)
{
	const uint64_t length = pando__graft_pages(m->bytes);
	int rc;

	pthread_mutex_lock(&p->lock);
	rc = slot_sound(p, m->address, length) ? clear(m->address, length) : -EPROTO;
	if (rc == 0)
		p->grafting.stat.cleared++;
	pthread_mutex_unlock(&p->lock);
	if (rc < 0)
		return pando__fail(-rc, "cannot clear a slot at 0x%" PRIx64 ": %s", m->address,
				   strerror(-rc));
	PANDO_INJECT("client.graft.cleared");
	rc = release_call(p, m->id, 0);
	(void)drain(p, false);
	return rc;
}

/* The oldest that can be had; those of dead senders are dealt with on the way. */
static int next(struct pando *p, struct pando__msg *reply)
{
	int rc;

	for (;;) {
		rc = ask(p, 0, reply);
		if (rc == -EAGAIN && drain(p, true) > 0)
			rc = ask(p, PANDO__GRAFT_DRAINED, reply);
		if (rc < 0 || reply->grafted.way != PANDO_GRAFT_AUTO)
			return rc;
		rc = clear_void(p, &reply->grafted);
		if (rc < 0)
			return rc;
	}
}

static void fill_info(struct pando_graft_info *info, const struct pando__msg_grafted *m)
{
	*info = (struct pando_graft_info){
		.length = m->bytes,
		.id = m->id,
		.tag = m->tag,
		.sender = m->sender,
		.sender_pid = m->pid,
		.sender_uid = m->uid,
		.way = m->way,
		.waiting = m->waiting,
	};
}

/* Takes the turn; returns 0 if this process listens. To be followed by pando__end(). */
static int begin(struct pando *p)
{
	int rc = pando__begin(p);

	if (rc == 0 && !p->grafting.listening)
		rc = not_listening();
	return rc;
}

int pando_graft_peek(struct pando *p, struct pando_graft_info *info)
{
	struct pando__msg reply;
	int rc = begin(p);

	if (rc == 0)
		rc = next(p, &reply);
	if (rc == 0)
		fill_info(info, &reply.grafted);
	pthread_mutex_lock(&p->lock);
	pando__close_fds(p);
	pthread_mutex_unlock(&p->lock);
	pando__end(p);
	return rc;
}

int pando_graft_accept(struct pando *p, struct pando_graft_info *info)
{
	struct pando__msg reply;
	int rc = begin(p);

	if (rc == 0)
		rc = next(p, &reply);
	if (rc == 0) {
		PANDO_INJECT("client.accept.received");
		rc = adopt(p, &reply.grafted);
	}
	if (rc == 0) {
		PANDO_INJECT("client.accept.mapped");
		fill_info(info, &reply.grafted);
		info->address = (void *)(uintptr_t)reply.grafted.address;
		(void)drain(p, false);
		tell_taken(p, reply.grafted.id);
		PANDO_INJECT("client.accept.taken");
	}
	pando__end(p);
	return rc;
}

int pando_graft_refuse(struct pando *p, uint64_t id)
{
	struct pando__msg reply;
	int rc = begin(p);

	if (rc == 0)
		rc = next(p, &reply);
	pthread_mutex_lock(&p->lock);
	pando__close_fds(p);
	/* Only the oldest: what is behind it, nobody here has heard of yet. */
	if (rc == 0 && reply.grafted.id == id && reply.grafted.way == PANDO_GRAFT_MMAP &&
	    slot_sound(p, reply.grafted.address, pando__graft_pages(reply.grafted.bytes)))
		rc = clear(reply.grafted.address, pando__graft_pages(reply.grafted.bytes));
	pthread_mutex_unlock(&p->lock);
	if (rc == 0 && reply.grafted.id == id) {
		rc = release_call(p, id, PANDO__GRAFT_REFUSED);
		(void)drain(p, false);
		pthread_mutex_lock(&p->lock);
		p->grafting.stat.refused += rc == 0;
		pthread_mutex_unlock(&p->lock);
	} else if (rc == -EAGAIN) {
		rc = 0; /* it does not wait any more */
	}
	pando__end(p);
	return rc;
}

/* Takes the graft off the list and its memory away. Returns 0 or a negative errno. */
static int give_back(struct pando *p, uint64_t address, uint64_t *id)
{
	struct pando__accepted **link, *a;
	int rc = -EINVAL;

	pthread_mutex_lock(&p->lock);
	link = find(p, address);
	a = *link;
	if (a && a->address == address)
		rc = clear(a->address, a->length);
	if (rc == 0) {
		*id = a->id;
		*link = a->next;
		p->grafting.stat.held--;
	}
	pthread_mutex_unlock(&p->lock);
	if (rc == 0)
		free(a);
	return rc;
}

int pando_graft_release(struct pando *p, void *address)
{
	uint64_t id = 0;
	int rc;

	pando__check_mark(p);
	rc = give_back(p, (uintptr_t)address, &id);
	if (rc == -EINVAL)
		return pando__fail(EINVAL, "no graft begins at %p", address);
	if (rc < 0)
		return pando__fail(-rc, "cannot give back the graft at %p: %s", address,
				   strerror(-rc));
	PANDO_INJECT("client.release.cleared");
	if (id == 0)
		return 0;
	rc = pando__begin(p);
	if (rc == 0)
		rc = release_call(p, id, 0);
	pando__end(p);
	return rc;
}

int pando_graft_stat_sized(struct pando *p, struct pando_graft_stat *out, size_t size)
{
	struct pando_graft_stat st;

	pando__check_mark(p);
	pthread_mutex_lock(&p->lock);
	st = p->grafting.stat;
	st.listening = p->grafting.listening;
	if (st.listening) {
		st.base = p->grafting.reservations->base;
		st.size = p->grafting.reservations->size;
	}
	pthread_mutex_unlock(&p->lock);
	st.can_mmap = pando__vm_mmap_there();
	memset(out, 0, size);
	memcpy(out, &st, size < sizeof(st) ? size : sizeof(st));
	return 0;
}

/* ---- the end, and fork() -------------------------------------------------- */

void pando__graft_close(struct pando *p)
{
	struct pando__grafting *g = &p->grafting;

	drop_event(g);
	g->listening = false;
	while (g->accepted) {
		struct pando__accepted *a = g->accepted;

		g->accepted = a->next;
		free(a);
	}
	while (g->reservations) {
		struct pando__reservation *r = g->reservations;

		g->reservations = r->next;
		munmap((void *)(uintptr_t)r->base, r->size);
		free(r);
	}
}

/* Only what has been accepted has been inherited. Nothing here allocates. */
static void keep_accepted(const struct pando__grafting *g, const struct pando__reservation *r)
{
	const struct pando__accepted *a = g->accepted;
	uint64_t at = r->base, end = r->base + r->size;

	for (; a; a = a->next) {
		if (a->address < r->base || a->address >= end)
			continue;
		if (a->address > at)
			(void)clear(at, a->address - at);
		at = a->address + a->length;
	}
	if (end > at)
		(void)clear(at, end - at);
}

void pando__graft_forked(struct pando *p)
{
	struct pando__grafting *g = &p->grafting;
	const uint32_t held = g->stat.held;

	if (g->listening)
		keep_accepted(g, g->reservations);
	drop_event(g);
	g->listening = false;
	g->taken = 0;
	for (struct pando__accepted *a = g->accepted; a; a = a->next)
		a->id = 0;
	memset(&g->stat, 0, sizeof(g->stat));
	g->stat.held = held;
}
