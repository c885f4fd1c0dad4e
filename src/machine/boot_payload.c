/* Unpacks what a bzImage carries: the compressed vmlinux, as Linux's scripts/Makefile.lib packs it.
 */
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "machine/boot.h"

/* What is unpacked goes on in windows, so that little memory of the host's is touched for it. */
struct output {
    payload_taker *take;
    void *context;
    uint64_t total;
    size_t room;
    uint8_t *window;
};

enum { WINDOW = 256 << 10 };

static int damaged(const char *format, struct error *err) {
    return error_set(err, -ENOEXEC, "its %s-packed contents are damaged", format);
}

static int no_memory(struct error *err) {
    return error_set(err, -ENOMEM, "out of memory while unpacking the kernel");
}

static int output_open(struct output *out, size_t room, struct error *err) {
    out->room = room;
    out->window = malloc(room);
    return out->window != NULL ? 0 : no_memory(err);
}

/* The first so many bytes of the window. */
static int output_take(struct output *out, size_t length, struct error *err) {
    if (length > BOOT_UNPACKED_MAX - out->total)
        return error_set(err, -E2BIG, "its contents unpack to more than %llu MiB",
                         (unsigned long long)(BOOT_UNPACKED_MAX >> 20));
    out->total += length;
    return length > 0 ? out->take(out->context, out->window, length, err) : 0;
}

static int unpack_gzip(struct boot_bytes in, struct output *out, struct error *err) {
    z_stream stream = {.next_in = (Bytef *)in.data, .avail_in = (uInt)in.length};
    int result = output_open(out, WINDOW, err);
    if (result < 0)
        return result;
    if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK)
        return no_memory(err);
    int status = Z_OK;
    while (status == Z_OK && result == 0) {
        stream.next_out = out->window;
        stream.avail_out = (uInt)out->room;
        status = inflate(&stream, Z_NO_FLUSH);
        result = output_take(out, out->room - stream.avail_out, err);
    }
    inflateEnd(&stream);
    if (result < 0)
        return result;
    return status == Z_STREAM_END ? 0 : damaged("gzip", err);
}

static int unpack_xz(struct boot_bytes in, struct output *out, struct error *err) {
    lzma_stream stream = LZMA_STREAM_INIT;
    int result = output_open(out, WINDOW, err);
    if (result < 0)
        return result;
    if (lzma_stream_decoder(&stream, MIB(256), 0) != LZMA_OK)
        return no_memory(err);
    stream.next_in = in.data;
    stream.avail_in = in.length;
    lzma_ret status = LZMA_OK;
    while (status == LZMA_OK && result == 0) {
        stream.next_out = out->window;
        stream.avail_out = out->room;
        status = lzma_code(&stream, LZMA_RUN);
        result = output_take(out, out->room - stream.avail_out, err);
    }
    lzma_end(&stream);
    if (result < 0)
        return result;
    return status == LZMA_STREAM_END ? 0 : damaged("xz", err);
}

static int unpack_zstd(struct boot_bytes in, struct output *out, struct error *err) {
    int result = output_open(out, WINDOW, err);
    if (result < 0)
        return result;
    ZSTD_DStream *stream = ZSTD_createDStream();
    if (stream == NULL)
        return no_memory(err);
    ZSTD_inBuffer from = {in.data, in.length, 0};
    size_t status = 1;
    while (status != 0 && result == 0) {
        ZSTD_outBuffer to = {out->window, out->room, 0};
        size_t before = from.pos;
        status = ZSTD_decompressStream(stream, &to, &from);
        if (ZSTD_isError(status) || (status != 0 && to.pos == 0 && from.pos == before))
            result = damaged("zstd", err);
        else
            result = output_take(out, to.pos, err);
    }
    ZSTD_freeDStream(stream);
    return result;
}

/* The "legacy" frame of the lz4 tool: a magic number, then blocks of at most 8 MiB when unpacked.
 */
static int unpack_lz4(struct boot_bytes in, struct output *out, struct error *err) {
    enum { BLOCK = 8 << 20 };
    size_t at = 4;
    int result = output_open(out, BLOCK, err);
    /* What is left after the last block is the unpacked size that the kernel's build appends. */
    while (result == 0 && in.length - at > 4) {
        uint32_t packed = load_le32(in.data + at);
        at += 4;
        if (packed > in.length - at)
            return damaged("lz4", err);
        int unpacked = LZ4_decompress_safe((const char *)in.data + at, (char *)out->window,
                                           (int)packed, BLOCK);
        if (unpacked < 0)
            return damaged("lz4", err);
        result = output_take(out, (size_t)unpacked, err);
        at += packed;
    }
    return result;
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

int payload_unpack(struct boot_bytes payload, payload_taker *take, void *context,
                   const char **format, struct error *err) {
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        if (payload.length < 8 ||
            memcmp(payload.data, formats[i].magic, formats[i].magic_length) != 0)
            continue;
        struct output out = {.take = take, .context = context};
        int result = formats[i].unpack(payload, &out, err);
        free(out.window);
        *format = formats[i].name;
        return result;
    }
    return error_set(err, -ENOTSUP, "its contents are packed in a way that lodge cannot unpack");
}
