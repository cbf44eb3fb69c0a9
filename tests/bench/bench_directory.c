/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What names cost.
 *
 *	find		a read section in which an object is found by name, among 1,000 and 100,000 names, beside find() of
 *			Boost.Interprocess's managed_shared_memory with the same names in one run
 *	writer		reads of one thread by handle and by name, with and without another process that
 *			replaces 1,000 names a second, by the time of the reader's processor
 *	million		a million names: publishing, finding, replacing, withdrawing one; bytes for each
 *
 * Rounds of the peers alternate, and the fastest round of each counts. Prints one JSON object for each.
 * Exit status 1 if a promised figure is missed: half of Boost's time, 5 percent of the rate. What a
 * handle costs is in bench_rcu.c. Environment: BENCH_ROUNDS (30), BENCH_NAMES (1000000), BENCH_ONLY (the name of one).
 */
#include "harness.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <pando/pando.h>

#include "bench.h"
#include "directory_boost.h"

#define PAIRS 300000u
#define NAMES 100000u
#define WRITER_NAMES 1000u
#define MIB (1ull << 20)

static struct pando_region *region;
static char (*names)[24];

static void publish(const char *name, unsigned char fill)
{
	void *o = pando_alloc(region, 256);

	CHECK(o != NULL);
	memset(o, fill, 256);
	CHECK_OK(pando_publish(region, name, o));
}

/* --- find --- */

static uint64_t dice = 88172645463325252ull;

static uint64_t roll(void)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return dice;
}

static double pando_finds(unsigned int n, unsigned int of)
{
	const uint64_t begun = harness_now_ns();
	uint64_t found = 0;

	for (unsigned int i = 0; i < n; i++) {
		(void)pando_read_lock(region);
		found += pando_lookup(region, names[roll() % of]) != NULL;
		(void)pando_read_unlock(region);
	}
	CHECK_INT(found, n);
	return (double)(harness_now_ns() - begun) / n;
}

static double boost_some_finds(unsigned int n, unsigned int of)
{
	const uint64_t begun = harness_now_ns();
	uint64_t found = 0;

	for (unsigned int i = 0; i < n; i++)
		found += boost_find(names[roll() % of]);
	CHECK_INT(found, n);
	return (double)(harness_now_ns() - begun) / n;
}

static int bench_find(void)
{
	int missed = 0;

	CHECK(boost_begin());
	for (unsigned int have = 0, of = 1000; of <= NAMES; of *= 100) {
		double best[2] = {1e9, 1e9};

		for (; have < of; have++) {
			publish(names[have], 1);
			CHECK(boost_construct(names[have]));
		}
		for (uint64_t i = 0; i < env("BENCH_ROUNDS", 30); i++) {
			const double took[2] = {pando_finds(PAIRS / 10, of),
						boost_some_finds(PAIRS / 10, of)};

			for (int k = 0; k < 2; k++)
				best[k] = took[k] < best[k] ? took[k] : best[k];
		}
		printf("{\"bench\": \"directory\", \"workload\": \"find\", \"names\": %u, "
		       "\"pando_ns\": %.1f, \"boost_ns\": %.1f, \"ratio\": %.3f, \"limit\": 0.5}\n",
		       of, best[0], best[1], best[0] / best[1]);
		fflush(stdout);
		missed |= best[0] > best[1] / 2;
	}
	boost_end();
	for (unsigned int i = 0; i < NAMES; i++)
		CHECK_OK(pando_withdraw(region, names[i]));
	return missed;
}

/* --- a writer beside it --- */

struct board {
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
			publish(names[b->replaced % WRITER_NAMES], 1);
			b->replaced++;
		}
		await_turn(&next);
	}
	_exit(0);
}

/* Reads for ms milliseconds, half of them by handle; millions in a second of the processor's. */
static double read_rate(struct pando_handle *handles, unsigned int ms)
{
	const uint64_t begun = processor_ns(), end = begun + ms * 1000000ull;
	uint64_t n = 0, sum = 0, now;

	do {
		for (unsigned int i = 0; i < 1000; i++, n++) {
			const unsigned int k = (unsigned int)(n * 7 % WRITER_NAMES);
			const unsigned char *p;

			(void)pando_read_lock(region);
			p = i & 1 ? pando_lookup_handle(region, &handles[k])
				  : pando_lookup(region, names[k]);
			sum += p[i & 255];
			(void)pando_read_unlock(region);
		}
		now = processor_ns();
	} while (now < end);
	CHECK_INT(sum, n); /* every byte of every object is 1 */
	return (double)n * 1e3 / (double)(now - begun);
}

static int rising(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int bench_writer(void)
{
	struct board *b =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct pando_handle *handles = calloc(WRITER_NAMES, sizeof(*handles));
	const uint64_t rounds = env("BENCH_ROUNDS", 30) < 64 ? env("BENCH_ROUNDS", 30) : 64;
	double with = 0, without = 0, share[64] = {0};
	uint64_t on_ns = 0;
	pid_t writer;

	CHECK(b != MAP_FAILED && handles);
	for (unsigned int i = 0; i < WRITER_NAMES; i++) {
		publish(names[i], 1);
		CHECK_OK(pando_handle_init(region, &handles[i], names[i]));
	}
	writer = start_writer(b);
	CHECK(writer > 0);
	for (uint64_t i = 0; i < rounds; i++) {
		double rate[2];

		for (unsigned int k = 0; k < 2; k++) { /* in turns, which of them comes first */
			const uint64_t began = harness_now_ns();

			b->on = (k + (unsigned int)i) & 1;
			harness_sleep_ms(3);
			rate[b->on] = read_rate(handles, 50);
			on_ns += b->on ? harness_now_ns() - began : 0;
		}
		without = rate[0] > without ? rate[0] : without;
		with = rate[1] > with ? rate[1] : with;
		share[i] = rate[1] / rate[0];
	}
	b->stop = 1;
	CHECK_INT(harness_join(writer), 0);
	qsort(share, rounds, sizeof(share[0]), rising);
	printf("{\"bench\": \"directory\", \"workload\": \"writer\", \"million_reads_without\": "
	       "%.2f, \"million_reads_with\": %.2f, \"ratio_of_best\": %.3f, \"median_ratio\": "
	       "%.3f, \"replaced_per_second\": %.0f, \"limit\": 0.95}\n",
	       without, with, with / without, rounds ? share[rounds / 2] : 0,
	       on_ns ? (double)b->replaced * 1e9 / (double)on_ns : 0);
	for (unsigned int i = 0; i < WRITER_NAMES; i++)
		CHECK_OK(pando_withdraw(region, names[i]));
	free(handles);
	munmap(b, 4096);
	return with / without < 0.95;
}

/* --- a million --- */

static void bench_million(void)
{
	const unsigned int n = (unsigned int)env("BENCH_NAMES", 1000000);
	struct pando_directory_stat st;
	struct pando_heap_stat hs;
	uint64_t begun, took[4], found = 0;
	char name[24];

	begun = harness_now_ns();
	for (unsigned int i = 0; i < n; i++) {
		void *o = pando_alloc(region, 32);

		snprintf(name, sizeof(name), "name %u", i);
		CHECK(o != NULL);
		CHECK_OK(pando_publish(region, name, o));
	}
	took[0] = harness_now_ns() - begun;
	CHECK_OK(pando_directory_stat(region, &st));
	CHECK_OK(pando_heap_stat(region, &hs));
	CHECK_INT(st.names, n);
	begun = harness_now_ns();
	for (unsigned int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "name %u", (unsigned int)(roll() % n));
		CHECK_OK(pando_read_lock(region));
		found += pando_lookup(region, name) != NULL;
		CHECK_OK(pando_read_unlock(region));
	}
	took[1] = harness_now_ns() - begun;
	CHECK_INT(found, n);
	begun = harness_now_ns();
	for (unsigned int i = 0; i < n; i++) {
		void *o = pando_alloc(region, 32);

		snprintf(name, sizeof(name), "name %u", (unsigned int)(roll() % n));
		CHECK(o != NULL);
		CHECK_OK(pando_publish(region, name, o));
	}
	took[2] = harness_now_ns() - begun;
	begun = harness_now_ns();
	for (unsigned int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "name %u", i);
		CHECK_OK(pando_withdraw(region, name));
	}
	took[3] = harness_now_ns() - begun;
	printf("{\"bench\": \"directory\", \"workload\": \"million\", \"names\": %u, "
	       "\"publish_ns\": %.0f, \"find_ns\": %.0f, \"replace_ns\": %.0f, "
	       "\"withdraw_ns\": %.0f, \"bytes_for_each\": %.1f, \"buckets\": %llu}\n",
	       n, (double)took[0] / n, (double)took[1] / n, (double)took[2] / n,
	       (double)took[3] / n, (double)(hs.objects_bytes - 32ull * n) / n,
	       (unsigned long long)st.buckets);
}

static void run(struct harness *h)
{
	int missed = 0;

	names = malloc(NAMES * sizeof(*names));
	CHECK(names != NULL);
	for (unsigned int i = 0; i < NAMES; i++)
		snprintf(names[i], sizeof(names[i]), "order/book/%u", i);
	CHECK_OK(pando_region_open(h->checker, "directory", PANDO_CREATE | PANDO_HEAP,
				   &(struct pando_region_options){.size = 512 * MIB}, &region));
	if (wanted("find"))
		missed += bench_find();
	if (wanted("writer"))
		missed += bench_writer();
	if (wanted("million"))
		bench_million();
	fflush(stdout);
	free(names);
	CHECK_OK(pando_region_destroy(h->checker, "directory"));
	CHECK_OK(pando_region_close(region));
	harness_await_clients(h, 1);
	CHECK_INT(missed, 0);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "directory", .run = run, .seconds = 300}};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
