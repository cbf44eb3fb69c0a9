/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a region costs in page tables, per process, measured.
 *
 * hugetlb: N processes touch the same pages of a region of many GiB. If the kernel shares the PMD
 * pages, then
 *   - a late attacher takes about one fault per GiB, not one per page: the rest is there already;
 *   - PageTables of /proc/meminfo grows by about one 4 KiB page per process (its own PUD page), where unshared
 *     tables would cost one page more per GiB;
 *   - VmPTE of a process does count the shared pages, in each sharer: it is no measure of what is
 *     saved, and this test pins that down, so that nobody takes it for one.
 * mshare (with the argument "mshare", on the patched kernel): the same with 4 KiB pages, of which a
 * late attacher takes no fault at all, and of which VmPTE counts nothing.
 * memfd: the same with 4 KiB pages, for comparison: a page of tables for each 2 MiB, in each
 * process; and with 2 MiB pages, by advice.
 *
 * PageTables is the whole machine's; other programs come and go. The signal is made large against
 * them (100 processes, 132 KiB each if unshared), and the median of five rounds counts.
 *
 * The figures are printed: they are the project's claim. Skips (77) without huge pages.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/backend.h"
#include "pool.h"

#define GIB (1ull << 30)
#define MIB (1ull << 20)
#define SPAN 32ull /* GiB of region */
#define PER_GIB 4ull /* huge pages touched in each GiB */
#define CHILDREN 100
#define ROUNDS 5
#define SMALL (64 * MIB) /* of memfd */

#define CHECK(ok, ...)                                                                             \
	do {                                                                                       \
		if (!(ok)) {                                                                       \
			printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #ok);                     \
			printf(__VA_ARGS__);                                                       \
			printf("\n");                                                              \
			failures++;                                                                \
		}                                                                                  \
	} while (0)

static int failures;
static uint64_t base;

/* What a child tells when it has touched everything. */
struct report {
	uint64_t faults;
	uint64_t vmpte_kb; /* grown by */
	int error;
};

static uint64_t field_kb(const char *path, const char *name)
{
	char line[256];
	uint64_t kb = 0;
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
			kb = strtoull(line + strlen(name) + 1, NULL, 10);
	if (f)
		fclose(f);
	return kb;
}

static uint64_t faults_now(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (uint64_t)u.ru_minflt;
}

static void touch(const struct pando__backend *b, bool readonly)
{
	volatile char *p = (volatile char *)(uintptr_t)base;

	if (b->id == PANDO_BACKEND_HUGETLB) {
		for (uint64_t g = 0; g < SPAN; g++)
			for (uint64_t i = 0; i < PER_GIB; i++)
				if (readonly)
					(void)p[g * GIB + i * b->page_size];
				else
					p[g * GIB + i * b->page_size] = 1;
		return;
	}
	for (uint64_t i = 0; i < SMALL; i += b->page_size)
		if (readonly)
			(void)p[i];
		else
			p[i] = 1;
}

static struct report attach_and_touch(const struct pando__backend *b, int fd, uint64_t size,
				      bool readonly)
{
	struct report r = {0};
	uint64_t pte = field_kb("/proc/self/status", "VmPTE"), before;

	r.error = b->map(fd, base, size, readonly);
	if (r.error)
		return r;
	before = faults_now();
	touch(b, readonly);
	r.faults = faults_now() - before;
	r.vmpte_kb = field_kb("/proc/self/status", "VmPTE") - pte;
	return r;
}

struct child {
	pid_t pid;
	int go, done; /* pipes: closing `go` ends the child */
};

static void child_main(const struct pando__backend *b, int fd, uint64_t size, bool readonly, int go,
		       int done)
{
	struct report r;
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(go, &c, 1) != 1)
		_exit(0);
	r = attach_and_touch(b, fd, size, readonly);
	if (write(done, &r, sizeof(r)) != sizeof(r))
		_exit(1);
	(void)!read(go, &c, 1); /* stay attached until told */
	_exit(0);
}

static bool start(struct child *c, const struct pando__backend *b, int fd, uint64_t size,
		  bool readonly)
{
	int go[2], done[2];

	if (pipe(go) != 0 || pipe(done) != 0)
		return false;
	c->pid = fork();
	if (c->pid == 0) {
		close(go[1]);
		close(done[0]);
		child_main(b, fd, size, readonly, go[0], done[1]);
	}
	close(go[0]);
	close(done[1]);
	c->go = go[1];
	c->done = done[0];
	return c->pid > 0;
}

static struct report run(struct child *c)
{
	struct report r = {.error = -EIO};

	if (write(c->go, "g", 1) != 1 || read(c->done, &r, sizeof(r)) != sizeof(r))
		r.error = -EIO;
	return r;
}

static void stop(struct child *c)
{
	close(c->go);
	close(c->done);
	waitpid(c->pid, NULL, 0);
}

/*
 * PageTables once it has stopped falling: the tables of dead processes are freed some time later.
 */
static uint64_t settled_kb(void)
{
	uint64_t now = field_kb("/proc/meminfo", "PageTables"), before;

	for (int tries = 0; tries < 20; tries++) {
		before = now;
		usleep(50000);
		now = field_kb("/proc/meminfo", "PageTables");
		if (now + 64 >= before)
			break;
	}
	return now;
}

/*
 * Starts n children (later ones inherit earlier ones' pipe ends: each is told to end before it is
 * waited for, last first) and lets one after the other attach. Returns the growth of PageTables in
 * kB per child.
 */
static double measure(const struct pando__backend *b, int fd, uint64_t size, bool readonly, int n,
		      struct report *first, struct report *last)
{
	static struct child children[CHILDREN];
	uint64_t before, after;
	int started = 0, errors = 0;

	while (started < n && start(&children[started], b, fd, size, readonly))
		started++;
	CHECK(started == n, "%d of %d children", started, n);
	before = settled_kb();
	for (int i = 0; i < started; i++) {
		*last = run(&children[i]);
		errors += last->error != 0;
		if (i == 0)
			*first = *last;
	}
	after = field_kb("/proc/meminfo", "PageTables");
	while (started > 0)
		stop(&children[--started]);
	CHECK(errors == 0, "%d children could not attach; the last: %s", errors,
	      strerror(-last->error));
	return ((double)after - (double)before) / n;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(const struct pando__backend *b, int fd, uint64_t size, bool readonly, int n,
		     struct report *first, struct report *last)
{
	double kb[ROUNDS];

	for (int i = 0; i < ROUNDS; i++)
		kb[i] = measure(b, fd, size, readonly, n, first, last);
	qsort(kb, ROUNDS, sizeof(kb[0]), by_value);
	return kb[ROUNDS / 2];
}

static void shares(const struct pando__backend *b, int fd, bool readonly)
{
	const uint64_t pages = SPAN * PER_GIB;
	struct report first, late;
	double kb = median(b, fd, SPAN * GIB, readonly, CHILDREN, &first, &late);

	printf("hugetlb%s, %llu GiB, %" PRIu64 " pages: faults of the first %" PRIu64
	       ", of a late one %" PRIu64 "; VmPTE +%" PRIu64
	       " kB; PageTables +%.1f kB per process (unshared: %llu)\n",
	       readonly ? ", readers" : "", SPAN, pages, first.faults, late.faults, late.vmpte_kb,
	       kb, 4 * (SPAN + 1));
	CHECK(first.faults >= pages, "%" PRIu64 " faults of the first attacher", first.faults);
	CHECK(late.faults <= SPAN + SPAN / 4, "%" PRIu64 " faults for %llu GiB", late.faults, SPAN);
	CHECK(kb < (double)(SPAN + 1), "the tables are not shared: %.1f kB per process", kb);
	CHECK(late.vmpte_kb >= 4 * SPAN, "VmPTE counts shared pages in each sharer: %" PRIu64,
	      late.vmpte_kb);
}

/* Returns false if the pool was emptied by others meanwhile. */
static bool hugetlb_shares(void)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_HUGETLB);
	int fd, ro;

	if (b->create("test", base, SPAN * GIB, &fd) != 0) {
		CHECK(false, "%s", pando_strerror_last());
		return true;
	}
	for (uint64_t g = 0; g < SPAN; g++)
		if (b->commit(fd, g * GIB, PER_GIB * b->page_size) != 0) {
			printf("skipped: somebody else took the huge pages: %s\n",
			       pando_strerror_last());
			close(fd);
			return false;
		}
	shares(b, fd, false);
	ro = b->reopen_readonly(fd);
	shares(b, ro, true); /* readers share among themselves: their mappings have other flags */
	close(ro);
	close(fd);
	return true;
}

static void memfd_does_not(void)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_MEMFD);
	struct report first, late;
	char policy[16] = "";
	double kb;
	int fd;

	if (b->create("test", base, GIB, &fd) != 0 || b->commit(fd, 0, SMALL) != 0) {
		CHECK(false, "%s", pando_strerror_last());
		return;
	}
	kb = measure(b, fd, GIB, false, 20, &first, &late);
	printf("memfd, %llu MiB: each attacher %" PRIu64 " faults; VmPTE +%" PRIu64
	       " kB; PageTables +%.1f kB per process\n",
	       SMALL / MIB, late.faults, late.vmpte_kb, kb);
	pando__read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", policy,
			   sizeof(policy));
	if (strcmp(policy, "never") == 0) {
		CHECK(late.faults >= SMALL / b->page_size, "%" PRIu64 " faults", late.faults);
		CHECK(late.vmpte_kb >= SMALL / b->page_size * 8 / 1024, "%" PRIu64 " kB",
		      late.vmpte_kb);
	}
	close(fd);
}

#define SHMEM_POLICY "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static bool set_policy(const char *word)
{
	FILE *f = fopen(SHMEM_POLICY, "we");
	bool ok = f && fputs(word, f) >= 0;

	return f && fclose(f) == 0 && ok;
}

/*
 * Where the system permits 2 MiB pages by advice, memfd regions get them: one entry and one fault
 * for each.
 */
static void memfd_takes_advice(void)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_MEMFD);
	struct report first, late;
	char policy[16] = "";
	int fd;

	if (!pando__read_choice(SHMEM_POLICY, policy, sizeof(policy)) ||
	    strcmp(policy, "never") != 0 || !set_policy("advise")) {
		printf("memfd with advice: not tried, the policy is \"%s\"\n", policy);
		return;
	}
	if (b->create("test", base, GIB, &fd) == 0) {
		CHECK(b->commit(fd, 0, SMALL) == 0, "%s", pando_strerror_last());
		measure(b, fd, GIB, false, 2, &first, &late);
		printf("memfd with advice, %llu MiB: each attacher %" PRIu64
		       " faults; VmPTE +%" PRIu64 " kB\n",
		       SMALL / MIB, late.faults, late.vmpte_kb);
		/* Memory may be too fragmented for some. */
		CHECK(late.faults < SMALL / b->page_size / 4, "%" PRIu64 " faults", late.faults);
		close(fd);
	}
	CHECK(set_policy(policy), "could not restore %s", SHMEM_POLICY);
}

/*
 * The region's tables are there once, for writers and for readers; what an attacher adds is the
 * page that holds its link, and what the process needs anyway.
 */
static void mshare_shares(const struct pando__backend *b, int fd, bool readonly)
{
	struct report first, late;
	double kb = median(b, fd, GIB, readonly, CHILDREN, &first, &late);

	printf("mshare%s, %llu MiB of 4 KiB pages: faults of the first %" PRIu64
	       ", of a late one %" PRIu64 "; VmPTE +%" PRIu64
	       " kB; PageTables +%.1f kB per process (unshared: %llu)\n",
	       readonly ? ", readers" : "", SMALL / MIB, first.faults, late.faults, late.vmpte_kb,
	       kb, SMALL / 4096 * 8 / 1024);
	CHECK(late.faults <= 1, "%" PRIu64 " faults of a late attacher", late.faults);
	CHECK(kb <= 8, "the tables are not shared: %.1f kB per process", kb);
	CHECK(late.vmpte_kb <= 8, "VmPTE counts linked tables: %" PRIu64, late.vmpte_kb);
}

static int mshare(void)
{
	const struct pando__backend *b = pando__backend_find(PANDO_BACKEND_MSHARE);
	struct pando__backend_probe probe;
	int fd, ro;

	b->probe(&probe);
	if (!probe.usable) {
		printf("skipped: %s\n", probe.why);
		return 77;
	}
	if (b->create("test", base, GIB, &fd) != 0 || b->commit(fd, 0, SMALL) != 0) {
		CHECK(false, "%s", pando_strerror_last());
		return 1;
	}
	mshare_shares(b, fd, false);
	ro = b->reopen_readonly(fd);
	mshare_shares(b, ro, true);
	close(ro);
	close(fd);
	memfd_does_not();
	return failures > 0;
}

int main(int argc, char **argv)
{
	bool shared;

	base = test_base();
#ifdef __SANITIZE_ADDRESS__
	printf("skipped: AddressSanitizer's shadow has page tables and faults of its own\n");
	return 77;
#endif
	if (argc > 1 && strcmp(argv[1], "mshare") == 0)
		return mshare();
	if (!pool_take(SPAN * PER_GIB))
		return 77;
	shared = hugetlb_shares();
	pool_give_back();
	memfd_does_not();
	memfd_takes_advice();
	return failures > 0 ? 1 : shared ? 0 : 77;
}
