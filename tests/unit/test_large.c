/* SPDX-License-Identifier: BSD-2-Clause */
/* Objects over 1 KiB: sizes, alignment, what the words say, memory, quotas, adoption, fork, threads. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/atomic.h"
#include "common/inject.h"
#include "fake_heap.h"
#include "run_threads.h"

#define SIZE PANDO__GIB
#define COMMITTED (SIZE / 2)
#define KIB 1024u
#define THREADS 4
#define STEPS 30000

static struct fake_heap h;
static struct pando__front *a;

/* libshm's part: there are no regions here. */
struct pando__front *pando__region_front(struct pando_region *r)
{
	(void)r;
	return NULL;
}

static struct pando__front *front(uint32_t slot)
{
	const struct pando__front_options o = {
		.base = h.view.base,
		.ledger = h.ledger,
		.slots = h.slots,
		.slot = slot,
		.generation = 1,
	};
	struct pando__ledger_client *e = pando__ledger_client(h.ledger, slot);
	struct pando__front *f;

	e->pid = getpid();
	pando__store_release(&e->word, PANDO__CLIENT_WORD(1, PANDO__CLIENT_LIVE));
	if (h.ledger->clients_high <= slot)
		pando__store_release(&h.ledger->clients_high, slot + 1);
	f = pando__front_new(&o);
	if (!f)
		abort();
	return f;
}

static int setup(void **state)
{
	(void)state;
	fake_heap_init(&h, SIZE, COMMITTED, true);
	a = front(0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	pando__front_free(a);
	fake_heap_deinit(&h);
	return 0;
}

static uint64_t at(const void *p)
{
	return pando__offset(&h.view, p);
}

static void *alloc(struct pando__front *f, size_t alignment, size_t size)
{
	char *p = pando__large_alloc(f, alignment, size);
	uint64_t usable;
	uint32_t entry;

	assert_non_null(p);
	assert_true(at(p) >= h.view.first && at(p) + size <= COMMITTED);
	assert_int_equal((uintptr_t)p % alignment, 0);
	usable = pando__large_size(&h.view, at(p));
	assert_true(usable >= size && usable % PANDO__GRANULE == 0);
	assert_true(usable <= size + size / 4 + PANDO__PAGE);
	assert_int_equal(*pando__word(&h.view, at(p)), PANDO__OBJECT_LIVE);
	for (uint64_t o = at(p); o < at(p) + usable; o += PANDO__PAGE) {
		entry = h.view.page_table[o / PANDO__PAGE];
		assert_int_equal(PANDO__PAGE_OWNER(entry), f->me);
		assert_int_equal(PANDO__PAGE_CLASS(entry), PANDO__CLASS_LARGE);
	}
	return p;
}

static void give(struct pando__front *f, void *p)
{
	uint16_t *word = pando__word(&h.view, at(p));

	/* As the caller does: see object.c. */
	pando__store_release(word, PANDO__OBJECT_CACHED);
	pando__large_free(f, at(p), h.view.page_table[at(p) / PANDO__PAGE]);
}

static void drop(struct pando__front *f, void *p)
{
	give(f, p);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pando__word(&h.view, at(p))[i], PANDO__OBJECT_FREE);
}

static void all_is_free(void)
{
	pando__large_trim(a);
	pando__pages_trim(a);
	for (uint64_t i = h.view.first / PANDO__SPAN; i < COMMITTED / PANDO__SPAN; i++) {
		if (PANDO__SPAN_STATE(h.view.spans[i].word) != PANDO__SPAN_FREE)
			fail_msg("span %llu: %llx, pages %llx", (unsigned long long)i,
				 (unsigned long long)h.view.spans[i].word,
				 (unsigned long long)h.view.spans[i].pages);
	}
	assert_int_equal(h.view.clients[0].spans, 0);
}

static void sizes(void **state)
{
	(void)state;
	for (size_t size = PANDO__SMALL_MAX + 1; size < 3u << 20; size += size / 7) {
		char *p = alloc(a, PANDO__GRANULE, size);

		memset(p, 0xa5, pando__large_size(&h.view, at(p)));
		drop(a, p);
	}
	all_is_free();
}

static void small_ones_that_need_alignment(void **state)
{
	(void)state;
	for (size_t alignment = 64; alignment <= 64u << 20; alignment *= 2) {
		char *p = alloc(a, alignment, PANDO__SMALL_MAX + 1);
		char *q = alloc(a, alignment, 70 * KIB);

		memset(q, 1, 70 * KIB);
		drop(a, p);
		drop(a, q);
	}
	all_is_free();
}

static void what_cannot_be(void **state)
{
	const size_t no[] = {SIZE_MAX,	SIZE_MAX - PANDO__PAGE, SIZE + 1, SIZE, COMMITTED,
			     1ull << 47};

	(void)state;
	for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++) {
		errno = 0;
		assert_null(pando__large_alloc(a, PANDO__GRANULE, no[i]));
		assert_int_equal(errno, ENOMEM);
	}
	assert_null(pando__large_alloc(a, 1ull << 40, 4096));
	assert_int_equal(errno, ENOMEM);
	all_is_free();
}

static void quotas_reach_the_caller(void **state)
{
	struct pando__ledger_client *e = pando__ledger_client(h.ledger, 0);
	void *p[2000];
	unsigned int n = 0;

	(void)state;
	e->heap_quota = 4 * PANDO__SPAN;
	errno = 0;
	while (n < 2000 && (p[n] = pando__large_alloc(a, PANDO__GRANULE, 2 * KIB)))
		n++;
	assert_in_range(n, 400, 512);
	assert_int_equal(errno, EDQUOT);
	assert_null(pando__large_alloc(a, PANDO__GRANULE, 300 * KIB));
	assert_int_equal(errno, EDQUOT);
	while (n)
		drop(a, p[--n]);
	all_is_free();
}

static void a_peak_returns_its_memory(void **state)
{
	const uint64_t before = fake_heap_memory(&h);
	static void *p[6000];
	uint64_t peak;

	(void)state;
	for (int i = 0; i < 6000; i++) { /* 180 MiB or so */
		p[i] = alloc(a, PANDO__GRANULE, 2 * KIB + (size_t)(i * 7919 % 60000));
		memset(p[i], 1, 1);
	}
	peak = fake_heap_memory(&h);
	assert_true(peak > before + (170u << 20));
	for (int i = 0; i < 6000; i++)
		drop(a, p[i * 7 % 6000]); /* 7 and 6000 have no common divisor */
	/* The calling thread's cache holds a little; what is RESERVE the broker returns soon. */
	(void)pando__spans_purge(&h.view, PANDO__OWNER_BROKER, 0, UINT32_MAX);
	assert_true(fake_heap_memory(&h) < before + (16u << 20));
	all_is_free();
	assert_true(fake_heap_memory(&h) < before + peak / 100);
}

/* ---- loose pages ------------------------------------------------------------------------------ */

/* As the broker leaves the span of a dead client, all of whose objects there are shared. */
static void orphan(uint64_t index)
{
	struct pando__span *s = &h.view.spans[index];
	uint32_t *e = &h.view.page_table[index * PANDO__SPAN_PAGES];
	uint64_t pages = 0;

	for (uint64_t o = index * PANDO__SPAN; o < (index + 1) * PANDO__SPAN; o += PANDO__GRANULE)
		if (*pando__word(&h.view, o) == PANDO__OBJECT_LIVE) {
			uint64_t end = o + pando__large_size(&h.view, o);

			for (uint64_t i = o / PANDO__PAGE; i * PANDO__PAGE < end; i++)
				pages |= 1ull << i % PANDO__SPAN_PAGES;
			*pando__word(&h.view, o) = PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION);
		}
	for (unsigned int k = 0; k < PANDO__SPAN_PAGES; k++) {
		bool large = PANDO__PAGE_CLASS(e[k]) == PANDO__CLASS_LARGE;

		if (large && !(pages >> k & 1))
			e[k] = 0;
		else if (e[k])
			e[k] = PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, PANDO__PAGE_CLASS(e[k]),
						 large ? PANDO__PAGE_LOOSE : 0);
		pages |= (uint64_t)(e[k] != 0) << k;
	}
	pando__store_relaxed(&s->pages, pages);
	s->word = PANDO__SPAN_WORD(PANDO__OWNER_ORPHAN, PANDO__SPAN_ORPHAN,
				   PANDO__SPAN_COUNT(s->word) + 1);
	h.view.heap->orphans.value++;
}

struct giver {
	struct pando__front *f;
	void **p;
	unsigned int n;
};

static void *give_all(void *arg)
{
	struct giver *g = arg;

	for (unsigned int i = 0; i < g->n; i++)
		give(g->f, g->p[i]);
	return NULL;
}

/*
 * A span full of jemalloc's objects of `size` bytes that share pages, between a slab and a page of
 * another kind, so that it can be adopted: two lists of `n` neighbours. Its client dies, `a` has it.
 */
struct adopted {
	uint64_t span;
	uint64_t slab, tail; /* offsets of what stands before and behind */
	void *p[2][300];
	unsigned int n;
};

static void adopt_full(struct adopted *s, size_t size)
{
	struct pando__front *b = front(1);
	int64_t slab = pando__pages_alloc(b, PANDO__SLAB, PANDO__SLAB, 3);
	int64_t room = pando__pages_alloc(b, 55 * PANDO__PAGE, PANDO__PAGE, 3);
	int64_t tail = pando__pages_alloc(b, PANDO__PAGE, PANDO__PAGE, 3);

	assert_int_equal(tail, slab + 63 * PANDO__PAGE);
	s->slab = (uint64_t)slab;
	s->tail = (uint64_t)tail;
	s->span = s->slab / PANDO__SPAN;
	pando__pages_free(b, (uint64_t)room, 55 * PANDO__PAGE);
	for (s->n = 0;; s->n++) {
		for (int k = 0; k < 2; k++)
			s->p[k][s->n] = alloc(b, PANDO__GRANULE, size);
		if (at(s->p[0][s->n]) / PANDO__SPAN != s->span ||
		    at(s->p[1][s->n]) / PANDO__SPAN != s->span)
			break;
	}
	assert_true(s->n > 5);
	give(b, s->p[0][s->n]);
	give(b, s->p[1][s->n]);
	/* As if b was killed: what it has in private memory is of no use to anybody. */
	orphan(s->span);
	assert_int_equal(pando__span_adopt(a, 3), (int64_t)s->span);
}

/* Two threads free neighbours at the same time. */
static void adopted_pages_go_with_their_last_object(void **state)
{
	(void)state;
	for (unsigned int round = 0; round < 40; round++) {
		struct adopted s;
		struct giver g[2];
		pthread_t t[2];

		adopt_full(&s, 1280 + 256 * round);
		for (int k = 0; k < 2; k++) {
			g[k] = (struct giver){a, s.p[k], s.n};
			assert_int_equal(pthread_create(&t[k], NULL, give_all, &g[k]), 0);
		}
		join_threads(t, 2);
		assert_int_equal(h.view.spans[s.span].pages, 1ull << 63 | 0xff);
		for (uint64_t i = 8; i < 63; i++)
			assert_int_equal(h.view.page_table[s.span * PANDO__SPAN_PAGES + i], 0);
		for (uint64_t o = s.span * PANDO__SPAN; o < (s.span + 1) * PANDO__SPAN;
		     o += PANDO__GRANULE)
			assert_int_equal(*pando__word(&h.view, o), PANDO__OBJECT_FREE);
		pando__pages_free(a, s.slab, PANDO__SLAB);
		pando__pages_free(a, s.tail, PANDO__PAGE);
	}
}

#ifdef PANDO_INJECTION
/*
 * A thread is held up anywhere while it frees an object in a shared page. Meanwhile another one
 * frees all others, and the pages are in use again, if they can be: what is there then is left alone.
 */
static void who_frees_in_a_shared_page_is_slow(void **state)
{
	static const char *const points[] = {"heap.large.dead=nap", "heap.large.left=nap",
					     "heap.large.claimed=nap"};

	(void)state;
	for (unsigned int i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		struct adopted s;
		struct giver slow, rest;
		pthread_t t;
		int64_t again;

		adopt_full(&s, 1536);
		slow = (struct giver){a, &s.p[0][3], 1}; /* behind p[1][2], before p[1][3] */
		pando__inject_arm(points[i]);
		assert_int_equal(pthread_create(&t, NULL, give_all, &slow), 0);
		/* Its word is the first thing to change, under the lock. */
		while (pando__load_acquire(pando__word(&h.view, at(s.p[0][3]))) !=
		       PANDO__OBJECT_FREE)
			usleep(1000);
		rest = (struct giver){a, s.p[0], 3};
		give_all(&rest);
		rest = (struct giver){a, &s.p[0][4], s.n - 4};
		give_all(&rest);
		rest = (struct giver){a, s.p[1], s.n};
		give_all(&rest);
		/* As another client would have it, if the span had nothing else. */
		again = pando__pages_alloc(a, 55 * PANDO__PAGE, PANDO__PAGE, 1);
		assert_true(again > 0);
		for (uint64_t k = 0; k < 55 * PANDO__PAGE; k += PANDO__GRANULE)
			*pando__word(&h.view, (uint64_t)again + k) = PANDO__OBJECT_LIVE;
		join_threads(&t, 1);
		pando__inject_arm("");
		assert_int_equal(again / PANDO__SPAN, s.span); /* the others are gone first */
		for (uint64_t k = 0; k < 55 * PANDO__PAGE; k += PANDO__GRANULE) {
			assert_int_equal(*pando__word(&h.view, (uint64_t)again + k),
					 PANDO__OBJECT_LIVE);
			*pando__word(&h.view, (uint64_t)again + k) = PANDO__OBJECT_FREE;
		}
		for (uint64_t k = 0; k < 55; k++)
			assert_int_equal(h.view.page_table[(uint64_t)again / PANDO__PAGE + k],
					 PANDO__PAGE_ENTRY(1, 1, 0));
		pando__pages_free(a, (uint64_t)again, 55 * PANDO__PAGE);
		pando__pages_free(a, s.slab, PANDO__SLAB);
		pando__pages_free(a, s.tail, PANDO__PAGE);
	}
}
#endif

/* ---- fork ------------------------------------------------------------------------------------- */

static void a_child_leaves_its_parents_objects_alone(void **state)
{
	char *p[200];
	int status;
	pid_t pid;

	(void)state;
	for (int i = 0; i < 200; i++) {
		p[i] = alloc(a, PANDO__GRANULE, 1200 + (size_t)i * 300);
		memset(p[i], i, 1200);
	}
	for (int i = 0; i < 200; i += 2)
		drop(a, p[i]); /* some are in the cache that the child inherits */
	pid = fork();
	if (pid == 0) {
		struct pando__front *b = front(1);

		for (int i = 0; i < 1000; i++) {
			char *q =
				pando__large_alloc(b, PANDO__GRANULE, 1200 + (size_t)i % 200 * 300);

			if (!q || PANDO__PAGE_OWNER(h.view.page_table[at(q) / PANDO__PAGE]) != 2)
				_exit(1);
			memset(q, 0xff, 1200);
			if (i % 3)
				give(b, q);
		}
		pando__large_trim(b);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	for (int i = 1; i < 200; i += 2) {
		for (int k = 0; k < 1200; k++)
			assert_int_equal((unsigned char)p[i][k], i);
		drop(a, p[i]);
	}
}

/* ---- threads ---------------------------------------------------------------------------------- */

static const char *churn(struct pando__front *f, unsigned int seed)
{
	struct {
		unsigned char *p;
		size_t size;
		unsigned char stamp;
	} have[64];
	unsigned int n = 0;

	for (int i = 0; i < STEPS; i++) {
		if (n < 64 && rand_r(&seed) % 2) {
			unsigned int kind = (unsigned int)rand_r(&seed) % 100;
			size_t size = kind == 0	  ? 1u << 20
				      : kind < 10 ? 40000 + (size_t)rand_r(&seed) % 100000
						  : 1025 + (size_t)rand_r(&seed) % 16000;

			have[n].p = pando__large_alloc(f, 32u << rand_r(&seed) % 9, size);
			if (!have[n].p)
				return "no object";
			have[n].size = size;
			have[n].stamp = (unsigned char)rand_r(&seed);
			have[n].p[0] = have[n].p[size / 2] = have[n].p[size - 1] = have[n].stamp;
			n++;
		} else if (n) {
			unsigned int k = (unsigned int)rand_r(&seed) % n;

			if (have[k].p[0] != have[k].stamp ||
			    have[k].p[have[k].size / 2] != have[k].stamp ||
			    have[k].p[have[k].size - 1] != have[k].stamp)
				return "somebody wrote there";
			give(f, have[k].p);
			have[k] = have[--n];
		}
	}
	while (n)
		give(f, have[--n].p);
	return NULL;
}

static void *churner(void *arg)
{
	static unsigned int seeds;

	return (void *)(uintptr_t)churn(arg, pando__add_relaxed(&seeds, 1) + 1);
}

static void threads_of_two_clients(void **state)
{
	struct pando__front *b = front(1);
	pthread_t t[THREADS];

	(void)state;
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, churner, i % 2 ? a : b), 0);
	join_threads(t, THREADS);
	/* The threads are gone, their caches with them. */
	pando__front_free(b);
	all_is_free();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(sizes, setup, teardown),
		cmocka_unit_test_setup_teardown(small_ones_that_need_alignment, setup, teardown),
		cmocka_unit_test_setup_teardown(what_cannot_be, setup, teardown),
		cmocka_unit_test_setup_teardown(quotas_reach_the_caller, setup, teardown),
		cmocka_unit_test_setup_teardown(a_peak_returns_its_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(adopted_pages_go_with_their_last_object, setup,
						teardown),
#ifdef PANDO_INJECTION
		cmocka_unit_test_setup_teardown(who_frees_in_a_shared_page_is_slow, setup,
						teardown),
#endif
		cmocka_unit_test_setup_teardown(a_child_leaves_its_parents_objects_alone, setup,
						teardown),
		cmocka_unit_test_setup_teardown(threads_of_two_clients, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
