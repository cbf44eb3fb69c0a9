// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads of one process that do to a region whatever may be done to it, while
 * others fault: per page a counter that only its owner thread raises, which must
 * never go back.
 */
#include "harness.h"

#define PAGES 2048
#define OWNERS 2

static struct region r;
static int stop;

struct owner {
	int number;
	uint64_t state;
	uint64_t count[PAGES];
	uint64_t steps;
};

static void *owner_thread(void *arg)
{
	struct owner *o = arg;

	while (!LOAD(&stop)) {
		size_t page = random64(&o->state) % PAGES / OWNERS * OWNERS + (size_t)o->number;
		volatile uint64_t *word = (uint64_t *)(r.addr + page * PAGE * 3);

		CHECK(*word == o->count[page], "page %zu holds %lu, not %lu", page, *word, o->count[page]);
		*word = ++o->count[page];
		o->steps++;
	}
	return NULL;
}

static char *somewhere(uint64_t *state, size_t *size)
{
	size_t page = random64(state) % (PAGES * 3 - 64);

	*size = PAGE * (1 + random64(state) % 64);
	return r.addr + page * PAGE;
}

static void *dontneed(void *arg)
{
	uint64_t state = 77;
	size_t size;
	char *p;

	(void)arg;
	while (!LOAD(&stop)) {
		p = somewhere(&state, &size);
		madvise(p, size, MADV_DONTNEED);
	}
	return NULL;
}

static void *pageout(void *arg)
{
	uint64_t state = 99;
	size_t size;
	char *p;

	(void)arg;
	while (!LOAD(&stop)) {
		p = somewhere(&state, &size);
		madvise(p, size, MADV_PAGEOUT);
		p = somewhere(&state, &size);
		madvise(p, size, MADV_COLD);
		p = somewhere(&state, &size);
		madvise(p, size, MADV_WILLNEED);
	}
	return NULL;
}

static void *walker(void *arg)
{
	static char text[65536];
	static uint64_t entries[PAGES];
	int fd = (int)CHECK_OK(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));

	(void)arg;
	while (!LOAD(&stop)) {
		read_text("/proc/self/smaps", text, sizeof(text));
		read_text("/proc/self/numa_maps", text, sizeof(text));
		if (pread(fd, entries, sizeof(entries), (off_t)((uintptr_t)r.addr / PAGE * 8)) < 0)
			FAIL("pagemap: %s", strerror(errno));
		try_write_text("/proc/self/clear_refs", "1");
	}
	close(fd);
	return NULL;
}

static void *forker(void *arg)
{
	uint64_t state = 5;

	(void)arg;
	while (!LOAD(&stop)) {
		pid_t pid = fork();

		if (!pid) {
			size_t i;

			for (i = 0; i < 50; i++)
				(void)*(volatile char *)(r.addr + random64(&state) % PAGES * PAGE * 3);
			_exit(0);
		}
		CHECK(pid > 0, "fork: %s", strerror(errno));
		JOIN(pid);
	}
	return NULL;
}

/* Another thread maps and unmaps a second region all the time. */
static void *mapper(void *arg)
{
	struct region second;
	int i = 0;

	(void)arg;
	region_create(&second, "second", GiB(1));
	while (!LOAD(&stop)) {
		second.addr[PAGE * (size_t)(i++ % 512)] = 1;
		CHECK_OK(munmap(second.addr, second.size));
		region_map(&second, PROT_READ | PROT_WRITE);
	}
	return NULL;
}

static void against(void *(*first)(void *), void *(*second)(void *), bool swap_too)
{
	static struct owner owners[OWNERS];
	pthread_t owner[OWNERS], other[2];
	int i, swap = swap_too ? swap_add(MiB(128)) : -1;

	region_create(&r, "threads", GiB(1));
	for (i = 0; i < OWNERS; i++) {
		owners[i].number = i;
		owners[i].state = (uint64_t)i + 1;
		owner[i] = xthread(owner_thread, &owners[i]);
	}
	other[0] = xthread(first, NULL);
	if (second)
		other[1] = xthread(second, NULL);
	nap_ms(storm_seconds(3) * 1000);
	STORE(&stop, 1);
	for (i = 0; i < OWNERS; i++)
		xjoin(owner[i]);
	xjoin(other[0]);
	if (second)
		xjoin(other[1]);
	diag("%lu and %lu writes", owners[0].steps, owners[1].steps);
	CHECK(owners[0].steps && owners[1].steps, "no writes");
	if (swap_too)
		swap_remove(swap);
}

static void against_dontneed(void)
{
	against(dontneed, NULL, false);
}

static void against_pageout(void)
{
	against(pageout, dontneed, true);
}

static void against_walkers(void)
{
	against(walker, dontneed, false);
}

static void against_fork(void)
{
	against(forker, dontneed, false);
}

static void against_mapping(void)
{
	against(mapper, walker, false);
}

static const struct test_case cases[] = {
	{ .name = "faults against DONTNEED", .run = against_dontneed },
	{ .name = "faults against PAGEOUT, COLD, WILLNEED", .run = against_pageout },
	{ .name = "faults against smaps, pagemap, clear_refs", .run = against_walkers },
	{ .name = "faults against fork", .run = against_fork },
	{ .name = "faults against mapping and unmapping", .run = against_mapping },
};

TEST_MAIN(cases)
