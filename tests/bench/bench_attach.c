/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What attaching costs: opening and closing a region of at most 1 GiB against one of at most 64
 * GiB, with 2 MiB and with 256 MiB committed, in turn, so that whatever the machine does meanwhile
 * hits all alike.
 *
 * Prints one JSON object a line: per region the median and the 10th and 90th percentile of opening,
 * and of closing, in microseconds; then the ratio of the medians of the largest and the smallest.
 * Batches are compared by their medians and the best batch counts: noise only ever adds.
 *
 * Exit status 1 if the ratio is 1.2 or more, or the median of opening 200 us or more. Environment:
 * BENCH_ROUNDS (opens a batch, 400).
 */
#include "harness.h"

#include <stdlib.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define BATCHES 5
#define MAX_ROUNDS 20000

struct kind {
	const char *name;
	uint64_t size, max_size;
	double open_us[MAX_ROUNDS], close_us[MAX_ROUNDS];
	double open_median, open_p10, open_p90, close_median; /* of the best batch */
};

static struct kind kinds[] = {
	{.name = "1GiB", .size = 2 * MIB, .max_size = GIB},
	{.name = "64GiB", .size = 2 * MIB, .max_size = 64 * GIB},
	{.name = "64GiB-256MiB", .size = 256 * MIB, .max_size = 64 * GIB},
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void batch(struct pando *p, unsigned int rounds, bool first)
{
	for (unsigned int i = 0; i < rounds; i++)
		for (unsigned int k = 0; k < KINDS; k++) {
			uint64_t start = harness_now_ns(), opened;
			struct pando_region *r;

			CHECK_OK(pando_region_open(p, kinds[k].name, 0, NULL, &r));
			opened = harness_now_ns();
			CHECK_OK(pando_region_close(r));
			kinds[k].open_us[i] = (double)(opened - start) / 1e3;
			kinds[k].close_us[i] = (double)(harness_now_ns() - opened) / 1e3;
		}
	for (unsigned int k = 0; k < KINDS; k++) {
		struct kind *c = &kinds[k];

		qsort(c->open_us, rounds, sizeof(double), compare);
		qsort(c->close_us, rounds, sizeof(double), compare);
		if (!first && c->open_us[rounds / 2] >= c->open_median)
			continue;
		c->open_median = c->open_us[rounds / 2];
		c->open_p10 = c->open_us[rounds / 10];
		c->open_p90 = c->open_us[rounds * 9 / 10];
		c->close_median = c->close_us[rounds / 2];
	}
}

static void bench(struct harness *h)
{
	const char *env = getenv("BENCH_ROUNDS");
	unsigned int rounds = env ? (unsigned int)atoi(env) : 400;
	struct pando *p = harness_connect(h);
	struct pando_region_stat st;
	struct pando_region *r;
	double ratio;

	CHECK(rounds > 0 && rounds <= MAX_ROUNDS);
	for (unsigned int k = 0; k < KINDS; k++) {
		struct pando_region_options o = {.size = kinds[k].size,
						 .max_size = kinds[k].max_size};

		CHECK_OK(pando_region_open(p, kinds[k].name, PANDO_CREATE, &o, &r));
		CHECK_OK(pando_region_stat(r, &st));
		CHECK_OK(pando_region_close(r));
	}
	batch(p, rounds / 4 + 1, true); /* warm */
	for (int i = 0; i < BATCHES; i++)
		batch(p, rounds, i == 0);
	for (unsigned int k = 0; k < KINDS; k++)
		printf("{\"benchmark\": \"attach\", \"backend\": \"%s\", \"committed\": %llu, "
		       "\"max_size\": %llu, "
		       "\"open_us_p50\": %.1f, \"open_us_p10\": %.1f, \"open_us_p90\": %.1f, "
		       "\"close_us_p50\": %.1f, \"rounds\": %u}\n",
		       pando_backend_name(st.backend), (unsigned long long)kinds[k].size,
		       (unsigned long long)kinds[k].max_size, kinds[k].open_median,
		       kinds[k].open_p10, kinds[k].open_p90, kinds[k].close_median, rounds);
	ratio = kinds[1].open_median / kinds[0].open_median;
	printf("{\"benchmark\": \"attach\", \"ratio_64GiB_to_1GiB\": %.3f, \"ratio_limit\": 1.2, "
	       "\"open_us_p50\": %.1f, \"open_us_limit\": 200}\n",
	       ratio, kinds[1].open_median);
	fflush(stdout);
	for (unsigned int k = 0; k < KINDS; k++)
		CHECK_OK(pando_region_destroy(p, kinds[k].name));
	pando_disconnect(p);
	CHECK(ratio < 1.2);
	CHECK(kinds[0].open_median < 200 && kinds[1].open_median < 200);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "attach", .run = bench, .seconds = 120},
	};

	return harness_main(argc, argv, tests, 1);
}
