/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Empty frames: where they come from.
 *
 * A process has three lists of frames that it OWNS: `removed` (out of the table, perhaps still linked),
 * `held` (unlinked, and no new reader can come to them; somebody's pin was on them), and `ready`. When
 * `ready` is empty it goes on with the clock: a hand, shared by all, goes round the frames; a frame that was
 * used since it came by last loses one of its lives (`usage`), one that is pinned stays, a dirty one is written
 * first, and what is left is removed from the table. Removed frames of others (dead ones, or such as
 * lost a race) are collected on the way. Then one grace period serves for all that was gathered.
 *
 * The word of a frame is read inside of a read section before the frame is removed, and that is what makes it
 * safe to remove: a frame that is COMMON within the section cannot be used again before its end, since a claim, and
 * a grace period after that, come before. So it is the same page, and if it was seen clean it is clean. For the
 * same reason it is claimed before the section ends: a claim that comes later may take the frame in its next life, when
 * it is linked and has a page that is not on disk.
 *
 * While a frame is only removed, it may be taken from the table of a page that somebody has pinned; that is
 * allowed (the pinned version is read by its owner to the end, others read the page from the file again), but
 * wasteful. So the clock looks at the pins first, once for each round of gathering.
 */
#include "bufferpool.h"

#include <errno.h>
#include <sched.h>

/* --- pins --- */

/* Sets the bits of all frames that are pinned by anybody. Returns how many places there were. */
static uint32_t pinned_frames(struct pool_client *c)
{
	const struct pool *p = c->pool;
	uint32_t n = 0;

	for (uint32_t i = 0; i < p->records; i++)
		for (unsigned int k = 0; k < POOL_PINS; k++) {
			/* Pairs with pool_unpin(): who has unpinned has read to the end. */
			const uint32_t pin = pando__load_acquire(&p->record[i].pin[k]);

			if (!pin)
				continue;
			c->pinned[(pin - 1) / 64] |= 1ull << (pin - 1) % 64;
			c->seen[n++] = pin - 1;
		}
	return n;
}

static void forget_pinned(struct pool_client *c, uint32_t n)
{
	while (n-- > 0)
		c->pinned[c->seen[n] / 64] = 0;
}

static bool is_pinned(const struct pool_client *c, uint32_t frame)
{
	return c->pinned[frame / 64] >> frame % 64 & 1;
}

/* --- collecting --- */

static bool claim(struct pool_client *c, struct pool_frame *f, uint32_t from)
{
	return pando__cas_acq_rel(&f->word, &from, POOL_OWNED + c->index);
}

static void give(struct pool_client *c, uint32_t frame, uint32_t word)
{
	pando__store_release(&c->pool->frame[frame].word, word);
}

/* Ready for use, or everybody's if we have plenty. */
static void now_ready(struct pool_client *c, uint32_t frame)
{
	if (c->ready < POOL_OWN)
		c->ready_list[c->ready++] = frame;
	else
		give(c, frame, POOL_FREE);
}

static void now_held(struct pool_client *c, uint32_t frame)
{
	if (c->held < POOL_OWN)
		c->held_list[c->held++] = frame;
	else
		give(c, frame, POOL_COMMON); /* removed: collected again later */
}

static void unlink_removed(struct pool_client *c)
{
	pando_read_lock(c->region);
	for (uint32_t i = 0; i < c->removed; i++)
		table_unlink(c->pool, c->pool->frame[c->removed_list[i]].page);
	pando_read_unlock(c->region);
	PANDO_INJECT("pool.evict.unlinked");
}

/* False: no grace period passed; a reader stands still, and the pool is to stop. */
static bool wait_for_readers(struct pool_client *c)
{
	int rc;

	while ((rc = pando_synchronize(c->region, 1000)) == -ETIMEDOUT) {
		(void)pool_bury_all(c);
		if (pando__load_relaxed(&c->pool->stop))
			return false;
	}
	if (rc < 0) {
		file_fail(-rc, "%s", pando_strerror_last());
		return false;
	}
	pool_add(c, POOL_GRACES, 1);
	return true;
}

/* Makes what can be used again ready. */
static bool collect(struct pool_client *c)
{
	uint32_t held = c->held, n;

	if (c->removed) {
		unlink_removed(c);
		if (!wait_for_readers(c))
			return false;
	}
	PANDO_INJECT("pool.evict.waited");
	n = pinned_frames(c);
	c->held = 0;
	for (uint32_t i = 0; i < held; i++) {
		const uint32_t frame = c->held_list[i];

		/* Never written where it was not read yet: c->held is at most i. */
		if (is_pinned(c, frame))
			now_held(c, frame);
		else
			now_ready(c, frame);
	}
	for (uint32_t i = 0; i < c->removed; i++) {
		const uint32_t frame = c->removed_list[i];

		if (is_pinned(c, frame))
			now_held(c, frame);
		else
			now_ready(c, frame);
	}
	pool_add(c, POOL_COLLECTED, c->removed);
	c->removed = 0;
	forget_pinned(c, n);
	return true;
}

void pool_gather(struct pool_client *c, struct pool_frame *f)
{
	PANDO_INJECT("pool.evict.removed");
	if (c->removed == POOL_OWN || !claim(c, f, POOL_COMMON))
		return; /* the clock will come by */
	PANDO_INJECT("pool.evict.claimed");
	c->removed_list[c->removed++] = pool_number(c->pool, f);
}

void pool_collect(struct pool_client *c)
{
	if (c->removed >= c->pool->batch)
		(void)collect(c);
}

void pool_put_back(struct pool_client *c, struct pool_frame *f)
{
	now_ready(c, pool_number(c->pool, f));
}

/* --- the clock --- */

/*
 * Removes and gathers f if that is allowed now. True: it is removed. *dirty: it is a page that has to
 * be written first.
 *
 * It is claimed in the section in which it was found: after that it may be anybody's, and another page.
 */
static bool try_remove(struct pool_client *c, struct pool_frame *f, bool *dirty, uint64_t *page)
{
	bool removed = false;

	*dirty = false;
	pando_read_lock(c->region);
	/* First the word: see above. */
	if (pando__load_acquire(&f->word) == POOL_COMMON) {
		*page = f->page;
		if (pando__load_acquire(&f->next) & POOL_REMOVED)
			removed = true;
		else if (pando__load_acquire(&f->dirty))
			*dirty = true;
		else
			removed = table_remove(f);
		if (removed)
			pool_gather(c, f);
	}
	pando_read_unlock(c->region);
	return removed;
}

/* What the hand does at one frame. */
static void visit(struct pool_client *c, struct pool_frame *f)
{
	const uint32_t word = pando__load_acquire(&f->word);
	uint32_t usage;
	uint64_t page;
	bool dirty;

	if (word == POOL_FREE && claim(c, f, POOL_FREE)) {
		PANDO_INJECT("pool.evict.taken");
		now_ready(c, pool_number(c->pool, f));
		return;
	}
	if (word != POOL_COMMON || is_pinned(c, pool_number(c->pool, f)))
		return;
	usage = pando__load_relaxed(&f->usage);
	if (usage > 0 && !(pando__load_acquire(&f->next) & POOL_REMOVED)) {
		pando__store_relaxed(&f->usage, usage - 1);
		return;
	}
	if (try_remove(c, f, &dirty, &page) || !dirty)
		return;
	c->write_error = pool_clean(c, page);
	if (c->write_error == 0)
		(void)try_remove(c, f, &dirty, &page);
}

/* Goes round until some frames have been gathered; at most so often that every page lost all its lives. */
static void go_round(struct pool_client *c)
{
	const uint64_t steps = c->pool->frames * (POOL_USAGE + 2);
	const uint32_t n = pinned_frames(c);

	c->write_error = 0;
	for (uint64_t i = 0; i < steps && c->ready + c->removed < c->pool->batch; i++)
		visit(c, &c->pool->frame[pando__add_relaxed(&c->pool->hand, 1) % c->pool->frames]);
	forget_pinned(c, n);
}

struct pool_frame *pool_take(struct pool_client *c)
{
	while (c->ready == 0) {
		if (pando__load_relaxed(&c->pool->stop)) {
			file_fail(ESHUTDOWN, "%s", "");
			return NULL;
		}
		go_round(c);
		if (c->ready == 0 && !collect(c))
			return NULL;
		if (c->ready > 0)
			break;
		if (c->write_error < 0)
			return NULL;
		/* All is pinned, or in others' hands: perhaps in those of the dead. */
		if (pool_bury_all(c) == 0)
			(void)sched_yield();
	}
	return &c->pool->frame[c->ready_list[--c->ready]];
}

int pool_clean(struct pool_client *c, uint64_t page)
{
	struct pool_frame *f;
	int rc = 0;

	pool_stripe_lock(c, page);
	f = pool_try(c, page, POOL_PIN_WRITE);
	if (f && pando__load_acquire(&f->dirty)) {
		pando__store_release(&c->record->writing, pool_number(c->pool, f) + 1);
		PANDO_INJECT("pool.write.intent");
		rc = file_write(c->file, page, c->index, pool_content(c->pool, f));
		PANDO_INJECT("pool.write.written");
		if (rc == 0) {
			pando__store_release(&f->dirty, 0u);
			pool_add(c, POOL_WRITES, 1);
		}
		PANDO_INJECT("pool.write.clean");
		pando__store_release(&c->record->writing, 0u);
	}
	pool_unpin(c, POOL_PIN_WRITE);
	pool_stripe_unlock(c, page);
	return rc;
}
