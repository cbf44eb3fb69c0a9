/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Connecting to a broker, and leaving it.
 *
 * An address is a path or "@name" for the abstract namespace. With none given, the environment and
 * two well-known paths are tried in turn; where nobody answers at any of them, a broker is started
 * for this program (embedded.c) and its address put into $PANDO_BROKER. An address that somebody
 * has chosen is never replaced by another one: nobody there is an error. An embedded broker's
 * address ("@pando-...") in the environment is no choice; when its broker has ended, which it does
 * with its last client, a new one is started.
 *
 * A relative path is made absolute, since the child of a fork() connects again, maybe from
 * elsewhere.
 *
 * pando_disconnect() closes the regions one by one and waits for the answers, so that what was
 * transient is gone when it returns. If the broker does not answer within a second, it leaves the
 * heaps of all regions and hangs up, which comes to the same; in this order, since who has hung up
 * has nothing in a heap any more, as far as the broker knows.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/atomic.h"
#include "common/fail.h"

#define SYSTEM_ADDRESS "/run/pando/broker.sock"
#define EMBEDDED_PREFIX "@pando-"
#define LEAVE_MS 1000
#define PATH_ROOM sizeof(((struct sockaddr_un *)0)->sun_path)

int pando__fail_connect(const struct pando *p, int err)
{
	switch (err) {
	case ENOENT:
	case ECONNREFUSED:
		return pando__fail(
			err,
			"no broker is running at %s; start one with pandod --socket %s, or unset "
			"PANDO_BROKER",
			p->address, p->address);
	case EACCES:
	case EPERM:
		return pando__fail(err, "this user may not connect to the broker at %s: %s",
				   p->address, strerror(err));
	case EMFILE:
	case ENFILE:
		return pando__fail(
			err,
			"no descriptor is free for a connection to the broker at %s; raise the "
			"limit on open files (%s)",
			p->address, err == EMFILE ? "ulimit -n" : "sysctl fs.file-max");
	case EPROTOTYPE:
		return pando__fail(err, "%s is a socket, but not a broker's", p->address);
	case ETIMEDOUT:
		return pando__fail(
			err,
			"the broker at %s does not accept connections: its queue is full; if it is "
			"stopped, send it SIGCONT",
			p->address);
	default:
		return pando__fail(err, "cannot connect to the broker at %s: %s", p->address,
				   strerror(err));
	}
}

/* Fills in the address. Returns 0 or a negative errno with a sentence. */
static int set_address(struct pando *p, const char *address)
{
	char absolute[2 * PATH_ROOM];
	size_t n = strlen(address);

	memset(&p->sockaddr, 0, sizeof(p->sockaddr));
	p->sockaddr.sun_family = AF_UNIX;
	if (n == 0 || (n == 1 && address[0] == '@'))
		return pando__fail(EINVAL, "the broker's address is empty; give a path or @name");
	if (n >= PATH_ROOM)
		return pando__fail(
			ENAMETOOLONG,
			"the broker's address \"%.40s...\" has %zu bytes, a socket's may have %zu; "
			"choose a shorter one",
			address, n, PATH_ROOM - 1);
	if (address[0] != '@' && address[0] != '/' && getcwd(absolute, PATH_ROOM)) {
		size_t used = strlen(absolute);

		snprintf(absolute + used, sizeof(absolute) - used, "/%s", address);
		if (strlen(absolute) < PATH_ROOM) {
			address = absolute;
			n = strlen(absolute);
		}
	}
	memcpy(p->address, address, n + 1);
	memcpy(p->sockaddr.sun_path, address, n);
	p->sockaddr_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
	if (address[0] == '@') {
		p->sockaddr.sun_path[0] = '\0';
		p->sockaddr_length--;
	}
	return 0;
}

/* Connects to one address and waits for WELCOME. */
static int try_address(struct pando *p, const char *address)
{
	int rc = set_address(p, address);

	if (rc < 0)
		return rc;
	p->standing = PANDO__ADRIFT;
	rc = pando__await_welcome(p);
	if (rc < 0) {
		pthread_mutex_lock(&p->lock);
		pando__hang_up(p);
		pthread_mutex_unlock(&p->lock);
		p->hello_seq = 0;
	}
	return rc;
}

static bool nobody_there(int rc)
{
	return rc == -ENOENT || rc == -ECONNREFUSED;
}

/* A broker of our own. refused: an embedded one's address at which nobody has answered, or NULL. */
static int try_embedded(struct pando *p, const char *refused)
{
	char address[sizeof(p->address)] = "";
	int rc = -ECONNREFUSED;

	for (int i = 0; i < 3 && nobody_there(rc); i++) { /* it may end just when we come */
		rc = pando__embedded_start(i ? address : refused, address, sizeof(address));
		if (rc < 0)
			return rc;
		rc = try_address(p, address);
	}
	return rc;
}

/* Where a broker may be when nobody has said it: $XDG_RUNTIME_DIR, /run, one of our own. */
static int try_defaults(struct pando *p, const char *refused)
{
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
	char address[sizeof(p->address)];
	int rc;

	if (runtime && runtime[0] == '/' &&
	    snprintf(address, sizeof(address), "%s/pando/broker.sock", runtime) < (int)PATH_ROOM) {
		rc = try_address(p, address);
		if (!nobody_there(rc))
			return rc;
	}
	rc = try_address(p, SYSTEM_ADDRESS);
	if (!nobody_there(rc))
		return rc;
	return try_embedded(p, refused);
}

static int find_broker(struct pando *p, const char *broker)
{
	const char *env;
	int rc;

	if (broker)
		return try_address(p, broker);
	env = secure_getenv("PANDO_BROKER");
	if (env && env[0]) {
		bool embedded = strncmp(env, EMBEDDED_PREFIX, strlen(EMBEDDED_PREFIX)) == 0;

		rc = try_address(p, env);
		if (!embedded || !nobody_there(rc))
			return rc;
	} else {
		env = NULL;
	}
	return try_defaults(p, env);
}

/* What people see as the program's name in `pando clients`. */
static void program_name(char name[32])
{
	int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
	ssize_t n = -1;

	memset(name, 0, 32);
	if (fd >= 0) {
		n = read(fd, name, 31);
		close(fd);
	}
	if (n <= 0)
		prctl(PR_GET_NAME, name);
	name[strcspn(name, "\n")] = '\0';
	for (size_t i = strlen(name); i < 32; i++)
		name[i] = '\0';
}

static int timeout_setting(void)
{
	const char *env = secure_getenv("PANDO_TIMEOUT");
	long ms = env ? strtol(env, NULL, 10) : 0;

	return ms > 0 && ms <= 3600 * 1000 ? (int)ms : PANDO__TIMEOUT_MS;
}

static void free_handle(struct pando *p)
{
	pando__mark_free(p);
	pthread_mutex_destroy(&p->turn);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static void set_live(struct pando *p, bool live)
{
	pthread_mutex_lock(&p->lock);
	p->live = live;
	pthread_mutex_unlock(&p->lock);
}

int pando_connect(struct pando **out, const char *broker)
{
	struct pando *p = calloc(1, sizeof(*p));
	int rc;

	*out = NULL;
	if (!p)
		return pando__fail(ENOMEM, "no memory for a connection to the broker");
	pthread_mutex_init(&p->turn, NULL);
	pthread_mutex_init(&p->lock, NULL);
	p->socket = p->inherited = -1;
	p->grafting.event = -1;
	p->timeout_ms = timeout_setting();
	program_name(p->program);
	rc = pando__mark_new(p);
	/* A fork() in another thread must know of the handle from its first descriptor on. */
	if (rc == 0)
		rc = pando__fork_enlist(p);
	if (rc == 0) {
		pthread_mutex_lock(&p->turn);
		rc = find_broker(p, broker);
		pthread_mutex_unlock(&p->turn);
		set_live(p, rc == 0);
		if (rc < 0)
			pando__fork_delist(p);
	}
	if (rc < 0) {
		free_handle(p);
		return rc;
	}
	*out = p;
	return 0;
}

/* The broker does not answer: hanging up tells it. */
static void leave(struct pando *p)
{
	pthread_mutex_lock(&p->lock);
	for (struct pando_region *r = p->regions; r; r = r->next) {
		pando__rcu_gate_close(&r->rcu);
		pando__region_heap_close(r);
	}
	pando__hang_up(p);
	p->standing = PANDO__GONE;
	pthread_mutex_unlock(&p->lock);
}

void pando_disconnect(struct pando *p)
{
	if (!p)
		return;
	set_live(p, false);
	if (p->timeout_ms > LEAVE_MS)
		p->timeout_ms = LEAVE_MS;
	while (p->regions) {
		struct pando_region *r = p->regions;

		r->opens = 1;
		if (pando_region_close(r) == -ETIMEDOUT)
			leave(p);
	}
	pando__fork_delist(p);
	pando__close_fds(p);
	pando__hang_up(p);
	pando__drop_inherited(p);
	pando__graft_close(p);
	free_handle(p);
}

uint64_t pando_client_id(struct pando *p)
{
	uint64_t id = *p->mark ? pando__load_acquire(&p->client_id) : 0;

	if (id)
		return id;
	(void)pando__begin(p); /* the child of a fork() learns it from the broker */
	id = p->client_id;
	pando__end(p);
	return id;
}

const char *pando_broker_address(const struct pando *p)
{
	return p->address;
}
