/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The store, the supervisor's end: a table of records in the order in which they were first put.
 *
 * A hash table finds a record by kind and id; a list through all of them keeps the order, since a
 * broker that takes up its records wants each region before the clients that came after it.
 * Replacing a record keeps its place. Growing the buckets is the only thing that may fail, and a
 * failure there costs speed, not records.
 *
 * Invariants: each record is in exactly one bucket and once in the list; `count` is the list's
 * length; a record owns its descriptors.
 */
#include "store_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_BUCKETS 64u

static void close_all(int *fds, unsigned int nfds)
{
	for (unsigned int i = 0; i < nfds; i++)
		close(fds[i]);
}

static struct store_record **bucket(const struct store_table *t, unsigned int kind, uint64_t id)
{
	uint64_t h = (id ^ ((uint64_t)kind << 56)) * 0x9e3779b97f4a7c15ull;

	return &t->buckets[(h >> 32) & (t->bucket_count - 1)];
}

struct store_record *store_table_find(const struct store_table *t, unsigned int kind, uint64_t id)
{
	struct store_record *r = t->bucket_count ? *bucket(t, kind, id) : NULL;

	while (r && (r->kind != kind || r->id != id))
		r = r->next_hash;
	return r;
}

static int grow(struct store_table *t)
{
	size_t count = t->bucket_count ? t->bucket_count * 2 : FIRST_BUCKETS;
	struct store_record **buckets = calloc(count, sizeof(*buckets));

	if (!buckets)
		return t->bucket_count ? 0 : -ENOMEM;
	free(t->buckets);
	t->buckets = buckets;
	t->bucket_count = count;
	for (struct store_record *r = t->first; r; r = r->next) {
		struct store_record **b = bucket(t, r->kind, r->id);

		r->next_hash = *b;
		*b = r;
	}
	return 0;
}

static void unlink_record(struct store_table *t, struct store_record *r)
{
	struct store_record **b = bucket(t, r->kind, r->id);

	while (*b != r)
		b = &(*b)->next_hash;
	*b = r->next_hash;
	*r->pprev = r->next;
	if (r->next)
		r->next->pprev = r->pprev;
	else
		t->last = r->pprev;
	t->count--;
}

/* Puts r behind `after` in the list, or last if that is NULL. */
static void link_record(struct store_table *t, struct store_record *r, struct store_record **where)
{
	struct store_record **b = bucket(t, r->kind, r->id);

	r->next_hash = *b;
	*b = r;
	r->pprev = where;
	r->next = *where;
	if (r->next)
		r->next->pprev = &r->next;
	else
		t->last = &r->next;
	*where = r;
	t->count++;
}

int store_table_put(struct store_table *t, const struct store_packet *p, const int *fds)
{
	struct store_record *old, *r, **where;

	if (!t->last)
		t->last = &t->first;
	if (t->count >= t->bucket_count && grow(t) < 0)
		goto no_memory;
	r = malloc(sizeof(*r) + p->size);
	if (!r)
		goto no_memory;
	*r = (struct store_record){
		.id = p->id, .kind = p->kind, .nfds = (uint16_t)p->nfds, .size = p->size};
	memcpy(r->blob, p->blob, p->size);
	if (p->nfds)
		memcpy(r->fds, fds, p->nfds * sizeof(*fds));
	old = store_table_find(t, p->kind, p->id);
	where = t->last;
	if (old) {
		where = old->pprev;
		unlink_record(t, old);
		if (p->nfds == 0) { /* the descriptors that are there stay */
			r->nfds = old->nfds;
			memcpy(r->fds, old->fds, sizeof(r->fds));
		} else {
			close_all(old->fds, old->nfds);
		}
		free(old);
	}
	link_record(t, r, where);
	return 0;

no_memory:
	for (unsigned int i = 0; i < p->nfds; i++)
		close(fds[i]);
	return -ENOMEM;
}

void store_table_remove(struct store_table *t, unsigned int kind, uint64_t id)
{
	struct store_record *r = store_table_find(t, kind, id);

	if (!r)
		return;
	unlink_record(t, r);
	close_all(r->fds, r->nfds);
	free(r);
}

void store_table_deinit(struct store_table *t)
{
	while (t->first) {
		struct store_record *r = t->first;

		t->first = r->next;
		close_all(r->fds, r->nfds);
		free(r);
	}
	free(t->buckets);
	*t = (struct store_table){0};
}
