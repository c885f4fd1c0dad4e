/* DMA through a requester's context: translated piece by piece, or the identity. See dma.h. */
#include "memory/dma.h"

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

typedef int dma_piece(struct memory *memory, uint64_t gpa, uint8_t *bytes, size_t length);

static int for_pieces(const struct dma_context *dma, uint64_t iova, uint8_t *bytes, size_t length,
                      bool write, dma_piece *piece) {
    while (length > 0) {
        uint64_t gpa;
        size_t n = length;
        int rc = translate(dma, iova, write, &gpa, &n);
        if (rc == 0)
            rc = piece(dma->memory, gpa, bytes, n);
        if (rc < 0)
            return rc;
        iova += n;
        length -= n;
        bytes = bytes == NULL ? NULL : bytes + n;
    }
    return 0;
}

static int read_piece(struct memory *memory, uint64_t gpa, uint8_t *bytes, size_t length) {
    return memory_read(memory, gpa, bytes, length);
}

static int write_piece(struct memory *memory, uint64_t gpa, uint8_t *bytes, size_t length) {
    return memory_write(memory, gpa, bytes, length);
}

static int check_writable(struct memory *memory, uint64_t gpa, uint8_t *bytes, size_t length) {
    (void)bytes;
    while (length > 0) {
        size_t n = length;
        if (memory_map(memory, gpa, &n, true) == NULL)
            return -EFAULT;
        gpa += n;
        length -= n;
    }
    return 0;
}

static int mark_piece(struct memory *memory, uint64_t gpa, uint8_t *bytes, size_t length) {
    (void)bytes;
    memory_unmap(memory, gpa, length);
    return 0;
}

int dma_read(const struct dma_context *dma, uint64_t iova, void *to, size_t length) {
    if (dma->translate == NULL)
        return memory_read(dma->memory, iova, to, length);
    return for_pieces(dma, iova, to, length, false, read_piece);
}

int dma_write(const struct dma_context *dma, uint64_t iova, const void *from, size_t length) {
    if (dma->translate == NULL)
        return memory_write(dma->memory, iova, from, length);
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
    return memory_map(dma->memory, gpa, length, write);
}

void dma_unmap(const struct dma_context *dma, uint64_t iova, size_t written) {
    if (dma->translate == NULL)
        memory_unmap(dma->memory, iova, written);
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
