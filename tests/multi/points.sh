#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Writes a header with the names of the broker's injection points: points.sh OUTPUT SOURCE...
set -eu
out=$1
shift
{
	echo 'static const char *const points[] = {'
	sed -n 's/.*PANDO_INJECT("\(broker\.[^"]*\|store\.[^"]*\)").*/\t"\1",/p' "$@" | sort -u
	echo '};'
} >"$out"
