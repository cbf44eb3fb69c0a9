/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where the tables of a heap lie, making a heap, and the size classes.
 *
 * The geometry follows from the region's maximum size and from whether it takes memory with use,
 * which the ledger says, and from nothing that lies in the heap: every client and the broker compute
 * it for themselves and agree. The header repeats it for people and for programs of another version.
 *
 * The tables are made for the maximum, so that they stay where they are when the region grows. Where
 * all of the committed size has memory, they must lie in it, so they lie in front:
 *
 *	offset		what					bytes, for 1 GiB
 *	0		header					4 KiB
 *	4 KiB		a line for each client			1 MiB
 *	...		span table, 32 B for each 256 KiB	128 KiB
 *	...		page table, 4 B for each 4 KiB		1 MiB
 *	...		object words, 2 B for each 32 B		64 MiB
 *	first		spans
 *
 * Where memory comes with use, addresses cost nothing: there the tables lie at the end of the
 * maximum, and the spans begin behind the one that has the header. So a region of some MiB carries a
 * heap as well as a large one. Its committed size then is what the heap takes at most, tables
 * included; pando__span_limit() says how many spans that is.
 *
 * Each table begins at a page, so that a region that takes memory with use can take it for one part
 * of one table. What is committed when: the header by pando__heap_format(), and the span table, as
 * far as the region reaches; the rest of that by the broker, before the region grows; a client's
 * line by pando__front_new(); a span's part of page table and object words by who takes the span.
 * So the words of spans that may be used can be read at any time, the rest behind one that is not FREE.
 *
 * Making the heap is writing the header: its fields, then by one compare-and-swap its magic. Two who
 * do it at once write the same; one who is killed leaves a header without a magic, whose fields are
 * zero or right. Anything else in that page is somebody's data, and the region carries no heap.
 */
#include "heap.h"

#include <errno.h>
#include <string.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

static_assert(PANDO__SMALL_MAX == 1024, "the tables below");
static_assert(PANDO__GRANULE == 32, "the tables below");
static_assert(PANDO__GRANULE == PANDO_HEAP_GRANULE, "promised in the public header");
static_assert(PANDO__SPAN_PAGES == 64, "a word of bits in struct pando__span");
static_assert(sizeof(struct pando__intent) * PANDO__INTENTS + PANDO__INTENTS_OFFSET <=
		      PANDO__SLOT_SIZE,
	      "intents lie in the slot page");

#define SIZE_CLASS(granules)                                                                       \
	{                                                                                          \
		.size = (granules)*PANDO__GRANULE, .count = PANDO__SLAB_GRANULES / (granules),     \
		.inverse = (65536 + (granules)-1) / (granules)                                     \
	}

/* Four for each doubling: at most a fifth is lost, a seventh on average. */
const struct pando__class pando__classes[PANDO__CLASSES] = {
	{.size = 0},	SIZE_CLASS(1),	SIZE_CLASS(2),	SIZE_CLASS(3),	SIZE_CLASS(4),
	SIZE_CLASS(5),	SIZE_CLASS(6),	SIZE_CLASS(7),	SIZE_CLASS(8),	SIZE_CLASS(10),
	SIZE_CLASS(12), SIZE_CLASS(14), SIZE_CLASS(16), SIZE_CLASS(20), SIZE_CLASS(24),
	SIZE_CLASS(28), SIZE_CLASS(32),
};

/* An object of size 0 takes a granule like one of size 1. */
const uint8_t pando__class_of_granules[PANDO__SMALL_MAX / PANDO__GRANULE + 1] = {
	1,  1,	2,  3,	4,  5,	6,  7,	8,  9,	9,  10, 10, 11, 11, 12, 12,
	13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15, 16, 16, 16, 16,
};

static uint64_t page_up(uint64_t bytes)
{
	return (bytes + PANDO__PAGE - 1) / PANDO__PAGE * PANDO__PAGE;
}

/* The header that a heap of this size has, without its magic. */
static void describe(struct pando__heap *h, uint64_t max_size, bool lazy)
{
	const uint64_t clients =
		page_up(PANDO__HEAP_CLIENTS * (uint64_t)sizeof(struct pando__heap_client));
	const uint64_t spans = page_up(max_size / PANDO__SPAN * sizeof(struct pando__span));
	const uint64_t pages = page_up(max_size / PANDO__PAGE * sizeof(uint32_t));
	const uint64_t objects = page_up(max_size / PANDO__GRANULE * sizeof(uint16_t));
	const uint64_t tables = clients + spans + pages + objects;
	const uint64_t end = max_size / PANDO__PAGE * PANDO__PAGE;

	memset(h, 0, sizeof(*h));
	h->version = PANDO__HEAP_VERSION;
	h->granule = PANDO__GRANULE;
	h->clients = !lazy || tables > end ? PANDO__PAGE : end - tables;
	h->spans = h->clients + clients;
	h->page_table = h->spans + spans;
	h->objects = h->page_table + pages;
	h->first = lazy ? PANDO__SPAN
			: (h->objects + objects + PANDO__SPAN - 1) / PANDO__SPAN * PANDO__SPAN;
	h->end = (lazy ? h->clients : max_size) / PANDO__SPAN * PANDO__SPAN;
}

int pando__view_init(struct pando__view *v, char *base, const struct pando__ledger *ledger)
{
	struct pando__heap h;

	memset(v, 0, sizeof(*v));
	v->base = base;
	v->ledger = ledger;
	v->max_size = ledger->max_size;
	v->lazy = (ledger->flags & PANDO_HEAP) && ledger->page_size == PANDO__PAGE;
	describe(&h, v->max_size, v->lazy);
	if (v->max_size >> 47 || h.end < h.first || h.end - h.first < 2ull * PANDO__SPAN)
		return pando__fail(EINVAL,
				   "region \"%.63s\" is too small for a heap: %llu bytes at most",
				   ledger->name, (unsigned long long)v->max_size);
	v->heap = (struct pando__heap *)base;
	v->clients = (struct pando__heap_client *)(base + h.clients);
	v->spans = (struct pando__span *)(base + h.spans);
	v->page_table = (uint32_t *)(base + h.page_table);
	v->objects = (uint16_t *)(base + h.objects);
	v->first = h.first;
	v->end = h.end;
	return 0;
}

/* What a heap takes that takes memory with use: for each span, and beside that (header, lines). */
#define EACH_SPAN                                                                                  \
	(PANDO__SPAN + PANDO__SPAN / PANDO__GRANULE * sizeof(uint16_t) +                           \
	 PANDO__SPAN_PAGES * sizeof(uint32_t) + sizeof(struct pando__span))
#define BESIDE (2 * PANDO__PAGE)

uint32_t pando__span_limit(const struct pando__view *v, uint64_t size)
{
	const uint64_t end = v->end / PANDO__SPAN;
	uint64_t limit = size / PANDO__SPAN;

	if (v->lazy)
		limit = v->first / PANDO__SPAN + (size < BESIDE ? 0 : (size - BESIDE) / EACH_SPAN);
	return (uint32_t)(limit < end ? limit : end);
}

uint32_t pando__spans_end(const struct pando__view *v)
{
	/* Pairs with the broker's release store: what is below it may be used. */
	return pando__span_limit(v, pando__load_acquire(&v->ledger->committed));
}

uint64_t pando__span_table(const struct pando__view *v, uint64_t size, uint64_t *length)
{
	*length = page_up(pando__span_limit(v, size) * (uint64_t)sizeof(struct pando__span));
	return (uint64_t)((char *)v->spans - v->base);
}

uint64_t pando__metadata(const struct pando__view *v)
{
	const uint64_t first = v->first / PANDO__SPAN, end = pando__spans_end(v);

	if (!v->lazy)
		return v->first;
	return BESIDE + (end > first ? end - first : 0) * (EACH_SPAN - PANDO__SPAN);
}

static int not_a_heap(const struct pando__view *v)
{
	return pando__fail(EINVAL,
			   "region \"%.63s\" carries no heap: its first page has other content",
			   v->ledger->name);
}

/*
 * Writes the header's fields that are not there yet. They are read one by one, as somebody else may
 * be writing them; hints, which change all the time, begin at `search`.
 */
static int fill_header(const struct pando__view *v, const struct pando__heap *want)
{
	const uint64_t *from = (const uint64_t *)(const void *)want;
	uint64_t *to = (uint64_t *)(void *)v->heap;

	for (size_t i = 1; i < offsetof(struct pando__heap, search) / sizeof(uint64_t); i++) {
		uint64_t there = pando__load_relaxed(&to[i]);

		if (there != 0 && there != from[i])
			return not_a_heap(v);
	}
	for (size_t i = 1; i < offsetof(struct pando__heap, search) / sizeof(uint64_t); i++)
		if (from[i] != pando__load_relaxed(&to[i]))
			pando__store_relaxed(&to[i], from[i]);
	PANDO_INJECT("heap.format.fields");
	return 0;
}

int pando__heap_format(struct pando__view *v)
{
	const uint64_t committed = pando__load_acquire(&v->ledger->committed);
	struct pando__heap want;
	uint64_t magic, table, length;
	int rc;

	describe(&want, v->max_size, v->lazy);
	if (pando__span_limit(v, committed) <= v->first / PANDO__SPAN)
		return pando__fail(
			ENOMEM,
			v->lazy ? "region \"%.63s\" has %llu bytes; a heap takes %llu at "
				  "least"
				: "region \"%.63s\" has %llu bytes, and a heap in it takes "
				  "%llu at least, for the tables of its maximum size; make "
				  "it larger, with a smaller maximum, or with PANDO_HEAP",
			v->ledger->name, (unsigned long long)committed,
			(unsigned long long)(v->lazy ? BESIDE + EACH_SPAN
						     : want.first + PANDO__SPAN));
	table = pando__span_table(v, committed, &length);
	rc = pando__commit(v, 0, PANDO__PAGE);
	if (rc == 0)
		rc = pando__commit(v, table, length);
	if (rc < 0)
		return rc;
	/* Pairs with the compare-and-swap below: the fields were there before the magic. */
	magic = pando__load_acquire(&v->heap->magic);
	if (magic != 0 && magic != PANDO__HEAP_MAGIC)
		return not_a_heap(v);
	rc = fill_header(v, &want);
	if (rc < 0 || magic != 0)
		return rc;
	if (!pando__cas_acq_rel(&v->heap->magic, &magic, PANDO__HEAP_MAGIC) &&
	    magic != PANDO__HEAP_MAGIC)
		return not_a_heap(v);
	return 0;
}

bool pando__attached(const struct pando__view *v, uint64_t holder)
{
	const uint64_t slot = (holder & 0xffff) - 1; /* 0: huge */
	struct pando__ledger *l = (struct pando__ledger *)(uintptr_t)v->ledger;
	uint64_t word;

	if (slot >= PANDO__HEAP_CLIENTS || slot >= pando__load_acquire(&l->clients_high))
		return false;
	word = pando__load_seq_cst(&pando__ledger_client(l, (uint32_t)slot)->word);
	return PANDO__CLIENT_STATE(word) == PANDO__CLIENT_LIVE &&
	       (PANDO__CLIENT_GENERATION(word) & 0xffffffffffffull) == holder >> 16;
}
