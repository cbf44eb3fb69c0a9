/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The client library's insides: a handle, its regions, and the conversation with the broker.
 *
 * Modules: connect.c (addresses, connecting, leaving), call.c (the conversation), region.c (mapping
 * and unmapping), heap.c (the front of a region's heap), admin.c (requests that map nothing), fork.c
 * (what a fork() means), embedded.c (a broker of one's own), graft/ (buffers from process to process).
 *
 * Locks, in this order:
 *
 *	turn	one thread at a time converses with the broker; held while waiting for it
 *	handles	the process's list of handles (fork.c)
 *	lock	state of one handle; held for a few instructions or one short system call, never
 *		while waiting
 *	buffers	the process's list of buffers (graft/buffer.c); also held while pages are moved
 *
 * fork() takes `handles` and every `lock`, but no `turn`: it never waits for a broker. So whatever
 * the child must know of a call that another thread was in is only changed under `lock`: the list
 * of regions, the socket, descriptors that have been received and not yet mapped.
 *
 * Where a handle stands:
 *
 *	ADRIFT --(connection made, HELLO sent)--> TALKING --(hang-up before WELCOME)--> ADRIFT
 *	  ^					     |
 *	  +--(fork(), in the child)------------------+--(hang-up after WELCOME)--> GONE
 *
 * Where a region of a forked child stands (one that was opened by the process itself is always
 * ATTACHED):
 *
 *	UNSENT --(OPEN sent)--> ASKED --(OPENED)--> ATTACHED
 *	  ^			  +--(refused for now)--> UNSENT
 *	  +-- fork() --		  +--(the broker does not know it)--> LOST
 */
#ifndef PANDO_CLIENT_H
#define PANDO_CLIENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include <pando/pando.h>

#include "allocator/front.h"
#include "common/layout.h"
#include "directory/directory.h"
#include "graft/graft.h"
#include "protocol/protocol.h"
#include "rcu/reader.h"

#define PANDO__TIMEOUT_MS 10000 /* for an answer; $PANDO_TIMEOUT overrides it */
#define PANDO__COMMIT_RATE 64 /* bytes a microsecond that a busy machine commits at least */
#define PANDO__RESENDS_MAX 100 /* of one request: perhaps it is what kills the broker */
#define PANDO__NO_SLOT UINT32_MAX
#define PANDO__UNCLAIMED_MAX 8

enum pando__standing { PANDO__ADRIFT, PANDO__TALKING, PANDO__GONE };
enum pando__membership { PANDO__UNSENT, PANDO__ASKED, PANDO__ATTACHED, PANDO__LOST };

struct pando {
	pthread_mutex_t turn;
	pthread_mutex_t lock;
	struct pando *next, *prev; /* list of the process's handles, under `handles` */

	/* Fixed after pando_connect(). */
	char address[sizeof(((struct sockaddr_un *)0)->sun_path) + 1]; /* "@name" or a path */
	struct sockaddr_un sockaddr;
	socklen_t sockaddr_length;
	char program[32];
	int timeout_ms;
	/* A page that reads as zero in a child whose fork() ran no handlers (_Fork(), clone()). */
	volatile uint32_t *mark;

	/* Under lock. */
	bool live; /* between the end of pando_connect() and the beginning of pando_disconnect() */
	int socket; /* -1: none */
	dev_t socket_device;
	ino_t socket_inode;
	enum pando__standing standing;
	/*
	 * The parent's connection, kept by a child until it has one: while it is open, the
	 * parent's regions stay.
	 */
	int inherited;
	ino_t inherited_inode;
	struct pando_region *regions;
	int fds[PANDO__PROTO_MAX_FDS]; /* came with an OPENED that is being worked on */
	unsigned int nfds;
	struct pando__grafting grafting;

	/* Under turn; in a fork()'s child, nobody else is there. */
	uint64_t client_id; /* 0 before WELCOME; loaded without a lock as well */
	uint64_t parent;
	uint64_t seq; /* of the last request */
	uint64_t hello_seq; /* of a HELLO that has no answer yet, or 0 */
	uint64_t hello_ns; /* CLOCK_BOOTTIME before that HELLO was sent */
	uint64_t epoch;
	int32_t broker_pid;
	/* Regions that the broker attached us to after we had stopped waiting: to be closed. */
	uint64_t unclaimed[PANDO__UNCLAIMED_MAX];
	unsigned int unclaimed_count;
};

struct pando_region {
	struct pando__gate gate; /* heap.c; first, where the heap's fast paths look */
	struct pando__rcu_gate rcu; /* rcu/reader.c; next, where the readers' look */
	struct pando__directory_gate directory; /* directory/find.c; then these */
	struct pando *p;
	struct pando_region *next; /* under p->lock */
	unsigned int opens; /* under p->lock */

	/* Fixed while the region is open. */
	uint64_t id;
	uint64_t base, max_size;
	const struct pando__ledger *ledger;
	size_t ledger_size;
	char *slots;
	size_t slots_size;
	uint32_t backend;
	uint32_t page_size;
	bool readonly;
	char name[PANDO_REGION_NAME_MAX + 1];

	/* Under p->lock; change at a fork() and when the child has been attached. */
	enum pando__membership membership;
	uint32_t slot;
	uint64_t generation;
	uint64_t asked_seq; /* of the OPEN, while ASKED */
};

/* call.c: everything between pando__begin() and pando__end(), which take and give the turn. */

/*
 * Takes the turn and makes sure of a connection: a forked child that has none yet makes it now.
 * Returns 0 or a negative errno with a sentence; the turn is held in both cases, until
 * pando__end().
 */
int pando__begin(struct pando *p);
void pando__end(struct pando *p);

/*
 * Sends *request (its seq is filled in) and waits for the reply of type `expect`, resending when
 * the broker has restarted. An ERROR becomes its errno and sentence. `commit` is how many bytes the
 * broker may have to commit first: it lengthens the wait. Descriptors of the reply lie in p->fds
 * afterwards.
 */
int pando__call(struct pando *p, struct pando__msg *request, enum pando__msg_type expect,
		uint64_t commit, struct pando__msg *reply);

/* The same, and sends a descriptor along (-1: none), which stays the caller's. */
int pando__call_with(struct pando *p, struct pando__msg *request, int fd,
		     enum pando__msg_type expect, uint64_t commit, struct pando__msg *reply);

/* Takes what has come without waiting, if nobody else has the turn. */
void pando__look(struct pando *p);

/* Waits until p is welcome at the broker. */
int pando__await_welcome(struct pando *p);

/*
 * Connects, sends HELLO and an OPEN for each inherited region, and waits for none of the answers.
 * connect_ms: how long a full queue of the broker may hold it up. Safe in the child of a fork().
 * Returns 0 or a negative errno, without a sentence.
 */
int pando__hail(struct pando *p, int connect_ms);

/* Closes the socket, if it still is the one that we opened. Under lock. */
void pando__hang_up(struct pando *p);
void pando__drop_inherited(struct pando *p);
void pando__close_fds(struct pando *p);
bool pando__socket_is_ours(const struct pando *p);

/* connect.c: the sentence for a failed pando__hail(). Returns -err. */
int pando__fail_connect(const struct pando *p, int err);

/* region.c, under p->lock */
struct pando_region *pando__region_by_id(struct pando *p, uint64_t id);
/*
 * Takes the slot that the broker gave. Returns 0 or -EPROTO: this is not the region that we have
 * mapped.
 */
int pando__region_take_slot(struct pando_region *r, const struct pando__msg_opened *opened,
			    uint64_t client_id, uint64_t since_ns);

/* heap.c: the region is about to be unmapped; or has been inherited by a fork(). */
void pando__region_heap_close(struct pando_region *r);
void pando__region_heap_forked(struct pando_region *r);

/* fork.c */
int pando__fork_enlist(struct pando *p);
void pando__fork_delist(struct pando *p);
/* Waits a moment for children that are on their way to the broker. */
void pando__fork_settle(void);
/* Catches up on a fork() whose handlers did not run. */
void pando__check_mark(struct pando *p);
int pando__mark_new(struct pando *p);
void pando__mark_free(struct pando *p);

/*
 * embedded.c: writes the address of the broker that this process has started for itself and its
 * children, after starting one if there is none yet or nobody answered at its address `refused`
 * (NULL: not tried). Returns 0 or a negative errno with a sentence. Any thread.
 */
int pando__embedded_start(const char *refused, char *address, size_t size);
/* For the child of a fork() while another thread was in there. */
void pando__embedded_forked(void);

uint64_t pando__now_ns(clockid_t clock);

#endif
