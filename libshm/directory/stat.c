/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Numbers of the directory, and the check of every invariant:
 *
 *	the list of a shard is sorted: by key, entries of one key by length and name
 *	buckets 0 to `buckets` are in it, at their places; at most one more
 *	`count` == entries in it; each entry's hash is that of its name, and belongs to the shard
 *	entries, objects and tables are the directory's, and begin where an object of the heap begins
 *	no version is higher than the shard's; there is no intent
 */
#include "directory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <pando/heap.h>

#include "allocator/front.h"
#include "common/fail.h"

int pando_directory_stat_sized(struct pando_region *r, struct pando_directory_stat *out,
			       size_t size)
{
	const struct pando__directory_gate *g = pando__directory_gate(r);
	struct pando_directory_stat st = {0};
	struct pando__rcu_place place;
	struct timespec ts;
	uint64_t now;
	int rc = pando__region_rcu_place(r, &place, false);

	if (rc < 0)
		return rc;
	for (unsigned int i = 0; pando__directory_there(g) && i < PANDO__SHARDS; i++) {
		const struct pando__shard *s = &g->directory->shard[i];

		st.names += pando__load_relaxed(&s->count);
		st.published += pando__load_relaxed(&s->version);
		st.withdrawn += pando__load_relaxed(&s->unlinked);
		st.buckets += pando__load_relaxed(&s->buckets) + 1;
		st.locked += pando__load_relaxed(&s->lock) != 0;
		for (unsigned int t = 0; t < PANDO__TABLES; t++)
			if (pando__load_relaxed(&s->tables[t])) {
				st.tables++;
				st.table_bytes += pando__table_size(t) * sizeof(struct pando__node);
			}
	}
	clock_gettime(CLOCK_BOOTTIME, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
	st.slow_count = pando__load_acquire(&place.ledger->directory_slow_count);
	for (unsigned int i = 0; i < PANDO__STALLED && i < st.slow_count; i++) {
		const struct pando__slow *slow = &place.ledger->directory_slow[i];
		const uint64_t since = pando__load_relaxed(&slow->since_ns);

		st.slow[i].ns = now > since ? now - since : 0;
		st.slow[i].pid = pando__load_relaxed(&slow->pid);
		st.slow[i].shard = pando__load_relaxed(&slow->shard);
	}
	memset(out, 0, size);
	memcpy(out, &st, size < sizeof(st) ? size : sizeof(st));
	return 0;
}

/* --- the check --- */

struct check {
	struct pando_region *r;
	const struct pando__directory_gate *g;
	const struct pando__view *v;
	struct pando__shard *shard;
	unsigned int number;
	uint64_t entries, buckets;
	const struct pando__entry *last; /* entry behind the last bucket, or NULL */
	uint64_t last_key;
};

static int wrong(const struct check *c, uint64_t offset, const char *what, uint64_t value)
{
	return pando__fail(EUCLEAN,
			   "directory of region \"%.63s\", shard %u, offset 0x%" PRIx64
			   ": %s (0x%" PRIx64 ")",
			   c->v->ledger->name, c->number, offset, what, value);
}

/* True if an object that is the directory's, of `size` bytes at least, begins there. */
static bool is_ours(const struct check *c, uint64_t offset, uint64_t size)
{
	const char *p = c->g->base + offset;

	return offset >= c->v->first && offset < c->v->end &&
	       pando_owner(c->r, p, NULL) == PANDO_HOLDING_PUBLISHED &&
	       pando_usable_size(c->r, p) >= size;
}

static int check_bucket(struct check *c, uint64_t offset, const struct pando__node *node)
{
	const uint64_t bucket = pando__reversed(node->key);
	uint64_t where;
	uint32_t index;
	unsigned int table;

	if (bucket == 0 || bucket > c->shard->buckets + 1ull || bucket >= PANDO__BUCKETS_MAX)
		return wrong(c, offset, "a bucket that there is not", bucket);
	table = pando__table_of((uint32_t)bucket, &index);
	if (c->shard->tables[table] == 0)
		return wrong(c, offset, "a bucket without a table", bucket);
	(void)pando__bucket(c->g, c->shard, (uint32_t)bucket, &where);
	if (where != offset)
		return wrong(c, offset, "a bucket in another one's place", bucket);
	if (node->key <= c->last_key)
		return wrong(c, offset, "a bucket out of order", bucket);
	c->buckets += bucket <= c->shard->buckets;
	c->last = NULL;
	return 0;
}

static int check_entry(struct check *c, uint64_t offset, const struct pando__entry *e)
{
	const uint64_t now = e->current & 1;
	uint64_t hash;

	if (!is_ours(c, offset, offsetof(struct pando__entry, name) + 2))
		return wrong(c, offset, "no entry begins there", offset);
	if (e->length == 0 || e->length > PANDO_NAME_MAX || strnlen(e->name, 256) != e->length)
		return wrong(c, offset, "a name of another length", e->length);
	hash = pando__hash(c->g->seed, e->name, e->length);
	if (pando__entry_key(hash) != e->node.key || pando__shard_of(hash) != c->number)
		return wrong(c, offset, "a name with another one's key", e->node.key);
	if (e->node.key < c->last_key ||
	    (c->last && pando__entry_order(c->last, e->node.key, e->name, e->length) >= 0))
		return wrong(c, offset, "an entry out of order", e->node.key);
	if (e->current >> 1 == 0 || e->current >> 1 > c->shard->version)
		return wrong(c, offset, "a version that there was not", e->current >> 1);
	if (!is_ours(c, e->object[now], e->size[now]))
		return wrong(c, offset, "no published object begins at", e->object[now]);
	c->entries++;
	c->last = e;
	return 0;
}

static int check_list(struct check *c)
{
	const uint64_t most = c->shard->count + c->shard->buckets + 2;
	uint64_t at = c->shard->first.next, steps = 0;
	int rc = 0;

	while (at && rc == 0) {
		const struct pando__node *node = pando__node_at(c->g, at);

		if (at < c->v->first || at >= c->v->end || at % sizeof(*node))
			return wrong(c, at, "no node can be there", at);
		if (++steps > most)
			return wrong(c, at, "a list that is too long", steps);
		if (node->key & 1)
			rc = check_entry(c, at, (const void *)node);
		else
			rc = check_bucket(c, at, node);
		c->last_key = node->key;
		at = node->next;
	}
	return rc;
}

static int check_shard(struct check *c)
{
	const struct pando__shard *s = c->shard;
	int rc;

	if (s->intent.kind)
		return wrong(c, 0, "an intent that nobody has", s->intent.kind);
	if (s->first.key)
		return wrong(c, 0, "the first bucket has a key", s->first.key);
	for (unsigned int t = 0; t < PANDO__TABLES; t++)
		if (s->tables[t] &&
		    !is_ours(c, s->tables[t], pando__table_size(t) * sizeof(struct pando__node)))
			return wrong(c, s->tables[t], "no table begins there", t);
	rc = check_list(c);
	if (rc < 0)
		return rc;
	if (c->entries != s->count)
		return wrong(c, 0, "there are not as many names as it says", s->count);
	if (c->buckets != s->buckets)
		return wrong(c, 0, "not all buckets are in the list", c->buckets);
	return 0;
}

int pando_directory_check(struct pando_region *r)
{
	struct pando__front *f = pando__region_front(r);
	struct check c = {.r = r, .g = pando__directory_gate(r)};
	int rc = 0;

	if (!f)
		return -errno;
	c.v = &f->view;
	for (; pando__directory_there(c.g) && c.number < PANDO__SHARDS && rc == 0; c.number++) {
		c.shard = &c.g->directory->shard[c.number];
		c.entries = c.buckets = c.last_key = 0;
		c.last = NULL;
		pando__shard_lock(c.shard, (uint64_t)(f->slot + 1) | f->generation << 32);
		rc = check_shard(&c);
		pando__shard_unlock(c.shard);
	}
	return rc;
}
