/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Checksums, and what a whole page looks like: see page.h.
 *
 * PostgreSQL's page header, as far as it is used here (bytes, little-endian):
 *
 *	0	pd_lsn, 8	16	pd_special, 2
 *	8	pd_checksum, 2	18	size of the page (8192) and layout version (4), 2
 *	10	pd_flags, 2
 *	12	pd_lower, 2
 *	14	pd_upper, 2
 *
 * A page of zeros is one that was added and never used: it is sound, and has no checksum. pd_checksum
 * 0 means that checksums were off when it was written.
 */
#include "page.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define COLUMNS 32u
#define ROWS (PAGE_SIZE / 4 / COLUMNS)
#define FNV_PRIME 16777619u

/* Where each column's hash begins: part of the format. */
static const uint32_t begins[COLUMNS] = {
	0x5b1f36e9, 0xb8525960, 0x02ab50aa, 0x1de66d2a, 0x79ff467a, 0x9bb9f8a3, 0x217e7cd2,
	0x83e13d2c, 0xf8d4474f, 0xe39eb970, 0x42c6ae16, 0x993216fa, 0x7b093b5d, 0x98daff3c,
	0xf718902a, 0x0b1c9cdb, 0xe58f764b, 0x187636bc, 0x5d7b3bb1, 0xe73de7de, 0x92bec979,
	0xcca6c0b2, 0x304a0979, 0x85aa43d4, 0x783125bb, 0x6ca8eaa2, 0xe407eac6, 0x4b5cfc3e,
	0x9fbf8c76, 0x15ca20be, 0xf2ca9fd3, 0x959bd756,
};

static inline void add_row(uint32_t sums[COLUMNS], const uint32_t row[COLUMNS])
{
	for (unsigned int i = 0; i < COLUMNS; i++) {
		const uint32_t mixed = sums[i] ^ row[i];

		sums[i] = mixed * FNV_PRIME ^ mixed >> 17;
	}
}

uint32_t page_checksum(const void *page, unsigned int index, uint32_t mask)
{
	static const uint32_t zeros[COLUMNS];
	const uint32_t *word = page;
	uint32_t sums[COLUMNS], row[COLUMNS], all = 0;

	memcpy(sums, begins, sizeof(sums));
	memcpy(row, word, sizeof(row));
	row[index] &= mask;
	add_row(sums, row);
	for (unsigned int i = 1; i < ROWS; i++)
		add_row(sums, word + (size_t)i * COLUMNS);
	/* Two rows of zeros, so that the last words are mixed as well as the first. */
	add_row(sums, zeros);
	add_row(sums, zeros);
	for (unsigned int i = 0; i < COLUMNS; i++)
		all ^= sums[i];
	return all;
}

const char *page_format_name(enum page_format format)
{
	switch (format) {
	case PAGE_OWN:
		return "pando";
	case PAGE_POSTGRES:
		return "postgresql";
	case PAGE_RAW:
		return "raw";
	}
	return "?";
}

void page_seal(struct page *page)
{
	page->checksum = page_checksum(page, 1, 0);
}

void page_fill(struct page *page)
{
	for (unsigned int i = 0; i < PAGE_WORDS - 3; i++)
		page->word[i] = page_word(page->number, page->version, i);
}

static __thread char why[160];

static const char *own_broken(const struct page *page, uint64_t number)
{
	const uint32_t sum = page_checksum(page, 1, 0);

	if (page->magic != PAGE_MAGIC) {
		snprintf(why, sizeof(why), "no page: it begins with 0x%08x", page->magic);
	} else if (page->checksum != sum) {
		snprintf(why, sizeof(why), "torn: checksum 0x%08x, content's 0x%08x",
			 page->checksum, sum);
	} else if (page->number != number) {
		snprintf(why, sizeof(why), "it says that it is page %" PRIu64, page->number);
	} else {
		for (unsigned int i = 0; i < PAGE_WORDS - 3; i++)
			if (page->word[i] != page_word(number, page->version, i)) {
				snprintf(why, sizeof(why),
					 "word %u is not that of version %" PRIu64, i,
					 page->version);
				return why;
			}
		return NULL;
	}
	return why;
}

struct postgres_header {
	uint32_t lsn[2];
	uint16_t checksum, flags, lower, upper, special, size_and_version;
};

static bool all_zeros(const void *page)
{
	const uint64_t *word = page;

	for (unsigned int i = 0; i < PAGE_WORDS; i++)
		if (word[i])
			return false;
	return true;
}

bool page_is_postgres(const void *page)
{
	struct postgres_header h;

	memcpy(&h, page, sizeof(h));
	return (h.size_and_version & 0xff00) == PAGE_SIZE && (h.size_and_version & 0xff) == 4 &&
	       h.lower >= 24 && h.lower <= h.upper && h.upper <= h.special &&
	       h.special <= PAGE_SIZE && h.flags <= 7;
}

static const char *postgres_broken(const void *page, uint64_t block)
{
	struct postgres_header h;
	uint16_t sum;

	memcpy(&h, page, sizeof(h));
	if (h.upper == 0 && all_zeros(page))
		return NULL;
	if (!page_is_postgres(page)) {
		snprintf(why, sizeof(why),
			 "no PostgreSQL page: lower %u, upper %u, special %u, size and version "
			 "0x%04x",
			 h.lower, h.upper, h.special, h.size_and_version);
		return why;
	}
	if (h.checksum == 0)
		return NULL;
	/* The low half of the third word is pd_checksum. 0 is kept for "none". */
	sum = (uint16_t)((page_checksum(page, 2, 0xffff0000u) ^ (uint32_t)block) % 65535 + 1);
	if (sum == h.checksum)
		return NULL;
	snprintf(why, sizeof(why), "torn: pd_checksum 0x%04x, content's 0x%04x", h.checksum, sum);
	return why;
}

const char *page_broken(enum page_format format, const void *page, uint64_t number)
{
	switch (format) {
	case PAGE_OWN:
		return own_broken(page, number);
	case PAGE_POSTGRES:
		return postgres_broken(page, number);
	case PAGE_RAW:
		return NULL;
	}
	return "unknown format";
}
