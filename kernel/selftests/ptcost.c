// SPDX-License-Identifier: GPL-2.0-only
/*
 * What N processes on a fully touched GiB cost in page tables: with msharefs once
 * what one process costs, and at most 8 KiB for each process; with a memfd 2 MiB
 * for each. What a process costs without the region is measured first and taken
 * off.
 */
#include "harness.h"

#include <sys/resource.h>

struct crowd {
	int ready;
	int failed;
	int leave;
};

static size_t touched(void)
{
	return debug_kernel() ? MiB(64) : GiB(1);
}

static long tables_kb(void)
{
	write_text("/proc/sys/vm/stat_refresh", "1");
	return meminfo_kb("PageTables");
}

static void __attribute__((noreturn)) member(struct crowd *c, const struct region *r, size_t size)
{
	size_t i;
	long sum = 0;

	/* What a memfd maps around each fault makes a stride of 16 pages complete. */
	for (i = 0; r && i < size; i += KiB(64))
		sum += *(volatile char *)(r->addr + i);
	if (r && sum != (long)(size / KiB(64)))
		ADD(&c->failed, 1);
	ADD(&c->ready, 1);
	for (;;)
		pause();
}

/* Page tables of n processes that have each touched the whole region, in kB. */
static long crowd_kb(int n, const struct region *r, size_t size)
{
	struct crowd *c = shared_alloc(PAGE);
	pid_t *pid = calloc((size_t)n, sizeof(*pid));
	long before = tables_kb(), cost;
	double start = now();
	int i;

	for (i = 0; i < n; i++) {
		pid[i] = xfork();
		if (!pid[i])
			member(c, r, size);
	}
	WAIT_FOR(LOAD(&c->ready) == n, 400);
	CHECK_EQ(c->failed, 0);
	cost = tables_kb() - before;
	diag("%d processes %s: %ld kB, started in %.1f s", n, r ? r->path : "(bare)", cost, now() - start);
	for (i = 0; i < n; i++)
		kill(pid[i], SIGKILL);
	for (i = 0; i < n; i++)
		JOIN_KILLED(pid[i], SIGKILL);
	free(pid);
	munmap(c, PAGE);
	return cost;
}

static void fill(struct region *r, size_t size)
{
	size_t i;

	CHECK_OK(madvise(r->addr, size, MADV_POPULATE_WRITE));
	for (i = 0; i < size; i += PAGE)
		r->addr[i] = 1;
}

/* Everything but the mapping is the same in both crowds. */
static double per_process_kb(int n, struct region *r, size_t size)
{
	long bare, with;

	CHECK_OK(munmap(r->addr, r->size));
	bare = crowd_kb(n, NULL, 0);
	region_map(r, PROT_READ | PROT_WRITE);
	with = crowd_kb(n, r, size);
	return (double)(with - bare) / n;
}

static double region_cost(int n)
{
	size_t size = touched();
	struct region r;
	long one, before;
	double each;

	before = tables_kb();
	region_create(&r, "crowd", GiB(1));
	fill(&r, size);
	one = tables_kb() - before;
	diag("%zu MiB touched by one process: %ld kB", size >> 20, one);
	CHECK(one <= (long)(size / PAGE * 8 >> 10) + 64, "the tables themselves cost %ld kB", one);
	each = per_process_kb(n, &r, size);
	diag("per process: %.2f kB", each);
	CHECK(each <= 8, "%d processes cost %.2f kB each, not at most 8", n, each);
	return each;
}

static void against_memfd(int n)
{
	double ours, theirs;
	const char *around = "/sys/kernel/debug/fault_around_bytes";
	char usual[32] = "65536";
	struct region m;

	ours = region_cost(n);
	memfd_create_region(&m, GiB(1));
	fill(&m, touched());
	/* Fewer faults, the same tables: this is about their size. */
	read_text(around, usual, sizeof(usual));
	try_write_text(around, "2097152");
	theirs = per_process_kb(n, &m, touched());
	try_write_text(around, usual);
	diag("page tables per process, %d processes: %.2f kB, memfd %.0f kB", n, ours, theirs);
	CHECK(theirs >= (double)(touched() / PAGE * 8 >> 10), "the memfd costs %.0f kB only", theirs);
}

static void hundreds(void)
{
	against_memfd(debug_kernel() ? 16 : 200);
}

static void lift_limits(void)
{
	struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_NPROC, &none);
	try_write_text("/proc/sys/kernel/pid_max", "65536");
	try_write_text("/proc/sys/kernel/threads-max", "65536");
}

/* A process costs about 200 kB besides, and several times that on a debug kernel. */
static void need_memory(size_t size)
{
	if (debug_kernel())
		skip("a debug kernel needs too much memory for each process");
	if (meminfo_kb("MemAvailable") < (long)(size >> 10))
		skip("needs %zu MiB of memory", size >> 20);
}

static void thousand(void)
{
	if (!debug_kernel())
		need_memory(MiB(1536));
	lift_limits();
	region_cost(debug_kernel() ? 200 : 1000);
}

/* Twice the region, and 2 MiB of tables for each process of the memfd. */
static void thousand_against_memfd(void)
{
	need_memory(GiB(5));
	lift_limits();
	against_memfd(1000);
}

static void four_thousand(void)
{
	need_memory(MiB(2560));
	lift_limits();
	region_cost(4000);
}

static const struct test_case cases[] = {
	{ .name = "200 processes on 1 GiB, against memfd", .run = hundreds, .seconds = 600 },
	{ .name = "1,000 processes on 1 GiB", .run = thousand, .level = FULL, .seconds = 600 },
	{ .name = "1,000 processes on 1 GiB, against memfd", .run = thousand_against_memfd,
	  .level = STRESS, .seconds = 600 },
	{ .name = "4,000 processes on 1 GiB", .run = four_thousand, .level = STRESS, .seconds = 600 },
};

TEST_MAIN(cases)
