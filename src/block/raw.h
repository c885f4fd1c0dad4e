/* Files and block devices as they are: what raw disks are, and what other formats lie in. */
#ifndef LODGE_BLOCK_RAW_H
#define LODGE_BLOCK_RAW_H

#include "block/block.h"

struct raw_config {
    bool readonly;
    /* Past the host's page cache (O_DIRECT), with io_uring where there is one. What is not on
     * sectors, in the file or in memory, goes through the cache all the same. */
    bool direct;
    bool reader;   /* of a part that nobody changes: beside a writer, see below */
    bool growable; /* it may be empty, and writes behind its end make it longer: a format's file */
};

/*
 * Opens and locks (open file description locks): against writers when readonly, QEMU's among them,
 * else against everybody; a reader only against block_exclude_readers. -EBUSY: in use. -EINVAL:
 * neither a file nor a block device; with direct: a file system without O_DIRECT.
 */
int block_open_file(const char *path, const struct raw_config *config, struct block **block,
                    struct error *err);

/*
 * From now on, or no longer, there are no readers of the file. -EBUSY: there is one. Nodes that are
 * no files have none.
 */
int block_exclude_readers(struct block *file, bool exclude);

/* A block device, opened by the above? */
bool block_is_device(const struct block *block);

#endif
