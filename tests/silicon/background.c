/* The writable memory of a case: a fixed background, so that only changes need to be carried. */
#include <string.h>

#include "silicon.h"

void background_fill(struct background *background) {
    struct random random = {UINT64_C(0x9e3779b97f4a7c15)};
    for (unsigned at = 0; at < ARENA_SIZE; at += PATCH_SIZE)
        random_bytes(&random, background->arena + at, PATCH_SIZE);
    memset(background->arena + ARENA_MIXED, 0xcc, MIXED_SIZE);
    for (unsigned at = 0; at < CONST_SIZE; at += PATCH_SIZE)
        random_bytes(&random, background->constant + at, PATCH_SIZE);
}

uint8_t *background_at(const struct arena *arena, uint32_t offset) {
    if (offset < DATA_SIZE)
        return arena->data + offset;
    return offset < ARENA_MIXED ? arena->stack + (offset - DATA_SIZE)
                                : arena->mixed + (offset - ARENA_MIXED);
}

uint64_t background_address(uint32_t offset) {
    if (offset < DATA_SIZE)
        return DATA_BASE + offset;
    return offset < ARENA_MIXED ? STACK_BASE + (offset - DATA_SIZE)
                                : MIXED_BASE + (offset - ARENA_MIXED);
}

uint32_t background_code(uint64_t start) {
    if (start - MIXED_BASE < MIXED_SIZE)
        return ARENA_MIXED + (uint32_t)(start - MIXED_BASE);
    if (start - MIXED_CODE < MIXED_SIZE)
        return ARENA_MIXED + (uint32_t)(start - MIXED_CODE);
    return ARENA_SIZE;
}

/* True: it has changed. */
static bool collect_page(const uint8_t *before, const uint8_t *now, uint32_t offset,
                         struct outcome *outcome) {
    if (memcmp(before, now, PAGE) == 0)
        return false;
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
    return true;
}

void background_collect(const struct background *background, const struct arena *arena,
                        struct outcome *outcome) {
    outcome->diff_count = 0;
    for (uint32_t offset = 0; offset < ARENA_SIZE; offset += PAGE) {
        const uint8_t *before = background->arena + offset;
        uint8_t *now = background_at(arena, offset);
        if (!collect_page(before, now, offset, outcome))
            continue;
        if (arena->restore != NULL)
            arena->restore(arena->context, offset, before);
        else
            memcpy(now, before, PAGE);
    }
}
