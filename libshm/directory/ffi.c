/* SPDX-License-Identifier: BSD-2-Clause */
/* pando_lookup_handle() as a function, for languages that cannot have the inline one. */
#define pando_lookup_handle pando__inline_lookup_handle
#include <pando/directory.h>
#undef pando_lookup_handle

PANDO_API void *pando_lookup_handle(struct pando_region *r, struct pando_handle *h);

void *pando_lookup_handle(struct pando_region *r, struct pando_handle *h)
{
	return pando__inline_lookup_handle(r, h);
}
