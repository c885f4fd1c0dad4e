/*
 * The file, little-endian: "LODGEZST", the format (32 bits), how many chunks there are (32 bits),
 * each chunk's bytes (32 bits), the CRC-32C of all this (32 bits), the chunks: a zstd frame each.
 */
#include "machine/ram_packed.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/crc32c.h"

static const uint8_t magic[8] = {'L', 'O', 'D', 'G', 'E', 'Z', 'S', 'T'};
enum { AT_FORMAT = 8, AT_CHUNKS = 12, AT_LENGTHS = 16, SUM = 4, LEVEL = 1 };
enum { CHUNK_BYTES = RAM_PACKED_CHUNK * PAGE_SIZE };

/* ---- Pages of a chunk ---- */

struct chunk {
    uint64_t page[RAM_PACKED_CHUNK]; /* their numbers */
    unsigned count;
    uint64_t next; /* where the chunk behind it is looked for */
};

static void next_chunk(const struct memory_pages *pages, struct chunk *chunk) {
    uint64_t n = chunk->next;
    for (chunk->count = 0; n < pages->count && chunk->count < RAM_PACKED_CHUNK; n++)
        if (pages->own[n / 64] >> n % 64 & 1)
            chunk->page[chunk->count++] = n;
    chunk->next = n;
}

static uint32_t count_chunks(const struct memory_pages *pages) {
    uint64_t own = 0;
    for (uint64_t word = 0; word < (pages->count + 63) / 64; word++)
        own += (uint64_t)__builtin_popcountll(pages->own[word]);
    return (uint32_t)((own + RAM_PACKED_CHUNK - 1) / RAM_PACKED_CHUNK);
}

/* All of them, or an error: the file ends early, or the host cannot. */
static int read_bytes(int fd, uint8_t *to, size_t length, uint64_t at) {
    while (length > 0) {
        ssize_t got = pread(fd, to, length, (off_t)at);
        if (got == 0 || (got < 0 && errno != EINTR))
            return got == 0 ? -EIO : -errno;
        to += got > 0 ? got : 0;
        at += got > 0 ? (uint64_t)got : 0;
        length -= got > 0 ? (size_t)got : 0;
    }
    return 0;
}

static int write_bytes(int fd, const uint8_t *from, size_t length, uint64_t at) {
    while (length > 0) {
        ssize_t put = pwrite(fd, from, length, (off_t)at);
        if (put < 0 && errno != EINTR)
            return -errno;
        from += put > 0 ? put : 0;
        at += put > 0 ? (uint64_t)put : 0;
        length -= put > 0 ? (size_t)put : 0;
    }
    return 0;
}

static int read_pages(int ram, const struct chunk *chunk, uint8_t *bytes) {
    int result = 0;
    for (unsigned i = 0, run; i < chunk->count && result == 0; i += run) {
        for (run = 1; i + run < chunk->count && chunk->page[i + run] == chunk->page[i] + run;)
            run++; /* those beside each other at once */
        result = read_bytes(ram, bytes + (size_t)i * PAGE_SIZE, (size_t)run * PAGE_SIZE,
                            chunk->page[i] << PAGE_SHIFT);
    }
    return result;
}

/* Pages of zeros stay holes. */
static int write_pages(int ram, const struct chunk *chunk, const uint8_t *bytes) {
    int result = 0;
    for (unsigned i = 0; i < chunk->count && result == 0; i++) {
        const uint8_t *page = bytes + (size_t)i * PAGE_SIZE;
        if (!bytes_are_zero(page, PAGE_SIZE))
            result = write_bytes(ram, page, PAGE_SIZE, chunk->page[i] << PAGE_SHIFT);
    }
    return result;
}

/* ---- Both ways ---- */

struct packing {
    int ram, file;
    const struct memory_pages *pages;
    uint32_t chunks;
    uint8_t *head, *bytes, *packed; /* the file's beginning; a chunk, and that compressed */
    size_t head_size;
    struct chunk chunk;
};

static int begin(struct packing *packing) {
    packing->chunks = count_chunks(packing->pages);
    packing->head_size = AT_LENGTHS + (size_t)packing->chunks * 4 + SUM;
    packing->head = calloc(1, packing->head_size);
    packing->bytes = malloc(CHUNK_BYTES);
    packing->packed = malloc(ZSTD_compressBound(CHUNK_BYTES));
    bool good = packing->head != NULL && packing->bytes != NULL && packing->packed != NULL;
    return good ? 0 : -ENOMEM;
}

static void end(struct packing *packing) {
    free(packing->head);
    free(packing->bytes);
    free(packing->packed);
}

static uint8_t *length_of(const struct packing *packing, uint32_t n) {
    return packing->head + AT_LENGTHS + (size_t)n * 4;
}

static int pack_chunk(struct packing *packing, uint32_t n, uint64_t *at) {
    next_chunk(packing->pages, &packing->chunk);
    int result = read_pages(packing->ram, &packing->chunk, packing->bytes);
    if (result < 0)
        return result;
    size_t length = ZSTD_compress(packing->packed, ZSTD_compressBound(CHUNK_BYTES), packing->bytes,
                                  (size_t)packing->chunk.count * PAGE_SIZE, LEVEL);
    if (ZSTD_isError(length))
        return -ENOMEM;
    store_le32(length_of(packing, n), (uint32_t)length);
    result = write_bytes(packing->file, packing->packed, length, *at);
    *at += length;
    return result;
}

static int write_head(const struct packing *packing) {
    size_t summed = packing->head_size - SUM;
    memcpy(packing->head, magic, sizeof magic);
    store_le32(packing->head + AT_FORMAT, RAM_PACKED_FORMAT);
    store_le32(packing->head + AT_CHUNKS, packing->chunks);
    store_le32(packing->head + summed, crc32c(0, packing->head, summed));
    int result = write_bytes(packing->file, packing->head, packing->head_size, 0);
    return result == 0 && fsync(packing->file) < 0 ? -errno : result;
}

int ram_pack(int ram, const struct memory_pages *pages, int packed, memory_image_progress *progress,
             void *context, uint64_t *bytes) {
    struct packing packing = {.ram = ram, .file = packed, .pages = pages};
    int result = begin(&packing);
    uint64_t at = packing.head_size;
    for (uint32_t n = 0; n < packing.chunks && result == 0; n++) {
        result = pack_chunk(&packing, n, &at);
        if (result == 0 && progress != NULL && !progress(context, packing.chunk.next << PAGE_SHIFT))
            result = -ECANCELED;
    }
    if (result == 0)
        result = write_head(&packing);
    *bytes = at;
    end(&packing);
    return result;
}

/* Its lengths add up to the file's, so what is read is there. */
static int read_head(const struct packing *packing, struct error *err) {
    struct stat status;
    size_t summed = packing->head_size - SUM;
    uint64_t size = packing->head_size;
    if (fstat(packing->file, &status) < 0)
        return error_set_errno(err, -errno, "it cannot be read");
    if ((uint64_t)status.st_size < size ||
        read_bytes(packing->file, packing->head, packing->head_size, 0) < 0)
        return error_set(err, -EINVAL, "it ends early");
    if (memcmp(packing->head, magic, sizeof magic) != 0)
        return error_set(err, -EINVAL, "it is no compressed memory of lodge's");
    if (load_le32(packing->head + AT_FORMAT) != RAM_PACKED_FORMAT)
        return error_set(err, -ENOTSUP, "it has format %u; this lodge knows %d",
                         load_le32(packing->head + AT_FORMAT), RAM_PACKED_FORMAT);
    if (load_le32(packing->head + AT_CHUNKS) != packing->chunks ||
        crc32c(0, packing->head, summed) != load_le32(packing->head + summed))
        return error_set(err, -EINVAL, "it is damaged, or another map's");
    for (uint32_t n = 0; n < packing->chunks; n++)
        size += load_le32(length_of(packing, n));
    return size == (uint64_t)status.st_size
               ? 0
               : error_set(err, -EINVAL, "it has %lld bytes, not %llu", (long long)status.st_size,
                           (unsigned long long)size);
}

static int check_sums(const struct packing *packing, struct error *err) {
    for (unsigned i = 0; i < packing->chunk.count; i++) {
        uint64_t n = packing->chunk.page[i];
        if (crc32c(0, packing->bytes + (size_t)i * PAGE_SIZE, PAGE_SIZE) != packing->pages->sums[n])
            return error_set(err, -EINVAL, "it is damaged: its page %llu (at %#llx)",
                             (unsigned long long)n, (unsigned long long)n << PAGE_SHIFT);
    }
    return 0;
}

/* What does not become exactly the chunk's pages is refused; more does not fit. */
static int unpack_chunk(struct packing *packing, uint32_t n, uint64_t at, struct error *err) {
    uint32_t length = load_le32(length_of(packing, n));
    next_chunk(packing->pages, &packing->chunk);
    size_t wanted = (size_t)packing->chunk.count * PAGE_SIZE;
    if (length > ZSTD_compressBound(CHUNK_BYTES))
        return error_set(err, -EINVAL, "its chunk %u cannot be as long as it says", n);
    if (read_bytes(packing->file, packing->packed, length, at) < 0)
        return error_set(err, -EIO, "it cannot be read");
    if (ZSTD_decompress(packing->bytes, wanted, packing->packed, length) != wanted)
        return error_set(err, -EINVAL, "it is damaged: its chunk %u does not become %u pages", n,
                         packing->chunk.count);
    int result = check_sums(packing, err);
    if (result < 0 || packing->ram < 0)
        return result;
    result = write_pages(packing->ram, &packing->chunk, packing->bytes);
    return result < 0 ? error_set_errno(err, result, "there is no room to unpack it") : 0;
}

int ram_unpack(int packed, const struct memory_pages *pages, int ram, struct error *err) {
    struct packing packing = {.ram = ram, .file = packed, .pages = pages};
    int result = begin(&packing);
    uint64_t at = packing.head_size;
    if (result < 0)
        error_set(err, result, "out of memory");
    if (result == 0)
        result = read_head(&packing, err);
    if (result == 0 && ram >= 0 && ftruncate(ram, (off_t)(pages->count << PAGE_SHIFT)) < 0)
        result = error_set_errno(err, -errno, "there is no room to unpack it");
    for (uint32_t n = 0; n < packing.chunks && result == 0; n++) {
        result = unpack_chunk(&packing, n, at, err);
        at += load_le32(length_of(&packing, n));
    }
    end(&packing);
    return result;
}

/* ---- Chunk by chunk ---- */

struct ram_unpacker {
    struct packing packing;
    struct place {
        uint64_t page, at; /* its first page; where it is in the file */
    } * place;
};

static void find_places(struct ram_unpacker *unpacker) {
    struct packing *packing = &unpacker->packing;
    uint64_t at = packing->head_size;
    packing->chunk.next = 0;
    for (uint32_t n = 0; n < packing->chunks; n++) {
        next_chunk(packing->pages, &packing->chunk);
        unpacker->place[n] = (struct place){packing->chunk.page[0], at};
        at += load_le32(length_of(packing, n));
    }
}

int ram_unpacker_open(int packed, const struct memory_pages *pages, struct ram_unpacker **unpacker,
                      struct error *err) {
    struct ram_unpacker *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->packing = (struct packing){.ram = -1, .file = packed, .pages = pages};
    int result = begin(&made->packing);
    made->place = calloc((size_t)made->packing.chunks + 1, sizeof *made->place);
    if (result < 0 || made->place == NULL)
        result = error_set(err, -ENOMEM, "out of memory");
    if (result == 0)
        result = read_head(&made->packing, err);
    if (result < 0) {
        ram_unpacker_close(made);
        return result;
    }
    find_places(made);
    *unpacker = made;
    return 0;
}

void ram_unpacker_close(struct ram_unpacker *unpacker) {
    if (unpacker == NULL)
        return;
    end(&unpacker->packing);
    free(unpacker->place);
    free(unpacker);
}

int ram_unpacker_read(struct ram_unpacker *unpacker, uint64_t page, struct ram_chunk *chunk,
                      struct error *err) {
    struct packing *packing = &unpacker->packing;
    uint32_t low = 0, high = packing->chunks;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (unpacker->place[middle].page <= page)
            low = middle;
        else
            high = middle;
    }
    packing->chunk.next = unpacker->place[low].page;
    int result = unpack_chunk(packing, low, unpacker->place[low].at, err);
    *chunk = (struct ram_chunk){packing->chunk.page, packing->chunk.count, packing->bytes};
    return result;
}
