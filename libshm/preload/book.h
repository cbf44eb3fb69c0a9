/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The shim's book: which addresses of this process are a region's, and which of those the program
 * still believes to be mapped.
 *
 * The program was promised an anonymous mapping of 4 KiB pages. What is there is a region, which is
 * larger than what was asked for (its reserve) and, with huge pages, can be unmapped and protected
 * only in whole granules. The book holds both views at once. Every address inside an entry is one
 * of
 *
 *	LIVE		mapped for the program and for the kernel
 *	PENDING		not mapped for the program, but still the region's for the kernel: the reserve behind
 *			the program's length, and what was unmapped where the granule has live neighbours
 *	FOREIGN		no longer the region's (unmapped, or covered by MAP_FIXED), as all outside of entries
 *
 *	LIVE --(munmap)--> PENDING --(its granule has nothing live)--> FOREIGN
 *	LIVE, PENDING --(mmap with MAP_FIXED on top)--> FOREIGN
 *
 * Invariants (book_valid() checks them): entries are sorted and disjoint; an entry's spans are
 * sorted, disjoint, not empty, within [base, base + reach), and no two that touch are alike; each
 * granule is wholly the region's or wholly foreign, except that 4 KiB granules make this trivially
 * so.
 *
 * The module is plain bookkeeping: it calls nothing but mmap for its own storage (never malloc,
 * which a program may be inside of when it calls munmap), takes no lock and keeps no state outside
 * of struct book. Pointers to entries are valid until the next book_add() or book_remove().
 */
#ifndef PANDO_PRELOAD_BOOK_H
#define PANDO_PRELOAD_BOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BOOK_PAGE 4096u
#define BOOK_FEW 4u /* spans that need no storage of their own */

enum book_kind { BOOK_FOREIGN = 0, BOOK_LIVE = 1, BOOK_PENDING = 2 };

struct book_span {
	uint64_t start, end;
	uint32_t kind; /* BOOK_LIVE or BOOK_PENDING */
	uint32_t prot; /* PROT_ bits as the kernel has them; of PENDING: 0 */
};

struct book_entry {
	uint64_t base, reach; /* the region's address and its maximum size, bytes */
	uint64_t
		granule; /* bytes; the kernel's unit here, counted from base; reach: see book_whole() */
	void *region; /* the caller's */
	int32_t pid; /* of the process that added it */
	bool shared; /* a fork() happened since: another process may have it too */
	bool covered; /* something foreign may be mapped inside it */
	uint32_t nspans, capacity; /* capacity 0: spans are in few[] */
	struct book_span few[BOOK_FEW];
	struct book_span *many;
};

struct book {
	struct book_entry *entries; /* sorted by base */
	uint32_t n, capacity;
};

/* A piece of a request: [start, end) is all of one kind, and of one entry (NULL if FOREIGN). */
struct book_piece {
	uint64_t start, end;
	enum book_kind kind;
	uint32_t prot;
	struct book_entry *entry;
};

/*
 * Adds a region: [base, base + length) LIVE with prot, the rest up to reach PENDING. length is
 * rounded up to 4 KiB. Returns 0, -ENOMEM, or -EEXIST if an entry is there already.
 */
int book_add(struct book *b, uint64_t base, uint64_t length, uint64_t reach, uint64_t granule,
	     uint32_t prot, void *region);

/* Takes an entry out and frees its storage. */
void book_remove(struct book *b, struct book_entry *e);

/* Frees everything. */
void book_clear(struct book *b);

/* The first entry that overlaps [start, end), or NULL. */
struct book_entry *book_find(struct book *b, uint64_t start, uint64_t end);

/*
 * The first piece of [start, end): fills *piece and returns true, or returns false if the range is
 * empty. Call again with start = piece->end. Foreign pieces reach as far as they can.
 */
bool book_next(struct book *b, uint64_t start, uint64_t end, struct book_piece *piece);

/*
 * Sets [start, end), clipped to the entry, to a kind. Returns 0, or -ENOMEM with nothing changed.
 * Splitting a span may need storage; making a whole entry FOREIGN never does.
 */
int book_mark(struct book_entry *e, uint64_t start, uint64_t end, enum book_kind kind,
	      uint32_t prot);

/* True if the program has nothing left of the entry. */
bool book_all_gone(const struct book_entry *e);

/*
 * The granules that [start, end) touches and in which nothing is live any more: the range that can
 * now be unmapped for good, in which only PENDING pieces are the region's. Returns false if there
 * is none.
 */
bool book_releasable(const struct book_entry *e, uint64_t start, uint64_t end, uint64_t *lo,
		     uint64_t *hi);

/*
 * Widens [start, end) to whole granules, which the kernel can change, by taking in what is PENDING
 * around it (at the entry's live end: the whole reserve, so that huge page tables stay shareable).
 * Returns false if a granule at an edge has other live pages: then the kernel cannot do what is
 * asked.
 */
bool book_widen(const struct book_entry *e, uint64_t start, uint64_t end, uint64_t *lo,
		uint64_t *hi);

/*
 * True if the kernel can only unmap all of the region, and can not change its protection (msharefs).
 */
static inline bool book_whole(const struct book_entry *e)
{
	return e->granule == e->reach;
}

/* Checks the invariants. For tests and debug builds. */
bool book_valid(const struct book *b);

#endif
