// SPDX-License-Identifier: GPL-2.0-only
/*
 * Users of MMU notifiers (KVM, device drivers that mirror page tables) would not
 * be told of changes in shared tables, so a process has either a notifier or a
 * region: each is refused where the other is. The kernel's own test driver,
 * lib/test_hmm, registers one for the process that opens it.
 */
#include "harness.h"

#include <sys/ioctl.h>

#define DEVICE "/dev/hmm_dmirror0"

/* As lib/test_hmm_uapi.h has it. */
struct mirror_command {
	uint64_t addr;
	uint64_t ptr;
	uint64_t npages;
	uint64_t cpages;
	uint64_t faults;
};

#define MIRROR_READ _IOWR('H', 0x00, struct mirror_command)
#define MIRROR_WRITE _IOWR('H', 0x01, struct mirror_command)

static struct region r;

static void need_device(void)
{
	if (!has_path(DEVICE))
		skip("no " DEVICE);
}

static long attach(struct region *where)
{
	void *p = mmap(where->addr, where->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
		       where->fd, 0);

	return p == MAP_FAILED ? -1 : 0;
}

static void region_first(void)
{
	need_device();
	region_create(&r, "first", GiB(1));
	r.addr[0] = 1;
	CHECK_ERR(open(DEVICE, O_RDWR), EBUSY);
	CHECK_EQ(r.addr[0], 1);
	CHECK_OK(munmap(r.addr, r.size));
	CHECK_OK(close((int)CHECK_OK(open(DEVICE, O_RDWR | O_CLOEXEC))));
}

static void notifier_first(void)
{
	struct mirror_command cmd = { 0 };
	static uint64_t value = 77, copy;
	int fd;

	need_device();
	region_create(&r, "second", GiB(1));
	CHECK_OK(munmap(r.addr, r.size));
	fd = (int)CHECK_OK(open(DEVICE, O_RDWR | O_CLOEXEC));
	CHECK_ERR(attach(&r), EBUSY);
	cmd.addr = (uintptr_t)&value & ~(PAGE - 1);
	cmd.ptr = (uintptr_t)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cmd.npages = 1;
	CHECK_OK(ioctl(fd, MIRROR_READ, &cmd));
	copy = *(uint64_t *)(cmd.ptr + ((uintptr_t)&value & (PAGE - 1)));
	CHECK_EQ(copy, 77);
	close(fd);
}

/* The kernel keeps the list of notifiers with the process even when it is empty:
 * who has had one is refused as well. */
static void after_the_notifier(void)
{
	need_device();
	region_create(&r, "after", GiB(1));
	CHECK_OK(munmap(r.addr, r.size));
	CHECK_OK(close((int)CHECK_OK(open(DEVICE, O_RDWR | O_CLOEXEC))));
	CHECK_ERR(attach(&r), EBUSY);
}

/* Both at once, in two threads of a fresh process: one of them is refused. */
static int go;

static void *opener(void *arg)
{
	long *opened = arg;

	while (!LOAD(&go))
		;
	*opened = open(DEVICE, O_RDWR | O_CLOEXEC) >= 0 ? 0 : errno;
	return NULL;
}

static void race(void)
{
	int i, *won = shared_alloc(PAGE), rounds = debug_kernel() ? 40 : 150;
	pid_t pid;

	need_device();
	region_create(&r, "race", GiB(1));
	CHECK_OK(munmap(r.addr, r.size));
	for (i = 0; i < rounds; i++) {
		pid = xfork();
		if (!pid) {
			long opened = 0, attached;
			pthread_t thread = xthread(opener, &opened);

			STORE(&go, 1);
			attached = attach(&r) ? errno : 0;
			xjoin(thread);
			CHECK((opened == 0) + (attached == 0) == 1, "opened: %ld, attached: %ld", opened,
			      attached);
			CHECK(opened + attached == EBUSY, "errno %ld", opened + attached);
			ADD(&won[attached == 0], 1);
			_exit(0);
		}
		JOIN(pid);
	}
	diag("the notifier came first %d times, the region %d times", won[0], won[1]);
}

/* fork() copies no notifier: a child of such a process may attach. */
static void child_of_one(void)
{
	pid_t pid;
	int fd;

	need_device();
	region_create(&r, "child", GiB(1));
	CHECK_OK(munmap(r.addr, r.size));
	fd = (int)CHECK_OK(open(DEVICE, O_RDWR | O_CLOEXEC));
	pid = xfork();
	if (!pid) {
		region_map(&r, PROT_READ | PROT_WRITE);
		r.addr[4] = 4;
		_exit(0);
	}
	JOIN(pid);
	close(fd);
}

static const struct test_case cases[] = {
	{ .name = "no notifier where a region is mapped", .run = region_first },
	{ .name = "no region where a notifier is registered", .run = notifier_first },
	{ .name = "no region where a notifier was registered", .run = after_the_notifier },
	{ .name = "both at once", .run = race },
	{ .name = "the child of a process with a notifier", .run = child_of_one },
};

TEST_MAIN(cases)
