/*
 * Regions, the gate, I/O dispatch and listeners. See memory.h.
 */
#include "memory/memory.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "memory/ahead.h"
#include "memory/private.h"

/* ---- Making and unmaking ---- */

int memory_create(struct memory **memory, struct error *err) {
    struct memory *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make guest memory");
    lock_init(&made->lock, LOCK_MEMORY, "memory");
    lock_init(&made->logs_lock, LOCK_MEMORY, "dirty logs");
    pthread_rwlock_init(&made->listeners_lock, NULL);
    made->default_view.memory = made;
    snprintf(made->default_view.name, sizeof made->default_view.name, "default");
    made->views = &made->default_view;
    *memory = made;
    return 0;
}

static void free_flags(struct ram_region *region) {
    if (region->shared)
        shared_close(region);
    else
        free((void *)region->flags);
}

static void free_ram(struct ram_region *region) {
    free_flags(region);
    free((void *)region->watchers);
    free((void *)region->chunks);
    memory_unmap_region(region);
}

void memory_destroy(struct memory *memory) {
    if (memory == NULL)
        return;
    memory_ahead_free(memory);
    missing_destroy(memory);
    while (memory->views != &memory->default_view)
        view_destroy(memory->views);
    for (struct io_region *io = memory->io, *next; io != NULL; io = next) {
        next = io->next;
        free(io);
    }
    for (unsigned i = 0; i < memory->ram_count; i++)
        free_ram(&memory->ram[i]);
    free(memory->listeners);
    pthread_rwlock_destroy(&memory->listeners_lock);
    lock_destroy(&memory->logs_lock);
    lock_destroy(&memory->lock);
    free(memory);
}

/* ---- RAM and ROM ---- */

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
    return a < b ? b - a < a_size : a - b < b_size;
}

static int check_region(const struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                        struct error *err) {
    if (size == 0 || ((gpa | size) & (PAGE_SIZE - 1)) || !range_within(gpa, size, MEMORY_GPA_LIMIT))
        return error_set(err, -EINVAL, "memory %s: bad range %#jx+%#jx", name, (uintmax_t)gpa,
                         (uintmax_t)size);
    for (unsigned i = 0; i < memory->ram_count; i++) {
        if (overlaps(gpa, size, memory->ram[i].gpa, memory->ram[i].size))
            return error_set(err, -EEXIST, "memory %s overlaps %s", name, memory->ram[i].name);
    }
    if (memory->ram_count == MEMORY_RAM_REGIONS)
        return error_set(err, -ENOMEM, "memory %s: too many regions", name);
    return 0;
}

static struct ram_region *insert_region(struct memory *memory, const struct ram_region *region) {
    unsigned at = memory->ram_count;
    while (at > 0 && memory->ram[at - 1].gpa > region->gpa) {
        memory->ram[at] = memory->ram[at - 1];
        at--;
    }
    memory->ram[at] = *region;
    memory->ram_count++;
    return &memory->ram[at];
}

static void update_hidden(struct memory *memory, uint64_t gpa, uint64_t size);

static int add_region(struct memory *memory, struct ram_region *region, const void *contents,
                      size_t length, struct error *err) {
    int rc = check_region(memory, region->name, region->gpa, region->size, err);
    if (rc < 0)
        return rc;
    region->shared = memory->share && !region->rom;
    region->fd = region->flags_fd = -1;
    if (region->shared)
        rc = shared_map_flags(region);
    else
        region->flags = calloc(region->size >> PAGE_SHIFT, sizeof *region->flags);
    region->watchers = calloc(region->size >> PAGE_SHIFT, sizeof *region->watchers);
    if (rc < 0 || region->flags == NULL || region->watchers == NULL)
        rc = error_set(err, rc < 0 ? rc : -ENOMEM, "memory %s: out of memory", region->name);
    else
        rc = memory_map_region(region, err);
    if (rc < 0) {
        free_flags(region);
        free((void *)region->watchers);
        return rc;
    }
    if (region->pluggable)
        memset((void *)region->flags, MEM_PAGE_ABSENT, region->size >> PAGE_SHIFT);
    if (length > 0)
        memcpy(region->host, contents, length);
    if (region->rom)
        mprotect(region->host, region->size, PROT_READ);
    struct ram_region placed = *insert_region(memory, region);
    lock_take(&memory->lock);
    update_hidden(memory, placed.gpa, placed.size);
    lock_release(&memory->lock);

    pthread_rwlock_rdlock(&memory->listeners_lock);
    for (size_t i = 0; i < memory->listener_count; i++) {
        const struct memory_listener *l = &memory->listeners[i];
        if (l->ram_added != NULL)
            l->ram_added(l->context, placed.gpa, placed.size, placed.pluggable ? NULL : placed.host,
                         placed.rom);
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
    memory_tell_changed(memory, NULL, placed.gpa, placed.size);
    return 0;
}

int memory_add_ram(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                   struct error *err) {
    struct ram_region region = {.gpa = gpa, .size = size, .huge_pages = memory->huge_pages};
    snprintf(region.name, sizeof region.name, "%s", name);
    return add_region(memory, &region, NULL, 0, err);
}

int memory_add_pluggable(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                         struct error *err) {
    struct ram_region region = {
        .gpa = gpa, .size = size, .huge_pages = memory->huge_pages, .pluggable = true};
    snprintf(region.name, sizeof region.name, "%s", name);
    return add_region(memory, &region, NULL, 0, err);
}

int memory_add_rom(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                   const void *contents, size_t length, struct error *err) {
    struct ram_region region = {.gpa = gpa, .size = size, .rom = true};
    snprintf(region.name, sizeof region.name, "%s", name);
    if (length > size)
        return error_set(err, -EINVAL, "memory %s: contents are larger than the region", name);
    return add_region(memory, &region, contents, length, err);
}

void memory_share(struct memory *memory) {
    memory->share = true;
}

bool memory_shared_region(const struct memory *memory, unsigned n, struct memory_shared *region) {
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *r = &memory->ram[i];
        if (!r->shared || n-- > 0)
            continue;
        *region = (struct memory_shared){r->gpa, r->size, r->fd, r->flags_fd};
        return true;
    }
    return false;
}

uint64_t memory_ram_size(const struct memory *memory) {
    uint64_t total = 0;
    for (unsigned i = 0; i < memory->ram_count; i++)
        total += memory->ram[i].rom || memory->ram[i].pluggable ? 0 : memory->ram[i].size;
    return total;
}

/* ---- The gate ---- */

/*
 * What is contiguous and reachable from gpa, at most length bytes. 0: nothing.
 * Hidden and absent pages end it: there an I/O region answers, or nobody; read-only ones end
 * writes.
 */
static size_t reach(const struct memory *memory, uint64_t gpa, size_t length, bool write,
                    const struct ram_region **region) {
    const struct ram_region *r = memory_region(memory, gpa);
    if (r == NULL || (write && r->rom))
        return 0;
    uint64_t left = r->size - (gpa - r->gpa);
    if (length > left)
        length = (size_t)left;
    size_t done = 0;
    while (done < length) {
        uint64_t at = gpa + done;
        uint8_t refused = MEM_PAGE_HIDDEN | MEM_PAGE_ABSENT | (write ? MEM_PAGE_READONLY : 0);
        if (atomic_load_explicit(memory_page_flags(r, at), memory_order_relaxed) & refused)
            break;
        done += PAGE_SIZE - (at & (PAGE_SIZE - 1));
    }
    *region = r;
    return done < length ? done : length;
}

static bool reach_all(const struct memory *memory, uint64_t gpa, size_t length, bool write) {
    while (length > 0) {
        const struct ram_region *region;
        size_t n = reach(memory, gpa, length, write, &region);
        if (n == 0)
            return false;
        gpa += n;
        length -= n;
    }
    return true;
}

static uint8_t *host_at(const struct ram_region *region, uint64_t gpa) {
    return region->host + (gpa - region->gpa);
}

static int read_all(struct memory *memory, uint64_t gpa, void *to, size_t length) {
    if (!reach_all(memory, gpa, length, false))
        return -EFAULT;
    uint8_t *out = to;
    while (length > 0) {
        const struct ram_region *region;
        size_t n = reach(memory, gpa, length, false, &region);
        if (n == 0)
            return -EFAULT; /* a BAR moved here in between */
        memory_copy_in(out, host_at(region, gpa), n);
        out += n;
        gpa += n;
        length -= n;
    }
    return atomic_load_explicit(&memory->lost, memory_order_relaxed) ? -EFAULT : 0;
}

void memory_code_written(struct memory *memory, uint64_t gpa, size_t length) {
    pthread_rwlock_rdlock(&memory->listeners_lock);
    for (size_t i = 0; i < memory->listener_count; i++) {
        const struct memory_listener *l = &memory->listeners[i];
        if (l->code_written != NULL)
            l->code_written(l->context, gpa, length);
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
}

void memory_mark_written(struct memory *memory, const struct ram_region *region, uint64_t gpa,
                         uint64_t length) {
    while (length > 0) {
        uint64_t n = PAGE_SIZE - (gpa & (PAGE_SIZE - 1));
        if (n > length)
            n = length;
        uint8_t old = atomic_fetch_or(memory_page_flags(region, gpa), MEM_PAGE_DIRTY);
        if (old & MEM_PAGE_CODE)
            memory_code_written(memory, gpa, n);
        gpa += n;
        length -= n;
    }
}

static void about_to_write(struct memory *memory, const struct ram_region *region, uint64_t gpa) {
    if (memory_is_fresh(region, gpa))
        memory_ahead_touched(memory, gpa);
}

static int write_all(struct memory *memory, uint64_t gpa, const void *from, size_t length) {
    if (!reach_all(memory, gpa, length, true))
        return -EFAULT;
    const uint8_t *in = from;
    while (length > 0) {
        const struct ram_region *region;
        size_t n = reach(memory, gpa, length, true, &region);
        if (n == 0)
            return -EFAULT;
        about_to_write(memory, region, gpa);
        memory_copy_out(host_at(region, gpa), in, n);
        memory_mark_written(memory, region, gpa, n);
        in += n;
        gpa += n;
        length -= n;
    }
    return atomic_load_explicit(&memory->lost, memory_order_relaxed) ? -EFAULT : 0;
}

/* ---- Watched code ---- */

static _Atomic(uint64_t) *page_watchers(const struct ram_region *region, uint64_t gpa) {
    return &region->watchers[(gpa - region->gpa) >> PAGE_SHIFT];
}

uint8_t memory_watch(struct memory *memory, uint64_t gpa, unsigned watcher) {
    const struct ram_region *region = memory_region(memory, gpa);
    if (region == NULL)
        return 0;
    _Atomic(uint8_t) *flags = memory_page_flags(region, gpa);
    uint8_t before = atomic_load(flags);
    lock_take(&memory->lock);
    atomic_fetch_or(page_watchers(region, gpa), UINT64_C(1) << watcher);
    while (!atomic_compare_exchange_weak(flags, &before,
                                         (uint8_t)((before & ~MEM_PAGE_WRITTEN) | MEM_PAGE_CODE))) {
    }
    lock_release(&memory->lock);
    return before;
}

void memory_unwatch(struct memory *memory, uint64_t gpa, unsigned watcher) {
    const struct ram_region *region = memory_region(memory, gpa);
    uint64_t bit = UINT64_C(1) << watcher;
    if (region == NULL)
        return;
    lock_take(&memory->lock);
    if (atomic_fetch_and(page_watchers(region, gpa), ~bit) == bit)
        atomic_fetch_and(memory_page_flags(region, gpa), (uint8_t)~MEM_PAGE_CODE);
    lock_release(&memory->lock);
}

bool memory_is_watched_by(const struct memory *memory, uint64_t gpa, unsigned watcher) {
    const struct ram_region *region = memory_region(memory, gpa);
    return region != NULL && atomic_load(page_watchers(region, gpa)) >> watcher & 1;
}

uint64_t memory_gpa_of_flags(const struct memory *memory, const _Atomic(uint8_t) *flags) {
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        uintptr_t page = (uintptr_t)flags - (uintptr_t)region->flags;
        if (page < region->size >> PAGE_SHIFT)
            return region->gpa + ((uint64_t)page << PAGE_SHIFT);
    }
    return UINT64_MAX;
}

/* ---- Freezing ---- */

/* Either the one who freezes sees the other's count, or that one sees the flag and waits. */
void memory_hold(struct memory *memory) {
    atomic_fetch_add(&memory->holders, 1);
    while (atomic_load(&memory->frozen))
        sched_yield();
}

void memory_unhold(struct memory *memory) {
    atomic_fetch_sub(&memory->holders, 1);
}

bool memory_freeze(struct memory *memory) {
    atomic_store(&memory->freezes, true);
    atomic_store(&memory->frozen, true);
    if (atomic_load(&memory->holders) == 0)
        return true;
    atomic_store(&memory->frozen, false);
    return false;
}

void memory_thaw(struct memory *memory) {
    atomic_store_explicit(&memory->frozen, false, memory_order_release);
}

int memory_read(struct memory *memory, uint64_t gpa, void *to, size_t length) {
    if (!atomic_load(&memory->freezes))
        return read_all(memory, gpa, to, length);
    memory_hold(memory);
    int r = read_all(memory, gpa, to, length);
    memory_unhold(memory);
    return r;
}

int memory_write(struct memory *memory, uint64_t gpa, const void *from, size_t length) {
    if (!atomic_load(&memory->freezes))
        return write_all(memory, gpa, from, length);
    memory_hold(memory);
    int r = write_all(memory, gpa, from, length);
    memory_unhold(memory);
    return r;
}

/* The kernel, which the caller hands the pages to, may not be able to wait for them. */
static void touch(const uint8_t *host, size_t length) {
    const volatile uint8_t *at = host;
    for (size_t n = 0; n < length; n += PAGE_SIZE - (((uintptr_t)at + n) & (PAGE_SIZE - 1)))
        (void)at[n];
}

void *memory_map(struct memory *memory, uint64_t gpa, size_t *length, bool write) {
    const struct ram_region *region;
    size_t n = *length == 0 ? 0 : reach(memory, gpa, *length, write, &region);
    if (n == 0 || region->rom)
        return NULL;
    if (write)
        about_to_write(memory, region, gpa);
    *length = n;
    if (atomic_load_explicit(&memory->missing, memory_order_relaxed) != NULL)
        touch(host_at(region, gpa), n);
    return atomic_load_explicit(&memory->lost, memory_order_relaxed) ? NULL : host_at(region, gpa);
}

void memory_unmap(struct memory *memory, uint64_t gpa, size_t written) {
    const struct ram_region *region = memory_region(memory, gpa);
    if (region != NULL && range_within(gpa - region->gpa, written, region->size))
        memory_mark_written(memory, region, gpa, written);
}

int memory_load(struct memory *memory, uint64_t gpa, const void *from, size_t length) {
    const uint8_t *in = from;
    while (length > 0) {
        const struct ram_region *region = memory_region(memory, gpa);
        if (region == NULL)
            return -EFAULT;
        uint64_t left = region->size - (gpa - region->gpa);
        size_t n = length < left ? length : (size_t)left;
        about_to_write(memory, region, gpa);
        if (region->rom)
            mprotect(region->host, region->size, PROT_READ | PROT_WRITE);
        memcpy(host_at(region, gpa), in, n);
        if (region->rom)
            mprotect(region->host, region->size, PROT_READ);
        memory_mark_written(memory, region, gpa, n);
        in += n;
        gpa += n;
        length -= n;
    }
    return 0;
}

void memory_set_readonly(struct memory *memory, uint64_t gpa, uint64_t size, bool readonly) {
    for (uint64_t at = 0; at < size; at += PAGE_SIZE) {
        const struct ram_region *region = memory_region(memory, gpa + at);
        if (region == NULL || region->rom)
            continue;
        if (readonly)
            atomic_fetch_or(memory_page_flags(region, gpa + at), MEM_PAGE_READONLY);
        else
            atomic_fetch_and(memory_page_flags(region, gpa + at), (uint8_t)~MEM_PAGE_READONLY);
    }
    memory_tell_changed(memory, NULL, gpa, size);
}

/* ---- I/O regions ---- */

/* Lock held. True when an enabled I/O region covers the whole page. */
static bool page_covered(const struct memory *memory, uint64_t page) {
    for (const struct io_region *io = memory->io; io != NULL; io = io->next) {
        if (io->enabled && !io->writes_only && page >= io->gpa &&
            range_within(page - io->gpa, PAGE_SIZE, io->size))
            return true;
    }
    return false;
}

/* Lock held. Works out anew which RAM pages of [gpa, gpa+size) lie under I/O regions. */
static void update_hidden(struct memory *memory, uint64_t gpa, uint64_t size) {
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        if (size == 0 || !overlaps(gpa, size, region->gpa, region->size))
            continue;
        uint64_t io_last = gpa + (size - 1), ram_last = region->gpa + (region->size - 1);
        uint64_t first = gpa > region->gpa ? round_down(gpa, PAGE_SIZE) : region->gpa;
        uint64_t last = io_last < ram_last ? io_last : ram_last;
        for (uint64_t page = first; page <= last; page += PAGE_SIZE) {
            if (page_covered(memory, page))
                atomic_fetch_or(memory_page_flags(region, page), MEM_PAGE_HIDDEN);
            else
                atomic_fetch_and(memory_page_flags(region, page), (uint8_t)~MEM_PAGE_HIDDEN);
        }
    }
}

/* A region that would run past 2^64 ends there. */
static uint64_t clip(uint64_t gpa, uint64_t size) {
    return gpa != 0 && size > UINT64_MAX - gpa ? UINT64_MAX - gpa + 1 : size;
}

int memory_add_io(struct memory *memory, const char *name, uint64_t gpa, uint64_t size,
                  const struct io_ops *ops, void *context, struct io_region **region,
                  struct error *err) {
    if (size == 0 || clip(gpa, size) != size)
        return error_set(err, -EINVAL, "I/O region %s: bad range %#jx+%#jx", name, (uintmax_t)gpa,
                         (uintmax_t)size);
    struct io_region *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "I/O region %s", name);
    *made = (struct io_region){.memory = memory,
                               .gpa = gpa,
                               .size = size,
                               .enabled = true,
                               .ops = *ops,
                               .context = context};
    snprintf(made->name, sizeof made->name, "%s", name);
    lock_take(&memory->lock);
    made->next = memory->io;
    memory->io = made;
    update_hidden(memory, gpa, size);
    lock_release(&memory->lock);
    memory_tell_changed(memory, NULL, gpa, size);
    if (region != NULL)
        *region = made;
    return 0;
}

void memory_remove_io(struct io_region *region) {
    if (region == NULL)
        return;
    struct memory *memory = region->memory;
    lock_take(&memory->lock);
    struct io_region **at = &memory->io;
    while (*at != region)
        at = &(*at)->next;
    *at = region->next;
    if (region->enabled)
        update_hidden(memory, region->gpa, clip(region->gpa, region->size));
    lock_release(&memory->lock);
    memory_tell_changed(memory, NULL, region->gpa, clip(region->gpa, region->size));
    free(region);
}

void memory_move_io(struct io_region *region, uint64_t gpa, bool enabled) {
    struct memory *memory = region->memory;
    lock_take(&memory->lock);
    uint64_t old = region->gpa;
    bool was = region->enabled;
    region->gpa = gpa;
    region->enabled = enabled;
    if (was)
        update_hidden(memory, old, clip(old, region->size));
    if (enabled)
        update_hidden(memory, gpa, clip(gpa, region->size));
    lock_release(&memory->lock);
    if (was)
        memory_tell_changed(memory, NULL, old, clip(old, region->size));
    if (enabled)
        memory_tell_changed(memory, NULL, gpa, clip(gpa, region->size));
}

void memory_io_writes_only(struct io_region *region, bool writes_only) {
    struct memory *memory = region->memory;
    uint64_t size = clip(region->gpa, region->size);
    lock_take(&memory->lock);
    region->writes_only = writes_only;
    update_hidden(memory, region->gpa, size);
    lock_release(&memory->lock);
    memory_tell_changed(memory, NULL, region->gpa, size);
}

/* Copies what a call needs, so that it can be made without the lock. */
static bool find_io(struct memory *memory, uint64_t gpa, struct io_region *found) {
    lock_take(&memory->lock);
    const struct io_region *io = memory->io;
    while (io != NULL && !(io->enabled && gpa >= io->gpa && gpa - io->gpa < io->size))
        io = io->next;
    if (io != NULL)
        *found = *io;
    lock_release(&memory->lock);
    return io != NULL;
}

uint64_t memory_io_read(struct memory *memory, uint64_t gpa, unsigned size) {
    struct io_region io;
    bool found = find_io(memory, gpa, &io);
    if (found && range_within(gpa - io.gpa, size, io.size))
        return io.ops.read(io.context, gpa - io.gpa, size) & bytes_mask(size);
    if (size <= 1)
        return 0xff;
    /* Nobody here, or it straddles an end: byte by byte. */
    uint64_t value = 0;
    for (unsigned i = 0; i < size && i < 8; i++)
        value |= memory_io_read(memory, gpa + i, 1) << (8 * i);
    return value;
}

void memory_io_write(struct memory *memory, uint64_t gpa, uint64_t value, unsigned size) {
    struct io_region io;
    bool found = find_io(memory, gpa, &io);
    if (found && range_within(gpa - io.gpa, size, io.size)) {
        io.ops.write(io.context, gpa - io.gpa, value & bytes_mask(size), size);
        return;
    }
    for (unsigned i = 0; size > 1 && i < size && i < 8; i++)
        memory_io_write(memory, gpa + i, value >> (8 * i) & 0xff, 1);
}

/* ---- Listeners ---- */

int memory_add_listener(struct memory *memory, const struct memory_listener *listener) {
    pthread_rwlock_wrlock(&memory->listeners_lock);
    struct memory_listener *grown =
        realloc(memory->listeners, (memory->listener_count + 1) * sizeof *grown);
    if (grown != NULL) {
        memory->listeners = grown;
        grown[memory->listener_count++] = *listener;
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
    if (grown == NULL)
        return -ENOMEM;
    for (unsigned i = 0; listener->ram_added != NULL && i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        listener->ram_added(listener->context, region->gpa, region->size,
                            region->pluggable ? NULL : region->host, region->rom);
    }
    return 0;
}

static bool same_listener(const struct memory_listener *a, const struct memory_listener *b) {
    return a->context == b->context && a->changed == b->changed && a->ram_added == b->ram_added &&
           a->code_written == b->code_written && a->dirty_cleared == b->dirty_cleared &&
           a->dirty_wanted == b->dirty_wanted;
}

void memory_remove_listener(struct memory *memory, const struct memory_listener *listener) {
    pthread_rwlock_wrlock(&memory->listeners_lock);
    for (size_t i = 0; i < memory->listener_count; i++) {
        if (!same_listener(&memory->listeners[i], listener))
            continue;
        memory->listeners[i] = memory->listeners[--memory->listener_count];
        break;
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
}

static void tell_changed_one(struct memory *memory, const struct view *view, uint64_t gpa,
                             uint64_t size) {
    for (size_t i = 0; i < memory->listener_count; i++) {
        const struct memory_listener *l = &memory->listeners[i];
        if (l->changed != NULL)
            l->changed(l->context, view, gpa, size);
    }
}

static const struct view *next_view(struct memory *memory, const struct view *view) {
    lock_take(&memory->lock);
    const struct view *next = view == NULL ? memory->views : view->next;
    lock_release(&memory->lock);
    return next;
}

/* Views are made and unmade by the control thread while nothing changes regions. */
void memory_tell_changed(struct memory *memory, const struct view *view, uint64_t gpa,
                         uint64_t size) {
    pthread_rwlock_rdlock(&memory->listeners_lock);
    if (view != NULL) {
        tell_changed_one(memory, view, gpa, size);
    } else {
        for (view = next_view(memory, NULL); view != NULL; view = next_view(memory, view))
            tell_changed_one(memory, view, gpa, size);
    }
    pthread_rwlock_unlock(&memory->listeners_lock);
}
