/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * page-server: restores a process from an image that comes over the network.
 *
 * As in migration: a process waits for its memory; a page server beside it receives the image from another
 * machine (here: another process, over TCP on the loopback) and puts it into the waiting process. Two
 * ways of doing the last step are measured, one after the other in each round:
 *
 *	graft	the image is received into a pando_buffer, which is then handed over
 *	writev	it is received into ordinary memory, then copied by process_vm_writev()
 *
 * Three processes, connected by socket pairs: the source (sends the image), the restored one (gets it,
 * looks at every word of it, then writes to every page), and this one. Each round verifies the image.
 *
 * What is measured, each the smallest of all rounds: receiving; handing over, from the first call here
 * until the restored process has the memory; the first reading, and the first writing of all pages there; and the memory
 * that both have together when it has been handed over and read.
 *
 * A process to be restored has fresh memory, so writev's time has the page faults of it; with --warm it
 * copies into memory that is there already.
 *
 * Nothing lies in a file system; when this process ends, for whatever reason, the others do.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <pando/pando.h>

#define PAGE 4096u
#define PIECE (1u << 20)
#define IMAGE_MAX (1ull << 40)

enum method { GRAFT, WRITEV, METHODS };

static const char *const names[METHODS] = {"graft", "process_vm_writev"};

/* From this process to the restored one, and back. */
struct order {
	enum method method;
	uint64_t size;
	uint64_t address; /* WRITEV: where it has room; in the answer */
};

struct report {
	uint64_t have_ns; /* CLOCK_MONOTONIC when it had the memory */
	uint64_t read_ns, write_ns;
	uint64_t kib; /* what it has */
	uint64_t address;
	uint32_t way;
	uint32_t wrong; /* pages that are not as they were sent */
};

struct figures {
	uint64_t receive_ns, hand_ns, read_ns, write_ns, kib;
};

static uint64_t size = 256u << 20;
static unsigned int rounds = 3, want_way, buffer_flags;
static bool warm;
static volatile sig_atomic_t interrupted;
static pid_t children[2];
static struct pando *p; /* the restored process, a child, is a client of its own by it */

static void fail(const char *what)
{
	if (interrupted)
		exit(128 + interrupted);
	fprintf(stderr, "page-server: %s\n", what);
	exit(1);
}

static void fail_errno(const char *what)
{
	if (interrupted)
		exit(128 + interrupted);
	fprintf(stderr, "page-server: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void fail_pando(void)
{
	fail(pando_strerror_last());
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Returns false at the end of the stream. */
static bool get(int fd, void *to, size_t n)
{
	size_t have = 0;

	while (have < n && !interrupted) {
		ssize_t got = read(fd, (char *)to + have, n - have);

		if (got == 0 || (got < 0 && errno != EINTR))
			return false;
		have += got > 0 ? (size_t)got : 0;
	}
	return have == n;
}

static bool put(int fd, const void *from, size_t n)
{
	size_t sent = 0;

	while (sent < n && !interrupted) {
		ssize_t put = send(fd, (const char *)from + sent, n - sent, MSG_NOSIGNAL);

		if (put < 0 && errno != EINTR)
			return false;
		sent += put > 0 ? (size_t)put : 0;
	}
	return sent == n;
}

/* ---- the image ------------------------------------------------------------ */

static uint64_t image_word(uint64_t round, uint64_t index)
{
	return (index + 1) * 0x9e3779b97f4a7c15ull ^ round << 32;
}

/* Sends the image of each round that it is asked for. */
static void be_source(int socket)
{
	uint64_t *piece = malloc(PIECE), round;

	if (!piece)
		_exit(1);
	while (get(socket, &round, sizeof(round)))
		for (uint64_t at = 0; at < size; at += PIECE) {
			for (uint64_t i = 0; i < PIECE / 8; i++)
				piece[i] = image_word(round, at / 8 + i);
			if (!put(socket, piece, size - at < PIECE ? size - at : PIECE))
				_exit(1);
		}
	_exit(0);
}

/* ---- the restored process ------------------------------------------------- */

/* What a process has of memory that is its own or shared, in KiB: its proportional share. */
static uint64_t memory_kib(pid_t pid)
{
	char path[48], line[160];
	uint64_t kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, "Pss_Anon:", 9) == 0 || strncmp(line, "Pss_Shmem:", 10) == 0)
			kib += strtoull(strchr(line, ':') + 1, NULL, 10);
	if (f)
		fclose(f);
	return kib;
}

static void look_and_write(uint64_t *image, uint64_t round, struct report *r)
{
	uint64_t begin = now_ns(), wrong = 0;

	for (uint64_t i = 0; i < size / 8; i++)
		wrong += image[i] != image_word(round, i);
	r->read_ns = now_ns() - begin;
	r->kib = memory_kib(getpid());
	r->wrong = wrong != 0;
	begin = now_ns();
	for (uint64_t i = 0; i < size / 8; i += PAGE / 8)
		image[i] = i;
	r->write_ns = now_ns() - begin;
}

static void restore_graft(int socket, uint64_t round)
{
	struct pollfd pfd = {.fd = pando_event_fd(p), .events = POLLIN};
	struct pando_graft_info info;
	struct report r = {0};

	while (pando_graft_accept(p, &info) == -EAGAIN)
		if (poll(&pfd, 1, -1) < 0 && errno != EINTR)
			_exit(1);
	r.have_ns = now_ns();
	r.way = info.way;
	look_and_write(info.address, round, &r);
	if (pando_graft_release(p, info.address) < 0 || !put(socket, &r, sizeof(r)))
		_exit(1);
}

static void restore_writev(int socket, uint64_t round)
{
	struct report r = {0};
	void *room = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char done;

	if (room == MAP_FAILED)
		_exit(1);
	if (buffer_flags & PANDO_BUFFER_HUGE)
		(void)madvise(room, size, MADV_HUGEPAGE);
	for (uint64_t at = 0; warm && at < size; at += PAGE)
		((volatile char *)room)[at] = 1;
	r.address = (uintptr_t)room;
	if (!put(socket, &r, sizeof(r)) || !get(socket, &done, 1))
		_exit(1);
	r.have_ns = now_ns();
	look_and_write(room, round, &r);
	munmap(room, size);
	if (!put(socket, &r, sizeof(r)))
		_exit(1);
}

static void be_restored(int socket)
{
	const struct pando_graft_listen_options o = {.size = size * 2};
	struct order order;
	uint64_t id;

	if (pando_graft_listen(p, &o) < 0) {
		fprintf(stderr, "page-server: %s\n", pando_strerror_last());
		_exit(1);
	}
	id = pando_client_id(p);
	if (!put(socket, &id, sizeof(id)))
		_exit(1);
	for (uint64_t i = 0; get(socket, &order, sizeof(order)); i++)
		if (order.method == GRAFT)
			restore_graft(socket, i);
		else
			restore_writev(socket, i);
	pando_disconnect(p);
	_exit(0);
}

/* ---- the page server ------------------------------------------------------ */

static void receive(int source, uint64_t round, char *to, uint64_t *ns)
{
	const bool show = isatty(STDERR_FILENO);
	uint64_t begin = now_ns();

	if (!put(source, &round, sizeof(round)))
		fail("the source has gone");
	for (uint64_t at = 0; at < size; at += PIECE) {
		if (!get(source, to + at, size - at < PIECE ? size - at : PIECE))
			fail("the source has gone");
		if (show && at % (64 * PIECE) == 0)
			fprintf(stderr, "\rround %llu: %llu of %llu MiB received ",
				(unsigned long long)round / METHODS + 1,
				(unsigned long long)at >> 20, (unsigned long long)size >> 20);
	}
	if (show)
		fprintf(stderr, "\r%60s\r", "");
	*ns = now_ns() - begin;
}

static struct report hear(int restored)
{
	struct report r;

	if (!get(restored, &r, sizeof(r)))
		fail("the restored process has gone");
	return r;
}

static struct report by_graft(uint64_t id, int source, int restored, uint64_t round,
			      struct figures *f)
{
	const struct pando_buffer_options o = {
		.receiver = id, .way = want_way, .flags = buffer_flags};
	const struct order order = {.method = GRAFT, .size = size};
	struct pando_buffer *b;
	struct report r;
	uint64_t begin;

	if (pando_buffer_new(p, size, &o, &b) < 0)
		fail_pando();
	receive(source, round, pando_buffer_data(b), &f->receive_ns);
	if (!put(restored, &order, sizeof(order)))
		fail("the restored process has gone");
	begin = now_ns();
	if (pando_graft(p, id, b, size, round) < 0)
		fail_pando();
	r = hear(restored);
	f->hand_ns = r.have_ns - begin;
	f->kib = r.kib + memory_kib(getpid());
	pando_buffer_free(b);
	return r;
}

static struct report by_writev(int source, int restored, uint64_t round, struct figures *f)
{
	const struct order order = {.method = WRITEV, .size = size};
	char *image = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct report r;
	uint64_t begin, done = 0;

	if (image == MAP_FAILED)
		fail_errno("no memory for the image");
	if (buffer_flags & PANDO_BUFFER_HUGE)
		(void)madvise(image, size, MADV_HUGEPAGE);
	receive(source, round, image, &f->receive_ns);
	if (!put(restored, &order, sizeof(order)))
		fail("the restored process has gone");
	r = hear(restored);
	begin = now_ns();
	while (done < size) {
		struct iovec from = {image + done, size - done};
		struct iovec to = {(void *)(uintptr_t)(r.address + done), size - done};
		ssize_t n = process_vm_writev(children[1], &from, 1, &to, 1, 0);

		if (n <= 0)
			fail_errno("process_vm_writev");
		done += (size_t)n;
	}
	if (!put(restored, "", 1))
		fail("the restored process has gone");
	r = hear(restored);
	f->hand_ns = r.have_ns - begin;
	f->kib = r.kib + memory_kib(getpid());
	munmap(image, size);
	return r;
}

static void keep_least(struct figures *best, const struct figures *f)
{
	const uint64_t *new = (const uint64_t *)f;
	uint64_t *old = (uint64_t *)best;

	for (size_t i = 0; i < sizeof(*f) / sizeof(*new); i++)
		if (old[i] == 0 || new[i] < old[i])
			old[i] = new[i];
}

static void print_table(const struct figures *best, uint32_t way)
{
	printf("\n%-20s %12s %12s %12s %12s %12s\n", "", "receive ms", "hand over ms",
	       "1st read ms", "1st write ms", "memory MiB");
	for (int m = 0; m < METHODS; m++) {
		char name[40];

		snprintf(name, sizeof(name), "%s%s%s%s", names[m], m == GRAFT ? " (" : "",
			 m == GRAFT ? pando_graft_way_name(way) : "", m == GRAFT ? ")" : "");
		printf("%-20s %12.2f %12.3f %12.2f %12.2f %12.1f\n", name,
		       (double)best[m].receive_ns / 1e6, (double)best[m].hand_ns / 1e6,
		       (double)best[m].read_ns / 1e6, (double)best[m].write_ns / 1e6,
		       (double)best[m].kib / 1024);
	}
	printf("\nHanding over by graft is %.0f times as fast; the same until every page has been "
	       "written there: %.2f times.\n",
	       (double)best[WRITEV].hand_ns / (double)best[GRAFT].hand_ns,
	       (double)(best[WRITEV].hand_ns + best[WRITEV].read_ns + best[WRITEV].write_ns) /
		       (double)(best[GRAFT].hand_ns + best[GRAFT].read_ns + best[GRAFT].write_ns));
}

static void on_signal(int number)
{
	interrupted = number;
}

/* Ends the two others, whatever they are doing. */
static void clean_up(void)
{
	for (int i = 0; i < 2; i++) {
		if (children[i] <= 0)
			continue;
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
		children[i] = 0;
	}
}

static void start(int which, int socket, void (*run)(int socket), int others)
{
	const pid_t parent = getpid();

	fflush(NULL);
	children[which] = fork();
	if (children[which] < 0)
		fail_errno("fork");
	if (children[which] > 0) {
		close(socket);
		return;
	}
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	close(others);
	run(socket);
}

/* The source is connected over TCP, as if it were far away. */
static int start_source(void)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t length = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), near, far;

	near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || near < 0 || bind(listener, (struct sockaddr *)&at, length) < 0 ||
	    listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&at, &length) < 0 ||
	    connect(near, (struct sockaddr *)&at, length) < 0)
		fail_errno("cannot connect over the loopback");
	far = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (far < 0)
		fail_errno("accept");
	close(listener);
	start(0, far, be_source, near);
	return near;
}

static int start_restored(void)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		fail_errno("socketpair");
	start(1, ends[1], be_restored, ends[0]);
	return ends[0];
}

static void usage(FILE *out)
{
	fputs("usage: page-server [OPTION]...\n"
	      "\n"
	      "Receives an image over TCP (loopback) and puts it into a waiting process, by "
	      "grafting it and by\n"
	      "process_vm_writev(), and prints what both take: the least of several rounds.\n"
	      "\n"
	      "  -s, --size MIB     of the image (default: 256)\n"
	      "  -r, --rounds N     of each (default: 3)\n"
	      "  -w, --way WAY      auto (default), memfd or mmap (moves pages; patched kernel)\n"
	      "      --warm         process_vm_writev() finds memory that has been touched before\n"
	      "      --huge         2 MiB pages on both sides, where the system permits them\n"
	      "  -h, --help\n"
	      "\n"
	      "Takes about twice the image's memory. Uses the broker of $PANDO_BROKER or an "
	      "embedded one.\n",
	      out);
}

static uint64_t number(const char *what, const char *text, uint64_t max)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	if (*end || end == text || text[0] == '-' || n == 0 || n > max) {
		fprintf(stderr, "page-server: %s \"%s\" is not a whole number from 1 to %llu\n",
			what, text, (unsigned long long)max);
		exit(2);
	}
	return n;
}

static void options(int argc, char **argv)
{
	static const struct option longs[] = {
		{"size", required_argument, NULL, 's'},
		{"rounds", required_argument, NULL, 'r'},
		{"way", required_argument, NULL, 'w'},
		{"warm", no_argument, NULL, 'W'},
		{"huge", no_argument, NULL, 'H'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "s:r:w:h", longs, NULL)) != -1) {
		switch (opt) {
		case 's':
			size = number("size", optarg, IMAGE_MAX >> 20) << 20;
			break;
		case 'r':
			rounds = (unsigned int)number("rounds", optarg, 10000);
			break;
		case 'w':
			while (pando_graft_way_name(want_way) &&
			       strcmp(pando_graft_way_name(want_way), optarg) != 0)
				want_way++;
			if (pando_graft_way_name(want_way))
				break;
			fprintf(stderr, "page-server: there is no way \"%s\"\n", optarg);
			exit(2);
		case 'W':
			warm = true;
			break;
		case 'H':
			buffer_flags = PANDO_BUFFER_HUGE;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	if (optind < argc) {
		usage(stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct sigaction on = {.sa_handler = on_signal};
	struct figures best[METHODS] = {0};
	int source, restored;
	uint32_t way = 0;
	uint64_t id;

	options(argc, argv);
	atexit(clean_up);
	sigaction(SIGINT, &on, NULL);
	sigaction(SIGTERM, &on, NULL);
	source = start_source();
	if (pando_connect(&p, NULL) < 0)
		fail_pando();
	restored = start_restored();
	if (!get(restored, &id, sizeof(id)))
		fail("the process to be restored cannot wait for its memory");
	for (uint64_t i = 0; i < (uint64_t)rounds * METHODS; i++) {
		const enum method m = (enum method)(i % METHODS);
		struct figures f = {0};
		struct report r = m == GRAFT ? by_graft(id, source, restored, i, &f)
					     : by_writev(source, restored, i, &f);

		if (r.wrong)
			fail("the image is not as it was sent");
		if (m == GRAFT)
			way = r.way;
		f.read_ns = r.read_ns;
		f.write_ns = r.write_ns;
		keep_least(&best[m], &f);
		if (interrupted)
			break;
	}
	if (!interrupted)
		print_table(best, way);
	close(restored);
	close(source);
	clean_up();
	pando_disconnect(p);
	return interrupted ? 128 + interrupted : 0;
}
