/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The heap through the library, with a broker: fronts that come and go with regions, forks of every
 * kind, deaths, rights, a broker that is gone.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MIB (1ull << 20)

static struct pando_region *open_heap(struct pando *p, const char *name)
{
	return harness_region(p, name, 256 * MIB, PANDO_HEAP | PANDO_TRANSIENT);
}

/* A region that is no heap's from the start, whose size ends before the tables for its maximum do. */
static void test_too_small(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "small", MIB, PANDO_TRANSIENT);

	errno = 0;
	CHECK(!pando_alloc(r, 1) && errno == ENOMEM);
	CHECK(strstr(pando_strerror_last(), "smaller maximum"));
	CHECK_OK(pando_region_resize(r, 128 * MIB));
	CHECK(pando_alloc(r, 1));
	pando_disconnect(p);
}

/* What the heap has, once the broker has gone through the dead. */
static void await_objects(struct pando_region *r, uint64_t objects)
{
	struct pando_heap_stat st;

	for (int i = 0; i < 400; i++) {
		CHECK_OK(pando_heap_stat(r, &st));
		if (st.objects == objects)
			return;
		harness_sleep_ms(10);
	}
	CHECK_INT(st.objects, objects);
}

/* Memory that parent and children share outside of any region. */
static void *common(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

static void test_comes_and_goes(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "coming", 256 * MIB, PANDO_HEAP), *again;
	struct pando_heap_stat st;
	char *o, *large;

	CHECK_ERR(pando_heap_stat(r, &st), EINVAL, "no heap");
	CHECK(o = pando_alloc(r, 100));
	CHECK(large = pando_alloc(r, 100000));
	memset(o, 1, 100);
	memset(large, 2, 100000);
	CHECK_INT(pando_owner(r, o, NULL), PANDO_HOLDING_PRIVATE);
	CHECK_OK(pando_heap_check(r));
	await_objects(r, 2);
	/* Counted opens: the heap stays until the last close. */
	CHECK_OK(pando_region_open(p, "coming", 0, NULL, &again));
	CHECK(again == r);
	CHECK_OK(pando_region_close(again));
	pando_free(r, o);
	pando_free(r, large);
	CHECK(o = pando_alloc(r, 100));
	CHECK_OK(pando_share(r, o));
	strcpy(o, "stays");
	CHECK(pando_alloc(r, 100));
	CHECK_OK(pando_region_close(r));
	CHECK_OK(pando_region_open(p, "coming", 0, NULL, &r));
	await_objects(r, 1);
	CHECK(strcmp(o, "stays") == 0);
	CHECK_INT(pando_owner(r, o, NULL), PANDO_HOLDING_SHARED);
	pando_free(r, o);
	await_objects(r, 0);
	CHECK_OK(pando_heap_check(r));
	CHECK_OK(pando_region_destroy(p, "coming"));
	pando_disconnect(p);
}

static void test_detaching_frees(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "detach");
	int status;
	char **shared = common(4096);
	pid_t pid;

	CHECK(pando_self(r) != 0);
	pid = fork();
	if (pid == 0) {
		CHECK(pando_alloc(r, 500));
		CHECK(shared[0] = pando_alloc(r, 500));
		CHECK_OK(pando_share(r, shared[0]));
		strcpy(shared[0], "outlives");
		CHECK_OK(pando_region_close(r));
		_exit(0);
	}
	status = harness_join(pid);
	CHECK_INT(status, 0);
	await_objects(r, 1);
	CHECK(strcmp(shared[0], "outlives") == 0);
	pando_free(r, shared[0]);
	await_objects(r, 0);
	CHECK_OK(pando_heap_check(r));
	munmap(shared, 4096);
	pando_disconnect(p);
}

static void test_forked(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "forked");
	char **slot = common(4096);
	char *mine = pando_alloc(r, 64), *shared = pando_alloc(r, 64),
	     *private = pando_alloc(r, 64);
	pando_holder me = pando_self(r), holder;
	pid_t pid;

	CHECK(mine && shared && private && me);
	CHECK_OK(pando_share(r, shared));
	pando_free(r, mine); /* into the magazine: the child must not find it there */
	pid = fork();
	if (pid == 0) {
		char *o = pando_alloc(r, 64);

		CHECK(o && o != mine);
		CHECK(pando_self(r) != me && pando_self(r) != 0);
		CHECK_INT(pando_owner(r, o, &holder), PANDO_HOLDING_PRIVATE);
		CHECK(holder == pando_self(r));
		CHECK_INT(pando_owner(r, private, &holder), PANDO_HOLDING_PRIVATE);
		CHECK(holder == me);
		pando_free(r, shared);
		pando_free(r, private); /* the parent lives and has handed it on */
		strcpy(o, "for my parent");
		CHECK_OK(pando_transfer(r, o, me));
		slot[0] = o;
		CHECK(slot[1] = pando_alloc(r, 20000));
		CHECK_OK(pando_transfer(r, slot[1], me));
		memset(slot[1], 5, 20000);
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	await_objects(r, 2);
	CHECK_INT(pando_owner(r, slot[0], &holder), PANDO_HOLDING_HELD);
	CHECK(holder == me);
	CHECK(strcmp(slot[0], "for my parent") == 0 && slot[1][19999] == 5);
	pando_free(r, slot[0]);
	pando_free(r, slot[1]);
	await_objects(r, 0);
	CHECK(pando_alloc(r, 64) == mine);
	CHECK_OK(pando_heap_check(r));
	munmap(slot, 4096);
	pando_disconnect(p);
}

static int cloned(struct pando_region *r, const char *mine, const char *theirs, pando_holder me)
{
	char *o = pando_alloc(r, 64);

	if (!o || o == mine)
		return 1;
	if (pando_self(r) == me || pando_self(r) == 0)
		return 2;
	pando_free(r, o);
	pando_free(r, (char *)(uintptr_t)theirs);
	return pando_owner(r, theirs, NULL) == PANDO_HOLDING_NONE ? 0 : 3;
}

/* Children for which no handler runs: _Fork() and the bare system call; the first call may be a free. */
static void test_cloned(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "cloned");
	char *mine = pando_alloc(r, 64), *theirs[3];
	pando_holder me = pando_self(r);
	pid_t pid;

	for (int i = 0; i < 3; i++)
		CHECK(theirs[i] = pando_alloc(r, 64));
	pando_free(r, mine);
	for (int i = 0; i < 3; i++) {
		pid = i == 1 ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : _Fork();
		if (pid == 0 && i == 2) {
			pando_free(r, theirs[2]);
			_exit(pando_owner(r, theirs[2], NULL) != PANDO_HOLDING_NONE);
		}
		if (pid == 0)
			_exit(cloned(r, mine, theirs[i], me));
		CHECK_INT(harness_join(pid), 0);
	}
	CHECK(pando_alloc(r, 64) == mine);
	await_objects(r, 1);
	CHECK_OK(pando_heap_check(r));
	pando_disconnect(p);
}

/* Anonymous memory of this process in KiB, exact. */
static long anonymous_kib(void)
{
	FILE *f = fopen("/proc/self/smaps_rollup", "re");
	char line[128];
	long kib = -1;

	CHECK(f != NULL);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Anonymous: %ld", &kib) == 1)
			break;
	fclose(f);
	CHECK(kib > 0);
	return kib;
}

/* A child that has touched every size class and waits to be killed. */
static pid_t touching_child(struct pando_region *r)
{
	pid_t pid;
	int fd[2];
	char c;

	CHECK(pipe(fd) == 0);
	pid = fork();
	if (pid == 0) {
		long before = anonymous_kib();

		for (size_t size = 1; size <= 1024; size++)
			pando_free(r, pando_alloc(r, size));
		before = anonymous_kib() - before;
		printf("  one client: %ld KiB of private memory\n", before);
		fflush(stdout);
		CHECK(before <= 320);
		CHECK(write(fd[1], "", 1) == 1);
		pause();
	}
	close(fd[1]);
	CHECK(read(fd[0], &c, 1) == 1);
	close(fd[0]);
	return pid;
}

/* What one more client costs. The first one is there so that the broker has looked at a heap. */
static void test_footprint(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "footprint");
	pid_t child[2];
	uint64_t shared;

	child[0] = touching_child(r);
	harness_sleep_ms(2500); /* two of the broker's rounds */
	shared = harness_file_kib(h->broker);
	child[1] = touching_child(r);
	/* 128 KiB: its slot page, and the heap's, to which two descriptors lead. */
	shared = harness_file_kib(h->broker) - shared;
	printf("  one client: %llu KiB of shared memory\n", (unsigned long long)shared / 2 + 2);
	CHECK(shared <= 4 + 2 * 124);
	for (int i = 0; i < 2; i++) {
		CHECK(kill(child[i], SIGKILL) == 0);
		CHECK_INT(harness_join(child[i]), 256 + SIGKILL);
	}
	pando_disconnect(p);
}

/* A tree of forks, all of which allocate while they fork. */
static void generations(struct pando_region *r, int depth)
{
	void *o[50];
	pid_t pid[2];

	for (int i = 0; i < 50; i++)
		CHECK(o[i] = pando_alloc(r, (size_t)(1 + i * 100)));
	for (int i = 0; depth > 0 && i < 2; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			generations(r, depth - 1);
			_exit(0);
		}
	}
	for (int i = 0; i < 50; i += 2)
		pando_free(r, o[i]);
	for (int i = 0; depth > 0 && i < 2; i++)
		CHECK_INT(harness_join(pid[i]), 0);
}

static void test_generations(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "tree");

	generations(r, 4);
	await_objects(r, 25);
	CHECK_OK(pando_heap_check(r));
	pando_disconnect(p);
}

static volatile bool over;
static unsigned int warm; /* threads that have met every size: they call malloc() no more */

static void *allocates(void *arg)
{
	struct pando_region *r = arg;
	void *o[64] = {NULL};

	for (unsigned int i = 0; !over; i++) {
		pando_free(r, o[i % 64]);
		CHECK(o[i % 64] = pando_alloc(r, 1 + i * 977 % 5000));
		if (i == 5000)
			__atomic_add_fetch(&warm, 1, __ATOMIC_RELEASE);
	}
	for (unsigned int i = 0; i < 64; i++)
		pando_free(r, o[i]);
	return NULL;
}

static void test_forked_among_threads(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "threads");
	pthread_t t[3];

	over = false;
	warm = 0;
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&t[i], NULL, allocates, r) == 0);
	/*
	 * The children get memory from malloc(). The C library's is in order after a fork() among
	 * threads; AddressSanitizer's keeps the lock of a thread that was in it for ever.
	 */
	while (__atomic_load_n(&warm, __ATOMIC_ACQUIRE) < 3)
		harness_sleep_ms(1);
	for (int i = 0; i < 60; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			void *o;

			for (int k = 0; k < 100; k++) {
				CHECK(o = pando_alloc(r, (size_t)(1 + k * 50)));
				pando_free(r, o);
			}
			_exit(0);
		}
		CHECK_INT(harness_join(pid), 0);
	}
	over = true;
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(t[i], NULL) == 0);
	await_objects(r, 0);
	CHECK_OK(pando_heap_check(r));
	pando_disconnect(p);
}

static void test_killed(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "killed");
	pando_holder me = pando_self(r);
	uint64_t *given = common(4096);
	uint64_t kept = 0;

	for (int round = 0; round < 10; round++) {
		pid_t pid = fork();

		if (pid == 0) {
			for (;;) {
				void *o[30];

				for (int i = 0; i < 30; i++)
					CHECK(o[i] = pando_alloc(r, (size_t)(1 + i * 150)));
				CHECK_OK(pando_transfer(r, o[7], me));
				__atomic_add_fetch(given, 1, __ATOMIC_RELEASE);
				for (int i = 8; i < 30; i++)
					pando_free(r, o[i]);
				sched_yield();
			}
		}
		kept = *given;
		while (__atomic_load_n(given, __ATOMIC_ACQUIRE) < kept + 20)
			harness_sleep_ms(1);
		CHECK(kill(pid, SIGKILL) == 0);
		CHECK_INT(harness_join(pid), 256 + SIGKILL);
	}
	harness_await_clients(h, 2);
	for (int i = 0; i < 100; i++) {
		struct pando_heap_stat st;

		CHECK_OK(pando_heap_stat(r, &st));
		/* One transfer each may have been made and not counted. */
		if (st.objects >= *given && st.objects <= *given + 10 && st.held == st.objects)
			break;
		CHECK(i < 99);
		harness_sleep_ms(20);
	}
	CHECK_OK(pando_heap_check(r));
	munmap(given, 4096);
	pando_disconnect(p);
}

static enum pando_misuse misuse;
static void note(struct pando_region *r, const void *o, enum pando_misuse what,
		 const char *sentence, void *arg)
{
	(void)r;
	(void)o;
	(void)sentence;
	(void)arg;
	misuse = what;
}

static void test_rights_and_regions(struct harness *h)
{
	struct pando *p = harness_connect(h), *q = harness_connect(h);
	struct pando_region *r = open_heap(p, "one"), *s = open_heap(p, "two"), *readonly;
	char *o = pando_alloc(r, 50), *of_other = pando_alloc(s, 50);

	CHECK(o && of_other);
	CHECK_OK(pando_share(r, o));
	pando_heap_on_misuse(note, NULL);
	pando_free(s, o);
	CHECK_INT(misuse, PANDO_MISUSE_NOT_OURS);
	pando_free(r, of_other);
	CHECK_INT(misuse, PANDO_MISUSE_NOT_OURS);
	/* The two in turn: a thread's magazines of both stay. */
	for (int i = 0; i < 100; i++) {
		pando_free(r, o);
		pando_free(s, of_other);
		CHECK(pando_alloc(r, 50) == o);
		CHECK(pando_alloc(s, 50) == of_other);
	}
	misuse = 0;
	/* Read-only: everything fails with a reason. In a process of its own: this one has it open. */
	pid_t pid = fork();
	if (pid == 0) {
		struct pando *own;

		pando_disconnect(p);
		CHECK_OK(pando_connect(&own, h->address));
		CHECK_OK(pando_region_open(own, "one", PANDO_READONLY, NULL, &readonly));
		errno = 0;
		CHECK(!pando_alloc(readonly, 10) && errno == EACCES);
		CHECK(strstr(pando_strerror_last(), "read-only"));
		CHECK(pando_self(readonly) == 0);
		CHECK_ERR(pando_share(readonly, o), EACCES, NULL);
		pando_free(readonly, o);
		CHECK_INT(misuse, PANDO_MISUSE_FOREIGN);
		CHECK_OK(pando_heap_check(readonly));
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	pando_heap_on_misuse(NULL, NULL);
	pando_disconnect(q);
	pando_disconnect(p);
}

/* The broker is gone for good: the heap goes on, here and for a child of before. */
static void test_without_broker(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = open_heap(p, "alone"), *late = open_heap(p, "late");
	pid_t daemon = h->daemon;
	void *o;
	pid_t pid;

	CHECK(o = pando_alloc(r, 100));
	kill(h->broker, SIGSTOP); /* it would start a new supervisor */
	kill(daemon, SIGKILL);
	kill(h->broker, SIGKILL);
	h->daemon = 0;
	harness_join(daemon);
	for (int i = 0; i < 1000; i++)
		CHECK(pando_alloc(r, (size_t)(i + 1)));
	pando_free(r, o);
	CHECK(pando_alloc(late, 100)); /* attached, so its front can be made */
	CHECK_OK(pando_heap_check(r));
	pid = fork();
	if (pid == 0) {
		errno = 0;
		CHECK(!pando_alloc(r, 10) && errno == ECONNRESET);
		_exit(0);
	}
	CHECK_INT(harness_join(pid), 0);
	CHECK(pando_alloc(r, 10));
	pando_disconnect(p);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{"comes_and_goes", test_comes_and_goes},
		{"too_small", test_too_small},
		{"detaching_frees", test_detaching_frees},
		{"forked", test_forked},
		{"cloned", test_cloned},
		{"footprint", test_footprint},
		{"generations", test_generations},
		{"forked_among_threads", test_forked_among_threads},
		{"killed", test_killed},
		{"rights_and_regions", test_rights_and_regions},
		{"without_broker", test_without_broker, HARNESS_BROKER_DIES},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
