/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Requests: from a packet to its answer.
 *
 * A packet that is malformed, or comes before HELLO, ends the connection, after an ERROR that says
 * why. A request that cannot be done is answered with an ERROR and the connection goes on. While
 * one is under way (client->busy), no other is brought; it is under way because a job works on it,
 * or because it is parked until somebody else's job is done and is then done from its beginning
 * again.
 *
 * After a restart each client sends the request again that it has no answer for, though the first
 * copy may lie unread in the socket; and what the dead broker had read comes behind what it left
 * unread. So copies of what this broker process has answered are known one by one, and dropped.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/inject.h"

#include "broker.h"
#include "log.h"

static void finish(struct client *c)
{
	const bool was_busy = c->busy;

	c->busy = false;
	if (c->taken_up)
		c->answered[c->answered_count++ % BROKER_ANSWERED] = c->seq;
	if (was_busy && !c->hung_up)
		c->broker->ops->idle(c);
}

void handler_answer(struct client *c, struct pando__msg *msg, const int *fds, unsigned int nfds)
{
	if (!c->hung_up)
		c->broker->ops->send(c, msg, fds, nfds);
	finish(c);
}

void handler_done(struct client *c, uint64_t value)
{
	struct pando__msg reply;

	pando__msg_init(&reply, PANDO__MSG_DONE, c->seq);
	reply.done.value = value;
	handler_answer(c, &reply, NULL, 0);
}

void handler_fail(struct client *c, int err, const char *text)
{
	struct broker *b = c->broker;
	struct pando__msg reply;

	b->errors_total++;
	if (err == -EACCES || err == -EDQUOT || err == -ESHUTDOWN)
		b->refused_total++;
	log_debug("client %" PRIu64 ": %s", c->record.id, text);
	pando__msg_init(&reply, PANDO__MSG_ERROR, c->seq ? c->seq : 1);
	/* A client of another version knows EPROTO and the two numbers beside it. */
	reply.error.error = err == -EPROTONOSUPPORT ? EPROTO : -err;
	reply.error.version_min = reply.error.version_max = PANDO__PROTO_VERSION;
	snprintf(reply.error.text, sizeof(reply.error.text), "%s", text);
	handler_answer(c, &reply, NULL, 0);
}

/* The end of a connection that did not keep to the protocol, or was not let in. */
static void refuse(struct client *c, int err, const char *text)
{
	if (err == -EPROTO)
		log_warn("client %" PRIu64 " (pid %d, uid %u) is dropped: %s", c->record.id, c->pid,
			 c->who.uid, text);
	handler_fail(c, err, text);
	c->hung_up = true;
	c->broker->ops->hangup(c);
}

int handler_park(struct client *c, const struct pando__msg *msg, struct parking *where)
{
	c->parked = malloc(msg->header.length);
	if (!c->parked)
		return pando__fail(ENOMEM, "the broker is out of memory");
	memcpy(c->parked, msg, msg->header.length);
	c->parked_at = where;
	c->park_next = NULL;
	*(where->last ? &where->last->park_next : &where->first) = c;
	where->last = c;
	c->busy = true;
	return 0;
}

void handler_unpark(struct client *c)
{
	struct parking *p = c->parked_at;
	struct client *previous = NULL, **link = &p->first;

	while (*link != c) {
		previous = *link;
		link = &previous->park_next;
	}
	*link = c->park_next;
	if (p->last == c)
		p->last = previous;
	free(c->parked);
	c->parked = NULL;
	c->parked_at = NULL;
}

static int request(struct client *c, const struct pando__msg *msg);

void handler_again(struct client *c, struct pando__msg *msg)
{
	int rc = request(c, msg);

	if (rc < 0)
		handler_fail(c, rc, pando_strerror_last());
}

void handler_resume(struct parking *where)
{
	struct parking now = *where;

	/* The list moves into this frame first: whoever has to wait again queues anew. */
	*where = (struct parking){0};
	for (struct client *c = now.first; c; c = c->park_next)
		c->parked_at = &now;
	while (now.first) {
		struct client *c = now.first;
		struct pando__msg msg;

		memset(&msg, 0, sizeof(msg));
		memcpy(&msg, c->parked, c->parked->header.length);
		handler_unpark(c);
		handler_again(c, &msg);
	}
}

static int close_request(struct client *c, const struct pando__msg *msg)
{
	struct attachment *a;

	client_heirs(c);
	a = client_attachment(c, msg->close.region_id);
	if (a) /* else it is closed already: by the same request, sent again */
		client_detach(a);
	PANDO_INJECT("broker.close.detached");
	handler_done(c, 0);
	return 0;
}

static int no_region(const char *name)
{
	return pando__fail(ENOENT, "there is no region \"%s\"; see: pando ls", name);
}

static int not_owner(const struct region *r, const struct client *c, const char *what)
{
	return pando__fail(EACCES, "region \"%s\" belongs to user %u, user %u may not %s it",
			   r->record.name, r->record.uid, c->who.uid, what);
}

static int remove_request(struct client *c, const struct pando__msg *msg)
{
	struct region *r = region_find(c->broker, msg->remove.name);

	if (!r && c->found_removed && c->found_removed == c->seq) {
		handler_done(c, 0);
		return 0;
	}
	if (!r)
		return no_region(msg->remove.name);
	if (r->state == REGION_CREATING)
		return handler_park(c, msg, &r->waiting);
	if (!access_owns(&r->record, &c->who))
		return not_owner(r, c, "remove");
	region_destroy(r, c);
	log_info("region \"%s\" was destroyed by user %u", r->record.name, c->who.uid);
	handler_done(c, 0);
	PANDO_INJECT("broker.destroy.answered");
	region_settle(r);
	return 0;
}

static int grant_request(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_grant *m = &msg->grant;
	struct region *r = region_find(c->broker, m->name);
	int rc;

	if (!r)
		return no_region(m->name);
	if (r->state == REGION_CREATING)
		return handler_park(c, msg, &r->waiting);
	if (!access_owns(&r->record, &c->who))
		return not_owner(r, c, "change the access list of");
	rc = access_grant(&r->record, m->kind, m->id, m->rights);
	if (rc < 0)
		return rc;
	region_put(r, false);
	PANDO_INJECT("broker.grant.put");
	handler_done(c, 0);
	return 0;
}

/* Returns 0 if it was answered or will be, else a negative errno with a sentence. */
static int request(struct client *c, const struct pando__msg *msg)
{
	switch (msg->header.type) {
	case PANDO__MSG_HELLO:
		return client_hello(c, msg);
	case PANDO__MSG_OPEN:
		return open_request(c, msg);
	case PANDO__MSG_CLOSE:
		return close_request(c, msg);
	case PANDO__MSG_RESIZE:
		return resize_request(c, msg);
	case PANDO__MSG_REMOVE:
		return remove_request(c, msg);
	case PANDO__MSG_GRANT:
		return grant_request(c, msg);
	case PANDO__MSG_LIST:
		return walk_regions(c, msg);
	case PANDO__MSG_CLIENTS:
		return walk_clients(c, msg);
	case PANDO__MSG_STATUS:
		return walk_status(c);
	case PANDO__MSG_GRAFT_LISTEN:
		return graft_listen(c, msg);
	case PANDO__MSG_GRAFT_RESERVE:
		return graft_reserve(c, msg);
	case PANDO__MSG_GRAFT_SEND:
		return graft_send(c, msg);
	case PANDO__MSG_GRAFT_CANCEL:
		return graft_cancel(c, msg);
	case PANDO__MSG_GRAFT_ACCEPT:
		return graft_accept(c, msg);
	case PANDO__MSG_GRAFT_TAKEN:
		return graft_taken(c, msg);
	case PANDO__MSG_GRAFT_RELEASE:
		return graft_release(c, msg);
	default: /* the parser lets nothing else through */
		return pando__fail(EPROTO, "unknown message type %u", msg->header.type);
	}
}

/* A HELLO of another version gets the versions that are spoken here. */
static void other_version(struct client *c, const struct pando__msg *msg)
{
	char text[PANDO__ERROR_MAX];

	snprintf(text, sizeof(text),
		 "the broker speaks protocol version %u, the client %u; use the libpando of the "
		 "broker's release",
		 PANDO__PROTO_VERSION, msg->header.version);
	refuse(c, -EPROTONOSUPPORT, text);
}

void handler_malformed(struct client *c, const char *why)
{
	c->broker->requests_total++;
	c->seq = 0;
	refuse(c, -EPROTO, why);
}

/*
 * For one that is taken up: true if the message is a copy of one that was answered, or was sent
 * behind a HELLO that the dead broker took with it and that will come again, with all that was
 * behind it.
 */
static bool comes_again(const struct client *c, const struct pando__msg *msg)
{
	for (unsigned int i = 0; i < BROKER_ANSWERED && i < c->answered_count; i++)
		if (c->answered[i] == msg->header.seq)
			return true;
	return !c->record.greeted && msg->header.type != PANDO__MSG_HELLO;
}

void handler_packet(struct client *c, const void *packet, size_t length, unsigned int nfds)
{
	struct pando__msg msg;
	char why[PANDO__PROTO_TEXT];
	int rc;

	rc = pando__msg_parse(PANDO__TO_BROKER, packet, length, nfds, &msg, why, sizeof(why));
	c->broker->requests_total++;
	if (rc == 0 && c->taken_up && comes_again(c, &msg))
		return;
	c->seq = length >= sizeof(msg.header) ? msg.header.seq : 0;
	PANDO_INJECT("broker.request.received");
	if (rc == -EPROTONOSUPPORT) {
		other_version(c, &msg);
		return;
	}
	if (rc == 0 && !c->record.greeted && msg.header.type != PANDO__MSG_HELLO) {
		snprintf(why, sizeof(why), "message type %u came before HELLO", msg.header.type);
		rc = -EPROTO;
	}
	if (rc < 0) {
		refuse(c, rc, why);
		return;
	}
	rc = request(c, &msg);
	if (rc < 0 && !c->record.greeted)
		refuse(c, rc, pando_strerror_last());
	else if (rc < 0)
		handler_fail(c, rc, pando_strerror_last());
}
