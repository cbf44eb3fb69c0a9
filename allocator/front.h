/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client's front: what one process keeps, privately, of one region's heap, and what the modules
 * above view and span ask of each other. Nothing in here is needed by others, or by the broker, to
 * free what this client had: it is a cache of what the shared words say.
 */
#ifndef PANDO_ALLOCATOR_FRONT_H
#define PANDO_ALLOCATOR_FRONT_H

#include "heap.h"

struct pando__slab_list; /* slab.c */
struct pando__runs; /* pages.c */
struct pando__large; /* large.c */

struct pando__front {
	struct pando__view view;
	struct pando_region *region;
	char *slots;
	struct pando__intent *intents; /* in the own slot page */
	uint32_t slot;
	uint32_t me; /* slot + 1 */
	uint64_t generation;
	uint64_t serial; /* of fronts in this process: a thread's magazines know theirs by it */

	pthread_mutex_t pages_lock; /* span.c, pages.c: */
	uint32_t *own; /* span indices that this client owns, unordered */
	uint32_t own_count, own_room;
	struct pando__runs *runs; /* pages.c: free pages in them */

	struct pando__slab_list *slabs; /* slab.c; one for each class, each with its lock */
	struct pando__large *large; /* large.c */
};

/* span.c. Called with pages_lock held, by pages.c. */

/*
 * Takes `count` (1 for one span) consecutive free spans, the first at an address that is a multiple
 * of `alignment`, as low as possible. Their metadata is committed, their pages are not. Returns the
 * index of the first, or a negative errno with a sentence: -ENOMEM, -EDQUOT.
 */
int64_t pando__span_take(struct pando__front *f, uint32_t count, uint64_t alignment);
/* Gives back a span of this client whose pages are all free. */
void pando__span_give(struct pando__front *f, uint32_t index);

/* pages.c: any thread, no lock held. Runs of pages in this client's spans. */

/* Of a front that has view, slot and me. Makes pages_lock and `own`. 0 or -ENOMEM. */
int pando__pages_init(struct pando__front *f);
/* Frees what is private; shared memory stays as it is. Also in the child of a fork(). */
void pando__pages_deinit(struct pando__front *f);
/*
 * Adopts an orphaned span that has a slab of `class`, if there is one: its pages name this client
 * afterwards, those of large objects with PANDO__PAGE_LOOSE. Returns its index or -ENOENT.
 */
int64_t pando__span_adopt(struct pando__front *f, unsigned int class);

/*
 * `length` bytes (a multiple of PANDO__PAGE) at a multiple of `alignment`, entered in the page table
 * as `class`, not committed. Returns the offset, or a negative errno.
 */
int64_t pando__pages_alloc(struct pando__front *f, uint64_t length, uint64_t alignment,
			   unsigned int class);
/*
 * The opposite, for any part of such a run, in spans of this client: the objects in it have been
 * freed. Clears the page table and the pages' bits; a span that has become empty goes back. Gives
 * memory back now or later.
 */
void pando__pages_free(struct pando__front *f, uint64_t offset, uint64_t length);

/* large.c: any thread. */
int pando__large_init(struct pando__front *f);
void pando__large_deinit(struct pando__front *f, bool abandon);
/* An object of over PANDO__SMALL_MAX bytes, LIVE, committed. NULL with errno: ENOMEM, EDQUOT. */
void *pando__large_alloc(struct pando__front *f, size_t alignment, size_t size);
/* A large object in a page of this client, whose word has been LIVE, held by it, or REMOTE. */
void pando__large_free(struct pando__front *f, uint64_t offset, uint32_t page_entry);
/* Its usable size from its length words; 0 if they make no sense. */
uint64_t pando__large_size(const struct pando__view *v, uint64_t offset);
void pando__large_trim(struct pando__front *f);

/* slab.c: any thread. Magazines hold pointers to objects whose words are CACHED. */
int pando__slabs_init(struct pando__front *f);
void pando__slabs_deinit(struct pando__front *f);
/* Up to `want` CACHED objects of the class into out[]. Returns how many, or a negative errno. */
int pando__slab_refill(struct pando__front *f, unsigned int class, void **out, unsigned int want);
/* `count` CACHED objects of the class become FREE. */
void pando__slab_flush(struct pando__front *f, unsigned int class, void *const *objects,
		       unsigned int count);
/* Collects what others have freed in this client's spans, small and large. */
void pando__collect(struct pando__front *f);
/* Returns empty slabs. */
void pando__slabs_trim(struct pando__front *f);

#endif
