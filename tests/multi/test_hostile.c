/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Hostile clients: each harms itself only.
 *
 * One attack a test. During each attack a victim in another process goes on opening, closing and
 * asking, and measures how long the slowest answer takes; afterwards the broker must be the same
 * process, hold as many descriptors as before (as must the supervisor) and count no client but
 * ours.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/atomic.h"
#include "daemon.h"

#define SLOWEST_ANSWER 1.0 /* seconds; on an idle machine it is far below a millisecond */

/* Shared with the victim. */
static struct shared {
	int stop, failed;
	unsigned int answers;
	double slowest;
} * shared;

static struct daemon d;
static pid_t victim, broker;
static int fds_before, supervisor_fds_before;

/* Opens, looks, closes, asks: until told to stop. */
static void be_the_victim(void)
{
	int fd = peer_new(&d);

	while (!pando__load_acquire(&shared->stop)) {
		int fds[PANDO__PROTO_MAX_FDS];
		struct pando__msg_opened opened;
		struct pando__msg msg;
		double begin = daemon_now(), took;

		CHECK_EQ(peer_open(fd, "victim", 0, 0, 0, &opened, fds), 0);
		peer_close_fds(fds);
		pando__msg_init(&msg, PANDO__MSG_CLOSE, 0);
		msg.close.region_id = opened.region_id;
		CHECK_EQ(peer_done(fd, &msg, NULL), 0);
		took = daemon_now() - begin;
		if (took > shared->slowest)
			shared->slowest = took;
		pando__add_relaxed(&shared->answers, 1);
		daemon_nap(0.0005);
	}
	close(fd);
}

static void begin(void)
{
	struct pando_broker_info info;
	int fds[PANDO__PROTO_MAX_FDS], fd;
	uint64_t id;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(shared != MAP_FAILED);
	daemon_start(&d, NULL);
	fd = peer_connect(&d);
	CHECK(fd >= 0 && peer_hello(fd, &id));
	CHECK_EQ(peer_open(fd, "victim", PANDO_CREATE, 1 << 20, 0600, NULL, fds), 0);
	peer_close_fds(fds);
	close(fd);
	daemon_status(&d, &info);
	broker = info.broker_pid;
	fds_before = daemon_broker_fds(&d);
	supervisor_fds_before = daemon_fds(d.pid);
	victim = fork();
	CHECK(victim >= 0);
	if (victim == 0) {
		be_the_victim();
		_exit(0);
	}
	while (pando__load_acquire(&shared->answers) < 3) {
		CHECK(waitpid(victim, NULL, WNOHANG) == 0);
		daemon_nap(0.001);
	}
	shared->slowest = 0;
}

static void end(void)
{
	struct pando_broker_info info;
	unsigned int answers = shared->answers;
	double limit = daemon_now() + 5;
	int status;

	while (pando__load_acquire(&shared->answers) < answers + 3 && daemon_now() < limit)
		daemon_nap(0.001); /* it is still served */
	pando__store_release(&shared->stop, 1);
	CHECK(waitpid(victim, &status, 0) == victim);
	CHECK_EQ(status, 0);
	CHECK(shared->answers >= answers + 3);
	limit = daemon_now() + 5;
	daemon_settle(&d, 0, fds_before);
	while (daemon_fds(d.pid) > supervisor_fds_before && daemon_now() < limit)
		daemon_nap(0.001);
	CHECK_EQ(daemon_fds(d.pid), supervisor_fds_before);
	daemon_status(&d, &info);
	CHECK_EQ(info.broker_pid, broker);
	CHECK_EQ(info.regions, 1);
	CHECK_EQ(info.committed_bytes, 1 << 20);
	printf("  victim: %u answers, the slowest after %.2f ms\n", shared->answers,
	       shared->slowest * 1e3);
	CHECK(shared->slowest < SLOWEST_ANSWER);
	daemon_stop(&d);
}

static int hello_fd(void)
{
	uint64_t id;
	int fd = peer_connect(&d);

	CHECK(fd >= 0);
	CHECK(peer_hello(fd, &id));
	return fd;
}

/* Reads until the broker hangs up or has nothing more to say for a while. True if it hung up. */
static bool hangs_up(int fd, int patience_ms)
{
	char buf[8192];

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t n;

		if (poll(&p, 1, patience_ms) <= 0)
			return false;
		n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (n <= 0)
			return n == 0 || errno != EAGAIN;
	}
}

static void garbage(void)
{
	unsigned char junk[8192];
	int hung_up = 0;

	begin();
	srand(7);
	for (int i = 0; i < 2000; i++) {
		int fd = i % 2 ? hello_fd() : peer_connect(&d);
		size_t n = 1 + (size_t)rand() % sizeof(junk);

		CHECK(fd >= 0);
		for (size_t j = 0; j < n; j++)
			junk[j] = (unsigned char)rand();
		if (i % 3 == 0) { /* a header that promises */
			struct pando__msg_header h = {.magic = PANDO__PROTO_MAGIC,
						      .version = PANDO__PROTO_VERSION,
						      .type = (uint16_t)(rand() % 80),
						      .length = (uint32_t)n,
						      .seq = (uint64_t)rand() + 2};

			memcpy(junk, &h, n < sizeof(h) ? n : sizeof(h));
		}
		(void)!send(fd, junk, n, MSG_NOSIGNAL);
		if (i % 50 == 0)
			hung_up += hangs_up(fd, 1000);
		close(fd);
	}
	printf("  2000 times garbage; of 40 that waited, %d were hung up on\n", hung_up);
	end();
}

/* A valid message, sent with n descriptors. */
static void send_with_fds(int fd, struct pando__msg *msg, unsigned int n)
{
	int many[253];
	struct iovec iov = {msg, msg->header.length};
	union {
		char buf[CMSG_SPACE(sizeof(many))];
		struct cmsghdr align;
	} control;
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
	struct cmsghdr *c;

	memset(&control, 0, sizeof(control));
	c = CMSG_FIRSTHDR(&mh);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * n);
	for (unsigned int i = 0; i < n; i++)
		many[i] =
			i % 2 ? fd : STDIN_FILENO; /* itself, too: a cycle for the kernel to find */
	memcpy(CMSG_DATA(c), many, sizeof(int) * n);
	msg->header.fds = n;
	(void)!sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void too_many_descriptors(void)
{
	begin();
	for (unsigned int n = 1; n <= 253; n++) {
		struct pando__msg msg;
		int fd = n % 2 ? hello_fd() : peer_connect(&d);

		CHECK(fd >= 0);
		pando__msg_init(&msg, n % 2 ? PANDO__MSG_STATUS : PANDO__MSG_HELLO, 2);
		if (!(n % 2))
			msg.hello.version_min = msg.hello.version_max = PANDO__PROTO_VERSION;
		send_with_fds(fd, &msg, n);
		if (n % 10 == 0)
			CHECK(hangs_up(fd, 2000));
		close(fd);
	}
	end();
}

static void half_messages(void)
{
	begin();
	for (unsigned int type = 1; type < PANDO__MSG_REPLY_END; type++) {
		int payload = pando__msg_payload(type);

		for (int cut = 0; payload >= 0 && cut < 24 + payload; cut += 1 + payload / 40) {
			struct pando__msg msg;
			int fd = hello_fd();

			pando__msg_init(&msg, type, 2);
			(void)!send(fd, &msg, (size_t)cut, MSG_NOSIGNAL);
			if (cut % 5 == 0)
				CHECK(hangs_up(fd, 2000));
			close(fd);
		}
	}
	end();
}

static void never_reads(void)
{
	struct pando__msg msg;
	int fds[20];

	begin();
	for (unsigned int i = 0; i < 20; i++) {
		unsigned int sent = 0;

		fds[i] = hello_fd();
		for (; sent < 20000; sent++) {
			struct pollfd p = {.fd = fds[i], .events = POLLOUT};

			pando__msg_init(&msg, PANDO__MSG_LIST, 2 + sent);
			if (pando__msg_send(fds[i], &msg, NULL, 0, MSG_DONTWAIT) == 0)
				continue;
			if (poll(&p, 1, 20) <= 0 || (p.revents & (POLLHUP | POLLERR)))
				break;
		}
		CHECK(sent < 20000); /* somebody stopped it: a full socket or a hang-up */
	}
	for (unsigned int i = 0; i < 20; i++)
		close(fds[i]);
	end();
}

static void floods_of_connections(void)
{
	enum { MANY = 6000 };
	static int fds[MANY];
	struct rlimit limit;
	int fd, count = 0;

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	begin();
	for (; count < MANY && (rlim_t)count + 100 < limit.rlim_cur; count++) {
		fds[count] = peer_connect(&d);
		if (fds[count] < 0)
			break;
	}
	printf("  %d connections that say nothing\n", count);
	fd = hello_fd(); /* somebody new is admitted all the same */
	close(fd);
	for (int i = 0; i < count; i++)
		close(fds[i]);
	for (int i = 0; i < 20000; i++) { /* come and go */
		fd = peer_connect(&d);
		if (fd >= 0)
			close(fd);
	}
	end();
}

static void wrong_versions(void)
{
	struct pando__msg msg;

	begin();
	for (unsigned int v = 0; v < 40; v++) {
		static const uint16_t versions[] = {0, 2, 3, 255, 256, 32767, 65535};
		uint16_t version = versions[v % 7];
		int fd = peer_connect(&d), type;

		pando__msg_init(&msg, PANDO__MSG_HELLO, 1);
		if (v < 20)
			msg.header.version = version;
		msg.hello.version_min = msg.hello.version_max = version;
		CHECK_EQ(pando__msg_send(fd, &msg, NULL, 0, 0), 0);
		type = peer_receive(fd, &msg, NULL);
		if (version >= 2) { /* well-formed, but of another release: both must learn what the
				       other speaks */
			CHECK_EQ(type, PANDO__MSG_ERROR);
			CHECK_EQ(msg.error.error, EPROTO);
			CHECK_EQ(msg.error.version_min, PANDO__PROTO_VERSION);
			CHECK_EQ(msg.error.version_max, PANDO__PROTO_VERSION);
			CHECK(msg.error.text[0]);
		}
		CHECK(hangs_up(fd, 2000));
		close(fd);
	}
	end();
}

static void huge_and_repeated_seqs(void)
{
	static const uint64_t seqs[] = {UINT64_MAX, 1ull << 63, 5, 5, 4, 1, UINT64_MAX};
	struct pando__msg msg;
	int fd;

	begin();
	fd = hello_fd();
	for (unsigned int i = 0; i < sizeof(seqs) / sizeof(seqs[0]); i++) {
		pando__msg_init(&msg, PANDO__MSG_STATUS, seqs[i]);
		CHECK_EQ(peer_call(fd, &msg, NULL), PANDO__MSG_STATUS_REPLY);
	}
	pando__msg_init(&msg, PANDO__MSG_STATUS, 0);
	CHECK_EQ(pando__msg_send(fd, &msg, NULL, 0, 0), 0);
	CHECK(hangs_up(fd, 2000));
	close(fd);
	end();
}

static void requests_without_hello(void)
{
	begin();
	for (unsigned int type = PANDO__MSG_OPEN; type < PANDO__MSG_REPLY_END; type++) {
		struct pando__msg msg;
		int fd = peer_connect(&d), got;

		if (pando__msg_payload(type) < 0) {
			close(fd);
			continue;
		}
		pando__msg_init(&msg, type, 3);
		if (type == PANDO__MSG_OPEN || type == PANDO__MSG_REMOVE)
			strcpy(msg.open.name, "victim");
		CHECK_EQ(pando__msg_send(fd, &msg, NULL, 0, 0), 0);
		got = peer_receive(fd, &msg, NULL);
		CHECK(got <= 0 || got == PANDO__MSG_ERROR);
		CHECK(hangs_up(fd, 2000));
		close(fd);
	}
	end();
}

static void two_hellos(void)
{
	struct pando__msg msg;
	int fd, type;

	begin();
	fd = hello_fd();
	pando__msg_init(&msg, PANDO__MSG_HELLO, 2);
	msg.hello.version_min = msg.hello.version_max = PANDO__PROTO_VERSION;
	type = peer_call(fd, &msg, NULL);
	CHECK(type <= 0 || type == PANDO__MSG_ERROR || type == PANDO__MSG_WELCOME);
	close(fd);
	end();
}

static void leaves_in_the_middle(void)
{
	begin();
	for (int i = 0; i < 300; i++) {
		struct pando__msg msg;
		int fd = hello_fd();

		pando__msg_init(&msg, PANDO__MSG_OPEN, 2);
		snprintf(msg.open.name, sizeof(msg.open.name), "leave-%d", i % 7);
		msg.open.flags = PANDO_CREATE | PANDO_TRANSIENT;
		msg.open.backend = PANDO_BACKEND_MEMFD;
		msg.open.size = (uint64_t)(1 + i % 20) << 20;
		CHECK_EQ(pando__msg_send(fd, &msg, NULL, 0, 0), 0);
		if (i % 3 == 1)
			shutdown(fd, SHUT_WR);
		if (i % 3 == 2) /* one that cannot hear the answer, but stays a little */
			shutdown(fd, SHUT_RD);
		if (i % 4 == 0)
			daemon_nap(0.001);
		close(fd);
	}
	end();
}

static void absurd_sizes(void)
{
	static const uint64_t sizes[] = {0,	     1,		 1ull << 40,	   1ull << 47,
					 1ull << 62, UINT64_MAX, UINT64_MAX - 4095};
	struct pando__msg msg;
	int fd, fds[PANDO__PROTO_MAX_FDS];
	uint64_t seq = 2;

	begin();
	fd = hello_fd();
	for (unsigned int i = 0; i < 7 * 7 * 7; i++) {
		pando__msg_init(&msg, PANDO__MSG_OPEN, seq++);
		strcpy(msg.open.name, "absurd");
		msg.open.flags = PANDO_CREATE | PANDO_TRANSIENT;
		msg.open.backend = PANDO_BACKEND_MEMFD;
		msg.open.size = sizes[i % 7];
		msg.open.max_size = sizes[i / 7 % 7];
		msg.open.address = sizes[i / 49];
		if (peer_call(fd, &msg, fds) == PANDO__MSG_OPENED) {
			uint64_t region = msg.opened.region_id;

			CHECK(sizes[i % 7] ==
			      1); /* all others are nothing, or more than this machine has */
			peer_close_fds(fds);
			pando__msg_init(&msg, PANDO__MSG_RESIZE, seq++);
			msg.resize.region_id = region;
			msg.resize.size = sizes[i % 6 + 1];
			(void)!peer_done(fd, &msg, NULL);
			pando__msg_init(&msg, PANDO__MSG_CLOSE, seq++);
			msg.close.region_id = region;
			CHECK_EQ(peer_done(fd, &msg, NULL), 0);
		} else {
			CHECK_EQ(msg.header.type, PANDO__MSG_ERROR);
			CHECK(msg.error.error > 0 && msg.error.text[0]);
		}
	}
	close(fd);
	end();
}

/*
 * Valid requests with some bits wrong: most pass the first checks and reach what lies behind them.
 */
static void almost_right(void)
{
	int fd = -1;

	begin();
	srand(11);
	for (int i = 0; i < 20000; i++) {
		static const uint16_t types[] = {
			PANDO__MSG_OPEN,  PANDO__MSG_CLOSE, PANDO__MSG_RESIZE,	PANDO__MSG_REMOVE,
			PANDO__MSG_GRANT, PANDO__MSG_LIST,  PANDO__MSG_CLIENTS, PANDO__MSG_STATUS};
		struct pando__msg msg;
		int fds[PANDO__PROTO_MAX_FDS], type;

		if (fd < 0)
			fd = hello_fd();
		pando__msg_init(&msg, types[rand() % 8], (uint64_t)i + 2);
		if (msg.header.type == PANDO__MSG_OPEN || msg.header.type == PANDO__MSG_GRANT) {
			snprintf(msg.open.name, sizeof(msg.open.name), "almost-%d", rand() % 5);
			if (msg.header.type == PANDO__MSG_OPEN) {
				msg.open.flags = PANDO_CREATE | PANDO_TRANSIENT;
				msg.open.size = (uint64_t)rand() % (4 << 20);
				msg.open.backend = PANDO_BACKEND_MEMFD;
			}
		}
		for (int flips = rand() % 3; flips > 0 && msg.header.length > 24; flips--)
			((unsigned char *)&msg)[24 + (size_t)rand() % (msg.header.length - 24)] ^=
				(unsigned char)(1 << rand() % 8);
		/* Nothing that outlives this test, nor the victim's region. */
		if (msg.header.type == PANDO__MSG_OPEN) {
			msg.open.flags |= msg.open.flags & PANDO_CREATE ? PANDO_TRANSIENT : 0;
			if (msg.open.size <
			    1ull << 40) /* what this machine may have is not taken from it */
				msg.open.size %= 64 << 20;
		}
		if (msg.header.type == PANDO__MSG_RESIZE && msg.resize.size < 1ull << 40)
			msg.resize.size %= 64 << 20;
		type = peer_call(fd, &msg, fds);
		peer_close_fds(fds);
		if (type <= 0) {
			close(fd);
			fd = -1;
		}
	}
	if (fd >= 0)
		close(fd);
	end();
}

int main(void)
{
	return daemon_run_tests((struct daemon_test[]){
		TEST(garbage),
		TEST(too_many_descriptors),
		TEST(half_messages),
		TEST(never_reads),
		TEST(floods_of_connections),
		TEST(wrong_versions),
		TEST(huge_and_repeated_seqs),
		TEST(requests_without_hello),
		TEST(two_hellos),
		TEST(leaves_in_the_middle),
		TEST(absurd_sizes),
		TEST(almost_right),
		{0},
	});
}
