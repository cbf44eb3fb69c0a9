#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Apache (prefork) with a shared cache (socache_shmcb) in a region: work, graceful restart, death of a child.
# shellcheck source=tests/shim/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

modules=/usr/lib/apache2/modules
[ -x /usr/sbin/apache2 ] || skip "apache2-bin is not installed"
[ "$(id -u)" -eq 0 ] || skip "needs root, to let Apache drop its rights"
command -v curl >/dev/null || skip "curl is not installed"
port=$((20000 + ($$ + 7) % 20000))

mkdir "$work/www" && echo hello >"$work/www/index.html"
{
	for m in mpm_prefork authn_core authz_core authz_user auth_basic authn_file authn_socache \
		socache_shmcb; do
		echo "LoadModule ${m}_module $modules/mod_$m.so"
	done
	cat <<-END
		ServerRoot $work
		ServerName localhost
		Listen 127.0.0.1:$port
		PidFile $work/apache.pid
		DefaultRuntimeDir $work
		ErrorLog $work/error.log
		User www-data
		Group www-data
		StartServers 3
		MinSpareServers 3
		DocumentRoot $work/www
		AuthnCacheEnable
		AuthnCacheSOCache shmcb:$work/authn(8388608)
		<Location />
			AuthType Basic
			AuthName test
			AuthBasicProvider socache file
			AuthnCacheProvideFor file
			AuthUserFile $work/users
			Require valid-user
		</Location>
	END
} >"$work/apache.conf"
echo "me:{SHA}NWoZK3kTsExUV00Ywo1G5jlUKKs=" >"$work/users" # "1"

status() { curl -s -o /dev/null -w '%{http_code}' -u "me:$1" "http://127.0.0.1:$port/index.html"; }
answers() { [ "$(status 1)" = 200 ]; }
children() { pgrep -P "$master" | sort -n; }
three() { [ "$(children | wc -l)" -ge 3 ]; }

start_broker
"$pando" run -v --name apache -- /usr/sbin/apache2 -f "$work/apache.conf" -k start >"$work/start.log" 2>&1 </dev/null ||
	fail "Apache does not start"
eventually "no pid file" 50 test -s "$work/apache.pid"
master=$(cat "$work/apache.pid")
stop_later "$master"
eventually "Apache does not answer" 50 answers
eventually "three children" 50 three
same "regions" 1 "$(count_regions)"
for pid in $master $(children); do
	check "process $pid has no region" has_region "$pid"
	eventually "process $pid is no client" 20 is_client "$pid"
done
for _ in 1 2 3 4 5 6; do same "a password that is cached" 200 "$(status 1)"; done
same "a wrong one" 401 "$(status 2)"

say "a child is killed"
victim=$(children | head -n 1)
kill -KILL "$victim"
eventually "the child is not replaced" 50 three
eventually "the dead child is still a client" 10 sh -c "! $pando clients -n | grep -qw $victim"
same "after a child's death" 200 "$(status 1)"

say "graceful restart"
before=$(regions)
kill -USR1 "$master"
renewed() { answers && [ "$(count_regions)" -eq 1 ] && [ "$(regions)" != "$before" ]; }
eventually "no new region after a restart" 100 renewed
check "the master has no region" has_region "$master"
kill -TERM "$master"
eventually "Apache does not end" 100 gone "$master"
to_stop=()
eventually "regions are left" 20 no_regions
stop_broker
finish
