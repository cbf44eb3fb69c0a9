/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The broker's memory that outlives it: records held by the supervisor.
 *
 * The supervisor is a small process that does nothing but keep records (a kind, an id, a blob of
 * fixed size, up to four descriptors), start the broker process, and start it again when it dies.
 * The broker puts a record before it acts on it; a put is one packet on a socket pair, so it
 * happened as soon as it was sent, whatever becomes of the sender, and the records are seen in the
 * order in which they were put. A new broker first loads all records and takes up every region and
 * client where they were.
 *
 * A broker without a supervisor (tests, fuzzing) has store == NULL: every call does nothing and
 * returns 0.
 */
#ifndef PANDO_BROKER_STORE_H
#define PANDO_BROKER_STORE_H

#include <stddef.h>
#include <stdint.h>

#define STORE_MAX_FDS 4u
#define STORE_MAX_BLOB 1024u

enum store_kind {
	STORE_REGION = 1, /* struct region_record; ledger, slots, heap, read-only heap */
	STORE_CLIENT = 2, /* struct client_record; connection, pidfd */
	STORE_LISTENER = 3, /* no blob; the listening socket: put by the supervisor itself */
	STORE_EPOCH = 4, /* uint64_t; put by the supervisor itself */
	STORE_RECEIVER = 5, /* struct receiver_record; by client id; the event socket */
	STORE_GRAFT = 6, /* struct graft_record; the memfd, if it waits in one */
	STORE_GRAFT_HELD = 7, /* the same, accepted: no descriptor */
};

struct store;

/*
 * Opens the broker's end of the channel that the supervisor passed as a descriptor. Takes the
 * descriptor.
 */
int store_open(struct store **out, int channel);
void store_close(struct store *store);

/*
 * Creates or replaces a record. The descriptors stay the caller's (the supervisor gets copies). On
 * replacing, nfds may be 0 to keep the descriptors that are there. Blocks only if the supervisor
 * lags. Returns 0 or a negative errno: -EPIPE says that the supervisor is gone.
 */
int store_put(struct store *store, enum store_kind kind, uint64_t id, const void *blob, size_t size,
	      const int *fds, unsigned int nfds);

/* Removes a record; none is fine. */
int store_remove(struct store *store, enum store_kind kind, uint64_t id);

/*
 * Receives every record, oldest first, and calls fn for each, which takes over the descriptors. To
 * be called once, before the first put. Returns 0, or the first negative errno that fn returned.
 */
int store_load(struct store *store,
	       int (*fn)(void *arg, enum store_kind kind, uint64_t id, const void *blob,
			 size_t size, const int *fds, unsigned int nfds),
	       void *arg);

/*
 * The channel, to be polled: readable or hung up means a word from the supervisor, or its end. -1
 * without one.
 */
int store_fd(const struct store *store);

/* What the supervisor has to say. */
enum store_word {
	STORE_WORD_DRAIN = 1, /* SIGTERM: take no new clients and regions, end when the last client
				 is gone or value (milliseconds) have passed */
	STORE_WORD_STOP = 2, /* second SIGTERM: end now */
	STORE_WORD_REOPEN_LOG = 3, /* SIGHUP */
};

/*
 * Takes the next word, never waiting. Returns 1 (*word, *value set), 0 (none there) or -EPIPE: no
 * supervisor.
 */
int store_word(struct store *store, enum store_word *word, uint64_t *value);

/*
 * Tells the supervisor that this broker serves (readiness is reported then). Returns as store_put.
 */
int store_ready(struct store *store);

/*
 * Tells the supervisor that this broker is about to exit because it means to, with this status for
 * the daemon: nothing is to be started again. why: one sentence if status is not 0 (told to whoever
 * waits on
 * --ready-fd), else NULL. Without this word every end of a broker counts as a crash.
 */
int store_finish(struct store *store, int status, const char *why);

/* The supervisor's pid, or 0 without one. */
int store_supervisor_pid(const struct store *store);

#endif
