/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The books of the kill campaign: what each process believes to have, in plain shared memory, beside
 * the heap that is put to the test.
 *
 * A worker's private objects stand in a table of its own. Objects that others may have, too, stand
 * in common tables, whose entries change by compare-and-swap of one word {state, process}:
 *
 *	NONE --claim--> CLAIMED by p --object shared or given--> SHARED, or HELD by a worker
 *	SHARED, HELD --claim--> CLAIMED by p --freed--> NONE
 *	NONE --claim--> CLAIMED by p --> LENT by p: its private object, which others may free
 *
 * So a claim by a process that was killed says that its object may be in either state, and the heap
 * is asked which. All other entries must agree with the heap, to the byte, whenever nobody is at
 * work.
 */
#ifndef PANDO_TESTS_CRASH_SHADOW_H
#define PANDO_TESTS_CRASH_SHADOW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define WORKERS_MAX 200u
#define THREADS_MAX 4u
#define OWN_MAX 96u /* private objects of each thread */
#define COMMON_MAX 4096u

enum { COMMON_NONE, COMMON_CLAIMED, COMMON_SHARED, COMMON_HELD, COMMON_LENT };

struct own {
	uint64_t offset; /* 0: none */
	uint64_t bytes;
};

struct common {
	/* State in the low byte; then the claiming pid, or the holder's worker + 1. */
	uint64_t word;
	uint64_t offset, bytes; /* written by who has claimed it */
	uint64_t holder; /* HELD, LENT: pando_holder of the worker */
	/* What was done with it last, for when something is wrong: line, process, round. */
	struct {
		uint32_t line, round;
		uint64_t who, offset;
	} history[8];
	uint32_t events;
};
#define COMMON_WORD(state, who) ((uint64_t)(state) | (uint64_t)(who) << 8)
#define COMMON_STATE(word) ((unsigned int)((word)&0xff))
#define COMMON_WHO(word) ((uint32_t)((word) >> 8))

struct thread_book {
	struct own own[OWN_MAX];
	uint32_t frozen; /* the freeze that it has seen */
	uint32_t reserved;
	uint64_t operations, waited_ns_max, slow_ns_max;
	uint64_t forked_ns_max; /* as waited, while a thread of the same process was in fork() */
	uint64_t delayed_ns_max; /* in one operation, waiting for a processor */
	char slowest[24];
};

struct worker_book {
	pid_t pid; /* 0: not there */
	uint32_t ready; /* attached */
	uint32_t immortal;
	uint32_t killed; /* by the campaign: it will be dead, whatever it still looks like */
	uint32_t slot;
	uint64_t holder; /* pando_self() */
	/* What the spawner was asked for. */
	uint64_t seed;
	char inject[64]; /* "" or point=kill@n */
	int status; /* of the last one's end */
	struct thread_book thread[THREADS_MAX];
};

struct shadow {
	char address[108];
	uint64_t base;
	uint32_t workers, threads;
	uint32_t pace_us; /* sleep that long after an operation, on average; 0: not at all */
	uint32_t round;
	uint32_t freeze; /* odd: everybody stops between two operations */
	uint32_t finish; /* free everything and exit */
	uint32_t misuses;
	char misuse[200];
	uint64_t children_born;
	uint64_t out_of_memory;
	struct worker_book worker[WORKERS_MAX];
	struct common common[COMMON_MAX];
};

extern struct shadow *shadow;

static inline void common_note(struct common *c, int line, uint64_t who)
{
	uint32_t n = c->events++ % 8;

	c->history[n].line = (uint32_t)line;
	c->history[n].round = shadow->round;
	c->history[n].who = who;
	c->history[n].offset = c->offset;
}

/* worker.c: a worker's life. Does not return. */
void worker_run(unsigned int index) __attribute__((noreturn));
/* In the process that forks workers. Reads their numbers from fd until that ends. */
void spawner_run(int fd) __attribute__((noreturn));

#endif
