/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A death at each injection point of each change of names, and then at each point of making that good.
 *
 * A child process is a client on a heap without a broker (fake_region.h); it is killed at a point of one
 * operation. Then further children, each killed at a point of its own, do what the broker would, one
 * after the other, and the test does it at last, and reaps the dead client. Whatever happened: the
 * directory is whole, the name has its old state or its new one, nobody waits, and the heap has what the
 * directory says that it has, and nothing else.
 *
 * Names of points come from the sources.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pando/heap.h>

#include "common/inject.h"
#include "directory_mend_points.h"
#include "directory_points.h"
#include "fake_region.h"

#define MIB (1ull << 20)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define VICTIM 1u
#define CROWD 130u /* names in one part */

static struct fake_heap heap;
static struct pando_region here; /* slot 0, of this process */
static struct pando_region victim; /* of children */
static const char *doing = "nothing", *point = "nowhere", *mending = "nowhere";
static unsigned int deaths[COUNT(directory_points)], mend_deaths[COUNT(directory_mend_points)];
static uint64_t **offered; /* shared with children: what was the region's before it got a name */

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "directory-deaths: %s, at %s, then %s: %s (%s)\n", doing, point, mending,
		what, pando_strerror_last());
	exit(1);
}

static struct pando__directory *directory(void)
{
	return here.directory.directory;
}

static uint32_t *watched(unsigned int shard)
{
	return &((struct pando__rcu *)(void *)(heap.slots + PANDO__RCU_OFFSET))->watched[shard];
}

/* --- the operations; `r` is the victim's --- */

static uint64_t *object(struct pando_region *r, uint64_t value)
{
	uint64_t *o = pando_alloc(r, 40);

	must(o != NULL, "alloc");
	*o = value;
	return o;
}

static int replace(struct pando_region *r)
{
	return pando_publish(r, "there", object(r, 2));
}

static int insert(struct pando_region *r)
{
	return pando_publish(r, "new", object(r, 2));
}

/* What is the region's becomes the client's first. */
static int insert_shared(struct pando_region *r)
{
	uint64_t *o = object(r, 2);

	must(pando_share(r, o) == 0, "share");
	*offered = o;
	return pando_publish(r, "new", o);
}

static int withdraw(struct pando_region *r)
{
	return pando_withdraw(r, "there");
}

/* Names of one part, so that it grows. */
static char crowd[CROWD][16];

static int grow(struct pando_region *r)
{
	for (unsigned int i = 0; i < CROWD; i++) {
		const int rc = pando_publish(r, crowd[i], object(r, i + 10));

		if (rc < 0)
			return rc;
	}
	return 0;
}

static const struct operation {
	const char *name;
	int (*run)(struct pando_region *r);
} operations[] = {
	{"replace", replace},	{"insert", insert}, {"insert what is shared", insert_shared},
	{"withdraw", withdraw}, {"grow", grow},
};

/* --- looking --- */

static uint64_t value_of(const char *name)
{
	uint64_t value = 0, *o;

	must(pando_read_lock(&here) == 0, "read lock");
	o = pando_lookup(&here, name);
	if (o)
		value = *o;
	must(pando_read_unlock(&here) == 0, "read unlock");
	return value;
}

/* Old or new, nothing in between; and what was done before is not undone. */
static void check_names(const struct operation *op, bool ended)
{
	const uint64_t there = value_of("there"), new = value_of("new");
	unsigned int n = 0;

	must(new == 0 || new == 2, "\"new\" is neither there nor not");
	if (op->run == replace)
		must(there == 2 || (there == 1 && !ended), "\"there\" is neither old nor new");
	else if (op->run == withdraw)
		must(there == 0 || (there == 1 && !ended), "\"there\" is neither there nor not");
	else
		must(there == 1, "\"there\" is another one");
	if (ended && (op->run == insert || op->run == insert_shared))
		must(new == 2, "\"new\" is not there");
	while (n < CROWD && value_of(crowd[n]) == n + 10)
		n++;
	for (unsigned int i = n; i < CROWD; i++)
		must(value_of(crowd[i]) == 0, "a later name is there, an earlier one is not");
	must(op->run != grow || !ended || n == CROWD, "not all names are there");
}

/* The heap has two objects for each name, and the tables. */
static void check_heap(void)
{
	struct pando_directory_stat st;
	struct pando_heap_stat hs;

	/* It was the region's, and is so still: then the death came before anything. */
	if (*offered && pando_owner(&here, *offered, NULL) == PANDO_HOLDING_SHARED)
		pando_free(&here, *offered);
	*offered = NULL;
	for (int i = 0; i < 3; i++)
		(void)pando_reclaim(&here);
	must(pando_directory_check(&here) == 0, "the directory is not whole");
	must(pando_heap_check(&here) == 0, "the heap is not whole");
	must(pando_directory_stat(&here, &st) == 0 && st.locked == 0, "something is locked");
	must(pando_heap_stat(&here, &hs) == 0, "stat");
	if (hs.objects != 2 * st.names + st.tables)
		fprintf(stderr, "%llu objects, %llu names, %llu tables\n",
			(unsigned long long)hs.objects, (unsigned long long)st.names,
			(unsigned long long)st.tables);
	must(hs.objects == 2 * st.names + st.tables, "objects are lost");
	must(hs.held == 0, "an object is held by the dead");
}

/* --- the broker's part --- */

static void break_locks(void)
{
	for (unsigned int i = 0; i < PANDO__SHARDS; i++) {
		struct pando__shard *s = &directory()->shard[i];

		if (((uint32_t)s->lock & ~PANDO__SHARD_WAITERS) != VICTIM + 1)
			continue;
		pando__directory_mend(&heap.view, s, VICTIM, watched(i));
		pando__directory_break(s);
	}
}

/* True if the child was killed at the point; it cannot have failed. */
static bool killed(pid_t pid)
{
	int status;

	must(pid > 0 && waitpid(pid, &status, 0) == pid, "wait");
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return true;
	must(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child failed");
	return false;
}

/* A broker that dies at a point of its own, and leaves the rest to the next one. */
static void dying_broker(size_t at)
{
	char arm[96];
	pid_t pid;

	mending = directory_mend_points[at];
	snprintf(arm, sizeof(arm), "%s=kill", mending);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		pando__inject_arm(arm);
		break_locks();
		_exit(0);
	}
	mend_deaths[at] += killed(pid);
}

static bool intent_left(void)
{
	for (unsigned int i = 0; i < PANDO__SHARDS; i++)
		if (directory()->shard[i].intent.kind)
			return true;
	return false;
}

static void world_init(void)
{
	fake_heap_init(&heap, 1024 * MIB, 64 * MIB, true);
	fake_region_init(&here, &heap, 0);
	fake_region_init(&victim, &heap, VICTIM);
}

static void world_deinit(void)
{
	fake_region_deinit(&victim);
	fake_region_deinit(&here);
	fake_heap_deinit(&heap);
}

static void bury(void)
{
	struct pando__ledger_client *e = pando__ledger_client(heap.ledger, VICTIM);
	struct pando__reclaimed out;

	pando__store_release(&e->word,
			     PANDO__CLIENT_WORD(victim.generation, PANDO__CLIENT_REAPING));
	break_locks();
	fake_region_kill(&victim, &out);
}

/* --- one death --- */

static void gone(const char *name)
{
	const int rc = pando_withdraw(&here, name);

	must(rc == 0 || rc == -ENOENT, "withdraw");
}

static void reset(void)
{
	gone("new");
	for (unsigned int i = 0; i < CROWD; i++)
		gone(crowd[i]);
	must(pando_publish(&here, "there", object(&here, 1)) == 0, "publish");
	check_heap();
}

/*
 * One operation that is to end at passage n of point `at`, and the broker once at point `broker` of its
 * own, or not (-1). Returns whether it died; *half: whether it left something to be mended.
 */
static bool run(const struct operation *op, size_t at, unsigned int passage, int broker, bool *half)
{
	const bool first = strstr(directory_points[at], ".memory.");
	char arm[96];
	bool dead;
	pid_t pid;

	if (op->run == grow || first) { /* it does not shrink again, and has one first name */
		world_deinit();
		world_init();
	}
	point = directory_points[at];
	mending = "nowhere";
	if (!first)
		reset();
	snprintf(arm, sizeof(arm), "%s=kill@%u", point, passage);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		pando__inject_arm(arm);
		if (op->run(&victim) < 0)
			_exit(2);
		pando__inject_arm("");
		_exit(0);
	}
	dead = killed(pid);
	deaths[at] += dead;
	*half = intent_left();
	/* Readers are not in the way of a list that is being changed. */
	(void)value_of("there");
	(void)value_of("new");
	if (broker >= 0)
		dying_broker((size_t)broker);
	bury();
	if (first)
		reset();
	else
		check_names(op, !dead);
	check_heap();
	return dead;
}

static void test_operation(const struct operation *op)
{
	const unsigned int most = op->run == grow ? 140 : 2;

	doing = op->name;
	for (size_t i = 0; i < COUNT(directory_points); i++)
		for (unsigned int n = 1; n <= most; n += n > 2 ? 17 : 1) {
			bool half;

			if ((op->run == grow && !strstr(directory_points[i], ".grow.")) ||
			    (op->run != insert && strstr(directory_points[i], ".memory.")))
				break;
			if (!run(op, i, n, -1, &half))
				break;
			for (size_t k = 0; half && n < 3 && k < COUNT(directory_mend_points); k++)
				(void)run(op, i, n, (int)k, &half);
		}
}

/* Each point has been come to. */
static unsigned int all(const unsigned int *count, const char *const *name, size_t n)
{
	unsigned int sum = 0;

	for (size_t i = 0; i < n; i++) {
		point = name[i];
		must(count[i] > 0, "nobody died there");
		sum += count[i];
	}
	return sum;
}

int main(void)
{
	unsigned int writers, brokers;

#ifndef PANDO_INJECTION
	printf("skipped: no injection points\n");
	return 77;
#endif
	world_init();
	offered = mmap(NULL, sizeof(*offered), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	must(offered != MAP_FAILED, "mmap");
	for (unsigned int i = 0, n = 0; n < CROWD; i++) {
		snprintf(crowd[n], sizeof(crowd[n]), "c%u", i);
		n += pando__shard_of(
			     pando__hash(here.directory.seed, crowd[n], strlen(crowd[n]))) == 0;
	}
	for (size_t i = 0; i < COUNT(operations); i++)
		test_operation(&operations[i]);
	writers = all(deaths, directory_points, COUNT(directory_points));
	brokers = all(mend_deaths, directory_mend_points, COUNT(directory_mend_points));
	printf("directory-deaths: %u of writers, %u of brokers\n", writers, brokers);
	world_deinit();
	return 0;
}
