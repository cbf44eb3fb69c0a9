/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzzes the broker's core: an input is a sequence of events from several clients.
 *
 * Events are connections, deaths, packets (rubbish as it is, or sound messages whose fields the
 * input decides, with or without a descriptor), jobs that run sooner or later or fail, draining. After each event the core's
 * invariants are verified; at the end nothing may be left: no client, region, address, booked byte
 * or descriptor. The heap's memory is made up here, so that a run costs microseconds; ledger and
 * slots are real.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../lib/core.h"
#include "broker/log.h"

#define CLIENTS 4
#define EVENTS_MAX 96

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

struct input {
	const uint8_t *data;
	size_t size;
};

/* What comes with a graft: a memfd as it should be, of one and of two pages, one without seals, none. */
static int memfds[3];

static bool fail_next; /* the next commit or file fails */

static bool failing(void)
{
	bool now = fail_next;

	fail_next = false;
	return now;
}

/* A backend whose heap is a file that nobody looks at. */
static void fake_probe(struct pando__backend_probe *probe)
{
	memset(probe, 0, sizeof(*probe));
	probe->usable = true;
	probe->available = 8 * PANDO__GIB;
}

static int fake_create(const char *name, uint64_t base, uint64_t max_size, int *fd)
{
	if (failing())
		return pando__fail(EMFILE, "region \"%s\" at %llu of %llu fails", name,
				   (unsigned long long)base, (unsigned long long)max_size);
	*fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

static int fake_reopen(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static int fake_commit(int fd, uint64_t offset, uint64_t length)
{
	(void)fd;
	if (offset % 4096 || length % 4096 || length > BROKER_PIECE)
		abort();
	return failing() ? pando__fail(ENOMEM, "no memory") : 0;
}

static int fake_decommit(int fd, uint64_t offset, uint64_t length)
{
	(void)fd;
	if (offset % 4096 || length % 4096)
		abort();
	return 0;
}

static const struct pando__backend fake = {
	.id = PANDO_BACKEND_MEMFD,
	.name = "memfd",
	.page_size = 4096,
	.probe = fake_probe,
	.create = fake_create,
	.reopen_readonly = fake_reopen,
	.commit = fake_commit,
	.decommit = fake_decommit,
};

/* These take the place of the backends' table. */
const struct pando__backend *const pando__backends[] = {&fake, NULL};

const struct pando__backend *pando__backend_find(unsigned int id)
{
	return id == fake.id ? &fake : NULL;
}

const struct pando__backend *pando__backend_auto(uint64_t size, char *why, size_t why_size)
{
	if (why)
		snprintf(why, why_size, "%s", size > 1000 ? "huge pages are out" : "");
	return &fake;
}

const char *pando_backend_name(unsigned int backend)
{
	return backend == fake.id ? "memfd" : "another";
}

static uint8_t byte(struct input *in)
{
	if (in->size == 0)
		return 0;
	in->size--;
	return *in->data++;
}

static void fill(struct input *in, void *to, size_t size)
{
	size_t n = size < in->size ? size : in->size;

	memcpy(to, in->data, n);
	in->data += n;
	in->size -= n;
}

static void name(struct input *in, char *to)
{
	snprintf(to, PANDO_REGION_NAME_MAX + 1, "r%u", byte(in) % 5);
}

/* A size that may be wrong in every way, but is often right. */
static uint64_t some_size(struct input *in)
{
	uint8_t b = byte(in);

	return b & 0x80 ? UINT64_MAX >> (b & 0x3f) : (uint64_t)(b & 0x3f) << (b & 0x40 ? 28 : 12);
}

static uint64_t some_region(struct input *in, const struct core *core)
{
	unsigned int n = byte(in) % 8;
	struct region *r = core->broker.regions;

	while (r && n--)
		r = r->next;
	return r ? r->record.id : n;
}

static void open_fields(struct input *in, const struct core *core, struct pando__msg_open *m)
{
	static const uint32_t kinds[] = {
		0,
		PANDO_READONLY,
		PANDO_CREATE,
		PANDO_CREATE | PANDO_EXCL,
		PANDO_CREATE | PANDO_TRANSIENT,
		PANDO_CREATE | PANDO__OPEN_NO_ATTACH,
		PANDO__OPEN_INHERITED,
		PANDO__OPEN_INHERITED | PANDO_READONLY,
	};
	uint8_t b = byte(in);

	name(in, m->name);
	m->flags = kinds[b & 7];
	if (m->flags & PANDO__OPEN_INHERITED)
		m->region_id = some_region(in, core);
	if (!(m->flags & PANDO_CREATE))
		return;
	m->size = some_size(in);
	if (b & 8)
		m->max_size = some_size(in);
	if (b & 16)
		m->address = PANDO__WINDOW_BASE + (uint64_t)byte(in) * (PANDO__GIB / 2);
	if (b & 32)
		m->mode = (uint32_t)byte(in) * 2;
	if (b & 64)
		m->backend = byte(in) & 3;
	m->set_gid = b >> 7;
	m->gid = b >> 7 ? byte(in) & 7 : 0;
}

static uint64_t some_client(struct input *in, const struct core *core)
{
	unsigned int n = byte(in) % 8;
	struct client *c = core->broker.clients;

	while (c && n--)
		c = c->next;
	return c ? c->record.id : n;
}

/* The id of a graft that somebody has or waits for, or of none. */
static uint64_t some_graft(struct input *in, const struct core *core)
{
	unsigned int n = byte(in) % 16;

	for (struct client *c = core->broker.clients; c; c = c->next)
		for (struct graft *g = c->receiver ? c->receiver->placed : NULL; g;
		     g = g->next_placed)
			if (n-- == 0)
				return g->record.id;
	return n + 1;
}

static void graft_fields(struct input *in, const struct core *core, struct pando__msg *m)
{
	uint8_t b;

	switch (m->header.type) {
	case PANDO__MSG_GRAFT_LISTEN:
		b = byte(in);
		m->graft_listen.base = (uint64_t)(1 + (b & 3)) << 40;
		m->graft_listen.size = (uint64_t)(1 + (b >> 5)) << 21;
		m->graft_listen.limit = (b & 16) ? some_size(in) : 0;
		break;
	case PANDO__MSG_GRAFT_RESERVE:
		m->graft_reserve.receiver = some_client(in, core);
		b = byte(in);
		m->graft_reserve.bytes = b & 0x80 ? some_size(in) : (b & 3) * 3000u;
		m->graft_reserve.way = 1 + ((b >> 2) & 1);
		m->graft_reserve.flags = (b >> 3) & 1;
		break;
	case PANDO__MSG_GRAFT_SEND:
		m->graft_send.id = some_graft(in, core);
		m->graft_send.way = 1 + (byte(in) & 1);
		break;
	case PANDO__MSG_GRAFT_ACCEPT:
		m->graft_accept.taken = some_graft(in, core);
		m->graft_accept.flags = byte(in) & 1;
		break;
	default:
		b = byte(in);
		m->graft_one.id = some_graft(in, core);
		m->graft_one.flags = m->header.type == PANDO__MSG_GRAFT_CANCEL	  ? b & 1
				     : m->header.type == PANDO__MSG_GRAFT_RELEASE ? b & 2
										  : 0;
	}
}

/* A sound message of any type. */
static void message(struct input *in, const struct core *core, struct pando__msg *m)
{
	unsigned int type = byte(in);

	pando__msg_init(m, 1 + type % (PANDO__MSG_REQUEST_END - 1), 0);
	switch (m->header.type) {
	case PANDO__MSG_HELLO:
		m->hello.version_min = m->hello.version_max = 1 + (type > 250);
		m->hello.flags = type > 128;
		m->hello.parent = type > 128 ? (1ull << 32) + byte(in) : 0;
		fill(in, m->hello.program, 4);
		break;
	case PANDO__MSG_OPEN:
		open_fields(in, core, &m->open);
		break;
	case PANDO__MSG_CLOSE:
	case PANDO__MSG_RESIZE:
		m->resize.region_id = some_region(in, core);
		if (m->header.type == PANDO__MSG_RESIZE)
			m->resize.size = some_size(in);
		break;
	case PANDO__MSG_REMOVE:
		name(in, m->remove.name);
		break;
	case PANDO__MSG_GRANT:
		name(in, m->grant.name);
		m->grant.kind = 1 + byte(in) % 2;
		m->grant.id = byte(in) % 64;
		m->grant.rights = byte(in) & 6;
		break;
	case PANDO__MSG_LIST:
	case PANDO__MSG_CLIENTS:
		m->walk.cursor = byte(in) * (1ull << 30);
		if (type & 0x80)
			name(in, m->walk.name);
		break;
	case PANDO__MSG_STATUS:
		break;
	default:
		graft_fields(in, core, m);
		break;
	}
}

/* Bytes as they are, with a header that is right or nearly so. */
static void rubbish(struct input *in, struct client *c)
{
	struct pando__msg m;
	uint8_t kind = byte(in), length = byte(in);

	memset(&m, 0, sizeof(m));
	if (kind & 1)
		pando__msg_init(&m, kind >> 4, c->seq + 1);
	fill(in, kind & 1 ? (char *)&m.hello : (char *)&m, length);
	handler_packet(c, &m, kind & 2 ? m.header.length % sizeof(m) : length, (kind >> 2) & 3);
}

static struct client *pick(const struct core *core, unsigned int n)
{
	struct client *c = core->broker.clients;

	while (c && n--)
		c = c->next;
	return c;
}

static void packet(struct input *in, struct core *core, uint8_t op)
{
	struct client *c = pick(core, (op >> 3) % CLIENTS);
	struct pando__msg m;

	if (!c || c->busy || c->dead)
		return;
	if ((op & 7) == 7) {
		rubbish(in, c);
		core_settle(core);
		return;
	}
	message(in, core, &m);
	if (m.header.type == PANDO__MSG_GRAFT_SEND && m.graft_send.way == PANDO_GRAFT_MEMFD)
		core_send_with(core, c, &m, memfds[byte(in) % 3]);
	else
		core_send(core, c, &m);
}

static void event(struct input *in, struct core *core)
{
	uint8_t op = byte(in);
	struct client *c;

	switch (op & 7) {
	case 0:
		if (core->broker.client_count < CLIENTS)
			(void)core_client(core, (op >> 3) % 3);
		break;
	case 1:
		c = pick(core, (op >> 3) % CLIENTS);
		if (c && !c->dead && (op & 0xc0) == 0xc0)
			client_died(c, broker_now()); /* a child has its connection */
		else if (c && (op & 0x80))
			core_kill(core, c);
		else if (core->broker.client_count < CLIENTS)
			core_connect(core, op >> 6);
		break;
	case 2:
		core_run_job(core, (op >> 3) & 3);
		break;
	case 3:
		fail_next = op & 8;
		if (op == 0xf3)
			broker_drain(&core->broker);
		break;
	default:
		packet(in, core, op);
		break;
	}
	broker_check(&core->broker);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_set_level(LOG_LEVEL_ERROR);
	for (int i = 0; i < 3; i++) {
		const off_t size = i == 1 ? 8192 : 4096;

		memfds[i] = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (memfds[i] < 0 || ftruncate(memfds[i], size) < 0 ||
		    fallocate(memfds[i], 0, 0, size) < 0 ||
		    (i < 2 &&
		     fcntl(memfds[i], F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK) < 0))
			abort();
	}
	return 0;
}

static int lowest_descriptor(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct core core;
	struct input in = {.data = data, .size = size};
	const int lowest = lowest_descriptor();

	core_init(&core);
	core.config.quota =
		(struct config_quota){.memory = 4 * PANDO__GIB, .regions = 4, .clients = 3};
	fail_next = false;
	(void)core_client(&core, 0);
	for (int i = 0; i < EVENTS_MAX && in.size > 0; i++)
		event(&in, &core);
	core_deinit(&core);
	if (lowest_descriptor() != lowest)
		abort(); /* a descriptor is left */
	return 0;
}
