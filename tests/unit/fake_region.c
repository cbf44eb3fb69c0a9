/* SPDX-License-Identifier: BSD-2-Clause */
#include "fake_region.h"

#include <string.h>
#include <unistd.h>

#include "common/atomic.h"

void fake_region_init(struct pando_region *r, struct fake_heap *heap, uint32_t slot)
{
	struct pando__ledger_client *e = pando__ledger_client(heap->ledger, slot);

	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->making, NULL);
	pando__rcu_gate_init(&r->rcu);
	r->directory = pando__directory_gate_of(heap->ledger, heap->slots, heap->view.base);
	r->heap = heap;
	r->slot = slot;
	r->generation = 1;
	e->pid = getpid();
	pando__store_release(&e->word, PANDO__CLIENT_WORD(1, PANDO__CLIENT_LIVE));
	if (heap->ledger->clients_high <= slot)
		pando__store_release(&heap->ledger->clients_high, slot + 1);
}

static void forget(struct pando_region *r)
{
	struct pando__front *f = r->gate.front;

	pando__rcu_gate_close(&r->rcu);
	pando__store_release(&r->gate.serial, 0);
	pando__store_release(&r->gate.front, NULL);
	if (f)
		pando__front_free(f);
}

void fake_region_kill(struct pando_region *r, struct pando__reclaimed *out)
{
	struct pando__ledger_client *e = pando__ledger_client(r->heap->ledger, r->slot);
	char *page = r->heap->slots + (size_t)r->slot * PANDO__SLOT_SIZE;

	forget(r);
	pando__store_release(&e->word, PANDO__CLIENT_WORD(r->generation, PANDO__CLIENT_REAPING));
	(void)pando__heap_reap(&r->heap->view, r->heap->slots, r->slot, out);
	memset(page, 0, PANDO__SLOT_SIZE);
	r->generation++;
	pando__store_release(&e->word, PANDO__CLIENT_WORD(r->generation, PANDO__CLIENT_LIVE));
}

void fake_region_deinit(struct pando_region *r)
{
	forget(r);
	pthread_mutex_destroy(&r->making);
}

struct pando__front *pando__region_front(struct pando_region *r)
{
	struct pando__front_options o = {
		.region = r,
		.base = r->heap->view.base,
		.ledger = r->heap->ledger,
		.slots = r->heap->slots,
		.slot = r->slot,
		.generation = r->generation,
	};
	struct pando__front *f = pando__load_acquire(&r->gate.front);

	if (f)
		return f;
	pthread_mutex_lock(&r->making);
	f = r->gate.front;
	if (!f) {
		f = pando__front_new(&o);
		if (f) {
			pando__store_release(&r->gate.front, f);
			if (!f->debug)
				pando__store_release(&r->gate.serial, f->serial);
		}
	}
	pthread_mutex_unlock(&r->making);
	return f;
}

int pando__region_rcu_place(struct pando_region *r, struct pando__rcu_place *place,
			    bool slot_needed)
{
	(void)slot_needed;
	*place = (struct pando__rcu_place){
		.ledger = r->heap->ledger,
		.slots = r->heap->slots,
		.slot = r->slot,
		.generation = r->generation,
	};
	return 0;
}

void *pando_region_base(const struct pando_region *r)
{
	return r->heap->view.base;
}

int pando__region_view(struct pando_region *r, struct pando__view *v, uint32_t *slot,
		       const char **slots)
{
	*slot = r->slot;
	if (slots)
		*slots = r->heap->slots;
	return pando__view_init(v, r->heap->view.base, r->heap->ledger);
}
