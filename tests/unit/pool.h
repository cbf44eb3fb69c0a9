/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Huge pages for tests: reserved at the start, given back at the end, whatever the pool held before. The count is
 * changed by what is needed, not set, so that two tests at once do not take each other's pages.
 */
#ifndef PANDO_TESTS_POOL_H
#define PANDO_TESTS_POOL_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/file.h"

#define POOL_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static uint64_t pool_added;

static inline bool pool_write(uint64_t pages)
{
	FILE *f = fopen(POOL_DIR "nr_hugepages", "we");
	bool ok;

	if (!f)
		return false;
	ok = fprintf(f, "%" PRIu64 "\n", pages) > 0;
	return fclose(f) == 0 && ok;
}

static inline void pool_give_back(void)
{
	uint64_t now = pando__read_u64(POOL_DIR "nr_hugepages", 0);

	if (pool_added > 0)
		(void)pool_write(now > pool_added ? now - pool_added : 0);
	pool_added = 0;
}

/* Adds `pages` pages of 2 MiB to the pool. Says why and returns false if that is not possible. */
static inline bool pool_take(uint64_t pages)
{
	uint64_t before = pando__read_u64(POOL_DIR "nr_hugepages", UINT64_MAX), after;

	if (before == UINT64_MAX) {
		printf("skipped: this kernel has no 2 MiB huge pages\n");
		return false;
	}
	if (!pool_write(before + pages)) {
		printf("skipped: may not write " POOL_DIR "nr_hugepages (root only)\n");
		return false;
	}
	after = pando__read_u64(POOL_DIR "nr_hugepages", 0);
	pool_added = after > before ? after - before : 0;
	if (pool_added < pages) {
		printf("skipped: the kernel found only %" PRIu64 " of %" PRIu64 " huge pages\n",
		       pool_added, pages);
		pool_give_back();
		return false;
	}
	return true;
}

/* Where tests may map 1 GiB-aligned ranges: sanitizers and Valgrind leave room at different places. */
static inline uint64_t test_base(void)
{
	const char *env = getenv("PANDO_WINDOW_BASE");

	return env ? strtoull(env, NULL, 0) : 0x200000000000ull;
}

#endif
