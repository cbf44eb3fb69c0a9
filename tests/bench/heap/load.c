/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Workloads on one allocator (peer.h), on demand: tests/bench/heap/compare starts one of these for
 * each allocator and lets them work in turn, so that whatever the machine does meanwhile hits all
 * alike.
 *
 *	load-PEER WORKERS	then on standard input, a line each: WORKLOAD OPERATIONS
 *
 * answers each line with the nanoseconds from the first worker's start to the last one's end,
 * divided by the operations of one worker. An operation is an allocation, a write to it, and a free.
 *
 *	tight	one object of 64 bytes at a time
 *	batch	256 objects of 64 bytes, then freed in the order in which they were made
 *	random	a table of 4096 objects of 16 to 1024 bytes; a random one is replaced
 *	miss	the same with a table of 2^18, whose 130 MiB do not fit in the caches; all of an
 *		object is written
 *	remote	the first worker allocates 64 bytes, the last one frees them
 *	larson	tables of 1000 objects of 16 to 512 bytes; who has a table replaces objects at random,
 *		then leaves it to another worker: most of what is freed was allocated by somebody else
 *	xmalloc	each worker allocates lots of 120 objects of 16 to 512 bytes and leaves them to the
 *		next one, which frees them
 *	thrash	each worker frees a small object that the first one allocated beside the others', and
 *		from then on allocates one, writes to it 100 times, and frees it: slow if objects of
 *		two workers lie in one cache line
 *
 * larson, xmalloc and thrash have the shape of the programs that are known by these names
 * (server simulation, asymmetric load, passive false sharing); they are written anew, for processes.
 */
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "peer.h"

#define WORKERS_MAX 8u
#define BATCH 256u
#define TABLE 4096u
#define MISS_TABLE (1u << 18)
#define RING 4096u
#define LARSON_TABLE 1000u
#define LARSON_TURN 2000u
#define LOT 120u
#define LOTS 32u

struct ring {
	_Alignas(64) uint64_t head;
	_Alignas(64) uint64_t tail;
	_Alignas(64) void *at[RING];
};

/* In memory that all workers share. */
static struct control {
	unsigned int workers;
	int go[WORKERS_MAX][2], done[2]; /* pipes */
	_Alignas(64) uint32_t ready;
	_Alignas(64) uint64_t from[WORKERS_MAX], to[WORKERS_MAX];
	struct ring ring[WORKERS_MAX]; /* to the next worker */
	struct {
		_Alignas(64) uint32_t taken;
		void *at[LARSON_TABLE];
	} larson[2 * WORKERS_MAX];
	void *small[WORKERS_MAX];
} * c;

struct order {
	uint32_t workload;
	uint32_t round; /* counts orders */
	uint64_t operations;
};

static _Thread_local uint64_t seed;
static _Thread_local unsigned int me;

static inline uint64_t draw(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void *must(void *p)
{
	if (!p) {
		fprintf(stderr, "load-" PEER_NAME ": no memory\n");
		_exit(2);
	}
	return p;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void tight(uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		void *p = peer_alloc(64);

		*(volatile char *)p = 1;
		peer_free(p);
	}
}

static void batch(uint64_t n)
{
	void *p[BATCH];

	for (uint64_t i = 0; i < n; i += BATCH) {
		for (unsigned int k = 0; k < BATCH; k++) {
			p[k] = peer_alloc(64);
			*(volatile char *)p[k] = 1;
		}
		for (unsigned int k = 0; k < BATCH; k++)
			peer_free(p[k]);
	}
}

/* Made when first asked for, and kept: what is measured is a heap that has found its shape. */
static _Thread_local void **small_table, **large_table;

static void table_fill(void ***at, unsigned int size)
{
	void **t = *at;

	if (t)
		return;
	*at = t = must(mmap(NULL, size * sizeof(void *), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (unsigned int i = 0; i < size; i++)
		*(char *)(t[i] = must(peer_alloc(16 + i * 7919u % 1009))) = 1;
}

static void random_before(void)
{
	table_fill(&small_table, TABLE);
}

static void miss_before(void)
{
	table_fill(&large_table, MISS_TABLE);
}

static inline void table_work(uint64_t n, void **t, unsigned int size, int all)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t x = draw();
		unsigned int k = (unsigned int)((x >> 32) * size >> 32);
		size_t bytes = 16 + ((x & 0xffff) * 1009 >> 16);

		peer_free(t[k]);
		t[k] = peer_alloc(bytes);
		if (all)
			memset(t[k], 1, bytes);
		else
			*(volatile char *)t[k] = 1;
	}
}

static void random_sizes(uint64_t n)
{
	table_work(n, small_table, TABLE, 0);
}

static void miss(uint64_t n)
{
	table_work(n, large_table, MISS_TABLE, 1);
}

static inline void push(struct ring *r, void *p)
{
	uint64_t head = r->head;

	while (head - __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE) == RING)
		sched_yield();
	r->at[head % RING] = p;
	__atomic_store_n(&r->head, head + 1, __ATOMIC_RELEASE);
}

static inline void *pop(struct ring *r)
{
	uint64_t tail = r->tail;
	void *p;

	while (__atomic_load_n(&r->head, __ATOMIC_ACQUIRE) == tail)
		sched_yield();
	p = r->at[tail % RING];
	__atomic_store_n(&r->tail, tail + 1, __ATOMIC_RELEASE);
	return p;
}

static void remote(uint64_t n)
{
	if (me == 0)
		for (uint64_t i = 0; i < n; i++) {
			void *p = peer_alloc(64);

			*(volatile char *)p = 1;
			push(&c->ring[0], p);
		}
	if (me == c->workers - 1)
		for (uint64_t i = 0; i < n; i++)
			peer_free(pop(&c->ring[0]));
}

static void larson(uint64_t n)
{
	unsigned int t = me, tables = 2 * c->workers;

	for (uint64_t i = 0; i < n; i += LARSON_TURN) {
		void **at;

		while (__atomic_exchange_n(&c->larson[t].taken, 1, __ATOMIC_ACQUIRE))
			t = (t + 1) % tables;
		at = c->larson[t].at;
		for (unsigned int k = 0; k < LARSON_TURN; k++) {
			uint64_t x = draw();
			void **slot = &at[(x >> 32) * LARSON_TABLE >> 32];

			peer_free(*slot);
			*slot = peer_alloc(16 + ((x & 0xffff) * 497 >> 16));
			*(volatile char *)*slot = 1;
		}
		__atomic_store_n(&c->larson[t].taken, 0, __ATOMIC_RELEASE);
		t = (t + 1) % tables;
	}
}

static void larson_empty(void)
{
	for (unsigned int t = me; t < 2 * c->workers; t += c->workers)
		for (unsigned int k = 0; k < LARSON_TABLE; k++) {
			peer_free(c->larson[t].at[k]);
			c->larson[t].at[k] = NULL;
		}
}

/* A lot is an object that holds the addresses of the others. */
static void xmalloc(uint64_t n)
{
	struct ring *to = &c->ring[me], *from = &c->ring[(me + c->workers - 1) % c->workers];
	uint64_t lots = n / LOT, got = 0;

	for (uint64_t i = 0; i < lots; i++) {
		void **lot = must(peer_alloc(LOT * sizeof(void *)));

		for (unsigned int k = 1; k < LOT; k++) {
			lot[k] = peer_alloc(16 + ((draw() & 0xffff) * 497 >> 16));
			*(volatile char *)lot[k] = 1;
		}
		push(to, lot);
		while (got < lots &&
		       (i + 1 == lots ||
			to->head - __atomic_load_n(&to->tail, __ATOMIC_RELAXED) > LOTS ||
			__atomic_load_n(&from->head, __ATOMIC_RELAXED) != from->tail)) {
			lot = pop(from);
			got++;
			for (unsigned int k = 1; k < LOT; k++)
				peer_free(lot[k]);
			peer_free(lot);
		}
	}
}

static void thrash_fill(void)
{
	if (me == 0)
		for (unsigned int i = 0; i < c->workers; i++)
			c->small[i] = must(peer_alloc(8));
}

static void thrash(uint64_t n)
{
	peer_free(c->small[me]);
	for (uint64_t i = 0; i < n; i++) {
		volatile uint64_t *p = peer_alloc(8);

		for (unsigned int k = 0; k < 100; k++)
			*p = k;
		peer_free((void *)p);
	}
}

static void nothing(void)
{
}

static const struct workload {
	const char *name;
	void (*before)(void);
	void (*run)(uint64_t n);
	void (*after)(void);
} workloads[] = {
	{"tight", nothing, tight, nothing},
	{"batch", nothing, batch, nothing},
	{"random", random_before, random_sizes, nothing},
	{"miss", miss_before, miss, nothing},
	{"remote", nothing, remote, nothing},
	{"larson", nothing, larson, larson_empty},
	{"xmalloc", nothing, xmalloc, nothing},
	{"thrash", thrash_fill, thrash, nothing},
};
#define WORKLOADS (sizeof(workloads) / sizeof(workloads[0]))

/* All workers are here before one goes on. */
static void meet(uint32_t times)
{
	__atomic_add_fetch(&c->ready, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(&c->ready, __ATOMIC_ACQUIRE) < times * c->workers)
		sched_yield();
}

/*
 * Each worker keeps to a processor of its own while there are enough: left to itself the scheduler has
 * them take turns on one in some runs and not in others, and an operation that takes a cache line from
 * another worker costs 30 ns in the former and 300 in the latter.
 */
static void settle_down(void)
{
	cpu_set_t all, one;
	unsigned int nth = me;

	if (sched_getaffinity(0, sizeof(all), &all) != 0 ||
	    (unsigned int)CPU_COUNT(&all) < c->workers)
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &all) && nth-- == 0) {
			CPU_ZERO(&one);
			CPU_SET(cpu, &one);
			(void)sched_setaffinity(0, sizeof(one), &one);
			return;
		}
}

static void *worker(void *arg)
{
	struct order order;

	me = (unsigned int)(uintptr_t)arg;
	seed = 88172645463325252ull * (me + 1);
	if (c->workers > 1)
		settle_down();
	peer_join();
	while (read(c->go[me][0], &order, sizeof(order)) == sizeof(order)) {
		const struct workload *w = &workloads[order.workload];

		w->before();
		meet(3 * order.round + 1);
		c->from[me] = now();
		w->run(order.operations);
		c->to[me] = now();
		meet(3 * order.round + 2);
		w->after();
		meet(3 * order.round + 3);
		if (write(c->done[1], "", 1) != 1)
			_exit(2);
	}
	return NULL;
}

static void start(void)
{
	pthread_t thread;

	if (pipe(c->done) != 0)
		exit(2);
	for (unsigned int i = 0; i < c->workers; i++)
		if (pipe(c->go[i]) != 0)
			exit(2);
	for (uintptr_t i = 0; i < c->workers; i++) {
		if (!PEER_PROCESSES) {
			if (pthread_create(&thread, NULL, worker, (void *)i) != 0)
				exit(2);
		} else if (fork() == 0) {
			for (unsigned int k = 0; k < c->workers; k++)
				close(c->go[k][1]); /* so that it ends with its parent */
			worker((void *)i);
			_exit(0);
		}
	}
}

int main(int argc, char **argv)
{
	char line[64], name[16];
	uint64_t operations;
	uint32_t round = 0;

	c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (c == MAP_FAILED || argc != 2)
		return 2;
	c->workers = (unsigned int)atoi(argv[1]);
	if (c->workers < 1 || c->workers > WORKERS_MAX)
		return 2;
	peer_init();
	start();
	while (fgets(line, sizeof(line), stdin)) {
		struct order order = {.workload = WORKLOADS, .round = round++};
		uint64_t from = UINT64_MAX, to = 0;
		char byte;

		if (sscanf(line, "%15s %lu", name, &operations) != 2)
			return 2;
		for (uint32_t i = 0; i < WORKLOADS; i++)
			if (strcmp(workloads[i].name, name) == 0)
				order.workload = i;
		if (order.workload == WORKLOADS)
			return 2;
		order.operations = operations;
		for (unsigned int i = 0; i < c->workers; i++)
			if (write(c->go[i][1], &order, sizeof(order)) != sizeof(order))
				return 2;
		for (unsigned int i = 0; i < c->workers; i++)
			if (read(c->done[0], &byte, 1) != 1)
				return 2;
		for (unsigned int i = 0; i < c->workers; i++) {
			from = c->from[i] < from ? c->from[i] : from;
			to = c->to[i] > to ? c->to[i] : to;
		}
		printf("%.3f\n", (double)(to - from) / (double)operations);
		fflush(stdout);
	}
	return 0;
}
