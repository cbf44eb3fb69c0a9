/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bufferpool: a database buffer pool on Pando, as a program. What it does is in bufferpool.h; this file reads
 * the command line.
 */
#include "cmd.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/size.h"

volatile int cmd_signals;

static const char usage[] =
	"usage: bufferpool create FILE --size SIZE [--slots N]\n"
	"       bufferpool run FILE [option]...\n"
	"       bufferpool top [--name NAME] [--interval S] [--once]\n"
	"       bufferpool check FILE [--repair] [--buffered]\n"
	"       bufferpool COMMAND --help\n"
	"\n"
	"A database's buffer pool in a Pando region: many processes read and update the pages of a "
	"file, any of them\n"
	"may be killed at any instruction, and no page is torn, no frame stays pinned.\n";

static const char help_create[] =
	"usage: bufferpool create FILE --size SIZE [--slots N]\n"
	"\n"
	"Makes a data file of pages with checksums, numbers and versions. FILE must not exist.\n"
	"\n"
	"  --size SIZE     bytes of data, as 64M or 1.5G; whole pages of 8 KiB\n"
	"  --slots N       size of the double-write area (default 256): two and a bit for each "
	"backend\n";

static const char help_run[] =
	"usage: bufferpool run FILE [option]...\n"
	"\n"
	"Starts backends that read and update pages of FILE through a pool, shows what they do, "
	"and verifies the\n"
	"pool and the file at the end. FILE was made by `bufferpool create`, or is a file of a "
	"PostgreSQL table (of a\n"
	"server that is stopped; its checksums are verified), or any other file; those are only "
	"read.\n"
	"Needs a broker, or starts one for itself (PANDO_BROKER, see pando_connect(3)).\n"
	"\n"
	"  --frames N            frames of 8 KiB (default: a quarter of the file's pages)\n"
	"  --backends N          processes (default 4)\n"
	"  --seconds S           how long; 0: until Ctrl-C (default 10)\n"
	"  --write-percent P     accesses that update (default 10; 0 for files that are only "
	"read)\n"
	"  --hot P               percent of the accesses that go to a fifth of the pages (default "
	"80)\n"
	"  --kill-per-second K   backends that are killed, and replaced (default 0)\n"
	"  --backend NAME        auto, memfd, hugetlb or mshare: how the region is made (default "
	"auto)\n"
	"  --buffered            through the kernel's page cache, without O_DIRECT\n"
	"  --sync                flush each write to the disk: pages survive a loss of power, too\n"
	"  --no-check            do not read the whole file at the end\n"
	"  --name NAME           of the region (default bufferpool)\n"
	"  --interval S          between two lines, or two screens (default 1 on a terminal, else "
	"5)\n"
	"  --seed N              of the random choices\n";

static const char help_top[] =
	"usage: bufferpool top [--name NAME] [--interval S] [--once]\n"
	"\n"
	"Shows a pool that runs: hit rate, reads, writes, pinned and dirty frames, backends. "
	"`bufferpool run`\n"
	"says what to set PANDO_BROKER to, if it started a broker for itself. On a terminal it "
	"draws a\n"
	"screen, elsewhere it prints lines; --once: one, of the averages since the start.\n";

static const char help_check[] = "usage: bufferpool check FILE [--repair] [--buffered]\n"
				 "\n"
				 "Reads every page of FILE and verifies it: checksum, number, "
				 "content, and that the versions add up to the\n"
				 "updates that were counted. Exit status 1 if something is wrong.\n"
				 "\n"
				 "  --repair        first put torn pages back from the "
				 "double-write area (`run` does that, too)\n"
				 "  --buffered      through the kernel's page cache\n";

int cmd_fail(int status, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("bufferpool: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	return status;
}

double cmd_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void cmd_nap(double seconds)
{
	(void)nanosleep(
		&(struct timespec){.tv_sec = (time_t)seconds,
				   .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)},
		NULL);
}

static void caught(int sig)
{
	(void)sig;
	cmd_signals++;
}

void cmd_catch(void)
{
	const struct sigaction action = {.sa_handler = caught};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

enum {
	O_SIZE = 256,
	O_SLOTS,
	O_FRAMES,
	O_BACKENDS,
	O_SECONDS,
	O_WRITE,
	O_HOT,
	O_KILL,
	O_BACKEND,
	O_BUFFERED,
	O_SYNC_,
	O_NO_CHECK,
	O_NAME,
	O_INTERVAL,
	O_SEED,
	O_ONCE,
	O_REPAIR,
	O_HELP
};

#define FLAG(name, value)                                                                          \
	{                                                                                          \
		name, no_argument, NULL, value                                                     \
	}
#define VALUE(name, value)                                                                         \
	{                                                                                          \
		name, required_argument, NULL, value                                               \
	}

static const struct option create_options[] = {
	VALUE("size", O_SIZE), VALUE("slots", O_SLOTS), FLAG("help", O_HELP), {0}};
static const struct option run_options[] = {VALUE("frames", O_FRAMES),
					    VALUE("backends", O_BACKENDS),
					    VALUE("seconds", O_SECONDS),
					    VALUE("write-percent", O_WRITE),
					    VALUE("hot", O_HOT),
					    VALUE("kill-per-second", O_KILL),
					    VALUE("backend", O_BACKEND),
					    FLAG("buffered", O_BUFFERED),
					    FLAG("sync", O_SYNC_),
					    FLAG("no-check", O_NO_CHECK),
					    VALUE("name", O_NAME),
					    VALUE("interval", O_INTERVAL),
					    VALUE("seed", O_SEED),
					    FLAG("help", O_HELP),
					    {0}};
static const struct option top_options[] = {VALUE("name", O_NAME),
					    VALUE("interval", O_INTERVAL),
					    FLAG("once", O_ONCE),
					    FLAG("help", O_HELP),
					    {0}};
static const struct option check_options[] = {
	FLAG("repair", O_REPAIR), FLAG("buffered", O_BUFFERED), FLAG("help", O_HELP), {0}};

static const struct command {
	const char *name, *help;
	const struct option *options;
	bool file;
	int (*run)(const struct options *o);
} commands[] = {{"create", help_create, create_options, true, cmd_create},
		{"run", help_run, run_options, true, cmd_run},
		{"top", help_top, top_options, false, cmd_top},
		{"check", help_check, check_options, true, cmd_check}};

/* A number from low to high, or the end of the program. */
static double number(const char *option, const char *text, double low, double high)
{
	char *end;
	const double n = strtod(text, &end);

	if (*end || end == text || !(n >= low && n <= high))
		exit(cmd_fail(CMD_USAGE, "--%s: a number from %.0f to %.0f, not \"%s\"", option,
			      low, high, text));
	return n;
}

static unsigned int backend_named(const char *text)
{
	for (unsigned int i = 0; pando_backend_name(i); i++)
		if (strcmp(pando_backend_name(i), text) == 0)
			return i;
	exit(cmd_fail(CMD_USAGE, "--backend: auto, memfd, hugetlb or mshare, not \"%s\"", text));
}

static void size_option(struct options *o, const char *text)
{
	if (pando__size_parse(text, &o->size) < 0 || o->size < PAGE_SIZE || o->size > 1ull << 50)
		exit(cmd_fail(CMD_USAGE, "--size: at least 8K, as 64M or 1.5G, not \"%s\"", text));
}

static void set(struct options *o, int option, const char *name, const char *text)
{
	switch (option) {
	case O_SIZE:
		size_option(o, text);
		break;
	case O_SLOTS:
		o->slots = (uint32_t)number(name, text, 1, FILE_SLOTS_MAX);
		break;
	case O_FRAMES:
		o->frames = (uint64_t)number(name, text, 1, UINT32_MAX - 1.0);
		break;
	case O_BACKENDS:
		o->backends = (uint32_t)number(name, text, 1, 10000);
		break;
	case O_SECONDS:
		o->seconds = number(name, text, 0, 1e9);
		break;
	case O_WRITE:
		o->write_percent = (int)number(name, text, 0, 100);
		break;
	case O_HOT:
		o->hot = (uint32_t)number(name, text, 0, 100);
		break;
	case O_KILL:
		o->kills = number(name, text, 0, 10000);
		break;
	case O_BACKEND:
		o->backend = backend_named(text);
		break;
	case O_INTERVAL:
		o->interval = number(name, text, 0, 1e6);
		break;
	case O_SEED:
		o->seed = (uint64_t)number(name, text, 0, 1e15);
		break;
	case O_NAME:
		o->name = text;
		break;
	}
	o->buffered |= option == O_BUFFERED;
	o->sync |= option == O_SYNC_;
	o->no_check |= option == O_NO_CHECK;
	o->once |= option == O_ONCE;
	o->repair |= option == O_REPAIR;
}

static int run_command(const struct command *c, int argc, char **argv)
{
	struct options o = {.name = "bufferpool",
			    .slots = 256,
			    .backends = 4,
			    .seconds = 10,
			    .write_percent = -1,
			    .hot = 80,
			    .seed = 1};
	int option, which = 0;

	while ((option = getopt_long(argc, argv, "h", c->options, &which)) != -1) {
		if (option == O_HELP || option == 'h') {
			fputs(c->help, stdout);
			return CMD_OK;
		}
		if (option == '?') {
			fprintf(stderr, "`bufferpool %s --help` lists the options\n", c->name);
			return CMD_USAGE;
		}
		set(&o, option, c->options[which].name, optarg);
	}
	if (argc - optind != (c->file ? 1 : 0))
		return cmd_fail(CMD_USAGE, "%s; `bufferpool %s --help` tells more",
				c->file ? "one FILE is needed" : "no argument is needed", c->name);
	if (c->file)
		o.file = argv[optind];
	if (c->run == cmd_create && !o.size)
		return cmd_fail(CMD_USAGE, "--size is needed");
	return c->run(&o);
}

int main(int argc, char **argv)
{
	if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
		fputs(usage, stdout);
		return CMD_OK;
	}
	for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(argv[1], commands[i].name) == 0)
			return run_command(&commands[i], argc - 1, argv + 1);
	if (argc > 1)
		cmd_fail(CMD_USAGE, "no command \"%s\"", argv[1]);
	fputs(usage, stderr);
	return CMD_USAGE;
}
