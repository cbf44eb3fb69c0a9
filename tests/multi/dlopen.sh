#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# libpando.so is loaded by running programs, with its private jemalloc in it: by a C program and by python3, with
# settings for a jemalloc of the host's that would end or poison a copy which saw them, with a jemalloc as the host's
# malloc, and after other libraries have used up room for thread-local storage.
set -u -o pipefail
export LC_ALL=C
program=$1
failures=0

try() { # LABEL COMMAND...
	local label=$1 out
	shift
	if out=$("$@" 2>&1) && [[ $out == *"loaded and used"* ]]; then
		echo "ok    $label"
	else
		echo "FAIL  $label"
		printf '%s\n' "$out" | head -n 20 | sed 's/^/      /'
		failures=$((failures + 1))
	fi
}

python=(python3 -c '
import ctypes, ctypes.util, os
for name in ("ssl", "crypto", "sqlite3", "z", "expat"): # as a grown program has them
    path = ctypes.util.find_library(name)
    if path:
        ctypes.CDLL(path)
pando = ctypes.CDLL(os.environ["PANDO_LIBRARY"])
P = ctypes.c_void_p
pando.pando_alloc.restype = P
pando.pando_alloc.argtypes = [P, ctypes.c_size_t]
pando.pando_free.argtypes = [P, P]
pando.pando_strerror_last.restype = ctypes.c_char_p
class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint64), ("max_size", ctypes.c_uint64), ("address", ctypes.c_uint64)]
p, r = P(), P()
assert pando.pando_connect(ctypes.byref(p), None) == 0, pando.pando_strerror_last()
o = Options(256 << 20, 0, 0)
assert pando.pando_region_open_sized(p, b"python", 1 | 8 | 16, ctypes.byref(o), ctypes.sizeof(o), ctypes.byref(r)) == 0, \
    pando.pando_strerror_last()
objects = [pando.pando_alloc(r, size) for size in range(1, 60000, 501)]
assert all(objects), pando.pando_strerror_last()
for i, o in enumerate(objects):
    ctypes.memset(o, i, 1 + 501 * i)
for o in objects:
    pando.pando_free(r, o)
pando.pando_disconnect(p)
print("loaded and used")
')

# Unknown options end a jemalloc with abort_conf; junk fills what it hands out, and what it takes back.
settings='junk:true,abort_conf:true,no_such_option:1'
try "a C program" "$program" "$PANDO_LIBRARY"
try "a C program, MALLOC_CONF" env MALLOC_CONF=$settings "$program" "$PANDO_LIBRARY"
try "a C program, the private copy's own name" env PANDO__JE_MALLOC_CONF=$settings "$program" "$PANDO_LIBRARY"
jemalloc=$(ldconfig -p | awk '$1 == "libjemalloc.so.2" {print $NF; exit}')
if [ -z "${PANDO_SANITIZED:-}" ]; then
	try "python3" "${python[@]}"
	try "python3, MALLOC_CONF" env MALLOC_CONF=$settings "${python[@]}"
	if [ -n "$jemalloc" ]; then
		try "a C program on jemalloc with junk" \
			env LD_PRELOAD="$jemalloc" MALLOC_CONF=junk:true,abort_conf:true "$program" "$PANDO_LIBRARY"
		try "python3 on jemalloc with junk" \
			env LD_PRELOAD="$jemalloc" MALLOC_CONF=junk:true,abort_conf:true "${python[@]}"
	fi
fi
[ "$failures" -eq 0 ]
