/*
 * Bytes: little- and big-endian loads and stores at any alignment, ranges checked
 * without overflow, rounding, zeros. Pure functions, any thread.
 */
#ifndef LODGE_BASE_BYTES_H
#define LODGE_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(pointer, type, member)                                                        \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))
#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)

/* The hosts lodge supports are little-endian; a big-endian port would swap here. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian hosts only");

#define BYTES_LOAD_STORE(bits)                                                                     \
    static inline uint##bits##_t load_le##bits(const void *p) {                                    \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                  \
    }                                                                                              \
    static inline void store_le##bits(void *p, uint##bits##_t v) {                                 \
        memcpy(p, &v, sizeof v);                                                                   \
    }
BYTES_LOAD_STORE(16)
BYTES_LOAD_STORE(32)
BYTES_LOAD_STORE(64)
#undef BYTES_LOAD_STORE

#define BYTES_BIG_ENDIAN(bits)                                                                     \
    static inline uint##bits##_t load_be##bits(const void *p) {                                    \
        return __builtin_bswap##bits(load_le##bits(p));                                            \
    }                                                                                              \
    static inline void store_be##bits(void *p, uint##bits##_t v) {                                 \
        store_le##bits(p, __builtin_bswap##bits(v));                                               \
    }
BYTES_BIG_ENDIAN(16)
BYTES_BIG_ENDIAN(32)
BYTES_BIG_ENDIAN(64)
#undef BYTES_BIG_ENDIAN

/* The low `size` bytes (1, 2, 4 or 8) at p, zero-extended. */
static inline uint64_t load_le(const void *p, unsigned size) {
    uint64_t v = 0;
    memcpy(&v, p, size <= 8 ? size : 8);
    return v;
}

static inline void store_le(void *p, uint64_t v, unsigned size) {
    memcpy(p, &v, size <= 8 ? size : 8);
}

/* All-ones in the low `size` bytes: what a read of nothing answers on a PC bus. */
static inline uint64_t bytes_mask(unsigned size) {
    return size >= 8 ? UINT64_MAX : ((uint64_t)1 << (8 * size)) - 1;
}

/* True when [offset, offset+length) lies in [0, limit). Never overflows. */
static inline bool range_within(uint64_t offset, uint64_t length, uint64_t limit) {
    return offset <= limit && length <= limit - offset;
}

/* align is a power of two. */
static inline uint64_t round_down(uint64_t v, uint64_t align) {
    return v & ~(align - 1);
}

static inline uint64_t round_up(uint64_t v, uint64_t align) {
    return (v + align - 1) & ~(align - 1);
}

/* All of them; also when there are none. */
static inline bool bytes_are_zero(const void *p, size_t length) {
    const uint8_t *bytes = (const uint8_t *)p;
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

static inline bool is_power_of_two(uint64_t v) {
    return v != 0 && (v & (v - 1)) == 0;
}

#endif
