/* Unpacks what a bzImage carries: the compressed vmlinux, as Linux's scripts/Makefile.lib packs it.
 */
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "machine/boot.h"

struct output {
    uint8_t *data;
    size_t length, capacity;
};

static int damaged(const char *format, struct error *err) {
    return error_set(err, -ENOEXEC, "its %s-packed contents are damaged", format);
}

/* Makes room for at least `more` bytes after length. */
static int output_grow(struct output *out, size_t more, struct error *err) {
    if (more <= out->capacity - out->length)
        return 0;
    size_t wanted = out->capacity * 2;
    if (wanted < out->length + more)
        wanted = out->length + more;
    if (wanted > BOOT_UNPACKED_MAX)
        wanted = BOOT_UNPACKED_MAX;
    if (more > wanted - out->length)
        return error_set(err, -E2BIG, "its contents unpack to more than %llu MiB",
                         (unsigned long long)(BOOT_UNPACKED_MAX >> 20));
    uint8_t *data = realloc(out->data, wanted);
    if (data == NULL)
        return error_set(err, -ENOMEM, "out of memory while unpacking the kernel");
    out->data = data;
    out->capacity = wanted;
    return 0;
}

enum { CHUNK = 1 << 20 };

static int unpack_gzip(struct boot_bytes in, struct output *out, struct error *err) {
    z_stream stream = {.next_in = (Bytef *)in.data, .avail_in = (uInt)in.length};
    if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK)
        return error_set(err, -ENOMEM, "out of memory while unpacking the kernel");
    int status = Z_OK, result = 0;
    while (status == Z_OK && (result = output_grow(out, CHUNK, err)) == 0) {
        size_t room = out->capacity - out->length;
        stream.next_out = out->data + out->length;
        stream.avail_out = (uInt)room;
        status = inflate(&stream, Z_NO_FLUSH);
        out->length += room - stream.avail_out;
    }
    inflateEnd(&stream);
    if (result < 0)
        return result;
    return status == Z_STREAM_END ? 0 : damaged("gzip", err);
}

static int unpack_xz(struct boot_bytes in, struct output *out, struct error *err) {
    lzma_stream stream = LZMA_STREAM_INIT;
    if (lzma_stream_decoder(&stream, MIB(256), 0) != LZMA_OK)
        return error_set(err, -ENOMEM, "out of memory while unpacking the kernel");
    stream.next_in = in.data;
    stream.avail_in = in.length;
    lzma_ret status = LZMA_OK;
    int result = 0;
    while (status == LZMA_OK && (result = output_grow(out, CHUNK, err)) == 0) {
        stream.next_out = out->data + out->length;
        stream.avail_out = out->capacity - out->length;
        status = lzma_code(&stream, LZMA_RUN);
        out->length = (size_t)(stream.next_out - out->data);
    }
    lzma_end(&stream);
    if (result < 0)
        return result;
    return status == LZMA_STREAM_END ? 0 : damaged("xz", err);
}

static int unpack_zstd(struct boot_bytes in, struct output *out, struct error *err) {
    ZSTD_DStream *stream = ZSTD_createDStream();
    if (stream == NULL)
        return error_set(err, -ENOMEM, "out of memory while unpacking the kernel");
    ZSTD_inBuffer from = {in.data, in.length, 0};
    size_t status = 1;
    int result = 0;
    while (status != 0 && (result = output_grow(out, CHUNK, err)) == 0) {
        ZSTD_outBuffer to = {out->data, out->capacity, out->length};
        size_t before = from.pos;
        status = ZSTD_decompressStream(stream, &to, &from);
        bool moved = to.pos != out->length || from.pos != before;
        out->length = to.pos;
        if (ZSTD_isError(status) || (status != 0 && !moved))
            result = damaged("zstd", err);
        if (result < 0)
            break;
    }
    ZSTD_freeDStream(stream);
    return result;
}

/* The "legacy" frame of the lz4 tool: a magic number, then blocks of at most 8 MiB when unpacked.
 */
static int unpack_lz4(struct boot_bytes in, struct output *out, struct error *err) {
    enum { BLOCK = 8 << 20 };
    size_t at = 4;
    /* What is left after the last block is the unpacked size that the kernel's build appends. */
    while (in.length - at > 4) {
        uint32_t packed = load_le32(in.data + at);
        at += 4;
        if (packed > in.length - at)
            return damaged("lz4", err);
        int result = output_grow(out, BLOCK, err);
        if (result < 0)
            return result;
        int unpacked = LZ4_decompress_safe((const char *)in.data + at,
                                           (char *)out->data + out->length, (int)packed, BLOCK);
        if (unpacked < 0)
            return damaged("lz4", err);
        out->length += (size_t)unpacked;
        at += packed;
    }
    return 0;
}

static const struct {
    const char *name;
    uint8_t magic_length;
    uint8_t magic[6];
    int (*unpack)(struct boot_bytes in, struct output *out, struct error *err);
} formats[] = {
    {"gzip", 2, {0x1f, 0x8b}, unpack_gzip},
    {"xz", 6, {0xfd, '7', 'z', 'X', 'Z', 0}, unpack_xz},
    {"zstd", 4, {0x28, 0xb5, 0x2f, 0xfd}, unpack_zstd},
    {"lz4", 4, {0x02, 0x21, 0x4c, 0x18}, unpack_lz4},
};

int payload_unpack(struct boot_bytes payload, uint8_t **data, size_t *length, const char **format,
                   struct error *err) {
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        if (payload.length < 8 ||
            memcmp(payload.data, formats[i].magic, formats[i].magic_length) != 0)
            continue;
        struct output out = {0};
        int result = formats[i].unpack(payload, &out, err);
        if (result < 0) {
            free(out.data);
            return result;
        }
        *data = out.data;
        *length = out.length;
        *format = formats[i].name;
        return 0;
    }
    return error_set(err, -ENOTSUP, "its contents are packed in a way that lodge cannot unpack");
}
