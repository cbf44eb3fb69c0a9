/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The store, the broker's end: packets to and from the supervisor.
 *
 * A put is complete when sendmsg() has returned: the packet then lies in the supervisor's socket
 * buffer, and a SIGKILL of the broker cannot take it back. So there are two places where a death
 * matters, before and after that call, and in both the records are whole. The channel blocks for
 * the broker's sends (the supervisor has nothing to do but read) and never for its reads, except
 * while loading.
 *
 * Not thread-safe: the broker's main thread is the only user.
 */
#include "store.h"
#include "store_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/fail.h"
#include "common/inject.h"
#include "log.h"

#define PACKET_HEADER offsetof(struct store_packet, blob)

struct store {
	int fd;
	int supervisor_pid; /* 0: not known yet */
};

union control {
	char buf[CMSG_SPACE(sizeof(int) * STORE_MAX_FDS)];
	struct cmsghdr align;
};

void store_packet_init(struct store_packet *p, enum store_op op, unsigned int kind, uint64_t id)
{
	memset(p, 0, PACKET_HEADER);
	p->magic = STORE_MAGIC;
	p->op = (uint16_t)op;
	p->kind = (uint16_t)kind;
	p->id = id;
}

int store_packet_send(int fd, const struct store_packet *p, const int *fds, int flags)
{
	struct iovec iov = {.iov_base = (void *)p, .iov_len = PACKET_HEADER + p->size};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control;
	ssize_t n;

	if (p->nfds) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * p->nfds);
		cmsg = CMSG_FIRSTHDR(&mh);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * p->nfds);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * p->nfds);
	}
	do {
		n = sendmsg(fd, &mh, flags | MSG_NOSIGNAL);
		/* Too many descriptors of this user are under way: the peer is reading them. */
		if (n < 0 && errno == ETOOMANYREFS && !(flags & MSG_DONTWAIT)) {
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
			errno = EINTR;
		}
		/*
		 * An event loop may have made the descriptor non-blocking; a record is not to be
		 * lost for that.
		 */
		if (n < 0 && errno == EAGAIN && !(flags & MSG_DONTWAIT)) {
			(void)poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
			errno = EINTR;
		}
	} while (n < 0 && errno == EINTR);
	if (n >= 0)
		return 0;
	if (errno == ECONNRESET || errno == ENOTCONN)
		return -EPIPE;
	return errno == ETOOMANYREFS ? -EAGAIN : -errno;
}

static unsigned int take_fds(struct msghdr *mh, int fds[STORE_MAX_FDS])
{
	unsigned int count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (count < STORE_MAX_FDS)
				fds[count++] = fd;
			else
				close(fd);
		}
	}
	return count;
}

int store_packet_receive(int fd, struct store_packet *p, int fds[STORE_MAX_FDS], int flags)
{
	struct iovec iov = {.iov_base = p, .iov_len = sizeof(*p)};
	union control control;
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = sizeof(control.buf)};
	unsigned int got;
	ssize_t n;

	/*
	 * A peer that died with unread packets resets the connection: the kernel says so once, and
	 * what it had sent before lies behind that error. Those packets count, so reading goes on
	 * to the end.
	 */
	do
		n = recvmsg(fd, &mh, flags | MSG_CMSG_CLOEXEC);
	while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	if (n == 0)
		return -EPIPE;
	got = take_fds(&mh, fds);
	if ((size_t)n >= PACKET_HEADER && p->magic == STORE_MAGIC && p->size <= STORE_MAX_BLOB &&
	    (size_t)n == PACKET_HEADER + p->size && p->nfds == got &&
	    !(mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return 1;
	while (got > 0)
		close(fds[--got]);
	if ((size_t)n < PACKET_HEADER || p->magic != STORE_MAGIC)
		p->op = 0;
	p->nfds = 0;
	return -EPROTO;
}

int store_open(struct store **out, int channel)
{
	struct store *store = calloc(1, sizeof(*store));
	int type;
	socklen_t size = sizeof(type);

	if (!store) {
		close(channel);
		return pando__fail(ENOMEM, "no memory for the store");
	}
	if (getsockopt(channel, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_SEQPACKET) {
		free(store);
		return pando__fail(EINVAL, "descriptor %d is not a channel to a supervisor",
				   channel);
	}
	(void)fcntl(channel, F_SETFD,
		    FD_CLOEXEC); /* another holder would hide this broker's death */
	store->fd = channel;
	*out = store;
	return 0;
}

void store_close(struct store *store)
{
	if (!store)
		return;
	close(store->fd);
	free(store);
}

int store_put(struct store *store, enum store_kind kind, uint64_t id, const void *blob, size_t size,
	      const int *fds, unsigned int nfds)
{
	struct store_packet p;
	int ret;

	if (!store)
		return 0;
	if (size > STORE_MAX_BLOB || nfds > STORE_MAX_FDS)
		return -EINVAL;
	store_packet_init(&p, STORE_OP_PUT, kind, id);
	p.size = (uint32_t)size;
	p.nfds = nfds;
	if (size)
		memcpy(p.blob, blob, size);
	PANDO_INJECT("store.put.before"); /* killed here: the old record, or none, counts */
	ret = store_packet_send(store->fd, &p, fds, 0);
	PANDO_INJECT("store.put.after"); /* killed here: the new record counts */
	return ret;
}

int store_remove(struct store *store, enum store_kind kind, uint64_t id)
{
	struct store_packet p;
	int ret;

	if (!store)
		return 0;
	store_packet_init(&p, STORE_OP_REMOVE, kind, id);
	/* Killed before it: the next broker finds the record, and removes it again. */
	PANDO_INJECT("store.remove.before");
	ret = store_packet_send(store->fd, &p, NULL, 0);
	PANDO_INJECT("store.remove.after");
	return ret;
}

int store_load(struct store *store,
	       int (*fn)(void *arg, enum store_kind kind, uint64_t id, const void *blob,
			 size_t size, const int *fds, unsigned int nfds),
	       void *arg)
{
	struct store_packet p;
	int fds[STORE_MAX_FDS], first = 0, ret;

	if (!store)
		return 0;
	store_packet_init(&p, STORE_OP_LOAD, 0, 0);
	ret = store_packet_send(store->fd, &p, NULL, 0);
	while (ret == 0) {
		ret = store_packet_receive(store->fd, &p, fds, 0);
		if (ret == 0) /* a channel that does not block: the supervisor is not done yet */
			nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
		if (ret <= 0)
			continue;
		ret = 0;
		if (p.op == STORE_OP_END) {
			store->supervisor_pid = (int)p.id;
			return first;
		}
		if (p.op != STORE_OP_RECORD)
			continue;
		/* Killed here: nothing was changed, and all is sent again. */
		PANDO_INJECT("store.load.record");
		/*
		 * After a failure the rest is read all the same, so that no descriptor stays
		 * behind.
		 */
		if (first == 0) {
			first = fn(arg, p.kind, p.id, p.blob, p.size, fds, p.nfds);
		} else {
			while (p.nfds > 0)
				close(fds[--p.nfds]);
		}
	}
	return ret;
}

int store_fd(const struct store *store)
{
	return store ? store->fd : -1;
}

int store_word(struct store *store, enum store_word *word, uint64_t *value)
{
	struct store_packet p;
	int fds[STORE_MAX_FDS], ret;

	if (!store)
		return 0;
	for (;;) {
		ret = store_packet_receive(store->fd, &p, fds, MSG_DONTWAIT);
		if (ret == -EPROTO)
			continue;
		if (ret <= 0)
			return ret == 0 ? 0 : -EPIPE;
		while (p.nfds > 0) /* words carry none */
			close(fds[--p.nfds]);
		if (p.op == STORE_OP_HELLO)
			store->supervisor_pid = (int)p.id;
		if (p.op != STORE_OP_WORD)
			continue;
		*word = p.kind;
		*value = p.id;
		return 1;
	}
}

int store_ready(struct store *store)
{
	struct store_packet p;

	if (!store)
		return 0;
	store_packet_init(&p, STORE_OP_READY, 0, 0);
	return store_packet_send(store->fd, &p, NULL, 0);
}

int store_finish(struct store *store, int status, const char *why)
{
	struct store_packet p;

	if (!store)
		return 0;
	store_packet_init(&p, STORE_OP_FINISH, 0, (uint64_t)status);
	if (why) {
		p.size = (uint32_t)strnlen(why, STORE_MAX_BLOB - 1);
		memcpy(p.blob, why, p.size);
	}
	return store_packet_send(store->fd, &p, NULL, 0);
}

int store_supervisor_pid(const struct store *store)
{
	return store ? store->supervisor_pid : 0;
}
