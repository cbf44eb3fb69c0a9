/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memfds: making, sealing, reopening, mapping.
 *
 * A heap file gets its whole size at once, as a hole, and is sealed: nobody who holds the
 * descriptor can truncate it and so turn a peer's access into SIGBUS, and nobody can seal it
 * further (F_SEAL_WRITE would stop the others from mapping it). Memory comes by fallocate() and
 * goes by punching holes, which no seal here forbids; a client could punch holes as well as it
 * could overwrite the data with zeroes.
 *
 * The inode's mode is 0600, so that a process of another user which was given a read-only
 * descriptor cannot get a writable one out of /proc/self/fd. A process of the same user can;
 * between those there is no boundary, as there is none for ptrace.
 *
 * All functions: any thread. Nothing here keeps state.
 */
#include "backend/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backend.h"
#include "common/fail.h"
#include "common/inject.h"
#include "common/size.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3 */
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/*
 * One call of fallocate() at most: an interrupted call on shmem undoes its work, so it must be
 * short.
 */
#define PIECE (16ull << 20)

static int open_memfd(const char *name, unsigned int flags)
{
	char label[80];
	int fd;

	snprintf(label, sizeof(label), "pando:%s", name);
	flags |= MFD_CLOEXEC | MFD_ALLOW_SEALING;
	fd = memfd_create(label, flags | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(label, flags);
	return fd;
}

int pando__file_create(const char *name, unsigned int flags, uint64_t size, int *out)
{
	int fd, err;

	fd = PANDO_INJECT_FAIL("backend.create.memfd") ? (errno = EMFILE, -1)
						       : open_memfd(name, flags);
	if (fd < 0)
		return pando__fail(errno, "cannot make the memory file of region \"%s\": %s%s",
				   name, strerror(errno),
				   errno == EMFILE   ? "; raise the limit on open files (ulimit -n)"
				   : errno == EACCES ? "; set the sysctl vm.memfd_noexec to 0 or 1"
						     : "");
	if (ftruncate(fd, (off_t)size) == 0 && fchmod(fd, 0600) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) == 0) {
		*out = fd;
		return 0;
	}
	err = errno;
	close(fd);
	return pando__fail(err,
			   "cannot give the memory file of region \"%s\" its size of %" PRIu64
			   " bytes: %s%s",
			   name, size, strerror(err),
			   err == EFBIG ? "; lift the limit on file sizes (ulimit -f)" : "");
}

int pando__file_reopen_readonly(int fd)
{
	char path[40];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0)
		return pando__fail(errno, "cannot open the memory file %s again for reading: %s%s",
				   path, strerror(errno),
				   errno == ENOENT ? "; /proc must be mounted" : "");
	return ro;
}

int pando__file_map(int fd, uint64_t base, uint64_t max_size, bool readonly)
{
	void *want = (void *)(uintptr_t)base;
	void *got = mmap(want, max_size, readonly ? PROT_READ : PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, 0);

	if (got == MAP_FAILED) {
		if (errno == EEXIST)
			return -EEXIST;
		return pando__fail(
			errno, "cannot map %" PRIu64 " bytes at 0x%" PRIx64 ": %s%s", max_size,
			base, strerror(errno),
			errno == ENOMEM ? "; lift the limit on address space (ulimit -v) or raise "
					  "the sysctl vm.max_map_count"
					: "");
	}
	if (got != want) { /* a kernel before 4.17, or Valgrind, took the address for a hint */
		munmap(got, max_size);
		return -EEXIST;
	}
	return 0;
}

int pando__file_decommit(int fd, uint64_t offset, uint64_t length)
{
	int rc;

	if (length == 0)
		return 0;
	do
		rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			       (off_t)length);
	while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return pando__fail(errno,
				   "cannot give back %" PRIu64 " bytes at offset %" PRIu64 ": %s",
				   length, offset, strerror(errno));
	return 0;
}

int pando__file_allocate(int fd, uint64_t offset, uint64_t length)
{
	while (length > 0) {
		uint64_t n = length < PIECE ? length : PIECE;

		if (fallocate(fd, 0, (off_t)offset, (off_t)n) < 0) {
			if (errno == EINTR)
				continue;
			return errno == ENOSPC ? -ENOMEM : -errno;
		}
		offset += n;
		length -= n;
	}
	return 0;
}

int pando__file_check_commit(uint64_t offset, uint64_t length, uint32_t page_size)
{
	char need[PANDO__SIZE_TEXT], have[PANDO__SIZE_TEXT];
	uint64_t available;

	if (!pando__file_range_ok(offset, length, page_size))
		return pando__fail(EINVAL,
				   "the range at offset %" PRIu64 " of %" PRIu64
				   " bytes is not made of pages",
				   offset, length);
	available = PANDO_INJECT_FAIL("backend.commit.memory") ? 0 : pando__memory_available();
	if (length <= available)
		return 0;
	return pando__fail(
		ENOMEM,
		"%s (%" PRIu64 " bytes) of memory are needed, %s (%" PRIu64
		" bytes) can be had without endangering others; free some or ask for less",
		pando__size_format(length, need), length, pando__size_format(available, have),
		available);
}

int pando__file_fail_commit(int rc, uint64_t offset, uint64_t length)
{
	char need[PANDO__SIZE_TEXT];

	if (rc == 0)
		return 0;
	return pando__fail(
		-rc, "cannot allocate %s (%" PRIu64 " bytes) of memory at offset %" PRIu64 ": %s",
		pando__size_format(length, need), length, offset, strerror(-rc));
}

bool pando__file_range_ok(uint64_t offset, uint64_t length, uint32_t page_size)
{
	return ((offset | length) & (page_size - 1)) == 0 && offset + length >= offset &&
	       offset + length <= INT64_MAX;
}

int pando__read_text(const char *path, char *buf, size_t size)
{
	size_t have = 0;
	ssize_t n = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (have + 1 < size && (n = read(fd, buf + have, size - 1 - have)) != 0) {
		if (n < 0 && errno != EINTR)
			break;
		have += n > 0 ? (size_t)n : 0;
	}
	if (n < 0) {
		n = -errno;
		close(fd);
		return (int)n;
	}
	close(fd);
	buf[have] = '\0';
	return (int)have;
}

uint64_t pando__read_u64(const char *path, uint64_t otherwise)
{
	char text[64], *end;
	unsigned long long value;

	if (pando__read_text(path, text, sizeof(text)) <= 0)
		return otherwise;
	if (strncmp(text, "max", 3) == 0)
		return UINT64_MAX;
	errno = 0;
	value = strtoull(text, &end, 10);
	return end == text || errno ? otherwise : value;
}

bool pando__read_choice(const char *path, char *word, size_t size)
{
	char text[256], *open, *close;

	if (pando__read_text(path, text, sizeof(text)) <= 0)
		return false;
	open = strchr(text, '[');
	close = open ? strchr(open, ']') : NULL;
	if (!close)
		return false;
	*close = '\0';
	snprintf(word, size, "%s", open + 1);
	return true;
}
