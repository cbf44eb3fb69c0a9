/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Memory: what is committed is there, to the last page, and never raises SIGBUS; what cannot be had
 * is an error that leaves everything as it was; what is given back comes back to the system.
 */
#include "harness.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define STEP (16 * MIB)
#define LIMIT (192 * MIB) /* of the control group */

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	if (!f || fputs(text, f) < 0 || fclose(f) != 0)
		harness_fail(__FILE__, __LINE__, "%s: %s", path, strerror(errno));
}

/*
 * Makes a memory control group (v2 or v1) with a limit; skips the test where that is not
 * possible.
 */
static void make_group(char *path, size_t size)
{
	char file[200], text[32];
	bool v2 = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;

	snprintf(path, size, "%s/pando-test-%d", v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory",
		 getpid());
	if (mkdir(path, 0755) < 0)
		harness_skip("no right to make a memory control group");
	snprintf(file, sizeof(file), "%s/%s", path, v2 ? "memory.max" : "memory.limit_in_bytes");
	if (access(file, W_OK) < 0) {
		rmdir(path);
		harness_skip("control groups here do not limit memory");
	}
	snprintf(text, sizeof(text), "%llu", LIMIT);
	write_file(file, text);
}

static void enter_group(const char *path, pid_t pid)
{
	char file[200], text[16];

	snprintf(file, sizeof(file), "%s/cgroup.procs", path);
	snprintf(text, sizeof(text), "%d", pid);
	write_file(file, text);
}

/* Touches every page from another process. */
static void touch_all(struct pando_region *r, unsigned char value)
{
	volatile unsigned char *base = pando_region_base(r);
	uint64_t size = pando_region_size(r);
	pid_t pid = fork();

	if (pid == 0) {
		for (uint64_t at = 0; at < size; at += 4096)
			base[at] = value;
		base[size - 1] = value;
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	for (uint64_t at = 0; at < size; at += 4096)
		CHECK(base[at] == value);
}

/* The broker's memory is limited; regions grow until they are told that there is no more. */
static void pressure(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "tight", MIB, PANDO_TRANSIENT);
	uint64_t size = MIB;
	unsigned int grown = 0;
	int rc;

	while ((rc = pando_region_resize(r, size + STEP)) == 0) {
		size += STEP;
		CHECK_INT(pando_region_size(r), size);
		touch_all(r, (unsigned char)++grown);
		CHECK(size <= LIMIT);
	}
	CHECK_ERR(rc, ENOMEM, "bytes");
	CHECK(grown > 0);
	CHECK_INT(pando_region_size(r), size);
	touch_all(r, 200);
	/* What was refused has left nothing: the same amount can be given back and had again. */
	CHECK_OK(pando_region_resize(r, size - STEP));
	CHECK_OK(pando_region_resize(r, size));
	touch_all(r, 201);
	printf("  grew to %llu MiB under a limit of %llu MiB\n", (unsigned long long)(size / MIB),
	       LIMIT / MIB);
	pando_disconnect(p);
}

static void test_pressure(struct harness *h)
{
	char group[120];
	pid_t pid;
	int rc;

	make_group(group, sizeof(group));
	enter_group(group, h->broker); /* who commits memory pays for it */
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		pressure(h);
		fflush(NULL);
		_exit(0);
	}
	rc = harness_join(pid);
	*strrchr(group, '/') = '\0';
	enter_group(group, h->broker);
	snprintf(group + strlen(group), 40, "/pando-test-%d", getpid());
	for (unsigned int i = 0; rmdir(group) < 0 && errno == EBUSY && i < 500 * harness_slow();
	     i++)
		harness_sleep_ms(10);
	CHECK(access(group, F_OK) < 0);
	CHECK_INT(rc, 0);
}

/* KiB that the kernel says are shared memory; what others do meanwhile shows in it, too. */
static long shmem(void)
{
	return harness_kib(0, "Shmem");
}

/*
 * Counted in the region's own files, which is exact, and shown in what the kernel says of the
 * machine, where others come and go: there it must be seen in one attempt of three.
 */
static bool given_back(struct harness *h, struct pando *p)
{
	const uint64_t size = 512 * MIB;
	const long most = (long)(size / 1024), some = most / 8;
	struct pando_region *r;
	long before = shmem(), full, shrunk, after;
	uint64_t files = harness_file_kib(h->broker), now;

	r = harness_region(p, "wide", size, PANDO_TRANSIENT);
	touch_all(r, 1);
	full = shmem();
	now = harness_file_kib(h->broker);
	/* Two descriptors lead to each heap, and the tables take a few pages. */
	CHECK(now - files >= 2 * size / 1024 && now - files < 2 * size / 1024 + 64);
	CHECK_OK(pando_region_resize(r, MIB));
	shrunk = shmem();
	now = harness_file_kib(h->broker);
	CHECK(now - files < 2 * MIB / 1024 + 64);
	CHECK_OK(pando_region_resize(r, size));
	touch_all(r, 2);
	CHECK_OK(pando_region_close(r));
	for (unsigned int i = 0; i < 200 * harness_slow() && harness_file_kib(h->broker) != files;
	     i++)
		harness_sleep_ms(10);
	CHECK_INT(harness_file_kib(h->broker), files);
	after = shmem();
	printf("  Shmem: %ld KiB, full +%ld, shrunk +%ld, closed +%ld\n", before, full - before,
	       shrunk - before, after - before);
	fflush(stdout);
	return full - before > most - some && shrunk - before < some && after - before < some;
}

static void test_given_back(struct harness *h)
{
	struct pando *p = harness_connect(h);

	CHECK(given_back(h, p) || given_back(h, p) || given_back(h, p));
	pando_disconnect(p);
}

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

/* Adds pages to the pool, or takes them away again. False: not possible here. */
static bool change_pool(long pages)
{
	char text[32];
	FILE *f = fopen(POOL, "r+e");
	long now = 0;
	bool ok;

	if (!f)
		return false;
	ok = fscanf(f, "%ld", &now) == 1;
	snprintf(text, sizeof(text), "%ld", now + pages > 0 ? now + pages : 0);
	rewind(f);
	ok = ok && fputs(text, f) > 0;
	return fclose(f) == 0 && ok;
}

/* The same on huge pages, counted exactly by the pool. */
/* KiB that the heap takes; counted in the file, since the pool's counters are everybody's. */
static uint64_t heap_kib(struct harness *h, uint64_t before)
{
	return (harness_file_kib(h->broker) - before) / 2 / 2048 * 2048;
}

static void huge(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region_options o = {.size = 8 * MIB, .backend = PANDO_BACKEND_HUGETLB};
	struct pando_region *r;
	uint64_t before = harness_file_kib(h->broker);

	CHECK_OK(pando_region_open(p, "huge", PANDO_CREATE | PANDO_TRANSIENT, &o, &r));
	touch_all(r, 3);
	CHECK_INT(heap_kib(h, before), 8 << 10);
	CHECK_OK(pando_region_resize(r, 16 * MIB + 1));
	CHECK_INT(pando_region_size(r), 18 * MIB);
	touch_all(r, 4);
	CHECK_INT(heap_kib(h, before), 18 << 10);
	CHECK_ERR(pando_region_resize(r, GIB), ENOMEM, "nr_hugepages");
	CHECK_INT(heap_kib(h, before), 18 << 10);
	CHECK_INT(pando_region_size(r), 18 * MIB);
	CHECK_OK(pando_region_resize(r, 2 * MIB));
	CHECK_INT(heap_kib(h, before), 2 << 10);
	CHECK_OK(pando_region_close(r));
	for (unsigned int i = 0; i < 200 * harness_slow() && harness_file_kib(h->broker) != before;
	     i++)
		harness_sleep_ms(10);
	CHECK_INT(harness_file_kib(h->broker), before);
	pando_disconnect(p);
}

static void test_huge(struct harness *h)
{
	const long pages = 64; /* more than it takes: other tests may change the pool, too */
	long before = harness_kib(0, "HugePages_Free");
	pid_t pid;
	int rc;

	if (!change_pool(pages))
		harness_skip("no right to add huge pages to the pool");
	if (harness_kib(0, "HugePages_Free") < before + pages) {
		change_pool(-pages);
		harness_skip("the kernel found no 64 huge pages");
	}
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		huge(h);
		_exit(0);
	}
	rc = harness_join(pid);
	change_pool(-pages);
	CHECK_INT(rc, 0);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "pressure", .run = test_pressure},
		{.name = "given-back", .run = test_given_back},
		{.name = "huge", .run = test_huge},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
