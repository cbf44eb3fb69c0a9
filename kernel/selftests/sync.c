// SPDX-License-Identifier: GPL-2.0-only
/*
 * Synchronisation objects in a region: a futex is found by the memory behind it,
 * so all attachers meet at it, whatever rights they have and whether or not the
 * page was ever touched.
 */
#include "harness.h"

#include <linux/futex.h>

static long futex(uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static void init_mutex(pthread_mutex_t *m, bool robust)
{
	pthread_mutexattr_t a;

	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	if (robust)
		pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	CHECK_EQ(pthread_mutex_init(m, &a), 0);
}

struct shared {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	long counter;
	int turn;
};

static void mutex(void)
{
	int i, k, rounds = debug_kernel() ? 2000 : 20000;
	struct region r;
	struct shared *s;
	pid_t pid[4];

	region_create(&r, "mutex", GiB(1));
	s = (struct shared *)(r.addr + MiB(300));
	init_mutex(&s->mutex, false);
	for (i = 0; i < 4; i++) {
		pid[i] = xfork();
		if (!pid[i]) {
			region_detach(&r);
			region_attach(&r, "mutex", O_RDWR, PROT_READ | PROT_WRITE);
			for (k = 0; k < rounds; k++) {
				pthread_mutex_lock(&s->mutex);
				s->counter = s->counter + 1;
				if (k % 64 == 0)
					sched_yield();
				pthread_mutex_unlock(&s->mutex);
			}
			_exit(0);
		}
	}
	for (i = 0; i < 4; i++)
		JOIN(pid[i]);
	CHECK_EQ(s->counter, 4L * rounds);
}

static void condition(void)
{
	int i, rounds = 500;
	pthread_condattr_t a;
	struct region r;
	struct shared *s;
	pid_t pid;

	region_create(&r, "cond", GiB(1));
	s = (struct shared *)r.addr;
	init_mutex(&s->mutex, false);
	pthread_condattr_init(&a);
	pthread_condattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	CHECK_EQ(pthread_cond_init(&s->cond, &a), 0);
	pid = xfork();
	for (i = 0; i < rounds; i++) {
		pthread_mutex_lock(&s->mutex);
		while (s->turn != (pid ? 0 : 1))
			pthread_cond_wait(&s->cond, &s->mutex);
		s->turn = !s->turn;
		s->counter++;
		pthread_cond_signal(&s->cond);
		pthread_mutex_unlock(&s->mutex);
	}
	if (!pid)
		_exit(0);
	JOIN(pid);
	CHECK_EQ(s->counter, 2 * rounds);
}

/* The kernel walks the robust list of the dead: it writes to the region. */
static void robust_death(void)
{
	struct region r;
	struct shared *s;
	int i, err;

	region_create(&r, "robust", GiB(1));
	s = (struct shared *)(r.addr + MiB(40));
	init_mutex(&s->mutex, true);
	for (i = 0; i < 20; i++) {
		pid_t pid = xfork();

		if (!pid) {
			if (pthread_mutex_lock(&s->mutex))
				_exit(1);
			s->turn = i;
			kill(getpid(), SIGKILL);
		}
		JOIN_KILLED(pid, SIGKILL);
		err = pthread_mutex_lock(&s->mutex);
		CHECK(err == EOWNERDEAD, "round %d: lock gives %d, not EOWNERDEAD", i, err);
		CHECK_EQ(s->turn, i);
		CHECK_EQ(pthread_mutex_consistent(&s->mutex), 0);
		CHECK_EQ(pthread_mutex_unlock(&s->mutex), 0);
	}
}

/* The page with the mutex is on the swap device when its owner dies. */
static void robust_death_paged_out(void)
{
	struct region r;
	struct shared *s;
	int err, swap = swap_add(MiB(64)), *held = shared_alloc(PAGE);
	pid_t pid;

	region_create(&r, "robustswap", GiB(1));
	s = (struct shared *)(r.addr + MiB(40));
	init_mutex(&s->mutex, true);
	pid = xfork();
	if (!pid) {
		if (pthread_mutex_lock(&s->mutex))
			_exit(1);
		STORE(held, 1);
		for (;;)
			pause();
	}
	WAIT_FOR(LOAD(held), 20);
	page_out(r.addr + MiB(40), PAGE);
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
	err = pthread_mutex_lock(&s->mutex);
	CHECK(err == EOWNERDEAD, "lock gives %d, not EOWNERDEAD", err);
	swap_remove(swap);
}

/* A waiter needs to read the word only; it may be the first to touch the page. */
static void reader_waits(int open_flags)
{
	struct timespec limit = { 20, 0 };
	int i, *step = shared_alloc(PAGE);
	struct region r;
	pid_t pid;

	region_create(&r, "waiter", GiB(1));
	pid = xfork();
	if (!pid) {
		region_detach(&r);
		region_attach(&r, "waiter", open_flags, PROT_READ);
		for (i = 0; i < 20; i++) {
			uint32_t *word = (uint32_t *)(r.addr + (size_t)i * MiB(50));

			STORE(step, i + 1);
			while (LOAD(word) == 0)
				if (futex(word, FUTEX_WAIT, 0, &limit) && errno != EAGAIN && errno != EINTR)
					FAIL("round %d, FUTEX_WAIT: %s", i, strerror(errno));
			CHECK_EQ(*word, 7);
		}
		_exit(0);
	}
	for (i = 0; i < 20; i++) {
		uint32_t *word = (uint32_t *)(r.addr + (size_t)i * MiB(50));

		WAIT_FOR(LOAD(step) == i + 1, 30);
		nap_ms(20);
		STORE(word, 7);
		CHECK_OK(futex(word, FUTEX_WAKE, 1, NULL));
	}
	JOIN(pid);
}

static void reader_waits_descriptor(void)
{
	reader_waits(O_RDONLY);
}

static void reader_waits_protection(void)
{
	reader_waits(O_RDWR);
}

/* Sleepers on one word in several processes, all woken by count. */
static void wake_counts(void)
{
	struct timespec limit = { 30, 0 };
	int i, n = 8, *asleep = shared_alloc(PAGE);
	struct region r;
	uint32_t *word;
	pid_t pid[8];
	double end;
	long woken = 0;

	region_create(&r, "wake", GiB(1));
	word = (uint32_t *)(r.addr + MiB(999));
	for (i = 0; i < n; i++) {
		pid[i] = xfork();
		if (!pid[i]) {
			ADD(asleep, 1);
			while (futex(word, FUTEX_WAIT, 0, &limit) && errno == EINTR)
				;
			_exit(0);
		}
	}
	WAIT_FOR(LOAD(asleep) == n, 30);
	end = now() + 20;
	while (woken < n && now() < end) {
		woken += futex(word, FUTEX_WAKE, 1, NULL);
		nap_ms(1);
	}
	CHECK_EQ(woken, n);
	for (i = 0; i < n; i++)
		JOIN(pid[i]);
}

/* The kernel writes the word of a priority-inheritance futex by itself, also in
 * a page that nobody has touched. */
static void priority_inheritance(void)
{
	struct region r;
	uint32_t *word;

	region_create(&r, "pi", GiB(1));
	word = (uint32_t *)(r.addr + MiB(123));
	CHECK_OK(futex(word, FUTEX_LOCK_PI, 0, NULL));
	CHECK_EQ(*word & FUTEX_TID_MASK, (uint32_t)gettid());
	CHECK_OK(futex(word, FUTEX_UNLOCK_PI, 0, NULL));
	CHECK_EQ(*word, 0);
}

static const struct test_case cases[] = {
	{ .name = "process-shared mutex", .run = mutex },
	{ .name = "process-shared condition", .run = condition },
	{ .name = "robust mutex: the owner is killed", .run = robust_death },
	{ .name = "robust mutex: its page is paged out", .run = robust_death_paged_out },
	{ .name = "futex: an O_RDONLY attacher waits", .run = reader_waits_descriptor },
	{ .name = "futex: a PROT_READ attacher waits", .run = reader_waits_protection },
	{ .name = "futex: wakes as many as sleep", .run = wake_counts },
	{ .name = "futex: priority inheritance in an untouched page", .run = priority_inheritance },
};

TEST_MAIN(cases)
