/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sizes as people write and read them: "64M", "1.5 GiB".
 *
 * Units are powers of 1024, whether they are spelt K, KB or KiB. Both functions use their arguments
 * and nothing else: any thread, any context.
 */
#ifndef PANDO_COMMON_SIZE_H
#define PANDO_COMMON_SIZE_H

#include <stddef.h>
#include <stdint.h>

#define PANDO__SIZE_TEXT 16 /* bytes that are enough for any formatted size */

/* Writes three significant digits and the unit ("512 B", "1.50 GiB", "64 MiB") and returns buf. */
char *pando__size_format(uint64_t bytes, char buf[PANDO__SIZE_TEXT]);

/*
 * Reads "4096", "64M", "1.5g", "2 GiB", "0x200000" (bytes, when without a unit). Fractions are
 * exact to the byte, rounded down. Returns 0, or -EINVAL (nothing that looks like a size, rubbish
 * behind it, a sign) or -ERANGE (does not fit in 64 bits); *bytes is changed on success only.
 */
int pando__size_parse(const char *text, uint64_t *bytes);

#endif
