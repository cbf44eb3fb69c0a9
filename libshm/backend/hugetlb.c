/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The hugetlb backend: 2 MiB pages of the kernel's pool in a memfd.
 *
 * It saves page tables twice. A 2 MiB page needs one entry instead of 512; and where the file is
 * mapped shared over a whole GiB that is aligned to 1 GiB, in address and in offset, the kernel
 * lets all processes use one PMD page (CONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING, x86-64, arm64 and
 * riscv). An attacher then needs one entry per GiB, in a page of its own that covers 512 GiB, and
 * one minor fault per GiB, not one per page. So nothing here or in a caller may make mappings
 * differ: sharing wants the same flags (MADV_DONTDUMP, for one, has a flag), so read-only attachers
 * share among themselves only; and mprotect(), a partial munmap() or userfaultfd in one GiB ends
 * the sharing of that GiB for that process.
 *
 * The mapping is MAP_NORESERVE: without it each mmap() of max_size would reserve pages for all of
 * it. Reserves are not needed, because fallocate() has taken the pages before anybody touches them.
 *
 * The pool: free pages, less those reserved by others' mappings, plus what the kernel may add out
 * of general memory (nr_overcommit_hugepages, bounded by what is available, and by luck: memory may
 * be fragmented).
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

#define PAGE (2u << 20)
#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

/* Bytes that can be taken from the pool now. */
static uint64_t pool_available(void)
{
	uint64_t free_pages = pando__read_u64(POOL "free_hugepages", 0);
	uint64_t reserved = pando__read_u64(POOL "resv_hugepages", 0);
	uint64_t overcommit = pando__read_u64(POOL "nr_overcommit_hugepages", 0);
	uint64_t surplus = pando__read_u64(POOL "surplus_hugepages", 0);
	uint64_t bytes = (free_pages > reserved ? free_pages - reserved : 0) * PAGE;
	uint64_t limit;

	if (overcommit > surplus) {
		uint64_t more = overcommit - surplus, memory = pando__memory_available() / PAGE;

		bytes += (more < memory ? more : memory) * PAGE;
	}
	limit = pando__cgroup_headroom("", "hugetlb");
	return bytes < limit ? bytes : limit / PAGE * PAGE;
}

static void hugetlb_probe(struct pando__backend_probe *probe)
{
	int fd;

	memset(probe, 0, sizeof(*probe));
	if (access(POOL "nr_hugepages", F_OK) != 0) {
		snprintf(probe->why, sizeof(probe->why), "this kernel has no 2 MiB huge pages");
		return;
	}
	if (pando__file_create("probe", MFD_HUGETLB | MFD_HUGE_2MB, PAGE, &fd) != 0) {
		snprintf(probe->why, sizeof(probe->why), "%.150s", pando_strerror_last());
		return;
	}
	close(fd);
	probe->available = pool_available();
	probe->usable = probe->available > 0;
	if (!probe->usable) {
		snprintf(probe->why, sizeof(probe->why),
			 "the pool of 2 MiB huge pages has no free page");
		snprintf(probe->mend, sizeof(probe->mend),
			 "sysctl vm.nr_hugepages=N (2 MiB each), or "
			 "vm.nr_overcommit_hugepages=N");
	}
}

static int hugetlb_create(const char *name, uint64_t base, uint64_t max_size, int *fd)
{
	(void)base;
	return pando__file_create(name, MFD_HUGETLB | MFD_HUGE_2MB, max_size, fd);
}

static int no_pages(uint64_t length, uint64_t available)
{
	char need[PANDO__SIZE_TEXT], have[PANDO__SIZE_TEXT];

	return pando__fail(
		ENOMEM,
		"%s (%" PRIu64 " bytes) of 2 MiB huge pages are needed, the pool has %s (%" PRIu64
		" bytes) free; raise it with sysctl vm.nr_hugepages, %" PRIu64 " more are missing",
		pando__size_format(length, need), length, pando__size_format(available, have),
		available, length > available ? (length - available) / PAGE : 1);
}

static int hugetlb_commit(int fd, uint64_t offset, uint64_t length)
{
	uint64_t available;
	int rc;

	if (!pando__file_range_ok(offset, length, PAGE))
		return pando__fail(EINVAL,
				   "the range at offset %" PRIu64 " of %" PRIu64
				   " bytes is not made of 2 MiB pages",
				   offset, length);
	available = PANDO_INJECT_FAIL("backend.commit.memory") ? 0 : pool_available();
	if (length > available)
		return no_pages(length, available);
	rc = pando__file_allocate(fd, offset, length);
	if (rc == -ENOMEM) /* somebody was faster, or memory is too fragmented for another page */
		return no_pages(length, pool_available());
	if (rc < 0)
		return pando__fail(-rc,
				   "cannot allocate %" PRIu64
				   " bytes of huge pages at offset %" PRIu64 ": %s",
				   length, offset, strerror(-rc));
	return 0;
}

const struct pando__backend pando__backend_hugetlb = {
	.id = PANDO_BACKEND_HUGETLB,
	.name = "hugetlb",
	.page_size = PAGE,
	.probe = hugetlb_probe,
	.create = hugetlb_create,
	.reopen_readonly = pando__file_reopen_readonly,
	.commit = hugetlb_commit,
	.decommit = pando__file_decommit,
	.map = pando__file_map,
};
