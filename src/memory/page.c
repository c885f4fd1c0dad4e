/*
 * What a guest-physical page is: the look-ups that translated code reaches
 * with its vector registers alive, so compiled for general registers alone.
 */
#include "base/bytes.h"
#include "memory/private.h"

const struct ram_region *memory_region(const struct memory *memory, uint64_t gpa) {
    for (unsigned i = 0; i < memory->ram_count; i++) {
        const struct ram_region *region = &memory->ram[i];
        if (gpa >= region->gpa && gpa - region->gpa < region->size)
            return region;
    }
    return NULL;
}

static uint64_t look_up(const struct view *view, uint64_t gpa) {
    const struct override_node *node = view->root;
    for (int level = VIEW_LEVELS - 1; level > 0 && node != NULL; level--)
        node = atomic_load_explicit(&node->slot[view_slot(gpa, level)].node, memory_order_acquire);
    if (node == NULL)
        return 0;
    return atomic_load_explicit(&node->slot[view_slot(gpa, 0)].entry, memory_order_acquire);
}

void view_page(const struct view *view, uint64_t gpa, struct mem_page *page) {
    uint64_t entry = view->root == NULL || gpa >= MEMORY_GPA_LIMIT ? 0 : look_up(view, gpa);
    uint64_t target = round_down(gpa, PAGE_SIZE);
    if (entry & ENTRY_REMAP)
        target = entry & ENTRY_TARGET;
    *page = (struct mem_page){
        .rights = entry != 0 ? entry & ENTRY_RIGHTS : MEM_ALL,
        .region_gpa = target,
    };
    const struct ram_region *region = memory_region(view->memory, target);
    if (region == NULL)
        return;
    uint64_t offset = target - region->gpa;
    _Atomic(uint8_t) *flags = &region->flags[offset >> PAGE_SHIFT];
    uint8_t bits = atomic_load_explicit(flags, memory_order_relaxed);
    if ((bits & MEM_PAGE_ABSENT) || ((bits & MEM_PAGE_HIDDEN) && !(entry & ENTRY_REMAP)))
        return;
    page->host = region->host + offset;
    page->flags = flags;
    page->fresh = memory_is_fresh(region, target);
    page->rom = region->rom || (bits & MEM_PAGE_READONLY);
    if (page->rom)
        page->rights &= (uint8_t)~MEM_WRITE;
}
