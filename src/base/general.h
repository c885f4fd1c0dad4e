/*
 * Bytes copied and filled with general registers alone, for code that runs
 * while the vector registers hold a guest's (see cpu/soft/outside.h): the C
 * library's functions use those.
 */
#ifndef LODGE_BASE_GENERAL_H
#define LODGE_BASE_GENERAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void general_fill(void *to, int byte, size_t length) {
#ifdef __x86_64__
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(byte) : "memory");
#else
    memset(to, byte, length);
#endif
}

static inline void general_copy(void *to, const void *from, size_t length) {
#ifdef __x86_64__
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length)::"memory");
#else
    memcpy(to, from, length);
#endif
}

#endif
