/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ledger: the only shared memory that the broker relies on, because it alone can write it.
 *
 * Every change here is one store that makes something count, preceded by stores that mean nothing
 * without it; the injection points mark the instants in between, and the comment beside each says
 * what a broker that is killed there leaves behind. Partner of each release store: the acquire load
 * of the same word in libshm's readers, and in the successor's take-up.
 *
 * Memory: the ledger's pages are allocated 64 entries at a time, a slot's page when its entry is
 * used for the first time; both stay. So neither the broker nor a reader of slots ever meets a
 * hole.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backend/file.h"
#include "common/atomic.h"
#include "common/futex.h"
#include "common/inject.h"

#include "broker.h"
#include "log.h"

#define PAGE 4096u
#define WORD_BITS 64u
#define ENTRIES_PER_PAGE (PAGE / sizeof(struct pando__ledger_client))

void ledger_format(struct region *r)
{
	struct pando__ledger *l = r->ledger;

	l->version = PANDO__LAYOUT_VERSION;
	l->header_size = PANDO__LEDGER_HEADER;
	l->region_id = r->record.id;
	l->base = r->record.base;
	l->max_size = r->record.max_size;
	l->created_ns = r->record.created_ns;
	l->backend = r->record.backend;
	l->page_size = r->backend->page_size;
	l->max_clients = PANDO__MAX_CLIENTS;
	l->slot_size = PANDO__SLOT_SIZE;
	memcpy(l->name, r->record.name, sizeof(l->name));
	l->committed = r->record.committed;
	l->flags = r->record.flags & PANDO_HEAP;
	l->rcu_mode = pando__membarrier_mode();
	/* Without it names could be chosen so that they are found slowly: no more. */
	if (getrandom(&l->directory_seed, sizeof(l->directory_seed), 0) < 0)
		l->directory_seed = broker_now();
	/* Killed before this: nobody has seen the file, and it goes with the broker. */
	pando__store_release(&l->magic, PANDO__LEDGER_MAGIC);
}

int ledger_validate(const struct region *r)
{
	const struct pando__ledger *l = r->ledger;

	if (l->magic != PANDO__LEDGER_MAGIC || l->version != PANDO__LAYOUT_VERSION)
		return pando__fail(EINVAL, "the ledger has magic 0x%" PRIx64 " and version %u",
				   l->magic, l->version);
	if (l->region_id != r->record.id || l->base != r->record.base ||
	    l->max_size != r->record.max_size || l->backend != r->record.backend ||
	    l->max_clients != PANDO__MAX_CLIENTS || l->slot_size != PANDO__SLOT_SIZE ||
	    l->flags != (r->record.flags & PANDO_HEAP) || l->header_size != PANDO__LEDGER_HEADER ||
	    l->clients_high > PANDO__MAX_CLIENTS ||
	    memcmp(l->name, r->record.name, sizeof(l->name)) != 0)
		return pando__fail(EINVAL, "the ledger and the record do not describe one region");
	return 0;
}

void ledger_mark_taken(struct region *r, uint32_t slot, bool taken)
{
	uint64_t bit = 1ull << (slot % WORD_BITS);

	if (taken) {
		r->taken[slot / WORD_BITS] |= bit;
		return;
	}
	r->taken[slot / WORD_BITS] &= ~bit;
	if (slot < r->taken_hint)
		r->taken_hint = slot;
}

/* The lowest free entry, or PANDO__MAX_CLIENTS: the table stays short. */
static uint32_t lowest_free(struct region *r)
{
	for (uint32_t w = r->taken_hint / WORD_BITS; w < PANDO__MAX_CLIENTS / WORD_BITS; w++)
		if (~r->taken[w]) {
			r->taken_hint = w * WORD_BITS + (uint32_t)__builtin_ctzll(~r->taken[w]);
			return r->taken_hint;
		}
	r->taken_hint = PANDO__MAX_CLIENTS - 1;
	return PANDO__MAX_CLIENTS;
}

/* Allocates the pages of an entry that was never used, then lets readers look at it. */
static int extend(struct region *r, uint32_t slot)
{
	int rc = 0;

	if (slot % ENTRIES_PER_PAGE == 0)
		rc = pando__file_allocate(
			r->ledger_fd,
			PANDO__LEDGER_HEADER + slot * sizeof(struct pando__ledger_client), PAGE);
	if (rc == 0)
		rc = pando__file_allocate(r->slots_fd, (uint64_t)slot * PANDO__SLOT_SIZE, PAGE);
	if (rc < 0)
		return pando__fail(-rc, "no memory for one more client of region \"%s\": %s",
				   r->record.name, strerror(-rc));
	PANDO_INJECT("broker.attach.extended");
	/*
	 * Killed before this: allocated pages beyond the table's end, which the next client finds
	 * allocated.
	 */
	pando__store_release(&r->ledger->clients_high, slot + 1);
	return 0;
}

int ledger_take(struct region *r, const struct client *c, bool readonly, uint32_t *slot,
		uint64_t *generation)
{
	const struct config_quota quota = config_quota_for(r->broker->config, c->who.uid);
	uint32_t i = lowest_free(r);
	struct pando__ledger_client *e;
	int rc;

	if (i == PANDO__MAX_CLIENTS)
		return pando__fail(EUSERS, "region \"%s\" has %u clients, more are not possible",
				   r->record.name, PANDO__MAX_CLIENTS);
	if (i >= r->ledger->clients_high) {
		rc = extend(r, i);
		if (rc < 0)
			return rc;
	}
	e = pando__ledger_client(r->ledger, i);
	*generation = PANDO__CLIENT_GENERATION(e->word);
	e->client_id = c->record.id;
	e->start_time = c->record.start_time;
	e->attached_ns = broker_now();
	e->pid = c->pid;
	e->uid = c->who.uid;
	e->gid = c->who.gid;
	e->readonly = readonly;
	e->heap_quota = quota.heap_client;
	e->heap_quota_user = quota.heap;
	PANDO_INJECT("broker.attach.fields");
	/*
	 * Killed before this: the entry is FREE, its fields mean nothing. After: the successor
	 * finds it LIVE.
	 */
	pando__store_release(&e->word, PANDO__CLIENT_WORD(*generation, PANDO__CLIENT_LIVE));
	PANDO_INJECT("broker.attach.live");
	pando__store_relaxed(&r->ledger->clients_live, r->ledger->clients_live + 1);
	ledger_mark_taken(r, i, true);
	*slot = i;
	return 0;
}

/*
 * Writes zeroes over a slot's page: its memory stays allocated. Pages of readers go first, since only
 * this tells a successor that there may be some.
 */
void ledger_clear_slot(struct region *r, uint32_t slot)
{
	static const char zeroes[PANDO__SLOT_SIZE];
	off_t at = (off_t)slot * PANDO__SLOT_SIZE;
	size_t done = 0;

	rcu_clear(r, slot);
	while (done < sizeof(zeroes)) {
		ssize_t n =
			pwrite(r->slots_fd, zeroes + done, sizeof(zeroes) - done, at + (off_t)done);

		if (n < 0 && errno != EINTR) {
			log_error("cannot clear slot %u of region \"%s\": %s", slot, r->record.name,
				  strerror(errno));
			return;
		}
		done += n > 0 ? (size_t)n : 0;
	}
}

void ledger_begin_reap(struct region *r, uint32_t slot)
{
	struct pando__ledger_client *e = pando__ledger_client(r->ledger, slot);

	PANDO_INJECT("broker.reap.begin");
	/* Others look at it after a change of their own: partner is attached() in object.c. */
	pando__store_seq_cst(&e->word, PANDO__CLIENT_WORD(PANDO__CLIENT_GENERATION(e->word),
							  PANDO__CLIENT_REAPING));
	PANDO_INJECT("broker.reap.reaping");
	rcu_died(r);
	/* Killed from here to the last store: REAPING, and the successor reaps it again. */
}

void ledger_end_reap(struct region *r, uint32_t slot)
{
	struct pando__ledger_client *e = pando__ledger_client(r->ledger, slot);
	const uint64_t next = PANDO__CLIENT_GENERATION(e->word) + 1;

	pando__store_release(&e->word, PANDO__CLIENT_WORD(next, PANDO__CLIENT_FREE));
	PANDO_INJECT("broker.reap.free");
	pando__store_relaxed(&r->ledger->clients_live, r->ledger->clients_live - 1);
	ledger_mark_taken(r, slot, false);
}

void ledger_reap(struct region *r, uint32_t slot)
{
	ledger_begin_reap(r, slot);
	ledger_clear_slot(r, slot);
	PANDO_INJECT("broker.reap.cleared");
	ledger_end_reap(r, slot);
}

void ledger_set_readonly(struct region *r, uint32_t slot, bool readonly)
{
	pando__store_release(&pando__ledger_client(r->ledger, slot)->readonly, readonly);
}

/* Tells those who wait for a change. Partner: pando_region_wait_size(). */
void ledger_announce(struct region *r)
{
	pando__add_acq_rel(&r->ledger->changes, 1);
	pando__futex_wake(&r->ledger->changes, INT32_MAX);
}

void ledger_set_committed(struct region *r, uint64_t committed)
{
	if (r->ledger->committed == committed)
		return;
	pando__store_release(&r->ledger->committed, committed);
	PANDO_INJECT("broker.resize.ledger");
	/*
	 * Killed here: whoever looks sees the size; those who sleep are woken by the successor's
	 * take-up.
	 */
	ledger_announce(r);
}

void ledger_set_destroyed(struct region *r)
{
	if (r->ledger->state == 1)
		return;
	pando__store_release(&r->ledger->state, 1);
	ledger_announce(r);
}
