// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mounts: the size= limit, several mounts that know nothing of each other, mount
 * namespaces, and unmounting with files left.
 */
#include "harness.h"

#include <sys/mount.h>
#include <sys/statfs.h>

static char where[64];

static int try_mount(const char *options)
{
	snprintf(where, sizeof(where), "/tmp/mshare-XXXXXX");
	CHECK(mkdtemp(where), "mkdtemp: %s", strerror(errno));
	if (!mount("msharefs", where, "msharefs", 0, options))
		return 0;
	rmdir(where);
	return -1;
}

static void own_mount(const char *options)
{
	CHECK(try_mount(options) == 0, "mount -o %s: %s", options, strerror(errno));
	setenv("MSHARE_DIR", where, 1);
}

static void end_mount(void)
{
	CHECK(umount(where) == 0, "umount %s: %s", where, strerror(errno));
	CHECK_OK(rmdir(where));
}

static long create(const char *name, size_t size)
{
	char path[256];
	void *p;
	int fd, err;

	region_path(path, sizeof(path), name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	p = mmap(fresh_address(size), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
		 fd, 0);
	err = errno;
	close(fd);
	errno = err;
	return p == MAP_FAILED ? -1 : 0;
}

/* The limit counts what the regions could hold, not what they hold: nobody is
 * surprised by a SIGBUS later. Unlinked regions count until they are gone. */
static void size_limit(void)
{
	char path[256];
	struct region r;

	own_mount("size=4G");
	CHECK_ERR(create("toolarge", GiB(5)), ENOSPC);
	region_create(&r, "three", GiB(3));
	CHECK_ERR(create("two", GiB(2)), ENOSPC);
	CHECK_EQ(create("two", GiB(1)), 0);
	CHECK_ERR(create("four", GiB(1)), ENOSPC);
	region_unlink(&r);
	CHECK_ERR(create("four", GiB(1)), ENOSPC);
	region_detach(&r);
	CHECK_EQ(create("four", GiB(3)), 0);
	region_path(path, sizeof(path), "four");
	CHECK_OK(unlink(path));
	region_path(path, sizeof(path), "two");
	CHECK_OK(unlink(path));
}

/* The mappings of size_limit() are left to exit; the mount must go after them. */
static void size_limit_and_unmount(void)
{
	char *dir = shared_alloc(PAGE);
	pid_t pid = xfork();

	if (!pid) {
		size_limit();
		strcpy(dir, where);
		_exit(0);
	}
	JOIN(pid);
	strcpy(where, dir);
	end_mount();
}

/* MAP_NORESERVE asks for address space that does not count; what is touched does. */
static void noreserve(void)
{
	char path[256], *at = fresh_address(GiB(64));
	struct stat st;
	int fd, sig = 0;
	size_t i;

	own_mount("size=64M");
	region_path(path, sizeof(path), "sparse");
	fd = (int)CHECK_OK(open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
	CHECK_ERR(mmap(at, GiB(64), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0),
		  ENOSPC);
	CHECK(mmap(at, GiB(64), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, fd, 0) == at, "mmap: %s",
	      strerror(errno));
	CHECK_OK(fallocate(fd, 0, (off_t)GiB(40), (off_t)MiB(32)));
	CHECK_ERR(fallocate(fd, 0, 0, (off_t)MiB(64)), ENOSPC);
	CHECK_OK(fstat(fd, &st));
	CHECK_EQ(st.st_blocks * 512, MiB(32));
	for (i = 0; i < MiB(64) && !sig; i += PAGE)
		sig = try_write(at + i, 1);
	CHECK_EQ(sig, SIGBUS);
	CHECK_EQ(i, MiB(32) + PAGE);
	CHECK_EQ(try_write(at + GiB(40), 1), 0);
	CHECK_OK(munmap(at, GiB(64)));
	close(fd);
	end_mount();
}

static void option_forms(void)
{
	struct statfs sf;

	own_mount("size=1073741824");
	CHECK_OK(statfs(where, &sf));
	CHECK_EQ((uint64_t)sf.f_blocks * (uint64_t)sf.f_bsize, GiB(1));
	end_mount();
	own_mount("size=2048M,mode=0711,uid=5,gid=6");
	{
		struct stat st;

		CHECK_OK(stat(where, &st));
		CHECK_EQ(st.st_mode & 07777, 0711);
		CHECK_EQ(st.st_uid, 5);
		CHECK_EQ(st.st_gid, 6);
	}
	end_mount();
	CHECK_ERR(try_mount("size=lots"), EINVAL);
	CHECK_ERR(try_mount("colour=green"), EINVAL);
}

static void remount(void)
{
	struct region r;

	own_mount("size=4G");
	region_create(&r, "remount", GiB(2));
	CHECK_OK(mount("msharefs", where, "msharefs", MS_REMOUNT, "size=8G"));
	CHECK_EQ(create("more", GiB(5)), 0);
	CHECK(mount("msharefs", where, "msharefs", MS_REMOUNT, "size=1G") == -1,
	      "the limit went below what is used");
	CHECK_OK(umount2(where, MNT_DETACH));
	rmdir(where);
}

static void two_mounts(void)
{
	char first[64];
	struct region a, b;

	own_mount("size=1G");
	strcpy(first, where);
	region_create(&a, "same", GiB(1));
	a.addr[0] = 'a';
	own_mount("size=1G");
	region_create(&b, "same", GiB(1));
	CHECK_EQ(b.addr[0], 0);
	b.addr[0] = 'b';
	CHECK_EQ(a.addr[0], 'a');
	region_detach(&a);
	region_detach(&b);
	end_mount();
	strcpy(where, first);
	end_mount();
}

/* Names hold no process, but hold memory; unmounting drops them. */
static void unmount_with_files(void)
{
	struct region r;
	long shmem;

	own_mount("size=8G");
	shmem = meminfo_kb("Shmem");
	region_create(&r, "left", GiB(1));
	memset(r.addr, 1, MiB(64));
	CHECK_ERR(umount(where), EBUSY);
	region_detach(&r);
	CHECK(meminfo_kb("Shmem") >= shmem + (long)KiB(60), "the name does not hold the memory");
	end_mount();
	WAIT_FOR(meminfo_kb("Shmem") < shmem + 4096, 5);
}

/* A detached mount lives as long as somebody maps a region of it. */
static void lazy_unmount(void)
{
	struct region r;

	own_mount("size=8G");
	region_create(&r, "lazy", GiB(1));
	r.addr[MiB(1)] = 1;
	CHECK_OK(umount2(where, MNT_DETACH));
	CHECK_EQ(r.addr[MiB(1)], 1);
	r.addr[MiB(900)] = 2;
	CHECK_EQ(r.addr[MiB(900)], 2);
	region_detach(&r);
	rmdir(where);
}

static void mount_namespace(void)
{
	struct region r;
	pid_t pid;

	region_create(&r, "ns", GiB(1));
	r.addr[0] = 4;
	pid = xfork();
	if (!pid) {
		struct region own;

		region_detach(&r);
		CHECK_OK(unshare(CLONE_NEWNS));
		region_attach(&own, "ns", O_RDWR, PROT_READ | PROT_WRITE);
		CHECK_EQ(own.addr[0], 4);
		own.addr[1] = 5;
		_exit(0);
	}
	JOIN(pid);
	CHECK_EQ(r.addr[1], 5);
}

/* Whoever may mount in a user namespace could otherwise fill memory from there. */
static void user_namespace(void)
{
	pid_t pid = xfork();

	if (!pid) {
		CHECK_OK(setresgid(65534, 65534, 65534));
		CHECK_OK(setresuid(65534, 65534, 65534));
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
			_exit(77);
		CHECK_ERR(try_mount("size=1G"), EPERM);
		_exit(0);
	}
	switch (wait_status(pid)) {
	case 0: return;
	case 77: skip("no user namespaces");
	default: FAIL("the child failed");
	}
}

static const struct test_case cases[] = {
	{ .name = "size= limits what can be established", .run = size_limit_and_unmount },
	{ .name = "MAP_NORESERVE and size=", .run = noreserve },
	{ .name = "mount options", .run = option_forms },
	{ .name = "remounting with another size", .run = remount },
	{ .name = "two mounts are independent", .run = two_mounts },
	{ .name = "unmounting with files left frees their memory", .run = unmount_with_files },
	{ .name = "lazy unmount under a mapping", .run = lazy_unmount },
	{ .name = "a region seen from another mount namespace", .run = mount_namespace },
	{ .name = "no mounting in a user namespace", .run = user_namespace },
};

TEST_MAIN(cases)
