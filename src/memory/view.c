/*
 * Views: sparse overrides on top of the identity. A radix tree by page number
 * (four levels of 1024) that only grows while the view lives, so that look-ups
 * need no lock: a slot is either empty or final in its pointer, and a page's
 * entry is one word.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "memory/private.h"

/* One call may not ask for more: a leaf costs 8 bytes a page. */
#define PROTECT_MAX TIB_1
#define TIB_1       (UINT64_C(1) << 40)

/* memory->lock held: the page's leaf word, or NULL when it is not there and may not be made. */
static _Atomic(uint64_t) *leaf(struct view *view, uint64_t gpa, bool make) {
    struct override_node *node = view->root;
    for (int level = VIEW_LEVELS - 1; level > 0; level--) {
        _Atomic(struct override_node *) *slot = &node->slot[view_slot(gpa, level)].node;
        node = atomic_load(slot);
        if (node == NULL) {
            node = make ? calloc(1, sizeof *node) : NULL;
            if (node == NULL)
                return NULL;
            atomic_store_explicit(slot, node, memory_order_release);
        }
    }
    return &node->slot[view_slot(gpa, 0)].entry;
}

static void free_node(struct override_node *node, int level) {
    if (node == NULL)
        return;
    for (unsigned i = 0; level > 0 && i < VIEW_LEVEL_SLOTS; i++)
        free_node(atomic_load(&node->slot[i].node), level - 1);
    free(node);
}

struct view *memory_default_view(struct memory *memory) {
    return &memory->default_view;
}

struct memory *view_memory(const struct view *view) {
    return view->memory;
}

const char *view_name(const struct view *view) {
    return view->name;
}

int view_create(struct memory *memory, const char *name, struct view **view, struct error *err) {
    struct view *made = calloc(1, sizeof *made);
    if (made != NULL)
        made->root = calloc(1, sizeof *made->root);
    if (made == NULL || made->root == NULL) {
        free(made);
        return error_set_errno(err, -ENOMEM, "cannot make view %s", name);
    }
    made->memory = memory;
    snprintf(made->name, sizeof made->name, "%s", name);
    lock_take(&memory->lock);
    made->next = memory->views;
    memory->views = made;
    lock_release(&memory->lock);
    *view = made;
    return 0;
}

void view_destroy(struct view *view) {
    if (view == NULL || view->root == NULL)
        return;
    struct memory *memory = view->memory;
    lock_take(&memory->lock);
    struct view **at = &memory->views;
    while (*at != view)
        at = &(*at)->next;
    *at = view->next;
    lock_release(&memory->lock);
    free_node(view->root, VIEW_LEVELS - 1);
    free(view);
}

static bool good_range(const struct view *view, uint64_t gpa, uint64_t size) {
    return view->root != NULL && ((gpa | size) & (PAGE_SIZE - 1)) == 0 && size <= PROTECT_MAX &&
           range_within(gpa, size, MEMORY_GPA_LIMIT);
}

/* Lock held. All leaves are made before the first entry changes, so that -ENOMEM changes nothing.
 */
static int make_leaves(struct view *view, uint64_t gpa, uint64_t size) {
    for (uint64_t at = 0; at < size; at += PAGE_SIZE) {
        if (leaf(view, gpa + at, true) == NULL)
            return -ENOMEM;
    }
    return 0;
}

int view_protect(struct view *view, uint64_t gpa, uint64_t size, unsigned rights) {
    if (!good_range(view, gpa, size) || (rights & ~(unsigned)MEM_ALL))
        return -EINVAL;
    lock_take(&view->memory->lock);
    int rc = make_leaves(view, gpa, size);
    for (uint64_t at = 0; rc == 0 && at < size; at += PAGE_SIZE) {
        _Atomic(uint64_t) *entry = leaf(view, gpa + at, false);
        uint64_t kept = atomic_load(entry) & (ENTRY_REMAP | ENTRY_TARGET);
        atomic_store(entry, kept | ENTRY_VALID | rights);
    }
    lock_release(&view->memory->lock);
    if (rc == 0)
        memory_tell_changed(view->memory, view, gpa, size);
    return rc;
}

int view_remap(struct view *view, uint64_t gpa, uint64_t target) {
    if (!good_range(view, gpa, PAGE_SIZE) || (target & (PAGE_SIZE - 1)))
        return -EINVAL;
    const struct ram_region *region = memory_region(view->memory, target);
    if (region == NULL || region->rom)
        return -EFAULT;
    lock_take(&view->memory->lock);
    int rc = make_leaves(view, gpa, PAGE_SIZE);
    if (rc == 0) {
        _Atomic(uint64_t) *entry = leaf(view, gpa, false);
        uint64_t old = atomic_load(entry);
        uint64_t rights = old != 0 ? old & ENTRY_RIGHTS : MEM_ALL;
        atomic_store(entry, target | ENTRY_REMAP | ENTRY_VALID | rights);
    }
    lock_release(&view->memory->lock);
    if (rc == 0)
        memory_tell_changed(view->memory, view, gpa, PAGE_SIZE);
    return rc;
}

void view_restore(struct view *view, uint64_t gpa, uint64_t size) {
    if (!good_range(view, gpa, size))
        return;
    lock_take(&view->memory->lock);
    for (uint64_t at = 0; at < size; at += PAGE_SIZE) {
        _Atomic(uint64_t) *entry = leaf(view, gpa + at, false);
        if (entry != NULL)
            atomic_store(entry, 0);
    }
    lock_release(&view->memory->lock);
    memory_tell_changed(view->memory, view, gpa, size);
}
