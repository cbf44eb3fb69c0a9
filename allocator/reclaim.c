/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the broker does in a heap: it takes what the dead had, frees what was freed in orphans, and
 * collects for the idle.
 *
 * It believes nothing that it reads. Every index is computed here or bounded before its use, no
 * pointer is followed, and no loop is longer than a table. A client that writes rubbish harms its
 * region, not the broker. Memory that is not there raises SIGBUS, which the broker catches
 * (broker/heap.c) like a death at that instant.
 *
 * A death at any instant is made good by doing the same again. A span in work is SWEEPING; whose
 * word says so, is gone through again by the next pando__heap_reap() of that client, or, with the
 * owner ORPHAN, by the next pando__heap_sweep(). Hints that are taken while looking are put back, or
 * (held) keep a value in between that means "look".
 *
 * Reaping client C, in this order:
 *
 *	intents		hints of objects that C freed; objects that C gave to somebody who has gone
 *	own slabs	their pages name nobody living any more. A barrier in all clients. What one of
 *			them is freeing there at this instant becomes its own (remote.c)
 *	own spans	ascending: C's objects go, what is left is entered as the orphans' (rebuild.c)
 *	other spans	those flagged `held`: objects given to C become REMOTE, their owner collects them
 *	own spans	descending: FREE, or ORPHAN
 *	orphans		what has become REMOTE in them just now
 *	C's line	zeroed
 */
#include <linux/membarrier.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/inject.h"

#include "rebuild.h"

#define DRAINED_NS 10000000 /* no store waits that long for its line */
#define HELD_LOOKING 2u /* the broker is looking: as good as 1 until it has found none */

static uint64_t first_span(const struct pando__view *v)
{
	return v->first / PANDO__SPAN;
}

/* Beyond it nobody has anything: a region shrinks when the spans there are nobody's. */
static uint64_t end_span(const struct pando__view *v)
{
	return pando__spans_end(v);
}

bool pando__heap_there(const struct pando__view *v)
{
	return pando__load_acquire(&v->heap->magic) == PANDO__HEAP_MAGIC &&
	       pando__load_relaxed(&v->heap->version) == PANDO__HEAP_VERSION;
}

/* --- intents --- */

static void finish_free(const struct pando__view *v, uint64_t offset)
{
	if (pando__load_acquire(&v->objects[offset / PANDO__GRANULE]) == PANDO__OBJECT_REMOTE)
		pando__remote_hint(v, offset);
}

/*
 * The word names the receiver's slot: then it is the receiver's, if that lives, and to be found when
 * it dies. If it is gone, the object was given to nobody: nobody else has the slot yet. That may have
 * been found out already, but nobody been told that it is free.
 */
static void finish_transfer(const struct pando__view *v, uint64_t offset, uint64_t to)
{
	uint16_t *at = &v->objects[offset / PANDO__GRANULE];
	uint16_t word = pando__load_acquire(at);

	if (word == PANDO__OBJECT_REMOTE)
		pando__remote_hint(v, offset);
	if (!PANDO__OBJECT_IS_SHARED(word) || PANDO__OBJECT_HOLDER(word) != (to & 0xffff))
		return;
	if (pando__attached(v, to))
		pando__store_release(&v->spans[offset / PANDO__SPAN].held, 1);
	else if (pando__cas_acq_rel(at, &word, PANDO__OBJECT_REMOTE))
		pando__remote_hint(v, offset);
}

/* If it names a slab of that owner (0: anybody) in which there is something REMOTE: sets the hint. */
static void tell_untold(const struct pando__view *v, uint64_t to, uint32_t owner)
{
	const uint64_t slab = (uint32_t)to, offset = slab * PANDO__SLAB;
	const uint64_t begin = slab * PANDO__SLAB_GRANULES;
	uint64_t word;

	if (!PANDO__INTENT_IS_UNTOLD(to) || offset < v->first || offset >= v->end)
		return;
	word = pando__load_acquire(&v->spans[offset / PANDO__SPAN].word);
	if (!pando__span_in_use(word) || (owner && PANDO__SPAN_OWNER(word) != owner))
		return;
	for (uint64_t g = begin; g < begin + PANDO__SLAB_GRANULES; g++)
		if (pando__load_relaxed(&v->objects[g]) == PANDO__OBJECT_REMOTE) {
			pando__remote_hint(v, offset);
			return;
		}
}

static const struct pando__intent *intents_of(const char *slots, uint32_t slot)
{
	return (const void *)(slots + (size_t)slot * PANDO__SLOT_SIZE + PANDO__INTENTS_OFFSET);
}

/* The slots from 0 on that may have intents. */
static uint32_t slots_end(const struct pando__view *v)
{
	const uint32_t high = pando__load_acquire(&v->ledger->clients_high);

	return high < PANDO__HEAP_CLIENTS ? high : PANDO__HEAP_CLIENTS;
}

void pando__heap_tell(const struct pando__view *v, const char *slots, uint32_t owner)
{
	for (uint32_t s = 0; s < slots_end(v); s++) {
		const struct pando__intent *intents = intents_of(slots, s);

		for (unsigned int i = 0; i < PANDO__INTENTS; i++)
			if (PANDO__INTENT_KIND(pando__load_relaxed(&intents[i].what)) !=
			    PANDO__INTENT_TRANSFER)
				tell_untold(v, pando__load_acquire(&intents[i].to), owner);
	}
}

static void finish_intents(const struct pando__view *v, const struct pando__intent *intents)
{
	for (unsigned int i = 0; i < PANDO__INTENTS; i++) {
		const uint64_t what = pando__load_acquire(&intents[i].what);
		const uint64_t offset = PANDO__INTENT_OFFSET(what);

		if (PANDO__INTENT_KIND(what) != PANDO__INTENT_TRANSFER)
			tell_untold(v, pando__load_acquire(&intents[i].to), 0);
		if (offset < v->first || offset >= v->end)
			continue;
		if (PANDO__INTENT_KIND(what) == PANDO__INTENT_FREE)
			finish_free(v, offset);
		else if (PANDO__INTENT_KIND(what) == PANDO__INTENT_TRANSFER)
			finish_transfer(v, offset, pando__load_relaxed(&intents[i].to));
		PANDO_INJECT("heap.reap.intent");
	}
}

void pando__heap_slots_named(const struct pando__view *v, const char *slots, uint64_t *bits)
{
	struct pando__ledger *l = (struct pando__ledger *)(uintptr_t)v->ledger;

	memset(bits, 0, (PANDO__HEAP_CLIENTS + 63) / 64 * sizeof(*bits));
	for (uint32_t s = 0; s < slots_end(v); s++) {
		const struct pando__intent *intents = intents_of(slots, s);

		if (PANDO__CLIENT_STATE(pando__load_acquire(&pando__ledger_client(l, s)->word)) ==
		    PANDO__CLIENT_FREE)
			continue;
		for (unsigned int i = 0; i < PANDO__INTENTS; i++) {
			uint64_t to;

			/* Partner: pando_transfer(), which looks at the receiver after this is there. */
			if (PANDO__INTENT_KIND(pando__load_seq_cst(&intents[i].what)) !=
			    PANDO__INTENT_TRANSFER)
				continue;
			to = (pando__load_relaxed(&intents[i].to) & 0xffff) - 1;
			if (to < PANDO__HEAP_CLIENTS)
				bits[to / 64] |= 1ull << to % 64;
		}
	}
}

/* --- objects that others own the spans of --- */

/* Bytes of an object, as far as page table and length words tell. */
static uint64_t object_bytes(const struct pando__view *v, uint64_t granule)
{
	const uint32_t entry = pando__load_relaxed(&v->page_table[granule / PANDO__PAGE_GRANULES]);
	const unsigned int class = PANDO__PAGE_CLASS(entry);

	if (class == PANDO__CLASS_LARGE)
		return pando__large_granules(v, granule) * PANDO__GRANULE;
	return class < PANDO__CLASSES ? pando__classes[class].size : 0;
}

/* What `dead` holds in a span that is not its own. */
struct held_look {
	const struct pando__view *v;
	uint32_t dead;
	struct pando__reclaimed *out;
	bool others; /* something is held by others */
	uint32_t remote; /* bits of the eighths in which something became REMOTE */
};

/* Frees the object if it is held by the dead one. */
static void free_one_held(struct held_look *l, uint64_t granule)
{
	const struct pando__view *v = l->v;
	uint16_t word = pando__load_relaxed(&v->objects[granule]);

	for (int tries = 0; tries < 64 && PANDO__OBJECT_IS_SHARED(word); tries++) {
		if (PANDO__OBJECT_HOLDER(word) != l->dead) {
			l->others |= !PANDO__OBJECT_OF_NOBODY(word);
			return;
		}
		if (pando__cas_acq_rel(&v->objects[granule], &word, PANDO__OBJECT_REMOTE)) {
			PANDO_INJECT("heap.reap.held");
			l->remote |= PANDO__SPAN_REMOTE(granule * PANDO__GRANULE);
			l->out->objects++;
			l->out->bytes += object_bytes(v, granule);
			return;
		}
	}
	l->others |= PANDO__OBJECT_IS_SHARED(word);
}

/* As pando__remote_hint(), for all of them at once. */
static void hint_held(const struct pando__view *v, uint64_t index, uint32_t bits)
{
	struct pando__span *span = &v->spans[index];
	uint64_t word;

	/* Partner: rebuild_finish() and who adopts, which change the word, then look at this one. */
	(void)pando__or_seq_cst(&span->remote, bits);
	word = pando__load_seq_cst(&span->word);
	if (PANDO__SPAN_OWNER(word) == PANDO__OWNER_ORPHAN)
		pando__store_release(&v->heap->orphan_remote.value, 1);
	else if (PANDO__SPAN_OWNER(word) > 0 && PANDO__SPAN_OWNER(word) <= PANDO__HEAP_CLIENTS)
		pando__store_release(&v->clients[PANDO__SPAN_OWNER(word) - 1].remote, 1);
}

static void free_held(const struct pando__view *v, uint64_t index, uint32_t dead,
		      struct pando__reclaimed *out)
{
	const uint64_t begin = index * PANDO__SPAN_GRANULES;
	uint16_t *held = &v->spans[index].held;
	uint16_t looking = HELD_LOOKING;
	struct held_look l = {.v = v, .dead = dead, .out = out};

	/* Partner: who transfers stores 1 after the object's word. */
	pando__store_seq_cst(held, HELD_LOOKING);
	for (uint64_t g = begin; g < begin + PANDO__SPAN_GRANULES; g += 4) {
		const uint64_t x = pando__load_relaxed((uint64_t *)(void *)&v->objects[g]);

		if (x & (x >> 1) & PANDO__LANES)
			for (uint64_t i = g; i < g + 4; i++)
				free_one_held(&l, i);
	}
	/* Killed before this: the words are found by pando__heap_recover(). */
	if (l.remote)
		hint_held(v, index, l.remote);
	(void)pando__cas_seq_cst(held, &looking, l.others ? 1 : 0);
}

/* --- what has a name --- */

bool pando__object_withdraw(const struct pando__view *v, uint64_t offset, uint32_t slot)
{
	uint16_t word = PANDO__OBJECT_SHARED(PANDO__HOLDER_DIRECTORY);
	const uint16_t held = PANDO__OBJECT_SHARED(slot + 1);
	bool done;

	done = pando__cas_seq_cst(&v->objects[offset / PANDO__GRANULE], &word, held) ||
	       word == held;
	/* After the word, as in a transfer: who takes this down looks at the words after that. */
	if (done && pando__load_seq_cst(&v->spans[offset / PANDO__SPAN].held) != 1)
		pando__store_seq_cst(&v->spans[offset / PANDO__SPAN].held, 1);
	return done;
}

/* --- orphans, one --- */

static void sweep_span(const struct pando__view *v, uint64_t index, uint64_t word,
		       struct pando__reclaimed *out)
{
	struct pando__rebuild b = {.v = v, .out = out};

	if (!pando__rebuild_take(v, index, word))
		return; /* adopted */
	PANDO_INJECT("heap.sweep.taken");
	pando__rebuild_span(&b, index);
	pando__rebuild_finish(v, index, out);
}

/*
 * Sweeps that were begun and not finished, before anything else becomes an orphan: where an object
 * reaches over several spans, the second attempt must find them as the first one left them, or in
 * living hands.
 */
static void finish_sweeps(const struct pando__view *v, struct pando__reclaimed *out)
{
	for (uint64_t i = first_span(v); i < end_span(v); i++) {
		const uint64_t word = pando__load_relaxed(&v->spans[i].word);

		if (PANDO__SPAN_STATE(word) == PANDO__SPAN_SWEEPING)
			sweep_span(v, i, word, out);
	}
}

/* --- the dead --- */

static bool judged(const struct pando__view *v, uint64_t index, uint32_t dead)
{
	const uint64_t word = pando__load_relaxed(&v->spans[index].word);

	return PANDO__SPAN_OWNER(word) == dead && PANDO__SPAN_STATE(word) == PANDO__SPAN_SWEEPING;
}

/* Makes a span of the dead client ours. False if it is none. */
static bool take_dead(const struct pando__view *v, uint64_t index, uint32_t dead)
{
	struct pando__span *span = &v->spans[index];
	uint64_t word = pando__load_acquire(&span->word);

	if (PANDO__SPAN_OWNER(word) != dead)
		return false;
	if (PANDO__SPAN_STATE(word) == PANDO__SPAN_SWEEPING)
		return true;
	return PANDO__SPAN_STATE(word) == PANDO__SPAN_OWNED &&
	       pando__cas_acq_rel(
		       &span->word, &word,
		       PANDO__SPAN_WORD(dead, PANDO__SPAN_SWEEPING, PANDO__SPAN_COUNT(word)));
}

/*
 * From here on nobody is told that the slabs of a dead client are a living one's: who comes to free
 * something there changes its word by compare-and-swap.
 */
static void take_slabs(const struct pando__view *v, uint64_t index, uint32_t dead)
{
	for (uint64_t p = index * PANDO__SPAN_PAGES; p < (index + 1) * PANDO__SPAN_PAGES; p++) {
		const uint32_t entry = pando__load_relaxed(&v->page_table[p]);
		const unsigned int class = PANDO__PAGE_CLASS(entry);

		if (PANDO__PAGE_OWNER(entry) == dead && class < PANDO__CLASSES)
			pando__store_release(&v->page_table[p],
					     PANDO__PAGE_ENTRY(PANDO__OWNER_ORPHAN, class, 0));
	}
}

/* All clients have executed a full barrier between two instructions. */
static void barrier(void)
{
	const struct timespec nap = {.tv_nsec = DRAINED_NS};

	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) < 0)
		(void)nanosleep(&nap, NULL);
}

/* What somebody is freeing, of the dead, is its own from here on. See remote.c. */
static void give_to_freers(const struct pando__view *v, const char *slots, uint32_t dead)
{
	for (uint32_t s = 0; s < slots_end(v); s++) {
		const struct pando__intent *intents = intents_of(slots, s);

		for (unsigned int i = 0; i < PANDO__INTENTS && s + 1 != dead; i++) {
			const uint64_t what = pando__load_acquire(&intents[i].what);
			const uint64_t offset = PANDO__INTENT_OFFSET(what);
			uint16_t word = PANDO__OBJECT_LIVE;

			if (PANDO__INTENT_KIND(what) != PANDO__INTENT_FREE || offset < v->first ||
			    offset >= v->end || !judged(v, offset / PANDO__SPAN, dead))
				continue;
			(void)pando__cas_seq_cst(&v->objects[offset / PANDO__GRANULE], &word,
						 PANDO__OBJECT_SHARED(s + 1));
			PANDO_INJECT("heap.reap.freer");
		}
	}
}

/* All of its spans are SWEEPING after this, and nobody frees in their slabs by plain stores. */
static void take_spans(const struct pando__view *v, const char *slots, uint32_t dead)
{
	bool any = false;

	for (uint64_t i = first_span(v); i < end_span(v); i++)
		if (take_dead(v, i, dead)) {
			PANDO_INJECT("heap.reap.taken");
			take_slabs(v, i, dead);
			any = true;
		}
	if (!any)
		return;
	barrier();
	PANDO_INJECT("heap.reap.barrier");
	give_to_freers(v, slots, dead);
}

static void judge_spans(const struct pando__view *v, uint32_t dead, struct pando__reclaimed *out)
{
	struct pando__rebuild b = {.v = v, .out = out, .dead = dead};

	for (uint64_t i = first_span(v); i < end_span(v); i++) {
		const uint64_t word = pando__load_relaxed(&v->spans[i].word);

		if (judged(v, i, dead)) {
			pando__rebuild_span(&b, i);
			continue;
		}
		b.carry = 0;
		if (pando__span_in_use(word) && pando__load_relaxed(&v->spans[i].held))
			free_held(v, i, dead, out);
		else if (PANDO__SPAN_STATE(word) == PANDO__SPAN_ABSENT)
			pando__span_finish(v, (uint32_t)i, dead);
	}
}

/* Descending: while a span is SWEEPING, so are those of the dead before it. */
static void finish_spans(const struct pando__view *v, uint32_t dead, struct pando__reclaimed *out)
{
	for (uint64_t i = end_span(v); i-- > first_span(v);)
		if (judged(v, i, dead))
			pando__rebuild_finish(v, i, out);
}

int pando__heap_reap(const struct pando__view *v, const char *slots, uint32_t slot,
		     struct pando__reclaimed *out)
{
	memset(out, 0, sizeof(*out));
	if (!pando__heap_there(v))
		return 1;
	if (slot >= PANDO__HEAP_CLIENTS)
		return 0;
	finish_sweeps(v, out);
	finish_intents(v, intents_of(slots, slot));
	take_spans(v, slots, slot + 1);
	judge_spans(v, slot + 1, out);
	PANDO_INJECT("heap.reap.judged");
	finish_spans(v, slot + 1, out);
	PANDO_INJECT("heap.reap.finished");
	if (pando__load_relaxed(&v->heap->orphan_remote.value)) {
		struct pando__reclaimed more;

		(void)pando__heap_sweep(v, &more);
		out->spans_freed += more.spans_freed;
	}
	memset(&v->clients[slot], 0, sizeof(v->clients[slot]));
	return 0;
}

/* --- all orphans --- */

int pando__heap_sweep(const struct pando__view *v, struct pando__reclaimed *out)
{
	uint64_t orphans = 0;

	memset(out, 0, sizeof(*out));
	if (!pando__heap_there(v))
		return 1;
	/* Partner: pando__remote_hint(), which sets it after the span's bit. */
	(void)pando__exchange_seq_cst(&v->heap->orphan_remote.value, 0);
	for (uint64_t i = first_span(v); i < end_span(v); i++) {
		uint64_t word = pando__load_acquire(&v->spans[i].word);

		if (PANDO__SPAN_OWNER(word) != PANDO__OWNER_ORPHAN)
			continue;
		if (PANDO__SPAN_STATE(word) == PANDO__SPAN_SWEEPING ||
		    (PANDO__SPAN_STATE(word) == PANDO__SPAN_ORPHAN &&
		     pando__load_relaxed(&v->spans[i].remote)))
			sweep_span(v, i, word, out);
		word = pando__load_relaxed(&v->spans[i].word);
		orphans += PANDO__SPAN_STATE(word) == PANDO__SPAN_ORPHAN;
	}
	pando__store_relaxed(&v->heap->orphans.value, orphans);
	return 0;
}

/* --- the idle --- */

/* REMOTE becomes FREE in one slab. Returns how many did; *used: something else is there as well. */
static unsigned int collect_slab(const struct pando__view *v, uint64_t page, bool *used)
{
	const uint64_t begin = page * PANDO__PAGE_GRANULES;
	unsigned int freed = 0;

	*used = false;
	for (uint64_t g = begin; g < begin + PANDO__SLAB_GRANULES; g += 4) {
		if (pando__load_seq_cst((uint64_t *)(void *)&v->objects[g]) == 0)
			continue;
		for (uint64_t i = g; i < g + 4; i++) {
			uint16_t word = pando__load_relaxed(&v->objects[i]);

			/* The owner may be doing the same. */
			if (word == PANDO__OBJECT_REMOTE)
				freed += pando__cas_acq_rel(&v->objects[i], &word,
							    PANDO__OBJECT_FREE);
			else if (word != PANDO__OBJECT_FREE)
				*used = true;
		}
	}
	return freed;
}

/*
 * One slab. Its owner is kept from refilling it and from giving it back meanwhile; an owner who is
 * refilling is not idle.
 */
static void collect_eighth(const struct pando__view *v, uint64_t page, uint32_t owner,
			   struct pando__reclaimed *out)
{
	const uint32_t entry = pando__load_acquire(&v->page_table[page]);
	const unsigned int class = PANDO__PAGE_CLASS(entry);
	uint32_t *hints = &v->spans[page / PANDO__SPAN_PAGES].remote;
	const uint32_t bit = PANDO__SPAN_REMOTE(page * PANDO__PAGE);
	uint32_t seen = entry, after = entry;
	unsigned int freed;
	bool used;

	/* Large objects stay: their jemalloc has to know, and that is the owner's. */
	if (class == PANDO__CLASS_NONE || class >= PANDO__CLASSES ||
	    PANDO__PAGE_OWNER(entry) != owner ||
	    (PANDO__PAGE_FLAGS(entry) & (PANDO__PAGE_BUSY | PANDO__PAGE_EMPTYING)) ||
	    !pando__cas_acq_rel(&v->page_table[page], &seen, entry | PANDO__PAGE_EMPTYING))
		return;
	PANDO_INJECT("heap.idle.emptying");
	/* Killed after this: pando__heap_recover() finds the words. */
	(void)pando__and_seq_cst(hints, ~bit);
	freed = collect_slab(v, page, &used);
	PANDO_INJECT("heap.idle.collected");
	if (!used && v->lazy) {
		pando__decommit(v, page * PANDO__PAGE, PANDO__SLAB);
		after |= PANDO__PAGE_EMPTY;
	}
	PANDO_INJECT("heap.idle.emptied");
	pando__store_release(&v->page_table[page], after);
	(void)pando__or_seq_cst(hints, bit << 8);
	out->objects += freed;
	out->bytes += (uint64_t)freed * pando__classes[class].size;
}

int pando__heap_collect_idle(const struct pando__view *v, uint32_t slot,
			     struct pando__reclaimed *out)
{
	memset(out, 0, sizeof(*out));
	if (!pando__heap_there(v))
		return 1;
	if (slot >= PANDO__HEAP_CLIENTS)
		return 0;
	for (uint64_t i = first_span(v); i < end_span(v); i++) {
		const uint64_t word = pando__load_acquire(&v->spans[i].word);
		const uint32_t bits = pando__load_seq_cst(&v->spans[i].remote) & 0xffu;

		if (PANDO__SPAN_STATE(word) != PANDO__SPAN_OWNED ||
		    PANDO__SPAN_OWNER(word) != slot + 1)
			continue;
		for (unsigned int k = 0; bits >> k; k++)
			if (bits >> k & 1u)
				collect_eighth(v, i * PANDO__SPAN_PAGES + k * PANDO__SLAB_PAGES,
					       slot + 1, out);
	}
	/* Large objects are left: the owner's line still says so. */
	if (out->objects)
		pando__store_seq_cst(&v->clients[slot].recount, 1);
	return 0;
}

/* --- a broker that was started again --- */

/* Words that are REMOTE, or held by a client, without a hint that says so. */
static void hint_anew(const struct pando__view *v, uint64_t index)
{
	const uint64_t begin = index * PANDO__SPAN_GRANULES;

	for (uint64_t g = begin; g < begin + PANDO__SPAN_GRANULES; g += 4) {
		const uint64_t x = pando__load_relaxed((uint64_t *)(void *)&v->objects[g]);

		if ((x & (PANDO__LANES << 1)) == 0)
			continue;
		for (uint64_t i = g; i < g + 4; i++) {
			const uint16_t word = pando__load_relaxed(&v->objects[i]);

			if (word == PANDO__OBJECT_REMOTE)
				pando__remote_hint(v, i * PANDO__GRANULE);
			else if (PANDO__OBJECT_IS_SHARED(word) && !PANDO__OBJECT_OF_NOBODY(word))
				pando__store_release(&v->spans[index].held, 1);
		}
	}
}

/* Slabs that the broker was emptying: they may have no memory. */
static void end_emptying(const struct pando__view *v, uint64_t index)
{
	for (uint64_t p = index * PANDO__SPAN_PAGES; p < (index + 1) * PANDO__SPAN_PAGES;
	     p += PANDO__SLAB_PAGES) {
		const uint32_t entry = pando__load_relaxed(&v->page_table[p]);

		if (PANDO__PAGE_FLAGS(entry) & PANDO__PAGE_EMPTYING)
			pando__store_release(&v->page_table[p],
					     (entry & ~PANDO__PAGE_EMPTYING) | PANDO__PAGE_EMPTY);
	}
}

int pando__heap_recover(const struct pando__view *v, struct pando__reclaimed *out)
{
	memset(out, 0, sizeof(*out));
	if (!pando__heap_there(v))
		return 1;
	for (uint64_t i = first_span(v); i < end_span(v); i++) {
		const uint64_t word = pando__load_acquire(&v->spans[i].word);

		if (pando__span_in_use(word)) {
			hint_anew(v, i);
			end_emptying(v, i);
			pando__span_unlend(v, (uint32_t)i);
		} else if (PANDO__SPAN_STATE(word) == PANDO__SPAN_ABSENT)
			pando__span_finish(v, (uint32_t)i, PANDO__OWNER_BROKER);
	}
	return pando__heap_sweep(v, out);
}
