/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * process_vm_mmap(): the system call, and whether it may be used.
 *
 * The kernel has it or not for as long as this process runs, so that is asked once. A stock kernel
 * answers ENOSYS to number 500; a system call filter that answers EPERM to everything unknown counts
 * the same.
 *
 * Whether this process may attach to another one (uid, capabilities, Yama, other security modules) is
 * asked of pidfd_getfd(), which makes the same check before it looks for the descriptor: one that
 * cannot exist gives EBADF to who may and EPERM to who may not, and nothing happens.
 */
#include "graft/graft.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/file.h"
#include "common/atomic.h"

#if defined(__x86_64__)
#define SYSCALL_VM_MMAP 500
#else
#define SYSCALL_VM_MMAP (-1)
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

int pando__vm_mmap(pid_t pid, const void *from, size_t length, uint64_t to, unsigned long flags)
{
	return syscall(SYSCALL_VM_MMAP, (long)pid, from, length, to, flags) == -1 ? -errno : 0;
}

bool pando__vm_mmap_there(void)
{
	static int known; /* 0: not asked yet, 1: yes, 2: no */
	int is = pando__load_relaxed(&known), rc;

	if (is == 0) {
		rc = pando__vm_mmap(0, NULL, 0, 0, 0);
		is = rc == -ENOSYS || rc == -EPERM ? 2 : 1;
		pando__store_relaxed(&known, is);
	}
	return is == 1;
}

static bool may_trace_all(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	return syscall(SYS_capget, &header, data) == 0 &&
	       (data[CAP_TO_INDEX(CAP_SYS_PTRACE)].effective & CAP_TO_MASK(CAP_SYS_PTRACE));
}

bool pando__vm_mmap_permitted(int pidfd)
{
	if (pidfd >= 0)
		return syscall(SYS_pidfd_getfd, pidfd, INT_MAX, 0) == -1 && errno == EBADF;
	return may_trace_all() || pando__read_u64("/proc/sys/kernel/yama/ptrace_scope", 0) == 0;
}

pid_t pando__pidfd_pid(int pidfd)
{
	char path[48], text[512];
	const char *line;
	long pid;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	if (pando__read_text(path, text, sizeof(text)) < 0)
		return 0;
	line = strstr(text, "\nPid:");
	pid = line ? strtol(line + 5, NULL, 10) : 0;
	return pid > 0 ? (pid_t)pid : 0; /* -1: it has ended; 0: it cannot be seen from here */
}
