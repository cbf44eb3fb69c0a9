/* SPDX-License-Identifier: BSD-2-Clause */
/* For benchmarks with several parts: what the environment asks for. */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

#endif
