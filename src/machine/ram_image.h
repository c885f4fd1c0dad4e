/*
 * A snapshot's memory: docs/snapshots.md. DIRECTORY/ram holds pages, or DIRECTORY/ram.zst
 * (ram_packed.h), DIRECTORY/ram.map says which,
 * their sums, and from which snapshot beside this one the others are (its base), which may have one
 * itself. Snapshots that are mapped by a running VM only ever change where they own no pages.
 *
 * Any thread. Files may be hostile: -EINVAL, -ENOTSUP (of a newer lodge), -errno.
 */
#ifndef LODGE_MACHINE_RAM_IMAGE_H
#define LODGE_MACHINE_RAM_IMAGE_H

#include <limits.h>

#include "memory/memory.h"

enum { RAM_MAP_FORMAT = 1, RAM_ID_BYTES = 16, RAM_BASE_NAME_MAX = 72, RAM_CHAIN_MAX = 16 };

/* ram.map. Zeroed ids: none. */
struct ram_map {
    uint8_t id[RAM_ID_BYTES], base_id[RAM_ID_BYTES];
    char base[RAM_BASE_NAME_MAX]; /* a snapshot's name; empty: it owns all pages */
    struct memory_pages pages;
};

/* A new id; `base` (NULL: none) is what goes without saying. -ENOMEM. */
int ram_map_init(struct ram_map *map, uint64_t pages, const char *base,
                 const struct ram_map *base_map);
void ram_map_free(struct ram_map *map);
int ram_map_parse(const uint8_t *data, size_t length, struct ram_map *map, struct error *err);
int ram_map_load(const char *directory, struct ram_map *map, struct error *err);
/* Whole and durable, or as it was. */
int ram_map_store(const char *directory, const struct ram_map *map, struct error *err);

/* A snapshot's memory and what it builds upon, the newest first. */
struct ram_chain {
    unsigned count;
    struct ram_layer {
        char path[PATH_MAX]; /* of the directory */
        int fd;
        bool packed; /* fd is of ram.zst */
        struct ram_map map;
    } * layer;
};
/* pages: how many they ought to have, 0: as many as the first. The caller closes it in any case. */
int ram_chain_open(const char *directory, uint64_t pages, struct ram_chain *chain,
                   struct error *err);
void ram_chain_close(struct ram_chain *chain);
/* Maps it (what is packed is unpacked first, into files without names, which end with the memory),
 * for the rest of the process's life: a page that turns out to be gone (SIGBUS) ends it,
 * with a line on standard error. */
int ram_chain_map(struct ram_chain *chain, struct memory *memory, struct error *err);
/* Reads all pages that count: -EINVAL names the first whose sum is wrong. */
int ram_chain_check(const struct ram_chain *chain, struct error *err);

/*
 * Its base is about to go: a snapshot takes over the pages that it has from there, and has its
 * base's base from now on; it is not packed any more. Whole and durable, or as it was.
 */
int ram_merge(const char *directory, const char *base, struct error *err);

#endif
