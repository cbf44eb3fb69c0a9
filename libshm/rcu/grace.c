/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Grace periods across processes: who sees what, and why.
 *
 * A region has one 64-bit counter, `grace`, and a reader has one 64-bit word, `section`, on a line
 * that only its thread writes.
 *
 *	reader, outermost			writer
 *	R1  g = grace				W1  unlink the object
 *	R2  section = g | depth 1		W2  target = grace + 1 step, atomically
 *	    (no fence)				W3  membarrier()
 *	R3  ... follow pointers ...		W4  look at each section: is there one that is not
 *	R4  section = 0, release		    0 and older than target? then wait, W4 again
 *	    (no fence)				W5  free the object
 *	R5  waiting? then wake
 *
 * Claim: when W4 has found each reader outside of a section, or in one not older than target, once,
 * then no reader has or will get a pointer to the object. For one reader, with W4's load of its
 * section in mind:
 *
 *  1.	It is in a section with g >= target. Then R1 has read what W2 stored, or a later value; the
 *	counter only changes by read-modify-write, so R1 (acquire) comes after W2 and so after W1.
 *	R3 comes after R1: it sees the object unlinked.
 *  2.	It is outside, and R2 of its next section has not been executed before the barrier that W3 made
 *	its processor execute. Then R3 comes after that barrier, hence after W1: it sees the object
 *	unlinked.
 *  3.	It is outside, and R2 was executed before that barrier. Then the barrier has made R2's store
 *	visible before W4 looks. W4 finds 0, so R4 has been executed, too; R4 (release) and W4
 *	(acquire) put all of R3 before W5.
 *
 * There is no fourth case, and none of them asks whether R1 is old. That is the classic trap: a
 * reader executes R1 and is stopped for long; meanwhile grace periods come and go without seeing it,
 * rightly, by case 2. Then it stores a value that is long past. With one bit for the counter, as in
 * a naive two-phase scheme, that value may look like the current one, and the next writer would not
 * wait for it: such schemes flip twice, under a lock. Here values are never used again (48 bits: at
 * a million grace periods a second, nine years): an old value only makes the next writer wait for
 * a reader that it might not have to wait for.
 *
 * So there is nothing to lock and nothing to flip: any number of writers do W1 to W5 at once, and one
 * that is killed anywhere leaves a counter that is one step further, which means nothing.
 *
 * A grace period serves everybody: `done` is the highest target for which somebody has come to the
 * end of W4. Whoever has unlinked, then executed a full barrier, then read the counter as c, may
 * free as soon as done > c: that grace period's W2 came after the unlinking, so 1 to 3 hold with
 * the unlinking in place of W1.
 *
 * Sleeping. A writer that has to wait stores its target into `waiting`, executes membarrier() again,
 * looks again, and sleeps on the lower half of `waiting`. A reader that ends its section and then
 * finds a target newer than its section there stores 0 and wakes all. By the same three cases as
 * above, with "R4, then R5" in place of "R2, then R3": either the reader's load at R5 sees the
 * target, or W4, after the barrier, sees that its section has ended. Those who wait for less never
 * lower the target. Readers that began later are not in the way and wake nobody, so a busy region
 * does not wake a writer for nothing.
 *
 * Deaths. A reader that is killed in a section: the broker sets its client's entry in the ledger to
 * REAPING, from when on its section does not count, and wakes all. One that is killed between R4 and
 * the wake-up, likewise. A section in the page of an entry that is not LIVE cannot matter: if the
 * entry is read as FREE in W4, the process that gets it next does all its reading after that, hence
 * after W1. The same goes for records that are taken into use while W4 is under way: `readers_high`
 * and `page_owner` are stored before R1.
 *
 * Where the kernel has no membarrier() (PANDO__RCU_FENCED, said in the ledger for all alike), R2 and R4
 * are exchanges, which are full barriers; W3 is nothing, for W2 is one too. A process that a filter
 * forbids membarrier() fences its own readers, whatever the region's mode; in a region without fences
 * it cannot be a writer, since it cannot do W3.
 *
 * tests/rcu/model.pml is this algorithm for Spin, with store buffers, deaths, and the mistakes that it
 * avoids. Which instructions are plain: x86-64, the only machine that this library runs on, orders
 * loads with loads and stores with stores; it lets a store wait while later loads are executed,
 * which is what R2/R3 and R4/R5 are about.
 */
#include "grace.h"

#include <errno.h>
#include <limits.h>
#include <linux/membarrier.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/fail.h"
#include "common/futex.h"
#include "common/inject.h"

#define RETIRED_MIN (16ull << 20) /* default limit: at least this, */
#define RETIRED_PART 8 /* and this part of the region */

static int membarrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0) < 0 ? -errno : 0;
}

enum pando__rcu_mode pando__membarrier_mode(void)
{
	const long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);

	if (commands < 0 || !(commands & MEMBARRIER_CMD_GLOBAL_EXPEDITED) ||
	    PANDO_INJECT_FAIL("rcu.membarrier.query"))
		return PANDO__RCU_FENCED;
	return PANDO__RCU_MEMBARRIER;
}

bool pando__membarrier_register(void)
{
	return membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0 &&
	       !PANDO_INJECT_FAIL("rcu.membarrier.register");
}

int pando__membarrier(const struct pando__rcu_view *v)
{
	int rc;

	if (v->ledger->rcu_mode == PANDO__RCU_FENCED)
		return 0;
	rc = PANDO_INJECT_FAIL("rcu.membarrier.call") ? -EPERM
						      : membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
	if (rc == 0)
		return 0;
	return pando__fail(
		EOPNOTSUPP,
		"membarrier() failed: %s; the readers of region \"%.63s\" have no fences, "
		"so a process that waits for them must be allowed it (by its seccomp filter)",
		strerror(-rc), v->ledger->name);
}

void pando__grace_format(struct pando__rcu *rcu)
{
	const uint64_t first = PANDO__GRACE_STEP | PANDO__SECTION_ONE;

	/* The one that nobody has begun is over: there is nothing to look after yet. */
	pando__store_relaxed(&rcu->done, first);
	pando__store_release(&rcu->grace, first);
}

int pando__grace_begin(const struct pando__rcu_view *v, uint64_t *target)
{
	int rc;

	*target = pando__add_seq_cst(&v->rcu->grace, PANDO__GRACE_STEP) + PANDO__GRACE_STEP;
	PANDO_INJECT("rcu.grace.begun");
	rc = pando__membarrier(v); /* W3 */
	PANDO_INJECT("rcu.grace.barrier");
	return rc;
}

void pando__grace_done(const struct pando__rcu_view *v, uint64_t target)
{
	uint64_t seen = pando__load_acquire(&v->rcu->done);

	while (seen < target && !pando__cas_acq_rel(&v->rcu->done, &seen, target))
		;
}

void pando__grace_wake(struct pando__rcu *rcu)
{
	(void)pando__exchange_seq_cst(&rcu->waiting, 0);
	PANDO_INJECT("rcu.wake.cleared");
	(void)pando__futex_wake((uint32_t *)(void *)&rcu->waiting, INT_MAX);
}

/* --- walking over all readers of living clients --- */

static const struct pando__ledger_client *entry(const struct pando__rcu_view *v, uint64_t slot)
{
	return slot < PANDO__MAX_CLIENTS ? pando__ledger_client(v->ledger, (uint32_t)slot) : NULL;
}

static bool lives(const struct pando__ledger_client *e)
{
	/* Pairs with the broker's release store: a new client's page is as it left it, zeroed. */
	return PANDO__CLIENT_STATE(pando__load_acquire(&e->word)) == PANDO__CLIENT_LIVE;
}

/* The client that has a page of readers, if it lives. */
static const struct pando__ledger_client *page_client(const struct pando__rcu_view *v,
						      uint32_t page)
{
	const uint64_t owner = pando__load_acquire(&v->rcu->page_owner[page]);
	const struct pando__ledger_client *e = owner ? entry(v, (owner & 0xffffff) - 1) : NULL;

	if (!e ||
	    pando__load_acquire(&e->word) != PANDO__CLIENT_WORD(owner >> 24, PANDO__CLIENT_LIVE))
		return NULL;
	return e;
}

static uint32_t at_most(uint32_t value, uint32_t most)
{
	return value < most ? value : most;
}

const struct pando__ledger_client *pando__reader_client(const struct pando__rcu_view *v,
							const struct pando__reader_at *at)
{
	const struct pando__ledger_client *e;

	if (at->behind)
		return at->page < PANDO__READER_PAGES ? page_client(v, at->page) : NULL;
	e = entry(v, at->page);
	return e && lives(e) ? e : NULL;
}

static const struct pando__slot *slot_page(const struct pando__rcu_view *v, uint32_t slot)
{
	return (const void *)(v->slots + (size_t)slot * PANDO__SLOT_SIZE);
}

/* The first reader of a page, and how many of them there are; NULL: its client does not live. */
static const struct pando__reader *readers_of(const struct pando__rcu_view *v,
					      const struct pando__reader_at *at, uint32_t *count)
{
	if (!pando__reader_client(v, at))
		return NULL;
	if (at->behind) {
		*count = PANDO__PAGE_READERS;
		return (const void *)(v->slots + PANDO__READERS_OFFSET +
				      (size_t)at->page * PANDO__SLOT_SIZE);
	}
	*count = at_most(pando__load_acquire(&slot_page(v, at->page)->readers_high),
			 PANDO__SLOT_READERS);
	return slot_page(v, at->page)->readers;
}

static uint32_t page_count(const struct pando__rcu_view *v, bool behind)
{
	if (behind)
		return at_most(pando__load_acquire(&v->rcu->pages_high), PANDO__READER_PAGES);
	return at_most(pando__load_acquire(&v->ledger->clients_high), PANDO__MAX_CLIENTS);
}

/* From *at on, the first reader that is in the way of target: false if there is none. */
static bool find(const struct pando__rcu_view *v, uint64_t target, struct pando__reader_at *at,
		 const struct pando__reader **reader, uint64_t *section)
{
	for (;;) {
		const uint32_t pages = page_count(v, at->behind);

		for (; at->page < pages; at->page++, at->index = 0) {
			const struct pando__reader *of;
			uint32_t count;

			of = readers_of(v, at, &count);
			for (; of && at->index < count; at->index++) {
				/* R4's partner. */
				*section = pando__load_acquire(&of[at->index].section);
				*reader = &of[at->index];
				if (pando__section_before(*section, target))
					return true;
			}
		}
		if (at->behind)
			return false;
		*at = (struct pando__reader_at){.behind = true};
	}
}

bool pando__grace_over(const struct pando__rcu_view *v, struct pando__grace_scan *s)
{
	const struct pando__reader *reader;

	return pando__grace_is_done(v, s->target) ||
	       !find(v, s->target, &s->at, &reader, &s->section);
}

uint64_t pando__grace_blockers(const struct pando__rcu_view *v, uint64_t target,
			       void (*tell)(void *arg, const struct pando__reader_at *at,
					    const struct pando__reader *reader, uint64_t section),
			       void *arg)
{
	struct pando__reader_at at = {0};
	const struct pando__reader *reader;
	uint64_t section, n = 0;

	for (; find(v, target, &at, &reader, &section); at.index++, n++)
		tell(arg, &at, reader, section);
	return n;
}

static uint64_t add(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* Also of the dead, whose objects are not free before a grace period is over. */
static void count_retired(const struct pando__rcu_view *v, struct pando__rcu_count *out)
{
	const uint32_t slots = page_count(v, false);

	for (uint32_t i = 0; i < slots; i++) {
		const struct pando__slot *page = slot_page(v, i);

		if (PANDO__CLIENT_STATE(pando__load_acquire(&entry(v, i)->word)) ==
		    PANDO__CLIENT_FREE)
			continue;
		out->retired = add(out->retired, pando__load_relaxed(&page->retired));
		out->retired_bytes =
			add(out->retired_bytes, pando__load_relaxed(&page->retired_bytes));
	}
}

void pando__rcu_count(const struct pando__rcu_view *v, struct pando__rcu_count *out)
{
	memset(out, 0, sizeof(*out));
	count_retired(v, out);
	for (int behind = 0; behind < 2; behind++) {
		struct pando__reader_at at = {.behind = behind};

		for (; at.page < page_count(v, behind); at.page++) {
			uint32_t count;
			const struct pando__reader *of = readers_of(v, &at, &count);

			for (uint32_t i = 0; of && i < count; i++) {
				out->readers += pando__load_relaxed(&of[i].tid) != 0;
				out->reading += pando__load_relaxed(&of[i].section) != 0;
			}
		}
	}
}

uint64_t pando__retired_limit(const struct pando__rcu_view *v)
{
	const uint64_t part = pando__load_relaxed(&v->ledger->committed) / RETIRED_PART;
	const uint64_t set = pando__load_relaxed(&v->rcu->retired_limit);

	if (set)
		return set;
	return part > RETIRED_MIN ? part : RETIRED_MIN;
}
