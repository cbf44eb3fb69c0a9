/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grafts: see graft.h for what there is, docs/design/graft.md for why.
 *
 * Everything here is a few list operations and some records. Lists are short: a receiver has 4,096
 * grafts at most, and 64 that wait, unless the administrator says otherwise.
 *
 * The order of steps is that of all records: put, then told to anybody. Only TAKEN needs two steps,
 * since a record's descriptor can be replaced but not dropped: the same graft is put as a record of
 * another kind, without the memfd, then the first one is removed. A slot is never free in between.
 *
 * Descriptors that clients send: one memfd with SEND. Before anything else is done with it, it is
 * asked for its seals, which only shmem and hugetlbfs have: other files may belong to file systems that do
 * not answer. What conn.c has received is closed there; here a duplicate is kept.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "common/inject.h"

#include "broker.h"
#include "log.h"

#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

static uint64_t limit_of(const struct receiver *r)
{
	const uint64_t most = r->client->broker->config->graft_limit;
	const uint64_t limit = most ? most : GRAFT_LIMIT, own = r->record.limit;

	return own && own < limit ? own : limit;
}

static unsigned int waiting_max(const struct broker *b)
{
	return b->config->graft_waiting ? b->config->graft_waiting : GRAFT_WAITING;
}

/* ---- lists and sums ------------------------------------------------------- */

static void count(struct receiver *r, const struct graft *g, bool in)
{
	struct broker *b = r->client->broker;
	const bool held = g->record.state == GRAFT_HELD;
	const uint64_t bytes = in ? g->record.length : -g->record.length;
	const uint32_t one = in ? 1 : -1u;

	*(held ? &r->held : &r->waiting) += one;
	*(held ? &r->held_bytes : &r->waiting_bytes) += bytes;
	*(held ? &b->grafts.held : &b->grafts.waiting) += in ? 1 : -1ull;
	*(held ? &b->grafts.held_bytes : &b->grafts.waiting_bytes) += bytes;
}

static void place(struct receiver *r, struct graft *g)
{
	struct graft **link = &r->placed;

	while (*link && (*link)->record.offset < g->record.offset)
		link = &(*link)->next_placed;
	g->next_placed = *link;
	*link = g;
	g->receiver = r;
	count(r, g, true);
}

static void enqueue(struct graft *g)
{
	struct graft **link = &g->receiver->queue;

	while (*link && (*link)->record.order < g->record.order)
		link = &(*link)->next_queued;
	g->next_queued = *link;
	*link = g;
}

static void dequeue(struct graft *g)
{
	struct graft **link = &g->receiver->queue;

	while (*link && *link != g)
		link = &(*link)->next_queued;
	if (*link)
		*link = g->next_queued;
	g->next_queued = NULL;
}

static struct graft *find(const struct receiver *r, uint64_t id)
{
	struct graft *g = r->placed;

	while (g && g->record.id != id)
		g = g->next_placed;
	return g;
}

static enum store_kind kind(const struct graft *g)
{
	return g->record.state == GRAFT_HELD ? STORE_GRAFT_HELD : STORE_GRAFT;
}

static void put(struct graft *g)
{
	broker_put(g->receiver->client->broker, kind(g), g->record.id, &g->record,
		   sizeof(g->record), &g->fd, g->fd >= 0 ? 1 : 0);
}

static void drop_fd(struct graft *g)
{
	if (g->fd >= 0)
		close(g->fd);
	g->fd = -1;
}

/* The slot is free, the record gone. */
static void end(struct graft *g)
{
	struct receiver *r = g->receiver;
	struct graft **link = &r->placed;

	broker_forget(r->client->broker, kind(g), g->record.id);
	while (*link != g)
		link = &(*link)->next_placed;
	*link = g->next_placed;
	dequeue(g);
	count(r, g, false);
	if (g->sender)
		g->sender->reserved = NULL;
	drop_fd(g);
	free(g);
}

/* The socket is our own: sending to it cannot block. */
static void pay(struct receiver *r)
{
	while (r->owed > 0 && send(r->event, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
		r->owed--;
}

/* One more waits. */
static void tell(struct receiver *r)
{
	r->owed++;
	pay(r);
}

/* Into the queue, at its end. */
static void announce(struct graft *g, enum graft_state state)
{
	g->record.state = state;
	g->record.order = broker_new_id(g->receiver->client->broker);
	if (g->sender)
		g->sender->reserved = NULL;
	g->sender = NULL;
	enqueue(g);
	put(g);
}

/*
 * A slot that its sender will not announce any more. Where pages can have been moved there, only the
 * receiver can take them out.
 */
static void abandon(struct graft *g, bool left)
{
	struct broker *b = g->receiver->client->broker;

	if (!left || g->record.way != PANDO_GRAFT_MMAP) {
		end(g);
		return;
	}
	b->grafts.cleared_total++;
	announce(g, GRAFT_VOID);
	PANDO_INJECT("broker.graft.void");
	tell(g->receiver);
}

/* ---- the receiver --------------------------------------------------------- */

static int no_receiver(uint64_t id)
{
	return pando__fail(
		ENOTCONN,
		"client %" PRIu64 " does not take grafts; it has to call pando_graft_listen()", id);
}

static void put_receiver(struct receiver *r)
{
	broker_put(r->client->broker, STORE_RECEIVER, r->record.client, &r->record,
		   sizeof(r->record), &r->event, 1);
}

static struct receiver *receiver_new(struct client *c, int event)
{
	struct receiver *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->client = c;
	r->event = event;
	r->record.version = RECORD_VERSION;
	r->record.client = c->record.id;
	c->receiver = r;
	return r;
}

static void receiver_free(struct receiver *r)
{
	struct broker *b = r->client->broker;

	while (r->placed) {
		b->grafts.lost_total += r->placed->record.state == GRAFT_WAITS;
		end(r->placed);
	}
	broker_forget(b, STORE_RECEIVER, r->record.client);
	close(r->event);
	r->client->receiver = NULL;
	free(r);
}

int graft_listen(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_graft_listen *m = &msg->graft_listen;
	struct receiver *r = c->receiver;
	struct pando__msg reply;
	int ends[2];

	if (r && r->placed && (r->record.base != m->base || r->record.size != m->size))
		return pando__fail(EBUSY, "grafts lie in the range that was announced before");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		return pando__fail(errno, "the broker cannot make a socket: %s", strerror(errno));
	if (!r)
		r = receiver_new(c, -1);
	if (!r) {
		close(ends[0]);
		close(ends[1]);
		return pando__fail(ENOMEM, "the broker is out of memory");
	}
	if (r->event >= 0) /* sent again, or by a client that has lost its end */
		close(r->event);
	r->event = ends[0];
	r->owed = 0;
	r->record.base = m->base;
	r->record.size = m->size;
	r->record.limit = m->limit;
	put_receiver(r);
	PANDO_INJECT("broker.graft.listening");
	for (const struct graft *g = r->queue; g; g = g->next_queued)
		tell(r);
	pando__msg_init(&reply, PANDO__MSG_GRAFT_LISTENING, c->seq);
	reply.graft_listening.limit = limit_of(r);
	handler_answer(c, &reply, &ends[1], 1);
	close(ends[1]);
	return 0;
}

/* ---- the sender ----------------------------------------------------------- */

static bool permitted(const struct client *from, const struct client *to)
{
	switch (from->broker->config->graft) {
	case CONFIG_GRAFT_ANY:
		return true;
	case CONFIG_GRAFT_UID:
		return from->who.uid == 0 || from->who.uid == to->who.uid;
	default:
		return false;
	}
}

/* Finds who is meant. Returns 0 or a negative errno with a sentence. */
static int find_receiver(struct client *c, const struct pando__msg_graft_reserve *m,
			 struct receiver **out)
{
	struct client *to = client_find(c->broker, m->receiver);

	if (!to || !to->record.greeted || to->dead || to->hung_up)
		return pando__fail(ESRCH, "there is no client %" PRIu64 "; see: pando clients",
				   m->receiver);
	if (to == c || (to->pid > 0 && to->pid == c->pid))
		return pando__fail(EINVAL,
				   "client %" PRIu64 " is this process: there is nothing "
				   "to hand over",
				   m->receiver);
	if (!permitted(c, to)) {
		c->broker->refused_total++;
		return pando__fail(EPERM,
				   "user %u may not graft into client %" PRIu64
				   " of user %u (pandod --graft)",
				   c->who.uid, m->receiver, to->who.uid);
	}
	if (!to->receiver)
		return no_receiver(m->receiver);
	*out = to->receiver;
	return 0;
}

/* The first range that is free, with a page behind it that stays so. False: there is none. */
static bool find_room(const struct receiver *r, uint64_t length, uint64_t *offset)
{
	const uint64_t align = length >= PANDO__GRAFT_HUGE ? PANDO__GRAFT_HUGE : PANDO__GRAFT_PAGE;
	const struct graft *g = r->placed;
	uint64_t at = 0;

	for (;; g = g->next_placed) {
		uint64_t limit = g ? g->record.offset : r->record.size;

		if (at <= limit && limit - at >= length + PANDO__GRAFT_PAGE) {
			*offset = at;
			return true;
		}
		if (!g)
			return false;
		at = g->record.offset + g->record.length + PANDO__GRAFT_PAGE;
		at = (at + align - 1) & ~(align - 1);
	}
}

static int check_length(const struct receiver *r, uint64_t bytes)
{
	const struct broker *b = r->client->broker;
	const uint64_t limit = limit_of(r), length = pando__graft_pages(bytes);

	if (bytes == 0)
		return pando__fail(EINVAL, "a graft of 0 bytes is none");
	if (bytes > PANDO__GRAFT_ROOM_MAX || length > limit ||
	    length + PANDO__GRAFT_PAGE > r->record.size)
		return pando__fail(EFBIG,
				   "client %" PRIu64 " takes at most %" PRIu64
				   " bytes, and has room for %" PRIu64 ": not %" PRIu64,
				   r->record.client, limit, r->record.size, bytes);
	if (r->waiting >= waiting_max(b) || length > limit - r->waiting_bytes)
		return pando__fail(EAGAIN,
				   "%u grafts with %" PRIu64 " bytes wait for client %" PRIu64
				   " already",
				   r->waiting, r->waiting_bytes, r->record.client);
	return 0;
}

static int reserve(struct client *c, const struct pando__msg_graft_reserve *m, struct receiver *r)
{
	uint64_t offset;
	struct graft *g;
	int rc = check_length(r, m->bytes);

	if (rc < 0)
		return rc;
	if (r->waiting + r->held >= GRAFT_MAX ||
	    !find_room(r, pando__graft_pages(m->bytes), &offset))
		return pando__fail(EAGAIN,
				   "client %" PRIu64 " holds %u grafts with %" PRIu64
				   " bytes: its reservation is full",
				   r->record.client, r->held, r->held_bytes);
	g = calloc(1, sizeof(*g));
	if (!g)
		return pando__fail(ENOMEM, "the broker is out of memory");
	g->fd = -1;
	g->record = (struct graft_record){
		.version = RECORD_VERSION,
		.state = GRAFT_RESERVED,
		.id = broker_new_id(c->broker),
		.receiver = r->record.client,
		.sender = c->record.id,
		.seq = c->seq,
		.offset = offset,
		.length = pando__graft_pages(m->bytes),
		.bytes = m->bytes,
		.tag = m->tag,
		.pid = c->pid,
		.uid = c->who.uid,
		.way = m->way,
	};
	g->sender = c;
	c->reserved = g;
	place(r, g);
	put(g);
	PANDO_INJECT("broker.graft.reserved");
	return 0;
}

int graft_reserve(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_graft_reserve *m = &msg->graft_reserve;
	struct graft *g = c->reserved;
	struct pando__msg reply;
	struct receiver *r = NULL;
	int rc, pidfd = -1;

	/* The same one, sent again, gets the same slot; another one says that the last is given up. */
	if (g && (g->record.seq != c->seq || g->record.receiver != m->receiver)) {
		abandon(g, true);
		g = NULL;
	}
	rc = find_receiver(c, m, &r);
	if (rc == 0 && !g && !(m->flags & PANDO__GRAFT_LOOK))
		rc = reserve(c, m, r);
	if (rc < 0)
		return rc;
	pando__msg_init(&reply, PANDO__MSG_GRAFT_SLOT, c->seq);
	if (c->reserved) {
		reply.graft_slot.id = c->reserved->record.id;
		reply.graft_slot.address = r->record.base + c->reserved->record.offset;
	}
	if (m->way == PANDO_GRAFT_MMAP && c->broker->ops->process)
		pidfd = c->broker->ops->process(r->client);
	handler_answer(c, &reply, &pidfd, pidfd >= 0 ? 1 : 0);
	return 0;
}

/* What was sent must be what a receiver can map and rely on. Returns a duplicate, or -errno. */
static int take_memfd(int fd, uint64_t length)
{
	const int seals = fcntl(fd, F_GET_SEALS);
	struct statfs fs;
	struct stat st;
	int own;

	if (seals < 0 || (seals & SEALS) != SEALS)
		return pando__fail(EINVAL, "the graft's memfd is none, or not sealed against "
					   "writing, growing and shrinking");
	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
		return pando__fail(EINVAL, "the graft's memfd is not of ordinary pages");
	if (st.st_size < 0 || (uint64_t)st.st_size != length ||
	    (uint64_t)st.st_blocks * 512 < length)
		return pando__fail(EINVAL,
				   "the graft's memfd has %lld bytes and memory for %lld, not "
				   "%" PRIu64,
				   (long long)st.st_size, (long long)st.st_blocks * 512, length);
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return own < 0 ? pando__fail(errno, "the broker has no descriptor free for a graft") : own;
}

int graft_send(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_graft_send *m = &msg->graft_send;
	struct broker *b = c->broker;
	struct graft *g = c->reserved;

	if (!g ||
	    g->record.id != m->id) { /* announced by the same request, or the receiver is gone */
		handler_done(c, m->id);
		return 0;
	}
	if (m->way != g->record.way)
		return pando__fail(EINVAL, "the slot was reserved for another way");
	if (m->way == PANDO_GRAFT_MEMFD) {
		int fd = take_memfd(c->passed, g->record.length);

		if (fd < 0)
			return fd;
		g->fd = fd;
	}
	announce(g, GRAFT_WAITS);
	PANDO_INJECT("broker.graft.announced");
	b->grafts.total++;
	b->grafts.bytes_total += g->record.length;
	b->grafts.mmap_total += m->way == PANDO_GRAFT_MMAP;
	tell(g->receiver);
	PANDO_INJECT("broker.graft.told");
	handler_done(c, m->id);
	return 0;
}

int graft_cancel(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_graft_one *m = &msg->graft_one;

	if (c->reserved && c->reserved->record.id == m->id)
		abandon(c->reserved, m->flags & PANDO__GRAFT_LEFT);
	PANDO_INJECT("broker.graft.cancelled");
	handler_done(c, 0);
	return 0;
}

/* ---- receiving ------------------------------------------------------------ */

/* The receiver has it. A void slot has been cleared. */
static void taken(struct receiver *r, uint64_t id)
{
	struct graft *g = id ? find(r, id) : NULL;
	struct broker *b = r->client->broker;

	if (!g || (g->record.state != GRAFT_WAITS && g->record.state != GRAFT_VOID))
		return;
	if (g->record.state == GRAFT_VOID) {
		end(g);
		return;
	}
	dequeue(g);
	count(r, g, false);
	drop_fd(g);
	g->record.state = GRAFT_HELD;
	count(r, g, true);
	put(g);
	PANDO_INJECT("broker.graft.held");
	broker_forget(b, STORE_GRAFT, id);
	PANDO_INJECT("broker.graft.taken");
}

int graft_accept(struct client *c, const struct pando__msg *msg)
{
	struct receiver *r = c->receiver;
	struct pando__msg reply;
	const struct graft *g;

	if (!r)
		return no_receiver(c->record.id);
	taken(r, msg->graft_accept.taken);
	if (msg->graft_accept.flags & PANDO__GRAFT_DRAINED) {
		r->owed = 0;
		for (g = r->queue; g; g = g->next_queued)
			r->owed++;
	}
	pay(r);
	g = r->queue;
	if (!g)
		return pando__fail(EAGAIN, "no graft waits");
	pando__msg_init(&reply, PANDO__MSG_GRAFTED, c->seq);
	reply.grafted = (struct pando__msg_grafted){
		.id = g->record.id,
		.address = r->record.base + g->record.offset,
		.bytes = g->record.bytes,
		.tag = g->record.tag,
		.sender = g->record.sender,
		.pid = g->record.pid,
		.uid = g->record.uid,
		.way = g->record.state == GRAFT_VOID ? (uint32_t)PANDO_GRAFT_AUTO : g->record.way,
	};
	for (const struct graft *o = g; o; o = o->next_queued)
		reply.grafted.waiting++;
	handler_answer(c, &reply, &g->fd, g->fd >= 0 ? 1 : 0);
	return 0;
}

int graft_taken(struct client *c, const struct pando__msg *msg)
{
	if (c->receiver)
		taken(c->receiver, msg->graft_one.id);
	handler_done(c, 0);
	return 0;
}

int graft_release(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_graft_one *m = &msg->graft_one;
	struct graft *g = c->receiver ? find(c->receiver, m->id) : NULL;

	if (g && g->record.state != GRAFT_RESERVED) {
		c->broker->grafts.refused_total += (m->flags & PANDO__GRAFT_REFUSED) != 0;
		end(g);
	}
	PANDO_INJECT("broker.graft.released");
	handler_done(c, 0);
	return 0;
}

void graft_gone(struct client *c)
{
	if (c->reserved)
		abandon(c->reserved, true);
	if (c->receiver)
		receiver_free(c->receiver);
	PANDO_INJECT("broker.graft.gone");
}

/* ---- after a restart ------------------------------------------------------ */

static void close_all(const int *fds, unsigned int nfds)
{
	for (unsigned int i = 0; i < nfds; i++)
		close(fds[i]);
}

void graft_take_receiver(struct broker *b, const struct receiver_record *record, size_t size,
			 const int *fds, unsigned int nfds)
{
	struct client *c = NULL;
	struct receiver *r = NULL;

	if (size == sizeof(*record) && record->version == RECORD_VERSION && nfds == 1)
		c = client_find(b, record->client);
	if (c && !c->receiver)
		r = receiver_new(c, fds[0]);
	if (!r) {
		close_all(fds, nfds);
		return;
	}
	r->record = *record;
}

/* True if it fits into what is there: records are our own, but other releases may have put them. */
static bool fits(const struct receiver *r, const struct graft_record *record)
{
	uint64_t end_at = record->offset + record->length + PANDO__GRAFT_PAGE;

	if (record->length == 0 || end_at < record->offset || end_at > r->record.size ||
	    record->state < GRAFT_RESERVED || record->state > GRAFT_VOID)
		return false;
	for (const struct graft *g = r->placed; g; g = g->next_placed)
		if (g->record.offset < end_at &&
		    record->offset < g->record.offset + g->record.length + PANDO__GRAFT_PAGE)
			return false;
	return true;
}

void graft_take(struct broker *b, bool held, uint64_t id, const struct graft_record *record,
		size_t size, const int *fds, unsigned int nfds)
{
	struct client *to = NULL;
	struct graft *g = NULL;

	if (size == sizeof(*record) && record->version == RECORD_VERSION && nfds <= 1)
		to = client_find(b, record->receiver);
	if (to && to->receiver) {
		struct graft *other = find(to->receiver, id);

		if (held && other) /* the dead one was about to remove the first record */
			end(other);
		if (fits(to->receiver, record))
			g = calloc(1, sizeof(*g));
	}
	if (!g) {
		close_all(fds, nfds);
		broker_forget(b, held ? STORE_GRAFT_HELD : STORE_GRAFT, id);
		return;
	}
	g->record = *record;
	g->fd = nfds ? fds[0] : -1;
	place(to->receiver, g);
	if (record->state == GRAFT_WAITS || record->state == GRAFT_VOID)
		enqueue(g);
	if (record->state != GRAFT_RESERVED)
		return;
	g->sender = client_find(b, record->sender);
	if (g->sender && g->sender->reserved)
		g->sender = NULL;
	if (g->sender)
		g->sender->reserved = g;
}

void graft_taken_up(struct broker *b)
{
	struct graft *next;

	for (struct client *c = b->clients; c; c = c->next) {
		if (!c->receiver)
			continue;
		for (struct graft *g = c->receiver->placed; g; g = next) {
			next = g->next_placed;
			if (g->record.state == GRAFT_RESERVED && !g->sender)
				abandon(g, true);
		}
		if (c->receiver->queue)
			tell(c->receiver); /* perhaps one byte too many, never one too few */
	}
}

void graft_put_all(struct broker *b)
{
	for (struct client *c = b->clients; c; c = c->next) {
		if (!c->receiver)
			continue;
		put_receiver(c->receiver);
		for (struct graft *g = c->receiver->placed; g; g = g->next_placed)
			put(g);
	}
}

/* ---- invariants ----------------------------------------------------------- */

static void check_receiver(struct receiver *r, void (*must)(bool holds, const char *what))
{
	uint64_t at = 0, waiting_bytes = 0, held_bytes = 0;
	uint32_t waiting = 0, held = 0, queued = 0;

	for (const struct graft *g = r->placed; g; g = g->next_placed) {
		const struct graft_record *m = &g->record;
		const bool is_held = m->state == GRAFT_HELD;

		must(m->offset >= at, "grafts overlap");
		at = m->offset + m->length + PANDO__GRAFT_PAGE;
		must(m->length > 0 && at <= r->record.size, "a graft beyond the reservation");
		must((g->fd >= 0) == (m->state == GRAFT_WAITS && m->way == PANDO_GRAFT_MEMFD),
		     "a memfd is missing, or left");
		must((m->state == GRAFT_RESERVED) == (g->sender != NULL), "a slot without sender");
		must(!g->sender || g->sender->reserved == g, "a sender with another slot");
		*(is_held ? &held : &waiting) += 1;
		*(is_held ? &held_bytes : &waiting_bytes) += m->length;
		queued += m->state == GRAFT_WAITS || m->state == GRAFT_VOID;
	}
	for (const struct graft *g = r->queue; g; g = g->next_queued, queued--)
		must(!g->next_queued || g->next_queued->record.order > g->record.order,
		     "a queue out of order");
	must(queued == 0, "a queue with more or less than what waits");
	must(waiting == r->waiting && held == r->held && waiting_bytes == r->waiting_bytes &&
		     held_bytes == r->held_bytes,
	     "sums of a receiver's grafts");
}

void graft_check(struct broker *b, void (*must)(bool holds, const char *what))
{
	uint64_t waiting = 0, held = 0, waiting_bytes = 0, held_bytes = 0;

	for (struct client *c = b->clients; c; c = c->next) {
		must(!c->reserved || (c->reserved->sender == c &&
				      c->reserved->record.state == GRAFT_RESERVED),
		     "a slot that is another's");
		if (!c->receiver)
			continue;
		check_receiver(c->receiver, must);
		waiting += c->receiver->waiting;
		held += c->receiver->held;
		waiting_bytes += c->receiver->waiting_bytes;
		held_bytes += c->receiver->held_bytes;
	}
	must(waiting == b->grafts.waiting && held == b->grafts.held &&
		     waiting_bytes == b->grafts.waiting_bytes && held_bytes == b->grafts.held_bytes,
	     "sums of all grafts");
}
