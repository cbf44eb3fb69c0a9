/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Huge pages for tests: reserved at the start, given back at the end, whatever the pool held
 * before.
 *
 * Tests that use the pool take turns: each holds a lock on the pool's directory (flock; it leaves
 * nothing behind and goes with its holder). The count is changed by what is needed, not set. A
 * guardian process gives the pages back when the test and all its children are gone, however they
 * ended.
 */
#ifndef PANDO_TESTS_POOL_H
#define PANDO_TESTS_POOL_H

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/file.h"

#define POOL_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static pid_t pool_guardian;
static int pool_alive =
	-1; /* write end of the guardian's pipe: closed by the last process of the test */
static int pool_lock = -1;

static inline bool pool_write(uint64_t pages)
{
	FILE *f = fopen(POOL_DIR "nr_hugepages", "we");
	bool ok;

	if (!f)
		return false;
	ok = fprintf(f, "%" PRIu64 "\n", pages) > 0;
	return fclose(f) == 0 && ok;
}

static inline void pool_shrink(uint64_t pages)
{
	uint64_t now = pando__read_u64(POOL_DIR "nr_hugepages", 0);

	(void)pool_write(now > pages ? now - pages : 0);
}

/* Waits for the test's end; signals for its group (Ctrl-C) do not end it before that. */
static inline _Noreturn void pool_guard(int alive, uint64_t pages)
{
	char c;

	setsid();
	(void)!read(alive, &c, 1);
	pool_shrink(pages);
	_exit(0);
}

static inline bool pool_turn(void)
{
	pool_lock = open(POOL_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int tries = 0; pool_lock >= 0 && tries < 600; tries++) {
		if (flock(pool_lock, LOCK_EX | LOCK_NB) == 0)
			return true;
		usleep(100000);
	}
	return false;
}

static inline void pool_give_back(void)
{
	if (pool_alive >= 0)
		close(pool_alive);
	if (pool_guardian > 0)
		waitpid(pool_guardian, NULL, 0);
	if (pool_lock >= 0)
		close(pool_lock);
	pool_alive = pool_lock = -1;
	pool_guardian = 0;
}

/* Adds `pages` pages of 2 MiB to the pool. Says why and returns false if that is not possible. */
static inline bool pool_take(uint64_t pages)
{
	uint64_t before, after;
	int alive[2];

	if (access(POOL_DIR "nr_hugepages", W_OK) != 0 || !pool_turn()) {
		printf("skipped: cannot write " POOL_DIR
		       "nr_hugepages, or others do for too long\n");
		return false;
	}
	before = pando__read_u64(POOL_DIR "nr_hugepages", 0);
	after = pool_write(before + pages) ? pando__read_u64(POOL_DIR "nr_hugepages", 0) : before;
	if (after < before + pages || pipe2(alive, O_CLOEXEC) != 0) {
		printf("skipped: the kernel found only %" PRIu64 " of %" PRIu64 " huge pages\n",
		       after - before, pages);
		pool_shrink(after > before ? after - before : 0);
		return false;
	}
	pool_guardian = fork();
	if (pool_guardian == 0) {
		close(alive[1]);
		pool_guard(alive[0], pages);
	}
	close(alive[0]);
	pool_alive = alive[1];
	return true;
}

/*
 * Where tests may map 1 GiB-aligned ranges: sanitizers and Valgrind leave room at different places.
 */
static inline uint64_t test_base(void)
{
	const char *env = getenv("PANDO_WINDOW_BASE");

	return env ? strtoull(env, NULL, 0) : 0x200000000000ull;
}

#endif
