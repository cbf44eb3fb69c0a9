// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every advice on a whole region, on a part of it, and by a reader: it works for
 * all attachers, or it is refused, and in no case is data lost or the mapping cut.
 * Advice that would change the mapping's flags is refused: those are the same for
 * all. The table says which is which.
 */
#include "harness.h"

struct advice {
	const char *name;
	int number;
	int whole, part; /* errno, 0: works, ANY: either will do */
};

#define ANY (-1)

static const struct advice table[] = {
	{ "NORMAL", MADV_NORMAL, ANY, ANY },
	{ "RANDOM", MADV_RANDOM, ANY, EINVAL },
	{ "SEQUENTIAL", MADV_SEQUENTIAL, ANY, EINVAL },
	{ "WILLNEED", MADV_WILLNEED, 0, 0 },
	{ "DONTNEED", MADV_DONTNEED, ANY, ANY },
	{ "FREE", MADV_FREE, EINVAL, EINVAL },
	{ "DONTFORK", MADV_DONTFORK, ANY, EINVAL },
	{ "DOFORK", MADV_DOFORK, ANY, ANY },
	{ "MERGEABLE", MADV_MERGEABLE, ANY, ANY },
	{ "UNMERGEABLE", MADV_UNMERGEABLE, ANY, ANY },
	{ "HUGEPAGE", MADV_HUGEPAGE, ANY, EINVAL },
	{ "NOHUGEPAGE", MADV_NOHUGEPAGE, ANY, EINVAL },
	{ "DONTDUMP", MADV_DONTDUMP, 0, EINVAL },
	{ "DODUMP", MADV_DODUMP, 0, EINVAL },
	{ "WIPEONFORK", MADV_WIPEONFORK, EINVAL, EINVAL },
	{ "KEEPONFORK", MADV_KEEPONFORK, ANY, ANY },
	{ "COLD", MADV_COLD, 0, 0 },
	{ "PAGEOUT", MADV_PAGEOUT, 0, 0 },
	{ "POPULATE_READ", MADV_POPULATE_READ, ANY, 0 },
	{ "COLLAPSE", MADV_COLLAPSE, ANY, ANY },
	{ "DONTNEED_LOCKED", 24, ANY, ANY },
};

static struct region r;

#define FILLED MiB(8)

static void fill(void)
{
	size_t i;

	for (i = 0; i < FILLED; i += PAGE)
		*(size_t *)(r.addr + i) = ~i;
}

static void whole(const char *name)
{
	size_t i;

	for (i = 0; i < FILLED; i += PAGE)
		CHECK(*(volatile size_t *)(r.addr + i) == ~i, "data is lost at %#zx after %s", i, name);
}

static void advise(const struct advice *a, size_t at, size_t length, int want, const char *who)
{
	int err = madvise(r.addr + at, length, a->number) ? errno : 0;

	diag("%-16s %-7s %s", a->name, who, err ? strerror(err) : "works");
	if (want != ANY)
		CHECK(err == want, "%s on %s gives errno %d, should be %d", a->name, who, err, want);
	whole(a->name);
}

static void matrix(void)
{
	size_t i;
	pid_t pid;

	region_create(&r, "matrix", GiB(1));
	fill();
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		/* First the part: what already holds for all is no change. */
		advise(&table[i], MiB(2) + PAGE, MiB(4), table[i].part, "part");
		if (table[i].number != MADV_POPULATE_READ)
			advise(&table[i], 0, r.size, table[i].whole, "all");
		if (table[i].number == MADV_DONTFORK)
			CHECK_OK(madvise(r.addr, r.size, MADV_DOFORK));
		pid = xfork();
		if (!pid) {
			whole(table[i].name);
			_exit(0);
		}
		JOIN(pid);
	}
}

static void matrix_reader(void)
{
	struct region own;
	size_t i;

	region_create(&r, "reader", GiB(1));
	fill();
	region_detach(&r);
	region_attach(&own, "reader", O_RDONLY, PROT_READ);
	r = own;
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		advise(&table[i], MiB(2), MiB(4), ANY, "reader");
		CHECK_EQ(try_write(r.addr, 1), SIGSEGV);
	}
}

/* One mapping stays one mapping, of its full size. */
static void not_cut(void)
{
	char text[4096];
	unsigned long start, end;
	size_t i;

	region_create(&r, "uncut", GiB(1));
	fill();
	for (i = 0; i < ARRAY_SIZE(table); i++)
		madvise(r.addr + MiB(4), PAGE * 3, table[i].number);
	CHECK(smaps_text(0, r.addr, text, sizeof(text)), "the mapping is gone");
	CHECK_EQ(sscanf(text, "%lx-%lx", &start, &end), 2);
	CHECK_EQ(start, (uintptr_t)r.addr);
	CHECK_EQ(end, (uintptr_t)r.addr + r.size);
	whole("all");
}

/* process_madvise(2) by another process goes the same ways. */
static void from_outside(void)
{
	struct { void *base; size_t length; } iov;
	int pidfd, *step = shared_alloc(PAGE);
	pid_t pid;

	region_create(&r, "outside", GiB(1));
	fill();
	pid = xfork();
	if (!pid) {
		WAIT_FOR(LOAD(step), 30);
		whole("process_madvise");
		_exit(0);
	}
	pidfd = (int)CHECK_OK(syscall(SYS_pidfd_open, pid, 0));
	iov.base = r.addr;
	iov.length = FILLED;
	CHECK(syscall(SYS_process_madvise, pidfd, &iov, 1, MADV_PAGEOUT, 0) == (long)FILLED,
	      "PAGEOUT: %s", strerror(errno));
	CHECK(syscall(SYS_process_madvise, pidfd, &iov, 1, MADV_COLD, 0) == (long)FILLED,
	      "COLD: %s", strerror(errno));
	CHECK(syscall(SYS_process_madvise, pidfd, &iov, 1, MADV_WILLNEED, 0) == (long)FILLED,
	      "WILLNEED: %s", strerror(errno));
	STORE(step, 1);
	JOIN(pid);
	whole("process_madvise");
}

/*
 * Who walks page tables under the mmap_lock, like smaps, does not expect that
 * MADV_DONTNEED, which holds it for reading as well, takes a table away. It would
 * show as a fault that makes the link again.
 */
static void keeps_tables(const char *name, int flags, int prot)
{
	struct region own;
	long before;
	size_t i;

	region_attach(&own, name, flags, prot);
	(void)*(volatile char *)own.addr;
	before = minor_faults(); /* once for what it touches itself */
	before = minor_faults();
	for (i = 0; i < 100; i++) {
		madvise(own.addr, i & 1 ? own.size : PAGE, MADV_DONTNEED);
		(void)*(volatile char *)own.addr;
	}
	before = minor_faults() - before;
	CHECK(before < 10, "%ld faults after 100 times DONTNEED", before);
	region_detach(&own);
}

static void dontneed_keeps_tables(void)
{
	region_create(&r, "kept", GiB(1));
	fill();
	region_detach(&r);
	keeps_tables("kept", O_RDWR, PROT_READ | PROT_WRITE);
	keeps_tables("kept", O_RDONLY, PROT_READ);
	region_attach(&r, "kept", O_RDWR, PROT_READ | PROT_WRITE);
	whole("DONTNEED");
}

static const struct test_case cases[] = {
	{ .name = "every advice, on all and on a part", .run = matrix },
	{ .name = "every advice by a reader", .run = matrix_reader },
	{ .name = "no advice cuts the mapping", .run = not_cut },
	{ .name = "DONTNEED keeps the tables", .run = dontneed_keeps_tables },
	{ .name = "process_madvise", .run = from_outside },
};

TEST_MAIN(cases)
