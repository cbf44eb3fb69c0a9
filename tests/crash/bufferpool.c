/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * examples/bufferpool, and death for those who use it: at every injection point that its sources have, at random
 * moments, in a write that is torn, and while they bury each other. After each death the record of the dead is
 * empty; in the end no frame is pinned or owned, no page is torn in memory or in the file, and the versions of all
 * pages add up to the updates that were counted.
 */
#include "harness.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "bufferpool_points.h"
#include "bufferpool.h"

#define PAGES 400u
#define BACKENDS 4u
#define RECORDS 16u
#define ENOUGH 1000u /* updates: more than all frames, a few times over */
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct world {
	struct harness *h;
	char path[128];
	struct file file;
	struct pando *conn;
	struct pando_region *region;
	struct pool_client visitor;
	struct pool *pool;
};

static void open_world(struct world *w, struct harness *h, uint64_t frames)
{
	memset(w, 0, sizeof(*w));
	w->h = h;
	snprintf(w->path, sizeof(w->path), "%s/data", h->dir);
	CHECK_INT(file_create(w->path, PAGES, 32, NULL, NULL), 0);
	CHECK_INT(file_open(&w->file, w->path, FILE_WRITE | FILE_EXCLUSIVE), 0);
	w->conn = harness_connect(h);
	w->region = harness_region(w->conn, "pool", pool_size(frames, RECORDS), PANDO_TRANSIENT);
	pool_format(pando_region_base(w->region), &w->file, frames, RECORDS, BACKENDS);
	w->pool = pool_in(w->region);
	CHECK(w->pool && pool_visit(&w->visitor, w->pool, w->region, &w->file) == 0);
}

/* Nobody is working any more. */
static void verify(struct world *w)
{
	uint64_t versions = 0;
	struct page *p = file_buffer(1);

	(void)pool_bury_all(&w->visitor);
	CHECK_INT(pool_enter(&w->visitor), 0);
	CHECK_INT(pool_flush(&w->visitor, NULL, NULL), 0);
	pool_leave(&w->visitor);
	CHECK_INT(pool_visit(&w->visitor, w->pool, w->region, &w->file), 0);
	if (pool_validate(&w->visitor) < 0)
		harness_fail(__FILE__, __LINE__, "%s", file_error());
	for (uint64_t i = 0; i < PAGES; i++) {
		const char *why;

		CHECK_INT(file_read(&w->file, i, p), 0);
		why = file_page_broken(&w->file, i, p);
		if (why)
			harness_fail(__FILE__, __LINE__, "page %d: %s", (int)i, why);
		versions += p->version;
	}
	free(p);
	CHECK_INT(versions, pool_sum(w->pool, POOL_UPDATES));
	CHECK_INT(w->pool->wrong, 0);
}

static void close_world(struct world *w)
{
	pool_leave(&w->visitor);
	CHECK_OK(pando_region_close(w->region));
	pando_disconnect(w->conn);
	file_close(&w->file);
	CHECK(unlink(w->path) == 0);
}

/* --- those who die --- */

static uint64_t dice(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull >> 11;
}

static void change(struct page *fresh, void *arg)
{
	(void)arg;
	page_fill(fresh);
}

static void look(struct pool_client *c, uint64_t page, const void *content)
{
	if (!content)
		return; /* the pool is to stop */
	if (page_broken(PAGE_OWN, content, page)) {
		fprintf(stderr, "page %d is torn in memory\n", (int)page);
		pando__add_relaxed(&c->pool->wrong, 1);
	}
}

/* Everything that a backend does, leaving and entering included, until it is told to stop. */
static void work(struct world *w, uint64_t seed)
{
	uint64_t state = seed | 1;

	while (!pando__load_relaxed(&w->pool->stop)) {
		struct pool_client c;

		CHECK_INT(pool_visit(&c, w->pool, w->region, &w->file), 0);
		CHECK_INT(pool_enter(&c), 0);
		for (int i = 0; i < 300 && !pando__load_relaxed(&w->pool->stop); i++) {
			const uint64_t d = dice(&state), page = (d >> 8) % PAGES;

			if (d % 4 == 0) {
				(void)pool_update(&c, page, change, NULL);
			} else {
				look(&c, page, pool_pin(&c, page, 0));
				look(&c, page / 2, pool_pin(&c, page / 2, 1));
				pool_unpin(&c, 0);
				pool_unpin(&c, 1);
			}
		}
		pool_leave(&c);
	}
}

static pid_t start(struct world *w, const char *point, const char *action, unsigned int at)
{
	static uint64_t seed = 88172645463325252ull;
	const uint64_t mine = dice(&seed);
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		char list[96];

		signal(SIGTERM, SIG_DFL);
		snprintf(list, sizeof(list), "%s=%s@%u", point, action, at);
		pando__inject_arm(point ? list : "");
		work(w, mine);
		_exit(0);
	}
	return pid;
}

/* Waits until it has died at its point; fails if it does not come there. */
static void await_death(pid_t pid, const char *point)
{
	const uint64_t end = harness_now_ns() + 60000000000ull * harness_slow();
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (harness_now_ns() > end)
			harness_fail(__FILE__, __LINE__, "nobody comes to %s", point);
		harness_sleep_ms(1);
	}
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static bool named(const char *point, const char *prefix)
{
	return strncmp(point, prefix, strlen(prefix)) == 0;
}

static void stop_all(struct world *w, const pid_t *pids, unsigned int n)
{
	pando__store_relaxed(&w->pool->stop, 1u);
	for (unsigned int i = 0; i < n; i++)
		CHECK_INT(harness_join(pids[i]), 0);
	pando__store_relaxed(&w->pool->stop, 0u);
}

/* At each point, one after the other, while two others go on and bury. */
static void test_every_point(struct harness *h)
{
	struct world w;
	pid_t others[2];

	if (COUNT(bufferpool_points) < 2)
		harness_skip("built without injection points");
	open_world(&w, h, pool_frames_min(BACKENDS));
	for (unsigned int i = 0; i < 2; i++)
		others[i] = start(&w, NULL, "", 0);
	for (unsigned int i = 0; i < COUNT(bufferpool_points); i++) {
		const char *point = bufferpool_points[i];

		if (named(point, "pool.bury."))
			continue;
		for (unsigned int at = 1; at < 30; at += 13)
			await_death(start(&w, point, "kill", at), point);
	}
	for (unsigned int at = 1; at < 5; at++)
		await_death(start(&w, "pool.write.torn", "fail", at), "pool.write.torn");
	stop_all(&w, others, 2);
	verify(&w);
	close_world(&w);
}

/* One that buries is killed as well, at each of its points; then the next one. */
static bool bury_and_die(struct world *w, const char *victim, const char *point)
{
	char list[96];
	pid_t pid;
	int status;

	await_death(start(w, victim, "kill", 3), victim);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct pool_client c;

		snprintf(list, sizeof(list), "%s=kill", point);
		CHECK_INT(pool_visit(&c, w->pool, w->region, &w->file), 0);
		CHECK_OK(pando_reader_register(w->region));
		pando__inject_arm(list);
		(void)pool_bury_all(&c);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) ||
	      (WIFEXITED(status) && WEXITSTATUS(status) == 0));
	verify(w);
	return WIFSIGNALED(status);
}

static void test_buried_by_the_dead(struct harness *h)
{
	static const char *const victims[] = {"pool.write.intent", "pool.update.replaced",
					      "pool.update.published", "pool.load.linked"};
	struct world w;

	if (COUNT(bufferpool_points) < 2)
		harness_skip("built without injection points");
	open_world(&w, h, pool_frames_min(BACKENDS));
	for (unsigned int i = 0; i < COUNT(bufferpool_points); i++) {
		bool died = false;

		if (!named(bufferpool_points[i], "pool.bury."))
			continue;
		for (unsigned int k = 0; k < COUNT(victims); k++)
			died |= bury_and_die(&w, victims[k], bufferpool_points[i]);
		if (!died)
			harness_fail(__FILE__, __LINE__, "nobody comes to %s",
				     bufferpool_points[i]);
	}
	close_world(&w);
}

/* Pages of the file that are torn now. */
static unsigned int torn_pages(const struct world *w)
{
	struct page *p = file_buffer(1);
	unsigned int torn = 0;

	for (uint64_t i = 0; i < PAGES; i++) {
		CHECK_INT(file_read(&w->file, i, p), 0);
		torn += file_page_broken(&w->file, i, p) != NULL;
	}
	free(p);
	return torn;
}

/* Who buries writes the page again, at once. */
static void test_torn_write_is_written_again(struct harness *h)
{
	struct world w;

	if (COUNT(bufferpool_points) < 2)
		harness_skip("built without injection points");
	open_world(&w, h, pool_frames_min(BACKENDS));
	for (unsigned int at = 1; at < 10; at += 4) {
		await_death(start(&w, "pool.write.torn", "fail", at), "pool.write.torn");
		CHECK_INT(torn_pages(&w), 1);
		CHECK_INT(pool_bury_all(&w.visitor), 1);
		CHECK_INT(torn_pages(&w), 0);
	}
	verify(&w);
	close_world(&w);
}

/* Nobody is left to bury, or to write again: the file alone must be enough. */
static void test_all_die_in_a_torn_write(struct harness *h)
{
	uint64_t mended;
	struct world w;

	if (COUNT(bufferpool_points) < 2)
		harness_skip("built without injection points");
	open_world(&w, h, pool_frames_min(BACKENDS));
	await_death(start(&w, "pool.write.torn", "fail", 7), "pool.write.torn");
	CHECK_INT(torn_pages(&w), 1);
	CHECK_INT(file_mend(&w.file, &mended), 0);
	CHECK_INT(mended, 1);
	CHECK_INT(torn_pages(&w), 0);
	verify(&w); /* and the pool goes on from there all the same */
	close_world(&w);
}

/* At random moments; only the others bury. */
static void test_random_deaths(struct harness *h)
{
	uint64_t state = 4711;
	pid_t pids[BACKENDS];
	struct world w;

	open_world(&w, h, pool_frames_min(BACKENDS));
	for (unsigned int i = 0; i < BACKENDS; i++)
		pids[i] = start(&w, NULL, "", 0);
	for (unsigned int i = 0; i < 150; i++) {
		const unsigned int k = (unsigned int)(dice(&state) % BACKENDS);

		harness_sleep_ms((unsigned int)(dice(&state) % 20));
		CHECK(kill(pids[k], SIGKILL) == 0);
		CHECK_INT(harness_join(pids[k]), 256 + SIGKILL);
		pids[k] = start(&w, NULL, "", 0);
	}
	stop_all(&w, pids, BACKENDS);
	verify(&w);
	CHECK(w.pool->buried > 0);
	close_world(&w);
}

/* --- those who live --- */

/* A pinned version stays as it was while the page goes on, and its frame comes back afterwards. */
static void test_versions(struct harness *h)
{
	const struct page *old, *fresh;
	struct pool_client c;
	struct pool_usage u;
	struct world w;

	open_world(&w, h, pool_frames_min(BACKENDS));
	CHECK_INT(pool_visit(&c, w.pool, w.region, &w.file), 0);
	CHECK_INT(pool_enter(&c), 0);
	old = pool_pin(&c, 7, 0);
	CHECK(old && old->version == 0);
	for (int i = 0; i < 1000; i++) /* many more than there are frames */
		CHECK_INT(pool_update(&c, 7, change, NULL), 0);
	CHECK_INT(old->version, 0);
	CHECK(!page_broken(PAGE_OWN, old, 7));
	fresh = pool_pin(&c, 7, 1);
	CHECK(fresh != old && fresh->version == 1000);
	pool_look(w.pool, &u);
	CHECK_INT(u.pins, 2);
	for (uint64_t i = 0; i < PAGES; i++) { /* everything is evicted but what is pinned */
		CHECK(pool_pin(&c, i, 2));
		pool_unpin(&c, 2);
	}
	CHECK(!page_broken(PAGE_OWN, old, 7) && old->version == 0);
	CHECK(!page_broken(PAGE_OWN, fresh, 7) && fresh->version == 1000);
	pool_unpin(&c, 0);
	pool_unpin(&c, 1);
	CHECK(!pool_pin(&c, PAGES, 0));
	CHECK(strstr(file_error(), "no page 400"));
	pool_leave(&c);
	verify(&w);
	close_world(&w);
}

/*
 * Starts a backend that runs something, and waits until it has stopped: by itself, or at the point of
 * `inject`, if not NULL, which it does not come to before.
 */
static pid_t start_and_stop(struct world *w, const char *inject, void (*run)(struct pool_client *c))
{
	const pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (pid == 0) {
		struct pool_client c;

		CHECK_INT(pool_visit(&c, w->pool, w->region, &w->file), 0);
		CHECK_INT(pool_enter(&c), 0);
		CHECK(pool_pin(&c, 3, 0));
		pool_unpin(&c, 0);
		pando__inject_arm(inject ? inject : "");
		run(&c);
		pool_leave(&c);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	return pid;
}

static void stop_with_pin(struct pool_client *c)
{
	const struct page *p = pool_pin(c, 3, 0);

	CHECK(p && p->version == 0);
	raise(SIGSTOP);
	CHECK(!page_broken(PAGE_OWN, p, 3) && p->version == 0);
	pool_unpin(c, 0);
}

/* A stopped process is not dead: it keeps its pin, and finds its page as it was. */
static void test_stopped_is_not_dead(struct harness *h)
{
	struct pool_usage u;
	struct world w;
	pid_t pid, other;

	open_world(&w, h, pool_frames_min(BACKENDS));
	pid = start_and_stop(&w, NULL, stop_with_pin);
	CHECK_INT(pool_bury_all(&w.visitor), 0);
	pool_look(w.pool, &u);
	CHECK_INT(u.pins, 1);
	CHECK_INT(u.backends, 1);
	other = start(&w, NULL, "", 0);
	while (pool_sum(w.pool, POOL_UPDATES) < 3000)
		harness_sleep_ms(1);
	CHECK(kill(pid, SIGCONT) == 0);
	CHECK_INT(harness_join(pid), 0);
	stop_all(&w, &other, 1);
	verify(&w);
	close_world(&w);
}

static void stop_with_all_pins(struct pool_client *c)
{
	for (unsigned int i = 0; i < POOL_PINS_USER; i++)
		CHECK(pool_pin(c, i, i));
	raise(SIGSTOP);
	_exit(1);
}

/* What a killed backend had pinned is not pinned any more as soon as it is buried. */
static void test_pins_of_the_dead(struct harness *h)
{
	struct pool_usage u;
	struct world w;
	pid_t pid;

	open_world(&w, h, pool_frames_min(BACKENDS));
	pid = start_and_stop(&w, NULL, stop_with_all_pins);
	pool_look(w.pool, &u);
	CHECK_INT(u.pins, POOL_PINS_USER);
	CHECK(kill(pid, SIGKILL) == 0);
	CHECK_INT(harness_join(pid), 256 + SIGKILL);
	CHECK_INT(pool_bury_all(&w.visitor), 1);
	pool_look(w.pool, &u);
	CHECK_INT(u.pins, 0);
	CHECK_INT(u.owned, 0);
	CHECK_INT(u.backends, 0);
	verify(&w);
	close_world(&w);
}

static void pin_again(struct pool_client *c)
{
	const struct page *p = pool_pin(c, 3, 0);

	CHECK(p && !page_broken(PAGE_OWN, p, 3) && p->version == 0);
	pool_unpin(c, 0);
}

static void pin_all(struct pool_client *c)
{
	for (uint64_t i = 0; i < PAGES; i++) {
		CHECK(pool_pin(c, i, 0));
		pool_unpin(c, 0);
	}
}

static void update_all(struct pool_client *c)
{
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_INT(pool_update(c, i, change, NULL), 0);
}

/*
 * A backend is stopped where it relies on the frame that it looks at being the one that it was: nobody may use
 * the frame again, whatever happens to its page meanwhile, until it has gone on.
 */
static void stopped_in_section(struct harness *h, const char *inject,
			       void (*run)(struct pool_client *c))
{
	uint64_t updates = 0;
	struct world w;
	unsigned int ms;
	pid_t pid, other;

	if (COUNT(bufferpool_points) < 2)
		harness_skip("built without injection points");
	open_world(&w, h, pool_frames_min(BACKENDS));
	pid = start_and_stop(&w, inject, run);
	other = start(&w, NULL, "", 0);
	/* It comes to a stand when it has no frames left, or else goes on and on. */
	for (ms = 0; ms < 300; ms++) {
		if (pool_sum(w.pool, POOL_UPDATES) != updates)
			ms = 0;
		updates = pool_sum(w.pool, POOL_UPDATES);
		CHECK(updates < ENOUGH);
		harness_sleep_ms(1);
	}
	CHECK(kill(pid, SIGCONT) == 0);
	CHECK_INT(harness_join(pid), 0);
	while (pool_sum(w.pool, POOL_UPDATES) < ENOUGH)
		harness_sleep_ms(1);
	stop_all(&w, &other, 1);
	verify(&w);
	close_world(&w);
}

static void test_found_and_not_yet_pinned(struct harness *h)
{
	stopped_in_section(h, "pool.pin.found=stop", pin_again);
}

static void test_removed_and_not_yet_claimed(struct harness *h)
{
	stopped_in_section(h, "pool.evict.removed=stop", pin_all);
}

static void test_replaced_and_not_yet_claimed(struct harness *h)
{
	stopped_in_section(h, "pool.evict.removed=stop", update_all);
}

/* As many backends as there are records; the next one is told, and finds room when one has died. */
static void test_records(struct harness *h)
{
	pid_t pids[RECORDS];
	struct pool_client c;
	struct pool_usage u;
	struct world w;

	if (COUNT(bufferpool_points) < 2)
		harness_skip("built without injection points");
	open_world(&w, h, pool_frames_min(RECORDS));
	for (unsigned int i = 0; i < RECORDS; i++)
		pids[i] = start(&w, "pool.enter.locked", "stop", 1);
	for (unsigned int i = 0; i < RECORDS; i++) {
		int status;

		CHECK(waitpid(pids[i], &status, WUNTRACED) == pids[i] && WIFSTOPPED(status));
	}
	CHECK_INT(pool_visit(&c, w.pool, w.region, &w.file), 0);
	CHECK_INT(pool_enter(&c), -EUSERS);
	CHECK(kill(pids[5], SIGKILL) == 0);
	CHECK_INT(harness_join(pids[5]), 256 + SIGKILL);
	CHECK_INT(pool_enter(&c), 0);
	CHECK(c.index < RECORDS); /* that of the dead */
	pool_look(w.pool, &u);
	CHECK_INT(u.backends, 1);
	pool_leave(&c);
	for (unsigned int i = 0; i < RECORDS; i++)
		if (i != 5) {
			CHECK(kill(pids[i], SIGKILL) == 0);
			CHECK_INT(harness_join(pids[i]), 256 + SIGKILL);
		}
	verify(&w);
	close_world(&w);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{"versions", test_versions},
		{"stopped_is_not_dead", test_stopped_is_not_dead},
		{"pins_of_the_dead", test_pins_of_the_dead},
		{"found_and_not_yet_pinned", test_found_and_not_yet_pinned},
		{"removed_and_not_yet_claimed", test_removed_and_not_yet_claimed},
		{"replaced_and_not_yet_claimed", test_replaced_and_not_yet_claimed},
		{"records", test_records},
		{"every_point", test_every_point, .seconds = 300},
		{"buried_by_the_dead", test_buried_by_the_dead, .seconds = 120},
		{"torn_write_is_written_again", test_torn_write_is_written_again},
		{"all_die_in_a_torn_write", test_all_die_in_a_torn_write},
		{"random_deaths", test_random_deaths, .seconds = 120},
	};

	return harness_main(argc, argv, tests, COUNT(tests));
}
