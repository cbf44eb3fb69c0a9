/* SPDX-License-Identifier: BSD-2-Clause */
/* Threads of a cmocka test, which must not assert anything themselves: they return a complaint or NULL. */
#ifndef PANDO_TESTS_RUN_THREADS_H
#define PANDO_TESTS_RUN_THREADS_H

#include <pthread.h>

/* Waits for `count` threads; fails if one has a complaint. */
static inline void join_threads(const pthread_t *threads, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		void *said;

		pthread_join(threads[i], &said);
		if (said)
			print_error("%s\n", (char *)said);
		assert_null(said);
	}
}

#endif
