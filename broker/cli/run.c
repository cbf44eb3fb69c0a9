/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pando run: executes a program with its large shared memory on regions.
 *
 * The verb finds (or starts) a broker, puts what was asked for into the environment, adds the
 * preload shim to LD_PRELOAD and becomes the program: same process, same standard streams, its own
 * exit status. All else is done by the shim (libshm/preload).
 *
 * With an embedded broker, which ends with its last client, there is a moment after exec() in which
 * nobody is its client: connections are closed by exec(), and the program maps its memory when it
 * pleases. So one connection is made without close-on-exec and with a high number, and is kept by
 * the program without its knowledge. It counts for as long as this process lives. Should a program
 * close all descriptors before it maps anything, or hand over to a child, the shim starts the next
 * embedded broker when it is needed.
 *
 * The exit status is 125 for whatever goes wrong here, 126 and 127 if the command cannot be
 * executed: so a caller can tell them from the command's own.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli.h"
#include "common/size.h"
#include "config.h"
#include "protocol/protocol.h"

#define SHIM "libpando-preload.so"
#define PREFIX_MAX 40
#define KEEP_FD 200 /* at or above: out of the way of programs that count on low numbers */
#define KEEP_WAIT_MS 5000

struct run_options {
	const char *socket;
	const char *backend;
	const char *threshold;
	const char *prefix;
	bool verbose;
	bool serve_32bit;
};

static int parse_one(struct run_options *o, int c)
{
	uint64_t bytes;
	uint32_t backend;
	char probe[PREFIX_MAX + 8];

	switch (c) {
	case 'B':
		o->socket = optarg;
		return 0;
	case 'k':
		o->backend = optarg;
		return cli_parse_backend(optarg, &backend) ? 0 : CLI_RUN;
	case 't':
		o->threshold = optarg;
		if (!cli_parse_size("threshold", optarg, &bytes))
			return CLI_RUN;
		return bytes ? 0 : cli_fail(CLI_RUN, "the threshold is 0; the least is 1 byte");
	case 'N':
		o->prefix = optarg;
		snprintf(probe, sizeof(probe), "%s", optarg);
		if (strlen(optarg) > PREFIX_MAX || !pando__region_name_ok(probe))
			return cli_fail(
				CLI_RUN,
				"name \"%s\" is not 1 to %d bytes of [A-Za-z0-9._-] that begin "
				"with a letter, a digit or '_'",
				optarg, PREFIX_MAX);
		return 0;
	case 'v':
		o->verbose = true;
		return 0;
	case '3':
		o->serve_32bit = true;
		return 0;
	default:
		fprintf(stderr, "try 'pando run --help'\n");
		return CLI_RUN;
	}
}

static int parse(struct run_options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{"socket", required_argument, NULL, 'B'},
		{"broker", required_argument, NULL, 'B'},
		{"backend", required_argument, NULL, 'k'},
		{"threshold", required_argument, NULL, 't'},
		{"name", required_argument, NULL, 'N'},
		{"verbose", no_argument, NULL, 'v'},
		{"serve-32bit", no_argument, NULL, '3'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int c, rc;

	while ((c = getopt_long(argc, argv, "+B:vh", longs, NULL)) != -1) {
		if (c == 'h') {
			cli_help(&cli_run, stdout);
			exit(CLI_OK);
		}
		rc = parse_one(o, c);
		if (rc != 0)
			return rc;
	}
	if (optind == argc)
		return cli_fail(
			CLI_RUN,
			"run: no command; usage: pando run [OPTION]... [--] COMMAND [ARG]...");
	return 0;
}

/* The shim: $PANDO_PRELOAD (a build folder's), or where it is installed. */
static const char *find_shim(void)
{
	const char *path = secure_getenv("PANDO_PRELOAD");

	return path && path[0] ? path : PANDO_LIBDIR "/" SHIM;
}

static int preload(void)
{
	const char *shim = find_shim(), *before = getenv("LD_PRELOAD");
	char *list = NULL;

	if (shim[0] != '/' || strpbrk(shim, ": "))
		return cli_fail(
			CLI_RUN,
			"the path of the shim, %s, must be absolute and without ':' or spaces",
			shim);
	if (access(shim, R_OK) != 0)
		return cli_fail(CLI_RUN, "cannot read the shim %s: %s", shim, strerror(errno));
	/*
	 * Behind what is there: a sanitizer must come first, and other interposers keep their
	 * place.
	 */
	if (before && before[0] && !strstr(before, shim)) {
		if (asprintf(&list, "%s:%s", before, shim) < 0)
			return cli_fail(CLI_RUN, "no memory");
		shim = list;
	} else if (before && before[0]) {
		shim = before;
	}
	if (setenv("LD_PRELOAD", shim, 1) != 0)
		return cli_fail(CLI_RUN, "no memory");
	free(list);
	return 0;
}

/* A connection that says HELLO and survives exec(). Best effort: see above. */
static void keep(const char *address)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	socklen_t length;
	char packet[sizeof(struct pando__msg) + 1];
	int fds[PANDO__PROTO_MAX_FDS], high, fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct pando__msg hello;
	struct pollfd pfd = {.events = POLLIN};
	unsigned int nfds;

	if (fd < 0)
		return;
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", address);
	length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(sun.sun_path));
	sun.sun_path[0] = '\0'; /* embedded brokers have abstract names: "@..." */
	pando__msg_init(&hello, PANDO__MSG_HELLO, 1);
	hello.hello.version_min = hello.hello.version_max = PANDO__PROTO_VERSION;
	snprintf(hello.hello.program, sizeof(hello.hello.program), "pando run");
	pfd.fd = fd;
	if (connect(fd, (struct sockaddr *)&sun, length) == 0 &&
	    pando__msg_send(fd, &hello, NULL, 0, 0) == 0 && poll(&pfd, 1, KEEP_WAIT_MS) == 1 &&
	    pando__msg_receive(fd, packet, sizeof(packet), fds, &nfds, MSG_DONTWAIT) > 0) {
		high = fcntl(fd, F_DUPFD, KEEP_FD);
		if (high < 0)
			high = fcntl(fd, F_DUPFD, 10);
		(void)high;
	}
	close(fd);
}

static int set(const char *name, const char *value)
{
	int rc = value ? setenv(name, value, 1) : unsetenv(name);

	return rc == 0 ? 0 : cli_fail(CLI_RUN, "no memory");
}

static int environment(const struct run_options *o, const char *broker, bool embedded)
{
	const struct {
		const char *name, *value;
	} vars[] = {
		{"PANDO_BROKER", broker},
		{"PANDO_RUN_EMBEDDED", embedded ? "1" : NULL},
		{"PANDO_RUN_THRESHOLD",
		 o->threshold ? o->threshold : getenv("PANDO_RUN_THRESHOLD")},
		{"PANDO_RUN_BACKEND", o->backend ? o->backend : getenv("PANDO_RUN_BACKEND")},
		{"PANDO_RUN_NAME", o->prefix ? o->prefix : getenv("PANDO_RUN_NAME")},
		{"PANDO_RUN_VERBOSE", o->verbose ? "1" : getenv("PANDO_RUN_VERBOSE")},
		{"PANDO_RUN_32BIT", o->serve_32bit ? "1" : getenv("PANDO_RUN_32BIT")},
	};

	for (size_t i = 0; i < sizeof(vars) / sizeof(vars[0]); i++)
		if (set(vars[i].name, vars[i].value) != 0)
			return CLI_RUN;
	return 0;
}

/* An embedded broker has been started by this call if pando_connect() has changed the variable. */
static int find_broker(const struct run_options *o, char **address, bool *embedded)
{
	const char *before = getenv("PANDO_BROKER"), *after;
	char *copy = before ? strdup(before) : NULL;
	struct pando *p;
	int rc = pando_connect(&p, o->socket);

	after = getenv("PANDO_BROKER");
	*embedded = !o->socket && after && after[0] == '@' && (!copy || strcmp(copy, after) != 0);
	/* Below another `pando run`, its embedded broker is ours too. */
	if (!*embedded && !o->socket && copy && copy[0] == '@' && getenv("PANDO_RUN_EMBEDDED"))
		*embedded = true;
	free(copy);
	if (rc != 0)
		return cli_fail(CLI_RUN, "%s", pando_strerror_last());
	*address = strdup(pando_broker_address(p));
	if (*address && *embedded)
		keep(*address);
	pando_disconnect(p);
	return *address ? 0 : cli_fail(CLI_RUN, "no memory");
}

static int run(int argc, char **argv)
{
	struct run_options o = {.socket = NULL};
	char *address = NULL;
	bool embedded = false;
	int rc = parse(&o, argc, argv), err;

	if (rc == 0)
		rc = find_broker(&o, &address, &embedded);
	if (rc == 0)
		rc = environment(&o, address, embedded);
	if (rc == 0)
		rc = preload();
	free(address);
	if (rc != 0)
		return rc;
	execvp(argv[optind], argv + optind);
	err = errno;
	return cli_fail(err == ENOENT ? 127 : 126, "cannot execute %s: %s", argv[optind],
			strerror(err));
}

const struct cli_verb cli_run = {
	.name = "run",
	.args = "[OPTION]... [--] COMMAND [ARG]...",
	.summary = "run a program with its shared memory on regions",
	.help = "Executes COMMAND so that its large shared memory, mmap(MAP_SHARED|MAP_ANONYMOUS), "
		"comes from\n"
		"regions, which live as long as a process uses them. Where that fails, the program "
		"gets the plain\n"
		"memory it asked for. Without a running broker one is started, which ends with the "
		"last process.\n"
		"\n"
		"  -B, --socket ADDR     address of the broker: a socket's path or @name\n"
		"      --backend B       auto, memfd, hugetlb or mshare (default auto)\n"
		"      --threshold SIZE  leave smaller mappings alone (default 1M)\n"
		"      --name PREFIX     name the regions PREFIX-PID-N (default run)\n"
		"      --serve-32bit     serve MAP_32BIT too, at an address above 4 GiB (PHP's "
		"opcache)\n"
		"  -v, --verbose         say on standard error what was served, and why something "
		"was not\n"
		"  -h, --help            print this help\n"
		"\n"
		"Exit status: the command's own; 125 if pando itself failed, 126 if the command "
		"cannot be\n"
		"executed, 127 if there is none of that name.\n",
	.run = run,
	.own_help = true,
};
