/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Locks of shards: an owner that everybody can see, sleepers, and telling watchers.
 *
 *	0 --CAS--> owner --(somebody waits)--> owner + WAITERS --exchange--> 0, and one is woken
 *
 * Who has slept takes the lock with WAITERS, since others may sleep still: at worst somebody is woken
 * for nothing. The owner is a process: which of its threads has the lock, nobody needs to know, for a
 * thread does not die alone. If the process is killed, the broker sees its name here, does what
 * was left to do (mend.c), and gives the lock back.
 *
 * Who is killed between giving back and waking leaves sleepers; the broker wakes them when it notices the
 * death, and they wake up by themselves once a second.
 *
 * Watchers: a watcher stores 1 into `watched` and then looks at `changes` and at its name; a writer adds to
 * `changes` after its change and then takes `watched` to 0. Both are sequentially consistent: either
 * the writer sees the 1, and wakes, or the watcher sees what has changed.
 */
#include "directory.h"

#include "common/futex.h"
#include "common/inject.h"

static const struct timespec nap = {.tv_sec = 1};

void pando__shard_lock(struct pando__shard *shard, uint64_t me)
{
	uint64_t seen = 0, want = me;

	while (!pando__cas_seq_cst(&shard->lock, &seen, want)) {
		if (seen == 0)
			continue; /* it has just been given back */
		if (!(seen & PANDO__SHARD_WAITERS) &&
		    !pando__cas_seq_cst(&shard->lock, &seen, seen | PANDO__SHARD_WAITERS)) {
			seen = 0;
			continue;
		}
		(void)pando__futex_wait((const uint32_t *)(const void *)&shard->lock,
					(uint32_t)seen | PANDO__SHARD_WAITERS, &nap);
		want = me | PANDO__SHARD_WAITERS;
		seen = 0;
	}
	pando__store_relaxed(&shard->locks, shard->locks + 1);
	PANDO_INJECT("directory.lock.taken");
}

void pando__shard_unlock(struct pando__shard *shard)
{
	const uint64_t was = pando__exchange_seq_cst(&shard->lock, 0);

	PANDO_INJECT("directory.lock.given");
	if (was & PANDO__SHARD_WAITERS)
		(void)pando__futex_wake((uint32_t *)(void *)&shard->lock, 1);
}

void pando__shard_announce(struct pando__shard *shard, uint32_t *watched)
{
	(void)pando__add_seq_cst(&shard->changes, 1);
	PANDO_INJECT("directory.announce.changed");
	if (pando__load_seq_cst(watched) && pando__exchange_seq_cst(watched, 0))
		(void)pando__futex_wake(&shard->changes, INT_MAX);
}
