/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who has an item: a worker (in `has`), a box, or a slot of the pool; it moves with release and
 * acquire, so that what it is made of can be compared by whoever has it. The model never looks into
 * the heap's tables: it asks the public interface.
 */
#include "heap_model.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TABLE 4096u
#define MOVE 65536u /* objects over this many bytes are filled in part only */

struct worker {
	struct model *m;
	struct pando_region *r;
	pando_holder self;
	unsigned int me;
	uint64_t random;
	uint32_t number; /* of the next object */
	unsigned int count, target;
	uint64_t bytes;
	struct model_item has[TABLE];
};

static __thread enum pando_misuse expected, happened;

void model_misused(struct pando_region *r, const void *p, enum pando_misuse what,
		   const char *sentence, void *arg)
{
	(void)r;
	(void)arg;
	if (what != expected) {
		fprintf(stderr, "heap model: misuse %d at %p: %s\n", what, p, sentence);
		_exit(99);
	}
	happened = what;
}

#define MUST(condition, ...)                                                                       \
	do {                                                                                       \
		if (!(condition))                                                                  \
			broken(w->m, w->me, __LINE__, #condition, __VA_ARGS__);                    \
	} while (0)

static void broken(struct model *m, unsigned int me, int line, const char *what,
		   const struct model_item *i)
{
	__atomic_store_n(&m->failed, 1, __ATOMIC_RELEASE);
	fprintf(stderr,
		"heap model: seed %llu, worker %u, line %d: not so: %s; object %p, %u bytes, "
		"number %u, "
		"holding %u of %llx; last: %s\n",
		(unsigned long long)m->seed, me, line, what, i ? i->p : NULL, i ? i->size : 0,
		i ? i->number : 0, i ? i->holding : 0, i ? (unsigned long long)i->owner : 0,
		pando_strerror_last());
	_exit(99);
}

static uint64_t draw(struct worker *w)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random >> 11;
}

/* All workers come here before any goes on. */
static void barrier(struct worker *w)
{
	struct model *m = w->m;
	uint32_t round = __atomic_load_n(&m->round, __ATOMIC_ACQUIRE);

	if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_ACQ_REL) == m->workers) {
		m->arrived = 0;
		__atomic_store_n(&m->round, round + 1, __ATOMIC_RELEASE);
		return;
	}
	while (__atomic_load_n(&m->round, __ATOMIC_ACQUIRE) == round) {
		if (__atomic_load_n(&m->failed, __ATOMIC_ACQUIRE))
			_exit(98); /* another one has said why */
		usleep(200);
	}
}

/* Byte ranges that carry the pattern: all of a small object, a part of each page of a large one. */
static uint32_t part_step(uint32_t size)
{
	return size > MOVE ? 4096 : 256;
}

static uint32_t part_length(uint32_t size, uint32_t from)
{
	uint32_t length = size > MOVE ? 64 : 256;

	return size - from < length ? size - from : length;
}

static uint8_t pattern(uint32_t number, uint32_t at)
{
	return (uint8_t)((number * 2654435761u >> 8) + at / 256 * 31 + 1);
}

static void fill(struct model_item *i)
{
	for (uint32_t at = 0; at < i->size; at += part_step(i->size))
		memset((uint8_t *)i->p + at, pattern(i->number, at), part_length(i->size, at));
}

static bool same(const uint8_t *at, uint8_t value, uint32_t n)
{
	return n == 0 || (at[0] == value && memcmp(at, at + 1, n - 1) == 0);
}

/* The first `size` bytes are those of an object of that number. */
static void verify(struct worker *w, const struct model_item *i, uint32_t size)
{
	for (uint32_t at = 0; at < size; at += part_step(size))
		MUST(same((uint8_t *)i->p + at, pattern(i->number, at), part_length(size, at)), i);
}

static void verify_state(struct worker *w, const struct model_item *i)
{
	pando_holder holder;

	MUST(pando_owner(w->r, i->p, &holder) == i->holding, i);
	MUST(holder == (i->holding == PANDO_HOLDING_SHARED ? 0 : i->owner), i);
	MUST(pando_usable_size(w->r, i->p) >= i->size, i);
}

static bool is_ours(const struct worker *w, const struct model_item *i)
{
	return i->holding == PANDO_HOLDING_SHARED || i->owner == w->self;
}

static struct model_item remove_at(struct worker *w, unsigned int k)
{
	struct model_item i = w->has[k];

	w->has[k] = w->has[--w->count];
	w->bytes -= i.size;
	return i;
}

static void keep(struct worker *w, const struct model_item *i)
{
	w->has[w->count++] = *i;
	w->bytes += i->size;
}

static void release(struct worker *w, const struct model_item *i)
{
	verify(w, i, i->size);
	if (i->holding == PANDO_HOLDING_PRIVATE && i->owner != w->self)
		w->m->total[w->me].remote++;
	pando_free(w->r, i->p);
}

static uint32_t draw_size(struct worker *w)
{
	uint64_t n = draw(w);
	unsigned int kind = n % 1000;

	n >>= 12;
	if (kind < 3)
		return 0;
	if (kind < 800)
		return 1 + n % 1024;
	if (kind < 950)
		return 1025 + n % 15000;
	if (kind < 995)
		return 16384 + n % 112000;
	return (128u << 10) + n % (600u << 10);
}

static bool room(const struct worker *w, uint32_t size)
{
	return w->count < TABLE - MODEL_WORKERS * 2 && w->bytes + size < w->m->bytes_max;
}

/* NULL is right where the region may be full: then something goes. */
static void refused(struct worker *w)
{
	MUST(w->m->may_fail, NULL);
	w->m->total[w->me].refused++;
	for (unsigned int n = w->count / 8; n > 0; n--) {
		struct model_item i = remove_at(w, (unsigned int)(draw(w) % w->count));

		release(w, &i);
	}
}

static void do_alloc(struct worker *w)
{
	struct model_item i = {.size = draw_size(w),
			       .number = w->number++,
			       .holding = PANDO_HOLDING_PRIVATE,
			       .owner = w->self};
	uint64_t alignment = 1;
	unsigned int how = draw(w) % 16;

	if (!room(w, i.size))
		return;
	if (how < 10) {
		i.p = pando_alloc(w->r, i.size);
	} else if (how < 13) {
		i.p = pando_calloc(w->r, 1, i.size);
		for (uint32_t k = 0; i.p && k<i.size; k += i.size> MOVE ? 61 : 1)
			MUST(((uint8_t *)i.p)[k] == 0, &i);
	} else {
		alignment = 1ull << draw(w) % (how == 15 ? 17 : 9);
		i.p = pando_alloc_aligned(w->r, alignment, i.size);
	}
	if (!i.p) {
		refused(w);
		return;
	}
	MUST((uintptr_t)i.p % PANDO_HEAP_GRANULE == 0 && (uintptr_t)i.p % alignment == 0, &i);
	fill(&i);
	keep(w, &i);
}

static void do_realloc(struct worker *w)
{
	unsigned int k = (unsigned int)(draw(w) % w->count);
	struct model_item *i = &w->has[k], old = *i;
	uint32_t size = draw_size(w);
	void *p;

	if (w->bytes + size >= w->m->bytes_max || (size > 65536 && draw(w) % 4))
		return;
	verify(w, i, i->size);
	p = pando_realloc(w->r, i->p, size);
	if (!p) {
		verify(w, i, i->size);
		refused(w);
		return;
	}
	w->m->total[w->me].reallocs++;
	i->p = p;
	/* Where the pattern has gaps, its parts lie elsewhere: only ends of one kind compare. */
	if ((old.size > MOVE) == (size > MOVE))
		verify(w, i, old.size < size ? old.size : size);
	else
		MUST(same(p, pattern(i->number, 0),
			  old.size < 64 ? old.size
			  : size < 64	? size
					: 64),
		     i);
	if (p != old.p && i->holding == PANDO_HOLDING_PRIVATE)
		i->owner = w->self;
	w->bytes += (uint64_t)size - i->size;
	i->size = size;
	i->number = w->number++;
	fill(i);
}

static void do_free(struct worker *w)
{
	struct model_item i = remove_at(w, (unsigned int)(draw(w) % w->count));

	release(w, &i);
}

static bool post(struct worker *w, unsigned int to, const struct model_item *i)
{
	struct model_box *b = &w->m->box[to][w->me];

	if (b->head - __atomic_load_n(&b->tail, __ATOMIC_ACQUIRE) == MODEL_BOX)
		return false;
	b->at[b->head % MODEL_BOX] = *i;
	__atomic_store_n(&b->head, b->head + 1, __ATOMIC_RELEASE);
	return true;
}

static void do_send(struct worker *w, bool give)
{
	unsigned int k = (unsigned int)(draw(w) % w->count);
	unsigned int to = (unsigned int)(draw(w) % w->m->workers);
	const struct model_box *b = &w->m->box[to][w->me];
	struct model_item i = w->has[k];

	if (b->head - __atomic_load_n(&b->tail, __ATOMIC_ACQUIRE) == MODEL_BOX || to == w->me)
		return;
	verify(w, &i, i.size);
	if (give && !is_ours(w, &i)) {
		MUST(pando_transfer(w->r, i.p, w->m->holder[to]) == -EPERM, &i);
		MUST(pando_share(w->r, i.p) == -EPERM, &i);
		return;
	}
	if (give) {
		i.holding = PANDO_HOLDING_HELD;
		i.owner = w->m->holder[to];
		MUST(pando_transfer(w->r, i.p, i.owner) == 0, &i);
		w->m->total[w->me].transfers++;
		if (i.owner != w->self && draw(w) % 8 == 0) { /* nobody else knows of it yet */
			expected = PANDO_MISUSE_FOREIGN;
			pando_free(w->r, i.p);
			MUST(happened == expected, &i);
			MUST(pando_transfer(w->r, i.p, w->self) == -EPERM, &i);
			expected = happened = 0;
			w->m->total[w->me].misuses++;
		}
	} else if (i.holding == PANDO_HOLDING_HELD) {
		return; /* the receiver could not free it */
	}
	(void)remove_at(w, k);
	MUST(post(w, to, &i), &i);
}

static void receive(struct worker *w, unsigned int most)
{
	for (unsigned int from = 0; from < w->m->workers; from++) {
		struct model_box *b = &w->m->box[w->me][from];

		for (unsigned int n = 0; n < most && w->count < TABLE; n++) {
			struct model_item i;

			if (b->tail == __atomic_load_n(&b->head, __ATOMIC_ACQUIRE))
				break;
			i = b->at[b->tail % MODEL_BOX];
			__atomic_store_n(&b->tail, b->tail + 1, __ATOMIC_RELEASE);
			verify(w, &i, i.size);
			verify_state(w, &i);
			if (draw(w) % 2)
				keep(w, &i);
			else
				release(w, &i);
		}
	}
}

static void do_share(struct worker *w)
{
	unsigned int k = (unsigned int)(draw(w) % w->count);
	struct model_slot *slot = &w->m->pool[draw(w) % MODEL_POOL];
	uint32_t none = 0;

	if (!is_ours(w, &w->has[k]) ||
	    !__atomic_compare_exchange_n(&slot->state, &none, 1, false, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED))
		return;
	slot->item = remove_at(w, k);
	verify(w, &slot->item, slot->item.size);
	slot->item.holding = PANDO_HOLDING_SHARED;
	MUST(pando_share(w->r, slot->item.p) == 0, &slot->item);
	w->m->total[w->me].shares++;
	__atomic_store_n(&slot->state, 2, __ATOMIC_RELEASE);
}

static void take_shared(struct worker *w, struct model_slot *slot)
{
	struct model_item i;
	uint32_t full = 2;

	if (w->count >= TABLE || !__atomic_compare_exchange_n(&slot->state, &full, 1, false,
							      __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	i = slot->item;
	__atomic_store_n(&slot->state, 0, __ATOMIC_RELEASE);
	verify(w, &i, i.size);
	verify_state(w, &i);
	switch (draw(w) % 4) {
	case 0:
		MUST(pando_transfer(w->r, i.p, w->self) == 0, &i);
		i.holding = PANDO_HOLDING_HELD;
		i.owner = w->self;
		keep(w, &i);
		break;
	case 1:
		keep(w, &i);
		break;
	default:
		release(w, &i);
	}
}

static void wrong(struct worker *w, enum pando_misuse what, void *p, const struct model_item *i)
{
	expected = what;
	happened = 0;
	if (draw(w) % 2)
		pando_free(w->r, p);
	else
		MUST(pando_realloc(w->r, p, 1) == NULL, i);
	MUST(happened == what, i);
	expected = happened = 0;
	w->m->total[w->me].misuses++;
}

static void do_misuse(struct worker *w)
{
	unsigned int k = (unsigned int)(draw(w) % w->count);
	struct model_item i = w->has[k];

	switch (draw(w) % 4) {
	case 0:
		if (i.size >= 64)
			wrong(w, PANDO_MISUSE_INTERIOR,
			      (char *)i.p + 32 + draw(w) % (i.size - 32) / 32 * 32, &i);
		break;
	case 1:
		wrong(w, PANDO_MISUSE_INTERIOR, (char *)i.p + 1 + draw(w) % 31, &i);
		break;
	case 2:
		wrong(w, PANDO_MISUSE_NOT_OURS, draw(w) % 2 ? (void *)&i : pando_region_base(w->r),
		      &i);
		break;
	default:
		/* It lies in this thread's magazine then, and nobody gets it meanwhile. */
		if (i.size > 1024 || i.holding != PANDO_HOLDING_PRIVATE || i.owner != w->self ||
		    !w->m->sequential || pando_usable_size(w->r, i.p) > 1024)
			break;
		(void)remove_at(w, k);
		release(w, &i);
		wrong(w, PANDO_MISUSE_DOUBLE_FREE, i.p, &i);
		MUST(pando_owner(w->r, i.p, NULL) == PANDO_HOLDING_NONE, &i);
		MUST(pando_usable_size(w->r, i.p) == 0, &i);
	}
}

static void step(struct worker *w)
{
	unsigned int what = draw(w) % 1000;

	if (what < 60)
		receive(w, 2);
	if (what == 999 && draw(w) % 50 == 0)
		MUST(pando_heap_trim(w->r) == 0, NULL);
	if (w->count == 0 || what < 350 + (w->count < w->target ? 150 : 0))
		do_alloc(w);
	else if (what < 800)
		do_free(w);
	else if (what < 860)
		do_realloc(w);
	else if (what < 900)
		do_send(w, false);
	else if (what < 930)
		do_send(w, true);
	else if (what < 950)
		do_share(w);
	else if (what < 970)
		take_shared(w, &w->m->pool[draw(w) % MODEL_POOL]);
	else if (what < 980)
		do_misuse(w);
	else
		verify_state(w, &w->has[draw(w) % w->count]);
}

/* With nobody at work: what the heap counts is what the model has. */
static void audit(struct worker *w)
{
	uint64_t n[4] = {0};
	struct pando_heap_stat st;
	struct model *m = w->m;

	memset(m->live[w->me], 0, sizeof(m->live[w->me]));
	for (unsigned int k = 0; k < w->count; k++)
		m->live[w->me][w->has[k].holding]++;
	barrier(w);
	if (w->me == 0) {
		for (unsigned int i = 0; i < m->workers; i++)
			for (unsigned int k = 0; k < 4; k++)
				n[k] += m->live[i][k];
		for (unsigned int to = 0; to < m->workers; to++)
			for (unsigned int from = 0; from < m->workers; from++) {
				const struct model_box *b = &m->box[to][from];

				for (uint64_t at = b->tail; at != b->head; at++)
					n[b->at[at % MODEL_BOX].holding]++;
			}
		for (unsigned int k = 0; k < MODEL_POOL; k++)
			n[PANDO_HOLDING_SHARED] += m->pool[k].state == 2;
		MUST(pando_heap_check(w->r) == 0, NULL);
		MUST(pando_heap_stat(w->r, &st) == 0, NULL);
		if (st.objects != n[1] + n[2] + n[3] || st.held != n[2] || st.shared != n[3])
			fprintf(stderr,
				"heap model: the heap counts %llu objects, %llu held, %llu shared; "
				"the model has %llu, %llu, %llu\n",
				(unsigned long long)st.objects, (unsigned long long)st.held,
				(unsigned long long)st.shared,
				(unsigned long long)(n[1] + n[2] + n[3]), (unsigned long long)n[2],
				(unsigned long long)n[3]);
		MUST(st.objects == n[1] + n[2] + n[3], NULL);
		MUST(st.held == n[2] && st.shared == n[3], NULL);
	}
	barrier(w);
}

static void finish(struct worker *w)
{
	barrier(w); /* nobody sends any more */
	do {
		receive(w, MODEL_BOX);
		while (w->count > 0) {
			struct model_item i = remove_at(w, w->count - 1);

			release(w, &i);
		}
		for (unsigned int k = w->me; k < MODEL_POOL; k += w->m->workers)
			take_shared(w, &w->m->pool[k]);
	} while (w->count > 0);
	barrier(w); /* all is freed */
	MUST(pando_heap_trim(w->r) == 0, NULL);
	audit(w);
}

void model_work(struct model *m, unsigned int me, struct pando_region *r)
{
	static const unsigned int targets[] = {20, 200, 1500, 3500};
	/* Not the heap's business; too large for a thread's stack. */
	static __thread struct worker worker;
	struct worker *w = &worker;

	memset(w, 0, sizeof(*w));
	w->m = m;
	w->me = me;
	w->r = r;
	w->random = (m->seed + 1) * 0x9e3779b97f4a7c15ull ^ (me + 1) * 0xbf58476d1ce4e5b9ull;
	w->number = me << 28;
	w->self = pando_self(r);
	MUST(w->self != 0, NULL);
	m->holder[me] = w->self; /* the others look after the barrier */
	barrier(w);
	for (uint64_t k = 0; k < m->operations; k++) {
		if (k % 20000 == 0)
			w->target = targets[draw(w) % 4];
		if (m->audits && k % (m->operations / m->audits) == m->operations / m->audits / 2)
			audit(w);
		step(w);
	}
	m->total[me].operations = m->operations;
	finish(w);
}

void model_print(const struct model *m, const char *name, double seconds)
{
	struct model_total t = {0};

	for (unsigned int i = 0; i < m->workers; i++) {
		t.operations += m->total[i].operations;
		t.misuses += m->total[i].misuses;
		t.remote += m->total[i].remote;
		t.transfers += m->total[i].transfers;
		t.shares += m->total[i].shares;
		t.reallocs += m->total[i].reallocs;
		t.refused += m->total[i].refused;
	}
	printf("{\"test\": \"%s\", \"seed\": %llu, \"workers\": %u, \"operations\": %llu, "
	       "\"reallocs\": %llu, \"remote_frees\": %llu, \"transfers\": %llu, \"shares\": %llu, "
	       "\"misuses\": %llu, \"refused\": %llu, \"seconds\": %.1f}\n",
	       name, (unsigned long long)m->seed, m->workers, (unsigned long long)t.operations,
	       (unsigned long long)t.reallocs, (unsigned long long)t.remote,
	       (unsigned long long)t.transfers, (unsigned long long)t.shares,
	       (unsigned long long)t.misuses, (unsigned long long)t.refused, seconds);
	fflush(stdout);
}
