/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bufferpool create, check and top: what needs no backends.
 *
 * A file that was closed well says in its header how many updates its pages have seen; the sum of their
 * versions must be the same: an update that was counted and lost, or done and not counted, shows there. A file
 * whose pool was killed, parent and all, has no such number: its pages must be whole, that is all.
 */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/size.h"

int check_pages(const struct file *f, struct census *seen, file_progress_fn progress, void *arg)
{
	struct page *p = file_buffer(1);
	int rc = 0;

	memset(seen, 0, sizeof(*seen));
	if (!p)
		return file_fail(ENOMEM, "no memory");
	for (; rc == 0 && seen->pages < f->pages; seen->pages++) {
		const char *why;

		rc = file_read(f, seen->pages, p);
		if (rc < 0)
			break;
		why = file_page_broken(f, seen->pages, p);
		if (why && seen->broken++ == 0)
			snprintf(seen->first, sizeof(seen->first), "page %" PRIu64 ": %s",
				 seen->pages, why);
		else if (!why && f->format == PAGE_OWN)
			seen->versions += p->version;
		if (progress && seen->pages % 256 == 0 && progress(arg, seen->pages, f->pages))
			rc = file_fail(EINTR, "interrupted");
	}
	free(p);
	return rc;
}

bool check_judge(const struct file *f, const struct census *seen, FILE *out)
{
	struct file_header h = {0};

	if (seen->broken) {
		fprintf(out, "%" PRIu64 " of %" PRIu64 " pages are broken; %s\n", seen->broken,
			seen->pages, seen->first);
		return false;
	}
	if (f->format != PAGE_OWN) {
		fprintf(out, "%" PRIu64 " pages, %s\n", seen->pages,
			f->format == PAGE_RAW ? "of which nothing is known" : "all whole");
		return true;
	}
	if (file_read_header(f, &h) < 0) {
		fprintf(out, "%s\n", file_error());
		return false;
	}
	if (h.closed && h.updates != seen->versions) {
		fprintf(out,
			"%" PRIu64 " updates were counted, the pages' versions add up to %" PRIu64
			"\n",
			h.updates, seen->versions);
		return false;
	}
	fprintf(out, "%" PRIu64 " pages, all whole; %" PRIu64 " updates%s\n", seen->pages,
		seen->versions, h.closed ? ", as counted" : "; it was not closed well");
	return true;
}

int cmd_create(const struct options *o)
{
	char size[PANDO__SIZE_TEXT];
	struct bar b;
	int rc;

	cmd_catch();
	bar_begin(&b, "making pages");
	rc = file_create(o->file, o->size / PAGE_SIZE, o->slots, bar_step, &b);
	bar_end(&b);
	if (rc < 0)
		return cmd_fail(rc == -EINTR ? CMD_INTERRUPTED : CMD_FAILED, "%s", file_error());
	printf("%s: %" PRIu64 " pages, %s\n", o->file, o->size / PAGE_SIZE,
	       pando__size_format(o->size / PAGE_SIZE * PAGE_SIZE, size));
	return CMD_OK;
}

int cmd_check(const struct options *o)
{
	struct census seen;
	struct file f;
	struct bar b;
	uint64_t mended;
	bool well;
	int rc;

	cmd_catch();
	rc = file_open(&f, o->file,
		       FILE_EXCLUSIVE | (o->repair ? FILE_WRITE : 0) |
			       (o->buffered ? FILE_BUFFERED : 0));
	if (rc < 0)
		return cmd_fail(CMD_FAILED, "%s", file_error());
	if (o->repair) {
		rc = file_mend(&f, &mended);
		if (rc == 0)
			printf("%s: %" PRIu64 " torn pages put back\n", o->file, mended);
	}
	bar_begin(&b, "checking pages");
	if (rc == 0)
		rc = check_pages(&f, &seen, bar_step, &b);
	bar_end(&b);
	if (rc < 0) {
		file_close(&f);
		return cmd_fail(rc == -EINTR ? CMD_INTERRUPTED : CMD_FAILED, "%s", file_error());
	}
	printf("%s (%s): ", o->file, page_format_name(f.format));
	well = check_judge(&f, &seen, stdout);
	if (!well && f.format == PAGE_OWN && !o->repair)
		printf("`bufferpool check --repair %s` puts back what the double-write area has\n",
		       o->file);
	file_close(&f);
	return well ? CMD_OK : CMD_WRONG;
}

int cmd_top(const struct options *o)
{
	struct pando_region *r = NULL;
	const struct pool *p = NULL;
	struct pando *conn;
	struct view v;
	int rc = pando_connect(&conn, NULL);

	if (rc < 0)
		return cmd_fail(CMD_FAILED, "%s", pando_strerror_last());
	rc = pando_region_open(conn, o->name, PANDO_READONLY, NULL, &r);
	if (rc == -ENOENT)
		rc = cmd_fail(
			CMD_FAILED,
			"the broker at %s has no region \"%s\"; `bufferpool run` says what to "
			"set PANDO_BROKER to",
			pando_broker_address(conn), o->name);
	else if (rc < 0)
		rc = cmd_fail(CMD_FAILED, "%s", pando_strerror_last());
	else if (!(p = pool_in(r)))
		rc = cmd_fail(CMD_FAILED, "%s", file_error());
	if (p) {
		cmd_catch();
		view_begin(&v, o->interval);
		do {
			view_show(&v, p, o->once);
			cmd_nap(0.05);
		} while (!o->once && !cmd_signals && !pando__load_relaxed(&p->stop));
		view_end(&v);
		if (!o->once && !cmd_signals)
			printf("the pool has ended\n");
	}
	pando_region_close(r);
	pando_disconnect(conn);
	return rc;
}
