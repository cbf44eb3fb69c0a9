/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the backends that are made of memfds have in common, and reading the kernel's small text
 * files. Private to libshm/backend.
 */
#ifndef PANDO_BACKEND_FILE_H
#define PANDO_BACKEND_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Makes a memfd (flags: beyond MFD_CLOEXEC | MFD_ALLOW_SEALING) of `size` bytes without memory,
 * mode 0600, sealed against growing, shrinking and further seals. Returns 0 or a negative errno
 * with a sentence.
 */
int pando__file_create(const char *name, unsigned int flags, uint64_t size, int *fd);

/* See struct pando__backend. */
int pando__file_reopen_readonly(int fd);
int pando__file_map(int fd, uint64_t base, uint64_t max_size, bool readonly);
int pando__file_decommit(int fd, uint64_t offset, uint64_t length);

/*
 * fallocate() of a range, again after an interrupting signal. Returns 0 or a negative errno without
 * a sentence; ENOSPC is turned into ENOMEM.
 */
int pando__file_allocate(int fd, uint64_t offset, uint64_t length);

/*
 * Before shmem pages are allocated: the range is made of pages, and the machine and the cgroups can
 * spare them. Returns 0, -EINVAL or -ENOMEM with a sentence.
 */
int pando__file_check_commit(uint64_t offset, uint64_t length, uint32_t page_size);

/* Turns what pando__file_allocate() returned for a range into the same with a sentence. */
int pando__file_fail_commit(int rc, uint64_t offset, uint64_t length);

/* True if [offset, offset + length) are multiples of page_size and do not wrap around. */
bool pando__file_range_ok(uint64_t offset, uint64_t length, uint32_t page_size);

/* Reads a small text file whole, NUL-terminated. Returns its length or a negative errno. */
int pando__read_text(const char *path, char *buf, size_t size);

/*
 * The number at the beginning of a file, or `otherwise` if there is none ("max" counts as
 * UINT64_MAX).
 */
uint64_t pando__read_u64(const char *path, uint64_t otherwise);

/* The word in brackets of a sysfs choice like "always [never]"; false if there is none. */
bool pando__read_choice(const char *path, char *word, size_t size);

/*
 * The least that a cgroup hierarchy leaves this process, in bytes: min over its group and all above
 * of limit - usage. controller: "memory" or "hugetlb"; for hugetlb, the 2 MiB limit. UINT64_MAX: no
 * limit. root: "" or the folder that stands for "/" in tests.
 */
uint64_t pando__cgroup_headroom(const char *root, const char *controller);

/* pando__memory_available() with another folder for "/". */
uint64_t pando__memory_available_under(const char *root);

#endif
