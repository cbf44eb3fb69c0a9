/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The heap's upper half on a region without a broker: fast paths, slabs, threads, owners, misuse.
 *
 * Several clients are several fronts of this process, each with a region handle of its own; what
 * the broker would do is called directly.
 */
#include "fake_heap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"

#define MIB (1ull << 20)
#define CLIENTS 3u

/* A region as libshm has it, as far as the allocator knows. */
struct pando_region {
	struct pando__gate gate;
	uint32_t slot;
	bool readonly;
};

static struct fake_heap heap;
static struct pando_region regions[CLIENTS];
static struct pando_region *const r = &regions[0];

static void attach(uint32_t slot, uint64_t generation)
{
	struct pando__ledger_client *e = pando__ledger_client(heap.ledger, slot);

	e->pid = getpid();
	pando__store_release(&e->word, PANDO__CLIENT_WORD(generation, PANDO__CLIENT_LIVE));
	if (heap.ledger->clients_high <= slot)
		pando__store_release(&heap.ledger->clients_high, slot + 1);
}

struct pando__front *pando__region_front(struct pando_region *region)
{
	static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
	struct pando__front_options o = {
		.region = region,
		.base = heap.view.base,
		.ledger = heap.ledger,
		.slots = heap.slots,
		.slot = region->slot,
		.generation = 1,
	};
	struct pando__front *f = pando__load_acquire(&region->gate.front);

	if (f)
		return f;
	if (region->readonly) {
		errno = EACCES;
		return NULL;
	}
	pthread_mutex_lock(&making);
	f = region->gate.front;
	if (!f) {
		attach(region->slot, 1);
		f = pando__front_new(&o);
		if (f) {
			pando__store_release(&region->gate.front, f);
			pando__store_release(&region->gate.serial, f->serial);
		}
	}
	pthread_mutex_unlock(&making);
	return f;
}

/* The client's process ends, orderly or not: the broker takes what it had. */
static void dies(uint32_t slot)
{
	struct pando__ledger_client *e = pando__ledger_client(heap.ledger, slot);
	struct pando__slot *page =
		(struct pando__slot *)(heap.slots + (size_t)slot * PANDO__SLOT_SIZE);
	struct pando__reclaimed out;
	struct pando__front *f = regions[slot].gate.front;

	regions[slot].gate.serial = 0;
	regions[slot].gate.front = NULL;
	if (f)
		pando__front_free(f);
	pando__store_release(&e->word, PANDO__CLIENT_WORD(1, PANDO__CLIENT_REAPING));
	assert_int_equal(pando__heap_reap(&heap.view, heap.slots, slot, &out), 0);
	assert_int_equal(pando__heap_sweep(&heap.view, &out), 0);
	memset(page, 0, sizeof(*page));
	pando__store_release(&e->word, PANDO__CLIENT_WORD(2, PANDO__CLIENT_FREE));
}

static unsigned int spans_in_use(void)
{
	unsigned int n = 0;

	for (uint64_t i = heap.view.first / PANDO__SPAN; i < heap.view.end / PANDO__SPAN; i++) {
		enum pando__span_state s =
			PANDO__SPAN_STATE(pando__load_acquire(&heap.view.spans[i].word));

		n += s != PANDO__SPAN_FREE && s != PANDO__SPAN_RESERVE;
	}
	return n;
}

/* Nothing is left: spans, words, bits of pages, names in the page table. */
static void assert_empty(void)
{
	const struct pando__view *v = &heap.view;

	assert_int_equal(spans_in_use(), 0);
	for (uint64_t i = v->first / PANDO__SPAN; i < v->end / PANDO__SPAN; i++) {
		if (PANDO__SPAN_STATE(v->spans[i].word) == PANDO__SPAN_FREE && v->lazy)
			continue; /* its part of the tables may have no memory */
		assert_int_equal(v->spans[i].pages, 0);
		for (uint64_t k = 0; k < PANDO__SPAN_PAGES; k++)
			assert_int_equal(v->page_table[i * PANDO__SPAN_PAGES + k], 0);
		for (uint64_t k = 0; k < PANDO__SPAN / PANDO__GRANULE; k++)
			assert_int_equal(v->objects[i * (PANDO__SPAN / PANDO__GRANULE) + k], 0);
	}
}

static void trim(struct pando_region *region)
{
	assert_int_equal(pando_heap_trim(region), 0);
}

static int start(uint64_t committed, bool lazy)
{
	fake_heap_init(&heap, 64 * MIB, committed, lazy);
	memset(regions, 0, sizeof(regions));
	for (uint32_t i = 0; i < CLIENTS; i++)
		regions[i].slot = i;
	return 0;
}

static int plain(void **state)
{
	(void)state;
	return start(64 * MIB, false);
}

static int lazy(void **state)
{
	(void)state;
	return start(64 * MIB, true);
}

static int stop(void **state)
{
	(void)state;
	pando_heap_on_misuse(NULL, NULL);
	for (uint32_t i = 0; i < CLIENTS; i++)
		if (regions[i].gate.front)
			dies(i);
	fake_heap_deinit(&heap);
	return 0;
}

static struct {
	enum pando_misuse what;
	const void *p;
	unsigned int calls;
	char sentence[PANDO__ERROR_MAX];
} misuse;

static void note_misuse(struct pando_region *region, const void *p, enum pando_misuse what,
			const char *sentence, void *arg)
{
	(void)region;
	assert_ptr_equal(arg, &misuse);
	misuse.what = what;
	misuse.p = p;
	misuse.calls++;
	strncpy(misuse.sentence, sentence, sizeof(misuse.sentence) - 1);
}

static void assert_misuse(struct pando_region *region, void *p, enum pando_misuse what)
{
	misuse.calls = 0;
	pando_heap_on_misuse(note_misuse, &misuse);
	pando_free(region, p);
	assert_int_equal(misuse.calls, 1);
	assert_int_equal(misuse.what, what);
	assert_ptr_equal(misuse.p, p);
	assert_non_null(strstr(misuse.sentence, "freeing"));
	pando_heap_on_misuse(NULL, NULL);
}

static void sizes(void **state)
{
	static void *p[PANDO__SMALL_MAX + 2];

	(void)state;
	for (size_t size = 0; size <= PANDO__SMALL_MAX; size++) {
		p[size] = pando_alloc(r, size);
		assert_non_null(p[size]);
		assert_int_equal((uintptr_t)p[size] % PANDO_HEAP_GRANULE, 0);
		assert_true(pando_usable_size(r, p[size]) >= size);
		/* At most a granule, or a quarter, is lost. */
		assert_true(pando_usable_size(r, p[size]) <= size + 32 + size / 4);
		memset(p[size], (int)size, size);
	}
	for (size_t size = 0; size <= PANDO__SMALL_MAX; size++) {
		for (size_t i = 0; i < size; i++)
			assert_int_equal(((unsigned char *)p[size])[i], (unsigned char)size);
		pando_free(r, p[size]);
	}
	pando_free(r, NULL);
	trim(r);
	assert_empty();
}

static void zeroed(void **state)
{
	unsigned char *p = pando_alloc(r, 200);
	volatile size_t most = SIZE_MAX / 2;

	(void)state;
	memset(p, 0xff, 200);
	pando_free(r, p);
	p = pando_calloc(r, 20, 10);
	for (int i = 0; i < 200; i++)
		assert_int_equal(p[i], 0);
	pando_free(r, p);
	errno = 0;
	assert_null(pando_calloc(r, most, 3));
	assert_int_equal(errno, ENOMEM);
}

static void aligned(void **state)
{
	(void)state;
	for (size_t alignment = 1; alignment <= PANDO__SMALL_MAX; alignment *= 2)
		for (size_t size = 0; size <= PANDO__SMALL_MAX; size += 33) {
			void *p = pando_alloc_aligned(r, alignment, size);
			void *q = pando_alloc_aligned(r, alignment, size);

			assert_non_null(p);
			assert_int_equal((uintptr_t)p % alignment, 0);
			assert_int_equal((uintptr_t)q % alignment, 0);
			assert_true(pando_usable_size(r, q) >= size);
			pando_free(r, p);
			pando_free(r, q);
		}
	errno = 0;
	assert_null(pando_alloc_aligned(r, 48, 10));
	assert_int_equal(errno, EINVAL);
	errno = 0;
	assert_null(pando_alloc_aligned(r, 0, 10));
	assert_int_equal(errno, EINVAL);
	trim(r);
	assert_empty();
}

static void misused(void **state)
{
	char *p = pando_alloc(r, 100), *q = pando_alloc(r, 100), local;

	(void)state;
	assert_misuse(r, p + 1, PANDO_MISUSE_INTERIOR);
	assert_misuse(r, p + 32, PANDO_MISUSE_INTERIOR);
	assert_misuse(r, p + 64, PANDO_MISUSE_INTERIOR);
	assert_misuse(r, &local, PANDO_MISUSE_NOT_OURS);
	assert_misuse(r, heap.view.base, PANDO_MISUSE_NOT_OURS);
	assert_misuse(r, heap.view.page_table, PANDO_MISUSE_NOT_OURS);
	assert_misuse(r, heap.view.base + heap.view.end, PANDO_MISUSE_NOT_OURS);
	assert_misuse(r, (void *)8, PANDO_MISUSE_NOT_OURS);
	assert_misuse(r, heap.view.base + heap.view.end - 4096, PANDO_MISUSE_DOUBLE_FREE);
	pando_free(r, p);
	assert_misuse(r, p, PANDO_MISUSE_DOUBLE_FREE); /* in the magazine */
	pando_free(r, q);
	trim(r);
	assert_misuse(r, p, PANDO_MISUSE_DOUBLE_FREE); /* its slab is gone */
	assert_misuse(r, p + 1, PANDO_MISUSE_INTERIOR);
	assert_empty();
	p = pando_alloc(r, 100);
	assert_int_equal(pando_transfer(r, p, (pando_holder)2 | 1ull << 16), -ESRCH);
	assert_true(pando_self(&regions[1]) == ((pando_holder)2 | 1ull << 16));
	assert_int_equal(pando_transfer(r, p, pando_self(&regions[1])), 0);
	assert_misuse(r, p, PANDO_MISUSE_FOREIGN);
	regions[2].readonly = true;
	assert_misuse(&regions[2], p, PANDO_MISUSE_FOREIGN);
	regions[2].readonly = false;
	pando_free(&regions[1], p);
	assert_misuse(&regions[1], p, PANDO_MISUSE_DOUBLE_FREE); /* not collected yet */
	assert_misuse(r, p, PANDO_MISUSE_DOUBLE_FREE);
}

static void misuse_aborts(void **state)
{
	void *p = pando_alloc(r, 10);
	int status;
	pid_t pid;

	(void)state;
	pando_free(r, p);
	pid = fork();
	if (pid == 0) {
		close(STDERR_FILENO);
		/* The parent's front is not the child's: as a client of its own, the same. */
		r->gate.serial = 0;
		r->gate.front = NULL;
		r->slot = 2;
		pando_free(r, p);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* Two objects in one slab, freed at one instant by two threads: seen when one of them comes out. */
static void twice_at_once(void **state)
{
	void *p = pando_alloc(r, 64), *q;
	uint16_t *word = pando__word(&heap.view, pando__offset(&heap.view, p));

	(void)state;
	pando_free(r, p);
	pando__store_relaxed(word, PANDO__OBJECT_LIVE); /* as the second thread saw it */
	pando_free(r, p);
	q = pando_alloc(r, 64);
	assert_ptr_equal(q, p);
	assert_ptr_not_equal(pando_alloc(r, 64), p);
	pando_free(r, q);
	trim(r);
}

static void freed_by_others(void **state)
{
	enum { N = 3000 };
	static void *p[N];
	struct pando__heap_client *line = &heap.view.clients[0];

	(void)state;
	assert_true(pando_self(&regions[1]) != 0);
	for (int round = 0; round < 3; round++) {
		uint64_t before;

		for (int i = 0; i < N; i++)
			assert_non_null(p[i] = pando_alloc(r, 48));
		before = spans_in_use();
		for (int i = 0; i < N; i++) {
			pando_free(&regions[1], p[i]);
			assert_int_equal(pando_owner(r, p[i], NULL), PANDO_HOLDING_NONE);
		}
		assert_int_equal(line->remote, 1);
		/* The owner finds them when it runs out, and takes no more memory. */
		for (int i = 0; i < N; i++)
			assert_non_null(p[i] = pando_alloc(r, 48));
		assert_int_equal(line->remote, 0);
		assert_true(spans_in_use() <= before);
		for (int i = 0; i < N; i++)
			pando_free(round == 2 ? &regions[1] : r, p[i]);
	}
	trim(r);
	assert_int_equal(spans_in_use(), 0);
}

static void handed_on(void **state)
{
	pando_holder me = pando_self(r), other = pando_self(&regions[1]), holder;
	void *p = pando_alloc(r, 40), *q = pando_alloc(r, 40);

	(void)state;
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_PRIVATE);
	assert_true(holder == me);
	assert_int_equal(pando_owner(&regions[1], p, &holder), PANDO_HOLDING_PRIVATE);
	assert_true(holder == me);
	assert_int_equal(pando_transfer(&regions[1], p, other), -EPERM);
	assert_int_equal(pando_share(&regions[1], p), -EPERM);
	assert_int_equal(pando_transfer(r, (char *)p + 32, other), -EINVAL);
	assert_int_equal(pando_share(r, &holder), -EINVAL);
	assert_int_equal(pando_transfer(r, p, (pando_holder)PANDO__HEAP_CLIENTS + 1), -EUSERS);
	assert_int_equal(pando_transfer(r, p, other + (1ull << 16)), -ESRCH);
	assert_int_equal(pando_transfer(r, p, 0), -ESRCH);
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_PRIVATE);

	assert_int_equal(pando_transfer(r, p, other), 0);
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_HELD);
	assert_true(holder == other);
	assert_int_equal(pando_transfer(r, p, me), -EPERM);
	assert_int_equal(pando_transfer(&regions[1], p, me), 0);
	assert_int_equal(pando_transfer(r, p, me), 0);
	assert_int_equal(pando_share(r, p), 0);
	assert_int_equal(pando_share(&regions[1], p), 0);
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_SHARED);
	assert_true(holder == 0);
	assert_int_equal(pando_transfer(&regions[1], p, other), 0);
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_HELD);
	pando_free(&regions[1], p);
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_NONE);
	/* The owner of the span frees what is shared: no detour. */
	assert_int_equal(pando_share(r, q), 0);
	pando_free(r, q);
	assert_ptr_equal(pando_alloc(r, 40), q);
	pando_free(r, q);
	trim(r);
	assert_empty();
}

static void resized(void **state)
{
	char *p = pando_realloc(r, NULL, 20);
	pando_holder other = pando_self(&regions[1]), holder;

	(void)state;
	for (size_t size = 20; size <= PANDO__SMALL_MAX; size += 50) {
		memset(p, 7, 20);
		p = pando_realloc(r, p, size);
		assert_non_null(p);
		for (int i = 0; i < 20; i++)
			assert_int_equal(p[i], 7);
		assert_true(pando_usable_size(r, p) >= size);
	}
	assert_int_equal(pando_share(r, p), 0);
	p = pando_realloc(r, p, 0);
	assert_non_null(p);
	assert_int_equal(pando_usable_size(r, p), 32);
	assert_int_equal(pando_owner(r, p, NULL), PANDO_HOLDING_SHARED);
	/* Another client may do it with a shared one, and it stays shared. */
	p = pando_realloc(&regions[1], p, 500);
	assert_int_equal(pando_owner(r, p, NULL), PANDO_HOLDING_SHARED);
	assert_int_equal(pando_transfer(r, p, other), 0);
	p = pando_realloc(&regions[1], p, 1000);
	assert_int_equal(pando_owner(r, p, &holder), PANDO_HOLDING_HELD);
	assert_true(holder == other);
	misuse.calls = 0;
	pando_heap_on_misuse(note_misuse, &misuse);
	assert_null(pando_realloc(r, p, 10));
	assert_int_equal(misuse.what, PANDO_MISUSE_FOREIGN);
	assert_non_null(strstr(misuse.sentence, "resizing"));
	assert_null(pando_realloc(&regions[1], p + 32, 10));
	assert_int_equal(misuse.what, PANDO_MISUSE_INTERIOR);
	pando_heap_on_misuse(NULL, NULL);
	pando_free(&regions[1], p);
	trim(&regions[1]);
	trim(r);
	assert_empty();
}

static void reaped(void **state)
{
	enum { N = 2000 };
	static char *p[N];
	pando_holder other = pando_self(&regions[1]);
	unsigned int before;

	(void)state;
	for (int i = 0; i < N; i++) {
		p[i] = pando_alloc(r, 64);
		p[i][0] = (char)i;
		if (i % 4 == 1)
			assert_int_equal(pando_share(r, p[i]), 0);
		else if (i % 4 == 2)
			assert_int_equal(pando_transfer(r, p[i], other), 0);
	}
	before = spans_in_use();
	dies(0);
	for (int i = 0; i < N; i++) {
		enum pando_holding h = pando_owner(&regions[1], p[i], NULL);

		assert_int_equal(h, i % 4 == 1	 ? PANDO_HOLDING_SHARED
				    : i % 4 == 2 ? PANDO_HOLDING_HELD
						 : PANDO_HOLDING_NONE);
		if (h != PANDO_HOLDING_NONE)
			assert_int_equal(p[i][0], (char)i);
	}
	/* The living adopt its slabs: half of their objects are free. */
	for (int i = 0; i < N; i += 4) {
		assert_non_null(p[i] = pando_alloc(&regions[1], 64));
		assert_non_null(p[i + 3] = pando_alloc(&regions[1], 64));
	}
	assert_int_equal(spans_in_use(), before);
	for (int i = 0; i < N; i++)
		pando_free(&regions[1], p[i]);
	trim(&regions[1]);
	assert_empty();
}

static void exhausted(void **state)
{
	void **first = NULL, **p;
	unsigned int n = 0, again = 0;

	(void)state;
	for (; (p = pando_alloc(r, 512)); n++) {
		*p = first;
		first = p;
	}
	assert_int_equal(errno, ENOMEM);
	assert_true(n > 40 * MIB / 512);
	for (unsigned int i = 0; i < 7; i++) {
		p = first;
		first = *p;
		pando_free(r, p);
	}
	for (; (p = pando_alloc(r, 512)); again++) {
		*p = first;
		first = p;
	}
	assert_int_equal(again, 7);
	while ((p = first)) {
		first = *p;
		pando_free(r, p);
	}
	trim(r);
	assert_empty();
}

/* What one client has after touching every class. */
static void footprint(void **state)
{
	uint64_t before = fake_heap_memory(&heap), after;
	void *p[PANDO__CLASSES];

	(void)state;
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++)
		assert_non_null(p[class] = pando_alloc(r, pando__classes[class].size));
	after = fake_heap_memory(&heap);
	assert_true(after - before <= 128 << 10);
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++) {
		memset(p[class], 1, pando__classes[class].size);
		pando_free(r, p[class]);
	}
	assert_int_equal(fake_heap_memory(&heap), after); /* what is handed out has memory */
}

/* Memory comes with use, and all of it has been taken before an object is handed out. */
static void committed_with_use(void **state)
{
	enum { N = 4000 };
	static char *p[N];
	uint64_t before, after;

	(void)state;
	assert_true(pando_self(r) != 0);
	before = fake_heap_memory(&heap);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < N; i++) {
			assert_non_null(p[i] = pando_alloc(r, 224));
			after = fake_heap_memory(&heap);
			memset(p[i], 1, 224);
			assert_int_equal(fake_heap_memory(&heap), after);
		}
		/* A tenth for metadata, and what a refill takes ahead. */
		assert_true(after - before <= N * 224 / 10 * 11 + (64 << 10));
		for (int i = 0; i < N; i++)
			pando_free(r, p[i]);
	}
	trim(r);
	assert_empty();
}

#define THREADS 4u
#define SLOTS_EACH 600u

static void *worker(void *arg)
{
	struct pando_region *mine = &regions[(uintptr_t)arg % 2];
	static void *shared_table[64];
	unsigned int seed = (unsigned int)(uintptr_t)arg + 1;
	void *own[SLOTS_EACH] = {NULL};

	for (unsigned int i = 0; i < 40000; i++) {
		unsigned int k = (unsigned int)rand_r(&seed) % SLOTS_EACH;
		size_t size = 1 + (unsigned int)rand_r(&seed) % PANDO__SMALL_MAX;

		if (own[k] && i % 5 == 0) { /* to whoever takes it from there */
			own[k] = pando__exchange_acq_rel(&shared_table[k % 64], own[k]);
			continue;
		}
		pando_free(mine, own[k]);
		own[k] = pando_alloc(mine, size);
		if (!own[k] || pando_usable_size(mine, own[k]) < size)
			return (void *)1;
		memset(own[k], (int)i, size);
	}
	for (unsigned int k = 0; k < SLOTS_EACH; k++)
		pando_free(mine, own[k]);
	for (unsigned int k = 0; k < 64; k++)
		pando_free(mine, pando__exchange_acq_rel(&shared_table[k], NULL));
	return NULL;
}

/* Two clients with two threads each, which free each other's objects; their magazines go with them. */
static void threads(void **state)
{
	pthread_t t[THREADS];
	void *result;

	(void)state;
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, worker, (void *)i), 0);
	for (unsigned int i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(t[i], &result), 0);
		assert_null(result);
	}
	for (int i = 0; i < 2; i++) {
		trim(&regions[0]);
		trim(&regions[1]);
	}
	assert_empty();
}

static void *leave_early(void *arg)
{
	void *p = pando_alloc(arg, 64);

	pando_free(arg, p);
	return p;
}

/* More threads than intents, one after the other and all at once. */
static void *many_frees(void *arg)
{
	void **p = arg;

	for (int i = 0; i < 20; i++)
		pando_free(&regions[1], p[i]);
	pthread_barrier_wait(p[20]);
	return NULL;
}

static void many_threads(void **state)
{
	enum { N = PANDO__INTENTS + 10 };
	static void *p[N][21];
	pthread_barrier_t barrier;
	pthread_t t[N];
	void *q;

	(void)state;
	assert_int_equal(pthread_create(&t[0], NULL, leave_early, r), 0);
	assert_int_equal(pthread_join(t[0], &q), 0);
	/* What that thread had is there for others. */
	assert_int_equal(pando_owner(r, q, NULL), PANDO_HOLDING_NONE);
	trim(r);
	assert_empty();
	assert_int_equal(pthread_barrier_init(&barrier, NULL, N), 0);
	assert_true(pando_self(&regions[1]) != 0);
	for (int i = 0; i < N; i++) {
		for (int k = 0; k < 20; k++)
			p[i][k] = pando_alloc(r, 100);
		p[i][20] = &barrier;
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(pthread_create(&t[i], NULL, many_frees, p[i]), 0);
	for (int i = 0; i < N; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	pthread_barrier_destroy(&barrier);
	for (unsigned int i = 0; i < PANDO__INTENTS; i++)
		assert_int_equal(regions[1].gate.front->intents[i].what, 0);
	trim(r);
	assert_empty();
}

/* A front goes while magazines are full; another one comes. */
static void detached(void **state)
{
	void *p = pando_alloc(r, 64);

	(void)state;
	pando_free(r, p);
	p = pando_alloc(r, 64);
	dies(0);
	assert_empty();
	p = pando_alloc(r, 64);
	assert_non_null(p);
	pando_free(r, p);
	dies(0);
	assert_empty();
}

/* In a child of fork() (or of clone(), where no handler runs) nothing of the parent is used. */
static int child(void *theirs, bool handlers)
{
	void *p;

	if (handlers) {
		struct pando__front *f = r->gate.front;

		r->gate.serial = 0;
		r->gate.front = NULL;
		pando__front_abandon(f);
	} else {
		/* The fast paths must fail by themselves; the slow one is told by libshm's mark. */
		if (pando__thread.current->top[2] || pando__thread.current->granules)
			return 1;
		r->gate.front = NULL;
	}
	r->slot = 2;
	p = pando_alloc(r, 64);
	if (!p || p == theirs)
		return 2;
	if (pando_owner(r, p, NULL) != PANDO_HOLDING_PRIVATE || pando_self(r) != (3 | 1ull << 16))
		return 3;
	pando_free(r, theirs); /* goes to its owner */
	if (pando_owner(r, theirs, NULL) != PANDO_HOLDING_NONE)
		return 4;
	pando_free(r, p);
	return pando_alloc(r, 64) == p ? 0 : 5;
}

static void forked(void **state)
{
	void *p[20];

	(void)state;
	for (int i = 0; i < 20; i++)
		p[i] = pando_alloc(r, 64);
	for (int i = 2; i < 20; i++)
		pando_free(r, p[i]);
	for (int i = 0; i < 2; i++) {
		pid_t pid = i == 0 ? fork() : _Fork();
		int status;

		if (pid == 0)
			_exit(child(p[i], i == 0));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
		regions[2].gate.front = NULL; /* a process of its own, that has ended */
		dies(2);
	}
	assert_ptr_equal(pando_alloc(r, 64), p[19]);
	pando_free(r, p[19]);
	trim(r);
	assert_empty();
}

static void *forker(void *stop_flag)
{
	void *p[100] = {NULL};
	unsigned int i = 0;

	while (!pando__load_acquire((int *)stop_flag)) {
		pando_free(r, p[i % 100]);
		p[i % 100] = pando_alloc(r, 1 + i * 37 % 1000);
		i++;
	}
	for (i = 0; i < 100; i++)
		pando_free(r, p[i]);
	return NULL;
}

static void forked_while_others_allocate(void **state)
{
	/* Valgrind's one processor is seldom the forking thread's. */
	const time_t enough = time(NULL) + 5;
	int over = 0;
	pthread_t t[2];

	(void)state;
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, forker, &over), 0);
	for (int i = 0; i < 60 && (i < 10 || time(NULL) < enough); i++) {
		void *theirs = pando_alloc(r, 64);
		pid_t pid = fork();
		int status;

		if (pid == 0)
			_exit(child(theirs, true));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
		dies(2);
	}
	pando__store_release(&over, 1);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	trim(r);
	assert_empty();
}

static void too_many_clients(void **state)
{
	struct pando_region far = {.slot = PANDO__HEAP_CLIENTS};

	(void)state;
	/* Its line would lie in another table: it must not even be looked at. */
	errno = 0;
	assert_null(pando_alloc(&far, 10));
	assert_int_equal(errno, EUSERS);
}

static void other_content(void **state)
{
	struct fake_heap other;

	(void)state;
	fake_heap_init(&other, 64 * MIB, 64 * MIB, false);
	memset(other.view.base, 0, PANDO__PAGE);
	strcpy(other.view.base + 100, "somebody's data");
	assert_int_equal(pando__heap_format(&other.view), -EINVAL);
	assert_string_equal(other.view.base + 100, "somebody's data");
	memset(other.view.base, 0, PANDO__PAGE);
	assert_int_equal(pando__heap_format(&other.view), 0);
	assert_int_equal(pando__heap_format(&other.view), 0);
	other.view.heap->first += PANDO__SPAN;
	assert_int_equal(pando__heap_format(&other.view), -EINVAL);
	fake_heap_deinit(&other);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, plain, stop)
#define LAZY(f)                                                                                    \
	{                                                                                          \
#f " (lazy)", f, lazy, stop, NULL                                                  \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(sizes),
		LAZY(sizes),
		TEST(zeroed),
		TEST(aligned),
		TEST(misused),
		LAZY(misused),
		TEST(misuse_aborts),
		TEST(twice_at_once),
		TEST(freed_by_others),
		LAZY(freed_by_others),
		TEST(handed_on),
		TEST(resized),
		TEST(reaped),
		LAZY(reaped),
		TEST(exhausted),
		LAZY(exhausted),
		LAZY(footprint),
		LAZY(committed_with_use),
		TEST(threads),
		LAZY(threads),
		TEST(many_threads),
		TEST(detached),
		TEST(forked),
		TEST(forked_while_others_allocate),
		TEST(too_many_clients),
		TEST(other_content),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
