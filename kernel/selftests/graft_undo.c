// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): all or nothing. With fault injection the n-th allocation of a
 * call fails, for n = 1, 2, ... until none is reached any more. Each time the memory
 * of both processes is what it was, huge pages, swapped ones, and what would have
 * been replaced included.
 */
#include "graft.h"

#define MOST 2000
#define SIZE MiB(7)

static struct peer peer;
static char *src, *dst;

static int fail_nth;

static void prepare(void)
{
	need_graft();
	need_fail_nth();
	fail_nth = fail_nth_open();
	peer = peer_start();
}

/* Huge pages, small ones, swapped ones, a read-only part: every kind of entry. */
static void build(void)
{
	src = anon_huge(MiB(8));
	fill(src, MiB(4), 100);
	CHECK_OK(madvise(src + MiB(4), MiB(4), MADV_NOHUGEPAGE));
	fill(src + MiB(4), MiB(4), 100 + MiB(4) / PAGE);
	CHECK_OK(mprotect(src + MiB(5), MiB(1), PROT_READ));
	madvise(src + MiB(6), MiB(1), MADV_PAGEOUT);
	dst = peer_anon(&peer, MiB(16));
	PEER(&peer, PEER_SYSCALL, SYS_madvise, (long)dst, (long)MiB(16), MADV_HUGEPAGE);
	peer_fill(&peer, dst, MiB(16), 5000);
}

static void intact(const char *when, int n)
{
	CHECK(!differing(src, MiB(8), 100), "%s %d: the source has changed", when, n);
	CHECK(!peer_differing(&peer, dst, MiB(16), 5000), "%s %d: the receiver has changed", when,
	      n);
	/* Both can still write. */
	*(volatile long *)(src + MiB(4)) = 100 + MiB(4) / PAGE;
	peer_put(&peer, dst + MiB(3), 5000 + MiB(3) / PAGE);
}

static void each(size_t from, size_t to, unsigned long flags)
{
	int n, failed = 0, swap = swap_add(MiB(128));
	bool reached;
	long ret;

	prepare();
	build();
	for (n = 1; n < MOST; n++) {
		fail_nth_arm(fail_nth, n);
		ret = graft(-peer.pid, src + from, SIZE, dst + to, flags);
		reached = fail_nth_disarm(fail_nth);
		if (ret != -1) {
			if (!reached)
				break;
			/* It did without. Everything anew for the next one. */
			CHECK(!peer_differing(&peer, dst + to, SIZE, 100 + from / PAGE),
			      "%d: wrong contents", n);
			munmap(src, MiB(8));
			PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)dst, (long)MiB(16));
			build();
			continue;
		}
		failed++;
		CHECK(errno == ENOMEM, "allocation %d: errno %d (%s)", n, errno, strerror(errno));
		intact("allocation", n);
	}
	diag("%d of %d allocations made the call fail", failed, n - 1);
	CHECK(failed > 5, "hardly any allocation was made to fail");
	CHECK(!peer_differing(&peer, dst + to, SIZE, 100 + from / PAGE),
	      "the last call did not work");
	close(fail_nth);
	peer_end(&peer);
	swap_remove(swap);
}

static void replacing(void)
{
	each(0, MiB(2), PVMMAP_FIXED);
}

static void replacing_unaligned(void)
{
	each(PAGE, MiB(3), PVMMAP_FIXED);
}

static void moving(void)
{
	each(0, MiB(2), PVMMAP_FIXED | PVMMAP_MOVE);
}

static void moving_unaligned(void)
{
	each(PAGE, MiB(3), PVMMAP_FIXED | PVMMAP_MOVE);
}

static const struct test_case cases[] = {
	{.name = "a clone that replaces", .run = replacing, .seconds = 300},
	{.name = "a clone at another offset", .run = replacing_unaligned, .seconds = 300},
	{.name = "a move that replaces", .run = moving, .seconds = 300},
	{.name = "a move to another offset", .run = moving_unaligned, .seconds = 300},
};

TEST_MAIN(cases)
