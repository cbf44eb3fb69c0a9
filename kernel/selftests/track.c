// SPDX-License-Identifier: GPL-2.0-only
/*
 * Those who walk a process's page tables to learn what it does: soft-dirty bits,
 * PAGEMAP_SCAN, NUMA balancing, KSM. Bits in shared tables are everybody's: such a
 * walker leaves them alone, and its answer errs on the safe side.
 */
#include "pinned.h"

#include <sys/ioctl.h>
#include <sys/prctl.h>

static struct region r;

/* A page written after the bits were cleared must say so, whoever wrote it. */
static void soft_dirty(void)
{
	int *step = shared_alloc(PAGE);
	size_t i;
	pid_t pid;

	region_create(&r, "dirty", GiB(1));
	memset(r.addr, 1, MiB(2));
	pid = xfork();
	if (!pid) {
		(void)*(volatile char *)r.addr;
		WAIT_FOR(LOAD(step) == 1, 20);
		for (i = 0; i < MiB(2); i += 2 * PAGE)
			r.addr[i] = 2;
		STORE(step, 2);
		WAIT_FOR(LOAD(step) == 3, 20);
		_exit(0);
	}
	write_text("/proc/self/clear_refs", "4");
	STORE(step, 1);
	WAIT_FOR(LOAD(step) == 2, 20);
	for (i = PAGE; i < MiB(2); i += 4 * PAGE)
		r.addr[i] = 3;
	for (i = 0; i < MiB(2); i += PAGE) {
		bool written = i % (2 * PAGE) == 0 || i % (4 * PAGE) == PAGE;

		CHECK(!written || pagemap(0, r.addr + i) & PM_SOFT_DIRTY,
		      "the write to page %zu is not in pagemap", i / PAGE);
	}
	STORE(step, 3);
	JOIN(pid);
}

/* clear_refs write-protects what it tracks; a running writer must not be lost. */
static void soft_dirty_under_writer(void)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	char *base;
	pid_t pid;
	int i;

	region_create(&r, "dirtywriter", GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	for (i = 0; i < 20; i++) {
		write_text("/proc/self/clear_refs", "4");
		pinned_turn(p);
		CHECK(pagemap(0, base) & PM_SOFT_DIRTY, "round %d: the write is not in pagemap", i);
	}
	pinned_end(p, pid, base);
}

struct scan_region {
	uint64_t start, end, categories;
};

struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t inverted, mask, anyof, return_mask;
};

#define SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_WP (1u << 0)
#define SCAN_CHECK_ASYNC (1u << 1)
#define IS_WRITTEN (1u << 1)
#define IS_FILE (1u << 2)
#define IS_PRESENT (1u << 3)

static void scan(void)
{
	struct scan_region out[16];
	struct scan_arg arg = { .size = sizeof(arg), .vec = (uintptr_t)out, .vec_len = 16 };
	int fd = (int)CHECK_OK(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));

	region_create(&r, "scan", GiB(1));
	memset(r.addr + MiB(2), 1, MiB(1));
	arg.start = (uintptr_t)r.addr;
	arg.end = arg.start + MiB(16);
	arg.mask = IS_PRESENT;
	arg.return_mask = IS_PRESENT | IS_FILE | IS_WRITTEN;
	if (ioctl(fd, SCAN, &arg) < 0 && errno == ENOTTY)
		skip("no PAGEMAP_SCAN");
	arg.walk_end = 0;
	CHECK_EQ(ioctl(fd, SCAN, &arg), 1);
	CHECK_EQ(out[0].start, (uintptr_t)r.addr + MiB(2));
	CHECK_EQ(out[0].end, (uintptr_t)r.addr + MiB(3));
	CHECK(out[0].categories & IS_FILE, "the pages are not called a file's");
	/* Write-protecting needs asynchronous userfaultfd, which a region refuses. */
	arg.flags = SCAN_WP | SCAN_CHECK_ASYNC;
	arg.mask = arg.return_mask = IS_WRITTEN;
	CHECK_ERR(ioctl(fd, SCAN, &arg), EPERM);
	arg.flags = SCAN_WP;
	CHECK(ioctl(fd, SCAN, &arg) >= 0 || errno == EPERM, "PM_SCAN_WP_MATCHING: %s", strerror(errno));
	r.addr[MiB(2)] = 2;
	CHECK_EQ(r.addr[MiB(2)], 2);
}

/* NUMA balancing makes entries inaccessible to see who comes. */
static void numa_balancing(void)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	double end = now() + storm_seconds(8);
	char *base;
	pid_t pid;

	if (!has_path("/sys/devices/system/node/node1"))
		skip("one memory node only");
	if (!try_write_text("/proc/sys/kernel/numa_balancing", "1"))
		skip("no NUMA balancing");
	try_write_text("/sys/kernel/debug/sched/numa_balancing/scan_delay_ms", "10");
	try_write_text("/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms", "20");
	region_create(&r, "numa", GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	while (now() < end) {
		size_t i;

		for (i = MiB(32); i < MiB(40); i += PAGE)
			r.addr[i]++;
	}
	write_text("/proc/sys/kernel/numa_balancing", "0");
	pinned_end(p, pid, base);
}

/* KSM for a whole process does not take its regions. */
static void merge_all(void)
{
	size_t i;

	if (prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0))
		skip("no PR_SET_MEMORY_MERGE: %s", strerror(errno));
	try_write_text("/sys/kernel/mm/ksm/run", "1");
	try_write_text("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	region_create(&r, "ksm", GiB(1));
	memset(r.addr, 8, MiB(4));
	nap_ms(1000);
	for (i = 0; i < MiB(4); i += PAGE) {
		CHECK_EQ(r.addr[i], 8);
		r.addr[i] = (char)(i / PAGE);
	}
	for (i = 0; i < MiB(4); i += PAGE)
		CHECK_EQ(r.addr[i], (char)(i / PAGE));
	CHECK_OK(prctl(67, 0, 0, 0, 0));
	try_write_text("/sys/kernel/mm/ksm/run", "2");
	try_write_text("/sys/kernel/mm/ksm/run", "0");
}

static void idle_pages(void)
{
	uint64_t entry, bits = ~0ull;
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	off_t at;
	int i;

	if (fd < 0)
		skip("no idle page tracking");
	region_create(&r, "idle", GiB(1));
	for (i = 0; i < 64; i++) {
		r.addr[(size_t)i * PAGE] = (char)i;
		entry = pagemap(0, r.addr + (size_t)i * PAGE) & ((1ull << 55) - 1);
		at = (off_t)(entry / 64 * 8);
		CHECK_EQ(pwrite(fd, &bits, 8, at), 8);
		CHECK_EQ(pread(fd, &bits, 8, at), 8);
		bits = ~0ull;
	}
	for (i = 0; i < 64; i++)
		CHECK_EQ(r.addr[(size_t)i * PAGE], i);
	close(fd);
}

static const struct test_case cases[] = {
	{ .name = "soft-dirty misses no write", .run = soft_dirty },
	{ .name = "soft-dirty under a running writer", .run = soft_dirty_under_writer },
	{ .name = "PAGEMAP_SCAN", .run = scan },
	{ .name = "NUMA balancing under a running writer", .run = numa_balancing },
	{ .name = "KSM for the whole process", .run = merge_all },
	{ .name = "idle page tracking", .run = idle_pages },
};

TEST_MAIN(cases)
