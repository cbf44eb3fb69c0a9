/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The directory's insides.
 *
 * Modules: find.c (hash, walking, looking up, iterating), lock.c (locks of shards), write.c (publishing
 * and withdrawing), mend.c (finishing or undoing what a dead writer had begun; used by the
 * broker), watch.c (waiting for changes), stat.c (numbers, and the check of every invariant), ffi.c.
 */
#ifndef PANDO_DIRECTORY_DIRECTORY_H
#define PANDO_DIRECTORY_DIRECTORY_H

#include "allocator/heap.h"
#include "common/atomic.h"
#include "layout.h"
#include "rcu/reader.h"

/* What looking up needs of a region. In struct pando_region, behind the readers'; fixed while it is open. */
struct pando__directory_gate {
	struct pando__directory *directory; /* may be mapped read-only */
	uint32_t *there; /* of struct pando__rcu: 0: it has no memory yet, and no names */
	char *base;
	uint64_t seed;
};
#define PANDO__DIRECTORY_GATE_AT (PANDO__RCU_GATE_AT + sizeof(struct pando__rcu_gate))

static inline const struct pando__directory_gate *pando__directory_gate(
	const struct pando_region *r)
{
	return (const void *)((const char *)r + PANDO__DIRECTORY_GATE_AT);
}

static inline struct pando__directory_gate pando__directory_gate_of(const struct pando__ledger *l,
								    char *slots, char *base)
{
	return (struct pando__directory_gate){
		.directory = (struct pando__directory *)(void *)(slots + PANDO__DIRECTORY_OFFSET),
		.there = &((struct pando__rcu *)(void *)(slots + PANDO__RCU_OFFSET))
				  ->directory_there,
		.base = base,
		.seed = l->directory_seed,
	};
}

/* Partner: the release in write.c, after the memory is there. */
static inline bool pando__directory_there(const struct pando__directory_gate *g)
{
	return pando__load_acquire(g->there) != 0;
}

/* find.c */

/* A name, looked at once. */
struct pando__sought {
	const char *name;
	uint32_t length;
	uint64_t hash, key;
};
/* 0, or -EINVAL with a sentence. */
int pando__seek(const struct pando__directory_gate *g, const char *name, struct pando__sought *s);
uint64_t pando__hash(uint64_t seed, const char *name, size_t length);

/* A place in a shard's list. */
struct pando__place {
	struct pando__node *before; /* the last node that comes before what is sought */
	uint64_t where; /* its offset; 0: shard.first */
	struct pando__entry *entry; /* NULL: there is none of that name */
	uint64_t at; /* its offset */
};
/* In a read section, or with the lock of the shard. */
void pando__find(const struct pando__directory_gate *g, struct pando__shard *shard,
		 const struct pando__sought *s, struct pando__place *place);
/* The node of a bucket that is in the list, and its offset (0: shard.first). */
struct pando__node *pando__bucket(const struct pando__directory_gate *g, struct pando__shard *shard,
				  uint32_t bucket, uint64_t *offset);
/* < 0, 0, > 0: where the entry comes in the order of all, compared with this key and name. */
int pando__entry_order(const struct pando__entry *e, uint64_t key, const char *name,
		       uint32_t length);
void pando__read_entry(const struct pando__directory_gate *g, const struct pando__entry *e,
		       struct pando_descriptor *d);

static inline struct pando__node *pando__node_at(const struct pando__directory_gate *g,
						 uint64_t offset)
{
	return (struct pando__node *)(void *)(g->base + offset);
}

/* lock.c */

/* `me`: slot + 1 | generation << 32. Sleeps while another one has it. */
void pando__shard_lock(struct pando__shard *shard, uint64_t me);
void pando__shard_unlock(struct pando__shard *shard);
/* Tells watchers; with the lock, after the change. */
void pando__shard_announce(struct pando__shard *shard, uint32_t *watched);

/* mend.c: for the broker, and for tests that play it. Believes nothing. */

/*
 * Finishes or undoes what client `slot`, which is dead and has the lock of this shard, had begun. What was
 * to be retired, or had been taken for nothing, is held by the client afterwards; the
 * caller sees to it that a grace period passes before that is reaped. As often as one likes. watched:
 * that of the shard. The lock stays.
 */
void pando__directory_mend(const struct pando__view *v, struct pando__shard *shard, uint32_t slot,
			   uint32_t *watched);
/* Then gives the lock back and wakes who waits for it. */
void pando__directory_break(struct pando__shard *shard);

#endif
