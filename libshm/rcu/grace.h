/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grace periods: beginning one, and finding out whether it is over. For the library and the broker.
 *
 * Nothing here waits, allocates or needs a lock; what it reads in pages of clients it bounds first.
 * Why it is right: the essay in grace.c.
 */
#ifndef PANDO_RCU_GRACE_H
#define PANDO_RCU_GRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/atomic.h"
#include "common/layout.h"

/* What a region's grace periods need, as it is mapped here. Constant. */
struct pando__rcu_view {
	struct pando__ledger *ledger; /* only read */
	const char *slots; /* the whole slots file; only read */
	struct pando__rcu *rcu; /* in it, or mapped by itself; written */
};

static inline struct pando__rcu_view pando__rcu_view(const struct pando__ledger *ledger,
						     char *slots)
{
	return (struct pando__rcu_view){
		.ledger = (struct pando__ledger *)(uintptr_t)ledger,
		.slots = slots,
		.rcu = (struct pando__rcu *)(void *)(slots + PANDO__RCU_OFFSET),
	};
}

/* One reader among all: in a client's own page, or in page `page` of those behind. */
struct pando__reader_at {
	bool behind;
	uint32_t page; /* slot, or page of readers */
	uint32_t index; /* in it */
};

static inline uint64_t pando__grace_of(uint64_t section)
{
	return section | (PANDO__GRACE_STEP - 1);
}

/* True if that is a section which began before the counter was `target`. */
static inline bool pando__section_before(uint64_t section, uint64_t target)
{
	return (section & PANDO__SECTION_DEPTH) != 0 &&
	       pando__grace_of(section) < pando__grace_of(target);
}

/* Stores the counter's first value into a new region. */
void pando__grace_format(struct pando__rcu *rcu);

/*
 * True if this process may call membarrier() as `mode` needs it; registers it as one whose threads
 * heed that of others. Once is enough for a process; children inherit it.
 */
bool pando__membarrier_register(void);
/* What the running kernel can do. */
enum pando__rcu_mode pando__membarrier_mode(void);
/* A full barrier in all threads of all registered processes. 0, or a negative errno. */
int pando__membarrier(const struct pando__rcu_view *v);

/*
 * Begins a grace period: whoever reads now and goes on reading is waited for by those who ask with
 * the value that is returned. 0, with *target; or -EOPNOTSUPP, with a sentence: this process may not
 * call membarrier().
 */
int pando__grace_begin(const struct pando__rcu_view *v, uint64_t *target);

/* What a search for readers has gone through: what it has passed need not be looked at again. */
struct pando__grace_scan {
	uint64_t target;
	struct pando__reader_at at; /* the one that is in the way */
	uint64_t section; /* and what it says */
};

/*
 * True if the grace period of s->target is over: no reader of a living client is in a section that
 * began before it. False: s->at is one that is. Call it again with the same *s to go on from there.
 * 10 us for 1,000 clients.
 */
bool pando__grace_over(const struct pando__rcu_view *v, struct pando__grace_scan *s);

/* Lets others know that the grace period up to `target` is over. */
void pando__grace_done(const struct pando__rcu_view *v, uint64_t target);
static inline bool pando__grace_is_done(const struct pando__rcu_view *v, uint64_t target)
{
	/* Pairs with the release in pando__grace_done(): what was freed after it is freed now. */
	return pando__load_acquire(&v->rcu->done) >= target;
}

/* Calls tell() for each reader in the way of `target`; as above. Returns how many there are. */
uint64_t pando__grace_blockers(const struct pando__rcu_view *v, uint64_t target,
			       void (*tell)(void *arg, const struct pando__reader_at *at,
					    const struct pando__reader *reader, uint64_t section),
			       void *arg);

/* Which client a reader belongs to: NULL if to none any more. */
const struct pando__ledger_client *pando__reader_client(const struct pando__rcu_view *v,
							const struct pando__reader_at *at);

/* What clients have retired and is not free, the dead included, and the readers of the living. */
struct pando__rcu_count {
	uint64_t retired, retired_bytes;
	uint64_t readers; /* records that are taken */
	uint64_t reading; /* of these, inside of a section */
};
void pando__rcu_count(const struct pando__rcu_view *v, struct pando__rcu_count *out);

/* Bytes that may wait in this region. */
uint64_t pando__retired_limit(const struct pando__rcu_view *v);

/* Wakes all who wait for readers. */
void pando__grace_wake(struct pando__rcu *rcu);

#endif
