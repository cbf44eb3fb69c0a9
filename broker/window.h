/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The window: which addresses belong to which region.
 *
 * A sorted array of taken ranges. Ranges are whole GiB at multiples of 1 GiB, so that the kernel
 * can share page tables; the first gap that is large enough is taken, which keeps the window short
 * and reuses addresses. A range is given back when the last user of its region is gone: nobody has
 * it mapped then. One thread.
 */
#ifndef PANDO_BROKER_WINDOW_H
#define PANDO_BROKER_WINDOW_H

#include <stddef.h>
#include <stdint.h>

struct window_range {
	uint64_t base, size;
	void *owner;
};

struct window {
	uint64_t base, size;
	struct window_range *ranges; /* by base, none overlap, all inside the window */
	size_t count, room;
};

/* base and size: multiples of 1 GiB. Returns 0 or -EINVAL with a sentence. */
int window_init(struct window *w, uint64_t base, uint64_t size);
void window_deinit(struct window *w);

/*
 * Takes `size` bytes at `address`, or where there is room if address is 0, and stores the address.
 * Returns 0; -EINVAL (not a multiple of 1 GiB, outside of the window) with a sentence; -EADDRINUSE
 * with *taken_by the owner of what is there, without a sentence; -ENOMEM (no gap is
 * large enough, or no memory) with one.
 */
int window_take(struct window *w, uint64_t address, uint64_t size, void *owner, uint64_t *base,
		void **taken_by);

/* Gives a range back. None at that address is fine. */
void window_release(struct window *w, uint64_t base);

#endif
