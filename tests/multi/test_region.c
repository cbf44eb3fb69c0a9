/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Regions against a real broker: their life, every documented error of region.h and connect.h that
 * can be had on this machine, resizing, and a broker that is stopped, killed, or gone with its
 * supervisor.
 */
#include "harness.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static int open_with(struct pando *p, const char *name, unsigned int flags,
		     struct pando_region_options o, struct pando_region **r)
{
	return pando_region_open(p, name, PANDO_CREATE | flags, &o, r);
}

/* Another process, which shares nothing with the first but the broker. */
static void stranger(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r;
	volatile uint64_t *base;
	int rc;

	while ((rc = pando_region_open(p, "life", 0, NULL, &r)) == -ENOENT)
		harness_sleep_ms(1);
	CHECK_OK(rc);
	base = pando_region_base(r);
	while (base[7] == 0)
		harness_sleep_ms(1);
	CHECK(base[7] == (uintptr_t)base); /* the same address there and here */
	base[8] = 2;
	pando_disconnect(p);
	_exit(0);
}

static void test_life(struct harness *h)
{
	pid_t pid = fork();
	struct pando *p;
	struct pando_region *r, *again;
	struct pando_region_info info;
	struct pando_region_stat st;
	volatile uint64_t *base;

	if (pid == 0)
		stranger(h);
	p = harness_connect(h);
	r = harness_region(p, "life", MIB, 0);
	base = pando_region_base(r);
	CHECK(((uintptr_t)base & (GIB - 1)) == 0);
	CHECK_INT(pando_region_size(r) % 4096, 0);
	base[7] = (uintptr_t)base;
	CHECK_INT(harness_join(pid), 0);
	CHECK_INT(base[8], 2);
	CHECK_OK(pando_region_lookup(p, "life", &info));
	CHECK_INT(info.base, (uintptr_t)base);
	CHECK_INT(info.size, pando_region_size(r));
	CHECK_INT(info.max_size, GIB);
	CHECK_INT(info.uid, getuid());
	CHECK_INT(info.mode, 0600);
	CHECK_INT(info.flags, 0);
	CHECK(info.id != 0 && info.created_ns != 0 && info.page_size >= 4096);
	CHECK_OK(pando_region_stat(r, &st));
	CHECK(st.registered && !st.readonly && st.clients >= 1);
	CHECK(strcmp(st.name, "life") == 0);
	/* Destroyed while in use: the name is free, the memory stays. */
	CHECK_OK(pando_region_destroy(p, "life"));
	CHECK_ERR(pando_region_lookup(p, "life", &info), ENOENT, "life");
	CHECK_ERR(pando_region_open(p, "life", 0, NULL, &again), ENOENT, "life");
	CHECK_INT(base[8], 2);
	again = harness_region(p, "life", MIB, PANDO_EXCL);
	CHECK(pando_region_base(again) != (void *)(uintptr_t)base);
	CHECK_OK(pando_region_close(r));
	CHECK_OK(pando_region_close(again));
	CHECK_OK(pando_region_destroy(p, "life"));
	pando_disconnect(p);
}

static void test_transient(struct harness *h)
{
	struct pando *p = harness_connect(h), *q = harness_connect(h);
	struct pando_region *r = harness_region(p, "fleeting", MIB, PANDO_TRANSIENT);
	struct pando_region_info info;

	CHECK_OK(pando_region_lookup(q, "fleeting", &info));
	CHECK_INT(info.flags, PANDO_TRANSIENT);
	CHECK_INT(info.clients, 1);
	CHECK_OK(pando_region_close(r));
	CHECK_ERR(pando_region_lookup(q, "fleeting", &info), ENOENT, NULL);
	for (int i = 0; i < 20; i++) { /* leaving is done when pando_disconnect() returns */
		struct pando *s = harness_connect(h);

		harness_region(s, "fleeting", MIB, PANDO_TRANSIENT | PANDO_EXCL);
		pando_disconnect(s);
	}
	pando_disconnect(p);
	pando_disconnect(q);
}

/* The access list of region "here", to its end. */
static void grants(struct pando *p)
{
	struct pando_region_info info;

	CHECK_ERR(pando_region_grant(p, "absent", PANDO_GRANT_UID, 1, PANDO_RIGHT_READ), ENOENT,
		  "absent");
	CHECK_OK(pando_region_grant(p, "here", PANDO_GRANT_UID, 0, 0));
	for (uint32_t i = 0; i < 32; i++)
		CHECK_OK(
			pando_region_grant(p, "here", PANDO_GRANT_UID, 1000 + i, PANDO_RIGHT_READ));
	CHECK_ERR(pando_region_grant(p, "here", PANDO_GRANT_UID, 2000, PANDO_RIGHT_READ), ENOSPC,
		  "32");
	CHECK_OK(pando_region_grant(p, "here", PANDO_GRANT_UID, 1001, 0));
	CHECK_OK(pando_region_lookup(p, "here", &info));
	CHECK_INT(info.grants, 31);
}

static void test_errors(struct harness *h)
{
	struct pando *p = harness_connect(h), *q;
	struct pando_region *r = harness_region(p, "here", MIB, 0), *s;
	struct pando_region_info info;
	struct pando_region_stat st;
	uint64_t memory = (uint64_t)harness_kib(0, "MemTotal") * 1024;

	CHECK_ERR(pando_region_open(p, "absent", 0, NULL, &s), ENOENT, "absent");
	CHECK(s == NULL);
	CHECK_ERR(open_with(p, "here", PANDO_EXCL, (struct pando_region_options){.size = 1}, &s),
		  EEXIST, "here");
	CHECK_ERR(open_with(p, "x", 0, (struct pando_region_options){.size = 0}, &s), EINVAL,
		  "size 0");
	CHECK_ERR(open_with(p, "x", 0, (struct pando_region_options){.size = 4, .max_size = 3}, &s),
		  EINVAL, "max_size");
	CHECK_ERR(
		open_with(p, "x", 0, (struct pando_region_options){.size = 1, .address = MIB}, &s),
		EINVAL, "1 GiB");
	CHECK_ERR(
		open_with(p, "x", 0, (struct pando_region_options){.size = 1, .address = GIB}, &s),
		EINVAL, "window");
	CHECK_ERR(open_with(p, "x/y", 0, (struct pando_region_options){.size = 1}, &s), EINVAL,
		  "x/y");
	CHECK_OK(pando_region_stat(r, &st));
	CHECK_ERR(open_with(p, "x", 0, (struct pando_region_options){.size = 1, .address = st.base},
			    &s),
		  EADDRINUSE, "here");
	CHECK_ERR(open_with(p, "x", 0,
			    (struct pando_region_options){.size = 2 * memory,
							  .backend = PANDO_BACKEND_MEMFD},
			    &s),
		  ENOMEM, NULL);
	CHECK_ERR(open_with(p, "x", 0,
			    (struct pando_region_options){.size = 2 * memory,
							  .backend = PANDO_BACKEND_HUGETLB},
			    &s),
		  ENOMEM, "hugepages");
	CHECK_ERR(open_with(p, "x", 0, (struct pando_region_options){.size = 1ull << 62}, &s),
		  ENOMEM, NULL);
	CHECK_ERR(pando_region_resize(r, 0), EINVAL, "size 0");
	CHECK_ERR(pando_region_resize(r, st.max_size + 1), EINVAL, "maximum");
	CHECK_ERR(pando_region_destroy(p, "absent"), ENOENT, "absent");
	CHECK_ERR(pando_region_lookup(p, "absent", &info), ENOENT, "absent");
	grants(p);
	/* Nothing of all that has changed what was there. */
	CHECK_INT(pando_region_size(r), st.size);
	CHECK_ERR(pando_connect(&q, "@pando-test-nobody"), ECONNREFUSED, "no broker is running");
	CHECK_ERR(pando_connect(&q, "/tmp/pando-test-nowhere/broker.sock"), ENOENT,
		  "no broker is running");
	CHECK_OK(pando_region_destroy(p, "here"));
	pando_disconnect(p);
}

static bool have_mshare(void)
{
	return geteuid() == 0 && access("/sys/fs/mshare/mshare_info", R_OK) == 0;
}

/* Asked for by name: had where the kernel has it, else refused. */
static void test_mshare(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region_stat st;
	struct pando_region *r;
	int rc = open_with(
		p, "m", PANDO_TRANSIENT,
		(struct pando_region_options){.size = MIB, .backend = PANDO_BACKEND_MSHARE}, &r);

	if (have_mshare()) {
		CHECK_OK(rc);
		CHECK_OK(pando_region_stat(r, &st));
		CHECK_INT(st.backend, PANDO_BACKEND_MSHARE);
		CHECK_INT(st.page_size, 4096);
		CHECK_INT(harness_maps(getpid(), HARNESS_MSHARE), 1);
	} else {
		CHECK_ERR(rc, EOPNOTSUPP, "mshare");
	}
	pando_disconnect(p);
}

/* Not asked for: the first that the machine has. */
static void test_auto(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "any", MIB, PANDO_TRANSIENT);
	struct pando_region_stat st;
	struct pando_broker_info info;

	CHECK_OK(pando_region_stat(r, &st));
	CHECK_INT(st.backend == PANDO_BACKEND_MSHARE, have_mshare());
	CHECK_OK(pando_broker_info(p, &info));
	CHECK_INT(info.default_backend == PANDO_BACKEND_MSHARE, have_mshare());
	pando_disconnect(p);
}

static void test_quota(struct harness *h)
{
	struct pando *p = harness_connect(h), *q, *s;
	struct pando_region *r = harness_region(p, "a", 8 * MIB, 0), *t;

	CHECK_ERR(open_with(p, "b", 0, (struct pando_region_options){.size = 9 * MIB}, &t), EDQUOT,
		  NULL);
	CHECK_ERR(pando_region_resize(r, 17 * MIB), EDQUOT, NULL);
	CHECK_INT(pando_region_size(r), 8 * MIB);
	CHECK_OK(pando_region_resize(r, 10 * MIB));
	harness_region(p, "b", MIB, 0);
	CHECK_ERR(open_with(p, "c", 0, (struct pando_region_options){.size = MIB}, &t), EDQUOT,
		  NULL);
	CHECK_OK(pando_connect(&q, h->address)); /* the third, with the checker */
	CHECK_ERR(pando_connect(&s, h->address), EDQUOT, NULL);
	pando_disconnect(q);
	CHECK_OK(pando_region_destroy(p, "a"));
	CHECK_OK(pando_region_destroy(p, "b"));
	pando_disconnect(p);
}

static void test_collision(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "first", MIB, 0), *s;
	struct pando_region_info info;
	char *at = (char *)pando_region_base(r) + GIB + 8192;

	CHECK(mmap(at, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
	CHECK_ERR(open_with(p, "second", 0, (struct pando_region_options){.size = MIB}, &s),
		  EADDRNOTAVAIL, "(anonymous memory)");
	CHECK(strstr(pando_strerror_last(), "region \"second\" belongs at 0x") != NULL);
	CHECK_ERR(pando_region_lookup(p, "second", &info), ENOENT, NULL);
	munmap(at, 4096);
	CHECK_OK(open_with(p, "second", PANDO_TRANSIENT, (struct pando_region_options){.size = MIB},
			   &s));
	CHECK_OK(pando_region_destroy(p, "first"));
	pando_disconnect(p);
}

static void test_readonly(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "ro", MIB, 0), *s;
	char *base = pando_region_base(r);
	pid_t pid;

	strcpy(base, "look");
	CHECK_OK(pando_region_close(r));
	CHECK_OK(pando_region_open(p, "ro", PANDO_READONLY, NULL, &r));
	CHECK(strcmp(base, "look") == 0);
	CHECK(mprotect(base, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
	CHECK_ERR(pando_region_resize(r, 2 * MIB), EACCES, "read-only");
	CHECK_ERR(pando_region_open(p, "ro", 0, NULL, &s), EACCES, "read-only");
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		*(volatile char *)base = 'x';
		_exit(0);
	}
	CHECK(harness_join(pid) != 0); /* SIGSEGV; an error exit under AddressSanitizer */
	CHECK(base[0] == 'l');
	CHECK_OK(pando_region_destroy(p, "ro"));
	pando_disconnect(p);
}

static void *wait_for_size(void *arg)
{
	return (void *)(intptr_t)pando_region_wait_size(arg, MIB, 10000);
}

static void test_resize(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "elastic", MIB, PANDO_TRANSIENT);
	char *base = pando_region_base(r);
	pthread_t thread;
	void *result;

	if (pando_region_size(r) != MIB) /* huge pages: the test's sizes would be rounded */
		harness_skip("the backend's pages are larger than 1 MiB");
	CHECK_ERR(pando_region_wait_size(r, MIB, 20), ETIMEDOUT, "20 ms");
	CHECK_OK(pando_region_wait_size(r, 1, 0));
	pthread_create(&thread, NULL, wait_for_size, r);
	harness_sleep_ms(20);
	CHECK_OK(pando_region_resize(r, 64 * MIB));
	pthread_join(thread, &result);
	CHECK_INT((intptr_t)result, 0);
	CHECK_INT(pando_region_size(r), 64 * MIB);
	memset(base, 1, 64 * MIB);
	CHECK_OK(pando_region_resize(r, 2 * MIB + 1)); /* rounded up to whole pages */
	CHECK_INT(pando_region_size(r), 2 * MIB + 4096);
	CHECK_OK(pando_region_resize(r, 64 * MIB));
	CHECK(base[2 * MIB + 4095] == 1 && base[2 * MIB + 4096] == 0); /* new memory is zero */
	pando_disconnect(p);
}

#define THREADS 6

struct worker {
	struct harness *h;
	struct pando *p;
	unsigned int number;
};

static void *open_and_close(void *arg)
{
	const struct worker *w = arg;
	struct pando_region *common, *own;
	char name[16];

	snprintf(name, sizeof(name), "own%u", w->number);
	for (int i = 0; i < 60; i++) {
		CHECK_OK(pando_region_open(w->p, "common", PANDO_CREATE,
					   &(struct pando_region_options){.size = MIB}, &common));
		__atomic_add_fetch((uint64_t *)pando_region_base(common), 1, __ATOMIC_RELAXED);
		CHECK_OK(pando_region_open(w->p, name, PANDO_CREATE | PANDO_TRANSIENT | PANDO_EXCL,
					   &(struct pando_region_options){.size = 4096}, &own));
		CHECK_OK(pando_region_close(own));
		CHECK_OK(pando_region_close(common));
	}
	return NULL;
}

static void test_threads(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct worker w[THREADS];
	pthread_t thread[THREADS];
	struct pando_region *r;

	for (unsigned int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){h, p, i};
		pthread_create(&thread[i], NULL, open_and_close, &w[i]);
	}
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	CHECK_OK(pando_region_open(p, "common", 0, NULL, &r));
	CHECK_INT(*(uint64_t *)pando_region_base(r), THREADS * 60);
	CHECK_OK(pando_region_destroy(p, "common"));
	pando_disconnect(p);
}

static void test_walk(struct harness *h)
{
	struct pando *p = harness_connect(h), *q[20];
	struct pando_region_info info[7];
	struct pando_client_info clients[7];
	unsigned int seen = 0;
	uint64_t cursor = 0;
	char name[16];
	int n;

	for (int i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "r%d", i);
		CHECK_OK(pando_region_close(harness_region(p, name, 4096, 0)));
	}
	while ((n = pando_region_list(p, &cursor, info, 7)) > 0)
		for (int i = 0; i < n; i++) {
			snprintf(name, sizeof(name), "r%u", seen++);
			CHECK(strcmp(info[i].name, name) == 0);
		}
	CHECK_INT(n, 0);
	CHECK_INT(seen, 40);
	for (int i = 0; i < 20; i++)
		q[i] = harness_connect(h);
	for (cursor = 0, seen = 0; (n = pando_clients(p, &cursor, clients, 7)) > 0;
	     seen += (unsigned int)n)
		for (int i = 0; i < n; i++)
			CHECK_INT(clients[i].pid, getpid());
	CHECK_INT(n, 0);
	CHECK_INT(seen, 22);
	for (int i = 0; i < 20; i++)
		pando_disconnect(q[i]);
	for (int i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "r%d", i);
		CHECK_OK(pando_region_destroy(p, name));
	}
	pando_disconnect(p);
}

static void test_stopped(struct harness *h)
{
	struct pando_broker_info info;
	struct pando_region *r;
	struct pando *p, *q;

	setenv("PANDO_TIMEOUT", "300", 1);
	p = harness_connect(h);
	kill(h->broker, SIGSTOP);
	CHECK_ERR(open_with(p, "late", PANDO_TRANSIENT, (struct pando_region_options){.size = MIB},
			    &r),
		  ETIMEDOUT, "SIGCONT");
	CHECK_ERR(pando_connect(&q, h->address), ETIMEDOUT, "has not answered within 300 ms");
	kill(h->broker, SIGCONT);
	unsetenv("PANDO_TIMEOUT");
	for (unsigned int i = 0; pando_broker_info(p, &info) < 0 && i < 20 * harness_slow(); i++)
		harness_sleep_ms(50);
	CHECK_OK(pando_broker_info(p, &info)); /* and what was made too late is given back */
	for (unsigned int i = 0; info.regions > 0 && i < 100 * harness_slow(); i++) {
		harness_sleep_ms(10);
		CHECK_OK(pando_broker_info(p, &info));
	}
	CHECK_INT(info.regions, 0);
	pando_disconnect(p);
}

/* The broker is killed again and again under a client that goes on as if nothing had happened. */
static void test_restarts(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "tough", MIB, 0);
	struct pando_broker_info info;

	for (unsigned int i = 1; i <= 4; i++) {
		CHECK_OK(pando_broker_info(p, &info));
		kill(info.broker_pid, SIGKILL);
		CHECK_OK(pando_region_resize(r, i * 4 * MIB));
		CHECK_INT(pando_region_size(r), i * 4 * MIB);
		memset(pando_region_base(r), (int)i, i * 4 * MIB);
		CHECK_OK(pando_broker_info(p, &info));
		CHECK_INT(info.epoch, i + 1);
		harness_sleep_ms(50);
	}
	CHECK_OK(pando_region_destroy(p, "tough"));
	CHECK_OK(pando_region_close(r));
	pando_disconnect(p);
}

static void test_gone(struct harness *h)
{
	struct pando *p = harness_connect(h);
	struct pando_region *r = harness_region(p, "orphan", MIB, 0), *s;
	char *base = pando_region_base(r);
	pid_t daemon = h->daemon;

	kill(h->broker, SIGSTOP); /* it would start a new supervisor */
	kill(daemon, SIGKILL);
	kill(h->broker, SIGKILL);
	h->daemon = 0;
	harness_join(daemon);
	CHECK_ERR(pando_region_open(p, "other", 0, NULL, &s), ECONNRESET, "are gone");
	memset(base, 3, MIB);
	CHECK_INT(base[MIB - 1], 3);
	CHECK_ERR(pando_region_close(r), ECONNRESET, NULL);
	pando_disconnect(p);
}

static void test_bad_addresses(struct harness *h)
{
	char address[200], text[512];
	struct harness other = *h;
	struct pando *p;

	memset(address, 'x', sizeof(address));
	address[0] = '/';
	address[108] = '\0';
	CHECK_ERR(pando_connect(&p, address), ENAMETOOLONG, "108 bytes");
	snprintf(other.address, sizeof(other.address), "%s", h->address);
	CHECK(!harness_try_start(&other, NULL, text, sizeof(text)));
	CHECK(strstr(text, "already") != NULL);
	p = harness_connect(h); /* the one that was there is unharmed */
	pando_disconnect(p);
}

int main(int argc, char **argv)
{
	static const struct harness_test tests[] = {
		{.name = "life", .run = test_life},
		{.name = "transient", .run = test_transient},
		{.name = "errors", .run = test_errors},
		{.name = "mshare", .run = test_mshare},
		{.name = "auto", .run = test_auto, .args = {"--backend", "auto"}},
		{.name = "quota",
		 .run = test_quota,
		 .args = {"--quota", "0:memory=16M,regions=2,clients=3"}},
		{.name = "collision", .run = test_collision},
		{.name = "readonly", .run = test_readonly},
		{.name = "resize", .run = test_resize},
		{.name = "threads", .run = test_threads},
		{.name = "walk", .run = test_walk},
		{.name = "stopped", .run = test_stopped},
		{.name = "restarts", .run = test_restarts, .flags = HARNESS_BROKER_DIES},
		{.name = "gone", .run = test_gone, .flags = HARNESS_BROKER_DIES},
		{.name = "bad-addresses", .run = test_bad_addresses},
	};

	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
