/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Threads: several senders share one handle, several receivers another one, in two processes, and a
 * third thread of each forks all the while. Each graft arrives once and whole.
 */
#include "graft_peer.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#define SENDERS 3
#define RECEIVERS 3
#define EACH 40
#define BYTES (5 * PAGE)

static struct pando *p;
static uint64_t receiver_id;
static uint32_t arrived; /* how many */
static uint32_t stop;
static uint32_t seen[SENDERS * EACH];

static void *send_some(void *arg)
{
	uint64_t first = (uintptr_t)arg * EACH;

	for (uint64_t i = first; i < first + EACH; i++) {
		struct pando_buffer *b = filled(p, BYTES, i);
		int rc;

		while ((rc = pando_graft(p, receiver_id, b, BYTES, i)) == -EAGAIN)
			harness_sleep_ms(1);
		CHECK_OK(rc);
		pando_buffer_free(b);
	}
	return NULL;
}

static void *receive_some(void *arg)
{
	struct pando_graft_info info;
	struct pollfd pfd = {.fd = pando_event_fd(p), .events = POLLIN};

	(void)arg;
	while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < SENDERS * EACH) {
		int rc = pando_graft_accept(p, &info);

		if (rc == -EAGAIN) {
			(void)poll(&pfd, 1, 20);
			continue;
		}
		CHECK_OK(rc);
		CHECK_INT(pattern_check(info.address, info.length, info.tag), 0);
		CHECK_INT(__atomic_fetch_add(&seen[info.tag], 1, __ATOMIC_RELAXED), 0);
		pattern_write(info.address, info.length, info.tag + 7);
		CHECK_INT(pattern_check(info.address, info.length, info.tag + 7), 0);
		CHECK_OK(pando_graft_release(p, info.address));
		__atomic_fetch_add(&arrived, 1, __ATOMIC_ACQ_REL);
	}
	return NULL;
}

static void *fork_some(void *arg)
{
	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		CHECK_INT(harness_join(pid), 0);
		harness_sleep_ms(3);
	}
	return NULL;
}

static void run_threads(void *(*run)(void *), unsigned int count, bool forking)
{
	pthread_t threads[SENDERS + RECEIVERS], forker;

	if (forking)
		CHECK(pthread_create(&forker, NULL, fork_some, NULL) == 0);
	for (uintptr_t i = 0; i < count; i++)
		CHECK(pthread_create(&threads[i], NULL, run, (void *)i) == 0);
	for (unsigned int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	if (forking)
		pthread_join(forker, NULL);
}

static void threads(struct harness *h, bool forking)
{
	int ends[2];
	pid_t pid;

	CHECK(pipe(ends) == 0);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		pando_disconnect(h->checker);
		p = harness_connect(h);
		CHECK_OK(pando_graft_listen(p, NULL));
		receiver_id = pando_client_id(p);
		CHECK(write(ends[1], &receiver_id, sizeof(receiver_id)) == sizeof(receiver_id));
		run_threads(receive_some, RECEIVERS, forking);
		pando_disconnect(p);
		_exit(0);
	}
	CHECK(read(ends[0], &receiver_id, sizeof(receiver_id)) == sizeof(receiver_id));
	close(ends[0]);
	close(ends[1]);
	p = h->checker;
	run_threads(send_some, SENDERS, forking);
	CHECK_INT(harness_join(pid), 0);
	await_grafts(h, 0, 0);
}

static void test_threads(struct harness *h)
{
	threads(h, false);
}

static void test_threads_that_fork(struct harness *h)
{
#ifdef __SANITIZE_THREAD__
	/* What fork() handlers lock and a child unlocks, it takes for locked twice. */
	harness_skip("ThreadSanitizer does not know forking programs with threads");
#endif
	threads(h, true);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "threads", .run = test_threads},
		{.name = "threads_that_fork", .run = test_threads_that_fork},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
