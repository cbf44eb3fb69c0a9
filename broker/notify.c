/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Readiness and state for the starter of the daemon.
 *
 * systemd's notification protocol is one datagram of "NAME=VALUE" lines to the socket named by
 * $NOTIFY_SOCKET, stable and documented in sd_notify(3); speaking it directly keeps the daemon free
 * of libsystemd and what comes with it.
 */
#include "notify.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void notify_systemd(const char *fmt, ...)
{
	const char *address = secure_getenv("NOTIFY_SOCKET");
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	char text[512];
	socklen_t size;
	va_list ap;
	int fd, n;

	if (!address || (address[0] != '/' && address[0] != '@') ||
	    strlen(address) >= sizeof(sun.sun_path))
		return;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof(text))
		return;
	memcpy(sun.sun_path, address, strlen(address));
	if (address[0] == '@')
		sun.sun_path[0] = '\0';
	size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(address));
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	(void)!sendto(fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&sun,
		      size);
	close(fd);
}

void notify_ready_fd(int *fd, const char *error)
{
	if (*fd < 0)
		return;
	/*
	 * SIGPIPE is ignored in the daemon's processes: a reader that went away is no reason to
	 * end.
	 */
	if (error)
		dprintf(*fd, "%s\n", error);
	else
		dprintf(*fd, "ok\n");
	close(*fd);
	*fd = -1;
}
