/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the broker does in heaps, with the library's clients: how long it takes to reap one that had
 * 100 MiB; that it collects for an owner who sleeps; that orphans go when their last object does.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <pando/heap.h>

#include "harness.h"

#define MIB (1ull << 20)
#define ATTEMPTS 5 /* what else the machine does is not the broker's fault */

static struct pando_region *heap_region(struct harness *h, const char *name)
{
	struct pando_region *r;

	CHECK_OK(pando_region_open(h->checker, name, PANDO_CREATE | PANDO_HEAP,
				   &(struct pando_region_options){.size = 512 * MIB}, &r));
	CHECK(pando_self(r) != 0);
	return r;
}

/* What the one who dies has: 100 MiB of it die with it. */
struct load {
	const char *how;
	size_t size;
	unsigned int freed; /* of so many objects one is freed before; 0: none */
	unsigned int shared; /* of so many objects one is shared, and survives; 0: none */
	bool given; /* all of it was given to the one who dies, by one who lives */
};

#define SURVIVORS (MIB / 2)
static void **survivors; /* in memory that all processes share */

static void have(struct pando_region *r, const struct load *l)
{
	const uint64_t rest = 100 * MIB / l->size + 1;
	const uint64_t all = l->freed ? rest + rest / (l->freed - 1) + 1 : rest;
	void **p = malloc(2 * all * sizeof(*p));
	unsigned int n = 0;

	CHECK(p != NULL);
	for (uint64_t i = 0, keep = 0; keep < (l->freed ? all : rest); i++) {
		CHECK(i < 2 * all && (p[i] = pando_alloc(r, l->size)) != NULL);
		if (l->shared && i % l->shared == 0) {
			CHECK(n + 1 < SURVIVORS);
			CHECK_OK(pando_share(r, p[i]));
			survivors[n++] = p[i];
		} else {
			keep++;
		}
	}
	for (uint64_t i = 0; l->freed && i < all; i += l->freed)
		pando_free(r, p[i]);
	free(p);
}

static void give(struct pando_region *r, const struct load *l, pando_holder to)
{
	for (uint64_t done = 0; done < 100 * MIB; done += l->size) {
		void *p = pando_alloc(r, l->size);

		CHECK(p != NULL);
		CHECK_OK(pando_transfer(r, p, to));
	}
}

/* A forked client that gets its load, says so, and waits for its end. */
static pid_t start_owner(struct pando_region *r, const struct load *l)
{
	pando_holder self;
	int fds[2];
	pid_t pid;

	CHECK(pipe(fds) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		self = pando_self(r);
		CHECK(self != 0);
		if (!l->given)
			have(r, l);
		CHECK(write(fds[1], &self, sizeof(self)) == sizeof(self));
		for (;;)
			pause();
	}
	close(fds[1]);
	CHECK(read(fds[0], &self, sizeof(self)) == sizeof(self));
	close(fds[0]);
	if (l->given)
		give(r, l, self);
	return pid;
}

/* Waits up to five seconds until the broker has reaped once more. */
static void await_reaping(struct harness *h, const struct pando_broker_info *before,
			  struct pando_broker_info *after)
{
	for (int i = 0; i < 5000; i++) {
		CHECK_OK(pando_broker_info(h->checker, after));
		if (after->heap_reaps_total > before->heap_reaps_total)
			return;
		harness_sleep_ms(1);
	}
	CHECK_INT(after->heap_reaps_total, before->heap_reaps_total + 1);
}

/* Until what died has been collected, and the survivors are freed as well: all is free. */
static void await_empty(struct pando_region *r)
{
	struct pando_heap_stat st;

	for (unsigned int i = 0; i < SURVIVORS && survivors[i]; i++) {
		pando_free(r, survivors[i]);
		survivors[i] = NULL;
	}
	for (int i = 0; i < 500; i++) {
		CHECK_OK(pando_heap_trim(r));
		CHECK_OK(pando_heap_stat(r, &st));
		if (st.spans_free == st.spans)
			return;
		harness_sleep_ms(10);
	}
	CHECK_INT(st.spans_free, st.spans);
}

static double reap_once(struct harness *h, struct pando_region *r, const struct load *l)
{
	struct pando_broker_info before, after;
	pid_t pid;

	CHECK_OK(pando_broker_info(h->checker, &before));
	pid = start_owner(r, l);
	CHECK(kill(pid, SIGKILL) == 0);
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
	await_reaping(h, &before, &after);
	CHECK(after.heap_bytes_total - before.heap_bytes_total >= 100 * MIB);
	CHECK_OK(pando_heap_check(r));
	await_empty(r);
	CHECK_OK(pando_heap_check(r));
	return (double)after.heap_reap_ns_last / 1e6;
}

/*
 * What the best attempt must stay below. As a test: what no machine's load explains. As a benchmark (which
 * sets the variable): what is promised. Under a sanitizer: anything.
 */
static double limit_ms(void)
{
	const char *limit = getenv("HEAP_REAP_LIMIT_MS");

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 1e9;
#endif
	return limit ? strtod(limit, NULL) : 200.0;
}

static void test_100_mib(struct harness *h)
{
	static const struct load loads[] = {
		{"", 32},
		{"", 64},
		{"", 1024},
		{"", 4096},
		{"", MIB},
		{", every third of which was freed before", 64, .freed = 3},
		{", and every tenth survives", 64, .shared = 10},
		{", and every third survives", 1024, .shared = 3},
		{", and every third survives", 4096, .shared = 3},
		{", and every third survives", 20000, .shared = 3},
		{" that somebody else had given to it", 64, .given = true},
		{" that somebody else had given to it", 4096, .given = true},
	};
	struct pando_region *r = heap_region(h, "reap");
	const double limit = limit_ms();

	survivors = mmap(NULL, SURVIVORS * sizeof(*survivors), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(survivors != MAP_FAILED);
	for (size_t i = 0; i < sizeof(loads) / sizeof(loads[0]); i++) {
		double best = 1e9, worst = 0;

		for (int k = 0; k < ATTEMPTS && best >= limit / 2; k++) {
			double ms = reap_once(h, r, &loads[i]);

			best = ms < best ? ms : best;
			worst = ms > worst ? ms : worst;
		}
		printf("  100 MiB in objects of %zu bytes%s: reaped in %.3f ms (worst: %.3f)\n",
		       loads[i].size, loads[i].how, best, worst);
		CHECK(best < limit);
	}
	munmap(survivors, SURVIVORS * sizeof(*survivors));
	CHECK_OK(pando_region_destroy(h->checker, "reap"));
	CHECK_OK(pando_region_close(r));
}

/* Waits up to five seconds until nothing is pending. */
static void await_collected(struct pando_region *r)
{
	struct pando_heap_stat st;

	for (int i = 0; i < 500; i++) {
		CHECK_OK(pando_heap_stat(r, &st));
		if (st.pending == 0)
			return;
		harness_sleep_ms(10);
	}
	CHECK_INT(st.pending, 0);
}

static void test_idle_owner(struct harness *h)
{
	enum { COUNT = 5000 };
	struct pando_region *r = heap_region(h, "idle");
	struct pando_heap_stat st;
	void **objects = calloc(COUNT, sizeof(*objects));
	pid_t pid;

	CHECK(objects);
	for (int i = 0; i < COUNT; i++) {
		objects[i] = pando_alloc(r, 100);
		CHECK(objects[i] != NULL);
		CHECK_OK(pando_share(r, objects[i]));
	}
	pid = fork();
	if (pid == 0) { /* another client: it frees the parent's objects, who does nothing */
		for (int i = 0; i < COUNT; i++)
			pando_free(r, objects[i]);
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	await_collected(r);
	CHECK_OK(pando_heap_check(r));
	CHECK_OK(pando_heap_stat(r, &st));
	CHECK_INT(st.objects, 0);
	/* What was collected can be had again. */
	for (int i = 0; i < COUNT; i++) {
		objects[i] = pando_alloc(r, 100);
		CHECK(objects[i] != NULL);
		memset(objects[i], i, 100);
	}
	for (int i = 0; i < COUNT; i++)
		pando_free(r, objects[i]);
	free(objects);
	CHECK_OK(pando_region_destroy(h->checker, "idle"));
	CHECK_OK(pando_region_close(r));
}

static void test_orphans(struct harness *h)
{
	static const size_t sizes[] = {40, 3000, 700000};
	struct pando_region *r = heap_region(h, "orphans");
	struct pando_broker_info before, after;
	struct pando_heap_stat st;
	void *objects[3];
	int fds[2];
	pid_t pid;

	CHECK_OK(pando_broker_info(h->checker, &before));
	CHECK(pipe(fds) == 0);
	pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 3; i++) {
			objects[i] = pando_alloc(r, sizes[i]);
			CHECK(objects[i] && pando_share(r, objects[i]) == 0);
		}
		CHECK(pando_alloc(r, 5000) != NULL); /* this one dies with its owner */
		CHECK(write(fds[1], objects, sizeof(objects)) == (ssize_t)sizeof(objects));
		raise(SIGKILL);
	}
	CHECK(read(fds[0], objects, sizeof(objects)) == (ssize_t)sizeof(objects));
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
	await_reaping(h, &before, &after);
	CHECK_OK(pando_heap_stat(r, &st));
	CHECK_INT(st.objects, 3);
	CHECK_INT(st.shared, 3);
	CHECK(st.spans_orphaned > 0);
	for (int i = 0; i < 3; i++) {
		CHECK_INT(pando_owner(r, objects[i], NULL), PANDO_HOLDING_SHARED);
		pando_free(r, objects[i]);
	}
	for (int i = 0; i < 500 && st.spans_free != st.spans; i++) {
		harness_sleep_ms(10);
		CHECK_OK(pando_heap_trim(r));
		CHECK_OK(pando_heap_stat(r, &st));
	}
	CHECK_INT(st.spans_free, st.spans);
	CHECK_OK(pando_heap_check(r));
	close(fds[0]);
	close(fds[1]);
	CHECK_OK(pando_region_destroy(h->checker, "orphans"));
	CHECK_OK(pando_region_close(r));
}

#ifdef PANDO_INJECTION
/*
 * A region that is gone with its last user is gone, also while the broker is still busy in its heap: who
 * opens the name again gets a new one, and waits for the room that the old one takes in the quota.
 */
static void test_opened_again(struct harness *h)
{
	const struct pando_region_options options = {.size = 64 * MIB};
	const unsigned int flags = PANDO_CREATE | PANDO_EXCL | PANDO_TRANSIENT | PANDO_HEAP;
	struct pando_region *r;
	struct pando *p;

	/* The broker takes 100 ms for the first of them. */
	setenv("PANDO_INJECT", "heap.reap.judged=nap", 1);
	harness_start(h, (const char *const[]){"--quota", "0:regions=1", NULL});
	unsetenv("PANDO_INJECT");
	p = harness_connect(h);
	for (int i = 0; i < 5; i++) {
		struct pando_heap_stat st;

		CHECK_OK(pando_region_open(p, "again", flags, &options, &r));
		CHECK(pando_self(r) != 0);
		CHECK_OK(pando_heap_stat(r, &st));
		CHECK_INT(st.objects, 0);
		CHECK(pando_alloc(r, 100) != NULL);
		CHECK_OK(pando_region_close(r));
	}
	pando_disconnect(p);
}
#endif

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "100_mib", .run = test_100_mib},
		{.name = "idle_owner", .run = test_idle_owner},
		{.name = "orphans", .run = test_orphans},
#ifdef PANDO_INJECTION
		{.name = "opened_again", .run = test_opened_again, .flags = HARNESS_NO_BROKER},
#endif
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
