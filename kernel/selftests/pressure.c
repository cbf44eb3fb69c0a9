// SPDX-License-Identifier: GPL-2.0-only
/*
 * Swap pressure: a region several times as large as its control group should keep in
 * memory, a scribbler that rewrites its pages and verifiers of both kinds that
 * read them, each page under a lock in plain memory. A page must always hold what
 * was last written to it: not older data, nor another page's, nor a mixture.
 *
 * The limit is memory.high, which makes processes wait for reclaim. Under a hard
 * limit (memory.max) so small that all pages in memory have just been used, reclaim
 * gives up now and then, and the kernel kills a process of the group: it does so
 * for a memfd as well, four times in ten seconds of this load, and says nothing
 * about page tables. What hard limits do is the business of memcg.c.
 */
#include "harness.h"

#define PAGES 8192 /* 32 MiB */
#define LIMIT "12M"
#define VERIFIERS 5
#define MIN_SWAPPED 100 /* pages, in each half */
#define MIN_VERIFIED 50
#define WORDS (PAGE / sizeof(uint64_t))

struct board {
	int stop;
	uint64_t written, verified;
	uint64_t version[PAGES]; /* even; odd while the page is being written */
};

static struct board *b;
static struct region r;

static uint64_t word_of(size_t page, uint64_t version, size_t i)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull + version * 0x100000001b3ull + i;
}

static void scribble(size_t page)
{
	volatile uint64_t *p = (uint64_t *)(r.addr + page * PAGE);
	uint64_t version = b->version[page];
	size_t i;

	STORE(&b->version[page], version + 1);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (i = 0; i < WORDS; i += 37)
		p[i] = word_of(page, version + 2, i);
	STORE(&b->version[page], version + 2);
}

/* 0 if the scribbler came in between: then nothing is known. */
static int verify(size_t page, const char *who)
{
	volatile uint64_t *p = (uint64_t *)(r.addr + page * PAGE);
	uint64_t version = LOAD(&b->version[page]), got = 0, want = 0;
	size_t i, bad = 0;

	if (version & 1)
		return 0;
	for (i = 0; i < WORDS; i += 37) {
		uint64_t w = version ? word_of(page, version, i) : 0;
		uint64_t v = p[i];

		if (v != w && !bad++) {
			got = v;
			want = w;
		}
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (LOAD(&b->version[page]) != version)
		return 0;
	CHECK(!bad, "%s: page %zu, version %lu: %zu words are wrong, the first is %#lx, not %#lx", who,
	      page, version, bad, got, want);
	return 1;
}

static pid_t start_scribbler(const char *group_name)
{
	uint64_t state = 4711;
	pid_t pid = xfork();

	if (pid)
		return pid;
	cgroup_enter(group_name);
	while (!LOAD(&b->stop)) {
		scribble(random64(&state) % PAGES);
		ADD(&b->written, 1);
	}
	_exit(0);
}

static pid_t start_verifier(const char *group_name, int number, const char *name)
{
	uint64_t state = (uint64_t)number + 1;
	bool reader = number & 1;
	pid_t pid = xfork();

	if (pid)
		return pid;
	cgroup_enter(group_name);
	region_detach(&r);
	region_attach(&r, name, number % 4 == 1 ? O_RDONLY : O_RDWR,
		      reader ? PROT_READ : PROT_READ | PROT_WRITE);
	while (!LOAD(&b->stop))
		if (verify(random64(&state) % PAGES, reader ? "reader" : "writer"))
			ADD(&b->verified, 1);
	_exit(0);
}

static void check_all(void)
{
	size_t i;

	for (i = 0; i < PAGES; i++)
		CHECK(verify(i, "in the end"), "nobody writes any more");
}

/*
 * Half of the storm, and as much longer as it takes on a slow machine until so many
 * more pages have been swapped out and verified: a half in which nothing moved shows
 * nothing. The case's own time limit ends it if nothing ever does.
 */
static void blow(unsigned int ms)
{
	uint64_t verified = LOAD(&b->verified) + MIN_VERIFIED;
	long out = vmstat("pswpout") + MIN_SWAPPED;
	double end = now() + ms / 1000.0;

	while (now() < end || LOAD(&b->verified) < verified || vmstat("pswpout") < out)
		nap_ms(100);
}

/* During the storm, at its middle: something that moves all pages about. */
static void storm(const char *name, void (*middle)(int swap))
{
	pid_t scribbler, verifier[VERIFIERS];
	long in = vmstat("pswpin"), out = vmstat("pswpout");
	unsigned int half = storm_seconds(10) * 500;
	int i, swap = swap_add(MiB(128));

	b = shared_alloc(sizeof(*b));
	cgroup_make("pressure");
	cgroup_set("pressure", "memory.high", LIMIT);
	region_create(&r, name, GiB(1));
	scribbler = start_scribbler("pressure");
	for (i = 0; i < VERIFIERS; i++)
		verifier[i] = start_verifier("pressure", i, name);
	blow(half);
	middle(swap);
	blow(half);
	STORE(&b->stop, 1);
	JOIN(scribbler);
	for (i = 0; i < VERIFIERS; i++)
		JOIN(verifier[i]);
	check_all();
	in = vmstat("pswpin") - in;
	out = vmstat("pswpout") - out;
	diag("%lu pages written, %lu verified, %ld swapped out, %ld in", b->written, b->verified, out, in);
	cgroup_set("pressure", "memory.high", "max");
	swap_try_remove(swap);
	check_all();
	region_unlink(&r);
	region_detach(&r);
	cgroup_remove("pressure");
}

static void nothing(int swap)
{
	(void)swap;
}

/* Step by step: whoever is far over the limit has to sleep for seconds. */
static void shrink(void)
{
	char text[32];
	long limit;

	for (limit = cgroup_get("pressure", "memory.current"); limit > (long)MiB(16);
	     limit -= (long)MiB(1)) {
		snprintf(text, sizeof(text), "%ld", limit);
		try_write_text("/sys/fs/cgroup/selftest-pressure/memory.reclaim", "1M");
		cgroup_set("pressure", "memory.high", text);
		nap_ms(20);
	}
	cgroup_set("pressure", "memory.high", LIMIT);
}

/* All comes back while everybody faults; then the pressure is on again. */
static void swap_off_and_on(int swap)
{
	char path[64];

	cgroup_set("pressure", "memory.high", "max");
	CHECK(swap_try_remove(swap), "swapoff under load: %s", strerror(errno));
	snprintf(path, sizeof(path), "/sys/block/zram%d/reset", swap);
	write_text(path, "1");
	nap_ms(100);
	CHECK_EQ(swap_add(MiB(128)), swap);
	shrink();
}

static void page_out_and_ahead(int swap)
{
	size_t i, page;

	(void)swap;
	for (i = 0; i < 500; i++) {
		page = i * 16 % PAGES;
		CHECK(madvise(r.addr + page * PAGE, PAGE, MADV_PAGEOUT) == 0, "PAGEOUT: %s",
		      strerror(errno));
		madvise(r.addr + page * PAGE, PAGE * 8, MADV_WILLNEED);
	}
}

static void pressure(void)
{
	storm("pressure", nothing);
}

static void swapoff_under_load(void)
{
	storm("swapoff", swap_off_and_on);
}

static void advice_under_load(void)
{
	storm("advice", page_out_and_ahead);
}

static void huge_pages(void)
{
	const char *knob = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

	if (!try_write_text(knob, "force"))
		skip("no huge pages for shared memory");
	storm("hugepressure", nothing);
	write_text(knob, "never");
}

static const struct test_case cases[] = {
	{ .name = "five verifiers and a scribbler", .run = pressure, .seconds = 120 },
	{ .name = "swapoff meanwhile", .run = swapoff_under_load, .seconds = 120 },
	{ .name = "page-out and read-ahead meanwhile", .run = advice_under_load, .level = FULL,
	  .seconds = 120 },
	{ .name = "with huge pages", .run = huge_pages, .level = FULL, .seconds = 120 },
};

TEST_MAIN(cases)
