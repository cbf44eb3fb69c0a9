/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The buffer pool of the examples with threads as its backends, on one mapping, so that ThreadSanitizer sees both
 * ends: few frames, so that every page is evicted all the time; readers that look at the whole page; updates; coming
 * and going. If a frame is used again while somebody reads it, that is a race, and a torn page.
 *
 * Environment: BUFFERPOOL_OPS, of each thread (4,000).
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bufferpool.h"
#include "fake_region.h"

#define MIB (1ull << 20)
#define THREADS 4u
#define PAGES 300u
#define RECORDS 8u

static struct pando_region regions[THREADS];
static struct pool *pool;
static struct file file;
static unsigned long ops = 4000;

static void fail(const char *what)
{
	fprintf(stderr, "bufferpool-threads: %s: %s %s\n", what, file_error(),
		pando_strerror_last());
	exit(1);
}

/* What libshm has, and the fake region has not. */
uint64_t pando_region_size(const struct pando_region *r)
{
	(void)r;
	return pool->size;
}

static void change(struct page *fresh, void *arg)
{
	(void)arg;
	page_fill(fresh);
}

static void look(struct pool_client *c, uint64_t page, unsigned int hold)
{
	const void *content = pool_pin(c, page, hold);

	if (!content)
		fail("pin");
	if (page_broken(PAGE_OWN, content, page))
		fail("a torn page");
}

static void *backend(void *arg)
{
	struct pando_region *r = arg;
	uint64_t state = (uint64_t)(r - regions) * 77 + 1;

	for (unsigned long n = 0; n < ops;) {
		struct pool_client c;

		if (pool_visit(&c, pool, r, &file) < 0 || pool_enter(&c) < 0)
			fail("enter");
		for (int i = 0; i < 200; i++, n++) {
			state = state * 6364136223846793005ull + 1442695040888963407ull;
			if (state >> 60 < 5) {
				if (pool_update(&c, (state >> 33) % PAGES, change, NULL) < 0)
					fail("update");
				continue;
			}
			look(&c, (state >> 33) % PAGES, 0);
			look(&c, (state >> 40) % 8, 1); /* all want these */
			pool_unpin(&c, 1);
			pool_unpin(&c, 0);
		}
		pool_leave(&c);
	}
	return NULL;
}

/* The sum of all versions, as the file has them. */
static uint64_t versions(void)
{
	struct page *p = file_buffer(1);
	uint64_t sum = 0;

	for (uint64_t i = 0; i < PAGES; i++) {
		if (!p || file_read(&file, i, p) < 0 || file_page_broken(&file, i, p))
			fail("a torn page in the file");
		sum += p->version;
	}
	free(p);
	return sum;
}

static void run(void)
{
	const uint64_t frames = pool_frames_min(THREADS);
	const size_t size = pool_size(frames, RECORDS);
	pthread_t thread[THREADS];
	struct pool_client c;
	uint64_t sum;

	pool = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (pool == MAP_FAILED)
		fail("mmap");
	pool_format(pool, &file, frames, RECORDS, THREADS);
	for (unsigned int i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, backend, &regions[i]) != 0)
			exit(99);
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	if (pool_visit(&c, pool, &regions[0], &file) < 0 || pool_enter(&c) < 0 ||
	    pool_flush(&c, NULL, NULL) < 0)
		fail("flush");
	pool_leave(&c);
	if (pool_visit(&c, pool, &regions[0], &file) < 0 || pool_validate(&c) < 0)
		fail("the pool is not sound");
	pool_leave(&c);
	sum = versions();
	if (sum != pool_sum(pool, POOL_UPDATES)) {
		fprintf(stderr, "bufferpool-threads: versions %llu, updates %llu\n",
			(unsigned long long)sum, (unsigned long long)pool_sum(pool, POOL_UPDATES));
		fail("the versions do not add up");
	}
	printf("bufferpool-threads: %llu updates, %llu reads, %llu collected, %llu conflicts\n",
	       (unsigned long long)pool_sum(pool, POOL_UPDATES),
	       (unsigned long long)pool_sum(pool, POOL_READS),
	       (unsigned long long)pool_sum(pool, POOL_COLLECTED),
	       (unsigned long long)pool_sum(pool, POOL_CONFLICTS));
	munmap(pool, size);
}

int main(void)
{
	char path[] = "/tmp/pando-bufferpool-threads.XXXXXX";
	const char *text = getenv("BUFFERPOOL_OPS");
	struct fake_heap heap;
	const int fd = mkstemp(path);

	if (text && strtoul(text, NULL, 10) > 0)
		ops = strtoul(text, NULL, 10);
	if (fd < 0 || close(fd) < 0 || unlink(path) < 0 ||
	    file_create(path, PAGES, RECORDS, NULL, NULL) < 0 ||
	    file_open(&file, path, FILE_WRITE) < 0)
		fail("file");
	(void)unlink(path);
	fake_heap_init(&heap, 64 * MIB, 64 * MIB, true);
	for (unsigned int i = 0; i < THREADS; i++)
		fake_region_init(&regions[i], &heap, i);
	run();
	for (unsigned int i = 0; i < THREADS; i++)
		fake_region_deinit(&regions[i]);
	fake_heap_deinit(&heap);
	file_close(&file);
	return 0;
}
