#include "machine/migration_pages.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "memory/memory.h"

enum { COUNT = 0, UNPACKED = 4, HEADS = 8, HEAD = 8, KIND_BITS = PAGE_SIZE - 1 };
enum { PAYLOAD_MAX = PAGES_MAX * PAGE_SIZE, LEVEL = 1 };
/* Pages that are written again and again, as they were sent last: by number, the newest wins. */
enum { CACHE_PAGES = 16384 };

struct cached {
    uint64_t gpa; /* + 1; 0: nothing */
    uint8_t bytes[PAGE_SIZE];
};

struct page_packer {
    ZSTD_CCtx *zstd; /* NULL: as it is */
    struct cached *cache;
    struct page_counts counts;
    uint64_t heads[PAGES_MAX];
    unsigned count;
    size_t length; /* of the payload */
    uint8_t *payload, *body;
};

/* ---- Packing ---- */

int page_packer_create(bool compress, struct page_packer **packer, struct error *err) {
    struct page_packer *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->payload = malloc(PAYLOAD_MAX);
    made->body = malloc(HEADS + PAGES_MAX * HEAD + PAYLOAD_MAX);
    made->zstd = compress ? ZSTD_createCCtx() : NULL;
    made->cache = compress ? calloc(CACHE_PAGES, sizeof *made->cache) : NULL;
    if (made->payload == NULL || made->body == NULL ||
        (compress && (made->zstd == NULL || made->cache == NULL))) {
        page_packer_destroy(made);
        return error_set(err, -ENOMEM, "out of memory");
    }
    *packer = made;
    return 0;
}

void page_packer_destroy(struct page_packer *packer) {
    if (packer == NULL)
        return;
    ZSTD_freeCCtx(packer->zstd);
    free(packer->cache);
    free(packer->payload);
    free(packer->body);
    free(packer);
}

/* page becomes its difference to `old`, which becomes the page. */
static void swap_for_delta(uint8_t *page, uint8_t *old) {
    for (size_t i = 0; i < PAGE_SIZE; i += sizeof(uint64_t)) {
        uint64_t now, before;
        memcpy(&now, page + i, sizeof now);
        memcpy(&before, old + i, sizeof before);
        memcpy(old + i, &now, sizeof now);
        now ^= before;
        memcpy(page + i, &now, sizeof now);
    }
}

/* What the page at `copy` is sent as; PAGE_KINDS: not at all. */
static enum page_kind choose(struct page_packer *packer, uint64_t gpa, uint8_t *copy, bool again) {
    struct cached *cached =
        packer->cache != NULL ? &packer->cache[(gpa >> PAGE_SHIFT) % CACHE_PAGES] : NULL;
    bool known = cached != NULL && cached->gpa == gpa + 1;
    if (known && memcmp(cached->bytes, copy, PAGE_SIZE) == 0)
        return PAGE_KINDS;
    if (bytes_are_zero(copy, PAGE_SIZE)) {
        if (known)
            cached->gpa = 0;
        return PAGE_ZERO;
    }
    if (known) {
        swap_for_delta(copy, cached->bytes);
        return PAGE_DELTA;
    }
    if (cached != NULL && again) {
        cached->gpa = gpa + 1;
        memcpy(cached->bytes, copy, PAGE_SIZE);
    }
    return PAGE_RAW;
}

bool page_packer_add(struct page_packer *packer, uint64_t gpa, const uint8_t *page, bool again) {
    uint8_t *copy = packer->payload + packer->length;
    memcpy(copy, page, PAGE_SIZE);
    enum page_kind kind = choose(packer, gpa, copy, again);
    packer->counts.unchanged += kind == PAGE_KINDS;
    packer->counts.zeros += kind == PAGE_ZERO;
    packer->counts.deltas += kind == PAGE_DELTA;
    if (kind == PAGE_KINDS)
        return false;
    packer->counts.pages++;
    packer->heads[packer->count++] = gpa | kind;
    packer->length += kind != PAGE_ZERO ? PAGE_SIZE : 0;
    return true;
}

unsigned page_packer_count(const struct page_packer *packer) {
    return packer->count;
}

void page_packer_count_all(const struct page_packer *packer, struct page_counts *counts) {
    *counts = packer->counts;
}

const uint8_t *page_packer_take(struct page_packer *packer, size_t *length) {
    uint8_t *body = packer->body, *rest = body + HEADS + (size_t)packer->count * HEAD;
    size_t packed = packer->length;
    store_le32(body + COUNT, packer->count);
    for (unsigned i = 0; i < packer->count; i++)
        store_le64(body + HEADS + (size_t)i * HEAD, packer->heads[i]);
    if (packer->zstd != NULL && packer->length > 0)
        packed = ZSTD_compressCCtx(packer->zstd, rest, packer->length, packer->payload,
                                   packer->length, LEVEL);
    bool pays = packed < packer->length; /* errors are larger than any length */
    store_le32(body + UNPACKED, pays ? (uint32_t)packer->length : 0);
    if (!pays)
        memcpy(rest, packer->payload, packed = packer->length);
    packer->counts.bytes += packer->length;
    packer->counts.packed += packed;
    packer->count = 0;
    packer->length = 0;
    *length = (size_t)(rest - body) + packed;
    return body;
}

/* ---- Unpacking ---- */

struct page_unpacker {
    ZSTD_DCtx *zstd;
    uint8_t payload[PAYLOAD_MAX];
};

int page_unpacker_create(struct page_unpacker **unpacker, struct error *err) {
    struct page_unpacker *made = malloc(sizeof *made);
    if (made != NULL)
        made->zstd = ZSTD_createDCtx();
    if (made == NULL || made->zstd == NULL) {
        free(made);
        return error_set(err, -ENOMEM, "out of memory");
    }
    *unpacker = made;
    return 0;
}

void page_unpacker_destroy(struct page_unpacker *unpacker) {
    if (unpacker == NULL)
        return;
    ZSTD_freeDCtx(unpacker->zstd);
    free(unpacker);
}

static int wrong(struct error *err) {
    return error_set(err, -EPROTO, "the memory that comes is not as lodge sends it");
}

/* Where the pages' bytes are, and how many; NULL: damaged. */
static const uint8_t *find_payload(struct page_unpacker *unpacker, const uint8_t *body,
                                   size_t length, size_t heads, size_t *found) {
    uint32_t unpacked = load_le32(body + UNPACKED);
    *found = unpacked != 0 ? unpacked : length - heads;
    if (unpacked == 0)
        return body + heads;
    if (unpacked > PAYLOAD_MAX ||
        ZSTD_decompressDCtx(unpacker->zstd, unpacker->payload, PAYLOAD_MAX, body + heads,
                            length - heads) != unpacked)
        return NULL;
    return unpacker->payload;
}

int page_unpack(struct page_unpacker *unpacker, const uint8_t *body, size_t length, page_sink *sink,
                void *context, struct error *err) {
    if (length < HEADS || load_le32(body + COUNT) > PAGES_MAX)
        return wrong(err);
    unsigned count = load_le32(body + COUNT);
    size_t heads = HEADS + (size_t)count * HEAD, left;
    if (length < heads)
        return wrong(err);
    const uint8_t *at = find_payload(unpacker, body, length, heads, &left);
    if (at == NULL)
        return wrong(err);
    for (unsigned i = 0; i < count; i++) {
        uint64_t head = load_le64(body + HEADS + (size_t)i * HEAD);
        uint64_t kind = head & KIND_BITS;
        size_t bytes = kind != PAGE_ZERO ? PAGE_SIZE : 0;
        if (kind >= PAGE_KINDS || left < bytes ||
            !sink(context, head - kind, (enum page_kind)kind, bytes > 0 ? at : NULL))
            return wrong(err);
        at += bytes;
        left -= bytes;
    }
    return left == 0 ? 0 : wrong(err);
}
