/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client is killed at each of the library's injection points, in the first and in later passages,
 * as parent and as the child of a fork(). Each time the broker must be as before, and the region as
 * good as ever for the next client.
 *
 * The victim is this program, executed again: points are armed when a program starts. Another one
 * is stopped while it leaves.
 */
#include "harness.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#define MIB (1ull << 20)

extern char **environ;

static const char *const points[] = {
	"client.hail.connected",
	"client.call.sent",
	"client.open.received",
	"client.open.heap",
	"client.slot.fields",
	"client.slot.taken",
	"client.close.unmapped",
	"client.fork.disowned",
	"client.fork.hailed",
	"client.fork.done",
	NULL,
};

/* A life with everything in it. */
static int victim(void)
{
	struct pando *p;
	struct pando_region *r, *t;
	pid_t pid;

	if (pando_connect(&p, NULL) < 0 || pando_region_open(p, "common", 0, NULL, &r) < 0 ||
	    pando_region_open(p, "own", PANDO_CREATE | PANDO_TRANSIENT,
			      &(struct pando_region_options){.size = MIB}, &t) < 0)
		return 1;
	__atomic_add_fetch((uint32_t *)pando_region_base(r), 1, __ATOMIC_RELAXED);
	if (pando_region_resize(t, 2 * MIB) < 0)
		return 2;
	pid = fork();
	if (pid == 0) {
		__atomic_add_fetch((uint32_t *)pando_region_base(t), 1, __ATOMIC_RELAXED);
		if (pando_client_id(p) == 0 || pando_region_close(r) < 0)
			_exit(3);
		_exit(0);
	}
	if (waitpid(pid, NULL, 0) != pid || pando_region_close(t) < 0)
		return 4;
	pando_disconnect(p);
	return 0;
}

/* Returns whether the point was reached, as far as the parent's end shows. */
static bool kill_at(const char *point, unsigned int passage)
{
	char arm[100];
	pid_t pid;
	int rc;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		snprintf(arm, sizeof(arm), "%s=kill@%u", point, passage);
		setenv("PANDO_INJECT", arm, 1);
		execl("/proc/self/exe", "victim", "--victim", NULL);
		_exit(127);
	}
	rc = harness_join(pid);
	if (rc != 0 && rc != 256 + SIGKILL)
		harness_fail(__FILE__, __LINE__, "at %s, passage %u, the victim ended with %d",
			     point, passage, rc);
	return rc != 0;
}

static void test_points(struct harness *h)
{
	struct pando_region_stat st;
	struct pando_region *r;
	unsigned int deaths = 0;

	/* Without a connection here, since the victims are forked from here. */
	CHECK_OK(pando_region_close(harness_region(h->checker, "common", MIB, 0)));
	for (unsigned int i = 0; points[i]; i++)
		for (unsigned int passage = 1; passage <= 3; passage++) {
			deaths += kill_at(points[i], passage);
			harness_await_clients(h, 1);
			CHECK_OK(pando_region_open(h->checker, "common", 0, NULL, &r));
			CHECK_OK(pando_region_stat(r, &st));
			CHECK_INT(st.clients, 1);
			CHECK_INT(st.slot, 0);
			CHECK_OK(pando_region_resize(r, 2 * MIB));
			CHECK_OK(pando_region_resize(r, MIB));
			CHECK_OK(pando_region_close(r));
		}
	CHECK_OK(pando_region_destroy(h->checker, "common"));
	if (deaths == 0)
		harness_skip("built without injection points (-Dinjection=true)");
	printf("  %u deaths\n", deaths);
}

/* Has something in two heaps, and leaves them when it is told to. */
static int leaver(void)
{
	static const char *const names[] = {"one", "two"};
	struct pando_region *r;
	struct pando *p;

	if (pando_connect(&p, NULL) < 0)
		return 1;
	for (unsigned int i = 0; i < 2; i++)
		if (pando_region_open(p, names[i], 0, NULL, &r) < 0 || !pando_alloc(r, 5000))
			return 2;
	(void)raise(SIGSTOP);
	pando_disconnect(p);
	return 0;
}

static bool await_stop(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, WUNTRACED) == pid);
	return WIFSTOPPED(status);
}

/*
 * The broker does not answer who disconnects. That client is stopped after it has left its last
 * heap: as long as it was at work there, the broker must take it for attached.
 */
static void test_leaving_unanswered(struct harness *h)
{
	struct pando_region *one = harness_region(h->checker, "one", 256 * MIB, PANDO_HEAP);
	struct pando_region *two = harness_region(h->checker, "two", 256 * MIB, PANDO_HEAP);
	struct pando_region_stat st;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		setenv("PANDO_INJECT", "client.heap.closed=stop@2", 1);
		execl("/proc/self/exe", "leaver", "--leaver", NULL);
		_exit(127);
	}
	CHECK(await_stop(pid));
	CHECK(kill(h->broker, SIGSTOP) == 0 && kill(pid, SIGCONT) == 0);
	if (!await_stop(pid)) {
		CHECK(kill(h->broker, SIGCONT) == 0);
		harness_skip("built without injection points (-Dinjection=true)");
	}
	CHECK(kill(h->broker, SIGCONT) == 0);
	harness_sleep_ms(300);
	/* The last one: "two" was opened later, and has been closed. */
	CHECK_OK(pando_region_stat(one, &st));
	CHECK_INT(st.clients, 2);
	CHECK(kill(pid, SIGCONT) == 0);
	CHECK_INT(harness_join(pid), 0);
	harness_await_clients(h, 1);
	CHECK_OK(pando_heap_check(one));
	CHECK_OK(pando_heap_check(two));
	CHECK_OK(pando_region_close(one));
	CHECK_OK(pando_region_close(two));
	CHECK_OK(pando_region_destroy(h->checker, "one"));
	CHECK_OK(pando_region_destroy(h->checker, "two"));
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "points", .run = test_points},
		{.name = "leaving_unanswered", .run = test_leaving_unanswered},
	};

	if (argc > 1 && strcmp(argv[1], "--victim") == 0)
		return victim();
	if (argc > 1 && strcmp(argv[1], "--leaver") == 0)
		return leaver();
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
