/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What every backend promises, run for the one that is named on the command line: sized and sealed
 * files, memory that comes and goes, refusals that leave nothing behind, read-only descriptors that
 * stay so.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/backend.h"
#include "pool.h"

#define GIB (1ull << 30)
#define SIX_MIB (6ull << 20)

static const struct pando__backend *b;
static uint64_t base;

static uint64_t allocated(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static int make(uint64_t size)
{
	int fd = -1;

	assert_int_equal(b->create("test", base, size, &fd), 0);
	assert_true(fd >= 0);
	return fd;
}

static unsigned int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Runs fn(fd) in a child as a user without rights; returns its exit code, or 0 when not root. */
static int as_nobody(int (*fn)(int fd), int fd)
{
	int status;
	pid_t pid;

	if (geteuid() != 0)
		return 0;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(setgroups(0, NULL) || setgid(65534) || setuid(65534) ? 99 : fn(fd));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void is_sized_and_sealed(void **state)
{
	/* msharefs has no seals; its regions never change their size. */
	const bool sealed = b->id != PANDO_BACKEND_MSHARE;
	const int refusal = sealed ? EPERM : EINVAL;
	int fd = make(2 * GIB), seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	(void)state;
	assert_int_equal(fstat(fd, &st), 0);
	assert_true((uint64_t)st.st_size == 2 * GIB);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(st.st_blocks, 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	if (sealed)
		assert_int_equal(seals & (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL | F_SEAL_WRITE),
				 F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
	assert_int_equal(ftruncate(fd, (off_t)GIB), -1);
	assert_int_equal(errno, refusal);
	assert_int_equal(ftruncate(fd, (off_t)(3 * GIB)), -1);
	assert_int_equal(errno, refusal);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_int_equal(errno, refusal);
	assert_int_equal(fallocate(fd, 0, (off_t)(2 * GIB), (off_t)SIX_MIB), -1);
	close(fd);
}

static void memory_comes_and_goes(void **state)
{
	int fd = make(GIB);
	char *p;

	(void)state;
	assert_int_equal(b->commit(fd, 0, SIX_MIB), 0);
	assert_int_equal(allocated(fd), SIX_MIB);
	assert_int_equal(b->commit(fd, 0, SIX_MIB), 0); /* again: no harm */
	assert_int_equal(allocated(fd), SIX_MIB);
	assert_int_equal(b->map(fd, base, GIB, false), 0);
	p = (char *)(uintptr_t)base; /* NOLINT: an address is what regions are about */
	memset(p, 0x5a, SIX_MIB);
	assert_int_equal(b->decommit(fd, SIX_MIB / 3 * 2, SIX_MIB / 3), 0);
	assert_int_equal(b->decommit(fd, SIX_MIB / 3 * 2, SIX_MIB / 3), 0);
	assert_int_equal(b->decommit(fd, SIX_MIB, 0), 0);
	assert_int_equal(allocated(fd), SIX_MIB / 3 * 2);
	assert_int_equal(p[SIX_MIB / 3 * 2 - 1], 0x5a);
	assert_int_equal(b->commit(fd, SIX_MIB / 3 * 2, SIX_MIB / 3), 0);
	assert_int_equal(p[SIX_MIB / 3 * 2], 0);
	assert_int_equal(p[SIX_MIB - 1], 0);
	assert_int_equal(p[SIX_MIB / 3 * 2 - 1], 0x5a);
	assert_int_equal(b->decommit(fd, 0, GIB), 0);
	assert_int_equal(allocated(fd), 0);
	munmap(p, GIB);
	close(fd);
}

static void too_much_is_refused_with_both_numbers(void **state)
{
	int fd = make(1024 * GIB);
	struct pando__backend_probe probe;
	char needed[32];
	unsigned long long have = 0;
	const char *at;

	(void)state;
	assert_int_equal(b->commit(fd, 0, 2ull << 20), 0);
	b->probe(&probe);
	assert_true(probe.available < 512 * GIB);
	assert_int_equal(b->commit(fd, 0, 1024 * GIB), -ENOMEM);
	assert_int_equal(allocated(fd), 2ull << 20);
	snprintf(needed, sizeof(needed), "(%llu bytes)", 1024ull * GIB);
	at = strstr(pando_strerror_last(), needed);
	assert_non_null(at);
	at = strchr(at + 1, '(');
	assert_non_null(at);
	assert_int_equal(sscanf(at, "(%llu bytes)", &have), 1);
	assert_true(have <= probe.available + GIB);
	close(fd);
}

static void ranges_are_checked(void **state)
{
	int fd = make(GIB);

	(void)state;
	assert_int_equal(b->commit(fd, 1, b->page_size), -EINVAL);
	assert_int_equal(b->commit(fd, 0, b->page_size - 1), -EINVAL);
	assert_int_equal(b->commit(fd, UINT64_MAX - b->page_size + 1, 2ull * b->page_size),
			 -EINVAL);
	assert_int_equal(b->commit(fd, INT64_MAX / b->page_size * b->page_size, b->page_size),
			 -EINVAL);
	assert_int_equal(b->commit(fd, 0, 0), 0);
	assert_true(b->commit(fd, GIB, b->page_size) < 0); /* behind the end: the seal holds */
	assert_int_equal(allocated(fd), 0);
	close(fd);
}

static int reopen_for_writing(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES ? 0 : 1;
}

static void readers_stay_readers(void **state)
{
	int fd = make(GIB), ro;
	void *p = (void *)(uintptr_t)base;

	(void)state;
	assert_int_equal(b->commit(fd, 0, 2ull << 20), 0);
	ro = b->reopen_readonly(fd);
	assert_true(ro >= 0);
	assert_true(fcntl(ro, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(write(ro, "x", 1), -1);
	/* All of it at its address: msharefs refuses anything else before it looks at rights. */
	assert_true(mmap(p, GIB, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED);
	assert_int_equal(errno, EACCES);
	assert_int_equal(fallocate(ro, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 << 20), -1);
	assert_int_equal(fcntl(ro, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_int_equal(b->map(ro, base, GIB, true), 0);
	assert_int_equal(*(volatile char *)p, 0);
	assert_int_equal(mprotect(p, GIB, PROT_READ | PROT_WRITE), -1);
	assert_int_equal(errno, EACCES);
	assert_int_equal(as_nobody(reopen_for_writing, ro), 0);
	munmap(p, GIB);
	close(ro);
	close(fd);
}

static void an_address_that_is_taken(void **state)
{
	int fd = make(GIB);
	void *p = (void *)(uintptr_t)(base + GIB / 2);

	(void)state;
	assert_true(mmap(p, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			 0) == p);
	assert_int_equal(b->map(fd, base, GIB, false), -EEXIST);
	assert_int_equal(munmap(p, 4096), 0);
	assert_int_equal(b->map(fd, base, GIB, false), 0);
	assert_int_equal(munmap((void *)(uintptr_t)base, GIB), 0);
	/* Above what a process can have. */
	assert_true(b->map(fd, 1ull << 62, GIB, false) < 0);
	close(fd);
}

/*
 * A core dump would give memory to every hole that it reads. (hugetlb is left out by the kernel's
 * default.)
 */
static void is_left_out_of_core_dumps(void **state)
{
	int fd = make(GIB), left_out = 0;
	char line[256], start[32];
	bool ours = false;
	FILE *f;

	(void)state;
	assert_int_equal(b->map(fd, base, GIB, false), 0);
	snprintf(start, sizeof(start), "%" PRIx64 "-", base);
	f = fopen("/proc/self/smaps", "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (line[0] < 'A')
			ours = strncmp(line, start, strlen(start)) == 0;
		else if (line[0] >= 'a')
			ours = false;
		if (ours && strncmp(line, "VmFlags:", 8) == 0)
			left_out = strstr(line, " dd") != NULL;
	}
	fclose(f);
	assert_int_equal(left_out, b->id != PANDO_BACKEND_HUGETLB);
	munmap((void *)(uintptr_t)base, GIB);
	close(fd);
}

/* What msharefs refuses is named: a process that locks its memory. */
static int map_in_locked_memory(int fd)
{
	if (mlockall(MCL_FUTURE) != 0)
		return 1;
	if (b->map(fd, base, GIB, false) != -EOPNOTSUPP)
		return 2;
	return strstr(pando_strerror_last(), "mlockall") ? 0 : 3;
}

static void locked_memory_is_refused(void **state)
{
	int fd, status;
	pid_t pid;

	(void)state;
	if (b->id != PANDO_BACKEND_MSHARE || geteuid() != 0)
		skip();
	fd = make(GIB);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(map_in_locked_memory(fd));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(fd);
}

/*
 * A mount of 64 MiB, which only this process has: a region may be larger, what it commits may not.
 */
static int commit_in_small_mount(void)
{
	struct pando__backend_probe probe;
	int rc, fd;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("msharefs", "/sys/fs/mshare", "msharefs", 0, "size=64m"))
		return 1;
	b->probe(&probe);
	if (!probe.usable || probe.available > 64ull << 20)
		return 2;
	if (b->create("test", base, 2 * GIB, &fd) != 0 || b->commit(fd, 0, 32ull << 20) != 0)
		return 3;
	rc = b->commit(fd, 32ull << 20, 64ull << 20);
	if (rc != -ENOMEM || !strstr(pando_strerror_last(), "size="))
		return 4;
	return b->decommit(fd, 0, GIB) == 0 && b->commit(fd, 0, 64ull << 20) == 0 ? 0 : 5;
}

static void the_mounts_limit_is_an_error(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (b->id != PANDO_BACKEND_MSHARE || geteuid() != 0)
		skip();
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(commit_in_small_mount());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/*
 * Every byte that was committed can be touched by a process that maps the file, whatever else is
 * going on.
 */
static void committed_memory_never_faults_badly(void **state)
{
	int fd = make(GIB), status;
	pid_t pid;

	(void)state;
	assert_int_equal(b->commit(fd, 0, SIX_MIB), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (b->map(fd, base, GIB, false) != 0)
			_exit(1);
		for (uint64_t i = 0; i < SIX_MIB; i += 4096)
			((volatile char *)(uintptr_t)base)[i] = 1;
		/* Valgrind reads all that is mapped when a process ends: holes would get memory. */
		_exit(munmap((void *)(uintptr_t)base, GIB) == 0 ? 0 : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(allocated(fd), SIX_MIB);
	close(fd);
}

static void nothing_is_left_open(void **state)
{
	unsigned int before = open_fds();
	struct pando__backend_probe probe;
	int fd;

	(void)state;
	for (int i = 0; i < 20; i++) {
		b->probe(&probe);
		assert_true(probe.usable);
		fd = make(GIB);
		close(b->reopen_readonly(fd));
		(void)b->commit(fd, 0, 1024 * GIB);
		close(fd);
		assert_true(b->create("test", base, UINT64_MAX, &fd) < 0);
		(void)pando__backend_auto(GIB, NULL, 0);
	}
	assert_int_equal(open_fds(), before);
}

static void auto_says_why(void **state)
{
	char why[256];
	const struct pando__backend *got = pando__backend_auto(512 * GIB, why, sizeof(why));

	(void)state;
	assert_int_equal(got->id, PANDO_BACKEND_MEMFD);
	assert_non_null(strstr(why, "hugetlb"));
	assert_true(strlen(why) > 20);
	(void)pando__backend_auto(512 * GIB, why, 8); /* cut, not overrun */
	assert_true(strlen(why) < 8);
	if (b->id == PANDO_BACKEND_HUGETLB) {
		assert_ptr_equal(pando__backend_auto(2ull << 20, why, sizeof(why)), b);
		assert_null(strstr(why, "hugetlb"));
	}
	if (b->id == PANDO_BACKEND_MSHARE) { /* liked best, with nothing to say about it */
		assert_ptr_equal(pando__backend_auto(GIB, why, sizeof(why)), b);
		assert_string_equal(why, "");
	}
	assert_ptr_equal(pando__backend_find(b->id), b);
	assert_null(pando__backend_find(77));
	assert_string_equal(pando_backend_name(b->id), b->name);
	assert_null(pando_backend_name(77));
}

/* The backend of that name, memfd without one; NULL if there is none. */
static const struct pando__backend *named(const char *name)
{
	for (unsigned int i = 0; pando__backends[i]; i++)
		if (strcmp(pando__backends[i]->name, name) == 0)
			return pando__backends[i];
	return NULL;
}

static bool works(const struct pando__backend *which)
{
	struct pando__backend_probe probe;

	which->probe(&probe);
	if (!probe.usable)
		printf("skipped: %s\n", probe.why);
	return probe.usable;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(is_sized_and_sealed),
		cmocka_unit_test(memory_comes_and_goes),
		cmocka_unit_test(too_much_is_refused_with_both_numbers),
		cmocka_unit_test(ranges_are_checked),
		cmocka_unit_test(readers_stay_readers),
		cmocka_unit_test(an_address_that_is_taken),
		cmocka_unit_test(is_left_out_of_core_dumps),
		cmocka_unit_test(locked_memory_is_refused),
		cmocka_unit_test(the_mounts_limit_is_an_error),
		cmocka_unit_test(committed_memory_never_faults_badly),
		cmocka_unit_test(nothing_is_left_open),
		cmocka_unit_test(auto_says_why),
	};
	int failed;

	b = named(argc > 1 ? argv[1] : "memfd");
	if (!b)
		return 2;
	base = test_base();
	if (b->id == PANDO_BACKEND_HUGETLB && !pool_take(16))
		return 77;
	if (b->id == PANDO_BACKEND_MSHARE && !works(b))
		return 77;
	failed = cmocka_run_group_tests_name(b->name, tests, NULL, NULL);
	pool_give_back();
	return failed;
}
