/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is used of the private jemalloc 5.3.0 (see build in this folder): its names, with the prefix
 * that they have here. The types repeat jemalloc's own, which the packaged header may lack.
 */
#ifndef PANDO_ALLOCATOR_JEMALLOC_PRIVATE_H
#define PANDO_ALLOCATOR_JEMALLOC_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct pando__je_hooks pando__je_hooks;
struct pando__je_hooks {
	void *(*alloc)(pando__je_hooks *, void *new_addr, size_t size, size_t alignment, bool *zero,
		       bool *commit, unsigned int arena);
	bool (*dalloc)(pando__je_hooks *, void *addr, size_t size, bool committed,
		       unsigned int arena);
	void (*destroy)(pando__je_hooks *, void *addr, size_t size, bool committed,
			unsigned int arena);
	bool (*commit)(pando__je_hooks *, void *addr, size_t size, size_t offset, size_t length,
		       unsigned int arena);
	bool (*decommit)(pando__je_hooks *, void *addr, size_t size, size_t offset, size_t length,
			 unsigned int arena);
	bool (*purge_lazy)(pando__je_hooks *, void *addr, size_t size, size_t offset, size_t length,
			   unsigned int arena);
	bool (*purge_forced)(pando__je_hooks *, void *addr, size_t size, size_t offset,
			     size_t length, unsigned int arena);
	bool (*split)(pando__je_hooks *, void *addr, size_t size, size_t size_a, size_t size_b,
		      bool committed, unsigned int arena);
	bool (*merge)(pando__je_hooks *, void *addr_a, size_t size_a, void *addr_b, size_t size_b,
		      bool committed, unsigned int arena);
};

/* For mallctl("experimental.arenas_create_ext"). */
struct pando__je_arena_config {
	pando__je_hooks *hooks;
	bool metadata_use_hooks;
};

#define PANDO__JE_LG_ALIGN(lg) ((int)(lg))
#define PANDO__JE_TCACHE(tcache) ((int)(((tcache) + 2) << 8))
#define PANDO__JE_TCACHE_NONE PANDO__JE_TCACHE(-1)
#define PANDO__JE_ARENA(arena) ((((int)(arena)) + 1) << 20)

void *pando__je_mallocx(size_t size, int flags);
void pando__je_dallocx(void *p, int flags);
size_t pando__je_nallocx(size_t size, int flags);
int pando__je_mallctl(const char *name, void *old, size_t *old_length, void *new_,
		      size_t new_length);

/* Where the names of the C library lead that would show it the host's settings: nowhere. */
char *pando__je_no_getenv(const char *name);
long pando__je_no_readlink(const char *path, char *buf, size_t size);

#endif
