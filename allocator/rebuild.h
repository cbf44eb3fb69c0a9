/* SPDX-License-Identifier: BSD-2-Clause */
/* One span without a living owner, judged and cleared by the broker. See rebuild.c. */
#ifndef PANDO_ALLOCATOR_REBUILD_H
#define PANDO_ALLOCATOR_REBUILD_H

#include "heap.h"

struct pando__rebuild {
	const struct pando__view *v;
	struct pando__reclaimed *out;
	uint32_t dead; /* slot + 1 of the client whose objects go; 0: nobody's */
	/*
	 * Granule up to which a surviving object that began in an earlier span of the same dead
	 * owner reaches. Set to 0 by who comes to a span that does not follow the last one.
	 */
	uint64_t carry;
	/* Large objects that were freed stay if spans after this one have a part of them. */
	bool keep_crossing;
};

/* Objects of somebody may lie in a span with this word. */
static inline bool pando__span_in_use(uint64_t word)
{
	return PANDO__SPAN_STATE(word) == PANDO__SPAN_OWNED ||
	       PANDO__SPAN_STATE(word) == PANDO__SPAN_ORPHAN ||
	       PANDO__SPAN_STATE(word) == PANDO__SPAN_SWEEPING;
}

/* Makes an orphan SWEEPING, if it is not already. False: it is none (any more). */
bool pando__rebuild_take(const struct pando__view *v, uint64_t index, uint64_t word);
/*
 * Frees what nobody holds in span `index`, whose word is SWEEPING, and enters what is left as the
 * orphans'. Memory of pages that are free now has been given back. May be repeated at any point.
 */
void pando__rebuild_span(struct pando__rebuild *b, uint64_t index);
/* Ends SWEEPING: nobody's (FREE, RESERVE) or ORPHAN, as pando__rebuild_span() left it. */
void pando__rebuild_finish(const struct pando__view *v, uint64_t index,
			   struct pando__reclaimed *out);
/* Tells whoever collects in the span of the object at `offset` that it is REMOTE. */
void pando__remote_hint(const struct pando__view *v, uint64_t offset);
/* Usable size in granules of the large object whose first word has this index; 0: no sound one. */
uint64_t pando__large_granules(const struct pando__view *v, uint64_t granule);

#define PANDO__SPAN_GRANULES (PANDO__SPAN / PANDO__GRANULE)
#define PANDO__PAGE_GRANULES (PANDO__PAGE / PANDO__GRANULE)
#define PANDO__LANES 0x0001000100010001ull /* the lowest bit of each of four words */

#endif
