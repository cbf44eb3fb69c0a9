/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server: beginning, end, and the events that are not a client's.
 *
 *	alone (--no-supervisor)	opens the listening socket itself; SIGTERM and SIGINT drain,
 *				twice: end now
 *	below a supervisor	gets socket, epoch and records over the channel, and its words
 *				(drain, stop, reopen the log); signals are not its business
 *
 * A supervisor that is gone is replaced: records are put again into the new one. If that fails, the
 * server goes on without, and says so in the log.
 *
 * The end comes when it is told to; when it drains and the last client is gone, or the time is up;
 * embedded, when the last client is gone, or none came at all within EMBEDDED_GRACE_MS.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/inject.h"

#include "listen.h"
#include "log.h"
#include "notify.h"
#include "supervisor.h"

#define PATIENCE_MS 200
#define EMBEDDED_GRACE_MS 10000
#define HELLO_LIMIT_NS 10000000000ull /* who has not said HELLO by then is dropped */
#define SILENT_MAX 4096u /* clients that have not said HELLO yet */
#define SWEEP_MS 2000
#define HEAP_MS 1000

static bool nothing_left(const struct server *s)
{
	if (s->broker.clients)
		return false;
	return s->broker.draining || (s->config->embedded && s->had_client);
}

static void stop(struct server *s)
{
	if (s->stopping)
		return;
	s->stopping = true;
	uv_stop(&s->loop);
}

void server_bury(struct server *s)
{
	while (s->doomed) {
		struct conn *c = s->doomed;

		s->doomed = c->next_doomed;
		conn_bury(c);
	}
	if (nothing_left(s)) /* a child may be on its way */
		(void)conn_accept_all(s);
	if (nothing_left(s))
		stop(s);
}

/* Drops those who came and said nothing: the old ones, and the oldest if there are too many. */
static void on_sweep(uv_timer_t *timer)
{
	struct server *s = timer->data;
	const uint64_t now = broker_now();
	unsigned int silent = 0;

	for (struct client *c = s->broker.last_client; c; c = c->previous) {
		if (c->record.greeted)
			continue;
		if (++silent > SILENT_MAX || now - c->record.connected_ns > HELLO_LIMIT_NS) {
			log_warn("pid %d, uid %u said nothing: dropped", c->pid, c->who.uid);
			conn_doom(c->outside);
		}
	}
	if (silent == 0)
		uv_timer_stop(timer);
	server_bury(s);
}

static void on_heap_timer(uv_timer_t *timer)
{
	struct server *s = timer->data;

	heap_tick(&s->broker);
	rcu_tick(&s->broker);
	directory_tick(&s->broker);
	server_bury(s);
}

static void on_listener(uv_poll_t *handle, int status, int events)
{
	struct server *s = handle->data;

	(void)events;
	if (status < 0)
		log_error("the listening socket: %s", uv_strerror(status));
	else
		conn_accept_all(s);
	if (!uv_is_active((uv_handle_t *)&s->sweep))
		uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
	server_bury(s);
}

static void on_time_up(uv_timer_t *timer)
{
	struct server *s = timer->data;

	if (s->broker.draining)
		log_warn("the time to drain is up, %" PRIu64 " clients are left",
			 s->broker.client_count);
	if (s->broker.draining || !s->had_client)
		stop(s);
}

static void drain(struct server *s, uint64_t limit_ms)
{
	if (s->broker.draining)
		return;
	log_info("draining: %" PRIu64 " clients are left", s->broker.client_count);
	broker_drain(&s->broker);
	uv_timer_start(&s->drain_timer, on_time_up, limit_ms, 0);
}

static void on_signal(uv_signal_t *handle, int number)
{
	struct server *s = handle->data;

	if (number == SIGHUP) {
		if (log_reopen() < 0)
			log_error("%s", pando_strerror_last());
	} else if (s->broker.draining) {
		stop(s);
	} else {
		drain(s, s->config->drain_timeout_ms);
	}
	server_bury(s);
}

static void obey(struct server *s, enum store_word word, uint64_t value)
{
	switch (word) {
	case STORE_WORD_DRAIN:
		drain(s, value);
		break;
	case STORE_WORD_STOP:
		stop(s);
		break;
	case STORE_WORD_REOPEN_LOG:
		if (log_reopen() < 0)
			log_error("%s", pando_strerror_last());
		break;
	}
}

static void on_store(uv_poll_t *handle, int status, int events);

static int watch_store(struct server *s)
{
	int rc = uv_poll_init(&s->loop, &s->store_poll, store_fd(s->broker.store));

	if (rc < 0)
		return rc;
	s->store_poll.data = s;
	s->with_store = true;
	return uv_poll_start(&s->store_poll, UV_READABLE | UV_DISCONNECT, on_store);
}

static void put_everything(struct server *s)
{
	struct broker *b = &s->broker;

	broker_put(b, STORE_LISTENER, 0, NULL, 0, &s->listen_fd, 1);
	broker_put(b, STORE_EPOCH, 0, &b->epoch, sizeof(b->epoch), NULL, 0);
	broker_put_all(b, conn_descriptors);
	if (!b->store_lost)
		b->store_lost = store_ready(b->store) < 0;
}

/* The old poll handle is closed: what comes next can use its memory. */
static void on_store_closed(uv_handle_t *handle)
{
	struct server *s = handle->data;
	struct broker *b = &s->broker;

	s->with_store = false;
	if (s->stopping)
		return;
	b->store_lost = false;
	if (supervisor_respawn(s->config, &b->store) < 0) {
		b->store = NULL;
		log_error("no new supervisor: %s; if this broker dies, its regions go with it",
			  pando_strerror_last());
		return;
	}
	PANDO_INJECT("broker.respawn.spawned");
	put_everything(s);
	if (watch_store(s) < 0)
		log_error("cannot watch the supervisor's channel");
	log_warn("a new supervisor runs, pid %d", store_supervisor_pid(b->store));
}

static void supervisor_gone(struct server *s)
{
	log_error("the supervisor is gone");
	uv_close((uv_handle_t *)&s->store_poll, on_store_closed);
	store_close(s->broker.store);
	s->broker.store = NULL;
}

static void on_store(uv_poll_t *handle, int status, int events)
{
	struct server *s = handle->data;
	enum store_word word;
	uint64_t value;
	int rc;

	(void)events;
	rc = status < 0 ? -EPIPE : 1;
	while (rc > 0) {
		rc = store_word(s->broker.store, &word, &value);
		if (rc > 0)
			obey(s, word, value);
	}
	if (rc < 0)
		supervisor_gone(s);
	server_bury(s);
}

/* Each client takes two descriptors here, and more on its way to the supervisor. */
static void raise_limits(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static void watch_signal(struct server *s, uv_signal_t *handle, int number)
{
	uv_signal_init(&s->loop, handle);
	handle->data = s;
	uv_signal_start(handle, on_signal, number);
}

static int begin_alone(struct server *s)
{
	s->listen_fd = listen_open(s->config->address, &s->ours);
	if (s->listen_fd < 0)
		return s->listen_fd;
	watch_signal(s, &s->sigterm, SIGTERM);
	watch_signal(s, &s->sigint, SIGINT);
	watch_signal(s, &s->sighup, SIGHUP);
	return 0;
}

static int begin_supervised(struct server *s)
{
	int rc;

	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	rc = takeup_run(&s->broker, conn_adopt, &s->listen_fd);
	if (rc < 0)
		return rc;
	if (s->listen_fd < 0)
		return pando__fail(EINVAL, "the supervisor passed no listening socket");
	rc = watch_store(s);
	return rc < 0 ? pando__fail(-rc, "cannot watch the supervisor's channel") : 0;
}

static int watch_listener(struct server *s)
{
	int flags = fcntl(s->listen_fd, F_GETFL), rc;

	if (flags >= 0)
		(void)fcntl(s->listen_fd, F_SETFL, flags | O_NONBLOCK);
	rc = uv_poll_init(&s->loop, &s->listener, s->listen_fd);
	if (rc < 0)
		return pando__fail(-rc, "cannot watch the listening socket: %s", uv_strerror(rc));
	s->listener.data = s;
	s->with_listener = true;
	uv_poll_start(&s->listener, UV_READABLE, on_listener);
	return 0;
}

static int begin(struct server *s)
{
	struct store *store = NULL;
	int rc;

	raise_limits();
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* `ulimit -f` shall be an error of memfds, not death */
	s->listen_fd = -1;
	s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (uv_loop_init(&s->loop) < 0)
		return pando__fail(ENOMEM, "cannot make an event loop");
	uv_timer_init(&s->loop, &s->sweep);
	uv_timer_init(&s->loop, &s->drain_timer);
	uv_timer_init(&s->loop, &s->heap_timer);
	s->sweep.data = s->heap_timer.data = s->drain_timer.data = s;
	if (s->config->role == CONFIG_ROLE_BROKER) {
		rc = store_open(&store, s->config->channel);
		if (rc < 0)
			return pando__fail(-rc, "cannot open the channel to the supervisor: %s",
					   strerror(-rc));
	}
	rc = broker_init(&s->broker, s->config, &server_ops, store);
	s->broker.outside = s;
	s->broker.patience_ms = PATIENCE_MS; /* workers free memory beside those who want it */
	if (rc == 0)
		rc = store ? begin_supervised(s) : begin_alone(s);
	if (rc == 0)
		rc = watch_listener(s);
	if (rc < 0)
		return rc;
	if (s->config->embedded)
		uv_timer_start(&s->drain_timer, on_time_up, EMBEDDED_GRACE_MS, 0);
	uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
	uv_timer_start(&s->heap_timer, on_heap_timer, HEAP_MS, HEAP_MS);
	return 0;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
	(void)arg;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

/*
 * Lets everybody go and frees everything. Clients keep their mappings: memory lives as long as they
 * do.
 */
static void end(struct server *s)
{
	struct broker *b = &s->broker;

	s->stopping = true;
	b->ending = true;
	for (struct client *c = b->clients; c; c = c->next)
		conn_doom(c->outside);
	server_bury(s);
	for (struct region *r = b->regions; r; r = r->next)
		pando__store_relaxed(&r->job.cancelled, 1);
	while (b->jobs > 0)
		uv_run(&s->loop, UV_RUN_ONCE);
	uv_walk(&s->loop, close_handle, NULL);
	uv_run(&s->loop, UV_RUN_DEFAULT);
	uv_loop_close(&s->loop);
	broker_deinit(b);
	if (s->spare_fd >= 0)
		close(s->spare_fd);
}

static void finish(struct server *s, int status, const char *why)
{
	struct store *store = s->broker.store;

	if (store) {
		(void)store_finish(store, status, why);
		s->broker.store = NULL;
		if (s->listen_fd >= 0)
			close(s->listen_fd);
	} else if (s->listen_fd >= 0) {
		listen_close(s->listen_fd, s->config->address, s->ours);
	}
	end(s);
	store_close(store);
}

int server_run(const struct broker_config *config)
{
	struct server *s = calloc(1, sizeof(*s));
	int status = 1;

	if (!s) {
		log_error("out of memory");
		return 1;
	}
	s->config = config;
	s->ready_fd = config->role == CONFIG_ROLE_BROKER ? -1 : config->ready_fd;
	if (begin(s) < 0) {
		log_error("%s", pando_strerror_last());
		notify_ready_fd(&s->ready_fd, pando_strerror_last());
		finish(s, 1, pando_strerror_last());
	} else {
		notify_ready_fd(&s->ready_fd, NULL);
		if (s->broker.store)
			(void)store_ready(s->broker.store);
		else
			notify_systemd("READY=1");
		log_info("serving %s, epoch %" PRIu64, config->address, s->broker.epoch);
		server_bury(s);
		if (!s->stopping)
			uv_run(&s->loop, UV_RUN_DEFAULT);
		log_info("ending");
		status = 0;
		finish(s, 0, NULL);
	}
	free(s);
	return status;
}
