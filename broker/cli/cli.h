/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The command `pando`: what its verbs share.
 *
 * A verb is one `struct cli_verb` in a file of its own, named in the table of main.c. It parses its
 * options with cli_option(), which deals with those that all verbs have, connects with
 * cli_connect(), prints through a cli_table, and returns an exit code of enum cli_exit. A failure
 * is one sentence on stderr, printed by cli_fail() or cli_fail_last().
 *
 * The command keeps no state and holds no lock: it may be interrupted anywhere.
 */
#ifndef PANDO_CLI_H
#define PANDO_CLI_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <pando/pando.h>

/* Exit codes: documented in pando(1), an interface for scripts. */
enum cli_exit {
	CLI_OK = 0,
	CLI_FAILED = 1, /* a failure that has no code of its own */
	CLI_USAGE = 2, /* wrong options or arguments */
	CLI_NO_BROKER = 3, /* none is running, or it went away */
	CLI_NO_REGION = 4,
	CLI_EXISTS = 5,
	CLI_DENIED = 6,
	CLI_NO_MEMORY = 7, /* or no huge pages */
	CLI_QUOTA = 8,
	CLI_PROTOCOL = 9, /* the broker speaks another version */
	CLI_ADDRESS = 10, /* taken, by another region or in this process */
	CLI_RUN = 125, /* `run`: pando itself failed; 126, 127 as env(1), else the command's own */
};

struct cli_verb {
	const char *name;
	const char *args; /* "[NAME]", for the usage line */
	const char *summary; /* a few words, lower case, for the list of verbs */
	/* options and explanations; the common options are added by whoever prints it */
	const char *help;
	int (*run)(int argc, char **argv); /* argv[0] is the verb; returns the exit status */
	bool own_help; /* parses --help and the common options itself (run) */
};

extern const struct cli_verb cli_ls, cli_stat, cli_clients, cli_heap, cli_create, cli_resize,
	cli_grant, cli_rm, cli_doctor, cli_metrics, cli_names, cli_run;

/* Options that all verbs have; set by cli_option(). */
extern struct cli_options {
	const char *broker; /* NULL: wherever one is */
	bool json;
	bool bytes; /* exact sizes */
	bool no_headings;
	bool quiet;
} cli;

#define CLI_COMMON_SHORT "B:Jbnqh"
#define CLI_COMMON_LONG                                                                            \
	{"broker", required_argument, NULL, 'B'}, {"json", no_argument, NULL, 'J'},                \
		{"bytes", no_argument, NULL, 'b'}, {"no-headings", no_argument, NULL, 'n'},        \
		{"quiet", no_argument, NULL, 'q'}, {"help", no_argument, NULL, 'h'},               \
	{                                                                                          \
		NULL, 0, NULL, 0                                                                   \
	}

/*
 * The next option of the verb itself, or -1 at the end of the options. Takes care of the common
 * ones; --help and wrong options end the program. shorts and longs contain CLI_COMMON_SHORT and
 * CLI_COMMON_LONG.
 */
int cli_option(const struct cli_verb *verb, int argc, char **argv, const char *shorts,
	       const struct option *longs);

/* For a verb without options of its own. Ends the program unless min..max arguments follow. */
void cli_arguments(const struct cli_verb *verb, int argc, int min, int max);

/* Prints the help of a verb. */
void cli_help(const struct cli_verb *verb, FILE *out);

/* Prints "pando: " and the sentence to stderr; returns code. */
int cli_fail(int code, const char *fmt, ...) PANDO_PRINTF(2, 3);

/* The same with the library's sentence, and the exit code for its negative errno. */
int cli_fail_last(int error);

/*
 * Connects to the broker of --broker, $PANDO_BROKER, or the first of the well-known paths where one
 * answers; never starts one. On failure, prints why and returns the exit code; with `quietly` it
 * does not print, and the sentence is left in *why.
 */
int cli_connect(struct pando **p);
int cli_try_connect(struct pando **p, const char **why);

/* Arguments. Each prints what is wrong and returns false. */
bool cli_parse_size(const char *what, const char *text, uint64_t *bytes);
bool cli_parse_mode(const char *text, uint32_t *mode);
bool cli_parse_backend(const char *text, uint32_t *backend);
bool cli_parse_id(enum pando_grantee kind, const char *text, uint32_t *id);

/* True if colours are welcome on the stream: a terminal, and no NO_COLOR. */
bool cli_colours(FILE *stream);

/* One region as a line of a table; shared by ls and create. */
struct cli_table;
struct cli_table *cli_region_table(void);
void cli_region_line(struct cli_table *t, const struct pando_region_info *info);
/* readers.c: prints and frees the region's table, with what its readers do. Returns a status. */
int cli_stat_print(struct pando *p, const struct pando_region_info *info, struct cli_table *region);

#endif
