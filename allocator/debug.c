/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The debug form of a front: $PANDO_HEAP_DEBUG, a list of
 *
 *	poison		new objects are filled with 0xa5, freed ones with 0xdb; at the next allocation
 *			it is seen if somebody has written there meanwhile
 *	redzone		bytes behind the object, looked at when it is freed
 *	sites		who allocated it, and who freed it, in the sentence of a misuse
 *	all		all of these
 *
 * and with any of them, annotations for AddressSanitizer and Valgrind, where they are there.
 *
 * A debug front never lets the fast paths apply: the gate of its region has no number of a front (see
 * libshm/heap.c), so every call comes to the slow path, which comes here. Nothing of this costs
 * anything where it is not asked for.
 *
 * An object is as any other, so that processes of both forms can use the same heap and free each
 * other's objects. At the end of its block it has a trailer:
 *
 *	p                p + size              end - 32      end
 *	| the object     | redzone, 16 or more | trailer      |
 *
 * The trailer's first word is a seal over where the block is and how large. Where that is not found
 * there is no trailer: another process made the object. In a span
 * of a debug front every private object has one, so there its absence is an overrun. That of a freed object is
 * sealed with how often its page has left this client, too: others write there then. Every process
 * has to know how large such an object is for the caller (usable size, realloc), so the heap's header
 * says that there may be trailers.
 *
 * AddressSanitizer's shadow is a process's own, so it may only call forbidden what no other process
 * can make an object of: what is free in this client's spans, and the ends of its own objects. When
 * pages leave the client, when it detaches, and in a forked child, all is permitted again.
 *
 * Only the caller of a free, a realloc or an allocation touches a trailer; an object that two free at
 * once has lost already.
 */
#include "debug.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"

/* What looks at forbidden bytes on purpose; plain loops, since memcpy() and the like are watched. */
#if defined(__clang__) || defined(__GNUC__)
#define UNWATCHED __attribute__((no_sanitize_address, noinline))
#else
#define UNWATCHED
#endif

#define POISON_NEW 0xa5u
#define POISON_FREE 0xdbu
#define REDZONE 0xfdu
#define REDZONE_MIN 16u

#define MAGIC_LIVE 0x6c697665206f626aull
#define MAGIC_FREE 0x6672656564206f62ull

struct trailer {
	uint64_t magic; /* a seal, below */
	uint64_t size; /* that was asked for */
	uint64_t site; /* of the allocation, or the free */
	uint64_t pid; /* whose */
};

static_assert(sizeof(struct trailer) == 32, "a granule");

unsigned int pando__debug_options(void)
{
	const char *env = secure_getenv("PANDO_HEAP_DEBUG");
	unsigned int options = 0;

	if (!env || !*env || strcmp(env, "0") == 0)
		return 0;
	if (strstr(env, "poison"))
		options |= PANDO__DEBUG_POISON;
	if (strstr(env, "redzone"))
		options |= PANDO__DEBUG_REDZONE;
	if (strstr(env, "sites"))
		options |= PANDO__DEBUG_SITES;
	return options ? options : PANDO__DEBUG_ALL;
}

int pando__debug_begin(struct pando__front *f)
{
	const size_t size = f->view.max_size / PANDO__PAGE * sizeof(*f->debug_stays);

	f->debug = pando__debug_options();
	if (!f->debug)
		return 0;
	f->debug_stays = mmap(NULL, size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f->debug_stays == MAP_FAILED) {
		f->debug_stays = NULL;
		f->debug = 0;
		return pando__fail(ENOMEM, "no memory for the heap's debug form (%zu bytes)", size);
	}
	pando__store_release(&f->view.heap->trailers.value, 1);
	return 0;
}

void pando__debug_end(struct pando__front *f)
{
	if (!f->debug)
		return;
	pando__debug_permit(f, f->view.first, f->view.end - f->view.first);
	munmap(f->debug_stays, f->view.max_size / PANDO__PAGE * sizeof(*f->debug_stays));
}

/* ---- filling and looking ----------------------------------------------------------------------- */

static UNWATCHED void fill(char *at, unsigned char with, uint64_t n)
{
	volatile char *to = at;

	for (uint64_t i = 0; i < n; i++)
		to[i] = (char)with;
}

static UNWATCHED bool filled(const char *at, unsigned char with, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if ((unsigned char)at[i] != with)
			return false;
	return true;
}

/* ---- trailers --------------------------------------------------------------------------------- */

static struct trailer *trailer_of(const struct pando__view *v, uint64_t offset, uint64_t block)
{
	return (struct trailer *)(void *)(v->base + offset + block - sizeof(struct trailer));
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	a = (a ^ b) * 0x9e3779b97f4a7c15ull;
	return a ^ a >> 29;
}

/* Of a live object: the same in all processes. */
static uint64_t live_seal(uint64_t offset, uint64_t block)
{
	return mix(mix(MAGIC_LIVE, offset), block);
}

/* Of one that this front has freed, while the page has been its own all the time. */
static uint64_t free_seal(const struct pando__front *f, uint64_t offset, uint64_t block)
{
	const uint32_t stay = pando__load_relaxed(&f->debug_stays[offset / PANDO__PAGE]);

	return mix(mix(mix(MAGIC_FREE, offset), block), f->serial << 32 | stay);
}

/* Over what is written in it as well: whatever hits a trailer is found. */
static uint64_t whole(uint64_t seal, const struct trailer *t)
{
	return mix(mix(mix(seal, t->size), t->site), t->pid);
}

/* Believed if it makes sense: whoever writes here can write there. */
static UNWATCHED bool read_trailer(const struct pando__view *v, uint64_t offset, uint64_t block,
				   uint64_t seal, struct trailer *out)
{
	const struct trailer *t = trailer_of(v, offset, block);

	if (block < sizeof(*t) + REDZONE_MIN)
		return false;
	pando__mem_defined(t, sizeof(*t));
	out->magic = t->magic;
	out->size = t->size;
	out->site = t->site;
	out->pid = t->pid;
	return out->magic == whole(seal, out) && out->size <= block - sizeof(*t) - REDZONE_MIN;
}

static UNWATCHED void write_trailer(const struct pando__front *f, struct trailer *t, uint64_t seal,
				    uint64_t size, const void *site)
{
	struct trailer made = {
		.size = size,
		.site = f->debug & PANDO__DEBUG_SITES ? (uint64_t)(uintptr_t)site : 0,
		.pid = (uint64_t)getpid(),
	};

	t->magic = seal ? whole(seal, &made) : 0;
	t->size = made.size;
	t->site = made.site;
	t->pid = made.pid;
}

size_t pando__debug_room(size_t size)
{
	size_t room;

	/* What overflows is more than any heap has. */
	return __builtin_add_overflow(size, REDZONE_MIN + sizeof(struct trailer), &room) ? SIZE_MAX
											 : room;
}

bool pando__debug_size(const struct pando__view *v, uint64_t offset, uint64_t *size)
{
	struct trailer t;

	if (!pando__load_relaxed(&v->heap->trailers.value) ||
	    !read_trailer(v, offset, *size, live_seal(offset, *size), &t))
		return false;
	*size = t.size;
	return true;
}

void pando__debug_made(struct pando__front *f, void *p, size_t size, const void *site)
{
	const uint64_t offset = pando__offset(&f->view, p);
	const uint64_t block = pando__object_size(&f->view, offset);
	struct trailer *t = trailer_of(&f->view, offset, block), was;

	pando__mem_permit(p, block);
	if (f->debug & PANDO__DEBUG_POISON &&
	    read_trailer(&f->view, offset, block, free_seal(f, offset, block), &was) &&
	    !filled(p, POISON_FREE, block - sizeof(*t)))
		pando__misused(f->region, p, PANDO_MISUSE_WRITTEN_FREE, "allocating");
	if (f->debug & PANDO__DEBUG_POISON)
		fill(p, POISON_NEW, size);
	fill((char *)p + size, REDZONE, block - sizeof(*t) - size);
	write_trailer(f, t, live_seal(offset, block), size, site);
	pando__mem_forbid((char *)p + size, block - size);
	pando__mem_undefined(p, size);
}

bool pando__debug_whole(struct pando__front *f, const void *p, bool own_private)
{
	const uint64_t offset = pando__offset(&f->view, p);
	const uint64_t block = pando__object_size(&f->view, offset);
	struct trailer t;
	bool intact;

	if (!read_trailer(&f->view, offset, block, live_seal(offset, block), &t))
		return !own_private;
	pando__mem_defined((const char *)p + t.size, block - t.size);
	intact = !(f->debug & PANDO__DEBUG_REDZONE) ||
		 filled((const char *)p + t.size, REDZONE, block - sizeof(t) - t.size);
	pando__mem_noaccess((const char *)p + t.size, block - t.size);
	return intact;
}

void pando__debug_freeing(struct pando__front *f, void *p, bool own, const void *site)
{
	const uint64_t offset = pando__offset(&f->view, p);
	const uint64_t block = pando__object_size(&f->view, offset);
	struct trailer *t = trailer_of(&f->view, offset, block), was;

	if (!read_trailer(&f->view, offset, block, live_seal(offset, block), &was))
		return;
	pando__mem_permit(p, block);
	if (f->debug & PANDO__DEBUG_POISON)
		fill(p, POISON_FREE, block - sizeof(*t));
	write_trailer(f, t, own ? free_seal(f, offset, block) : 0, was.size, site);
	if (own)
		pando__mem_forbid(p, block);
}

/* ---- sentences -------------------------------------------------------------------------------- */

/* The block that may begin there, free or not; 0: none. */
static uint64_t block_at(const struct pando__view *v, uint64_t offset)
{
	enum pando__span_state span;

	if (offset < v->first || offset >= v->end || offset % PANDO__GRANULE)
		return 0;
	span = PANDO__SPAN_STATE(pando__load_acquire(&v->spans[offset / PANDO__SPAN].word));
	if (span != PANDO__SPAN_OWNED && span != PANDO__SPAN_ORPHAN && span != PANDO__SPAN_SWEEPING)
		return 0;
	return pando__object_size(v, offset);
}

void pando__debug_tell(const struct pando__front *f, const void *p, char *text, size_t size)
{
	const uint64_t offset = pando__offset(&f->view, p);
	const uint64_t block = block_at(&f->view, offset);
	const char *what = "allocated";
	struct trailer t;
	Dl_info at;

	text[0] = '\0';
	if (block == 0 || offset + block > f->view.end)
		return;
	if (!read_trailer(&f->view, offset, block, live_seal(offset, block), &t)) {
		if (!read_trailer(&f->view, offset, block, free_seal(f, offset, block), &t))
			return;
		what = "freed";
	}
	if (t.site == 0)
		snprintf(text, size, " (%llu bytes, %s by process %llu)",
			 (unsigned long long)t.size, what, (unsigned long long)t.pid);
	else if (t.pid == (uint64_t)getpid() && dladdr((void *)(uintptr_t)t.site, &at) &&
		 at.dli_fname)
		snprintf(text, size, " (%llu bytes, %s at %s+0x%llx%s%s by this process)",
			 (unsigned long long)t.size, what, at.dli_fname,
			 (unsigned long long)(t.site - (uint64_t)(uintptr_t)at.dli_fbase),
			 at.dli_sname ? " in " : "", at.dli_sname ? at.dli_sname : "");
	else
		snprintf(text, size, " (%llu bytes, %s at 0x%llx by process %llu)",
			 (unsigned long long)t.size, what, (unsigned long long)t.site,
			 (unsigned long long)t.pid);
}
