// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paging out 256 MiB of a region costs at most 1.5 times what it costs for a
 * memfd: the flushes for the pages are batched, though nobody knows which
 * processors to send them to.
 */
#include "harness.h"

static size_t size_here(void)
{
	return debug_kernel() ? MiB(16) : MiB(256);
}

#define ROUNDS (debug_kernel() ? 1 : 3)
#define PIECES 16

/*
 * One round: new pages, not the old ones read back from swap, that go piece by
 * piece. least[] keeps, for each piece, the seconds for each page that really
 * went, of the round in which the host disturbed it least.
 */
static void page_out_once(struct region *r, size_t size, double least[PIECES])
{
	size_t i, piece = size / PIECES;
	double start, sum = 0;
	long out, all = 0;

	CHECK_OK(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size));
	CHECK_OK(madvise(r->addr, size, MADV_POPULATE_WRITE));
	for (i = 0; i < size; i += PAGE)
		*(size_t *)(r->addr + i) = i;
	for (i = 0; i < PIECES; i++) {
		out = vmstat("pswpout");
		start = now();
		CHECK_OK(madvise(r->addr + i * piece, piece, MADV_PAGEOUT));
		start = now() - start;
		out = vmstat("pswpout") - out;
		if (out > 0 && (!least[i] || start / (double)out < least[i]))
			least[i] = start / (double)out;
		all += out;
		sum += start;
	}
	diag("%s: %ld pages in %.2f s", r->path, all, sum);
	CHECK(all > (long)(size / PAGE * 8 / 10), "%ld of %zu pages went", all, size / PAGE);
	for (i = 0; i < size; i += MiB(8))
		CHECK_EQ(*(volatile size_t *)(r->addr + i), i);
}

static double total(const double least[PIECES], size_t size)
{
	double sum = 0;
	int i;

	for (i = 0; i < PIECES; i++)
		sum += least[i] * (double)(size / PIECES / PAGE);
	return sum;
}

/* Rounds alternate, so that both have the same of what disturbs them. */
static void against_memfd(void)
{
	double ours[PIECES] = { 0 }, theirs[PIECES] = { 0 }, ratio;
	size_t size = size_here();
	int i, swap = swap_add(size * 2);
	struct region r, m;

	pin_cpu(0);
	memfd_create_region(&m, GiB(1));
	region_create(&r, "pageout", GiB(1));
	for (i = 0; i < ROUNDS; i++) {
		page_out_once(&m, size, theirs);
		page_out_once(&r, size, ours);
	}
	region_unlink(&r);
	region_detach(&r);
	region_detach(&m);
	ratio = total(ours, size) / total(theirs, size);
	diag("paging out %zu MiB: %.0f ms, memfd %.0f ms: %.2f times", size >> 20,
	     1e3 * total(ours, size), 1e3 * total(theirs, size), ratio);
	swap_remove(swap);
	CHECK(debug_kernel() || ratio <= 1.5, "paging out costs %.2f times what it costs a memfd", ratio);
}

static const struct test_case cases[] = {
	{ .name = "paging out, against memfd", .run = against_memfd, .seconds = 180 },
};

TEST_MAIN(cases)
