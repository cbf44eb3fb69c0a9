/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the test programs of msharefs have in common.
 *
 * A program is a table of cases and a call of run_cases(). Each case runs in a
 * process of its own, under a time limit, and ends well by returning. CHECK()
 * and its kin end the process that they stand in with status 1 and a diagnostic,
 * so a child's failure is seen by the parent's JOIN(). After each case the
 * harness kills what the case left running, removes its files from msharefs,
 * and compares the system's page tables, shared memory and inodes with what they
 * were before: what has leaked fails the case.
 *
 * Output is TAP 13. Times are printed as diagnostics, never compared with
 * absolute bounds; what is compared is a ratio from one run.
 *
 * Processes of one case talk through memory from shared_alloc(), which is plain
 * anonymous shared memory, so that the mechanism under test is not also the one
 * that reports.
 */
#ifndef SELFTESTS_HARNESS_H
#define SELFTESTS_HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define KiB(n) ((size_t)(n) << 10)
#define MiB(n) ((size_t)(n) << 20)
#define GiB(n) ((size_t)(n) << 30)
#define PAGE ((size_t)4096)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* The lowest group that runs a case. */
enum level { QUICK, FULL, STRESS };

struct test_case {
	const char *name;
	void (*run)(void);
	enum level level;
	unsigned int seconds; /* limit; 0: 60. Times slow() */
};

int run_cases(const struct test_case *cases, size_t count, int argc, char **argv);

#define TEST_MAIN(cases)                                             \
	int main(int argc, char **argv)                              \
	{                                                            \
		return run_cases(cases, ARRAY_SIZE(cases), argc, argv); \
	}

enum level group(void);	   /* the group that is running */
bool debug_kernel(void);   /* KASAN, lockdep: everything is several times slower */
/* How many times as long as usual all may take: $PANDO_TEST_SLOW, four times that on a
 * debug kernel. */
unsigned int slow(void);
unsigned int storm_seconds(unsigned int full); /* how long a storm lasts in this group */

/* ---- checks ------------------------------------------------------------- */

void diag(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void fail_at(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4), noreturn));
long ok_at(const char *file, int line, const char *call, long result);
void skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(cond, ...)                    \
	do {                                \
		if (!(cond))                \
			FAIL(__VA_ARGS__);  \
	} while (0)
#define CHECK_EQ(a, b)                                                                        \
	do {                                                                                  \
		long long a_ = (long long)(a), b_ = (long long)(b);                           \
		if (a_ != b_)                                                                 \
			FAIL("%s is %lld (%#llx), should be %s = %lld (%#llx)", #a, a_, a_, #b, \
			     b_, b_);                                                         \
	} while (0)
/* A call that must succeed. */
#define CHECK_OK(call) ok_at(__FILE__, __LINE__, #call, (long)(call))
/* A call that must fail with this errno. */
#define CHECK_ERR(call, err)                                                             \
	do {                                                                             \
		long r_ = (errno = 0, (long)(call));                                     \
		int e_ = errno;                                                          \
		if (r_ != -1)                                                            \
			FAIL("%s succeeded (%ld), should be %s", #call, r_, #err);       \
		if (e_ != (err))                                                         \
			FAIL("%s: errno %d (%s), should be %s", #call, e_, strerror(e_), #err); \
	} while (0)

/* ---- processes and threads ---------------------------------------------- */

pid_t xfork(void);	/* the child must _exit() */
int wait_status(pid_t pid); /* exit status, or 128 + signal */
#define JOIN(pid) CHECK_EQ(wait_status(pid), 0)
#define JOIN_KILLED(pid, sig) CHECK_EQ(wait_status(pid), 128 + (sig))
pthread_t xthread(void *(*fn)(void *), void *arg);
void xjoin(pthread_t thread);
void pin_cpu(int cpu);
int cpus(void);
void need_cpus(int n); /* skips the case where there are fewer */
double now(void);
void nap_ms(unsigned int ms);
void *shared_alloc(size_t size);

#define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define ADD(p, v) __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL)

/* Waits, sleeping, for another process to make cond true. */
#define WAIT_FOR(cond, seconds)                                                       \
	do {                                                                          \
		double end_ = now() + (seconds) * slow();                             \
		while (!(cond)) {                                                     \
			if (now() > end_)                                             \
				FAIL("no %s within %g s", #cond, (double)(seconds));  \
			nap_ms(1);                                                    \
		}                                                                     \
	} while (0)

/* 0, or the signal that the access raised. */
int try_read(const volatile void *p);
int try_write(volatile void *p, unsigned char value);

uint64_t random64(uint64_t *state); /* state must not be 0 */

/* ---- what the kernel says ------------------------------------------------ */

long meminfo_kb(const char *key);
long vmstat(const char *key);
long status_kb(pid_t pid, const char *key);
long minor_faults(void); /* of this process */
long smaps_kb(pid_t pid, const void *addr, const char *key); /* -1: no such line */
bool smaps_text(pid_t pid, const void *addr, char *text, size_t size);
uint64_t pagemap(pid_t pid, const void *addr);
#define PM_PRESENT (1ull << 63)
#define PM_SWAP (1ull << 62)
#define PM_FILE (1ull << 61)
#define PM_SOFT_DIRTY (1ull << 55)
ssize_t read_text(const char *path, char *buf, size_t size);
bool try_write_text(const char *path, const char *text); /* errno is set if false */
void write_text(const char *path, const char *text);
bool has_path(const char *path);

/* ---- msharefs ------------------------------------------------------------ */

struct mshare_info_text { /* as the kernel's uapi header has it */
	unsigned long start;
	unsigned long size;
};

struct region {
	char path[256];
	int fd;
	char *addr;
	size_t size;
};

const char *mshare_root(void);	/* where msharefs is mounted */
size_t mshare_align(void);	/* from mshare_info */
char *fresh_address(size_t size); /* aligned, not used before by this process */
void region_path(char *path, size_t size, const char *name);
/* Creates a file and establishes it; the whole of it is zero. */
void region_create(struct region *r, const char *name, size_t size);
/* Opens a file by name and maps it where it belongs. */
void region_attach(struct region *r, const char *name, int open_flags, int prot);
/* Maps it again from r->fd, after fork and exec or munmap. */
void region_map(struct region *r, int prot);
void region_detach(struct region *r); /* munmap and close */
void region_unlink(const struct region *r);

/* The same on a memfd, for comparison. */
void memfd_create_region(struct region *r, size_t size);

/* ---- memory pressure ------------------------------------------------------ */

int swap_add(size_t size); /* a compressed swap device of its own; its number */
void swap_remove(int id);
bool swap_try_remove(int id);
void cgroup_make(const char *name);
void cgroup_set(const char *name, const char *file, const char *value);
long cgroup_get(const char *name, const char *file);
long cgroup_event(const char *name, const char *file, const char *key);
void cgroup_enter(const char *name);
void cgroup_leave(void);
void cgroup_remove(const char *name);
/* The harness's own: settings, swap devices and groups as they were before a case. */
void system_remember(void);
void system_restore(void);
/* Pages out [p, p + size) of this process; returns how many pages went. */
long page_out(void *p, size_t size);

/* ---- failing allocations -------------------------------------------------- */

/* Makes every kind of allocation one that can fail; skips without fault injection. */
void need_fail_nth(void);
/* A descriptor for this thread. Opened before it is armed: opening it allocates memory. */
int fail_nth_open(void);
/* The n-th allocation of this thread from now on fails; 0: none. */
void fail_nth_arm(int fd, int n);
/* None fails any more. True if the n-th was reached, so that a later one may be tried. */
bool fail_nth_disarm(int fd);

#endif
