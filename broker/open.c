/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * OPEN: finding or making a region, and attaching to it.
 *
 * Making one: everything that can be checked is checked and booked first (rights, quota,
 * addresses), on the loop's thread; then a job makes the files and takes the memory. Meanwhile the
 * name is taken: others who ask for it wait. Attaching is a few stores and one answer with three
 * descriptors, whatever the size.
 *
 * A client is attached once to a region however often it opens it, so that a request which is sent
 * again after a restart gets the slot that it has.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/inject.h"

#include "broker.h"
#include "log.h"

#define BOTH (PANDO_RIGHT_READ | PANDO_RIGHT_WRITE)

static void answer(struct client *c, struct region *r, const struct attachment *a, uint32_t flags,
		   bool made)
{
	const int fds[3] = {r->ledger_ro, r->slots_fd, a && a->readonly ? r->heap_ro : r->heap_fd};
	struct pando__msg reply;
	struct pando__msg_opened *m = &reply.opened;

	pando__msg_init(&reply, PANDO__MSG_OPENED, c->seq);
	m->region_id = r->record.id;
	m->base = r->record.base;
	m->max_size = r->record.max_size;
	m->committed = r->record.committed;
	m->ledger_size = PANDO__LEDGER_SIZE;
	m->slots_size = PANDO__SLOTS_SIZE;
	m->generation = a ? a->generation : 0;
	m->slot = a ? a->slot : UINT32_MAX;
	m->backend = r->record.backend;
	m->page_size = r->backend->page_size;
	m->readonly = a && a->readonly;
	m->created = made;
	snprintf(m->why, sizeof(m->why), "%s", r->why);
	handler_answer(c, &reply, fds, a && !(flags & PANDO__OPEN_INHERITED) ? 3 : 0);
}

int open_attach(struct client *c, struct region *r, uint32_t flags, bool made)
{
	struct attachment *a = client_attachment(c, r->record.id);
	const bool readonly = flags & PANDO_READONLY;
	int rc;

	if (flags & PANDO__OPEN_NO_ATTACH) {
		answer(c, r, NULL, flags, made);
		return 0;
	}
	if (a && a->readonly && !readonly) {
		ledger_set_readonly(r, a->slot, false);
		a->readonly = false;
	}
	if (!a) {
		a = calloc(1, sizeof(*a));
		if (!a)
			return pando__fail(ENOMEM, "the broker is out of memory");
		rc = ledger_take(r, c, readonly, &a->slot, &a->generation);
		if (rc < 0) {
			free(a);
			return rc;
		}
		a->client = c;
		a->region = r;
		a->readonly = readonly;
		a->next = c->attachments;
		c->attachments = a;
		c->regions++;
		r->users++;
	}
	answer(c, r, a, flags, made);
	PANDO_INJECT("broker.attach.answered");
	return 0;
}

static int check_rights(const struct client *c, const struct region *r, uint32_t flags)
{
	const unsigned int have = access_rights(&r->record, &c->who);
	const bool look = flags & (PANDO_READONLY | PANDO__OPEN_NO_ATTACH);
	const unsigned int need = look ? PANDO_RIGHT_READ : BOTH;

	if ((have & need) == need)
		return 0;
	return pando__fail(EACCES, "user %u may not %s region \"%s\" of user %u (mode %04o)%s",
			   c->who.uid, look ? "read" : "write to", r->record.name, r->record.uid,
			   r->record.mode,
			   !look && (have & PANDO_RIGHT_READ)
				   ? "; it may be opened with PANDO_READONLY"
				   : "; its owner can change that with pando_region_grant()");
}

static int open_existing(struct client *c, struct region *r, const struct pando__msg *msg)
{
	const uint32_t flags = msg->open.flags;
	const bool mine = r->record.creator == c->record.id && r->record.creator_seq == c->seq;
	int rc;

	if (mine) /* this very request made it; its answer was lost with the last broker */
		return open_attach(c, r, flags, true);
	if (flags & PANDO_EXCL)
		return pando__fail(EEXIST, "region \"%s\" exists already, made by user %u",
				   r->record.name, r->record.uid);
	rc = check_rights(c, r, flags);
	return rc < 0 ? rc : open_attach(c, r, flags, false);
}

/* A forked child, or (rarely) a client that names a region by its id. */
static int open_inherited(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_open *m = &msg->open;
	struct region *r = region_by_id(c->broker, m->region_id);
	struct client *parent =
		c->record.of_parent ? client_find(c->broker, c->record.parent) : NULL;
	struct attachment *a;
	int rc;

	if (!r || r->state != REGION_LIVE || r->announced)
		return pando__fail(ENOENT, "there is no region with id %" PRIu64 " any more",
				   m->region_id);
	a = parent ? client_attachment(parent, m->region_id) : NULL;
	rc = a && (!a->readonly || (m->flags & PANDO_READONLY)) ? 0 : check_rights(c, r, m->flags);
	return rc < 0 ? rc : open_attach(c, r, m->flags, false);
}

/* What can be said about the request alone. Fills the geometry of the record. */
static int check_geometry(struct region_record *r, const struct pando__msg_open *m,
			  const struct pando__backend *backend)
{
	const uint64_t page = backend->page_size;

	if (m->size == 0)
		return pando__fail(EINVAL, "region \"%s\" cannot have size 0", m->name);
	if (m->size > INT64_MAX - PANDO__GIB || m->max_size > INT64_MAX - PANDO__GIB)
		return pando__fail(EINVAL, "region \"%s\" cannot have %" PRIu64 " bytes", m->name,
				   m->size > m->max_size ? m->size : m->max_size);
	if (m->max_size && m->size > m->max_size)
		return pando__fail(EINVAL,
				   "region \"%s\": the size of %" PRIu64
				   " bytes is over the maximum of %" PRIu64,
				   m->name, m->size, m->max_size);
	if (m->mode & ~0777u)
		return pando__fail(EINVAL, "region \"%s\": mode %o is not made of permission bits",
				   m->name, m->mode);
	r->committed = r->target = (m->size + page - 1) / page * page;
	r->max_size = m->max_size > r->committed ? m->max_size : r->committed;
	r->max_size = (r->max_size + PANDO__GIB - 1) / PANDO__GIB * PANDO__GIB;
	return 0;
}

static const struct pando__backend *pick_backend(struct broker *b, const struct pando__msg_open *m,
						 char *why, size_t why_size)
{
	const uint32_t id = m->backend != PANDO_BACKEND_AUTO ? m->backend : b->config->backend;
	const struct pando__backend *backend;

	why[0] = '\0';
	if (id == PANDO_BACKEND_AUTO)
		return pando__backend_auto(m->size, why, why_size);
	backend = pando__backend_find(id);
	if (!backend)
		pando__fail(EOPNOTSUPP,
			    "backend %s is not part of this broker; see: pando doctor, or use auto",
			    pando_backend_name(id));
	return backend;
}

static int take_address(struct region *r, uint64_t wanted)
{
	void *other;
	int rc = window_take(&r->broker->window, wanted, r->record.max_size, r, &r->record.base,
			     &other);

	if (rc == -EADDRINUSE)
		rc = pando__fail(EADDRINUSE,
				 "address 0x%" PRIx64 " is taken by region \"%s\" (0x%" PRIx64
				 ", %" PRIu64 " bytes)",
				 wanted, ((struct region *)other)->record.name,
				 ((struct region *)other)->record.base,
				 ((struct region *)other)->record.max_size);
	r->placed = rc == 0;
	return rc;
}

/* Books everything for a new region and starts the job that makes it. */
static int begin(struct client *c, const struct pando__msg *msg, const struct region_record *record,
		 const char *why)
{
	struct broker *b = c->broker;
	struct region *r;
	int rc;

	rc = quota_charge(&b->quota, record->uid, record->committed, 1, 0);
	if (rc == -EDQUOT && b->frees > 0)
		return handler_park(c, msg,
				    &b->freeing); /* until what was destroyed has come back */
	if (rc < 0)
		return rc;
	r = region_new(b, record);
	if (!r) {
		quota_discharge(&b->quota, record->uid, record->committed, 1, 0);
		return -ENOMEM;
	}
	r->charged = record->committed;
	snprintf(r->why, sizeof(r->why), "%s", why);
	rc = take_address(r, msg->open.address);
	if (rc < 0) {
		region_free(r);
		return rc;
	}
	r->job.flags = msg->open.flags;
	PANDO_INJECT("broker.open.booked");
	job_start(r, JOB_CREATE, c, 0, r->record.committed);
	return 0;
}

static int create(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_open *m = &msg->open;
	struct region_record record = {.version = RECORD_VERSION};
	char why[PANDO__PROTO_TEXT];
	const struct pando__backend *backend;
	int rc;

	if (c->broker->draining)
		return pando__fail(ESHUTDOWN,
				   "the broker is about to end and makes no new regions");
	if (m->set_gid && c->who.uid != 0 && !access_member(&c->who, m->gid))
		return pando__fail(
			EACCES,
			"user %u is not a member of group %u, which region \"%s\" shall have",
			c->who.uid, m->gid, m->name);
	backend = pick_backend(c->broker, m, why, sizeof(why));
	if (!backend)
		return -EOPNOTSUPP;
	rc = check_geometry(&record, m, backend);
	if (rc < 0)
		return rc;
	record.backend = backend->id;
	record.id = broker_new_id(c->broker);
	record.created_ns = broker_now();
	record.creator = c->record.id;
	record.creator_seq = c->seq;
	record.uid = c->who.uid;
	record.gid = m->set_gid ? m->gid : c->who.gid;
	record.mode = m->mode ? m->mode : 0600;
	record.flags = m->flags & (PANDO_TRANSIENT | PANDO_HEAP);
	memcpy(record.name, m->name, sizeof(record.name));
	return begin(c, msg, &record, why);
}

int open_request(struct client *c, const struct pando__msg *msg)
{
	const struct pando__msg_open *m = &msg->open;
	struct region *r;

	if (m->flags & PANDO__OPEN_INHERITED)
		return open_inherited(c, msg);
	r = region_find(c->broker, m->name);
	if (r && r->state == REGION_CREATING)
		return handler_park(c, msg, &r->waiting);
	if (r)
		return open_existing(c, r, msg);
	if (m->flags & PANDO_CREATE)
		return create(c, msg);
	return pando__fail(ENOENT,
			   "there is no region \"%s\"; make it with PANDO_CREATE, or see: pando ls",
			   m->name);
}
