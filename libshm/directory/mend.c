/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Finishing or undoing what a dead writer had begun: the broker's part, without the broker.
 *
 * Each operation has one step that decides, a single store. Before it, nobody can see that anything is
 * going on, and all is undone; after it everybody can, and the rest is done. Whether it has happened can be seen
 * at the word itself: nobody else changes it while the lock is held. The steps, in this order:
 *
 *		REPLACE			INSERT			WITHDRAW	GROW
 *		intent			intent			intent		intent
 *		fresh -> directory	fresh -> directory	-		table -> directory
 *		place, not yet valid	entry -> directory	-		-
 *	decides	entry.current		before.next = entry	before.next =	shard.tables[..] =
 *							  entry.next	  table
 *		shard.version		version, count		unlinked, count	-
 *		changes, wake-up	changes, wake-up	changes, wake-up -
 *		old -> held		-			old, entry -> held -
 *		intent cleared, lock given back: in all of them
 *
 * Undone: what had become the directory's for this becomes held by the dead client, whose it was, and
 * dies with it. Finished: what was to be retired becomes held by the dead client, unless it is so already, as
 * pando_retire() would have made it; its reaping waits for a grace period. Neither frees anything, so no
 * object is ever freed twice; and both may be done again from the beginning, by a broker whose predecessor
 * was killed here. `unlinked`, `changes` may grow once too often by that, which means nothing.
 *
 * An object that the intent names cannot be somebody else's by now: nobody frees what is the directory's,
 * and what is the dead client's is not freed before this has been done. (Its other threads could free what
 * one of them was publishing. That is the mistake of freeing what one has given away.)
 *
 * Anybody may have written the shard: offsets are bounded, no loop depends on what is read, and what
 * is not as expected is left alone.
 */
#include "directory.h"

#include <limits.h>

#include "common/futex.h"
#include "common/inject.h"

/* `size` bytes at an offset in the heap, or NULL. */
static void *at(const struct pando__view *v, uint64_t offset, uint64_t size)
{
	if (offset < v->first || offset >= v->end || size > v->end - offset || offset % 8)
		return NULL;
	return v->base + offset;
}

static void give(const struct pando__view *v, uint64_t offset, uint32_t slot)
{
	if (at(v, offset, PANDO__GRANULE) && offset % PANDO__GRANULE == 0)
		(void)pando__object_withdraw(v, offset, slot);
	PANDO_INJECT("directory.mend.given");
}

static void raise_version(struct pando__shard *shard, uint64_t version)
{
	if (pando__load_relaxed(&shard->version) < version)
		pando__store_relaxed(&shard->version, version);
}

/* Where the list changes: what is `next` before the entry. NULL: that is no place in it. */
static uint64_t *next_before(const struct pando__view *v, struct pando__shard *shard,
			     uint64_t where)
{
	struct pando__node *node = where ? at(v, where, sizeof(*node)) : &shard->first;

	return node ? &node->next : NULL;
}

static void mend_replace(const struct pando__view *v, struct pando__shard *shard,
			 const struct pando__directory_intent *in, uint32_t slot, uint32_t *watched)
{
	const struct pando__entry *e = at(v, in->entry, sizeof(*e));

	if (!e)
		return;
	if (pando__load_acquire(&e->current) >> 1 != in->version) {
		give(v, in->fresh, slot);
		return;
	}
	raise_version(shard, in->version);
	pando__shard_announce(shard, watched);
	PANDO_INJECT("directory.mend.announced");
	give(v, in->old, slot);
}

static void mend_insert(const struct pando__view *v, struct pando__shard *shard,
			const struct pando__directory_intent *in, uint32_t slot, uint32_t *watched)
{
	const uint64_t *next = next_before(v, shard, in->where);

	if (!next)
		return;
	if (pando__load_acquire(next) != in->entry) {
		give(v, in->fresh, slot);
		give(v, in->entry, slot);
		return;
	}
	raise_version(shard, in->version);
	pando__store_relaxed(&shard->count, in->count);
	PANDO_INJECT("directory.mend.counted");
	pando__shard_announce(shard, watched);
}

static void mend_withdraw(const struct pando__view *v, struct pando__shard *shard,
			  const struct pando__directory_intent *in, uint32_t slot,
			  uint32_t *watched)
{
	const uint64_t *next = next_before(v, shard, in->where);

	if (!next || pando__load_acquire(next) == in->entry)
		return; /* nothing has become anybody's */
	(void)pando__add_seq_cst(&shard->unlinked, 1);
	pando__store_relaxed(&shard->count, in->count);
	PANDO_INJECT("directory.mend.unlinked");
	pando__shard_announce(shard, watched);
	give(v, in->old, slot);
	give(v, in->entry, slot);
}

static void mend_grow(const struct pando__view *v, struct pando__shard *shard,
		      const struct pando__directory_intent *in, uint32_t slot)
{
	if (in->table < PANDO__TABLES &&
	    pando__load_acquire(&shard->tables[in->table]) != in->entry)
		give(v, in->entry, slot);
}

void pando__directory_mend(const struct pando__view *v, struct pando__shard *shard, uint32_t slot,
			   uint32_t *watched)
{
	const uint32_t kind = pando__load_acquire(&shard->intent.kind);
	/* Once: whoever can write it may do so now. */
	const struct pando__directory_intent in = {
		.table = pando__load_relaxed(&shard->intent.table),
		.entry = pando__load_relaxed(&shard->intent.entry),
		.where = pando__load_relaxed(&shard->intent.where),
		.old = pando__load_relaxed(&shard->intent.old),
		.fresh = pando__load_relaxed(&shard->intent.fresh),
		.version = pando__load_relaxed(&shard->intent.version),
		.count = pando__load_relaxed(&shard->intent.count),
	};

	PANDO_INJECT("directory.mend.begun");
	switch (kind) {
	case PANDO__DIRECTORY_REPLACE:
		mend_replace(v, shard, &in, slot, watched);
		break;
	case PANDO__DIRECTORY_INSERT:
		mend_insert(v, shard, &in, slot, watched);
		break;
	case PANDO__DIRECTORY_WITHDRAW:
		mend_withdraw(v, shard, &in, slot, watched);
		break;
	case PANDO__DIRECTORY_GROW:
		mend_grow(v, shard, &in, slot);
		break;
	default:
		break;
	}
	PANDO_INJECT("directory.mend.done");
	pando__store_release(&shard->intent.kind, PANDO__DIRECTORY_NONE);
	PANDO_INJECT("directory.mend.cleared");
}

void pando__directory_break(struct pando__shard *shard)
{
	(void)pando__exchange_seq_cst(&shard->lock, 0);
	PANDO_INJECT("directory.mend.unlocked");
	(void)pando__futex_wake((uint32_t *)(void *)&shard->lock, INT_MAX);
}
