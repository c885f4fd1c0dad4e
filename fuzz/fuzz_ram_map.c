/*
 * Maps of snapshots' memory (machine/ram_image.h) with anything behind a right beginning and a
 * right sum. What is taken is written again, and is the same then. And compressed pages of such a
 * map.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "image/file.h"
#include "machine/ram_image.h"
#include "machine/ram_packed.h"

enum { BEGINNING = 16 };

static char store[] = "/tmp/lodge-fuzz-XXXXXX";

static void must(bool holds) {
    if (!holds)
        abort();
}

static void remove_store(void) {
    remove_tree(store);
}

static void write_again(const struct ram_map *map, const uint8_t *bytes, size_t length) {
    struct file_bytes again;
    char path[PATH_MAX];
    must(ram_map_store(store, map, NULL) == 0);
    must(path_join(path, store, "ram.map", NULL) == 0);
    must(file_read(path, &again, NULL) == 0);
    must(again.length == length && memcmp(again.data, bytes, length) == 0);
    file_free(&again);
}

/* By the page: what comes is a chunk with that page, or nothing. */
static void unpack_one(int file, const struct memory_pages *pages) {
    struct ram_unpacker *unpacker;
    struct ram_chunk chunk;
    if (ram_unpacker_open(file, pages, &unpacker, NULL) < 0)
        return;
    for (uint64_t n = pages->count; n-- > 0;) {
        if ((pages->own[n / 64] >> n % 64 & 1) == 0 ||
            ram_unpacker_read(unpacker, n, &chunk, NULL) < 0)
            continue;
        must(chunk.count > 0 && chunk.page[0] <= n && chunk.page[chunk.count - 1] >= n);
        break;
    }
    ram_unpacker_close(unpacker);
}

/* Compressed pages that are anything: the map's own bytes are the file, behind a right beginning
 * of so many chunks as it wants, or as they are. */
static void unpack(const struct ram_map *map, const uint8_t *bytes, size_t length) {
    FILE *file = tmpfile(), *ram = tmpfile();
    must(file != NULL && ram != NULL && fwrite(bytes, 1, length, file) == length);
    must(fflush(file) == 0);
    int result = ram_unpack(fileno(file), &map->pages, fileno(ram), NULL);
    must(result < 0);
    uint64_t own = 0;
    for (uint64_t n = 0; n < map->pages.count; n++)
        own += map->pages.own[n / 64] >> n % 64 & 1;
    uint32_t chunks = (uint32_t)((own + RAM_PACKED_CHUNK - 1) / RAM_PACKED_CHUNK);
    size_t head = 16 + (size_t)chunks * 4;
    if (head + 4 <= length) {
        uint8_t *right = malloc(length);
        must(right != NULL);
        memcpy(right, bytes, length);
        memcpy(right, "LODGEZST\1\0\0\0", 12);
        store_le32(right + 12, chunks);
        for (uint32_t n = 0; n < chunks; n++)
            store_le32(right + 16 + n * 4, n == 0 ? (uint32_t)(length - head - 4) : 0);
        store_le32(right + head, crc32c(0, right, head));
        rewind(file);
        must(fwrite(right, 1, length, file) == length && fflush(file) == 0);
        ram_unpack(fileno(file), &map->pages, fileno(ram), NULL);
        unpack_one(fileno(file), &map->pages);
        free(right);
    }
    fclose(file);
    fclose(ram);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool ready;
    struct ram_map map;
    uint8_t *bytes = calloc(1, BEGINNING + size);
    must(bytes != NULL);
    if (!ready) {
        must(mkdtemp(store) != NULL);
        atexit(remove_store);
        ready = true;
    }
    memcpy(bytes, "LODGERAM\1", 9);
    if (size > 0)
        memcpy(bytes + BEGINNING, data, size);
    store_le32(bytes + 12, crc32c(0, bytes + BEGINNING, size));
    if (ram_map_parse(bytes, BEGINNING + size, &map, NULL) == 0) {
        write_again(&map, bytes, BEGINNING + size);
        unpack(&map, bytes, BEGINNING + size);
        ram_map_free(&map);
    }
    free(bytes);
    return 0;
}
