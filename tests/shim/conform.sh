#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The same program with and without the shim must see the same: see conform.c.
#
# usage: conform.sh BACKEND (memfd, hugetlb or mshare)
# shellcheck source=tests/shim/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

backend=$1 detail=()
# On 4 KiB pages every page can be unmapped by itself.
[ "$backend" = memfd ] && detail=(fine)
[ "$backend" = mshare ] && detail=(whole)
[ "$backend" = hugetlb ] && reserve 40
[ "$(id -u)" -ne 0 ] || chown nobody "$work" # a scenario becomes another user
conform=$build/tests/shim/conform
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=0:abort_on_error=0

compare() { # SIZE_KIB
	local served
	LD_PRELOAD=$asan "$conform" "${detail[@]}" "$1" >"$work/plain" || fail "conform fails without the shim"
	LD_PRELOAD=$asan timeout 120 "$pando" run -v --backend "$backend" -- "$conform" ${detail[@]+"${detail[@]}"} "$1" \
		>"$work/shim" 2>"$work/messages.log" || fail "conform fails with the shim ($?)"
	diff -u "$work/plain" "$work/shim" || fail "$1 KiB on $backend: the program sees a difference"
	served=$(grep -c 'is region .*'"$backend" "$work/messages.log")
	[ "$served" -ge 40 ] || fail "only $served mappings were served"
	# Rights other than read and write are what msharefs does not have.
	[ "$backend" = mshare ] && excuse='stays plain: Operation not supported'
	! grep 'stays plain' "$work/messages.log" | grep -v "${excuse:-no excuse}" || fail "a mapping was not served"
	say "$1 KiB: $(wc -l <"$work/plain") observations alike, $served regions"
	ok
}

start_broker
compare 1024	# the threshold; half a huge page
compare 5000	# ragged
compare 6144	# whole huge pages
eventually "regions are left" 30 no_regions
same "clients that are left" 0 "$(count_clients)"
stop_broker

# The same with an embedded broker, which must be gone with the last process.
unset PANDO_BROKER
compare 2052
eventually "the embedded broker stays" 50 no_embedded

# No broker at all: everything is plain, and the reason is given once per mapping.
LD_PRELOAD=${asan:+$asan:}$PANDO_PRELOAD PANDO_BROKER=$work/none PANDO_RUN_VERBOSE=1 "$conform" "${detail[@]}" 2052 \
	>"$work/shim" 2>"$work/messages.log" || fail "conform fails without a broker"
LD_PRELOAD=$asan "$conform" "${detail[@]}" 2052 >"$work/plain"
diff -u "$work/plain" "$work/shim" || fail "without a broker the program sees a difference"
check "no reason is given" grep -q 'stays plain: no broker is running at' "$work/messages.log"

# From here on, programs that are not instrumented are run with the shim.
[ -z "$asan" ] || export LD_PRELOAD=$asan

# No huge pages: the same.
if [ "$backend" = hugetlb ]; then
	unreserve
	pages=$(free_pages)
	[ "$pages" -gt 0 ] || {
		"$pando" run -v --backend hugetlb -- "$conform" 2052 >"$work/shim" 2>"$work/messages.log"
		check "no reason is given" grep -q 'stays plain: ' "$work/messages.log"
	}
fi

# Smaller than the threshold, and the exit status.
"$pando" run -v --threshold 64M -- "$conform" 2052 >/dev/null 2>"$work/messages.log"
same "messages" "" "$(grep 'is region' "$work/messages.log")"
"$pando" run -- sh -c 'exit 7'
same "exit status" 7 $?
"$pando" run -- "$work/nonesuch" 2>/dev/null
same "exit status" 127 $?
"$pando" run -- "$work" 2>/dev/null
same "exit status" 126 $?
"$pando" run --threshold 12parsecs true 2>/dev/null
same "exit status" 125 $?
"$pando" run --socket "$work/none" true 2>/dev/null
same "exit status" 125 $?
PANDO_PRELOAD=$work/none.so "$pando" run true 2>/dev/null
same "exit status" 125 $?
finish
