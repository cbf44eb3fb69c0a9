// SPDX-License-Identifier: GPL-2.0-only
/*
 * After a hole was punched no attacher reads what was there: neither a processor
 * that runs one nor one that will. Nobody else knows who the attachers are, so
 * this is where a forgotten flush shows.
 *
 * Emulated processors forget all translations when they switch processes, which
 * hides a missing flush. So the reader has the last CPU to itself, makes no
 * system call and reports in plain shared memory; the puncher, on the first CPU,
 * takes the freed page for something else before it lets the reader look.
 */
#include "harness.h"

#define OLD 0x01d01d0000000000ull
#define POISON 0x6666666666666666ull
#define ROUNDS 64
#define BURST 64

/* Odd generations: the page is there. Even ones: it has been punched. */
struct watch {
	uint64_t gen;
	uint64_t seen;
	uint64_t value;
};

static struct region r;
static struct watch *w;

static volatile uint64_t *page_of(uint64_t gen)
{
	return (uint64_t *)(r.addr + MiB(8) + (gen - 1) / 2 * PAGE);
}

static void __attribute__((noreturn)) reader(int open_flags, const char *name)
{
	uint64_t gen;

	pin_cpu(cpus() - 1);
	region_detach(&r);
	region_attach(&r, name, open_flags,
		      open_flags == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ);
	for (;;) {
		gen = LOAD(&w->gen);
		if (!gen)
			continue;
		w->value = *page_of(gen);
		STORE(&w->seen, gen);
	}
}

static uint64_t look(uint64_t gen)
{
	STORE(&w->gen, gen);
	WAIT_FOR(LOAD(&w->seen) == gen, 10);
	return LOAD(&w->value);
}

/* The page just freed on this CPU is the first to be handed out again. */
static void reuse(void)
{
	uint64_t *p = mmap(NULL, BURST * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			   0);
	size_t i;

	CHECK(p != MAP_FAILED, "no memory");
	for (i = 0; i < BURST * PAGE / sizeof(*p); i += 64)
		p[i] = POISON;
}

static void remove_page(volatile uint64_t *p, bool by_madvise)
{
	if (by_madvise)
		CHECK_OK(madvise((void *)p, PAGE, MADV_REMOVE));
	else
		CHECK_OK(fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)((uintptr_t)p - (uintptr_t)r.addr), (off_t)PAGE));
}

static long switches(pid_t pid)
{
	return status_kb(pid, "nonvoluntary_ctxt_switches");
}

static void punched(int open_flags, bool by_madvise, const char *name)
{
	uint64_t i, value, stale = 0, reused = 0;
	long before;
	pid_t pid;

	need_cpus(2);
	pin_cpu(0);
	w = shared_alloc(PAGE);
	region_create(&r, name, GiB(1));
	pid = xfork();
	if (!pid)
		reader(open_flags, name);
	before = switches(pid);
	for (i = 0; i < ROUNDS; i++) {
		volatile uint64_t *p = page_of(2 * i + 1);

		*p = OLD + i;
		CHECK_EQ(look(2 * i + 1), OLD + i);
		remove_page(p, by_madvise);
		reuse();
		value = look(2 * i + 2);
		stale += value == OLD + i;
		reused += value == POISON;
		CHECK(value == 0 || value == OLD + i || value == POISON, "the reader sees %#lx", value);
	}
	diag("%ld interruptions of the reader in %d rounds", switches(pid) - before, ROUNDS);
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
	CHECK(!stale && !reused, "the reader saw %lu freed pages and %lu of somebody else's", stale,
	      reused);
}

static void punched_rw(void)
{
	punched(O_RDWR, false, "punch-rw");
}

static void punched_ro(void)
{
	punched(O_RDONLY, false, "punch-ro");
}

static void removed_rw(void)
{
	punched(O_RDWR, true, "remove-rw");
}

/* Many pages in one call, with the reader all over them. */
static void punched_ranges(const char *name, size_t size, uint64_t rounds)
{
	size_t i, n = size / PAGE;
	uint64_t round, lost = 0;
	pid_t pid;

	need_cpus(2);
	pin_cpu(0);
	w = shared_alloc(PAGE);
	region_create(&r, name, GiB(1));
	pid = xfork();
	if (!pid) {
		pin_cpu(cpus() - 1);
		for (;;) {
			uint64_t gen = LOAD(&w->gen), worst = 0;

			for (i = 0; i < n; i++) {
				uint64_t v = *(volatile uint64_t *)(r.addr + i * PAGE);

				if (gen & 1 ? v != gen : v != 0)
					worst++;
			}
			w->value = worst;
			STORE(&w->seen, gen);
		}
	}
	WAIT_FOR(LOAD(&w->seen) == 0, 10);
	for (round = 1; round < 2 * rounds; round += 2) {
		for (i = 0; i < n; i++)
			*(volatile uint64_t *)(r.addr + i * PAGE) = round;
		CHECK_EQ(look(round), 0);
		CHECK_OK(fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(n * PAGE)));
		lost += look(round + 1);
	}
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
	CHECK(!lost, "the reader saw %lu freed pages", lost);
}

/* In several tables. */
static void punched_large(void)
{
	punched_ranges("large", MiB(8), debug_kernel() ? 4 : 10);
}

/* So few that a kernel would rather flush one by one than everything. */
static void punched_small(void)
{
	punched_ranges("small", 8 * PAGE, debug_kernel() ? 40 : 100);
}

/* A reader that sleeps meanwhile: its translations may survive under a tag. */
static void sleeping_reader(void)
{
	int to[2], from[2];
	char byte = 0;
	uint64_t i, value;
	pid_t pid;

	pin_cpu(0);
	region_create(&r, "sleeping", GiB(1));
	CHECK_OK(pipe(to));
	CHECK_OK(pipe(from));
	pid = xfork();
	if (!pid) {
		pin_cpu(cpus() - 1);
		while (read(to[0], &byte, 1) == 1) {
			value = *page_of(2 * (uint64_t)byte + 1);
			CHECK_EQ(write(from[1], &value, sizeof(value)), sizeof(value));
		}
		_exit(0);
	}
	for (i = 0; i < ROUNDS; i++) {
		byte = (char)i;
		*page_of(2 * i + 1) = OLD + i;
		CHECK_EQ(write(to[1], &byte, 1), 1);
		CHECK_EQ(read(from[0], &value, sizeof(value)), sizeof(value));
		CHECK_EQ(value, OLD + i);
		remove_page(page_of(2 * i + 1), false);
		reuse();
		CHECK_EQ(write(to[1], &byte, 1), 1);
		CHECK_EQ(read(from[0], &value, sizeof(value)), sizeof(value));
		CHECK_EQ(value, 0);
	}
	kill(pid, SIGKILL);
	JOIN_KILLED(pid, SIGKILL);
}

static const struct test_case cases[] = {
	{ .name = "hole under a running reader, O_RDWR", .run = punched_rw },
	{ .name = "hole under a running reader, O_RDONLY", .run = punched_ro },
	{ .name = "MADV_REMOVE under a running reader", .run = removed_rw },
	{ .name = "large holes under a running reader", .run = punched_large },
	{ .name = "small holes under a running reader", .run = punched_small },
	{ .name = "hole under a sleeping reader", .run = sleeping_reader },
};

TEST_MAIN(cases)
