// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): wrong numbers, holes, and the limits of the receiver. Each has
 * its error, and nothing has changed afterwards.
 */
#include "graft.h"

#include <sys/resource.h>

#define SIZE MiB(1)

static struct peer peer;
static char *p;

static void start(void)
{
	need_graft();
	peer = peer_start();
	p = anon(SIZE);
	fill(p, SIZE, 100);
}

/* Both processes are as before, what is at dst too. */
static void fails(char *src, size_t len, char *dst, unsigned long flags, int err)
{
	char *mine = maps_of(getpid()), *theirs = maps_of(peer.pid);
	long ret = graft(-peer.pid, src, len, dst, flags);

	CHECK(ret == -1 && errno == err, "%p, %zu, %p, %lu: %#lx, errno %d (%s), should be %d",
	      (void *)src, len, (void *)dst, flags, ret, errno, strerror(errno), err);
	maps_unchanged(getpid(), mine, "source");
	maps_unchanged(peer.pid, theirs, "receiver");
}

static void fails_both(char *src, size_t len, char *dst, unsigned long flags, int err)
{
	fails(src, len, dst, flags, err);
	fails(src, len, dst, flags | PVMMAP_MOVE, err);
}

static void numbers(void)
{
	char *at;

	start();
	at = peer_anon(&peer, SIZE);
	peer_fill(&peer, at, SIZE, 1);
	fails_both(p, 0, NULL, 0, EINVAL);
	fails_both(p, 1, NULL, 0, EINVAL);
	fails_both(p, PAGE + 8, NULL, 0, EINVAL);
	fails_both(p + 8, PAGE, NULL, 0, EINVAL);
	fails_both(p, PAGE, at + 1, PVMMAP_FIXED, EINVAL);
	fails_both(p, PAGE, at + 1, 0, EINVAL);
	fails_both(p, PAGE, NULL, 8, EINVAL);
	fails_both(p, PAGE, NULL, 1ul << 40, EINVAL);
	fails_both(p, PAGE, at, PVMMAP_FIXED | PVMMAP_FIXED_NOREPLACE, EINVAL);
	fails_both(p, -PAGE, NULL, 0, EINVAL);
	fails_both((char *)-PAGE, 2 * PAGE, NULL, 0, EINVAL);
	fails_both(p, PAGE, (char *)-PAGE, PVMMAP_FIXED, EINVAL);
	fails_both(p, 2 * PAGE, (char *)-PAGE, PVMMAP_FIXED, EINVAL);
	fails_both(p, PAGE, (char *)(1ul << 62), PVMMAP_FIXED, ENOMEM);
	fails_both((char *)(1ul << 62), PAGE, at, PVMMAP_FIXED, EFAULT);
	CHECK_EQ(differing(p, SIZE, 100), 0);
	/* What comes first decides: a hole, and not what else lies behind it. */
	CHECK_OK(munmap(p + SIZE / 2, PAGE));
	fails_both(p, 1ul << 62, at, PVMMAP_FIXED, EFAULT);
	CHECK_EQ(differing(p, SIZE / 2, 100), 0);
	CHECK_EQ(peer_differing(&peer, at, SIZE, 1), 0);
	peer_end(&peer);
}

static void holes(void)
{
	char *at;

	start();
	at = peer_anon(&peer, SIZE);
	peer_fill(&peer, at, SIZE, 1);
	CHECK_OK(munmap(p + SIZE / 2, PAGE));
	fails_both(p, SIZE, at, PVMMAP_FIXED, EFAULT);
	fails_both(p + SIZE / 2, PAGE, at, PVMMAP_FIXED, EFAULT);
	fails_both(p + SIZE / 2 - PAGE, 2 * PAGE, NULL, 0, EFAULT);
	fails_both(p + SIZE / 2, 2 * PAGE, NULL, 0, EFAULT);
	CHECK_EQ(peer_differing(&peer, at, SIZE, 1), 0);
	CHECK_EQ(differing(p, SIZE / 2, 100), 0);
	peer_end(&peer);
}

/* Addresses that only a privileged process may map. */
static void low_addresses(void)
{
	char text[32];
	pid_t pid;

	start();
	if (read_text("/proc/sys/vm/mmap_min_addr", text, sizeof(text)) <= 0 ||
	    atol(text) < (long)PAGE)
		skip("any address may be mapped");
	pid = xfork();
	if (!pid) {
		CHECK_OK(setgid(65534));
		CHECK_OK(setuid(65534));
		CHECK_OK(prctl(PR_SET_DUMPABLE, 1));
		peer = peer_start();
		CHECK_ERR(graft(-peer.pid, p, PAGE, NULL, PVMMAP_FIXED), EPERM);
		CHECK_ERR(graft(-peer.pid, p, PAGE, NULL, PVMMAP_FIXED | PVMMAP_MOVE), EPERM);
		CHECK_EQ(differing(p, SIZE, 100), 0);
		give(&peer, p, PAGE, 0);
		peer_end(&peer);
		_exit(0);
	}
	JOIN(pid);
	peer_end(&peer);
}

static void peer_limit(int resource, unsigned long value)
{
	struct rlimit limit = {value, value};

	CHECK_OK(prlimit(peer.pid, (enum __rlimit_resource)resource, &limit, NULL));
}

/* The receiver's limits count, and what is replaced counts for it. */
static void address_space(void)
{
	char *at;

	start();
	at = peer_anon(&peer, SIZE * 2);
	peer_fill(&peer, at, SIZE, 1);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)(at + SIZE), (long)SIZE), 0);
	peer_limit(RLIMIT_AS, (unsigned long)status_kb(peer.pid, "VmSize") * 1024 + SIZE / 2);
	fails_both(p, SIZE, NULL, 0, ENOMEM);
	fails_both(p, SIZE, at + SIZE / 4 * 3, PVMMAP_FIXED, ENOMEM);
	CHECK_EQ(peer_differing(&peer, at, SIZE, 1), 0);
	CHECK_EQ(graft(-peer.pid, p, SIZE, at + SIZE / 2, PVMMAP_FIXED), (long)(at + SIZE / 2));
	CHECK_EQ(graft(-peer.pid, p, SIZE, at + SIZE / 2, PVMMAP_FIXED | PVMMAP_MOVE),
		 (long)(at + SIZE / 2));
	peer_end(&peer);
}

static void data(void)
{
	char *at;

	start();
	at = peer_anon(&peer, SIZE);
	peer_limit(RLIMIT_DATA, (unsigned long)status_kb(peer.pid, "VmData") * 1024 + SIZE / 2);
	fails_both(p, SIZE, NULL, 0, ENOMEM);
	CHECK_EQ(graft(-peer.pid, p, SIZE, at, PVMMAP_FIXED), (long)at);
	CHECK_OK(mprotect(p, SIZE, PROT_READ));
	give(&peer, p, SIZE, 0); /* what cannot be written is no data */
	peer_end(&peer);
}

static void locked(void)
{
	start();
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_mlockall, 2 /* MCL_FUTURE */), 0);
	fails_both(p, SIZE, NULL, 0, EOPNOTSUPP); /* root has no limit */
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_setgid, 65534), 0);
	peer_limit(RLIMIT_MEMLOCK, SIZE / 2);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_setuid, 65534), 0);
	fails_both(p, SIZE, NULL, 0, EAGAIN);
	fails_both(p, SIZE / 4, NULL, 0, EOPNOTSUPP);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_munlockall), 0);
	give(&peer, p, SIZE, 0);
	peer_end(&peer);
}

static long lines_of(pid_t pid)
{
	char *text = maps_of(pid), *c;
	long n = 0;

	for (c = text; *c; c++)
		n += *c == '\n';
	return n;
}

static void many_mappings(void)
{
	char value[32], *at, *more;
	size_t i;

	start();
	at = peer_anon(&peer, SIZE);
	peer_fill(&peer, at, SIZE, 1);
	/* The peer has many, the source some: 64 of them are too many for the peer. */
	more = peer_anon(&peer, SIZE);
	for (i = 0; i < SIZE; i += 2 * PAGE)
		PEER(&peer, PEER_SYSCALL, SYS_mprotect, (long)(more + i), (long)PAGE, PROT_READ);
	for (i = 0; i < SIZE; i += 8 * PAGE)
		CHECK_OK(mprotect(p + i, PAGE, PROT_READ));
	snprintf(value, sizeof(value), "%ld", lines_of(peer.pid) + 32);
	write_text("/proc/sys/vm/max_map_count", value);
	fails_both(p, SIZE, NULL, 0, ENOMEM);
	fails_both(p, SIZE, at, PVMMAP_FIXED, ENOMEM);
	CHECK_EQ(peer_differing(&peer, at, SIZE, 1), 0);
	write_text("/proc/sys/vm/max_map_count", "65530");
	CHECK_EQ(graft(-peer.pid, p, SIZE, at, PVMMAP_FIXED), (long)at);
	CHECK_EQ(peer_differing(&peer, at, SIZE, 100), 0);
	peer_end(&peer);
}

static long committed(void)
{
	return meminfo_kb("Committed_AS");
}

/* A clone is charged, a move takes the charge along, and all goes in the end. */
static void commit(void)
{
	const long size = (long)(MiB(64) >> 10), slack = size / 4;
	long before, limit;
	char *big, *q;

	start();
	big = anon(MiB(64));
	before = committed();
	q = give(&peer, big, MiB(64), 0);
	CHECK(committed() > before + size - slack, "a clone is not charged: %ld -> %ld kB", before,
	      committed());
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)MiB(64));
	CHECK(labs(committed() - before) < slack, "%ld -> %ld kB", before, committed());
	q = give(&peer, big, MiB(64), PVMMAP_MOVE);
	CHECK(labs(committed() - before) < slack, "a move: %ld -> %ld kB", before, committed());
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)MiB(64));
	CHECK(committed() < before - size + slack, "still charged: %ld -> %ld kB", before,
	      committed());

	limit = meminfo_kb("CommitLimit");
	big = anon((size_t)(limit - committed()) * 1024 / 3 * 2 / PAGE * PAGE);
	write_text("/proc/sys/vm/overcommit_memory", "2");
	before = meminfo_kb("CommitLimit");
	limit = smaps_kb(0, big, "Size");
	if (before - committed() < limit / 2) {
		fails(big, (size_t)limit * 1024, NULL, 0, ENOMEM);
		give(&peer, big, (size_t)limit * 1024, PVMMAP_MOVE);
	} else {
		diag("room for %ld kB more: strict overcommit not tested", before - committed());
	}
	write_text("/proc/sys/vm/overcommit_memory", "0");
	peer_end(&peer);
}

static const struct test_case cases[] = {
	{.name = "wrong numbers", .run = numbers},
	{.name = "holes", .run = holes},
	{.name = "low addresses", .run = low_addresses},
	{.name = "RLIMIT_AS", .run = address_space},
	{.name = "RLIMIT_DATA", .run = data},
	{.name = "locked future mappings", .run = locked},
	{.name = "the number of mappings", .run = many_mappings},
	{.name = "overcommit", .run = commit},
};

TEST_MAIN(cases)
