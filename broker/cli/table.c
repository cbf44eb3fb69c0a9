/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tables, on libsmartcols.
 *
 * libsmartcols takes a column's name both for the heading and for the JSON key, so the table is
 * made with the one or the other, according to --json. A vertical table (one thing, many
 * properties) is turned around when it is printed: its cells become lines of a second table.
 */
#include "table.h"

#include <grp.h>
#include <inttypes.h>
#include <langinfo.h>
#include <libsmartcols.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include "cli.h"
#include "common/size.h"

struct cli_table {
	struct libscols_table *scols;
	struct libscols_line *line;
	const struct cli_column *columns;
	unsigned int n;
	int *index; /* of a column in scols, or -1 */
};

static void *must(void *p)
{
	if (!p) {
		fputs("pando: out of memory\n", stderr);
		exit(CLI_NO_MEMORY);
	}
	return p;
}

static int column_flags(const struct cli_column *c)
{
	return (c->flags & CLI_RIGHT ? SCOLS_FL_RIGHT : 0) |
	       (c->flags & CLI_WRAP ? SCOLS_FL_WRAP : 0);
}

static int json_type(const struct cli_column *c)
{
	return c->flags & CLI_NUMBER	? SCOLS_JSON_NUMBER
	       : c->flags & CLI_BOOLEAN ? SCOLS_JSON_BOOLEAN
					: SCOLS_JSON_STRING;
}

static struct libscols_table *new_scols(const char *name)
{
	struct libscols_table *s = must(scols_new_table());

	scols_table_set_name(s, name);
	scols_table_enable_json(s, cli.json);
	scols_table_enable_noheadings(s, cli.no_headings);
	scols_table_enable_colors(s, cli_colours(stdout));
	if (!scols_table_is_json(s) && strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
		scols_table_enable_ascii(s, 1);
	return s;
}

/* Cells are broken where wrap() put newlines. */
static void set_wrapping(struct libscols_column *column)
{
	scols_column_set_wrapfunc(column, scols_wrapnl_chunksize, scols_wrapnl_nextchunk, NULL);
	scols_column_set_safechars(column, "\n");
}

struct cli_table *cli_table_new(const char *name, const struct cli_column *columns, unsigned int n)
{
	struct cli_table *t = must(calloc(1, sizeof(*t)));
	int used = 0;

	t->scols = new_scols(name);
	t->columns = columns;
	t->n = n;
	t->index = must(calloc(n, sizeof(*t->index)));
	for (unsigned int i = 0; i < n; i++) {
		const struct cli_column *c = &columns[i];
		struct libscols_column *column;

		t->index[i] = -1;
		if (!cli.json && (c->flags & CLI_JSON_ONLY))
			continue;
		column = must(scols_table_new_column(t->scols, cli.json ? c->key : c->title, 0,
						     column_flags(c)));
		scols_column_set_json_type(column, json_type(c));
		if (c->flags & CLI_WRAP)
			set_wrapping(column);
		if (cli_colours(stdout))
			scols_cell_set_color(scols_column_get_header(column), "bold");
		t->index[i] = used++;
	}
	return t;
}

void cli_line(struct cli_table *t)
{
	t->line = must(scols_table_new_line(t->scols, NULL));
}

/*
 * Breaks a text into lines between words, for the rest of a terminal's width that other columns
 * leave.
 */
static void wrap(const struct cli_table *t, char *text)
{
	size_t width = scols_table_get_termwidth(t->scols), at = 0;
	char *space = NULL;

	width = width > 60 ? width - 30 : 30;
	for (char *c = text; *c; c++, at++) {
		if (at >= width && space) {
			*space = '\n';
			at = (size_t)(c - space) - 1;
			space = NULL;
		}
		if (*c == ' ')
			space = c;
	}
}

static void put(struct cli_table *t, unsigned int column, const char *text)
{
	if (t->index[column] >= 0 &&
	    scols_line_set_data(t->line, (size_t)t->index[column], text) != 0)
		must(NULL);
}

void cli_text(struct cli_table *t, unsigned int column, const char *text)
{
	char clean[512];
	mbstate_t state = {0};
	const char *s = text;
	bool multibyte;

	snprintf(clean, sizeof(clean), "%s", text);
	s = clean;
	multibyte = mbsrtowcs(NULL, &s, 0, &state) != (size_t)-1;
	for (char *c = clean; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127 || (!multibyte && (unsigned char)*c > 127))
			*c = '?';
	if ((t->columns[column].flags & CLI_WRAP) && !cli.json && isatty(STDOUT_FILENO))
		wrap(t, clean);
	put(t, column, clean);
}

void cli_number(struct cli_table *t, unsigned int column, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	put(t, column, text);
}

void cli_size(struct cli_table *t, unsigned int column, uint64_t bytes)
{
	char text[PANDO__SIZE_TEXT];

	if (cli.json || cli.bytes)
		cli_number(t, column, bytes);
	else
		put(t, column, pando__size_format(bytes, text));
}

void cli_hex(struct cli_table *t, unsigned int column, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "0x%" PRIx64, value);
	put(t, column, text);
}

void cli_bool(struct cli_table *t, unsigned int column, bool value)
{
	put(t, column, cli.json ? (value ? "1" : "0") : value ? "yes" : "-");
}

void cli_duration(struct cli_table *t, unsigned int column, uint64_t ns)
{
	unsigned long long s = ns / 1000000000u;
	char text[48];

	if (cli.json)
		snprintf(text, sizeof(text), "%llu.%03llu", s,
			 (unsigned long long)(ns / 1000000u % 1000u));
	else if (s < 60)
		snprintf(text, sizeof(text), "%llus", s);
	else if (s < 3600)
		snprintf(text, sizeof(text), "%llum %llus", s / 60, s % 60);
	else if (s < 86400)
		snprintf(text, sizeof(text), "%lluh %llum", s / 3600, s / 60 % 60);
	else
		snprintf(text, sizeof(text), "%llud %lluh", s / 86400, s / 3600 % 24);
	put(t, column, text);
}

void cli_user(struct cli_table *t, unsigned int column, uint32_t uid)
{
	const struct passwd *pw = getpwuid(uid);

	if (pw)
		cli_text(t, column, pw->pw_name);
	else
		cli_number(t, column, uid);
}

void cli_group(struct cli_table *t, unsigned int column, uint32_t gid)
{
	const struct group *gr = getgrgid(gid);

	if (gr)
		cli_text(t, column, gr->gr_name);
	else
		cli_number(t, column, gid);
}

void cli_paint(struct cli_table *t, unsigned int column, const char *colour)
{
	struct libscols_cell *cell;

	if (t->index[column] < 0)
		return;
	cell = scols_line_get_cell(t->line, (size_t)t->index[column]);
	if (cell && scols_cell_set_color(cell, colour) != 0)
		must(NULL);
}

/* The table's last line, as a table of two columns. */
static struct libscols_table *turn(const struct cli_table *t)
{
	struct libscols_table *s = new_scols(NULL);

	scols_table_enable_noheadings(s, 1);
	must(scols_table_new_column(s, "PROPERTY", 0, 0));
	must(scols_table_new_column(s, "VALUE", 0, 0));
	for (unsigned int i = 0; i < t->n; i++) {
		struct libscols_line *line;

		if (t->index[i] < 0)
			continue;
		line = must(scols_table_new_line(s, NULL));
		if (scols_line_set_data(line, 0, t->columns[i].title) != 0 ||
		    scols_line_set_data(line, 1,
					scols_cell_get_data(scols_line_get_cell(
						t->line, (size_t)t->index[i]))) != 0)
			must(NULL);
	}
	return s;
}

void cli_table_free(struct cli_table *t)
{
	scols_unref_table(t->scols);
	free(t->index);
	free(t);
}

int cli_table_print(struct cli_table *t, bool vertical)
{
	int rc;

	if (vertical && !cli.json && t->line) {
		struct libscols_table *s = turn(t);

		rc = scols_print_table(s);
		scols_unref_table(s);
	} else {
		rc = scols_print_table(t->scols);
	}
	cli_table_free(t);
	if (rc < 0 || fflush(stdout) != 0 || ferror(stdout))
		return cli_fail(CLI_FAILED, "cannot write the output");
	return CLI_OK;
}

/* The members of the object that a table is in JSON, without the braces around them. */
static char *members(struct cli_table *t)
{
	char *text, *from, *to;

	if (scols_print_table_to_string(t->scols, &text) != 0)
		must(NULL);
	from = strchr(text, '{');
	to = strrchr(text, '}');
	if (!from || !to)
		must(NULL);
	*to = '\0';
	memmove(text, from + 1, strlen(from + 1) + 1);
	for (to = text + strlen(text); to > text && (to[-1] == '\n' || to[-1] == ' ');)
		*--to = '\0';
	return text;
}

int cli_tables_print(struct cli_table *const *tables, unsigned int n)
{
	int rc = CLI_OK;

	for (unsigned int i = 0; i < n; i++) {
		if (!cli.json) {
			if (i > 0)
				putchar('\n');
			rc = cli_table_print(tables[i], i == 0);
		} else {
			char *text = members(tables[i]);

			printf("%s%s%s", i ? "," : "{", text, i + 1 == n ? "\n}\n" : "");
			free(text);
			cli_table_free(tables[i]);
		}
	}
	if (fflush(stdout) != 0 || ferror(stdout))
		return cli_fail(CLI_FAILED, "cannot write the output");
	return rc;
}
