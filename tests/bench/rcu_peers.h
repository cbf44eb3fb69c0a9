/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * liburcu's flavours for bench_rcu.c: two headers of one library that cannot be included together, so
 * rcu_peer.c is compiled once for each. With _LGPL_SOURCE, that is with its read side inline.
 */
#ifndef PANDO_BENCH_RCU_PEERS_H
#define PANDO_BENCH_RCU_PEERS_H

/* The calling thread becomes a reader, and ceases to be one. */
void memb_begin(void);
void memb_end(void);
void qsbr_begin(void);
void qsbr_end(void);
/* n read sections with a load of *pointer. Nanoseconds for each. */
double memb_pairs(unsigned int n, void **pointer);
double qsbr_pairs(unsigned int n, void **pointer);

#endif
