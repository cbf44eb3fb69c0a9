// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a mapping of a region does not support, since its page tables are not the
 * process's own: each attempt is refused with its documented error, and the
 * region is whole afterwards, in this process and in another.
 */
#include "harness.h"

#include <linux/userfaultfd.h>
#include <linux/mempolicy.h>
#include <sys/ioctl.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

static struct region r;

static void fill(void)
{
	size_t i;

	for (i = 0; i < r.size; i += MiB(64))
		*(size_t *)(r.addr + i) = i + 1;
}

static void whole(void)
{
	size_t i;

	for (i = 0; i < r.size; i += MiB(64))
		CHECK_EQ(*(volatile size_t *)(r.addr + i), i + 1);
}

/* Runs the attempts on a region of 2 GiB that another process has mapped too. */
static void attempts(void (*test)(void))
{
	int *step = shared_alloc(PAGE);
	pid_t pid;

	region_create(&r, "whole", GiB(2));
	fill();
	pid = xfork();
	if (!pid) {
		whole();
		STORE(step, 1);
		WAIT_FOR(LOAD(step) == 2, 50);
		whole();
		_exit(0);
	}
	WAIT_FOR(LOAD(step) == 1, 30);
	test();
	whole();
	CHECK_EQ(try_write(r.addr + MiB(3), 1), 0);
	STORE(step, 2);
	JOIN(pid);
	region_unlink(&r);
	region_detach(&r);
}

static void try_mprotect(void)
{
	CHECK_ERR(mprotect(r.addr, r.size, PROT_READ), EINVAL);
	CHECK_ERR(mprotect(r.addr, r.size, PROT_NONE), EINVAL);
	CHECK_ERR(mprotect(r.addr, PAGE, PROT_READ), EINVAL);
	CHECK_ERR(mprotect(r.addr + GiB(1), GiB(1), PROT_READ), EINVAL);
	CHECK(mprotect(r.addr, r.size, PROT_READ | PROT_EXEC) == -1, "mprotect to PROT_EXEC works");
	CHECK_ERR(syscall(SYS_pkey_mprotect, r.addr, r.size, PROT_READ, -1), EINVAL);
}

static void try_mremap(void)
{
	char *to = fresh_address(GiB(4));
	int move = MREMAP_MAYMOVE | MREMAP_FIXED;
	char *page = mmap(to + GiB(3), PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED, "no page");
	/* grow, shrink, move, duplicate, leave behind */
	CHECK_ERR(mremap(r.addr, r.size, r.size + GiB(1), MREMAP_MAYMOVE), EFAULT);
	CHECK_ERR(mremap(r.addr, r.size, r.size + GiB(1), 0), EFAULT);
	CHECK_ERR(mremap(r.addr, r.size, GiB(1), 0), EINVAL);
	CHECK_ERR(mremap(r.addr, r.size, r.size, move, to), EINVAL);
	CHECK_ERR(mremap(r.addr, GiB(1), GiB(1), move, to), EINVAL);
	CHECK_ERR(mremap(r.addr, PAGE, PAGE, move, to), EINVAL);
	CHECK(mremap(r.addr, 0, r.size, MREMAP_MAYMOVE) == MAP_FAILED, "mremap duplicates");
	CHECK(mremap(r.addr, r.size, r.size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0) == MAP_FAILED,
	      "mremap leaves behind");
	/* and something else on top of it */
	CHECK_ERR(mremap(page, PAGE, PAGE, move, r.addr + MiB(5)), EINVAL);
	CHECK_EQ(try_read(to), SIGSEGV);
}

static void try_partial_munmap(void)
{
	CHECK_ERR(munmap(r.addr, PAGE), EINVAL);
	CHECK_ERR(munmap(r.addr + PAGE, PAGE), EINVAL);
	CHECK_ERR(munmap(r.addr, GiB(1)), EINVAL);
	CHECK_ERR(munmap(r.addr + GiB(1), GiB(1)), EINVAL);
	CHECK_ERR(munmap(r.addr + r.size - PAGE, PAGE * 2), EINVAL);
}

static void try_overlay(void)
{
	size_t i, size[] = { PAGE, MiB(2), GiB(1) };
	struct region other;

	for (i = 0; i < 3; i++) {
		CHECK_ERR(mmap(r.addr, size[i], PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), EINVAL);
		CHECK_ERR(mmap(r.addr + GiB(1), size[i] - PAGE * (i > 0), PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), EINVAL);
	}
	CHECK_ERR(mmap(r.addr, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		       0), EEXIST);
	memfd_create_region(&other, MiB(2));
	CHECK_ERR(mmap(r.addr + MiB(2), MiB(2), PROT_READ, MAP_SHARED | MAP_FIXED, other.fd, 0),
		  EINVAL);
}

/* Replacing the whole mapping is unmapping it. */
static void replace_all(void)
{
	region_create(&r, "replaced", GiB(1));
	r.addr[0] = 1;
	CHECK(mmap(r.addr, r.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		   0) == r.addr, "mmap: %s", strerror(errno));
	CHECK_EQ(r.addr[0], 0);
	r.addr[0] = 2;
	CHECK(mmap(r.addr, r.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r.fd, 0) == r.addr,
	      "mmap over it: %s", strerror(errno));
	CHECK_EQ(r.addr[0], 1);
	CHECK(mmap(r.addr, r.size, PROT_READ, MAP_SHARED | MAP_FIXED, r.fd, 0) == r.addr,
	      "mmap over itself: %s", strerror(errno));
	CHECK_EQ(r.addr[0], 1);
	CHECK_EQ(try_write(r.addr, 5), SIGSEGV);
}

static void try_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register reg = { .range = { (uintptr_t)r.addr, r.size } };
	static const int modes[] = { UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, 4,
				     UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	size_t i;

	if (fd < 0)
		skip("no userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api)) {
		diag("no UFFD_FEATURE_WP_ASYNC: %s", strerror(errno));
		close(fd);
		fd = (int)CHECK_OK(syscall(SYS_userfaultfd, O_CLOEXEC));
		api = (struct uffdio_api){ .api = UFFD_API };
		CHECK_OK(ioctl(fd, UFFDIO_API, &api));
	}
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		reg.mode = (uint64_t)modes[i];
		reg.range.len = r.size;
		CHECK_ERR(ioctl(fd, UFFDIO_REGISTER, &reg), EINVAL);
		reg.range.len = MiB(2);
		CHECK_ERR(ioctl(fd, UFFDIO_REGISTER, &reg), EINVAL);
	}
	close(fd);
}

static void try_policy(void)
{
	unsigned long node0 = 1;

	CHECK_ERR(syscall(SYS_mbind, r.addr, r.size, MPOL_BIND, &node0, 64, 0), EINVAL);
	CHECK_ERR(syscall(SYS_mbind, r.addr, MiB(2), MPOL_PREFERRED, &node0, 64, 0), EINVAL);
	CHECK_ERR(syscall(SYS_mbind, r.addr, r.size, MPOL_INTERLEAVE, &node0, 64, MPOL_MF_MOVE),
		  EINVAL);
}

/* Another order of the pages would need tables of its own. (The order as it is, of
 * the whole, is a no-op that the system call takes for a new mapping.) */
static void try_remap_file_pages(void)
{
	CHECK_ERR(syscall(SYS_remap_file_pages, r.addr, MiB(2), 0, 512, 0), EINVAL);
	CHECK_ERR(syscall(SYS_remap_file_pages, r.addr + MiB(2), PAGE, 0, 0, 0), EINVAL);
	CHECK_ERR(syscall(SYS_remap_file_pages, r.addr, GiB(1), 0, GiB(1) / PAGE, 0), EINVAL);
}

/* Locked memory would have to be locked for all, so nobody is told that it is. */
static void try_mlock(void)
{
	long locked;

	CHECK_ERR(mlock(r.addr, r.size), EOPNOTSUPP);
	CHECK_ERR(mlock(r.addr, PAGE), EOPNOTSUPP);
	CHECK_ERR(syscall(SYS_mlock2, r.addr, r.size, 1), EOPNOTSUPP);
	CHECK_ERR(mlockall(MCL_CURRENT), EOPNOTSUPP);
	CHECK_ERR(mlockall(MCL_CURRENT | MCL_FUTURE), EOPNOTSUPP);
	locked = status_kb(0, "VmLck");
	CHECK(locked == 0, "VmLck is %ld kB", locked);
	CHECK_OK(munlock(r.addr, r.size));
	CHECK_OK(munlockall());
}

/* What is mapped in future: the region, if it can be mapped then, is not called
 * locked. */
static void try_mlockall(void)
{
	void *p;

	CHECK_OK(munmap(r.addr, r.size));
	CHECK_OK(mlockall(MCL_CURRENT | MCL_FUTURE));
	p = mmap(r.addr, r.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, r.fd, 0);
	diag("mmap after mlockall: %s", p == MAP_FAILED ? strerror(errno) : "works");
	CHECK(status_kb(0, "VmLck") < (long)KiB(512), "VmLck is %ld kB", status_kb(0, "VmLck"));
	CHECK_OK(munlockall());
	if (p == MAP_FAILED)
		region_map(&r, PROT_READ | PROT_WRITE);
}

static void exec(void)
{
	int fd = r.fd;

	CHECK_OK(munmap(r.addr, r.size));
	CHECK_ERR(mmap(r.addr, r.size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0), EPERM);
	region_map(&r, PROT_READ | PROT_WRITE);
	CHECK(mprotect(r.addr, r.size, PROT_READ | PROT_WRITE | PROT_EXEC) == -1,
	      "the region became executable");
}

#define ATTEMPT(test) \
	static void do_##test(void) { attempts(test); }

ATTEMPT(try_mprotect)
ATTEMPT(try_mremap)
ATTEMPT(try_partial_munmap)
ATTEMPT(try_overlay)
ATTEMPT(try_userfaultfd)
ATTEMPT(try_policy)
ATTEMPT(try_remap_file_pages)
ATTEMPT(try_mlock)
ATTEMPT(try_mlockall)
ATTEMPT(exec)

static const struct test_case cases[] = {
	{ .name = "mprotect", .run = do_try_mprotect },
	{ .name = "mremap: grow, shrink, move, duplicate, leave behind", .run = do_try_mremap },
	{ .name = "partial munmap", .run = do_try_partial_munmap },
	{ .name = "MAP_FIXED over a part", .run = do_try_overlay },
	{ .name = "MAP_FIXED over the whole", .run = replace_all },
	{ .name = "userfaultfd, also asynchronous", .run = do_try_userfaultfd },
	{ .name = "mbind", .run = do_try_policy },
	{ .name = "remap_file_pages", .run = do_try_remap_file_pages },
	{ .name = "mlock and mlockall", .run = do_try_mlock },
	{ .name = "mlockall of what comes", .run = do_try_mlockall },
	{ .name = "no execution", .run = do_exec },
};

TEST_MAIN(cases)
