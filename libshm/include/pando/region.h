/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Regions.
 *
 * A region is a range of memory at the same virtual address in every process that has it open: raw
 * pointers into it are valid everywhere. The broker makes it, on one of three backends; clients map
 * it. It has a maximum size (address space, fixed) and a committed size (memory, changed online by
 * pando_region_resize). Memory below the committed size has been allocated before the call that
 * committed it returned: touching it never raises SIGBUS. Touching memory above it is a caller's
 * error.
 *
 * A region has a name, an owner, mode bits and an access list. It lives until it has been destroyed
 * (or was made with PANDO_TRANSIENT) and its last user is gone.
 */
#ifndef PANDO_REGION_H
#define PANDO_REGION_H

#include <pando/connect.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Name of a region: 1 to 63 bytes of [A-Za-z0-9._-], not beginning with '.' or '-'. */
#define PANDO_REGION_NAME_MAX 63

enum pando_backend {
	PANDO_BACKEND_AUTO = 0, /* the best that works: mshare, hugetlb, memfd, in this order */
	PANDO_BACKEND_MEMFD = 1, /* shmem pages; works everywhere; page tables per process */
	PANDO_BACKEND_HUGETLB = 2, /* 2 MiB pages from the pool; tables shared per whole GiB */
	PANDO_BACKEND_MSHARE = 3, /* msharefs of the patched kernel: shared page tables */
};

/* "auto", "memfd", "hugetlb", "mshare"; NULL for another number. Static storage. Any context. */
PANDO_API const char *pando_backend_name(unsigned int backend);

/* Flags of pando_region_open. */
#define PANDO_CREATE 0x1u /* make the region if there is none of that name (needs options.size) */
#define PANDO_EXCL 0x2u /* with PANDO_CREATE: fail with -EEXIST if there is one */
#define PANDO_READONLY 0x4u /* map it without the right to write, for good */
#define PANDO_TRANSIENT 0x8u /* with PANDO_CREATE: destroy it when its last user is gone */
/*
 * With PANDO_CREATE: the region is for its heap (pando/heap.h) alone. Its size is what the heap may
 * take at most, its tables (6.4 percent) included, and counts for quotas; memory is taken when objects
 * need it and returned when they are gone. Each client takes 256 KiB of it at a time, so some MiB are
 * little for many clients. Where the backend is hugetlb, all memory is committed at once all the same.
 */
#define PANDO_HEAP 0x10u

struct pando_region;

/*
 * What to make. Zero-initialise, then set what matters; all-zero members take the default. Members
 * may be added at the end; the size of the caller's struct travels with the call.
 */
struct pando_region_options {
	uint64_t size; /* bytes to commit now; rounded up to the backend's page size; not 0 */
	uint64_t max_size; /* bytes of address space; 0: size rounded up to a whole GiB */
	/* 1 GiB-aligned address inside the broker's window; 0: the broker picks */
	uint64_t address;
	uint32_t backend; /* enum pando_backend */
	/* permission bits like a file's: r to attach read-only, w to write; 0: 0600 */
	uint32_t mode;
	uint32_t gid; /* group of the region, with set_gid */
	/* 1: gid is meant (the caller must be a member); 0: the caller's own group */
	uint32_t set_gid;
};

/*
 * Opens (and with PANDO_CREATE makes) the region `name` and maps it at its address. options may be
 * NULL without PANDO_CREATE. Opening a region that this handle has open already returns the same
 * handle, counted, with the rights that it has; each open needs its close.
 *
 * Returns 0; -ENOENT (no such region), -EEXIST, -EINVAL (bad name, size 0, size over max_size,
 * unaligned address, unknown flag), -EACCES (mode bits and access list say no; or it is open here
 * already, but read-only), -EADDRINUSE (another region has that address), -EADDRNOTAVAIL (something
 * else is mapped there in this process: the sentence names it), -ENOMEM (more than the machine or
 * the huge page pool has free), -EDQUOT (quota of this user), -EUSERS (client table full),
 * -EOPNOTSUPP (backend unavailable here), -ESHUTDOWN (the broker is about to end and makes no new
 * regions), -ECONNRESET (the broker and its supervisor are gone), -ETIMEDOUT (the broker is
 * stopped, or has died 101 times over this request), -EMFILE (three descriptors are needed for a
 * moment), -EPROTO (what the broker sent makes no sense). Any thread; not async-signal-safe. May
 * wait for the broker (committing 1 GiB takes about 0.3 s).
 */
PANDO_API PANDO_NODISCARD int pando_region_open_sized(struct pando *p, const char *name,
						      unsigned int flags,
						      const struct pando_region_options *options,
						      size_t options_size,
						      struct pando_region **out)
	PANDO_NONNULL(1, 2, 6);

static inline PANDO_NODISCARD int pando_region_open(struct pando *p, const char *name,
						    unsigned int flags,
						    const struct pando_region_options *options,
						    struct pando_region **out)
{
	return pando_region_open_sized(p, name, flags, options, options ? sizeof(*options) : 0,
				       out);
}

/*
 * Detaches: unmaps the region once every open of it has been closed, and gives its slot back.
 * Pointers into it are invalid afterwards. Returns 0, or a negative errno if the broker could not
 * be told (the mapping is gone all the same). NULL is ignored.
 */
PANDO_API int pando_region_close(struct pando_region *r);

/*
 * Sets the committed size, in bytes, rounded up to the backend's page size. Growing allocates the
 * memory before it returns; other processes can use it at once, at the same address. Shrinking
 * returns the memory above `size` to the system: nobody may be using it. Needs the right to write.
 * Returns 0; -EINVAL (0 or over the maximum), -ENOMEM, -EDQUOT, -EACCES, -EBUSY (another resize is
 * under way), -ECONNRESET. On failure the size is what it was.
 */
PANDO_API PANDO_NODISCARD int pando_region_resize(struct pando_region *r, uint64_t size)
	PANDO_NONNULL(1);

/* Its lowest address, the same in every process. Any thread, any signal context. */
PANDO_API void *pando_region_base(const struct pando_region *r) PANDO_NONNULL(1);

/* The committed size in bytes, now: one load from memory, no call to the broker. Any context. */
PANDO_API uint64_t pando_region_size(const struct pando_region *r) PANDO_NONNULL(1);

/*
 * Waits until the region's committed size differs from `seen` (bytes) or timeout_ms has passed
 * (-1: for ever). Returns 0 or -ETIMEDOUT. Any thread. A death of the broker does not end the wait.
 */
PANDO_API PANDO_NODISCARD int pando_region_wait_size(struct pando_region *r, uint64_t seen,
						     int timeout_ms) PANDO_NONNULL(1);

/*
 * Marks the region for deletion: its name is free at once, its memory is freed when the last user
 * is gone. Only its owner and root may. Returns 0; -ENOENT, -EACCES, -EINVAL.
 */
PANDO_API PANDO_NODISCARD int pando_region_destroy(struct pando *p, const char *name)
	PANDO_NONNULL(1, 2);

/* Rights in an access list. */
#define PANDO_RIGHT_READ 0x4u
#define PANDO_RIGHT_WRITE 0x2u

enum pando_grantee { PANDO_GRANT_UID = 1, PANDO_GRANT_GID = 2 };

/*
 * Gives one user or group rights on a region beyond its mode bits (rights 0: takes the entry away).
 * Only its owner and root may; processes that are attached already stay attached. At most 32
 * entries. Returns 0; -ENOENT, -EACCES, -EINVAL, -ENOSPC (list full).
 */
PANDO_API PANDO_NODISCARD int pando_region_grant(struct pando *p, const char *name,
						 enum pando_grantee kind, uint32_t id,
						 unsigned int rights) PANDO_NONNULL(1, 2);

/* One region, as the broker sees it. Sizes in bytes. */
struct pando_region_info {
	uint64_t id; /* never used again by this broker */
	uint64_t base, size, max_size;
	uint64_t created_ns; /* CLOCK_BOOTTIME, nanoseconds */
	uint32_t backend; /* enum pando_backend, never AUTO */
	uint32_t page_size; /* bytes */
	uint32_t uid, gid, mode;
	uint32_t clients; /* attached processes */
	uint32_t flags; /* PANDO_TRANSIENT, PANDO_HEAP; PANDO_REGION_DESTROYED */
	uint32_t grants; /* entries in the access list */
	char name[PANDO_REGION_NAME_MAX + 1];
};
#define PANDO_REGION_DESTROYED 0x80000000u

/* What this process has: the broker's view is pando_region_list(). */
struct pando_region_stat {
	uint64_t base, size, max_size;
	uint32_t backend, page_size;
	uint32_t slot; /* this client's slot in the region's client table */
	uint32_t readonly; /* 1 if attached with PANDO_READONLY */
	uint32_t clients; /* attached processes, counted in the client table */
	uint32_t registered; /* 0 after a fork() whose child could not reach the broker yet */
	char name[PANDO_REGION_NAME_MAX + 1];
};

/* Fills *st from memory, without the broker. Returns 0. Any thread. */
PANDO_API int pando_region_stat(struct pando_region *r, struct pando_region_stat *st)
	PANDO_NONNULL(1, 2);

/*
 * Walks the regions that the caller may see (its own, those it may attach to; root: all). Start
 * with *cursor = 0; fills up to max entries and returns how many; 0 means the end.
 */
PANDO_API PANDO_NODISCARD int pando_region_list(struct pando *p, uint64_t *cursor,
						struct pando_region_info *info, unsigned int max)
	PANDO_NONNULL(1, 2, 3);

/* One region by name. Returns 0 or -ENOENT, -EACCES, -EINVAL. */
PANDO_API PANDO_NODISCARD int pando_region_lookup(struct pando *p, const char *name,
						  struct pando_region_info *info)
	PANDO_NONNULL(1, 2, 3);

#ifdef __cplusplus
}
#endif
#endif
