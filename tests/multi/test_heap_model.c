/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Eight processes against a model of what the heap should be: tests/lib/heap_model.h.
 *
 * On a region that takes memory with use, on one that has all of it from the start, and on one that
 * is too small for what is asked of it. After each, with all workers gone, the heap is empty: every
 * span free, and what could be given back is.
 *
 * Environment: HEAP_MODEL_OPS, operations of all processes together in the first run (1,000,000; the
 * others do a fifth of it); HEAP_MODEL_SEED (chosen and printed).
 */
#include "harness.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include <pando/heap.h>

#include "../lib/heap_model.h"

#define MIB (1ull << 20)

static uint64_t from_env(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

/* Without workers: what is left belongs to nobody. */
static void check_empty(struct pando_region *r)
{
	struct pando_heap_stat st;

	for (int i = 0; i < 200; i++) { /* the broker may have something to do still */
		CHECK_OK(pando_heap_stat(r, &st));
		if (st.spans_free == st.spans)
			break;
		harness_sleep_ms(10);
	}
	CHECK_OK(pando_heap_check(r));
	CHECK_INT(st.objects, 0);
	CHECK_INT(st.objects_bytes, 0);
	CHECK_INT(st.pending, 0);
	CHECK_INT(st.pages_used, 0);
	CHECK_INT(st.spans_orphaned, 0);
	CHECK_INT(st.spans_free, st.spans);
}

static void run(struct harness *h, const char *name, uint64_t size, unsigned int flags,
		unsigned int share, bool may_fail)
{
	struct pando *p = harness_connect(h);
	struct pando_region_options o = {.size = size};
	struct pando_region *r;
	struct model *m =
		mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid[MODEL_WORKERS];
	uint64_t start = harness_now_ns();

	CHECK(m != MAP_FAILED);
	CHECK_OK(pando_region_open(p, "model", PANDO_CREATE | flags, &o, &r));
	m->workers = MODEL_WORKERS;
	m->operations = from_env("HEAP_MODEL_OPS", 1000000) / share / MODEL_WORKERS;
	m->seed = from_env("HEAP_MODEL_SEED", (uint64_t)time(NULL));
	m->audits = 8;
	m->bytes_max = 24 * MIB;
	m->sequential = true;
	m->may_fail = may_fail;
	pando_heap_on_misuse(model_misused, NULL);
	CHECK(pando_self(r) != 0); /* the heap is there, and its holder of the first slot */
	for (unsigned int i = 0; i < MODEL_WORKERS; i++) {
		pid[i] = fork();
		CHECK(pid[i] >= 0);
		if (pid[i] == 0) {
			model_work(m, i, r);
			_exit(0);
		}
	}
	for (unsigned int i = 0; i < MODEL_WORKERS; i++)
		CHECK_INT(harness_join(pid[i]), 0);
	harness_await_clients(h, 2);
	check_empty(r);
	model_print(m, name, (double)(harness_now_ns() - start) / 1e9);
	CHECK(m->total[0].remote > 0 && m->total[0].transfers > 0 && m->total[0].misuses > 0);
	CHECK(!may_fail || m->total[0].refused > 0);
	munmap(m, sizeof(*m));
	CHECK_OK(pando_region_destroy(p, "model"));
	pando_disconnect(p);
}

static void test_lazy(struct harness *h)
{
	run(h, "heap-model-lazy", 1024 * MIB, PANDO_HEAP, 1, false);
}

static void test_plain(struct harness *h)
{
	run(h, "heap-model-plain", 384 * MIB, 0, 5, false);
}

static void test_full(struct harness *h)
{
	run(h, "heap-model-full", 20 * MIB, PANDO_HEAP, 5, true);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "lazy", .run = test_lazy, .seconds = 900},
		{.name = "plain", .run = test_plain, .seconds = 300},
		{.name = "full", .run = test_full, .seconds = 300},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
