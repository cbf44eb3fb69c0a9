/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Region handles on a fake heap (fake_heap.h), so that the public functions of pando/heap.h work on
 * it: each handle is a client of its own, and several of them can be in one process. What libshm
 * gives to the allocator and to libshm/rcu is here: pando__region_front(), pando_region_base(),
 * pando__region_rcu_place().
 */
#ifndef PANDO_TESTS_FAKE_REGION_H
#define PANDO_TESTS_FAKE_REGION_H

#include "fake_heap.h"
#include "directory/directory.h"
#include "rcu/reader.h"

struct pando_region {
	struct pando__gate gate; /* first, as in libshm */
	struct pando__rcu_gate rcu;
	struct pando__directory_gate directory;
	struct fake_heap *heap;
	uint32_t slot;
	uint64_t generation;
	pthread_mutex_t making;
};

/* Attaches client `slot`; its front is made on first use. */
void fake_region_init(struct pando_region *r, struct fake_heap *heap, uint32_t slot);
/*
 * Its process is killed, reaped, and another one gets the slot. What was its alone in the heap is
 * freed. Names of it (pando_self()) mean nobody from now on.
 */
void fake_region_kill(struct pando_region *r, struct pando__reclaimed *out);
/* Forgets its front: what it had in the heap stays, as after a death. */
void fake_region_deinit(struct pando_region *r);

#endif
