/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Many clients at once, and many that come and go and are killed, with nothing left over: no
 * descriptor, mapping or process, no slot of the client table, no page of any file, and no growth
 * of the broker.
 *
 * Environment: PANDO_TEST_CLIENTS (1000 at once), PANDO_TEST_ROUNDS (10000).
 */
#include "harness.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#define MIB (1ull << 20)
#define AT_ONCE 8 /* children of the rounds at any time */

static unsigned int setting(const char *name, unsigned int otherwise)
{
	const char *env = getenv(name);

	return env ? (unsigned int)strtoul(env, NULL, 10) : otherwise;
}

/* What must be the same before and after. */
struct measure {
	unsigned int broker_fds, daemon_fds, maps;
	uint64_t files;
	long broker_rss, daemon_rss;
};

static void measure(struct harness *h, struct measure *m)
{
	m->broker_fds = harness_fds(h->broker);
	m->daemon_fds = harness_fds(h->daemon);
	m->maps = harness_regions(h->broker);
	m->files = harness_file_kib(h->broker);
	m->broker_rss = harness_kib(h->broker, "RssAnon");
	m->daemon_rss = harness_kib(h->daemon, "RssAnon");
}

/* slack: KiB by which the allocators of broker and supervisor may have grown. */
static void compare(struct harness *h, const struct measure *before, long slack)
{
	struct measure after;

	for (unsigned int ms = 0; ms < 2000 * harness_slow(); ms += 20) {
		measure(h, &after);
		if (after.daemon_fds == before->daemon_fds &&
		    after.broker_fds == before->broker_fds)
			break;
		harness_sleep_ms(20);
	}
	printf("  fds %u -> %u, supervisor's %u -> %u, region mappings %u -> %u, files %llu -> "
	       "%llu KiB, "
	       "broker %ld -> %ld KiB, supervisor %ld -> %ld KiB\n",
	       before->broker_fds, after.broker_fds, before->daemon_fds, after.daemon_fds,
	       before->maps, after.maps, (unsigned long long)before->files,
	       (unsigned long long)after.files, before->broker_rss, after.broker_rss,
	       before->daemon_rss, after.daemon_rss);
	fflush(stdout);
	CHECK_INT(after.broker_fds, before->broker_fds);
	CHECK_INT(after.daemon_fds, before->daemon_fds);
	CHECK_INT(after.maps, before->maps);
	/*
	 * A slot's page stays with its region, for the next client; the table may have grown by a
	 * few.
	 */
	CHECK(after.files <= before->files + 16 * 4);
#ifdef __SANITIZE_ADDRESS__
	slack += 256 << 10; /* its quarantine */
#endif
	CHECK(after.broker_rss <= before->broker_rss + slack);
	CHECK(after.daemon_rss <= before->daemon_rss + slack);
}

static void at_once_child(struct harness *h, int go)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r;
	char c;

	CHECK_OK(pando_region_open(p, "crowd", 0, NULL, &r));
	__atomic_add_fetch((uint32_t *)pando_region_base(r), 1, __ATOMIC_RELAXED);
	CHECK(read(go, &c, 1) == 0);
	if (getpid() % 3 == 0)
		kill(getpid(), SIGKILL);
	if (getpid() % 3 == 1)
		pando_disconnect(p);
	_exit(0);
}

/* All of them attached to one region at one time; then they leave, each in its way. */
static void crowd(struct harness *h, unsigned int clients)
{
	volatile uint32_t *counter;
	struct pando_region_stat st = {0};
	struct pando_region *r;
	struct pando *p;
	int go[2];

	CHECK(pipe2(go, O_CLOEXEC) == 0);
	for (unsigned int i = 0; i < clients; i++) {
		pid_t pid = fork(); /* this process has no connection yet: they inherit none */

		CHECK(pid >= 0);
		if (pid == 0) {
			close(go[1]);
			at_once_child(h, go[0]);
		}
	}
	h->checker = p = harness_connect(h);
	CHECK_OK(pando_region_open(p, "crowd", 0, NULL, &r));
	counter = pando_region_base(r);
	for (unsigned int i = 0;
	     i < 30000 * harness_slow() && (pando_region_stat(r, &st), st.clients < clients + 1);
	     i++)
		harness_sleep_ms(1);
	CHECK_INT(st.clients, clients + 1);
	/* The last of them may be attached and not have counted yet. */
	for (unsigned int i = 0; i < 5000 * harness_slow() && *counter < clients; i++)
		harness_sleep_ms(1);
	CHECK_INT(*counter, clients);
	*counter = 0;
	close(go[1]);
	close(go[0]);
	for (unsigned int i = 0; i < clients; i++) {
		int status;

		CHECK(wait(&status) > 0);
		CHECK(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
	}
	harness_await_clients(h, 1);
	CHECK_OK(pando_region_stat(r, &st));
	CHECK_INT(st.clients, 1);
	pando_disconnect(p);
	h->checker = NULL;
}

static void test_at_once(struct harness *h)
{
	unsigned int clients = setting("PANDO_TEST_CLIENTS", 1000);
	struct measure before;
	uint64_t started;

	CHECK_OK(pando_region_close(harness_region(h->checker, "crowd", MIB, 0)));
	pando_disconnect(h->checker);
	h->checker = NULL;
	/* The first crowd makes the client table and the broker's heap as large as it takes. */
	crowd(h, clients);
	harness_sleep_ms(300);
	measure(h, &before);
	started = harness_now_ns();
	crowd(h, clients);
	printf("  %u clients at once, twice; %.2f s\n", clients,
	       (double)(harness_now_ns() - started) / 1e9);
	compare(h, &before, 512);
	h->checker = harness_connect(h);
	CHECK_OK(pando_region_destroy(h->checker, "crowd"));
}

/* One of the rounds: what a process may do between its birth and its end. Never returns. */
static void round_child(struct harness *h, unsigned int number)
{
	struct pando_region *r;
	struct pando *p;

	if (number % 5 == 0) /* killed at any moment of what follows */
		alarm(0), ualarm(1 + number * 37 % 900, 0);
	p = harness_connect(h);
	CHECK_OK(pando_region_open(p, "crowd", number % 4 == 0 ? PANDO_READONLY : 0, NULL, &r));
	if (number % 4 != 0)
		__atomic_add_fetch((uint64_t *)pando_region_base(r), 1, __ATOMIC_RELAXED);
	switch (number % 5) {
	case 1:
		CHECK_OK(pando_region_close(r));
		pando_disconnect(p);
		_exit(0);
	case 2:
		pando_disconnect(p);
		_exit(0);
	case 3:
		_exit(0);
	default:
		kill(getpid(), SIGKILL);
	}
	_exit(1);
}

static void rounds(struct harness *h, unsigned int from, unsigned int count)
{
	unsigned int started = 0, ended = 0;

	while (ended < count) {
		int status;
		pid_t pid;

		if (started < count && started - ended < AT_ONCE) {
			pid = fork();
			CHECK(pid >= 0);
			if (pid == 0)
				round_child(h, from + started);
			started++;
			continue;
		}
		pid = wait(&status);
		CHECK(pid > 0);
		CHECK(status == 0 || WIFSIGNALED(status));
		ended++;
	}
}

static void test_rounds(struct harness *h)
{
	unsigned int count = setting("PANDO_TEST_ROUNDS", 10000);
	struct pando_broker_info info;
	struct pando_region_stat st;
	struct pando_region *r;
	struct measure before;
	struct pando *p;
	uint64_t started;

	CHECK_OK(pando_region_close(harness_region(h->checker, "crowd", MIB, 0)));
	pando_disconnect(h->checker); /* children of this process are to be nobody's heirs */
	h->checker = NULL;
	rounds(h, 0, count / 10); /* allocators and tables find their size */
	harness_sleep_ms(200);
	measure(h, &before);
	started = harness_now_ns();
	rounds(h, count / 10, count);
	printf("  %u rounds in %.1f s\n", count, (double)(harness_now_ns() - started) / 1e9);
	compare(h, &before, 512);
	h->checker = p = harness_connect(h);
	harness_await_clients(h, 1);
	CHECK_OK(pando_region_open(p, "crowd", 0, NULL, &r));
	CHECK_OK(pando_region_stat(r, &st));
	CHECK_INT(st.clients, 1);
	CHECK(st.slot < 2 * AT_ONCE); /* the table is used again from the bottom */
	CHECK_OK(pando_broker_info(p, &info));
	CHECK_INT(info.regions, 1);
	printf("  longest clean-up after a death: %.3f ms\n", (double)info.reap_ns_max / 1e6);
	CHECK_OK(pando_region_destroy(p, "crowd"));
	CHECK_OK(pando_region_close(r));
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "at-once", .run = test_at_once, .seconds = 120},
		{.name = "rounds", .run = test_rounds, .seconds = 300},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
