/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Readers of this process: places, seats, and what a thread's end, closing a region and fork() mean.
 *
 *	seat	what the process has of one region: its view, which reader records are taken, what it
 *		has retired. Made with first use, under `lock`; gone when the region is closed
 *	place	what one thread has of one seat: a reader record. In a list of the thread
 *	gate	what the inline functions see of a region: the seat's serial number and the counter's
 *		address
 *
 * The inline functions compare the serial in the thread's `pando__reading`, which is that of the place
 * which it used last, with the one in the region's gate. No other seat of the process ever has that
 * number: so threads need not be told when a region is closed; their places are forgotten when they
 * look, or end. Gates lie in memory that the kernel wipes in a forked child: there the comparison
 * fails, after any kind of fork, and the slow path makes the child a seat of its own in its own slot
 * page. (The parent's page is read-only in the child, see fork.c.)
 *
 * Records. The first PANDO__SLOT_READERS lie in the client's own slot page; whoever has more threads
 * takes pages of PANDO__PAGE_READERS behind the slots, by compare-and-swap of the page's owner. A
 * process that dies with such a page leaves the page to the broker, like its slot. Killed
 *
 *	after pages_high	a page more is looked at by those who wait: it has no owner
 *	after page_owner	the page is zero, or not there yet, which reads as zero
 *	after readers_high	a record more is looked at: it is zero
 *
 * A fenced seat (see grace.c) has serial 0 in its gate and 1 in its threads': every lock and unlock
 * comes here and executes an exchange.
 *
 * What is not async-signal-safe: a thread's first lock in a region. `current` below changes in an
 * order in which an interrupting handler finds either a whole place or none.
 */
#include "reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/fail.h"
#include "common/inject.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define SERIAL_NONE 1u /* of a thread that has no place; seats begin with the next one */
#define PAGE PANDO__SLOT_SIZE

static_assert(offsetof(struct pando__rcu, waiting) == 8, "grace[1] in struct pando__read_gate");
static_assert(offsetof(struct pando__rcu, grace) == 0, "grace[0]");

struct pando__wiped {
	struct pando__read_gate gate;
	volatile uint32_t mark; /* 1; reads as 0 in a forked child */
};

struct place {
	uint64_t serial; /* of its seat */
	struct pando__reader *reader;
	uint32_t more; /* index in seat->more + 1; 0: in the own page */
	uint32_t index;
	struct place *next; /* of the thread */
};

static const struct pando__read_gate no_gate;
__thread struct pando__reading pando__reading
	__attribute__((tls_model("initial-exec"))) = {.serial = SERIAL_NONE};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pando__seat *seats; /* under lock */
static uint64_t last_serial = SERIAL_NONE; /* under lock; goes on in children */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static uint32_t *mark; /* reads as 0 in a child of any kind of fork */
static int setup_error;

static void *wiped_new(void)
{
	void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	if (madvise(at, PAGE, MADV_WIPEONFORK) < 0) {
		munmap(at, PAGE);
		return NULL;
	}
	return at;
}

static void forget_current(void)
{
	pando__reading.serial = SERIAL_NONE;
}

static void make_current(const struct pando__seat *seat, const struct place *p)
{
	/* A signal handler that comes in between finds no place, and sets this as it needs it. */
	forget_current();
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	pando__reading.section = &p->reader->section;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	pando__reading.serial = seat->fenced ? SERIAL_NONE : seat->serial;
}

/* In a child of a fork whose parent had seats: forgets them. */
static void check_fork(void)
{
	uint32_t *at = pando__load_acquire(&mark);

	if (!at || pando__load_relaxed(at) != 0)
		return;
	pando__store_relaxed(at, 1);
	pthread_mutex_init(&lock, NULL);
	seats = NULL;
	forget_current();
}

/* --- records --- */

static struct pando__reader *more_readers(const struct pando__seat *s, uint32_t page)
{
	return (struct pando__reader *)(uintptr_t)(s->view.slots + PANDO__READERS_OFFSET +
						   (size_t)page * PAGE);
}

static int lowest_free(uint64_t used, unsigned int count)
{
	const int i = ~used ? __builtin_ctzll(~used) : 64;

	return i < (int)count ? i : -1;
}

/* Makes the page's memory ours to write. */
static int open_page(const struct pando__seat *s, uint32_t page)
{
	void *at = more_readers(s, page);

	if (mprotect(at, PAGE, PROT_READ | PROT_WRITE) < 0)
		return -errno;
	/* Linux before 5.14 does not know it: then a write takes the memory. */
	if (madvise(at, PAGE, MADV_POPULATE_WRITE) < 0 && errno != EINVAL)
		return -errno;
	return 0;
}

static void raise_high(uint32_t *high, uint32_t to)
{
	uint32_t seen = pando__load_acquire(high);

	while (seen < to && !pando__cas_acq_rel(high, &seen, to))
		;
}

/* Takes a page of readers that nobody has. Returns its number; -EUSERS. */
static int take_page(struct pando__seat *s)
{
	struct pando__rcu *rcu = s->view.rcu;
	const uint64_t me = (uint64_t)(s->slot + 1) | s->generation << 24;

	for (uint32_t i = 0; i < PANDO__READER_PAGES; i++) {
		uint64_t nobody = 0;

		if (pando__load_relaxed(&rcu->page_owner[i]) != 0)
			continue;
		raise_high(&rcu->pages_high, i + 1);
		PANDO_INJECT("rcu.page.high");
		if (pando__cas_seq_cst(&rcu->page_owner[i], &nobody, me)) {
			PANDO_INJECT("rcu.page.owner");
			return (int)i;
		}
	}
	return -EUSERS;
}

static int add_page(struct pando__seat *s)
{
	struct pando__more *more = realloc(s->more, (s->more_count + 1) * sizeof(*more));
	int page, rc;

	if (!more)
		return pando__fail(ENOMEM, "no memory for one more reader of region \"%.63s\"",
				   s->view.ledger->name);
	s->more = more;
	page = take_page(s);
	if (page < 0)
		return pando__fail(
			EUSERS,
			"the reader table of region \"%.63s\" is full: no thread more can "
			"read in it until another one ends",
			s->view.ledger->name);
	rc = open_page(s, (uint32_t)page);
	if (rc < 0) {
		pando__store_release(&s->view.rcu->page_owner[page], 0);
		return pando__fail(-rc, "no memory for one more reader of region \"%.63s\": %s",
				   s->view.ledger->name, strerror(-rc));
	}
	more[s->more_count++] = (struct pando__more){.page = (uint32_t)page};
	return 0;
}

/* Finds a record for p. Under lock. 0 or a negative errno with a sentence. */
static int take_record(struct pando__seat *s, struct place *p)
{
	int i = lowest_free(s->own_used, PANDO__SLOT_READERS), rc;

	if (i >= 0) {
		s->own_used |= 1ull << i;
		p->index = (uint32_t)i;
		p->reader = &s->page->readers[i];
		/* Only this process raises it, under the lock; seen before the first section is. */
		raise_high(&s->page->readers_high, (uint32_t)i + 1);
		PANDO_INJECT("rcu.reader.high");
		return 0;
	}
	while (p->more < s->more_count) {
		struct pando__more *m = &s->more[p->more++];

		i = lowest_free(m->used, PANDO__PAGE_READERS);
		if (i < 0)
			continue;
		m->used |= 1ull << i;
		p->index = (uint32_t)i;
		p->reader = more_readers(s, m->page) + i;
		return 0;
	}
	rc = add_page(s);
	return rc < 0 ? rc : take_record(s, p);
}

/* Gives the record back, and ends a section that is open. Under lock. */
static void give_record(struct pando__seat *s, struct place *p)
{
	const uint64_t section = pando__load_relaxed(&p->reader->section);

	pando__store_relaxed(&p->reader->tid, 0);
	(void)pando__exchange_seq_cst(&p->reader->section, 0);
	PANDO_INJECT("rcu.reader.ended");
	if (section)
		pando__read_wake(&s->view.rcu->grace, section);
	if (p->more)
		s->more[p->more - 1].used &= ~(1ull << p->index);
	else
		s->own_used &= ~(1ull << p->index);
}

/* --- seats --- */

static void seat_delete(struct pando__seat *s)
{
	if (s->wiped)
		munmap(s->wiped, PAGE);
	if (s->retired)
		pando__retired_free(s->retired);
	pthread_mutex_destroy(&s->retire_lock);
	free(s->more);
	free(s);
}

static struct pando__seat *seat_new(const struct pando__rcu_place *place)
{
	struct pando__seat *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	pthread_mutex_init(&s->retire_lock, NULL);
	s->wiped = wiped_new();
	if (!s->wiped) {
		seat_delete(s);
		return NULL;
	}
	s->view = pando__rcu_view(place->ledger, place->slots);
	s->slot = place->slot;
	s->generation = place->generation;
	s->page = (struct pando__slot *)(void *)(place->slots + (size_t)place->slot * PAGE);
	s->fenced = !pando__membarrier_register() || place->ledger->rcu_mode == PANDO__RCU_FENCED;
	s->serial = ++last_serial;
	s->wiped->mark = 1;
	s->wiped->gate.grace = &s->view.rcu->grace;
	s->wiped->gate.serial = s->fenced ? 0 : s->serial;
	return s;
}

static void unlink_seat(struct pando__seat *s)
{
	struct pando__seat **at = &seats;

	while (*at && *at != s)
		at = &(*at)->next;
	if (*at)
		*at = s->next;
}

/* Of a region without one, or in a forked child. Under lock. */
static struct pando__seat *make_seat(struct pando__rcu_gate *gate,
				     const struct pando__rcu_place *place)
{
	struct pando__seat *s = seat_new(place);

	if (!s)
		return NULL;
	/* The parent's seat, if there is one, may be in the middle of a change: it is left alone. */
	s->next = seats;
	seats = s;
	pando__store_release(&gate->seat, s);
	pando__store_release(&gate->reading, &s->wiped->gate);
	return s;
}

static void thread_ends(void *unused);

static void setup(void)
{
	uint32_t *at = wiped_new();

	setup_error = at ? pthread_key_create(&key, thread_ends) : ENOMEM;
	if (!at)
		return;
	*at = 1;
	pando__store_release(&mark, at);
}

struct pando__seat *pando__rcu_seat(struct pando_region *r, int *rc)
{
	struct pando__rcu_gate *gate = pando__rcu_gate(r);
	struct pando__rcu_place place;
	struct pando__seat *s;

	check_fork();
	s = pando__load_acquire(&gate->seat);
	if (s && s->wiped->mark)
		return s;
	pthread_once(&once, setup);
	*rc = pando__region_rcu_place(r, &place, true);
	if (*rc < 0)
		return NULL;
	pthread_mutex_lock(&lock);
	s = gate->seat;
	if (!s || !s->wiped->mark)
		s = setup_error ? NULL : make_seat(gate, &place);
	pthread_mutex_unlock(&lock);
	if (!s)
		*rc = pando__fail(ENOMEM, "no memory to read in region \"%.63s\"",
				  place.ledger->name);
	return s;
}

void pando__rcu_gate_init(struct pando__rcu_gate *gate)
{
	gate->reading = &no_gate;
	gate->seat = NULL;
}

void pando__rcu_gate_close(struct pando__rcu_gate *gate)
{
	struct pando__seat *s = gate->seat;

	check_fork();
	pando__rcu_gate_init(gate);
	if (!s)
		return;
	pthread_mutex_lock(&lock);
	unlink_seat(s);
	pthread_mutex_unlock(&lock);
	seat_delete(s);
}

void pando__rcu_gate_forked(struct pando__rcu_gate *gate)
{
	check_fork();
	gate->reading = &no_gate;
}

/* --- places --- */

static struct pando__seat *find_seat(uint64_t serial)
{
	struct pando__seat *s = seats;

	while (s && s->serial != serial)
		s = s->next;
	return s;
}

/* Takes p out of the thread's list, and its record back, if its seat is still there. Under lock. */
static void drop_place(struct place *p)
{
	struct place **at = (struct place **)&pando__reading.places;
	struct pando__seat *s = find_seat(p->serial);

	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	if (s)
		give_record(s, p);
	free(p);
}

static void thread_ends(void *unused)
{
	(void)unused;
	check_fork();
	forget_current();
	pthread_mutex_lock(&lock);
	while (pando__reading.places)
		drop_place(pando__reading.places);
	pthread_mutex_unlock(&lock);
}

/* Places in regions that have been closed, or of the parent's. Under lock. */
static void drop_stale(void)
{
	struct place *p = pando__reading.places, *next;

	for (; p; p = next) {
		next = p->next;
		if (!find_seat(p->serial))
			drop_place(p);
	}
}

static struct place *find_place(const struct pando__seat *s)
{
	struct place *p = pando__reading.places;

	while (p && p->serial != s->serial)
		p = p->next;
	return p;
}

static struct place *new_place(struct pando__seat *s, int *rc)
{
	struct place *p = calloc(1, sizeof(*p));

	if (!p || pthread_setspecific(key, p) != 0) {
		free(p);
		*rc = pando__fail(ENOMEM, "no memory for one more reader of region \"%.63s\"",
				  s->view.ledger->name);
		return NULL;
	}
	p->serial = s->serial;
	pthread_mutex_lock(&lock);
	drop_stale();
	*rc = take_record(s, p);
	pthread_mutex_unlock(&lock);
	if (*rc < 0) {
		free(p);
		return NULL;
	}
	pando__store_relaxed(&p->reader->tid, (uint32_t)syscall(SYS_gettid));
	p->next = pando__reading.places;
	pando__reading.places = p;
	PANDO_INJECT("rcu.reader.placed");
	return p;
}

/* This thread's place in r, now current; make: if it has none. NULL with *rc (0: it has none). */
static struct place *place_in(struct pando_region *r, bool make, struct pando__seat **seat, int *rc)
{
	struct place *p;

	*rc = 0;
	check_fork();
	*seat = pando__load_acquire(&pando__rcu_gate(r)->seat);
	if (make || (*seat && !(*seat)->wiped->mark))
		*seat = make ? pando__rcu_seat(r, rc) : NULL;
	if (!*seat)
		return NULL;
	p = find_place(*seat);
	if (!p && make)
		p = new_place(*seat, rc);
	if (p)
		make_current(*seat, p);
	return p;
}

static void set_section(const struct pando__seat *s, struct pando__reader *reader, uint64_t section)
{
	if (s->fenced)
		(void)pando__exchange_seq_cst(&reader->section, section);
	else
		pando__store_release(&reader->section, section);
	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* partner: the membarrier() of who waits */
}

int pando__read_lock_slow(struct pando_region *r)
{
	struct pando__seat *s;
	uint64_t section;
	struct place *p;
	int rc;

	p = place_in(r, true, &s, &rc);
	if (!p)
		return rc;
	section = pando__load_relaxed(&p->reader->section);
	if ((section & PANDO__SECTION_DEPTH) == PANDO__SECTION_DEPTH)
		return pando__fail(EOVERFLOW,
				   "read sections of region \"%.63s\" are nested %llu deep",
				   s->view.ledger->name, PANDO__SECTION_DEPTH);
	section = section ? section + 1 : pando__load_acquire(&s->view.rcu->grace);
	set_section(s, p->reader, section);
	PANDO_INJECT("rcu.read.locked");
	return 0;
}

int pando__read_unlock_slow(struct pando_region *r)
{
	struct pando__seat *s;
	uint64_t section = 0;
	struct place *p;
	int rc;

	p = place_in(r, false, &s, &rc);
	if (p)
		section = pando__load_relaxed(&p->reader->section);
	if (section == 0)
		return pando__fail(EPERM, "this thread is in no read section of the region");
	if ((section & PANDO__SECTION_DEPTH) > 1) {
		pando__store_relaxed(&p->reader->section, section - 1);
		return 0;
	}
	set_section(s, p->reader, 0);
	PANDO_INJECT("rcu.read.ended");
	if (pando__load_relaxed(&s->view.rcu->waiting))
		pando__read_wake(&s->view.rcu->grace, section);
	return 0;
}

void pando__read_wake(const uint64_t *grace, uint64_t section)
{
	struct pando__rcu *rcu = (struct pando__rcu *)(uintptr_t)grace;
	const uint64_t waiting = pando__load_acquire(&rcu->waiting);

	if (!waiting || !pando__section_before(section, waiting))
		return; /* it was not this one that somebody waits for */
	PANDO_INJECT("rcu.wake.begin");
	pando__grace_wake(rcu);
}

unsigned int pando__read_depth(struct pando_region *r)
{
	struct pando__seat *s;
	struct place *p;
	int rc;

	p = place_in(r, false, &s, &rc);
	return p ? (unsigned int)(pando__load_relaxed(&p->reader->section) & PANDO__SECTION_DEPTH)
		 : 0;
}

int pando_reader_register(struct pando_region *r)
{
	struct pando__seat *s;
	int rc;

	return place_in(r, true, &s, &rc) ? 0 : rc;
}

int pando_reader_unregister(struct pando_region *r)
{
	struct pando__seat *s;
	struct place *p;
	int rc;

	p = place_in(r, false, &s, &rc);
	if (!p)
		return 0;
	if (pando__load_relaxed(&p->reader->section))
		return pando__fail(EBUSY, "this thread is in a read section of region \"%.63s\"",
				   s->view.ledger->name);
	forget_current();
	pthread_mutex_lock(&lock);
	drop_place(p);
	pthread_mutex_unlock(&lock);
	return 0;
}
