/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Several users on one broker: who may do what, how much, and that a reader cannot make himself a
 * writer.
 *
 * The daemon runs as root; the users are made-up uids that children change to. Needs root, else it
 * is skipped.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon.h"

#define MIB (1ull << 20)
#define ALICE 61001u
#define BOB 61002u
#define CAROL 61003u /* in the group STAFF, as alice */
#define STAFF 61100u

static struct daemon d;

static void become(uid_t uid)
{
	gid_t staff = STAFF;

	CHECK(setgroups(uid == BOB ? 0 : 1, &staff) == 0);
	CHECK(setresgid(uid, uid, uid) == 0);
	CHECK(setresuid(uid, uid, uid) == 0);
}

/* Runs fn as that user in a child, which must succeed. */
static void as(uid_t uid, void (*fn)(void))
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (pid == 0) {
		become(uid);
		fn();
		fflush(NULL);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

static void begin(const char *const *options)
{
	if (geteuid() != 0)
		daemon_skip("only root can become several users");
	daemon_start(&d, options);
}

/* One OPEN by a new client, which then leaves. Returns 0 or the broker's error. */
static int try_open(const char *name, uint32_t flags, uint64_t size, uint32_t mode)
{
	int fd = peer_new(&d), fds[PANDO__PROTO_MAX_FDS];
	int ret = peer_open(fd, name, flags, size, mode, NULL, fds);

	peer_close_fds(fds);
	close(fd);
	return ret;
}

static int try_remove(const char *name)
{
	struct pando__msg msg;
	int fd = peer_new(&d), ret;

	pando__msg_init(&msg, PANDO__MSG_REMOVE, 0);
	strcpy(msg.remove.name, name);
	ret = peer_done(fd, &msg, NULL);
	close(fd);
	return ret;
}

static int try_grant(const char *name, uint32_t kind, uint32_t id, uint32_t rights)
{
	struct pando__msg msg;
	int fd = peer_new(&d), ret;

	pando__msg_init(&msg, PANDO__MSG_GRANT, 0);
	strcpy(msg.grant.name, name);
	msg.grant.kind = kind;
	msg.grant.id = id;
	msg.grant.rights = rights;
	ret = peer_done(fd, &msg, NULL);
	close(fd);
	return ret;
}

/* Attaches and resizes. */
static int try_resize(const char *name, uint32_t flags, uint64_t size)
{
	struct pando__msg_opened opened;
	struct pando__msg msg;
	int fd = peer_new(&d), fds[PANDO__PROTO_MAX_FDS];
	int ret = peer_open(fd, name, flags, 0, 0, &opened, fds);

	peer_close_fds(fds);
	if (ret == 0) {
		pando__msg_init(&msg, PANDO__MSG_RESIZE, 0);
		msg.resize.region_id = opened.region_id;
		msg.resize.size = size;
		ret = peer_done(fd, &msg, NULL);
	}
	close(fd);
	return ret;
}

/* How many regions a user sees, and whether `name` is among them. */
static bool sees(const char *name)
{
	struct pando__msg msg;
	int fd = peer_new(&d);
	bool found = false;

	pando__msg_init(&msg, PANDO__MSG_LIST, 2);
	CHECK_EQ(peer_call(fd, &msg, NULL), PANDO__MSG_REGIONS);
	for (uint32_t i = 0; i < msg.regions.count; i++)
		found |= strcmp(msg.regions.info[i].name, name) == 0;
	close(fd);
	return found;
}

/* --- who may --- */

static void alice_makes(void)
{
	CHECK_EQ(try_open("private", PANDO_CREATE, MIB, 0600), 0);
	CHECK_EQ(try_open("readable", PANDO_CREATE, MIB, 0644), 0);
	CHECK_EQ(try_open("public", PANDO_CREATE, MIB, 0666), 0);
	CHECK_EQ(try_open("granted", PANDO_CREATE, MIB, 0600), 0);
	CHECK_EQ(try_grant("granted", PANDO_GRANT_UID, BOB, PANDO_RIGHT_READ), 0);
	CHECK_EQ(try_grant("granted", PANDO_GRANT_GID, STAFF, PANDO_RIGHT_READ | PANDO_RIGHT_WRITE),
		 0);
}

static void bob_tries(void)
{
	CHECK_EQ(try_open("private", 0, 0, 0), -EACCES);
	CHECK(strstr(peer_error, "private") && strstr(peer_error, "61002")); /* names both */
	CHECK_EQ(try_open("private", PANDO_READONLY, 0, 0), -EACCES);
	CHECK_EQ(try_open("private", PANDO_CREATE, MIB, 0666), -EACCES); /* the name is taken */
	CHECK_EQ(try_open("readable", 0, 0, 0), -EACCES);
	CHECK_EQ(try_open("readable", PANDO_READONLY, 0, 0), 0);
	CHECK_EQ(try_open("public", 0, 0, 0), 0);
	CHECK_EQ(try_open("granted", PANDO_READONLY, 0, 0), 0);
	CHECK_EQ(try_open("granted", 0, 0, 0), -EACCES);
	CHECK_EQ(try_resize("public", 0, 2 * MIB), 0);
	CHECK_EQ(try_resize("readable", PANDO_READONLY, 2 * MIB), -EACCES);
	CHECK_EQ(try_remove("public"), -EACCES);
	CHECK_EQ(try_grant("public", PANDO_GRANT_UID, BOB, PANDO_RIGHT_READ), -EACCES);
	CHECK_EQ(try_remove("private"), -EACCES);
	CHECK(!sees("private"));
	CHECK(sees("readable") && sees("granted"));
}

static void carol_tries(void)
{
	CHECK_EQ(try_open("granted", 0, 0, 0), 0); /* by her group */
	CHECK_EQ(try_open("private", 0, 0, 0), -EACCES);
	CHECK_EQ(try_remove("granted"), -EACCES);
}

static void alice_takes_back(void)
{
	CHECK_EQ(try_grant("granted", PANDO_GRANT_UID, BOB, 0), 0);
	CHECK_EQ(try_grant("granted", PANDO_GRANT_GID, STAFF, 0), 0);
	CHECK_EQ(try_remove("public"), 0);
}

static void bob_tries_again(void)
{
	CHECK_EQ(try_open("granted", PANDO_READONLY, 0, 0), -EACCES);
	CHECK_EQ(try_open("public", 0, 0, 0), -ENOENT);
	CHECK_EQ(try_open("public", PANDO_CREATE | PANDO_TRANSIENT, MIB, 0),
		 0); /* the name is free */
}

static void modes_and_grants_decide(void)
{
	struct pando_broker_info info;

	begin(NULL);
	as(ALICE, alice_makes);
	as(BOB, bob_tries);
	as(CAROL, carol_tries);
	daemon_status(&d, &info);
	kill(info.broker_pid, SIGKILL); /* rights outlive the broker */
	(void)daemon_wait_broker(&d, info.broker_pid, &info);
	as(BOB, bob_tries);
	as(CAROL, carol_tries);
	as(ALICE, alice_takes_back);
	as(BOB, bob_tries_again);
	CHECK(sees("private")); /* root sees all */
	CHECK_EQ(try_open("private", 0, 0, 0), 0); /* and may all */
	CHECK_EQ(try_remove("private"), 0);
	daemon_stop(&d);
}

/* --- a reader stays a reader --- */

/* msharefs has no seals to add. */
static bool no_seals(int error)
{
	return error == EPERM || error == EINVAL;
}

/* Tries everything that could make the file behind fd writable, or written, for us. */
static void attack_file(int fd, const char *what)
{
	char path[64], buf[16] = "overwritten";
	int again;

	errno = 0;
	printf("  %s\n", what);
	/* msharefs refuses this place (EINVAL) before it looks at rights: see bob_attacks(). */
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED &&
	      (errno == EACCES || errno == EINVAL));
	CHECK(write(fd, buf, sizeof(buf)) < 0 && errno == EBADF);
	CHECK(pwrite(fd, buf, sizeof(buf), 0) < 0 && errno == EBADF);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
	CHECK(fallocate(fd, 0, 0, 4096) < 0);
	CHECK(ftruncate(fd, 0) < 0);
	CHECK(ftruncate(fd, 1ull << 40) < 0);
	CHECK(fchmod(fd, 0666) < 0 && errno == EPERM);
	CHECK(fchown(fd, geteuid(), getegid()) < 0 && errno == EPERM);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && no_seals(errno));
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0 && no_seals(errno));
	CHECK(fcntl(fd, F_SETFL, O_RDWR) < 0 || (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
	for (int flags = O_WRONLY; flags <= O_RDWR; flags++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		again = open(path, flags | O_CLOEXEC);
		CHECK(again < 0 && errno == EACCES);
		snprintf(path, sizeof(path), "/dev/fd/%d", fd);
		CHECK(open(path, flags | O_TRUNC | O_CLOEXEC) < 0);
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	CHECK(truncate(path, 0) < 0);
	CHECK(chmod(path, 0666) < 0);
	CHECK(linkat(fd, "", AT_FDCWD, "/tmp/pando-test-link", AT_EMPTY_PATH) < 0);
}

/* And of a mapping of it. */
static void attack_mapping(char *at, size_t size, const char *what)
{
	struct iovec local = {(char[]){"overwritten"}, 11}, remote = {at, 11};
	char path[128];
	int mem, status;
	pid_t child;

	printf("  %s\n", what);
	CHECK(mprotect(at, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
	CHECK(mprotect(at, size, PROT_WRITE) < 0);
	CHECK(madvise(at, 4096, MADV_REMOVE) < 0);
	CHECK(process_vm_writev(getpid(), &local, 1, &remote, 1, 0) < 0);
	mem = open("/proc/self/mem",
		   O_RDWR | O_CLOEXEC); /* writes through missing rights where it may */
	if (mem >= 0) {
		CHECK(pwrite(mem, "overwritten", 11, (off_t)(uintptr_t)at) < 0);
		close(mem);
	}
	for (int flags = O_WRONLY; flags <= O_RDWR; flags++) {
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)at,
			 (unsigned long)at + size);
		CHECK(open(path, flags | O_CLOEXEC) < 0);
	}
	child = fork(); /* a debugger may write into text, which is read-only, too */
	CHECK(child >= 0);
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
	CHECK(ptrace(PTRACE_POKEDATA, child, at, (void *)0x41414141l) < 0);
	kill(child, SIGKILL);
	CHECK(waitpid(child, &status, 0) == child);
	child = fork(); /* and what the processor says */
	CHECK(child >= 0);
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		*(volatile char *)at = 1;
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

static void bob_attacks(void)
{
	int fd = peer_new(&d), fds[PANDO__PROTO_MAX_FDS];
	struct pando__msg_opened o;
	struct pando__ledger *ledger;
	char *heap;

	CHECK_EQ(peer_open(fd, "target", PANDO_READONLY, 0, 0, &o, fds), 0);
	CHECK_EQ(o.readonly, 1);
	ledger = mmap(NULL, o.ledger_size, PROT_READ, MAP_SHARED, fds[0], 0);
	CHECK(munmap((void *)(uintptr_t)o.base, o.max_size) == 0); /* what fork() has left */
	CHECK(mmap((void *)(uintptr_t)o.base, o.max_size, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED_NOREPLACE, fds[2], 0) == MAP_FAILED &&
	      errno == EACCES);
	heap = mmap((void *)(uintptr_t)o.base, o.max_size, PROT_READ,
		    MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fds[2], 0);
	CHECK(ledger != MAP_FAILED && heap == (char *)(uintptr_t)o.base);
	CHECK_EQ(ledger->magic, PANDO__LEDGER_MAGIC);
	CHECK(strcmp(heap, "untouched") == 0);
	attack_file(fds[0], "the ledger's descriptor");
	attack_mapping((char *)ledger, o.ledger_size, "the ledger's mapping");
	attack_file(fds[2], "the heap's descriptor");
	attack_mapping(heap, o.max_size, "the heap's mapping");
	/* His slot's file he may write, but neither resize nor seal it. */
	CHECK(ftruncate(fds[1], 0) < 0);
	CHECK(fcntl(fds[1], F_ADD_SEALS, F_SEAL_WRITE) < 0);
	CHECK(fchmod(fds[1], 0666) < 0);
	CHECK(strcmp(heap, "untouched") == 0);
	CHECK_EQ(ledger->magic, PANDO__LEDGER_MAGIC);
}

static void bob_attacks_as_writer(void)
{
	int fd = peer_new(&d), fds[PANDO__PROTO_MAX_FDS];
	struct pando__msg_opened o;
	struct stat st;

	CHECK_EQ(peer_open(fd, "writable", 0, 0, 0, &o, fds), 0);
	attack_file(fds[0], "the ledger's descriptor, as a writer of the heap");
	CHECK(fstat(fds[2], &st) == 0);
	CHECK_EQ(st.st_size, o.max_size);
	CHECK(ftruncate(fds[2], 4096) < 0); /* others would get SIGBUS */
	CHECK(ftruncate(fds[2], (off_t)o.max_size * 2) < 0);
	CHECK(fcntl(fds[2], F_ADD_SEALS, F_SEAL_WRITE) < 0);
	CHECK(fcntl(fds[2], F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0);
	CHECK(fchmod(fds[2], 0666) < 0);
	CHECK(fchown(fds[2], BOB, BOB) < 0);
}

static void a_reader_stays_a_reader(void)
{
	int fd, fds[PANDO__PROTO_MAX_FDS];
	struct pando__msg_opened o;
	char *heap;

	begin(NULL);
	fd = peer_new(&d);
	CHECK_EQ(peer_open(fd, "target", PANDO_CREATE, MIB, 0644, &o, fds), 0);
	/* The one place and size that every backend has. */
	heap = mmap((void *)(uintptr_t)o.base, o.max_size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fds[2], 0);
	CHECK(heap != MAP_FAILED);
	strcpy(heap, "untouched");
	as(BOB, bob_attacks);
	CHECK(strcmp(heap, "untouched") == 0);
	CHECK_EQ(try_open("writable", PANDO_CREATE, MIB, 0666), 0);
	as(BOB, bob_attacks_as_writer);
	peer_close_fds(fds);
	close(fd);
	daemon_stop(&d);
}

/* --- how much --- */

static void alice_meets_her_limits(void)
{
	int fds[4];

	CHECK_EQ(try_open("one", PANDO_CREATE, 40 * MIB, 0), 0);
	CHECK_EQ(try_open("two", PANDO_CREATE, 40 * MIB, 0), -EDQUOT);
	CHECK(strstr(peer_error, "61001") || strstr(peer_error, "quota")); /* says whose and what */
	CHECK_EQ(try_resize("one", 0, 70 * MIB), -EDQUOT);
	CHECK_EQ(try_resize("one", 0, 64 * MIB), 0);
	CHECK_EQ(try_open("two", PANDO_CREATE, 4096, 0), -EDQUOT);
	CHECK_EQ(try_resize("one", 0, 20 * MIB), 0); /* what is given back counts no more */
	CHECK_EQ(try_open("two", PANDO_CREATE, 40 * MIB, 0), 0);
	CHECK_EQ(try_open("three", PANDO_CREATE, 4096, 0), -EDQUOT); /* two regions */
	CHECK_EQ(try_remove("two"), 0);
	CHECK_EQ(try_open("three", PANDO_CREATE, 4096, 0), 0);
	for (int i = 0; i < 3; i++)
		fds[i] = peer_new(&d);
	fds[3] = peer_connect(&d);
	if (fds[3] >= 0) {
		struct pando__msg msg;

		pando__msg_init(&msg, PANDO__MSG_HELLO, 1);
		msg.hello.version_min = msg.hello.version_max = PANDO__PROTO_VERSION;
		CHECK_EQ(peer_call(fds[3], &msg, NULL), PANDO__MSG_ERROR);
		CHECK_EQ(msg.error.error, EDQUOT);
		close(fds[3]);
	}
	close(fds[0]);
	fds[0] = -1;
	for (double end = daemon_now() + 2 * daemon_slow();
	     fds[0] < 0 && daemon_now() < end;) { /* soon there is room */
		uint64_t id;

		fds[0] = peer_connect(&d);
		if (fds[0] >= 0 && !peer_hello(fds[0], &id)) {
			close(fds[0]);
			fds[0] = -1;
		}
	}
	CHECK(fds[0] >= 0);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
}

static void bob_has_more(void)
{
	CHECK_EQ(try_open("bobs", PANDO_CREATE, 100 * MIB, 0), 0);
	CHECK_EQ(try_remove("bobs"), 0);
}

static void after_a_restart(void)
{
	CHECK_EQ(try_open("four", PANDO_CREATE, 4096, 0), -EDQUOT); /* regions are counted still */
	CHECK_EQ(try_resize("one", 0, 64 * MIB), -EDQUOT); /* and memory */
	CHECK_EQ(try_remove("one"), 0);
	CHECK_EQ(try_remove("three"), 0);
	CHECK_EQ(try_open("four", PANDO_CREATE | PANDO_TRANSIENT, 64 * MIB, 0), 0);
}

static void quotas_hold(void)
{
	const char *const options[] = {"--quota-memory=64M", "--quota-regions=2",
				       "--quota-clients=3", "--quota=61002:memory=128M", NULL};
	struct pando_broker_info info;

	begin(options);
	as(ALICE, alice_meets_her_limits);
	as(BOB, bob_has_more);
	CHECK_EQ(try_open("roots", PANDO_CREATE | PANDO_TRANSIENT, 100 * MIB, 0), 0); /* has none */
	daemon_status(&d, &info);
	kill(info.broker_pid, SIGKILL);
	(void)daemon_wait_broker(&d, info.broker_pid, &info);
	as(ALICE, after_a_restart);
	daemon_stop(&d);
}

/* --- an embedded broker is its user's alone --- */

static void is_refused(void)
{
	uint64_t id;
	int fd = peer_connect(&d);

	CHECK(fd < 0 || !peer_hello(fd, &id));
	if (fd >= 0)
		close(fd);
}

static void an_embedded_broker_admits_its_user_only(void)
{
	const char *const options[] = {"--embedded", NULL};
	int fd;

	begin(options);
	fd = peer_new(&d);
	as(BOB, is_refused);
	close(fd);
	CHECK_EQ(daemon_wait(&d, 5), 0); /* the last client is gone */
}

int main(void)
{
	return daemon_run_tests((struct daemon_test[]){
		TEST(modes_and_grants_decide),
		TEST(a_reader_stays_a_reader),
		TEST(quotas_hold),
		TEST(an_embedded_broker_admits_its_user_only),
		{0},
	});
}
