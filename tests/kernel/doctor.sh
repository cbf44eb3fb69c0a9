#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The command line on a kernel with msharefs: what doctor says, what `auto` means, who may use it, and
# what doctor says when the mount is gone. Runs in the virtual machine, as root: it takes the mount away.
# shellcheck source=tests/shim/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../shim/lib.sh"

backend_of() { "$pando" ls --no-headings | awk -v name="$1" '$1 == name { print $2 }'; }
conform=$build/tests/shim/conform
nobody=(setpriv --reuid=nobody --regid=nogroup --clear-groups --)
chown nobody "$work"

say "doctor, with msharefs"
"$pando" doctor >"$work/doctor.log"
check "doctor does not know msharefs" grep -q 'share page tables at any page size' "$work/doctor.log"

say "auto is mshare, by name and by default"
start_broker
"$pando" create first --size 8M >/dev/null || fail "create"
same "the backend of a region that asks for none" mshare "$(backend_of first)"
"$pando" create second --size 8M --backend memfd >/dev/null || fail "create --backend memfd"
same "the backend of one that asks for memfd" memfd "$(backend_of second)"
"$pando" doctor >"$work/doctor.log"
check "the broker's default is not mshare" grep -Eq 'broker.*mshare' "$work/doctor.log"
"$pando" resize first 32M >/dev/null || fail "resize"
same "KiB in use" 32768 "$(df --output=used -k /sys/fs/mshare | tail -n 1 | tr -d ' ')"
same "names in the file system" mshare_info "$(ls -A /sys/fs/mshare)"
"$pando" rm first >/dev/null && "$pando" rm second >/dev/null || fail "destroy"
stop_broker

say "a user who may not make files there gets the next backend, until he may"
unset PANDO_BROKER
"${nobody[@]}" "$pando" run -v -- "$conform" 2052 >/dev/null 2>"$work/run.log"
check "an embedded broker without rights" grep -q 'is region .*(memfd)' "$work/run.log"
"${nobody[@]}" "$pando" doctor >"$work/doctor.log"
check "doctor does not say what mends it" grep -q 'chmod 1777 /sys/fs/mshare' "$work/doctor.log"
chmod 1777 /sys/fs/mshare
"${nobody[@]}" "$pando" run -v -- "$conform" 2052 >/dev/null 2>"$work/run.log"
check "an embedded broker with rights" grep -q 'is region .*(mshare)' "$work/run.log"
chmod 755 /sys/fs/mshare

say "without the mount"
umount /sys/fs/mshare || fail "umount: something is left in use"
"$pando" doctor >"$work/doctor.log"
check "doctor does not miss it" grep -q 'not mounted at /sys/fs/mshare' "$work/doctor.log"
check "doctor does not say how to mount it" grep -q 'mount -t msharefs' "$work/doctor.log"
start_broker
"$pando" create third --size 8M >/dev/null || fail "create without the mount"
check "there is a backend all the same" [ "$(backend_of third)" = memfd ]
"$pando" create fourth --size 8M --backend mshare >/dev/null 2>"$work/create.log" && fail "mshare without the mount"
check "no sentence" grep -q 'mshare' "$work/create.log"
mount -t msharefs msharefs /sys/fs/mshare || fail "mount"
finish
