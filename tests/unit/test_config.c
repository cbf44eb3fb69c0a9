/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The daemon's configuration: each source, who wins, every refusal with a sentence that names the
 * value.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/config.h"
#include "common/layout.h"

static struct broker_config config;

#define LOAD(...) load((char *[]){"pandod", __VA_ARGS__, NULL})
static int load(char **argv)
{
	int argc = 0;

	while (argv[argc])
		argc++;
	return config_load(&config, argc, argv);
}

static void assert_refused(int ret, int err, const char *part)
{
	assert_int_equal(ret, -err);
	if (!strstr(pando_strerror_last(), part))
		fail_msg("\"%s\" does not say \"%s\"", pando_strerror_last(), part);
}

static void has_defaults(void **state)
{
	(void)state;
	assert_int_equal(LOAD("--socket=/tmp/x.sock"), 0);
	assert_int_equal(config.role, CONFIG_ROLE_DAEMON);
	assert_int_equal(config.channel, -1);
	assert_int_equal(config.ready_fd, -1);
	assert_true(config.window_base == PANDO__WINDOW_BASE);
	assert_true(config.window_size == PANDO__WINDOW_SIZE);
	assert_int_equal(config.log_level, LOG_LEVEL_INFO);
	assert_string_equal(config.log_target, "stderr");
	assert_int_equal(config.drain_timeout_ms, 10000);
	assert_int_equal(config.owner, geteuid());
	assert_int_equal(config.quota.memory, 0);
}

static void takes_every_option(void **state)
{
	(void)state;
	assert_int_equal(LOAD("--socket", "@x", "--backend=memfd", "--window-base=0x40000000000",
			      "--window-size=1T", "--quota-memory=1.5G", "--quota-regions=7",
			      "--quota-clients=8", "--quota-heap=3M", "--quota-heap-client=2M",
			      "--quota", "1000:memory=2G,clients=3,heap-client=1M",
			      "--log-level=debug", "--log-file=/tmp/log", "--drain-timeout=0.25",
			      "--graft=any", "--graft-limit=3G", "--graft-waiting=7",
			      "--no-supervisor", "--embedded", "--ready-fd=2"),
			 0);
	assert_string_equal(config.address, "@x");
	assert_int_equal(config.backend, PANDO_BACKEND_MEMFD);
	assert_true(config.window_base == 0x40000000000ull);
	assert_true(config.window_size == 1ull << 40);
	assert_true(config.quota.memory == 3ull << 29);
	assert_int_equal(config.quota.regions, 7);
	assert_int_equal(config.graft, CONFIG_GRAFT_ANY);
	assert_true(config.graft_limit == 3ull << 30);
	assert_int_equal(config.graft_waiting, 7);
	assert_int_equal(config.quota.clients, 8);
	assert_int_equal(config.quota.heap, 3 << 20);
	assert_int_equal(config.quota.heap_client, 2 << 20);
	assert_int_equal(config.users[0].quota.heap, 3 << 20);
	assert_int_equal(config.users[0].quota.heap_client, 1 << 20);
	assert_int_equal(config.user_count, 1);
	assert_int_equal(config.log_level, LOG_LEVEL_DEBUG);
	assert_string_equal(config.log_target, "/tmp/log");
	assert_int_equal(config.drain_timeout_ms, 250);
	assert_true(config.no_supervisor);
	assert_true(config.embedded);
	assert_int_equal(config.ready_fd, 2);
}

static void knows_whose_quota(void **state)
{
	struct config_quota q;

	(void)state;
	assert_int_equal(LOAD("--socket=@x", "--quota-memory=1G", "--quota-regions=5",
			      "--quota=4242:memory=2G", "--quota=root:clients=9",
			      "--quota=4242:memory=3G,clients=2"),
			 0);
	assert_int_equal(config.user_count, 2); /* the later entry of a user replaces the earlier */
	q = config_quota_for(&config, 4242);
	assert_true(q.memory == 3ull << 30);
	assert_int_equal(q.regions, 5); /* not named: the general one */
	assert_int_equal(q.clients, 2);
	q = config_quota_for(&config, 4243);
	assert_true(q.memory == 1ull << 30);
	assert_int_equal(config_quota_for(&config, 0).clients, 9);
	config.owner = 77;
	assert_int_equal(config_quota_for(&config, 77).memory, 0);
}

static void refuses_bad_values(void **state)
{
	char longest[200] = "/";

	(void)state;
	memset(longest + 1, 'x', 120);
	assert_refused(LOAD("--socket=relative"), EINVAL, "\"relative\"");
	assert_refused(LOAD("--socket=@"), EINVAL, "no name");
	assert_refused(LOAD("--socket", longest), ENAMETOOLONG, "121 bytes");
	longest[107] = '\0';
	assert_int_equal(LOAD("--socket", longest), 0);
	assert_refused(LOAD("--backend=ram"), EINVAL, "\"ram\"");
	assert_refused(LOAD("--window-base=0x1234"), EINVAL, "0x1234");
	assert_refused(LOAD("--window-base=0"), EINVAL, "window-base");
	assert_refused(LOAD("--window-size=12M"), EINVAL, "1 GiB");
	assert_refused(LOAD("--window-base=0x7fffc0000000", "--window-size=2G"), EINVAL, "128 TiB");
	assert_refused(LOAD("--quota-memory=lots"), EINVAL, "\"lots\"");
	assert_refused(LOAD("--quota-regions=-1"), EINVAL, "\"-1\"");
	assert_refused(LOAD("--quota-clients=4294967296"), EINVAL, "4294967295");
	assert_refused(LOAD("--quota-heap=much"), EINVAL, "\"much\"");
	assert_refused(LOAD("--graft=all"), EINVAL, "none of uid, any, off");
	assert_refused(LOAD("--graft-limit=-1"), EINVAL, "\"-1\"");
	assert_refused(LOAD("--graft-waiting=1025"), EINVAL, "up to 1024");
	assert_refused(LOAD("--quota=1000:heap=-1"), EINVAL, "\"-1\"");
	assert_refused(LOAD("--quota=1000"), EINVAL, "UID:memory");
	assert_refused(LOAD("--quota=:memory=1G"), EINVAL, "UID:memory");
	assert_refused(LOAD("--quota=nobody-has-this-name:memory=1G"), EINVAL, "no user");
	assert_refused(LOAD("--quota=1000:disk=1G"), EINVAL, "\"disk=1G\"");
	assert_refused(LOAD("--log-level=loud"), EINVAL, "\"loud\"");
	assert_refused(LOAD("--log-file=log"), EINVAL, "\"log\"");
	assert_refused(LOAD("--drain-timeout=soon"), EINVAL, "\"soon\"");
	assert_refused(LOAD("--drain-timeout=nan"), EINVAL, "\"nan\"");
	assert_refused(LOAD("--ready-fd=999"), EBADF, "999");
}

static void refuses_bad_usage(void **state)
{
	(void)state;
	assert_refused(LOAD("--nonsense"), EINVAL, "--nonsense");
	assert_refused(LOAD("--socket"), EINVAL, "needs a value");
	assert_refused(LOAD("start"), EINVAL, "\"start\"");
	assert_refused(LOAD("--embedded"), EINVAL, "--socket");
	assert_refused(LOAD("--broker-channel=3"), EINVAL, "--config-fd");
	assert_refused(LOAD("--config=/nonexistent"), ENOENT, "/nonexistent");
}

/* A file with this text; returns its path, which is overwritten by the next call. */
static const char *file_with(const char *text)
{
	static char path[64];
	int fd;

	strcpy(path, "/tmp/pando-test-config-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	return path;
}

static int load_text(const char *text, char *option)
{
	const char *path = file_with(text);
	int ret = LOAD("--config", (char *)path, "--socket=@x", option);

	unlink(path);
	return ret;
}

static void reads_a_file(void **state)
{
	(void)state;
	assert_int_equal(load_text("# a comment\n"
				   "\n"
				   "  backend = hugetlb   # another\n"
				   "quota = 1:regions=1\n"
				   "quota=2:regions=2\n"
				   "no-supervisor = yes\n"
				   "drain-timeout=3",
				   "--log-level=warn"),
			 0);
	assert_int_equal(config.backend, PANDO_BACKEND_HUGETLB);
	assert_int_equal(config.user_count, 2);
	assert_true(config.no_supervisor);
	assert_int_equal(config.drain_timeout_ms, 3000);
	assert_int_equal(config.log_level, LOG_LEVEL_WARN);
	assert_refused(load_text("\n\nbackend = ram\n", "--log-level=warn"), EINVAL,
		       "line 3: backend \"ram\"");
	assert_refused(load_text("backend\n", "--log-level=warn"), EINVAL, "NAME = VALUE");
	assert_refused(load_text("speed = fast\n", "--log-level=warn"), EINVAL, "\"speed\"");
	assert_refused(load_text("ready-fd = 1\n", "--log-level=warn"), EINVAL, "\"ready-fd\"");
	assert_refused(load_text("no-supervisor = maybe\n", "--log-level=warn"), EINVAL,
		       "\"maybe\"");
}

static void options_win_over_environment_over_file(void **state)
{
	(void)state;
	setenv("PANDO_BACKEND", "memfd", 1);
	assert_int_equal(load_text("backend = hugetlb\n", "--log-level=warn"), 0);
	assert_int_equal(config.backend, PANDO_BACKEND_MEMFD);
	assert_int_equal(load_text("backend = hugetlb\n", "--backend=mshare"), 0);
	assert_int_equal(config.backend, PANDO_BACKEND_MSHARE);
	setenv("PANDO_BACKEND", "ram", 1);
	assert_refused(LOAD("--socket=@x"), EINVAL, "PANDO_BACKEND");
	unsetenv("PANDO_BACKEND");
}

static void picks_an_address(void **state)
{
	(void)state;
	unsetenv("XDG_RUNTIME_DIR");
	if (geteuid() == 0) {
		assert_int_equal(load((char *[]){"pandod", NULL}), 0);
		assert_string_equal(config.address, "/run/pando/broker.sock");
		return;
	}
	assert_refused(load((char *[]){"pandod", NULL}), EINVAL, "XDG_RUNTIME_DIR");
	setenv("XDG_RUNTIME_DIR", "/run/user/5", 1);
	assert_int_equal(load((char *[]){"pandod", NULL}), 0);
	assert_string_equal(config.address, "/run/user/5/pando/broker.sock");
}

static void travels_in_a_memory_file(void **state)
{
	struct broker_config copy;
	char fd_option[32];
	int fd;

	(void)state;
	assert_int_equal(LOAD("--socket=@x", "--quota=5:regions=1"), 0);
	copy = config;
	fd = config_to_fd(&config);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "x", 1), -1); /* sealed */
	snprintf(fd_option, sizeof(fd_option), "--config-fd=%d", fd);
	assert_int_equal(LOAD("--broker-channel=77", fd_option), 0);
	assert_int_equal(config.role, CONFIG_ROLE_BROKER);
	assert_int_equal(config.channel, 77);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* closed */
	config.role = copy.role;
	config.channel = copy.channel;
	assert_memory_equal(&config, &copy, sizeof(copy));

	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_refused(config_from_fd(&config, fd), EINVAL, "no configuration");
	copy.size--;
	fd = config_to_fd(&copy);
	assert_refused(config_from_fd(&config, fd), EINVAL, "no configuration");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(has_defaults),
		cmocka_unit_test(takes_every_option),
		cmocka_unit_test(knows_whose_quota),
		cmocka_unit_test(refuses_bad_values),
		cmocka_unit_test(refuses_bad_usage),
		cmocka_unit_test(reads_a_file),
		cmocka_unit_test(options_win_over_environment_over_file),
		cmocka_unit_test(picks_an_address),
		cmocka_unit_test(travels_in_a_memory_file),
	};

	unsetenv("PANDO_WINDOW_BASE"); /* set for runs under Valgrind */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
