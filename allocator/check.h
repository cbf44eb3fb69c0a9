/* SPDX-License-Identifier: BSD-2-Clause */
/* Verifying a heap. See check.c. */
#ifndef PANDO_ALLOCATOR_CHECK_H
#define PANDO_ALLOCATOR_CHECK_H

#include "heap.h"

/*
 * Every invariant, in any mapping. slots: the region's slots file, or NULL (then nobody may be giving
 * objects away or freeing others'). looks: how often something must look wrong, in the same way, to
 * count. Returns 0, -EUCLEAN with what is broken, -EINVAL (no heap).
 */
int pando__heap_verify(const struct pando__view *v, const char *slots, unsigned int looks);

#endif
