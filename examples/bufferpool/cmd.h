/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The commands of the program, and what they share: the view, and being told to stop.
 *
 * Exit status: 0 all is well; 1 something is wrong with the data; 2 wrong usage; 3 it could not be done
 * (the sentence says why); 130 interrupted.
 */
#ifndef BUFFERPOOL_CMD_H
#define BUFFERPOOL_CMD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "bufferpool.h"

enum { CMD_OK = 0, CMD_WRONG = 1, CMD_USAGE = 2, CMD_FAILED = 3, CMD_INTERRUPTED = 130 };

struct options {
	const char *file;
	const char *name; /* of the region */
	uint64_t size; /* create: bytes of data */
	uint32_t slots;
	uint64_t frames; /* 0: a quarter of the file's pages */
	uint32_t backends;
	double seconds; /* 0: until interrupted */
	double interval; /* seconds between two looks */
	double kills; /* a second */
	int write_percent; /* -1: 10, or 0 if the file can only be read */
	uint32_t hot; /* percent of the accesses that go to a fifth of the pages */
	uint64_t seed;
	unsigned int backend; /* enum pando_backend */
	bool buffered, sync, repair, once, no_check;
};

int cmd_create(const struct options *o);
int cmd_run(const struct options *o);
int cmd_top(const struct options *o);
int cmd_check(const struct options *o);

/* "bufferpool: ..." on standard error. Returns status. */
int cmd_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* How often SIGINT, SIGTERM or SIGHUP has come, since cmd_catch(). */
extern volatile int cmd_signals;
void cmd_catch(void);

double cmd_now(void); /* seconds */
void cmd_nap(double seconds);

/* What was found in a file. */
struct census {
	uint64_t pages, broken;
	uint64_t versions; /* sum of all; of a file of our own */
	char first[200]; /* the first broken one: a sentence */
};
/* Looks at every page. 0, -EINTR or an error of reading. */
int check_pages(const struct file *f, struct census *seen, file_progress_fn progress, void *arg);
/* Judges what was found against the file's header; says it in *out. True: all is well. */
bool check_judge(const struct file *f, const struct census *seen, FILE *out);

/* --- view.c --- */

struct view {
	bool tty, alone; /* alone: the alternate screen is on */
	double interval, next;
	double seen_s; /* when the counters were looked at last; 0: never */
	uint64_t seen[POOL_COUNTS];
	uint64_t *seen_hits; /* of each record */
	uint32_t records;
};

/* interval: seconds; 0: 1 on a terminal, 5 elsewhere. */
void view_begin(struct view *v, double interval);
/* Shows the pool if it is time. */
void view_show(struct view *v, const struct pool *p, bool now);
/* Back to the ordinary screen. */
void view_end(struct view *v);

/* A bar on standard error for long work, on a terminal; a line each 10 s elsewhere. */
struct bar {
	const char *what;
	double next;
	bool tty, shown;
};
void bar_begin(struct bar *b, const char *what);
bool bar_step(void *bar, uint64_t done, uint64_t total); /* a file_progress_fn; true: interrupted */
void bar_end(struct bar *b);

#endif
