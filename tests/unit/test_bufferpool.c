/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * examples/bufferpool without processes: pages and their checksums, files and the double-write area, and
 * the page table on memory of this process.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bufferpool.h"

#define POSTGRES_SUM_OF_BLOCK_5 0xba63

static char dir[] = "/tmp/pando-unit-bufferpool.XXXXXX";
static char path[80];

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/data", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir);
}

/* --- pages --- */

static struct page *make(uint64_t number, uint64_t version)
{
	struct page *p = file_buffer(1);

	assert_non_null(p);
	memset(p, 0, sizeof(*p));
	p->magic = PAGE_MAGIC;
	p->number = number;
	p->version = version;
	page_fill(p);
	page_seal(p);
	return p;
}

static void every_byte_counts(void **state)
{
	struct page *p = make(17, 4);
	char *byte = (char *)p;

	(void)state;
	assert_null(page_broken(PAGE_OWN, p, 17));
	assert_non_null(page_broken(PAGE_OWN, p, 18));
	for (unsigned int i = 0; i < PAGE_SIZE; i++) {
		byte[i] ^= 0x40;
		assert_non_null(page_broken(PAGE_OWN, p, 17));
		byte[i] ^= 0x40;
	}
	assert_null(page_broken(PAGE_OWN, p, 17));
	assert_true(page_looks_right(p, 17, 12345));
	assert_false(page_looks_right(p, 16, 12345));
	free(p);
}

/* Half of one version and half of another, at each multiple of a sector. */
static void a_mixture_shows(void **state)
{
	struct page *old = make(3, 8), *fresh = make(3, 9), *mixed = make(3, 9);

	(void)state;
	for (size_t at = 512; at < PAGE_SIZE; at += 512) {
		memcpy(mixed, fresh, at);
		memcpy((char *)mixed + at, (char *)old + at, PAGE_SIZE - at);
		assert_non_null(page_broken(PAGE_OWN, mixed, 3));
		memcpy(mixed, old, at);
		memcpy((char *)mixed + at, (char *)fresh + at, PAGE_SIZE - at);
		assert_non_null(page_broken(PAGE_OWN, mixed, 3));
	}
	free(old);
	free(fresh);
	free(mixed);
}

/* A page that PostgreSQL 15's page_checksum() (pageinspect) was asked about. */
static void postgres_pages(void **state)
{
	uint8_t *p = file_buffer(1);

	(void)state;
	assert_non_null(p);
	memset(p, 0, PAGE_SIZE);
	assert_null(page_broken(PAGE_POSTGRES, p, 5)); /* never used */
	for (unsigned int i = 0; i < PAGE_SIZE; i++)
		p[i] = (uint8_t)(i * 7 + i / 256);
	memcpy(p + 8, (uint8_t[]){0, 0, 0, 0, 24, 0, 0, 16, 0, 32, 4, 32}, 12);
	assert_true(page_is_postgres(p));
	assert_null(page_broken(PAGE_POSTGRES, p, 5)); /* no checksum */
	p[8] = POSTGRES_SUM_OF_BLOCK_5 & 0xff;
	p[9] = POSTGRES_SUM_OF_BLOCK_5 >> 8;
	assert_null(page_broken(PAGE_POSTGRES, p, 5));
	assert_non_null(page_broken(PAGE_POSTGRES, p, 6));
	p[8000] ^= 1;
	assert_non_null(strstr(page_broken(PAGE_POSTGRES, p, 5), "torn"));
	p[14] = 1; /* upper below lower */
	p[15] = 0;
	assert_non_null(strstr(page_broken(PAGE_POSTGRES, p, 5), "no PostgreSQL page"));
	assert_false(page_is_postgres(p));
	free(p);
}

/* --- files --- */

static void files_are_made_and_read(void **state)
{
	struct page *p = file_buffer(1), *fresh = make(70, 1);
	struct file_header h;
	struct file f, other;

	(void)state;
	assert_int_equal(file_create(path, 100, 4, NULL, NULL), 0);
	assert_int_equal(file_create(path, 100, 4, NULL, NULL), -EEXIST);
	assert_int_equal(file_open(&f, path, FILE_WRITE | FILE_EXCLUSIVE), 0);
	assert_int_equal(file_open(&other, path, FILE_EXCLUSIVE), -EBUSY);
	assert_non_null(strstr(file_error(), "in use"));
	assert_int_equal(f.format, PAGE_OWN);
	assert_int_equal(f.pages, 100);
	for (uint64_t i = 0; i < 100; i++) {
		assert_int_equal(file_read(&f, i, p), 0);
		assert_null(file_page_broken(&f, i, p));
	}
	assert_int_equal(file_read(&f, 100, p), -ENODATA);
	assert_int_equal(file_write(&f, 70, 3, fresh), 0);
	assert_int_equal(file_read(&f, 70, p), 0);
	assert_memory_equal(p, fresh, PAGE_SIZE);
	assert_int_equal(file_read_header(&f, &h), 0);
	assert_int_equal(h.closed, 1);
	assert_int_equal(h.updates, 0);
	file_close(&f);
	free(p);
	free(fresh);
	unlink(path);
}

static void put_raw(const struct file *f, uint64_t file_page, const void *image, size_t size)
{
	assert_int_equal(pwrite(f->fd_buffered, image, size, (off_t)(file_page * PAGE_SIZE)),
			 (ssize_t)size);
}

static void the_double_write_area_mends(void **state)
{
	struct page *v5 = make(20, 5), *v6 = make(20, 6), *v9 = make(20, 9), *p = file_buffer(1);
	struct file f;
	uint64_t mended;

	(void)state;
	assert_int_equal(file_create(path, 50, 4, NULL, NULL), 0);
	assert_int_equal(file_open(&f, path, FILE_WRITE | FILE_BUFFERED), 0);
	/* Torn in place; the older image comes first, and may not win. */
	assert_int_equal(file_write(&f, 20, 0, v5), 0);
	assert_int_equal(file_write(&f, 20, 2, v6), 0);
	put_raw(&f, f.first_page + 20, v9, 4096);
	assert_int_equal(file_mend(&f, &mended), 0);
	assert_int_equal(mended, 1);
	assert_int_equal(file_read(&f, 20, p), 0);
	assert_memory_equal(p, v6, PAGE_SIZE);
	/* Torn in the slot: the place is as it was. */
	put_raw(&f, 1 + 2, v9, 4096);
	assert_int_equal(file_mend(&f, &mended), 0);
	assert_int_equal(mended, 0);
	assert_int_equal(file_read(&f, 20, p), 0);
	assert_memory_equal(p, v6, PAGE_SIZE);
	/* The place is newer than any slot. */
	put_raw(&f, f.first_page + 20, v9, PAGE_SIZE);
	assert_int_equal(file_mend(&f, &mended), 0);
	assert_int_equal(mended, 0);
	assert_int_equal(file_read(&f, 20, p), 0);
	assert_memory_equal(p, v9, PAGE_SIZE);
	file_close(&f);
	unlink(path);
	free(v5);
	free(v6);
	free(v9);
	free(p);
}

static void other_files(void **state)
{
	uint8_t *bytes = calloc(2, PAGE_SIZE);
	struct file f;
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	(void)state;
	assert_true(fd >= 0 && bytes);
	assert_int_equal(file_open(&f, path, 0), -EINVAL); /* empty */
	bytes[0] = 1;
	assert_int_equal(write(fd, bytes, 2 * PAGE_SIZE), 2 * PAGE_SIZE);
	assert_int_equal(file_open(&f, path, FILE_WRITE), -EINVAL);
	assert_non_null(strstr(file_error(), "read only"));
	assert_int_equal(file_open(&f, path, 0), 0);
	assert_int_equal(f.format, PAGE_RAW);
	assert_int_equal(f.pages, 2);
	file_close(&f);
	assert_int_equal(file_open(&f, dir, 0), -EINVAL);
	assert_int_equal(file_open(&f, "/nowhere/at/all", 0), -ENOENT);
	close(fd);
	unlink(path);
	free(bytes);
}

/* --- the page table --- */

#define FRAMES 64

static struct pool *table(void)
{
	struct pool *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	p->frames = FRAMES;
	p->bucket_shift = 62; /* four buckets: long chains */
	p->frame = calloc(FRAMES, sizeof(*p->frame));
	p->bucket = calloc(4, sizeof(*p->bucket));
	assert_true(p->frame && p->bucket);
	return p;
}

static void free_table(struct pool *p)
{
	free(p->frame);
	free(p->bucket);
	free(p);
}

static unsigned int length(const struct pool *p)
{
	unsigned int n = 0;

	for (int i = 0; i < 4; i++)
		for (const struct pool_frame *f = pool_at(p->bucket[i]); f; f = pool_at(f->next))
			n++;
	return n;
}

static void pages_come_and_go(void **state)
{
	struct pool *p = table();

	(void)state;
	for (uint64_t i = 0; i < 40; i++) {
		assert_null(pool_find(p, i));
		p->frame[i].page = i;
		table_insert(p, &p->frame[i]);
		assert_ptr_equal(pool_find(p, i), &p->frame[i]);
	}
	for (uint64_t i = 0; i < 40; i += 3) {
		assert_true(table_remove(&p->frame[i]));
		assert_false(table_remove(&p->frame[i]));
		assert_null(pool_find(p, i));
		assert_false(table_has(p, &p->frame[i]));
	}
	assert_int_equal(length(p), 40);
	for (uint64_t i = 0; i < 40; i++)
		table_unlink(p, i);
	assert_int_equal(length(p), 26);
	for (uint64_t i = 0; i < 40; i++)
		assert_ptr_equal(pool_find(p, i), i % 3 ? &p->frame[i] : NULL);
	free_table(p);
}

static void one_version_replaces_another(void **state)
{
	struct pool *p = table();
	struct pool_frame *f = p->frame;

	(void)state;
	for (int i = 0; i < 3; i++) {
		f[i].page = (uint64_t)i;
		table_insert(p, &f[i]);
	}
	f[10].page = f[11].page = f[12].page = 1;
	assert_true(table_replace(&f[1], &f[10]));
	assert_ptr_equal(pool_find(p, 1), &f[10]);
	/* Who comes too late, with the old one in hand. */
	assert_false(table_replace(&f[1], &f[11]));
	assert_false(table_remove(&f[1]));
	assert_true(table_replace(&f[10], &f[12]));
	assert_ptr_equal(pool_find(p, 1), &f[12]);
	/* A reader that stands on the oldest comes to the newest. */
	assert_ptr_equal(pool_at(f[1].next), &f[10]);
	assert_ptr_equal(pool_at(f[10].next), &f[12]);
	table_unlink(p, 1);
	assert_int_equal(length(p), 3);
	assert_true(table_has(p, &f[12]) && !table_has(p, &f[1]) && !table_has(p, &f[10]));
	for (uint64_t i = 0; i < 3; i++)
		assert_non_null(pool_find(p, i));
	free_table(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_byte_counts),
		cmocka_unit_test(a_mixture_shows),
		cmocka_unit_test(postgres_pages),
		cmocka_unit_test(files_are_made_and_read),
		cmocka_unit_test(the_double_write_area_mends),
		cmocka_unit_test(other_files),
		cmocka_unit_test(pages_come_and_go),
		cmocka_unit_test(one_version_replaces_another),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
