/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A writer that would notice a lost write: it has the last CPU to itself, makes
 * no system call, and counts up in each of its pages, remembering in memory of
 * its own what each should hold. If the kernel takes a page away (to swap it
 * out, to move it) while this CPU still writes to the old frame, the count goes
 * back: the writer sees it at its next turn, and the parent in the end.
 */
#ifndef SELFTESTS_PINNED_H
#define SELFTESTS_PINNED_H

#include "harness.h"

#define PINNED_PAGES 64

struct pinned {
	uint64_t turns;
	uint64_t lost;	 /* turns that found less than was written */
	uint64_t expected, found; /* at the first of these */
	int stop;
	int stopped;
	uint64_t count[PINNED_PAGES];
};

static inline void pinned_loop(struct pinned *p, char *base)
{
	unsigned int k;

	while (!LOAD(&p->stop)) {
		for (k = 0; k < PINNED_PAGES; k++) {
			volatile uint64_t *word = (uint64_t *)(base + k * PAGE);
			uint64_t v = *word;

			if (v != p->count[k]) {
				if (!p->lost++) {
					p->expected = p->count[k];
					p->found = v;
				}
				p->count[k] = v;
			}
			*word = v + 1;
			p->count[k] = v + 1;
		}
		ADD(&p->turns, 1);
	}
	STORE(&p->stopped, 1);
}

/* Starts the writer in a process of its own; the parent stays on the first CPU. */
static inline pid_t pinned_start(struct pinned *p, char *base)
{
	pid_t pid;

	need_cpus(2);
	pin_cpu(0);
	pid = xfork();
	if (!pid) {
		pin_cpu(cpus() - 1);
		pinned_loop(p, base);
		_exit(0);
	}
	WAIT_FOR(LOAD(&p->turns) > 10, 20);
	return pid;
}

/* Lets the writer go round at least once more. */
static inline void pinned_turn(struct pinned *p)
{
	uint64_t from = LOAD(&p->turns);

	WAIT_FOR(LOAD(&p->turns) > from + 1, 20);
}

static inline void pinned_end(struct pinned *p, pid_t pid, char *base)
{
	unsigned int k;

	STORE(&p->stop, 1);
	JOIN(pid);
	diag("%lu turns of the writer, %lu writes lost", p->turns, p->lost);
	CHECK(!p->lost, "a page held %lu after %lu was written", p->found, p->expected);
	for (k = 0; k < PINNED_PAGES; k++)
		CHECK_EQ(*(volatile uint64_t *)(base + k * PAGE), p->count[k]);
}

#endif
