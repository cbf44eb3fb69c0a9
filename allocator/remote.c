/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Freeing objects in other clients' spans.
 *
 * The object's word becomes REMOTE, and its owner, who collects it, is told by hints: the span's bit,
 * the owner's line. There are two ways.
 *
 * With a compare-and-swap: any object, from any state in which it may be freed.
 *
 *	intent FREE		(own slot page)
 *	word -> REMOTE		from here on it is free: nobody but its owner and the broker touches it
 *	hints			so that the owner looks
 *	intent cleared
 *
 * Killed before the word: nothing has happened. After it: the broker finds the intent and sets the
 * hints. The hints are set only where they are not set already, and they are cleared by an exchange
 * before the words are looked at; both sides are sequentially consistent, so either the collector
 * sees REMOTE or this side sees the hint gone, and sets it.
 *
 * With plain stores: LIVE objects in slabs of living owners, which is what producers and consumers
 * do all the time. A locked instruction waits until all stores before it are out of the processor,
 * also those of the program around it; that was half of the time of a free.
 *
 *	F1  `to` of the intent names the slab, as one in which something may be untold (once for many)
 *	F2  intent FREE
 *	F3  page-table entry: still the owner whom F1 found? (else the other way)
 *	F4  word: LIVE? (else the other way, which finds out what is wrong)
 *	F5  word -> REMOTE
 *	F6  page-table entry: still that owner? (else: barrier, hints)
 *	F7  intent cleared
 *	...
 *	F8  the thread comes to another slab, trims or ends: barrier; hints for the slab of F1
 *
 * F4 and F5 are not one step. While the owner lives, nobody else changes a LIVE word (who frees the
 * object as well, or gives it away meanwhile, breaks the contract; the heap stays whole: each word
 * that a magazine names is looked at again when it is taken). If the owner has died, the broker frees
 * what was its alone, and the word may be another object's before F5. So the broker (reclaim.c), before it
 * judges the spans of a dead client,
 *
 *	B1  takes the client's name out of the page-table entries of all its slabs
 *	B2  executes a barrier in all clients (membarrier(2))
 *	B3  gives each LIVE object in these slabs that an intent FREE names to the client whose intent
 *	    it is: SHARED, so that it stays
 *
 * A free whose F3 comes after B2 goes the other way. One whose F2 came before it is seen in B3, unless
 * its F5 and F7 have been seen: then the word says REMOTE. What is given away in B3 the free makes
 * REMOTE in its F5, at any later time; its F6 comes after B2 then, so it sets the hints. If it is killed
 * before F5, the object is that client's, and goes with it; between F5 and F7 the intent says what is
 * left to do, after that (a death before F8) F1 does. All of this counts on x86-64 executing stores in
 * order, and loads in order: only a load may come before an earlier store, and B2 is about that.
 *
 * What is untold is free, and its owner can have it: who runs out of memory, or trims, looks at what F1
 * of all clients says (pando__heap_tell()), and so does the broker now and then, for those who have
 * stopped freeing. For each thread that frees, it is part of one slab.
 *
 * Where membarrier(2) is refused to this process, and in threads that have no intent to themselves,
 * all frees are of the first kind.
 */
#include "remote.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

bool pando__remote_heeds(void)
{
	return !PANDO_INJECT_FAIL("heap.remote.heeds") &&
	       syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

struct pando__intent *pando__intent_lock(struct pando__front *f)
{
	struct pando__magazines *m = pando__magazines(f);

	/* Without memory for magazines a thread has to share, too. */
	if (!m || m->intent_shared)
		pthread_mutex_lock(&f->intent_lock);
	return m ? m->intent : &f->intents[PANDO__INTENTS - 1];
}

void pando__intent_unlock(struct pando__front *f, struct pando__intent *intent)
{
	if (intent == &f->intents[PANDO__INTENTS - 1])
		pthread_mutex_unlock(&f->intent_lock);
}

void pando__remote_tell(const struct pando__view *v, uint64_t offset)
{
	struct pando__span *span = &v->spans[offset / PANDO__SPAN];
	uint32_t bit = PANDO__SPAN_REMOTE(offset), owner;

	/*
	 * Who takes the bit looks at the words after that, as this looks at the bit after the word
	 * (take_hints() and collect_slab() in slab.c): a bit that is still there will be taken.
	 */
	if (!(pando__load_seq_cst(&span->remote) & bit))
		(void)pando__or_seq_cst(&span->remote, bit);
	PANDO_INJECT("heap.free.bit");
	owner = PANDO__PAGE_OWNER(pando__load_seq_cst(&v->page_table[offset / PANDO__PAGE]));
	if (owner == PANDO__OWNER_ORPHAN) {
		if (!pando__load_seq_cst(&v->heap->orphan_remote.value))
			pando__store_seq_cst(&v->heap->orphan_remote.value, 1);
	} else if (owner > 0 && owner <= PANDO__HEAP_CLIENTS &&
		   !pando__load_seq_cst(&v->clients[owner - 1].remote)) {
		pando__store_seq_cst(&v->clients[owner - 1].remote, 1);
	}
}

/* ---- with a compare-and-swap -------------------------------------------------------------------- */

/* The steps under an intent that is this thread's alone. False: the word was another by then. */
static bool swap_step(struct pando__front *f, struct pando__intent *intent, uint64_t offset,
		      uint16_t word)
{
	bool done;

	/* The object's word, which counts on this, changes by a sequentially consistent step. */
	pando__store_release(&intent->what, PANDO__INTENT(PANDO__INTENT_FREE, offset));
	PANDO_INJECT("heap.free.intent");
	done = pando__cas_seq_cst(pando__word(&f->view, offset), &word, PANDO__OBJECT_REMOTE);
	PANDO_INJECT("heap.free.remote");
	if (done)
		pando__remote_tell(&f->view, offset);
	PANDO_INJECT("heap.free.told");
	pando__store_release(&intent->what, 0);
	PANDO_INJECT("heap.free.done");
	return done;
}

bool pando__remote_free(struct pando__front *f, uint64_t offset, uint16_t word)
{
	struct pando__intent *intent = pando__intent_lock(f);
	bool done = swap_step(f, intent, offset, word);

	pando__intent_unlock(f, intent);
	return done;
}

/* ---- with plain stores -------------------------------------------------------------------------- */

static uint64_t slab_offset(uint32_t number)
{
	return (uint64_t)number * PANDO__SLAB;
}

void pando__remote_settle(struct pando__magazines *m)
{
	if (m->untold == PANDO__NOTHING_UNTOLD)
		return;
	/* F8: the words before the hints. It goes on saying what it says, until the hints are set. */
	(void)pando__exchange_seq_cst(&m->intent->to, PANDO__INTENT_UNTOLD(m->untold));
	PANDO_INJECT("heap.free.settling");
	pando__remote_tell(&m->front->view, slab_offset(m->untold));
	PANDO_INJECT("heap.free.settled");
	pando__store_release(&m->intent->to, 0);
	m->untold = PANDO__NOTHING_UNTOLD;
}

void pando__remote_late(struct pando__magazines *m, uint64_t granule)
{
	/* The word before the hints; the intent says the same as before. */
	(void)pando__exchange_seq_cst(&m->intent->what,
				      PANDO__INTENT(PANDO__INTENT_FREE, granule * PANDO__GRANULE));
	PANDO_INJECT("heap.free.late");
	pando__remote_tell(&m->front->view, granule * PANDO__GRANULE);
}

/* F1 and the rest, in a slab with that entry, of a living owner. */
static bool announce_and_free(struct pando__magazines *m, uint64_t granule, uint32_t entry)
{
	const uint32_t number = (uint32_t)(granule / PANDO__SLAB_GRANULES);

	if (m->untold != number) {
		pando__remote_settle(m);
		pando__store_release(&m->intent->to, PANDO__INTENT_UNTOLD(number));
		m->untold = number;
	}
	m->untold_entry = entry;
	return pando__remote_step(m, granule, &m->objects[granule], true);
}

/*
 * p is an object of a slab whose pages name another client or no living one, and is held by this
 * client, by the region, or by nobody but its owner: freed. False: not so, nothing has changed.
 *
 * A page that names somebody lies in a span that is somebody's, so the span need not be asked. Words
 * are FREE where no object begins, so p need not be asked whether one begins there.
 */
bool pando__object_free_others(struct pando__magazines *m, const void *p, uint32_t entry)
{
	struct pando__front *f = m->front;
	const unsigned int class = PANDO__PAGE_CLASS(entry), owner = PANDO__PAGE_OWNER(entry);
	const uint64_t offset = (uint64_t)((const char *)p - f->view.base);
	unsigned int holder;
	uint16_t word;

	if (class - 1 >= PANDO__CLASSES - 1 || m->intent_shared || owner == f->me || owner == 0)
		return false;
	word = pando__load_acquire(pando__word(&f->view, offset));
	holder = PANDO__OBJECT_HOLDER(word);
	if (word == PANDO__OBJECT_LIVE) {
		if (f->heeds && owner != PANDO__OWNER_ORPHAN &&
		    announce_and_free(m, offset / PANDO__GRANULE, entry))
			return true;
	} else if (!PANDO__OBJECT_IS_SHARED(word) ||
		   (holder != PANDO__HOLDER_REGION && holder != f->me)) {
		return false;
	}
	return swap_step(f, m->intent, offset, word);
}
