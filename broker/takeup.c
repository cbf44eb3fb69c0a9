/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Take-up: a broker that was started again finds everything where its predecessor left it.
 *
 * Three sources: the records (regions, clients), the ledgers (who is attached to what), the sockets
 * (who a client is). Records come first, in any order; then each region's client table is gone
 * through:
 *
 *	LIVE, its client has a record		attached, as before
 *	LIVE, no such client; REAPING		the dead broker was about to reap it: reaped (again),
 *						where there is a heap by a worker
 *	FREE					nothing
 *
 * and what the dead broker was doing with the region's memory is undone or finished (records.h). A
 * region whose files do not fit its record is dropped, with an error in the log: the others must
 * live. Clients that died meanwhile are taken up too; their pidfds say so as soon as they are
 * polled.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/inject.h"

#include "broker.h"
#include "log.h"

struct takeup {
	struct broker *b;
	int (*adopt)(struct broker *b, struct takeup_client *t);
	int *listener;
};

static void close_all(const int *fds, unsigned int nfds)
{
	for (unsigned int i = 0; i < nfds; i++)
		close(fds[i]);
}

/* Books address space and quota. Returns 0 or a negative errno with a sentence. */
static int book(struct region *r)
{
	struct broker *b = r->broker;
	uint64_t wanted = r->record.base, most = r->record.committed;
	void *other;
	int rc;

	if (r->record.target > most)
		most = r->record.target;
	rc = quota_charge_found(&b->quota, r->record.uid, most, 1, 0);
	if (rc < 0)
		return rc;
	r->charged = most;
	if (r->record.ending)
		return 0;
	rc = window_take(&b->window, wanted, r->record.max_size, r, &wanted, &other);
	r->placed = rc == 0;
	return rc == -EADDRINUSE
		       ? pando__fail(EADDRINUSE, "its address 0x%" PRIx64 " is taken", wanted)
		       : rc;
}

static int region_open_record(struct region *r, const int *fds)
{
	int rc;

	r->ledger_fd = fds[0];
	r->slots_fd = fds[1];
	r->heap_fd = fds[2];
	r->heap_ro = fds[3];
	rc = region_open_files(r);
	return rc < 0 ? rc : ledger_validate(r);
}

static void drop(struct takeup *t, uint64_t id)
{
	log_error("region %" PRIu64 " cannot be taken up: %s; it is dropped", id,
		  pando_strerror_last());
	broker_forget(t->b, STORE_REGION, id);
}

/* A region that cannot be taken up is no reason to give the others up: always 0. */
static int take_region(struct takeup *t, uint64_t id, const struct region_record *record,
		       size_t size, const int *fds, unsigned int nfds)
{
	struct region *r;

	if (size != sizeof(*record) || record->version != RECORD_VERSION || nfds != STORE_MAX_FDS ||
	    !pando__backend_find(record->backend) || record->grant_count > REGION_MAX_GRANTS) {
		pando__fail(EINVAL, "its record is not one of this release");
		close_all(fds, nfds);
		drop(t, id);
		return 0;
	}
	r = region_new(t->b, record);
	if (!r) {
		close_all(fds, nfds);
		drop(t, id);
		return 0;
	}
	/* From here on the descriptors are the region's. */
	if (region_open_record(r, fds) < 0 || book(r) < 0) {
		if (!r->charged) /* region_free() takes one region off the owner's account */
			(void)quota_charge_found(&t->b->quota, r->record.uid, 0, 1, 0);
		region_free(r);
		drop(t, id);
		return 0;
	}
	r->state = REGION_LIVE;
	t->b->region_count++;
	t->b->committed += r->record.committed;
	return 0;
}

static int take_client(struct takeup *t, const struct client_record *record, size_t size,
		       const int *fds, unsigned int nfds)
{
	struct takeup_client client = {.nfds = nfds};

	if (size != sizeof(*record) || record->version != RECORD_VERSION || nfds == 0) {
		log_error("a client's record is not one of this release: it is dropped");
		close_all(fds, nfds);
		return 0;
	}
	client.record = *record;
	memcpy(client.fds, fds, nfds * sizeof(*fds));
	if (t->adopt(t->b, &client) < 0)
		broker_forget(t->b, STORE_CLIENT, record->id);
	return 0;
}

static int take(void *arg, enum store_kind kind, uint64_t id, const void *blob, size_t size,
		const int *fds, unsigned int nfds)
{
	struct takeup *t = arg;

	switch (kind) {
	case STORE_REGION:
		return take_region(t, id, blob, size, fds, nfds);
	case STORE_CLIENT:
		return take_client(t, blob, size, fds, nfds);
	case STORE_LISTENER:
		if (nfds != 1)
			break;
		*t->listener = fds[0];
		return 0;
	case STORE_RECEIVER:
		graft_take_receiver(t->b, blob, size, fds, nfds);
		return 0;
	case STORE_GRAFT:
	case STORE_GRAFT_HELD:
		graft_take(t->b, kind == STORE_GRAFT_HELD, id, blob, size, fds, nfds);
		return 0;
	case STORE_EPOCH:
		if (size == sizeof(t->b->epoch))
			memcpy(&t->b->epoch, blob, size);
		break;
	}
	close_all(fds, nfds);
	return 0;
}

static void attach_again(struct region *r, uint32_t slot, const struct pando__ledger_client *e)
{
	struct client *c = client_find(r->broker, e->client_id);
	struct attachment *a = NULL;

	if (c && !client_attachment(c, r->record.id))
		a = calloc(1, sizeof(*a));
	if (!a) {
		heap_release(r, slot, e->readonly);
		return;
	}
	a->client = c;
	a->region = r;
	a->slot = slot;
	a->generation = PANDO__CLIENT_GENERATION(e->word);
	a->readonly = e->readonly;
	a->next = c->attachments;
	c->attachments = a;
	c->regions++;
	r->users++;
}

/* The client table says who is attached; the hints beside it are counted anew. */
static void walk_table(struct region *r)
{
	struct pando__ledger *l = r->ledger;
	uint32_t used = 0;

	heap_take_up(r);
	for (uint32_t i = 0; i < l->clients_high; i++)
		if (PANDO__CLIENT_STATE(pando__ledger_client(l, i)->word) != PANDO__CLIENT_FREE) {
			ledger_mark_taken(r, i, true);
			used++;
		}
	l->clients_live = used;
	for (uint32_t i = 0; i < l->clients_high; i++) {
		const struct pando__ledger_client *e = pando__ledger_client(l, i);

		if (PANDO__CLIENT_STATE(e->word) == PANDO__CLIENT_LIVE)
			attach_again(r, i, e);
		else if (PANDO__CLIENT_STATE(e->word) == PANDO__CLIENT_REAPING)
			heap_release(r, i, e->readonly);
	}
}

/* Finishes or undoes what the dead broker was doing with the region. */
static void finish(struct region *r)
{
	struct region_record *record = &r->record;
	struct client *destroyer = client_find(r->broker, record->destroyer);
	const bool used = r->ledger->clients_high > 0;

	ledger_set_committed(r, record->committed);
	if (record->flags & PANDO_REGION_DESTROYED)
		ledger_set_destroyed(r);
	ledger_announce(r); /* it may have died between a change and telling of it */
	if (destroyer)
		destroyer->found_removed = record->destroyer_seq;
	heap_continue(r);
	if (record->target > record->committed) {
		log_info("region \"%s\": giving back what was being resized", record->name);
		job_start(r, JOB_ROLLBACK, NULL, record->committed, record->target);
	} else if (used || (record->flags & PANDO_REGION_DESTROYED)) {
		region_settle(
			r); /* a transient one that nobody has used yet waits for its first user */
	}
}

int takeup_run(struct broker *b, int (*adopt)(struct broker *b, struct takeup_client *t),
	       int *listener)
{
	struct takeup t = {.b = b, .adopt = adopt, .listener = listener};
	struct region *next;
	int rc = store_load(b->store, take, &t);

	if (rc < 0)
		return pando__fail(-rc, "cannot load the supervisor's records: %s", strerror(-rc));
	PANDO_INJECT("broker.takeup.loaded");
	for (struct region *r = b->regions; r; r = next) {
		next = r->next;
		walk_table(r);
		finish(r);
	}
	graft_taken_up(b);
	PANDO_INJECT("broker.takeup.done");
	if (b->epoch > 1)
		log_warn("epoch %" PRIu64 ": took up %" PRIu64 " regions and %" PRIu64 " clients",
			 b->epoch, b->region_count, b->client_count);
	return 0;
}
