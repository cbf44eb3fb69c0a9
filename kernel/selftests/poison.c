// SPDX-License-Identifier: GPL-2.0-only
/*
 * A page that has gone bad: whoever touches it, in whichever process, gets SIGBUS
 * with the address, as for any shared memory; nobody else notices, and the page is
 * good again when it has been punched out. A page taken out of use while it is
 * still good moves, and nobody notices at all.
 */
#include "harness.h"

#include <sys/prctl.h>

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

/* What the last SIGBUS said. */
static sigjmp_buf jump;
static volatile int code;
static void *volatile where;

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	code = info->si_code;
	where = info->si_addr;
	siglongjmp(jump, 1);
}

static void catch_bus(void)
{
	struct sigaction sa = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER };

	CHECK_OK(sigaction(SIGBUS, &sa, NULL));
}

/* Touches the page: must fail, and say where. */
static void must_fail(char *at, bool write)
{
	char *volatile page = at; /* survives the jump */

	code = 0;
	where = NULL;
	if (!sigsetjmp(jump, 1)) {
		if (write)
			*(volatile char *)page = 2;
		else
			(void)*(volatile char *)page;
		FAIL("a bad page can be touched");
	}
	CHECK_EQ(code, BUS_MCEERR_AR);
	CHECK((char *)((uintptr_t)where & ~(PAGE - 1)) == page, "SIGBUS for %p, not %p", where,
	      (void *)page);
}

static void poison(char *page)
{
	if (madvise(page, PAGE, MADV_HWPOISON) == 0)
		return;
	if (errno == EINVAL)
		skip("no memory failure handling in this kernel");
	FAIL("MADV_HWPOISON: %s", strerror(errno));
}

/* One process before, one after, and a reader by descriptor find the bad page. */
static void bad_page(struct region *r, const char *name)
{
	int *step = shared_alloc(PAGE), pipes[2];
	char *bad = r->addr + MiB(4);
	pid_t before, after;

	memset(r->addr, 1, MiB(8));
	before = xfork();
	if (!before) {
		catch_bus();
		CHECK_EQ(*(volatile char *)bad, 1);
		STORE(step, 1);
		WAIT_FOR(LOAD(step) == 2, 20);
		must_fail(bad, false);
		must_fail(bad, true);
		CHECK_EQ(*(volatile char *)(bad + PAGE), 1);
		_exit(0);
	}
	WAIT_FOR(LOAD(step) == 1, 20);
	poison(bad);
	STORE(step, 2);
	JOIN(before);
	after = xfork();
	if (!after) {
		catch_bus();
		if (name) {
			region_detach(r);
			region_attach(r, name, O_RDONLY, PROT_READ);
		}
		must_fail(bad, false);
		CHECK_EQ(*(volatile char *)(bad - PAGE), 1);
		_exit(0);
	}
	JOIN(after);
	catch_bus();
	must_fail(bad, true);
	/* System calls are told by their error. */
	CHECK_OK(pipe(pipes));
	CHECK_ERR(write(pipes[1], bad, 1), EFAULT);
	CHECK_OK(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)MiB(4),
			   (off_t)PAGE));
	if (!name) { /* the marker in the table stays until the memory is mapped again */
		CHECK_OK(munmap(r->addr, r->size));
		region_map(r, PROT_READ | PROT_WRITE);
	}
	CHECK_EQ(*(volatile char *)bad, 0);
	*bad = 3;
	CHECK_EQ(*(volatile char *)bad, 3);
}

static void hardware_error(void)
{
	struct region r;

	region_create(&r, "poison", GiB(1));
	bad_page(&r, "poison");
	region_unlink(&r);
	region_detach(&r);
}

static void hardware_error_memfd(void)
{
	struct region r;

	memfd_create_region(&r, GiB(1));
	bad_page(&r, NULL);
	region_detach(&r);
}

/* A process that asked for it is told at once, though it never touches the page. */
static void early(struct region *r)
{
	int i, *step = shared_alloc(PAGE);
	char *bad = r->addr + MiB(4);
	pid_t pid[2];

	memset(r->addr, 1, MiB(8));
	for (i = 0; i < 2; i++) {
		pid[i] = xfork();
		if (pid[i])
			continue;
		catch_bus();
		CHECK_OK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET,
			       i ? PR_MCE_KILL_LATE : PR_MCE_KILL_EARLY, 0, 0));
		if (!sigsetjmp(jump, 1)) {
			ADD(step, 1);
			while (LOAD(step) < 3)
				nap_ms(1);
			nap_ms(50);
			CHECK(i == 1, "nobody told the process that asked for it");
			_exit(0);
		}
		CHECK(i == 0, "a process that did not ask for it was told");
		CHECK_EQ(code, BUS_MCEERR_AO);
		CHECK(where == bad, "it was told %p, not %p", where, (void *)bad);
		_exit(0);
	}
	WAIT_FOR(LOAD(step) == 2, 20);
	poison(bad);
	ADD(step, 1);
	JOIN(pid[0]);
	JOIN(pid[1]);
}

static void early_region(void)
{
	struct region r;

	region_create(&r, "early", GiB(1));
	early(&r);
	region_unlink(&r);
	region_detach(&r);
}

static void early_memfd(void)
{
	struct region r;

	memfd_create_region(&r, GiB(1));
	early(&r);
	region_detach(&r);
}

/* The frame changes, the contents do not, for a process that runs meanwhile either. */
static void soft_offline(void)
{
	volatile uint64_t *word;
	int *stop = shared_alloc(PAGE);
	struct region r;
	uint64_t pfn;
	pid_t pid;
	int i;

	need_cpus(2);
	pin_cpu(0);
	region_create(&r, "soft", GiB(1));
	word = (uint64_t *)(r.addr + MiB(4));
	*word = 0;
	pid = xfork();
	if (!pid) {
		uint64_t n = 0;

		pin_cpu(cpus() - 1);
		while (!LOAD(stop)) {
			CHECK_EQ(*word, n);
			*word = ++n;
		}
		word[1] = n;
		_exit(0);
	}
	WAIT_FOR(*word > 1000, 20);
	for (i = 0; i < 8; i++) {
		pfn = pagemap(0, (void *)word) & ((1ull << 55) - 1);
		if (madvise((void *)word, PAGE, MADV_SOFT_OFFLINE)) {
			if (errno == EINVAL)
				skip("no memory failure handling in this kernel");
			FAIL("MADV_SOFT_OFFLINE: %s", strerror(errno));
		}
		CHECK((pagemap(0, (void *)word) & ((1ull << 55) - 1)) != pfn, "the page has not moved");
	}
	STORE(stop, 1);
	JOIN(pid);
	CHECK_EQ(*word, word[1]);
	region_unlink(&r);
	region_detach(&r);
}

static const struct test_case cases[] = {
	{ .name = "a bad page", .run = hardware_error },
	{ .name = "a bad page of a memfd, for comparison", .run = hardware_error_memfd },
	{ .name = "a process that wants to know early", .run = early_region },
	{ .name = "the same with a memfd", .run = early_memfd },
	{ .name = "a page taken out of use under a running writer", .run = soft_offline },
};

TEST_MAIN(cases)
