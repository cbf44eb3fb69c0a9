/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Formatting and reading sizes.
 *
 * Integers only: a size must come out as it went in, and a double cannot hold every 64-bit number.
 * A fraction is read as up to six decimal digits and multiplied in 128 bits.
 */
#include "common/size.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <strings.h>

static const char units[] = "BKMGTPE";

char *pando__size_format(uint64_t bytes, char buf[PANDO__SIZE_TEXT])
{
	unsigned int unit = 0;
	unsigned int whole, hundredths;

	while (unit < sizeof(units) - 2 && bytes >> (10 * (unit + 1)))
		unit++;
	if (unit == 0) {
		snprintf(buf, PANDO__SIZE_TEXT, "%" PRIu64 " B", bytes);
		return buf;
	}
	whole = (unsigned int)(bytes >> (10 * unit)) & 1023;
	/*
	 * The ten bits below the unit are enough for two digits; cut, not rounded: never more than
	 * there is.
	 */
	hundredths = (unsigned int)((bytes >> (10 * (unit - 1))) & 1023) * 100 / 1024;
	if (hundredths == 0 || whole >= 100)
		snprintf(buf, PANDO__SIZE_TEXT, "%u %ciB", whole, units[unit]);
	else if (whole >= 10)
		snprintf(buf, PANDO__SIZE_TEXT, "%u.%u %ciB", whole, hundredths / 10, units[unit]);
	else
		snprintf(buf, PANDO__SIZE_TEXT, "%u.%02u %ciB", whole, hundredths, units[unit]);
	return buf;
}

/* "", "K", "KB", "KiB" and so on, in any case; sets the unit's power of two. */
static bool parse_unit(const char *s, unsigned int *shift)
{
	while (*s == ' ')
		s++;
	*shift = 0;
	if (*s == '\0')
		return true;
	for (unsigned int i = 0; units[i]; i++) {
		if (toupper((unsigned char)*s) != units[i])
			continue;
		*shift = 10 * i;
		s++;
		return *s == '\0' ||
		       (i > 0 && (strcasecmp(s, "B") == 0 || strcasecmp(s, "iB") == 0));
	}
	return false;
}

static int digit_of(char c, unsigned int base)
{
	int d = isdigit((unsigned char)c)    ? c - '0'
		: isxdigit((unsigned char)c) ? tolower(c) - 'a' + 10
					     : 99;

	return d < (int)base ? d : -1;
}

int pando__size_parse(const char *text, uint64_t *bytes)
{
	uint64_t whole = 0, fraction = 0, scale = 1;
	unsigned int base = 10, shift;
	const char *s = text, *first;
	unsigned __int128 total;

	if (s[0] == '0' && (s[1] == 'x' || s[1] == 'X')) {
		base = 16;
		s += 2;
	}
	for (first = s; digit_of(*s, base) >= 0; s++)
		if (__builtin_mul_overflow(whole, base, &whole) ||
		    __builtin_add_overflow(whole, (uint64_t)digit_of(*s, base), &whole))
			return -ERANGE;
	if (s == first)
		return -EINVAL;
	if (*s == '.' && base == 10) {
		for (first = ++s; isdigit((unsigned char)*s); s++) {
			if (scale >= 1000000)
				continue;
			fraction = fraction * 10 + (uint64_t)(*s - '0');
			scale *= 10;
		}
		if (s == first)
			return -EINVAL;
	}
	if (!parse_unit(s, &shift) || (base == 16 && shift))
		return -EINVAL;
	total = ((unsigned __int128)whole << shift) +
		(((unsigned __int128)fraction << shift) / scale);
	if (total > UINT64_MAX)
		return -ERANGE;
	*bytes = (uint64_t)total;
	return 0;
}
