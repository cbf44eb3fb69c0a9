#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# test_heap_sanitized.sh asan|valgrind PROGRAM: the checker finds what is wrong, and nothing else.
checker=$1 program=$2
out=$(mktemp)
trap 'rm -f "$out"' EXIT
status=0

run() { # ACTION EXPECTED-TEXT (empty: nothing is found)
	case $checker in
	asan) ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99 "$program" "$1" >"$out" 2>&1 ;;
	valgrind) valgrind --quiet --error-exitcode=99 "$program" "$1" >"$out" 2>&1 ;;
	esac
	rc=$?
	if [ -z "$2" ] && [ $rc -ne 0 ]; then
		echo "$1: exit status $rc, where nothing is wrong"
		cat "$out"
		status=1
	elif [ -n "$2" ] && { [ $rc -ne 99 ] || ! grep -q "$2" "$out"; }; then
		echo "$1: exit status $rc, and \"$2\" is not said"
		cat "$out"
		status=1
	fi
}

[ "$checker" != valgrind ] || command -v valgrind >/dev/null || { echo "skipped: no valgrind"; exit 77; }
run right ''
run given-back ''
run forked ''
case $checker in
asan)
	run read-freed 'use-after-poison'
	run write-beyond 'use-after-poison'
	;;
valgrind)
	run read-freed 'Invalid read of size 1'
	run write-beyond 'Invalid write of size 1'
	run read-new 'Conditional jump or move depends on uninitialised value'
	;;
esac
exit $status
