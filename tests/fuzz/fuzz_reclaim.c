/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzzes what the broker does in a heap: reaping, sweeping, collecting, recovering, over whatever a
 * hostile client may have written.
 *
 * An input is a list of writes to the heap's tables, to slot pages and to the client table, with the
 * broker's functions called in between. The memory of objects, the room before and behind the heap
 * and that behind the slot pages cannot be accessed at all: a step outside of the tables ends the
 * run. After a reaping nothing may be the dead client's any more.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "allocator/rebuild.h"
#include "input.h"

#define SIZE (3ull << 20) /* the tables take half of it */
#define SLOTS 8u
#define ROOM (1ull << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct pando__view view;
static struct pando__ledger *ledger;
static char *slots;
static uint64_t first, end; /* spans */

static char *guarded(size_t size)
{
	char *at = mmap(NULL, size + 2 * ROOM, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	must(at != MAP_FAILED && mprotect(at + ROOM, size, PROT_READ | PROT_WRITE) == 0, "memory");
	return at + ROOM;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	char *heap = guarded(SIZE);

	(void)argc;
	(void)argv;
	ledger = calloc(1, PANDO__LEDGER_SIZE);
	must(ledger != NULL, "memory");
	ledger->max_size = ledger->committed = SIZE;
	slots = guarded(SLOTS * PANDO__SLOT_SIZE);
	must(pando__view_init(&view, heap, ledger) == 0 && pando__heap_format(&view) == 0, "heap");
	first = view.first / PANDO__SPAN;
	end = view.end / PANDO__SPAN;
	must(mprotect(heap + view.first, SIZE - view.first, PROT_NONE) == 0,
	     "no access to objects");
	return 0;
}

static void clear(void)
{
	const uint64_t granule = first * PANDO__SPAN_GRANULES;

	memset(&view.spans[first], 0, (end - first) * sizeof(view.spans[0]));
	memset(&view.page_table[first * PANDO__SPAN_PAGES], 0,
	       (end - first) * PANDO__SPAN_PAGES * sizeof(view.page_table[0]));
	memset(&view.objects[granule], 0,
	       (end - first) * PANDO__SPAN_GRANULES * sizeof(view.objects[0]));
	memset(view.clients, 0, SLOTS * sizeof(view.clients[0]));
	memset(slots, 0, SLOTS * PANDO__SLOT_SIZE);
	memset((char *)ledger + PANDO__LEDGER_HEADER, 0,
	       SLOTS * sizeof(struct pando__ledger_client));
	ledger->clients_high = SLOTS;
	view.heap->orphan_remote.value = view.heap->orphans.value = 0;
	view.lazy = false;
}

static uint64_t some_span(struct input *in)
{
	return first + number(in, 1) % (end - first);
}

/* Owners that mean something, most of the time. */
static uint32_t some_owner(struct input *in)
{
	uint8_t b = (uint8_t)number(in, 1);

	if (b < 0xc0)
		return b % (SLOTS + 2);
	return b < 0xe0 ? PANDO__OWNER_ORPHAN : (uint32_t)number(in, 2);
}

static uint16_t some_word(struct input *in)
{
	uint8_t b = (uint8_t)number(in, 1);

	switch (b & 7) {
	case 0:
		return PANDO__OBJECT_LIVE;
	case 1:
		return PANDO__OBJECT_REMOTE;
	case 2:
		return PANDO__OBJECT_SHARED(PANDO__HOLDER_REGION);
	case 3:
	case 4:
		return PANDO__OBJECT_SHARED((uint32_t)(b >> 3) % (SLOTS + 2));
	case 5:
		return PANDO__OBJECT_CACHED;
	default:
		return (uint16_t)number(in, 2);
	}
}

static void write_words(struct input *in)
{
	const uint64_t end_granule = end * PANDO__SPAN_GRANULES;
	uint64_t g = some_span(in) * PANDO__SPAN_GRANULES + number(in, 2) % PANDO__SPAN_GRANULES;
	const uint16_t word = some_word(in);
	unsigned int n = 1 + (unsigned int)number(in, 1),
		     step = 1 + (unsigned int)number(in, 1) % 40;

	for (; n > 0 && g < end_granule; n--, g += step)
		view.objects[g] = word;
}

static void write_large(struct input *in)
{
	const uint64_t g =
		some_span(in) * PANDO__SPAN_GRANULES + number(in, 2) % PANDO__SPAN_GRANULES;
	const uint64_t length = number(in, 1) & 1 ? number(in, 2) : number(in, 5);

	if (g + 4 > end * PANDO__SPAN_GRANULES)
		return;
	for (unsigned int i = 0; i < PANDO__LENGTH_WORDS; i++)
		view.objects[g + 1 + i] = PANDO__OBJECT_LENGTH(length, i);
	view.objects[g] = some_word(in);
	view.page_table[g / PANDO__PAGE_GRANULES] = PANDO__PAGE_ENTRY(
		PANDO__OWNER_ORPHAN, PANDO__CLASS_LARGE, (number(in, 1) & 0x1f) << 8);
}

static void write_pages(struct input *in)
{
	uint64_t p = some_span(in) * PANDO__SPAN_PAGES + number(in, 1) % PANDO__SPAN_PAGES;
	const unsigned int n = 1 + (unsigned int)number(in, 1) % 130;
	const uint8_t kind = (uint8_t)number(in, 1);
	const uint32_t class = kind < 0x60 ? PANDO__CLASS_LARGE : kind < 0xf0 ? kind % 17u : kind;
	const uint32_t entry =
		PANDO__PAGE_ENTRY(some_owner(in), class, kind & 1 ? number(in, 1) << 8 : 0);

	for (unsigned int i = 0; i < n && p < end * PANDO__SPAN_PAGES; i++, p++) {
		view.page_table[p] = entry;
		view.spans[p / PANDO__SPAN_PAGES].pages |= 1ull << p % PANDO__SPAN_PAGES;
	}
}

static void write_span(struct input *in)
{
	struct pando__span *s = &view.spans[some_span(in)];
	const uint8_t what = (uint8_t)number(in, 1);

	s->word = PANDO__SPAN_WORD(some_owner(in), what % 7, what >> 4);
	if (what & 8)
		s->held = s->remote = (uint32_t)number(in, 1);
}

static void write_intent(struct input *in)
{
	struct pando__intent *intents =
		(void *)(slots + number(in, 1) % SLOTS * PANDO__SLOT_SIZE + PANDO__INTENTS_OFFSET);
	const uint8_t kind = (uint8_t)number(in, 1);
	uint64_t offset = number(in, 3);

	if (kind & 0x80)
		offset = UINT64_MAX << (kind & 31);
	intents[(kind >> 2) % PANDO__INTENTS] =
		(struct pando__intent){.what = PANDO__INTENT(offset & ~31ull, kind & 3),
				       .to = some_owner(in) | number(in, 1) << 16};
}

static void write_raw(struct input *in)
{
	static const unsigned int most = 64;
	char *at =
		(char *)(number(in, 1) & 1 ? (void *)&view.spans[first]
					   : (void *)&view.page_table[first * PANDO__SPAN_PAGES]);
	const uint64_t room = number(in, 1) % 128;
	size_t n = in->size < most ? in->size : most;

	memcpy(at + room, in->data, n);
	in->data += n;
	in->size -= n;
}

static void reap(uint32_t slot)
{
	static uint64_t named[(PANDO__HEAP_CLIENTS + 63) / 64];
	struct pando__reclaimed out;

	pando__ledger_client(ledger, slot)->word = PANDO__CLIENT_WORD(5, PANDO__CLIENT_REAPING);
	must(pando__heap_reap(&view, slots, slot, &out) == 0, "reap");
	for (uint64_t i = first; i < end; i++) {
		const uint64_t word = view.spans[i].word;

		must(PANDO__SPAN_OWNER(word) != slot + 1 ||
			     (PANDO__SPAN_STATE(word) != PANDO__SPAN_OWNED &&
			      PANDO__SPAN_STATE(word) != PANDO__SPAN_SWEEPING),
		     "a span is the dead client's still");
	}
	must(view.clients[slot].spans == 0 && view.clients[slot].remote == 0, "its line");
	pando__heap_slots_named(&view, slots, named);
}

static void step(struct input *in)
{
	struct pando__reclaimed out;
	const uint8_t op = (uint8_t)number(in, 1);

	switch (op & 15) {
	case 0:
	case 1:
	case 2:
		write_words(in);
		break;
	case 3:
	case 4:
		write_large(in);
		break;
	case 5:
	case 6:
		write_pages(in);
		break;
	case 7:
	case 8:
		write_span(in);
		break;
	case 9:
		write_intent(in);
		break;
	case 10:
		write_raw(in);
		break;
	case 11:
		pando__ledger_client(ledger, (op >> 4) % SLOTS)->word = number(in, 2);
		break;
	case 12:
		(void)pando__heap_sweep(&view, &out);
		break;
	case 13:
		(void)pando__heap_recover(&view, &out);
		break;
	case 14:
		(void)pando__heap_collect_idle(&view, (op >> 4) % SLOTS, &out);
		break;
	default:
		reap((op >> 4) % SLOTS);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {.data = data, .size = size};

	clear();
	for (int i = 0; i < 200 && in.size > 0; i++)
		step(&in);
	for (uint32_t slot = 0; slot < 2; slot++)
		reap(slot);
	return 0;
}
