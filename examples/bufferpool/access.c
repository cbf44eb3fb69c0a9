/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading a page that is not there, updating one, writing all back.
 *
 * In each of them the frame that is being filled is OWNED by the process: if that is killed, nobody has seen it,
 * and bury.c gives the frame back. The one instruction at which the operation happens is the compare-and-swap
 * in table_insert() or table_replace().
 *
 * An empty frame is taken before the stripe is locked, for taking one may need another stripe (to write
 * a dirty page), and nobody holds two.
 */
#include "bufferpool.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Becomes part of the table's, and nobody's own. */
static void publish(struct pool_frame *f)
{
	pando__store_release(&f->word, (uint32_t)POOL_COMMON);
}

static int read_page(struct pool_client *c, uint64_t page, struct pool_frame *f)
{
	void *content = pool_content(c->pool, f);
	int rc = file_read(c->file, page, content);
	const char *why;

	if (rc < 0)
		return rc;
	pool_add(c, POOL_READS, 1);
	why = file_page_broken(c->file, page, content);
	if (why)
		return file_fail(EUCLEAN, "page %" PRIu64 " of %s: %s", page, c->file->path, why);
	return 0;
}

static int load_into(struct pool_client *c, uint64_t page, unsigned int hold, struct pool_frame *f)
{
	int rc = read_page(c, page, f);

	PANDO_INJECT("pool.load.read");
	if (rc < 0)
		return rc;
	pando__store_relaxed(&f->page, page);
	pando__store_relaxed(&f->usage, 1u);
	pando__store_release(&f->dirty, 0u);
	pool_hold(c, hold, f); /* before others can find, and evict, it */
	pando_read_lock(c->region);
	table_insert(c->pool, f);
	pando_read_unlock(c->region);
	PANDO_INJECT("pool.load.linked");
	publish(f);
	return 0;
}

const void *pool_load(struct pool_client *c, uint64_t page, unsigned int hold)
{
	struct pool_frame *f, *there;
	int rc;

	if (page >= c->pool->pages) {
		file_fail(EINVAL, "there is no page %" PRIu64 ": the file has %" PRIu64, page,
			  c->pool->pages);
		return NULL;
	}
	pool_add(c, POOL_MISSES, 1);
	f = pool_take(c);
	if (!f)
		return NULL;
	PANDO_INJECT("pool.load.taken");
	pool_stripe_lock(c, page);
	there = pool_try(c, page, hold); /* another one may have read it meanwhile */
	rc = there ? 0 : load_into(c, page, hold, f);
	pool_stripe_unlock(c, page);
	if (there || rc < 0)
		pool_put_back(c, f);
	return rc < 0 ? NULL : pool_content(c->pool, there ? there : f);
}

/* The next version of what is pinned, in a frame that nobody sees. */
static void prepare(struct pool_client *c, struct pool_frame *fresh, uint64_t page,
		    pool_change_fn change, void *arg)
{
	const struct pool_frame *old = &c->pool->frame[c->record->pin[POOL_PIN_UPDATE] - 1];
	const struct page *from = pool_content(c->pool, old);
	struct page *to = pool_content(c->pool, fresh);

	memcpy(to, from, PAGE_SIZE / 2);
	PANDO_INJECT("pool.update.half");
	memcpy((char *)to + PAGE_SIZE / 2, (const char *)from + PAGE_SIZE / 2, PAGE_SIZE / 2);
	to->magic = PAGE_MAGIC;
	to->number = page;
	to->version = from->version + 1;
	change(to, arg);
	page_seal(to);
	pando__store_relaxed(&fresh->page, page);
	pando__store_relaxed(&fresh->usage, 1u);
	pando__store_release(&fresh->dirty, 1u);
	/* Not removed, as it will be when it has been in the table: settle_update() in bury.c. */
	pando__store_release(&fresh->next, 0ull);
}

/* Puts fresh in the place of the pinned one. False: another update was first. */
static bool replace(struct pool_client *c, struct pool_frame *fresh)
{
	struct pool_record *r = c->record;
	struct pool_frame *old = &c->pool->frame[r->pin[POOL_PIN_UPDATE] - 1];
	bool done;

	r->updates_then = r->count[POOL_UPDATES] + 1;
	pando__store_release(&r->updating, pool_number(c->pool, fresh) + 1);
	PANDO_INJECT("pool.update.intent");
	pando_read_lock(c->region);
	done = table_replace(old, fresh);
	PANDO_INJECT("pool.update.replaced");
	if (done) {
		table_unlink(c->pool, fresh->page); /* the old one; chains stay short */
		pool_gather(c, old);
	}
	pando_read_unlock(c->region);
	if (done) {
		publish(fresh);
		PANDO_INJECT("pool.update.published");
		pando__store_release(&r->count[POOL_UPDATES], r->updates_then);
		PANDO_INJECT("pool.update.counted");
	}
	pando__store_release(&r->updating, 0u);
	return done;
}

int pool_update(struct pool_client *c, uint64_t page, pool_change_fn change, void *arg)
{
	if (c->pool->format != PAGE_OWN)
		return file_fail(EROFS, "%s can be read only", c->file->path);
	for (;;) {
		struct pool_frame *fresh = pool_take(c);
		bool done;

		if (!fresh)
			return -ESHUTDOWN;
		if (!pool_pin(c, page, POOL_PIN_UPDATE)) {
			pool_put_back(c, fresh);
			return -EIO;
		}
		prepare(c, fresh, page, change, arg);
		done = replace(c, fresh);
		pool_unpin(c, POOL_PIN_UPDATE);
		if (done) {
			pool_collect(c);
			return 0;
		}
		pool_put_back(c, fresh);
		pool_add(c, POOL_CONFLICTS, 1);
	}
}

int pool_flush(struct pool_client *c, file_progress_fn progress, void *arg)
{
	struct pool *p = c->pool;

	for (uint64_t i = 0; i < p->frames; i++) {
		struct pool_frame *f = &p->frame[i];
		int rc = 0;

		/* The page may be another by now: pool_clean() looks again. */
		if (pando__load_acquire(&f->word) == POOL_COMMON &&
		    pando__load_acquire(&f->dirty) &&
		    !(pando__load_acquire(&f->next) & POOL_REMOVED))
			rc = pool_clean(c, pando__load_relaxed(&f->page));
		if (rc < 0)
			return rc;
		if (progress && i % 256 == 0 && progress(arg, i, p->frames))
			return file_fail(EINTR, "interrupted");
	}
	if (progress)
		(void)progress(arg, p->frames, p->frames);
	return 0;
}
