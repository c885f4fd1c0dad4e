/*
 * Stretches of disks and files in a migration's frames (migration_stream.h), one each.
 *
 * A body: which disk or file (32 bits), enum extent_kind (32), offset and length (64 each); then,
 * of data, `length` bytes or what zstd has made of them, which is shorter. Little-endian.
 */
#ifndef LODGE_MACHINE_MIGRATION_EXTENTS_H
#define LODGE_MACHINE_MIGRATION_EXTENTS_H

#include "machine/migration_stream.h"

enum { EXTENT_DATA_MAX = 256 << 10, EXTENT_GRAIN = 4096 };

enum extent_kind { EXTENT_DATA, EXTENT_ZEROES, EXTENT_KINDS };

struct extent {
    unsigned which;
    enum extent_kind kind;
    uint64_t offset, length;
    const uint8_t *bytes; /* of data */
};

/* One thread's. */
struct extents;
/* compress: what is sent is packed where that pays. */
int extents_create(bool compress, struct extents **extents, struct error *err);
void extents_destroy(struct extents *extents); /* NULL is fine */

int extent_send(struct extents *extents, struct stream *stream, enum stream_type type,
                const struct extent *extent, struct error *err);
/*
 * Data as extents of data and of zeroes, by EXTENT_GRAIN; without `zeroes` those are left out: the
 * target has them already. sent: bytes of data are added.
 */
int extent_send_split(struct extents *extents, struct stream *stream, enum stream_type type,
                      const struct extent *data, bool zeroes, uint64_t *sent, struct error *err);
/* From the frame received last, which is not trusted; valid until the next. -EPROTO. */
int extent_read(struct extents *extents, const struct stream *stream, struct extent *extent,
                struct error *err);

#endif
