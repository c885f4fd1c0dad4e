/*
 * The host's memory behind the guest's: reserved when a region is added, taken
 * page by page as the guest touches it, given back when the guest says that it
 * needs it no longer (ballooning, page reporting) or a region's part is
 * unplugged. See memory.h.
 *
 * Every page of a region is mapped as long as the region lives, whatever the
 * guest does: a stale pointer to it (a device's, a translation's) reads zeros
 * or writes to a page that is cleared before the guest sees it again.
 */
#include <stdio.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "memory/private.h"

enum { HUGE_PAGE = 2 << 20, HUGE_PAGE_SHIFT = 21, RESIDENT_PAGES = 4096 };

/* <linux/mman.h>; not in every C library's headers. */
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

static void *map_fixed(uint8_t *host, uint64_t size, int flags) {
    return mmap(host, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags,
                -1, 0);
}

static int take_huge_pages(uint8_t *host, uint64_t size) {
    void *at = map_fixed(host, size, MAP_HUGETLB | HUGE_PAGE_SHIFT << MAP_HUGE_SHIFT);
    return at == MAP_FAILED ? -errno : 0;
}

static int take_pages(uint8_t *host, uint64_t size) {
    if (map_fixed(host, size, MAP_NORESERVE) == MAP_FAILED)
        return -errno;
    /* Advice: a host without huge pages, or one that keeps no dump of them, runs as well. */
    madvise(host, size, MADV_HUGEPAGE);
    madvise(host, size, MADV_DONTDUMP);
    return 0;
}

/* How many huge pages nobody has, nor has been promised. */
static unsigned long free_huge_pages(void) {
    static const char *const names[] = {"free_hugepages", "resv_hugepages"};
    unsigned long count[2] = {0, 0};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        char path[96];
        snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-2048kB/%s", names[i]);
        FILE *file = fopen(path, "re");
        if (file == NULL)
            continue;
        if (fscanf(file, "%lu", &count[i]) != 1) /* NOLINT: a number of the kernel's */
            count[i] = 0;
        fclose(file);
    }
    return count[0] > count[1] ? count[0] - count[1] : 0;
}

static int too_few(const struct ram_region *region, struct error *err) {
    return error_set(err, -ENOMEM,
                     "the host has %lu huge pages of 2 MiB free, and %ju are wanted: raise "
                     "vm.nr_hugepages by sysctl, or leave out --hugepages",
                     free_huge_pages(), (uintmax_t)(region->size / HUGE_PAGE));
}

/*
 * Reserves address space with a guard page at either end. The host address is
 * congruent to the guest's modulo 2 MiB, so that huge pages serve both.
 */
int memory_map_region(struct ram_region *region, struct error *err) {
    size_t length = region->size + 2 * (size_t)PAGE_SIZE + HUGE_PAGE;
    if (region->huge_pages && ((region->gpa | region->size) & (HUGE_PAGE - 1)))
        return error_set(err, -EINVAL, "--hugepages: memory is to be a multiple of 2M");
    uint8_t *mapping =
        mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int result = mapping == MAP_FAILED ? -errno : 0;
    uintptr_t first = (uintptr_t)mapping + PAGE_SIZE;
    size_t shift = (size_t)((region->gpa - first) & (HUGE_PAGE - 1));
    region->mapping = mapping;
    region->mapping_size = length;
    region->host = mapping + PAGE_SIZE + shift;
    if (result == 0)
        result = region->shared ? shared_map(region)
                 : region->huge_pages && !region->pluggable
                     ? take_huge_pages(region->host, region->size)
                     : take_pages(region->host, region->size);
    if (result == 0)
        return 0;
    if (mapping != MAP_FAILED)
        munmap(mapping, length);
    if (region->huge_pages && result == -ENOMEM)
        return too_few(region, err);
    return error_set_errno(err, result, "memory %s: cannot reserve %ju MiB", region->name,
                           (uintmax_t)(region->size >> 20));
}

void memory_unmap_region(struct ram_region *region) {
    munmap(region->mapping, region->mapping_size);
}

void memory_use_huge_pages(struct memory *memory) {
    memory->huge_pages = true;
}

/* ---- Giving back ---- */

static uint8_t *host_at(const struct ram_region *region, uint64_t gpa) {
    return region->host + (gpa - region->gpa);
}

/* What is left of [*gpa, *end) in the region; false: nothing. */
static bool clip(const struct ram_region *region, uint64_t *gpa, uint64_t *end) {
    uint64_t last = region->gpa + region->size;
    if (*gpa < region->gpa)
        *gpa = region->gpa;
    if (*end > last)
        *end = last;
    return *gpa < *end;
}

static bool is_kept(const struct ram_region *region, uint64_t page) {
    return atomic_load_explicit(memory_page_flags(region, page), memory_order_relaxed) &
           (MEM_PAGE_HIDDEN | MEM_PAGE_READONLY | MEM_PAGE_ABSENT);
}

/*
 * Dropped pages of an image's mapping would be the file's again, so other memory takes their
 * place. A process may have some 65,000 mappings: small pieces, and all once there is no room for
 * more, are cleared instead.
 */
static int replace(uint8_t *host, uint64_t size) {
    enum { LEAST = 64 << 10 };
    if (size < LEAST || map_fixed(host, size, MAP_NORESERVE) == MAP_FAILED)
        memset(host, 0, size);
    else
        madvise(host, size, MADV_DONTDUMP);
    return 0;
}

/* Whole pages; they read as zeros after. */
static int give_back(const struct ram_region *region, uint64_t gpa, uint64_t size) {
    uint8_t *host = host_at(region, gpa);
    if (region->from_image)
        return replace(host, size);
    return madvise(host, size, region->shared ? MADV_REMOVE : MADV_DONTNEED);
}

static uint64_t discard_run(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                            uint64_t end) {
    if (gpa == end)
        return 0;
    missing_lock(memory);
    int result = give_back(region, gpa, end - gpa);
    if (result == 0)
        missing_forget(memory, region, gpa, end - gpa);
    missing_unlock(memory);
    if (result < 0)
        return 0;
    memory_ahead_given_back(memory, gpa, end - gpa);
    memory_mark_written(memory, region, gpa, end - gpa);
    return end - gpa;
}

static uint64_t discard_in(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                           uint64_t end) {
    uint64_t done = 0, run = gpa;
    for (uint64_t page = gpa; page < end; page += PAGE_SIZE) {
        if (!is_kept(region, page))
            continue;
        done += discard_run(memory, region, run, page);
        run = page + PAGE_SIZE;
    }
    return done + discard_run(memory, region, run, end);
}

uint64_t memory_discard(struct memory *memory, uint64_t gpa, uint64_t size) {
    uint64_t done = 0;
    if (!range_within(gpa, size, MEMORY_GPA_LIMIT))
        return 0;
    uint64_t first = round_up(gpa, PAGE_SIZE), last = round_down(gpa + size, PAGE_SIZE);
    memory_hold(memory);
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        uint64_t from = first, end = last;
        if (!region->rom && !region->huge_pages && clip(region, &from, &end))
            done += discard_in(memory, region, from, end);
    }
    memory_unhold(memory);
    return done;
}

/* ---- Plugging ---- */

static const struct ram_region *pluggable_region(const struct memory *memory, uint64_t gpa,
                                                 uint64_t size) {
    const struct ram_region *region = memory_region(memory, gpa);
    bool good = region != NULL && region->pluggable && ((gpa | size) & (PAGE_SIZE - 1)) == 0 &&
                range_within(gpa - region->gpa, size, region->size);
    return good ? region : NULL;
}

static void set_absent(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                       uint64_t size, bool absent) {
    for (uint64_t page = gpa; page < gpa + size; page += PAGE_SIZE) {
        if (absent)
            atomic_fetch_or(memory_page_flags(region, page), MEM_PAGE_ABSENT);
        else
            atomic_fetch_and(memory_page_flags(region, page), (uint8_t)~MEM_PAGE_ABSENT);
    }
    memory_tell_changed(memory, NULL, gpa, size);
}

/* Ordinary pages, untouched: what an engine writes late goes there. */
static void clear(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                  uint64_t size) {
    missing_lock(memory);
    if (region->huge_pages)
        take_pages(host_at(region, gpa), size);
    else
        give_back(region, gpa, size);
    missing_forget(memory, region, gpa, size);
    missing_unlock(memory);
}

int memory_plug(struct memory *memory, uint64_t gpa, uint64_t size, bool plugged) {
    const struct ram_region *region = pluggable_region(memory, gpa, size);
    int result = 0;
    if (region == NULL)
        return -EFAULT;
    memory_hold(memory);
    if (!plugged) {
        set_absent(memory, region, gpa, size, true);
        clear(memory, region, gpa, size);
        memory_mark_written(memory, region, gpa, size);
    } else if (!region->huge_pages) {
        clear(memory, region, gpa, size);
        set_absent(memory, region, gpa, size, false);
    } else if ((result = take_huge_pages(host_at(region, gpa), size)) == 0) {
        set_absent(memory, region, gpa, size, false);
    }
    memory_unhold(memory);
    return result;
}

/* ---- Counting ---- */

uint64_t memory_resident(const struct memory *memory) {
    unsigned char there[RESIDENT_PAGES];
    uint64_t pages = 0;
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        for (uint64_t at = 0; at < region->size && !region->rom; at += sizeof there * PAGE_SIZE) {
            uint64_t left = region->size - at, most = sizeof there * (uint64_t)PAGE_SIZE;
            uint64_t length = left < most ? left : most;
            if (mincore(region->host + at, length, there) < 0)
                continue;
            for (uint64_t n = 0; n < length >> PAGE_SHIFT; n++)
                pages += there[n] & 1;
        }
    }
    return pages << PAGE_SHIFT;
}
