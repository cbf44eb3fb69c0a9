/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * RESIZE: changing the committed size of a region that is in use.
 *
 * Growing books and records the wish, takes the memory on a worker, and then tells: record, ledger,
 * client (commit.c). Shrinking tells first and gives the memory back afterwards. Either way what
 * the ledger promises is there. One at a time per region; a second one gets -EBUSY, except that one
 * which finds the broker still tidying up after its predecessor's death waits.
 */
#include <errno.h>
#include <inttypes.h>

#include "common/inject.h"

#include "broker.h"

static int grow(struct client *c, struct region *r, uint64_t size)
{
	struct broker *b = r->broker;
	const uint64_t more = size - r->record.committed;
	int rc = quota_charge(&b->quota, r->record.uid, more, 0, 0);

	if (rc < 0)
		return rc;
	r->charged += more;
	r->record.target = size;
	region_put(r, false);
	PANDO_INJECT("broker.grow.put");
	/* Killed from here to the next put: [committed, target) is given back by the successor. */
	job_start(r, JOB_GROW, c, r->record.committed, size);
	return 0;
}

static int shrink(struct client *c, const struct pando__msg *msg, struct region *r, uint64_t size)
{
	const uint64_t old = r->record.committed;
	int rc = heap_shrink(c, msg, r, size);

	if (rc != 0) /* its heap is in the way, or it is being looked whether it is */
		return rc < 0 ? rc : 0;
	PANDO_INJECT("broker.shrink.heap");
	/* Killed before the put: the successor lets the heap have its spans again. */

	r->record.committed = size;
	r->record.target = old;
	r->broker->committed -= old - size;
	region_put(r, false);
	PANDO_INJECT("broker.shrink.put");
	/*
	 * Killed from here to the next put: the successor tells the new size and gives [size, old)
	 * back.
	 */
	ledger_set_committed(r, size);
	job_start(r, JOB_SHRINK, c, size, old);
	return 0;
}

int resize_request(struct client *c, const struct pando__msg *msg)
{
	const struct attachment *a = client_attachment(c, msg->resize.region_id);
	const uint64_t size = msg->resize.size;
	struct region *r;
	uint64_t page, rounded;

	if (!a)
		return pando__fail(ENOENT,
				   "this client is not attached to a region with id %" PRIu64,
				   msg->resize.region_id);
	r = a->region;
	if (a->readonly)
		return pando__fail(EACCES,
				   "region \"%s\" was opened read-only: it cannot be resized",
				   r->record.name);
	if (size == 0 || size > r->record.max_size)
		return pando__fail(EINVAL,
				   "region \"%s\" can have between 1 and %" PRIu64
				   " bytes, not %" PRIu64,
				   r->record.name, r->record.max_size, size);
	if (r->working && r->job.kind == JOB_ROLLBACK)
		return handler_park(c, msg, &r->waiting);
	if (r->working)
		return pando__fail(EBUSY, "region \"%s\" is being resized by another client",
				   r->record.name);
	page = r->backend->page_size;
	rounded = (size + page - 1) / page * page;
	if (rounded > r->record.committed)
		return grow(c, r, rounded);
	if (rounded < r->record.committed)
		return shrink(c, msg, r, rounded);
	handler_done(c, rounded);
	return 0;
}
