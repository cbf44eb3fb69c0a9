/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a program does to memory that it got from a region, so that it sees what it would have seen
 * on an anonymous mapping of 4 KiB pages.
 *
 * A request is cut into pieces (book_next()), which are handled in the order of their addresses, as
 * the kernel does: what is not the region's goes to the kernel; PENDING is a hole to the program;
 * LIVE is changed. With 4 KiB pages the kernel changes it. With huge pages it can only change whole
 * granules:
 *
 *	munmap		remembered, done when nothing of the granule is left
 *	mprotect	widened over PENDING neighbours; if that does not do, and the protection is to change,
 *			the region is moved to a plain mapping
 *	madvise		advice without effect on what memory contains is dropped; MADV_REMOVE writes zeros
 *			and keeps the memory, which was promised to be there; others: as mprotect
 *	mremap		shrinking is munmap; anything else: the region is moved to a plain mapping first
 *	MAP_FIXED	on part of a granule: the region is moved to a plain mapping first
 *
 * On msharefs, a granule is the whole region, and its protection never changes: as a piece of a
 * granule.
 *
 * Moving is possible while this process is the only one that has the region and has one thread
 * (with signals blocked, nobody can write between copying and exchanging). Otherwise the call fails
 * with ENOMEM, which these calls may always do, rather than claim a protection that is not there.
 *
 * Order of events when a call is interrupted by SIGKILL: the book dies with the process; nothing
 * here is seen by others but the closing of a region, which is the library's and the broker's
 * business.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "preload/shim.h"

#define GONE_MAX 8u
#define MREMAP_KEEP 4 /* MREMAP_DONTUNMAP, Linux 5.7 */
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Regions of which nothing is left: taken out of the book, to be closed when shim_lock is free. */
struct gone {
	struct serve_gone list[GONE_MAX];
	unsigned int n;
	sigset_t before;
};

static void begin(struct gone *gone)
{
	gone->n = 0;
	shim_quiet(&gone->before);
	pthread_mutex_lock(&shim_lock);
}

static void close_gone(struct gone *gone)
{
	int saved = errno;

	for (unsigned int i = 0; i < gone->n; i++)
		serve_close(&gone->list[i]);
	gone->n = 0;
	errno = saved;
}

static void end(struct gone *gone)
{
	pthread_mutex_unlock(&shim_lock);
	close_gone(gone);
	shim_loud(&gone->before);
}

static void *at(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

/* Unmaps what is still the region's in [lo, hi), of which nothing is live. */
static int release(struct book_entry *e, uint64_t lo, uint64_t hi)
{
	struct book_piece p;

	for (; book_next(&shim_book, lo, hi, &p); lo = p.end) {
		if (p.kind != BOOK_PENDING || p.entry != e)
			continue;
		if (real_munmap(at(p.start), p.end - p.start) != 0)
			return -errno;
		/* Without storage to note it: it stays PENDING and is unmapped again at the end. */
		(void)book_mark(e, p.start, p.end, BOOK_FOREIGN, 0);
	}
	return 0;
}

/* If nothing of the entry is live: unmaps the rest, takes it out of the book and lists it. */
static void retire(struct book_entry *e, struct gone *gone)
{
	if (!book_all_gone(e))
		return;
	(void)release(e, e->base, e->base + e->reach);
	gone->list[gone->n++] = (struct serve_gone){e->region, e->base, e->reach};
	book_remove(&shim_book, e);
}

static int unmap_live(const struct book_piece *p, struct gone *gone)
{
	struct book_entry *e = p->entry;
	uint64_t lo, hi;
	int rc = 0;

	if (book_mark(e, p->start, p->end, BOOK_PENDING, 0) != 0) {
		errno = ENOMEM;
		return -1;
	}
	if (!book_all_gone(e) && book_releasable(e, p->start, p->end, &lo, &hi))
		rc = release(e, lo, hi);
	if (rc != 0) { /* the kernel had no room to split: the program keeps what it has */
		(void)book_mark(e, p->start, p->end, BOOK_LIVE, p->prot);
		errno = -rc;
		return -1;
	}
	retire(e, gone);
	return 0;
}

int change_munmap(uint64_t start, uint64_t stop)
{
	struct book_piece p;
	struct gone gone;
	int rc = 0;

	begin(&gone);
	for (; rc == 0 && book_next(&shim_book, start, stop, &p); start = p.end) {
		if (p.kind == BOOK_FOREIGN)
			rc = real_munmap(at(p.start), p.end - p.start);
		else if (p.kind == BOOK_LIVE)
			rc = unmap_live(&p, &gone);
		if (gone.n == GONE_MAX) {
			pthread_mutex_unlock(&shim_lock);
			close_gone(&gone);
			pthread_mutex_lock(&shim_lock);
		}
	}
	end(&gone);
	return rc;
}

/* Copies what is live to `copy`, which stands for the entry's base. */
static int copy_live(struct book_entry *e, char *copy, uint64_t size)
{
	struct book_piece p;
	uint64_t lo, hi;

	for (uint64_t a = e->base; book_next(&shim_book, a, e->base + size, &p); a = p.end) {
		if (p.kind != BOOK_LIVE)
			continue;
		if (!(p.prot & PROT_READ) && (!book_widen(e, p.start, p.end, &lo, &hi) ||
					      real_mprotect(at(lo), hi - lo, PROT_READ) != 0))
			return -ENOMEM;
		memcpy(copy + (p.start - e->base), at(p.start), p.end - p.start);
	}
	return 0;
}

/*
 * Puts a plain mapping with the same content in the place of a region, whose entry is gone
 * afterwards. The exchange is one mremap(): until it succeeds, nothing has changed.
 */
static int move_to_plain(struct book_entry *e, struct gone *gone)
{
	uint64_t size = 0, base = e->base;
	struct book_piece p;
	char *copy;

	if (e->covered || !serve_sole(e) || gone->n == GONE_MAX)
		return -EBUSY;
	for (uint64_t a = base; book_next(&shim_book, a, base + e->reach, &p); a = p.end)
		if (p.kind == BOOK_LIVE)
			size = p.end - base;
	size = (size + e->granule - 1) / e->granule * e->granule;
	copy = real_mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | (book_whole(e) ? MAP_NORESERVE : 0), -1, 0);
	if (copy == MAP_FAILED)
		return -ENOMEM;
	if (copy_live(e, copy, size) != 0 ||
	    real_mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at(base)) != at(base)) {
		real_munmap(copy, size);
		return -ENOMEM;
	}
	for (uint64_t a = base; book_next(&shim_book, a, base + size, &p); a = p.end) {
		if (p.kind != BOOK_LIVE)
			(void)real_munmap(at(p.start), p.end - p.start);
		else if (p.prot != (PROT_READ | PROT_WRITE))
			(void)real_mprotect(at(p.start), p.end - p.start, (int)p.prot);
	}
	(void)book_mark(e, base, base + size, BOOK_FOREIGN, 0);
	shim_say("the mapping at 0x%llx becomes plain: %s cannot be changed",
		 (unsigned long long)base,
		 book_whole(e) ? "memory on msharefs" : "a piece of a huge page");
	retire(e, gone);
	return 0;
}

static int protect(uint64_t start, uint64_t stop, int prot, int pkey)
{
	return pkey == -1 ? real_mprotect(at(start), stop - start, prot)
			  : real_pkey_mprotect(at(start), stop - start, prot, pkey);
}

static int protect_live(const struct book_piece *p, int prot, int pkey, struct gone *gone)
{
	uint64_t lo, hi;

	if (!book_whole(p->entry) && book_widen(p->entry, p->start, p->end, &lo, &hi)) {
		if (protect(lo, hi, prot, pkey) != 0)
			return -1;
		(void)book_mark(p->entry, p->start, p->end, BOOK_LIVE, (uint32_t)prot);
		return 0;
	}
	if (p->prot == (uint32_t)prot && pkey == -1)
		return 0;
	if (move_to_plain(p->entry, gone) == 0)
		return protect(p->start, p->end, prot, pkey);
	shim_say("mprotect of %s that other processes share is refused",
		 book_whole(p->entry) ? "memory on msharefs" : "a piece of a huge page");
	errno = ENOMEM;
	return -1;
}

int change_mprotect(uint64_t start, uint64_t stop, int prot, int pkey)
{
	struct book_piece p;
	struct gone gone;
	int rc = 0;

	begin(&gone);
	for (; rc == 0 && book_next(&shim_book, start, stop, &p); start = p.end) {
		if (p.kind == BOOK_FOREIGN) {
			rc = protect(p.start, p.end, prot, pkey);
		} else if (p.kind == BOOK_LIVE) {
			rc = protect_live(&p, prot, pkey, &gone);
		} else {
			errno = ENOMEM; /* a hole, to the program */
			rc = -1;
		}
	}
	end(&gone);
	return rc;
}

/*
 * Zeros, through the kernel: where the program may not write, the answer is an error and no signal.
 */
static int write_zeros(uint64_t start, uint64_t stop)
{
	static const char zeros[1 << 16];

	while (start < stop) {
		size_t n = stop - start < sizeof(zeros) ? stop - start : sizeof(zeros);
		struct iovec from = {(void *)(uintptr_t)zeros, n}, to = {at(start), n};
		ssize_t done = process_vm_writev(getpid(), &from, 1, &to, 1, 0);

		if (done <= 0) {
			errno = done < 0 && errno == EPERM ? EPERM : EACCES;
			return -1;
		}
		start += (uint64_t)done;
	}
	return 0;
}

static int advise_huge(const struct book_piece *p, int advice, struct gone *gone)
{
	uint64_t lo, hi;

	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_WILLNEED:
	case MADV_DONTNEED: /* of shared memory: drops this process's page tables, keeps the content */
	case MADV_COLD:
	case MADV_PAGEOUT:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
	case MADV_COLLAPSE:
		return 0;
	case MADV_REMOVE:
		return write_zeros(p->start, p->end);
	case MADV_FREE: /* of shared memory: an error */
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
		return real_madvise(at(p->start), p->end - p->start, advice);
	default:
		/* On msharefs there is no way back from MADV_DONTDUMP, which regions begin with. */
		if (!(book_whole(p->entry) && advice == MADV_DODUMP) &&
		    book_widen(p->entry, p->start, p->end, &lo, &hi))
			return real_madvise(at(lo), hi - lo, advice);
		if (move_to_plain(p->entry, gone) != 0) {
			errno = ENOMEM;
			return -1;
		}
		return real_madvise(at(p->start), p->end - p->start, advice);
	}
}

int change_madvise(uint64_t start, uint64_t stop, int advice)
{
	struct book_piece p;
	struct gone gone;
	int rc = 0, hole = 0;

	begin(&gone);
	for (; rc == 0 && book_next(&shim_book, start, stop, &p); start = p.end) {
		if (p.kind == BOOK_PENDING)
			hole = 1;
		else if (p.kind == BOOK_LIVE && p.entry->granule > BOOK_PAGE)
			rc = advise_huge(&p, advice, &gone);
		else
			rc = real_madvise(at(p.start), p.end - p.start, advice);
		if (rc != 0 && errno == ENOMEM && p.kind == BOOK_FOREIGN) {
			hole = 1; /* the kernel goes on behind holes, and so do we */
			rc = 0;
		}
	}
	end(&gone);
	if (rc == 0 && hole) {
		errno = ENOMEM;
		rc = -1;
	}
	return rc;
}

/* Something of the program's has been mapped over [start, stop): it is no region's any more. */
static void cover(uint64_t start, uint64_t stop, struct gone *gone)
{
	struct book_piece p;
	struct book_entry *e;

	for (uint64_t a = start; book_next(&shim_book, a, stop, &p); a = p.end) {
		e = book_find(&shim_book, p.start, p.end);
		if (e)
			e->covered = true;
		if (p.kind == BOOK_FOREIGN)
			continue;
		(void)book_mark(p.entry, p.start, p.end, BOOK_FOREIGN, 0);
		if (gone->n < GONE_MAX)
			retire(p.entry, gone);
	}
}

/* Makes way for a mapping at a fixed place, where that cuts granules. */
static void make_way(uint64_t start, uint64_t stop, struct gone *gone)
{
	struct book_entry *e;

	while ((e = book_find(&shim_book, start, stop))) {
		uint64_t reach_end = e->base + e->reach;
		bool cuts = (start > e->base && (start - e->base) % e->granule != 0) ||
			    (stop < reach_end && (stop - e->base) % e->granule != 0);

		if (cuts)
			(void)move_to_plain(e, gone);
		if (reach_end >= stop)
			return;
		start = reach_end;
	}
}

void *change_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	uint64_t start = (uintptr_t)addr, stop = start + length;
	struct gone gone;
	void *p;

	stop = (stop + BOOK_PAGE - 1) & ~(uint64_t)(BOOK_PAGE - 1);
	begin(&gone);
	if (flags & MAP_FIXED)
		make_way(start, stop, &gone);
	p = real_mmap(addr, length, prot, flags, fd, offset);
	if (p != MAP_FAILED) {
		stop = (uintptr_t)p + (stop - start);
		cover((uintptr_t)p, stop, &gone);
	}
	end(&gone);
	return p;
}

/* old is all live: how far the kernel can move it. Returns 0 or an errno. */
static int prepare_move(uint64_t start, uint64_t stop, struct gone *gone)
{
	struct book_piece p;

	if (!book_next(&shim_book, start, stop, &p) || p.kind == BOOK_FOREIGN)
		return 0;
	if (p.kind == BOOK_PENDING || p.end < stop)
		return EFAULT;
	if (p.entry->granule > BOOK_PAGE && move_to_plain(p.entry, gone) != 0)
		return ENOMEM;
	return 0;
}

static void *move_pages(uint64_t start, size_t old_length, size_t new_length, int flags, void *to,
			struct gone *gone)
{
	uint64_t stop = start + ((old_length + BOOK_PAGE - 1) & ~(size_t)(BOOK_PAGE - 1)), there;
	struct book_piece p;
	int err = prepare_move(start, stop, gone);
	void *q;

	if (err) {
		errno = err;
		return MAP_FAILED;
	}
	q = real_mremap(at(start), old_length, new_length, flags, to);
	if (q == MAP_FAILED)
		return q;
	there = (uintptr_t)q;
	if (there != start)
		cover(there, there + ((new_length + BOOK_PAGE - 1) & ~(size_t)(BOOK_PAGE - 1)),
		      gone);
	if (there != start && !(flags & MREMAP_KEEP) && old_length &&
	    book_next(&shim_book, start, stop, &p) && p.kind == BOOK_LIVE) {
		(void)book_mark(p.entry, start, stop, BOOK_FOREIGN, 0);
		if (gone->n < GONE_MAX)
			retire(p.entry, gone);
	}
	return q;
}

void *change_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr)
{
	uint64_t start = (uintptr_t)addr;
	uint64_t old_end = start + ((old_length + BOOK_PAGE - 1) & ~(size_t)(BOOK_PAGE - 1));
	uint64_t new_end = start + ((new_length + BOOK_PAGE - 1) & ~(size_t)(BOOK_PAGE - 1));
	struct book_piece p;
	struct gone gone;
	bool live;
	void *q = addr;

	begin(&gone);
	live = old_length && book_next(&shim_book, start, old_end, &p) && p.kind == BOOK_LIVE &&
	       p.end == old_end;
	if (!live || (flags & (MREMAP_FIXED | MREMAP_KEEP)) || new_length == 0 ||
	    (new_end > old_end && (flags & MREMAP_MAYMOVE))) {
		q = move_pages(start, old_length, new_length, flags, new_addr, &gone);
	} else if (new_end > old_end) {
		errno = ENOMEM; /* the reserve behind it is not the program's */
		q = MAP_FAILED;
	}
	end(&gone);
	if (q == addr && live && new_end < old_end && !(flags & MREMAP_FIXED) && new_length &&
	    change_munmap(new_end, old_end) != 0)
		return MAP_FAILED;
	return q;
}
