/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Pages: runs of them in this client's spans, for slabs and for jemalloc.
 *
 * A span's shared word `pages` says which of its 64 pages are in use, the page table for what. A run
 * up to a span's length lies in one span, the one that has just enough room (best fit: those with
 * the smallest longest gap first, the lowest place in it), or begins at the end of the span that was
 * taken last and goes on in the next one: else objects of half a span and some more would waste the
 * other half. A longer one lies in spans of its own, one behind the other, of which the last may serve
 * others with its rest.
 *
 *	alloc	bits (atomic or), then page-table entries
 *	free	entries, then memory back or not, then bits (atomic and); an empty span goes back
 *
 * Killed anywhere in that: bits or entries too many, in spans of a dead client. The broker rebuilds
 * both from the words of objects, and there is no object in such a run.
 *
 * Memory. Runs are not committed here: the caller does that, which costs little where memory is
 * there already. Freed pages of a span in use keep their memory, and are taken first. When there are
 * more of them than a bound (DIRTY_LEAST, or an eighth of what is in use), some are lent to the broker,
 * which gives their memory back within a second or two (see Lending in layout.h); who needs them sooner
 * takes them back. So what a client has beyond its needs is bounded however long it sleeps, and
 * whoever frees waits for nobody. Spans that are empty keep all their memory for a while, and are given
 * back by the broker as well (see span.c).
 *
 * What this process knows about its spans lies in private tables: a node for each span of the
 * region, touched only for those that it has had, in lists by the length of the longest gap. It is a
 * hint as far as others may clear bits as well (the broker, for an owner who does nothing): gaps may
 * be longer than noted here, never shorter, since only the owner sets bits. When no gap is noted that
 * would do, a few nodes are looked at again before a new span is taken.
 *
 * All under pages_lock but page-table entries and system calls: what a run consists of belongs to one
 * thread between the two bit operations.
 */
#include "debug.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#define DIRTY_LEAST 512u /* pages: 2 MiB */
#define LOOK_AGAIN 16u /* nodes */
#define PASSES 64u /* calls for which orphans that did not suit are not looked at again */
#define CROSSING 8u /* pages: runs up to that length lie in one span */
#define PROBES 4u /* nodes of one list, where alignment may spoil the fit */

struct node {
	uint64_t dirty; /* free pages that may have memory */
	uint64_t sure; /* those of them that have; means nothing while the span is lent */
	uint64_t lent; /* while it is lent: free pages that were dirty before that */
	uint32_t next, previous; /* in a list; 0: end (span 0 holds tables) */
	uint32_t place; /* in front->own */
	uint8_t longest; /* gap, in pages; the list that it is in */
	bool ours;
	bool is_lent;
	uint8_t reserved;
};

struct pando__runs {
	uint64_t lists; /* bit n: list n + 1 is not empty */
	uint32_t head[PANDO__SPAN_PAGES + 1]; /* by longest gap; list 0: full spans */
	uint32_t recent; /* the span that was taken last, if it is still ours; 0: none */
	uint32_t look; /* where to look again, in front->own */
	/* By class: how many orphans there were when none had a slab of it, and calls since then. */
	uint64_t barren[PANDO__CLASSES];
	uint32_t passed[PANDO__CLASSES];
	uint32_t turn; /* whose free pages gave their memory back last, likewise */
	uint64_t used, dirty; /* pages, in all spans; dirty: see struct node */
	size_t bytes; /* of nodes */
	struct node *nodes; /* by span */
};

static unsigned int ones(uint64_t bits)
{
	return (unsigned int)__builtin_popcountll(bits);
}

/* n bits from `first`; n up to 64. */
static uint64_t mask_of(unsigned int first, unsigned int n)
{
	return (n >= 64 ? ~0ull : (1ull << n) - 1) << first;
}

/* Bit i is set where bits i to i + n - 1 of `gaps` are. */
static uint64_t starts(uint64_t gaps, unsigned int n)
{
	for (unsigned int have = 1; have < n;) {
		unsigned int more = have < n - have ? have : n - have;

		gaps &= gaps >> more;
		have += more;
	}
	return gaps;
}

static unsigned int longest_of(uint64_t gaps)
{
	unsigned int n = 0;

	for (; gaps; gaps &= gaps >> 1)
		n++;
	return n;
}

/* Places that are multiples of `step` pages: a power of two up to 64. */
static uint64_t places(unsigned int step)
{
	static const uint64_t by_log[] = {
		~0ull,
		0x5555555555555555ull,
		0x1111111111111111ull,
		0x0101010101010101ull,
		0x0001000100010001ull,
		0x0000000100000001ull,
		1ull,
	};

	return by_log[__builtin_ctz(step)];
}

/* ---- nodes ------------------------------------------------------------------------------------ */

static uint64_t gaps_of(const struct pando__front *f, uint32_t index)
{
	/* Pairs with whoever freed pages there: their entries were cleared before. */
	return ~pando__load_acquire(&f->view.spans[index].pages);
}

static void unlist(struct pando__runs *r, uint32_t index)
{
	struct node *n = &r->nodes[index];

	*(n->previous ? &r->nodes[n->previous].next : &r->head[n->longest]) = n->next;
	if (n->next)
		r->nodes[n->next].previous = n->previous;
	if (n->longest && !r->head[n->longest])
		r->lists &= ~(1ull << (n->longest - 1));
}

static void enlist(struct pando__runs *r, uint32_t index, unsigned int longest)
{
	struct node *n = &r->nodes[index];

	n->longest = (uint8_t)longest;
	n->previous = 0;
	n->next = r->head[longest];
	if (n->next)
		r->nodes[n->next].previous = index;
	r->head[longest] = index;
	if (longest)
		r->lists |= 1ull << (longest - 1);
}

static void relist(struct pando__front *f, uint32_t index)
{
	const unsigned int longest = longest_of(gaps_of(f, index));

	if (longest == f->runs->nodes[index].longest)
		return;
	unlist(f->runs, index);
	enlist(f->runs, index, longest);
}

static int own_room(struct pando__front *f, uint32_t more)
{
	uint32_t room = f->own_room ? f->own_room : 64;
	uint32_t *own;

	while (room < f->own_count + more)
		room *= 2;
	if (room == f->own_room)
		return 0;
	own = realloc(f->own, room * sizeof(*own));
	if (!own)
		return pando__fail(ENOMEM, "no memory for a list of %u spans", room);
	f->own = own;
	f->own_room = room;
	return 0;
}

/* There is room in f->own. */
static void add_span(struct pando__front *f, uint32_t index)
{
	const uint32_t node = pando__load_relaxed(&f->view.spans[index].node);
	struct node *n = &f->runs->nodes[index];

	n->ours = true;
	/* An orphan may be lent already. */
	n->is_lent = pando__load_acquire(&f->view.spans[index].lent) != PANDO__LENT_NONE;
	n->lent = n->is_lent ? gaps_of(f, index) : 0;
	n->dirty = n->is_lent || (node & PANDO__NODE_BARE) ? 0 : gaps_of(f, index);
	n->sure = node & PANDO__NODE_WHOLE ? n->dirty : 0;
	pando__store_relaxed(&f->view.spans[index].node, PANDO__NODE(node));
	f->runs->dirty += ones(n->dirty);
	n->place = f->own_count;
	f->own[f->own_count++] = index;
	enlist(f->runs, index, longest_of(gaps_of(f, index)));
}

static void drop_span(struct pando__front *f, uint32_t index)
{
	struct node *n = &f->runs->nodes[index];
	uint32_t last = f->own[--f->own_count];

	unlist(f->runs, index);
	if (f->runs->recent == index)
		f->runs->recent = 0;
	f->own[n->place] = last;
	f->runs->nodes[last].place = n->place;
	f->runs->dirty -= ones(n->dirty);
	n->is_lent = false;
	n->ours = false;
}

int pando__pages_init(struct pando__front *f)
{
	const uint64_t spans = f->view.end / PANDO__SPAN;
	struct pando__runs *r = calloc(1, sizeof(*r));

	if (r) {
		r->bytes = spans * sizeof(struct node);
		r->nodes = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	}
	if (!r || r->nodes == MAP_FAILED) {
		free(r);
		return pando__fail(ENOMEM, "no memory for the tables of a heap of %llu spans",
				   (unsigned long long)spans);
	}
	pthread_mutex_init(&f->pages_lock, NULL);
	f->own = NULL;
	f->own_count = f->own_room = 0;
	f->runs = r;
	return 0;
}

void pando__pages_deinit(struct pando__front *f)
{
	if (!f->runs)
		return;
	munmap(f->runs->nodes, f->runs->bytes);
	free(f->runs);
	free(f->own);
	f->runs = NULL;
	f->own = NULL;
	f->own_count = f->own_room = 0;
}

/* ---- lending ---------------------------------------------------------------------------------- */

/* Its free pages, some of which may have memory. */
static void lend(struct pando__front *f, uint32_t index)
{
	struct pando__span *s = &f->view.spans[index];
	struct node *n = &f->runs->nodes[index];

	f->runs->dirty -= ones(n->dirty);
	n->lent = n->dirty;
	n->dirty = 0;
	n->is_lent = true;
	/* Pairs with the broker, who reads `pages` after that; and see pando__purge_hint(). */
	pando__store_seq_cst(&s->lent, PANDO__LENT);
	PANDO_INJECT("heap.pages.lent");
	pando__purge_hint(&f->view);
}

/* True if nothing of the span is lent any more; false if the broker is giving the memory back. */
static bool take_back(struct pando__front *f, uint32_t index)
{
	struct node *n = &f->runs->nodes[index];
	uint16_t lent = PANDO__LENT;

	if (!n->is_lent)
		return true;
	if (pando__cas_acq_rel(&f->view.spans[index].lent, &lent, PANDO__LENT_NONE)) {
		n->dirty |= n->lent;
		f->runs->dirty += ones(n->lent);
	} else if (lent == PANDO__LENT_NONE) {
		n->sure = 0;
	} else {
		return false;
	}
	n->is_lent = false;
	return true;
}

/* ---- taking ----------------------------------------------------------------------------------- */

/* Sets them in use; true if all of them have memory. They are not lent. */
static bool use(struct pando__front *f, uint32_t index, uint64_t mask)
{
	struct node *n = &f->runs->nodes[index];
	const bool there = (n->sure & mask) == mask;

	(void)pando__or_acq_rel(&f->view.spans[index].pages, mask);
	f->runs->used += ones(mask);
	f->runs->dirty -= ones(n->dirty & mask);
	n->dirty &= ~mask;
	n->sure &= ~mask;
	relist(f, index);
	return there;
}

/* n pages at a multiple of `step` in that span: the first page's number, or -1. */
static int fit(struct pando__front *f, uint32_t index, unsigned int n, unsigned int step)
{
	const uint64_t gaps = gaps_of(f, index);
	uint64_t at;

	if (!take_back(f, index))
		return -1;
	at = starts(gaps & f->runs->nodes[index].dirty, n) & places(step);
	if (!at)
		at = starts(gaps, n) & places(step);
	return at ? __builtin_ctzll(at) : -1;
}

/* Best fit among the nodes. The page's number in the region, or -1. */
static int64_t fit_any(struct pando__front *f, unsigned int n, unsigned int step)
{
	struct pando__runs *r = f->runs;

	for (uint64_t lists = r->lists & ~mask_of(0, n - 1); lists; lists &= lists - 1) {
		uint32_t index = r->head[__builtin_ctzll(lists) + 1];

		for (unsigned int i = 0; index && i < PROBES; i++, index = r->nodes[index].next) {
			int at = fit(f, index, n, step);

			if (at >= 0)
				return (int64_t)index * PANDO__SPAN_PAGES + at;
		}
	}
	return -1;
}

static void look_again(struct pando__front *f)
{
	for (unsigned int i = 0; i < LOOK_AGAIN && i < f->own_count; i++) {
		f->runs->look = f->runs->look + 1 < f->own_count ? f->runs->look + 1 : 0;
		relist(f, f->own[f->runs->look]);
	}
}

/*
 * n pages that begin in the span taken last and end in the next one, which is taken for that unless
 * it is ours. The first one's number, or -1: not possible.
 */
static int64_t alloc_across(struct pando__front *f, unsigned int n, bool *there)
{
	const uint32_t index = f->runs->recent;
	const uint64_t busy = index ? pando__load_acquire(&f->view.spans[index].pages) : 0;
	const unsigned int tail = busy ? (unsigned int)__builtin_clzll(busy) : 0;

	if (!tail || tail >= n || index + 1 >= f->view.end / PANDO__SPAN || own_room(f, 1) < 0 ||
	    !take_back(f, index))
		return -1;
	if (!f->runs->nodes[index + 1].ours) {
		if (pando__span_take_at(f, index + 1) <= 0)
			return -1;
		add_span(f, index + 1);
		f->runs->recent = index + 1;
	} else if (gaps_of(f, index + 1) << (PANDO__SPAN_PAGES - (n - tail)) !=
		   ~0ull << (PANDO__SPAN_PAGES - (n - tail))) {
		return -1;
	}
	if (!take_back(f, index + 1))
		return -1;
	*there = use(f, index, mask_of(PANDO__SPAN_PAGES - tail, tail));
	*there &= use(f, index + 1, mask_of(0, n - tail));
	return ((int64_t)index + 1) * PANDO__SPAN_PAGES - tail;
}

/* n pages in one span or two, set in use. The first one's number, or a negative errno. */
static int64_t alloc_within(struct pando__front *f, unsigned int n, unsigned int step, bool *there)
{
	int64_t at = fit_any(f, n, step);

	if (at < 0) {
		look_again(f);
		at = fit_any(f, n, step);
	}
	if (at < 0 && step == 1 && n > CROSSING) {
		at = alloc_across(f, n, there);
		if (at >= 0)
			return at;
	}
	if (at < 0) {
		int64_t index = own_room(f, 1);

		if (index == 0)
			index = pando__span_take(f, 1, PANDO__SPAN);
		if (index < 0)
			return index;
		add_span(f, (uint32_t)index);
		f->runs->recent = (uint32_t)index;
		at = index * PANDO__SPAN_PAGES;
	}
	*there = use(f, (uint32_t)(at / PANDO__SPAN_PAGES),
		     mask_of((unsigned int)(at % PANDO__SPAN_PAGES), n));
	return at;
}

/* The same in spans of their own. */
static int64_t alloc_spans(struct pando__front *f, uint64_t n, uint64_t alignment, bool *there)
{
	const uint32_t count = (uint32_t)((n + PANDO__SPAN_PAGES - 1) / PANDO__SPAN_PAGES);
	int64_t index = own_room(f, count);

	if (index == 0)
		index = pando__span_take(f, count, alignment);
	if (index < 0)
		return index;
	*there = true;
	for (uint32_t i = 0; i < count; i++, n -= PANDO__SPAN_PAGES) {
		add_span(f, (uint32_t)index + i);
		*there &= use(
			f, (uint32_t)index + i,
			mask_of(0, n < PANDO__SPAN_PAGES ? (unsigned int)n : PANDO__SPAN_PAGES));
		PANDO_INJECT("heap.pages.span");
	}
	return index * PANDO__SPAN_PAGES;
}

int64_t pando__pages_take(struct pando__front *f, uint64_t length, uint64_t alignment,
			  unsigned int class, unsigned int flags, bool *there)
{
	const uint64_t n = length / PANDO__PAGE;
	int64_t at;

	if (length > f->view.max_size || alignment > f->view.max_size)
		return pando__fail(ENOMEM, "region \"%.63s\" has no %llu bytes in a row",
				   f->view.ledger->name, (unsigned long long)length);
	pthread_mutex_lock(&f->pages_lock);
	if (n <= PANDO__SPAN_PAGES && alignment <= PANDO__SPAN)
		at = alloc_within(
			f, (unsigned int)n,
			alignment <= PANDO__PAGE ? 1u : (unsigned int)(alignment / PANDO__PAGE),
			there);
	else
		at = alloc_spans(f, n, alignment, there);
	pthread_mutex_unlock(&f->pages_lock);
	if (at < 0)
		return at;
	PANDO_INJECT("heap.pages.bits");
	for (uint64_t i = 0; i < n; i++)
		pando__store_release(&f->view.page_table[(uint64_t)at + i],
				     PANDO__PAGE_ENTRY(f->me, class, flags));
	PANDO_INJECT("heap.pages.entries");
	return at * PANDO__PAGE;
}

int64_t pando__pages_alloc(struct pando__front *f, uint64_t length, uint64_t alignment,
			   unsigned int class)
{
	bool there;

	return pando__pages_take(f, length, alignment, class, 0, &there);
}

/* ---- giving back ------------------------------------------------------------------------------ */

/* Whoever takes the empty span next shall know whether all of it has memory. */
static void note_whole(const struct pando__front *f, uint32_t index)
{
	struct pando__span *s = &f->view.spans[index];
	const uint32_t node = PANDO__NODE(pando__load_relaxed(&s->node));
	const bool whole = f->runs->nodes[index].sure == ~0ull;

	pando__store_relaxed(&s->node, node | (whole ? PANDO__NODE_WHOLE : 0));
}

/* The bits are clear: the span goes back if it is empty. */
static void settle(struct pando__front *f, uint32_t index, uint64_t pages)
{
	if (pages) {
		relist(f, index);
		return;
	}
	PANDO_INJECT("heap.pages.empty");
	while (!take_back(f, index))
		if (pando__span_leave(f, index)) {
			drop_span(f, index);
			return;
		}
	note_whole(f, index);
	drop_span(f, index);
	pando__span_give(f, index);
}

static bool too_much(const struct pando__runs *r)
{
	return r->dirty > DIRTY_LEAST && r->dirty > r->used / 8;
}

/*
 * Lends free pages until those that are left are within the bound, the spans taking turns. Under
 * pages_lock.
 */
static void shed(struct pando__front *f)
{
	struct pando__runs *r = f->runs;

	for (uint32_t i = 0; i < f->own_count && too_much(r); i++) {
		uint32_t index;

		r->turn = r->turn + 1 < f->own_count ? r->turn + 1 : 0;
		index = f->own[r->turn];
		/* What was lent before and is still there is lent again, with the rest. */
		if (r->nodes[index].dirty && take_back(f, index))
			lend(f, index);
	}
}

/*
 * Gives memory of free pages back, all of it, for a caller who wants to wait for that. Under pages_lock,
 * which is open during the system calls: meanwhile the pages count as used.
 */
static void give_back(struct pando__front *f)
{
	struct pando__runs *r = f->runs;

	for (uint32_t passed = 0; passed < f->own_count;) {
		uint32_t index;
		uint64_t mask;

		r->turn = r->turn + 1 < f->own_count ? r->turn + 1 : 0;
		index = f->own[r->turn];
		mask = take_back(f, index) ? r->nodes[index].dirty : 0;
		passed++;
		if (!mask)
			continue;
		passed = 0;
		use(f, index, mask);
		PANDO_INJECT("heap.pages.shedding");
		pthread_mutex_unlock(&f->pages_lock);
		pando__decommit_pages(&f->view, index, mask);
		pthread_mutex_lock(&f->pages_lock);
		PANDO_INJECT("heap.pages.shed");
		r->used -= ones(mask);
		settle(f, index, pando__and_acq_rel(&f->view.spans[index].pages, ~mask) & ~mask);
	}
}

/* Part of one span. Its entries are cleared. Under pages_lock. */
static void unuse(struct pando__front *f, uint32_t index, uint64_t mask, bool sure)
{
	f->runs->used -= ones(mask);
	f->runs->dirty += ones(mask);
	f->runs->nodes[index].dirty |= mask;
	if (sure)
		f->runs->nodes[index].sure |= mask;
	/* Pairs with gaps_of(): the entries were cleared before. */
	settle(f, index, pando__and_acq_rel(&f->view.spans[index].pages, ~mask) & ~mask);
}

static void free_pages(struct pando__front *f, uint64_t offset, uint64_t length, bool sure)
{
	uint64_t page = offset / PANDO__PAGE;
	const uint64_t end = page + length / PANDO__PAGE;

	if (f->debug)
		pando__debug_leaving(f, offset, length);
	for (uint64_t i = page; i < end; i++)
		pando__store_relaxed(&f->view.page_table[i], 0);
	PANDO_INJECT("heap.pages.cleared");
	pthread_mutex_lock(&f->pages_lock);
	while (page < end) {
		const unsigned int first = page % PANDO__SPAN_PAGES;
		uint64_t n = PANDO__SPAN_PAGES - first;

		n = n < end - page ? n : end - page;
		unuse(f, (uint32_t)(page / PANDO__SPAN_PAGES), mask_of(first, (unsigned int)n),
		      sure);
		page += n;
	}
	if (f->view.lazy)
		shed(f);
	pthread_mutex_unlock(&f->pages_lock);
}

void pando__pages_free(struct pando__front *f, uint64_t offset, uint64_t length)
{
	free_pages(f, offset, length, false);
}

void pando__pages_free_whole(struct pando__front *f, uint64_t offset, uint64_t length)
{
	free_pages(f, offset, length, true);
}

void pando__pages_trim(struct pando__front *f)
{
	if (!f->view.lazy)
		return;
	pthread_mutex_lock(&f->pages_lock);
	give_back(f);
	pthread_mutex_unlock(&f->pages_lock);
	(void)pando__spans_purge(&f->view, f->me, 0, UINT32_MAX);
}

/* ---- adopting --------------------------------------------------------------------------------- */

/* True if it may be adopted and has a slab of that class. */
static bool suits(const struct pando__view *v, uint32_t index, unsigned int class)
{
	const uint32_t *entries = &v->page_table[(uint64_t)index * PANDO__SPAN_PAGES];
	uint32_t first = pando__load_relaxed(&entries[0]);
	uint32_t last = pando__load_relaxed(&entries[PANDO__SPAN_PAGES - 1]);

	/* Part of an object that goes on in the next span, or the other way round. */
	if (PANDO__PAGE_CLASS(first) == PANDO__CLASS_LARGE ||
	    PANDO__PAGE_CLASS(last) == PANDO__CLASS_LARGE)
		return false;
	for (unsigned int i = 0; i < PANDO__SPAN_PAGES; i += PANDO__SLAB_PAGES)
		if (PANDO__PAGE_CLASS(pando__load_relaxed(&entries[i])) == class)
			return true;
	return false;
}

/* The pages of a span that is ours now name us. */
static void rename_pages(struct pando__front *f, uint32_t index)
{
	uint32_t *entries = &f->view.page_table[(uint64_t)index * PANDO__SPAN_PAGES];

	for (unsigned int i = 0; i < PANDO__SPAN_PAGES; i++) {
		uint32_t e = pando__load_relaxed(&entries[i]);
		unsigned int flags = PANDO__PAGE_FLAGS(e);

		if (e == 0)
			continue;
		if (PANDO__PAGE_CLASS(e) == PANDO__CLASS_LARGE)
			flags |= PANDO__PAGE_LOOSE;
		/* Pairs with who frees an object there: it looks here after it has set its bit. */
		(void)pando__exchange_acq_rel(
			&entries[i], PANDO__PAGE_ENTRY(f->me, PANDO__PAGE_CLASS(e), flags));
	}
	PANDO_INJECT("heap.span.renamed");
}

static bool adopt(struct pando__front *f, uint32_t index, unsigned int class)
{
	struct pando__span *s = &f->view.spans[index];
	uint64_t word = pando__load_acquire(&s->word);

	/* What is seen of its pages holds if the word is the same after that. */
	if (PANDO__SPAN_STATE(word) != PANDO__SPAN_ORPHAN || !suits(&f->view, index, class) ||
	    own_room(f, 1) < 0)
		return false;
	if (!pando__cas_acq_rel(
		    &s->word, &word,
		    PANDO__SPAN_WORD(f->me, PANDO__SPAN_OWNED, PANDO__SPAN_COUNT(word) + 1)))
		return false;
	PANDO_INJECT("heap.span.adopted");
	(void)pando__add_acq_rel(&f->view.clients[f->slot].spans, 1);
	rename_pages(f, index);
	add_span(f, index);
	f->runs->used += ones(pando__load_relaxed(&s->pages));
	if (pando__load_relaxed(&f->view.heap->orphans.value))
		(void)pando__add_acq_rel(&f->view.heap->orphans.value, -1);
	/* Freed by others before or while it changed hands: they may have told the broker. */
	if (pando__load_acquire(&s->remote))
		pando__store_release(&f->view.clients[f->slot].remote, 1);
	return true;
}

/* True if orphans are known to have no such slab, as far as one can tell. */
static bool known_barren(struct pando__runs *r, unsigned int class, uint64_t orphans)
{
	if (r->barren[class] != orphans || ++r->passed[class] >= PASSES) {
		r->barren[class] = r->passed[class] = 0;
		return false;
	}
	return true;
}

int64_t pando__span_adopt(struct pando__front *f, unsigned int class)
{
	const struct pando__view *v = &f->view;
	const uint64_t orphans = pando__load_relaxed(&v->heap->orphans.value);
	const uint64_t end = pando__spans_end(v);
	int64_t got = -ENOENT;

	if (orphans == 0)
		return -ENOENT;
	pthread_mutex_lock(&f->pages_lock);
	if (!known_barren(f->runs, class, orphans)) {
		for (uint64_t i = v->first / PANDO__SPAN; i < end && got < 0; i++)
			if (adopt(f, (uint32_t)i, class))
				got = (int64_t)i;
		if (got < 0)
			f->runs->barren[class] = orphans;
	}
	pthread_mutex_unlock(&f->pages_lock);
	return got;
}
