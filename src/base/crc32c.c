#include "base/crc32c.h"

#include <pthread.h>
#include <stdbool.h>

#include "base/bytes.h"

enum { BYTE_VALUES = 256 };
static const uint32_t POLYNOMIAL = 0x82f63b78;
static uint32_t table[BYTE_VALUES];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void make_table(void) {
    for (uint32_t i = 0; i < BYTE_VALUES; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ ((crc & 1) != 0 ? POLYNOMIAL : 0);
        table[i] = crc;
    }
}

static uint32_t by_table(uint32_t crc, const uint8_t *data, size_t length) {
    pthread_once(&table_once, make_table);
    while (length-- > 0)
        crc = crc >> 8 ^ table[(uint8_t)crc ^ *data++];
    return crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *data,
                                                                 size_t length) {
    uint64_t wide = crc;
    for (; length >= 8; data += 8, length -= 8)
        wide = __builtin_ia32_crc32di(wide, load_le64(data));
    crc = (uint32_t)wide;
    while (length-- > 0)
        crc = __builtin_ia32_crc32qi(crc, *data++);
    return crc;
}

static bool have_instruction(void) {
    return __builtin_cpu_supports("sse4.2") != 0;
}
#else
static uint32_t by_instruction(uint32_t crc, const uint8_t *data, size_t length) {
    return by_table(crc, data, length);
}

static bool have_instruction(void) {
    return false;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t length) {
    return ~(have_instruction() ? by_instruction(~crc, data, length)
                                : by_table(~crc, data, length));
}
