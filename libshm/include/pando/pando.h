/* SPDX-License-Identifier: BSD-2-Clause */
/* Everything: #include <pando/pando.h>, link with `pkg-config --libs pando`. */
#ifndef PANDO_PANDO_H
#define PANDO_PANDO_H

#include <pando/connect.h>
#include <pando/directory.h>
#include <pando/error.h>
#include <pando/graft.h>
#include <pando/heap.h>
#include <pando/rcu.h>
#include <pando/region.h>

#endif
