/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names as threads on one mapping, so that ThreadSanitizer sees readers and writers: four clients of
 * one region; readers that look up by name, by handle and by going through all; writers that publish,
 * replace and withdraw, so that parts grow; a watcher. Objects say which name they were made for, and
 * are written with plain stores: one that is freed too early is a race, and another name's.
 *
 * Environment: DIRECTORY_OPS, changes of each writer (6,000).
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pando/heap.h>

#include "fake_region.h"

#define MIB (1ull << 20)
#define CLIENTS 4u
#define READERS 4u
#define WRITERS 3u
#define NAMES 600u
#define WORDS 5u

struct object {
	uint64_t name, words[WORDS];
};

static struct pando_region regions[CLIENTS];
static uint64_t stop, reads, seen_changes;

static void fail(const char *what)
{
	fprintf(stderr, "directory-threads: %s: %s\n", what, pando_strerror_last());
	exit(1);
}

static void name_of(unsigned int k, char name[40])
{
	snprintf(name, 40, "name %u", k);
}

static void look(const struct object *o, unsigned int k)
{
	if (o->name != k)
		fail("another name's object");
	for (unsigned int i = 1; i < WORDS; i++)
		if (o->words[i] != o->words[0])
			fail("a torn object");
}

static void read_some(struct pando_region *r, struct pando_handle *handles, unsigned int n)
{
	const unsigned int k = n * 7 % NAMES;
	struct pando_descriptor d;
	const struct object *o;
	char name[40];
	int rc;

	name_of(k, name);
	if (pando_read_lock(r) != 0)
		fail("lock");
	rc = pando_lookup_descriptor(r, name, &d);
	if (rc == 0)
		look(d.object, k);
	else if (rc != -ENOENT)
		fail("lookup");
	o = pando_lookup_handle(r, &handles[k % 8]);
	if (o)
		look(o, k % 8);
	if (pando_read_unlock(r) != 0)
		fail("unlock");
}

static void go_through(struct pando_region *r)
{
	struct pando_name n = {0};
	unsigned int k, count = 0;

	if (pando_read_lock(r) != 0)
		fail("lock");
	while (pando_name_next(r, &n) > 0 && count++ < 2 * NAMES) {
		if (sscanf(n.name, "name %u", &k) != 1)
			fail("a name that nobody gave");
		look(n.descriptor.object, k);
	}
	if (count > NAMES)
		fail("a name came twice");
	if (pando_read_unlock(r) != 0)
		fail("unlock");
}

static void *reader(void *arg)
{
	struct pando_region *r = arg;
	struct pando_handle handles[8];
	char name[40];

	for (unsigned int i = 0; i < 8; i++) {
		name_of(i, name);
		if (pando_handle_init(r, &handles[i], name) != 0)
			fail("handle");
	}
	for (unsigned int n = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); n++) {
		read_some(r, handles, n);
		if (n % 2000 == 0)
			go_through(r);
		(void)__atomic_fetch_add(&reads, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *watcher(void *arg)
{
	uint64_t version = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		const int rc = pando_watch(arg, "name 3", &version, 200);

		if (rc < 0 && rc != -ENOENT && rc != -ETIMEDOUT)
			fail("watch");
		seen_changes += rc != -ETIMEDOUT;
	}
	return NULL;
}

static void *writer(void *arg)
{
	const unsigned int me = (unsigned int)(uintptr_t)arg;
	struct pando_region *r = &regions[me];
	const char *text = getenv("DIRECTORY_OPS");
	const uint64_t n = text ? strtoull(text, NULL, 0) : 6000;
	uint64_t dice = 88172645463325252ull + me;
	char name[40];

	for (uint64_t i = 0; i < n; i++) {
		unsigned int k;
		int rc;

		dice ^= dice << 13;
		dice ^= dice >> 7;
		dice ^= dice << 17;
		k = dice >> 8 & 1 ? dice % NAMES : dice % 8;
		name_of(k, name);
		if ((dice >> 32) % 4 == 0) {
			rc = pando_withdraw(r, name);
			if (rc < 0 && rc != -ENOENT)
				fail("withdraw");
		} else {
			struct object *o = pando_alloc(r, sizeof(*o));

			if (!o)
				fail("alloc");
			o->name = k;
			for (unsigned int w = 0; w < WORDS; w++)
				o->words[w] = dice;
			if (pando_publish(r, name, o) < 0)
				fail("publish");
		}
	}
	return NULL;
}

static void run(enum pando__rcu_mode mode)
{
	pthread_t r[READERS], w[WRITERS], watch;
	struct pando_directory_stat st;
	struct pando_heap_stat hs;
	struct fake_heap heap;

	fake_heap_init(&heap, 1024 * MIB, 1024 * MIB, true);
	heap.ledger->rcu_mode = mode;
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_init(&regions[i], &heap, i);
	stop = 0;
	for (unsigned int i = 0; i < READERS; i++)
		if (pthread_create(&r[i], NULL, reader, &regions[i % CLIENTS]) != 0)
			exit(99);
	if (pthread_create(&watch, NULL, watcher, &regions[CLIENTS - 1]) != 0)
		exit(99);
	for (uintptr_t i = 0; i < WRITERS; i++)
		if (pthread_create(&w[i], NULL, writer, (void *)i) != 0)
			exit(99);
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(w[i], NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned int i = 0; i < READERS; i++)
		pthread_join(r[i], NULL);
	pthread_join(watch, NULL);
	for (int k = 0; k < 3; k++)
		for (unsigned int i = 0; i < CLIENTS; i++)
			(void)pando_reclaim(&regions[i]);
	if (pando_directory_check(&regions[0]) != 0 || pando_heap_check(&regions[0]) != 0)
		fail("check");
	if (pando_directory_stat(&regions[0], &st) != 0 || pando_heap_stat(&regions[0], &hs) != 0 ||
	    hs.objects != 2 * st.names + st.tables)
		fail("the heap has what no name has");
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_deinit(&regions[i]);
	fake_heap_deinit(&heap);
}

int main(void)
{
	run(PANDO__RCU_MEMBARRIER);
	run(PANDO__RCU_FENCED);
	printf("directory-threads: %llu times read, %llu changes seen\n", (unsigned long long)reads,
	       (unsigned long long)seen_changes);
	return 0;
}
