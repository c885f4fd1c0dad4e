#include "block/written.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/bytes.h"

enum { SHIFT_MIN = 12, BLOCKS_SHIFT_MAX = 28 };

struct written_log {
    uint64_t size;
    unsigned shift;
    size_t words;
    _Atomic(uint64_t) map[];
};

struct written_log *written_log_create(uint64_t size) {
    unsigned shift = SHIFT_MIN;
    while ((size - 1) >> shift >> BLOCKS_SHIFT_MAX != 0)
        shift++;
    uint64_t blocks = (size + (UINT64_C(1) << shift) - 1) >> shift;
    size_t words = (size_t)((blocks + 63) / 64);
    struct written_log *log = calloc(1, sizeof *log + words * sizeof log->map[0]);
    if (log == NULL)
        return NULL;
    log->size = size;
    log->shift = shift;
    log->words = words;
    return log;
}

void written_log_destroy(struct written_log *log) {
    free(log);
}

unsigned written_log_shift(const struct written_log *log) {
    return log->shift;
}

size_t written_log_words(const struct written_log *log) {
    return log->words;
}

/* Bits from..to of a word, both included. */
static uint64_t bits(unsigned from, unsigned to) {
    return UINT64_MAX << from & UINT64_MAX >> (63 - to);
}

void written_log_mark(struct written_log *log, uint64_t offset, uint64_t length) {
    if (length == 0 || offset >= log->size)
        return;
    uint64_t last = (length < log->size - offset ? offset + length : log->size) - 1;
    uint64_t from = offset >> log->shift, to = last >> log->shift;
    for (uint64_t word = from / 64; word <= to / 64; word++)
        atomic_fetch_or(&log->map[word],
                        bits(word == from / 64 ? from % 64 : 0, word == to / 64 ? to % 64 : 63));
}

void written_log_fetch(struct written_log *log, uint64_t *map) {
    for (size_t i = 0; i < log->words; i++)
        if (atomic_load_explicit(&log->map[i], memory_order_relaxed) != 0)
            map[i] |= atomic_exchange(&log->map[i], 0);
}
