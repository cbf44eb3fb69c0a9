/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * See harness.h. The runner itself is single-threaded, and the subreaper of all that the tests
 * start: a process that has lost its parent comes to the runner, which finds it after the test and
 * counts it as left over.
 */
#include "harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define SETTLE_MS 2000
#define START_MS 20000

uint64_t harness_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void harness_sleep_ms(unsigned int ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

void harness_fail(const char *file, int line, const char *fmt, ...)
{
	const char *base = strrchr(file, '/');
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "  %s:%d: %s\n", base ? base + 1 : file, line, text);
	_exit(HARNESS_FAILED);
}

void harness_skip(const char *why)
{
	fprintf(stderr, "  skipped: %s\n", why);
	_exit(HARNESS_SKIPPED);
}

int harness_join(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

unsigned int harness_fds(pid_t pid)
{
	char path[40];
	unsigned int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return 0;
	for (const struct dirent *e; (e = readdir(dir));)
		n += e->d_name[0] != '.';
	closedir(dir);
	return pid == getpid() ? n - 1 : n; /* the folder itself */
}

unsigned int harness_maps(pid_t pid, const char *text)
{
	char path[40], line[512];
	unsigned int n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		n += strstr(line, text) != NULL;
	if (f)
		fclose(f);
	return n;
}

unsigned int harness_regions(pid_t pid)
{
	return harness_maps(pid, "memfd:pando:") + harness_maps(pid, HARNESS_MSHARE);
}

const char *harness_backend(void)
{
	const char *name = getenv("PANDO_TEST_BACKEND");

	return name ? name : "memfd"; /* not `auto`: huge pages are scarce, and others count them */
}

unsigned int harness_slow(void)
{
	const char *scale = getenv("PANDO_TEST_SLOW");

	return scale && atoi(scale) > 0 ? (unsigned int)atoi(scale) : 1;
}

long harness_kib(pid_t pid, const char *key)
{
	char path[40], line[256];
	size_t length = strlen(key);
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), pid ? "/proc/%d/status" : "/proc/meminfo", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, key, length) == 0 && line[length] == ':')
			value = strtol(line + length + 1, NULL, 10);
	if (f)
		fclose(f);
	return value;
}

uint64_t harness_file_kib(pid_t pid)
{
	char path[64], entry[400], target[128];
	uint64_t blocks = 0;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	for (const struct dirent *e; dir && (e = readdir(dir));) {
		ssize_t n;

		snprintf(entry, sizeof(entry), "%s/%s", path, e->d_name);
		n = readlink(entry, target, sizeof(target) - 1);
		if (n <= 0)
			continue;
		target[n] = '\0';
		if ((strstr(target, "memfd:pando:") || strstr(target, HARNESS_MSHARE)) &&
		    stat(entry, &st) == 0)
			blocks += (uint64_t)st.st_blocks;
	}
	if (dir)
		closedir(dir);
	return blocks / 2;
}

/* Runs the daemon; the write end of the readiness pipe becomes descriptor 3. */
static void exec_daemon(struct harness *h, const char *const *args, int ready)
{
	const char *program = getenv("PANDO_BROKER_PROGRAM"), *argv[HARNESS_ARGS + 12];
	unsigned int n = 0;

	argv[n++] = program ? program : "pandod";
	argv[n++] = "--socket";
	argv[n++] = h->address;
	argv[n++] = "--ready-fd";
	argv[n++] = "3";
	argv[n++] = "--log-level";
	argv[n++] = getenv("PANDO_TEST_LOG") ? getenv("PANDO_TEST_LOG") : "error";
	argv[n++] = "--backend";
	argv[n++] = harness_backend();
	for (unsigned int i = 0; args && args[i] && i < HARNESS_ARGS; i++)
		argv[n++] = args[i];
	argv[n] = NULL;
	if (ready == 3)
		fcntl(3, F_SETFD, 0);
	else
		dup2(ready, 3);
	execvp(argv[0], (char **)(uintptr_t)argv);
	dprintf(3, "cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

bool harness_try_start(struct harness *h, const char *const *args, char *text, size_t size)
{
	struct pollfd pfd = {.events = POLLIN};
	size_t have = 0;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		harness_fail(__FILE__, __LINE__, "pipe: %s", strerror(errno));
	fflush(NULL);
	h->daemon = fork();
	if (h->daemon == 0)
		exec_daemon(h, args, ends[1]);
	close(ends[1]);
	pfd.fd = ends[0];
	text[0] = '\0';
	while (have + 1 < size && poll(&pfd, 1, START_MS * (int)harness_slow()) > 0) {
		ssize_t n = read(ends[0], text + have, size - 1 - have);

		if (n <= 0)
			break;
		have += (size_t)n;
		text[have] = '\0';
		if (text[have - 1] == '\n')
			break;
	}
	close(ends[0]);
	text[strcspn(text, "\n")] = '\0';
	if (strcmp(text, "ok") == 0)
		return true;
	if (!text[0])
		snprintf(text, size, "pandod did not say that it is ready");
	kill(h->daemon, SIGKILL);
	harness_join(h->daemon);
	h->daemon = 0;
	return false;
}

void harness_start(struct harness *h, const char *const *args)
{
	char text[512];

	if (!harness_try_start(h, args, text, sizeof(text)))
		harness_fail(__FILE__, __LINE__, "pandod: %s", text);
}

void harness_stop(struct harness *h)
{
	pid_t pid = h->daemon;
	int rc;

	if (!pid)
		return;
	h->daemon = 0;
	kill(pid, SIGTERM);
	rc = harness_join(pid);
	if (rc != 0)
		harness_fail(__FILE__, __LINE__, "pandod ended with status %d on SIGTERM", rc);
}

struct pando *harness_connect(struct harness *h)
{
	struct pando *p;

	CHECK_OK(pando_connect(&p, h->address));
	return p;
}

struct pando_region *harness_region(struct pando *p, const char *name, uint64_t size,
				    unsigned int flags)
{
	struct pando_region *r;

	CHECK_OK(pando_region_open(p, name, PANDO_CREATE | flags,
				   &(struct pando_region_options){.size = size}, &r));
	return r;
}

void harness_await_clients(struct harness *h, uint64_t clients)
{
	struct pando_broker_info info = {0};

	for (unsigned int ms = 0; ms < SETTLE_MS * harness_slow(); ms += 5) {
		CHECK_OK(pando_broker_info(h->checker, &info));
		if (info.clients == clients)
			return;
		harness_sleep_ms(5);
	}
	harness_fail(__FILE__, __LINE__, "the broker has %llu clients, not %llu",
		     (unsigned long long)info.clients, (unsigned long long)clients);
}

void harness_baseline(struct harness *h)
{
	struct pando_broker_info info;

	unsigned int alone = harness_fds(h->daemon);

	h->checker = harness_connect(h);
	CHECK_OK(pando_broker_info(h->checker, &info));
	h->broker = info.broker_pid;
	for (unsigned int i = 0; i < 200 * harness_slow() && harness_fds(h->daemon) <= alone; i++)
		harness_sleep_ms(5);
	/* The supervisor hears of the checker a moment later. */
	for (int same = 0; same < 4; same++) {
		unsigned int fds = harness_fds(h->daemon);

		if (fds != h->daemon_fds)
			same = 0;
		h->daemon_fds = fds;
		harness_sleep_ms(5);
	}
	h->broker_fds = harness_fds(h->broker);
	h->broker_maps = harness_regions(h->broker);
}

/* The broker is as it was before the test. */
static void check_broker(struct harness *h, unsigned int flags)
{
	struct pando_broker_info info;
	unsigned int daemon_fds = 0, broker_fds = 0, maps = 0;

	if (flags & HARNESS_BROKER_DIES)
		return;
	if (!(flags & HARNESS_KEEPS_REGIONS)) {
		harness_await_clients(h, 1);
		for (unsigned int ms = 0; ms < SETTLE_MS * harness_slow();
		     ms += 10) { /* freeing takes a moment */
			CHECK_OK(pando_broker_info(h->checker, &info));
			if (info.regions == 0 && info.committed_bytes == 0)
				break;
			harness_sleep_ms(10);
		}
		CHECK_INT(info.regions, 0);
		CHECK_INT(info.committed_bytes, 0);
		for (unsigned int ms = 0; ms < SETTLE_MS * harness_slow(); ms += 10) {
			daemon_fds = harness_fds(h->daemon);
			broker_fds = harness_fds(h->broker);
			maps = harness_regions(h->broker);
			if (daemon_fds == h->daemon_fds && broker_fds == h->broker_fds &&
			    maps == h->broker_maps)
				break;
			harness_sleep_ms(10);
		}
		CHECK_INT(daemon_fds, h->daemon_fds);
		CHECK_INT(broker_fds, h->broker_fds);
		CHECK_INT(maps, h->broker_maps);
	}
}

static void run_test(const struct harness_test *t)
{
	struct harness h = {0};
	unsigned int fds = harness_fds(getpid()), maps = harness_regions(getpid());

	snprintf(h.dir, sizeof(h.dir), "%s", getenv("HARNESS_DIR"));
	snprintf(h.address, sizeof(h.address), "%s/broker.sock", h.dir);
	setenv("PANDO_BROKER", h.address, 1);
	setenv("XDG_RUNTIME_DIR", h.dir, 1);
	if (!(t->flags & HARNESS_NO_BROKER)) {
		harness_start(&h, t->args);
		harness_baseline(&h);
	}
	t->run(&h);
	if (h.checker)
		check_broker(&h, t->flags);
	pando_disconnect(h.checker);
	CHECK_INT(harness_regions(getpid()), maps);
	CHECK_INT(harness_fds(getpid()), fds);
	harness_stop(&h);
	if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
		harness_fail(__FILE__, __LINE__, "a child of the test is left");
	fflush(NULL);
	exit(0);
}

/* Ends what a test has left: the members of its group, and orphans that have come to the runner. */
static unsigned int reap_left(pid_t group, bool quiet)
{
	unsigned int left = 0;
	char path[64];
	int pid, status;

	/* A process that was already about to end is no leak. */
	for (unsigned int ms = 0; ms < SETTLE_MS * harness_slow(); ms += 10) {
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			;
		if (pid < 0)
			return 0;
		harness_sleep_ms(10);
	}
	kill(-group, SIGKILL);
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	for (int rounds = 0; rounds < 10; rounds++) {
		FILE *f = fopen(path, "re");

		while (f && fscanf(f, "%d", &pid) == 1) {
			if (!quiet)
				fprintf(stderr, "  left over: process %d\n", pid);
			kill(pid, SIGKILL);
			left++;
		}
		if (f)
			fclose(f);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			;
		if (pid < 0)
			break;
		harness_sleep_ms(50);
	}
	return left;
}

/* Empties and removes the scratch folder. Returns false if the test had left something in it. */
static bool remove_dir(const char *path)
{
	DIR *dir = opendir(path);
	bool clean = true;
	char name[400];

	for (const struct dirent *e; dir && (e = readdir(dir));) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
		if (unlink(name) < 0)
			remove_dir(name);
		clean = false;
	}
	if (dir)
		closedir(dir);
	rmdir(path);
	return clean;
}

/* Returns 0, 1 or 77. */
static int run_one(const struct harness_test *t)
{
	unsigned int seconds = t->seconds ? t->seconds : 60;
	char dir[] = "/tmp/pando-test-XXXXXX";
	uint64_t started = harness_now_ns(), end;
	int status = 0;
	bool late = false;
	pid_t pid;

	seconds *= harness_slow();
	end = started + seconds * 1000000000ull;
	if (!mkdtemp(dir)) {
		perror("mkdtemp");
		return 1;
	}
	setenv("HARNESS_DIR", dir, 1);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		run_test(t);
	}
	setpgid(pid, pid);
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (harness_now_ns() > end) {
			late = true;
			kill(-pid, SIGKILL);
			waitpid(pid, &status, 0);
			break;
		}
		harness_sleep_ms(2);
	}
	bool ok = !late && WIFEXITED(status) && WEXITSTATUS(status) == 0;
	bool skipped = WIFEXITED(status) && WEXITSTATUS(status) == HARNESS_SKIPPED;

	if (!ok) /* what it had started is its own affair no more */
		kill(-pid, SIGKILL);
	if (reap_left(pid, !ok) > 0 && ok)
		ok = false;
	remove_dir(dir);
	printf("%s %s (%llu ms)\n",
	       ok	 ? "ok  "
	       : skipped ? "skip"
			 : "FAIL",
	       t->name, (unsigned long long)((harness_now_ns() - started) / 1000000));
	if (late)
		printf("  it took longer than %u s\n", seconds);
	else if (WIFSIGNALED(status))
		printf("  signal %d ended it\n", WTERMSIG(status));
	fflush(stdout);
	return ok ? 0 : skipped ? HARNESS_SKIPPED : 1;
}

int harness_main(int argc, char **argv, const struct harness_test *tests, size_t count)
{
	unsigned int ran = 0, failed = 0, skipped = 0;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signal(SIGPIPE, SIG_DFL);
	for (size_t i = 0; i < count; i++) {
		bool wanted = argc < 2;
		int rc;

		for (int a = 1; a < argc; a++)
			wanted |= strcmp(argv[a], tests[i].name) == 0;
		if (!wanted)
			continue;
		rc = run_one(&tests[i]);
		ran++;
		failed += rc == 1;
		skipped += rc == HARNESS_SKIPPED;
	}
	if (ran == 0) {
		fprintf(stderr, "no such test\n");
		return 2;
	}
	return failed ? 1 : skipped == ran ? HARNESS_SKIPPED : 0;
}
