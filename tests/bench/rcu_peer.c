/* SPDX-License-Identifier: BSD-2-Clause */
/* One of liburcu's flavours: -DPEER_MEMB or -DPEER_QSBR. See rcu_peers.h. */
#define _LGPL_SOURCE
#include "rcu_peers.h"

#include <stdint.h>
#include <time.h>

#ifdef PEER_MEMB
#include <urcu/urcu-memb.h>
#define NAME(what) memb_##what
#define FLAVOUR(what) urcu_memb_##what
#define EACH(i) ((void)0)
#else
#include <urcu/urcu-qsbr.h>
#define NAME(what) qsbr_##what
#define FLAVOUR(what) urcu_qsbr_##what
#define EACH(i) (((i)&1023u) == 0 ? FLAVOUR(quiescent_state)() : (void)0)
#endif

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void NAME(begin)(void)
{
	FLAVOUR(register_thread)();
}

void NAME(end)(void)
{
	FLAVOUR(unregister_thread)();
}

double NAME(pairs)(unsigned int n, void **pointer)
{
	const uint64_t begun = now_ns();

	for (unsigned int i = 0; i < n; i++) {
		void *volatile seen;

		FLAVOUR(read_lock)();
		seen = __atomic_load_n(pointer, __ATOMIC_CONSUME);
		(void)seen;
		FLAVOUR(read_unlock)();
		EACH(i);
	}
	return (double)(now_ns() - begun) / n;
}
