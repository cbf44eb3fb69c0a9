// SPDX-License-Identifier: GPL-2.0-only
/*
 * No write is lost while the kernel moves pages: in compaction, and between
 * memory nodes where there are two. See pinned.h.
 */
#include "pinned.h"

static struct region r;

/* Leaves every other page of a large piece free, so that there is something to
 * compact and room to move to. */
static void fragment(void)
{
	size_t i, size = debug_kernel() ? MiB(64) : MiB(256);
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "no memory");
	madvise(p, size, MADV_NOHUGEPAGE);
	CHECK_OK(madvise(p, size, MADV_POPULATE_WRITE));
	for (i = 0; i < size; i += 2 * PAGE)
		CHECK_OK(madvise(p + i, PAGE, MADV_DONTNEED));
}

static void compaction(void)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	long moved = 0;
	char *base;
	pid_t pid;
	int i;

	if (!has_path("/proc/sys/vm/compact_memory"))
		skip("no compaction");
	fragment();
	region_create(&r, "compact", GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	for (i = 0; i < (debug_kernel() ? 4 : 6); i++) {
		long before = vmstat("pgmigrate_success");

		write_text("/proc/sys/vm/compact_memory", "1");
		moved += vmstat("pgmigrate_success") - before;
		pinned_turn(p);
		CHECK_OK(munmap(mmap(NULL, MiB(8), PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0), MiB(8)));
	}
	diag("%ld pages moved by compaction", moved);
	CHECK(moved > 100, "compaction moved %ld pages", moved);
	pinned_end(p, pid, base);
}

static int node_of(void *addr)
{
	int node = -1;

	CHECK_OK(syscall(SYS_move_pages, 0, 1, &addr, NULL, &node, 0));
	return node;
}

/* The writer's pages move n at a time, and are unmapped with one flush for these n. */
static void move_pages(const char *name, size_t n)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	int status[PINNED_PAGES], to[PINNED_PAGES], moved = 0;
	void *page[PINNED_PAGES];
	size_t i, k;
	char *base;
	pid_t pid;

	if (!has_path("/sys/devices/system/node/node1"))
		skip("one memory node only");
	region_create(&r, name, GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	for (i = 0; i < 40; i++) {
		char *first = base + i * n % PINNED_PAGES * PAGE;
		int before = node_of(first);

		for (k = 0; k < n; k++) {
			page[k] = first + k * PAGE;
			to[k] = !before;
		}
		if (syscall(SYS_move_pages, 0, n, page, to, status, 2) < 0 && i == 0)
			diag("move_pages: %s", strerror(errno));
		moved += node_of(first) != before;
		pinned_turn(p);
	}
	diag("%d of 40 moves by %zu pages", moved, n);
	CHECK(moved > 0, "no page has moved");
	pinned_end(p, pid, base);
}

static void all_pages(void)
{
	move_pages("all", PINNED_PAGES);
}

/* So few that a kernel would rather flush one by one than everything. */
static void few_pages(void)
{
	move_pages("few", PINNED_PAGES / 4);
}

static void migrate_process(void)
{
	unsigned long from = 1, to = 2, swap;
	struct pinned *p = shared_alloc(sizeof(*p));
	char *base;
	pid_t pid;
	int i;

	if (!has_path("/sys/devices/system/node/node1"))
		skip("one memory node only");
	region_create(&r, "process", GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	for (i = 0; i < 10; i++) {
		syscall(SYS_migrate_pages, pid, 64, &from, &to);
		pinned_turn(p);
		swap = from;
		from = to;
		to = swap;
	}
	pinned_end(p, pid, base);
}

static const struct test_case cases[] = {
	{ .name = "compaction under a running writer", .run = compaction },
	{ .name = "move_pages under a running writer", .run = all_pages },
	{ .name = "move_pages of a few under a running writer", .run = few_pages },
	{ .name = "migrate_pages under a running writer", .run = migrate_process },
};

TEST_MAIN(cases)
