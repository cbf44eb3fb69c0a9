/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What `pando stat` says of a region's readers, of who waits for them, and of its directory of names.
 *
 * The numbers lie in the region's ledger and slots, so the command attaches to the region, without
 * the right to write. Where it may not, or where nobody is attached and so nobody reads, that part is
 * left out (in JSON: empty).
 */
#include "cli.h"
#include "client.h"
#include "table.h"

enum { R_MODE, R_READERS, R_READING, R_GRACE, R_RETIRED, R_BYTES, R_LIMIT, R_STALLED, R_COLUMNS };

static const struct cli_column rcu_columns[R_COLUMNS] = {
	[R_MODE] = {"mode", "READERS' MODE", 0},
	[R_READERS] = {"readers", "READERS", CLI_RIGHT | CLI_NUMBER},
	[R_READING] = {"reading", "READING", CLI_RIGHT | CLI_NUMBER},
	[R_GRACE] = {"grace_periods", "GRACE PERIODS", CLI_RIGHT | CLI_NUMBER},
	[R_RETIRED] = {"retired", "RETIRED", CLI_RIGHT | CLI_NUMBER},
	[R_BYTES] = {"retired_bytes", "BYTES", CLI_RIGHT | CLI_NUMBER},
	[R_LIMIT] = {"retired_limit", "LIMIT", CLI_RIGHT | CLI_NUMBER},
	[R_STALLED] = {"stalled", "STALLED", CLI_RIGHT | CLI_NUMBER},
};

enum { S_PID, S_TID, S_SINCE, S_BYTES, S_COLUMNS };

static const struct cli_column stalled_columns[S_COLUMNS] = {
	[S_PID] = {"pid", "STALLED PID", CLI_RIGHT | CLI_NUMBER},
	[S_TID] = {"tid", "THREAD", CLI_RIGHT | CLI_NUMBER},
	[S_SINCE] = {"seconds", "FOR", CLI_RIGHT | CLI_NUMBER},
	[S_BYTES] = {"waiting_bytes", "WAITING", CLI_RIGHT | CLI_NUMBER},
};

enum { D_NAMES, D_PUBLISHED, D_WITHDRAWN, D_BUCKETS, D_TABLES, D_LOCKED, D_SLOW, D_COLUMNS };

static const struct cli_column directory_columns[D_COLUMNS] = {
	[D_NAMES] = {"names", "NAMES", CLI_RIGHT | CLI_NUMBER},
	[D_PUBLISHED] = {"published", "PUBLISHED", CLI_RIGHT | CLI_NUMBER},
	[D_WITHDRAWN] = {"withdrawn", "WITHDRAWN", CLI_RIGHT | CLI_NUMBER},
	[D_BUCKETS] = {"buckets", "BUCKETS", CLI_RIGHT | CLI_NUMBER},
	[D_TABLES] = {"table_bytes", "TABLES", CLI_RIGHT | CLI_NUMBER},
	[D_LOCKED] = {"locked", "LOCKED", CLI_RIGHT | CLI_NUMBER},
	[D_SLOW] = {"slow", "SLOW", CLI_RIGHT | CLI_NUMBER},
};

enum { W_PID, W_PART, W_SINCE, W_COLUMNS };

static const struct cli_column writer_columns[W_COLUMNS] = {
	[W_PID] = {"pid", "SLOW PID", CLI_RIGHT | CLI_NUMBER},
	[W_PART] = {"part", "HOLDS PART", CLI_RIGHT | CLI_NUMBER},
	[W_SINCE] = {"seconds", "FOR", CLI_RIGHT | CLI_NUMBER},
};

static void fill_directory(const struct pando_directory_stat *st, struct cli_table *directory,
			   struct cli_table *writers)
{
	cli_line(directory);
	cli_number(directory, D_NAMES, st->names);
	cli_number(directory, D_PUBLISHED, st->published);
	cli_number(directory, D_WITHDRAWN, st->withdrawn);
	cli_number(directory, D_BUCKETS, st->buckets);
	cli_size(directory, D_TABLES, st->table_bytes);
	cli_number(directory, D_LOCKED, st->locked);
	cli_number(directory, D_SLOW, st->slow_count);
	if (st->slow_count)
		cli_paint(directory, D_SLOW, "red");
	for (unsigned int i = 0; i < PANDO__STALLED && i < st->slow_count; i++) {
		cli_line(writers);
		cli_number(writers, W_PID, (uint64_t)st->slow[i].pid);
		cli_number(writers, W_PART, st->slow[i].shard);
		cli_duration(writers, W_SINCE, st->slow[i].ns);
	}
}

static void fill(const struct pando_rcu_stat *st, struct cli_table *rcu, struct cli_table *stalled)
{
	cli_line(rcu);
	cli_text(rcu, R_MODE, st->region_mode == PANDO_RCU_FENCED ? "fenced" : "membarrier");
	cli_number(rcu, R_READERS, st->readers);
	cli_number(rcu, R_READING, st->reading);
	cli_number(rcu, R_GRACE, st->grace_periods);
	cli_number(rcu, R_RETIRED, st->retired);
	cli_size(rcu, R_BYTES, st->retired_bytes);
	cli_size(rcu, R_LIMIT, st->retired_limit);
	cli_number(rcu, R_STALLED, st->stalled_count);
	if (st->stalled_count)
		cli_paint(rcu, R_STALLED, "red");
	for (unsigned int i = 0; i < PANDO__STALLED && i < st->stalled_count; i++) {
		cli_line(stalled);
		cli_number(stalled, S_PID, (uint64_t)st->stalled[i].pid);
		cli_number(stalled, S_TID, st->stalled[i].tid);
		cli_duration(stalled, S_SINCE, st->stalled[i].ns);
		cli_size(stalled, S_BYTES, st->retired_bytes);
	}
}

int cli_stat_print(struct pando *p, const struct pando_region_info *info, struct cli_table *region)
{
	enum { REGION, RCU, STALLED, DIRECTORY, WRITERS, TABLES };
	struct cli_table *all[TABLES] = {region, cli_table_new("rcu", rcu_columns, R_COLUMNS),
					 cli_table_new("stalled", stalled_columns, S_COLUMNS),
					 cli_table_new("directory", directory_columns, D_COLUMNS),
					 cli_table_new("slow", writer_columns, W_COLUMNS)};
	bool shown[TABLES] = {true};
	struct cli_table *tables[TABLES];
	struct pando_directory_stat names = {0};
	struct pando_rcu_stat rcu = {0};
	struct pando_region *r;
	unsigned int n = 0;

	if (info->clients > 0 && pando_region_open(p, info->name, PANDO_READONLY, NULL, &r) == 0) {
		shown[RCU] = pando_rcu_stat(r, &rcu) == 0;
		if (shown[RCU])
			fill(&rcu, all[RCU], all[STALLED]);
		if (pando_directory_stat(r, &names) == 0)
			fill_directory(&names, all[DIRECTORY], all[WRITERS]);
		(void)pando_region_close(r);
	}
	shown[STALLED] = rcu.stalled_count != 0;
	shown[DIRECTORY] = names.published != 0;
	shown[WRITERS] = names.slow_count != 0;
	for (unsigned int i = 0; i < TABLES; i++)
		if (cli.json || shown[i])
			tables[n++] = all[i];
		else
			cli_table_free(all[i]);
	return cli_tables_print(tables, n);
}
