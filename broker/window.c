/* SPDX-License-Identifier: BSD-2-Clause */
/* The window: a sorted array, searched from its beginning. See window.h. */
#include "window.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/fail.h"
#include "common/layout.h"

int window_init(struct window *w, uint64_t base, uint64_t size)
{
	memset(w, 0, sizeof(*w));
	if (base == 0 || base % PANDO__GIB || size == 0 || size % PANDO__GIB || base + size < base)
		return pando__fail(EINVAL,
				   "the window at 0x%" PRIx64 " of %" PRIu64
				   " bytes is not made of whole GiB at a multiple of 1 GiB",
				   base, size);
	w->base = base;
	w->size = size;
	return 0;
}

void window_deinit(struct window *w)
{
	free(w->ranges);
	memset(w, 0, sizeof(*w));
}

/* Index of the first range that ends above `address`. */
static size_t first_above(const struct window *w, uint64_t address)
{
	size_t low = 0, high = w->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (w->ranges[middle].base + w->ranges[middle].size > address)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

static int insert(struct window *w, size_t at, uint64_t base, uint64_t size, void *owner)
{
	if (w->count == w->room) {
		size_t room = w->room ? w->room * 2 : 16;
		struct window_range *more = realloc(w->ranges, room * sizeof(*more));

		if (!more)
			return pando__fail(ENOMEM, "the broker is out of memory");
		w->ranges = more;
		w->room = room;
	}
	memmove(&w->ranges[at + 1], &w->ranges[at], (w->count - at) * sizeof(*w->ranges));
	w->ranges[at] = (struct window_range){.base = base, .size = size, .owner = owner};
	w->count++;
	return 0;
}

/* First fit. */
static int take_anywhere(struct window *w, uint64_t size, void *owner, uint64_t *base)
{
	uint64_t at = w->base;
	size_t i;

	for (i = 0; i < w->count && w->ranges[i].base - at < size; i++)
		at = w->ranges[i].base + w->ranges[i].size;
	if (i == w->count && w->base + w->size - at < size)
		return pando__fail(
			ENOMEM,
			"no %" PRIu64
			" bytes of address space are left in the broker's window of %" PRIu64
			" bytes; start pandod with a larger --window-size",
			size, w->size);
	*base = at;
	return insert(w, i, at, size, owner);
}

int window_take(struct window *w, uint64_t address, uint64_t size, void *owner, uint64_t *base,
		void **taken_by)
{
	size_t i;

	*taken_by = NULL;
	if (size == 0 || size % PANDO__GIB || address % PANDO__GIB)
		return pando__fail(EINVAL,
				   "address 0x%" PRIx64 " with %" PRIu64
				   " bytes is not a multiple of 1 GiB",
				   address, size);
	if (size > w->size)
		return pando__fail(ENOMEM,
				   "%" PRIu64 " bytes are more than the broker's window of %" PRIu64
				   "; ask for less or start pandod with a larger --window-size",
				   size, w->size);
	if (address && (address < w->base || address - w->base > w->size - size))
		return pando__fail(EINVAL,
				   "%" PRIu64 " bytes at 0x%" PRIx64
				   " do not fit into the broker's window, 0x%" PRIx64
				   " to 0x%" PRIx64,
				   size, address, w->base, w->base + w->size);
	if (address == 0)
		return take_anywhere(w, size, owner, base);
	i = first_above(w, address);
	if (i < w->count && w->ranges[i].base < address + size) {
		*taken_by = w->ranges[i].owner;
		return -EADDRINUSE;
	}
	*base = address;
	return insert(w, i, address, size, owner);
}

void window_release(struct window *w, uint64_t base)
{
	size_t i = first_above(w, base);

	if (i == w->count || w->ranges[i].base != base)
		return;
	w->count--;
	memmove(&w->ranges[i], &w->ranges[i + 1], (w->count - i) * sizeof(*w->ranges));
}
