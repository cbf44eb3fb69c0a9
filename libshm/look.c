/* SPDX-License-Identifier: BSD-2-Clause */
/* A region as the allocator sees it that only wants to look: no front, no right to write needed. */
#include "client.h"

#include "allocator/heap.h"

int pando__region_view(struct pando_region *r, struct pando__view *v, uint32_t *slot,
		       const char **slots)
{
	*slot = r->slot;
	if (slots)
		*slots = r->slots;
	return pando__view_init(v, (char *)(uintptr_t)r->base, r->ledger);
}
