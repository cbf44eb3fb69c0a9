/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The store: packets on the channel, and the supervisor's table, checked against a plain model at
 * random.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/store_wire.h"

static int open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static struct store *store;
static int far_end; /* the supervisor's */

static int setup(void **state)
{
	int pair[2];

	(void)state;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	far_end = pair[0];
	return store_open(&store, pair[1]);
}

static int teardown(void **state)
{
	(void)state;
	store_close(store);
	if (far_end >= 0)
		close(far_end);
	return 0;
}

static void puts_and_removes_are_packets(void **state)
{
	struct store_packet p;
	int fds[STORE_MAX_FDS], pipe_fds[2];

	(void)state;
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_int_equal(store_put(store, STORE_CLIENT, 7, "hello", 5, pipe_fds, 2), 0);
	assert_int_equal(store_remove(store, STORE_REGION, 8), 0);
	assert_int_equal(store_ready(store), 0);
	assert_int_equal(store_finish(store, 3, "no luck"), 0);

	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), 1);
	assert_int_equal(p.op, STORE_OP_PUT);
	assert_int_equal(p.kind, STORE_CLIENT);
	assert_true(p.id == 7);
	assert_int_equal(p.size, 5);
	assert_memory_equal(p.blob, "hello", 5);
	assert_int_equal(p.nfds, 2);
	assert_int_equal(write(fds[1], "x", 1), 1); /* they are what was sent */
	assert_true(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
	close(fds[0]);
	close(fds[1]);
	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), 1);
	assert_int_equal(p.op, STORE_OP_REMOVE);
	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), 1);
	assert_int_equal(p.op, STORE_OP_READY);
	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), 1);
	assert_int_equal(p.op, STORE_OP_FINISH);
	assert_true(p.id == 3);
	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void refuses_what_does_not_fit(void **state)
{
	static const char blob[STORE_MAX_BLOB + 1];
	static const int fds[STORE_MAX_FDS + 1];

	(void)state;
	assert_int_equal(store_put(store, STORE_CLIENT, 1, blob, sizeof(blob), NULL, 0), -EINVAL);
	assert_int_equal(store_put(store, STORE_CLIENT, 1, blob, 1, fds, STORE_MAX_FDS + 1),
			 -EINVAL);
	assert_int_equal(store_put(store, STORE_CLIENT, 1, blob, STORE_MAX_BLOB, NULL, 0), 0);
}

static void without_a_supervisor_nothing_happens(void **state)
{
	enum store_word word;
	uint64_t value;

	(void)state;
	assert_int_equal(store_put(NULL, STORE_CLIENT, 1, "x", 1, NULL, 0), 0);
	assert_int_equal(store_remove(NULL, STORE_CLIENT, 1), 0);
	assert_int_equal(store_load(NULL, NULL, NULL), 0);
	assert_int_equal(store_word(NULL, &word, &value), 0);
	assert_int_equal(store_ready(NULL), 0);
	assert_int_equal(store_finish(NULL, 0, NULL), 0);
	assert_int_equal(store_fd(NULL), -1);
	assert_int_equal(store_supervisor_pid(NULL), 0);
	store_close(NULL);
}

static void hears_words(void **state)
{
	struct store_packet p;
	enum store_word word;
	uint64_t value;

	(void)state;
	assert_int_equal(store_word(store, &word, &value), 0);
	store_packet_init(&p, STORE_OP_HELLO, 0, 1234);
	assert_int_equal(store_packet_send(far_end, &p, NULL, 0), 0);
	store_packet_init(&p, STORE_OP_WORD, STORE_WORD_DRAIN, 500);
	assert_int_equal(store_packet_send(far_end, &p, NULL, 0), 0);
	assert_int_equal(send(far_end, "rubbish", 7, 0), 7); /* is passed over */
	store_packet_init(&p, STORE_OP_WORD, STORE_WORD_STOP, 0);
	assert_int_equal(store_packet_send(far_end, &p, NULL, 0), 0);
	assert_int_equal(store_word(store, &word, &value), 1);
	assert_int_equal(word, STORE_WORD_DRAIN);
	assert_true(value == 500);
	assert_int_equal(store_supervisor_pid(store), 1234);
	assert_int_equal(store_word(store, &word, &value), 1);
	assert_int_equal(word, STORE_WORD_STOP);
	assert_int_equal(store_word(store, &word, &value), 0);
	close(far_end);
	far_end = -1;
	assert_int_equal(store_word(store, &word, &value), -EPIPE);
	assert_int_equal(store_put(store, STORE_CLIENT, 1, "x", 1, NULL, 0), -EPIPE);
}

static void what_was_sent_before_a_death_counts(void **state)
{
	struct store_packet p;
	enum store_word word;
	int fds[STORE_MAX_FDS];
	uint64_t value;

	(void)state;
	/* The dying end has a packet that it never read: the kernel then resets the connection. */
	store_packet_init(&p, STORE_OP_WORD, STORE_WORD_STOP, 0);
	assert_int_equal(store_packet_send(far_end, &p, NULL, 0), 0);
	assert_int_equal(store_put(store, STORE_CLIENT, 9, "x", 1, NULL, 0), 0);
	store_close(store);
	store = NULL;
	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), 1);
	assert_true(p.id == 9);
	assert_int_equal(store_packet_receive(far_end, &p, fds, MSG_DONTWAIT), -EPIPE);
	assert_int_equal(store_word(NULL, &word, &value), 0);
}

static void bad_packets_leak_nothing(void **state)
{
	struct store_packet p, got;
	int fds[STORE_MAX_FDS], many[STORE_MAX_FDS] = {0, 1, 2, 0}, before = open_descriptors();

	(void)state;
	for (int i = 0; i < 4; i++) {
		store_packet_init(&p, STORE_OP_PUT, STORE_CLIENT, 1);
		p.nfds = STORE_MAX_FDS;
		if (i == 0)
			p.magic++;
		if (i == 1)
			p.size = 1000; /* but 0 travel, as below */
		if (i == 2)
			p.size = STORE_MAX_BLOB + 1;
		if (i == 3)
			p.nfds = 2;
		{
			struct iovec iov = {&p, offsetof(struct store_packet, blob)};
			char buf[CMSG_SPACE(sizeof(many))] = {0};
			struct msghdr mh = {.msg_iov = &iov,
					    .msg_iovlen = 1,
					    .msg_control = buf,
					    .msg_controllen = sizeof(buf)};
			struct cmsghdr *c = CMSG_FIRSTHDR(&mh);

			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof(many));
			memcpy(CMSG_DATA(c), many, sizeof(many));
			assert_true(sendmsg(store_fd(store), &mh, 0) > 0);
		}
		assert_int_equal(store_packet_receive(far_end, &got, fds, 0), -EPROTO);
	}
	assert_int_equal(open_descriptors(), before);
}

struct seen {
	unsigned int count, fail_at;
	uint64_t ids[8];
};

static int take(void *arg, enum store_kind kind, uint64_t id, const void *blob, size_t size,
		const int *fds, unsigned int nfds)
{
	struct seen *seen = arg;

	(void)kind;
	for (unsigned int i = 0; i < nfds; i++)
		close(fds[i]);
	if (size == 3 && memcmp(blob, "abc", 3) == 0)
		seen->ids[seen->count++] = id;
	return seen->count == seen->fail_at ? -ENOMEM : 0;
}

static void send_records(int fd)
{
	struct store_packet p;
	int zero = 0;

	for (uint64_t id = 10; id < 13; id++) {
		store_packet_init(&p, STORE_OP_RECORD, STORE_REGION, id);
		p.nfds = 1;
		p.size = 3;
		memcpy(p.blob, "abc", 3);
		assert_int_equal(store_packet_send(fd, &p, &zero, 0), 0);
	}
	store_packet_init(&p, STORE_OP_END, 0, 4321);
	assert_int_equal(store_packet_send(fd, &p, NULL, 0), 0);
}

static void loads_records(void **state)
{
	int before = open_descriptors();
	struct seen seen = {0};

	(void)state;
	send_records(far_end);
	assert_int_equal(store_load(store, take, &seen), 0);
	assert_int_equal(seen.count, 3);
	assert_true(seen.ids[0] == 10 && seen.ids[2] == 12);
	assert_int_equal(store_supervisor_pid(store), 4321);
	seen = (struct seen){.fail_at = 2};
	send_records(far_end);
	assert_int_equal(store_load(store, take, &seen), -ENOMEM);
	assert_int_equal(seen.count, 2);
	assert_int_equal(open_descriptors(), before);
	close(far_end);
	far_end = -1;
	assert_int_equal(store_load(store, take, &seen), -EPIPE);
}

#define MODEL_IDS 300
#define MODEL_STEPS 20000

struct model {
	bool there;
	char blob[8];
	ino_t inode; /* of the first descriptor; 0: none */
};

static void put_random(struct store_table *t, struct model *m, uint64_t id)
{
	struct store_packet p;
	int fd = -1, pipes[2];
	struct stat st;

	store_packet_init(&p, STORE_OP_PUT, STORE_CLIENT, id);
	p.size = 8;
	snprintf(m->blob, sizeof(m->blob), "%d", rand() % 1000000);
	memcpy(p.blob, m->blob, 8);
	if (rand() % 2) {
		assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
		close(pipes[1]);
		fd = pipes[0];
		fstat(fd, &st);
		m->inode = st.st_ino;
		p.nfds = 1;
	} else if (!m->there) {
		m->inode = 0;
	}
	m->there = true;
	assert_int_equal(store_table_put(t, &p, &fd), 0);
}

static void check_model(const struct store_table *t, const struct model *model)
{
	size_t count = 0;

	for (uint64_t id = 0; id < MODEL_IDS; id++) {
		const struct store_record *r = store_table_find(t, STORE_CLIENT, id);
		struct stat st;

		assert_int_equal(r != NULL, model[id].there);
		if (!r)
			continue;
		count++;
		assert_string_equal(r->blob, model[id].blob);
		assert_int_equal(r->nfds, model[id].inode != 0);
		if (r->nfds) {
			assert_int_equal(fstat(r->fds[0], &st), 0);
			assert_true(st.st_ino == model[id].inode);
		}
	}
	assert_int_equal(t->count, count);
	for (const struct store_record *r = t->first; r; r = r->next)
		count--;
	assert_int_equal(count, 0);
}

static void table_agrees_with_a_model(void **state)
{
	static struct model model[MODEL_IDS];
	struct store_table t = {0};
	int before = open_descriptors();

	(void)state;
	srand(1);
	for (int step = 0; step < MODEL_STEPS; step++) {
		uint64_t id = (uint64_t)(rand() % MODEL_IDS);

		if (rand() % 3 == 0) {
			store_table_remove(&t, STORE_CLIENT, id);
			model[id].there = false;
		} else {
			put_random(&t, &model[id], id);
		}
		if (step % 1000 == 999)
			check_model(&t, model);
	}
	store_table_deinit(&t);
	assert_int_equal(open_descriptors(), before);
}

static void table_keeps_the_order(void **state)
{
	struct store_table t = {0};
	struct store_packet p;
	uint64_t expected[] = {1, 2, 4, 5}, *e = expected;

	(void)state;
	for (uint64_t id = 1; id <= 4; id++) {
		store_packet_init(&p, STORE_OP_PUT, STORE_REGION, id);
		assert_int_equal(store_table_put(&t, &p, NULL), 0);
	}
	store_packet_init(&p, STORE_OP_PUT, STORE_REGION, 2);
	assert_int_equal(store_table_put(&t, &p, NULL), 0); /* replaced: keeps its place */
	store_table_remove(&t, STORE_REGION, 3);
	store_table_remove(&t, STORE_CLIENT, 1); /* another kind */
	store_packet_init(&p, STORE_OP_PUT, STORE_REGION, 5);
	assert_int_equal(store_table_put(&t, &p, NULL), 0);
	for (const struct store_record *r = t.first; r; r = r->next)
		assert_true(r->id == *e++);
	assert_ptr_equal(e, expected + 4);
	store_table_deinit(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(puts_and_removes_are_packets, setup, teardown),
		cmocka_unit_test_setup_teardown(refuses_what_does_not_fit, setup, teardown),
		cmocka_unit_test(without_a_supervisor_nothing_happens),
		cmocka_unit_test_setup_teardown(hears_words, setup, teardown),
		cmocka_unit_test_setup_teardown(what_was_sent_before_a_death_counts, setup,
						teardown),
		cmocka_unit_test_setup_teardown(bad_packets_leak_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(loads_records, setup, teardown),
		cmocka_unit_test(table_agrees_with_a_model),
		cmocka_unit_test(table_keeps_the_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
