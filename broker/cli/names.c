/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando names: what has a name in a region (libshm/directory).
 *
 * The command attaches to the region without the right to write, and goes through the directory in read
 * sections of one name each: it holds up nobody, and sees each name that is there all the time
 * once.
 */
#include <string.h>

#include "cli.h"
#include "table.h"

static const struct option common[] = {CLI_COMMON_LONG};

enum { N_NAME, N_VERSION, N_SIZE, N_ADDRESS, N_COLUMNS };

static const struct cli_column name_columns[N_COLUMNS] = {
	[N_NAME] = {"name", "NAME", 0},
	[N_VERSION] = {"version", "VERSION", CLI_RIGHT | CLI_NUMBER},
	[N_SIZE] = {"size", "SIZE", CLI_RIGHT | CLI_NUMBER},
	[N_ADDRESS] = {"address", "ADDRESS", CLI_RIGHT},
};

static int fill(struct pando_region *r, const char *prefix, struct cli_table *t)
{
	struct pando_name n = {0};
	int rc;

	while ((rc = pando_name_next(r, &n)) > 0) {
		if (strncmp(n.name, prefix, strlen(prefix)) != 0)
			continue;
		cli_line(t);
		cli_text(t, N_NAME, n.name);
		cli_number(t, N_VERSION, n.descriptor.version);
		cli_size(t, N_SIZE, n.descriptor.size);
		cli_hex(t, N_ADDRESS, (uintptr_t)n.descriptor.object);
	}
	return rc;
}

static int run_names(int argc, char **argv)
{
	struct pando_region *r;
	struct cli_table *t;
	struct pando *p;
	int rc;

	while (cli_option(&cli_names, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_names, argc, 1, 2);
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	t = cli_table_new("names", name_columns, N_COLUMNS);
	rc = pando_region_open(p, argv[optind], PANDO_READONLY, NULL, &r);
	if (rc == 0) {
		rc = fill(r, optind + 1 < argc ? argv[optind + 1] : "", t);
		(void)pando_region_close(r);
	}
	if (rc < 0)
		rc = cli_fail_last(rc);
	pando_disconnect(p);
	if (rc == CLI_OK)
		return cli_table_print(t, false);
	cli_table_free(t);
	return rc;
}

const struct cli_verb cli_names = {
	.name = "names",
	.args = "NAME [PREFIX]",
	.summary = "list what has a name in a region",
	.help = "Lists the objects that have names in a region, in no particular order, or those "
		"whose names begin\n"
		"with PREFIX: how large each is, where it lies, and its version, which is another "
		"one after each\n"
		"replacement.\n",
	.run = run_names,
};
