#include "vfio_user/lent.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "vfio_user/wire.h"

/* ---- Guarded mappings: what the handler knows ---- */

enum { GUARDED_MAX = 1024 };

static struct guarded {
    _Atomic(uintptr_t) start;
    _Atomic(size_t) size; /* 0: free; set last */
    _Atomic(bool) broken, taken;
} guarded[GUARDED_MAX];

/* A page of a file that has become shorter: zeroes from here to the mapping's end. */
static void on_sigbus(int signal, siginfo_t *info, void *context) {
    uintptr_t address = (uintptr_t)info->si_addr;
    (void)context;
    for (unsigned i = 0; i < GUARDED_MAX; i++) {
        struct guarded *g = &guarded[i];
        size_t size = atomic_load(&g->size);
        uintptr_t start = atomic_load(&g->start);
        if (size == 0 || address - start >= size)
            continue;
        uintptr_t page = address & ~(uintptr_t)(PAGE_SIZE - 1);
        atomic_store(&g->broken, true);
        if (mmap((void *)page, start + size - page, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED)
            return;
    }
    struct sigaction ending = {.sa_handler = SIG_DFL};
    sigaction(signal, &ending, NULL);
}

int lent_guard(struct error *err) {
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGBUS, &action, NULL) < 0)
        return error_set_errno(err, -errno, "cannot handle SIGBUS");
    return 0;
}

static struct guarded *guard(void *start, size_t size) {
    for (unsigned i = 0; i < GUARDED_MAX; i++) {
        bool taken = false;
        if (!atomic_compare_exchange_strong(&guarded[i].taken, &taken, true))
            continue;
        atomic_store(&guarded[i].broken, false);
        atomic_store(&guarded[i].start, (uintptr_t)start);
        atomic_store(&guarded[i].size, size);
        return &guarded[i];
    }
    return NULL;
}

static void unguard(struct guarded *g) {
    atomic_store(&g->size, 0);
    atomic_store(&g->taken, false);
}

/* ---- Mappings ---- */

struct piece {
    uint8_t *bytes;
    size_t size;
    struct guarded *guard;
};

static void unmap(struct piece *piece) {
    if (piece->bytes == NULL)
        return;
    unguard(piece->guard);
    munmap(piece->bytes, piece->size);
    *piece = (struct piece){0};
}

static int map(int fd, uint64_t offset, uint64_t size, struct piece *piece) {
    struct stat file;
    if (fstat(fd, &file) < 0 || !S_ISREG(file.st_mode) || file.st_size < 0 ||
        !range_within(offset, size, (uint64_t)file.st_size))
        return -EINVAL;
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (bytes == MAP_FAILED)
        return -errno;
    madvise(bytes, size, MADV_DONTDUMP);
    *piece = (struct piece){bytes, size, guard(bytes, size)};
    if (piece->guard != NULL)
        return 0;
    munmap(bytes, size);
    *piece = (struct piece){0};
    return -ENOSPC;
}

struct region {
    uint64_t address, size;
    bool readable, writable;
    struct piece bytes, flags; /* of no size: not mapped */
};

struct lent {
    struct region regions[VU_MAPS_MAX];
    unsigned count;
    lent_watched *watched;
    void *watched_context;
    struct dma_far far;
};

static const struct region *find(const struct lent *lent, uint64_t address) {
    for (unsigned i = 0; i < lent->count; i++) {
        const struct region *region = &lent->regions[i];
        if (address - region->address < region->size)
            return region;
    }
    return NULL;
}

/* As memory.c's reach: what the client keeps from devices ends it. */
static size_t reach(const struct region *region, uint64_t offset, size_t length, bool write) {
    uint8_t refused = write ? MEM_PAGE_NO_WRITE : MEM_PAGE_NO_ACCESS;
    const _Atomic(uint8_t) *flags = (const _Atomic(uint8_t) *)region->flags.bytes;
    size_t done = 0;
    while (flags != NULL && done < length &&
           !(atomic_load_explicit(&flags[(offset + done) >> PAGE_SHIFT], memory_order_relaxed) &
             refused))
        done += PAGE_SIZE - ((offset + done) & (PAGE_SIZE - 1));
    return flags == NULL || done > length ? length : done;
}

static void *far_map(void *context, uint64_t address, size_t *length, bool write) {
    const struct region *region = find(context, address);
    if (region == NULL || region->bytes.bytes == NULL ||
        !(write ? region->writable : region->readable))
        return NULL;
    uint64_t offset = address - region->address, left = region->size - offset;
    if (*length > left)
        *length = (size_t)left;
    *length = reach(region, offset, *length, write);
    return *length > 0 ? region->bytes.bytes + offset : NULL;
}

/* As memory.c's mark_written: either the client sees the new bytes or its flag is seen here. */
static void far_written(void *context, uint64_t address, size_t length) {
    struct lent *lent = context;
    const struct region *region = find(lent, address);
    if (region == NULL || region->flags.bytes == NULL ||
        !range_within(address - region->address, length, region->size))
        return;
    while (length > 0) {
        uint64_t offset = address - region->address;
        size_t n = PAGE_SIZE - (offset & (PAGE_SIZE - 1));
        n = n < length ? n : length;
        _Atomic(uint8_t) *flags = (_Atomic(uint8_t) *)region->flags.bytes + (offset >> PAGE_SHIFT);
        if (atomic_fetch_or(flags, MEM_PAGE_DIRTY) & MEM_PAGE_CODE)
            lent->watched(lent->watched_context, address, region->bytes.bytes + offset, n);
        address += n;
        length -= n;
    }
}

int lent_create(lent_watched *watched, void *context, struct lent **lent, struct error *err) {
    struct lent *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "no memory for a client's mappings");
    made->watched = watched;
    made->watched_context = context;
    made->far = (struct dma_far){far_map, far_written, made};
    *lent = made;
    return 0;
}

void lent_destroy(struct lent *lent) {
    if (lent == NULL)
        return;
    lent_clear(lent);
    free(lent);
}

static bool overlaps_any(const struct lent *lent, const struct lent_map *map) {
    for (unsigned i = 0; i < lent->count; i++) {
        const struct region *region = &lent->regions[i];
        if (map->address - region->address < region->size ||
            region->address - map->address < map->size)
            return true;
    }
    return false;
}

int lent_add(struct lent *lent, const struct lent_map *asked) {
    struct region *region = &lent->regions[lent->count];
    if (asked->size == 0 || ((asked->address | asked->size | asked->offset) & (PAGE_SIZE - 1)) ||
        asked->size - 1 > UINT64_MAX - asked->address)
        return -EINVAL;
    if (overlaps_any(lent, asked))
        return -EEXIST;
    if (lent->count == VU_MAPS_MAX)
        return -ENOSPC;
    *region = (struct region){.address = asked->address,
                              .size = asked->size,
                              .readable = asked->readable,
                              .writable = asked->writable};
    int rc = 0;
    if (asked->fd >= 0)
        rc = map(asked->fd, asked->offset, asked->size, &region->bytes);
    if (rc == 0 && asked->fd >= 0 && asked->flags_fd >= 0)
        rc =
            map(asked->flags_fd, 0, round_up(asked->size >> PAGE_SHIFT, PAGE_SIZE), &region->flags);
    if (rc < 0)
        unmap(&region->bytes);
    else
        lent->count++;
    return rc;
}

static void remove_at(struct lent *lent, unsigned i) {
    unmap(&lent->regions[i].bytes);
    unmap(&lent->regions[i].flags);
    lent->regions[i] = lent->regions[--lent->count];
}

int lent_remove(struct lent *lent, uint64_t address, uint64_t size) {
    for (unsigned i = 0; i < lent->count; i++) {
        if (lent->regions[i].address != address || lent->regions[i].size != size)
            continue;
        remove_at(lent, i);
        return 0;
    }
    return -ENOENT;
}

void lent_clear(struct lent *lent) {
    while (lent->count > 0)
        remove_at(lent, lent->count - 1);
}

const struct dma_far *lent_far(const struct lent *lent) {
    return &lent->far;
}

bool lent_is_broken(const struct lent *lent) {
    for (unsigned i = 0; i < lent->count; i++) {
        const struct region *region = &lent->regions[i];
        if ((region->bytes.guard != NULL && atomic_load(&region->bytes.guard->broken)) ||
            (region->flags.guard != NULL && atomic_load(&region->flags.guard->broken)))
            return true;
    }
    return false;
}
