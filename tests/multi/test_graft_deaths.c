/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Deaths on the way of a graft: the sender is killed at each of its injection points, the receiver at
 * each of its own, and the broker while grafts wait and are held. Each time nothing may be left but
 * what was accepted, and the others go on.
 *
 * Victims are this program, executed again: points are armed when a program starts.
 */
#include "graft_peer.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#define BYTES (3 * MIB)

static const char *const sender_points[] = {
	"client.call.sent",
	"client.graft.reserved",
	"client.graft.let_go",
	"client.graft.sent",
	NULL,
};

static const char *const receiver_points[] = {
	"client.call.sent",    "client.accept.received", "client.accept.mapped",
	"client.accept.taken", "client.release.cleared", NULL,
};

/* Sends two buffers to the client that the environment names. */
static int sender(void)
{
	struct pando_buffer *b;
	struct pando *p;

	if (pando_connect(&p, NULL) < 0)
		return 1;
	for (uint64_t i = 0; i < 2; i++) {
		if (pando_buffer_new(p, BYTES, NULL, &b) < 0)
			return 2;
		pattern_write(pando_buffer_data(b), BYTES, i);
		if (pando_graft(p, strtoull(getenv("TEST_RECEIVER"), NULL, 10), b, BYTES, i) < 0)
			return 3;
		pando_buffer_free(b);
	}
	pando_disconnect(p);
	return 0;
}

/* Accepts two, releases one; says its id through descriptor 3. */
static int receiver(void)
{
	struct pando_graft_info info;
	struct pando *p;
	uint64_t id;

	if (pando_connect(&p, NULL) < 0 || pando_graft_listen(p, NULL) < 0)
		return 1;
	id = pando_client_id(p);
	if (write(3, &id, sizeof(id)) != sizeof(id))
		return 2;
	for (unsigned int have = 0; have < 2;) {
		int rc = pando_graft_accept(p, &info);

		if (rc == -EAGAIN)
			harness_sleep_ms(2);
		else if (rc < 0)
			return 3;
		else if (pattern_check(info.address, info.length, info.tag))
			return 4;
		else if (have++ == 0 && pando_graft_release(p, info.address) < 0)
			return 5;
	}
	pando_disconnect(p);
	return 0;
}

static pid_t run_victim(const char *role, const char *point, unsigned int passage, int fd)
{
	char arm[100];
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		snprintf(arm, sizeof(arm), "%s=kill@%u", point, passage);
		setenv("PANDO_INJECT", arm, 1);
		if (fd >= 0 && dup2(fd, 3) < 0)
			_exit(126);
		execl("/proc/self/exe", "victim", role, NULL);
		_exit(127);
	}
	CHECK(pid > 0);
	return pid;
}

static bool died(pid_t pid, const char *point, unsigned int passage)
{
	int rc = harness_join(pid);

	if (rc != 0 && rc != 256 + SIGKILL)
		harness_fail(__FILE__, __LINE__, "at %s, passage %u, the victim ended with %d",
			     point, passage, rc);
	return rc != 0;
}

/* Whatever waits is whole, and when all is accepted the reservation has nothing else in it. */
static void take_all(struct harness *h, const struct peer *to)
{
	struct peer_answer a;
	uint64_t held[4], count = 0, pages;

	while ((a = peer_do(to, PEER_ACCEPT, 0, 0, 0)).rc == 0) {
		CHECK(count < 4);
		CHECK_INT(a.info.length, BYTES);
		CHECK_INT(
			peer_do(to, PEER_CHECK, (uintptr_t)a.info.address, BYTES, a.info.tag).value,
			0);
		held[count++] = (uintptr_t)a.info.address;
	}
	CHECK_INT(a.rc, -EAGAIN);
	await_grafts(h, 0, count);
	pages = peer_do(to, PEER_MAPPED, a.stat.base, 8 * BYTES, 0).value;
	CHECK_INT(pages, count * (BYTES / PAGE));
	while (count > 0)
		peer_ok(to, PEER_RELEASE, held[--count], 0, 0);
	await_grafts(h, 0, 0);
	CHECK_INT(peer_ok(to, PEER_POLL, 0, 0, 0).value, 0);
}

static void test_sender_dies(struct harness *h)
{
	struct peer to = peer_receiver(h);
	unsigned int deaths = 0, fds = (unsigned int)peer_do(&to, PEER_FDS, 0, 0, 0).value;
	char id[32];

	snprintf(id, sizeof(id), "%llu", (unsigned long long)to.id);
	setenv("TEST_RECEIVER", id, 1);
	for (unsigned int i = 0; sender_points[i]; i++)
		for (unsigned int passage = 1; passage <= 4; passage++) {
			pid_t pid = run_victim("--sender", sender_points[i], passage, -1);

			deaths += died(pid, sender_points[i], passage);
			harness_await_clients(h, 2);
			take_all(h, &to);
		}
	CHECK_INT(peer_do(&to, PEER_FDS, 0, 0, 0).value, fds);
	peer_end(&to);
	if (deaths == 0)
		harness_skip("built without injection points (-Dinjection=true)");
	printf("  %u deaths\n", deaths);
}

static void test_receiver_dies(struct harness *h)
{
	unsigned int deaths = 0, fds = harness_fds(h->broker);

	for (unsigned int i = 0; receiver_points[i]; i++)
		for (unsigned int passage = 1; passage <= 3; passage++) {
			uint64_t id;
			int ends[2];
			pid_t pid;

			CHECK(pipe2(ends, O_CLOEXEC) == 0);
			pid = run_victim("--receiver", receiver_points[i], passage, ends[1]);
			close(ends[1]);
			if (read(ends[0], &id, sizeof(id)) != sizeof(id))
				id = 0; /* it died before it could say */
			close(ends[0]);
			for (uint64_t n = 0; id && n < 2; n++) {
				struct pando_buffer *b = filled(h->checker, BYTES, n);
				int rc = pando_graft(h->checker, id, b, BYTES, n);

				/* It may be dead already, or die while pages are on their way. */
				CHECK(rc == 0 || rc == -ESRCH);
				if (rc < 0)
					CHECK_INT(pattern_check(pando_buffer_data(b), BYTES, n), 0);
				pando_buffer_free(b);
			}
			deaths += died(pid, receiver_points[i], passage);
			harness_await_clients(h, 1);
			await_grafts(h, 0, 0);
		}
	CHECK_INT(harness_fds(h->broker), fds);
	if (deaths == 0)
		harness_skip("built without injection points (-Dinjection=true)");
	printf("  %u deaths\n", deaths);
}

static void kill_broker(struct harness *h)
{
	struct pando_broker_info info;
	pid_t old;

	CHECK_OK(pando_broker_info(h->checker, &info));
	old = info.broker_pid;
	CHECK(kill(old, SIGKILL) == 0);
	CHECK_OK(pando_broker_info(h->checker, &info)); /* sent again to the next one */
	CHECK(info.broker_pid != old);
}

/* The broker dies: what waits is accepted from the next one, what is held stays. */
static void test_broker_dies(struct harness *h)
{
	struct peer to = peer_receiver(h), gone = peer_receiver(h);
	struct pando_graft_info first, info;
	struct pando_buffer *b;

	for (uint64_t round = 0; round < 5; round++) {
		for (uint64_t i = 0; i < 3; i++) {
			b = filled(h->checker, BYTES, i);
			CHECK_OK(pando_graft(h->checker, to.id, b, BYTES, i));
			pando_buffer_free(b);
		}
		first = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
		CHECK_INT(first.tag, 0);
		kill_broker(h);
		await_grafts(h, 2, 1);
		CHECK_INT(peer_ok(&to, PEER_POLL, 5000, 0, 0).value, 1);
		for (uint64_t i = 1; i < 3; i++) {
			info = peer_ok(&to, PEER_ACCEPT, 0, 0, 0).info;
			CHECK_INT(info.tag, i);
			CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)info.address, BYTES, i).value,
				  0);
			peer_ok(&to, PEER_RELEASE, (uintptr_t)info.address, 0, 0);
		}
		CHECK_INT(peer_do(&to, PEER_ACCEPT, 0, 0, 0).rc, -EAGAIN);
		CHECK_INT(peer_ok(&to, PEER_POLL, 0, 0, 0).value, 0);
		CHECK_INT(peer_do(&to, PEER_CHECK, (uintptr_t)first.address, BYTES, 0).value, 0);
		peer_ok(&to, PEER_RELEASE, (uintptr_t)first.address, 0, 0);
		await_grafts(h, 0, 0);
	}
	/* A receiver that dies with the broker takes what waited for it along. */
	b = filled(h->checker, BYTES, 1);
	CHECK_OK(pando_graft(h->checker, gone.id, b, BYTES, 1));
	pando_buffer_free(b);
	CHECK(kill(gone.pid, SIGSTOP) == 0);
	kill_broker(h);
	peer_kill(&gone);
	await_grafts(h, 0, 0);
	peer_end(&to);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "sender_dies", .run = test_sender_dies},
		{.name = "receiver_dies", .run = test_receiver_dies},
		{.name = "broker_dies", .run = test_broker_dies, .flags = HARNESS_BROKER_DIES},
	};

	if (argc > 1 && strcmp(argv[1], "--sender") == 0)
		return sender();
	if (argc > 1 && strcmp(argv[1], "--receiver") == 0)
		return receiver();
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
