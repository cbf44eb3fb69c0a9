/* SPDX-License-Identifier: BSD-2-Clause */
/* Spans: taking, reserves, purging, the committed size, quotas, races of threads, and kills. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/atomic.h"
#include "fake_heap.h"
#include "run_threads.h"

#define SIZE PANDO__GIB
#define SPAN PANDO__SPAN
#define THREADS 4
#define ROUNDS 20000

static struct fake_heap h;
static struct pando__front *a, *b;
static uint32_t first, all; /* spans that may be used */

static void begin(uint64_t committed, bool lazy)
{
	fake_heap_init(&h, SIZE, committed, lazy);
	a = fake_front_new(&h, 0);
	b = fake_front_new(&h, 1);
	first = (uint32_t)(h.view.first / SPAN);
	all = pando__spans_end(&h.view) - first;
}

static void end(void)
{
	fake_front_free(a);
	fake_front_free(b);
	fake_heap_deinit(&h);
}

static int setup(void **state)
{
	(void)state;
	begin(SIZE / 8, true);
	return 0;
}

static int setup_committed(void **state)
{
	(void)state;
	begin(SIZE / 8, false);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	end();
	return 0;
}

static uint64_t word(uint32_t index)
{
	return pando__load_relaxed(&h.view.spans[index].word);
}

static enum pando__span_state state_of(uint32_t index)
{
	return PANDO__SPAN_STATE(word(index));
}

static uint32_t take(struct pando__front *f, uint32_t count)
{
	int64_t at = pando__span_take(f, count, SPAN);

	assert_true(at >= first);
	for (uint32_t i = 0; i < count; i++) {
		assert_int_equal(state_of((uint32_t)at + i), PANDO__SPAN_OWNED);
		assert_int_equal(PANDO__SPAN_OWNER(word((uint32_t)at + i)), f->me);
	}
	return (uint32_t)at;
}

static void fill(uint32_t index)
{
	assert_int_equal(pando__commit(&h.view, (uint64_t)index * SPAN, SPAN), 0);
	memset(h.view.base + (uint64_t)index * SPAN, 0x5a, SPAN);
}

static void takes_the_lowest(void **state)
{
	(void)state;
	assert_int_equal(take(a, 1), first);
	assert_int_equal(take(b, 1), first + 1);
	assert_int_equal(take(a, 3), first + 2);
	pando__span_give(a, first);
	assert_int_equal(take(b, 1), first);
	pando__span_give(b, first + 1);
	assert_int_equal(take(a, 2), first + 5);
	assert_int_equal(take(a, 1), first + 1);
	assert_int_equal(h.view.clients[0].spans, 6);
	assert_int_equal(h.view.clients[1].spans, 1);
}

static void a_run_is_aligned(void **state)
{
	int64_t at;

	(void)state;
	(void)take(a, 1);
	at = pando__span_take(a, 2, 16 * SPAN);
	assert_true(at > first);
	assert_int_equal(((uintptr_t)h.view.base + (uint64_t)at * SPAN) % (16 * SPAN), 0);
	assert_int_equal(take(a, 1), first + 1);
}

static void an_empty_span_keeps_its_memory_for_a_while(void **state)
{
	const uint64_t before = fake_heap_memory(&h);
	uint32_t at = take(a, 1);
	uint64_t in_use;

	(void)state;
	fill(at);
	in_use = fake_heap_memory(&h);
	assert_true(in_use >= before + SPAN);
	pando__span_give(a, at);
	assert_int_equal(state_of(at), PANDO__SPAN_RESERVE);
	assert_int_equal(pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 10000, 100), 0);
	assert_int_equal(take(b, 1), at);
	assert_int_equal(h.view.base[(uint64_t)at * SPAN], 0x5a);
	pando__span_give(b, at);
	usleep(20000);
	assert_int_equal(pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 10, 100), 1);
	assert_int_equal(state_of(at), PANDO__SPAN_FREE);
	/* What remains is its part of the page table. */
	assert_true(fake_heap_memory(&h) <= before + PANDO__PAGE);
	assert_int_equal(h.view.heap->reserves.value, 0);
	assert_int_equal(take(a, 1), at);
	assert_int_equal(h.view.base[(uint64_t)at * SPAN], 0);
}

static void a_purge_has_a_bound_and_goes_on_later(void **state)
{
	uint32_t at = take(a, 10);

	(void)state;
	for (uint32_t i = 0; i < 10; i++)
		pando__span_give(a, at + i);
	assert_int_equal(pando__spans_purge(&h.view, a->me, 0, 4), 4);
	assert_int_equal(h.view.heap->reserves.value, 1);
	assert_int_equal(pando__spans_purge(&h.view, a->me, 0, 100), 6);
	assert_int_equal(pando__spans_purge(&h.view, a->me, 0, 100), 0);
}

static void committed_regions_have_no_reserve(void **state)
{
	uint32_t at = take(a, 1);

	(void)state;
	pando__span_give(a, at);
	assert_int_equal(state_of(at), PANDO__SPAN_FREE);
	assert_int_equal(pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 0, 100), 0);
}

static uint64_t pages(uint64_t bytes)
{
	return (bytes + 4095) / 4096;
}

/* What a heap takes at most, in whole pages, is the size that it may have, whatever that is. */
static void the_size_counts_the_tables(void **state)
{
	(void)state;
	for (uint64_t size = 0; size < SIZE; size += 4096 + size / 50 / 4096 * 4096) {
		const uint64_t limit = pando__span_limit(&h.view, size);
		const uint64_t n = limit - first;
		uint64_t need = 2 * 4096 + n * (SPAN + SPAN / 16);

		assert_true(limit >= first && limit * SPAN <= h.view.end);
		need += (pages((limit + 1) * 256) + pages(limit * 32)) * 4096;
		if (n) /* parts of pages, the first span's part of the tables */
			assert_true(need <= size + 3 * 4096 + 512);
		if (limit * SPAN < h.view.end) /* one more would be too many */
			assert_true(need + SPAN + SPAN / 16 + 512 > size);
	}
}

static void a_full_region_says_so(void **state)
{
	uint32_t at = take(a, all);

	(void)state;
	assert_int_equal(at, first);
	assert_int_equal(pando__span_take(b, 1, SPAN), -ENOMEM);
	assert_non_null(strstr(pando_strerror_last(), "\"fake\" is full"));
	assert_int_equal(h.view.clients[1].spans, 0);
	pando__span_give(a, at + 7);
	assert_int_equal(pando__span_take(b, 2, SPAN), -ENOMEM);
	assert_int_equal(take(b, 1), at + 7);
}

static void the_region_grows(void **state)
{
	(void)state;
	(void)take(a, all);
	assert_int_equal(pando__span_take(b, 1, SPAN), -ENOMEM);
	pando__store_release(&h.ledger->committed, SIZE / 8 + 2 * (SPAN + SPAN / 14));
	pando__spans_settle(&h.view);
	assert_int_equal(take(b, 1), first + all);
	assert_int_equal(take(b, 1), first + all + 1);
	assert_int_equal(pando__span_take(b, 1, SPAN), -ENOMEM);
}

static void the_region_shrinks_where_it_is_free(void **state)
{
	const uint64_t size = SIZE / 8 - (32u << 20);
	uint32_t low = take(a, 1), high = take(a, all - 1) + all - 2;
	uint64_t memory;

	(void)state;
	assert_int_equal(low, first);
	fill(high);
	memory = fake_heap_memory(&h);
	for (uint32_t i = low + 1; i < high; i++)
		pando__span_give(a, i);
	assert_int_equal(pando__spans_shrink(&h.view, size), -EBUSY);
	assert_non_null(strstr(pando_strerror_last(), "cannot shrink"));
	for (uint32_t i = low + 1; i < high; i++)
		assert_true(state_of(i) == PANDO__SPAN_FREE || state_of(i) == PANDO__SPAN_RESERVE);
	pando__span_give(a, high);
	assert_int_equal(pando__spans_shrink(&h.view, size), 0);
	assert_true(fake_heap_memory(&h) <= memory - SPAN);
	/* The ledger does not say so yet, but nobody gets one beyond. */
	while (pando__span_take(b, 1, SPAN) >= 0)
		;
	assert_int_equal(h.view.clients[1].spans, pando__span_limit(&h.view, size) - first - 1);
	pando__store_release(&h.ledger->committed, size);
	pando__spans_settle(&h.view);
	assert_int_equal(state_of(high), PANDO__SPAN_ABSENT);
	pando__store_release(&h.ledger->committed, SIZE / 8);
	pando__spans_settle(&h.view);
	assert_int_equal(state_of(high), PANDO__SPAN_FREE);
	assert_true(pando__span_take(b, 1, SPAN) >= 0);
}

static void quotas_hold(void **state)
{
	struct pando__ledger_client *ea = pando__ledger_client(h.ledger, 0);
	struct pando__ledger_client *eb = pando__ledger_client(h.ledger, 1);
	uint32_t at;

	(void)state;
	ea->heap_quota = 3 * SPAN;
	ea->heap_quota_user = eb->heap_quota_user = 5 * SPAN;
	at = take(a, 2);
	assert_int_equal(pando__span_take(a, 2, SPAN), -EDQUOT);
	assert_non_null(strstr(pando_strerror_last(), "this client may own"));
	(void)take(a, 1);
	(void)take(b, 2);
	assert_int_equal(pando__span_take(b, 1, SPAN), -EDQUOT);
	assert_non_null(strstr(pando_strerror_last(), "user 0"));
	pando__span_give(a, at);
	(void)take(b, 1);
	assert_int_equal(pando__span_take(a, 1, SPAN), -EDQUOT);
	eb->uid = 5; /* another user's */
	(void)take(a, 1);
}

#ifdef PANDO_INJECTION
static void memory_of_the_own_node_comes_first(void **state)
{
	uint32_t at;

	(void)state;
	pando__fake_node = 1;
	at = take(a, 3);
	for (uint32_t i = 0; i < 3; i++)
		pando__span_give(a, at + i);
	pando__fake_node = 2;
	assert_int_equal(take(b, 1), at + 3); /* without memory: it will come from here */
	pando__span_give(b, at + 3);
	assert_int_equal(take(b, 1), at + 3); /* memory of this node */
	pando__fake_node = 1;
	assert_int_equal(take(a, 1), at);
	pando__fake_node = 2;
	assert_int_equal(take(b, all - 4), at + 4);
	assert_int_equal(take(b, 2), at + 1); /* better than none */
	pando__fake_node = 0;
}
#endif

/* ---- threads ---------------------------------------------------------------------------------- */

static uint32_t owners[SIZE / SPAN];

static void *racer(void *arg)
{
	struct pando__front *f = arg;
	uint32_t have[16], n = 0;
	unsigned int seed = f->me;

	for (int i = 0; i < ROUNDS; i++) {
		uint32_t count = 1 + (uint32_t)rand_r(&seed) % 3;
		int64_t at;

		if (n + count > 16 || (n && rand_r(&seed) % 2)) {
			uint32_t k = (uint32_t)rand_r(&seed) % n;

			if (pando__exchange_acq_rel(&owners[have[k]], 0) != f->me)
				return "somebody else has it";
			pando__span_give(f, have[k]);
			have[k] = have[--n];
			continue;
		}
		at = pando__span_take(f, count, SPAN);
		for (uint32_t k = 0; at >= 0 && k < count; k++) {
			have[n++] = (uint32_t)at + k;
			if (pando__exchange_acq_rel(&owners[at + k], f->me) != 0)
				return "taken twice";
		}
		if (i % 64 == 0)
			(void)pando__spans_purge(&f->view, f->me, 0, 3);
	}
	while (n) {
		pando__store_release(&owners[have[--n]], 0);
		pando__span_give(f, have[n]);
	}
	return NULL;
}

static void threads_share_no_span(void **state)
{
	struct pando__front *f[THREADS];
	pthread_t t[THREADS];

	(void)state;
	memset(owners, 0, sizeof(owners));
	h.ledger->committed = 26 * SPAN; /* short of spans, 24 of them: 4 x 16 are wanted */
	assert_int_equal(pando__spans_end(&h.view), first + 24);
	for (uint32_t i = 0; i < THREADS; i++) {
		f[i] = fake_front_new(&h, 2 + i);
		assert_int_equal(pthread_create(&t[i], NULL, racer, f[i]), 0);
	}
	join_threads(t, THREADS);
	for (uint32_t i = 0; i < THREADS; i++) {
		assert_int_equal(h.view.clients[2 + i].spans, 0);
		fake_front_free(f[i]);
	}
	for (uint32_t i = first; i < first + 24; i++)
		assert_true(state_of(i) == PANDO__SPAN_FREE || state_of(i) == PANDO__SPAN_RESERVE);
}

/* ---- kills ------------------------------------------------------------------------------------ */

static void child(uint32_t slot)
{
	struct pando__front *f = fake_front_new(&h, slot);

	for (unsigned int i = 0;; i++) {
		int64_t at = pando__span_take(f, 1 + i % 5, SPAN);

		if (at < 0)
			_exit(1);
		if (pando__commit(&f->view, (uint64_t)at * SPAN, SPAN) != 0)
			_exit(2);
		for (uint32_t k = 0; k < 1 + i % 5; k++)
			pando__span_give(f, (uint32_t)at + k);
		(void)pando__spans_purge(&f->view, f->me, 0, 2);
	}
}

static void killed_anywhere_nothing_is_lost(void **state)
{
	unsigned int seed = 1;
	uint64_t memory;

	(void)state;
	for (int round = 0; round < 60; round++) {
		pid_t pid[2];

		for (uint32_t i = 0; i < 2; i++) {
			pid[i] = fork();
			if (pid[i] == 0)
				child(2 + i);
			assert_true(pid[i] > 0);
		}
		usleep((useconds_t)(rand_r(&seed) % 20000));
		for (uint32_t i = 0; i < 2; i++) {
			int status;

			kill(pid[i], SIGKILL);
			assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
			assert_true(WIFSIGNALED(status));
			fake_heap_bury(&h, 2 + i);
		}
		for (uint32_t i = first; i < first + all; i++)
			if (state_of(i) != PANDO__SPAN_FREE && state_of(i) != PANDO__SPAN_RESERVE)
				fail_msg("span %u: %llx", i, (unsigned long long)word(i));
	}
	h.view.heap->reserves.value = 1; /* the broker looks anyway after a death */
	(void)pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 0, UINT32_MAX);
	memory = fake_heap_memory(&h);
	/* Header, lines, span table, page table, and metadata of a span that was about to be taken. */
	assert_true(memory < (1u << 20));
	assert_int_equal(take(a, all), first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(takes_the_lowest, setup, teardown),
		cmocka_unit_test_setup_teardown(a_run_is_aligned, setup, teardown),
		cmocka_unit_test_setup_teardown(an_empty_span_keeps_its_memory_for_a_while, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_purge_has_a_bound_and_goes_on_later, setup,
						teardown),
		cmocka_unit_test_setup_teardown(committed_regions_have_no_reserve, setup_committed,
						teardown),
		cmocka_unit_test_setup_teardown(the_size_counts_the_tables, setup, teardown),
		cmocka_unit_test_setup_teardown(a_full_region_says_so, setup, teardown),
		cmocka_unit_test_setup_teardown(the_region_grows, setup, teardown),
		cmocka_unit_test_setup_teardown(the_region_shrinks_where_it_is_free, setup,
						teardown),
		cmocka_unit_test_setup_teardown(quotas_hold, setup, teardown),
#ifdef PANDO_INJECTION
		cmocka_unit_test_setup_teardown(memory_of_the_own_node_comes_first, setup,
						teardown),
#endif
		cmocka_unit_test_setup_teardown(threads_share_no_span, setup, teardown),
		cmocka_unit_test_setup_teardown(killed_anywhere_nothing_is_lost, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
