/* SPDX-License-Identifier: BSD-2-Clause */
#include "fake_heap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/atomic.h"
#include "rcu/grace.h"

#define ALIGN PANDO__GIB

static void *must(void *p, const char *what)
{
	if (p == MAP_FAILED || !p) {
		perror(what);
		exit(99);
	}
	return p;
}

static void *shared(size_t size)
{
	return must(mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
		    "mmap");
}

void fake_heap_init(struct fake_heap *h, uint64_t max_size, uint64_t committed, bool lazy)
{
	char *base;

	memset(h, 0, sizeof(*h));
	h->fd = memfd_create("fake heap", MFD_CLOEXEC);
	if (h->fd < 0 || ftruncate(h->fd, (off_t)max_size) != 0) {
		perror("memfd");
		exit(99);
	}
	h->room_size = max_size + ALIGN;
	h->room = must(mmap(NULL, h->room_size, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
		       "room");
	base = (char *)(((uintptr_t)h->room + ALIGN - 1) & ~(uintptr_t)(ALIGN - 1));
	must(mmap(base, max_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
		  h->fd, 0),
	     "heap");
	h->ledger = shared(PANDO__LEDGER_SIZE);
	h->slots = shared(PANDO__SLOTS_SIZE);
	pando__grace_format((struct pando__rcu *)(void *)(h->slots + PANDO__RCU_OFFSET));
	h->ledger->magic = PANDO__LEDGER_MAGIC;
	h->ledger->version = PANDO__LAYOUT_VERSION;
	h->ledger->base = (uintptr_t)base;
	h->ledger->max_size = max_size;
	h->ledger->committed = committed;
	h->ledger->page_size = PANDO__PAGE;
	h->ledger->max_clients = PANDO__MAX_CLIENTS;
	h->ledger->flags = lazy ? PANDO_HEAP : 0;
	h->ledger->directory_seed = 0x5eed5eed5eed5eedull;
	strcpy(h->ledger->name, "fake");
	if (pando__view_init(&h->view, base, h->ledger) != 0 || pando__heap_format(&h->view) != 0) {
		fprintf(stderr, "fake heap: %s\n", pando_strerror_last());
		exit(99);
	}
	h->view.self = PANDO__OWNER_BROKER;
}

void fake_heap_deinit(struct fake_heap *h)
{
	munmap(h->room, h->room_size);
	munmap(h->ledger, PANDO__LEDGER_SIZE);
	munmap(h->slots, PANDO__SLOTS_SIZE);
	close(h->fd);
}

uint64_t fake_heap_memory(const struct fake_heap *h)
{
	struct stat st;

	return fstat(h->fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

struct pando__front *fake_front_new(struct fake_heap *h, uint32_t slot)
{
	struct pando__front *f = must(calloc(1, sizeof(*f)), "front");
	struct pando__ledger_client *e = pando__ledger_client(h->ledger, slot);

	f->view = h->view;
	f->view.self = f->me = slot + 1;
	f->slot = slot;
	f->slots = h->slots;
	f->generation = 1;
	e->pid = getpid();
	pando__store_release(&e->word, PANDO__CLIENT_WORD(1, PANDO__CLIENT_LIVE));
	if (h->ledger->clients_high <= slot)
		pando__store_release(&h->ledger->clients_high, slot + 1);
	if (pando__commit(&f->view,
			  ((uint64_t)((char *)&h->view.clients[slot] - h->view.base)) &
				  ~(uint64_t)(PANDO__PAGE - 1),
			  PANDO__PAGE) != 0 ||
	    pando__pages_init(f) != 0) {
		fprintf(stderr, "fake front: %s\n", pando_strerror_last());
		exit(99);
	}
	return f;
}

void fake_front_free(struct pando__front *f)
{
	pando__pages_deinit(f);
	pthread_mutex_destroy(&f->pages_lock);
	free(f);
}

void fake_heap_bury(struct fake_heap *h, uint32_t slot)
{
	struct pando__view *v = &h->view;

	for (uint32_t i = (uint32_t)(v->first / PANDO__SPAN); i < v->end / PANDO__SPAN; i++) {
		uint64_t word = pando__load_acquire(&v->spans[i].word);

		if (PANDO__SPAN_OWNER(word) != slot + 1)
			continue;
		pando__span_finish(v, i, slot + 1);
		if (PANDO__SPAN_STATE(word) != PANDO__SPAN_OWNED)
			continue;
		memset(&v->page_table[(uint64_t)i * PANDO__SPAN_PAGES], 0,
		       PANDO__SPAN_PAGES * sizeof(uint32_t));
		pando__store_relaxed(&v->spans[i].pages, 0);
		pando__store_relaxed(&v->spans[i].lent, PANDO__LENT_NONE);
		(void)pando__span_release(v, i, word);
	}
	pando__store_relaxed(&v->clients[slot].spans, 0);
}
