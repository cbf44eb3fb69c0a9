/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tables for people and JSON for programs, from the same calls.
 *
 *	t = cli_table_new("regions", columns, n);
 *	cli_line(t);
 *	cli_text(t, NAME, info.name);
 *	cli_size(t, SIZE, info.size);
 *	return cli_table_print(t);
 *
 * For people: aligned columns, headings, sizes in units (exact with --bytes). As JSON: an object
 * with one array of objects; sizes are bytes, times are seconds, nothing is shortened.
 */
#ifndef PANDO_CLI_TABLE_H
#define PANDO_CLI_TABLE_H

#include <stdbool.h>
#include <stdint.h>

struct cli_table;

enum cli_column_flags {
	CLI_RIGHT = 1, /* aligned to the right */
	CLI_NUMBER = 2, /* a number in JSON */
	CLI_BOOLEAN = 4, /* true or false in JSON, "yes" or "-" for people */
	CLI_JSON_ONLY = 8, /* people do not see it */
	CLI_WRAP = 16, /* may be wrapped on a narrow terminal */
};

struct cli_column {
	const char *key; /* in JSON: lower case, words joined by _ */
	const char *title; /* for people */
	unsigned int flags;
};

/* name: the key of the array in JSON. Memory that runs out ends the program. */
struct cli_table *cli_table_new(const char *name, const struct cli_column *columns, unsigned int n);

/*
 * Begins a line; the following calls fill its cells, by the column's index. Unset cells are null.
 */
void cli_line(struct cli_table *t);
/* What is not printable, or not UTF-8, is shown as '?'. */
void cli_text(struct cli_table *t, unsigned int column, const char *text);
void cli_number(struct cli_table *t, unsigned int column, uint64_t value);
void cli_size(struct cli_table *t, unsigned int column, uint64_t bytes);
void cli_hex(struct cli_table *t, unsigned int column, uint64_t value);
void cli_bool(struct cli_table *t, unsigned int column, bool value);
/* A duration: "3d 4h" for people, seconds with three digits in JSON. */
void cli_duration(struct cli_table *t, unsigned int column, uint64_t ns);
/* Names of users and groups; numbers where there is none. */
void cli_user(struct cli_table *t, unsigned int column, uint32_t uid);
void cli_group(struct cli_table *t, unsigned int column, uint32_t gid);
/* Colours the cell for people on a terminal: "red", "green", "yellow". */
void cli_paint(struct cli_table *t, unsigned int column, const char *colour);

/*
 * Prints and frees the table. With `vertical`, people see the first line as one "title  value" a
 * line.
 */
int cli_table_print(struct cli_table *t, bool vertical);

/*
 * Prints and frees several: for people one after the other, the first one vertically; in JSON one
 * object with the array of each.
 */
int cli_tables_print(struct cli_table *const *tables, unsigned int n);

/* Frees a table that is not to be printed after all. */
void cli_table_free(struct cli_table *t);

#endif
