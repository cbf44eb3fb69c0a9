/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The broker's core: clients, regions, and what they ask of each other. Private to broker/.
 *
 * The core has no sockets and no event loop. Packets go in through handler_packet(), the end of a
 * client through client_gone(), finished work through job->done; answers and long work go out
 * through struct broker_ops. server.c connects it to libuv; the fuzzer and the unit tests connect
 * it to a few functions of their own.
 *
 * Everything here runs on one thread, except job_work(), which runs on a worker and touches its job;
 * while a region is CREATING, that region's files; and, in a job of the heap, what struct
 * region_heap says. Objects:
 *
 *	broker --- clients (by ascending id) --- attachments --- regions (by ascending id)
 *	                       \--- one request under way at most: a job, or parked
 *
 *	region:	CREATING --job done--> LIVE --last user gone--> DYING --job done--> freed
 *		   |			    (destroyed or transient ones)
 *		   \--job failed, or requester gone--> freed
 *
 * Invariants (broker_check() verifies them):
 *	region->users == attachments that lead to it and have a slot == LIVE entries of its table
 *	region->heap.reaping == REAPING entries of its table
 *	region->holds == attachments that lead to it and are released
 *	client->busy <=> client->job or client->parked
 *	memory booked for a uid == sum over its regions of the more of `committed` and `target`
 *	a region that is LIVE or DYING has a record; one that is CREATING has none
 *
 * Errors: a handler returns 0 when it has answered or will, or a negative errno with a sentence,
 * which becomes the ERROR that the client gets. The broker itself ends on one thing only: it cannot
 * take up its records.
 */
#ifndef PANDO_BROKER_BROKER_H
#define PANDO_BROKER_BROKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "allocator/heap.h"
#include "backend/backend.h"
#include "common/fail.h"
#include "common/layout.h"
#include "protocol/protocol.h"
#include "rcu/grace.h"

#include "access.h"
#include "config.h"
#include "graft.h"
#include "quota.h"
#include "records.h"
#include "store.h"
#include "window.h"

#define BROKER_ANSWERED 64u /* more than a client sends ahead */
#define BROKER_PIECE (64ull << 20) /* bytes of memory that are taken between two looks around */

struct broker;
struct client;
struct region;
struct job;

/* Requests that wait for something, first come first served. */
struct parking {
	struct client *first, *last;
};

struct attachment {
	struct attachment *next; /* of the client */
	struct client *client;
	struct region *region;
	uint64_t generation;
	uint32_t slot;
	bool readonly;
	bool released; /* its process has ended: the slot is given back, the region still held */
};

struct client {
	struct client *next, *previous; /* of the broker, by ascending id */
	struct client *hash_next;
	struct broker *broker;
	void *outside; /* the server's */
	struct client_record record; /* id, parent, start time, program, greeted */
	struct identity who;
	pid_t pid, parent_pid; /* 0: not visible from here */
	struct attachment *attachments;
	uint32_t regions; /* attachments */
	bool busy; /* a request is under way: do not bring the next one */
	bool hung_up; /* ops->hangup was called: nothing is sent any more */
	uint64_t seq; /* of the request that is being done */
	/* Of one that is taken up: what this process has answered, so that copies are known. */
	uint64_t answered[BROKER_ANSWERED];
	unsigned int answered_count;
	uint64_t found_removed; /* seq of a REMOVE which the broker before this one did */
	bool dead; /* its process has ended, but a child still has its connection */
	bool taken_up; /* it was a client of the broker before this one */
	struct job *job; /* what does its request */
	struct pando__msg *parked; /* its request, while it waits */
	struct parking *parked_at;
	struct client *park_next;
	int passed; /* the descriptor that came with the request that is being looked at, or -1 */
	struct receiver *receiver; /* graft.h; NULL: it takes no grafts */
	struct graft *reserved;
};

enum region_state { REGION_CREATING, REGION_LIVE, REGION_DYING };

enum job_kind {
	JOB_CREATE, /* files, and memory [0, to) */
	JOB_GROW, /* memory [from, to); undone by itself if it fails or is cancelled */
	JOB_SHRINK, /* gives [from, to) back */
	JOB_ROLLBACK, /* the same, after a restart: nobody waits for an answer */
	JOB_FREE, /* gives all back, then the region goes */
	JOB_HEAP, /* in region->heap.job: see heap.c */
};

struct job {
	struct broker *broker;
	struct region *region;
	struct client *client; /* who gets the answer; NULL: nobody (any more) */
	enum job_kind kind;
	uint64_t from, to;
	uint64_t at, end; /* what is still to be done */
	bool giving; /* memory is given back: because that is the job, or because it failed */
	bool begun;
	uint32_t flags; /* CREATE: of the request */
	int cancelled; /* set by the loop, read by the worker */
	int result; /* 0 or a negative errno */
	char text[PANDO__ERROR_MAX];
	uint64_t outside[32]; /* for whoever runs jobs */
};

enum heap_work {
	HEAP_RECOVER,
	HEAP_GRACE,
	HEAP_REAP,
	HEAP_LOOK,
	HEAP_SWEEP,
	HEAP_SHRINK,
	HEAP_SETTLE
};

#define HEAP_SLOT_WORDS ((PANDO__HEAP_CLIENTS + 63) / 64)
#define HEAP_TICKS 16u /* a heap is swept with every so many ticks, whatever it says */

/*
 * The broker's side of a region's heap (heap.c). While `working`, the worker has what is marked W;
 * the loop's thread reads of it only what it needs to queue more, and changes nothing of it.
 */
struct region_heap {
	struct pando__view view; /* W; base NULL: not mapped yet */
	const char *slots; /* W: mapped, read-only */
	bool there; /* it has a heap, as far as known */
	bool unusable; /* it cannot be looked at */
	struct job job;
	bool working;
	enum heap_work doing; /* W */
	uint32_t slot; /* W: REAP: whose; the next search begins behind it */
	unsigned int reaped; /* in a row, while something else was to be done */
	unsigned int unlooked; /* reaped since `waiting` was looked at */
	uint64_t begun_ns;
	struct pando__reclaimed reclaimed; /* W */
	/* REAPING entries: those in `retired`, those in `dead` and those in `waiting` */
	uint32_t reaping;
	bool recover, sweep, look, settle; /* to be done */
	/* SHRINK: wanted size (W), that it was done for whoever waits, and how it went. */
	uint64_t size;
	bool shrunk;
	int shrink_result; /* W */
	char shrink_text[PANDO__ERROR_MAX]; /* W */
	bool failed; /* the last job did: nothing more until the next tick */
	unsigned int failures;
	uint32_t ticks;
	struct pando__grace_scan grace; /* W: target 0: no grace period has been begun */
	bool grace_over; /* W */
	bool grace_waits; /* readers were in the way: not again until the next tick */
	/* Bitmaps of slots. */
	uint64_t retired[HEAP_SLOT_WORDS]; /* dead, to be reaped after a grace period */
	uint64_t graced[HEAP_SLOT_WORDS]; /* of these, those that the one under way is for */
	uint64_t dead[HEAP_SLOT_WORDS]; /* to be reaped; the page is as they left it */
	uint64_t waiting
		[HEAP_SLOT_WORDS]; /* W: reaped, but named by a transfer when last looked at */
	uint64_t free[HEAP_SLOT_WORDS]; /* W: LOOK: named no more */
	uint64_t told[HEAP_SLOT_WORDS]; /* W: SWEEP: had something to collect at the last sweep */
};

struct region {
	struct region *next, *previous; /* of the broker, by ascending id */
	struct broker *broker;
	struct region_record record;
	enum region_state state;
	const struct pando__backend *backend;
	int ledger_fd, ledger_ro, slots_fd, heap_fd, heap_ro;
	struct pando__ledger *ledger; /* mapped whole, writable */
	uint64_t *taken; /* bitmap of the client table: entries that are not FREE */
	uint32_t taken_hint; /* no free entry below */
	uint32_t users; /* attachments with a slot */
	uint32_t holds; /* those that are released */
	struct region_heap heap;
	struct pando__rcu_view rcu; /* slots NULL: not mapped yet */
	struct rcu_watch *watch; /* rcu.c; NULL: nobody has waited yet */
	struct pando__directory *directory; /* mapped, writable */
	struct directory_watch *writers; /* directory.c */
	struct job job; /* what is being done to it, if `working` */
	bool working;
	bool placed; /* it has its range of the window */
	bool announced; /* its last user has gone: it is one of broker->frees */
	struct parking waiting; /* requests that wait until job is done */
	uint64_t charged; /* bytes booked for its owner */
	char why[PANDO__PROTO_TEXT]; /* why `auto` did not pick a better backend */
};

/* What the core needs from outside. None of these calls back into the core before it returns. */
struct broker_ops {
	/*
	 * Sends a message or queues it. The descriptors stay the core's. Cannot fail as far as the
	 * core knows.
	 */
	void (*send)(struct client *c, struct pando__msg *msg, const int *fds, unsigned int nfds);
	/* c->busy has become false: its next request may be brought. */
	void (*idle)(struct client *c);
	/* The client is to be let go: client_gone() shall be called soon, after what was sent. */
	void (*hangup)(struct client *c);
	/*
	 * Calls job_work(job) on another thread and later job_done(job) on this one: first come,
	 * first served.
	 */
	void (*submit)(struct broker *b, struct job *job);
	/*
	 * Brings the requests of children that c has forked, who may be on their way, because a
	 * region is about to end with c's attachment. This one does call back into the core, for
	 * other clients. NULL: there are none.
	 */
	void (*heirs)(struct client *c);
	/* The client's pidfd, the server's still, or -1. NULL: there are none. */
	int (*process)(struct client *c);
};

#define BROKER_CLIENT_BUCKETS 4096u

struct broker {
	const struct broker_config *config;
	const struct broker_ops *ops;
	void *outside; /* the server's */
	struct store *store; /* NULL: nobody keeps records */
	uint64_t epoch;
	uint64_t last_id; /* low half of ids */
	struct client *clients, *last_client;
	struct client *buckets[BROKER_CLIENT_BUCKETS]; /* by id */
	struct region *regions, *last_region;
	struct window window;
	struct quota quota;
	struct parking freeing; /* requests that wait until memory has come back */
	unsigned int frees; /* regions that are DYING, or will be when their heap's job has ended */
	/* How long a job waits for their memory; 0 where no other thread frees it. Fixed. */
	unsigned int patience_ms;
	unsigned int jobs; /* under way */
	bool draining;
	bool ending; /* for good: clients that are let go live on */
	bool store_lost; /* a put failed: the supervisor is gone */
	uint64_t client_count, region_count, committed;
	uint64_t clients_total, deaths_total, requests_total, errors_total, refused_total;
	uint64_t reap_ns_last, reap_ns_max;
	/* Reapings in heaps: how many, what they freed, how long the work itself took. */
	uint64_t heap_reaps_total, heap_objects_total, heap_bytes_total;
	uint64_t heap_reap_ns_last, heap_reap_ns_max;
	struct {
		uint64_t total, bytes_total, mmap_total;
		uint64_t refused_total, lost_total, cleared_total;
		uint64_t waiting, waiting_bytes, held, held_bytes;
	} grafts;
};

/* broker.c: the whole. */
int broker_init(struct broker *b, const struct broker_config *config, const struct broker_ops *ops,
		struct store *store);
/*
 * Frees everything; clients must be gone and jobs done. Regions are dropped without being given
 * back.
 */
void broker_deinit(struct broker *b);
uint64_t broker_new_id(struct broker *b);
uint64_t broker_now(void); /* CLOCK_BOOTTIME, nanoseconds */
/* Puts a record; a failure is logged and remembered in store_lost, never fatal. */
void broker_put(struct broker *b, enum store_kind kind, uint64_t id, const void *blob, size_t size,
		const int *fds, unsigned int nfds);
void broker_forget(struct broker *b, enum store_kind kind, uint64_t id);
/*
 * Puts every record again, for a new supervisor. connection: a client's descriptors (returns how
 * many).
 */
void broker_put_all(struct broker *b, unsigned int (*descriptors)(struct client *c, int *fds));
/* Takes no new clients and regions from now on; tells the clients. */
void broker_drain(struct broker *b);
/* Aborts if an invariant does not hold. For tests. */
void broker_check(struct broker *b);

/* client.c: coming and going. */
/*
 * A peer has connected. id 0: a new one. Takes over who.groups. NULL: out of memory (groups are the
 * caller's still).
 */
struct client *client_new(struct broker *b, uint64_t id, const struct identity *who, pid_t pid);
/*
 * The client's process has ended, but its connection has not hung up: somebody else has it, who was
 * forked and has not said so yet. Slots are given back now, regions stay until client_gone().
 */
void client_died(struct client *c, uint64_t noticed_ns);
/*
 * The client is gone: everything it held is given back and *c freed. noticed_ns: when it was known.
 */
void client_gone(struct client *c, uint64_t noticed_ns);
struct client *client_find(struct broker *b, uint64_t id);
void client_put(struct client *c, const int *fds, unsigned int nfds);
/* Reads start time and parent of a process from /proc. Returns 0 or a negative errno. */
int client_read_process(pid_t pid, uint64_t *start_time, pid_t *parent);
/*
 * To be called before attachments of c end: lets its forked children in first, if regions would end
 * with it.
 */
void client_heirs(struct client *c);
int client_hello(struct client *c, const struct pando__msg *msg);
void client_notice(struct client *c, enum pando__notice notice);
struct attachment *client_attachment(struct client *c, uint64_t region_id);
/* Ends one attachment and frees it. */
void client_detach(struct attachment *a);

/* handler.c: requests. */
void handler_packet(struct client *c, const void *packet, size_t length, unsigned int nfds);
/* What came was not even a packet of this protocol (too many descriptors): as above. */
void handler_malformed(struct client *c, const char *why);
/* Does a request that was parked. */
void handler_again(struct client *c, struct pando__msg *msg);
/*
 * Ends the request under way with an answer, or with the ERROR for err (a negative errno and its
 * sentence).
 */
void handler_answer(struct client *c, struct pando__msg *msg, const int *fds, unsigned int nfds);
void handler_fail(struct client *c, int err, const char *text);
void handler_done(struct client *c, uint64_t value);
/* Lets the request wait. Returns 0 or -ENOMEM with a sentence. */
int handler_park(struct client *c, const struct pando__msg *msg, struct parking *where);
void handler_unpark(struct client *c);
/* Does all requests again that wait there now. */
void handler_resume(struct parking *where);

/* open.c: OPEN. */
int open_request(struct client *c, const struct pando__msg *msg);
/* Attaches and answers; created: the reply says that this request made the region. */
int open_attach(struct client *c, struct region *r, uint32_t flags, bool created);

/* resize.c, walk.c */
int resize_request(struct client *c, const struct pando__msg *msg);
int walk_regions(struct client *c, const struct pando__msg *msg);
int walk_clients(struct client *c, const struct pando__msg *msg);
int walk_status(struct client *c);

/* region.c: regions and their files. */
struct region *region_new(struct broker *b, const struct region_record *record);
/* Unlinks it, closes its files, gives address space and quota back. */
void region_free(struct region *r);
struct region *region_find(struct broker *b, const char *name);
struct region *region_by_id(struct broker *b, uint64_t id);
/*
 * Makes ledger, slots and an empty heap. May run on a worker. Returns 0 or a negative errno with a
 * sentence.
 */
int region_make_files(struct region *r);
/*
 * Opens the read-only twins and maps the ledger; the four descriptors of the record are set. As
 * above.
 */
int region_open_files(struct region *r);
void region_put(struct region *r, bool with_files);
/* True if its memory comes with use, and the broker commits none. */
bool region_lazy(const struct region *r);
/* Marks it destroyed: no name any more. by: whose request it is, or NULL. */
void region_destroy(struct region *r, const struct client *by);
/* Frees it if nothing needs it any more. */
void region_settle(struct region *r);

/* ledger.c: the client table and the committed size. */
void ledger_format(struct region *r);
/* Returns 0 or a negative errno with a sentence if what is mapped is not this region's ledger. */
int ledger_validate(const struct region *r);
/* Takes an entry and makes it LIVE. Returns 0; -EUSERS, -ENOMEM with a sentence. */
int ledger_take(struct region *r, const struct client *c, bool readonly, uint32_t *slot,
		uint64_t *generation);
/* LIVE or REAPING -> FREE: the three steps below at once. */
void ledger_reap(struct region *r, uint32_t slot);
void ledger_begin_reap(struct region *r, uint32_t slot); /* -> REAPING; the page stays */
void ledger_clear_slot(struct region *r, uint32_t slot); /* zeroes the page */
void ledger_end_reap(struct region *r, uint32_t slot); /* -> FREE, with the next generation */
void ledger_set_readonly(struct region *r, uint32_t slot, bool readonly);
void ledger_set_committed(struct region *r, uint64_t committed);
void ledger_set_destroyed(struct region *r);
/* Wakes those who wait for a change. */
void ledger_announce(struct region *r);
void ledger_mark_taken(struct region *r, uint32_t slot, bool taken);

/* commit.c: work that takes long. */
/* Starts the region's job; it has none under way. c: whose request it does, or NULL. */
void job_start(struct region *r, enum job_kind kind, struct client *c, uint64_t from, uint64_t to);
void job_work(struct job *job);
void job_done(struct job *job);

/* heap.c: heaps. */
void heap_init(void); /* once in the process: SIGBUS in a heap ends a job, not the broker */
/* Calls work(arg), which looks into a heap. False if it met memory that is not there, and has ended
 * anywhere. */
bool heap_guarded(void (*work)(void *arg), void *arg);
/* True if a client has made a heap in the region. */
bool heap_there(struct region *r);
void heap_unmap(struct region *r);
/*
 * The client of this slot is gone. Its entry is FREE at once, or, where it may have had something in
 * a heap, REAPING until that is dealt with.
 */
void heap_release(struct region *r, uint32_t slot, bool readonly);
/* The broker before this one may have died at work there. */
void heap_take_up(struct region *r);
/* Starts what is to be done next, if nothing is being done. */
void heap_continue(struct region *r);
/* The region ends: REAPING entries become FREE without more work. Not while `working`. */
void heap_drop(struct region *r);
/* Called each second. */
void heap_tick(struct broker *b);
/*
 * Before the committed size shrinks to `size`: 0 if nothing is in the way, 1 if the request has been
 * parked until that is known, or a negative errno with a sentence.
 */
int heap_shrink(struct client *c, const struct pando__msg *msg, struct region *r, uint64_t size);
/*
 * Before a region grows to `size` whose memory comes with use: the heap's own part of it. On a worker.
 * 0 or a negative errno with a sentence.
 */
int heap_reach(const struct region *r, uint64_t size);
/* After it has grown, or not shrunk after all. */
void heap_grown(struct region *r);
void heap_work(struct job *job);
void heap_done(struct job *job);

/* rcu.c: readers, and who waits for them. */
#define RCU_STALLED_NS 1000000000ull
/* Memory for the RCU part of a new region's slots. 0 or a negative errno with a sentence. */
int rcu_make(struct region *r);
/* Maps it, and unmaps all. As above. */
int rcu_open(struct region *r);
void rcu_close(struct region *r);
/* Maps all slots, for r->rcu.slots. False: there is no room. */
bool rcu_view(struct region *r);
/* True if the client of this slot, which is gone, had retired objects: a grace period must pass. */
bool rcu_retired(struct region *r, uint32_t slot);
/* An entry has become REAPING: who waits for readers looks again. */
void rcu_died(struct region *r);
/* Takes back the pages of readers that this slot's client had. */
void rcu_clear(struct region *r, uint32_t slot);
/* Called each second. */
void rcu_tick(struct broker *b);

/* directory.c: names of objects. */
/* Maps its heads, and unmaps them. 0 or a negative errno with a sentence. */
int directory_open(struct region *r);
void directory_close(struct region *r);
/* The client of this slot is REAPING, and the region has a heap: what it was changing is mended. */
void directory_died(struct region *r, uint32_t slot);
/* Called each second. */
void directory_tick(struct broker *b);

/* takeup.c: after a restart. */
struct takeup_client {
	struct client_record record;
	int fds[STORE_MAX_FDS];
	unsigned int nfds;
};

/*
 * Loads all records: regions are taken up at once; each client is handed to adopt(), which makes it
 * with client_new() (0) or says that it is gone (negative errno); the descriptors are adopt's in
 * any case. *listener gets the listening socket, or -1. Then the client tables are gone through:
 * who is not there any more is reaped. Returns 0 or a negative errno with a sentence.
 */
int takeup_run(struct broker *b, int (*adopt)(struct broker *b, struct takeup_client *t),
	       int *listener);

#endif
