// SPDX-License-Identifier: GPL-2.0-only
/*
 * How long memory lives: as long as a name, a descriptor or a mapping is left,
 * and no longer. The harness checks after every case that page tables, shared
 * memory and inodes are back where they were.
 */
#include "harness.h"

static void after_unlink(void)
{
	struct region r;
	pid_t pid;
	int *step = shared_alloc(PAGE);

	region_create(&r, "unlinked", GiB(1));
	pid = xfork();
	if (!pid) {
		region_detach(&r);
		region_attach(&r, "unlinked", O_RDWR, PROT_READ | PROT_WRITE);
		STORE(step, 1);
		WAIT_FOR(LOAD(step) == 2, 30);
		CHECK_EQ(r.addr[MiB(100)], 42);
		r.addr[MiB(200)] = 43;
		_exit(0);
	}
	WAIT_FOR(LOAD(step) == 1, 30);
	region_unlink(&r);
	CHECK_ERR(open(r.path, O_RDWR), ENOENT);
	r.addr[MiB(100)] = 42;
	STORE(step, 2);
	JOIN(pid);
	CHECK_EQ(r.addr[MiB(200)], 43);
}

/* The creator is nobody special: it may die first. */
static void creator_dies(void)
{
	struct region r;
	pid_t pid = xfork();

	if (!pid) {
		region_create(&r, "orphan", GiB(1));
		memset(r.addr, 0x5a, MiB(8));
		kill(getpid(), SIGKILL);
	}
	JOIN_KILLED(pid, SIGKILL);
	region_attach(&r, "orphan", O_RDWR, PROT_READ | PROT_WRITE);
	CHECK_EQ(r.addr[0], 0x5a);
	CHECK_EQ(r.addr[MiB(8) - 1], 0x5a);
	r.addr[MiB(900)] = 1;
	region_unlink(&r);
}

static void while_the_name_exists(void)
{
	struct region r;
	char *addr;

	region_create(&r, "kept", GiB(1));
	addr = r.addr;
	strcpy(r.addr + GiB(1) - 64, "kept by its name");
	region_detach(&r);
	nap_ms(50);
	region_attach(&r, "kept", O_RDONLY, PROT_READ);
	CHECK(r.addr == addr, "the region has moved");
	CHECK(!strcmp(r.addr + GiB(1) - 64, "kept by its name"), "data is lost");
}

static void descriptor_holds_it(void)
{
	struct region r;

	region_create(&r, "held", GiB(1));
	r.addr[5] = 6;
	region_unlink(&r);
	CHECK_OK(munmap(r.addr, r.size));
	region_map(&r, PROT_READ);
	CHECK_EQ(r.addr[5], 6);
}

static void name_without_region(void)
{
	char path[256];
	int i;

	for (i = 0; i < 100; i++) {
		region_path(path, sizeof(path), "never");
		CHECK_OK(close((int)CHECK_OK(open(path, O_RDWR | O_CREAT | O_EXCL, 0600))));
		CHECK_OK(unlink(path));
	}
}

static void memory_comes_back(void)
{
	size_t size = debug_kernel() ? MiB(64) : MiB(256);
	long before = meminfo_kb("Shmem"), tables, full, kb = (long)(size >> 10);
	struct region r;

	write_text("/proc/sys/vm/stat_refresh", "1");
	tables = meminfo_kb("PageTables");
	region_create(&r, "memory", GiB(1));
	CHECK_OK(madvise(r.addr, size, MADV_POPULATE_WRITE));
	write_text("/proc/sys/vm/stat_refresh", "1");
	full = meminfo_kb("Shmem") - before;
	CHECK(full >= kb && full < kb + 4096, "%ld kB count as %ld kB of Shmem", kb, full);
	full = meminfo_kb("PageTables") - tables;
	CHECK(full >= kb / 512 && full < kb / 512 + 188, "%ld kB need %ld kB of page tables", kb, full);
	region_unlink(&r);
	CHECK(meminfo_kb("Shmem") - before > kb - 4096, "memory went with the name");
	region_detach(&r);
	WAIT_FOR(meminfo_kb("Shmem") - before < 1024, 5);
	WAIT_FOR((write_text("/proc/sys/vm/stat_refresh", "1"),
		  meminfo_kb("PageTables") - tables < 32), 5);
}

static void many_rounds(void)
{
	int i, rounds = debug_kernel() ? 60 : 200;
	struct region r;

	for (i = 0; i < rounds; i++) {
		pid_t pid;

		region_create(&r, "round", GiB(1));
		r.addr[MiB(2) * (size_t)(i % 512)] = 1;
		pid = xfork();
		if (!pid) {
			r.addr[MiB(2) * (size_t)((i + 7) % 512)] = 1;
			_exit(0);
		}
		region_unlink(&r);
		if (i % 2)
			JOIN(pid);
		region_detach(&r);
		if (!(i % 2))
			JOIN(pid);
	}
}

/* A sharer neither counts nor frees what it is linked to. */
static void sharer_counts_nothing(void)
{
	size_t size = debug_kernel() ? MiB(32) : MiB(128); /* 64 kB of tables at least */
	struct region r;
	long before, after;
	pid_t pid;

	region_create(&r, "count", GiB(1));
	CHECK_OK(madvise(r.addr, size, MADV_POPULATE_WRITE));
	pid = xfork();
	if (!pid) {
		region_detach(&r);
		before = status_kb(0, "VmPTE");
		region_attach(&r, "count", O_RDWR, PROT_READ | PROT_WRITE);
		CHECK_OK(madvise(r.addr, size, MADV_POPULATE_WRITE));
		after = status_kb(0, "VmPTE");
		CHECK(after - before <= 8, "VmPTE grew from %ld to %ld kB", before, after);
		region_detach(&r);
		CHECK(status_kb(0, "VmPTE") >= 0, "VmPTE is %ld", status_kb(0, "VmPTE"));
		CHECK(status_kb(0, "VmPTE") <= after, "VmPTE grew by unmapping");
		_exit(0);
	}
	JOIN(pid);
}

static const struct test_case cases[] = {
	{ .name = "data after unlink", .run = after_unlink },
	{ .name = "the creator dies", .run = creator_dies },
	{ .name = "data after the last unmap while the name exists", .run = while_the_name_exists },
	{ .name = "a descriptor holds an unlinked region", .run = descriptor_holds_it },
	{ .name = "files that never become regions", .run = name_without_region },
	{ .name = "memory and page tables come back", .run = memory_comes_back },
	{ .name = "many regions come and go", .run = many_rounds },
	{ .name = "a sharer counts no shared table", .run = sharer_counts_nothing },
};

TEST_MAIN(cases)
