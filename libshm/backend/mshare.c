/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The mshare backend: files of msharefs, a file system of the patched kernel (see kernel/).
 *
 * All processes that map such a file share the page tables that describe it, at any page size: one
 * set of tables per right (read-write and read-only) whatever the number of processes, and no fault
 * for a page that anybody has touched. The pages are shmem pages: they can be swapped and are
 * charged to memory cgroups.
 *
 * An msharefs file gets its address and size by its first mmap() and keeps them; here the broker
 * does that and unmaps at once. The file is made nameless (O_TMPFILE); on a kernel without that it
 * has a name between two system calls, and a broker killed there leaves an empty file behind, which
 * the next probe removes: the name tells the process.
 *
 * A region has its maximum size from the start, and what it commits is counted when it commits; so
 * the file is established with MAP_NORESERVE, or the mount's size= would have to hold the maximum
 * sizes of all regions.
 *
 * The kernel refuses partial munmap(), mprotect(), mremap() and most of madvise() on such mappings,
 * and the mapping itself in a process with locked memory or with MMU notifiers.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "common/fail.h"
#include "common/inject.h"
#include "common/layout.h"
#include "common/size.h"

#define MOUNT "/sys/fs/mshare"
#define PREFIX "pando-broker-"
#define PAGE 4096u

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* Removes names left by brokers that were killed between making a file and unlinking it. */
static void sweep(void)
{
	DIR *d = opendir(MOUNT);
	struct dirent *e;

	if (!d)
		return;
	while ((e = readdir(d))) {
		char path[64];
		long pid;

		if (strncmp(e->d_name, PREFIX, strlen(PREFIX)) != 0)
			continue;
		pid = strtol(e->d_name + strlen(PREFIX), NULL, 10);
		snprintf(path, sizeof(path), "/proc/%ld", pid);
		if (pid > 0 && access(path, F_OK) != 0)
			unlinkat(dirfd(d), e->d_name, 0);
	}
	closedir(d);
}

static void mshare_probe(struct pando__backend_probe *probe)
{
	struct statfs fs;
	uint64_t unit, memory;

	memset(probe, 0, sizeof(*probe));
	unit = pando__read_u64(MOUNT "/mshare_info", 0);
	if (unit == 0) {
		snprintf(probe->why, sizeof(probe->why),
			 "this kernel has no msharefs, or it is not mounted at " MOUNT);
		snprintf(probe->mend, sizeof(probe->mend),
			 "boot a kernel with the patches in kernel/, then: mount -t msharefs "
			 "msharefs " MOUNT);
		return;
	}
	if (unit > PANDO__GIB || PANDO__GIB % unit != 0) {
		snprintf(probe->why, sizeof(probe->why),
			 "msharefs wants an alignment of %" PRIu64 " bytes, regions have 1 GiB",
			 unit);
		return;
	}
	if (access(MOUNT, W_OK | X_OK) != 0 || statfs(MOUNT, &fs) != 0) {
		snprintf(probe->why, sizeof(probe->why), "no right to make files in " MOUNT);
		snprintf(probe->mend, sizeof(probe->mend),
			 "run pandod as root, or: chmod 1777 " MOUNT);
		return;
	}
	sweep();
	memory = pando__memory_available();
	probe->available = memory;
	if (fs.f_blocks > 0 && (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize < memory)
		probe->available = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
	probe->usable = true;
}

/* A file without a name, or -errno. */
static int open_nameless(void)
{
	static uint32_t counter;
	char path[96];
	int fd = open(MOUNT, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
		return fd >= 0 ? fd : -errno;
	snprintf(path, sizeof(path), MOUNT "/" PREFIX "%d-%u", getpid(),
		 __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED));
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	PANDO_INJECT("backend.create.named"); /* killed here: see sweep() */
	unlink(path);
	return fd;
}

static int mshare_create(const char *name, uint64_t base, uint64_t max_size, int *out)
{
	void *want = (void *)(uintptr_t)base, *got;
	int fd = open_nameless(), err;

	if (fd < 0) /* without the mount, or on another file system: this is no msharefs */
		return pando__fail(fd == -ENOENT || fd == -ENOTDIR ? EOPNOTSUPP : -fd,
				   "cannot make the memory file of region \"%s\" in " MOUNT
				   " of backend mshare: %s; see pando doctor",
				   name, strerror(-fd));
	got = mmap(want, max_size, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, 0);
	if (got == MAP_FAILED) {
		err = errno;
		close(fd);
		return pando__fail(err,
				   "cannot give region \"%s\" its place at 0x%" PRIx64
				   " with %" PRIu64 " bytes: %s",
				   name, base, max_size, strerror(err));
	}
	munmap(got, max_size);
	*out = fd;
	return 0;
}

/* What the mount's size= leaves for a file, what it has already included; UINT64_MAX: no limit. */
static uint64_t mount_leaves(int fd)
{
	struct statfs fs;
	struct stat st;

	if (fstatfs(fd, &fs) != 0 || fs.f_blocks == 0 || fstat(fd, &st) != 0)
		return UINT64_MAX;
	return (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize + (uint64_t)st.st_blocks * 512;
}

static int over_limit(uint64_t length, uint64_t left)
{
	char need[PANDO__SIZE_TEXT], have[PANDO__SIZE_TEXT];

	return pando__fail(ENOMEM,
			   "%s (%" PRIu64 " bytes) of memory are needed, the size= limit of " MOUNT
			   " leaves %s (%" PRIu64 " bytes); mount -o remount,size=SIZE " MOUNT
			   " or ask for less",
			   pando__size_format(length, need), length, pando__size_format(left, have),
			   left);
}

static int mshare_commit(int fd, uint64_t offset, uint64_t length)
{
	uint64_t left = mount_leaves(fd);
	int rc;

	if (length > left && pando__file_range_ok(offset, length, PAGE))
		return over_limit(length, left);
	rc = pando__file_check_commit(offset, length, PAGE);
	if (rc < 0)
		return rc;
	rc = pando__file_allocate(fd, offset, length);
	if (rc == -ENOMEM) /* others were faster */
		return over_limit(length, mount_leaves(fd));
	return pando__file_fail_commit(rc, offset, length);
}

static int mshare_map(int fd, uint64_t base, uint64_t max_size, bool readonly)
{
	int rc = pando__file_map(fd, base, max_size, readonly);

	if (rc == -EOPNOTSUPP)
		return pando__fail(EOPNOTSUPP,
				   "cannot map the region at 0x%" PRIx64
				   ": msharefs refuses processes that lock all their memory "
				   "(mlockall); make the region with --backend memfd, or do not "
				   "lock",
				   base);
	if (rc == -EBUSY)
		return pando__fail(EBUSY,
				   "cannot map the region at 0x%" PRIx64
				   ": msharefs refuses processes whose memory a device or KVM "
				   "mirrors; make the region with --backend memfd",
				   base);
	if (rc < 0)
		return rc;
	/* A core dump reads what is mapped, and reading a hole of shmem allocates it. */
	(void)madvise((void *)(uintptr_t)base, max_size, MADV_DONTDUMP);
	return 0;
}

const struct pando__backend pando__backend_mshare = {
	.id = PANDO_BACKEND_MSHARE,
	.name = "mshare",
	.page_size = PAGE,
	.probe = mshare_probe,
	.create = mshare_create,
	.reopen_readonly = pando__file_reopen_readonly,
	.commit = mshare_commit,
	.decommit = pando__file_decommit,
	.map = mshare_map,
};
