/* SPDX-License-Identifier: BSD-2-Clause */
/* The window: first fit, wished addresses, what is refused, and reuse. */
#include <errno.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/window.h"
#include "common/layout.h"

#define BASE 0x200000000000ull
#define GIB PANDO__GIB

static struct window w;
static uint64_t base;
static void *other;

static int setup(void **state)
{
	(void)state;
	return window_init(&w, BASE, 8 * GIB);
}

static int teardown(void **state)
{
	(void)state;
	window_deinit(&w);
	return 0;
}

static int take(uint64_t address, uint64_t gib, void *owner)
{
	return window_take(&w, address, gib * GIB, owner, &base, &other);
}

static void refuses_a_window_that_is_none(void **state)
{
	struct window bad;

	(void)state;
	assert_int_equal(window_init(&bad, 0, GIB), -EINVAL);
	assert_int_equal(window_init(&bad, BASE + 4096, GIB), -EINVAL);
	assert_int_equal(window_init(&bad, BASE, 0), -EINVAL);
	assert_int_equal(window_init(&bad, BASE, GIB / 2), -EINVAL);
	assert_int_equal(window_init(&bad, ~(GIB - 1), 2 * GIB), -EINVAL);
}

static void takes_the_first_gap(void **state)
{
	(void)state;
	assert_int_equal(take(0, 2, NULL), 0);
	assert_int_equal(base, BASE);
	assert_int_equal(take(0, 1, NULL), 0);
	assert_int_equal(base, BASE + 2 * GIB);
	assert_int_equal(take(0, 2, NULL), 0);
	window_release(&w, BASE + 2 * GIB);
	assert_int_equal(take(0, 2, NULL), 0); /* the gap of 1 GiB is too small */
	assert_int_equal(base, BASE + 5 * GIB);
	assert_int_equal(take(0, 1, NULL), 0);
	assert_int_equal(base, BASE + 2 * GIB);
	assert_int_equal(take(0, 1, NULL), 0);
	assert_int_equal(take(0, 1, NULL), -ENOMEM);
	assert_int_equal(w.count, 5);
}

static void takes_a_wished_address_and_names_who_has_it(void **state)
{
	int a, b;

	(void)state;
	assert_int_equal(take(BASE + 3 * GIB, 2, &a), 0);
	assert_int_equal(base, BASE + 3 * GIB);
	assert_int_equal(take(BASE + 4 * GIB, 1, &b), -EADDRINUSE);
	assert_ptr_equal(other, &a);
	assert_int_equal(take(BASE + 2 * GIB, 2, &b), -EADDRINUSE);
	assert_int_equal(take(BASE + 2 * GIB, 1, &b), 0);
	assert_int_equal(take(BASE + 5 * GIB, 3, &b), 0);
	assert_int_equal(take(BASE + 7 * GIB, 1, &a), -EADDRINUSE);
	assert_ptr_equal(other, &b);
}

static void refuses_what_is_outside_or_unaligned(void **state)
{
	(void)state;
	assert_int_equal(take(BASE - GIB, 1, NULL), -EINVAL);
	assert_int_equal(take(BASE + 8 * GIB, 1, NULL), -EINVAL);
	assert_int_equal(take(BASE + 7 * GIB, 2, NULL), -EINVAL);
	assert_int_equal(take(BASE + 4096, 1, NULL), -EINVAL);
	assert_int_equal(take(~(GIB - 1), 1, NULL), -EINVAL);
	assert_int_equal(take(0, 9, NULL), -ENOMEM);
	assert_int_equal(window_take(&w, 0, 0, NULL, &base, &other), -EINVAL);
	assert_int_equal(window_take(&w, 0, GIB + 1, NULL, &base, &other), -EINVAL);
	assert_int_equal(w.count, 0);
	window_release(&w, BASE); /* nothing there: fine */
}

/* Against a plain array of owners, with a fixed sequence of random numbers. */
static void agrees_with_a_simple_model(void **state)
{
	unsigned char owner[8] = {0};
	unsigned int seed = 1;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		unsigned int n = 1 + (unsigned int)rand_r(&seed) % 3;
		unsigned int at = (unsigned int)rand_r(&seed) % 8, wanted = 8;
		bool wish = rand_r(&seed) & 1;

		if (owner[at] & 1 &&
		    (rand_r(&seed) & 1)) { /* the first GiB of a range: give it back */
			window_release(&w, BASE + at * GIB);
			do
				owner[at++] = 0;
			while (at < 8 && owner[at] == 2);
			continue;
		}
		for (unsigned int k = wish ? at : 0; k + n <= 8 && wanted == 8; k++) {
			unsigned int free = 0;

			while (free < n && !owner[k + free])
				free++;
			if (free == n)
				wanted = k;
			if (wish)
				break;
		}
		assert_int_equal(take(wish ? BASE + at * GIB : 0, n, NULL) == 0, wanted < 8);
		if (wanted < 8) {
			assert_int_equal(base, BASE + wanted * GIB);
			memset(owner + wanted, 2, n);
			owner[wanted] = 1;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refuses_a_window_that_is_none),
		cmocka_unit_test_setup_teardown(takes_the_first_gap, setup, teardown),
		cmocka_unit_test_setup_teardown(takes_a_wished_address_and_names_who_has_it, setup,
						teardown),
		cmocka_unit_test_setup_teardown(refuses_what_is_outside_or_unaligned, setup,
						teardown),
		cmocka_unit_test_setup_teardown(agrees_with_a_simple_model, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
