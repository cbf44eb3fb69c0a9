#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The command pando from outside: every verb, every exit code, its JSON, its one-sentence errors, with and without a
# broker. Needs $PANDO (the command), $PANDO_BROKER_PROGRAM (pandod) and $PANDO_COMPLETION (pando.bash).
set -u -o pipefail

pando=${PANDO:?} pandod=${PANDO_BROKER_PROGRAM:?}
dir=$(mktemp -d /tmp/pando-cli.XXXXXX)
limits=(env) broker_pid='' fake_pid='' pages_before='' checks=0 failures=0
unset PANDO_BROKER XDG_RUNTIME_DIR NO_COLOR
export LC_ALL=C.UTF-8

finish() {
	[ -n "$fake_pid" ] && kill "$fake_pid" 2>/dev/null
	stop_broker
	[ -n "$pages_before" ] && echo "$pages_before" >/proc/sys/vm/nr_hugepages
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

stop_broker() {
	[ -n "$broker_pid" ] || return 0
	kill "$broker_pid" 2>/dev/null
	wait "$broker_pid"
	broker_pid=''
}

start_broker() { # OPTION...
	stop_broker
	"${limits[@]}" "$pandod" --socket "$dir/broker.sock" --log-level warn --log-file "$dir/log" "$@" &
	broker_pid=$!
	for ((i = 0; i < 200; i++)); do
		"$pando" ls -q -B "$dir/broker.sock" >"$dir/out" 2>&1 && return 0
		sleep 0.05
	done
	echo "FAILED: no broker came up"
	cat "$dir/log" "$dir/out"
	exit 1
}

# start_client FILE ARGUMENT...: starts client.py with the library. Its process is left in $client; it has written its
# first line into FILE when this returns.
start_client() {
	local file=$1
	shift
	: >"$file" # what an earlier client wrote there is not this one's word
	python3 "$dir/client.py" "$PANDO_LIBRARY" "$@" >"$file" &
	client=$!
	for ((i = 0; i < 400; i++)); do
		[ -s "$file" ] && return 0
		kill -0 "$client" 2>/dev/null || break
		sleep 0.05
	done
	kill "$client" 2>/dev/null
	echo "FAILED: a client did not come up"
	exit 1
}

failed() {
	failures=$((failures + 1))
	echo "FAILED: $*"
	sed 's/^/    /' "$dir/out" "$dir/err"
}

# expect CODE PATTERN COMMAND...: the exit code, and a pattern (extended) that stdout or stderr must match. A
# failure must be exactly one sentence on stderr that begins with "pando: ".
expect() {
	local code=$1 pattern=$2 got
	shift 2
	checks=$((checks + 1))
	"$@" >"$dir/out" 2>"$dir/err" </dev/null
	got=$?
	[ "$got" -eq "$code" ] || { failed "exit $got, not $code: ${*#"$pando"}"; return; }
	[ -z "$pattern" ] || grep -qE -- "$pattern" "$dir/out" "$dir/err" || { failed "no \"$pattern\": ${*#"$pando"}"; return; }
	case $code in
	0) [ -s "$dir/err" ] && failed "said something on stderr: ${*#"$pando"}" ;;
	2) grep -qE '^pando: [^ ]' "$dir/err" || failed "no sentence: ${*#"$pando"}" ;;
	*) [ "$(grep -cE '^pando: [^ ].*[^.]$' "$dir/err")" -eq 1 ] && [ "$(wc -l <"$dir/err")" -eq 1 ] ||
		failed "not one sentence: ${*#"$pando"}" ;;
	esac
}

# The same, but the broker may need a moment for it: up to 20 s on a busy machine.
soon() {
	local pattern=$2
	for ((i = 0; i < 200; i++)); do
		"${@:3}" 2>/dev/null | grep -cE -- "$pattern" >/dev/null && break
		sleep 0.1
	done
	expect "$@"
}

# json FILTER EXPECTED COMMAND...: stdout is JSON, and a Python expression on it (d) has this value.
json() {
	local filter=$1 expected=$2
	shift 2
	checks=$((checks + 1))
	"$@" >"$dir/out" 2>"$dir/err" </dev/null
	python3 - "$dir/out" "$filter" "$expected" >"$dir/json" 2>&1 <<'PY' || failed "JSON: $(tail -n 1 "$dir/json"): ${*#"$pando"}"
import json, sys
d = json.load(open(sys.argv[1], encoding="utf-8"))
got = eval(sys.argv[2])
if str(got) != sys.argv[3]:
    sys.exit(f"{sys.argv[2]} is {got}, not {sys.argv[3]}")
PY
}

usage_errors() {
	local p=$pando
	checks=$((checks + 1))
	"$p" >"$dir/out" 2>"$dir/err"
	[ $? -eq 2 ] && grep -q '^usage:' "$dir/err" || failed "no arguments"
	expect 2 'no verb "bogus"' "$p" bogus
	expect 2 'no verb "bogus"' "$p" help bogus
	expect 2 'unrecognized option' "$p" ls --bogus
	expect 2 'too many' "$p" ls extra
	expect 2 'missing' "$p" stat
	expect 2 'missing' "$p" resize x
	expect 2 'missing' "$p" grant x
	expect 2 'missing' "$p" rm
	expect 2 'missing' "$p" create --size 1M
	expect 2 'give --size' "$p" create x
	expect 2 'not 0' "$p" create x --size 0
	expect 2 'is not a size' "$p" create x --size -5
	expect 2 'is not a size' "$p" create x --size 1Q
	expect 2 '64 bits' "$p" create x --size 99999999999999999999
	expect 2 'not a backend' "$p" create x -s 1M --backend floppy
	expect 2 'not a mode' "$p" create x -s 1M --mode 888
	expect 2 'not a mode' "$p" create x -s 1M --mode 7777
	expect 2 'no group' "$p" create x -s 1M --group no-such-group
	expect 2 'cannot shrink to nothing' "$p" resize x 0
	expect 2 'not a grant' "$p" grant x nobody
	expect 2 'not a grant' "$p" grant x user:nobody:x
	expect 2 'no user' "$p" grant x user:no-such-user:r
	expect 2 '107' "$p" ls --broker "/tmp/$(printf 'x%.0s' {1..120})"
	expect 2 'empty' "$p" ls --broker ''
}

help_texts() {
	local verb
	expect 0 '^usage: pando VERB' "$pando" --help
	expect 0 'doctor' "$pando" help
	expect 0 '^pando [0-9]+\.[0-9]+\.[0-9]+$' "$pando" version
	expect 0 '^pando [0-9]' "$pando" --version
	json 'sorted(d)' "['version']" "$pando" version --json
	for verb in $("$pando" help | sed -n 's/^  \([a-z]*\)  *[a-z].*/\1/p'); do
		[ "$verb" = help ] && continue
		expect 0 "usage: pando $verb" "$pando" help "$verb"
		expect 0 "usage: pando $verb" "$pando" "$verb" --help
	done
}

without_broker() {
	local verb
	for verb in ls clients 'stat x' 'create x -s 1M' 'resize x 1M' 'grant x u:0:r' 'rm x'; do
		# shellcheck disable=SC2086 # words on purpose
		expect 3 'no broker is running' "$pando" $verb -B "$dir/none.sock"
	done
	PANDO_BROKER=@pando-cli-nobody expect 3 '@pando-cli-nobody' "$pando" ls
	expect 3 '^pando_up 0$' "$pando" metrics -B "$dir/none.sock"
	expect 3 '^# EOF$' "$pando" metrics -B "$dir/none.sock"
	checks=$((checks + 1))
	"$pando" doctor -B "$dir/none.sock" >"$dir/out" 2>"$dir/err"
	[ $? -eq 1 ] && grep -qE '^missing +broker' "$dir/out" && grep -qE '^ +broker +pandod --socket' "$dir/out" ||
		failed "doctor without a broker"
}

# A broker of another release, and a socket that is not a broker's.
other_brokers() {
	python3 - "$dir/fake.sock" <<'PY' &
import socket, struct, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1])
s.listen(8)
while True:
    c, _ = s.accept()
    m = c.recv(4096)
    seq = struct.unpack_from("<Q", m, 16)[0]
    p = struct.pack("<iHH", 71, 7, 7) + b"this broker speaks version 7".ljust(256, b"\0")
    c.send(struct.pack("<IHHIIQ", 0x6f646e50, 7, 70, 24 + len(p), 0, seq) + p)
    c.close()
PY
	fake_pid=$!
	for ((i = 0; i < 100; i++)); do [ -S "$dir/fake.sock" ] && break; sleep 0.05; done
	expect 9 'version 7' "$pando" ls -B "$dir/fake.sock"
	expect 9 'version 7' "$pando" create x -s 1M -B "$dir/fake.sock"
	json '[c["state"] for c in d["checks"] if c["check"] == "version"]' "['missing']" \
		"$pando" doctor --json -B "$dir/fake.sock"
	kill "$fake_pid"
	wait "$fake_pid" 2>/dev/null
	fake_pid=''
	: >"$dir/file"
	expect 3 'no broker|not a' "$pando" ls -B "$dir/file"
}

regions() {
	local p=$pando
	export PANDO_BROKER=$dir/broker.sock
	expect 0 '' "$p" ls
	json 'd' "{'regions': []}" "$p" ls --json
	expect 0 '^orders +[a-z]+ +10 MiB +2 GiB' "$p" create orders --size 10M --max-size 2G --mode 0640 --backend memfd
	expect 5 '"orders" exists' "$p" create orders --size 1M
	expect 0 '^orders +memfd +10485760 +2147483648' "$p" ls --bytes
	expect 0 '^NAME +BACKEND' "$p" ls
	checks=$((checks + 1))
	"$p" ls --no-headings | grep -q NAME && failed "headings in spite of --no-headings"
	json 'd["regions"][0]["size"], d["regions"][0]["mode"], d["regions"][0]["transient"]' "(10485760, '0640', False)" \
		"$p" ls --json
	expect 0 '^Maximum size +2 GiB$' "$p" stat orders
	json '[r["page_size"] for r in d["regions"]]' '[4096]' "$p" stat orders --json
	expect 4 '"nothing"' "$p" stat nothing
	expect 4 '"nothing"' "$p" clients nothing
	expect 4 '"nothing"' "$p" resize nothing 1M
	expect 4 '"nothing"' "$p" grant nothing user:0:r
	expect 2 'not a region name' "$p" create a/b --size 1M
	expect 2 'not a region name' "$p" create .hidden --size 1M
	expect 2 'not a region name' "$p" stat "$(printf 'x%.0s' {1..64})"
	expect 2 'multiple of 1 GiB' "$p" create x --size 1M --address 0x12345000
	expect 2 'window|multiple' "$p" create x --size 1M --address 0x40000000
	expect 2 'maximum' "$p" resize orders 3G
	expect 2 '' "$p" create x --size 2G --max-size 1G
	expect 10 '"orders"' "$p" create x --size 1M --address "$(base_of orders)"
	expect 7 'window of [0-9]+' "$p" create x --size 100T --backend memfd
	expect 7 '[0-9]+ bytes.*[0-9]+ bytes' "$p" create x --size 1T --backend memfd
	expect 4 '"x"' "$p" stat x
	expect 0 '^orders +memfd +64 MiB' "$p" resize orders 64M
	expect 0 '^orders +memfd +1 MiB' "$p" resize orders 1M
	expect 0 '' "$p" grant orders user:root:rw g:0:r
	json 'd["regions"][0]["grants"]' 2 "$p" stat orders --json
	expect 0 '' "$p" grant orders user:0:- group:root:-
	json 'd["regions"][0]["grants"]' 0 "$p" stat orders --json
	expect 0 '' "$p" create second -q --size 1M
	expect 4 '"nothing"' "$p" rm nothing second
	expect 4 '"second"' "$p" stat second
	expect 0 '^pando_region_size_bytes\{region="orders",.*\} 1048576$' "$p" metrics
	metrics_format
	expect 0 '' "$p" rm orders
	json 'd' "{'regions': []}" "$p" ls --json
}

base_of() {
	"$pando" ls --json | python3 -c 'import json,sys; print([r["base"] for r in json.load(sys.stdin)["regions"] if r["name"] == sys.argv[1]][0])' "$1"
}

# Families once each, samples after their TYPE and of its name, units as suffixes, the end mark last.
metrics_format() {
	checks=$((checks + 1))
	"$pando" metrics >"$dir/out" 2>"$dir/err"
	python3 - "$dir/out" >"$dir/json" 2>&1 <<'PY' || failed "metrics: $(tail -n 1 "$dir/json")"
import re, sys
lines = open(sys.argv[1]).read().split("\n")
assert lines[-2:] == ["# EOF", ""], "the end"
family, kinds = None, {}
suffix = {"counter": "_total", "info": "_info", "gauge": ""}
for line in lines[:-2]:
    if line.startswith("# TYPE "):
        _, _, family, kind = line.split(" ")
        assert family not in kinds, f"{family} twice"
        kinds[family] = kind
    elif line.startswith("# UNIT "):
        assert line.split(" ")[2] == family and family.endswith("_" + line.split(" ")[3]), line
    elif line.startswith("# HELP "):
        assert line.split(" ")[2] == family and line.endswith("."), line
    else:
        m = re.fullmatch(r'([a-z_]+)(\{[a-z]+="[^"\\]*"(,[a-z]+="[^"\\]*")*\})? [0-9]+(\.[0-9]+)?', line)
        assert m, line
        assert m[1] == family + suffix[kinds[family]], line
assert len(kinds) > 15, len(kinds)
PY
}

# The clients of a region: a program that holds it open.
clients() {
	local p=$pando holder
	export PANDO_BROKER=$dir/broker.sock
	[ -n "${PANDO_LIBRARY:-}" ] && [ -z "${PANDO_SANITIZED:-}" ] || return 0
	"$p" create held -q --size 1M
	cat >"$dir/client.py" <<'PY'
import ctypes, sys, time
lib = ctypes.CDLL(sys.argv[1])
p, r = ctypes.c_void_p(), ctypes.c_void_p()
assert lib.pando_connect(ctypes.byref(p), None) == 0
assert lib.pando_region_open_sized(p, b"held", 0, None, ctypes.c_size_t(0), ctypes.byref(r)) == 0
assert lib.pando_read_lock(r) == 0
print("ready", flush=True)
time.sleep(60)
PY
	start_client "$dir/ready"
	holder=$client
	expect 0 "^ *$holder +python3" "$p" clients held
	expect 0 "^ *$holder +python3" "$p" clients
	json '[(c["pid"], c["regions"], c["uid"]) for c in d["clients"]]' "[($holder, 1, $(id -u))]" "$p" clients held --json
	json '[(c["grafts_held"], c["grafts_held_bytes"], c["grafts_waiting"], c["grafts_waiting_bytes"]) for c in d["clients"]]' \
		'[(0, 0, 0, 0)]' "$p" clients held --json
	expect 0 '^pando_grafts_total 0$' "$p" metrics
	json 'd["regions"][0]["clients"]' 1 "$p" stat held --json
	json '[(r["mode"], r["readers"], r["reading"], r["retired_bytes"]) for r in d["rcu"]]' \
		"[('membarrier', 1, 1, 0)]" "$p" stat held --json
	expect 0 'membarrier' "$p" stat held
	python3 - "$PANDO_LIBRARY" <<'PY'
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
p, r = ctypes.c_void_p(), ctypes.c_void_p()
assert lib.pando_connect(ctypes.byref(p), None) == 0
assert lib.pando_region_open_sized(p, b"held", 0, None, ctypes.c_size_t(0), ctypes.byref(r)) == 0
assert lib.pando_synchronize(r, 50) < 0
lib.pando_disconnect(p)
PY
	soon 0 "^ *$holder +$holder +[0-9]" "$p" stat held
	json '[(s["pid"], s["tid"], s["seconds"] >= 1) for s in d["stalled"]]' "[($holder, $holder, True)]" "$p" stat held --json
	kill -9 "$holder"
	wait "$holder" 2>/dev/null
	soon 0 '^Clients +0$' "$p" stat held
	json 'd["clients"]' '[]' "$p" clients held --json
	expect 0 '' "$p" rm held
}

# A heap with two clients in it: one has objects of every kind, and dies first; then the other, which holds two of them.
heap() {
	local p=$pando owner holder seen='[(d["heap"][0][k]) for k in ("objects", "shared", "held", "orphan_objects")]'
	export PANDO_BROKER=$dir/broker.sock
	[ -n "${PANDO_LIBRARY:-}" ] && [ -z "${PANDO_SANITIZED:-}" ] || return 0
	"$p" create shelf -q --size 4M --heap
	expect 1 '"shelf" has no heap' "$p" heap shelf
	expect 4 '"nothing"' "$p" heap nothing
	cat >"$dir/client.py" <<'PY'
import ctypes, os, sys, time
lib = ctypes.CDLL(sys.argv[1])
lib.pando_alloc.restype = ctypes.c_void_p
lib.pando_alloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
lib.pando_self.restype = ctypes.c_uint64
lib.pando_self.argtypes = [ctypes.c_void_p]
lib.pando_share.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
lib.pando_transfer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
p, r = ctypes.c_void_p(), ctypes.c_void_p()
assert lib.pando_connect(ctypes.byref(p), None) == 0
assert lib.pando_region_open_sized(p, b"shelf", 0, None, ctypes.c_size_t(0), ctypes.byref(r)) == 0
me = lib.pando_self(r)
if len(sys.argv) > 2:
    small = [lib.pando_alloc(r, 100) for i in range(10)]
    assert all(small) and lib.pando_alloc(r, 100000)
    assert all(lib.pando_share(r, o) == 0 for o in small[:3])
    assert all(lib.pando_transfer(r, o, int(sys.argv[2])) == 0 for o in small[3:5])
print(me, flush=True)
time.sleep(60)
PY
	start_client "$dir/holder"
	holder=$client
	start_client "$dir/owner" "$(cat "$dir/holder")"
	owner=$client
	json "$seen" '[11, 3, 2, 0]' "$p" heap shelf --json
	json '[(c["pid"], c["objects"], c["held"]) for c in d["clients"]]' "[($holder, 0, 2), ($owner, 6, 0)]" \
		"$p" heap shelf --json
	json '[(c["size"], c["objects"], c["shared"], c["held"]) for c in d["classes"]]' \
		"[('128', 10, 3, 2), ('large', 1, 0, 0)]" "$p" heap shelf --json
	json 'd["heap"][0]["metadata"] * 100 <= d["heap"][0]["size"] * 7' True "$p" heap shelf --json
	json 'd["heap"][0]["spans"], d["heap"][0]["spans_free"] + 1' '(15, 15)' "$p" heap shelf --json
	expect 0 '^Spans of 256 KiB +15$' "$p" heap shelf
	expect 0 "^ *[0-9]+ +$holder " "$p" heap shelf
	expect 0 '^ *large ' "$p" heap shelf
	kill -9 "$owner"
	wait "$owner" 2>/dev/null
	soon 0 '^Objects in orphans +5$' "$p" heap shelf
	json "$seen" '[5, 3, 2, 5]' "$p" heap shelf --json
	expect 0 '^  orphans +1$' "$p" heap shelf
	kill -9 "$holder"
	wait "$holder" 2>/dev/null
	soon 0 '^Objects in orphans +3$' "$p" heap shelf
	json "$seen" '[3, 3, 0, 3]' "$p" heap shelf --json
	json 'd["clients"]' '[]' "$p" heap shelf --json
	expect 0 '' "$p" rm shelf
}

# Names of objects, which stay when those who gave them are gone.
names() {
	local p=$pando holder
	export PANDO_BROKER=$dir/broker.sock
	[ -n "${PANDO_LIBRARY:-}" ] && [ -z "${PANDO_SANITIZED:-}" ] || return 0
	"$p" create book -q --size 4M --heap
	expect 4 '"nothing"' "$p" names nothing
	expect 2 '' "$p" names
	json 'd["names"]' '[]' "$p" names book --json
	cat >"$dir/client.py" <<'PY'
import ctypes, sys, time
lib = ctypes.CDLL(sys.argv[1])
lib.pando_alloc.restype = ctypes.c_void_p
lib.pando_alloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
lib.pando_publish.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
p, r = ctypes.c_void_p(), ctypes.c_void_p()
assert lib.pando_connect(ctypes.byref(p), None) == 0
assert lib.pando_region_open_sized(p, b"book", 0, None, ctypes.c_size_t(0), ctypes.byref(r)) == 0
for name in b"orders/1", b"orders/2", b"with a blank", b"orders/1":
    assert lib.pando_publish(r, name, lib.pando_alloc(r, 100)) == 0
print("ready", flush=True)
time.sleep(60)
PY
	start_client "$dir/ready"
	holder=$client
	json 'sorted((n["name"], n["size"], n["version"] > 0) for n in d["names"])' \
		"[('orders/1', 128, True), ('orders/2', 128, True), ('with a blank', 128, True)]" "$p" names book --json
	json 'sorted(n["name"] for n in d["names"])' "['orders/1', 'orders/2']" "$p" names book orders/ --json
	expect 0 '^with a blank +[0-9]+ +128 B +0x[0-9a-f]+$' "$p" names book
	json '[(x["names"], x["published"], x["withdrawn"], x["locked"], x["slow"]) for x in d["directory"]]' \
		'[(3, 4, 0, 0, 0)]' "$p" stat book --json
	json 'd["slow"]' '[]' "$p" stat book --json
	expect 0 'PUBLISHED' "$p" stat book
	kill -9 "$holder"
	wait "$holder" 2>/dev/null
	soon 0 '^Clients +0$' "$p" stat book
	json 'sorted(n["name"] for n in d["names"])' "['orders/1', 'orders/2', 'with a blank']" "$p" names book --json
	expect 0 '' "$p" rm book
}

# Other users, as root only: rights and quotas.
users() {
	local nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
	export PANDO_BROKER=$dir/broker.sock
	[ "$(id -u)" -eq 0 ] && chmod 755 "$dir" && "${nobody[@]}" test -x "$pando" || return 0
	"$pando" create secret -q --size 1M
	"$pando" create open -q --size 1M --mode 0644
	expect 6 '' "${nobody[@]}" "$pando" stat secret
	expect 6 '' "${nobody[@]}" "$pando" rm open
	expect 6 '' "${nobody[@]}" "$pando" resize open 2M
	expect 6 '' "${nobody[@]}" "$pando" grant open user:65534:rw
	json '[r["name"] for r in d["regions"]]' "['open']" "${nobody[@]}" "$pando" ls --json
	expect 0 '' "$pando" grant secret user:65534:rw
	expect 0 '^secret' "${nobody[@]}" "$pando" resize secret 2M
	expect 8 'may have' "${nobody[@]}" "$pando" create mine --size 17M --backend memfd
	expect 0 '^mine' "${nobody[@]}" "$pando" create mine --size 1M --backend memfd
	expect 8 'may have' "${nobody[@]}" "$pando" create more --size 1M --backend memfd
	expect 0 '' "$pando" rm secret open mine
	chmod 600 "$dir/broker.sock"
	expect 6 'may not connect' "${nobody[@]}" "$pando" ls
	json '[c["state"] for c in d["checks"] if c["check"] == "socket rights"]' "['missing']" \
		"${nobody[@]}" "$pando" doctor --json
	chmod 666 "$dir/broker.sock"
}

# No huge pages, then some.
huge_pages() {
	export PANDO_BROKER=$dir/broker.sock
	[ -w /proc/sys/vm/nr_hugepages ] || return 0
	# Tests that use the pool take turns.
	exec 9</sys/kernel/mm/hugepages/hugepages-2048kB && flock -w 60 9 || return 0
	if [ "$(cat /proc/sys/vm/nr_hugepages)" -ne 0 ] || [ "$(cat /proc/sys/vm/nr_overcommit_hugepages)" -ne 0 ]; then
		return 0 # somebody uses them
	fi
	expect 7 'huge pages are needed.*vm.nr_hugepages|pool' "$pando" create huge --size 1G --backend hugetlb
	pages_before=0
	echo 8 >/proc/sys/vm/nr_hugepages
	[ "$(cat /proc/sys/vm/nr_hugepages)" -ge 8 ] || return 0
	expect 0 '^huge +hugetlb +4 MiB' "$pando" create huge --size 3M --backend hugetlb
	json '[c["state"] for c in d["checks"] if c["check"] == "hugetlb pool"]' "['ok']" "$pando" doctor --json
	expect 7 '' "$pando" resize huge 1G
	expect 0 '' "$pando" rm huge
	echo 0 >/proc/sys/vm/nr_hugepages
	pages_before=''
	exec 9<&-
}

doctor() {
	export PANDO_BROKER=$dir/broker.sock
	expect 0 '^ok +broker' "$pando" doctor
	expect 0 '' "$pando" doctor -q
	json 'sorted({c["state"] for c in d["checks"]} - {"ok", "limited", "missing"})' '[]' "$pando" doctor --json
	json '[c["check"] for c in d["checks"] if c["needed"] and c["state"] == "missing"]' '[]' "$pando" doctor --json
	json 'len(d["checks"]) >= 18' True "$pando" doctor --json
}

# An interrupted create leaves all or nothing, and nothing of its memory.
interrupted() {
	local pid
	export PANDO_BROKER=$dir/broker.sock
	checks=$((checks + 1))
	"$pando" create big --size 1G --backend memfd >"$dir/out" 2>"$dir/err" &
	pid=$!
	sleep 0.2
	kill -TERM "$pid" 2>/dev/null
	wait "$pid"
	sleep 0.3
	if "$pando" stat big >"$dir/out" 2>&1; then
		json 'd["regions"][0]["size"]' 1073741824 "$pando" stat big --json
		expect 0 '' "$pando" rm big
	fi
	soon 0 '^pando_committed_bytes 0$' "$pando" metrics
}

# A limit on the size of files is an error, not the broker's death; and output that cannot be written is one.
small_files() {
	limits=(prlimit --fsize=1000000)
	start_broker
	limits=(env)
	export PANDO_BROKER=$dir/broker.sock
	expect 1 'ulimit -f' timeout 20 "$pando" create x --size 4M
	expect 0 '^pando_broker_restarts_total 0$' "$pando" metrics
	# shellcheck disable=SC2016 # expanded by the inner shell
	expect 1 'cannot write' bash -c '"$1" doctor --json >/dev/full' _ "$pando"
	stop_broker
}

# What bash would offer.
complete() { # EXPECTED WORD...
	local expected=$1 got
	shift
	checks=$((checks + 1))
	got=$(PANDO_BROKER=$dir/broker.sock bash -c '
		. "$1"; shift
		COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
		_pando; printf "%s\n" "${COMPREPLY[@]}"' _ "$PANDO_COMPLETION" "$pando" "$@" | sort | tr '\n' ' ')
	[ "$got" = "$expected" ] || failed "completion of \"$*\": \"$got\", not \"$expected\""
}

completion() {
	export PANDO_BROKER=$dir/broker.sock
	"$pando" create apple -q --size 1M
	"$pando" create apricot -q --size 1M
	complete 'clients create ' c
	complete 'apple apricot ' stat ap
	complete 'apricot ' rm apr
	complete 'hugetlb ' create x --backend h
	complete '--max-size --mode ' create x --m
	complete '--json ' ls --j
	expect 0 '' "$pando" rm apple apricot
}

usage_errors
help_texts
without_broker
other_brokers
start_broker --quota 65534:memory=16M,regions=1
regions
clients
heap
names
users
huge_pages
doctor
interrupted
completion
small_files
expect 3 'no broker is running' "$pando" ls
echo "$checks checks, $failures failures"
[ "$failures" -eq 0 ]
