/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fork(): the child becomes a client of its own.
 *
 * Three handlers of pthread_atfork(), registered once, with the first connection:
 *
 *	prepare	takes the list of handles and every handle's lock, so that the copy is consistent.
 *		None of them is ever held while waiting for a broker, so fork() waits for nobody.
 *	parent	lets go again.
 *	child	for each handle: a new connection, HELLO that names the parent, OPEN for each
 *		region, and no waiting for answers (pando__hail()); only after that the inherited
 *		socket is closed. The answers are read at the child's next call into the library.
 *		Until then it has no slot; memory works at once.
 *
 * The order in the child matters. While it has the parent's socket, the broker sees no hang-up of
 * the parent, even if the parent has ended; when it does see it, the child's messages are queued
 * already. So the regions of a parent that dies right after fork() are not given up while the child
 * is on its way.
 *
 * A parent that lives on could close a region while a child is on its way, and so end a transient
 * one under it. It knows how many children are on their way from a counter in a page that they
 * share (`under_way`: plus one before fork(), minus one by the child), and the last close of a
 * region waits for them, a moment at most: a child may have been killed.
 *
 * The parent's slot page is made read-only in the child, its heap fronts are forgotten. Descriptors that another thread of the
 * parent had just received, and the list of mappings, are in order because they change under
 * `lock`. What such a thread had on its stack is lost, as after any fork().
 *
 * A child made by vfork() or posix_spawn() shares the parent's memory until exec(), which leaves
 * nothing: the sockets are close-on-exec, the mappings go. A child made by _Fork() or clone() runs
 * no handlers; its first call finds a page (`mark`) that the kernel has wiped in the copy, and does
 * the same then.
 *
 * The child handler calls only what is safe after fork() in a threaded program: no allocation, no
 * stdio.
 */
#include "client.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"
#include "common/futex.h"
#include "common/inject.h"

#define FORK_CONNECT_MS 100 /* how long a full queue of the broker may delay the child */

/* What a child may need to get a processor, on a machine with ten others waiting for each. */
#define UNDER_WAY_MS 1000

static uint32_t *under_way; /* children that have not hailed yet; NULL: no page could be had */
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pando *handles;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int register_error;

static void disown_slot(struct pando_region *r)
{
	if (r->slot != PANDO__NO_SLOT)
		(void)mprotect(r->slots + (size_t)r->slot * PANDO__SLOT_SIZE, PANDO__SLOT_SIZE,
			       PROT_READ);
	r->slot = PANDO__NO_SLOT;
	r->generation = 0;
	if (r->membership != PANDO__LOST)
		r->membership = PANDO__UNSENT;
}

/* Makes the handle that a child inherited its own. Nobody else is here, whatever the locks say. */
static void forked(struct pando *p)
{
	pthread_mutex_init(&p->turn, NULL);
	pthread_mutex_init(&p->lock, NULL);
	*p->mark = 1;
	pthread_mutex_lock(&p->lock);
	pando__close_fds(p);
	p->unclaimed_count = 0;
	p->hello_seq = 0;
	if (p->client_id)
		p->parent = p->client_id;
	pando__store_release(&p->client_id, 0);
	if (p->inherited < 0) { /* else: this one's parent was a child that had not got through */
		p->inherited = p->socket;
		p->inherited_inode = p->socket_inode;
		p->socket = -1;
	}
	pando__hang_up(p);
	for (struct pando_region *r = p->regions; r; r = r->next) {
		disown_slot(r);
		pando__region_heap_forked(r);
		pando__rcu_gate_forked(&r->rcu);
	}
	pando__graft_forked(p);
	if (!p->live) /* a thread was about to get it, or be rid of it: it is nobody's here */
		p->standing = PANDO__GONE;
	else if (p->standing == PANDO__TALKING)
		p->standing = PANDO__ADRIFT;
	pthread_mutex_unlock(&p->lock);
	PANDO_INJECT("client.fork.disowned");
	if (p->standing == PANDO__ADRIFT)
		(void)pando__hail(p, FORK_CONNECT_MS);
	else
		pando__drop_inherited(p);
	PANDO_INJECT("client.fork.hailed");
}

void pando__check_mark(struct pando *p)
{
	if (*p->mark == 0)
		forked(p);
}

static void prepare(void)
{
	pthread_mutex_lock(&handles_lock);
	for (struct pando *p = handles; p; p = p->next)
		pthread_mutex_lock(&p->lock);
	pando__large_fork_prepare();
	pando__buffers_fork_prepare();
	if (under_way && handles)
		pando__add_relaxed(under_way, 1);
}

static void unlock_handles(void)
{
	for (struct pando *p = handles; p; p = p->next)
		pthread_mutex_unlock(&p->lock);
	pthread_mutex_unlock(&handles_lock);
}

static void parent(void)
{
	pando__buffers_fork_parent();
	pando__large_fork_parent();
	unlock_handles();
}

/* The child is on its own; unless somebody has given up waiting for it, the count goes down. */
static void arrived(void)
{
	uint32_t count = pando__load_acquire(under_way);

	while (count > 0 && !pando__cas_acq_rel(under_way, &count, count - 1))
		;
	pando__futex_wake(under_way, INT_MAX);
}

static void child(void)
{
	int saved = errno;

	pando__buffers_fork_child();
	pando__large_fork_child();
	unlock_handles();
	pando__embedded_forked();
	for (struct pando *p = handles; p; p = p->next)
		forked(p);
	PANDO_INJECT("client.fork.done");
	if (under_way && handles)
		arrived();
	errno = saved;
}

void pando__fork_settle(void)
{
	uint64_t now = pando__now_ns(CLOCK_MONOTONIC), end = now + UNDER_WAY_MS * 1000000ull;
	uint32_t count;

	if (!under_way)
		return;
	while ((count = pando__load_acquire(under_way)) > 0 && now < end) {
		struct timespec left = {.tv_nsec = (long)(end - now)};

		(void)pando__futex_wait(under_way, count, &left);
		now = pando__now_ns(CLOCK_MONOTONIC);
	}
	if (count > 0) /* killed on its way, or fork() failed: do not wait for it again */
		(void)pando__cas_acq_rel(under_way, &count, 0);
}

static void register_handlers(void)
{
	void *page = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (page != MAP_FAILED)
		under_way = page;
	register_error = pthread_atfork(prepare, parent, child);
}

int pando__fork_enlist(struct pando *p)
{
	pthread_once(&once, register_handlers);
	if (register_error)
		return pando__fail(register_error, "cannot register handlers for fork(): %s",
				   strerror(register_error));
	pthread_mutex_lock(&handles_lock);
	p->next = handles;
	p->prev = NULL;
	if (handles)
		handles->prev = p;
	handles = p;
	pthread_mutex_unlock(&handles_lock);
	return 0;
}

void pando__fork_delist(struct pando *p)
{
	pthread_mutex_lock(&handles_lock);
	if (p->next)
		p->next->prev = p->prev;
	if (p->prev)
		p->prev->next = p->next;
	else
		handles = p->next;
	pthread_mutex_unlock(&handles_lock);
}

int pando__mark_new(struct pando *p)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return pando__fail(errno, "cannot map a page: %s", strerror(errno));
	/* Refused before Linux 4.14: then a _Fork() goes unnoticed, a fork() does not. */
	(void)madvise(page, size, MADV_WIPEONFORK);
	p->mark = page;
	*p->mark = 1;
	return 0;
}

void pando__mark_free(struct pando *p)
{
	if (p->mark)
		munmap((void *)p->mark, (size_t)sysconf(_SC_PAGESIZE));
	p->mark = NULL;
}
