/* SPDX-License-Identifier: BSD-2-Clause */
/* Pages: where runs go, what the shared words say of them, memory, adoption, a random model. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/atomic.h"
#include "fake_heap.h"
#include "run_threads.h"

#define SIZE PANDO__GIB
#define PAGE PANDO__PAGE
#define SPAN PANDO__SPAN
#define LARGE PANDO__CLASS_LARGE
#define RUNS 200
#define STEPS 40000
#define THREADS 4

static struct fake_heap h;
static struct pando__front *a;

static int setup(void **state)
{
	(void)state;
	fake_heap_init(&h, SIZE, SIZE / 4, true);
	a = fake_front_new(&h, 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fake_front_free(a);
	fake_heap_deinit(&h);
	return 0;
}

static uint64_t alloc(uint64_t pages, uint64_t alignment)
{
	int64_t at = pando__pages_alloc(a, pages * PAGE, alignment, LARGE);

	assert_true(at >= (int64_t)h.view.first);
	assert_int_equal((uint64_t)at % alignment, 0);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t page = (uint64_t)at / PAGE + i;

		assert_int_equal(h.view.page_table[page], PANDO__PAGE_ENTRY(1, LARGE, 0));
		assert_true(h.view.spans[page / 64].pages >> page % 64 & 1);
	}
	return (uint64_t)at;
}

static void give(uint64_t at, uint64_t pages)
{
	pando__pages_free(a, at, pages * PAGE);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t page = at / PAGE + i;

		assert_int_equal(h.view.page_table[page], 0);
		assert_false(h.view.spans[page / 64].pages >> page % 64 & 1);
	}
}

static void runs_share_spans(void **state)
{
	uint64_t x = alloc(8, PANDO__SLAB), y = alloc(8, PANDO__SLAB), z;

	(void)state;
	assert_int_equal(y, x + PANDO__SLAB);
	z = alloc(3, PAGE);
	assert_int_equal(z, x + 16 * PAGE);
	assert_int_equal(alloc(8, PANDO__SLAB), x + 24 * PAGE); /* a place that suits a slab */
	assert_int_equal(a->own_count, 1);
	give(x, 8);
	assert_int_equal(alloc(4, PAGE), x); /* the lowest gap */
	give(y, 8);
	give(z, 3);
	assert_int_equal(a->own_count, 1);
}

static void best_fit_fills_the_fullest_first(void **state)
{
	uint64_t x = alloc(60, PAGE), y = alloc(50, 2 * PAGE);

	(void)state;
	assert_int_not_equal(x / SPAN, y / SPAN);
	assert_int_equal(alloc(4, PAGE), x + 60 * PAGE); /* 4 fit here exactly */
	assert_int_equal(alloc(5, PAGE), y + 50 * PAGE);
	assert_int_equal(a->own_count, 2);
	assert_int_equal(h.view.clients[0].spans, 2);
}

/* Runs of half a span and a bit: three in two spans, and so on, not one in each. */
static void runs_go_on_in_the_next_span(void **state)
{
	uint64_t at[32];

	(void)state;
	for (int i = 0; i < 32; i++)
		at[i] = alloc(40, PAGE);
	assert_int_equal(a->own_count, 20);
	for (int i = 1; i < 32; i++)
		assert_int_equal(at[i], at[0] + (uint64_t)i * 40 * PAGE);
	for (int i = 0; i < 32; i += 2)
		give(at[i], 40);
	for (int i = 1; i < 32; i += 2)
		give(at[i], 40);
	assert_int_equal(a->own_count, 0);
	assert_int_equal(h.view.clients[0].spans, 0);
}

static void an_empty_span_goes_back(void **state)
{
	uint64_t x = alloc(64, PAGE), y = alloc(1, PAGE);

	(void)state;
	give(x, 64);
	assert_int_equal(a->own_count, 1);
	give(y, 1);
	assert_int_equal(a->own_count, 0);
	assert_int_equal(h.view.clients[0].spans, 0);
	assert_int_equal(PANDO__SPAN_STATE(h.view.spans[x / SPAN].word), PANDO__SPAN_RESERVE);
}

static void parts_of_a_long_run_can_be_freed(void **state)
{
	uint64_t x = alloc(64 * 3 + 10, PAGE);

	(void)state;
	assert_int_equal(x % SPAN, 0);
	assert_int_equal(a->own_count, 4);
	assert_int_equal(alloc(54, PAGE), x + (64 * 3 + 10) * PAGE); /* the rest of the last one */
	give(x + 60 * PAGE, 70); /* 4 + 64 + 2 */
	assert_int_equal(a->own_count, 3);
	assert_int_equal(alloc(2, PAGE), x + 128 * PAGE);
	give(x, 60);
	assert_int_equal(a->own_count, 2);
	give(x + 128 * PAGE, 2 + 62 + 10 + 54);
	assert_int_equal(a->own_count, 0);
}

static void alignment_beyond_a_span(void **state)
{
	uint64_t x = alloc(1, 4 << 20), y = alloc(100, 8 << 20);

	(void)state;
	give(x, 1);
	give(y, 100);
	assert_int_equal(a->own_count, 0);
	assert_int_equal(pando__pages_alloc(a, 2 * SIZE, PAGE, LARGE), -ENOMEM);
	assert_int_equal(pando__pages_alloc(a, SIZE / 4, PAGE, LARGE), -ENOMEM);
	assert_int_equal(pando__pages_alloc(a, PAGE, 1ull << 40, LARGE), -ENOMEM);
}

static void gaps_that_others_made_are_found(void **state)
{
	uint64_t x = alloc(64, PAGE);

	(void)state;
	/* The broker, for an owner who does nothing. */
	memset(&h.view.page_table[x / PAGE], 0, 8 * sizeof(uint32_t));
	pando__and_acq_rel(&h.view.spans[x / SPAN].pages, ~0xffull);
	assert_int_equal(alloc(8, PANDO__SLAB), x);
}

/* Nobody is told that memory is there which is not. */
static void memory_that_is_there_is_known(void **state)
{
	const unsigned int n = 64;
	bool there;
	int64_t at;

	(void)state;
	at = pando__pages_take(a, n * PAGE, PAGE, LARGE, 0, &there);
	assert_false(there);
	pando__pages_free(a, (uint64_t)at, n * PAGE); /* never committed */
	assert_int_equal(pando__pages_take(a, n * PAGE, PAGE, LARGE, 0, &there), at);
	assert_false(there);
	assert_int_equal(pando__commit(&h.view, (uint64_t)at, n * PAGE), 0);
	pando__pages_free_whole(a, (uint64_t)at, n * PAGE);
	assert_int_equal(pando__pages_take(a, 3 * PAGE, PAGE, LARGE, 0, &there), at);
	assert_true(there);
	assert_int_equal(pando__pages_take(a, 61 * PAGE, PAGE, LARGE, 0, &there), at + 3 * PAGE);
	assert_true(there);
	pando__pages_free_whole(a, (uint64_t)at, 3 * PAGE);
	pando__pages_trim(a);
	assert_int_equal(pando__pages_take(a, 3 * PAGE, PAGE, LARGE, 0, &there), at);
	assert_false(there);
	give((uint64_t)at, n);
	(void)pando__spans_purge(&h.view, 1, 0, 100);
	assert_int_equal(pando__pages_take(a, PAGE, PAGE, LARGE, 0, &there), at);
	assert_false(there);
	give((uint64_t)at, 1);
}

static void free_pages_in_used_spans_keep_little_memory(void **state)
{
	uint64_t at[64], before = fake_heap_memory(&h), left;

	(void)state;
	for (int i = 0; i < 64; i++) {
		at[i] = alloc(64, PAGE);
		assert_int_equal(pando__commit(&h.view, at[i], SPAN), 0);
	}
	assert_true(fake_heap_memory(&h) >= before + 64 * SPAN);
	for (int i = 0; i < 64; i++) /* one page of each remains */
		give(at[i], 63);
	/* Who frees gives nothing back: the broker does. */
	assert_true(fake_heap_memory(&h) >= before + 64 * SPAN);
	assert_true(pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 1000, UINT32_MAX) >= 54);
	left = fake_heap_memory(&h) - before;
	/* The pages in use, object words and page table of each span, and the bound. */
	assert_true(left <= 64 * (PAGE + 16384) + 5 * PAGE + 512 * PAGE);
	pando__pages_trim(a);
	left = fake_heap_memory(&h) - before;
	assert_true(left <= 64 * (PAGE + 16384) + 5 * PAGE);
	for (int i = 0; i < 64; i++)
		give(at[i] + 63 * PAGE, 1);
	(void)pando__spans_purge(&h.view, 1, 0, UINT32_MAX);
	assert_true(fake_heap_memory(&h) <= before + 5 * PAGE);
}

/* ---- lending ---------------------------------------------------------------------------------- */

static uint32_t purge(void)
{
	return pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 1000, UINT32_MAX);
}

/* n spans of which all but the first page is free, and was there. */
static void thin_spans(uint64_t *at, int n)
{
	for (int i = 0; i < n; i++) {
		at[i] = alloc(64, PAGE);
		assert_int_equal(pando__commit(&h.view, at[i], SPAN), 0);
	}
	for (int i = 0; i < n; i++)
		pando__pages_free_whole(a, at[i] + PAGE, 63 * PAGE);
}

static struct pando__span *span_of(uint64_t offset)
{
	return &h.view.spans[offset / SPAN];
}

static unsigned int lent_spans(const uint64_t *at, int n)
{
	unsigned int lent = 0;

	for (int i = 0; i < n; i++)
		lent += span_of(at[i])->lent == PANDO__LENT;
	return lent;
}

static void what_is_lent_is_taken_back(void **state)
{
	uint64_t at[20], memory;
	bool there;

	(void)state;
	thin_spans(at, 20);
	assert_in_range(lent_spans(at, 20), 11, 13); /* the bound is 512 pages */
	assert_int_equal(h.view.heap->reserves.value, 1);
	memory = fake_heap_memory(&h);
	for (int i = 0; i < 20; i++) {
		int64_t got = pando__pages_take(a, 63 * PAGE, PAGE, LARGE, 0, &there);

		assert_true(there);
		assert_int_equal(span_of((uint64_t)got)->lent, PANDO__LENT_NONE);
	}
	assert_int_equal(lent_spans(at, 20), 0);
	assert_int_equal(a->own_count, 20);
	assert_int_equal(fake_heap_memory(&h), memory);
	assert_int_equal(purge(), 0);
	for (int i = 0; i < 20; i++)
		give(at[i], 64);
	assert_int_equal(a->own_count, 0);
}

static void what_the_broker_took_is_known_to_be_gone(void **state)
{
	uint64_t at[20];
	unsigned int lent;
	bool there;

	(void)state;
	thin_spans(at, 20);
	lent = lent_spans(at, 20);
	assert_int_equal(purge(), lent);
	assert_int_equal(lent_spans(at, 20), 0);
	assert_int_equal(h.view.heap->reserves.value, 0);
	for (int i = 0; i < 20; i++) {
		(void)pando__pages_take(a, 63 * PAGE, PAGE, LARGE, 0, &there);
		lent -= !there;
	}
	assert_int_equal(lent, 0);
	for (int i = 0; i < 20; i++)
		give(at[i], 64);
	assert_int_equal(a->own_count, 0);
}

/* The broker is in the middle of it, or has died there: nobody waits for it. */
static void what_is_busy_is_passed_over(void **state)
{
	uint64_t at[20], kept = 0, left = 0;
	int64_t got;
	bool there;

	(void)state;
	thin_spans(at, 20);
	for (int i = 0; i < 20; i++) {
		if (span_of(at[i])->lent != PANDO__LENT)
			continue;
		span_of(at[i])->lent = PANDO__LENT_BUSY;
		left = kept;
		kept = at[i];
	}
	for (int i = 0; i < 20; i++) {
		got = pando__pages_take(a, 63 * PAGE, PAGE, LARGE, 0, &there);
		assert_int_equal(span_of((uint64_t)got)->lent, PANDO__LENT_NONE);
		pando__pages_free_whole(a, (uint64_t)got, 63 * PAGE);
	}
	/* Empty, it is left to the broker. */
	assert_int_equal(a->own_count, h.view.clients[0].spans);
	give(left, 1);
	assert_int_equal(PANDO__LENDING(span_of(left)->lent), PANDO__LENT_LEFT);
	assert_int_equal(PANDO__SPAN_STATE(span_of(left)->word), PANDO__SPAN_OWNED);
	assert_int_equal(a->own_count, h.view.clients[0].spans);
	pando__span_unlend(&h.view, (uint32_t)(left / SPAN));
	assert_int_equal(PANDO__SPAN_STATE(span_of(left)->word), PANDO__SPAN_RESERVE);
	assert_int_equal(span_of(left)->lent, PANDO__LENT_NONE);
	/* What is not empty has its memory gone, and is its owner's again. */
	pando__span_unlend(&h.view, (uint32_t)(kept / SPAN));
	assert_int_equal(PANDO__SPAN_STATE(span_of(kept)->word), PANDO__SPAN_OWNED);
	assert_int_equal(span_of(kept)->lent, PANDO__LENT_NONE);
	give(kept, 1);
	assert_int_equal(PANDO__SPAN_STATE(span_of(kept)->word), PANDO__SPAN_RESERVE);
}

/* A broker that died after it had released the span: that is not done twice. */
static void what_was_left_is_released_once(void **state)
{
	uint64_t at = alloc(64, PAGE);
	struct pando__span *s = span_of(at);

	(void)state;
	s->lent = PANDO__LEFT(PANDO__SPAN_COUNT(s->word) - 1);
	pando__span_unlend(&h.view, (uint32_t)(at / SPAN));
	assert_int_equal(PANDO__SPAN_STATE(s->word), PANDO__SPAN_OWNED);
	assert_int_equal(s->lent, PANDO__LENT_NONE);
	give(at, 64);
	s->lent = PANDO__LEFT(PANDO__SPAN_COUNT(s->word));
	assert_int_equal(alloc(64, PAGE), at);
	assert_int_equal(s->lent, PANDO__LENT_NONE);
}

/* ---- adoption --------------------------------------------------------------------------------- */

/* As the broker leaves a dead client's span in which objects live. */
static void orphan(uint64_t offset)
{
	struct pando__span *s = &h.view.spans[offset / SPAN];
	uint32_t *e = &h.view.page_table[offset / SPAN * 64];

	for (int i = 0; i < 64; i++)
		if (e[i])
			e[i] = PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, PANDO__PAGE_CLASS(e[i]), 0);
	s->word = PANDO__SPAN_WORD(PANDO__OWNER_ORPHAN, PANDO__SPAN_ORPHAN,
				   PANDO__SPAN_COUNT(s->word) + 1);
	h.view.heap->orphans.value++;
}

static void orphans_are_adopted(void **state)
{
	struct pando__front *b = fake_front_new(&h, 1);
	int64_t slab = pando__pages_alloc(b, PANDO__SLAB, PANDO__SLAB, 5);
	int64_t run = pando__pages_alloc(b, 3 * PAGE, PAGE, LARGE);
	int64_t tail = pando__pages_alloc(b, 64 * PAGE, 2 * PAGE, LARGE);
	uint32_t *e = h.view.page_table;

	(void)state;
	fake_front_free(b);
	assert_int_equal(pando__span_adopt(a, 5), -ENOENT);
	orphan((uint64_t)slab);
	orphan((uint64_t)tail);
	assert_int_equal(pando__span_adopt(a, 6), -ENOENT);
	h.view.spans[slab / SPAN].remote = 1;
	assert_int_equal(pando__span_adopt(a, 5), slab / SPAN);
	assert_int_equal(h.view.clients[0].remote, 1);
	assert_int_equal(h.view.clients[0].spans, 1);
	assert_int_equal(h.view.heap->orphans.value, 1);
	assert_int_equal(e[slab / PAGE], PANDO__PAGE_ENTRY(1, 5, 0));
	assert_int_equal(e[run / PAGE + 2], PANDO__PAGE_ENTRY(1, LARGE, PANDO__PAGE_LOOSE));
	assert_int_equal(pando__span_adopt(a, 5), -ENOENT);
	/* Now it is as any other. */
	assert_int_equal(alloc(8, PANDO__SLAB), slab + 16 * PAGE);
	give((uint64_t)slab + 16 * PAGE, 8);
	give((uint64_t)slab, 8);
	give((uint64_t)run, 3);
	assert_int_equal(a->own_count, 0);
	assert_int_equal(PANDO__SPAN_STATE(h.view.spans[tail / SPAN].word), PANDO__SPAN_ORPHAN);
}

/* What the broker has lent itself is taken back by who adopts the span and needs it. */
static void an_orphan_is_lent(void **state)
{
	struct pando__front *b = fake_front_new(&h, 1);
	int64_t slab = pando__pages_alloc(b, PANDO__SLAB, PANDO__SLAB, 5);
	struct pando__span *s = span_of((uint64_t)slab);

	(void)state;
	fake_front_free(b);
	orphan((uint64_t)slab);
	s->lent = PANDO__LENT;
	assert_int_equal(pando__span_adopt(a, 5), slab / SPAN);
	assert_int_equal(s->lent, PANDO__LENT);
	assert_int_equal(alloc(8, PANDO__SLAB), slab + 8 * PAGE);
	assert_int_equal(s->lent, PANDO__LENT_NONE);
	give((uint64_t)slab, 16);
	assert_int_equal(a->own_count, 0);
}

/* ---- a model ---------------------------------------------------------------------------------- */

struct run {
	uint64_t at, pages;
	unsigned char stamp;
};

/* True if all of it has memory. */
static bool is_there(uint64_t at, uint64_t pages)
{
	unsigned char map[400];

	if (pages > sizeof(map) || mincore(h.view.base + at, pages * PAGE, map) != 0)
		return false;
	for (uint64_t i = 0; i < pages; i++)
		if (!(map[i] & 1))
			return false;
	return true;
}

static const char *random_runs(struct pando__front *f)
{
	struct run runs[RUNS];
	unsigned int n = 0, seed = f->me;

	for (int i = 0; i < STEPS; i++) {
		struct run *r;

		if (n < RUNS && rand_r(&seed) % 2) {
			unsigned int kind = (unsigned int)rand_r(&seed) % 16;
			uint64_t step = 1ull << (unsigned int)rand_r(&seed) % 4;
			bool there;
			int64_t at;

			r = &runs[n];
			r->pages = kind == 0  ? 64 + (unsigned int)rand_r(&seed) % 300
				   : kind < 8 ? 8
					      : 1 + (unsigned int)rand_r(&seed) % 20;
			at = pando__pages_take(f, r->pages * PAGE, step * PAGE, LARGE, 0, &there);
			if (at == -ENOMEM)
				continue;
			if (at < (int64_t)f->view.first || (uint64_t)at % (step * PAGE))
				return "a strange offset";
			r->at = (uint64_t)at;
			r->stamp = (unsigned char)rand_r(&seed);
			if (there && !is_there(r->at, r->pages))
				return "no memory where there should be some";
			if (!there && pando__commit(&f->view, r->at, r->pages * PAGE) != 0)
				return "no memory";
			for (uint64_t k = 0; k < r->pages; k++)
				f->view.base[r->at + k * PAGE] = (char)r->stamp;
			n++;
		} else if (n) {
			uint64_t part;

			r = &runs[(unsigned int)rand_r(&seed) % n];
			for (uint64_t k = 0; k < r->pages; k++)
				if (f->view.base[r->at + k * PAGE] != (char)r->stamp)
					return "somebody wrote there, or the memory went";
			part = 1 + (unsigned int)rand_r(&seed) % r->pages;
			pando__pages_free_whole(f, r->at, part * PAGE);
			r->at += part * PAGE;
			r->pages -= part;
			if (r->pages == 0)
				*r = runs[--n];
		}
	}
	while (n--)
		pando__pages_free(f, runs[n].at, runs[n].pages * PAGE);
	return NULL;
}

static void *random_thread(void *arg)
{
	return (void *)(uintptr_t)random_runs(arg);
}

static void everything_is_free(void)
{
	for (uint64_t i = h.view.first / SPAN; i < SIZE / 4 / SPAN; i++) {
		assert_true(PANDO__SPAN_STATE(h.view.spans[i].word) == PANDO__SPAN_FREE ||
			    PANDO__SPAN_STATE(h.view.spans[i].word) == PANDO__SPAN_RESERVE);
		assert_int_equal(h.view.spans[i].pages, 0);
	}
}

static bool random_threads_end;

/* As the broker does it, all the time. */
static void *purging_thread(void *arg)
{
	uint64_t *purged = arg;

	while (!pando__load_acquire(&random_threads_end)) {
		*purged += pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 2, UINT32_MAX);
		usleep(200);
	}
	return NULL;
}

static void random_threads_of_two_clients(void **state)
{
	struct pando__front *b = fake_front_new(&h, 1);
	pthread_t t[THREADS], purger;
	uint64_t purged = 0;

	(void)state;
	random_threads_end = false;
	assert_int_equal(pthread_create(&purger, NULL, purging_thread, &purged), 0);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, random_thread, i % 2 ? a : b), 0);
	join_threads(t, THREADS);
	pando__store_release(&random_threads_end, true);
	assert_int_equal(pthread_join(purger, NULL), 0);
	assert_true(purged > 0);
	assert_int_equal(a->own_count + b->own_count, 0);
	everything_is_free();
	fake_front_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(runs_share_spans, setup, teardown),
		cmocka_unit_test_setup_teardown(best_fit_fills_the_fullest_first, setup, teardown),
		cmocka_unit_test_setup_teardown(runs_go_on_in_the_next_span, setup, teardown),
		cmocka_unit_test_setup_teardown(an_empty_span_goes_back, setup, teardown),
		cmocka_unit_test_setup_teardown(parts_of_a_long_run_can_be_freed, setup, teardown),
		cmocka_unit_test_setup_teardown(alignment_beyond_a_span, setup, teardown),
		cmocka_unit_test_setup_teardown(gaps_that_others_made_are_found, setup, teardown),
		cmocka_unit_test_setup_teardown(memory_that_is_there_is_known, setup, teardown),
		cmocka_unit_test_setup_teardown(free_pages_in_used_spans_keep_little_memory, setup,
						teardown),
		cmocka_unit_test_setup_teardown(what_is_lent_is_taken_back, setup, teardown),
		cmocka_unit_test_setup_teardown(what_the_broker_took_is_known_to_be_gone, setup,
						teardown),
		cmocka_unit_test_setup_teardown(what_is_busy_is_passed_over, setup, teardown),
		cmocka_unit_test_setup_teardown(what_was_left_is_released_once, setup, teardown),
		cmocka_unit_test_setup_teardown(orphans_are_adopted, setup, teardown),
		cmocka_unit_test_setup_teardown(an_orphan_is_lent, setup, teardown),
		cmocka_unit_test_setup_teardown(random_threads_of_two_clients, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
