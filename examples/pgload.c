/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pgload: what one more PostgreSQL connection costs. Driven by examples/demo.
 *
 * usage: pgload CONNINFO CLIENTS QUERY
 *
 * Opens CLIENTS connections one after the other and keeps them all. On each it first runs a trivial
 * query, so that the backend has loaded what every backend loads, and reads the backend's
 * page-table size (VmPTE) and count of minor faults from /proc: the baseline. Then it runs QUERY,
 * which is meant to touch every buffer, and reads both again. What is printed is the difference:
 * the part that comes from touching shared memory.
 *
 * One line per connection on standard output, tab-separated:
 *
 *	number	connect_ms	pagetables_kb	minor_faults	baseline_kb	machine_kb
 *
 * connect_ms is the time from opening the connection to the end of QUERY; machine_kb is what the page
 * tables of all processes of the machine take then (PageTables of /proc/meminfo). Progress goes to standard
 * error when that is a terminal. Exits with 0, or with 1 and one sentence. The database is on this
 * machine: /proc of its backends is read, for which the caller is root or the same user.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

struct usage {
	long pagetables_kb;
	long minor_faults;
};

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static int read_path(const char *path, char *buf, size_t size)
{
	size_t n;
	FILE *f = fopen(path, "re");

	if (!f)
		return -1;
	n = fread(buf, 1, size - 1, f);
	buf[n] = '\0';
	fclose(f);
	return n ? 0 : -1;
}

static int read_file(int pid, const char *name, char *buf, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return read_path(path, buf, size);
}

/* Page tables of the whole machine in kB, or -1. */
static long machine_kb(void)
{
	char buf[8192], *p;

	if (read_path("/proc/meminfo", buf, sizeof(buf)) != 0 ||
	    !(p = strstr(buf, "\nPageTables:")))
		return -1;
	return strtol(p + strlen("\nPageTables:"), NULL, 10);
}

static int read_usage(int pid, struct usage *u)
{
	char buf[4096], *p;

	if (read_file(pid, "status", buf, sizeof(buf)) != 0 || !(p = strstr(buf, "VmPTE:")))
		return -1;
	u->pagetables_kb = strtol(p + 6, NULL, 10);
	if (read_file(pid, "stat", buf, sizeof(buf)) != 0 || !(p = strrchr(buf, ')')))
		return -1;
	/* After the name: state ppid pgrp session tty tpgid flags minflt */
	p++;
	for (int field = 0; field < 7 && p; field++)
		p = strchr(p + 1, ' ');
	if (!p)
		return -1;
	u->minor_faults = strtol(p, NULL, 10);
	return 0;
}

static int run_query(PGconn *c, const char *query)
{
	PGresult *r = PQexec(c, query);
	ExecStatusType status = PQresultStatus(r);

	PQclear(r);
	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return 0;
	fprintf(stderr, "pgload: query failed: %s", PQerrorMessage(c));
	return -1;
}

/*
 * Opens one connection, touches everything, and prints its line. Returns the connection, or NULL.
 */
static PGconn *one(const char *conninfo, int number, const char *query)
{
	struct usage before, after;
	double start = now_ms(), spent, paused;
	PGconn *c = PQconnectdb(conninfo);
	int pid;

	if (PQstatus(c) != CONNECTION_OK) {
		fprintf(stderr, "pgload: connection %d failed: %s", number, PQerrorMessage(c));
		PQfinish(c);
		return NULL;
	}
	pid = PQbackendPID(c);
	if (run_query(c, "SELECT count(*) FROM pg_class") != 0)
		goto fail;
	paused = now_ms(); /* looking into /proc is not part of the time */
	if (read_usage(pid, &before) != 0)
		goto gone;
	start += now_ms() - paused;
	if (run_query(c, query) != 0)
		goto fail;
	spent = now_ms() - start;
	if (read_usage(pid, &after) != 0)
		goto gone;
	printf("%d\t%.3f\t%ld\t%ld\t%ld\t%ld\n", number, spent,
	       after.pagetables_kb - before.pagetables_kb, after.minor_faults - before.minor_faults,
	       before.pagetables_kb, machine_kb());
	return c;
gone:
	fprintf(stderr, "pgload: cannot read /proc/%d of the backend; run as root or as its user\n",
		pid);
fail:
	PQfinish(c);
	return NULL;
}

int main(int argc, char **argv)
{
	int clients = argc == 4 ? atoi(argv[2]) : 0, n = 0, tty = isatty(2);
	PGconn **all;

	if (clients < 1) {
		fprintf(stderr, "usage: pgload CONNINFO CLIENTS QUERY\n");
		return 2;
	}
	all = calloc((size_t)clients, sizeof(PGconn *));
	if (!all)
		return 1;
	while (n < clients && (all[n] = one(argv[1], n + 1, argv[3]))) {
		n++;
		if (tty)
			fprintf(stderr, "\r  %d of %d connections", n, clients);
	}
	if (tty)
		fprintf(stderr, "\r\033[K");
	for (int i = 0; i < n; i++)
		PQfinish(all[i]);
	free(all);
	return n == clients && fflush(stdout) == 0 ? 0 : 1;
}
