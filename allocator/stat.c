/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando_heap_stat() and pando_heap_check(): looking at a heap through a region's handle. They need no
 * front: whoever may read the region may look.
 */
#include <errno.h>
#include <string.h>

#include "common/atomic.h"
#include "common/fail.h"

#include "check.h"
#include "walk.h"

#define LOOKS 10u /* 1 s in all: longer than a process waits for a processor on a busy machine */

static void fill(const struct pando__view *v, uint32_t slot, const struct pando__walk *w,
		 struct pando_heap_stat *st)
{
	const uint64_t end = pando__spans_end(v);

	st->metadata = pando__metadata(v);
	st->size = st->metadata + w->spans * PANDO__SPAN;
	st->spans = w->spans;
	st->spans_free = w->spans_free;
	st->spans_owned = w->spans_owned + w->spans_sweeping;
	st->spans_orphaned = w->spans_orphaned;
	st->pages_used = w->pages;
	for (unsigned int i = 1; i <= PANDO__WALK_LARGE; i++) {
		st->objects += w->classes[i].objects;
		st->objects_bytes += w->classes[i].bytes;
		st->shared += w->classes[i].shared;
		st->held += w->classes[i].held;
		st->pending += w->classes[i].pending;
	}
	if (slot >= PANDO__HEAP_CLIENTS)
		return;
	st->own_quota = pando__ledger_client((struct pando__ledger *)(uintptr_t)v->ledger, slot)
				->heap_quota;
	for (uint64_t i = v->first / PANDO__SPAN; i < end; i++) {
		const uint64_t word = pando__load_relaxed(&v->spans[i].word);

		st->own_spans += PANDO__SPAN_STATE(word) == PANDO__SPAN_OWNED &&
				 PANDO__SPAN_OWNER(word) == slot + 1;
	}
}

int pando_heap_stat_sized(struct pando_region *r, struct pando_heap_stat *st, size_t size)
{
	struct pando_heap_stat whole = {0};
	struct pando__walk w = {0};
	struct pando__view v;
	uint32_t slot;
	int rc = pando__region_view(r, &v, &slot, NULL);

	if (rc < 0)
		return rc;
	if (pando__heap_walk(&v, &w) != 0)
		return pando__fail(EINVAL, "region \"%.63s\" has no heap", v.ledger->name);
	fill(&v, slot, &w, &whole);
	memset(st, 0, size);
	memcpy(st, &whole, size < sizeof(whole) ? size : sizeof(whole));
	return 0;
}

int pando_heap_check(struct pando_region *r)
{
	struct pando__view v;
	const char *slots;
	uint32_t slot;
	int rc = pando__region_view(r, &v, &slot, &slots);

	return rc < 0 ? rc : pando__heap_verify(&v, slots, LOOKS);
}
