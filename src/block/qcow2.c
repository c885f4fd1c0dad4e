/*
 * Reading qcow2. Requests run on worker threads, which may wait: for tables,
 * for data, for decompression.
 */
#include "block/qcow2.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/lock.h"
#include "base/log.h"
#include "block/sync.h"

enum {
    HEADER_V2 = 72,
    HEADER_V3 = 104,
    HEADER_READ = 4096,
    CLUSTER_BITS_MIN = 9,
    CLUSTER_BITS_MAX = 21,
    THREADS = 4,
    CACHED_TABLES = 64,
    EXTENSION_END = 0,
    BACKING_MAX = 1023,
};
static const uint32_t MAGIC = 0x514649fb, EXTENSION_BACKING_FORMAT = 0xe2792aca;
static const uint64_t OFFSET_MASK = UINT64_C(0x00fffffffffffe00);
static const uint64_t ENTRY_ZERO = 1, ENTRY_COMPRESSED = UINT64_C(1) << 62;
enum { FEATURE_DIRTY = 1, FEATURE_CORRUPT = 2, FEATURE_COMPRESSION = 8 };
/* An image's table of tables takes 32 MiB at most: 2 TiB at the smallest usual clusters. */
enum { L1_MAX = (32 << 20) / 8 };

struct header {
    uint32_t version, cluster_bits, l1_size, header_length;
    uint64_t size, l1_offset, incompatible;
    uint64_t backing_offset;
    uint32_t backing_length, crypt;
    uint8_t compression; /* 0: deflate, 1: zstd */
};

struct cached_table {
    uint64_t offset; /* 0: none */
    uint64_t used;
    uint64_t *entries;
};

struct qcow2 {
    struct block block;
    struct block *file, *backing;
    struct header header;
    uint64_t *l1;
    struct lock lock;
    struct cached_table tables[CACHED_TABLES];
    uint64_t turn;
    struct pool *pool;
    atomic_uint complained;
};

bool qcow2_probe(const uint8_t *bytes, size_t length) {
    return length >= 8 && load_be32(bytes) == MAGIC;
}

/* ---- The header ---- */

static int check_header(const struct header *h, const char *name, struct error *err) {
    if (h->version != 2 && h->version != 3)
        return error_set(err, -ENOTSUP, "%s: qcow2 version %u; this lodge reads 2 and 3", name,
                         h->version);
    if (h->crypt != 0)
        return error_set(err, -ENOTSUP, "%s is encrypted; decrypt it with qemu-img convert", name);
    if ((h->incompatible & FEATURE_CORRUPT) != 0)
        return error_set(err, -EINVAL, "%s is marked corrupt; see qemu-img check", name);
    if ((h->incompatible & ~(uint64_t)(FEATURE_DIRTY | FEATURE_COMPRESSION)) != 0)
        return error_set(err, -ENOTSUP,
                         "%s uses qcow2 features that this lodge does not read (0x%llx)", name,
                         (unsigned long long)h->incompatible);
    if (h->compression > 1)
        return error_set(err, -ENOTSUP, "%s: unknown compression %u", name, h->compression);
    if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
        return error_set(err, -EINVAL, "%s: clusters of 2^%u bytes", name, h->cluster_bits);
    uint64_t covered = (UINT64_C(1) << h->cluster_bits) / 8 << h->cluster_bits;
    if (h->size == 0 || h->size > INT64_MAX - covered || h->l1_size > L1_MAX ||
        h->l1_size < (h->size + covered - 1) / covered)
        return error_set(err, -EINVAL, "%s: its size does not fit its tables", name);
    return 0;
}

static int read_header(struct block *file, uint8_t bytes[HEADER_READ], struct header *h,
                       struct error *err) {
    uint64_t size = file->info.size;
    memset(bytes, 0, HEADER_READ);
    int result = block_read(file, 0, bytes, size < HEADER_READ ? (size_t)size : HEADER_READ);
    if (result != 0)
        return error_set_errno(err, result, "cannot read %s", file->info.name);
    if (!qcow2_probe(bytes, HEADER_READ))
        return error_set(err, -EINVAL, "%s is no qcow2 image", file->info.name);
    *h = (struct header){
        .version = load_be32(bytes + 4),
        .backing_offset = load_be64(bytes + 8),
        .backing_length = load_be32(bytes + 16),
        .cluster_bits = load_be32(bytes + 20),
        .size = load_be64(bytes + 24),
        .crypt = load_be32(bytes + 32),
        .l1_size = load_be32(bytes + 36),
        .l1_offset = load_be64(bytes + 40),
        .header_length = HEADER_V2,
    };
    if (h->version >= 3) {
        h->incompatible = load_be64(bytes + 72);
        h->header_length = load_be32(bytes + 100);
        h->compression = (h->incompatible & FEATURE_COMPRESSION) != 0 ? bytes[HEADER_V3] : 0;
        if (h->header_length < HEADER_V3 || h->header_length > HEADER_READ)
            return error_set(err, -EINVAL, "%s: its header has %u bytes", file->info.name,
                             h->header_length);
    }
    return check_header(h, file->info.name, err);
}

/* Extensions follow the header: a type, a length, that many bytes padded to 8. */
static void find_format(const uint8_t *bytes, const struct header *h,
                        struct qcow2_backing *backing) {
    size_t at = h->header_length;
    while (at + 8 <= HEADER_READ && load_be32(bytes + at) != EXTENSION_END) {
        uint32_t type = load_be32(bytes + at), length = load_be32(bytes + at + 4);
        if (length > HEADER_READ - at - 8)
            return;
        if (type == EXTENSION_BACKING_FORMAT && length < sizeof backing->format)
            memcpy(backing->format, bytes + at + 8, length);
        at += 8 + round_up(length, 8);
    }
}

int qcow2_read_backing(struct block *file, struct qcow2_backing *backing, struct error *err) {
    uint8_t bytes[HEADER_READ];
    struct header h = {0};
    memset(backing, 0, sizeof *backing);
    int result = read_header(file, bytes, &h, err);
    if (result != 0 || h.backing_offset == 0)
        return result;
    if (h.backing_length == 0 || h.backing_length > BACKING_MAX ||
        !range_within(h.backing_offset, h.backing_length, file->info.size))
        return error_set(err, -EINVAL, "%s: the name of its backing is damaged", file->info.name);
    find_format(bytes, &h, backing);
    result = block_read(file, h.backing_offset, backing->path, h.backing_length);
    if (result != 0)
        return error_set_errno(err, result, "cannot read %s", file->info.name);
    if (backing->format[0] == 0)
        return error_set(err, -EINVAL,
                         "%s does not say which format its backing has; record it with "
                         "qemu-img rebase -u -F FORMAT -b BACKING",
                         file->info.name);
    return 0;
}

/* ---- Tables ---- */

static uint64_t cluster_size(const struct qcow2 *q) {
    return UINT64_C(1) << q->header.cluster_bits;
}

/* The cached table at an offset; else the one to put it into, the longest unused. Lock held. */
static struct cached_table *find_table(struct qcow2 *q, uint64_t offset) {
    struct cached_table *oldest = &q->tables[0];
    for (unsigned i = 0; i < CACHED_TABLES; i++) {
        if (q->tables[i].offset == offset)
            return &q->tables[i];
        if (q->tables[i].used < oldest->used)
            oldest = &q->tables[i];
    }
    return oldest;
}

static int load_table(struct qcow2 *q, uint64_t offset, unsigned index, uint64_t *entry) {
    size_t size = (size_t)cluster_size(q);
    uint64_t *entries = malloc(size);
    if (entries == NULL)
        return -ENOMEM;
    int result = range_within(offset, size, round_up(q->file->info.size, size))
                     ? block_read(q->file, offset, entries, size)
                     : -EIO;
    if (result != 0) {
        free(entries);
        return result;
    }
    *entry = __builtin_bswap64(entries[index]);
    lock_take(&q->lock);
    struct cached_table *table = find_table(q, offset);
    free(table->entries);
    *table = (struct cached_table){.offset = offset, .used = ++q->turn, .entries = entries};
    lock_release(&q->lock);
    return 0;
}

/* What the image has for a cluster: an L2 entry, 0 for nothing. */
static int look(struct qcow2 *q, uint64_t cluster, uint64_t *entry) {
    uint64_t per_table = cluster_size(q) / 8;
    uint64_t offset = q->l1[cluster / per_table] & OFFSET_MASK;
    unsigned index = (unsigned)(cluster % per_table);
    *entry = 0;
    if (offset == 0)
        return 0;
    if (offset % cluster_size(q) != 0)
        return -EIO;
    lock_take(&q->lock);
    struct cached_table *table = find_table(q, offset);
    bool found = table->offset == offset;
    if (found) {
        *entry = __builtin_bswap64(table->entries[index]);
        table->used = ++q->turn;
    }
    lock_release(&q->lock);
    return found ? 0 : load_table(q, offset, index, entry);
}

/* ---- Compressed clusters ---- */

static int inflate_raw(const uint8_t *from, size_t length, uint8_t *to, size_t size) {
    z_stream stream = {.next_in = (uint8_t *)(uintptr_t)from,
                       .avail_in = (uInt)length,
                       .next_out = to,
                       .avail_out = (uInt)size};
    if (inflateInit2(&stream, -12) != Z_OK)
        return -ENOMEM;
    int result = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    /* The last sector's rest may follow the stream's end. */
    bool whole = (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0;
    return whole ? 0 : -EIO;
}

/* A frame, with the last sector's rest behind it. */
static int unzstd(const uint8_t *from, size_t length, uint8_t *to, size_t size) {
    ZSTD_DCtx *context = ZSTD_createDCtx();
    ZSTD_inBuffer in = {from, length, 0};
    ZSTD_outBuffer out = {to, size, 0};
    size_t result = 1;
    if (context == NULL)
        return -ENOMEM;
    while (out.pos < size && in.pos < length && !ZSTD_isError(result))
        result = ZSTD_decompressStream(context, &out, &in);
    ZSTD_freeDCtx(context);
    return !ZSTD_isError(result) && out.pos == size ? 0 : -EIO;
}

static int read_compressed(struct qcow2 *q, uint64_t entry, uint8_t *cluster) {
    unsigned offset_bits = 62 - (q->header.cluster_bits - 8);
    uint64_t offset = entry & ((UINT64_C(1) << offset_bits) - 1);
    uint64_t sectors = ((entry & (ENTRY_COMPRESSED - 1)) >> offset_bits) + 1;
    uint64_t length = sectors * BLOCK_SECTOR - offset % BLOCK_SECTOR;
    if (offset >= q->file->info.size)
        return -EIO;
    if (length > q->file->info.size - offset)
        length = q->file->info.size - offset;
    uint8_t *packed = malloc(length);
    if (packed == NULL)
        return -ENOMEM;
    int result = block_read(q->file, offset, packed, length);
    if (result == 0)
        result = (q->header.compression == 1 ? unzstd : inflate_raw)(packed, length, cluster,
                                                                     cluster_size(q));
    free(packed);
    return result;
}

/* ---- Requests ---- */

static int read_backing(struct qcow2 *q, uint64_t offset, uint8_t *to, size_t length) {
    uint64_t size = q->backing != NULL ? q->backing->info.size : 0;
    size_t shown = offset >= size ? 0 : length < size - offset ? length : (size_t)(size - offset);
    memset(to + shown, 0, length - shown);
    return shown > 0 ? block_read(q->backing, offset, to, shown) : 0;
}

/* Within one cluster; `scratch` has room for one. */
static int read_part(struct qcow2 *q, uint64_t offset, uint8_t *to, size_t length,
                     uint8_t **scratch) {
    uint64_t inside = offset % cluster_size(q), entry;
    int result = look(q, offset >> q->header.cluster_bits, &entry);
    if (result != 0)
        return result;
    if ((entry & ENTRY_COMPRESSED) != 0) {
        if (*scratch == NULL && (*scratch = malloc(cluster_size(q))) == NULL)
            return -ENOMEM;
        result = read_compressed(q, entry, *scratch);
        if (result == 0)
            memcpy(to, *scratch + inside, length);
        return result;
    }
    uint64_t data = entry & OFFSET_MASK;
    if ((entry & ENTRY_ZERO) != 0 && q->header.version >= 3) {
        memset(to, 0, length);
        return 0;
    }
    if (data == 0)
        return read_backing(q, offset, to, length);
    if (data % cluster_size(q) != 0 || data >= q->file->info.size)
        return -EIO;
    return block_read(q->file, data + inside, to, length);
}

static int perform(struct qcow2 *q, struct block_request *request) {
    uint64_t offset = request->offset;
    uint8_t *scratch = NULL;
    int result = 0;
    for (unsigned i = 0; i < request->vector_count && result == 0; i++) {
        uint8_t *to = request->vectors[i].iov_base;
        for (size_t left = request->vectors[i].iov_len; left > 0 && result == 0;) {
            uint64_t room = cluster_size(q) - offset % cluster_size(q);
            size_t length = left < room ? left : (size_t)room;
            result = read_part(q, offset, to, length, &scratch);
            offset += length;
            to += length;
            left -= length;
        }
    }
    free(scratch);
    return result;
}

static void work(void *context, struct pool_job *job) {
    struct qcow2 *q = context;
    struct block_request *request = container_of(job, struct block_request, job);
    request->result = perform(q, request);
    if (request->result != 0 && atomic_fetch_add(&q->complained, 1) < LOG_LIMIT_BURST)
        log_warning("disk %s: read at byte %llu failed: %s; the guest gets an I/O error",
                    q->block.info.name, (unsigned long long)request->offset,
                    strerror(-request->result));
    request->done(request);
}

static struct qcow2 *qcow2_of(struct block *block) {
    return container_of(block, struct qcow2, block);
}

static int qcow2_submit(struct block *block, struct block_request *request) {
    request->result = request->operation == BLOCK_FLUSH ? 0 : -EROFS;
    if (request->operation != BLOCK_READ)
        return 1;
    request->result = pool_submit(qcow2_of(block)->pool, &request->job);
    return request->result != 0;
}

static void qcow2_drain(struct block *block) {
    pool_drain(qcow2_of(block)->pool);
}

static void qcow2_free(struct qcow2 *q) {
    if (q->pool != NULL)
        pool_destroy(q->pool);
    for (unsigned i = 0; i < CACHED_TABLES; i++)
        free(q->tables[i].entries);
    free(q->l1);
    lock_destroy(&q->lock);
    free(q);
}

static void qcow2_close(struct block *block) {
    struct qcow2 *q = qcow2_of(block);
    qcow2_drain(block);
    block_close(q->backing);
    block_close(q->file);
    qcow2_free(q);
}

static const struct block_class qcow2_class = {
    .name = "qcow2", .submit = qcow2_submit, .drain = qcow2_drain, .close = qcow2_close};

/* ---- Opening ---- */

static int load_l1(struct qcow2 *q, struct error *err) {
    size_t size = q->header.l1_size * sizeof *q->l1;
    if (!range_within(q->header.l1_offset, size, q->file->info.size))
        return error_set(err, -EINVAL, "%s: its tables lie behind its end", q->file->info.name);
    q->l1 = malloc(size);
    if (q->l1 == NULL)
        return error_set(err, -ENOMEM, "no memory for the tables of %s", q->file->info.name);
    int result = block_read(q->file, q->header.l1_offset, q->l1, size);
    for (uint32_t i = 0; i < q->header.l1_size; i++)
        q->l1[i] = __builtin_bswap64(q->l1[i]);
    return result == 0 ? 0 : error_set_errno(err, result, "cannot read %s", q->file->info.name);
}

int qcow2_open(struct block *file, struct block *backing, struct block **block, struct error *err) {
    uint8_t bytes[HEADER_READ];
    struct qcow2 *q = calloc(1, sizeof *q);
    if (q == NULL)
        return error_set(err, -ENOMEM, "no memory for disk %s", file->info.name);
    lock_init(&q->lock, LOCK_BACKEND, "qcow2");
    q->file = file;
    q->backing = backing;
    int result = read_header(file, bytes, &q->header, err);
    if (result == 0)
        result = load_l1(q, err);
    if (result == 0)
        result = pool_create(THREAD_IO, THREADS, work, q, &q->pool, err);
    if (result != 0) {
        qcow2_free(q);
        return result;
    }
    q->block.class = &qcow2_class;
    q->block.info = (struct block_info){.size = round_up(q->header.size, BLOCK_SECTOR),
                                        .logical_block = BLOCK_SECTOR,
                                        .physical_block = 4096,
                                        .readonly = true,
                                        .name = file->info.name};
    *block = &q->block;
    return 0;
}
