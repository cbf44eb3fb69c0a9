/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Spans: taking them, letting go of them, giving their memory back.
 *
 * A span's word (see layout.h) is the only truth about whose it is. Everything here is one
 * compare-and-swap of such a word, with steps before and after it that may be repeated or left out:
 *
 *	take	metadata gets memory; word: FREE or RESERVE -> OWNED
 *		Killed before: a free span has some memory for metadata, until it is taken and given
 *		back. After: an OWNED span of a dead client, all free: the broker frees it.
 *	release	word: OWNED -> RESERVE (or FREE); hints
 *		Killed after: the hints are not set. Spans are found without them, later.
 *	purge	word: RESERVE -> ABSENT by the purger; memory is given back; word -> FREE
 *		Killed in between: the broker finds ABSENT by a dead one, and does the rest again.
 *	shed	free pages of a span in use, lent by its owner (see Lending in layout.h): the broker
 *		gives their memory back. Killed in between: its successor does it again.
 *
 * A run of spans is taken one after the other, from below. Where one of them has just been taken by
 * somebody else, those before it are let go, and the search goes on behind it; so of two who want
 * the same spans, one goes on. Killed in between: as above.
 *
 * Search begins at a hint, below which nothing is likely to be free, and comes round to it. So spans
 * are taken from below, which keeps the end of the region free for shrinking.
 *
 * The region's size: a span is taken only if it ends below the ledger's committed size. That can
 * shrink between the look and the compare-and-swap, but shrinking makes the spans beyond ABSENT
 * first, and then the compare-and-swap fails.
 *
 * NUMA: memory comes from the node of the thread that commits it. A span that is RESERVE has memory
 * already, so each remembers its node, and a thread takes spans without memory or with memory of its
 * own node as long as there are some. Machines with one node skip all that.
 *
 * Quotas: the ledger says how many bytes of spans a client, and all clients of its user, may own.
 * What a client owns stands in its line; it is raised before the spans are taken, and all lines are
 * added up after that, so of two who race for the last span at most one gets it. The broker counts
 * anew when a client has died.
 */
#include "front.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#define OBJECTS_BYTES ((uint64_t)(PANDO__SPAN / PANDO__GRANULE) * sizeof(uint16_t))
#define TRIES 3u
#define RUN 64u /* spans whose memory is given back at once */

static_assert(OBJECTS_BYTES % PANDO__PAGE == 0, "object words of a span are pages of their own");

static uint32_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint32_t)((uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000);
}

static uint32_t first_of(const struct pando__view *v)
{
	return (uint32_t)(v->first / PANDO__SPAN);
}

static bool takeable(uint64_t word)
{
	return PANDO__SPAN_STATE(word) == PANDO__SPAN_FREE ||
	       PANDO__SPAN_STATE(word) == PANDO__SPAN_RESERVE;
}

static uint64_t objects_offset(const struct pando__view *v, uint32_t index)
{
	return (uint64_t)((char *)v->objects - v->base) + index * OBJECTS_BYTES;
}

#ifdef PANDO_INJECTION
uint32_t pando__fake_node;
#endif

/* NUMA node + 1 of this thread; 0 where there is one node only. */
static uint32_t own_node(void)
{
	static int nodes; /* 1, 2 (or more); 0: not known yet */
	unsigned int cpu, node;

#ifdef PANDO_INJECTION
	if (pando__fake_node)
		return pando__fake_node;
#endif
	if (pando__load_relaxed(&nodes) == 0)
		pando__store_relaxed(&nodes,
				     access("/sys/devices/system/node/node1", F_OK) == 0 ? 2 : 1);
	if (pando__load_relaxed(&nodes) < 2 || getcpu(&cpu, &node) != 0)
		return 0;
	return node + 1;
}

/* ---- without a front -------------------------------------------------------------------------- */

static void lower_hint(const struct pando__view *v, uint32_t index)
{
	const uint64_t offset = (uint64_t)index * PANDO__SPAN;

	if (pando__load_relaxed(&v->heap->search.value) > offset)
		pando__store_relaxed(&v->heap->search.value, offset);
}

bool pando__span_release(const struct pando__view *v, uint32_t index, uint64_t word)
{
	struct pando__span *s = &v->spans[index];
	const enum pando__span_state to = v->lazy ? PANDO__SPAN_RESERVE : PANDO__SPAN_FREE;

	if (v->lazy)
		pando__store_relaxed(&s->since, now_ms());
	PANDO_INJECT("heap.span.releasing");
	/* Pairs with who takes it: the span's words and page table were cleared before. */
	if (!pando__cas_acq_rel(&s->word, &word,
				PANDO__SPAN_WORD(0, to, PANDO__SPAN_COUNT(word) + 1)))
		return false;
	PANDO_INJECT("heap.span.released");
	lower_hint(v, index);
	if (v->lazy)
		pando__purge_hint(v);
	return true;
}

void pando__purge_hint(const struct pando__view *v)
{
	/* Pairs with the exchange in pando__spans_purge(): one of the two sees the other. */
	if (!pando__load_seq_cst(&v->heap->reserves.value))
		pando__store_seq_cst(&v->heap->reserves.value, 1);
}

/* Of `n` spans, one behind the other. */
static void give_back(const struct pando__view *v, uint32_t index, uint32_t n)
{
	pando__decommit(v, (uint64_t)index * PANDO__SPAN, (uint64_t)n * PANDO__SPAN);
	PANDO_INJECT("heap.span.punched");
	pando__decommit(v, objects_offset(v, index), n * OBJECTS_BYTES);
}

/* ABSENT, without memory -> FREE. */
static void now_free(const struct pando__view *v, uint32_t index, uint64_t word)
{
	struct pando__span *s = &v->spans[index];

	pando__store_relaxed(&s->node, 0);
	PANDO_INJECT("heap.span.purged");
	if (pando__cas_acq_rel(&s->word, &word,
			       PANDO__SPAN_WORD(0, PANDO__SPAN_FREE, PANDO__SPAN_COUNT(word) + 1)))
		lower_hint(v, index);
}

/* What a purge is asked for. */
struct purge {
	uint32_t purger, age_ms, most, now;
};

/* It may have become RESERVE after `now`. */
static bool is_young(const struct pando__span *s, const struct purge *p)
{
	return p->age_ms && (int32_t)(p->now - pando__load_relaxed(&s->since)) < (int32_t)p->age_ms;
}

/*
 * Takes spans that have been RESERVE for long enough, one behind the other from `index` on. Returns how
 * many.
 */
static uint32_t seize(const struct pando__view *v, uint32_t index, uint32_t end,
		      const struct purge *p)
{
	uint32_t n = 0;

	for (; n < p->most && n < RUN && index + n < end; n++) {
		struct pando__span *s = &v->spans[index + n];
		uint64_t word = pando__load_acquire(&s->word);

		if (PANDO__SPAN_STATE(word) != PANDO__SPAN_RESERVE || is_young(s, p) ||
		    !pando__cas_acq_rel(&s->word, &word,
					PANDO__SPAN_WORD(p->purger, PANDO__SPAN_ABSENT,
							 PANDO__SPAN_COUNT(word) + 1)))
			break;
		PANDO_INJECT("heap.span.purging");
	}
	return n;
}

static uint32_t purge_run(const struct pando__view *v, uint32_t index, uint32_t end,
			  const struct purge *p)
{
	const uint32_t n = seize(v, index, end, p);

	if (n)
		give_back(v, index, n);
	for (uint32_t i = index; i < index + n; i++)
		now_free(v, i, pando__load_relaxed(&v->spans[i].word));
	return n;
}

/* ---- pages that are lent ---------------------------------------------------------------------- */

/* Its owner has forgotten it: it is released in its stead, unless that has been done. */
static void release_left(const struct pando__view *v, uint32_t index, uint16_t lent)
{
	struct pando__span *s = &v->spans[index];
	const uint64_t word = pando__load_acquire(&s->word);

	if (PANDO__SPAN_STATE(word) == PANDO__SPAN_OWNED &&
	    PANDO__LEFT(PANDO__SPAN_COUNT(word)) == lent)
		(void)pando__span_release(v, index, word);
	PANDO_INJECT("heap.span.left");
	/* Who has it now may have stored NONE already. */
	(void)pando__cas_acq_rel(&s->lent, &lent, PANDO__LENT_NONE);
}

void pando__span_unlend(const struct pando__view *v, uint32_t index)
{
	struct pando__span *s = &v->spans[index];
	uint16_t lent = pando__load_acquire(&s->lent);

	if (PANDO__LENDING(lent) == PANDO__LENT_BUSY) {
		/* More can become free meanwhile; none is taken. */
		pando__decommit_pages(v, index, ~pando__load_relaxed(&s->pages));
		PANDO_INJECT("heap.span.shed");
		/* Pairs with its owner, who finds NONE and knows that the memory is gone. */
		if (pando__cas_acq_rel(&s->lent, &lent, PANDO__LENT_NONE))
			return;
	}
	if (PANDO__LENDING(lent) == PANDO__LENT_LEFT)
		release_left(v, index, lent);
}

static bool take_lent(const struct pando__view *v, uint32_t index, uint64_t word)
{
	uint16_t lent = PANDO__LENT;

	return (PANDO__SPAN_STATE(word) == PANDO__SPAN_OWNED ||
		PANDO__SPAN_STATE(word) == PANDO__SPAN_ORPHAN) &&
	       pando__load_seq_cst(&v->spans[index].lent) == PANDO__LENT &&
	       pando__cas_acq_rel(&v->spans[index].lent, &lent, PANDO__LENT_BUSY);
}

uint32_t pando__spans_purge(const struct pando__view *v, uint32_t purger, uint32_t age_ms,
			    uint32_t most)
{
	const uint32_t end = pando__spans_end(v);
	struct purge p = {.purger = purger, .age_ms = age_ms, .most = most, .now = now_ms()};
	bool left = false;

	/* Pairs with pando__purge_hint(): what it was set for is seen below, or it is set again. */
	if (!v->lazy || pando__exchange_seq_cst(&v->heap->reserves.value, 0) == 0)
		return 0;
	for (uint32_t i = first_of(v), n; i < end && !(left && p.most == 0); i += n ? n : 1) {
		const uint64_t word = pando__load_seq_cst(&v->spans[i].word);

		n = 0;
		if (PANDO__SPAN_STATE(word) == PANDO__SPAN_RESERVE) {
			n = purge_run(v, i, end, &p);
			left |= n == 0;
		} else if (pando__load_relaxed(&v->spans[i].lent) == PANDO__LENT) {
			if (purger == PANDO__OWNER_BROKER && p.most && take_lent(v, i, word)) {
				PANDO_INJECT("heap.span.shedding");
				pando__span_unlend(v, i);
				n = 1;
			}
			left |= n == 0;
		}
		p.most -= n;
	}
	if (left)
		pando__store_release(&v->heap->reserves.value, 1);
	return most - p.most;
}

void pando__span_finish(const struct pando__view *v, uint32_t index, uint32_t purger)
{
	uint64_t word = pando__load_acquire(&v->spans[index].word);

	if (PANDO__SPAN_STATE(word) == PANDO__SPAN_ABSENT && PANDO__SPAN_OWNER(word) == purger) {
		give_back(v, index, 1);
		now_free(v, index, word);
	}
}

int pando__spans_shrink(const struct pando__view *v, uint64_t size)
{
	const uint32_t from = pando__span_limit(v, size), end = pando__spans_end(v);

	for (uint32_t i = from < first_of(v) ? first_of(v) : from; i < end; i++) {
		uint64_t word = pando__load_acquire(&v->spans[i].word);
		bool ok = takeable(word);

		/* Nobody else's: as if the broker purged it, in case it dies. */
		if (ok)
			ok = pando__cas_acq_rel(&v->spans[i].word, &word,
						PANDO__SPAN_WORD(PANDO__OWNER_BROKER,
								 PANDO__SPAN_ABSENT,
								 PANDO__SPAN_COUNT(word) + 1));
		else if (PANDO__SPAN_STATE(word) == PANDO__SPAN_ABSENT)
			ok = PANDO__SPAN_OWNER(word) == 0 ||
			     PANDO__SPAN_OWNER(word) == PANDO__OWNER_BROKER;
		if (ok)
			continue;
		pando__spans_settle(v);
		return pando__fail(EBUSY,
				   "region \"%.63s\" cannot shrink to %llu bytes: its heap has "
				   "objects at offset %llu",
				   v->ledger->name, (unsigned long long)size,
				   (unsigned long long)i * PANDO__SPAN);
	}
	PANDO_INJECT("heap.span.shrunk");
	for (uint32_t i = from < first_of(v) ? first_of(v) : from; i < end; i++) {
		uint64_t word = pando__load_acquire(&v->spans[i].word);

		if (PANDO__SPAN_STATE(word) != PANDO__SPAN_ABSENT)
			continue;
		give_back(v, i, 1);
		pando__store_relaxed(&v->spans[i].node, 0);
		(void)pando__cas_acq_rel(
			&v->spans[i].word, &word,
			PANDO__SPAN_WORD(0, PANDO__SPAN_ABSENT, PANDO__SPAN_COUNT(word) + 1));
	}
	return 0;
}

void pando__spans_settle(const struct pando__view *v)
{
	const uint32_t end = pando__spans_end(v);

	for (uint32_t i = first_of(v); i < end; i++) {
		uint64_t word = pando__load_acquire(&v->spans[i].word);

		if (PANDO__SPAN_STATE(word) == PANDO__SPAN_ABSENT &&
		    (PANDO__SPAN_OWNER(word) == 0 ||
		     PANDO__SPAN_OWNER(word) == PANDO__OWNER_BROKER)) {
			give_back(v, i, 1);
			now_free(v, i, word);
		}
	}
}

/* ---- quotas ----------------------------------------------------------------------------------- */

static const struct pando__ledger_client *entry(const struct pando__view *v, uint32_t slot)
{
	return pando__ledger_client((struct pando__ledger *)(uintptr_t)v->ledger, slot);
}

/* Spans of all clients of this user, by their own account. */
static uint64_t spans_of_user(const struct pando__view *v, uint32_t uid)
{
	uint32_t high = pando__load_acquire(&v->ledger->clients_high);
	uint64_t sum = 0;

	for (uint32_t i = 0; i < high && i < PANDO__HEAP_CLIENTS; i++) {
		const struct pando__ledger_client *e = entry(v, i);

		if (PANDO__CLIENT_STATE(pando__load_relaxed(&e->word)) != PANDO__CLIENT_FREE &&
		    e->uid == uid)
			sum += pando__load_relaxed(&v->clients[i].spans);
	}
	return sum;
}

static void discharge(struct pando__front *f, uint32_t count)
{
	struct pando__heap_client *line = &f->view.clients[f->slot];

	(void)pando__add_acq_rel(&line->spans, -count);
}

/* Books `count` spans more for this client, if its quotas allow them. */
static int charge(struct pando__front *f, uint32_t count)
{
	const struct pando__view *v = &f->view;
	const struct pando__ledger_client *e = entry(v, f->slot);
	const uint64_t own = pando__load_relaxed(&e->heap_quota);
	const uint64_t user = pando__load_relaxed(&e->heap_quota_user);
	/* Before the sum: see above. */
	const uint64_t spans =
		(uint64_t)pando__add_acq_rel(&v->clients[f->slot].spans, count) + count;

	if (own && spans > own / PANDO__SPAN) {
		discharge(f, count);
		return pando__fail(
			EDQUOT, "this client may own %llu bytes of region \"%.63s\" and has %llu",
			(unsigned long long)own, v->ledger->name,
			(unsigned long long)(spans - count) * PANDO__SPAN);
	}
	if (user && spans_of_user(v, e->uid) > user / PANDO__SPAN) {
		discharge(f, count);
		return pando__fail(EDQUOT,
				   "the clients of user %u may own %llu bytes of region \"%.63s\" "
				   "together, and would have more",
				   e->uid, (unsigned long long)user, v->ledger->name);
	}
	return 0;
}

/* ---- for a front ------------------------------------------------------------------------------ */

/* Memory for the words of its objects and for its part of the page table. */
static int commit_metadata(const struct pando__view *v, uint32_t index)
{
	const uint64_t table = (uint64_t)((char *)v->page_table - v->base);
	const uint64_t part = index * (uint64_t)PANDO__SPAN_PAGES * sizeof(uint32_t);
	int rc = pando__commit(v, table + part / PANDO__PAGE * PANDO__PAGE, PANDO__PAGE);

	return rc < 0 ? rc : pando__commit(v, objects_offset(v, index), OBJECTS_BYTES);
}

/* 1: it is ours; 0: somebody was faster; -ENOMEM. */
static int take(struct pando__front *f, uint32_t index, uint32_t node)
{
	struct pando__span *s = &f->view.spans[index];
	uint64_t word = pando__load_acquire(&s->word);
	const bool bare = PANDO__SPAN_STATE(word) == PANDO__SPAN_FREE;
	int rc;

	if (!takeable(word))
		return 0;
	if (bare) {
		rc = commit_metadata(&f->view, index);
		if (rc < 0)
			return rc;
		PANDO_INJECT("heap.span.committed");
	}
	/* Pairs with who let go of it: what it cleared is cleared. */
	if (!pando__cas_acq_rel(
		    &s->word, &word,
		    PANDO__SPAN_WORD(f->me, PANDO__SPAN_OWNED, PANDO__SPAN_COUNT(word) + 1)))
		return 0;
	PANDO_INJECT("heap.span.taken");
	if (bare)
		pando__store_relaxed(&s->node, node | PANDO__NODE_BARE);
	pando__store_relaxed(&s->pages, 0);
	pando__store_relaxed(&s->remote, 0);
	pando__store_relaxed(&s->held, 0);
	pando__store_relaxed(&s->lent, PANDO__LENT_NONE);
	return 1;
}

static void untake(struct pando__front *f, uint32_t index)
{
	(void)pando__span_release(&f->view, index, pando__load_relaxed(&f->view.spans[index].word));
}

/* All of [index, index + count), or none. 1, 0 or -ENOMEM as above; *behind: where to go on. */
static int take_run(struct pando__front *f, uint32_t index, uint32_t count, uint32_t node,
		    uint32_t *behind)
{
	for (uint32_t i = 0; i < count; i++) {
		int rc = take(f, index + i, node);

		if (rc > 0)
			continue;
		*behind = index + i + 1;
		while (i > 0)
			untake(f, index + --i);
		return rc;
	}
	return 1;
}

/* True if a thread of that node should take the span before others. */
static bool near(const struct pando__span *s, uint64_t word, uint32_t node)
{
	uint32_t there = PANDO__NODE(pando__load_relaxed(&s->node));

	return PANDO__SPAN_STATE(word) == PANDO__SPAN_FREE || there == 0 || there == node;
}

/* The first index at or above `at` whose address suits the alignment. */
static uint64_t align_up(const struct pando__view *v, uint64_t at, uint64_t alignment)
{
	uintptr_t address;

	if (alignment <= PANDO__SPAN)
		return at;
	address = (uintptr_t)v->base + at * PANDO__SPAN;
	address = (address + alignment - 1) & ~(uintptr_t)(alignment - 1);
	return (address - (uintptr_t)v->base) / PANDO__SPAN;
}

struct search {
	uint32_t count;
	uint64_t alignment;
	uint32_t node; /* 0: any */
	uint64_t hint; /* as it was */
	bool passed; /* free spans were passed over that have memory of another node */
	bool beaten; /* somebody was faster: it may be worth while to look again */
};

/* Looks for a run that begins in [from, to). Its index, -ENOENT, or -ENOMEM of the system. */
static int64_t search(struct pando__front *f, struct search *q, uint64_t from, uint64_t to)
{
	const struct pando__view *v = &f->view;
	const uint64_t end = pando__spans_end(v);

	for (uint64_t at = align_up(v, from, q->alignment); at < to && at + q->count <= end;) {
		uint32_t n = 0, behind = 0;
		int rc;

		while (n < q->count) {
			const struct pando__span *s = &v->spans[at + n];
			uint64_t word = pando__load_relaxed(&s->word);

			if (!takeable(word))
				break;
			if (q->node && !near(s, word, q->node)) {
				q->passed = true;
				break;
			}
			n++;
		}
		if (n < q->count) {
			at = align_up(v, at + n + 1, q->alignment);
			continue;
		}
		rc = take_run(f, (uint32_t)at, q->count, own_node(), &behind);
		if (rc > 0)
			return (int64_t)at;
		if (rc < 0)
			return rc;
		q->beaten = true;
		at = align_up(v, behind, q->alignment);
	}
	return -ENOENT;
}

static int64_t search_all(struct pando__front *f, struct search *q)
{
	const struct pando__view *v = &f->view;
	const uint64_t first = first_of(v), end = v->end / PANDO__SPAN;
	uint64_t hint;
	int64_t at;

	q->hint = pando__load_relaxed(&v->heap->search.value);
	hint = q->hint / PANDO__SPAN;
	if (hint < first || hint > end)
		hint = first;
	at = search(f, q, hint, end);
	if (at == -ENOENT && hint > first)
		at = search(f, q, first, hint);
	return at;
}

static int full(const struct pando__view *v, uint32_t count)
{
	return pando__fail(
		ENOMEM, "region \"%.63s\" is full: its %llu bytes have no %llu free bytes in a row",
		v->ledger->name, (unsigned long long)pando__load_relaxed(&v->ledger->committed),
		(unsigned long long)count * PANDO__SPAN);
}

int64_t pando__span_take(struct pando__front *f, uint32_t count, uint64_t alignment)
{
	struct search q = {.count = count, .alignment = alignment};
	int64_t at;
	int rc = charge(f, count);

	if (rc < 0)
		return rc;
	for (unsigned int i = 0;; i++) {
		q.node = own_node();
		q.beaten = q.passed = false;
		at = search_all(f, &q);
		if (at == -ENOENT && q.node) {
			q.node = 0;
			at = search_all(f, &q);
		}
		if (at != -ENOENT || !q.beaten || i + 1 == TRIES)
			break;
	}
	if (at < 0) {
		discharge(f, count);
		return at == -ENOENT ? full(&f->view, count) : at;
	}
	/* Unless somebody has just let go of one further down. */
	if (count == 1 && !q.passed)
		(void)pando__cas_acq_rel(&f->view.heap->search.value, &q.hint,
					 ((uint64_t)at + 1) * PANDO__SPAN);
	return at;
}

int pando__span_take_at(struct pando__front *f, uint32_t index)
{
	int rc;

	if (index >= pando__spans_end(&f->view) ||
	    !takeable(pando__load_relaxed(&f->view.spans[index].word)))
		return 0;
	rc = charge(f, 1);
	if (rc < 0)
		return rc;
	rc = take(f, index, own_node());
	if (rc <= 0)
		discharge(f, 1);
	return rc;
}

void pando__span_give(struct pando__front *f, uint32_t index)
{
	uint64_t word = pando__load_relaxed(&f->view.spans[index].word);

	discharge(f, 1);
	if (PANDO__SPAN_STATE(word) == PANDO__SPAN_OWNED && PANDO__SPAN_OWNER(word) == f->me)
		(void)pando__span_release(&f->view, index, word);
}

bool pando__span_leave(struct pando__front *f, uint32_t index)
{
	struct pando__span *s = &f->view.spans[index];
	const uint64_t word = pando__load_relaxed(&s->word);
	uint16_t lent = PANDO__LENT_BUSY;

	/* Pairs with the broker, who releases it then: words and page table were cleared before. */
	if (!pando__cas_acq_rel(&s->lent, &lent, PANDO__LEFT(PANDO__SPAN_COUNT(word))))
		return false;
	PANDO_INJECT("heap.span.leaving");
	discharge(f, 1);
	return true;
}
