/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Retired objects: freed when no reader can have them any more.
 *
 * What is retired becomes this client's (held by it, see allocator/layout.h) and goes to a list of
 * the process, with the grace counter as it was then; it is freed when a grace period is over that
 * began after that. The list is private and dies with the process. What is on it does not: it is held
 * by the client, and its slot page says how many there are; the broker sees that, waits for a grace
 * period, and frees all that the client held. So no step needs an intent:
 *
 *	counted in the slot page	killed here: the broker waits once for nothing
 *	held (one CAS)			killed here: the broker frees it, after a grace period
 *	on the list			the same
 *	freed, counted out		the broker waits once for nothing
 *
 * The object must be unreachable before it is retired. Who is killed between making it so and retiring
 * it leaves an object of the region that nobody refers to: a structure whose writers may be killed
 * makes that good by an intent of its own.
 *
 * Grace periods are begun and looked after in passing: each call may find that the one under way is
 * over, and begin another one; it waits for none. Calls that come fast share them: at most one in
 * RUSH_NS or RUSH_COUNT calls tries. A process that has become idle keeps what its last call could
 * not free; pando_reclaim() is for that.
 *
 * The limit. The sum of the bytes is a hint, since who is killed may have counted in one place and
 * not in the other; who meets the limit counts anew, from all slot pages. Beyond the limit a call
 * waits until what this process has retired before is free. It waits for nobody else's objects: a
 * process that has none waiting may always retire one.
 */
#include "reader.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <pando/heap.h>

#include "common/fail.h"
#include "common/inject.h"

#define RUSH_NS 1000000u
#define RUSH_COUNT 32u
#define ROOM_MIN 64u

struct entry {
	void *p;
	uint64_t after; /* the grace counter when it had become unreachable */
	uint64_t bytes;
};

/* All under the seat's retire_lock. */
struct pando__retired {
	struct entry *ring; /* in the order in which they came */
	void **known; /* the same objects, hashed; 2 * room places */
	uint32_t room; /* a power of two */
	uint32_t first, count;
	uint32_t promised; /* places that are kept for pando__retire_list() */
	struct pando__grace_scan scan; /* the grace period under way, if `pending` */
	bool pending;
	uint32_t calls; /* since the last try */
	uint64_t tried_ns;
};

void pando__retired_free(struct pando__retired *l)
{
	free(l->ring);
	free(l->known);
	free(l);
}

/* --- which objects are on the list --- */

static uint32_t hash(const void *p, uint32_t room)
{
	return (uint32_t)(((uint64_t)(uintptr_t)p >> 5) * 0x9e3779b97f4a7c15ull >> 32) &
	       (2 * room - 1);
}

/* Where p is, or the free place where it would be. */
static uint32_t known_at(const struct pando__retired *l, const void *p)
{
	uint32_t i = hash(p, l->room);

	while (l->known[i] && l->known[i] != p)
		i = (i + 1) & (2 * l->room - 1);
	return i;
}

/* Takes p out; those behind it that would not be found any more move up. */
static void forget(struct pando__retired *l, const void *p)
{
	const uint32_t mask = 2 * l->room - 1;
	uint32_t hole = known_at(l, p);

	for (uint32_t i = (hole + 1) & mask; l->known[i]; i = (i + 1) & mask) {
		const uint32_t home = hash(l->known[i], l->room);

		if (((i - home) & mask) >= ((i - hole) & mask)) {
			l->known[hole] = l->known[i];
			hole = i;
		}
	}
	l->known[hole] = NULL;
}

static int grow(struct pando__retired *l)
{
	const uint32_t room = l->room ? 2 * l->room : ROOM_MIN;
	struct entry *ring = malloc(room * sizeof(*ring));
	void **known = calloc(2 * (size_t)room, sizeof(*known));

	if (!ring || !known) {
		free(ring);
		free(known);
		return pando__fail(ENOMEM, "no memory for a list of %u retired objects", room);
	}
	for (uint32_t i = 0; i < l->count; i++)
		ring[i] = l->ring[(l->first + i) & (l->room - 1)];
	free(l->ring);
	free(l->known);
	l->ring = ring;
	l->known = known;
	l->room = room;
	l->first = 0;
	for (uint32_t i = 0; i < l->count; i++)
		known[known_at(l, ring[i].p)] = ring[i].p;
	return 0;
}

/* --- counting --- */

static void count_bytes(struct pando__seat *s, uint64_t bytes)
{
	pando__store_relaxed(&s->page->retired_bytes, s->page->retired_bytes + bytes);
	pando__add_relaxed(&s->view.rcu->retired_bytes, bytes);
}

/* Before the objects' words change; partner: the broker, which reads it after a death. */
static void count_objects(struct pando__seat *s, uint32_t n)
{
	pando__store_release(&s->page->retired, s->page->retired + n);
	PANDO_INJECT("rcu.retire.counted");
}

static void count_in(struct pando__seat *s, uint64_t bytes)
{
	count_bytes(s, bytes);
	count_objects(s, 1);
}

static void count_out(struct pando__seat *s, uint64_t bytes)
{
	struct pando__slot *page = s->page;

	pando__add_relaxed(&s->view.rcu->retired_bytes, -bytes);
	pando__store_relaxed(&page->retired_bytes, page->retired_bytes - bytes);
	pando__store_release(&page->retired, page->retired - 1);
}

/* --- freeing --- */

static void free_done(struct pando_region *r, struct pando__seat *s)
{
	struct pando__retired *l = s->retired;
	/* `done` is a target: it is over for all who have read a smaller value. */
	const uint64_t done = pando__load_acquire(&s->view.rcu->done);

	while (l->count > 0 && l->ring[l->first].after < done) {
		const struct entry e = l->ring[l->first];

		l->first = (l->first + 1) & (l->room - 1);
		l->count--;
		forget(l, e.p);
		PANDO_INJECT("rcu.reclaim.free");
		pando_free(r, e.p);
		PANDO_INJECT("rcu.reclaim.freed");
		count_out(s, e.bytes);
	}
}

/* True if the grace period under way is over, or none is. */
static bool look(struct pando__seat *s)
{
	struct pando__retired *l = s->retired;

	if (l->pending && pando__grace_over(&s->view, &l->scan)) {
		pando__grace_done(&s->view, l->scan.target);
		l->pending = false;
	}
	return !l->pending;
}

/* Frees what can be freed, and begins what is needed for the rest. Lock held. */
static int reclaim(struct pando_region *r, struct pando__seat *s)
{
	struct pando__retired *l = s->retired;
	int rc = 0;

	(void)look(s);
	free_done(r, s);
	if (l->count == 0 || l->pending)
		return 0;
	memset(&l->scan, 0, sizeof(l->scan));
	rc = pando__grace_begin(&s->view, &l->scan.target);
	if (rc < 0)
		return rc;
	l->pending = true;
	if (look(s))
		free_done(r, s);
	return 0;
}

static bool rushed(struct pando__retired *l)
{
	struct timespec ts;
	uint64_t now;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
	if (++l->calls < RUSH_COUNT && now - l->tried_ns < RUSH_NS)
		return true;
	l->calls = 0;
	l->tried_ns = now;
	return false;
}

int pando_reclaim(struct pando_region *r)
{
	struct pando__seat *s = pando__load_acquire(&pando__rcu_gate(r)->seat);
	int rc = 0;

	if (!s)
		return 0; /* it never retired anything */
	s = pando__rcu_seat(r, &rc);
	if (!s)
		return rc;
	pthread_mutex_lock(&s->retire_lock);
	if (s->retired) {
		rc = reclaim(r, s);
		if (rc == 0)
			rc = (int)(s->retired->count < INT32_MAX ? s->retired->count : INT32_MAX);
	}
	pthread_mutex_unlock(&s->retire_lock);
	return rc;
}

/* --- the limit --- */

/* True if so many more may wait; counts anew if it seems that they may not. */
static bool fits(struct pando__seat *s, uint64_t bytes)
{
	const uint64_t limit = pando__retired_limit(&s->view);
	const uint64_t hint = pando__load_relaxed(&s->view.rcu->retired_bytes);
	struct pando__rcu_count count;

	if (hint <= limit && bytes <= limit - hint)
		return true;
	pando__rcu_count(&s->view, &count);
	pando__store_relaxed(&s->view.rcu->retired_bytes, count.retired_bytes);
	return count.retired_bytes <= limit && bytes <= limit - count.retired_bytes;
}

int pando__retire_room(struct pando_region *r, struct pando__seat *s, uint64_t bytes, bool nowait)
{
	while (!fits(s, bytes)) {
		int rc = pando_reclaim(r);

		if (rc <= 0 || fits(s, bytes))
			return rc < 0 ? rc : 0;
		if (nowait)
			return pando__fail(
				EAGAIN,
				"%" PRIu64
				" bytes of region \"%.63s\" wait for readers, more may not; see "
				"pando stat",
				pando__load_relaxed(&s->view.rcu->retired_bytes),
				s->view.ledger->name);
		rc = pando__synchronize(&s->view, -1);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* --- retiring --- */

/* Room on the list for n more. Lock held. */
static int prepare(struct pando__seat *s, uint32_t n)
{
	int rc = 0;

	if (!s->retired) {
		rc = pando__membarrier(&s->view); /* may this process be a writer at all? */
		if (rc < 0)
			return rc;
		s->retired = calloc(1, sizeof(*s->retired));
		if (!s->retired)
			return pando__fail(ENOMEM, "no memory for a list of retired objects");
	}
	while (rc == 0 && s->retired->count + s->retired->promised + n > s->retired->room)
		rc = grow(s->retired);
	return rc;
}

/* Puts p, which is this client's now, on the list. Lock held. */
static void enter(struct pando__seat *s, void *p, uint64_t bytes)
{
	struct pando__retired *l = s->retired;

	/* A full barrier stands between the caller's unlinking and this: the CAS of p's word. */
	l->ring[(l->first + l->count) & (l->room - 1)] =
		(struct entry){p, pando__load_seq_cst(&s->view.rcu->grace), bytes};
	l->known[known_at(l, p)] = p;
	l->count++;
	PANDO_INJECT("rcu.retire.listed");
}

static int take(struct pando_region *r, struct pando__seat *s, void *p, uint64_t bytes,
		pando_holder self)
{
	int rc = prepare(s, 1);

	if (rc == 0 && s->retired->known[known_at(s->retired, p)])
		rc = pando__fail(EALREADY, "%p of region \"%.63s\" has been retired already", p,
				 s->view.ledger->name);
	if (rc < 0)
		return rc;
	count_in(s, bytes);
	rc = pando_transfer(r, p, self);
	PANDO_INJECT("rcu.retire.held");
	if (rc < 0)
		count_out(s, bytes);
	else
		enter(s, p, bytes);
	return rc;
}

int pando_retire(struct pando_region *r, void *p, unsigned int flags)
{
	struct pando__seat *s;
	pando_holder self;
	uint64_t bytes;
	int rc = 0;

	if (flags & ~PANDO_NOWAIT)
		return pando__fail(EINVAL, "pando_retire: flags 0x%x has bits that mean nothing",
				   flags);
	self = pando_self(r);
	if (!self)
		return -errno;
	s = pando__rcu_seat(r, &rc);
	if (!s)
		return rc;
	bytes = pando_usable_size(r, p);
	if (bytes == 0)
		return pando__fail(EINVAL,
				   "retiring %p of region \"%.63s\": no object begins there", p,
				   s->view.ledger->name);
	rc = pando__retire_room(r, s, bytes, (flags & PANDO_NOWAIT) || pando__read_depth(r) > 0);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&s->retire_lock);
	rc = take(r, s, p, bytes, self);
	if (rc == 0 && !rushed(s->retired))
		(void)reclaim(r, s); /* it is on the list: what fails now is tried again */
	pthread_mutex_unlock(&s->retire_lock);
	return rc;
}

/* --- on behalf of a structure whose writers may be killed --- */

int pando__retire_prepare(struct pando_region *r, uint32_t n, struct pando__seat **seat)
{
	struct pando__seat *s;
	int rc = 0;

	s = pando__rcu_seat(r, &rc);
	if (!s)
		return rc;
	pthread_mutex_lock(&s->retire_lock);
	rc = prepare(s, n);
	if (rc == 0) {
		s->retired->promised += n;
		count_objects(s, n);
	}
	pthread_mutex_unlock(&s->retire_lock);
	*seat = s;
	return rc;
}

bool pando__retire_fits(struct pando__seat *s, uint64_t bytes)
{
	return fits(s, bytes);
}

void pando__retire_list(struct pando_region *r, struct pando__seat *s, void *const *objects,
			const uint64_t *bytes, uint32_t n, uint32_t promised)
{
	pthread_mutex_lock(&s->retire_lock);
	s->retired->promised -= promised;
	for (uint32_t i = 0; i < n; i++) {
		count_bytes(s, bytes[i]);
		enter(s, objects[i], bytes[i]);
	}
	pando__store_release(&s->page->retired, s->page->retired - (promised - n));
	if (n > 0 && !rushed(s->retired))
		(void)reclaim(r, s); /* as in pando_retire() */
	pthread_mutex_unlock(&s->retire_lock);
}

int pando_retire_limit(struct pando_region *r, uint64_t bytes)
{
	struct pando__rcu_place place;
	int rc = pando__region_rcu_place(r, &place, false);

	if (rc < 0)
		return rc;
	if (place.readonly)
		return pando__fail(EACCES, "region \"%.63s\" is open read-only",
				   place.ledger->name);
	pando__store_relaxed(&pando__rcu_view(place.ledger, place.slots).rcu->retired_limit, bytes);
	return 0;
}
