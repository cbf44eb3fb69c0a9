/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzzes what the broker does in a directory of names: mending what a dead writer had begun, over
 * whatever a hostile client may have written.
 *
 * An input is a list of writes to a shard's head, to the heap's memory and to object words, with a
 * mending in between. The room before and behind the heap and the shard cannot be accessed. A mending
 * may turn objects that are the directory's into those of the dead client, and change nothing else in the
 * heap; afterwards there is no intent, and a second one changes nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "directory/directory.h"
#include "input.h"

#define SIZE (3ull << 20)
#define ROOM (1ull << 20)
#define SLOT 3u
#define DIRECTORY PANDO__OBJECT_SHARED(PANDO__HOLDER_DIRECTORY)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct pando__view view;
static struct pando__shard *shard;
static uint32_t *watched;
static char *before; /* copy of the heap */

/* The end of it is the end of what can be accessed. */
static char *guarded(size_t size)
{
	const size_t whole = (size + 4095) & ~(size_t)4095;
	char *at = mmap(NULL, whole + 2 * ROOM, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	must(at != MAP_FAILED && mprotect(at + ROOM, whole, PROT_READ | PROT_WRITE) == 0, "memory");
	return at + ROOM + (whole - size);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct pando__ledger *ledger = calloc(1, PANDO__LEDGER_SIZE);
	char *heap = guarded(SIZE);

	(void)argc;
	(void)argv;
	must(ledger != NULL, "memory");
	ledger->max_size = ledger->committed = SIZE;
	shard = (struct pando__shard *)(void *)guarded(sizeof(*shard));
	watched = (uint32_t *)(void *)guarded(sizeof(*watched));
	before = malloc(SIZE);
	must(before && pando__view_init(&view, heap, ledger) == 0 && pando__heap_format(&view) == 0,
	     "heap");
	return 0;
}

/* Few places, so that they meet; now and then any. */
static uint64_t some_offset(struct input *in)
{
	const uint8_t b = (uint8_t)number(in, 1);

	if (b < 0xc0)
		return view.first + (uint64_t)(b % 16) * 64;
	if (b < 0xd0)
		return 0;
	if (b < 0xe0)
		return view.end - (b & 15) * 8ull;
	if (b < 0xf0)
		return number(in, 3);
	return number(in, 8);
}

static uint64_t some_number(struct input *in)
{
	const uint8_t b = (uint8_t)number(in, 1);

	return b < 0xf0 ? b % 8 : number(in, 8);
}

static void write_intent(struct input *in)
{
	struct pando__directory_intent *i = &shard->intent;

	i->kind = (uint32_t)some_number(in);
	i->table = (uint32_t)some_number(in);
	i->entry = some_offset(in);
	i->where = some_offset(in);
	i->old = some_offset(in);
	i->fresh = some_offset(in);
	i->version = some_number(in);
	i->count = some_number(in);
}

/* A word of a node, or of an entry. */
static void write_node(struct input *in)
{
	const uint64_t at = some_offset(in) & ~7ull;
	const uint64_t value = number(in, 1) & 1 ? some_offset(in) : some_number(in);

	if (at == 0)
		shard->first.next = value;
	else if (at >= view.first && at < view.end)
		*(uint64_t *)(void *)(view.base + at) = value;
}

static void write_object(struct input *in)
{
	static const uint16_t words[] = {DIRECTORY, DIRECTORY, PANDO__OBJECT_LIVE,
					 PANDO__OBJECT_SHARED(SLOT + 1), PANDO__OBJECT_FREE};
	const uint64_t at = some_offset(in);
	const uint8_t what = (uint8_t)number(in, 1);

	if (at >= view.first && at < view.end)
		view.objects[at / PANDO__GRANULE] =
			what < 0xf0 ? words[what % (sizeof(words) / sizeof(words[0]))]
				    : (uint16_t)number(in, 2);
}

static void mend(void)
{
	const uint64_t granules = SIZE / PANDO__GRANULE;
	const uint16_t *was = (const void *)(before + ((char *)view.objects - view.base));

	memcpy(before, view.base, SIZE);
	pando__directory_mend(&view, shard, SLOT, watched);
	must(shard->intent.kind == PANDO__DIRECTORY_NONE, "an intent is left");
	for (uint64_t g = 0; g < granules; g++) {
		if (g * PANDO__GRANULE < view.first || g * PANDO__GRANULE >= view.end)
			continue;
		if (view.objects[g] == was[g])
			continue;
		must(was[g] == DIRECTORY && view.objects[g] == PANDO__OBJECT_SHARED(SLOT + 1),
		     "an object changed that was not the directory's");
		must(view.spans[g * PANDO__GRANULE / PANDO__SPAN].held == 1,
		     "nobody would find it");
	}
	must(memcmp(before + view.first, view.base + view.first, view.end - view.first) == 0,
	     "an object was written");
	memcpy(before, view.base, SIZE);
	pando__directory_mend(&view, shard, SLOT, watched);
	must(memcmp(before, view.base, SIZE) == 0, "the second time changed something");
	pando__directory_break(shard);
	must(shard->lock == 0, "it is still locked");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {.data = data, .size = size};

	memset(shard, 0, sizeof(*shard));
	memset(view.base + view.first, 0, 4096);
	memset(&view.objects[view.first / PANDO__GRANULE], 0,
	       (view.end - view.first) / PANDO__GRANULE * sizeof(view.objects[0]));
	*watched = (uint32_t)number(&in, 1) & 1;
	for (int i = 0; i < 100 && in.size > 0; i++)
		switch (number(&in, 1) % 8) {
		case 0:
		case 1:
			write_intent(&in);
			break;
		case 2:
		case 3:
			write_node(&in);
			break;
		case 4:
		case 5:
			write_object(&in);
			break;
		case 6:
			((uint8_t *)shard)[number(&in, 2) % sizeof(*shard)] =
				(uint8_t)number(&in, 1);
			break;
		default:
			mend();
			break;
		}
	mend();
	return 0;
}
