/* SPDX-License-Identifier: BSD-2-Clause */
/* Mode bits and access lists. See access.h. */
#include "access.h"

#include <errno.h>

#include "common/fail.h"

#define BOTH (PANDO_RIGHT_READ | PANDO_RIGHT_WRITE)

bool access_member(const struct identity *who, gid_t gid)
{
	if (who->gid == gid)
		return true;
	for (unsigned int i = 0; i < who->group_count; i++)
		if (who->groups[i] == gid)
			return true;
	return false;
}

unsigned int access_rights(const struct region_record *r, const struct identity *who)
{
	unsigned int rights;

	if (who->uid == 0)
		return BOTH;
	if (who->uid == r->uid)
		rights = r->mode >> 6;
	else if (access_member(who, r->gid))
		rights = r->mode >> 3;
	else
		rights = r->mode;
	for (uint32_t i = 0; i < r->grant_count; i++) {
		const struct region_grant *g = &r->grants[i];

		if (g->kind == PANDO_GRANT_UID ? g->id == who->uid : access_member(who, g->id))
			rights |= g->rights;
	}
	return rights & BOTH;
}

bool access_owns(const struct region_record *r, const struct identity *who)
{
	return who->uid == 0 || who->uid == r->uid;
}

int access_grant(struct region_record *r, uint32_t kind, uint32_t id, uint32_t rights)
{
	uint32_t i = 0;

	while (i < r->grant_count && (r->grants[i].kind != kind || r->grants[i].id != id))
		i++;
	if (rights == 0) {
		if (i < r->grant_count) {
			r->grants[i] = r->grants[--r->grant_count];
			r->grants[r->grant_count] = (struct region_grant){0};
		}
		return 0;
	}
	if (i == REGION_MAX_GRANTS)
		return pando__fail(ENOSPC,
				   "the access list of region \"%s\" has its %u entries already; "
				   "grant a group instead",
				   r->name, REGION_MAX_GRANTS);
	r->grants[i] = (struct region_grant){.kind = kind, .id = id, .rights = rights};
	if (i == r->grant_count)
		r->grant_count++;
	return 0;
}
