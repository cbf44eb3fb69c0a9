// SPDX-License-Identifier: GPL-2.0-only
/*
 * process_vm_mmap() against a model: two processes do random things to a window of
 * memory of their own, and to each other's by the call. The model says for each
 * page of each window whether it is mapped, may be written, and what its first word
 * is. Page-out, KSM, huge pages and migration go on and change nothing of that.
 *
 * The seed is printed; $GRAFT_SEED repeats a run, $GRAFT_STEPS makes it longer.
 */
#include "graft.h"

#define SLOTS 1536 /* 6 MiB: whole huge pages in the middle */

struct slot {
	uint64_t value;
	bool mapped;
	bool writable;
};

struct model {
	struct slot slot[2][SLOTS];
};

static struct model *model;
static char *window[2]; /* of this process, and of the peer */
static struct peer peer;
static uint64_t seed;
static unsigned long step;

enum { MINE, THEIRS };

static unsigned int below(unsigned int n)
{
	return (unsigned int)(random64(&seed) % n);
}

/* Runs in the process that it is about. */
static long in(int who, long (*fn)(long, long, long, long), long a, long b, long c)
{
	if (who == MINE)
		return fn(who, a, b, c);
	return PEER(&peer, PEER_CALL, (long)fn, who, a, b, c);
}

static char *at(int who, long slot)
{
	return window[who] + (size_t)slot * PAGE;
}

/* ---- what a process does to its own window ------------------------------------- */

static long do_check(long who, long from, long n, long touch)
{
	long i;

	for (i = from; i < from + n; i++) {
		const struct slot *s = &model->slot[who][i];
		uint64_t value;

		if (!s->mapped) {
			if (touch && try_read(at((int)who, i)) != SIGSEGV) {
				diag("process %ld, slot %ld: mapped and should not be", who, i);
				return 1;
			}
			continue;
		}
		value = *(volatile uint64_t *)at((int)who, i);
		if (value != s->value) {
			diag("process %ld, slot %ld: %#lx, should be %#lx", who, i, value,
			     s->value);
			return 1;
		}
		if (touch && !s->writable && try_write(at((int)who, i), 0) != SIGSEGV) {
			diag("process %ld, slot %ld: can be written", who, i);
			return 1;
		}
	}
	return 0;
}

static long do_map(long who, long from, long n, long unused)
{
	long i;

	(void)unused;
	anon_at(at((int)who, from), (size_t)n * PAGE);
	for (i = from; i < from + n; i++)
		model->slot[who][i] = (struct slot){.mapped = true, .writable = true};
	return 0;
}

static long do_unmap(long who, long from, long n, long unused)
{
	long i;

	(void)unused;
	CHECK_OK(munmap(at((int)who, from), (size_t)n * PAGE));
	for (i = from; i < from + n; i++)
		model->slot[who][i] = (struct slot){.mapped = false};
	return 0;
}

static long do_write(long who, long from, long n, long value)
{
	long i;

	for (i = from; i < from + n; i++) {
		struct slot *s = &model->slot[who][i];

		if (!s->mapped || !s->writable)
			continue;
		/* Even values are the same in many pages: food for KSM. */
		s->value = (uint64_t)(value & 1 ? value + 2 * i : value);
		*(volatile uint64_t *)at((int)who, i) = s->value;
	}
	return 0;
}

static long do_protect(long who, long from, long n, long writable)
{
	long i;

	for (i = from; i < from + n; i++) {
		struct slot *s = &model->slot[who][i];

		if (!s->mapped)
			continue;
		CHECK_OK(mprotect(at((int)who, i), PAGE, writable ? RW : PROT_READ));
		s->writable = writable;
	}
	return 0;
}

/* Advice that changes nothing, save for MADV_DONTNEED. */
static long do_advise(long who, long from, long n, long advice)
{
	long i;

	madvise(at((int)who, from), (size_t)n * PAGE, (int)advice);
	for (i = from; advice == MADV_DONTNEED && i < from + n; i++)
		model->slot[who][i].value = 0;
	return 0;
}

static long do_remap(long who, long from, long n, long to)
{
	long i;

	for (i = 0; i < n; i++) {
		struct slot *s = &model->slot[who][from + i], *d = &model->slot[who][to + i];

		if (!s->mapped || s == d)
			continue;
		CHECK(mremap(at((int)who, from + i), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			     at((int)who, to + i)) == at((int)who, to + i),
		      "mremap: %s", strerror(errno));
		*d = *s;
		s->mapped = false;
	}
	return 0;
}

static long do_fork(long who, long unused1, long unused2, long unused3)
{
	pid_t pid = xfork();
	long i;

	(void)unused1, (void)unused2, (void)unused3;
	if (!pid) {
		if (do_check(who, 0, SLOTS, 0))
			_exit(1);
		for (i = 0; i < SLOTS; i += 3)
			if (model->slot[who][i].mapped && model->slot[who][i].writable)
				*(volatile uint64_t *)at((int)who, i) = 0xdead;
		_exit(0);
	}
	return wait_status(pid);
}

static long do_migrate(long who, long from, long n, long node)
{
	void *page[64];
	int to[64], status[64], i;

	(void)who;
	n = n < 64 ? n : 64;
	for (i = 0; i < n; i++) {
		page[i] = at((int)who, from + i);
		to[i] = (int)node;
	}
	syscall(SYS_move_pages, 0, n, page, to, status, 4);
	return 0;
}

/* ---- the call --------------------------------------------------------------------- */

static void call(int from_who, long from, long to, long n, unsigned long flags)
{
	int to_who = !from_who;
	struct slot *s = &model->slot[from_who][from], *d = &model->slot[to_who][to];
	bool hole = false, taken = false;
	int expected;
	long i, ret;

	for (i = 0; i < n; i++) {
		hole = hole || !s[i].mapped;
		taken = taken || d[i].mapped;
	}
	expected = hole ? EFAULT : taken && (flags & PVMMAP_FIXED_NOREPLACE) ? EEXIST : 0;
	ret = graft(from_who == MINE ? -peer.pid : peer.pid, at(from_who, from), (size_t)n * PAGE,
		    at(to_who, to), flags);
	if (expected) {
		CHECK(ret == -1 && errno == expected, "step %lu: %#lx, errno %d, should be %d",
		      step, ret, errno, expected);
		return;
	}
	CHECK(ret == (long)at(to_who, to), "step %lu: %#lx, errno %d (%s)", step, ret, errno,
	      strerror(errno));
	for (i = 0; i < n; i++) {
		d[i] = s[i];
		if (flags & PVMMAP_MOVE)
			s[i] = (struct slot){.mapped = false};
	}
}

static void check(int who, long from, long n, bool touch)
{
	CHECK(!in(who, do_check, from, n, touch), "step %lu, seed above", step);
}

/* Mostly a few pages, sometimes several hundred. */
static long range(long *n)
{
	*n = below(8) ? 1 + below(24) : 1 + below(900);
	return below((unsigned int)(SLOTS - *n));
}

static void one_step(void)
{
	static const int advice[] = {MADV_PAGEOUT,     MADV_PAGEOUT,	MADV_COLD,
				     MADV_HUGEPAGE,    MADV_NOHUGEPAGE, MADV_MERGEABLE,
				     MADV_UNMERGEABLE, MADV_COLLAPSE,	MADV_DONTNEED};
	static const unsigned long flags[] = {PVMMAP_FIXED, PVMMAP_FIXED | PVMMAP_MOVE,
					      PVMMAP_FIXED_NOREPLACE,
					      PVMMAP_FIXED_NOREPLACE | PVMMAP_MOVE};
	int who = (int)below(2);
	long n, from = range(&n), to = below((unsigned int)(SLOTS - n));

	/* Huge pages can stay such only at the same offset. */
	if (!below(4))
		to = from;
	switch (below(20)) {
	case 0:
		in(who, do_map, from, n, 0);
		break;
	case 1:
		if (n < 100)
			in(who, do_unmap, from, n, 0);
		break;
	case 2:
	case 3:
	case 4:
	case 5:
		in(who, do_write, from, n, (long)random64(&seed) & 0xffffff);
		break;
	case 6:
		in(who, do_protect, from, n < 32 ? n : 32, below(3) != 0);
		break;
	case 7:
	case 8:
	case 9:
		in(who, do_advise, from, n, advice[below(ARRAY_SIZE(advice))]);
		break;
	case 10:
		if (to >= from + n || from >= to + n)
			in(who, do_remap, from, n < 16 ? n : 16, to);
		break;
	case 11:
		if (!below(4))
			CHECK(!in(who, do_fork, 0, 0, 0), "step %lu: a child sees something else",
			      step);
		break;
	case 12:
		in(who, do_migrate, from, n, below(2));
		break;
	default:
		call(who, from, to, n, flags[below(ARRAY_SIZE(flags))]);
	}
	check(MINE, from, n < 32 ? n : 32, false);
	check(THEIRS, to, n < 32 ? n : 32, false);
}

static void run_steps(unsigned long steps)
{
	const char *given = getenv("GRAFT_SEED"), *more = getenv("GRAFT_STEPS");
	int swap = swap_add(MiB(256));
	double begin;

	need_graft();
	if (more)
		steps = strtoul(more, NULL, 0);
	seed = given ? strtoull(given, NULL, 0) : (uint64_t)(now() * 1e6) | 1;
	diag("seed %#lx, %lu steps", seed, steps);
	model = shared_alloc(sizeof(*model));
	window[MINE] = fresh_address(SLOTS * PAGE);
	window[THEIRS] = fresh_address(SLOTS * PAGE) + (below(2) ? 0 : 37 * PAGE);
	if (try_write_text("/sys/kernel/mm/ksm/run", "1")) {
		write_text("/sys/kernel/mm/ksm/pages_to_scan", "500");
		write_text("/sys/kernel/mm/ksm/sleep_millisecs", "20");
	}
	peer = peer_start();
	in(MINE, do_map, 0, SLOTS, 0);
	in(THEIRS, do_map, 0, SLOTS, 0);
	begin = now();
	for (step = 1; step <= steps; step++) {
		one_step();
		if (step % 1000 == 0) {
			check(MINE, 0, SLOTS, true);
			check(THEIRS, 0, SLOTS, true);
		}
		if (step % 10000 == 0)
			diag("%lu steps, %.0f s", step, now() - begin);
	}
	peer_end(&peer);
	swap_remove(swap);
}

static void some(void)
{
	run_steps(2000);
}

static void many(void)
{
	run_steps(100000);
}

static const struct test_case cases[] = {
	{.name = "2,000 steps", .run = some, .seconds = 300},
	{.name = "100,000 steps", .run = many, .level = STRESS, .seconds = 3600},
};

TEST_MAIN(cases)
