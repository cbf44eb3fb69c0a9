// SPDX-License-Identifier: GPL-2.0-only
/*
 * Wrong addresses, sizes and flags: each has its error, and leaves a file that
 * can still be established properly, or a region that is as it was.
 */
#include "harness.h"

static int make(char *path, size_t size, const char *name)
{
	region_path(path, size, name);
	return (int)CHECK_OK(open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
}

static long map(int fd, char *addr, size_t size, int prot, int flags, off_t off)
{
	void *p = mmap(addr, size, prot, flags, fd, off);

	return p == MAP_FAILED ? -1 : 0;
}

#define RW (PROT_READ | PROT_WRITE)
#define FIXED (MAP_SHARED | MAP_FIXED_NOREPLACE)

static void first_mmap(void)
{
	char path[256], *at = fresh_address(GiB(2));
	struct mshare_info_text info;
	int fd = make(path, sizeof(path), "first");

	CHECK_ERR(map(fd, at + PAGE, GiB(1), RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(fd, at + MiB(2), GiB(1), RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(fd, at, PAGE, RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(fd, at, GiB(1) - PAGE, RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(fd, at, GiB(1) + 1, RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(fd, at, 0, RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(fd, at, GiB(1), RW, FIXED, (off_t)PAGE), EINVAL);
	CHECK_ERR(map(fd, at, GiB(1), RW, FIXED, (off_t)GiB(1)), EINVAL);
	CHECK_ERR(map(fd, at, GiB(1), RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0), EINVAL);
	CHECK_ERR(map(fd, at, GiB(1), RW | PROT_EXEC, FIXED, 0), EPERM);
	CHECK_EQ(map(fd, at, GiB(1), RW, FIXED, 0), 0);
	CHECK_EQ(read(fd, &info, sizeof(info)), sizeof(info));
	CHECK_EQ(info.start, (uintptr_t)at);
	CHECK_EQ(info.size, GiB(1));
	at[GiB(1) - 1] = 1;
	CHECK_OK(unlink(path));
}

static void later_mmap(void)
{
	char *other = fresh_address(GiB(4));
	struct region r;
	int ro;

	region_create(&r, "later", GiB(2));
	r.addr[5] = 55;
	CHECK_ERR(map(r.fd, other, GiB(2), RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(r.fd, other, GiB(2), RW, MAP_SHARED, 0), EINVAL);
	CHECK_OK(munmap(r.addr, r.size));
	CHECK_ERR(map(r.fd, other, GiB(2), RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(r.fd, r.addr, GiB(1), RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(r.fd, r.addr, GiB(3), RW, FIXED, 0), EINVAL);
	CHECK_ERR(map(r.fd, r.addr + GiB(1), GiB(1), RW, FIXED, (off_t)GiB(1)), EINVAL);
	CHECK_ERR(map(r.fd, r.addr, GiB(2), RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0), EINVAL);
	CHECK_ERR(map(r.fd, r.addr, GiB(2), PROT_READ | PROT_EXEC, FIXED, 0), EPERM);
	ro = (int)CHECK_OK(open(r.path, O_RDONLY | O_CLOEXEC));
	CHECK_ERR(map(ro, r.addr, GiB(2), RW, FIXED, 0), EACCES);
	CHECK_ERR(map(ro, r.addr, GiB(2), PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, 0), EINVAL);
	region_map(&r, RW);
	CHECK_EQ(r.addr[5], 55);
	region_unlink(&r);
}

/* Who may not write may not decide where the region lies. */
static void reader_cannot_establish(void)
{
	char path[256], *at = fresh_address(GiB(1));
	int fd = make(path, sizeof(path), "reader"), ro;

	ro = (int)CHECK_OK(open(path, O_RDONLY | O_CLOEXEC));
	CHECK_ERR(map(ro, at, GiB(1), PROT_READ, FIXED, 0), EACCES);
	CHECK_EQ(map(fd, at, GiB(1), PROT_READ, FIXED, 0), 0);
	CHECK_OK(munmap(at, GiB(1)));
	CHECK_EQ(map(ro, at, GiB(1), PROT_READ, FIXED, 0), 0);
	CHECK_EQ(at[0], 0);
	CHECK_OK(unlink(path));
}

/* Before the first mmap() there is nothing to tell: start and size are 0. */
static void read_before_mmap(void)
{
	struct mshare_info_text info = { 1, 1 };
	char path[256], small[4];
	int fd = make(path, sizeof(path), "early");

	CHECK_EQ(pread(fd, &info, sizeof(info), 0), sizeof(info));
	CHECK_EQ(info.start, 0);
	CHECK_EQ(info.size, 0);
	CHECK_ERR(syscall(SYS_pread64, fd, 8, sizeof(info), 0), EFAULT);
	CHECK(pread(fd, small, sizeof(small), 0) <= (ssize_t)sizeof(small), "read too much");
	CHECK_OK(unlink(path));
}

static void file_operations(void)
{
	struct region r;
	char byte = 1;

	region_create(&r, "operations", GiB(1));
	CHECK(write(r.fd, &byte, 1) == -1, "write() works");
	CHECK(pwrite(r.fd, &byte, 1, 0) == -1, "pwrite() works");
	CHECK_ERR(open(r.path, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	CHECK_OK(unlink(r.path));
	CHECK_ERR(open(r.path, O_RDWR), ENOENT);
	CHECK_ERR(unlink(r.path), ENOENT);
}

static void directory_mmap(void)
{
	char path[256];
	int fd;

	region_path(path, sizeof(path), "dir");
	CHECK_OK(mkdir(path, 0700));
	fd = (int)CHECK_OK(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	CHECK_ERR(map(fd, fresh_address(GiB(1)), GiB(1), PROT_READ, FIXED, 0), ENODEV);
	close(fd);
	CHECK_OK(rmdir(path));
	fd = (int)CHECK_OK(open(mshare_root(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	CHECK_ERR(map(fd, fresh_address(GiB(1)), GiB(1), PROT_READ, FIXED, 0), ENODEV);
}

/* Something else is already there. */
static void address_taken(void)
{
	struct region r;
	char *p;

	region_create(&r, "taken", GiB(1));
	region_detach(&r);
	p = mmap(r.addr + MiB(512), PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(p == r.addr + MiB(512), "cannot place a page");
	*p = 9;
	r.fd = (int)CHECK_OK(open(r.path, O_RDWR | O_CLOEXEC));
	CHECK_ERR(map(r.fd, r.addr, r.size, RW, FIXED, 0), EEXIST);
	/* A mere wish for the address must not end elsewhere. */
	CHECK_ERR(map(r.fd, r.addr, r.size, RW, MAP_SHARED, 0), EEXIST);
	CHECK_ERR(map(r.fd, NULL, r.size, RW, MAP_SHARED, 0), EEXIST);
	CHECK_EQ(*p, 9);
	region_unlink(&r);
}

/* The published example maps without MAP_FIXED. */
static void hint_is_enough(void)
{
	struct mshare_info_text info;
	char path[256], *at = fresh_address(GiB(1));
	int fd = make(path, sizeof(path), "hint");

	CHECK(mmap(at, GiB(1), RW, MAP_SHARED, fd, 0) == at, "first mmap: %s", strerror(errno));
	CHECK_EQ(read(fd, &info, sizeof(info)), sizeof(info));
	CHECK_EQ(info.start, (uintptr_t)at);
	CHECK_OK(munmap(at, GiB(1)));
	CHECK(mmap(at, GiB(1), RW, MAP_SHARED, fd, 0) == at, "second mmap: %s", strerror(errno));
	CHECK_OK(unlink(path));
}

/* Who does not care gets an aligned address, the creator any, the others his. */
static void no_address(void)
{
	struct mshare_info_text info;
	char path[256], *at;
	int fd = make(path, sizeof(path), "anywhere");

	at = mmap(NULL, GiB(1), RW, MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED, "first mmap: %s", strerror(errno));
	CHECK_EQ((uintptr_t)at % mshare_align(), 0);
	CHECK_EQ(read(fd, &info, sizeof(info)), sizeof(info));
	CHECK_EQ(info.start, (uintptr_t)at);
	at[7] = 7;
	CHECK_OK(munmap(at, GiB(1)));
	CHECK(mmap(NULL, GiB(1), RW, MAP_SHARED, fd, 0) == at, "second mmap: %s", strerror(errno));
	CHECK_EQ(at[7], 7);
	CHECK_OK(unlink(path));
}

/* With five levels of page tables, a program that asks for more than 47 bits gets 56. */
static char *end_of_addresses(void)
{
	static char text[65536];

	CHECK(read_text("/proc/cpuinfo", text, sizeof(text)) > 0, "no /proc/cpuinfo");
	return (char *)(1ul << (strstr(text, " la57") ? 56 : 47));
}

static void beyond_address_space(void)
{
	char path[256];
	int fd = make(path, sizeof(path), "beyond");
	char *top = end_of_addresses();

	CHECK(map(fd, top - GiB(1), GiB(2), RW, FIXED, 0) == -1, "mapped over the end");
	CHECK(map(fd, (char *)-GiB(1), GiB(1), RW, FIXED, 0) == -1, "mapped kernel addresses");
	CHECK(map(fd, fresh_address(GiB(1)), 1ul << 63, RW, FIXED, 0) == -1, "mapped 8 EiB");
	CHECK(map(fd, NULL, GiB(1), RW, FIXED, 0) == -1, "mapped at 0");
	CHECK_OK(unlink(path));
}

/* Two creators race: one address wins, the other is told. */
static void two_first_mmaps(void)
{
	char *a = fresh_address(GiB(1)), *b = fresh_address(GiB(1));
	char path[256];
	int round, *go = shared_alloc(PAGE), won = 0;

	for (round = 1; round <= 20; round++) {
		int fd = make(path, sizeof(path), "race");
		pid_t pid = xfork();

		if (!pid) {
			while (LOAD(go) != round)
				sched_yield();
			_exit(map(fd, b, GiB(1), RW, FIXED, 0) ? errno == EINVAL ? 0 : 2 : 1);
		}
		STORE(go, round);
		won = map(fd, a, GiB(1), RW, FIXED, 0) == 0;
		CHECK(won || errno == EINVAL, "the loser's errno is %d", errno);
		CHECK_EQ(wait_status(pid), !won);
		if (won)
			munmap(a, GiB(1));
		close(fd);
		CHECK_OK(unlink(path));
	}
}

static const struct test_case cases[] = {
	{ .name = "first mmap: odd address, size, offset, flags", .run = first_mmap },
	{ .name = "later mmap: another address, size, rights", .run = later_mmap },
	{ .name = "a reader cannot establish a region", .run = reader_cannot_establish },
	{ .name = "read() before the first mmap", .run = read_before_mmap },
	{ .name = "write, create twice, open nothing", .run = file_operations },
	{ .name = "mmap of a directory", .run = directory_mmap },
	{ .name = "the address is taken", .run = address_taken },
	{ .name = "an address without MAP_FIXED", .run = hint_is_enough },
	{ .name = "no address", .run = no_address },
	{ .name = "beyond the address space", .run = beyond_address_space },
	{ .name = "two processes establish at once", .run = two_first_mmaps },
};

TEST_MAIN(cases)
