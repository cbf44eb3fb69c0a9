/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What reading costs, beside liburcu in one run.
 *
 *	pair		pando_read_lock() and pando_read_unlock(), against the memb and qsbr flavours of
 *			liburcu (in whose sections there is nothing to do for qsbr: a quiescent state
 *			every 1,024 pairs); with a load of a pointer in between in all three. And
 *			with an object in between that is found by a handle (pando/directory.h)
 *	writer		reads of one thread, with and without another process that replaces what is read
 *			1,000 times a second, by the time of the reader's processor
 *	grace		pando_synchronize() with 1, 10, ... idle readers, each a process of its own
 *
 * Rounds of the peers alternate, and the fastest round of each counts: whatever else the machine does
 * only ever adds. Prints one JSON object for each. Exit status 1 if a promised figure is missed: a pair
 * of 1.2 times memb, 5 ns more for a handle. Environment: BENCH_ROUNDS (60), BENCH_READERS (4000), BENCH_ONLY (the name of one).
 */
#include "harness.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <pando/directory.h>
#include <pando/rcu.h>

#include "bench.h"
#include "rcu_peers.h"

#define PAIRS 1000000u
#define LIMIT 1.2
#define HANDLE_LIMIT_NS 5
#define MIB (1ull << 20)

static struct pando_region *region;
static void *shared_pointer;

static double pando_pairs(unsigned int n)
{
	const uint64_t begun = harness_now_ns();

	for (unsigned int i = 0; i < n; i++) {
		void *volatile seen;

		(void)pando_read_lock(region);
		seen = __atomic_load_n(&shared_pointer, __ATOMIC_CONSUME);
		(void)seen;
		(void)pando_read_unlock(region);
	}
	return (double)(harness_now_ns() - begun) / n;
}

static double handle_pairs(unsigned int n, struct pando_handle *h)
{
	const uint64_t begun = harness_now_ns();

	for (unsigned int i = 0; i < n; i++) {
		void *volatile seen;

		(void)pando_read_lock(region);
		seen = pando_lookup_handle(region, h);
		(void)seen;
		(void)pando_read_unlock(region);
	}
	return (double)(harness_now_ns() - begun) / n;
}

static int bench_pair(void)
{
	double best[4] = {1e9, 1e9, 1e9, 1e9};
	struct pando_handle handle;
	void *o = pando_alloc(region, 64);

	CHECK(o != NULL);
	CHECK_OK(pando_publish(region, "handle", o));
	CHECK_OK(pando_handle_init(region, &handle, "handle"));
	CHECK_OK(pando_reader_register(region));
	memb_begin();
	qsbr_begin();
	for (uint64_t i = 0; i < env("BENCH_ROUNDS", 60); i++) {
		const double took[4] = {pando_pairs(PAIRS), memb_pairs(PAIRS, &shared_pointer),
					qsbr_pairs(PAIRS, &shared_pointer),
					handle_pairs(PAIRS, &handle)};

		for (int k = 0; k < 4; k++)
			best[k] = took[k] < best[k] ? took[k] : best[k];
	}
	memb_end();
	qsbr_end();
	CHECK_OK(pando_withdraw(region, "handle"));
	printf("{\"bench\": \"rcu\", \"workload\": \"pair\", \"pando_ns\": %.3f, \"memb_ns\": "
	       "%.3f, \"qsbr_ns\": %.3f, \"ratio_to_memb\": %.3f, \"limit\": %.1f, "
	       "\"handle_ns\": %.3f, \"handle_more_ns\": %.3f, \"handle_limit_ns\": %d}\n",
	       best[0], best[1], best[2], best[0] / best[1], LIMIT, best[3], best[3] - best[0],
	       HANDLE_LIMIT_NS);
	return best[0] / best[1] > LIMIT || best[3] - best[0] > HANDLE_LIMIT_NS;
}

/* --- a writer beside it --- */

struct board {
	void *object;
	volatile uint32_t on, stop;
	uint64_t replaced;
};

static pid_t start_writer(struct board *b)
{
	const pid_t pid = fork();
	uint64_t next = 0;

	if (pid != 0)
		return pid;
	while (!b->stop) {
		if (b->on) {
			void *fresh = pando_alloc(region, 256), *old;

			CHECK(fresh && pando_share(region, fresh) == 0);
			memset(fresh, 1, 256);
			old = __atomic_exchange_n(&b->object, fresh, __ATOMIC_ACQ_REL);
			CHECK_OK(pando_retire(region, old, 0));
			b->replaced++;
		}
		await_turn(&next);
	}
	pando_free(region, b->object);
	_exit(0);
}

/* Reads for ms milliseconds; millions of reads in a second of the processor's. */
static double read_rate(struct board *b, unsigned int ms)
{
	const uint64_t begun = processor_ns(), end = begun + ms * 1000000ull;
	uint64_t n = 0, sum = 0, now;

	do {
		for (int i = 0; i < 10000; i++, n++) {
			const unsigned char *p;

			(void)pando_read_lock(region);
			p = __atomic_load_n((unsigned char **)(void *)&b->object, __ATOMIC_CONSUME);
			sum += p[i & 255];
			(void)pando_read_unlock(region);
		}
		now = processor_ns();
	} while (now < end);
	CHECK_INT(sum, n); /* every byte of every object is 1 */
	return (double)n * 1e3 / (double)(now - begun);
}

static void bench_writer(void)
{
	struct board *b =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double with = 0, without = 0, share[64];
	uint64_t rounds = env("BENCH_ROUNDS", 60) / 4;
	uint64_t replaced_ns = 0, began;
	pid_t writer;

	CHECK(b != MAP_FAILED);
	b->object = pando_alloc(region, 256);
	CHECK(b->object && pando_share(region, b->object) == 0);
	memset(b->object, 1, 256);
	writer = start_writer(b);
	CHECK(writer > 0);
	rounds = rounds > 64 ? 64 : rounds;
	for (uint64_t i = 0; i < rounds; i++) {
		double rate[2];
		double off, on;

		for (unsigned int k = 0; k < 2; k++) { /* in turns, which of them comes first */
			b->on = (k + (unsigned int)i) & 1;
			began = harness_now_ns();
			harness_sleep_ms(3);
			rate[b->on] = read_rate(b, 50);
			replaced_ns += b->on ? harness_now_ns() - began : 0;
		}
		off = rate[0];
		on = rate[1];
		with = on > with ? on : with;
		without = off > without ? off : without;
		share[i] = on / off;
	}
	b->stop = 1;
	CHECK_INT(harness_join(writer), 0);
	for (uint64_t i = 1; i < rounds; i++) /* few: sorted by insertion */
		for (uint64_t k = i; k > 0 && share[k] < share[k - 1]; k--) {
			const double x = share[k];

			share[k] = share[k - 1];
			share[k - 1] = x;
		}
	printf("{\"bench\": \"rcu\", \"workload\": \"writer\", \"million_reads_without\": %.1f, "
	       "\"million_reads_with\": %.1f, \"ratio_of_best\": %.3f, \"median_ratio\": %.3f, "
	       "\"replaced_per_second\": %.0f}\n",
	       without, with, with / without, rounds ? share[rounds / 2] : 0,
	       replaced_ns ? (double)b->replaced * 1e9 / (double)replaced_ns : 0);
	munmap(b, 4096);
}

/* --- the grace period --- */

static pid_t start_idle(int ready)
{
	const pid_t pid = fork();

	if (pid != 0)
		return pid;
	CHECK_OK(pando_read_lock(region));
	CHECK_OK(pando_read_unlock(region));
	CHECK(write(ready, "x", 1) == 1);
	for (;;)
		pause();
}

static void bench_grace(void)
{
	const uint64_t most = env("BENCH_READERS", 4000);
	pid_t *pids = calloc(most, sizeof(*pids));
	uint64_t have = 0;
	int fds[2];

	CHECK(pids && pipe(fds) == 0);
	for (uint64_t readers = 1; readers <= most;
	     readers = readers * 10 > most && readers < most ? most : readers * 10) {
		double best = 1e9, sum = 0;
		char c;

		for (; have < readers; have++) {
			pids[have] = start_idle(fds[1]);
			CHECK(pids[have] > 0 && read(fds[0], &c, 1) == 1);
		}
		for (int i = 0; i < 200; i++) {
			const uint64_t begun = harness_now_ns();
			double took;

			CHECK_OK(pando_synchronize(region, -1));
			took = (double)(harness_now_ns() - begun) / 1e3;
			best = took < best ? took : best;
			sum += took;
		}
		printf("{\"bench\": \"rcu\", \"workload\": \"grace\", \"idle_readers\": %llu, "
		       "\"best_us\": %.1f, \"mean_us\": %.1f}\n",
		       (unsigned long long)readers, best, sum / 200);
		fflush(stdout);
	}
	for (uint64_t i = 0; i < have; i++)
		CHECK(kill(pids[i], SIGKILL) == 0);
	for (uint64_t i = 0; i < have; i++)
		CHECK_INT(harness_join(pids[i]), 256 + SIGKILL);
	free(pids);
	close(fds[0]);
	close(fds[1]);
}

static void run(struct harness *h)
{
	int missed = 0;

	CHECK_OK(pando_region_open(h->checker, "rcu", PANDO_CREATE | PANDO_HEAP,
				   &(struct pando_region_options){.size = 256 * MIB}, &region));
	if (wanted("pair"))
		missed = bench_pair();
	if (wanted("writer"))
		bench_writer();
	if (wanted("grace"))
		bench_grace();
	fflush(stdout);
	CHECK_OK(pando_region_destroy(h->checker, "rcu"));
	CHECK_OK(pando_region_close(region));
	harness_await_clients(h, 1);
	CHECK_INT(missed, 0);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {{.name = "rcu", .run = run, .seconds = 300}};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
