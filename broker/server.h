/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server: the broker's core on libuv. Private to broker/.
 *
 * One loop, one thread, plus libuv's pool for jobs. Per client two polled descriptors, its
 * connection and its pidfd; whichever says first that the client is gone, conn_doom() is called,
 * and at the end of that event server_bury() lets it go. So nothing is freed while the core is on
 * the stack.
 */
#ifndef PANDO_BROKER_SERVER_H
#define PANDO_BROKER_SERVER_H

#include <uv.h>

#include "broker.h"

#define OUTBOX_MAX 64u /* messages that wait for a client to read; one more, and it is dropped */

/* A message that the socket did not take yet. */
struct outgoing {
	struct outgoing *next;
	struct pando__msg *msg; /* as long as its header says */
	int fds[PANDO__PROTO_MAX_FDS]; /* duplicates */
	unsigned int nfds;
};

struct server;

struct conn {
	struct server *server;
	struct client *client; /* NULL once it is gone */
	int fd, pidfd; /* pidfd -1: the process is not visible from here */
	uv_poll_t poll, pid_poll;
	unsigned int handles; /* not closed yet */
	bool doomed;
	struct conn *next_doomed;
	uint64_t noticed_ns; /* when its end was known */
	struct outgoing *outbox, **outbox_end;
	unsigned int outbox_count;
};

struct server {
	const struct broker_config *config;
	struct broker broker;
	uv_loop_t loop;
	uv_poll_t listener, store_poll;
	uv_signal_t sigterm, sigint, sighup;
	uv_timer_t sweep, heap_timer, drain_timer;
	bool with_listener, with_store; /* these polls are running */
	bool ours; /* the socket's path is ours to remove */
	int listen_fd;
	int spare_fd; /* closed to be able to accept, and refuse, when descriptors run out */
	int ready_fd; /* of a broker without a supervisor */
	bool had_client;
	bool stopping;
	bool hearing; /* children are being let in */
	struct conn *doomed;
};

/* server.c: runs until told to end. Returns the exit status. */
int server_run(const struct broker_config *config);
/*
 * Lets the doomed go, and ends the server if there is nothing left to serve. At the end of each
 * event.
 */
void server_bury(struct server *s);

/* conn.c */
extern const struct broker_ops server_ops;
/* Accepts some of those who wait. Returns true if there may be more. */
bool conn_accept_all(struct server *s);
/* Makes a connection of a record. See takeup_run(). */
int conn_adopt(struct broker *b, struct takeup_client *t);
unsigned int conn_descriptors(struct client *c, int *fds);
/* The client is gone or shall go: at the end of this event. */
void conn_doom(struct conn *c);
/* Lets it go now. */
void conn_bury(struct conn *c);

#endif
