/* SPDX-License-Identifier: BSD-2-Clause */
/* The broker's core without sockets. See core.h. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "core: %s\n", what);
	abort();
}

static struct core *core_of(const struct client *c)
{
	return c->broker->outside;
}

/* Whatever the broker says must be understood by its clients. */
static void take_message(struct client *c, struct pando__msg *msg, const int *fds,
			 unsigned int nfds)
{
	struct core *core = core_of(c);
	char why[256] = "";

	for (unsigned int i = 0; i < nfds; i++)
		must(fds[i] >= 0, "a descriptor that is none");
	msg->header.fds = nfds;
	if (pando__msg_parse(PANDO__TO_CLIENT, msg, msg->header.length, nfds, &core->last, why,
			     sizeof(why)) < 0)
		must(false, why);
	must(!c->hung_up, "a message to a client that is being let go");
	core->last_to = c;
	core->last_fds = nfds;
	core->sent++;
}

static void take_idle(struct client *c)
{
	must(!c->busy, "idle while busy");
}

static void take_hangup(struct client *c)
{
	core_of(c)->hangups++;
}

static void take_job(struct broker *b, struct job *job)
{
	struct core *core = b->outside;

	must(core->job_count < CORE_JOBS, "too many jobs");
	core->jobs[core->job_count++] = job;
}

static const struct broker_ops ops = {
	.send = take_message,
	.idle = take_idle,
	.hangup = take_hangup,
	.submit = take_job,
};

void core_init(struct core *core)
{
	memset(core, 0, sizeof(*core));
	core->config.owner = 1000;
	core->config.backend = PANDO_BACKEND_MEMFD;
	core->config.window_base = PANDO__WINDOW_BASE;
	core->config.window_size = 64 * PANDO__GIB;
	must(broker_init(&core->broker, &core->config, &ops, NULL) == 0, "init");
	core->broker.outside = core;
}

void core_settle(struct core *core)
{
	for (struct client *next, *c = core->broker.clients; c; c = next) {
		next = c->next;
		if (c->hung_up)
			client_gone(c, broker_now());
	}
	broker_check(&core->broker);
}

bool core_run_job(struct core *core, unsigned int index)
{
	struct job *job;

	if (index >= core->job_count)
		return false;
	job = core->jobs[index];
	memmove(&core->jobs[index], &core->jobs[index + 1],
		(core->job_count - index - 1) * sizeof(job));
	core->job_count--;
	job_work(job);
	job_done(job);
	core_settle(core);
	return true;
}

void core_run_jobs(struct core *core)
{
	while (core_run_job(core, 0))
		;
}

struct client *core_connect(struct core *core, uid_t uid)
{
	struct identity who = {.uid = uid, .gid = uid};
	struct client *c = client_new(&core->broker, 0, &who, 0);

	must(c != NULL, "memory");
	return c;
}

void core_send_with(struct core *core, struct client *c, struct pando__msg *msg, int fd)
{
	if (msg->header.seq == 0)
		msg->header.seq = c->seq + 1;
	msg->header.fds = fd >= 0;
	must(!c->busy, "a second request while one is under way");
	c->passed = fd;
	handler_packet(c, msg, msg->header.length, fd >= 0);
	c->passed = -1;
	core_settle(core);
}

void core_send(struct core *core, struct client *c, struct pando__msg *msg)
{
	core_send_with(core, c, msg, -1);
}

int core_call(struct core *core, struct client *c, struct pando__msg *msg)
{
	core_send(core, c, msg);
	core_run_jobs(core);
	return core->last.header.type == PANDO__MSG_ERROR ? -core->last.error.error : 0;
}

struct client *core_client(struct core *core, uid_t uid)
{
	struct client *c = core_connect(core, uid);
	struct pando__msg msg;

	pando__msg_init(&msg, PANDO__MSG_HELLO, 0);
	msg.hello.version_min = msg.hello.version_max = PANDO__PROTO_VERSION;
	strcpy(msg.hello.program, "test");
	return core_call(core, c, &msg) < 0 ? NULL : c;
}

void core_kill(struct core *core, struct client *c)
{
	client_gone(c, broker_now());
	core_settle(core);
}

void core_deinit(struct core *core)
{
	struct broker *b = &core->broker;

	while (b->clients)
		core_kill(core, b->clients);
	core_run_jobs(core);
	for (struct region *next, *r = b->regions; r; r = next) {
		next = r->next;
		if (!(r->record.flags & PANDO_REGION_DESTROYED))
			region_destroy(r, NULL);
		region_settle(r);
	}
	core_run_jobs(core);
	must(!b->regions && b->region_count == 0 && b->committed == 0, "a region is left");
	must(b->client_count == 0 && b->jobs == 0 && b->frees == 0, "a client or a job is left");
	must(b->window.count == 0, "a range of the window is left");
	for (size_t i = 0; i < sizeof(b->quota.buckets) / sizeof(b->quota.buckets[0]); i++)
		must(!b->quota.buckets[i], "an account is left");
	broker_deinit(b);
}
