/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The directory in memory.
 *
 *	slots file	64 shards of 512 bytes, behind the pages of readers: PANDO__DIRECTORY_OFFSET
 *	heap		entries (one for each name) and tables (of buckets): objects that are the
 *			directory's (PANDO__HOLDER_DIRECTORY)
 *
 * References into the heap are offsets from the region's base; 0 is none.
 *
 *	shard.first --> entry --> entry --> bucket --> entry --> bucket --> 0
 *
 * A shard is one list, sorted by key. An entry's key is its name's hash with the bits in reverse
 * order and the lowest bit 1; a bucket's is its number in reverse order, whose lowest bit is 0. So the
 * entries of bucket b, whose hashes end with the bits of b, follow the bucket's own node. Buckets come into
 * being one at a time: number n when there are n others, as a node before those entries of its parent (n
 * without its highest bit) that are its own from then on. Entries never move. All buckets below
 * `buckets` are in the list; one more may be, whose writer died then.
 *
 *	bucket 0	shard.first
 *	1 to 63		tables[0][b]
 *	2^k to 2^k+1 - 1	tables[k - 5][b - 2^k]
 *
 * Who writes: a shard and all that belongs to it, whoever has its lock; or the broker, when the owner of
 * the lock is dead. Readers need neither; see find.c. All is zero before first use.
 */
#ifndef PANDO_DIRECTORY_LAYOUT_H
#define PANDO_DIRECTORY_LAYOUT_H

#include <stdbool.h>

#include <pando/directory.h>

#include "common/layout.h"

#define PANDO__SHARD_BITS 6u
#define PANDO__BUCKETS_MAX (1u << 26)
#define PANDO__NAMES_MAX (1u << 26) /* in a shard */
#define PANDO__TABLES 21u
#define PANDO__TABLE_FIRST 64u /* buckets that table 0 has places for */

/* An element of the list. In tables, whole; the beginning of an entry. */
struct pando__node {
	uint64_t next; /* release; readers: acquire */
	uint64_t key; /* fixed before the node is in the list */
};

struct pando__entry {
	struct pando__node node;
	/*
	 * The version, times 2, plus which of the two places below counts. Stored with release
	 * after the place, so one store replaces version, object and size together. Readers load it
	 * again after the place: unchanged means that the place belongs to it, for no version comes
	 * twice.
	 */
	uint64_t current;
	uint64_t object[2]; /* offsets */
	uint64_t size[2]; /* usable bytes */
	/* Fixed. */
	uint32_t length; /* of the name, without NUL */
	char name[]; /* with NUL */
};

/* What the owner of a lock is about to do. */
enum pando__directory_kind {
	PANDO__DIRECTORY_NONE = 0,
	PANDO__DIRECTORY_REPLACE = 1,
	PANDO__DIRECTORY_INSERT = 2,
	PANDO__DIRECTORY_WITHDRAW = 3,
	PANDO__DIRECTORY_GROW = 4
};

/*
 * Written by the lock's owner: `kind` last, with release, before the first step; 0 when nothing remains
 * to be done. mend.c says what follows from it.
 */
struct pando__directory_intent {
	uint32_t kind;
	uint32_t table; /* GROW: which one */
	uint64_t entry; /* GROW: the table */
	uint64_t where; /* INSERT, WITHDRAW: the node before it; 0: shard.first */
	uint64_t old, fresh; /* objects */
	uint64_t version; /* that the name gets, or the shard has then */
	uint64_t count; /* of names afterwards */
	uint64_t reserved; /* 0 */
};

struct pando__shard {
	/* Read by readers: */
	struct pando__node first; /* bucket 0 */
	uint32_t
		buckets; /* less 1: how many there are. Grows only, after the bucket is in the list */
	uint32_t reserved0;
	/*
	 * Withdrawals. Plus one when an entry has been taken out of the list and before it is
	 * retired: who has found an entry, and finds this number as it was, still has it.
	 */
	uint64_t unlinked;
	uint64_t tables[PANDO__TABLES]; /* offsets; once not 0, fixed */
	uint64_t reserved1[7];
	/*
	 * Who changes it: slot + 1 in bits 0 to 30, bit 31 if somebody sleeps for it (a futex, on
	 * the lower half), the lower 32 bits of the slot's generation above. 0: nobody. Taken by
	 * compare-and-swap from 0, given back by an exchange; broken by the broker.
	 */
	uint64_t lock;
	uint64_t locks; /* how often it was taken: the broker sees by it who has it for long */
	uint64_t count; /* names */
	uint64_t version; /* the highest that a name got here */
	uint32_t changes; /* futex: plus one after each change that a watcher could wait for */
	uint32_t reserved2;
	uint64_t reserved3[3];
	struct pando__directory_intent intent;
	uint64_t reserved4[16];
};
#define PANDO__SHARD_WAITERS 0x80000000u

struct pando__directory {
	struct pando__shard shard[PANDO__SHARDS];
};

static_assert(1u << PANDO__SHARD_BITS == PANDO__SHARDS, "upper bits of the hash");
static_assert(sizeof(struct pando__node) == 16, "layout");
static_assert(offsetof(struct pando__entry, current) == 16, "layout");
static_assert(offsetof(struct pando__entry, object) == 24, "layout");
static_assert(offsetof(struct pando__entry, name) == 60, "layout");
static_assert(offsetof(struct pando__descriptor, object) == 24, "as in struct pando__entry");
static_assert(offsetof(struct pando__shard, tables) == 32, "layout");
static_assert(offsetof(struct pando__shard, lock) == 256, "a line of its own");
static_assert(offsetof(struct pando__shard, intent) == 320, "a line of its own");
static_assert(sizeof(struct pando__shard) == 512, "layout");
static_assert(sizeof(struct pando__directory) == PANDO__DIRECTORY_SIZE, "whole pages");

static inline uint64_t pando__reversed(uint64_t x)
{
	x = (x >> 1 & 0x5555555555555555ull) | (x & 0x5555555555555555ull) << 1;
	x = (x >> 2 & 0x3333333333333333ull) | (x & 0x3333333333333333ull) << 2;
	x = (x >> 4 & 0x0f0f0f0f0f0f0f0full) | (x & 0x0f0f0f0f0f0f0f0full) << 4;
	return __builtin_bswap64(x);
}

static inline uint32_t pando__shard_of(uint64_t hash)
{
	return (uint32_t)(hash >> (64 - PANDO__SHARD_BITS));
}

static inline uint64_t pando__entry_key(uint64_t hash)
{
	return pando__reversed(hash) | 1;
}

/* Where bucket b > 0 lies: which table, and where in it. */
static inline unsigned int pando__table_of(uint32_t bucket, uint32_t *index)
{
	const unsigned int top = 31 - (unsigned int)__builtin_clz(bucket | 1);

	*index = bucket < PANDO__TABLE_FIRST ? bucket : bucket - (1u << top);
	return bucket < PANDO__TABLE_FIRST ? 0 : top - 5;
}

/* Buckets that a table has places for. */
static inline uint32_t pando__table_size(unsigned int table)
{
	return table == 0 ? PANDO__TABLE_FIRST : 1u << (table + 5);
}

/* Where the list is longest before `bucket` was made: it is split off from there. */
static inline uint32_t pando__bucket_parent(uint32_t bucket)
{
	return bucket & ~(1u << (31 - (unsigned int)__builtin_clz(bucket | 1)));
}

#endif
