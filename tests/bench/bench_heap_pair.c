/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What an object costs: allocating and freeing on a region's heap against malloc() and free() of
 * jemalloc, with which this program is linked, in one run.
 *
 *	tight		one object at a time, 64 bytes
 *	batch		256 objects of 64 bytes, then freed in the order in which they were made
 *	random		a table of 4096 objects of 16 to 1024 bytes; a random one is replaced
 *	miss		the same with a table of so many objects that their memory does not fit in
 *			the caches; the objects are written to
 *	remote		one thread or process allocates, another one frees: objects a second through a
 *			ring, processes on Pando, threads on jemalloc
 *
 * Rounds alternate between the two, and the fastest round of each counts: whatever else the machine
 * does only ever adds. Prints one JSON object for each workload, with the ratio of the times (for
 * remote: of the rates) and the promised limit. Exit status 1 if one is missed. Environment:
 * BENCH_ROUNDS (60), BENCH_ONLY (the name of one workload).
 */
#include "harness.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <pthread.h>

#define PAIRS 200000u
#define BATCH 256u
#define TABLE 4096u
#define MISS_TABLE (1u << 18) /* of 528 bytes on average: 130 MiB */
#define RING 4096u
#define MESSAGES 200000u

static struct pando_region *region;

/* Made before: what a random number costs is not the question. */
static struct step {
	uint32_t index, bytes;
} steps[MISS_TABLE];
#define RANDOM_STEPS 16384u

/* The same loops, compiled twice. */
#define WORKLOADS(prefix, ALLOC, FREE)                                                             \
	static void prefix##_tight(void)                                                           \
	{                                                                                          \
		for (unsigned int i = 0; i < PAIRS; i++) {                                         \
			void *p = ALLOC(64);                                                       \
                                                                                                   \
			*(volatile char *)p = 1;                                                   \
			FREE(p);                                                                   \
		}                                                                                  \
	}                                                                                          \
	static void prefix##_batch(void)                                                           \
	{                                                                                          \
		void *p[BATCH];                                                                    \
                                                                                                   \
		for (unsigned int i = 0; i < PAIRS / BATCH; i++) {                                 \
			for (unsigned int k = 0; k < BATCH; k++) {                                 \
				p[k] = ALLOC(64);                                                  \
				*(volatile char *)p[k] = 1;                                        \
			}                                                                          \
			for (unsigned int k = 0; k < BATCH; k++)                                   \
				FREE(p[k]);                                                        \
		}                                                                                  \
	}                                                                                          \
	static void prefix##_table(void **table, unsigned int size, unsigned int steps_mask,       \
				   int touch)                                                      \
	{                                                                                          \
		for (unsigned int i = 0; i < PAIRS; i++) {                                         \
			const struct step *s = &steps[i & steps_mask];                             \
			unsigned int k = s->index & (size - 1);                                    \
                                                                                                   \
			FREE(table[k]);                                                            \
			table[k] = ALLOC(s->bytes);                                                \
			if (touch)                                                                 \
				memset(table[k], 1, s->bytes);                                     \
			else                                                                       \
				*(volatile char *)table[k] = 1;                                    \
		}                                                                                  \
	}                                                                                          \
	static void *prefix##_alloc_one(size_t bytes)                                              \
	{                                                                                          \
		return ALLOC(bytes);                                                               \
	}                                                                                          \
	static void prefix##_free_one(void *p)                                                     \
	{                                                                                          \
		FREE(p);                                                                           \
	}

#define PANDO_ALLOC(size) pando_alloc(region, size)
#define PANDO_FREE(p) pando_free(region, p)
WORKLOADS(pando, PANDO_ALLOC, PANDO_FREE)
WORKLOADS(jemalloc, malloc, free)

static void *tables[2][MISS_TABLE];

static void pando_random(void)
{
	pando_table(tables[0], TABLE, RANDOM_STEPS - 1, 0);
}
static void jemalloc_random(void)
{
	jemalloc_table(tables[1], TABLE, RANDOM_STEPS - 1, 0);
}
static void pando_miss(void)
{
	pando_table(tables[0], MISS_TABLE, MISS_TABLE - 1, 1);
}
static void jemalloc_miss(void)
{
	jemalloc_table(tables[1], MISS_TABLE, MISS_TABLE - 1, 1);
}

/* And the steps of the loops that use them. */
static void fill_tables(void)
{
	uint64_t x = 88172645463325252ull;

	for (unsigned int i = 0; i < MISS_TABLE; i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		steps[i].index = (uint32_t)(x >> 40) % MISS_TABLE;
		steps[i].bytes = 16 + (uint32_t)(x & 0xffff) % 1009;
		tables[0][i] = pando_alloc_one(steps[i].bytes);
		tables[1][i] = jemalloc_alloc_one(steps[i].bytes);
		CHECK(tables[0][i] && tables[1][i]);
	}
}

static void empty_tables(void)
{
	for (unsigned int i = 0; i < MISS_TABLE; i++) {
		pando_free_one(tables[0][i]);
		jemalloc_free_one(tables[1][i]);
		tables[0][i] = tables[1][i] = NULL;
	}
}

/* A ring of pointers between one that allocates and one that frees. */
struct ring {
	_Alignas(64) volatile uint64_t head;
	_Alignas(64) volatile uint64_t tail;
	_Alignas(64) void *at[RING];
};
static struct ring *ring;

static void produce(void *(*alloc)(size_t))
{
	for (uint64_t i = 0; i < MESSAGES; i++) {
		while (i - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) == RING)
			sched_yield();
		ring->at[i % RING] = alloc(64);
		__atomic_store_n(&ring->head, i + 1, __ATOMIC_RELEASE);
	}
}

static void consume(void (*release)(void *))
{
	for (uint64_t i = 0; i < MESSAGES; i++) {
		while (i == __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE))
			sched_yield();
		release(ring->at[i % RING]);
		__atomic_store_n(&ring->tail, i + 1, __ATOMIC_RELEASE);
	}
}

static void *jemalloc_consumer(void *arg)
{
	consume(jemalloc_free_one);
	return arg;
}

static void jemalloc_remote(void)
{
	pthread_t thread;

	ring->head = ring->tail = 0;
	CHECK(pthread_create(&thread, NULL, jemalloc_consumer, NULL) == 0);
	produce(jemalloc_alloc_one);
	CHECK(pthread_join(thread, NULL) == 0);
}

static int go[2], came[2]; /* pipes */

/* The consumer lives through all rounds: how long fork() takes is not the question. */
static pid_t start_consumer(void)
{
	pid_t pid;

	CHECK(pipe(go) == 0 && pipe(came) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		char c;

		close(go[1]);
		CHECK(pando_self(region) != 0);
		while (read(go[0], &c, 1) == 1) {
			consume(pando_free_one);
			CHECK(write(came[1], "", 1) == 1);
		}
		_exit(0);
	}
	close(go[0]);
	return pid;
}

static void pando_remote(void)
{
	char c;

	ring->head = ring->tail = 0;
	CHECK(write(go[1], "", 1) == 1);
	produce(pando_alloc_one);
	CHECK(read(came[0], &c, 1) == 1);
}

static const struct workload {
	const char *name;
	void (*run[2])(void);
	unsigned int pairs;
	double limit;
	bool rate; /* the ratio is one of rates: at least the limit */
} workloads[] = {
	{"tight", {pando_tight, jemalloc_tight}, PAIRS, 1.1, false},
	{"batch", {pando_batch, jemalloc_batch}, PAIRS / BATCH *BATCH, 0.8, false},
	{"random", {pando_random, jemalloc_random}, PAIRS, 0.8, false},
	{"miss", {pando_miss, jemalloc_miss}, PAIRS, 1.2, false},
	{"remote", {pando_remote, jemalloc_remote}, MESSAGES, 1.3, true},
};

static bool measure(const struct workload *w, unsigned int rounds)
{
	double best[2] = {0, 0}, ratio;
	bool met;

	for (unsigned int i = 0; i <= rounds; i++) /* the first one warms up */
		for (unsigned int which = 0; which < 2; which++) {
			uint64_t start = harness_now_ns();
			double ns;

			w->run[which]();
			ns = (double)(harness_now_ns() - start) / w->pairs;
			if (i == 1 || (i > 1 && ns < best[which]))
				best[which] = ns;
		}
	ratio = w->rate ? best[1] / best[0] : best[0] / best[1];
	met = w->rate ? ratio >= w->limit : ratio <= w->limit;
	printf("{\"benchmark\": \"heap-pair\", \"workload\": \"%s\", \"pando_ns\": %.2f, "
	       "\"jemalloc_ns\": %.2f, \"%s\": %.3f, \"limit\": %.1f, \"met\": %s}\n",
	       w->name, best[0], best[1], w->rate ? "rate_ratio" : "ratio", ratio, w->limit,
	       met ? "true" : "false");
	fflush(stdout);
	return met;
}

static void bench(struct harness *h)
{
	const char *env = getenv("BENCH_ROUNDS"), *only = getenv("BENCH_ONLY");
	unsigned int rounds = env ? (unsigned int)atoi(env) : 60;
	struct pando *p = harness_connect(h);
	bool met = true;
	pid_t consumer;

	CHECK(rounds > 0);
	region = harness_region(p, "pair", 1ull << 30, 0);
	ring = mmap(NULL, sizeof(*ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(ring != MAP_FAILED);
	consumer = start_consumer();
	fill_tables();
	for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++)
		if (!only || strcmp(only, workloads[i].name) == 0)
			met = measure(&workloads[i], rounds) && met;
	empty_tables();
	close(go[1]);
	CHECK_INT(harness_join(consumer), 0);
	close(came[0]);
	close(came[1]);
	munmap(ring, sizeof(*ring));
	CHECK_OK(pando_region_destroy(p, "pair"));
	pando_disconnect(p);
	CHECK(met);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "heap-pair", .run = bench, .seconds = 300},
	};

	return harness_main(argc, argv, tests, 1);
}
