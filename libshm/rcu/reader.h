/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Readers and retired objects of this process: what the modules of libshm/rcu and the rest of libshm
 * ask of each other.
 */
#ifndef PANDO_RCU_READER_H
#define PANDO_RCU_READER_H

#include <pthread.h>

#include <pando/rcu.h>

#include "grace.h"

struct pando__seat;
struct pando__retired; /* retire.c */

/* In struct pando_region, where struct pando__gates has `reading`. */
struct pando__rcu_gate {
	const struct pando__read_gate *reading; /* never NULL */
	struct pando__seat *seat; /* NULL: none yet; reader.c, under its lock */
};
#define PANDO__RCU_GATE_AT offsetof(struct pando__gates, reading)

static inline struct pando__rcu_gate *pando__rcu_gate(struct pando_region *r)
{
	return (struct pando__rcu_gate *)(void *)((char *)r + PANDO__RCU_GATE_AT);
}

/* What this process has of one region, from its first reader or retired object on. */
struct pando__seat {
	uint64_t serial; /* no other seat of this process has it */
	struct pando__seat *next;
	struct pando__wiped *wiped; /* reader.c */
	struct pando__rcu_view view;
	struct pando__slot *page; /* the own one */
	uint32_t slot;
	uint64_t generation;
	bool fenced; /* this process's readers have fences */

	/* reader.c, under its lock. */
	uint64_t own_used; /* bitmap: readers of the own page */
	struct pando__more {
		uint32_t page;
		uint64_t used;
	} * more; /* pages of readers that this client has taken */
	uint32_t more_count;

	pthread_mutex_t retire_lock;
	struct pando__retired *retired; /* NULL: never anything. Under retire_lock */
};

/* Given by libshm: where the region's parts are, and who we are in it. */
struct pando__rcu_place {
	const struct pando__ledger *ledger;
	char *slots;
	uint32_t slot;
	uint64_t generation;
	bool readonly;
};
/*
 * slot_needed: waits, in a forked child, for the broker's answer. 0, or a negative errno with a
 * sentence.
 */
int pando__region_rcu_place(struct pando_region *r, struct pando__rcu_place *place,
			    bool slot_needed);

/* reader.c */
void pando__rcu_gate_init(struct pando__rcu_gate *gate);
/* The region is about to be unmapped here. Its slot is given back afterwards, with what is retired. */
void pando__rcu_gate_close(struct pando__rcu_gate *gate);
/* In the child of a fork(): forgets the parent's seat without touching shared memory. */
void pando__rcu_gate_forked(struct pando__rcu_gate *gate);
/* The seat of r, made on first use. NULL with *rc and a sentence. */
struct pando__seat *pando__rcu_seat(struct pando_region *r, int *rc);
/* How deep the calling thread is in read sections of r. */
unsigned int pando__read_depth(struct pando_region *r);

/* synchronize.c: the same with the view at hand, and without the check for EDEADLK. */
int pando__synchronize(const struct pando__rcu_view *v, int timeout_ms);

/* retire.c: frees the list, not what is in it. */
void pando__retired_free(struct pando__retired *list);

/*
 * retire.c, for a structure whose writers may be killed, and which has intents of its own: in place of
 * pando_retire(), in four steps, of which only the second may be taken with its lock held.
 *
 *	_prepare	n objects will be retired at most: places on the list, and the count in the own
 *			slot page, which makes the broker wait for a grace period
 *	_fits		may so many bytes more wait? If not: _list() none, and _room() without the lock
 *	...		the objects become this client's: pando__object_withdraw()
 *	_list		those that did are entered, the other places are given back; frees what can be freed
 */
int pando__retire_prepare(struct pando_region *r, uint32_t n, struct pando__seat **seat);
bool pando__retire_fits(struct pando__seat *s, uint64_t bytes);
void pando__retire_list(struct pando_region *r, struct pando__seat *s, void *const *objects,
			const uint64_t *bytes, uint32_t n, uint32_t promised);
/* Sees to it that `bytes` more may wait. 0; -EAGAIN (nowait) or another errno, with a sentence. */
int pando__retire_room(struct pando_region *r, struct pando__seat *s, uint64_t bytes, bool nowait);

#endif
