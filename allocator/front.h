/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client's front: what one process keeps, privately, of one region's heap, and what the modules
 * above view and span ask of each other. Nothing in here is needed by others, or by the broker, to
 * free what this client had: it is a cache of what the shared words say.
 */
#ifndef PANDO_ALLOCATOR_FRONT_H
#define PANDO_ALLOCATOR_FRONT_H

#include "heap.h"

struct pando__runs; /* pages.c */
struct pando__slabs; /* slab.c */
struct pando__large; /* large.c */

/*
 * What the fast paths see of a region: the first member of struct pando_region. Written by libshm
 * when it makes a front or has abandoned one, read without a lock.
 */
struct pando__gate {
	uint64_t serial; /* of the front; 0: none */
	struct pando__front *front;
};

/*
 * Objects in a magazine, per thread and size class: 64 to begin with; where a thread has needed them 128,
 * or more up to 512 if they are of 32 KiB together. Frees and allocations of a size at random are seldom
 * more than 128 apart, so that the slabs are seldom needed.
 */
#define PANDO__MAGAZINE 64u
#define PANDO__MAGAZINE_GROWN 128u
#define PANDO__MAGAZINE_MAX 512u
#define PANDO__MAGAZINE_BYTES (32u << 10)

/*
 * What one thread has of one front. In memory that reads as zero in a child of any kind of fork: no
 * magazine has an object there, and no address is in bounds. Written by its thread alone, but for
 * `front` (see thread.c).
 */
struct pando__magazines {
	/* Constants, for the fast paths. */
	uint64_t base;
	uint64_t granules; /* in max_size */
	const uint32_t *page_table;
	uint16_t *objects;
	uintptr_t words; /* &objects[0] - base / 16: where the words of address 0 would be */
	uint32_t me; /* the page-table entry of this client's pages, without class and flags */
	uint32_t intent_number;
	struct pando__intent *intent; /* of this thread */
	/*
	 * remote.c: the slab (offset / PANDO__SLAB) in which this thread frees without telling its
	 * owner each time, or NOTHING_UNTOLD; and the page-table entry of who owns that.
	 */
	uint32_t untold, untold_entry;
#define PANDO__NOTHING_UNTOLD UINT32_MAX
	/*
	 * A magazine for each class: bottom[0] up to top[-1] are pointers to CACHED objects. All NULL: not
	 * in use. Arrays of each rather than one of structs, so that the fast paths need no address.
	 */
	void **top[PANDO__CLASSES], **bottom[PANDO__CLASSES], **limit[PANDO__CLASSES];
	uint16_t fill[PANDO__CLASSES]; /* how many the next refill asks for */
	uint16_t room[PANDO__CLASSES]; /* objects that `limit` can be raised to */

	uint64_t serial;
	struct pando__front *front; /* NULL: gone. Under the lock of thread.c */
	uint32_t cache; /* large.c: the thread's cache in jemalloc + 1; 0: none yet */
	bool intent_shared; /* the last one: under front->intent_lock */
	struct pando__magazines *next; /* of this thread */
	struct pando__magazines *next_of_front, **at_front; /* under the lock of thread.c */
	void *store[PANDO__CLASSES / 2 * (PANDO__MAGAZINE_MAX / 2 + PANDO__MAGAZINE_GROWN)];
};

/* A few bytes of the static TLS block: the library must be loadable by dlopen(). */
struct pando__thread {
	uint64_t serial; /* of `current` */
	struct pando__magazines *current; /* never NULL */
	struct pando__magazines *all;
};
extern _Thread_local struct pando__thread pando__thread
	__attribute__((tls_model("initial-exec"), visibility("hidden")));

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

	struct pando__slabs *slabs; /* slab.c; for each class a list, with its lock */
	struct pando__large *large; /* large.c */
	uint32_t large_count; /* allocations of large objects, for when to collect */
	unsigned int debug; /* PANDO__DEBUG_*; not 0: no fast path; see debug.c. Constant */
	bool heeds; /* others' membarrier(): frees without a locked instruction; remote.c. Constant */
	uint32_t *debug_stays; /* by page: how often it has left this client */

	/* thread.c, under its lock. */
	struct pando__front *next;
	struct pando__magazines *threads;
	uint64_t intents_used[(PANDO__INTENTS + 63) / 64];

	pthread_mutex_t intent_lock; /* remote.c: threads that have no intent to themselves */
};

static inline uint16_t *pando__word(const struct pando__view *v, uint64_t offset)
{
	return &v->objects[offset / PANDO__GRANULE];
}

/* thread.c */

/* This thread's magazines of f, made if there are none, now `current`. NULL with errno: ENOMEM. */
struct pando__magazines *pando__magazines(struct pando__front *f);
/*
 * In a child of any kind of fork whose parent had fronts: forgets them. Called wherever a lock of
 * this module or of a front would be taken next. No fork: does nothing.
 */
void pando__threads_check(void);
/* Empties the calling thread's magazines of f into the slabs. */
void pando__magazines_flush(struct pando__front *f);

/* front.c */

/* pando_alloc() and pando_free() on behalf of `site`. */
void *pando__alloc_for(struct pando_region *r, size_t size, const void *site);
void pando__free_for(struct pando_region *r, void *p, const void *site);

/* Pushes a CACHED small object of this client, flushing half of the magazine if it is full. */
void pando__magazine_push(struct pando__front *f, unsigned int class, void *p);

/* remote.c */

/* Part of the fast path; `entry`: of p's page. False: it is no plain case, and nothing has changed. */
bool pando__object_free_others(struct pando__magazines *m, const void *p, uint32_t entry);

/* object.c */

/*
 * What the fast path of pando_free() does not do: checks, other owners, large objects. site: who frees
 * it, for the debug form.
 */
void pando__object_free(struct pando_region *r, struct pando__front *f, void *p, const void *site);
/* Tells the handler. `doing` begins the sentence: "freeing". Returns if the handler does. */
void pando__misused(struct pando_region *r, const void *p, enum pando_misuse what,
		    const char *doing);
/* Bytes at a small or large object; 0 if the page entry or the length words make no sense. */
uint64_t pando__object_size(const struct pando__view *v, uint64_t offset);

/* span.c. Called with pages_lock held, by pages.c. */

/*
 * Takes `count` (1 for one span) consecutive free spans, the first at an address that is a multiple
 * of `alignment`, as low as possible. Their metadata is committed, their pages are not. Returns the
 * index of the first, or a negative errno with a sentence: -ENOMEM, -EDQUOT.
 */
int64_t pando__span_take(struct pando__front *f, uint32_t count, uint64_t alignment);
#ifdef PANDO_INJECTION
extern uint32_t pando__fake_node; /* for tests: NUMA node + 1 of all threads; 0: the real one */
#endif
/* Takes that one, if it is free. 1, 0 or a negative errno. */
int pando__span_take_at(struct pando__front *f, uint32_t index);
/* Gives back a span of this client whose pages are all free. */
void pando__span_give(struct pando__front *f, uint32_t index);
/*
 * The same for one that the broker has been lent pages of, and whose memory it is giving back: the broker
 * shall give the span back. False if it has ended that meanwhile: then nothing was done.
 */
bool pando__span_leave(struct pando__front *f, uint32_t index);

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
 * The same with flags for the entries. *there: the memory is there already (else it may be): the
 * caller has nothing to commit.
 */
int64_t pando__pages_take(struct pando__front *f, uint64_t length, uint64_t alignment,
			  unsigned int class, unsigned int flags, bool *there);
/*
 * The opposite, for any part of such a run, in spans of this client: the objects in it have been
 * freed. Clears the page table and the pages' bits; a span that has become empty goes back. Gives
 * memory back now or later.
 */
void pando__pages_free(struct pando__front *f, uint64_t offset, uint64_t length);
/* The same where all of them have memory: whoever takes them next need not commit it. */
void pando__pages_free_whole(struct pando__front *f, uint64_t offset, uint64_t length);
/* Gives the memory of all free pages in this client's spans, and of RESERVE spans, back. */
void pando__pages_trim(struct pando__front *f);

/* large.c: any thread. */
int pando__large_init(struct pando__front *f);
void pando__large_deinit(struct pando__front *f, bool abandon);
/* An object of over PANDO__SMALL_MAX bytes, LIVE, committed. NULL with errno: ENOMEM, EDQUOT. */
void *pando__large_alloc(struct pando__front *f, size_t alignment, size_t size);
/* A large object in a page of this client, whose word has been LIVE, held by it, or REMOTE. */
void pando__large_free(struct pando__front *f, uint64_t offset, uint32_t page_entry);
/* Its usable size from its length words; 0 if they make no sense. */
uint64_t pando__large_size(const struct pando__view *v, uint64_t offset);
/* Returns what jemalloc keeps for the calling thread. */
void pando__large_trim(struct pando__front *f);
/* The thread of m ends: what jemalloc keeps for it goes back. Under the lock of thread.c. */
void pando__large_thread_end(struct pando__front *f, struct pando__magazines *m);

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
/* The same, also what they have not told yet (remote.c). */
void pando__collect_all(struct pando__front *f);
/* Returns empty slabs. */
void pando__slabs_trim(struct pando__front *f);

#endif
