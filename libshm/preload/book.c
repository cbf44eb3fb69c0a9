/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The shim's book. book.h says what it means; here is how it is kept: a sorted array of entries,
 * each with a sorted array of spans, both searched and edited in place. Arrays live in pages of our
 * own, taken by system call: the caller may be inside malloc, inside a signal handler or the child
 * of a threaded program. Programs have a handful of shared mappings and cut them a few times, so
 * arrays beat trees.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload/book.h"

/* Storage straight from the kernel: the shim's own mmap() must not see itself. */
static void *storage_take(size_t bytes)
{
	long p = syscall(SYS_mmap, NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0L);

	return p == -1 ? NULL : (void *)p;
}

static void storage_give(void *p, size_t bytes)
{
	if (p)
		syscall(SYS_munmap, p, bytes);
}

static struct book_span *spans_of(struct book_entry *e)
{
	return e->capacity ? e->many : e->few;
}

static const struct book_span *spans_in(const struct book_entry *e)
{
	return e->capacity ? e->many : e->few;
}

/* Room for n spans. Returns 0 or -ENOMEM with nothing changed. */
static int spans_reserve(struct book_entry *e, uint32_t n)
{
	uint32_t have = e->capacity ? e->capacity : BOOK_FEW;
	uint32_t want = e->capacity ? e->capacity * 2 : BOOK_PAGE / sizeof(struct book_span);
	struct book_span *p;

	if (n <= have)
		return 0;
	p = storage_take(want * sizeof(*p));
	if (!p)
		return -ENOMEM;
	memcpy(p, spans_in(e), e->nspans * sizeof(*p));
	storage_give(e->many, e->capacity * sizeof(*p));
	e->many = p;
	e->capacity = want;
	return 0;
}

/* The first span that ends above `at`; nspans if there is none. */
static uint32_t span_above(const struct book_entry *e, uint64_t at)
{
	const struct book_span *s = spans_in(e);
	uint32_t lo = 0, hi = e->nspans;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (s[mid].end > at)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static uint32_t entry_above(const struct book *b, uint64_t at)
{
	uint32_t lo = 0, hi = b->n;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (b->entries[mid].base + b->entries[mid].reach > at)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

struct book_entry *book_find(struct book *b, uint64_t start, uint64_t end)
{
	uint32_t i = entry_above(b, start);

	return i < b->n && b->entries[i].base < end ? &b->entries[i] : NULL;
}

static int entries_reserve(struct book *b)
{
	uint32_t want = b->capacity ? b->capacity * 2 : 2 * BOOK_PAGE / sizeof(struct book_entry);
	struct book_entry *p;

	if (b->n < b->capacity)
		return 0;
	p = storage_take(want * sizeof(*p));
	if (!p)
		return -ENOMEM;
	if (b->n)
		memcpy(p, b->entries, b->n * sizeof(*p));
	storage_give(b->entries, b->capacity * sizeof(*p));
	b->entries = p;
	b->capacity = want;
	return 0;
}

int book_add(struct book *b, uint64_t base, uint64_t length, uint64_t reach, uint64_t granule,
	     uint32_t prot, void *region)
{
	struct book_entry *e;
	uint32_t i = entry_above(b, base);
	int rc;

	length = (length + BOOK_PAGE - 1) & ~(uint64_t)(BOOK_PAGE - 1);
	if (book_find(b, base, base + reach))
		return -EEXIST;
	rc = entries_reserve(b);
	if (rc != 0)
		return rc;
	memmove(b->entries + i + 1, b->entries + i, (b->n - i) * sizeof(*e));
	b->n++;
	e = &b->entries[i];
	memset(e, 0, sizeof(*e));
	e->base = base;
	e->reach = reach;
	e->granule = granule;
	e->region = region;
	e->pid = getpid();
	e->few[e->nspans++] = (struct book_span){base, base + length, BOOK_LIVE, prot};
	if (length < reach)
		e->few[e->nspans++] =
			(struct book_span){base + length, base + reach, BOOK_PENDING, 0};
	return 0;
}

void book_remove(struct book *b, struct book_entry *e)
{
	uint32_t i = (uint32_t)(e - b->entries);

	storage_give(e->many, e->capacity * sizeof(struct book_span));
	memmove(e, e + 1, (b->n - i - 1) * sizeof(*e));
	b->n--;
}

void book_clear(struct book *b)
{
	while (b->n)
		book_remove(b, &b->entries[b->n - 1]);
	storage_give(b->entries, b->capacity * sizeof(struct book_entry));
	memset(b, 0, sizeof(*b));
}

bool book_next(struct book *b, uint64_t start, uint64_t end, struct book_piece *piece)
{
	uint32_t i = entry_above(b, start);

	if (start >= end)
		return false;
	*piece = (struct book_piece){.start = start, .end = end, .kind = BOOK_FOREIGN};
	for (; i < b->n && b->entries[i].base < end; i++) {
		struct book_entry *e = &b->entries[i];
		const struct book_span *s = spans_in(e);
		uint32_t k = span_above(e, start);

		if (k == e->nspans)
			continue; /* nothing of it above start */
		if (s[k].start > start) {
			if (s[k].start < end)
				piece->end = s[k].start;
			return true;
		}
		piece->kind = s[k].kind;
		piece->prot = s[k].prot;
		piece->entry = e;
		if (s[k].end < end)
			piece->end = s[k].end;
		return true;
	}
	return true;
}

/* Joins spans k - 1 and k if they touch and are alike. Returns true if it did. */
static bool join(struct book_entry *e, uint32_t k)
{
	struct book_span *s = spans_of(e);

	if (k == 0 || k >= e->nspans || s[k - 1].end != s[k].start || s[k - 1].kind != s[k].kind ||
	    s[k - 1].prot != s[k].prot)
		return false;
	s[k - 1].end = s[k].end;
	memmove(s + k, s + k + 1, (e->nspans - k - 1) * sizeof(*s));
	e->nspans--;
	return true;
}

int book_mark(struct book_entry *e, uint64_t start, uint64_t end, enum book_kind kind,
	      uint32_t prot)
{
	struct book_span *s, left, right;
	uint32_t first, last, put = 0;
	struct book_span in[3];

	if (start < e->base)
		start = e->base;
	if (end > e->base + e->reach)
		end = e->base + e->reach;
	if (start >= end)
		return 0;
	first = span_above(e, start);
	last = first; /* spans [first, last) overlap the range */
	s = spans_of(e);
	while (last < e->nspans && s[last].start < end)
		last++;
	if (first < last) {
		left = s[first];
		right = s[last - 1];
		if (left.start < start) {
			left.end = start;
			in[put++] = left;
		}
	}
	if (kind != BOOK_FOREIGN)
		in[put++] = (struct book_span){start, end, kind, kind == BOOK_LIVE ? prot : 0};
	if (first < last && right.end > end) {
		right.start = end;
		in[put++] = right;
	}
	if (spans_reserve(e, e->nspans - (last - first) + put) != 0)
		return -ENOMEM;
	s = spans_of(e);
	memmove(s + first + put, s + last, (e->nspans - last) * sizeof(*s));
	memcpy(s + first, in, put * sizeof(*s));
	e->nspans = e->nspans - (last - first) + put;
	for (uint32_t k = first + put; k + 1 > first; k--) {
		(void)join(e, k);
		if (k == 0)
			break;
	}
	return 0;
}

bool book_all_gone(const struct book_entry *e)
{
	const struct book_span *s = spans_in(e);

	for (uint32_t k = 0; k < e->nspans; k++)
		if (s[k].kind == BOOK_LIVE)
			return false;
	return true;
}

/* True if any address of [start, end) is live. */
static bool live_in(const struct book_entry *e, uint64_t start, uint64_t end)
{
	const struct book_span *s = spans_in(e);

	for (uint32_t k = span_above(e, start); start < end && k < e->nspans && s[k].start < end;
	     k++)
		if (s[k].kind == BOOK_LIVE)
			return true;
	return false;
}

static uint64_t granule_down(const struct book_entry *e, uint64_t at)
{
	return at - (at - e->base) % e->granule;
}

static uint64_t granule_up(const struct book_entry *e, uint64_t at)
{
	uint64_t down = granule_down(e, at);

	return down == at ? at : down + e->granule;
}

bool book_releasable(const struct book_entry *e, uint64_t start, uint64_t end, uint64_t *lo,
		     uint64_t *hi)
{
	*lo = granule_down(e, start);
	*hi = granule_up(e, end);
	if (live_in(e, *lo, start))
		*lo += e->granule;
	if (*lo < *hi && live_in(e, end, *hi))
		*hi -= e->granule;
	return *lo < *hi;
}

bool book_widen(const struct book_entry *e, uint64_t start, uint64_t end, uint64_t *lo,
		uint64_t *hi)
{
	const struct book_span *s = spans_in(e);
	uint32_t k;

	*lo = granule_down(e, start);
	*hi = granule_up(e, end);
	if (live_in(e, *lo, start) || live_in(e, end, *hi))
		return false;
	k = span_above(e, end);
	if (e->granule > BOOK_PAGE && k + 1 == e->nspans && s[k].kind == BOOK_PENDING &&
	    s[k].start <= *hi)
		*hi = s[k].end;
	return true;
}

bool book_valid(const struct book *b)
{
	for (uint32_t i = 0; i < b->n; i++) {
		const struct book_entry *e = &b->entries[i];
		const struct book_span *s = spans_in(e);
		uint64_t at = e->base;

		if (i && b->entries[i - 1].base + b->entries[i - 1].reach > e->base)
			return false;
		for (uint32_t k = 0; k < e->nspans; k++) {
			bool touches = k && s[k - 1].end == s[k].start;

			if (s[k].start < at || s[k].start >= s[k].end ||
			    (s[k].kind != BOOK_LIVE && s[k].kind != BOOK_PENDING))
				return false;
			if (touches && s[k - 1].kind == s[k].kind && s[k - 1].prot == s[k].prot)
				return false;
			if (!touches && (s[k].start - e->base) % e->granule != 0)
				return false;
			at = s[k].end;
			if ((k + 1 == e->nspans || s[k + 1].start != at) &&
			    (at - e->base) % e->granule != 0)
				return false;
		}
		if (at > e->base + e->reach)
			return false;
	}
	return true;
}
