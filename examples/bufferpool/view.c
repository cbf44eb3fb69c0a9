/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What people see: a live view of a pool, like top, and bars for long work.
 *
 * On a terminal the view takes the alternate screen and draws it anew each second; what was there comes back at the
 * end. Elsewhere it is a line each few seconds. It reads the region and writes nothing to it, so it can be
 * somebody else's process with no right but to read (`bufferpool top`).
 */
#include "cmd.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/size.h"

#define TOP_MAX 64 /* backends that are shown */

struct rates {
	double seconds, lookups, hits, reads, writes, updates, hit_percent;
};

void view_begin(struct view *v, double interval)
{
	memset(v, 0, sizeof(*v));
	v->tty = isatty(STDOUT_FILENO);
	v->interval = interval > 0 ? interval : v->tty ? 1 : 5;
}

void view_end(struct view *v)
{
	if (v->alone)
		printf("\033[?1049l");
	fflush(stdout);
	free(v->seen_hits);
	v->seen_hits = NULL;
	v->alone = false;
}

/* Since the last look. */
static void measure(struct view *v, const struct pool *p, struct rates *r)
{
	const double now = cmd_now();
	double by[POOL_COUNTS];

	r->seconds = v->seen_s > 0 ? now - v->seen_s : now - (double)p->started_ns / 1e9;
	if (r->seconds < 1e-3)
		r->seconds = 1e-3;
	for (int i = 0; i < POOL_COUNTS; i++) {
		const uint64_t sum = pool_sum(p, (enum pool_count)i);

		by[i] = (double)(sum - v->seen[i]) / r->seconds;
		v->seen[i] = sum;
	}
	v->seen_s = now;
	r->hits = by[POOL_HITS];
	r->lookups = by[POOL_HITS] + by[POOL_MISSES];
	r->reads = by[POOL_READS];
	r->writes = by[POOL_WRITES];
	r->updates = by[POOL_UPDATES];
	r->hit_percent = r->lookups > 0 ? 100 * r->hits / r->lookups : 0;
}

/* "1,234,567" */
static const char *grouped(double value, char text[32])
{
	char digits[32];
	const int n = snprintf(digits, sizeof(digits), "%.0f", value < 0 ? 0 : value);
	int to = 0;

	for (int i = 0; i < n; i++) {
		if (i > 0 && (n - i) % 3 == 0)
			text[to++] = ',';
		text[to++] = digits[i];
	}
	text[to] = '\0';
	return text;
}

static void show_line(const struct pool *p, const struct rates *r, const struct pool_usage *u)
{
	char a[32], b[32], c[32], d[32];

	printf("%6.0f s  hit rate %5.1f%%  lookups/s %s  reads/s %s  writes/s %s  updates/s %s  "
	       "pinned %" PRIu64 "  dirty %" PRIu64 "  backends %" PRIu64 "  buried %" PRIu64 "\n",
	       cmd_now() - (double)p->started_ns / 1e9, r->hit_percent, grouped(r->lookups, a),
	       grouped(r->reads, b), grouped(r->writes, c), grouped(r->updates, d), u->pins,
	       u->dirty, u->backends, pando__load_relaxed(&p->buried));
	fflush(stdout);
}

static void show_bar(const char *label, double part, int width)
{
	const int full = (int)(part * width + 0.5);

	printf("%-10s[", label);
	for (int i = 0; i < width; i++)
		putchar(i < full ? '#' : '.');
	printf("] %5.1f%%", 100 * part);
}

static void show_frames(const struct pool *p, const struct rates *r, const struct pool_usage *u)
{
	const double n = (double)p->frames;
	char a[32], b[32];

	show_bar("hit rate", r->hit_percent / 100, 40);
	printf("   %s lookups/s\n", grouped(r->lookups, a));
	show_bar("used", (double)u->linked / n, 40);
	printf("   %s of %s frames\n", grouped((double)u->linked, a), grouped(n, b));
	show_bar("dirty", (double)u->dirty / n, 40);
	printf("   %s\n\n", grouped((double)u->dirty, a));
}

struct line {
	uint32_t record;
	double lookups;
};

static int by_lookups(const void *a, const void *b)
{
	const double x = ((const struct line *)a)->lookups, y = ((const struct line *)b)->lookups;

	return (x < y) - (x > y);
}

static void show_backends(struct view *v, const struct pool *p, double seconds, int rows)
{
	struct line line[TOP_MAX];
	int n = 0;

	if (!v->seen_hits)
		v->seen_hits = calloc(p->records, sizeof(*v->seen_hits));
	for (uint32_t i = 0; v->seen_hits && i < p->records; i++) {
		const struct pool_record *r = &p->record[i];
		const uint64_t all = pando__load_relaxed(&r->count[POOL_HITS]) +
				     pando__load_relaxed(&r->count[POOL_MISSES]);
		const double rate = (double)(all - v->seen_hits[i]) / seconds;

		v->seen_hits[i] = all;
		if (pando__load_relaxed(&r->pid) && n < TOP_MAX)
			line[n++] = (struct line){i, rate};
	}
	qsort(line, (size_t)n, sizeof(line[0]), by_lookups);
	printf("\033[7m%8s %7s %14s %5s %12s %12s \033[0m\n", "PID", "RECORD", "LOOKUPS/S", "PINS",
	       "READS", "UPDATES");
	for (int i = 0; i < n && i < rows; i++) {
		const struct pool_record *r = &p->record[line[i].record];
		unsigned int pins = 0;
		char a[32], b[32], c[32];

		for (unsigned int k = 0; k < POOL_PINS; k++)
			pins += pando__load_relaxed(&r->pin[k]) != 0;
		printf("%8d %7u %14s %5u %12s %12s\n", pando__load_relaxed(&r->pid), line[i].record,
		       grouped(line[i].lookups, a), pins,
		       grouped((double)pando__load_relaxed(&r->count[POOL_READS]), b),
		       grouped((double)pando__load_relaxed(&r->count[POOL_UPDATES]), c));
	}
}

static void show_screen(struct view *v, const struct pool *p, const struct rates *r,
			const struct pool_usage *u)
{
	const double age = cmd_now() - (double)p->started_ns / 1e9;
	struct winsize w = {.ws_row = 24};
	char size[PANDO__SIZE_TEXT], memory[PANDO__SIZE_TEXT], a[32], b[32], c[32];

	(void)ioctl(STDOUT_FILENO, TIOCGWINSZ, &w);
	if (!v->alone)
		printf("\033[?1049h");
	v->alone = true;
	printf("\033[H\033[J%s: %s (%s), %s in memory%s\n", p->path,
	       page_format_name((enum page_format)p->format),
	       pando__size_format(p->pages * PAGE_SIZE, size),
	       pando__size_format(p->frames * PAGE_SIZE, memory), p->direct ? ", O_DIRECT" : "");
	if (p->until_ns) {
		const double all = (double)(p->until_ns - p->started_ns) / 1e9;

		show_bar("time", age < all ? age / all : 1, 40);
		printf("   %.0f of %.0f s\n\n", age, all);
	} else {
		printf("for %.0f s; Ctrl-C ends it\n\n", age);
	}
	printf("reads/s %s   writes/s %s   updates/s %s\n", grouped(r->reads, a),
	       grouped(r->writes, b), grouped(r->updates, c));
	printf("pinned %" PRIu64 "   stripes %" PRIu64 "   backends %" PRIu64 "   buried %" PRIu64
	       "   waits %" PRIu64 "   conflicts %" PRIu64 "\n\n",
	       u->pins, u->stripes, u->backends, pando__load_relaxed(&p->buried),
	       v->seen[POOL_WAITS], v->seen[POOL_CONFLICTS]);
	show_frames(p, r, u);
	show_backends(v, p, r->seconds, (int)w.ws_row - 13);
	fflush(stdout);
}

void view_show(struct view *v, const struct pool *p, bool now)
{
	struct pool_usage u;
	struct rates r;

	if (v->next == 0)
		v->next = cmd_now() + (now ? 0 : v->interval);
	if (!now && cmd_now() < v->next)
		return;
	v->next = cmd_now() + v->interval;
	measure(v, p, &r);
	pool_look(p, &u);
	if (v->tty)
		show_screen(v, p, &r, &u);
	else
		show_line(p, &r, &u);
}

/* --- bars --- */

void bar_begin(struct bar *b, const char *what)
{
	*b = (struct bar){.what = what, .tty = isatty(STDERR_FILENO)};
	b->next = cmd_now() + (b->tty ? 0.2 : 10);
}

bool bar_step(void *bar, uint64_t done, uint64_t total)
{
	struct bar *b = bar;
	const double now = cmd_now(), part = total ? (double)done / (double)total : 1;

	if (cmd_signals)
		return true;
	if (now < b->next)
		return false;
	b->next = now + (b->tty ? 0.1 : 10);
	b->shown = true;
	if (!b->tty) {
		fprintf(stderr, "%s: %.0f%%\n", b->what, 100 * part);
		return false;
	}
	fprintf(stderr, "\r%-24s [", b->what);
	for (int i = 0; i < 40; i++)
		fputc(i < (int)(part * 40) ? '#' : '.', stderr);
	fprintf(stderr, "] %3.0f%%", 100 * part);
	return false;
}

void bar_end(struct bar *b)
{
	if (b->tty && b->shown)
		fprintf(stderr, "\r\033[K");
}
