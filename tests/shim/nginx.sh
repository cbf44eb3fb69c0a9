#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# nginx with shared zones (a request limit, a proxy cache's keys) in regions: work, reload, death of a worker.
# shellcheck source=tests/shim/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ -x /usr/sbin/nginx ] || skip "nginx is not installed"
[ "$(id -u)" -eq 0 ] || skip "needs root, to let nginx drop its rights"
command -v curl >/dev/null || skip "curl is not installed"
port=$((20000 + $$ % 20000))

configure() { # LIMIT_ZONE_SIZE
	cat >"$work/nginx.conf" <<-END
		user www-data;
		worker_processes 2;
		daemon on;
		pid $work/nginx.pid;
		error_log $work/error.log notice;
		events { worker_connections 64; }
		http {
			access_log off;
			client_body_temp_path $work/t1; proxy_temp_path $work/t2; fastcgi_temp_path $work/t3;
			uwsgi_temp_path $work/t4; scgi_temp_path $work/t5;
			limit_req_zone \$arg_key zone=limit:$1 rate=1r/m;
			proxy_cache_path $work/cache keys_zone=keys:16m;
			server {
				listen 127.0.0.1:$port;
				location /limited { limit_req zone=limit; root $work/www; }
				location /cached {
					proxy_pass http://127.0.0.1:$((port + 1))/;
					proxy_cache keys; proxy_cache_valid 200 1h;
					add_header X-Cache \$upstream_cache_status;
				}
			}
			server { listen 127.0.0.1:$((port + 1)); location / { root $work/www; } }
		}
	END
}

status() { curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/limited?key=$1"; }
cached() { curl -s -D - -o /dev/null "http://127.0.0.1:$port/cached" | tr -d '\r' | awk '/^X-Cache:/ { print $2 }'; }
answers() { curl -s -o /dev/null "http://127.0.0.1:$((port + 1))/index.html"; }
workers() { pgrep -P "$master" -f 'worker process' | sort -n; } # not the cache's manager
two_workers() { [ "$(workers | wc -l)" -eq 2 ]; }
others_than() { [ "$(workers | wc -l)" -eq 2 ] && ! workers | grep -qwF "$1"; }
regions_are() { [ "$(count_regions)" -eq "$1" ]; }

mkdir -p "$work/www" "$work/cache" && echo hello | tee "$work/www/index.html" >"$work/www/limited"
configure 16m
start_broker
"$pando" run -v --name nginx -- /usr/sbin/nginx -p "$work" -c "$work/nginx.conf" >"$work/nginx.log" 2>&1 ||
	fail "nginx does not start"
master=$(cat "$work/nginx.pid")
stop_later "$master"
eventually "nginx does not answer" 50 answers
eventually "two workers" 50 two_workers

say "two zones are two regions, in the master and in each worker"
same "regions" 2 "$(count_regions)"
for pid in $master $(workers); do
	check "process $pid has no region" has_region "$pid"
	eventually "process $pid is no client" 20 is_client "$pid"
done
same "first request" 200 "$(status a)"
same "second request, whichever worker gets it" 503 "$(status a)"
for _ in 1 2 3 4; do same "further ones" 503 "$(status a)"; done
same "another key" 200 "$(status b)"
same "first read" MISS "$(cached)"
same "second read" HIT "$(cached)"

say "reload: the zones stay as they are"
old=$(workers)
kill -HUP "$master"
eventually "no new workers" 50 others_than "$old"
eventually "nginx does not answer" 50 answers
same "regions" 2 "$(count_regions)"
same "the limit's memory is the same" 503 "$(status a)"
same "the cache's memory is the same" HIT "$(cached)"

say "reload with a larger zone: its old region goes"
before=$(regions)
configure 24m
old=$(workers)
kill -HUP "$master"
eventually "no new workers" 50 others_than "$old"
eventually "the old zone's region stays" 50 regions_are 2
[ "$before" != "$(regions)" ] || fail "the larger zone has no region of its own"
same "a new zone" 200 "$(status a)"
same "a new zone" 503 "$(status a)"

say "a worker is killed"
victim=$(workers | head -n 1)
kill -KILL "$victim"
eventually "the worker is not replaced" 50 two_workers
eventually "the dead worker is still a client" 10 sh -c "! $pando clients -n | grep -qw $victim"
for pid in $(workers); do check "process $pid has no region" has_region "$pid"; done
same "the zone after a worker's death" 503 "$(status a)"

say "the broker is killed"
kill_broker
same "the zone after the broker's death" 503 "$(status a)"
old=$(workers)
kill -HUP "$master"
eventually "no new workers" 50 others_than "$old"
for pid in $(workers); do eventually "process $pid is no client" 20 is_client "$pid"; done

kill -QUIT "$master"
eventually "nginx does not end" 100 gone "$master"
to_stop=()
eventually "regions are left" 20 no_regions
stop_broker
finish
