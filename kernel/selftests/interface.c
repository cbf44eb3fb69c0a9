// SPDX-License-Identifier: GPL-2.0-only
/*
 * The interface as published, step by step: the alignment in mshare_info, a
 * creator whose first mmap() sets address and size, others that read() them and
 * map the same, data that everybody sees at the same address.
 */
#include "harness.h"

#include <sys/statfs.h>

static void alignment(void)
{
	char path[256], text[64], *end;
	unsigned long align;
	ssize_t n;

	region_path(path, sizeof(path), "mshare_info");
	n = read_text(path, text, sizeof(text));
	CHECK(n > 0, "reading %s: %s", path, strerror(errno));
	align = strtoul(text, &end, 10);
	CHECK(end > text && *end == '\n' && end[1] == '\0', "mshare_info is \"%s\"", text);
	CHECK(align && !(align & (align - 1)), "alignment %lu is no power of two", align);
	CHECK_EQ(align, GiB(1));
}

static void info_is_read_only(void)
{
	char path[256];

	region_path(path, sizeof(path), "mshare_info");
	CHECK(!try_write_text(path, "4096\n"), "mshare_info can be written");
	CHECK_ERR(unlink(path), EPERM);
}

static void create_and_read_back(void)
{
	struct mshare_info_text info = { 1, 1 };
	struct region r;

	region_create(&r, "values", GiB(2));
	CHECK_EQ(pread(r.fd, &info, sizeof(info), 0), sizeof(info));
	CHECK_EQ(info.start, (uintptr_t)r.addr);
	CHECK_EQ(info.size, r.size);
	region_unlink(&r);
}

/* A region is like a new file: all zero, from its first to its last byte. */
static void starts_zeroed(void)
{
	struct region r;

	region_create(&r, "zero", GiB(1));
	CHECK_EQ(r.addr[0], 0);
	CHECK_EQ(r.addr[r.size - 1], 0);
	CHECK_EQ(r.addr[MiB(511) + 5], 0);
	CHECK(try_read(r.addr + r.size) == SIGSEGV, "the byte behind the region can be read");
	region_unlink(&r);
}

static void two_processes(void)
{
	struct region r;
	pid_t pid;

	region_create(&r, "two", GiB(1));
	strcpy(r.addr + 123456, "written by the creator");
	pid = xfork();
	if (!pid) {
		struct region own;

		region_detach(&r);
		region_attach(&own, "two", O_RDWR, PROT_READ | PROT_WRITE);
		CHECK(own.addr == r.addr, "attached at another address");
		CHECK(!strcmp(own.addr + 123456, "written by the creator"), "data is not there");
		strcpy(own.addr + MiB(700), "written by the other");
		_exit(0);
	}
	JOIN(pid);
	CHECK(!strcmp(r.addr + MiB(700), "written by the other"), "the answer is not there");
	region_unlink(&r);
}

/* Pointers in the region are valid everywhere: a list made by turns. */
static void pointers_are_valid_everywhere(void)
{
	struct node {
		struct node *next;
		int value;
	} *n;
	struct region r;
	int i, sum = 0;

	region_create(&r, "list", GiB(1));
	for (i = 1; i <= 10; i++) {
		pid_t pid = xfork();

		if (!pid) {
			struct node **head = (struct node **)r.addr;

			n = (struct node *)(r.addr + (size_t)i * MiB(90));
			n->value = i;
			n->next = *head;
			*head = n;
			_exit(0);
		}
		JOIN(pid);
	}
	for (n = *(struct node **)r.addr; n; n = n->next)
		sum += n->value;
	CHECK_EQ(sum, 55);
	region_unlink(&r);
}

static void several_regions(void)
{
	struct region r[4];
	char name[16];
	int i;

	for (i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "many%d", i);
		region_create(&r[i], name, GiB(1) * (size_t)(i + 1));
		memset(r[i].addr + r[i].size - PAGE, 'a' + i, PAGE);
	}
	for (i = 0; i < 4; i++) {
		CHECK_EQ(r[i].addr[r[i].size - 1], 'a' + i);
		region_unlink(&r[i]);
	}
}

/* Unmapping and mapping again in one process, and the descriptor being closed. */
static void map_again(void)
{
	struct region r;
	int i;

	region_create(&r, "again", GiB(1));
	for (i = 0; i < 50; i++) {
		CHECK_EQ(r.addr[MiB(3)], i);
		r.addr[MiB(3)]++;
		CHECK_OK(munmap(r.addr, r.size));
		CHECK(try_read(r.addr + MiB(3)) == SIGSEGV, "readable after munmap");
		region_map(&r, PROT_READ | PROT_WRITE);
	}
	close(r.fd);
	CHECK_EQ(r.addr[MiB(3)], 50);
	r.addr[MiB(4)] = 7;
	CHECK_EQ(r.addr[MiB(4)], 7);
	region_unlink(&r);
}

/* One file mapped over 5 GiB, with a page in each GiB and at each border. */
static void crosses_gigabytes(void)
{
	struct region r;
	size_t i;
	pid_t pid;

	region_create(&r, "large", GiB(5));
	for (i = 0; i < 5; i++) {
		r.addr[GiB(i)] = (char)(i + 1);
		r.addr[GiB(i + 1) - 1] = (char)(i + 101);
	}
	pid = xfork();
	if (!pid) {
		region_detach(&r);
		region_attach(&r, "large", O_RDWR, PROT_READ);
		for (i = 0; i < 5; i++) {
			CHECK_EQ(r.addr[GiB(i)], i + 1);
			CHECK_EQ(r.addr[GiB(i + 1) - 1], i + 101);
		}
		_exit(0);
	}
	JOIN(pid);
	region_unlink(&r);
}

/* A file that never has a name, so that a creator's death leaves nothing. */
static void temporary_file(void)
{
	struct region r;
	char path[64];
	pid_t pid;

	r.fd = (int)CHECK_OK(open(mshare_root(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	strcpy(r.path, "(temporary)");
	r.size = GiB(1);
	r.addr = fresh_address(r.size);
	region_map(&r, PROT_READ | PROT_WRITE);
	r.addr[3] = 4;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", r.fd);
	pid = xfork();
	if (!pid) {
		CHECK_OK(munmap(r.addr, r.size));
		r.fd = (int)CHECK_OK(open(path, O_RDONLY | O_CLOEXEC));
		region_map(&r, PROT_READ);
		CHECK_EQ(r.addr[3], 4);
		_exit(0);
	}
	JOIN(pid);
}

static void magic_number(void)
{
	struct statfs mount, file;
	struct region r;

	region_create(&r, "magic", GiB(1));
	CHECK_OK(statfs(mshare_root(), &mount));
	CHECK_OK(fstatfs(r.fd, &file));
	CHECK_EQ(mount.f_type, file.f_type);
	CHECK(mount.f_type != 0x01021994 && mount.f_type != 0x62656572, "another one's magic number");
	CHECK(mount.f_blocks > 0, "statfs tells no limit");
}

static void maps_names_the_file(void)
{
	char text[4096];
	struct region r;

	region_create(&r, "named", GiB(1));
	CHECK(smaps_text(0, r.addr, text, sizeof(text)), "the mapping is not in smaps");
	CHECK(strstr(text, r.path), "smaps does not name the file:\n%s", text);
	CHECK(strstr(text, " rw-s "), "smaps does not say rw-s:\n%s", text);
	region_unlink(&r);
}

static const struct test_case cases[] = {
	{ .name = "mshare_info gives the alignment", .run = alignment },
	{ .name = "mshare_info cannot be changed", .run = info_is_read_only },
	{ .name = "read() gives what mmap() set", .run = create_and_read_back },
	{ .name = "a new region is zero", .run = starts_zeroed },
	{ .name = "two processes see each other's data", .run = two_processes },
	{ .name = "pointers are valid everywhere", .run = pointers_are_valid_everywhere },
	{ .name = "several regions at once", .run = several_regions },
	{ .name = "unmapping and mapping again", .run = map_again },
	{ .name = "a region over 2 GiB", .run = crosses_gigabytes },
	{ .name = "O_TMPFILE", .run = temporary_file },
	{ .name = "statfs", .run = magic_number },
	{ .name = "maps and smaps name the file", .run = maps_names_the_file },
};

TEST_MAIN(cases)
