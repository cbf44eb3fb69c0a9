/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Verifying a heap: every invariant of layout.h that holds at every instant, verified while others
 * go on.
 *
 * Of a span in use (OWNED, ORPHAN):
 *
 *	slab	where an object is not FREE, all pages of its slab have one owner and class, and
 *		their bits in `pages` are set; words where no object begins are FREE; the others have
 *		one of the five states
 *	large	a head has a length, which ends within the heap, and its pages are LARGE; behind its
 *		length nothing is in it
 *	free	pages in nothing have no words
 *	owner	pages name the span's owner, or the orphans; an owner is attached, or being reaped
 *	holder	a client that something is SHARED with is attached, or being reaped, or the one who
 *		gives it to it is still at it; then the span is `held`
 *	orphan	what is REMOTE has its hint, or the one who frees it is still at it
 *
 * Of the others: FREE, RESERVE and ABSENT have no pages and nothing lent; RESERVE, and FREE where
 * memory stays, have no entries and no words. SWEEPING spans are the broker's business.
 *
 * A snapshot of a span that others change can show what never was. So what looks wrong is looked at
 * again, with growing pauses, and counts if it is the same each time.
 *
 * What other processes do privately cannot be seen: that each CACHED object is in a magazine, or that
 * an owner who has taken a hint will collect. The tests see to that: at the end of a run everything
 * can be freed, and then every span is free.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/atomic.h"
#include "common/fail.h"

#include "check.h"
#include "rebuild.h"

struct check {
	const struct pando__view *v;
	const char *slots; /* NULL: what transfers are under way is not known */
	uint64_t index; /* of the span */
	uint64_t word;
	uint32_t held, remote;
	uint64_t pages;
	uint16_t lent;
	uint32_t entries[PANDO__SPAN_PAGES];
	uint16_t words[PANDO__SPAN_GRANULES] __attribute__((aligned(8)));
	/* The first thing that looks wrong. */
	char text[200];
	bool wrong;
};

static void wrong(struct check *c, uint64_t granule, const char *what, uint64_t is)
{
	if (c->wrong)
		return;
	c->wrong = true;
	snprintf(c->text, sizeof(c->text), "offset 0x%" PRIx64 ": %s (0x%" PRIx64 ")",
		 c->index * PANDO__SPAN + granule * PANDO__GRANULE, what, is);
}

static enum pando__client_state client_state(const struct check *c, unsigned int client)
{
	struct pando__ledger *l = (struct pando__ledger *)(uintptr_t)c->v->ledger;

	if (client == 0 || client > PANDO__HEAP_CLIENTS ||
	    client > pando__load_acquire(&l->clients_high))
		return PANDO__CLIENT_FREE;
	return PANDO__CLIENT_STATE(pando__load_acquire(&pando__ledger_client(l, client - 1)->word));
}

/* True if an intent of that kind, for that object, stands in some client's slot page. */
static bool intended(const struct check *c, enum pando__intent_kind kind, uint64_t granule)
{
	struct pando__ledger *l = (struct pando__ledger *)(uintptr_t)c->v->ledger;
	const uint64_t what =
		PANDO__INTENT(kind, c->index * PANDO__SPAN + granule * PANDO__GRANULE);

	for (uint32_t s = 0; c->slots && s < pando__load_acquire(&l->clients_high); s++) {
		const struct pando__intent *in =
			(const void *)(c->slots + (size_t)s * PANDO__SLOT_SIZE +
				       PANDO__INTENTS_OFFSET);

		for (unsigned int i = 0; i < PANDO__INTENTS; i++)
			if (pando__load_acquire(&in[i].what) == what)
				return true;
	}
	return false;
}

static void check_shared(struct check *c, uint64_t granule, uint16_t word)
{
	const unsigned int holder = PANDO__OBJECT_HOLDER(word);

	if (PANDO__OBJECT_OF_NOBODY(word))
		return;
	if (client_state(c, holder) == PANDO__CLIENT_FREE &&
	    !intended(c, PANDO__INTENT_TRANSFER, granule))
		wrong(c, granule, "an object is held by a client that is not there", holder);
	else if (!c->held && !intended(c, PANDO__INTENT_TRANSFER, granule))
		wrong(c, granule, "a held object in a span that is not `held`", holder);
}

static bool is_object(uint16_t word)
{
	return word == PANDO__OBJECT_LIVE || word == PANDO__OBJECT_CACHED ||
	       word == PANDO__OBJECT_REMOTE || PANDO__OBJECT_IS_SHARED(word);
}

static void check_object(struct check *c, uint64_t granule, uint16_t word)
{
	const uint32_t bit = PANDO__SPAN_REMOTE(granule * PANDO__GRANULE);
	const bool orphan = PANDO__SPAN_STATE(c->word) == PANDO__SPAN_ORPHAN;

	if (PANDO__OBJECT_IS_SHARED(word))
		check_shared(c, granule, word);
	else if (orphan && word != PANDO__OBJECT_REMOTE)
		wrong(c, granule, "a private object in an orphan", word);
	else if (orphan && !(c->remote & bit) && !intended(c, PANDO__INTENT_FREE, granule) &&
		 !intended(c, PANDO__INTENT_TRANSFER, granule))
		wrong(c, granule, "a freed object in an orphan, and no hint", c->remote);
}

static void check_slab(struct check *c, unsigned int page, unsigned int class)
{
	const uint64_t step = pando__classes[class].size / PANDO__GRANULE;
	const uint64_t begin = (uint64_t)page * PANDO__PAGE_GRANULES;
	bool used = false;

	for (uint64_t g = 0; g < PANDO__SLAB_GRANULES; g++) {
		const uint16_t word = c->words[begin + g];

		if (word == PANDO__OBJECT_FREE)
			continue;
		used = true;
		if (g % step != 0 || g / step >= pando__classes[class].count)
			wrong(c, begin + g, "a word in a slab where no object begins", word);
		else if (!is_object(word))
			wrong(c, begin + g, "a word that means nothing", word);
		else
			check_object(c, begin + g, word);
	}
	for (unsigned int p = page; p < page + PANDO__SLAB_PAGES && used; p++)
		if (!PANDO__SAME_PAGE(c->entries[p], c->entries[page]))
			wrong(c, p * PANDO__PAGE_GRANULES, "a slab's page has another entry",
			      c->entries[p]);
}

/* A head and its length: returns the granule behind the object, or 0. */
static uint64_t check_head(struct check *c, uint64_t granule, uint16_t word)
{
	const uint64_t first = c->index * PANDO__SPAN_GRANULES;
	const uint64_t length = pando__large_granules(c->v, first + granule);
	const uint64_t begin = (first + granule) / PANDO__PAGE_GRANULES;
	const uint64_t end =
		(first + granule + length + PANDO__PAGE_GRANULES - 1) / PANDO__PAGE_GRANULES;

	if (word == PANDO__OBJECT_CACHED) /* its owner is freeing it */
		return 0;
	if (!length) {
		wrong(c, granule, "a large object without a length", word);
		return 0;
	}
	check_object(c, granule, word);
	for (uint64_t p = begin; p < end; p++)
		if (PANDO__PAGE_CLASS(pando__load_relaxed(&c->v->page_table[p])) !=
		    PANDO__CLASS_LARGE) {
			wrong(c, granule, "a large object reaches into a page of others", p);
			break;
		}
	for (uint64_t g = granule + PANDO__LENGTH_WORDS + 1;
	     g < granule + length && g < PANDO__SPAN_GRANULES; g++)
		if (c->words[g] != PANDO__OBJECT_FREE) {
			wrong(c, g, "a word inside a large object", c->words[g]);
			break;
		}
	return granule + length;
}

/* Pages [page, page + 8) that are no slab. Returns the granule to go on from. */
static uint64_t check_pages(struct check *c, unsigned int page, uint64_t from)
{
	const uint64_t end = (page + PANDO__SLAB_PAGES) * (uint64_t)PANDO__PAGE_GRANULES;
	uint64_t g = page * (uint64_t)PANDO__PAGE_GRANULES;

	for (g = from > g ? from : g; g < end; g++) {
		const unsigned int class = PANDO__PAGE_CLASS(c->entries[g / PANDO__PAGE_GRANULES]);
		const uint16_t word = c->words[g];
		uint64_t behind;

		if (word == PANDO__OBJECT_FREE)
			continue;
		if (class != PANDO__CLASS_LARGE) {
			wrong(c, g, "a word in a page that is in no use", word);
		} else if (is_object(word)) {
			behind = check_head(c, g, word);
			g = behind ? behind - 1 : g;
		} else if (!PANDO__OBJECT_IS_LENGTH(word)) {
			wrong(c, g, "a word that means nothing", word);
		} else if (PANDO__SPAN_STATE(c->word) == PANDO__SPAN_ORPHAN) {
			wrong(c, g, "a length without an object in an orphan", word);
		}
	}
	return g;
}

static void check_entries(struct check *c)
{
	const unsigned int owner = PANDO__SPAN_OWNER(c->word);

	for (unsigned int p = 0; p < PANDO__SPAN_PAGES; p++) {
		const uint32_t e = c->entries[p];
		const unsigned int of = PANDO__PAGE_OWNER(e);

		if (e == 0)
			continue;
		/* Who adopts renames the pages after the span is its own. */
		if (of != owner && of != PANDO__OWNER_ORPHAN)
			wrong(c, p * PANDO__PAGE_GRANULES, "a page names another owner", e);
		if (PANDO__PAGE_CLASS(e) >= PANDO__CLASSES &&
		    PANDO__PAGE_CLASS(e) != PANDO__CLASS_LARGE)
			wrong(c, p * PANDO__PAGE_GRANULES, "a page of no class", e);
		if (!(c->pages & 1ull << p))
			wrong(c, p * PANDO__PAGE_GRANULES, "a page in use without its bit", e);
	}
}

static void check_used(struct check *c)
{
	uint64_t from = 0;

	if (PANDO__SPAN_STATE(c->word) == PANDO__SPAN_OWNED &&
	    client_state(c, PANDO__SPAN_OWNER(c->word)) == PANDO__CLIENT_FREE)
		wrong(c, 0, "a span of a client that is not there", c->word);
	check_entries(c);
	for (unsigned int p = 0; p < PANDO__SPAN_PAGES; p += PANDO__SLAB_PAGES) {
		const unsigned int class = PANDO__PAGE_CLASS(c->entries[p]);

		if (class > 0 && class < PANDO__CLASSES)
			check_slab(c, p, class);
		else
			from = check_pages(c, p, from);
	}
}

static void check_unused(struct check *c)
{
	if (c->pages)
		wrong(c, 0, "a span that is nobody's, with pages in use", c->pages);
	/* LEFT may be found here until somebody takes the span. */
	if (c->lent == PANDO__LENT || c->lent == PANDO__LENT_BUSY)
		wrong(c, 0, "a span that is nobody's, with pages lent", c->lent);
	for (unsigned int p = 0; p < PANDO__SPAN_PAGES; p++)
		if (c->entries[p])
			wrong(c, p * PANDO__PAGE_GRANULES, "an entry in a span that is nobody's",
			      c->entries[p]);
	for (uint64_t g = 0; g < PANDO__SPAN_GRANULES; g++)
		if (c->words[g])
			wrong(c, g, "a word in a span that is nobody's", c->words[g]);
}

/* Copies what there is of a span. */
static void look(struct check *c, bool words)
{
	const struct pando__view *v = c->v;
	const uint64_t *from = (const void *)&v->objects[c->index * PANDO__SPAN_GRANULES];
	uint64_t *to = (uint64_t *)(void *)c->words;

	for (unsigned int i = 0; words && i < PANDO__SPAN_GRANULES / 4; i++)
		to[i] = pando__load_relaxed(&from[i]);
	for (unsigned int p = 0; words && p < PANDO__SPAN_PAGES; p++)
		c->entries[p] =
			pando__load_acquire(&v->page_table[c->index * PANDO__SPAN_PAGES + p]);
	c->lent = pando__load_acquire(&v->spans[c->index].lent);
	c->pages = pando__load_acquire(&v->spans[c->index].pages);
	c->held = pando__load_acquire(&v->spans[c->index].held);
	c->remote = pando__load_acquire(&v->spans[c->index].remote);
}

static void check_span(struct check *c)
{
	enum pando__span_state state;

	c->wrong = false;
	c->word = pando__load_acquire(&c->v->spans[c->index].word);
	state = PANDO__SPAN_STATE(c->word);
	switch (state) {
	case PANDO__SPAN_OWNED:
	case PANDO__SPAN_ORPHAN:
		look(c, true);
		check_used(c);
		break;
	case PANDO__SPAN_RESERVE:
		look(c, true);
		check_unused(c);
		break;
	case PANDO__SPAN_FREE:
	case PANDO__SPAN_ABSENT:
		look(c, !c->v->lazy && state == PANDO__SPAN_FREE);
		if (c->v->lazy || state == PANDO__SPAN_ABSENT) {
			memset(c->entries, 0, sizeof(c->entries));
			memset(c->words, 0, sizeof(c->words));
		}
		check_unused(c);
		break;
	case PANDO__SPAN_SWEEPING:
		break;
	default:
		wrong(c, 0, "a span in no state", c->word);
		break;
	}
	/* It changed hands: what was seen is of two owners. */
	if (pando__load_acquire(&c->v->spans[c->index].word) != c->word)
		c->wrong = false;
}

/* Looks again until it is right, or has been wrong in the same way `most` times. */
static bool look_again(struct check *c, unsigned int most)
{
	char before[sizeof(c->text)];
	unsigned int looks = 1;

	memcpy(before, c->text, sizeof(before));
	for (unsigned int all = 1; c->wrong && looks < most && all < 10 * most; all++) {
		const struct timespec pause = {.tv_nsec = 1000000l << (looks < 9 ? looks : 9)};

		nanosleep(&pause, NULL);
		check_span(c);
		looks = strcmp(before, c->text) == 0 ? looks + 1 : 1;
		memcpy(before, c->text, sizeof(before));
	}
	return c->wrong;
}

static int check_header(const struct pando__view *v)
{
	const struct pando__heap *h = v->heap;

	if (!pando__heap_there(v))
		return pando__fail(EINVAL, "region \"%.63s\" has no heap", v->ledger->name);
	if (h->granule != PANDO__GRANULE || h->first != v->first || h->end != v->end ||
	    v->base + h->clients != (char *)v->clients || v->base + h->spans != (char *)v->spans ||
	    v->base + h->page_table != (char *)v->page_table ||
	    v->base + h->objects != (char *)v->objects)
		return pando__fail(EUCLEAN, "the heap's header does not describe this heap");
	return 0;
}

int pando__heap_verify(const struct pando__view *v, const char *slots, unsigned int looks)
{
	const uint64_t end = pando__spans_end(v);
	struct check *c;
	int rc = check_header(v);

	if (rc < 0)
		return rc;
	c = aligned_alloc(64, (sizeof(*c) + 63) / 64 * 64);
	if (!c)
		return pando__fail(ENOMEM, "no memory to look at a heap (%zu bytes)", sizeof(*c));
	c->v = v;
	c->slots = slots;
	for (uint64_t i = v->first / PANDO__SPAN; i < end && rc == 0; i++) {
		c->index = i;
		check_span(c);
		if (c->wrong && look_again(c, looks))
			rc = pando__fail(EUCLEAN, "heap of region \"%.63s\", %s", v->ledger->name,
					 c->text);
	}
	free(c);
	return rc;
}
