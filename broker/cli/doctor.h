/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando doctor's findings.
 *
 * A check looks at one thing and reports it with found(), once. Checks change nothing and leave
 * nothing behind. checks_*() are groups, run in order of the list that people see.
 */
#ifndef PANDO_CLI_DOCTOR_H
#define PANDO_CLI_DOCTOR_H

#include <stdbool.h>

#include <pando/pando.h>

enum doctor_state {
	DOCTOR_OK, /* works */
	DOCTOR_LIMITED, /* works in part, or up to a limit that somebody may meet */
	DOCTOR_MISSING, /* is not there; Pando falls back, or, if it is needed, does not work */
};

struct doctor;

/*
 * finding: one sentence of what was found and what it means. mend: the exact command that mends it,
 * or NULL.
 */
void found(struct doctor *d, const char *check, bool needed, enum doctor_state state,
	   const char *mend, const char *finding, ...) PANDO_PRINTF(6, 7);

void checks_backends(struct doctor *d);
void checks_kernel(struct doctor *d);
void checks_limits(struct doctor *d);
void checks_broker(struct doctor *d);

#endif
