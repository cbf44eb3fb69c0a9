/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The functions that the program calls instead of libc's.
 *
 * Each decides in a few instructions whether the call concerns us, and passes on what does not: all
 * that is not a large shared anonymous mapping, all that does not touch an address where a region
 * ever was, all that the library itself does on our behalf, and everything before the constructor
 * has run.
 *
 * Not seen: calls that do not go through these symbols (syscall(), libc's own use of memory,
 * statically linked programs); mlock(), msync() and mincore() behave alike on regions and need no
 * care; remap_file_pages(), mbind() on part of a huge page, and shmat() on top of a region are not
 * emulated.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>

#include "common/atomic.h"
#include "preload/shim.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define HUGE_SIZE(flags) (((unsigned int)(flags) >> MAP_HUGE_SHIFT) & 0x3f)

#define EXPORT PANDO_API

/* <sys/mman.h> renames mmap for 64-bit files: in C the two have other names here. */
EXPORT void *shim_mmap(void *addr, size_t length, int prot, int flags, int fd,
		       off_t offset) __asm__("mmap");
EXPORT void *shim_mmap64(void *addr, size_t length, int prot, int flags, int fd,
			 off_t offset) __asm__("mmap64");

/*
 * MAP_NORESERVE asks for address space that is mostly never touched; a region takes its memory at
 * once. A fixed address, one below 4 GiB, and huge pages of another size than 2 MiB cannot be had
 * from a region.
 */
static bool wanted(size_t length, int flags)
{
	const int all = MAP_ANONYMOUS;
	const int none = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_GROWSDOWN | MAP_NORESERVE;

	if ((flags & MAP_TYPE) != MAP_SHARED || (flags & (all | none)) != all)
		return false;
	if (length < shim_options.threshold)
		return false;
	if ((flags & MAP_32BIT) && !shim_options.serve_32bit)
		return false;
	if (flags & MAP_HUGETLB) {
		if (HUGE_SIZE(flags) != 0 && HUGE_SIZE(flags) != 21)
			return false;
		if (shim_options.backend != PANDO_BACKEND_AUTO &&
		    shim_options.backend != PANDO_BACKEND_HUGETLB)
			return false;
	}
	return true;
}

static bool ours(void)
{
	return pando__load_relaxed(&shim_ready) && shim_thread.inside == 0;
}

static bool page_aligned(const void *addr)
{
	return (uintptr_t)addr % BOOK_PAGE == 0;
}

/* The end of a range in whole pages; 0 if there is no such range. */
static uint64_t end_of(const void *addr, size_t length)
{
	uint64_t start = (uintptr_t)addr, bytes;

	if (length == 0 || length > SIZE_MAX - BOOK_PAGE)
		return 0;
	bytes = (length + BOOK_PAGE - 1) / BOOK_PAGE * BOOK_PAGE;
	return start + bytes > start ? start + bytes : 0;
}

static bool concerns(const void *addr, size_t length)
{
	uint64_t end = end_of(addr, length);

	return page_aligned(addr) && end && shim_near((uintptr_t)addr, end) && ours();
}

static void *interposed_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	void *p;

	if (!ours()) {
		shim_thread.seen = true;
		return real_mmap(addr, length, prot, flags, fd, offset);
	}
	if (offset % BOOK_PAGE == 0 && wanted(length, flags)) {
		p = serve_mmap(length, prot, flags);
		if (p != MAP_FAILED)
			return p;
	}
	if (addr && concerns(addr, length))
		return change_mmap(addr, length, prot, flags, fd, offset);
	return real_mmap(addr, length, prot, flags, fd, offset);
}

EXPORT void *shim_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return interposed_mmap(addr, length, prot, flags, fd, offset);
}

EXPORT void *shim_mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return interposed_mmap(addr, length, prot, flags, fd, offset);
}

EXPORT int munmap(void *addr, size_t length)
{
	uint64_t start = (uintptr_t)addr;

	if (concerns(addr, length))
		return change_munmap(start, end_of(addr, length));
	if (shim_thread.ignore_end && start >= shim_thread.ignore_start && length &&
	    end_of(addr, length) <= shim_thread.ignore_end)
		return 0;
	return real_munmap(addr, length);
}

EXPORT int mprotect(void *addr, size_t length, int prot)
{
	if (concerns(addr, length))
		return change_mprotect((uintptr_t)addr, end_of(addr, length), prot, -1);
	return real_mprotect(addr, length, prot);
}

EXPORT int pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
	if (concerns(addr, length))
		return change_mprotect((uintptr_t)addr, end_of(addr, length), prot, pkey);
	return real_pkey_mprotect(addr, length, prot, pkey);
}

EXPORT int madvise(void *addr, size_t length, int advice)
{
	if (concerns(addr, length))
		return change_madvise((uintptr_t)addr, end_of(addr, length), advice);
	return real_madvise(addr, length, advice);
}

/* Returns the error instead of setting errno; its DONTNEED is a promise, not an order. */
EXPORT int posix_madvise(void *addr, size_t length, int advice)
{
	int saved = errno, rc;

	if (!concerns(addr, length) || advice == POSIX_MADV_DONTNEED)
		return real_posix_madvise(addr, length, advice);
	rc = change_madvise((uintptr_t)addr, end_of(addr, length), advice) == 0 ? 0 : errno;
	errno = saved;
	return rc;
}

EXPORT void *mremap(void *addr, size_t old_length, size_t new_length, int flags, ...)
{
	void *new_addr = NULL;
	va_list ap;

	if (flags & (MREMAP_FIXED | 4 /* MREMAP_DONTUNMAP takes a hint */)) {
		va_start(ap, flags);
		new_addr = va_arg(ap, void *);
		va_end(ap);
	}
	if (concerns(addr, old_length) || concerns(new_addr, new_length))
		return change_mremap(addr, old_length, new_length, flags, new_addr);
	return real_mremap(addr, old_length, new_length, flags, new_addr);
}

/*
 * A library that is loaded with RTLD_DEEPBIND, as PHP loads its extensions, finds libc's functions
 * before any that were preloaded: opcache's memory would never be seen. So the flag is dropped, as
 * sanitizers ask for. The last call must be a jump: dlopen() looks at its caller to know whose
 * RUNPATH counts.
 */
#ifdef __clang__
#define TAIL_CALL
#else
#define TAIL_CALL __attribute__((optimize("O2"))) /* in unoptimised builds, too */
#endif
TAIL_CALL EXPORT void *dlopen(const char *file, int flags)
{
	static void *(*next)(const char *, int);

	if (!next)
		next = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
	return next(file, flags & ~RTLD_DEEPBIND);
}
