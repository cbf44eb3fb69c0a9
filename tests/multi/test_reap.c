/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How soon a dead client is cleaned up.
 *
 * 200 clients, one after the other, attach to a region and are killed. The time is taken from just
 * before kill() to the moment when the client's entry in the region's ledger is free again (its
 * slot's page is zeroed by then), seen by looking at the mapped ledger every 20 us: nothing that is
 * asked for reaches the broker meanwhile. The promise is 10 ms on a broker that is idle.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/atomic.h"
#include "daemon.h"

#define KILLS 200
#define LIMIT_MS 10.0
#define ATTEMPTS                                                                                   \
	3 /* a machine that does something else for 10 ms is not the broker's fault: three times   \
	     it would be */

/* A child that attaches and waits to be killed; its slot is stored. */
static pid_t attach_child(const struct daemon *d, uint32_t *slot)
{
	struct pando__msg_opened opened;
	int fd, fds[PANDO__PROTO_MAX_FDS], pipe_fds[2];
	pid_t pid;

	CHECK(pipe(pipe_fds) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		fd = peer_new(d);
		CHECK_EQ(peer_open(fd, "region", 0, 0, 0, &opened, fds), 0);
		CHECK(write(pipe_fds[1], &opened.slot, sizeof(opened.slot)) == sizeof(opened.slot));
		for (;;)
			pause();
	}
	close(pipe_fds[1]);
	CHECK(read(pipe_fds[0], slot, sizeof(*slot)) == sizeof(*slot));
	close(pipe_fds[0]);
	return pid;
}

static double kill_and_wait(struct pando__ledger *ledger, pid_t pid, uint32_t slot)
{
	struct pando__ledger_client *entry = pando__ledger_client(ledger, slot);
	uint64_t word = pando__load_acquire(&entry->word);
	double begin, took;

	CHECK_EQ(PANDO__CLIENT_STATE(word), PANDO__CLIENT_LIVE);
	CHECK_EQ(entry->pid, pid);
	daemon_nap(0.001); /* idle */
	begin = daemon_now();
	CHECK(kill(pid, SIGKILL) == 0);
	do {
		word = pando__load_acquire(&entry->word);
		took = daemon_now() - begin;
		CHECK(took < 5 * daemon_slow());
		daemon_nap(20e-6);
	} while (PANDO__CLIENT_STATE(word) != PANDO__CLIENT_FREE);
	CHECK(waitpid(pid, NULL, 0) == pid);
	return took * 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double series(const struct daemon *d, struct pando__ledger *ledger)
{
	static double took[KILLS];

	for (int i = 0; i < KILLS; i++) {
		uint32_t slot;
		pid_t pid = attach_child(d, &slot);

		took[i] = kill_and_wait(ledger, pid, slot);
	}
	qsort(took, KILLS, sizeof(took[0]), compare);
	printf("%d kills: cleaned up after %.3f ms (median), %.3f ms (99 %%), %.3f ms (max)\n",
	       KILLS, took[KILLS / 2], took[KILLS * 99 / 100], took[KILLS - 1]);
	return took[KILLS - 1];
}

static void dead_clients_are_cleaned_up_within_10_ms(void)
{
	struct daemon d;
	struct pando__msg_opened opened;
	struct pando_broker_info info;
	struct pando__ledger *ledger;
	int fd, fds[PANDO__PROTO_MAX_FDS], before;
	const double limit = LIMIT_MS * daemon_slow();
	double max = limit;

	daemon_start(&d, NULL);
	fd = peer_new(&d);
	CHECK_EQ(peer_open(fd, "region", PANDO_CREATE, 1 << 20, 0600, &opened, fds), 0);
	ledger = mmap(NULL, opened.ledger_size, PROT_READ, MAP_SHARED, fds[0], 0);
	CHECK(ledger != MAP_FAILED);
	before = daemon_broker_fds(&d);
	for (int i = 0; i < ATTEMPTS && max >= limit; i++)
		max = series(&d, ledger);
	CHECK(max < limit);
	daemon_settle(&d, 1, before);
	daemon_status(&d, &info);
	printf("the broker's own measure, from noticing to clean: %.3f ms (max)\n",
	       (double)info.reap_ns_max / 1e6);
	CHECK(info.deaths_total >= KILLS);
	CHECK_EQ(pando__load_acquire(&ledger->clients_live), 1);
	peer_close_fds(fds);
	close(fd);
	daemon_stop(&d);
}

int main(void)
{
	return daemon_run_tests(
		(struct daemon_test[]){TEST(dead_clients_are_cleaned_up_within_10_ms), {0}});
}
