// SPDX-License-Identifier: GPL-2.0-only
/*
 * No write is lost while pages are swapped out: before a page's content is
 * written to the device no processor may still write to it. Reclaim defers that
 * flush and batches it, which is where it can be forgotten. See pinned.h.
 */
#include "pinned.h"

static struct region r;

static void by_pageout(void)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	int i, swap = swap_add(MiB(128)), rounds = debug_kernel() ? 40 : 100;
	char *base;
	long out = 0;
	pid_t pid;

	region_create(&r, "pageout", GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	for (i = 0; i < rounds; i++) {
		out += page_out(base, PINNED_PAGES * PAGE);
		pinned_turn(p);
	}
	diag("%ld pages written to swap in %d rounds", out, rounds);
	CHECK(out > rounds, "hardly anything was swapped out: %ld pages", out);
	pinned_end(p, pid, base);
	swap_remove(swap);
}

/* Reclaim by the control group's order: it finds the pages by rmap, for attachers
 * with both rights. */
static void by_reclaim(void)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	int i, swap = swap_add(MiB(128)), rounds = debug_kernel() ? 10 : 60;
	long out = vmstat("pswpout");
	char *base;
	pid_t pid, ro;

	cgroup_make("tlb");
	cgroup_enter("tlb");
	region_create(&r, "reclaim", GiB(1));
	base = r.addr + MiB(16);
	ro = xfork();
	if (!ro) {
		struct region own;

		region_detach(&r);
		region_attach(&own, "reclaim", O_RDONLY, PROT_READ);
		pin_cpu(0);
		for (;;) {
			(void)*(volatile char *)(own.addr + MiB(16) + PAGE);
			nap_ms(3);
		}
	}
	pid = pinned_start(p, base);
	cgroup_leave();
	for (i = 0; i < rounds; i++) {
		try_write_text("/sys/fs/cgroup/selftest-tlb/memory.reclaim", "512K");
		pinned_turn(p);
	}
	out = vmstat("pswpout") - out;
	diag("%ld pages written to swap in %d rounds", out, rounds);
	CHECK(out > rounds, "hardly anything was swapped out: %ld pages", out);
	pinned_end(p, pid, base);
	kill(ro, SIGKILL);
	JOIN_KILLED(ro, SIGKILL);
	region_unlink(&r);
	region_detach(&r);
	cgroup_remove("tlb");
	swap_remove(swap);
}

/*
 * With huge pages, that reclaim splits first. All that the writer touches is one
 * page then, and where it really runs at the same time it mostly gets back at it
 * before reclaim is done, which then gives up: try until it has worked.
 */
static void huge(void)
{
	struct pinned *p = shared_alloc(sizeof(*p));
	const char *knob = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	int i, swap = swap_add(MiB(128)), rounds = 20, most = 2000;
	char *base;
	long out = 0;
	pid_t pid;

	if (!try_write_text(knob, "force"))
		skip("no huge pages for shared memory");
	region_create(&r, "hugeswap", GiB(1));
	base = r.addr + MiB(16);
	pid = pinned_start(p, base);
	for (i = 0; i < rounds || (out == 0 && i < most); i++) {
		out += page_out(base, MiB(2));
		pinned_turn(p);
		if (i == rounds / 2)
			write_text(knob, "never");
	}
	write_text(knob, "never");
	diag("%ld pages written to swap in %d rounds", out, i);
	CHECK(out > 0, "nothing was swapped out");
	pinned_end(p, pid, base);
	swap_remove(swap);
}

static const struct test_case cases[] = {
	{ .name = "MADV_PAGEOUT under a running writer", .run = by_pageout },
	{ .name = "reclaim under a running writer", .run = by_reclaim },
	{ .name = "swapping out huge pages under a running writer", .run = huge },
};

TEST_MAIN(cases)
