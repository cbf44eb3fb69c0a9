/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando__memory_available(): what it makes of meminfo and of memory cgroups of both versions, in
 * folders that look like a machine; and, where this machine lets us, in a real group with a limit.
 */
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "backend/file.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static char root[64];

/* Writes root/path, making the folders on the way. */
static void put(const char *path, const char *text)
{
	char full[PATH_MAX];
	FILE *f;

	snprintf(full, sizeof(full), "%s%s", root, path);
	for (char *s = full + strlen(root) + 1; (s = strchr(s, '/')); s++) {
		*s = '\0';
		(void)mkdir(full, 0700);
		*s = '/';
	}
	f = fopen(full, "we");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static int machine(void **state)
{
	(void)state;
	strcpy(root, "/tmp/pando-memory-XXXXXX");
	if (!mkdtemp(root))
		return -1;
	put("/proc/meminfo",
	    "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n");
	return 0;
}

static int machine_gone(void **state)
{
	(void)state;
	return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static uint64_t available(void)
{
	return pando__memory_available_under(root);
}

#define FREE                                                                                       \
	(8 * GIB - 256 * MIB) /* what meminfo above leaves without cgroups: less 1/64 of 16 GiB */

static void without_cgroups(void **state)
{
	(void)state;
	assert_int_equal(available(), FREE);
	put("/proc/meminfo", "MemTotal: 131072 kB\nMemAvailable: 32768 kB\n");
	assert_int_equal(available(), 0);
	put("/proc/meminfo", "rubbish");
	assert_int_equal(available(), 0);
	assert_int_equal(pando__memory_available_under("/nonexistent"), 0);
}

static void version_2(void **state)
{
	(void)state;
	put("/proc/self/mountinfo",
	    "24 23 0:22 / /proc rw - proc proc rw\n"
	    "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
	put("/proc/self/cgroup", "0::/system.slice/pandod.service\n");
	put("/sys/fs/cgroup/system.slice/pandod.service/memory.max", "max\n");
	put("/sys/fs/cgroup/system.slice/pandod.service/memory.current", "1048576\n");
	assert_int_equal(available(), FREE);
	put("/sys/fs/cgroup/system.slice/pandod.service/memory.max", "1073741824\n");
	assert_int_equal(available(), GIB - MIB);
	/* The group above has less: it counts too. */
	put("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n");
	put("/sys/fs/cgroup/system.slice/memory.current", "1072693248\n");
	assert_int_equal(available(), MIB);
	/* Its cache can be dropped: all of the inactive half, half of the active one. */
	put("/sys/fs/cgroup/system.slice/memory.stat",
	    "anon 12\ninactive_file 524288000\nactive_file 2097152\n");
	assert_int_equal(available(), MIB + 524288000 + MIB);
	/* Over the limit: nothing, not a wrapped number. */
	put("/sys/fs/cgroup/system.slice/pandod.service/memory.current", "2147483648\n");
	assert_int_equal(available(), 0);
}

static void version_1(void **state)
{
	(void)state;
	put("/proc/self/mountinfo",
	    "30 31 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
	    "36 31 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n");
	put("/proc/self/cgroup", "5:cpu,cpuacct:/elsewhere\n4:memory:/job\n0::/\n");
	put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "536870912\n");
	put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1048576\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	assert_int_equal(available(), 511 * MIB);
	put("/sys/fs/cgroup/memory/job/memory.stat", "cache 9\ntotal_inactive_file 1048576\n");
	assert_int_equal(available(), 512 * MIB);
	put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
	assert_int_equal(available(), FREE);
}

/* A container: the mount shows a part of the hierarchy, or the path is outside of what is seen. */
static void mounts_that_show_a_part(void **state)
{
	(void)state;
	put("/proc/self/mountinfo",
	    "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
	put("/proc/self/cgroup", "4:memory:/docker/abc\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
	put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
	assert_int_equal(available(), 256 * MIB);
	put("/proc/self/cgroup", "4:memory:/docker/abc/inner\n");
	put("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "134217728\n");
	put("/sys/fs/cgroup/memory/inner/memory.usage_in_bytes", "0\n");
	assert_int_equal(available(), 128 * MIB);
	put("/proc/self/cgroup", "4:memory:/../other\n");
	assert_int_equal(available(), 256 * MIB);
}

static void huge_pages_have_limits_too(void **state)
{
	(void)state;
	assert_true(pando__cgroup_headroom(root, "hugetlb") == UINT64_MAX);
	put("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
	put("/proc/self/cgroup", "0::/a\n");
	put("/sys/fs/cgroup/a/hugetlb.2MB.max", "8388608\n");
	put("/sys/fs/cgroup/a/hugetlb.2MB.current", "2097152\n");
	assert_int_equal(pando__cgroup_headroom(root, "hugetlb"), 6 * MIB);
	assert_int_equal(available(), FREE);
}

static bool write_number(const char *dir, const char *name, uint64_t n)
{
	char path[PATH_MAX];
	FILE *f;
	bool ok;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "we");
	if (!f)
		return false;
	ok = fprintf(f, "%" PRIu64 "\n", n) > 0;
	return fclose(f) == 0 && ok;
}

/* In the group: a request beyond the limit is refused, and the kernel never has to kill anybody. */
static int inside(const char *dir, uint64_t limit)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_MEMFD);
	uint64_t seen;
	int fd;

	if (!write_number(dir, "cgroup.procs", (uint64_t)getpid()))
		return 2;
	seen = pando__memory_available();
	if (seen > limit || seen < limit / 2)
		return 3;
	if (b->create("test", 0, GIB, &fd) != 0)
		return 4;
	if (b->commit(fd, 0, limit) != -ENOMEM || !strstr(pando_strerror_last(), "needed"))
		return 5;
	if (b->commit(fd, 0, limit / 2) != 0)
		return 6;
	return pando__memory_available() <= limit / 2 ? 0 : 7;
}

static void in_a_real_group(void **state)
{
	static const char *const parents[] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"};
	static const char *const limits[] = {"memory.limit_in_bytes", "memory.max"};
	const uint64_t limit = 256 * MIB;
	char dir[128];

	(void)state;
	for (int i = 0; i < 2; i++) {
		int status = -1;
		pid_t pid;

		snprintf(dir, sizeof(dir), "%s/pando-test-%d", parents[i], (int)getpid());
		if (mkdir(dir, 0755) != 0)
			continue;
		if (!write_number(dir, limits[i], limit)) {
			rmdir(dir);
			continue;
		}
		pid = fork();
		if (pid == 0)
			_exit(inside(dir, limit));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		for (int tries = 0; rmdir(dir) != 0 && tries < 100; tries++)
			usleep(10000);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
			continue;
		assert_int_equal(status, 0);
		return;
	}
	print_message("no memory cgroup could be made here\n");
	skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(without_cgroups, machine, machine_gone),
		cmocka_unit_test_setup_teardown(version_2, machine, machine_gone),
		cmocka_unit_test_setup_teardown(version_1, machine, machine_gone),
		cmocka_unit_test_setup_teardown(mounts_that_show_a_part, machine, machine_gone),
		cmocka_unit_test_setup_teardown(huge_pages_have_limits_too, machine, machine_gone),
		cmocka_unit_test(in_a_real_group),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
