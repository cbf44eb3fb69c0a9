/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who is late: a process is stopped in the middle of something, by an injection point, while others
 * go on; what it does when it goes on must not hit what others have made of the memory meanwhile.
 *
 * Each client is a process of its own or the test itself, on one fake region.
 */
#include "fake_region.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "allocator/check.h"
#include "common/atomic.h"
#include "common/inject.h"

#define MIB (1ull << 20)
#define SKIPPED 77

#ifdef PANDO_INJECTION

enum { LATE, RECEIVER, NEXT, CLIENTS };

static struct fake_heap heap;
static struct pando_region regions[CLIENTS];
static uint64_t *told; /* by the child: an object's offset */

static int setup(void **state)
{
	(void)state;
	fake_heap_init(&heap, 64 * MIB, 64 * MIB, true);
	for (uint32_t i = 0; i < CLIENTS; i++)
		fake_region_init(&regions[i], &heap, i);
	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return told == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	munmap(told, sizeof(*told));
	for (uint32_t i = 0; i < CLIENTS; i++)
		fake_region_deinit(&regions[i]);
	fake_heap_deinit(&heap);
	return 0;
}

static void await_stop(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
}

static void go_on(pid_t pid)
{
	assert_int_equal(kill(pid, SIGCONT), 0);
}

static void await_end(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static uint16_t word_of(const void *p)
{
	return pando__load_acquire(pando__word(&heap.view, pando__offset(&heap.view, p)));
}

/* Has a shared object in a span of its own, and collects it when it has been freed. */
static void collector(void)
{
	struct pando_region *r = &regions[LATE];
	char *p = pando_alloc(r, 300000);

	if (!p || pando_share(r, p) < 0)
		_exit(1);
	*told = pando__offset(&heap.view, p);
	(void)raise(SIGSTOP);
	pando__inject_arm("heap.collect.left=stop");
	if (pando_heap_trim(r) < 0)
		_exit(2);
	_exit(0);
}

/*
 * With the object that is collected go its spans, and the next client has them at once. There, too,
 * something is freed by somebody who does not own it, in what was the object's first page.
 */
static void collected_where_others_are_by_now(void **state)
{
	struct pando_region *next = &regions[NEXT], *receiver = &regions[RECEIVER];
	void *p[16];
	pid_t pid;

	(void)state;
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		collector();
	await_stop(pid);
	pando_free(receiver, heap.view.base + *told);
	assert_int_equal(word_of(heap.view.base + *told), PANDO__OBJECT_REMOTE);
	go_on(pid);
	await_stop(pid);
	assert_int_equal(word_of(heap.view.base + *told), PANDO__OBJECT_FREE);
	for (int i = 0; i < 16; i++) {
		assert_non_null(p[i] = pando_alloc(next, 32));
		assert_int_equal(pando__offset(&heap.view, p[i]) / PANDO__PAGE,
				 *told / PANDO__PAGE);
		assert_int_equal(pando_transfer(next, p[i], pando_self(receiver)), 0);
	}
	pando_free(receiver, p[8]);
	go_on(pid);
	await_end(pid);
	for (int i = 0; i < 16; i++)
		assert_int_equal(word_of(p[i]), i == 8 ? PANDO__OBJECT_REMOTE
						       : PANDO__OBJECT_SHARED(RECEIVER + 1));
	assert_int_equal(pando__heap_verify(&heap.view, heap.slots, 1), 0);
}

/* Gives the object at *told, which is shared, on to `to`, once it holds it. */
static void giver(pando_holder to)
{
	struct pando_region *r = &regions[LATE];
	void *p = heap.view.base + *told;

	if (pando_transfer(r, p, pando_self(r)) != 0)
		_exit(1);
	pando__inject_arm("heap.transfer.held=stop");
	_exit(pando_transfer(r, p, to) == 0 ? 0 : 2);
}

/*
 * The receiver frees what it was given; its owner has another object there, which it gives to the same
 * receiver; that dies. Who gave the first one is told only now: what is there is not its own any more.
 */
static void given_and_gone_and_given_again(void **state)
{
	struct pando_region *owner = &regions[NEXT], *receiver = &regions[RECEIVER];
	void *p = pando_alloc(owner, 40), *q, *other[200];
	const pando_holder to = pando_self(receiver);
	unsigned int n = 0;
	struct pando__reclaimed out;
	pid_t pid;

	(void)state;
	assert_int_equal(pando_share(owner, p), 0);
	*told = pando__offset(&heap.view, p);
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		giver(to);
	await_stop(pid);
	assert_int_equal(word_of(p), PANDO__OBJECT_SHARED(RECEIVER + 1));
	pando_free(receiver, p);
	assert_non_null(other[n++] = pando_alloc(owner, 40)); /* keeps the slab */
	assert_int_equal(pando_heap_trim(owner), 0);
	while (n < 200 && (q = pando_alloc(owner, 40)) != p)
		other[n++] = q;
	assert_ptr_equal(q, p);
	assert_int_equal(pando_transfer(owner, q, to), 0);
	pando__store_seq_cst(&pando__ledger_client(heap.ledger, RECEIVER)->word,
			     PANDO__CLIENT_WORD(1, PANDO__CLIENT_REAPING));
	go_on(pid);
	await_end(pid);
	assert_int_equal(word_of(p), PANDO__OBJECT_REMOTE);
	fake_region_kill(receiver, &out);
	while (n)
		pando_free(owner, other[--n]);
	assert_int_equal(pando_heap_trim(owner), 0);
	assert_int_equal(word_of(p), PANDO__OBJECT_FREE);
	assert_int_equal(pando__heap_verify(&heap.view, heap.slots, 1), 0);
}

/* Frees the object at *told, and stops at that point of it. */
static void late_freer(const char *point)
{
	char list[64];

	if (!pando_alloc(&regions[LATE], 64)) /* from here on it has the fast paths */
		_exit(1);
	snprintf(list, sizeof(list), "%s=stop", point);
	pando__inject_arm(list);
	pando_free(&regions[LATE], heap.view.base + *told);
	_exit(0);
}

/*
 * The owner of an object dies while another process frees it, which goes on only when the dead one's
 * memory is somebody else's: by then the object is the freeing process's own, or free.
 */
static void owner_dies(const char *point, uint16_t then, bool freer_dies)
{
	struct pando_region *owner = &regions[NEXT], *heir = &regions[RECEIVER];
	struct pando__reclaimed out;
	void *p, *q[600];
	pid_t pid;

	for (int i = 0; i < 100; i++)
		assert_non_null(p = pando_alloc(owner, 64));
	assert_true(pando_self(heir) != 0);
	*told = pando__offset(&heap.view, p);
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		late_freer(point);
	await_stop(pid);
	fake_region_kill(owner, &out);
	assert_int_equal(word_of(p), then);
	assert_int_equal(pando__heap_sweep(&heap.view, &out), 0); /* counts orphans */
	for (int i = 0; i < 600; i++) {
		assert_non_null(q[i] = pando_alloc(heir, 64));
		if (then != PANDO__OBJECT_FREE)
			assert_ptr_not_equal(q[i], p);
	}
	assert_int_equal(pando__heap_verify(&heap.view, heap.slots, 1), 0);
	if (freer_dies)
		assert_int_equal(kill(pid, SIGKILL), 0);
	else
		go_on(pid);
	if (freer_dies)
		assert_int_equal(waitpid(pid, NULL, 0), pid);
	else
		await_end(pid);
	fake_region_kill(&regions[LATE], &out);
	for (int i = 0; i < 600; i++)
		assert_int_equal(word_of(q[i]), PANDO__OBJECT_LIVE);
	assert_int_equal(pando__heap_verify(&heap.view, heap.slots, 1), 0);
	for (int i = 0; i < 600; i++)
		pando_free(heir, q[i]);
	assert_int_equal(pando__heap_sweep(&heap.view, &out), 0);
	assert_int_equal(pando_heap_trim(heir), 0);
	assert_int_equal(word_of(p), PANDO__OBJECT_FREE);
	for (uint64_t i = heap.view.first / PANDO__SPAN; i < heap.view.end / PANDO__SPAN; i++)
		assert_false(PANDO__SPAN_STATE(heap.view.spans[i].word) == PANDO__SPAN_OWNED ||
			     PANDO__SPAN_STATE(heap.view.spans[i].word) == PANDO__SPAN_ORPHAN);
}

static void owner_dies_while_others_free(void **state)
{
	static const struct {
		const char *point;
		uint16_t then;
	} at[] = {
		{"heap.free.announced", PANDO__OBJECT_SHARED(LATE + 1)},
		{"heap.free.looked", PANDO__OBJECT_SHARED(LATE + 1)},
		{"heap.free.stored", PANDO__OBJECT_FREE},
	};

	for (unsigned int i = 0; i < 2 * sizeof(at) / sizeof(at[0]); i++) {
		owner_dies(at[i / 2].point, at[i / 2].then, i % 2);
		teardown(state);
		setup(state);
	}
}

/* Freed, and the freer goes on to other things, or dies: the owner comes by it all the same. */
static void untold(void **state)
{
	struct pando_region *owner = &regions[NEXT], *freer = &regions[RECEIVER];
	struct pando__heap_client *line = &heap.view.clients[NEXT];
	struct pando__reclaimed out;
	void *p[100];

	(void)state;
	for (unsigned int round = 0; round < 4; round++) {
		for (int i = 0; i < 100; i++)
			assert_non_null(p[i] = pando_alloc(owner, 64));
		pando_free(freer, p[0]); /* the way of who has had no fast path before */
		assert_int_equal(line->remote, 1);
		assert_int_equal(pando_heap_trim(owner), 0);
		pando_free(freer, pando_alloc(freer, 64));
		for (int i = 1; i < 100; i++)
			pando_free(freer, p[i]);
		for (int i = 1; i < 100; i++)
			assert_int_equal(word_of(p[i]), PANDO__OBJECT_REMOTE);
		assert_int_equal(line->remote, 0);
		if (round == 1)
			fake_region_kill(freer, &out);
		else if (round == 2)
			pando__heap_tell(&heap.view, heap.slots, NEXT + 1);
		else if (round == 3)
			assert_int_equal(pando_heap_trim(freer), 0);
		assert_int_equal(line->remote, round > 0);
		assert_int_equal(pando__heap_verify(&heap.view, heap.slots, 1), 0);
		assert_int_equal(pando_heap_trim(owner), 0);
		for (int i = 0; i < 100; i++)
			assert_int_equal(word_of(p[i]), PANDO__OBJECT_FREE);
	}
	pando__heap_tell(&heap.view, heap.slots, 0); /* there is nothing to be told */
	assert_int_equal(line->remote, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(collected_where_others_are_by_now),
		TEST(given_and_gone_and_given_again),
		TEST(owner_dies_while_others_free),
		TEST(untold),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
	puts("needs injection points: build with -Dinjection=true");
	return SKIPPED;
}

#endif
