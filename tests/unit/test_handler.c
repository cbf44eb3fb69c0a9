/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The broker's core, request by request, on the memfd backend: what is answered, what is refused,
 * what waits for what, and what is left when clients die in between.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../lib/core.h"
#include "broker/log.h"

#define MIB (1ull << 20)

static struct core core;

static int setup(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	core_init(&core);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	core_deinit(&core);
	return 0;
}

static struct pando__msg open_msg(const char *name, uint32_t flags, uint64_t size)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_OPEN, 0);
	strcpy(m.open.name, name);
	m.open.flags = flags;
	m.open.size = size;
	return m;
}

static int call_open(struct client *c, const char *name, uint32_t flags, uint64_t size)
{
	struct pando__msg m = open_msg(name, flags, size);

	return core_call(&core, c, &m);
}

static int call_resize(struct client *c, uint64_t id, uint64_t size)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_RESIZE, 0);
	m.resize.region_id = id;
	m.resize.size = size;
	return core_call(&core, c, &m);
}

static int call_close(struct client *c, uint64_t id)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_CLOSE, 0);
	m.close.region_id = id;
	return core_call(&core, c, &m);
}

static int call_remove(struct client *c, const char *name)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_REMOVE, 0);
	strcpy(m.remove.name, name);
	return core_call(&core, c, &m);
}

static int call_grant(struct client *c, const char *name, uint32_t uid, uint32_t rights)
{
	struct pando__msg m;

	pando__msg_init(&m, PANDO__MSG_GRANT, 0);
	strcpy(m.grant.name, name);
	m.grant.kind = PANDO_GRANT_UID;
	m.grant.id = uid;
	m.grant.rights = rights;
	return core_call(&core, c, &m);
}

static int call_walk(struct client *c, enum pando__msg_type type, const char *name, uint64_t cursor)
{
	struct pando__msg m;

	pando__msg_init(&m, type, 0);
	strcpy(m.walk.name, name);
	m.walk.cursor = cursor;
	return core_call(&core, c, &m);
}

static void opens_and_attaches_once(void **state)
{
	struct client *a = core_client(&core, 1), *b = core_client(&core, 1);
	uint64_t id;
	uint32_t slot;

	(void)state;
	assert_int_equal(call_open(a, "r", PANDO_CREATE, MIB + 1), 0);
	assert_int_equal(core.last_fds, 3);
	assert_true(core.last.opened.created);
	assert_int_equal(core.last.opened.committed, MIB + 4096);
	assert_int_equal(core.last.opened.max_size, PANDO__GIB);
	assert_int_equal(core.last.opened.base, PANDO__WINDOW_BASE);
	id = core.last.opened.region_id;
	slot = core.last.opened.slot;
	assert_int_equal(call_open(a, "r", 0, 0), 0);
	assert_int_equal(core.last.opened.slot, slot);
	assert_int_equal(call_open(b, "r", PANDO_CREATE, MIB), 0);
	assert_false(core.last.opened.created);
	assert_int_not_equal(core.last.opened.slot, slot);
	assert_int_equal(call_open(b, "r", PANDO_CREATE | PANDO_EXCL, MIB), -EEXIST);
	assert_int_equal(region_by_id(&core.broker, id)->users, 2);
	assert_int_equal(call_close(a, id), 0);
	assert_int_equal(call_close(a, id), 0); /* sent twice: the same answer */
	assert_int_equal(region_by_id(&core.broker, id)->users, 1);
	assert_int_equal(call_open(a, "r", 0, 0), 0);
	assert_int_equal(core.last.opened.slot, slot);
	assert_int_equal(core.last.opened.generation, 1);
}

static void refuses_bad_requests(void **state)
{
	struct client *c = core_client(&core, 1);
	struct pando__msg m;

	(void)state;
	assert_int_equal(call_open(c, "none", 0, 0), -ENOENT);
	assert_int_equal(call_open(c, "r", PANDO_CREATE, 0), -EINVAL);
	assert_int_equal(call_open(c, "r", PANDO_CREATE, UINT64_MAX), -EINVAL);
	assert_int_equal(call_open(c, "r", PANDO_CREATE, 65 * PANDO__GIB), -ENOMEM);
	m = open_msg("r", PANDO_CREATE, 2 * MIB);
	m.open.max_size = MIB;
	assert_int_equal(core_call(&core, c, &m), -EINVAL);
	m = open_msg("r", PANDO_CREATE, MIB);
	m.open.address = PANDO__WINDOW_BASE + 4096;
	assert_int_equal(core_call(&core, c, &m), -EINVAL);
	m = open_msg("r", PANDO_CREATE, MIB);
	m.open.set_gid = 1;
	m.open.gid = 99;
	assert_int_equal(core_call(&core, c, &m), -EACCES);
	m = open_msg("r", PANDO_CREATE, MIB);
	m.open.backend = PANDO_BACKEND_MSHARE; /* if it is known at all, it is not here */
	assert_true(core_call(&core, c, &m) < 0);
	assert_int_equal(call_remove(c, "r"), -ENOENT);
	assert_int_equal(call_grant(c, "r", 1, 6), -ENOENT);
	assert_int_equal(call_resize(c, 77, MIB), -ENOENT);
	assert_int_equal(core.broker.window.count, 0);
	assert_int_equal(core.hangups, 0);
}

static void taken_addresses_name_the_owner(void **state)
{
	struct client *c = core_client(&core, 1);
	struct pando__msg m;

	(void)state;
	assert_int_equal(call_open(c, "first", PANDO_CREATE, MIB), 0);
	m = open_msg("second", PANDO_CREATE, MIB);
	m.open.address = PANDO__WINDOW_BASE;
	assert_int_equal(core_call(&core, c, &m), -EADDRINUSE);
	assert_non_null(strstr(core.last.error.text, "\"first\""));
	assert_int_equal(core.broker.window.count, 1);
}

static void rights_are_checked(void **state)
{
	struct client *owner = core_client(&core, 1), *other = core_client(&core, 2);
	uint64_t id;

	(void)state;
	assert_int_equal(call_open(owner, "r", PANDO_CREATE, MIB), 0);
	id = core.last.opened.region_id;
	assert_int_equal(call_open(other, "r", 0, 0), -EACCES);
	assert_int_equal(call_open(other, "r", PANDO_READONLY, 0), -EACCES);
	assert_int_equal(call_walk(other, PANDO__MSG_LIST, "r", 0), -EACCES);
	assert_int_equal(call_walk(other, PANDO__MSG_LIST, "", 0), 0);
	assert_int_equal(core.last.regions.count, 0);
	assert_int_equal(call_remove(other, "r"), -EACCES);
	assert_int_equal(call_grant(other, "r", 2, 6), -EACCES);
	assert_int_equal(call_grant(owner, "r", 2, PANDO_RIGHT_READ), 0);
	assert_int_equal(call_open(other, "r", 0, 0), -EACCES);
	assert_non_null(strstr(core.last.error.text, "PANDO_READONLY"));
	assert_int_equal(call_open(other, "r", PANDO_READONLY, 0), 0);
	assert_true(core.last.opened.readonly);
	assert_int_equal(call_resize(other, id, 2 * MIB), -EACCES);
	assert_int_equal(call_walk(other, PANDO__MSG_LIST, "r", 0), 0);
	assert_int_equal(core.last.regions.info[0].clients, 2);
	assert_int_equal(call_grant(owner, "r", 2, 6), 0);
	assert_int_equal(call_open(other, "r", 0, 0), 0); /* now for writing, in the same slot */
	assert_false(core.last.opened.readonly);
}

static void resizes_online(void **state)
{
	struct client *c = core_client(&core, 1), *d = core_client(&core, 1);
	struct region *r;
	struct pando__msg m;
	uint32_t changes;

	(void)state;
	assert_int_equal(call_open(c, "r", PANDO_CREATE, MIB), 0);
	assert_int_equal(call_open(d, "r", 0, 0), 0);
	r = core.broker.regions;
	changes = r->ledger->changes;
	assert_int_equal(call_resize(c, r->record.id, 3 * MIB - 5), 0);
	assert_int_equal(core.last.done.value, 3 * MIB);
	assert_int_equal(r->ledger->committed, 3 * MIB);
	assert_int_equal(r->ledger->changes, changes + 1);
	assert_int_equal(quota_of(&core.broker.quota, 1).memory, 3 * MIB);
	assert_int_equal(call_resize(d, r->record.id, 4096), 0);
	assert_int_equal(r->ledger->committed, 4096);
	assert_int_equal(quota_of(&core.broker.quota, 1).memory, 4096);
	assert_int_equal(call_resize(d, r->record.id, 0), -EINVAL);
	assert_int_equal(call_resize(d, r->record.id, PANDO__GIB + 1), -EINVAL);
	pando__msg_init(&m, PANDO__MSG_RESIZE, 0);
	m.resize.region_id = r->record.id;
	m.resize.size = MIB;
	core_send(&core, c, &m);
	assert_true(c->busy);
	m.header.seq = 0;
	core_send(&core, d, &m);
	assert_int_equal(core.last.error.error, EBUSY);
	core_run_jobs(&core);
	assert_int_equal(r->ledger->committed, MIB);
}

static void a_dying_requester_cancels(void **state)
{
	struct client *c = core_client(&core, 1), *d = core_client(&core, 1);
	struct pando__msg m = open_msg("r", PANDO_CREATE, MIB);
	struct region *r;

	(void)state;
	core_send(&core, c, &m);
	core_kill(&core, c); /* while its region is being made */
	core_run_jobs(&core);
	assert_null(core.broker.regions);
	assert_int_equal(quota_of(&core.broker.quota, 1).memory, 0);

	assert_int_equal(call_open(d, "r", PANDO_CREATE, MIB), 0);
	c = core_client(&core, 1);
	assert_int_equal(call_open(c, "r", 0, 0), 0);
	r = core.broker.regions;
	pando__msg_init(&m, PANDO__MSG_RESIZE, 0);
	m.resize.region_id = r->record.id;
	m.resize.size = 200 * MIB;
	core_send(&core, c, &m);
	core_kill(&core, c);
	core_run_jobs(&core);
	assert_int_equal(r->record.committed, MIB);
	assert_int_equal(r->record.target, MIB);
	assert_int_equal(quota_of(&core.broker.quota, 1).memory, MIB);
	assert_int_equal(r->users, 1);
}

static void others_wait_for_a_region_in_the_making(void **state)
{
	struct client *a = core_client(&core, 1), *b = core_client(&core, 1),
		      *c = core_client(&core, 1);
	struct pando__msg m = open_msg("r", PANDO_CREATE, MIB), look = open_msg("r", 0, 0);
	unsigned int sent;

	(void)state;
	core_send(&core, a, &m);
	m.header.seq = 0;
	core_send(&core, b, &m);
	core_send(&core, c, &look);
	sent = core.sent;
	assert_true(b->busy && c->busy);
	core_kill(&core, a);
	core_run_job(&core, 0); /* the region of the dead goes; the first in line makes it anew */
	assert_true(b->busy);
	core_run_jobs(&core);
	assert_false(b->busy || c->busy);
	assert_int_equal(core.sent, sent + 2);
	assert_int_equal(core.broker.regions->users, 2);
	core_kill(&core, b);
	core_kill(&core, c);
	assert_int_equal(core.broker.region_count, 1); /* not transient */
}

static void regions_end_with_their_last_user(void **state)
{
	struct client *a = core_client(&core, 1), *b = core_client(&core, 1);
	uint64_t id;

	(void)state;
	assert_int_equal(call_open(a, "t", PANDO_CREATE | PANDO_TRANSIENT, MIB), 0);
	id = core.last.opened.region_id;
	assert_int_equal(call_open(b, "t", 0, 0), 0);
	assert_int_equal(call_close(a, id), 0);
	assert_int_equal(core.broker.region_count, 1);
	core_kill(&core, b);
	core_run_jobs(&core);
	assert_null(core.broker.regions);
	assert_int_equal(core.broker.deaths_total, 1);

	assert_int_equal(call_open(a, "d", PANDO_CREATE, MIB), 0);
	assert_int_equal(call_remove(a, "d"), 0);
	assert_int_equal(core.broker.regions->ledger->state, 1);
	assert_int_equal(call_open(a, "d", 0, 0), -ENOENT); /* the name is free */
	assert_int_equal(call_open(a, "d", PANDO_CREATE, MIB), 0);
	assert_int_equal(core.broker.region_count, 2);
	assert_int_equal(call_walk(a, PANDO__MSG_LIST, "", 0), 0);
	assert_int_equal(core.last.regions.count, 2);
	assert_true(core.last.regions.info[0].flags & PANDO_REGION_DESTROYED);
	assert_int_equal(call_walk(a, PANDO__MSG_LIST, "d", 0), 0);
	assert_int_equal(core.last.regions.count, 1);
	assert_false(core.last.regions.info[0].flags & PANDO_REGION_DESTROYED);
}

static void quotas_hold_and_wait_for_what_is_being_freed(void **state)
{
	struct client *a, *b;
	struct pando__msg m;

	(void)state;
	core.config.quota = (struct config_quota){.memory = 4 * MIB, .regions = 2, .clients = 2};
	a = core_client(&core, 1);
	b = core_client(&core, 1);
	assert_null(core_client(&core, 1));
	assert_int_equal(core.last.error.error, EDQUOT);
	assert_int_equal(call_open(a, "one", PANDO_CREATE, 3 * MIB), 0);
	assert_int_equal(call_open(a, "two", PANDO_CREATE, 2 * MIB), -EDQUOT);
	assert_int_equal(call_resize(a, core.broker.regions->record.id, 5 * MIB), -EDQUOT);
	pando__msg_init(&m, PANDO__MSG_REMOVE, 0);
	strcpy(m.remove.name, "one");
	core_send(&core, b, &m);
	core_kill(&core, a); /* its memory is on its way back */
	assert_int_equal(core.job_count, 1);
	m = open_msg("two", PANDO_CREATE, 4 * MIB);
	core_send(&core, b, &m);
	assert_true(b->busy);
	core_run_jobs(&core);
	assert_false(b->busy);
	assert_int_equal(core.last.header.type, PANDO__MSG_OPENED);
	assert_int_equal(core.broker.refused_total, 3);
}

static void walks_in_batches(void **state)
{
	struct client *root = core_client(&core, 0), *c;
	unsigned int seen = 0;
	uint64_t cursor = 0;
	char name[16];

	(void)state;
	for (int i = 0; i < 40; i++) {
		c = core_client(&core, 1);
		snprintf(name, sizeof(name), "r%d", i);
		assert_int_equal(call_open(c, name, PANDO_CREATE, 4096), 0);
	}
	do {
		assert_int_equal(call_walk(root, PANDO__MSG_LIST, "", cursor), 0);
		if (core.last.regions.count)
			cursor = core.last.regions.info[core.last.regions.count - 1].id;
		seen += core.last.regions.count;
	} while (core.last.regions.count);
	assert_int_equal(seen, 40);
	seen = 0;
	cursor = 0;
	do {
		assert_int_equal(call_walk(root, PANDO__MSG_CLIENTS, "", cursor), 0);
		if (core.last.clients.count)
			cursor = core.last.clients.info[core.last.clients.count - 1].id;
		seen += core.last.clients.count;
	} while (core.last.clients.count);
	assert_int_equal(seen, 41);
	assert_int_equal(call_walk(root, PANDO__MSG_CLIENTS, "r7", 0), 0);
	assert_int_equal(core.last.clients.count, 1);
	c = core_client(&core, 2);
	assert_int_equal(call_walk(c, PANDO__MSG_CLIENTS, "", 0), 0);
	assert_int_equal(core.last.clients.count, 1); /* itself alone */
	assert_int_equal(call_walk(c, PANDO__MSG_CLIENTS, "none", 0), -ENOENT);
}

static void hostile_packets_end_the_connection(void **state)
{
	struct client *c = core_connect(&core, 1);
	struct pando__msg m = open_msg("r", 0, 0);

	(void)state;
	core_send(&core, c, &m); /* before HELLO */
	assert_int_equal(core.hangups, 1);
	assert_int_equal(core.last.error.error, EPROTO);
	c = core_client(&core, 1);
	handler_packet(c, "rubbish", 7, 0);
	core_settle(&core);
	assert_int_equal(core.hangups, 2);
	c = core_client(&core, 1);
	handler_malformed(c, "too many descriptors");
	core_settle(&core);
	assert_int_equal(core.hangups, 3);
	c = core_connect(&core, 1);
	pando__msg_init(&m, PANDO__MSG_HELLO, 1);
	m.hello.version_min = m.hello.version_max = 9;
	m.header.version = 9;
	core_send(&core, c, &m);
	assert_int_equal(core.last.error.error, EPROTO);
	assert_int_equal(core.last.error.version_max, PANDO__PROTO_VERSION);
	assert_int_equal(core.broker.client_count, 0);
}

static void draining_admits_children_only(void **state)
{
	struct client *c = core_client(&core, 1), *child;
	struct pando__msg m;

	(void)state;
	broker_drain(&core.broker);
	assert_int_equal(core.last.header.type, PANDO__MSG_NOTICE);
	assert_null(core_client(&core, 1));
	assert_int_equal(call_open(c, "r", PANDO_CREATE, MIB), -ESHUTDOWN);
	child = core_connect(&core, 1);
	pando__msg_init(&m, PANDO__MSG_HELLO, 0);
	m.hello.version_min = m.hello.version_max = PANDO__PROTO_VERSION;
	m.hello.flags = PANDO__HELLO_FORKED;
	m.hello.parent = c->record.id;
	assert_int_equal(core_call(&core, child, &m), 0);
}

static void children_inherit(void **state)
{
	struct client *parent = core_client(&core, 1), *child = core_connect(&core, 2),
		      *liar = core_client(&core, 3);
	struct pando__msg m;
	uint64_t id;

	(void)state;
	assert_int_equal(call_open(parent, "r", PANDO_CREATE, MIB), 0);
	id = core.last.opened.region_id;
	parent->pid = 4711;
	child->parent_pid = 4711;
	pando__msg_init(&m, PANDO__MSG_HELLO, 0);
	m.hello.version_min = m.hello.version_max = PANDO__PROTO_VERSION;
	m.hello.flags = PANDO__HELLO_FORKED;
	m.hello.parent = parent->record.id;
	assert_int_equal(core_call(&core, child, &m), 0);
	m = open_msg("r", PANDO__OPEN_INHERITED, 0);
	m.open.region_id = id;
	assert_int_equal(core_call(&core, child, &m), 0);
	assert_int_equal(core.last_fds, 0); /* it has the mappings */
	m.header.seq = 0;
	assert_int_equal(core_call(&core, liar, &m), -EACCES);
	m.header.seq = 0;
	m.open.region_id = 1;
	assert_int_equal(core_call(&core, child, &m), -ENOENT);
}

static void small_requests_overtake_large_ones(void **state)
{
	struct client *a = core_client(&core, 1), *b = core_client(&core, 1);
	struct pando__msg large = open_msg("large", PANDO_CREATE, 3 * BROKER_PIECE),
			  small = open_msg("small", PANDO_CREATE, MIB);

	(void)state;
	core_send(&core, a, &large);
	core_send(&core, b, &small);
	core_run_job(&core, 0);
	core_run_job(&core, 0);
	assert_true(a->busy);
	assert_false(b->busy);
	core_kill(&core, a); /* in the middle */
	core_run_jobs(&core);
	assert_null(region_find(&core.broker, "large"));
	assert_int_equal(quota_of(&core.broker.quota, 1).memory, MIB);
}

static void the_dead_hold_regions_until_their_connection_goes(void **state)
{
	struct client *c = core_client(&core, 1), *child;
	struct region *r;

	(void)state;
	assert_int_equal(call_open(c, "t", PANDO_CREATE | PANDO_TRANSIENT, MIB), 0);
	r = core.broker.regions;
	client_died(c, broker_now());
	core_settle(&core);
	assert_int_equal(r->ledger->clients_live, 0); /* the slot is free at once */
	assert_int_equal(core.broker.deaths_total, 1);
	core_run_jobs(&core);
	child = core_client(&core, 1);
	assert_int_equal(call_open(child, "t", 0, 0), 0);
	assert_ptr_equal(core.broker.regions, r);
	core_kill(&core, c);
	core_run_jobs(&core);
	assert_int_equal(r->users, 1);
	assert_int_equal(core.broker.deaths_total, 1);
}

static void a_resent_request_has_one_answer(void **state)
{
	struct client *c = core_client(&core, 1);
	struct pando__msg m = open_msg("r", PANDO_CREATE | PANDO_EXCL, MIB);
	unsigned int sent;

	(void)state;
	assert_int_equal(core_call(&core, c, &m), 0);
	c->taken_up = true; /* as after a restart: m was not answered by this process */
	core_send(&core, c, &m);
	assert_int_equal(core.last.header.type, PANDO__MSG_OPENED);
	assert_true(core.last.opened.created);
	sent = core.sent;
	core_send(&core, c, &m); /* the copy that lay unread in the socket */
	assert_int_equal(core.sent, sent);
	/* What was read by the dead broker comes behind what it left unread. */
	pando__msg_init(&m, PANDO__MSG_HELLO, 1);
	m.hello.version_min = m.hello.version_max = PANDO__PROTO_VERSION;
	core_send(&core, c, &m);
	assert_int_equal(core.last.header.type, PANDO__MSG_WELCOME);
	c = core_connect(&core, 1);
	c->taken_up = true;
	sent = core.sent;
	m = open_msg("r", 0, 0);
	core_send(&core, c, &m); /* its HELLO went with the dead broker: both come again */
	assert_int_equal(core.sent, sent);
	assert_int_equal(core.hangups, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(opens_and_attaches_once),
		TEST(refuses_bad_requests),
		TEST(taken_addresses_name_the_owner),
		TEST(rights_are_checked),
		TEST(resizes_online),
		TEST(a_dying_requester_cancels),
		TEST(others_wait_for_a_region_in_the_making),
		TEST(regions_end_with_their_last_user),
		TEST(quotas_hold_and_wait_for_what_is_being_freed),
		TEST(walks_in_batches),
		TEST(hostile_packets_end_the_connection),
		TEST(draining_admits_children_only),
		TEST(children_inherit),
		TEST(small_requests_overtake_large_ones),
		TEST(the_dead_hold_regions_until_their_connection_goes),
		TEST(a_resent_request_has_one_answer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
