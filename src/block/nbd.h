/*
 * Disks on an NBD server, by libnbd: nbd://HOST[:PORT]/EXPORT and
 * nbd+unix:///EXPORT?socket=PATH. One connection, many requests under way.
 * When the server goes away its requests fail with -EIO, and all later ones.
 */
#ifndef LODGE_BLOCK_NBD_H
#define LODGE_BLOCK_NBD_H

#include "block/block.h"

/* -ECONNREFUSED and others of connecting; -EROFS: the export is read-only and `readonly` is not. */
int nbd_open(const char *uri, bool readonly, struct block **block, struct error *err);

#endif
