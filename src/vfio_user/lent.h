/*
 * Memory that a client lends to a device server: VFIO_USER_DMA_MAP with a
 * file descriptor. A device reaches it as struct dma_far.
 *
 * The client keeps the file and may cut it short at any time. What is then
 * missing reads as zeroes (a handler of SIGBUS puts them there) until the
 * server has looked at lent_is_broken and sent the client away; system calls
 * on it fail with EFAULT, as I/O errors.
 *
 * Changes while the device is paused only (nvme_pause); accesses from any
 * thread.
 */
#ifndef LODGE_VFIO_USER_LENT_H
#define LODGE_VFIO_USER_LENT_H

#include "memory/dma.h"

struct lent;

/*
 * A page that the client watches (MEM_PAGE_CODE in its flags) was written: the client is to be told
 * of these bytes before the device goes on. Any thread, with the device's lock held.
 */
typedef void lent_watched(void *context, uint64_t address, const void *bytes, size_t length);

int lent_create(lent_watched *watched, void *context, struct lent **lent, struct error *err);
void lent_destroy(struct lent *lent);

struct lent_map {
    uint64_t address, size, offset; /* whole pages */
    bool readable, writable;
    int fd;       /* -1: cannot be mapped; known, but not reached */
    int flags_fd; /* of the pages, a byte each from the file's beginning; -1: none */
};
/* Descriptors stay the caller's. -EEXIST: overlaps another; -EINVAL: what cannot be, or the file is
 * too short or no file; -ENOSPC: VU_MAPS_MAX are there; -ENOMEM, … */
int lent_add(struct lent *lent, const struct lent_map *map);
/* -ENOENT: no map is exactly that. */
int lent_remove(struct lent *lent, uint64_t address, uint64_t size);
void lent_clear(struct lent *lent);

const struct dma_far *lent_far(const struct lent *lent);
bool lent_is_broken(const struct lent *lent);

/* Once in a process that serves: the handler of SIGBUS. Faults elsewhere end the process as ever.
 */
int lent_guard(struct error *err);

#endif
