/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A pool's place in its region, and what can be said of it from outside.
 *
 *	struct pool | records | stripes | buckets | frames | pages
 *
 * The region is new and full of zeros when it is laid out, and that means: every frame free, every bucket,
 * pin and stripe empty. All pointers are addresses that hold in every process.
 */
#include "bufferpool.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LOOK_MAX (1ull << 20) /* frames that pool_look() walks over */

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

static unsigned int bucket_bits(uint64_t frames)
{
	unsigned int bits = 4;

	while (1ull << bits < frames)
		bits++;
	return bits;
}

struct layout {
	uint64_t records, stripes, buckets, frames, pages, end; /* offsets */
};

static struct layout layout_of(uint64_t frames, uint32_t records)
{
	struct layout l;

	l.records = round_up(sizeof(struct pool), 4096);
	l.stripes = round_up(l.records + records * sizeof(struct pool_record), 64);
	l.buckets = round_up(l.stripes + POOL_STRIPES * sizeof(uint32_t), 64);
	l.frames = round_up(l.buckets + (8ull << bucket_bits(frames)), 64);
	l.pages = round_up(l.frames + frames * sizeof(struct pool_frame), 4096);
	l.end = l.pages + frames * PAGE_SIZE;
	return l;
}

uint64_t pool_size(uint64_t frames, uint32_t records)
{
	return layout_of(frames, records).end;
}

uint64_t pool_frames_min(uint32_t backends)
{
	/* Pins of each, and what each has in its lists. */
	return 64 + (uint64_t)backends * (POOL_PINS + 8);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void pool_format(void *base, const struct file *f, uint64_t frames, uint32_t records,
		 uint32_t backends)
{
	struct pool *p = base;
	const struct layout l = layout_of(frames, records);
	const uint64_t batch = frames / (8 * (uint64_t)(backends ? backends : 1));
	const size_t length = strlen(f->path), most = sizeof(p->path) - 1;
	pthread_mutexattr_t attr;

	p->size = l.end;
	p->frames = frames;
	p->pages = f->pages;
	p->bucket_shift = 64 - bucket_bits(frames);
	p->records = records;
	p->batch = batch < 1 ? 1 : batch > POOL_BATCH ? POOL_BATCH : (uint32_t)batch;
	p->format = f->format;
	p->direct = f->direct;
	p->started_ns = now_ns();
	p->record = (void *)((char *)base + l.records);
	p->stripe = (void *)((char *)base + l.stripes);
	p->bucket = (void *)((char *)base + l.buckets);
	p->frame = (void *)((char *)base + l.frames);
	p->content = (char *)base + l.pages;
	snprintf(p->path, sizeof(p->path), "%s", length > most ? f->path + length - most : f->path);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	for (uint32_t i = 0; i < records; i++)
		pthread_mutex_init(&p->record[i].life, &attr);
	pthread_mutexattr_destroy(&attr);
	/* Last: who opens the region meanwhile sees no pool. */
	pando__store_release(&p->magic, POOL_MAGIC);
}

struct pool *pool_in(struct pando_region *r)
{
	struct pool *p = pando_region_base(r);

	if (pando_region_size(r) < sizeof(*p) || pando__load_acquire(&p->magic) != POOL_MAGIC ||
	    p->size > pando_region_size(r)) {
		file_fail(EINVAL, "the region has no buffer pool in it, or not yet");
		return NULL;
	}
	return p;
}

uint64_t pool_sum(const struct pool *p, enum pool_count what)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < p->records; i++)
		n += pando__load_relaxed(&p->record[i].count[what]);
	return n;
}

static void look_at(const struct pool_frame *f, struct pool_usage *u)
{
	const uint32_t word = pando__load_acquire(&f->word);

	if (word == POOL_FREE) {
		u->free++;
	} else if (word >= POOL_OWNED) {
		u->owned++;
	} else if (pando__load_acquire(&f->next) & POOL_REMOVED) {
		u->removed++;
	} else {
		u->linked++;
		u->dirty += pando__load_acquire(&f->dirty);
	}
}

void pool_look(const struct pool *p, struct pool_usage *u)
{
	const uint64_t step = (p->frames + LOOK_MAX - 1) / LOOK_MAX;

	memset(u, 0, sizeof(*u));
	for (uint64_t i = 0; i < p->frames; i += step)
		look_at(&p->frame[i], u);
	u->free *= step;
	u->owned *= step;
	u->removed *= step;
	u->linked *= step;
	u->dirty *= step;
	for (uint32_t i = 0; i < p->records; i++) {
		u->backends += pando__load_relaxed(&p->record[i].pid) != 0;
		for (unsigned int k = 0; k < POOL_PINS; k++)
			u->pins += pando__load_relaxed(&p->record[i].pin[k]) != 0;
	}
	for (unsigned int i = 0; i < POOL_STRIPES; i++)
		u->stripes += pando__load_relaxed(&p->stripe[i]) != 0;
}

/* --- the validator --- */

static int validate_records(const struct pool *p)
{
	for (uint32_t i = 0; i < p->records; i++) {
		const struct pool_record *r = &p->record[i];

		for (unsigned int k = 0; k < POOL_PINS; k++)
			if (r->pin[k])
				return file_fail(EUCLEAN, "record %u has frame %u pinned", i,
						 r->pin[k] - 1);
		if (r->pid || r->writing || r->updating)
			return file_fail(EUCLEAN, "record %u is pid %d's, writing %u, updating %u",
					 i, r->pid, r->writing, r->updating);
	}
	for (unsigned int i = 0; i < POOL_STRIPES; i++)
		if (p->stripe[i])
			return file_fail(EUCLEAN, "stripe %u is held: 0x%x", i, p->stripe[i]);
	return 0;
}

/* Each frame that a chain leads to gets its bit, and must not have had it. */
static int validate_chain(struct pool_client *c, uint64_t bucket, uint64_t *linked)
{
	struct pool *p = c->pool;

	for (const struct pool_frame *f = pool_at(p->bucket[bucket]); f; f = pool_at(f->next)) {
		const uint64_t n = (uint64_t)(f - p->frame);

		if (n >= p->frames || &p->frame[n] != f)
			return file_fail(EUCLEAN, "bucket %" PRIu64 " leads to %p, no frame",
					 bucket, (const void *)f);
		if (c->pinned[n / 64] >> n % 64 & 1)
			return file_fail(EUCLEAN, "frame %" PRIu64 " is in the table twice", n);
		c->pinned[n / 64] |= 1ull << n % 64;
		if (f->word != POOL_COMMON)
			return file_fail(EUCLEAN, "frame %" PRIu64 " is in the table, word %u", n,
					 f->word);
		if (f->next & POOL_REMOVED)
			continue;
		++*linked;
		if (pool_bucket(p, f->page) != &p->bucket[bucket] || pool_find(p, f->page) != f)
			return file_fail(EUCLEAN, "frame %" PRIu64 " is not that of page %" PRIu64,
					 n, f->page);
		if (page_broken(p->format, pool_content(p, f),
				f->page + (p->format == PAGE_POSTGRES ? c->file->first_block : 0)))
			return file_fail(EUCLEAN, "page %" PRIu64 " in frame %" PRIu64 " is torn",
					 f->page, n);
	}
	return 0;
}

int pool_validate(struct pool_client *c)
{
	struct pool *p = c->pool;
	struct pool_usage u;
	uint64_t linked = 0;
	int rc = validate_records(p);

	for (uint64_t i = 0; rc == 0 && i < 1ull << (64 - p->bucket_shift); i++)
		rc = validate_chain(c, i, &linked);
	memset(c->pinned, 0, (p->frames / 64 + 1) * sizeof(*c->pinned));
	if (rc < 0)
		return rc;
	pool_look(p, &u);
	if (p->frames <= LOOK_MAX && (u.owned || u.linked != linked))
		return file_fail(EUCLEAN,
				 "%" PRIu64 " frames are owned by nobody who lives, %" PRIu64
				 " in the table, of which it leads to %" PRIu64,
				 u.owned, u.linked, linked);
	return 0;
}
