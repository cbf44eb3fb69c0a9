/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grafts: buffers on their way from one client to another. Private to broker/.
 *
 * A receiver is a client that has said where grafts may lie in it; the broker hands out slots of that
 * range, keeps what waits in a queue, and knows what each receiver holds. See docs/design/graft.md
 * for the states, and for who may die where.
 *
 *	client ---- receiver (or NULL)
 *	  |	      |-- placed: all of its grafts, by offset
 *	  |	      \-- queue: those that wait or are void, in the order in which they were announced
 *	  \-- reserved: the graft that it, as a sender, has a slot for and has not announced
 *
 * Invariants (graft_check()):
 *	slots do not overlap, lie in the range, and have a free page behind them
 *	queue == placed where the state is WAITING or VOID
 *	waiting, waiting_bytes: of RESERVED, WAITING and VOID; held, held_bytes: of HELD
 *	a graft has a memfd <=> it is WAITING and its way is MEMFD
 *	client->reserved == the RESERVED graft whose sender the client is
 */
#ifndef PANDO_BROKER_GRAFT_H
#define PANDO_BROKER_GRAFT_H

#include <stdint.h>

#include "records.h"

struct broker;
struct client;
struct receiver;
struct pando__msg;

#define GRAFT_LIMIT (4ull << 30) /* bytes that wait for one receiver, unless told otherwise */
#define GRAFT_WAITING 64u /* how many may wait for one receiver, unless told otherwise */
#define GRAFT_MAX 4096u /* of one receiver, waiting and held */

enum graft_state { GRAFT_RESERVED = 1, GRAFT_WAITS = 2, GRAFT_HELD = 3, GRAFT_VOID = 4 };

/* Descriptor: the memfd, while it waits. */
struct graft_record {
	uint32_t version; /* RECORD_VERSION */
	uint32_t state; /* enum graft_state */
	uint64_t id;
	uint64_t receiver, sender; /* client ids */
	uint64_t seq; /* of the sender's RESERVE */
	uint64_t order; /* place in the queue */
	uint64_t offset, length; /* of the slot, in the reservation; length: whole pages */
	uint64_t bytes, tag;
	int32_t pid; /* of the sender */
	uint32_t uid;
	uint32_t way; /* enum pando_graft_way */
	uint32_t reserved; /* 0 */
};

/* Descriptor: the broker's end of the event socket. */
struct receiver_record {
	uint32_t version; /* RECORD_VERSION */
	uint32_t reserved; /* 0 */
	uint64_t client;
	uint64_t base, size, limit;
};

struct graft {
	struct graft *next_placed, *next_queued;
	struct receiver *receiver;
	struct client *sender; /* while RESERVED */
	struct graft_record record;
	int fd; /* -1: none */
};

struct receiver {
	struct client *client;
	struct receiver_record record;
	int event;
	unsigned int owed; /* bytes that the event socket did not take */
	struct graft *placed, *queue;
	uint32_t waiting, held;
	uint64_t waiting_bytes, held_bytes;
};

/* Requests. Each returns 0 when it has answered, or a negative errno with a sentence. */
int graft_listen(struct client *c, const struct pando__msg *msg);
int graft_reserve(struct client *c, const struct pando__msg *msg);
int graft_send(struct client *c, const struct pando__msg *msg);
int graft_cancel(struct client *c, const struct pando__msg *msg);
int graft_accept(struct client *c, const struct pando__msg *msg);
int graft_taken(struct client *c, const struct pando__msg *msg);
int graft_release(struct client *c, const struct pando__msg *msg);

/* The client's process has ended, or it is let go: as sender and as receiver. Twice does no harm. */
void graft_gone(struct client *c);

/* Take-up: one record; the descriptors are taken over. Then, when all are there, the rest. */
void graft_take_receiver(struct broker *b, const struct receiver_record *record, size_t size,
			 const int *fds, unsigned int nfds);
void graft_take(struct broker *b, bool held, uint64_t id, const struct graft_record *record,
		size_t size, const int *fds, unsigned int nfds);
void graft_taken_up(struct broker *b);
/* Puts all records again, for a new supervisor. */
void graft_put_all(struct broker *b);

/* Aborts through must() if an invariant does not hold. */
void graft_check(struct broker *b, void (*must)(bool holds, const char *what));

#endif
