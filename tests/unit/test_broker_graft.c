/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grafts in the broker's core: where slots are placed, what waits and is held, what is refused, what
 * becomes of a slot whose sender or receiver goes, requests that come twice, records that are taken up. core_send()
 * verifies the invariants after each request.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/core.h"
#include "broker/log.h"

#define BASE 0x480000000000ull
#define MIB (1ull << 20)
#define PAGE 4096ull

static struct core core;
static struct client *from, *to;

static int call_listen(struct client *c, uint64_t size, uint64_t limit)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_GRAFT_LISTEN, 0);
	m.graft_listen.base = BASE;
	m.graft_listen.size = size;
	m.graft_listen.limit = limit;
	return core_call(&core, c, &m);
}

static int setup(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	core_init(&core);
	from = core_client(&core, 1);
	to = core_client(&core, 1);
	return call_listen(to, 16 * MIB, 0);
}

static int teardown(void **state)
{
	(void)state;
	core_deinit(&core);
	return 0;
}

/* Reserves a slot; returns its offset, or a negative errno. */
static int64_t call_reserve_as(struct client *c, uint64_t bytes, uint32_t way, uint32_t flags)
{
	struct pando__msg m;
	int rc;

	pando__msg_init(&m, PANDO__MSG_GRAFT_RESERVE, 0);
	m.graft_reserve.receiver = to->record.id;
	m.graft_reserve.bytes = bytes;
	m.graft_reserve.tag = bytes * 2;
	m.graft_reserve.way = way;
	m.graft_reserve.flags = flags;
	rc = core_call(&core, c, &m);
	if (rc < 0)
		return rc;
	return flags ? 0 : (int64_t)(core.last.graft_slot.address - BASE);
}

static int64_t call_reserve(struct client *c, uint64_t bytes)
{
	return call_reserve_as(c, bytes, PANDO_GRAFT_MMAP, 0);
}

static int call_one(struct client *c, enum pando__msg_type type, uint64_t id, uint32_t flags)
{
	struct pando__msg m;

	pando__msg_init(&m, type, 0);
	m.graft_one.id = id;
	m.graft_one.flags = flags;
	return core_call(&core, c, &m);
}

static int call_send(struct client *c, uint64_t id, int fd)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_GRAFT_SEND, 0);
	m.graft_send.id = id;
	m.graft_send.way = fd >= 0 ? PANDO_GRAFT_MEMFD : PANDO_GRAFT_MMAP;
	core_send_with(&core, c, &m, fd);
	return core.last.header.type == PANDO__MSG_ERROR ? -core.last.error.error : 0;
}

static int call_accept_with(struct client *c, uint64_t taken, uint32_t flags)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_GRAFT_ACCEPT, 0);
	m.graft_accept.taken = taken;
	m.graft_accept.flags = flags;
	return core_call(&core, c, &m);
}

static int call_accept(struct client *c, uint64_t taken)
{
	return call_accept_with(c, taken, 0);
}

/* Reserves and announces; returns the graft's id. */
static uint64_t sent(struct client *c, uint64_t bytes)
{
	uint64_t id;

	assert_true(call_reserve(c, bytes) >= 0);
	id = core.last.graft_slot.id;
	assert_int_equal(call_send(c, id, -1), 0);
	return id;
}

static int memfd(uint64_t size, bool filled, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	if (filled)
		assert_int_equal(fallocate(fd, 0, 0, (off_t)size), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

#define SEALED (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

static void slots_are_apart(void **state)
{
	uint64_t first;

	(void)state;
	assert_int_equal(call_reserve(from, 1), 0);
	first = core.last.graft_slot.id;
	assert_int_equal(call_send(from, first, -1), 0);
	assert_int_equal(call_reserve(from, 5000), 2 * PAGE); /* a page behind each is free */
	assert_int_equal(call_send(from, core.last.graft_slot.id, -1), 0);
	assert_int_equal(call_reserve(from, 2 * MIB), 2 * MIB);
	assert_int_equal(call_send(from, core.last.graft_slot.id, -1), 0);
	assert_int_equal(call_reserve(from, 3 * MIB), 6 * MIB);
	assert_int_equal(call_send(from, core.last.graft_slot.id, -1), 0);
	assert_int_equal(call_reserve(from, 8 * MIB), -EAGAIN);
	assert_int_equal(call_reserve(from, MIB), 5 * PAGE);
	assert_int_equal(call_send(from, core.last.graft_slot.id, -1), 0);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_RELEASE, first, 0), 0);
	assert_int_equal(call_reserve(from, PAGE), 0);
	assert_int_equal(to->receiver->waiting, 5);
}

static void waits_then_is_held(void **state)
{
	uint64_t a = sent(from, 100), b = sent(from, 5000);

	(void)state;
	assert_int_equal(to->receiver->waiting_bytes, 3 * PAGE);
	for (int i = 0; i < 2; i++) { /* the same until it is taken */
		assert_int_equal(call_accept(to, 0), 0);
		assert_int_equal(core.last.grafted.id, a);
		assert_int_equal(core.last.grafted.tag, 200);
		assert_int_equal(core.last.grafted.sender, from->record.id);
		assert_int_equal(core.last.grafted.waiting, 2);
	}
	assert_int_equal(call_accept(to, a), 0);
	assert_int_equal(core.last.grafted.id, b);
	assert_int_equal(call_accept(to, a), 0); /* said twice */
	assert_int_equal(core.last.grafted.id, b);
	assert_int_equal(to->receiver->held, 1);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_TAKEN, b, 0), 0);
	assert_int_equal(call_accept(to, b), -EAGAIN);
	assert_int_equal(to->receiver->held, 2);
	assert_int_equal(to->receiver->held_bytes, 3 * PAGE);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_RELEASE, a, 0), 0);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_RELEASE, a, 0), 0);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_RELEASE, b, PANDO__GRAFT_REFUSED), 0);
	assert_int_equal(to->receiver->held, 0);
	assert_int_equal(core.broker.grafts.refused_total, 1);
	assert_int_equal(core.broker.grafts.total, 2);
}

/* A stopped sender's slot keeps nobody waiting: order is that of announcing. */
static void others_overtake(void **state)
{
	struct client *other = core_client(&core, 1);
	uint64_t late, id;

	(void)state;
	assert_int_equal(call_reserve(other, 1), 0);
	late = core.last.graft_slot.id;
	id = sent(from, 1);
	assert_int_equal(call_accept(to, 0), 0);
	assert_int_equal(core.last.grafted.id, id);
	assert_int_equal(core.last.grafted.waiting, 1);
	assert_int_equal(call_send(other, late, -1), 0);
	assert_int_equal(call_accept(to, 0), 0);
	assert_int_equal(core.last.grafted.id, id);
	assert_int_equal(call_accept(to, id), 0);
	assert_int_equal(core.last.grafted.id, late);
}

/* Takes all bytes out of an event socket. */
static int bytes_in(int event)
{
	char bytes[100];
	ssize_t n = recv(event, bytes, sizeof(bytes), MSG_DONTWAIT);

	return n < 0 ? 0 : (int)n;
}

/* The event socket has a byte for each that waits; more after a restart; never fewer. */
static void bytes_for_all(void **state)
{
	int ends[2];
	uint64_t id;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	close(to->receiver->event);
	to->receiver->event = ends[0];
	id = sent(from, 1);
	(void)sent(from, 1);
	assert_int_equal(bytes_in(ends[1]), 2);
	assert_int_equal(call_accept(to, id), 0);
	assert_int_equal(bytes_in(ends[1]), 0);
	(void)sent(from, 1);
	assert_int_equal(bytes_in(ends[1]), 1); /* and the one before has none any more */
	assert_int_equal(call_accept_with(to, id, PANDO__GRAFT_DRAINED), 0);
	assert_int_equal(bytes_in(ends[1]), 2);
	graft_taken_up(&core.broker);
	assert_int_equal(bytes_in(ends[1]), 1);
	/* What the socket does not take is sent later. */
	to->receiver->owed = 1;
	assert_int_equal(call_accept(to, id), 0);
	assert_int_equal(bytes_in(ends[1]), 1);
	close(ends[1]);
	(void)sent(from, 1); /* to nobody */
}

static void limits(void **state)
{
	(void)state;
	assert_int_equal(call_listen(to, 16 * MIB, MIB), 0);
	assert_int_equal(core.last.graft_listening.limit, MIB);
	assert_int_equal(call_reserve(from, 0), -EINVAL);
	assert_int_equal(call_reserve(from, MIB + 1), -EFBIG);
	assert_int_equal(call_reserve(from, UINT64_MAX), -EFBIG);
	(void)sent(from, MIB - PAGE);
	assert_int_equal(call_reserve(from, PAGE + 1), -EAGAIN);
	(void)sent(from, PAGE);
	assert_int_equal(call_reserve(from, 1), -EAGAIN);
	core.config.graft_limit = 2 * PAGE; /* the administrator's is the lower one */
	assert_int_equal(call_reserve(from, MIB), -EFBIG);
	core.config.graft_limit = 0;
	assert_int_equal(call_listen(to, 4 * MIB, 0), -EBUSY);
}

static void only_so_many(void **state)
{
	uint64_t id = 0;

	(void)state;
	for (unsigned int i = 0; i < GRAFT_WAITING; i++)
		id = sent(from, 1);
	assert_int_equal(call_reserve(from, 1), -EAGAIN);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_TAKEN, id, 0), 0);
	(void)sent(from, 1);
	core.config.graft_waiting = 2;
	assert_int_equal(call_reserve(from, 1), -EAGAIN);
}

static void who_may(void **state)
{
	struct client *other = core_client(&core, 2), *root = core_client(&core, 0);

	(void)state;
	assert_int_equal(call_reserve(other, 1), -EPERM);
	assert_int_equal(call_reserve_as(other, 1, PANDO_GRAFT_MEMFD, PANDO__GRAFT_LOOK), -EPERM);
	assert_true(call_reserve(root, 1) >= 0);
	assert_int_equal(call_reserve_as(from, 1, PANDO_GRAFT_MEMFD, PANDO__GRAFT_LOOK), 0);
	assert_int_equal(core.last.graft_slot.id, 0);
	core.config.graft = CONFIG_GRAFT_ANY;
	assert_true(call_reserve(other, 1) >= 0);
	core.config.graft = CONFIG_GRAFT_OFF;
	assert_int_equal(call_reserve(root, 1), -EPERM);
	core.config.graft = CONFIG_GRAFT_UID;
	assert_int_equal(call_reserve(to, 1), -EINVAL);
	assert_int_equal(call_accept(from, 0), -ENOTCONN);
	core_kill(&core, to);
	to = from; /* for the request below */
	assert_int_equal(call_reserve(root, 1), -ENOTCONN);
}

static void memfds_are_looked_at(void **state)
{
	uint64_t id;
	int fd, ends[2];

	(void)state;
	assert_true(call_reserve_as(from, 2 * PAGE, PANDO_GRAFT_MEMFD, 0) >= 0);
	id = core.last.graft_slot.id;
	for (int seal = 0; seal < 3; seal++) { /* one is missing */
		static const int all[] = {F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK};

		fd = memfd(2 * PAGE, true, SEALED & ~all[seal]);
		assert_int_equal(call_send(from, id, fd), -EINVAL);
		close(fd);
	}
	fd = memfd(PAGE, true, SEALED);
	assert_int_equal(call_send(from, id, fd), -EINVAL);
	close(fd);
	fd = memfd(3 * PAGE, true, SEALED);
	assert_int_equal(call_send(from, id, fd), -EINVAL);
	close(fd);
	fd = memfd(2 * PAGE, false, SEALED); /* a hole: a receiver could meet SIGBUS there */
	assert_int_equal(call_send(from, id, fd), -EINVAL);
	close(fd);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(call_send(from, id, ends[0]), -EINVAL);
	close(ends[0]);
	close(ends[1]);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(call_send(from, id, fd), -EINVAL);
	close(fd);
	assert_int_equal(call_send(from, id, -1), -EINVAL); /* reserved for a memfd */
	fd = memfd(2 * PAGE, true, SEALED);
	assert_int_equal(call_send(from, id, fd), 0);
	close(fd);
	assert_int_equal(call_accept(to, 0), 0);
	assert_int_equal(core.last_fds, 1);
	assert_int_equal(core.last.grafted.way, PANDO_GRAFT_MEMFD);
}

/* Requests that are sent again after a restart. */
static void twice_is_once(void **state)
{
	struct pando__msg m;
	uint64_t id;

	(void)state;
	pando__msg_init(&m, PANDO__MSG_GRAFT_RESERVE, from->seq + 1);
	m.graft_reserve.receiver = to->record.id;
	m.graft_reserve.bytes = PAGE;
	m.graft_reserve.way = PANDO_GRAFT_MMAP;
	assert_int_equal(core_call(&core, from, &m), 0);
	id = core.last.graft_slot.id;
	assert_int_equal(core_call(&core, from, &m), 0);
	assert_int_equal(core.last.graft_slot.id, id);
	assert_int_equal(to->receiver->waiting, 1);
	assert_int_equal(call_send(from, id, -1), 0);
	assert_int_equal(call_send(from, id, -1), 0);
	assert_int_equal(core.broker.grafts.total, 1);
	assert_int_equal(call_one(from, PANDO__MSG_GRAFT_CANCEL, id, 0), 0); /* too late */
	assert_int_equal(to->receiver->waiting, 1);
}

static void given_up_slots(void **state)
{
	uint64_t first, id;

	(void)state;
	/* Nothing was moved: the slot is free at once. */
	assert_int_equal(call_reserve(from, 1), 0);
	id = core.last.graft_slot.id;
	assert_int_equal(call_one(from, PANDO__MSG_GRAFT_CANCEL, id, 0), 0);
	assert_int_equal(to->receiver->waiting, 0);
	/* Something may lie there: the receiver clears it. */
	assert_int_equal(call_reserve(from, 1), 0);
	first = core.last.graft_slot.id;
	assert_int_equal(call_one(from, PANDO__MSG_GRAFT_CANCEL, first, PANDO__GRAFT_LEFT), 0);
	/* Another one is asked for: the last is given up. */
	assert_int_equal(call_reserve(from, 1), 2 * PAGE);
	assert_int_equal(call_reserve(from, 1), 4 * PAGE);
	core_kill(&core, from);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(call_accept(to, 0), 0);
		assert_int_equal(core.last.grafted.way, PANDO_GRAFT_AUTO);
		assert_true(i > 0 || core.last.grafted.id == first);
		id = core.last.grafted.id;
		assert_int_equal(call_one(to, PANDO__MSG_GRAFT_RELEASE, id, 0), 0);
	}
	assert_int_equal(call_accept(to, 0), -EAGAIN);
	assert_int_equal(core.broker.grafts.cleared_total, 3);
	/* In a memfd nothing can be left. */
	from = core_client(&core, 1);
	assert_int_equal(call_reserve_as(from, 1, PANDO_GRAFT_MEMFD, 0), 0);
	core_kill(&core, from);
	assert_int_equal(to->receiver->waiting, 0);
	assert_int_equal(call_accept(to, 0), -EAGAIN);
}

static void receiver_goes(void **state)
{
	int fd = memfd(PAGE, true, SEALED);
	uint64_t id;

	(void)state;
	(void)sent(from, MIB);
	assert_true(call_reserve_as(from, 1, PANDO_GRAFT_MEMFD, 0) >= 0);
	assert_int_equal(call_send(from, core.last.graft_slot.id, fd), 0);
	close(fd);
	assert_true(call_reserve(from, 1) >= 0);
	id = core.last.graft_slot.id;
	client_died(to, broker_now()); /* a child has its connection */
	core_settle(&core);
	assert_int_equal(core.broker.grafts.waiting, 0);
	assert_int_equal(core.broker.grafts.lost_total, 2);
	assert_null(from->reserved);
	assert_int_equal(call_send(from, id, -1), 0);
	assert_int_equal(call_reserve(from, 1), -ESRCH);
	core_kill(&core, to);
	to = from;
}

/* What a successor finds, record by record. */
static void taken_up(void **state)
{
	struct graft_record r = {
		.version = RECORD_VERSION,
		.state = GRAFT_WAITS,
		.id = 900,
		.receiver = to->record.id,
		.sender = from->record.id,
		.order = 950,
		.length = PAGE,
		.bytes = 1,
		.way = PANDO_GRAFT_MMAP,
	};
	struct graft_record held = r, other = r;

	(void)state;
	graft_take(&core.broker, false, 900, &r, sizeof(r), NULL, 0);
	held.state = GRAFT_HELD; /* the dead one was about to remove the first record */
	graft_take(&core.broker, true, 900, &held, sizeof(held), NULL, 0);
	assert_int_equal(to->receiver->held, 1);
	assert_int_equal(to->receiver->waiting, 0);
	other.id = 901; /* on another's slot: not believed */
	graft_take(&core.broker, false, 901, &other, sizeof(other), NULL, 0);
	assert_int_equal(to->receiver->waiting, 0);
	other.offset = 2 * PAGE;
	other.version++; /* another release's */
	graft_take(&core.broker, false, 901, &other, sizeof(other), NULL, 0);
	assert_int_equal(to->receiver->waiting, 0);
	other.version = RECORD_VERSION;
	other.state = GRAFT_RESERVED; /* its sender is not there any more */
	other.sender = 77;
	graft_take(&core.broker, false, 901, &other, sizeof(other), NULL, 0);
	other.id = 902;
	other.offset = 4 * PAGE;
	other.sender = from->record.id; /* this one's is */
	graft_take(&core.broker, false, 902, &other, sizeof(other), NULL, 0);
	graft_taken_up(&core.broker);
	broker_check(&core.broker);
	assert_int_equal(call_send(from, 902, -1), 0);
	assert_int_equal(call_accept(to, 0), 0);
	assert_int_equal(core.last.grafted.id, 901);
	assert_int_equal(core.last.grafted.way, PANDO_GRAFT_AUTO);
	assert_int_equal(call_one(to, PANDO__MSG_GRAFT_RELEASE, 901, 0), 0);
	assert_int_equal(call_accept(to, 0), 0);
	assert_int_equal(core.last.grafted.id, 902);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(slots_are_apart, setup, teardown),
		cmocka_unit_test_setup_teardown(waits_then_is_held, setup, teardown),
		cmocka_unit_test_setup_teardown(others_overtake, setup, teardown),
		cmocka_unit_test_setup_teardown(bytes_for_all, setup, teardown),
		cmocka_unit_test_setup_teardown(limits, setup, teardown),
		cmocka_unit_test_setup_teardown(only_so_many, setup, teardown),
		cmocka_unit_test_setup_teardown(who_may, setup, teardown),
		cmocka_unit_test_setup_teardown(memfds_are_looked_at, setup, teardown),
		cmocka_unit_test_setup_teardown(twice_is_once, setup, teardown),
		cmocka_unit_test_setup_teardown(given_up_slots, setup, teardown),
		cmocka_unit_test_setup_teardown(receiver_goes, setup, teardown),
		cmocka_unit_test_setup_teardown(taken_up, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
