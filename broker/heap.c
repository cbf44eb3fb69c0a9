/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Heaps: what the broker has to do in them, and when.
 *
 * A region carries a heap as soon as a client has made one; the broker finds out when it looks. It
 * maps the region's heap like a client, at the same address, and its slots; what is to be done
 * there is the allocator's (reclaim.c). It takes milliseconds, so it is done on a worker, as jobs of
 * their own: one for each region at a time, beside the job that the region may have.
 *
 *	recover		after a restart, before anything else: hints that the dead broker had taken
 *	grace		before a client is reaped that had retired objects (libshm/rcu/retire.c): a
 *			grace period, so that no reader has them any more
 *	reap		a client that died or detached: its entry is REAPING and its slot page as it
 *			left it, until the job is done; then the page is zeroed
 *	look		is a slot whose page is zeroed named by a transfer under way? If not, its
 *			entry becomes FREE; else it is looked at again
 *	sweep		each second, where the heap says that there is something: orphans, owners who
 *			have not collected what others freed for two seconds, memory in reserve
 *	shrink, settle	before the committed size shrinks: are the spans there free? Then their
 *			memory goes. After it has grown, or not shrunk after all: they may be used
 *
 * A broker that is killed anywhere here leaves REAPING entries. Its successor does the same again:
 * a page that was zeroed already has no intents, and spans that were gone through are not the dead
 * client's any more.
 *
 * Nothing in a heap is believed. Memory that is not there (a client can punch holes into its heap;
 * there may be no huge page left to fill them) raises SIGBUS, which ends the function at hand like a
 * death; the job then counts as failed and is done again with the next sweep, RETRIES times. After
 * that the slot is free, and whatever else the heap has lost is its clients' loss.
 *
 * Entries of clients that cannot have a front (read-only, slot numbers too high) are free at once,
 * and so are all in a region without a heap.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/atomic.h"
#include "common/inject.h"

#include "broker.h"
#include "log.h"

#define RETRIES 5u
#define RESERVE_MS 1000u /* how long empty spans keep their memory */
#define RESERVE_MOST 4096u /* spans that a sweep gives back at most: 1 GiB */
#define REAPED_MOST 32u /* clients in a row, while something else is to be done */
#define LOOK_AFTER 8u /* clients that are reaped: a look goes through all intents of all clients */
#define GRACE_NAP_NS 1000000 /* between two looks at the readers in the way, */
#define GRACE_NAPS 4 /* so often; then with the next tick */
#define WORD_BITS 64u

/* --- memory that may not be there --- */

static _Thread_local sigjmp_buf *guard;

static void on_bus_error(int signal_number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (guard)
		siglongjmp(*guard, 1);
	(void)signal(signal_number, SIG_DFL); /* again, and for good */
}

bool heap_guarded(void (*work)(void *arg), void *arg)
{
	sigjmp_buf here;
	bool whole = false;

	if (sigsetjmp(here, 1) == 0) {
		guard = &here;
		work(arg);
		whole = true;
	}
	guard = NULL;
	return whole;
}

void heap_init(void)
{
	struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};

	(void)sigaction(SIGBUS, &action, NULL);
}

/* --- the mapping --- */

static int map(struct region *r)
{
	struct region_heap *h = &r->heap;
	void *slots;
	int rc;

	if (!r->backend->map)
		return -EOPNOTSUPP;
	rc = r->backend->map(r->heap_fd, r->record.base, r->record.max_size, false);
	if (rc < 0)
		return rc;
	slots = mmap(NULL, PANDO__SLOTS_SIZE, PROT_READ, MAP_SHARED | MAP_NORESERVE, r->slots_fd,
		     0);
	rc = slots == MAP_FAILED ? -errno : 0;
	if (rc == 0)
		rc = pando__view_init(&h->view, (char *)(uintptr_t)r->record.base, r->ledger);
	if (rc < 0) {
		if (slots != MAP_FAILED)
			munmap(slots, PANDO__SLOTS_SIZE);
		munmap((void *)(uintptr_t)r->record.base, r->record.max_size);
		h->view.base = NULL;
		return rc;
	}
	h->slots = slots;
	h->view.self = PANDO__OWNER_BROKER;
	return 0;
}

void heap_unmap(struct region *r)
{
	if (!r->heap.view.base)
		return;
	munmap((void *)(uintptr_t)r->heap.slots, PANDO__SLOTS_SIZE);
	munmap(r->heap.view.base, r->record.max_size);
	r->heap.view.base = NULL;
}

static void look_for_heap(void *arg)
{
	struct region_heap *h = arg;

	h->there = pando__heap_there(&h->view);
}

bool heap_there(struct region *r)
{
	struct region_heap *h = &r->heap;

	if (h->there)
		return true;
	if (h->unusable)
		return false;
	if (!h->view.base && map(r) < 0) {
		h->unusable = true;
		log_debug("region \"%s\": no look at its heap: %s", r->record.name,
			  pando_strerror_last());
		return false;
	}
	return heap_guarded(look_for_heap, h) && h->there;
}

/* --- slots --- */

static void set_bit(uint64_t *bits, uint32_t slot)
{
	bits[slot / WORD_BITS] |= 1ull << slot % WORD_BITS;
}

static void clear_bit(uint64_t *bits, uint32_t slot)
{
	bits[slot / WORD_BITS] &= ~(1ull << slot % WORD_BITS);
}

/* The first one from `from` on, or else the first of all. */
static bool next_bit(const uint64_t *bits, uint32_t from, uint32_t *slot)
{
	const uint32_t first = from / WORD_BITS % HEAP_SLOT_WORDS;

	for (uint32_t i = 0; i <= HEAP_SLOT_WORDS; i++) {
		const uint32_t w = (first + i) % HEAP_SLOT_WORDS;
		const uint64_t word = i ? bits[w] : bits[w] & ~0ull << from % WORD_BITS;

		if (word) {
			*slot = w * WORD_BITS + (uint32_t)__builtin_ctzll(word);
			return true;
		}
	}
	return false;
}

static bool any_bit(const uint64_t *bits, uint32_t *slot)
{
	return next_bit(bits, 0, slot);
}

void heap_release(struct region *r, uint32_t slot, bool readonly)
{
	struct region_heap *h = &r->heap;

	if (r->broker->ending && heap_there(r))
		return; /* it lives, and goes on without a broker */
	if (!readonly)
		directory_died(r, slot);
	if (readonly || slot >= PANDO__HEAP_CLIENTS || !heap_there(r)) {
		ledger_reap(r, slot);
		return;
	}
	ledger_begin_reap(r, slot);
	set_bit(rcu_retired(r, slot) ? h->retired : h->dead, slot);
	h->reaping++;
	heap_continue(r);
}

void heap_take_up(struct region *r)
{
	r->heap.recover = heap_there(r);
}

/* Its page is zeroed: the entry is free unless a transfer names it. */
static void finish_slot(struct region *r, uint32_t slot)
{
	clear_bit(r->heap.waiting, slot);
	ledger_end_reap(r, slot);
	r->heap.reaping--;
}

void heap_drop(struct region *r)
{
	struct region_heap *h = &r->heap;
	uint32_t slot;

	for (uint32_t w = 0; w < HEAP_SLOT_WORDS; w++) {
		h->dead[w] |= h->retired[w];
		h->retired[w] = h->graced[w] = 0;
	}
	while (any_bit(h->dead, &slot)) {
		clear_bit(h->dead, slot);
		ledger_clear_slot(r, slot);
		finish_slot(r, slot);
	}
	while (any_bit(h->waiting, &slot))
		finish_slot(r, slot);
}

/* --- the work, on a worker --- */

static void recover(void *arg)
{
	struct region_heap *h = arg;

	pando__spans_settle(&h->view);
	(void)pando__heap_recover(&h->view, &h->reclaimed);
}

/* Readers are in their sections for microseconds, if they are not stalled. */
static void grace(void *arg)
{
	struct region_heap *h = arg;
	const struct pando__rcu_view *v = &h->job.region->rcu;
	const struct timespec nap = {.tv_nsec = GRACE_NAP_NS};

	h->grace_over = false;
	if (!v->slots || (!h->grace.target && pando__grace_begin(v, &h->grace.target) < 0)) {
		h->grace.target = 0; /* the next tick tries again */
		return;
	}
	PANDO_INJECT("rcu.reap.grace");
	for (int i = 0; i < GRACE_NAPS && !h->grace_over; i++) {
		h->grace_over = pando__grace_over(v, &h->grace);
		if (!h->grace_over)
			(void)nanosleep(&nap, NULL);
	}
	PANDO_INJECT("rcu.reap.over");
	if (h->grace_over)
		pando__grace_done(v, h->grace.target);
}

static void reap(void *arg)
{
	struct region_heap *h = arg;

	(void)pando__heap_reap(&h->view, h->slots, h->slot, &h->reclaimed);
}

/* Those of `waiting` that nobody names any more are put into `free`. */
static void look(void *arg)
{
	struct region_heap *h = arg;
	uint64_t named[HEAP_SLOT_WORDS];

	pando__heap_slots_named(&h->view, h->slots, named);
	for (uint32_t w = 0; w < HEAP_SLOT_WORDS; w++)
		h->free[w] = h->waiting[w] & ~named[w];
}

/*
 * An owner that has been told that others have freed something, and was told so a second ago, too,
 * does not allocate at the moment.
 */
static void sweep(void *arg)
{
	struct region_heap *h = arg;
	const uint32_t high = pando__load_acquire(&h->view.ledger->clients_high);
	struct pando__reclaimed more;

	(void)pando__heap_sweep(&h->view, &h->reclaimed);
	pando__heap_tell(&h->view, h->slots, 0);
	for (uint32_t slot = 0; slot < high && slot < PANDO__HEAP_CLIENTS; slot++) {
		const bool told = pando__load_relaxed(&h->view.clients[slot].remote) != 0;

		if (!told)
			clear_bit(h->told, slot);
		else if (h->told[slot / WORD_BITS] >> slot % WORD_BITS & 1)
			(void)pando__heap_collect_idle(&h->view, slot, &more);
		else
			set_bit(h->told, slot);
	}
	(void)pando__spans_purge(&h->view, PANDO__OWNER_BROKER, RESERVE_MS, RESERVE_MOST);
}

static void shrink(void *arg)
{
	struct region_heap *h = arg;

	h->shrink_result = pando__spans_shrink(&h->view, h->size);
	snprintf(h->shrink_text, sizeof(h->shrink_text), "%s", pando_strerror_last());
}

static void settle(void *arg)
{
	pando__spans_settle(&((struct region_heap *)arg)->view);
}

void heap_work(struct job *job)
{
	static void (*const work[])(void *arg) = {
		[HEAP_RECOVER] = recover, [HEAP_GRACE] = grace, [HEAP_REAP] = reap,
		[HEAP_LOOK] = look,	  [HEAP_SWEEP] = sweep, [HEAP_SHRINK] = shrink,
		[HEAP_SETTLE] = settle,
	};
	struct region_heap *h = &job->region->heap;

	memset(&h->reclaimed, 0, sizeof(h->reclaimed));
	memset(h->free, 0, sizeof(h->free));
	job->result = heap_guarded(work[h->doing], h) ? 0 : -EFAULT;
	PANDO_INJECT("broker.heap.worked");
}

/* --- what is done when --- */

static void start(struct region *r, enum heap_work doing)
{
	struct region_heap *h = &r->heap;

	h->doing = doing;
	h->working = true;
	h->begun_ns = broker_now();
	h->job.broker = r->broker;
	h->job.region = r;
	h->job.client = NULL;
	h->job.kind = JOB_HEAP;
	h->job.at = h->job.end = 0;
	r->broker->jobs++;
	r->broker->ops->submit(r->broker, &h->job);
}

/* A grace period for all that are waiting for one now, or more of the one under way. */
static void start_grace(struct region *r)
{
	struct region_heap *h = &r->heap;

	if (!h->grace.target)
		memcpy(h->graced, h->retired, sizeof(h->graced));
	start(r, HEAP_GRACE);
}

static void graced(struct region_heap *h)
{
	h->grace_waits = !h->grace_over;
	if (!h->grace_over)
		return;
	for (uint32_t w = 0; w < HEAP_SLOT_WORDS; w++) {
		h->dead[w] |= h->graced[w];
		h->retired[w] &= ~h->graced[w];
		h->graced[w] = 0;
	}
	memset(&h->grace, 0, sizeof(h->grace));
}

/*
 * What is begun next. Slots that only have to be looked at are free after that, so they do not wait
 * for all of the dead; grace periods take turns with reapings; and while clients go on dying, the rest
 * gets its turn after some of them, and they get theirs one after the other.
 */
void heap_continue(struct region *r)
{
	struct region_heap *h = &r->heap;
	uint32_t slot;
	bool dead;

	if (h->working || h->failed || r->state != REGION_LIVE || r->announced)
		return;
	dead = any_bit(h->dead, &slot);
	if (!h->settle && !h->sweep)
		h->reaped = 0;
	if (h->recover) {
		start(r, HEAP_RECOVER);
	} else if (h->look && (!dead || h->unlooked >= LOOK_AFTER) && any_bit(h->waiting, &slot)) {
		h->unlooked = 0;
		start(r, HEAP_LOOK);
	} else if (!h->grace_waits && (!dead || h->doing != HEAP_GRACE) &&
		   any_bit(h->retired, &slot)) {
		start_grace(r);
	} else if (h->reaped < REAPED_MOST && next_bit(h->dead, h->slot + 1, &slot)) {
		h->reaped++;
		h->unlooked++;
		h->slot = slot;
		start(r, HEAP_REAP);
	} else if (h->settle) {
		h->reaped = 0;
		start(r, HEAP_SETTLE);
	} else if (h->sweep) {
		h->reaped = 0;
		start(r, HEAP_SWEEP);
	}
}

static void reaped(struct region *r)
{
	struct region_heap *h = &r->heap;
	struct broker *b = r->broker;
	const uint64_t took = broker_now() - h->begun_ns;

	b->heap_reaps_total++;
	b->heap_objects_total += h->reclaimed.objects;
	b->heap_bytes_total += h->reclaimed.bytes;
	b->heap_reap_ns_last = took;
	if (took > b->heap_reap_ns_max)
		b->heap_reap_ns_max = took;
	log_debug("region \"%s\": slot %u had %" PRIu64 " objects, %" PRIu64 " bytes; %" PRIu64
		  " spans are free, %" PRIu64 " orphans",
		  r->record.name, h->slot, h->reclaimed.objects, h->reclaimed.bytes,
		  h->reclaimed.spans_freed, h->reclaimed.spans_orphaned);
	PANDO_INJECT("broker.heap.reaped");
	/*
	 * Killed before this: the successor reaps it again. After: it finds no intents and no
	 * spans.
	 */
	ledger_clear_slot(r, h->slot);
	PANDO_INJECT("broker.heap.cleared");
	clear_bit(h->dead, h->slot);
	set_bit(h->waiting, h->slot);
	h->look = true;
}

static void looked(struct region *r)
{
	struct region_heap *h = &r->heap;
	uint32_t slot;

	h->look = false;
	while (any_bit(h->free, &slot)) {
		clear_bit(h->free, slot);
		finish_slot(r, slot);
	}
}

/* It was not all there. Again with the next sweep; not for ever. */
static void failed(struct region *r)
{
	struct region_heap *h = &r->heap;

	h->failed = true;
	if (++h->failures < RETRIES)
		return;
	log_error("region \"%s\": its heap has memory that is not there; what the dead had in it "
		  "may be lost",
		  r->record.name);
	h->failures = 0;
	h->recover = h->sweep = h->settle = false;
	heap_drop(r);
}

void heap_done(struct job *job)
{
	struct region *r = job->region;
	struct region_heap *h = &r->heap;

	h->working = false;
	r->broker->jobs--;
	if (job->result < 0) {
		failed(r);
	} else {
		h->failures = 0;
		switch (h->doing) {
		case HEAP_RECOVER:
			h->recover = false;
			break;
		case HEAP_GRACE:
			graced(h);
			break;
		case HEAP_REAP:
			reaped(r);
			break;
		case HEAP_LOOK:
			looked(r);
			break;
		case HEAP_SWEEP:
			h->sweep = false;
			break;
		case HEAP_SHRINK:
			h->shrunk = true;
			break;
		case HEAP_SETTLE:
			h->settle = false;
			break;
		}
	}
	if (!r->working) /* who wants to shrink has waited */
		handler_resume(&r->waiting);
	if (h->shrunk && !h->working) { /* whoever wanted it is gone */
		h->shrunk = false;
		h->settle = true;
	}
	heap_continue(r);
	region_settle(r);
}

/* --- the timer --- */

struct wanted {
	struct region *r;
	bool sweep;
};

/* Is there something to sweep? A handful of loads: on the loop's thread. */
static void look_for_work(void *arg)
{
	struct wanted *w = arg;
	const struct pando__view *v = &w->r->heap.view;
	const uint32_t high = w->r->ledger->clients_high;

	w->sweep = pando__load_relaxed(&v->heap->orphan_remote.value) ||
		   pando__load_relaxed(&v->heap->reserves.value);
	for (uint32_t slot = 0; slot < high && slot < PANDO__HEAP_CLIENTS && !w->sweep; slot++)
		w->sweep = pando__load_relaxed(&v->clients[slot].remote) != 0;
}

void heap_tick(struct broker *b)
{
	for (struct region *r = b->regions; r; r = r->next) {
		struct region_heap *h = &r->heap;
		struct wanted w = {.r = r};

		if (r->state != REGION_LIVE || !heap_there(r))
			continue;
		/* Orphans are gone through now and then even if they say nothing. */
		if (!heap_guarded(look_for_work, &w) || ++h->ticks % HEAP_TICKS == 0)
			w.sweep = true;
		h->sweep |= w.sweep;
		h->look = true;
		h->grace_waits = false;
		/* What failed may have taken hints with it. */
		h->recover |= h->failed;
		h->failed = false;
		heap_continue(r);
	}
}

/* --- the region's size --- */

int heap_shrink(struct client *c, const struct pando__msg *msg, struct region *r, uint64_t size)
{
	struct region_heap *h = &r->heap;

	if (!heap_there(r))
		return 0;
	if (!h->working && h->shrunk && h->size == size) {
		h->shrunk = false;
		if (h->shrink_result == 0)
			return 0;
		h->settle = true;
		return pando__fail(-h->shrink_result, "%s", h->shrink_text);
	}
	if (!h->working) {
		h->size = size;
		start(r, HEAP_SHRINK);
	}
	return handler_park(c, msg, &r->waiting) < 0 ? -ENOMEM : 1;
}

int heap_reach(const struct region *r, uint64_t size)
{
	uint64_t offset, length;
	struct pando__view v;
	int rc = pando__view_init(&v, (char *)(uintptr_t)r->record.base, r->ledger);

	if (rc < 0)
		return rc;
	offset = pando__span_table(&v, size, &length);
	return r->backend->commit(r->heap_fd, offset, length);
}

void heap_grown(struct region *r)
{
	r->heap.settle = heap_there(r);
	heap_continue(r);
}
