/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The daemon's log: one line per event, at four levels, to standard error, a file or the journal.
 *
 *	log_open("/var/log/pandod.log", LOG_LEVEL_INFO, "supervisor");
 *	log_warn("client %llu does not read its answers: dropped", id);
 *
 * A line is written by one system call, so lines of the supervisor, the broker and its worker
 * threads never mix. Logging cannot fail as far as its callers are concerned: what cannot be
 * written is lost, and nothing blocks for longer than a write to a file. Control characters in a
 * line (a client chose its program name) are replaced, so that nobody can forge a line. Any thread
 * may log; not async-signal-safe.
 *
 * SIGHUP: log_reopen() opens the file again under its name, for logrotate. If that fails the old
 * file goes on.
 */
#ifndef PANDO_BROKER_LOG_H
#define PANDO_BROKER_LOG_H

#include <stdbool.h>

#include <pando/error.h>

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARN = 1, LOG_LEVEL_INFO = 2, LOG_LEVEL_DEBUG = 3 };

/*
 * Sets target, level and who speaks ("supervisor", "broker"; a literal). target: "stderr",
 * "journal" (the journal's own socket) or a file, made with mode 0640. Before this, lines go to
 * standard error at level info. May be called again. Returns 0 or a negative errno with a sentence;
 * the old target stays then.
 */
int log_open(const char *target, enum log_level level, const char *who);

/* Opens the file again. Returns as log_open. */
int log_reopen(void);

/* Lets go of the file; lines go to standard error again. */
void log_close(void);

void log_set_level(enum log_level level);

/* True if a line at this level would be written: for what is costly to compute. */
bool log_enabled(enum log_level level);

void log_write(enum log_level level, const char *fmt, ...) PANDO_PRINTF(2, 3);

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
	do {                                                                                       \
		if (log_enabled(LOG_LEVEL_DEBUG))                                                  \
			log_write(LOG_LEVEL_DEBUG, __VA_ARGS__);                                   \
	} while (0)

#endif
