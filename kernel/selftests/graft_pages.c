// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): each kind of page-table entry. Huge pages, swap entries, pinned
 * pages, pages of KSM, bad ones, locked ones: cloned or moved, without I/O and
 * without copies where that can be.
 */
#include "graft.h"

#include <sys/ioctl.h>

#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif

static struct peer peer;

static void start(void)
{
	need_graft();
	peer = peer_start();
}

static long huge_kb(pid_t pid, const void *at)
{
	return smaps_kb(pid, at, "AnonHugePages");
}

static char *huge(size_t size, uint64_t seed)
{
	char *p = anon_huge(size);

	fill(p, size, seed);
	if (huge_kb(0, p) < (long)(size >> 10))
		skip("no huge pages to be had");
	return p;
}

static void huge_clone(void)
{
	long copied = vmstat("thp_fault_alloc"), split = vmstat("thp_split_pmd");
	char *p, *q;

	start();
	p = huge(MiB(16), 100);
	copied = vmstat("thp_fault_alloc");
	q = give(&peer, p, MiB(16), 0);
	CHECK_EQ((uintptr_t)q % MiB(2), 0);
	CHECK_EQ(huge_kb(peer.pid, q), MiB(16) >> 10);
	CHECK_EQ(huge_kb(0, p), MiB(16) >> 10);
	CHECK_EQ(peer_differing(&peer, q, MiB(16), 100), 0);
	CHECK_EQ(vmstat("thp_fault_alloc"), copied);
	CHECK_EQ(vmstat("thp_split_pmd"), split);
	peer_fill(&peer, q, MiB(16), 900);
	CHECK_EQ(differing(p, MiB(16), 100), 0);
	peer_end(&peer);
	fill(p, MiB(16), 300);
	CHECK_EQ(differing(p, MiB(16), 300), 0);
}

static void huge_move(void)
{
	char *p, *q;

	start();
	p = huge(MiB(16), 100);
	q = give(&peer, p, MiB(16), PVMMAP_MOVE);
	CHECK_EQ(huge_kb(peer.pid, q), MiB(16) >> 10);
	CHECK_EQ(peer_differing(&peer, q, MiB(16), 100), 0);
	peer_fill(&peer, q, MiB(16), 200);
	CHECK_EQ(huge_kb(peer.pid, q), MiB(16) >> 10);
	CHECK_EQ(peer_differing(&peer, q, MiB(16), 200), 0);
	peer_end(&peer);
}

/* In place of huge pages, and back: the tables go where they belong as a whole. */
static void huge_replace(void)
{
	char *p, *q;

	start();
	p = huge(MiB(16), 100);
	q = peer_free(&peer, MiB(20));
	CHECK_EQ(graft(-peer.pid, p, MiB(16), q + MiB(2), PVMMAP_FIXED), (long)(q + MiB(2)));
	CHECK_EQ(graft(-peer.pid, p, MiB(16), q + MiB(4), PVMMAP_FIXED), (long)(q + MiB(4)));
	CHECK_EQ(huge_kb(peer.pid, q + MiB(4)), MiB(16) >> 10);
	CHECK_EQ(peer_differing(&peer, q + MiB(4), MiB(16), 100), 0);
	CHECK_EQ(peer_differing(&peer, q + MiB(2), MiB(2), 100), 0);
	CHECK_EQ(graft(-peer.pid, p, MiB(16), q + MiB(2), PVMMAP_FIXED | PVMMAP_MOVE),
		 (long)(q + MiB(2)));
	CHECK_EQ(peer_differing(&peer, q + MiB(2), MiB(16), 100), 0);
	CHECK_EQ(peer_differing(&peer, q + MiB(18), MiB(2), 100 + MiB(14) / PAGE), 0);
	peer_end(&peer);
}

/* Parts of huge pages, and offsets in 2 MiB that differ. */
static void huge_split(void)
{
	static const size_t from[] = {0, PAGE, MiB(1), MiB(2) - PAGE};
	char *p, *q, *at;
	unsigned int i;

	start();
	p = huge(MiB(16), 100);
	at = peer_free(&peer, MiB(64));
	for (i = 0; i < ARRAY_SIZE(from); i++) {
		size_t len = MiB(6) + from[i];

		q = at + MiB(16) * i + PAGE * 3;
		CHECK_EQ(graft(-peer.pid, p + from[i], len, q, PVMMAP_FIXED_NOREPLACE), (long)q);
		CHECK_EQ(peer_differing(&peer, q, len, 100 + from[i] / PAGE), 0);
		peer_fill(&peer, q, len, 4000);
		CHECK_EQ(differing(p, MiB(16), 100), 0);
	}
	CHECK_EQ(graft(-peer.pid, p + MiB(1), MiB(13), at + MiB(1) + PAGE,
		       PVMMAP_FIXED | PVMMAP_MOVE),
		 (long)(at + MiB(1) + PAGE));
	CHECK_EQ(peer_differing(&peer, at + MiB(1) + PAGE, MiB(13), 100 + MiB(1) / PAGE), 0);
	CHECK_EQ(differing(p, MiB(1), 100), 0);
	CHECK_EQ(differing(p + MiB(14), MiB(2), 100 + MiB(14) / PAGE), 0);
	peer_end(&peer);
}

static char *swapped(size_t size, uint64_t seed)
{
	char *p = anon(size);
	size_t i, there = 0;

	fill(p, size, seed);
	page_out(p, size);
	for (i = 0; i < size; i += PAGE)
		there += !!(pagemap(0, p + i) & PM_SWAP);
	if (there < size / PAGE * 9 / 10)
		skip("only %zu of %zu pages are on swap", there, size / PAGE);
	return p;
}

/* No page is read to clone it; each process reads its own, later. */
static void swap_entries(bool move)
{
	long in, anon_kb, swap_kb;
	char *p, *q;
	int id;

	start();
	id = swap_add(MiB(256));
	p = swapped(MiB(8), 100);
	in = vmstat("pswpin");
	anon_kb = meminfo_kb("AnonPages");
	swap_kb = meminfo_kb("SwapFree");
	q = give(&peer, p, MiB(8), move ? PVMMAP_MOVE : 0);
	CHECK_EQ(vmstat("pswpin"), in);
	CHECK(meminfo_kb("AnonPages") < anon_kb + 2048, "the memory has been read in");
	CHECK(meminfo_kb("SwapFree") > swap_kb - 4096, "the memory is on swap twice");
	CHECK(smaps_kb(peer.pid, q, "Swap") >= (long)(MiB(8) >> 10) * 9 / 10,
	      "%ld kB of swap in the receiver", smaps_kb(peer.pid, q, "Swap"));
	CHECK_EQ(peer_differing(&peer, q, MiB(8), 100), 0);
	peer_fill(&peer, q, MiB(8), 500);
	if (!move) {
		CHECK_EQ(differing(p, MiB(8), 100), 0);
		fill(p, MiB(8), 700);
		CHECK_EQ(peer_differing(&peer, q, MiB(8), 500), 0);
	}
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_madvise, (long)q, (long)MiB(8), MADV_PAGEOUT), 0);
	CHECK_EQ(peer_differing(&peer, q, MiB(8), 500), 0);
	peer_end(&peer);
	swap_remove(id);
}

static void swap_clone(void)
{
	swap_entries(false);
}

static void swap_move(void)
{
	swap_entries(true);
}

/* swapoff() finds the entries of a process that has none but those it was given. */
static void swap_off(void)
{
	char *p, *q, *r;
	int id;

	start();
	id = swap_add(MiB(256));
	p = swapped(MiB(8), 100);
	q = give(&peer, p, MiB(8), 0);
	r = give(&peer, p, MiB(8), PVMMAP_MOVE);
	swap_remove(id);
	CHECK_EQ(smaps_kb(peer.pid, q, "Swap"), 0);
	CHECK_EQ(smaps_kb(peer.pid, r, "Swap"), 0);
	peer_fill(&peer, r, MiB(8), 600);
	CHECK_EQ(peer_differing(&peer, q, MiB(8), 100), 0);
	CHECK_EQ(peer_differing(&peer, r, MiB(8), 600), 0);
	peer_end(&peer);
}

/* More references than one byte counts: continuations. */
static void swap_many(void)
{
	char *p, *q[80];
	int id, i;

	start();
	id = swap_add(MiB(256));
	p = swapped(MiB(1), 100);
	for (i = 0; i < 80; i++)
		q[i] = give(&peer, p, MiB(1), 0);
	peer_fill(&peer, q[40], MiB(1), 900);
	for (i = 0; i < 80; i++)
		CHECK_EQ(peer_differing(&peer, q[i], MiB(1), i == 40 ? 900 : 100), 0);
	CHECK_EQ(differing(p, MiB(1), 100), 0);
	peer_end(&peer);
	swap_remove(id);
}

/* ---- pinned pages: the driver that upstream's tests use ---------------------- */

struct pin_longterm_test {
	uint64_t addr;
	uint64_t size;
	uint32_t flags;
};

#define PIN_LONGTERM_TEST_START _IOW('g', 7, struct pin_longterm_test)
#define PIN_LONGTERM_TEST_STOP _IO('g', 8)
#define PIN_LONGTERM_TEST_READ _IOW('g', 9, uint64_t)
#define PIN_LONGTERM_TEST_FLAG_USE_FAST 2

static void pin(int fd, char *p, size_t size, uint32_t flags)
{
	struct pin_longterm_test t = {.addr = (uintptr_t)p, .size = size, .flags = flags};

	if (fd < 0)
		skip("no /sys/kernel/debug/gup_test");
	CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_START, &t));
}

/* What a device would read is what the source wrote, and not the receiver. */
static void pinned_memory(char *p, size_t size, bool move, uint32_t flags)
{
	int fd = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);
	char *copy = anon(size), *q;
	uint64_t to = (uintptr_t)copy;

	pin(fd, p, size, flags);
	q = give(&peer, p, size, move ? PVMMAP_MOVE : 0);
	peer_fill(&peer, q, size, 5000);
	CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_READ, &to));
	CHECK_EQ(differing(copy, size, 100), 0);
	if (!move) {
		fill(p, size, 800);
		CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_READ, &to));
		CHECK_EQ(differing(copy, size, 800), 0);
	}
	CHECK_EQ(peer_differing(&peer, q, size, 5000), 0);
	CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_STOP));
	close(fd);
}

static void pinned(void)
{
	unsigned int i;

	start();
	for (i = 0; i < 4; i++) {
		char *p = anon(MiB(1));

		fill(p, MiB(1), 100);
		pinned_memory(p, MiB(1), i & 1, i & 2 ? PIN_LONGTERM_TEST_FLAG_USE_FAST : 0);
	}
	peer_end(&peer);
}

static void pinned_huge(void)
{
	start();
	pinned_memory(huge(MiB(4), 100), MiB(4), false, 0);
	pinned_memory(huge(MiB(4), 100), MiB(4), true, 0);
	peer_end(&peer);
}

/* ---- KSM --------------------------------------------------------------------- */

static void same(char *p, size_t size)
{
	size_t i;

	memset(p, 0x5a, size);
	for (i = 0; i < size; i += PAGE)
		*(long *)(p + i) = 42;
}

static void merge(char *p, size_t size)
{
	if (!try_write_text("/sys/kernel/mm/ksm/run", "1"))
		skip("no KSM");
	write_text("/sys/kernel/mm/ksm/pages_to_scan", "20000");
	write_text("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	CHECK_OK(madvise(p, size, MADV_MERGEABLE));
	WAIT_FOR(smaps_kb(0, p, "KSM") >= (long)(size >> 10) / 2, 60);
}

static void ksm(void)
{
	char *p, *q, *r;
	size_t i;

	start();
	p = anon(MiB(2));
	same(p, MiB(2));
	merge(p, MiB(2));
	q = give(&peer, p, MiB(1), 0);
	r = give(&peer, p + MiB(1), MiB(1), PVMMAP_MOVE);
	CHECK_EQ(smaps_kb(peer.pid, q, "KSM"), 0);
	for (i = 0; i < MiB(1); i += PAGE) {
		CHECK_EQ(peer_get(&peer, q + i), 42);
		CHECK_EQ(peer_get(&peer, r + i), 42);
		CHECK_EQ(p[i + 9], 0x5a);
	}
	peer_fill(&peer, q, MiB(1), 1);
	for (i = 0; i < MiB(1); i += PAGE)
		CHECK_EQ(*(long *)(p + i), 42);
	/* All KSM pages can be taken apart: none is mapped where KSM does not know it. */
	write_text("/sys/kernel/mm/ksm/run", "2");
	CHECK_EQ(smaps_kb(0, p, "KSM"), 0);
	CHECK_EQ(peer_differing(&peer, q, MiB(1), 1), 0);
	peer_end(&peer);
}

/* Memory that was cloned is merged afterwards, on both sides. */
static void ksm_later(void)
{
	char *p, *q;
	size_t i;

	start();
	p = anon(MiB(1));
	same(p, MiB(1));
	q = give(&peer, p, MiB(1), 0);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_madvise, (long)q, (long)MiB(1), MADV_MERGEABLE), 0);
	merge(p, MiB(1));
	peer_fill(&peer, q, MiB(1) / 2, 1);
	for (i = 0; i < MiB(1); i += PAGE)
		CHECK_EQ(*(long *)(p + i), 42);
	write_text("/sys/kernel/mm/ksm/run", "2");
	CHECK_EQ(peer_differing(&peer, q, MiB(1) / 2, 1), 0);
	CHECK_EQ(peer_get(&peer, q + MiB(1) - PAGE), 42);
	peer_end(&peer);
}

/* ---- bad memory, locked memory ------------------------------------------------ */

static void poison(void)
{
	char *p, *q;

	start();
	p = anon(4 * PAGE);
	fill(p, 4 * PAGE, 100);
	if (madvise(p + PAGE, PAGE, MADV_HWPOISON))
		skip("no MADV_HWPOISON: %s", strerror(errno));
	q = give(&peer, p, 4 * PAGE, 0);
	CHECK_EQ(PEER(&peer, PEER_TRY_READ, (long)(q + PAGE)), SIGBUS);
	CHECK_EQ(peer_get(&peer, q + 2 * PAGE), 102);
	q = give(&peer, p, 4 * PAGE, PVMMAP_MOVE);
	CHECK_EQ(PEER(&peer, PEER_TRY_READ, (long)(q + PAGE)), SIGBUS);
	CHECK_EQ(peer_get(&peer, q), 100);
	peer_end(&peer);
}

static void locked(void)
{
	long mlocked = meminfo_kb("Mlocked"), mine;
	char *p, *q;

	start();
	p = anon(MiB(2));
	CHECK_OK(mlock(p, MiB(2)));
	fill(p, MiB(2), 100);
	mine = status_kb(0, "VmLck");
	q = give(&peer, p, MiB(1), 0);
	CHECK_EQ(status_kb(peer.pid, "VmLck"), 0);
	CHECK_EQ(status_kb(0, "VmLck"), mine);
	q = give(&peer, p, MiB(1), PVMMAP_MOVE);
	CHECK_EQ(status_kb(peer.pid, "VmLck"), 0);
	CHECK_EQ(status_kb(0, "VmLck"), mine - 1024);
	peer_fill(&peer, q, MiB(1), 200);
	CHECK_OK(munmap(p + MiB(1), MiB(1)));
	CHECK_EQ(status_kb(0, "VmLck"), mine - 2048);
	WAIT_FOR(meminfo_kb("Mlocked") <= mlocked + 64, 10);
	peer_end(&peer);
}

static const struct test_case cases[] = {
	{.name = "huge pages are cloned as such", .run = huge_clone},
	{.name = "huge pages are moved as such", .run = huge_move},
	{.name = "huge pages in place of others", .run = huge_replace},
	{.name = "parts of huge pages", .run = huge_split},
	{.name = "swap entries are cloned without I/O", .run = swap_clone},
	{.name = "swap entries are moved without I/O", .run = swap_move},
	{.name = "swapoff after both", .run = swap_off},
	{.name = "a swap entry many times", .run = swap_many},
	{.name = "pinned pages are copied", .run = pinned},
	{.name = "pinned huge pages are copied", .run = pinned_huge},
	{.name = "pages of KSM are copied", .run = ksm},
	{.name = "KSM after a clone", .run = ksm_later},
	{.name = "bad memory", .run = poison},
	{.name = "locked memory", .run = locked},
};

TEST_MAIN(cases)
