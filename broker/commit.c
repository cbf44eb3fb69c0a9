/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Work that takes long: memory is taken and given back on worker threads.
 *
 * A region has at most one job, which lies in it. job_work() runs on a worker and does one piece of
 * BROKER_PIECE; job_done(), on the loop's thread, puts the job at the end of the line again until
 * its range is done, and then draws the conclusions. So a small request waits for a few pieces of a
 * large one, never for all of it; and before each piece the job looks whether the requester has
 * died, and whether there is still enough memory. What a job that failed had taken it gives back
 * itself: at its end a region is as before, or as wanted.
 *
 * Records: put before the job starts and after it ends; see records.h for what a successor makes of
 * them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "common/atomic.h"
#include "common/inject.h"
#include "common/size.h"

#include "broker.h"
#include "log.h"

#define FORGET_MS 50 /* how long the supervisor may take to read what it was sent */

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void job_start(struct region *r, enum job_kind kind, struct client *c, uint64_t from, uint64_t to)
{
	struct job *job = &r->job;

	job->broker = r->broker;
	job->region = r;
	job->client = c;
	job->kind = kind;
	job->from = from;
	job->to = to;
	job->at = from;
	job->end = to;
	job->giving = kind != JOB_CREATE && kind != JOB_GROW;
	/* The heap's clients take memory themselves, where they need it, and give it back. */
	if (region_lazy(r))
		job->at = to;
	job->begun = false;
	job->cancelled = 0;
	job->result = 0;
	job->text[0] = '\0';
	r->working = true;
	r->broker->jobs++;
	if (c) {
		c->job = job;
		c->busy = true;
	}
	r->broker->ops->submit(r->broker, job);
}

/* Says no to what cannot fit before any memory is taken, with both numbers. */
static int enough_memory(const struct job *job)
{
	char need[PANDO__SIZE_TEXT], have[PANDO__SIZE_TEXT];
	struct pando__backend_probe probe;
	uint64_t length = job->to - job->at;

	if (length <= BROKER_PIECE) /* commit asks by itself */
		return 0;
	job->region->backend->probe(&probe);
	if (!probe.usable || probe.available >= length)
		return 0;
	return pando__fail(ENOMEM,
			   "region \"%s\" needs %s (%" PRIu64
			   " bytes) more, of %s memory there are %s (%" PRIu64 " bytes); %s",
			   job->region->record.name, pando__size_format(length, need), length,
			   job->region->backend->name, pando__size_format(probe.available, have),
			   probe.available,
			   job->region->record.backend == PANDO_BACKEND_HUGETLB
				   ? "raise it with sysctl vm.nr_hugepages"
				   : "ask for less or free some");
}

/* From now on memory is given back, [from, to). */
static void turn_back(struct job *job, uint64_t from, uint64_t to)
{
	job->giving = true;
	job->at = region_lazy(job->region) ? to : from;
	job->end = to;
}

/* Memory that is missing may be with a region that is on its way out: it is waited for a little. */
static int patiently(const struct job *job, int (*ask)(const struct job *job))
{
	int rc = ask(job);

	for (unsigned int ms = 0; rc == -ENOMEM && ms < job->broker->patience_ms &&
				  pando__load_relaxed(&job->broker->frees);
	     ms++) {
		usleep(1000);
		rc = ask(job);
	}
	/* The last of them may have gone after we had asked. */
	return rc == -ENOMEM ? ask(job) : rc;
}

static int begin_taking(struct job *job)
{
	int rc = 0;

	job->begun = true;
	if (job->kind == JOB_CREATE)
		rc = region_make_files(job->region);
	if (job->kind == JOB_GROW && region_lazy(job->region))
		rc = heap_reach(job->region, job->to);
	return rc < 0 ? rc : patiently(job, enough_memory);
}

static int take_piece(const struct job *job)
{
	const struct region *r = job->region;

	return r->backend->commit(r->heap_fd, job->at, least(BROKER_PIECE, job->end - job->at));
}

/* One piece. When it fails, what was taken is given back. */
static void take(struct job *job)
{
	uint64_t n = least(BROKER_PIECE, job->end - job->at);
	int rc = job->begun ? 0 : begin_taking(job);

	if (rc == 0 && pando__load_relaxed(&job->cancelled))
		rc = pando__fail(ECANCELED, "the client is gone");
	if (rc == 0 && n > 0) {
		rc = patiently(job, take_piece);
		job->at += n; /* a piece that failed may be there in part */
		PANDO_INJECT("broker.commit.piece");
	}
	if (rc < 0) {
		snprintf(job->text, sizeof(job->text), "%s", pando_strerror_last());
		job->result = rc;
		turn_back(job, job->from, job->at);
	}
}

/*
 * Gives up the heap's file, whose memory goes with its last mapping. It is not punched out of the
 * file: the broker cannot know that nobody maps it. A process may be there that is no client: the
 * child of a program that dropped its rights, that closed all descriptors, or that could not reach
 * the broker.
 *
 * The supervisor has been told to forget the region, and its descriptors with it. It is given a
 * moment to do so, so that it is this thread that frees the memory, before those who wait for it
 * are answered.
 */
static void let_go(struct region *r)
{
	int unread = 0;

	for (int ms = 0; r->broker->store && ms < FORGET_MS; ms++) {
		if (ioctl(store_fd(r->broker->store), SIOCOUTQ, &unread) != 0 || unread == 0)
			break;
		usleep(1000);
	}
	if (r->broker->store)
		usleep(1000);
	if (r->heap_fd >= 0)
		close(r->heap_fd);
	if (r->heap_ro >= 0)
		close(r->heap_ro);
	r->heap_fd = r->heap_ro = -1;
}

static void give(struct job *job)
{
	const struct region *r = job->region;
	uint64_t n = least(BROKER_PIECE, job->end - job->at);

	if (job->kind == JOB_FREE) {
		let_go(job->region);
		job->at = job->end;
		return;
	}
	if (n == 0)
		return;
	if (r->backend->decommit(r->heap_fd, job->at, n) < 0)
		log_error("region \"%s\": %s", r->record.name, pando_strerror_last());
	job->at += n;
}

void job_work(struct job *job)
{
	if (job->kind == JOB_HEAP)
		heap_work(job);
	else if (job->giving)
		give(job);
	else
		take(job);
}

/* CREATING -> LIVE, or gone. */
static void created(struct region *r, struct client *c)
{
	struct broker *b = r->broker;
	struct job *job = &r->job;
	int rc;

	if (job->result < 0 || !c) { /* nobody has seen it: it goes without a trace */
		struct parking waiting = r->waiting;

		if (c)
			handler_fail(c, job->result, job->text);
		for (struct client *w = waiting.first; w; w = w->park_next)
			w->parked_at = &waiting;
		region_free(r);
		handler_resume(&waiting);
		return;
	}
	ledger_format(r);
	PANDO_INJECT("broker.open.formatted");
	/*
	 * Killed before this: the files go with the broker; the client's OPEN comes again and makes
	 * the region.
	 */
	region_put(r, true);
	PANDO_INJECT("broker.open.put");
	/*
	 * Killed from here on: the successor knows by creator and creator_seq that this OPEN made
	 * it.
	 */
	r->state = REGION_LIVE;
	b->region_count++;
	b->committed += r->record.committed;
	log_info("region \"%s\": %" PRIu64 " bytes of %s at 0x%" PRIx64 " for user %u",
		 r->record.name, r->record.committed, r->backend->name, r->record.base,
		 r->record.uid);
	rc = open_attach(c, r, job->flags, true);
	if (rc < 0) { /* it could not be attached: then it was not made either */
		handler_fail(c, rc, pando_strerror_last());
		region_destroy(r, NULL);
	}
	handler_resume(&r->waiting);
}

static void resized(struct region *r, struct client *c)
{
	struct broker *b = r->broker;
	struct job *job = &r->job;
	bool grown = job->kind == JOB_GROW && job->result == 0;

	if (grown) {
		b->committed += job->to - job->from;
		r->record.committed = job->to;
	}
	if (r->charged > r->record.committed) {
		quota_discharge(&b->quota, r->record.uid, r->charged - r->record.committed, 0, 0);
		r->charged = r->record.committed;
	}
	r->record.target = r->record.committed;
	PANDO_INJECT("broker.resize.worked");
	/*
	 * Killed before this: the successor gives back what was taken; the client's RESIZE comes
	 * again.
	 */
	region_put(r, false);
	PANDO_INJECT("broker.resize.put");
	/*
	 * Killed before this: the successor finds the size in the record and says it in the ledger.
	 */
	ledger_set_committed(r, r->record.committed);
	heap_grown(r);
	if (c && job->result < 0)
		handler_fail(c, job->result, job->text);
	else if (c)
		handler_done(c, r->record.committed);
	PANDO_INJECT("broker.resize.answered");
	handler_resume(&r->waiting);
}

static void freed(struct region *r)
{
	struct broker *b = r->broker;

	PANDO_INJECT("broker.free.worked");
	/* Killed before this: the successor finds the record destroyed and frees it again. */
	broker_forget(b, STORE_REGION, r->record.id);
	PANDO_INJECT("broker.free.forgotten");
	(void)pando__add_relaxed(&b->frees, -1);
	region_free(r);
	handler_resume(&b->freeing);
}

void job_done(struct job *job)
{
	struct region *r = job->region;
	struct broker *b = r->broker;
	struct client *c = job->client;
	const uint64_t id = r->record.id;

	if (job->kind == JOB_HEAP) {
		heap_done(job);
		return;
	}
	if (job->at < job->end) { /* others' jobs have their turn between two pieces */
		b->ops->submit(b, job);
		return;
	}
	r->working = false;
	b->jobs--;
	if (c)
		c->job = NULL;
	switch (job->kind) {
	case JOB_CREATE:
		created(r, c);
		break;
	case JOB_GROW:
	case JOB_SHRINK:
	case JOB_ROLLBACK:
		resized(r, c);
		break;
	case JOB_FREE:
		freed(r);
		break;
	case JOB_HEAP: /* see above */
		break;
	}
	r = region_by_id(b, id); /* it may be gone */
	if (r)
		region_settle(r);
}
