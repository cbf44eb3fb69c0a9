/* SPDX-License-Identifier: BSD-2-Clause */
/* What this process has mapped where: for the sentence of a collision. */
#ifndef PANDO_MAPS_H
#define PANDO_MAPS_H

#include <stddef.h>
#include <stdint.h>

#define PANDO__MAPS_TEXT 160

/*
 * Describes the first mapping that overlaps [base, base + size): its range and its file, "anonymous
 * memory" or the kernel's name for it. Writes "something else" where /proc cannot be read.
 */
void pando__maps_find(uint64_t base, uint64_t size, char *text, size_t text_size);

#endif
