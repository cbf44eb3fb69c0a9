/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzzes a heap with sequences of operations: three clients in one process (tests/unit/fake_region.h)
 * allocate, resize, free, give away and share, free what they must not, and are killed; the broker
 * reaps, sweeps, collects and purges in between. After each operation every invariant of the heap is
 * verified, and what it counts is compared with what should be there; every object has a content of
 * its own, which is looked at before it goes. In the end all is freed, and the heap must be empty.
 *
 * An input is a first byte (bit 0: a heap that takes memory with use) and then operations: a byte
 * that says which, and what that one reads.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "allocator/check.h"
#include "fake_region.h"

#define SIZE (4ull << 20) /* some ten spans */
#define CLIENTS 3u
#define OBJECTS 64u
#define OPERATIONS 48u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct object {
	uint8_t *p; /* NULL: none */
	size_t size;
	uint8_t content;
	enum pando_holding holding;
	unsigned int client; /* private: whose span it lies in; held: by whom */
};

static struct fake_heap heap;
static struct pando_region regions[CLIENTS];
static struct object objects[OBJECTS];
static void *freed; /* what was freed last */
static enum pando_misuse misuse;
static uint8_t content;

static struct input {
	const uint8_t *data;
	size_t size;
} in;

static uint32_t number(unsigned int bytes)
{
	uint32_t n = 0;

	for (; bytes > 0 && in.size > 0; bytes--, in.size--)
		n = n << 8 | *in.data++;
	return n;
}

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz-heap: %s (last: %s)\n", what, pando_strerror_last());
	abort();
}

static void misused(struct pando_region *r, const void *p, enum pando_misuse what,
		    const char *sentence, void *arg)
{
	(void)r, (void)p, (void)sentence, (void)arg;
	misuse = what;
}

static pando_holder name(unsigned int client)
{
	return (client + 1) | regions[client].generation << 16;
}

static struct object *some_object(void)
{
	uint32_t n = number(1);

	for (unsigned int i = 0; i < OBJECTS; i++)
		if (objects[(n + i) % OBJECTS].p)
			return &objects[(n + i) % OBJECTS];
	return NULL;
}

static size_t some_size(void)
{
	uint32_t n = number(2);

	switch (n >> 13) {
	case 7:
		return (n & 0x1fff) * 100; /* up to three spans */
	case 6:
		return (n & 0x1fff) * 8;
	case 5:
		return n & 0x1fff;
	default:
		return (n & 0x1fff) % 1100;
	}
}

/* The first and the last bytes of it, and one of each page. */
static void touch(struct object *o, bool verify)
{
	for (size_t at = 0; at < o->size; at += at < 64 || at + 64 >= o->size ? 1 : 61) {
		must(!verify || o->p[at] == o->content, "an object has lost its content");
		o->p[at] = o->content;
	}
}

static void made(void *p, size_t size, unsigned int client)
{
	for (unsigned int i = 0; i < OBJECTS; i++)
		if (!objects[i].p) {
			objects[i] = (struct object){
				.p = p,
				.size = size,
				.content = ++content,
				.holding = PANDO_HOLDING_PRIVATE,
				.client = client,
			};
			touch(&objects[i], false);
			return;
		}
	pando_free(&regions[client], p);
}

static void op_alloc(unsigned int client, unsigned int how)
{
	size_t size = some_size(), alignment = 1;
	void *p;

	if (how == 0) {
		p = pando_alloc(&regions[client], size);
	} else if (how == 1) {
		p = pando_calloc(&regions[client], 1, size);
		for (size_t i = 0; p && i < size; i++)
			must(((char *)p)[i] == 0, "calloc() gives something else than zeros");
	} else {
		alignment = 1u << number(1) % 19;
		p = pando_alloc_aligned(&regions[client], alignment, size);
	}
	if (!p) {
		must(errno == ENOMEM, "an allocation failed, and not for lack of memory");
		return;
	}
	must((uintptr_t)p % alignment == 0 && (uintptr_t)p % PANDO_HEAP_GRANULE == 0, "alignment");
	made(p, size, client);
}

/* May the client free it? May it give it away? */
static bool may(const struct object *o, unsigned int client, bool give)
{
	if (o->holding == PANDO_HOLDING_SHARED)
		return true;
	return o->client == client || (o->holding == PANDO_HOLDING_PRIVATE && !give);
}

static void op_free(unsigned int client, struct object *o)
{
	touch(o, true);
	misuse = 0;
	pando_free(&regions[client], o->p);
	if (!may(o, client, false)) {
		must(misuse == PANDO_MISUSE_FOREIGN, "another one's object was freed");
		return;
	}
	must(misuse == 0, "freeing was refused");
	must(pando_owner(&regions[client], o->p, NULL) == PANDO_HOLDING_NONE, "free, but not so");
	freed = o->p;
	o->p = NULL;
}

static void op_realloc(unsigned int client, struct object *o)
{
	size_t size = some_size(), common = o->size < size ? o->size : size;
	uint8_t *p;

	touch(o, true);
	misuse = 0;
	p = pando_realloc(&regions[client], o->p, size);
	if (!may(o, client, false)) {
		must(!p && misuse == PANDO_MISUSE_FOREIGN, "another one's object was resized");
		return;
	}
	must(misuse == 0 && (p || errno == ENOMEM), "resizing was refused");
	if (!p)
		return;
	for (size_t i = 0; i < common && i < 64; i++)
		must(p[i] == o->content, "realloc() has lost something");
	if (p != o->p && o->holding == PANDO_HOLDING_PRIVATE)
		o->client = client;
	o->p = p;
	o->size = size;
	touch(o, false);
}

static void op_transfer(unsigned int client, struct object *o)
{
	unsigned int to = number(1);
	bool stale = to & 0x80;
	int rc;

	to %= CLIENTS;
	rc = pando_transfer(&regions[client], o->p, stale ? name(to) - (1ull << 16) : name(to));
	if (!may(o, client, true)) {
		must(rc == -EPERM, "another one's object was given away");
	} else if (stale) {
		must(rc == -ESRCH, "an object was given to nobody");
	} else {
		must(rc == 0, "giving was refused");
		o->holding = PANDO_HOLDING_HELD;
		o->client = to;
	}
}

static void op_share(unsigned int client, struct object *o)
{
	int rc = pando_share(&regions[client], o->p);

	if (!may(o, client, true)) {
		must(rc == -EPERM, "another one's object was shared");
		return;
	}
	must(rc == 0, "sharing was refused");
	o->holding = PANDO_HOLDING_SHARED;
}

static bool begins(const void *p)
{
	for (unsigned int i = 0; i < OBJECTS; i++)
		if (objects[i].p == p)
			return true;
	return false;
}

/* Somewhere in the region, but where no object begins. */
static void op_wrong(unsigned int client)
{
	uint32_t n = number(3);
	char *p = heap.view.base + (uint64_t)n % (SIZE / 8) * 8;

	if (n & 0x800000 && freed)
		p = freed;
	if (begins(p))
		return;
	misuse = 0;
	if (n & 0x400000)
		must(!pando_realloc(&regions[client], p, 100), "resized what is none");
	else
		pando_free(&regions[client], p);
	must(misuse != 0 && misuse != PANDO_MISUSE_FOREIGN, "freed what is no object");
	must(pando_usable_size(&regions[client], p) == 0, "no object has a size");
}

static void op_kill(unsigned int client)
{
	struct pando__reclaimed out = {0};

	fake_region_kill(&regions[client], &out);
	for (unsigned int i = 0; i < OBJECTS; i++)
		if (objects[i].p && objects[i].holding != PANDO_HOLDING_SHARED &&
		    objects[i].client == client)
			objects[i].p = NULL;
}

static void op_broker(unsigned int how)
{
	struct pando__reclaimed out = {0};

	switch (how % 6) {
	case 0:
		(void)pando__heap_sweep(&heap.view, &out);
		break;
	case 1:
		(void)pando__heap_recover(&heap.view, &out);
		break;
	case 2:
		(void)pando__spans_purge(&heap.view, PANDO__OWNER_BROKER, 0, 100);
		break;
	default:
		(void)pando__heap_collect_idle(&heap.view, how % 6 - 3, &out);
	}
}

static void compare(void)
{
	uint64_t all = 0, held = 0, shared = 0;
	struct pando_heap_stat st;

	for (unsigned int i = 0; i < OBJECTS; i++) {
		const struct object *o = &objects[i];
		pando_holder holder;

		if (!o->p)
			continue;
		all++;
		held += o->holding == PANDO_HOLDING_HELD;
		shared += o->holding == PANDO_HOLDING_SHARED;
		must(pando_owner(&regions[0], o->p, &holder) == o->holding, "state");
		must(holder == (o->holding == PANDO_HOLDING_SHARED ? 0 : name(o->client)),
		     "holder");
		must(pando_usable_size(&regions[0], o->p) >= o->size, "size");
	}
	must(pando__heap_verify(&heap.view, heap.slots, 1) == 0, "the heap is broken");
	must(pando_heap_stat(&regions[0], &st) == 0, "no heap");
	must(st.objects == all && st.held == held && st.shared == shared, "numbers of objects");
}

static void step(void)
{
	const uint32_t byte = number(1);
	const unsigned int client = (byte >> 5) % CLIENTS, op = byte & 31;
	struct object *o;

	if (op < 12) {
		op_alloc(client, op % 3);
	} else if (op < 14) {
		op_wrong(client);
	} else if (op == 14) {
		(void)pando_heap_trim(&regions[client]);
	} else if (op == 15) {
		op_kill(client);
	} else if (op < 18) {
		op_broker(number(1));
	} else {
		o = some_object();
		if (!o)
			return;
		if (op < 24)
			op_free(client, o);
		else if (op < 27)
			op_realloc(client, o);
		else if (op < 30)
			op_transfer(client, o);
		else
			op_share(client, o);
	}
}

static void empty(void)
{
	struct pando__reclaimed out = {0};
	struct pando_heap_stat st;

	for (unsigned int i = 0; i < OBJECTS; i++)
		if (objects[i].p)
			op_free(objects[i].holding == PANDO_HOLDING_SHARED ? 0 : objects[i].client,
				&objects[i]);
	for (unsigned int i = 0; i < CLIENTS; i++)
		(void)pando_heap_trim(&regions[i]);
	(void)pando__heap_sweep(&heap.view, &out);
	compare();
	must(pando_heap_stat(&regions[0], &st) == 0 && st.pages_used == 0 && st.pending == 0 &&
		     st.spans_free == st.spans,
	     "all objects are freed, and the heap is not empty");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	in = (struct input){data, size};
	fake_heap_init(&heap, SIZE, SIZE, number(1) & 1);
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_init(&regions[i], &heap, i);
	pando_heap_on_misuse(misused, NULL);
	memset(objects, 0, sizeof(objects));
	freed = NULL;
	content = 0;
	for (unsigned int i = 0; i < OPERATIONS && in.size > 0; i++) {
		step();
		compare();
	}
	empty();
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_deinit(&regions[i]);
	fake_heap_deinit(&heap);
	return 0;
}
