/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The client library against a broker that misbehaves on cue (fake_broker.h): what a real one does
 * once in a thousand restarts happens here each time.
 *
 * Every test checks at its end that it has left no descriptor and no mapping of a region behind.
 * Children say what they found by their exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <pando/pando.h>

#include "common/atomic.h"
#include "fake_broker.h"

#define MIB (1ull << 20)

struct fixture {
	struct fake_broker broker;
	struct pando *p;
	int descriptors;
};

static int count_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Mappings of regions in this process; the fake broker's ledgers are not counted. */
static int count_mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	int n = 0;

	while (fgets(line, sizeof(line), f))
		n += strstr(line, "memfd:pando:") && !strstr(line, "memfd:pando:ledger");
	fclose(f);
	return n;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->descriptors = count_descriptors();
	fake_start(&f->broker);
	if (pando_connect(&f->p, f->broker.address) < 0)
		return -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int rc = 0;

	pando_disconnect(f->p);
	if (count_mappings() != 0)
		rc = -1;
	fake_stop(&f->broker);
	if (count_descriptors() != f->descriptors)
		rc = -1;
	free(f);
	return rc;
}

static struct pando_region *make(struct fixture *f, const char *name)
{
	struct pando_region *r = NULL;
	int rc = pando_region_open(f->p, name, PANDO_CREATE,
				   &(struct pando_region_options){.size = MIB}, &r);

	if (rc < 0)
		fail_msg("open: %s", pando_strerror_last());
	return r;
}

/* The exit status of a child, or 255. */
static int join(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 255;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static void wait_seen(struct fake_broker *b, enum pando__msg_type type, unsigned int count)
{
	for (int i = 0; i < 5000 && fake_seen(b, type) < count; i++)
		usleep(1000);
	assert_true(fake_seen(b, type) >= count);
}

static void test_connect(void **state)
{
	struct fixture *f = *state;
	struct pando_broker_info info;

	assert_true(pando_client_id(f->p) != 0);
	assert_string_equal(pando_broker_address(f->p), f->broker.address);
	assert_int_equal(pando_broker_info(f->p, &info), 0);
	assert_int_equal(info.epoch, 1);
}

static void test_connect_errors(void **state)
{
	char address[200] = "@";
	struct pando *p;

	(void)state;
	assert_int_equal(pando_connect(&p, "@pando-nobody-is-here"), -ECONNREFUSED);
	assert_non_null(
		strstr(pando_strerror_last(), "no broker is running at @pando-nobody-is-here"));
	assert_null(p);
	assert_int_equal(pando_connect(&p, "/nonexistent/broker.sock"), -ENOENT);
	assert_int_equal(pando_connect(&p, ""), -EINVAL);
	assert_int_equal(pando_connect(&p, "@"), -EINVAL);
	memset(address + 1, 'x', 150);
	assert_int_equal(pando_connect(&p, address), -ENAMETOOLONG);
	assert_non_null(strstr(pando_strerror_last(), "151 bytes, a socket's may have 107"));
	address[107] = '\0'; /* just fits */
	assert_int_equal(pando_connect(&p, address), -ECONNREFUSED);
}

static bool refuse_hello(struct fake_broker *b, struct fake_connection *c,
			 const struct pando__msg *msg)
{
	if (msg->header.type != PANDO__MSG_HELLO)
		return false;
	if (b->step == 0)
		fake_error(c, msg->header.seq, EDQUOT,
			   "user 7 has 3 clients, as many as the quota allows");
	else
		fake_error(c, msg->header.seq, EPROTONOSUPPORT,
			   "this broker speaks versions 2 to 3 of the protocol");
	b->step++;
	fake_drop(c);
	return true;
}

static void test_hello_refused(void **state)
{
	struct fixture *f = *state;
	struct pando *p;

	fake_script(&f->broker, refuse_hello);
	assert_int_equal(pando_connect(&p, f->broker.address), -EDQUOT);
	assert_string_equal(pando_strerror_last(),
			    "user 7 has 3 clients, as many as the quota allows");
	assert_int_equal(pando_connect(&p, f->broker.address), -EPROTO);
	fake_script(&f->broker, NULL);
}

/* Dies twice before it has noted the connection down. */
static bool drop_hello(struct fake_broker *b, struct fake_connection *c,
		       const struct pando__msg *msg)
{
	(void)msg;
	if (b->step++ >= 2)
		return false;
	fake_drop(c);
	return true;
}

static void test_hello_dropped(void **state)
{
	struct fixture *f = *state;
	struct pando *p;

	fake_script(&f->broker, drop_hello);
	assert_int_equal(pando_connect(&p, f->broker.address), 0);
	fake_script(&f->broker, NULL);
	pando_disconnect(p);
}

static void test_open(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one"), *again;
	struct pando_region_stat st;
	unsigned char *base = pando_region_base(r);

	assert_int_equal(pando_region_size(r), MIB);
	memset(base, 0x5a, MIB);
	assert_int_equal(pando_region_stat(r, &st), 0);
	assert_ptr_equal((void *)(uintptr_t)st.base, base);
	assert_int_equal(st.registered, 1);
	assert_int_equal(st.clients, 1);
	assert_int_equal(st.slot, 0);
	assert_string_equal(st.name, "one");
	assert_int_equal(pando_region_open(f->p, "one", 0, NULL, &again), 0);
	assert_ptr_equal(again, r);
	assert_int_equal(pando_region_open(f->p, "one", PANDO_CREATE | PANDO_EXCL,
					   &(struct pando_region_options){.size = MIB}, &again),
			 -EEXIST);
	assert_int_equal(pando_region_close(r), 0);
	assert_int_equal(base[MIB - 1], 0x5a);
	assert_int_equal(fake_seen(&f->broker, PANDO__MSG_CLOSE), 0);
	assert_int_equal(pando_region_close(r), 0);
	assert_int_equal(count_mappings(), 0);
	assert_int_equal(pando_region_close(NULL), 0);
}

static void test_readonly(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one"), *again;
	struct pando_region_stat st;

	pando_region_close(r);
	assert_int_equal(pando_region_open(f->p, "one", PANDO_READONLY, NULL, &r), 0);
	assert_int_equal(pando_region_stat(r, &st), 0);
	assert_int_equal(st.readonly, 1);
	assert_int_equal(pando_region_open(f->p, "one", 0, NULL, &again), -EACCES);
	assert_int_equal(pando_region_resize(r, 2 * MIB), -EACCES);
	pando_region_close(r);
}

static void test_bad_arguments(void **state)
{
	static const struct {
		const char *name;
		unsigned int flags;
		struct pando_region_options o;
		const char *says;
	} bad[] = {
		{"", PANDO_CREATE, {.size = 1}, "is not a region name"},
		{".hidden", PANDO_CREATE, {.size = 1}, "\".hidden\" is not a region name"},
		{"a/b", PANDO_CREATE, {.size = 1}, "is not a region name"},
		{"a", 0x100, {0}, "0x100 has bits that mean nothing"},
		{"a", PANDO_EXCL, {0}, "need PANDO_CREATE"},
		{"a", PANDO_TRANSIENT, {0}, "need PANDO_CREATE"},
		{"a", PANDO_CREATE, {0}, "cannot have size 0"},
		{"a", PANDO_CREATE, {.size = 3, .max_size = 2}, "size 3 is over max_size 2"},
		{"a", PANDO_CREATE, {.size = UINT64_MAX}, "more than any machine"},
		{"a",
		 PANDO_CREATE,
		 {.size = 1, .address = 4096},
		 "0x1000 is not a multiple of 1 GiB"},
		{"a", PANDO_CREATE, {.size = 1, .backend = 9}, "no backend number 9"},
		{"a", PANDO_CREATE, {.size = 1, .mode = 01600}, "01600 has bits beyond 0777"},
		{"a", PANDO_CREATE, {.size = 1, .set_gid = 2}, "set_gid is 2"},
	};
	struct {
		struct pando_region_options o;
		uint64_t future;
	} newer = {.o = {.size = 1}, .future = 1};
	struct fixture *f = *state;
	struct pando_region *r;
	struct pando_region_info info;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(pando_region_open(f->p, bad[i].name, bad[i].flags, &bad[i].o, &r),
				 -EINVAL);
		assert_non_null(strstr(pando_strerror_last(), bad[i].says));
		assert_null(r);
	}
	assert_int_equal(
		pando_region_open_sized(f->p, "a", PANDO_CREATE, &newer.o, sizeof(newer), &r),
		-EINVAL);
	newer.future = 0;
	assert_int_equal(
		pando_region_open_sized(f->p, "a", PANDO_CREATE, &newer.o, sizeof(newer), &r), 0);
	assert_int_equal(pando_region_resize(r, 0), -EINVAL);
	assert_int_equal(pando_region_resize(r, PANDO__GIB + 1), -EINVAL);
	pando_region_close(r);
	/* An older caller's options end after `size`. */
	assert_int_equal(pando_region_open_sized(f->p, "b", PANDO_CREATE, &newer.o, 8, &r), 0);
	pando_region_close(r);
	assert_int_equal(pando_region_open(f->p, "none", 0, NULL, &r), -ENOENT);
	assert_int_equal(pando_region_lookup(f->p, "none", &info), -ENOENT);
	assert_int_equal(pando_region_lookup(f->p, "/", &info), -EINVAL);
	assert_int_equal(pando_region_destroy(f->p, "-"), -EINVAL);
	assert_int_equal(pando_region_grant(f->p, "b", (enum pando_grantee)7, 0, 0), -EINVAL);
	assert_int_equal(pando_region_grant(f->p, "b", PANDO_GRANT_UID, 0, 1), -EINVAL);
}

static void test_walk(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r[3] = {make(f, "a"), make(f, "b"), make(f, "c")};
	struct pando_region_info info[2];
	uint64_t cursor = 0;

	assert_int_equal(pando_region_list(f->p, &cursor, info, 2), 2);
	assert_string_equal(info[1].name, "b");
	assert_int_equal(pando_region_list(f->p, &cursor, info, 2), 1);
	assert_string_equal(info[0].name, "c");
	assert_int_equal(pando_region_list(f->p, &cursor, info, 2), 0);
	for (int i = 0; i < 3; i++)
		pando_region_close(r[i]);
}

static void test_collision(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");
	char *base = pando_region_base(r), want[32];
	struct pando_region_info info;

	assert_int_equal(pando_region_close(r), 0);
	/* The second region's place, one page inside. */
	base += PANDO__GIB + 4096;
	assert_ptr_equal(
		mmap(base, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), base);
	assert_int_equal(pando_region_open(f->p, "two", PANDO_CREATE,
					   &(struct pando_region_options){.size = MIB}, &r),
			 -EADDRNOTAVAIL);
	snprintf(want, sizeof(want), "0x%lx-", (unsigned long)(uintptr_t)base);
	assert_non_null(strstr(pando_strerror_last(), want));
	assert_non_null(strstr(pando_strerror_last(), "(anonymous memory)"));
	/* It was made for this call, so it is gone again. */
	assert_int_equal(pando_region_lookup(f->p, "two", &info), -ENOENT);
	munmap(base, 4096);
}

/*
 * Restarts on the first RESIZE, then answers it twice: once from the socket's queue, once resent.
 */
static bool restart_on_resize(struct fake_broker *b, struct fake_connection *c,
			      const struct pando__msg *msg)
{
	if (msg->header.type != PANDO__MSG_RESIZE || b->step++ != 0)
		return false;
	fake_notice(c, PANDO__NOTICE_DRAINING);
	fake_notice(c, PANDO__NOTICE_RESTARTED);
	fake_answer(b, c, msg);
	return true;
}

static void test_restart(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");

	fake_script(&f->broker, restart_on_resize);
	assert_int_equal(pando_region_resize(r, 2 * MIB), 0);
	assert_int_equal(pando_region_size(r), 2 * MIB);
	/* The second answer must not be taken for this one's. */
	assert_int_equal(pando_region_resize(r, 3 * MIB), 0);
	assert_int_equal(pando_region_size(r), 3 * MIB);
	wait_seen(&f->broker, PANDO__MSG_RESIZE, 3);
	fake_script(&f->broker, NULL);
	pando_region_close(r);
}

/* A request that each broker dies of is given up, and the next one is none the worse for it. */
static bool die_of_resize(struct fake_broker *b, struct fake_connection *c,
			  const struct pando__msg *msg)
{
	(void)b;
	if (msg->header.type != PANDO__MSG_RESIZE || msg->resize.size != 2 * MIB)
		return false;
	fake_notice(c, PANDO__NOTICE_RESTARTED);
	return true;
}

static void test_deadly_request(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");

	fake_script(&f->broker, die_of_resize);
	assert_int_equal(pando_region_resize(r, 2 * MIB), -ETIMEDOUT);
	assert_non_null(strstr(pando_strerror_last(), "has died 101 times"));
	wait_seen(&f->broker, PANDO__MSG_RESIZE, 101);
	assert_int_equal(pando_region_resize(r, 3 * MIB), 0);
	fake_script(&f->broker, NULL);
	pando_region_close(r);
}

static bool restart_on_open(struct fake_broker *b, struct fake_connection *c,
			    const struct pando__msg *msg)
{
	if (msg->header.type != PANDO__MSG_OPEN || b->step++ != 0)
		return false;
	fake_answer(b, c, msg);
	fake_notice(c, PANDO__NOTICE_RESTARTED);
	return true;
}

/* The answer comes, and after it the news that there is a new broker: nothing is sent twice. */
static void test_restart_behind_answer(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r;

	fake_script(&f->broker, restart_on_open);
	r = make(f, "one");
	assert_int_equal(pando_region_resize(r, 2 * MIB), 0);
	assert_int_equal(fake_seen(&f->broker, PANDO__MSG_OPEN), 1);
	fake_script(&f->broker, NULL);
	pando_region_close(r);
}

/* Keeps an OPEN until the next message, whatever that is. */
static bool answer_late(struct fake_broker *b, struct fake_connection *c,
			const struct pando__msg *msg)
{
	static struct pando__msg kept;

	if (b->step == 0 && msg->header.type == PANDO__MSG_OPEN) {
		kept = *msg;
		b->step = 1;
		return true;
	}
	if (b->step == 1) {
		b->step = 2;
		fake_answer(b, c, &kept);
	}
	return false;
}

static void test_timeout(void **state)
{
	struct fixture *f = *state;
	struct pando_broker_info info;
	struct pando_region *r;
	struct pando *p;
	int before;

	pando_region_close(make(f, "late"));
	setenv("PANDO_TIMEOUT", "100", 1);
	assert_int_equal(pando_connect(&p, f->broker.address), 0);
	unsetenv("PANDO_TIMEOUT");
	before = count_descriptors();
	fake_script(&f->broker, answer_late);
	assert_int_equal(pando_region_open(p, "late", 0, NULL, &r), -ETIMEDOUT);
	assert_non_null(strstr(pando_strerror_last(), "has not answered within 100 ms"));
	/* The next call finds the answer, and gives back what came too late. */
	assert_int_equal(pando_broker_info(p, &info), 0);
	wait_seen(&f->broker, PANDO__MSG_CLOSE, 2);
	assert_int_equal(count_descriptors(), before);
	assert_int_equal(count_mappings(), 0);
	fake_script(&f->broker, NULL);
	/* A late answer to an OPEN that is asked again meanwhile must not be given back. */
	f->broker.step = 0;
	fake_script(&f->broker, answer_late);
	assert_int_equal(pando_region_open(p, "late", 0, NULL, &r), -ETIMEDOUT);
	assert_int_equal(pando_region_open(p, "late", 0, NULL, &r), 0);
	assert_int_equal(pando_broker_info(p, &info), 0);
	assert_int_equal(fake_seen(&f->broker, PANDO__MSG_CLOSE), 2);
	fake_script(&f->broker, NULL);
	pando_disconnect(p);
}

static bool hang_up(struct fake_broker *b, struct fake_connection *c, const struct pando__msg *msg)
{
	(void)b;
	if (msg->header.type != PANDO__MSG_STATUS)
		return false;
	fake_drop(c);
	return true;
}

static void test_gone(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one"), *other;
	struct pando_broker_info info;
	struct pando_region_stat st;
	unsigned char *base = pando_region_base(r);

	fake_script(&f->broker, hang_up);
	assert_int_equal(pando_broker_info(f->p, &info), -ECONNRESET);
	assert_non_null(strstr(pando_strerror_last(), "and its supervisor are gone"));
	assert_int_equal(pando_broker_info(f->p, &info), -ECONNRESET);
	assert_int_equal(pando_region_open(f->p, "two", 0, NULL, &other), -ECONNRESET);
	assert_int_equal(pando_region_resize(r, 2 * MIB), -ECONNRESET);
	base[5] = 5;
	assert_int_equal(base[5], 5);
	assert_int_equal(pando_region_stat(r, &st), 0);
	assert_int_equal(st.registered, 0);
	assert_int_equal(pando_region_close(r), -ECONNRESET);
	assert_int_equal(count_mappings(), 0);
}

static void test_no_descriptors(void **state)
{
	struct fixture *f = *state;
	struct rlimit limit, low;
	struct pando_region *r;
	struct pando *p;
	const char *preload = getenv("LD_PRELOAD");
	int next;

	if (preload && strstr(preload, "vgpreload"))
		skip(); /* Valgrind has limits of its own */
	pando_region_close(make(f, "one"));
	next = dup(0);
	close(next);
	getrlimit(RLIMIT_NOFILE, &limit);
	low = limit;
	low.rlim_cur = (rlim_t)next + 1; /* room for one of three */
	setrlimit(RLIMIT_NOFILE, &low);
	assert_int_equal(pando_region_open(f->p, "one", 0, NULL, &r), -EMFILE);
	setrlimit(RLIMIT_NOFILE, &limit);
	assert_non_null(strstr(pando_strerror_last(), "ulimit -n"));
	wait_seen(&f->broker, PANDO__MSG_CLOSE, 2);
	low.rlim_cur = (rlim_t)next;
	setrlimit(RLIMIT_NOFILE, &low);
	assert_int_equal(pando_connect(&p, f->broker.address), -EMFILE);
	setrlimit(RLIMIT_NOFILE, &limit);
	r = make(f, "one");
	pando_region_close(r);
}

static void test_broken_broker(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r;

	f->broker.foreign_entries = true;
	assert_int_equal(pando_region_open(f->p, "a", PANDO_CREATE,
					   &(struct pando_region_options){.size = 1}, &r),
			 -EPROTO);
	assert_non_null(strstr(pando_strerror_last(), "the ledger names another client"));
	f->broker.foreign_entries = false;
	f->broker.unsealed = true;
	assert_int_equal(pando_region_open(f->p, "b", PANDO_CREATE,
					   &(struct pando_region_options){.size = 1}, &r),
			 -EPROTO);
	assert_non_null(strstr(pando_strerror_last(), "not sealed"));
	f->broker.unsealed = false;
	assert_int_equal(count_mappings(), 0);
}

/* In a child: 0 if it is a client of its own that has all its regions. */
static int child_is_client(struct pando *p, struct pando_region *r, uint64_t parent_id)
{
	struct pando_region_stat st;
	uint64_t id;

	*(unsigned char *)pando_region_base(r) = 1; /* works at once */
	id = pando_client_id(p);
	if (id == 0 || id == parent_id)
		return 1;
	for (int i = 0; i < 2000; i++) {
		pando_region_stat(r, &st);
		if (st.registered)
			break;
		usleep(1000);
	}
	if (!st.registered || st.slot == 0 || st.clients < 2)
		return 2;
	if (pando_region_resize(r, 2 * MIB) < 0 || pando_region_size(r) != 2 * MIB)
		return 3;
	return pando_region_close(r) < 0 ? 4 : 0;
}

static void test_fork(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");
	uint64_t id = pando_client_id(f->p);
	pid_t child = fork();

	if (child == 0) {
		child = fork(); /* before the child has read any answer */
		if (child == 0)
			_exit(child_is_client(f->p, r, id));
		_exit(join(child) ? 10 : child_is_client(f->p, r, id));
	}
	assert_int_equal(join(child), 0);
	/* One that ran no handlers. */
	child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
	if (child == 0)
		_exit(child_is_client(f->p, r, id));
	assert_int_equal(join(child), 0);
	assert_int_equal(pando_client_id(f->p), id);
	assert_int_equal(pando_region_resize(r, 3 * MIB), 0);
	pando_region_close(r);
}

static bool silent_on_status(struct fake_broker *b, struct fake_connection *c,
			     const struct pando__msg *msg)
{
	static struct pando__msg kept;

	if (msg->header.type != PANDO__MSG_STATUS || b->step >= 2)
		return false;
	if (b->step++ == 0) {
		kept = *msg;
		return true;
	}
	for (int i = 0; i < FAKE_CONNECTIONS; i++) /* the first connection's, now */
		if (b->connections[i].socket >= 0 && b->connections[i].parent == 0)
			fake_answer(b, &b->connections[i], &kept);
	(void)c;
	return false;
}

static void *ask_status(void *arg)
{
	struct pando_broker_info info;

	return (void *)(intptr_t)pando_broker_info(arg, &info);
}

/*
 * A thread waits for the broker; fork() must not wait with it, and the child must be able to
 * talk.
 */
static void test_fork_during_call(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");
	uint64_t id = pando_client_id(f->p);
	struct timespec before, after;
	pthread_t thread;
	void *result;
	pid_t child;

	fake_script(&f->broker, silent_on_status);
	pthread_create(&thread, NULL, ask_status, f->p);
	wait_seen(&f->broker, PANDO__MSG_STATUS, 1);
	clock_gettime(CLOCK_MONOTONIC, &before);
	child = fork();
	if (child == 0) {
		struct pando_broker_info info;

		_exit(child_is_client(f->p, r, id) ? 1 : pando_broker_info(f->p, &info) < 0);
	}
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_true(after.tv_sec - before.tv_sec < 5);
	assert_int_equal(join(child), 0);
	pthread_join(thread, &result);
	assert_int_equal((intptr_t)result, 0);
	fake_script(&f->broker, NULL);
	pando_region_close(r);
}

static bool refuse_inherited(struct fake_broker *b, struct fake_connection *c,
			     const struct pando__msg *msg)
{
	(void)b;
	if (msg->header.type != PANDO__MSG_OPEN || !(msg->open.flags & PANDO__OPEN_INHERITED))
		return false;
	fake_error(c, msg->header.seq, ENOENT, "there is no such region");
	return true;
}

/* The broker does not know the region any more: it stays usable, and stat says so. */
static void test_fork_lost(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");
	pid_t child;

	fake_script(&f->broker, refuse_inherited);
	child = fork();
	if (child == 0) {
		struct pando_region_stat st;

		if (pando_client_id(f->p) == 0)
			_exit(1);
		*(unsigned char *)pando_region_base(r) = 2;
		usleep(20000);
		pando_region_stat(r, &st);
		_exit(st.registered ? 2 : pando_region_close(r) < 0 ? 3 : 0);
	}
	assert_int_equal(join(child), 0);
	fake_script(&f->broker, NULL);
	assert_int_equal(*(unsigned char *)pando_region_base(r), 2);
	pando_region_close(r);
}

/* The host program closes all descriptors it knows nothing of, and uses the numbers for its own. */
static void test_host_closes_socket(void **state)
{
	struct fixture *f = *state;
	struct pando_region *r = make(f, "one");
	struct pando_broker_info info;
	int ours = dup(0), taken;

	close(ours); /* the next free number: the socket is one of those below */
	for (int fd = 3; fd < ours; fd++) {
		int type = 0;
		socklen_t size = sizeof(type), peer = 0;
		struct sockaddr_un un;

		peer = sizeof(un);
		if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
		    type != SOCK_SEQPACKET || getpeername(fd, (struct sockaddr *)&un, &peer) < 0 ||
		    peer <= sizeof(sa_family_t))
			continue;
		close(fd);
		taken = open("/dev/null", O_RDWR | O_CLOEXEC);
		assert_int_equal(taken, fd);
		assert_int_equal(pando_broker_info(f->p, &info), -ECONNRESET);
		assert_non_null(strstr(pando_strerror_last(), "was closed by this program"));
		pando_region_close(r);
		assert_int_equal(fcntl(taken, F_GETFD), FD_CLOEXEC);
		close(taken);
		return;
	}
	fail_msg("the library's socket was not found");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_connect),
		TEST(test_connect_errors),
		TEST(test_hello_refused),
		TEST(test_hello_dropped),
		TEST(test_open),
		TEST(test_readonly),
		TEST(test_bad_arguments),
		TEST(test_walk),
		TEST(test_collision),
		TEST(test_restart),
		TEST(test_deadly_request),
		TEST(test_timeout),
		TEST(test_restart_behind_answer),
		TEST(test_gone),
		TEST(test_no_descriptors),
		TEST(test_broken_broker),
		TEST(test_fork),
		TEST(test_fork_during_call),
		TEST(test_fork_lost),
		TEST(test_host_closes_socket),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
