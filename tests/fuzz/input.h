/* SPDX-License-Identifier: BSD-2-Clause */
/* For fuzzers that build what they look at: numbers from the input, and what must hold. */
#ifndef TESTS_FUZZ_INPUT_H
#define TESTS_FUZZ_INPUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct input {
	const uint8_t *data;
	size_t size;
};

/* The next bytes, most significant first; what is missing is left out. */
static inline uint64_t number(struct input *in, unsigned int bytes)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < bytes && in->size > 0; i++, in->size--)
		n = n << 8 | *in->data++;
	return n;
}

static inline void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "%s\n", what);
	abort();
}

#endif
