/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The embedded broker: started with the first pando_connect(NULL), shared by this program, its
 * children and what they execute, gone with the last of them; nothing that the host program could
 * notice.
 */
#include "harness.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#define MIB (1ull << 20)

static volatile sig_atomic_t chld;

static void on_chld(int number)
{
	(void)number;
	chld++;
}

static void prepare(struct harness *h)
{
	(void)h;
	if (access("/run/pando/broker.sock", F_OK) == 0)
		harness_skip("this machine has a broker of its own at /run/pando/broker.sock");
	if (!getenv("PANDO_BROKER_PROGRAM"))
		harness_skip("PANDO_BROKER_PROGRAM is not set");
	unsetenv("PANDO_BROKER");
	signal(SIGCHLD, on_chld);
}

static pid_t broker_of(struct pando *p)
{
	struct pando_broker_info info;

	CHECK_OK(pando_broker_info(p, &info));
	return info.broker_pid;
}

static void await_end(pid_t pid)
{
	char path[32], state = 'R';

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (int i = 0; i < 3000; i++) {
		FILE *f = fopen(path, "re");

		if (!f)
			return;
		if (fscanf(f, "%*d (%*[^)]) %c", &state) == 1 &&
		    state == 'Z') { /* for the runner to collect */
			fclose(f);
			return;
		}
		fclose(f);
		harness_sleep_ms(1);
	}
	harness_fail(__FILE__, __LINE__, "the embedded broker is still there, state %c", state);
}

static void test_life(struct harness *h)
{
	struct pando *p, *q;
	struct pando_region *r;
	pid_t pid, broker;

	prepare(h);
	CHECK_OK(pando_connect(&p, NULL));
	broker = broker_of(p);
	CHECK(strncmp(pando_broker_address(p), "@pando-", 7) == 0);
	CHECK(getenv("PANDO_BROKER") &&
	      strcmp(getenv("PANDO_BROKER"), pando_broker_address(p)) == 0);
	/* The host sees no child and no signal. */
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	CHECK_INT(chld, 0);
	CHECK_OK(pando_connect(&q, NULL));
	CHECK_INT(broker_of(q), broker);
	r = harness_region(p, "mine", MIB, 0);
	*(volatile char *)pando_region_base(r) = 1;
	pid = fork();
	if (pid == 0) { /* keeps the broker alive beyond its parent's leaving */
		CHECK(pando_client_id(p) != 0);
		harness_sleep_ms(100);
		CHECK_OK(pando_region_resize(r, 2 * MIB));
		CHECK(*(volatile char *)pando_region_base(r) == 1);
		_exit(0);
	}
	pando_disconnect(p);
	pando_disconnect(q);
	harness_sleep_ms(20);
	CHECK_INT(kill(broker, 0), 0);
	CHECK_INT(harness_join(pid), 0);
	await_end(broker);
	/* What is in the environment now is nobody's choice: a new one is started. */
	CHECK_OK(pando_connect(&p, NULL));
	CHECK(broker_of(p) != broker);
	broker = broker_of(p);
	pando_disconnect(p);
	await_end(broker);
}

static void *connect_one(void *arg)
{
	struct pando **p = arg;

	CHECK_OK(pando_connect(p, NULL));
	return NULL;
}

/* Many threads find at once that there is none: they end up with one. */
static void test_race(struct harness *h)
{
	pthread_t thread[8];
	struct pando *p[8];
	pid_t broker;

	prepare(h);
	for (int i = 0; i < 8; i++)
		pthread_create(&thread[i], NULL, connect_one, &p[i]);
	for (int i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	broker = broker_of(p[0]);
	for (int i = 1; i < 8; i++)
		CHECK_INT(broker_of(p[i]), broker);
	for (int i = 0; i < 8; i++)
		pando_disconnect(p[i]);
	await_end(broker);
}

/* Killed with everything that it serves: nothing is left, and the next one starts. */
static void test_killed(struct harness *h)
{
	struct pando *p;
	pid_t pid;
	int ends[2];

	prepare(h);
	for (int i = 0; i < 5; i++) {
		pid_t broker = 0;

		CHECK(pipe2(ends, O_CLOEXEC) == 0);
		pid = fork();
		if (pid == 0) {
			CHECK_OK(pando_connect(&p, NULL));
			harness_region(p, "doomed", MIB, 0);
			broker = broker_of(p);
			CHECK(write(ends[1], &broker, sizeof(broker)) == sizeof(broker));
			kill(getpid(), SIGKILL);
		}
		CHECK(read(ends[0], &broker, sizeof(broker)) == sizeof(broker));
		CHECK_INT(harness_join(pid), 256 + SIGKILL);
		await_end(broker);
		close(ends[0]);
		close(ends[1]);
	}
}

static void test_no_program(struct harness *h)
{
	struct pando *p;

	prepare(h);
	setenv("PANDO_BROKER_PROGRAM", "/nonexistent/pandod", 1);
	CHECK_ERR(pando_connect(&p, NULL), ECONNREFUSED, "/nonexistent/pandod cannot be started");
	setenv("PANDO_BROKER_PROGRAM", "/etc/passwd", 1);
	CHECK_ERR(pando_connect(&p, NULL), EACCES, "/etc/passwd cannot be started");
	setenv("PANDO_BROKER_PROGRAM", "/bin/false", 1);
	CHECK_ERR(pando_connect(&p, NULL), ECONNREFUSED, "/bin/false ended before it was ready");
	CHECK(getenv("PANDO_BROKER") == NULL);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "life", .run = test_life, .flags = HARNESS_NO_BROKER},
		{.name = "race", .run = test_race, .flags = HARNESS_NO_BROKER},
		{.name = "killed", .run = test_killed, .flags = HARNESS_NO_BROKER},
		{.name = "no-program", .run = test_no_program, .flags = HARNESS_NO_BROKER},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
