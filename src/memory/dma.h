/*
 * DMA: how a device reaches guest memory. Each requester (PCI function) has a
 * context; with an IOMMU in front of it the context translates, without one
 * it is the identity. Devices never go around it. Rules of memory.h's gate
 * hold: all or nothing, -EFAULT, copy once and check the copy.
 *
 * Any thread.
 */
#ifndef LODGE_MEMORY_DMA_H
#define LODGE_MEMORY_DMA_H

#include "memory/missing.h"

/* Memory that another process lends (vfio_user/lent.h). */
struct dma_far {
    /* As memory_map. The lender may take it back only when nobody uses the pointer any more. */
    void *(*map)(void *context, uint64_t address, size_t *length, bool write);
    /* Bytes have been written through the pointer. */
    void (*written)(void *context, uint64_t address, size_t length);
    void *context;
};

struct dma_context {
    struct memory *memory;
    const struct dma_far *far; /* NULL: `memory` is what the device reaches */
    uint16_t requester;        /* PCI bus/device/function, 0 for platform devices */
    /*
     * NULL: identity. Else translates iova for an access; lowers *length to
     * what one translation covers. 0, or -EFAULT after having recorded the fault.
     */
    int (*translate)(void *iommu, uint16_t requester, uint64_t iova, bool write, uint64_t *gpa,
                     size_t *length);
    void *iommu;
};

int dma_read(const struct dma_context *dma, uint64_t iova, void *to, size_t length);
int dma_write(const struct dma_context *dma, uint64_t iova, const void *from, size_t length);

/* As memory_map. dma_unmap takes the pointer's iova and what was written. */
void *dma_map(const struct dma_context *dma, uint64_t iova, size_t *length, bool write);
void dma_unmap(const struct dma_context *dma, uint64_t iova, size_t written);

/* As those of memory/missing.h; what does not translate, and what another process lends, is there.
 */
bool dma_any_away(const struct dma_context *dma);
bool dma_await(const struct dma_context *dma, uint64_t iova, uint64_t length,
               struct memory_wait *wait);
void dma_await_cancel(const struct dma_context *dma, struct memory_wait *wait);

/* As memory_discard, up to the first address that does not translate. Bytes given back. */
uint64_t dma_discard(const struct dma_context *dma, uint64_t iova, uint64_t length);

#endif
