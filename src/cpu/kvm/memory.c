/*
 * Memory slots follow the default view: a slot for every run of pages that lie
 * next to each other in guest-physical and host memory. A change (a BAR laid
 * over RAM, a page remapped) cuts the slots that it touches and rebuilds that
 * range from view_page, with all vCPUs out of the guest meanwhile.
 *
 * Rights below "all" cannot be told to the kernel: such pages get no slot, so
 * that accesses leave the guest and find nothing. (The engine refuses views;
 * this keeps a restricted default view from being ignored silently.)
 */
#include "base/bytes.h"
#include "base/log.h"
#include "cpu/kvm/kvm.h"

int kvm_slot_tell(struct kvm_engine *engine, unsigned number) {
    const struct kvm_slot *slot = &engine->slot[number];
    struct kvm_userspace_memory_region region = {
        .slot = number,
        .flags = slot->readonly      ? KVM_MEM_READONLY
                 : engine->dirty_log ? KVM_MEM_LOG_DIRTY_PAGES
                                     : 0,
        .guest_phys_addr = slot->gpa,
        .memory_size = slot->size,
        .userspace_addr = (uintptr_t)slot->host,
    };
    return kvm_ioctl(engine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static void remove_slot(struct kvm_engine *engine, unsigned number) {
    kvm_dirty_collect(engine, number);
    engine->slot[number].size = 0;
    kvm_slot_tell(engine, number);
}

/* Takes out the slots that `wanted` continues or that continue it; it covers them then. */
static void absorb(struct kvm_engine *engine, struct kvm_slot *wanted) {
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        struct kvm_slot other = engine->slot[i];
        if (other.size == 0 || other.readonly != wanted->readonly)
            continue;
        bool before =
            other.gpa + other.size == wanted->gpa && other.host + other.size == wanted->host;
        bool after =
            wanted->gpa + wanted->size == other.gpa && wanted->host + wanted->size == other.host;
        if (!(before || after))
            continue;
        remove_slot(engine, i);
        if (before) {
            wanted->gpa = other.gpa;
            wanted->host = other.host;
        }
        wanted->size += other.size;
    }
}

static void add_slot(struct kvm_engine *engine, struct kvm_slot wanted) {
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        if (engine->slot[i].size != 0)
            continue;
        engine->slot[i] = wanted;
        int code = kvm_slot_tell(engine, i);
        if (code < 0) {
            engine->slot[i].size = 0;
            if (engine->slot_error == 0)
                engine->slot_error = code;
            log_error("KVM refused memory at %#lx, %#lx bytes (error %d)", wanted.gpa, wanted.size,
                      -code);
        }
        return;
    }
    /* A guest can get here by scattering BARs over its RAM: what is left out answers like a hole.
     */
    log_guest("KVM memory slots used up: %#lx bytes at %#lx are left out", wanted.size, wanted.gpa);
}

/* Takes [gpa, gpa+size) out of all slots; what they have before and after it stays. */
static void cut(struct kvm_engine *engine, uint64_t gpa, uint64_t size) {
    for (unsigned i = 0; i < KVM_SLOTS_MAX; i++) {
        struct kvm_slot old = engine->slot[i];
        if (old.size == 0 || old.gpa >= gpa + size || gpa >= old.gpa + old.size)
            continue;
        remove_slot(engine, i);
        struct kvm_slot before = old, after = old;
        if (old.gpa < gpa) {
            before.size = gpa - old.gpa;
            add_slot(engine, before);
        }
        if (gpa + size < old.gpa + old.size) {
            uint64_t skip = gpa + size - old.gpa;
            after.gpa += skip;
            after.host += skip;
            after.size -= skip;
            add_slot(engine, after);
        }
    }
}

/* The slot that one page wants; size 0 for none. */
static struct kvm_slot page_slot(const struct view *view, uint64_t gpa) {
    struct mem_page page;
    view_page(view, gpa, &page);
    struct kvm_slot slot = {.gpa = gpa};
    bool readonly = page.rom;
    unsigned needed = readonly ? MEM_READ | MEM_EXECUTE : MEM_ALL;
    if (page.host != NULL && (page.rights & needed) == needed)
        slot = (struct kvm_slot){gpa, PAGE_SIZE, page.host, readonly};
    return slot;
}

/* Memory that is plugged in piece by piece would use the slots up one by one. */
static void add_run(struct kvm_engine *engine, struct kvm_slot run) {
    if (run.size == 0)
        return;
    absorb(engine, &run);
    add_slot(engine, run);
}

static void rebuild(struct kvm_engine *engine, uint64_t gpa, uint64_t size) {
    const struct view *view = memory_default_view(engine->engine.config.memory);
    struct kvm_slot run = {0};
    for (uint64_t page = gpa; page < gpa + size; page += PAGE_SIZE) {
        struct kvm_slot next = page_slot(view, page);
        if (run.size != 0 && next.size != 0 && next.host == run.host + run.size &&
            next.readonly == run.readonly) {
            run.size += PAGE_SIZE;
            continue;
        }
        add_run(engine, run);
        run = next;
    }
    add_run(engine, run);
}

static void ram_added(void *context, uint64_t gpa, uint64_t size, void *host, bool readonly) {
    struct kvm_engine *engine = context;
    lock_take(&engine->slot_lock);
    if (host != NULL)
        add_slot(engine, (struct kvm_slot){gpa, size, host, readonly});
    if (gpa + size > engine->ram_end)
        engine->ram_end = gpa + size;
    lock_release(&engine->slot_lock);
}

/* True when the slots already say what the view says: most changes are BARs outside RAM. */
static bool up_to_date(const struct kvm_engine *engine, uint64_t gpa, uint64_t end) {
    const struct view *view = memory_default_view(engine->engine.config.memory);
    for (uint64_t page = gpa; page < end; page += PAGE_SIZE) {
        struct kvm_slot wanted = page_slot(view, page);
        const uint8_t *host = NULL;
        bool readonly = false;
        for (unsigned i = 0; i < KVM_SLOTS_MAX && host == NULL; i++) {
            const struct kvm_slot *slot = &engine->slot[i];
            if (slot->size != 0 && page - slot->gpa < slot->size) {
                host = slot->host + (page - slot->gpa);
                readonly = slot->readonly;
            }
        }
        if (wanted.size == 0 ? host != NULL : wanted.host != host || wanted.readonly != readonly)
            return false;
    }
    return true;
}

static void changed(void *context, const struct view *view, uint64_t gpa, uint64_t size) {
    struct kvm_engine *engine = context;
    if (view != memory_default_view(engine->engine.config.memory))
        return;
    lock_take(&engine->slot_lock);
    uint64_t end = engine->ram_end;
    if (gpa < end && size < end - gpa)
        end = round_up(gpa + size, PAGE_SIZE);
    gpa = round_down(gpa, PAGE_SIZE);
    bool stale = gpa < end && !up_to_date(engine, gpa, end);
    lock_release(&engine->slot_lock);
    if (!stale)
        return;
    kvm_hold(engine);
    lock_take(&engine->slot_lock);
    cut(engine, gpa, end - gpa);
    rebuild(engine, gpa, end - gpa);
    lock_release(&engine->slot_lock);
    kvm_release(engine);
}

int kvm_memory_init(struct kvm_engine *engine, struct error *err) {
    lock_init(&engine->slot_lock, LOCK_MEMORY, "kvm slots");
    engine->listener = (struct memory_listener){
        .ram_added = ram_added,
        .changed = changed,
        .dirty_wanted = kvm_dirty_wanted,
        .context = engine,
    };
    int code = memory_add_listener(engine->engine.config.memory, &engine->listener);
    if (code < 0) {
        engine->listener.context = NULL;
        return error_set_errno(err, code, "watching guest memory");
    }
    if (engine->slot_error < 0)
        return error_set_errno(err, engine->slot_error, "giving guest memory to KVM");
    return 0;
}

void kvm_memory_destroy(struct kvm_engine *engine) {
    if (engine->listener.context != NULL)
        memory_remove_listener(engine->engine.config.memory, &engine->listener);
}
