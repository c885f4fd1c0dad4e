/*
 * The dirty log. The guest's writes do not pass through lodge, so pages' flags
 * are brought up to date when they are asked for. The kernel keeps its log
 * only from the first time on (a log costs large pages and a fault for each
 * page); for the time before, every page that the host has given memory to
 * counts as written, by /proc/self/pagemap.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

static void set_dirty(const struct kvm_engine *engine, uint64_t gpa) {
    struct mem_page page;
    view_page(memory_default_view(engine->engine.config.memory), gpa, &page);
    if (page.flags != NULL)
        atomic_fetch_or_explicit(page.flags, (uint8_t)MEM_PAGE_DIRTY, memory_order_relaxed);
}

static void set_all_dirty(const struct kvm_engine *engine, const struct kvm_slot *slot) {
    for (uint64_t at = 0; at < slot->size; at += PAGE_SIZE)
        set_dirty(engine, slot->gpa + at);
}

/* Linux, Documentation/admin-guide/mm/pagemap.rst: bit 63 in memory, bit 62 swapped out. */
static void set_populated_dirty(const struct kvm_engine *engine, const struct kvm_slot *slot) {
    enum { ENTRIES = 512 };
    uint64_t entries[ENTRIES];
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t pages = slot->size / PAGE_SIZE, first = (uintptr_t)slot->host / PAGE_SIZE;
    for (uint64_t n = 0; n < pages; n += ENTRIES) {
        uint64_t count = pages - n < ENTRIES ? pages - n : ENTRIES;
        ssize_t length = (ssize_t)(count * sizeof entries[0]);
        if (fd < 0 || pread(fd, entries, (size_t)length, (off_t)((first + n) * 8)) != length) {
            set_all_dirty(engine, slot);
            break;
        }
        for (uint64_t i = 0; i < count; i++) {
            if (entries[i] >> 62 != 0)
                set_dirty(engine, slot->gpa + (n + i) * PAGE_SIZE);
        }
    }
    if (fd >= 0)
        close(fd);
}

static void start_log(struct kvm_engine *engine) {
    engine->dirty_log = true;
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        const struct kvm_slot *slot = &engine->slot[i];
        if (slot->size == 0 || slot->readonly)
            continue;
        if (kvm_slot_tell(engine, i) < 0)
            log_error("KVM refused to log writes at %#lx", slot->gpa);
        set_populated_dirty(engine, slot);
    }
}

void kvm_dirty_collect(struct kvm_engine *engine, unsigned number) {
    const struct kvm_slot *slot = &engine->slot[number];
    if (!engine->dirty_log || slot->size == 0 || slot->readonly)
        return;
    uint64_t pages = slot->size / PAGE_SIZE;
    uint64_t *bitmap = calloc((pages + 63) / 64, sizeof *bitmap);
    struct kvm_dirty_log log = {.slot = number, .dirty_bitmap = bitmap};
    if (bitmap == NULL || kvm_ioctl(engine->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0) {
        set_all_dirty(engine, slot);
        free(bitmap);
        return;
    }
    for (uint64_t n = 0; n < pages; n++) {
        if (bitmap[n / 64] == 0)
            n |= 63;
        else if (bitmap[n / 64] >> (n % 64) & 1)
            set_dirty(engine, slot->gpa + n * PAGE_SIZE);
    }
    free(bitmap);
}

void kvm_dirty_wanted(void *context, uint64_t gpa, uint64_t size) {
    struct kvm_engine *engine = context;
    lock_take(&engine->slot_lock);
    if (!engine->dirty_log)
        start_log(engine);
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        const struct kvm_slot *slot = &engine->slot[i];
        if (slot->size != 0 && slot->gpa < gpa + size && gpa < slot->gpa + slot->size)
            kvm_dirty_collect(engine, i);
    }
    lock_release(&engine->slot_lock);
}
