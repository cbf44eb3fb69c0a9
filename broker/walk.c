/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LIST, CLIENTS, STATUS: looking without touching.
 *
 * Walks go by ascending id and the cursor is the last id that was seen, so no state is kept between
 * two calls and nothing is seen twice. A name that is asked for and missing, or hidden from the
 * caller, is an ERROR on the first call (cursor 0). A name finds the region that has it now;
 * destroyed ones, which others may still use, are in the walk over all.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/fail.h"
#include "config.h"

#include "broker.h"

/* Root and the broker's own user see everything. */
static bool sees_all(const struct client *c)
{
	return c->who.uid == 0 || c->who.uid == c->broker->config->owner;
}

static bool sees(const struct client *c, const struct region *r)
{
	return r->state == REGION_LIVE &&
	       (sees_all(c) || r->record.uid == c->who.uid || access_rights(&r->record, &c->who));
}

static void region_info(struct pando_region_info *info, const struct region *r)
{
	info->id = r->record.id;
	info->base = r->record.base;
	info->size = r->record.committed;
	info->max_size = r->record.max_size;
	info->created_ns = r->record.created_ns;
	info->backend = r->record.backend;
	info->page_size = r->backend->page_size;
	info->uid = r->record.uid;
	info->gid = r->record.gid;
	info->mode = r->record.mode;
	info->clients = r->users;
	info->flags = r->record.flags;
	info->grants = r->record.grant_count;
	memcpy(info->name, r->record.name, sizeof(info->name));
}

/* The region that is asked for by name. Returns 0 or a negative errno with a sentence. */
static int named(struct client *c, const char *name, struct region **out)
{
	struct region *r = region_find(c->broker, name);

	if (!r || r->state != REGION_LIVE)
		return pando__fail(ENOENT, "there is no region \"%s\"; see: pando ls", name);
	if (!sees(c, r))
		return pando__fail(EACCES, "user %u has no right to region \"%s\" of user %u",
				   c->who.uid, name, r->record.uid);
	*out = r;
	return 0;
}

int walk_regions(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_walk *m = &msg->walk;
	struct region *only = NULL;
	struct pando__msg reply;
	int rc = m->name[0] ? named(c, m->name, &only) : 0;

	if (rc < 0 && m->cursor == 0)
		return rc;
	pando__msg_init(&reply, PANDO__MSG_REGIONS, c->seq);
	for (struct region *r = c->broker->regions; r && rc == 0; r = r->next) {
		if (r->record.id <= m->cursor || (only && r != only) || !sees(c, r))
			continue;
		region_info(&reply.regions.info[reply.regions.count++], r);
		if (reply.regions.count == PANDO__PROTO_BATCH)
			break;
	}
	handler_answer(c, &reply, NULL, 0);
	return 0;
}

static void client_info(struct pando_client_info *info, const struct client *c)
{
	info->id = c->record.id;
	info->pid = c->pid;
	info->uid = c->who.uid;
	info->gid = c->who.gid;
	info->regions = c->regions;
	info->parent = c->record.parent;
	info->connected_ns = c->record.connected_ns;
	memcpy(info->program, c->record.program, sizeof(info->program));
	if (!c->receiver)
		return;
	info->grafts_waiting = c->receiver->waiting;
	info->grafts_held = c->receiver->held;
	info->grafts_waiting_bytes = c->receiver->waiting_bytes;
	info->grafts_held_bytes = c->receiver->held_bytes;
}

int walk_clients(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_walk *m = &msg->walk;
	struct region *only = NULL;
	struct pando__msg reply;
	int rc = m->name[0] ? named(c, m->name, &only) : 0;

	if (rc < 0 && m->cursor == 0)
		return rc;
	pando__msg_init(&reply, PANDO__MSG_CLIENT_LIST, c->seq);
	for (struct client *o = c->broker->clients; o && rc == 0; o = o->next) {
		if (o->record.id <= m->cursor || !o->record.greeted || o->hung_up || o->dead)
			continue;
		if (o->who.uid != c->who.uid && !sees_all(c))
			continue;
		if (only && !client_attachment(o, only->record.id))
			continue;
		client_info(&reply.clients.info[reply.clients.count++], o);
		if (reply.clients.count == PANDO__PROTO_BATCH)
			break;
	}
	handler_answer(c, &reply, NULL, 0);
	return 0;
}

int walk_status(struct client *c)
{
	struct broker *b = c->broker;
	struct config_quota quota = config_quota_for(b->config, c->who.uid);
	struct pando_broker_info *info;
	struct pando__msg reply;

	pando__msg_init(&reply, PANDO__MSG_STATUS_REPLY, c->seq);
	info = &reply.status.info;
	info->epoch = b->epoch;
	info->window_base = b->window.base;
	info->window_size = b->window.size;
	info->clients = b->client_count;
	info->regions = b->region_count;
	info->committed_bytes = b->committed;
	info->clients_total = b->clients_total;
	info->deaths_total = b->deaths_total;
	info->requests_total = b->requests_total;
	info->errors_total = b->errors_total;
	info->refused_total = b->refused_total;
	info->reap_ns_last = b->reap_ns_last;
	info->reap_ns_max = b->reap_ns_max;
	info->heap_reaps_total = b->heap_reaps_total;
	info->heap_objects_total = b->heap_objects_total;
	info->heap_bytes_total = b->heap_bytes_total;
	info->heap_reap_ns_last = b->heap_reap_ns_last;
	info->heap_reap_ns_max = b->heap_reap_ns_max;
	info->grafts_total = b->grafts.total;
	info->grafts_bytes_total = b->grafts.bytes_total;
	info->grafts_mmap_total = b->grafts.mmap_total;
	info->grafts_refused_total = b->grafts.refused_total;
	info->grafts_lost_total = b->grafts.lost_total;
	info->grafts_cleared_total = b->grafts.cleared_total;
	info->grafts_waiting = b->grafts.waiting;
	info->grafts_waiting_bytes = b->grafts.waiting_bytes;
	info->grafts_held = b->grafts.held;
	info->grafts_held_bytes = b->grafts.held_bytes;
	info->quota_memory = quota.memory;
	info->quota_regions = quota.regions;
	info->quota_clients = quota.clients;
	info->broker_pid = getpid();
	info->supervisor_pid = b->store ? store_supervisor_pid(b->store) : 0;
	info->default_backend = b->config->backend != PANDO_BACKEND_AUTO
					? b->config->backend
					: pando__backend_auto(1, NULL, 0)->id;
	info->drain = b->draining;
	strncpy(info->version, pando_version(), sizeof(info->version) - 1);
	handler_answer(c, &reply, NULL, 0);
	return 0;
}
