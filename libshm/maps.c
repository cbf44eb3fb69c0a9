/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads /proc/self/maps, line by line, from a buffer on the stack: no allocation, since the library
 * must not make mappings while it looks at them. Lines longer than the buffer (paths can be) are
 * cut, which costs the end of a name at most.
 */
#include "maps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* One line: "start-end perms offset dev inode   name". True if it overlaps. */
static int describe(const char *line, uint64_t base, uint64_t size, char *text, size_t text_size)
{
	uint64_t start, end;
	char name[100];
	int at = 0;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %*s%n", &start, &end, &at) < 2 ||
	    at == 0)
		return 0;
	if (end <= base || start >= base + size)
		return 0;
	while (line[at] == ' ')
		at++;
	snprintf(name, sizeof(name), "%s", line[at] ? line + at : "anonymous memory");
	snprintf(text, text_size, "0x%" PRIx64 "-0x%" PRIx64 " (%s)", start, end, name);
	return 1;
}

void pando__maps_find(uint64_t base, uint64_t size, char *text, size_t text_size)
{
	char buf[4096], *line, *newline;
	size_t have = 0;
	ssize_t n;
	int found = 0, fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	snprintf(text, text_size, "something else");
	if (fd < 0)
		return;
	while (!found && ((n = read(fd, buf + have, sizeof(buf) - 1 - have)) > 0 ||
			  (n < 0 && errno == EINTR))) {
		have += n > 0 ? (size_t)n : 0;
		buf[have] = '\0';
		line = buf;
		while (!found && (newline = strchr(line, '\n'))) {
			*newline = '\0';
			found = describe(line, base, size, text, text_size);
			line = newline + 1;
		}
		have = strlen(line);
		memmove(buf, line, have);
		if (have == sizeof(buf) - 1) /* cut */
			have = 0;
	}
	close(fd);
}
