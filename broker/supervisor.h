/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The supervisor: the small process above the broker that lives on when the broker dies.
 *
 * It holds the listening socket and the broker's records (store.h), and does nothing that could
 * fail in an interesting way: no requests, no regions, no libuv, no threads. See supervisor.c for
 * what it does when.
 */
#ifndef PANDO_BROKER_SUPERVISOR_H
#define PANDO_BROKER_SUPERVISOR_H

#include "config.h"
#include "store.h"

/*
 * Runs until the broker ends for good. config->role is CONFIG_ROLE_DAEMON (opens the socket, starts
 * a broker) or CONFIG_ROLE_SUPERVISOR (takes on the running broker at config->channel). Returns the
 * exit status.
 */
int supervisor_run(const struct broker_config *config);

/*
 * For a broker whose supervisor is gone (store_put said -EPIPE, or store_fd() hung up): starts a
 * new one and stores the broker's end of its channel. The caller closes its old store, puts
 * STORE_LISTENER and STORE_EPOCH and all its records, and calls store_ready(). Async-signal-safe
 * after fork(), so other threads do no harm. Returns 0 or a negative errno with a sentence.
 */
int supervisor_respawn(const struct broker_config *config, struct store **out);

#endif
