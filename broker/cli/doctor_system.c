/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando doctor: limits of this process, and the broker.
 *
 * Limits are this process's: what a service gets may differ (its unit's Limit... settings), and the
 * commands that mend say how for a shell. The address window is looked at here because every
 * program inherits its neighbours: a sanitizer, an emulator or a limit on address space may be in
 * the way.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "cli.h"
#include "common/layout.h"
#include "common/size.h"
#include "config.h"
#include "doctor.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/*
 * A client needs a connection in the broker and one in the supervisor, a pidfd in each, and some
 * for regions.
 */
#define FDS_PER_CLIENT 2u
#define ENOUGH_FDS 4096u

static void check_nofile(struct doctor *d)
{
	struct rlimit r;
	char mend[64];

	if (getrlimit(RLIMIT_NOFILE, &r) != 0)
		return;
	if (r.rlim_cur >= ENOUGH_FDS) {
		found(d, "open files", false, DOCTOR_OK, NULL,
		      "%ju descriptors: a broker started here can serve about %ju clients",
		      (uintmax_t)r.rlim_cur, (uintmax_t)(r.rlim_cur / FDS_PER_CLIENT));
		return;
	}
	snprintf(mend, sizeof(mend), "ulimit -n %ju",
		 (uintmax_t)(r.rlim_max > ENOUGH_FDS ? r.rlim_max : 65536));
	found(d, "open files", false, DOCTOR_LIMITED, mend,
	      "%ju descriptors: a broker started here can serve about %ju clients only",
	      (uintmax_t)r.rlim_cur, (uintmax_t)(r.rlim_cur / FDS_PER_CLIENT));
}

static void check_memlock(struct doctor *d)
{
	struct rlimit r;
	char size[PANDO__SIZE_TEXT];

	if (getrlimit(RLIMIT_MEMLOCK, &r) != 0)
		return;
	if (r.rlim_cur == RLIM_INFINITY || geteuid() == 0)
		found(d, "locked memory", false, DOCTOR_OK, NULL,
		      "regions may be locked into memory without limit");
	else
		found(d, "locked memory", false, DOCTOR_LIMITED, "ulimit -l unlimited",
		      "%s of regions may be locked into memory (Pando itself locks none)",
		      pando__size_format(r.rlim_cur, size));
}

static void check_cgroup(struct doctor *d)
{
	uint64_t memory = pando__cgroup_headroom("", "memory"),
		 huge = pando__cgroup_headroom("", "hugetlb");
	char text[PANDO__SIZE_TEXT], all[PANDO__SIZE_TEXT];
	const uint64_t available = pando__memory_available();

	if (memory == UINT64_MAX)
		found(d, "cgroup memory", false, DOCTOR_OK, NULL,
		      "no limit below the machine's; %s can be had",
		      pando__size_format(available, all));
	else
		found(d, "cgroup memory", false, DOCTOR_LIMITED,
		      "systemctl set-property pandod.service MemoryMax=infinity",
		      "a cgroup of this process leaves it %s; raise its memory.max (MemoryMax= of "
		      "the unit)",
		      pando__size_format(memory, text));
	if (huge != UINT64_MAX)
		found(d, "cgroup hugetlb", false, DOCTOR_LIMITED, NULL,
		      "a cgroup of this process leaves it %s of 2 MiB pages; raise its "
		      "hugetlb.2MB.max",
		      pando__size_format(huge, text));
}

void checks_limits(struct doctor *d)
{
	check_nofile(d);
	check_memlock(d);
	check_cgroup(d);
}

/* What is mapped in [base, base + size) of this process, or "". */
static void neighbour(uint64_t base, uint64_t size, char *text, size_t n)
{
	char line[512];
	FILE *f = fopen("/proc/self/maps", "re");

	text[0] = '\0';
	while (f && fgets(line, sizeof(line), f)) {
		unsigned long long from, to;

		if (sscanf(line, "%llx-%llx", &from, &to) == 2 && from < base + size && to > base) {
			line[strcspn(line, "\n")] = '\0';
			snprintf(text, n, "%.*s", (int)n - 1, line);
			break;
		}
	}
	if (f)
		fclose(f);
}

static void check_window(struct doctor *d, uint64_t base, uint64_t size)
{
	void *want = (void *)(uintptr_t)base, *got;
	char taken[256], length[PANDO__SIZE_TEXT];

	pando__size_format(size, length);
	got = mmap(want, size, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (got != MAP_FAILED)
		munmap(got, size);
	if (got == want) {
		found(d, "address window", true, DOCTOR_OK, NULL,
		      "%s at 0x%" PRIx64 " are free in this process", length, base);
		return;
	}
	neighbour(base, size, taken, sizeof(taken));
	if (taken[0])
		found(d, "address window", true, DOCTOR_LIMITED,
		      "pandod --window-base 0x040000000000", "in %s at 0x%" PRIx64 " lies: %s",
		      length, base, taken);
	else
		found(d, "address window", true, DOCTOR_MISSING, "ulimit -v unlimited",
		      "%s at 0x%" PRIx64 " cannot be mapped: %s", length, base, strerror(errno));
}

/* No broker answered: is that a fault, or will programs start one of their own? */
static void no_broker(struct doctor *d, int code, const char *why)
{
	const char *program = getenv("PANDO_BROKER_PROGRAM");
	const char *address = cli.broker ? cli.broker : getenv("PANDO_BROKER");
	char mend[160];

	if (!program || !program[0])
		program = PANDO_BINDIR "/pandod";
	if (code == CLI_PROTOCOL) {
		found(d, "broker", true, DOCTOR_OK, NULL, "one is running");
		found(d, "version", true, DOCTOR_MISSING, "systemctl restart pandod", "%s", why);
		return;
	}
	if (code == CLI_DENIED) {
		found(d, "broker", true, DOCTOR_OK, NULL, "one is running");
		found(d, "socket rights", true, DOCTOR_MISSING, "chmod 0666 /run/pando/broker.sock",
		      "%s", why);
		return;
	}
	if (address && address[0]) {
		snprintf(mend, sizeof(mend), "pandod --socket %.120s", address);
		found(d, "broker", true, DOCTOR_MISSING, mend, "%s", why);
	} else if (access(program, X_OK) == 0) {
		found(d, "broker", false, DOCTOR_LIMITED, "systemctl enable --now pandod.socket",
		      "none is running: each program starts one of its own, and shares only with "
		      "its children");
	} else {
		found(d, "broker", true, DOCTOR_MISSING, "pandod",
		      "none is running, and %s, which programs would start, is not there", program);
	}
}

void checks_broker(struct doctor *d)
{
	struct pando_broker_info info = {.window_base = PANDO__WINDOW_BASE,
					 .window_size = PANDO__WINDOW_SIZE};
	struct pando *p = NULL;
	const char *why;
	int code = cli_try_connect(&p, &why);

	if (code == CLI_OK && pando_broker_info(p, &info) == 0) {
		found(d, "broker", true, DOCTOR_OK, NULL,
		      "process %d answers at %s; it has %" PRIu64 " clients and %" PRIu64
		      " regions, and makes new ones on %s",
		      info.broker_pid, pando_broker_address(p), info.clients, info.regions,
		      pando_backend_name(info.default_backend));
		found(d, "socket rights", true, DOCTOR_OK, NULL, "this user may connect");
		if (strcmp(info.version, pando_version()) == 0)
			found(d, "version", true, DOCTOR_OK, NULL, "command and broker are both %s",
			      info.version);
		else
			found(d, "version", false, DOCTOR_LIMITED, "systemctl restart pandod",
			      "the broker is %s, this command %s; they understand each other",
			      info.version, pando_version());
	} else {
		no_broker(d, code, code == CLI_OK ? pando_strerror_last() : why);
	}
	check_window(d, info.window_base, info.window_size);
	pando_disconnect(p);
}
