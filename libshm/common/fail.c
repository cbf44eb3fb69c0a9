/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The thread's last failure.
 *
 * Kept in a fixed buffer of the thread, so that recording a failure can itself not fail, needs no
 * memory and works after fork() and in the preload shim. Nothing here clears it: a caller looks at
 * it after a call has returned an error, and only then.
 */
#include "common/fail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "config.h"

static _Thread_local char last[PANDO__ERROR_MAX];

int pando__fail(int err, const char *fmt, ...)
{
	int saved = errno;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(last, sizeof(last), fmt, ap);
	va_end(ap);
	errno = saved;
	return -err;
}

const char *pando_strerror_last(void)
{
	return last;
}

const char *pando_version(void)
{
	return PANDO_VERSION;
}
