/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stripes: the locks between memory and file.
 *
 * The word names its owner (index of the record, plus 1) from the same instant in which it is taken, so there
 * is no moment at which a death would leave a lock of nobody's. Who waits sleeps on the word; the owner wakes
 * one. If it is killed before that, or at all, the sleeper looks after PATIENCE whether the owner lives.
 * Nobody holds two of them, or waits for anything else but a read from or a write to the file while it has one.
 */
#include "bufferpool.h"

#include "common/futex.h"

#define PATIENCE_NS 10000000 /* how often a sleeper looks for the owner */

static uint32_t *stripe_of(const struct pool *p, uint64_t page)
{
	return &p->stripe[page % POOL_STRIPES];
}

static void wait_for(struct pool_client *c, uint32_t *word, uint32_t seen)
{
	const struct timespec patience = {.tv_nsec = PATIENCE_NS};

	if (!(seen & POOL_STRIPE_WAITED)) {
		if (!pando__cas_acq_rel(word, &seen, seen | POOL_STRIPE_WAITED))
			return;
		seen |= POOL_STRIPE_WAITED;
	}
	pool_add(c, POOL_WAITS, 1);
	if (pando__futex_wait(word, seen, &patience) == -ETIMEDOUT)
		(void)pool_bury(c, (seen & ~POOL_STRIPE_WAITED) - 1);
}

void pool_stripe_lock(struct pool_client *c, uint64_t page)
{
	uint32_t *word = stripe_of(c->pool, page), mine = c->index + 1;

	for (;;) {
		uint32_t seen = 0;

		if (pando__cas_acq_rel(word, &seen, mine))
			break;
		wait_for(c, word, seen);
		/* There may be others asleep: the next unlock wakes one of them, too. */
		mine |= POOL_STRIPE_WAITED;
	}
	PANDO_INJECT("pool.stripe.locked");
}

void pool_stripe_unlock(struct pool_client *c, uint64_t page)
{
	uint32_t *word = stripe_of(c->pool, page);

	if (pando__exchange_acq_rel(word, 0u) & POOL_STRIPE_WAITED) {
		PANDO_INJECT("pool.stripe.waking");
		(void)pando__futex_wake(word, 1);
	}
}
