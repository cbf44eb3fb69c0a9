/* SPDX-License-Identifier: BSD-2-Clause */
/* See graft_peer.h. */
#include "graft_peer.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct request {
	enum peer_op op;
	uint64_t a, b, c;
};

static uint64_t word(uint64_t seed, uint64_t page, uint64_t i)
{
	return (seed << 40) ^ (page << 12) ^ (i * 0x9e3779b97f4a7c15ull);
}

/* Of each page the first and the last words, as far as they lie within the length. */
void pattern_write(void *at, uint64_t length, uint64_t seed)
{
	for (uint64_t page = 0; page * PAGE < length; page++) {
		char *begin = (char *)at + page * PAGE;
		uint64_t n = length - page * PAGE < PAGE ? length - page * PAGE : PAGE;

		for (uint64_t i = 0; i < n / 8; i += i < 7 || n / 8 - i < 8 ? 1 : n / 8 - 15)
			memcpy(begin + i * 8, &(uint64_t){word(seed, page, i)}, 8);
	}
}

uint64_t pattern_check(const void *at, uint64_t length, uint64_t seed)
{
	for (uint64_t page = 0; page * PAGE < length; page++) {
		const char *begin = (const char *)at + page * PAGE;
		uint64_t n = length - page * PAGE < PAGE ? length - page * PAGE : PAGE;

		for (uint64_t i = 0; i < n / 8; i += i < 7 || n / 8 - i < 8 ? 1 : n / 8 - 15)
			if (memcmp(begin + i * 8, &(uint64_t){word(seed, page, i)}, 8) != 0)
				return page + 1;
	}
	return 0;
}

struct pando_buffer *filled(struct pando *p, uint64_t length, uint64_t seed)
{
	struct pando_buffer *b;

	CHECK_OK(pando_buffer_new(p, length, NULL, &b));
	CHECK(pando_buffer_size(b) >= length && pando_buffer_size(b) - length < PAGE);
	pattern_write(pando_buffer_data(b), length, seed);
	return b;
}

void await_grafts(struct harness *h, uint64_t waiting, uint64_t held)
{
	struct pando_broker_info info = {0};

	for (unsigned int ms = 0; ms < 5000 * harness_slow(); ms += 5) {
		CHECK_OK(pando_broker_info(h->checker, &info));
		if (info.grafts_waiting == waiting && info.grafts_held == held) {
			CHECK(waiting || info.grafts_waiting_bytes == 0);
			CHECK(held || info.grafts_held_bytes == 0);
			return;
		}
		harness_sleep_ms(5);
	}
	harness_fail(__FILE__, __LINE__, "%llu grafts wait and %llu are held, not %llu and %llu",
		     (unsigned long long)info.grafts_waiting, (unsigned long long)info.grafts_held,
		     (unsigned long long)waiting, (unsigned long long)held);
}

/* ---- the peer itself ------------------------------------------------------ */

static int be_forked(struct pando *p, const struct request *r)
{
	void *at = (void *)(uintptr_t)r->a;
	pid_t pid = fork();

	if (pid == 0) {
		if (pattern_check(at, r->b, r->c))
			_exit(1);
		pattern_write(at, r->b, r->c + 1000);
		if (pattern_check(at, r->b, r->c + 1000))
			_exit(2);
		if (pando_graft_release(p, at) < 0)
			_exit(3);
		_exit(pando_graft_release(p, at) == -EINVAL ? 0 : 4);
	}
	return harness_join(pid);
}

static int send_graft(struct pando *p, const struct request *r)
{
	struct pando_buffer_options o = {.receiver = r->op == PEER_SEND ? r->a : 0};
	struct pando_buffer *b;
	int rc = pando_buffer_new(p, r->b, &o, &b);

	if (rc < 0)
		return rc;
	pattern_write(pando_buffer_data(b), r->b, r->c);
	rc = pando_graft(p, r->a, b, r->b, r->c);
	pando_buffer_free(b);
	return rc;
}

/* The kernel is asked, so nothing here can fault. */
static uint64_t readable(uint64_t address, uint64_t length)
{
	uint64_t pages = 0;
	char byte;

	for (uint64_t at = address; at < address + length; at += PAGE) {
		struct iovec to = {&byte, 1}, from = {(void *)(uintptr_t)at, 1};

		pages += process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
	}
	return pages;
}

static int limit_descriptors(bool on)
{
	static struct rlimit before;
	struct rlimit limit;
	int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);

	close(lowest);
	if (!on)
		return setrlimit(RLIMIT_NOFILE, &before);
	if (getrlimit(RLIMIT_NOFILE, &before) < 0)
		return -errno;
	limit = before;
	limit.rlim_cur = (rlim_t)lowest;
	return setrlimit(RLIMIT_NOFILE, &limit);
}

static void obey(struct pando *p, const struct request *r, struct peer_answer *a)
{
	void *at = (void *)(uintptr_t)r->a;
	struct pollfd pfd = {.events = POLLIN};

	switch (r->op) {
	case PEER_LISTEN:
		a->rc = pando_graft_listen(
			p, &(struct pando_graft_listen_options){.size = r->a, .limit = r->b});
		break;
	case PEER_ACCEPT:
		a->rc = pando_graft_accept(p, &a->info);
		break;
	case PEER_PEEK:
		a->rc = pando_graft_peek(p, &a->info);
		break;
	case PEER_REFUSE:
		a->rc = pando_graft_refuse(p, r->a);
		break;
	case PEER_RELEASE:
		a->rc = pando_graft_release(p, at);
		break;
	case PEER_CHECK:
		a->value = pattern_check(at, r->b, r->c);
		break;
	case PEER_WRITE:
		pattern_write(at, r->b, r->c);
		break;
	case PEER_POLL:
		pfd.fd = pando_event_fd(p);
		a->rc = pfd.fd < 0 ? pfd.fd : 0;
		a->value = pfd.fd >= 0 && poll(&pfd, 1, (int)r->a) == 1 && (pfd.revents & POLLIN);
		break;
	case PEER_STAT:
		break;
	case PEER_FORK:
		a->rc = be_forked(p, r);
		break;
	case PEER_SEND:
	case PEER_SEND_ANY:
		a->rc = send_graft(p, r);
		break;
	case PEER_FDS:
		a->value = harness_fds(getpid());
		break;
	case PEER_MAPPED:
		a->value = readable(r->a, r->b);
		break;
	case PEER_LIMIT:
		a->rc = limit_descriptors(r->a);
		break;
	case PEER_HIDE:
		a->rc = prctl(PR_SET_DUMPABLE, 0);
		break;
	case PEER_LEAVE:
		break;
	}
	(void)pando_graft_stat(p, &a->stat);
}

static void be_peer(struct harness *h, int socket, uid_t uid)
{
	struct request r;
	struct pando *p;
	uint64_t id;

	pando_disconnect(h->checker);
	if (uid != AS_IS)
		CHECK(setgroups(0, NULL) == 0 && setgid(uid) == 0 && setuid(uid) == 0 &&
		      prctl(PR_SET_DUMPABLE, 1) == 0); /* as a program has it that began so */
	p = harness_connect(h);
	id = pando_client_id(p);
	CHECK(write(socket, &id, sizeof(id)) == sizeof(id));
	while (read(socket, &r, sizeof(r)) == sizeof(r)) {
		struct peer_answer a;

		memset(&a, 0, sizeof(a));
		obey(p, &r, &a);
		CHECK(write(socket, &a, sizeof(a)) == sizeof(a));
		if (r.op == PEER_LEAVE)
			break;
	}
	pando_disconnect(p);
	_exit(0);
}

/* ---- who commands it ------------------------------------------------------ */

struct peer peer_start(struct harness *h, uid_t uid)
{
	struct peer peer;
	int ends[2];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	fflush(NULL);
	peer.pid = fork();
	CHECK(peer.pid >= 0);
	if (peer.pid == 0) {
		close(ends[0]);
		be_peer(h, ends[1], uid);
	}
	close(ends[1]);
	peer.socket = ends[0];
	CHECK(read(peer.socket, &peer.id, sizeof(peer.id)) == sizeof(peer.id));
	return peer;
}

struct peer peer_receiver(struct harness *h)
{
	struct peer peer = peer_start(h, AS_IS);

	peer_ok(&peer, PEER_LISTEN, 0, 0, 0);
	return peer;
}

struct peer_answer peer_do(const struct peer *peer, enum peer_op op, uint64_t a, uint64_t b,
			   uint64_t c)
{
	struct request r;
	struct peer_answer answer;

	memset(&r, 0, sizeof(r));
	r.op = op;
	r.a = a;
	r.b = b;
	r.c = c;
	CHECK(write(peer->socket, &r, sizeof(r)) == sizeof(r));
	if (read(peer->socket, &answer, sizeof(answer)) != sizeof(answer))
		harness_fail(__FILE__, __LINE__, "the peer has ended over order %d", (int)op);
	return answer;
}

struct peer_answer peer_ok(const struct peer *peer, enum peer_op op, uint64_t a, uint64_t b,
			   uint64_t c)
{
	struct peer_answer answer = peer_do(peer, op, a, b, c);

	if (answer.rc != 0)
		harness_fail(__FILE__, __LINE__, "order %d: %d (%s)", (int)op, answer.rc,
			     strerror(answer.rc < 0 ? -answer.rc : 0));
	return answer;
}

void peer_end(struct peer *peer)
{
	(void)peer_do(peer, PEER_LEAVE, 0, 0, 0);
	CHECK_INT(harness_join(peer->pid), 0);
	close(peer->socket);
}

void peer_kill(struct peer *peer)
{
	CHECK(kill(peer->pid, SIGKILL) == 0);
	CHECK_INT(harness_join(peer->pid), 256 + SIGKILL);
	close(peer->socket);
}
