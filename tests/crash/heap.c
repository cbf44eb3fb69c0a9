/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The kill campaign: a heap whose users die.
 *
 * Workers (worker.c) do everything that can be done with a heap. They are killed at random moments
 * and at every injection point of the allocator; so is the broker, also while it reaps. After each
 * round of deaths the others are held between two operations, and as soon as the dead have been
 * reaped, books and heap must agree: what each worker has, what each holds, what is shared, to the
 * byte; and the heap's own check must find nothing. In the end everything is freed, and then every
 * span must be free.
 *
 *	crash-heap [--kills N] [--workers N] [--threads N] [--seed N] [--backend NAME]
 *		   [--pace US] [--no-broker-kills] [--stop-file FILE]
 *
 * With --pace workers sleep after each operation, for so many microseconds on average: many of them
 * then leave room on few processors, and waiting can be judged. It ends early, with all that belongs
 * to an end, once FILE exists. tests/crash/campaign runs it for hours, in parts. The last line but
 * the runner's is a JSON object for that.
 *
 * "Waited" is time in an operation in which a thread neither ran nor waited for a processor; in a process
 * with threads, not while one of them was in fork(): that is told apart, and not judged.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pando/heap.h>
#include <pando/pando.h>

#include "allocator/check.h"
#include "allocator/walk.h"
#include "client.h"
#include "common/atomic.h"
#include "multi/daemon.h"

#include "broker_points.h"
#include "client_points.h"
#include "shadow.h"

/*
 * Nobody waits longer. On a machine that is busy, that is where this thread's own naps have been late by
 * more than LATE_NS, locks of the kernel (of a page that two processes fault in, of the region's file)
 * are held by threads that wait for a processor, and who waits for them waits that long, for each that
 * comes before it. There as many turns as BUSY_TURNS may be added, each as long as this thread or a
 * worker has waited for a processor: more shows a lock which many want, or one whose holder is dead.
 */
#define WAIT_LIMIT_NS 100000000u
#define LATE_NS 30000000u
#define BUSY_TURNS 10u
#define PATIENCE_S 30.0 /* with each worker and each slot */
#define PROGRESS_S 10.0 /* between two lines that say how far it is */

struct shadow *shadow;

static int priority; /* as this program was started: hundreds of busy workers need not come first */

static struct {
	unsigned int kills, workers, threads, pace_us;
	uint64_t seed;
	bool broker_kills;
	uint32_t backend;
	const char *stop_file;
} option = {.kills = 2000, .workers = 8, .threads = 1, .seed = 1, .broker_kills = true};

static struct daemon d;
static struct pando *connection;
static struct pando_region *region;
static struct pando__view view;
static const char *slots;
static uint32_t own_slot;
static char once[64];

static struct {
	unsigned int kills, broker_kills, injected, rounds, exits;
	uint64_t operations, waited_ns_max, forked_ns_max, delayed_ns_max, slow_ns_max, late_ns_max;
	char slowest[24];
	double reaped_max;
	uint64_t objects_max, bytes_max;
} sum;

static uint64_t rnd(void)
{
	option.seed ^= option.seed << 13;
	option.seed ^= option.seed >> 7;
	option.seed ^= option.seed << 17;
	return option.seed * 0x2545f4914f6cdd1dull >> 16;
}

/* The entry and the heap, where they differ. */
static void show_difference(unsigned int i)
{
	const struct common *c = &shadow->common[i];
	const unsigned int is = COMMON_STATE(c->word);
	const uint64_t span = c->offset / PANDO__SPAN;
	pando_holder holder = 0;
	enum pando_holding heap;

	if (is == COMMON_NONE)
		return;
	heap = pando_owner(region, (char *)pando_region_base(region) + c->offset, &holder);
	if ((is == COMMON_SHARED && heap == PANDO_HOLDING_SHARED) ||
	    (is == COMMON_LENT && heap == PANDO_HOLDING_PRIVATE && holder == c->holder) ||
	    (is == COMMON_HELD && heap == PANDO_HOLDING_HELD && holder == c->holder))
		return;
	printf("  entry %u: state %u, holder 0x%" PRIx64 ", offset 0x%" PRIx64 ", %" PRIu64
	       " bytes; the heap: holding %d by 0x%" PRIx64
	       ", word 0x%x, page 0x%x, span 0x%" PRIx64 ", held %u, remote 0x%x\n",
	       i, is, c->holder, c->offset, c->bytes, heap, holder,
	       view.objects[c->offset / PANDO__GRANULE], view.page_table[c->offset / PANDO__PAGE],
	       view.spans[span].word, view.spans[span].held, view.spans[span].remote);
	for (uint32_t k = c->events < 8 ? 0 : c->events - 8; k < c->events; k++)
		printf("    round %u: line %u by %" PRIu64 ", offset 0x%" PRIx64 "\n",
		       c->history[k % 8].round, c->history[k % 8].line, c->history[k % 8].who,
		       c->history[k % 8].offset);
}

/* Sleeps, and sees how late it is woken. */
static void nap(double seconds)
{
	const double begin = daemon_now();
	uint64_t late;

	daemon_nap(seconds);
	late = (uint64_t)((daemon_now() - begin - seconds) * 1e9);
	if (daemon_now() - begin > seconds && late > sum.late_ns_max)
		sum.late_ns_max = late;
}

static void fail_round(const char *what, uint64_t heap, uint64_t books)
{
	for (unsigned int i = 0; i < COMMON_MAX; i++)
		show_difference(i);
	if (shadow->misuses)
		printf("  %u misuses, the first: %s\n", shadow->misuses, shadow->misuse);
	printf("  round %u, %u kills: %s: the heap has %" PRIu64 ", the books %" PRIu64 "\n",
	       sum.rounds, sum.kills, what, heap, books);
	CHECK(!"books and heap agree");
}

/* --- workers --- */

static int spawner_pipe[2];

static void start_spawner(void)
{
	pid_t pid;

	CHECK(pipe2(spawner_pipe, O_CLOEXEC) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(spawner_pipe[1]);
		spawner_run(spawner_pipe[0]);
	}
	close(spawner_pipe[0]);
}

static void spawn(uint32_t index)
{
	struct worker_book *b = &shadow->worker[index];

	memset(b, 0, sizeof(*b));
	b->immortal = index % 8 == 7;
	b->seed = rnd() | 1;
	/* Half of them are killed where it hurts, sooner or later. */
	if (!b->immortal && rnd() % 2) {
		uint64_t passage = 1 + (rnd() % 4 ? rnd() % 6 : rnd() % 300);

		snprintf(b->inject, sizeof(b->inject), "%s=kill@%u",
			 client_points[rnd() % (sizeof(client_points) / sizeof(client_points[0]))],
			 (unsigned int)passage);
	}
	CHECK(write(spawner_pipe[1], &index, sizeof(index)) == sizeof(index));
}

static bool alive(const struct worker_book *b)
{
	return pando__load_acquire(&b->pid) > 0;
}

static void await_ready(void)
{
	for (unsigned int i = 0; i < shadow->workers; i++) {
		const struct worker_book *b = &shadow->worker[i];
		const double end = daemon_now() + PATIENCE_S;

		while (pando__load_acquire(&b->pid) == 0 ||
		       (alive(b) && !pando__load_acquire(&b->ready))) {
			CHECK(daemon_now() < end);
			nap(50e-6);
		}
	}
}

static bool is_frozen(const struct worker_book *b, uint32_t freeze)
{
	for (unsigned int t = 0; t < shadow->threads; t++)
		if (pando__load_acquire(&b->thread[t].frozen) != freeze)
			return false;
	return true;
}

/*
 * Everybody who lives stands still between two operations. Who was killed is waited for until it is
 * dead: on another processor it may go on for a moment, and freeze as well.
 */
static void freeze(void)
{
	const uint32_t number = pando__add_acq_rel(&shadow->freeze, 1) + 1;

	for (unsigned int i = 0; i < shadow->workers; i++) {
		const double end = daemon_now() + PATIENCE_S;

		while (alive(&shadow->worker[i]) &&
		       (shadow->worker[i].killed || !is_frozen(&shadow->worker[i], number))) {
			if (daemon_now() > end) {
				printf("  worker %u, pid %d, hangs\n", i, shadow->worker[i].pid);
				fflush(stdout);
				if (getenv("TEST_HANG")) /* time for a debugger */
					daemon_nap(600);
				CHECK(!"nobody hangs");
			}
			nap(50e-6);
		}
	}
}

static bool is_living_slot(uint32_t slot)
{
	if (slot == own_slot)
		return true;
	for (unsigned int i = 0; i < shadow->workers; i++)
		if (alive(&shadow->worker[i]) && (shadow->worker[i].holder & 0xffff) == slot + 1)
			return true;
	return false;
}

/* Until all entries but those of the living are free. */
static void await_reaping(void)
{
	const double begin = daemon_now();

	for (uint32_t s = 0; s < pando__load_acquire(&view.ledger->clients_high); s++) {
		const struct pando__ledger_client *e =
			pando__ledger_client((struct pando__ledger *)(uintptr_t)view.ledger, s);
		const double end = daemon_now() + PATIENCE_S;

		while (!is_living_slot(s) &&
		       PANDO__CLIENT_STATE(pando__load_acquire(&e->word)) != PANDO__CLIENT_FREE) {
			if (daemon_now() > end) {
				printf("  slot %u, pid %d: state %d\n", s, e->pid,
				       (int)PANDO__CLIENT_STATE(e->word));
				CHECK(!"the dead are reaped");
			}
			nap(50e-6);
		}
	}
	if (daemon_now() - begin > sum.reaped_max)
		sum.reaped_max = daemon_now() - begin;
}

/* --- the books --- */

static bool claimed_by_dead(const struct common *c)
{
	const pid_t pid = (pid_t)COMMON_WHO(c->word);

	if (COMMON_STATE(c->word) != COMMON_CLAIMED)
		return false;
	for (unsigned int i = 0; i < shadow->workers; i++)
		if (shadow->worker[i].pid == pid)
			return false;
	return true;
}

static bool has_another_entry(const struct common *but, uint64_t offset)
{
	for (unsigned int i = 0; i < COMMON_MAX; i++) {
		const struct common *c = &shadow->common[i];

		if (c != but && c->offset == offset && COMMON_STATE(c->word) != COMMON_NONE &&
		    !claimed_by_dead(c))
			return true;
	}
	return false;
}

static uint32_t worker_of(uint64_t holder)
{
	for (unsigned int i = 0; i < shadow->workers; i++)
		if (alive(&shadow->worker[i]) && shadow->worker[i].holder == holder)
			return i + 1;
	return 0;
}

/* True if the worker has it in its own books. */
static bool is_own(uint32_t worker, uint64_t offset)
{
	const struct worker_book *b = &shadow->worker[worker - 1];

	for (unsigned int i = 0; i < shadow->threads * OWN_MAX; i++)
		if (b->thread[i / OWN_MAX].own[i % OWN_MAX].offset == offset)
			return true;
	return false;
}

/* What the dead had claimed: the heap knows what came of it. */
static void resolve(struct common *c)
{
	char *p = (char *)pando_region_base(region) + c->offset;
	pando_holder holder = 0;
	enum pando_holding is = c->offset ? pando_owner(region, p, &holder) : PANDO_HOLDING_NONE;

	if (has_another_entry(c, c->offset) || pando_usable_size(region, p) != c->bytes)
		is = PANDO_HOLDING_NONE;
	common_note(c, __LINE__ + (int)is * 1000, COMMON_WHO(c->word));
	if (is == PANDO_HOLDING_SHARED) {
		c->word = COMMON_WORD(COMMON_SHARED, 0);
	} else if (is == PANDO_HOLDING_HELD && worker_of(holder)) {
		c->holder = holder;
		c->word = COMMON_WORD(COMMON_HELD, worker_of(holder));
	} else if (is == PANDO_HOLDING_PRIVATE && worker_of(holder) &&
		   !is_own(worker_of(holder), c->offset)) {
		c->holder = holder;
		c->word = COMMON_WORD(COMMON_LENT, worker_of(holder));
	} else {
		c->word = COMMON_WORD(COMMON_NONE, 0);
	}
}

static void settle_books(void)
{
	/* What a dead one held or had lent went with it; before the claims, since it may be in use again. */
	for (unsigned int i = 0; i < COMMON_MAX; i++) {
		struct common *c = &shadow->common[i];

		if ((COMMON_STATE(c->word) == COMMON_HELD ||
		     COMMON_STATE(c->word) == COMMON_LENT) &&
		    !worker_of(c->holder)) {
			c->word = COMMON_WORD(COMMON_NONE, 0);
			common_note(c, __LINE__, c->holder);
		}
	}
	for (unsigned int i = 0; i < COMMON_MAX; i++) {
		struct common *c = &shadow->common[i];

		if (claimed_by_dead(c))
			resolve(c);
		CHECK(COMMON_STATE(c->word) != COMMON_CLAIMED);
	}
}

struct totals {
	uint64_t objects, bytes;
};

static void own_totals(const struct worker_book *b, struct totals *t)
{
	for (unsigned int i = 0; i < shadow->threads; i++)
		for (unsigned int k = 0; k < OWN_MAX; k++)
			if (b->thread[i].own[k].offset) {
				t->objects++;
				t->bytes += b->thread[i].own[k].bytes;
			}
}

static void common_totals(unsigned int state, uint64_t holder, struct totals *t)
{
	for (unsigned int i = 0; i < COMMON_MAX; i++) {
		const struct common *c = &shadow->common[i];

		if (COMMON_STATE(c->word) == state && (!holder || c->holder == holder)) {
			t->objects++;
			t->bytes += c->bytes;
		}
	}
}

static void show_own(const struct worker_book *b)
{
	for (unsigned int i = 0; i < shadow->threads * OWN_MAX; i++) {
		const struct own *o = &b->thread[i / OWN_MAX].own[i % OWN_MAX];
		const uint64_t span = o->offset / PANDO__SPAN;
		pando_holder holder = 0;
		enum pando_holding heap;
		unsigned int twice = 0;

		if (!o->offset)
			continue;
		for (unsigned int k = 0; k < shadow->threads * OWN_MAX; k++)
			twice += b->thread[k / OWN_MAX].own[k % OWN_MAX].offset == o->offset;
		heap = pando_owner(region, (char *)pando_region_base(region) + o->offset, &holder);
		if (heap != PANDO_HOLDING_PRIVATE || holder != b->holder || twice > 1)
			printf("  own 0x%" PRIx64 ", %" PRIu64
			       " bytes, %u times; the heap: holding %d by "
			       "0x%" PRIx64 ", not 0x%" PRIx64
			       ", word 0x%x, page 0x%x, span 0x%" PRIx64 "\n",
			       o->offset, o->bytes, twice, heap, holder, b->holder,
			       view.objects[o->offset / PANDO__GRANULE],
			       view.page_table[o->offset / PANDO__PAGE], view.spans[span].word);
	}
}

static void compare_worker(const struct worker_book *b, const struct pando__walk_client *heap)
{
	struct totals own = {0}, held = {0};

	own_totals(b, &own);
	common_totals(COMMON_LENT, b->holder, &own);
	common_totals(COMMON_HELD, b->holder, &held);
	if (heap->objects != own.objects)
		show_own(b);
	if (heap->objects != own.objects)
		fail_round("private objects of a worker", heap->objects, own.objects);
	if (heap->bytes != own.bytes)
		fail_round("private bytes of a worker", heap->bytes, own.bytes);
	if (heap->held != held.objects)
		fail_round("objects held by a worker", heap->held, held.objects);
	if (heap->held_bytes != held.bytes)
		fail_round("bytes held by a worker", heap->held_bytes, held.bytes);
}

static void compare_books(void)
{
	static struct pando__walk_client clients[PANDO__HEAP_CLIENTS];
	struct pando__walk w = {.clients = clients, .client_count = view.ledger->clients_high};
	struct totals all = {0}, shared = {0};
	uint64_t heap_shared = 0, heap_objects = 0, heap_bytes = 0;

	memset(clients, 0, w.client_count * sizeof(clients[0]));
	CHECK_EQ(pando__heap_walk(&view, &w), 0);
	for (unsigned int i = 0; i < shadow->workers; i++) {
		const struct worker_book *b = &shadow->worker[i];

		if (!alive(b))
			continue;
		compare_worker(b, &clients[(b->holder & 0xffff) - 1]);
		own_totals(b, &all);
	}
	common_totals(COMMON_SHARED, 0, &shared);
	common_totals(COMMON_SHARED, 0, &all);
	common_totals(COMMON_HELD, 0, &all);
	common_totals(COMMON_LENT, 0, &all);
	for (unsigned int k = 1; k <= PANDO__WALK_LARGE; k++) {
		heap_shared += w.classes[k].shared;
		heap_objects += w.classes[k].objects;
		heap_bytes += w.classes[k].bytes;
	}
	if (heap_shared != shared.objects)
		fail_round("shared objects", heap_shared, shared.objects);
	if (heap_objects != all.objects)
		fail_round("objects in all", heap_objects, all.objects);
	if (heap_bytes != all.bytes)
		fail_round("bytes in all", heap_bytes, all.bytes);
	sum.objects_max = all.objects > sum.objects_max ? all.objects : sum.objects_max;
	sum.bytes_max = all.bytes > sum.bytes_max ? all.bytes : sum.bytes_max;
}

static void check_heap(void)
{
	if (pando_heap_check(region) < 0) {
		printf("  round %u: %s\n", sum.rounds, pando_strerror_last());
		CHECK(!"the heap is sound");
	}
	if (pando__load_acquire(&shadow->misuses)) {
		printf("  round %u: %s\n", sum.rounds, shadow->misuse);
		CHECK(!"nobody has misused the heap");
	}
}

/* --- rounds --- */

static void add_worker(const struct worker_book *b)
{
	for (unsigned int t = 0; t < shadow->threads; t++) {
		const struct thread_book *k = &b->thread[t];

		sum.operations += k->operations;
		if (k->slow_ns_max > sum.slow_ns_max)
			sum.slow_ns_max = k->slow_ns_max;
		if (k->waited_ns_max > sum.waited_ns_max) {
			sum.waited_ns_max = k->waited_ns_max;
			memcpy(sum.slowest, k->slowest, sizeof(sum.slowest));
		}
		if (k->forked_ns_max > sum.forked_ns_max)
			sum.forked_ns_max = k->forked_ns_max;
		if (k->delayed_ns_max > sum.delayed_ns_max)
			sum.delayed_ns_max = k->delayed_ns_max;
	}
}

/* The dead are counted, and followed by others. */
static void bury(void)
{
	for (uint32_t i = 0; i < shadow->workers; i++) {
		struct worker_book *b = &shadow->worker[i];

		if (alive(b))
			continue;
		add_worker(b);
		if (WIFSIGNALED(b->status) && WTERMSIG(b->status) == SIGKILL) {
			sum.kills++;
			sum.injected += b->inject[0] != '\0';
		} else {
			if (b->status != 0)
				printf("  worker %u (\"%s\") ended with status 0x%x\n", i,
				       b->inject, b->status);
			CHECK_EQ(b->status, 0);
			sum.exits++;
		}
		spawn(i);
	}
}

static void kill_some(void)
{
	const unsigned int n = 1 + (unsigned int)(rnd() % shadow->workers);

	for (unsigned int k = 0; k < n; k++) {
		struct worker_book *b = &shadow->worker[rnd() % shadow->workers];
		/* Read once: it becomes -1 when the process has ended, which means everybody to kill(). */
		const pid_t pid = pando__load_acquire(&b->pid);

		if (pid > 0 && !b->immortal) {
			b->killed = 1;
			(void)kill(pid, SIGKILL);
		}
		if (rnd() % 4 == 0)
			nap((double)(rnd() % 1000) * 1e-6);
	}
}

/* By a signal, or at one of its points: the next one that it passes. */
static void kill_broker(void)
{
	struct pando_broker_info info;
	int fd;

	if (!option.broker_kills || rnd() % 8 != 0)
		return;
	sum.broker_kills++;
	if (rnd() % 2) {
		fd = open(once, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
		CHECK(fd >= 0);
		close(fd);
		return;
	}
	if (pando_broker_info(connection, &info) == 0)
		(void)kill(info.broker_pid, SIGKILL);
}

static void round_of_deaths(void)
{
	const bool before = rnd() % 2;

	await_ready();
	nap((double)(rnd() % (2500 + 100 * option.pace_us)) * 1e-6);
	if (before)
		kill_broker();
	kill_some();
	if (!before) {
		nap((double)(rnd() % (1500 + option.pace_us)) * 1e-6);
		kill_broker();
	}
	freeze();
	await_reaping();
	settle_books();
	compare_books();
	check_heap();
	bury();
	(void)pando__add_acq_rel(&shadow->freeze, 1);
	shadow->round = ++sum.rounds;
}

/* --- beginning and end --- */

static void arm_broker(void)
{
	const size_t count = sizeof(broker_points) / sizeof(broker_points[0]);
	char list[1000] = "";

	snprintf(once, sizeof(once), "/tmp/pando-heap-once-%d", (int)getpid());
	(void)unlink(once);
	for (unsigned int i = 0; i < 14; i++) {
		size_t at = strlen(list);

		snprintf(list + at, sizeof(list) - at, "%s%s=kill@%u", i ? "," : "",
			 broker_points[rnd() % count], (unsigned int)(1 + rnd() % 4));
	}
	setenv("PANDO_INJECT", list, 1);
	setenv("PANDO_INJECT_ONCE", once, 1);
	daemon_start(&d, NULL);
	unsetenv("PANDO_INJECT");
	unsetenv("PANDO_INJECT_ONCE");
}

static void begin(void)
{
	const struct pando_region_options options = {.size = 512ull << 20,
						     .backend = option.backend};
	struct pando_region_stat st;

	(void)setpriority(PRIO_PROCESS, 0, priority); /* the runner has raised it */
	shadow = mmap(NULL, sizeof(*shadow), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(shadow != MAP_FAILED);
	shadow->workers = option.workers;
	shadow->threads = option.threads;
	shadow->pace_us = option.pace_us;
	arm_broker();
	snprintf(shadow->address, sizeof(shadow->address), "%s", d.address);
	start_spawner(); /* before there is a connection that would be inherited */
	CHECK_EQ(pando_connect(&connection, d.address), 0);
	CHECK_EQ(pando_region_open(connection, "campaign", PANDO_CREATE | PANDO_HEAP, &options,
				   &region),
		 0);
	CHECK(pando_self(region) != 0);
	CHECK_EQ(pando__region_view(region, &view, &own_slot, &slots), 0);
	CHECK_EQ(pando_region_stat(region, &st), 0);
	option.backend = st.backend;
}

/* Everybody frees what it has and leaves; what is common goes last. */
static void finish(void)
{
	const double limit = daemon_now() + PATIENCE_S;
	struct pando_heap_stat st;

	await_ready();
	for (unsigned int i = 0; i < shadow->workers; i++)
		shadow->worker[i].inject[0] = '\0';
	pando__store_release(&shadow->finish, 1);
	for (unsigned int i = 0; i < shadow->workers; i++)
		while (alive(&shadow->worker[i])) {
			CHECK(daemon_now() < limit);
			daemon_nap(0.001);
		}
	await_reaping();
	settle_books();
	for (unsigned int i = 0; i < shadow->workers; i++)
		memset(shadow->worker[i].thread, 0, sizeof(shadow->worker[i].thread));
	compare_books();
	check_heap();
	for (unsigned int i = 0; i < COMMON_MAX; i++)
		if (COMMON_STATE(shadow->common[i].word) == COMMON_SHARED)
			pando_free(region,
				   (char *)pando_region_base(region) + shadow->common[i].offset);
	do { /* the broker sweeps once a second */
		daemon_nap(0.05);
		CHECK_EQ(pando_heap_trim(region), 0);
		CHECK_EQ(pando_heap_stat(region, &st), 0);
	} while (st.spans_free != st.spans && daemon_now() < limit);
	if (st.spans_free != st.spans)
		fail_round("spans that are free in the end", st.spans_free, st.spans);
	CHECK_EQ(st.objects, 0);
	CHECK_EQ(st.pages_used, 0);
	check_heap();
}

static void report(void)
{
	struct pando_broker_info info;

	daemon_status(&d, &info);
	printf("  %s, %u workers of %u threads: %u kills (%u of them of workers with an armed "
	       "point), %u of the broker, %u ends of their own, %" PRIu64 " forks\n",
	       pando_backend_name(option.backend), option.workers, option.threads, sum.kills,
	       sum.injected, sum.broker_kills, sum.exits, shadow->children_born);
	printf("  %u rounds, %" PRIu64 " operations; at most %" PRIu64 " objects, %" PRIu64
	       " bytes at the end of a round\n",
	       sum.rounds, sum.operations, sum.objects_max, sum.bytes_max);
	printf("  longest: operation %.1f ms, of which waited %.1f ms (%s); until the dead were "
	       "reaped %.1f ms; out of memory %" PRIu64 " times\n",
	       (double)sum.slow_ns_max / 1e6, (double)sum.waited_ns_max / 1e6, sum.slowest,
	       sum.reaped_max * 1e3, shadow->out_of_memory);
	if (sum.forked_ns_max)
		printf("  while a thread of the same process was in fork(): waited %.1f ms\n",
		       (double)sum.forked_ns_max / 1e6);
	printf("  the broker's own measure of reaping (since its last restart, epoch %" PRIu64
	       "): %.3f ms (max)\n",
	       info.epoch, (double)info.heap_reap_ns_max / 1e6);
}

/* The same for programs. */
static void report_json(double seconds)
{
	printf("{\"name\": \"heap-kills\", \"backend\": \"%s\", \"workers\": %u, \"threads\": %u, "
	       "\"kills\": %u, \"injected\": %u, \"broker_kills\": %u, \"ends\": %u, "
	       "\"forks\": %" PRIu64 ", \"rounds\": %u, \"operations\": %" PRIu64
	       ", \"out_of_memory\": %" PRIu64 ", \"objects_max\": %" PRIu64
	       ", \"bytes_max\": %" PRIu64
	       ", \"slow_ms\": %.1f, \"waited_ms\": %.1f, \"forked_ms\": %.1f, "
	       "\"delayed_ms\": %.1f, \"late_ms\": %.1f, \"idle\": %s, \"reaped_ms\": %.1f, "
	       "\"seconds\": %.1f}\n",
	       pando_backend_name(option.backend), option.workers, option.threads, sum.kills,
	       sum.injected, sum.broker_kills, sum.exits, shadow->children_born, sum.rounds,
	       sum.operations, shadow->out_of_memory, sum.objects_max, sum.bytes_max,
	       (double)sum.slow_ns_max / 1e6, (double)sum.waited_ns_max / 1e6,
	       (double)sum.forked_ns_max / 1e6, (double)sum.delayed_ns_max / 1e6,
	       (double)sum.late_ns_max / 1e6, sum.late_ns_max <= LATE_NS ? "true" : "false",
	       sum.reaped_max * 1e3, seconds);
}

static void judge_waiting(void)
{
	const bool busy = sum.late_ns_max > LATE_NS;
	const uint64_t turn =
		sum.delayed_ns_max > sum.late_ns_max ? sum.delayed_ns_max : sum.late_ns_max;
	const uint64_t limit = WAIT_LIMIT_NS + (busy ? BUSY_TURNS * turn : 0);

	printf("  naps were late by up to %.1f ms, operations by up to %.1f ms for want of a "
	       "processor: %s, the limit for waiting is %.0f ms\n",
	       (double)sum.late_ns_max / 1e6, (double)sum.delayed_ns_max / 1e6,
	       busy ? "a busy machine" : "an idle machine", (double)limit / 1e6);
	CHECK(sum.waited_ns_max < limit);
}

static bool is_to_stop(void)
{
	return sum.kills >= option.kills ||
	       (option.stop_file && access(option.stop_file, F_OK) == 0);
}

static void campaign(void)
{
	const double started = daemon_now();
	double next = started + PROGRESS_S;

	begin();
	for (uint32_t i = 0; i < shadow->workers; i++)
		spawn(i);
	while (!is_to_stop()) {
		round_of_deaths();
		if (daemon_now() > next) {
			printf("  %u kills, %u rounds\n", sum.kills, sum.rounds);
			fflush(stdout);
			next = daemon_now() + PROGRESS_S;
		}
	}
	(void)unlink(once);
	finish();
	for (unsigned int i = 0; i < shadow->workers; i++)
		add_worker(&shadow->worker[i]);
	report();
	judge_waiting();
	CHECK_EQ(pando_region_destroy(connection, "campaign"), 0);
	pando_disconnect(connection);
	close(spawner_pipe[1]);
	daemon_stop(&d);
	report_json(daemon_now() - started);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = text ? strtoull(text, &end, 10) : 0;

	if (!text || *end || n == 0) {
		fprintf(stderr, "a number is missing\n");
		exit(2);
	}
	return n;
}

static uint32_t backend(const char *name)
{
	for (uint32_t b = 0; name && pando_backend_name(b); b++)
		if (strcmp(name, pando_backend_name(b)) == 0)
			return b;
	fprintf(stderr, "no such backend\n");
	exit(2);
}

int main(int argc, char **argv)
{
	priority = getpriority(PRIO_PROCESS, 0);
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--kills") == 0)
			option.kills = (unsigned int)number(argv[++i]);
		else if (strcmp(argv[i], "--workers") == 0)
			option.workers = (unsigned int)number(argv[++i]);
		else if (strcmp(argv[i], "--threads") == 0)
			option.threads = (unsigned int)number(argv[++i]);
		else if (strcmp(argv[i], "--pace") == 0)
			option.pace_us = (unsigned int)number(argv[++i]);
		else if (strcmp(argv[i], "--seed") == 0)
			option.seed = number(argv[++i]);
		else if (strcmp(argv[i], "--backend") == 0)
			option.backend = backend(argv[++i]);
		else if (strcmp(argv[i], "--stop-file") == 0)
			option.stop_file = argv[++i];
		else if (strcmp(argv[i], "--no-broker-kills") == 0)
			option.broker_kills = false;
		else
			exit(2);
	}
	if (option.workers > WORKERS_MAX || option.threads > THREADS_MAX)
		exit(2);
	return daemon_run_tests((struct daemon_test[]){TEST(campaign), {0}});
}
