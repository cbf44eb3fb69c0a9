// SPDX-License-Identifier: GPL-2.0-only
/*
 * Readers cannot write: neither those with a descriptor for reading nor those
 * with a mapping for reading, not by the processor, not by the kernel on their
 * behalf, not by force, and not after a writer has made the page present and
 * writable for himself.
 */
#include "harness.h"

#include <sys/ptrace.h>
#include <sys/uio.h>

enum way { BY_DESCRIPTOR, BY_PROTECTION };

static struct region writer, reader;

/*
 * The parent writes and keeps the pages hot; the case goes on as a reader in a
 * child. Page 0 is populated, page 1 becomes so later, page 2 never is.
 */
static void with_reader(enum way way, void (*test)(void))
{
	pid_t pid;

	region_create(&writer, "secret", GiB(1));
	memset(writer.addr, 'w', PAGE);
	pid = xfork();
	if (!pid) {
		region_detach(&writer);
		region_attach(&reader, "secret", way == BY_DESCRIPTOR ? O_RDONLY : O_RDWR, PROT_READ);
		test();
		_exit(0);
	}
	JOIN(pid);
	CHECK_EQ(writer.addr[0], 'w');
	CHECK_EQ(writer.addr[PAGE], 0);
	CHECK_EQ(writer.addr[2 * PAGE], 0);
	writer.addr[0] = 'v';
	CHECK_EQ(writer.addr[0], 'v');
	region_unlink(&writer);
}

static void store(void)
{
	int i;

	for (i = 0; i < 3; i++) {
		CHECK_EQ(try_write(reader.addr + (size_t)i * PAGE, 'x'), SIGSEGV);
		CHECK_EQ(try_read(reader.addr + (size_t)i * PAGE), 0);
		CHECK_EQ(try_write(reader.addr + (size_t)i * PAGE, 'x'), SIGSEGV);
	}
	CHECK_EQ(reader.addr[0], 'w');
	CHECK_EQ(try_write(reader.addr + MiB(800), 'x'), SIGSEGV);
}

static void system_call(void)
{
	int i, fd[2], zero = (int)CHECK_OK(open("/dev/zero", O_RDONLY));

	CHECK_OK(pipe(fd));
	for (i = 0; i < 3; i++) {
		char *p = reader.addr + (size_t)i * PAGE;

		CHECK_ERR(read(zero, p, 100), EFAULT);
		CHECK_EQ(write(fd[1], "x", 1), 1);
		CHECK_ERR(read(fd[0], p, 1), EFAULT);
		CHECK_ERR(syscall(SYS_getrandom, p, 10, 0), EFAULT);
		CHECK_ERR(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, p), EFAULT);
	}
	CHECK_EQ(write(fd[1], reader.addr, 4), 4);
}

static void madvise_write(void)
{
	CHECK(madvise(reader.addr, 3 * PAGE, MADV_POPULATE_WRITE) == -1, "MADV_POPULATE_WRITE works");
	CHECK_OK(madvise(reader.addr, PAGE, MADV_POPULATE_READ));
}

/* FOLL_FORCE may break copy-on-write, but not a shared mapping. */
static void force(void)
{
	int fd = (int)CHECK_OK(open("/proc/self/mem", O_RDWR));
	char buf[8] = "xxxxxxx";
	int i;

	for (i = 0; i < 3; i++) {
		off_t at = (off_t)(uintptr_t)(reader.addr + (size_t)i * PAGE);

		CHECK(pwrite(fd, buf, 8, at) <= 0, "/proc/self/mem wrote page %d", i);
		CHECK_EQ(pread(fd, buf, 1, at), 1);
		CHECK(pwrite(fd, buf, 8, at) <= 0, "/proc/self/mem wrote page %d", i);
	}
}

static void other_process(void)
{
	struct iovec local = { "xxxx", 4 }, remote = { reader.addr, 4 };
	pid_t pid = xfork();
	int i;

	if (!pid) {
		for (;;)
			pause();
	}
	for (i = 0; i < 3; i++) {
		remote.iov_base = reader.addr + (size_t)i * PAGE;
		CHECK_ERR(process_vm_writev(pid, &local, 1, &remote, 1, 0), EFAULT);
	}
	CHECK_OK(ptrace(PTRACE_ATTACH, pid, NULL, NULL));
	CHECK(waitpid(pid, NULL, 0) == pid, "the tracee does not stop");
	for (i = 0; i < 3; i++)
		CHECK(ptrace(PTRACE_POKEDATA, pid, reader.addr + (size_t)i * PAGE, 1L) == -1,
		      "ptrace wrote page %d", i);
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
}

/* GUP-fast looks at leaf entries only: they must say no. */
static void direct_io(void)
{
	char *path = "/run/disk/readonly", *buf;
	int i, fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_TRUNC, 0600);

	if (fd < 0)
		skip("no file system with O_DIRECT on /run/disk");
	buf = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(buf, 'd', PAGE);
	CHECK_EQ(pwrite(fd, buf, PAGE, 0), PAGE);
	for (i = 0; i < 3; i++) {
		CHECK_ERR(pread(fd, reader.addr + (size_t)i * PAGE, PAGE, 0), EFAULT);
		CHECK_EQ(try_read(reader.addr + (size_t)i * PAGE), 0);
		CHECK_ERR(pread(fd, reader.addr + (size_t)i * PAGE, PAGE, 0), EFAULT);
	}
	unlink(path);
}

static void protect(void)
{
	CHECK(mprotect(reader.addr, reader.size, PROT_READ | PROT_WRITE) == -1, "mprotect works");
	CHECK(mprotect(reader.addr, PAGE, PROT_READ | PROT_WRITE) == -1, "mprotect works");
	CHECK_EQ(try_write(reader.addr, 'x'), SIGSEGV);
}

/* The writer's faults must not make the reader's entries writable. */
static void writer_beside(enum way way)
{
	int i, *step = shared_alloc(PAGE);
	pid_t pid;

	region_create(&writer, "beside", GiB(1));
	pid = xfork();
	if (!pid) {
		region_detach(&writer);
		region_attach(&reader, "beside", way == BY_DESCRIPTOR ? O_RDONLY : O_RDWR, PROT_READ);
		for (i = 1; i <= 100; i++) {
			WAIT_FOR(LOAD(step) == i, 30);
			CHECK_EQ(reader.addr[(size_t)i * MiB(1)], (char)i);
			CHECK_EQ(try_write(reader.addr + (size_t)i * MiB(1), 'x'), SIGSEGV);
			STORE(step, -i);
		}
		_exit(0);
	}
	for (i = 1; i <= 100; i++) {
		writer.addr[(size_t)i * MiB(1)] = (char)i;
		STORE(step, i);
		WAIT_FOR(LOAD(step) == -i, 30);
	}
	JOIN(pid);
	for (i = 1; i <= 100; i++)
		CHECK_EQ(writer.addr[(size_t)i * MiB(1)], (char)i);
}

/* The other order: reader's entries are there first. */
static void reader_first(void)
{
	int *step = shared_alloc(PAGE);
	size_t i;
	pid_t pid;

	region_create(&writer, "order", GiB(1));
	pid = xfork();
	if (!pid) {
		region_detach(&writer);
		region_attach(&reader, "order", O_RDONLY, PROT_READ);
		for (i = 0; i < 64; i++)
			CHECK_EQ(reader.addr[i * PAGE], 0);
		STORE(step, 1);
		WAIT_FOR(LOAD(step) == 2, 30);
		for (i = 0; i < 64; i++) {
			CHECK_EQ(reader.addr[i * PAGE], (char)(i + 1));
			CHECK_EQ(try_write(reader.addr + i * PAGE, 0), SIGSEGV);
		}
		_exit(0);
	}
	WAIT_FOR(LOAD(step) == 1, 30);
	for (i = 0; i < 64; i++)
		writer.addr[i * PAGE] = (char)(i + 1);
	STORE(step, 2);
	JOIN(pid);
}

#define TWICE(test)                                                             \
	static void test##_descriptor(void) { with_reader(BY_DESCRIPTOR, test); } \
	static void test##_protection(void) { with_reader(BY_PROTECTION, test); }

TWICE(store)
TWICE(system_call)
TWICE(madvise_write)
TWICE(force)
TWICE(other_process)
TWICE(direct_io)

static void protect_descriptor(void)
{
	with_reader(BY_DESCRIPTOR, protect);
}

static void protect_protection(void)
{
	with_reader(BY_PROTECTION, protect);
}

static void beside_descriptor(void)
{
	writer_beside(BY_DESCRIPTOR);
}

static void beside_protection(void)
{
	writer_beside(BY_PROTECTION);
}

static const struct test_case cases[] = {
	{ .name = "O_RDONLY: a store gives SIGSEGV", .run = store_descriptor },
	{ .name = "PROT_READ: a store gives SIGSEGV", .run = store_protection },
	{ .name = "O_RDONLY: system calls give EFAULT", .run = system_call_descriptor },
	{ .name = "PROT_READ: system calls give EFAULT", .run = system_call_protection },
	{ .name = "O_RDONLY: MADV_POPULATE_WRITE fails", .run = madvise_write_descriptor },
	{ .name = "PROT_READ: MADV_POPULATE_WRITE fails", .run = madvise_write_protection },
	{ .name = "O_RDONLY: /proc/self/mem does not write", .run = force_descriptor },
	{ .name = "PROT_READ: /proc/self/mem does not write", .run = force_protection },
	{ .name = "O_RDONLY: another process does not write", .run = other_process_descriptor },
	{ .name = "PROT_READ: another process does not write", .run = other_process_protection },
	{ .name = "O_RDONLY: O_DIRECT does not write", .run = direct_io_descriptor },
	{ .name = "PROT_READ: O_DIRECT does not write", .run = direct_io_protection },
	{ .name = "O_RDONLY: mprotect does not help", .run = protect_descriptor },
	{ .name = "PROT_READ: mprotect does not help", .run = protect_protection },
	{ .name = "O_RDONLY: beside a writer", .run = beside_descriptor },
	{ .name = "PROT_READ: beside a writer", .run = beside_protection },
	{ .name = "a reader that comes first", .run = reader_first },
};

TEST_MAIN(cases)
