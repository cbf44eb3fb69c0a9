/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The heap's insides.
 *
 * Modules, from below:
 *
 *	geometry.c	where the tables lie, for a region of a given size; size classes
 *	commit.c	memory from the system and back, in regions that are made for a heap
 *	span.c		spans: taking, giving back, adopting
 *	pages.c		runs of pages in this client's spans
 *	large.c		objects over PANDO__SMALL_MAX: jemalloc, its extent hooks, loose pages
 *	slab.c		slabs: refilling and flushing magazines, collecting what others have freed
 *	front.c		the fast paths: magazines of threads; alloc and free
 *	object.c	owner, transfer, share, realloc, misuse
 *	remote.c	freeing in the spans of others
 *	debug.c		the debug form of a front
 *	stat.c, check.c	walking the heap
 *	reclaim.c	what the broker does: the dead, orphans, the idle. Needs no front
 *
 * Of the lower layers a front is made with: struct pando__view (addresses of the tables; the broker
 * has one as well, of its own mapping) and struct pando__front (a client's, process-private).
 *
 * Locks, all private to the process, in this order: class locks of a front (slab.c), jemalloc's own,
 * front->pages_lock. None is held while another process is waited for. The broker's are none.
 */
#ifndef PANDO_ALLOCATOR_HEAP_H
#define PANDO_ALLOCATOR_HEAP_H

#include <pthread.h>
#include <stdbool.h>

#include <pando/heap.h>

#include "common/layout.h"
#include "layout.h"

/* A mapping of a heap. Constant after pando__view_init(). */
struct pando__view {
	char *base; /* here; equal in all clients, but not in the broker */
	uint64_t max_size; /* bytes of address space, from the ledger */
	const struct pando__ledger *ledger;
	struct pando__heap *heap; /* at base */
	struct pando__heap_client *clients;
	struct pando__span *spans; /* by offset / PANDO__SPAN */
	uint32_t *page_table; /* by offset / PANDO__PAGE */
	uint16_t *objects; /* by offset / PANDO__GRANULE */
	uint64_t first, end; /* offsets of the first usable span and of the last one's end */
	bool lazy; /* PANDO_HEAP: memory is taken and given back with use */
	/* Bytes that the machine can spare (NULL: not asked): see pando__memory_available(). */
	uint64_t (*available)(void);
	/* Who looks at it: slot + 1, or PANDO__OWNER_BROKER; 0: gives no reserves back by itself. */
	uint32_t self;
};

/* geometry.c */

/*
 * Computes where the tables of a heap of max_size bytes lie, believing nothing in the heap. Returns
 * 0 or -EINVAL (too small: less than two spans would be left).
 */
int pando__view_init(struct pando__view *v, char *base, const struct pando__ledger *ledger);
/* The index behind the last span that may be used in a region of `size` bytes; as it is now. */
uint32_t pando__span_limit(const struct pando__view *v, uint64_t size);
uint32_t pando__spans_end(const struct pando__view *v);
/* Where the span table of a region of `size` bytes lies, which must have memory: offset, *length. */
uint64_t pando__span_table(const struct pando__view *v, uint64_t size, uint64_t *length);
/* Bytes of the tables beside the spans that may be used now, when all of these are in use. */
uint64_t pando__metadata(const struct pando__view *v);
/*
 * Makes the heap if there is none. Any number of processes at once; killed anywhere, the next one
 * does it. Returns 0; -EINVAL (the region has other content); -ENOMEM.
 */
int pando__heap_format(struct pando__view *v);
/*
 * Is the client that `holder` names (slot + 1, its generation << 16; any value) attached? Sequentially
 * consistent: what a client does under an intent before it asks, its reaper sees after the answer "no".
 */
bool pando__attached(const struct pando__view *v, uint64_t holder);

/* Found without a detour by the fast paths. */
#define PANDO__HIDDEN __attribute__((visibility("hidden")))
#define PANDO__CLASSES 17u /* class 0 is none; 1..16 are 32 bytes to 1 KiB */
struct pando__class {
	uint32_t size; /* bytes, a multiple of the granule */
	uint32_t count; /* objects in a slab */
	uint32_t inverse; /* granule index / (size / granule) == (index * inverse) >> 16 */
};
extern const struct pando__class pando__classes[PANDO__CLASSES] PANDO__HIDDEN;
/* The class for 1..PANDO__SMALL_MAX bytes. */
extern const uint8_t pando__class_of_granules[PANDO__SMALL_MAX / PANDO__GRANULE + 1] PANDO__HIDDEN;

static inline uint64_t pando__offset(const struct pando__view *v, const void *p)
{
	return (uint64_t)((const char *)p - v->base); /* huge if p lies below */
}

/* commit.c. Ranges are offsets, multiples of PANDO__PAGE. */

/* Makes sure that there is memory: 0 or -ENOMEM. Nothing to do in a region that is not lazy. */
int pando__commit(const struct pando__view *v, uint64_t offset, uint64_t length);
/* Gives memory back, if the system takes it; what it reads as afterwards is undefined. Nothing to do
 * in a region that is not lazy. */
void pando__decommit(const struct pando__view *v, uint64_t offset, uint64_t length);
/* The same for pages of one span: bit n is page n. */
void pando__decommit_pages(const struct pando__view *v, uint64_t index, uint64_t pages);

/* span.c: what needs no front. Spans by index: offset / PANDO__SPAN. */

/*
 * Lets go of a span that has no page in use: it becomes RESERVE or FREE. `word` is the span's word,
 * which says OWNED or SWEEPING by the caller. False if the word is another one.
 */
bool pando__span_release(const struct pando__view *v, uint32_t index, uint64_t word);
/*
 * Gives the memory of spans back that have been RESERVE for at least age_ms, at most `most` of them, and
 * for the broker, of free pages that it has been lent. `purger`: slot + 1, or PANDO__OWNER_BROKER.
 * Returns of how many spans. Two system calls for each run of empty ones, each of which waits for others
 * who do the same to the region; any thread, the broker's one at a time.
 */
uint32_t pando__spans_purge(const struct pando__view *v, uint32_t purger, uint32_t age_ms,
			    uint32_t most);
/* Set after a span has become RESERVE or LENT: there is something to purge. */
void pando__purge_hint(const struct pando__view *v);
/*
 * For the broker. Finishes what it, or one before it, had begun with the pages lent to it in a span
 * that is OWNED or ORPHAN.
 */
void pando__span_unlend(const struct pando__view *v, uint32_t index);
/*
 * For the broker. Finishes what a purger left that is dead: ABSENT by `purger` becomes FREE.
 */
void pando__span_finish(const struct pando__view *v, uint32_t index, uint32_t purger);
/*
 * For the broker, before the committed size becomes `size`, which is smaller: takes the spans that
 * end beyond it out of use. 0, or -EBUSY with a sentence and all as before: one is in use.
 */
int pando__spans_shrink(const struct pando__view *v, uint64_t size);
/*
 * For the broker, after the committed size has grown, after a shrinking that did not happen, and
 * when it takes up a region: spans below the committed size are ABSENT no more.
 */
void pando__spans_settle(const struct pando__view *v);

/* A client's front. Process-private memory; made anew in a forked child. */
struct pando__front; /* front.h */

/*
 * Given by libshm, which knows the region's handle: the front of r, made on first use, or after a
 * fork() in the child. NULL with errno and a sentence.
 */
struct pando__front *pando__region_front(struct pando_region *r);

/*
 * Given by libshm as well: a view of r for looking, without a front (also read-only), the own slot
 * (PANDO__MAX_CLIENTS or more: none) and the slots file (slots may be NULL). 0, or -EINVAL with a
 * sentence.
 */
int pando__region_view(struct pando_region *r, struct pando__view *v, uint32_t *slot,
		       const char **slots);

/* What libshm gives when it makes a front. */
struct pando__front_options {
	struct pando_region *region; /* for the misuse handler */
	char *base;
	const struct pando__ledger *ledger;
	char *slots; /* the slots file, mapped; the own page is writable */
	uint32_t slot; /* own slot */
	uint64_t generation; /* of the own slot */
	uint64_t (*available)(void); /* see struct pando__view; may be NULL */
};

/*
 * object.c, for libshm/directory. An object that this client holds becomes the directory's: one step;
 * from then on nobody frees it, gives it away or shares it. 0; -EINVAL, -EPERM (also where it is the
 * region's: take it first), -EALREADY, with a sentence.
 */
int pando__object_publish(struct pando_region *r, void *p);
/* large.c: around a fork() of this process, by the handlers of libshm. */
void pando__large_fork_prepare(void);
void pando__large_fork_parent(void);
void pando__large_fork_child(void);

/* front.c */
struct pando__front *pando__front_new(const struct pando__front_options *o);
/*
 * Detaching: private objects of this client are freed (the broker does the same for one that dies;
 * what is left undone here, it does when the slot is given back).
 */
void pando__front_free(struct pando__front *f);
/* In the child of a fork(): forgets the parent's front without touching shared memory. */
void pando__front_abandon(struct pando__front *f);

/*
 * reclaim.c, for libshm/directory and the broker. The opposite: what is the directory's becomes held
 * by client `slot`. For that client, or for the broker on its behalf, as often as one likes: true if
 * it is so afterwards. offset: of an object, from the base; bounded by the caller.
 */
bool pando__object_withdraw(const struct pando__view *v, uint64_t offset, uint32_t slot);

/*
 * reclaim.c: for the broker, on any thread, one caller for each region at a time. Everything here
 * may be killed at any point and called again, and trusts nothing in the heap or in slot pages. All
 * return 0, or 1 if there is no heap.
 */

struct pando__reclaimed {
	uint64_t objects, bytes; /* freed */
	uint64_t spans_freed, spans_orphaned;
};
bool pando__heap_there(const struct pando__view *v);
/*
 * Takes what client `slot` had, which is dead and whose slot page is still as it left it: finishes its
 * intents, frees what was its alone, frees or orphans its spans. slots: the whole slots file.
 */
int pando__heap_reap(const struct pando__view *v, const char *slots, uint32_t slot,
		     struct pando__reclaimed *out);
/*
 * Tells owners what others have freed in their slabs and not told them yet: all owners (0), or that
 * one (slot + 1), a client that keeps its spans meanwhile.
 */
void pando__heap_tell(const struct pando__view *v, const char *slots, uint32_t owner);
/*
 * Sets the bits of slots that transfers under way name, and which must not be given to other clients
 * yet, in bits[] (cleared before): PANDO__HEAP_CLIENTS of them. slots: the whole slots file.
 */
void pando__heap_slots_named(const struct pando__view *v, const char *slots, uint64_t *bits);
/* Frees what has been freed in orphans, and the spans that are empty then. */
int pando__heap_sweep(const struct pando__view *v, struct pando__reclaimed *out);
/*
 * What others have freed in slabs of a client that does not collect it itself becomes free, and the
 * memory of slabs that are empty then goes back to the system.
 */
int pando__heap_collect_idle(const struct pando__view *v, uint32_t slot,
			     struct pando__reclaimed *out);
/*
 * After the death of a caller of any of these: puts back the hints that it had taken, and sweeps.
 * Reads all object words of spans in use.
 */
int pando__heap_recover(const struct pando__view *v, struct pando__reclaimed *out);

#endif
