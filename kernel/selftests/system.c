// SPDX-License-Identifier: GPL-2.0-only
/*
 * The harness's second half: what the kernel says about memory, regions of
 * msharefs and their memfd counterparts, swap devices and control groups.
 */
#include "harness.h"

#include <dirent.h>
#include <sys/swap.h>

/* ---- text files of the kernel -------------------------------------------- */

ssize_t read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n, used = 0;

	buf[0] = '\0';
	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + used, size - 1 - (size_t)used)) > 0)
		used += n;
	close(fd);
	buf[used] = '\0';
	return n < 0 ? -1 : used;
}

bool try_write_text(const char *path, const char *text)
{
	int err, fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	err = errno;
	close(fd);
	errno = err;
	return ok;
}

void write_text(const char *path, const char *text)
{
	CHECK(try_write_text(path, text), "writing \"%s\" to %s: %s", text, path, strerror(errno));
}

bool has_path(const char *path)
{
	return access(path, F_OK) == 0;
}

/* The number after "key" at the beginning of a line of a file. */
static long keyed(const char *path, const char *key, long missing)
{
	static __thread char buf[32768];
	size_t len = strlen(key);
	char *line;

	if (read_text(path, buf, sizeof(buf)) < 0)
		return missing;
	for (line = buf; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len) && (line[len] == ':' || line[len] == ' '))
			return strtol(line + len + 1, NULL, 10);
	}
	return missing;
}

long meminfo_kb(const char *key)
{
	return keyed("/proc/meminfo", key, 0);
}

long vmstat(const char *key)
{
	return keyed("/proc/vmstat", key, 0);
}

long status_kb(pid_t pid, const char *key)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid ? pid : getpid());
	return keyed(path, key, -1);
}

/* Read from stat, because getrusage() is of the process with its dead threads too. */
long minor_faults(void)
{
	char buf[1024], *p;
	long value = -1;

	if (read_text("/proc/thread-self/stat", buf, sizeof(buf)) < 0)
		return -1;
	p = strrchr(buf, ')');
	if (!p || sscanf(p, ") %*c %*d %*d %*d %*d %*d %*u %ld", &value) != 1)
		return -1;
	return value;
}

/* The block of /proc/pid/smaps that describes the mapping with addr in it. */
bool smaps_text(pid_t pid, const void *addr, char *text, size_t size)
{
	char path[64], line[512];
	unsigned long start, end;
	bool inside = false;
	size_t used = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid ? pid : getpid());
	f = fopen(path, "re");
	CHECK(f, "%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, '-') < strchr(line, ' '))
			inside = start <= (unsigned long)addr && (unsigned long)addr < end;
		if (inside && used + strlen(line) < size) {
			memcpy(text + used, line, strlen(line));
			used += strlen(line);
		}
	}
	fclose(f);
	text[used] = '\0';
	return used > 0;
}

long smaps_kb(pid_t pid, const void *addr, const char *key)
{
	char text[4096], *p;
	size_t len = strlen(key);

	if (!smaps_text(pid, addr, text, sizeof(text)))
		return -1;
	for (p = strchr(text, '\n'); p; p = strchr(p, '\n')) {
		p++;
		if (!strncmp(p, key, len) && p[len] == ':')
			return strtol(p + len + 1, NULL, 10);
	}
	return -1;
}

uint64_t pagemap(pid_t pid, const void *addr)
{
	char path[64];
	uint64_t entry = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid ? pid : getpid());
	fd = (int)CHECK_OK(open(path, O_RDONLY | O_CLOEXEC));
	CHECK_EQ(pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)addr / PAGE * sizeof(entry))),
		 sizeof(entry));
	close(fd);
	return entry;
}

/* ---- msharefs ------------------------------------------------------------ */

const char *mshare_root(void)
{
	const char *dir = getenv("MSHARE_DIR");

	return dir ? dir : "/sys/fs/mshare";
}

size_t mshare_align(void)
{
	char path[256], text[64];

	snprintf(path, sizeof(path), "%s/mshare_info", mshare_root());
	if (read_text(path, text, sizeof(text)) <= 0)
		return 0;
	return strtoul(text, NULL, 10);
}

/* Far from where the kernel places mappings by itself. */
char *fresh_address(size_t size)
{
	static uintptr_t next = 0x200000000000;
	size_t align = mshare_align();
	uintptr_t at = next;

	next += (size + align - 1) / align * align + align;
	return (char *)at;
}

void region_path(char *path, size_t size, const char *name)
{
	CHECK(snprintf(path, size, "%s/%s", mshare_root(), name) < (int)size, "name too long");
}

void region_map(struct region *r, int prot)
{
	void *p = mmap(r->addr, r->size, prot, MAP_SHARED | MAP_FIXED_NOREPLACE, r->fd, 0);

	CHECK(p != MAP_FAILED, "mmap %s at %p, %zu bytes: %s", r->path, (void *)r->addr, r->size,
	      strerror(errno));
	CHECK(p == r->addr, "mmap %s at %p, not at %p", r->path, p, (void *)r->addr);
}

void region_create(struct region *r, const char *name, size_t size)
{
	region_path(r->path, sizeof(r->path), name);
	r->fd = open(r->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	CHECK(r->fd >= 0, "creating %s: %s", r->path, strerror(errno));
	r->size = size;
	r->addr = fresh_address(size);
	region_map(r, PROT_READ | PROT_WRITE);
}

void region_attach(struct region *r, const char *name, int open_flags, int prot)
{
	struct mshare_info_text info;

	region_path(r->path, sizeof(r->path), name);
	r->fd = open(r->path, open_flags | O_CLOEXEC);
	CHECK(r->fd >= 0, "opening %s: %s", r->path, strerror(errno));
	CHECK_EQ(read(r->fd, &info, sizeof(info)), sizeof(info));
	r->addr = (char *)info.start;
	r->size = info.size;
	region_map(r, prot);
}

void region_detach(struct region *r)
{
	CHECK_OK(munmap(r->addr, r->size));
	CHECK_OK(close(r->fd));
}

void region_unlink(const struct region *r)
{
	CHECK(unlink(r->path) == 0, "unlink %s: %s", r->path, strerror(errno));
}

void memfd_create_region(struct region *r, size_t size)
{
	snprintf(r->path, sizeof(r->path), "(memfd)");
	r->fd = (int)CHECK_OK(memfd_create("selftest", MFD_CLOEXEC));
	r->size = size;
	r->addr = fresh_address(size);
	CHECK_OK(ftruncate(r->fd, (off_t)size));
	region_map(r, PROT_READ | PROT_WRITE);
}

/* ---- swap ----------------------------------------------------------------- */

/* mkswap(8), for a device whose pages are 4 KiB. */
static void write_swap_header(const char *path, size_t size)
{
	static char page[4096];
	uint32_t *info = (uint32_t *)(page + 1024);
	int fd = (int)CHECK_OK(open(path, O_RDWR | O_CLOEXEC));

	memset(page, 0, sizeof(page));
	info[0] = 1;
	info[1] = (uint32_t)(size / PAGE - 1);
	memcpy(page + sizeof(page) - 10, "SWAPSPACE2", 10);
	CHECK_EQ(pwrite(fd, page, sizeof(page), 0), sizeof(page));
	CHECK_OK(fsync(fd));
	close(fd);
}

static bool zram_free(int id)
{
	char path[64], text[64];

	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", id);
	return read_text(path, text, sizeof(text)) > 0 && strtoul(text, NULL, 10) == 0;
}

int swap_add(size_t size)
{
	char path[64], text[64];
	int id = 0;

	if (!has_path("/sys/class/zram-control"))
		skip("the kernel has no zram");
	while (!zram_free(id)) {
		if (++id < 16)
			continue;
		CHECK(read_text("/sys/class/zram-control/hot_add", text, sizeof(text)) > 0,
		      "no zram device: %s", strerror(errno));
		id = atoi(text);
		break;
	}
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", id);
	snprintf(text, sizeof(text), "%zu", size);
	write_text(path, text);
	snprintf(path, sizeof(path), "/dev/zram%d", id);
	write_swap_header(path, size);
	CHECK_OK(swapon(path, SWAP_FLAG_PREFER | 100));
	return id;
}

bool swap_try_remove(int id)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/zram%d", id);
	return swapoff(path) == 0;
}

void swap_remove(int id)
{
	char path[64];

	CHECK(swap_try_remove(id), "swapoff: %s", strerror(errno));
	snprintf(path, sizeof(path), "/sys/block/zram%d/reset", id);
	write_text(path, "1");
}

long page_out(void *p, size_t size)
{
	long before = vmstat("pswpout");

	CHECK_OK(madvise(p, size, MADV_PAGEOUT));
	return vmstat("pswpout") - before;
}

/* ---- control groups -------------------------------------------------------- */

#define CGROUP "/sys/fs/cgroup"

static void cgroup_path(char *path, size_t size, const char *name, const char *file)
{
	snprintf(path, size, CGROUP "/selftest-%s%s%s", name, file ? "/" : "", file ? file : "");
}

void cgroup_make(const char *name)
{
	char path[256];

	if (!has_path(CGROUP "/cgroup.subtree_control"))
		skip("cgroup v2 is not mounted on " CGROUP);
	if (!try_write_text(CGROUP "/cgroup.subtree_control", "+memory"))
		skip("no memory controller: %s", strerror(errno));
	cgroup_path(path, sizeof(path), name, NULL);
	rmdir(path);
	CHECK_OK(mkdir(path, 0755));
}

void cgroup_set(const char *name, const char *file, const char *value)
{
	char path[256];

	cgroup_path(path, sizeof(path), name, file);
	write_text(path, value);
}

long cgroup_get(const char *name, const char *file)
{
	char path[256], text[64];

	cgroup_path(path, sizeof(path), name, file);
	CHECK(read_text(path, text, sizeof(text)) > 0, "%s: %s", path, strerror(errno));
	return strtol(text, NULL, 10);
}

long cgroup_event(const char *name, const char *file, const char *key)
{
	char path[256];

	cgroup_path(path, sizeof(path), name, file);
	return keyed(path, key, -1);
}

void cgroup_enter(const char *name)
{
	cgroup_set(name, "cgroup.procs", "0");
}

void cgroup_leave(void)
{
	write_text(CGROUP "/cgroup.procs", "0");
}

void cgroup_remove(const char *name)
{
	double end = now() + 10;
	char path[256];

	cgroup_path(path, sizeof(path), name, NULL);
	while (rmdir(path)) {
		CHECK(errno == EBUSY && now() < end, "rmdir %s: %s", path, strerror(errno));
		nap_ms(20);
	}
}

/* ---- as it was before ------------------------------------------------------- */

static const char *const knobs[] = {
	"/sys/kernel/mm/transparent_hugepage/shmem_enabled",
	"/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
	"/sys/kernel/mm/ksm/run",
	"/sys/kernel/mm/ksm/pages_to_scan",
	"/sys/kernel/mm/ksm/sleep_millisecs",
	"/sys/kernel/debug/fault_around_bytes",
	"/proc/sys/kernel/core_pattern",
	"/proc/sys/kernel/numa_balancing",
	"/proc/sys/kernel/yama/ptrace_scope",
	"/proc/sys/vm/max_map_count",
	"/proc/sys/vm/overcommit_memory",
	"/proc/sys/vm/overcommit_ratio",
};

static char values[ARRAY_SIZE(knobs)][256];

/* A choice reads as "one [two] three", and is written as "two". */
void system_remember(void)
{
	char text[256], *open, *close;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (read_text(knobs[i], text, sizeof(text)) <= 0)
			continue;
		open = strchr(text, '[');
		close = open ? strchr(open, ']') : NULL;
		if (close)
			*close = '\0';
		strcpy(values[i], close ? open + 1 : text);
	}
}

void system_restore(void)
{
	char path[300], text[256];
	struct dirent *entry;
	size_t i;
	DIR *d;
	int id;

	for (i = 0; i < ARRAY_SIZE(knobs); i++)
		if (values[i][0])
			try_write_text(knobs[i], values[i]);
	d = opendir(CGROUP);
	while (d && (entry = readdir(d))) {
		if (strncmp(entry->d_name, "selftest-", 9))
			continue;
		snprintf(path, sizeof(path), CGROUP "/%s", entry->d_name);
		rmdir(path);
	}
	if (d)
		closedir(d);
	for (id = 0; id < 16; id++) {
		snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", id);
		if (read_text(path, text, sizeof(text)) <= 0 || strtoul(text, NULL, 10) == 0)
			continue;
		swap_try_remove(id);
		snprintf(path, sizeof(path), "/sys/block/zram%d/reset", id);
		try_write_text(path, "1");
	}
}

/* ---- failing allocations -------------------------------------------------- */

#define FAIL_NTH "/proc/thread-self/fail-nth"

void need_fail_nth(void)
{
	if (!has_path(FAIL_NTH))
		skip("no fault injection in this kernel");
	try_write_text("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	try_write_text("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	try_write_text("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	try_write_text("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	try_write_text("/sys/kernel/debug/failslab/verbose", "0");
	try_write_text("/sys/kernel/debug/fail_page_alloc/verbose", "0");
}

int fail_nth_open(void)
{
	return (int)CHECK_OK(open(FAIL_NTH, O_RDWR | O_CLOEXEC));
}

void fail_nth_arm(int fd, int n)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%d", n);

	CHECK_EQ(pwrite(fd, text, (size_t)length, 0), length);
}

bool fail_nth_disarm(int fd)
{
	char text[16] = "";

	CHECK(pread(fd, text, sizeof(text) - 1, 0) > 0, "fail-nth: %s", strerror(errno));
	fail_nth_arm(fd, 0);
	return atoi(text) == 0;
}
