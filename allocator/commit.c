/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Memory from the system and back, in regions that were made for a heap.
 *
 * In such a region (view->lazy) the file is a hole where nobody has anything. A range gets memory
 * before anybody writes to it (MADV_POPULATE_WRITE: missing memory is an error here, not a signal
 * there), and gives it back by MADV_REMOVE, which punches the hole for all processes. Both work on
 * the mapping, since clients keep no descriptor, and both may be repeated: a process that is killed
 * in between leaves some pages more or less, which nobody relies on.
 *
 * Giving back waits for a lock of the kernel's that all processes share which have the region: its file's.
 * Whoever holds it may be waiting for a processor, for seconds where there are hundreds. So clients
 * leave it to the broker (span.c), but for pando_heap_trim() and where memory is short.
 *
 * The kernel's answer to memory that is not there can be the OOM killer. So every so often the
 * question of how much the machine and the control groups can spare is asked before, as the broker
 * asks it before it commits a region. When there is none, what is RESERVE is given back first.
 *
 * Where the kernel has no MADV_POPULATE_WRITE (before Linux 5.14), each page is touched instead: then
 * memory that the system cannot give is a signal after all.
 *
 * Pages of 2 MiB: where the system gives them to shared memory, one comes with the first 4 KiB of
 * it and goes, or is split by the kernel, when 4 KiB of it are given back.
 */
#include "heap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define ASK_EVERY (16ull << 20) /* bytes */
#define GIVE_BACK 256u /* spans at a time, when memory is short */

/* Bytes committed by this process since it last asked how much there is. A hint. */
static uint64_t unasked;

static bool spared(const struct pando__view *v, uint64_t length)
{
	if (PANDO_INJECT_FAIL("heap.commit.memory"))
		return false;
	if (!v->available || pando__add_relaxed(&unasked, length) + length < ASK_EVERY)
		return true;
	pando__store_relaxed(&unasked, 0);
	return v->available() >= length;
}

static void touch(char *from, uint64_t length)
{
	for (uint64_t at = 0; at < length; at += PANDO__PAGE)
		(void)pando__or_acq_rel((uint8_t *)from + at, 0);
}

static int populate(const struct pando__view *v, uint64_t offset, uint64_t length)
{
	char *at = v->base + offset;
	int rc;

	if (!spared(v, length))
		return -ENOMEM;
	do
		rc = madvise(at, length, MADV_POPULATE_WRITE);
	while (rc < 0 && (errno == EINTR || errno == EAGAIN));
	if (rc == 0)
		return 0;
	if (errno != EINVAL)
		return -ENOMEM;
	touch(at, length);
	return 0;
}

int pando__commit(const struct pando__view *v, uint64_t offset, uint64_t length)
{
	int rc;

	if (!v->lazy || length == 0)
		return 0;
	rc = populate(v, offset, length);
	while (rc < 0 && v->self && pando__spans_purge(v, v->self, 0, GIVE_BACK) > 0)
		rc = populate(v, offset, length);
	if (rc == 0)
		return 0;
	return pando__fail(ENOMEM,
			   "the system has no memory for %llu bytes more in region \"%.63s\"",
			   (unsigned long long)length, v->ledger->name);
}

void pando__decommit(const struct pando__view *v, uint64_t offset, uint64_t length)
{
	if (!v->lazy || length == 0)
		return;
	while (madvise(v->base + offset, length, MADV_REMOVE) < 0 &&
	       (errno == EINTR || errno == EAGAIN))
		;
}

void pando__decommit_pages(const struct pando__view *v, uint64_t index, uint64_t pages)
{
	while (v->lazy && pages) {
		const unsigned int from = (unsigned int)__builtin_ctzll(pages);
		const uint64_t rest = ~(pages >> from);
		const unsigned int n = rest ? (unsigned int)__builtin_ctzll(rest) : 64;

		pando__decommit(v, index * PANDO__SPAN + (uint64_t)from * PANDO__PAGE,
				(uint64_t)n * PANDO__PAGE);
		pages &= n == 64 ? 0 : ~(((1ull << n) - 1) << from);
	}
}
