/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A private pandod per test, spoken to packet by packet.
 *
 * For tests that look at the daemon from outside: that kill it, attack it, count what it holds, or
 * are somebody that the library is not (another user, a liar). The daemon's program is
 * $PANDO_BROKER_PROGRAM; its socket and its log are in a directory of their own.
 *
 *	int main(void)
 *	{
 *		return daemon_run_tests((struct daemon_test[]){TEST(this), TEST(that), {0}});
 *	}
 *
 * Each test runs in a child of its own, which ends with its first failed CHECK. The runner adopts
 * every orphan, so whatever a test leaves running is found, reported as a failure and killed. Test
 * and daemon run at a raised priority where that is permitted, so that times are about them and not
 * about what else the machine does.
 *
 * $TEST_ONLY names one test to run, $TEST_LOG=1 shows the daemon's log.
 */
#ifndef PANDO_TESTS_DAEMON_H
#define PANDO_TESTS_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/layout.h"
#include "protocol/protocol.h"

/* Ends this process (without its exit handlers) unless the condition holds. */
#define CHECK(cond)                                                                                \
	do {                                                                                       \
		if (!(cond))                                                                       \
			daemon_failed(__FILE__, __LINE__, #cond);                                  \
	} while (0)

/* As CHECK, for two numbers that are shown. */
#define CHECK_EQ(a, b)                                                                             \
	do {                                                                                       \
		long long a_ = (long long)(a), b_ = (long long)(b);                                \
		if (a_ != b_)                                                                      \
			daemon_failed_eq(__FILE__, __LINE__, #a " == " #b, a_, b_);                \
	} while (0)

_Noreturn void daemon_failed(const char *file, int line, const char *what);
_Noreturn void daemon_failed_eq(const char *file, int line, const char *what, long long a,
				long long b);

struct daemon_test {
	const char *name;
	void (*run)(void);
};
#define TEST(fn)                                                                                   \
	{                                                                                          \
#fn, fn                                                                            \
	}
int daemon_run_tests(const struct daemon_test *tests); /* ends with {0}; returns the exit status */
_Noreturn void daemon_skip(const char *why);

double daemon_now(void); /* seconds */
/* $PANDO_TEST_SLOW, or 1: how many times slower than usual this is. All limits are scaled by it. */
double daemon_slow(void);
/* The backend that $PANDO_TEST_BACKEND names, or memfd: of the regions that peer_open() makes. */
unsigned int daemon_backend(void);
void daemon_nap(double seconds);

struct daemon {
	pid_t pid; /* of the supervisor */
	char dir[64], address[100], log[100];
};

/* Starts one and waits until it serves. options: more of them, or NULL; ends with NULL. */
void daemon_start(struct daemon *d, const char *const *options);

/* SIGTERM; it must end with status 0, and leave nothing. */
void daemon_stop(struct daemon *d);
/* Waits for its end and removes the directory. Returns the exit status, or minus the signal. */
int daemon_wait(struct daemon *d, double seconds);
/* Entries in /proc/PID/fd. */
int daemon_fds(pid_t pid);
void daemon_status(struct daemon *d, struct pando_broker_info *info);
/*
 * Waits until another broker than `old` answers; fails after 5 s. Returns the seconds that it took.
 */
double daemon_wait_broker(struct daemon *d, pid_t old, struct pando_broker_info *info);
/*
 * Waits until the daemon has `clients` (not counting who asks) and `fds` descriptors in its broker;
 * fails after 5 s.
 */
void daemon_settle(struct daemon *d, uint64_t clients, int fds);
/* Descriptors of the broker, once they do not change any more. */
int daemon_broker_fds(struct daemon *d);

/* --- one client, by hand --- */

/* A connected socket, or -1. */
int peer_connect(const struct daemon *d);
/* Says hello; true if welcome, whose id is then stored. */
bool peer_hello(int fd, uint64_t *id);
/*
 * Receives one message for which sum of waits at most 5 s; notices are passed over. Descriptors go
 * to fds (NULL: closed). Returns its type, 0 when the connection ended, or a negative errno.
 */
int peer_receive(int fd, struct pando__msg *msg, int fds[PANDO__PROTO_MAX_FDS]);
/* Sends a request and receives its answer into the same struct. Returns as peer_receive. */
int peer_call(int fd, struct pando__msg *msg, int fds[PANDO__PROTO_MAX_FDS]);
/* OPEN. fds: ledger, slots, heap. Returns 0 or the negative errno that the broker answered. */
int peer_open(int fd, const char *name, uint32_t flags, uint64_t size, uint32_t mode,
	      struct pando__msg_opened *opened, int fds[PANDO__PROTO_MAX_FDS]);
/*
 * A call that is answered with DONE: returns 0 or the broker's negative errno; value may be NULL.
 */
int peer_done(int fd, struct pando__msg *msg, uint64_t *value);
void peer_close_fds(int fds[PANDO__PROTO_MAX_FDS]);
/* Connect and hello, which must work. */
int peer_new(const struct daemon *d);
extern char peer_error[PANDO__PROTO_TEXT]; /* the sentence of the last ERROR */

#endif
