/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grafting's insides: see docs/design/graft.md.
 *
 * Modules: buffer.c (buffers, on either way), mmap.c (the system call, and whether it may be used),
 * send.c (pando_graft()), receive.c (the reservation, what has been accepted).
 */
#ifndef PANDO_GRAFT_GRAFT_H
#define PANDO_GRAFT_GRAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <pando/graft.h>

/* A slot whose graft has been accepted. */
struct pando__accepted {
	struct pando__accepted *next; /* by ascending address */
	uint64_t id; /* 0: inherited by a fork(), the broker does not know it as ours */
	uint64_t address, length; /* whole pages */
};

/* A reservation: this process's, or one that it has inherited. */
struct pando__reservation {
	struct pando__reservation *next;
	uint64_t base, size;
};

/* A handle's part. Under the handle's lock, except `taken`, which is under its turn. */
struct pando__grafting {
	/* The first one is where the broker places grafts, while `listening`. */
	struct pando__reservation *reservations;
	bool listening;
	int event; /* -1: none */
	dev_t event_device;
	ino_t event_inode;
	struct pando__accepted *accepted;
	uint64_t taken; /* id of the last one */
	struct pando_graft_stat stat; /* the counters in it */
};

/* Where a buffer is: see buffer.c. */
enum pando__buffer_state { PANDO__BUFFER_HERE, PANDO__BUFFER_GONE, PANDO__BUFFER_PARENTS };

struct pando_buffer {
	struct pando_buffer *next, *previous; /* under `buffers` */
	enum pando__buffer_state state;
	uint32_t way; /* enum pando_graft_way, never AUTO */
	char *address;
	size_t size; /* whole pages */
	int fd; /* MEMFD: the memfd; else -1 */
};

/*
 * buffer.c: takes the buffer from this process, with its first `length` bytes (whole pages) as what is
 * to be handed over. seal: it lies in b->fd, which nobody can change any more. move: it lies at
 * `address` of process pid. Returns 0: the state is GONE; or a negative errno with a sentence, and
 * nothing has changed.
 */
int pando__buffer_seal(struct pando_buffer *b, size_t length);
int pando__buffer_move(struct pando_buffer *b, size_t length, pid_t pid, uint64_t address);
/* Closes the memfd of a sealed one. */
void pando__buffer_close(struct pando_buffer *b);

void pando__buffers_fork_prepare(void);
void pando__buffers_fork_parent(void);
void pando__buffers_fork_child(void);

/* mmap.c */
/* process_vm_mmap(); a negative pid pushes. Returns 0 or a negative errno. */
int pando__vm_mmap(pid_t pid, const void *from, size_t length, uint64_t to, unsigned long flags);
#define PANDO__PVMMAP_FIXED 1ul
#define PANDO__PVMMAP_MOVE 4ul
/* True if the kernel has it. */
bool pando__vm_mmap_there(void);
/* True if pages may be moved into the process behind the pidfd; -1: into any of this user. */
bool pando__vm_mmap_permitted(int pidfd);
/* The process's number in this pid namespace, or 0: it has ended, or cannot be seen from here. */
pid_t pando__pidfd_pid(int pidfd);

/* send.c: asks the broker whether `receiver` may be grafted into. *pidfd: the caller's, or -1. */
int pando__graft_look(struct pando *p, uint64_t receiver, int *pidfd);

/* receive.c, for connect.c and fork.c */
void pando__graft_close(struct pando *p);
void pando__graft_forked(struct pando *p);

#endif
