/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a hit costs in examples/bufferpool: pin a page that is in memory, read one word of it, unpin. Beside it, on
 * the same pages in the same run, turn by turn:
 *
 *	shared	a pool as in the books, at its best: a lock for each of 128 partitions of the hash table that readers
 *		share (one atomic addition to take it, one to give it back), and a pin count in the frame (the same)
 *	mutex	the same with a mutex for each partition
 *	pread	no pool: pread() of the page from the kernel's page cache
 *
 * With 1, 2 and 4 processes at once; on 8,192 pages (64 MiB) at random, and on 16 pages that all want.
 *
 * Prints one JSON object a line: nanoseconds of processor time for each access, the least and the median of the rounds
 * (of the mean of the processes); then the ratios of the least. Processor time, so that what else runs on the machine
 * counts little; what processes do to each other's caches is in it, as long as there are processors for them.
 *
 * Exit status 1 if a hit on the 16 pages costs more than that of `shared`. Environment: BENCH_ROUNDS (7).
 */
#include "harness.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "bench.h"
#include "bufferpool.h"

#define PAGES 8192u
#define FRAMES 8448u
#define PARTITIONS 128u
#define PROCESSES 4u
#define ROUNDS_MAX 50u

enum kind { POOL, SHARED, MUTEX, PREAD, KINDS };
static const char *const kind_name[KINDS] = {"pool", "shared", "mutex", "pread"};
static const unsigned int accesses[KINDS] = {1000000, 1000000, 1000000, 50000};

/* The pool of the books: chains of entries, found by page, under the partition's lock. */
struct entry {
	struct entry *next;
	uint64_t page;
	const struct page *content;
	uint32_t pins;
} __attribute__((aligned(64)));

struct partition {
	uint32_t readers; /* `shared`; a writer would set the upper bit */
	pthread_mutex_t mutex; /* `mutex` */
} __attribute__((aligned(64)));

static struct shared {
	struct partition partition[PARTITIONS];
	struct entry *bucket[PAGES];
	struct entry entry[PAGES];
	pthread_barrier_t together;
	double ns[PROCESSES];
} * shared;

static struct file file;
static struct pando_region *region;
static volatile uint64_t sink;

static inline uint64_t next_page(uint64_t *state, uint64_t set)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 40 & (set - 1);
}

static inline struct entry **bucket_of(uint64_t page)
{
	return &shared->bucket[page * 0x9e3779b97f4a7c15ull >> 51]; /* 13 bits */
}

static inline struct entry *lookup(uint64_t page)
{
	struct entry *e = *bucket_of(page);

	while (e->page != page) /* all are there */
		e = e->next;
	return e;
}

static uint64_t use_pool(struct pool_client *c, uint64_t set, uint64_t state, unsigned int n)
{
	uint64_t sum = 0;

	while (n-- > 0) {
		const struct page *p = pool_pin(c, next_page(&state, set), 0);

		sum += p->version;
		pool_unpin(c, 0);
	}
	return sum;
}

static uint64_t use_shared(uint64_t set, uint64_t state, unsigned int n)
{
	uint64_t sum = 0;

	while (n-- > 0) {
		const uint64_t page = next_page(&state, set);
		struct partition *part =
			&shared->partition[(bucket_of(page) - shared->bucket) % PARTITIONS];
		struct entry *e;

		if (pando__add_acq_rel(&part->readers, 1) >> 31)
			abort(); /* nobody writes here */
		e = lookup(page);
		pando__add_acq_rel(&e->pins, 1);
		pando__add_acq_rel(&part->readers, -1);
		sum += e->content->version;
		pando__add_acq_rel(&e->pins, -1);
	}
	return sum;
}

static uint64_t use_mutex(uint64_t set, uint64_t state, unsigned int n)
{
	uint64_t sum = 0;

	while (n-- > 0) {
		const uint64_t page = next_page(&state, set);
		struct partition *part =
			&shared->partition[(bucket_of(page) - shared->bucket) % PARTITIONS];
		struct entry *e;

		pthread_mutex_lock(&part->mutex);
		e = lookup(page);
		pando__add_acq_rel(&e->pins, 1);
		pthread_mutex_unlock(&part->mutex);
		sum += e->content->version;
		pando__add_acq_rel(&e->pins, -1);
	}
	return sum;
}

static uint64_t use_pread(uint64_t set, uint64_t state, unsigned int n)
{
	static struct page p;
	uint64_t sum = 0;

	while (n-- > 0) {
		const uint64_t page = next_page(&state, set);

		CHECK(pread(file.fd_buffered, &p, PAGE_SIZE,
			    (off_t)((file.first_page + page) * PAGE_SIZE)) == PAGE_SIZE);
		sum += p.version;
	}
	return sum;
}

static double measure(struct pool_client *c, enum kind kind, uint64_t set, uint64_t seed)
{
	const unsigned int n = accesses[kind];
	uint64_t begin = processor_ns();

	switch (kind) {
	case POOL:
		sink = use_pool(c, set, seed, n);
		break;
	case SHARED:
		sink = use_shared(set, seed, n);
		break;
	case MUTEX:
		sink = use_mutex(set, seed, n);
		break;
	default:
		sink = use_pread(set, seed, n);
	}
	return (double)(processor_ns() - begin) / n;
}

/* One process of several: all kinds, turn by turn, together with the others. */
static void take_part(unsigned int me, uint64_t set, unsigned int rounds)
{
	struct pool_client c;

	CHECK_INT(pool_visit(&c, pool_in(region), region, &file), 0);
	CHECK_INT(pool_enter(&c), 0);
	for (uint64_t i = 0; i < PAGES; i++) { /* all resident; faults taken */
		CHECK(pool_pin(&c, i, 0));
		pool_unpin(&c, 0);
	}
	for (unsigned int i = 0; i < rounds * KINDS; i++) {
		pthread_barrier_wait(&shared->together);
		shared->ns[me] = measure(&c, (enum kind)(i % KINDS), set, i * 977 + me * 31);
		pthread_barrier_wait(&shared->together);
	}
	pool_leave(&c);
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static bool run(unsigned int processes, uint64_t set, unsigned int rounds)
{
	static double ns[KINDS][ROUNDS_MAX];
	pthread_barrierattr_t attr;
	pid_t pids[PROCESSES];

	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->together, &attr, processes + 1);
	for (unsigned int i = 0; i < processes; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (pids[i] == 0) {
			take_part(i, set, rounds);
			_exit(0);
		}
	}
	for (unsigned int i = 0; i < rounds * KINDS; i++) {
		double sum = 0;

		pthread_barrier_wait(&shared->together);
		pthread_barrier_wait(&shared->together);
		for (unsigned int k = 0; k < processes; k++)
			sum += shared->ns[k];
		ns[i % KINDS][i / KINDS] = sum / processes;
	}
	for (unsigned int i = 0; i < processes; i++)
		CHECK_INT(harness_join(pids[i]), 0);
	for (unsigned int k = 0; k < KINDS; k++) {
		qsort(ns[k], rounds, sizeof(double), compare);
		printf("{\"bench\": \"bufferpool\", \"kind\": \"%s\", \"processes\": %u, "
		       "\"pages\": %u, \"ns_min\": %.1f, \"ns_median\": %.1f}\n",
		       kind_name[k], processes, (unsigned int)set, ns[k][0], ns[k][rounds / 2]);
	}
	printf("{\"bench\": \"bufferpool\", \"processes\": %u, \"pages\": %u, "
	       "\"shared_over_pool\": %.2f, \"mutex_over_pool\": %.2f, \"pread_over_pool\": "
	       "%.1f}\n",
	       processes, (unsigned int)set, ns[SHARED][0] / ns[POOL][0],
	       ns[MUTEX][0] / ns[POOL][0], ns[PREAD][0] / ns[POOL][0]);
	return ns[POOL][0] <= ns[SHARED][0];
}

static void make_peer(const struct pool *p)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	for (unsigned int i = 0; i < PARTITIONS; i++)
		pthread_mutex_init(&shared->partition[i].mutex, &attr);
	for (uint64_t i = 0; i < PAGES; i++) {
		struct entry *e = &shared->entry[i];

		e->page = i;
		e->content = pool_content(p, pool_find(p, i)); /* the very same memory */
		e->next = *bucket_of(i);
		*bucket_of(i) = e;
	}
}

static bool passed;

static void bench(struct harness *h)
{
	const char *text = getenv("BENCH_ROUNDS");
	const unsigned int wanted = text ? (unsigned int)atoi(text) : 7;
	const unsigned int rounds = wanted < 1 ? 1 : wanted > ROUNDS_MAX ? ROUNDS_MAX : wanted;
	struct pool_client c;
	struct pando *conn = harness_connect(h);
	char path[128];

	snprintf(path, sizeof(path), "%s/data", h->dir);
	CHECK_INT(file_create(path, PAGES, 32, NULL, NULL), 0);
	CHECK_INT(file_open(&file, path, FILE_WRITE), 0);
	region = harness_region(conn, "pool", pool_size(FRAMES, 16), PANDO_TRANSIENT);
	pool_format(pando_region_base(region), &file, FRAMES, 16, PROCESSES);
	CHECK_INT(pool_visit(&c, pool_in(region), region, &file), 0);
	CHECK_INT(pool_enter(&c), 0);
	for (uint64_t i = 0; i < PAGES; i++) {
		CHECK(pool_pin(&c, i, 0));
		pool_unpin(&c, 0);
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(shared != MAP_FAILED);
	make_peer(c.pool);
	pool_leave(&c);
	passed = true;
	for (unsigned int n = 1; n <= PROCESSES; n *= 2)
		for (uint64_t set = PAGES; set; set = set == PAGES ? 16 : 0)
			passed &= run(n, set, rounds) || set == PAGES;
	fflush(stdout);
	if (!passed)
		harness_fail(__FILE__, __LINE__, "a hit costs more than in a pool with locks");
	CHECK(unlink(path) == 0);
	munmap(shared, sizeof(*shared));
	file_close(&file);
	CHECK_OK(pando_region_close(region));
	pando_disconnect(conn);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {{"bufferpool", bench, .seconds = 300}};

	return harness_main(argc, argv, tests, 1);
}
