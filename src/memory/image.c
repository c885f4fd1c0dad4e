/*
 * RAM in files: one region behind the other, holes for pages of zeros. A file
 * may hold some pages only, and others those that it does not. Mapped again
 * they are copied page by page as they are written to, so that the files stay
 * as they are and may be used by many.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "memory/ahead.h"
#include "memory/missing.h"
#include "memory/private.h"

/* A process has some 65,000 mappings, and each piece may make two of one. */
enum { CHUNK_PAGES = 1024, PIECES_MAX = 16384 };

uint64_t memory_image_size(const struct memory *memory) {
    uint64_t size = 0;
    for (unsigned i = 0; i < memory->ram_count; i++)
        size += memory->ram[i].rom ? 0 : memory->ram[i].size;
    return size;
}

static bool has_bit(const uint64_t *bits, uint64_t n) {
    return bits[n / 64] >> n % 64 & 1;
}

int memory_pages_init(struct memory_pages *pages, uint64_t count) {
    *pages = (struct memory_pages){
        .count = count,
        .own = calloc((count + 63) / 64, sizeof *pages->own),
        .sums = calloc(count, sizeof *pages->sums),
    };
    if (pages->own != NULL && pages->sums != NULL)
        return 0;
    memory_pages_free(pages);
    return -ENOMEM;
}

void memory_pages_free(struct memory_pages *pages) {
    free(pages->own);
    free(pages->sums);
    *pages = (struct memory_pages){0};
}

/* ---- Saving ---- */

struct saving {
    const struct memory *memory;
    int fd, pagemap; /* pagemap -1: nobody tells what is there */
    const uint64_t *wanted;
    struct memory_pages *pages;
    memory_image_progress *progress;
    void *context;
    uint64_t offset, written; /* of the region in the file; bytes in all */
};

/* /proc/self/pagemap, Linux's Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_THERE (UINT64_C(3) << 62) /* in memory, or swapped out */

/*
 * True for pages that may hold something. Those of a mapped image do before they are touched, and
 * those that are away: to be looked at they come.
 */
static void find_there(const struct saving *saving, const struct ram_region *region, uint64_t at,
                       unsigned pages, bool *there) {
    uint64_t entries[CHUNK_PAGES];
    size_t length = pages * sizeof entries[0];
    uint64_t gpa = region->gpa + at, host = (uintptr_t)region->host + at;
    off_t entry = (off_t)((host >> PAGE_SHIFT) * sizeof entries[0]);
    /* Asked first: a page may come at any moment, but none goes meanwhile. */
    for (unsigned i = 0; i < pages; i++)
        there[i] = !memory_is_here(saving->memory, gpa + (uint64_t)i * PAGE_SIZE, PAGE_SIZE);
    bool known = saving->pagemap >= 0 && !region->from_image &&
                 pread(saving->pagemap, entries, length, entry) == (ssize_t)length;
    for (unsigned i = 0; i < pages; i++)
        there[i] |= !known || (entries[i] & PAGEMAP_THERE);
}

void memory_find_touched(const struct memory *memory, uint64_t gpa, uint64_t size,
                         uint64_t *bitmap) {
    const struct ram_region *region = memory_region(memory, gpa);
    struct saving looking = {.memory = memory,
                             .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)};
    uint64_t pages = size >> PAGE_SHIFT;
    memset(bitmap, 0, (pages + 63) / 64 * 8);
    for (uint64_t n = 0; n < pages; n += CHUNK_PAGES) {
        bool there[CHUNK_PAGES];
        unsigned count = pages - n < CHUNK_PAGES ? (unsigned)(pages - n) : CHUNK_PAGES;
        find_there(&looking, region, gpa - region->gpa + n * PAGE_SIZE, count, there);
        for (unsigned i = 0; i < count; i++)
            bitmap[(n + i) / 64] |= (uint64_t)there[i] << ((n + i) % 64);
    }
    if (looking.pagemap >= 0)
        close(looking.pagemap);
}

bool memory_ram_region(const struct memory *memory, unsigned n, struct memory_ram *region) {
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *r = &memory->ram[i];
        if (r->rom || n-- > 0)
            continue;
        *region = (struct memory_ram){r->gpa, r->size, r->host, r->pluggable};
        return true;
    }
    return false;
}

static const uint8_t zeros[PAGE_SIZE];

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

enum content { UNWANTED, ZERO, DATA };

/* What is to be done with page `i` of a chunk, which is page n of the image. */
static enum content content_of(const struct saving *saving, uint64_t n, const uint8_t *page,
                               bool there) {
    if (saving->wanted != NULL && !has_bit(saving->wanted, n))
        return UNWANTED;
    if (there && !bytes_are_zero(page, PAGE_SIZE))
        return DATA;
    /* What was written before is not a hole any more. */
    return has_bit(saving->pages->own, n) ? DATA : ZERO;
}

static bool wants_some(const struct saving *saving, uint64_t first, unsigned pages) {
    bool wants = saving->wanted == NULL;
    for (unsigned i = 0; i < pages && !wants; i++)
        wants = has_bit(saving->wanted, first + i);
    return wants;
}

static void note_saved(const struct saving *saving, uint64_t n, const uint8_t *page) {
    saving->pages->own[n / 64] |= UINT64_C(1) << n % 64;
    saving->pages->sums[n] = crc32c(0, page, PAGE_SIZE);
}

static int save_chunk(struct saving *saving, const struct ram_region *region, uint64_t at,
                      unsigned pages) {
    const uint8_t *host = region->host + at;
    uint64_t first = (saving->offset + at) >> PAGE_SHIFT;
    bool there[CHUNK_PAGES];
    int result = 0;
    if (!wants_some(saving, first, pages))
        return 0;
    find_there(saving, region, at, pages, there);
    for (unsigned i = 0, run = 0; i < pages && result == 0; i += run > 0 ? run : 1) {
        enum content content = UNWANTED;
        for (run = 0; i + run < pages; run++) {
            const uint8_t *page = host + (uint64_t)(i + run) * PAGE_SIZE;
            content = content_of(saving, first + i + run, page, there[i + run]);
            if (content != DATA)
                break;
            note_saved(saving, first + i + run, page);
        }
        if (run == 0 && content == ZERO)
            note_saved(saving, first + i, zeros);
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

int memory_save_pages(const struct memory *memory, int fd, const uint64_t *wanted,
                      struct memory_pages *pages, memory_image_progress *progress, void *context,
                      uint64_t *written) {
    struct saving saving = {.memory = memory,
                            .fd = fd,
                            .wanted = wanted,
                            .pages = pages,
                            .progress = progress,
                            .context = context};
    if (ftruncate(fd, (off_t)memory_image_size(memory)) < 0)
        return -errno;
    saving.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int result = 0;
    for (unsigned i = 0; i < memory->ram_count && result == 0; i++)
        if (!memory->ram[i].rom)
            result = save_region(&saving, &memory->ram[i]);
    if (saving.pagemap >= 0)
        close(saving.pagemap);
    *written += saving.written;
    return result;
}

/* Bits of a region's pages to where these are in the image. */
static void place_bits(uint64_t *image, uint64_t at, const uint64_t *bits, uint64_t count) {
    for (uint64_t n = 0; n < count; n++) {
        if (bits[n / 64] == 0)
            n |= 63;
        else if (has_bit(bits, n))
            image[(at + n) / 64] |= UINT64_C(1) << (at + n) % 64;
    }
}

int64_t memory_image_fetch_dirty(const struct memory *memory, struct dirty_log *log,
                                 uint64_t *bitmap) {
    uint64_t at = 0, size = memory_image_size(memory) >> PAGE_SHIFT;
    uint64_t *bits = calloc((size + 63) / 64, sizeof *bits);
    int64_t dirty = 0;
    if (bits == NULL)
        return -ENOMEM;
    memset(bitmap, 0, (size + 63) / 64 * sizeof *bitmap);
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        if (region->rom)
            continue;
        dirty += memory_dirty_log_fetch(log, region->gpa, region->size, bits);
        place_bits(bitmap, at, bits, region->size >> PAGE_SHIFT);
        at += region->size >> PAGE_SHIFT;
    }
    free(bits);
    return dirty;
}

/* ---- Mapping ---- */

struct mapping {
    const struct memory_layer *layers;
    unsigned count, pieces; /* how many layers; mappings made on top of the last layer's */
};

/* The first layer that has the page; the last has all. */
static unsigned layer_of(const struct mapping *mapping, uint64_t n) {
    unsigned layer = 0;
    while (layer + 1 < mapping->count && !has_bit(mapping->layers[layer].own, n))
        layer++;
    return layer;
}

static int map_piece(uint8_t *host, uint64_t size, int fd, uint64_t offset) {
    void *at = mmap(host, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd,
                    (off_t)offset);
    return at == MAP_FAILED ? -errno : 0;
}

static int read_piece(uint8_t *host, uint64_t size, int fd, uint64_t offset) {
    while (size > 0) {
        ssize_t done = pread(fd, host, size, (off_t)offset);
        if (done == 0 || (done < 0 && errno != EINTR))
            return done == 0 ? -EIO : -errno;
        host += done > 0 ? done : 0;
        offset += done > 0 ? (uint64_t)done : 0;
        size -= done > 0 ? (uint64_t)done : 0;
    }
    return 0;
}

/* On top of the last layer: mapped, or read when there are too many pieces. */
static int put_piece(struct mapping *mapping, unsigned layer, uint8_t *host, uint64_t size,
                     uint64_t offset) {
    int fd = mapping->layers[layer].fd;
    if (layer + 1 == mapping->count)
        return 0;
    return mapping->pieces++ < PIECES_MAX ? map_piece(host, size, fd, offset)
                                          : read_piece(host, size, fd, offset);
}

static int map_region(struct mapping *mapping, struct ram_region *region, uint64_t offset) {
    uint64_t first = offset >> PAGE_SHIFT, end = first + (region->size >> PAGE_SHIFT);
    int result =
        map_piece(region->host, region->size, mapping->layers[mapping->count - 1].fd, offset);
    for (uint64_t n = first, next; n < end && result == 0 && mapping->count > 1; n = next) {
        unsigned layer = layer_of(mapping, n);
        for (next = n + 1; next < end && layer_of(mapping, next) == layer;)
            next++;
        result = put_piece(mapping, layer, region->host + ((n - first) << PAGE_SHIFT),
                           (next - n) << PAGE_SHIFT, n << PAGE_SHIFT);
    }
    madvise(region->host, region->size, MADV_DONTDUMP);
    region->from_image = true;
    return result;
}

static int check_layers(const struct memory_layer *layers, unsigned count, uint64_t size,
                        struct error *err) {
    for (unsigned i = 0; i < count; i++) {
        struct stat status;
        if (fstat(layers[i].fd, &status) < 0)
            return error_set_errno(err, -errno, "saved memory cannot be mapped");
        if ((uint64_t)status.st_size != size)
            return error_set(err, -EINVAL, "it holds %llu bytes of memory, and %llu are wanted",
                             (unsigned long long)status.st_size, (unsigned long long)size);
    }
    return 0;
}

int memory_map_image(struct memory *memory, const struct memory_layer *layers, unsigned count,
                     struct error *err) {
    struct mapping mapping = {.layers = layers, .count = count};
    uint64_t offset = 0;
    int result = check_layers(layers, count, memory_image_size(memory), err);
    if (result < 0)
        return result;
    memory_ahead_stop(memory);
    for (unsigned i = 0; i < memory->ram_count && result == 0; i++) {
        struct ram_region *region = &memory->ram[i];
        if (region->rom)
            continue;
        result =
            region->shared || region->huge_pages ? -ENOTSUP : map_region(&mapping, region, offset);
        offset += region->size;
    }
    return result == 0 ? 0 : error_set_errno(err, result, "saved memory cannot be mapped");
}
