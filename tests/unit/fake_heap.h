/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A region with a heap, without broker and clients: a memory file mapped at an address that is a
 * multiple of 1 GiB, a ledger in private memory, slot pages, and as many fronts as a test likes.
 * What a broker would write into the ledger, the test writes. The mapping is shared: forked children
 * see the same heap.
 */
#ifndef PANDO_TESTS_FAKE_HEAP_H
#define PANDO_TESTS_FAKE_HEAP_H

#include <stdbool.h>
#include <stdint.h>

#include "allocator/front.h"

struct fake_heap {
	struct pando__ledger *ledger; /* shared with children as well */
	char *slots;
	int fd;
	char *room; /* the mapping with its margins */
	uint64_t room_size;
	struct pando__view view; /* of the "broker" */
};

/* lazy: as if it was made with PANDO_HEAP. committed: bytes, of max_size. Exits on failure. */
void fake_heap_init(struct fake_heap *h, uint64_t max_size, uint64_t committed, bool lazy);
void fake_heap_deinit(struct fake_heap *h);

/* Bytes of memory that the region's file has. */
uint64_t fake_heap_memory(const struct fake_heap *h);

/* Attaches client `slot` (uid 0) and makes the lower half of a front: view, identity, pages. */
struct pando__front *fake_front_new(struct fake_heap *h, uint32_t slot);
void fake_front_free(struct pando__front *f);

/* What the broker does about spans of dead client `slot`, of which no objects live. */
void fake_heap_bury(struct fake_heap *h, uint32_t slot);

#endif
