/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The protocol's parser, and sending and receiving packets.
 *
 * Parsing is one table: for each type its payload size, the number of descriptors that it may
 * carry, and a check of its content. A message is copied out of the packet first and checked in the
 * copy, so the sender cannot change what was checked. The checks establish what the header
 * promises: whoever holds a parsed message may use every string, count and enum in it without
 * looking again; what a message *means* (may this user do that?) is not decided here.
 */
#include "protocol/protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Returns NULL if the payload is sound, else what is wrong with it. */
typedef const char *(*check_fn)(const struct pando__msg *msg);

struct type_info {
	size_t payload;
	unsigned int fds_min, fds_max;
	check_fn check; /* NULL: nothing beyond the length */
};

/* True if the array holds a terminated string and zeroes behind it. */
static bool string_ok(const char *s, size_t size)
{
	size_t n = strnlen(s, size);

	for (size_t i = n; i < size; i++)
		if (s[i] != '\0')
			return false;
	return n < size;
}

/* What people may see of a string from elsewhere: no control characters. */
static bool text_ok(const char *s, size_t size)
{
	if (!string_ok(s, size))
		return false;
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			return false;
	return true;
}

int pando__region_name_ok(const char *name)
{
	size_t n = strnlen(name, PANDO_REGION_NAME_MAX + 1);

	if (n == 0 || n > PANDO_REGION_NAME_MAX || name[0] == '.' || name[0] == '-')
		return 0;
	for (size_t i = 0; i < n; i++) {
		char c = name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		      c == '.' || c == '_' || c == '-'))
			return 0;
	}
	return 1;
}

#define NAME_SIZE (PANDO_REGION_NAME_MAX + 1)

static const char *check_name(const char *name)
{
	if (!string_ok(name, NAME_SIZE))
		return "the region name is not terminated or not padded with zeroes";
	if (!pando__region_name_ok(name))
		return "the region name is malformed";
	return NULL;
}

static const char *check_hello(const struct pando__msg *msg)
{
	const struct pando__msg_hello *m = &msg->hello;

	if (m->version_min == 0 || m->version_min > m->version_max)
		return "the version range is empty";
	if (m->flags & ~PANDO__HELLO_FORKED)
		return "unknown flag";
	if (!(m->flags & PANDO__HELLO_FORKED) && m->parent)
		return "a parent without the flag";
	if (!string_ok(m->program, sizeof(m->program)))
		return "the program name is not terminated or not padded with zeroes";
	return NULL;
}

static const char *check_welcome(const struct pando__msg *msg)
{
	const struct pando__msg_welcome *m = &msg->welcome;

	if (m->client_id == 0 || m->reserved)
		return "client id 0 or padding set";
	if (m->version != PANDO__PROTO_VERSION)
		return "a version was chosen that was not offered";
	return NULL;
}

static const char *check_open(const struct pando__msg *msg)
{
	const struct pando__msg_open *m = &msg->open;
	const uint32_t known = PANDO_CREATE | PANDO_EXCL | PANDO_READONLY | PANDO_TRANSIENT |
			       PANDO_HEAP | PANDO__OPEN_NO_ATTACH | PANDO__OPEN_INHERITED;

	if (m->flags & ~known)
		return "unknown flag";
	if ((m->flags & (PANDO_EXCL | PANDO_TRANSIENT | PANDO_HEAP | PANDO__OPEN_NO_ATTACH)) &&
	    !(m->flags & PANDO_CREATE))
		return "a flag that needs PANDO_CREATE";
	if ((m->flags & PANDO__OPEN_INHERITED) &&
	    ((m->flags & ~(PANDO__OPEN_INHERITED | PANDO_READONLY)) || !m->region_id))
		return "an inherited region is named by its id, without flags";
	if (!(m->flags & PANDO__OPEN_INHERITED) && m->region_id)
		return "a region id without the flag";
	if (m->backend > PANDO_BACKEND_MSHARE)
		return "unknown backend";
	if (m->mode & ~0777u)
		return "mode bits beyond 0777";
	if (m->set_gid > 1 || m->reserved)
		return "padding set";
	return check_name(m->name);
}

static const char *check_opened(const struct pando__msg *msg)
{
	const struct pando__msg_opened *m = &msg->opened;

	if (m->backend == PANDO_BACKEND_AUTO || m->backend > PANDO_BACKEND_MSHARE)
		return "unknown backend";
	if (m->page_size < 4096 || (m->page_size & (m->page_size - 1)))
		return "the page size is not a power of two";
	if (m->readonly > 1 || m->created > 1 || m->reserved)
		return "padding set";
	if (m->max_size == 0 || m->base + m->max_size < m->base || m->committed > m->max_size)
		return "sizes that do not fit";
	if (!text_ok(m->why, sizeof(m->why)))
		return "text is not terminated or not printable";
	return NULL;
}

static const char *check_remove(const struct pando__msg *msg)
{
	return check_name(msg->remove.name);
}

static const char *check_grant(const struct pando__msg *msg)
{
	const struct pando__msg_grant *m = &msg->grant;

	if (m->kind != PANDO_GRANT_UID && m->kind != PANDO_GRANT_GID)
		return "neither a user nor a group";
	if (m->rights & ~(PANDO_RIGHT_READ | PANDO_RIGHT_WRITE))
		return "unknown right";
	if (m->reserved)
		return "padding set";
	return check_name(m->name);
}

static const char *check_walk(const struct pando__msg *msg)
{
	if (msg->walk.name[0] == '\0')
		return string_ok(msg->walk.name, NAME_SIZE) ? NULL
							    : "the region name is not padded";
	return check_name(msg->walk.name);
}

static const char *check_regions(const struct pando__msg *msg)
{
	const struct pando__msg_regions *m = &msg->regions;

	if (m->count > PANDO__PROTO_BATCH || m->reserved)
		return "too many entries or padding set";
	for (uint32_t i = 0; i < m->count; i++)
		if (check_name(m->info[i].name))
			return "a region name is malformed";
	return NULL;
}

static const char *check_clients(const struct pando__msg *msg)
{
	const struct pando__msg_client_list *m = &msg->clients;

	if (m->count > PANDO__PROTO_BATCH || m->reserved)
		return "too many entries or padding set";
	for (uint32_t i = 0; i < m->count; i++)
		if (!string_ok(m->info[i].program, sizeof(m->info[i].program)))
			return "a program name is not terminated";
	return NULL;
}

static const char *check_status(const struct pando__msg *msg)
{
	return string_ok(msg->status.info.version, sizeof(msg->status.info.version))
		       ? NULL
		       : "the version is not terminated";
}

static const char *check_error(const struct pando__msg *msg)
{
	if (msg->error.error <= 0 || msg->error.error > 4095)
		return "not an errno";
	return text_ok(msg->error.text, sizeof(msg->error.text))
		       ? NULL
		       : "text is not terminated or not printable";
}

static const char *check_notice(const struct pando__msg *msg)
{
	const struct pando__msg_notice *m = &msg->notice;

	if (m->notice != PANDO__NOTICE_RESTARTED && m->notice != PANDO__NOTICE_DRAINING)
		return "unknown notice";
	return m->reserved ? "padding set" : NULL;
}

static const char *check_graft_listen(const struct pando__msg *msg)
{
	const struct pando__msg_graft_listen *m = &msg->graft_listen;

	if (m->base == 0 || m->size == 0 || ((m->base | m->size) & (PANDO__GRAFT_HUGE - 1)))
		return "the range is empty or not aligned";
	if (m->size > PANDO__GRAFT_ROOM_MAX || m->base > INT64_MAX - PANDO__GRAFT_ROOM_MAX)
		return "the range is larger than any address space";
	return NULL;
}

static bool graft_way_ok(uint32_t way)
{
	return way == PANDO_GRAFT_MEMFD || way == PANDO_GRAFT_MMAP;
}

static const char *check_graft_reserve(const struct pando__msg *msg)
{
	const struct pando__msg_graft_reserve *m = &msg->graft_reserve;

	if (m->flags & ~PANDO__GRAFT_LOOK)
		return "unknown flag";
	return graft_way_ok(m->way) ? NULL : "unknown way";
}

static const char *check_graft_send(const struct pando__msg *msg)
{
	const struct pando__msg_graft_send *m = &msg->graft_send;

	if (!graft_way_ok(m->way) || m->reserved || m->id == 0)
		return "no id, unknown way or padding set";
	if ((m->way == PANDO_GRAFT_MEMFD) != (msg->header.fds == 1))
		return "a memfd is needed, or out of place";
	return NULL;
}

static const char *check_graft_one(const struct pando__msg *msg)
{
	const struct pando__msg_graft_one *m = &msg->graft_one;
	const uint32_t known = msg->header.type == PANDO__MSG_GRAFT_CANCEL    ? PANDO__GRAFT_LEFT
			       : msg->header.type == PANDO__MSG_GRAFT_RELEASE ? PANDO__GRAFT_REFUSED
									      : 0;

	return m->id == 0 || m->reserved || (m->flags & ~known)
		       ? "no id, unknown flag or padding set"
		       : NULL;
}

static const char *check_graft_accept(const struct pando__msg *msg)
{
	const struct pando__msg_graft_accept *m = &msg->graft_accept;

	return (m->flags & ~PANDO__GRAFT_DRAINED) || m->reserved ? "unknown flag or padding set"
								 : NULL;
}

static const char *check_graft_slot(const struct pando__msg *msg)
{
	const struct pando__msg_graft_slot *m = &msg->graft_slot;

	return (m->address & (PANDO__GRAFT_PAGE - 1)) || (m->id == 0) != (m->address == 0)
		       ? "not a slot"
		       : NULL;
}

static const char *check_grafted(const struct pando__msg *msg)
{
	const struct pando__msg_grafted *m = &msg->grafted;

	if (m->way > PANDO_GRAFT_MMAP || (m->way == PANDO_GRAFT_MEMFD) != (msg->header.fds == 1))
		return "unknown way, or a memfd is missing or out of place";
	if (m->id == 0 || m->bytes == 0 || m->bytes > PANDO__GRAFT_ROOM_MAX || m->address == 0 ||
	    m->address > INT64_MAX - PANDO__GRAFT_ROOM_MAX ||
	    (m->address & (PANDO__GRAFT_PAGE - 1)))
		return "not a slot";
	return NULL;
}

#define SIZE(member) sizeof(((struct pando__msg *)0)->member)

static const struct type_info types[PANDO__MSG_REPLY_END] = {
	[PANDO__MSG_HELLO] = {SIZE(hello), 0, 0, check_hello},
	[PANDO__MSG_OPEN] = {SIZE(open), 0, 0, check_open},
	[PANDO__MSG_CLOSE] = {SIZE(close), 0, 0, NULL},
	[PANDO__MSG_RESIZE] = {SIZE(resize), 0, 0, NULL},
	[PANDO__MSG_REMOVE] = {SIZE(remove), 0, 0, check_remove},
	[PANDO__MSG_GRANT] = {SIZE(grant), 0, 0, check_grant},
	[PANDO__MSG_LIST] = {SIZE(walk), 0, 0, check_walk},
	[PANDO__MSG_CLIENTS] = {SIZE(walk), 0, 0, check_walk},
	[PANDO__MSG_STATUS] = {0, 0, 0, NULL},
	[PANDO__MSG_GRAFT_LISTEN] = {SIZE(graft_listen), 0, 0, check_graft_listen},
	[PANDO__MSG_GRAFT_RESERVE] = {SIZE(graft_reserve), 0, 0, check_graft_reserve},
	[PANDO__MSG_GRAFT_SEND] = {SIZE(graft_send), 0, 1, check_graft_send},
	[PANDO__MSG_GRAFT_CANCEL] = {SIZE(graft_one), 0, 0, check_graft_one},
	[PANDO__MSG_GRAFT_ACCEPT] = {SIZE(graft_accept), 0, 0, check_graft_accept},
	[PANDO__MSG_GRAFT_TAKEN] = {SIZE(graft_one), 0, 0, check_graft_one},
	[PANDO__MSG_GRAFT_RELEASE] = {SIZE(graft_one), 0, 0, check_graft_one},
	[PANDO__MSG_WELCOME] = {SIZE(welcome), 0, 0, check_welcome},
	[PANDO__MSG_OPENED] = {SIZE(opened), 0, PANDO__PROTO_MAX_FDS, check_opened},
	[PANDO__MSG_DONE] = {SIZE(done), 0, 0, NULL},
	[PANDO__MSG_REGIONS] = {SIZE(regions), 0, 0, check_regions},
	[PANDO__MSG_CLIENT_LIST] = {SIZE(clients), 0, 0, check_clients},
	[PANDO__MSG_STATUS_REPLY] = {SIZE(status), 0, 0, check_status},
	[PANDO__MSG_ERROR] = {SIZE(error), 0, 0, check_error},
	[PANDO__MSG_NOTICE] = {SIZE(notice), 0, 0, check_notice},
	[PANDO__MSG_GRAFT_LISTENING] = {SIZE(graft_listening), 1, 1, NULL},
	[PANDO__MSG_GRAFT_SLOT] = {SIZE(graft_slot), 0, 1, check_graft_slot},
	[PANDO__MSG_GRAFTED] = {SIZE(grafted), 0, 1, check_grafted},
};

static bool known_type(unsigned int type)
{
	return (type >= PANDO__MSG_HELLO && type < PANDO__MSG_REQUEST_END) ||
	       (type >= PANDO__MSG_WELCOME && type < PANDO__MSG_REPLY_END);
}

int pando__msg_payload(unsigned int type)
{
	return known_type(type) ? (int)types[type].payload : -1;
}

static int malformed(char *why, size_t why_size, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int malformed(char *why, size_t why_size, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, why_size, fmt, ap);
	va_end(ap);
	return -EPROTO;
}

/* The part of a message of another version that never changes, for a helpful refusal. */
static int other_version(const char *packet, size_t length, struct pando__msg *msg, char *why,
			 size_t why_size)
{
	const size_t fixed = sizeof(msg->header) + 8;

	if ((msg->header.type == PANDO__MSG_HELLO || msg->header.type == PANDO__MSG_ERROR) &&
	    length >= fixed)
		memcpy(&msg->hello, packet + sizeof(msg->header), 8);
	snprintf(why, why_size, "protocol version %u is spoken there, %u here", msg->header.version,
		 PANDO__PROTO_VERSION);
	return -EPROTONOSUPPORT;
}

int pando__msg_parse(enum pando__direction direction, const void *packet, size_t length,
		     unsigned int nfds, struct pando__msg *msg, char *why, size_t why_size)
{
	const struct type_info *info;
	struct pando__msg_header *h = &msg->header;
	const char *wrong;

	memset(msg, 0, sizeof(*msg));
	if (length < sizeof(*h))
		return malformed(why, why_size, "%zu bytes are too few for a header", length);
	memcpy(h, packet, sizeof(*h));
	if (h->magic != PANDO__PROTO_MAGIC)
		return malformed(why, why_size, "not a message of this protocol (magic 0x%08x)",
				 h->magic);
	if (h->version != PANDO__PROTO_VERSION)
		return other_version(packet, length, msg, why, why_size);
	if (!known_type(h->type) ||
	    (direction == PANDO__TO_BROKER) != (h->type < PANDO__MSG_REQUEST_END))
		return malformed(why, why_size, "unknown message type %u", h->type);
	info = &types[h->type];
	if (h->length != length || length != sizeof(*h) + info->payload)
		return malformed(why, why_size,
				 "message type %u has %zu bytes, says %u, should have %zu", h->type,
				 length, h->length, sizeof(*h) + info->payload);
	if (h->fds != nfds || nfds < info->fds_min || nfds > info->fds_max)
		return malformed(why, why_size, "message type %u came with %u descriptors, says %u",
				 h->type, nfds, h->fds);
	if ((h->seq == 0) != (h->type == PANDO__MSG_NOTICE))
		return malformed(why, why_size, "message type %u with sequence number %llu",
				 h->type, (unsigned long long)h->seq);
	memcpy((char *)msg + sizeof(*h), (const char *)packet + sizeof(*h), info->payload);
	wrong = info->check ? info->check(msg) : NULL;
	if (wrong)
		return malformed(why, why_size, "message type %u: %s", h->type, wrong);
	return 0;
}

void pando__msg_init(struct pando__msg *msg, enum pando__msg_type type, uint64_t seq)
{
	memset(msg, 0, sizeof(*msg));
	msg->header.magic = PANDO__PROTO_MAGIC;
	msg->header.version = PANDO__PROTO_VERSION;
	msg->header.type = (uint16_t)type;
	msg->header.length = (uint32_t)(sizeof(msg->header) + types[type].payload);
	msg->header.seq = seq;
}

union control {
	struct cmsghdr align;
	/*
	 * Room for more than is allowed, so that surplus descriptors arrive, are counted and
	 * closed.
	 */
	char space[CMSG_SPACE(sizeof(int) * 16)];
};

int pando__msg_send(int socket, struct pando__msg *msg, const int *fds, unsigned int nfds,
		    int flags)
{
	struct iovec iov = {.iov_base = msg, .iov_len = msg->header.length};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control;
	ssize_t n;

	msg->header.fds = nfds;
	if (nfds > 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		mh.msg_control = control.space;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	do
		n = sendmsg(socket, &mh, flags | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == iov.iov_len ? 0 : -EMSGSIZE;
}

/*
 * Takes the descriptors out of a received control buffer: the first PANDO__PROTO_MAX_FDS are kept
 * in fds, the others closed. Returns how many came.
 */
static unsigned int take_fds(struct msghdr *mh, int *fds)
{
	unsigned int count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (count < PANDO__PROTO_MAX_FDS)
				fds[count] = fd;
			else
				close(fd);
			count++;
		}
	}
	return count;
}

int pando__msg_receive(int socket, void *buf, size_t size, int *fds, unsigned int *nfds, int flags)
{
	union control control;
	struct iovec iov = {.iov_base = buf, .iov_len = size};
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	unsigned int count;
	ssize_t n;

	*nfds = 0;
	n = recvmsg(socket, &mh, flags | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	count = take_fds(&mh, fds);
	if (count > PANDO__PROTO_MAX_FDS || (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		for (unsigned int i = 0; i < count && i < PANDO__PROTO_MAX_FDS; i++)
			close(fds[i]);
		return -EPROTO;
	}
	*nfds = count;
	return (int)n;
}
