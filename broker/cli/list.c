/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando ls, stat, clients: what there is.
 *
 * Regions are listed as the broker shows them to the caller: its own, and those that it may attach
 * to. The clients of one region are asked for with the protocol's own filter, for which the library
 * has no public function; so this file speaks to its inside.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "cli.h"
#include "client.h"
#include "table.h"

#define BATCH 64

static const struct option common[] = {CLI_COMMON_LONG};

static uint64_t age_ns(uint64_t since)
{
	uint64_t now = pando__now_ns(CLOCK_BOOTTIME);

	return now > since ? now - since : 0;
}

enum {
	R_NAME,
	R_BACKEND,
	R_SIZE,
	R_MAX,
	R_BASE,
	R_CLIENTS,
	R_OWNER,
	R_GROUP,
	R_MODE,
	R_AGE,
	R_HEAP,
	R_TRANSIENT,
	R_DESTROYED,
	R_ID,
	R_PAGE,
	R_UID,
	R_GID,
	R_GRANTS,
	R_COLUMNS
};

static const struct cli_column region_columns[R_COLUMNS] = {
	[R_NAME] = {"name", "NAME", 0},
	[R_BACKEND] = {"backend", "BACKEND", 0},
	[R_SIZE] = {"size", "SIZE", CLI_RIGHT | CLI_NUMBER},
	[R_MAX] = {"max_size", "MAX", CLI_RIGHT | CLI_NUMBER},
	[R_BASE] = {"base", "ADDRESS", CLI_RIGHT},
	[R_CLIENTS] = {"clients", "CLIENTS", CLI_RIGHT | CLI_NUMBER},
	[R_OWNER] = {"owner", "OWNER", 0},
	[R_GROUP] = {"group", "GROUP", 0},
	[R_MODE] = {"mode", "MODE", 0},
	[R_AGE] = {"age_seconds", "AGE", CLI_RIGHT | CLI_NUMBER},
	[R_HEAP] = {"heap", "HEAP", CLI_BOOLEAN},
	[R_TRANSIENT] = {"transient", "TRANSIENT", CLI_BOOLEAN},
	[R_DESTROYED] = {"destroyed", "DESTROYED", CLI_BOOLEAN | CLI_JSON_ONLY},
	[R_ID] = {"id", "ID", CLI_NUMBER | CLI_JSON_ONLY},
	[R_PAGE] = {"page_size", "PAGE", CLI_NUMBER | CLI_JSON_ONLY},
	[R_UID] = {"uid", "UID", CLI_NUMBER | CLI_JSON_ONLY},
	[R_GID] = {"gid", "GID", CLI_NUMBER | CLI_JSON_ONLY},
	[R_GRANTS] = {"grants", "GRANTS", CLI_NUMBER | CLI_JSON_ONLY},
};

/* One region in full, for stat: the same cells, all of them shown. */
static const struct cli_column stat_columns[R_COLUMNS] = {
	[R_NAME] = {"name", "Name", 0},
	[R_BACKEND] = {"backend", "Backend", 0},
	[R_SIZE] = {"size", "Size", CLI_NUMBER},
	[R_MAX] = {"max_size", "Maximum size", CLI_NUMBER},
	[R_BASE] = {"base", "Address", 0},
	[R_CLIENTS] = {"clients", "Clients", CLI_NUMBER},
	[R_OWNER] = {"owner", "Owner", 0},
	[R_GROUP] = {"group", "Group", 0},
	[R_MODE] = {"mode", "Mode", 0},
	[R_AGE] = {"age_seconds", "Age", CLI_NUMBER},
	[R_HEAP] = {"heap", "For a heap", CLI_BOOLEAN},
	[R_TRANSIENT] = {"transient", "Transient", CLI_BOOLEAN},
	[R_DESTROYED] = {"destroyed", "Destroyed", CLI_BOOLEAN},
	[R_ID] = {"id", "Id", CLI_NUMBER},
	[R_PAGE] = {"page_size", "Page size", CLI_NUMBER},
	[R_UID] = {"uid", "User id", CLI_NUMBER},
	[R_GID] = {"gid", "Group id", CLI_NUMBER},
	[R_GRANTS] = {"grants", "Access list entries", CLI_NUMBER},
};

struct cli_table *cli_region_table(void)
{
	return cli_table_new("regions", region_columns, R_COLUMNS);
}

void cli_region_line(struct cli_table *t, const struct pando_region_info *info)
{
	const char *backend = pando_backend_name(info->backend);
	char mode[16];

	snprintf(mode, sizeof(mode), "%04o", info->mode);
	cli_line(t);
	cli_text(t, R_NAME, info->name);
	cli_text(t, R_BACKEND, backend ? backend : "?");
	cli_size(t, R_SIZE, info->size);
	cli_size(t, R_MAX, info->max_size);
	cli_hex(t, R_BASE, info->base);
	cli_number(t, R_CLIENTS, info->clients);
	cli_user(t, R_OWNER, info->uid);
	cli_group(t, R_GROUP, info->gid);
	cli_text(t, R_MODE, mode);
	cli_duration(t, R_AGE, age_ns(info->created_ns));
	cli_bool(t, R_HEAP, info->flags & PANDO_HEAP);
	cli_bool(t, R_TRANSIENT, info->flags & PANDO_TRANSIENT);
	cli_bool(t, R_DESTROYED, info->flags & PANDO_REGION_DESTROYED);
	cli_number(t, R_ID, info->id);
	cli_size(t, R_PAGE, info->page_size);
	cli_number(t, R_UID, info->uid);
	cli_number(t, R_GID, info->gid);
	cli_number(t, R_GRANTS, info->grants);
}

static int run_ls(int argc, char **argv)
{
	struct pando_region_info info[BATCH];
	struct cli_table *t;
	uint64_t cursor = 0;
	struct pando *p;
	int n;

	while (cli_option(&cli_ls, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_ls, argc, 0, 0);
	n = cli_connect(&p);
	if (n != CLI_OK)
		return n;
	t = cli_region_table();
	while ((n = pando_region_list(p, &cursor, info, BATCH)) > 0)
		for (int i = 0; i < n; i++)
			cli_region_line(t, &info[i]);
	if (n < 0)
		n = cli_fail_last(n);
	pando_disconnect(p);
	if (n == CLI_OK)
		return cli_table_print(t, false);
	cli_table_free(t);
	return n;
}

const struct cli_verb cli_ls = {
	.name = "ls",
	.args = "",
	.summary = "list the regions",
	.help = "Lists the regions that you may see: your own and those that you may attach to; "
		"root sees all.\n",
	.run = run_ls,
};

static int run_stat(int argc, char **argv)
{
	struct pando_region_info info;
	struct cli_table *t;
	struct pando *p;
	int rc;

	while (cli_option(&cli_stat, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_stat, argc, 1, 1);
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	rc = pando_region_lookup(p, argv[optind], &info);
	if (rc < 0) {
		rc = cli_fail_last(rc);
	} else {
		t = cli_table_new("regions", stat_columns, R_COLUMNS);
		cli_region_line(t, &info);
		rc = cli_stat_print(p, &info, t);
	}
	pando_disconnect(p);
	return rc;
}

const struct cli_verb cli_stat = {
	.name = "stat",
	.args = "NAME",
	.summary = "show everything about one region",
	.help = "Shows all that the broker knows of one region; and, where it may be attached to, "
		"how "
		"many threads\n"
		"read in it (READING: are in a read section), how many objects have been retired "
		"and "
		"wait for them,\n"
		"and which of them have kept others waiting for more than a second; how many names "
		"it has, and\n"
		"which processes have held up others who change names for that long.\n",
	.run = run_stat,
};

enum {
	C_PID,
	C_PROGRAM,
	C_USER,
	C_REGIONS,
	C_GRAFTS,
	C_WAITING,
	C_AGE,
	C_ID,
	C_PARENT,
	C_UID,
	C_GID,
	C_GRAFT_COUNT,
	C_WAITING_COUNT,
	C_COLUMNS
};

static const struct cli_column client_columns[C_COLUMNS] = {
	[C_PID] = {"pid", "PID", CLI_RIGHT | CLI_NUMBER},
	[C_PROGRAM] = {"program", "PROGRAM", 0},
	[C_USER] = {"user", "USER", 0},
	[C_REGIONS] = {"regions", "REGIONS", CLI_RIGHT | CLI_NUMBER},
	[C_GRAFTS] = {"grafts_held_bytes", "GRAFTED", CLI_RIGHT | CLI_NUMBER},
	[C_WAITING] = {"grafts_waiting_bytes", "WAITING", CLI_RIGHT | CLI_NUMBER},
	[C_AGE] = {"age_seconds", "CONNECTED", CLI_RIGHT | CLI_NUMBER},
	[C_ID] = {"id", "ID", CLI_RIGHT | CLI_NUMBER},
	[C_PARENT] = {"parent", "PARENT", CLI_RIGHT | CLI_NUMBER},
	[C_UID] = {"uid", "UID", CLI_NUMBER | CLI_JSON_ONLY},
	[C_GID] = {"gid", "GID", CLI_NUMBER | CLI_JSON_ONLY},
	[C_GRAFT_COUNT] = {"grafts_held", "HELD", CLI_NUMBER | CLI_JSON_ONLY},
	[C_WAITING_COUNT] = {"grafts_waiting", "QUEUE", CLI_NUMBER | CLI_JSON_ONLY},
};

static void client_line(struct cli_table *t, const struct pando_client_info *info)
{
	cli_line(t);
	cli_number(t, C_PID, (uint64_t)info->pid);
	cli_text(t, C_PROGRAM, info->program);
	cli_user(t, C_USER, info->uid);
	cli_number(t, C_REGIONS, info->regions);
	cli_size(t, C_GRAFTS, info->grafts_held_bytes);
	cli_size(t, C_WAITING, info->grafts_waiting_bytes);
	cli_number(t, C_GRAFT_COUNT, info->grafts_held);
	cli_number(t, C_WAITING_COUNT, info->grafts_waiting);
	cli_duration(t, C_AGE, age_ns(info->connected_ns));
	cli_number(t, C_ID, info->id);
	if (info->parent || cli.json)
		cli_number(t, C_PARENT, info->parent);
	else
		cli_text(t, C_PARENT, "-");
	cli_number(t, C_UID, info->uid);
	cli_number(t, C_GID, info->gid);
}

/* The next clients of a region ("": of all). Returns how many came, or a negative errno. */
static int next_clients(struct pando *p, const char *region, uint64_t cursor,
			struct pando__msg *reply)
{
	struct pando__msg request;
	int rc;

	pando__msg_init(&request, PANDO__MSG_CLIENTS, 0);
	request.walk.cursor = cursor;
	strcpy(request.walk.name, region);
	rc = pando__begin(p);
	if (rc == 0)
		rc = pando__call(p, &request, PANDO__MSG_CLIENT_LIST, 0, reply);
	pando__end(p);
	return rc < 0 ? rc : (int)reply->clients.count;
}

/* Fills the table. The command's own connection is left out. Returns 0 or a negative errno. */
static int walk_clients(struct pando *p, const char *region, struct cli_table *t)
{
	struct pando__msg reply;
	uint64_t cursor = 0;
	int n;

	while ((n = next_clients(p, region, cursor, &reply)) > 0)
		for (int i = 0; i < n; i++) {
			cursor = reply.clients.info[i].id;
			if (cursor != pando_client_id(p))
				client_line(t, &reply.clients.info[i]);
		}
	return n;
}

static int run_clients(int argc, char **argv)
{
	struct pando_region_info info;
	const char *region = "";
	struct cli_table *t;
	struct pando *p;
	int rc;

	while (cli_option(&cli_clients, argc, argv, CLI_COMMON_SHORT, common) != -1)
		;
	cli_arguments(&cli_clients, argc, 0, 1);
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	t = cli_table_new("clients", client_columns, C_COLUMNS);
	if (optind < argc) {
		region = argv[optind];
		rc = pando_region_lookup(p, region, &info);
	}
	if (rc == 0)
		rc = walk_clients(p, region, t);
	if (rc < 0)
		rc = cli_fail_last(rc);
	pando_disconnect(p);
	if (rc == CLI_OK)
		return cli_table_print(t, false);
	cli_table_free(t);
	return rc;
}

const struct cli_verb cli_clients = {
	.name = "clients",
	.args = "[NAME]",
	.summary = "list the attached processes, of all regions or of one",
	.help = "Lists the processes that are connected to the broker, or attached to one region: "
		"those of your\n"
		"own user; root and the broker's user see all. PARENT is the ID of the client that "
		"a process was\n"
		"forked from. GRAFTED is what others have handed over to it (pando_graft) and it "
		"has accepted,\n"
		"WAITING what it has not. The command itself is left out.\n",
	.run = run_clients,
};
