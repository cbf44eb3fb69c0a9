/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the broker does in a heap, and when: turns among many deaths, memory that is not there. The
 * core without sockets; jobs run when the test says so; the region is a real one.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/core.h"
#include "broker/log.h"

#define SIZE (256ull << 20)
#define CLIENTS 100u
#define LOW 12u

static struct core core;
static struct region *r;
static struct client *clients[CLIENTS]; /* by slot */

static struct client *attached_to(const char *name, uint32_t flags)
{
	struct client *c = core_connect(&core, 1);
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_HELLO, 0);
	m.hello.version_min = m.hello.version_max = PANDO__PROTO_VERSION;
	core_send(&core, c, &m);
	pando__msg_init(&m, PANDO__MSG_OPEN, 0);
	strcpy(m.open.name, name);
	m.open.flags = flags;
	m.open.size = SIZE;
	core_send(&core, c, &m);
	/* The first one's job makes the region; others are attached at once, whatever waits in line. */
	if (!c->attachments)
		assert_true(core_run_job(&core, 0));
	return c;
}

static struct client *attached(void)
{
	return attached_to("heap", PANDO_CREATE | PANDO_HEAP);
}

/* Maps it, and makes the heap. */
static void make_heap(struct region *of)
{
	heap_tick(&core.broker);
	assert_non_null(of->heap.view.base);
	assert_int_equal(pando__heap_format(&of->heap.view), 0);
	assert_int_equal(
		pando__commit(&of->heap.view,
			      (uint64_t)((char *)of->heap.view.clients - of->heap.view.base),
			      CLIENTS * sizeof(struct pando__heap_client)),
		0);
	assert_true(heap_there(of));
	core_run_jobs(&core);
}

static int setup(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	core_init(&core);
	for (unsigned int i = 0; i < CLIENTS; i++) {
		clients[i] = attached();
		assert_int_equal(clients[i]->attachments->slot, i);
	}
	r = clients[0]->attachments->region;
	make_heap(r);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	core_run_jobs(&core);
	core_deinit(&core);
	return 0;
}

static enum pando__client_state state_of(uint32_t slot)
{
	return PANDO__CLIENT_STATE(pando__ledger_client(r->ledger, slot)->word);
}

static void dies(uint32_t slot)
{
	core_kill(&core, clients[slot]);
	clients[slot] = NULL;
	assert_int_equal(state_of(slot), PANDO__CLIENT_REAPING);
}

/* With each job that is done another client dies: those before it have their slots free soon. */
static void slots_are_free_while_others_die(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 20; i++)
		dies(i);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(core_run_job(&core, 0));
		dies(20 + i);
	}
	for (uint32_t i = 0; i < 18; i++)
		assert_int_equal(state_of(i), PANDO__CLIENT_FREE);
	core_run_jobs(&core);
	assert_int_equal(r->heap.reaping, 0);
}

/* Some low slots are taken and lost again and again: a high one has its turn all the same. */
static void the_last_slot_has_its_turn(void **state)
{
	(void)state;
	for (uint32_t slot = 0; slot < LOW; slot++)
		dies(slot);
	dies(CLIENTS - 1);
	for (unsigned int i = 0; i < 5 * LOW; i++) {
		assert_true(core_run_job(&core, 0));
		for (uint32_t slot = 0; slot < LOW; slot++)
			if (state_of(slot) == PANDO__CLIENT_FREE) {
				clients[slot] = attached();
				dies(slot);
			}
	}
	assert_int_equal(state_of(CLIENTS - 1), PANDO__CLIENT_FREE);
}

/*
 * Its last user has gone; a worker is still at its heap. Nobody finds it any more, and all know that
 * it ends.
 */
static void a_region_ends_while_its_heap_is_reaped(void **state)
{
	const uint32_t flags = PANDO_CREATE | PANDO_HEAP | PANDO_TRANSIENT;
	struct client *first = attached_to("brief", flags), *second;
	struct region *old = first->attachments->region;
	const uint64_t id = old->record.id;

	(void)state;
	make_heap(old);
	core_kill(&core, first);
	assert_true(old->heap.working);
	assert_null(region_find(&core.broker, "brief"));
	assert_int_equal(core.broker.frees, 1);
	second = attached_to("brief", flags);
	core_run_jobs(&core);
	assert_int_not_equal(second->attachments->region->record.id, id);
	assert_null(region_by_id(&core.broker, id));
	assert_int_equal(core.broker.frees, 0);
	core_kill(&core, second);
	core_run_jobs(&core);
	assert_null(region_find(&core.broker, "brief"));
	assert_int_equal(core.broker.frees, 0);
}

/* Sweeping is put off while there are dead, but not for ever. */
static void sweeping_has_its_turn(void **state)
{
	uint64_t *told = &r->heap.view.heap->orphan_remote.value;
	unsigned int jobs = 0;

	(void)state;
	for (uint32_t i = 0; i < 80; i++)
		dies(i);
	*told = 1;
	heap_tick(&core.broker);
	/* An empty heap's sweep inside a reap would take the hint as well: this one counts. */
	while (r->heap.sweep && core_run_job(&core, 0))
		jobs++;
	assert_in_range(jobs, 2, 2 * 32 + 4);
	assert_int_equal(state_of(79), PANDO__CLIENT_REAPING);
}

/* Puts what raises SIGBUS where the words of a span's objects are, or the region's memory again. */
static void take_memory(uint64_t index, bool away)
{
	const struct pando__view *v = &r->heap.view;
	const uint64_t bytes = PANDO__SPAN / PANDO__GRANULE * sizeof(uint16_t);
	char *at = (char *)v->objects + index * bytes;
	int fd = away ? memfd_create("nothing", MFD_CLOEXEC) : r->heap_fd;

	assert_true(fd >= 0);
	assert_ptr_equal(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
			      away ? 0 : (off_t)(at - v->base)),
			 at);
	if (away)
		close(fd);
}

/* A span of that client's in which there is one object; returns its index. */
static uint64_t span_of(uint32_t slot)
{
	const struct pando__view *v = &r->heap.view;
	const uint64_t index = v->first / PANDO__SPAN + 3;

	v->spans[index].word = PANDO__SPAN_WORD(slot + 1, PANDO__SPAN_OWNED, 1);
	v->spans[index].pages = 0xff;
	for (unsigned int p = 0; p < PANDO__SLAB_PAGES; p++)
		v->page_table[index * PANDO__SPAN_PAGES + p] = PANDO__PAGE_ENTRY(slot + 1, 1, 0);
	v->objects[index * PANDO__SPAN / PANDO__GRANULE] = PANDO__OBJECT_LIVE;
	return index;
}

static void memory_that_is_not_there_for_a_while(void **state)
{
	const uint64_t index = span_of(7);

	(void)state;
	heap_init(); /* cmocka has taken the signal for itself since setup() */
	take_memory(index, true);
	dies(7);
	for (int i = 0; i < 3; i++) {
		core_run_jobs(&core);
		assert_true(r->heap.failed);
		assert_int_equal(state_of(7), PANDO__CLIENT_REAPING);
		heap_tick(&core.broker);
	}
	take_memory(index, false);
	heap_tick(&core.broker);
	core_run_jobs(&core);
	assert_false(r->heap.failed);
	assert_int_equal(r->heap.failures, 0);
	assert_int_equal(state_of(7), PANDO__CLIENT_FREE);
	assert_int_equal(PANDO__SPAN_STATE(r->heap.view.spans[index].word), PANDO__SPAN_RESERVE);
	assert_int_equal(r->heap.view.objects[index * PANDO__SPAN / PANDO__GRANULE], 0);
}

static void memory_that_does_not_come_back(void **state)
{
	const uint64_t index = span_of(7);
	unsigned int tries = 0;

	(void)state;
	heap_init();
	log_set_level(LOG_LEVEL_ERROR);
	take_memory(index, true);
	dies(7);
	while (state_of(7) != PANDO__CLIENT_FREE && tries < 20) {
		core_run_jobs(&core);
		heap_tick(&core.broker);
		tries++;
	}
	assert_in_range(tries, 2, 10);
	take_memory(index, false);
	/* Others have their slots and their turns as before. */
	dies(8);
	heap_tick(&core.broker);
	core_run_jobs(&core);
	assert_int_equal(state_of(8), PANDO__CLIENT_FREE);
}

/* Only in a heap: anywhere else the signal means what it always does. */
static void other_bus_errors_are_fatal(void **state)
{
	volatile char *at;
	int status, fd;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		heap_init();
		fd = memfd_create("nothing", MFD_CLOEXEC);
		at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		_exit(at[0]);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(slots_are_free_while_others_die),
		TEST(the_last_slot_has_its_turn),
		TEST(a_region_ends_while_its_heap_is_reaped),
		TEST(sweeping_has_its_turn),
		TEST(memory_that_is_not_there_for_a_while),
		TEST(memory_that_does_not_come_back),
		TEST(other_bus_errors_are_fatal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
