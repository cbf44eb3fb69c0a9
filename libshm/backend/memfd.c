/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The memfd backend: shmem pages in a memfd. Works on every kernel since 3.17, for every user.
 *
 * Page tables are each process's own: 8 bytes per page that it touches. What can be saved is had by
 * 2 MiB pages, where the system permits them for shared memory
 * (/sys/kernel/mm/transparent_hugepage/shmem_enabled):
 *
 *	always, within_size, force	fallocate() takes 2 MiB pages by itself
 *	advise				only memory faulted in through a mapping with MADV_HUGEPAGE gets them: commit
 *					does that first and lets fallocate() fill what is left
 *	never, deny			4 KiB pages
 *
 * Regions are left out of core dumps (as the kernel leaves out shared huge pages by default).
 *
 * Commit asks how much memory is available before it takes any: see memory.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "common/fail.h"
#include "common/inject.h"
#include "common/size.h"

#define PAGE 4096u
#define HUGE (2ull << 20)
#define THP "/sys/kernel/mm/transparent_hugepage/"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/*
 * The policy for 2 MiB shmem pages; newer kernels have one per size, which may inherit the common
 * one.
 */
static void shmem_policy(char *word, size_t size)
{
	if (pando__read_choice(THP "hugepages-2048kB/shmem_enabled", word, size) &&
	    strcmp(word, "inherit") != 0)
		return;
	if (!pando__read_choice(THP "shmem_enabled", word, size))
		snprintf(word, size, "never");
}

static void memfd_probe(struct pando__backend_probe *probe)
{
	char word[16];
	int fd;

	memset(probe, 0, sizeof(*probe));
	if (pando__file_create("probe", 0, PAGE, &fd) != 0) {
		snprintf(probe->why, sizeof(probe->why), "%.150s", pando_strerror_last());
		return;
	}
	close(fd);
	probe->usable = true;
	probe->available = pando__memory_available();
	shmem_policy(word, sizeof(word));
	if (strcmp(word, "never") == 0 || strcmp(word, "deny") == 0) {
		snprintf(probe->why, sizeof(probe->why),
			 "2 MiB pages are switched off for shared memory (%s)", word);
		snprintf(probe->mend, sizeof(probe->mend), "echo advise > " THP "shmem_enabled");
	}
}

static int memfd_create_heap(const char *name, uint64_t base, uint64_t max_size, int *fd)
{
	(void)base;
	return pando__file_create(name, 0, max_size, fd);
}

/*
 * Faults the whole 2 MiB pages of the range in through a mapping of our own with MADV_HUGEPAGE.
 * Best effort: whatever fails here is left to fallocate(), which then says why.
 */
static void commit_huge(int fd, uint64_t offset, uint64_t length)
{
	uint64_t first = (offset + HUGE - 1) & ~(HUGE - 1), end = (offset + length) & ~(HUGE - 1);
	char *room, *at;
	size_t n;

	if (end <= first)
		return;
	n = end - first;
	/* The address must be aligned like the offset, or no 2 MiB page fits. */
	room = mmap(NULL, n + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return;
	at = (char *)(((uintptr_t)room + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
	if (mmap(at, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
		 (off_t)first) == at &&
	    madvise(at, n, MADV_HUGEPAGE) == 0)
		(void)madvise(at, n, MADV_POPULATE_WRITE);
	munmap(room, n + HUGE);
}

static int memfd_commit(int fd, uint64_t offset, uint64_t length)
{
	char word[16];
	int rc = pando__file_check_commit(offset, length, PAGE);

	if (rc < 0)
		return rc;
	shmem_policy(word, sizeof(word));
	if (strcmp(word, "advise") == 0)
		commit_huge(fd, offset, length);
	return pando__file_fail_commit(pando__file_allocate(fd, offset, length), offset, length);
}

static int memfd_map(int fd, uint64_t base, uint64_t max_size, bool readonly)
{
	int rc = pando__file_map(fd, base, max_size, readonly);

	if (rc < 0)
		return rc;
	/* Refused where the kernel has no such pages: nothing is lost. */
	(void)madvise((void *)(uintptr_t)base, max_size, MADV_HUGEPAGE);
	/*
	 * A core dump reads what is mapped, and reading a hole of shmem allocates it: max_size in
	 * all.
	 */
	(void)madvise((void *)(uintptr_t)base, max_size, MADV_DONTDUMP);
	return 0;
}

const struct pando__backend pando__backend_memfd = {
	.id = PANDO_BACKEND_MEMFD,
	.name = "memfd",
	.page_size = PAGE,
	.probe = memfd_probe,
	.create = memfd_create_heap,
	.reopen_readonly = pando__file_reopen_readonly,
	.commit = memfd_commit,
	.decommit = pando__file_decommit,
	.map = memfd_map,
};
