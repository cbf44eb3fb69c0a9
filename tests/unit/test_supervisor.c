/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The supervisor, with a broker that does as it is told.
 *
 * The supervisor starts /proc/self/exe, so this program is its own broker: started with
 * --broker-channel it obeys one-line commands from whoever connects to the listening socket. Each
 * test starts a supervisor in a child and looks at it from outside. This process adopts all
 * orphans, so that whatever a test leaves behind is found.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/listen.h"
#include "broker/supervisor.h"

/* --- the broker --- */

static struct {
	struct broker_config config;
	struct store *store;
	int listener;
	uint64_t epoch, sum; /* of the records' ids */
	unsigned int records, good; /* good: whose descriptor holds what it should */
	char words[64];
	bool obeys; /* ends when told to drain */
} b = {.listener = -1, .obeys = true};

static int take_record(void *arg, enum store_kind kind, uint64_t id, const void *blob, size_t size,
		       const int *fds, unsigned int nfds)
{
	uint64_t in_file = 0;

	(void)arg;
	if (kind == STORE_LISTENER) {
		b.listener = fds[0];
		return 0;
	}
	if (kind == STORE_EPOCH) {
		memcpy(&b.epoch, blob, size);
		return 0;
	}
	b.records++;
	b.sum += id;
	if (nfds == 2 && size == sizeof(id) && memcmp(blob, &id, size) == 0 &&
	    pread(fds[1], &in_file, sizeof(in_file), 0) == sizeof(in_file) && in_file == id)
		b.good++;
	for (unsigned int i = 0; i < nfds; i++)
		close(fds[i]);
	return 0;
}

static void put_record(uint64_t id)
{
	int fds[2] = {memfd_create("a", MFD_CLOEXEC), memfd_create("b", MFD_CLOEXEC)};

	(void)!pwrite(fds[1], &id, sizeof(id), 0);
	(void)!store_put(b.store, STORE_CLIENT, id, &id, sizeof(id), fds, 2);
	close(fds[0]);
	close(fds[1]);
	b.records++;
}

static void obey(const char *command, char *answer, size_t size)
{
	uint64_t id = strtoull(command + 1, NULL, 10);

	snprintf(answer, size, "ok");
	switch (command[0]) {
	case 'i':
		snprintf(answer, size, "%d %" PRIu64 " %u %u %" PRIu64 " %d %s", (int)getpid(),
			 b.epoch, b.records, b.good, b.sum, store_supervisor_pid(b.store), b.words);
		break;
	case 'p':
		put_record(id);
		break;
	case 'P': /* put and die at once */
		put_record(id);
		raise(SIGKILL);
		break;
	case 'r':
		(void)!store_remove(b.store, STORE_CLIENT, id);
		break;
	case 's':
		b.obeys = false;
		break;
	case 'f':
		(void)!store_finish(b.store, (int)id, "told to fail");
		_exit(9);
	case 'k':
		raise(SIGKILL);
		break;
	default:
		break;
	}
}

static void hear(void)
{
	enum store_word word;
	uint64_t value;
	int ret;

	while ((ret = store_word(b.store, &word, &value)) == 1) {
		strcat(b.words, word == STORE_WORD_DRAIN  ? "D"
				: word == STORE_WORD_STOP ? "S"
							  : "R");
		if (word == STORE_WORD_DRAIN && b.obeys) {
			(void)!store_finish(b.store, 0, NULL);
			_exit(0);
		}
	}
	if (ret != -EPIPE)
		return;
	store_close(b.store);
	if (supervisor_respawn(&b.config, &b.store) < 0)
		_exit(1);
	(void)!store_put(b.store, STORE_LISTENER, 0, NULL, 0, &b.listener, 1);
	(void)!store_put(b.store, STORE_EPOCH, 0, &b.epoch, sizeof(b.epoch), NULL, 0);
	put_record(1000);
	(void)!store_ready(b.store);
}

static int broker_main(void)
{
	const char *mood = getenv("TEST_BROKER");

	if (mood && strcmp(mood, "dies") == 0)
		return 3;
	if (store_open(&b.store, b.config.channel) < 0)
		return 4;
	if (mood && strcmp(mood, "refuses") == 0) {
		(void)!store_finish(b.store, 1, "no room in the window");
		return 1;
	}
	if (store_load(b.store, take_record, NULL) < 0 || b.listener < 0)
		return 5;
	(void)!store_ready(b.store);
	for (;;) {
		struct pollfd p[] = {{.fd = b.listener, .events = POLLIN},
				     {.fd = store_fd(b.store), .events = POLLIN}};
		char command[64] = "", answer[256];
		int fd;

		poll(p, 2, -1);
		if (p[1].revents)
			hear();
		if (!p[0].revents || (fd = accept4(b.listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
			continue;
		if (recv(fd, command, sizeof(command) - 1, 0) > 0) {
			obey(command, answer, sizeof(answer));
			(void)!send(fd, answer, strlen(answer), MSG_NOSIGNAL);
		}
		close(fd);
	}
}

/* --- the tests --- */

static struct broker_config config;
static char dir[] = "/tmp/pando-test-supervisor-XXXXXX";
static char log_path[128];
static pid_t supervisor;
static int ready[2];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static int setup(void **state)
{
	(void)state;
	while (waitpid(-1, NULL, WNOHANG) == 0) { /* a failed test takes the others not along */
		kill(supervisor, SIGTERM);
		nap();
	}
	config_defaults(&config);
	snprintf(config.address, sizeof(config.address), "%s/sub/broker.sock", dir);
	strcpy(config.log_target, log_path);
	config.drain_timeout_ms = 200;
	unsetenv("TEST_BROKER");
	return pipe2(ready, O_CLOEXEC);
}

static void start(void)
{
	supervisor = fork();
	assert_true(supervisor >= 0);
	if (supervisor == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM); /* a failed test leaves no daemon behind */
		config.ready_fd = ready[1];
		if (log_open(config.log_target, LOG_LEVEL_DEBUG, "supervisor") < 0)
			_exit(99);
		_exit(supervisor_run(&config));
	}
	close(ready[1]);
	ready[1] = -1;
}

/* What arrives at the ready pipe; "" if it is closed without a word. */
static const char *readiness(void)
{
	static char text[256];
	size_t n = 0;
	ssize_t got;

	while ((got = read(ready[0], text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = '\0';
	close(ready[0]);
	return text;
}

static void start_and_wait(void)
{
	start();
	assert_string_equal(readiness(), "ok\n");
}

/* The exit status of a child; -signal if it was killed. Fails after five seconds. */
static int status_of(pid_t pid)
{
	double end = now() + 5;
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (now() > end) {
			kill(pid, SIGKILL);
			fail_msg("process %d does not end", (int)pid);
		}
		nap();
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* No child, adopted or own, may be left; and no descriptor. */
static void assert_nothing_left(void)
{
	double end = now() + 2;
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) >= 0 && now() < end)
		nap();
	assert_int_equal(pid, -1);
	assert_int_equal(access(config.address, F_OK), -1);
}

static int say(const char *command, char *answer, size_t size)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ssize_t n = -1;

	strcpy(sun.sun_path, config.address);
	if (connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0 &&
	    send(fd, command, strlen(command), MSG_NOSIGNAL) > 0)
		n = recv(fd, answer, size - 1, 0);
	close(fd);
	if (n > 0)
		answer[n] = '\0';
	return n > 0 ? 0 : -1;
}

static void tell(const char *command)
{
	char answer[256];

	(void)!say(command, answer, sizeof(answer));
}

struct info {
	int pid, supervisor;
	uint64_t epoch, sum;
	unsigned int records, good;
	char words[64];
};

static struct info info(void)
{
	struct info i = {0};
	char answer[256];

	assert_int_equal(say("i", answer, sizeof(answer)), 0);
	assert_true(sscanf(answer, "%d %" SCNu64 " %u %u %" SCNu64 " %d %63s", &i.pid, &i.epoch,
			   &i.records, &i.good, &i.sum, &i.supervisor, i.words) >= 6);
	return i;
}

/* Waits for a broker other than `old`; returns the seconds that it took. */
static double wait_for_another(int old, struct info *i)
{
	double begin = now();
	char answer[256];

	do {
		if (now() - begin > 3)
			fail_msg("no new broker after 3 s");
		nap();
	} while (say("i", answer, sizeof(answer)) < 0 || atoi(answer) == old);
	*i = info();
	return now() - begin;
}

static int open_descriptors(pid_t pid)
{
	char path[64];
	DIR *d;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	if (!d)
		return -1;
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* The same, once it does not change any more: the supervisor may still be reading records. */
static int settled_descriptors(pid_t pid)
{
	int before, n = -1;

	do {
		before = n;
		for (int i = 0; i < 10; i++)
			nap();
		n = open_descriptors(pid);
	} while (n != before);
	return n;
}

static void end_it(void)
{
	kill(supervisor, SIGTERM);
	assert_int_equal(status_of(supervisor), 0);
	assert_nothing_left();
}

static void serves_and_drains(void **state)
{
	struct stat st;

	(void)state;
	start_and_wait();
	assert_int_equal(info().epoch, 1);
	assert_int_equal(info().supervisor, supervisor);
	assert_int_equal(stat(config.address, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0666);
	end_it();
}

static void a_new_broker_finds_the_records(void **state)
{
	struct info i;
	int before;

	(void)state;
	start_and_wait();
	tell("p5");
	tell("p6");
	tell("p7");
	tell("r6");
	i = info();
	before = settled_descriptors(supervisor);
	kill(i.pid, SIGKILL);
	assert_true(wait_for_another(i.pid, &i) < 1.0);
	assert_int_equal(i.epoch, 2);
	assert_int_equal(i.records, 2);
	assert_int_equal(i.good, 2);
	assert_true(i.sum == 12);
	assert_int_equal(settled_descriptors(supervisor), before);
	tell("P8"); /* its last packet counts */
	assert_true(wait_for_another(i.pid, &i) < 1.0);
	assert_int_equal(i.records, 3);
	assert_int_equal(i.good, 3);
	end_it();
}

static void survives_many_deaths(void **state)
{
	double worst = 0, took;
	struct info i;
	int before;

	(void)state;
	start_and_wait();
	for (int n = 0; n < 500; n++) {
		char command[16];

		snprintf(command, sizeof(command), "p%d", n + 10);
		tell(command);
	}
	before = settled_descriptors(supervisor);
	i = info();
	for (int n = 0; n < 15; n++) {
		kill(i.pid, SIGKILL);
		took = wait_for_another(i.pid, &i);
		worst = took > worst ? took : worst;
		assert_int_equal(i.good, 500);
		assert_int_equal(i.epoch, 2 + n);
	}
	print_message("500 records, 15 deaths in a row: the slowest new broker after %.0f ms\n",
		      worst * 1e3);
	assert_true(worst < 1.0);
	assert_int_equal(settled_descriptors(supervisor), before);
	end_it();
}

static void kills_a_broker_that_does_not_drain(void **state)
{
	double begin;

	(void)state;
	start_and_wait();
	tell("s");
	begin = now();
	kill(supervisor, SIGTERM);
	assert_int_equal(status_of(supervisor), 0);
	assert_true(now() - begin >= 0.2 && now() - begin < 3);
	assert_nothing_left();
}

static void second_sigterm_is_at_once(void **state)
{
	struct info i;
	double begin;

	(void)state;
	config.drain_timeout_ms = 60000;
	start_and_wait();
	tell("s");
	kill(supervisor, SIGTERM);
	do
		i = info();
	while (strcmp(i.words, "D") != 0);
	begin = now();
	kill(supervisor, SIGINT);
	assert_int_equal(status_of(supervisor), 0);
	assert_true(now() - begin < 2);
	assert_nothing_left();
}

static void a_broker_that_dies_draining_is_told_again(void **state)
{
	struct info i;

	(void)state;
	config.drain_timeout_ms = 60000;
	start_and_wait();
	tell("s");
	kill(supervisor, SIGTERM);
	do
		i = info();
	while (strcmp(i.words, "D") != 0);
	kill(i.pid, SIGKILL); /* the new one obeys */
	assert_int_equal(status_of(supervisor), 0);
	assert_nothing_left();
}

static void sighup_reopens_the_log(void **state)
{
	char moved[160];

	(void)state;
	start_and_wait();
	snprintf(moved, sizeof(moved), "%s.1", log_path);
	assert_int_equal(rename(log_path, moved), 0);
	kill(supervisor, SIGHUP);
	while (strcmp(info().words, "R") != 0)
		nap();
	assert_int_equal(access(log_path, F_OK), 0);
	end_it();
	unlink(moved);
}

static void a_wanted_end_is_no_crash(void **state)
{
	(void)state;
	start_and_wait();
	tell("f7");
	assert_int_equal(status_of(supervisor), 7);
	assert_nothing_left();
}

static void reports_why_it_cannot_start(void **state)
{
	int fd;

	(void)state;
	setenv("TEST_BROKER", "refuses", 1);
	start();
	assert_string_equal(readiness(), "no room in the window\n");
	assert_int_equal(status_of(supervisor), 1);

	pipe2(ready, O_CLOEXEC);
	setenv("TEST_BROKER", "dies", 1);
	start();
	assert_string_equal(readiness(), "the broker died at every start\n");
	assert_int_equal(status_of(supervisor), 1);
	assert_nothing_left();

	unsetenv("TEST_BROKER");
	pipe2(ready, O_CLOEXEC);
	fd = open(config.address, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	close(fd);
	start();
	assert_non_null(strstr(readiness(), "is not a socket"));
	assert_int_equal(status_of(supervisor), 1);
	assert_int_equal(unlink(config.address), 0); /* it was not touched */
}

static void takes_over_a_stale_socket_only(void **state)
{
	struct info i;
	pid_t first;

	(void)state;
	start_and_wait();
	first = supervisor;
	pipe2(ready, O_CLOEXEC);
	start();
	assert_non_null(strstr(readiness(), "already running"));
	assert_int_equal(status_of(supervisor), 1);
	i = info(); /* the first is not disturbed */
	kill(i.pid, SIGSTOP);
	kill(first, SIGKILL);
	assert_int_equal(status_of(first), -SIGKILL);
	kill(i.pid, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	assert_int_equal(access(config.address, F_OK), 0);
	pipe2(ready, O_CLOEXEC);
	start_and_wait();
	end_it();
}

static void its_own_death_is_mended(void **state)
{
	struct info i, j;
	pid_t second;
	double end;

	(void)state;
	start_and_wait();
	i = info();
	kill(supervisor, SIGKILL);
	assert_int_equal(status_of(supervisor), -SIGKILL);
	end = now() + 3;
	do {
		nap();
		j = info();
	} while ((j.supervisor == 0 || j.supervisor == supervisor) && now() < end);
	assert_int_equal(j.pid, i.pid);
	second = j.supervisor;
	assert_true(second != 0 && second != supervisor);
	kill(i.pid, SIGKILL);
	assert_true(wait_for_another(i.pid, &j) < 1.0);
	assert_int_equal(j.epoch, 2);
	assert_int_equal(j.records, 1);
	assert_int_equal(j.good, 1);
	assert_int_equal(j.supervisor, second);
	kill(second, SIGTERM);
	supervisor = second;
	assert_int_equal(status_of(second), 0); /* an orphan: ours */
	assert_nothing_left();
}

static void speaks_with_systemd(void **state)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	char notify[128], text[256] = "";
	int said = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), passed;
	bool ours;

	(void)state;
	snprintf(notify, sizeof(notify), "%s/notify", dir);
	strcpy(sun.sun_path, notify);
	assert_int_equal(bind(said, (struct sockaddr *)&sun, sizeof(sun)), 0);
	passed = listen_open(config.address, &ours);
	assert_true(passed >= 0 && ours);
	supervisor = fork();
	if (supervisor == 0) {
		char pid[16];

		snprintf(pid, sizeof(pid), "%d", (int)getpid());
		setenv("LISTEN_PID", pid, 1);
		setenv("LISTEN_FDS", "1", 1);
		setenv("NOTIFY_SOCKET", notify, 1);
		dup2(passed, 3);
		strcpy(config.address, "/nonexistent/not-used");
		_exit(supervisor_run(&config));
	}
	close(passed);
	assert_true(recv(said, text, sizeof(text) - 1, 0) > 0);
	assert_int_equal(strncmp(text, "READY=1\n", 8), 0);
	assert_int_equal(info().epoch, 1);
	kill(supervisor, SIGTERM);
	assert_true(recv(said, text, sizeof(text) - 1, 0) > 0);
	assert_int_equal(strncmp(text, "STOPPING=1\n", 11), 0);
	assert_int_equal(status_of(supervisor), 0);
	assert_int_equal(unlink(config.address), 0); /* systemd's path is left alone */
	assert_nothing_left();
	close(said);
	unlink(notify);
	close(ready[0]);
	close(ready[1]);
}

static void remove_dir(void)
{
	char sub[64];

	snprintf(sub, sizeof(sub), "%s/sub", dir);
	unlink(log_path);
	unlink(config.address); /* of a test that failed */
	snprintf(sub + strlen(dir), sizeof(sub) - strlen(dir), "/notify");
	unlink(sub);
	snprintf(sub + strlen(dir), sizeof(sub) - strlen(dir), "/sub");
	rmdir(sub);
	rmdir(dir);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(serves_and_drains, setup),
		cmocka_unit_test_setup(a_new_broker_finds_the_records, setup),
		cmocka_unit_test_setup(survives_many_deaths, setup),
		cmocka_unit_test_setup(kills_a_broker_that_does_not_drain, setup),
		cmocka_unit_test_setup(second_sigterm_is_at_once, setup),
		cmocka_unit_test_setup(a_broker_that_dies_draining_is_told_again, setup),
		cmocka_unit_test_setup(sighup_reopens_the_log, setup),
		cmocka_unit_test_setup(a_wanted_end_is_no_crash, setup),
		cmocka_unit_test_setup(reports_why_it_cannot_start, setup),
		cmocka_unit_test_setup(takes_over_a_stale_socket_only, setup),
		cmocka_unit_test_setup(its_own_death_is_mended, setup),
		cmocka_unit_test_setup(speaks_with_systemd, setup),
	};
	int ret;

	if (argc > 1) { /* the supervisor, or a broker, started us */
		if (config_load(&b.config, argc, argv) != 0)
			return 2;
		(void)!log_open(b.config.log_target, LOG_LEVEL_DEBUG, "test");
		return b.config.role == CONFIG_ROLE_BROKER ? broker_main()
							   : supervisor_run(&b.config);
	}
	signal(SIGPIPE, SIG_IGN);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0 || !mkdtemp(dir))
		return 1;
	snprintf(log_path, sizeof(log_path), "%s/log", dir);
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	if (ret && getenv("TEST_LOG"))
		(void)!execlp("cat", "cat", log_path, NULL);
	remove_dir();
	return ret;
}
