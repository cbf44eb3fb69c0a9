// SPDX-License-Identifier: GPL-2.0-only
/*
 * Storms: processes that fork, exec and are killed at any instant, while they
 * attach, touch and detach. Two witnesses that live through it check their data;
 * the harness checks in the end that nothing was left behind.
 */
#include "harness.h"

#include <elf.h>
#include <sys/resource.h>

#define WITNESS_PAGES 256
#define WORKERS 6

struct storm {
	int stop;
	uint64_t forks, kills, execs, checks;
};

static struct storm *s;
static struct region r;

/*
 * Who starts and kills goes before the others, and so do those who die: else most
 * of a storm's time goes by in waiting behind busy processes, on a debug kernel all
 * but a few seconds of it.
 */
static void hurry(pid_t pid, bool yes)
{
	setpriority(PRIO_PROCESS, (id_t)pid, yes ? -15 : 0);
}

static void murder(pid_t pid)
{
	kill(pid, SIGKILL);
	hurry(pid, true);
	JOIN_KILLED(pid, SIGKILL);
}

/* Keeps a pattern of its own in its half of the pages. */
static void __attribute__((noreturn)) witness(int number)
{
	uint64_t round = 1;
	size_t i;

	while (!LOAD(&s->stop)) {
		for (i = (size_t)number; i < WITNESS_PAGES; i += 2)
			*(volatile uint64_t *)(r.addr + i * PAGE) = round * 1000 + i;
		for (i = (size_t)number; i < WITNESS_PAGES; i += 2)
			CHECK_EQ(*(volatile uint64_t *)(r.addr + i * PAGE), round * 1000 + i);
		round++;
		ADD(&s->checks, 1);
	}
	_exit(0);
}

static void touch_some(uint64_t *state, int n)
{
	while (n--) {
		size_t page = WITNESS_PAGES + random64(state) % (r.size / PAGE / 16);

		if (random64(state) & 1)
			r.addr[page * PAGE] = 1;
		else
			(void)*(volatile char *)(r.addr + page * PAGE);
	}
}

static void __attribute__((noreturn)) busy(uint64_t seed)
{
	uint64_t state = seed * 2654435761u + 1;
	struct region own = r;

	hurry(0, false);
	for (;;) {
		touch_some(&state, 20);
		switch (random64(&state) % 4) {
		case 0:
			CHECK_OK(munmap(own.addr, own.size));
			region_map(&own, PROT_READ | PROT_WRITE);
			break;
		case 1:
			madvise(own.addr, own.size, MADV_DONTNEED);
			break;
		case 2: {
			pid_t pid = fork();

			if (!pid) {
				touch_some(&state, 5);
				_exit(0);
			}
			if (pid > 0)
				waitpid(pid, NULL, 0);
			break;
		}
		default:
			break;
		}
	}
}

#define NOTHING "/tmp/selftest-nothing"

/* The smallest program: it exits. No library has to be read from anywhere. */
static void write_program(void)
{
	static const unsigned char code[] = { 0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05 };
	struct {
		Elf64_Ehdr e;
		Elf64_Phdr p;
		unsigned char code[16];
	} file = {
		.e = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
		       .e_type = ET_EXEC, .e_machine = EM_X86_64, .e_version = EV_CURRENT,
		       .e_entry = 0x400000 + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
		       .e_phoff = sizeof(Elf64_Ehdr), .e_ehsize = sizeof(Elf64_Ehdr),
		       .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 1 },
		.p = { .p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_vaddr = 0x400000,
		       .p_filesz = sizeof(file), .p_memsz = sizeof(file), .p_align = PAGE },
	};
	int fd = (int)CHECK_OK(open(NOTHING, O_WRONLY | O_CREAT | O_TRUNC, 0700));

	memcpy(file.code, code, sizeof(code));
	CHECK_EQ(write(fd, &file, sizeof(file)), sizeof(file));
	close(fd);
}

static void start(pid_t *witnesses, const char *name)
{
	int i;

	s = shared_alloc(PAGE);
	region_create(&r, name, GiB(1));
	for (i = 0; i < 2; i++) {
		witnesses[i] = xfork();
		if (!witnesses[i])
			witness(i);
	}
	hurry(0, true);
}

static void finish(const pid_t *witnesses)
{
	STORE(&s->stop, 1);
	JOIN(witnesses[0]);
	JOIN(witnesses[1]);
	diag("%lu forks, %lu kills, %lu execs, %lu rounds of the witnesses", s->forks, s->kills, s->execs,
	     s->checks);
	CHECK(s->checks > 0, "the witnesses did nothing");
}

/* SIGKILL at random instants. */
static void kills(void)
{
	pid_t witnesses[2], worker[WORKERS] = { 0 };
	uint64_t state = 12345;
	double end;
	int i;

	start(witnesses, "kills");
	for (end = now() + storm_seconds(8); now() < end;) {
		i = (int)(random64(&state) % WORKERS);
		if (worker[i]) {
			murder(worker[i]);
			s->kills++;
		}
		worker[i] = xfork();
		if (!worker[i])
			busy(random64(&state));
		s->forks++;
		usleep((useconds_t)(random64(&state) % 3000));
	}
	for (i = 0; i < WORKERS; i++) {
		if (worker[i])
			murder(worker[i]);
	}
	finish(witnesses);
}

/* A thread calls exec while others fault. */
static void *toucher(void *arg)
{
	uint64_t state = (uintptr_t)arg;

	hurry(0, false); /* this thread */
	for (;;)
		touch_some(&state, 100);
	return NULL;
}

static void execs(void)
{
	char *const argv[] = { NOTHING, NULL };
	pid_t witnesses[2];
	double end;

	write_program();
	start(witnesses, "execs");
	for (end = now() + storm_seconds(6); now() < end;) {
		pid_t pid = xfork();

		if (!pid) {
			xthread(toucher, (void *)1);
			xthread(toucher, (void *)2);
			usleep(1000);
			execv(argv[0], argv);
			_exit(1);
		}
		JOIN(pid);
		s->execs++;
	}
	finish(witnesses);
	unlink(NOTHING);
}

/* Generations: each child forks the next before it dies. */
static void generations(void)
{
	pid_t witnesses[2], pid;
	uint64_t state = 99;
	double end;
	int depth;

	start(witnesses, "generations");
	for (end = now() + storm_seconds(5); now() < end;) {
		pid = xfork();
		if (!pid) {
			for (depth = 0; depth < 12; depth++) {
				touch_some(&state, 10);
				pid = fork();
				if (pid) {
					if (depth & 1)
						CHECK_OK(munmap(r.addr, r.size));
					_exit(pid < 0);
				}
				ADD(&s->forks, 1);
			}
			touch_some(&state, 50);
			_exit(0);
		}
		JOIN(pid);
	}
	finish(witnesses);
}

/* All of a crowd die at once. */
static void crowd_dies(void)
{
	int i, n = debug_kernel() ? 60 : 200;
	pid_t witnesses[2], pid[200];

	start(witnesses, "crowd");
	for (i = 0; i < n; i++) {
		pid[i] = xfork();
		if (!pid[i]) {
			uint64_t state = (uint64_t)i + 1;

			touch_some(&state, 100);
			for (;;)
				pause();
		}
	}
	nap_ms(200);
	for (i = 0; i < n; i++)
		kill(pid[i], SIGKILL);
	for (i = 0; i < n; i++)
		JOIN_KILLED(pid[i], SIGKILL);
	s->kills = (uint64_t)n;
	finish(witnesses);
}

/* vfork() and posix_spawn() share the mm until exec. */
static void spawns(void)
{
	pid_t witnesses[2];
	int i;

	write_program();
	start(witnesses, "spawns");
	for (i = 0; i < (debug_kernel() ? 50 : 150); i++) {
		pid_t pid = vfork();

		if (!pid) {
			execl(NOTHING, NOTHING, NULL);
			_exit(1);
		}
		JOIN(pid);
		s->execs++;
	}
	finish(witnesses);
	unlink(NOTHING);
}

/* Files come and go while others open them by name. */
static void names(void)
{
	pid_t pid[4];
	double end;
	int i, *stop = shared_alloc(PAGE);
	uint64_t *attached = shared_alloc(PAGE);

	for (i = 0; i < 4; i++) {
		pid[i] = xfork();
		if (!pid[i]) {
			struct mshare_info_text info;
			char path[256];

			region_path(path, sizeof(path), "comes-and-goes");
			while (!LOAD(stop)) {
				int fd = open(path, O_RDWR | O_CLOEXEC);
				char *p;

				if (fd < 0)
					continue;
				if (read(fd, &info, sizeof(info)) == sizeof(info) && info.size) {
					p = mmap((void *)info.start, info.size, PROT_READ | PROT_WRITE,
						 MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
					CHECK(p != MAP_FAILED, "mmap: %s", strerror(errno));
					p[PAGE]++;
					ADD(attached, 1);
					munmap(p, info.size);
				}
				close(fd);
			}
			_exit(0);
		}
	}
	for (end = now() + storm_seconds(4); now() < end;) {
		region_create(&r, "comes-and-goes", GiB(1));
		r.addr[0] = 1;
		nap_ms(1);
		region_unlink(&r);
		region_detach(&r);
	}
	STORE(stop, 1);
	for (i = 0; i < 4; i++)
		JOIN(pid[i]);
	diag("attached %lu times", *attached);
}

static const struct test_case cases[] = {
	{ .name = "kills", .run = kills },
	{ .name = "exec under faulting threads", .run = execs },
	{ .name = "generations of children", .run = generations },
	{ .name = "a crowd dies at once", .run = crowd_dies },
	{ .name = "vfork and exec", .run = spawns },
	{ .name = "names come and go", .run = names },
};

TEST_MAIN(cases)
