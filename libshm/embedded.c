/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A broker for this program and its children, when there is none for the machine.
 *
 * The program `pandod --embedded` listens at an abstract address that only this user may use, and
 * ends with its last client. Its address goes into $PANDO_BROKER, so that programs which this one
 * executes find it.
 *
 * It is nobody's child: made by two raw clone() calls, so that no fork() handler of the host
 * program runs, no SIGCHLD reaches it, and its wait() calls do not see a process that it does not
 * know (the intermediate one is made without a signal, which hides it from wait()). It gets a
 * session of its own, so that Ctrl-C does not hit it; no descriptor but the readiness pipe; default
 * signal actions; and no LD_PRELOAD, for a preloaded shim would make the broker a client of itself.
 *
 * The pipe says "ok" when connections are accepted, or the sentence of what is wrong.
 *
 * Between clone() and execve() the child of a threaded program must do with system calls alone:
 * what needs memory (arguments, environment) is made before.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fail.h"
#include "config.h"

extern char **environ;

#define READY_MS 10000
#define READY_FD 3

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static char started[64]; /* the address of the last one that this process started; under starting */
static int ready_pipe[2] = {-1, -1};

void pando__embedded_forked(void)
{
	pthread_mutex_init(&starting, NULL);
	for (int i = 0; i < 2; i++) {
		if (ready_pipe[i] >= 0)
			close(ready_pipe[i]);
		ready_pipe[i] = -1;
	}
}

/* What the new process needs, made before it exists. */
struct plan {
	const char *program;
	char *argv[8];
	char **envp;
	int ready; /* write end */
};

static char **environment(void)
{
	size_t n = 0, kept = 0;
	char **envp;

	while (environ && environ[n])
		n++;
	envp = calloc(n + 1, sizeof(*envp));
	for (size_t i = 0; envp && i < n; i++)
		if (strncmp(environ[i], "LD_PRELOAD=", 11) != 0)
			envp[kept++] = environ[i];
	return envp;
}

static void close_others(void)
{
#ifdef SYS_close_range
	if (syscall(SYS_close_range, READY_FD + 1u, ~0u, 0) == 0)
		return;
#endif
	for (long fd = READY_FD + 1, end = sysconf(_SC_OPEN_MAX); fd < end; fd++)
		close((int)fd);
}

/* In the grandchild. System calls only. */
__attribute__((noreturn)) static void become_broker(const struct plan *plan)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigset_t none;
	int null, err;
	char text[128];

	for (int s = 1; s < NSIG; s++)
		(void)sigaction(s, &dfl, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (chdir("/") < 0)
		_exit(1);
	if (plan->ready != READY_FD) {
		dup2(plan->ready, READY_FD);
	} else {
		fcntl(READY_FD, F_SETFD, 0);
	}
	close_others();
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		if (null >= 0 && null != fd)
			dup2(null, fd);
	if (null > 2 && null != READY_FD)
		close(null);
	execve(plan->program, plan->argv, plan->envp);
	err = errno;
	/* strerror() may allocate; the parent turns the number into words. */
	text[0] = 'E';
	text[1] = (char)('0' + err / 100 % 10);
	text[2] = (char)('0' + err / 10 % 10);
	text[3] = (char)('0' + err % 10);
	if (write(READY_FD, text, 4) < 0)
		_exit(1);
	_exit(1);
}

/* Like fork(), but without handlers and without a signal at the end. */
static pid_t quiet_fork(void)
{
	return (pid_t)syscall(SYS_clone, 0ul, NULL, NULL, NULL, 0ul);
}

static int spawn(const struct plan *plan)
{
	sigset_t all, before;
	pid_t child;
	int status, err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all,
			&before); /* no handler of the host's runs in the copies */
	child = quiet_fork();
	if (child == 0) {
		setsid();
		child = quiet_fork();
		if (child == 0)
			become_broker(plan);
		_exit(child < 0);
	}
	err = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (child < 0)
		return pando__fail(err, "cannot start an embedded broker: %s", strerror(err));
	while (waitpid(child, &status, __WALL) < 0 && errno == EINTR)
		;
	return 0;
}

/* Reads the word of readiness. */
static int await_ready(const struct plan *plan, int fd)
{
	char text[PANDO__ERROR_MAX];
	size_t have = 0;
	uint64_t deadline = pando__now_ns(CLOCK_MONOTONIC) + READY_MS * 1000000ull;

	for (;;) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		uint64_t now = pando__now_ns(CLOCK_MONOTONIC);
		ssize_t n;

		if (now >= deadline || poll(&pfd, 1, (int)((deadline - now) / 1000000) + 1) == 0)
			return pando__fail(ETIMEDOUT,
					   "the embedded broker %s was not ready within %d s",
					   plan->program, READY_MS / 1000);
		n = read(fd, text + have, sizeof(text) - 1 - have);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		have += n > 0 ? (size_t)n : 0;
		text[have] = '\0';
		if (strcmp(text, "ok\n") == 0)
			return 0;
		if (n > 0 && have < sizeof(text) - 1)
			continue;
		text[strcspn(text, "\n")] = '\0';
		if (text[0] == 'E' && have == 4) {
			int err = atoi(text + 1);

			return pando__fail(err == ENOENT ? ECONNREFUSED : err,
					   "no broker is running, and %s cannot be started as an "
					   "embedded one: %s; "
					   "install it or set PANDO_BROKER_PROGRAM",
					   plan->program, strerror(err));
		}
		return pando__fail(ECONNREFUSED, "the embedded broker %s ended%s%s", plan->program,
				   text[0] ? ": " : " before it was ready", text);
	}
}

static void close_pipe(int end)
{
	if (ready_pipe[end] >= 0)
		close(ready_pipe[end]);
	ready_pipe[end] = -1;
}

/* A write end that survives exec only as READY_FD, and no standard stream's number for either. */
static int make_pipe(void)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return pando__fail(errno, "cannot make a pipe to start an embedded broker: %s",
				   strerror(errno));
	for (int i = 0; i < 2; i++) {
		ready_pipe[i] = fcntl(ends[i], F_DUPFD_CLOEXEC, READY_FD);
		close(ends[i]);
	}
	if (ready_pipe[0] >= 0 && ready_pipe[1] >= 0)
		return 0;
	close_pipe(0);
	close_pipe(1);
	return pando__fail(
		EMFILE,
		"no descriptor is free to start an embedded broker; raise the limit on open "
		"files (ulimit -n)");
}

static int start(char *address, size_t size)
{
	const char *program = secure_getenv("PANDO_BROKER_PROGRAM");
	struct plan plan = {.program = program && program[0] ? program : PANDO_BINDIR "/pandod"};
	uint64_t random = 0;
	char ready[12];
	int rc;

	if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random))
		random = pando__now_ns(CLOCK_MONOTONIC);
	snprintf(address, size, "@pando-%d-%016" PRIx64, (int)getpid(), random);
	snprintf(ready, sizeof(ready), "%d", READY_FD);
	plan.argv[0] = (char *)(uintptr_t)plan.program;
	plan.argv[1] = (char *)(uintptr_t) "--embedded";
	plan.argv[2] = (char *)(uintptr_t) "--socket";
	plan.argv[3] = address;
	plan.argv[4] = (char *)(uintptr_t) "--ready-fd";
	plan.argv[5] = ready;
	plan.envp = environment();
	if (!plan.envp)
		return pando__fail(ENOMEM, "no memory to start an embedded broker");
	rc = make_pipe();
	if (rc == 0) {
		plan.ready = ready_pipe[1];
		rc = spawn(&plan);
		close_pipe(1);
		if (rc == 0)
			rc = await_ready(&plan, ready_pipe[0]);
		close_pipe(0);
	}
	free(plan.envp);
	return rc;
}

int pando__embedded_start(const char *refused, char *address, size_t size)
{
	int rc = 0;

	pthread_mutex_lock(&starting);
	/* Another thread may have started one while this one was finding out that there is none. */
	if (!started[0] || (refused && strcmp(started, refused) == 0))
		rc = start(started, sizeof(started));
	if (rc == 0 && setenv("PANDO_BROKER", started, 1) < 0)
		rc = pando__fail(ENOMEM, "no memory to set PANDO_BROKER");
	if (rc == 0)
		snprintf(address, size, "%s", started);
	else
		started[0] = '\0';
	pthread_mutex_unlock(&starting);
	return rc;
}
