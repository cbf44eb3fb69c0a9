/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The supervisor's loop.
 *
 * It waits for four things: signals, packets from the broker, the broker's death (a pidfd), and a
 * time. It is written so that there is little that could go wrong in it: one thread, poll(), no
 * blocking call, no allocation but records.
 *
 *	ABSENT --start--> LOADING --asked for its records, got them--> RUNNING --READY--> serving
 *	  ^                  |                                            |                 |
 *	  +------------------+---------------- died ----------------------+-----------------+
 *
 * The broker dies: what it had still sent is read to the end first, so the records are as it left
 * them; then a new one is started, at once for the first five deaths within ten seconds, later
 * after a pause that doubles from 25 ms to 100 ms. The pause keeps a broker that dies at every
 * start from taking a whole processor, and stays far below the second in which a new one is
 * promised. A daemon whose broker has never served gives up after five attempts, as somebody is
 * waiting for its error.
 *
 * A broker that ends because it wants to (drained, or cannot start) says so with FINISH; then the
 * daemon ends with that status. SIGTERM and SIGINT: the broker is told to drain, and killed a
 * second after the time limit; a second signal: it is told to stop at once, and killed half a
 * second later. SIGHUP: both open their log again.
 *
 * The supervisor dies: the broker starts a new one, whose role is CONFIG_ROLE_SUPERVISOR: it has a
 * broker that is not its child and puts all its records again. If both die, nothing is left but the
 * socket's path, which the next daemon takes over; clients that are attached go on with the regions
 * that they have.
 *
 * Descriptors: per region up to four, per client two. The limit is raised to the hard limit at the
 * start; the broker, which has the same descriptors and more, meets that limit first.
 */
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/fail.h"
#include "listen.h"
#include "log.h"
#include "notify.h"
#include "store_wire.h"
#include "supervisor_process.h"

#define DEATHS_FREE 5u /* in a row, before pauses begin and before a first start is given up */
#define DEATHS_WINDOW_MS 10000 /* what "in a row" means */
#define PAUSE_FIRST_MS 25
#define PAUSE_MAX_MS 100
#define DRAIN_GRACE_MS 1000 /* from the end of the drain limit to SIGKILL */
#define STOP_GRACE_MS 500
#define SILENT_GRACE_MS 2000 /* a broker that closed its channel and lives on */
#define PACKETS_PER_TURN 256 /* signals and the broker's death are looked at in between */

#define NEVER INT64_MAX

/* Words that wait for the channel, as bits. */
#define OWES(word) (1u << (word))

struct supervisor {
	struct broker_config config;
	struct store_table table;
	uint64_t epoch; /* of the broker that runs, or ran last */
	int signals; /* signalfd */

	/* The broker: all -1 or 0 while there is none. */
	pid_t broker;
	int pidfd, channel;
	bool is_child; /* started by us: its status can be had */
	bool told_end; /* END was sent: words may follow */
	bool loading; /* asked for records; next is the one to send, NULL: END is due */
	bool ready, finished; /* it said so */
	struct store_record *next;
	unsigned int owes; /* OWES() bits */

	bool served; /* some broker was ready once */
	bool draining, stopping, over;
	int status; /* of the daemon, once over */
	int64_t drain_at; /* when the limit ends; NEVER */
	int64_t kill_at, start_at; /* what is due, in milliseconds; NEVER */
	int64_t deaths[DEATHS_FREE]; /* times of the last ones, round */
	unsigned int death_count;
	int pause_ms;
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void give_up(struct supervisor *s, int status, const char *why)
{
	if (status)
		log_error("%s", why);
	if (!s->served)
		notify_ready_fd(&s->config.ready_fd, status ? why : NULL);
	s->over = true;
	s->status = status;
}

static void kill_broker(struct supervisor *s, const char *why)
{
	log_warn("killing the broker (pid %d): %s", (int)s->broker, why);
	/* By pidfd: the number may be another process's by now if it is not our child. */
	if (s->pidfd >= 0)
		(void)syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
	s->kill_at = NEVER;
}

/* Puts one of our own records. */
static int put_own(struct supervisor *s, enum store_kind kind, const void *blob, size_t size,
		   int fd)
{
	struct store_packet p;

	store_packet_init(&p, STORE_OP_PUT, kind, 0);
	p.size = (uint32_t)size;
	memcpy(p.blob, blob, size);
	p.nfds = fd >= 0;
	return store_table_put(&s->table, &p, &fd);
}

static int start_broker(struct supervisor *s)
{
	int ret;

	s->start_at = NEVER;
	s->epoch++;
	ret = put_own(s, STORE_EPOCH, &s->epoch, sizeof(s->epoch), -1);
	if (ret < 0)
		return pando__fail(-ret, "no memory for the epoch's record");
	ret = supervisor_spawn(&s->config, "--broker-channel", false, &s->channel, &s->broker);
	if (ret < 0)
		return ret;
	s->is_child = true;
	s->told_end = s->loading = s->ready = s->finished = false;
	s->pidfd = (int)syscall(SYS_pidfd_open, s->broker, 0);
	if (s->pidfd < 0) { /* out of descriptors: without it we would not see its death */
		ret = pando__fail(errno, "cannot watch the broker: %s", strerror(errno));
		kill(s->broker, SIGKILL);
		waitpid(s->broker, NULL, 0);
		close(s->channel);
		s->channel = -1;
		s->broker = 0;
		return ret;
	}
	(void)fcntl(s->pidfd, F_SETFD, FD_CLOEXEC);
	log_debug("broker started: pid %d, epoch %" PRIu64 ", %zu records", (int)s->broker,
		  s->epoch, s->table.count);
	return 0;
}

/* Says when the next start is due, or that there will be none. */
static void plan_start(struct supervisor *s)
{
	int64_t now = now_ms(), *oldest = &s->deaths[s->death_count % DEATHS_FREE];
	bool often = s->death_count >= DEATHS_FREE && now - *oldest < DEATHS_WINDOW_MS;

	*oldest = now;
	s->death_count++;
	if (often && !s->served) {
		give_up(s, EXIT_FAILURE, "the broker died at every start");
		return;
	}
	s->pause_ms = !often ? 0 : s->pause_ms == 0 ? PAUSE_FIRST_MS : s->pause_ms * 2;
	if (s->pause_ms > PAUSE_MAX_MS)
		s->pause_ms = PAUSE_MAX_MS;
	s->start_at = now + s->pause_ms;
}

static void report_death(struct supervisor *s)
{
	siginfo_t info = {0};

	if (!s->is_child) {
		log_info("broker %d ended", (int)s->broker);
		return;
	}
	if (waitid(P_PID, (id_t)s->broker, &info, WEXITED) < 0)
		return;
	if (info.si_code == CLD_EXITED)
		log_write(s->finished ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR,
			  "broker %d exited with status %d", (int)s->broker, info.si_status);
	else
		log_error("broker %d was killed by signal %d (%s)", (int)s->broker, info.si_status,
			  strsignal(info.si_status));
}

/* --- the channel: what the broker says --- */

static void begin_load(struct supervisor *s)
{
	s->loading = true;
	s->next = s->table.first;
}

static void handle_ready(struct supervisor *s)
{
	s->ready = true;
	if (!s->served) {
		log_info("ready at %s, broker pid %d",
			 s->config.activated ? "the socket from systemd" : s->config.address,
			 (int)s->broker);
		notify_ready_fd(&s->config.ready_fd, NULL);
	} else {
		log_info("broker pid %d serves: epoch %" PRIu64 ", %zu records", (int)s->broker,
			 s->epoch, s->table.count);
	}
	s->served = true;
	notify_systemd("READY=1\nSTATUS=Broker pid %d, epoch %" PRIu64, (int)s->broker, s->epoch);
}

static void handle_finish(struct supervisor *s, const struct store_packet *p)
{
	char why[STORE_MAX_BLOB];

	s->finished = true;
	s->status = (int)(p->id & 0xff);
	memcpy(why, p->blob, p->size);
	why[p->size < sizeof(why) ? p->size : sizeof(why) - 1] = '\0';
	if (s->status)
		log_error("the broker ends: %s", why);
	if (!s->served && s->status)
		notify_ready_fd(&s->config.ready_fd, why);
}

static void handle_put(struct supervisor *s, const struct store_packet *p, const int *fds)
{
	if (p->kind == STORE_EPOCH && p->size == sizeof(s->epoch))
		memcpy(&s->epoch, p->blob, sizeof(s->epoch));
	if (store_table_put(&s->table, p, fds) < 0)
		log_error("no memory: record %u/%" PRIx64 " is lost", p->kind, p->id);
}

static void handle_packet(struct supervisor *s, const struct store_packet *p, int *fds)
{
	/*
	 * While it loads, the list may not change under our hands, and a broker has no reason to.
	 */
	if (s->loading && p->op != STORE_OP_FINISH) {
		for (unsigned int i = 0; i < p->nfds; i++)
			close(fds[i]);
		kill_broker(s, "it changed records while it was loading them");
		return;
	}
	switch (p->op) {
	case STORE_OP_PUT:
		handle_put(s, p, fds);
		return;
	case STORE_OP_REMOVE:
		store_table_remove(&s->table, p->kind, p->id);
		break;
	case STORE_OP_LOAD:
		begin_load(s);
		break;
	case STORE_OP_READY:
		handle_ready(s);
		break;
	case STORE_OP_FINISH:
		handle_finish(s, p);
		break;
	default:
		log_error("the broker sent a packet of unknown kind %u", p->op);
	}
	for (unsigned int i = 0; i < p->nfds; i++)
		close(fds[i]);
}

enum read_end { READ_MORE, READ_EMPTY, READ_HANGUP };

/* Reads up to PACKETS_PER_TURN packets; says why it stopped. */
static enum read_end read_channel(struct supervisor *s)
{
	struct store_packet p;
	int fds[STORE_MAX_FDS];

	for (unsigned int i = 0; i < PACKETS_PER_TURN; i++) {
		int ret = store_packet_receive(s->channel, &p, fds, MSG_DONTWAIT);

		if (ret == 0)
			return READ_EMPTY;
		if (ret == 1)
			handle_packet(s, &p, fds);
		else if (ret == -EPROTO)
			log_error("a record of the broker is lost (%u/%" PRIx64
				  "): too many descriptors are "
				  "open; raise the limit (LimitNOFILE=)",
				  p.op ? p.kind : 0, p.op ? p.id : 0);
		else
			return READ_HANGUP;
	}
	return READ_MORE;
}

/* Sends what is due, as far as the channel takes it. Returns true if something is left. */
static bool write_channel(struct supervisor *s)
{
	struct store_packet p;
	int ret = 0;

	while (s->loading && ret == 0) {
		const struct store_record *r = s->next;

		store_packet_init(&p, r ? STORE_OP_RECORD : STORE_OP_END, r ? r->kind : 0,
				  r ? r->id : (uint64_t)getpid());
		if (r) {
			p.size = r->size;
			p.nfds = r->nfds;
			memcpy(p.blob, r->blob, r->size);
		}
		ret = store_packet_send(s->channel, &p, r ? r->fds : NULL, MSG_DONTWAIT);
		if (ret < 0)
			break;
		s->loading = r != NULL;
		s->told_end = r == NULL;
		s->next = r ? r->next : NULL;
	}
	while (s->told_end && s->owes && ret == 0) {
		unsigned int word = (unsigned int)__builtin_ctz(s->owes);
		int64_t left = s->drain_at - now_ms();

		store_packet_init(&p, STORE_OP_WORD, word,
				  word == STORE_WORD_DRAIN && left > 0 ? (uint64_t)left : 0);
		ret = store_packet_send(s->channel, &p, NULL, MSG_DONTWAIT);
		if (ret == 0)
			s->owes &= ~OWES(word);
	}
	return ret == -EAGAIN;
}

/* --- events --- */

static void close_channel(struct supervisor *s)
{
	if (s->channel >= 0)
		close(s->channel);
	s->channel = -1;
	s->loading = s->told_end = false;
}

/* The pidfd says that the broker is dead. */
static void broker_died(struct supervisor *s)
{
	/*
	 * What it had sent before it died lies in the channel: records count from the moment they
	 * were sent.
	 */
	while (s->channel >= 0 && read_channel(s) == READ_MORE)
		;
	close_channel(s);
	report_death(s);
	close(s->pidfd);
	s->pidfd = -1;
	s->broker = 0;
	s->ready = false;
	s->kill_at = NEVER;
	if (s->finished)
		give_up(s, s->status, "the broker could not go on");
	else if (s->stopping || now_ms() >= s->drain_at)
		give_up(s, EXIT_SUCCESS, "");
	else
		plan_start(s);
	if (s->draining) /* a new one has to be told, too */
		s->owes |= OWES(STORE_WORD_DRAIN);
}

static void handle_terminate(struct supervisor *s)
{
	int64_t now = now_ms();

	if (s->broker == 0) {
		give_up(s, EXIT_SUCCESS, "");
		return;
	}
	if (s->draining) {
		log_info("told to end again: stopping at once");
		s->stopping = true;
		s->owes |= OWES(STORE_WORD_STOP);
		s->kill_at = now + STOP_GRACE_MS;
		return;
	}
	log_info("told to end: draining for up to %u ms", s->config.drain_timeout_ms);
	s->draining = true;
	s->drain_at = now + s->config.drain_timeout_ms;
	s->kill_at = s->drain_at + DRAIN_GRACE_MS;
	s->owes |= OWES(STORE_WORD_DRAIN);
	notify_systemd("STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC=%" PRIu64,
		       ((uint64_t)s->config.drain_timeout_ms + 2 * DRAIN_GRACE_MS) * 1000);
}

static void handle_signals(struct supervisor *s)
{
	struct signalfd_siginfo info;

	while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo != SIGHUP) {
			handle_terminate(s);
			continue;
		}
		if (log_reopen() < 0)
			log_error("%s", pando_strerror_last());
		s->owes |= OWES(STORE_WORD_REOPEN_LOG);
	}
}

static void handle_times(struct supervisor *s)
{
	int64_t now = now_ms();

	if (now >= s->kill_at && s->broker)
		kill_broker(s, s->draining ? "it did not end in time"
					   : "it left its channel, but lives");
	if (now >= s->start_at && s->broker == 0 && start_broker(s) < 0) {
		log_error("%s", pando_strerror_last());
		plan_start(s);
		if (s->start_at <
		    now + PAUSE_MAX_MS) /* out of something: give it time to come back */
			s->start_at = now + PAUSE_MAX_MS;
	}
}

static int next_timeout(const struct supervisor *s)
{
	int64_t at = s->kill_at < s->start_at ? s->kill_at : s->start_at, left;

	if (at == NEVER)
		return -1;
	left = at - now_ms();
	return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

static void turn(struct supervisor *s)
{
	bool more = s->channel >= 0 && write_channel(s);
	struct pollfd polled[] = {
		{.fd = s->signals, .events = POLLIN},
		{.fd = s->channel, .events = (short)(POLLIN | (more ? POLLOUT : 0))},
		{.fd = s->pidfd, .events = POLLIN},
	};

	if (poll(polled, 3, next_timeout(s)) > 0) {
		if (polled[0].revents)
			handle_signals(s);
		if (polled[2].revents) {
			broker_died(s);
		} else if ((polled[1].revents & ~POLLOUT) && read_channel(s) == READ_HANGUP) {
			close_channel(s);
			if (s->kill_at == NEVER)
				s->kill_at = now_ms() + SILENT_GRACE_MS;
		}
	}
	if (!s->over)
		handle_times(s);
}

/* --- beginning and end --- */

static int fail_start(struct supervisor *s)
{
	give_up(s, EXIT_FAILURE, pando_strerror_last());
	return -1;
}

static int block_signals(struct supervisor *s)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_DFL); /* ignored, it would take the broker's exit status from us */
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return s->signals >= 0 ? 0
			       : pando__fail(errno, "cannot receive signals: %s", strerror(errno));
}

static void raise_limits(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int begin_daemon(struct supervisor *s)
{
	bool ours;
	int fd;

	if (s->config.ready_fd >= 0)
		(void)fcntl(s->config.ready_fd, F_SETFD, FD_CLOEXEC);
	fd = listen_open(s->config.address, &ours);
	if (fd < 0)
		return fail_start(s);
	s->config.activated = !ours;
	if (put_own(s, STORE_LISTENER, "", 0, fd) < 0) {
		pando__fail(ENOMEM, "no memory for the listening socket's record");
		return fail_start(s);
	}
	return start_broker(s) < 0 ? fail_start(s) : 0;
}

/* Takes on the broker at the other end of config.channel. */
static int begin_adopted(struct supervisor *s)
{
	struct pollfd hangup = {.fd = s->config.channel};
	struct store_packet p;
	struct ucred peer;
	socklen_t size = sizeof(peer);

	s->channel = s->config.channel;
	(void)fcntl(s->channel, F_SETFD, FD_CLOEXEC);
	s->served = s->told_end = true;
	if (getsockopt(s->channel, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
		pando__fail(errno, "descriptor %d is no channel to a broker", s->channel);
		return fail_start(s);
	}
	s->broker = peer.pid;
	s->pidfd = (int)syscall(SYS_pidfd_open, s->broker, 0);
	/*
	 * As long as the channel has not hung up, the number was the broker's: it alone has the
	 * other end.
	 */
	if (s->pidfd < 0 || (poll(&hangup, 1, 0) > 0 && (hangup.revents & POLLHUP))) {
		pando__fail(ESRCH, "the broker that started this supervisor is gone");
		return fail_start(s);
	}
	(void)fcntl(s->pidfd, F_SETFD, FD_CLOEXEC);
	store_packet_init(&p, STORE_OP_HELLO, 0, (uint64_t)getpid());
	(void)store_packet_send(s->channel, &p, NULL, MSG_DONTWAIT);
	log_info("supervising the running broker %d", (int)s->broker);
	return 0;
}

static void end(struct supervisor *s)
{
	struct store_record *listener = store_table_find(&s->table, STORE_LISTENER, 0);

	if (s->pidfd >= 0)
		close(s->pidfd);
	if (s->signals >= 0)
		close(s->signals);
	close_channel(s);
	if (listener && listener->nfds) {
		listener->nfds = 0;
		listen_close(listener->fds[0], s->config.address, !s->config.activated);
	}
	store_table_deinit(&s->table);
	log_info("ended with status %d", s->status);
}

int supervisor_run(const struct broker_config *config)
{
	struct supervisor s = {.config = *config,
			       .signals = -1,
			       .pidfd = -1,
			       .channel = -1,
			       .drain_at = NEVER,
			       .kill_at = NEVER,
			       .start_at = NEVER};

	(void)prctl(PR_SET_NAME, "pandod");
	raise_limits();
	if (block_signals(&s) < 0)
		fail_start(&s);
	else if (s.config.role == CONFIG_ROLE_SUPERVISOR)
		begin_adopted(&s);
	else
		begin_daemon(&s);
	while (!s.over)
		turn(&s);
	end(&s);
	return s.status;
}
