/* SPDX-License-Identifier: BSD-2-Clause */
/* Accounts per uid: a small hash table. See quota.h. */
#include "quota.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/fail.h"
#include "common/size.h"

#define BUCKETS (sizeof(((struct quota *)0)->buckets) / sizeof(struct quota_account *))

void quota_init(struct quota *q, const struct broker_config *config)
{
	memset(q, 0, sizeof(*q));
	q->config = config;
}

void quota_deinit(struct quota *q)
{
	for (size_t i = 0; i < BUCKETS; i++)
		while (q->buckets[i]) {
			struct quota_account *a = q->buckets[i];

			q->buckets[i] = a->next;
			free(a);
		}
}

/* The link that leads to the user's account, or to the end of its chain. */
static struct quota_account **find(const struct quota *q, uid_t uid)
{
	struct quota_account *const *link = &q->buckets[uid % BUCKETS];

	while (*link && (*link)->uid != uid)
		link = &(*link)->next;
	return (struct quota_account **)link;
}

static int refuse_memory(uid_t uid, uint64_t have, uint64_t more, uint64_t limit)
{
	char a[PANDO__SIZE_TEXT], b[PANDO__SIZE_TEXT], c[PANDO__SIZE_TEXT];

	return pando__fail(
		EDQUOT,
		"user %u has %s of memory in regions and may have %s, %s more do not fit; "
		"remove a region or have --quota-memory raised",
		uid, pando__size_format(have, a), pando__size_format(limit, b),
		pando__size_format(more, c));
}

static int refuse_count(uid_t uid, uint64_t have, const char *what, uint64_t limit)
{
	return pando__fail(EDQUOT,
			   "user %u has %" PRIu64 " %s and may have %" PRIu64
			   "; end one or have --quota-%s raised",
			   uid, have, what, limit, what);
}

int quota_charge(struct quota *q, uid_t uid, uint64_t memory, unsigned int regions,
		 unsigned int clients)
{
	struct quota_account now = quota_of(q, uid);
	struct config_quota limit = config_quota_for(q->config, uid);

	if (memory && limit.memory &&
	    (now.memory > limit.memory || memory > limit.memory - now.memory))
		return refuse_memory(uid, now.memory, memory, limit.memory);
	if (regions && limit.regions && now.regions + regions > limit.regions)
		return refuse_count(uid, now.regions, "regions", limit.regions);
	if (clients && limit.clients && now.clients + clients > limit.clients)
		return refuse_count(uid, now.clients, "clients", limit.clients);
	return quota_charge_found(q, uid, memory, regions, clients);
}

int quota_charge_found(struct quota *q, uid_t uid, uint64_t memory, unsigned int regions,
		       unsigned int clients)
{
	struct quota_account **link = find(q, uid);

	if (!*link) {
		struct quota_account *a = calloc(1, sizeof(*a));

		if (!a)
			return pando__fail(ENOMEM, "the broker is out of memory");
		a->uid = uid;
		*link = a;
	}
	(*link)->memory += memory;
	(*link)->regions += regions;
	(*link)->clients += clients;
	return 0;
}

void quota_discharge(struct quota *q, uid_t uid, uint64_t memory, unsigned int regions,
		     unsigned int clients)
{
	struct quota_account **link = find(q, uid), *a = *link;

	if (!a)
		return;
	assert(a->memory >= memory && a->regions >= regions && a->clients >= clients);
	a->memory -= memory;
	a->regions -= regions;
	a->clients -= clients;
	if (a->memory == 0 && a->regions == 0 && a->clients == 0) {
		*link = a->next;
		free(a);
	}
}

struct quota_account quota_of(const struct quota *q, uid_t uid)
{
	struct quota_account *a = *find(q, uid);

	return a ? *a : (struct quota_account){.uid = uid};
}
