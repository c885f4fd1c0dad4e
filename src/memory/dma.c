/* DMA through a requester's context: translated piece by piece, or the identity. See dma.h. */
#include "memory/dma.h"

#include "memory/private.h"

/* One piece of an access: its guest-physical address, and *length lowered to what holds together.
 */
static int translate(const struct dma_context *dma, uint64_t iova, bool write, uint64_t *gpa,
                     size_t *length) {
    size_t asked = *length;
    int rc = dma->translate(dma->iommu, dma->requester, iova, write, gpa, length);
    if (rc < 0)
        return rc;
    return *length == 0 || *length > asked ? -EFAULT : 0;
}

/* ---- Either memory ---- */

static void *map_piece(const struct dma_context *dma, uint64_t gpa, size_t *length, bool write) {
    return dma->far != NULL ? dma->far->map(dma->far->context, gpa, length, write)
                            : memory_map(dma->memory, gpa, length, write);
}

static void piece_written(const struct dma_context *dma, uint64_t gpa, size_t length) {
    if (dma->far != NULL)
        dma->far->written(dma->far->context, gpa, length);
    else
        memory_unmap(dma->memory, gpa, length);
}

/* Copies to or from what was lent, pointer by pointer. */
static int copy_far(const struct dma_context *dma, uint64_t gpa, void *bytes, size_t length,
                    bool write) {
    uint8_t *at = bytes;
    while (length > 0) {
        size_t n = length;
        uint8_t *shared = map_piece(dma, gpa, &n, write);
        if (shared == NULL)
            return -EFAULT;
        if (write) {
            memory_copy_out(shared, at, n);
            piece_written(dma, gpa, n);
        } else {
            memory_copy_in(at, shared, n);
        }
        at += n;
        gpa += n;
        length -= n;
    }
    return 0;
}

typedef int dma_piece(const struct dma_context *dma, uint64_t gpa, uint8_t *bytes, size_t length);

static int for_pieces(const struct dma_context *dma, uint64_t iova, uint8_t *bytes, size_t length,
                      bool write, dma_piece *piece) {
    while (length > 0) {
        uint64_t gpa;
        size_t n = length;
        int rc = translate(dma, iova, write, &gpa, &n);
        if (rc == 0)
            rc = piece(dma, gpa, bytes, n);
        if (rc < 0)
            return rc;
        iova += n;
        length -= n;
        bytes = bytes == NULL ? NULL : bytes + n;
    }
    return 0;
}

static int read_piece(const struct dma_context *dma, uint64_t gpa, uint8_t *bytes, size_t length) {
    return dma->far != NULL ? copy_far(dma, gpa, bytes, length, false)
                            : memory_read(dma->memory, gpa, bytes, length);
}

static int write_piece(const struct dma_context *dma, uint64_t gpa, uint8_t *bytes, size_t length) {
    return dma->far != NULL ? copy_far(dma, gpa, bytes, length, true)
                            : memory_write(dma->memory, gpa, bytes, length);
}

static int check_writable(const struct dma_context *dma, uint64_t gpa, uint8_t *bytes,
                          size_t length) {
    (void)bytes;
    while (length > 0) {
        size_t n = length;
        if (map_piece(dma, gpa, &n, true) == NULL)
            return -EFAULT;
        gpa += n;
        length -= n;
    }
    return 0;
}

static int mark_piece(const struct dma_context *dma, uint64_t gpa, uint8_t *bytes, size_t length) {
    (void)bytes;
    piece_written(dma, gpa, length);
    return 0;
}

int dma_read(const struct dma_context *dma, uint64_t iova, void *to, size_t length) {
    if (dma->translate == NULL)
        return read_piece(dma, iova, to, length);
    return for_pieces(dma, iova, to, length, false, read_piece);
}

int dma_write(const struct dma_context *dma, uint64_t iova, const void *from, size_t length) {
    if (dma->translate == NULL)
        return write_piece(dma, iova, (uint8_t *)from, length);
    /* All or nothing: every piece is checked before the first is written. */
    int rc = for_pieces(dma, iova, NULL, length, true, check_writable);
    if (rc < 0)
        return rc;
    return for_pieces(dma, iova, (uint8_t *)from, length, true, write_piece);
}

void *dma_map(const struct dma_context *dma, uint64_t iova, size_t *length, bool write) {
    uint64_t gpa = iova;
    if (*length == 0)
        return NULL;
    if (dma->translate != NULL && translate(dma, iova, write, &gpa, length) < 0)
        return NULL;
    return map_piece(dma, gpa, length, write);
}

void dma_unmap(const struct dma_context *dma, uint64_t iova, size_t written) {
    if (dma->translate == NULL)
        piece_written(dma, iova, written);
    else
        for_pieces(dma, iova, NULL, written, true, mark_piece);
}

uint64_t dma_discard(const struct dma_context *dma, uint64_t iova, uint64_t length) {
    uint64_t done = 0;
    while (length > 0) {
        uint64_t gpa = iova;
        size_t n = length;
        if (dma->translate != NULL && translate(dma, iova, true, &gpa, &n) < 0)
            break;
        done += memory_discard(dma->memory, gpa, n);
        iova += n;
        length -= n;
    }
    return done;
}

/* ---- Memory that is away ---- */

bool dma_any_away(const struct dma_context *dma) {
    return dma->far == NULL && memory_any_away(dma->memory);
}

bool dma_await(const struct dma_context *dma, uint64_t iova, uint64_t length,
               struct memory_wait *wait) {
    bool armed = false;
    while (length > 0 && dma->far == NULL) {
        uint64_t gpa = iova;
        size_t n = length;
        if (dma->translate != NULL && translate(dma, iova, false, &gpa, &n) < 0)
            break;
        if (armed)
            memory_ask(dma->memory, gpa, n);
        else
            armed = memory_await(dma->memory, gpa, n, wait);
        iova += n;
        length -= n;
    }
    return armed;
}

void dma_await_cancel(const struct dma_context *dma, struct memory_wait *wait) {
    if (dma->far == NULL)
        memory_await_cancel(dma->memory, wait);
}
