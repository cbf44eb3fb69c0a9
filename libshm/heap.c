/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The heap of a region, as seen from the region: when a front is made, and when it goes.
 *
 * A front is a client's seat at a heap; it needs a slot. It is made by the first call that needs it,
 * with the turn held: threads that come at once wait for one of them, and a forked child that has no
 * answer from the broker yet gets it now. It goes when the region is closed, and is forgotten, with
 * nothing of the parent's touched, in a forked child.
 *
 *	gate.serial	0		no front: every fast path comes here
 *			else		the number of the front in gate.front
 *
 * The broker is not needed for it once the process is attached: if it has gone, a front is made all
 * the same.
 */
#include "client.h"

#include <errno.h>
#include <string.h>

#include "backend/backend.h"
#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

static_assert(offsetof(struct pando_region, gate) == 0, "the heap's fast paths look there");
static_assert(offsetof(struct pando_region, rcu) == PANDO__RCU_GATE_AT, "the readers' look there");
static_assert(offsetof(struct pando_region, directory) == PANDO__DIRECTORY_GATE_AT, "names, there");

/* Sees to it that a forked child has a slot. Turn held; rc: what pando__begin() said. */
static int await_slot(struct pando_region *r, int rc)
{
	struct pando__msg request, reply;

	/* The answer to a question asked now comes after those that are on their way. */
	if (r->membership != PANDO__ATTACHED && rc == 0) {
		pando__msg_init(&request, PANDO__MSG_STATUS, 0);
		rc = pando__call(r->p, &request, PANDO__MSG_STATUS_REPLY, 0, &reply);
	}
	if (r->membership == PANDO__ATTACHED)
		return 0;
	if (rc < 0)
		return -ECONNRESET; /* the sentence is there */
	return pando__fail(ECONNRESET,
			   "the broker did not attach this forked process to region \"%s\"%s",
			   r->name,
			   r->membership == PANDO__LOST ? ", which it does not know any more"
							: " yet; try again");
}

static int make(struct pando_region *r)
{
	struct pando__front_options o = {
		.region = r,
		.base = (char *)(uintptr_t)r->base,
		.ledger = r->ledger,
		.slots = r->slots,
		.slot = r->slot,
		.generation = r->generation,
		.available = pando__memory_available,
	};
	struct pando__front *f = pando__front_new(&o);

	if (!f)
		return -errno;
	PANDO_INJECT("client.heap.front");
	pando__store_release(&r->gate.front, f);
	/* Pairs with nothing: a fast path uses the number only to compare it with its own. */
	if (!f->debug)
		pando__store_release(&r->gate.serial, f->serial);
	return 0;
}

struct pando__front *pando__region_front(struct pando_region *r)
{
	struct pando__front *f;
	int rc;

	pando__check_mark(r->p);
	f = pando__load_acquire(&r->gate.front);
	if (f)
		return f;
	if (r->readonly) {
		pando__fail(EACCES, "region \"%s\" is open read-only: its heap cannot be used here",
			    r->name);
		errno = EACCES;
		return NULL;
	}
	rc = await_slot(r, pando__begin(r->p));
	if (rc == 0 && !r->gate.front)
		rc = make(r);
	pando__end(r->p);
	if (rc < 0)
		errno = -rc;
	return rc < 0 ? NULL : r->gate.front;
}

int pando__region_view(struct pando_region *r, struct pando__view *v, uint32_t *slot,
		       const char **slots)
{
	pando__check_mark(r->p);
	pthread_mutex_lock(&r->p->lock);
	*slot = r->slot;
	pthread_mutex_unlock(&r->p->lock);
	if (slots)
		*slots = r->slots;
	return pando__view_init(v, (char *)(uintptr_t)r->base, r->ledger);
}

int pando__region_rcu_place(struct pando_region *r, struct pando__rcu_place *place,
			    bool slot_needed)
{
	int rc = 0;

	pando__check_mark(r->p);
	if (slot_needed) {
		rc = await_slot(r, pando__begin(r->p));
		pando__end(r->p);
	}
	pthread_mutex_lock(&r->p->lock);
	*place = (struct pando__rcu_place){
		.ledger = r->ledger,
		.slots = r->slots,
		.slot = r->slot,
		.generation = r->generation,
		.readonly = r->readonly,
	};
	pthread_mutex_unlock(&r->p->lock);
	return rc;
}

void pando__region_heap_close(struct pando_region *r)
{
	struct pando__front *f = r->gate.front;

	r->gate.serial = 0;
	r->gate.front = NULL;
	if (!f)
		return;
	pando__front_free(f);
	PANDO_INJECT("client.heap.closed");
}

void pando__region_heap_forked(struct pando_region *r)
{
	struct pando__front *f = r->gate.front;

	r->gate.serial = 0;
	r->gate.front = NULL;
	if (f)
		pando__front_abandon(f);
}
