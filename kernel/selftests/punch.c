// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory of a region is given back and taken by fallocate() and MADV_REMOVE:
 * every attacher sees zeroes after a hole was punched, and neighbours keep their
 * data. Truncation is no way to shrink a region: its size is fixed.
 */
#include "harness.h"

static struct region r;

static void fill(size_t size, int seed)
{
	size_t i;

	for (i = 0; i < size; i += PAGE)
		*(size_t *)(r.addr + i) = i + (size_t)seed;
}

static void check(size_t size, int seed, size_t hole, size_t length)
{
	size_t i;

	for (i = 0; i < size; i += PAGE) {
		size_t want = i >= hole && i < hole + length ? 0 : i + (size_t)seed;

		CHECK(*(volatile size_t *)(r.addr + i) == want, "offset %#zx holds %#zx, not %#zx", i,
		      *(volatile size_t *)(r.addr + i), want);
	}
}

static int punch(size_t at, size_t length)
{
	return fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)length);
}

static void hole(void)
{
	static const size_t holes[][2] = {
		{ 0, 4096 }, { 4096 * 3, 4096 * 5 }, { 2097152, 2097152 }, { 2093056, 8192 },
		{ 4194304 + 4096, 6291456 },
	};
	int *step = shared_alloc(PAGE);
	size_t i;
	pid_t pid;

	region_create(&r, "hole", GiB(1));
	fill(MiB(16), 1);
	pid = xfork();
	for (i = 0; i < ARRAY_SIZE(holes); i++) {
		if (!pid) {
			check(MiB(16), (int)i + 1, 0, 0);
			STORE(step, (int)i * 2 + 1);
			WAIT_FOR(LOAD(step) == (int)i * 2 + 2, 30);
			check(MiB(16), (int)i + 1, holes[i][0], holes[i][1]);
			STORE(step, -(int)i - 1);
			WAIT_FOR(LOAD(step) != -(int)i - 1, 30);
			continue;
		}
		WAIT_FOR(LOAD(step) == (int)i * 2 + 1, 30);
		CHECK_OK(punch(holes[i][0], holes[i][1]));
		check(MiB(16), (int)i + 1, holes[i][0], holes[i][1]);
		STORE(step, (int)i * 2 + 2);
		WAIT_FOR(LOAD(step) == -(int)i - 1, 30);
		fill(MiB(16), (int)i + 2);
		STORE(step, 0);
	}
	if (!pid)
		_exit(0);
	JOIN(pid);
}

static void hole_frees_memory(void)
{
	long before = meminfo_kb("Shmem"), full;
	size_t size = debug_kernel() ? MiB(16) : MiB(64);
	struct stat st;

	region_create(&r, "frees", GiB(1));
	fill(size, 1);
	full = meminfo_kb("Shmem");
	CHECK(full - before >= (long)(size >> 10) - 512, "%zu MiB count as %ld kB", size >> 20,
	      full - before);
	CHECK_OK(fstat(r.fd, &st));
	CHECK(st.st_blocks * 512 >= (long)size, "st_blocks says %ld bytes", (long)st.st_blocks * 512);
	CHECK_OK(punch(0, size));
	CHECK(meminfo_kb("Shmem") - before < 1024, "the hole's memory is not free");
	CHECK_OK(fstat(r.fd, &st));
	CHECK(st.st_blocks * 512 <= (long)MiB(1), "st_blocks says %ld bytes", (long)st.st_blocks * 512);
}

/* fallocate() takes the memory now; nobody gets SIGBUS later. */
static void allocate(void)
{
	struct stat st;
	long faults;
	size_t i;

	region_create(&r, "allocate", GiB(1));
	CHECK_OK(fallocate(r.fd, 0, (off_t)MiB(10), (off_t)MiB(20)));
	CHECK_OK(fstat(r.fd, &st));
	CHECK(st.st_blocks * 512 >= (long)MiB(20), "st_blocks says %ld bytes", (long)st.st_blocks * 512);
	faults = minor_faults();
	for (i = MiB(10); i < MiB(30); i += PAGE)
		r.addr[i] = 1;
	faults = minor_faults() - faults;
	diag("%ld faults for 20 MiB", faults);
	CHECK(fallocate(r.fd, 0, 0, (off_t)GiB(2)) == -1, "allocated over the region's end");
}

static void truncation(void)
{
	struct stat st;

	region_create(&r, "truncate", GiB(1));
	r.addr[MiB(5)] = 5;
	CHECK_OK(fstat(r.fd, &st));
	CHECK_EQ(st.st_size, GiB(1));
	CHECK_ERR(ftruncate(r.fd, 0), EINVAL);
	CHECK_ERR(ftruncate(r.fd, (off_t)GiB(2)), EINVAL);
	CHECK_ERR(ftruncate(r.fd, (off_t)MiB(1)), EINVAL);
	CHECK_ERR(truncate(r.path, (off_t)PAGE), EINVAL);
	CHECK_EQ(r.addr[MiB(5)], 5);
	CHECK_EQ(r.addr[MiB(900)], 0);
	CHECK_OK(fstat(r.fd, &st));
	CHECK_EQ(st.st_size, GiB(1));
}

static void by_madvise(void)
{
	region_create(&r, "remove", GiB(1));
	fill(MiB(4), 1);
	CHECK_OK(madvise(r.addr + MiB(1), MiB(1), MADV_REMOVE));
	check(MiB(4), 1, MiB(1), MiB(1));
}

/* A reader is no owner: it cannot take memory away from others. */
static void reader_cannot_punch(void)
{
	struct region own;

	region_create(&r, "keep", GiB(1));
	fill(MiB(4), 1);
	region_detach(&r);
	region_attach(&own, "keep", O_RDONLY, PROT_READ);
	CHECK(fallocate(own.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)MiB(4)) == -1,
	      "a read-only descriptor punches");
	CHECK(madvise(own.addr, MiB(4), MADV_REMOVE) == -1, "MADV_REMOVE works for a reader");
	r = own;
	check(MiB(4), 1, 0, 0);
}

/* A region passed by descriptor, its name gone before anybody has mapped it, as a
 * broker hands it out. */
static void nameless(void)
{
	char path[64];
	struct mshare_info_text info;
	int ro;

	region_create(&r, "nameless", GiB(1));
	region_unlink(&r);
	CHECK_OK(munmap(r.addr, r.size));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", r.fd);
	ro = (int)CHECK_OK(open(path, O_RDONLY | O_CLOEXEC));
	CHECK_EQ(pread(ro, &info, sizeof(info), 0), sizeof(info));
	CHECK_EQ(info.start, (uintptr_t)r.addr);
	CHECK_OK(fallocate(r.fd, 0, 0, (off_t)MiB(1)));
	CHECK(mmap(r.addr, r.size, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, ro,
		   0) == r.addr, "mmap: %s", strerror(errno));
	CHECK_EQ(r.addr[0], 0);
	CHECK_ERR(fallocate(ro, 0, 0, (off_t)MiB(1)), EBADF);
}

static const struct test_case cases[] = {
	{ .name = "holes are zero for all attachers", .run = hole },
	{ .name = "a hole's memory is free", .run = hole_frees_memory },
	{ .name = "fallocate takes memory", .run = allocate },
	{ .name = "truncation is refused", .run = truncation },
	{ .name = "MADV_REMOVE", .run = by_madvise },
	{ .name = "a reader cannot punch", .run = reader_cannot_punch },
	{ .name = "a region without a name", .run = nameless },
};

TEST_MAIN(cases)
