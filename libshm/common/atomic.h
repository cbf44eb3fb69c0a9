/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Atomics. The one header that names memory orders: elsewhere the order stands in the operation's
 * name. The operands are plain integers, so that the structs in shared memory have one layout in C
 * and C++ and for every compiler.
 */
#ifndef PANDO_COMMON_ATOMIC_H
#define PANDO_COMMON_ATOMIC_H

#define pando__load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define pando__load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define pando__store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define pando__store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define pando__add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define pando__add_acq_rel(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL)
#define pando__or_acq_rel(p, v) __atomic_fetch_or((p), (v), __ATOMIC_ACQ_REL)
#define pando__and_acq_rel(p, v) __atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL)
#define pando__exchange_acq_rel(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
/*
 * Where two sides each store to one word and then load the other's, and one of them must see the
 * other: no weaker order does.
 */
#define pando__load_seq_cst(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define pando__store_seq_cst(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define pando__add_seq_cst(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define pando__or_seq_cst(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define pando__and_seq_cst(p, v) __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
#define pando__exchange_seq_cst(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define pando__cas_seq_cst(p, expected, v)                                                         \
	__atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
/* *expected is replaced by what was found when the exchange fails. */
#define pando__cas_acq_rel(p, expected, v)                                                         \
	__atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
/* The compiler keeps the order; that processors do is somebody else's membarrier(2). */
#define pando__compiler_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

#endif
