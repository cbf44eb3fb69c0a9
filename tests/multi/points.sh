#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Writes a header with the names of injection points that match: points.sh ARRAY PATTERN OUTPUT SOURCE...
set -eu
array=$1 pattern=$2 out=$3
shift 3
{
	echo "static const char *const ${array}[] = {"
	# A call may be broken after its parenthesis.
	cat "$@" | tr -d '\n\t' | grep -oE "PANDO_INJECT\(\"$pattern\.[^\"]*\"\)" |
		sed 's/.*("\(.*\)")/\t"\1",/' | sort -u
	echo '};'
} >"$out"
