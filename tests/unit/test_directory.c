/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names, on regions without a broker (fake_region.h): each function and error, a model, growth, handles,
 * iterations, watchers; and a test that writes what a process that means harm would.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <pando/heap.h>

#include "common/futex.h"
#include "common/inject.h"
#include "fake_region.h"

#define MIB (1ull << 20)
#define CLIENTS 3u
#define NAMES 400u

struct world {
	struct fake_heap heap;
	struct pando_region r[CLIENTS];
};

static struct pando__directory *directory_of(const struct world *w)
{
	return (struct pando__directory *)(void *)(w->heap.slots + PANDO__DIRECTORY_OFFSET);
}

static struct pando__shard *shard_of(const struct world *w, const char *name)
{
	const uint64_t h = pando__hash(w->heap.ledger->directory_seed, name, strlen(name));

	return &directory_of(w)->shard[pando__shard_of(h)];
}

static int begin_with(void **state, uint64_t size)
{
	static struct world w;

	memset(&w, 0, sizeof(w));
	fake_heap_init(&w.heap, 1024 * MIB, size, true);
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_init(&w.r[i], &w.heap, i);
	*state = &w;
	return 0;
}

static int begin(void **state)
{
	return begin_with(state, 1024 * MIB);
}

static int begin_small(void **state)
{
	return begin_with(state, 16 * MIB);
}

/* All that has been retired is freed; what is left belongs to names. */
static void settle(struct world *w)
{
	struct pando_directory_stat st;
	struct pando_heap_stat heap;

	for (unsigned int i = 0; i < CLIENTS; i++)
		for (int k = 0; k < 3; k++)
			(void)pando_reclaim(&w->r[i]);
	assert_int_equal(pando_directory_check(&w->r[0]), 0);
	assert_int_equal(pando_directory_stat(&w->r[0], &st), 0);
	assert_int_equal(pando_heap_check(&w->r[0]), 0);
	assert_int_equal(pando_heap_stat(&w->r[0], &heap), 0);
	assert_int_equal(heap.objects, 2 * st.names + st.tables);
	assert_int_equal(heap.shared, heap.objects);
	assert_int_equal(heap.held, 0);
	assert_int_equal(st.locked, 0);
}

static int end(void **state)
{
	struct world *w = *state;

	settle(w);
	for (unsigned int i = 0; i < CLIENTS; i++)
		fake_region_deinit(&w->r[i]);
	fake_heap_deinit(&w->heap);
	return 0;
}

static uint64_t *object(struct pando_region *r, uint64_t value)
{
	uint64_t *o = pando_alloc(r, 48);

	assert_non_null(o);
	*o = value;
	return o;
}

static void publish(struct pando_region *r, const char *name, uint64_t value)
{
	assert_int_equal(pando_publish(r, name, object(r, value)), 0);
}

/* The value of a name, 0: there is none. */
static uint64_t value_of(struct pando_region *r, const char *name)
{
	uint64_t value = 0, *o;

	assert_int_equal(pando_read_lock(r), 0);
	o = pando_lookup(r, name);
	if (o)
		value = *o;
	else
		assert_int_equal(errno, ENOENT);
	assert_int_equal(pando_read_unlock(r), 0);
	return value;
}

static uint64_t version_of(struct pando_region *r, const char *name)
{
	struct pando_descriptor d = {0};
	int rc;

	assert_int_equal(pando_read_lock(r), 0);
	rc = pando_lookup_descriptor(r, name, &d);
	assert_int_equal(pando_read_unlock(r), 0);
	assert_true(rc == 0 || rc == -ENOENT);
	if (rc == 0)
		assert_int_equal(d.size, pando_usable_size(r, d.object));
	return d.version;
}

static void test_one_name(void **state)
{
	struct world *w = *state;
	struct pando_region *a = &w->r[0], *b = &w->r[1];
	uint64_t *first = object(a, 1), *second, version, now;

	assert_int_equal(value_of(a, "x"), 0);
	assert_int_equal(version_of(a, "x"), 0);
	assert_int_equal(pando_publish(a, "x", first), 0);
	assert_int_equal(value_of(a, "x"), 1);
	assert_int_equal(value_of(b, "x"), 1);
	version = version_of(b, "x");
	assert_true(version > 0);
	/* The first one is read in a section in which it is replaced. */
	assert_int_equal(pando_read_lock(a), 0);
	assert_ptr_equal(pando_lookup(a, "x"), first);
	second = object(b, 2);
	assert_int_equal(pando_publish_if(b, "x", second, version, &now), 0);
	assert_true(now > version);
	assert_ptr_equal(pando_lookup(a, "x"), second);
	assert_int_equal(*first, 1);
	assert_int_equal(pando_owner(b, first, NULL), PANDO_HOLDING_HELD);
	assert_int_equal(pando_read_unlock(a), 0);
	assert_int_equal(version_of(a, "x"), now);
	assert_int_equal(pando_withdraw(a, "x"), 0);
	assert_int_equal(value_of(a, "x"), 0);
	/* Versions go on when a name comes again. */
	publish(b, "x", 3);
	assert_true(version_of(a, "x") > now);
	settle(w);
}

static void test_conditions(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	uint64_t *o = object(r, 1), *p = object(r, 2), now = 99, version;

	assert_int_equal(pando_publish_if(r, "x", o, 7, &now), -ENOENT);
	assert_int_equal(now, 0);
	assert_int_equal(pando_withdraw(r, "x"), -ENOENT);
	assert_int_equal(pando_withdraw_if(r, "x", 7), -ENOENT);
	assert_int_equal(pando_publish_if(r, "x", o, 0, &version), 0);
	assert_int_equal(version_of(r, "x"), version);
	assert_int_equal(pando_publish_if(r, "x", p, 0, &now), -EEXIST);
	assert_int_equal(now, version);
	assert_int_equal(pando_publish_if(r, "x", p, version + 1, &now), -ESTALE);
	assert_int_equal(now, version);
	assert_non_null(strstr(pando_strerror_last(), "version"));
	assert_int_equal(pando_withdraw_if(r, "x", version + 1), -ESTALE);
	assert_int_equal(pando_owner(r, p, NULL), PANDO_HOLDING_PRIVATE);
	assert_int_equal(pando_publish_if(r, "x", p, version, NULL), 0);
	assert_int_equal(pando_withdraw_if(r, "x", version_of(r, "x")), 0);
	assert_int_equal(value_of(r, "x"), 0);
}

static void test_bad_names(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	char longest[PANDO_NAME_MAX + 1], longer[PANDO_NAME_MAX + 2];
	struct pando_descriptor d;
	struct pando_handle h;
	uint64_t *o = object(r, 5), version = 0;

	memset(longest, 'n', PANDO_NAME_MAX);
	longest[PANDO_NAME_MAX] = 0;
	memset(longer, 'n', PANDO_NAME_MAX + 1);
	longer[PANDO_NAME_MAX + 1] = 0;
	for (int i = 0; i < 2; i++) {
		const char *bad = i ? longer : "";

		assert_int_equal(pando_publish(r, bad, o), -EINVAL);
		assert_non_null(strstr(pando_strerror_last(), "255"));
		assert_int_equal(pando_withdraw(r, bad), -EINVAL);
		assert_int_equal(pando_handle_init(r, &h, bad), -EINVAL);
		assert_int_equal(pando_watch(r, bad, &version, 0), -EINVAL);
		assert_int_equal(pando_read_lock(r), 0);
		errno = 0;
		assert_null(pando_lookup(r, bad));
		assert_int_equal(errno, EINVAL);
		assert_int_equal(pando_lookup_descriptor(r, bad, &d), -EINVAL);
		assert_int_equal(pando_read_unlock(r), 0);
	}
	assert_int_equal(pando_owner(r, o, NULL), PANDO_HOLDING_PRIVATE);
	assert_int_equal(pando_publish(r, longest, o), 0);
	assert_int_equal(value_of(r, longest), 5);
	publish(r, "\xff\n\x01", 6); /* any bytes */
	assert_int_equal(value_of(r, "\xff\n\x01"), 6);
	publish(r, "a", 7);
	assert_int_equal(value_of(r, "a"), 7);
	/* Outside of a read section. */
	errno = 0;
	assert_null(pando_lookup(r, "a"));
	assert_int_equal(errno, EPERM);
	assert_int_equal(pando_lookup_descriptor(r, "a", &d), -EPERM);
	assert_int_equal(pando_handle_init(r, &h, "a"), 0);
	assert_null(pando_lookup_handle(r, &h));
	assert_int_equal(errno, EPERM);
}

static unsigned int misused;

static void on_misuse(struct pando_region *r, const void *p, enum pando_misuse what,
		      const char *sentence, void *arg)
{
	(void)r;
	(void)p;
	(void)sentence;
	(void)arg;
	assert_int_equal(what, PANDO_MISUSE_FOREIGN);
	misused++;
}

static void test_bad_objects(void **state)
{
	struct world *w = *state;
	struct pando_region *a = &w->r[0], *b = &w->r[1];
	uint64_t *o = object(a, 1), *freed = object(a, 2), *large = pando_alloc(a, 100000);
	uint64_t outside = 3;

	pando_free(a, freed);
	assert_int_equal(pando_publish(a, "x", &outside), -EINVAL);
	assert_non_null(strstr(pando_strerror_last(), "no object"));
	assert_int_equal(pando_publish(a, "x", freed), -EINVAL);
	assert_int_equal(pando_publish(a, "x", (char *)o + 8), -EINVAL);
	assert_int_equal(pando_publish(a, "x", (char *)large + 4096), -EINVAL);
	assert_int_equal(pando_publish(b, "x", o), -EPERM); /* private to another client */
	assert_int_equal(value_of(a, "x"), 0);
	assert_int_equal(pando_transfer(a, o, pando_self(b)), 0);
	assert_int_equal(pando_publish(a, "x", o), -EPERM);
	assert_int_equal(pando_publish(b, "x", o), 0); /* held */
	assert_int_equal(pando_owner(b, o, NULL), PANDO_HOLDING_PUBLISHED);
	assert_int_equal(pando_publish(a, "x", o), -EALREADY);
	assert_int_equal(pando_publish(b, "y", o), -EALREADY);
	assert_int_equal(value_of(a, "y"), 0);
	/* What has a name is nobody's to free, give or share. */
	misused = 0;
	pando_heap_on_misuse(on_misuse, NULL);
	pando_free(a, o);
	pando_free(b, o);
	assert_null(pando_realloc(b, o, 1000));
	pando_heap_on_misuse(NULL, NULL);
	assert_int_equal(misused, 3);
	assert_int_equal(pando_share(b, o), -EPERM);
	assert_int_equal(pando_transfer(a, o, pando_self(a)), -EPERM);
	assert_int_equal(pando_retire(b, o, 0), -EPERM);
	assert_int_equal(value_of(a, "x"), 1);
	/* Shared ones, of any size. */
	assert_int_equal(pando_share(a, large), 0);
	assert_int_equal(pando_publish(b, "large", large), 0);
	assert_int_equal(pando_owner(a, large, NULL), PANDO_HOLDING_PUBLISHED);
	assert_int_equal(pando_withdraw(a, "large"), 0);
	/* A shared one that is refused stays shared. */
	o = object(a, 9);
	assert_int_equal(pando_share(a, o), 0);
	assert_int_equal(pando_publish_if(b, "x", o, 0, NULL), -EEXIST);
	assert_int_equal(pando_owner(b, o, NULL), PANDO_HOLDING_SHARED);
	pando_free(b, o);
}

static void test_full(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	struct pando__shard *s = shard_of(w, "one more");
	uint64_t *o = object(r, 1);

	s->count = PANDO__NAMES_MAX;
	assert_int_equal(pando_publish(r, "one more", o), -ENOSPC);
	assert_non_null(strstr(pando_strerror_last(), "more are not possible"));
	s->count = 0;
	assert_int_equal(pando_owner(r, o, NULL), PANDO_HOLDING_PRIVATE);
	assert_int_equal(pando_publish(r, "one more", o), 0);
}

/* No memory: the call fails, and nothing has changed. */
static void test_no_memory(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	static void *all[100000];
	unsigned int n = 0;
	uint64_t *o = object(r, 1), *other = object(r, 2);
	char name[200];

	memset(name, 'x', sizeof(name));
	name[199] = 0;
	publish(r, "there", 3);
	while (n < 100000 && (all[n] = pando_alloc(r, MIB)))
		n++;
	while (n < 100000 && (all[n] = pando_alloc(r, 260)))
		n++;
	assert_true(n < 100000);
	assert_int_equal(pando_publish(r, name, o), -ENOMEM);
	assert_int_equal(pando_owner(r, o, NULL), PANDO_HOLDING_PRIVATE);
	assert_int_equal(value_of(r, name), 0);
	/* Replacing and withdrawing need none. */
	assert_int_equal(pando_publish(r, "there", other), 0);
	assert_int_equal(pando_withdraw(r, "there"), 0);
	while (n > 0)
		pando_free(r, all[--n]);
	assert_int_equal(pando_publish(r, name, o), 0);
}

/* Too much waits for readers. */
static void test_limit(void **state)
{
	struct world *w = *state;
	struct pando_region *a = &w->r[0], *b = &w->r[1];
	int rc = 0;

	assert_int_equal(pando_retire_limit(a, 4096), 0);
	publish(a, "x", 1);
	assert_int_equal(pando_read_lock(a), 0);
	for (int i = 0; i < 1000 && rc == 0; i++) {
		void *o = pando_alloc(a, 1000);

		rc = pando_publish(a, "x", o);
		if (rc < 0) {
			assert_int_equal(pando_owner(a, o, NULL), PANDO_HOLDING_PRIVATE);
			pando_free(a, o);
		}
	}
	assert_int_equal(rc, -EAGAIN);
	assert_int_equal(pando_withdraw(a, "x"), -EAGAIN);
	/* Who has nothing waiting may always go on. */
	publish(b, "x", 2);
	assert_int_equal(pando_read_unlock(a), 0);
	publish(a, "x", 3);
	assert_int_equal(value_of(a, "x"), 3);
	assert_int_equal(pando_retire_limit(a, 0), 0);
}

/* The directory's own memory comes with the first name; or does not. */
static void test_first_name(void **state)
{
#ifdef PANDO_INJECTION
	struct world *w = *state;
	struct pando_name n = {0};
	struct pando_handle h;
	uint64_t version = 0;
	uint64_t *o = object(&w->r[0], 1);

	assert_int_equal(pando_name_next(&w->r[0], &n), 0);
	assert_int_equal(pando_directory_check(&w->r[0]), 0);
	assert_int_equal(pando_watch(&w->r[0], "x", &version, 10), -ETIMEDOUT);
	assert_int_equal(pando_withdraw(&w->r[0], "x"), -ENOENT);
	assert_int_equal(pando_handle_init(&w->r[0], &h, "x"), 0);
	assert_int_equal(pando_read_lock(&w->r[0]), 0);
	assert_null(pando_lookup_handle(&w->r[0], &h));
	assert_int_equal(errno, ENOENT);
	assert_int_equal(pando_read_unlock(&w->r[0]), 0);
	pando__inject_arm("directory.memory=fail");
	assert_int_equal(pando_publish(&w->r[0], "x", o), -ENOMEM);
	assert_int_equal(pando_owner(&w->r[0], o, NULL), PANDO_HOLDING_PRIVATE);
	assert_false(pando__directory_there(pando__directory_gate(&w->r[0])));
	assert_int_equal(pando_publish(&w->r[0], "x", o), 0);
	assert_int_equal(value_of(&w->r[1], "x"), 1);
#else
	(void)state;
	skip();
#endif
}

static void *be_reader(void *arg)
{
	struct world *w = ((void **)arg)[0];
	pthread_barrier_t *both = ((void **)arg)[1];

	assert_int_equal(pando_reader_register(&w->r[0]), 0);
	(void)pthread_barrier_wait(both);
	(void)pthread_barrier_wait(both);
	return NULL;
}

/* No place for one reader more: what reads says so, what writes goes on. */
static void test_no_reader(void **state)
{
	struct world *w = *state;
	struct pando__rcu *rcu = (void *)(w->heap.slots + PANDO__RCU_OFFSET);
	pthread_t thread[PANDO__SLOT_READERS];
	struct pando_name n = {0};
	pthread_barrier_t both;
	void *arg[2] = {w, &both};
	uint64_t version = 0;

	pthread_barrier_init(&both, NULL, PANDO__SLOT_READERS + 1);
	for (unsigned int i = 0; i < PANDO__READER_PAGES; i++)
		rcu->page_owner[i] = 60 | 1 << 24;
	for (unsigned int i = 0; i < PANDO__SLOT_READERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, be_reader, arg), 0);
	(void)pthread_barrier_wait(&both);
	publish(&w->r[0], "x", 1);
	publish(&w->r[0], "x", 2);
	assert_int_equal(pando_watch(&w->r[0], "x", &version, 0), -EUSERS);
	assert_int_equal(version, 0);
	assert_int_equal(pando_name_next(&w->r[0], &n), -EUSERS);
	assert_null(pando_lookup(&w->r[0], "x"));
	assert_int_equal(errno, EPERM);
	assert_int_equal(pando_withdraw(&w->r[0], "x"), 0);
	(void)pthread_barrier_wait(&both);
	for (unsigned int i = 0; i < PANDO__SLOT_READERS; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	memset(rcu->page_owner, 0, sizeof(rcu->page_owner));
	pthread_barrier_destroy(&both);
}

static const char *name_of(unsigned int k)
{
	static char text[300];
	int n = snprintf(text, sizeof(text), "name %u ", k);

	/* Of all lengths. */
	memset(text + n, 'a' + k % 26, k * 7 % 240);
	text[n + k * 7 % 240] = 0;
	return text;
}

struct model {
	uint64_t value[NAMES], version[NAMES];
};

static void iterate(struct world *w, const struct model *m, unsigned int client)
{
	static struct pando_name n;
	bool seen[NAMES] = {false};
	unsigned int k, count = 0;
	int rc;

	memset(&n, 0, sizeof(n));
	assert_int_equal(pando_read_lock(&w->r[client]), 0);
	while ((rc = pando_name_next(&w->r[client], &n)) > 0) {
		assert_int_equal(sscanf(n.name, "name %u", &k), 1);
		assert_true(k < NAMES && !seen[k]);
		assert_string_equal(n.name, name_of(k));
		assert_int_equal(n.descriptor.version, m->version[k]);
		assert_int_equal(*(uint64_t *)n.descriptor.object, m->value[k]);
		seen[k] = true;
		count++;
	}
	assert_int_equal(rc, 0);
	assert_int_equal(pando_name_next(&w->r[client], &n), 0);
	assert_int_equal(pando_read_unlock(&w->r[client]), 0);
	for (k = 0; k < NAMES; k++)
		count -= m->value[k] != 0;
	assert_int_equal(count, 0);
}

static void change(struct world *w, struct model *m, unsigned int k, uint64_t n)
{
	struct pando_region *r = &w->r[n % CLIENTS];
	const char *name = name_of(k);
	uint64_t now, *o;
	int rc;

	switch (n / CLIENTS % 4) {
	case 0:
		rc = pando_withdraw(r, name);
		assert_int_equal(rc, m->value[k] ? 0 : -ENOENT);
		m->value[k] = m->version[k] = 0;
		break;
	case 1:
		o = object(r, n | 1);
		rc = pando_publish_if(r, name, o, m->version[k], &now);
		assert_int_equal(rc, 0);
		assert_true(now > m->version[k]);
		m->version[k] = now;
		m->value[k] = n | 1;
		break;
	default:
		publish(r, name, n | 1);
		now = version_of(r, name);
		assert_true(now > m->version[k]);
		m->version[k] = now;
		m->value[k] = n | 1;
		break;
	}
}

static void test_model(void **state)
{
	static struct pando_handle handles[NAMES];
	struct world *w = *state;
	static struct model m;
	uint64_t dice = 88172645463325252ull;

	memset(&m, 0, sizeof(m));
	for (unsigned int k = 0; k < NAMES; k++)
		assert_int_equal(pando_handle_init(&w->r[1], &handles[k], name_of(k)), 0);
	for (unsigned int i = 0; i < 20000; i++) {
		unsigned int k;

		dice ^= dice << 13;
		dice ^= dice >> 7;
		dice ^= dice << 17;
		k = dice % NAMES;
		change(w, &m, k, dice >> 20);
		k = (dice >> 40) % NAMES;
		assert_int_equal(value_of(&w->r[i % CLIENTS], name_of(k)), m.value[k]);
		assert_int_equal(pando_read_lock(&w->r[1]), 0);
		for (unsigned int j = k; j < k + 3; j++) {
			uint64_t *o = pando_lookup_handle(&w->r[1], &handles[j % NAMES]);

			assert_int_equal(o ? *o : 0, m.value[j % NAMES]);
		}
		assert_int_equal(pando_read_unlock(&w->r[1]), 0);
		if (i % 2000 == 0) {
			iterate(w, &m, i / 2000 % CLIENTS);
			settle(w);
		}
	}
	iterate(w, &m, 0);
}

/* Ten thousand and more names: tables come, and the names stay where they are found. */
static void test_growth(void **state)
{
	struct world *w = *state;
	struct pando_directory_stat st;
	char name[40];

	for (unsigned int i = 1; i <= 20000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		publish(&w->r[i % CLIENTS], name, i);
	}
	assert_int_equal(pando_directory_stat(&w->r[0], &st), 0);
	assert_int_equal(st.names, 20000);
	assert_int_equal(st.published, 20000);
	assert_true(st.buckets >= 20000 - 64 && st.buckets <= 20000 + 64);
	assert_true(st.tables >= 64 * 3);
	for (unsigned int i = 1; i <= 20000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		assert_int_equal(value_of(&w->r[2], name), i);
	}
	settle(w);
	for (unsigned int i = 1; i <= 20000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		assert_int_equal(pando_withdraw(&w->r[i % CLIENTS], name), 0);
	}
	assert_int_equal(pando_directory_stat(&w->r[0], &st), 0);
	assert_int_equal(st.names, 0);
	assert_int_equal(st.withdrawn, 20000);
}

/* Where there is no memory for a table, lists become longer, and are split when there is. */
static void test_growth_late(void **state)
{
	struct world *w = *state;
	struct pando__shard *s;
	struct pando_directory_stat st;
	uint32_t was;
	char name[40];

	for (unsigned int i = 1; i <= 2000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		publish(&w->r[0], name, i);
	}
	s = shard_of(w, "1");
	/* As after a death between linking a bucket and counting it. */
	was = s->buckets;
	assert_true(was > 10);
	s->buckets = was - 1;
	assert_int_equal(pando_directory_check(&w->r[0]), 0);
	for (unsigned int i = 2001; i <= 4000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		publish(&w->r[0], name, i);
	}
	assert_true(s->buckets > was);
	assert_int_equal(pando_directory_stat(&w->r[0], &st), 0);
	assert_true(st.buckets >= 4000 - 64);
	for (unsigned int i = 1; i <= 4000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		assert_int_equal(value_of(&w->r[1], name), i);
	}
}

/* Entries whose keys are equal are told apart by their names. */
static void test_equal_keys(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	const struct pando__directory_gate *g = pando__directory_gate(r);
	struct pando__shard *shard;
	struct pando__place place;
	struct pando__sought s;
	struct pando__entry *e;

	publish(r, "first", 1);
	publish(r, "second", 2);
	assert_int_equal(pando__seek(g, "first", &s), 0);
	shard = &g->directory->shard[pando__shard_of(s.hash)];
	pando__find(g, shard, &s, &place);
	e = place.entry;
	assert_non_null(e);
	/* Searching for other names with that key: before it, behind it, shorter, longer. */
	for (int i = 0; i < 4; i++) {
		static const char *const names[] = {"fire", "fissa", "fjord", "firsts"};
		const bool before = i == 0;

		s.name = names[i];
		s.length = (uint32_t)strlen(names[i]);
		pando__find(g, shard, &s, &place);
		assert_null(place.entry);
		assert_int_equal(place.before == &e->node, !before);
	}
}

static void test_handles(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	struct pando_handle h, copy;
	struct pando_descriptor d;
	uint64_t *o;

	assert_int_equal(pando_handle_init(r, &h, "x"), 0);
	assert_int_equal(pando_read_lock(r), 0);
	assert_null(pando_lookup_handle(r, &h));
	assert_int_equal(errno, ENOENT);
	publish(r, "x", 1);
	assert_int_equal(*(uint64_t *)pando_lookup_handle(r, &h), 1);
	assert_int_equal(pando_read_unlock(r), 0);
	copy = h;
	publish(r, "x", 2);
	assert_int_equal(pando_read_lock(r), 0);
	o = pando_lookup_handle(r, &h);
	assert_int_equal(*o, 2);
	assert_ptr_equal(h.entry, copy.entry); /* it has not been looked up again */
	assert_int_equal(*(uint64_t *)pando_lookup_handle(r, &copy), 2);
	assert_int_equal(pando_lookup_handle_descriptor(r, &h, &d), 0);
	assert_ptr_equal(d.object, o);
	assert_int_equal(d.version, 2);
	assert_int_equal(pando_read_unlock(r), 0);
	assert_int_equal(pando_withdraw(r, "x"), 0);
	publish(r, "x", 3);
	assert_int_equal(pando_read_lock(r), 0);
	assert_int_equal(*(uint64_t *)pando_lookup_handle(r, &h), 3);
	assert_int_equal(*(uint64_t *)pando_lookup_handle(r, &copy), 3);
	assert_int_equal(pando_read_unlock(r), 0);
	assert_int_equal(pando_withdraw(r, "x"), 0);
	assert_int_equal(pando_read_lock(r), 0);
	assert_null(pando_lookup_handle(r, &h));
	assert_int_equal(pando_lookup_handle_descriptor(r, &h, &d), -ENOENT);
	assert_int_equal(pando_read_unlock(r), 0);
}

/* Names come and go while others are gone through; these come once each. */
static void test_iteration(void **state)
{
	struct world *w = *state;
	static struct pando_name n, copy;
	unsigned int count = 0, k;
	char name[40];
	uint64_t sum = 0, again = 0;
	int rc = 0;

	for (unsigned int i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "stays %u", i);
		publish(&w->r[0], name, i + 1);
	}
	memset(&n, 0, sizeof(n));
	for (unsigned int i = 0; pando_name_next(&w->r[0], &n) > 0; i++) {
		snprintf(name, sizeof(name), "comes %u", i);
		if (i < 3000)
			publish(&w->r[1], name, i);
		if (i % 3 == 1) {
			snprintf(name, sizeof(name), "comes %u", i / 2);
			rc = pando_withdraw(&w->r[0], name);
		}
		if (sscanf(n.name, "stays %u", &k) == 1) {
			count++;
			sum += k;
		}
		/* The one at which it stands goes. */
		if (strncmp(n.name, "comes", 5) == 0 && i % 5 == 0)
			rc = pando_withdraw(&w->r[1], n.name);
		assert_true(rc == 0 || rc == -ENOENT);
		if (i == 100)
			copy = n;
	}
	assert_int_equal(count, 1000);
	assert_int_equal(sum, 1000 * 999 / 2);
	while (pando_name_next(&w->r[2], &copy) > 0)
		again++;
	assert_true(again >= 800);
}

static void *change_later(void *arg)
{
	struct world *w = arg;
	const char *name = "watched";

	/* When the watcher has said that it waits. */
	while (!pando__load_acquire(
		&((struct pando__rcu *)(void *)(w->heap.slots + PANDO__RCU_OFFSET))
			 ->watched[shard_of(w, name) - directory_of(w)->shard]))
		sched_yield();
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	if (value_of(&w->r[1], name))
		assert_int_equal(pando_withdraw(&w->r[1], name), 0);
	else
		publish(&w->r[1], name, 4);
	return NULL;
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void test_watch(void **state)
{
	struct world *w = *state;
	uint64_t version = 0;
	double best = 1e9;

	assert_int_equal(pando_watch(&w->r[0], "watched", &version, 0), -ETIMEDOUT);
	assert_int_equal(pando_watch(&w->r[0], "watched", &version, 30), -ETIMEDOUT);
	version = 77;
	assert_int_equal(pando_watch(&w->r[0], "watched", &version, -1), -ENOENT);
	assert_int_equal(version, 0);
	assert_int_equal(pando_read_lock(&w->r[0]), 0);
	assert_int_equal(pando_watch(&w->r[0], "watched", &version, 0), -EDEADLK);
	assert_int_equal(pando_read_unlock(&w->r[0]), 0);
	/* By itself it wakes up after a second; a busy machine may make it wait as well. */
	for (int i = 0; i < 2 || (i < 30 && best > 0.9); i++) {
		double took = seconds();
		pthread_t thread;

		assert_int_equal(pthread_create(&thread, NULL, change_later, w), 0);
		/* It comes, and is withdrawn while it is watched. */
		assert_int_equal(pando_watch(&w->r[0], "watched", &version, 60000),
				 i % 2 ? -ENOENT : 0);
		took = seconds() - took;
		best = took < best ? took : best;
		assert_int_equal(pthread_join(thread, NULL), 0);
		assert_int_equal(version, version_of(&w->r[0], "watched"));
		assert_int_equal(version == 0, i % 2);
	}
	assert_true(best < 0.9);
}

/* The lock's owner does nothing: who wants to write sleeps, who reads does not notice. */
static void *publish_later(void *arg)
{
	publish(arg, "locked", 2);
	return NULL;
}

static void test_lock(void **state)
{
	struct world *w = *state;
	struct pando__shard *s = shard_of(w, "locked");
	struct pando_directory_stat st;
	pthread_t thread[2];

	publish(&w->r[0], "locked", 1);
	pando__shard_lock(s, 1);
	assert_int_equal(pando_directory_stat(&w->r[0], &st), 0);
	assert_int_equal(st.locked, 1);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, publish_later, &w->r[1 + i]), 0);
	while (!(pando__load_acquire(&s->lock) & PANDO__SHARD_WAITERS))
		sched_yield();
	assert_int_equal(value_of(&w->r[0], "locked"), 1);
	pando__shard_unlock(s);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	assert_int_equal(value_of(&w->r[0], "locked"), 2);
	assert_int_equal(s->lock, 0);
}

/* The check finds what is not right. */
static void test_check(void **state)
{
	struct world *w = *state;
	struct pando_region *r = &w->r[0];
	struct pando__shard *s = NULL;
	struct pando__entry *e;
	uint64_t was;
	char name[40];

	for (unsigned int i = 0; i < 3000; i++) {
		snprintf(name, sizeof(name), "%u", i);
		publish(r, name, i);
	}
	s = shard_of(w, "17");
	for (was = s->first.next; pando__node_at(pando__directory_gate(r), was)->key % 2 == 0;)
		was = pando__node_at(pando__directory_gate(r), was)->next;
	e = (void *)pando__node_at(pando__directory_gate(r), was);
	assert_int_equal(pando_directory_check(r), 0);
#define BROKEN(field, value)                                                                       \
	do {                                                                                       \
		const __typeof__(field) right = field;                                             \
		field = (value);                                                                   \
		assert_int_equal(pando_directory_check(r), -EUCLEAN);                              \
		field = right;                                                                     \
		assert_int_equal(pando_directory_check(r), 0);                                     \
	} while (0)
	BROKEN(s->count, right + 1);
	BROKEN(s->buckets, right - 3);
	BROKEN(s->version, 1);
	BROKEN(s->intent.kind, 1);
	BROKEN(s->first.next, pando__node_at(pando__directory_gate(r), right)->next);
	BROKEN(s->first.next, 12345);
	BROKEN(s->tables[0], right + 32);
	BROKEN(e->node.key, right + 2);
	BROKEN(e->node.next, was);
	BROKEN(e->name[0], 'X');
	BROKEN(e->length, 0);
	BROKEN(e->object[e->current & 1], right + 32);
	BROKEN(e->current, 0);
#undef BROKEN
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(one_name),	  TEST(conditions),
		TEST(bad_names),  TEST(bad_objects),
		TEST(full),	  cmocka_unit_test_setup_teardown(test_no_memory, begin_small, end),
		TEST(limit),	  TEST(model),
		TEST(growth),	  TEST(growth_late),
		TEST(equal_keys), TEST(handles),
		TEST(first_name), TEST(no_reader),
		TEST(iteration),  TEST(watch),
		TEST(lock),	  TEST(check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
