// SPDX-License-Identifier: GPL-2.0-only
/*
 * What /proc and mincore() say about a region: the same as about a memfd that is
 * mapped by as many processes, save for what page tables cost.
 */
#include "harness.h"

static struct region r;

static void attacher(int *step)
{
	STORE(step, 1);
	for (;;)
		pause();
}

static void smaps(void)
{
	int *step = shared_alloc(PAGE);
	long rss, shared, private, pss;
	pid_t pid;

	region_create(&r, "smaps", GiB(1));
	CHECK_OK(madvise(r.addr, MiB(8), MADV_POPULATE_WRITE));
	pid = xfork();
	if (!pid) {
		(void)*(volatile char *)r.addr;
		attacher(step);
	}
	WAIT_FOR(LOAD(step), 20);
	rss = smaps_kb(0, r.addr, "Rss");
	pss = smaps_kb(0, r.addr, "Pss");
	shared = smaps_kb(0, r.addr, "Shared_Clean") + smaps_kb(0, r.addr, "Shared_Dirty");
	private = smaps_kb(0, r.addr, "Private_Clean") + smaps_kb(0, r.addr, "Private_Dirty");
	diag("Rss %ld Pss %ld shared %ld private %ld kB", rss, pss, shared, private);
	CHECK_EQ(rss, 8192);
	CHECK_EQ(shared, 8192);
	CHECK_EQ(private, 0);
	CHECK_EQ(smaps_kb(pid, r.addr, "Rss"), 8192);
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
}

static void pages(void)
{
	int fd = (int)CHECK_OK(open("/proc/self/pagemap", O_RDONLY));
	uint64_t mine, other;
	int *step = shared_alloc(PAGE);
	pid_t pid;

	region_create(&r, "pagemap", GiB(1));
	CHECK_EQ(pagemap(0, r.addr) & (PM_PRESENT | PM_SWAP), 0);
	r.addr[MiB(3)] = 1;
	pid = xfork();
	if (!pid) {
		(void)*(volatile char *)(r.addr + MiB(3));
		attacher(step);
	}
	WAIT_FOR(LOAD(step), 20);
	mine = pagemap(0, r.addr + MiB(3));
	other = pagemap(pid, r.addr + MiB(3));
	CHECK(mine & PM_PRESENT, "pagemap does not see the page");
	CHECK(mine & PM_FILE, "pagemap does not call the page a file's");
	CHECK_EQ(mine & ((1ull << 55) - 1), other & ((1ull << 55) - 1));
	CHECK(!(pagemap(0, r.addr + MiB(3) + PAGE) & PM_PRESENT) ||
	      r.addr[MiB(3) + PAGE] == 0, "a page that nobody touched");
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
	close(fd);
}

static void residency(void)
{
	unsigned char vec[1024];
	struct region own;

	region_create(&r, "mincore", GiB(1));
	memset(r.addr + MiB(1), 1, MiB(1));
	CHECK_OK(mincore(r.addr, MiB(4), vec));
	CHECK_EQ(vec[0] & 1, 0);
	CHECK_EQ(vec[256] & 1, 1);
	CHECK_EQ(vec[511] & 1, 1);
	CHECK_EQ(vec[512] & 1, 0);
	region_detach(&r);
	region_attach(&own, "mincore", O_RDONLY, PROT_READ);
	CHECK_OK(mincore(own.addr, MiB(4), vec));
	CHECK_EQ(vec[0] & 1, 0);
	CHECK_EQ(vec[256] & 1, 1);
}

/* Every file of /proc/pid about memory is read whole while the region is linked. */
static void all_files(void)
{
	static const char *const names[] = { "maps", "smaps", "smaps_rollup", "numa_maps", "status",
					     "statm", "stat", "oom_score" };
	static char text[65536];
	char path[64];
	size_t i;

	region_create(&r, "files", GiB(2));
	memset(r.addr, 1, MiB(4));
	memset(r.addr + GiB(1), 1, MiB(1));
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/proc/self/%s", names[i]);
		if (has_path(path))
			CHECK(read_text(path, text, sizeof(text)) > 0, "%s: %s", path, strerror(errno));
	}
	CHECK(status_kb(0, "VmSize") >= (long)(GiB(2) >> 10), "VmSize lacks the region");
}

/* clear_refs 1 clears referenced bits in walks of this process's tables. */
static void clear_refs(void)
{
	region_create(&r, "refs", GiB(1));
	memset(r.addr, 1, MiB(2));
	write_text("/proc/self/clear_refs", "1");
	write_text("/proc/self/clear_refs", "3");
	write_text("/proc/self/clear_refs", "5");
	CHECK_EQ(r.addr[5], 1);
	CHECK_EQ(smaps_kb(0, r.addr, "Rss"), 2048);
}

static void swapped(void)
{
	int swap = swap_add(MiB(64));
	long out;

	region_create(&r, "swapped", GiB(1));
	memset(r.addr, 1, MiB(4));
	page_out(r.addr, MiB(4));
	out = smaps_kb(0, r.addr, "Swap");
	diag("Swap %ld kB, Rss %ld kB", out, smaps_kb(0, r.addr, "Rss"));
	CHECK(out >= 3072, "smaps sees %ld of 4096 kB in swap", out);
	CHECK_EQ(smaps_kb(0, r.addr, "Rss") + out, 4096);
	CHECK_EQ(r.addr[MiB(4) - 1], 1);
	swap_remove(swap);
}

static const struct test_case cases[] = {
	{ .name = "smaps: a region is shared", .run = smaps },
	{ .name = "pagemap: one page for all", .run = pages },
	{ .name = "mincore", .run = residency },
	{ .name = "all files of /proc/pid", .run = all_files },
	{ .name = "clear_refs", .run = clear_refs },
	{ .name = "smaps: pages in swap", .run = swapped },
};

TEST_MAIN(cases)
