// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel reaches into a region by get_user_pages(): where nobody has touched
 * the memory before, where a page is on the swap device, from other processes,
 * for devices. Page n of the region means an untouched 2 MiB range each time, so
 * that every attempt finds neither a page nor a page table.
 */
#include "harness.h"

#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static struct region r;

static char *untouched(void)
{
	static size_t next;

	return r.addr + MiB(2) * ++next;
}

static void region(const char *name)
{
	region_create(&r, name, GiB(1));
}

static void system_calls(void)
{
	int fd[2], zero = (int)CHECK_OK(open("/dev/urandom", O_RDONLY));
	char *p;

	region("calls");
	CHECK_OK(pipe(fd));
	CHECK_EQ(read(zero, untouched(), PAGE), PAGE);
	p = untouched() - 10;
	CHECK_EQ(write(fd[1], p, 20), 20);
	memset(p, 'x', 20);
	CHECK_EQ(read(fd[0], p, 20), 20);
	CHECK_EQ(p[0], 0);
	CHECK_EQ(p[19], 0);
}

static pid_t idle_attacher(void)
{
	pid_t pid = xfork();

	if (!pid) {
		for (;;)
			pause();
	}
	return pid;
}

/* The child has mapped the region, and touched nothing since it was forked. */
static void process_vm(void)
{
	char text[64] = "through another process", back[64];
	struct iovec local = { text, sizeof(text) }, remote = { NULL, sizeof(text) };
	pid_t pid;
	char *p;
	int i;

	region("processvm");
	pid = idle_attacher();
	for (i = 0; i < 8; i++) {
		remote.iov_base = p = untouched() - 32 * (i & 1);
		local.iov_base = text;
		CHECK_EQ(process_vm_writev(pid, &local, 1, &remote, 1, 0), sizeof(text));
		CHECK(!strcmp(p, text), "the text did not arrive");
		local.iov_base = back;
		memset(back, 1, sizeof(back));
		CHECK_EQ(process_vm_readv(pid, &local, 1, &remote, 1, 0), sizeof(text));
		CHECK(!strcmp(back, text), "the text did not come back");
		remote.iov_base = untouched();
		CHECK_EQ(process_vm_readv(pid, &local, 1, &remote, 1, 0), sizeof(text));
		CHECK_EQ(back[0], 0);
	}
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
}

static void proc_mem(void)
{
	char path[64], text[32] = "by /proc/pid/mem", back[32];
	pid_t pid;
	char *p;
	int fd;

	region("procmem");
	pid = idle_attacher();
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = (int)CHECK_OK(open(path, O_RDWR));
	p = untouched();
	CHECK_EQ(pread(fd, back, sizeof(back), (off_t)(uintptr_t)p), sizeof(back));
	CHECK_EQ(back[0], 0);
	p = untouched();
	CHECK_EQ(pwrite(fd, text, sizeof(text), (off_t)(uintptr_t)p), sizeof(text));
	CHECK(!strcmp(p, text), "the text did not arrive");
	CHECK_EQ(pread(fd, back, sizeof(back), (off_t)(uintptr_t)(r.addr + r.size)), -1);
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
}

static void tracer(void)
{
	pid_t pid;
	long *p;

	region("ptrace");
	pid = idle_attacher();
	CHECK_OK(ptrace(PTRACE_ATTACH, pid, NULL, NULL));
	CHECK(waitpid(pid, NULL, 0) == pid, "the tracee does not stop");
	p = (long *)untouched();
	errno = 0;
	CHECK_EQ(ptrace(PTRACE_PEEKDATA, pid, p, NULL), 0);
	CHECK_EQ(errno, 0);
	p = (long *)untouched();
	CHECK_OK(ptrace(PTRACE_POKEDATA, pid, p, 123456789L));
	CHECK_EQ(*p, 123456789);
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
}

static void direct_io(void)
{
	char *p, *path = "/run/disk/direct";
	int fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_TRUNC, 0600);
	size_t i;

	if (fd < 0)
		skip("no file system with O_DIRECT on /run/disk");
	region("direct");
	p = untouched();
	for (i = 0; i < MiB(1); i += PAGE)
		*(size_t *)(p + i) = i ^ 0x1234;
	CHECK_EQ(pwrite(fd, p, MiB(1), 0), MiB(1));
	CHECK_EQ(pwrite(fd, untouched(), PAGE, MiB(1)), PAGE);
	p = untouched();
	CHECK_EQ(pread(fd, p, MiB(1), 0), MiB(1));
	for (i = 0; i < MiB(1); i += PAGE)
		CHECK_EQ(*(size_t *)(p + i), i ^ 0x1234);
	memset(p, 1, PAGE);
	CHECK_EQ(pread(fd, p, PAGE, MiB(1)), PAGE);
	CHECK_EQ(p[0], 0);
	unlink(path);
}

/* vmsplice gives the pages themselves to a pipe: what is written later shows. */
static void splice_pages(void)
{
	struct iovec iov;
	char back[PAGE];
	int fd[2];

	region("vmsplice");
	CHECK_OK(pipe(fd));
	iov.iov_base = untouched();
	iov.iov_len = PAGE;
	CHECK_EQ(vmsplice(fd[1], &iov, 1, 0), PAGE);
	memset(iov.iov_base, 'v', PAGE);
	CHECK_EQ(read(fd[0], back, PAGE), PAGE);
	CHECK_EQ(back[0], 'v');
	CHECK_EQ(vmsplice(fd[1], &iov, 1, 0), PAGE);
	region_unlink(&r);
	region_detach(&r);
	CHECK_EQ(read(fd[0], back, PAGE), PAGE);
	CHECK_EQ(back[PAGE - 1], 'v');
}

static void populate(void)
{
	char *p;

	region("populate");
	p = untouched();
	CHECK_OK(madvise(p, MiB(2), MADV_POPULATE_READ));
	CHECK(pagemap(0, p + MiB(1)) & PM_PRESENT, "MADV_POPULATE_READ left a hole");
	p = r.addr + MiB(100);
	CHECK_OK(madvise(p, MiB(10), MADV_POPULATE_WRITE));
	CHECK(pagemap(0, p + MiB(10) - PAGE) & PM_PRESENT, "MADV_POPULATE_WRITE left a hole");
	CHECK(meminfo_kb("Shmem") > 10240, "nothing was allocated");
}

static void map_populate(void)
{
	struct region other;
	char path[256];

	region_path(path, sizeof(path), "mappopulate");
	other.fd = (int)CHECK_OK(open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
	other.size = GiB(1);
	other.addr = fresh_address(other.size);
	CHECK(mmap(other.addr, other.size, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, other.fd, 0) == other.addr,
	      "mmap: %s", strerror(errno));
	CHECK(pagemap(0, other.addr + other.size - PAGE) & PM_PRESENT, "the end is not populated");
	CHECK_EQ(other.addr[other.size - 1], 0);
}

/* A page in swap is brought back on another's behalf. */
static void paged_out(void)
{
	char back[16];
	struct iovec local = { back, sizeof(back) }, remote;
	int i, swap = swap_add(MiB(64));
	pid_t pid;
	char *p;

	region("gupswap");
	pid = idle_attacher();
	for (i = 0; i < 4; i++) {
		p = untouched();
		memset(p, 'a' + i, PAGE);
		CHECK(page_out(p, PAGE) > 0, "the page was not paged out");
		remote.iov_base = p;
		remote.iov_len = sizeof(back);
		CHECK_EQ(process_vm_readv(pid, &local, 1, &remote, 1, 0), sizeof(back));
		CHECK_EQ(back[3], 'a' + i);
	}
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
	swap_remove(swap);
}

/* lib/test_hmm and mm/gup_test.c are the kernel's own drivers for tests. */
#define PIN_LONGTERM_TEST_START _IOW('g', 7, struct pin_longterm_test)
#define PIN_LONGTERM_TEST_STOP _IO('g', 8)
#define PIN_LONGTERM_TEST_READ _IOW('g', 9, uint64_t)

struct pin_longterm_test {
	uint64_t addr;
	uint64_t size;
	uint32_t flags; /* 1 write, 2 fast */
};

/* A page pinned for long sees what the processor writes, also after a hole was
 * punched beside it and after paging out was tried. */
static void long_pin(void)
{
	struct pin_longterm_test t = { .size = PAGE * 4 };
	int flags, fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	static char copy[PAGE * 4];
	uint64_t to = (uintptr_t)copy;
	char *p;

	if (fd < 0)
		skip("no /sys/kernel/debug/gup_test");
	region("pin");
	for (flags = 0; flags < 4; flags++) {
		p = untouched();
		t.addr = (uintptr_t)p;
		t.flags = (uint32_t)flags;
		CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_START, &t));
		memset(p, 'A' + flags, t.size);
		CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_READ, &to));
		CHECK_EQ(copy[0], 'A' + flags);
		CHECK_EQ(copy[t.size - 1], 'A' + flags);
		madvise(p, t.size, MADV_PAGEOUT);
		memset(p, 'a' + flags, t.size);
		CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_READ, &to));
		CHECK_EQ(copy[PAGE], 'a' + flags);
		CHECK_OK(ioctl(fd, PIN_LONGTERM_TEST_STOP));
	}
}

/* GUP-fast in one thread while another unmaps and maps: it must see a page of the
 * region or none, never a freed one. */
static void *pipe_writer(void *arg)
{
	int *stop = arg, fd[2];
	char back[64];

	CHECK_OK(pipe(fd));
	while (!LOAD(stop)) {
		struct iovec iov = { r.addr + MiB(6), 64 };

		if (vmsplice(fd[1], &iov, 1, 0) == 64) {
			CHECK_EQ(read(fd[0], back, 64), 64);
			CHECK_EQ(back[0], 'g');
		}
	}
	return NULL;
}

static void fast_against_unmap(void)
{
	static int stop;
	pthread_t thread;
	double end = now() + storm_seconds(4);

	region("fast");
	memset(r.addr + MiB(6), 'g', 64);
	thread = xthread(pipe_writer, &stop);
	while (now() < end) {
		CHECK_OK(munmap(r.addr, r.size));
		region_map(&r, PROT_READ | PROT_WRITE);
		sched_yield();
	}
	STORE(&stop, 1);
	xjoin(thread);
}

static const struct test_case cases[] = {
	{ .name = "read and write into untouched memory", .run = system_calls },
	{ .name = "process_vm_readv and writev", .run = process_vm },
	{ .name = "/proc/pid/mem", .run = proc_mem },
	{ .name = "ptrace", .run = tracer },
	{ .name = "O_DIRECT", .run = direct_io },
	{ .name = "vmsplice", .run = splice_pages },
	{ .name = "MADV_POPULATE_READ and WRITE", .run = populate },
	{ .name = "MAP_POPULATE", .run = map_populate, .level = FULL },
	{ .name = "pages in swap", .run = paged_out },
	{ .name = "long pins", .run = long_pin },
	{ .name = "GUP-fast against munmap", .run = fast_against_unmap },
};

TEST_MAIN(cases)
