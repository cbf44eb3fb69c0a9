/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The conversation with the broker: one request, one reply, and what may come in between.
 *
 * A call sends its request and reads messages until the reply with its sequence number is there. On
 * the way it deals with everything else: the answers to what a forked child has sent ahead
 * (WELCOME, OPENED for each inherited region), NOTICE RESTARTED (all that has no answer is sent
 * again, with the same numbers), and replies to requests that an earlier call gave up waiting for.
 * Such a late OPENED attached us to a region that nobody here wants: it goes on the list
 * `unclaimed` and is closed at the end of the next call.
 *
 * Messages are received under `lock`, so that a fork() in another thread sees the descriptors of a
 * message either not at all or in p->fds, where the child closes them. Waiting is done outside of
 * it.
 *
 * What may go wrong: no answer in time (the broker is stopped; the connection stays, its answer
 * will be recognised as late); hang-up after WELCOME (broker and supervisor are gone: the handle is
 * GONE for good, regions stay mapped and usable); hang-up before WELCOME (the broker died before it
 * noted the connection: made again); no descriptor free for what came; the host program closed our
 * descriptor, or has another file there now (found out by the inode; then it is neither used nor
 * closed).
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#define MS 1000000ull /* nanoseconds */
#define HAIL_TRIES 50
#define HAIL_PAUSE_MS 20

/* What take() found. */
#define TOOK_REPLY 1
#define TOOK_RESTART 2

uint64_t pando__now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void pando__close_fds(struct pando *p)
{
	for (unsigned int i = 0; i < p->nfds; i++)
		close(p->fds[i]);
	p->nfds = 0;
}

bool pando__socket_is_ours(const struct pando *p)
{
	struct stat st;

	return p->socket >= 0 && fstat(p->socket, &st) == 0 && st.st_dev == p->socket_device &&
	       st.st_ino == p->socket_inode;
}

void pando__hang_up(struct pando *p)
{
	if (pando__socket_is_ours(p))
		close(p->socket);
	p->socket = -1;
}

void pando__drop_inherited(struct pando *p)
{
	struct stat st;

	if (p->inherited >= 0 && fstat(p->inherited, &st) == 0 && S_ISSOCK(st.st_mode) &&
	    st.st_ino == p->inherited_inode)
		close(p->inherited);
	p->inherited = -1;
}

/* The other end is gone. Under lock. Returns -ECONNRESET with a sentence. */
static int hung_up(struct pando *p)
{
	bool welcome = p->hello_seq == 0;

	pando__hang_up(p);
	p->standing = welcome ? PANDO__GONE : PANDO__ADRIFT;
	for (struct pando_region *r = p->regions; r; r = r->next)
		if (r->membership == PANDO__ASKED)
			r->membership = PANDO__UNSENT;
	return pando__fail(
		ECONNRESET,
		welcome ? "the broker at %s and its supervisor are gone; open regions stay usable, "
			  "anything else needs a new connection"
			: "the broker at %s hung up before it answered",
		p->address);
}

static int make_socket(struct pando *p)
{
	int fd, low, rc = 0;
	struct stat st;

	pthread_mutex_lock(&p->lock);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0 &&
	    fd <= 2) { /* a program without standard streams will want these numbers back */
		low = fd;
		fd = fcntl(low, F_DUPFD_CLOEXEC, 3);
		rc = -errno;
		close(low);
		errno = -rc;
		rc = 0;
	}
	if (fd < 0 || fstat(fd, &st) < 0) {
		rc = -errno;
	} else {
		p->socket = fd;
		p->socket_device = st.st_dev;
		p->socket_inode = st.st_ino;
	}
	pthread_mutex_unlock(&p->lock);
	return rc;
}

static int send_hello(struct pando *p)
{
	struct pando__msg msg;

	pando__msg_init(&msg, PANDO__MSG_HELLO, p->hello_seq);
	msg.hello.version_min = msg.hello.version_max = PANDO__PROTO_VERSION;
	msg.hello.flags = p->parent ? PANDO__HELLO_FORKED : 0;
	msg.hello.parent = p->parent;
	memcpy(msg.hello.program, p->program, sizeof(msg.hello.program));
	return pando__msg_send(p->socket, &msg, NULL, 0, MSG_DONTWAIT);
}

static int send_inherited(struct pando *p, const struct pando_region *r)
{
	struct pando__msg msg;

	pando__msg_init(&msg, PANDO__MSG_OPEN, r->asked_seq);
	memcpy(msg.open.name, r->name, sizeof(msg.open.name));
	msg.open.region_id = r->id;
	msg.open.flags = PANDO__OPEN_INHERITED | (r->readonly ? PANDO_READONLY : 0);
	return pando__msg_send(p->socket, &msg, NULL, 0, MSG_DONTWAIT);
}

/* Asks to be attached to the inherited regions, as far as the socket takes it. Turn held. */
static void ask_inherited(struct pando *p)
{
	pthread_mutex_lock(&p->lock);
	for (struct pando_region *r = p->regions; r && p->socket >= 0; r = r->next) {
		if (r->membership != PANDO__UNSENT)
			continue;
		r->asked_seq = ++p->seq;
		if (send_inherited(p, r) < 0)
			break;
		r->membership = PANDO__ASKED;
	}
	pthread_mutex_unlock(&p->lock);
}

int pando__hail(struct pando *p, int connect_ms)
{
	struct timeval tv = {.tv_sec = connect_ms / 1000, .tv_usec = connect_ms % 1000 * 1000};
	int rc = make_socket(p);

	if (rc < 0)
		return rc;
	/*
	 * Bounds connect() while the broker's queue is full; nothing else here blocks in the
	 * socket.
	 */
	setsockopt(p->socket, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	do
		rc = connect(p->socket, (struct sockaddr *)&p->sockaddr, p->sockaddr_length);
	while (rc < 0 && errno == EINTR);
	if (rc < 0) {
		rc = errno == EAGAIN ? -ETIMEDOUT : -errno;
	} else {
		p->hello_ns = pando__now_ns(CLOCK_BOOTTIME);
		p->hello_seq = ++p->seq;
		PANDO_INJECT("client.hail.connected");
		rc = send_hello(p);
		if (rc == -EPIPE || rc == -ECONNRESET)
			rc = 0; /* it died after accepting us: the receiving side finds out */
	}
	pthread_mutex_lock(&p->lock);
	if (rc < 0)
		pando__hang_up(p);
	else
		p->standing = PANDO__TALKING;
	pthread_mutex_unlock(&p->lock);
	if (rc == 0) {
		ask_inherited(p);
		pthread_mutex_lock(&p->lock);
		pando__drop_inherited(p);
		pthread_mutex_unlock(&p->lock);
	}
	return rc;
}

/* Milliseconds until `deadline` (CLOCK_MONOTONIC, ns), rounded up; 0: passed. */
static int left_ms(uint64_t deadline)
{
	uint64_t now = pando__now_ns(CLOCK_MONOTONIC);

	return now >= deadline ? 0 : (int)((deadline - now + MS - 1) / MS);
}

static uint64_t deadline_of(const struct pando *p, uint64_t commit)
{
	return pando__now_ns(CLOCK_MONOTONIC) + (uint64_t)p->timeout_ms * MS +
	       commit / PANDO__COMMIT_RATE * 1000;
}

static int late(const struct pando *p, uint64_t commit)
{
	uint64_t ms = (uint64_t)p->timeout_ms + commit / PANDO__COMMIT_RATE / 1000;

	return pando__fail(
		ETIMEDOUT,
		"the broker at %s (pid %d) has not answered within %llu ms; if it is stopped, send "
		"it SIGCONT",
		p->address, p->broker_pid, (unsigned long long)ms);
}

/* Waits until the socket is ready for `events`. */
static int wait_ready(struct pando *p, short events, uint64_t deadline)
{
	struct pollfd pfd = {.fd = p->socket, .events = events};
	int n;

	for (;;) {
		n = poll(&pfd, 1, left_ms(deadline));
		if (n > 0)
			return 0;
		if (n == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

/* A region is attached at the broker, but not here: to be closed at the end of this call. */
static void unclaimed(struct pando *p, uint64_t region_id)
{
	if (p->unclaimed_count < PANDO__UNCLAIMED_MAX)
		p->unclaimed[p->unclaimed_count++] = region_id;
}

/* The broker's word on an inherited region. Under lock. */
static void inherited_answer(struct pando *p, struct pando_region *r, const struct pando__msg *msg)
{
	if (msg->header.type == PANDO__MSG_OPENED) {
		if (pando__region_take_slot(r, &msg->opened, p->client_id, p->hello_ns) == 0) {
			r->membership = PANDO__ATTACHED;
			return;
		}
		unclaimed(p, msg->opened.region_id);
	} else if (msg->header.type == PANDO__MSG_ERROR &&
		   (p->hello_seq /* a new broker that has not seen our HELLO */ ||
		    msg->error.error == ENOMEM || msg->error.error == EDQUOT ||
		    msg->error.error == EUSERS || msg->error.error == EAGAIN)) {
		r->membership = PANDO__UNSENT; /* may go better at a later call */
		return;
	}
	r->membership = PANDO__LOST;
}

static int welcomed(struct pando *p, const struct pando__msg *msg)
{
	if (msg->header.type == PANDO__MSG_WELCOME) {
		pando__store_release(&p->client_id, msg->welcome.client_id);
		p->epoch = msg->welcome.epoch;
		p->broker_pid = msg->welcome.broker_pid;
		p->hello_seq = 0;
		return 0;
	}
	pando__hang_up(p);
	p->standing = PANDO__ADRIFT;
	p->hello_seq = 0;
	for (struct pando_region *r = p->regions; r; r = r->next)
		if (r->membership == PANDO__ASKED)
			r->membership = PANDO__UNSENT;
	if (msg->header.type != PANDO__MSG_ERROR)
		return pando__fail(EPROTO, "the broker at %s answered HELLO with message type %u",
				   p->address, msg->header.type);
	return pando__fail(msg->error.error == EPROTONOSUPPORT ? EPROTO : msg->error.error, "%s",
			   msg->error.text);
}

/* A new broker process has taken over: what has no answer yet is asked again. Under lock. */
static void restarted(struct pando *p, uint64_t epoch)
{
	p->epoch = epoch;
	if (p->hello_seq)
		(void)send_hello(p);
	for (struct pando_region *r = p->regions; r; r = r->next)
		if (r->membership == PANDO__ASKED && send_inherited(p, r) < 0)
			r->membership = PANDO__UNSENT;
}

/* Decides what a message is. Under lock. Returns TOOK_*, 0, or a negative errno with a sentence. */
static int sort_message(struct pando *p, uint64_t seq, const struct pando__msg *msg)
{
	uint64_t got = msg->header.seq;

	if (msg->header.type == PANDO__MSG_NOTICE) {
		if (msg->notice.notice != PANDO__NOTICE_RESTARTED)
			return 0;
		restarted(p, msg->notice.epoch);
		return TOOK_RESTART;
	}
	if (p->hello_seq && got == p->hello_seq)
		return welcomed(p, msg);
	if (seq && got == seq)
		return TOOK_REPLY;
	for (struct pando_region *r = p->regions; r; r = r->next) {
		if (r->membership == PANDO__ASKED && r->asked_seq == got) {
			inherited_answer(p, r, msg);
			return 0;
		}
	}
	if (msg->header.type == PANDO__MSG_OPENED && msg->opened.slot != PANDO__NO_SLOT)
		unclaimed(p, msg->opened.region_id);
	return 0;
}

/* A message came, but its descriptors were cut off. Under lock. Returns -EMFILE or -EPROTO. */
static int cut_off(struct pando *p, const void *packet, size_t size)
{
	int spare[PANDO__PROTO_MAX_FDS], n = 0, err = 0;
	struct pando__msg_header header;
	struct pando__msg msg;
	char why[PANDO__PROTO_TEXT];

	for (; n < (int)PANDO__PROTO_MAX_FDS; n++) {
		spare[n] = fcntl(p->socket, F_DUPFD_CLOEXEC, 0);
		if (spare[n] < 0) {
			err = errno;
			break;
		}
	}
	while (n > 0)
		close(spare[--n]);
	memcpy(&header, packet, sizeof(header));
	if (header.length <= size &&
	    pando__msg_parse(PANDO__TO_CLIENT, packet, header.length, header.fds, &msg, why,
			     sizeof(why)) == 0 &&
	    msg.header.type == PANDO__MSG_OPENED)
		unclaimed(p, msg.opened.region_id);
	if (err == EMFILE || err == ENFILE)
		return pando__fail(err,
				   "no descriptor is free for those that the broker has sent; "
				   "raise the limit on open "
				   "files (%s)",
				   err == EMFILE ? "ulimit -n" : "sysctl fs.file-max");
	return pando__fail(EPROTO, "the descriptors of a message from the broker at %s were lost",
			   p->address);
}

/*
 * Takes one message, if there is one. Returns TOOK_REPLY: the reply to `seq` is in *reply, its
 * descriptors in p->fds; TOOK_RESTART or 0: something else was dealt with; -EAGAIN: nothing there;
 * or a negative errno with a sentence.
 */
static int take(struct pando *p, uint64_t seq, struct pando__msg *reply)
{
	_Alignas(8) char packet[sizeof(struct pando__msg) + 8] = {0};
	char why[PANDO__PROTO_TEXT];
	int rc, n;

	pthread_mutex_lock(&p->lock);
	pando__close_fds(p);
	do
		n = pando__msg_receive(p->socket, packet, sizeof(packet), p->fds, &p->nfds,
				       MSG_DONTWAIT);
	while (n == -EINTR);
	if (n == -EAGAIN)
		rc = n;
	else if (n == -EPROTO)
		rc = cut_off(p, packet, sizeof(packet));
	else if (n <= 0)
		rc = hung_up(p);
	else if (pando__msg_parse(PANDO__TO_CLIENT, packet, (size_t)n, p->nfds, reply, why,
				  sizeof(why)) < 0)
		rc = pando__fail(EPROTO, "the broker at %s speaks another language: %s", p->address,
				 why);
	else
		rc = sort_message(p, seq, reply);
	if (rc != TOOK_REPLY)
		pando__close_fds(p);
	pthread_mutex_unlock(&p->lock);
	return rc;
}

/*
 * Sends a request; a hang-up is left for the receiving side to find, which then has read all
 * there is.
 */
static int send_request(struct pando *p, struct pando__msg *msg, int fd, uint64_t deadline)
{
	for (;;) {
		int rc = pando__msg_send(p->socket, msg, &fd, fd >= 0 ? 1 : 0, MSG_DONTWAIT);

		if (rc == 0 || rc == -EPIPE || rc == -ECONNRESET)
			return 0;
		if (rc != -EAGAIN)
			return pando__fail(-rc, "cannot send to the broker at %s: %s", p->address,
					   strerror(-rc));
		if (wait_ready(p, POLLOUT, deadline) == -ETIMEDOUT)
			return late(p, 0);
	}
}

/* Makes a connection for a handle that is ADRIFT. */
static int hail_again(struct pando *p)
{
	int rc = pando__hail(p, p->timeout_ms);

	return rc < 0 ? pando__fail_connect(p, -rc) : 0;
}

int pando__await_welcome(struct pando *p)
{
	uint64_t deadline = deadline_of(p, 0);
	struct pando__msg msg;
	int tries = 0, rc;

	while (p->standing == PANDO__ADRIFT || p->hello_seq) {
		if (p->standing == PANDO__ADRIFT) {
			rc = hail_again(p);
			if (rc < 0)
				return rc;
		}
		rc = take(p, 0, &msg);
		if (rc == -EAGAIN) {
			if (wait_ready(p, POLLIN, deadline) == -ETIMEDOUT)
				return late(p, 0);
		} else if (rc == -ECONNRESET && p->standing == PANDO__ADRIFT &&
			   ++tries < HAIL_TRIES) {
			/* It died between accepting us and noting it down. */
			struct timespec pause = {.tv_nsec = HAIL_PAUSE_MS * (long)MS};

			nanosleep(&pause, NULL);
		} else if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

/*
 * Reads what came while nobody was listening, notices of restarts above all: one that is older than
 * a request is no reason to send it again.
 */
static int catch_up(struct pando *p)
{
	struct pando__msg msg;
	int rc;

	do
		rc = take(p, 0, &msg);
	while (rc >= 0);
	return rc == -EAGAIN ? 0 : rc;
}

int pando__begin(struct pando *p)
{
	int rc = 0;

	pando__check_mark(p);
	pthread_mutex_lock(&p->turn);
	pthread_mutex_lock(&p->lock);
	if (p->standing == PANDO__GONE) {
		rc = pando__fail(
			ECONNRESET,
			"the broker at %s and its supervisor are gone; open regions stay usable, "
			"anything else needs a new connection",
			p->address);
	} else if (p->standing == PANDO__TALKING && !pando__socket_is_ours(p)) {
		rc = pando__fail(
			ECONNRESET,
			"descriptor %d, the connection to the broker at %s, was closed by this "
			"program",
			p->socket, p->address);
		p->socket = -1;
		p->standing = PANDO__GONE;
	}
	pthread_mutex_unlock(&p->lock);
	if (rc == 0)
		rc = pando__await_welcome(p);
	if (rc == 0)
		rc = catch_up(p);
	if (rc == 0)
		ask_inherited(p);
	return rc;
}

/* Gives back what late answers attached us to, without waiting for the answer. */
static void close_unclaimed(struct pando *p)
{
	struct pando__msg msg;

	pthread_mutex_lock(&p->lock);
	while (p->unclaimed_count > 0 && p->standing == PANDO__TALKING && !p->hello_seq) {
		uint64_t id = p->unclaimed[p->unclaimed_count - 1];
		struct pando_region *r = pando__region_by_id(p, id);

		if (!r || r->membership == PANDO__LOST) {
			pando__msg_init(&msg, PANDO__MSG_CLOSE, p->seq + 1);
			msg.close.region_id = id;
			if (pando__msg_send(p->socket, &msg, NULL, 0, MSG_DONTWAIT) < 0)
				break;
			p->seq++;
		}
		p->unclaimed_count--;
	}
	pthread_mutex_unlock(&p->lock);
}

void pando__end(struct pando *p)
{
	if (p->unclaimed_count > 0)
		close_unclaimed(p);
	pthread_mutex_unlock(&p->turn);
}

/* The reply is there: what does it say? */
static int judge(struct pando *p, enum pando__msg_type expect, const struct pando__msg *reply)
{
	if (reply->header.type == expect)
		return 0;
	if (reply->header.type == PANDO__MSG_ERROR)
		return pando__fail(reply->error.error, "%s", reply->error.text);
	return pando__fail(EPROTO, "the broker at %s answered with message type %u, not %u",
			   p->address, reply->header.type, expect);
}

int pando__call(struct pando *p, struct pando__msg *request, enum pando__msg_type expect,
		uint64_t commit, struct pando__msg *reply)
{
	return pando__call_with(p, request, -1, expect, commit, reply);
}

int pando__call_with(struct pando *p, struct pando__msg *request, int fd,
		     enum pando__msg_type expect, uint64_t commit, struct pando__msg *reply)
{
	uint64_t deadline = deadline_of(p, commit);
	unsigned int resent = 0;
	int rc;

	request->header.seq = ++p->seq;
	rc = send_request(p, request, fd, deadline);
	if (rc < 0)
		return rc;
	PANDO_INJECT("client.call.sent");
	for (;;) {
		rc = take(p, request->header.seq, reply);
		if (rc == TOOK_REPLY)
			return judge(p, expect, reply);
		if (rc == TOOK_RESTART && resent++ == PANDO__RESENDS_MAX)
			return pando__fail(ETIMEDOUT,
					   "the broker at %s has died %u times with this request "
					   "unanswered; its log may say why",
					   p->address, resent);
		if (rc == TOOK_RESTART) {
			deadline = deadline_of(p, commit);
			rc = send_request(p, request, fd, deadline);
		} else if (rc == -EAGAIN) {
			rc = wait_ready(p, POLLIN, deadline) == -ETIMEDOUT ? late(p, commit) : 0;
		}
		if (rc < 0)
			return rc;
	}
}

void pando__look(struct pando *p)
{
	struct pando__msg msg;
	int rc = 0;

	pando__check_mark(p);
	if (pthread_mutex_trylock(&p->turn) != 0)
		return;
	while (rc >= 0 && p->standing == PANDO__TALKING && pando__socket_is_ours(p))
		rc = take(p, 0, &msg);
	pthread_mutex_unlock(&p->turn);
}
