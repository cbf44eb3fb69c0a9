/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The receiver's library against a broker that places grafts where they do not belong, names slots
 * twice, or has nothing: no memory of the process is touched, and nothing is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "client.h"
#include "fake_broker.h"

#define SIZE (8ull << 20)
#define PAGE 4096ull

static struct fake_broker broker;
static struct pando *p;

/* What the broker says to the next ACCEPT; id 0: EAGAIN. */
static struct pando__msg_grafted offer;
static uint64_t base, taken, released;
static uint32_t accept_flags;
static int event = -1;

static void listening(struct fake_connection *c, const struct pando__msg *msg)
{
	struct pando__msg reply;
	int ends[2];

	base = msg->graft_listen.base;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return;
	if (event >= 0)
		close(event);
	event = ends[0];
	pando__msg_init(&reply, PANDO__MSG_GRAFT_LISTENING, msg->header.seq);
	reply.graft_listening.limit = SIZE;
	(void)pando__msg_send(c->socket, &reply, &ends[1], 1, 0);
	close(ends[1]);
}

static void offered(struct fake_connection *c, const struct pando__msg *msg)
{
	struct pando__msg reply;
	int fd = -1;

	accept_flags = msg->graft_accept.flags;
	if (offer.id == 0) {
		fake_error(c, msg->header.seq, EAGAIN, "no graft waits");
		return;
	}
	pando__msg_init(&reply, PANDO__MSG_GRAFTED, msg->header.seq);
	reply.grafted = offer;
	if (offer.way == PANDO_GRAFT_MEMFD) {
		fd = memfd_create("test", MFD_CLOEXEC);
		(void)!ftruncate(fd, (off_t)SIZE);
	}
	(void)pando__msg_send(c->socket, &reply, &fd, fd >= 0, 0);
	if (fd >= 0)
		close(fd);
}

static bool script(struct fake_broker *b, struct fake_connection *c, const struct pando__msg *msg)
{
	struct pando__msg done;

	(void)b;
	switch (msg->header.type) {
	case PANDO__MSG_GRAFT_LISTEN:
		listening(c, msg);
		return true;
	case PANDO__MSG_GRAFT_ACCEPT:
		offered(c, msg);
		return true;
	case PANDO__MSG_GRAFT_TAKEN:
	case PANDO__MSG_GRAFT_RELEASE:
		*(msg->header.type == PANDO__MSG_GRAFT_TAKEN ? &taken : &released) =
			msg->graft_one.id;
		if (msg->header.type == PANDO__MSG_GRAFT_RELEASE)
			offer.id = 0;
		pando__msg_init(&done, PANDO__MSG_DONE, msg->header.seq);
		(void)pando__msg_send(c->socket, &done, NULL, 0, 0);
		return true;
	default:
		return false;
	}
}

static int setup(void **state)
{
	const struct pando_graft_listen_options o = {.size = SIZE};

	(void)state;
	memset(&offer, 0, sizeof(offer));
	taken = released = 0;
	fake_start(&broker);
	fake_script(&broker, script);
	return pando_connect(&p, broker.address) < 0 || pando_graft_listen(p, &o) < 0;
}

static int teardown(void **state)
{
	(void)state;
	pando_disconnect(p);
	fake_stop(&broker);
	close(event);
	event = -1;
	return 0;
}

static int accept_at(uint64_t address, uint64_t bytes, uint32_t way)
{
	struct pando_graft_info info;
	int rc;

	offer = (struct pando__msg_grafted){
		.id = 5, .address = address, .bytes = bytes, .way = way, .waiting = 1};
	rc = pando_graft_accept(p, &info);
	if (rc == 0)
		assert_ptr_equal(info.address, (void *)(uintptr_t)address);
	return rc;
}

static void only_in_the_reservation(void **state)
{
	char *own =
		mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pando_graft_stat st;

	(void)state;
	memset(own, 5, 4 * PAGE);
	for (uint32_t way = PANDO_GRAFT_MEMFD; way <= PANDO_GRAFT_MMAP; way++) {
		assert_int_equal(accept_at((uintptr_t)own, PAGE, way), -EPROTO);
		assert_int_equal(accept_at(base - PAGE, PAGE, way), -EPROTO);
		assert_int_equal(accept_at(base - PAGE, 2 * PAGE, way), -EPROTO);
		assert_int_equal(accept_at(base + SIZE, PAGE, way), -EPROTO);
		assert_int_equal(accept_at(base + SIZE - PAGE, PAGE + 1, way), -EPROTO);
		assert_int_equal(accept_at(base, SIZE + 1, way), -EPROTO);
		assert_int_equal(accept_at(base, PANDO__GRAFT_ROOM_MAX, way), -EPROTO);
	}
	/* A slot to be cleared is looked at as well. */
	assert_int_equal(accept_at((uintptr_t)own, PAGE, PANDO_GRAFT_AUTO), -EPROTO);
	for (size_t i = 0; i < 4 * PAGE; i++)
		assert_int_equal(own[i], 5);
	assert_int_equal(taken, 0);
	assert_int_equal(released, 0);
	pando_graft_stat(p, &st);
	assert_int_equal(st.accepted, 0);
	assert_int_equal(st.base, base);
	munmap(own, 4 * PAGE);
}

static void no_slot_twice(void **state)
{
	char *at = (char *)(uintptr_t)base + 4 * PAGE;

	(void)state;
	assert_int_equal(accept_at(base + 4 * PAGE, 2 * PAGE, PANDO_GRAFT_MEMFD), 0);
	memset(at, 7, 2 * PAGE);
	assert_int_equal(accept_at(base + 4 * PAGE, PAGE, PANDO_GRAFT_MEMFD), -EPROTO);
	assert_int_equal(accept_at(base + 5 * PAGE, PAGE, PANDO_GRAFT_MEMFD), -EPROTO);
	assert_int_equal(accept_at(base + 3 * PAGE, 2 * PAGE, PANDO_GRAFT_MEMFD), -EPROTO);
	assert_int_equal(accept_at(base, SIZE, PANDO_GRAFT_MMAP), -EPROTO);
	assert_int_equal(accept_at(base + 5 * PAGE, PAGE, PANDO_GRAFT_AUTO), -EPROTO);
	assert_int_equal(at[0] + at[2 * PAGE - 1], 14);
	assert_int_equal(accept_at(base + 6 * PAGE, PAGE, PANDO_GRAFT_MEMFD), 0);
	assert_int_equal(accept_at(base + 2 * PAGE, 2 * PAGE, PANDO_GRAFT_MEMFD), 0);
	assert_int_equal(at[0] + at[2 * PAGE - 1], 14);
	assert_int_equal(pando_graft_release(p, at), 0);
	assert_int_equal(released, 5);
	assert_int_equal(pando_graft_release(p, at), -EINVAL);
}

/* A sender that says that it has moved pages, and has not: zeroes, no fault. */
static void lies_are_zeroes(void **state)
{
	char *at = (char *)(uintptr_t)base;

	(void)state;
	assert_int_equal(accept_at(base, 3 * PAGE, PANDO_GRAFT_MMAP), 0);
	for (size_t i = 0; i < 3 * PAGE; i++)
		assert_int_equal(at[i], 0);
	memset(at, 1, 3 * PAGE);
	assert_int_equal(pando_graft_release(p, at), 0);
	assert_int_equal(accept_at(base, 3 * PAGE, PANDO_GRAFT_MMAP), 0);
	assert_int_equal(at[0], 0);
}

/* What a dead sender has left is cleared, and nobody hears of it. */
static void void_slots_are_cleared(void **state)
{
	char *at = (char *)(uintptr_t)base;
	struct pando_graft_stat st;

	(void)state;
	assert_int_equal(mprotect(at, PAGE, PROT_READ | PROT_WRITE), 0);
	at[0] = 1;
	assert_int_equal(accept_at(base, PAGE, PANDO_GRAFT_AUTO), -EAGAIN);
	assert_int_equal(released, 5);
	assert_int_equal(mprotect(at, PAGE, PROT_READ), 0);
	assert_int_equal(at[0], 0);
	pando_graft_stat(p, &st);
	assert_int_equal(st.cleared, 1);
}

/* Bytes without a graft: all are taken, and the broker is told so. */
static void bytes_too_many(void **state)
{
	struct pollfd pfd = {.events = POLLIN};
	struct pando_graft_info info;

	(void)state;
	pfd.fd = pando_event_fd(p);
	assert_true(pfd.fd > 2);
	assert_int_equal(pando_graft_accept(p, &info), -EAGAIN);
	assert_int_equal(accept_flags, 0);
	assert_int_equal(write(event, "abc", 3), 3);
	assert_int_equal(poll(&pfd, 1, 1000), 1);
	assert_int_equal(pando_graft_accept(p, &info), -EAGAIN);
	assert_int_equal(accept_flags, PANDO__GRAFT_DRAINED);
	assert_int_equal(poll(&pfd, 1, 0), 0);
	assert_int_equal(pando_event_fd(p), pfd.fd);
}

/* The program has closed the descriptor, and has something else there now. */
static void event_descriptor_closed(void **state)
{
	int fd = pando_event_fd(p), ends[2];
	struct pando_graft_info info;

	(void)state;
	close(fd);
	assert_int_equal(pando_event_fd(p), -EBADF);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_true(ends[0] == fd);
	assert_int_equal(write(ends[1], "x", 1), 1);
	assert_int_equal(accept_at(base, PAGE, PANDO_GRAFT_MEMFD), 0);
	offer.id = 0;
	assert_int_equal(pando_graft_accept(p, &info), -EAGAIN);
	assert_int_equal(read(ends[0], &(char){0}, 1), 1); /* it was left alone */
	close(ends[1]);
	close(ends[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(only_in_the_reservation, setup, teardown),
		cmocka_unit_test_setup_teardown(no_slot_twice, setup, teardown),
		cmocka_unit_test_setup_teardown(lies_are_zeroes, setup, teardown),
		cmocka_unit_test_setup_teardown(void_slots_are_cleared, setup, teardown),
		cmocka_unit_test_setup_teardown(bytes_too_many, setup, teardown),
		cmocka_unit_test_setup_teardown(event_descriptor_closed, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
