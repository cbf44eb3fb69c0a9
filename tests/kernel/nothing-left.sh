#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The last test of its suite: whatever was killed before it, msharefs holds no file and no memory.
set -u

same() { # WHAT EXPECTED FOUND
	[ "$2" = "$3" ] || { echo "FAILED: $1: expected \"$2\", found \"$3\""; exit 1; }
}

same "files in /sys/fs/mshare" mshare_info "$(ls -A /sys/fs/mshare)"
# The last pages are freed some time after the last process has ended.
for _ in $(seq 50); do
	used=$(df --output=used /sys/fs/mshare | tail -n 1 | tr -d ' ')
	[ "$used" = 0 ] && break
	sleep 0.1
done
same "KiB in use in /sys/fs/mshare" 0 "$used"
