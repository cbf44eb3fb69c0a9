// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap() while everything else goes on: calls in both directions, threads
 * that write the source, exec, exit and SIGKILL of either side, fork, page-out,
 * migration. Nothing hangs, nobody sees a torn page or another's writes.
 */
#include "graft.h"

#define SIZE MiB(1)
#define WORDS (PAGE / sizeof(uint64_t))

/* ---- both directions at once ------------------------------------------------- */

struct pair {
	pid_t pid[2];
	char *at[2];
	long done[2];
	int go, stop;
};

static void pair_half(struct pair *s, int me)
{
	char *own = anon(SIZE), *got;

	prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
	fill(own, SIZE, 1000 * (uint64_t)(me + 1));
	s->at[me] = own;
	ADD(&s->go, 1);
	WAIT_FOR(LOAD(&s->go) >= 2, 20);
	while (!LOAD(&s->stop)) {
		got = (char *)CHECK_OK(graft(s->pid[!me], s->at[!me], SIZE, NULL, 0));
		CHECK_EQ(differing(got, SIZE, 1000 * (uint64_t)(!me + 1)), 0);
		fill(got, SIZE, 7);
		CHECK_OK(munmap(got, SIZE));
		got = (char *)CHECK_OK(graft(-s->pid[!me], own, SIZE, NULL, 0));
		fill(own, SIZE / 4, 1000 * (uint64_t)(me + 1));
		s->done[me]++;
		/* The other's address space must not fill up. */
		got = (char *)CHECK_OK(graft(s->pid[!me], got, SIZE, NULL, PVMMAP_MOVE));
		CHECK_EQ(differing(got, SIZE, 1000 * (uint64_t)(me + 1)), 0);
		CHECK_OK(munmap(got, SIZE));
		if (s->done[me] % 16 == 0)
			CHECK_OK(madvise(own, SIZE, MADV_PAGEOUT));
		if (s->done[me] > 400)
			break;
	}
	ADD(&s->go, 1);
	WAIT_FOR(LOAD(&s->go) >= 4, 60);
	_exit(differing(own, SIZE, 1000 * (uint64_t)(me + 1)) != 0);
}

static void both_ways(void)
{
	struct pair *s = shared_alloc(sizeof(*s));
	int i;

	need_graft();
	for (i = 0; i < 2; i++) {
		pid_t pid = xfork(); /* only the parent writes what both see */

		if (pid) {
			STORE(&s->pid[i], pid);
		} else {
			WAIT_FOR(LOAD(&s->pid[1]) > 0 && LOAD(&s->pid[0]) > 0, 10);
			pair_half(s, i);
		}
	}
	nap_ms(storm_seconds(6) * 1000);
	WAIT_FOR(LOAD(&s->done[0]) > 3 && LOAD(&s->done[1]) > 3, 60);
	STORE(&s->stop, 1);
	JOIN(s->pid[0]);
	JOIN(s->pid[1]);
	diag("%ld and %ld rounds", s->done[0], s->done[1]);
}

/* ---- threads that write while it is cloned ----------------------------------------- */

static char *written;
static int stop, cloned;

/* Each page always holds one number all over, but for the moment of a change. */
static void *writer(void *arg)
{
	uint64_t n = 1, *word;
	size_t i, k;

	(void)arg;
	while (!LOAD(&stop)) {
		for (i = 0; i < SIZE; i += PAGE) {
			word = (uint64_t *)(written + i);
			for (k = 0; k < WORDS; k++)
				((volatile uint64_t *)word)[k] = n;
		}
		n++;
	}
	return NULL;
}

/* A clone does not change any more, whatever the writer does. */
static void *cloner(void *arg)
{
	uint64_t *first = malloc(SIZE);
	pid_t pid = *(pid_t *)arg;

	while (!LOAD(&stop)) {
		char *got = (char *)CHECK_OK(graft(pid, written, SIZE, NULL, 0));

		memcpy(first, got, SIZE);
		sched_yield();
		CHECK(!memcmp(first, got, SIZE), "a clone changes");
		CHECK_OK(munmap(got, SIZE));
		ADD(&cloned, 1);
	}
	free(first);
	return NULL;
}

static void under_writers(void)
{
	pid_t source, *pid = shared_alloc(PAGE);
	int *seconds = shared_alloc(PAGE);
	pthread_t t[2];
	int i;

	need_graft();
	written = anon(SIZE);
	source = xfork();
	if (!source) {
		prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
		t[0] = xthread(writer, NULL);
		t[1] = xthread(writer, NULL);
		WAIT_FOR(LOAD(seconds), 120);
		STORE(&stop, 1);
		xjoin(t[0]);
		xjoin(t[1]);
		_exit(0);
	}
	*pid = source;
	/* The source's own pages, not those of fork(). */
	nap_ms(200);
	t[0] = xthread(cloner, pid);
	t[1] = xthread(cloner, pid);
	nap_ms(storm_seconds(6) * 1000);
	WAIT_FOR(LOAD(&cloned) > 2, 60);
	STORE(&stop, 1);
	for (i = 0; i < 2; i++)
		xjoin(t[i]);
	STORE(seconds, 1);
	JOIN(source);
	diag("%d clones", cloned);
}

/* A thread of the source writes while it is moved away: it dies of SIGSEGV, and what
 * it wrote in time is there. */
static void moved_under_writer(void)
{
	int round, *count = shared_alloc(PAGE);

	need_graft();
	for (round = 0; round < (debug_kernel() ? 20 : 40); round++) {
		char *p = anon_huge(MiB(4)), *got;
		pid_t pid = xfork();
		size_t i;

		if (!pid) {
			prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
			madvise(p, MiB(4), round & 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
			for (;;) {
				for (i = 0; i < MiB(4); i += PAGE)
					if (try_write(p + i + 8, (unsigned char)round))
						_exit(0);
				ADD(count, 1);
			}
		}
		WAIT_FOR(LOAD(count) > round, 30);
		got = (char *)CHECK_OK(graft(pid, p, MiB(4), NULL, PVMMAP_MOVE));
		JOIN(pid);
		for (i = 0; i < MiB(4); i += PAGE)
			CHECK_EQ((unsigned char)got[i + 8], round);
		memset(got, 1, MiB(4));
		CHECK_OK(munmap(got, MiB(4)));
		CHECK_OK(munmap(p, MiB(4)));
		STORE(count, round + 1);
	}
}

/* ---- processes that come and go ----------------------------------------------------- */

static void dying(void)
{
	double end = now() + storm_seconds(8);
	char *p = anon(SIZE), *own;
	long done = 0, gone = 0;
	uint64_t seed = 12345;

	need_graft();
	fill(p, SIZE, 100);
	/* On a slow machine as much longer as a few moves take. */
	while (now() < end || done <= 10) {
		pid_t pid = xfork();
		int i;

		if (!pid) {
			prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
			nap_ms((unsigned int)(random64(&seed) % 8));
			if (random64(&seed) & 1)
				execl("/bin/true", "true", NULL);
			_exit(0);
		}
		for (i = 0; i < 200; i++) {
			/* From a child, to a child, and a move that must not be lost. */
			long at = graft(pid, p, SIZE, NULL, 0);

			if (at != -1) {
				CHECK_EQ(differing((char *)at, SIZE, 100), 0);
				CHECK_OK(munmap((char *)at, SIZE));
			}
			own = anon(2 * PAGE);
			fill(own, 2 * PAGE, 3);
			if (graft(-pid, own, 2 * PAGE, NULL, PVMMAP_MOVE) == -1) {
				CHECK(errno == ESRCH, "errno %d (%s)", errno, strerror(errno));
				CHECK_EQ(differing(own, 2 * PAGE, 3), 0);
				CHECK_OK(munmap(own, 2 * PAGE));
				gone++;
				break;
			}
			CHECK_EQ(try_read(own), SIGSEGV);
			done++;
		}
		if (random64(&seed) % 3 == 0)
			kill(pid, SIGKILL);
		wait_status(pid);
	}
	diag("%ld moves, %ld to processes that had gone", done, gone);
	CHECK_EQ(differing(p, SIZE, 100), 0);
}

/* The caller is killed in the middle of large calls; the peer keeps what it has. */
static void killed_caller(void)
{
	struct peer peer;
	uint64_t seed = 777;
	char *at;
	int i;

	need_graft();
	peer = peer_start();
	at = peer_anon(&peer, MiB(64));
	peer_fill(&peer, at, MiB(64), 100);
	for (i = 0; i < (debug_kernel() ? 20 : 40); i++) {
		pid_t pid = xfork();

		if (!pid) {
			char *own = anon(MiB(64));

			fill(own, MiB(64), 100);
			for (;;)
				graft(-peer.pid, own, MiB(64), at, PVMMAP_FIXED);
		}
		nap_ms(50 + (unsigned int)(random64(&seed) % 300));
		kill(pid, SIGKILL);
		wait_status(pid);
		CHECK_EQ(peer_differing(&peer, at, MiB(64), 100), 0);
	}
	peer_fill(&peer, at, MiB(64), 200);
	CHECK_EQ(peer_differing(&peer, at, MiB(64), 200), 0);
	peer_end(&peer);
}

/* ---- with reclaim, migration and fork ------------------------------------------------ */

static void *disturber(void *arg)
{
	char *base = arg;
	static void *page[64];
	static int to[64], status[64];
	int i, turn = 0;

	while (!LOAD(&stop)) {
		madvise(base, SIZE, turn & 1 ? MADV_PAGEOUT : MADV_COLD);
		for (i = 0; i < 64; i++) {
			page[i] = base + (size_t)i * PAGE;
			to[i] = turn & 1;
		}
		syscall(SYS_move_pages, 0, 64, page, to, status, 4);
		if (++turn % 32 == 0)
			try_write_text("/proc/sys/vm/compact_memory", "1");
	}
	return NULL;
}

static void disturbed(void)
{
	double end = now() + storm_seconds(10);
	int swap = swap_add(MiB(128));
	char *p = anon(SIZE), *q;
	struct peer peer;
	pthread_t t;
	long n = 0;

	need_graft();
	fill(p, SIZE, 100);
	peer = peer_start();
	t = xthread(disturber, p);
	while (now() < end || n < 3) {
		pid_t pid;

		q = give(&peer, p, SIZE, 0);
		pid = xfork();
		if (!pid)
			_exit(differing(p, SIZE, 100) != 0);
		CHECK_EQ(peer_differing(&peer, q, SIZE, 100), 0);
		peer_fill(&peer, q, SIZE, 5000);
		CHECK_EQ(differing(p, SIZE, 100), 0);
		/* And back again in place of the original, under the disturber. */
		peer_fill(&peer, q, SIZE, 100);
		CHECK_EQ(graft(peer.pid, q, SIZE, p, PVMMAP_FIXED | PVMMAP_MOVE), (long)p);
		CHECK_EQ(differing(p, SIZE, 100), 0);
		JOIN(pid);
		n++;
	}
	STORE(&stop, 1);
	xjoin(t);
	diag("%ld rounds", n);
	peer_end(&peer);
	swap_remove(swap);
}

static const struct test_case cases[] = {
	{.name = "both directions at once", .run = both_ways, .seconds = 120},
	{.name = "clones under writers", .run = under_writers, .seconds = 120},
	{.name = "moves under a writer", .run = moved_under_writer, .seconds = 120},
	{.name = "exec, exit and SIGKILL", .run = dying, .seconds = 120},
	{.name = "a caller that is killed", .run = killed_caller, .seconds = 180},
	{.name = "page-out, migration and fork", .run = disturbed, .seconds = 120},
};

TEST_MAIN(cases)
