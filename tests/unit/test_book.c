/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The shim's book: single cases by hand, then long random sequences against a model that keeps one
 * byte per page and knows nothing of spans.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "preload/book.h"

#define BASE 0x200000000000ull
#define PAGE (uint64_t) BOOK_PAGE
#define HUGE (2ull << 20)
#define GIB (1ull << 30)
#define RW (PROT_READ | PROT_WRITE)

static struct book book;

static int reset(void **state)
{
	(void)state;
	book_clear(&book);
	return 0;
}

static struct book_entry *only(void)
{
	assert_int_equal(book.n, 1);
	return &book.entries[0];
}

static void piece(uint64_t start, uint64_t end, enum book_kind kind, uint64_t until)
{
	struct book_piece p;

	assert_true(book_next(&book, start, end, &p));
	assert_true(p.start == start);
	assert_true(p.end == until);
	assert_int_equal(p.kind, kind);
	assert_true((p.entry == NULL) == (kind == BOOK_FOREIGN));
}

static void cuts_a_request_into_pieces(void **state)
{
	(void)state;
	assert_int_equal(book_add(&book, BASE, 3 * HUGE + 100, GIB, HUGE, RW, NULL), 0);
	piece(BASE - HUGE, BASE + HUGE, BOOK_FOREIGN, BASE);
	piece(BASE, BASE + GIB, BOOK_LIVE, BASE + 3 * HUGE + PAGE);
	piece(BASE + 3 * HUGE + PAGE, BASE + 2 * GIB, BOOK_PENDING, BASE + GIB);
	piece(BASE + GIB, BASE + 2 * GIB, BOOK_FOREIGN, BASE + 2 * GIB);
	assert_null(book_find(&book, BASE + GIB, BASE + 2 * GIB));
	assert_ptr_equal(book_find(&book, BASE + GIB - 1, BASE + GIB), only());
}

static void refuses_what_overlaps(void **state)
{
	(void)state;
	assert_int_equal(book_add(&book, BASE + GIB, PAGE, GIB, PAGE, RW, NULL), 0);
	assert_int_equal(book_add(&book, BASE, PAGE, GIB, PAGE, RW, NULL), 0);
	assert_int_equal(book_add(&book, BASE + GIB, PAGE, GIB, PAGE, RW, NULL), -EEXIST);
	assert_int_equal(book_add(&book, BASE + GIB / 2, PAGE, GIB, PAGE, RW, NULL), -EEXIST);
	assert_int_equal(book.n, 2);
	assert_true(book.entries[0].base == BASE);
	assert_true(book_valid(&book));
}

static void keeps_a_granule_until_all_of_it_is_gone(void **state)
{
	struct book_entry *e;
	uint64_t lo, hi;

	(void)state;
	assert_int_equal(book_add(&book, BASE, 4 * HUGE, GIB, HUGE, RW, NULL), 0);
	e = only();
	/* From the middle of granule 0 to the middle of granule 2: only granule 1 can go. */
	assert_int_equal(book_mark(e, BASE + HUGE / 2, BASE + 5 * HUGE / 2, BOOK_PENDING, 0), 0);
	assert_true(book_releasable(e, BASE + HUGE / 2, BASE + 5 * HUGE / 2, &lo, &hi));
	assert_true(lo == BASE + HUGE && hi == BASE + 2 * HUGE);
	assert_int_equal(book_mark(e, lo, hi, BOOK_FOREIGN, 0), 0);
	/* Part of the rest of granule 0: still something live. */
	assert_int_equal(book_mark(e, BASE + PAGE, BASE + HUGE / 2, BOOK_PENDING, 0), 0);
	assert_false(book_releasable(e, BASE + PAGE, BASE + HUGE / 2, &lo, &hi));
	/* Its last page: now the granule goes. */
	assert_int_equal(book_mark(e, BASE, BASE + PAGE, BOOK_PENDING, 0), 0);
	assert_true(book_releasable(e, BASE, BASE + PAGE, &lo, &hi));
	assert_true(lo == BASE && hi == BASE + HUGE);
	assert_false(book_all_gone(e));
	assert_true(book_valid(&book));
}

static void widens_over_the_reserve_and_no_further(void **state)
{
	uint64_t lo, hi;

	(void)state;
	assert_int_equal(book_add(&book, BASE, 2 * HUGE + PAGE, GIB, HUGE, RW, NULL), 0);
	/* The whole of it: the reserve comes along, so that the GiB stays one piece. */
	assert_true(book_widen(only(), BASE, BASE + 2 * HUGE + PAGE, &lo, &hi));
	assert_true(lo == BASE && hi == BASE + GIB);
	assert_true(book_widen(only(), BASE, BASE + HUGE, &lo, &hi));
	assert_true(lo == BASE && hi == BASE + HUGE);
	assert_false(book_widen(only(), BASE, BASE + PAGE, &lo, &hi));
	assert_false(book_widen(only(), BASE + PAGE, BASE + HUGE, &lo, &hi));
	book_clear(&book);
	/* With 4 KiB granules everything is possible, and the reserve is left alone. */
	assert_int_equal(book_add(&book, BASE, 2 * HUGE, GIB, PAGE, RW, NULL), 0);
	assert_true(book_widen(only(), BASE + PAGE, BASE + 2 * HUGE, &lo, &hi));
	assert_true(lo == BASE + PAGE && hi == BASE + 2 * HUGE);
}

static void marking_alike_joins(void **state)
{
	(void)state;
	assert_int_equal(book_add(&book, BASE, 64 * PAGE, 64 * PAGE, PAGE, RW, NULL), 0);
	for (uint64_t i = 0; i < 64; i += 2)
		assert_int_equal(book_mark(only(), BASE + i * PAGE, BASE + (i + 1) * PAGE,
					   BOOK_LIVE, PROT_READ),
				 0);
	assert_int_equal(only()->nspans, 64);
	for (uint64_t i = 0; i < 64; i += 2)
		assert_int_equal(
			book_mark(only(), BASE + i * PAGE, BASE + (i + 1) * PAGE, BOOK_LIVE, RW),
			0);
	assert_int_equal(only()->nspans, 1);
	assert_true(book_valid(&book));
}

/* The model: one kind per page of one entry. */
#define PAGES 64u
#define GRANULE 8u /* pages */
static unsigned char model[PAGES];

static uint64_t addr(unsigned int page)
{
	return BASE + page * PAGE;
}

static unsigned char kind_at(unsigned int page)
{
	struct book_piece p;

	assert_true(book_next(&book, addr(page), addr(page) + PAGE, &p));
	return (unsigned char)p.kind;
}

/*
 * As the shim's munmap: live pages become pending, granules without any live page become foreign.
 */
static void unmap(unsigned int from, unsigned int to)
{
	struct book_entry *e = only();
	struct book_piece p;
	uint64_t lo, hi;

	for (uint64_t a = addr(from); book_next(&book, a, addr(to), &p); a = p.end) {
		if (p.kind != BOOK_LIVE)
			continue;
		assert_int_equal(book_mark(e, p.start, p.end, BOOK_PENDING, 0), 0);
		if (book_releasable(e, p.start, p.end, &lo, &hi))
			for (struct book_piece q; book_next(&book, lo, hi, &q); lo = q.end)
				if (q.kind == BOOK_PENDING)
					assert_int_equal(
						book_mark(e, q.start, q.end, BOOK_FOREIGN, 0), 0);
	}
	for (unsigned int i = from; i < to; i++)
		if (model[i] == BOOK_LIVE)
			model[i] = BOOK_PENDING;
	for (unsigned int g = from / GRANULE; g <= (to - 1) / GRANULE; g++) {
		bool live = false;

		for (unsigned int i = g * GRANULE; i < (g + 1) * GRANULE; i++)
			live = live || model[i] == BOOK_LIVE;
		/* A granule that never had anything live is the reserve: it goes with the whole. */
		for (unsigned int i = g * GRANULE; !live && i < (g + 1) * GRANULE; i++)
			if (g * GRANULE < 48)
				model[i] = BOOK_FOREIGN;
	}
}

static void agrees_with_the_model(void **state)
{
	(void)state;
	srand(1);
	for (int round = 0; round < 2000; round++) {
		book_clear(&book);
		assert_int_equal(
			book_add(&book, BASE, 45 * PAGE, PAGES * PAGE, GRANULE * PAGE, RW, NULL),
			0);
		for (unsigned int i = 0; i < PAGES; i++)
			model[i] = i < 45 ? BOOK_LIVE : BOOK_PENDING;
		for (int step = 0; step < 12; step++) {
			unsigned int from = (unsigned int)rand() % 48;
			unsigned int to = from + 1 + (unsigned int)rand() % (48 - from);

			if (rand() % 4)
				unmap(from, to);
			else
				for (unsigned int i = from; i < to; i++) {
					if (model[i] != BOOK_LIVE)
						continue;
					assert_int_equal(book_mark(only(), addr(i), addr(i) + PAGE,
								   BOOK_LIVE,
								   rand() % 2 ? RW : PROT_READ),
							 0);
				}
			assert_true(book_valid(&book));
			for (unsigned int i = 0; i < PAGES; i++)
				assert_int_equal(kind_at(i), model[i]);
		}
	}
}

static void many_entries_stay_sorted(void **state)
{
	(void)state;
	srand(2);
	for (uint64_t i = 0; i < 500; i++)
		(void)book_add(&book, BASE + (uint64_t)(rand() % 1000) * GIB, HUGE, GIB, PAGE, RW,
			       NULL);
	assert_true(book.n > 300);
	assert_true(book_valid(&book));
	while (book.n) {
		struct book_entry *e = &book.entries[(uint32_t)rand() % book.n];

		assert_ptr_equal(book_find(&book, e->base + HUGE, e->base + GIB), e);
		book_remove(&book, e);
		assert_true(book_valid(&book));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(cuts_a_request_into_pieces, reset, reset),
		cmocka_unit_test_setup_teardown(refuses_what_overlaps, reset, reset),
		cmocka_unit_test_setup_teardown(keeps_a_granule_until_all_of_it_is_gone, reset,
						reset),
		cmocka_unit_test_setup_teardown(widens_over_the_reserve_and_no_further, reset,
						reset),
		cmocka_unit_test_setup_teardown(marking_alike_joins, reset, reset),
		cmocka_unit_test_setup_teardown(agrees_with_the_model, reset, reset),
		cmocka_unit_test_setup_teardown(many_entries_stay_sorted, reset, reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
