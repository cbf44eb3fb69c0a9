/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando, the command line: finding the verb, help, and what all verbs share.
 *
 * Exit codes are an interface (enum cli_exit, pando(1)): the library's errnos are translated in one
 * place, exit_code(). The command never starts a broker: one that is started for `pando ls` would
 * have nothing to list. It runs without rights of its own and must not be installed set-user-id.
 */
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <locale.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "common/size.h"

struct cli_options cli;

static int run_help(int argc, char **argv);
static int run_version(int argc, char **argv);

static const struct cli_verb cli_help_verb = {
	.name = "help",
	.args = "[VERB]",
	.summary = "explain a verb",
	.help = "",
	.run = run_help,
};
static const struct cli_verb cli_version_verb = {
	.name = "version",
	.args = "",
	.summary = "print the version",
	.help = "Prints the version of this command and of the library in it.\n",
	.run = run_version,
};

static const struct cli_verb *const verbs[] = {
#ifdef PANDO_CLI_RUN
	&cli_run,
#endif
	&cli_ls,      &cli_stat,      &cli_clients,	 &cli_heap, &cli_names,
	&cli_create,  &cli_resize,    &cli_grant,	 &cli_rm,   &cli_doctor,
	&cli_metrics, &cli_help_verb, &cli_version_verb, NULL,
};

static const char exit_codes[] = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 no broker, 4 no "
				 "such region, 5 exists already,\n"
				 "6 not permitted, 7 out of memory or huge pages, 8 quota reached, "
				 "9 other protocol version,\n"
				 "10 address taken; `run`: 125 if pando itself failed, 126 or 127 "
				 "if the command could not be run.\n";

static const char common_help[] =
	"  -B, --broker ADDR   address of the broker: a socket's path or @name\n"
	"  -J, --json          print JSON\n"
	"  -b, --bytes         print exact sizes in bytes\n"
	"  -n, --no-headings   print no headings\n"
	"  -q, --quiet         print nothing but errors\n"
	"  -h, --help          print this help\n";

bool cli_colours(FILE *stream)
{
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

	return isatty(fileno(stream)) && !(no && no[0]) && !(term && strcmp(term, "dumb") == 0);
}

int cli_fail(int code, const char *fmt, ...)
{
	const bool colours = cli_colours(stderr);
	va_list ap;

	fflush(stdout);
	fputs(colours ? "\033[1;31mpando:\033[0m " : "pando: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return code;
}

static int exit_code(int error)
{
	switch (-error) {
	case ECONNREFUSED:
	case ECONNRESET:
	case ENOTCONN:
	case EPIPE:
	case ETIMEDOUT:
		return CLI_NO_BROKER;
	case ENOENT:
		return CLI_NO_REGION;
	case EEXIST:
		return CLI_EXISTS;
	case EACCES:
	case EPERM:
		return CLI_DENIED;
	case ENOMEM:
		return CLI_NO_MEMORY;
	case EDQUOT:
		return CLI_QUOTA;
	case EPROTO:
	case EPROTONOSUPPORT:
		return CLI_PROTOCOL;
	case EADDRINUSE:
	case EADDRNOTAVAIL:
		return CLI_ADDRESS;
	case EINVAL:
	case ENAMETOOLONG:
		return CLI_USAGE;
	default:
		return CLI_FAILED;
	}
}

int cli_fail_last(int error)
{
	return cli_fail(exit_code(error), "%s", pando_strerror_last());
}

/* One address. Returns the exit code. */
static int connect_to(struct pando **p, const char *address, const char **why)
{
	int rc = pando_connect(p, address);

	*why = rc < 0 ? pando_strerror_last() : "";
	return rc == 0 ? CLI_OK : rc == -ENOENT ? CLI_NO_BROKER : exit_code(rc);
}

int cli_try_connect(struct pando **p, const char **why)
{
	const char *address = cli.broker ? cli.broker : getenv("PANDO_BROKER");
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	char path[108];
	int code;

	if (address && (address[0] || cli.broker))
		return connect_to(p, address, why);
	if (runtime && runtime[0] == '/' &&
	    snprintf(path, sizeof(path), "%s/pando/broker.sock", runtime) < (int)sizeof(path)) {
		code = connect_to(p, path, why);
		if (code != CLI_NO_BROKER)
			return code;
	}
	code = connect_to(p, "/run/pando/broker.sock", why);
	if (code == CLI_NO_BROKER)
		*why = "no broker is running; start one with pandod, or name one with --broker or "
		       "$PANDO_BROKER";
	return code;
}

int cli_connect(struct pando **p)
{
	const char *why;
	int code = cli_try_connect(p, &why);

	return code == CLI_OK ? code : cli_fail(code, "%s", why);
}

bool cli_parse_size(const char *what, const char *text, uint64_t *bytes)
{
	int rc = pando__size_parse(text, bytes);

	if (rc == 0)
		return true;
	cli_fail(CLI_USAGE,
		 rc == -ERANGE
			 ? "%s \"%s\" does not fit in 64 bits"
			 : "%s \"%s\" is not a size; write bytes, or units as in 64M or 1.5GiB",
		 what, text);
	return false;
}

bool cli_parse_mode(const char *text, uint32_t *mode)
{
	char *end;
	unsigned long value = strtoul(text, &end, 8);

	if (text[0] >= '0' && text[0] <= '7' && *end == '\0' && value > 0 && value <= 0777) {
		*mode = (uint32_t)value;
		return true;
	}
	cli_fail(CLI_USAGE, "\"%s\" is not a mode; write octal permission bits, as in 0660", text);
	return false;
}

bool cli_parse_backend(const char *text, uint32_t *backend)
{
	const char *name;

	for (uint32_t i = 0; (name = pando_backend_name(i)); i++)
		if (strcmp(name, text) == 0) {
			*backend = i;
			return true;
		}
	cli_fail(CLI_USAGE, "\"%s\" is not a backend; there are auto, memfd, hugetlb and mshare",
		 text);
	return false;
}

bool cli_parse_id(enum pando_grantee kind, const char *text, uint32_t *id)
{
	const struct passwd *pw = kind == PANDO_GRANT_UID ? getpwnam(text) : NULL;
	const struct group *gr = kind == PANDO_GRANT_GID ? getgrnam(text) : NULL;
	char *end;
	unsigned long long n;

	if (pw || gr) {
		*id = pw ? pw->pw_uid : gr->gr_gid;
		return true;
	}
	errno = 0;
	n = strtoull(text, &end, 10);
	if (text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && n < UINT32_MAX) {
		*id = (uint32_t)n;
		return true;
	}
	cli_fail(CLI_USAGE, "there is no %s \"%s\"", kind == PANDO_GRANT_UID ? "user" : "group",
		 text);
	return false;
}

void cli_help(const struct cli_verb *verb, FILE *out)
{
	fprintf(out, "usage: pando %s%s%s%s\n\n%s", verb->name,
		verb->own_help ? "" : " [OPTION]...", verb->args[0] ? " " : "", verb->args,
		verb->help);
	if (!verb->own_help)
		fprintf(out, "\n%s", common_help);
	fprintf(out, "\n%s", exit_codes);
}

int cli_option(const struct cli_verb *verb, int argc, char **argv, const char *shorts,
	       const struct option *longs)
{
	for (;;) {
		int c = getopt_long(argc, argv, shorts, longs, NULL);

		switch (c) {
		case 'B':
			cli.broker = optarg;
			break;
		case 'J':
			cli.json = true;
			break;
		case 'b':
			cli.bytes = true;
			break;
		case 'n':
			cli.no_headings = true;
			break;
		case 'q':
			cli.quiet = true;
			break;
		case 'h':
			cli_help(verb, stdout);
			exit(fflush(stdout) == 0 ? CLI_OK : CLI_FAILED);
		case '?': /* getopt has said what is wrong */
			fprintf(stderr, "Try 'pando help %s'.\n", verb->name);
			exit(CLI_USAGE);
		default:
			return c;
		}
	}
}

void cli_arguments(const struct cli_verb *verb, int argc, int min, int max)
{
	int n = argc - optind;

	if (n >= min && (max < 0 || n <= max))
		return;
	cli_fail(CLI_USAGE, n < min ? "an argument is missing" : "too many arguments");
	fprintf(stderr, "usage: pando %s [OPTION]... %s\n", verb->name, verb->args);
	exit(CLI_USAGE);
}

static const struct cli_verb *find(const char *name)
{
	for (unsigned int i = 0; verbs[i]; i++)
		if (strcmp(verbs[i]->name, name) == 0)
			return verbs[i];
	cli_fail(CLI_USAGE, "there is no verb \"%s\"; see pando help", name);
	return NULL;
}

static void overview(FILE *out)
{
	fputs("usage: pando VERB [OPTION]... [ARGUMENT]...\n\n"
	      "Shared-memory regions at one address in many processes, with shared page "
	      "tables.\n\n",
	      out);
	for (unsigned int i = 0; verbs[i]; i++)
		fprintf(out, "  %-9s %s\n", verbs[i]->name, verbs[i]->summary);
	fprintf(out,
		"\n`pando help VERB` explains a verb. All verbs that talk to a broker "
		"take:\n%s\n%s",
		common_help, exit_codes);
}

static int run_help(int argc, char **argv)
{
	const struct cli_verb *verb;

	if (argc > 2)
		return cli_fail(CLI_USAGE, "one verb at a time, please");
	if (argc < 2 || argv[1][0] == '-') {
		overview(stdout);
	} else {
		verb = find(argv[1]);
		if (!verb)
			return CLI_USAGE;
		if (verb == &cli_help_verb)
			overview(stdout);
		else if (verb->own_help) {
			char *help[] = {argv[1], (char[]){"--help"}, NULL};

			return verb->run(2, help);
		} else
			cli_help(verb, stdout);
	}
	return fflush(stdout) == 0 ? CLI_OK : CLI_FAILED;
}

static int run_version(int argc, char **argv)
{
	static const struct option longs[] = {CLI_COMMON_LONG};

	while (cli_option(&cli_version_verb, argc, argv, CLI_COMMON_SHORT, longs) != -1)
		;
	cli_arguments(&cli_version_verb, argc, 0, 0);
	if (cli.json)
		printf("{\"version\": \"%s\"}\n", pando_version());
	else
		printf("pando %s\n", pando_version());
	return fflush(stdout) == 0 ? CLI_OK : CLI_FAILED;
}

int main(int argc, char **argv)
{
	const struct cli_verb *verb;
	static char name[] = "pando";

	setlocale(LC_ALL, "");
	if (argc < 2) {
		overview(stderr);
		return CLI_USAGE;
	}
	if (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0) {
		overview(stdout);
		return fflush(stdout) == 0 ? CLI_OK : CLI_FAILED;
	}
	if (strcmp(argv[1], "-V") == 0 || strcmp(argv[1], "--version") == 0)
		return run_version(1, (char *[]){name, NULL});
	verb = find(argv[1]);
	if (!verb)
		return CLI_USAGE;
	if (!verb->own_help)
		argv[1] = name; /* getopt's messages begin with it */
	return verb->run(argc - 1, argv + 1);
}
