/* SPDX-License-Identifier: BSD-2-Clause */
/* See daemon.h. */
#include "daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE (5.0 * daemon_slow()) /* seconds; sanitizers and a loaded machine are slow */
#define EXIT_SKIPPED 77

char peer_error[PANDO__PROTO_TEXT];

static char base_dir[] = "/tmp/pando-test-XXXXXX"; /* of all daemons of this program */
static struct daemon *running; /* its log is shown when a check fails */

void daemon_failed(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: failed: %s (errno %d, last error of the broker: %s)\n", file, line,
		what, errno, peer_error);
	if (running) {
		char command[200];

		snprintf(command, sizeof(command), "tail -n 25 %s >&2", running->log);
		(void)!system(command);
	}
	_exit(1);
}

void daemon_failed_eq(const char *file, int line, const char *what, long long a, long long b)
{
	fprintf(stderr, "%lld and %lld: ", a, b);
	daemon_failed(file, line, what);
}

void daemon_skip(const char *why)
{
	printf("skipped: %s\n", why);
	fflush(stdout);
	_exit(EXIT_SKIPPED);
}

double daemon_slow(void)
{
	const char *scale = getenv("PANDO_TEST_SLOW");

	return scale && atof(scale) > 1 ? atof(scale) : 1;
}

unsigned int daemon_backend(void)
{
	const char *name = getenv("PANDO_TEST_BACKEND");

	if (name && strcmp(name, "mshare") == 0)
		return PANDO_BACKEND_MSHARE;
	return name && strcmp(name, "hugetlb") == 0 ? PANDO_BACKEND_HUGETLB : PANDO_BACKEND_MEMFD;
}

double daemon_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void daemon_nap(double seconds)
{
	struct timespec t = {.tv_sec = (time_t)seconds};

	t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
	nanosleep(&t, NULL);
}

/* Reaps what the test left; returns how many processes there were. */
static int clean_up(void)
{
	double end = daemon_now() + 2;
	int count = 0;
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) >= 0 && daemon_now() < end)
		daemon_nap(0.005);
	while (pid >= 0) { /* somebody lives on: one generation after the other */
		char path[64], line[4096] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
		f = fopen(path, "re");
		if (f && fgets(line, sizeof(line), f)) {
			for (char *p = strtok(line, " "); p; p = strtok(NULL, " ")) {
				kill((pid_t)atoi(p), SIGKILL);
				count++;
			}
		}
		if (f)
			fclose(f);
		pid = waitpid(-1, NULL, 0);
	}
	return count;
}

/* Failed tests leave something in it. */
static void remove_base_dir(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		execlp("rm", "rm", "-rf", base_dir, NULL);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
}

int daemon_run_tests(const struct daemon_test *tests)
{
	const char *only = getenv("TEST_ONLY");
	int failed = 0, skipped = 0, count = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!getenv("PANDO_BROKER_PROGRAM")) {
		printf("skipped: $PANDO_BROKER_PROGRAM names no pandod\n");
		return EXIT_SKIPPED;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (setpriority(PRIO_PROCESS, 0, -20) < 0)
		printf("without a raised priority: times may suffer from what else the machine "
		       "does\n");
	if (!mkdtemp(base_dir) || chmod(base_dir, 0755) < 0) /* other users come here, too */
		return 1;
	for (; tests->name; tests++) {
		double begin = daemon_now();
		int status = 0, left;
		pid_t pid;

		if (only && strcmp(only, tests->name) != 0)
			continue;
		fflush(NULL);
		pid = fork();
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing goes on without the runner */
			signal(SIGPIPE, SIG_IGN);
			tests->run();
			fflush(NULL);
			_exit(0);
		}
		while (waitpid(-1, &status, 0) != pid) /* orphans are buried on the way */
			;
		left = clean_up();
		count++;
		if (left)
			fprintf(stderr, "%s: %d processes were left\n", tests->name, left);
		if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED)
			skipped++;
		else if (left || !WIFEXITED(status) || WEXITSTATUS(status))
			failed++;
		printf("%-40s %s (%.1f s)\n", tests->name,
		       left || !WIFEXITED(status)  ? "FAILED"
		       : WEXITSTATUS(status) == 77 ? "skipped"
		       : WEXITSTATUS(status)	   ? "FAILED"
						   : "ok",
		       daemon_now() - begin);
	}
	remove_base_dir();
	return failed ? 1 : skipped == count ? EXIT_SKIPPED : 0;
}

static void execute(const struct daemon *d, const char *const *options, int ready)
{
	char socket_option[128], log_option[128], ready_option[32];
	const char *argv[32] = {"pandod",     socket_option,	   log_option,
				ready_option, "--log-level=debug", "--drain-timeout=0.3"};
	int argc = 6;

	snprintf(socket_option, sizeof(socket_option), "--socket=%s", d->address);
	snprintf(log_option, sizeof(log_option), "--log-file=%s", d->log);
	snprintf(ready_option, sizeof(ready_option), "--ready-fd=%d", ready);
	while (options && *options && argc < 31)
		argv[argc++] = *options++;
	argv[argc] = NULL;
	prctl(PR_SET_PDEATHSIG, SIGTERM); /* a failed test takes its daemon along */
	(void)fcntl(ready, F_SETFD, 0);
	execv(getenv("PANDO_BROKER_PROGRAM"), (char **)argv);
	_exit(126);
}

void daemon_start(struct daemon *d, const char *const *options)
{
	char text[400] = "";
	int ready[2];

	snprintf(d->dir, sizeof(d->dir), "%s/XXXXXX", base_dir);
	CHECK(mkdtemp(d->dir));
	CHECK(chmod(d->dir, 0755) == 0);
	snprintf(d->address, sizeof(d->address), "%s/broker.sock", d->dir);
	snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	CHECK(pipe2(ready, O_CLOEXEC) == 0);
	d->pid = fork();
	CHECK(d->pid >= 0);
	if (d->pid == 0)
		execute(d, options, ready[1]);
	close(ready[1]);
	running = d;
	(void)!read(ready[0], text, sizeof(text) - 1);
	close(ready[0]);
	if (strcmp(text, "ok\n") != 0) {
		fprintf(stderr, "pandod does not start: %s\n", text);
		CHECK(!"started");
	}
}

int daemon_wait(struct daemon *d, double seconds)
{
	double end = daemon_now() + seconds;
	int status = 0, ret;

	/*
	 * A supervisor that the broker started is the runner's child: there its status is not ours
	 * to see.
	 */
	while ((ret = waitpid(d->pid, &status, WNOHANG)) == 0 ||
	       (ret < 0 && kill(d->pid, 0) == 0)) {
		CHECK(daemon_now() < end);
		daemon_nap(0.002);
	}
	CHECK(access(d->address, F_OK) < 0);
	if (getenv("TEST_LOG")) {
		char command[200];

		snprintf(command, sizeof(command), "cat %s >&2", d->log);
		(void)!system(command);
	}
	running = NULL;
	unlink(d->log);
	CHECK(rmdir(d->dir) == 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void daemon_stop(struct daemon *d)
{
	kill(d->pid, SIGTERM);
	CHECK_EQ(daemon_wait(d, PATIENCE), 0);
}

int daemon_fds(pid_t pid)
{
	char path[64];
	DIR *dir;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -1;
	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 2;
}

/* Tries once; false if the broker is not there or the connection ends. */
static bool try_status(struct daemon *d, struct pando_broker_info *info)
{
	int fd = peer_connect(d);
	struct pando__msg msg;
	uint64_t id;
	bool ok;

	if (fd < 0)
		return false;
	ok = peer_hello(fd, &id);
	if (ok) {
		pando__msg_init(&msg, PANDO__MSG_STATUS, 2);
		ok = peer_call(fd, &msg, NULL) == PANDO__MSG_STATUS_REPLY;
		*info = msg.status.info;
	}
	close(fd);
	return ok;
}

void daemon_status(struct daemon *d, struct pando_broker_info *info)
{
	double end = daemon_now() + PATIENCE;

	while (!try_status(d, info))
		CHECK(daemon_now() < end);
}

double daemon_wait_broker(struct daemon *d, pid_t old, struct pando_broker_info *info)
{
	double begin = daemon_now();

	do
		daemon_status(d, info);
	while (info->broker_pid == old && daemon_now() - begin < PATIENCE);
	CHECK(info->broker_pid != old);
	return daemon_now() - begin;
}

int daemon_broker_fds(struct daemon *d)
{
	struct pando_broker_info info;
	int before, now = -1;

	daemon_status(d, &info);
	do {
		before = now;
		daemon_nap(0.02);
		now = daemon_fds(info.broker_pid);
	} while (now != before);
	return now;
}

void daemon_settle(struct daemon *d, uint64_t clients, int fds)
{
	double end = daemon_now() + PATIENCE;
	struct pando_broker_info info;

	/* Counted after a pause: the question itself is a client that comes and goes. */
	do {
		double look = daemon_now() + 0.1;

		daemon_status(d, &info);
		while (info.clients <= clients + 1 && daemon_now() < look) {
			daemon_nap(0.001);
			if (daemon_fds(info.broker_pid) <= fds)
				return;
		}
	} while (daemon_now() < end);
	CHECK_EQ(info.clients, clients + 1);
	CHECK_EQ(daemon_fds(info.broker_pid), fds);
}

/* --- one client, by hand --- */

int peer_connect(const struct daemon *d)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	strcpy(sun.sun_path, d->address);
	if (connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0)
		return fd;
	close(fd);
	return -1;
}

static int receive_any(int fd, struct pando__msg *msg, int fds[PANDO__PROTO_MAX_FDS])
{
	char buf[sizeof(struct pando__msg) + 1], why[160];
	int got[PANDO__PROTO_MAX_FDS], ret;
	unsigned int count;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	ret = poll(&p, 1, (int)(PATIENCE * 1000));
	if (ret <= 0)
		return -ETIMEDOUT;
	ret = pando__msg_receive(fd, buf, sizeof(buf), got, &count, MSG_DONTWAIT);
	if (ret <= 0)
		return ret;
	ret = pando__msg_parse(PANDO__TO_CLIENT, buf, (size_t)ret, count, msg, why, sizeof(why));
	for (unsigned int i = 0; i < PANDO__PROTO_MAX_FDS; i++) {
		if (fds)
			fds[i] = i < count ? got[i] : -1;
		else if (i < count)
			close(got[i]);
	}
	if (ret < 0) {
		snprintf(peer_error, sizeof(peer_error), "unsound answer: %s", why);
		return ret;
	}
	if (msg->header.type == PANDO__MSG_ERROR)
		snprintf(peer_error, sizeof(peer_error), "%s", msg->error.text);
	return msg->header.type;
}

int peer_receive(int fd, struct pando__msg *msg, int fds[PANDO__PROTO_MAX_FDS])
{
	int type;

	do
		type = receive_any(fd, msg, fds);
	while (type == PANDO__MSG_NOTICE);
	return type;
}

int peer_call(int fd, struct pando__msg *msg, int fds[PANDO__PROTO_MAX_FDS])
{
	struct pando__msg request = *msg;
	int ret;

	for (unsigned int i = 0; fds && i < PANDO__PROTO_MAX_FDS; i++)
		fds[i] = -1;
	do { /* again for each new broker, as the protocol has it */
		ret = pando__msg_send(fd, &request, NULL, 0, 0);
		if (ret < 0)
			return ret;
		do
			ret = receive_any(fd, msg, fds);
		while (ret == PANDO__MSG_NOTICE && msg->notice.notice != PANDO__NOTICE_RESTARTED);
	} while (ret == PANDO__MSG_NOTICE);
	if (ret > 0)
		CHECK_EQ(msg->header.seq, request.header.seq);
	return ret;
}

bool peer_hello(int fd, uint64_t *id)
{
	struct pando__msg msg;

	pando__msg_init(&msg, PANDO__MSG_HELLO, 1);
	msg.hello.version_min = msg.hello.version_max = PANDO__PROTO_VERSION;
	strcpy(msg.hello.program, "test");
	if (peer_call(fd, &msg, NULL) != PANDO__MSG_WELCOME)
		return false;
	*id = msg.welcome.client_id;
	return true;
}

static uint64_t next_seq = 100;

int peer_open(int fd, const char *name, uint32_t flags, uint64_t size, uint32_t mode,
	      struct pando__msg_opened *opened, int fds[PANDO__PROTO_MAX_FDS])
{
	struct pando__msg msg;
	int type;

	pando__msg_init(&msg, PANDO__MSG_OPEN, next_seq++);
	snprintf(msg.open.name, sizeof(msg.open.name), "%s", name);
	msg.open.flags = flags;
	msg.open.size = size;
	msg.open.mode = mode;
	msg.open.backend = flags & PANDO_CREATE ? daemon_backend() : 0;
	type = peer_call(fd, &msg, fds);
	if (type == PANDO__MSG_ERROR)
		return -msg.error.error;
	if (type != PANDO__MSG_OPENED)
		return type < 0 ? type : -ECONNRESET;
	if (opened)
		*opened = msg.opened;
	return 0;
}

int peer_done(int fd, struct pando__msg *msg, uint64_t *value)
{
	int type;

	if (msg->header.seq == 0)
		msg->header.seq = next_seq++;
	type = peer_call(fd, msg, NULL);
	if (type == PANDO__MSG_ERROR)
		return -msg->error.error;
	if (type != PANDO__MSG_DONE)
		return type < 0 ? type : -ECONNRESET;
	if (value)
		*value = msg->done.value;
	return 0;
}

void peer_close_fds(int fds[PANDO__PROTO_MAX_FDS])
{
	for (unsigned int i = 0; i < PANDO__PROTO_MAX_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int peer_new(const struct daemon *d)
{
	double end = daemon_now() + PATIENCE;
	uint64_t id;

	for (;;) {
		int fd = peer_connect(d);

		/*
		 * A broker that is killed between accept() and its record takes the connection
		 * along.
		 */
		if (fd >= 0 && peer_hello(fd, &id))
			return fd;
		if (fd >= 0)
			close(fd);
		CHECK(daemon_now() < end);
		daemon_nap(0.002);
	}
}
