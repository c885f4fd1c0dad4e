/*
 * Memory for code: one set of pages mapped twice, writable here and
 * executable there, so that no page is ever both. Bounded; filled with code
 * from its start and with notes about it from its end, emptied as a whole.
 */
#ifndef LODGE_CPU_SOFT_JIT_CODE_MEMORY_H
#define LODGE_CPU_SOFT_JIT_CODE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct code_memory {
    uint8_t *writable;
    const uint8_t *executable;
    size_t size;
    size_t used, at_end; /* bytes */
};

int code_memory_create(struct code_memory *memory, size_t size, struct error *err);
/* All behind `used` is free, and given back to the host. */
void code_memory_empty(struct code_memory *memory, size_t used);
void code_memory_destroy(struct code_memory *memory);

static inline const uint8_t *code_executable(const struct code_memory *memory, const uint8_t *at) {
    return memory->executable + (at - memory->writable);
}

#endif
