#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# PostgreSQL 15 with its shared memory in a region: work, crash restart, the broker's death, shutdown, huge pages.
# shellcheck source=tests/shim/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pg=/usr/lib/postgresql/15/bin
[ -x $pg/postgres ] || skip "PostgreSQL 15 is not installed"
[ "$(id -u)" -eq 0 ] || skip "needs root, to become user postgres"
as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --)
chown postgres "$work"
mkdir "$work/data" && chown postgres "$work/data"
cd "$work" || exit 1

sql() { $pg/psql -X -q -A -t -h "$work" -U postgres -c "$1" postgres; }
ready() { $pg/pg_isready -q -h "$work" -U postgres -t 1; }
works() { [ "$(sql 'SELECT count(*) FROM pgbench_accounts')" = 200000 ]; }

start_postgres() { # OPTION... [-- POSTGRES_OPTION...]
	local mine=()
	while [ $# -gt 0 ] && [ "$1" != -- ]; do mine+=("$1"); shift; done
	[ $# -gt 0 ] && shift
	"${as_postgres[@]}" "$pando" run -v ${mine[@]+"${mine[@]}"} -- $pg/postgres -D "$work/data" "$@" \
		>>"$work/postgres.log" 2>&1 &
	postmaster=$!
	stop_later "$postmaster"
	eventually "PostgreSQL does not start" 300 ready
}

stop_postgres() {
	kill -INT "$postmaster" # fast shutdown
	eventually "PostgreSQL does not shut down" 300 gone "$postmaster"
	wait "$postmaster"
	same "PostgreSQL's exit status" 0 $?
	to_stop=()
}

# Kills a backend with SIGKILL while others work; the postmaster must start anew and serve again.
crash() {
	local victim before after
	before=$(regions)
	$pg/pgbench -n -c 2 -T 20 -h "$work" -U postgres postgres >/dev/null 2>&1 &
	local load=$!
	$pg/psql -X -q -h "$work" -U postgres -c 'SELECT pg_sleep(60)' postgres >/dev/null 2>&1 &
	local sleeper=$!
	eventually "the sleeping backend is not seen" 50 \
		sh -c "$pg/psql -XAt -h $work -U postgres -c \"SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'\" postgres | grep -q 1"
	victim=$(sql "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
	kill -KILL "$victim"
	wait "$sleeper" "$load"
	eventually "PostgreSQL does not recover" 300 ready
	eventually "PostgreSQL does not answer after a crash" 100 works
	after=$(regions)
	same "regions after a crash" 1 "$(count_regions)"
	[ "$before" != "$after" ] || fail "the crashed server's region is still in use: $before"
	eventually "a dead backend is still a client" 10 sh -c "! $pando clients -n | grep -qw $victim"
	check "the postmaster has no region after a crash" has_region "$postmaster"
}

say "initdb, with an embedded broker"
"${as_postgres[@]}" "$pando" run -v -- $pg/initdb -D "$work/data" -A trust --no-sync >"$work/initdb.log" 2>&1 ||
	fail "initdb fails"
check "initdb had no region" grep -q 'is region' "$work/initdb.log"
cat >>"$work/data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$work'
shared_buffers = 64MB
huge_pages = off
fsync = off
restart_after_crash = on
END

say "work"
start_broker
start_postgres --backend "${PANDO_TEST_BACKEND:-memfd}" --name "pg-main"
same "the region's backend" "${PANDO_TEST_BACKEND:-memfd}" "$("$pando" ls --no-headings | awk '{ print $2 }')"
$pg/pgbench -i -q -s 2 -h "$work" -U postgres postgres >"$work/pgbench.log" 2>&1 || fail "pgbench -i"
same "regions" "pg-main-$postmaster-1" "$(regions)"
check "the postmaster has no region" has_region "$postmaster"
check "the postmaster is no client" is_client "$postmaster"
$pg/psql -X -q -h "$work" -U postgres -c 'SELECT pg_sleep(60)' postgres >/dev/null 2>&1 &
holder=$!
eventually "the backend is not seen" 50 sh -c "$pg/psql -XAt -h $work -U postgres -c \"SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'\" postgres | grep -q 1"
backend=$(sql "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
check "a backend has no region" has_region "$backend"
check "a backend is no client" is_client "$backend"
sql "SELECT pg_terminate_backend($backend)" >/dev/null
wait "$holder"
eventually "an ended backend is still a client" 10 sh -c "! $pando clients -n | grep -qw $backend"
$pg/pgbench -n -c 8 -j 2 -T 3 -h "$work" -U postgres postgres >"$work/pgbench.log" 2>&1 || fail "pgbench"

say "crash restart"
crash

say "the broker dies under load"
$pg/pgbench -n -C -c 4 -T 4 -h "$work" -U postgres postgres >"$work/pgbench.log" 2>&1 &
load=$!
sleep 1
kill_broker
sleep 1
kill_broker
wait "$load"
same "pgbench while the broker dies" 0 $?
same "regions after the broker's death" 1 "$(count_regions)"
check "the postmaster is no client of the new broker" is_client "$postmaster"
crash
say "fast shutdown"
stop_postgres
eventually "regions are left" 20 no_regions

say "the broker is away for good: PostgreSQL goes on, and starts anew with plain memory"
start_postgres
child=$(pgrep -P "$broker")
kill -STOP "$child" # or it would start a new supervisor
kill -KILL "$broker"
kill -KILL "$child"
eventually "the broker is still there" 50 gone "$broker"
check "PostgreSQL without a broker" works
$pg/pgbench -n -C -c 4 -T 1 -h "$work" -U postgres postgres >"$work/pgbench.log" 2>&1 || fail "pgbench without broker"
stop_postgres
start_broker

# huge_pages=try asks for MAP_HUGETLB; the pool is made for one region and no more.
say "huge pages"
reserve 62
pages=$(free_pages)
start_postgres -- -c huge_pages=try
check "no huge pages" sh -c "$pando ls -n | grep -qw hugetlb"
check "PostgreSQL on huge pages" works
crash
check "no huge pages after a crash" sh -c "$pando ls -n | grep -qw hugetlb"
stop_postgres
eventually "huge pages are lost" 20 pages_are_back "$pages"
unreserve

say "pg_ctl, which leaves, with an embedded broker"
unset PANDO_BROKER
"${as_postgres[@]}" "$pando" run -v -- $pg/pg_ctl -D "$work/data" -l "$work/ctl.log" -w start >/dev/null || fail "pg_ctl start"
check "no region" grep -q 'is region' "$work/ctl.log"
check "PostgreSQL below pg_ctl" works
stop_later "$(head -n 1 "$work/data/postmaster.pid")"
same "embedded brokers" 1 "$(embedded)"
"${as_postgres[@]}" $pg/pg_ctl -D "$work/data" -m fast -w stop >/dev/null || fail "pg_ctl stop"
eventually "the embedded broker stays" 50 no_embedded
finish
