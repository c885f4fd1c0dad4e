#include <stdlib.h>

#include "fs/private.h"

/* A number: the slot + 1 in the low half, above it how often the slot was given back. */
static uint64_t number(uint32_t slot, uint32_t generation) {
    return (uint64_t)generation << 32 | (slot + 1);
}

static bool grow(struct fs_table *table) {
    uint32_t room = table->room == 0 ? 64 : 2 * table->room;
    if (table->room == table->max)
        return false;
    if (room > table->max)
        room = table->max;
    struct fs_slot *slots = reallocarray(table->slots, room, sizeof *slots);
    if (slots == NULL)
        return false;
    table->slots = slots;
    table->room = room;
    return true;
}

uint64_t fs_table_add(struct fs_table *table, void *object) {
    uint32_t slot = table->free - 1;
    if (table->free != 0) {
        table->free = table->slots[slot].next_free;
    } else {
        if (table->used == table->room && !grow(table))
            return 0;
        slot = table->used++;
        table->slots[slot].generation = 0;
    }
    table->slots[slot].object = object;
    table->count++;
    return number(slot, table->slots[slot].generation);
}

void *fs_table_find(const struct fs_table *table, uint64_t id) {
    uint32_t slot = (uint32_t)id - 1;
    if ((uint32_t)id == 0 || slot >= table->used || table->slots[slot].generation != id >> 32)
        return NULL;
    return table->slots[slot].object;
}

void fs_table_remove(struct fs_table *table, uint64_t id) {
    uint32_t slot = (uint32_t)id - 1;
    table->slots[slot].object = NULL;
    table->slots[slot].generation++;
    table->slots[slot].next_free = table->free;
    table->free = slot + 1;
    table->count--;
}
