/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A worker of the kill campaign: threads that allocate, resize, free, share, transfer, fork and exit
 * at random, and keep the books (shadow.h) so that they can be killed anywhere.
 *
 * Each object carries a stamp at both ends, made of its offset and size: who frees it looks whether
 * somebody else has written there, or has it as well.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#include <pando/heap.h>
#include <pando/pando.h>

#include "common/atomic.h"
#include "common/inject.h"

#include "shadow.h"

struct worker_thread {
	unsigned int worker, number;
	struct thread_book *book;
	uint64_t random;
	int schedstat; /* its own, open: how long it has waited for a processor; -1: not there */
	bool child; /* of a fork: keeps no books */
	/* When its last operation began: busy_ns() of all threads, and forks(). */
	uint64_t busy[THREADS_MAX];
	uint64_t forks, delayed; /* delayed: how long it had waited for a processor */
};

static struct pando *connection;
static struct pando_region *region;
static char *base;
static uint64_t fork_calls; /* of this process, begun and ended ones: odd within one. By thread 0 */

static void die(const char *what)
{
	fprintf(stderr, "worker %d: %s: %s\n", getpid(), what, pando_strerror_last());
	_exit(3);
}

static void on_misuse(struct pando_region *r, const void *p, enum pando_misuse what,
		      const char *sentence, void *arg)
{
	(void)r;
	(void)p;
	(void)what;
	(void)arg;
	if (pando__add_relaxed(&shadow->misuses, 1) == 0)
		snprintf(shadow->misuse, sizeof(shadow->misuse), "%d: %s", getpid(), sentence);
}

static uint64_t rnd(struct worker_thread *t)
{
	t->random ^= t->random << 13;
	t->random ^= t->random >> 7;
	t->random ^= t->random << 17;
	return t->random * 0x2545f4914f6cdd1dull >> 16;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Nanoseconds that the thread behind a schedstat has run, or waited to run; and the latter alone. */
static uint64_t busy_ns(const struct worker_thread *t, uint64_t *delayed)
{
	unsigned long long ran = 0, waited = 0;
	char text[96];
	ssize_t n = pread(pando__load_relaxed(&t->schedstat), text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	(void)sscanf(text, "%llu %llu", &ran, &waited);
	if (delayed)
		*delayed = waited;
	return ran + waited;
}

/* --- stamps --- */

static uint64_t stamp(uint64_t offset, uint64_t bytes)
{
	return (offset ^ bytes << 40) * 0x9e3779b97f4a7c15ull;
}

static void put_stamps(uint64_t offset, uint64_t bytes)
{
	uint64_t s = stamp(offset, bytes);

	memcpy(base + offset, &s, sizeof(s));
	memcpy(base + offset + bytes - sizeof(s), &s, sizeof(s));
}

static void check_stamps(uint64_t offset, uint64_t bytes)
{
	uint64_t s = stamp(offset, bytes), a, b;

	memcpy(&a, base + offset, sizeof(a));
	memcpy(&b, base + offset + bytes - sizeof(b), sizeof(b));
	if (a != s || b != s) {
		fprintf(stderr, "worker %d: object at 0x%llx of %llu bytes was overwritten\n",
			getpid(), (unsigned long long)offset, (unsigned long long)bytes);
		_exit(4);
	}
}

/* --- operations --- */

static size_t some_size(struct worker_thread *t)
{
	uint64_t r = rnd(t);

	switch (r % 32) {
	case 0:
		return 200000 + r / 32 % 500000; /* over one or more spans */
	case 1:
	case 2:
	case 3:
		return 1025 + r / 32 % 40000;
	default:
		return 1 + r / 32 % 1024;
	}
}

static struct own *own_entry(struct worker_thread *t, bool used)
{
	unsigned int from = (unsigned int)(rnd(t) % OWN_MAX);

	for (unsigned int i = 0; i < OWN_MAX; i++) {
		struct own *o = &t->book->own[(from + i) % OWN_MAX];

		if ((o->offset != 0) == used)
			return o;
	}
	return NULL;
}

static void do_alloc(struct worker_thread *t)
{
	struct own *o = own_entry(t, false);
	char *p;

	if (!o)
		return;
	p = pando_alloc(region, some_size(t));
	if (!p) {
		if (errno != ENOMEM)
			die("allocating");
		(void)pando__add_relaxed(&shadow->out_of_memory, 1);
		return;
	}
	o->bytes = pando_usable_size(region, p);
	put_stamps((uint64_t)(p - base), o->bytes);
	pando__store_release(&o->offset, (uint64_t)(p - base));
}

static void do_free(struct worker_thread *t)
{
	struct own *o = own_entry(t, true);
	uint64_t offset;

	if (!o)
		return;
	offset = o->offset;
	check_stamps(offset, o->bytes);
	pando__store_release(&o->offset, 0);
	pando_free(region, base + offset);
}

static void do_resize(struct worker_thread *t)
{
	struct own *o = own_entry(t, true);
	char *p;

	if (!o)
		return;
	check_stamps(o->offset, o->bytes);
	p = pando_realloc(region, base + o->offset, some_size(t));
	if (!p) {
		(void)pando__add_relaxed(&shadow->out_of_memory, 1);
		return;
	}
	o->offset = (uint64_t)(p - base);
	o->bytes = pando_usable_size(region, p);
	put_stamps(o->offset, o->bytes);
}

/* Claims an entry of one of these states. NULL: none found in a few tries. */
static struct common *claim_(struct worker_thread *t, unsigned int state, uint32_t who, int line)
{
	for (unsigned int tries = 0; tries < 64; tries++) {
		struct common *c = &shadow->common[rnd(t) % COMMON_MAX];
		uint64_t word = pando__load_acquire(&c->word);

		if (COMMON_STATE(word) != state || (who && COMMON_WHO(word) != who))
			continue;
		if (!pando__cas_seq_cst(&c->word, &word, COMMON_WORD(COMMON_CLAIMED, getpid())))
			continue;
		common_note(c, line, (uint64_t)getpid());
		return c;
	}
	return NULL;
}

#define claim(t, state, who) claim_(t, state, who, __LINE__)

static void unclaim_(struct common *c, unsigned int state, uint32_t who, int line)
{
	common_note(c, line, (uint64_t)getpid());
	pando__store_release(&c->word, COMMON_WORD(state, who));
}

#define unclaim(c, state, who) unclaim_(c, state, who, __LINE__)

static void do_share(struct worker_thread *t)
{
	struct own *o = own_entry(t, true);
	struct common *c = o ? claim(t, COMMON_NONE, 0) : NULL;
	uint64_t offset;

	if (!c)
		return;
	offset = o->offset;
	c->offset = offset;
	c->bytes = o->bytes;
	if (pando_share(region, base + offset) < 0)
		die("sharing");
	o->offset = 0;
	unclaim(c, COMMON_SHARED, 0);
}

static void free_common(struct common *c)
{
	check_stamps(c->offset, c->bytes);
	pando_free(region, base + c->offset);
	unclaim(c, COMMON_NONE, 0);
}

static void do_free_shared(struct worker_thread *t)
{
	struct common *c = claim(t, COMMON_SHARED, 0);

	if (c)
		free_common(c);
}

static void do_free_held(struct worker_thread *t)
{
	struct common *c = claim(t, COMMON_HELD, t->worker + 1);

	if (!c)
		return;
	if (c->holder != shadow->worker[t->worker].holder)
		die("holding what another life of this worker held");
	free_common(c);
}

/* Others may free what one has that is not killed: that is how a producer and its consumers work. */
static void do_lend(struct worker_thread *t)
{
	const struct worker_book *book = &shadow->worker[t->worker];
	struct own *o = book->immortal ? own_entry(t, true) : NULL;
	struct common *c = o ? claim(t, COMMON_NONE, 0) : NULL;

	if (!c)
		return;
	c->offset = o->offset;
	c->bytes = o->bytes;
	c->holder = book->holder;
	o->offset = 0;
	unclaim(c, COMMON_LENT, t->worker + 1);
}

static void do_free_lent(struct worker_thread *t)
{
	for (unsigned int i = 0; i < 4; i++) {
		struct common *c = claim(t, COMMON_LENT, 0);

		if (!c)
			return;
		free_common(c);
	}
}

/* Gives an object to a worker: one of its own, one that it holds, or a shared one. */
static void do_transfer(struct worker_thread *t)
{
	struct worker_book *to = &shadow->worker[rnd(t) % shadow->workers];
	const uint64_t holder = pando__load_acquire(&to->holder);
	const bool shared = rnd(t) % 3 == 0, held = rnd(t) % 3 == 0;
	struct own *o = shared || held ? NULL : own_entry(t, true);
	struct common *c;
	uint64_t offset;
	int rc;

	if (!holder || (!shared && !held && !o))
		return;
	c = shared ? claim(t, COMMON_SHARED, 0)
	    : held ? claim(t, COMMON_HELD, t->worker + 1)
		   : claim(t, COMMON_NONE, 0);
	if (!c)
		return;
	if (o) {
		c->offset = o->offset;
		c->bytes = o->bytes;
	}
	offset = c->offset;
	rc = pando_transfer(region, base + offset, holder);
	if (rc == 0) {
		if (o)
			o->offset = 0;
		c->holder = holder;
		unclaim(c, COMMON_HELD, (uint32_t)(to - shadow->worker) + 1);
	} else if (rc == -ESRCH) {
		unclaim(c,
			shared ? COMMON_SHARED
			: held ? COMMON_HELD
			       : COMMON_NONE,
			held ? t->worker + 1 : 0);
	} else {
		die("giving away");
	}
}

static void do_share_held(struct worker_thread *t)
{
	struct common *c = claim(t, COMMON_HELD, t->worker + 1);

	if (!c)
		return;
	if (pando_share(region, base + c->offset) < 0)
		die("sharing a held one");
	unclaim(c, COMMON_SHARED, 0);
}

/* A child that does a little of everything that needs no books, and ends, or is killed. */
static void do_fork(struct worker_thread *t)
{
	const pid_t parent = getpid();
	pid_t pid;

	if (t->child || rnd(t) % 300 != 0)
		return;
	(void)pando__add_relaxed(&fork_calls, 1);
	pid = fork();
	(void)pando__add_relaxed(&fork_calls, 1);
	if (pid < 0)
		die("fork");
	if (pid > 0) {
		(void)pando__add_relaxed(&shadow->children_born, 1);
		if (rnd(t) % 4 == 0)
			(void)kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		return;
	}
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0); /* killed before that */
	if (!pando_self(region))
		_exit(0); /* the broker is not there: nothing can be freed, either */
	for (unsigned int i = 0; i < 6; i++) {
		char *p = pando_alloc(region, some_size(t));
		struct common *c = rnd(t) % 3 == 0 ? claim(t, COMMON_SHARED, 0) : NULL;

		if (c)
			free_common(c);
		if (p && rnd(t) % 2)
			pando_free(region, p);
	}
	if (rnd(t) % 2)
		pando_disconnect(connection);
	_exit(0);
}

/* Takes the measure of all threads before an operation. */
static void note_busy(struct worker_thread *t)
{
	t->forks = pando__load_relaxed(&fork_calls);
	for (unsigned int i = 0; i < shadow->threads; i++)
		t->busy[i] = busy_ns(t - t->number + i, i == t->number ? &t->delayed : NULL);
}

/*
 * Of the time that an operation took, that in which the whole process neither ran nor waited for a
 * processor: a thread may wait for a lock of its own process, whose holder waits for a processor.
 * How long this thread waited for one goes into the books, too.
 */
static uint64_t waited_ns(struct worker_thread *t, uint64_t took)
{
	uint64_t busy = 0, delayed = t->delayed;

	for (unsigned int i = 0; i < shadow->threads; i++)
		busy += busy_ns(t - t->number + i, i == t->number ? &delayed : NULL) - t->busy[i];
	if (delayed - t->delayed > t->book->delayed_ns_max)
		t->book->delayed_ns_max = delayed - t->delayed;
	return took > busy ? took - busy : 0;
}

/*
 * Whether a thread of this process was in fork() during the operation. It holds the kernel's lock of the
 * address space, where others' page faults wait, and the heap's locks, which its child needs free: for
 * as long as the kernel copies, which itself waits for the locks of files that others map.
 */
static bool in_fork(const struct worker_thread *t)
{
	return t->forks % 2 || pando__load_relaxed(&fork_calls) != t->forks;
}

static void operation(struct worker_thread *t)
{
	static void (*const what[])(struct worker_thread *) = {
		do_alloc,	do_alloc,    do_alloc,	  do_alloc,	do_alloc,
		do_free,	do_free,     do_free,	  do_resize,	do_share,
		do_free_shared, do_transfer, do_transfer, do_free_held, do_free_held,
		do_share_held,	do_lend,     do_lend,	  do_lend,	do_free_lent,
	};
	const unsigned int pick = (unsigned int)(rnd(t) % (sizeof(what) / sizeof(what[0])));
	uint64_t begin, took, idle, *max;

	note_busy(t);
	begin = now_ns();
	what[pick](t);
	took = now_ns() - begin;
	if (took > t->book->slow_ns_max)
		t->book->slow_ns_max = took;
	if (took > 20000000u) {
		idle = waited_ns(t, took);
		max = in_fork(t) ? &t->book->forked_ns_max : &t->book->waited_ns_max;
		if (idle > *max) {
			*max = idle;
			if (max == &t->book->waited_ns_max)
				snprintf(t->book->slowest, sizeof(t->book->slowest), "operation %u",
					 pick);
		}
	}
	t->book->operations++;
}

/* --- a life --- */

static void *thread_main(void *arg)
{
	struct worker_thread *t = arg;

	pando__store_relaxed(&t->schedstat,
			     open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC));
	while (!pando__load_acquire(&shadow->finish)) {
		const uint32_t freeze = pando__load_acquire(&shadow->freeze);

		if (freeze & 1) {
			pando__store_release(&t->book->frozen, freeze);
			while (pando__load_acquire(&shadow->freeze) == freeze)
				usleep(25 * shadow->workers * shadow->threads); /* leaves room */
			continue;
		}
		operation(t);
		if (shadow->pace_us)
			usleep((useconds_t)(rnd(t) % (2 * shadow->pace_us)));
		if (t->number == 0)
			do_fork(t);
		/* Some end on their own, in an orderly way or not. */
		if (t->number == 0 && !shadow->worker[t->worker].immortal && rnd(t) % 20000 == 0)
			break;
	}
	/* Open to the end: others look there. */
	return NULL;
}

static void free_everything(struct worker_thread *t)
{
	for (unsigned int i = 0; i < OWN_MAX; i++)
		if (t->book->own[i].offset) {
			check_stamps(t->book->own[i].offset, t->book->own[i].bytes);
			pando_free(region, base + t->book->own[i].offset);
			t->book->own[i].offset = 0;
		}
}

static void attach(struct worker_book *book)
{
	if (pando_connect(&connection, shadow->address) < 0 ||
	    pando_region_open(connection, "campaign", 0, NULL, &region) < 0)
		die("attaching");
	base = pando_region_base(region);
	pando_heap_on_misuse(on_misuse, NULL);
	pando__store_release(&book->holder, pando_self(region));
	if (!book->holder)
		die("no front");
	pando__store_release(&book->ready, 1);
}

void worker_run(unsigned int index)
{
	struct worker_book *book = &shadow->worker[index];
	struct worker_thread threads[THREADS_MAX];
	pthread_t ids[THREADS_MAX];

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	attach(book);
	pando__inject_arm(book->inject);
	/* All of them first: each looks at the others. */
	for (unsigned int i = 0; i < shadow->threads; i++)
		threads[i] = (struct worker_thread){.worker = index,
						    .number = i,
						    .book = &book->thread[i],
						    .schedstat = -1,
						    .random = book->seed * (i + 1) +
							      88172645463325252ull};
	for (unsigned int i = 1; i < shadow->threads; i++)
		if (pthread_create(&ids[i], NULL, thread_main, &threads[i]) != 0)
			die("thread");
	thread_main(&threads[0]);
	if (!pando__load_acquire(&shadow->finish))
		_exit(0); /* in the middle of the others' work */
	for (unsigned int i = 1; i < shadow->threads; i++)
		(void)pthread_join(ids[i], NULL);
	for (unsigned int i = 0; i < shadow->threads; i++)
		free_everything(&threads[i]);
	pando_disconnect(connection);
	exit(0);
}

void spawner_run(int fd)
{
	uint32_t index;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)prctl(PR_SET_CHILD_SUBREAPER, 1);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (;;) {
		ssize_t n = read(fd, &index, sizeof(index));
		int status;
		pid_t pid;

		if (n == 0)
			_exit(0);
		if (n == (ssize_t)sizeof(index)) {
			pid = fork();
			if (pid == 0)
				worker_run(index);
			pando__store_release(&shadow->worker[index].pid, pid);
			continue;
		}
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			for (unsigned int i = 0; i < shadow->workers; i++)
				if (shadow->worker[i].pid == pid) {
					shadow->worker[i].status = status;
					pando__store_release(&shadow->worker[i].pid, -1);
				}
		usleep(200);
	}
}
