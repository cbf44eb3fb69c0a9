/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Regions: making and freeing them, their files, their records.
 *
 * Files are made on a worker (commit.c) while the region is CREATING: then only the worker touches
 * them. All else happens on the loop's thread. The record is put when the region becomes LIVE:
 * until then a death of the broker takes the nameless files with it, and the requester asks again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/file.h"
#include "common/atomic.h"
#include "common/inject.h"

#include "broker.h"
#include "log.h"

struct region *region_new(struct broker *b, const struct region_record *record)
{
	struct region *r = calloc(1, sizeof(*r));
	uint64_t *taken = calloc(PANDO__MAX_CLIENTS / 64, sizeof(*taken));

	if (!r || !taken) {
		free(r);
		free(taken);
		pando__fail(ENOMEM, "the broker is out of memory");
		return NULL;
	}
	r->broker = b;
	r->record = *record;
	r->taken = taken;
	r->backend = pando__backend_find(record->backend);
	r->ledger_fd = r->ledger_ro = r->slots_fd = r->heap_fd = r->heap_ro = -1;
	r->previous = b->last_region;
	while (r->previous &&
	       r->previous->record.id > record->id) /* records may come in any order */
		r->previous = r->previous->previous;
	r->next = r->previous ? r->previous->next : b->regions;
	*(r->previous ? &r->previous->next : &b->regions) = r;
	*(r->next ? &r->next->previous : &b->last_region) = r;
	return r;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void region_free(struct region *r)
{
	struct broker *b = r->broker;

	if (r->state == REGION_LIVE)
		b->region_count--;
	if (r->state != REGION_CREATING)
		b->committed -= r->record.committed;
	*(r->previous ? &r->previous->next : &b->regions) = r->next;
	*(r->next ? &r->next->previous : &b->last_region) = r->previous;
	if (r->placed)
		window_release(&b->window, r->record.base);
	quota_discharge(&b->quota, r->record.uid, r->charged, 1, 0);
	heap_unmap(r);
	directory_close(r);
	rcu_close(r);
	if (r->ledger)
		munmap(r->ledger, PANDO__LEDGER_SIZE);
	close_fd(r->ledger_fd);
	close_fd(r->ledger_ro);
	close_fd(r->slots_fd);
	close_fd(r->heap_fd);
	close_fd(r->heap_ro);
	free(r->taken);
	free(r);
}

/* Not those that are destroyed: their names are free. */
struct region *region_find(struct broker *b, const char *name)
{
	for (struct region *r = b->regions; r; r = r->next)
		if (r->state != REGION_DYING && !(r->record.flags & PANDO_REGION_DESTROYED) &&
		    strcmp(r->record.name, name) == 0)
			return r;
	return NULL;
}

struct region *region_by_id(struct broker *b, uint64_t id)
{
	for (struct region *r = b->last_region; r && r->record.id >= id; r = r->previous)
		if (r->record.id == id)
			return r;
	return NULL;
}

int region_make_files(struct region *r)
{
	int rc;

	rc = pando__file_create(r->record.name, 0, PANDO__LEDGER_SIZE, &r->ledger_fd);
	if (rc == 0)
		rc = pando__file_create(r->record.name, 0, PANDO__SLOTS_SIZE, &r->slots_fd);
	if (rc == 0)
		rc = rcu_make(r);
	if (rc == 0)
		rc = r->backend->create(r->record.name, r->record.base, r->record.max_size,
					&r->heap_fd);
	if (rc == 0)
		rc = r->heap_ro = r->backend->reopen_readonly(r->heap_fd);
	if (rc < 0)
		return rc;
	rc = pando__file_allocate(r->ledger_fd, 0, PANDO__LEDGER_HEADER);
	if (rc < 0)
		return pando__fail(-rc, "no memory for the ledger of region \"%s\": %s",
				   r->record.name, strerror(-rc));
	return region_open_files(r);
}

int region_open_files(struct region *r)
{
	void *at;
	int rc;

	r->ledger_ro = pando__file_reopen_readonly(r->ledger_fd);
	if (r->ledger_ro < 0)
		return r->ledger_ro;
	at = mmap(NULL, PANDO__LEDGER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		  r->ledger_fd, 0);
	if (at == MAP_FAILED)
		return pando__fail(errno, "cannot map the ledger of region \"%s\": %s",
				   r->record.name, strerror(errno));
	r->ledger = at;
	rc = rcu_open(r);
	return rc < 0 ? rc : directory_open(r);
}

bool region_lazy(const struct region *r)
{
	return (r->record.flags & PANDO_HEAP) && r->backend->page_size == PANDO__PAGE;
}

void region_put(struct region *r, bool with_files)
{
	const int fds[STORE_MAX_FDS] = {r->ledger_fd, r->slots_fd, r->heap_fd, r->heap_ro};

	broker_put(r->broker, STORE_REGION, r->record.id, &r->record, sizeof(r->record), fds,
		   with_files ? STORE_MAX_FDS : 0);
}

void region_destroy(struct region *r, const struct client *by)
{
	r->record.flags |= PANDO_REGION_DESTROYED;
	r->record.destroyer = by ? by->record.id : 0;
	r->record.destroyer_seq = by ? by->seq : 0;
	region_put(r, false);
	PANDO_INJECT("broker.destroy.put");
	/*
	 * Killed before this: the successor finds the record destroyed and says so in the ledger.
	 */
	ledger_set_destroyed(r);
	PANDO_INJECT("broker.destroy.ledger");
}

/* From here on, who misses memory, or the room in a quota, waits for that of this region. */
static void announce_end(struct region *r)
{
	if (!r->announced)
		(void)pando__add_relaxed(&r->broker->frees, 1);
	r->announced = true;
}

/* Its addresses are free at once, since nobody maps it; its memory when the job is done. */
static void begin_dying(struct region *r)
{
	struct broker *b = r->broker;

	if (!(r->record.flags & PANDO_REGION_DESTROYED))
		region_destroy(r, NULL);
	heap_drop(r);
	heap_unmap(r); /* before others can have its addresses */
	r->state = REGION_DYING;
	if (r->placed) {
		r->record.ending = 1;
		region_put(r, false);
		PANDO_INJECT("broker.free.ending");
		/*
		 * Killed before the put: nobody has the addresses yet; after: the successor does
		 * not claim them.
		 */
		window_release(&b->window, r->record.base);
		r->placed = false;
	}
	/* Killed after this: nobody knows it any more, and the kernel closes its files. */
	broker_forget(b, STORE_REGION, r->record.id);
	announce_end(r);
	b->region_count--;
	job_start(r, JOB_FREE, NULL, 0, r->record.committed);
}

void region_settle(struct region *r)
{
	const uint32_t ends = PANDO_TRANSIENT | PANDO_REGION_DESTROYED;

	if (r->state != REGION_LIVE || r->users > 0 || r->holds > 0 || r->working ||
	    !(r->record.flags & ends))
		return;
	if (r->waiting.first) /* requests that were made before it ended come first */
		return;
	if (r->heap.working) { /* it ends when the worker has left it; nobody finds it any more */
		if (!(r->record.flags & PANDO_REGION_DESTROYED))
			region_destroy(r, NULL);
		announce_end(r);
		return;
	}
	log_info("region \"%s\" ends with its last user", r->record.name);
	begin_dying(r);
}
