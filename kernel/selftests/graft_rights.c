// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap(): who may, with whom, and which memory. Whatever is refused has
 * its error, and leaves the mappings of both processes as they were.
 */
#include "graft.h"

#include <linux/aio_abi.h>
#include <linux/userfaultfd.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>

static struct peer peer;

static void start(void)
{
	need_graft();
	peer = peer_start();
}

/* The call fails both ways and with every flag, and nothing is different then. */
static void refused_with(char *p, size_t len, int err, unsigned long extra)
{
	static const unsigned long flags[] = {0, PVMMAP_MOVE, PVMMAP_FIXED,
					      PVMMAP_FIXED | PVMMAP_MOVE};
	char *at = peer_anon(&peer, len), *mine = maps_of(getpid()), *theirs = maps_of(peer.pid);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		long ret = graft(-peer.pid, p, len, flags[i] & PVMMAP_FIXED ? at : NULL,
				 flags[i] | extra);

		CHECK(ret == -1 && errno == err, "flags %lu: %ld, errno %d (%s), should be %d",
		      flags[i], ret, errno, strerror(errno), err);
	}
	maps_unchanged(getpid(), mine, "source");
	maps_unchanged(peer.pid, theirs, "receiver");
	PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)at, (long)len);
}

static void refused(char *p, size_t len)
{
	refused_with(p, len, EOPNOTSUPP, 0);
}

/* Memory of three pages, whose middle one is special: every range with it is refused. */
static char *three(void)
{
	char *p = anon(3 * PAGE);

	fill(p, 3 * PAGE, 100);
	return p;
}

static void refused_middle(char *p)
{
	refused(p + PAGE, PAGE);
	refused(p, 3 * PAGE);
	CHECK_EQ(differing(p, PAGE, 100), 0);
	CHECK_EQ(differing(p + 2 * PAGE, PAGE, 102), 0);
}

static void executable(void)
{
	char *p;

	start();
	p = three();
	CHECK_OK(mprotect(p + PAGE, PAGE, PROT_READ | PROT_EXEC));
	refused_middle(p);
	peer_end(&peer);
}

static void advised(void)
{
	char *p;

	start();
	p = three();
	CHECK_OK(madvise(p + PAGE, PAGE, MADV_DONTFORK));
	refused_middle(p);
	p = three();
	CHECK_OK(madvise(p + PAGE, PAGE, 18 /* MADV_WIPEONFORK */));
	refused_middle(p);
	peer_end(&peer);
}

static void stacks(void)
{
	char *p = (char *)((uintptr_t)&p & ~(PAGE - 1)), *q;

	start();
	refused(p, PAGE);
	q = mmap(NULL, MiB(1), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
	CHECK(q != MAP_FAILED, "mmap: %s", strerror(errno));
	*q = 1;
	refused(q, PAGE);
	peer_end(&peer);
}

/* The address of a line of /proc/self/maps, or NULL. */
static char *mapping(const char *name)
{
	char *text = maps_of(getpid()), *line, *at = NULL;

	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (strstr(line, name))
			at = (char *)strtoul(line, NULL, 16);
	return at;
}

static void special(void)
{
	aio_context_t aio = 0;
	char *vdso = (char *)getauxval(AT_SYSINFO_EHDR), *vvar = mapping("[vvar]");

	start();
	if (vdso)
		refused(vdso, PAGE);
	if (vvar)
		refused(vvar, PAGE);
	refused_with((char *)0xffffffffff600000, PAGE, EFAULT, 0);
	CHECK_OK(syscall(SYS_io_setup, 8, &aio));
	refused((char *)aio, PAGE);
	peer_end(&peer);
}

static char *file_map(const char *path, int open_flags, int map_flags, size_t size)
{
	int fd = open(path, open_flags | O_CLOEXEC);
	char *p;

	CHECK(fd >= 0, "%s: %s", path, strerror(errno));
	p = mmap(NULL, size, map_flags & MAP_SHARED ? PROT_READ : RW, map_flags, fd, 0);
	CHECK(p != MAP_FAILED, "mmap of %s: %s", path, strerror(errno));
	close(fd);
	return p;
}

static void files(void)
{
	char *p;
	int fd;

	start();
	p = file_map("/proc/self/exe", O_RDONLY, MAP_PRIVATE, PAGE);
	refused(p, PAGE);
	*p = 1;
	refused(p, PAGE);
	p = file_map("/dev/zero", O_RDWR, MAP_PRIVATE, PAGE);
	*p = 1;
	refused(p, PAGE);
	fd = (int)syscall(447 /* memfd_secret */, O_CLOEXEC);
	if (fd >= 0 && !ftruncate(fd, (off_t)PAGE)) {
		p = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
		CHECK(p != MAP_FAILED, "memfd_secret: %s", strerror(errno));
		*p = 1;
		refused(p, PAGE);
	} else {
		diag("no memfd_secret");
	}
	peer_end(&peer);
}

static void huge_and_shared_tables(void)
{
	struct region r;
	char *p, *theirs;

	start();
	write_text("/proc/sys/vm/nr_hugepages", "2");
	p = mmap(NULL, MiB(2), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p != MAP_FAILED) {
		*p = 1;
		refused(p, MiB(2));
		CHECK_OK(munmap(p, MiB(2)));
	}
	write_text("/proc/sys/vm/nr_hugepages", "0");

	region_create(&r, "graft", GiB(1));
	r.addr[0] = 'x';
	refused(r.addr, PAGE);
	refused(r.addr, MiB(4));
	/* A part of a region cannot be replaced; all of it can. */
	theirs = peer_anon(&peer, GiB(1));
	peer_fill(&peer, theirs, MiB(4), 100);
	CHECK_ERR(graft(peer.pid, theirs, MiB(4), r.addr, PVMMAP_FIXED), EINVAL);
	CHECK_EQ(r.addr[0], 'x');
	CHECK_EQ(graft(peer.pid, theirs, GiB(1), r.addr, PVMMAP_FIXED), (long)r.addr);
	CHECK_EQ(differing(r.addr, MiB(4), 100), 0);
	CHECK_OK(munmap(r.addr, GiB(1)));
	region_map(&r, RW);
	CHECK_EQ(r.addr[0], 'x');
	region_unlink(&r);
	peer_end(&peer);
}

static void uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	char *p, *theirs;
	int fd;

	start();
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC); /* not before: the peer would have it too */
	if (fd < 0)
		skip("userfaultfd: %s", strerror(errno));
	CHECK_OK(ioctl(fd, UFFDIO_API, &api));
	p = three();
	reg.range.start = (uintptr_t)(p + PAGE);
	reg.range.len = PAGE;
	CHECK_OK(ioctl(fd, UFFDIO_REGISTER, &reg));
	refused_middle(p);
	/* Nor at the destination. */
	theirs = peer_anon(&peer, 3 * PAGE);
	peer_fill(&peer, theirs, 3 * PAGE, 200);
	CHECK_ERR(graft(peer.pid, theirs, 3 * PAGE, p, PVMMAP_FIXED), EOPNOTSUPP);
	CHECK_EQ(differing(p, PAGE, 100), 0);
	close(fd);
	CHECK_EQ(graft(peer.pid, theirs, 3 * PAGE, p, PVMMAP_FIXED), (long)p);
	CHECK_EQ(differing(p, 3 * PAGE, 200), 0);
	peer_end(&peer);
}

static void keys(void)
{
	int key = (int)syscall(SYS_pkey_alloc, 0, 0);
	char *p;

	start();
	if (key < 0)
		skip("no protection keys");
	p = three();
	CHECK_OK(syscall(SYS_pkey_mprotect, p + PAGE, PAGE, RW, key));
	refused_middle(p);
	peer_end(&peer);
}

static void sealed(void)
{
	char *p, *q, *theirs;

	start();
	p = three();
	theirs = peer_anon(&peer, 3 * PAGE);
	peer_fill(&peer, theirs, 3 * PAGE, 200);
	if (syscall(462 /* mseal */, p + PAGE, PAGE, 0))
		skip("mseal: %s", strerror(errno));
	CHECK_ERR(graft(-peer.pid, p, 3 * PAGE, NULL, PVMMAP_MOVE), EPERM);
	CHECK_ERR(graft(peer.pid, theirs, 3 * PAGE, p, PVMMAP_FIXED), EPERM);
	CHECK_ERR(graft(peer.pid, theirs, 3 * PAGE, p, PVMMAP_FIXED | PVMMAP_MOVE), EPERM);
	CHECK_EQ(differing(p, 3 * PAGE, 100), 0);
	CHECK_EQ(peer_differing(&peer, theirs, 3 * PAGE, 200), 0);
	/* A clone is not sealed. */
	q = give(&peer, p, 3 * PAGE, 0);
	CHECK_EQ(peer_differing(&peer, q, 3 * PAGE, 100), 0);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_munmap, (long)q, (long)(3 * PAGE)), 0);
	peer_end(&peer);
}

/* ---- processes ------------------------------------------------------------------- */

static void processes(void)
{
	char *p;
	pid_t pid;
	int *go = shared_alloc(PAGE);

	start();
	p = three();
	CHECK_ERR(graft(0, p, PAGE, NULL, 0), EINVAL);
	CHECK_ERR(graft(getpid(), p, PAGE, NULL, 0), EINVAL);
	CHECK_ERR(graft(-getpid(), p, PAGE, NULL, 0), EINVAL);
	CHECK_ERR(graft(4190000, p, PAGE, NULL, 0), ESRCH);
	CHECK_ERR(graft(-4190000, p, PAGE, NULL, PVMMAP_MOVE), ESRCH);
	CHECK_ERR(graft(INT32_MIN, p, PAGE, NULL, 0), EINVAL);
	CHECK_ERR(graft(2, p, PAGE, NULL, 0), ESRCH); /* kthreadd */
	CHECK_ERR(graft(-2, p, PAGE, NULL, PVMMAP_MOVE), ESRCH);
	pid = xfork();
	if (!pid) {
		STORE(go, 1);
		_exit(0);
	}
	WAIT_FOR(LOAD(go), 10);
	nap_ms(200);
	CHECK_ERR(graft(-pid, p, PAGE, NULL, PVMMAP_MOVE), ESRCH); /* a zombie */
	JOIN(pid);
	CHECK_EQ(differing(p, 3 * PAGE, 100), 0);
	peer_end(&peer);
}

#define NOBODY 65534

/* Tries to clone a page into a process, as nobody; the errno, or 0. */
static int as_nobody(pid_t pid, char *p)
{
	pid_t child = xfork();

	if (!child) {
		CHECK_OK(setgid(NOBODY));
		CHECK_OK(setuid(NOBODY));
		_exit(graft(-pid, p, PAGE, NULL, 0) == -1 ? errno : 0);
	}
	return wait_status(child);
}

/* Another user, and the same one under Yama: as process_vm_writev() says. */
static void users(void)
{
	const char *scope = "/proc/sys/kernel/yama/ptrace_scope";
	char *p;

	start();
	p = three();
	CHECK_EQ(as_nobody(peer.pid, p), EPERM);
	CHECK_EQ(as_nobody(1, p), EPERM);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_setgid, NOBODY), 0);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_setuid, NOBODY), 0);
	CHECK_EQ(as_nobody(peer.pid, p), EPERM); /* it cannot be dumped */
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_prctl, PR_SET_DUMPABLE, 1), 0);
	CHECK_EQ(PEER(&peer, PEER_SYSCALL, SYS_prctl, PR_SET_PTRACER, 0), 0);
	if (try_write_text(scope, "1")) {
		CHECK_EQ(as_nobody(peer.pid, p), EPERM);
		write_text(scope, "0");
	}
	CHECK_EQ(as_nobody(peer.pid, p), 0);
	give(&peer, p, PAGE, 0); /* root may anyway */
	peer_end(&peer);
}

static const struct test_case cases[] = {
	{.name = "executable memory", .run = executable},
	{.name = "memory that fork leaves out", .run = advised},
	{.name = "stacks", .run = stacks},
	{.name = "the kernel's own mappings", .run = special},
	{.name = "private and secret files", .run = files},
	{.name = "hugetlb and msharefs", .run = huge_and_shared_tables},
	{.name = "userfaultfd at either end", .run = uffd},
	{.name = "protection keys", .run = keys},
	{.name = "seals", .run = sealed},
	{.name = "processes that are none", .run = processes},
	{.name = "other users", .run = users},
};

TEST_MAIN(cases)
