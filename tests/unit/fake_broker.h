/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A broker for unit tests of the client library: a thread of the test's own process that speaks the
 * protocol over a real socket and hands out real memory files, without any of a broker's judgement.
 *
 * It answers sanely by itself. A test that wants it otherwise sets `script`, which sees every
 * message first and returns true for what it has dealt with. The script runs in the broker's
 * thread: it must not use cmocka's assertions.
 */
#ifndef TESTS_FAKE_BROKER_H
#define TESTS_FAKE_BROKER_H

#include <pthread.h>
#include <stdbool.h>

#include "common/layout.h"
#include "protocol/protocol.h"

#define FAKE_CONNECTIONS 32
#define FAKE_REGIONS 8

struct fake_connection {
	int socket; /* -1: free */
	uint64_t id;
	uint64_t parent;
};

struct fake_region {
	bool used;
	int ledger_fd, ledger_ro_fd, slots_fd, heap_fd;
	struct pando__ledger *ledger;
};

struct fake_broker;
typedef bool (*fake_script_fn)(struct fake_broker *b, struct fake_connection *c,
			       const struct pando__msg *msg);

struct fake_broker {
	char address[64];
	int listener, stop_read, stop_write;
	pthread_t thread;
	uint64_t next_id;
	struct fake_connection connections[FAKE_CONNECTIONS];
	struct fake_region regions[FAKE_REGIONS];
	unsigned int seen[PANDO__MSG_REQUEST_END]; /* messages of each type */
	bool unsealed; /* make slots files that are not sealed */
	bool foreign_entries; /* say another client's id in the ledger */
	bool (*script)(struct fake_broker *b, struct fake_connection *c,
		       const struct pando__msg *msg);
	void *arg;
	int step; /* for the script */
};

void fake_start(struct fake_broker *b);
void fake_stop(struct fake_broker *b);
/* Sets the script, NULL: none. Not while a call is under way. */
void fake_script(struct fake_broker *b, fake_script_fn script);

/* Answers as a good broker does. */
void fake_answer(struct fake_broker *b, struct fake_connection *c, const struct pando__msg *msg);
void fake_error(struct fake_connection *c, uint64_t seq, int err, const char *text);
void fake_notice(struct fake_connection *c, enum pando__notice notice);
void fake_drop(struct fake_connection *c);
/* How many messages of a type have come so far. Any thread. */
unsigned int fake_seen(struct fake_broker *b, enum pando__msg_type type);

#endif
