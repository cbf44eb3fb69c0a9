/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Readers and writers as threads on one mapping, so that ThreadSanitizer sees both ends: four clients
 * of one region, two reading threads each, which come and go, and two writers that replace objects and
 * retire them. What has been retired is allocated and written again, with plain stores: if a reader
 * can still be at it, that is a race, and a version that changes under the reader.
 *
 * Environment: RCU_OPS, replacements of each writer (20,000).
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <pando/heap.h>

#include "fake_region.h"

#define MIB (1ull << 20)
#define CLIENTS 4u
#define READERS 8u
#define WRITERS 2u
#define CELLS 8u
#define WORDS 6u

struct object {
	uint64_t version, copies[WORDS];
};

static struct pando_region regions[CLIENTS];
static struct object *cells[CELLS];
static uint64_t stop, reads;

static void fail(const char *what)
{
	fprintf(stderr, "rcu-threads: %s: %s\n", what, pando_strerror_last());
	exit(1);
}

static void read_cell(struct pando_region *r, unsigned int k)
{
	const struct object *o;

	if (pando_read_lock(r) != 0)
		fail("lock");
	o = __atomic_load_n(&cells[k], __ATOMIC_ACQUIRE);
	for (unsigned int i = 0; o && i < WORDS; i++)
		if (o->copies[i] != o->version)
			fail("a torn object");
	if (pando_read_unlock(r) != 0)
		fail("unlock");
}

static void *burst(void *arg)
{
	for (unsigned int n = 0; n < 500; n++)
		read_cell(arg, n % CELLS);
	(void)__atomic_fetch_add(&reads, 500, __ATOMIC_RELAXED);
	return NULL;
}

static void *reader(void *arg)
{
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, burst, arg) != 0)
			exit(99);
		(void)burst(arg);
		pthread_join(thread, NULL);
	}
	return NULL;
}

static void replace(struct pando_region *r, unsigned int k, uint64_t version)
{
	struct object *o = pando_alloc(r, sizeof(*o)), *old;

	if (!o)
		fail("alloc");
	o->version = version;
	for (unsigned int i = 0; i < WORDS; i++)
		o->copies[i] = version;
	if (pando_share(r, o) != 0)
		fail("share");
	old = __atomic_exchange_n(&cells[k], o, __ATOMIC_ACQ_REL);
	if (!old)
		return;
	if (version % 64 != 0) {
		if (pando_retire(r, old, 0) != 0)
			fail("retire");
		return;
	}
	if (pando_synchronize(r, -1) != 0)
		fail("synchronize");
	old->version = ~version;
	pando_free(r, old);
}

static void *writer(void *arg)
{
	const unsigned int me = (unsigned int)(uintptr_t)arg;
	const char *text = getenv("RCU_OPS");
	const uint64_t n = text ? strtoull(text, NULL, 0) : 20000;

	for (uint64_t i = 1; i <= n; i++)
		replace(&regions[me], (unsigned int)(i * 7 % CELLS), i * WRITERS + me);
	return NULL;
}

static void run(enum pando__rcu_mode mode)
{
	pthread_t r[READERS], w[WRITERS];
	struct pando_heap_stat st;
	struct fake_heap heap;

	fake_heap_init(&heap, 1024 * MIB, 1024 * MIB, true);
	heap.ledger->rcu_mode = mode;
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_init(&regions[i], &heap, i);
	for (unsigned int i = 0; i < READERS; i++)
		if (pthread_create(&r[i], NULL, reader, &regions[i % CLIENTS]) != 0)
			exit(99);
	for (uintptr_t i = 0; i < WRITERS; i++)
		if (pthread_create(&w[i], NULL, writer, (void *)i) != 0)
			exit(99);
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(w[i], NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned int i = 0; i < READERS; i++)
		pthread_join(r[i], NULL);
	stop = 0;
	for (unsigned int i = 0; i < CELLS; i++)
		if (cells[i])
			pando_free(&regions[0], cells[i]);
	for (unsigned int i = 0; i < CELLS; i++)
		cells[i] = NULL;
	for (unsigned int i = 0; i < CLIENTS; i++)
		if (pando_reclaim(&regions[i]) != 0)
			fail("something still waits");
	if (pando_heap_check(&regions[0]) != 0 || pando_heap_stat(&regions[0], &st) != 0 ||
	    st.objects != 0)
		fail("the heap is not empty");
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_deinit(&regions[i]);
	fake_heap_deinit(&heap);
}

int main(void)
{
	run(PANDO__RCU_MEMBARRIER);
	run(PANDO__RCU_FENCED);
	printf("rcu-threads: %llu reads\n", (unsigned long long)reads);
	return 0;
}
