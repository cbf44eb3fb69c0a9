/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An allocator under load.c: one of these in each program, so that no peer's malloc() takes the
 * place of another's.
 *
 * PEER_PANDO and PEER_BOOST are heaps in shared memory: their workers are processes, and what one
 * allocates another one frees. The others are private: their workers are threads.
 */
#ifndef PANDO_BENCH_PEER_H
#define PANDO_BENCH_PEER_H

#include <stddef.h>

#define PEER_BYTES (1ull << 30) /* of a heap in shared memory */

#if defined(PEER_PANDO)

#include <stdio.h>
#include <stdlib.h>

#include <pando/heap.h>
#include <pando/pando.h>

#define PEER_NAME "pando"
#define PEER_PROCESSES 1
static struct pando_region *peer_region;

static void peer_must(int ok)
{
	if (ok)
		return;
	fprintf(stderr, "load-pando: %s\n", pando_strerror_last());
	exit(2);
}

/* BENCH_COMMITTED: a region whose memory is there from the start. */
static inline void peer_init(void)
{
	struct pando_region_options o = {.size = PEER_BYTES};
	struct pando *p;

	peer_must(pando_connect(&p, NULL) >= 0);
	peer_must(pando_region_open(p, "bench",
				    PANDO_CREATE | PANDO_TRANSIENT |
					    (getenv("BENCH_COMMITTED") ? 0 : PANDO_HEAP),
				    &o, &peer_region) >= 0);
}

/* In each worker. */
static inline void peer_join(void)
{
	peer_must(pando_self(peer_region) != 0);
}

#define peer_alloc(size) pando_alloc(peer_region, size)
#define peer_free(p) pando_free(peer_region, p)

#elif defined(PEER_BOOST)

#define PEER_NAME "boost"
#define PEER_PROCESSES 1
void peer_init(void);
void *peer_alloc(size_t size);
void peer_free(void *p);
static inline void peer_join(void)
{
}

#else /* malloc() of what the program is linked with */

#include <stdlib.h>

#if defined(PEER_JEMALLOC)
#define PEER_NAME "jemalloc"
#elif defined(PEER_MIMALLOC)
#define PEER_NAME "mimalloc"
#include <mimalloc.h>
#else
#define PEER_NAME "glibc"
#endif
#define PEER_PROCESSES 0
static inline void peer_init(void)
{
}
static inline void peer_join(void)
{
}
#if defined(PEER_MIMALLOC)
#define peer_alloc(size) mi_malloc(size)
#define peer_free(p) mi_free(p)
#else
#define peer_alloc(size) malloc(size)
#define peer_free(p) free(p)
#endif

#endif
#endif
