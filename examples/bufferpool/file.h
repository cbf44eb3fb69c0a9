/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The file under the pool.
 *
 * A file of our own:
 *
 *	page 0			header: geometry, was it closed well, how many updates it has seen
 *	pages 1 .. slots	the double-write area
 *	then			the data pages, numbered from 0
 *
 * No write of 8 KiB is atomic: a process that is killed in a buffered write() may leave its first half
 * written (the kernel looks for a fatal signal between two pages of the cache), and so may a disk that
 * loses power. So a page is written twice: first, whole, to a slot of the double-write area that
 * belongs to the writer alone, then in its place. If the second write is torn, the slot has the page;
 * if the first is, the place has the old one. In general the writer's successor just writes again,
 * because the page is still in memory (client.c); the area is for the death of all of them at once:
 * file_mend() puts back from it what is torn, when the file is opened the next time.
 *
 * With `sync`, each of the two writes is flushed to the disk (fdatasync), and the area covers the loss
 * of power as well.
 *
 * Every buffer must lie at a multiple of 4096 bytes: O_DIRECT is used where the file system has it.
 *
 * A file that is in use has a lock on it (flock), which is shared by all descendants of the process that
 * took it, and goes with the last of them.
 *
 * Functions return 0 or a negative errno; file_error() then has the sentence.
 */
#ifndef BUFFERPOOL_FILE_H
#define BUFFERPOOL_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "page.h"

#define FILE_SLOTS_MAX 4096u

struct file {
	int fd;
	int fd_buffered; /* the same without O_DIRECT; fd itself if that is not to be had */
	enum page_format format;
	uint64_t pages; /* data pages */
	uint64_t first_page; /* of them, in the file, in pages */
	uint64_t first_block; /* postgresql: number of the first page within the relation */
	uint32_t slots; /* of the double-write area */
	bool direct; /* O_DIRECT */
	bool sync;
	char path[PATH_MAX];
};

/* What the first page says. */
struct file_header {
	uint64_t pages, slots;
	uint64_t closed; /* 1: written by a pool that has ended well, so the next is true */
	uint64_t updates; /* the sum of all pages' versions */
};

/* Called now and then during long work; may be NULL. True: stop, with -EINTR. */
typedef bool (*file_progress_fn)(void *arg, uint64_t done, uint64_t total);

/* Makes a file of our own, of `pages` data pages of version 0. It must not exist. */
int file_create(const char *path, uint64_t pages, uint32_t slots, file_progress_fn progress,
		void *arg);

#define FILE_WRITE 1u /* else read only */
#define FILE_BUFFERED 2u /* without O_DIRECT */
#define FILE_EXCLUSIVE 4u /* nobody else may have it open; -EBUSY */

/* -EINVAL: with FILE_WRITE, and it is not of our own format. */
int file_open(struct file *f, const char *path, unsigned int flags);
/* The descriptors. The lock goes when nobody has them any more. */
void file_close(struct file *f);

int file_read(const struct file *f, uint64_t page, void *buffer);
/* slot: the caller's alone. Nothing but the page of ours may be written. */
int file_write(const struct file *f, uint64_t page, uint32_t slot, const void *image);

int file_read_header(const struct file *f, struct file_header *h);
int file_write_header(const struct file *f, const struct file_header *h);

/* Puts torn pages back from the double-write area; *mended: how many. */
int file_mend(const struct file *f, uint64_t *mended);

/* What page_broken() says of it. */
const char *file_page_broken(const struct file *f, uint64_t page, const void *buffer);

/* A buffer for n pages; free() frees it. NULL: no memory. */
void *file_buffer(unsigned int n);

const char *file_error(void);
int file_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
