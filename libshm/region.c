/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Regions in this process: opening, mapping, the slot, closing.
 *
 * Opening asks the broker, which answers with three descriptors; the heap is mapped at its address,
 * ledger and slots wherever there is room, and the descriptors are closed again. All of that is
 * O(1) in the region's size: the whole maximum is mapped at once, memory is there as far as it is
 * committed, and page tables appear with use.
 *
 * Before a mapping is believed, its file is looked at: ledger and slots must have the size that was
 * announced and be sealed, so that no access can raise SIGBUS, and the ledger must be that of the
 * region that was asked for. The entry of the client table that the broker says is ours must name
 * us; that also keeps the child of a fork() from mistaking the region of another broker at the same
 * address for its parent's.
 *
 * A region is opened once in a handle and counted after that. The count and the list change under
 * the handle's lock; the last close and the first open take the turn first, so that they cannot
 * overtake each other on their way to the broker.
 *
 * If a region that was just made cannot be mapped (something is in the way), it is given back:
 * nothing is left of a call that failed.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/backend.h"
#include "common/atomic.h"
#include "common/fail.h"
#include "common/futex.h"
#include "common/inject.h"
#include "maps.h"

#define OPEN_FLAGS (PANDO_CREATE | PANDO_EXCL | PANDO_READONLY | PANDO_TRANSIENT | PANDO_HEAP)

struct pando_region *pando__region_by_id(struct pando *p, uint64_t id)
{
	struct pando_region *r = p->regions;

	while (r && r->id != id)
		r = r->next;
	return r;
}

/* The region of that name that is open here and still has the name. Under lock. */
static struct pando_region *by_name(struct pando *p, const char *name)
{
	for (struct pando_region *r = p->regions; r; r = r->next)
		if (strcmp(r->name, name) == 0 && pando__load_acquire(&r->ledger->state) == 0)
			return r;
	return NULL;
}

int pando__region_take_slot(struct pando_region *r, const struct pando__msg_opened *opened,
			    uint64_t client_id, uint64_t since_ns)
{
	const struct pando__ledger_client *entry;
	struct pando__slot *slot;
	uint64_t word;

	if (opened->region_id != r->id || opened->slot >= PANDO__MAX_CLIENTS)
		return -EPROTO;
	entry = pando__ledger_client((struct pando__ledger *)(uintptr_t)r->ledger, opened->slot);
	/* Pairs with the broker's release store of the word after the fields. */
	word = pando__load_acquire(&entry->word);
	if (word != PANDO__CLIENT_WORD(opened->generation, PANDO__CLIENT_LIVE) ||
	    entry->client_id != client_id || entry->attached_ns < since_ns)
		return -EPROTO;
	slot = (struct pando__slot *)(r->slots + (size_t)opened->slot * PANDO__SLOT_SIZE);
	if (mprotect(slot, PANDO__SLOT_SIZE, PROT_READ | PROT_WRITE) < 0)
		return -errno;
	/*
	 * Killed anywhere in here: the page has no magic, nobody believes it, the broker zeroes
	 * it.
	 */
	PANDO_INJECT("client.slot.fields");
	slot->version = PANDO__LAYOUT_VERSION;
	slot->client_id = client_id;
	slot->generation = opened->generation;
	pando__store_release(&slot->magic, PANDO__SLOT_MAGIC);
	PANDO_INJECT("client.slot.taken");
	r->slot = opened->slot;
	r->generation = opened->generation;
	return 0;
}

/* True if the file has that size and can never get smaller. */
static bool file_sound(int fd, size_t size)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	return fstat(fd, &st) == 0 && st.st_size >= 0 && (uint64_t)st.st_size >= size &&
	       seals >= 0 && (seals & F_SEAL_SHRINK);
}

static void unmap(struct pando_region *r)
{
	if (r->slots)
		munmap(r->slots, r->slots_size);
	if (r->ledger)
		munmap((void *)(uintptr_t)r->ledger, r->ledger_size);
	if (r->base)
		munmap((void *)(uintptr_t)r->base, r->max_size);
}

static int map_heap(struct pando_region *r, const struct pando__msg_opened *opened, int fd)
{
	const struct pando__backend *backend = pando__backend_find(opened->backend);
	char other[PANDO__MAPS_TEXT];
	int rc;

	if (!backend)
		return pando__fail(
			EOPNOTSUPP,
			"region \"%s\" lies on backend %s, which this library does not have",
			r->name, pando_backend_name(opened->backend));
	rc = PANDO_INJECT_FAIL("client.map.heap")
		     ? -EEXIST
		     : backend->map(fd, opened->base, opened->max_size, r->readonly);
	if (rc == 0) {
		r->base = opened->base;
		r->max_size = opened->max_size;
		return 0;
	}
	if (rc != -EEXIST)
		return rc;
	pando__maps_find(opened->base, opened->max_size, other, sizeof(other));
	return pando__fail(EADDRNOTAVAIL,
			   "region \"%s\" belongs at 0x%" PRIx64 "-0x%" PRIx64
			   ", where this process has %s; "
			   "move the regions with pandod --window-base",
			   r->name, opened->base, opened->base + opened->max_size, other);
}

static bool ledger_sound(const struct pando__ledger *l, const struct pando__msg_opened *opened)
{
	return pando__load_acquire(&l->magic) == PANDO__LEDGER_MAGIC &&
	       l->version == PANDO__LAYOUT_VERSION && l->header_size == PANDO__LEDGER_HEADER &&
	       l->region_id == opened->region_id && l->base == opened->base &&
	       l->max_size == opened->max_size && l->max_clients == PANDO__MAX_CLIENTS &&
	       l->slot_size == PANDO__SLOT_SIZE && memchr(l->name, '\0', sizeof(l->name));
}

static int map_table(const char *what, int fd, size_t size, void **out)
{
	void *at;

	if (!file_sound(fd, size))
		return pando__fail(EPROTO, "the broker's %s file is too short or not sealed", what);
	at = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (at == MAP_FAILED)
		return pando__fail(
			errno, "cannot map the %s of a region (%zu bytes): %s%s", what, size,
			strerror(errno),
			errno == ENOMEM
				? "; lift the limit on address space (ulimit -v) or raise the "
				  "sysctl vm.max_map_count"
				: "");
	*out = at;
	return 0;
}

/* All may write the RCU part of the slots; this process's readers heed others' membarrier(). */
static int share_rcu(struct pando_region *r)
{
	/* Where it is refused, the readers of this process have fences. */
	(void)pando__membarrier_register();
	if (mprotect(r->slots + PANDO__RCU_OFFSET, sizeof(struct pando__rcu),
		     PROT_READ | PROT_WRITE) < 0)
		return pando__fail(errno, "cannot map the RCU part of region \"%s\": %s", r->name,
				   strerror(errno));
	return 0;
}

/* Where names are found; who may not write the region, changes none. */
static int share_directory(struct pando_region *r)
{
	r->directory = pando__directory_gate_of(r->ledger, r->slots, (char *)(uintptr_t)r->base);
	if (!r->readonly && mprotect(r->slots + PANDO__DIRECTORY_OFFSET, PANDO__DIRECTORY_SIZE,
				     PROT_READ | PROT_WRITE) < 0)
		return pando__fail(errno, "cannot map the directory of region \"%s\": %s", r->name,
				   strerror(errno));
	return 0;
}

/* Maps the three files that came with *opened. Under lock. On failure the caller unmaps. */
static int map_all(struct pando *p, struct pando_region *r, const struct pando__msg_opened *opened)
{
	void *at;
	int rc;

	if (p->nfds != 3 || opened->ledger_size != PANDO__LEDGER_SIZE ||
	    opened->slots_size != PANDO__SLOTS_SIZE)
		return pando__fail(
			EPROTO,
			"the broker's answer to opening \"%s\" has %u descriptors, not 3, or "
			"other sizes than this library's",
			r->name, p->nfds);
	rc = map_heap(r, opened, p->fds[2]);
	if (rc < 0)
		return rc;
	PANDO_INJECT("client.open.heap");
	rc = map_table("ledger", p->fds[0], opened->ledger_size, &at);
	if (rc < 0)
		return rc;
	r->ledger = at;
	r->ledger_size = opened->ledger_size;
	rc = map_table("slots", p->fds[1], opened->slots_size, &at);
	if (rc < 0)
		return rc;
	r->slots = at;
	r->slots_size = opened->slots_size;
	rc = share_rcu(r);
	if (rc < 0)
		return rc;
	if (!ledger_sound(r->ledger, opened))
		return pando__fail(EPROTO,
				   "the ledger of region \"%s\" is not one of format version %u",
				   r->name, PANDO__LAYOUT_VERSION);
	memcpy(r->name, r->ledger->name, sizeof(r->name));
	rc = share_directory(r);
	if (rc < 0)
		return rc;
	rc = pando__region_take_slot(r, opened, p->client_id, 0);
	if (rc < 0)
		return pando__fail(
			-rc, "cannot take slot %u of region \"%s\": %s", opened->slot, r->name,
			rc == -EPROTO ? "the ledger names another client" : strerror(-rc));
	return 0;
}

/* Gives back an attachment that could not be used, and the region, if nobody else has it yet. */
static void undo_open(struct pando *p, const struct pando__msg_opened *opened, const char *name)
{
	struct pando__msg request, reply;
	char sentence[PANDO__ERROR_MAX];

	/* What the caller is to read is why it failed, not how undoing it went. */
	snprintf(sentence, sizeof(sentence), "%s", pando_strerror_last());
	if (opened->created) {
		pando__msg_init(&request, PANDO__MSG_LIST, 0);
		strcpy(request.walk.name, name);
		if (pando__call(p, &request, PANDO__MSG_REGIONS, 0, &reply) == 0 &&
		    reply.regions.count == 1 && reply.regions.info[0].id == opened->region_id &&
		    reply.regions.info[0].clients <= 1) {
			pando__msg_init(&request, PANDO__MSG_REMOVE, 0);
			strcpy(request.remove.name, name);
			(void)pando__call(p, &request, PANDO__MSG_DONE, 0, &reply);
		}
	}
	pando__msg_init(&request, PANDO__MSG_CLOSE, 0);
	request.close.region_id = opened->region_id;
	(void)pando__call(p, &request, PANDO__MSG_DONE, 0, &reply);
	(void)pando__fail(EIO, "%s", sentence);
}

/* The answer is there, its descriptors in p->fds: makes the region of it. */
static int adopt(struct pando *p, const char *name, const struct pando__msg_opened *opened,
		 struct pando_region **out)
{
	struct pando_region *r = calloc(1, sizeof(*r));
	int rc;

	pthread_mutex_lock(&p->lock);
	if (!r) {
		rc = pando__fail(ENOMEM, "no memory for the handle of region \"%s\"", name);
	} else {
		r->p = p;
		r->opens = 1;
		r->id = opened->region_id;
		r->backend = opened->backend;
		r->page_size = opened->page_size;
		r->readonly = opened->readonly;
		r->membership = PANDO__ATTACHED;
		r->slot = PANDO__NO_SLOT;
		pando__rcu_gate_init(&r->rcu);
		strcpy(r->name, name);
		rc = pando__region_by_id(p, r->id)
			     ? pando__fail(EPROTO, "the broker gave region \"%s\" a second time",
					   name)
			     : map_all(p, r, opened);
	}
	pando__close_fds(p);
	if (rc == 0) {
		r->next = p->regions;
		p->regions = r;
	} else if (r) {
		unmap(r);
	}
	pthread_mutex_unlock(&p->lock);
	if (rc < 0) {
		free(r);
		return rc;
	}
	*out = r;
	return 0;
}

static int check_options(const char *name, const struct pando_region_options *o)
{
	if (o->size == 0)
		return pando__fail(EINVAL, "region \"%s\" cannot have size 0; set options.size",
				   name);
	if (o->max_size && o->max_size < o->size)
		return pando__fail(EINVAL,
				   "region \"%s\": size %" PRIu64 " is over max_size %" PRIu64,
				   name, o->size, o->max_size);
	if (o->size > INT64_MAX - PANDO__GIB || o->max_size > INT64_MAX - PANDO__GIB)
		return pando__fail(EINVAL,
				   "region \"%s\": %" PRIu64
				   " bytes are more than any machine can address",
				   name, o->max_size > o->size ? o->max_size : o->size);
	if (o->address & (PANDO__GIB - 1))
		return pando__fail(EINVAL,
				   "region \"%s\": address 0x%" PRIx64
				   " is not a multiple of 1 GiB (0x40000000)",
				   name, o->address);
	if (o->backend > PANDO_BACKEND_MSHARE)
		return pando__fail(EINVAL, "region \"%s\": there is no backend number %u", name,
				   o->backend);
	if (o->mode & ~0777u)
		return pando__fail(EINVAL, "region \"%s\": mode 0%o has bits beyond 0777", name,
				   o->mode);
	if (o->set_gid > 1)
		return pando__fail(EINVAL, "region \"%s\": set_gid is %u, not 0 or 1", name,
				   o->set_gid);
	return 0;
}

/* The caller's options, which may be those of an older or a newer header. */
static int take_options(const struct pando_region_options *options, size_t size,
			struct pando_region_options *o)
{
	memset(o, 0, sizeof(*o));
	if (!options || size == 0)
		return 0;
	for (size_t i = sizeof(*o); i < size; i++)
		if (((const char *)options)[i])
			return pando__fail(
				EINVAL,
				"an option is set that this library (version %s) does not know",
				pando_version());
	memcpy(o, options, size < sizeof(*o) ? size : sizeof(*o));
	return 0;
}

static int check_open(const char *name, unsigned int flags, const struct pando_region_options *o)
{
	if (!pando__region_name_ok(name))
		return pando__fail(EINVAL,
				   "\"%.80s\" is not a region name: 1 to %d of A-Z a-z 0-9 . _ - "
				   "and neither . "
				   "nor - in front",
				   name, PANDO_REGION_NAME_MAX);
	if (flags & ~OPEN_FLAGS)
		return pando__fail(EINVAL, "region \"%s\": flags 0x%x has bits that mean nothing",
				   name, flags);
	if ((flags & (PANDO_EXCL | PANDO_TRANSIENT | PANDO_HEAP)) && !(flags & PANDO_CREATE))
		return pando__fail(EINVAL,
				   "region \"%s\": PANDO_EXCL, PANDO_TRANSIENT and PANDO_HEAP need "
				   "PANDO_CREATE",
				   name);
	return flags & PANDO_CREATE ? check_options(name, o) : 0;
}

/*
 * Counts one more open of a region that is open already. 1: done; 0: it is not open; or an error.
 */
static int open_again(struct pando *p, const char *name, unsigned int flags,
		      struct pando_region **out)
{
	struct pando_region *r;
	int rc = 0;

	pthread_mutex_lock(&p->lock);
	r = by_name(p, name);
	if (!r) {
		rc = 0;
	} else if (flags & PANDO_EXCL) {
		rc = pando__fail(EEXIST, "region \"%s\" exists already", name);
	} else if (r->readonly && !(flags & PANDO_READONLY)) {
		rc = pando__fail(EACCES,
				 "region \"%s\" is open read-only in this process; close it first "
				 "to open it for "
				 "writing",
				 name);
	} else {
		r->opens++;
		*out = r;
		rc = 1;
	}
	pthread_mutex_unlock(&p->lock);
	return rc;
}

static int open_first(struct pando *p, const char *name, unsigned int flags,
		      const struct pando_region_options *o, struct pando_region **out)
{
	struct pando__msg request, reply;
	int rc;

	pando__msg_init(&request, PANDO__MSG_OPEN, 0);
	strcpy(request.open.name, name);
	request.open.flags = flags;
	if (flags & PANDO_CREATE) {
		request.open.size = o->size;
		request.open.max_size = o->max_size;
		request.open.address = o->address;
		request.open.backend = o->backend;
		request.open.mode = o->mode;
		request.open.gid = o->gid;
		request.open.set_gid = o->set_gid;
	}
	rc = pando__call(p, &request, PANDO__MSG_OPENED, request.open.size, &reply);
	if (rc < 0)
		return rc;
	PANDO_INJECT("client.open.received");
	rc = adopt(p, name, &reply.opened, out);
	if (rc < 0)
		undo_open(p, &reply.opened, name);
	return rc;
}

int pando_region_open_sized(struct pando *p, const char *name, unsigned int flags,
			    const struct pando_region_options *options, size_t options_size,
			    struct pando_region **out)
{
	struct pando_region_options o;
	int rc;

	*out = NULL;
	rc = take_options(options, options_size, &o);
	if (rc == 0)
		rc = check_open(name, flags, &o);
	if (rc < 0)
		return rc;
	rc = pando__begin(p);
	if (rc == 0)
		rc = open_again(p, name, flags, out);
	if (rc == 0)
		rc = open_first(p, name, flags, &o, out);
	pando__end(p);
	return rc < 0 ? rc : 0;
}

/*
 * The last close: unmaps, then tells the broker, which may give the slot to another after that.
 * Turn held.
 */
static int close_last(struct pando *p, struct pando_region *r, int connected)
{
	struct pando__msg request, reply;
	struct pando_region **at = &p->regions;
	bool known;

	pthread_mutex_lock(&p->lock);
	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	known = r->membership == PANDO__ATTACHED || r->membership == PANDO__ASKED;
	pando__rcu_gate_close(&r->rcu);
	pando__region_heap_close(r);
	unmap(r);
	pthread_mutex_unlock(&p->lock);
	PANDO_INJECT("client.close.unmapped");
	pando__msg_init(&request, PANDO__MSG_CLOSE, 0);
	request.close.region_id = r->id;
	free(r);
	if (connected < 0)
		return connected;
	return known ? pando__call(p, &request, PANDO__MSG_DONE, 0, &reply) : 0;
}

int pando_region_close(struct pando_region *r)
{
	struct pando *p;
	bool last;
	int rc;

	if (!r)
		return 0;
	p = r->p;
	pthread_mutex_lock(&p->lock);
	last = r->opens == 1;
	if (!last)
		r->opens--;
	pthread_mutex_unlock(&p->lock);
	if (!last)
		return 0;
	pando__fork_settle();
	rc = pando__begin(p);
	pthread_mutex_lock(&p->lock);
	last = --r->opens == 0; /* another thread may have opened it meanwhile */
	pthread_mutex_unlock(&p->lock);
	if (last)
		rc = close_last(p, r, rc);
	pando__end(p);
	return rc < 0 ? rc : 0;
}

int pando_region_resize(struct pando_region *r, uint64_t size)
{
	struct pando__msg request, reply;
	uint64_t now = pando_region_size(r);
	int rc;

	if (r->readonly)
		return pando__fail(EACCES,
				   "region \"%s\" is open read-only: it cannot be resized here",
				   r->name);
	if (size == 0)
		return pando__fail(EINVAL,
				   "region \"%s\" cannot have size 0; use pando_region_destroy()",
				   r->name);
	if (size > r->max_size)
		return pando__fail(
			EINVAL, "region \"%s\": %" PRIu64 " bytes are over its maximum of %" PRIu64,
			r->name, size, r->max_size);
	pando__msg_init(&request, PANDO__MSG_RESIZE, 0);
	request.resize.region_id = r->id;
	request.resize.size = size;
	rc = pando__begin(r->p);
	if (rc == 0)
		rc = pando__call(r->p, &request, PANDO__MSG_DONE,
				 size > now ? size - now : now - size, &reply);
	pando__end(r->p);
	return rc;
}

void *pando_region_base(const struct pando_region *r)
{
	return (void *)(uintptr_t)r->base;
}

uint64_t pando_region_size(const struct pando_region *r)
{
	/*
	 * Pairs with the broker's release store, which follows the commit and precedes the
	 * decommit.
	 */
	return pando__load_acquire(&r->ledger->committed);
}

int pando_region_wait_size(struct pando_region *r, uint64_t seen, int timeout_ms)
{
	uint64_t deadline = pando__now_ns(CLOCK_MONOTONIC) +
			    (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;

	for (;;) {
		/* The count first: a change after it makes the wait return at once. */
		uint32_t changes = pando__load_acquire(&r->ledger->changes);
		uint64_t now = pando__now_ns(CLOCK_MONOTONIC);
		struct timespec left;

		if (pando_region_size(r) != seen)
			return 0;
		if (timeout_ms >= 0 && now >= deadline)
			return pando__fail(ETIMEDOUT,
					   "region \"%s\" kept its size of %" PRIu64
					   " bytes for %d ms",
					   r->name, seen, timeout_ms);
		left.tv_sec = (time_t)((deadline - now) / 1000000000);
		left.tv_nsec = (long)((deadline - now) % 1000000000);
		(void)pando__futex_wait(&r->ledger->changes, changes,
					timeout_ms < 0 ? NULL : &left);
	}
}

static uint32_t count_clients(const struct pando__ledger *l)
{
	uint32_t high = pando__load_acquire(&l->clients_high), live = 0;

	for (uint32_t i = 0; i < high && i < PANDO__MAX_CLIENTS; i++) {
		const struct pando__ledger_client *c =
			pando__ledger_client((struct pando__ledger *)(uintptr_t)l, i);

		live += PANDO__CLIENT_STATE(pando__load_relaxed(&c->word)) == PANDO__CLIENT_LIVE;
	}
	return live;
}

int pando_region_stat(struct pando_region *r, struct pando_region_stat *st)
{
	pando__look(r->p);
	memset(st, 0, sizeof(*st));
	st->base = r->base;
	st->size = pando_region_size(r);
	st->max_size = r->max_size;
	st->backend = r->backend;
	st->page_size = r->page_size;
	st->readonly = r->readonly;
	st->clients = count_clients(r->ledger);
	memcpy(st->name, r->name, sizeof(st->name));
	pthread_mutex_lock(&r->p->lock);
	st->slot = r->slot;
	st->registered = r->membership == PANDO__ATTACHED && r->p->standing == PANDO__TALKING;
	pthread_mutex_unlock(&r->p->lock);
	return 0;
}
