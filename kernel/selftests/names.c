// SPDX-License-Identifier: GPL-2.0-only
/*
 * Names: directories, modes and owners mean what they mean on other file systems.
 */
#include "harness.h"

#include <dirent.h>

#define NOBODY 65534

static int make(const char *name, mode_t mode)
{
	char path[256];

	region_path(path, sizeof(path), name);
	return (int)CHECK_OK(open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode));
}

static void become_nobody(void)
{
	CHECK_OK(setresgid(NOBODY, NOBODY, NOBODY));
	CHECK_OK(setresuid(NOBODY, NOBODY, NOBODY));
}

static void directories(void)
{
	char path[256], deep[256];
	struct region r;

	region_path(path, sizeof(path), "one");
	CHECK_OK(mkdir(path, 0755));
	region_path(deep, sizeof(deep), "one/two");
	CHECK_OK(mkdir(deep, 0700));
	CHECK_ERR(mkdir(deep, 0700), EEXIST);
	region_create(&r, "one/two/region", GiB(1));
	r.addr[0] = 3;
	CHECK_ERR(rmdir(deep), ENOTEMPTY);
	CHECK_ERR(rmdir(path), ENOTEMPTY);
	region_detach(&r);
	region_attach(&r, "one/two/region", O_RDWR, PROT_READ);
	CHECK_EQ(r.addr[0], 3);
	CHECK_ERR(unlink(deep), EISDIR);
	CHECK_ERR(rmdir(r.path), ENOTDIR);
	region_unlink(&r);
	CHECK_OK(rmdir(deep));
	CHECK_OK(rmdir(path));
}

static void nested_files(void)
{
	char path[256];

	make("plain", 0600);
	region_path(path, sizeof(path), "plain/below");
	CHECK_ERR(open(path, O_RDWR | O_CREAT | O_EXCL, 0600), ENOTDIR);
	CHECK_ERR(mkdir(path, 0700), ENOTDIR);
	region_path(path, sizeof(path), "missing/below");
	CHECK_ERR(open(path, O_RDWR | O_CREAT | O_EXCL, 0600), ENOENT);
}

static void listing(void)
{
	struct dirent *entry;
	int found = 0;
	DIR *d;

	make("a", 0600);
	make("b", 0600);
	d = opendir(mshare_root());
	CHECK(d, "opendir: %s", strerror(errno));
	while ((entry = readdir(d)))
		found |= !strcmp(entry->d_name, "a") ? 1 : !strcmp(entry->d_name, "b") ? 2 :
			 !strcmp(entry->d_name, "mshare_info") ? 4 : 0;
	CHECK_EQ(found, 7);
}

static void modes_and_owners(void)
{
	struct stat st;
	char path[256];
	pid_t pid;
	int fd = make("owned", 0640);

	region_path(path, sizeof(path), "owned");
	CHECK_OK(fstat(fd, &st));
	CHECK(S_ISREG(st.st_mode), "not a regular file: mode %o", st.st_mode);
	CHECK_EQ(st.st_mode & 07777, 0640);
	CHECK_EQ(st.st_uid, 0);
	CHECK_EQ(st.st_nlink, 1);
	CHECK_OK(fchmod(fd, 0604));
	CHECK_OK(chown(path, 11, 12));
	CHECK_OK(stat(path, &st));
	CHECK_EQ(st.st_mode & 07777, 0604);
	CHECK_EQ(st.st_uid, 11);
	CHECK_EQ(st.st_gid, 12);
	pid = xfork();
	if (!pid) {
		become_nobody();
		CHECK_ERR(open(path, O_RDWR), EACCES);
		CHECK_OK(open(path, O_RDONLY));
		CHECK_ERR(unlink(path), EACCES);
		CHECK_ERR(chmod(path, 0666), EPERM);
		_exit(0);
	}
	JOIN(pid);
	CHECK_OK(chmod(path, 0600));
	pid = xfork();
	if (!pid) {
		become_nobody();
		CHECK_ERR(open(path, O_RDONLY), EACCES);
		_exit(0);
	}
	JOIN(pid);
}

/* A user works in a directory of his own; the mount's root is root's. */
static void unprivileged_user(void)
{
	char path[256];
	pid_t pid;

	region_path(path, sizeof(path), "home");
	CHECK_OK(mkdir(path, 0700));
	CHECK_OK(chown(path, NOBODY, NOBODY));
	pid = xfork();
	if (!pid) {
		struct region r;
		struct stat st;

		become_nobody();
		region_path(path, sizeof(path), "nobody");
		CHECK_ERR(open(path, O_RDWR | O_CREAT | O_EXCL, 0600), EACCES);
		region_create(&r, "home/mine", GiB(1));
		CHECK_OK(fstat(r.fd, &st));
		CHECK_EQ(st.st_uid, NOBODY);
		CHECK_EQ(st.st_gid, NOBODY);
		r.addr[77] = 1;
		region_unlink(&r);
		_exit(0);
	}
	JOIN(pid);
}

/* A reader by mode gets a read-only mapping, whatever it asks for. */
static void mode_decides_rights(void)
{
	struct region r;
	pid_t pid;

	region_create(&r, "public", GiB(1));
	strcpy(r.addr, "for all to see");
	CHECK_OK(fchmod(r.fd, 0644));
	pid = xfork();
	if (!pid) {
		region_detach(&r);
		become_nobody();
		region_attach(&r, "public", O_RDONLY, PROT_READ);
		CHECK(!strcmp(r.addr, "for all to see"), "data is not there");
		CHECK_EQ(try_write(r.addr, 0), SIGSEGV);
		CHECK_ERR(mprotect(r.addr, r.size, PROT_READ | PROT_WRITE), EACCES);
		_exit(0);
	}
	JOIN(pid);
	CHECK(!strcmp(r.addr, "for all to see"), "data was changed");
}

static void created_by_many(void)
{
	char path[256];
	int i, made = 0, *count = shared_alloc(PAGE);
	pid_t pid[8];

	region_path(path, sizeof(path), "contended");
	for (i = 0; i < 8; i++) {
		pid[i] = xfork();
		if (!pid[i]) {
			if (open(path, O_RDWR | O_CREAT | O_EXCL, 0600) >= 0)
				ADD(count, 1);
			else
				CHECK_EQ(errno, EEXIST);
			_exit(0);
		}
	}
	for (i = 0; i < 8; i++)
		JOIN(pid[i]);
	made = *count;
	CHECK_EQ(made, 1);
}

static const struct test_case cases[] = {
	{ .name = "directories", .run = directories },
	{ .name = "a file is no directory", .run = nested_files },
	{ .name = "readdir lists the files", .run = listing },
	{ .name = "modes and owners", .run = modes_and_owners },
	{ .name = "an unprivileged user in a directory", .run = unprivileged_user },
	{ .name = "the file's mode decides the rights", .run = mode_decides_rights },
	{ .name = "O_EXCL lets one of many win", .run = created_by_many },
};

TEST_MAIN(cases)
