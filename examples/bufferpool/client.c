/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Becoming a backend of a pool, and ceasing to be one.
 *
 * A record is taken by locking its mutex, and given back by unlocking it; a process that is killed between
 * these two leaves it to bury.c. A forked child has no record: the mutex is its parent's.
 */
#include "bufferpool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REGISTER_TRIES 5000 /* each 1 ms: the broker may be being replaced */

int pool_visit(struct pool_client *c, struct pool *p, struct pando_region *r, const struct file *f)
{
	memset(c, 0, sizeof(*c));
	c->pool = p;
	c->region = r;
	c->file = f;
	c->pinned = calloc(c->pool->frames / 64 + 1, sizeof(*c->pinned));
	c->seen = calloc((size_t)c->pool->records * POOL_PINS, sizeof(*c->seen));
	if (!c->pinned || !c->seen) {
		pool_leave(c);
		return file_fail(ENOMEM, "no memory for the pool's client");
	}
	return 0;
}

/* Threads register by themselves with their first section; done here so that none can fail later. */
static int become_reader(struct pool_client *c)
{
	int rc = 0;

	for (int i = 0; i < REGISTER_TRIES; i++) {
		rc = pando_reader_register(c->region);
		if (rc != -ECONNRESET)
			break;
		(void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	return rc < 0 ? file_fail(-rc, "%s", pando_strerror_last()) : 0;
}

int pool_enter(struct pool_client *c)
{
	int rc = become_reader(c);

	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < c->pool->records; i++) {
		struct pool_record *r = &c->pool->record[i];

		if (!pool_own(c, i))
			continue;
		c->record = r;
		c->index = i;
		PANDO_INJECT("pool.enter.locked");
		pando__store_relaxed(&r->pid, (int32_t)getpid());
		return 0;
	}
	return file_fail(EUSERS, "all %u records of the pool are taken", c->pool->records);
}

static void give_back(struct pool_client *c, const uint32_t *list, uint32_t n, uint32_t word)
{
	for (uint32_t i = 0; i < n; i++)
		pando__store_release(&c->pool->frame[list[i]].word, word);
}

void pool_leave(struct pool_client *c)
{
	if (c->record) {
		/* The latter are removed: for whoever collects them. */
		give_back(c, c->ready_list, c->ready, POOL_FREE);
		PANDO_INJECT("pool.leave.freed");
		give_back(c, c->removed_list, c->removed, POOL_COMMON);
		give_back(c, c->held_list, c->held, POOL_COMMON);
		pando__store_relaxed(&c->record->pid, 0);
		PANDO_INJECT("pool.leave.nobody");
		(void)pthread_mutex_unlock(&c->record->life);
	}
	free(c->pinned);
	free(c->seen);
	memset(c, 0, sizeof(*c));
}
