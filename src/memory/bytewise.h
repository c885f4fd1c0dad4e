/*
 * For devices whose registers are bytes: answers an access of 2, 4 or 8 bytes
 * as the bus of a PC does, byte by byte, lowest address first.
 */
#ifndef LODGE_MEMORY_BYTEWISE_H
#define LODGE_MEMORY_BYTEWISE_H

#include <stdint.h>

static inline uint64_t bytewise_read(uint8_t (*read)(void *context, unsigned offset), void *context,
                                     uint64_t offset, unsigned size) {
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read(context, (unsigned)offset + i) << (8 * i);
    return value;
}

static inline void bytewise_write(void (*write)(void *context, unsigned offset, uint8_t value),
                                  void *context, uint64_t offset, uint64_t value, unsigned size) {
    for (unsigned i = 0; i < size; i++)
        write(context, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
}

#endif
