/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Objects over PANDO__SMALL_MAX.
 *
 *	up to 32 KiB	jemalloc: an arena of this client, whose extents are runs of pages in its spans
 *	beyond, or at	a run of pages each, that is LOOSE from the beginning: no jemalloc knows it.
 *	over a page	Less memory is lost than in jemalloc's size classes, and it comes and goes by
 *			itself
 *
 * What others see is the same: pages of class LARGE, a head word, and three words with the length.
 *
 *	alloc	memory; length words; head: LIVE
 *	free	head: FREE (the caller has made it CACHED); length words cleared; memory back
 *
 * Killed in between: a head that is CACHED or FREE, or length words without a head, in spans of a
 * dead client: the broker clears them, and frees the pages, since there is no object.
 *
 * jemalloc is private (see jemalloc/build) and its metadata is private memory. It writes nothing into
 * free extents, and keeps none: what it does not use goes through the hooks back to pages.c at once,
 * which keeps some of it within a bound. So nothing has to run later for memory to be returned, in a
 * process that may sleep for hours. Threads have explicit caches of it, in their magazines.
 *
 * Of spans that were adopted, jemalloc knows nothing: their objects are LOOSE as well. There, objects
 * of some KiB may share a page, which goes when the last of them does. So who frees one does all of
 * it, from its words to its pages, under a lock: before that its head is there, and keeps the page;
 * afterwards nothing of it is looked at, since the page may be another's.
 *
 * fork(): the child has no front, so it calls nothing here for what it inherited; that stays, as
 * private memory, and each hook refuses to serve a process which has not made the arena. Detaching:
 * the caches are emptied and the arena is destroyed with hooks that do nothing any more; objects that
 * outlive the client stay where they are, for the broker to see to.
 */
#include "front.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#include "jemalloc/private.h"
#include "rebuild.h"

#define JEMALLOC_MAX (32u << 10) /* its caches hold nothing larger */
/* jemalloc's classes from 1 KiB up to 14 KiB are multiples of 256; larger ones lie anywhere. */
#define SLAB_MAX (14u << 10)
#define SLAB_ALIGN 256u
#define LARGE_ALIGN 64u

struct pando__large {
	pando__je_hooks hooks; /* first: hooks are given its address */
	struct pando__front *front; /* NULL: detached or abandoned; hooks do nothing */
	pid_t pid; /* who made it */
	unsigned int arena; /* + 1; 0: not made yet. Set once, under lock, with release */

	pthread_mutex_t lock; /* arena, caches, shared pages; before jemalloc's locks */
	unsigned int *caches; /* of all threads */
	unsigned int cache_count, cache_room;
	struct pando__large *next; /* of those that were abandoned, which jemalloc still knows */
};

static struct pando__large *abandoned;

/*
 * jemalloc's options, which it finds by this name. Of arenas of its own it needs one, which serves
 * nobody; caches are made here, for threads that have large objects; it keeps nothing from the
 * hooks, and starts no thread.
 */
extern const char *pando__je_malloc_conf;
const char *pando__je_malloc_conf =
	"narenas:1,tcache:false,retain:false,dirty_decay_ms:0,muzzy_decay_ms:0,"
	"background_thread:false,abort_conf:false";

/* Why the last hook of this thread failed. */
static _Thread_local int hook_error;

char *pando__je_no_getenv(const char *name)
{
	(void)name;
	return NULL;
}

long pando__je_no_readlink(const char *path, char *buf, size_t size)
{
	(void)path;
	(void)buf;
	(void)size;
	errno = ENOENT;
	return -1;
}

/* ---- the hooks: called with jemalloc's locks held --------------------------------------------- */

/* The front that the arena is for; NULL in another process, and when the front is gone. */
static struct pando__front *front_of(pando__je_hooks *hooks)
{
	struct pando__large *l = (struct pando__large *)(void *)hooks;

	return l->pid == getpid() ? l->front : NULL;
}

static void *hook_alloc(pando__je_hooks *hooks, void *new_addr, size_t size, size_t alignment,
			bool *zero, bool *commit, unsigned int arena)
{
	struct pando__front *f = front_of(hooks);
	bool there;
	int64_t at;
	int rc;

	(void)arena;
	hook_error = ENOMEM;
	if (!f || new_addr)
		return NULL;
	at = pando__pages_take(f, size, alignment, PANDO__CLASS_LARGE, 0, &there);
	if (at < 0) {
		hook_error = (int)-at;
		return NULL;
	}
	PANDO_INJECT("heap.large.extent");
	rc = there ? 0 : pando__commit(&f->view, (uint64_t)at, size);
	if (rc < 0) {
		pando__pages_free(f, (uint64_t)at, size);
		hook_error = -rc;
		return NULL;
	}
	if (*zero)
		memset(f->view.base + at, 0, size);
	*commit = true;
	return f->view.base + at;
}

/* Any range of pages that were allocated, in any pieces. */
static bool hook_dalloc(pando__je_hooks *hooks, void *addr, size_t size, bool committed,
			unsigned int arena)
{
	struct pando__front *f = front_of(hooks);

	(void)committed;
	(void)arena;
	if (f)
		pando__pages_free_whole(f, pando__offset(&f->view, addr), size);
	/* Without a front the pages are not this process's to free: jemalloc shall forget them. */
	return false;
}

static void hook_destroy(pando__je_hooks *hooks, void *addr, size_t size, bool committed,
			 unsigned int arena)
{
	(void)hook_dalloc(hooks, addr, size, committed, arena);
}

/* Never refused: a part that cannot be split off could never be returned. */
static bool hook_split(pando__je_hooks *hooks, void *addr, size_t size, size_t size_a,
		       size_t size_b, bool committed, unsigned int arena)
{
	(void)hooks;
	(void)addr;
	(void)size;
	(void)size_a;
	(void)size_b;
	(void)committed;
	(void)arena;
	return false;
}

static bool hook_merge(pando__je_hooks *hooks, void *addr_a, size_t size_a, void *addr_b,
		       size_t size_b, bool committed, unsigned int arena)
{
	(void)hooks;
	(void)addr_a;
	(void)size_a;
	(void)addr_b;
	(void)size_b;
	(void)committed;
	(void)arena;
	return false;
}

/* ---- the arena and the caches ------------------------------------------------------------------ */

static int make_arena(struct pando__large *l)
{
	struct pando__je_arena_config config = {.hooks = &l->hooks, .metadata_use_hooks = false};
	unsigned int arena;
	size_t size = sizeof(arena);
	int err = pando__je_mallctl("experimental.arenas_create_ext", &arena, &size, &config,
				    sizeof(config));

	if (err)
		return pando__fail(ENOMEM, "jemalloc makes no arena: %s", strerror(err));
	/* Pairs with the load in arena_of(): what jemalloc has written is there. */
	pando__store_release(&l->arena, arena + 1);
	return 0;
}

/* The arena + 1, made at the first large object; or 0. */
static unsigned int arena_of(struct pando__large *l)
{
	unsigned int arena = pando__load_acquire(&l->arena);

	if (arena)
		return arena;
	pthread_mutex_lock(&l->lock);
	if (l->arena || make_arena(l) == 0)
		arena = l->arena;
	pthread_mutex_unlock(&l->lock);
	return arena;
}

static bool note_cache(struct pando__large *l, unsigned int cache)
{
	unsigned int room = l->cache_room ? l->cache_room * 2 : 8;
	unsigned int *caches;

	if (l->cache_count == l->cache_room) {
		caches = realloc(l->caches, room * sizeof(*caches));
		if (!caches)
			return false;
		l->caches = caches;
		l->cache_room = room;
	}
	l->caches[l->cache_count++] = cache;
	return true;
}

/*
 * The flags for this thread's cache of that arena; it goes without one if there is no memory. m: what
 * the thread has of the front, or NULL; looked up before enter_jemalloc(), since it may take the lock of
 * thread.c, under which a thread that ends comes to enter_jemalloc().
 */
static int flags_of(struct pando__front *f, struct pando__magazines *m, unsigned int arena)
{
	struct pando__large *l = f->large;
	unsigned int cache;
	size_t size = sizeof(cache);

	if (m && !m->cache && pando__je_mallctl("tcache.create", &cache, &size, NULL, 0) == 0) {
		pthread_mutex_lock(&l->lock);
		if (note_cache(l, cache))
			m->cache = cache + 1;
		else
			(void)pando__je_mallctl("tcache.destroy", NULL, NULL, &cache,
						sizeof(cache));
		pthread_mutex_unlock(&l->lock);
	}
	return PANDO__JE_ARENA(arena - 1) |
	       (m && m->cache ? PANDO__JE_TCACHE((int)m->cache - 1) : PANDO__JE_TCACHE_NONE);
}

/*
 * jemalloc takes its own locks for a fork(), but not all: that of its tree of addresses is held by
 * who meets a new part of it, and would be held for ever in the child. So no thread is in jemalloc
 * while the process is copied. The handlers are registered after jemalloc's (which registers its own
 * when it is loaded), so this lock is taken before those of jemalloc's.
 */
static pthread_rwlock_t forks = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static void enter_jemalloc(void)
{
	(void)pthread_rwlock_rdlock(&forks);
}

static void leave_jemalloc(void)
{
	(void)pthread_rwlock_unlock(&forks);
}

void pando__large_fork_prepare(void)
{
	(void)pthread_rwlock_wrlock(&forks);
}

void pando__large_fork_parent(void)
{
	(void)pthread_rwlock_unlock(&forks);
}

void pando__large_fork_child(void)
{
	forks = (pthread_rwlock_t)PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
}

void pando__large_thread_end(struct pando__front *f, struct pando__magazines *m)
{
	struct pando__large *l = f->large;
	unsigned int cache = m->cache - 1;

	if (!m->cache || !l)
		return;
	m->cache = 0;
	pthread_mutex_lock(&l->lock);
	for (unsigned int i = 0; i < l->cache_count; i++)
		if (l->caches[i] == cache) {
			l->caches[i] = l->caches[--l->cache_count];
			break;
		}
	pthread_mutex_unlock(&l->lock);
	enter_jemalloc();
	(void)pando__je_mallctl("tcache.destroy", NULL, NULL, &cache, sizeof(cache));
	leave_jemalloc();
}

int pando__large_init(struct pando__front *f)
{
	struct pando__large *l = calloc(1, sizeof(*l));

	if (!l)
		return pando__fail(ENOMEM, "no memory for the heap's large objects");
	l->hooks.alloc = hook_alloc;
	l->hooks.dalloc = hook_dalloc;
	l->hooks.destroy = hook_destroy;
	l->hooks.split = hook_split;
	l->hooks.merge = hook_merge;
	l->front = f;
	l->pid = getpid();
	pthread_mutex_init(&l->lock, NULL);
	f->large = l;
	return 0;
}

void pando__large_deinit(struct pando__front *f, bool abandon)
{
	struct pando__large *l = f->large;
	char name[48];

	f->large = NULL;
	if (abandon) { /* jemalloc may hold on to the hooks: they stay, and serve nobody */
		l->front = NULL;
		do
			l->next = pando__load_relaxed(&abandoned);
		while (!pando__cas_acq_rel(&abandoned, &l->next, l));
		return;
	}
	enter_jemalloc();
	while (l->cache_count)
		(void)pando__je_mallctl("tcache.destroy", NULL, NULL, &l->caches[--l->cache_count],
					sizeof(*l->caches));
	free(l->caches);
	l->caches = NULL;
	l->front = NULL;
	if (l->arena) {
		snprintf(name, sizeof(name), "arena.%u.destroy", l->arena - 1);
		(void)pando__je_mallctl(name, NULL, NULL, NULL, 0);
	}
	leave_jemalloc();
	pthread_mutex_destroy(&l->lock);
	free(l);
}

void pando__large_trim(struct pando__front *f)
{
	struct pando__magazines *m = pando__magazines(f);

	if (m && m->cache) {
		unsigned int cache = m->cache - 1;

		enter_jemalloc();
		(void)pando__je_mallctl("tcache.flush", NULL, NULL, &cache, sizeof(cache));
		leave_jemalloc();
	}
}

/* ---- objects ------------------------------------------------------------------------------------ */

/* From here on it is one. */
static void *enter(struct pando__front *f, uint64_t offset, uint64_t size)
{
	uint16_t *words = pando__word(&f->view, offset);

	for (unsigned int i = 0; i < PANDO__LENGTH_WORDS; i++)
		pando__store_relaxed(&words[1 + i], PANDO__OBJECT_LENGTH(size / PANDO__GRANULE, i));
	PANDO_INJECT("heap.large.length");
	/* Pairs with whoever reads the length behind a head. */
	pando__store_release(&words[0], PANDO__OBJECT_LIVE);
	PANDO_INJECT("heap.large.live");
	return f->view.base + offset;
}

/* Returns only after nobody can take it for an object any more. */
static void leave(struct pando__front *f, uint64_t offset)
{
	uint16_t *words = pando__word(&f->view, offset);

	(void)pando__exchange_seq_cst(&words[0], PANDO__OBJECT_FREE);
	PANDO_INJECT("heap.large.dead");
	for (unsigned int i = 0; i < PANDO__LENGTH_WORDS; i++)
		pando__store_release(&words[1 + i], PANDO__OBJECT_FREE);
	PANDO_INJECT("heap.large.left");
}

static void *arena_alloc(struct pando__front *f, size_t alignment, size_t size)
{
	struct pando__magazines *m = pando__magazines(f);
	unsigned int arena;
	int flags = 0;
	void *p = NULL;

	hook_error = ENOMEM;
	enter_jemalloc();
	arena = arena_of(f->large);
	if (arena) {
		flags = flags_of(f, m, arena);
		/* Only where needed: with an alignment jemalloc does not look into its caches. */
		if (alignment > (size <= SLAB_MAX ? SLAB_ALIGN : LARGE_ALIGN))
			flags |= PANDO__JE_LG_ALIGN(__builtin_ctzll(alignment));
		p = pando__je_mallocx(size, flags);
	}
	leave_jemalloc();
	PANDO_INJECT("heap.large.given");
	return p ? enter(f, pando__offset(&f->view, p), pando__je_nallocx(size, flags)) : NULL;
}

static void *loose_alloc(struct pando__front *f, size_t alignment, size_t size)
{
	const uint64_t length = (size + PANDO__PAGE - 1) & ~(uint64_t)(PANDO__PAGE - 1);
	bool there;
	int64_t at = pando__pages_take(f, length, alignment, PANDO__CLASS_LARGE, PANDO__PAGE_LOOSE,
				       &there);
	int rc;

	if (at < 0) {
		hook_error = (int)-at;
		return NULL;
	}
	PANDO_INJECT("heap.large.run");
	rc = there ? 0 : pando__commit(&f->view, (uint64_t)at, length);
	if (rc < 0) {
		pando__pages_free(f, (uint64_t)at, length);
		hook_error = -rc;
		return NULL;
	}
	return enter(f, (uint64_t)at, length);
}

void *pando__large_alloc(struct pando__front *f, size_t alignment, size_t size)
{
	void *p;

	if (size <= PANDO__SMALL_MAX)
		size = PANDO__SMALL_MAX + 1;
	if (alignment < PANDO__GRANULE)
		alignment = PANDO__GRANULE;
	if (size > f->view.max_size) {
		(void)pando__fail(ENOMEM, "region \"%.63s\" has no %zu bytes in a row",
				  f->view.ledger->name, size);
		errno = ENOMEM;
		return NULL;
	}
	p = size <= JEMALLOC_MAX && alignment <= PANDO__PAGE ? arena_alloc(f, alignment, size)
							     : loose_alloc(f, alignment, size);
	if (!p)
		errno = hook_error;
	return p;
}

/* True if an object begins in [from, to), by granules. */
static bool begins_in(const struct pando__view *v, uint64_t from, uint64_t to)
{
	for (uint64_t g = from; g < to; g++) {
		uint16_t word = pando__load_seq_cst(&v->objects[g]);

		if (word != PANDO__OBJECT_FREE && !PANDO__OBJECT_IS_LENGTH(word))
			return true;
	}
	return false;
}

/* True if an object reaches into the page from below. Only those that share pages matter. */
static bool reaches_into(const struct pando__view *v, uint64_t page)
{
	const uint64_t start = page * PANDO__PAGE_GRANULES;
	const uint64_t span = start / PANDO__SPAN_GRANULES * PANDO__SPAN_GRANULES;
	const uint64_t most = JEMALLOC_MAX / PANDO__GRANULE;

	for (uint64_t g = start; g > span && start - g < most; g--) {
		uint16_t word = pando__load_seq_cst(&v->objects[g - 1]);

		/* The nearest one: objects do not overlap. */
		if (word != PANDO__OBJECT_FREE && !PANDO__OBJECT_IS_LENGTH(word))
			return g - 1 + pando__large_granules(v, g - 1) > start;
	}
	return false;
}

/* A page that others may share: true if nothing is left in it. */
static bool is_last(const struct pando__view *v, uint64_t page)
{
	const uint64_t start = page * PANDO__PAGE_GRANULES;

	return !begins_in(v, start, start + PANDO__PAGE_GRANULES) && !reaches_into(v, page);
}

/* Frees a LOOSE object, with the pages that have nothing else. */
static void loose_free(struct pando__front *f, uint64_t offset, uint64_t size)
{
	uint64_t page = offset / PANDO__PAGE;
	uint64_t end = (offset + size + PANDO__PAGE - 1) / PANDO__PAGE;
	const bool shares_first = offset % PANDO__PAGE != 0 || size < PANDO__PAGE;
	const bool shares_last = (offset + size) % PANDO__PAGE != 0;

	if (shares_first || shares_last)
		pthread_mutex_lock(&f->large->lock);
	leave(f, offset);
	if (shares_last && end - page > 1 && !is_last(&f->view, end - 1))
		end--;
	if ((shares_first || (shares_last && end - page == 1)) && !is_last(&f->view, page))
		page++;
	PANDO_INJECT("heap.large.claimed");
	if (page < end)
		pando__pages_free_whole(f, page * PANDO__PAGE, (end - page) * PANDO__PAGE);
	if (shares_first || shares_last)
		pthread_mutex_unlock(&f->large->lock);
}

void pando__large_free(struct pando__front *f, uint64_t offset, uint32_t page_entry)
{
	const uint64_t size = pando__large_size(&f->view, offset);

	if (PANDO__PAGE_FLAGS(page_entry) & PANDO__PAGE_LOOSE) {
		loose_free(f, offset, size);
	} else {
		struct pando__magazines *m = pando__magazines(f);

		leave(f, offset);
		enter_jemalloc();
		pando__je_dallocx(f->view.base + offset, flags_of(f, m, arena_of(f->large)));
		leave_jemalloc();
	}
}

uint64_t pando__large_size(const struct pando__view *v, uint64_t offset)
{
	return pando__large_granules(v, offset / PANDO__GRANULE) * PANDO__GRANULE;
}
