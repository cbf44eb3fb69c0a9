/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bufferpool run: a pool, processes that use it, and one that looks after them.
 *
 * Each backend is a process that reads pages, and looks at every one that it has pinned; updates some;
 * and now and then holds several at once. The parent kills backends if it was asked to, buries the dead (so would
 * any other), starts new ones, shows the view, and in the end writes everything back, verifies the pool, and
 * reads the file from one end to the other. It answers for what it says at the end: the sum of the pages' versions
 * is the number of updates, however many backends were killed.
 *
 * Ctrl-C asks all to leave and goes the same way to the end; a second one kills backends that do not leave, and one
 * while dirty pages are written back, or the file is read, ends that. If the parent is killed itself, the backends write back and leave.
 */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/size.h"

#define TICK_S 0.01
#define AT_ONCE 3u /* pages that a backend sometimes holds together */

struct child {
	pid_t pid;
};

struct run {
	const struct options *o;
	struct file file;
	struct pando *conn;
	struct pando_region *region;
	struct pool_client client; /* the parent's */
	struct child *child;
	int write_percent;
	struct file_header header; /* as it was before */
	uint64_t dice, kills;
	double kills_due;
	bool writes;
};

static uint64_t dice_of(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull >> 11;
}

/* --- a backend --- */

static volatile sig_atomic_t told; /* SIGTERM: the parent, or its death */

static void be_told(int sig)
{
	(void)sig;
	told = 1;
}

static void change(struct page *fresh, void *arg)
{
	(void)arg;
	page_fill(fresh);
}

static uint64_t pick(const struct run *run, uint64_t dice)
{
	const uint64_t pages = run->file.pages, hot = pages / 5 ? pages / 5 : 1;

	return dice % 100 < run->o->hot ? (dice >> 8) % hot : (dice >> 8) % pages;
}

/* Reads n pages, which it holds at the same time. False: something is wrong. */
static bool read_some(struct run *run, struct pool_client *c, uint64_t *dice, unsigned int n)
{
	bool fine = true;

	for (unsigned int i = 0; i < n; i++) {
		const uint64_t d = dice_of(dice), page = pick(run, d);
		const void *content = pool_pin(c, page, i);

		if (!content) {
			fine = !file_error()[0];
			n = i;
			break;
		}
		/* A look at each; now and then a long one. */
		if (run->file.format == PAGE_OWN && d >> 50
			    ? !page_looks_right(content, page, d >> 20)
			    : file_page_broken(&run->file, page, content) != NULL) {
			file_fail(EUCLEAN, "page %" PRIu64 " was wrong in memory", page);
			pando__add_relaxed(&c->pool->wrong, 1);
			fine = false;
		}
	}
	while (n-- > 0)
		pool_unpin(c, n);
	return fine;
}

static bool work_once(struct run *run, struct pool_client *c, uint64_t *dice)
{
	const uint64_t d = dice_of(dice);

	if ((int)(d % 100) >= run->write_percent)
		return read_some(run, c, dice, d >> 8 & 15 ? 1 : AT_ONCE);
	return pool_update(c, pick(run, d >> 12), change, NULL) == 0 || !file_error()[0];
}

static _Noreturn void backend(struct run *run, pid_t parent, uint64_t seed)
{
	struct pool_client c;

	signal(SIGINT, SIG_IGN); /* a terminal's goes to all of us; the parent decides */
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, be_told);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(CMD_OK);
	if (pool_visit(&c, run->client.pool, run->region, &run->file) < 0 || pool_enter(&c) < 0) {
		if (!told)
			fprintf(stderr, "bufferpool: backend %d: %s\n", (int)getpid(),
				file_error());
		_exit(CMD_FAILED);
	}
	while (!told && !pando__load_relaxed(&c.pool->stop))
		for (int i = 0; i < 16; i++)
			if (!work_once(run, &c, &seed)) {
				fprintf(stderr, "bufferpool: backend %d: %s\n", (int)getpid(),
					file_error());
				pando__store_relaxed(&c.pool->stop, 1u);
				_exit(CMD_WRONG); /* as it is: somebody will bury us */
			}
	if (getppid() != parent && run->writes)
		(void)pool_flush(&c, NULL, NULL); /* nobody else will */
	pool_leave(&c);
	_exit(CMD_OK);
}

/* --- the parent --- */

static int start(struct run *run, struct child *child)
{
	const uint64_t seed = dice_of(&run->dice) | 1;
	const pid_t parent = getpid();

	fflush(NULL);
	child->pid = fork();
	if (child->pid < 0) {
		child->pid = 0;
		return cmd_fail(CMD_FAILED, "fork: %s", strerror(errno));
	}
	if (child->pid == 0)
		backend(run, parent, seed);
	return 0;
}

/* Looks who has ended. Returns how many are left; *status becomes CMD_WRONG or so if one ended badly. */
static unsigned int look_after(struct run *run, bool again, int *status)
{
	unsigned int left = 0;

	for (uint32_t i = 0; i < run->o->backends; i++) {
		struct child *c = &run->child[i];
		int how;

		if (c->pid > 0 && waitpid(c->pid, &how, WNOHANG) == c->pid) {
			c->pid = 0;
			(void)pool_bury_all(&run->client);
			if (WIFEXITED(how) && WEXITSTATUS(how) != 0)
				*status = WEXITSTATUS(how);
			else if (WIFSIGNALED(how) && WTERMSIG(how) != SIGKILL)
				*status = cmd_fail(CMD_WRONG, "a backend died of signal %d",
						   WTERMSIG(how));
		}
		if (c->pid == 0 && again && *status == 0)
			*status = start(run, c);
		left += c->pid > 0;
	}
	return left;
}

static void kill_some(struct run *run, double passed)
{
	run->kills_due += run->o->kills * passed;
	for (; run->kills_due >= 1; run->kills_due -= 1) {
		const struct child *c = &run->child[dice_of(&run->dice) % run->o->backends];

		if (c->pid > 0 && kill(c->pid, SIGKILL) == 0)
			run->kills++;
	}
}

static void end_backends(struct run *run, int *status)
{
	const int signals = cmd_signals;

	pando__store_relaxed(&run->client.pool->stop, 1u);
	while (look_after(run, false, status) > 0) {
		for (uint32_t i = 0; cmd_signals > signals && i < run->o->backends; i++)
			if (run->child[i].pid > 0)
				kill(run->child[i].pid, SIGKILL);
		cmd_nap(TICK_S);
	}
	(void)pool_bury_all(&run->client);
}

static int drive(struct run *run)
{
	struct pool *p = run->client.pool;
	double last = cmd_now();
	struct view v;
	int status = 0;

	view_begin(&v, run->o->interval);
	while (!cmd_signals && status == 0 && !pando__load_relaxed(&p->stop)) {
		const double now = cmd_now();

		if (run->o->seconds > 0 && now * 1e9 >= (double)p->until_ns)
			break;
		kill_some(run, now - last);
		last = now;
		(void)look_after(run, true, &status);
		view_show(&v, p, false);
		cmd_nap(TICK_S);
	}
	end_backends(run, &status);
	view_end(&v);
	if (pando__load_relaxed(&p->wrong))
		status = CMD_WRONG;
	return status;
}

/* Writes everything back and closes the file's books. */
static int finish(struct run *run)
{
	struct pool_client *c = &run->client;
	struct file_header h = run->header;
	struct bar b;
	int rc = pool_enter(c);

	if (rc == 0 && run->writes) {
		bar_begin(&b, "writing back");
		cmd_signals = 0; /* the first one has been obeyed */
		rc = pool_flush(c, bar_step, &b);
		bar_end(&b);
	}
	if (rc == 0 && run->writes) {
		h.closed = 1;
		h.updates += pool_sum(c->pool, POOL_UPDATES);
		rc = file_write_header(&run->file, &h);
	}
	return rc;
}

static void summary(const struct run *run, const struct pool *p, double seconds)
{
	const uint64_t hits = pool_sum(p, POOL_HITS), misses = pool_sum(p, POOL_MISSES);

	printf("%.1f s, %u backends, %" PRIu64 " killed, %" PRIu64 " buried\n", seconds,
	       run->o->backends, run->kills, pando__load_relaxed(&p->buried));
	printf("%" PRIu64 " lookups, hit rate %.1f%%; %" PRIu64 " reads, %" PRIu64
	       " writes; %" PRIu64 " updates, %" PRIu64 " begun again; %" PRIu64
	       " frames collected in %" PRIu64 " grace periods\n",
	       hits + misses, hits + misses ? 100.0 * (double)hits / (double)(hits + misses) : 0,
	       pool_sum(p, POOL_READS), pool_sum(p, POOL_WRITES), pool_sum(p, POOL_UPDATES),
	       pool_sum(p, POOL_CONFLICTS), pool_sum(p, POOL_COLLECTED), pool_sum(p, POOL_GRACES));
}

/* Everything after the backends have gone. */
static int conclude(struct run *run, int status)
{
	struct pool *p = run->client.pool;
	const double seconds = cmd_now() - (double)p->started_ns / 1e9;
	struct census seen;
	struct bar b;
	int rc = finish(run);

	summary(run, p, seconds);
	if (rc < 0)
		return cmd_fail(CMD_FAILED, "not all is written back: %s", file_error());
	/* A client that is in the table has not left yet; validate as a visitor. */
	pool_leave(&run->client);
	if (pool_visit(&run->client, p, run->region, &run->file) < 0)
		return cmd_fail(CMD_FAILED, "%s", file_error());
	if (pool_validate(&run->client) < 0)
		status = cmd_fail(CMD_WRONG, "the pool is not sound: %s", file_error());
	if (run->o->no_check)
		return status;
	bar_begin(&b, "checking the file");
	rc = check_pages(&run->file, &seen, bar_step, &b);
	bar_end(&b);
	if (rc < 0)
		return cmd_fail(rc == -EINTR ? CMD_INTERRUPTED : CMD_FAILED, "%s", file_error());
	if (!check_judge(&run->file, &seen, stdout))
		status = CMD_WRONG;
	return status;
}

/* --- setting up --- */

static int open_file(struct run *run)
{
	const struct options *o = run->o;
	const unsigned int flags = FILE_EXCLUSIVE | (o->buffered ? FILE_BUFFERED : 0);
	struct file_header h = {0};
	uint64_t mended;
	int rc;

	run->write_percent = o->write_percent < 0 ? 10 : o->write_percent;
	run->writes = run->write_percent > 0;
	rc = file_open(&run->file, o->file, flags | (run->writes ? FILE_WRITE : 0));
	if (rc == -EINVAL && run->writes && o->write_percent < 0) {
		run->write_percent = 0;
		run->writes = false;
		rc = file_open(&run->file, o->file, flags);
	}
	if (rc < 0 || !run->writes)
		return rc;
	run->file.sync = o->sync;
	rc = file_mend(&run->file, &mended);
	if (rc == 0)
		rc = file_read_header(&run->file, &h);
	if (rc == 0 && !h.closed) {
		struct census seen;
		struct bar b;

		printf("%s was not closed well: %" PRIu64 " torn pages put back\n", o->file,
		       mended);
		bar_begin(&b, "counting updates");
		rc = check_pages(&run->file, &seen, bar_step, &b);
		bar_end(&b);
		h.updates = seen.versions;
	}
	run->header = h;
	return rc;
}

/* From now on the file's sum is not true, until finish(). */
static int open_books(struct run *run)
{
	struct file_header h = run->header;

	h.closed = 0;
	return run->writes ? file_write_header(&run->file, &h) : 0;
}

static int open_pool(struct run *run)
{
	const struct options *o = run->o;
	const uint64_t least = pool_frames_min(o->backends);
	/* Killed ones keep theirs until they are buried; the parent needs one. */
	const uint32_t records = o->backends * 2 + 2;
	uint64_t frames = o->frames ? o->frames : run->file.pages / 4;
	struct pool *p;
	int rc;

	if (!o->frames && frames < least)
		frames = least;
	if (frames < least || frames >= UINT32_MAX)
		return file_fail(EINVAL,
				 "%u backends need %" PRIu64 " frames at least, not %" PRIu64,
				 o->backends, least, frames);
	if (run->writes && records > run->file.slots)
		return file_fail(EINVAL,
				 "%s has room for %u backends that write (create it with more "
				 "--slots), not for %u",
				 o->file, run->file.slots / 2 - 1, o->backends);
	rc = pando_connect(&run->conn, NULL);
	if (rc == 0)
		rc = pando_region_open(
			run->conn, o->name, PANDO_CREATE | PANDO_EXCL | PANDO_TRANSIENT,
			&(struct pando_region_options){.size = pool_size(frames, records),
						       .backend = o->backend},
			&run->region);
	if (rc < 0)
		return file_fail(-rc, "%s", pando_strerror_last());
	pool_format(pando_region_base(run->region), &run->file, frames, records, o->backends);
	p = pando_region_base(run->region);
	if (o->seconds > 0)
		p->until_ns = p->started_ns + (uint64_t)(o->seconds * 1e9);
	return pool_visit(&run->client, p, run->region, &run->file);
}

static void tell(const struct run *run)
{
	const struct pool *p = run->client.pool;
	char size[PANDO__SIZE_TEXT], memory[PANDO__SIZE_TEXT];
	struct pando_region_stat st;

	pando_region_stat(run->region, &st);
	printf("%s: %s, %s%s; %" PRIu64 " frames, %s, backend %s\n", run->file.path,
	       page_format_name(run->file.format),
	       pando__size_format(run->file.pages * PAGE_SIZE, size),
	       run->file.direct ? ", O_DIRECT" : ", through the page cache", p->frames,
	       pando__size_format(p->frames * PAGE_SIZE, memory), pando_backend_name(st.backend));
	printf("watch it: PANDO_BROKER=%s bufferpool top --name %s\n",
	       pando_broker_address(run->conn), run->o->name);
	fflush(stdout);
}

int cmd_run(const struct options *o)
{
	struct run run = {.o = o, .dice = o->seed * 0x9e3779b97f4a7c15ull | 1};
	int status, rc;

	run.file.fd = run.file.fd_buffered = -1;
	cmd_catch();
	rc = open_file(&run);
	if (rc == 0)
		rc = open_pool(&run);
	if (rc == 0)
		rc = open_books(&run);
	run.child = calloc(o->backends, sizeof(*run.child));
	if (rc < 0 || !run.child) {
		status = cmd_fail(CMD_FAILED, "%s", rc < 0 ? file_error() : "no memory");
	} else {
		tell(&run);
		status = conclude(&run, drive(&run));
	}
	if (run.client.pool)
		pool_leave(&run.client);
	pando_region_close(run.region);
	pando_disconnect(run.conn);
	file_close(&run.file);
	free(run.child);
	return status;
}
