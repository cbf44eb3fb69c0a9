/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando doctor: what this machine can and cannot do for Pando, and what would mend it.
 *
 * One line per capability: a state, what was found and what that means; under the table, the
 * commands that mend what can be mended. Nothing is changed: people run the commands, as root where
 * they must. The exit status is 1 if something is missing that Pando cannot do without; a missing
 * optimisation is no failure.
 */
#include "doctor.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "table.h"

#define MOST 40

struct finding {
	char check[32];
	char text[400];
	char mend[240];
	enum doctor_state state;
	bool needed;
};

struct doctor {
	struct finding findings[MOST];
	unsigned int n;
};

void found(struct doctor *d, const char *check, bool needed, enum doctor_state state,
	   const char *mend, const char *finding, ...)
{
	struct finding *f;
	va_list ap;

	if (d->n == MOST)
		return;
	f = &d->findings[d->n++];
	snprintf(f->check, sizeof(f->check), "%s", check);
	snprintf(f->mend, sizeof(f->mend), "%s", mend ? mend : "");
	va_start(ap, finding);
	vsnprintf(f->text, sizeof(f->text), finding, ap);
	va_end(ap);
	f->state = state;
	f->needed = needed;
}

enum { D_STATE, D_CHECK, D_FINDING, D_NEEDED, D_MEND, D_COLUMNS };

static const struct cli_column columns[D_COLUMNS] = {
	[D_STATE] = {"state", "STATE", 0},
	[D_CHECK] = {"check", "CHECK", 0},
	[D_FINDING] = {"finding", "FINDING", CLI_WRAP},
	[D_NEEDED] = {"needed", "NEEDED", CLI_BOOLEAN | CLI_JSON_ONLY},
	[D_MEND] = {"mend", "MEND", CLI_JSON_ONLY},
};

static const char *const states[] = {"ok", "limited", "missing"};
static const char *const colours[] = {"green", "yellow", "red"};

static int print(const struct doctor *d)
{
	struct cli_table *t = cli_table_new("checks", columns, D_COLUMNS);
	const char *heading = "\nTo mend it (as root where needed):\n";
	int code;

	for (unsigned int i = 0; i < d->n; i++) {
		const struct finding *f = &d->findings[i];

		cli_line(t);
		cli_text(t, D_STATE, states[f->state]);
		cli_paint(t, D_STATE,
			  colours[f->state == DOCTOR_MISSING && !f->needed ? DOCTOR_LIMITED
									   : f->state]);
		cli_text(t, D_CHECK, f->check);
		cli_text(t, D_FINDING, f->text);
		cli_bool(t, D_NEEDED, f->needed);
		if (f->mend[0])
			cli_text(t, D_MEND, f->mend);
	}
	code = cli_table_print(t, false);
	for (unsigned int i = 0; i < d->n && !cli.json; i++) {
		if (!d->findings[i].mend[0])
			continue;
		printf("%s  %-18s %s\n", heading, d->findings[i].check, d->findings[i].mend);
		heading = "";
	}
	return fflush(stdout) != 0 ? CLI_FAILED : code;
}

static int run_doctor(int argc, char **argv)
{
	static const struct option longs[] = {CLI_COMMON_LONG};
	static struct doctor d;
	int code = CLI_OK, missing = 0;

	while (cli_option(&cli_doctor, argc, argv, CLI_COMMON_SHORT, longs) != -1)
		;
	cli_arguments(&cli_doctor, argc, 0, 0);
	checks_backends(&d);
	checks_kernel(&d);
	checks_limits(&d);
	checks_broker(&d);
	if (!cli.quiet)
		code = print(&d);
	for (unsigned int i = 0; i < d.n; i++) {
		if (!d.findings[i].needed || d.findings[i].state != DOCTOR_MISSING)
			continue;
		missing++;
		if (!cli.json)
			cli_fail(CLI_FAILED, "%s: %s", d.findings[i].check, d.findings[i].text);
	}
	return missing > 0 ? CLI_FAILED : code;
}

const struct cli_verb cli_doctor = {
	.name = "doctor",
	.args = "",
	.summary = "what this machine can do for Pando, and what mends it",
	.help = "Looks at the kernel, the memory, the limits and the broker, and prints for each "
		"capability whether\n"
		"it is ok, limited or missing, what that means, and the command that mends it. "
		"Changes nothing.\n"
		"The exit status is 1 if something is missing that Pando cannot do without.\n",
	.run = run_doctor,
};
