/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Telling whoever started the daemon how it is: systemd by $NOTIFY_SOCKET, a program by --ready-fd.
 *
 * Both are best effort: a daemon that nobody listens to runs all the same.
 */
#ifndef PANDO_BROKER_NOTIFY_H
#define PANDO_BROKER_NOTIFY_H

#include <pando/error.h>

/* Sends one state ("READY=1\nSTATUS=...") to systemd, if it wants to know. */
void notify_systemd(const char *fmt, ...) PANDO_PRINTF(1, 2);

/*
 * Writes "ok\n", or the error if it is not NULL, to *fd, closes it and sets it to -1. Nothing if it
 * is -1.
 */
void notify_ready_fd(int *fd, const char *error);

#endif
