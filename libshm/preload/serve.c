/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * From a request for shared memory to a region, and back.
 *
 * One seat at the broker per process, taken at the first mapping that is worth it, so that the many
 * small programs that a server starts are no clients. A region is transient, mode 0600, named
 * PREFIX-PID-N; N goes on when a name is taken (another pid namespace has the same pid).
 *
 * What the program asked for and a region does not do by itself is done here: protection other than
 * read and write, MAP_POPULATE, MAP_LOCKED, and no access behind the end (with 4 KiB pages; with
 * huge pages the reserve stays accessible, since a mapping that is not one piece per GiB has page
 * tables of its own).
 *
 * Whatever fails: everything is undone, one line says why (with -v), and the program gets a plain
 * mapping. A broker that does not answer in time is left alone for a minute, so that a program is
 * not held up twice.
 *
 * Giving back: pando_region_close() unmaps the whole region. By then the shim has unmapped what was
 * the region's, and other mappings may lie in between. The library's munmap() comes through the
 * shim (it is preloaded), which ignores that one call; where the library's calls do not come by,
 * such a region stays open until the process ends.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/size.h"
#include "preload/shim.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif
#define HUGE (2u << 20)
#define NAMES 32 /* names to try */
#define RETRY_S 60

static pthread_mutex_t serving = PTHREAD_MUTEX_INITIALIZER;
static struct pando *seat; /* under serving */
static time_t retry_at; /* under serving */
static unsigned int serial;

static time_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

/* A broker that we have waited for in vain is not asked again soon. */
static int note(int rc)
{
	if (rc == -ETIMEDOUT)
		retry_at = now_s() + RETRY_S;
	return rc;
}

static int take_seat(void)
{
	int rc;

	if (seat)
		return 0;
	rc = pando_connect(&seat, NULL);
	if ((rc == -ECONNREFUSED || rc == -ENOENT) && shim_options.embedded &&
	    getenv("PANDO_BROKER") && shim_alone()) {
		/* `pando run` had started that broker; it has left with its last client. */
		unsetenv("PANDO_BROKER");
		rc = pando_connect(&seat, NULL);
	}
	if (rc != 0)
		seat = NULL;
	return note(rc);
}

static int open_region(size_t length, uint32_t backend, struct pando_region **r)
{
	struct pando_region_options options = {.size = length, .backend = backend, .mode = 0600};
	char name[PANDO_REGION_NAME_MAX + 1];
	int rc = -EEXIST;

	for (unsigned int i = 0; i < NAMES && rc == -EEXIST; i++) {
		snprintf(name, sizeof(name), "%s-%d-%u", shim_options.prefix, (int)getpid(),
			 ++serial);
		rc = pando_region_open(seat, name, PANDO_CREATE | PANDO_EXCL | PANDO_TRANSIENT,
				       &options, r);
	}
	return note(rc);
}

/* True if the connection is beyond repair: regions stay mapped, but a new one needs a new seat. */
static bool seat_lost(int rc)
{
	return rc == -ECONNRESET || rc == -EPIPE || rc == -ENOTCONN || rc == -EBADF;
}

static int get_region(size_t length, uint32_t backend, struct pando_region **r)
{
	int rc;

	if (retry_at && now_s() < retry_at)
		return -ETIMEDOUT;
	retry_at = 0;
	rc = take_seat();
	if (rc != 0)
		return rc;
	rc = open_region(length, backend, r);
	if (seat_lost(rc)) {
		/* Its regions may still be in use: the handle is left to the end of the process. */
		seat = NULL;
		rc = take_seat();
		if (rc == 0)
			rc = open_region(length, backend, r);
	}
	return rc;
}

/* What the flags and the protection ask for beyond memory. Returns 0 or a negative errno. */
static int finish(char *base, size_t length, const struct pando_region_stat *st, int prot,
		  int flags)
{
	bool huge = st->backend != PANDO_BACKEND_MEMFD;

	if (st->backend == PANDO_BACKEND_MSHARE && prot != (PROT_READ | PROT_WRITE))
		return -EOPNOTSUPP;
	if (!huge && st->max_size > length)
		(void)real_mprotect(base + length, st->max_size - length, PROT_NONE);
	if (flags & MAP_POPULATE)
		(void)real_madvise(base, length, MADV_POPULATE_WRITE);
	if (prot != (PROT_READ | PROT_WRITE) &&
	    real_mprotect(base, huge ? st->max_size : length, prot) != 0)
		return -errno;
	if ((flags & MAP_LOCKED) && mlock(base, length) != 0)
		return -errno;
	return 0;
}

/* Enters the region in the book. */
static int enter(struct pando_region *r, const struct pando_region_stat *st, size_t length,
		 int prot)
{
	uint64_t granule = BOOK_PAGE;
	int rc;

	/*
	 * Pieces of a huge page cannot be unmapped; of an msharefs mapping, nothing but the whole.
	 */
	if (st->backend == PANDO_BACKEND_HUGETLB)
		granule = st->page_size;
	else if (st->backend == PANDO_BACKEND_MSHARE)
		granule = st->max_size;
	pthread_mutex_lock(&shim_lock);
	rc = book_add(&shim_book, st->base, length, st->max_size, granule, (uint32_t)prot, r);
	if (rc == 0)
		shim_widen(st->base, st->base + st->max_size);
	pthread_mutex_unlock(&shim_lock);
	return rc;
}

static void *serve(size_t length, int prot, int flags)
{
	char size[PANDO__SIZE_TEXT];
	struct pando_region_stat st;
	struct pando_region *r;
	uint32_t backend = (flags & MAP_HUGETLB) ? PANDO_BACKEND_HUGETLB : shim_options.backend;
	int rc;

	pando__size_format(length, size);
	shim_thread.seen = false;
	rc = get_region(length, backend, &r);
	if (rc != 0) {
		shim_say("mapping of %s stays plain: %s", size,
			 retry_at ? "the broker does not answer" : pando_strerror_last());
		return MAP_FAILED;
	}
	pando_region_stat(r, &st);
	rc = finish(pando_region_base(r), length, &st, prot, flags);
	if (rc == 0)
		rc = enter(r, &st, length, prot);
	if (rc != 0) {
		shim_say("mapping of %s stays plain: %s", size, strerror(-rc));
		(void)pando_region_close(r);
		return MAP_FAILED;
	}
	shim_say("mapping of %s is region %s at 0x%" PRIx64 " (%s)", size, st.name, st.base,
		 pando_backend_name(st.backend));
	return pando_region_base(r);
}

void *serve_mmap(size_t length, int prot, int flags)
{
	size_t unit = (flags & MAP_HUGETLB) ? HUGE : BOOK_PAGE;
	int saved = errno;
	sigset_t before;
	void *p;

	if (length > SIZE_MAX - unit)
		return MAP_FAILED;
	length = (length + unit - 1) / unit * unit;
	shim_quiet(&before);
	pthread_mutex_lock(&serving);
	shim_thread.inside++;
	p = serve(length, prot, flags);
	shim_thread.inside--;
	pthread_mutex_unlock(&serving);
	shim_loud(&before);
	errno = saved;
	return p;
}

void serve_close(const struct serve_gone *gone)
{
	shim_thread.inside++;
	shim_thread.ignore_start = gone->base;
	shim_thread.ignore_end = gone->base + gone->reach;
	if (pando_region_close(gone->region) != 0)
		shim_say("the broker was not told that a mapping is gone: %s",
			 pando_strerror_last());
	shim_thread.ignore_start = shim_thread.ignore_end = 0;
	shim_thread.inside--;
}

void serve_forked(void)
{
	pthread_mutex_init(&serving, NULL);
}

/*
 * The broker's count of clients alone would not do: a child that has not reached the broker is not
 * counted. A child of clone() runs no handlers, but then one of the two counts tells, or its pid.
 */
bool serve_sole(const struct book_entry *e)
{
	struct pando_region_stat st;

	return !e->shared && e->pid == getpid() && shim_alone() &&
	       pando_region_stat(e->region, &st) == 0 && st.clients <= 1;
}
