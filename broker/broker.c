/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The broker as a whole: beginning and end, ids, records, draining, and the executable invariants.
 */
#include "broker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"

int broker_init(struct broker *b, const struct broker_config *config, const struct broker_ops *ops,
		struct store *store)
{
	memset(b, 0, sizeof(*b));
	b->config = config;
	b->ops = ops;
	b->store = store;
	b->epoch = 1;
	heap_init();
	quota_init(&b->quota, config);
	return window_init(&b->window, config->window_base, config->window_size);
}

void broker_deinit(struct broker *b)
{
	while (b->regions)
		region_free(b->regions);
	window_deinit(&b->window);
	quota_deinit(&b->quota);
}

/* Ids carry the epoch, so that no broker repeats one of its predecessor's. */
uint64_t broker_new_id(struct broker *b)
{
	return (b->epoch << 32) | ++b->last_id;
}

uint64_t broker_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void check_store(struct broker *b, int rc, const char *what)
{
	if (rc == 0 || b->store_lost)
		return;
	b->store_lost = true;
	log_error("cannot %s a record: %s; a restart would not find it", what, strerror(-rc));
}

void broker_put(struct broker *b, enum store_kind kind, uint64_t id, const void *blob, size_t size,
		const int *fds, unsigned int nfds)
{
	if (b->store && !b->store_lost)
		check_store(b, store_put(b->store, kind, id, blob, size, fds, nfds), "put");
}

void broker_forget(struct broker *b, enum store_kind kind, uint64_t id)
{
	if (b->store && !b->store_lost)
		check_store(b, store_remove(b->store, kind, id), "remove");
}

void broker_put_all(struct broker *b, unsigned int (*descriptors)(struct client *c, int *fds))
{
	for (struct region *r = b->regions; r; r = r->next)
		if (r->state == REGION_LIVE)
			region_put(r, true);
	for (struct client *c = b->clients; c; c = c->next) {
		int fds[STORE_MAX_FDS];

		client_put(c, fds, descriptors(c, fds));
	}
	graft_put_all(b);
}

void broker_drain(struct broker *b)
{
	if (b->draining)
		return;
	b->draining = true;
	for (struct client *c = b->clients; c; c = c->next)
		client_notice(c, PANDO__NOTICE_DRAINING);
}

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "broker_check: %s\n", what);
	abort();
}

static void check_client(struct client *c)
{
	uint32_t n = 0;

	for (struct attachment *a = c->attachments; a; a = a->next, n++) {
		struct pando__ledger_client *e = pando__ledger_client(a->region->ledger, a->slot);

		must(a->released == c->dead, "a slot of the dead, or none of the living");
		if (a->released)
			continue;
		must(a->client == c, "an attachment leads to another client");
		must(e->client_id == c->record.id, "an entry names another client");
		must(PANDO__CLIENT_STATE(e->word) == PANDO__CLIENT_LIVE,
		     "an entry in use is not live");
		must(PANDO__CLIENT_GENERATION(e->word) == a->generation, "another generation");
	}
	must(n == c->regions, "count of a client's regions");
	must(c->busy == (c->job || c->parked), "busy without a reason");
	must(!c->next || c->next->record.id > c->record.id, "clients out of order");
	must(client_find(c->broker, c->record.id) == c, "a client is not found by its id");
}

static void check_region(struct broker *b, struct region *r)
{
	uint32_t users = 0, holds = 0, live = 0;

	for (struct client *c = b->clients; c; c = c->next) {
		struct attachment *a = client_attachment(c, r->record.id);

		users += a && !a->released;
		holds += a && a->released;
	}
	must(holds == r->holds, "count of a region's holds");
	must(users == r->users, "count of a region's users");
	must(!r->next || r->next->record.id > r->record.id, "regions out of order");
	if (r->state != REGION_LIVE)
		return;
	for (uint32_t i = 0; i < r->ledger->clients_high; i++)
		live += PANDO__CLIENT_STATE(pando__ledger_client(r->ledger, i)->word) !=
			PANDO__CLIENT_FREE;
	must(live == users + r->heap.reaping && r->ledger->clients_live == live,
	     "entries in a client table");
	must(r->ledger->committed == r->record.committed, "committed size in ledger and record");
}

void broker_check(struct broker *b)
{
	uint64_t clients = 0, regions = 0, committed = 0, charged = 0, booked = 0;

	for (struct client *c = b->clients; c; c = c->next, clients++)
		check_client(c);
	for (struct region *r = b->regions; r; r = r->next) {
		check_region(b, r);
		charged += r->charged;
		if (r->state == REGION_CREATING)
			continue;
		regions += r->state == REGION_LIVE;
		committed += r->record.committed;
	}
	must(clients == b->client_count, "count of clients");
	must(regions == b->region_count, "count of regions");
	must(committed == b->committed, "committed bytes");
	for (size_t i = 0; i < sizeof(b->quota.buckets) / sizeof(b->quota.buckets[0]); i++)
		for (struct quota_account *a = b->quota.buckets[i]; a; a = a->next)
			booked += a->memory;
	must(charged == booked, "booked memory");
	graft_check(b, must);
}
