/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Read sections and retired objects across processes, with a broker: readers and writers that are
 * killed, that fork, that may only read; what stat says of those that stall.
 */
#include "harness.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <pando/heap.h>
#include <pando/rcu.h>

#define MIB (1ull << 20)

static struct pando_region *open_region(struct harness *h, const char *name)
{
	struct pando_region *r;

	CHECK_OK(pando_region_open(h->checker, name, PANDO_CREATE | PANDO_HEAP,
				   &(struct pando_region_options){.size = 256 * MIB}, &r));
	return r;
}

static void close_region(struct harness *h, struct pando_region *r, const char *name)
{
	CHECK_OK(pando_region_destroy(h->checker, name));
	CHECK_OK(pando_region_close(r));
	harness_await_clients(h, 1);
}

/* A process that is in a read section when this returns, until it is killed. */
static pid_t start_reader(struct pando_region *r)
{
	int fds[2];
	char c;
	pid_t pid;

	CHECK(pipe(fds) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK_OK(pando_read_lock(r));
		CHECK(write(fds[1], "x", 1) == 1);
		for (;;)
			pause();
	}
	CHECK(read(fds[0], &c, 1) == 1);
	close(fds[0]);
	close(fds[1]);
	return pid;
}

static void end(pid_t pid)
{
	CHECK(kill(pid, SIGKILL) == 0);
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
}

static void test_killed_reader(struct harness *h)
{
	struct pando_region *r = open_region(h, "killed");
	const pid_t reader = start_reader(r);
	uint64_t begun;
	char text[40];
	pid_t killer;

	CHECK_ERR(pando_synchronize(r, 50), ETIMEDOUT, "thread");
	snprintf(text, sizeof(text), "pid %d, thread %d", (int)reader, (int)reader);
	CHECK(strstr(pando_strerror_last(), text));
	killer = fork();
	if (killer == 0) {
		harness_sleep_ms(100);
		CHECK(kill(reader, SIGKILL) == 0);
		_exit(0);
	}
	begun = harness_now_ns();
	CHECK_OK(pando_synchronize(r, 20000));
	/* The broker wakes us: well before a sleeper looks by itself. */
	CHECK(harness_now_ns() - begun < 900 * 1000000ull * harness_slow());
	CHECK_INT(harness_join(killer), 0);
	CHECK_INT(harness_join(reader), 256 + SIGKILL);
	close_region(h, r, "killed");
}

/* A stopped reader is not dead. */
static void test_stopped_reader(struct harness *h)
{
	struct pando_region *r = open_region(h, "stopped");
	const pid_t reader = start_reader(r);
	struct pando_rcu_stat st;
	bool seen = false;

	CHECK(kill(reader, SIGSTOP) == 0);
	CHECK_ERR(pando_synchronize(r, 100), ETIMEDOUT, "thread");
	for (int i = 0; i < 100 && !seen; i++) {
		harness_sleep_ms(100);
		CHECK_OK(pando_rcu_stat(r, &st));
		seen = st.stalled_count == 1;
	}
	CHECK(seen);
	CHECK_INT(st.stalled[0].pid, reader);
	CHECK_INT(st.stalled[0].tid, reader);
	CHECK(st.stalled[0].ns >= 1000000000ull && st.stalled[0].ns < 60000000000ull);
	CHECK_INT(st.readers, 1);
	CHECK_INT(st.reading, 1);
	end(reader);
	CHECK_OK(pando_synchronize(r, 20000));
	for (int i = 0; i < 100 && st.stalled_count; i++) {
		harness_sleep_ms(100);
		CHECK_OK(pando_rcu_stat(r, &st));
	}
	CHECK_INT(st.stalled_count, 0);
	close_region(h, r, "stopped");
}

static uint64_t objects(struct pando_region *r)
{
	struct pando_heap_stat st;

	CHECK_OK(pando_heap_stat(r, &st));
	return st.objects;
}

static void await_objects(struct pando_region *r, uint64_t n)
{
	for (int i = 0; i < 1000 && objects(r) != n; i++)
		harness_sleep_ms(10);
	CHECK_INT(objects(r), n);
}

/* What a killed process had retired stays whole until readers have ended their sections. */
static void test_killed_writer(struct harness *h)
{
	struct pando_region *r = open_region(h, "writer");
	struct pando_broker_info before, after;
	const pid_t reader = start_reader(r);
	uint64_t *p[3];
	pid_t writer, innocent;

	for (int i = 0; i < 3; i++) {
		p[i] = pando_alloc(r, 100);
		CHECK(p[i] && pando_share(r, p[i]) == 0);
		p[i][3] = 77;
	}
	CHECK_OK(pando_broker_info(h->checker, &before));
	writer = fork();
	if (writer == 0) {
		for (int i = 0; i < 3; i++)
			CHECK_OK(pando_retire(r, p[i], 0));
		CHECK_INT(pando_reclaim(r), 3);
		raise(SIGKILL);
	}
	CHECK_INT(harness_join(writer), 256 + SIGKILL);
	/* Somebody else who dies meanwhile, and had nothing retired, does not wait. */
	innocent = fork();
	if (innocent == 0) {
		CHECK(pando_alloc(r, 1000) != NULL);
		raise(SIGKILL);
	}
	CHECK_INT(harness_join(innocent), 256 + SIGKILL);
	for (int i = 0; i < 500; i++) {
		CHECK_OK(pando_broker_info(h->checker, &after));
		if (after.heap_reaps_total > before.heap_reaps_total)
			break;
		harness_sleep_ms(10);
	}
	CHECK_INT(after.heap_reaps_total, before.heap_reaps_total + 1);
	harness_sleep_ms(1200); /* a tick of the broker's */
	CHECK_INT(objects(r), 3);
	for (int i = 0; i < 3; i++)
		CHECK_INT(p[i][3], 77);
	end(reader);
	await_objects(r, 0);
	CHECK_OK(pando_heap_check(r));
	close_region(h, r, "writer");
}

/* The same where the broker dies before it is done. */
static void test_killed_broker(struct harness *h)
{
	struct pando_region *r = open_region(h, "broker");
	struct pando_broker_info info;
	const pid_t reader = start_reader(r);
	uint64_t *p = pando_alloc(r, 100);
	pid_t writer;

	CHECK(p && pando_share(r, p) == 0);
	writer = fork();
	if (writer == 0) {
		CHECK_OK(pando_retire(r, p, 0));
		raise(SIGKILL);
	}
	CHECK_INT(harness_join(writer), 256 + SIGKILL);
	harness_sleep_ms(100);
	CHECK(kill(h->broker, SIGKILL) == 0);
	harness_sleep_ms(1500);
	CHECK_OK(pando_broker_info(h->checker, &info));
	CHECK(info.broker_pid != h->broker);
	harness_sleep_ms(1200);
	CHECK_INT(objects(r), 1);
	end(reader);
	await_objects(r, 0);
	close_region(h, r, "broker");
}

static int child_reads(struct pando_region *r)
{
	CHECK_ERR(pando_read_unlock(r), EPERM, "no read section");
	CHECK_OK(pando_read_lock(r));
	CHECK_OK(pando_read_unlock(r));
	CHECK_OK(pando_synchronize(r, 0) == -ETIMEDOUT ? 0 : -1); /* the parent reads */
	return 0;
}

enum { CROWDS = 40, CROWD = 250 };

static void *sit(void *arg)
{
	struct pando_region *r = arg;

	CHECK_OK(pando_read_lock(r));
	CHECK_OK(pando_read_unlock(r));
	for (;;)
		pause();
	return NULL;
}

static pid_t start_crowd(struct pando_region *r)
{
	const pid_t pid = fork();
	pthread_attr_t attr;

	CHECK(pid >= 0);
	if (pid != 0)
		return pid;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (int i = 0; i < CROWD; i++) {
		pthread_t thread;

		CHECK(pthread_create(&thread, &attr, sit, r) == 0);
	}
	for (;;)
		pause();
}

static void await_readers(struct pando_region *r, uint64_t n)
{
	struct pando_rcu_stat st;

	for (int i = 0; i < 6000; i++) {
		CHECK_OK(pando_rcu_stat(r, &st));
		if (st.readers == n && st.reading == 0)
			break;
		harness_sleep_ms(10);
	}
	CHECK_INT(st.readers, n);
}

/* Ten thousand threads, far more in each process than its slot page has room for; twice. */
static void test_ten_thousand(struct harness *h)
{
	struct pando_region *r = open_region(h, "crowd");
	pid_t pids[CROWDS];

	for (int round = 0; round < 2; round++) {
		uint64_t begun;

		for (int i = 0; i < CROWDS; i++)
			pids[i] = start_crowd(r);
		await_readers(r, CROWDS * CROWD);
		begun = harness_now_ns();
		CHECK_OK(pando_synchronize(r, 20000));
		printf("  %d readers: a grace period of %.0f us\n", CROWDS * CROWD,
		       (double)(harness_now_ns() - begun) / 1e3);
		for (int i = 0; i < CROWDS; i++)
			end(pids[i]);
		await_readers(r, 0);
	}
	close_region(h, r, "crowd");
}

/* Forked in a read section: the child is in none, and the parent's is as it was. */
static void test_fork(struct harness *h)
{
	struct pando_region *r = open_region(h, "fork");
	struct pando_rcu_stat st;
	pid_t pid;

	for (int nested = 0; nested < 2; nested++)
		CHECK_OK(pando_read_lock(r));
	for (int how = 0; how < 2; how++) {
		pid = how == 0 ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
		CHECK(pid >= 0);
		if (pid == 0)
			_exit(child_reads(r));
		CHECK_INT(harness_join(pid), 0);
		CHECK_OK(pando_rcu_stat(r, &st));
		CHECK_INT(st.reading, 1);
	}
	for (int nested = 0; nested < 2; nested++)
		CHECK_OK(pando_read_unlock(r));
	CHECK_ERR(pando_read_unlock(r), EPERM, NULL);
	CHECK_OK(pando_synchronize(r, 20000));
	close_region(h, r, "fork");
}

/* Who may only read the region says where it reads all the same. */
static void test_readonly(struct harness *h)
{
	struct pando_region *r = open_region(h, "readonly"), *seen;
	const uint64_t *p;
	struct pando *other;
	uint64_t *mine = pando_alloc(r, 64);
	pid_t pid;

	CHECK(mine && pando_share(r, mine) == 0);
	*mine = 5;
	pid = fork();
	if (pid == 0) {
		other = harness_connect(h);
		CHECK_OK(pando_region_close(r));
		CHECK_OK(pando_region_open(other, "readonly", PANDO_READONLY, NULL, &seen));
		CHECK_OK(pando_read_lock(seen));
		p = mine;
		CHECK_INT(*p, 5);
		CHECK_ERR(pando_retire(seen, mine, 0), EACCES, "read-only");
		CHECK_ERR(pando_retire_limit(seen, 1), EACCES, "read-only");
		CHECK_OK(pando_read_unlock(seen));
		CHECK_OK(pando_synchronize(seen, 1000));
		pando_disconnect(other);
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	CHECK_OK(pando_retire(r, mine, 0));
	CHECK_OK(pando_synchronize(r, 1000));
	CHECK_INT(objects(r), 0);
	close_region(h, r, "readonly");
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "killed_reader", .run = test_killed_reader},
		{.name = "stopped_reader", .run = test_stopped_reader},
		{.name = "killed_writer", .run = test_killed_writer},
		{.name = "killed_broker", .run = test_killed_broker, .flags = HARNESS_BROKER_DIES},
		{.name = "fork", .run = test_fork},
		{.name = "ten_thousand", .run = test_ten_thousand, .seconds = 120},
		{.name = "readonly", .run = test_readonly},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
