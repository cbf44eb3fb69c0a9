/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Clients: coming, saying hello, going.
 *
 * Who a client is, its socket says (SO_PEERCRED): nothing that it claims itself counts, except for
 * display. One claim is checked and then used: a forked child names its parent; if /proc agrees at
 * that moment that the parent's process is its parent, the child may have what its parent is
 * attached to, since it has the mappings anyway (its own uid may have no right to the region: a
 * server that gave up root).
 *
 * client_gone() is the only way out, whatever the reason: it is made so that it cannot fail.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/file.h"
#include "common/atomic.h"
#include "common/inject.h"

#include "broker.h"
#include "log.h"

static struct client **bucket(struct broker *b, uint64_t id)
{
	return &b->buckets[id % BROKER_CLIENT_BUCKETS];
}

struct client *client_find(struct broker *b, uint64_t id)
{
	struct client *c = *bucket(b, id);

	while (c && c->record.id != id)
		c = c->hash_next;
	return c;
}

int client_read_process(pid_t pid, uint64_t *start_time, pid_t *parent)
{
	char path[32], text[1024], *at;
	unsigned long long start;
	int rc, ppid;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	rc = pando__read_text(path, text, sizeof(text));
	if (rc < 0)
		return rc;
	at = strrchr(text, ')'); /* the name before it may contain anything */
	/* Fields 3 (state), 4 (parent), ... 22 (start time) follow. */
	if (!at || sscanf(at + 1,
			  " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
			  "%*d %llu",
			  &ppid, &start) != 2)
		return -EINVAL;
	*start_time = start;
	*parent = ppid;
	return 0;
}

struct client *client_new(struct broker *b, uint64_t id, const struct identity *who, pid_t pid)
{
	struct client *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->broker = b;
	c->who = *who;
	c->pid = pid;
	c->passed = -1;
	c->record.version = RECORD_VERSION;
	c->record.id = id ? id : broker_new_id(b);
	c->record.connected_ns = broker_now();
	c->previous = b->last_client;
	while (c->previous && c->previous->record.id > c->record.id)
		c->previous = c->previous->previous;
	c->next = c->previous ? c->previous->next : b->clients;
	*(c->previous ? &c->previous->next : &b->clients) = c;
	*(c->next ? &c->next->previous : &b->last_client) = c;
	c->hash_next = *bucket(b, c->record.id);
	*bucket(b, c->record.id) = c;
	b->client_count++;
	return c;
}

void client_put(struct client *c, const int *fds, unsigned int nfds)
{
	broker_put(c->broker, STORE_CLIENT, c->record.id, &c->record, sizeof(c->record), fds, nfds);
}

struct attachment *client_attachment(struct client *c, uint64_t region_id)
{
	struct attachment *a = c->attachments;

	while (a && a->region->record.id != region_id)
		a = a->next;
	return a;
}

/* Gives the slot back; where there is a heap, it is free when that has been reaped. */
static void release(struct attachment *a)
{
	heap_release(a->region, a->slot, a->readonly);
	a->released = true;
	a->region->users--;
	a->region->holds++;
}

void client_detach(struct attachment *a)
{
	struct attachment **link = &a->client->attachments;
	struct region *r = a->region;

	if (!a->released)
		release(a);
	while (*link != a)
		link = &(*link)->next;
	*link = a->next;
	a->client->regions--;
	r->holds--;
	free(a);
	region_settle(r);
}

/* What was under way for it ends without an answer. */
static void abandon_request(struct client *c)
{
	if (c->job) { /* the job ends soon, and finds nobody to tell */
		pando__store_relaxed(&c->job->cancelled, 1);
		c->job->client = NULL;
		c->job = NULL;
	}
	if (c->parked)
		handler_unpark(c);
	c->busy = false;
}

static void count_death(struct broker *b, uint64_t noticed_ns)
{
	b->deaths_total++;
	b->reap_ns_last = broker_now() - noticed_ns;
	if (b->reap_ns_last > b->reap_ns_max)
		b->reap_ns_max = b->reap_ns_last;
}

void client_died(struct client *c, uint64_t noticed_ns)
{
	c->dead = true;
	abandon_request(c);
	for (struct attachment *a = c->attachments; a; a = a->next)
		release(a);
	graft_gone(c);
	PANDO_INJECT("broker.died.released");
	if (c->attachments)
		count_death(c->broker, noticed_ns);
	log_debug("client %" PRIu64 " (pid %d) has died, a child has its connection", c->record.id,
		  c->pid);
}

static void unlink_client(struct client *c)
{
	struct broker *b = c->broker;
	struct client **link = bucket(b, c->record.id);

	while (*link != c)
		link = &(*link)->hash_next;
	*link = c->hash_next;
	*(c->previous ? &c->previous->next : &b->clients) = c->next;
	*(c->next ? &c->next->previous : &b->last_client) = c->previous;
	b->client_count--;
}

void client_heirs(struct client *c)
{
	const uint32_t ends = PANDO_TRANSIENT | PANDO_REGION_DESTROYED;
	const struct attachment *a = c->attachments;

	while (a && (a->region->users + a->region->holds > 1 || !(a->region->record.flags & ends)))
		a = a->next;
	if (a && c->broker->ops->heirs)
		c->broker->ops->heirs(c);
}

void client_gone(struct client *c, uint64_t noticed_ns)
{
	struct broker *b = c->broker;
	const bool attached = c->attachments && !c->dead;

	PANDO_INJECT("broker.gone.begin");
	client_heirs(c);
	abandon_request(c);
	while (c->attachments) {
		client_detach(c->attachments);
		PANDO_INJECT("broker.gone.detached");
	}
	graft_gone(c);
	/* Killed before this: the successor gets the record and a connection that has hung up. */
	broker_forget(b, STORE_CLIENT, c->record.id);
	PANDO_INJECT("broker.gone.forgotten");
	if (c->record.greeted)
		quota_discharge(&b->quota, c->who.uid, 0, 0, 1);
	unlink_client(c);
	if (attached)
		count_death(b, noticed_ns);
	log_debug("client %" PRIu64 " (pid %d) is gone", c->record.id, c->pid);
	free(c->who.groups);
	free(c);
}

/* True if the process that it names as its parent is its parent. */
static bool parent_true(struct client *c, uint64_t parent)
{
	struct client *p = client_find(c->broker, parent);

	return p && p != c && p->pid > 0 && p->pid == c->parent_pid;
}

/* Who is not let in. Returns 0 or a negative errno with a sentence. */
static int admit(struct client *c, const struct pando__msg_hello *m)
{
	struct broker *b = c->broker;

	if (b->config->embedded && c->who.uid != b->config->owner)
		return pando__fail(
			EACCES,
			"this broker serves the program that started it and user %u only; "
			"start pandod for several users",
			b->config->owner);
	if (b->draining && !(m->flags & PANDO__HELLO_FORKED))
		return pando__fail(ESHUTDOWN,
				   "the broker is about to end and takes no new clients");
	return quota_charge(&b->quota, c->who.uid, 0, 0, 1);
}

static int greet(struct client *c, const struct pando__msg_hello *m)
{
	struct broker *b = c->broker;
	int rc = admit(c, m);

	if (rc < 0)
		return rc;
	c->record.greeted = 1;
	c->record.parent = m->parent;
	memcpy(c->record.program, m->program, sizeof(c->record.program));
	for (char *s = c->record.program; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			*s = '?';
	c->record.of_parent = m->parent && parent_true(c, m->parent);
	b->clients_total++;
	client_put(c, NULL, 0);
	PANDO_INJECT("broker.hello.put");
	log_debug("client %" PRIu64 " is \"%s\", pid %d, uid %u", c->record.id, c->record.program,
		  c->pid, c->who.uid);
	return 0;
}

int client_hello(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_hello *m = &msg->hello;
	struct pando__msg reply;

	if (m->version_min > PANDO__PROTO_VERSION || m->version_max < PANDO__PROTO_VERSION)
		return pando__fail(
			EPROTONOSUPPORT,
			"the broker speaks protocol version %u, the client %u to %u; use the "
			"libpando of the broker's release",
			PANDO__PROTO_VERSION, m->version_min, m->version_max);
	if (!c->record.greeted) { /* a second HELLO is one that was sent again: the same answer */
		int rc = greet(c, m);

		if (rc < 0)
			return rc;
	}
	pando__msg_init(&reply, PANDO__MSG_WELCOME, c->seq);
	reply.welcome.client_id = c->record.id;
	reply.welcome.epoch = c->broker->epoch;
	reply.welcome.window_base = c->broker->window.base;
	reply.welcome.window_size = c->broker->window.size;
	reply.welcome.broker_pid = getpid();
	reply.welcome.version = PANDO__PROTO_VERSION;
	handler_answer(c, &reply, NULL, 0);
	return 0;
}

void client_notice(struct client *c, enum pando__notice notice)
{
	struct pando__msg msg;

	if (c->hung_up)
		return;
	pando__msg_init(&msg, PANDO__MSG_NOTICE, 0);
	msg.notice.notice = notice;
	msg.notice.epoch = c->broker->epoch;
	c->broker->ops->send(c, &msg, NULL, 0);
}
