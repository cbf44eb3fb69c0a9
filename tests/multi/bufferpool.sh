#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# examples/bufferpool from outside: every command, its errors, its end by signals, files that are broken, files of
# PostgreSQL. Needs $BUFFERPOOL (the program) and $PANDO_BROKER_PROGRAM (pandod).
set -u -o pipefail

program=${BUFFERPOOL:?}
dir=$(mktemp -d /tmp/pando-bufferpool.XXXXXX)
broker_pid='' run_pid='' checks=0 failures=0
unset XDG_RUNTIME_DIR
export LC_ALL=C.UTF-8 PANDO_BROKER=$dir/broker.sock

finish() {
	[ -n "$run_pid" ] && kill -KILL "$run_pid" 2>/dev/null
	[ -n "$broker_pid" ] && kill "$broker_pid" && wait "$broker_pid"
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

failed() {
	failures=$((failures + 1))
	echo "FAILED: $*"
	sed 's/^/    /' "$dir/out" "$dir/err"
}

# expect CODE PATTERN ARGUMENT...: the exit code, and a pattern that standard output or error must match. Wrong usage
# and failures say one sentence that begins with the program's name.
expect() {
	local code=$1 pattern=$2 got
	shift 2
	checks=$((checks + 1))
	"$program" "$@" >"$dir/out" 2>"$dir/err" </dev/null
	got=$?
	[ "$got" -eq "$code" ] || { failed "exit $got, not $code: $*"; return; }
	grep -qE -- "$pattern" "$dir/out" "$dir/err" || { failed "no \"$pattern\": $*"; return; }
	[ "$code" -eq 0 ] || [ "$code" -eq 1 ] || grep -qE '^bufferpool: |--help|^usage' "$dir/err" || failed "no sentence: $*"
}

await() { # COMMAND...: until it succeeds, for as long as it takes
	local i
	for ((i = 0; i < 3000; i++)); do
		"$@" && return 0
		sleep 0.02
	done
	return 1
}

"$PANDO_BROKER_PROGRAM" --socket "$PANDO_BROKER" --log-level warn --log-file "$dir/log" &
broker_pid=$!
await test -S "$PANDO_BROKER" || { echo "FAILED: no broker came up"; exit 1; }

# --- usage ---
expect 2 '^usage' # nothing
expect 0 '^usage: bufferpool create' --help
for command in create run top check; do expect 0 "^usage: bufferpool $command" "$command" --help; done
expect 2 'no command "swim"' swim
expect 2 'one FILE is needed' run
expect 2 '--size is needed' create "$dir/data"
expect 2 'not "4x"' create "$dir/data" --size 4x
expect 2 'from 0 to 100' run "$dir/data" --write-percent 101
expect 2 'auto, memfd' run "$dir/data" --backend paper
expect 2 'lists the options' top --colour
expect 3 'No such file' check "$dir/data"
expect 3 'has no region "bufferpool"' top

# --- a life ---
expect 0 '2048 pages, 16 MiB' create "$dir/data" --size 16M --slots 40
expect 3 'File exists' create "$dir/data" --size 16M
expect 0 '2048 pages, all whole; 0 updates' check "$dir/data"
expect 0 'all whole; [0-9]+ updates, as counted' run "$dir/data" --seconds 3 --kill-per-second 30 --backends 6 \
	--write-percent 30 --interval 1
grep -q 'hit rate' "$dir/out" || failed "no lines while it runs"
expect 0 'as counted' check "$dir/data"
expect 0 'through the page cache' run "$dir/data" --seconds 0.3 --buffered --sync --frames 300
expect 3 'frames at least' run "$dir/data" --frames 10
expect 3 'room for 19 backends' run "$dir/data" --backends 20
expect 0 '20 backends, 0 killed' run "$dir/data" --seconds 0.2 --write-percent 0 --backends 20 --no-check --frames 600
expect 0 'as counted' check "$dir/data"

# --- one that runs: top, who else wants the file, the end by Ctrl-C ---
begin_run() {
	: >"$dir/run.out" # of an earlier run
	"$program" run "$dir/data" --seconds 0 --write-percent 30 >"$dir/run.out" 2>"$dir/run.err" &
	run_pid=$!
	await grep -q '^watch it' "$dir/run.out" || { cat "$dir/run.err"; failed "it does not run"; }
}
begin_run
expect 0 'backends [0-9]' top --once
expect 3 'in use' check "$dir/data"
expect 3 'in use' run "$dir/data"
# A terminal: the screen is taken, and given back.
python3 - "$program" >"$dir/out" 2>"$dir/err" <<'END' || failed "top on a terminal"
import os, pty, signal, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], "top", "--interval", "0.1"])
text = b""
while b"LOOKUPS/S" not in text or text.count(b"hit rate") < 2:
    text += os.read(fd, 65536)
os.kill(pid, signal.SIGINT)
try:
    while True:
        more = os.read(fd, 65536)
        if not more:
            break
        text += more
except OSError:
    pass
status = os.waitpid(pid, 0)[1]
assert status == 0, status
assert b"\x1b[?1049h" in text and text.rstrip().endswith(b"\x1b[?1049l"), text[-200:]
END
checks=$((checks + 1))
kill -INT "$run_pid"
wait "$run_pid" || failed "Ctrl-C: exit $?, $(cat "$dir/run.err")"
run_pid=''
grep -q 'as counted' "$dir/run.out" || failed "Ctrl-C: nothing was verified: $(cat "$dir/run.out")"
expect 0 'as counted' check "$dir/data"

# --- the parent is killed: the backends write back and leave; the next run counts again ---
free_again() { "$program" check "$dir/data" >"$dir/out" 2>"$dir/err" || ! grep -q 'in use' "$dir/err"; }
begin_run
await "$program" top --once >/dev/null 2>&1
kill -KILL "$run_pid"
wait "$run_pid" 2>/dev/null
run_pid=''
await free_again || failed "the backends go on without their parent"
expect 0 'not closed well' check "$dir/data"
expect 0 'as counted' run "$dir/data" --seconds 0.3
grep -q 'was not closed well: 0 torn pages' "$dir/out" || failed "it was not noticed"

# --- broken files ---
printf 'x' | dd of="$dir/data" bs=1 seek=$((8192 * (41 + 7) + 5000)) conv=notrunc status=none
expect 1 'page 7: torn' check "$dir/data"
expect 1 'page 7 of .* torn' run "$dir/data" --seconds 20 --hot 0 --frames 300
expect 1 'page 7: torn' check --repair "$dir/data"
head -c 30000 /dev/urandom >"$dir/raw"
expect 0 'of which nothing is known' check "$dir/raw"
expect 3 'read only' run "$dir/raw" --write-percent 5 --frames 300
expect 0 'raw' run "$dir/raw" --seconds 0.2
truncate -s 100 "$dir/raw"
expect 3 'less than one page' check "$dir/raw"

# --- PostgreSQL's files, with checksums ---
initdb=$(ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1)
if [ -n "$initdb" ] && [ "$(id -u)" -eq 0 ] && id postgres >/dev/null 2>&1; then
	chmod 755 "$dir"
	install -d -o postgres "$dir/pg"
	su postgres -c "$initdb -k --no-sync -D $dir/pg/data" >"$dir/out" 2>"$dir/err" || failed "initdb"
	files=0
	for file in "$dir"/pg/data/base/1/*; do
		case ${file##*/} in *[!0-9]*) continue ;; esac
		[ -s "$file" ] || continue
		files=$((files + 1))
		expect 0 'postgresql.*all whole' check "$file"
	done
	[ "$files" -gt 50 ] || failed "only $files files of PostgreSQL"
	file=$(find "$dir/pg/data/base/1" -name '[0-9]*' -size +400k | head -n 1)
	expect 0 'postgresql, .*all whole|all whole' run "$file" --seconds 0.5 --frames 200 --kill-per-second 20
	printf 'x' | dd of="$file" bs=1 seek=$((8192 * 3 + 8000)) conv=notrunc status=none
	expect 1 'page 3: torn: pd_checksum' check "$file"
	expect 1 'page 3 of .*torn: pd_checksum' run "$file" --seconds 20 --frames 200 --hot 0
else
	echo "without PostgreSQL's files: no initdb, or not root"
fi

# --- a broker of its own ---
unset PANDO_BROKER
if [ ! -S /run/pando/broker.sock ]; then
	truncate -s 1M "$dir/raw"
	expect 0 'PANDO_BROKER=@' run "$dir/raw" --seconds 0.1
fi
echo "$checks checks, $failures failed"
[ "$failures" -eq 0 ]
