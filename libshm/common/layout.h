/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The on-memory layout of a region's ledger and slots.
 *
 * A region is three files, mapped with different rights:
 *
 *	file	who writes		mapped by clients	content
 *	ledger	the broker alone	read-only		identity, geometry, client table
 *	slots	each client its page	own page writable	what a client says of itself; and,
 *		and all its RCU part	and the RCU part	behind the pages, the region's RCU part
 *		and its directory	and the directory	and the heads of its directory
 *	heap	clients			writable or read-only	the user's memory, at one address everywhere
 *
 * The broker relies on the ledger, since nobody else can write it, and on nothing in slots or heap.
 * A restarted broker finds the ledger as the dead one left it: each change is one release store of
 * a word that makes the fields behind it count, so there is no half-made state; see "killed here"
 * at each field.
 *
 * Formats carry a magic and a version; a reader checks both before it believes anything else.
 * Padding is zero. Offsets are pinned below: they are an interface between programs built at
 * different times.
 *
 *	client table entry:	FREE --(fields, then word)--> LIVE --(word)--> REAPING --(slot page zeroed,
 *				then word)--> FREE, generation + 1
 */
#ifndef PANDO_COMMON_LAYOUT_H
#define PANDO_COMMON_LAYOUT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include <pando/region.h>

#define PANDO__LEDGER_MAGIC 0x72656764656c6f70ull /* "poledger", little endian */
#define PANDO__SLOT_MAGIC 0x746f6c736f646e61ull /* "andoslot" */
#define PANDO__LAYOUT_VERSION 3u

#define PANDO__GIB (1ull << 30)
#define PANDO__WINDOW_BASE 0x200000000000ull /* default; outside of what ASLR and sanitizers use */
#define PANDO__WINDOW_SIZE (16ull << 40)
/* Per region. Address space only: pages are committed with need. */
#define PANDO__MAX_CLIENTS 65536u
#define PANDO__SLOT_SIZE 4096u
#define PANDO__LEDGER_HEADER 4096u
#define PANDO__SLOT_READERS 39u /* threads that read, in a client's own page */
/* Pages for the readers of clients with more threads; each takes as many as it needs. */
#define PANDO__READER_PAGES 1024u
#define PANDO__STALLED 16u
#define PANDO__SHARDS 64u /* parts of the directory of names, each with a lock */

/* State of a client-table entry: low 8 bits of its word; the rest is the generation. */
enum pando__client_state {
	PANDO__CLIENT_FREE = 0,
	PANDO__CLIENT_LIVE = 1,
	PANDO__CLIENT_REAPING = 2
};
#define PANDO__CLIENT_STATE(word) ((enum pando__client_state)((word)&0xff))
#define PANDO__CLIENT_GENERATION(word) ((word) >> 8)
#define PANDO__CLIENT_WORD(generation, state) (((uint64_t)(generation) << 8) | (uint64_t)(state))

/* One attached process. Written by the broker alone. 64 bytes: one cache line. */
struct pando__ledger_client {
	/*
	 * Generation and state. Stored with release after the other fields; readers load it with
	 * acquire, read the fields, and load it again: unchanged and LIVE means that the fields
	 * belong together. Killed before the store: the entry is still FREE and the fields mean
	 * nothing.
	 */
	uint64_t word;
	uint64_t client_id;
	uint64_t start_time; /* of the process, clock ticks since boot: a pid alone can be reused */
	uint64_t attached_ns; /* CLOCK_BOOTTIME */
	int32_t pid;
	uint32_t uid;
	uint32_t gid;
	uint32_t readonly;
	/*
	 * Bytes of the region's heap that this client may own, and that all clients of its user may
	 * own together; 0: no limit.
	 */
	uint64_t heap_quota;
	uint64_t heap_quota_user;
};

/*
 * First page of the ledger. Written by the broker alone; fixed after creation unless said
 * otherwise.
 */
struct pando__ledger {
	uint64_t magic; /* stored last, with release: a ledger without it was never finished */
	uint32_t version;
	uint32_t header_size; /* offset of the client table */
	uint64_t region_id;
	uint64_t base; /* address of the heap in every process */
	uint64_t max_size; /* bytes; the heap file's sealed size */
	uint64_t created_ns; /* CLOCK_BOOTTIME */
	uint32_t backend; /* enum pando_backend */
	uint32_t page_size; /* bytes; unit of `committed` */
	uint32_t max_clients; /* entries of the client table, pages of the slots file */
	uint32_t slot_size; /* bytes */
	char name[PANDO_REGION_NAME_MAX + 1];
	/*
	 * Bytes of heap that have memory. Changes online: grown after the memory is there, shrunk
	 * before it is taken away; so what a reader sees is always backed.
	 */
	uint64_t committed;
	/* Futex word: plus one, with release, after each change of `committed` or `state`. */
	uint32_t changes;
	uint32_t state; /* 0 live, 1 destroyed (no name any more); one store */
	/* entries at and above this index have never been used; only grows */
	uint32_t clients_high;
	uint32_t clients_live; /* a hint for statistics; recounted by a restarted broker */
	uint32_t flags; /* PANDO_HEAP: the heap's spans have memory only while somebody owns them */
	/* enum pando__rcu_mode; what all clients go by */
	uint32_t rcu_mode;
	/*
	 * Readers that keep a grace period waiting, as the broker has seen them last; the longest
	 * first. Changes online, for display alone: a reader may meet an entry in the middle of a
	 * change.
	 */
	uint64_t rcu_stalled_count; /* all of them; the first PANDO__STALLED are in the table */
	struct pando__stalled {
		uint64_t since_ns; /* CLOCK_BOOTTIME when it was first seen to do so */
		int32_t pid;
		uint32_t tid; /* as the reader says */
	} rcu_stalled[PANDO__STALLED];
	uint64_t directory_seed; /* of the names' hashes; fixed */
	/* Locks of the directory that have been held for long, as rcu_stalled. */
	uint64_t directory_slow_count;
	struct pando__slow {
		uint64_t since_ns; /* CLOCK_BOOTTIME when it was first seen so */
		int32_t pid;
		uint32_t shard;
	} directory_slow[PANDO__STALLED];
	uint8_t reserved[PANDO__LEDGER_HEADER - 184 - 2 * PANDO__STALLED * 16];
};

/* How readers and writers of a region order their steps: see libshm/rcu/grace.c. */
enum pando__rcu_mode {
	PANDO__RCU_MEMBARRIER = 0, /* readers have no fence, writers call membarrier() */
	PANDO__RCU_FENCED = 1 /* the kernel has no membarrier(): readers have fences */
};

/*
 * What one thread says of its reading. Written by that thread; a line of its own. In a page of its
 * client, so all zero when it is not in use.
 */
struct pando__reader {
	/*
	 * 0 outside of read sections. Inside: the grace counter as it was when the outermost one
	 * began, and in the lowest 16 bits how many are open. Stored by plain stores; the release
	 * store of 0 pairs with the acquire load of who waits for readers.
	 */
	uint64_t section;
	uint32_t tid; /* for people */
	uint32_t reserved0;
	uint64_t reserved[6];
};
#define PANDO__SECTION_ONE 0x1ull
#define PANDO__SECTION_DEPTH 0xffffull
#define PANDO__GRACE_STEP 0x10000ull

/*
 * One page of the slots file. Written by the client whose entry in the client table has this index
 * and by the broker when that entry is not LIVE. The broker trusts nothing in it.
 */
struct pando__slot {
	uint64_t magic; /* written last, by the client, at attach */
	uint32_t version;
	uint32_t reserved0;
	/* whose claim this is: a forked child finds its parent's here and knows */
	uint64_t client_id;
	uint64_t generation; /* of the entry */
	/* Readers from here on were never used. Grows only, with release, before that one is used. */
	uint32_t readers_high;
	uint32_t reserved1;
	/*
	 * Objects that this client has retired and not freed yet, and their bytes: counted before an
	 * object becomes the client's, and until it has been freed. Not 0: whoever reaps the client
	 * waits for a grace period first.
	 */
	uint64_t retired, retired_bytes;
	uint64_t reserved2;
	struct pando__reader readers[PANDO__SLOT_READERS];
	uint8_t intents[PANDO__SLOT_SIZE - 64 - PANDO__SLOT_READERS * 64]; /* allocator/layout.h */
};

/*
 * Behind the slot pages, three pages that all clients can write, and the pages with further readers:
 * the RCU part of the slots file. The broker believes nothing there.
 */
struct pando__rcu {
	/*
	 * The grace counter: plus PANDO__GRACE_STEP when a grace period begins; the lowest 16 bits
	 * are PANDO__SECTION_ONE always, so that a reader can store what it has loaded. Never smaller.
	 */
	uint64_t grace;
	/* The grace counter that somebody sleeps for, on the lower half of this word; 0: nobody. */
	uint64_t waiting;
	uint64_t reserved0[6];
	/* Grace periods up to this value of the counter are over. Never smaller. */
	uint64_t done;
	uint64_t reserved1[7];
	/* Hint: the sum of all clients' retired_bytes. Counted anew when it seems to be too much. */
	uint64_t retired_bytes;
	/* Bytes that all clients together may have retired and not freed; 0: the default. */
	uint64_t retired_limit;
	uint64_t reserved2[6];
	/* Pages of readers from here on were never taken. Grows only, before that page is taken. */
	uint32_t pages_high;
	uint32_t reserved3;
	/*
	 * 1: the heads of the directory have memory, and may be looked at. Set by the first who gives a
	 * name, after it has taken the memory; a futex.
	 */
	uint32_t directory_there;
	uint32_t reserved6;
	uint64_t reserved4[6];
	/*
	 * One for each part of the directory: 1 if somebody may sleep until it changes. Here, since
	 * clients that may only read watch, too.
	 */
	uint32_t watched[PANDO__SHARDS];
	uint64_t reserved5[(PANDO__SLOT_SIZE - 256 - 4 * PANDO__SHARDS) / 8];
	/*
	 * Who has a page of readers: slot + 1 | generation << 24; 0: nobody. Taken by CAS from 0;
	 * set to 0 by the broker, after the page has been zeroed, when the client is gone.
	 */
	uint64_t page_owner[PANDO__READER_PAGES];
};
#define PANDO__PAGE_READERS (PANDO__SLOT_SIZE / sizeof(struct pando__reader))

#define PANDO__LEDGER_SIZE                                                                         \
	(PANDO__LEDGER_HEADER + (size_t)PANDO__MAX_CLIENTS * sizeof(struct pando__ledger_client))
#define PANDO__RCU_OFFSET ((size_t)PANDO__MAX_CLIENTS * PANDO__SLOT_SIZE)
#define PANDO__READERS_OFFSET (PANDO__RCU_OFFSET + sizeof(struct pando__rcu))
/* Then the heads of the directory of names: libshm/directory/layout.h. */
#define PANDO__DIRECTORY_OFFSET                                                                    \
	(PANDO__READERS_OFFSET + (size_t)PANDO__READER_PAGES * PANDO__SLOT_SIZE)
#define PANDO__DIRECTORY_SIZE ((size_t)PANDO__SHARDS * 512)
#define PANDO__SLOTS_SIZE (PANDO__DIRECTORY_OFFSET + PANDO__DIRECTORY_SIZE)

static_assert(sizeof(struct pando__ledger_client) == 64, "one cache line");
static_assert(offsetof(struct pando__ledger_client, pid) == 32, "layout");
static_assert(sizeof(struct pando__ledger) == PANDO__LEDGER_HEADER, "one page");
static_assert(offsetof(struct pando__ledger, base) == 24, "layout");
static_assert(offsetof(struct pando__ledger, backend) == 48, "layout");
static_assert(offsetof(struct pando__ledger, name) == 64, "layout");
static_assert(offsetof(struct pando__ledger, committed) == 128, "layout");
static_assert(offsetof(struct pando__ledger, changes) == 136, "layout");
static_assert(offsetof(struct pando__ledger, rcu_stalled) == 168, "layout");
static_assert(offsetof(struct pando__ledger, directory_slow) == 440, "layout");
static_assert(sizeof(struct pando__reader) == 64, "one cache line");
static_assert(sizeof(struct pando__slot) == PANDO__SLOT_SIZE, "one page");
static_assert(offsetof(struct pando__slot, readers) == 64, "layout");
static_assert(offsetof(struct pando__slot, intents) == 2560, "where allocator/layout.h has them");
static_assert(offsetof(struct pando__rcu, done) == 64, "layout");
static_assert(offsetof(struct pando__rcu, pages_high) == 192, "layout");
static_assert(offsetof(struct pando__rcu, watched) == 256, "layout");
static_assert(offsetof(struct pando__rcu, page_owner) == PANDO__SLOT_SIZE, "one page");
static_assert(PANDO__DIRECTORY_SIZE % PANDO__SLOT_SIZE == 0, "whole pages");
static_assert(sizeof(struct pando__rcu) % PANDO__SLOT_SIZE == 0, "whole pages");

static inline struct pando__ledger_client *pando__ledger_client(struct pando__ledger *l,
								uint32_t index)
{
	return (struct pando__ledger_client *)((char *)l + PANDO__LEDGER_HEADER) + index;
}

#endif
