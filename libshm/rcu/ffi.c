/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando_read_lock() and pando_read_unlock() as functions, for languages that cannot have the inline
 * ones of pando/rcu.h. The same, by a call.
 */
#define pando_read_lock pando__inline_read_lock
#define pando_read_unlock pando__inline_read_unlock
#include <pando/rcu.h>
#undef pando_read_lock
#undef pando_read_unlock

PANDO_API int pando_read_lock(struct pando_region *r);
PANDO_API int pando_read_unlock(struct pando_region *r);

int pando_read_lock(struct pando_region *r)
{
	return pando__inline_read_lock(r);
}

int pando_read_unlock(struct pando_region *r)
{
	return pando__inline_read_unlock(r);
}
