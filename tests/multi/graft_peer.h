/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * For the tests of grafting: a peer is a process that does what it is told, as sender or as receiver, so
 * that both ends of a test are in the hands of one program.
 *
 * Memory is checked by patterns: word i of page n is a function of the seed, n and i.
 *
 * The way is never assumed: it is read from pando_graft_stat(), and forced by $PANDO_GRAFT_WAY.
 */
#ifndef TESTS_GRAFT_PEER_H
#define TESTS_GRAFT_PEER_H

#include "harness.h"

#include <pando/graft.h>

#define PAGE 4096ull
#define MIB (1ull << 20)
#define AS_IS ((uid_t)-1)

enum peer_op {
	PEER_LISTEN, /* size, limit */
	PEER_ACCEPT,
	PEER_PEEK,
	PEER_REFUSE, /* id */
	PEER_RELEASE, /* address */
	PEER_CHECK, /* address, length, seed: 0 or the first page that differs + 1 */
	PEER_WRITE, /* address, length, seed */
	PEER_POLL, /* timeout in ms: is the event descriptor readable? */
	PEER_STAT,
	PEER_FORK, /* address, length, seed: a child sees it, writes, and gives its copy back */
	PEER_SEND, /* receiver, length, seed: with a buffer that was made for it */
	PEER_SEND_ANY, /* the same, with one for anybody */
	PEER_FDS, /* how many descriptors it has */
	PEER_MAPPED, /* address, length: pages of the range that can be read */
	PEER_LIMIT, /* 1: it can have no more descriptors than it has; 0: again as many as before */
	PEER_HIDE, /* may not be attached to any more */
	PEER_LEAVE,
};

struct peer_answer {
	int rc;
	uint64_t value;
	struct pando_graft_info info;
	struct pando_graft_stat stat;
};

struct peer {
	pid_t pid;
	int socket;
	uint64_t id; /* client id */
};

/* Starts one that is connected, as that user. */
struct peer peer_start(struct harness *h, uid_t uid);
/* One that listens, with the defaults. */
struct peer peer_receiver(struct harness *h);
struct peer_answer peer_do(const struct peer *peer, enum peer_op op, uint64_t a, uint64_t b,
			   uint64_t c);
/* The same; the call there must have returned 0. */
struct peer_answer peer_ok(const struct peer *peer, enum peer_op op, uint64_t a, uint64_t b,
			   uint64_t c);
/* Leaves, and is waited for. */
void peer_end(struct peer *peer);
/* SIGKILL, and is waited for. */
void peer_kill(struct peer *peer);

void pattern_write(void *at, uint64_t length, uint64_t seed);
/* 0, or the first page that differs + 1. */
uint64_t pattern_check(const void *at, uint64_t length, uint64_t seed);

/* A buffer with a pattern. */
struct pando_buffer *filled(struct pando *p, uint64_t length, uint64_t seed);
/* The broker's sums, once they are these. */
void await_grafts(struct harness *h, uint64_t waiting, uint64_t held);

#endif
