/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The runner of the multi-process tests: a private broker per test, and nothing left over.
 *
 * A test is a function that runs in a process of its own, with a `pandod` of its own that listens
 * in a scratch folder (or none: HARNESS_NO_BROKER). When the function returns, the runner checks
 * that
 *
 *	- the test's process has the descriptors and region mappings that it had before, and no
 *	child;
 *	- the broker has no region and no client but the checker, and supervisor and broker have as
 *	many descriptors and
 *	  region mappings as before (given two seconds to get there);
 *	- the broker ends with 0 on SIGTERM, and no process of the test is left.
 *
 * A failed check ends the test's process at once with a line that says where; the runner kills what
 * it had started and goes on with the next test. Assertions work in the test's children as well:
 * they end the child, with status HARNESS_FAILED, which the test must ask for with harness_join().
 *
 *	static void test_something(struct harness *h)
 *	{
 *		struct pando *p = harness_connect(h);
 *		CHECK(pando_region_open(...) == 0);
 *		...
 *	}
 *	int main(int argc, char **argv)
 *	{
 *		static const struct harness_test tests[] = {{"something", test_something}};
 *		return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
 *	}
 *
 * Arguments of the program: names of tests to run (default: all). The daemon is
 * $PANDO_BROKER_PROGRAM. Exit status: 0, 1 (a test failed), 77 (all were skipped).
 */
#ifndef TESTS_HARNESS_H
#define TESTS_HARNESS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <pando/pando.h>

#define HARNESS_FAILED 99
#define HARNESS_SKIPPED 77
#define HARNESS_ARGS 16

#define HARNESS_NO_BROKER 0x1u /* no broker is started; the test may call harness_start() */
#define HARNESS_KEEPS_REGIONS 0x2u /* regions may be left in the broker at the end */
#define HARNESS_BROKER_DIES 0x4u /* the broker need not be there, or the same, at the end */

struct harness {
	char dir[64]; /* scratch folder, removed at the end */
	char address[108]; /* of the broker */
	pid_t daemon; /* what was started: the supervisor, or the broker without one; 0: none */
	pid_t broker; /* the broker process itself */
	struct pando *checker; /* a connection that the runner keeps */
	unsigned int daemon_fds, broker_fds, broker_maps;
};

struct harness_test {
	const char *name;
	void (*run)(struct harness *h);
	unsigned int flags;
	unsigned int seconds; /* at most; 0: 60 */
	const char *args[HARNESS_ARGS]; /* more options for pandod, ends with NULL */
};

int harness_main(int argc, char **argv, const struct harness_test *tests, size_t count);

/* Starts pandod with these options (NULL: none) beyond --socket, and waits until it is ready. */
void harness_start(struct harness *h, const char *const *args);
/* The same, but tolerates that it does not start: false, and the sentence in text. */
bool harness_try_start(struct harness *h, const char *const *args, char *text, size_t size);
/* Ends it by SIGTERM and expects status 0. */
void harness_stop(struct harness *h);
/*
 * Takes the measure of broker and supervisor against which the end is checked. Done by the runner
 * after starting.
 */
void harness_baseline(struct harness *h);

/* Connects to the test's broker, or fails the test. */
struct pando *harness_connect(struct harness *h);
/* Makes and opens a region of `size` bytes, or fails the test. flags: beyond PANDO_CREATE. */
struct pando_region *harness_region(struct pando *p, const char *name, uint64_t size,
				    unsigned int flags);
/* Waits up to two seconds until the broker has that many clients, its checker included. */
void harness_await_clients(struct harness *h, uint64_t clients);

/* Waits for a child and returns its exit status, or 256 + the signal that ended it. */
int harness_join(pid_t pid);
/* Ends the test, saying that it could not be done here and why. */
void harness_skip(const char *why) __attribute__((noreturn));
void harness_fail(const char *file, int line, const char *fmt, ...)
	__attribute__((noreturn, format(printf, 3, 4)));

/* What another process has. harness_maps() counts mappings whose line in maps contains `text`. */
unsigned int harness_fds(pid_t pid);
unsigned int harness_maps(pid_t pid, const char *text);
/* Mappings of regions' files, of any backend but hugetlb. */
unsigned int harness_regions(pid_t pid);
#define HARNESS_MSHARE "/sys/fs/mshare/" /* in names of msharefs files */
/* What $PANDO_TEST_BACKEND says, or memfd: the backend of regions that ask for none. */
const char *harness_backend(void);
/* $PANDO_TEST_SLOW, or 1: how many times slower than usual this is (sanitizers, emulation). */
unsigned int harness_slow(void);
/* A value of /proc/PID/status ("VmRSS", "VmPTE", ...) in KiB, or -1. pid 0: of /proc/meminfo. */
long harness_kib(pid_t pid, const char *key);
/*
 * KiB of memory in the region files that a process has open: exact, whatever else the machine
 * does.
 */
uint64_t harness_file_kib(pid_t pid);
void harness_sleep_ms(unsigned int ms);
uint64_t harness_now_ns(void);

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition))                                                                  \
			harness_fail(__FILE__, __LINE__, "%s", #condition);                        \
	} while (0)

/* For calls that return a negative errno with a sentence. */
#define CHECK_OK(call)                                                                             \
	do {                                                                                       \
		int rc_ = (call);                                                                  \
		if (rc_ < 0)                                                                       \
			harness_fail(__FILE__, __LINE__, "%s: %s (%s)", #call, strerror(-rc_),     \
				     pando_strerror_last());                                       \
	} while (0)

#define CHECK_INT(expression, value)                                                               \
	do {                                                                                       \
		long long got_ = (long long)(expression), want_ = (long long)(value);              \
		if (got_ != want_)                                                                 \
			harness_fail(__FILE__, __LINE__, "%s is %lld, not %lld (last: %s)",        \
				     #expression, got_, want_, pando_strerror_last());             \
	} while (0)

/* The call fails with -err, and its sentence contains text (NULL: not looked at). */
#define CHECK_ERR(call, err, text)                                                                 \
	do {                                                                                       \
		int rc_ = (call);                                                                  \
		if (rc_ != -(err))                                                                 \
			harness_fail(__FILE__, __LINE__, "%s is %d, not -%s (last: %s)", #call,    \
				     rc_, #err, pando_strerror_last());                            \
		if ((text) && !strstr(pando_strerror_last(), (text) ? (text) : ""))                \
			harness_fail(__FILE__, __LINE__, "%s says \"%s\", not \"%s\"", #call,      \
				     pando_strerror_last(), (text) ? (text) : "");                 \
	} while (0)

#endif
