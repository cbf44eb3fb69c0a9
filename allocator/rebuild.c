/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One span without a living owner: what survives in it, and clearing the rest.
 *
 * The words of its objects are all there is to go by; page table, page bits and hints are made anew
 * from them. What survives is SHARED with the region or with a client other than the dead one.
 * Everything else is nobody's: LIVE and CACHED died with the owner, REMOTE was freed already, and
 * what is no state at all was being written, or is rubbish.
 *
 * Who else is at the span: nobody takes, adopts or refills while its word is SWEEPING. But living
 * processes free shared objects in it, and holders share or transfer them, at any time: words that
 * are SHARED change only by compare-and-swap, here too. A word that is not SHARED does not become
 * so without an owner; so it is cleared by plain stores, four at a time.
 *
 * Order. A head is cleared before its length, so that what is left after a death in between is
 * rubbish, which is cleared the next time; pages are lent (see Lending in layout.h) before their bits
 * are cleared, and these before the span's word changes. A hint that is taken here stays with a span
 * that is SWEEPING, which the next broker goes through in any case.
 *
 * Objects over several spans. Of a dead owner's spans the first comes first and carries the object
 * over to the next; they are finished from the last to the first, so that a second attempt finds
 * all from the head on. In orphans the pages that continue an object are marked INNER, and who
 * frees the head unmarks them first. Loops are bounded by the sizes of the tables, and there is no
 * recursion: a hostile heap costs time, at most once through it for each of its spans.
 */
#include "rebuild.h"

#include "common/atomic.h"
#include "common/inject.h"

/* One span under examination. */
struct span_state {
	struct pando__rebuild *b;
	uint64_t index;
	uint64_t first_granule; /* of the span */
	uint64_t inner; /* pages that continue an object of an earlier span */
	uint64_t pages; /* that survive */
	bool held; /* something belongs to a client */
};

static uint16_t load_word(const struct pando__view *v, uint64_t granule)
{
	return pando__load_relaxed(&v->objects[granule]);
}

static void clear_word(const struct pando__view *v, uint64_t granule)
{
	pando__store_relaxed(&v->objects[granule], PANDO__OBJECT_FREE);
}

uint64_t pando__large_granules(const struct pando__view *v, uint64_t granule)
{
	const uint64_t end = v->end / PANDO__GRANULE;
	uint64_t length = 0;

	if (granule + PANDO__LENGTH_WORDS >= end)
		return 0;
	for (unsigned int i = 0; i < PANDO__LENGTH_WORDS; i++) {
		uint16_t word = load_word(v, granule + 1 + i);

		if (!PANDO__OBJECT_IS_LENGTH(word))
			return 0;
		length |= PANDO__LENGTH_PART(word, i);
	}
	return length > PANDO__LENGTH_WORDS && length <= end - granule ? length : 0;
}

void pando__remote_hint(const struct pando__view *v, uint64_t offset)
{
	uint32_t owner;

	/* Partner: rebuild_finish() and who adopts, which name, then look at this word. */
	(void)pando__or_seq_cst(&v->spans[offset / PANDO__SPAN].remote, PANDO__SPAN_REMOTE(offset));
	owner = PANDO__PAGE_OWNER(pando__load_seq_cst(&v->page_table[offset / PANDO__PAGE]));
	if (owner == PANDO__OWNER_ORPHAN)
		pando__store_release(&v->heap->orphan_remote.value, 1);
	else if (owner > 0 && owner <= PANDO__HEAP_CLIENTS)
		pando__store_release(&v->clients[owner - 1].remote, 1);
}

/* True if the word, SHARED a moment ago, is so still and not the dead client's. Else it is REMOTE. */
static bool survives(struct span_state *s, uint64_t granule, uint64_t bytes)
{
	const struct pando__view *v = s->b->v;
	uint16_t word = load_word(v, granule);

	/* Others give it to others and free it; each time around, one of them has got further. */
	for (int tries = 0; tries < 64 && PANDO__OBJECT_IS_SHARED(word); tries++) {
		if (PANDO__OBJECT_HOLDER(word) != s->b->dead || s->b->dead == 0) {
			if (!PANDO__OBJECT_OF_NOBODY(word))
				s->held = true;
			return true;
		}
		if (pando__cas_acq_rel(&v->objects[granule], &word, PANDO__OBJECT_REMOTE)) {
			s->b->out->objects++;
			s->b->out->bytes += bytes;
			return false;
		}
	}
	return PANDO__OBJECT_IS_SHARED(word);
}

/* Four words of a slab of which one at least is SHARED. Returns how many survive. */
static unsigned int four_words(struct span_state *s, uint64_t slab, uint64_t at,
			       const struct pando__class *class)
{
	const struct pando__view *v = s->b->v;
	const uint64_t step = class->size / PANDO__GRANULE;
	unsigned int survivors = 0;

	for (uint64_t i = at; i < at + 4; i++) {
		const uint16_t word = load_word(v, slab + i);

		if (word == PANDO__OBJECT_FREE)
			continue;
		if (PANDO__OBJECT_IS_SHARED(word) && i % step == 0 && i / step < class->count &&
		    survives(s, slab + i, class->size)) {
			survivors++;
			continue;
		}
		if (word == PANDO__OBJECT_LIVE) {
			s->b->out->objects++;
			s->b->out->bytes += class->size;
		}
		clear_word(v, slab + i);
	}
	return survivors;
}

static void set_entry(const struct pando__view *v, uint64_t page, uint32_t entry)
{
	if (pando__load_relaxed(&v->page_table[page]) != entry)
		pando__store_release(&v->page_table[page], entry);
}

/* The slab that begins with this page. */
static void rebuild_slab(struct span_state *s, uint64_t page, unsigned int class)
{
	const struct pando__view *v = s->b->v;
	const uint64_t slab = page * PANDO__PAGE_GRANULES;
	uint64_t *quad = (uint64_t *)(void *)&v->objects[slab];
	unsigned int survivors = 0;
	uint64_t live = 0;

	for (unsigned int i = 0; i < PANDO__SLAB_GRANULES / 4; i++) {
		const uint64_t x = pando__load_relaxed(&quad[i]);

		if (x == 0)
			continue;
		if (x & (x >> 1) & PANDO__LANES) {
			survivors += four_words(s, slab, 4ull * i, &pando__classes[class]);
			continue;
		}
		live += (uint64_t)__builtin_popcountll(x & ~(x >> 1) & PANDO__LANES);
		pando__store_relaxed(&quad[i], 0);
	}
	s->b->out->objects += live;
	s->b->out->bytes += live * pando__classes[class].size;
	PANDO_INJECT("heap.rebuild.slab");
	for (uint64_t p = page; p < page + PANDO__SLAB_PAGES; p++)
		set_entry(v, p, survivors ? PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, class, 0) : 0);
	if (survivors)
		s->pages |= 0xffull << page % PANDO__SPAN_PAGES;
}

bool pando__rebuild_take(const struct pando__view *v, uint64_t index, uint64_t word)
{
	if (PANDO__SPAN_OWNER(word) != PANDO__OWNER_ORPHAN)
		return false;
	if (PANDO__SPAN_STATE(word) == PANDO__SPAN_SWEEPING)
		return true;
	return PANDO__SPAN_STATE(word) == PANDO__SPAN_ORPHAN &&
	       pando__cas_acq_rel(&v->spans[index].word, &word,
				  PANDO__SPAN_WORD(PANDO__OWNER_ORPHAN, PANDO__SPAN_SWEEPING,
						   PANDO__SPAN_COUNT(word)));
}

/* The granule up to which the last object of a span in use reaches, if that is beyond the span; or 0. */
static uint64_t reaches_beyond(const struct pando__view *v, uint64_t index)
{
	const uint64_t begin = index * PANDO__SPAN_GRANULES, end = begin + PANDO__SPAN_GRANULES;

	for (uint64_t g = end; g > begin;) {
		uint64_t length;
		uint16_t word;

		if (g % 4 == 0 &&
		    pando__load_relaxed((uint64_t *)(void *)&v->objects[g - 4]) == 0) {
			g -= 4;
			continue;
		}
		word = load_word(v, --g);
		if (word == PANDO__OBJECT_FREE || PANDO__OBJECT_IS_LENGTH(word))
			continue;
		if (PANDO__PAGE_CLASS(pando__load_relaxed(
			    &v->page_table[g / PANDO__PAGE_GRANULES])) != PANDO__CLASS_LARGE)
			return 0;
		length = pando__large_granules(v, g);
		return g + length > end ? g + length : 0;
	}
	return 0;
}

static void release_one(struct pando__rebuild *from, uint64_t index)
{
	struct pando__rebuild b = {.v = from->v, .out = from->out, .keep_crossing = true};

	for (uint64_t p = index * PANDO__SPAN_PAGES; p < (index + 1) * PANDO__SPAN_PAGES; p++) {
		uint32_t entry = pando__load_relaxed(&b.v->page_table[p]);

		if (PANDO__PAGE_FLAGS(entry) & PANDO__PAGE_INNER)
			set_entry(b.v, p, entry & ~PANDO__PAGE_INNER);
	}
	PANDO_INJECT("heap.rebuild.released");
	pando__rebuild_span(&b, index);
	pando__rebuild_finish(b.v, index, b.out);
}

/*
 * A large object goes, of which the spans after the one at hand have a part: those that are orphans
 * are judged again without it. It may be the second attempt, or the third: then some of them were
 * freed before, have been somebody else's, and may be orphans again, for another reason. What
 * continues there is this object unless one that begins behind its head reaches there: objects do
 * not overlap.
 */
static void release_following(struct pando__rebuild *from, uint64_t index, uint64_t granules_end)
{
	const struct pando__view *v = from->v;
	const uint64_t last = (granules_end - 1) / PANDO__SPAN_GRANULES;
	uint64_t other = 0, looked = index + 1; /* up to which others reach, of the spans before */

	for (uint64_t i = index + 1; i <= last && i < v->end / PANDO__SPAN; i++) {
		const uint64_t word = pando__load_acquire(&v->spans[i].word);

		if (PANDO__SPAN_OWNER(word) != PANDO__OWNER_ORPHAN)
			continue;
		for (; looked < i; looked++) {
			uint64_t end = 0;

			if (pando__span_in_use(pando__load_acquire(&v->spans[looked].word)))
				end = reaches_beyond(v, looked);
			other = end > other ? end : other;
		}
		if (other <= i * PANDO__SPAN_GRANULES && pando__rebuild_take(v, i, word))
			release_one(from, i);
	}
}

/*
 * A head with its length: does it survive? Returns the granule to go on from. What goes has been
 * cleared, with its length, and with its part of later orphans.
 */
static uint64_t rebuild_large(struct span_state *s, uint64_t granule, uint16_t word)
{
	struct pando__rebuild *b = s->b;
	const struct pando__view *v = b->v;
	const uint64_t length = pando__large_granules(v, granule), end = granule + length;
	const bool crosses = end > s->first_granule + PANDO__SPAN_GRANULES;

	if (length && PANDO__OBJECT_IS_SHARED(word) &&
	    survives(s, granule, length * PANDO__GRANULE)) {
		b->carry = end;
		return end;
	}
	if (crosses && b->keep_crossing) { /* REMOTE: one level of this is enough, see below */
		pando__remote_hint(v, granule * PANDO__GRANULE);
		pando__store_release(&v->heap->orphan_remote.value, 1);
		b->carry = end;
		return end;
	}
	if (crosses)
		release_following(b, s->index, end);
	if (length && word == PANDO__OBJECT_LIVE) {
		b->out->objects++;
		b->out->bytes += length * PANDO__GRANULE;
	}
	clear_word(v, granule);
	PANDO_INJECT("heap.rebuild.head");
	for (uint64_t i = granule + 1; length && i <= granule + PANDO__LENGTH_WORDS; i++)
		clear_word(v, i);
	return granule + 1;
}

static bool may_be_head(uint16_t word)
{
	return word == PANDO__OBJECT_LIVE || word == PANDO__OBJECT_REMOTE ||
	       PANDO__OBJECT_IS_SHARED(word);
}

/* A page that is in no slab: of large objects, or free. */
static void rebuild_page(struct span_state *s, uint64_t page)
{
	struct pando__rebuild *b = s->b;
	const struct pando__view *v = b->v;
	const uint64_t begin = page * PANDO__PAGE_GRANULES, end = begin + PANDO__PAGE_GRANULES;
	const uint64_t bit = 1ull << page % PANDO__SPAN_PAGES;
	const bool large =
		PANDO__PAGE_CLASS(pando__load_relaxed(&v->page_table[page])) == PANDO__CLASS_LARGE;
	bool used = b->carry > begin || (s->inner & bit);
	uint32_t flags = PANDO__PAGE_LOOSE | (s->inner & bit ? PANDO__PAGE_INNER : 0);

	for (uint64_t g = b->carry > begin ? b->carry : begin; g < end;) {
		const uint16_t word = load_word(v, g);

		if (g % 4 == 0 && pando__load_relaxed((uint64_t *)(void *)&v->objects[g]) == 0) {
			g += 4;
		} else if (word == PANDO__OBJECT_FREE) {
			g++;
		} else if (large && may_be_head(word)) {
			g = rebuild_large(s, g, word);
			used |= b->carry > begin;
		} else {
			clear_word(v, g++);
		}
	}
	set_entry(v, page,
		  used ? PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, PANDO__CLASS_LARGE, flags) : 0);
	if (used)
		s->pages |= bit;
}

/* The pages at the beginning of the span that continue an object. */
static uint64_t inner_pages(const struct pando__rebuild *b, uint64_t index)
{
	const uint64_t begin = index * PANDO__SPAN_PAGES;
	uint64_t inner = 0;

	for (uint64_t p = begin; p < begin + PANDO__SPAN_PAGES; p++) {
		const uint32_t flags = PANDO__PAGE_FLAGS(pando__load_relaxed(&b->v->page_table[p]));

		if (b->dead ? p * PANDO__PAGE_GRANULES >= b->carry : !(flags & PANDO__PAGE_INNER))
			break;
		inner |= 1ull << (p - begin);
	}
	return inner;
}

/*
 * Its free pages are lent, or not. What they have of memory goes with the next sweep, if nobody adopts
 * the span and needs it.
 */
static void set_lent(const struct pando__view *v, struct pando__span *span, bool lent)
{
	if (!v->lazy || !lent) {
		pando__store_relaxed(&span->lent, PANDO__LENT_NONE);
		return;
	}
	pando__store_seq_cst(&span->lent, PANDO__LENT);
	pando__purge_hint(v);
}

void pando__rebuild_span(struct pando__rebuild *b, uint64_t index)
{
	struct pando__span *span = &b->v->spans[index];
	struct span_state s = {
		.b = b, .index = index, .first_granule = index * PANDO__SPAN_GRANULES};
	const uint64_t old = pando__load_relaxed(&span->pages);
	/* The dead may have been taking or giving back any page of its span. BUSY: a broker died. */
	bool lent = b->dead || pando__load_relaxed(&span->lent) != PANDO__LENT_NONE;

	/* What is freed from here on is hinted at anew, or seen below. */
	(void)pando__exchange_seq_cst(&span->remote, 0);
	(void)pando__exchange_seq_cst(&span->held, 0);
	s.inner = inner_pages(b, index);
	for (uint64_t page = index * PANDO__SPAN_PAGES; page < (index + 1) * PANDO__SPAN_PAGES;) {
		const unsigned int class =
			PANDO__PAGE_CLASS(pando__load_relaxed(&b->v->page_table[page]));

		if (page % PANDO__SLAB_PAGES == 0 && class > 0 && class < PANDO__CLASSES &&
		    b->carry <= page * PANDO__PAGE_GRANULES) {
			rebuild_slab(&s, page, class);
			page += PANDO__SLAB_PAGES;
		} else {
			rebuild_page(&s, page++);
		}
	}
	if (s.held)
		pando__store_release(&span->held, 1);
	PANDO_INJECT("heap.rebuild.judged");
	lent |= (old & ~s.pages) != 0;
	set_lent(b->v, span, lent && s.pages && ~s.pages);
	PANDO_INJECT("heap.rebuild.lent");
	pando__store_release(&span->pages, s.pages);
}

void pando__rebuild_finish(const struct pando__view *v, uint64_t index,
			   struct pando__reclaimed *out)
{
	struct pando__span *span = &v->spans[index];
	const uint64_t word = pando__load_relaxed(&span->word);

	if (pando__load_relaxed(&span->pages) == 0) {
		out->spans_freed += pando__span_release(v, (uint32_t)index, word);
	} else {
		/* Before the look at `remote`; partner: pando__remote_hint(). */
		pando__store_seq_cst(&span->word,
				     PANDO__SPAN_WORD(PANDO__OWNER_ORPHAN, PANDO__SPAN_ORPHAN,
						      PANDO__SPAN_COUNT(word) + 1));
		out->spans_orphaned += PANDO__SPAN_OWNER(word) != PANDO__OWNER_ORPHAN;
		if (pando__load_seq_cst(&span->remote))
			pando__store_release(&v->heap->orphan_remote.value, 1);
	}
	PANDO_INJECT("heap.rebuild.finished");
}
