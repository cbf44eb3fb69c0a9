/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The broker's core without sockets: for unit tests and the fuzzer.
 *
 * Clients are made from nothing, packets handed over directly, answers checked by the protocol's
 * parser and the last one kept. Jobs wait in a line until they are run, so that a test decides what
 * happens in between. Clients that the core wants to be rid of go in core_settle(), which also
 * verifies the core's invariants.
 */
#ifndef PANDO_TESTS_CORE_H
#define PANDO_TESTS_CORE_H

#include "broker/broker.h"

#define CORE_JOBS 256

struct core {
	struct broker broker;
	struct broker_config config;
	struct job *jobs[CORE_JOBS];
	unsigned int job_count;
	/* The last message that was sent, to whom, and how many so far. */
	struct pando__msg last;
	struct client *last_to;
	unsigned int last_fds, sent, hangups;
};

void core_init(struct core *core);
/* Ends all clients and regions and frees everything; aborts if something is left. */
void core_deinit(struct core *core);

/* A client that has not said HELLO; pid 0. */
struct client *core_connect(struct core *core, uid_t uid);
/* One that has. Returns NULL if it was refused (and is gone). */
struct client *core_client(struct core *core, uid_t uid);

/* Hands a message over (fills in the next seq if it is 0). Answers are in core->last. */
void core_send(struct core *core, struct client *c, struct pando__msg *msg);
/* The same, with a descriptor (-1: none), which stays the caller's. */
void core_send_with(struct core *core, struct client *c, struct pando__msg *msg, int fd);
/* The same, then runs all jobs. Returns 0 or the negative errno of the ERROR that came. */
int core_call(struct core *core, struct client *c, struct pando__msg *msg);
/* Lets a client die. */
void core_kill(struct core *core, struct client *c);
/* Runs the job at the given place of the line; false if there is none. */
bool core_run_job(struct core *core, unsigned int index);
void core_run_jobs(struct core *core);
/* Buries clients that are to go; checks all invariants. */
void core_settle(struct core *core);

#endif
