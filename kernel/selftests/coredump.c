// SPDX-License-Identifier: GPL-2.0-only
/*
 * Core dumps of attachers: the dump has the region's pages when the filter asks
 * for shared file mappings, leaves them out when it does not, ends in reasonable
 * time though the region is mostly a hole, and harms nobody.
 */
#include "harness.h"

#include <elf.h>
#include <sys/resource.h>

static struct region r;

#define CORE "/tmp/selftest-core"

static void crash(int open_flags, const char *filter)
{
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	const char *name = strrchr(r.path, '/') + 1;

	region_detach(&r);
	region_attach(&r, name, open_flags, open_flags == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ);
	setrlimit(RLIMIT_CORE, &all);
	write_text("/proc/self/coredump_filter", filter);
	signal(SIGABRT, SIG_DFL);
	abort();
}

/* The program header that describes the region, and the file's descriptor. */
static int find_region(const char *path, Elf64_Phdr *found)
{
	Elf64_Ehdr header;
	int i, fd = open(path, O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0, "no core dump %s: %s", path, strerror(errno));
	CHECK_EQ(pread(fd, &header, sizeof(header), 0), sizeof(header));
	CHECK(!memcmp(header.e_ident, ELFMAG, SELFMAG), "%s is no ELF file", path);
	for (i = 0; i < header.e_phnum; i++) {
		CHECK_EQ(pread(fd, found, sizeof(*found),
			       (off_t)(header.e_phoff + (uint64_t)i * sizeof(*found))), sizeof(*found));
		if (found->p_type == PT_LOAD && found->p_vaddr == (uintptr_t)r.addr)
			return fd;
	}
	close(fd);
	return -1;
}

static void dump(int open_flags, const char *filter, bool with_data)
{
	char path[64], text[32];
	static char pattern[128];
	Elf64_Phdr phdr;
	double start;
	int fd, i;
	pid_t pid;

	CHECK(read_text("/proc/sys/kernel/core_pattern", pattern, sizeof(pattern)) > 0, "no pattern");
	write_text("/proc/sys/kernel/core_pattern", CORE ".%p");
	region_create(&r, "dumped", GiB(1));
	for (i = 0; i < 16; i++)
		snprintf(r.addr + (size_t)i * MiB(60), 32, "page %d of the dump", i);
	start = now();
	pid = xfork();
	if (!pid)
		crash(open_flags, filter);
	JOIN_KILLED(pid, SIGABRT);
	diag("dumped in %.1f s", now() - start);
	write_text("/proc/sys/kernel/core_pattern", pattern);
	snprintf(path, sizeof(path), CORE ".%d", pid);
	fd = find_region(path, &phdr);
	CHECK(fd >= 0, "the dump does not list the region");
	diag("region in the dump: %#lx of %#lx bytes", (long)phdr.p_filesz, (long)phdr.p_memsz);
	CHECK_EQ(phdr.p_memsz, r.size);
	CHECK(!with_data || phdr.p_filesz == r.size, "the dump has %#lx bytes of the region",
	      (long)phdr.p_filesz);
	for (i = 0; with_data && i < 16; i++) {
		char want[32];

		snprintf(want, sizeof(want), "page %d of the dump", i);
		CHECK_EQ(pread(fd, text, sizeof(text), (off_t)(phdr.p_offset + (size_t)i * MiB(60))),
			 sizeof(text));
		CHECK(!strcmp(text, want), "the dump says \"%s\", not \"%s\"", text, want);
	}
	close(fd);
	unlink(path);
	CHECK(!strcmp(r.addr, "page 0 of the dump"), "the region has changed");
}

static void full_writer(void)
{
	dump(O_RDWR, "0x7f", true);
}

static void full_reader(void)
{
	dump(O_RDONLY, "0x7f", true);
}

static void without_shared(void)
{
	dump(O_RDWR, "0x33", false);
}

static const struct test_case cases[] = {
	{ .name = "of a writer, with the region", .run = full_writer, .level = FULL },
	{ .name = "of a reader, with the region", .run = full_reader, .level = STRESS, .seconds = 120 },
	{ .name = "without shared mappings", .run = without_shared },
};

TEST_MAIN(cases)
