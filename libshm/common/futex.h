/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Futexes shared between processes. A waiter may have the word mapped read-only: waiting needs no
 * right to write. The key is the file and the offset, so it works whatever the mapping's address.
 */
#ifndef PANDO_COMMON_FUTEX_H
#define PANDO_COMMON_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Sleeps while *word == seen, at most until `timeout` (relative, NULL: for ever). Returns 0 (woken,
 * or for no reason at all: the caller looks again), -EAGAIN (*word differs), -ETIMEDOUT or -EINTR.
 */
static inline int pando__futex_wait(const uint32_t *word, uint32_t seen,
				    const struct timespec *timeout)
{
	return syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout, NULL, 0) == 0 ? 0 : -errno;
}

/* Wakes up to n waiters of all processes; returns how many. */
static inline int pando__futex_wake(uint32_t *word, int n)
{
	return (int)syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
}

#endif
