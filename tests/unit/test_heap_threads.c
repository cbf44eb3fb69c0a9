/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The model of tests/lib/heap_model.h with threads: four clients of one heap in one process, two
 * threads each, so that ThreadSanitizer sees both ends of everything that is shared; and one thread
 * that does what the broker does for the living, without a pause. The ledger is the test's
 * (fake_heap.h), and nobody dies.
 *
 * Environment: HEAP_MODEL_OPS, operations of all threads together (200,000); HEAP_MODEL_SEED.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"

#include "../lib/heap_model.h"
#include "fake_region.h"

#define MIB (1ull << 20)
#define FRONTS 4u

static struct model model;
static struct pando_region regions[FRONTS];

static void *work(void *arg)
{
	unsigned int me = (unsigned int)(uintptr_t)arg;

	model_work(&model, me, &regions[me % FRONTS]);
	return NULL;
}

static bool over;

/* Sweeps, collects for owners as if they were idle, and gives memory back that has just become free. */
static void *broker(void *arg)
{
	const struct fake_heap *heap = arg;
	struct pando__reclaimed out;
	uint64_t purged = 0;

	while (!pando__load_acquire(&over)) {
		(void)pando__heap_sweep(&heap->view, &out);
		for (uint32_t slot = 0; slot < FRONTS; slot++)
			(void)pando__heap_collect_idle(&heap->view, slot, &out);
		purged += pando__spans_purge(&heap->view, PANDO__OWNER_BROKER, 1, UINT32_MAX);
		usleep(500);
	}
	return (void *)(uintptr_t)purged;
}

static uint64_t from_env(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

static void run(bool lazy)
{
	struct pando_heap_stat st;
	struct fake_heap heap;
	pthread_t thread[MODEL_WORKERS], broker_thread;
	struct timespec from, to;
	void *purged;

	clock_gettime(CLOCK_MONOTONIC, &from);
	fake_heap_init(&heap, 1024 * MIB, 1024 * MIB, lazy);
	model = (struct model){
		.workers = MODEL_WORKERS,
		.operations = from_env("HEAP_MODEL_OPS", 200000) / MODEL_WORKERS,
		.seed = from_env("HEAP_MODEL_SEED", (uint64_t)time(NULL)),
		.audits = 4,
		.bytes_max = 16 * MIB,
	};
	for (unsigned int i = 0; i < FRONTS; i++)
		fake_region_init(&regions[i], &heap, i);
	pando__store_release(&over, false);
	if (pthread_create(&broker_thread, NULL, broker, &heap) != 0)
		exit(99);
	for (uintptr_t i = 0; i < MODEL_WORKERS; i++)
		if (pthread_create(&thread[i], NULL, work, (void *)i) != 0)
			exit(99);
	for (unsigned int i = 0; i < MODEL_WORKERS; i++)
		pthread_join(thread[i], NULL);
	pando__store_release(&over, true);
	pthread_join(broker_thread, &purged);
	if (lazy && !purged) {
		fprintf(stderr, "heap-threads: the broker had no memory to give back\n");
		exit(1);
	}
	/* What the threads had for themselves went with them; the rest is in the fronts. */
	for (unsigned int i = 0; i < FRONTS; i++)
		if (pando_heap_trim(&regions[i]) != 0)
			exit(99);
	if (pando_heap_check(&regions[0]) != 0 || pando_heap_stat(&regions[0], &st) != 0) {
		fprintf(stderr, "heap-threads: %s\n", pando_strerror_last());
		exit(1);
	}
	if (st.objects != 0 || st.pages_used != 0 || st.spans_free != st.spans) {
		fprintf(stderr,
			"heap-threads: %llu objects, %llu pages, %llu of %llu spans free at the "
			"end\n",
			(unsigned long long)st.objects, (unsigned long long)st.pages_used,
			(unsigned long long)st.spans_free, (unsigned long long)st.spans);
		exit(1);
	}
	for (unsigned int i = 0; i < FRONTS; i++)
		fake_region_deinit(&regions[i]);
	fake_heap_deinit(&heap);
	clock_gettime(CLOCK_MONOTONIC, &to);
	model_print(&model, lazy ? "heap-threads-lazy" : "heap-threads",
		    (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
}

int main(void)
{
	pando_heap_on_misuse(model_misused, NULL);
	run(true);
	run(false);
	return 0;
}
