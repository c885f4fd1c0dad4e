/*
 * A shared library that few commands need is loaded when one does: what the
 * dynamic linker has to do for it, and for all that it needs in turn, would
 * else be a part of every command's start.
 *
 *     #define FUNCTIONS(F) F(nbd_create) F(nbd_close)
 *     static struct { FUNCTIONS(LIBRARY_POINTER) } lib;
 *     static const char *const names[] = {FUNCTIONS(LIBRARY_NAME)};
 *
 * Once library_load has returned 0, lib.nbd_create() is the library's own, which
 * stays until the process ends. Any thread, as often as it likes.
 */
#ifndef LODGE_BASE_LIBRARY_H
#define LODGE_BASE_LIBRARY_H

#include <stddef.h>

#include "base/error.h"

#define LIBRARY_POINTER(function) __typeof__(function) *function;
#define LIBRARY_NAME(function)    #function,

/* Fills the struct at `functions`, which holds `count` pointers to functions, in the names' order.
 * -ENOENT: the library, or one of its functions, is not there. */
int library_load(const char *file, const char *const names[], size_t count, void *functions,
                 struct error *err);

#endif
