/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Walking a heap that others use meanwhile.
 *
 * Only spans in use are looked into: behind those of nobody there may be no memory. Nothing is
 * believed; all that can go wrong, when a span changes hands under one's eyes, is a number.
 */
#include "walk.h"

#include "common/atomic.h"

#include "rebuild.h"

/* Numbers of four words at a time: what they are says the lower half of a byte. */
struct tally {
	uint64_t live, region, held, remote, cached;
};

static struct pando__walk_client *client_of(const struct pando__walk *w, unsigned int client)
{
	return client > 0 && client <= w->client_count ? &w->clients[client - 1] : NULL;
}

static void count_held(struct pando__walk *w, uint16_t word, uint64_t bytes, struct tally *t)
{
	struct pando__walk_client *c;

	if (PANDO__OBJECT_OF_NOBODY(word)) {
		t->region++;
		return;
	}
	t->held++;
	c = client_of(w, PANDO__OBJECT_HOLDER(word));
	if (c) {
		c->held++;
		c->held_bytes += bytes;
	}
}

static void count_word(struct pando__walk *w, uint16_t word, uint64_t bytes, struct tally *t)
{
	if (word == PANDO__OBJECT_LIVE)
		t->live++;
	else if (word == PANDO__OBJECT_REMOTE)
		t->remote++;
	else if (word == PANDO__OBJECT_CACHED)
		t->cached++;
	else if (PANDO__OBJECT_IS_SHARED(word))
		count_held(w, word, bytes, t);
}

/* Adds objects of one size to the numbers of their class and of the owner of their page. */
static void add(struct pando__walk *w, unsigned int class, unsigned int owner, uint64_t bytes,
		const struct tally *t)
{
	struct pando__walk_class *k = &w->classes[class];
	struct pando__walk_client *c = client_of(w, owner);
	const uint64_t live = t->live + t->region + t->held;

	k->objects += live;
	k->bytes += live * bytes;
	k->shared += t->region;
	k->held += t->held;
	k->cached += t->cached;
	k->pending += t->remote;
	if (owner == PANDO__OWNER_ORPHAN) {
		w->orphan_objects += live;
		w->orphan_bytes += live * bytes;
		w->orphan_pending += t->remote;
	}
	if (!c)
		return;
	c->objects += t->live;
	c->bytes += t->live * bytes;
	c->cached += t->cached;
	c->cached_bytes += t->cached * bytes;
	c->pending += t->remote;
	c->pending_bytes += t->remote * bytes;
}

static void walk_slab(const struct pando__view *v, struct pando__walk *w, uint64_t page,
		      uint32_t entry)
{
	const unsigned int class = PANDO__PAGE_CLASS(entry);
	const uint64_t begin = page * PANDO__PAGE_GRANULES;
	const uint64_t size = pando__classes[class].size;
	struct tally t = {0};

	w->classes[class].slabs++;
	w->classes[class].room += pando__classes[class].count;
	for (uint64_t g = begin; g < begin + PANDO__SLAB_GRANULES; g += 4) {
		const uint64_t x = pando__load_relaxed((uint64_t *)(void *)&v->objects[g]);

		if (x == 0)
			continue;
		for (unsigned int i = 0; i < 4; i++)
			count_word(w, (uint16_t)(x >> 16 * i), size, &t);
	}
	add(w, class, PANDO__PAGE_OWNER(entry), size, &t);
}

/* The objects that begin in a page of large ones. */
static void walk_page(const struct pando__view *v, struct pando__walk *w, uint64_t page,
		      uint32_t entry)
{
	const uint64_t begin = page * PANDO__PAGE_GRANULES;

	w->classes[PANDO__WALK_LARGE].slabs++;
	for (uint64_t g = begin; g < begin + PANDO__PAGE_GRANULES; g++) {
		const uint16_t word = pando__load_acquire(&v->objects[g]);
		struct tally t = {0};
		uint64_t bytes;

		if (word == PANDO__OBJECT_FREE || PANDO__OBJECT_IS_LENGTH(word))
			continue;
		bytes = pando__large_granules(v, g) * PANDO__GRANULE;
		if (!bytes)
			continue;
		count_word(w, word, bytes, &t);
		add(w, PANDO__WALK_LARGE, PANDO__PAGE_OWNER(entry), bytes, &t);
	}
}

static void walk_span(const struct pando__view *v, struct pando__walk *w, uint64_t index,
		      struct pando__walk_client *c)
{
	const uint64_t begin = index * PANDO__SPAN_PAGES;

	for (uint64_t p = begin; p < begin + PANDO__SPAN_PAGES; p++) {
		const uint32_t entry = pando__load_acquire(&v->page_table[p]);
		const unsigned int class = PANDO__PAGE_CLASS(entry);

		if (class == PANDO__CLASS_NONE)
			continue;
		w->pages++;
		if (c)
			c->pages++;
		w->orphan_pages += PANDO__PAGE_OWNER(entry) == PANDO__OWNER_ORPHAN;
		if (class == PANDO__CLASS_LARGE)
			walk_page(v, w, p, entry);
		else if (class < PANDO__CLASSES && p % PANDO__SLAB_PAGES == 0)
			walk_slab(v, w, p, entry);
	}
}

int pando__heap_walk(const struct pando__view *v, struct pando__walk *w)
{
	const uint64_t end = pando__spans_end(v);

	if (!pando__heap_there(v))
		return 1;
	for (uint64_t i = v->first / PANDO__SPAN; i < end; i++) {
		const uint64_t word = pando__load_acquire(&v->spans[i].word);
		struct pando__walk_client *c = client_of(w, PANDO__SPAN_OWNER(word));

		w->spans++;
		switch (PANDO__SPAN_STATE(word)) {
		case PANDO__SPAN_OWNED:
			w->spans_owned++;
			if (c)
				c->spans++;
			break;
		case PANDO__SPAN_ORPHAN:
			w->spans_orphaned++;
			break;
		case PANDO__SPAN_SWEEPING:
			w->spans_sweeping++;
			break;
		case PANDO__SPAN_RESERVE:
			w->spans_reserve++;
			w->spans_free++;
			continue;
		case PANDO__SPAN_FREE:
			w->spans_free++;
			continue;
		default:
			continue;
		}
		walk_span(v, w, i, c);
	}
	for (uint32_t i = 0; i < w->client_count; i++)
		if (w->clients[i].spans)
			w->clients[i].told = pando__load_relaxed(&v->clients[i].remote) != 0;
	return 0;
}
