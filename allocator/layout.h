/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The on-memory layout of a region's heap.
 *
 * All of it lies in the region's heap mapping, which every writing client can write: the broker
 * believes nothing here (bounds before use, no pointers). Zeroes are a valid, empty heap, except for
 * the header; so metadata needs no initialisation, and memory that is returned to the system reads
 * as what it should.
 *
 *	base	header			one page
 *		client lines		64 B for each client that can hold objects
 *		span table		32 B for each span
 *		page table		4 B for each page
 *		object words		2 B for each granule (6.25 % of the region)
 *	first	spans			256 KiB each: 8 slabs of 32 KiB, 64 pages of 4 KiB
 *	end
 *
 * In a region that takes memory with use the tables lie behind the spans, at the end of the maximum
 * size, and `first` is the second span (geometry.c). Tables are indexed by the offset from `base`, so
 * their parts that would describe the tables themselves are never touched. A span that holds a part
 * of header or tables is not used.
 *
 * The truth about an object is one 16-bit word, that of its first granule; every change of it is one
 * atomic store or compare-and-swap, and after a death everything else is rebuilt from these words:
 *
 *	   +--------- refill ---------+           +------------ transfer -----------+
 *	   v                          |           v                                 |
 *	 FREE --refill--> CACHED --alloc--> LIVE --transfer--> SHARED|holder --share--> SHARED|REGION
 *	   ^                ^  |              |                     |                    |
 *	   |                |  +---flush----> FREE                  |                    |
 *	   |                +-----free by the owner---+-------------+--------------------+
 *	   |                                          | free by anybody else
 *	   +---------- collect, by the owner ---- REMOTE
 *
 *	FREE	nobody's; in a slab, an object that can be refilled
 *	CACHED	in a magazine of the span's owner
 *	LIVE	private to the span's owner
 *	SHARED	belongs to the client in the upper bits, to the region, or to the directory of names
 *	REMOTE	freed by somebody who does not own the span: its owner collects it
 *
 * Who may change it: FREE, CACHED: the owner of the span alone, with plain stores. LIVE: the owner
 * with a plain store to CACHED; anybody by CAS to REMOTE (a free), the owner by CAS to SHARED.
 * Frees by others may be plain stores as well, under an intent and with the broker's help (remote.c).
 * SHARED: its holder (anybody, where it is the region's; a writer of the directory, where it is that
 * one's) by CAS; the owner, if that is its holder or it is the region's, by CAS to CACHED. REMOTE: the owner, by CAS (to FREE in slabs, to CACHED
 * for a large object that it is about to free), or the broker, by CAS. A word of an interior granule is FREE in slabs. In a large object the three words
 * after the first one hold its length (see LENGTH), stored before LIVE and cleared after it; the
 * others are FREE.
 *
 * If the owner is killed, the broker is the owner of its spans until they are free or adopted.
 */
#ifndef PANDO_ALLOCATOR_LAYOUT_H
#define PANDO_ALLOCATOR_LAYOUT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define PANDO__HEAP_MAGIC 0x7061656f646e6170ull /* "pandoeap" */
#define PANDO__HEAP_VERSION 4u

#define PANDO__GRANULE 32u
#define PANDO__PAGE 4096u
#define PANDO__SLAB (32u << 10)
#define PANDO__SPAN (256u << 10)
#define PANDO__SPAN_PAGES (PANDO__SPAN / PANDO__PAGE)
#define PANDO__SPAN_SLABS (PANDO__SPAN / PANDO__SLAB)
#define PANDO__SLAB_PAGES (PANDO__SLAB / PANDO__PAGE)
#define PANDO__SLAB_GRANULES (PANDO__SLAB / PANDO__GRANULE)
/* Objects up to this size come from slabs, larger ones from jemalloc. */
#define PANDO__SMALL_MAX 1024u

/* Clients are named by slot + 1, in 14 bits of an object's word and 16 of a page's. */
#define PANDO__HEAP_CLIENTS 16382u /* slots from here on cannot have a heap front */
#define PANDO__HOLDER_REGION 0x3fffu
#define PANDO__HOLDER_DIRECTORY 0u /* published: nobody may free it (libshm/directory) */

/* Object words: two bits of code, 14 of payload. */
#define PANDO__OBJECT_FREE 0x0000u
#define PANDO__OBJECT_CACHED 0x0004u
#define PANDO__OBJECT_LIVE 0x0001u
#define PANDO__OBJECT_REMOTE 0x0002u
#define PANDO__OBJECT_SHARED(holder) ((uint16_t)(0x0003u | (holder) << 2))
#define PANDO__OBJECT_IS_SHARED(word) (((word)&3u) == 3u)
#define PANDO__OBJECT_HOLDER(word) ((unsigned int)(word) >> 2)
/* No client's: it does not go when one dies. */
#define PANDO__OBJECT_OF_NOBODY(word)                                                              \
	((word) == PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION) ||                                   \
	 (word) == PANDO__OBJECT_SHARED(PANDO__HOLDER_DIRECTORY))
/*
 * LENGTH: words 1, 2 and 3 of a large object hold its usable size in granules, 13 bits each, lowest
 * first. They look like no other word.
 */
#define PANDO__LENGTH_WORDS 3u
#define PANDO__OBJECT_LENGTH(granules, i)                                                          \
	((uint16_t)(0x8002u | (((granules) >> (13 * (i))) & 0x1fffu) << 2))
#define PANDO__OBJECT_IS_LENGTH(word) (((word)&0x8003u) == 0x8002u)
#define PANDO__LENGTH_PART(word, i) ((uint64_t)(((word) >> 2) & 0x1fffu) << (13 * (i)))

/*
 * Page table: class, flags, owner (slot + 1, ORPHAN, or 0: the page is in no slab and no large
 * object). Written by the owner of the span; one load tells whose an address is, and what lies there.
 * All pages of a slab have the same entry, save for BUSY, which stands in the first.
 */
#define PANDO__PAGE_CLASS(entry) ((entry)&0xffu)
#define PANDO__PAGE_FLAGS(entry) ((entry)&0xff00u) /* PANDO__PAGE_*, where they stand */
#define PANDO__PAGE_OWNER(entry) ((entry) >> 16)
#define PANDO__PAGE_ENTRY(owner, class, flags)                                                     \
	((uint32_t)(owner) << 16 | (uint32_t)(class) | (uint32_t)(flags))
/* Two pages of one owner and class. */
#define PANDO__SAME_PAGE(a, b) ((((a) ^ (b)) & ~0xff00u) == 0)
#define PANDO__OWNER_ORPHAN 0xffffu
#define PANDO__CLASS_NONE 0u
#define PANDO__CLASS_LARGE 0xffu /* objects of jemalloc; 1..n: a slab of that class */
#define PANDO__PAGE_LOOSE 0x100u /* LARGE, but its jemalloc died: pages go straight to the span */
/*
 * In the entry of a slab's first page. Its owner refills from it between a compare-and-swap of an
 * entry without BUSY and EMPTYING to one with BUSY, and a store. The broker, for an owner who does
 * nothing, takes the memory of a slab whose objects are all FREE in the same way with EMPTYING, and
 * leaves EMPTY: who refills next commits the slab's memory first and clears that.
 */
#define PANDO__PAGE_BUSY 0x200u
#define PANDO__PAGE_EMPTYING 0x400u
#define PANDO__PAGE_EMPTY 0x800u
/*
 * In orphans: a page, and all before it in its span, that belong to a large object which begins in
 * an earlier span. A span whose first or last page is LARGE cannot be adopted: part of such an
 * object may lie in it, which only the broker can free then.
 */
#define PANDO__PAGE_INNER 0x1000u

/*
 * Span words: owner (as above), state, and a count that makes each change a new value.
 *
 *	FREE, RESERVE --take--> OWNED --empty--> RESERVE
 *	RESERVE --purge--> ABSENT --its memory is given back--> FREE
 *	OWNED --the owner died--> SWEEPING --> FREE, RESERVE, ORPHAN --adopt--> OWNED
 *	FREE, RESERVE --the region shrinks--> ABSENT --the region grows--> FREE
 *
 * An empty span of a region that takes memory with use goes to RESERVE: who takes it soon finds its
 * memory still there; after a while the broker (or a trim) purges it. In other regions there is no
 * RESERVE. Either way the words of its objects and its part of the page table are zero.
 *
 * ABSENT with an owner is being purged by that one; if it is killed there, the broker gives the
 * memory back (again) and sets FREE. ABSENT without one lies beyond the committed size.
 */
enum pando__span_state {
	PANDO__SPAN_FREE =
		0, /* anybody may take it; it has no memory where memory comes with use */
	PANDO__SPAN_OWNED = 1,
	PANDO__SPAN_ORPHAN = 2, /* its owner died, objects live in it: may be adopted */
	PANDO__SPAN_SWEEPING = 3, /* the broker is at it */
	PANDO__SPAN_ABSENT = 4, /* beyond the committed size, or being given back */
	PANDO__SPAN_RESERVE = 5 /* anybody may take it; its memory is still there */
};
#define PANDO__OWNER_BROKER 0xfffeu /* of a span that the broker purges */
#define PANDO__SPAN_STATE(word) ((enum pando__span_state)((word)&0xffu))
#define PANDO__SPAN_OWNER(word) ((unsigned int)((word) >> 8) & 0xffffu)
#define PANDO__SPAN_COUNT(word) ((word) >> 24)
#define PANDO__SPAN_WORD(owner, state, count)                                                      \
	((uint64_t)(state) | (uint64_t)(owner) << 8 | (uint64_t)(count) << 24)

/*
 * Lending: memory goes back to the system by the broker's hand. The owner of a span lends it the free
 * pages there; with its next sweep the broker gives their memory back. An orphan's are lent by the
 * broker to itself. `lent`, by compare-and-swap:
 *
 *	NONE --the owner lends, or the broker for an orphan--> LENT --the owner wants them--> NONE
 *	LENT --the broker--> BUSY --their memory is given back--> NONE
 *	BUSY --the span is empty, its owner has left it--> LEFT|count --the broker releases it--> NONE
 *
 * Nobody sets bits in `pages` but while it is NONE. So an owner never waits: what is BUSY is passed
 * over. The count of LEFT is the span word's (its lowest bits), by which a successor of the broker knows
 * whether it has been released. A broker that is killed leaves BUSY or LEFT: its successor ends both.
 */
enum pando__lending { PANDO__LENT_NONE, PANDO__LENT, PANDO__LENT_BUSY, PANDO__LENT_LEFT };
#define PANDO__LENDING(lent) ((enum pando__lending)((lent)&3u))
#define PANDO__LEFT(count) ((uint16_t)(PANDO__LENT_LEFT | (count) << 2))

#define PANDO__NODE_WHOLE 0x80000000u /* RESERVE, and all of it has memory */
#define PANDO__NODE_BARE 0x40000000u /* just taken, without memory */
#define PANDO__NODE(node) ((node)&0xffffffu)

struct pando__span {
	/*
	 * Who owns it. Changed by CAS only: FREE or RESERVE to OWNED by who takes it, ORPHAN to
	 * OWNED by who adopts it, OWNED to RESERVE or FREE by its owner, RESERVE by ABSENT to FREE
	 * by who purges it, and all from a dead owner by the broker.
	 */
	uint64_t word;
	/*
	 * One bit for each page in a slab or large object. Set by the owner, cleared by whoever
	 * frees the pages, both by atomic or/and. After a death: rebuilt.
	 */
	uint64_t pages;
	/*
	 * Hint: one bit for each slab-sized eighth of the span in which an object may be REMOTE.
	 * Set, after the object's word, by who frees, who looks after that whom the page table
	 * names and tells it: its line, or orphan_remote. Taken by who collects. Who changes the
	 * names in the page table looks at these bits afterwards (both with a full barrier in
	 * between: one of the two sees the other). Lost bits are put back by the broker from the
	 * intent of a freer that died in between.
	 *
	 * Bits 8 to 15, one for each eighth as well: the broker has made words FREE there, of an
	 * owner that lives. Set after that, taken with the others by the owner, who counts anew.
	 */
	uint32_t remote;
	/*
	 * Hint: 1 if an object here may be SHARED with a client. Set after the object's word, while
	 * the TRANSFER intent stands and before the receiver is looked up again. While the broker
	 * looks whether there is one it is 2, which becomes 0 or 1; who finds anything but 1 stores 1.
	 */
	uint16_t held;
	uint16_t lent; /* NONE but in OWNED and ORPHAN spans. See Lending */
	/* Hints, written by the owner: since when it is RESERVE (CLOCK_MONOTONIC, ms), */
	uint32_t since;
	/* NUMA node + 1 of who took it without memory (0: not known), and what is known of that. */
	uint32_t node;
};

#define PANDO__SPAN_REMOTE(offset) (1u << (offset) / PANDO__SLAB % PANDO__SPAN_SLABS)
#define PANDO__SPAN_RECOUNT(offset) (PANDO__SPAN_REMOTE(offset) << 8)

/* What others tell a client; 64 bytes, so that nobody shares its line. */
struct pando__heap_client {
	/* Hint: 1 if a span of this client has a remote bit. Set after that, taken by the client. */
	uint32_t remote;
	uint32_t spans; /* that this client owns; written by it, recounted by the broker */
	/* The same for bits 8 to 15 of `remote` in a span of this client; set by the broker. */
	uint32_t recount;
	uint32_t reserved0; /* 0 */
	uint64_t reserved[6]; /* 0 */
};

struct pando__heap {
	/* Compare-and-swapped from 0 after the fields, which everybody computes alike. */
	uint64_t magic;
	uint32_t version;
	uint32_t granule;
	/* Offsets from the region's base; fixed. */
	uint64_t clients, spans, page_table, objects, first, end;
	uint64_t reserved0[56];
	/* Hints, each on a line of its own. */
	struct {
		uint64_t value;
		uint64_t reserved[7];
	} search; /* offset of a span below which none is likely to be free */
	struct {
		uint64_t value;
		uint64_t reserved[7];
	} orphans; /* spans that may be ORPHAN; recounted by the broker */
	struct {
		uint64_t value;
		uint64_t reserved[7];
	} orphan_remote; /* 1: some object in an orphan may be REMOTE */
	struct {
		uint64_t value;
		uint64_t reserved[7];
	} reserves; /* 1: some span may be RESERVE or LENT. Set after that, taken by who purges */
	struct {
		uint64_t value;
		uint64_t reserved[7];
	} trailers; /* 1: some front is or was of the debug form (debug.c) */
	uint8_t reserved1[PANDO__PAGE - 512 - 320];
};

static_assert(sizeof(struct pando__span) == 32, "layout");
static_assert(sizeof(struct pando__heap_client) == 64, "one cache line");
static_assert(offsetof(struct pando__heap, search) == 512, "layout");
static_assert(sizeof(struct pando__heap) == PANDO__PAGE, "one page");

/*
 * Intents: what a thread is about to do to an object in a span of another owner, so that the broker
 * can finish or undo it. They lie in the client's slot page, which nobody else writes; one for each
 * thread. Set before the object's word changes (`to` first), cleared when nothing remains to be done.
 *
 *	FREE		the object's word becomes REMOTE; then the hints are set, or `to` stands for them.
 *			Left by a dead client: the broker sets the hints. If the owner dies meanwhile,
 *			and the word is LIVE, the broker makes it SHARED with the client that is freeing
 *			it, which may then store REMOTE at any time (remote.c).
 *	TRANSFER	the object's word names the receiver; then the receiver is looked up again, since
 *			it may have died before that: then the word becomes REMOTE. Left by a dead
 *			client: where the word names the receiver's slot and the receiver is not attached
 *			any more, the broker frees it; where it is REMOTE, the broker sets the hints.
 *
 * `to`, where no TRANSFER stands, may name a slab (UNTOLD) in which that thread has made words REMOTE
 * since it last set hints. Stored before these words, taken away after hints are set. Left by a dead
 * client: the broker sets them; it does so as well now and then for the living.
 *
 * A slot that a TRANSFER of a living client names is not given to another client: so whatever names
 * a slot, names the client that has it now, or the one that had it last and is being reaped.
 */
#define PANDO__INTENTS 96u /* further threads take turns on the last one */
#define PANDO__INTENTS_OFFSET 2560u /* of the first one in struct pando__slot: to the page's end */
enum pando__intent_kind {
	PANDO__INTENT_NONE = 0,
	PANDO__INTENT_FREE = 1,
	PANDO__INTENT_TRANSFER = 2
};
struct pando__intent {
	uint64_t what; /* offset of the object from base, a multiple of 32, plus the kind */
	uint64_t to; /* TRANSFER: the receiver, slot + 1 | generation << 16; else UNTOLD, or old */
};
#define PANDO__INTENT_UNTOLD(slab) (1ull << 63 | (uint32_t)(slab)) /* offset / PANDO__SLAB */
#define PANDO__INTENT_IS_UNTOLD(to) (((to) >> 32) == 1ull << 31)
#define PANDO__INTENT(kind, offset) ((uint64_t)(offset) | (uint64_t)(kind))
#define PANDO__INTENT_KIND(what) ((enum pando__intent_kind)((what)&31u))
#define PANDO__INTENT_OFFSET(what) ((what) & ~31ull)

#endif
