/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What each user takes of the broker, and how much of it he may.
 *
 * One account per uid that has anything; it goes when it is empty. Memory is the committed size of
 * the regions that the user owns, counted from the moment when it is asked for until it has been
 * given back. A charge is checked and booked in one step: there is no moment between in which
 * another could slip through. Limits come from the configuration; root and the broker's own user
 * have none unless it names them. One thread.
 */
#ifndef PANDO_BROKER_QUOTA_H
#define PANDO_BROKER_QUOTA_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"

struct quota_account {
	struct quota_account *next;
	uid_t uid;
	uint64_t memory, regions, clients;
};

struct quota {
	const struct broker_config *config;
	struct quota_account *buckets[64];
};

void quota_init(struct quota *q, const struct broker_config *config);
void quota_deinit(struct quota *q);

/*
 * Books so much more for the user. Returns 0; -EDQUOT with a sentence that says which limit;
 * -ENOMEM. On failure nothing is booked.
 */
int quota_charge(struct quota *q, uid_t uid, uint64_t memory, unsigned int regions,
		 unsigned int clients);

/*
 * Books it whatever the limit says: for what a restarted broker finds in place. Returns 0 or
 * -ENOMEM.
 */
int quota_charge_found(struct quota *q, uid_t uid, uint64_t memory, unsigned int regions,
		       unsigned int clients);

/* Takes so much off. More than was booked is a bug of the caller's. */
void quota_discharge(struct quota *q, uid_t uid, uint64_t memory, unsigned int regions,
		     unsigned int clients);

/* What is booked for the user; all zero if nothing. */
struct quota_account quota_of(const struct quota *q, uid_t uid);

#endif
