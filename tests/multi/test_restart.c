/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The broker dies; nobody notices.
 *
 * Writers are processes that are attached to a region and keep writing and checking their part of
 * it; they must make progress, and never see a wrong byte, whatever becomes of the broker. A
 * churner calls the library all the time; every call must succeed, since the library sends it again
 * to the next broker.
 *
 *	random_deaths		200 times SIGKILL at any moment, under all that
 *	every_injection_point	the broker kills itself at each point, at several passages of it
 *	the_supervisor_dies	and then the broker
 *	drains			SIGTERM with clients that stay
 *
 * After each the regions must be what they were, and nothing may be left: descriptors of both
 * processes, clients, slots, bytes. Which points there are is read from the sources when this is
 * built (points.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pando/pando.h>

#include "common/atomic.h"
#include "allocator/heap.h"
#include "client.h"
#include "daemon.h"
#include "points.h"

#define MIB (1ull << 20)
#define RESTARTS 200
#ifdef PANDO_INJECTION
#define INJECTION true
#else
#define INJECTION false
#endif
#define WRITERS 3
#define WRITER_BYTES (256u << 10) /* of the region, each */
#define MAX_PASSAGES 3

#define OK(call) check_ok(call, #call, __LINE__)
static void check_ok(int ret, const char *call, int line)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "%d: %s: %s: %s\n", line, call, strerror(-ret), pando_strerror_last());
	daemon_failed(__FILE__, line, call);
}

/* Shared with the helpers. */
static struct shared {
	int stop;
	struct {
		uint64_t rounds; /* full passes over its part */
		uint64_t slowest_us;
	} helper[WRITERS + 1];
} * shared;

static struct daemon d;
static pid_t helpers[WRITERS + 1];
static unsigned int helper_count;

static struct pando_region *open_region(struct pando *p, const char *name, unsigned int flags,
					uint64_t size)
{
	struct pando_region_options o = {.size = size, .backend = daemon_backend()};
	struct pando_region *r = NULL;

	OK(pando_region_open(p, name, flags, flags & PANDO_CREATE ? &o : NULL, &r));
	return r;
}

static void write_and_check(unsigned int index)
{
	struct pando *p;
	struct pando_region *r;
	volatile uint64_t *part;
	uint64_t round = 0;

	OK(pando_connect(&p, d.address));
	r = open_region(p, "base", 0, 0);
	part = (volatile uint64_t *)((char *)pando_region_base(r) + (size_t)index * WRITER_BYTES);
	while (!pando__load_acquire(&shared->stop)) {
		for (size_t i = 0; i < WRITER_BYTES / 8; i += 16) {
			CHECK_EQ(part[i], round ? round * 1000003 + i : 0);
			part[i] = (round + 1) * 1000003 + i;
		}
		round++;
		pando__store_release(&shared->helper[index].rounds, round);
		daemon_nap(0.001); /* two processors */
	}
	OK(pando_region_close(r));
	pando_disconnect(p);
}

/* Opens, grows, shrinks, closes and destroys, over and over. */
static void churn(unsigned int index)
{
	struct pando *p;

	OK(pando_connect(&p, d.address));
	for (uint64_t round = 0; !pando__load_acquire(&shared->stop); round++) {
		double begin = daemon_now();
		struct pando_region *r, *base;
		uint64_t took;

		base = open_region(p, "base", PANDO_READONLY, 0);
		r = open_region(p, "churn", PANDO_CREATE | PANDO_EXCL, MIB);
		memset(pando_region_base(r), (int)round, MIB);
		OK(pando_region_resize(r, 3 * MIB));
		CHECK(((unsigned char *)pando_region_base(r))[MIB - 1] == (unsigned char)round);
		((char *)pando_region_base(r))[3 * MIB - 1] = 1;
		OK(pando_region_resize(r, 2 * MIB));
		OK(pando_region_destroy(p, "churn"));
		OK(pando_region_close(r));
		OK(pando_region_close(base));
		took = (uint64_t)((daemon_now() - begin) * 1e6);
		if (took > shared->helper[index].slowest_us)
			shared->helper[index].slowest_us = took;
		pando__store_release(&shared->helper[index].rounds, round + 1);
	}
	pando_disconnect(p);
}

static void start_helper(void (*fn)(unsigned int index))
{
	unsigned int index = helper_count++;

	helpers[index] = fork();
	CHECK(helpers[index] >= 0);
	if (helpers[index] == 0) {
		fn(index);
		_exit(0);
	}
	while (pando__load_acquire(&shared->helper[index].rounds) == 0) {
		CHECK(waitpid(helpers[index], NULL, WNOHANG) == 0);
		daemon_nap(0.001);
	}
}

/* Every helper must get on from here. */
static void check_progress(void)
{
	uint64_t rounds[WRITERS + 1];
	double limit = daemon_now() + 10 * daemon_slow();

	for (unsigned int i = 0; i < helper_count; i++)
		rounds[i] = pando__load_acquire(&shared->helper[i].rounds);
	for (unsigned int i = 0; i < helper_count; i++) {
		while (pando__load_acquire(&shared->helper[i].rounds) == rounds[i]) {
			CHECK(waitpid(helpers[i], NULL, WNOHANG) == 0);
			CHECK(daemon_now() < limit);
			daemon_nap(0.001);
		}
	}
}

static void stop_helpers(void)
{
	pando__store_release(&shared->stop, 1);
	for (unsigned int i = 0; i < helper_count; i++) {
		int status;

		CHECK(waitpid(helpers[i], &status, 0) == helpers[i]);
		CHECK_EQ(status, 0);
	}
	helper_count = 0;
}

/* The daemon with the region "base", and what it is. */
static void begin(const char *const *options, struct pando_region_info *base)
{
	struct pando *p;
	struct pando_region *r;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	CHECK(shared != MAP_FAILED);
	daemon_start(&d, options);
	OK(pando_connect(&p, d.address));
	r = open_region(p, "base", PANDO_CREATE, 4 * MIB);
	OK(pando_region_grant(p, "base", PANDO_GRANT_UID, 4242, PANDO_RIGHT_READ));
	OK(pando_region_lookup(p, "base", base));
	OK(pando_region_close(r));
	pando_disconnect(p);
}

/* "base" is what it was, and a new client can attach to it and write. */
static void check_region(const struct pando_region_info *base)
{
	struct pando_region_info now;
	struct pando_region *r;
	struct pando *p;

	OK(pando_connect(&p, d.address));
	OK(pando_region_lookup(p, "base", &now));
	CHECK_EQ(now.id, base->id);
	CHECK_EQ(now.base, base->base);
	CHECK_EQ(now.size, base->size);
	CHECK_EQ(now.max_size, base->max_size);
	CHECK(now.uid == base->uid && now.gid == base->gid && now.mode == base->mode);
	CHECK_EQ(now.grants, 1);
	CHECK_EQ(now.backend, base->backend);
	r = open_region(p, "base", 0, 0);
	CHECK(pando_region_base(r) == (void *)base->base);
	((volatile char *)pando_region_base(r))[4 * MIB - 1] = 1;
	OK(pando_region_close(r));
	pando_disconnect(p);
}

/* Nothing is left but "base" and `clients` processes that are attached to it. */
static void check_nothing_left(unsigned int clients, int broker_fds, int supervisor_fds)
{
	struct pando_region_info base;
	struct pando_broker_info info;
	double limit = daemon_now() + 5 * daemon_slow();
	struct pando *p;

	OK(pando_connect(&p, d.address));
	do {
		OK(pando_broker_info(p, &info));
		OK(pando_region_lookup(p, "base", &base));
	} while ((info.regions != 1 || info.committed_bytes != base.size ||
		  info.clients != clients + 1 || base.clients != clients) &&
		 daemon_now() < limit);
	pando_disconnect(p);
	CHECK_EQ(info.regions, 1);
	CHECK_EQ(info.clients, clients + 1);
	CHECK_EQ(base.clients, clients);
	CHECK_EQ(info.committed_bytes, base.size);
	daemon_settle(&d, clients, broker_fds);
	limit = daemon_now() + 5 * daemon_slow();
	while (daemon_fds(d.pid) > supervisor_fds && daemon_now() < limit)
		daemon_nap(0.002);
	CHECK(daemon_fds(d.pid) <= supervisor_fds);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void random_deaths(void)
{
	static double took[RESTARTS];
	const int restarts = RESTARTS / (int)daemon_slow();
	struct pando_region_info base;
	struct pando_broker_info info;
	int broker_fds, supervisor_fds;

	begin(NULL, &base);
	broker_fds = daemon_broker_fds(&d);
	supervisor_fds = daemon_fds(d.pid);
	for (int i = 0; i < WRITERS; i++)
		start_helper(write_and_check);
	start_helper(churn);
	srand(3);
	for (int i = 0; i < restarts; i++) {
		daemon_status(&d, &info);
		CHECK_EQ(info.epoch, 1 + i);
		daemon_nap((rand() % 20000) * 1e-6);
		CHECK(kill(info.broker_pid, SIGKILL) == 0);
		took[i] = daemon_wait_broker(&d, info.broker_pid, &info);
		CHECK(took[i] < 1.0 * daemon_slow());
		if (i % 5 == 0)
			check_region(&base);
		if (i % 20 == 0)
			check_progress();
	}
	check_progress();
	qsort(took, (size_t)restarts, sizeof(took[0]), compare);
	printf("  %d deaths: a new broker answered after %.1f ms (median), %.1f ms (max)\n",
	       restarts, took[restarts / 2] * 1e3, took[restarts - 1] * 1e3);
	printf("  meanwhile %llu passes of the writers, %llu of the churner, the slowest %.1f ms\n",
	       (unsigned long long)shared->helper[0].rounds,
	       (unsigned long long)shared->helper[WRITERS].rounds,
	       (double)shared->helper[WRITERS].slowest_us / 1e3);
	stop_helpers();
	check_region(&base);
	check_nothing_left(0, broker_fds, supervisor_fds);
	daemon_stop(&d);
}

enum doom {
	DOOM_PLAIN,
	/*
	 * A process that the library knows nothing of has its connection for a little longer, so
	 * that death and hang-up are two events.
	 */
	DOOM_HELD,
	DOOM_HEAP /* it has made a heap */
};

/*
 * A client that attaches and is killed: the broker has somebody to clean up after. It is made
 * before this process has the region mapped, and goes on when told by the pipe.
 */
static pid_t start_doomed(int pipe_fds[2], enum doom doom)
{
	pid_t pid;

	CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct pando__view view;
		struct pando_region *r;
		struct pando *p;
		char c;

		CHECK(read(pipe_fds[0], &c, 1) == 1);
		OK(pando_connect(&p, d.address));
		r = open_region(p, doom == DOOM_HEAP ? "heap" : "work", 0, 0);
		if (doom == DOOM_HEAP) {
			OK(pando__view_init(&view, pando_region_base(r), r->ledger));
			OK(pando__heap_format(&view));
		}
		if (doom == DOOM_HELD && syscall(SYS_fork) == 0) {
			daemon_nap(0.03);
			_exit(0);
		}
		raise(SIGKILL);
	}
	return pid;
}

static void let_it_die(pid_t pid, int pipe_fds[2])
{
	int status;

	CHECK(write(pipe_fds[1], "x", 1) == 1);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

/* A region with a heap, one of whose clients dies. */
static void one_heap(struct pando *p, pid_t doomed, int pipe_fds[2])
{
	struct pando_region *r = open_region(p, "heap", PANDO_CREATE | PANDO_TRANSIENT, 72 * MIB);
	struct pando_region_stat st;

	let_it_die(doomed, pipe_fds);
	for (int i = 0; i < 500; i++) { /* reaped by a worker, or by the next broker's */
		OK(pando_region_stat(r, &st));
		if (st.clients == 1)
			break;
		daemon_nap(0.01);
	}
	CHECK_EQ(st.clients, 1);
	OK(pando_region_close(r));
}

/* Takes grafts until it is told to end by the pipe; looks at what they say. */
static pid_t start_receiver(int pipe_fds[2], int id_fds[2])
{
	struct pando_graft_info info;
	struct pando *p;
	uint64_t id;
	pid_t pid;

	CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0 && pipe2(id_fds, O_CLOEXEC) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0)
		return pid;
	close(pipe_fds[1]);
	OK(pando_connect(&p, d.address));
	OK(pando_graft_listen(p, NULL));
	id = pando_client_id(p);
	CHECK(write(id_fds[1], &id, sizeof(id)) == sizeof(id));
	for (;;) {
		struct pollfd pfd[2] = {{.fd = pipe_fds[0], .events = POLLIN},
					{.fd = pando_event_fd(p), .events = POLLIN}};
		int rc;

		CHECK(poll(pfd, 2, -1) > 0);
		if (pfd[0].revents)
			break;
		rc = pando_graft_accept(p, &info);
		if (rc == -EAGAIN)
			continue;
		OK(rc);
		CHECK(info.tag == 7 && *(char *)info.address == 7);
		*(char *)info.address = 8;
		OK(pando_graft_release(p, info.address));
	}
	pando_disconnect(p);
	_exit(0);
}

/* A slot that is reserved for moving pages, and then given up. */
static void give_up_slot(struct pando *p, uint64_t id, uint32_t flags)
{
	struct pando__msg m, reply;

	pando__msg_init(&m, PANDO__MSG_GRAFT_RESERVE, 0);
	m.graft_reserve.receiver = id;
	m.graft_reserve.bytes = 1;
	m.graft_reserve.way = PANDO_GRAFT_MMAP;
	OK(pando__begin(p));
	OK(pando__call(p, &m, PANDO__MSG_GRAFT_SLOT, 0, &reply));
	pando__close_fds(p);
	pando__msg_init(&m, PANDO__MSG_GRAFT_CANCEL, 0);
	m.graft_one.id = reply.graft_slot.id;
	m.graft_one.flags = flags;
	OK(pando__call(p, &m, PANDO__MSG_DONE, 0, &reply));
	pando__end(p);
}

/* Grafts that are sent, accepted, released; and slots that are given up. */
static void some_grafts(struct pando *p, pid_t receiver, int pipe_fds[2], int id_fds[2])
{
	const struct pando_buffer_options o = {.way = PANDO_GRAFT_MEMFD};
	struct pando_broker_info info;
	struct pando_buffer *b;
	uint64_t id;
	int status;

	CHECK(read(id_fds[0], &id, sizeof(id)) == sizeof(id));
	for (int i = 0; i < 3; i++) {
		OK(pando_buffer_new(p, 3 * 4096, &o, &b));
		memset(pando_buffer_data(b), 7, 3 * 4096);
		OK(pando_graft(p, id, b, 3 * 4096, 7));
		CHECK(pando_buffer_data(b) == NULL);
		pando_buffer_free(b);
		give_up_slot(p, id, i ? PANDO__GRAFT_LEFT : 0);
	}
	for (int i = 0; i < 500; i++) {
		OK(pando_broker_info(p, &info));
		if (info.grafts_waiting == 0 && info.grafts_held == 0)
			break;
		daemon_nap(0.01);
	}
	CHECK(info.grafts_waiting == 0 && info.grafts_held == 0);
	close(pipe_fds[1]);
	CHECK(waitpid(receiver, &status, 0) == receiver && status == 0);
	close(pipe_fds[0]);
	close(id_fds[0]);
	close(id_fds[1]);
}

/* Everything that the broker can be asked for, once. */
static void one_of_each(void)
{
	struct pando_client_info clients[8];
	struct pando_broker_info before, now;
	struct pando_region *r, *t;
	struct pando *p;
	uint64_t cursor = 0;
	int pipe_fds[2], held_pipe_fds[2], heap_pipe_fds[2];
	pid_t doomed = start_doomed(pipe_fds, DOOM_PLAIN);
	pid_t held = start_doomed(held_pipe_fds, DOOM_HELD);
	pid_t heap = start_doomed(heap_pipe_fds, DOOM_HEAP);
	int receiver_fds[2], id_fds[2];
	pid_t receiver = start_receiver(receiver_fds, id_fds);
	char *base;

	OK(pando_connect(&p, d.address));
	OK(pando_broker_info(p, &before));
	r = open_region(p, "work", PANDO_CREATE | PANDO_EXCL, 2 * MIB);
	base = pando_region_base(r);
	memset(base, 5, 2 * MIB);
	OK(pando_region_resize(r, 66 * MIB)); /* two pieces */
	base[66 * MIB - 1] = 6;
	OK(pando_region_resize(r, MIB));
	CHECK_EQ(pando_region_size(r), MIB);
	OK(pando_region_grant(p, "work", PANDO_GRANT_UID, 4243, PANDO_RIGHT_READ));
	let_it_die(doomed, pipe_fds);
	let_it_die(held, held_pipe_fds);
	t = open_region(p, "passing", PANDO_CREATE | PANDO_TRANSIENT, MIB);
	OK(pando_region_close(t));
	one_heap(p, heap, heap_pipe_fds);
	some_grafts(p, receiver, receiver_fds, id_fds);
	OK(pando_clients(p, &cursor, clients, 8));
	OK(pando_region_destroy(p, "work"));
	CHECK(base[0] == 5 && base[MIB - 1] == 5);
	OK(pando_region_close(r));
	for (int i = 0; i < 500; i++) { /* the memory goes a little later */
		OK(pando_broker_info(p, &now));
		if (now.committed_bytes <= before.committed_bytes)
			break;
		daemon_nap(0.01);
	}
	CHECK(now.committed_bytes <= before.committed_bytes);
	pando_disconnect(p);
}

/* Returns false if the point was not passed that often. */
static bool die_at(const char *point, unsigned int passage)
{
	struct pando_region_info base;
	struct pando_broker_info before, info;
	int broker_fds, supervisor_fds, fd;
	char inject[128], once[128];
	bool fired;

	if (getenv("TEST_VERBOSE"))
		printf("  %s@%u\n", point, passage);
	snprintf(inject, sizeof(inject), "%s=kill@%u", point, passage);
	snprintf(once, sizeof(once), "/tmp/pando-test-once-%d", (int)getpid());
	setenv("PANDO_INJECT", inject, 1);
	setenv("PANDO_INJECT_ONCE", once, 1);
	begin(NULL, &base);
	memset(shared, 0, sizeof(*shared));
	start_helper(write_and_check);
	daemon_status(&d, &before);
	broker_fds = daemon_broker_fds(&d);
	supervisor_fds = daemon_fds(d.pid);
	fd = open(once, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	close(fd);

	one_of_each();
	if (access(once, F_OK) == 0) { /* points of taking up: passed by the next broker */
		daemon_status(&d, &info);
		kill(info.broker_pid, SIGKILL);
		(void)daemon_wait_broker(&d, info.broker_pid, &info);
	}
	fired = unlink(once) < 0;
	check_progress();
	check_region(&base);
	check_nothing_left(1, broker_fds, supervisor_fds);
	daemon_status(&d, &info);
	CHECK(info.epoch > before.epoch);
	stop_helpers();
	check_nothing_left(0, broker_fds, supervisor_fds);
	daemon_stop(&d);
	munmap(shared, sizeof(*shared));
	return fired;
}

static void every_injection_point(void)
{
	unsigned int cases = 0, never = 0;
	const char *only = getenv("TEST_POINT");

	if (!INJECTION)
		daemon_skip("built without -Dinjection=true");
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		unsigned int passage = 1;

		if (only && strcmp(only, points[i]) != 0)
			continue;
		/*
		 * Supervisor and broker dead within a millisecond: nobody is left who knows the
		 * regions.
		 */
		if (strncmp(points[i], "broker.respawn.", 15) == 0)
			continue;
		while (passage <= MAX_PASSAGES && die_at(points[i], passage)) {
			passage++;
			cases++;
		}
		if (passage == 1) {
			never++;
			fprintf(stderr, "never passed: %s\n", points[i]);
		}
	}
	printf("  %u deaths at %zu points\n", cases, sizeof(points) / sizeof(points[0]));
	CHECK_EQ(never, 0); /* a new point needs an operation in one_of_each() that passes it */
}

static void the_supervisor_dies(void)
{
	struct pando_region_info base;
	struct pando_broker_info before, info;
	int broker_fds, supervisor_fds;
	double limit;

	begin(NULL, &base);
	broker_fds = daemon_broker_fds(&d);
	supervisor_fds = daemon_fds(d.pid);
	for (int i = 0; i < WRITERS; i++)
		start_helper(write_and_check);
	start_helper(churn);
	for (int i = 0; i < 10; i++) {
		daemon_status(&d, &before);
		CHECK_EQ(before.supervisor_pid, d.pid);
		CHECK(kill(d.pid, SIGKILL) == 0);
		(void)waitpid(d.pid, NULL, 0); /* only the first one is our child */
		limit = daemon_now() + 5 * daemon_slow();
		do
			daemon_status(&d, &info);
		while ((info.supervisor_pid == 0 || info.supervisor_pid == d.pid) &&
		       daemon_now() < limit);
		CHECK(info.supervisor_pid != 0 && info.supervisor_pid != d.pid);
		CHECK_EQ(info.broker_pid, before.broker_pid);
		d.pid = info.supervisor_pid; /* an orphan, and so the runner's child, not ours */
		if (i % 2) {
			CHECK(kill(info.broker_pid, SIGKILL) == 0);
			CHECK(daemon_wait_broker(&d, info.broker_pid, &info) < 1.0 * daemon_slow());
			CHECK_EQ(info.epoch, before.epoch + 1);
		}
		check_progress();
		check_region(&base);
	}
	stop_helpers();
	check_nothing_left(0, broker_fds, supervisor_fds);
	daemon_stop(&d);
}

static void drains(void)
{
	struct pando_region_info base;
	struct pando_region *r;
	struct pando *p;
	double begun;

	begin(NULL, &base);
	for (int i = 0; i < WRITERS; i++)
		start_helper(write_and_check);
	OK(pando_connect(&p, d.address));
	r = open_region(p, "base", 0, 0);
	begun = daemon_now();
	CHECK(kill(d.pid, SIGTERM) == 0);
	CHECK_EQ(daemon_wait(&d, 5 * daemon_slow()), 0); /* its limit is 0.3 s */
	CHECK(daemon_now() - begun >= 0.3);
	check_progress(); /* without any broker */
	((volatile char *)pando_region_base(r))[4 * MIB - 1] = 1;
	CHECK(pando_region_resize(r, 5 * MIB) < 0);
	(void)pando_region_close(r);
	pando_disconnect(p);
	/* The writers cannot tell the broker that they leave; they leave all the same. */
	for (unsigned int i = 0; i < helper_count; i++) {
		kill(helpers[i], SIGKILL);
		CHECK(waitpid(helpers[i], NULL, 0) == helpers[i]);
	}
}

int main(void)
{
	return daemon_run_tests((struct daemon_test[]){
		TEST(random_deaths),
		TEST(every_injection_point),
		TEST(the_supervisor_dies),
		TEST(drains),
		{0},
	});
}
