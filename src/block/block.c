#include "block/block.h"

int block_resize(struct block *block, uint64_t size, struct error *err) {
    if (block->class->resize == NULL)
        return error_set(err, -ENOTSUP, "a disk in format %s cannot grow", block->class->name);
    if (size < block->info.size || size % BLOCK_SECTOR != 0)
        return error_set(err, -EINVAL,
                         "disk %s has %llu bytes; it can only grow, to a multiple of %d",
                         block->info.name, (unsigned long long)block->info.size, BLOCK_SECTOR);
    int result = block->class->resize(block, size, err);
    if (result == 0 && block->resized != NULL)
        block->resized(block->resized_context);
    return result;
}
