// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): what it is for. Handing over 1 GiB takes a twentieth of the time
 * of process_vm_writev() with small pages, and a two-hundredth with huge ones; there
 * is 1 GiB in the end and not 2; what is on swap stays there.
 */
#include "graft.h"

#include <sys/uio.h>

#define ROUNDS 3

static struct peer peer;

/* Once: it takes up to a minute on an emulated processor. */
static double timed_writev(char *p, size_t size, bool huge)
{
	char *q = peer_anon(&peer, size + MiB(2));
	double begin;
	size_t done;

	q = (char *)(((uintptr_t)q + MiB(2) - 1) & ~(MiB(2) - 1));
	PEER(&peer, PEER_SYSCALL, SYS_madvise, (long)q, (long)size,
	     huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	begin = now();
	for (done = 0; done < size; done += MiB(64)) {
		struct iovec local = {p + done, MiB(64)}, remote = {q + done, MiB(64)};

		CHECK_EQ(process_vm_writev(peer.pid, &local, 1, &remote, 1, 0), MiB(64));
	}
	begin = now() - begin;
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)size);
	return begin;
}

static double timed_graft(char *p, size_t size)
{
	double begin, best = 1e9;
	int i;

	for (i = 0; i < ROUNDS; i++) {
		char *q;

		begin = now();
		q = give(&peer, p, size, 0);
		begin = now() - begin;
		best = begin < best ? begin : best;
		PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)size);
	}
	return best;
}

static void faster(bool huge, double times)
{
	size_t size = group() == STRESS ? GiB(1) : MiB(512); /* filling and looking take most of the time */
	double copy, clone, move;
	long kb;
	char *p, *q;

	need_graft();
	if (meminfo_kb("MemAvailable") < (long)(size * 2 >> 10) + 200000)
		skip("needs %zu MiB of memory", (size * 2 >> 20) + 200);
	peer = peer_start();
	p = anon_huge(size);
	CHECK_OK(madvise(p, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
	fill(p, size, 100);
	copy = timed_writev(p, size, huge);
	clone = timed_graft(p, size);
	kb = meminfo_kb("AnonPages");
	move = now();
	q = give(&peer, p, size, PVMMAP_MOVE);
	move = now() - move;
	CHECK(meminfo_kb("AnonPages") < kb + 32768, "there is more memory than before");
	CHECK_EQ(peer_differing(&peer, q, size, 100), 0);
	peer_fill(&peer, q, size, 200);
	CHECK(meminfo_kb("AnonPages") < kb + 32768, "moved pages are copied when they are written");
	diag("%s pages, %zu MiB: process_vm_writev %.1f ms, clone %.2f ms (%.0f times), move %.2f ms "
	     "(%.0f times)",
	     huge ? "huge" : "small", size >> 20, copy * 1e3, clone * 1e3, copy / clone, move * 1e3,
	     copy / move);
	CHECK(copy / clone >= times, "a clone is only %.1f times faster", copy / clone);
	CHECK(copy / move >= times, "a move is only %.1f times faster", copy / move);
	peer_end(&peer);
}

static void small_pages(void)
{
	faster(false, 20);
}

static void huge_pages(void)
{
	faster(true, 200);
}

static const struct test_case cases[] = {
	{.name = "small pages", .run = small_pages, .level = FULL, .seconds = 240},
	{.name = "huge pages", .run = huge_pages, .level = FULL, .seconds = 240},
};

TEST_MAIN(cases)
