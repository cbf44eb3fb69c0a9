/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What AddressSanitizer and Valgrind are told about the memory of a debug front. When they are not
 * there, next to nothing: a weak symbol that is NULL, and a few instructions that mean something to
 * Valgrind alone.
 */
#include "debug.h"

#include "common/atomic.h"

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#endif
#endif
#ifndef VALGRIND_MAKE_MEM_NOACCESS
#define VALGRIND_MAKE_MEM_NOACCESS(at, n) ((void)(at), (void)(n))
#define VALGRIND_MAKE_MEM_UNDEFINED(at, n) ((void)(at), (void)(n))
#define VALGRIND_MAKE_MEM_DEFINED(at, n) ((void)(at), (void)(n))
#endif

/* There if the program is built with AddressSanitizer, whatever the library is built with. */
void __asan_poison_memory_region(const volatile void *at, size_t n) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void *at, size_t n) __attribute__((weak));

void pando__mem_permit(const void *at, uint64_t n)
{
	if (__asan_unpoison_memory_region)
		__asan_unpoison_memory_region(at, n);
	VALGRIND_MAKE_MEM_DEFINED(at, n);
}

void pando__mem_forbid(const void *at, uint64_t n)
{
	if (__asan_poison_memory_region)
		__asan_poison_memory_region(at, n);
	VALGRIND_MAKE_MEM_NOACCESS(at, n);
}

void pando__mem_defined(const void *at, uint64_t n)
{
	VALGRIND_MAKE_MEM_DEFINED(at, n);
}

void pando__mem_undefined(const void *at, uint64_t n)
{
	VALGRIND_MAKE_MEM_UNDEFINED(at, n);
}

void pando__mem_noaccess(const void *at, uint64_t n)
{
	VALGRIND_MAKE_MEM_NOACCESS(at, n);
}

void pando__debug_permit(const struct pando__front *f, uint64_t offset, uint64_t length)
{
	pando__mem_permit(f->view.base + offset, length);
}

void pando__debug_leaving(struct pando__front *f, uint64_t offset, uint64_t length)
{
	pando__debug_permit(f, offset, length);
	for (uint64_t at = offset; at < offset + length; at += PANDO__PAGE)
		(void)pando__add_relaxed(&f->debug_stays[at / PANDO__PAGE], 1);
}
