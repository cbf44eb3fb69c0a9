# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# What the shim's tests share: a temporary folder, a broker of their own, checks, and an end that leaves nothing.
#
# A test is started by meson with the build folder in PANDO_BUILD_DIR. Processes that a test starts are
# stopped by their pids; huge pages that it reserved are given back. Exit status 77 is a skip.
set -u -o pipefail

build=${PANDO_BUILD_DIR:?the build folder}
work=$(mktemp -d "${TMPDIR:-/tmp}/pando-shim.XXXXXX") || exit 1
chmod 755 "$work"
to_stop=() pages_before='' broker='' checks=0

say() { echo "-- $*"; }

fail() {
	local f
	for f in "$work"/*.log; do
		[ -s "$f" ] && { echo "---- ${f##*/}"; tail -n 25 "$f"; } >&2
	done
	echo "FAILED: $*" >&2
	exit 1
}

skip() {
	echo "skipped: $*"
	exit 77
}

ok() { checks=$((checks + 1)); }

# A command that must succeed.
check() { # WHAT COMMAND...
	local what=$1
	shift
	"$@" || fail "$what"
	ok
}

same() { # WHAT EXPECTED FOUND
	[ "$2" = "$3" ] || fail "$1: expected \"$2\", found \"$3\""
	ok
}

# Tries for up to TENTHS tenths of a second.
eventually() { # WHAT TENTHS COMMAND...
	local what=$1 n=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		n=$((n - 1))
		[ "$n" -gt 0 ] || fail "$what"
		sleep 0.1
	done
	ok
}

alive() { # PID: and no zombie
	local state
	state=$(awk '/^State:/ { print $2 }' "/proc/$1/status" 2>/dev/null) || return 1
	[ -n "$state" ] && [ "$state" != Z ]
}

gone() { ! alive "$1"; }

stop_later() { to_stop+=("$1"); }

at_end() {
	local pid n
	trap '' INT TERM
	for pid in ${to_stop[@]+"${to_stop[@]}"} $broker; do
		kill -TERM "$pid" 2>/dev/null || continue
		for n in $(seq 60); do
			alive "$pid" || break
			[ "$n" -eq 50 ] && kill -KILL "$pid" 2>/dev/null
			sleep 0.1
		done
	done
	[ -n "$pages_before" ] && echo "$pages_before" >/proc/sys/vm/nr_hugepages
	rm -rf "$work"
}
trap at_end EXIT
trap 'exit 130' INT TERM

# The programs, where every user can reach them, as they lie in the build folder.
mkdir -p "$work/pando/libshm/preload" "$work/pando/broker/cli"
cp "$build"/libshm/libpando.so.0 "$work/pando/libshm/"
cp "$build"/libshm/preload/libpando-preload.so "$work/pando/libshm/preload/"
cp "$build"/broker/pandod "$work/pando/broker/"
cp "$build"/broker/cli/pando "$work/pando/broker/cli/"
pando=$work/pando/broker/cli/pando
export LD_LIBRARY_PATH=$work/pando/libshm
export PANDO_PRELOAD=$work/pando/libshm/preload/libpando-preload.so
export PANDO_BROKER_PROGRAM=$work/pando/broker/pandod
unset PANDO_BROKER LD_PRELOAD

# With AddressSanitizer, its runtime has to come before the shim.
# shellcheck disable=SC2034
asan=$(ldd "$build/tests/shim/conform" 2>/dev/null | awk '/libasan/ { print $3 }')

start_broker() {
	"$work/pando/broker/pandod" --socket "$work/broker.sock" --log-file "$work/broker.log" "$@" &
	broker=$!
	export PANDO_BROKER=$work/broker.sock
	eventually "the broker did not start" 100 "$pando" ls
}

regions() { "$pando" ls --no-headings | awk '{ print $1 }'; }
clients() { "$pando" clients --no-headings | awk '{ print $1 }'; }
count_regions() { regions | wc -l; }
count_clients() { clients | wc -l; }
no_regions() { [ "$(count_regions)" -eq 0 ]; }
is_client() { clients | grep -qx "$1"; }

# The proof: one of the broker's regions is mapped in the process at its address.
has_region() { # PID
	local address
	for address in $("$pando" ls --no-headings | grep -oE '0x[0-9a-f]+'); do
		grep -q "^${address#0x}-" "/proc/$1/maps" && return 0
	done
	return 1
}

kill_broker() { # the broker process below its supervisor, by SIGKILL
	local old
	old=$(pgrep -P "$broker")
	kill -KILL "$old"
	eventually "no new broker came" 30 sh -c "pgrep -P $broker | grep -vqx $old"
	eventually "the new broker does not answer" 30 "$pando" ls
}

reserve() { # PAGES of 2 MiB that are to be free
	local free
	[ "$(id -u)" -eq 0 ] || skip "reserving huge pages needs root"
	pages_before=$(cat /proc/sys/vm/nr_hugepages)
	free=$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)
	echo $((pages_before + $1 - free)) >/proc/sys/vm/nr_hugepages
	free=$(awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo)
	[ "$free" -ge "$1" ] || skip "only $free of $1 huge pages can be reserved"
}

unreserve() {
	[ -n "$pages_before" ] && echo "$pages_before" >/proc/sys/vm/nr_hugepages
	pages_before=''
}

# Embedded brokers that were started by this test.
embedded() { pgrep -c -f "^$work/pando/broker/pandod --embedded"; }
no_embedded() { [ "$(embedded)" -eq 0 ]; }

free_pages() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }
pages_are_back() { [ "$(free_pages)" -eq "$1" ]; }

stop_broker() {
	kill -TERM "$broker"
	eventually "the broker does not end" 120 gone "$broker"
	broker=''
}

finish() {
	echo "$checks checks passed"
	exit 0
}
