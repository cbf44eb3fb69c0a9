/* SPDX-License-Identifier: BSD-2-Clause */
/* Looking at a whole heap while others use it: for pando_heap_stat(), and for `pando heap`. */
#ifndef PANDO_ALLOCATOR_WALK_H
#define PANDO_ALLOCATOR_WALK_H

#include "heap.h"

#define PANDO__WALK_LARGE PANDO__CLASSES /* index of large objects among the classes */

/* Objects of one size class; the last one: large ones. */
struct pando__walk_class {
	uint64_t slabs; /* of large objects: pages */
	uint64_t room; /* objects for which there is room in them; large: 0 */
	uint64_t objects, bytes; /* live: private, held, shared */
	uint64_t shared, held; /* of these */
	uint64_t cached; /* in magazines */
	uint64_t pending; /* freed by others, not collected */
};

/* What one client has. */
struct pando__walk_client {
	uint64_t spans, pages; /* that it owns */
	uint64_t objects, bytes; /* private ones */
	uint64_t held, held_bytes; /* given to it, in whosever spans */
	uint64_t cached, cached_bytes;
	uint64_t pending, pending_bytes; /* in its spans */
	bool told; /* it has been told of pending ones */
};

struct pando__walk {
	uint64_t spans, spans_free, spans_reserve, spans_owned, spans_orphaned, spans_sweeping;
	uint64_t pages; /* in use */
	uint64_t orphan_pages, orphan_objects, orphan_bytes, orphan_pending;
	struct pando__walk_class classes[PANDO__CLASSES + 1]; /* 0 is none */
	struct pando__walk_client *clients; /* by slot; NULL: not counted */
	uint32_t client_count;
};

/*
 * Walks the heap. *w is zero but for clients and client_count. Numbers are those of no one moment:
 * each object is counted as it was when it was looked at. Returns 0, or 1 if there is no heap.
 */
int pando__heap_walk(const struct pando__view *v, struct pando__walk *w);

#endif
