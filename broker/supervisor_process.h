/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Starting the daemon's other process: the same program file, with a channel and the configuration.
 *
 * Used by the supervisor (starts brokers) and by a broker that lost its supervisor. The file is
 * /proc/self/exe: what runs now, even if another version has been installed meanwhile.
 */
#ifndef PANDO_BROKER_SUPERVISOR_PROCESS_H
#define PANDO_BROKER_SUPERVISOR_PROCESS_H

#include <sys/types.h>

#include "config.h"

/*
 * Starts the program with `option` ("--broker-channel"); stores our end of the channel
 * (close-on-exec). With detach, the new process is nobody's child that we would have to wait for,
 * and *pid is 0. Returns 0 or a negative errno with a sentence. In the new process all signals have
 * their default and are let through.
 */
int supervisor_spawn(const struct broker_config *config, const char *option, bool detach,
		     int *channel, pid_t *pid);

#endif
