/* A file in memory for fuzzing formats: reads and writes within a limit, all at once. */
#ifndef LODGE_FUZZ_MEMORY_FILE_H
#define LODGE_FUZZ_MEMORY_FILE_H

#include <string.h>

#include "base/bytes.h"
#include "block/block.h"

enum { MEMORY_FILE_LIMIT = 4 << 20 };

struct memory_file {
    struct block block;
    uint8_t bytes[MEMORY_FILE_LIMIT];
};

static int memory_file_submit(struct block *block, struct block_request *request) {
    struct memory_file *file = container_of(block, struct memory_file, block);
    bool inside = range_within(request->offset, request->length, sizeof file->bytes);
    request->result = inside ? 0 : -ENOSPC;
    if (!inside || request->operation == BLOCK_FLUSH)
        return 1;
    uint8_t *at = file->bytes + request->offset;
    for (unsigned i = 0; i < request->vector_count; i++) {
        size_t length = request->vectors[i].iov_len;
        if (request->operation == BLOCK_READ)
            memcpy(request->vectors[i].iov_base, at, length);
        else
            memcpy(at, request->vectors[i].iov_base, length);
        at += length;
    }
    if (request->operation == BLOCK_DISCARD || request->operation == BLOCK_WRITE_ZEROES)
        memset(at, 0, request->length);
    if (request->operation == BLOCK_WRITE && request->offset + request->length > block->info.size)
        block->info.size = request->offset + request->length;
    return 1;
}

static void memory_file_nothing(struct block *block) {
    (void)block;
}

static const struct block_class memory_file_class = {.name = "memory",
                                                     .submit = memory_file_submit,
                                                     .drain = memory_file_nothing,
                                                     .close = memory_file_nothing};

static inline struct block *memory_file_open(struct memory_file *file, const uint8_t *data,
                                             size_t size) {
    memset(file, 0, sizeof *file);
    size = size < sizeof file->bytes ? size : sizeof file->bytes;
    memcpy(file->bytes, data, size);
    file->block.class = &memory_file_class;
    file->block.info = (struct block_info){.size = size,
                                           .logical_block = 512,
                                           .physical_block = 4096,
                                           .discard = true,
                                           .name = "fuzz"};
    return &file->block;
}

#endif
