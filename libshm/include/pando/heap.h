/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The heap of a region: objects in shared memory.
 *
 * Every region can carry one heap; it comes into being with the first allocation, and from then on
 * the region's memory belongs to it (a region that a program has written to directly cannot carry
 * one). In a region made with PANDO_HEAP the heap takes memory from the system as it needs it and
 * returns it; in any other region it lives in the memory that was committed when the region was
 * made.
 *
 * Ownership. An object is private, held or shared:
 *
 *	private	belongs to the client (process) that allocated it, and dies with it
 *	held	was given to a client by pando_transfer(), and dies with that one
 *	shared	belongs to the region (pando_share()), and dies when somebody frees it
 *	published	belongs to a name (pando_publish()), and dies when that gets another one
 *
 * Any thread of any attached process may read and write an object; who may free it, its state says:
 * its holder, or anybody if it is shared. A private object may be freed by another process as well,
 * if its owner has handed the pointer on and lives; if the owner may die meanwhile, transfer it.
 *
 * A process can be killed at any instruction. Nobody else waits for it; what was its alone is freed
 * by the broker, and nothing else is.
 *
 * Threads and signals: unless said otherwise, every function here may be called by any thread and by
 * no signal handler, takes no lock that another process could hold, and makes no system call on its
 * usual path. After fork() the child is a client of its own: it may use and free what its parent has
 * shared or transferred to it, and allocates from a heap front of its own.
 */
#ifndef PANDO_HEAP_H
#define PANDO_HEAP_H

#include <stdbool.h>

#include <pando/region.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PANDO_MALLOC(size) __attribute__((malloc, alloc_size(size)))
#define PANDO_MALLOC2(n, size) __attribute__((malloc, alloc_size(n, size)))
#else
#define PANDO_MALLOC(size)
#define PANDO_MALLOC2(n, size)
#endif

/* Every object is aligned to this many bytes at least; no object takes less. */
#define PANDO_HEAP_GRANULE 32

/*
 * Allocates `size` bytes, uninitialised, private to this client. Size 0 gives an object that can be
 * freed. The memory is there: touching it never raises SIGBUS. NULL on failure, with errno set and
 * a sentence in pando_strerror_last(): ENOMEM (the region is full, or the system has no memory),
 * EDQUOT (this client's or this user's quota), EACCES (attached read-only), EINVAL (the region
 * carries no heap and cannot), ECONNRESET (a forked child that the broker does not answer).
 */
PANDO_API PANDO_NODISCARD void *pando_alloc(struct pando_region *r, size_t size) PANDO_NONNULL(1)
	PANDO_MALLOC(2);

/*
 * The same at a multiple of `alignment`, a power of two (else EINVAL) up to the size of the region.
 */
PANDO_API PANDO_NODISCARD void *pando_alloc_aligned(struct pando_region *r, size_t alignment,
						    size_t size) PANDO_NONNULL(1) PANDO_MALLOC(3);

/* n * size bytes of zeros. ENOMEM also if the product overflows. */
PANDO_API PANDO_NODISCARD void *pando_calloc(struct pando_region *r, size_t n, size_t size)
	PANDO_NONNULL(1) PANDO_MALLOC2(2, 3);

/*
 * Changes an object's size; its content is kept up to the smaller one. p NULL allocates; size 0
 * gives the smallest object (it does not free). The result is private, or held or shared as p was.
 * On failure p is as it was. Who may free p may do this.
 */
PANDO_API PANDO_NODISCARD void *pando_realloc(struct pando_region *r, void *p, size_t size)
	PANDO_NONNULL(1);

/*
 * Frees an object of this region. NULL is ignored. Not an object of this region, not the beginning
 * of one, freed before, or held by another client: goes to the handler of
 * pando_heap_on_misuse(), with the heap intact.
 */
PANDO_API void pando_free(struct pando_region *r, void *p) PANDO_NONNULL(1);

/* Bytes that may be used at p, at least what was asked for. 0 if p is not an object of r. */
PANDO_API size_t pando_usable_size(struct pando_region *r, const void *p) PANDO_NONNULL(1);

enum pando_holding {
	PANDO_HOLDING_NONE = 0, /* no live object begins there */
	PANDO_HOLDING_PRIVATE = 1,
	PANDO_HOLDING_HELD = 2,
	PANDO_HOLDING_SHARED = 3,
	PANDO_HOLDING_PUBLISHED = 4 /* has a name: pando/directory.h */
};

/*
 * An attached process as a holder of objects in one region. Valid until it detaches: never another
 * process, even if its slot is given to one. 0 is nobody.
 */
typedef uint64_t pando_holder;

/* This process in this region; asks the broker after a fork(). 0 on failure, with a sentence. */
PANDO_API pando_holder pando_self(struct pando_region *r) PANDO_NONNULL(1);

/*
 * Who holds the object at p. *holder (may be NULL) becomes the client for private and held ones,
 * 0 otherwise. Any other thread may change that at any time unless it is the caller's.
 */
PANDO_API enum pando_holding pando_owner(struct pando_region *r, const void *p,
					 pando_holder *holder) PANDO_NONNULL(1);

/*
 * Gives an object that this client holds, or a shared one, to `to`: one atomic step. The receiver
 * learns of it by means of its own (a message, a word in shared memory). A receiver that dies takes
 * the object along, as soon as it has it. Returns 0; -ESRCH (`to` has detached: the object stays
 * where it was), -EPERM (another client holds it), -EINVAL (not an
 * object), -EUSERS (its slot number is over what an object's state can name: 16382 clients).
 */
PANDO_API PANDO_NODISCARD int pando_transfer(struct pando_region *r, void *p, pando_holder to)
	PANDO_NONNULL(1, 2);

/*
 * Lets an object that this client holds outlive it: from now on it belongs to the region, until
 * somebody frees it. Sharing a shared one changes nothing. Returns 0; -EPERM, -EINVAL.
 */
PANDO_API PANDO_NODISCARD int pando_share(struct pando_region *r, void *p) PANDO_NONNULL(1, 2);

enum pando_misuse {
	PANDO_MISUSE_NOT_OURS = 1, /* no address of the region's objects */
	PANDO_MISUSE_INTERIOR = 2, /* inside an object, or no object's beginning */
	PANDO_MISUSE_DOUBLE_FREE = 3, /* free already: freed twice, or a pointer kept too long */
	PANDO_MISUSE_FOREIGN = 4, /* held by another client */
	PANDO_MISUSE_OVERRUN = 5, /* debug form: something wrote beyond the object's end */
	PANDO_MISUSE_WRITTEN_FREE = 6 /* debug form: something wrote there while it was free */
};

/* `sentence` says what and where; it is valid during the call. */
typedef void (*pando_misuse_fn)(struct pando_region *r, const void *p, enum pando_misuse what,
				const char *sentence, void *arg);

/*
 * What to call when pando_free() or pando_realloc() meets such a pointer; NULL: the default, which
 * writes the sentence to standard error and aborts. If the handler returns, the call does nothing.
 * For the whole process. Not while other threads free. In the debug form
 * ($PANDO_HEAP_DEBUG, see pando_alloc(3)) allocating calls it too, and goes on if it returns.
 */
PANDO_API void pando_heap_on_misuse(pando_misuse_fn handler, void *arg);

/* What a heap is made of, in bytes unless said otherwise. Counted by walking, without a lock. */
struct pando_heap_stat {
	uint64_t size; /* what the heap may take: metadata and spans */
	uint64_t metadata; /* of that, side metadata */
	uint64_t spans, spans_free, spans_owned, spans_orphaned; /* numbers of 256 KiB spans */
	uint64_t pages_used; /* number of 4 KiB pages in slabs and large objects */
	uint64_t objects, objects_bytes; /* live ones; usable bytes */
	uint64_t shared, held; /* of the objects, these */
	uint64_t pending; /* objects freed by others that their owner has not collected yet */
	uint64_t own_spans, own_quota; /* of this client; quota 0: none */
};

/* Fills *st. Returns 0; -EINVAL (no heap there). Milliseconds for each GiB in use. */
PANDO_API PANDO_NODISCARD int pando_heap_stat_sized(struct pando_region *r,
						    struct pando_heap_stat *st, size_t size)
	PANDO_NONNULL(1, 2);
static inline PANDO_NODISCARD int pando_heap_stat(struct pando_region *r,
						  struct pando_heap_stat *st)
{
	return pando_heap_stat_sized(r, st, sizeof(*st));
}

/*
 * Walks the heap and verifies every invariant, while others go on. Returns 0; -EUCLEAN with the
 * first broken one in pando_strerror_last(); -EINVAL (no heap there).
 */
PANDO_API PANDO_NODISCARD int pando_heap_check(struct pando_region *r) PANDO_NONNULL(1);

/* Returns what this client keeps for speed (magazines, empty slabs, jemalloc's caches of the
 * calling thread and arena) to the heap, and empty spans to the system. Returns 0. */
PANDO_API int pando_heap_trim(struct pando_region *r) PANDO_NONNULL(1);

#ifdef __cplusplus
}
#endif
#endif
