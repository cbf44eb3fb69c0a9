/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How much memory this process may still allocate.
 *
 * The kernel's answer to an allocation that it cannot satisfy is the OOM killer, and the victim may
 * be anybody. So the question is asked before: MemAvailable of /proc/meminfo, less a reserve that
 * keeps the machine alive, and the same for each memory cgroup from this process's own up to the
 * root, of version 1 or 2: its limit less its usage, where the file cache that the group could drop
 * counts as free. The answer is a snapshot and others allocate too; the caller therefore asks again
 * for each piece.
 *
 * Files that are missing or unreadable mean "no limit known" (a container without /sys), except
 * meminfo: without it the answer is 0.
 *
 * Where a process's group lies in the file system: /proc/self/mountinfo names the hierarchy's mount
 * point and which part of the hierarchy it shows (its root field); /proc/self/cgroup gives the
 * process's path in the hierarchy. The path below the shown part is appended to the mount point. A
 * path outside of it (a cgroup namespace, a bind mount) means that the mount point itself is the
 * best that can be seen.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/file.h"

#define RESERVE_LEAST (64ull << 20)
#define RESERVE_MOST (1ull << 30)

struct hierarchy {
	int version; /* 1 or 2; 0: none found */
	char dir[PATH_MAX]; /* this process's group in the file system */
	size_t mount_length; /* of dir: the mount point's part, above which there is nothing */
};

/* Value in bytes of a "Name:   123 kB" line of a meminfo-like text, or 0. */
static uint64_t meminfo_field(const char *text, const char *name)
{
	size_t n = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, n) == 0 && line[n] == ':')
			return strtoull(line + n + 1, NULL, 10) * 1024;
		if (*line == '\0')
			break;
	}
	return 0;
}

/* Value of a "name 123" line of memory.stat, or 0. */
static uint64_t stat_field(const char *text, const char *name)
{
	size_t n = strlen(name);

	for (const char *line = text; line && *line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, n) == 0 && line[n] == ' ')
			return strtoull(line + n + 1, NULL, 10);
	}
	return 0;
}

/* True if the comma-separated list has the word. */
static bool listed(const char *list, const char *word)
{
	size_t n = strlen(word);

	for (const char *s = strstr(list, word); s; s = strstr(s + 1, word))
		if ((s == list || s[-1] == ',') && (s[n] == ',' || s[n] == '\0' || s[n] == '\n'))
			return true;
	return false;
}

/* Finds this process's path in the hierarchy; false if it is in none. version 2: the "0::" line. */
static bool own_path(const char *root, const char *controller, int version, char *path, size_t size)
{
	char file[PATH_MAX], line[PATH_MAX + 256];
	bool found = false;
	FILE *f;

	snprintf(file, sizeof(file), "%s/proc/self/cgroup", root);
	f = fopen(file, "re");
	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f)) {
		char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;

		if (!second)
			continue;
		*second = '\0';
		if (version == 2 ? first[1] != '\0' : !listed(first + 1, controller))
			continue;
		second[1 + strcspn(second + 1, "\n")] = '\0';
		found = (size_t)snprintf(path, size, "%s", second + 1) < size;
	}
	fclose(f);
	return found;
}

/*
 * One line of mountinfo. True if it mounts a hierarchy with this controller: *shown and *point get
 * its fields.
 */
static bool cgroup_mount(char *line, const char *controller, int *version, char **shown,
			 char **point)
{
	char *dash = strstr(line, " - "), *save = NULL, *type, *options;

	if (!dash)
		return false;
	*dash = '\0';
	type = strtok_r(dash + 3, " \n", &save);
	strtok_r(NULL, " \n", &save); /* the source */
	options = strtok_r(NULL, " \n", &save);
	if (!type || !options)
		return false;
	if (strcmp(type, "cgroup2") == 0)
		*version = 2;
	else if (strcmp(type, "cgroup") == 0 && listed(options, controller))
		*version = 1;
	else
		return false;
	strtok_r(line, " ", &save);
	strtok_r(NULL, " ", &save);
	strtok_r(NULL, " ", &save);
	*shown = strtok_r(NULL, " ", &save);
	*point = strtok_r(NULL, " ", &save);
	return *shown && *point;
}

static void place(const char *root, const char *controller, const char *shown, const char *point,
		  int version, struct hierarchy *h)
{
	char path[PATH_MAX];
	const char *below = "";
	size_t n = strcmp(shown, "/") == 0 ? 0 : strlen(shown);

	if (!own_path(root, controller, version, path, sizeof(path)))
		return;
	if (strncmp(path, shown, n) == 0 && (path[n] == '/' || path[n] == '\0') &&
	    !strstr(path, "/.."))
		below = path + n;
	if ((size_t)snprintf(h->dir, sizeof(h->dir), "%s%s%s", root, point,
			     strcmp(below, "/") == 0 ? "" : below) >= sizeof(h->dir))
		return;
	h->mount_length = strlen(root) + strlen(point);
	h->version = version;
}

/* A version 1 hierarchy of the controller wins over version 2, which then cannot have it. */
static void find_hierarchy(const char *root, const char *controller, struct hierarchy *h)
{
	char file[PATH_MAX], line[PATH_MAX * 2];
	FILE *f;

	h->version = 0;
	snprintf(file, sizeof(file), "%s/proc/self/mountinfo", root);
	f = fopen(file, "re");
	if (!f)
		return;
	while (h->version != 1 && fgets(line, sizeof(line), f)) {
		char *shown, *point;
		int version;

		if (cgroup_mount(line, controller, &version, &shown, &point) &&
		    (version == 1 || h->version == 0))
			place(root, controller, shown, point, version, h);
	}
	fclose(f);
}

static uint64_t read_in(const char *dir, const char *name, uint64_t otherwise)
{
	char file[PATH_MAX + 64];

	snprintf(file, sizeof(file), "%s/%s", dir, name);
	return pando__read_u64(file, otherwise);
}

/* File cache of a group that the kernel would drop before it gave up. */
static uint64_t droppable(const char *dir, int version)
{
	char file[PATH_MAX + 64], text[8192];

	snprintf(file, sizeof(file), "%s/memory.stat", dir);
	if (pando__read_text(file, text, sizeof(text)) <= 0)
		return 0;
	return version == 2
		       ? stat_field(text, "inactive_file") + stat_field(text, "active_file") / 2
		       : stat_field(text, "total_inactive_file") +
				 stat_field(text, "total_active_file") / 2;
}

static uint64_t group_headroom(const char *dir, int version, bool memory)
{
	uint64_t limit, usage, cache = 0;

	if (memory) {
		limit = read_in(dir, version == 2 ? "memory.max" : "memory.limit_in_bytes",
				UINT64_MAX);
		usage = read_in(dir, version == 2 ? "memory.current" : "memory.usage_in_bytes", 0);
	} else {
		limit = read_in(dir,
				version == 2 ? "hugetlb.2MB.max" : "hugetlb.2MB.limit_in_bytes",
				UINT64_MAX);
		usage = read_in(dir,
				version == 2 ? "hugetlb.2MB.current" : "hugetlb.2MB.usage_in_bytes",
				0);
	}
	if (limit >= INT64_MAX / 2) /* version 1 spells "no limit" as a huge number */
		return UINT64_MAX;
	if (memory)
		cache = droppable(dir, version);
	usage = usage > cache ? usage - cache : 0;
	return limit > usage ? limit - usage : 0;
}

uint64_t pando__cgroup_headroom(const char *root, const char *controller)
{
	const bool memory = strcmp(controller, "memory") == 0;
	struct hierarchy h;
	uint64_t least = UINT64_MAX;

	find_hierarchy(root, controller, &h);
	if (h.version == 0)
		return UINT64_MAX;
	for (;;) {
		uint64_t here = group_headroom(h.dir, h.version, memory);
		char *slash;

		least = here < least ? here : least;
		slash = strrchr(h.dir, '/');
		if (!slash || (size_t)(slash - h.dir) < h.mount_length)
			return least;
		*slash = '\0';
	}
}

uint64_t pando__memory_available_under(const char *root)
{
	char file[PATH_MAX], text[8192];
	uint64_t available, reserve, group;

	snprintf(file, sizeof(file), "%s/proc/meminfo", root);
	if (pando__read_text(file, text, sizeof(text)) <= 0)
		return 0;
	available = meminfo_field(text, "MemAvailable");
	reserve = meminfo_field(text, "MemTotal") / 64;
	reserve = reserve < RESERVE_LEAST  ? RESERVE_LEAST
		  : reserve > RESERVE_MOST ? RESERVE_MOST
					   : reserve;
	available = available > reserve ? available - reserve : 0;
	group = pando__cgroup_headroom(root, "memory");
	return group < available ? group : available;
}

uint64_t pando__memory_available(void)
{
	return pando__memory_available_under("");
}
