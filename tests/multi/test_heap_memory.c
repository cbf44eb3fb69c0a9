/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Regions for heaps: memory comes with use and goes within seconds after it, whoever had it and
 * however idle its owner is; the size is a limit; quotas; other kinds of pages.
 */
#include "harness.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <pando/heap.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define SECONDS 5 /* in which memory comes back; 1 to 2 are usual */
#define MOST 200000

static void *objects[MOST];
static unsigned int count;

/* The broker has the heap's file, which is nearly all, twice: once for readers. */
static uint64_t file_kib(struct harness *h)
{
	return harness_file_kib(h->broker) / 2;
}

/* Allocates objects of `size` bytes, and writes into each page of them, until there are `bytes`. */
static void fill(struct pando_region *r, size_t size, uint64_t bytes)
{
	for (uint64_t done = 0; done < bytes; done += size) {
		unsigned char *p = pando_alloc(r, size);

		if (!p)
			harness_fail(__FILE__, __LINE__, "after %llu of %llu bytes: %s",
				     (unsigned long long)done, (unsigned long long)bytes,
				     pando_strerror_last());
		CHECK(count < MOST);
		for (size_t at = 0; at < size; at += 4096)
			p[at] = 1;
		objects[count++] = p;
	}
}

static void empty(struct pando_region *r)
{
	while (count)
		pando_free(r, objects[--count]);
}

/* Waits until the broker's files have at most so many KiB. Milliseconds that it took. */
static unsigned int await_kib(struct harness *h, uint64_t kib)
{
	const uint64_t begin = harness_now_ns();

	while (file_kib(h) > kib) {
		if (harness_now_ns() - begin > SECONDS * 1000000000ull)
			harness_fail(__FILE__, __LINE__, "%llu KiB are left, not %llu",
				     (unsigned long long)file_kib(h), (unsigned long long)kib);
		harness_sleep_ms(20);
	}
	return (unsigned int)((harness_now_ns() - begin) / 1000000);
}

static void comes_with_use(struct harness *h)
{
	const uint64_t before = file_kib(h);
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "lazy", 8 * GIB, PANDO_HEAP | PANDO_TRANSIENT);
	struct pando_region_info info;
	void *o;

	CHECK_INT(pando_region_size(r), 8 * GIB);
	CHECK_OK(pando_region_lookup(p, "lazy", &info));
	CHECK(info.flags & PANDO_HEAP);
	CHECK(file_kib(h) - before < 256);
	o = pando_alloc(r, 100);
	CHECK(o);
	/* Span table: 1 MiB for 8 GiB. */
	CHECK(file_kib(h) - before < 1024 + 512);
	pando_free(r, o);
	CHECK_ERR(pando_region_open(p, "other", PANDO_HEAP, NULL, &r), EINVAL, "need PANDO_CREATE");
	pando_disconnect(p);
}

/* A peak, then nothing: this process does not call the library again. */
static void goes_after_a_peak(struct harness *h)
{
	static const size_t sizes[] = {64, 700, 5000, 100000, 3 << 20};
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "peak", GIB, PANDO_HEAP | PANDO_TRANSIENT);
	uint64_t before, peak;
	void *keep = pando_alloc(r, 100), *large = pando_alloc(r, 5000);

	CHECK(keep && large);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		unsigned int ms;

		before = file_kib(h);
		fill(r, sizes[i], sizes[i] < 1000 ? 8 * MIB : 200 * MIB);
		peak = file_kib(h);
		empty(r);
		/* Some empty slabs, jemalloc's cache, pages of spans in use: less than 4 MiB. */
		ms = await_kib(h, before + 4096);
		printf("  %zu bytes each: %llu MiB at the peak, returned after %u ms\n", sizes[i],
		       (unsigned long long)peak / 1024, ms);
	}
	CHECK_OK(pando_heap_trim(r));
	pando_free(r, keep);
	pando_free(r, large);
	CHECK_OK(pando_heap_trim(r));
	pando_disconnect(p);
}

static void goes_with_its_owner(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "dead", GIB, PANDO_HEAP | PANDO_TRANSIENT);
	uint64_t before;
	int up[2];
	pid_t pid;
	char c;

	pando_free(r, pando_alloc(r, 1));
	before = file_kib(h);
	CHECK(pipe(up) == 0);
	pid = fork();
	if (pid == 0) {
		fill(r, 20000, 200 * MIB);
		CHECK(write(up[1], "x", 1) == 1);
		pause();
	}
	CHECK(read(up[0], &c, 1) == 1);
	close(up[0]);
	close(up[1]);
	CHECK(file_kib(h) > before + 200 * 1024);
	kill(pid, SIGKILL);
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
	printf("  returned after %u ms\n", await_kib(h, before + 512));
	pando_disconnect(p);
}

static void the_size_is_a_limit(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r =
		harness_region(p, "limit", 100 * MIB, PANDO_HEAP | PANDO_TRANSIENT);
	unsigned int first;
	void *o = NULL;

	while (count < MOST && (o = pando_alloc(r, 50000)))
		objects[count++] = o;
	CHECK(!o && errno == ENOMEM && strstr(pando_strerror_last(), "full"));
	CHECK_INT(pando_alloc(r, 500 * MIB) != NULL, 0);
	first = count;
	CHECK_OK(pando_region_resize(r, 132 * MIB));
	while (count < MOST && (o = pando_alloc(r, 50000)))
		objects[count++] = o;
	CHECK(count - first > (32 * MIB - 32 * MIB / 14) / 53248 - 10); /* its tables count */
	CHECK_ERR(pando_region_resize(r, 100 * MIB), EBUSY, "cannot shrink");
	CHECK_INT(pando_region_size(r), 132 * MIB);
	for (unsigned int i = 0; i < 3; i++) {
		o = pando_alloc(r, 100000);
		CHECK(!o);
	}
	empty(r);
	CHECK_OK(pando_heap_trim(r));
	CHECK_OK(pando_region_resize(r, 100 * MIB));
	while (count < MOST && (o = pando_alloc(r, 50000)))
		objects[count++] = o;
	CHECK_INT(count, first);
	empty(r);
	pando_disconnect(p);
}

/* From some hundred KiB on: objects have nearly all of it, tables at most 7 percent. */
static void small_ones(struct harness *h)
{
	static const uint64_t sizes[] = {MIB, 4 * MIB, 16 * MIB};
	struct pando *p = harness_connect(h);

	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const uint64_t size = sizes[i], before = file_kib(h);
		struct pando_region *r =
			harness_region(p, "small", size, PANDO_HEAP | PANDO_TRANSIENT);
		struct pando_heap_stat st;
		unsigned int first;
		void *o;

		while (count < MOST && (o = pando_alloc(r, 1000))) {
			memset(o, (int)count, 1000);
			objects[count++] = o;
		}
		CHECK(errno == ENOMEM && strstr(pando_strerror_last(), "full"));
		first = count;
		CHECK(file_kib(h) - before <= size / 1024 + 16); /* parts of pages of tables */
		CHECK_OK(pando_heap_stat(r, &st));
		CHECK_INT(st.objects, count);
		CHECK(st.size <= size && st.size > size - 300 * 1024);
		printf("  %llu bytes, of which tables have %.2f percent\n",
		       (unsigned long long)st.size, 100.0 * (double)st.metadata / (double)st.size);
		CHECK(st.metadata * 100 <= st.size * 7);
		CHECK((uint64_t)count * 1024 > st.size / 100 * 90 - 32768);
		CHECK_OK(pando_heap_check(r));
		CHECK_OK(pando_region_resize(r, 2 * size));
		while (count < MOST && (o = pando_alloc(r, 1000)))
			objects[count++] = o;
		CHECK(count > first + size / 1024 / 100 * 85);
		CHECK_ERR(pando_region_resize(r, size), EBUSY, "cannot shrink");
		while (count > first)
			pando_free(r, objects[--count]);
		CHECK_OK(pando_heap_trim(r));
		CHECK_OK(pando_region_resize(r, size));
		CHECK_OK(pando_heap_check(r));
		while (count) {
			const unsigned char *c = objects[--count];

			CHECK(c[0] == (count & 0xff) && c[999] == (count & 0xff));
			pando_free(r, objects[count]);
		}
		CHECK_OK(pando_heap_trim(r));
		CHECK_OK(pando_heap_stat(r, &st));
		CHECK(st.objects == 0 && st.spans_free == st.spans);
		CHECK(file_kib(h) - before <= 64);
		CHECK_OK(pando_region_close(r));
		(void)await_kib(h, before); /* its name is free at once, its memory in a moment */
	}
	pando_disconnect(p);
}

/* The tables lie at the end of the maximum: they stay when the size leaves it. */
static void shrinks_from_the_maximum(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "whole", GIB, PANDO_HEAP | PANDO_TRANSIENT);

	fill(r, 5000, 20 * MIB);
	CHECK_OK(pando_region_resize(r, 64 * MIB));
	CHECK_OK(pando_heap_check(r));
	fill(r, 300, MIB);
	CHECK_OK(pando_region_resize(r, GIB));
	CHECK_OK(pando_heap_check(r));
	fill(r, 100000, 100 * MIB);
	empty(r);
	CHECK_OK(pando_heap_trim(r));
	CHECK_OK(pando_region_resize(r, MIB));
	fill(r, 300, MIB / 2);
	CHECK_OK(pando_heap_check(r));
	empty(r);
	pando_disconnect(p);
}

static void quotas(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "quota", GIB, PANDO_HEAP | PANDO_TRANSIENT);
	pid_t pid;
	void *o;

	while (count < MOST && (o = pando_alloc(r, 100000)))
		objects[count++] = o;
	CHECK(errno == EDQUOT && strstr(pando_strerror_last(), "this client may own"));
	CHECK(count >= 50 && count <= 84); /* 8 MiB */
	do
		o = pando_alloc(r, 30);
	while (o);
	CHECK_INT(errno, EDQUOT);
	pid = fork();
	if (pid == 0) {
		unsigned int n = 0;

		while (n < 100 && pando_alloc(r, 100000))
			n++;
		CHECK_INT(errno, EDQUOT);
		CHECK(strstr(pando_strerror_last(), "user 0"));
		CHECK(n >= 25 && n <= 42); /* 4 MiB */
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	empty(r);
	pando_disconnect(p);
}

static void a_new_broker_goes_on(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "again", GIB, PANDO_HEAP | PANDO_TRANSIENT);
	struct pando_region_info info;
	uint64_t before;

	pando_free(r, pando_alloc(r, 1));
	before = file_kib(h);
	fill(r, 100000, 100 * MIB);
	kill(h->broker, SIGKILL);
	fill(r, 100000, 100 * MIB);
	empty(r);
	CHECK_OK(pando_region_lookup(p, "again", &info)); /* waits for the new one */
	CHECK(info.flags & PANDO_HEAP);
	/* The supervisor has the files as well. */
	for (unsigned int ms = 0; harness_file_kib(h->daemon) / 2 > before + 1024; ms += 20) {
		CHECK(ms < SECONDS * 1000);
		harness_sleep_ms(20);
	}
	pando_disconnect(p);
}

/* ---- other pages ------------------------------------------------------------------------------ */

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define SHMEM "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static bool put(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");
	bool ok = f && fputs(text, f) >= 0;

	return f && fclose(f) == 0 && ok;
}

static void get(const char *path, char *text, size_t size)
{
	FILE *f = fopen(path, "re");

	if (!f || !fgets(text, (int)size, f))
		text[0] = '\0';
	if (f)
		fclose(f);
}

static void churn(struct pando_region *r)
{
	fill(r, 500, MIB);
	fill(r, 9000, 8 * MIB);
	fill(r, 300000, 16 * MIB);
	for (unsigned int i = 0; i < count; i++)
		CHECK(*(unsigned char *)objects[i] == 1);
	CHECK_OK(pando_heap_check(r));
	empty(r);
	CHECK_OK(pando_heap_check(r));
}

/* Runs the rest in a child, so that the system's setting is put back however it ends. */
static void with(struct harness *h, void (*run)(struct harness *h), const char *path,
		 const char *value, const char *old)
{
	pid_t pid;
	int rc;

	if (!put(path, value))
		harness_skip("no right to change what kinds of pages there are");
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		run(h);
		_exit(0);
	}
	rc = harness_join(pid);
	for (int i = 0; i < 100 && harness_file_kib(h->broker) > 1024; i++)
		harness_sleep_ms(10); /* the pages are back */
	put(path, old);
	if (rc == HARNESS_SKIPPED)
		harness_skip("the machine has no 128 MiB of huge pages");
	CHECK_INT(rc, 0);
}

static void huge(struct harness *h)
{
	struct pando_region_options o = {.size = 128 * MIB, .backend = PANDO_BACKEND_HUGETLB};
	struct pando *p = harness_connect(h);
	struct pando_region *r;
	int rc = pando_region_open(p, "huge", PANDO_CREATE | PANDO_TRANSIENT | PANDO_HEAP, &o, &r);

	if (rc == -ENOMEM)
		_exit(HARNESS_SKIPPED);
	CHECK_INT(rc, 0);
	CHECK(file_kib(h) >= 128 * 1024);
	churn(r);
	CHECK_OK(pando_heap_trim(r));
	churn(r);
	pando_disconnect(p);
}

/* All is committed at once there; the heap works all the same. */
static void on_hugetlb(struct harness *h)
{
	char before[32], more[32];

	get(POOL, before, sizeof(before));
	snprintf(more, sizeof(more), "%ld", atol(before) + 64);
	with(h, huge, POOL, more, before);
}

static void large_pages(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "thp", 512 * MIB, PANDO_HEAP | PANDO_TRANSIENT);
	uint64_t before;

	pando_free(r, pando_alloc(r, 1));
	before = file_kib(h);
	churn(r);
	CHECK_OK(pando_heap_trim(r));
	churn(r);
	CHECK_OK(pando_heap_trim(r));
	(void)await_kib(h, before + 24 * 1024);
	pando_disconnect(p);
}

/* Pages of 2 MiB come with the first 4 KiB of them; they come and go all the same. */
static void on_large_shmem_pages(struct harness *h)
{
	char line[64], *open, *close;

	get(SHMEM, line, sizeof(line));
	open = strchr(line, '[');
	close = open ? strchr(open, ']') : NULL;
	if (!close)
		harness_skip("this kernel has no large pages for shared memory");
	*close = '\0';
	with(h, large_pages, SHMEM, "advise", open + 1);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{"comes_with_use", comes_with_use},
		{"goes_after_a_peak", goes_after_a_peak},
		{"goes_with_its_owner", goes_with_its_owner},
		{"the_size_is_a_limit", the_size_is_a_limit},
		{"small_ones", small_ones},
		{"shrinks_from_the_maximum", shrinks_from_the_maximum},
		{"quotas", quotas, .args = {"--quota", "0:heap-client=8M,heap=12M"}},
		{"a_new_broker_goes_on", a_new_broker_goes_on, HARNESS_BROKER_DIES},
		{"on_hugetlb", on_hugetlb},
		{"on_large_shmem_pages", on_large_shmem_pages},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
