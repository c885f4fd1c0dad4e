#include "machine/migration_extents.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"

enum { WHICH = 0, KIND = 4, OFFSET = 8, LENGTH = 16, HEAD = 24, LEVEL = 1 };

struct extents {
    ZSTD_CCtx *packer; /* NULL: as it is */
    ZSTD_DCtx *unpacker;
    uint8_t body[HEAD + EXTENT_DATA_MAX];
};

int extents_create(bool compress, struct extents **extents, struct error *err) {
    struct extents *made = calloc(1, sizeof *made);
    if (made != NULL) {
        made->packer = compress ? ZSTD_createCCtx() : NULL;
        made->unpacker = ZSTD_createDCtx();
    }
    if (made == NULL || made->unpacker == NULL || (compress && made->packer == NULL)) {
        extents_destroy(made);
        return error_set(err, -ENOMEM, "out of memory");
    }
    *extents = made;
    return 0;
}

void extents_destroy(struct extents *extents) {
    if (extents == NULL)
        return;
    ZSTD_freeCCtx(extents->packer);
    ZSTD_freeDCtx(extents->unpacker);
    free(extents);
}

/* ---- Sending ---- */

/* How many bytes they are in the body. */
static size_t pack(struct extents *extents, const struct extent *extent) {
    size_t length = (size_t)extent->length, packed = length;
    uint8_t *to = extents->body + HEAD;
    if (extents->packer != NULL) /* errors are larger than any length */
        packed = ZSTD_compressCCtx(extents->packer, to, length - 1, extent->bytes, length, LEVEL);
    if (packed < length)
        return packed;
    memcpy(to, extent->bytes, length);
    return length;
}

int extent_send(struct extents *extents, struct stream *stream, enum stream_type type,
                const struct extent *extent, struct error *err) {
    store_le32(extents->body + WHICH, extent->which);
    store_le32(extents->body + KIND, extent->kind);
    store_le64(extents->body + OFFSET, extent->offset);
    store_le64(extents->body + LENGTH, extent->length);
    size_t packed = extent->kind == EXTENT_DATA ? pack(extents, extent) : 0;
    return stream_send(stream, type, extents->body, HEAD + packed, err);
}

static size_t grain(const struct extent *data, size_t at) {
    return data->length - at < EXTENT_GRAIN ? (size_t)data->length - at : EXTENT_GRAIN;
}

int extent_send_split(struct extents *extents, struct stream *stream, enum stream_type type,
                      const struct extent *data, bool zeroes, uint64_t *sent, struct error *err) {
    int result = 0;
    for (size_t at = 0, end; at < data->length && result == 0; at = end) {
        bool zero = bytes_are_zero(data->bytes + at, grain(data, at));
        for (end = at + grain(data, at);
             end < data->length && bytes_are_zero(data->bytes + end, grain(data, end)) == zero;)
            end += grain(data, end);
        struct extent part = {.which = data->which,
                              .kind = zero ? EXTENT_ZEROES : EXTENT_DATA,
                              .offset = data->offset + at,
                              .length = end - at,
                              .bytes = data->bytes + at};
        if (!zero || zeroes)
            result = extent_send(extents, stream, type, &part, err);
        *sent += zero ? 0 : part.length;
    }
    return result;
}

/* ---- Receiving ---- */

static int wrong(struct error *err) {
    return error_set(err, -EPROTO, "what comes of the disks is not as lodge sends it");
}

int extent_read(struct extents *extents, const struct stream *stream, struct extent *extent,
                struct error *err) {
    if (stream->length < HEAD)
        return wrong(err);
    const uint8_t *bytes = stream->body + HEAD;
    size_t packed = stream->length - HEAD;
    uint32_t kind = load_le32(stream->body + KIND);
    *extent = (struct extent){.which = load_le32(stream->body + WHICH),
                              .kind = (enum extent_kind)kind,
                              .offset = load_le64(stream->body + OFFSET),
                              .length = load_le64(stream->body + LENGTH),
                              .bytes = bytes};
    if (extent->length == 0 || extent->offset + extent->length < extent->offset)
        return wrong(err);
    if (kind == EXTENT_ZEROES)
        return packed == 0 ? 0 : wrong(err);
    if (kind != EXTENT_DATA || extent->length > EXTENT_DATA_MAX || packed > extent->length)
        return wrong(err);
    if (packed == extent->length)
        return 0;
    if (ZSTD_decompressDCtx(extents->unpacker, extents->body, EXTENT_DATA_MAX, bytes, packed) !=
        extent->length)
        return wrong(err);
    extent->bytes = extents->body;
    return 0;
}
