/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Backends: how a region's heap memory is made.
 *
 * One small table of functions per backend. The broker calls probe, create, commit and decommit;
 * clients (and the broker where it must look) call map. Callers never ask which backend they have:
 * a new one is a new table in pando__backends[].
 *
 * The life of a heap file: create (sealed at its maximum size, no memory) -> commit (memory) ...
 * decommit -> close. The file descriptor is all there is: no name in any file system (mshare:
 * unlinked as soon as the descriptor is open). Readers get a descriptor that was opened read-only.
 */
#ifndef PANDO_BACKEND_BACKEND_H
#define PANDO_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pando/region.h>

/* What a probe found. */
struct pando__backend_probe {
	bool usable; /* a region could be made now */
	uint64_t available; /* bytes that could be committed now, about */
	char why[160]; /* if not usable (or only partly good): one sentence */
	char mend[200]; /* the command that mends it, or "" */
};

struct pando__backend {
	unsigned int id; /* enum pando_backend */
	const char *name;
	uint32_t page_size; /* bytes: unit of committing */

	/* Says whether it works here and now, without leaving anything behind. */
	void (*probe)(struct pando__backend_probe *probe);

	/*
	 * Makes the heap file of max_size bytes (a multiple of 1 GiB) to be mapped at `base` and
	 * stores its descriptor (close-on-exec). No memory is committed. Returns 0 or a negative
	 * errno with a sentence.
	 */
	int (*create)(const char *name, uint64_t base, uint64_t max_size, int *fd);

	/*
	 * Opens the file behind fd again without the right to write, for read-only clients.
	 * Returns a descriptor or a negative errno with a sentence.
	 */
	int (*reopen_readonly)(int fd);

	/*
	 * Allocates the memory of [offset, offset + length), multiples of page_size. One call may
	 * take long (0.3 s per GiB): the caller cuts it in pieces and calls from a worker thread.
	 * Idempotent. Returns 0 or -ENOMEM with a sentence; after a failure part of the range may
	 * be allocated.
	 */
	int (*commit)(int fd, uint64_t offset, uint64_t length);

	/*
	 * Frees the memory of a range. Idempotent. Returns 0 or a negative errno with a sentence.
	 */
	int (*decommit)(int fd, uint64_t offset, uint64_t length);

	/*
	 * Maps the whole file at `base` (MAP_FIXED_NOREPLACE) in this process. Returns 0, -EEXIST
	 * if something else is mapped there (no sentence: the caller names both), or a negative
	 * errno with one.
	 */
	int (*map)(int fd, uint64_t base, uint64_t max_size, bool readonly);
};

/* All backends, the one that `auto` likes best first; ends with NULL. */
extern const struct pando__backend *const pando__backends[];

/* By enum pando_backend; NULL if this build does not know it. */
const struct pando__backend *pando__backend_find(unsigned int id);

/*
 * What `auto` means for a region of `size` bytes now: the first usable backend with that much
 * available. memfd is always the last resort, so the result is never NULL. If why is not NULL, it
 * gets one sentence that says why better ones were passed over ("" if none was).
 */
const struct pando__backend *pando__backend_auto(uint64_t size, char *why, size_t why_size);

/*
 * Bytes that this process could allocate now without driving the machine (MemAvailable less a
 * reserve) or its memory cgroups (v1 or v2) out of memory.
 */
uint64_t pando__memory_available(void);

#endif
