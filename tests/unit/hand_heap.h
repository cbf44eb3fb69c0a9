/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A heap made by hand, in memory of this process (shared with forked and executed children): for
 * tests of what walks, judges and repairs heaps. Nothing here allocates objects: the tests write
 * words, and so can write what no client ever would.
 */
#ifndef PANDO_TESTS_HAND_HEAP_H
#define PANDO_TESTS_HAND_HEAP_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "allocator/rebuild.h"

#define HAND_SIZE (64ull << 20)
#define HAND_SLOTS 8u
/* The whole, so that one mapping holds it: heap, ledger, slot pages. */
#define HAND_LEDGER HAND_SIZE
#define HAND_SLOTS_AT (HAND_LEDGER + ((PANDO__LEDGER_SIZE + 4095) & ~4095ull))
#define HAND_ALL (HAND_SLOTS_AT + HAND_SLOTS * PANDO__SLOT_SIZE)

struct hand {
	char *all;
	struct pando__ledger *ledger;
	struct pando__view view;
	uint64_t first; /* index of the first span */
};

static inline bool hand_map(struct hand *h, int fd)
{
	h->all = mmap(NULL, HAND_ALL, PROT_READ | PROT_WRITE,
		      fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	if (h->all == MAP_FAILED)
		return false;
	h->ledger = (struct pando__ledger *)(h->all + HAND_LEDGER);
	h->ledger->max_size = h->ledger->committed = HAND_SIZE;
	h->ledger->clients_high = HAND_SLOTS;
	if (pando__view_init(&h->view, h->all, h->ledger) < 0)
		return false;
	h->first = h->view.first / PANDO__SPAN;
	return pando__heap_format(&h->view) == 0;
}

static inline void hand_unmap(struct hand *h)
{
	munmap(h->all, HAND_ALL);
}

static inline void hand_client(struct hand *h, uint32_t slot, uint64_t generation,
			       enum pando__client_state state)
{
	pando__ledger_client(h->ledger, slot)->word = PANDO__CLIENT_WORD(generation, state);
}

static inline struct pando__slot *hand_slot(struct hand *h, uint32_t slot)
{
	return (struct pando__slot *)(h->all + HAND_SLOTS_AT + slot * PANDO__SLOT_SIZE);
}

static inline const char *hand_slots(struct hand *h)
{
	return h->all + HAND_SLOTS_AT;
}

static inline struct pando__intent *hand_intents(struct hand *h, uint32_t slot)
{
	return (struct pando__intent *)((char *)hand_slot(h, slot) + PANDO__INTENTS_OFFSET);
}

/* Spans are named by their number from the first usable one on. */
static inline struct pando__span *hand_span(struct hand *h, uint64_t span)
{
	return &h->view.spans[h->first + span];
}

static inline enum pando__span_state hand_state(struct hand *h, uint64_t span)
{
	return PANDO__SPAN_STATE(hand_span(h, span)->word);
}

static inline void hand_own(struct hand *h, uint64_t span, uint32_t owner,
			    enum pando__span_state state)
{
	hand_span(h, span)->word = PANDO__SPAN_WORD(owner, state, 7);
}

/* Enters pages [from, from + n) of a span. */
static inline void hand_pages(struct hand *h, uint64_t span, unsigned int from, unsigned int n,
			      uint32_t entry)
{
	for (unsigned int p = from; p < from + n; p++) {
		uint64_t at = span + p / PANDO__SPAN_PAGES; /* n may lead into later spans */

		h->view.page_table[(h->first + span) * PANDO__SPAN_PAGES + p] = entry;
		hand_span(h, at)->pages |= 1ull << p % PANDO__SPAN_PAGES;
	}
}

static inline uint16_t *hand_word(struct hand *h, uint64_t span, uint64_t granule)
{
	return &h->view.objects[(h->first + span) * PANDO__SPAN_GRANULES + granule];
}

static inline uint32_t hand_entry(struct hand *h, uint64_t span, unsigned int page)
{
	return h->view.page_table[(h->first + span) * PANDO__SPAN_PAGES + page];
}

static inline uint64_t hand_offset(struct hand *h, uint64_t span, uint64_t granule)
{
	return (h->first + span) * PANDO__SPAN + granule * PANDO__GRANULE;
}

/* A slab in an eighth of a span. */
static inline void hand_slab(struct hand *h, uint64_t span, unsigned int eighth, uint32_t owner,
			     unsigned int class)
{
	hand_pages(h, span, eighth * PANDO__SLAB_PAGES, PANDO__SLAB_PAGES,
		   PANDO__PAGE_ENTRY(owner, class, 0));
}

/* Object `n` of the slab. */
static inline uint16_t *hand_object(struct hand *h, uint64_t span, unsigned int eighth,
				    unsigned int class, unsigned int n)
{
	return hand_word(h, span,
			 (uint64_t)eighth * PANDO__SLAB_GRANULES +
				 (uint64_t)n * (pando__classes[class].size / PANDO__GRANULE));
}

/* A large object of `granules` at a granule of a span, in pages of its own. */
static inline void hand_large(struct hand *h, uint64_t span, uint64_t granule, uint64_t granules,
			      uint32_t owner, uint16_t word)
{
	const unsigned int from = (unsigned int)(granule / PANDO__PAGE_GRANULES);
	const unsigned int to = (unsigned int)((granule + granules - 1) / PANDO__PAGE_GRANULES);

	hand_pages(h, span, from, to - from + 1, PANDO__PAGE_ENTRY(owner, PANDO__CLASS_LARGE, 0));
	for (unsigned int i = 0; i < PANDO__LENGTH_WORDS; i++)
		*hand_word(h, span, granule + 1 + i) = PANDO__OBJECT_LENGTH(granules, i);
	*hand_word(h, span, granule) = word;
}

/* Spans that are neither FREE nor RESERVE. */
static inline uint64_t hand_used(struct hand *h)
{
	uint64_t used = 0;

	for (uint64_t i = h->first; i < h->view.end / PANDO__SPAN; i++) {
		enum pando__span_state state = PANDO__SPAN_STATE(h->view.spans[i].word);

		used += state != PANDO__SPAN_FREE && state != PANDO__SPAN_RESERVE;
	}
	return used;
}

/* Object words and page entries that are not zero, of all spans. */
static inline uint64_t hand_rubbish(struct hand *h)
{
	uint64_t n = 0;

	for (uint64_t g = h->view.first / PANDO__GRANULE; g < h->view.end / PANDO__GRANULE; g++)
		n += h->view.objects[g] != 0;
	for (uint64_t p = h->view.first / PANDO__PAGE; p < h->view.end / PANDO__PAGE; p++)
		n += h->view.page_table[p] != 0;
	for (uint64_t i = h->first; i < h->view.end / PANDO__SPAN; i++)
		n += h->view.spans[i].pages != 0;
	return n;
}

#endif
