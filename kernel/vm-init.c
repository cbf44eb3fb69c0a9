// SPDX-License-Identifier: GPL-2.0-only
/*
 * vm-init: process 1 of the virtual machine that kernel/vm boots.
 *
 * kernel/vm links it statically and packs it, alone, into the initramfs. It
 * mounts the host's root over 9p, lays writable file systems over the places
 * that programs write to, runs one command with the caller's arguments,
 * environment and working folder, copies what the command writes to two
 * virtio-serial ports, leaves the exit status in a file and resets the machine.
 *
 * What to do comes through a small 9p share, the control folder:
 *	argv, env	strings, each ended by a NUL
 *	setup		key and value, key and value..., each ended by a NUL:
 *	   cwd DIR	   working folder of the command
 *	   keep DIR	   DIR lies below a folder that gets a tmpfs: show it again
 *	   share DIR	   9p share "share0", "share1"... to mount writable on DIR
 *	   disk DEV	   file system (ext4) to mount on /run/disk
 *	   swap DEV	   device to format as swap and to use
 *	   merge yes	   stdout and stderr of the caller are the same file
 *	   limit S	   kernel/vm gives up S seconds after it started QEMU
 * and goes back through it:
 *	status		the exit status in decimal, 128 + signal if killed
 *
 * The command writes into pipes, not into the ports: a port can be opened only
 * once, and programs do open /dev/stderr again. At the end all processes are
 * killed and msharefs is unmounted before the machine stops, so that what the
 * kernel has to say about their teardown still reaches its log.
 *
 * Run by anything but the kernel it prints the time-stamp counter's kHz.
 *
 * Nothing here can be reported to a user save through the kernel's log, which
 * is the console: note() for what may be missing, die() for what may not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define ROOT "/root"
#define CTL "/ctl"
#define P9 "trans=virtio,version=9p2000.L,msize=262144,cache="

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "vm-init: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
}

static void reset(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "vm-init: failed: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, ": %s\n", strerror(errno));
	va_end(ap);
	reset();
	__builtin_unreachable();
}

/* Reads a whole file and ends it with a NUL; *size does not count that one. */
static char *slurp(const char *path, size_t *size)
{
	size_t used = 0, room = 65536;
	char *data = malloc(room + 1);
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || !data)
		die("reading %s", path);
	while ((n = read(fd, data + used, room - used)) > 0) {
		used += n;
		if (used == room) {
			room *= 2;
			data = realloc(data, room + 1);
			if (!data)
				die("memory for %s", path);
		}
	}
	if (n < 0)
		die("reading %s", path);
	close(fd);
	data[used] = '\0';
	*size = used;
	return data;
}

/* The strings of a file of NUL-ended strings, as an array ended by NULL. */
static char **strings(const char *path)
{
	size_t size, count = 0;
	char *data = slurp(path, &size), *p;
	char **list;

	for (p = data; p < data + size; p += strlen(p) + 1)
		count++;
	list = calloc(count + 8, sizeof(*list));
	if (!list)
		die("memory for %s", path);
	count = 0;
	for (p = data; p < data + size; p += strlen(p) + 1)
		list[count++] = p;
	return list;
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		note("writing %s: %s", path, strerror(errno));
	if (fd >= 0) {
		fsync(fd);
		close(fd);
	}
}

static void make_path(const char *path)
{
	char part[4096];
	size_t i;

	snprintf(part, sizeof(part), "%s", path);
	for (i = 1; part[i]; i++) {
		if (part[i] != '/')
			continue;
		part[i] = '\0';
		mkdir(part, 0755);
		part[i] = '/';
	}
	mkdir(part, 0755);
}

static void need_mount(const char *what, const char *where, const char *type, unsigned long flags,
		       const char *options)
{
	if (mount(what, where, type, flags, options))
		die("mounting %s on %s", what, where);
}

static void try_mount(const char *what, const char *where, const char *type, const char *options)
{
	if (mount(what, where, type, 0, options) && errno != ENODEV && errno != ENOENT)
		note("mounting %s on %s: %s", type, where, strerror(errno));
}

/* The driver announces its ports some time after it has found their device. */
static int open_port(int n)
{
	char path[32];
	int fd, tries;

	snprintf(path, sizeof(path), "/dev/vport0p%d", n);
	for (tries = 0; tries < 3000; tries++) {
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		usleep(10000);
	}
	die("opening %s", path);
}

/* Calls act(value, n) for the n-th setup entry with this key. */
static void each(char **setup, const char *key, void (*act)(const char *value, int n))
{
	int n = 0;

	for (; setup[0] && setup[1]; setup += 2)
		if (!strcmp(setup[0], key))
			act(setup[1], n++);
}

static const char *the(char **setup, const char *key)
{
	for (; setup[0] && setup[1]; setup += 2)
		if (!strcmp(setup[0], key))
			return setup[1];
	return NULL;
}

static void keep_aside(const char *dir, int n)
{
	char from[4096], to[64];

	snprintf(from, sizeof(from), ROOT "%s", dir);
	snprintf(to, sizeof(to), "/keep%d", n);
	mkdir(to, 0755);
	need_mount(from, to, NULL, MS_BIND, NULL);
}

static void keep_back(const char *dir, int n)
{
	char from[64], to[4096];

	snprintf(from, sizeof(from), "/keep%d", n);
	snprintf(to, sizeof(to), ROOT "%s", dir);
	make_path(to);
	need_mount(from, to, NULL, MS_MOVE, NULL);
}

static void share(const char *dir, int n)
{
	char tag[32], to[4096];

	snprintf(tag, sizeof(tag), "share%d", n);
	snprintf(to, sizeof(to), ROOT "%s", dir);
	make_path(to);
	need_mount(tag, to, "9p", 0, P9 "mmap");
}

/* Everything below ROOT, then ROOT becomes /. */
static void make_root(char **setup)
{
	mkdir(ROOT, 0755);
	need_mount("pando_root", ROOT, "9p", MS_RDONLY, P9 "loose");
	each(setup, "keep", keep_aside);

	need_mount("proc", ROOT "/proc", "proc", 0, NULL);
	need_mount("sysfs", ROOT "/sys", "sysfs", 0, NULL);
	need_mount("devtmpfs", ROOT "/dev", "devtmpfs", 0, NULL);
	if (symlink("/proc/self/fd", ROOT "/dev/fd") || symlink("fd/0", ROOT "/dev/stdin") ||
	    symlink("fd/1", ROOT "/dev/stdout") || symlink("fd/2", ROOT "/dev/stderr"))
		note("links in /dev: %s", strerror(errno));
	mkdir(ROOT "/dev/pts", 0755);
	mkdir(ROOT "/dev/shm", 01777);
	mkdir(ROOT "/dev/mqueue", 01777);
	mkdir(ROOT "/dev/hugepages", 0755);
	try_mount("devpts", ROOT "/dev/pts", "devpts", "ptmxmode=0666,mode=0620,gid=5");
	try_mount("mqueue", ROOT "/dev/mqueue", "mqueue", NULL);
	try_mount("hugetlbfs", ROOT "/dev/hugepages", "hugetlbfs", NULL);
	need_mount("tmpfs", ROOT "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	need_mount("tmpfs", ROOT "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	need_mount("tmpfs", ROOT "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
	need_mount("tmpfs", ROOT "/var/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	mkdir(ROOT "/run/lock", 01777);
	try_mount("debugfs", ROOT "/sys/kernel/debug", "debugfs", NULL);
	try_mount("tracefs", ROOT "/sys/kernel/tracing", "tracefs", NULL);
	try_mount("cgroup2", ROOT "/sys/fs/cgroup", "cgroup2", NULL);
	try_mount("msharefs", ROOT "/sys/fs/mshare", "msharefs", NULL);

	each(setup, "keep", keep_back);
	each(setup, "share", share);

	if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		die("making %s the root", ROOT);
}

/* A swap header as mkswap(8) writes it: version 1, no bad pages. */
static void add_swap(const char *dev, int n)
{
	char page[4096] = { 0 };
	struct {
		unsigned int version, last_page, bad_pages;
	} *head = (void *)(page + 1024);
	off_t size;
	int fd = open(dev, O_RDWR | O_CLOEXEC);

	(void)n;
	if (fd < 0)
		die("opening %s for swap", dev);
	size = lseek(fd, 0, SEEK_END);
	head->version = 1;
	head->last_page = size / 4096 - 1;
	memcpy(page + 4096 - 10, "SWAPSPACE2", 10);
	if (pwrite(fd, page, sizeof(page), 0) != sizeof(page) || fsync(fd) || close(fd))
		die("formatting %s as swap", dev);
	if (swapon(dev, 0))
		die("swapon %s", dev);
}

static void add_disk(const char *dev, int n)
{
	(void)n;
	mkdir("/run/disk", 0755);
	need_mount(dev, "/run/disk", "ext4", MS_NOATIME, NULL);
}

static void settle(void)
{
	static const struct rlimit files = { 1024, 1 << 20 };
	struct ifreq lo = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	lo.ifr_flags = IFF_UP | IFF_RUNNING;
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo))
		note("starting lo: %s", strerror(errno));
	close(fd);
	sethostname("pando-vm", 8);
	setrlimit(RLIMIT_NOFILE, &files);
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids +cpu +cpuset");
}

/*
 * On the host: the rate of the time-stamp counter, which QEMU's TCG hands
 * through to the guest. The guest could measure it only against an emulated
 * timer, and is wrong by any factor when the host is busy.
 */
static int print_tsc_khz(void)
{
	struct timespec a, b;
	unsigned long long from, to, ns;

	clock_gettime(CLOCK_MONOTONIC_RAW, &a);
	from = __rdtsc();
	usleep(50000);
	clock_gettime(CLOCK_MONOTONIC_RAW, &b);
	to = __rdtsc();
	ns = (b.tv_sec - a.tv_sec) * 1000000000ull + b.tv_nsec - a.tv_nsec;
	printf("%llu\n", (to - from) * 1000000ull / ns);
	return 0;
}

static pid_t start(char **argv, char **env, const char *cwd, int out, int err)
{
	pid_t pid = fork();
	sigset_t none;
	int null;

	if (pid)
		return pid;
	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	null = open("/dev/null", O_RDONLY);
	dup2(null, 0);
	dup2(out, 1);
	dup2(err, 2);
	if (null > 2)
		close(null);
	if (chdir(cwd)) {
		dprintf(2, "kernel/vm: cannot enter %s: %s\n", cwd, strerror(errno));
		_exit(126);
	}
	environ = env;
	execvp(argv[0], argv);
	dprintf(2, "kernel/vm: cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Moves what is there from a pipe to a port. False at the end of the pipe. */
static int forward(int from, int to)
{
	char data[65536];
	ssize_t n = read(from, data, sizeof(data)), done = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -1 : 0;
	while (done < n) {
		ssize_t w = write(to, data + done, n - done);

		if (w < 0 && errno != EINTR && errno != EAGAIN)
			return 0;
		if (w > 0)
			done += w;
	}
	return n > 0;
}

/*
 * Milliseconds that are left until shortly before kernel/vm gives up; -1 for ever. This clock
 * starts some seconds after kernel/vm's on a busy host, by which the margin shrinks.
 */
static int time_left(long limit)
{
	long margin = limit / 5 < 30 ? limit / 5 : 30;
	struct timespec t;

	if (!limit)
		return -1;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec >= limit - margin ? 0 : (int)(limit - margin - t.tv_sec) * 1000;
}

/*
 * What a command that does not end is waiting for, in the kernel's log: blocked
 * tasks, locks held, what the processors do, all tasks. That these lines are there
 * also says that the machine itself still ran.
 */
static void show_hang(void)
{
	const char *c;
	int fd;

	note("time is nearly up");
	for (c = "wdlt"; *c; c++) {
		fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, c, 1) != 1)
			note("sysrq %c: %s", *c, strerror(errno));
		close(fd);
	}
	note("all tasks shown");
}

/* Serves pipes and the dead until the command has ended; returns its status. */
static int serve(pid_t command, int pipes[2], int ports[2], int sigfd, long limit)
{
	struct pollfd fds[3] = {
		{ .fd = pipes[0], .events = POLLIN },
		{ .fd = pipes[1], .events = POLLIN },
		{ .fd = sigfd, .events = POLLIN },
	};
	struct signalfd_siginfo info;
	int status = -1, i, s;
	pid_t pid;

	while (status < 0) {
		poll(fds, 3, time_left(limit));
		if (!time_left(limit)) {
			show_hang();
			limit = 0;
		}
		for (i = 0; i < 2; i++)
			if (fds[i].revents && !forward(pipes[i], ports[i]))
				fds[i].fd = -1;
		if (!fds[2].revents)
			continue;
		if (read(sigfd, &info, sizeof(info)) < 0)
			continue;
		while ((pid = waitpid(-1, &s, WNOHANG)) > 0)
			if (pid == command)
				status = WIFSIGNALED(s) ? 128 + WTERMSIG(s) : WEXITSTATUS(s);
	}
	for (i = 0; i < 2; i++)
		while (fds[i].fd >= 0 && forward(pipes[i], ports[i]) > 0)
			;
	return status;
}

static void end_all(void)
{
	kill(-1, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	if (umount2("/sys/fs/mshare", 0) && errno != EINVAL && errno != ENOENT)
		note("BUG: unmounting msharefs with no process left: %s", strerror(errno));
}

int main(void)
{
	char **argv, **env, **setup, text[16];
	const char *limit;
	int out[2], err[2], pipes[2], ports[2], ctl, sigfd, status, i;
	sigset_t chld;
	size_t size;

	if (getpid() != 1)
		return print_tsc_khz();
	mkdir("/dev", 0755);
	mkdir("/proc", 0555);
	if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) || mount("proc", "/proc", "proc", 0, NULL))
		die("first mounts");
	i = open("/dev/console", O_WRONLY | O_CLOEXEC);
	if (i >= 0) {
		dup2(i, 1);
		dup2(i, 2);
	}
	note("up");
	if (strstr(slurp("/proc/cmdline", &size), "pando.probe"))
		reset();

	mkdir(CTL, 0700);
	need_mount("pando_ctl", CTL, "9p", 0, P9 "none");
	argv = strings(CTL "/argv");
	env = strings(CTL "/env");
	setup = strings(CTL "/setup");
	ctl = open(CTL "/status", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (ctl < 0)
		die("opening the status file");

	for (i = 0; i < 2; i++)
		ports[i] = open_port(i + 1);
	make_root(setup);
	settle();
	each(setup, "disk", add_disk);
	each(setup, "swap", add_swap);

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	sigfd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	if (sigfd < 0 || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		die("pipes");
	pipes[0] = out[0];
	pipes[1] = err[0];
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	note("starting %s", argv[0]);
	status = start(argv, env, the(setup, "cwd"), out[1], the(setup, "merge") ? out[1] : err[1]);
	if (status < 0)
		die("fork");
	close(out[1]);
	close(err[1]);

	limit = the(setup, "limit");
	status = serve(status, pipes, ports, sigfd, limit ? atol(limit) : 0);
	note("command ended with status %d", status);
	end_all();
	snprintf(text, sizeof(text), "%d\n", status);
	if (write(ctl, text, strlen(text)) < 0)
		note("writing the status: %s", strerror(errno));
	close(ctl);
	note("down");
	reset();
	return 0;
}
