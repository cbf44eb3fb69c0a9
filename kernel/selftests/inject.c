// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that runs out inside the kernel: with fault injection the n-th allocation
 * of a process fails, for n = 1, 2, ... until none is reached any more. Each time
 * the call fails with an error or works, the process dies of nothing worse than
 * SIGBUS or ENOMEM, and the region works afterwards.
 */
#include "harness.h"

#define MOST 400

static int fail_nth; /* of the child that the allocation fails in */
static struct region r;

static int creating(int n)
{
	char path[256], *at = fresh_address(GiB(1));
	bool reached;
	int fd;

	region_path(path, sizeof(path), "inject");
	fail_nth_arm(fail_nth, n);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd >= 0 && mmap(at, GiB(1), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == at)
		try_write(at, 1);
	reached = fail_nth_disarm(fail_nth);
	_exit(reached ? 10 : 11);
}

static int attaching(int n)
{
	void *p;
	bool reached;

	CHECK_OK(munmap(r.addr, r.size));
	fail_nth_arm(fail_nth, n);
	p = mmap(r.addr, r.size, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, r.fd, 0);
	if (p == r.addr) {
		try_read(r.addr);
		try_read(r.addr + GiB(1));
	}
	reached = fail_nth_disarm(fail_nth);
	if (p == r.addr)
		CHECK_EQ(r.addr[0], 'x');
	_exit(reached ? 10 : 11);
}

static int faulting(int n)
{
	bool reached;

	fail_nth_arm(fail_nth, n);
	try_write(r.addr + MiB(2) * (size_t)n, 1);
	try_read(r.addr + GiB(1) + MiB(2) * (size_t)n);
	reached = fail_nth_disarm(fail_nth);
	CHECK_EQ(try_write(r.addr + MiB(2) * (size_t)n, 1), 0);
	CHECK_EQ(r.addr[0], 'x');
	_exit(reached ? 10 : 11);
}

static int forking(int n)
{
	bool reached;
	pid_t pid;

	fail_nth_arm(fail_nth, n);
	pid = fork();
	if (!pid) {
		try_read(r.addr);
		_exit(0);
	}
	reached = fail_nth_disarm(fail_nth);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	CHECK_EQ(r.addr[0], 'x');
	_exit(reached ? 10 : 11);
}

static void each(int (*what)(int n), int step)
{
	int n, status, died = 0;
	char path[256];

	need_fail_nth();
	region_create(&r, "whole", GiB(2));
	r.addr[0] = 'x';
	region_path(path, sizeof(path), "inject");
	for (n = 1; n < MOST; n += step) {
		pid_t pid = xfork();

		if (!pid) {
			fail_nth = fail_nth_open();
			_exit(what(n));
		}
		status = wait_status(pid);
		unlink(path);
		if (status == 11)
			break;
		/* SIGKILL and SIGBUS are how a fault without memory ends. */
		died += status == 128 + SIGKILL || status == 128 + SIGBUS;
		CHECK(status == 10 || status == 128 + SIGKILL || status == 128 + SIGBUS,
		      "allocation %d: status %d", n, status);
		CHECK_EQ(r.addr[0], 'x');
	}
	diag("%d allocations made to fail, %d processes died", n - 1, died);
	r.addr[MiB(3)] = 3;
	CHECK_EQ(r.addr[MiB(3)], 3);
}

static void create(void)
{
	each(creating, 1);
}

static void attach(void)
{
	each(attaching, 1);
}

static void fault(void)
{
	each(faulting, 1);
}

static void forks(void)
{
	each(forking, 3);
}

static const struct test_case cases[] = {
	{ .name = "creating a region", .run = create },
	{ .name = "attaching", .run = attach },
	{ .name = "faults", .run = fault },
	{ .name = "fork", .run = forks },
};

TEST_MAIN(cases)
