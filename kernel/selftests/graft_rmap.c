// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): reverse mapping finds pages at their new addresses. That they
 * can be reclaimed and moved at all shows it: an entry that is not found keeps its
 * page where it is. Each way to get a page into odd places goes through the same
 * tests: twice in one process, from child to parent, after mremap() of either side,
 * at another offset.
 */
#include "graft.h"

#define SIZE MiB(2)
#define PAGES (SIZE / PAGE)

static struct peer peer;

/* One place of the memory under test: mine, or the peer's. */
struct place {
	char *at;
	bool theirs;
};

static void start(void)
{
	need_graft();
	cgroup_make("graft");
	cgroup_enter("graft");
	peer = peer_start();
}

static void finish(int swap)
{
	peer_end(&peer);
	cgroup_leave();
	swap_remove(swap);
}

static pid_t owner(const struct place *p)
{
	return p->theirs ? peer.pid : getpid();
}

static long wrong(const struct place *p, uint64_t seed)
{
	return p->theirs ? peer_differing(&peer, p->at, SIZE, seed) : differing(p->at, SIZE, seed);
}

static void put(const struct place *p, uint64_t seed)
{
	if (p->theirs)
		peer_fill(&peer, p->at, SIZE, seed);
	else
		fill(p->at, SIZE, seed);
}

static size_t on_swap(const struct place *p)
{
	size_t i, n = 0;

	for (i = 0; i < PAGES; i++)
		n += !!(pagemap(owner(p), p->at + i * PAGE) & PM_SWAP);
	return n;
}

/*
 * Reclaim unmaps a page everywhere or not at all. Pages that several processes have
 * count as active for a while, so it may take a number of turns.
 */
static void reclaimed(const struct place *p, unsigned int n)
{
	double end = now() + 60;
	unsigned int k;

	while (on_swap(&p[0]) < PAGES * 8 / 10 && now() < end) {
		try_write_text("/sys/fs/cgroup/selftest-graft/memory.reclaim", "16M");
		nap_ms(10);
	}
	for (k = 0; k < n; k++) {
		diag("place %u: %zu of %zu pages on swap", k, on_swap(&p[k]), PAGES);
		CHECK(on_swap(&p[k]) >= PAGES * 8 / 10, "reclaim does not find place %u", k);
	}
	for (k = 0; k < n; k++)
		CHECK_EQ(wrong(&p[k], 100), 0);
}

static void *asked[PAGES];
static int target[PAGES], status[PAGES];

static long on_node(const struct place *p, int node)
{
	long n = 0;
	size_t i;

	for (i = 0; i < PAGES; i++)
		asked[i] = p->at + i * PAGE;
	CHECK_OK(syscall(SYS_move_pages, owner(p), PAGES, asked, NULL, status, 0));
	for (i = 0; i < PAGES; i++)
		n += status[i] == node;
	return n;
}

/*
 * Moves all pages to the other node, by the addresses that one process has for them.
 * As long as none was paged out, the others have the same pages.
 */
static void migrated(const struct place *p, unsigned int n, bool same)
{
	unsigned int k;
	size_t i;
	int node;

	if (!has_path("/sys/devices/system/node/node1"))
		return;
	for (node = 1; node >= 0; node--) {
		for (i = 0; i < PAGES; i++) {
			asked[i] = p[n - 1].at + i * PAGE;
			target[i] = node;
		}
		/* MPOL_MF_MOVE_ALL, as the pages are mapped more than once. */
		CHECK_OK(
			syscall(SYS_move_pages, owner(&p[n - 1]), PAGES, asked, target, status, 4));
		for (k = 0; k < n; k++) {
			long there = on_node(&p[k], node);

			CHECK(!same || there >= (long)PAGES * 9 / 10,
			      "place %u: %ld of %zu pages on node %d", k, there, PAGES, node);
			CHECK_EQ(wrong(&p[k], 100), 0);
		}
	}
}

/* Each place is then written, and changes nothing in the others. */
static void torture(const struct place *p, unsigned int n)
{
	unsigned int k, m;

	migrated(p, n, true);
	reclaimed(p, n);
	migrated(p, n, false);
	write_text("/proc/sys/vm/compact_memory", "1");
	for (k = 0; k < n; k++) {
		put(&p[k], 1000 * (k + 1));
		for (m = 0; m < n; m++)
			CHECK_EQ(wrong(&p[m], m <= k ? 1000 * (m + 1) : 100), 0);
	}
	try_write_text("/sys/fs/cgroup/selftest-graft/memory.reclaim", "16M");
	for (k = 0; k < n; k++)
		CHECK_EQ(wrong(&p[k], 1000 * (k + 1)), 0);
}

static char *source(void)
{
	char *p = anon(SIZE + PAGE) + PAGE;

	fill(p, SIZE, 100);
	return p;
}

static void plain(void)
{
	int swap = swap_add(MiB(256));
	struct place p[2];

	start();
	p[0] = (struct place){source(), false};
	p[1] = (struct place){give(&peer, p[0].at, SIZE, 0), true};
	torture(p, 2);
	finish(swap);
}

static void after_move(void)
{
	int swap = swap_add(MiB(256));
	struct place p[1];

	start();
	p[0] = (struct place){give(&peer, source(), SIZE, PVMMAP_MOVE), true};
	torture(p, 1);
	finish(swap);
}

static void replaced(void)
{
	int swap = swap_add(MiB(256));
	struct place p[2];
	char *at;

	start();
	at = peer_anon(&peer, SIZE + MiB(2));
	peer_fill(&peer, at, SIZE + MiB(2), 1);
	p[0] = (struct place){source(), false};
	p[1] = (struct place){at + 5 * PAGE, true};
	CHECK_EQ(graft(-peer.pid, p[0].at, SIZE, p[1].at, PVMMAP_FIXED), (long)p[1].at);
	torture(p, 2);
	finish(swap);
}

static void twice(void)
{
	int swap = swap_add(MiB(256));
	struct place p[3];

	start();
	p[0] = (struct place){source(), false};
	p[1] = (struct place){give(&peer, p[0].at, SIZE, 0), true};
	p[2] = (struct place){give(&peer, p[0].at, SIZE, 0), true};
	torture(p, 3);
	finish(swap);
}

/* The peer is a child and has the pages from fork(): they come back to the parent. */
static void child_to_parent(void)
{
	int swap = swap_add(MiB(256));
	struct place p[4];
	char *mine;

	need_graft();
	cgroup_make("graft");
	cgroup_enter("graft");
	mine = source();
	peer = peer_start();
	p[0] = (struct place){mine, false};
	p[1] = (struct place){mine, true};
	p[2] = (struct place){(char *)CHECK_OK(graft(peer.pid, mine, SIZE, NULL, 0)), false};
	p[3] = (struct place){give(&peer, p[2].at, SIZE, 0), true};
	torture(p, 4);
	finish(swap);
}

static void after_mremap(void)
{
	int swap = swap_add(MiB(256));
	struct place p[3];
	char *to;

	start();
	p[0] = (struct place){source(), false};
	p[1] = (struct place){give(&peer, p[0].at, SIZE, 0), true};
	p[2] = (struct place){give(&peer, p[0].at, SIZE, 0), true};
	to = fresh_address(SIZE);
	CHECK(mremap(p[0].at, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %s",
	      strerror(errno));
	p[0].at = to;
	to = peer_free(&peer, SIZE) + 3 * PAGE;
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_mremap, (long)p[1].at, (long)SIZE, (long)SIZE,
		      MREMAP_MAYMOVE | MREMAP_FIXED, (long)to),
		 (long)to);
	p[1].at = to;
	torture(p, 3);
	finish(swap);
}

/* The first owner unmaps, or dies: the pages stay with the others. */
static void source_gone(void)
{
	int swap = swap_add(MiB(256));
	struct place p[2];
	char *mine;

	start();
	mine = source();
	p[0] = (struct place){give(&peer, mine, SIZE, 0), true};
	munmap(mine, SIZE);
	p[1] = (struct place){(char *)CHECK_OK(graft(peer.pid, p[0].at, SIZE, NULL, 0)), false};
	torture(p, 2);
	finish(swap);
}

static void peer_gone(void)
{
	int swap = swap_add(MiB(256));
	struct place p[1];
	char *theirs;

	start();
	theirs = peer_anon(&peer, SIZE);
	peer_fill(&peer, theirs, SIZE, 100);
	p[0] = (struct place){(char *)CHECK_OK(graft(peer.pid, theirs, SIZE, NULL, 0)), false};
	peer_end(&peer);
	peer = peer_start();
	torture(p, 1);
	finish(swap);
}

/* Huge pages that two processes have are split while both look. */
static void huge_split(void)
{
	int swap = swap_add(MiB(256));
	struct place p[2];
	char text[128];

	start();
	p[0] = (struct place){anon_huge(SIZE), false};
	fill(p[0].at, SIZE, 100);
	p[1] = (struct place){give(&peer, p[0].at, SIZE, 0), true};
	snprintf(text, sizeof(text), "%d,0x%lx,0x%lx", peer.pid, (long)p[1].at,
		 (long)(p[1].at + SIZE));
	if (!try_write_text("/sys/kernel/debug/split_huge_pages", text))
		skip("no split_huge_pages");
	CHECK_EQ(wrong(&p[0], 100), 0);
	CHECK_EQ(wrong(&p[1], 100), 0);
	torture(p, 2);
	finish(swap);
}

/* A page stays charged where it was; the group can be emptied. */
static void charged(void)
{
	int swap = swap_add(MiB(64));
	long before;
	char *p, *q;

	start();
	p = anon(MiB(16));
	fill(p, MiB(16), 100);
	cgroup_leave();
	before = cgroup_get("graft", "memory.current");
	q = give(&peer, p, MiB(16), PVMMAP_MOVE);
	peer_fill(&peer, q, MiB(16), 200);
	CHECK(labs(cgroup_get("graft", "memory.current") - before) < (long)MiB(1),
	      "%ld -> %ld bytes charged", before, cgroup_get("graft", "memory.current"));
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)MiB(16));
	CHECK(cgroup_get("graft", "memory.current") < before - (long)MiB(15),
	      "the pages are still charged");
	finish(swap);
	cgroup_remove("graft");
}

static const struct test_case cases[] = {
	{.name = "a clone", .run = plain, .seconds = 120},
	{.name = "moved memory", .run = after_move, .seconds = 120},
	{.name = "a clone in place of something", .run = replaced, .level = FULL, .seconds = 120},
	{.name = "twice in one process", .run = twice, .seconds = 120},
	{.name = "from child to parent and back", .run = child_to_parent, .level = FULL, .seconds = 120},
	{.name = "after mremap of both", .run = after_mremap, .level = FULL, .seconds = 120},
	{.name = "the source has gone", .run = source_gone, .level = FULL, .seconds = 120},
	{.name = "the source has died", .run = peer_gone, .level = FULL, .seconds = 120},
	{.name = "huge pages split afterwards", .run = huge_split, .level = FULL, .seconds = 120},
	{.name = "memory cgroups", .run = charged},
};

TEST_MAIN(cases)
