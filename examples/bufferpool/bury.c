/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Burying the dead: what a killed backend had begun is finished, what it held is given back.
 *
 * Whoever gets the mutex of a record with EOWNERDEAD does this, and holds the mutex meanwhile, so nobody
 * else does it at the same time. If it is killed as well, the mutex is marked again and the next one
 * starts over. Every step leaves a state in which all steps may be done again:
 *
 *	1 writing	the page is written to the file again, whole: its frame is still pinned by the dead's
 *			record, its stripe is still the dead's, so it is the same page and nobody else's turn.
 *			What the dead wrote half is gone.
 *	2 updating	has the new version been in the table? Then the update counts. Its frame says so: not
 *			owned by the dead any more; or removed (it was prepared without that bit);
 *			or in the table.
 *	3 frames	each OWNED by the dead becomes COMMON: in the table if it is there; else with the bit set
 *			that says it is not, so that the clock collects it, with unlinking and grace period.
 *	4 pins		cleared: what was read through them nobody reads any more.
 *	5 stripes	given back, and who waits for them is woken.
 *
 * The order matters: 1 needs pin and stripe, 2 needs the frame's word. Looking through all frames
 * for 3 takes some 0.1 ms for each GiB of pool; nobody waits for it but who needs a stripe of the dead.
 */
#include "bufferpool.h"

#include <errno.h>
#include <limits.h>

#include "common/futex.h"

static void finish_writing(struct pool_client *c, uint32_t index)
{
	struct pool_record *r = &c->pool->record[index];
	struct pool_frame *f;

	if (!r->writing)
		return;
	f = &c->pool->frame[r->writing - 1];
	/* If the file cannot be written, the frame stays dirty and will be tried again by others. */
	if (pando__load_acquire(&f->dirty) &&
	    file_write(c->file, f->page, index, pool_content(c->pool, f)) == 0) {
		pando__store_release(&f->dirty, 0u);
		pando__store_relaxed(&r->count[POOL_WRITES], r->count[POOL_WRITES] + 1);
	}
	PANDO_INJECT("pool.bury.written");
	pando__store_release(&r->writing, 0u);
}

static void settle_update(struct pool_client *c, uint32_t index)
{
	struct pool_record *r = &c->pool->record[index];
	struct pool_frame *f;

	if (!r->updating)
		return;
	f = &c->pool->frame[r->updating - 1];
	if (pando__load_acquire(&f->word) != POOL_OWNED + index ||
	    pando__load_acquire(&f->next) & POOL_REMOVED || table_has(c->pool, f))
		pando__store_release(&r->count[POOL_UPDATES], r->updates_then);
	PANDO_INJECT("pool.bury.settled");
	pando__store_release(&r->updating, 0u);
}

static void free_frames(struct pool_client *c, uint32_t index)
{
	struct pool *p = c->pool;

	for (uint64_t i = 0; i < p->frames; i++) {
		struct pool_frame *f = &p->frame[i];

		if (pando__load_acquire(&f->word) != POOL_OWNED + index)
			continue;
		if (!table_has(p, f))
			(void)pando__or_acq_rel(&f->next, POOL_REMOVED);
		PANDO_INJECT("pool.bury.frame");
		pando__store_release(&f->word, (uint32_t)POOL_COMMON);
	}
}

static void free_stripes(struct pool *p, uint32_t index)
{
	for (unsigned int i = 0; i < POOL_STRIPES; i++) {
		const uint32_t word = pando__load_acquire(&p->stripe[i]);

		if ((word & ~POOL_STRIPE_WAITED) != index + 1)
			continue;
		(void)pando__exchange_acq_rel(&p->stripe[i], 0u);
		PANDO_INJECT("pool.bury.stripe");
		(void)pando__futex_wake(&p->stripe[i], INT_MAX);
	}
}

static void bury(struct pool_client *c, uint32_t index)
{
	struct pool_record *r = &c->pool->record[index];

	PANDO_INJECT("pool.bury.begun");
	finish_writing(c, index);
	/* The table is walked: no frame in it is used again meanwhile. */
	while (pando_read_lock(c->region) < 0)
		; /* a forked child whose broker is being replaced */
	settle_update(c, index);
	free_frames(c, index);
	pando_read_unlock(c->region);
	for (unsigned int i = 0; i < POOL_PINS; i++)
		pando__store_release(&r->pin[i], 0u);
	PANDO_INJECT("pool.bury.unpinned");
	free_stripes(c->pool, index);
	if (r->pid)
		(void)pando__add_relaxed(&c->pool->buried, 1);
	pando__store_relaxed(&r->pid, 0);
}

bool pool_own(struct pool_client *c, uint32_t index)
{
	struct pool_record *r;
	int rc;

	if (index >= c->pool->records || &c->pool->record[index] == c->record)
		return false;
	r = &c->pool->record[index];
	rc = pthread_mutex_trylock(&r->life);
	if (rc == EOWNERDEAD) {
		bury(c, index);
		PANDO_INJECT("pool.bury.done");
		(void)pthread_mutex_consistent(&r->life);
		rc = 0;
	}
	return rc == 0;
}

bool pool_bury(struct pool_client *c, uint32_t index)
{
	if (!pool_own(c, index))
		return false;
	(void)pthread_mutex_unlock(&c->pool->record[index].life);
	return true;
}

unsigned int pool_bury_all(struct pool_client *c)
{
	unsigned int n = 0;

	for (uint32_t i = 0; i < c->pool->records; i++)
		if (pando__load_relaxed(&c->pool->record[i].pid))
			n += pool_bury(c, i);
	return n;
}
