#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Writes a header with the names of the broker's injection points: points.sh OUTPUT SOURCE...
set -eu
out=$1
shift
{
	echo 'static const char *const points[] = {'
	# A call may be broken after its parenthesis.
	cat "$@" | tr -d '\n\t' | grep -oE 'PANDO_INJECT\("(broker|store)\.[^"]*"\)' |
		sed 's/.*("\(.*\)")/\t"\1",/' | sort -u
	echo '};'
} >"$out"
