/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The packets between broker and supervisor, and the supervisor's side of them.
 *
 * Both ends are the same program file, so the layout has no version; the magic catches a wrong
 * descriptor. One packet is one step: a record put or removed, a word. Neither end waits for an
 * answer, save that a new broker waits for its records; the supervisor never blocks on its end, so
 * they cannot wait for each other.
 */
#ifndef PANDO_BROKER_STORE_WIRE_H
#define PANDO_BROKER_STORE_WIRE_H

#include "store.h"

#define STORE_MAGIC 0x72747350u

enum store_op {
	/* broker -> supervisor */
	STORE_OP_PUT = 1,
	STORE_OP_REMOVE = 2,
	STORE_OP_LOAD = 3,
	STORE_OP_READY = 4,
	STORE_OP_FINISH = 5, /* id: exit status; blob: the sentence */
	/* supervisor -> broker */
	STORE_OP_RECORD = 16,
	STORE_OP_END = 17, /* no more records; id: the supervisor's pid */
	STORE_OP_WORD = 18, /* kind: enum store_word; id: value */
	STORE_OP_HELLO = 19, /* of a supervisor that took on a running broker; id: its pid */
};

struct store_packet {
	uint32_t magic;
	uint16_t op; /* enum store_op */
	uint16_t kind; /* enum store_kind or enum store_word */
	uint64_t id;
	uint32_t size; /* bytes of blob that count */
	uint32_t nfds;
	char blob[STORE_MAX_BLOB]; /* only `size` bytes travel */
};

void store_packet_init(struct store_packet *p, enum store_op op, unsigned int kind, uint64_t id);

/*
 * Sends one packet. flags: MSG_DONTWAIT or 0. Returns 0, -EAGAIN, -EPIPE (the peer is gone) or
 * another errno.
 */
int store_packet_send(int fd, const struct store_packet *p, const int *fds, int flags);

/*
 * Receives one packet and its descriptors, of which there are p->nfds. Returns 1, 0 (nothing there,
 * with MSG_DONTWAIT), -EPIPE (the peer is gone), or -EPROTO (a packet that is not sound, or whose
 * descriptors were lost because this process has too many: p->op, kind and id tell which, if they
 * could be read; else p->op is 0).
 */
int store_packet_receive(int fd, struct store_packet *p, int fds[STORE_MAX_FDS], int flags);

/* One record as the supervisor keeps it. */
struct store_record {
	struct store_record *next_hash, *next, **pprev; /* bucket; order of the first put */
	uint64_t id;
	uint16_t kind;
	uint16_t nfds;
	uint32_t size;
	int fds[STORE_MAX_FDS];
	char blob[];
};

/* The supervisor's records. Zero-initialise, then store_table_deinit(). */
struct store_table {
	struct store_record *first,
		**last; /* last: &first when empty, or NULL before the first use */
	struct store_record **buckets;
	size_t bucket_count, count;
};

struct store_record *store_table_find(const struct store_table *t, unsigned int kind, uint64_t id);

/* Puts a record; the table takes over the descriptors, also when it fails. Returns 0 or -ENOMEM. */
int store_table_put(struct store_table *t, const struct store_packet *p, const int *fds);

/* Removes a record and closes its descriptors; none is fine. */
void store_table_remove(struct store_table *t, unsigned int kind, uint64_t id);

void store_table_deinit(struct store_table *t);

#endif
