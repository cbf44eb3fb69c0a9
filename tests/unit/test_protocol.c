/* SPDX-License-Identifier: BSD-2-Clause */
/* The protocol's parser: what it accepts, what it refuses and why, and that no descriptor leaks. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "protocol/protocol.h"

static struct pando__msg out;
static char why[160];

static int parse(enum pando__direction d, const struct pando__msg *m, size_t length,
		 unsigned int nfds)
{
	return pando__msg_parse(d, m, length, nfds, &out, why, sizeof(why));
}

static void hello(struct pando__msg *m)
{
	pando__msg_init(m, PANDO__MSG_HELLO, 1);
	m->hello.version_min = m->hello.version_max = PANDO__PROTO_VERSION;
	strcpy(m->hello.program, "test");
}

static void open_msg(struct pando__msg *m, const char *name)
{
	pando__msg_init(m, PANDO__MSG_OPEN, 2);
	strncpy(m->open.name, name, sizeof(m->open.name) - 1);
	m->open.flags = PANDO_CREATE;
	m->open.size = 4096;
}

static void accepts_what_it_made(void **state)
{
	struct pando__msg m;

	(void)state;
	hello(&m);
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), 0);
	assert_string_equal(out.hello.program, "test");
	open_msg(&m, "orders");
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), 0);
	assert_memory_equal(&out.open, &m.open, sizeof(m.open));
}

static void refuses_every_other_length(void **state)
{
	struct pando__msg m;

	(void)state;
	open_msg(&m, "orders");
	for (size_t n = 0; n < sizeof(m); n++)
		if (n != m.header.length)
			assert_int_equal(parse(PANDO__TO_BROKER, &m, n, 0), -EPROTO);
}

static void refuses_the_other_direction(void **state)
{
	struct pando__msg m;

	(void)state;
	hello(&m);
	assert_int_equal(parse(PANDO__TO_CLIENT, &m, m.header.length, 0), -EPROTO);
}

static void refuses_descriptors_where_none_belong(void **state)
{
	struct pando__msg m;

	(void)state;
	hello(&m);
	m.header.fds = 1;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 1), -EPROTO);
	m.header.fds = 0;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 1), -EPROTO);
}

static void tells_another_version(void **state)
{
	struct pando__msg m;

	(void)state;
	hello(&m);
	m.header.version = 7;
	m.hello.version_min = 6;
	m.hello.version_max = 7;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length + 100, 0), -EPROTONOSUPPORT);
	assert_int_equal(out.hello.version_min, 6);
	assert_non_null(strstr(why, "version 7"));
}

static void checks_region_names(void **state)
{
	static const char *const bad[] = {"", ".hidden", "-option", "a/b", "a b", "\xc3\xa9"};
	struct pando__msg m;
	char longest[PANDO_REGION_NAME_MAX + 2];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		open_msg(&m, bad[i]);
		assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), -EPROTO);
	}
	memset(longest, 'x', sizeof(longest));
	longest[PANDO_REGION_NAME_MAX] = '\0';
	assert_true(pando__region_name_ok(longest));
	longest[PANDO_REGION_NAME_MAX] = 'x';
	longest[PANDO_REGION_NAME_MAX + 1] = '\0';
	assert_false(pando__region_name_ok(longest));
	open_msg(&m, "a");
	m.open.name[PANDO_REGION_NAME_MAX] = 'x'; /* behind the terminator */
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), -EPROTO);
}

static void checks_flags_and_padding(void **state)
{
	struct pando__msg m;

	(void)state;
	open_msg(&m, "a");
	m.open.flags = 0x80;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), -EPROTO);
	open_msg(&m, "a");
	m.open.flags = PANDO_EXCL;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), -EPROTO);
	open_msg(&m, "a");
	m.open.reserved = 1;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), -EPROTO);
	hello(&m);
	m.header.seq = 0;
	assert_int_equal(parse(PANDO__TO_BROKER, &m, m.header.length, 0), -EPROTO);
}

/* A message about a graft that is sound, with one descriptor where it needs one. */
static void graft_msg(struct pando__msg *m, enum pando__msg_type type)
{
	pando__msg_init(m, type, 3);
	switch (type) {
	case PANDO__MSG_GRAFT_LISTEN:
		m->graft_listen.base = 1ull << 40;
		m->graft_listen.size = PANDO__GRAFT_HUGE;
		break;
	case PANDO__MSG_GRAFT_RESERVE:
		m->graft_reserve.way = PANDO_GRAFT_MMAP;
		break;
	case PANDO__MSG_GRAFT_SEND:
		m->graft_send.id = 1;
		m->graft_send.way = PANDO_GRAFT_MEMFD;
		m->header.fds = 1;
		break;
	case PANDO__MSG_GRAFTED:
		m->grafted.id = m->grafted.bytes = 1;
		m->grafted.address = PANDO__GRAFT_PAGE;
		m->grafted.way = PANDO_GRAFT_MEMFD;
		m->header.fds = 1;
		break;
	default:
		m->graft_one.id = 1;
	}
}

static void expect_graft(const struct pando__msg *m, enum pando__direction d, int rc)
{
	assert_int_equal(parse(d, m, m->header.length, m->header.fds), rc);
}

static void checks_grafts(void **state)
{
	static const enum pando__msg_type asked[] = {
		PANDO__MSG_GRAFT_LISTEN, PANDO__MSG_GRAFT_RESERVE, PANDO__MSG_GRAFT_SEND,
		PANDO__MSG_GRAFT_CANCEL, PANDO__MSG_GRAFT_TAKEN,   PANDO__MSG_GRAFT_RELEASE,
	};
	struct pando__msg m;

	(void)state;
	for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
		graft_msg(&m, asked[i]);
		expect_graft(&m, PANDO__TO_BROKER, 0);
		expect_graft(&m, PANDO__TO_CLIENT, -EPROTO);
		m.header.fds ^= 1; /* with, or without a descriptor too few */
		expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
		if (asked[i] < PANDO__MSG_GRAFT_CANCEL)
			continue;
		graft_msg(&m, asked[i]);
		m.graft_one.id = 0;
		expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
		graft_msg(&m, asked[i]);
		m.graft_one.flags = 4;
		expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
		graft_msg(&m, asked[i]);
		m.graft_one.reserved = 1;
		expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	}
	graft_msg(&m, PANDO__MSG_GRAFT_LISTEN);
	m.graft_listen.base += PANDO__GRAFT_PAGE;
	expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFT_LISTEN);
	m.graft_listen.size = 0;
	expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFT_LISTEN);
	m.graft_listen.base = -(uint64_t)PANDO__GRAFT_HUGE; /* it would wrap around */
	expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFT_RESERVE);
	m.graft_reserve.way = PANDO_GRAFT_AUTO;
	expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFT_SEND);
	m.graft_send.way = PANDO_GRAFT_MMAP; /* no descriptor belongs there */
	expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	pando__msg_init(&m, PANDO__MSG_GRAFT_ACCEPT, 3);
	m.graft_accept.flags = PANDO__GRAFT_DRAINED;
	expect_graft(&m, PANDO__TO_BROKER, 0);
	m.graft_accept.flags = 2;
	expect_graft(&m, PANDO__TO_BROKER, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFTED);
	expect_graft(&m, PANDO__TO_CLIENT, 0);
	m.grafted.bytes = UINT64_MAX;
	expect_graft(&m, PANDO__TO_CLIENT, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFTED);
	m.grafted.address++;
	expect_graft(&m, PANDO__TO_CLIENT, -EPROTO);
	graft_msg(&m, PANDO__MSG_GRAFTED);
	m.grafted.way = PANDO_GRAFT_AUTO;
	expect_graft(&m, PANDO__TO_CLIENT, -EPROTO);
}

static int open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void carries_descriptors_and_leaks_none(void **state)
{
	struct pando__msg m;
	char buf[sizeof(struct pando__msg) + 1];
	int s[2], fds[8], got[PANDO__PROTO_MAX_FDS], before;
	unsigned int ngot;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	for (int i = 0; i < 8; i++)
		fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	before = open_descriptors();

	hello(&m);
	assert_int_equal(pando__msg_send(s[0], &m, fds, 3, 0), 0);
	assert_int_equal(pando__msg_receive(s[1], buf, sizeof(buf), got, &ngot, 0),
			 m.header.length);
	assert_int_equal(ngot, 3);
	for (unsigned int i = 0; i < ngot; i++) {
		assert_true(fcntl(got[i], F_GETFD) & FD_CLOEXEC);
		close(got[i]);
	}
	for (unsigned int n = 4; n <= 8;
	     n++) { /* too many, within and beyond the receiver's buffer */
		assert_int_equal(pando__msg_send(s[0], &m, fds, n, 0), 0);
		assert_int_equal(pando__msg_receive(s[1], buf, sizeof(buf), got, &ngot, 0),
				 -EPROTO);
	}
	assert_int_equal(pando__msg_send(s[0], &m, fds, 2, 0), 0);
	assert_int_equal(pando__msg_receive(s[1], buf, 10, got, &ngot, 0), -EPROTO); /* cut off */
	assert_int_equal(open_descriptors(), before);
	for (int i = 0; i < 8; i++)
		close(fds[i]);
	close(s[0]);
	assert_int_equal(pando__msg_receive(s[1], buf, sizeof(buf), got, &ngot, 0), 0);
	close(s[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accepts_what_it_made),
		cmocka_unit_test(refuses_every_other_length),
		cmocka_unit_test(refuses_the_other_direction),
		cmocka_unit_test(refuses_descriptors_where_none_belong),
		cmocka_unit_test(tells_another_version),
		cmocka_unit_test(checks_region_names),
		cmocka_unit_test(checks_flags_and_padding),
		cmocka_unit_test(checks_grafts),
		cmocka_unit_test(carries_descriptors_and_leaks_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
