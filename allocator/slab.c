/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Slabs: 32 KiB of objects of one size class, in spans of this client.
 *
 * What is true of a slab is in its object words; kept privately, here, is where to look: for each
 * slab how many of its words are FREE at least, and which of its pages have memory; for each class a
 * list of the slabs worth refilling from. All of it can be had again by counting (count()), which is
 * what adopting a dead client's slab is.
 *
 *	refill	FREE -> CACHED, for a magazine. From the first slab in the list; objects in pages
 *		that have memory already come first. An empty list: see what others have freed, adopt
 *		an orphan's slab, make a new one, in this order
 *	flush	CACHED -> FREE, for a magazine that is too full, a thread that ends, a trim
 *	collect	REMOTE -> FREE: what others have freed. Done when a class has nothing left and has
 *		handed out a slab's worth since the last time, so that much of it comes together: who
 *		looks earlier takes the lines of words and hints from the one who is freeing, for a
 *		few objects each time. For who does not allocate, the broker does it
 *
 * A slab whose objects are all FREE is kept for a while, since the next burst will want it: each
 * WINDOW flushes of a class, the slabs that have been empty all the time since the last look go back.
 *
 * Invariants, under a class's lock:
 *	slab.free <= number of FREE words in it		(others can only add)
 *	slab.free == count  =>  it is counted in `empty`
 *	listed  <=  free >= enough (an eighth); a scan for less than that costs more than it gives
 *
 * Deaths. Each word changes by one store, and none of the changes means anything to anybody but the
 * owner; the broker takes FREE, CACHED and LIVE of a dead client alike. What must not be lost are
 * the REMOTE ones: the hints are taken first, then the words are looked at, then changed.
 *
 * The broker beside a living owner may take the memory of a slab whose words are all FREE (EMPTYING,
 * EMPTY), and turn REMOTE into FREE. So who makes words CACHED holds BUSY, an entry's flag, against
 * the first; and counts again where it is told of the second.
 *
 * Locks: one for each class; taken after the process's (thread.c), before jemalloc's and pages_lock.
 * Not more than one of them at a time.
 */
#include "front.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#define WINDOW 128u /* flushes of a class between two looks at its empty slabs */
#define EMPTY_MAX 32u /* slabs of a class that are kept empty at most */
#define CHUNK 512u /* slabs whose records are allocated together: 16 MiB of region */
#define ALL_PAGES ((1u << PANDO__SLAB_PAGES) - 1)

struct slab {
	uint32_t next, prev; /* in the list of its class, by slab number; 0: the end */
	uint16_t free;
	uint16_t at; /* the object at which the next refill begins to look */
	uint8_t committed; /* bits of pages */
	bool listed;
	uint16_t reserved;
};

struct class_slabs {
	pthread_mutex_t lock;
	uint32_t head; /* slab number; 0: none (the tables lie there) */
	uint32_t empty; /* slabs with nothing but FREE */
	uint32_t empty_low; /* fewest of them since the window began */
	uint32_t flushes; /* since then */
	uint32_t since; /* objects handed out since others' frees were collected */
} __attribute__((aligned(64)));

struct pando__slabs {
	struct class_slabs of[PANDO__CLASSES];
	/* Records of slabs: chunks are allocated with need, and stay. Stored with release. */
	uint32_t chunks;
	struct slab *chunk[];
};

static inline uint32_t number_of(uint64_t offset)
{
	return (uint32_t)(offset / PANDO__SLAB);
}

/* The record of a slab that has one. */
static inline struct slab *record(const struct pando__front *f, uint32_t number)
{
	/* Pairs with the store in need_record(); who knows the number came by a lock, anyhow. */
	return &pando__load_acquire(&f->slabs->chunk[number / CHUNK])[number % CHUNK];
}

/* Makes sure that there is a record. 0 or -ENOMEM. */
static int need_record(struct pando__front *f, uint32_t number)
{
	struct slab **at = &f->slabs->chunk[number / CHUNK], *none = NULL, *made;

	if (pando__load_acquire(at))
		return 0;
	made = calloc(CHUNK, sizeof(*made));
	if (!made)
		return pando__fail(ENOMEM, "no memory for the records of slabs (%zu bytes)",
				   CHUNK * sizeof(*made));
	if (!pando__cas_acq_rel(at, &none, made))
		free(made); /* another class's thread was faster */
	return 0;
}

static inline uint32_t *entry_of(const struct pando__front *f, uint32_t number)
{
	return &f->view.page_table[(uint64_t)number * PANDO__SLAB_PAGES];
}

static inline uint16_t *words_of(const struct pando__front *f, uint32_t number)
{
	return &f->view.objects[(uint64_t)number * PANDO__SLAB_GRANULES];
}

static unsigned int enough(unsigned int class)
{
	unsigned int eighth = pando__classes[class].count / 8;

	return eighth > 0 ? eighth : 1;
}

static void list(struct pando__front *f, struct class_slabs *c, uint32_t number, struct slab *s)
{
	s->prev = 0;
	s->next = c->head;
	if (c->head)
		record(f, c->head)->prev = number;
	c->head = number;
	s->listed = true;
}

static void unlist(struct pando__front *f, struct class_slabs *c, struct slab *s)
{
	if (s->prev)
		record(f, s->prev)->next = s->next;
	else
		c->head = s->next;
	if (s->next)
		record(f, s->next)->prev = s->prev;
	s->listed = false;
}

/* Takes a new count of FREE words into a slab's record, and what follows from it. */
static void set_free(struct pando__front *f, unsigned int class, uint32_t number, unsigned int free)
{
	struct class_slabs *c = &f->slabs->of[class];
	struct slab *s = record(f, number);
	unsigned int all = pando__classes[class].count;

	if (s->free != all && free == all)
		c->empty++;
	if (s->free == all && free != all) {
		c->empty--;
		if (c->empty < c->empty_low)
			c->empty_low = c->empty;
	}
	s->free = (uint16_t)free;
	if (!s->listed && free >= enough(class))
		list(f, c, number, s);
	else if (s->listed && free == 0)
		unlist(f, c, s);
}

/* Claims a slab against the broker. False: the broker is at it. */
static bool claim(struct pando__front *f, uint32_t number)
{
	uint32_t *entry = entry_of(f, number);
	uint32_t seen = pando__load_acquire(entry);

	while (!(PANDO__PAGE_FLAGS(seen) & PANDO__PAGE_EMPTYING))
		if (pando__cas_acq_rel(entry, &seen, seen | PANDO__PAGE_BUSY)) {
			if (PANDO__PAGE_FLAGS(seen) & PANDO__PAGE_EMPTY)
				record(f, number)->committed = f->view.lazy ? 0 : ALL_PAGES;
			return true;
		}
	return false;
}

/* EMPTY goes with BUSY: what has no memory then, the record says. */
static void unclaim(struct pando__front *f, uint32_t number)
{
	uint32_t *entry = entry_of(f, number);

	pando__store_release(entry,
			     pando__load_relaxed(entry) & ~(PANDO__PAGE_BUSY | PANDO__PAGE_EMPTY));
}

/* The pages that object `i` lies in, as bits. */
static unsigned int pages_of(unsigned int class, unsigned int i)
{
	unsigned int size = pando__classes[class].size;
	unsigned int first = i * size / PANDO__PAGE;
	unsigned int last = ((i + 1) * size - 1) / PANDO__PAGE;

	return (2u << last) - (1u << first);
}

/*
 * Takes memory for the objects from i on, `want` of them, as far as they have none. One call for
 * all: pages in between that have memory do no harm.
 */
static int commit(struct pando__front *f, unsigned int class, uint32_t number, unsigned int i,
		  unsigned int want)
{
	const struct pando__class *k = &pando__classes[class];
	struct slab *s = record(f, number);
	unsigned int last = i + want < k->count ? i + want - 1 : k->count - 1;
	unsigned int from = i * k->size / PANDO__PAGE;
	unsigned int to = ((last + 1) * k->size - 1) / PANDO__PAGE;
	int rc;

	while (from < to && s->committed & 1u << from)
		from++;
	rc = pando__commit(&f->view, (uint64_t)number * PANDO__SLAB + from * PANDO__PAGE,
			   (uint64_t)(to - from + 1) * PANDO__PAGE);
	if (rc == 0)
		s->committed |= (uint8_t)((2u << to) - (1u << from));
	return rc;
}

/*
 * FREE objects of one slab become CACHED, as many as there are, up to `want`: with `only`, those
 * whose pages have memory. Where the pages of one have none, they get it. Returns how many.
 */
static unsigned int take(struct pando__front *f, unsigned int class, uint32_t number, void **out,
			 unsigned int want, bool only, int *rc)
{
	const struct pando__class *k = &pando__classes[class];
	const unsigned int step = k->size / PANDO__GRANULE;
	struct slab *s = record(f, number);
	char *objects = f->view.base + (uint64_t)number * PANDO__SLAB;
	uint16_t *words = words_of(f, number);
	unsigned int got = 0, i = s->at, committed = s->committed;

	if (want > s->free)
		want = s->free;
	for (unsigned int n = 0; n < k->count && got < want; n++, i++) {
		if (i >= k->count)
			i = 0;
		if (pando__load_acquire(&words[i * step]) != PANDO__OBJECT_FREE)
			continue;
		if (committed != ALL_PAGES && pages_of(class, i) & ~committed) {
			if (only)
				continue;
			*rc = commit(f, class, number, i, want - got);
			if (*rc < 0)
				break;
			committed = s->committed;
		}
		pando__store_relaxed(&words[i * step], PANDO__OBJECT_CACHED);
		out[got++] = objects + (size_t)i * k->size;
		PANDO_INJECT("heap.refill.cached");
	}
	s->at = (uint16_t)(i < k->count ? i : 0);
	return got;
}

/* Fills out[] from slabs in the list. Returns how many, or a negative errno if there is none. */
static int refill_listed(struct pando__front *f, unsigned int class, void **out, unsigned int want)
{
	struct class_slabs *c = &f->slabs->of[class];
	unsigned int got = 0;
	int rc = 0;

	for (uint32_t number = c->head, next; number && got < want && rc == 0; number = next) {
		struct slab *s = record(f, number);
		unsigned int more = 0;

		next = s->next;
		if (!claim(f, number))
			continue;
		PANDO_INJECT("heap.refill.busy");
		if (s->committed != 0 && s->committed != ALL_PAGES)
			more = take(f, class, number, out + got, want - got, true, &rc);
		/* Takes memory to have one object, not to have as many as are wanted. */
		if (got + more == 0 || s->committed == ALL_PAGES) {
			more += take(f, class, number, out + got + more, want - got - more, false,
				     &rc);
			/* None: the count was wrong. Not by us, but who writes here, writes here. */
			set_free(f, class, number, more || rc < 0 ? s->free - more : 0);
		} else {
			set_free(f, class, number, s->free - more);
		}
		unclaim(f, number);
		got += more;
	}
	return got > 0 ? (int)got : rc;
}

/* The FREE words of a slab, and in *committed the pages that others' objects lie in. */
static unsigned int count(struct pando__front *f, unsigned int class, uint32_t number,
			  unsigned int *committed)
{
	const unsigned int step = pando__classes[class].size / PANDO__GRANULE;
	uint16_t *words = words_of(f, number);
	unsigned int free = 0;

	*committed = 0;
	for (unsigned int i = 0; i < pando__classes[class].count; i++)
		if (pando__load_acquire(&words[i * step]) == PANDO__OBJECT_FREE)
			free++;
		else
			*committed |= pages_of(class, i);
	return free;
}

/*
 * Takes note of a slab that has just become this client's. Class lock held. Its record is that of a
 * slab that was given back (nothing free, no memory, in no list), unless a thread has freed an object
 * in it already.
 */
static int enter(struct pando__front *f, unsigned int class, uint32_t number)
{
	unsigned int committed, free = count(f, class, number, &committed);
	int rc = need_record(f, number);

	if (rc < 0)
		return rc;
	record(f, number)->committed = (uint8_t)(f->view.lazy ? committed : ALL_PAGES);
	set_free(f, class, number, free);
	return 0;
}

static int new_slab(struct pando__front *f, unsigned int class)
{
	int64_t offset = pando__pages_alloc(f, PANDO__SLAB, PANDO__SLAB, class);
	int rc;

	if (offset < 0)
		return (int)offset;
	PANDO_INJECT("heap.refill.slab");
	rc = enter(f, class, number_of((uint64_t)offset));
	if (rc < 0)
		pando__pages_free(f, (uint64_t)offset, PANDO__SLAB);
	return rc;
}

/* What others have freed in one slab. Class lock held. */
static void collect_slab(struct pando__front *f, unsigned int class, uint32_t number)
{
	const struct pando__class *k = &pando__classes[class];
	const unsigned int step = k->size / PANDO__GRANULE;
	uint16_t *words = words_of(f, number);
	/* Else the broker may be doing the same. */
	const bool recorded = need_record(f, number) == 0, alone = recorded && claim(f, number);
	unsigned int free = 0;

	for (unsigned int i = 0; i < k->count; i++) {
		/* After the hint was taken: see pando__remote_tell() for the other side. */
		uint16_t word = pando__load_seq_cst(&words[i * step]);

		if (word == PANDO__OBJECT_REMOTE) {
			if (alone)
				pando__store_relaxed(&words[i * step], PANDO__OBJECT_FREE);
			else
				(void)pando__cas_acq_rel(&words[i * step], &word,
							 PANDO__OBJECT_FREE);
			word = PANDO__OBJECT_FREE;
			PANDO_INJECT("heap.collect.freed");
		}
		free += word == PANDO__OBJECT_FREE;
	}
	/* Without memory for a record they are free all the same, only not used. */
	if (recorded)
		set_free(f, class, number, free);
	if (alone)
		unclaim(f, number);
}

/*
 * Claims what others have freed at `offset`, if that is in a page of large objects of this client;
 * *entry: the page's. The pages belong to nobody as soon as the last object in them is freed, by the
 * caller or by another thread, and to another client soon after that: its words may say REMOTE as
 * well. Under pages_lock no span leaves this client, so here entry and word are of one time.
 */
static bool claim_large(struct pando__front *f, uint64_t offset, uint32_t *entry)
{
	uint16_t seen = PANDO__OBJECT_REMOTE;
	bool claimed = false;

	pthread_mutex_lock(&f->pages_lock);
	*entry = pando__load_acquire(&f->view.page_table[offset / PANDO__PAGE]);
	if (PANDO__PAGE_OWNER(*entry) == f->me && PANDO__PAGE_CLASS(*entry) == PANDO__CLASS_LARGE)
		claimed = pando__cas_acq_rel(pando__word(&f->view, offset), &seen,
					     PANDO__OBJECT_CACHED);
	pthread_mutex_unlock(&f->pages_lock);
	return claimed;
}

/* The same for large objects that begin in one eighth of a span. No lock held. */
static void collect_large(struct pando__front *f, uint32_t number)
{
	const unsigned int in_page = PANDO__PAGE / PANDO__GRANULE;

	for (unsigned int page = 0; page < PANDO__SLAB_PAGES; page++) {
		uint64_t offset = (uint64_t)number * PANDO__SLAB + page * PANDO__PAGE;
		uint32_t entry = pando__load_acquire(&f->view.page_table[offset / PANDO__PAGE]);

		if (PANDO__PAGE_OWNER(entry) != f->me ||
		    PANDO__PAGE_CLASS(entry) != PANDO__CLASS_LARGE)
			continue;
		for (unsigned int i = 0; i < in_page; i++) {
			const uint64_t at = offset + i * PANDO__GRANULE;

			if (pando__load_seq_cst(pando__word(&f->view, at)) !=
				    PANDO__OBJECT_REMOTE ||
			    !claim_large(f, at, &entry))
				continue;
			PANDO_INJECT("heap.collect.large");
			pando__large_free(f, at, entry);
			PANDO_INJECT("heap.collect.left");
		}
	}
}

static void collect_eighth(struct pando__front *f, uint32_t number)
{
	uint32_t entry = pando__load_acquire(entry_of(f, number));
	unsigned int class = PANDO__PAGE_CLASS(entry);
	struct class_slabs *c;

	if (class == PANDO__CLASS_NONE || class >= PANDO__CLASSES) {
		collect_large(f, number);
		return;
	}
	c = &f->slabs->of[class];
	pthread_mutex_lock(&c->lock);
	entry = pando__load_acquire(entry_of(f, number));
	/* It may have gone back, and even come again, while no lock was held. */
	if (PANDO__PAGE_OWNER(entry) == f->me && PANDO__PAGE_CLASS(entry) == class)
		collect_slab(f, class, number);
	pthread_mutex_unlock(&c->lock);
}

#define BATCH 64u

struct hinted {
	uint32_t span, bits;
};

/* Takes the hints of up to BATCH spans of this client. */
static unsigned int take_hints(struct pando__front *f, struct hinted *out)
{
	unsigned int n = 0;

	pthread_mutex_lock(&f->pages_lock);
	for (uint32_t i = 0; i < f->own_count && n < BATCH; i++) {
		struct pando__span *span = &f->view.spans[f->own[i]];

		if (!pando__load_seq_cst(&span->remote))
			continue;
		out[n].span = f->own[i];
		out[n++].bits = pando__exchange_seq_cst(&span->remote, 0);
	}
	pthread_mutex_unlock(&f->pages_lock);
	return n;
}

void pando__collect(struct pando__front *f)
{
	struct pando__heap_client *line = &f->view.clients[f->slot];
	struct hinted hinted[BATCH];
	unsigned int n;

	/* First the client's word, then the spans' bits, then the words: each hint is set last. */
	if (pando__load_relaxed(&line->recount))
		(void)pando__exchange_seq_cst(&line->recount, 0);
	(void)pando__exchange_seq_cst(&line->remote, 0);
	PANDO_INJECT("heap.collect.told");
	do {
		n = take_hints(f, hinted);
		PANDO_INJECT("heap.collect.hints");
		for (unsigned int i = 0; i < n; i++)
			for (unsigned int k = 0; k < PANDO__SPAN_SLABS; k++)
				if ((hinted[i].bits | hinted[i].bits >> 8) & 1u << k)
					collect_eighth(f, hinted[i].span * PANDO__SPAN_SLABS + k);
	} while (n == BATCH);
}

/* Under pages_lock no span, and so no memory of its words, leaves this client. */
static void tell_oneself(struct pando__front *f)
{
	pthread_mutex_lock(&f->pages_lock);
	pando__heap_tell(&f->view, f->slots, f->me);
	pthread_mutex_unlock(&f->pages_lock);
}

void pando__collect_all(struct pando__front *f)
{
	tell_oneself(f);
	pando__collect(f);
}

/* True if there was something to look at. */
static bool collect_if_told(struct pando__front *f)
{
	const struct pando__heap_client *line = &f->view.clients[f->slot];

	if (!pando__load_relaxed(&line->remote) && !pando__load_relaxed(&line->recount))
		return false;
	pando__collect(f);
	return true;
}

/* Takes over the slabs of a dead client's span. True if there was one. */
static bool adopt(struct pando__front *f, unsigned int class)
{
	int64_t span;

	if (!pando__load_relaxed(&f->view.heap->orphans.value))
		return false;
	span = pando__span_adopt(f, class);
	if (span < 0)
		return false;
	PANDO_INJECT("heap.adopt.taken");
	for (unsigned int k = 0; k < PANDO__SPAN_SLABS; k++) {
		uint32_t number = (uint32_t)span * PANDO__SPAN_SLABS + k;
		uint32_t entry = pando__load_acquire(entry_of(f, number));
		unsigned int of = PANDO__PAGE_CLASS(entry);

		if (of == PANDO__CLASS_NONE || of >= PANDO__CLASSES)
			continue;
		pthread_mutex_lock(&f->slabs->of[of].lock);
		entry = pando__load_acquire(entry_of(f, number));
		/*
		 * Another thread may have freed all of it since the span was taken, and given it
		 * back. Without a record the slab is not used; its objects can still be freed.
		 */
		if (PANDO__PAGE_OWNER(entry) == f->me && PANDO__PAGE_CLASS(entry) == of)
			(void)enter(f, of, number);
		pthread_mutex_unlock(&f->slabs->of[of].lock);
	}
	/* Who freed something here before the pages named us may have told nobody. */
	pando__collect(f);
	return true;
}

/* Slabs with few free objects are listed after all: there is no memory for a new one. */
static bool list_leftovers(struct pando__front *f, unsigned int class)
{
	struct class_slabs *c = &f->slabs->of[class];
	bool any = false;

	pthread_mutex_lock(&f->pages_lock);
	for (uint32_t i = 0; i < f->own_count; i++)
		for (unsigned int k = 0; k < PANDO__SPAN_SLABS; k++) {
			uint32_t number = f->own[i] * PANDO__SPAN_SLABS + k;
			struct slab *s;

			if (PANDO__PAGE_CLASS(pando__load_relaxed(entry_of(f, number))) != class ||
			    !pando__load_acquire(&f->slabs->chunk[number / CHUNK]))
				continue;
			s = record(f, number);
			if (s->listed || s->free == 0)
				continue;
			list(f, c, number, s);
			any = true;
		}
	pthread_mutex_unlock(&f->pages_lock);
	return any;
}

/* Class lock held, but let go of for a while. As refill_listed(), after what others have freed is in. */
static int refill_collected(struct pando__front *f, unsigned int class, void **out,
			    unsigned int want)
{
	struct class_slabs *c = &f->slabs->of[class];
	bool more;

	c->since = 0;
	pthread_mutex_unlock(&c->lock);
	more = collect_if_told(f);
	pthread_mutex_lock(&c->lock);
	return more ? refill_listed(f, class, out, want) : 0;
}

/* The same, after a span of a dead client has been adopted, if there is one. */
static int refill_adopted(struct pando__front *f, unsigned int class, void **out, unsigned int want)
{
	struct class_slabs *c = &f->slabs->of[class];
	bool more;

	pthread_mutex_unlock(&c->lock);
	more = adopt(f, class);
	pthread_mutex_lock(&c->lock);
	return more ? refill_listed(f, class, out, want) : 0;
}

/* The same, with a new slab; where there is no memory for one, with what there is. */
static int refill_new(struct pando__front *f, unsigned int class, void **out, unsigned int want)
{
	int n = 0, rc;

	while (n == 0) {
		rc = new_slab(f, class);
		if (rc < 0) {
			tell_oneself(f);
			n = refill_collected(f, class, out, want);
			if (n == 0 && rc == -ENOMEM && list_leftovers(f, class))
				n = refill_listed(f, class, out, want);
			return n != 0 ? n : rc;
		}
		n = refill_listed(f, class, out, want);
	}
	return n;
}

int pando__slab_refill(struct pando__front *f, unsigned int class, void **out, unsigned int want)
{
	struct class_slabs *c = &f->slabs->of[class];
	int n;

	pthread_mutex_lock(&c->lock);
	n = refill_listed(f, class, out, want);
	if (n == 0 && c->since >= pando__classes[class].count)
		n = refill_collected(f, class, out, want);
	if (n == 0)
		n = refill_adopted(f, class, out, want);
	if (n == 0)
		n = refill_new(f, class, out, want);
	if (n > 0)
		c->since += (uint32_t)n;
	pthread_mutex_unlock(&c->lock);
	return n;
}

/* Gives a slab back whose words are all FREE. Class lock held. False: the broker is at it. */
static bool give_back(struct pando__front *f, unsigned int class, uint32_t number)
{
	struct slab *s = record(f, number);

	if (!claim(f, number))
		return false;
	set_free(f, class, number, 0);
	s->committed = 0;
	s->at = 0;
	PANDO_INJECT("heap.slab.empty");
	pando__pages_free(f, (uint64_t)number * PANDO__SLAB, PANDO__SLAB);
	return true;
}

/* Gives up to `most` empty slabs back. Class lock held. */
static void give_back_some(struct pando__front *f, unsigned int class, uint32_t most)
{
	struct class_slabs *c = &f->slabs->of[class];
	uint32_t next;

	for (uint32_t number = c->head; number && most > 0; number = next) {
		struct slab *s = record(f, number);

		next = s->next;
		if (s->free == pando__classes[class].count && give_back(f, class, number))
			most--;
	}
}

/* Flushes the first object and those after it that lie in the same slab. Returns how many. */
static unsigned int flush_run(struct pando__front *f, unsigned int class, void *const *objects,
			      unsigned int n)
{
	const uint64_t begin = pando__offset(&f->view, objects[0]) & ~(uint64_t)(PANDO__SLAB - 1);
	uint16_t *words = f->view.objects + begin / PANDO__GRANULE;
	unsigned int i, freed = 0;

	for (i = 0; i < n; i++) {
		uint64_t in_slab = pando__offset(&f->view, objects[i]) - begin;
		uint16_t *word = words + in_slab / PANDO__GRANULE;

		if (in_slab >= PANDO__SLAB)
			break;
		/* Else it was freed twice at one instant, and is somebody's already. */
		if (pando__load_relaxed(word) == PANDO__OBJECT_CACHED) {
			pando__store_release(word, PANDO__OBJECT_FREE);
			freed++;
		}
		PANDO_INJECT("heap.flush.freed");
	}
	if (need_record(f, number_of(begin)) == 0)
		set_free(f, class, number_of(begin), record(f, number_of(begin))->free + freed);
	return i;
}

void pando__slab_flush(struct pando__front *f, unsigned int class, void *const *objects,
		       unsigned int n)
{
	struct class_slabs *c = &f->slabs->of[class];

	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < n;)
		i += flush_run(f, class, objects + i, n - i);
	if (++c->flushes >= WINDOW || c->empty > EMPTY_MAX) {
		give_back_some(f, class,
			       c->empty > EMPTY_MAX && c->empty_low < c->empty / 2 ? c->empty / 2
										   : c->empty_low);
		c->empty_low = c->empty;
		c->flushes = 0;
	}
	pthread_mutex_unlock(&c->lock);
}

void pando__slabs_trim(struct pando__front *f)
{
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++) {
		struct class_slabs *c = &f->slabs->of[class];

		pthread_mutex_lock(&c->lock);
		give_back_some(f, class, UINT32_MAX);
		pthread_mutex_unlock(&c->lock);
	}
}

int pando__slabs_init(struct pando__front *f)
{
	uint32_t chunks = (uint32_t)(f->view.max_size / PANDO__SLAB / CHUNK + 1);

	f->slabs = aligned_alloc(
		64, (sizeof(*f->slabs) + chunks * sizeof(f->slabs->chunk[0]) + 63) / 64 * 64);
	if (!f->slabs)
		return pando__fail(ENOMEM, "no memory for the list of slabs (%zu bytes)",
				   sizeof(*f->slabs) + chunks * sizeof(f->slabs->chunk[0]));
	memset(f->slabs, 0, sizeof(*f->slabs) + chunks * sizeof(f->slabs->chunk[0]));
	f->slabs->chunks = chunks;
	for (unsigned int class = 0; class < PANDO__CLASSES; class ++)
		pthread_mutex_init(&f->slabs->of[class].lock, NULL);
	return 0;
}

void pando__slabs_deinit(struct pando__front *f)
{
	for (uint32_t i = 0; i < f->slabs->chunks; i++)
		free(f->slabs->chunk[i]);
	free(f->slabs);
	f->slabs = NULL;
}
