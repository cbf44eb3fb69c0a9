/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The shim's surroundings: options from the environment, the functions behind us, messages, fork().
 *
 * The environment, as `pando run` sets it (and as one may set it by hand, with LD_PRELOAD):
 *
 *	PANDO_RUN_THRESHOLD	bytes, with K, M or G; smaller shared mappings are left alone (1M)
 *	PANDO_RUN_BACKEND	auto, memfd, hugetlb, mshare (auto)
 *	PANDO_RUN_NAME		first part of the regions' names (run)
 *	PANDO_RUN_VERBOSE	1: say on standard error what was served and why something was not
 *	PANDO_RUN_32BIT		1: serve MAP_32BIT too
 *	PANDO_RUN_EMBEDDED	1: $PANDO_BROKER was started by `pando run`
 *
 * A value that makes no sense is reported and its default taken: the program must run in any case.
 * In set-user-id programs the shim does nothing at all.
 *
 * Before the constructor has run, the functions behind us are system calls: dlsym() may allocate,
 * and the program may be anywhere in its start-up. Afterwards they are the next library's, so that
 * other libraries that interpose (sanitizers, profilers) keep seeing every call.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/size.h"
#include "preload/shim.h"

#define THRESHOLD (1ull << 20)

struct shim_options shim_options = {.threshold = THRESHOLD, .prefix = "run"};
bool shim_ready;
struct book shim_book;
pthread_mutex_t shim_lock = PTHREAD_MUTEX_INITIALIZER;
__thread struct shim_thread shim_thread __attribute__((tls_model("initial-exec")));

static uint64_t near_start = UINT64_MAX, near_end;

static struct {
	void *(*mmap)(void *, size_t, int, int, int, off_t);
	int (*munmap)(void *, size_t);
	int (*mprotect)(void *, size_t, int);
	int (*pkey_mprotect)(void *, size_t, int, int);
	int (*madvise)(void *, size_t, int);
	int (*posix_madvise)(void *, size_t, int);
	void *(*mremap)(void *, size_t, size_t, int, ...);
} next;

static struct {
	dev_t device;
	ino_t inode;
	bool open;
} standard_error;

void *real_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	if (next.mmap)
		return next.mmap(addr, length, prot, flags, fd, offset);
	return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}

int real_munmap(void *addr, size_t length)
{
	return next.munmap ? next.munmap(addr, length) : (int)syscall(SYS_munmap, addr, length);
}

int real_mprotect(void *addr, size_t length, int prot)
{
	return next.mprotect ? next.mprotect(addr, length, prot)
			     : (int)syscall(SYS_mprotect, addr, length, prot);
}

int real_pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
	return next.pkey_mprotect ? next.pkey_mprotect(addr, length, prot, pkey)
				  : (int)syscall(SYS_pkey_mprotect, addr, length, prot, pkey);
}

int real_madvise(void *addr, size_t length, int advice)
{
	return next.madvise ? next.madvise(addr, length, advice)
			    : (int)syscall(SYS_madvise, addr, length, advice);
}

int real_posix_madvise(void *addr, size_t length, int advice)
{
	if (next.posix_madvise)
		return next.posix_madvise(addr, length, advice);
	if (advice == POSIX_MADV_DONTNEED) /* which must not lose data, unlike MADV_DONTNEED */
		return 0;
	return syscall(SYS_madvise, addr, length, advice) == 0 ? 0 : errno;
}

void *real_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr)
{
	if (next.mremap)
		return next.mremap(addr, old_length, new_length, flags, new_addr);
	return (void *)syscall(SYS_mremap, addr, old_length, new_length, flags, new_addr);
}

/* Addresses only ever get nearer: the range covers every region that this process ever had. */
void shim_widen(uint64_t start, uint64_t end)
{
	if (start < near_start)
		pando__store_release(&near_start, start);
	if (end > near_end)
		pando__store_release(&near_end, end);
}

bool shim_near(uint64_t start, uint64_t end)
{
	return start < pando__load_relaxed(&near_end) && end > pando__load_relaxed(&near_start);
}

void shim_quiet(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGTRAP);
	sigdelset(&all, SIGABRT);
	pthread_sigmask(SIG_BLOCK, &all, before);
}

void shim_loud(const sigset_t *before)
{
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

bool shim_alone(void)
{
	struct stat st;

	/* A directory of one thread has three links: itself, its name, and its only child. */
	return stat("/proc/self/task", &st) == 0 && st.st_nlink == 3;
}

/* Descriptor 2 may have become something else since: a daemon's socket, a database file. */
void shim_say(const char *fmt, ...)
{
	char line[512] = "pando: ";
	struct stat st;
	va_list ap;
	size_t n;
	int saved = errno;

	if (!shim_options.verbose || !standard_error.open || fstat(2, &st) != 0 ||
	    st.st_dev != standard_error.device || st.st_ino != standard_error.inode)
		return;
	va_start(ap, fmt);
	vsnprintf(line + 7, sizeof(line) - 8, fmt, ap);
	va_end(ap);
	n = strlen(line);
	line[n++] = '\n';
	while (write(2, line, n) < 0 && errno == EINTR)
		;
	errno = saved;
}

static void prepare(void)
{
	pthread_mutex_lock(&shim_lock);
}

/* From now on two processes have what is in the book. */
static void share(void)
{
	for (uint32_t i = 0; i < shim_book.n; i++)
		shim_book.entries[i].shared = true;
}

static void in_parent(void)
{
	share();
	pthread_mutex_unlock(&shim_lock);
}

static void in_child(void)
{
	share();
	pthread_mutex_unlock(&shim_lock);
	serve_forked();
}

static void read_options(void)
{
	struct shim_options *o = &shim_options;
	const char *s;

	s = getenv("PANDO_RUN_VERBOSE");
	o->verbose = s && *s && strcmp(s, "0") != 0;
	s = getenv("PANDO_RUN_EMBEDDED");
	o->embedded = s && *s && strcmp(s, "0") != 0;
	s = getenv("PANDO_RUN_32BIT");
	o->serve_32bit = s && *s && strcmp(s, "0") != 0;
	s = getenv("PANDO_RUN_THRESHOLD");
	if (s && (pando__size_parse(s, &o->threshold) != 0 || o->threshold == 0)) {
		o->threshold = THRESHOLD;
		shim_say("PANDO_RUN_THRESHOLD=%s is not a size; 1M is used", s);
	}
	s = getenv("PANDO_RUN_NAME");
	if (s && strlen(s) <= SHIM_PREFIX_MAX)
		strcpy(o->prefix, s);
	s = getenv("PANDO_RUN_BACKEND");
	if (s) {
		uint32_t b = PANDO_BACKEND_AUTO;

		while (pando_backend_name(b) && strcmp(pando_backend_name(b), s) != 0)
			b++;
		if (pando_backend_name(b))
			o->backend = b;
		else
			shim_say("PANDO_RUN_BACKEND=%s is no backend; auto is used", s);
	}
}

__attribute__((constructor)) static void set_up(void)
{
	struct stat st;
	int saved = errno;

	if (getauxval(AT_SECURE))
		return;
	if (fstat(2, &st) == 0) {
		standard_error.device = st.st_dev;
		standard_error.inode = st.st_ino;
		standard_error.open = true;
	}
	read_options();
	next.munmap = dlsym(RTLD_NEXT, "munmap");
	next.mprotect = dlsym(RTLD_NEXT, "mprotect");
	next.pkey_mprotect = dlsym(RTLD_NEXT, "pkey_mprotect");
	next.madvise = dlsym(RTLD_NEXT, "madvise");
	next.posix_madvise = dlsym(RTLD_NEXT, "posix_madvise");
	next.mremap = dlsym(RTLD_NEXT, "mremap");
	next.mmap = dlsym(RTLD_NEXT, "mmap");
	if (pthread_atfork(prepare, in_parent, in_child) == 0)
		pando__store_release(&shim_ready, true);
	errno = saved;
}
