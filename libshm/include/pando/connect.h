/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connecting to a broker.
 *
 * A `struct pando` is this process's seat at one broker: a socket, a client id, and the regions
 * that are attached through it. The data path never uses the socket; it serves opening, closing and
 * resizing regions. When the broker restarts, the connection stays as it is and the call that was
 * under way is sent again.
 *
 * fork(): the child is a client of its own. Handlers registered with pthread_atfork() give it a
 * connection and a client-table slot in every region that it inherits, without waiting for the
 * broker; the handle and all pointers into regions stay valid in the child. After exec() nothing is
 * left.
 */
#ifndef PANDO_CONNECT_H
#define PANDO_CONNECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <pando/error.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pando;

/*
 * Connects to a broker and stores the handle in *out.
 *
 * broker: the broker's address, a socket path ("/run/pando/broker.sock") or an abstract name
 * ("@name"). NULL means: $PANDO_BROKER; if that is unset, $XDG_RUNTIME_DIR/pando/broker.sock, then
 * /run/pando/broker.sock, whichever exists; if none does, an embedded broker is started for this
 * program and its children ($PANDO_BROKER is set to its address, so that programs it executes find
 * it too); it ends with the last of them. Set-user-id programs ignore the environment.
 * $PANDO_TIMEOUT, in milliseconds, replaces the 10 s that each call waits for the broker's answer
 * (committing memory has longer).
 *
 * Returns 0; -ECONNREFUSED or -ENOENT (no broker at that address), -ENAMETOOLONG (socket path over
 * 107 bytes), -EACCES, -EPROTO (the broker speaks another version of the protocol), -EDQUOT (too
 * many clients of this user), -ESHUTDOWN (the broker is about to end), -ETIMEDOUT (no answer within
 * 10 s), -ENOMEM, -EMFILE. Any thread; not async-signal-safe. May be called several times; each
 * call makes its own client.
 */
PANDO_API PANDO_NODISCARD int pando_connect(struct pando **out, const char *broker)
	PANDO_NONNULL(1);

/*
 * Closes every region that is still open through the handle, leaves the broker and frees the
 * handle. Waits for the broker, but not longer than a second. NULL is ignored. No other thread may
 * be using the handle.
 */
PANDO_API void pando_disconnect(struct pando *p);

/*
 * The id that the broker gave this client: never used again by this broker. In the child of a
 * fork() it is its own, asked for at the first call; 0 if the broker cannot be reached. Any thread.
 */
PANDO_API uint64_t pando_client_id(struct pando *p) PANDO_NONNULL(1);

/* The address that the handle is connected to. Valid as long as the handle. Any thread. */
PANDO_API const char *pando_broker_address(const struct pando *p) PANDO_NONNULL(1);

/* One client, as the broker sees it. */
struct pando_client_info {
	uint64_t id;
	int32_t pid; /* in the broker's pid namespace */
	uint32_t uid, gid;
	uint32_t regions; /* attached regions */
	uint64_t parent; /* client id of the process it was forked from, or 0 */
	uint64_t connected_ns; /* CLOCK_BOOTTIME, nanoseconds */
	char program[32]; /* comm of the process when it connected */
	/* Buffers that were grafted into it: those that it has not accepted yet, those that it has. */
	uint32_t grafts_waiting, grafts_held;
	uint64_t grafts_waiting_bytes, grafts_held_bytes;
};

/*
 * The broker's counters and limits. Counters (the _total and reap_ns_ members) begin at zero with
 * each broker process: a changed epoch says that they have.
 */
struct pando_broker_info {
	uint64_t epoch; /* 1, plus one for each restart of the broker process */
	uint64_t window_base, window_size; /* where regions are placed */
	uint64_t clients, regions, committed_bytes;
	uint64_t clients_total, deaths_total, requests_total, errors_total, refused_total;
	uint64_t reap_ns_last, reap_ns_max; /* from noticing a death to the end of its clean-up */
	uint64_t quota_memory, quota_regions, quota_clients; /* per uid; 0: none */
	int32_t broker_pid, supervisor_pid;
	uint32_t default_backend; /* enum pando_backend that `auto` picks now */
	uint32_t drain; /* 1 while the broker drains */
	char version[16];
	/* What was taken back from dead clients in heaps: times, objects, bytes; and how long that took. */
	uint64_t heap_reaps_total, heap_objects_total, heap_bytes_total;
	uint64_t heap_reap_ns_last, heap_reap_ns_max;
	/*
	 * Buffers that were handed over, by both ways together and by moving pages; refused by their
	 * receivers; lost with them; taken back from dead senders. And what waits and is held now.
	 */
	uint64_t grafts_total, grafts_bytes_total, grafts_mmap_total;
	uint64_t grafts_refused_total, grafts_lost_total, grafts_cleared_total;
	uint64_t grafts_waiting, grafts_waiting_bytes, grafts_held, grafts_held_bytes;
};

/*
 * Walks the clients. Start with *cursor = 0; each call fills up to max entries and returns how
 * many; 0 means the end. Clients that come and go meanwhile may or may not be seen; none is seen
 * twice. Clients of other users are listed to root and to the broker's own user only.
 */
PANDO_API PANDO_NODISCARD int pando_clients(struct pando *p, uint64_t *cursor,
					    struct pando_client_info *info, unsigned int max)
	PANDO_NONNULL(1, 2, 3);

/* Fills *info. Returns 0 or a negative errno of the connection. */
PANDO_API PANDO_NODISCARD int pando_broker_info(struct pando *p, struct pando_broker_info *info)
	PANDO_NONNULL(1, 2);

#ifdef __cplusplus
}
#endif
#endif
