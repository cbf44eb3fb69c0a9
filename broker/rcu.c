/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the broker does for a region's readers and writers (libshm/rcu): it takes the dead out, finishes
 * grace periods that nobody looks after any more, and notes which readers keep others waiting.
 *
 * The dead: their entry is REAPING at once, and from then on their sections count for nobody; who
 * sleeps until readers are through is woken to see that. What they had retired is freed by the
 * heap's reaping, which waits for a grace period first (heap.c).
 *
 * Stalled readers: each second, where a grace period is not over, all readers in its way are looked
 * at. A section that began before the counter's present value cannot be mistaken for a later one of
 * the same thread; so a reader that says the same as a second ago has been in that section for that
 * long. The ledger says which these are, for `pando stat`. All of this is advice: clients can write
 * what they like into their readers, and only harm their region with it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/file.h"
#include "common/atomic.h"
#include "common/inject.h"

#include "broker.h"
#include "log.h"

#define SEEN_MAX 64u /* readers that are followed from one second to the next */

struct rcu_seen {
	struct pando__reader_at at;
	uint64_t section, since_ns;
	int32_t pid;
	uint32_t tid;
};

struct rcu_watch {
	struct rcu_seen seen[2][SEEN_MAX]; /* at the last look and at this one */
	uint32_t count[2];
	unsigned int now; /* which of them is this look's */
};

int rcu_make(struct region *r)
{
	const int rc =
		pando__file_allocate(r->slots_fd, PANDO__RCU_OFFSET, sizeof(struct pando__rcu));

	return rc < 0 ? pando__fail(-rc, "no memory for the readers of region \"%s\": %s",
				    r->record.name, strerror(-rc))
		      : 0;
}

int rcu_open(struct region *r)
{
	void *at = mmap(NULL, sizeof(struct pando__rcu), PROT_READ | PROT_WRITE, MAP_SHARED,
			r->slots_fd, PANDO__RCU_OFFSET);

	if (at == MAP_FAILED)
		return pando__fail(errno, "cannot map the RCU part of region \"%s\": %s",
				   r->record.name, strerror(errno));
	r->rcu.rcu = at;
	r->rcu.ledger = r->ledger;
	if (pando__load_acquire(&r->rcu.rcu->grace) == 0)
		pando__grace_format(r->rcu.rcu);
	return 0;
}

void rcu_close(struct region *r)
{
	if (r->rcu.slots)
		munmap((void *)(uintptr_t)r->rcu.slots, PANDO__SLOTS_SIZE);
	if (r->rcu.rcu)
		munmap(r->rcu.rcu, sizeof(*r->rcu.rcu));
	memset(&r->rcu, 0, sizeof(r->rcu));
	free(r->watch);
	r->watch = NULL;
}

bool rcu_view(struct region *r)
{
	void *at;

	if (r->rcu.slots)
		return true;
	at = mmap(NULL, PANDO__SLOTS_SIZE, PROT_READ, MAP_SHARED | MAP_NORESERVE, r->slots_fd, 0);
	if (at == MAP_FAILED)
		return false;
	r->rcu.slots = at;
	return true;
}

bool rcu_retired(struct region *r, uint32_t slot)
{
	const struct pando__slot *page;

	if (!rcu_view(r))
		return true;
	page = (const void *)(r->rcu.slots + (size_t)slot * PANDO__SLOT_SIZE);
	/* Partner: count_in() in libshm/rcu/retire.c. */
	return pando__load_acquire(&page->retired) != 0;
}

void rcu_died(struct region *r)
{
	pando__grace_wake(r->rcu.rcu);
}

/* Zeroes the pages of readers that the client of this slot had, and gives them back. */
void rcu_clear(struct region *r, uint32_t slot)
{
	static const char zeroes[PANDO__SLOT_SIZE];
	const uint32_t high = pando__load_acquire(&r->rcu.rcu->pages_high);

	for (uint32_t i = 0; i < high && i < PANDO__READER_PAGES; i++) {
		const uint64_t owner = pando__load_acquire(&r->rcu.rcu->page_owner[i]);

		if ((owner & 0xffffff) != slot + 1u)
			continue;
		if (pwrite(r->slots_fd, zeroes, sizeof(zeroes),
			   (off_t)(PANDO__READERS_OFFSET + (size_t)i * PANDO__SLOT_SIZE)) !=
		    (ssize_t)sizeof(zeroes)) {
			log_error("cannot clear a page of readers of region \"%s\": %s",
				  r->record.name, strerror(errno));
			continue;
		}
		PANDO_INJECT("rcu.reap.cleared");
		/* Killed before this: the slot is reaped again. */
		pando__store_release(&r->rcu.rcu->page_owner[i], 0);
	}
}

/* --- who is in the way --- */

static const struct rcu_seen *before(const struct rcu_watch *w, const struct pando__reader_at *at,
				     uint64_t section)
{
	const struct rcu_seen *last = w->seen[!w->now];

	for (uint32_t i = 0; i < w->count[!w->now]; i++)
		if (last[i].at.behind == at->behind && last[i].at.page == at->page &&
		    last[i].at.index == at->index &&
		    pando__grace_of(last[i].section) == pando__grace_of(section))
			return &last[i];
	return NULL;
}

static void note(void *arg, const struct pando__reader_at *at, const struct pando__reader *reader,
		 uint64_t section)
{
	struct region *r = arg;
	struct rcu_watch *w = r->watch;
	const struct pando__ledger_client *client = pando__reader_client(&r->rcu, at);
	const struct rcu_seen *last = before(w, at, section);
	struct rcu_seen *s;

	if (w->count[w->now] == SEEN_MAX)
		return;
	s = &w->seen[w->now][w->count[w->now]++];
	s->at = *at;
	s->section = section;
	s->since_ns = last ? last->since_ns : broker_now();
	s->pid = client ? client->pid : 0;
	s->tid = pando__load_relaxed(&reader->tid);
}

static int older(const void *a, const void *b)
{
	const uint64_t x = ((const struct rcu_seen *)a)->since_ns;
	const uint64_t y = ((const struct rcu_seen *)b)->since_ns;

	return (x > y) - (x < y);
}

/* Those that were there at the last look, into the ledger, the oldest first. */
static void publish(struct region *r)
{
	struct rcu_watch *w = r->watch;
	struct pando__ledger *l = r->ledger;
	const uint64_t now = broker_now();
	uint32_t n = 0;

	qsort(w->seen[w->now], w->count[w->now], sizeof(w->seen[0][0]), older);
	while (n < w->count[w->now] && now - w->seen[w->now][n].since_ns >= RCU_STALLED_NS)
		n++;
	for (uint32_t i = 0; i < n && i < PANDO__STALLED; i++) {
		const struct rcu_seen *s = &w->seen[w->now][i];

		pando__store_relaxed(&l->rcu_stalled[i].since_ns, s->since_ns);
		pando__store_relaxed(&l->rcu_stalled[i].pid, s->pid);
		pando__store_relaxed(&l->rcu_stalled[i].tid, s->tid);
	}
	pando__store_release(&l->rcu_stalled_count, n);
}

static void tick(struct region *r)
{
	const uint64_t target = pando__load_seq_cst(&r->rcu.rcu->grace);
	struct rcu_watch *w;

	if (r->watch) {
		r->watch->now = !r->watch->now;
		r->watch->count[r->watch->now] = 0;
	}
	if (pando__grace_is_done(&r->rcu, target)) {
		if (r->ledger->rcu_stalled_count)
			pando__store_release(&r->ledger->rcu_stalled_count, 0);
		return;
	}
	if (!r->watch)
		r->watch = calloc(1, sizeof(*r->watch));
	w = r->watch;
	if (!w || !rcu_view(r) || pando__membarrier(&r->rcu) < 0)
		return;
	if (pando__grace_blockers(&r->rcu, target, note, r) == 0) {
		PANDO_INJECT("rcu.tick.over");
		pando__grace_done(&r->rcu, target);
		if (pando__load_relaxed(&r->rcu.rcu->waiting)) /* by somebody whom nobody woke */
			pando__grace_wake(r->rcu.rcu);
	}
	publish(r);
}

void rcu_tick(struct broker *b)
{
	for (struct region *r = b->regions; r; r = r->next)
		if (r->state == REGION_LIVE)
			tick(r);
}
