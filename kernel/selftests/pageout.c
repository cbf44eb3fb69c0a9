// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paging out 256 MiB of a region costs at most 1.5 times what it costs for a
 * memfd: the flushes for the pages are batched, though nobody knows which
 * processors to send them to.
 */
#include "harness.h"

static size_t size_here(void)
{
	return debug_kernel() ? MiB(32) : MiB(256);
}

/* Seconds per page that really went. */
static double page_out_once(struct region *r, size_t size)
{
	double start;
	long out;
	size_t i;

	/* New pages, not the old ones read back from swap. */
	CHECK_OK(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size));
	CHECK_OK(madvise(r->addr, size, MADV_POPULATE_WRITE));
	for (i = 0; i < size; i += PAGE)
		*(size_t *)(r->addr + i) = i;
	start = now();
	out = page_out(r->addr, size);
	start = now() - start;
	diag("%s: %ld pages in %.2f s", r->path, out, start);
	CHECK(out > (long)(size / PAGE * 8 / 10), "%ld of %zu pages went", out, size / PAGE);
	for (i = 0; i < size; i += MiB(8))
		CHECK_EQ(*(volatile size_t *)(r->addr + i), i);
	return start / (double)out;
}

static void against_memfd(void)
{
	size_t size = size_here();
	int i, swap = swap_add(size * 2);
	double ours = 1e9, theirs = 1e9, t, ratio;
	struct region r, m;

	pin_cpu(0);
	memfd_create_region(&m, GiB(1));
	region_create(&r, "pageout", GiB(1));
	for (i = 0; i < 3; i++) {
		t = page_out_once(&m, size);
		theirs = t < theirs ? t : theirs;
		t = page_out_once(&r, size);
		ours = t < ours ? t : ours;
	}
	region_unlink(&r);
	region_detach(&r);
	region_detach(&m);
	ratio = ours / theirs;
	diag("paging out %zu MiB: %.0f ms, memfd %.0f ms: %.2f times", size >> 20,
	     ours * 1e3 * (double)(size / PAGE), theirs * 1e3 * (double)(size / PAGE), ratio);
	swap_remove(swap);
	CHECK(debug_kernel() || ratio <= 1.5, "paging out costs %.2f times what it costs a memfd", ratio);
}

static const struct test_case cases[] = {
	{ .name = "paging out, against memfd", .run = against_memfd, .seconds = 180 },
};

TEST_MAIN(cases)
