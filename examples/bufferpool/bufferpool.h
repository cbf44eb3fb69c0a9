/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A buffer pool in a region: the pages of a file that many processes work on, in frames of 8 KiB.
 *
 * What makes it different from the pools in the books is what it must survive: any process may be
 * killed between any two instructions, and then no frame may stay pinned, no page may be torn (in
 * memory or in the file), no update be half there, and nobody may wait for the dead.
 *
 * Frames are immutable. A page's content is never changed where others see it. Who updates a page takes
 * an empty frame, writes the next version into it, seals it with its checksum, and puts it in the
 * old one's place in the page table with one compare-and-swap. Killed before that: nothing
 * has happened. Killed after it: the update is complete. So there are no locks on content, readers never
 * wait for writers, and write-back sees whole pages only. The price is a copy of 8 KiB for each update
 * (some 0.5 us), and a frame more for as long as somebody reads the old version.
 *
 * The page table is a hash table of chains, linked through the frames themselves, with raw pointers: the
 * region lies at one address everywhere. Readers walk it in an RCU read section. The lowest bit of
 * `next` says that the frame is removed from the table; all changes are single compare-and-swaps
 * (table.c). A removed frame is unlinked, then a grace period passes, and only then may it be used again.
 *
 * A pin is a store, not a counter. Each backend has a record in the region with POOL_PINS places; to pin is
 * to write the frame's number into one of them. Who wants to use a removed frame again looks, after
 * the grace period, whether any place names it. That is enough: who pins does so in the read section in
 * which it found the frame, so whoever found the frame at all has its pin in its record by the time
 * that the grace period is over. Frames are linked in place and never freed, so there is nothing to
 * retire: grace periods guard their second use. Nothing shared is written for a hit; hot pages do not bounce between
 * processors; and whose pin it is needs no book-keeping: it lies in the record of its owner.
 *
 *	reader				who removes a frame
 *	pando_read_lock()		mark it (compare-and-swap on `next`)
 *	find it, not marked		unlink it
 *	place = its number		pando_synchronize()
 *	pando_read_unlock()		look at all places: one names it? keep it waiting
 *
 * Who is dead is told by the kernel. A backend holds the robust mutex of its record as long as it lives; the
 * kernel marks it when the process is gone, whatever pid it had and whoever has that pid now. Whoever
 * comes across the record next (one that waits for a lock of the dead, one that finds no free frame, a
 * new backend, the parent) gets the mutex with EOWNERDEAD, and buries the dead (bury.c). If that one is
 * killed as well, both mutexes are marked: the next one goes on, since every step of a burial may be done
 * twice. (pando_owner() of an object would tell as much, once the broker has reaped the client; a
 * pool that must free pins needs not wait for that.) System calls that move data into or out of frames
 * are over before the process is gone: the kernel waits for them.
 *
 * The word of a frame says whose it is:
 *
 *	 0 FREE -----------------------------> 2 + i OWNED by record i: in nobody's sight, being filled
 *	   ^       taken                          |        ^   or waiting until it can be used again
 *	   |                                      |linked  |
 *	   | given back                           v        | taken by who removes it
 *	   +----------------------------------- 1 COMMON --+
 *
 * A COMMON frame is either in the table (lowest bit of `next` clear), or removed and for whoever wants to
 * collect it (set). So a frame is never lost: if its owner dies, the frame is COMMON again, and its bit is
 * made to say whether it is in the table.
 *
 * Between the page in memory and the page in the file stands one of POOL_STRIPES locks, by the page's
 * number: who reads the page from the file or writes it back holds it. So there is one reader, one writer,
 * and never an older version written over a newer one. It names its owner; a hit needs none.
 *
 * A frame is dirty or not, from the moment that it is linked; it becomes clean once, when it has been
 * written. Only clean frames are evicted.
 *
 * Nobody but the owner of a record writes into it, save who buries it.
 */
#ifndef BUFFERPOOL_BUFFERPOOL_H
#define BUFFERPOOL_BUFFERPOOL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <pando/pando.h>

#include "common/atomic.h"
#include "common/inject.h"
#include "file.h"

#define POOL_PINS 16u /* of each backend; the last two are the pool's own */
#define POOL_PINS_USER (POOL_PINS - 2)
#define POOL_PIN_UPDATE (POOL_PINS - 2) /* the version that is being replaced */
#define POOL_PIN_WRITE (POOL_PINS - 1) /* what is being written back */
#define POOL_STRIPES 1024u
#define POOL_BATCH 32u /* frames that are collected with one grace period, at most */
#define POOL_OWN (4 * POOL_BATCH) /* frames in one list of a process, at most */
#define POOL_USAGE 3u /* rounds of the clock that a page survives without use */
#define POOL_REMOVED 1ull /* in pool_frame.next */

enum { POOL_FREE = 0, POOL_COMMON = 1, POOL_OWNED = 2 /* + the record's index */ };

/* One frame. Its 8 KiB lie in the row of pages, at the same index. */
struct pool_frame {
	uint64_t next; /* by compare-and-swap: address of the next in the chain, | POOL_REMOVED */
	uint64_t page; /* by the owner; constant while anybody can find the frame */
	uint32_t word; /* by compare-and-swap */
	uint32_t dirty; /* by the owner, then by who has the page's stripe: 1 -> 0 */
	uint32_t usage; /* by anyone, relaxed: a hint to the clock */
	uint32_t zero[9];
};
_Static_assert(sizeof(struct pool_frame) == 64, "a frame's line");

/* What is counted, in each record: never reset, so that the sum over all is the pool's. */
enum pool_count {
	POOL_HITS,
	POOL_MISSES, /* not found without a lock */
	POOL_READS, /* pages read from the file */
	POOL_WRITES, /* pages written to it */
	POOL_UPDATES, /* exact, whoever is killed */
	POOL_CONFLICTS, /* updates begun again, because another one was first */
	POOL_WAITS, /* sleeps on a stripe */
	POOL_COLLECTED, /* frames collected */
	POOL_GRACES, /* grace periods for that */
	POOL_COUNTS
};

struct pool_record {
	uint32_t pin[POOL_PINS]; /* number of the frame + 1; 0: none. Line of its own */
	pthread_mutex_t life; /* robust: held while its backend lives */
	int32_t pid; /* for people; 0: nobody's */
	uint32_t writing; /* frame + 1 that is being written to the file; its stripe is held */
	uint32_t updating; /* frame + 1 that is being put in another's place */
	uint32_t zero;
	uint64_t updates_then; /* what POOL_UPDATES is if that has happened */
	uint64_t count[POOL_COUNTS];
} __attribute__((aligned(64)));

/* The beginning of the region. What is not said to change is constant once `magic` is there. */
struct pool {
	uint64_t magic;
	uint64_t size; /* of all, bytes */
	uint64_t frames, pages;
	uint64_t bucket_shift; /* 64 - log2 of the number of buckets */
	uint32_t records, batch;
	uint32_t format, direct;
	uint64_t started_ns; /* CLOCK_MONOTONIC */
	uint64_t until_ns; /* when it is to end; 0: when it is told to */
	struct pool_frame *frame;
	uint64_t *bucket;
	char *content;
	struct pool_record *record;
	uint32_t *stripe; /* 0, or index of the owner's record + 1, | POOL_STRIPE_WAITED */
	char path[256]; /* of the file, its end, for people */
	uint64_t hand __attribute__((aligned(64))); /* the clock's; atomic addition */
	uint64_t buried __attribute__((aligned(64))); /* atomic; for people */
	uint32_t stop; /* backends are to leave */
	uint32_t wrong; /* pages that were seen to be wrong */
};

#define POOL_MAGIC 0x6c6f6f706f646e70ull /* "pndopool" */
#define POOL_STRIPE_WAITED 0x80000000u

/* This process's handle on a pool. record NULL: a visitor, who can bury and look, and pins nothing. */
struct pool_client {
	struct pool *pool;
	struct pando_region *region;
	const struct file *file;
	struct pool_record *record;
	uint32_t index; /* of the record */
	int write_error; /* of the last round of the clock */
	uint32_t ready, removed, held; /* how many there are in each list: all OWNED by us */
	uint32_t ready_list[POOL_OWN]; /* may be filled */
	uint32_t removed_list[POOL_OWN]; /* are to be unlinked */
	uint32_t held_list[POOL_OWN]; /* unlinked, grace period over; pinned when we looked */
	uint64_t *pinned; /* a bit for each frame; all 0 between looks */
	uint32_t *seen; /* the frames whose bits are set */
};

/* --- pool.c --- */

/* Bytes of the region for so many frames and records. */
uint64_t pool_size(uint64_t frames, uint32_t records);
/* The fewest frames with which so many backends cannot be in each other's way for good. */
uint64_t pool_frames_min(uint32_t backends);
/* Lays a pool out at the base of a new region (all zeros) of at least pool_size() bytes. */
void pool_format(void *base, const struct file *f, uint64_t frames, uint32_t records,
		 uint32_t backends);
/* The pool in an open region. NULL: there is none; file_error() says why. */
struct pool *pool_in(struct pando_region *r);
uint64_t pool_sum(const struct pool *p, enum pool_count what);

struct pool_usage {
	uint64_t linked, dirty, free, owned, removed; /* frames */
	uint64_t pins, backends,
		stripes; /* places that name a frame; records with a pid; held stripes */
};
/* Counts by walking; of a pool with very many frames, a part of them, scaled up. */
void pool_look(const struct pool *p, struct pool_usage *u);
/*
 * Verifies every invariant of a pool in which nobody is working: no pin, no stripe held, no frame owned,
 * each frame free, in the table once, or removed. 0, or -EUCLEAN with a sentence in file_error().
 */
int pool_validate(struct pool_client *c);

/* --- client.c --- */

/* Makes a visitor of the pool in region r. -ENOMEM. */
int pool_visit(struct pool_client *c, struct pool *p, struct pando_region *r, const struct file *f);
/* Gets a visitor a record. -EUSERS: none is free. -ECONNRESET: no place among the readers. */
int pool_enter(struct pool_client *c);
/* Gives back what the client has; no pin may be left. A visitor just frees its memory. */
void pool_leave(struct pool_client *c);

/* --- access.c --- */

/*
 * The page's content, pinned in place `hold` (below POOL_PINS_USER, and empty), until pool_unpin(). It
 * never changes. NULL: file_error() says why (the file cannot be read, the page is torn); or
 * the pool is stopping, with an empty sentence.
 */
static inline const void *pool_pin(struct pool_client *c, uint64_t page, unsigned int hold);
static inline void pool_unpin(struct pool_client *c, unsigned int hold);

/* Makes the next version out of a copy of the last one. Number, version and checksum are set after it. */
typedef void (*pool_change_fn)(struct page *fresh, void *arg);
/* Returns 0 or a negative errno, with nothing changed. */
int pool_update(struct pool_client *c, uint64_t page, pool_change_fn change, void *arg);

/* Writes back what is dirty. */
int pool_flush(struct pool_client *c, file_progress_fn progress, void *arg);

/* What pool_pin() does with a miss. */
const void *pool_load(struct pool_client *c, uint64_t page, unsigned int hold);

/* --- evict.c --- */

/* An empty frame, OWNED by the client. NULL: the pool is stopping, or the file cannot be written. */
struct pool_frame *pool_take(struct pool_client *c);
/* Gives an unused one back to the client's own. */
void pool_put_back(struct pool_client *c, struct pool_frame *f);
/*
 * Claims a frame that is removed from the table. Called in a read section in which it was seen COMMON, or not yet
 * removed. A process that is killed after the claim leaves it OWNED and removed: bury.c, step 3.
 */
void pool_gather(struct pool_client *c, struct pool_frame *f);
/* Makes what was gathered ready if it is worth a grace period. */
void pool_collect(struct pool_client *c);
/* Writes page's frame back if there is a dirty one. */
int pool_clean(struct pool_client *c, uint64_t page);

/* --- stripe.c --- */

void pool_stripe_lock(struct pool_client *c, uint64_t page);
void pool_stripe_unlock(struct pool_client *c, uint64_t page);

/* --- bury.c --- */

/* Locks a record whose owner is gone, or which has none, after having buried the dead. */
bool pool_own(struct pool_client *c, uint32_t index);
/* Buries the owner of this record, if it is dead. True: the record is nobody's now. */
bool pool_bury(struct pool_client *c, uint32_t index);
/* All of the dead. Returns how many. */
unsigned int pool_bury_all(struct pool_client *c);

/* --- table.c: all in a read section, save where nobody else is --- */

void table_insert(struct pool *p, struct pool_frame *f);
/* Puts fresh in old's place. False: old is not in the table any more. */
bool table_replace(struct pool_frame *old, struct pool_frame *fresh);
/* Removes f. False: it was removed already. */
bool table_remove(struct pool_frame *f);
/* Unlinks all removed frames from the page's chain. */
void table_unlink(struct pool *p, uint64_t page);
/* Is f in the table? */
bool table_has(struct pool *p, const struct pool_frame *f);

/* --- what is inline --- */

static inline uint64_t *pool_bucket(const struct pool *p, uint64_t page)
{
	return &p->bucket[page * 0x9e3779b97f4a7c15ull >> p->bucket_shift];
}

static inline uint32_t pool_number(const struct pool *p, const struct pool_frame *f)
{
	return (uint32_t)(f - p->frame);
}

static inline void *pool_content(const struct pool *p, const struct pool_frame *f)
{
	return p->content + (uint64_t)pool_number(p, f) * PAGE_SIZE;
}

static inline struct pool_frame *pool_at(uint64_t link)
{
	return (struct pool_frame *)(uintptr_t)(link & ~POOL_REMOVED);
}

/* The frame of a page, or NULL. In a read section. */
static inline struct pool_frame *pool_find(const struct pool *p, uint64_t page)
{
	struct pool_frame *f = pool_at(pando__load_acquire(pool_bucket(p, page)));

	while (f) {
		/* Pairs with the compare-and-swaps of table.c: what it leads to is complete. */
		const uint64_t next = pando__load_acquire(&f->next);

		if (f->page == page && !(next & POOL_REMOVED))
			return f;
		f = pool_at(next);
	}
	return NULL;
}

static inline void pool_add(struct pool_client *c, enum pool_count what, uint64_t n)
{
	/* Nobody else writes it: no atomic addition is needed. */
	pando__store_relaxed(&c->record->count[what],
			     pando__load_relaxed(&c->record->count[what]) + n);
}

static inline void pool_hold(struct pool_client *c, unsigned int hold, const struct pool_frame *f)
{
	/* Seen by who waits for a grace period, because the read section's end comes after it. */
	pando__store_release(&c->record->pin[hold], pool_number(c->pool, f) + 1);
}

static inline void pool_unpin(struct pool_client *c, unsigned int hold)
{
	/* Release: what was read from the page was read before. Pairs with pinned_frames() in evict.c. */
	pando__store_release(&c->record->pin[hold], 0u);
}

/* Finds and pins, or NULL. */
static inline struct pool_frame *pool_try(struct pool_client *c, uint64_t page, unsigned int hold)
{
	struct pool_frame *f;

	if (pando_read_lock(c->region) < 0)
		return NULL;
	f = pool_find(c->pool, page);
	if (f) {
		PANDO_INJECT("pool.pin.found");
		pool_hold(c, hold, f);
		PANDO_INJECT("pool.pin.held");
	}
	pando_read_unlock(c->region);
	return f;
}

static inline const void *pool_pin(struct pool_client *c, uint64_t page, unsigned int hold)
{
	struct pool_frame *f = pool_try(c, page, hold);
	uint32_t usage;

	if (__builtin_expect(!f, 0))
		return pool_load(c, page, hold);
	/* Pinned, so it may be looked at outside of the section. Written seldom: most are at the top. */
	usage = pando__load_relaxed(&f->usage);
	if (usage < POOL_USAGE)
		pando__store_relaxed(&f->usage, usage + 1);
	pool_add(c, POOL_HITS, 1);
	return pool_content(c->pool, f);
}

#endif
