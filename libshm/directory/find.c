/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Looking up: what readers do, and why they need no lock.
 *
 * In a read section: the hash of the name says the shard and the bucket, the bucket is a node of the
 * shard's list, and from there the list is walked until the key, or one beyond it, is met. Every step is
 * one load (acquire) of an offset that a writer has stored (release) when all behind it was whole.
 *
 *	A node that is taken out keeps its `next`, and is freed after a grace period: who is at it
 *	goes on from there. Nodes behind it may be new or have gone; those that are there all the time
 *	are met, since the list is sorted and nothing moves.
 *	`buckets` is loaded once. If it is an old value, the walk begins at the parent of the
 *	bucket that a new one would give, which is further in front: right, and a little longer.
 *	`buckets` (release) is stored after table and node; so whoever sees it finds both.
 *	A writer that was killed anywhere leaves a list that is whole: it changes by one store.
 *
 * Version and object of an entry change by one store (layout.h); who reads them looks at the version
 * again afterwards. It has to try again only if somebody has replaced the object meanwhile.
 *
 * Iterating: keys and, where they are equal, names are an order of all entries in which nothing moves. The
 * cursor is the last name; the next one is found from its place on, whether it is still there or not.
 *
 * The hash is a multiplication of 128 bits for 8 bytes, with a seed of the region's that nobody outside
 * knows: whoever chooses names cannot choose their buckets.
 */
#include "directory.h"

#include <errno.h>
#include <string.h>

#include "common/fail.h"

#define K0 0x9e3779b97f4a7c15ull
#define K1 0xd6e8feb86659fd93ull
#define K2 0xa0761d6478bd642full

static inline uint64_t mix(uint64_t a, uint64_t b)
{
	const unsigned __int128 x = (unsigned __int128)a * b;

	return (uint64_t)x ^ (uint64_t)(x >> 64);
}

uint64_t pando__hash(uint64_t seed, const char *name, size_t length)
{
	uint64_t h = seed ^ length * K0, w;

	for (; length > 8; length -= 8, name += 8) {
		memcpy(&w, name, 8);
		h = mix(h ^ w, K1);
	}
	w = 0;
	memcpy(&w, name, length);
	return mix(mix(h ^ w, K2) ^ seed, K1);
}

int pando__seek(const struct pando__directory_gate *g, const char *name, struct pando__sought *s)
{
	s->name = name;
	s->length = (uint32_t)strnlen(name, PANDO_NAME_MAX + 1);
	if (s->length == 0 || s->length > PANDO_NAME_MAX)
		return pando__fail(EINVAL, "\"%.40s%s\" is not a name: 1 to %d bytes", name,
				   s->length ? "..." : "", PANDO_NAME_MAX);
	s->hash = pando__hash(g->seed, name, s->length);
	s->key = pando__entry_key(s->hash);
	return 0;
}

struct pando__node *pando__bucket(const struct pando__directory_gate *g, struct pando__shard *shard,
				  uint32_t bucket, uint64_t *offset)
{
	uint32_t index;
	unsigned int table;

	*offset = 0;
	if (bucket == 0)
		return &shard->first;
	table = pando__table_of(bucket, &index);
	*offset = pando__load_acquire(&shard->tables[table]) + index * sizeof(struct pando__node);
	return pando__node_at(g, *offset);
}

/* The bucket in which a hash is, among `count` of them. */
static inline uint32_t bucket_of(uint64_t hash, uint32_t count)
{
	const uint32_t mask = count == 1 ? 0 : ~0u >> __builtin_clz(count - 1);
	const uint32_t bucket = (uint32_t)hash & mask;

	return bucket < count ? bucket : bucket & (mask >> 1);
}

int pando__entry_order(const struct pando__entry *e, uint64_t key, const char *name,
		       uint32_t length)
{
	if (e->node.key != key)
		return e->node.key < key ? -1 : 1;
	if (e->length != length)
		return e->length < length ? -1 : 1;
	return memcmp(e->name, name, length);
}

void pando__find(const struct pando__directory_gate *g, struct pando__shard *shard,
		 const struct pando__sought *s, struct pando__place *place)
{
	const uint32_t buckets = pando__load_acquire(&shard->buckets) + 1;
	int order = 1;

	place->before = pando__bucket(g, shard, bucket_of(s->hash, buckets), &place->where);
	place->entry = NULL;
	for (;;) {
		struct pando__node *node;

		place->at = pando__load_acquire(&place->before->next);
		if (place->at == 0)
			return;
		node = pando__node_at(g, place->at);
		if (node->key >= s->key) {
			/* The same key: it is an entry, since that of a bucket is even. */
			if (node->key > s->key)
				return;
			place->entry = (struct pando__entry *)(void *)node;
			order = pando__entry_order(place->entry, s->key, s->name, s->length);
			if (order == 0)
				return;
			place->entry = NULL;
			if (order > 0)
				return;
		}
		place->before = node;
		place->where = place->at;
	}
}

void pando__read_entry(const struct pando__directory_gate *g, const struct pando__entry *e,
		       struct pando_descriptor *d)
{
	uint64_t current = pando__load_acquire(&e->current), seen, object;

	do {
		seen = current;
		object = pando__load_acquire(&e->object[seen & 1]);
		d->size = pando__load_acquire(&e->size[seen & 1]);
		current = pando__load_acquire(&e->current);
	} while (current != seen);
	d->object = g->base + object;
	d->version = current >> 1;
}

/* True if the calling thread is in a read section of r. */
static inline bool reading(struct pando_region *r)
{
	const struct pando__read_gate *gate = pando__load_acquire(&pando__rcu_gate(r)->reading);
	const struct pando__reading *me = pando__my_reading();

	if (__builtin_expect(me->serial == gate->serial, 1))
		return (pando__load_relaxed(me->section) & PANDO__SECTION_DEPTH) != 0;
	return pando__read_depth(r) > 0;
}

static int not_reading(void)
{
	return pando__fail(EPERM, "looking up a name is done in a read section: pando_read_lock()");
}

static struct pando__entry *find_entry(const struct pando__directory_gate *g,
				       const struct pando__sought *s)
{
	struct pando__place place;

	if (!pando__directory_there(g))
		return NULL;
	pando__find(g, &g->directory->shard[pando__shard_of(s->hash)], s, &place);
	return place.entry;
}

int pando_lookup_descriptor(struct pando_region *r, const char *name, struct pando_descriptor *d)
{
	const struct pando__directory_gate *g = pando__directory_gate(r);
	struct pando__sought s;
	struct pando__entry *e;
	int rc = pando__seek(g, name, &s);

	if (rc < 0)
		return rc;
	if (!reading(r))
		return not_reading();
	e = find_entry(g, &s);
	if (!e)
		return -ENOENT;
	pando__read_entry(g, e, d);
	return 0;
}

void *pando_lookup(struct pando_region *r, const char *name)
{
	struct pando_descriptor d;
	const int rc = pando_lookup_descriptor(r, name, &d);

	if (rc == 0)
		return d.object;
	errno = -rc;
	return NULL;
}

/* --- handles --- */

int pando_handle_init(struct pando_region *r, struct pando_handle *h, const char *name)
{
	const struct pando__directory_gate *g = pando__directory_gate(r);
	struct pando__sought s;
	int rc = pando__seek(g, name, &s);

	if (rc < 0)
		return rc;
	memset(h, 0, sizeof(*h));
	h->unlinked = &g->directory->shard[pando__shard_of(s.hash)].unlinked;
	h->base = g->base;
	h->hash = s.hash;
	h->length = s.length;
	memcpy(h->name, name, s.length);
	return 0;
}

/* The entry of h's name. NULL: there is none, or *rc says why not. */
static const struct pando__entry *resolve(struct pando_region *r, struct pando_handle *h, int *rc)
{
	const struct pando__directory_gate *g = pando__directory_gate(r);
	const struct pando__sought s = {.name = h->name,
					.length = h->length,
					.hash = h->hash,
					.key = pando__entry_key(h->hash)};
	const struct pando__entry *e = (const void *)h->entry;
	uint64_t unlinked;

	*rc = !reading(r) ? not_reading() : pando__directory_there(g) ? 0 : -ENOENT;
	if (*rc < 0)
		return NULL;
	/* Before the list: who is taken out of it after that, counts beyond this. */
	unlinked = pando__load_acquire(h->unlinked);
	if (!e || unlinked != h->seen)
		e = find_entry(g, &s);
	h->entry = (const void *)e;
	h->seen = unlinked;
	*rc = e ? 0 : -ENOENT;
	return e;
}

void *pando__lookup_handle_slow(struct pando_region *r, struct pando_handle *h)
{
	struct pando_descriptor d;
	const int rc = pando_lookup_handle_descriptor(r, h, &d);

	if (rc == 0)
		return d.object;
	errno = -rc;
	return NULL;
}

int pando_lookup_handle_descriptor(struct pando_region *r, struct pando_handle *h,
				   struct pando_descriptor *d)
{
	const struct pando__entry *e;
	int rc;

	e = resolve(r, h, &rc);
	if (e)
		pando__read_entry(pando__directory_gate(r), e, d);
	return rc;
}

/* --- iterating --- */

/* The first entry from `at` on, in the order of the list. */
static struct pando__entry *first_entry(const struct pando__directory_gate *g, uint64_t at)
{
	while (at) {
		struct pando__node *node = pando__node_at(g, at);

		if (node->key & 1)
			return (struct pando__entry *)(void *)node;
		at = pando__load_acquire(&node->next);
	}
	return NULL;
}

/* The entry behind the name at which n stands, in its shard; or the first one. */
static struct pando__entry *behind(const struct pando__directory_gate *g, struct pando_name *n)
{
	struct pando__shard *shard = &g->directory->shard[n->place[0]];
	struct pando__sought s = {.name = n->name, .key = n->place[1]};
	struct pando__place place;

	if (n->place[1] == 0)
		return first_entry(g, pando__load_acquire(&shard->first.next));
	s.length = (uint32_t)strnlen(n->name, PANDO_NAME_MAX);
	s.hash = pando__hash(g->seed, n->name, s.length);
	pando__find(g, shard, &s, &place);
	return first_entry(g,
			   place.entry ? pando__load_acquire(&place.entry->node.next) : place.at);
}

int pando_name_next(struct pando_region *r, struct pando_name *n)
{
	const struct pando__directory_gate *g = pando__directory_gate(r);
	const struct pando__entry *e = NULL;
	int rc = pando_read_lock(r);

	if (rc < 0)
		return rc;
	for (; pando__directory_there(g) && n->place[0] < PANDO__SHARDS;
	     n->place[0]++, n->place[1] = 0) {
		e = behind(g, n);
		if (!e)
			continue;
		pando__read_entry(g, e, &n->descriptor);
		memcpy(n->name, e->name, e->length + 1);
		n->place[1] = e->node.key;
		break;
	}
	(void)pando_read_unlock(r);
	return e != NULL;
}
