/* SPDX-License-Identifier: BSD-2-Clause */
/* For benchmarks with several parts: what the environment asks for, and clocks. */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline uint64_t env(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

/* Of $BENCH_ONLY: the name of one part, or unset for all. */
static inline bool wanted(const char *name)
{
	const char *only = getenv("BENCH_ONLY");

	return !only || strcmp(only, name) == 0;
}

static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What this thread has had of a processor. */
static inline uint64_t processor_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/*
 * One turn each millisecond: sleeps until the next one is due. *next: 0 before the first. What was missed
 * while others had the processor is made up for, up to 20 turns.
 */
static inline void await_turn(uint64_t *next)
{
	const uint64_t now = clock_ns(CLOCK_MONOTONIC);

	*next = now > *next + 20000000u ? now : *next + 1000000u;
	if (*next > now)
		nanosleep(&(struct timespec){.tv_nsec = (long)(*next - now)}, NULL);
}

#endif
