/*
 * Which pages were written. Engines and the gate set a flag in each page's flag byte; whoever asks
 * first takes the flags down, and so leaves word with all who keep a log.
 */
#include <stdlib.h>

#include "memory/private.h"

struct dirty_log {
    struct memory *memory;
    struct dirty_log *next;
    uint64_t *pages[MEMORY_RAM_REGIONS]; /* of each region, a bit a page; NULL: ROM */
};

static void tell_dirty_cleared(struct memory *memory) {
    pthread_rwlock_rdlock(&memory->listeners_lock);
    for (size_t i = 0; i < memory->listener_count; i++) {
        const struct memory_listener *l = &memory->listeners[i];
        if (l->dirty_cleared != NULL)
            l->dirty_cleared(l->context);
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
}

static void tell_dirty_wanted(struct memory *memory, uint64_t gpa, uint64_t size) {
    pthread_rwlock_rdlock(&memory->listeners_lock);
    for (size_t i = 0; i < memory->listener_count; i++) {
        const struct memory_listener *l = &memory->listeners[i];
        if (l->dirty_wanted != NULL)
            l->dirty_wanted(l->context, gpa, size);
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
}

static bool all_ram(const struct memory *memory, uint64_t gpa, uint64_t size) {
    while (size > 0) {
        const struct ram_region *region = memory_region(memory, gpa);
        if (region == NULL)
            return false;
        uint64_t n = region->size - (gpa - region->gpa);
        if (n >= size)
            return true;
        gpa += n;
        size -= n;
    }
    return true;
}

/* logs_lock held. */
static void tell_logs(const struct memory *memory, unsigned region, uint64_t page) {
    for (struct dirty_log *log = memory->logs; log != NULL; log = log->next)
        log->pages[region][page / 64] |= UINT64_C(1) << (page % 64);
}

/* Of a range, pages that are of one region: where they begin there, and in the range. */
struct piece {
    unsigned region;
    uint64_t page, pages, at;
};

/* The one behind this (zeroed: the first) of [gpa, gpa+size); false: that was all. */
static bool next_piece(const struct memory *memory, uint64_t gpa, uint64_t size,
                       struct piece *piece) {
    uint64_t done = piece->at + piece->pages;
    uint64_t at = gpa + (done << PAGE_SHIFT), left = size - (done << PAGE_SHIFT);
    const struct ram_region *region = left > 0 ? memory_region(memory, at) : NULL;
    if (region == NULL)
        return false;
    uint64_t length = region->size - (at - region->gpa);
    *piece = (struct piece){.region = (unsigned)(region - memory->ram),
                            .page = (at - region->gpa) >> PAGE_SHIFT,
                            .pages = (length < left ? length : left) >> PAGE_SHIFT,
                            .at = done};
    return true;
}

/* logs_lock held. Takes the flags of a piece down; bitmap: NULL, or gets those that were set. */
static int64_t take_flags(const struct memory *memory, const struct piece *piece,
                          uint64_t *bitmap) {
    _Atomic(uint8_t) *flags = memory->ram[piece->region].flags + piece->page;
    int64_t dirty = 0;
    for (uint64_t n = 0; n < piece->pages; n++) {
        if (!(atomic_load_explicit(&flags[n], memory_order_relaxed) & MEM_PAGE_DIRTY))
            continue;
        atomic_fetch_and(&flags[n], (uint8_t)~MEM_PAGE_DIRTY);
        if (!memory->ram[piece->region].rom)
            tell_logs(memory, piece->region, piece->page + n);
        if (bitmap != NULL)
            bitmap[(piece->at + n) / 64] |= UINT64_C(1) << ((piece->at + n) % 64);
        dirty++;
    }
    return dirty;
}

static int64_t take_all_flags(struct memory *memory, uint64_t gpa, uint64_t size,
                              uint64_t *bitmap) {
    struct piece piece = {0};
    int64_t dirty = 0;
    tell_dirty_wanted(memory, gpa, size);
    lock_take(&memory->logs_lock);
    while (next_piece(memory, gpa, size, &piece))
        dirty += take_flags(memory, &piece, bitmap);
    lock_release(&memory->logs_lock);
    if (dirty > 0)
        tell_dirty_cleared(memory);
    return dirty;
}

int64_t memory_fetch_dirty(struct memory *memory, uint64_t gpa, uint64_t size, uint64_t *bitmap) {
    if (((gpa | size) & (PAGE_SIZE - 1)) || !all_ram(memory, gpa, size))
        return -EFAULT;
    memset(bitmap, 0, (((size >> PAGE_SHIFT) + 63) / 64) * 8);
    return take_all_flags(memory, gpa, size, bitmap);
}

/* ---- Logs ---- */

static void unlink_log(struct dirty_log *log) {
    struct dirty_log **at = &log->memory->logs;
    while (*at != NULL && *at != log)
        at = &(*at)->next;
    if (*at != NULL)
        *at = log->next;
}

void memory_dirty_log_close(struct dirty_log *log) {
    if (log == NULL)
        return;
    lock_take(&log->memory->logs_lock);
    unlink_log(log);
    lock_release(&log->memory->logs_lock);
    for (unsigned i = 0; i < MEMORY_RAM_REGIONS; i++)
        free(log->pages[i]);
    free(log);
}

int memory_dirty_log_open(struct memory *memory, struct dirty_log **log) {
    struct dirty_log *made = calloc(1, sizeof *made);
    bool good = made != NULL;
    for (unsigned i = 0; i < memory->ram_count && good; i++) {
        uint64_t pages = memory->ram[i].size >> PAGE_SHIFT;
        if (!memory->ram[i].rom)
            good = (made->pages[i] = calloc((pages + 63) / 64, sizeof(uint64_t))) != NULL;
    }
    if (made != NULL)
        made->memory = memory;
    if (!good) {
        memory_dirty_log_close(made);
        return -ENOMEM;
    }
    /* What was written before is the others' to know. */
    for (unsigned i = 0; i < memory->ram_count; i++)
        if (!memory->ram[i].rom)
            take_all_flags(memory, memory->ram[i].gpa, memory->ram[i].size, NULL);
    lock_take(&memory->logs_lock);
    made->next = memory->logs;
    memory->logs = made;
    lock_release(&memory->logs_lock);
    *log = made;
    return 0;
}

/* logs_lock held. */
static int64_t take_pages(const struct dirty_log *log, const struct piece *piece,
                          uint64_t *bitmap) {
    uint64_t *pages = log->pages[piece->region];
    int64_t dirty = 0;
    for (uint64_t n = 0; n < piece->pages; n++) {
        uint64_t page = piece->page + n, bit = UINT64_C(1) << (page % 64);
        if (pages[page / 64] == 0) { /* on to the word's last */
            n += 63 - page % 64;
            continue;
        }
        if (!(pages[page / 64] & bit))
            continue;
        pages[page / 64] &= ~bit;
        bitmap[(piece->at + n) / 64] |= UINT64_C(1) << ((piece->at + n) % 64);
        dirty++;
    }
    return dirty;
}

int64_t memory_dirty_log_fetch(struct dirty_log *log, uint64_t gpa, uint64_t size,
                               uint64_t *bitmap) {
    struct memory *memory = log->memory;
    struct piece piece = {0};
    int64_t dirty = 0;
    if (((gpa | size) & (PAGE_SIZE - 1)) || !all_ram(memory, gpa, size))
        return -EFAULT;
    memset(bitmap, 0, (((size >> PAGE_SHIFT) + 63) / 64) * 8);
    take_all_flags(memory, gpa, size, NULL);
    lock_take(&memory->logs_lock);
    while (next_piece(memory, gpa, size, &piece))
        if (log->pages[piece.region] != NULL)
            dirty += take_pages(log, &piece, bitmap);
    lock_release(&memory->logs_lock);
    return dirty;
}
