/*
 * All of RAM in a file: one region behind the other, holes for pages of
 * zeros. Mapped again it is copied page by page as it is written to, so that
 * the file stays as it is and may be used by many.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "memory/private.h"

enum { CHUNK_PAGES = 1024 };

uint64_t memory_image_size(const struct memory *memory) {
    uint64_t size = 0;
    for (unsigned i = 0; i < memory->ram_count; i++)
        size += memory->ram[i].rom ? 0 : memory->ram[i].size;
    return size;
}

/* ---- Saving ---- */

struct saving {
    int fd, pagemap; /* pagemap -1: nobody tells what is there */
    memory_image_progress *progress;
    void *context;
    uint64_t offset, written; /* of the region in the file; bytes in all */
};

/* /proc/self/pagemap, Linux's Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_THERE (UINT64_C(3) << 62) /* in memory, or swapped out */

/* True for pages that may hold something. Those of a mapped image do before they are touched. */
static void find_there(const struct saving *saving, const struct ram_region *region,
                       const uint8_t *host, unsigned pages, bool *there) {
    uint64_t entries[CHUNK_PAGES];
    size_t length = pages * sizeof entries[0];
    off_t at = (off_t)(((uintptr_t)host >> PAGE_SHIFT) * sizeof entries[0]);
    bool known = saving->pagemap >= 0 && !region->from_image &&
                 pread(saving->pagemap, entries, length, at) == (ssize_t)length;
    for (unsigned i = 0; i < pages; i++)
        there[i] = !known || (entries[i] & PAGEMAP_THERE);
}

static bool is_zero(const uint8_t *page) {
    static const uint8_t zeros[PAGE_SIZE];
    return memcmp(page, zeros, PAGE_SIZE) == 0;
}

static int write_run(struct saving *saving, const uint8_t *from, uint64_t length, uint64_t offset) {
    while (length > 0) {
        ssize_t done = pwrite(saving->fd, from, length, (off_t)offset);
        if (done < 0 && errno != EINTR)
            return -errno;
        if (done <= 0)
            continue;
        from += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
        saving->written += (uint64_t)done;
    }
    return 0;
}

static int save_chunk(struct saving *saving, const struct ram_region *region, uint64_t at,
                      unsigned pages) {
    const uint8_t *host = region->host + at;
    bool there[CHUNK_PAGES];
    int result = 0;
    find_there(saving, region, host, pages, there);
    for (unsigned i = 0, run; i < pages && result == 0; i += run + 1) {
        for (run = 0;
             i + run < pages && there[i + run] && !is_zero(host + (uint64_t)(i + run) * PAGE_SIZE);)
            run++;
        uint64_t skip = (uint64_t)i * PAGE_SIZE;
        result =
            write_run(saving, host + skip, (uint64_t)run * PAGE_SIZE, saving->offset + at + skip);
    }
    return result;
}

static int save_region(struct saving *saving, const struct ram_region *region) {
    int result = 0;
    for (uint64_t at = 0; at < region->size && result == 0;) {
        uint64_t left = (region->size - at) >> PAGE_SHIFT;
        unsigned pages = left < CHUNK_PAGES ? (unsigned)left : CHUNK_PAGES;
        result = save_chunk(saving, region, at, pages);
        at += (uint64_t)pages * PAGE_SIZE;
        if (result == 0 && saving->progress != NULL &&
            !saving->progress(saving->context, saving->offset + at))
            result = -ECANCELED;
    }
    saving->offset += region->size;
    return result;
}

int memory_save_image(const struct memory *memory, int fd, memory_image_progress *progress,
                      void *context, uint64_t *written) {
    struct saving saving = {.fd = fd, .progress = progress, .context = context};
    if (ftruncate(fd, (off_t)memory_image_size(memory)) < 0)
        return -errno;
    saving.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int result = 0;
    for (unsigned i = 0; i < memory->ram_count && result == 0; i++)
        if (!memory->ram[i].rom)
            result = save_region(&saving, &memory->ram[i]);
    if (saving.pagemap >= 0)
        close(saving.pagemap);
    *written = saving.written;
    return result;
}

/* ---- Mapping ---- */

static int map_region(struct ram_region *region, int fd, uint64_t offset) {
    void *at = mmap(region->host, region->size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset);
    if (at == MAP_FAILED)
        return -errno;
    madvise(region->host, region->size, MADV_DONTDUMP);
    region->from_image = true;
    for (uint64_t page = 0; page < region->size >> PAGE_SHIFT; page++)
        atomic_fetch_or_explicit(&region->flags[page], MEM_PAGE_DIRTY, memory_order_relaxed);
    return 0;
}

int memory_map_image(struct memory *memory, int fd, struct error *err) {
    struct stat status;
    uint64_t offset = 0, size = memory_image_size(memory);
    int result = fstat(fd, &status) < 0 ? -errno : 0;
    if (result == 0 && (uint64_t)status.st_size != size)
        return error_set(err, -EINVAL, "it holds %llu bytes of memory, and %llu are wanted",
                         (unsigned long long)status.st_size, (unsigned long long)size);
    for (unsigned i = 0; i < memory->ram_count && result == 0; i++) {
        struct ram_region *region = &memory->ram[i];
        if (region->rom)
            continue;
        result = region->shared || region->huge_pages ? -ENOTSUP : map_region(region, fd, offset);
        offset += region->size;
    }
    return result == 0 ? 0 : error_set_errno(err, result, "saved memory cannot be mapped");
}
