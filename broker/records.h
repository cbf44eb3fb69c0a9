/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a broker leaves to its successor: the blobs of the records that the supervisor keeps.
 *
 * A record holds what cannot be found elsewhere. Who is attached to what stands in the regions'
 * ledgers; a peer's uid, gid and groups stay with its socket. So a region's record changes when it
 * is made, resized, granted or destroyed, a client's when it says hello: never on the way of an
 * attach.
 *
 * `committed` and `target` differ while memory is being taken or given back. Then everything
 * between the two is in doubt and `committed` is the truth: the successor gives back what lies
 * between.
 *
 *	grow:	put {old, new} -> allocate -> put {new, new} -> ledger -> answer
 *	shrink:	put {new, old} -> ledger -> punch -> put {new, new} -> answer
 *
 * The ids of client and message that made or destroyed a region let the successor recognise a
 * request that was done but not answered, when it is sent again.
 */
#ifndef PANDO_BROKER_RECORDS_H
#define PANDO_BROKER_RECORDS_H

#include <assert.h>
#include <stdint.h>

#include <pando/region.h>

#include "store.h"

#define RECORD_VERSION 1u
#define REGION_MAX_GRANTS 32u

/* One entry of an access list. Free entries have kind 0 and stand at the end. */
struct region_grant {
	uint32_t kind; /* enum pando_grantee */
	uint32_t id;
	uint32_t rights; /* PANDO_RIGHT_READ, PANDO_RIGHT_WRITE */
};

/* Descriptors: ledger, slots, heap, heap opened read-only. */
struct region_record {
	uint32_t version; /* RECORD_VERSION */
	uint32_t backend; /* enum pando_backend */
	uint64_t id;
	uint64_t base, max_size;
	uint64_t committed, target;
	uint64_t created_ns;
	uint64_t creator, creator_seq; /* client and message that made it */
	uint64_t destroyer, destroyer_seq; /* client and message that destroyed it, or 0 */
	uint32_t uid, gid, mode;
	uint32_t flags; /* PANDO_TRANSIENT, PANDO_HEAP; PANDO_REGION_DESTROYED */
	uint32_t grant_count;
	uint32_t ending; /* 1: its addresses are given back, and may be another region's by now */
	struct region_grant grants[REGION_MAX_GRANTS];
	char name[PANDO_REGION_NAME_MAX + 1];
};

/* Descriptors: the connection, and the pidfd where the process can be seen from here. */
struct client_record {
	uint32_t version; /* RECORD_VERSION */
	uint32_t greeted; /* 1: it said HELLO */
	uint64_t id;
	uint64_t parent;
	uint64_t connected_ns;
	uint64_t start_time; /* of the process, clock ticks since boot */
	uint32_t of_parent; /* 1: its claim of being a child of `parent` was found true */
	uint32_t reserved; /* 0 */
	char program[32];
};

static_assert(sizeof(struct region_record) <= STORE_MAX_BLOB, "a record fits into one packet");
static_assert(sizeof(struct client_record) <= STORE_MAX_BLOB, "a record fits into one packet");

#endif
