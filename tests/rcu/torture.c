/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Torture: readers that check every object which they reach, writers that replace objects all the time,
 * and death for all of them.
 *
 * Some cells hold pointers to objects of a region's heap. Writers (processes; each has cells of its
 * own) replace an object and retire the old one, or wait for a grace period, poison it and free it.
 * Readers (processes with some threads each) look at the object in a cell, at the beginning and at the
 * end of a read section: its words follow from its cell and version, and must not change meanwhile.
 * What has been freed is poison, another object, or another version of this one.
 *
 * Processes are killed at random instants, and at every injection point of libshm/rcu; so is the
 * broker, there and at points of its own. Each is replaced by another one. Nobody may stand still for
 * PATIENCE_S. At the end all cells are emptied, and the heap must be: no object, no span in use.
 *
 * What a killed writer was doing to a cell, its successor finds in the cell's journal: that an object
 * has become unreachable and has not been retired yet is a matter of the application's (retire.c).
 *
 * With --names the cells are names of the region's directory instead: readers look them up by name and by
 * handle and go through all of them, writers publish and withdraw them, any writer any name; the points
 * are those of libshm/directory. There is no journal: the directory has intents of its own. At the end the
 * heap has its tables and nothing else.
 *
 * Options: --seconds N (20), --readers N (3), --writers N (2), --kills-per-second N (20), --seed N,
 * --points (first a life and a death at each point of clients and broker), --fenced (as if the kernel
 * had no membarrier()), --names. Pointers are handled with
 * liburcu's operations.
 */
#define _LGPL_SOURCE
#include <urcu/pointer.h>
#include <urcu/uatomic.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <pando/pando.h>

#include "allocator/heap.h"
#include "common/inject.h"
#include "daemon.h"
#include "torture_broker_points.h"
#include "torture_names_broker_points.h"
#include "torture_names_points.h"
#include "torture_points.h"

#define CELLS 64u
#define WORKERS_MAX 64u
#define THREADS 2u
#define CROWD 50u
#define READS 200000u
#define PATIENCE_S 60.0
#define MIB (1ull << 20)
#define POISON 0xdeadbeefdeadbeefull
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct object {
	uint64_t check, cell, version, words; /* how many follow, each the same as `check` */
	uint64_t filled[];
};

struct cell {
	struct object *at; /* what readers find */
	/* The journal: what the cell's writer is about to do. fresh NULL: nothing. */
	struct object *fresh, *old;
	uint64_t fresh_version, old_version;
	uint64_t version; /* of the last object that was begun */
};

struct worker {
	pid_t pid;
	bool writer;
	char inject[96];
	unsigned long beats, reads, replaced, blocked;
	double seen_s; /* parent: when beats were another number last */
	unsigned long seen;
};

/* Shared with all workers, in memory without a name. */
static struct shared {
	struct cell cell[CELLS];
	struct worker worker[WORKERS_MAX];
	int stop;
	unsigned long wrong;
} * shared;

static struct {
	double seconds;
	unsigned int readers, writers, kills_per_second;
	uint64_t seed;
	bool points, fenced, names;
} option = {.seconds = 20, .readers = 3, .writers = 2, .kills_per_second = 20, .seed = 1};

static struct pando_region *region;
static uint64_t dice_state = 88172645463325252ull;

static uint64_t dice_of(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull >> 11;
}

/* Where clients die, or the broker. */
static const char *point_at(bool broker, size_t i)
{
	if (option.names)
		return broker ? torture_names_broker_points[i] : torture_names_points[i];
	return broker ? torture_broker_points[i] : torture_points[i];
}

static size_t point_count(bool broker)
{
	if (option.names)
		return broker ? COUNT(torture_names_broker_points) : COUNT(torture_names_points);
	return broker ? COUNT(torture_broker_points) : COUNT(torture_points);
}

static uint64_t check_of(uint64_t cell, uint64_t version)
{
	return (cell << 48 ^ version) * 0x9e3779b97f4a7c15ull ^ 0x5ca1ab1e;
}

/* --- readers --- */

static _Noreturn void wrong(const struct object *o, uint64_t cell, const char *when)
{
	uatomic_inc(&shared->wrong);
	fprintf(stderr,
		"torture: pid %d, cell %" PRIu64 ", object %p %s: check %" PRIx64 ", cell %" PRIu64
		", version %" PRIu64 ", words %" PRIu64 "\n",
		(int)getpid(), cell, (const void *)o, when, o->check, o->cell, o->version,
		o->words);
	_exit(66);
}

static void look(const struct object *o, uint64_t cell, uint64_t version, const char *when)
{
	if (o->cell != cell || (version && o->version != version) ||
	    o->check != check_of(cell, o->version) || o->words > 4096)
		wrong(o, cell, when);
	for (uint64_t i = 0; i < o->words; i += o->words / 8 + 1)
		if (o->filled[i] != o->check)
			wrong(o, cell, when);
}

static void linger(uint64_t n)
{
	if (n % 4096 == 0)
		nanosleep(&(struct timespec){.tv_nsec = (long)(n >> 12) % 2000000}, NULL);
	else if (n % 256 == 0)
		sched_yield();
}

static const char *name_of(uint64_t k, char name[16])
{
	snprintf(name, 16, "cell %" PRIu64, k);
	return name;
}

static _Thread_local struct pando_handle handles[CELLS];

/* The object of a cell, whatever cells are. In a read section. */
static const struct object *find(uint64_t k, bool by_handle)
{
	char name[16];

	if (!option.names)
		return rcu_dereference(shared->cell[k].at);
	if (!by_handle)
		return pando_lookup(region, name_of(k, name));
	if (handles[k].base == NULL && pando_handle_init(region, &handles[k], name_of(k, name)) < 0)
		_exit(67);
	return pando_lookup_handle(region, &handles[k]);
}

/* All names there are, each of them once; every one is looked at. */
static void go_through(void)
{
	struct pando_name name = {0};
	uint64_t seen = 0;
	unsigned int k;

	while (pando_name_next(region, &name) > 0) {
		const struct object *o = name.descriptor.object;

		if (sscanf(name.name, "cell %u", &k) != 1 || k >= CELLS || seen >> k & 1)
			_exit(73);
		seen |= 1ull << k;
		look(o, k, 0, "in an iteration");
	}
}

static void read_once(uint64_t *state)
{
	const uint64_t n = dice_of(state), k = n % CELLS;
	const struct object *o;
	const bool nested = n >> 8 & 1;
	uint64_t version = 0;

	if (pando_read_lock(region) < 0)
		return; /* a forked child whose broker is being replaced */
	if (nested && pando_read_lock(region) < 0)
		_exit(67);
	if (option.names && (n >> 40) % 1024 == 0)
		go_through();
	o = find(k, n >> 9 & 1);
	if (o) {
		version = o->version;
		look(o, k, version, "when found");
		linger(n >> 16);
		look(o, k, version, "later in the section");
	}
	if (nested && pando_read_unlock(region) < 0)
		_exit(67);
	if (o)
		look(o, k, version, "in the outer section");
	if (pando_read_unlock(region) < 0)
		_exit(67);
}

static struct worker *me;

static uint64_t reads_of_each; /* in the life of a thread */
static pthread_barrier_t together;

static void *read_on(void *arg)
{
	uint64_t state = (uint64_t)(uintptr_t)arg;

	while (pando_reader_register(region) < 0) {
		if (CMM_LOAD_SHARED(shared->stop))
			break;
		nanosleep(&(struct timespec){.tv_nsec = 1000000},
			  NULL); /* the broker is being replaced */
	}
	(void)pthread_barrier_wait(&together);
	for (uint64_t n = 0; n < reads_of_each && !CMM_LOAD_SHARED(shared->stop); n += 64) {
		for (int i = 0; i < 64; i++)
			read_once(&state);
		uatomic_add(&me->reads, 64);
		uatomic_inc(&me->beats);
	}
	return NULL;
}

/* Threads that come and go; sometimes more than a slot page has readers for. */
static void reader(uint64_t seed)
{
	for (unsigned int round = 0; !CMM_LOAD_SHARED(shared->stop); round++) {
		const unsigned int n = round % 8 == 0 ? CROWD : THREADS;
		pthread_t thread[CROWD];

		reads_of_each = n == CROWD ? 64 : READS;
		pthread_barrier_init(&together, NULL, n);
		for (unsigned int i = 0; i < n; i++)
			if (pthread_create(&thread[i], NULL, read_on,
					   (void *)(uintptr_t)(seed + round * CROWD + i)) != 0)
				_exit(68);
		for (unsigned int i = 0; i < n; i++)
			pthread_join(thread[i], NULL);
		pthread_barrier_destroy(&together);
	}
}

/* --- writers --- */

/* True if p is an object of the region's that holds this version of this cell. */
static bool is_there(const struct object *p, uint64_t cell, uint64_t version)
{
	return p && pando_owner(region, p, NULL) == PANDO_HOLDING_SHARED && p->cell == cell &&
	       p->version == version && p->check == check_of(cell, version);
}

static void retire(struct object *o)
{
	int rc;

	while ((rc = pando_retire(region, o, PANDO_NOWAIT)) == -EAGAIN) {
		uatomic_inc(&me->blocked);
		rc = pando_retire(region, o, 0);
		if (rc == 0)
			return;
	}
	if (rc < 0) {
		fprintf(stderr, "torture: retire: %s\n", pando_strerror_last());
		_exit(69);
	}
}

/* Finishes or undoes what the cell's last writer was doing. */
static void recover(uint64_t k)
{
	struct cell *c = &shared->cell[k];
	struct object *fresh = c->fresh;

	if (!fresh)
		return;
	if (c->at != fresh) {
		if (is_there(fresh, k, c->fresh_version))
			pando_free(region, fresh); /* shared, and never seen by anybody */
	} else if (is_there(c->old, k, c->old_version)) {
		retire(c->old);
	}
	c->fresh = NULL;
}

static struct object *make(struct cell *c, uint64_t k, uint64_t n)
{
	const uint64_t words = n % 16 == 0 ? 1024 : n % 100;
	struct object *o = pando_alloc(region, sizeof(*o) + words * 8);

	if (!o)
		return NULL;
	o->cell = k;
	o->version = uatomic_add_return(&c->version, 1);
	o->words = words;
	o->check = check_of(k, o->version);
	for (uint64_t i = 0; i < words; i++)
		o->filled[i] = o->check;
	return o;
}

/* The old object is poisoned before it is freed: a reader that still had it would see that. */
static void wait_and_free(struct object *o)
{
	const uint64_t words = o->words;

	/* Killed in here: the journal still has it, and it is the region's. */
	if (pando_synchronize(region, -1) < 0)
		_exit(71);
	if (pando_transfer(region, o, pando_self(region)) < 0)
		_exit(70);
	o->check = o->cell = o->version = POISON;
	for (uint64_t i = 0; i < words; i++)
		o->filled[i] = POISON;
	pando_free(region, o);
}

/* A name gets another object, or loses the one that it has. */
static void replace_named(uint64_t k, uint64_t n, struct object *fresh)
{
	char name[16];
	int rc;

	if (n >> 32 & 3) {
		rc = pando_publish(region, name_of(k, name), fresh);
	} else {
		pando_free(region, fresh);
		rc = pando_withdraw(region, name_of(k, name));
	}
	if (rc < 0 && rc != -ENOENT && rc != -ENOMEM) {
		fprintf(stderr, "torture: name: %s\n", pando_strerror_last());
		_exit(74);
	}
	if (rc == -ENOMEM)
		pando_free(region, fresh);
	me->replaced++;
	me->beats++;
}

static void replace(uint64_t k, uint64_t n)
{
	struct cell *c = &shared->cell[k];
	struct object *fresh = make(c, k, n), *old = c->at;

	if (!fresh) {
		sched_yield(); /* others' freed objects are not collected yet */
		return;
	}
	if (option.names) {
		replace_named(k, n, fresh);
		return;
	}
	c->old = old;
	c->old_version = old ? old->version : 0;
	c->fresh_version = fresh->version;
	CMM_STORE_SHARED(c->fresh, fresh);
	if (pando_share(region, fresh) < 0)
		_exit(72);
	(void)rcu_xchg_pointer(&c->at, fresh);
	if (old && n >> 32 & 31)
		retire(old);
	else if (old)
		wait_and_free(old);
	c->fresh = NULL;
	me->replaced++;
	me->beats++;
}

static void writer(unsigned int index, uint64_t seed)
{
	uint64_t state = seed;

	/* While the broker is being replaced, a forked child knows nothing of objects. */
	while (!pando_self(region) && !CMM_LOAD_SHARED(shared->stop))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	for (uint64_t k = index; k < CELLS; k += option.writers)
		recover(k);
	while (!CMM_LOAD_SHARED(shared->stop)) {
		const uint64_t n = dice_of(&state);

		if (option.names) /* some are everybody's favourites */
			replace(n >> 16 & 3 ? n % CELLS : n % 4, n);
		else
			replace((index + n % CELLS * option.writers) %
					(CELLS / option.writers * option.writers),
				n);
		if (n >> 40 & 1)
			(void)pando_reclaim(region);
	}
	if (pando_synchronize(region, -1) < 0)
		_exit(71);
}

/* --- the parent --- */

static unsigned int workers(void)
{
	return option.readers + option.writers;
}

static int priority; /* as this program was started */
static int fences = -1; /* do readers that are started have them? 0, 1; -1: left to chance */

static void start(unsigned int i, const char *inject)
{
	struct worker *w = &shared->worker[i];
	const uint64_t seed = dice_of(&dice_state) | 1;
	pid_t pid;

	snprintf(w->inject, sizeof(w->inject), "%s", inject);
	w->writer = i < option.writers;
	w->seen_s = daemon_now();
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0) {
		w->pid = pid; /* not by the child, which shares the place */
		return;
	}
	me = w;
	(void)setpriority(PRIO_PROCESS, 0, priority); /* the runner has raised it, for who kills */
	pando__inject_arm(w->inject);
	if (!w->writer && (fences < 0 ? (int)(seed >> 8 & 1) : fences)) {
		/* One that may not call membarrier(): its readers have fences. */
		char list[sizeof(w->inject) + 40];

		snprintf(list, sizeof(list), "rcu.membarrier.register=fail,%s", w->inject);
		pando__inject_arm(list);
	}
	if (w->writer)
		writer(i, seed);
	else
		reader(seed);
	_exit(0);
}

static struct {
	unsigned int kills, injected, broker_kills;
} sum;

/* Starts those again that have died; fails if one ended by itself, or stands still. */
static void look_after(bool respawn)
{
	for (unsigned int i = 0; i < workers(); i++) {
		struct worker *w = &shared->worker[i];
		int status;

		if (w->pid > 0 && waitpid(w->pid, &status, WNOHANG) == w->pid) {
			if (!(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) &&
			    !(shared->stop && WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
				fprintf(stderr, "torture: worker %u (%s, \"%s\") ended with 0x%x\n",
					i, w->writer ? "writer" : "reader", w->inject, status);
				CHECK(!"a worker ended by itself");
			}
			sum.injected += WIFSIGNALED(status) && w->inject[0];
			w->pid = 0;
			if (respawn)
				start(i, "");
		}
		if (w->beats != w->seen) {
			w->seen = w->beats;
			w->seen_s = daemon_now();
		}
		if (w->pid > 0 && daemon_now() - w->seen_s > PATIENCE_S * daemon_slow()) {
			fprintf(stderr, "torture: worker %u (%s, pid %d) stands still\n", i,
				w->writer ? "writer" : "reader", (int)w->pid);
			if (getenv("TORTURE_WAIT"))
				daemon_nap(3600);
			CHECK(!"a worker stands still");
		}
	}
	CHECK_EQ(shared->wrong, 0);
}

static void kill_one(unsigned int i)
{
	struct worker *w = &shared->worker[i];

	if (w->pid <= 0)
		return;
	CHECK(kill(w->pid, SIGKILL) == 0);
	CHECK(waitpid(w->pid, NULL, 0) == w->pid);
	w->pid = 0;
	sum.kills++;
}

/* One death, of any kind, and a successor; some of these are to die at a point. */
static void strike(struct daemon *d)
{
	char inject[96] = "";
	const uint64_t n = dice_of(&dice_state);
	const unsigned int i = (unsigned int)(n % workers());

	if (n >> 8 & 1)
		snprintf(inject, sizeof(inject), "%s=kill@%u",
			 point_at(false, (n >> 16) % point_count(false)),
			 (unsigned int)((n >> 32) % 100 + 1));
	kill_one(i);
	start(i, inject);
	if ((n >> 40) % 200 == 0) {
		struct pando_broker_info info;

		daemon_status(d, &info);
		if (kill(info.broker_pid, SIGKILL) == 0)
			sum.broker_kills++;
		(void)daemon_wait_broker(d, info.broker_pid, &info);
	}
}

static void stop_all(void)
{
	const double end = daemon_now() + PATIENCE_S * daemon_slow();
	bool left = true;

	shared->stop = 1;
	while (left) {
		left = false;
		CHECK(daemon_now() < end);
		look_after(false);
		for (unsigned int i = 0; i < workers(); i++)
			left |= shared->worker[i].pid > 0;
		daemon_nap(0.01);
	}
	shared->stop = 0;
}

/* Whose are the objects that are left, and which cells do they say they were in? */
static void tell_left(void)
{
	struct pando__view v;
	uint32_t slot;

	if (pando__region_view(region, &v, &slot, NULL) < 0)
		return;
	for (uint64_t at = v.first; at < v.end; at += PANDO__GRANULE) {
		const uint64_t span = v.spans[at / PANDO__SPAN].word;
		const enum pando__span_state state = PANDO__SPAN_STATE(span);
		const struct object *o = (const void *)(v.base + at);
		uint16_t word;

		if (state != PANDO__SPAN_OWNED && state != PANDO__SPAN_ORPHAN &&
		    state != PANDO__SPAN_SWEEPING) {
			at |= PANDO__SPAN - PANDO__GRANULE;
			continue;
		}
		word = v.objects[at / PANDO__GRANULE];
		if (word == PANDO__OBJECT_LIVE || PANDO__OBJECT_IS_SHARED(word))
			fprintf(stderr,
				"torture: left at %p: word %04x, holder %x, page %08x, span state "
				"%d of "
				"%x, held %u; cell %" PRIu64 ", version %" PRIu64
				" (it had %" PRIu64 ")%s\n",
				(const void *)o, word, PANDO__OBJECT_HOLDER(word),
				v.page_table[at / PANDO__PAGE], state, PANDO__SPAN_OWNER(span),
				v.spans[at / PANDO__SPAN].held, o->cell, o->version,
				shared->cell[o->cell % CELLS].version,
				o->check == check_of(o->cell, o->version) ? "" : ", never whole");
	}
}

/* Nothing may be left: not in the cells, not on lists, not in the dead's hands. */
static void empty(void)
{
	const double end = daemon_now() + PATIENCE_S * daemon_slow();
	struct pando_directory_stat names;
	struct pando_heap_stat st;
	struct pando_rcu_stat rcu;
	char name[16];

	me = &shared->worker[WORKERS_MAX - 1];
	for (uint64_t k = 0; k < CELLS; k++) {
		struct object *old;

		recover(k);
		old = rcu_xchg_pointer(&shared->cell[k].at, NULL);
		if (old)
			retire(old);
		if (option.names)
			CHECK(pando_withdraw(region, name_of(k, name)) <= 0);
	}
	CHECK(pando_directory_check(region) == 0);
	CHECK(pando_directory_stat(region, &names) == 0 && names.names == 0);
	CHECK(pando_synchronize(region, 20000) == 0);
	CHECK_EQ(pando_reclaim(region), 0);
	do {
		CHECK(pando_heap_trim(region) == 0 && pando_heap_stat(region, &st) == 0);
		CHECK(pando_rcu_stat(region, &rcu) == 0);
		if (daemon_now() > end) {
			fprintf(stderr,
				"torture: %" PRIu64 " objects, %" PRIu64 " of %" PRIu64
				" spans free, %" PRIu64 " retired\n",
				st.objects, st.spans_free, st.spans, rcu.retired);
			tell_left();
			CHECK(!"something is left");
		}
		daemon_nap(0.05);
	} while (st.objects != names.tables || (!option.names && st.spans_free != st.spans) ||
		 rcu.retired || rcu.reading);
	CHECK(pando_heap_check(region) == 0);
}

static void begin(struct daemon *d, struct pando **p)
{
	daemon_start(d, NULL);
	CHECK(pando_connect(p, d->address) == 0);
	CHECK(pando_region_open(*p, "torture", PANDO_CREATE | PANDO_HEAP,
				&(struct pando_region_options){.size = 256 * MIB}, &region) == 0);
	memset(shared->cell, 0, sizeof(shared->cell));
	/* Small, so that it is met. */
	CHECK(pando_retire_limit(region, MIB / 2) == 0);
}

static void finish(struct daemon *d, struct pando *p)
{
	CHECK(pando_region_destroy(p, "torture") == 0);
	pando_disconnect(p);
	daemon_stop(d);
}

/* A death at each point that clients have, in its first and a later passage. */
static void client_points(void)
{
#ifdef PANDO_INJECTION
	struct pando *p;
	struct daemon d;

	begin(&d, &p);
	for (unsigned int i = 0; i < workers(); i++)
		start(i, "");
	for (size_t i = 0; i < point_count(false); i++)
		for (unsigned int passage = 1; passage <= 20; passage += 19) {
			const unsigned int before = sum.injected;
			/* Each comes to its first passage, if it gets a processor. */
			const double limit = (passage == 1 ? 30 : 3) * daemon_slow();
			const double end = daemon_now() + limit;
			double turn = daemon_now() + limit / 3;
			char inject[96];

			snprintf(inject, sizeof(inject), "%s=kill@%u", point_at(false, i), passage);
			kill_one(0);
			kill_one(option.writers);
			fences = 1;
			start(0, inject);
			start(option.writers, inject);
			while (sum.injected == before && daemon_now() < end) {
				look_after(true);
				daemon_nap(0.005);
				if (shared->worker[option.writers].inject[0] &&
				    daemon_now() > turn) { /* with fences, then without */
					turn = daemon_now() + limit / 3;
					fences = !fences;
					kill_one(option.writers);
					start(option.writers, inject);
				}
			}
			fences = -1;
			if (sum.injected == before)
				printf("torture: nobody was killed at %s, passage %u\n",
				       point_at(false, i), passage);
			CHECK(passage > 1 || sum.injected > before);
		}
	stop_all();
	empty();
	finish(&d, p);
#endif
}

#ifdef PANDO_INJECTION
/*
 * A grace period that nobody is at: begun by a process that dies then and has retired nothing, while
 * there is no other writer. Only the broker's timer ends it.
 */
static void abandon_grace(const char *once)
{
	const double end = daemon_now() + 5 * daemon_slow(); /* the timer's period is 2 s */
	pid_t pid;

	for (unsigned int i = 0; i < option.writers; i++)
		kill_one(i);
	daemon_nap(0.2); /* the broker has ended what these had begun */
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		pando__inject_arm("rcu.grace.begun=kill");
		_exit(pando_synchronize(region, -1) < 0 ? 2 : 1);
	}
	CHECK(waitpid(pid, NULL, 0) == pid);
	while (access(once, F_OK) == 0 && daemon_now() < end) {
		look_after(false);
		daemon_nap(0.02);
	}
}

/* Where a client that is started is to die: only there the broker finds half of a change. */
static const char *any_point(void)
{
	static char inject[96];
	const uint64_t n = dice_of(&dice_state);

	snprintf(inject, sizeof(inject), "%s=kill@%u", point_at(false, n % point_count(false)),
		 (unsigned int)(n >> 32) % 50 + 1);
	return inject;
}
#endif

/* The broker is killed at each of its points, while its clients are. */
static void broker_points(void)
{
#ifdef PANDO_INJECTION
	for (size_t i = 0; i < point_count(true); i++) {
		char inject[96], once[] = "/tmp/torture-XXXXXX";
		struct pando_broker_info info;
		const int fd = mkstemp(once);
		struct pando *p;
		struct daemon d;
		double end;

		CHECK(fd >= 0);
		close(fd);
		snprintf(inject, sizeof(inject), "%s=kill", point_at(true, i));
		setenv("PANDO_INJECT", inject, 1);
		setenv("PANDO_INJECT_ONCE", once, 1);
		begin(&d, &p);
		unsetenv("PANDO_INJECT");
		unsetenv("PANDO_INJECT_ONCE");
		for (unsigned int k = 0; k < workers(); k++)
			start(k, "");
		end = daemon_now() + 20 * daemon_slow();
		for (unsigned int round = 1; access(once, F_OK) == 0 && daemon_now() < end;
		     round++) {
			if (round % 100 == 0)
				abandon_grace(once);
			kill_one((unsigned int)(dice_of(&dice_state) % workers()));
			look_after(false);
			daemon_nap(0.02);
			for (unsigned int k = 0; k < workers(); k++)
				if (shared->worker[k].pid == 0)
					start(k, option.names ? any_point() : "");
		}
		if (access(once, F_OK) == 0)
			fprintf(stderr, "torture: the broker did not come to %s\n",
				point_at(true, i));
		CHECK(unlink(once) < 0);
		sum.broker_kills++;
		daemon_status(&d, &info);
		stop_all();
		empty();
		finish(&d, p);
	}
#endif
}

static void torture(void)
{
	struct pando_rcu_stat rcu;
	struct pando *p;
	struct daemon d;
	double begun, next;
	unsigned long reads = 0, replaced = 0, blocked = 0;

	dice_state ^= option.seed * 0x9e3779b97f4a7c15ull;
	if (option.points) {
		client_points();
		broker_points();
	}
	memset(shared->worker, 0, sizeof(shared->worker));
	if (option.fenced)
		setenv("PANDO_INJECT", "rcu.membarrier.query=fail", 1);
	begin(&d, &p);
	unsetenv("PANDO_INJECT");
	CHECK(pando_rcu_stat(region, &rcu) == 0);
#ifdef PANDO_INJECTION
	CHECK_EQ(rcu.region_mode, option.fenced ? PANDO_RCU_FENCED : PANDO_RCU_MEMBARRIER);
#endif
	for (unsigned int i = 0; i < workers(); i++)
		start(i, "");
	next = begun = daemon_now();
	while (daemon_now() - begun < option.seconds) {
		if (option.kills_per_second && daemon_now() >= next) {
			strike(&d);
			next = daemon_now() + 1.0 / option.kills_per_second;
		}
		look_after(true);
		daemon_nap(0.002);
	}
	begun = daemon_now() - begun;
	CHECK(pando_rcu_stat(region, &rcu) == 0);
	stop_all();
	empty();
	for (unsigned int i = 0; i < workers(); i++) {
		reads += shared->worker[i].reads;
		replaced += shared->worker[i].replaced;
		blocked += shared->worker[i].blocked;
	}
	CHECK(reads > 0 && replaced > 0);
	printf("torture: %.0f s, %u readers of %u threads, %u writers: %.2f million reads, %.0f "
	       "replaced a "
	       "second; %u kills, %u of them at points, %u of the broker; %" PRIu64
	       " grace periods; %lu times at the limit; %lu wrong\n",
	       begun, option.readers, THREADS, option.writers, (double)reads / begun / 1e6,
	       (double)replaced / begun, sum.kills + sum.injected, sum.injected, sum.broker_kills,
	       rcu.grace_periods, blocked, shared->wrong);
	finish(&d, p);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"seconds", required_argument, NULL, 's'},
					      {"readers", required_argument, NULL, 'r'},
					      {"writers", required_argument, NULL, 'w'},
					      {"kills-per-second", required_argument, NULL, 'k'},
					      {"seed", required_argument, NULL, 'S'},
					      {"points", no_argument, NULL, 'p'},
					      {"fenced", no_argument, NULL, 'f'},
					      {"names", no_argument, NULL, 'n'},
					      {0}};
	int c;

	priority = getpriority(PRIO_PROCESS, 0);
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			option.seconds = strtod(optarg, NULL);
			break;
		case 'r':
			option.readers = (unsigned int)strtoul(optarg, NULL, 0);
			break;
		case 'w':
			option.writers = (unsigned int)strtoul(optarg, NULL, 0);
			break;
		case 'k':
			option.kills_per_second = (unsigned int)strtoul(optarg, NULL, 0);
			break;
		case 'S':
			option.seed = strtoull(optarg, NULL, 0);
			break;
		case 'p':
			option.points = true;
			break;
		case 'f':
			option.fenced = true;
			break;
		case 'n':
			option.names = true;
			break;
		default:
			return 2;
		}
	}
	if (option.writers == 0 || option.readers == 0 || workers() >= WORKERS_MAX)
		return 2;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		return 1;
	return daemon_run_tests((struct daemon_test[]){TEST(torture), {0}});
}
