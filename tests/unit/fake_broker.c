/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * See fake_broker.h. Anything that goes wrong in here aborts: it is the test that is broken then.
 */
#include "fake_broker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "common/atomic.h"

#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "fake broker, line %d: %s: %s\n", __LINE__, #condition,    \
				strerror(errno));                                                  \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t window_base(void)
{
	const char *env = getenv("PANDO_WINDOW_BASE");

	return env ? strtoull(env, NULL, 0) : PANDO__WINDOW_BASE;
}

static void reply(struct fake_connection *c, struct pando__msg *msg, const int *fds,
		  unsigned int nfds)
{
	if (c->socket >= 0)
		(void)pando__msg_send(c->socket, msg, fds, nfds, 0);
}

void fake_error(struct fake_connection *c, uint64_t seq, int err, const char *text)
{
	struct pando__msg msg;

	pando__msg_init(&msg, PANDO__MSG_ERROR, seq);
	msg.error.error = err;
	snprintf(msg.error.text, sizeof(msg.error.text), "%s", text);
	reply(c, &msg, NULL, 0);
}

void fake_notice(struct fake_connection *c, enum pando__notice notice)
{
	struct pando__msg msg;

	pando__msg_init(&msg, PANDO__MSG_NOTICE, 0);
	msg.notice.notice = notice;
	msg.notice.epoch = 2;
	reply(c, &msg, NULL, 0);
}

void fake_drop(struct fake_connection *c)
{
	close(c->socket);
	c->socket = -1;
}

static struct fake_region *find(struct fake_broker *b, const char *name, uint64_t id)
{
	for (int i = 0; i < FAKE_REGIONS; i++) {
		struct fake_region *r = &b->regions[i];

		if (r->used && (id ? r->ledger->region_id == id
				   : r->ledger->state == 0 && strcmp(r->ledger->name, name) == 0))
			return r;
	}
	return NULL;
}

static struct fake_region *make(struct fake_broker *b, const struct pando__msg_open *open)
{
	const struct pando__backend *backend = pando__backend_find(PANDO_BACKEND_MEMFD);
	struct fake_region *r = b->regions;
	struct pando__ledger *l;
	int i = 0;

	while (r->used) {
		r++, i++;
		MUST(i < FAKE_REGIONS);
	}
	MUST(pando__file_create("ledger", 0, PANDO__LEDGER_SIZE, &r->ledger_fd) == 0);
	if (b->unsealed) {
		r->slots_fd = memfd_create("pando:slots", MFD_CLOEXEC);
		MUST(r->slots_fd >= 0 && ftruncate(r->slots_fd, PANDO__SLOTS_SIZE) == 0);
	} else {
		MUST(pando__file_create("slots", 0, PANDO__SLOTS_SIZE, &r->slots_fd) == 0);
	}
	l = mmap(NULL, PANDO__LEDGER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->ledger_fd, 0);
	MUST(l != MAP_FAILED);
	r->ledger_ro_fd = pando__file_reopen_readonly(r->ledger_fd);
	MUST(r->ledger_ro_fd >= 0);
	l->version = PANDO__LAYOUT_VERSION;
	l->header_size = PANDO__LEDGER_HEADER;
	l->region_id = (1ull << 32) | ++b->next_id;
	l->base = open->address ? open->address : window_base() + (uint64_t)i * PANDO__GIB;
	l->max_size = open->max_size ? open->max_size : PANDO__GIB;
	l->committed = (open->size + 4095) & ~4095ull;
	l->backend = PANDO_BACKEND_MEMFD;
	l->page_size = 4096;
	l->max_clients = PANDO__MAX_CLIENTS;
	l->slot_size = PANDO__SLOT_SIZE;
	strcpy(l->name, open->name);
	MUST(backend->create(open->name, l->base, l->max_size, &r->heap_fd) == 0);
	MUST(backend->commit(r->heap_fd, 0, l->committed) == 0);
	pando__store_release(&l->magic, PANDO__LEDGER_MAGIC);
	r->ledger = l;
	r->used = true;
	return r;
}

static uint32_t attach(struct fake_broker *b, struct fake_region *r,
		       const struct fake_connection *c, bool readonly)
{
	struct pando__ledger *l = r->ledger;
	struct pando__ledger_client *e;
	uint32_t i;

	for (i = 0; i < l->clients_high; i++) {
		e = pando__ledger_client(l, i);
		if (e->client_id == c->id && PANDO__CLIENT_STATE(e->word) == PANDO__CLIENT_LIVE)
			return i;
	}
	for (i = 0; PANDO__CLIENT_STATE(pando__ledger_client(l, i)->word) != PANDO__CLIENT_FREE;
	     i++)
		;
	e = pando__ledger_client(l, i);
	e->client_id = b->foreign_entries ? 77 : c->id;
	e->readonly = readonly;
	e->attached_ns = now_ns();
	pando__store_release(&e->word, PANDO__CLIENT_WORD(PANDO__CLIENT_GENERATION(e->word) + 1,
							  PANDO__CLIENT_LIVE));
	if (i >= l->clients_high)
		pando__store_release(&l->clients_high, i + 1);
	return i;
}

static void detach(struct fake_region *r, uint64_t client_id)
{
	for (uint32_t i = 0; i < r->ledger->clients_high; i++) {
		struct pando__ledger_client *e = pando__ledger_client(r->ledger, i);

		if (e->client_id == client_id)
			pando__store_release(&e->word,
					     PANDO__CLIENT_WORD(PANDO__CLIENT_GENERATION(e->word),
								PANDO__CLIENT_FREE));
	}
}

static void answer_open(struct fake_broker *b, struct fake_connection *c,
			const struct pando__msg *msg)
{
	const struct pando__msg_open *open = &msg->open;
	bool inherited = open->flags & PANDO__OPEN_INHERITED;
	struct fake_region *r = find(b, open->name, inherited ? open->region_id : 0);
	bool created = !r && (open->flags & PANDO_CREATE);
	struct pando__msg out;
	int fds[3];

	if (!r && !created) {
		fake_error(c, msg->header.seq, ENOENT, "there is no such region");
		return;
	}
	if (r && (open->flags & PANDO_EXCL)) {
		fake_error(c, msg->header.seq, EEXIST, "the region exists already");
		return;
	}
	if (created)
		r = make(b, open);
	pando__msg_init(&out, PANDO__MSG_OPENED, msg->header.seq);
	out.opened.region_id = r->ledger->region_id;
	out.opened.base = r->ledger->base;
	out.opened.max_size = r->ledger->max_size;
	out.opened.committed = r->ledger->committed;
	out.opened.ledger_size = PANDO__LEDGER_SIZE;
	out.opened.slots_size = PANDO__SLOTS_SIZE;
	out.opened.slot = attach(b, r, c, open->flags & PANDO_READONLY);
	out.opened.generation =
		PANDO__CLIENT_GENERATION(pando__ledger_client(r->ledger, out.opened.slot)->word);
	out.opened.backend = PANDO_BACKEND_MEMFD;
	out.opened.page_size = 4096;
	out.opened.readonly = (open->flags & PANDO_READONLY) != 0;
	out.opened.created = created;
	fds[0] = r->ledger_ro_fd;
	fds[1] = r->slots_fd;
	fds[2] = r->heap_fd;
	reply(c, &out, fds, inherited ? 0 : 3);
}

static void answer_resize(struct fake_broker *b, struct fake_connection *c,
			  const struct pando__msg *msg)
{
	struct fake_region *r = find(b, NULL, msg->resize.region_id);
	struct pando__msg out;

	if (!r) {
		fake_error(c, msg->header.seq, ENOENT, "there is no such region");
		return;
	}
	MUST(pando__backend_find(PANDO_BACKEND_MEMFD)->commit(r->heap_fd, 0, msg->resize.size) ==
	     0);
	pando__store_release(&r->ledger->committed, msg->resize.size);
	pando__add_acq_rel(&r->ledger->changes, 1);
	pando__msg_init(&out, PANDO__MSG_DONE, msg->header.seq);
	out.done.value = msg->resize.size;
	reply(c, &out, NULL, 0);
}

static void answer_list(struct fake_broker *b, struct fake_connection *c,
			const struct pando__msg *msg)
{
	struct pando__msg out;

	pando__msg_init(&out, PANDO__MSG_REGIONS, msg->header.seq);
	for (int i = 0; i < FAKE_REGIONS; i++) {
		struct pando_region_info *info = &out.regions.info[out.regions.count];
		const struct pando__ledger *l = b->regions[i].ledger;

		if (!b->regions[i].used || l->state || l->region_id <= msg->walk.cursor ||
		    (msg->walk.name[0] && strcmp(msg->walk.name, l->name) != 0))
			continue;
		info->id = l->region_id;
		info->base = l->base;
		info->size = l->committed;
		strcpy(info->name, l->name);
		out.regions.count++;
	}
	reply(c, &out, NULL, 0);
}

void fake_answer(struct fake_broker *b, struct fake_connection *c, const struct pando__msg *msg)
{
	struct fake_region *r;
	struct pando__msg out;

	switch (msg->header.type) {
	case PANDO__MSG_HELLO:
		c->parent = msg->hello.parent;
		pando__msg_init(&out, PANDO__MSG_WELCOME, msg->header.seq);
		out.welcome.client_id = c->id;
		out.welcome.epoch = 1;
		out.welcome.broker_pid = getpid();
		out.welcome.version = PANDO__PROTO_VERSION;
		break;
	case PANDO__MSG_OPEN:
		answer_open(b, c, msg);
		return;
	case PANDO__MSG_RESIZE:
		answer_resize(b, c, msg);
		return;
	case PANDO__MSG_LIST:
		answer_list(b, c, msg);
		return;
	case PANDO__MSG_CLOSE:
		r = find(b, NULL, msg->close.region_id);
		if (r)
			detach(r, c->id);
		pando__msg_init(&out, PANDO__MSG_DONE, msg->header.seq);
		break;
	case PANDO__MSG_REMOVE:
		r = find(b, msg->remove.name, 0);
		if (r)
			pando__store_release(&r->ledger->state, 1);
		pando__msg_init(&out, PANDO__MSG_DONE, msg->header.seq);
		break;
	case PANDO__MSG_STATUS:
		pando__msg_init(&out, PANDO__MSG_STATUS_REPLY, msg->header.seq);
		out.status.info.epoch = 1;
		break;
	default:
		fake_error(c, msg->header.seq, EOPNOTSUPP, "not faked");
		return;
	}
	reply(c, &out, NULL, 0);
}

static void serve(struct fake_broker *b, struct fake_connection *c)
{
	char packet[sizeof(struct pando__msg) + 8], why[PANDO__PROTO_TEXT];
	int fds[PANDO__PROTO_MAX_FDS];
	fake_script_fn script;
	struct pando__msg msg;
	unsigned int nfds;
	int n = pando__msg_receive(c->socket, packet, sizeof(packet), fds, &nfds, MSG_DONTWAIT);

	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		for (int i = 0; i < FAKE_REGIONS; i++)
			if (b->regions[i].used)
				detach(&b->regions[i], c->id);
		fake_drop(c);
		return;
	}
	if (pando__msg_parse(PANDO__TO_BROKER, packet, (size_t)n, nfds, &msg, why, sizeof(why)) <
	    0) {
		fprintf(stderr, "fake broker: %s\n", why);
		abort();
	}
	script = pando__load_acquire(&b->script);
	if (!script || !script(b, c, &msg))
		fake_answer(b, c, &msg);
	/* Last, so that a test that has seen the count sees what the answer did. */
	pando__add_acq_rel(&b->seen[msg.header.type], 1);
}

static void admit(struct fake_broker *b)
{
	int fd = accept4(b->listener, NULL, NULL, SOCK_CLOEXEC);

	for (int i = 0; fd >= 0 && i < FAKE_CONNECTIONS; i++) {
		if (b->connections[i].socket >= 0)
			continue;
		b->connections[i] = (struct fake_connection){.socket = fd, .id = ++b->next_id};
		return;
	}
	abort();
}

static void *run(void *arg)
{
	struct fake_broker *b = arg;

	for (;;) {
		struct fake_connection *of[2 + FAKE_CONNECTIONS];
		unsigned int n = 2;
		struct pollfd pfd[2 + FAKE_CONNECTIONS] = {{.fd = b->stop_read, .events = POLLIN},
							   {.fd = b->listener, .events = POLLIN}};

		/*
		 * Only those in use: poll() refuses more entries than the process may open files.
		 */
		for (int i = 0; i < FAKE_CONNECTIONS; i++) {
			if (b->connections[i].socket < 0)
				continue;
			of[n] = &b->connections[i];
			pfd[n].fd = of[n]->socket;
			pfd[n++].events = POLLIN;
		}
		MUST(poll(pfd, n, -1) >= 0 || errno == EINTR);
		if (pfd[0].revents)
			return NULL;
		if (pfd[1].revents)
			admit(b);
		for (unsigned int i = 2; i < n; i++)
			if (pfd[i].revents && of[i]->socket == pfd[i].fd)
				serve(b, of[i]);
	}
}

void fake_start(struct fake_broker *b)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	static unsigned int count;
	int stop[2];

	memset(b, 0, sizeof(*b));
	snprintf(b->address, sizeof(b->address), "@pando-fake-%d-%u", (int)getpid(), ++count);
	memcpy(un.sun_path + 1, b->address + 1, strlen(b->address) - 1);
	for (int i = 0; i < FAKE_CONNECTIONS; i++)
		b->connections[i].socket = -1;
	b->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	MUST(b->listener >= 0);
	MUST(bind(b->listener, (struct sockaddr *)&un,
		  (socklen_t)(sizeof(un.sun_family) + strlen(b->address))) == 0);
	MUST(listen(b->listener, 64) == 0 && pipe2(stop, O_CLOEXEC) == 0);
	b->stop_read = stop[0];
	b->stop_write = stop[1];
	MUST(pthread_create(&b->thread, NULL, run, b) == 0);
}

void fake_stop(struct fake_broker *b)
{
	MUST(write(b->stop_write, "x", 1) == 1 && pthread_join(b->thread, NULL) == 0);
	for (int i = 0; i < FAKE_CONNECTIONS; i++)
		if (b->connections[i].socket >= 0)
			fake_drop(&b->connections[i]);
	for (int i = 0; i < FAKE_REGIONS; i++) {
		struct fake_region *r = &b->regions[i];

		if (!r->used)
			continue;
		munmap(r->ledger, PANDO__LEDGER_SIZE);
		close(r->ledger_fd);
		close(r->ledger_ro_fd);
		close(r->slots_fd);
		close(r->heap_fd);
		r->used = false;
	}
	close(b->listener);
	close(b->stop_read);
	close(b->stop_write);
}

unsigned int fake_seen(struct fake_broker *b, enum pando__msg_type type)
{
	return pando__load_acquire(&b->seen[type]);
}

void fake_script(struct fake_broker *b, fake_script_fn script)
{
	pando__store_release(&b->script, script);
}
