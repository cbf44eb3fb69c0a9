/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fork() and its relatives: each child a client of its own, whatever its parent was doing, and
 * whatever becomes of the parent or the broker.
 */
#include "harness.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MIB (1ull << 20)
#define REGIONS 5

extern char **environ;

/* Waits until the child of a fork() is attached. */
static void await_registered(struct pando_region *r)
{
	struct pando_region_stat st;

	for (unsigned int i = 0; i < 5000 * harness_slow(); i++) {
		pando_region_stat(r, &st);
		if (st.registered)
			return;
		harness_sleep_ms(1);
	}
	harness_fail(__FILE__, __LINE__, "region \"%s\" did not get a slot", st.name);
}

static void test_basic(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "shared", MIB, 0);
	volatile uint64_t *base = pando_region_base(r);
	uint64_t id = pando_client_id(p);
	struct pando_region_stat mine, st;
	pid_t pid;

	pando_region_stat(r, &mine);
	pid = fork();
	if (pid == 0) {
		struct pando_client_info info[8];
		uint64_t cursor = 0, child = pando_client_id(p);
		int n, found = 0;

		base[0] = 1;
		CHECK(child != 0 && child != id);
		await_registered(r);
		pando_region_stat(r, &st);
		CHECK(st.slot != mine.slot);
		CHECK_INT(st.clients, 2);
		n = pando_clients(p, &cursor, info, 8);
		for (int i = 0; i < n; i++)
			found += info[i].id == child && info[i].parent == id &&
				 info[i].pid == getpid() && info[i].regions == 1;
		CHECK_INT(found, 1);
		CHECK_OK(pando_region_resize(r, 4 * MIB));
		CHECK_OK(pando_region_close(r));
		CHECK_OK(
			pando_region_open(p, "shared", 0, NULL, &r)); /* and again, as any client */
		CHECK(pando_region_base(r) == (void *)(uintptr_t)base);
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	CHECK_INT(base[0], 1);
	CHECK(pando_region_size(r) >= 4 * MIB);
	CHECK_INT(pando_client_id(p), id);
	harness_await_clients(h, 2);
	pando_region_stat(r, &st);
	CHECK_INT(st.clients, 1);
	CHECK_INT(st.slot, mine.slot);
	CHECK_OK(pando_region_destroy(p, "shared"));
	pando_disconnect(p);
}

static bool stop;

static void *churn(void *arg)
{
	struct pando *p = arg;
	char name[32];

	snprintf(name, sizeof(name), "churn%ld", (long)syscall(SYS_gettid));
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct pando_region *r = harness_region(p, name, 4096, PANDO_TRANSIENT);

		CHECK_OK(pando_region_close(r));
	}
	return NULL;
}

/* Children that come into being at any moment of other threads' calls. */
static void test_threads(struct harness *h)
{
	struct pando *p = harness_connect(h), *q = harness_connect(h);
	struct pando_region *r[REGIONS], *ro;
	pthread_t thread[4];
	pid_t pid;

	for (int i = 0; i < REGIONS; i++) {
		char name[16];

		snprintf(name, sizeof(name), "r%d", i);
		r[i] = harness_region(i & 1 ? p : q, name, MIB, PANDO_TRANSIENT);
	}
	/* One address, one mapping: another handle of the same process finds it taken. */
	CHECK_ERR(pando_region_open(p, "r0", PANDO_READONLY, NULL, &ro), EADDRNOTAVAIL,
		  strcmp(harness_backend(), "mshare") ? "memfd:pando:r0" : HARNESS_MSHARE);
	for (int i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, churn, i & 1 ? p : q);
	for (int round = 0; round < 60; round++) {
		pid = fork();
		if (pid == 0) {
			unsigned int fds = harness_fds(getpid());

			for (int i = 0; i < REGIONS; i++) {
				((volatile unsigned char *)pando_region_base(r[i]))[round] = 1;
				if (round & 1)
					await_registered(r[i]);
			}
			CHECK(fds <= 12);
			if (round % 3 == 0) { /* as good a client as any */
				struct pando_region *own = harness_region(p, "own", 4096, 0);

				CHECK_OK(pando_region_close(own));
			}
			_exit(0);
		}
		CHECK_INT(harness_join(pid), 0);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	for (int i = 0; i < REGIONS; i++)
		for (int round = 0; round < 60; round++)
			CHECK_INT(((unsigned char *)pando_region_base(r[i]))[round], 1);
	CHECK_OK(pando_region_destroy(p, "own"));
	pando_disconnect(p);
	pando_disconnect(q);
}

/* A child's child's child ... while its own parent may have read no answer yet. Never returns. */
static void chain(struct pando *p, struct pando_region *r)
{
	volatile uint32_t *count = pando_region_base(r);

	for (int depth = 0; depth < 20; depth++) {
		pid_t pid;

		__atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
		pid = fork();
		if (pid == 0)
			continue;
		CHECK_INT(harness_join(pid), 0);
		if (depth & 1)
			await_registered(r);
		_exit(0);
	}
	await_registered(r);
	CHECK(pando_client_id(p) != 0);
	_exit(0);
}

static void test_chain(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "chain", MIB, PANDO_TRANSIENT);
	pid_t pid = fork();

	if (pid == 0)
		chain(p, r);
	CHECK_INT(harness_join(pid), 0);
	CHECK_INT(*(uint32_t *)pando_region_base(r), 20);
	harness_await_clients(h, 2);
	pando_disconnect(p);
}

/* The parent ends at once; region and child go on. */
static void test_orphan(struct harness *h)
{
	for (int round = 0; round < 20; round++) {
		int ends[2];
		char word = 0;
		pid_t pid;

		CHECK(pipe2(ends, O_CLOEXEC) == 0);
		pid = fork();
		if (pid == 0) {
			struct pando *p = harness_connect(h);
			struct pando_region *r = harness_region(p, "orphan", MIB, PANDO_TRANSIENT);
			volatile unsigned char *base = pando_region_base(r);
			struct pando_region_info info;

			base[9] = 9;
			if (fork() != 0)
				_exit(0);
			harness_sleep_ms((unsigned int)round);
			CHECK(base[9] == 9);
			await_registered(r);
			CHECK_OK(pando_region_lookup(p, "orphan", &info));
			CHECK_OK(pando_region_resize(r, 2 * MIB));
			CHECK(write(ends[1], "k", 1) == 1);
			_exit(0);
		}
		close(ends[1]);
		CHECK_INT(harness_join(pid), 0);
		CHECK_INT(read(ends[0], &word, 1), 1);
		CHECK_INT(word, 'k');
		close(ends[0]);
		harness_await_clients(h, 1);
	}
}

/* The parent closes its last open, or leaves, as soon as it has forked. */
static void test_handover(struct harness *h)
{
	for (int round = 0; round < 40; round++) {
		struct pando *p = harness_connect(h);
		struct pando_region *r = harness_region(p, "handover", MIB, PANDO_TRANSIENT);
		volatile unsigned char *base = pando_region_base(r);
		pid_t pid;

		base[9] = 9;
		pid = fork();
		if (pid == 0) {
			CHECK(base[9] == 9);
			await_registered(r);
			CHECK(base[9] == 9);
			_exit(0);
		}
		if (round & 1)
			CHECK_OK(pando_region_close(r));
		pando_disconnect(p);
		CHECK_INT(harness_join(pid), 0);
		harness_await_clients(h, 1);
	}
}

static void *grow(void *arg)
{
	return (void *)(intptr_t)pando_region_resize(arg, 768 * MIB);
}

static void test_during_call(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r;
	uint64_t before;
	pthread_t thread;
	void *result;
	pid_t pid;

	CHECK_OK(pando_region_open(p, "big", PANDO_CREATE | PANDO_TRANSIENT,
				   &(struct pando_region_options){.size = MIB}, &r));
	pthread_create(&thread, NULL, grow, r);
	for (int i = 0; i < 10; i++) {
		harness_sleep_ms(2);
		before = harness_now_ns();
		pid = fork();
		if (pid == 0) {
			struct pando_broker_info info;

			CHECK_OK(pando_broker_info(p, &info));
			_exit(0);
		}
		CHECK(harness_now_ns() - before < 2000000000ull * harness_slow());
		CHECK_INT(harness_join(pid), 0);
	}
	pthread_join(thread, &result);
	CHECK_INT((intptr_t)result, 0);
	CHECK_INT(pando_region_size(r), 768 * MIB);
	pando_disconnect(p);
}

/* What a new program finds of the old one: nothing. */
static void check_exec_output(int fd)
{
	char text[512];
	ssize_t n, have = 0;

	while ((n = read(fd, text + have, sizeof(text) - 1 - (size_t)have)) > 0)
		have += n;
	text[have] = '\0';
	if (strcmp(text, "0\n0\n") != 0)
		harness_fail(__FILE__, __LINE__, "region mappings and sockets after exec: %s",
			     text);
}

static void test_exec(struct harness *h)
{
	static char *const argv[] = {
		(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
		(char *)(uintptr_t) "grep -c -e pando: -e " HARNESS_MSHARE " /proc/$$/maps; "
				    "ls -l /proc/$$/fd | grep -c socket:; sleep 0.1",
		NULL};
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "e", MIB, PANDO_TRANSIENT);
	posix_spawn_file_actions_t actions;
	struct pando_broker_info info;
	pid_t pid;

	for (int how = 0; how < 3; how++) {
		int ends[2];

		CHECK(pipe2(ends, O_CLOEXEC) == 0);
		if (how == 0) {
			posix_spawn_file_actions_init(&actions);
			posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
			CHECK(posix_spawn(&pid, "/bin/sh", &actions, NULL, argv, environ) == 0);
			posix_spawn_file_actions_destroy(&actions);
		} else {
			pid = how == 1 ? vfork() : fork();
			if (pid == 0) {
				dup2(ends[1], 1);
				execv("/bin/sh", argv);
				_exit(127);
			}
		}
		close(ends[1]);
		check_exec_output(ends[0]);
		close(ends[0]);
		/* The new program still runs, and is no client. */
		harness_await_clients(h, 2);
		CHECK_INT(harness_join(pid), 0);
	}
	CHECK_OK(pando_broker_info(p, &info));
	CHECK_INT(info.clients, 2);
	CHECK_OK(pando_region_resize(r, 2 * MIB));
	pando_disconnect(p);
}

/* The broker is stopped while a child is made: the child works, and has its slot later. */
static void test_broker_stopped(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "s", MIB, PANDO_TRANSIENT);
	uint64_t before;
	pid_t pid;

	kill(h->broker, SIGSTOP);
	before = harness_now_ns();
	pid = fork();
	if (pid == 0) {
		struct pando_region_stat st;

		*(volatile char *)pando_region_base(r) = 5;
		pando_region_stat(r, &st);
		CHECK_INT(st.registered, 0);
		CHECK_INT(st.size, pando_region_size(r));
		kill(h->broker, SIGCONT);
		await_registered(r);
		_exit(0);
	}
	CHECK(harness_now_ns() - before < 1000000000ull * harness_slow());
	CHECK_INT(harness_join(pid), 0);
	CHECK_INT(*(char *)pando_region_base(r), 5);
	pando_disconnect(p);
}

/*
 * No descriptor is free when a child is made: it works all the same, and has its slot when there
 * is one.
 */
static void test_no_descriptors(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "n", MIB, PANDO_TRANSIENT);
	struct rlimit limit, none;
	pid_t pid;

	getrlimit(RLIMIT_NOFILE, &limit);
	none = limit;
	none.rlim_cur = 3;
	setrlimit(RLIMIT_NOFILE, &none);
	pid = fork();
	setrlimit(RLIMIT_NOFILE, &limit);
	if (pid == 0) {
		struct pando_region_stat st;

		setrlimit(RLIMIT_NOFILE, &none);
		*(volatile char *)pando_region_base(r) = 6;
		pando_region_stat(r, &st);
		CHECK_INT(st.registered, 0);
		CHECK_ERR(pando_region_resize(r, 2 * MIB), EMFILE, "ulimit -n");
		setrlimit(RLIMIT_NOFILE, &limit);
		CHECK_OK(pando_region_resize(r, 2 * MIB));
		await_registered(r);
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	CHECK_INT(*(char *)pando_region_base(r), 6);
	pando_disconnect(p);
}

static void *connect_again(void *arg)
{
	struct harness *h = arg;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		pando_disconnect(harness_connect(h));
	return NULL;
}

/*
 * Other threads connect and leave while children are made: none inherits a handle that nobody
 * has.
 */
static void test_during_connect(struct harness *h)
{
	struct pando *p = harness_connect(h);
	pthread_t thread[3];
	unsigned int fds;
	pid_t pid;

	fds = harness_fds(getpid());
	for (int i = 0; i < 3; i++)
		pthread_create(&thread[i], NULL, connect_again, h);
	for (int i = 0; i < 100; i++) {
		pid = fork();
		if (pid == 0) {
			unsigned int now = harness_fds(getpid());

			CHECK(pando_client_id(p) != 0);
			/*
			 * At most what a thread had between two calls: a handle, whole, but lost
			 * with the thread.
			 */
			CHECK(now <= fds + 3);
			_exit(0);
		}
		CHECK_INT(harness_join(pid), 0);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	pando_disconnect(p);
}

/* The broker is killed before, while, or after a child is made. */
static void test_broker_killed(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "k", MIB, PANDO_TRANSIENT);
	struct pando_broker_info info;
	pid_t pid[4];

	for (int round = 0; round < 4; round++) {
		CHECK_OK(pando_broker_info(p, &info));
		for (int i = 0; i < 4; i++) {
			if (i == 2)
				kill(info.broker_pid, SIGKILL);
			pid[i] = fork();
			if (pid[i] == 0) {
				CHECK(pando_client_id(p) != 0);
				await_registered(r);
				CHECK_OK(pando_region_close(r));
				_exit(0);
			}
		}
		for (int i = 0; i < 4; i++)
			CHECK_INT(harness_join(pid[i]), 0);
		harness_sleep_ms(50);
	}
	pando_disconnect(p);
}

static void test_many(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "many", MIB, PANDO_TRANSIENT);
	struct pando_region_stat st;
	int go[2];
	char c;

	CHECK(pipe2(go, O_CLOEXEC) == 0);
	for (int i = 0; i < 300; i++)
		if (fork() == 0) {
			__atomic_add_fetch((uint32_t *)pando_region_base(r), 1, __ATOMIC_RELAXED);
			close(go[1]);
			CHECK(read(go[0], &c, 1) == 0);
			_exit(0);
		}
	harness_await_clients(h, 602); /* the checker's connection is inherited, too */
	for (unsigned int i = 0;
	     i < 2000 * harness_slow() && (pando_region_stat(r, &st), st.clients < 301); i++)
		harness_sleep_ms(1);
	CHECK_INT(st.clients, 301);
	close(go[1]);
	close(go[0]);
	for (int i = 0; i < 300; i++) {
		int status;

		CHECK(wait(&status) > 0 && status == 0);
	}
	harness_await_clients(h, 2);
	pando_region_stat(r, &st);
	CHECK_INT(st.clients, 1);
	CHECK_INT(*(uint32_t *)pando_region_base(r), 300);
	pando_disconnect(p);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "basic", .run = test_basic},
		{.name = "threads", .run = test_threads},
		{.name = "chain", .run = test_chain},
		{.name = "orphan", .run = test_orphan},
		{.name = "handover", .run = test_handover},
		{.name = "during-call", .run = test_during_call},
		{.name = "exec", .run = test_exec},
		{.name = "broker-stopped", .run = test_broker_stopped},
		{.name = "no-descriptors", .run = test_no_descriptors},
		{.name = "during-connect", .run = test_during_connect},
		{.name = "broker-killed", .run = test_broker_killed, .flags = HARNESS_BROKER_DIES},
		{.name = "many", .run = test_many},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
