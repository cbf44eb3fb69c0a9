/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The preload shim's insides. The modules, each over those below it:
 *
 *	interpose.c	the functions that the program calls; decides in a few instructions whether a call
 *			concerns us
 *	change.c	munmap, mprotect, madvise, mremap and MAP_FIXED on addresses that are (or were) a region's
 *	serve.c		from a request to a region, and back; the seat at the broker
 *	setup.c		what the environment says; messages; the next library's functions; fork()
 *	book.c		who owns which address (see book.h)
 *
 * Locks: `serving` (serve.c) is held while waiting for the broker, so that one thread at a time
 * does; shim_lock guards the book and is never held while waiting. fork() takes only shim_lock, so
 * it waits for nobody. Both are taken with signals blocked: a handler that unmaps memory cannot
 * find its own thread inside.
 *
 * Nothing here calls malloc; libpando does, on the path that opens or closes a region, which a
 * program enters by mmap() of a large shared mapping or the munmap() of the last of it. Until the
 * shim's constructor has run, everything is passed on.
 */
#ifndef PANDO_PRELOAD_SHIM_H
#define PANDO_PRELOAD_SHIM_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <pando/region.h>

#include "preload/book.h"

#define SHIM_PREFIX_MAX 40

/*
 * What `pando run` was asked for; travels in the environment. Fixed once the constructor has run.
 */
struct shim_options {
	uint64_t threshold; /* bytes; smaller mappings are left alone */
	uint32_t backend; /* enum pando_backend */
	bool verbose;
	bool serve_32bit; /* serve MAP_32BIT as well, at an address above 4 GiB */
	bool embedded; /* the broker is one of our own: start another if it is gone */
	char prefix[SHIM_PREFIX_MAX + 1];
};

extern struct shim_options shim_options;
extern bool shim_ready; /* the constructor has run and the shim is not switched off */
extern struct book shim_book;
extern pthread_mutex_t shim_lock;

/*
 * This thread is inside the library: what it maps is not the program's. And the range whose
 * munmap() by the library is to be ignored, because the shim has already unmapped what is to be
 * unmapped of it.
 */
struct shim_thread {
	unsigned int inside;
	bool seen; /* the library's calls do come through us */
	uint64_t ignore_start, ignore_end;
};
extern __thread struct shim_thread shim_thread __attribute__((tls_model("initial-exec")));

/* Blocks every signal that can wait. errno is kept. */
void shim_quiet(sigset_t *before);
void shim_loud(const sigset_t *before);

/*
 * With -v: one line on standard error, if it is still the one that this process was started with.
 */
void shim_say(const char *fmt, ...) PANDO_PRINTF(1, 2);

/* True if this process has one thread. */
bool shim_alone(void);

/* The functions of the next library, or the system call before they are known. */
void *real_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
int real_munmap(void *addr, size_t length);
int real_mprotect(void *addr, size_t length, int prot);
int real_pkey_mprotect(void *addr, size_t length, int prot, int pkey);
int real_madvise(void *addr, size_t length, int advice);
int real_posix_madvise(void *addr, size_t length, int advice);
void *real_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr);

/*
 * Serves mmap(NULL, length, prot, flags): the address, or MAP_FAILED if the program is to get a
 * plain mapping. Keeps errno.
 */
void *serve_mmap(size_t length, int prot, int flags);

/* Gives a region back whose memory has been unmapped already. */
struct serve_gone {
	struct pando_region *region;
	uint64_t base, reach;
};
void serve_close(const struct serve_gone *gone);

/* In the child of a fork(): no other thread is serving any more. */
void serve_forked(void);

/* True if this process certainly is the only one that has the entry's memory. */
bool serve_sole(const struct book_entry *e);

/* True if [start, end) may concern the book: two loads. */
bool shim_near(uint64_t start, uint64_t end);
void shim_widen(uint64_t start, uint64_t end);

/* change.c: as the functions of that name; for ranges that shim_near() has said yes to. */
int change_munmap(uint64_t start, uint64_t end);
int change_mprotect(uint64_t start, uint64_t end, int prot, int pkey);
int change_madvise(uint64_t start, uint64_t end, int advice);
void *change_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr);
void *change_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);

#endif
