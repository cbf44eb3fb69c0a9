/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fronts and threads of this process: who has magazines for what, and what a thread's end, a
 * detach and a fork() mean for them.
 *
 * A front is a client's seat at one heap; it has a serial number that no other front of this process
 * ever has. A thread gets magazines for a front at its first allocation, and keeps them in a list of
 * its own; three words of its static TLS say which of them are `current`, those that the fast paths
 * use. A thread that works on several regions in turn changes `current` on the slow path.
 *
 *	the thread ends		a key's destructor empties the magazines into the slabs
 *	the front goes first	its magazines are marked as gone, and unmapped by their thread when
 *				it next looks, or ends; shared memory is not touched: what was in
 *				them dies with the client
 *	fork()			magazines lie in memory that the kernel wipes in the copy. The child
 *				forgets all fronts (their memory is freed when it makes one of its
 *				own) and touches nothing that the parent had
 *
 * One lock, of the process: the list of fronts, the lists of their threads, which intents are taken.
 * Taken before the locks of a front; made anew in a forked child, whose state is empty. In a child of
 * _Fork() or clone() no handler runs: pando__threads_check() comes before every use of a lock, and
 * knows the fork by a wiped page.
 */
#include "debug.h"
#include "remote.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/inject.h"

/* What a thread has that has nothing: in it every magazine is both empty and full. */
static struct pando__magazines none;
_Thread_local struct pando__thread pando__thread = {.current = &none};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pando__front *fronts, *abandoned; /* under lock */
static uint64_t last_serial; /* under lock; goes on in children */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static volatile uint32_t *mark; /* reads as 0 in a forked child that has not noticed yet */
static int setup_error;

static void *wiped_new(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	if (madvise(at, size, MADV_WIPEONFORK) < 0) {
		munmap(at, size);
		return NULL;
	}
	return at;
}

static void drop(struct pando__magazines *m)
{
	munmap(m, sizeof(*m));
}

static void forget_current(void)
{
	pando__thread.serial = 0;
	pando__thread.current = &none;
}

/* Takes m out of what its front knows of. Under lock. */
static void unlink_of_front(struct pando__magazines *m)
{
	struct pando__front *f = m->front;

	if (!f)
		return;
	*m->at_front = m->next_of_front;
	if (m->next_of_front)
		m->next_of_front->at_front = m->at_front;
	if (!m->intent_shared)
		f->intents_used[m->intent_number / 64] &= ~(1ull << m->intent_number % 64);
	m->front = NULL;
}

static void flush(struct pando__magazines *m, struct pando__front *f)
{
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++) {
		if (m->top[class] != m->bottom[class])
			pando__slab_flush(f, class, m->bottom[class],
					  (unsigned int)(m->top[class] - m->bottom[class]));
		m->top[class] = m->bottom[class];
	}
}

void pando__magazines_flush(struct pando__front *f)
{
	for (struct pando__magazines *m = pando__thread.all; m; m = m->next)
		if (m->serial == f->serial)
			flush(m, f);
}

/* A thread's end. Whoever allocates in a later destructor gets magazines anew, and this again. */
static void thread_ends(void *unused)
{
	struct pando__magazines *m, *next;

	(void)unused;
	pando__threads_check();
	m = pando__thread.all;
	forget_current();
	pando__thread.all = NULL;
	pthread_mutex_lock(&lock);
	for (; m; m = next) {
		next = m->next;
		if (m->front) {
			pando__remote_settle(m);
			flush(m, m->front);
			pando__large_thread_end(m->front, m);
		}
		PANDO_INJECT("heap.thread.flushed");
		unlink_of_front(m);
		drop(m);
	}
	pthread_mutex_unlock(&lock);
}

static void setup(void)
{
	mark = wiped_new(PANDO__PAGE);
	if (!mark)
		setup_error = ENOMEM;
	else
		*mark = 1;
	if (!setup_error)
		setup_error = pthread_key_create(&key, thread_ends);
}

void pando__threads_check(void)
{
	if (!mark || *mark != 0)
		return;
	*mark = 1;
	pthread_mutex_init(&lock, NULL);
	/* Their memory may be in the middle of a change, but for the links. */
	while (fronts) {
		struct pando__front *next = fronts->next;

		fronts->next = abandoned;
		abandoned = fronts;
		fronts = next;
	}
	/* The others' magazines, and further ones of this thread, are pages of zeros: left alone. */
	if (pando__thread.all)
		drop(pando__thread.all);
	pando__thread.all = NULL;
	forget_current();
}

static int take_intent(struct pando__front *f)
{
	for (unsigned int i = 0; i < PANDO__INTENTS - 1; i++)
		if (!(f->intents_used[i / 64] & 1ull << i % 64)) {
			f->intents_used[i / 64] |= 1ull << i % 64;
			return (int)i;
		}
	return PANDO__INTENTS - 1;
}

/* Returns how many entries of the store the magazine takes. */
static unsigned int magazine_init(struct pando__magazines *m, unsigned int class, void **store)
{
	const unsigned int size = pando__classes[class].size, page = PANDO__PAGE / size;
	unsigned int room = PANDO__MAGAZINE_GROWN;

	while (room * 2 <= PANDO__MAGAZINE_MAX && room * 2 * size <= PANDO__MAGAZINE_BYTES)
		room *= 2;
	m->top[class] = m->bottom[class] = store;
	m->limit[class] = store + PANDO__MAGAZINE;
	m->room[class] = (uint16_t)room;
	m->fill[class] = (uint16_t)(page < PANDO__MAGAZINE / 4 ? page : PANDO__MAGAZINE / 4);
	return room;
}

static struct pando__magazines *magazines_new(struct pando__front *f)
{
	struct pando__magazines *m = wiped_new(sizeof(*m));
	unsigned int room = 0;

	if (!m)
		return NULL;
	m->base = (uint64_t)(uintptr_t)f->view.base;
	m->granules = f->view.max_size / PANDO__GRANULE;
	m->page_table = f->view.page_table;
	m->objects = f->view.objects;
	m->words = (uintptr_t)f->view.objects - (uintptr_t)f->view.base / 16;
	m->me = PANDO__PAGE_ENTRY(f->me, 0, 0);
	m->untold = PANDO__NOTHING_UNTOLD;
	for (unsigned int class = 1; class < PANDO__CLASSES; class ++)
		room += magazine_init(m, class, m->store + room);
	assert(room <= sizeof(m->store) / sizeof(m->store[0]));
	m->serial = f->serial;
	pthread_mutex_lock(&lock);
	m->intent_number = (uint32_t)take_intent(f);
	m->intent_shared = m->intent_number == PANDO__INTENTS - 1;
	m->intent = &f->intents[m->intent_number];
	m->front = f;
	m->next_of_front = f->threads;
	m->at_front = &f->threads;
	if (f->threads)
		f->threads->at_front = &m->next_of_front;
	f->threads = m;
	pthread_mutex_unlock(&lock);
	return m;
}

/* Unmaps what this thread has of fronts that are gone. */
static void sweep_own(void)
{
	struct pando__magazines **at = &pando__thread.all, *m;

	pthread_mutex_lock(&lock);
	while ((m = *at)) {
		if (m->front) {
			at = &m->next;
			continue;
		}
		*at = m->next;
		drop(m);
	}
	pthread_mutex_unlock(&lock);
}

struct pando__magazines *pando__magazines(struct pando__front *f)
{
	struct pando__magazines *m = pando__thread.current;

	if (pando__thread.serial == f->serial && m->serial == f->serial)
		return m;
	pando__threads_check();
	for (m = pando__thread.all; m && m->serial != f->serial; m = m->next)
		;
	if (!m) {
		forget_current();
		sweep_own();
		m = magazines_new(f);
		if (!m || pthread_setspecific(key, m) != 0) {
			pando__fail(ENOMEM, "no memory for a thread's part of the heap (%zu bytes)",
				    sizeof(*m));
			if (m) {
				pthread_mutex_lock(&lock);
				unlink_of_front(m);
				pthread_mutex_unlock(&lock);
				drop(m);
			}
			errno = ENOMEM;
			return NULL;
		}
		m->next = pando__thread.all;
		pando__thread.all = m;
	}
	pando__thread.serial = f->serial;
	pando__thread.current = m;
	return m;
}

/* Frees private memory only. */
static void front_delete(struct pando__front *f, bool abandon)
{
	if (f->large)
		pando__large_deinit(f, abandon);
	if (f->slabs)
		pando__slabs_deinit(f);
	pando__pages_deinit(f);
	pando__debug_end(f);
	free(f);
}

static int init(struct pando__front *f, const struct pando__front_options *o)
{
	uint64_t line;
	int rc;

	if (o->slot >= PANDO__HEAP_CLIENTS)
		return pando__fail(
			EUSERS,
			"slot %u of region \"%.63s\" is one that cannot own objects: %u can",
			o->slot, o->ledger->name, PANDO__HEAP_CLIENTS);
	rc = pando__view_init(&f->view, o->base, o->ledger);
	if (rc == 0)
		rc = pando__heap_format(&f->view);
	if (rc < 0)
		return rc;
	line = pando__offset(&f->view, &f->view.clients[o->slot]) & ~(uint64_t)(PANDO__PAGE - 1);
	rc = pando__commit(&f->view, line, PANDO__PAGE);
	if (rc < 0)
		return rc;
	f->region = o->region;
	f->slots = o->slots;
	f->slot = o->slot;
	f->me = o->slot + 1;
	f->generation = o->generation;
	f->intents =
		(struct pando__intent *)(void *)(o->slots + (size_t)o->slot * PANDO__SLOT_SIZE +
						 PANDO__INTENTS_OFFSET);
	f->heeds = pando__remote_heeds();
	f->view.self = f->me;
	f->view.available = o->available;
	pthread_mutex_init(&f->intent_lock, NULL);
	rc = pando__debug_begin(f);
	if (rc == 0)
		rc = pando__pages_init(f);
	if (rc == 0)
		rc = pando__slabs_init(f);
	return rc < 0 ? rc : pando__large_init(f);
}

static void free_abandoned(void)
{
	struct pando__front *f, *next;

	pthread_mutex_lock(&lock);
	f = abandoned;
	abandoned = NULL;
	pthread_mutex_unlock(&lock);
	for (; f; f = next) {
		next = f->next;
		front_delete(f, true);
	}
}

struct pando__front *pando__front_new(const struct pando__front_options *o)
{
	struct pando__front *f;
	int rc;

	pthread_once(&once, setup);
	pando__threads_check();
	free_abandoned();
	f = setup_error ? NULL : calloc(1, sizeof(*f));
	if (!f) {
		pando__fail(ENOMEM, "no memory to use the heap of region \"%.63s\"",
			    o->ledger->name);
		errno = ENOMEM;
		return NULL;
	}
	rc = init(f, o);
	if (rc < 0) {
		front_delete(f, false);
		errno = -rc;
		return NULL;
	}
	pthread_mutex_lock(&lock);
	f->serial = ++last_serial;
	f->next = fronts;
	fronts = f;
	pthread_mutex_unlock(&lock);
	return f;
}

void pando__front_free(struct pando__front *f)
{
	struct pando__front **at = &fronts;

	pando__threads_check();
	pthread_mutex_lock(&lock);
	while (*at && *at != f)
		at = &(*at)->next;
	if (*at)
		*at = f->next;
	/* Their objects stay CACHED: as those that are LIVE, the broker frees them. */
	while (f->threads)
		unlink_of_front(f->threads);
	pthread_mutex_unlock(&lock);
	front_delete(f, false);
}

void pando__front_abandon(struct pando__front *f)
{
	/* All of them, at the first sight of the fork. */
	pando__threads_check();
	if (f->debug)
		pando__debug_permit(f, f->view.first, f->view.end - f->view.first);
}
