/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The protocol between clients and the broker.
 *
 * One SOCK_SEQPACKET Unix socket; one message per packet; descriptors travel beside it. Every
 * message is a header and a payload of fixed layout (native byte order: both ends share a machine).
 * The parser below is pure: bytes and a count of descriptors in, a struct out; it touches no
 * descriptor, no memory but its arguments, and keeps no state. The same parser serves both
 * directions and the fuzzers.
 *
 * A conversation: the client sends HELLO and waits for WELCOME; then requests, each answered by
 * exactly one reply that repeats its `seq`. A client may have one request under way; it may send
 * ahead without waiting (a forked child does), and the broker answers in order. A NOTICE may come
 * at any time, with seq 0: RESTARTED says that a new broker process has taken over and that a
 * request still without an answer must be sent again, with the same seq. Requests are therefore
 * made so that doing one twice does no harm; the broker knows a repeated OPEN with PANDO_EXCL by
 * its seq.
 *
 * Versions: HELLO carries the range that the client speaks, WELCOME the one that was chosen. The
 * header and the first 8 bytes of HELLO and of ERROR never change, so that any two releases can
 * tell each other that they do not match.
 *
 *	client			broker
 *	HELLO		->
 *			<-	WELCOME | ERROR
 *	OPEN		->
 *			<-	OPENED + 3 descriptors (ledger, slots, heap) | ERROR
 *	CLOSE RESIZE REMOVE GRANT ->
 *			<-	DONE | ERROR
 *	LIST		->
 *			<-	REGIONS
 *	CLIENTS		->
 *			<-	CLIENT_LIST
 *	STATUS		->
 *			<-	STATUS_REPLY
 *			<-	NOTICE (any time)
 *
 * Handing over buffers (docs/design/graft.md):
 *
 *	GRAFT_LISTEN	->
 *			<-	GRAFT_LISTENING + 1 descriptor (event)
 *	GRAFT_RESERVE	->
 *			<-	GRAFT_SLOT + pidfd, if there is one
 *	GRAFT_SEND + memfd, or alone ->
 *	GRAFT_CANCEL GRAFT_TAKEN GRAFT_RELEASE ->
 *			<-	DONE
 *	GRAFT_ACCEPT	->
 *			<-	GRAFTED + memfd, or alone
 */
#ifndef PANDO_PROTOCOL_PROTOCOL_H
#define PANDO_PROTOCOL_PROTOCOL_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include <pando/connect.h>
#include <pando/graft.h>
#include <pando/region.h>

#define PANDO__PROTO_MAGIC 0x6f646e50u /* "Pndo", little endian */
#define PANDO__PROTO_VERSION 1u
#define PANDO__PROTO_MAX_FDS 3u
#define PANDO__PROTO_BATCH 16u /* entries in one REGIONS or CLIENT_LIST */
#define PANDO__PROTO_TEXT 256u

enum pando__msg_type {
	PANDO__MSG_HELLO = 1,
	PANDO__MSG_OPEN = 2,
	PANDO__MSG_CLOSE = 3,
	PANDO__MSG_RESIZE = 4,
	PANDO__MSG_REMOVE = 5,
	PANDO__MSG_GRANT = 6,
	PANDO__MSG_LIST = 7,
	PANDO__MSG_CLIENTS = 8,
	PANDO__MSG_STATUS = 9,
	PANDO__MSG_GRAFT_LISTEN = 10,
	PANDO__MSG_GRAFT_RESERVE = 11,
	PANDO__MSG_GRAFT_SEND = 12,
	PANDO__MSG_GRAFT_CANCEL = 13,
	PANDO__MSG_GRAFT_ACCEPT = 14,
	PANDO__MSG_GRAFT_TAKEN = 15,
	PANDO__MSG_GRAFT_RELEASE = 16,
	PANDO__MSG_REQUEST_END, /* not a type: all below are requests */

	PANDO__MSG_WELCOME = 64,
	PANDO__MSG_OPENED = 65,
	PANDO__MSG_DONE = 66,
	PANDO__MSG_REGIONS = 67,
	PANDO__MSG_CLIENT_LIST = 68,
	PANDO__MSG_STATUS_REPLY = 69,
	PANDO__MSG_ERROR = 70,
	PANDO__MSG_NOTICE = 71,
	PANDO__MSG_GRAFT_LISTENING = 72,
	PANDO__MSG_GRAFT_SLOT = 73,
	PANDO__MSG_GRAFTED = 74,
	PANDO__MSG_REPLY_END, /* not a type */
};

struct pando__msg_header {
	uint32_t magic;
	uint16_t version; /* of this packet's layout */
	uint16_t type; /* enum pando__msg_type */
	/* bytes of the whole message, header included: the packet's length exactly */
	uint32_t length;
	uint32_t fds; /* descriptors that travel with it */
	uint64_t seq; /* chosen by the client, never 0; repeated in the reply; 0 in a NOTICE */
};

#define PANDO__HELLO_FORKED 0x1u /* sent by the child of a fork(); `parent` is set */

struct pando__msg_hello {
	uint16_t version_min, version_max;
	uint32_t flags;
	uint64_t parent; /* client id of the process forked from, or 0: a claim, for display only */
	char program[32]; /* comm: for display only; NUL-terminated, zero-padded */
};

struct pando__msg_welcome {
	uint64_t client_id;
	uint64_t epoch;
	uint64_t window_base, window_size;
	int32_t broker_pid;
	uint16_t version;
	uint16_t reserved; /* 0 */
};

#define PANDO__OPEN_NO_ATTACH 0x10000u /* make it, but do not attach: no slot, no descriptors */
#define PANDO__OPEN_INHERITED                                                                      \
	0x20000u /* the sender has the mappings from its parent: a slot, no descriptors */

struct pando__msg_open {
	char name[PANDO_REGION_NAME_MAX + 1]; /* zero-padded */
	uint64_t size, max_size, address;
	uint64_t region_id; /* with INHERITED: which region (its name may be gone); else 0 */
	uint32_t flags; /* PANDO_CREATE, EXCL, READONLY, TRANSIENT and the two above */
	uint32_t backend;
	uint32_t mode;
	uint32_t gid;
	uint32_t set_gid;
	uint32_t reserved; /* 0 */
};

struct pando__msg_opened {
	uint64_t region_id;
	uint64_t base, max_size, committed;
	uint64_t ledger_size, slots_size;
	uint64_t generation; /* of the client-table entry */
	uint32_t slot; /* index in the client table; UINT32_MAX with NO_ATTACH */
	uint32_t backend; /* enum pando_backend, never AUTO */
	uint32_t page_size;
	uint32_t readonly;
	uint32_t created; /* 1 if this call made it */
	uint32_t reserved; /* 0 */
	char why[PANDO__PROTO_TEXT]; /* why `auto` passed over better backends, or "" */
};

struct pando__msg_close {
	uint64_t region_id;
};

struct pando__msg_resize {
	uint64_t region_id;
	uint64_t size;
};

struct pando__msg_remove {
	char name[PANDO_REGION_NAME_MAX + 1];
};

struct pando__msg_grant {
	char name[PANDO_REGION_NAME_MAX + 1];
	uint32_t kind; /* enum pando_grantee */
	uint32_t id;
	uint32_t rights;
	uint32_t reserved; /* 0 */
};

/* LIST and CLIENTS. name: only that region ("" for all; CLIENTS: only clients attached to it). */
struct pando__msg_walk {
	uint64_t cursor; /* 0, or the last id that was received */
	char name[PANDO_REGION_NAME_MAX + 1];
};

#define PANDO__GRAFT_PAGE 4096u
#define PANDO__GRAFT_HUGE (2u << 20) /* slots of at least this size are aligned to it */
#define PANDO__GRAFT_ROOM_MAX (1ull << 46) /* of a reservation */

/* Where grafts may lie in the process that sends this. */
struct pando__msg_graft_listen {
	uint64_t base; /* multiple of PANDO__GRAFT_HUGE */
	uint64_t size; /* the same, not 0 */
	uint64_t limit; /* bytes that may wait; 0: what the broker allows */
};

#define PANDO__GRAFT_LOOK 0x1u /* would it be permitted, and to whom: no slot is taken */

struct pando__msg_graft_reserve {
	uint64_t receiver; /* client id */
	uint64_t bytes;
	uint64_t tag;
	uint32_t flags;
	uint32_t way; /* enum pando_graft_way, never AUTO */
};

/* The slot has been filled; with MEMFD its content comes along. */
struct pando__msg_graft_send {
	uint64_t id;
	uint32_t way;
	uint32_t reserved; /* 0 */
};

#define PANDO__GRAFT_LEFT 0x1u /* CANCEL: memory may lie in the slot */
#define PANDO__GRAFT_REFUSED 0x2u /* RELEASE: it was never used */

/* CANCEL (the sender), TAKEN and RELEASE (the receiver). */
struct pando__msg_graft_one {
	uint64_t id;
	uint32_t flags;
	uint32_t reserved; /* 0 */
};

#define PANDO__GRAFT_DRAINED                                                                       \
	0x1u /* ACCEPT: the event descriptor is empty: a byte for all that wait */

struct pando__msg_graft_accept {
	uint64_t taken; /* id of the last one that was taken, or 0 */
	uint32_t flags;
	uint32_t reserved; /* 0 */
};

struct pando__msg_graft_listening {
	uint64_t limit; /* what holds now */
};

struct pando__msg_graft_slot {
	uint64_t id; /* 0 with LOOK */
	uint64_t address; /* in the receiver */
};

/* The oldest graft that waits. Way AUTO: nothing to have, the receiver shall clear the slot. */
struct pando__msg_grafted {
	uint64_t id;
	uint64_t address; /* in the receiver's reservation */
	uint64_t bytes;
	uint64_t tag;
	uint64_t sender;
	int32_t pid;
	uint32_t uid;
	uint32_t way;
	uint32_t waiting; /* with this one */
};

struct pando__msg_done {
	uint64_t value; /* RESIZE: the committed size; others: 0 */
};

struct pando__msg_regions {
	uint32_t count;
	uint32_t reserved; /* 0 */
	struct pando_region_info info[PANDO__PROTO_BATCH];
};

struct pando__msg_client_list {
	uint32_t count;
	uint32_t reserved; /* 0 */
	struct pando_client_info info[PANDO__PROTO_BATCH];
};

struct pando__msg_status_reply {
	struct pando_broker_info info;
};

struct pando__msg_error {
	int32_t error; /* positive errno */
	uint16_t version_min, version_max; /* what the broker speaks, with EPROTO */
	char text[PANDO__PROTO_TEXT]; /* one sentence, NUL-terminated */
};

enum pando__notice { PANDO__NOTICE_RESTARTED = 1, PANDO__NOTICE_DRAINING = 2 };

struct pando__msg_notice {
	uint32_t notice; /* enum pando__notice */
	uint32_t reserved; /* 0 */
	uint64_t epoch;
};

/* Whole pages for so many bytes. */
static inline uint64_t pando__graft_pages(uint64_t bytes)
{
	return (bytes + PANDO__GRAFT_PAGE - 1) & ~(uint64_t)(PANDO__GRAFT_PAGE - 1);
}

/* A message, parsed or to be sent. For LIST, CLIENTS use walk; STATUS has no payload. */
struct pando__msg {
	struct pando__msg_header header;
	union {
		struct pando__msg_hello hello;
		struct pando__msg_welcome welcome;
		struct pando__msg_open open;
		struct pando__msg_opened opened;
		struct pando__msg_close close;
		struct pando__msg_resize resize;
		struct pando__msg_remove remove;
		struct pando__msg_grant grant;
		struct pando__msg_walk walk;
		struct pando__msg_done done;
		struct pando__msg_regions regions;
		struct pando__msg_client_list clients;
		struct pando__msg_status_reply status;
		struct pando__msg_error error;
		struct pando__msg_notice notice;
		struct pando__msg_graft_listen graft_listen;
		struct pando__msg_graft_reserve graft_reserve;
		struct pando__msg_graft_send graft_send;
		struct pando__msg_graft_one graft_one;
		struct pando__msg_graft_accept graft_accept;
		struct pando__msg_graft_listening graft_listening;
		struct pando__msg_graft_slot graft_slot;
		struct pando__msg_grafted grafted;
	};
};

static_assert(sizeof(struct pando__msg_header) == 24, "wire layout");
static_assert(sizeof(struct pando__msg_hello) == 48, "wire layout");
static_assert(sizeof(struct pando__msg_open) == 120, "wire layout");
static_assert(offsetof(struct pando__msg, hello) == 24, "payload follows the header");

enum pando__direction { PANDO__TO_BROKER, PANDO__TO_CLIENT };

/*
 * Parses one packet of `length` bytes that came with nfds descriptors. On success *msg holds it,
 * with every string terminated, every padding known to be zero, every enum and flag known, and
 * counts within bounds. Region names are checked for form where they are required. Returns 0;
 * -EPROTO with the sentence in why (bad magic, length, type for this direction, count of
 * descriptors, padding, string); or -EPROTONOSUPPORT (another version; msg->header is filled, and
 * for HELLO its first 8 bytes).
 */
int pando__msg_parse(enum pando__direction direction, const void *packet, size_t length,
		     unsigned int nfds, struct pando__msg *msg, char *why, size_t why_size);

/* Payload size of a type in bytes, or -1 if there is no such type. */
int pando__msg_payload(unsigned int type);

/* Zeroes *msg and fills its header for `type`. */
void pando__msg_init(struct pando__msg *msg, enum pando__msg_type type, uint64_t seq);

/* True if name is a well-formed region name (see PANDO_REGION_NAME_MAX). */
int pando__region_name_ok(const char *name);

/*
 * Sends one message with nfds descriptors in one packet. flags: MSG_DONTWAIT or 0; SIGPIPE is never
 * raised. Returns 0, -EAGAIN, or another negative errno (no sentence). The descriptors stay the
 * caller's.
 */
int pando__msg_send(int socket, struct pando__msg *msg, const int *fds, unsigned int nfds,
		    int flags);

/*
 * Receives one packet into buf (at least sizeof(struct pando__msg) + 1 bytes) and its descriptors,
 * close-on-exec, into fds[PANDO__PROTO_MAX_FDS]. More descriptors than that, or a cut-off message,
 * are closed and reported as -EPROTO: none ever leaks. Returns the packet's length, 0 at the end,
 * -EAGAIN, -EINTR or another negative errno.
 */
int pando__msg_receive(int socket, void *buf, size_t size, int *fds, unsigned int *nfds, int flags);

#endif
