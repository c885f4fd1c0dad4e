/* The writable memory of a case: a fixed background, so that only changes need to be carried. */
#include <string.h>

#include "silicon.h"

void background_fill(struct background *background) {
    struct random random = {UINT64_C(0x9e3779b97f4a7c15)};
    for (unsigned at = 0; at < ARENA_SIZE; at += PATCH_SIZE)
        random_bytes(&random, background->arena + at, PATCH_SIZE);
    for (unsigned at = 0; at < CONST_SIZE; at += PATCH_SIZE)
        random_bytes(&random, background->constant + at, PATCH_SIZE);
}

uint8_t *background_at(uint8_t *data, uint8_t *stack, uint32_t offset) {
    return offset < DATA_SIZE ? data + offset : stack + (offset - DATA_SIZE);
}

static void collect_page(const uint8_t *before, uint8_t *now, uint32_t offset,
                         struct outcome *outcome) {
    if (memcmp(before, now, PAGE) == 0)
        return;
    for (uint32_t at = 0; at < PAGE; at += 8) {
        if (memcmp(before + at, now + at, 8) == 0)
            continue;
        if (outcome->diff_count < DIFFS_MAX) {
            struct word_diff *diff = &outcome->diff[outcome->diff_count];
            diff->offset = offset + at;
            memcpy(&diff->value, now + at, 8);
        }
        outcome->diff_count++;
    }
    memcpy(now, before, PAGE);
}

void background_collect(const struct background *background, uint8_t *data, uint8_t *stack,
                        struct outcome *outcome) {
    outcome->diff_count = 0;
    for (uint32_t offset = 0; offset < ARENA_SIZE; offset += PAGE)
        collect_page(background->arena + offset, background_at(data, stack, offset), offset,
                     outcome);
}
