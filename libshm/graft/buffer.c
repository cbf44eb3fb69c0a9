/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Buffers: memory that is filled here and then handed over whole.
 *
 *	HERE --seal or move--> GONE
 *	  \--- fork(), in the child ---> PARENTS
 *
 * On the memfd way a buffer is a memfd, mapped shared; to let go of it is to unmap it, and then to seal
 * it against writing: the kernel refuses that while anybody has it mapped for writing, or still
 * writes into its pages. On the mmap way it is private anonymous memory, and letting go is one system
 * call.
 *
 * A child that is forked has neither: the mappings are MADV_DONTFORK, and the handler closes the
 * memfds. So no child can hold up a seal, and no page that is moved is one that two processes have. The
 * kernel does not move DONTFORK mappings, so it is taken off for the moment of moving, under the
 * list's lock, which fork() takes.
 *
 * While a buffer is being sealed its address range stays taken (PROT_NONE), so that it can be mapped
 * there again if the seal is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backend.h"
#include "client.h"
#include "common/fail.h"
#include "common/inject.h"

#define PAGE ((size_t)PANDO__GRAFT_PAGE)
#define HUGE ((size_t)PANDO__GRAFT_HUGE)
#define SIZE_MAX_BUFFER (1ull << 46)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3 */
#endif

static pthread_mutex_t buffers_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pando_buffer *buffers;

void pando__buffers_fork_prepare(void)
{
	pthread_mutex_lock(&buffers_lock);
}

void pando__buffers_fork_parent(void)
{
	pthread_mutex_unlock(&buffers_lock);
}

void pando__buffers_fork_child(void)
{
	for (struct pando_buffer *b = buffers; b; b = b->next) {
		if (b->fd >= 0)
			close(b->fd);
		b->fd = -1;
		b->state = PANDO__BUFFER_PARENTS;
	}
	pthread_mutex_unlock(&buffers_lock);
}

static void enlist(struct pando_buffer *b)
{
	pthread_mutex_lock(&buffers_lock);
	b->next = buffers;
	if (buffers)
		buffers->previous = b;
	buffers = b;
	pthread_mutex_unlock(&buffers_lock);
}

static void delist(struct pando_buffer *b)
{
	pthread_mutex_lock(&buffers_lock);
	if (b->next)
		b->next->previous = b->previous;
	*(b->previous ? &b->previous->next : &buffers) = b->next;
	pthread_mutex_unlock(&buffers_lock);
}

/* ---- making --------------------------------------------------------------- */

static int no_mapping(size_t size, int err)
{
	return pando__fail(err, "cannot map a buffer of %zu bytes: %s%s", size, strerror(err),
			   err == ENOMEM ? "; lift the limit on address space (ulimit -v)" : "");
}

/* Address space of that size; of 2 MiB and more: aligned to it. */
static char *room_for(size_t size)
{
	const size_t align = size >= HUGE ? HUGE : PAGE, slack = align - PAGE;
	char *room = mmap(NULL, size + slack, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *at;

	if (room == MAP_FAILED)
		return NULL;
	at = (char *)(((uintptr_t)room + align - 1) & ~(uintptr_t)(align - 1));
	if (at > room)
		munmap(room, (size_t)(at - room));
	if (at + size < room + size + slack)
		munmap(at + size, (size_t)(room + size + slack - (at + size)));
	return at;
}

static int new_memfd(size_t size)
{
	const struct pando__backend *backend = pando__backend_find(PANDO_BACKEND_MEMFD);
	const unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd = memfd_create("pando:graft", flags | MFD_NOEXEC_SEAL), high, rc;

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create("pando:graft", flags);
	if (fd >= 0 && fd <= 2) { /* these numbers are the host program's */
		high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		rc = errno;
		close(fd);
		fd = high;
		errno = rc;
	}
	if (fd < 0)
		return pando__fail(errno, "cannot make a memfd for a buffer: %s%s", strerror(errno),
				   errno == EMFILE ? "; raise the limit on open files (ulimit -n)"
						   : "");
	if (ftruncate(fd, (off_t)size) < 0 || fchmod(fd, 0600) < 0)
		rc = pando__fail(
			errno, "cannot give a memfd %zu bytes: %s%s", size, strerror(errno),
			errno == EFBIG ? "; lift the limit on file sizes (ulimit -f)" : "");
	else
		rc = backend->commit(fd, 0, size);
	if (rc < 0) {
		close(fd);
		return rc;
	}
	return fd;
}

/* Maps the memfd at the buffer's address. Returns 0 or a positive errno. */
static int map_memfd(struct pando_buffer *b, int flags)
{
	if (mmap(b->address, b->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b->fd, 0) ==
	    MAP_FAILED)
		return errno;
	if (flags & PANDO_BUFFER_HUGE)
		(void)madvise(b->address, b->size, MADV_HUGEPAGE);
	(void)madvise(b->address, b->size, MADV_DONTFORK);
	return 0;
}

static int make_memfd(struct pando_buffer *b, uint32_t flags)
{
	int err, fd = new_memfd(b->size);

	if (fd < 0)
		return fd;
	b->fd = fd;
	err = map_memfd(b, (int)flags);
	return err ? no_mapping(b->size, err) : 0;
}

static int make_anonymous(struct pando_buffer *b, uint32_t flags)
{
	const uint64_t available = pando__memory_available();

	if (b->size > available)
		return pando__fail(ENOMEM,
				   "a buffer of %zu bytes is more than the %" PRIu64
				   " that can be had without endangering others",
				   b->size, available);
	if (mprotect(b->address, b->size, PROT_READ | PROT_WRITE) < 0)
		return no_mapping(b->size, errno);
	if (flags & PANDO_BUFFER_HUGE)
		(void)madvise(b->address, b->size, MADV_HUGEPAGE);
	(void)madvise(b->address, b->size, MADV_DONTFORK);
	if (madvise(b->address, b->size, MADV_POPULATE_WRITE) < 0 && errno != EINVAL)
		return pando__fail(ENOMEM, "cannot allocate a buffer of %zu bytes: %s", b->size,
				   strerror(errno));
	return 0;
}

/* AUTO: what the environment says, else what is possible. Returns a way or a negative errno. */
static int choose_way(struct pando *p, const struct pando_buffer_options *o)
{
	const char *env = secure_getenv("PANDO_GRAFT_WAY");
	uint32_t way = o->way;
	int pidfd = -1, rc;
	bool permitted;

	for (uint32_t i = PANDO_GRAFT_MEMFD;
	     way == PANDO_GRAFT_AUTO && env && i <= PANDO_GRAFT_MMAP; i++)
		if (strcmp(env, pando_graft_way_name(i)) == 0)
			way = i;
	if (way == PANDO_GRAFT_MMAP && !pando__vm_mmap_there())
		return pando__fail(EOPNOTSUPP, "this kernel has no process_vm_mmap(): see pando "
					       "doctor; use PANDO_GRAFT_MEMFD");
	if (o->receiver) {
		rc = pando__graft_look(p, o->receiver, &pidfd);
		if (rc < 0)
			return rc;
	}
	permitted = way == PANDO_GRAFT_AUTO && pando__vm_mmap_there() &&
		    (!o->receiver || pidfd >= 0) && pando__vm_mmap_permitted(pidfd);
	if (pidfd >= 0)
		close(pidfd);
	if (way != PANDO_GRAFT_AUTO)
		return (int)way;
	return permitted ? PANDO_GRAFT_MMAP : PANDO_GRAFT_MEMFD;
}

static int take_options(const struct pando_buffer_options *options, size_t options_size,
			size_t size, struct pando_buffer_options *o)
{
	memset(o, 0, sizeof(*o));
	if (options)
		memcpy(o, options, options_size < sizeof(*o) ? options_size : sizeof(*o));
	for (size_t i = sizeof(*o); options && i < options_size; i++)
		if (((const char *)options)[i])
			return pando__fail(EINVAL, "the options of a buffer have members that this "
						   "library does not know");
	if (size == 0 || size > SIZE_MAX_BUFFER)
		return pando__fail(EINVAL, "a buffer cannot have %zu bytes", size);
	if (o->way > PANDO_GRAFT_MMAP || (o->flags & ~PANDO_BUFFER_HUGE))
		return pando__fail(EINVAL, "way %u or flags 0x%x of a buffer do not exist", o->way,
				   o->flags);
	return 0;
}

int pando_buffer_new_sized(struct pando *p, size_t size, const struct pando_buffer_options *options,
			   size_t options_size, struct pando_buffer **out)
{
	struct pando_buffer_options o;
	struct pando_buffer *b;
	int rc = take_options(options, options_size, size, &o), way;

	*out = NULL;
	if (rc < 0)
		return rc;
	way = choose_way(p, &o);
	if (way < 0)
		return way;
	b = calloc(1, sizeof(*b));
	if (!b)
		return pando__fail(ENOMEM, "no memory for the handle of a buffer");
	b->way = (uint32_t)way;
	b->fd = -1;
	b->size = (size_t)pando__graft_pages(size);
	b->address = room_for(b->size);
	/* A child that is forked from here on must know of it. */
	enlist(b);
	if (!b->address)
		rc = no_mapping(b->size, errno);
	else if (b->way == PANDO_GRAFT_MEMFD)
		rc = make_memfd(b, o.flags);
	else
		rc = make_anonymous(b, o.flags);
	if (rc < 0) {
		pando_buffer_free(b);
		return rc;
	}
	*out = b;
	return 0;
}

/* ---- using ---------------------------------------------------------------- */

void *pando_buffer_data(const struct pando_buffer *b)
{
	return b->state == PANDO__BUFFER_HERE ? b->address : NULL;
}

size_t pando_buffer_size(const struct pando_buffer *b)
{
	return b->state == PANDO__BUFFER_HERE ? b->size : 0;
}

int64_t pando_buffer_read(struct pando_buffer *b, int fd, size_t offset, size_t length)
{
	size_t have = 0, size = pando_buffer_size(b);

	if (offset > size || length > size - offset)
		return pando__fail(EINVAL, "%zu bytes at %zu are beyond a buffer of %zu", length,
				   offset, size);
	while (have < length) {
		ssize_t n = read(fd, b->address + offset + have, length - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && have == 0)
			return pando__fail(errno, "cannot read from descriptor %d: %s", fd,
					   strerror(errno));
		if (n <= 0)
			break;
		have += (size_t)n;
	}
	return (int64_t)have;
}

void pando_buffer_free(struct pando_buffer *b)
{
	if (!b)
		return;
	delist(b);
	if (b->state == PANDO__BUFFER_HERE && b->address)
		munmap(b->address, b->size);
	pando__buffer_close(b);
	free(b);
}

void pando__buffer_close(struct pando_buffer *b)
{
	pthread_mutex_lock(&buffers_lock);
	if (b->fd >= 0)
		close(b->fd);
	b->fd = -1;
	pthread_mutex_unlock(&buffers_lock);
}

/* ---- letting go ----------------------------------------------------------- */

/* Under buffers_lock. Returns 0 or a positive errno: the memory is where it was. */
static int seal(struct pando_buffer *b, size_t length)
{
	int err;

	if (mmap(b->address, b->size, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return errno;
	if (fcntl(b->fd, F_ADD_SEALS, F_SEAL_WRITE) < 0) {
		err = errno;
		/* It was mapped there a moment ago: nothing is missing for doing so again. */
		if (map_memfd(b, 0) == 0)
			return err;
		b->state = PANDO__BUFFER_GONE;
		return err;
	}
	munmap(b->address, b->size);
	b->state = PANDO__BUFFER_GONE;
	if ((length < b->size && ftruncate(b->fd, (off_t)length) < 0) ||
	    fcntl(b->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return errno;
	return 0;
}

int pando__buffer_seal(struct pando_buffer *b, size_t length)
{
	int err;

	pthread_mutex_lock(&buffers_lock);
	err = seal(b, length);
	pthread_mutex_unlock(&buffers_lock);
	if (err == EBUSY)
		return pando__fail(EBUSY, "the kernel still writes to the buffer, or another "
					  "process has it mapped");
	return err ? pando__fail(err, "cannot seal a buffer: %s", strerror(err)) : 0;
}

int pando__buffer_move(struct pando_buffer *b, size_t length, pid_t pid, uint64_t address)
{
	int rc;

	pthread_mutex_lock(&buffers_lock);
	(void)madvise(b->address, b->size, MADV_DOFORK);
	rc = pando__vm_mmap(-pid, b->address, length, address,
			    PANDO__PVMMAP_FIXED | PANDO__PVMMAP_MOVE);
	if (rc < 0) {
		(void)madvise(b->address, b->size, MADV_DONTFORK);
	} else {
		b->state = PANDO__BUFFER_GONE;
		if (length < b->size)
			munmap(b->address + length, b->size - length);
	}
	pthread_mutex_unlock(&buffers_lock);
	if (rc == 0)
		return 0;
	return pando__fail(-rc, "cannot move %zu bytes into process %d: %s%s", length, pid,
			   strerror(-rc),
			   rc == -EPERM ? "; name the receiver when the buffer is made" : "");
}
