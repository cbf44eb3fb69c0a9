/* SPDX-License-Identifier: BSD-2-Clause */
/* Freeing objects in other clients' spans. See remote.c. */
#ifndef PANDO_ALLOCATOR_REMOTE_H
#define PANDO_ALLOCATOR_REMOTE_H

#include "front.h"

#include "common/atomic.h"
#include "common/inject.h"

/*
 * True if threads of this process heed the barriers of the broker (reclaim.c), from now on: then their
 * frees need no locked instruction.
 */
bool pando__remote_heeds(void);

/* Lets the owner of the object at `offset` know that its word says REMOTE: hints. Any thread. */
void pando__remote_tell(const struct pando__view *v, uint64_t offset);
/* Tells what this thread has left untold. */
void pando__remote_settle(struct pando__magazines *m);

/* This thread's intent, for something to be done to an object of another owner. */
struct pando__intent *pando__intent_lock(struct pando__front *f);
void pando__intent_unlock(struct pando__front *f, struct pando__intent *intent);

/* Frees an object whose word was `word`. False: it was another by then, and nothing has changed. */
bool pando__remote_free(struct pando__front *f, uint64_t offset, uint16_t word);

/* The object was judged while it was being freed: its page is another's now, who has to be told. */
void pando__remote_late(struct pando__magazines *m, uint64_t granule);

/*
 * Frees the LIVE object at `granule`, which lies in the slab that this thread has announced. False:
 * it is not LIVE, or the slab is not what it was, and nothing has changed. Five stores and five loads
 * of lines that this processor has, as a rule; the order between them is all that counts, and the
 * essay in remote.c is about that.
 */
static inline __attribute__((always_inline)) bool pando__remote_step(struct pando__magazines *m,
								     uint64_t granule,
								     uint16_t *word, bool points)
{
	const uint32_t *entry = &m->page_table[granule / (PANDO__PAGE / PANDO__GRANULE)];
	struct pando__intent *intent = m->intent;

	pando__store_relaxed(&intent->what,
			     PANDO__INTENT(PANDO__INTENT_FREE, granule * PANDO__GRANULE));
	pando__compiler_barrier(); /* partner: barrier() of reclaim.c */
	if (points)
		PANDO_INJECT("heap.free.announced");
	if (!PANDO__SAME_PAGE(pando__load_acquire(entry), m->untold_entry) ||
	    pando__load_acquire(word) != PANDO__OBJECT_LIVE) {
		pando__store_release(&intent->what, 0);
		return false;
	}
	if (points)
		PANDO_INJECT("heap.free.looked");
	pando__store_release(word, PANDO__OBJECT_REMOTE);
	pando__compiler_barrier(); /* the same partner */
	if (points)
		PANDO_INJECT("heap.free.stored");
	if (__builtin_expect(!PANDO__SAME_PAGE(pando__load_acquire(entry), m->untold_entry), 0))
		pando__remote_late(m, granule);
	pando__store_release(&intent->what, 0);
	if (points)
		PANDO_INJECT("heap.free.untold");
	return true;
}

/* True if `granule` lies in the slab that this thread has announced. */
static inline bool pando__remote_announced(const struct pando__magazines *m, uint64_t granule)
{
	return granule / PANDO__SLAB_GRANULES == m->untold;
}

#endif
