/* SPDX-License-Identifier: BSD-2-Clause */
/* The file under the pool: see file.h. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/inject.h"

#define BATCH 64u /* pages that are made or mended with one system call */
#define SEGMENT_PAGES 131072u /* PostgreSQL begins another file each 1 GiB */

static __thread char error[PATH_MAX + 200];

const char *file_error(void)
{
	return error;
}

int file_fail(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, sizeof(error), fmt, ap);
	va_end(ap);
	return -err;
}

void *file_buffer(unsigned int n)
{
	void *p = NULL;

	return posix_memalign(&p, 4096, (size_t)n * PAGE_SIZE) == 0 ? p : NULL;
}

static int transfer(int fd, bool out, void *buffer, size_t size, uint64_t offset)
{
	char *at = buffer;

	while (size > 0) {
		const ssize_t n = out ? pwrite(fd, at, size, (off_t)offset)
				      : pread(fd, at, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : out ? -ENOSPC : -ENODATA;
		at += n;
		size -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

static int put(const struct file *f, const void *image, size_t size, uint64_t offset)
{
	int rc = transfer(f->fd, true, (void *)(uintptr_t)image, size, offset);

	if (rc == 0 && f->sync && fdatasync(f->fd) < 0)
		rc = -errno;
	if (rc < 0)
		file_fail(-rc, "cannot write %s at byte %" PRIu64 ": %s", f->path, offset,
			  strerror(-rc));
	return rc;
}

int file_read(const struct file *f, uint64_t page, void *buffer)
{
	const uint64_t offset = (f->first_page + page) * PAGE_SIZE;
	const int rc = transfer(f->fd, false, buffer, PAGE_SIZE, offset);

	if (rc < 0)
		file_fail(-rc, "cannot read page %" PRIu64 " of %s: %s", page, f->path,
			  rc == -ENODATA ? "the file ends before it" : strerror(-rc));
	return rc;
}

int file_write(const struct file *f, uint64_t page, uint32_t slot, const void *image)
{
	const uint64_t offset = (f->first_page + page) * PAGE_SIZE;
	int rc = put(f, image, PAGE_SIZE, (uint64_t)(1 + slot) * PAGE_SIZE);

	if (rc < 0)
		return rc;
	PANDO_INJECT("pool.write.doubled");
	if (PANDO_INJECT_FAIL("pool.write.torn")) { /* a write that was not whole, for the tests */
		(void)put(f, image, PAGE_SIZE / 2, offset);
		kill(getpid(), SIGKILL);
	}
	return put(f, image, PAGE_SIZE, offset);
}

/* The header is a page, too: four words of it are used. */
static void make_header(struct page *p, const struct file_header *h)
{
	memset(p, 0, sizeof(*p));
	p->magic = PAGE_HEADER_MAGIC;
	memcpy(p->word, h, sizeof(*h));
	page_seal(p);
}

int file_write_header(const struct file *f, const struct file_header *h)
{
	struct page *p = file_buffer(1);
	int rc;

	if (!p)
		return file_fail(ENOMEM, "no memory");
	make_header(p, h);
	rc = put(f, p, PAGE_SIZE, 0);
	free(p);
	return rc;
}

static int parse_header(const struct page *p, const char *path, struct file_header *h)
{
	if (p->checksum != page_checksum(p, 1, 0))
		return file_fail(EUCLEAN, "%s: the first page is torn", path);
	memcpy(h, p->word, sizeof(*h));
	return 0;
}

int file_read_header(const struct file *f, struct file_header *h)
{
	struct page *p = file_buffer(1);
	int rc;

	if (!p)
		return file_fail(ENOMEM, "no memory");
	rc = transfer(f->fd, false, p, PAGE_SIZE, 0);
	if (rc < 0)
		file_fail(-rc, "cannot read the first page of %s: %s", f->path, strerror(-rc));
	else
		rc = parse_header(p, f->path, h);
	free(p);
	return rc;
}

/* O_DIRECT, if the file system has it and reads with it. */
static int open_direct(const char *path, int mode, void *buffer)
{
	const int fd = open(path, mode | O_DIRECT | O_CLOEXEC);

	if (fd >= 0 && pread(fd, buffer, PAGE_SIZE, 0) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Number of the first block of a file like base/5/16384.2 */
static uint64_t segment_begin(const char *path)
{
	const char *dot = strrchr(path, '.');
	char *end;
	unsigned long n;

	if (!dot || strchr(dot, '/') || dot[1] < '1' || dot[1] > '9')
		return 0;
	n = strtoul(dot + 1, &end, 10);
	return *end ? 0 : (uint64_t)n * SEGMENT_PAGES;
}

/* Finds out what kind of file it is, and where its pages are. */
static int recognise(struct file *f, uint64_t size, void *first, bool write)
{
	const struct page *p = first;
	struct file_header h;
	int rc;

	if (size < PAGE_SIZE)
		return file_fail(EINVAL, "%s has %" PRIu64 " bytes: less than one page", f->path,
				 size);
	rc = transfer(f->fd_buffered, false, first, PAGE_SIZE, 0);
	if (rc < 0)
		return file_fail(-rc, "cannot read %s: %s", f->path, strerror(-rc));
	f->pages = size / PAGE_SIZE;
	if (p->magic == PAGE_HEADER_MAGIC) {
		rc = parse_header(p, f->path, &h);
		if (rc < 0)
			return rc;
		if (h.slots < 1 || h.slots > FILE_SLOTS_MAX || h.pages == 0 ||
		    h.pages > (UINT64_MAX >> 14) || f->pages < 1 + h.slots + h.pages)
			return file_fail(EUCLEAN, "%s: its header does not fit its size", f->path);
		f->format = PAGE_OWN;
		f->pages = h.pages;
		f->slots = (uint32_t)h.slots;
		f->first_page = 1 + h.slots;
		return 0;
	}
	f->format = page_is_postgres(first) ? PAGE_POSTGRES : PAGE_RAW;
	if (f->format == PAGE_POSTGRES)
		f->first_block = segment_begin(f->path);
	if (write)
		return file_fail(EINVAL,
				 "%s was not made by `bufferpool create`: it can be read only "
				 "(--write-percent 0)",
				 f->path);
	return 0;
}

int file_open(struct file *f, const char *path, unsigned int flags)
{
	const int mode = flags & FILE_WRITE ? O_RDWR : O_RDONLY;
	void *first = file_buffer(1);
	struct stat st;
	int rc = 0;

	*f = (struct file){.fd = -1, .fd_buffered = -1};
	if (!first)
		return file_fail(ENOMEM, "no memory");
	snprintf(f->path, sizeof(f->path), "%s", path);
	f->fd_buffered = open(path, mode | O_CLOEXEC);
	if (f->fd_buffered < 0 || fstat(f->fd_buffered, &st) < 0)
		rc = file_fail(errno, "cannot open %s: %s", path, strerror(errno));
	else if (!S_ISREG(st.st_mode))
		rc = file_fail(EINVAL, "%s is no regular file", path);
	else if (flags & FILE_EXCLUSIVE && flock(f->fd_buffered, LOCK_EX | LOCK_NB) < 0)
		rc = file_fail(EBUSY, "%s is in use by another bufferpool", path);
	if (rc == 0)
		rc = recognise(f, (uint64_t)st.st_size, first, flags & FILE_WRITE);
	if (rc == 0) {
		if (!(flags & FILE_BUFFERED))
			f->fd = open_direct(path, mode, first);
		f->direct = f->fd >= 0;
		if (f->fd < 0)
			f->fd = f->fd_buffered;
	} else {
		file_close(f);
	}
	free(first);
	return rc;
}

void file_close(struct file *f)
{
	if (f->fd >= 0 && f->fd != f->fd_buffered)
		close(f->fd);
	if (f->fd_buffered >= 0)
		close(f->fd_buffered);
	f->fd = f->fd_buffered = -1;
}

static int make_pages(const struct file *f, struct page *batch, file_progress_fn progress,
		      void *arg)
{
	for (uint64_t done = 0; done < f->pages;) {
		const uint64_t n = f->pages - done < BATCH ? f->pages - done : BATCH;
		int rc;

		for (uint64_t i = 0; i < n; i++) {
			batch[i].magic = PAGE_MAGIC;
			batch[i].number = done + i;
			batch[i].version = 0;
			page_fill(&batch[i]);
			page_seal(&batch[i]);
		}
		rc = put(f, batch, n * PAGE_SIZE, (f->first_page + done) * PAGE_SIZE);
		if (rc < 0)
			return rc;
		done += n;
		if (progress && progress(arg, done, f->pages))
			return file_fail(EINTR, "interrupted; %s is not made", f->path);
	}
	return 0;
}

int file_create(const char *path, uint64_t pages, uint32_t slots, file_progress_fn progress,
		void *arg)
{
	struct file f = {.fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
	struct file_header h = {.pages = pages, .slots = slots, .closed = 1};
	struct page *batch = NULL;
	int rc;

	if (f.fd < 0)
		return file_fail(errno, "cannot make %s: %s", path, strerror(errno));
	f.fd_buffered = f.fd;
	f.pages = pages;
	f.first_page = 1 + (uint64_t)slots;
	snprintf(f.path, sizeof(f.path), "%s", path);
	rc = -posix_fallocate(f.fd, 0, (off_t)((f.first_page + pages) * PAGE_SIZE));
	if (rc < 0)
		file_fail(-rc, "no room for %s: %s", path, strerror(-rc));
	else if (!(batch = file_buffer(BATCH)))
		rc = file_fail(ENOMEM, "no memory");
	else
		rc = make_pages(&f, batch, progress, arg);
	/* The header last: before it is there, the file is none of ours. */
	if (rc == 0)
		rc = file_write_header(&f, &h);
	free(batch);
	file_close(&f);
	if (rc < 0)
		(void)unlink(path);
	return rc;
}

const char *file_page_broken(const struct file *f, uint64_t page, const void *buffer)
{
	return page_broken(f->format, buffer,
			   f->format == PAGE_POSTGRES ? f->first_block + page : page);
}

/*
 * One slot's page against its place. Another slot may have a newer one of the same page: an older image
 * never replaces a whole page, nor a newer image that was put there before.
 */
static int mend_from(const struct file *f, const struct page *image, struct page *place,
		     uint64_t *mended)
{
	int rc;

	if (image->magic != PAGE_MAGIC || image->number >= f->pages ||
	    page_broken(PAGE_OWN, image, image->number))
		return 0; /* never used, or torn itself: then its place was not begun */
	rc = file_read(f, image->number, place);
	if (rc < 0)
		return rc;
	if (!page_broken(PAGE_OWN, place, image->number)) {
		if (place->version >= image->version)
			return 0;
	} else {
		++*mended;
	}
	return put(f, image, PAGE_SIZE, (f->first_page + image->number) * PAGE_SIZE);
}

int file_mend(const struct file *f, uint64_t *mended)
{
	struct page *two = file_buffer(2);
	int rc = 0;

	*mended = 0;
	if (!two)
		return file_fail(ENOMEM, "no memory");
	for (uint32_t slot = 0; rc == 0 && slot < f->slots; slot++) {
		rc = transfer(f->fd, false, &two[0], PAGE_SIZE, (uint64_t)(1 + slot) * PAGE_SIZE);
		if (rc < 0)
			file_fail(-rc, "cannot read the double-write area of %s: %s", f->path,
				  strerror(-rc));
		else
			rc = mend_from(f, &two[0], &two[1], mended);
	}
	free(two);
	return rc;
}
