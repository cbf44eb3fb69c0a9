#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# php-fpm with opcache's shared memory in a region: scripts compiled by one worker serve the others.
# shellcheck source=tests/shim/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

fpm=/usr/sbin/php-fpm8.2
[ -x $fpm ] || skip "php8.2-fpm is not installed"
command -v cgi-fcgi >/dev/null || skip "cgi-fcgi (libfcgi-bin) is not installed"
[ "$(id -u)" -eq 0 ] || skip "needs root, to let php-fpm drop its rights"

cat >"$work/script.php" <<'END'
<?php
$s = opcache_get_status(false);
echo "pid=", getmypid(), " used=", $s["memory_usage"]["used_memory"] > 0 ? "yes" : "no",
	" cached=", $s["opcache_statistics"]["num_cached_scripts"], " end\n";
END
cat >"$work/fpm.conf" <<END
[global]
pid = $work/fpm.pid
error_log = $work/fpm.log
daemonize = yes
[www]
user = www-data
group = www-data
listen = $work/fpm.sock
pm = static
pm.max_children = 3
END

request() {
	SCRIPT_FILENAME=$work/script.php REQUEST_METHOD=GET SCRIPT_NAME=/script.php \
		cgi-fcgi -bind -connect "$work/fpm.sock" 2>/dev/null | tr -d '\r'
}
answers() { request | grep -q 'used=yes.*end'; }
workers() { pgrep -P "$master" | sort -n; }
three_workers() { [ "$(workers | wc -l)" -eq 3 ]; }
cached() { request | grep -oE 'cached=[0-9]+'; }

start_fpm() { # RUN_OPTION... -- MEGABYTES
	local mine=()
	while [ "$1" != -- ]; do mine+=("$1"); shift; done
	"$pando" run -v ${mine[@]+"${mine[@]}"} -- $fpm -n -d zend_extension=opcache.so -d opcache.enable=1 \
		-d "opcache.memory_consumption=$2" -d opcache.validate_timestamps=0 -d opcache.file_update_protection=0 \
		-d opcache.lockfile_path="$work" -y "$work/fpm.conf" >"$work/start.log" 2>&1 || fail "php-fpm does not start"
	master=$(cat "$work/fpm.pid")
	stop_later "$master"
	eventually "php-fpm does not answer" 50 answers
	eventually "three workers" 50 three_workers
}

stop_fpm() {
	kill -QUIT "$master"
	eventually "php-fpm does not end" 100 gone "$master"
	to_stop=()
	eventually "regions are left" 20 no_regions
}

start_broker
# An odd size: for an even one PHP asks for addresses below 4 GiB, which are left alone by default.
say "work"
start_fpm --name php -- 65
same "regions" 1 "$(count_regions)"
for pid in $master $(workers); do
	check "process $pid has no region" has_region "$pid"
	eventually "process $pid is no client" 20 is_client "$pid"
done
for _ in 1 2 3 4 5 6; do same "scripts that all workers share" cached=1 "$(cached)"; done

say "a worker is killed"
victim=$(workers | head -n 1)
kill -KILL "$victim"
eventually "the worker is not replaced" 50 three_workers
eventually "the dead worker is still a client" 10 sh -c "! $pando clients -n | grep -qw $victim"
same "shared scripts" cached=1 "$(cached)"

say "reload: php-fpm executes itself, so the old region goes and a new one comes"
before=$(regions)
kill -USR2 "$master"
renewed() { answers && [ "$(count_regions)" -eq 1 ] && [ "$(regions)" != "$before" ]; }
eventually "no new region after a reload" 100 renewed
master=$(cat "$work/fpm.pid") # it has become a daemon again
stop_later "$master"
eventually "three workers" 50 three_workers
check "the master has no region" has_region "$master"
stop_fpm

say "an even size, with and without --serve-32bit"
start_fpm -- 64
check "MAP_32BIT is served without being asked for" no_regions
stop_fpm
start_fpm --serve-32bit -- 64
# With huge pages in the pool, PHP maps them itself at a fixed address.
if [ "$(free_pages)" -lt 32 ]; then
	same "regions with --serve-32bit" 1 "$(count_regions)"
	check "the master has no region" has_region "$master"
fi
stop_fpm
stop_broker
finish
