/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connections: accepting, identifying, reading, writing, letting go.
 *
 * A client that does not read its answers fills its own socket, then its outbox, and is dropped;
 * one that sends without end gets its share of each turn (READ_AT_ONCE) and no more. The supervisor
 * holds duplicates of connections, so closing one does not tell the peer: shutdown() does.
 *
 * A pidfd is opened for the pid that the socket names. The process may have ended, and its pid be
 * another's by then; the kernel's SO_PEERPIDFD has no such gap and is used where it exists.
 * Elsewhere the start time is read before and after: one process had the pid all the while, and the
 * hang-up of the socket tells of the end of any other.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/inject.h"

#include "log.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define READ_AT_ONCE 8
#define HEAR_AT_ONCE 256 /* more regions than anybody's child inherits */

static void on_socket(uv_poll_t *handle, int status, int events);

/* What the loop shall watch for: requests only when the last one is done. */
static void watch(struct conn *c)
{
	int events = UV_DISCONNECT;

	if (c->doomed)
		return;
	if (!c->client->busy && !c->client->hung_up && !c->client->dead)
		events |= UV_READABLE;
	if (c->outbox)
		events |= UV_WRITABLE;
	uv_poll_start(&c->poll, events, on_socket);
}

void conn_doom(struct conn *c)
{
	if (c->doomed)
		return;
	c->doomed = true;
	c->noticed_ns = broker_now();
	c->next_doomed = c->server->doomed;
	c->server->doomed = c;
}

static void free_outgoing(struct outgoing *o)
{
	for (unsigned int i = 0; i < o->nfds; i++)
		close(o->fds[i]);
	free(o->msg);
	free(o);
}

static int enqueue(struct conn *c, const struct pando__msg *msg, const int *fds, unsigned int nfds)
{
	struct outgoing *o;

	if (c->outbox_count == OUTBOX_MAX)
		return -ENOBUFS;
	o = calloc(1, sizeof(*o));
	if (!o)
		return -ENOMEM;
	o->msg = malloc(msg->header.length);
	if (!o->msg) {
		free(o);
		return -ENOMEM;
	}
	memcpy(o->msg, msg, msg->header.length);
	for (; o->nfds < nfds; o->nfds++) {
		o->fds[o->nfds] = fcntl(fds[o->nfds], F_DUPFD_CLOEXEC, 3);
		if (o->fds[o->nfds] < 0) {
			free_outgoing(o);
			return -EMFILE;
		}
	}
	*c->outbox_end = o;
	c->outbox_end = &o->next;
	c->outbox_count++;
	return 0;
}

/* Sends what the socket takes. */
static void flush(struct conn *c)
{
	while (c->outbox) {
		struct outgoing *o = c->outbox;
		int rc = pando__msg_send(c->fd, o->msg, o->fds, o->nfds, MSG_DONTWAIT);

		if (rc == -EAGAIN || rc == -ETOOMANYREFS)
			return;
		if (rc < 0) {
			conn_doom(c);
			return;
		}
		c->outbox = o->next;
		if (!c->outbox)
			c->outbox_end = &c->outbox;
		c->outbox_count--;
		free_outgoing(o);
	}
}

static void ops_send(struct client *client, struct pando__msg *msg, const int *fds,
		     unsigned int nfds)
{
	struct conn *c = client->outside;
	int rc = -EAGAIN;

	if (c->doomed)
		return;
	if (!c->outbox)
		rc = pando__msg_send(c->fd, msg, fds, nfds, MSG_DONTWAIT);
	/*
	 * A socket is filled by notices alone: a client has one request, and reads while it waits.
	 * Who has not read hundreds of them needs no other, and is idle, not hostile.
	 */
	if (rc == -EAGAIN && msg->header.type == PANDO__MSG_NOTICE)
		return;
	if (rc == -EAGAIN || rc == -ETOOMANYREFS) {
		rc = enqueue(c, msg, fds, nfds);
		if (rc < 0)
			log_warn("client %" PRIu64
				 " (pid %d, uid %u) does not read its answers: dropped",
				 client->record.id, client->pid, client->who.uid);
	}
	if (rc < 0)
		conn_doom(c);
	else if (c->outbox)
		watch(c);
}

static void ops_idle(struct client *client)
{
	watch(client->outside);
}

static void ops_hangup(struct client *client)
{
	conn_doom(client->outside);
}

static void on_work(uv_work_t *work)
{
	job_work(work->data);
}

static void on_work_done(uv_work_t *work, int status)
{
	struct job *job = work->data;
	struct server *s = job->broker->outside;

	(void)status; /* nothing cancels work through libuv */
	job_done(job);
	server_bury(s);
}

static_assert(sizeof(uv_work_t) <= sizeof(((struct job *)0)->outside),
	      "a job has room for libuv's part");

static void ops_submit(struct broker *b, struct job *job)
{
	struct server *s = b->outside;
	uv_work_t *work = (uv_work_t *)job->outside;

	work->data = job;
	uv_queue_work(&s->loop, work, on_work, on_work_done);
}

/* Takes one packet. Returns false if there is none, or the connection has come to its end. */
static bool read_one(struct conn *c)
{
	static char packet[sizeof(struct pando__msg) + 1]; /* one loop, one thread */
	int fds[PANDO__PROTO_MAX_FDS];
	unsigned int nfds;
	int n = pando__msg_receive(c->fd, packet, sizeof(packet), fds, &nfds, MSG_DONTWAIT);

	if (n == -EAGAIN || n == -EINTR)
		return false;
	if (n == -EPROTO) {
		handler_malformed(c->client, "the message is too long or has too many descriptors");
	} else if (n > 0) {
		c->client->passed = nfds == 1 ? fds[0] : -1;
		handler_packet(c->client, packet, (size_t)n, nfds);
		c->client->passed = -1;
	} else {
		conn_doom(c);
	}
	/* A memfd that comes with a graft has been duplicated; no other request carries any. */
	for (unsigned int i = 0; n >= 0 && i < nfds; i++)
		close(fds[i]);
	return !c->doomed && !c->client->busy;
}

static void on_socket(uv_poll_t *handle, int status, int events)
{
	struct conn *c = handle->data;
	struct server *s = c->server;

	if (status < 0 || (events & UV_DISCONNECT)) {
		conn_doom(c);
	} else if (!c->doomed) {
		if (events & UV_WRITABLE)
			flush(c);
		if ((events & UV_READABLE) && !c->client->busy)
			for (int i = 0; i < READ_AT_ONCE && !c->doomed && read_one(c); i++)
				;
		watch(c);
	}
	server_bury(s);
}

/* True if nobody holds the other end any more. */
static bool hung_up(int fd)
{
	struct pollfd pfd = {.fd = fd, .events = POLLRDHUP};

	return poll(&pfd, 1, 0) > 0 && (pfd.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/*
 * The process has ended. Its descriptors were closed before that; if the connection is open all the
 * same, a child that it has forked has a copy, which it closes as soon as it has asked for what it
 * inherited (or at exec). Slots are given back now; the regions stay until the hang-up.
 */
static void on_pidfd(uv_poll_t *handle, int status, int events)
{
	struct conn *c = handle->data;
	struct server *s = c->server;

	(void)status;
	(void)events;
	uv_poll_stop(handle);
	if (hung_up(c->fd)) {
		conn_doom(c);
	} else if (!c->doomed) {
		client_died(c->client, broker_now());
		watch(c);
	}
	server_bury(s);
}

/*
 * Lets forked children in. A child sends HELLO and OPENs before it closes its copy
 * of the parent's connection, so when that hangs up all is there: in the listening socket's queue,
 * or unread.
 */
static void ops_heirs(struct client *parent)
{
	struct server *s = ((struct conn *)parent->outside)->server;

	/*
	 * What is read may be a CLOSE, and so lead here again: one level is enough, and as deep as
	 * it may go.
	 */
	if (s->hearing)
		return;
	s->hearing = true;
	for (int i = 0; i < HEAR_AT_ONCE && conn_accept_all(s); i++)
		;
	for (struct client *c = s->broker.clients; c; c = c->next) {
		struct conn *conn = c->outside;

		if (c == parent || conn->doomed || c->dead ||
		    (c->record.greeted && !c->record.parent))
			continue;
		for (int i = 0; i < HEAR_AT_ONCE && !c->busy && !c->hung_up && read_one(conn); i++)
			;
		watch(conn);
	}
	s->hearing = false;
}

static int ops_process(struct client *client)
{
	return ((struct conn *)client->outside)->pidfd;
}

const struct broker_ops server_ops = {
	.send = ops_send,
	.idle = ops_idle,
	.hangup = ops_hangup,
	.submit = ops_submit,
	.heirs = ops_heirs,
	.process = ops_process,
};

static void on_closed(uv_handle_t *handle)
{
	struct conn *c = handle->data;

	if (--c->handles == 0)
		free(c);
}

void conn_bury(struct conn *c)
{
	char rest[64];

	client_gone(c->client, c->noticed_ns);
	c->client = NULL;
	shutdown(c->fd, SHUT_RDWR);
	/*
	 * What lies unread would turn the peer's end of file into ECONNRESET, before it has read
	 * our last word.
	 */
	for (int i = 0; i < 256 && recv(c->fd, rest, sizeof(rest), MSG_DONTWAIT) > 0; i++)
		;
	while (c->outbox) {
		struct outgoing *o = c->outbox;

		c->outbox = o->next;
		free_outgoing(o);
	}
	uv_close((uv_handle_t *)&c->poll, on_closed);
	close(c->fd);
	if (c->pidfd >= 0) {
		uv_close((uv_handle_t *)&c->pid_poll, on_closed);
		close(c->pidfd);
	}
}

/* Who is at the other end. Returns 0 or a negative errno; who->groups is then the caller's. */
static int identify(int fd, struct identity *who, pid_t *pid)
{
	struct ucred cred;
	socklen_t size = sizeof(cred);
	gid_t first[64], *groups = first;

	memset(who, 0, sizeof(*who));
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
		return -errno;
	who->uid = cred.uid;
	who->gid = cred.gid;
	*pid = cred.pid;
	size = sizeof(first);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0) {
		if (errno != ERANGE)
			return 0; /* an old kernel: the primary group alone counts */
		groups = NULL;
	}
	if (size == 0)
		return 0;
	who->groups = malloc(size);
	if (!who->groups)
		return -ENOMEM;
	if (groups)
		memcpy(who->groups, groups, size);
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, who->groups, &size) < 0)
		size = 0;
	who->group_count = size / sizeof(gid_t);
	return 0;
}

/*
 * A pidfd for the peer; start time and parent. -1: not visible from here, or it has ended: a child
 * may go on.
 */
static int open_pidfd(int fd, pid_t pid, uint64_t *start, pid_t *parent)
{
	uint64_t before;
	socklen_t size = sizeof(int);
	int pidfd;

	*start = 0;
	*parent = 0;
	if (pid <= 0)
		return -1;
	if (client_read_process(pid, &before, parent) < 0)
		return -1;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) < 0)
		pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? -errno : -1;
	if (client_read_process(pid, start, parent) < 0 || *start != before) {
		close(pidfd);
		return -1;
	}
	return pidfd;
}

static int start_polls(struct conn *c)
{
	struct server *s = c->server;

	if (uv_poll_init(&s->loop, &c->poll, c->fd) < 0)
		return -ENOMEM;
	c->poll.data = c;
	c->handles = 1;
	if (c->pidfd >= 0) {
		if (uv_poll_init(&s->loop, &c->pid_poll, c->pidfd) < 0) {
			uv_close((uv_handle_t *)&c->poll, on_closed);
			return -ENOMEM;
		}
		c->pid_poll.data = c;
		c->handles = 2;
		uv_poll_start(&c->pid_poll, UV_READABLE, on_pidfd);
	}
	watch(c);
	return 0;
}

/*
 * Makes connection and client of a socket and a pidfd; both are taken over, in any case. id: 0, or
 * the one that it had. Returns NULL if that is not possible.
 */
static struct conn *conn_new(struct server *s, int fd, int pidfd, uint64_t id,
			     const struct identity *who, pid_t pid)
{
	struct conn *c = calloc(1, sizeof(*c));
	struct client *client = c ? client_new(&s->broker, id, who, pid) : NULL;

	if (!client) {
		free(c);
		free(who->groups);
		close(fd);
		if (pidfd >= 0)
			close(pidfd);
		return NULL;
	}
	c->server = s;
	c->client = client;
	client->outside = c;
	c->fd = fd;
	c->pidfd = pidfd;
	c->outbox_end = &c->outbox;
	if (start_polls(c) == 0)
		return c;
	log_error("cannot watch a connection");
	client_gone(client, broker_now());
	close(fd);
	if (pidfd >= 0)
		close(pidfd);
	if (c->handles == 0)
		free(c);
	return NULL;
}

static void accepted(struct server *s, int fd)
{
	struct identity who = {0};
	uint64_t start = 0;
	pid_t pid = 0, parent = 0;
	int rc = identify(fd, &who, &pid), pidfd = -1;
	struct conn *c;

	if (rc == 0) {
		pidfd = open_pidfd(fd, pid, &start, &parent);
		rc = pidfd < -1 ? pidfd : 0;
	}
	if (rc < 0) { /* who cannot be told apart from others is nobody */
		log_error("cannot admit process %d: %s", pid, strerror(-rc));
		free(who.groups);
		shutdown(fd, SHUT_RDWR);
		close(fd);
		return;
	}
	c = conn_new(s, fd, pidfd, 0, &who, pid);
	if (!c)
		return;
	s->had_client = true;
	c->client->parent_pid = parent;
	c->client->record.start_time = start;
	PANDO_INJECT("broker.accept.accepted");
	/* Killed before this: the connection breaks, and the client connects again. */
	client_put(c->client, (int[]){fd, pidfd}, pidfd >= 0 ? 2 : 1);
	PANDO_INJECT("broker.accept.put");
}

/*
 * Descriptors have run out: whoever waits is let in and out again, or accept() would be due for
 * ever.
 */
static void turn_away(struct server *s)
{
	int fd;

	log_error("out of descriptors: a client is turned away; raise the limit (LimitNOFILE=, "
		  "ulimit -n)");
	s->broker.refused_total++;
	if (s->spare_fd >= 0)
		close(s->spare_fd);
	fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0)
		close(fd);
	s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

bool conn_accept_all(struct server *s)
{
	for (int i = 0; i < 64; i++) { /* then others get their turn */
		int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0)
			accepted(s, fd);
		else if (errno == EMFILE || errno == ENFILE)
			turn_away(s);
		else if (errno != EINTR && errno != ECONNABORTED)
			return false;
	}
	return true;
}

int conn_adopt(struct broker *b, struct takeup_client *t)
{
	struct server *s = b->outside;
	struct identity who = {0};
	pid_t pid = 0;
	struct conn *c;
	int pidfd = t->nfds > 1 ? t->fds[1] : -1;

	for (unsigned int i = 2; i < t->nfds; i++)
		close(t->fds[i]);
	if (identify(t->fds[0], &who, &pid) < 0 ||
	    (t->record.greeted && quota_charge_found(&b->quota, who.uid, 0, 0, 1) < 0)) {
		free(who.groups);
		close(t->fds[0]);
		if (pidfd >= 0)
			close(pidfd);
		return -ENOMEM;
	}
	c = conn_new(s, t->fds[0], pidfd, t->record.id, &who, pid);
	if (!c) {
		if (t->record.greeted)
			quota_discharge(&b->quota, who.uid, 0, 0, 1);
		return -ENOMEM;
	}
	s->had_client = true;
	c->client->record = t->record;
	c->client->taken_up = true;
	client_notice(c->client, PANDO__NOTICE_RESTARTED);
	return 0;
}

unsigned int conn_descriptors(struct client *client, int *fds)
{
	const struct conn *c = client->outside;

	fds[0] = c->fd;
	fds[1] = c->pidfd;
	return c->pidfd >= 0 ? 2 : 1;
}
