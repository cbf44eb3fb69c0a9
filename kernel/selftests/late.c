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

/* Reads or writes each page. */
static void sweep(char *p, size_t size, bool write, struct sweep *s)
{
	long before, sum = 0;
	double start = now();
	size_t i;

	before = minor_faults(); /* once for what it touches itself */
	before = minor_faults();
	start = now();
	for (i = 0; i < size; i += PAGE) {
		if (write)
			*(volatile char *)(p + i) = 1;
		else
			sum += *(volatile char *)(p + i);
	}
	s->seconds = now() - start;
	s->faults = minor_faults() - before;
	s->sum = write ? (long)(size / PAGE) : sum;
}

/* Maps and sweeps in a child that has not seen the memory before. */
static struct sweep late_attacher(struct region *r, size_t size, bool inherit, int prot, bool write)
{
	struct sweep *s = shared_alloc(PAGE), result;
	pid_t pid = xfork();

	if (!pid) {
		if (!inherit) {
			CHECK_OK(munmap(r->addr, r->size));
			region_map(r, prot);
		}
		sweep(r->addr, size, write, s);
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
	size_t size = size_here() / 4;
	struct region r;

	region_create(&r, "late", GiB(1));
	fill(&r, size);
	attached = late_attacher(&r, size, false, PROT_READ | PROT_WRITE, true);
	inherited = late_attacher(&r, size, true, 0, false);
	reader = late_attacher(&r, size, false, PROT_READ, false);
	again = late_attacher(&r, size, false, PROT_READ, false);
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
		long before = minor_faults(); /* once for what it touches itself */

		before = minor_faults();
		for (i = 0; i < GiB(8); i += MiB(128))
			CHECK_EQ(r.addr[i], 1);
		s->faults = minor_faults() - before;
		_exit(0);
	}
	JOIN(pid);
	diag("faults for 8 GiB after fork: %ld", s->faults);
	CHECK(s->faults <= 8 + SLACK, "a child took %ld faults for 8 GiB", s->faults);
}

static struct sweep best(struct region *r, size_t size, bool write, int rounds)
{
	struct sweep least = { .seconds = 1e9 }, s;

	while (rounds--) {
		s = late_attacher(r, size, false, PROT_READ | PROT_WRITE, write);
		if (s.seconds < least.seconds)
			least = s;
	}
	return least;
}

static double compare(const char *what, const struct sweep *ours, const struct sweep *theirs)
{
	double ratio = theirs->seconds / ours->seconds;

	diag("%s: %.1f ms and %ld faults, memfd %.1f ms and %ld faults: %.1f times", what,
	     ours->seconds * 1e3, ours->faults, theirs->seconds * 1e3, theirs->faults, ratio);
	return ratio;
}

/*
 * Reading, a memfd's attacher gets 16 pages for one fault, and emulation makes
 * every miss of the TLB dear, for both; so the bound that holds everywhere is that
 * of writing, where each page of a memfd takes a fault.
 */
static void against_memfd(void)
{
	struct sweep reads, writes, memfd_reads, memfd_writes;
	size_t size = size_here();
	struct region r, m;
	double read_ratio, write_ratio;

	region_create(&r, "speed", GiB(1));
	fill(&r, size);
	reads = best(&r, size, false, 6);
	writes = best(&r, size, true, 6);
	region_unlink(&r);
	region_detach(&r);
	memfd_create_region(&m, GiB(1));
	fill(&m, size);
	memfd_reads = best(&m, size, false, 2);
	memfd_writes = best(&m, size, true, 1);
	read_ratio = compare("read sweep", &reads, &memfd_reads);
	write_ratio = compare("write sweep", &writes, &memfd_writes);
	CHECK(memfd_reads.faults >= (long)(size / PAGE / 16), "the memfd took %ld faults only",
	      memfd_reads.faults);
	if (debug_kernel())
		return;
	CHECK(write_ratio >= 20, "the write sweep is %.1f times faster, not 20", write_ratio);
	CHECK(read_ratio > 1, "the read sweep is %.1f times faster", read_ratio);
}

static const struct test_case cases[] = {
	{ .name = "faults of a late attacher", .run = faults },
	{ .name = "one fault per GiB after fork", .run = faults_per_gigabyte },
	{ .name = "a late attacher's sweep against memfd", .run = against_memfd, .level = FULL },
};

TEST_MAIN(cases)
