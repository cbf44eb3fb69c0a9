// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a late attacher pays to touch every page of a populated region: one fault
 * per GiB at most, where an attacher of a memfd takes one for every 16 pages; and
 * its sweep is faster by what those faults cost.
 */
#include "harness.h"

struct sweep {
	long faults;
	double seconds;
	long sum;
};

static size_t size_here(void)
{
	return debug_kernel() ? MiB(128) : GiB(1);
}

static void sweep(const char *p, size_t size, struct sweep *s)
{
	double start = now();
	long before = minor_faults(), sum = 0;
	size_t i;

	for (i = 0; i < size; i += PAGE)
		sum += *(volatile const char *)(p + i);
	s->seconds = now() - start;
	s->faults = minor_faults() - before;
	s->sum = sum;
}

/* Maps and sweeps in a child that has not seen the memory before. */
static struct sweep late_attacher(struct region *r, size_t size, bool inherit, int prot)
{
	struct sweep *s = shared_alloc(PAGE), result;
	pid_t pid = xfork();

	if (!pid) {
		s->sum = minor_faults();
		if (!inherit) {
			CHECK_OK(munmap(r->addr, r->size));
			region_map(r, prot);
		}
		sweep(r->addr, size, s);
		_exit(0);
	}
	JOIN(pid);
	result = *s;
	CHECK_EQ(result.sum, (long)(size / PAGE));
	munmap(s, PAGE);
	return result;
}

static void fill(struct region *r, size_t size)
{
	size_t i;

	CHECK_OK(madvise(r->addr, size, MADV_POPULATE_WRITE));
	for (i = 0; i < size; i += PAGE)
		r->addr[i] = 1;
}

/* The measuring itself reads a file, and may fault once or twice. */
#define SLACK 4

static void faults(void)
{
	struct sweep attached, inherited, reader, again;
	size_t size = size_here();
	struct region r;

	region_create(&r, "late", GiB(1));
	fill(&r, size);
	attached = late_attacher(&r, size, false, PROT_READ | PROT_WRITE);
	inherited = late_attacher(&r, size, true, 0);
	reader = late_attacher(&r, size, false, PROT_READ);
	again = late_attacher(&r, size, false, PROT_READ);
	diag("faults for %zu MiB: attached %ld, by fork %ld, first reader %ld, second reader %ld",
	     size >> 20, attached.faults, inherited.faults, reader.faults, again.faults);
	CHECK(attached.faults <= 1 + SLACK, "an attacher took %ld faults", attached.faults);
	CHECK(inherited.faults <= 1 + SLACK, "a child took %ld faults", inherited.faults);
	CHECK(again.faults <= 1 + SLACK, "a second reader took %ld faults", again.faults);
}

static void faults_per_gigabyte(void)
{
	struct sweep *s = shared_alloc(PAGE);
	struct region r;
	size_t i;
	pid_t pid;

	region_create(&r, "wide", GiB(8));
	for (i = 0; i < GiB(8); i += MiB(128))
		r.addr[i] = 1;
	pid = xfork();
	if (!pid) {
		long before = minor_faults();

		for (i = 0; i < GiB(8); i += MiB(128))
			CHECK_EQ(r.addr[i], 1);
		s->faults = minor_faults() - before;
		_exit(0);
	}
	JOIN(pid);
	diag("faults for 8 GiB after fork: %ld", s->faults);
	CHECK(s->faults <= 8 + SLACK, "a child took %ld faults for 8 GiB", s->faults);
}

static void against_memfd(void)
{
	struct sweep ours = { 0 }, theirs = { 0 }, s;
	size_t size = size_here();
	struct region r, m;
	double ratio;
	int i;

	region_create(&r, "speed", GiB(1));
	fill(&r, size);
	ours.seconds = theirs.seconds = 1e9;
	for (i = 0; i < 5; i++) {
		s = late_attacher(&r, size, false, PROT_READ | PROT_WRITE);
		if (s.seconds < ours.seconds)
			ours = s;
	}
	region_unlink(&r);
	region_detach(&r);
	memfd_create_region(&m, GiB(1));
	fill(&m, size);
	for (i = 0; i < 3; i++) {
		s = late_attacher(&m, size, false, PROT_READ | PROT_WRITE);
		if (s.seconds < theirs.seconds)
			theirs = s;
	}
	ratio = theirs.seconds / ours.seconds;
	diag("sweep of %zu MiB: %.1f ms and %ld faults, memfd %.1f ms and %ld faults: %.1f times",
	     size >> 20, ours.seconds * 1e3, ours.faults, theirs.seconds * 1e3, theirs.faults, ratio);
	CHECK(theirs.faults >= (long)(size / PAGE / 16), "the memfd took %ld faults only", theirs.faults);
	CHECK(debug_kernel() || ratio >= 20, "the sweep is %.1f times faster, not 20", ratio);
}

static const struct test_case cases[] = {
	{ .name = "faults of a late attacher", .run = faults },
	{ .name = "one fault per GiB after fork", .run = faults_per_gigabyte },
	{ .name = "a late attacher's sweep against memfd", .run = against_memfd, .level = FULL },
};

TEST_MAIN(cases)
