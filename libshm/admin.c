/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Requests that map nothing: destroying, granting, listing, and asking the broker how it is.
 *
 * Each is one call; the walks are as many as it takes to fill the caller's array, a batch of
 * PANDO__PROTO_BATCH a time. A walk's cursor is the id of the last entry that was handed out; ids
 * only grow, so nothing is seen twice.
 */
#include "client.h"

#include <errno.h>
#include <string.h>

#include "common/fail.h"

static int bad_name(const char *name)
{
	return pando__fail(
		EINVAL,
		"\"%.80s\" is not a region name: 1 to %d of A-Z a-z 0-9 . _ - and neither . nor - "
		"in front",
		name, PANDO_REGION_NAME_MAX);
}

/* One call, from taking the turn to giving it back. */
static int ask(struct pando *p, struct pando__msg *request, enum pando__msg_type expect,
	       struct pando__msg *reply)
{
	int rc = pando__begin(p);

	if (rc == 0)
		rc = pando__call(p, request, expect, 0, reply);
	pando__end(p);
	return rc;
}

int pando_region_destroy(struct pando *p, const char *name)
{
	struct pando__msg request, reply;

	if (!pando__region_name_ok(name))
		return bad_name(name);
	pando__msg_init(&request, PANDO__MSG_REMOVE, 0);
	strcpy(request.remove.name, name);
	return ask(p, &request, PANDO__MSG_DONE, &reply);
}

int pando_region_grant(struct pando *p, const char *name, enum pando_grantee kind, uint32_t id,
		       unsigned int rights)
{
	struct pando__msg request, reply;

	if (!pando__region_name_ok(name))
		return bad_name(name);
	if (kind != PANDO_GRANT_UID && kind != PANDO_GRANT_GID)
		return pando__fail(EINVAL, "%d is neither PANDO_GRANT_UID nor PANDO_GRANT_GID",
				   (int)kind);
	if (rights & ~(PANDO_RIGHT_READ | PANDO_RIGHT_WRITE))
		return pando__fail(EINVAL,
				   "0x%x has rights that do not exist; use PANDO_RIGHT_READ and "
				   "PANDO_RIGHT_WRITE",
				   rights);
	pando__msg_init(&request, PANDO__MSG_GRANT, 0);
	strcpy(request.grant.name, name);
	request.grant.kind = kind;
	request.grant.id = id;
	request.grant.rights = rights;
	return ask(p, &request, PANDO__MSG_DONE, &reply);
}

int pando_region_lookup(struct pando *p, const char *name, struct pando_region_info *info)
{
	struct pando__msg request, reply;
	int rc;

	if (!pando__region_name_ok(name))
		return bad_name(name);
	pando__msg_init(&request, PANDO__MSG_LIST, 0);
	strcpy(request.walk.name, name);
	rc = ask(p, &request, PANDO__MSG_REGIONS, &reply);
	if (rc < 0)
		return rc;
	if (reply.regions.count == 0)
		return pando__fail(ENOENT, "there is no region \"%s\"; see pando ls", name);
	*info = reply.regions.info[0];
	return 0;
}

/*
 * Fills `entries` (of entry_size bytes, their id first) from batches of the broker, each asked for
 * behind the last entry that came. Returns how many.
 */
static int walk(struct pando *p, enum pando__msg_type ask_type, enum pando__msg_type reply_type,
		uint64_t *cursor, void *entries, size_t entry_size, unsigned int max)
{
	struct pando__msg request, reply;
	unsigned int have = 0;

	while (have < max) {
		const bool regions = reply_type == PANDO__MSG_REGIONS;
		const void *batch = regions ? (void *)reply.regions.info : reply.clients.info;
		char *at = (char *)entries + have * entry_size;
		unsigned int n;
		int rc;

		pando__msg_init(&request, ask_type, 0);
		request.walk.cursor = *cursor;
		rc = ask(p, &request, reply_type, &reply);
		if (rc < 0)
			return rc;
		n = regions ? reply.regions.count : reply.clients.count;
		n = n < max - have ? n : max - have;
		if (n == 0)
			break;
		memcpy(at, batch, n * entry_size);
		have += n;
		memcpy(cursor, at + (n - 1) * entry_size, sizeof(*cursor));
	}
	return (int)have;
}

int pando_region_list(struct pando *p, uint64_t *cursor, struct pando_region_info *info,
		      unsigned int max)
{
	static_assert(offsetof(struct pando_region_info, id) == 0, "walk() finds the id there");
	return walk(p, PANDO__MSG_LIST, PANDO__MSG_REGIONS, cursor, info, sizeof(*info), max);
}

int pando_clients(struct pando *p, uint64_t *cursor, struct pando_client_info *info,
		  unsigned int max)
{
	static_assert(offsetof(struct pando_client_info, id) == 0, "walk() finds the id there");
	return walk(p, PANDO__MSG_CLIENTS, PANDO__MSG_CLIENT_LIST, cursor, info, sizeof(*info),
		    max);
}

int pando_broker_info(struct pando *p, struct pando_broker_info *info)
{
	struct pando__msg request, reply;
	int rc;

	pando__msg_init(&request, PANDO__MSG_STATUS, 0);
	rc = ask(p, &request, PANDO__MSG_STATUS_REPLY, &reply);
	if (rc == 0)
		*info = reply.status.info;
	return rc;
}
