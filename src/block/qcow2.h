/*
 * qcow2 images, versions 2 and 3 (QEMU's docs/interop/qcow2.txt): read, and
 * written whole by conversion. Read natively rather than through qemu-nbd:
 * no second program, and nothing to trust but what is fuzzed here. Not:
 * encryption, external data files, extended L2 entries.
 */
#ifndef LODGE_BLOCK_QCOW2_H
#define LODGE_BLOCK_QCOW2_H

#include "block/block.h"

bool qcow2_probe(const uint8_t *bytes, size_t length); /* has it the magic? */

/* What an image stands on; format "" and path "": nothing. */
struct qcow2_backing {
    char path[1024];
    char format[16];
};

/* -EINVAL: no qcow2, damaged, or its backing has no format recorded; -ENOTSUP; read errors. */
int qcow2_read_backing(struct block *file, struct qcow2_backing *backing, struct error *err);

/* Opens, readonly. `file` and `backing` (or NULL) are the image's on success, else the caller's. */
int qcow2_open(struct block *file, struct block *backing, struct block **block, struct error *err);

/*
 * Writing one, from its beginning to its end: a version 3 image without backing. `file` stays the
 * caller's and is empty at first.
 */
struct qcow2_writer;
enum { QCOW2_CLUSTER = 65536 };
int qcow2_writer_create(struct block *file, uint64_t size, struct qcow2_writer **writer,
                        struct error *err);
/* The next cluster, whole; clusters in rising order, those left out read as zeroes. */
int qcow2_writer_add(struct qcow2_writer *writer, uint64_t index, const uint8_t *cluster);
/* Writes what is left; not flushed. */
int qcow2_writer_finish(struct qcow2_writer *writer);
void qcow2_writer_free(struct qcow2_writer *writer);

#endif
