/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando create, resize, grant, rm: changing what there is.
 *
 * create and resize attach to the region for a moment: making and resizing are a client's business.
 * create never takes a region that is there already. A command that is interrupted while the broker
 * allocates leaves either the whole change or none: the broker finishes or drops it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "table.h"

static const struct option common[] = {CLI_COMMON_LONG};

enum {
	OPT_SIZE = 's',
	OPT_MAX = 'm',
	OPT_ADDRESS = 'a',
	OPT_BACKEND = 'k',
	OPT_MODE = 'M',
	OPT_GROUP = 'g',
	OPT_HEAP = 'H'
};

static const struct option create_options[] = {
	{"size", required_argument, NULL, OPT_SIZE},
	{"max-size", required_argument, NULL, OPT_MAX},
	{"address", required_argument, NULL, OPT_ADDRESS},
	{"backend", required_argument, NULL, OPT_BACKEND},
	{"mode", required_argument, NULL, OPT_MODE},
	{"group", required_argument, NULL, OPT_GROUP},
	{"heap", no_argument, NULL, OPT_HEAP},
	CLI_COMMON_LONG,
};

static bool create_option(int c, struct pando_region_options *o)
{
	switch (c) {
	case OPT_SIZE:
		return cli_parse_size("the size", optarg, &o->size);
	case OPT_MAX:
		return cli_parse_size("the maximum size", optarg, &o->max_size);
	case OPT_ADDRESS:
		return cli_parse_size("the address", optarg, &o->address);
	case OPT_BACKEND:
		return cli_parse_backend(optarg, &o->backend);
	case OPT_MODE:
		return cli_parse_mode(optarg, &o->mode);
	default:
		o->set_gid = 1;
		return cli_parse_id(PANDO_GRANT_GID, optarg, &o->gid);
	}
}

static int print_region(struct pando *p, const char *name)
{
	struct pando_region_info info;
	struct cli_table *t;
	int rc;

	if (cli.quiet)
		return CLI_OK;
	rc = pando_region_lookup(p, name, &info);
	if (rc < 0)
		return cli_fail_last(rc);
	t = cli_region_table();
	cli_region_line(t, &info);
	return cli_table_print(t, false);
}

static int run_create(int argc, char **argv)
{
	struct pando_region_options options = {0};
	unsigned int flags = PANDO_CREATE | PANDO_EXCL;
	struct pando_region *region;
	struct pando *p;
	int c, rc;

	while ((c = cli_option(&cli_create, argc, argv, "s:m:a:k:M:g:H" CLI_COMMON_SHORT,
			       create_options)) != -1)
		if (c == OPT_HEAP)
			flags |= PANDO_HEAP;
		else if (!create_option(c, &options))
			return CLI_USAGE;
	cli_arguments(&cli_create, argc, 1, 1);
	if (options.size == 0)
		return cli_fail(CLI_USAGE,
				"a region has a size, and it is not 0: give --size SIZE");
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	rc = pando_region_open(p, argv[optind], flags, &options, &region);
	if (rc == 0)
		rc = pando_region_close(region);
	rc = rc < 0 ? cli_fail_last(rc) : print_region(p, argv[optind]);
	pando_disconnect(p);
	return rc;
}

const struct cli_verb cli_create = {
	.name = "create",
	.args = "NAME --size SIZE",
	.summary = "make a region",
	.help = "Makes a region that stays until it is removed, and prints it.\n\n"
		"  -s, --size SIZE       memory to allocate now\n"
		"  -m, --max-size SIZE   how far it can grow (default: the size, up to a whole "
		"GiB)\n"
		"  -a, --address ADDR    its address, a multiple of 1 GiB (default: the broker "
		"picks one)\n"
		"  -k, --backend NAME    auto, memfd, hugetlb or mshare (default: auto)\n"
		"  -M, --mode MODE       permission bits, octal (default: 0600)\n"
		"  -g, --group GROUP     its group, of which you are a member\n"
		"  -H, --heap            for a heap alone: the size is what it may take, memory "
		"comes with use\n",
	.run = run_create,
};

static int run_resize(int argc, char **argv)
{
	struct pando_region *region;
	uint64_t size;
	struct pando *p;
	int rc;

	while (cli_option(&cli_resize, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_resize, argc, 2, 2);
	if (!cli_parse_size("the size", argv[optind + 1], &size))
		return CLI_USAGE;
	if (size == 0)
		return cli_fail(CLI_USAGE,
				"a region cannot shrink to nothing; remove it with pando rm %s",
				argv[optind]);
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	rc = pando_region_open(p, argv[optind], 0, NULL, &region);
	if (rc == 0)
		rc = pando_region_resize(region, size);
	if (rc == 0)
		rc = pando_region_close(region);
	rc = rc < 0 ? cli_fail_last(rc) : print_region(p, argv[optind]);
	pando_disconnect(p);
	return rc;
}

const struct cli_verb cli_resize = {
	.name = "resize",
	.args = "NAME SIZE",
	.summary = "change how much memory a region has",
	.help = "Grows or shrinks a region's memory, while it is in use, up to its maximum size. "
		"What lies above\n"
		"the new size is lost: nobody may be using it.\n",
	.run = run_resize,
};

struct grant {
	enum pando_grantee kind;
	uint32_t id;
	unsigned int rights;
};

/* "user:alice:rw", "g:staff:r", "user:1000:-" */
static bool parse_grant(const char *text, struct grant *g)
{
	char who[128];
	const char *first = strchr(text, ':'), *last = strrchr(text, ':');
	size_t n = first ? (size_t)(first - text) : 0;

	if (!first || first == last || (size_t)(last - first) > sizeof(who))
		goto malformed;
	if (n == 1 ? text[0] == 'u' : n == 4 && strncmp(text, "user", 4) == 0)
		g->kind = PANDO_GRANT_UID;
	else if (n == 1 ? text[0] == 'g' : n == 5 && strncmp(text, "group", 5) == 0)
		g->kind = PANDO_GRANT_GID;
	else
		goto malformed;
	if (strcmp(last, ":r") == 0)
		g->rights = PANDO_RIGHT_READ;
	else if (strcmp(last, ":rw") == 0)
		g->rights = PANDO_RIGHT_READ | PANDO_RIGHT_WRITE;
	else if (strcmp(last, ":-") == 0)
		g->rights = 0;
	else
		goto malformed;
	snprintf(who, sizeof(who), "%.*s", (int)(last - first - 1), first + 1);
	return cli_parse_id(g->kind, who, &g->id);
malformed:
	cli_fail(CLI_USAGE,
		 "\"%s\" is not a grant; write user:NAME:rw or group:NAME:r, or - to take it away",
		 text);
	return false;
}

static int run_grant(int argc, char **argv)
{
	struct grant g;
	struct pando *p;
	int rc;

	while (cli_option(&cli_grant, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_grant, argc, 2, -1);
	for (int i = optind + 1; i < argc; i++) /* all of them before anything is changed */
		if (!parse_grant(argv[i], &g))
			return CLI_USAGE;
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	for (int i = optind + 1; i < argc && rc == CLI_OK; i++) {
		if (!parse_grant(argv[i], &g))
			rc = CLI_USAGE;
		else if ((rc = pando_region_grant(p, argv[optind], g.kind, g.id, g.rights)) < 0)
			rc = cli_fail_last(rc);
	}
	pando_disconnect(p);
	return rc;
}

const struct cli_verb cli_grant = {
	.name = "grant",
	.args = "NAME (user|group):WHO:(rw|r|-)...",
	.summary = "let other users and groups use a region",
	.help = "Adds entries to a region's access list, beyond its mode: r lets the user or the "
		"members of the\n"
		"group attach it for reading, rw for writing too, - takes the entry away. Who is "
		"attached already\n"
		"stays so. Only the owner and root may.\n",
	.run = run_grant,
};

static int run_rm(int argc, char **argv)
{
	struct pando *p;
	int code;

	while (cli_option(&cli_rm, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_rm, argc, 1, -1);
	code = cli_connect(&p);
	if (code != CLI_OK)
		return code;
	for (int i = optind; i < argc; i++) {
		int rc = pando_region_destroy(p, argv[i]),
		    failed = rc < 0 ? cli_fail_last(rc) : CLI_OK;

		code = code == CLI_OK ? failed : code;
	}
	pando_disconnect(p);
	return code;
}

const struct cli_verb cli_rm = {
	.name = "rm",
	.args = "NAME...",
	.summary = "remove regions",
	.help = "Takes the names of regions away; each region's memory is freed when its last user "
		"is gone. Goes on\n"
		"after a failure; the exit status tells the first one. Only the owner and root "
		"may.\n",
	.run = run_rm,
};
