/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Read sections, grace periods and retired objects, on regions without a broker (fake_region.h):
 * several clients in one process, threads as readers, and a test that writes what a broker, or a
 * process that means harm, would.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <semaphore.h>
#include <string.h>
#include <time.h>

#include <pando/heap.h>

#include "common/atomic.h"
#include "common/inject.h"
#include "fake_region.h"

#define MIB (1ull << 20)

struct world {
	struct fake_heap heap;
	struct pando_region a, b; /* two clients */
};

static struct pando__rcu *rcu_of(const struct world *w)
{
	return (struct pando__rcu *)(void *)(w->heap.slots + PANDO__RCU_OFFSET);
}

static struct pando__slot *page_of(const struct world *w, uint32_t slot)
{
	return (struct pando__slot *)(void *)(w->heap.slots + (size_t)slot * PANDO__SLOT_SIZE);
}

static int begin_in(void **state, enum pando__rcu_mode mode)
{
	static struct world w;

	memset(&w, 0, sizeof(w));
	fake_heap_init(&w.heap, 1024 * MIB, 1024 * MIB, true);
	w.heap.ledger->rcu_mode = mode;
	fake_region_init(&w.a, &w.heap, 0);
	fake_region_init(&w.b, &w.heap, 1);
	*state = &w;
	return 0;
}

static int begin(void **state)
{
	return begin_in(state, PANDO__RCU_MEMBARRIER);
}

static int begin_fenced(void **state)
{
	return begin_in(state, PANDO__RCU_FENCED);
}

static int end(void **state)
{
	struct world *w = *state;

	pando__inject_arm("");
	fake_region_deinit(&w->a);
	fake_region_deinit(&w->b);
	fake_heap_deinit(&w->heap);
	return 0;
}

/* A thread that is in a read section from reader_start() to reader_end(). */
struct reader {
	struct pando_region *r;
	pthread_t thread;
	sem_t in, out;
	int rc;
};

static void *read_on(void *arg)
{
	struct reader *me = arg;

	me->rc = pando_read_lock(me->r);
	sem_post(&me->in);
	sem_wait(&me->out);
	if (me->rc == 0)
		me->rc = pando_read_unlock(me->r);
	return NULL;
}

static void reader_start(struct reader *me, struct pando_region *r)
{
	me->r = r;
	sem_init(&me->in, 0, 0);
	sem_init(&me->out, 0, 0);
	assert_int_equal(pthread_create(&me->thread, NULL, read_on, me), 0);
	sem_wait(&me->in);
	assert_int_equal(me->rc, 0);
}

static void reader_end(struct reader *me)
{
	sem_post(&me->out);
	assert_int_equal(pthread_join(me->thread, NULL), 0);
	assert_int_equal(me->rc, 0);
	sem_destroy(&me->in);
	sem_destroy(&me->out);
}

static double seconds(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void test_nesting(void **state)
{
	struct world *w = *state;
	const uint64_t *section = &page_of(w, 0)->readers[0].section;

	assert_int_equal(pando_read_unlock(&w->a), -EPERM);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pando_read_lock(&w->a), 0);
		assert_int_equal(*section & PANDO__SECTION_DEPTH, i + 1);
	}
	/* Another client in the same thread, in between. */
	assert_int_equal(pando_read_lock(&w->b), 0);
	assert_int_equal(page_of(w, 1)->readers[0].section, rcu_of(w)->grace);
	assert_int_equal(pando_read_unlock(&w->b), 0);
	assert_int_equal(pando_read_unlock(&w->b), -EPERM);
	for (int i = 3; i > 0; i--)
		assert_int_equal(pando_read_unlock(&w->a), 0);
	assert_int_equal(*section, 0);
	assert_int_equal(pando_read_unlock(&w->a), -EPERM);
	assert_non_null(strstr(pando_strerror_last(), "no read section"));
	for (unsigned int i = 0; i < PANDO__SECTION_DEPTH; i++)
		assert_int_equal(pando_read_lock(&w->a), 0);
	assert_int_equal(pando_read_lock(&w->a), -EOVERFLOW);
	assert_int_equal(*section & PANDO__SECTION_DEPTH, PANDO__SECTION_DEPTH);
	for (unsigned int i = 0; i < PANDO__SECTION_DEPTH; i++)
		assert_int_equal(pando_read_unlock(&w->a), 0);
	assert_int_equal(*section, 0);
}

static void test_register(void **state)
{
	struct world *w = *state;
	struct pando_rcu_stat st;

	assert_int_equal(pando_reader_unregister(&w->a), 0);
	assert_int_equal(pando_reader_register(&w->a), 0);
	assert_int_equal(pando_reader_register(&w->a), 0);
	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.readers, 1);
	assert_int_equal(st.reading, 0);
	assert_int_equal(pando_read_lock(&w->a), 0);
	assert_int_equal(pando_reader_unregister(&w->a), -EBUSY);
	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.reading, 1);
	assert_int_equal(pando_read_unlock(&w->a), 0);
	assert_int_equal(pando_reader_unregister(&w->a), 0);
	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.readers, 0);
	/* A structure of an older header gets what it knows. */
	memset(&st, 0xaa, sizeof(st));
	assert_int_equal(pando_rcu_stat_sized(&w->a, &st, 8), 0);
	assert_int_equal(st.region_mode, w->heap.ledger->rcu_mode);
	assert_int_equal(st.readers, 0xaaaaaaaaaaaaaaaaull);
}

static void test_fenced(void **state)
{
	struct world *w = *state;
	struct pando_rcu_stat st;

	assert_int_equal(pando_read_lock(&w->a), 0);
	assert_int_equal(w->a.rcu.reading->serial, 0); /* no fast path */
	assert_int_equal(pando_read_unlock(&w->a), 0);
	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.mode, PANDO_RCU_FENCED);
	assert_int_equal(st.region_mode, PANDO_RCU_FENCED);
}

/* This process may not call membarrier(), in a region whose readers rely on it. */
static void test_forbidden(void **state)
{
#ifdef PANDO_INJECTION
	struct world *w = *state;
	struct pando_rcu_stat st;
	void *p = pando_alloc(&w->a, 100);

	pando__inject_arm("rcu.membarrier.register=fail,rcu.membarrier.call=fail");
	assert_int_equal(pando_read_lock(&w->a), 0);
	assert_int_equal(w->a.rcu.reading->serial, 0);
	assert_int_equal(pando_read_unlock(&w->a), 0);
	pando__inject_arm("rcu.membarrier.register=fail");
	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.mode, PANDO_RCU_FENCED);
	assert_int_equal(st.region_mode, PANDO_RCU_MEMBARRIER);
	pando__inject_arm("rcu.membarrier.call=fail");
	assert_int_equal(pando_synchronize(&w->a, -1), -EOPNOTSUPP);
	assert_non_null(strstr(pando_strerror_last(), "membarrier()"));
	pando__inject_arm("rcu.membarrier.call=fail");
	assert_int_equal(pando_retire(&w->a, p, 0), -EOPNOTSUPP);
	pando__inject_arm("");
	assert_int_equal(pando_retire(&w->a, p, 0), 0);
#else
	(void)state;
	skip();
#endif
}

static void test_synchronize(void **state)
{
	struct world *w = *state;
	struct reader old, young;
	double wall, cpu;

	assert_int_equal(pando_synchronize(&w->a, -1), 0);
	assert_int_equal(pando_read_lock(&w->a), 0);
	assert_int_equal(pando_synchronize(&w->a, -1), -EDEADLK);
	assert_int_equal(pando_read_unlock(&w->a), 0);
	reader_start(&old, &w->b);
	assert_int_equal(pando_synchronize(&w->a, 0), -ETIMEDOUT);
	assert_non_null(strstr(pando_strerror_last(), "thread"));
	/* It sleeps while it waits. */
	wall = seconds(CLOCK_MONOTONIC);
	cpu = seconds(CLOCK_THREAD_CPUTIME_ID);
	assert_int_equal(pando_synchronize(&w->a, 300), -ETIMEDOUT);
	wall = seconds(CLOCK_MONOTONIC) - wall;
	cpu = seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	assert_true(wall > 0.29);
	assert_true(cpu < 0.1);
	/* Readers that began later are in nobody's way. */
	reader_start(&young, &w->b);
	assert_true(page_of(w, 1)->readers[1].section > page_of(w, 1)->readers[0].section);
	reader_end(&old);
	assert_int_equal(pando_synchronize(&w->a, 0), -ETIMEDOUT);
	reader_end(&young);
	assert_int_equal(pando_synchronize(&w->a, 0), 0);
}

static void *wait_then(void *arg)
{
	struct world *w = arg;

	return (void *)(intptr_t)pando_synchronize(&w->a, 20000);
}

/* Who waits is woken by the reader, long before it would wake up by itself. */
static void test_woken(void **state)
{
	struct world *w = *state;
	double took = 1e9;

	for (int i = 0; i < 5 && took > 0.5; i++) {
		struct reader old;
		pthread_t waiter;
		void *rc;

		reader_start(&old, &w->b);
		assert_int_equal(pthread_create(&waiter, NULL, wait_then, w), 0);
		while (pando__load_acquire(&rcu_of(w)->waiting) == 0)
			sched_yield();
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
		took = seconds(CLOCK_MONOTONIC);
		reader_end(&old);
		assert_int_equal(pthread_join(waiter, &rc), 0);
		took = seconds(CLOCK_MONOTONIC) - took;
		assert_int_equal((intptr_t)rc, 0);
	}
	assert_true(took < 0.5);
}

/* A section that was begun with a counter's value of long ago: it is waited for, whatever came since. */
static void test_old_value(void **state)
{
	struct world *w = *state;
	struct pando__slot *page = page_of(w, 1);
	const uint64_t old = rcu_of(w)->grace;

	for (int i = 0; i < 7; i++)
		assert_int_equal(pando_synchronize(&w->a, -1), 0);
	page->readers_high = 1;
	pando__store_release(&page->readers[0].section, old);
	assert_int_equal(pando_synchronize(&w->a, 0), -ETIMEDOUT);
	pando__store_release(&page->readers[0].section, 0);
	assert_int_equal(pando_synchronize(&w->a, 0), 0);
}

/* A dead client's sections count for nobody. */
static void test_dead_reader(void **state)
{
	struct world *w = *state;
	struct pando__ledger_client *e = pando__ledger_client(w->heap.ledger, 1);
	struct reader old;

	reader_start(&old, &w->b);
	assert_int_equal(pando_synchronize(&w->a, 0), -ETIMEDOUT);
	e->word = PANDO__CLIENT_WORD(1, PANDO__CLIENT_REAPING);
	assert_int_equal(pando_synchronize(&w->a, 0), 0);
	e->word = PANDO__CLIENT_WORD(1, PANDO__CLIENT_LIVE);
	reader_end(&old);
}

static void test_many_threads(void **state)
{
	enum { MANY = 200 };
	static struct reader readers[MANY];
	struct world *w = *state;
	struct pando_rcu_stat st;

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < MANY; i++)
			reader_start(&readers[i], &w->b);
		assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
		assert_int_equal(st.readers, MANY);
		assert_int_equal(st.reading, MANY);
		/* 39 in the own page, 64 in each further one; and again the same ones. */
		assert_int_equal(rcu_of(w)->pages_high, (MANY - 39 + 63) / 64);
		assert_int_equal(rcu_of(w)->page_owner[0], 2 | 1 << 24);
		assert_int_equal(pando_synchronize(&w->a, 0), -ETIMEDOUT);
		for (int i = 0; i < MANY - 1; i++)
			reader_end(&readers[i]);
		assert_int_equal(pando_synchronize(&w->a, 0), -ETIMEDOUT);
		reader_end(&readers[MANY - 1]);
		assert_int_equal(pando_synchronize(&w->a, 0), 0);
		assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
		assert_int_equal(st.readers, 0);
	}
}

static void test_table_full(void **state)
{
	static struct reader readers[PANDO__SLOT_READERS];
	struct world *w = *state;

	for (unsigned int i = 0; i < PANDO__READER_PAGES; i++)
		rcu_of(w)->page_owner[i] = 60 | 1 << 24;
	for (unsigned int i = 0; i < PANDO__SLOT_READERS; i++)
		reader_start(&readers[i], &w->b);
	assert_int_equal(pando_read_lock(&w->b), -EUSERS);
	assert_non_null(strstr(pando_strerror_last(), "reader table"));
	assert_int_equal(pando_read_unlock(&w->b), -EPERM);
	reader_end(&readers[0]);
	assert_int_equal(pando_read_lock(&w->b), 0);
	assert_int_equal(pando_read_unlock(&w->b), 0);
	for (unsigned int i = 1; i < PANDO__SLOT_READERS; i++)
		reader_end(&readers[i]);
	memset(rcu_of(w)->page_owner, 0, sizeof(rcu_of(w)->page_owner));
}

/* What a client can write there does not lead a scan astray. */
static void test_rubbish(void **state)
{
	struct world *w = *state;
	struct pando__rcu_count count;
	struct pando__rcu_view v = pando__rcu_view(w->heap.ledger, w->heap.slots);
	struct pando__grace_scan scan = {.target = rcu_of(w)->grace};
	uint64_t x = 1;

	for (int round = 0; round < 300; round++) {
		uint64_t *owner = rcu_of(w)->page_owner;

		for (size_t i = 0; i < PANDO__READER_PAGES; i++) {
			x = x * 6364136223846793005ull + 1442695040888963407ull;
			owner[i] = x >> (x >> 60) * 4;
		}
		rcu_of(w)->pages_high = (uint32_t)(x >> 32);
		page_of(w, 1)->readers_high = (uint32_t)x;
		page_of(w, 1)->retired_bytes = page_of(w, 0)->retired_bytes = x;
		scan.at = (struct pando__reader_at){.behind = x & 1};
		(void)pando__grace_over(&v, &scan);
		pando__rcu_count(&v, &count);
		assert_true(count.readers <= 65536);
	}
	memset(rcu_of(w)->page_owner, 0, sizeof(rcu_of(w)->page_owner));
	rcu_of(w)->pages_high = 0;
	memset(page_of(w, 0), 0, PANDO__SLOT_SIZE);
	memset(page_of(w, 1), 0, PANDO__SLOT_SIZE);
}

static uint64_t objects(struct pando_region *r)
{
	struct pando_heap_stat st;

	assert_int_equal(pando_heap_stat(r, &st), 0);
	return st.objects;
}

static void *shared_object(struct pando_region *r, size_t size)
{
	void *p = pando_alloc(r, size);

	assert_non_null(p);
	assert_int_equal(pando_share(r, p), 0);
	return p;
}

static void test_retire(void **state)
{
	struct world *w = *state;
	struct pando__ledger_client *e = pando__ledger_client(w->heap.ledger, 0);
	struct pando_rcu_stat st;
	struct reader old;
	void *p[3];

	/* Shared, made by another client; private; large. */
	p[0] = shared_object(&w->b, 100);
	p[1] = pando_alloc(&w->a, 100);
	p[2] = shared_object(&w->a, 100000);
	reader_start(&old, &w->b);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pando_retire(&w->a, p[i], 0), 0);
		assert_int_equal(pando_retire(&w->a, p[i], 0), -EALREADY);
		assert_int_equal(pando_retire(&w->b, p[i], 0), -EPERM);
		memset(p[i], 1, 100);
	}
	assert_int_equal(objects(&w->a), 3);
	assert_int_equal(pando_rcu_stat(&w->b, &st), 0);
	assert_int_equal(st.retired, 3);
	assert_true(st.retired_bytes >= 100200 && st.retired_bytes < 120000);
	assert_int_equal(st.own_retired, 0);
	/* Of the dead, too: they are not free yet. */
	e->word = PANDO__CLIENT_WORD(1, PANDO__CLIENT_REAPING);
	assert_int_equal(pando_rcu_stat(&w->b, &st), 0);
	assert_int_equal(st.retired, 3);
	e->word = PANDO__CLIENT_WORD(1, PANDO__CLIENT_LIVE);
	assert_int_equal(pando_reclaim(&w->a), 3);
	reader_end(&old);
	assert_int_equal(pando_reclaim(&w->a), 0);
	assert_int_equal(objects(&w->a), 0);
	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.retired, 0);
	assert_int_equal(st.retired_bytes, 0);
	assert_int_equal(rcu_of(w)->retired_bytes, 0);
}

static void test_retire_wrong(void **state)
{
	struct world *w = *state;
	char *p = pando_alloc(&w->a, 100), *held = pando_alloc(&w->b, 100);
	int local;

	assert_int_equal(pando_reclaim(&w->b), 0); /* before anything was retired */
	assert_int_equal(pando_retire(&w->a, &local, 0), -EINVAL);
	assert_int_equal(pando_retire(&w->a, p + 8, 0), -EINVAL);
	assert_int_equal(pando_retire(&w->a, p, 0x80), -EINVAL);
	assert_int_equal(pando_retire(&w->a, held, 0), -EPERM); /* private to another */
	pando_free(&w->b, held);
	pando_free(&w->a, p);
	assert_int_equal(pando_retire(&w->a, p, 0), -EINVAL);
	assert_int_equal(page_of(w, 0)->retired, 0);
	assert_int_equal(rcu_of(w)->retired_bytes, 0);
}

static void test_many_retired(void **state)
{
	enum { MANY = 20000 };
	static void *p[MANY];
	struct world *w = *state;
	struct reader old;

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < MANY; i++)
			p[i] = shared_object(&w->a, 32);
		reader_start(&old, &w->b);
		for (int i = 0; i < MANY; i++)
			assert_int_equal(pando_retire(&w->a, p[i], 0), 0);
		for (int i = 0; i < MANY; i += 100)
			assert_int_equal(pando_retire(&w->a, p[i], 0), -EALREADY);
		assert_int_equal(objects(&w->a), MANY);
		reader_end(&old);
		assert_int_equal(pando_synchronize(&w->a, -1), 0);
		assert_int_equal(objects(&w->a), 0);
	}
	/* Without readers nothing piles up. */
	for (int i = 0; i < MANY; i++) {
		assert_int_equal(pando_retire(&w->a, shared_object(&w->a, 32), 0), 0);
		assert_true(page_of(w, 0)->retired <= 64);
	}
	assert_int_equal(pando_reclaim(&w->a), 0);
	assert_int_equal(pando_heap_check(&w->a), 0);
}

static void *unlock_later(void *arg)
{
	struct reader *old = arg;

	nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	sem_post(&old->out);
	return NULL;
}

static void test_limit(void **state)
{
	struct world *w = *state;
	struct pando_rcu_stat st;
	struct reader old;
	pthread_t later;
	void *p;

	assert_int_equal(pando_rcu_stat(&w->a, &st), 0);
	assert_int_equal(st.retired_limit, 128 * MIB); /* an eighth */
	assert_int_equal(pando_retire_limit(&w->a, 10000), 0);
	reader_start(&old, &w->b);
	for (int i = 0; i < 9; i++)
		assert_int_equal(pando_retire(&w->a, shared_object(&w->a, 1024), 0), 0);
	p = shared_object(&w->a, 1024);
	assert_int_equal(pando_retire(&w->a, p, PANDO_NOWAIT), -EAGAIN);
	assert_non_null(strstr(pando_strerror_last(), "wait for readers"));
	assert_int_equal(pando_owner(&w->a, p, NULL), PANDO_HOLDING_SHARED); /* as it was */
	assert_int_equal(pando_read_lock(&w->a), 0); /* it would wait for itself */
	assert_int_equal(pando_retire(&w->a, p, 0), -EAGAIN);
	assert_int_equal(pando_read_unlock(&w->a), 0);
	/* Another client, which has none waiting, need not wait for this one. */
	assert_int_equal(pando_retire(&w->b, shared_object(&w->b, 1024), PANDO_NOWAIT), 0);
	assert_int_equal(pando_retire(&w->b, shared_object(&w->b, 1024), PANDO_NOWAIT), -EAGAIN);
	/* It waits, and gets through. */
	assert_int_equal(pthread_create(&later, NULL, unlock_later, &old), 0);
	assert_int_equal(pando_retire(&w->a, p, 0), 0);
	pthread_join(later, NULL);
	sem_post(&old.out);
	reader_end(&old);
	assert_int_equal(pando_synchronize(&w->a, -1), 0);
	assert_int_equal(pando_synchronize(&w->b, -1), 0);
	/* Somebody was killed between two counts: found when it matters. */
	rcu_of(w)->retired_bytes = 1ull << 60;
	assert_int_equal(pando_retire(&w->a, shared_object(&w->a, 1024), PANDO_NOWAIT), 0);
	assert_true(rcu_of(w)->retired_bytes < 10000);
	assert_int_equal(pando_retire_limit(&w->a, 0), 0);
}

/* Regions that come and go under threads that have read in them. */
static void test_reopened(void **state)
{
	struct world *w = *state;

	for (int i = 0; i < 100; i++) {
		assert_int_equal(pando_read_lock(&w->a), 0);
		assert_int_equal(pando_read_unlock(&w->a), 0);
		fake_region_deinit(&w->a);
		memset(page_of(w, 0), 0, PANDO__SLOT_SIZE);
		fake_region_init(&w->a, &w->heap, 0);
		assert_int_equal(pando_read_unlock(&w->a), -EPERM);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_nesting, begin, end),
		cmocka_unit_test_setup_teardown(test_nesting, begin_fenced, end),
		cmocka_unit_test_setup_teardown(test_register, begin, end),
		cmocka_unit_test_setup_teardown(test_fenced, begin_fenced, end),
		cmocka_unit_test_setup_teardown(test_forbidden, begin, end),
		cmocka_unit_test_setup_teardown(test_synchronize, begin, end),
		cmocka_unit_test_setup_teardown(test_synchronize, begin_fenced, end),
		cmocka_unit_test_setup_teardown(test_woken, begin, end),
		cmocka_unit_test_setup_teardown(test_woken, begin_fenced, end),
		cmocka_unit_test_setup_teardown(test_old_value, begin, end),
		cmocka_unit_test_setup_teardown(test_dead_reader, begin, end),
		cmocka_unit_test_setup_teardown(test_many_threads, begin, end),
		cmocka_unit_test_setup_teardown(test_table_full, begin, end),
		cmocka_unit_test_setup_teardown(test_rubbish, begin, end),
		cmocka_unit_test_setup_teardown(test_retire, begin, end),
		cmocka_unit_test_setup_teardown(test_retire_wrong, begin, end),
		cmocka_unit_test_setup_teardown(test_many_retired, begin, end),
		cmocka_unit_test_setup_teardown(test_limit, begin, end),
		cmocka_unit_test_setup_teardown(test_limit, begin_fenced, end),
		cmocka_unit_test_setup_teardown(test_reopened, begin, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
