/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a program can observe of a shared anonymous mapping: conform.sh runs this with and without
 * the shim and compares what it prints. Everything printed is independent of addresses and of
 * timing.
 *
 * usage: conform [fine|whole] SIZE_IN_KIB. "fine" adds what is only promised on 4 KiB pages: that a
 * piece which is no whole huge page cannot be touched after its munmap(). "whole" leaves out the same
 * for huge pages, too: on msharefs, memory is unmapped when nothing of a mapping is left.
 *
 * Each scenario makes its own mapping and gives it back. probe() touches memory and says what
 * became of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define HUGE ((size_t)2 << 20)
#define RW (PROT_READ | PROT_WRITE)

static size_t size;
static bool fine, whole;
static const char *self;
static sigjmp_buf back;
static const char *scenario;

static void caught(int sig)
{
	siglongjmp(back, sig);
}

static const char *probe(char *p, bool write_it)
{
	int sig = sigsetjmp(back, 1);

	if (sig)
		return sig == SIGSEGV ? "SIGSEGV" : "SIGBUS";
	if (write_it)
		*(volatile char *)p = 'w';
	else
		(void)*(volatile char *)p;
	return "ok";
}

static void result(const char *what, long rc)
{
	printf("%s: %s: %ld%s%s\n", scenario, what, rc, rc == -1 ? " " : "",
	       rc == -1 ? strerrorname_np(errno) : "");
}

static void touch(const char *what, char *p, bool write_it)
{
	printf("%s: %s: %s\n", scenario, what, probe(p, write_it));
}

static void value(const char *what, long v)
{
	printf("%s: %s: %ld\n", scenario, what, v);
}

static char *map_with(int prot, int flags)
{
	char *p = mmap(NULL, size, prot, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);

	if (p == MAP_FAILED) {
		result("mmap", -1);
		exit(1);
	}
	return p;
}

static char *map(void)
{
	return map_with(RW, 0);
}

/* Runs fn in a child and waits for it. Its output comes first: nothing is buffered. */
static void in_child(void (*fn)(char *), char *p)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		fn(p);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	value("child's status", status);
}

static unsigned long sum(const char *p, size_t n)
{
	unsigned long s = 0;

	for (size_t i = 0; i < n; i += 512)
		s = s * 31 + (unsigned char)p[i];
	return s;
}

static void fill(char *p, size_t n)
{
	for (size_t i = 0; i < n; i += 512)
		p[i] = (char)(i / 512 * 7);
}

static void fresh(void)
{
	char *p = map();

	value("sum of a fresh mapping", (long)sum(p, size));
	fill(p, size);
	value("sum", (long)sum(p, size));
	touch("last byte", p + size - 1, true);
	result("munmap", munmap(p, size));
	touch("after", p, false);
	result("munmap again", munmap(p, size));
}

static void bad_arguments(void)
{
	char *p = map();

	result("munmap unaligned", munmap(p + 1, PAGE));
	result("munmap nothing", munmap(p, 0));
	result("mprotect unaligned", mprotect(p + 1, PAGE, RW));
	result("mprotect nothing", mprotect(p, 0, RW));
	result("mprotect nonsense", mprotect(p, PAGE, 0x40000000));
	result("madvise nonsense", madvise(p, PAGE, 12345));
	result("madvise unaligned", madvise(p + 1, PAGE, MADV_WILLNEED));
	result("madvise nothing", madvise(p, 0, MADV_WILLNEED));
	result("mmap nothing", (long)mmap(NULL, 0, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	result("mmap no type", (long)mmap(NULL, size, RW, MAP_ANONYMOUS, -1, 0));
	result("munmap odd length", munmap(p, size - 100));
	touch("first", p, false);
	touch("last", p + size - 1, false);
}

static void child_writes(char *p)
{
	touch("child reads", p, false);
	p[5] = 42;
	p[size - 1] = 43;
}

static void child_unmaps(char *p)
{
	result("child's munmap", munmap(p, size));
	touch("child after munmap", p, false);
}

static void child_unmaps_half(char *p)
{
	result("child's munmap", munmap(p + size / 2, size / 2));
	touch("child's half", p, true);
}

static void forks(void)
{
	char *p = map();

	p[9] = 9;
	in_child(child_writes, p);
	value("child's byte", p[5]);
	value("child's last byte", p[size - 1]);
	in_child(child_unmaps, p);
	value("still", p[5]);
	in_child(child_unmaps_half, p);
	value("still the last", p[size - 1]);
	result("munmap", munmap(p, size));
}

static void grandchild(char *p)
{
	in_child(child_writes, p);
	value("grandchild's byte", p[5]);
}

static void generations(void)
{
	char *p = map();

	in_child(grandchild, p);
	value("two below", p[5]);
	munmap(p, size);
}

static void partial(void)
{
	char *p = map();
	size_t half = size / 2 / PAGE * PAGE;

	fill(p, size);
	result("first page", munmap(p, PAGE));
	if (fine)
		touch("gone page", p, false);
	touch("next page", p + PAGE, true);
	result("a page in the middle", munmap(p + half, PAGE));
	result("the same again", munmap(p + half, PAGE));
	if (fine)
		touch("gone", p + half, false);
	touch("before it", p + half - 1, true);
	touch("behind it", p + half + PAGE, true);
	result("mprotect over the hole", mprotect(p + half, 2 * PAGE, RW));
	result("madvise over the hole", madvise(p + half - PAGE, 3 * PAGE, MADV_WILLNEED));
	result("first half", munmap(p, half));
	if (half >= HUGE && !whole)
		touch("first half", p, false);
	value("sum of the rest", (long)sum(p + half + 2 * PAGE, size - half - 2 * PAGE));
	result("all", munmap(p, size));
	touch("all gone", p + size - PAGE, false);
}

static void page_by_page(void)
{
	char *p = map();
	long failed = 0;

	for (size_t at = 0; at < size; at += 2 * PAGE)
		failed += munmap(p + at, PAGE) != 0;
	for (size_t at = PAGE; at < size; at += 2 * PAGE)
		failed += munmap(p + at, PAGE) != 0;
	value("failed", failed);
	touch("first", p, false);
	touch("last", p + size - 1, false);
}

static void protects_all(void)
{
	char *p = map();

	fill(p, size);
	result("read-only", mprotect(p, size, PROT_READ));
	touch("read", p, false);
	touch("write", p, true);
	touch("write at the end", p + size - 1, true);
	result("none", mprotect(p, size, PROT_NONE));
	touch("read", p + size / 2, false);
	result("back", mprotect(p, size, RW));
	touch("write", p, true);
	p[0] = 0;
	value("sum", (long)sum(p, size));
	munmap(p, size);
}

static void protects_pages(void)
{
	char *p = map();

	fill(p, size);
	result("first page none", mprotect(p, PAGE, PROT_NONE));
	touch("it", p, false);
	touch("next", p + PAGE, true);
	p[PAGE] = (char)(PAGE / 512 * 7);
	result("last page read-only", mprotect(p + size - PAGE, PAGE, PROT_READ));
	touch("read", p + size - 1, false);
	touch("write", p + size - 1, true);
	result("first back", mprotect(p, PAGE, RW));
	value("sum", (long)sum(p, size));
	result("mprotect beyond", mprotect(p, size, PROT_READ));
	touch("write in the middle", p + size / 2, true);
	result("munmap", munmap(p, size));
	touch("after", p, false);
}

static void made_with_rights(void)
{
	char *p = map_with(PROT_NONE, 0);

	touch("none: read", p, false);
	result("allow", mprotect(p, size, RW));
	touch("write", p, true);
	munmap(p, size);
	p = map_with(PROT_READ, 0);
	touch("read", p, false);
	touch("write", p, true);
	munmap(p, size);
	p = map_with(RW, MAP_POPULATE);
	value("populated sum", (long)sum(p, size));
	munmap(p, size);
	p = map_with(PROT_READ | PROT_WRITE | PROT_EXEC, 0);
	p[0] = (char)0xc3; /* ret */
	((void (*)(void))(void *)p)();
	printf("%s: executed\n", scenario);
	munmap(p, size);
}

static void advises(void)
{
	static const int advice[] = {MADV_NORMAL,   MADV_RANDOM,   MADV_SEQUENTIAL, MADV_WILLNEED,
				     MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP,
				     MADV_DODUMP,   MADV_FREE,	   MADV_DOFORK};
	char *p = map();
	char what[32];

	fill(p, size);
	for (size_t i = 0; i < sizeof(advice) / sizeof(advice[0]); i++) {
		snprintf(what, sizeof(what), "advice %d for all", advice[i]);
		result(what, madvise(p, size, advice[i]));
		if (advice[i] == MADV_DONTDUMP || advice[i] == MADV_DODUMP)
			continue;
		snprintf(what, sizeof(what), "advice %d for a page", advice[i]);
		result(what, madvise(p + PAGE, PAGE, advice[i]));
	}
	value("sum", (long)sum(p, size));
	result("posix_madvise", posix_madvise(p + PAGE, PAGE, POSIX_MADV_DONTNEED));
	result("posix_madvise", posix_madvise(p + PAGE, PAGE, POSIX_MADV_WILLNEED));
	result("remove a page", madvise(p + PAGE, PAGE, MADV_REMOVE));
	value("its sum", (long)sum(p + PAGE, PAGE));
	value("sum", (long)sum(p, size));
	result("remove all", madvise(p, size, MADV_REMOVE));
	value("sum", (long)sum(p, size));
	touch("write", p + PAGE, true);
	munmap(p, size);
}

static void fixed_on_top(void)
{
	char *p = map(), *q;
	size_t at = size / 4 / PAGE * PAGE;

	fill(p, size);
	q = mmap(p + at, 2 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	value("there", q == p + at);
	value("its byte", q == p + at ? q[0] : -1);
	value("before", p[at - 512]);
	value("behind", p[at + 2 * PAGE]);
	result("no replace",
	       (long)mmap(p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	result("munmap all but it",
	       munmap(p, at) | munmap(p + at + 2 * PAGE, size - at - 2 * PAGE));
	touch("it", p + at, true);
	result("munmap it", munmap(p + at, 2 * PAGE));
	touch("it", p + at, false);
}

static void remaps(void)
{
	char *p = map(), *q;
	size_t half = size / 2 / PAGE * PAGE;

	fill(p, size);
	q = mremap(p, size, half, 0);
	value("shrunk in place", q == p);
	if ((half % HUGE == 0 && !whole) || fine)
		touch("behind", p + half, false);
	value("sum", (long)sum(p, half));
	q = mremap(p, half, size, MREMAP_MAYMOVE);
	value("grown", q != MAP_FAILED);
	if (q != MAP_FAILED) {
		value("sum", (long)sum(q, half));
		result("munmap", munmap(q, size));
	}
	result("munmap of nothing", munmap(p, half));
	p = map();
	fill(p, size);
	q = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	value("moved", mremap(p, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
	value("sum", (long)sum(q, size));
	touch("where it was", p, false);
	munmap(q, size);
}

static void *mapper(void *arg)
{
	for (int i = 0; i < 8; i++) {
		char *p = map();

		p[0] = p[size - 1] = (char)i;
		if (munmap(p, size) != 0)
			*(int *)arg += 1;
	}
	return NULL;
}

static void threads(void)
{
	pthread_t t[4];
	int failed[4] = {0};
	char *p = map();

	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, mapper, &failed[i]);
	for (int i = 0; i < 8; i++)
		in_child(child_writes, p);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	value("failed", failed[0] + failed[1] + failed[2] + failed[3]);
	munmap(p, size);
}

/* What daemons do: all descriptors closed, two forks; then the numbers are used for files. */
static void daemon_part(char *p)
{
	int first;

	setsid();
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	if (fork() != 0)
		_exit(0);
	first = open("/dev/null", O_RDWR);
	for (int i = 0; i < 1000; i++)
		(void)!dup(first);
	p[1] = 1;
	in_child(child_writes, p);
	result("munmap", munmap(p, size));
	p = map();
	touch("new mapping", p, true);
	in_child(child_writes, p);
	result("munmap", munmap(p, size));
	for (int i = first; i < first + 1000; i++) {
		char c = 'x';

		/* A number that the library took for its own would be closed or not writable. */
		if (write(i, &c, 1) != 1) {
			value("foreign descriptor spoilt", i);
			break;
		}
	}
	printf("%s: end\n", scenario);
	_exit(0);
}

static void daemons(void)
{
	char *p = map();
	int ends[2], status, messages = dup(2);
	char c;
	pid_t pid;

	(void)!pipe(ends);
	dup2(ends[1], 2); /* stays open in the daemon and tells its end */
	close(ends[1]);
	pid = fork();
	if (pid == 0)
		daemon_part(p);
	waitpid(pid, &status, 0);
	dup2(messages, 2);
	close(messages);
	while (read(ends[0], &c, 1) > 0)
		;
	value("daemonised", status);
	close(ends[0]);
	value("daemon's byte", p[5]);
	munmap(p, size);
}

static void execs(void)
{
	char *p = map();
	char address[32], kib[32];
	int status;
	pid_t pid;

	snprintf(address, sizeof(address), "%lu", (unsigned long)(uintptr_t)p);
	snprintf(kib, sizeof(kib), "%zu", size / 1024);
	pid = fork();
	if (pid == 0) {
		execl(self, self, "after-exec", address, kib, NULL);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	value("status", status);
	touch("still here", p, true);
	munmap(p, size);
}

static void drops_rights(char *p)
{
	result("setuid", setuid(65534));
	touch("memory of before", p, true);
	in_child(child_writes, p);
	result("munmap", munmap(p, size));
	p = map();
	touch("memory of now", p, true);
	result("munmap", munmap(p, size));
}

static void setuids(void)
{
	char *p = map();

	if (geteuid() == 0)
		in_child(drops_rights, p);
	munmap(p, size);
}

static const struct {
	const char *name;
	void (*fn)(void);
} scenarios[] = {
	{"fresh", fresh},
	{"bad arguments", bad_arguments},
	{"forks", forks},
	{"generations", generations},
	{"partial", partial},
	{"page by page", page_by_page},
	{"protects all", protects_all},
	{"protects pages", protects_pages},
	{"made with rights", made_with_rights},
	{"advises", advises},
	{"fixed on top", fixed_on_top},
	{"remaps", remaps},
	{"threads", threads},
	{"daemons", daemons},
	{"execs", execs},
	{"setuids", setuids},
};

int main(int argc, char **argv)
{
	struct sigaction sa = {.sa_handler = caught, .sa_flags = SA_NODEFER};

	setvbuf(stdout, NULL, _IONBF, 0);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	self = argv[0];
	if (argc == 4 && strcmp(argv[1], "after-exec") == 0) {
		scenario = "after exec";
		size = strtoul(argv[3], NULL, 10) * 1024;
		touch("the old address", (char *)strtoul(argv[2], NULL, 10), false);
		fresh();
		return 0;
	}
	fine = argc == 3 && strcmp(argv[1], "fine") == 0;
	whole = argc == 3 && strcmp(argv[1], "whole") == 0;
	if (argc != 2 + (fine || whole))
		return 2;
	size = strtoul(argv[argc - 1], NULL, 10) * 1024;
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
		scenario = scenarios[i].name;
		scenarios[i].fn();
	}
	return 0;
}
