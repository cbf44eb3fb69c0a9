/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Options, environment and configuration file of pandod.
 *
 * One table of settings serves all three sources, so a name means the same everywhere and is
 * checked by the same function. Each setter checks its value by itself; what depends on several
 * settings is checked once at the end. Every refusal is one sentence that names the value and, from
 * a file, the line.
 *
 * Internal options (--broker-channel, --supervise-channel, --config-fd) are how the daemon's
 * processes start each other; nothing else is accepted beside them, as the memory file has
 * everything.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <pando/region.h>

#include "common/fail.h"
#include "common/layout.h"
#include "common/size.h"

#define CONFIG_MAGIC 0x666e6f636f646e70ull /* "pndoconf" */
#define DEFAULT_FILE "/etc/pando/pandod.conf"
#define FILE_LINE_MAX 4352 /* a path and its name */
#define GRAFT_WAITING_MAX 1024 /* each may take a descriptor here and in the supervisor */
#define ADDRESS_SPACE (1ull << 47)

static int set_socket(struct broker_config *c, const char *v)
{
	if (v[0] != '/' && v[0] != '@')
		return pando__fail(
			EINVAL,
			"socket \"%s\" is neither an absolute path nor an abstract name like @name",
			v);
	if (v[1] == '\0')
		return pando__fail(EINVAL, "socket \"%s\" has no name", v);
	if (strlen(v) >= sizeof(c->address))
		return pando__fail(ENAMETOOLONG,
				   "the socket's path has %zu bytes, at most %u are possible: %s",
				   strlen(v), CONFIG_ADDRESS_MAX - 1, v);
	strcpy(c->address, v);
	return 0;
}

static int parse_number(const char *what, const char *v, unsigned long max, unsigned long *out)
{
	char *end;
	unsigned long n;

	errno = 0;
	n = strtoul(v, &end, 10);
	if (!isdigit((unsigned char)v[0]) || *end || errno || n > max)
		return pando__fail(EINVAL, "%s \"%s\" is not a whole number up to %lu", what, v,
				   max);
	*out = n;
	return 0;
}

static int parse_size(const char *what, const char *v, uint64_t *out)
{
	if (pando__size_parse(v, out) < 0)
		return pando__fail(EINVAL, "%s \"%s\" is not a size like 64M or 1.5G", what, v);
	return 0;
}

static int parse_bool(const char *what, const char *v, bool *out)
{
	/* No value: the option was given. */
	if (!v || strcmp(v, "yes") == 0 || strcmp(v, "true") == 0 || strcmp(v, "1") == 0)
		*out = true;
	else if (strcmp(v, "no") == 0 || strcmp(v, "false") == 0 || strcmp(v, "0") == 0)
		*out = false;
	else
		return pando__fail(EINVAL, "%s \"%s\" is neither yes nor no", what, v);
	return 0;
}

static int set_embedded(struct broker_config *c, const char *v)
{
	return parse_bool("embedded", v, &c->embedded);
}

static int set_no_supervisor(struct broker_config *c, const char *v)
{
	return parse_bool("no-supervisor", v, &c->no_supervisor);
}

static int set_ready_fd(struct broker_config *c, const char *v)
{
	unsigned long n;
	int ret = parse_number("ready-fd", v, INT_MAX, &n);

	if (ret == 0 && fcntl((int)n, F_GETFD) < 0)
		return pando__fail(EBADF, "ready-fd %lu is not an open descriptor", n);
	if (ret == 0)
		c->ready_fd = (int)n;
	return ret;
}

static int set_backend(struct broker_config *c, const char *v)
{
	static const char *const names[] = {"auto", "memfd", "hugetlb", "mshare"};

	for (uint32_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(v, names[i]) == 0) {
			c->backend = i;
			return 0;
		}
	}
	return pando__fail(EINVAL, "backend \"%s\" is none of auto, memfd, hugetlb, mshare", v);
}

static int set_window_base(struct broker_config *c, const char *v)
{
	return parse_size("window-base", v, &c->window_base);
}

static int set_window_size(struct broker_config *c, const char *v)
{
	return parse_size("window-size", v, &c->window_size);
}

static int parse_quota_memory(struct config_quota *q, const char *v)
{
	return parse_size("quota-memory", v, &q->memory);
}

static int parse_quota_regions(struct config_quota *q, const char *v)
{
	unsigned long n;
	int ret = parse_number("quota-regions", v, UINT32_MAX, &n);

	if (ret == 0)
		q->regions = (uint32_t)n;
	return ret;
}

static int parse_quota_clients(struct config_quota *q, const char *v)
{
	unsigned long n;
	int ret = parse_number("quota-clients", v, UINT32_MAX, &n);

	if (ret == 0)
		q->clients = (uint32_t)n;
	return ret;
}

static int set_quota_heap(struct broker_config *c, const char *v)
{
	return parse_size("quota-heap", v, &c->quota.heap);
}

static int set_quota_heap_client(struct broker_config *c, const char *v)
{
	return parse_size("quota-heap-client", v, &c->quota.heap_client);
}

static int set_quota_memory(struct broker_config *c, const char *v)
{
	return parse_quota_memory(&c->quota, v);
}

static int set_quota_regions(struct broker_config *c, const char *v)
{
	return parse_quota_regions(&c->quota, v);
}

static int set_quota_clients(struct broker_config *c, const char *v)
{
	return parse_quota_clients(&c->quota, v);
}

static int parse_uid(const char *v, uid_t *uid)
{
	struct passwd *pw;
	unsigned long n;

	if (isdigit((unsigned char)v[0])) {
		int ret = parse_number("user", v, UINT32_MAX - 1, &n);

		*uid = (uid_t)n;
		return ret;
	}
	errno = 0;
	pw = getpwnam(v);
	if (!pw)
		return pando__fail(EINVAL, "there is no user \"%s\"", v);
	*uid = pw->pw_uid;
	return 0;
}

/* One "memory=1G" of a user's quota. */
static int parse_limit(struct config_quota *q, const char *item, const char *whole)
{
	if (strncmp(item, "memory=", 7) == 0)
		return parse_quota_memory(q, item + 7);
	if (strncmp(item, "regions=", 8) == 0)
		return parse_quota_regions(q, item + 8);
	if (strncmp(item, "clients=", 8) == 0)
		return parse_quota_clients(q, item + 8);
	if (strncmp(item, "heap=", 5) == 0)
		return parse_size("quota-heap", item + 5, &q->heap);
	if (strncmp(item, "heap-client=", 12) == 0)
		return parse_size("quota-heap-client", item + 12, &q->heap_client);
	return pando__fail(EINVAL,
			   "quota \"%s\": \"%s\" is none of memory=, regions=, clients=, heap=, "
			   "heap-client=",
			   whole, item);
}

/*
 * "postgres:memory=8G,regions=10": limits that are not named are the general ones as they are now.
 */
static int set_quota(struct broker_config *c, const char *v)
{
	struct config_user_quota user = {.quota = c->quota};
	char copy[256], *colon, *save = NULL;
	unsigned int i;
	int ret;

	if (strlen(v) >= sizeof(copy))
		return pando__fail(EINVAL, "a quota of %zu bytes is too long", strlen(v));
	strcpy(copy, v);
	colon = strchr(copy, ':');
	if (!colon || colon == copy || colon[1] == '\0')
		return pando__fail(
			EINVAL, "quota \"%s\" is not of the form UID:memory=S,regions=N,clients=N",
			v);
	*colon = '\0';
	ret = parse_uid(copy, &user.uid);
	for (char *item = strtok_r(colon + 1, ",", &save); item && ret == 0;
	     item = strtok_r(NULL, ",", &save))
		ret = parse_limit(&user.quota, item, v);
	if (ret < 0)
		return ret;
	for (i = 0; i < c->user_count && c->users[i].uid != user.uid; i++)
		;
	if (i == CONFIG_MAX_QUOTAS)
		return pando__fail(ENOSPC, "more than %u users have quotas of their own",
				   CONFIG_MAX_QUOTAS);
	c->users[i] = user;
	if (i == c->user_count)
		c->user_count++;
	return 0;
}

static int set_graft(struct broker_config *c, const char *v)
{
	static const char *const names[] = {"uid", "any", "off"};

	for (unsigned int i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(v, names[i]) == 0) {
			c->graft = i;
			return 0;
		}
	}
	return pando__fail(EINVAL, "graft \"%s\" is none of uid, any, off", v);
}

static int set_graft_limit(struct broker_config *c, const char *v)
{
	return parse_size("graft-limit", v, &c->graft_limit);
}

static int set_graft_waiting(struct broker_config *c, const char *v)
{
	unsigned long n;
	int ret = parse_number("graft-waiting", v, GRAFT_WAITING_MAX, &n);

	if (ret == 0)
		c->graft_waiting = (unsigned int)n;
	return ret;
}

static int set_log_level(struct broker_config *c, const char *v)
{
	static const char *const names[] = {"error", "warn", "info", "debug"};

	for (unsigned int i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(v, names[i]) == 0) {
			c->log_level = i;
			return 0;
		}
	}
	return pando__fail(EINVAL, "log level \"%s\" is none of error, warn, info, debug", v);
}

static int set_log_file(struct broker_config *c, const char *v)
{
	if (strlen(v) >= sizeof(c->log_target))
		return pando__fail(ENAMETOOLONG, "the log file's path is too long");
	if (v[0] != '/' && strcmp(v, "stderr") != 0 && strcmp(v, "journal") != 0)
		return pando__fail(
			EINVAL,
			"log file \"%s\" is neither an absolute path nor stderr nor journal", v);
	strcpy(c->log_target, v);
	return 0;
}

static int set_drain_timeout(struct broker_config *c, const char *v)
{
	char *end;
	double s = strtod(v, &end);

	if (!isdigit((unsigned char)v[0]) || *end || !(s >= 0 && s <= 1e6))
		return pando__fail(
			EINVAL, "drain timeout \"%s\" is not a number of seconds up to 1000000", v);
	c->drain_timeout_ms = (uint32_t)(s * 1000);
	return 0;
}

enum { OPTION_ONLY = 1 }; /* makes no sense in a file */

static const struct setting {
	const char *name;
	int has_arg;
	int (*set)(struct broker_config *c, const char *value);
	const char *env;
	unsigned int flags;
} settings[] = {
	{"socket", required_argument, set_socket, NULL, 0},
	{"embedded", no_argument, set_embedded, NULL, OPTION_ONLY},
	{"ready-fd", required_argument, set_ready_fd, NULL, OPTION_ONLY},
	{"backend", required_argument, set_backend, "PANDO_BACKEND", 0},
	{"window-base", required_argument, set_window_base, "PANDO_WINDOW_BASE", 0},
	{"window-size", required_argument, set_window_size, "PANDO_WINDOW_SIZE", 0},
	{"quota-memory", required_argument, set_quota_memory, NULL, 0},
	{"quota-regions", required_argument, set_quota_regions, NULL, 0},
	{"quota-clients", required_argument, set_quota_clients, NULL, 0},
	{"quota-heap", required_argument, set_quota_heap, NULL, 0},
	{"quota-heap-client", required_argument, set_quota_heap_client, NULL, 0},
	{"quota", required_argument, set_quota, NULL, 0},
	{"graft", required_argument, set_graft, NULL, 0},
	{"graft-limit", required_argument, set_graft_limit, NULL, 0},
	{"graft-waiting", required_argument, set_graft_waiting, NULL, 0},
	{"log-level", required_argument, set_log_level, "PANDO_LOG_LEVEL", 0},
	{"log-file", required_argument, set_log_file, NULL, 0},
	{"drain-timeout", required_argument, set_drain_timeout, NULL, 0},
	{"no-supervisor", no_argument, set_no_supervisor, NULL, 0},
};
#define SETTINGS (sizeof(settings) / sizeof(settings[0]))

enum {
	OPT_CONFIG = 256,
	OPT_BROKER_CHANNEL,
	OPT_SUPERVISE_CHANNEL,
	OPT_CONFIG_FD,
	OPT_FIRST_SETTING,
};

void config_defaults(struct broker_config *c)
{
	memset(c, 0, sizeof(*c));
	c->magic = CONFIG_MAGIC;
	c->size = sizeof(*c);
	c->channel = c->ready_fd = -1;
	c->owner = geteuid();
	c->window_base = PANDO__WINDOW_BASE;
	c->window_size = PANDO__WINDOW_SIZE;
	c->log_level = LOG_LEVEL_INFO;
	strcpy(c->log_target, "stderr");
	c->drain_timeout_ms = 10000;
}

static char *trim(char *s)
{
	char *end;

	while (isspace((unsigned char)*s))
		s++;
	end = s + strlen(s);
	while (end > s && isspace((unsigned char)end[-1]))
		end--;
	*end = '\0';
	return s;
}

/*
 * One line of the file. Returns 0 or a negative errno with a sentence that does not name the line.
 */
static int file_line(struct broker_config *c, char *line)
{
	char *name, *value, *equals, *hash = strchr(line, '#');

	if (hash)
		*hash = '\0';
	name = trim(line);
	if (*name == '\0')
		return 0;
	equals = strchr(name, '=');
	if (!equals)
		return pando__fail(EINVAL, "\"%s\" is not of the form NAME = VALUE", name);
	*equals = '\0';
	name = trim(name);
	value = trim(equals + 1);
	for (size_t i = 0; i < SETTINGS; i++)
		if (!(settings[i].flags & OPTION_ONLY) && strcmp(settings[i].name, name) == 0)
			return settings[i].set(c, value);
	return pando__fail(EINVAL, "there is no setting \"%s\"", name);
}

static int load_file(struct broker_config *c, const char *path, bool must_exist)
{
	char line[FILE_LINE_MAX], why[PANDO__ERROR_MAX];
	unsigned int number = 0;
	FILE *f = fopen(path, "re");
	int ret = 0;

	if (!f && errno == ENOENT && !must_exist)
		return 0;
	if (!f)
		return pando__fail(errno, "cannot read %s: %s", path, strerror(errno));
	while (ret == 0 && fgets(line, sizeof(line), f)) {
		number++;
		if (!strchr(line, '\n') && !feof(f))
			ret = pando__fail(EINVAL, "the line is too long");
		else
			ret = file_line(c, line);
	}
	if (ret == 0 && ferror(f))
		ret = pando__fail(EIO, "it cannot be read");
	fclose(f);
	if (ret < 0) {
		snprintf(why, sizeof(why), "%s", pando_strerror_last());
		pando__fail(-ret, "%s, line %u: %s", path, number, why);
	}
	return ret;
}

static int load_environment(struct broker_config *c)
{
	for (size_t i = 0; i < SETTINGS; i++) {
		const char *value = settings[i].env ? secure_getenv(settings[i].env) : NULL;
		char why[PANDO__ERROR_MAX];
		int ret;

		if (!value || !*value)
			continue;
		ret = settings[i].set(c, value);
		if (ret < 0) {
			snprintf(why, sizeof(why), "%s", pando_strerror_last());
			return pando__fail(-ret, "environment variable %s: %s", settings[i].env,
					   why);
		}
	}
	return 0;
}

static int default_address(struct broker_config *c)
{
	const char *dir = secure_getenv("XDG_RUNTIME_DIR");
	char path[PATH_MAX];

	if (c->embedded)
		return pando__fail(EINVAL, "an embedded broker needs --socket");
	if (geteuid() == 0)
		return set_socket(c, "/run/pando/broker.sock");
	if (!dir || dir[0] != '/')
		return pando__fail(
			EINVAL, "there is no place for the socket, as XDG_RUNTIME_DIR is not set; "
				"use --socket");
	snprintf(path, sizeof(path), "%s/pando/broker.sock", dir);
	return set_socket(c, path);
}

/* What no single setting can know. */
static int check_all(struct broker_config *c)
{
	if (c->window_base == 0 || c->window_base % PANDO__GIB)
		return pando__fail(EINVAL, "window-base 0x%llx is not a multiple of 1 GiB above 0",
				   (unsigned long long)c->window_base);
	if (c->window_size == 0 || c->window_size % PANDO__GIB)
		return pando__fail(EINVAL, "window-size 0x%llx is not a multiple of 1 GiB above 0",
				   (unsigned long long)c->window_size);
	if (c->window_base >= ADDRESS_SPACE || c->window_size > ADDRESS_SPACE - c->window_base)
		return pando__fail(
			EINVAL, "the window 0x%llx + 0x%llx ends above the address space's 128 TiB",
			(unsigned long long)c->window_base, (unsigned long long)c->window_size);
	return c->address[0] ? 0 : default_address(c);
}

static void make_options(struct option options[SETTINGS + 8])
{
	static const struct option fixed[] = {
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{"config", required_argument, NULL, OPT_CONFIG},
		{"broker-channel", required_argument, NULL, OPT_BROKER_CHANNEL},
		{"supervise-channel", required_argument, NULL, OPT_SUPERVISE_CHANNEL},
		{"config-fd", required_argument, NULL, OPT_CONFIG_FD},
		{NULL, 0, NULL, 0},
	};

	for (size_t i = 0; i < SETTINGS; i++)
		options[i] = (struct option){settings[i].name, settings[i].has_arg, NULL,
					     OPT_FIRST_SETTING + (int)i};
	memcpy(options + SETTINGS, fixed, sizeof(fixed));
}

/* The options that are not settings. */
struct special {
	const char *file;
	enum config_role role;
	int channel, config_fd;
	bool embedded; /* a setting, too, but it decides which file is read */
};

static int special_option(struct special *s, int opt, const char *value)
{
	unsigned long n = 0;
	int ret;

	switch (opt) {
	case 'h':
		config_usage(stdout);
		return 1;
	case 'V':
		printf("pandod %s\n", pando_version());
		return 1;
	case OPT_CONFIG:
		s->file = value;
		return 0;
	default:
		ret = parse_number("descriptor", value, INT_MAX, &n);
	}
	if (opt == OPT_CONFIG_FD) {
		s->config_fd = (int)n;
	} else {
		s->role = opt == OPT_BROKER_CHANNEL ? CONFIG_ROLE_BROKER : CONFIG_ROLE_SUPERVISOR;
		s->channel = (int)n;
	}
	return ret;
}

/*
 * One pass over the options. With s, the special ones are taken and settings are only recognised;
 * with c, the settings are applied: the file and the environment come in between, and lose.
 */
static int pass(int argc, char *const argv[], struct special *s, struct broker_config *c)
{
	struct option options[SETTINGS + 8];
	int opt, ret = 0;

	make_options(options);
	optind = 0; /* glibc: scan anew */
	opterr = 0;
	while (ret == 0 && (opt = getopt_long(argc, argv, "+:hV", options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return pando__fail(EINVAL,
					   opt == ':' ? "option %s needs a value; see pandod --help"
						      : "there is no option %s; see pandod --help",
					   argv[optind - 1]);
		if (s && opt >= OPT_FIRST_SETTING)
			s->embedded |= settings[opt - OPT_FIRST_SETTING].set == set_embedded;
		if (opt >= OPT_FIRST_SETTING)
			ret = c ? settings[opt - OPT_FIRST_SETTING].set(c, optarg) : 0;
		else if (s)
			ret = special_option(s, opt, optarg);
	}
	if (ret == 0 && optind < argc)
		return pando__fail(EINVAL, "\"%s\" is not an option; see pandod --help",
				   argv[optind]);
	return ret;
}

int config_load(struct broker_config *c, int argc, char *const argv[])
{
	struct special s = {.role = CONFIG_ROLE_DAEMON, .channel = -1, .config_fd = -1};
	int ret;

	config_defaults(c);
	ret = pass(argc, argv, &s, NULL);
	if (ret)
		return ret;
	if (s.role != CONFIG_ROLE_DAEMON) {
		if (s.config_fd < 0 || s.channel < 0)
			return pando__fail(EINVAL,
					   "an internal option needs a channel and --config-fd");
		ret = config_from_fd(c, s.config_fd);
		c->role = s.role;
		c->channel = s.channel;
		return ret;
	}
	if (s.file || !s.embedded) /* a program's own broker does not obey the machine's file */
		ret = load_file(c, s.file ? s.file : DEFAULT_FILE, s.file != NULL);
	if (ret == 0)
		ret = load_environment(c);
	if (ret == 0)
		ret = pass(argc, argv, NULL, c);
	return ret ? ret : check_all(c);
}

struct config_quota config_quota_for(const struct broker_config *c, uid_t uid)
{
	for (unsigned int i = 0; i < c->user_count; i++)
		if (c->users[i].uid == uid)
			return c->users[i].quota;
	if (uid == 0 || uid == c->owner)
		return (struct config_quota){0};
	return c->quota;
}

int config_to_fd(const struct broker_config *c)
{
	int fd = memfd_create("pandod-config", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	if (write(fd, c, sizeof(*c)) != (ssize_t)sizeof(*c) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0) {
		int err = errno;

		close(fd);
		return -err;
	}
	return fd;
}

int config_from_fd(struct broker_config *c, int fd)
{
	ssize_t n = pread(fd, c, sizeof(*c), 0);

	close(fd);
	if (n != (ssize_t)sizeof(*c) || c->magic != CONFIG_MAGIC || c->size != sizeof(*c) ||
	    c->user_count > CONFIG_MAX_QUOTAS)
		return pando__fail(EINVAL, "descriptor %d holds no configuration of this version",
				   fd);
	return 0;
}

void config_usage(FILE *out)
{
	fputs("usage: pandod [OPTION]...\n"
	      "\n"
	      "Makes shared-memory regions, admits clients, and cleans up after the dead. Runs in "
	      "the\n"
	      "foreground until SIGTERM. The first process supervises a second one, which does the "
	      "work, and starts\n"
	      "it again when it dies; clients and regions are not disturbed by that.\n"
	      "\n"
	      "  --socket ADDR          path, or @NAME for an abstract socket (default: "
	      "/run/pando/broker.sock for\n"
	      "                         root, else $XDG_RUNTIME_DIR/pando/broker.sock); a socket "
	      "passed by\n"
	      "                         systemd goes first\n"
	      "  --config FILE          settings, one \"NAME = VALUE\" a line "
	      "(default: " DEFAULT_FILE ")\n"
	      "  --backend NAME         for regions that ask for none: auto, memfd, hugetlb, "
	      "mshare (default: auto)\n"
	      "  --window-base ADDR     where regions are placed (default: 0x200000000000)\n"
	      "  --window-size SIZE     address space for regions (default: 16T)\n"
	      "  --quota-memory SIZE    memory per user (0: no limit, the default)\n"
	      "  --quota-regions N      regions per user\n"
	      "  --quota-clients N      connected processes per user\n"
	      "  --quota-heap SIZE      of one heap, what a user's processes may own together\n"
	      "  --quota-heap-client SIZE  of one heap, what each process may own\n"
	      "  --quota UID:memory=SIZE,regions=N,clients=N,heap=SIZE,heap-client=SIZE\n"
	      "                         limits of one user, by name or number; may be repeated\n"
	      "  --graft WHO            whose buffers a process takes: uid (of its own user and "
	      "root, the default),\n"
	      "                         any, off\n"
	      "  --graft-limit SIZE     of buffers that wait for one process (default: 4G)\n"
	      "  --graft-waiting N      buffers that wait for one process (default: 64)\n"
	      "  --log-level LEVEL      error, warn, info (default) or debug\n"
	      "  --log-file FILE        a file, stderr (default) or journal; SIGHUP opens a file "
	      "anew\n"
	      "  --drain-timeout SEC    after SIGTERM, how long clients have to leave (default: "
	      "10)\n"
	      "  --no-supervisor        one process; its death ends the service, though not the "
	      "clients\n"
	      "  --embedded             for one program: admits this user only, ends with the last "
	      "client\n"
	      "  --ready-fd N           \"ok\" or an error is written there once it is known\n"
	      "  --help, --version\n"
	      "\n"
	      "Root and the daemon's own user have no quota, unless a --quota names them. "
	      "Environment:\n"
	      "PANDO_BACKEND, PANDO_WINDOW_BASE, PANDO_WINDOW_SIZE, PANDO_LOG_LEVEL; options win "
	      "over it, and it\n"
	      "wins over the file. Exit status: 0 ended as asked, 1 failure, 2 wrong usage. "
	      "Manual: pandod(8).\n",
	      out);
}
