/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The table of backends and what `auto` means.
 *
 * The table's order is the order of preference. `auto` asks each backend in turn whether it could
 * hold the region now; the last one is taken unasked, so that the refusal, if it must come, is the
 * ordinary one of committing. The remedies are left to `pando doctor`: the sentence travels in a
 * message of fixed size. Probing reads a few files below /proc and /sys and makes one memfd: about
 * 0.1 ms.
 */
#include "backend/backend.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/size.h"

extern const struct pando__backend pando__backend_mshare, pando__backend_hugetlb,
	pando__backend_memfd;

const struct pando__backend *const pando__backends[] = {
	&pando__backend_mshare,
	&pando__backend_hugetlb,
	&pando__backend_memfd,
	NULL,
};

const char *pando_backend_name(unsigned int backend)
{
	static const char *const names[] = {
		[PANDO_BACKEND_AUTO] = "auto",
		[PANDO_BACKEND_MEMFD] = "memfd",
		[PANDO_BACKEND_HUGETLB] = "hugetlb",
		[PANDO_BACKEND_MSHARE] = "mshare",
	};

	return backend < sizeof(names) / sizeof(names[0]) ? names[backend] : NULL;
}

const struct pando__backend *pando__backend_find(unsigned int id)
{
	for (unsigned int i = 0; pando__backends[i]; i++)
		if (pando__backends[i]->id == id)
			return pando__backends[i];
	return NULL;
}

const struct pando__backend *pando__backend_auto(uint64_t size, char *why, size_t why_size)
{
	size_t used = 0;

	if (why && why_size > 0)
		why[0] = '\0';
	for (unsigned int i = 0;; i++) {
		const struct pando__backend *b = pando__backends[i];
		struct pando__backend_probe probe;
		char need[PANDO__SIZE_TEXT], have[PANDO__SIZE_TEXT];
		int n;

		if (!pando__backends[i + 1])
			return b;
		b->probe(&probe);
		if (probe.usable && probe.available >= size)
			return b;
		if (!why || used >= why_size)
			continue;
		if (probe.usable)
			n = snprintf(why + used, why_size - used, "%s%s has %s free, %s are needed",
				     used ? "; " : "", b->name,
				     pando__size_format(probe.available, have),
				     pando__size_format(size, need));
		else
			n = snprintf(why + used, why_size - used, "%s%s: %s", used ? "; " : "",
				     b->name, probe.why);
		used += n > 0 ? (size_t)n : 0;
	}
}
