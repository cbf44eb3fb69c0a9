/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Making and removing the listening socket.
 *
 * Looking whether a path is stale, removing it and binding it again are three steps; two daemons
 * that start at once could remove each other's fresh socket between them. So the steps are done
 * under a lock (flock) on the directory, which leaves nothing behind. Somebody else may hold that
 * lock for ever, as anybody may open the directory: after a second we go on without it.
 *
 * The same check serves the end: the socket is closed first, and the path is removed only if nobody
 * answers behind it then, so a path that another daemon has taken meanwhile stays.
 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/fail.h"
#include "log.h"

#define FIRST_PASSED_FD 3 /* of systemd's protocol */

static int fill_address(const char *address, struct sockaddr_un *sun, socklen_t *size)
{
	size_t n = strlen(address);

	memset(sun, 0, sizeof(*sun));
	sun->sun_family = AF_UNIX;
	if (n < 2 || (address[0] != '/' && address[0] != '@'))
		return pando__fail(EINVAL, "socket \"%s\" is neither an absolute path nor @NAME",
				   address);
	if (n >= sizeof(sun->sun_path))
		return pando__fail(ENAMETOOLONG, "the socket's path is longer than %zu bytes: %s",
				   sizeof(sun->sun_path) - 1, address);
	memcpy(sun->sun_path, address, n);
	*size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
	if (address[0] == '@') {
		sun->sun_path[0] = '\0';
		*size -= 1; /* an abstract name has no terminator */
	}
	return 0;
}

static int make_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd >= 0 ? fd : pando__fail(errno, "cannot make a socket: %s", strerror(errno));
}

/*
 * The number that systemd passed us, or -1. Forgets the environment, so that children do not take
 * it.
 */
static int passed_fds(void)
{
	const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
	int count = -1;

	if (pid && fds && strtol(pid, NULL, 10) == getpid())
		count = (int)strtol(fds, NULL, 10);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return count;
}

static int take_passed(int count)
{
	int type = 0, listening = 0, flags;
	socklen_t size = sizeof(int);

	for (int i = 1; i < count; i++)
		close(FIRST_PASSED_FD + i);
	if (count > 1)
		log_warn("systemd passed %d sockets; the first is used", count);
	if (getsockopt(FIRST_PASSED_FD, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
	    getsockopt(FIRST_PASSED_FD, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 ||
	    type != SOCK_SEQPACKET || !listening)
		return pando__fail(EINVAL,
				   "the socket that systemd passed does not listen for packets; "
				   "use ListenSequentialPacket= in the socket unit");
	flags = fcntl(FIRST_PASSED_FD, F_GETFL);
	if (flags < 0 || fcntl(FIRST_PASSED_FD, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    fcntl(FIRST_PASSED_FD, F_SETFD, FD_CLOEXEC) < 0)
		return pando__fail(errno, "cannot set up the socket that systemd passed: %s",
				   strerror(errno));
	return FIRST_PASSED_FD;
}

/*
 * Makes the path's directory (one level) and locks it. Returns a descriptor to close, or -1: no
 * lock.
 */
static int lock_directory(const char *path)
{
	char dir[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *slash = strrchr(path, '/');
	int fd;

	if (slash == path)
		strcpy(dir, "/");
	else
		snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
	if (mkdir(dir, 0755) == 0)
		(void)!chmod(dir, 0755); /* whatever the umask */
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; fd >= 0 && i < 100; i++) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return fd;
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

/*
 * Removes a path behind which nobody listens. Returns 0 (there is nothing there now) or a negative
 * errno with a sentence: -EADDRINUSE (somebody answers), -EEXIST (not a socket).
 */
static int remove_stale(const char *path, const struct sockaddr_un *sun, socklen_t size)
{
	struct stat st;
	int fd, err = 0;

	if (lstat(path, &st) < 0)
		return errno == ENOENT
			       ? 0
			       : pando__fail(errno, "cannot look at %s: %s", path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return pando__fail(
			EEXIST, "%s exists and is not a socket; remove it or use --socket", path);
	fd = make_socket();
	if (fd < 0)
		return fd;
	if (connect(fd, (const struct sockaddr *)sun, size) < 0)
		err = errno;
	close(fd);
	if (err != ECONNREFUSED && err != ENOENT)
		return pando__fail(EADDRINUSE,
				   "a broker is already running at %s; use --socket for another",
				   path);
	if (unlink(path) < 0 && errno != ENOENT)
		return pando__fail(errno, "cannot remove the stale socket %s: %s", path,
				   strerror(errno));
	return 0;
}

static int bind_and_listen(int fd, const char *address, const struct sockaddr_un *sun,
			   socklen_t size)
{
	if (bind(fd, (const struct sockaddr *)sun, size) < 0) {
		if (errno == EADDRINUSE)
			return pando__fail(EADDRINUSE,
					   "a broker is already running at %s; use --socket for "
					   "another",
					   address);
		return pando__fail(errno, "cannot bind the socket %s: %s", address,
				   strerror(errno));
	}
	if (address[0] == '/' && chmod(address, 0666) < 0)
		return pando__fail(errno, "cannot set the mode of %s: %s", address,
				   strerror(errno));
	if (listen(fd, SOMAXCONN) < 0)
		return pando__fail(errno, "cannot listen at %s: %s", address, strerror(errno));
	return 0;
}

int listen_open(const char *address, bool *ours)
{
	int passed = passed_fds(), fd, lock = -1, ret;
	struct sockaddr_un sun;
	socklen_t size;

	*ours = passed <= 0;
	if (passed > 0)
		return take_passed(passed);
	ret = fill_address(address, &sun, &size);
	if (ret < 0)
		return ret;
	fd = make_socket();
	if (fd < 0)
		return fd;
	if (address[0] == '/') {
		lock = lock_directory(address);
		ret = remove_stale(address, &sun, size);
	}
	if (ret == 0)
		ret = bind_and_listen(fd, address, &sun, size);
	if (lock >= 0)
		close(lock);
	if (ret < 0) {
		close(fd);
		return ret;
	}
	return fd;
}

void listen_close(int fd, const char *address, bool ours)
{
	struct sockaddr_un sun;
	socklen_t size;
	int lock;

	close(fd);
	if (!ours || address[0] != '/' || fill_address(address, &sun, &size) < 0)
		return;
	lock = lock_directory(address);
	(void)remove_stale(address, &sun, size);
	if (lock >= 0)
		close(lock);
}
