/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Waiting until a name changes.
 *
 * Who waits says so (`watched`, see lock.c), notes `changes` of the name's shard, looks at the name, and
 * sleeps on `changes` (or, before there is any name, on the word that says so). So all that is slept on lies in pages that stay, whatever becomes of the name. Names
 * of one shard wake each other's watchers, who look and sleep again.
 *
 * A watcher wakes up once a second in any case: for a writer that was killed between its change and
 * telling of it, while there was no broker.
 */
#include "directory.h"

#include <errno.h>
#include <time.h>

#include "common/fail.h"
#include "common/futex.h"
#include "common/inject.h"

#define NS 1000000000ull

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec;
}

/* The name's version, 0: there is none; or a negative errno. */
static int version_of(struct pando_region *r, const char *name, uint64_t *version)
{
	struct pando_descriptor d = {0};
	int rc = pando_read_lock(r);

	if (rc < 0)
		return rc;
	rc = pando_lookup_descriptor(r, name, &d);
	(void)pando_read_unlock(r);
	*version = d.version;
	return rc == -ENOENT ? 0 : rc;
}

static int withdrawn(const char *name)
{
	return pando__fail(ENOENT, "\"%.80s\" has been withdrawn", name);
}

int pando_watch(struct pando_region *r, const char *name, uint64_t *version, int timeout_ms)
{
	const uint64_t end = now_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;
	const struct pando__directory_gate *g = pando__directory_gate(r);
	struct pando__rcu_place place;
	struct pando__shard *shard;
	struct pando__sought s;
	uint32_t *watched;
	int rc = pando__seek(g, name, &s);

	if (rc == 0 && pando__read_depth(r) > 0)
		rc = pando__fail(EDEADLK, "this thread would hold up others in its read section");
	if (rc == 0)
		rc = pando__region_rcu_place(r, &place, false);
	if (rc < 0)
		return rc;
	shard = &g->directory->shard[pando__shard_of(s.hash)];
	watched = &pando__rcu_view(place.ledger, place.slots).rcu->watched[pando__shard_of(s.hash)];
	for (;;) {
		struct timespec nap = {.tv_sec = 1};
		const uint32_t *word = pando__directory_there(g) ? &shard->changes : g->there;
		uint64_t is, now;
		uint32_t seen;

		/* Partner: pando__shard_announce(). */
		if (pando__load_seq_cst(watched) != 1)
			pando__store_seq_cst(watched, 1);
		seen = word == g->there ? 0 : pando__load_seq_cst(word);
		rc = version_of(r, name, &is);
		if (rc < 0)
			return rc;
		if (is != *version) {
			*version = is;
			return is ? 0 : withdrawn(name);
		}
		now = timeout_ms < 0 ? 0 : now_ns();
		if (timeout_ms >= 0 && now >= end)
			return pando__fail(ETIMEDOUT, "\"%.80s\" has not changed within %d ms",
					   name, timeout_ms);
		if (timeout_ms >= 0 && end - now < NS)
			nap = (struct timespec){.tv_nsec = (long)(end - now)};
		PANDO_INJECT("directory.watch.sleep");
		(void)pando__futex_wait(word, seen, &nap);
	}
}
