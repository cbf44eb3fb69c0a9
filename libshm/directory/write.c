/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Publishing and withdrawing: steps with the lock of a shard, of which one decides (see mend.c, which has
 * the table of them, and says what happens if this process is killed between any two).
 *
 * Nothing is allocated, freed or waited for with the lock held. A change looks under the lock what it
 * needs (memory for an entry, or for a table; readers that must get through before more may be retired);
 * if it has not got that, it gives the lock back, gets it, and begins again. What it has retired is
 * entered in this process's list (libshm/rcu/retire.c) after the lock has been given back: until then
 * it is held by this client, and the slot page says that something is.
 *
 * An object that is the region's becomes this client's first. Else another process might free it, and
 * a third one publish what it has allocated there, between the intent and the step after it.
 *
 * The heads of shards lie in pages of the slots file that have no memory before the first name is given:
 * whoever gives it takes the memory, and says so. Until then nobody looks there.
 *
 * Growing: an insertion makes one bucket more, two if some could not be made, as long as there are fewer than
 * names. A bucket is a node in a table that is there, so making it needs no intent: it
 * is linked, which is one store and changes nothing that anybody finds, and then counted. Who finds the next
 * one linked already, counts it. The table itself is an object; with no memory for one, lists become longer.
 */
#include "directory.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include <pando/heap.h>

#include "allocator/front.h"
#include "common/fail.h"
#include "common/futex.h"
#include "common/inject.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define MORE 1 /* of a step: c->needs says what is missing */

enum need { NEED_NOTHING, NEED_ENTRY, NEED_ROOM };

struct change {
	struct pando_region *r;
	const struct pando__directory_gate *g;
	struct pando__front *front;
	struct pando__seat *seat;
	struct pando__sought sought;
	struct pando__shard *shard;
	uint32_t *watched;
	uint64_t me; /* as the lock has it */

	void *object; /* to be published */
	uint64_t size;
	bool was_shared;
	bool conditional;
	uint64_t expected, now; /* versions */

	enum need needs;
	uint64_t room; /* bytes to be retired */
	bool has_room;
	struct pando__entry *entry; /* allocated, not used yet */
	struct pando__node *table;
	unsigned int table_number;

	void *retired[2]; /* held by this client, not on its list yet */
	uint64_t retired_bytes[2];
	uint32_t retired_count;
};

static uint64_t offset_of(const struct change *c, const void *p)
{
	return (uint64_t)((const char *)p - c->g->base);
}

/* --- intents --- */

static void intend(const struct change *c, enum pando__directory_kind kind,
		   const struct pando__directory_intent *what)
{
	struct pando__directory_intent *in = &c->shard->intent;

	pando__store_relaxed(&in->table, what->table);
	pando__store_relaxed(&in->entry, what->entry);
	pando__store_relaxed(&in->where, what->where);
	pando__store_relaxed(&in->old, what->old);
	pando__store_relaxed(&in->fresh, what->fresh);
	pando__store_relaxed(&in->version, what->version);
	pando__store_relaxed(&in->count, what->count);
	/* Partner: the broker, after this process's death. */
	pando__store_release(&in->kind, kind);
}

static void intend_no_more(const struct change *c)
{
	pando__store_release(&c->shard->intent.kind, PANDO__DIRECTORY_NONE);
}

/* What was the directory's is this client's, to be listed later. */
static void hold(struct change *c, uint64_t offset, uint64_t bytes)
{
	if (!pando__object_withdraw(&c->front->view, offset, c->front->slot))
		return;
	c->retired[c->retired_count] = c->g->base + offset;
	c->retired_bytes[c->retired_count++] = bytes;
}

/* What is the region's becomes this client's, before an intent names it. */
static int make_ours(struct change *c)
{
	int rc;

	if (pando_owner(c->r, c->object, NULL) != PANDO_HOLDING_SHARED)
		return 0;
	rc = pando_transfer(c->r, c->object, pando_self(c->r));
	c->was_shared = rc == 0;
	PANDO_INJECT("directory.publish.ours");
	return rc;
}

/* It comes to nothing: all is as it was. */
static int give_up(struct change *c, int rc)
{
	intend_no_more(c);
	if (c->was_shared && pando_share(c->r, c->object) == 0)
		c->was_shared = false;
	return rc;
}

/* --- buckets --- */

/* Uses the table that has been allocated, if it is the one that is missing. */
static bool add_table(struct change *c, unsigned int number)
{
	const struct pando__directory_intent in = {.table = number,
						   .entry = offset_of(c, c->table)};

	if (!c->table || c->table_number != number)
		return false;
	intend(c, PANDO__DIRECTORY_GROW, &in);
	PANDO_INJECT("directory.grow.intent");
	if (pando__object_publish(c->r, c->table) < 0) {
		intend_no_more(c);
		return false;
	}
	PANDO_INJECT("directory.grow.table");
	pando__store_release(&c->shard->tables[number], in.entry);
	PANDO_INJECT("directory.grow.decided");
	intend_no_more(c);
	c->table = NULL;
	return true;
}

/* Links the node of the bucket behind those that there are, and counts it. */
static void add_bucket(struct change *c, uint32_t bucket)
{
	const uint64_t key = pando__reversed(bucket);
	struct pando__node *node, *before;
	uint64_t at, offset, next;

	node = pando__bucket(c->g, c->shard, bucket, &offset);
	before = pando__bucket(c->g, c->shard, pando__bucket_parent(bucket), &at);
	while ((next = before->next) != 0 && pando__node_at(c->g, next)->key < key)
		before = pando__node_at(c->g, next);
	if (next != offset) {
		pando__store_relaxed(&node->key, key);
		pando__store_relaxed(&node->next, next);
		PANDO_INJECT("directory.grow.node");
		pando__store_release(&before->next, offset);
	}
	PANDO_INJECT("directory.grow.linked");
	/* Partner: pando__find(). */
	pando__store_release(&c->shard->buckets, bucket);
	PANDO_INJECT("directory.grow.counted");
}

static void grow(struct change *c)
{
	for (int i = 0; i < 2; i++) {
		const uint32_t bucket = c->shard->buckets + 1; /* the number of the next one */
		unsigned int number;
		uint32_t index;

		if (bucket >= c->shard->count || bucket >= PANDO__BUCKETS_MAX)
			return;
		number = pando__table_of(bucket, &index);
		if (c->shard->tables[number] == 0 && !add_table(c, number))
			return;
		add_bucket(c, bucket);
	}
}

/* --- the operations, with the lock --- */

static int replace(struct change *c, struct pando__entry *e)
{
	const unsigned int now = e->current & 1;
	const struct pando__directory_intent in = {.entry = offset_of(c, e),
						   .old = e->object[now],
						   .fresh = offset_of(c, c->object),
						   .version = c->shard->version + 1};
	const uint64_t bytes = e->size[now];
	int rc;

	if (!c->has_room && !pando__retire_fits(c->seat, bytes)) {
		c->needs = NEED_ROOM;
		c->room = bytes;
		return MORE;
	}
	rc = make_ours(c);
	if (rc < 0)
		return rc;
	intend(c, PANDO__DIRECTORY_REPLACE, &in);
	PANDO_INJECT("directory.replace.intent");
	rc = pando__object_publish(c->r, c->object);
	if (rc < 0)
		return give_up(c, rc);
	PANDO_INJECT("directory.replace.fresh");
	pando__store_release(&e->size[!now], c->size);
	pando__store_release(&e->object[!now], in.fresh);
	PANDO_INJECT("directory.replace.place");
	pando__store_release(&e->current, in.version << 1 | !now);
	PANDO_INJECT("directory.replace.decided");
	pando__store_relaxed(&c->shard->version, in.version);
	pando__shard_announce(c->shard, c->watched);
	PANDO_INJECT("directory.replace.announced");
	hold(c, in.old, bytes);
	PANDO_INJECT("directory.replace.held");
	intend_no_more(c);
	PANDO_INJECT("directory.replace.done");
	c->now = in.version;
	return 0;
}

static void fill_entry(struct change *c, struct pando__entry *e, uint64_t next, uint64_t version)
{
	e->node.next = next;
	e->node.key = c->sought.key;
	e->current = version << 1;
	e->object[0] = offset_of(c, c->object);
	e->size[0] = c->size;
	e->object[1] = e->size[1] = 0;
	e->length = c->sought.length;
	memcpy(e->name, c->sought.name, c->sought.length + 1);
}

/* Both become the directory's, or neither. */
static int take_both(struct change *c)
{
	int rc = pando__object_publish(c->r, c->object);

	if (rc < 0)
		return rc;
	PANDO_INJECT("directory.insert.fresh");
	rc = pando__object_publish(c->r, c->entry);
	if (rc < 0) /* somebody has written over the heap */
		(void)pando__object_withdraw(&c->front->view, offset_of(c, c->object),
					     c->front->slot);
	PANDO_INJECT("directory.insert.entry");
	return rc;
}

static int insert(struct change *c, const struct pando__place *place)
{
	const struct pando__directory_intent in = {.entry = offset_of(c, c->entry),
						   .where = place->where,
						   .fresh = offset_of(c, c->object),
						   .version = c->shard->version + 1,
						   .count = c->shard->count + 1};
	int rc = make_ours(c);

	if (rc < 0)
		return rc;
	fill_entry(c, c->entry, place->at, in.version);
	intend(c, PANDO__DIRECTORY_INSERT, &in);
	PANDO_INJECT("directory.insert.intent");
	rc = take_both(c);
	if (rc < 0)
		return give_up(c, rc);
	pando__store_release(&place->before->next, in.entry);
	PANDO_INJECT("directory.insert.decided");
	pando__store_relaxed(&c->shard->version, in.version);
	pando__store_relaxed(&c->shard->count, in.count);
	PANDO_INJECT("directory.insert.counted");
	pando__shard_announce(c->shard, c->watched);
	PANDO_INJECT("directory.insert.announced");
	intend_no_more(c);
	PANDO_INJECT("directory.insert.done");
	c->entry = NULL;
	c->now = in.version;
	grow(c);
	return 0;
}

static int unlink_entry(struct change *c, const struct pando__place *place)
{
	struct pando__entry *e = place->entry;
	const uint64_t bytes = e->size[e->current & 1];
	const uint64_t own = pando_usable_size(c->r, e);
	const struct pando__directory_intent in = {.entry = place->at,
						   .where = place->where,
						   .old = e->object[e->current & 1],
						   .count = c->shard->count - 1};

	if (!c->has_room && !pando__retire_fits(c->seat, bytes + own)) {
		c->needs = NEED_ROOM;
		c->room = bytes + own;
		return MORE;
	}
	intend(c, PANDO__DIRECTORY_WITHDRAW, &in);
	PANDO_INJECT("directory.withdraw.intent");
	pando__store_release(&place->before->next, e->node.next);
	PANDO_INJECT("directory.withdraw.decided");
	/* Before the entry is retired; partner: pando_lookup_handle(). */
	(void)pando__add_seq_cst(&c->shard->unlinked, 1);
	pando__store_relaxed(&c->shard->count, in.count);
	PANDO_INJECT("directory.withdraw.unlinked");
	pando__shard_announce(c->shard, c->watched);
	PANDO_INJECT("directory.withdraw.announced");
	hold(c, in.old, bytes);
	PANDO_INJECT("directory.withdraw.held");
	hold(c, in.entry, own);
	PANDO_INJECT("directory.withdraw.both");
	intend_no_more(c);
	PANDO_INJECT("directory.withdraw.done");
	c->now = 0;
	return 0;
}

/* Does the name have the version that it should have? 0 or a negative errno, without a sentence. */
static int condition(const struct change *c)
{
	if (!c->conditional || c->now == c->expected)
		return 0;
	return c->now == 0 ? -ENOENT : c->expected == 0 ? -EEXIST : -ESTALE;
}

static int step(struct change *c)
{
	struct pando__place place;
	int rc;

	pando__find(c->g, c->shard, &c->sought, &place);
	c->now = place.entry ? place.entry->current >> 1 : 0;
	c->needs = NEED_NOTHING;
	rc = condition(c);
	if (rc < 0)
		return rc;
	if (!c->object)
		return place.entry ? unlink_entry(c, &place) : -ENOENT;
	if (place.entry)
		return replace(c, place.entry);
	if (c->shard->count >= PANDO__NAMES_MAX)
		return -ENOSPC;
	if (!c->entry) {
		c->needs = NEED_ENTRY;
		return MORE;
	}
	return insert(c, &place);
}

/* --- without the lock --- */

/* Memory for an entry; and, if one will be missing and there is memory, for a table. */
static int allocate(struct change *c)
{
	const uint32_t buckets = pando__load_acquire(&c->shard->buckets);
	uint32_t index;

	c->entry = pando_alloc(c->r, offsetof(struct pando__entry, name) + c->sought.length + 1);
	if (!c->entry)
		return -errno;
	for (uint32_t b = buckets + 1; b <= buckets + 2 && b < PANDO__BUCKETS_MAX && !c->table;
	     b++) {
		c->table_number = pando__table_of(b, &index);
		if (pando__load_relaxed(&c->shard->count) >= b &&
		    pando__load_acquire(&c->shard->tables[c->table_number]) == 0)
			c->table = pando_calloc(c->r, pando__table_size(c->table_number),
						sizeof(*c->table));
	}
	return 0;
}

/* MORE, if the step can be tried again; or a negative errno. */
static int provide(struct change *c)
{
	int rc;

	if (c->needs == NEED_ENTRY) {
		rc = allocate(c);
	} else {
		rc = pando__retire_room(c->r, c->seat, c->room, pando__read_depth(c->r) > 0);
		c->has_room = rc == 0;
	}
	return rc < 0 ? rc : MORE;
}

/* The heads of all shards get memory: whoever comes first, or several at once. */
static int make_there(const struct pando__directory_gate *g)
{
	char *heads = (char *)g->directory;

	if (PANDO_INJECT_FAIL("directory.memory") ||
	    (madvise(heads, PANDO__DIRECTORY_SIZE, MADV_POPULATE_WRITE) < 0 && errno != EINVAL))
		return pando__fail(ENOMEM, "no memory for names (%zu bytes): %s",
				   PANDO__DIRECTORY_SIZE, strerror(errno));
	/* Linux before 5.14 does not know it: then a write takes the memory. */
	for (size_t at = 0; at < PANDO__DIRECTORY_SIZE; at += PANDO__PAGE)
		(void)pando__add_relaxed((uint64_t *)(void *)(heads + at), 0);
	PANDO_INJECT("directory.memory.taken");
	pando__store_release(g->there, 1);
	(void)pando__futex_wake(g->there, INT_MAX);
	return 0;
}

static int begin(struct change *c, struct pando_region *r, const char *name)
{
	int rc;

	c->r = r;
	c->g = pando__directory_gate(r);
	rc = pando__seek(c->g, name, &c->sought);
	if (rc < 0)
		return rc;
	c->front = pando__region_front(r);
	if (!c->front)
		return -errno;
	c->me = (uint64_t)(c->front->slot + 1) | c->front->generation << 32;
	c->shard = &c->g->directory->shard[pando__shard_of(c->sought.hash)];
	return 0;
}

/* Does it all, and gives back what was not needed. */
static int carry_out(struct change *c)
{
	int rc = pando__retire_prepare(c->r, 2, &c->seat);

	if (rc < 0)
		return rc;
	c->watched = &c->seat->view.rcu->watched[pando__shard_of(c->sought.hash)];
	do {
		pando__shard_lock(c->shard, c->me);
		rc = step(c);
		pando__shard_unlock(c->shard);
		if (rc == MORE)
			rc = provide(c);
	} while (rc == MORE);
	PANDO_INJECT("directory.change.unlocked");
	pando__retire_list(c->r, c->seat, c->retired, c->retired_bytes, c->retired_count, 2);
	if (c->entry)
		pando_free(c->r, c->entry);
	if (c->table)
		pando_free(c->r, c->table);
	return rc;
}

/* The sentence for what was found out under the lock. */
static int explain(const struct change *c, int rc)
{
	const char *name = c->sought.name;

	switch (rc) {
	case -EEXIST:
		return pando__fail(EEXIST, "\"%.80s\" exists already, with version %" PRIu64, name,
				   c->now);
	case -ENOENT:
		return pando__fail(ENOENT, "there is no name \"%.80s\"", name);
	case -ESTALE:
		return pando__fail(ESTALE,
				   "\"%.80s\" has version %" PRIu64 " now, and not %" PRIu64, name,
				   c->now, c->expected);
	case -ENOSPC:
		return pando__fail(ENOSPC,
				   "\"%.80s\": its part of the directory has %u names, more are "
				   "not possible",
				   name, PANDO__NAMES_MAX);
	default:
		return rc;
	}
}

static int publish(struct pando_region *r, struct change *c, const char *name, void *p)
{
	int rc = begin(c, r, name);

	if (rc < 0)
		return rc;
	c->object = p;
	c->size = pando_usable_size(r, p);
	if (c->size == 0)
		return pando__fail(EINVAL, "publishing %p as \"%.80s\": no object begins there", p,
				   name);
	if (pando_owner(r, p, NULL) == PANDO_HOLDING_PUBLISHED)
		return pando__fail(EALREADY, "publishing %p as \"%.80s\": it has a name already", p,
				   name);
	if (!pando__directory_there(c->g))
		rc = make_there(c->g);
	return rc < 0 ? rc : explain(c, carry_out(c));
}

int pando_publish(struct pando_region *r, const char *name, void *p)
{
	struct change c = {0};

	return publish(r, &c, name, p);
}

int pando_publish_if(struct pando_region *r, const char *name, void *p, uint64_t version,
		     uint64_t *now)
{
	struct change c = {.conditional = true, .expected = version};
	const int rc = publish(r, &c, name, p);

	if (now)
		*now = c.now;
	return rc;
}

static int withdraw(struct pando_region *r, struct change *c, const char *name)
{
	int rc = begin(c, r, name);

	if (rc < 0)
		return rc;
	return explain(c, pando__directory_there(c->g) ? carry_out(c) : -ENOENT);
}

int pando_withdraw(struct pando_region *r, const char *name)
{
	struct change c = {0};

	return withdraw(r, &c, name);
}

int pando_withdraw_if(struct pando_region *r, const char *name, uint64_t version)
{
	struct change c = {.conditional = true, .expected = version};

	return withdraw(r, &c, name);
}
