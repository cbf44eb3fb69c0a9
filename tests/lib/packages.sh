# SPDX-License-Identifier: BSD-2-Clause
# Installing Debian packages that are missing, for the scripts that promise to work on a bare machine.
#
#   . tests/lib/packages.sh
#   pando_need_packages postgresql-15 libuv1-dev ...
#
# Installs what dpkg does not know as installed, and nothing if all is there (then it needs neither the
# network nor root). Services that come with a package are not started, unless the machine has a
# policy of its own about that. Needs root: callers re-execute themselves with sudo first
# (pando_become_root). Messages go to stderr.

# Re-executes the calling script as root: pando_become_root "$0" "$@". Keeps the environment that matters.
pando_become_root() {
	[ "$(id -u)" -eq 0 ] && return 0
	if ! command -v sudo >/dev/null 2>&1; then
		echo "${1##*/}: must run as root, and there is no sudo on this machine" >&2
		exit 2
	fi
	exec sudo --preserve-env=CI,DEBIAN_FRONTEND,XDG_CACHE_HOME,CCACHE_DIR,TMPDIR -- "$@"
}

_pando_apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@"
}

_pando_install() {
	local log=$1 policy=/usr/sbin/policy-rc.d ours=0 rc=0
	shift
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && ours=1
	fi
	# A fresh machine has no package lists; an old one has lists of versions that are gone.
	_pando_apt install "$@" >"$log" 2>&1 ||
		{ _pando_apt update >"$log" 2>&1 && _pando_apt install "$@" >>"$log" 2>&1; } || rc=$?
	[ "$ours" -eq 1 ] && rm -f "$policy"
	return "$rc"
}

pando_need_packages() {
	local missing=() package log
	for package in "$@"; do
		dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q ' installed$' ||
			missing+=("$package")
	done
	[ "${#missing[@]}" -eq 0 ] && return 0
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "these Debian packages are missing and there is no apt-get: ${missing[*]}" >&2
		return 1
	fi
	log=$(mktemp)
	echo "installing ${#missing[@]} packages: ${missing[*]}" >&2
	if ! _pando_install "$log" "${missing[@]}"; then
		tail -n 20 "$log" >&2
		rm -f "$log"
		echo "apt-get could not install: ${missing[*]}" >&2
		return 1
	fi
	rm -f "$log"
}
