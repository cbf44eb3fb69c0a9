// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): what it means. Private memory is cloned copy-on-write, or
 * moved; shared memory is shared; where it goes and what it replaces.
 */
#include "graft.h"

#define SIZE MiB(4)

static struct peer peer;

static void start(void)
{
	need_graft();
	peer = peer_start();
}

static void isolated(char *mine, char *theirs)
{
	size_t half = SIZE / 2;

	CHECK_EQ(differing(mine, SIZE, 100), 0);
	CHECK_EQ(peer_differing(&peer, theirs, SIZE, 100), 0);
	fill(mine, half, 5000);
	CHECK_EQ(peer_differing(&peer, theirs, SIZE, 100), 0);
	peer_fill(&peer, theirs, SIZE, 7000);
	CHECK_EQ(differing(mine, half, 5000), 0);
	CHECK_EQ(differing(mine + half, half, 100 + half / PAGE), 0);
	fill(mine, SIZE, 9000);
	CHECK_EQ(peer_differing(&peer, theirs, SIZE, 7000), 0);
}

static void into_peer(void)
{
	char *p, *q;

	start();
	p = anon(SIZE);
	fill(p, SIZE, 100);
	q = give(&peer, p, SIZE, 0);
	isolated(p, q);
	peer_end(&peer);
	CHECK_EQ(differing(p, SIZE, 9000), 0);
}

static void from_peer(void)
{
	char *p, *q;

	start();
	q = peer_anon(&peer, SIZE);
	peer_fill(&peer, q, SIZE, 100);
	p = (char *)CHECK_OK(graft(peer.pid, q, SIZE, NULL, 0));
	isolated(p, q);
	peer_end(&peer);
	CHECK_EQ(differing(p, SIZE, 9000), 0);
}

/* The receiver writes all of it: no fault, so nothing was left copy-on-write. */
static void moved(void)
{
	long before, rss, theirs;
	char *p, *q;

	start();
	q = peer_anon(&peer, SIZE);
	peer_fill(&peer, q, SIZE, 100);
	theirs = status_kb(peer.pid, "RssAnon");
	rss = status_kb(0, "RssAnon");
	p = (char *)CHECK_OK(graft(peer.pid, q, SIZE, NULL, PVMMAP_MOVE));
	CHECK(status_kb(0, "RssAnon") >= rss + (long)(SIZE >> 10) - 256,
	      "the pages are not counted here");
	CHECK(status_kb(peer.pid, "RssAnon") <= theirs - (long)(SIZE >> 10) + 256,
	      "they are counted there");
	CHECK_EQ(PEER(&peer, PEER_TRY_READ, (long)q), SIGSEGV);
	CHECK_EQ(PEER(&peer, PEER_TRY_READ, (long)(q + SIZE - PAGE)), SIGSEGV);
	before = minor_faults();
	CHECK_EQ(differing(p, SIZE, 100), 0);
	fill(p, SIZE, 200);
	CHECK(minor_faults() - before < 8, "%ld faults to write moved pages",
	      minor_faults() - before);
	peer_end(&peer);
	CHECK_EQ(differing(p, SIZE, 200), 0);
}

/* Out of the middle of a mapping: what is around stays. */
static void moved_middle(void)
{
	char *p, *q, *mid;

	start();
	p = anon(SIZE);
	fill(p, SIZE, 100);
	mid = p + 3 * PAGE;
	q = give(&peer, mid, MiB(1), PVMMAP_MOVE);
	CHECK_EQ(differing(p, 3 * PAGE, 100), 0);
	CHECK_EQ(try_read(mid), SIGSEGV);
	CHECK_EQ(try_read(mid + MiB(1) - 1), SIGSEGV);
	CHECK_EQ(differing(mid + MiB(1), SIZE - MiB(1) - 3 * PAGE, 103 + MiB(1) / PAGE), 0);
	CHECK_EQ(peer_differing(&peer, q, MiB(1), 103), 0);
	peer_end(&peer);
}

static void addresses(void)
{
	char *p, *at;

	start();
	p = anon(SIZE);
	fill(p, SIZE, 100);
	at = peer_free(&peer, SIZE * 4);
	/* A hint that is free is taken, one that is not is not. */
	CHECK_EQ(graft(-peer.pid, p, SIZE, at, 0), (long)at);
	CHECK(graft(-peer.pid, p, SIZE, at, 0) != (long)at, "something was there");
	CHECK_ERR(graft(-peer.pid, p, SIZE, at, PVMMAP_FIXED_NOREPLACE), EEXIST);
	CHECK_ERR(graft(-peer.pid, p, SIZE, at + SIZE - PAGE, PVMMAP_FIXED_NOREPLACE), EEXIST);
	CHECK_EQ(graft(-peer.pid, p, SIZE, at + SIZE, PVMMAP_FIXED_NOREPLACE), (long)(at + SIZE));
	CHECK_EQ(peer_differing(&peer, at, SIZE, 100), 0);
	CHECK_EQ(peer_differing(&peer, at + SIZE, SIZE, 100), 0);
	peer_end(&peer);
}

/*
 * What PVMMAP_FIXED replaces: small and huge pages, several mappings and holes, at
 * offsets in 2 MiB that the source has or has not.
 */
static void replaced(size_t shift, size_t source_shift, size_t len)
{
	size_t all = MiB(16), end = shift + len;
	char *src = anon_huge(all), *at;

	at = peer_free(&peer, all + MiB(4));
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_mmap, (long)at, (long)all, RW,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		 (long)at);
	PEER(&peer, PEER_SYSCALL, SYS_madvise, (long)at, (long)all, MADV_HUGEPAGE);
	peer_fill(&peer, at, all, 1);
	PEER(&peer, PEER_SYSCALL, SYS_mprotect, (long)(at + MiB(5)), (long)MiB(1), PROT_READ);
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)(at + MiB(7)), (long)MiB(1));
	fill(src, all, 1000);
	/* Several mappings in the source too. */
	CHECK_OK(mprotect(src + source_shift + MiB(1), PAGE, PROT_READ));

	CHECK_EQ(graft(-peer.pid, src + source_shift, len, at + shift, PVMMAP_FIXED),
		 (long)(at + shift));
	CHECK_EQ(peer_differing(&peer, at + shift, len, 1000 + source_shift / PAGE), 0);
	CHECK_EQ(peer_differing(&peer, at, shift, 1), 0);
	if (end < MiB(7))
		CHECK_EQ(peer_differing(&peer, at + end, MiB(7) - end, 1 + end / PAGE), 0);
	if (end < MiB(8))
		end = MiB(8);
	if (end < all)
		CHECK_EQ(peer_differing(&peer, at + end, all - end, 1 + end / PAGE), 0);
	CHECK_EQ(differing(src, all, 1000), 0);
	PEER(&peer, PEER_FILL, (long)(at + shift), (long)MiB(1), 4000);
	CHECK_EQ(differing(src, all, 1000), 0);
	munmap(src, all);
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)at, (long)all);
}

static void replacing(void)
{
	start();
	replaced(MiB(2), MiB(2), MiB(8));
	replaced(MiB(2), MiB(2) + PAGE, MiB(6));
	replaced(PAGE, PAGE, MiB(9));
	replaced(MiB(1), 0, MiB(7) + PAGE);
	replaced(0, 0, MiB(16));
	replaced(MiB(4) + 7 * PAGE, MiB(6) + 7 * PAGE, MiB(4));
	peer_end(&peer);
}

static void replacing_by_move(void)
{
	char *p, *at;

	start();
	p = anon_huge(MiB(8));
	fill(p, MiB(8), 100);
	at = peer_anon(&peer, MiB(12));
	peer_fill(&peer, at, MiB(12), 1);
	CHECK_EQ(graft(-peer.pid, p, MiB(8), at + MiB(1), PVMMAP_FIXED | PVMMAP_MOVE),
		 (long)(at + MiB(1)));
	CHECK_EQ(peer_differing(&peer, at + MiB(1), MiB(8), 100), 0);
	CHECK_EQ(peer_differing(&peer, at, MiB(1), 1), 0);
	CHECK_EQ(peer_differing(&peer, at + MiB(9), MiB(3), 1 + MiB(9) / PAGE), 0);
	CHECK_EQ(try_read(p), SIGSEGV);
	peer_end(&peer);
}

/* Only a part of the destination is taken, and the rest is the best free range. */
static void replacing_part(void)
{
	char *p, *q;
	size_t kept;

	start();
	p = anon(MiB(16));
	fill(p, MiB(16), 100);
	for (kept = PAGE; kept < MiB(8); kept *= 5) {
		q = give(&peer, p, MiB(16), 0);
		peer_fill(&peer, q, MiB(16), 1);
		CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)(q + kept),
			      (long)(MiB(16) - kept)),
			 0);
		CHECK_EQ(graft(-peer.pid, p, MiB(16), q, PVMMAP_FIXED), (long)q);
		CHECK_EQ(peer_differing(&peer, q, MiB(16), 100), 0);
		CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)(MiB(16) - kept)), 0);
		CHECK_EQ(graft(-peer.pid, p, MiB(16), q, PVMMAP_FIXED), (long)q);
		CHECK_EQ(peer_differing(&peer, q, MiB(16), 100), 0);
		CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)MiB(16)), 0);
	}
	peer_end(&peer);
}

/* Shared memory stays shared, with the rights of the source. */
static void shared(void)
{
	int fd, ro;
	char *p, *q, *r, path[64];

	start();
	fd = (int)CHECK_OK(syscall(SYS_memfd_create, "graft", 0));
	CHECK_OK(ftruncate(fd, (off_t)SIZE));
	p = mmap(NULL, SIZE, RW, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED, "mmap: %s", strerror(errno));
	fill(p, SIZE, 100);
	q = give(&peer, p + PAGE, SIZE - PAGE, 0);
	CHECK_EQ(peer_differing(&peer, q, SIZE - PAGE, 101), 0);
	p[PAGE] = 'x';
	CHECK_EQ((char)peer_get(&peer, q), 'x');
	peer_put(&peer, q, 77);
	CHECK_EQ(*(long *)(p + PAGE), 77);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = (int)CHECK_OK(open(path, O_RDONLY));
	r = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, ro, 0);
	CHECK(r != MAP_FAILED, "mmap: %s", strerror(errno));
	q = give(&peer, r, SIZE, 0);
	CHECK_EQ(peer_get(&peer, q + PAGE), 77);
	CHECK_EQ(PEER(&peer, PEER_TRY_WRITE, (long)q, 1), SIGSEGV);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_mprotect, (long)q, (long)SIZE, RW), -1);
	CHECK_EQ(errno, EACCES);

	q = give(&peer, p, SIZE, PVMMAP_MOVE);
	CHECK_EQ(try_read(p), SIGSEGV);
	close(fd);
	close(ro);
	CHECK_EQ(peer_get(&peer, q + PAGE), 77);
	peer_put(&peer, q, 78);
	CHECK_EQ(*(volatile long *)r, 78);
	peer_end(&peer);
}

/* Several mappings of different kinds in one call. */
static void mixed(void)
{
	char *p, *q;

	start();
	p = anon(MiB(4));
	fill(p, MiB(4), 100);
	CHECK_OK(mprotect(p + MiB(1), MiB(1), PROT_READ));
	CHECK_OK(mprotect(p + MiB(3), PAGE, PROT_NONE));
	CHECK(mmap(p + MiB(2), MiB(1), RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		      p + MiB(2),
	      "mmap: %s", strerror(errno));
	fill(p + MiB(2), MiB(1), 600);
	q = give(&peer, p, MiB(4), 0);
	CHECK_EQ(peer_differing(&peer, q, MiB(2), 100), 0);
	CHECK_EQ(peer_differing(&peer, q + MiB(2), MiB(1), 600), 0);
	CHECK_EQ(PEER(&peer, PEER_TRY_WRITE, (long)(q + MiB(1)), 1), SIGSEGV);
	CHECK_EQ(PEER(&peer, PEER_TRY_READ, (long)(q + MiB(3))), SIGSEGV);
	CHECK_EQ(peer_differing(&peer, q + MiB(3) + PAGE, MiB(1) - PAGE, 101 + MiB(3) / PAGE), 0);
	/* Private memory that was made read-only may be made writable again. */
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_mprotect, (long)(q + MiB(1)), (long)MiB(1), RW), 0);
	peer_fill(&peer, q + MiB(1), MiB(1), 900);
	CHECK_EQ(differing(p + MiB(1), MiB(1), 100 + MiB(1) / PAGE), 0);
	peer_end(&peer);
}

/* Memory that nobody has touched, or only read, reads as zero. */
static void untouched(void)
{
	char *p, *q;
	size_t i;

	start();
	p = anon(SIZE);
	for (i = 0; i < SIZE / 2; i += PAGE)
		CHECK_EQ(*(volatile long *)(p + i), 0);
	q = give(&peer, p, SIZE, 0);
	p[0] = 1;
	CHECK_EQ(peer_get(&peer, q), 0);
	CHECK_EQ(peer_get(&peer, q + SIZE - PAGE), 0);
	q = give(&peer, p, SIZE, PVMMAP_MOVE);
	CHECK_EQ(peer_get(&peer, q), 1);
	CHECK_EQ(peer_get(&peer, q + PAGE), 0);
	peer_put(&peer, q + SIZE - PAGE, 5);
	peer_end(&peer);
}

static void forks(void)
{
	char *p, *q;
	pid_t pid;

	start();
	p = anon(SIZE);
	fill(p, SIZE, 100);
	q = give(&peer, p, SIZE, 0);
	CHECK_EQ(PEER(&peer, PEER_FORK_DIFFERING, (long)q, (long)SIZE, 100), 0);
	pid = xfork();
	if (!pid) {
		fill(p, SIZE, 300);
		_exit(differing(p, SIZE, 300) != 0);
	}
	JOIN(pid);
	CHECK_EQ(peer_differing(&peer, q, SIZE, 100), 0);
	CHECK_EQ(differing(p, SIZE, 100), 0);
	/* From a child, of memory that its parent has too. */
	pid = xfork();
	if (!pid) {
		fill(p, MiB(1), 500);
		give(&peer, p, SIZE, PVMMAP_MOVE);
		_exit(0);
	}
	JOIN(pid);
	CHECK_EQ(differing(p, SIZE, 100), 0);
	CHECK_EQ(peer_differing(&peer, q, SIZE, 100), 0);
	peer_end(&peer);
}

/* How many there are; KASAN keeps what was freed until a cache is shrunk. */
static long objects(const char *cache)
{
	char line[512], name[64];
	long active, n = -1;
	FILE *f;

	snprintf(line, sizeof(line), "/sys/kernel/slab/%s/shrink", cache);
	try_write_text(line, "1");
	f = fopen("/proc/slabinfo", "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", name, &active) == 2 && !strcmp(name, cache))
			n = active;
	if (f)
		fclose(f);
	return n;
}

/* A buffer that is handed to and fro does not drag all its past along. */
static void to_and_fro(void)
{
	long before, after;
	char *p, *q;
	int i;

	start();
	p = anon(MiB(1));
	fill(p, MiB(1), 0);
	before = objects("anon_vma_chain");
	for (i = 1; i <= 100; i++) {
		q = give(&peer, p, MiB(1), PVMMAP_MOVE);
		CHECK_EQ(peer_differing(&peer, q, PAGE, (uint64_t)i - 1), 0);
		peer_fill(&peer, q, MiB(1), (uint64_t)i);
		p = (char *)CHECK_OK(graft(peer.pid, q, MiB(1), NULL, PVMMAP_MOVE));
	}
	CHECK_EQ(differing(p, MiB(1), 100), 0);
	after = objects("anon_vma_chain");
	diag("anon_vma_chain: %ld -> %ld after 200 moves", before, after);
	CHECK(before < 0 || after - before < 80, "chains grow");
	peer_end(&peer);
}

static const struct test_case cases[] = {
	{.name = "into another process", .run = into_peer},
	{.name = "from another process", .run = from_peer},
	{.name = "a move leaves nothing copy-on-write", .run = moved},
	{.name = "a move out of the middle", .run = moved_middle},
	{.name = "where it goes", .run = addresses},
	{.name = "replacing what is there", .run = replacing},
	{.name = "replacing by a move", .run = replacing_by_move},
	{.name = "replacing a part", .run = replacing_part},
	{.name = "shared memory", .run = shared},
	{.name = "several mappings", .run = mixed},
	{.name = "untouched memory", .run = untouched},
	{.name = "fork of either side", .run = forks},
	{.name = "to and fro", .run = to_and_fro},
};

TEST_MAIN(cases)
