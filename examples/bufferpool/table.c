/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The page table: chains of frames, changed by single compare-and-swaps, read in RCU read sections.
 *
 * It is the list of Harris and Michael, with the replacement of liburcu's cds_lfht:
 *
 *	insert	fresh.next = the bucket's first; bucket: first -> fresh
 *	replace	fresh.next = old.next; old.next: next -> fresh | REMOVED
 *	remove	f.next: next -> next | REMOVED
 *	unlink	before.next: f -> f.next, where f is removed and `before` is not
 *
 * The second is one step that removes the old version and links the new one behind it, so that a
 * reader finds one of them at every instant, and never both: who has come to the old one goes on and meets
 * the new one. A removed frame's `next` never changes again, so unlinking behind it fails, and who
 * does that begins again at the bucket.
 *
 * Frames do not come back while somebody walks: a frame is linked again only after it was removed,
 * claimed and unlinked, and a grace period that began after the claim has passed. So within one read
 * section an address always means the same frame in the same life, and a compare-and-swap cannot mistake one
 * for the other (no ABA).
 *
 * A page is inserted only under its stripe, after it has not been found there; replacing needs
 * no lock. So there is never more than one frame of a page in the table that is not removed.
 *
 * Killed in between, nothing is left half done: a removed frame that is still linked is passed over by readers
 * and unlinked by whoever comes next. A walk is as long as a chain; buckets are at least as many as frames.
 */
#include "bufferpool.h"

static uint64_t link_to(const struct pool_frame *f)
{
	return (uint64_t)(uintptr_t)f;
}

void table_insert(struct pool *p, struct pool_frame *f)
{
	uint64_t *bucket = pool_bucket(p, f->page);
	uint64_t first = pando__load_acquire(bucket);

	do
		pando__store_relaxed(&f->next, first);
	while (!pando__cas_acq_rel(bucket, &first, link_to(f)));
}

bool table_replace(struct pool_frame *old, struct pool_frame *fresh)
{
	uint64_t next = pando__load_acquire(&old->next);

	do {
		if (next & POOL_REMOVED)
			return false;
		pando__store_relaxed(&fresh->next, next);
	} while (!pando__cas_acq_rel(&old->next, &next, link_to(fresh) | POOL_REMOVED));
	return true;
}

bool table_remove(struct pool_frame *f)
{
	uint64_t next = pando__load_acquire(&f->next);

	do {
		if (next & POOL_REMOVED)
			return false;
	} while (!pando__cas_acq_rel(&f->next, &next, next | POOL_REMOVED));
	return true;
}

/* True: came to the end. False: somebody was faster, begin again. */
static bool unlink_once(uint64_t *before)
{
	struct pool_frame *f = pool_at(pando__load_acquire(before));

	while (f) {
		const uint64_t next = pando__load_acquire(&f->next);

		if (next & POOL_REMOVED) {
			uint64_t expected = link_to(f);

			if (!pando__cas_acq_rel(before, &expected, next & ~POOL_REMOVED))
				return false;
			PANDO_INJECT("pool.table.unlinked");
		} else {
			before = &f->next;
		}
		f = pool_at(next);
	}
	return true;
}

void table_unlink(struct pool *p, uint64_t page)
{
	while (!unlink_once(pool_bucket(p, page)))
		;
}

bool table_has(struct pool *p, const struct pool_frame *f)
{
	for (const struct pool_frame *at = pool_at(pando__load_acquire(pool_bucket(p, f->page)));
	     at; at = pool_at(pando__load_acquire(&at->next)))
		if (at == f)
			return !(pando__load_acquire(&f->next) & POOL_REMOVED);
	return false;
}
