/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A model of a heap beside the heap: random operations by several workers, each of which knows of
 * every object it has what the heap should say of it: size, content, state, holder.
 *
 * A worker is a process, or a thread; workers of one client or of several. They work on the same
 * heap, and hand objects on to each other in every way that there is:
 *
 *	box	a ring from each worker to each other one: private objects, which the receiver frees
 *		or resizes although they are not its own, and objects given by pando_transfer()
 *	pool	shared objects, for whoever takes them
 *
 * Every object is filled with a pattern of its own number and looked at again before it changes
 * hands, size, or goes: an object that overlaps another one, or that is handed out twice, cannot
 * keep it. Now and then all workers stop (audits), and what the heap counts must be what the model
 * has. Wrong frees are tried in between, where their outcome is certain.
 *
 * In the end everything is freed and trimmed.
 */
#ifndef PANDO_TESTS_HEAP_MODEL_H
#define PANDO_TESTS_HEAP_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include <pando/pando.h>
#include <pando/heap.h>

#define MODEL_WORKERS 8u
#define MODEL_BOX 64u
#define MODEL_POOL 512u

struct model_item {
	void *p;
	uint32_t size;
	uint32_t number; /* its content */
	uint32_t holding; /* enum pando_holding */
	pando_holder owner; /* private, held */
};

struct model_box {
	uint64_t head, tail; /* written by the sender, by the receiver */
	struct model_item at[MODEL_BOX];
};

struct model_slot {
	uint32_t state; /* 0 empty, 1 being changed, 2 full; by compare-and-swap */
	struct model_item item;
};

struct model_total {
	uint64_t operations, misuses, remote, transfers, shares, reallocs, refused;
} __attribute__((aligned(64)));

/* In memory that all workers share, zero but for what is set here. */
struct model {
	unsigned int workers;
	uint64_t operations; /* of each worker */
	uint64_t seed;
	unsigned int audits;
	uint64_t bytes_max; /* that a worker has at most, about */
	bool sequential; /* one thread for each client: what a free does at once can be told */
	bool may_fail; /* the region is too small: NULL is an answer */

	uint32_t failed;
	pando_holder holder[MODEL_WORKERS];
	uint32_t arrived, round; /* at the barrier */
	uint64_t live[MODEL_WORKERS][4]; /* items that a worker has, by holding; at audits */
	struct model_total total[MODEL_WORKERS];
	struct model_box box[MODEL_WORKERS][MODEL_WORKERS]; /* [to][from] */
	struct model_slot pool[MODEL_POOL];
};

/*
 * Does worker `me`'s part, on r, and returns when all have done theirs, the heap is empty of what
 * they had, and what they keep for speed is given back. A failure prints a line and ends the process
 * with status 99.
 */
void model_work(struct model *m, unsigned int me, struct pando_region *r);
/* One JSON line: what was done. */
void model_print(const struct model *m, const char *name, double seconds);
/* The handler that model_work() needs: to be set with pando_heap_on_misuse() before. */
void model_misused(struct pando_region *r, const void *p, enum pando_misuse what,
		   const char *sentence, void *arg);

#endif
