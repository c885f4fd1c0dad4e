/* RAM that other processes map too: sealed memfds for the bytes and for the pages' flags. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory/private.h"

/* Whoever maps it relies on its size: it can neither shrink nor be unsealed. */
static int make(const char *name, uint64_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

int shared_map(struct ram_region *region) {
    region->fd = make("lodge-ram", region->size);
    if (region->fd < 0)
        return region->fd;
    void *at = mmap(region->host, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                    region->fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    madvise(region->host, region->size, MADV_HUGEPAGE); /* advice, both */
    madvise(region->host, region->size, MADV_DONTDUMP);
    return 0;
}

int shared_map_flags(struct ram_region *region) {
    uint64_t size = round_up(region->size >> PAGE_SHIFT, PAGE_SIZE);
    region->flags_fd = make("lodge-page-flags", size);
    if (region->flags_fd < 0)
        return region->flags_fd;
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, region->flags_fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    region->flags = at;
    return 0;
}

void shared_close(struct ram_region *region) {
    if (region->flags != NULL)
        munmap((void *)region->flags, round_up(region->size >> PAGE_SHIFT, PAGE_SIZE));
    if (region->flags_fd >= 0)
        close(region->flags_fd);
    if (region->fd >= 0)
        close(region->fd);
}
