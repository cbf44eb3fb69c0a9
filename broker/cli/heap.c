/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando heap: what a region's heap is made of, who has it, and what is stuck.
 *
 * The command attaches to the region read-only and walks the heap like pando_heap_stat(); it asks
 * the broker for nothing but the names of the clients. Numbers are those of a heap in motion.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "allocator/walk.h"
#include "cli.h"
#include "client.h"
#include "common/atomic.h"
#include "table.h"

enum {
	H_SIZE,
	H_METADATA,
	H_SPANS,
	H_FREE,
	H_RESERVE,
	H_ORPHANS,
	H_PAGES,
	H_OBJECTS,
	H_BYTES,
	H_SHARED,
	H_HELD,
	H_CACHED,
	H_PENDING,
	H_FRAGMENTATION,
	H_ORPHAN_OBJECTS,
	H_ORPHAN_BYTES,
	H_STALLED,
	H_REAPING,
	H_COLUMNS
};

static const struct cli_column heap_columns[H_COLUMNS] = {
	[H_SIZE] = {"size", "Size", CLI_NUMBER},
	[H_METADATA] = {"metadata", "Tables", CLI_NUMBER},
	[H_SPANS] = {"spans", "Spans of 256 KiB", CLI_NUMBER},
	[H_FREE] = {"spans_free", "  free", CLI_NUMBER},
	[H_RESERVE] = {"spans_reserve", "  free, with memory", CLI_NUMBER},
	[H_ORPHANS] = {"spans_orphaned", "  orphans", CLI_NUMBER},
	[H_PAGES] = {"pages_bytes", "Pages in use", CLI_NUMBER},
	[H_OBJECTS] = {"objects", "Objects", CLI_NUMBER},
	[H_BYTES] = {"objects_bytes", "  bytes", CLI_NUMBER},
	[H_SHARED] = {"shared", "  shared", CLI_NUMBER},
	[H_HELD] = {"held", "  held", CLI_NUMBER},
	[H_CACHED] = {"cached", "Free, in magazines", CLI_NUMBER},
	[H_PENDING] = {"pending", "Freed, not collected", CLI_NUMBER},
	[H_FRAGMENTATION] = {"fragmentation_percent", "Fragmentation", CLI_NUMBER},
	[H_ORPHAN_OBJECTS] = {"orphan_objects", "Objects in orphans", CLI_NUMBER},
	[H_ORPHAN_BYTES] = {"orphan_bytes", "  bytes", CLI_NUMBER},
	[H_STALLED] = {"stalled", "Clients that do not collect", CLI_NUMBER},
	[H_REAPING] = {"reaping", "Clients being reaped", CLI_NUMBER},
};

enum {
	C_SLOT,
	C_PID,
	C_USER,
	C_SPANS,
	C_PAGES,
	C_OBJECTS,
	C_BYTES,
	C_HELD,
	C_HELD_BYTES,
	C_CACHED,
	C_PENDING,
	C_QUOTA,
	C_STATE,
	C_COLUMNS
};

static const struct cli_column client_columns[C_COLUMNS] = {
	[C_SLOT] = {"slot", "SLOT", CLI_RIGHT | CLI_NUMBER},
	[C_PID] = {"pid", "PID", CLI_RIGHT | CLI_NUMBER},
	[C_USER] = {"user", "USER", 0},
	[C_SPANS] = {"spans_bytes", "SPANS", CLI_RIGHT | CLI_NUMBER},
	[C_PAGES] = {"pages_bytes", "PAGES", CLI_RIGHT | CLI_NUMBER},
	[C_OBJECTS] = {"objects", "OBJECTS", CLI_RIGHT | CLI_NUMBER},
	[C_BYTES] = {"objects_bytes", "BYTES", CLI_RIGHT | CLI_NUMBER},
	[C_HELD] = {"held", "HELD", CLI_RIGHT | CLI_NUMBER},
	[C_HELD_BYTES] = {"held_bytes", "HELD BYTES", CLI_RIGHT | CLI_NUMBER | CLI_JSON_ONLY},
	[C_CACHED] = {"cached_bytes", "CACHED", CLI_RIGHT | CLI_NUMBER},
	[C_PENDING] = {"pending_bytes", "PENDING", CLI_RIGHT | CLI_NUMBER},
	[C_QUOTA] = {"quota", "QUOTA", CLI_RIGHT | CLI_NUMBER},
	[C_STATE] = {"state", "STATE", 0},
};

enum {
	K_SIZE,
	K_SLABS,
	K_OBJECTS,
	K_BYTES,
	K_SHARED,
	K_HELD,
	K_CACHED,
	K_PENDING,
	K_FULL,
	K_COLUMNS
};

static const struct cli_column class_columns[K_COLUMNS] = {
	[K_SIZE] = {"size", "CLASS", CLI_RIGHT},
	[K_SLABS] = {"memory", "MEMORY", CLI_RIGHT | CLI_NUMBER},
	[K_OBJECTS] = {"objects", "OBJECTS", CLI_RIGHT | CLI_NUMBER},
	[K_BYTES] = {"objects_bytes", "BYTES", CLI_RIGHT | CLI_NUMBER},
	[K_SHARED] = {"shared", "SHARED", CLI_RIGHT | CLI_NUMBER},
	[K_HELD] = {"held", "HELD", CLI_RIGHT | CLI_NUMBER},
	[K_CACHED] = {"cached", "CACHED", CLI_RIGHT | CLI_NUMBER},
	[K_PENDING] = {"pending", "PENDING", CLI_RIGHT | CLI_NUMBER},
	[K_FULL] = {"used_percent", "USED %", CLI_RIGHT | CLI_NUMBER},
};

static uint64_t percent(uint64_t part, uint64_t whole)
{
	return whole ? part * 100 / whole : 0;
}

static const struct pando__ledger_client *entry(const struct pando__view *v, uint32_t slot)
{
	return pando__ledger_client((struct pando__ledger *)(uintptr_t)v->ledger, slot);
}

static enum pando__client_state state_of(const struct pando__view *v, uint32_t slot)
{
	return PANDO__CLIENT_STATE(pando__load_acquire(&entry(v, slot)->word));
}

/* It owns memory that others have freed, has been told so, and does nothing about it. */
static bool stalls(const struct pando__walk_client *c)
{
	return c->told && c->pending > 0;
}

static struct cli_table *totals(const struct pando__view *v, const struct pando__walk *w)
{
	struct cli_table *t = cli_table_new("heap", heap_columns, H_COLUMNS);
	struct pando__walk_class all = {0};
	uint64_t stalled = 0, reaping = 0;

	for (unsigned int i = 1; i <= PANDO__WALK_LARGE; i++) {
		all.objects += w->classes[i].objects;
		all.bytes += w->classes[i].bytes;
		all.shared += w->classes[i].shared;
		all.held += w->classes[i].held;
		all.cached += w->classes[i].cached;
		all.pending += w->classes[i].pending;
	}
	for (uint32_t i = 0; i < w->client_count; i++) {
		stalled += stalls(&w->clients[i]);
		reaping += state_of(v, i) == PANDO__CLIENT_REAPING;
	}
	cli_line(t);
	cli_size(t, H_SIZE, pando__metadata(v) + w->spans * PANDO__SPAN);
	cli_size(t, H_METADATA, pando__metadata(v));
	cli_number(t, H_SPANS, w->spans);
	cli_number(t, H_FREE, w->spans_free);
	cli_number(t, H_RESERVE, w->spans_reserve);
	cli_number(t, H_ORPHANS, w->spans_orphaned);
	cli_size(t, H_PAGES, w->pages * PANDO__PAGE);
	cli_number(t, H_OBJECTS, all.objects);
	cli_size(t, H_BYTES, all.bytes);
	cli_number(t, H_SHARED, all.shared);
	cli_number(t, H_HELD, all.held);
	cli_number(t, H_CACHED, all.cached);
	cli_number(t, H_PENDING, all.pending);
	cli_number(t, H_FRAGMENTATION,
		   w->pages ? 100 - percent(all.bytes, w->pages * PANDO__PAGE) : 0);
	cli_number(t, H_ORPHAN_OBJECTS, w->orphan_objects);
	cli_size(t, H_ORPHAN_BYTES, w->orphan_bytes);
	cli_number(t, H_STALLED, stalled);
	cli_number(t, H_REAPING, reaping);
	return t;
}

static struct cli_table *clients(const struct pando__view *v, const struct pando__walk *w,
				 uint32_t own)
{
	struct cli_table *t = cli_table_new("clients", client_columns, C_COLUMNS);

	for (uint32_t i = 0; i < w->client_count; i++) {
		const struct pando__walk_client *c = &w->clients[i];
		const enum pando__client_state state = state_of(v, i);

		if (i == own || (state == PANDO__CLIENT_FREE && !c->spans))
			continue;
		cli_line(t);
		cli_number(t, C_SLOT, i);
		cli_number(t, C_PID, (uint64_t)entry(v, i)->pid);
		cli_user(t, C_USER, entry(v, i)->uid);
		cli_size(t, C_SPANS, c->spans * PANDO__SPAN);
		cli_size(t, C_PAGES, c->pages * PANDO__PAGE);
		cli_number(t, C_OBJECTS, c->objects);
		cli_size(t, C_BYTES, c->bytes);
		cli_number(t, C_HELD, c->held);
		cli_size(t, C_HELD_BYTES, c->held_bytes);
		cli_size(t, C_CACHED, c->cached_bytes);
		cli_size(t, C_PENDING, c->pending_bytes);
		cli_size(t, C_QUOTA, entry(v, i)->heap_quota);
		cli_text(t, C_STATE,
			 state == PANDO__CLIENT_REAPING ? "being reaped"
			 : stalls(c)			? "stalled"
							: "-");
		if (state == PANDO__CLIENT_REAPING || stalls(c))
			cli_paint(t, C_STATE, "yellow");
	}
	return t;
}

static struct cli_table *classes(const struct pando__walk *w)
{
	struct cli_table *t = cli_table_new("classes", class_columns, K_COLUMNS);

	for (unsigned int i = 1; i <= PANDO__WALK_LARGE; i++) {
		const struct pando__walk_class *k = &w->classes[i];
		const bool large = i == PANDO__WALK_LARGE;
		const uint64_t memory = k->slabs * (large ? PANDO__PAGE : PANDO__SLAB);
		char size[16];

		if (!k->slabs)
			continue;
		snprintf(size, sizeof(size), "%u", large ? 0 : pando__classes[i].size);
		cli_line(t);
		cli_text(t, K_SIZE, large ? "large" : size);
		cli_size(t, K_SLABS, memory);
		cli_number(t, K_OBJECTS, k->objects);
		cli_size(t, K_BYTES, k->bytes);
		cli_number(t, K_SHARED, k->shared);
		cli_number(t, K_HELD, k->held);
		cli_number(t, K_CACHED, k->cached);
		cli_number(t, K_PENDING, k->pending);
		cli_number(t, K_FULL, percent(k->bytes, memory));
	}
	return t;
}

static int show(struct pando_region *r)
{
	struct pando__view v;
	struct pando__walk w = {0};
	uint32_t slot;
	int rc = pando__region_view(r, &v, &slot, NULL);

	if (rc < 0)
		return cli_fail_last(rc);
	w.client_count = pando__load_acquire(&v.ledger->clients_high);
	w.clients = calloc(w.client_count, sizeof(*w.clients));
	if (!w.clients)
		return cli_fail(CLI_NO_MEMORY, "no memory for %u clients", w.client_count);
	if (pando__heap_walk(&v, &w) != 0)
		rc = cli_fail(CLI_FAILED, "region \"%s\" has no heap", v.ledger->name);
	else
		rc = cli_tables_print(
			(struct cli_table *[]){totals(&v, &w), clients(&v, &w, slot), classes(&w)},
			3);
	free(w.clients);
	return rc;
}

static int run_heap(int argc, char **argv)
{
	static const struct option longs[] = {CLI_COMMON_LONG};
	struct pando_region *r;
	struct pando *p;
	int rc;

	while (cli_option(&cli_heap, argc, argv, CLI_COMMON_SHORT, longs) != -1)
		;
	cli_arguments(&cli_heap, argc, 1, 1);
	rc = cli_connect(&p);
	if (rc != CLI_OK)
		return rc;
	rc = pando_region_open(p, argv[optind], PANDO_READONLY, NULL, &r);
	rc = rc < 0 ? cli_fail_last(rc) : show(r);
	pando_disconnect(p);
	return rc;
}

const struct cli_verb cli_heap = {
	.name = "heap",
	.args = "NAME",
	.summary = "show a region's heap: totals, clients, size classes",
	.help = "Shows what a region's heap is made of, what each client has of it, and the "
		"objects "
		"of each size\n"
		"class. PENDING is what others have freed and its owner has not collected; a "
		"client that has been\n"
		"told of some and does nothing is stalled. Orphans are spans whose owner died and "
		"in which others\n"
		"have objects. The region is walked while it is in use: numbers are about right.\n",
	.run = run_heap,
};
