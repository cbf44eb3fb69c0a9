/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The listening socket: made here, or taken from systemd.
 *
 * A path gets its directory (0755) where that is missing and mode 0666: everybody may connect,
 * rights are checked with each request. A path that a dead broker left behind (connect() is
 * refused) is taken over; one behind which somebody answers is an error. Abstract addresses
 * ("@name") leave nothing behind and need no care. With $LISTEN_FDS for this process, the first
 * descriptor is used instead, if it is a listening SOCK_SEQPACKET socket.
 */
#ifndef PANDO_BROKER_LISTEN_H
#define PANDO_BROKER_LISTEN_H

#include <stdbool.h>

/*
 * Returns a listening SOCK_SEQPACKET socket (close-on-exec, non-blocking) or a negative errno with
 * a sentence
 * (-EADDRINUSE: a broker answers there; -ENAMETOOLONG). *ours is false if it came from systemd.
 */
int listen_open(const char *address, bool *ours);

/*
 * Closes the socket and, if it is ours, removes its path, if the path still leads to this socket.
 */
void listen_close(int fd, const char *address, bool ours);

#endif
