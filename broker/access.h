/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who may do what with a region: mode bits like a file's, and an access list that adds to them.
 *
 * The owner has the owner's bits, a member of the group the group's, everybody else the others'; as
 * with files the first class that fits decides, so an owner can shut himself out. Entries of the
 * access list for the user and for each of his groups are added to that. Root may do everything.
 * Attaching read-only needs PANDO_RIGHT_READ, attaching for writing both rights.
 *
 * Pure functions of their arguments: any thread.
 */
#ifndef PANDO_BROKER_ACCESS_H
#define PANDO_BROKER_ACCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include "records.h"

/* A peer, as its socket says. */
struct identity {
	uid_t uid;
	gid_t gid;
	gid_t *groups; /* supplementary groups */
	unsigned int group_count;
};

/* The rights (PANDO_RIGHT_*) that the peer has on the region. */
unsigned int access_rights(const struct region_record *r, const struct identity *who);

/* True if the peer may destroy the region and change its access list: its owner and root. */
bool access_owns(const struct region_record *r, const struct identity *who);

/* True if the peer is a member of the group. */
bool access_member(const struct identity *who, gid_t gid);

/* Sets, changes or (rights 0) takes away an entry. Returns 0 or -ENOSPC with a sentence. */
int access_grant(struct region_record *r, uint32_t kind, uint32_t id, uint32_t rights);

#endif
