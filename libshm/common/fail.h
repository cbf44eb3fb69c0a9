/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Recording a failure: the number for the program, the sentence for the person.
 *
 *	return pando__fail(EADDRINUSE, "address 0x%llx is taken by region \"%s\"", addr, other);
 *
 * sets the thread's sentence and returns -EADDRINUSE. Sentences begin with a lower-case letter,
 * have no full stop at the end, name the value, and say what to do where that is not obvious.
 */
#ifndef PANDO_COMMON_FAIL_H
#define PANDO_COMMON_FAIL_H

#include <pando/error.h>

#define PANDO__ERROR_MAX 320 /* bytes of a sentence, with its NUL; longer ones are cut */

/* err: a positive errno. Returns -err. Keeps errno. */
int pando__fail(int err, const char *fmt, ...) PANDO_PRINTF(2, 3);

#endif
