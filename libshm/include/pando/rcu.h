/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * RCU across processes: reading what others replace, without a lock.
 *
 *	reader				writer
 *	pando_read_lock(r);		new = pando_alloc(r, sizeof *new); ... pando_share(r, new);
 *	o = rcu_dereference(*where);	old = *where; rcu_assign_pointer(*where, new);
 *	... use o ...			pando_retire(r, old, 0);
 *	pando_read_unlock(r);		  (or: pando_synchronize(r, -1); pando_free(r, old);)
 *
 * What a reader finds between lock and unlock stays whole until it has unlocked: who replaces an
 * object retires it, and it is freed when all who may see it have ended their read sections (a
 * grace period). Readers and writers may be any threads of any attached processes; all of them may
 * be killed at any instruction. A reader that is killed holds nobody up; what a killed writer had
 * retired is freed, after a grace period, by the broker.
 *
 * The words are liburcu's, and its pointer operations (rcu_dereference(), rcu_assign_pointer(),
 * rcu_xchg_pointer(), ... of <urcu/pointer.h>) are the ones to use; a program that has no liburcu
 * uses __atomic_load_n(.., __ATOMIC_ACQUIRE) and __atomic_store_n(.., __ATOMIC_RELEASE).
 *
 * Locking and unlocking make no system call, execute no locked instruction and no fence, and wait for
 * nobody. A thread gets its place among the readers with its first pando_read_lock() in a region,
 * and loses it when it ends; the child of a fork() has none and is in no read section. Instead,
 * writers make other processors execute a barrier (membarrier(2)). Where the kernel cannot do that,
 * readers execute fences themselves, and cost some 20 ns: pando_rcu_stat().mode says so.
 *
 * Threads and signals: any thread; no signal handler, save that one may open and close read sections
 * in a region in which its thread has opened one before and in which it last did so.
 */
#ifndef PANDO_RCU_H
#define PANDO_RCU_H

#include <stddef.h>
#include <stdint.h>

#include <pando/region.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Begins a read section of the calling thread in region r; sections nest, 65,535 deep. Returns 0.
 * The thread's first one in r can fail, with a sentence: -EUSERS (the reader table is full: some
 * 65,000 threads), -ENOMEM, -ECONNRESET (a forked child that the broker does not answer; tried
 * again by the next call). Then no section has begun. After one success it does not fail again,
 * except -EOVERFLOW (nested too deep), and -ECONNRESET in a forked child. A section should be
 * short: what is retired meanwhile is not freed. It may wait, and take locks of other kinds; it must
 * not wait for a grace period.
 */
#ifdef PANDO_NO_INLINE
PANDO_API int pando_read_lock(struct pando_region *r) PANDO_NONNULL(1);

/*
 * Ends it. Returns 0; -EPERM (this thread is in no read section of r; nothing has changed). Pointers
 * that were found in it are not to be followed any more.
 */
PANDO_API int pando_read_unlock(struct pando_region *r) PANDO_NONNULL(1);
#endif

/*
 * Gives the calling thread its place among the readers of r now, so that its pando_read_lock()
 * cannot fail any more. Returns 0 or an error of that. pando_reader_unregister() takes the place
 * back: 0, or -EBUSY in a read section. (Threads that end unregister by themselves.)
 */
PANDO_API PANDO_NODISCARD int pando_reader_register(struct pando_region *r) PANDO_NONNULL(1);
PANDO_API int pando_reader_unregister(struct pando_region *r) PANDO_NONNULL(1);

/*
 * Waits until all read sections of r have ended that were open when it was called, of all threads of
 * all processes; it sleeps meanwhile. timeout_ms: at most so long (-1: for ever). Returns 0;
 * -ETIMEDOUT (the sentence names a reader that was in the way: pid, thread); -EDEADLK (the calling
 * thread is in a read section of r itself); -EOPNOTSUPP (this process may not call membarrier(),
 * and readers in r rely on it).
 */
PANDO_API PANDO_NODISCARD int pando_synchronize(struct pando_region *r, int timeout_ms)
	PANDO_NONNULL(1);

/* Flags of pando_retire(). */
#define PANDO_NOWAIT 0x1u /* -EAGAIN instead of waiting */

/*
 * Frees the object p of r's heap after a grace period. The caller has made it unreachable for new
 * readers. p is private to this client, held by it, or shared; from now on it is this client's, and
 * not to be freed or given away by anybody. If the process ends or is killed, the broker frees it
 * when a grace period has passed.
 *
 * Objects that wait are freed in calls of pando_retire(), pando_synchronize() and pando_reclaim() of
 * the process that retired them. All clients of a region together may have so many bytes waiting
 * (pando_retire_limit()); beyond that the call waits for readers, or fails, with p as it was:
 * -EAGAIN (with PANDO_NOWAIT, or called in a read section of r).
 *
 * Returns 0; -EAGAIN; -EINVAL (no object of r begins at p, or it has been freed); -EALREADY (this
 * process has retired it already); -EPERM (another client holds it); -EUSERS (this client's slot number
 * is over what an object's state can name); -ENOMEM; -EACCES (attached read-only); -EOPNOTSUPP
 * (see above).
 */
PANDO_API PANDO_NODISCARD int pando_retire(struct pando_region *r, void *p, unsigned int flags)
	PANDO_NONNULL(1, 2);

/*
 * Frees what this process has retired and readers have done with. Returns how many objects still
 * wait, or -EOPNOTSUPP. Waits for nobody. For a process that has retired something and is about to
 * be idle.
 */
PANDO_API int pando_reclaim(struct pando_region *r) PANDO_NONNULL(1);

/*
 * Sets how many bytes all clients of the region together may have waiting; 0: the default, an eighth
 * of the committed size and at least 16 MiB. Holds for all clients. Returns 0; -EACCES (read-only).
 */
PANDO_API int pando_retire_limit(struct pando_region *r, uint64_t bytes) PANDO_NONNULL(1);

enum pando_rcu_mode {
	PANDO_RCU_MEMBARRIER = 0, /* readers have no fence */
	PANDO_RCU_FENCED = 1 /* readers have fences: no membarrier() in this kernel or process */
};

/* A reader that keeps others waiting. */
struct pando_rcu_stalled {
	uint64_t ns; /* for how long at least, seen with the broker's eyes: once a second */
	int32_t pid;
	uint32_t tid;
};

struct pando_rcu_stat {
	uint32_t mode; /* enum pando_rcu_mode, of this process in this region */
	uint32_t region_mode; /* the same, of the region */
	uint64_t readers, reading; /* threads that have a place; those inside of a section */
	uint64_t grace_periods; /* begun since the region was made */
	uint64_t retired, retired_bytes; /* objects that wait, of all clients */
	uint64_t retired_limit; /* bytes */
	uint64_t own_retired, own_retired_bytes; /* of this process */
	uint64_t stalled_count; /* readers that keep others waiting for more than a second */
	struct pando_rcu_stalled stalled[16]; /* the first of them */
};

/* Fills *st, looking at the pages of all clients: 10 us for 1,000. Returns 0. */
PANDO_API int pando_rcu_stat_sized(struct pando_region *r, struct pando_rcu_stat *st, size_t size)
	PANDO_NONNULL(1, 2);
static inline int pando_rcu_stat(struct pando_region *r, struct pando_rcu_stat *st)
{
	return pando_rcu_stat_sized(r, st, sizeof(*st));
}

#ifndef PANDO_NO_INLINE
/* What follows is not to be used by itself; its layout is part of the library's binary interface. */

/* Of one region in one process; in memory that reads as 0 in a forked child. */
struct pando__read_gate {
	uint64_t serial; /* of the process's seat among the region's readers; 0: no fast path */
	const uint64_t *grace; /* grace[0]: the counter; grace[1]: what somebody waits for */
};

/* The beginning of struct pando_region. */
struct pando__gates {
	uint64_t heap[2];
	const struct pando__read_gate *reading;
};

/* Of one thread: where it reads. The seat's serial is never 0. */
struct pando__reading {
	uint64_t serial;
	uint64_t *section; /* of this thread, in the region of that seat */
	void *places; /* all of this thread's */
};
PANDO_API extern __thread struct pando__reading pando__reading
	__attribute__((tls_model("initial-exec")));

PANDO_API int pando__read_lock_slow(struct pando_region *r) PANDO_NONNULL(1);
PANDO_API int pando__read_unlock_slow(struct pando_region *r) PANDO_NONNULL(1);
PANDO_API void pando__read_wake(const uint64_t *grace, uint64_t section);

static inline struct pando__reading *pando__my_reading(void)
{
	struct pando__reading *me = &pando__reading;

#ifdef __SANITIZE_ADDRESS__
	/*
	 * With -fsanitize=null gcc asks whether the addition that makes this address has given 0; the
	 * linker may turn that into an instruction that does not say (lea). Here it is looked at.
	 */
	__asm__("" : "+r"(me));
#endif
	return me;
}

static inline PANDO_NONNULL(1) int pando_read_lock(struct pando_region *r)
{
	const struct pando__read_gate *gate = __atomic_load_n(
		&((const struct pando__gates *)(const void *)r)->reading, __ATOMIC_ACQUIRE);
	struct pando__reading *me = pando__my_reading();
	uint64_t section;

	if (__builtin_expect(me->serial != gate->serial, 0))
		return pando__read_lock_slow(r);
	section = __atomic_load_n(me->section, __ATOMIC_RELAXED);
	if (__builtin_expect((section & 0xffff) == 0, 1))
		section = __atomic_load_n(gate->grace, __ATOMIC_ACQUIRE);
	else if (__builtin_expect((section & 0xffff) == 0xffff, 0))
		return pando__read_lock_slow(r);
	else
		section++;
	__atomic_store_n(me->section, section, __ATOMIC_RELAXED);
	/* No fence: the writer's membarrier() stands for it. The compiler must keep the order. */
	__asm__ volatile("" ::: "memory");
	return 0;
}

static inline PANDO_NONNULL(1) int pando_read_unlock(struct pando_region *r)
{
	const struct pando__read_gate *gate = __atomic_load_n(
		&((const struct pando__gates *)(const void *)r)->reading, __ATOMIC_ACQUIRE);
	struct pando__reading *me = pando__my_reading();
	uint64_t section;

	if (__builtin_expect(me->serial != gate->serial, 0))
		return pando__read_unlock_slow(r);
	section = __atomic_load_n(me->section, __ATOMIC_RELAXED);
	if (__builtin_expect((section & 0xffff) != 1, 0)) {
		if ((section & 0xffff) == 0)
			return pando__read_unlock_slow(r);
		__atomic_store_n(me->section, section - 1, __ATOMIC_RELAXED);
		return 0;
	}
	__atomic_store_n(me->section, 0, __ATOMIC_RELEASE);
	__asm__ volatile("" ::: "memory"); /* as above: who waits is looked for after that */
	if (__builtin_expect(__atomic_load_n(gate->grace + 1, __ATOMIC_RELAXED) != 0, 0))
		pando__read_wake(gate->grace, section);
	return 0;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
