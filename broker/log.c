/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Log lines: formatted on the stack, written by one system call.
 *
 * The three targets differ in what surrounds the text. Standard error and files get
 *
 *	2026-01-31T12:00:00.123456Z pandod[77] broker: warning: the text
 *
 * and the journal's socket a datagram of fields, which gives the level and the program without
 * parsing. It is written here in a dozen lines rather than taken from a library, so that the
 * daemon's processes stay free of that library's dependencies; the format is a stable, documented
 * interface.
 *
 * A file is reopened by dup3() onto the number that is in use: a thread that is about to write hits
 * the old or the new file, never a closed number. A line that is longer than the buffer is cut.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"

#define LINE_MAX_BYTES 1024
#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static struct {
	int level; /* enum log_level; atomic */
	int fd; /* of a file or the journal; -1: standard error */
	bool journal;
	char path[PATH_MAX]; /* "" unless a file */
	const char *who;
} state = {.level = LOG_LEVEL_INFO, .fd = -1, .who = ""};

static int open_file(const char *path)
{
	int fd =
		open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);

	if (fd < 0)
		return pando__fail(errno, "cannot open the log file %s: %s", path, strerror(errno));
	return fd;
}

static int open_journal(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = JOURNAL_SOCKET};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return pando__fail(errno, "cannot make a socket for the journal: %s",
				   strerror(errno));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int err = errno;

		close(fd);
		return pando__fail(err, "cannot reach the journal at %s: %s; use --log-file=stderr",
				   JOURNAL_SOCKET, strerror(err));
	}
	return fd;
}

int log_open(const char *target, enum log_level level, const char *who)
{
	bool journal = strcmp(target, "journal") == 0, stderr_only = strcmp(target, "stderr") == 0;
	int fd = -1;

	if (strlen(target) >= sizeof(state.path))
		return pando__fail(ENAMETOOLONG, "the log file's path is too long");
	if (!stderr_only) {
		fd = journal ? open_journal() : open_file(target);
		if (fd < 0)
			return fd;
	}
	log_close();
	state.fd = fd;
	state.journal = journal;
	if (fd >= 0 && !journal)
		strcpy(state.path, target);
	state.who = who;
	log_set_level(level);
	return 0;
}

int log_reopen(void)
{
	int fd;

	if (state.path[0] == '\0')
		return 0;
	fd = open_file(state.path);
	if (fd < 0)
		return fd;
	if (dup3(fd, state.fd, O_CLOEXEC) < 0) {
		int err = errno;

		close(fd);
		return pando__fail(err, "cannot switch to the new log file: %s", strerror(err));
	}
	close(fd);
	return 0;
}

void log_close(void)
{
	if (state.fd >= 0)
		close(state.fd);
	state.fd = -1;
	state.journal = false;
	state.path[0] = '\0';
}

void log_set_level(enum log_level level)
{
	pando__store_relaxed(&state.level, (int)level);
}

bool log_enabled(enum log_level level)
{
	return (int)level <= pando__load_relaxed(&state.level);
}

/* Writes at most size - 1 bytes with snprintf's rules and returns how many are there. */
static size_t put(char *buf, size_t size, const char *fmt, ...) PANDO_PRINTF(3, 4);
static size_t put(char *buf, size_t size, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, size, fmt, ap);
	va_end(ap);
	return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}

static size_t put_prefix(char *buf, size_t size, enum log_level level)
{
	static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
	static const int priorities[] = {3, 4, 6, 7};
	struct timespec now;
	struct tm tm;

	if (state.journal)
		return put(buf, size, "SYSLOG_IDENTIFIER=pandod\nPRIORITY=%d\nMESSAGE=%s%s",
			   priorities[level], state.who, *state.who ? ": " : "");
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	return put(buf, size, "%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ pandod[%d] %s%s%s",
		   tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
		   now.tv_nsec / 1000, (int)getpid(), state.who, *state.who ? ": " : "",
		   names[level]);
}

void log_write(enum log_level level, const char *fmt, ...)
{
	char line[LINE_MAX_BYTES];
	int saved = errno;
	size_t text, n;
	va_list ap;
	int wrote;

	if (!log_enabled(level))
		return;
	text = n = put_prefix(line, sizeof(line) - 1, level);
	va_start(ap, fmt);
	wrote = vsnprintf(line + n, sizeof(line) - 1 - n, fmt, ap);
	va_end(ap);
	if (wrote > 0)
		n += (size_t)wrote < sizeof(line) - 1 - n ? (size_t)wrote : sizeof(line) - 2 - n;
	for (size_t i = text; i < n; i++) /* one event, one line: also in the journal's format */
		if ((unsigned char)line[i] < ' ' || line[i] == 127)
			line[i] = '?';
	line[n++] = '\n';
	/* What cannot be written is lost: there is nobody to tell. */
	if (state.journal)
		(void)!send(state.fd, line, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	else
		(void)!write(state.fd >= 0 ? state.fd : STDERR_FILENO, line, n);
	errno = saved;
}
