/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The directory of a region: names for its objects.
 *
 *	struct order *o = pando_alloc(r, sizeof(*o)); ...	pando_read_lock(r);
 *	pando_publish(r, "latest", o);				o = pando_lookup(r, "latest");
 *								... use o ...
 *								pando_read_unlock(r);
 *
 * A descriptor is a name (1 to 255 bytes, any but NUL), a version, and one object of the region's heap,
 * which belongs to it. Publishing another object under the name replaces it: readers find the one or
 * the other, and what has been replaced is freed when no reader can have it any more (it is retired,
 * see pando/rcu.h). A region has room for many millions of names; the directory grows while it is used.
 *
 * Looking up takes no lock, makes no system call and waits for nobody. It is done in a read section,
 * and what is found stays whole until that section ends. Changes of names that happen to lie in the same
 * of 64 parts wait for each other. Any process may be killed at any instruction: a change has then
 * happened or not, and the broker sees to what was left to do; a process that is stopped in a
 * change holds up those who change names of that part, but no reader, and `pando stat` names it.
 *
 * Versions: each publication of a name has another version, never 0, higher than all that the name had
 * before, also if it was withdrawn in between.
 *
 * Threads and signals: any thread; no signal handler.
 */
#ifndef PANDO_DIRECTORY_H
#define PANDO_DIRECTORY_H

#include <pando/rcu.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PANDO_NAME_MAX 255 /* bytes of a name, without the NUL */

/*
 * Gives the object p this name; what had the name before is retired. p is this client's (private, or
 * held by it) or shared, and belongs to the name from now on: it cannot be freed, given away, shared or
 * published again until it is withdrawn, which frees it. If the caller is killed meanwhile, either that
 * has happened, or p has died with it (also if it was shared).
 *
 * Returns 0; -EINVAL (the name is empty or too long; no object of r begins at p, or it has been freed);
 * -EALREADY (p has a name already); -EPERM (another client holds p); -ENOSPC (67 million names in this
 * part of the directory); -EAGAIN (called in a read section of r while too much has been retired that
 * readers are in the way of, see pando_retire(); elsewhere it waits); -ENOMEM, -EDQUOT (of the heap);
 * -EUSERS (this client's slot number is over what an object's state can name); -EACCES (attached
 * read-only); -EOPNOTSUPP (this process may not call membarrier(), and readers in r rely on it);
 * -ECONNRESET (a forked child that the broker does not answer). On failure p is as it was, and so is
 * the name.
 */
PANDO_API PANDO_NODISCARD int pando_publish(struct pando_region *r, const char *name, void *p)
	PANDO_NONNULL(1, 2, 3);

/*
 * The same if the name has this version now; version 0: if there is no such name. *now (may be NULL)
 * becomes the version that the name has afterwards, or has instead (0: there is none). Beyond the errors of
 * pando_publish(): -EEXIST (version is 0, and the name exists), -ENOENT (it does not exist), -ESTALE (it
 * has another version).
 */
PANDO_API PANDO_NODISCARD int pando_publish_if(struct pando_region *r, const char *name, void *p,
					       uint64_t version, uint64_t *now)
	PANDO_NONNULL(1, 2, 3);

/*
 * Takes the name away; its object is retired. Returns 0; -ENOENT (there is no such name); -EINVAL,
 * -EAGAIN, -ENOMEM, -EUSERS, -EACCES, -EOPNOTSUPP, -ECONNRESET as above.
 */
PANDO_API PANDO_NODISCARD int pando_withdraw(struct pando_region *r, const char *name)
	PANDO_NONNULL(1, 2);
/* The same if it has this version; -ESTALE if not. */
PANDO_API PANDO_NODISCARD int pando_withdraw_if(struct pando_region *r, const char *name,
						uint64_t version) PANDO_NONNULL(1, 2);

/*
 * The object of that name. To be called in a read section of r, until whose end the object stays whole.
 * Read-only clients may call it. NULL: errno is ENOENT (there is no such name; that is an
 * ordinary answer and has no sentence), EINVAL (not a name), EPERM (not in a read section).
 */
PANDO_API PANDO_NODISCARD void *pando_lookup(struct pando_region *r, const char *name)
	PANDO_NONNULL(1, 2);

/* What a name stood for at one instant. */
struct pando_descriptor {
	void *object;
	uint64_t version;
	uint64_t size; /* bytes that may be used there, as pando_usable_size() counts */
};

/* The same with version and size: 0, -ENOENT, -EINVAL, -EPERM. The three belong together. */
PANDO_API PANDO_NODISCARD int pando_lookup_descriptor(struct pando_region *r, const char *name,
						      struct pando_descriptor *d)
	PANDO_NONNULL(1, 2, 3);

/*
 * A name that is looked up again and again: resolved once, then found by four loads.
 *
 *	struct pando_handle h;
 *	pando_handle_init(r, &h, "latest");
 *	...
 *	pando_read_lock(r);
 *	o = pando_lookup_handle(r, &h);
 *
 * A handle follows its name, also when that is withdrawn and published again; it is looked up by
 * name again when any name of its part of the directory has been withdrawn. It lies where the caller
 * likes, needs no end, and means nothing when the region has been closed. One thread at a time may
 * use it; it may be copied, and works in forked children.
 */
struct pando_handle {
	const uint64_t *unlinked; /* where the number of withdrawals is counted */
	const struct pando__descriptor *entry; /* NULL: not resolved */
	uint64_t seen; /* how many there had been when it was resolved */
	const char *base; /* of the region */
	uint64_t hash;
	uint32_t length;
	char name[PANDO_NAME_MAX + 1];
};

/*
 * Makes a handle for a name, which need not exist. Returns 0; -EINVAL (not a name). It is resolved by
 * the first pando_lookup_handle().
 */
PANDO_API PANDO_NODISCARD int pando_handle_init(struct pando_region *r, struct pando_handle *h,
						const char *name) PANDO_NONNULL(1, 2, 3);

/*
 * As pando_lookup(), of the name of h in the region that h was made for. To be called in a read section,
 * which is checked only when the handle has to be resolved (EPERM).
 */
#ifdef PANDO_NO_INLINE
PANDO_API PANDO_NODISCARD void *pando_lookup_handle(struct pando_region *r, struct pando_handle *h)
	PANDO_NONNULL(1, 2);
#endif

/* The same with version and size: 0, -ENOENT, -EPERM. */
PANDO_API PANDO_NODISCARD int pando_lookup_handle_descriptor(struct pando_region *r,
							     struct pando_handle *h,
							     struct pando_descriptor *d)
	PANDO_NONNULL(1, 2, 3);

/*
 * Waits until the name has another version than *version (0: there is no such name), at most timeout_ms
 * milliseconds (-1: for ever, 0: only looks). It sleeps meanwhile. Not in a read section of r.
 *
 * Returns 0, with the new version in *version; -ENOENT: the name has been withdrawn, *version is 0;
 * -ETIMEDOUT; -EINVAL (not a name); -EDEADLK (in a read section); and the errors of pando_read_lock().
 * Changes that follow each other closely may be seen as one. A watcher of the version
 * before misses nothing that happens between two calls.
 */
PANDO_API PANDO_NODISCARD int pando_watch(struct pando_region *r, const char *name,
					  uint64_t *version, int timeout_ms) PANDO_NONNULL(1, 2, 3);

/*
 * A name in an iteration. All zero begins one; it is copied to remember the place.
 *
 *	struct pando_name n = {0};
 *	while ((rc = pando_name_next(r, &n)) > 0)
 *		printf("%s\n", n.name);
 */
struct pando_name {
	struct pando_descriptor descriptor;
	uint64_t place[2]; /* the library's */
	char name[PANDO_NAME_MAX + 1];
};

/*
 * The next name, in no order that means anything. 1: *n has it; 0: there are no more; or an error of
 * pando_read_lock(). A name that is there during the whole iteration comes exactly once, one that comes
 * or goes meanwhile at most once. It need not be in a read section; the object is to be used only
 * if it is, until that section ends.
 */
PANDO_API PANDO_NODISCARD int pando_name_next(struct pando_region *r, struct pando_name *n)
	PANDO_NONNULL(1, 2);

/* A process that holds the lock of a part of the directory, seen by the broker, once a second. */
struct pando_directory_writer {
	uint64_t ns; /* for how long at least */
	int32_t pid;
	uint32_t shard; /* which part: 0 to 63 */
};

struct pando_directory_stat {
	uint64_t names;
	uint64_t published, withdrawn; /* how often, since the region was made */
	uint64_t buckets, tables, table_bytes; /* what names are found by; objects of the heap */
	uint64_t locked; /* parts in which a change is under way */
	uint64_t slow_count; /* of these, those that have been so for more than a second */
	struct pando_directory_writer slow[16]; /* the first of them */
};

/* Fills *st: a few loads for each of 64 parts. Any client. Returns 0. */
PANDO_API int pando_directory_stat_sized(struct pando_region *r, struct pando_directory_stat *st,
					 size_t size) PANDO_NONNULL(1, 2);
static inline int pando_directory_stat(struct pando_region *r, struct pando_directory_stat *st)
{
	return pando_directory_stat_sized(r, st, sizeof(*st));
}

/*
 * Verifies every invariant of the directory, part by part, with the lock of that part held: it holds up
 * who changes names, milliseconds for 10,000 of them. Returns 0; -EUCLEAN with the first broken one in
 * pando_strerror_last(); -EACCES (read-only).
 */
PANDO_API PANDO_NODISCARD int pando_directory_check(struct pando_region *r) PANDO_NONNULL(1);

/* What follows is not to be used by itself; its layout is part of the library's binary interface. */

/* The beginning of a descriptor in the region. */
struct pando__descriptor {
	uint64_t next, key;
	uint64_t current; /* version * 2 + which of the two: one store changes all */
	uint64_t object[2]; /* offsets from the region's base */
};

PANDO_API void *pando__lookup_handle_slow(struct pando_region *r, struct pando_handle *h)
	PANDO_NONNULL(1, 2);

#ifndef PANDO_NO_INLINE
static inline PANDO_NODISCARD PANDO_NONNULL(1, 2) void *pando_lookup_handle(struct pando_region *r,
									    struct pando_handle *h)
{
	const struct pando__descriptor *e = h->entry;
	uint64_t current, object;

	/* As it was: the descriptor had not been retired when this read section began. */
	if (__builtin_expect(!e || __atomic_load_n(h->unlinked, __ATOMIC_ACQUIRE) != h->seen, 0))
		return pando__lookup_handle_slow(r, h);
	current = __atomic_load_n(&e->current, __ATOMIC_ACQUIRE);
	object = __atomic_load_n(&e->object[current & 1], __ATOMIC_ACQUIRE);
	/* Else it has been replaced twice in between, and this may be what is not decided yet. */
	if (__builtin_expect(__atomic_load_n(&e->current, __ATOMIC_RELAXED) != current, 0))
		return pando__lookup_handle_slow(r, h);
	return (void *)(uintptr_t)(h->base + object);
}
#endif

#ifdef __cplusplus
}
#endif
#endif
