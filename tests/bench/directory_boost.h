/* SPDX-License-Identifier: BSD-2-Clause */
/* Names in Boost.Interprocess's managed_shared_memory, for bench_directory.c. */
#ifndef PANDO_BENCH_DIRECTORY_BOOST_H
#define PANDO_BENCH_DIRECTORY_BOOST_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif
/* Makes a segment, whose name is gone again; false: it cannot. */
bool boost_begin(void);
void boost_end(void);
bool boost_construct(const char *name);
bool boost_find(const char *name);
#ifdef __cplusplus
}
#endif
#endif
