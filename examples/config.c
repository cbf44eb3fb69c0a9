/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A configuration that workers read without a lock while it is replaced.
 *
 *	config [WORKERS [SECONDS]]
 *
 * A publisher gives a configuration a name, and another one the same name every millisecond. Workers look it
 * up for each "request", by a handle: some loads, no lock, no system call. What has been replaced is freed
 * when no worker can be reading it any more. One more process sleeps until the configuration changes.
 * After half of the time the publisher is killed wherever it is, and another one goes on.
 */
#include <pando/pando.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct config {
	unsigned long number;
	char greeting[64];
};

static struct pando_region *region;
static struct counters {
	volatile int stop;
	unsigned long requests, changes, torn;
} * count; /* shared by all */

static void fail(const char *what)
{
	fprintf(stderr, "config: %s: %s\n", what, pando_strerror_last());
	_exit(1);
}

/* Publishes the next configuration each millisecond, until it is killed or told to stop. */
static void publisher(void)
{
	for (unsigned long number = 1; !count->stop; number++) {
		struct config *c = pando_alloc(region, sizeof(*c));

		if (!c)
			fail("no memory");
		c->number = number;
		snprintf(c->greeting, sizeof(c->greeting), "greeting %lu", number);
		if (pando_publish(region, "config", c) < 0)
			fail("publish");
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

static void worker(void)
{
	unsigned long requests = 0, torn = 0;
	struct pando_handle h;

	if (pando_handle_init(region, &h, "config") < 0)
		fail("handle");
	while (!count->stop) {
		const struct config *c;
		char expected[64];

		if (pando_read_lock(region) < 0)
			fail("read lock");
		c = pando_lookup_handle(region, &h);
		if (c && requests % 1024 == 0) { /* now and then it looks closely */
			snprintf(expected, sizeof(expected), "greeting %lu", c->number);
			torn += strcmp(expected, c->greeting) != 0;
		}
		(void)pando_read_unlock(region);
		requests += c != NULL;
	}
	(void)__atomic_fetch_add(&count->requests, requests, __ATOMIC_RELAXED);
	(void)__atomic_fetch_add(&count->torn, torn, __ATOMIC_RELAXED);
}

static void watcher(void)
{
	uint64_t version = 0;

	while (!count->stop)
		count->changes += pando_watch(region, "config", &version, 100) == 0;
}

static pid_t start(void (*run)(void))
{
	const pid_t pid = fork(); /* the child is a client of its own */

	if (pid == 0) {
		run();
		_exit(0);
	}
	if (pid < 0)
		exit(1);
	return pid;
}

int main(int argc, char **argv)
{
	const int workers = argc > 1 ? atoi(argv[1]) : 2, seconds = argc > 2 ? atoi(argv[2]) : 2;
	struct pando_directory_stat st;
	struct pando *p;
	int status, failed = 0;
	pid_t writer;

	count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (count == MAP_FAILED || pando_connect(&p, NULL) < 0 ||
	    pando_region_open(p, "config", PANDO_CREATE | PANDO_TRANSIENT | PANDO_HEAP,
			      &(struct pando_region_options){.size = 16 << 20}, &region) < 0) {
		fprintf(stderr, "config: %s\n", pando_strerror_last());
		return 1;
	}
	writer = start(publisher);
	(void)start(watcher);
	for (int i = 0; i < workers; i++)
		(void)start(worker);
	usleep((useconds_t)seconds * 500000);
	kill(writer, SIGKILL); /* wherever it is: the name has its old object or the new one */
	(void)start(publisher);
	usleep((useconds_t)seconds * 500000);
	count->stop = 1;
	while (wait(&status) > 0 || errno == EINTR)
		failed |= !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) && status != 0;
	if (pando_directory_stat(region, &st) < 0)
		return 1;
	printf("%d workers: %.1f million requests a second; %llu configurations, the watcher saw "
	       "%lu; "
	       "%lu were torn\n",
	       workers, (double)count->requests / seconds / 1e6, (unsigned long long)st.published,
	       count->changes, count->torn);
	failed |= count->torn || count->requests == 0 || count->changes == 0;
	pando_disconnect(p);
	return failed;
}
