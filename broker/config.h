/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What pandod was told: options, environment and configuration file, checked once, in one flat
 * struct.
 *
 * Later sources win over earlier ones: defaults; the file (/etc/pando/pandod.conf if it exists, or
 * --config FILE); the environment (PANDO_WINDOW_BASE, PANDO_WINDOW_SIZE, PANDO_BACKEND,
 * PANDO_LOG_LEVEL); options. A line of the file is "NAME = VALUE" with the name of an option
 * without its dashes; '#' begins a comment.
 *
 * The struct has no pointers: supervisor and broker hand it to each other as bytes in a memory
 * file, so a broker that is started again runs with what the daemon was started with, whatever has
 * become of the file.
 */
#ifndef PANDO_BROKER_CONFIG_H
#define PANDO_BROKER_CONFIG_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "log.h"

#define CONFIG_MAX_QUOTAS 256u
#define CONFIG_ADDRESS_MAX 108u /* bytes of sun_path, with the NUL */

/*
 * What this process is to be. Internal options decide; people only ever start CONFIG_ROLE_DAEMON.
 */
enum config_role {
	CONFIG_ROLE_DAEMON = 0, /* started by a person, systemd or the library */
	CONFIG_ROLE_BROKER = 1, /* --broker-channel: started by a supervisor */
	CONFIG_ROLE_SUPERVISOR = 2, /* --supervise-channel: started by a broker that lost its own */
};

/* Who may graft into whom, beyond that the receiver listens. */
enum config_graft {
	CONFIG_GRAFT_UID = 0, /* the same user; root into everybody */
	CONFIG_GRAFT_ANY = 1,
	CONFIG_GRAFT_OFF = 2,
};

struct config_quota {
	uint64_t memory; /* bytes; 0: no limit */
	uint64_t heap; /* bytes that the user's clients may own in one heap; 0: no limit */
	uint64_t heap_client; /* and each of them */
	uint32_t regions; /* 0: no limit */
	uint32_t clients; /* 0: no limit */
};

struct config_user_quota {
	uid_t uid;
	struct config_quota quota;
};

struct broker_config {
	uint64_t magic, size; /* of the bytes in a memory file: another build is refused */
	enum config_role role;
	int channel; /* the store's channel in the two internal roles, else -1 */
	int ready_fd; /* gets "ok\n" or one sentence, then is closed; -1: nobody waits. Supervisor
			 or lone broker */
	bool embedded;
	bool no_supervisor;
	bool activated; /* the listening socket came from systemd: its path is not ours to remove */
	char address[CONFIG_ADDRESS_MAX]; /* socket path, or "@name" */
	uid_t owner; /* effective uid of the daemon; the only one admitted if embedded */
	uint32_t backend; /* enum pando_backend */
	uint64_t window_base, window_size; /* whole GiB */
	/* for every uid that has none of its own, except root and owner */
	struct config_quota quota;
	struct config_user_quota users[CONFIG_MAX_QUOTAS];
	unsigned int user_count;
	enum config_graft graft;
	unsigned int graft_waiting; /* grafts that may wait for one receiver; 0: the default */
	uint64_t graft_limit; /* bytes of them; 0: the default */
	enum log_level log_level;
	char log_target[PATH_MAX]; /* "stderr", "journal" or a file */
	uint32_t drain_timeout_ms;
};

/*
 * Fills *config. Returns 0: go on; 1: --help or --version was printed, the end, all is well; or a
 * negative errno with a sentence: wrong usage, a malformed or unreadable file (exit status 2).
 */
int config_load(struct broker_config *config, int argc, char *const argv[]);

/* Built-in values, without options, file and environment: for tests. */
void config_defaults(struct broker_config *config);

/*
 * The limits of a uid. Root and the owner have none unless an entry names them. Owns nothing; any
 * thread.
 */
struct config_quota config_quota_for(const struct broker_config *config, uid_t uid);

void config_usage(FILE *out);

/*
 * Writes the struct to a sealed memory file. Returns its descriptor (close-on-exec) or a negative
 * errno.
 */
int config_to_fd(const struct broker_config *config);

/* Reads it back and closes fd. Returns 0 or a negative errno with a sentence. */
int config_from_fd(struct broker_config *config, int fd);

#endif
