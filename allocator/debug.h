/* SPDX-License-Identifier: BSD-2-Clause */
/* The debug form of a front. See debug.c. */
#ifndef PANDO_ALLOCATOR_DEBUG_H
#define PANDO_ALLOCATOR_DEBUG_H

#include "front.h"

#define PANDO__DEBUG_POISON 0x1u
#define PANDO__DEBUG_REDZONE 0x2u
#define PANDO__DEBUG_SITES 0x4u
#define PANDO__DEBUG_ALL 0x7u

/* What $PANDO_HEAP_DEBUG asks for; 0: nothing. */
unsigned int pando__debug_options(void);
/* Sets f->debug, and the heap's mark if that is not 0. 0 or -ENOMEM. */
int pando__debug_begin(struct pando__front *f);
/* The front goes, or has gone by a fork(). */
void pando__debug_end(struct pando__front *f);

/* How many bytes to allocate for an object of `size`. */
size_t pando__debug_room(size_t size);
/* The block at p, of at least pando__debug_room(size) bytes, becomes an object of `size`. */
void pando__debug_made(struct pando__front *f, void *p, size_t size, const void *site);

/*
 * In any process: *size, a block's, becomes that of the object that was asked for, if it was made by
 * a debug front. False if it was not.
 */
bool pando__debug_size(const struct pando__view *v, uint64_t offset, uint64_t *size);
/*
 * False if something wrote beyond the end of the object. own_private: it is private and lies in a
 * span of this front.
 */
bool pando__debug_whole(struct pando__front *f, const void *p, bool own_private);
/* It is about to be freed. own: in a span of this front. */
void pando__debug_freeing(struct pando__front *f, void *p, bool own, const void *site);
/* What is known of the object there, for a sentence, or "". */
void pando__debug_tell(const struct pando__front *f, const void *p, char *text, size_t size);
/* annotate.c: for AddressSanitizer and Valgrind, */
void pando__mem_permit(const void *at, uint64_t n);
void pando__mem_forbid(const void *at, uint64_t n);
/* and for Valgrind alone. */
void pando__mem_defined(const void *at, uint64_t n);
void pando__mem_undefined(const void *at, uint64_t n);
void pando__mem_noaccess(const void *at, uint64_t n);
/* Sanitizers allow everything there again. */
void pando__debug_permit(const struct pando__front *f, uint64_t offset, uint64_t length);
/* These pages are not this client's any more. */
void pando__debug_leaving(struct pando__front *f, uint64_t offset, uint64_t length);

#endif
