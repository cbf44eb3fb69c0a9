/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando doctor: backends and kernel features.
 *
 * What can be tried is tried, not deduced from version numbers: whether the kernel shares the page
 * tables of huge pages is found out with two pages and two mappings. Two mappings of one process
 * are enough: the kernel shares between mappings, whoever has them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "common/size.h"
#include "doctor.h"
#include "graft/graft.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"
#define GIB (1ull << 30)

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static void check_kernel(struct doctor *d)
{
	struct utsname u;
	unsigned int major = 0, minor = 0;

	if (uname(&u) == 0)
		(void)sscanf(u.release, "%u.%u", &major, &minor);
	if (major < 5 || (major == 5 && minor < 3))
		found(d, "kernel", true, DOCTOR_MISSING, "apt install linux-image-amd64",
		      "Linux %s is too old: Pando needs pidfds, so 5.3 or later", u.release);
	else if (major == 5 && minor < 14)
		found(d, "kernel", false, DOCTOR_LIMITED, "apt install linux-image-amd64",
		      "Linux %s works; before 5.14, memfd regions get no 2 MiB pages by advice",
		      u.release);
	else
		found(d, "kernel", true, DOCTOR_OK, NULL,
		      "Linux %s has all that a stock kernel offers Pando", u.release);
}

static void check_mshare(struct doctor *d)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_MSHARE);
	struct pando__backend_probe probe = {.why = "this build of Pando does not know it"};

	if (b)
		b->probe(&probe);
	if (probe.usable)
		found(d, "msharefs", false, DOCTOR_OK, NULL,
		      "regions share page tables at any page size");
	else
		found(d, "msharefs", false, DOCTOR_MISSING, probe.mend,
		      "%s; page tables can still be shared with huge pages (hugetlb)", probe.why);
}

static void check_vm_mmap(struct doctor *d)
{
	if (pando__vm_mmap_there())
		found(d, "process_vm_mmap", false, DOCTOR_OK, NULL,
		      "buffers are grafted by moving their pages");
	else
		found(d, "process_vm_mmap", false, DOCTOR_MISSING,
		      "boot a kernel with the patches in kernel/",
		      "not in this kernel (it comes with the patches in kernel/): buffers are "
		      "grafted as sealed memfds");
}

static void check_pool(struct doctor *d)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_HUGETLB);
	struct pando__backend_probe probe, mshare;
	char size[PANDO__SIZE_TEXT];

	b->probe(&probe);
	pando__backend_find(PANDO_BACKEND_MSHARE)->probe(&mshare);
	if (probe.usable)
		found(d, "hugetlb pool", false, DOCTOR_OK, NULL, "%s of 2 MiB pages can be had",
		      pando__size_format(probe.available, size));
	else if (mshare.usable)
		found(d, "hugetlb pool", false, DOCTOR_OK, NULL,
		      "%s; regions do without it, on msharefs", probe.why);
	else
		found(d, "hugetlb pool", false, DOCTOR_MISSING,
		      probe.mend[0] ? "sysctl vm.nr_hugepages=512" : NULL,
		      "%s: regions use 4 KiB pages and tables of their own (512 pages of 2 MiB "
		      "hold 1 GiB)",
		      probe.why);
}

static void check_overcommit(struct doctor *d)
{
	uint64_t n = pando__read_u64("/proc/sys/vm/nr_overcommit_hugepages", UINT64_MAX);
	char mend[80], size[PANDO__SIZE_TEXT];

	if (n == UINT64_MAX) {
		found(d, "hugetlb overcommit", false, DOCTOR_MISSING, NULL,
		      "this kernel has no huge pages");
	} else if (n > 0) {
		found(d, "hugetlb overcommit", false, DOCTOR_OK, NULL,
		      "the pool may grow by %s when it is needed",
		      pando__size_format(n << 21, size));
	} else {
		snprintf(mend, sizeof(mend), "sysctl vm.nr_overcommit_hugepages=%" PRIu64,
			 pando__memory_available() / 2 >> 21);
		found(d, "hugetlb overcommit", false, DOCTOR_MISSING, mend,
		      "the pool does not grow: all huge pages must be reserved beforehand");
	}
}

static uint64_t faults_now(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (uint64_t)u.ru_minflt;
}

/*
 * Touches two huge pages in two mappings of fd. Returns the faults of the second, or 0 if it could
 * not be tried.
 */
static uint64_t second_mapping_faults(int fd)
{
	const size_t huge = 2 << 20;
	uint64_t faults = 0;
	char *room = mmap(NULL, 3 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			  0),
	     *at[2];

	if (room == MAP_FAILED)
		return 0;
	at[0] = (char *)(((uintptr_t)room + GIB - 1) & ~(uintptr_t)(GIB - 1));
	at[1] = at[0] + GIB;
	for (int i = 0; i < 2; i++)
		if (mmap(at[i], GIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
			 fd, 0) == MAP_FAILED)
			goto out;
	for (int i = 0; i < 2; i++) {
		faults = faults_now();
		*(volatile char *)at[i] = 1;
		*(volatile char *)(at[i] + huge) = 1;
		faults = faults_now() - faults;
	}
out:
	munmap(room, 3 * GIB);
	return faults;
}

static void check_sharing(struct doctor *d)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_HUGETLB);
	uint64_t faults = 0;
	int fd;

	if (b->create("doctor", 0, GIB, &fd) == 0) {
		if (b->commit(fd, 0, 2ull * b->page_size) == 0)
			faults = second_mapping_faults(fd);
		close(fd);
	}
	if (faults == 0)
		found(d, "shared tables", false, DOCTOR_LIMITED, NULL,
		      "cannot be tried without two free huge pages; x86-64 kernels share the "
		      "tables of huge pages");
	else if (faults == 1)
		found(d, "shared tables", false, DOCTOR_OK, NULL,
		      "tried: processes share the page tables of huge pages, one fault per GiB");
	else
		found(d, "shared tables", false, DOCTOR_MISSING, NULL,
		      "tried: this kernel does not share the page tables of huge pages "
		      "(CONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING); each process needs 4 KiB per GiB");
}

static void check_shmem(struct doctor *d)
{
	char word[16] = "";

	if (!pando__read_choice(THP "hugepages-2048kB/shmem_enabled", word, sizeof(word)) ||
	    strcmp(word, "inherit") == 0)
		pando__read_choice(THP "shmem_enabled", word, sizeof(word));
	if (word[0] == '\0')
		found(d, "shmem huge pages", false, DOCTOR_MISSING, NULL,
		      "this kernel has no transparent huge pages");
	else if (strcmp(word, "never") == 0 || strcmp(word, "deny") == 0)
		found(d, "shmem huge pages", false, DOCTOR_MISSING,
		      "echo advise > " THP "shmem_enabled",
		      "switched off (%s): memfd regions use 4 KiB pages", word);
	else
		found(d, "shmem huge pages", false, DOCTOR_OK, NULL,
		      "%s: memfd regions use 2 MiB pages where they can", word);
}

static void check_memfd(struct doctor *d)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_MEMFD);
	uint64_t noexec = pando__read_u64("/proc/sys/vm/memfd_noexec", 0);
	struct pando__backend_probe probe;
	char size[PANDO__SIZE_TEXT];

	b->probe(&probe);
	if (!probe.usable)
		found(d, "memfd", true, DOCTOR_MISSING, NULL,
		      "%s: nothing works without sealed memfds", probe.why);
	else
		found(d, "memfd", true, DOCTOR_OK, NULL, "sealed memfds work; %s can be had now",
		      pando__size_format(probe.available, size));
	found(d, "memfd noexec", false, DOCTOR_OK, NULL,
	      noexec == 2   ? "the policy demands memfds that cannot be executed; Pando's cannot be"
	      : noexec == 1 ? "the policy makes memfds not executable; Pando's are not anyway"
			    : "no policy on executable memfds; Pando's cannot be executed");
}

static void check_membarrier(struct doctor *d)
{
	long have = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);

	if (have >= 0 && (have & MEMBARRIER_CMD_GLOBAL_EXPEDITED))
		found(d, "membarrier", false, DOCTOR_OK, NULL,
		      "global expedited: readers need no fence");
	else
		found(d, "membarrier", false, DOCTOR_MISSING, NULL,
		      "no global expedited command: readers use fences, which cost some "
		      "nanoseconds each");
}

static void check_pidfd(struct doctor *d)
{
	int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);

	if (fd >= 0) {
		close(fd);
		found(d, "pidfd", true, DOCTOR_OK, NULL,
		      "the death of a client is noticed at once");
	} else {
		found(d, "pidfd", true, DOCTOR_MISSING, NULL,
		      "pidfd_open: %s: the broker could not tell a dead client from another "
		      "process",
		      strerror(errno));
	}
}

static void check_userfaultfd(struct doctor *d)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 && errno == EPERM && access("/dev/userfaultfd", R_OK | W_OK) == 0)
		fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		close(fd);
		found(d, "userfaultfd", false, DOCTOR_OK, NULL, "pagers can serve all faults");
		return;
	}
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (fd < 0) {
		found(d, "userfaultfd", false, DOCTOR_MISSING, NULL, "%s: there can be no pagers",
		      strerror(errno));
		return;
	}
	close(fd);
	found(d, "userfaultfd", false, DOCTOR_LIMITED, "sysctl vm.unprivileged_userfaultfd=1",
	      "pagers serve faults of programs only, not of system calls");
}

static void check_yama(struct doctor *d)
{
	uint64_t scope = pando__read_u64("/proc/sys/kernel/yama/ptrace_scope", 0);

	if (scope == 0)
		found(d, "yama", false, DOCTOR_OK, NULL,
		      "processes of one user may graft into each other");
	else
		found(d, "yama", false, DOCTOR_LIMITED, "sysctl kernel.yama.ptrace_scope=0",
		      "ptrace_scope is %" PRIu64
		      ": pages are moved into another process with CAP_SYS_PTRACE%s, else buffers "
		      "are grafted as sealed memfds",
		      scope, scope == 1 ? " or the target's consent" : "");
}

void checks_backends(struct doctor *d)
{
	check_kernel(d);
	check_memfd(d);
	check_mshare(d);
	check_pool(d);
	check_overcommit(d);
	check_sharing(d);
	check_shmem(d);
}

void checks_kernel(struct doctor *d)
{
	check_pidfd(d);
	check_membarrier(d);
	check_userfaultfd(d);
	check_vm_mmap(d);
	check_yama(d);
}
