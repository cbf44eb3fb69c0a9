/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Pages of 8 KiB: what is in them, and how it is known that one is whole.
 *
 * Three kinds of files are understood:
 *
 *	pando		made by `bufferpool create`. Each page names itself, has a version and a checksum, and
 *			every word of it follows from number and version: a mixture of two versions shows
 *			wherever one looks.
 *	postgresql	a file of a PostgreSQL table or index (of a server that is stopped): the header is looked
 *			at, and pd_checksum where there is one. Read only.
 *	raw		any other file: nothing is known of its pages, nothing is verified. Read only.
 *
 * Both checksums are the one that PostgreSQL's documentation of the page format describes: 32 FNV-1a
 * hashes side by side (so that a processor computes them together), one for each column of the page
 * seen as rows of 32 words, folded into one. PostgreSQL takes 16 bits of it, mixed with the block's
 * number; ours are all 32.
 */
#ifndef BUFFERPOOL_PAGE_H
#define BUFFERPOOL_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SIZE 8192u
#define PAGE_WORDS (PAGE_SIZE / 8)

enum page_format { PAGE_OWN = 1, PAGE_POSTGRES = 2, PAGE_RAW = 3 };

const char *page_format_name(enum page_format format);

/* A page of our own format. Little-endian, as the machine. */
struct page {
	uint32_t magic; /* PAGE_MAGIC, or PAGE_HEADER_MAGIC of the file's first page */
	uint32_t checksum; /* of the page with this word as 0 */
	uint64_t number; /* of the page among the data pages */
	uint64_t version; /* grows by one with each update: what a database calls the LSN */
	uint64_t word[PAGE_WORDS - 3]; /* word[i] = page_word(number, version, i) */
};
_Static_assert(sizeof(struct page) == PAGE_SIZE, "a page is a page");

#define PAGE_MAGIC 0x6f646e70u /* "pndo" */
#define PAGE_HEADER_MAGIC 0x68646e70u /* "pndh" */

static inline uint64_t page_word(uint64_t number, uint64_t version, unsigned int i)
{
	return (number * 0x9e3779b97f4a7c15ull ^ version * 0xc2b2ae3d27d4eb4full) +
	       i * 0x165667b19e3779f9ull;
}

/* The 32-bit checksum of a page whose 32-bit word `index` is taken as `word & mask`. */
uint32_t page_checksum(const void *page, unsigned int index, uint32_t mask);

/* Sets the checksum of a page of ours. */
void page_seal(struct page *page);

/* Makes page->word[] follow from number and version, without the checksum. */
void page_fill(struct page *page);

/*
 * Is the page whole? `number`: the one it must name (PAGE_OWN), or the block's number within its
 * relation (PAGE_POSTGRES). If not, *why becomes a sentence in static storage of this thread. NULL:
 * it is.
 */
const char *page_broken(enum page_format format, const void *page, uint64_t number);

/* A quick look at a page of ours: header, and one word that `dice` picks. */
static inline bool page_looks_right(const struct page *p, uint64_t number, uint64_t dice)
{
	const unsigned int i = (unsigned int)(dice % (PAGE_WORDS - 3));

	return p->magic == PAGE_MAGIC && p->number == number &&
	       p->word[i] == page_word(number, p->version, i);
}

/* Does the first page of a file look like PostgreSQL's? */
bool page_is_postgres(const void *page);

#endif
