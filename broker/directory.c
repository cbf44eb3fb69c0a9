/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the broker does for a region's directory of names (libshm/directory): it breaks the locks of the
 * dead, after finishing or undoing what these had begun, and notes who holds one for long.
 *
 * The dead: before anything of a client is reaped, all locks are looked at. What had become the directory's and is not to be, and what was to be retired, is given to
 * the dead client, and goes when that is reaped; its slot page says first that it has retired
 * something, so that the reaping waits for a grace period. It takes microseconds and is done on the loop's
 * thread, since writers may be waiting. A broker that is killed at it leaves the lock as it is, and its
 * successor finds that the client is gone.
 *
 * The heap's memory may not be there (heap.c). Then the tick tries again; after RETRIES the lock is given
 * back with things undone: every list is whole at every instant, but what the dead had in hand is lost.
 * The tick also gives back locks whose owner is nobody that is attached: no client leaves any, unless
 * it means to.
 *
 * Anybody can write the shards. What is read there is bounded, and decides about objects of this region
 * alone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/futex.h"
#include "common/inject.h"
#include "directory/directory.h"

#include "broker.h"
#include "log.h"

#define RETRIES 5u

/* What the ticks remember of a region's locks. */
struct directory_watch {
	struct {
		uint64_t lock, locks; /* at the last look */
		uint64_t since_ns;
		unsigned int failures;
	} shard[PANDO__SHARDS];
};

int directory_open(struct region *r)
{
	void *at = mmap(NULL, PANDO__DIRECTORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			r->slots_fd, (off_t)PANDO__DIRECTORY_OFFSET);

	if (at == MAP_FAILED)
		return pando__fail(errno, "cannot map the directory of region \"%s\": %s",
				   r->record.name, strerror(errno));
	r->directory = at;
	return 0;
}

void directory_close(struct region *r)
{
	if (r->directory)
		munmap(r->directory, PANDO__DIRECTORY_SIZE);
	r->directory = NULL;
	free(r->writers);
	r->writers = NULL;
}

/* Before the first name is given, its pages have no memory. */
static bool directory_there(const struct region *r)
{
	return pando__load_acquire(&r->rcu.rcu->directory_there) != 0;
}

/* The dead client's page says that something is retired: its reaping waits for a grace period. */
static bool mark_retired(struct region *r, uint32_t slot)
{
	const uint64_t one = 1;

	if (rcu_retired(r, slot))
		return true;
	return pwrite(r->slots_fd, &one, sizeof(one),
		      (off_t)((size_t)slot * PANDO__SLOT_SIZE +
			      offsetof(struct pando__slot, retired))) == (ssize_t)sizeof(one);
}

struct mending {
	struct region *r;
	struct pando__shard *shard;
	uint32_t slot;
	uint32_t *watched;
};

static void mend(void *arg)
{
	const struct mending *m = arg;

	pando__directory_mend(&m->r->heap.view, m->shard, m->slot, m->watched);
}

static bool lock_is(uint64_t lock, uint32_t slot, uint64_t generation)
{
	return ((uint32_t)lock & ~PANDO__SHARD_WAITERS) == slot + 1 &&
	       lock >> 32 == (generation & UINT32_MAX);
}

/* The lock of a shard has a dead owner. False: not all memory is there. */
static bool break_lock(struct region *r, unsigned int shard, uint32_t slot)
{
	const struct mending m = {.r = r,
				  .shard = &r->directory->shard[shard],
				  .slot = slot,
				  .watched = &r->rcu.rcu->watched[shard]};

	PANDO_INJECT("directory.break.found");
	if (pando__load_acquire(&m.shard->intent.kind) != PANDO__DIRECTORY_NONE) {
		if (!heap_there(r) || !mark_retired(r, slot) || !heap_guarded(mend, (void *)&m))
			return false;
		log_debug("region \"%s\": slot %u died while it changed names of part %u",
			  r->record.name, slot, shard);
	}
	PANDO_INJECT("directory.break.mended");
	pando__directory_break(m.shard);
	return true;
}

void directory_died(struct region *r, uint32_t slot)
{
	const uint64_t generation =
		PANDO__CLIENT_GENERATION(pando__ledger_client(r->ledger, slot)->word);

	for (unsigned int i = 0; directory_there(r) && i < PANDO__SHARDS; i++) {
		struct pando__shard *shard = &r->directory->shard[i];
		const uint64_t lock = pando__load_acquire(&shard->lock);

		if (lock_is(lock, slot, generation))
			(void)break_lock(r, i, slot);
		else if (lock == 0 && pando__load_relaxed(&shard->locks))
			/* Killed between giving it back and waking? */
			(void)pando__futex_wake((uint32_t *)(void *)&shard->lock, 1);
	}
}

/* --- the timer --- */

/* A lock that nobody who is attached has; or its owner's heap was not all there at its death. */
static void force(struct region *r, unsigned int shard, uint64_t lock)
{
	const uint32_t slot = ((uint32_t)lock & ~PANDO__SHARD_WAITERS) - 1;
	unsigned int *failures = &r->writers->shard[shard].failures;
	const struct pando__ledger_client *e =
		slot < PANDO__MAX_CLIENTS ? pando__ledger_client(r->ledger, slot) : NULL;

	if (e && PANDO__CLIENT_STATE(e->word) == PANDO__CLIENT_REAPING &&
	    lock_is(lock, slot, PANDO__CLIENT_GENERATION(e->word)) && ++*failures < RETRIES &&
	    heap_there(r)) {
		(void)break_lock(r, shard, slot);
		return;
	}
	log_error("region \"%s\": part %u of its directory was locked by nobody; names there may "
		  "be lost",
		  r->record.name, shard);
	*failures = 0;
	pando__store_release(&r->directory->shard[shard].intent.kind, PANDO__DIRECTORY_NONE);
	pando__directory_break(&r->directory->shard[shard]);
}

static const struct pando__ledger_client *owner_of(const struct region *r, uint64_t lock)
{
	const uint32_t slot = ((uint32_t)lock & ~PANDO__SHARD_WAITERS) - 1;
	const struct pando__ledger_client *e;

	if (slot >= PANDO__MAX_CLIENTS)
		return NULL;
	e = pando__ledger_client(r->ledger, slot);
	if (PANDO__CLIENT_STATE(e->word) != PANDO__CLIENT_LIVE ||
	    !lock_is(lock, slot, PANDO__CLIENT_GENERATION(e->word)))
		return NULL;
	return e;
}

/* Into the ledger: who has had a lock since the last look at least. */
static void note(struct region *r, unsigned int shard, int32_t pid, uint64_t since_ns, uint32_t n)
{
	struct pando__slow *slow = &r->ledger->directory_slow[n];

	if (n >= PANDO__STALLED)
		return;
	pando__store_relaxed(&slow->since_ns, since_ns);
	pando__store_relaxed(&slow->pid, pid);
	pando__store_relaxed(&slow->shard, shard);
}

static void tick(struct region *r)
{
	const uint64_t now = broker_now();
	bool any = r->ledger->directory_slow_count != 0;
	uint32_t n = 0;

	for (unsigned int i = 0; i < PANDO__SHARDS && !any; i++)
		any = pando__load_relaxed(&r->directory->shard[i].lock) != 0;
	if (any && !r->writers)
		r->writers = calloc(1, sizeof(*r->writers));
	for (unsigned int i = 0; any && r->writers && i < PANDO__SHARDS; i++) {
		struct pando__shard *shard = &r->directory->shard[i];
		const uint64_t lock =
			pando__load_acquire(&shard->lock) & ~(uint64_t)PANDO__SHARD_WAITERS;
		const uint64_t locks = pando__load_relaxed(&shard->locks);
		const struct pando__ledger_client *e = lock ? owner_of(r, lock) : NULL;

		if (lock && !e) {
			force(r, i, lock);
			continue;
		}
		if (lock && lock == r->writers->shard[i].lock &&
		    locks == r->writers->shard[i].locks) {
			if (now - r->writers->shard[i].since_ns >= RCU_STALLED_NS)
				note(r, i, e->pid, r->writers->shard[i].since_ns, n++);
			continue;
		}
		r->writers->shard[i].lock = lock;
		r->writers->shard[i].locks = locks;
		r->writers->shard[i].since_ns = now;
		r->writers->shard[i].failures = 0;
	}
	if (n || r->ledger->directory_slow_count)
		pando__store_release(&r->ledger->directory_slow_count, n);
}

void directory_tick(struct broker *b)
{
	for (struct region *r = b->regions; r; r = r->next)
		if (r->state == REGION_LIVE && directory_there(r))
			tick(r);
}
