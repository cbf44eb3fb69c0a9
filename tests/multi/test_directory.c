/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names across processes, with a broker: what publishers leave that end or are killed, at which steps of
 * a change and of the broker's making it good; readers that have no right to write; writers that are
 * stopped; watchers.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pando/pando.h>

#include "common/inject.h"
#include "daemon.h"

#define MIB (1ull << 20)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct daemon d;
static struct pando *connection;
static struct pando_region *region;

static void begin(void)
{
	daemon_start(&d, NULL);
	CHECK(pando_connect(&connection, d.address) == 0);
	CHECK(pando_region_open(connection, "names", PANDO_CREATE | PANDO_HEAP,
				&(struct pando_region_options){.size = 64 * MIB}, &region) == 0);
}

static void finish(void)
{
	CHECK(pando_region_destroy(connection, "names") == 0);
	pando_disconnect(connection);
	daemon_stop(&d);
}

static int publish(const char *name, uint64_t value)
{
	uint64_t *o = pando_alloc(region, 40);

	CHECK(o != NULL);
	o[0] = o[1] = value;
	return pando_publish(region, name, o);
}

static uint64_t value_of(const char *name)
{
	uint64_t value = 0, *o;

	CHECK(pando_read_lock(region) == 0);
	o = pando_lookup(region, name);
	if (o) {
		CHECK_EQ(o[0], o[1]);
		value = o[0];
	}
	CHECK(pando_read_unlock(region) == 0);
	return value;
}

/* Objects that are there, beyond those that belong to names. */
static int64_t lost(void)
{
	struct pando_directory_stat st;
	struct pando_heap_stat hs;

	(void)pando_reclaim(region);
	CHECK(pando_directory_stat(region, &st) == 0 && pando_heap_stat(region, &hs) == 0);
	return (int64_t)(hs.objects - 2 * st.names - st.tables);
}

/* Everything that the dead had comes to its end. */
static void settle(void)
{
	const double end = daemon_now() + 20 * daemon_slow();

	while (lost() != 0 && daemon_now() < end)
		daemon_nap(0.01);
	CHECK_EQ(lost(), 0);
	CHECK(pando_directory_check(region) == 0);
	CHECK(pando_heap_check(region) == 0);
}

static pid_t child(void (*run)(void), const char *inject)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0)
		return pid;
	while (!pando_self(region)) /* the broker may be being replaced */
		daemon_nap(0.001);
	pando__inject_arm(inject);
	run();
	_exit(0);
}

static int wait_for(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void publish_some(void)
{
	char name[40];

	for (unsigned int i = 1; i <= 200; i++) {
		snprintf(name, sizeof(name), "child %u", i);
		CHECK(publish(name, i) == 0);
	}
	/* What has no name dies with it. */
	CHECK(pando_alloc(region, 100) != NULL);
	raise(SIGKILL);
}

static int ready[2];

static void read_only(void)
{
	struct pando_region *r;
	struct pando_directory_stat st;
	struct pando_handle h;
	struct pando_name n = {0};
	unsigned int names = 0;
	uint64_t version = 0;
	struct pando *p;

	CHECK(pando_connect(&p, d.address) == 0);
	CHECK(pando_region_close(region) == 0);
	CHECK(pando_region_open(p, "names", PANDO_READONLY, NULL, &r) == 0);
	CHECK(pando_handle_init(r, &h, "child 8") == 0);
	CHECK(pando_read_lock(r) == 0);
	CHECK_EQ(*(uint64_t *)pando_lookup(r, "child 7"), 7);
	CHECK_EQ(*(uint64_t *)pando_lookup_handle(r, &h), 8);
	CHECK(pando_read_unlock(r) == 0);
	while (pando_name_next(r, &n) > 0)
		names++;
	CHECK_EQ(names, 200);
	CHECK(pando_directory_stat(r, &st) == 0);
	CHECK_EQ(st.names, 200);
	CHECK_EQ(pando_publish(r, "child 7", n.descriptor.object), -EACCES);
	CHECK_EQ(pando_withdraw(r, "child 7"), -EACCES);
	CHECK_EQ(pando_directory_check(r), -EACCES);
	CHECK_EQ(pando_watch(r, "child 9", &version, 1000), 0);
	CHECK(version > 0);
	CHECK(write(ready[1], "", 1) == 1);
	CHECK_EQ(pando_watch(r, "child 9", &version, -1), -ENOENT); /* the parent withdraws it */
}

/* Publishers go, names stay; others find, watch and withdraw them. */
static void ends(void)
{
	struct pando_handle h;
	char name[40], byte;
	pid_t pid;

	begin();
	CHECK(pipe2(ready, O_CLOEXEC) == 0);
	CHECK(pando_handle_init(region, &h, "child 5") == 0);
	CHECK_EQ(wait_for(child(publish_some, "")), -SIGKILL);
	CHECK_EQ(value_of("child 1"), 1);
	CHECK_EQ(value_of("child 200"), 200);
	CHECK(pando_read_lock(region) == 0);
	CHECK_EQ(*(uint64_t *)pando_lookup_handle(region, &h), 5);
	CHECK(pando_read_unlock(region) == 0);
	settle();
	pid = child(read_only, "");
	CHECK(close(ready[1]) == 0 && read(ready[0], &byte, 1) == 1);
	CHECK(close(ready[0]) == 0);
	daemon_nap(0.05); /* most often it sleeps by then */
	CHECK(pando_withdraw(region, "child 9") == 0);
	CHECK_EQ(wait_for(pid), 0);
	CHECK(publish("child 9", 9) == 0);
	for (unsigned int i = 1; i <= 200; i++) {
		snprintf(name, sizeof(name), "child %u", i);
		CHECK_EQ(value_of(name), i);
		CHECK(pando_withdraw(region, name) == 0);
	}
	settle();
	finish();
}

#ifdef PANDO_INJECTION

static void replace(void)
{
	CHECK(publish("there", 2) == 0);
}

static void insert(void)
{
	CHECK(publish("new", 2) == 0);
}

static void withdraw(void)
{
	CHECK(pando_withdraw(region, "there") == 0);
}

/*
 * A reader has the object of a name when its replacer, or withdrawer, is killed after that has been
 * decided. The broker retires the object; it stays whole until the reader is through.
 */
static void old_object_stays(void)
{
	static const struct {
		void (*run)(void);
		const char *inject;
	} how[] = {
		{replace, "directory.replace.decided=kill"},
		{replace, "directory.replace.held=kill"},
		{replace, "directory.change.unlocked=kill"},
		{withdraw, "directory.withdraw.decided=kill"},
		{withdraw, "directory.withdraw.held=kill"},
		{withdraw, "directory.change.unlocked=kill"},
	};

	begin();
	for (size_t i = 0; i < COUNT(how); i++) {
		uint64_t *o;

		CHECK(publish("there", 1) == 0);
		CHECK(pando_read_lock(region) == 0);
		o = pando_lookup(region, "there");
		CHECK_EQ(wait_for(child(how[i].run, how[i].inject)), -SIGKILL);
		/* The lock is given back. */
		CHECK(publish("there", 3) == 0);
		for (int k = 0; k < 20; k++) {
			CHECK(o[0] == 1 && o[1] == 1);
			CHECK(pando_owner(region, o, NULL) == PANDO_HOLDING_HELD);
			daemon_nap(0.01);
		}
		CHECK(pando_read_unlock(region) == 0);
		settle();
	}
	finish();
}

/* Watchers are told by the broker, if the one who changed the name did not come to it. */
static void watched(void)
{
	uint64_t version = 0;

	begin();
	CHECK(publish("there", 1) == 0);
	CHECK_EQ(pando_watch(region, "there", &version, 0), 0);
	CHECK_EQ(wait_for(child(replace, "directory.replace.decided=kill")), -SIGKILL);
	CHECK_EQ(pando_watch(region, "there", &version, 20000), 0);
	CHECK_EQ(value_of("there"), 2);
	CHECK_EQ(wait_for(child(withdraw, "directory.withdraw.decided=kill")), -SIGKILL);
	CHECK_EQ(pando_watch(region, "there", &version, 20000), -ENOENT);
	settle();
	finish();
}

/* Who is stopped in a change holds up writers of that part and no reader, and is named. */
static void stopped(void)
{
	const double end = daemon_now() + 20 * daemon_slow();
	struct pando_directory_stat st;
	pid_t pid, other;
	int status;

	begin();
	CHECK(publish("there", 1) == 0);
	pid = child(replace, "directory.replace.fresh=stop");
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	other = child(withdraw, "");
	do {
		daemon_nap(0.05);
		CHECK_EQ(value_of("there"), 1);
		CHECK(pando_directory_stat(region, &st) == 0);
	} while (st.slow_count == 0 && daemon_now() < end);
	CHECK_EQ(st.slow_count, 1);
	CHECK_EQ(st.slow[0].pid, pid);
	CHECK(st.slow[0].ns >= 1000000000ull);
	CHECK(st.slow[0].shard < 64);
	CHECK_EQ(st.locked, 1);
	CHECK_EQ(waitpid(other, &status, WNOHANG), 0);
	/* It goes on: both have their turn. */
	CHECK(kill(pid, SIGCONT) == 0);
	CHECK_EQ(wait_for(pid), 0);
	CHECK_EQ(wait_for(other), 0);
	CHECK_EQ(value_of("there"), 0);
	/* The same, and it is killed. */
	CHECK(publish("there", 1) == 0);
	pid = child(replace, "directory.replace.fresh=stop");
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	other = child(withdraw, "");
	daemon_nap(0.1);
	CHECK_EQ(value_of("there"), 1);
	CHECK(kill(pid, SIGKILL) == 0);
	CHECK_EQ(wait_for(pid), -SIGKILL);
	CHECK_EQ(wait_for(other), 0);
	CHECK_EQ(value_of("there"), 0);
	settle();
	finish();
}

struct death {
	void (*run)(void);
	const char *inject;
};

/* Nobody but the broker makes the last death good, and it is through with that. */
static void leave_it_to_the_broker(void)
{
	const double end = daemon_now() + 20 * daemon_slow();
	struct pando_directory_stat st;
	struct pando_broker_info info;

	do {
		daemon_nap(0.001);
		CHECK(pando_directory_stat(region, &st) == 0);
	} while (st.locked && daemon_now() < end);
	CHECK_EQ(st.locked, 0);
	daemon_status(&d, &info);
}

/* A publisher dies, and the broker does if it comes to its point, the first time that it does. */
static bool broker_dies_of(const struct death *how, const char *once, bool raced)
{
	FILE *arm;
	bool died;

	CHECK(publish("there", 1) == 0);
	CHECK(pando_withdraw(region, "new") <= 0);
	arm = fopen(once, "w");
	CHECK(arm && fclose(arm) == 0);
	CHECK_EQ(wait_for(child(how->run, how->inject)), -SIGKILL);
	if (!raced)
		leave_it_to_the_broker();
	/* The name's part is free again, whoever has seen to that. */
	CHECK(publish("there", 3) == 0);
	(void)publish("new", 3);
	died = unlink(once) < 0;
	CHECK_EQ(value_of("there"), 3);
	CHECK_EQ(value_of("new"), 3);
	leave_it_to_the_broker();
	settle();
	return died;
}

/*
 * The broker is killed while it makes a death good; the next one does it again. The first time it is
 * left to it; the second time a writer wants the same part and may be there first.
 */
static void broker_dies(void)
{
	static const char *const points[] = {
		"directory.break.found",     "directory.mend.begun",
		"directory.mend.given",	     "directory.mend.announced",
		"directory.mend.done",	     "directory.mend.cleared",
		"directory.break.mended",    "directory.mend.unlocked",
		"directory.announce.changed"};
	static const struct death how[] = {
		{replace, "directory.replace.fresh=kill"},
		{replace, "directory.replace.decided=kill"},
		{insert, "directory.insert.entry=kill"},
		{insert, "directory.insert.decided=kill"},
		{withdraw, "directory.withdraw.decided=kill"},
	};

	for (size_t i = 0; i < COUNT(points); i++) {
		char inject[96], once[] = "/tmp/directory-XXXXXX";
		unsigned int deaths = 0;
		int fd = mkstemp(once);

		snprintf(inject, sizeof(inject), "%s=kill", points[i]);
		CHECK(fd >= 0 && close(fd) == 0 && unlink(once) == 0);
		setenv("PANDO_INJECT", inject, 1);
		setenv("PANDO_INJECT_ONCE", once, 1);
		begin();
		unsetenv("PANDO_INJECT");
		unsetenv("PANDO_INJECT_ONCE");
		for (size_t k = 0; k < COUNT(how); k++)
			deaths += broker_dies_of(&how[k], once, false);
		CHECK(deaths > 0);
		for (size_t k = 0; k < COUNT(how); k++)
			(void)broker_dies_of(&how[k], once, true);
		finish();
	}
}

#endif

int main(void)
{
	return daemon_run_tests((struct daemon_test[]){TEST(ends),
#ifdef PANDO_INJECTION
						       TEST(old_object_stays),
						       TEST(watched),
						       TEST(stopped),
						       TEST(broker_dies),
#endif
						       {0}});
}
