/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Injection points: named places where a test may kill, stop or fail this process.
 *
 * Compiled out unless the build has -Dinjection=true. A point costs one load when it is compiled in
 * and no point is armed. Points are armed by the environment when the process starts:
 *
 *	PANDO_INJECT="broker.open.committed=kill,store.put=stop@3"
 *
 * with the actions kill (SIGKILL to itself), stop (SIGSTOP to itself), nap (this thread sleeps for
 * 100 ms), fail (PANDO_INJECT_FAIL yields true) and abort; "@N" fires at the Nth passage only
 * (default: the first). Names are component.operation.step.
 *
 * Processes that are started again inherit the list. If $PANDO_INJECT_ONCE names a file, passages
 * count only while it exists, and whoever fires removes it: one death in all, whenever the test
 * makes the file.
 */
#ifndef PANDO_COMMON_INJECT_H
#define PANDO_COMMON_INJECT_H

#include <stdbool.h>

#ifdef PANDO_INJECTION
bool pando__inject(const char *name);
/* Arms these points in place of all others, in the form above: for tests that fork. */
void pando__inject_arm(const char *list);
#define PANDO_INJECT(name) ((void)pando__inject(name))
#define PANDO_INJECT_FAIL(name) pando__inject(name)
#else
#define pando__inject_arm(list) ((void)(list))
#define PANDO_INJECT(name) ((void)0)
#define PANDO_INJECT_FAIL(name) false
#endif

#endif
