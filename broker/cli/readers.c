/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What `pando stat` says of a region's readers, and of who waits for them.
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
	struct cli_table *tables[3] = {region, cli_table_new("rcu", rcu_columns, R_COLUMNS),
				       cli_table_new("stalled", stalled_columns, S_COLUMNS)};
	struct pando_rcu_stat st = {0};
	struct pando_region *r;
	unsigned int n = 1;

	if (info->clients > 0 && pando_region_open(p, info->name, PANDO_READONLY, NULL, &r) == 0) {
		if (pando_rcu_stat(r, &st) == 0) {
			fill(&st, tables[1], tables[2]);
			n = st.stalled_count ? 3 : 2;
		}
		(void)pando_region_close(r);
	}
	if (cli.json)
		n = 3;
	for (unsigned int i = n; i < 3; i++)
		cli_table_free(tables[i]);
	return cli_tables_print(tables, n);
}
