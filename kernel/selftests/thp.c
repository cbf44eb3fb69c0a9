// SPDX-License-Identifier: GPL-2.0-only
/*
 * Huge pages under shared tables: made, split, punched in part, collapsed, and
 * always the same data for all attachers.
 */
#include "harness.h"

#define KNOB "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define SIZE MiB(32)

static struct region r;

static void want_huge(const char *how)
{
	if (!try_write_text(KNOB, how))
		skip("no huge pages for shared memory (%s)", how);
}

static void fill(void)
{
	size_t i;

	for (i = 0; i < SIZE; i += PAGE)
		*(size_t *)(r.addr + i) = ~i;
}

/* Another process, with tables of its own rights, sees it all. */
static void same_for_all(size_t hole, size_t length)
{
	int open_flags[] = { O_RDWR, O_RDONLY };
	const char *name = strrchr(r.path, '/') + 1;
	size_t i, k;
	pid_t pid;

	for (k = 0; k < 2; k++) {
		pid = xfork();
		if (!pid) {
			struct region own;

			region_detach(&r);
			region_attach(&own, name, open_flags[k], PROT_READ);
			for (i = 0; i < SIZE; i += PAGE)
				CHECK_EQ(*(volatile size_t *)(own.addr + i),
					 i >= hole && i < hole + length ? 0 : ~i);
			_exit(0);
		}
		JOIN(pid);
	}
}

static void forced(void)
{
	long huge = meminfo_kb("ShmemHugePages"), mapped;

	want_huge("force");
	region_create(&r, "forced", GiB(1));
	fill();
	want_huge("never");
	huge = meminfo_kb("ShmemHugePages") - huge;
	mapped = smaps_kb(0, r.addr, "ShmemPmdMapped");
	diag("%ld kB in huge pages, %ld kB mapped by huge entries", huge, mapped);
	CHECK(huge >= (long)(SIZE / 2 >> 10), "%ld kB in huge pages only", huge);
	CHECK(mapped >= (long)(SIZE / 2 >> 10), "%ld kB mapped by huge entries only", mapped);
	same_for_all(0, 0);
	fill();
	same_for_all(0, 0);
}

/* A huge entry is one link for everybody: few faults and no PTE tables. */
static void shared_huge_entry(void)
{
	long tables;
	pid_t pid;

	want_huge("force");
	write_text("/proc/sys/vm/stat_refresh", "1");
	tables = meminfo_kb("PageTables");
	region_create(&r, "entry", GiB(1));
	fill();
	want_huge("never");
	write_text("/proc/sys/vm/stat_refresh", "1");
	tables = meminfo_kb("PageTables") - tables;
	diag("%ld kB of tables", tables);
	pid = xfork();
	if (!pid) {
		long faults = minor_faults(); /* once for what it touches itself */
		size_t i;

		faults = minor_faults();
		for (i = 0; i < SIZE; i += PAGE)
			CHECK_EQ(*(volatile size_t *)(r.addr + i), ~i);
		faults = minor_faults() - faults;
		CHECK(faults <= 5, "%ld faults", faults);
		_exit(0);
	}
	JOIN(pid);
}

static void partial_punch(void)
{
	want_huge("force");
	region_create(&r, "partial", GiB(1));
	fill();
	want_huge("never");
	CHECK_OK(fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(MiB(2) + KiB(64)),
			   (off_t)KiB(512)));
	same_for_all(MiB(2) + KiB(64), KiB(512));
	fill();
	same_for_all(0, 0);
	CHECK_OK(fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(MiB(5) + PAGE),
			   (off_t)MiB(7)));
	same_for_all(MiB(5) + PAGE, MiB(7));
}

static void split(void)
{
	char command[64];

	if (!has_path("/sys/kernel/debug/split_huge_pages"))
		skip("no split_huge_pages");
	want_huge("force");
	region_create(&r, "split", GiB(1));
	fill();
	want_huge("never");
	snprintf(command, sizeof(command), "%d,%#lx,%#lx", getpid(), (unsigned long)r.addr,
		 (unsigned long)r.addr + SIZE / 2);
	diag("split of this process's range: %s",
	     try_write_text("/sys/kernel/debug/split_huge_pages", command) ? "works" : strerror(errno));
	same_for_all(0, 0);
	try_write_text("/sys/kernel/debug/split_huge_pages", "1");
	same_for_all(0, 0);
	fill();
	same_for_all(0, 0);
}

/* Long pins split huge entries on the way (FOLL_SPLIT_PMD), and MADV_PAGEOUT of a
 * part splits the page. */
static void page_out_part(void)
{
	int swap;

	want_huge("force");
	swap = swap_add(MiB(64));
	region_create(&r, "part", GiB(1));
	fill();
	want_huge("never");
	page_out(r.addr + MiB(4) + PAGE * 3, PAGE * 5);
	same_for_all(0, 0);
	page_out(r.addr, SIZE);
	same_for_all(0, 0);
	fill();
	same_for_all(0, 0);
	swap_remove(swap);
}

/* Made of small pages first; collapsed on request or by khugepaged if the kernel
 * does that to a region; the data is the same in each case. */
static void collapse(void)
{
	int i, err;

	want_huge("never");
	region_create(&r, "collapse", GiB(1));
	fill();
	want_huge("always");
	err = madvise(r.addr, SIZE, MADV_COLLAPSE) ? errno : 0;
	diag("MADV_COLLAPSE: %s", err ? strerror(err) : "works");
	same_for_all(0, 0);
	err = madvise(r.addr, r.size, MADV_HUGEPAGE) ? errno : 0;
	diag("MADV_HUGEPAGE: %s", err ? strerror(err) : "works");
	try_write_text("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "0");
	try_write_text("/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs", "0");
	for (i = 0; i < (group() == QUICK ? 6 : 20); i++) {
		same_for_all(0, 0);
		fill();
		nap_ms(20);
	}
	try_write_text("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "10000");
	want_huge("never");
	diag("ShmemPmdMapped %ld kB", smaps_kb(0, r.addr, "ShmemPmdMapped"));
	same_for_all(0, 0);
}

/* Processes that unlink and link while pages are collapsed and split. */
static void collapse_under_attachers(void)
{
	int i, *stops = shared_alloc(PAGE);
	pid_t pid[3];

	want_huge("never");
	region_create(&r, "under", GiB(1));
	fill();
	for (i = 0; i < 3; i++) {
		pid[i] = xfork();
		if (!pid[i]) {
			while (!LOAD(stops)) {
				size_t k;

				CHECK_OK(munmap(r.addr, r.size));
				region_map(&r, PROT_READ);
				for (k = 0; k < SIZE; k += PAGE)
					CHECK_EQ(*(volatile size_t *)(r.addr + k), ~k);
			}
			_exit(0);
		}
	}
	want_huge("always");
	for (i = 0; i < (debug_kernel() ? 1 : 15); i++) {
		madvise(r.addr, SIZE, MADV_COLLAPSE);
		fill();
		try_write_text("/sys/kernel/debug/split_huge_pages", "1");
	}
	want_huge("never");
	STORE(stops, 1);
	for (i = 0; i < 3; i++)
		JOIN(pid[i]);
}

static const struct test_case cases[] = {
	{ .name = "forced huge pages", .run = forced },
	{ .name = "a huge entry is shared", .run = shared_huge_entry },
	{ .name = "holes in huge pages", .run = partial_punch },
	{ .name = "splitting", .run = split },
	{ .name = "paging out a part", .run = page_out_part },
	{ .name = "collapse", .run = collapse },
	/* Splitting looks at every page of the machine, against three busy processes. */
	{ .name = "collapse and split under attachers", .run = collapse_under_attachers, .seconds = 180 },
};

TEST_MAIN(cases)
