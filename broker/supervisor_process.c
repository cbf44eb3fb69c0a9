/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fork() and exec of the daemon's other process.
 *
 * The broker has threads, so between fork() and exec only async-signal-safe calls are made, on
 * strings that were prepared before. A process to be detached is started through one in between
 * that exits at once: its parent is then init, and no exit status waits for a broker that has other
 * things to do.
 */
#include "supervisor_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fail.h"
#include "supervisor.h"

struct command {
	char option[48], config[32];
	char *argv[4];
	int channel, config_fd;
};

/* In the new process, after fork(). Does not return. */
static void execute(struct command *c)
{
	sigset_t none;

	for (int i = 1; i < NSIG; i++)
		if (i != SIGPIPE && i != SIGKILL && i != SIGSTOP)
			signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (fcntl(c->channel, F_SETFD, 0) == 0 && fcntl(c->config_fd, F_SETFD, 0) == 0)
		execv("/proc/self/exe", c->argv);
	_exit(127);
}

static pid_t fork_command(struct command *c, bool detach)
{
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	if (!detach)
		execute(c);
	pid = fork();
	if (pid == 0)
		execute(c);
	_exit(pid < 0 ? 1 : 0);
}

/* Starts the command; all descriptors stay the caller's. */
static int start(struct command *c, bool detach, pid_t *pid)
{
	int status = 0;

	*pid = fork_command(c, detach);
	if (*pid < 0)
		return pando__fail(errno, "cannot start a process: %s", strerror(errno));
	if (!detach)
		return 0;
	while (waitpid(*pid, &status, 0) < 0 && errno == EINTR)
		;
	*pid = 0;
	return status == 0 ? 0 : pando__fail(EAGAIN, "cannot start a process");
}

int supervisor_spawn(const struct broker_config *config, const char *option, bool detach,
		     int *channel, pid_t *pid)
{
	struct broker_config copy = *config;
	struct command c;
	int pair[2], ret;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return pando__fail(errno, "cannot make a channel: %s", strerror(errno));
	copy.ready_fd = copy.channel = -1; /* numbers that mean nothing over there */
	c.config_fd = config_to_fd(&copy);
	if (c.config_fd < 0) {
		ret = pando__fail(-c.config_fd, "cannot write the configuration: %s",
				  strerror(-c.config_fd));
		close(pair[0]);
		close(pair[1]);
		return ret;
	}
	c.channel = pair[1];
	snprintf(c.option, sizeof(c.option), "%s=%d", option, c.channel);
	snprintf(c.config, sizeof(c.config), "--config-fd=%d", c.config_fd);
	c.argv[0] = (char[]){"pandod"};
	c.argv[1] = c.option;
	c.argv[2] = c.config;
	c.argv[3] = NULL;
	ret = start(&c, detach, pid);
	close(c.config_fd);
	close(pair[1]);
	if (ret < 0)
		close(pair[0]);
	else
		*channel = pair[0];
	return ret;
}

int supervisor_respawn(const struct broker_config *config, struct store **out)
{
	int channel, ret;
	pid_t pid;

	ret = supervisor_spawn(config, "--supervise-channel", true, &channel, &pid);
	return ret < 0 ? ret : store_open(out, channel);
}
