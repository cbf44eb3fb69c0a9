// SPDX-License-Identifier: GPL-2.0-only
/*
 * Once munmap() has returned in one thread, no other thread of the process can
 * reach the region any more: the link to the shared tables is gone, and every
 * processor has forgotten what it found there. The other thread has the last CPU
 * to itself and makes no system call until its access fails.
 *
 * Freeing the table that held the link would flush as well. So a neighbour, in
 * the same 512 GiB, keeps that table: then only the removal of the link tells the
 * other processor.
 */
#include "harness.h"

#define ROUNDS 40

/* In different sets of a small TLB. */
#define FIRST (MiB(4) + 3 * PAGE)
#define SECOND (MiB(5) + 5 * PAGE)

static struct region r;
static uint64_t gen;	 /* odd: mapped, even: unmapped */
static uint64_t seen;
static uint64_t stale;	 /* reads that worked after munmap */
static uint64_t faults;

static void *toucher(void *arg)
{
	uint64_t g;

	(void)arg;
	pin_cpu(cpus() - 1);
	for (;;) {
		g = LOAD(&gen);
		if (g == ~0ull)
			return NULL;
		if (g == LOAD(&seen) && !(g & 1))
			continue;
		if (g & 1) {
			*(volatile uint64_t *)(r.addr + FIRST) = g;
			(void)*(volatile uint64_t *)(r.addr + SECOND);
			STORE(&seen, g);
			/* Keep the translation, until the other thread unmaps. */
			while (LOAD(&gen) == g)
				;
		} else {
			if (try_read(r.addr + FIRST) == 0)
				stale++;
			else
				faults++;
			if (try_read(r.addr + SECOND) == 0)
				stale++;
			STORE(&seen, g);
		}
	}
}

static void add_neighbour(void)
{
	char *p = mmap(fresh_address(PAGE), PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	CHECK(p != MAP_FAILED, "mmap: %s", strerror(errno));
	*p = 1;
}

static void set(uint64_t g)
{
	STORE(&gen, g);
	WAIT_FOR(LOAD(&seen) == g, 10);
}

static void after_munmap(void)
{
	pthread_t thread;
	uint64_t i;

	need_cpus(2);
	pin_cpu(0);
	add_neighbour();
	region_create(&r, "unmap", GiB(1));
	thread = xthread(toucher, NULL);
	for (i = 0; i < ROUNDS; i++) {
		set(2 * i + 1);
		CHECK_OK(munmap(r.addr, r.size));
		set(2 * i + 2);
		region_map(&r, PROT_READ | PROT_WRITE);
	}
	STORE(&gen, ~0ull);
	xjoin(thread);
	CHECK(!stale, "%lu of %lu reads worked after munmap", stale, stale + faults);
	CHECK_EQ(faults, ROUNDS);
}

/* The same when the last thread's munmap also drops the file: the shared tables
 * themselves are freed and their pages used again. */
static void after_last_munmap(void)
{
	char *poison;
	pthread_t thread;
	uint64_t i;

	need_cpus(2);
	pin_cpu(0);
	add_neighbour();
	region_create(&r, "last0", GiB(1));
	thread = xthread(toucher, NULL);
	for (i = 0; i < ROUNDS; i++) {
		char name[16];
		char *addr = r.addr;

		set(2 * i + 1);
		region_unlink(&r);
		region_detach(&r);
		poison = mmap(NULL, MiB(1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(poison, 0x66, MiB(1));
		set(2 * i + 2);
		munmap(poison, MiB(1));
		snprintf(name, sizeof(name), "last%d", (int)i + 1);
		region_create(&r, name, GiB(1));
		/* Where the thread looks next. */
		CHECK(r.addr != addr, "the same address again");
	}
	STORE(&gen, ~0ull);
	xjoin(thread);
	CHECK(!stale, "%lu of %lu reads worked after munmap", stale, stale + faults);
}

/* Replacing the mapping by another takes the old one away just as well. */
static void after_overlay(void)
{
	pthread_t thread;
	uint64_t i, *p;

	need_cpus(2);
	pin_cpu(0);
	add_neighbour();
	region_create(&r, "overlay", GiB(1));
	thread = xthread(toucher, NULL);
	for (i = 0; i < ROUNDS; i++) {
		set(2 * i + 1);
		p = mmap(r.addr, r.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		CHECK(p == (void *)r.addr, "mmap: %s", strerror(errno));
		set(2 * i + 2);
		CHECK_OK(munmap(r.addr, r.size));
		region_map(&r, PROT_READ | PROT_WRITE);
	}
	STORE(&gen, ~0ull);
	xjoin(thread);
	CHECK(!stale, "%lu of %lu reads worked after mmap over it", stale, stale + faults);
}

static const struct test_case cases[] = {
	{ .name = "access after another thread's munmap", .run = after_munmap },
	{ .name = "access after the last munmap", .run = after_last_munmap },
	{ .name = "access after another thread's MAP_FIXED", .run = after_overlay },
};

TEST_MAIN(cases)
