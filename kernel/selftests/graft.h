/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * For the tests of process_vm_mmap(): the call itself, and a peer. A peer is a
 * child that does what it is told, any system call among it, so that both ends
 * of a call are in the hands of one program. It touches memory with its own CPU,
 * not through the kernel.
 *
 * Memory is checked by patterns: the first word of page i is the seed plus i.
 */
#ifndef SELFTESTS_GRAFT_H
#define SELFTESTS_GRAFT_H

#include "harness.h"

#include <sys/socket.h>
#include <sys/prctl.h>

#define SYS_process_vm_mmap 500
#define PVMMAP_FIXED 1
#define PVMMAP_FIXED_NOREPLACE 2
#define PVMMAP_MOVE 4

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

#define RW (PROT_READ | PROT_WRITE)

/* The call as it is: an address, or -1 and errno. */
static inline long graft(pid_t pid, const void *src, size_t len, const void *dst,
			 unsigned long flags)
{
	return syscall(SYS_process_vm_mmap, (long)pid, src, len, dst, flags);
}

static inline void need_graft(void)
{
	if (graft(0, NULL, 0, NULL, 0) == -1 && errno == ENOSYS)
		skip("this kernel has no process_vm_mmap()");
}

/* ---- memory --------------------------------------------------------------- */

static inline char *anon_at(void *addr, size_t size)
{
	int fixed = addr ? MAP_FIXED : 0;
	char *p = mmap(addr, size, RW, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);

	CHECK(p != MAP_FAILED, "mmap of %zu: %s", size, strerror(errno));
	return p;
}

static inline char *anon(size_t size)
{
	return anon_at(NULL, size);
}

/* Of a multiple of 2 MiB, aligned to it, with huge pages if there are any. */
static inline char *anon_huge(size_t size)
{
	char *p = anon(size + MiB(2)), *start;

	start = (char *)(((uintptr_t)p + MiB(2) - 1) & ~(MiB(2) - 1));
	if (start > p)
		munmap(p, (size_t)(start - p));
	munmap(start + size, (size_t)(p + MiB(2) - start));
	CHECK_OK(madvise(start, size, MADV_HUGEPAGE));
	return start;
}

static inline void fill(volatile char *p, size_t size, uint64_t seed)
{
	size_t i;

	for (i = 0; i < size / PAGE; i++)
		*(volatile uint64_t *)(p + i * PAGE) = seed + i;
}

/* How many pages are not what fill() left. */
static inline long differing(const volatile char *p, size_t size, uint64_t seed)
{
	long bad = 0;
	size_t i;

	for (i = 0; i < size / PAGE; i++)
		bad += *(const volatile uint64_t *)(p + i * PAGE) != seed + i;
	return bad;
}

/* ---- a peer --------------------------------------------------------------- */

enum {
	PEER_SYSCALL,
	PEER_FILL,
	PEER_DIFFERING,
	PEER_GET,
	PEER_PUT,
	PEER_TRY_READ,
	PEER_TRY_WRITE,
	PEER_FORK_DIFFERING,
	PEER_CALL
};

struct peer_request {
	long op;
	long a[7];
};

struct peer_reply {
	long result;
	int error;
};

struct peer {
	pid_t pid;
	int fd;
};

/* Does a child of the peer see the pattern? 0 if so. */
static inline long peer_fork_differing(const char *p, size_t size, uint64_t seed)
{
	pid_t pid = xfork();

	if (!pid)
		_exit(differing(p, size, seed) != 0);
	return wait_status(pid);
}

static inline long peer_do(const struct peer_request *r)
{
	char *p = (char *)r->a[0];

	switch (r->op) {
	case PEER_SYSCALL:
		return syscall(r->a[0], r->a[1], r->a[2], r->a[3], r->a[4], r->a[5], r->a[6]);
	case PEER_FILL:
		fill(p, (size_t)r->a[1], (uint64_t)r->a[2]);
		return 0;
	case PEER_DIFFERING:
		return differing(p, (size_t)r->a[1], (uint64_t)r->a[2]);
	case PEER_FORK_DIFFERING:
		return peer_fork_differing(p, (size_t)r->a[1], (uint64_t)r->a[2]);
	case PEER_CALL:
		return ((long (*)(long, long, long, long))r->a[0])(r->a[1], r->a[2], r->a[3],
								   r->a[4]);
	case PEER_GET:
		return *(volatile long *)p;
	case PEER_PUT:
		*(volatile long *)p = r->a[1];
		return 0;
	case PEER_TRY_READ:
		return try_read(p);
	case PEER_TRY_WRITE:
		return try_write(p, (unsigned char)r->a[1]);
	}
	return -1;
}

static inline void peer_loop(int fd)
{
	struct peer_request request;
	struct peer_reply reply;

	/* Whatever Yama says, the test is about something else. */
	prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
	while (read(fd, &request, sizeof(request)) == sizeof(request)) {
		errno = 0;
		reply.result = peer_do(&request);
		reply.error = errno;
		if (write(fd, &reply, sizeof(reply)) != sizeof(reply))
			break;
	}
	_exit(0);
}

static inline long peer_request(const struct peer *p, long op, const long *a)
{
	struct peer_request request = {.op = op};
	struct peer_reply reply;

	memcpy(request.a, a, sizeof(request.a));
	CHECK_EQ(write(p->fd, &request, sizeof(request)), sizeof(request));
	CHECK_EQ(read(p->fd, &reply, sizeof(reply)), sizeof(reply));
	errno = reply.error;
	return reply.result;
}

#define PEER(p, op, ...) peer_request(p, op, (const long[7]){__VA_ARGS__})

static inline struct peer peer_start(void)
{
	struct peer p;
	int fds[2];

	CHECK_OK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds));
	p.pid = xfork();
	if (!p.pid) {
		close(fds[0]);
		peer_loop(fds[1]);
	}
	close(fds[1]);
	p.fd = fds[0];
	CHECK_EQ(PEER(&p, PEER_SYSCALL, SYS_getpid), p.pid);
	return p;
}

static inline void peer_end(struct peer *p)
{
	close(p->fd);
	JOIN(p->pid);
}

/* A range of the peer's address space that is free in both processes. */
static inline char *peer_free(const struct peer *p, size_t size)
{
	char *at = fresh_address(size);

	CHECK_EQ(PEER(p, PEER_SYSCALL, SYS_munmap, (long)at, (long)size), 0);
	return at;
}

static inline char *peer_anon(const struct peer *p, size_t size)
{
	long at = PEER(p, PEER_SYSCALL, SYS_mmap, 0, (long)size, RW, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	CHECK(at != -1, "the peer's mmap of %zu: %s", size, strerror(errno));
	return (char *)at;
}

static inline void peer_fill(const struct peer *p, char *at, size_t size, uint64_t seed)
{
	PEER(p, PEER_FILL, (long)at, (long)size, (long)seed);
}

static inline long peer_differing(const struct peer *p, const char *at, size_t size, uint64_t seed)
{
	return PEER(p, PEER_DIFFERING, (long)at, (long)size, (long)seed);
}

static inline long peer_get(const struct peer *p, const char *at)
{
	return PEER(p, PEER_GET, (long)at);
}

static inline void peer_put(const struct peer *p, char *at, long value)
{
	PEER(p, PEER_PUT, (long)at, value);
}

/* Into the peer, at an address that the kernel chooses. */
static inline char *give(const struct peer *p, const char *src, size_t len, unsigned long flags)
{
	return (char *)CHECK_OK(graft(-p->pid, src, len, NULL, flags));
}

/* ---- both processes, as others see them ------------------------------------ */

/*
 * The lines of /proc/PID/maps, to see that nothing has changed. Four texts are kept,
 * in memory that is there from the beginning: malloc() would be a change.
 */
static inline char *maps_of(pid_t pid)
{
	static char texts[4][1 << 18];
	static unsigned int next;
	char path[64], *text = texts[next++ % ARRAY_SIZE(texts)];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	n = read_text(path, text, sizeof(texts[0]));
	CHECK(n > 0 && n < (ssize_t)sizeof(texts[0]) - 1, "%s: %zd bytes", path, n);
	return text;
}

static inline void maps_unchanged(pid_t pid, const char *before, const char *whose)
{
	CHECK(!strcmp(before, maps_of(pid)), "the %s's mappings have changed", whose);
}

#endif
