// SPDX-License-Identifier: GPL-2.0-only
/*
 * Control groups: whoever touches a page first is charged for it, as on tmpfs; a
 * group's limit holds; and when the OOM killer takes an attacher, of either kind,
 * nobody else loses anything.
 */
#include "harness.h"

#include <sys/ptrace.h>

static struct region r;

static void touch(size_t from, size_t size, bool write)
{
	size_t i;

	for (i = from; i < from + size; i += PAGE) {
		if (write)
			r.addr[i] = 1;
		else
			(void)*(volatile char *)(r.addr + i);
	}
}

static pid_t toucher(const char *group_name, size_t from, size_t size, bool write)
{
	pid_t pid = xfork();

	if (!pid) {
		cgroup_enter(group_name);
		touch(from, size, write);
		_exit(0);
	}
	return pid;
}

static void charge(void)
{
	long a, b;

	cgroup_make("a");
	cgroup_make("b");
	region_create(&r, "charge", GiB(1));
	JOIN(toucher("a", 0, MiB(32), true));
	a = cgroup_get("a", "memory.current");
	JOIN(toucher("b", 0, MiB(32), false));
	JOIN(toucher("b", MiB(32), MiB(8), false));
	b = cgroup_get("b", "memory.current");
	diag("charged: writer %ld kB, reader of new memory %ld kB", a >> 10, b >> 10);
	CHECK(a >= (long)MiB(32) && a < (long)MiB(36), "the first toucher is charged %ld kB", a >> 10);
	CHECK(b >= (long)MiB(8) && b < (long)MiB(12), "the second is charged %ld kB", b >> 10);
	CHECK(cgroup_event("a", "memory.stat", "shmem") >= (long)MiB(32), "it does not count as shmem");
	CHECK_OK(fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)MiB(32)));
	WAIT_FOR(cgroup_get("a", "memory.current") < (long)MiB(2), 10);
	region_unlink(&r);
	region_detach(&r);
	cgroup_remove("a");
	cgroup_remove("b");
}

/* With swap there is no need to kill anybody: the group's own pages go out. */
static void limit_swaps(void)
{
	size_t i, size = group() == QUICK ? MiB(24) : MiB(48);
	int swap = swap_add(MiB(128));
	char limit[24];

	cgroup_make("limit");
	snprintf(limit, sizeof(limit), "%zu", size / 3);
	cgroup_set("limit", "memory.max", limit);
	region_create(&r, "limit", GiB(1));
	JOIN(toucher("limit", 0, size, true));
	diag("oom_kill %ld, current %ld kB", cgroup_event("limit", "memory.events", "oom_kill"),
	     cgroup_get("limit", "memory.current") >> 10);
	CHECK_EQ(cgroup_event("limit", "memory.events", "oom_kill"), 0);
	CHECK(cgroup_get("limit", "memory.current") <= (long)(size / 3), "over the limit");
	cgroup_set("limit", "memory.max", "max");
	for (i = 0; i < size; i += PAGE)
		CHECK_EQ(r.addr[i], 1);
	region_unlink(&r);
	region_detach(&r);
	cgroup_remove("limit");
	swap_remove(swap);
}

/* Without swap the toucher dies; who looks on from outside does not. */
static void oom_kill(int open_flags, bool write, const char *name)
{
	size_t i;
	pid_t pid;

	cgroup_make("oom");
	cgroup_set("oom", "memory.max", "16M");
	cgroup_set("oom", "memory.swap.max", "0");
	region_create(&r, name, GiB(1));
	memset(r.addr + MiB(512), 7, MiB(4));
	pid = xfork();
	if (!pid) {
		cgroup_enter("oom");
		region_detach(&r);
		region_attach(&r, name, open_flags, write ? PROT_READ | PROT_WRITE : PROT_READ);
		touch(0, MiB(64), write);
		_exit(0);
	}
	JOIN_KILLED(pid, SIGKILL);
	CHECK(cgroup_event("oom", "memory.events", "oom_kill") >= 1, "nobody was OOM-killed");
	for (i = 0; i < MiB(4); i += PAGE)
		CHECK_EQ(r.addr[MiB(512) + i], 7);
	r.addr[0] = 3;
	CHECK_EQ(r.addr[0], 3);
	region_unlink(&r);
	region_detach(&r);
	cgroup_remove("oom");
}

static void oom_kill_writer(void)
{
	oom_kill(O_RDWR, true, "oomwriter");
}

static void oom_kill_reader(void)
{
	oom_kill(O_RDONLY, false, "oomreader");
}

/* The victim holds both the region and memory of its own; it is the latter that
 * exceeds the limit, and the killer's reaper goes over all its mappings. */
static void victim_with_own_memory(void)
{
	int i;

	for (i = 0; i < (group() == QUICK ? 2 : 6); i++) {
		int open_flags = i & 1 ? O_RDONLY : O_RDWR;
		pid_t pid;

		cgroup_make("own");
		cgroup_set("own", "memory.max", "16M");
		cgroup_set("own", "memory.swap.max", "0");
		region_create(&r, "own", GiB(1));
		memset(r.addr, 9, MiB(8));
		pid = xfork();
		if (!pid) {
			char *p;

			region_detach(&r);
			region_attach(&r, "own", open_flags, PROT_READ);
			touch(0, MiB(8), false);
			cgroup_enter("own");
			p = mmap(NULL, MiB(64), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			memset(p, 1, MiB(64));
			_exit(0);
		}
		JOIN_KILLED(pid, SIGKILL);
		CHECK_EQ(r.addr[MiB(8) - 1], 9);
		region_unlink(&r);
		region_detach(&r);
		cgroup_remove("own");
	}
}

/*
 * The reaper on demand: process_mrelease() of a process that is dying and held in
 * its exit by a tracer. For a reader by descriptor the kernel has cleared
 * VM_SHARED, and the reaper takes its mapping apart as if it were private.
 */
static void reaped(int open_flags, const char *name)
{
	int status, pidfd, *step = shared_alloc(PAGE);
	pid_t pid;
	long err;

	region_create(&r, name, GiB(1));
	memset(r.addr, 5, MiB(8));
	pid = xfork();
	if (!pid) {
		region_detach(&r);
		region_attach(&r, name, open_flags, PROT_READ);
		touch(0, MiB(8), false);
		STORE(step, 1);
		for (;;)
			pause();
	}
	WAIT_FOR(LOAD(step) == 1, 20);
	pidfd = (int)CHECK_OK(syscall(SYS_pidfd_open, pid, 0));
	CHECK_OK(ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACEEXIT));
	kill(pid, SIGKILL);
	CHECK(waitpid(pid, &status, __WALL) == pid, "waitpid: %s", strerror(errno));
	if (!WIFSTOPPED(status))
		skip("the tracer does not hold a killed process");
	err = syscall(SYS_process_mrelease, pidfd, 0) ? errno : 0;
	diag("process_mrelease: %s", err ? strerror((int)err) : "works");
	CHECK(err == 0, "process_mrelease: %s", strerror((int)err));
	CHECK_EQ(r.addr[0], 5);
	memset(r.addr, 6, MiB(8));
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	JOIN_KILLED(pid, SIGKILL);
	CHECK_EQ(r.addr[MiB(8) - 1], 6);
}

static void reaped_writer(void)
{
	reaped(O_RDWR, "reapedw");
}

static void reaped_reader(void)
{
	reaped(O_RDONLY, "reapedr");
}

/* A group that goes away with its pages charged: the region stays. */
static void group_removed(void)
{
	size_t i;

	cgroup_make("gone");
	region_create(&r, "gone", GiB(1));
	JOIN(toucher("gone", 0, MiB(8), true));
	cgroup_remove("gone");
	for (i = 0; i < MiB(8); i += PAGE)
		CHECK_EQ(r.addr[i], 1);
}

static const struct test_case cases[] = {
	{ .name = "the first toucher is charged", .run = charge },
	{ .name = "a limit sends pages to swap", .run = limit_swaps },
	{ .name = "OOM kill of a writer", .run = oom_kill_writer },
	{ .name = "OOM kill of a reader", .run = oom_kill_reader },
	{ .name = "OOM kill of attachers with memory of their own", .run = victim_with_own_memory },
	{ .name = "reaping a dying O_RDWR attacher", .run = reaped_writer },
	{ .name = "reaping a dying O_RDONLY attacher", .run = reaped_reader },
	{ .name = "the group is removed first", .run = group_removed },
};

TEST_MAIN(cases)
