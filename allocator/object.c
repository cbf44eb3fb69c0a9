/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One object: who holds it, handing it on, freeing it when the fast path does not apply, misuse.
 *
 * Everything here begins with look(): is this an address at which an object begins, and what does
 * its word say? A word then changes by one compare-and-swap from what was seen; if another thread or
 * process was faster, its new value decides. So two who free, transfer or share the same object at
 * once are put in an order, and the second one is told.
 *
 * Freeing an object in another client's span is in remote.c.
 *
 * Giving an object to another client:
 *
 *	intent TRANSFER		with the receiver's slot and generation: the slot is not given away
 *				while it stands
 *	receiver alive?		else: -ESRCH, nothing has happened
 *	word -> SHARED(to)	from here on it is the receiver's
 *	span.held		so that the broker looks here when the receiver dies
 *	receiver alive?		else the broker may have looked before that: freed on the receiver's
 *				behalf. Not taken back: if the receiver had freed it before it died, the
 *				same word may by now be another object's, given to the same one
 *	intent cleared
 *
 * Misuse is found by the word (free already, another's) or by the address (outside, inside an
 * object); the heap is as before in every case, and the handler is told.
 */
#include "debug.h"
#include "remote.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

static pando_misuse_fn misuse_handler;
static void *misuse_arg;

void pando_heap_on_misuse(pando_misuse_fn handler, void *arg)
{
	misuse_arg = arg;
	misuse_handler = handler;
}

/* The address of one object, and what is known of it. */
struct seen {
	uint64_t offset;
	uint32_t entry; /* of its page */
	uint16_t word;
};

/* The offset in its slab of the object that `offset` lies in; *begins: is it its first byte? */
static uint32_t index_in_slab(uint64_t offset, unsigned int class, bool *begins)
{
	uint32_t granule = (uint32_t)(offset / PANDO__GRANULE % PANDO__SLAB_GRANULES);
	uint32_t index = granule * pando__classes[class].inverse >> 16;

	*begins = offset % PANDO__GRANULE == 0 &&
		  index * (pando__classes[class].size / PANDO__GRANULE) == granule &&
		  index < pando__classes[class].count;
	return index;
}

/* True if a live large object begins before offset and reaches over it. */
static bool inside_large(const struct pando__view *v, uint64_t offset)
{
	uint64_t at = offset / PANDO__GRANULE * PANDO__GRANULE;

	while (at > v->first) {
		uint32_t entry;
		uint16_t word;

		at -= PANDO__GRANULE;
		entry = pando__load_relaxed(&v->page_table[at / PANDO__PAGE]);
		if (PANDO__PAGE_CLASS(entry) != PANDO__CLASS_LARGE)
			return false;
		word = pando__load_acquire(pando__word(v, at));
		if (word == PANDO__OBJECT_FREE || PANDO__OBJECT_IS_LENGTH(word))
			continue;
		return (word == PANDO__OBJECT_LIVE || PANDO__OBJECT_IS_SHARED(word)) &&
		       at + pando__large_size(v, at) > offset;
	}
	return false;
}

/*
 * Looks at p. 0: an object begins there, which is neither free nor CACHED nor REMOTE; else what is
 * wrong with it.
 */
static int look(const struct pando__view *v, const void *p, struct seen *s)
{
	enum pando__span_state span;
	unsigned int class;
	bool begins = true;

	s->offset = pando__offset(v, p);
	if (s->offset < v->first || s->offset >= v->end)
		return PANDO_MISUSE_NOT_OURS;
	/* Behind a span that is nobody's, the page table may have no memory. */
	span = PANDO__SPAN_STATE(pando__load_acquire(&v->spans[s->offset / PANDO__SPAN].word));
	s->entry = 0;
	if (span == PANDO__SPAN_OWNED || span == PANDO__SPAN_ORPHAN || span == PANDO__SPAN_SWEEPING)
		s->entry = pando__load_acquire(&v->page_table[s->offset / PANDO__PAGE]);
	class = PANDO__PAGE_CLASS(s->entry);
	if (class == PANDO__CLASS_NONE || PANDO__PAGE_OWNER(s->entry) == 0)
		return s->offset % PANDO__GRANULE ? PANDO_MISUSE_INTERIOR
						  : PANDO_MISUSE_DOUBLE_FREE;
	if (class < PANDO__CLASSES)
		(void)index_in_slab(s->offset, class, &begins);
	else if (class != PANDO__CLASS_LARGE || s->offset % PANDO__GRANULE)
		begins = false;
	if (!begins)
		return PANDO_MISUSE_INTERIOR;
	s->word = pando__load_acquire(pando__word(v, s->offset));
	if (s->word == PANDO__OBJECT_LIVE || PANDO__OBJECT_IS_SHARED(s->word))
		return 0;
	if (class == PANDO__CLASS_LARGE && s->word != PANDO__OBJECT_CACHED &&
	    s->word != PANDO__OBJECT_REMOTE && inside_large(v, s->offset))
		return PANDO_MISUSE_INTERIOR;
	return PANDO_MISUSE_DOUBLE_FREE;
}

void pando__misused(struct pando_region *r, const void *p, enum pando_misuse what,
		    const char *doing)
{
	static const char *const why[] = {
		[PANDO_MISUSE_NOT_OURS] = "is no address of the region's objects",
		[PANDO_MISUSE_INTERIOR] = "is not the beginning of an object",
		[PANDO_MISUSE_DOUBLE_FREE] = "is free already, or was never allocated",
		[PANDO_MISUSE_FOREIGN] = "is held by another client, or published",
		[PANDO_MISUSE_OVERRUN] = "has been written beyond its end",
		[PANDO_MISUSE_WRITTEN_FREE] = "has been written while it was free",
	};
	const struct pando__gate *gate = (const struct pando__gate *)(const void *)r;
	const struct pando__front *f = pando__load_acquire(&gate->front);
	char sentence[PANDO__ERROR_MAX], known[PANDO__ERROR_MAX / 2] = "";

	if (f && f->debug)
		pando__debug_tell(f, p, known, sizeof(known));
	snprintf(sentence, sizeof(sentence), "%s %p: it %s%s", doing, p, why[what], known);
	pando__fail(EINVAL, "%s", sentence);
	if (misuse_handler) {
		misuse_handler(r, p, what, sentence, misuse_arg);
		return;
	}
	/* One write, so that it stays one line among those of other processes. */
	dprintf(STDERR_FILENO, "pando: %s\n", sentence);
	abort();
}

uint64_t pando__object_size(const struct pando__view *v, uint64_t offset)
{
	uint32_t entry = pando__load_acquire(&v->page_table[offset / PANDO__PAGE]);
	unsigned int class = PANDO__PAGE_CLASS(entry);

	if (class == PANDO__CLASS_LARGE)
		return pando__large_size(v, offset);
	return class < PANDO__CLASSES ? pando__classes[class].size : 0;
}

static bool free_own(struct pando__front *f, struct seen *s, void *p)
{
	if (!pando__cas_seq_cst(pando__word(&f->view, s->offset), &s->word, PANDO__OBJECT_CACHED))
		return false;
	PANDO_INJECT("heap.free.cached");
	if (PANDO__PAGE_CLASS(s->entry) == PANDO__CLASS_LARGE)
		pando__large_free(f, s->offset, s->entry);
	else
		pando__magazine_push(f, PANDO__PAGE_CLASS(s->entry), p);
	return true;
}

/* May this client free, transfer or share it? */
static bool may(const struct pando__front *f, const struct seen *s, bool others_private)
{
	unsigned int holder = PANDO__OBJECT_HOLDER(s->word);

	if (PANDO__OBJECT_IS_SHARED(s->word))
		return holder == PANDO__HOLDER_REGION || holder == f->me;
	return others_private || PANDO__PAGE_OWNER(s->entry) == f->me;
}

/* In the debug form: has it been written beyond its end? */
static int overrun(struct pando__front *f, const struct seen *s, const void *p)
{
	bool own_private = s->word == PANDO__OBJECT_LIVE && PANDO__PAGE_OWNER(s->entry) == f->me;

	return pando__debug_whole(f, p, own_private) ? 0 : PANDO_MISUSE_OVERRUN;
}

/* Looks at p, which is to be freed or resized; `doing` says which. False: it must not be, as told. */
static bool usable(struct pando_region *r, struct pando__front *f, const void *p, struct seen *s,
		   const char *doing)
{
	int wrong = look(&f->view, p, s);

	if (wrong == 0 && !may(f, s, true))
		wrong = PANDO_MISUSE_FOREIGN;
	if (wrong == 0 && f->debug)
		wrong = overrun(f, s, p);
	if (wrong != 0)
		pando__misused(r, p, (enum pando_misuse)wrong, doing);
	return wrong == 0;
}

void pando__object_free(struct pando_region *r, struct pando__front *f, void *p, const void *site)
{
	struct seen s;

	do {
		if (!usable(r, f, p, &s, "freeing"))
			return;
		if (f->debug)
			pando__debug_freeing(f, p, PANDO__PAGE_OWNER(s.entry) == f->me, site);
	} while (!(PANDO__PAGE_OWNER(s.entry) == f->me ? free_own(f, &s, p)
						       : pando__remote_free(f, s.offset, s.word)));
}

size_t pando_usable_size(struct pando_region *r, const void *p)
{
	struct pando__front *f = pando__region_front(r);
	uint64_t size;
	struct seen s;

	if (!f || look(&f->view, p, &s) != 0)
		return 0;
	size = pando__object_size(&f->view, s.offset);
	(void)pando__debug_size(&f->view, s.offset, &size);
	return size;
}

static pando_holder holder_name(const struct pando__front *f, unsigned int client)
{
	const struct pando__ledger_client *c;

	if (client == 0 || client > PANDO__HEAP_CLIENTS)
		return 0;
	c = pando__ledger_client((struct pando__ledger *)(uintptr_t)f->view.ledger, client - 1);
	return client | PANDO__CLIENT_GENERATION(pando__load_acquire(&c->word)) << 16;
}

pando_holder pando_self(struct pando_region *r)
{
	struct pando__front *f = pando__region_front(r);

	return f ? f->me | f->generation << 16 : 0;
}

enum pando_holding pando_owner(struct pando_region *r, const void *p, pando_holder *holder)
{
	struct pando__front *f = pando__region_front(r);
	unsigned int client;
	struct seen s;

	if (holder)
		*holder = 0;
	if (!f || look(&f->view, p, &s) != 0)
		return PANDO_HOLDING_NONE;
	client = PANDO__PAGE_OWNER(s.entry);
	if (PANDO__OBJECT_IS_SHARED(s.word))
		client = PANDO__OBJECT_HOLDER(s.word);
	if (PANDO__OBJECT_IS_SHARED(s.word) && client == PANDO__HOLDER_REGION)
		return PANDO_HOLDING_SHARED;
	if (PANDO__OBJECT_IS_SHARED(s.word) && client == PANDO__HOLDER_DIRECTORY)
		return PANDO_HOLDING_PUBLISHED;
	if (holder)
		*holder = holder_name(f, client);
	return PANDO__OBJECT_IS_SHARED(s.word) ? PANDO_HOLDING_HELD : PANDO_HOLDING_PRIVATE;
}

static int cannot(int err, const struct pando__front *f, const void *p, const char *doing)
{
	return pando__fail(err, "%s %p of region \"%.63s\": %s", doing, p, f->view.ledger->name,
			   err == EPERM	     ? "another client holds it, or it is published"
			   : err == EALREADY ? "it is published already"
					     : "no object begins there");
}

static int gone(const struct pando__front *f, const void *p)
{
	return pando__fail(ESRCH, "giving %p of region \"%.63s\" away: the receiver has detached",
			   p, f->view.ledger->name);
}

/* The steps of a transfer under its intent. 1: the word was another by then; else the result. */
static int give(struct pando__front *f, struct seen *s, pando_holder to)
{
	uint16_t *word = pando__word(&f->view, s->offset);
	uint16_t given = PANDO__OBJECT_SHARED((unsigned int)(to & 0xffff));

	PANDO_INJECT("heap.transfer.intent");
	if (!pando__attached(&f->view, to))
		return -ESRCH;
	if (!pando__cas_seq_cst(word, &s->word, given))
		return 1;
	PANDO_INJECT("heap.transfer.given");
	/* After the word: the broker, while it looks at the words, has another value there. */
	if (pando__load_seq_cst(&f->view.spans[s->offset / PANDO__SPAN].held) != 1)
		pando__store_seq_cst(&f->view.spans[s->offset / PANDO__SPAN].held, 1);
	PANDO_INJECT("heap.transfer.held");
	/* Who is reaped says so before its objects are looked for. */
	if (pando__attached(&f->view, to))
		return 0;
	PANDO_INJECT("heap.transfer.gone");
	/* Whatever has this word is the dead one's: nobody else is given its slot as yet. */
	if (pando__cas_seq_cst(word, &given, PANDO__OBJECT_REMOTE)) {
		PANDO_INJECT("heap.transfer.remote");
		pando__remote_tell(&f->view, s->offset);
	}
	return 0;
}

int pando_transfer(struct pando_region *r, void *p, pando_holder to)
{
	struct pando__front *f = pando__region_front(r);
	struct pando__magazines *m;
	struct pando__intent *intent;
	struct seen s;
	int rc;

	if (!f)
		return -errno;
	if ((to & 0xffff) > PANDO__HEAP_CLIENTS)
		return pando__fail(EUSERS, "slot %u cannot hold objects: slots below %u can",
				   (unsigned int)(to & 0xffff) - 1, PANDO__HEAP_CLIENTS);
	do {
		if (look(&f->view, p, &s) != 0)
			return cannot(EINVAL, f, p, "giving away");
		if (!may(f, &s, false))
			return cannot(EPERM, f, p, "giving away");
		m = pando__magazines(f);
		if (m)
			pando__remote_settle(m);
		intent = pando__intent_lock(f);
		pando__store_relaxed(&intent->to, to);
		/* Before the look at the receiver; partner: the broker, which looks here after that. */
		pando__store_seq_cst(&intent->what,
				     PANDO__INTENT(PANDO__INTENT_TRANSFER, s.offset));
		rc = give(f, &s, to);
		PANDO_INJECT("heap.transfer.done");
		pando__store_release(&intent->what, 0);
		pando__intent_unlock(f, intent);
	} while (rc == 1);
	return rc < 0 ? gone(f, p) : 0;
}

int pando_share(struct pando_region *r, void *p)
{
	struct pando__front *f = pando__region_front(r);
	struct seen s;

	if (!f)
		return -errno;
	do {
		if (look(&f->view, p, &s) != 0)
			return cannot(EINVAL, f, p, "sharing");
		if (!may(f, &s, false))
			return cannot(EPERM, f, p, "sharing");
		if (s.word == PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION))
			return 0;
		PANDO_INJECT("heap.share.word");
	} while (!pando__cas_seq_cst(pando__word(&f->view, s.offset), &s.word,
				     PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION)));
	PANDO_INJECT("heap.share.done");
	return 0;
}

int pando__object_publish(struct pando_region *r, void *p)
{
	const uint16_t published = PANDO__OBJECT_SHARED(PANDO__HOLDER_DIRECTORY);
	struct pando__front *f = pando__region_front(r);
	struct seen s;

	if (!f)
		return -errno;
	do {
		if (look(&f->view, p, &s) != 0)
			return cannot(EINVAL, f, p, "publishing");
		if (s.word == published)
			return cannot(EALREADY, f, p, "publishing");
		if (!may(f, &s, false) || s.word == PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION))
			return cannot(EPERM, f, p, "publishing");
	} while (!pando__cas_seq_cst(pando__word(&f->view, s.offset), &s.word, published));
	return 0;
}

/*
 * Makes a new object what the old one was. A shared one is shared before the old one is freed: who
 * is killed in between leaves both, and whatever pointers there are stay valid.
 */
static void inherit(struct pando__front *f, void *p, uint16_t word)
{
	uint64_t offset = pando__offset(&f->view, p);

	if (word == PANDO__OBJECT_LIVE)
		return;
	pando__store_release(pando__word(&f->view, offset), word);
	if (PANDO__OBJECT_HOLDER(word) != PANDO__HOLDER_REGION)
		pando__store_seq_cst(&f->view.spans[offset / PANDO__SPAN].held, 1);
	PANDO_INJECT("heap.realloc.inherited");
}

/* True if an object of `old` bytes may as well stay where it is when `size` are wanted. */
static bool fits(uint64_t old, size_t size)
{
	if (size > old)
		return false;
	if (old <= PANDO__SMALL_MAX)
		return size > old / 2 || old == PANDO__GRANULE;
	return size > old / 4 * 3;
}

void *pando_realloc(struct pando_region *r, void *p, size_t size)
{
	const void *site = __builtin_return_address(0);
	struct pando__front *f;
	struct seen s;
	uint64_t old;
	void *to;

	if (!p)
		return pando__alloc_for(r, size, site);
	f = pando__region_front(r);
	if (!f)
		return NULL;
	if (!usable(r, f, p, &s, "resizing")) {
		errno = EINVAL;
		return NULL;
	}
	old = pando__object_size(&f->view, s.offset);
	if (!pando__debug_size(&f->view, s.offset, &old) && !f->debug && fits(old, size))
		return p;
	to = pando__alloc_for(r, size, site);
	if (!to)
		return NULL;
	memcpy(to, p, old < size ? old : size);
	inherit(f, to, s.word);
	pando__free_for(r, p, site);
	return to;
}
