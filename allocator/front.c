/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Allocating and freeing: the fast paths, and what begins when they do not apply.
 *
 * Each thread has a magazine for each size class: an array of pointers to objects that are CACHED.
 * Allocating takes the topmost and stores LIVE into its word; freeing stores CACHED and puts the
 * pointer on top. No call, no lock, no locked instruction. Everything else is out of line:
 *
 *	magazine empty		refill from the slabs (slab.c)
 *	magazine full		it grows, or the older half goes back to the slabs
 *	over 1 KiB		jemalloc (large.c)
 *	somebody else's object,	object.c
 *	or any doubt
 *	no front, a fork()	libshm makes one (pando__region_front())
 *
 * What the fast path of a free has made sure of, by three loads: the pointer is a multiple of 32
 * inside the region, its page is in a slab of this client, and an object begins there that is
 * private and live (words of interior granules are FREE, so is that of a freed object unless it is
 * CACHED). Only an object's owner stores CACHED without a compare-and-swap; so two threads of one
 * process that free the same object at the same instant are not both told. The second one to
 * allocate it finds a word that is not CACHED, and takes another object instead.
 *
 * A kill between any two instructions: the word says CACHED or LIVE, and both die with this client.
 * That a magazine holds an object is known to nobody else, nor needed.
 *
 * Threads: magazines belong to one thread. fork(): they read as zeros in the child, so both fast
 * paths fail there, whatever kind of fork it was, and pando__region_front() finds out.
 */
#include "debug.h"
#include "remote.h"

#include <errno.h>
#include <string.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define SLOW __attribute__((noinline, cold))

/*
 * Who called, for the debug form. The slow paths are jumped to, so that their return address is that
 * of the fast path's caller, and the fast paths need not load it; NULL asks for that.
 */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CALLER NULL
#else
#define CALLER __builtin_return_address(0)
#endif

/* So many large allocations pass between two looks at whether others have freed something. */
#define LARGE_COLLECT 16u

/* An empty magazine gets new objects; the topmost of them is returned, LIVE. */
static void *refill(struct pando__front *f, struct pando__magazines *m, unsigned int class)
{
	void **bottom = m->bottom[class];
	int n = pando__slab_refill(f, class, bottom, m->fill[class]);
	void *p;

	if (n <= 0) {
		errno = n < 0 ? -n : ENOMEM;
		return NULL;
	}
	PANDO_INJECT("heap.refill.taken");
	/* The first ones come from one page; who goes on allocating gets more at a time. */
	if (m->fill[class] * 2 <= m->room[class] / 2)
		m->fill[class] = (uint16_t)(m->fill[class] * 2);
	if (m->limit[class] < bottom + m->fill[class] * 2)
		m->limit[class] = bottom + m->fill[class] * 2;
	m->top[class] = bottom + n - 1;
	p = *m->top[class];
	pando__store_relaxed(pando__word(&f->view, pando__offset(&f->view, p)), PANDO__OBJECT_LIVE);
	PANDO_INJECT("heap.refill.live");
	return p;
}

static void *small_alloc(struct pando__front *f, unsigned int class)
{
	struct pando__magazines *m = pando__magazines(f);

	if (!m)
		return NULL;
	for (; m->top[class] != m->bottom[class]; m->top[class]--) {
		void *p = m->top[class][-1];
		uint16_t *word = pando__word(&f->view, pando__offset(&f->view, p));

		if (pando__load_relaxed(word) != PANDO__OBJECT_CACHED)
			continue; /* freed twice at one instant: it is in use already */
		pando__store_relaxed(word, PANDO__OBJECT_LIVE);
		m->top[class]--;
		return p;
	}
	return refill(f, m, class);
}

static void *large_alloc(struct pando__front *f, size_t alignment, size_t size)
{
	if (pando__add_relaxed(&f->large_count, 1) % LARGE_COLLECT == 0 &&
	    pando__load_relaxed(&f->view.clients[f->slot].remote))
		pando__collect(f);
	return pando__large_alloc(f, alignment, size);
}

/* The smallest class that holds `size` bytes at multiples of `alignment`, both at most 1 KiB. */
static unsigned int aligned_class(size_t alignment, size_t size)
{
	unsigned int class = pando__class_of_granules[(size + PANDO__GRANULE - 1) / PANDO__GRANULE];

	while (pando__classes[class].size % alignment != 0)
		class ++;
	return class;
}

/* alignment: a power of two, of a granule at least. */
static void *any_alloc(struct pando__front *f, size_t alignment, size_t size)
{
	if (alignment <= PANDO__SMALL_MAX && size <= PANDO__SMALL_MAX)
		return small_alloc(f, aligned_class(alignment, size));
	return large_alloc(f, alignment, size > PANDO__SMALL_MAX ? size : PANDO__SMALL_MAX + 1);
}

static SLOW void *alloc_slow(struct pando_region *r, size_t size, size_t alignment,
			     const void *site)
{
	struct pando__front *f = pando__region_front(r);
	void *p;

	if (!f)
		return NULL;
	if (!f->debug)
		return any_alloc(f, alignment, size);
	p = any_alloc(f, alignment, pando__debug_room(size));
	if (p)
		pando__debug_made(f, p, size, site ? site : __builtin_return_address(0));
	return p;
}

static inline uint64_t rotate64(uint64_t x, unsigned int by)
{
	return x >> by | x << (64 - by);
}

/*
 * Hides from the compiler how x came about: it would work out what follows from it before it is known that
 * it is needed.
 */
#define OPAQUE(x) __asm__("" : "+r"(x))

/*
 * Who frees an object will soon have it again, and write to it: a line that is not there then holds up
 * all stores behind it.
 */
static inline void prefetch_for_write(const void *p)
{
#ifdef __x86_64__
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
	__builtin_prefetch(p, 1, 3);
#endif
}

/* The word of an object, whose address is a multiple of 32: two bytes for each. */
static inline uint16_t *word_at(const struct pando__magazines *m, const void *p)
{
	return (uint16_t *)(m->words + ((uintptr_t)p >> 4));
}

static inline __attribute__((always_inline)) void *alloc(struct pando_region *r, size_t size,
							 const void *site)
{
	const struct pando__gate *gate = (const struct pando__gate *)(const void *)r;
	struct pando__magazines *m = pando__thread.current;

	if (LIKELY(size <= PANDO__SMALL_MAX &&
		   pando__thread.serial == pando__load_relaxed(&gate->serial))) {
		uint64_t class =
			pando__class_of_granules[(size + PANDO__GRANULE - 1) / PANDO__GRANULE];
		void **top = m->top[class];

		if (LIKELY(top != m->bottom[class])) {
			void *p = top[-1];
			uint16_t *word = word_at(m, p);

			if (LIKELY(pando__load_relaxed(word) == PANDO__OBJECT_CACHED)) {
				m->top[class] = top - 1;
				pando__store_relaxed(word, PANDO__OBJECT_LIVE);
				return p;
			}
		}
	}
	return alloc_slow(r, size, PANDO__GRANULE, site);
}

void *pando_alloc(struct pando_region *r, size_t size)
{
	return alloc(r, size, CALLER);
}

void *pando__alloc_for(struct pando_region *r, size_t size, const void *site)
{
	return alloc(r, size, site);
}

/*
 * A full magazine becomes larger, or gives its older half back: the objects that come back first are
 * the ones that the caches still have.
 */
static void make_room(struct pando__front *f, struct pando__magazines *m, unsigned int class)
{
	void **bottom = m->bottom[class];
	unsigned int half = (unsigned int)(m->limit[class] - bottom) / 2;

	if (half * 4 <= m->room[class]) {
		m->limit[class] = bottom + half * 4;
		return;
	}
	pando__slab_flush(f, class, bottom, half);
	m->top[class] -= half;
	memmove(bottom, bottom + half, half * sizeof(*bottom));
}

void pando__magazine_push(struct pando__front *f, unsigned int class, void *p)
{
	struct pando__magazines *m = pando__magazines(f);

	if (!m) { /* no memory for magazines: straight back */
		pando__slab_flush(f, class, &p, 1);
		return;
	}
	if (m->top[class] == m->limit[class])
		make_room(f, m, class);
	*m->top[class]++ = p;
}

static SLOW void free_slow(struct pando_region *r, void *p, const void *site)
{
	struct pando__front *f;

	if (!p)
		return;
	f = pando__region_front(r);
	if (f)
		pando__object_free(r, f, p, site ? site : __builtin_return_address(0));
	else if (errno == EACCES)
		pando__misused(r, p, PANDO_MISUSE_FOREIGN, "freeing");
	/* Else a forked child that the broker does not answer: the object stays what it is. */
}

/* p lies in a page that is no slab of this client's. Jumped to: the fast path has no frame. */
static __attribute__((noinline)) void free_others(struct pando_region *r, void *p, const void *site,
						  uint32_t entry)
{
	if (!pando__object_free_others(pando__thread.current, p, entry))
		free_slow(r, p, site ? site : __builtin_return_address(0));
}

static inline __attribute__((always_inline)) void release(struct pando_region *r, void *p,
							  const void *site)
{
	const struct pando__gate *gate = (const struct pando__gate *)(const void *)r;
	struct pando__magazines *m = pando__thread.current;
	/* The five low bits, which are 0 in an object's address, become the highest ones. */
	uint64_t granule = rotate64((uint64_t)(uintptr_t)p - m->base, 5);

	if (LIKELY(pando__thread.serial == pando__load_relaxed(&gate->serial) &&
		   granule < m->granules)) {
		const uint32_t *entry = &m->page_table[granule / (PANDO__PAGE / PANDO__GRANULE)];
		/* A page of a slab of this client, without flags, leaves the number of its class. */
		uint32_t class = pando__load_relaxed(entry) - m->me;

		if (LIKELY(class < PANDO__CLASSES)) {
			uint16_t *words = m->objects;
			void **top = m->top[class];

			if (LIKELY(top != m->limit[class] &&
				   pando__load_relaxed(&words[granule]) == PANDO__OBJECT_LIVE)) {
				pando__store_relaxed(&words[granule], PANDO__OBJECT_CACHED);
				*top = p;
				m->top[class] = top + 1;
				prefetch_for_write(p);
				return;
			}
		} else {
			OPAQUE(granule);
			OPAQUE(class);
			if (!pando__remote_announced(m, granule) ||
			    UNLIKELY(!pando__remote_step(m, granule, &m->objects[granule], false)))
				free_others(r, p, site, class + pando__load_relaxed(&m->me));
			return;
		}
	}
	free_slow(r, p, site);
}

void pando_free(struct pando_region *r, void *p)
{
	release(r, p, CALLER);
}

void pando__free_for(struct pando_region *r, void *p, const void *site)
{
	release(r, p, site);
}

void *pando_alloc_aligned(struct pando_region *r, size_t alignment, size_t size)
{
	if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
		pando__fail(EINVAL, "an alignment of %zu bytes is not a power of two", alignment);
		errno = EINVAL;
		return NULL;
	}
	if (alignment <= PANDO__GRANULE)
		return alloc(r, size, __builtin_return_address(0));
	return alloc_slow(r, size, alignment, __builtin_return_address(0));
}

void *pando_calloc(struct pando_region *r, size_t n, size_t size)
{
	size_t bytes;
	void *p;

	if (__builtin_mul_overflow(n, size, &bytes)) {
		pando__fail(ENOMEM, "%zu objects of %zu bytes are more than an address can count",
			    n, size);
		errno = ENOMEM;
		return NULL;
	}
	p = alloc(r, bytes, __builtin_return_address(0));
	if (p)
		memset(p, 0, bytes);
	return p;
}

int pando_heap_trim(struct pando_region *r)
{
	struct pando__front *f = pando__region_front(r);
	struct pando__magazines *m;

	if (!f)
		return -errno;
	m = pando__magazines(f);
	if (m)
		pando__remote_settle(m);
	pando__magazines_flush(f);
	pando__collect_all(f);
	pando__large_trim(f);
	pando__slabs_trim(f);
	pando__pages_trim(f);
	return 0;
}
