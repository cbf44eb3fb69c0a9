/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The debug form of the heap: what it finds, what it says, and that processes of both forms share a
 * heap. Clients are fronts of this process; each reads $PANDO_HEAP_DEBUG when it is made.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "allocator/debug.h"
#include "fake_region.h"

#define MIB (1ull << 20)

static struct fake_heap heap;
static struct pando_region debug, plain; /* two clients */
static enum pando_misuse misuse;
static char sentence[512];

static void misused(struct pando_region *r, const void *p, enum pando_misuse what, const char *text,
		    void *arg)
{
	(void)r, (void)p, (void)arg;
	misuse = what;
	snprintf(sentence, sizeof(sentence), "%s", text);
}

static void expect(enum pando_misuse what, const char *text)
{
	assert_int_equal(misuse, what);
	if (text && !strstr(sentence, text))
		fail_msg("\"%s\" does not contain \"%s\"", sentence, text);
	misuse = 0;
}

static int setup(void **state)
{
	fake_heap_init(&heap, 128 * MIB, 128 * MIB, true);
	fake_region_init(&debug, &heap, 0);
	fake_region_init(&plain, &heap, 1);
	pando_heap_on_misuse(misused, NULL);
	misuse = 0;
	setenv("PANDO_HEAP_DEBUG", *state ? *state : "all", 1);
	assert_non_null(pando__region_front(&debug));
	unsetenv("PANDO_HEAP_DEBUG");
	assert_non_null(pando__region_front(&plain));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(misuse, 0);
	assert_int_equal(pando_heap_check(&debug), 0);
	fake_region_deinit(&debug);
	fake_region_deinit(&plain);
	fake_heap_deinit(&heap);
	return 0;
}

static const size_t sizes[] = {0, 1, 31, 32, 33, 100, 976, 977, 1024, 1025, 5000, 40000, 300000};
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

/* Every size, rightly used: nothing to say, and all of what was asked for can be written. */
static void right(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < SIZES; i++) {
		unsigned char *p = pando_alloc(&debug, sizes[i]), *q;

		assert_non_null(p);
		assert_int_equal(pando_usable_size(&debug, p), sizes[i]);
		assert_int_equal(pando_usable_size(&plain, p), sizes[i]);
		pando__mem_defined(p, sizes[i]);
		if (sizes[i] > 0)
			assert_int_equal(p[sizes[i] - 1], 0xa5);
		memset(p, 1, sizes[i]);
		q = pando_realloc(&debug, p, sizes[i] + 1);
		assert_ptr_not_equal(p, q); /* so that who keeps the old one is found out */
		assert_true(sizes[i] == 0 || (q[0] == 1 && q[sizes[i] - 1] == 1));
		pando_free(&debug, q);
		q = pando_calloc(&debug, 1, sizes[i]);
		for (size_t k = 0; k < sizes[i]; k++)
			assert_int_equal(q[k], 0);
		pando_free(&debug, q);
		for (size_t alignment = 64; alignment <= 8192; alignment *= 2) {
			q = pando_alloc_aligned(&debug, alignment, sizes[i]);
			assert_int_equal((uintptr_t)q % alignment, 0);
			memset(q, 2, sizes[i]);
			pando_free(&debug, q);
		}
	}
}

/*
 * Changes and restores a byte that is not the caller's; neither the compiler need know, nor a checker
 * under which this runs.
 */
__attribute__((noinline, noclone)) static void flip(char *p, size_t at)
{
	volatile char *byte = p + at;

	pando__mem_permit(p + at, 1);
	*byte = (char)(*byte ^ 1);
}

/* The redzone, and the trailer behind it: everything up to the end of the block. */
static void overrun(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < SIZES; i++) {
		char *p = pando_alloc(&debug, sizes[i]);
		size_t block = pando__object_size(&heap.view, pando__offset(&heap.view, p));

		assert_true(block >= sizes[i] + 48);
		for (size_t at = sizes[i]; at<block; at += block - at> 64 ? (block - at) / 2 : 1) {
			flip(p, at);
			pando_free(&debug, p);
			expect(PANDO_MISUSE_OVERRUN, "freeing");
			assert_null(pando_realloc(&debug, p, 10));
			expect(PANDO_MISUSE_OVERRUN, "resizing");
			flip(p, at);
		}
		pando_free(&debug, p); /* it was not freed */
		expect(0, NULL);
	}
}

static void written_free(void **state)
{
	(void)state;
	for (unsigned int i = 1; i < SIZES && sizes[i] <= 900; i++) {
		char *p = pando_alloc(&debug, sizes[i]), *q;

		pando_free(&debug, p);
		pando__mem_permit(p, sizes[i]);
		assert_int_equal((unsigned char)p[0], 0xdb);
		p[sizes[i] / 2] = 1;
		q = pando_alloc(&debug, sizes[i]);
		assert_ptr_equal(p, q);
		expect(PANDO_MISUSE_WRITTEN_FREE, "has been written while it was free");
		pando_free(&debug, q);
	}
}

/* A place in this program that can be recognised. */
__attribute__((noinline, noclone)) static void *allocate_here(size_t size)
{
	void *p = pando_alloc(&debug, size);

	__asm__ volatile("" ::: "memory");
	return p;
}

__attribute__((noinline, noclone)) static void free_here(void *p)
{
	pando_free(&debug, p);
	__asm__ volatile("" ::: "memory");
}

/* The number that follows "+0x" in the sentence lies in the function. */
static void names(const char *text, const void *function)
{
	const char *at = strstr(sentence, "+0x");
	uintptr_t base = (uintptr_t)function - strtoull(at ? at + 3 : "0", NULL, 16);

	assert_non_null(strstr(sentence, text));
	assert_non_null(strstr(sentence, "unit-heap_debug+0x"));
	/* The program's base: a page's beginning, but for the distance from the function. */
	assert_true((-base & 0xfff) < 128 || (base & 0xfff) < 128);
}

static void sites(void **state)
{
	char *p = allocate_here(100);

	(void)state;
	flip(p, 100);
	pando_free(&debug, p);
	names("(100 bytes, allocated at ", allocate_here);
	expect(PANDO_MISUSE_OVERRUN, "by this process");
	flip(p, 100);
	free_here(p);
	pando_free(&debug, p);
	names("(100 bytes, freed at ", free_here);
	expect(PANDO_MISUSE_DOUBLE_FREE, "by this process");
}

static void no_sites(void **state)
{
	char *p = pando_alloc(&debug, 100);

	(void)state;
	pando_free(&debug, p);
	pando_free(&debug, p);
	expect(PANDO_MISUSE_DOUBLE_FREE, "(100 bytes, freed by process ");
}

/* Only what is asked for. */
static void poison_only(void **state)
{
	char *p = pando_alloc(&debug, 100);

	(void)state;
	pando__mem_defined(p, 1);
	assert_int_equal((unsigned char)p[0], 0xa5);
	flip(p, 100);
	pando_free(&debug, p);
	expect(0, NULL);
}

/* Objects of one form in the hands of a client of the other. */
static void mixed(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < SIZES; i++) {
		char *p = pando_alloc(&debug, sizes[i]), *q = pando_alloc(&plain, sizes[i]), *to;

		memset(p, 3, sizes[i]);
		to = pando_realloc(&plain, p, sizes[i] + 1);
		assert_ptr_not_equal(to, p); /* in place it would write over the redzone */
		assert_true(sizes[i] == 0 || to[sizes[i] - 1] == 3);
		pando_free(&debug, to);
		assert_true(pando_usable_size(&debug, q) >= sizes[i]);
		memset(q, 4, pando_usable_size(&debug, q));
		pando_free(&debug, q);
		/* Given away by the one, freed by the other. */
		p = pando_alloc(&debug, sizes[i]);
		q = pando_alloc(&plain, sizes[i]);
		assert_int_equal(pando_transfer(&debug, p, pando_self(&plain)), 0);
		assert_int_equal(pando_transfer(&plain, q, pando_self(&debug)), 0);
		pando_free(&plain, p);
		pando_free(&debug, q);
		/* The debug client finds an overrun of its object, whoever held it. */
		p = pando_alloc(&debug, sizes[i]);
		assert_int_equal(pando_share(&debug, p), 0);
		flip(p, sizes[i]);
		pando_free(&debug, p);
		expect(PANDO_MISUSE_OVERRUN, NULL);
		pando_free(&plain, p); /* who does not look frees it */
		expect(0, NULL);
	}
	pando_heap_trim(&debug);
	pando_heap_trim(&plain);
	pando_heap_trim(&debug);
}

int main(void)
{
#define DEBUG_TEST(function, options)                                                              \
	{                                                                                          \
#function, function, setup, teardown, (void *)(uintptr_t)(options)                 \
	}
	const struct CMUnitTest tests[] = {
		DEBUG_TEST(right, "all"),	    DEBUG_TEST(overrun, "redzone"),
		DEBUG_TEST(overrun, "1"),	    DEBUG_TEST(written_free, "poison,sites"),
		DEBUG_TEST(sites, "sites,redzone"), DEBUG_TEST(no_sites, "redzone"),
		DEBUG_TEST(poison_only, "poison"),  DEBUG_TEST(mixed, "all"),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
