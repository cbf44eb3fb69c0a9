/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grafting: what it means, whichever way is used. The sender has let go, the receiver may write, nobody
 * else sees it; limits, refusals, users, bad input; nothing is left over.
 */
#include "graft_peer.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define NOBODY 65534

/* The way that the tests are run with. */
static uint32_t used_way(struct pando *p)
{
	struct pando_graft_stat st;

	CHECK_OK(pando_graft_stat(p, &st));
	CHECK_INT(st.copied_bytes, 0);
	return st.way;
}

/* Hands over, and has it accepted and checked. */
static struct pando_graft_info transfer(struct pando *p, const struct peer *to, uint64_t length,
					uint64_t seed)
{
	struct pando_buffer *b = filled(p, length, seed);
	struct peer_answer a;

	CHECK_OK(pando_graft(p, to->id, b, length, seed * 3));
	CHECK(pando_buffer_data(b) == NULL && pando_buffer_size(b) == 0);
	pando_buffer_free(b);
	a = peer_ok(to, PEER_ACCEPT, 0, 0, 0);
	CHECK_INT(a.info.length, length);
	CHECK_INT(a.info.tag, seed * 3);
	CHECK_INT(a.info.sender, pando_client_id(p));
	CHECK_INT(a.info.sender_pid, getpid());
	CHECK_INT(a.info.sender_uid, getuid());
	CHECK_INT(a.info.way, used_way(p));
	CHECK_INT(a.stat.copied_bytes, 0);
	CHECK_INT(peer_do(to, PEER_CHECK, (uintptr_t)a.info.address, length, seed).value, 0);
	return a.info;
}

static void test_handing_over(struct harness *h)
{
	static const uint64_t lengths[] = {1,	  8,	   4095,	4096,	 4097,
					   70000, 2 * MIB, 3 * MIB + 1, 64 * MIB};
	const size_t count = sizeof(lengths) / sizeof(lengths[0]);
	struct peer to = peer_receiver(h);
	struct pando_graft_info info[16];
	struct pando_graft_stat st;
	struct peer_answer a;

	for (size_t i = 0; i < count; i++) {
		const unsigned int fds = harness_fds(getpid());

		info[i] = transfer(h->checker, &to, lengths[i], i + 1);
		CHECK_INT(harness_fds(getpid()), fds);
		CHECK_INT(harness_maps(getpid(), "memfd:pando:graft"), 0);
		if (lengths[i] >= 2 * MIB)
			CHECK((uintptr_t)info[i].address % (2 * MIB) == 0);
	}
	CHECK_OK(pando_graft_stat(h->checker, &st));
	CHECK_INT(st.sent, count);
	/* All at once, each its own; and it may write everywhere. */
	for (size_t i = 0; i < count; i++) {
		uint64_t at = (uintptr_t)info[i].address;

		CHECK_INT(peer_do(&to, PEER_CHECK, at, lengths[i], i + 1).value, 0);
		peer_ok(&to, PEER_WRITE, at, lengths[i], i + 100);
	}
	for (size_t i = 0; i < count; i++)
		CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info[i].address, lengths[i], i + 100)
				  .value,
			  0);
	a = peer_ok(&to, PEER_STAT, 0, 0, 0);
	CHECK_INT(a.stat.held, count);
	CHECK_INT(a.stat.accepted, count);
	await_grafts(h, 0, count);
	for (size_t i = 0; i < count; i++) {
		uint64_t at = (uintptr_t)info[i].address;

		peer_ok(&to, PEER_RELEASE, at, 0, 0);
		CHECK_INT(peer_do(&to, PEER_MAPPED, at, (lengths[i] + PAGE - 1) & ~(PAGE - 1), 0)
				  .value,
			  0);
		CHECK_INT(peer_do(&to, PEER_RELEASE, at, 0, 0).rc, -EINVAL);
	}
	await_grafts(h, 0, 0);
	printf("  %s\n", pando_graft_way_name(used_way(h->checker)));
	peer_end(&to);
}

/* What lies behind the length belongs to nobody: it is not handed over. */
static void test_part_of_a_buffer(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b = filled(h->checker, MIB, 5);
	struct pando_graft_info info;

	pattern_write(pando_buffer_data(b), 10000, 5); /* a page that is not full has its own */
	CHECK_OK(pando_graft(h->checker, to.id, b, 10000, 0));
	CHECK(pando_buffer_data(b) == NULL);
	pando_buffer_free(b);
	info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	CHECK_INT(info.length, 10000);
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, 10000, 5).value, 0);
	CHECK_INT(peer_do(&to, PEER_MAPPED, (uintptr_t)info.address, 4 * PAGE, 0).value, 3);
	peer_end(&to);
}

/* Finds the memfd of the only buffer there is; -1: it lies in none. */
static int memfd_of_buffer(void)
{
	char path[64], target[64];

	for (int fd = 3; fd < 64; fd++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		target[n > 0 ? n : 0] = '\0';
		if (strstr(target, "memfd:pando:graft"))
			return fd;
	}
	return -1;
}

/* A sender that keeps all that it can keep: a descriptor of the memfd, and a mapping for reading. */
static void test_sender_has_let_go(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b = filled(h->checker, MIB, 7);
	struct pando_graft_info info;
	char *old = pando_buffer_data(b), *view = NULL;
	int fd = memfd_of_buffer();

	if (fd >= 0) {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 64);
		view = mmap(NULL, MIB, PROT_READ, MAP_PRIVATE, fd, 0);
		CHECK(fd >= 0 && view != MAP_FAILED);
	}
	CHECK_OK(pando_graft(h->checker, to.id, b, MIB, 0));
	CHECK(mincore(old, MIB, (unsigned char[256]){0}) == -1 && errno == ENOMEM);
	info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	peer_ok(&to, PEER_WRITE, (uintptr_t)info.address, MIB / 2, 8);
	if (fd >= 0) {
		CHECK(pwrite(fd, "x", 1, 0) == -1 && errno == EPERM);
		CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
		CHECK(ftruncate(fd, 0) == -1 && ftruncate(fd, 2 * MIB) == -1);
		CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) == -1);
		CHECK_INT(pattern_check(view, MIB, 7),
			  0); /* nobody sees what the receiver writes */
		munmap(view, MIB);
		close(fd);
	}
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, MIB / 2, 8).value, 0);
	pando_buffer_free(b);
	peer_end(&to);
}

/* Somebody has the buffer mapped for writing: it cannot be sealed, and is as it was. */
static void test_cannot_be_sealed(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b = filled(h->checker, MIB, 12);
	struct pando_graft_info info;
	int fd = memfd_of_buffer();
	char *other;

	if (fd < 0)
		harness_skip("buffers lie in no memfd here");
	other = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(other != MAP_FAILED);
	CHECK_ERR(pando_graft(h->checker, to.id, b, MIB, 0), EBUSY, "mapped");
	await_grafts(h, 0, 0); /* the slot was given back */
	CHECK_INT(pattern_check(pando_buffer_data(b), MIB, 12), 0);
	pattern_write(pando_buffer_data(b), MIB, 13); /* and can be written as before */
	CHECK_INT(pattern_check(other, MIB, 13), 0);
	munmap(other, MIB);
	CHECK_OK(pando_graft(h->checker, to.id, b, MIB, 0));
	info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, MIB, 13).value, 0);
	pando_buffer_free(b);
	peer_end(&to);
}

/* A receiver without a free descriptor: the graft goes on waiting. */
static void test_no_descriptor(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b = filled(h->checker, MIB, 14);
	struct peer_answer a;

	CHECK_OK(pando_graft(h->checker, to.id, b, MIB, 5));
	pando_buffer_free(b);
	peer_ok(&to, PEER_LIMIT, 1, 0, 0);
	if (used_way(h->checker) == PANDO_GRAFT_MEMFD) {
		CHECK_INT(peer_do(&to, PEER_ACCEPT, 0, 0, 0).rc, -EMFILE);
		CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, 1);
		await_grafts(h, 1, 0);
	}
	peer_ok(&to, PEER_LIMIT, 0, 0, 0);
	a = peer_ok(&to, PEER_ACCEPT, 0, 0, 0);
	CHECK_INT(a.info.tag, 5);
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)a.info.address, MIB, 14).value, 0);
	await_grafts(h, 0, 1);
	peer_end(&to);
}

/* The receiver forks: its child has a copy, and neither sees what the other writes. */
static void test_receiver_forks(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_graft_info info = transfer(h->checker, &to, 3 * MIB, 9);
	uint64_t at = (uintptr_t)info.address;

	for (int i = 0; i < 3; i++) {
		peer_ok(&to, PEER_FORK, at, info.length, 9);
		CHECK_INT(peer_do(&to, PEER_CHECK, at, info.length, 9).value, 0);
	}
	await_grafts(h, 0, 1); /* the child's release was the child's */
	peer_end(&to);
	await_grafts(h, 0, 0);
}

/* The sender has forked while the buffer was there: the child has nothing, and is in nobody's way. */
static void test_sender_forks(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b = filled(h->checker, 2 * MIB, 11);
	char *at = pando_buffer_data(b);
	struct pando_graft_info info;
	int go[2];
	char c;
	pid_t pid;

	CHECK(pipe2(go, O_CLOEXEC) == 0);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		CHECK(pando_buffer_data(b) == NULL && pando_buffer_size(b) == 0);
		CHECK(mincore(at, PAGE, (unsigned char[1]){0}) == -1 && errno == ENOMEM);
		CHECK_INT(memfd_of_buffer(), -1);
		CHECK_ERR(pando_graft(h->checker, to.id, b, PAGE, 0), EINVAL, "parent");
		CHECK(write(go[1], "x", 1) == 1);
		pando_buffer_free(b);
		pause();
	}
	CHECK(read(go[0], &c, 1) == 1);
	CHECK_OK(pando_graft(h->checker, to.id, b, 2 * MIB, 0));
	info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, 2 * MIB, 11).value, 0);
	kill(pid, SIGKILL);
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
	close(go[0]);
	close(go[1]);
	pando_buffer_free(b);
	peer_end(&to);
}

/* Read from a pipe, from a socket, short, and beyond. */
static void test_filling(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b;
	struct pando_graft_info info;
	int ends[2];
	char text[3000];

	memset(text, 'a', sizeof(text));
	CHECK_OK(pando_buffer_new(h->checker, 8000, NULL, &b));
	for (char *at = pando_buffer_data(b); at < (char *)pando_buffer_data(b) + 8000; at++)
		CHECK(*at == 0);
	CHECK(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
	CHECK_INT(pando_buffer_read(b, ends[0], 0, 100), -EAGAIN);
	CHECK(write(ends[1], text, sizeof(text)) == sizeof(text));
	CHECK_INT(pando_buffer_read(b, ends[0], 0, 1000), 1000);
	close(ends[1]);
	CHECK_INT(pando_buffer_read(b, ends[0], 1000, 4000), 2000);
	CHECK_INT(pando_buffer_read(b, ends[0], 3000, 4000), 0);
	CHECK_INT(pando_buffer_read(b, ends[0], 8000, 8000), -EINVAL);
	CHECK_INT(pando_buffer_read(b, ends[0], SIZE_MAX, 1), -EINVAL);
	close(ends[0]);
	CHECK_INT(pando_buffer_read(b, -1, 0, 1), -EBADF);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
	CHECK(write(ends[1], text, 100) == 100);
	CHECK(recv(ends[0], (char *)pando_buffer_data(b) + 3000, 5000, 0) == 100);
	close(ends[0]);
	close(ends[1]);
	CHECK(memcmp(pando_buffer_data(b), text, 3000) == 0);
	pattern_write(pando_buffer_data(b), 8000, 4);
	CHECK_OK(pando_graft(h->checker, to.id, b, 8000, 0));
	CHECK_INT(pando_buffer_read(b, 0, 0, 1), -EINVAL);
	info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, 8000, 4).value, 0);
	pando_buffer_free(b);
	peer_end(&to);
}

/* The descriptor is readable exactly while something waits. */
static void test_events(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b;

	CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, 0);
	CHECK_INT(peer_do(&to, PEER_ACCEPT, 0, 0, 0).rc, -EAGAIN);
	for (int i = 0; i < 3; i++) {
		b = filled(h->checker, PAGE, 20 + i);
		CHECK_OK(pando_graft(h->checker, to.id, b, PAGE, i));
		pando_buffer_free(b);
		CHECK_INT(peer_ok(&to, PEER_POLL, 5000, 0, 0).value, 1);
	}
	for (uint64_t i = 0; i < 3; i++) {
		struct peer_answer a = peer_ok(&to, PEER_PEEK, 0, 0, 0);

		CHECK_INT(a.info.tag, i);
		CHECK_INT(a.info.waiting, 3 - i);
		CHECK(a.info.address == NULL);
		CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, 1);
		a = peer_ok(&to, PEER_ACCEPT, 0, 0, 0);
		CHECK_INT(a.info.tag, i);
		CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, i < 2);
	}
	CHECK_INT(peer_do(&to, PEER_PEEK, 0, 0, 0).rc, -EAGAIN);
	CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, 0);
	peer_end(&to);
}

static void test_refusing(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_broker_info before, now;
	struct pando_graft_info info;

	CHECK_OK(pando_broker_info(h->checker, &before));
	for (uint64_t i = 0; i < 10; i++) {
		struct pando_buffer *b = filled(h->checker, 5 * PAGE, i);

		CHECK_OK(pando_graft(h->checker, to.id, b, 5 * PAGE, i));
		pando_buffer_free(b);
	}
	for (uint64_t i = 0; i < 10; i++) {
		info = peer_ok(&to, PEER_PEEK, 0, 0, 0).info;
		CHECK_INT(info.tag, i);
		if (i % 2 == 0) {
			peer_ok(&to, PEER_REFUSE, info.id, 0, 0);
			peer_ok(&to, PEER_REFUSE, info.id, 0, 0); /* it does not wait any more */
			continue;
		}
		info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
		CHECK_INT(info.tag, i);
		CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, 5 * PAGE, i).value, 0);
	}
	CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, 0);
	CHECK_INT(peer_ok(&to, PEER_STAT, 0, 0, 0).stat.refused, 5);
	CHECK_OK(pando_broker_info(h->checker, &now));
	CHECK_INT(now.grafts_refused_total - before.grafts_refused_total, 5);
	CHECK_INT(now.grafts_total - before.grafts_total, 10);
	await_grafts(h, 0, 5);
	peer_end(&to);
	await_grafts(h, 0, 0);
}

/* A receiver that does not accept: so much and so many, then EAGAIN; the buffer is as it was. */
static void test_slow_receiver(struct harness *h)
{
	struct peer slow = peer_start(h, AS_IS), other = peer_receiver(h);
	struct pando_buffer *b;
	struct pando_graft_info info;
	int rc, sent = 0;

	peer_ok(&slow, PEER_LISTEN, 64 * MIB, MIB, 0);
	CHECK(kill(slow.pid, SIGSTOP) == 0); /* a stopped one is the slowest */
	for (;;) {
		b = filled(h->checker, 256 * 1024, 30 + sent);
		rc = pando_graft(h->checker, slow.id, b, 256 * 1024, 0);
		if (rc < 0)
			break;
		pando_buffer_free(b);
		sent++;
	}
	CHECK_INT(rc, -EAGAIN);
	CHECK_INT(sent, 4);
	CHECK_INT(pattern_check(pando_buffer_data(b), 256 * 1024, 30 + sent), 0);
	CHECK_ERR(pando_graft(h->checker, slow.id, b, 1, 0), EAGAIN, "wait for client");
	CHECK_OK(pando_graft(h->checker, other.id, b, 256 * 1024, 0));
	pando_buffer_free(b);
	info = peer_ok(&other, PEER_ACCEPT, 0, 0, 0).info;
	CHECK_INT(
		peer_do(&other, PEER_CHECK, (uintptr_t)info.address, info.length, 30 + sent).value,
		0);
	/* What is over the limit alone will never do. */
	b = filled(h->checker, MIB + 1, 1);
	CHECK_ERR(pando_graft(h->checker, slow.id, b, MIB + 1, 0), EFBIG, "at most");
	pando_buffer_free(b);
	CHECK(kill(slow.pid, SIGCONT) == 0);
	for (int i = 0; i < sent; i++) {
		info = peer_ok(&slow, PEER_ACCEPT, 0, 0, 0).info;
		CHECK_INT(peer_do(&slow, PEER_CHECK, (uintptr_t)info.address, info.length, 30 + i)
				  .value,
			  0);
	}
	(void)transfer(h->checker, &slow, 256 * 1024, 60);
	peer_end(&slow);
	peer_end(&other);
}

static void test_many_waiting(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b;
	int rc = 0, sent = 0;

	while (rc == 0) {
		b = filled(h->checker, PAGE, 1);
		rc = pando_graft(h->checker, to.id, b, PAGE, 0);
		pando_buffer_free(b);
		sent += rc == 0;
	}
	CHECK_INT(rc, -EAGAIN);
	CHECK_INT(sent, 5); /* --graft-waiting */
	for (int i = 0; i < sent; i++)
		peer_ok(&to, PEER_ACCEPT, 0, 0, 0);
	(void)transfer(h->checker, &to, PAGE, 2);
	peer_end(&to);
}

/* What is held takes room as well: the reservation is full, until something is released. */
static void test_full_reservation(struct harness *h)
{
	struct peer to = peer_start(h, AS_IS);
	struct pando_graft_info info[8];
	struct pando_buffer *b;
	int held = 0;

	peer_ok(&to, PEER_LISTEN, 8 * MIB, 0, 0);
	for (; held < 8; held++) { /* each takes 2 MiB and a page: aligned, 4 MiB */
		b = filled(h->checker, 2 * MIB, 40 + held);
		if (pando_graft(h->checker, to.id, b, 2 * MIB, 0) < 0)
			break;
		pando_buffer_free(b);
		info[held] = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	}
	CHECK_INT(held, 2);
	CHECK_ERR(pando_graft(h->checker, to.id, b, 2 * MIB, 0), EAGAIN, "full");
	CHECK_OK(
		pando_graft(h->checker, to.id, b, 3 * PAGE, 0)); /* between the two there is room */
	pando_buffer_free(b);
	CHECK_INT(peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info.length, 3 * PAGE);
	b = filled(h->checker, 8 * MIB, 3);
	CHECK_ERR(pando_graft(h->checker, to.id, b, 8 * MIB, 0), EFBIG, "room for");
	pando_buffer_free(b);
	peer_ok(&to, PEER_RELEASE, (uintptr_t)info[0].address, 0, 0);
	(void)transfer(h->checker, &to, PAGE, 50);
	peer_end(&to);
}

static void test_dead_receiver(struct harness *h)
{
	struct peer to = peer_receiver(h);
	struct pando_buffer *b;
	struct pando_broker_info info;

	for (int i = 0; i < 3; i++)
		(void)transfer(h->checker, &to, MIB, i);
	for (int i = 0; i < 3; i++) {
		b = filled(h->checker, MIB, i);
		CHECK_OK(pando_graft(h->checker, to.id, b, MIB, 0));
		pando_buffer_free(b);
	}
	await_grafts(h, 3, 3);
	b = filled(h->checker, MIB, 4);
	peer_kill(&to);
	await_grafts(h, 0, 0);
	CHECK_ERR(pando_graft(h->checker, to.id, b, MIB, 0), ESRCH, "no client");
	CHECK_INT(pattern_check(pando_buffer_data(b), MIB, 4), 0);
	CHECK_OK(pando_broker_info(h->checker, &info));
	CHECK_INT(info.grafts_lost_total, 3);
	to = peer_receiver(h);
	CHECK_OK(pando_graft(h->checker, to.id, b, MIB, 0));
	pando_buffer_free(b);
	peer_end(&to);
}

/* Every way of asking for what cannot be. */
static void test_bad_input(struct harness *h)
{
	struct pando *p = h->checker;
	struct peer to = peer_receiver(h), deaf = peer_start(h, AS_IS);
	struct pando_buffer *b, *none;
	struct pando_graft_info info;
	char other_options[64] = {0};

	CHECK_ERR(pando_buffer_new(p, 0, NULL, &none), EINVAL, "0 bytes");
	CHECK_ERR(pando_buffer_new(p, SIZE_MAX, NULL, &none), EINVAL, NULL);
	CHECK_ERR(pando_buffer_new(p, 1ull << 45, NULL, &none), ENOMEM, NULL);
	CHECK(none == NULL);
	CHECK_ERR(pando_buffer_new(p, 1, &(struct pando_buffer_options){.way = 9}, &none), EINVAL,
		  "way 9");
	CHECK_ERR(pando_buffer_new(p, 1, &(struct pando_buffer_options){.flags = 8}, &none), EINVAL,
		  NULL);
	CHECK_ERR(pando_buffer_new(p, 1, &(struct pando_buffer_options){.receiver = 99}, &none),
		  ESRCH, NULL);
	CHECK_ERR(
		pando_buffer_new(p, 1, &(struct pando_buffer_options){.receiver = deaf.id}, &none),
		ENOTCONN, "pando_graft_listen");
	other_options[60] = 1;
	CHECK_ERR(pando_buffer_new_sized(p, 1, (void *)other_options, 64, &none), EINVAL, NULL);
	pando_buffer_free(NULL);

	b = filled(p, 2 * PAGE, 1);
	CHECK_ERR(pando_graft(p, to.id, b, 0, 0), EINVAL, "0 bytes");
	CHECK_ERR(pando_graft(p, to.id, b, 2 * PAGE + 1, 0), EINVAL, "buffer of");
	CHECK_ERR(pando_graft(p, 0, b, 1, 0), ESRCH, "no client");
	CHECK_ERR(pando_graft(p, UINT64_MAX, b, 1, 0), ESRCH, "no client");
	CHECK_ERR(pando_graft(p, pando_client_id(p), b, 1, 0), EINVAL, "this process");
	CHECK_ERR(pando_graft(p, deaf.id, b, 1, 0), ENOTCONN, "pando_graft_listen");
	CHECK_INT(pattern_check(pando_buffer_data(b), 2 * PAGE, 1), 0);
	CHECK_OK(pando_graft(p, to.id, b, 2 * PAGE, 0));
	CHECK_ERR(pando_graft(p, to.id, b, 1, 0), EINVAL, "already");
	pando_buffer_free(b);

	CHECK_ERR(pando_graft_accept(p, &info), ENOTCONN, "pando_graft_listen");
	CHECK_ERR(pando_graft_peek(p, &info), ENOTCONN, NULL);
	CHECK_ERR(pando_graft_refuse(p, 1), ENOTCONN, NULL);
	CHECK_ERR(pando_event_fd(p), ENOTCONN, NULL);
	CHECK_ERR(pando_graft_release(p, other_options), EINVAL, "begins");
	CHECK_ERR(pando_graft_listen(p, &(struct pando_graft_listen_options){.size = 1ull << 60}),
		  EINVAL, NULL);
	other_options[60] = 1;
	CHECK_ERR(pando_graft_listen_sized(p, (void *)other_options, 64), EINVAL, NULL);
	info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
	CHECK_INT(peer_do(&to, PEER_RELEASE, (uintptr_t)info.address + PAGE, 0, 0).rc, -EINVAL);
	CHECK_INT(peer_do(&to, PEER_LISTEN, MIB, 0, 0).rc, 0); /* again: no change */
	CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, 2 * PAGE, 1).value, 0);
	CHECK(pando_graft_way_name(3) == NULL && strcmp(pando_graft_way_name(1), "memfd") == 0);
	peer_end(&to);
	peer_end(&deaf);
}

/* A process whose address space is limited cannot reserve, and says so; with less it can. */
static void test_no_address_space(struct harness *h)
{
	struct rlimit limit;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		limit.rlim_cur = ((rlim_t)harness_kib(getpid(), "VmSize") << 10) + (1ull << 30);
		limit.rlim_max = limit.rlim_cur;
		CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
		CHECK_ERR(pando_graft_listen(h->checker, NULL), ENOMEM, "ulimit -v");
		CHECK_OK(pando_graft_listen(
			h->checker, &(struct pando_graft_listen_options){.size = 64 * MIB}));
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
}

static void expect_send(struct harness *h, uid_t from_uid, uid_t to_uid, int expected)
{
	struct peer from = peer_start(h, from_uid), to = peer_start(h, to_uid);

	peer_ok(&to, PEER_LISTEN, 0, 0, 0);
	CHECK_INT(peer_do(&from, PEER_SEND, to.id, 3 * PAGE, 6).rc, expected);
	if (expected == 0) {
		struct pando_graft_info info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;

		CHECK_INT(info.sender_uid, from_uid == AS_IS ? getuid() : from_uid);
		CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, 3 * PAGE, 6).value, 0);
	}
	peer_end(&from);
	peer_end(&to);
}

static void others_may_come(struct harness *h)
{
	if (getuid() != 0)
		harness_skip("needs root");
	CHECK(chmod(h->dir, 0711) == 0);
}

static void test_users(struct harness *h)
{
	others_may_come(h);
	expect_send(h, NOBODY, AS_IS, -EPERM);
	expect_send(h, NOBODY, NOBODY - 1, -EPERM);
	expect_send(h, NOBODY, NOBODY, 0);
	expect_send(h, AS_IS, NOBODY, 0); /* root */
}

static void test_policy_any(struct harness *h)
{
	others_may_come(h);
	/* The broker permits it; whether pages may be moved there is the kernel's to say. */
	if (getenv("PANDO_GRAFT_WAY") && strcmp(getenv("PANDO_GRAFT_WAY"), "mmap") == 0)
		expect_send(h, NOBODY, AS_IS, -EPERM);
	else
		expect_send(h, NOBODY, AS_IS, 0);
}

static void test_policy_off(struct harness *h)
{
	expect_send(h, AS_IS, AS_IS, -EPERM);
}

/* A receiver that may not be attached to: who names it when making a buffer gets one that can go. */
static void test_not_attachable(struct harness *h)
{
	struct peer to, from;
	struct pando_graft_stat st;

	others_may_come(h);
	CHECK_OK(pando_graft_stat(h->checker, &st));
	if (!st.can_mmap || getenv("PANDO_GRAFT_WAY"))
		harness_skip("needs a kernel with process_vm_mmap(), and no way forced");
	to = peer_start(h, NOBODY);
	from = peer_start(h, NOBODY);
	peer_ok(&to, PEER_LISTEN, 0, 0, 0);
	peer_ok(&to, PEER_HIDE, 0, 0, 0);
	CHECK_INT(peer_do(&from, PEER_SEND_ANY, to.id, MIB, 1).rc, -EPERM);
	CHECK_INT(peer_ok(&from, PEER_SEND, to.id, MIB, 2).stat.way, PANDO_GRAFT_MEMFD);
	CHECK_INT(peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info.tag, 2);
	peer_end(&from);
	peer_end(&to);
}

/* The same two, over and over: no descriptor, no mapping, no byte stays. */
static void test_nothing_stays(struct harness *h)
{
	struct peer to = peer_receiver(h);
	unsigned int fds, peer_fds, broker_fds, maps;
	struct pando_graft_info info = transfer(h->checker, &to, MIB, 1);
	long rss;

	peer_ok(&to, PEER_RELEASE, (uintptr_t)info.address, 0, 0);
	fds = harness_fds(getpid());
	maps = harness_maps(getpid(), "");
	broker_fds = harness_fds(h->broker);
	peer_fds = (unsigned int)peer_do(&to, PEER_FDS, 0, 0, 0).value;
	rss = harness_kib(to.pid, "VmRSS");
	for (uint64_t i = 0; i < 100; i++) {
		info = transfer(h->checker, &to, 4 * MIB, i);
		if (i % 3 == 0)
			peer_ok(&to, PEER_WRITE, (uintptr_t)info.address, 4 * MIB, 5);
		peer_ok(&to, PEER_RELEASE, (uintptr_t)info.address, 0, 0);
	}
	await_grafts(h, 0, 0);
	CHECK_INT(harness_fds(getpid()), fds);
	CHECK(harness_maps(getpid(), "") <= maps + 2); /* libc's own come and go */
	CHECK_INT(peer_do(&to, PEER_FDS, 0, 0, 0).value, peer_fds);
	CHECK_INT(harness_fds(h->broker), broker_fds);
	CHECK(harness_kib(to.pid, "VmRSS") < rss + 8 * 1024);
	peer_end(&to);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "handing_over", .run = test_handing_over},
		{.name = "part_of_a_buffer", .run = test_part_of_a_buffer},
		{.name = "sender_has_let_go", .run = test_sender_has_let_go},
		{.name = "cannot_be_sealed", .run = test_cannot_be_sealed},
		{.name = "no_descriptor", .run = test_no_descriptor},
		{.name = "receiver_forks", .run = test_receiver_forks},
		{.name = "sender_forks", .run = test_sender_forks},
		{.name = "filling", .run = test_filling},
		{.name = "events", .run = test_events},
		{.name = "refusing", .run = test_refusing},
		{.name = "slow_receiver", .run = test_slow_receiver},
		{.name = "many_waiting",
		 .run = test_many_waiting,
		 .args = {"--graft-waiting", "5"}},
		{.name = "full_reservation", .run = test_full_reservation},
		{.name = "dead_receiver", .run = test_dead_receiver},
		{.name = "bad_input", .run = test_bad_input},
		{.name = "no_address_space", .run = test_no_address_space},
		{.name = "users", .run = test_users},
		{.name = "policy_any", .run = test_policy_any, .args = {"--graft", "any"}},
		{.name = "policy_off", .run = test_policy_off, .args = {"--graft", "off"}},
		{.name = "not_attachable", .run = test_not_attachable},
		{.name = "nothing_stays", .run = test_nothing_stays},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
