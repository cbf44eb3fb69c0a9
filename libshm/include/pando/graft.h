/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grafting: handing a filled buffer to another process, without copying it.
 *
 *	sender					receiver
 *	pando_buffer_new(p, size, NULL, &b)	pando_graft_listen(p, NULL)
 *	read(fd, pando_buffer_data(b), size)	poll() on pando_event_fd(p)
 *	pando_graft(p, receiver, b, size, tag)	pando_graft_accept(p, &info)
 *	pando_buffer_free(b)			... info.address ...
 *						pando_graft_release(p, info.address)
 *
 * Afterwards the memory is the receiver's alone: it may write, nobody else sees that, and the sender
 * has nothing left of it. Where the kernel has process_vm_mmap() and the sender may attach to the
 * receiver as a debugger may, the pages are moved; else the buffer lies in a sealed memfd that the
 * receiver's library maps privately. The meaning is the same, and neither way copies a byte; in the
 * second one the receiver's first write to each page costs it a copy of that page.
 */
#ifndef PANDO_GRAFT_H
#define PANDO_GRAFT_H

#include <pando/connect.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How a buffer is handed over. */
enum pando_graft_way {
	PANDO_GRAFT_AUTO = 0, /* the best that works */
	PANDO_GRAFT_MEMFD = 1, /* a sealed memfd, mapped privately */
	PANDO_GRAFT_MMAP = 2, /* process_vm_mmap(): the pages are moved */
};

/* "auto", "memfd", "mmap"; NULL for another number. Static storage. Any context. */
PANDO_API const char *pando_graft_way_name(unsigned int way);

/* ---- buffers ---- */

struct pando_buffer;

#define PANDO_BUFFER_HUGE 0x1u /* 2 MiB pages, as far as the system has them and permits them */

/* Zero-initialise, then set what matters. */
struct pando_buffer_options {
	/*
	 * Client id of who is to get it, or 0: not known yet. Where the buffer lies is settled when it is
	 * made; knowing the receiver, the library can ask whether its pages may be moved there.
	 */
	uint64_t receiver;
	/* enum pando_graft_way; AUTO: as $PANDO_GRAFT_WAY ("memfd", "mmap") says, else the best */
	uint32_t way;
	uint32_t flags; /* PANDO_BUFFER_HUGE */
};

/*
 * Makes a buffer of `size` bytes (rounded up to pages), zeroed, with all of its memory: filling it
 * cannot fail. It belongs to the process, not to the handle, and is not inherited by a fork().
 *
 * Returns 0; -EINVAL (size 0, unknown way or flag), -ENOMEM, -EOPNOTSUPP (PANDO_GRAFT_MMAP on a kernel
 * without process_vm_mmap()), -ESRCH, -ENOTCONN, -EPERM (the receiver is not there, does not listen,
 * may not be grafted into), -EMFILE, or an error of the connection. Any thread.
 */
PANDO_API PANDO_NODISCARD int pando_buffer_new_sized(struct pando *p, size_t size,
						     const struct pando_buffer_options *options,
						     size_t options_size, struct pando_buffer **out)
	PANDO_NONNULL(1, 5);

static inline PANDO_NODISCARD int pando_buffer_new(struct pando *p, size_t size,
						   const struct pando_buffer_options *options,
						   struct pando_buffer **out)
{
	return pando_buffer_new_sized(p, size, options, options ? sizeof(*options) : 0, out);
}

/*
 * Its memory, to be written in place, by read(), recv() or anything else; and its size in bytes. NULL
 * and 0 once it has been handed over, and in the child of a fork(). One thread at a time.
 */
PANDO_API void *pando_buffer_data(const struct pando_buffer *b) PANDO_NONNULL(1);
PANDO_API size_t pando_buffer_size(const struct pando_buffer *b) PANDO_NONNULL(1);

/*
 * Reads from a descriptor (file, pipe, socket) into the buffer until `length` bytes are there or it
 * ends. Returns how many came; -EINVAL (beyond the buffer), or the errno of read(): -EAGAIN only if
 * nothing has come. One thread at a time.
 */
PANDO_API PANDO_NODISCARD int64_t pando_buffer_read(struct pando_buffer *b, int fd, size_t offset,
						    size_t length) PANDO_NONNULL(1);

/* Frees the handle, and the memory if it has not been handed over. NULL is ignored. */
PANDO_API void pando_buffer_free(struct pando_buffer *b);

/* ---- sending ---- */

/*
 * Hands the first `length` bytes of the buffer, rounded up to pages, to the client `receiver`
 * (pando_client_id() there), and gives the rest back to the system. tag: any number, for the receiver.
 * 0 says that it waits for the receiver, not that it has been accepted.
 *
 * Returns 0: the buffer is empty. -EAGAIN: too much waits for the receiver, or its reservation is full:
 * try again later, or another one. -ESRCH: there is no such client. -ENOTCONN: it does not listen.
 * -EPERM: this user may not graft into it; or the buffer was made without naming its receiver, and this
 * one may not be attached to. -EFBIG: it could never take that much. -EINVAL: length 0 or beyond the
 * buffer, the buffer was handed over already or is the parent's, the receiver is this process. -EBUSY:
 * the kernel still writes to the buffer (direct I/O under way). In all these cases the buffer is as it
 * was. -ECONNRESET, -ETIMEDOUT, -EMFILE: if pando_buffer_data() is NULL afterwards, it had been let go,
 * and is lost. Any thread; one at a time for one buffer.
 */
PANDO_API PANDO_NODISCARD int pando_graft(struct pando *p, uint64_t receiver,
					  struct pando_buffer *b, size_t length, uint64_t tag)
	PANDO_NONNULL(1, 3);

/* ---- receiving ---- */

/* Zero-initialise, then set what matters. */
struct pando_graft_listen_options {
	/* bytes of address space for grafts, waiting and accepted; 0: 16 GiB; rounded up to 2 MiB */
	uint64_t size;
	uint64_t limit; /* bytes that may wait to be accepted; 0: what the broker allows */
};

/*
 * Reserves address space (no memory) and lets others graft into this process from now on. A second call
 * changes nothing and returns 0. The child of a fork() does not listen until it calls this itself.
 *
 * Returns 0; -ENOMEM (no room: see ulimit -v), -EINVAL (size over 64 TiB), -EMFILE, or an error of the
 * connection. Any thread.
 */
PANDO_API PANDO_NODISCARD int pando_graft_listen_sized(
	struct pando *p, const struct pando_graft_listen_options *options, size_t options_size)
	PANDO_NONNULL(1);

static inline PANDO_NODISCARD int pando_graft_listen(
	struct pando *p, const struct pando_graft_listen_options *options)
{
	return pando_graft_listen_sized(p, options, options ? sizeof(*options) : 0);
}

/*
 * A descriptor that is readable while a graft waits: for poll(), epoll or an event loop; nothing else
 * may be done with it. It belongs to the handle and stays the same until that is closed, or the process
 * forks: the child's is another one. Returns -ENOTCONN without pando_graft_listen(), -EBADF if the
 * program has closed it. Any thread.
 */
PANDO_API int pando_event_fd(struct pando *p) PANDO_NONNULL(1);

struct pando_graft_info {
	void *address; /* where it lies; NULL in pando_graft_peek() */
	size_t length; /* bytes, as the sender said; up to the next page there are zeroes or more of its */
	uint64_t id; /* of this graft */
	uint64_t tag; /* the sender's */
	uint64_t sender; /* its client id; it may have ended */
	int32_t sender_pid; /* in the broker's pid namespace */
	uint32_t sender_uid;
	uint32_t way; /* enum pando_graft_way, never AUTO */
	uint32_t waiting; /* grafts that waited when this was asked, this one included */
};

/*
 * Takes the oldest graft that waits: its memory is this process's, readable and writable, until it is
 * released or the handle is closed. Returns 0; -EAGAIN (none waits), -ENOTCONN (this process does not
 * listen), -ENOMEM or another errno of mmap() (the graft goes on waiting), or an error of the
 * connection. Never waits for a sender. Any thread.
 */
PANDO_API PANDO_NODISCARD int pando_graft_accept(struct pando *p, struct pando_graft_info *info)
	PANDO_NONNULL(1, 2);

/* Tells about the oldest one and leaves it where it is. Returns as above. */
PANDO_API PANDO_NODISCARD int pando_graft_peek(struct pando *p, struct pando_graft_info *info)
	PANDO_NONNULL(1, 2);

/* Drops a graft that waits, by its id. Returns 0 (also if none such waits any more) or as above. */
PANDO_API PANDO_NODISCARD int pando_graft_refuse(struct pando *p, uint64_t id) PANDO_NONNULL(1);

/*
 * Gives the memory of an accepted graft back. Returns 0; -EINVAL (none begins there); or an error of
 * the connection, with the memory given back all the same. In the child of a fork() it gives back the
 * child's copy. Any thread; nobody may be using the memory.
 */
PANDO_API int pando_graft_release(struct pando *p, void *address) PANDO_NONNULL(1);

/* What this handle has done since it was connected (a child counts from its fork()). */
struct pando_graft_stat {
	uint32_t way; /* of the last graft that was sent or accepted; AUTO: none yet */
	uint32_t can_mmap; /* 1: this kernel has process_vm_mmap() */
	uint32_t listening; /* 1 after pando_graft_listen() */
	uint32_t held; /* accepted and not released */
	uint64_t sent, sent_bytes;
	uint64_t accepted, accepted_bytes;
	uint64_t refused; /* by this receiver */
	uint64_t cleared; /* slots that dead senders had left */
	uint64_t copied_bytes; /* by the library, in handing over: 0 */
	uint64_t base, size; /* the reservation */
};

/* Fills *st from memory, without the broker. Returns 0. Any thread. */
PANDO_API int pando_graft_stat_sized(struct pando *p, struct pando_graft_stat *st, size_t size)
	PANDO_NONNULL(1, 2);

static inline int pando_graft_stat(struct pando *p, struct pando_graft_stat *st)
{
	return pando_graft_stat_sized(p, st, sizeof(*st));
}

#ifdef __cplusplus
}
#endif
#endif
