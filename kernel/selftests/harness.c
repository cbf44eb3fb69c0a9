// SPDX-License-Identifier: GPL-2.0-only
/*
 * The harness's first half: cases, TAP, processes, and the leak check. See
 * harness.h for what a case may rely on.
 *
 * A case's process leads a process group and is a child subreaper's child, so
 * everything that it starts can be found and killed in the end, whatever it
 * forked, even if it called setsid(): orphans come to the harness.
 *
 * The leak check folds the per-CPU counters first (vm.stat_refresh), and tries
 * for some seconds, because page tables are freed after an RCU grace period. Its
 * slack is a few pages: the harness itself, and kernel threads, fault now and then.
 */
#include "harness.h"

#include <dirent.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <time.h>

#define STATUS_SKIP 77
#define SLACK_TABLES_KB 24
#define SLACK_SHMEM_KB 64

static const char *const level_names[] = { "quick", "full", "stress" };

enum level group(void)
{
	const char *name = getenv("SELFTEST_GROUP");
	unsigned int i;

	for (i = 0; name && i < ARRAY_SIZE(level_names); i++)
		if (!strcmp(name, level_names[i]))
			return i;
	return FULL;
}

bool debug_kernel(void)
{
	const char *name = getenv("PANDO_VM");

	return name && strstr(name, "debug");
}

unsigned int slow(void)
{
	const char *given = getenv("PANDO_TEST_SLOW");
	int times = given ? atoi(given) : 1;

	return (unsigned int)(times > 1 ? times : 1) * (debug_kernel() ? 4 : 1);
}

unsigned int storm_seconds(unsigned int full)
{
	const char *given = getenv("SELFTEST_STORM_SECONDS");

	if (group() == STRESS)
		return given ? (unsigned int)atoi(given) : 120;
	return group() == QUICK && full > 4 ? full / 2 : full;
}

/* ---- checks ------------------------------------------------------------- */

static void say(const char *prefix, const char *fmt, va_list ap)
{
	char line[1024];
	int n = snprintf(line, sizeof(line), "# %s", prefix);

	vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	strcat(line, "\n");
	/* One write, so that lines of several processes do not mix. */
	if (write(STDOUT_FILENO, line, strlen(line)) < 0)
		_exit(1);
}

void diag(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("", fmt, ap);
	va_end(ap);
}

void fail_at(const char *file, int line, const char *fmt, ...)
{
	const char *base = strrchr(file, '/');
	char prefix[128];
	va_list ap;

	snprintf(prefix, sizeof(prefix), "%s:%d: ", base ? base + 1 : file, line);
	va_start(ap, fmt);
	say(prefix, fmt, ap);
	va_end(ap);
	_exit(1);
}

long ok_at(const char *file, int line, const char *call, long result)
{
	if (result == -1)
		fail_at(file, line, "%s: %s", call, strerror(errno));
	return result;
}

/* The reason travels to the harness in memory that both have. */
static char *skip_reason;

void skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(skip_reason, 200, fmt, ap);
	va_end(ap);
	_exit(STATUS_SKIP);
}

/*
 * The harness stays on the first CPU, so that it does not disturb a process that
 * has the last one to itself.
 */
static cpu_set_t all_cpus;

/* ---- processes and threads ---------------------------------------------- */

pid_t xfork(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0, "fork: %s", strerror(errno));
	return pid;
}

int wait_status(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR, "waitpid(%d): %s", pid, strerror(errno));
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

pthread_t xthread(void *(*fn)(void *), void *arg)
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, fn, arg);

	CHECK(!err, "pthread_create: %s", strerror(err));
	return thread;
}

void xjoin(pthread_t thread)
{
	int err = pthread_join(thread, NULL);

	CHECK(!err, "pthread_join: %s", strerror(err));
}

void pin_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	CHECK_OK(sched_setaffinity(0, sizeof(set), &set));
}

int cpus(void)
{
	return CPU_COUNT(&all_cpus);
}

void need_cpus(int n)
{
	if (cpus() < n)
		skip("needs %d processors", n);
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

void nap_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

void *shared_alloc(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "shared memory: %s", strerror(errno));
	return p;
}

/* volatile: the handler reads it between two stores that the compiler would merge. */
static __thread sigjmp_buf *volatile fault_jump;

static void on_fault(int sig)
{
	if (fault_jump)
		siglongjmp(*fault_jump, sig);
	signal(sig, SIG_DFL);
}

/* Threads and children of a case inherit the handlers. */
static void catch_faults(void)
{
	struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

static int try_access(volatile void *p, int value)
{
	sigjmp_buf jump;
	int sig = sigsetjmp(jump, 1);

	if (!sig) {
		fault_jump = &jump;
		if (value < 0)
			(void)*(volatile unsigned char *)p;
		else
			*(volatile unsigned char *)p = (unsigned char)value;
	}
	fault_jump = NULL;
	return sig;
}

int try_read(const volatile void *p)
{
	return try_access((volatile void *)p, -1);
}

int try_write(volatile void *p, unsigned char value)
{
	return try_access(p, value);
}

uint64_t random64(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* ---- leaks ---------------------------------------------------------------- */

struct levels {
	long tables_kb;
	long shmem_kb;
	long inodes;
};

static void measure(struct levels *l)
{
	struct statfs sf;

	try_write_text("/proc/sys/vm/stat_refresh", "1");
	l->tables_kb = meminfo_kb("PageTables") + meminfo_kb("SecPageTables");
	l->shmem_kb = meminfo_kb("Shmem");
	l->inodes = 0;
	if (!statfs(mshare_root(), &sf) && sf.f_files)
		l->inodes = (long)(sf.f_files - sf.f_ffree);
}

static void remove_files(const char *dir)
{
	struct dirent *entry;
	DIR *d = opendir(dir);
	char path[512];

	while (d && (entry = readdir(d))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
		    !strcmp(entry->d_name, "mshare_info"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (unlink(path) && rmdir(path)) {
			remove_files(path);
			rmdir(path);
		}
	}
	if (d)
		closedir(d);
}

static bool leaked(const struct levels *before)
{
	struct levels after;
	double end = now() + 8 * slow();

	for (;;) {
		measure(&after);
		if (after.tables_kb <= before->tables_kb + SLACK_TABLES_KB &&
		    after.shmem_kb <= before->shmem_kb + SLACK_SHMEM_KB &&
		    after.inodes <= before->inodes)
			return false;
		if (now() > end)
			break;
		nap_ms(50);
	}
	diag("left behind: page tables %ld -> %ld kB, shared memory %ld -> %ld kB, inodes %ld -> %ld",
	     before->tables_kb, after.tables_kb, before->shmem_kb, after.shmem_kb, before->inodes,
	     after.inodes);
	return true;
}

/*
 * Whoever reads the output (tee, grep) is started at the same time as this program,
 * and the page tables that it gets meanwhile would look like a leak of the first
 * case. It is there when it has taken the first lines out of the pipe.
 */
static void wait_for_reader(void)
{
	double end = now() + 10;
	int waiting = 0;

	while (!ioctl(STDOUT_FILENO, FIONREAD, &waiting) && waiting > 0 && now() < end)
		nap_ms(5);
	nap_ms(5);
}

/* ---- cases ---------------------------------------------------------------- */

static void end_all(pid_t leader)
{
	char path[64], list[4096], *p;
	ssize_t n;
	long pid;

	kill(-leader, SIGKILL);
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	do {
		n = read_text(path, list, sizeof(list));
		for (p = list; n > 0 && (pid = strtol(p, &p, 10)) > 0;)
			kill((pid_t)pid, SIGKILL);
	} while (waitpid(-1, NULL, 0) > 0);
}

/* The case's exit status as wait_status() gives it, or -1 when time ran out. */
static int run_one(const struct test_case *c, unsigned int seconds)
{
	double end = now() + seconds;
	int status = -1;
	unsigned int nap = 1;
	pid_t pid, got;

	skip_reason[0] = '\0';
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
		catch_faults();
		c->run();
		_exit(0);
	}
	if (pid < 0)
		return 1;
	setpgid(pid, pid);
	for (;;) {
		got = waitpid(-1, &status, WNOHANG);
		if (got == pid)
			break;
		if (got == 0) {
			if (now() > end) {
				status = -1;
				break;
			}
			nap_ms(nap);
			nap = nap < 20 ? nap + 1 : nap;
		}
	}
	end_all(pid);
	if (status == -1)
		return -1;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static bool report(unsigned int number, const struct test_case *c)
{
	unsigned int seconds = (c->seconds ? c->seconds : 60) * slow();
	struct levels before;
	double start;
	bool bad = false;
	int status;

	if (c->level > group()) {
		printf("ok %u - %s # SKIP belongs to the group %s\n", number, c->name,
		       level_names[c->level]);
		return true;
	}
	if (group() == STRESS)
		seconds += storm_seconds(0) * 2;
	measure(&before);
	start = now();
	status = run_one(c, seconds);
	start = now() - start;
	remove_files(mshare_root());
	system_restore();
	if (status == STATUS_SKIP) {
		printf("ok %u - %s # SKIP %s\n", number, c->name, skip_reason);
		return true;
	}
	if (status == -1)
		diag("%s: no end after %u s", c->name, seconds);
	else if (status > 128)
		diag("%s: killed by signal %d", c->name, status - 128);
	else if (status > 1)
		diag("%s: exit status %d", c->name, status);
	if (leaked(&before))
		bad = true;
	bad = bad || status != 0;
	printf("%sok %u - %s # time=%.1fs\n", bad ? "not " : "", number, c->name, start);
	return !bad;
}

int run_cases(const struct test_case *cases, size_t count, int argc, char **argv)
{
	unsigned int i, number = 0, planned = 0;
	int a, failed = 0;

	setvbuf(stdout, NULL, _IONBF, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sched_getaffinity(0, sizeof(all_cpus), &all_cpus);
	pin_cpu(0);
	skip_reason = shared_alloc(PAGE);
	for (i = 0; i < count; i++)
		for (a = 1, planned += argc < 2; a < argc; a++)
			planned += !strcmp(argv[a], cases[i].name);
	if (!planned) {
		fprintf(stderr, "%s: no case of that name\n", argv[0]);
		return 2;
	}
	system_remember();
	printf("TAP version 13\n");
	if (!has_path(mshare_root()) || !mshare_align()) {
		printf("1..0 # SKIP msharefs is not mounted on %s\n", mshare_root());
		return 0;
	}
	printf("1..%u\n", planned);
	wait_for_reader();
	for (i = 0; i < count; i++) {
		bool wanted = argc < 2;

		for (a = 1; a < argc; a++)
			wanted = wanted || !strcmp(argv[a], cases[i].name);
		if (wanted && !report(++number, &cases[i]))
			failed = 1;
	}
	return failed;
}
