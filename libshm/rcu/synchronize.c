/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Waiting for a grace period; what `pando stat` shows; the read functions for other languages.
 *
 * Who waits looks once, asks to be woken, executes a barrier, looks again from where it was, and
 * sleeps (grace.c says why nobody sleeps too long). It wakes up once a second all the same, for the
 * one case in which nobody would wake it: a reader that was killed while no broker was there to
 * notice. Any number of waiters in any number of processes share one word.
 */
#include "reader.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/fail.h"
#include "common/futex.h"
#include "common/inject.h"

#define NS 1000000000ull
#define NAP_NS NS

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec;
}

static int too_late(const struct pando__rcu_view *v, const struct pando__grace_scan *s,
		    int timeout_ms)
{
	const struct pando__ledger_client *client = pando__reader_client(v, &s->at);
	const char *page = v->slots + (s->at.behind ? PANDO__READERS_OFFSET : 0) +
			   (size_t)s->at.page * PANDO__SLOT_SIZE;
	const struct pando__reader *of =
		s->at.behind ? (const void *)page
			     : ((const struct pando__slot *)(const void *)page)->readers;

	return pando__fail(
		ETIMEDOUT,
		"a reader of region \"%.63s\" has not ended its section within %d ms: pid %d, "
		"thread %u",
		v->ledger->name, timeout_ms, client ? client->pid : 0,
		pando__load_relaxed(&of[s->at.index].tid));
}

/*
 * Asks to be woken when a reader ends a section that began before `target`. Returns what the word says
 * then: the highest of those that are asked for.
 */
static uint64_t ask(struct pando__rcu *rcu, uint64_t target)
{
	uint64_t seen = pando__load_acquire(&rcu->waiting);

	while (seen < target && !pando__cas_seq_cst(&rcu->waiting, &seen, target))
		;
	return seen < target ? target : seen;
}

int pando__synchronize(const struct pando__rcu_view *v, int timeout_ms)
{
	const uint64_t begun = now_ns(CLOCK_MONOTONIC);
	const uint64_t end = begun + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;
	struct pando__grace_scan scan = {0};
	int rc = pando__grace_begin(v, &scan.target);

	if (rc < 0)
		return rc;
	while (!pando__grace_over(v, &scan)) {
		const uint64_t now = now_ns(CLOCK_MONOTONIC);
		struct timespec nap = {.tv_sec = NAP_NS / NS};
		uint64_t asked;

		if (timeout_ms >= 0 && now >= end)
			return too_late(v, &scan, timeout_ms);
		if (timeout_ms >= 0 && end - now < NAP_NS)
			nap = (struct timespec){.tv_nsec = (long)(end - now)};
		asked = ask(v->rcu, scan.target);
		PANDO_INJECT("rcu.synchronize.asked");
		rc = pando__membarrier(v);
		if (rc < 0)
			return rc;
		if (pando__grace_over(v, &scan))
			break;
		PANDO_INJECT("rcu.synchronize.sleep");
		(void)pando__futex_wait((const uint32_t *)(const void *)&v->rcu->waiting,
					(uint32_t)asked, &nap);
	}
	PANDO_INJECT("rcu.synchronize.over");
	pando__grace_done(v, scan.target);
	return 0;
}

int pando_synchronize(struct pando_region *r, int timeout_ms)
{
	struct pando__rcu_place place;
	struct pando__rcu_view v;
	int rc;

	if (pando__read_depth(r) > 0)
		return pando__fail(EDEADLK, "this thread would wait for its own read section");
	rc = pando__region_rcu_place(r, &place, false);
	if (rc < 0)
		return rc;
	v = pando__rcu_view(place.ledger, place.slots);
	rc = pando__synchronize(&v, timeout_ms);
	if (rc == 0 && !place.readonly)
		(void)pando_reclaim(r);
	return rc;
}

static void stat_stalled(const struct pando__ledger *l, struct pando_rcu_stat *st)
{
	const uint64_t now = now_ns(CLOCK_BOOTTIME);

	st->stalled_count = pando__load_acquire(&l->rcu_stalled_count);
	for (unsigned int i = 0; i < PANDO__STALLED && i < st->stalled_count; i++) {
		const uint64_t since = pando__load_relaxed(&l->rcu_stalled[i].since_ns);

		st->stalled[i].ns = now > since ? now - since : 0;
		st->stalled[i].pid = pando__load_relaxed(&l->rcu_stalled[i].pid);
		st->stalled[i].tid = pando__load_relaxed(&l->rcu_stalled[i].tid);
	}
}

int pando_rcu_stat_sized(struct pando_region *r, struct pando_rcu_stat *out, size_t size)
{
	struct pando_rcu_stat st = {0};
	struct pando__rcu_count count;
	struct pando__rcu_place place;
	struct pando__rcu_view v;
	int rc = pando__region_rcu_place(r, &place, false);

	if (rc < 0)
		return rc;
	v = pando__rcu_view(place.ledger, place.slots);
	pando__rcu_count(&v, &count);
	st.region_mode = v.ledger->rcu_mode;
	st.mode = pando__membarrier_register() ? st.region_mode : PANDO_RCU_FENCED;
	st.readers = count.readers;
	st.reading = count.reading;
	st.grace_periods = pando__load_relaxed(&v.rcu->grace) / PANDO__GRACE_STEP - 1;
	st.retired = count.retired;
	st.retired_bytes = count.retired_bytes;
	st.retired_limit = pando__retired_limit(&v);
	if (place.slot < PANDO__MAX_CLIENTS) {
		const struct pando__slot *own =
			(const void *)(place.slots + (size_t)place.slot * PANDO__SLOT_SIZE);

		st.own_retired = pando__load_relaxed(&own->retired);
		st.own_retired_bytes = pando__load_relaxed(&own->retired_bytes);
	}
	stat_stalled(v.ledger, &st);
	memset(out, 0, size);
	memcpy(out, &st, size < sizeof(st) ? size : sizeof(st));
	return 0;
}
