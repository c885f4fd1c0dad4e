#include "block/disk/map.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS_MIN = 256 };

static size_t bucket_of(const struct disk_map *map, uint32_t level, uint64_t index) {
    uint64_t hash = (index * DISK_LEVELS_MAX + level) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(hash >> 20) & (map->bucket_count - 1);
}

int disk_map_create(struct disk_map *map, uint64_t root, uint32_t levels, size_t limit,
                    struct error *err) {
    size_t buckets = BUCKETS_MIN;
    while (buckets < limit)
        buckets *= 2;
    *map =
        (struct disk_map){.root = root, .levels = levels, .bucket_count = buckets, .limit = limit};
    map->buckets = calloc(buckets, sizeof(struct disk_table *));
    return map->buckets != NULL ? 0 : error_set(err, -ENOMEM, "no memory for a disk's tables");
}

void disk_map_destroy(struct disk_map *map) {
    for (size_t i = 0; map->buckets != NULL && i < map->bucket_count; i++)
        while (map->buckets[i] != NULL) {
            struct disk_table *table = map->buckets[i];
            map->buckets[i] = table->next;
            free(table);
        }
    free(map->buckets);
    map->buckets = NULL;
}

struct disk_table *disk_map_find(struct disk_map *map, uint32_t level, uint64_t index) {
    struct disk_table *table = map->buckets[bucket_of(map, level, index)];
    while (table != NULL && (table->index != index || table->level != level))
        table = table->next;
    return table;
}

static struct disk_table *insert(struct disk_map *map, uint32_t level, uint64_t index) {
    struct disk_table *table = malloc(sizeof *table);
    if (table == NULL)
        return NULL;
    struct disk_table **bucket = &map->buckets[bucket_of(map, level, index)];
    table->next = *bucket;
    table->level = level;
    table->index = index;
    table->pins = 0;
    table->dirty = false;
    table->used = true;
    table->where = 0;
    *bucket = table;
    map->count++;
    return table;
}

struct disk_table *disk_map_add(struct disk_map *map, const struct disk_missing *missing,
                                const uint64_t entries[DISK_ENTRIES]) {
    struct disk_table *table = disk_map_find(map, missing->level, missing->index);
    if (table != NULL)
        return table;
    table = insert(map, missing->level, missing->index);
    if (table != NULL) {
        table->where = missing->entry;
        memcpy(table->entries, entries, sizeof table->entries);
    }
    return table;
}

/*
 * Descends towards a block's leaf. 0: *table is the lowest table on the way that there is (NULL:
 * not even the topmost), *entry what stands below it: the block's own entry when it is the leaf.
 */
static int descend(struct disk_map *map, uint64_t block, struct disk_table **table, uint64_t *entry,
                   struct disk_missing *missing) {
    *table = disk_map_find(map, 0, block / DISK_ENTRIES);
    if (*table != NULL) {
        *entry = (*table)->entries[block % DISK_ENTRIES];
        return 0;
    }
    *entry = map->root;
    for (uint32_t level = map->levels; level-- > 0;) {
        uint64_t span = disk_span(level), index = block / span / DISK_ENTRIES;
        struct disk_table *here = disk_map_find(map, level, index);
        if (here == NULL && !disk_allocated(*entry))
            return 0;
        if (here == NULL) {
            *missing = (struct disk_missing){level, index, *entry};
            return -EAGAIN;
        }
        *table = here;
        *entry = here->entries[block / span % DISK_ENTRIES];
    }
    return 0;
}

int disk_map_look(struct disk_map *map, uint64_t block, uint64_t *entry, uint64_t *run,
                  struct disk_missing *missing) {
    struct disk_table *table;
    int result = descend(map, block, &table, entry, missing);
    if (result != 0)
        return result;
    uint64_t span = disk_span(table != NULL ? table->level : map->levels);
    *run = span - block % span;
    if (table != NULL)
        table->used = true;
    return 0;
}

int disk_map_table(struct disk_map *map, uint32_t level, uint64_t index, uint64_t *entry,
                   struct disk_missing *missing) {
    const struct disk_table *table = disk_map_find(map, level, index);
    if (table != NULL || level >= map->levels) {
        *entry = table != NULL && !table->dirty ? table->where : 0;
        return 0;
    }
    *entry = map->root;
    for (uint32_t at = map->levels - 1; at > level && disk_allocated(*entry); at--) {
        uint64_t below = disk_span(at - level - 1);
        table = disk_map_find(map, at, index / below / DISK_ENTRIES);
        if (table == NULL) {
            *missing = (struct disk_missing){at, index / below / DISK_ENTRIES, *entry};
            return -EAGAIN;
        }
        *entry = table->entries[index / below % DISK_ENTRIES];
    }
    return 0;
}

static void set_dirty(struct disk_map *map, struct disk_table *table) {
    map->dirty += !table->dirty;
    table->dirty = true;
}

int disk_map_leaf(struct disk_map *map, uint64_t block, struct disk_table **leaf,
                  struct disk_missing *missing) {
    struct disk_table *table;
    uint64_t entry;
    int result = descend(map, block, &table, &entry, missing);
    if (result != 0)
        return result;
    uint32_t from = table != NULL ? table->level : map->levels;
    for (uint32_t level = from; level-- > 0;) {
        table = insert(map, level, block / disk_span(level) / DISK_ENTRIES);
        if (table == NULL)
            return -ENOMEM;
        for (unsigned i = 0; i < DISK_ENTRIES; i++)
            table->entries[i] = entry;
    }
    table = disk_map_find(map, 0, block / DISK_ENTRIES);
    /* Ancestors of a table in memory are in memory as well: only leaves go. */
    for (uint32_t level = 0, clean = !table->dirty; clean && level < map->levels; level++)
        set_dirty(map, disk_map_find(map, level, block / disk_span(level) / DISK_ENTRIES));
    table->used = true;
    *leaf = table;
    return 0;
}

int disk_map_raise(struct disk_map *map, uint32_t levels) {
    while (map->levels < levels) {
        /* An empty tree needs no tables, however many levels it has. */
        if (map->root != 0 || disk_map_find(map, map->levels - 1, 0) != NULL) {
            struct disk_table *top = insert(map, map->levels, 0);
            if (top == NULL)
                return -ENOMEM;
            memset(top->entries, 0, sizeof top->entries);
            top->entries[0] = map->root;
            set_dirty(map, top);
        }
        map->root = 0;
        map->levels++;
    }
    return 0;
}

void disk_map_trim(struct disk_map *map) {
    for (size_t looked = 0; map->count - map->dirty > map->limit && looked < 2 * map->bucket_count;
         looked++) {
        struct disk_table **at = &map->buckets[map->hand];
        map->hand = (map->hand + 1) & (map->bucket_count - 1);
        while (*at != NULL) {
            struct disk_table *table = *at;
            if (table->level == 0 && !table->dirty && table->pins == 0 && !table->used) {
                *at = table->next;
                free(table);
                map->count--;
                continue;
            }
            table->used = false;
            at = &table->next;
        }
    }
}
