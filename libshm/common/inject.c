/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Injection points: the armed list is read once from $PANDO_INJECT.
 *
 * The list is a process-wide string that is parsed at every armed passage; that is slow and simple,
 * and only test builds have it. Passages are counted per process, from its start (a forked child
 * goes on counting from its parent's numbers).
 */
#include "common/inject.h"

#ifdef PANDO_INJECTION

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/atomic.h"

#define MAX_ARMED 16

static struct armed {
	char name[64];
	char action[8];
	unsigned long at; /* fires at this passage, counted from 1 */
	unsigned long seen;
} armed[MAX_ARMED];
static unsigned int armed_count;
static const char *once; /* path; NULL: points always count */

void pando__inject_arm(const char *list)
{
	char copy[1024], *save = NULL;

	armed_count = 0;
	if (strlen(list) >= sizeof(copy))
		return;
	strcpy(copy, list);
	for (char *item = strtok_r(copy, ",", &save); item && armed_count < MAX_ARMED;
	     item = strtok_r(NULL, ",", &save)) {
		char *equals = strchr(item, '='), *at = strchr(item, '@');
		struct armed *a = &armed[armed_count];

		if (!equals || (size_t)(equals - item) >= sizeof(a->name))
			continue;
		*equals = '\0';
		a->seen = 0;
		a->at = at ? strtoul(at + 1, NULL, 10) : 1;
		if (at)
			*at = '\0';
		if (strlen(equals + 1) >= sizeof(a->action))
			continue;
		strcpy(a->name, item);
		strcpy(a->action, equals + 1);
		armed_count++;
	}
}

__attribute__((constructor)) static void arm(void)
{
	const char *list = secure_getenv("PANDO_INJECT");

	once = secure_getenv("PANDO_INJECT_ONCE");
	if (list)
		pando__inject_arm(list);
}

bool pando__inject(const char *name)
{
	const struct timespec nap = {.tv_nsec = 100000000};

	for (unsigned int i = 0; i < armed_count; i++) {
		struct armed *a = &armed[i];

		if (strcmp(a->name, name) != 0 || (once && access(once, F_OK) != 0) ||
		    pando__add_relaxed(&a->seen, 1) + 1 != a->at || (once && unlink(once) != 0))
			continue;
		if (strcmp(a->action, "kill") == 0)
			kill(getpid(), SIGKILL);
		else if (strcmp(a->action, "stop") == 0)
			kill(getpid(), SIGSTOP);
		else if (strcmp(a->action, "nap") == 0)
			(void)nanosleep(&nap, NULL);
		else if (strcmp(a->action, "abort") == 0)
			abort();
		else if (strcmp(a->action, "fail") == 0)
			return true;
	}
	return false;
}

#else
/* ISO C wants a declaration in every file. */
typedef int pando__inject_is_compiled_out;
#endif
