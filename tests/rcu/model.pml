/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The algorithm of libshm/rcu/grace.c for Spin: one object at a time behind one pointer, writers that
 * replace it and free the old one, readers that follow the pointer. Spin visits every interleaving.
 *
 * x86-64's one freedom is modelled: a reader's stores to its section wait in a buffer, first in first
 * out, while its later loads are executed; the buffer drains at any time (process `drain`), and all of
 * it when membarrier() interrupts the reader, when its thread makes a system call or executes a
 * locked instruction. Writers' stores are read-modify-writes or followed by membarrier(): no buffer.
 *
 * Checked: no reader uses an object that has been freed (assert); nobody sleeps for ever (no invalid
 * end state: a writer that nobody wakes is one). A reader may be killed anywhere; the broker then
 * takes it out and wakes those who wait. A writer may be killed anywhere.
 *
 * Variants, each a mistake that must be found, so that the model is known to be able to find one:
 *	NO_BARRIER		writers do not call membarrier() before they look
 *	NO_SECOND_BARRIER	nor between asking to be woken and looking again
 *	NO_WAKE_BY_BROKER	the broker does not wake anybody when a reader has been killed
 *	ONE_BIT			the counter has one bit, and is flipped once
 *	LOWERED			who waits for less lowers what is asked for
 */
#ifndef READERS
#define READERS 2
#endif
#ifndef WRITERS
#define WRITERS 1
#endif
#ifndef SECTIONS
#define SECTIONS 2
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

#define OBJECTS (WRITERS * ROUNDS + 1)

byte pointer = 0; /* the object that readers find */
bool freed[OBJECTS];
byte used = 1; /* objects 0..used-1 have been made */
byte grace = 1;
byte waiting = 0; /* target that is asked for */
byte done_up_to = 0;
bool dead[READERS]; /* the ledger says so */
bool asleep[WRITERS];
byte section[READERS]; /* in memory; 0: outside */
byte killed = 0;

/* A reader's store buffer: up to 4 stores of `section`. */
byte buffer[READERS * 4];
byte stores[READERS];

inline push(r, value) {
	d_step {
		stores[r] < 4 -> /* else it waits until one has drained */
		buffer[r * 4 + stores[r]] = value;
		stores[r]++
	}
}

inline drain_one(r) {
	d_step {
		section[r] = buffer[r * 4];
		buffer[r * 4] = buffer[r * 4 + 1];
		buffer[r * 4 + 1] = buffer[r * 4 + 2];
		buffer[r * 4 + 2] = buffer[r * 4 + 3];
		buffer[r * 4 + 3] = 0;
		stores[r]--
	}
}

inline drain_all(r) {
	d_step {
		if
		:: stores[r] > 0 -> section[r] = buffer[r * 4 + stores[r] - 1]
		:: else
		fi;
		stores[r] = 0;
		buffer[r * 4] = 0;
		buffer[r * 4 + 1] = 0;
		buffer[r * 4 + 2] = 0;
		buffer[r * 4 + 3] = 0
	}
}

/* One processor after another, in any order with all that the others do. */
inline membarrier(i) {
	do
	:: atomic { i < READERS -> drain_all(i); i++ }
	:: atomic { i == READERS -> i = 0; break }
	od
}

#ifdef ONE_BIT
#define NEXT(g) (3 - (g))
#define OLD(s, target) ((s) != 0 && (s) != (target))
#else
#define NEXT(g) ((g) + 1)
#define OLD(s, target) ((s) != 0 && (s) < (target))
#endif

/* FUTEX_WAKE: all who sleep now. Who sleeps is woken by nothing else, whatever the word says. */
inline wake_all() {
	d_step {
		asleep[0] = false;
#if WRITERS > 1
		asleep[1] = false
#endif
	}
}

byte readers_left = READERS;

inline may_die() {
	if
	:: atomic { killed < DEATHS -> killed++ ; goto die }
	:: true
	fi
}

proctype drain(byte r) {
	do
	:: atomic { stores[r] > 0 -> drain_one(r) }
	:: stores[r] == 0 && readers_left == 0 -> break
	od
}

proctype reader(byte r) {
	byte g, p, n = 0;

	do
	:: n == SECTIONS -> goto out
	:: n < SECTIONS ->
		atomic { n++; g = grace } /* R1 */
		push(r, g); /* R2 */
		may_die();
		p = pointer; /* R3 */
		may_die();
		atomic { assert(!freed[p]); p = 0; push(r, 0) } /* last use, R4 */
		may_die();
		if /* R5 */
		:: atomic {
			waiting != 0 && OLD(g, waiting) ->
			drain_all(r); /* the exchange is a locked instruction */
			waiting = 0
		}
			may_die();
			wake_all()
		:: atomic { !(waiting != 0 && OLD(g, waiting)) -> g = 0 }
		fi;
		g = 0
	od;
die:
	/* The broker: stores that have been executed become visible; then the ledger, then the word. */
	atomic { drain_all(r); dead[r] = true }
#ifndef NO_WAKE_BY_BROKER
	waiting = 0;
	wake_all();
#endif
	skip;
out:
	atomic { g = 0; p = 0; readers_left-- }
}

/* 1: a reader is in the way of target, from reader i on. */
inline scan(i, target, blocked) {
	do
	:: atomic { i == READERS -> blocked = false; break }
	:: atomic { i < READERS && (dead[i] || !OLD(section[i], target)) -> i++ }
	:: atomic { i < READERS && !dead[i] && OLD(section[i], target) -> blocked = true; break }
	od
}

proctype writer(byte me) {
	byte old, mine, target, asked, i, b, n = 0;
	bool blocked;

	do
	:: n == ROUNDS -> break
	:: n < ROUNDS ->
		n++;
		d_step { mine = used; used++ }
		d_step { old = pointer; pointer = mine } /* W1: an exchange */
		d_step { grace = NEXT(grace); target = grace } /* W2 */
#ifndef NO_BARRIER
		membarrier(b); /* W3 */
#endif
		i = 0;
		do
		:: true ->
			scan(i, target, blocked); /* W4 */
			if
			:: !blocked -> break
			:: blocked
			fi;
			d_step {
				if
#ifdef LOWERED
				:: true -> waiting = target; asked = target
#else
				:: waiting < target -> waiting = target; asked = target
				:: else -> asked = waiting
#endif
				fi
			}
#ifndef NO_SECOND_BARRIER
			membarrier(b);
#endif
			scan(i, target, blocked);
			if
			:: !blocked -> break
			:: blocked
			fi;
			/* FUTEX_WAIT: sleeps if the word is still what it was. */
			if
			:: atomic { waiting == asked -> asleep[me] = true }
			:: atomic { waiting != asked -> skip }
			fi;
			!asleep[me]
		od;
		skip;
		d_step {
			if
			:: done_up_to < target -> done_up_to = target
			:: else
			fi
		}
		freed[old] = true; /* W5 */
		asked = 0;
		i = 0
	od
}

init {
	byte k = 0;

	atomic {
		do
		:: k < READERS -> run reader(k); run drain(k); k++
		:: else -> break
		od;
		k = 0;
		do
		:: k < WRITERS -> run writer(k); k++
		:: else -> break
		od
	}
}
