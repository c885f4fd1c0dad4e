/*
 * Page walks: 32-bit two-level with 4 MiB pages, PAE, and four levels.
 * AMD64 APM vol. 2, chapter 5. PAE's four top entries are read when they are
 * used, as AMD's processors do. Five levels are not offered (CR4.LA57).
 */
#include "cpu/soft/outside.h"
#include "cpu/soft/verify.h"

enum {
    PTE_P = 1 << 0,
    PTE_W = 1 << 1,
    PTE_U = 1 << 2,
    PTE_A = 1 << 5,
    PTE_D = 1 << 6,
    PTE_PS = 1 << 7,
    PTE_G = 1 << 8,
};
#define PTE_NX      (UINT64_C(1) << 63)
#define PTE_ADDRESS (((UINT64_C(1) << ADDRESS_BITS_MOST) - 1) & PAGE_MASK)

/* One level's entry: where it is and what it held when it was read. */
struct entry {
    uint8_t *host; /* NULL: not RAM */
    _Atomic(uint8_t) *flags;
    uint64_t gpa;
    uint64_t value;
    bool readonly; /* ROM: accessed bits cannot be set */
};

enum walk_result { WALK_DONE, WALK_FAULT, WALK_AGAIN };

struct walker {
    struct soft_cpu *cpu;
    uint64_t linear;
    unsigned access;
    unsigned levels; /* entries used so far */
    struct entry entry[4];
    uint8_t rights; /* so far */
    uint32_t error; /* #PF error code bits P and RSVD, when the walk ends in a fault */
    struct fault *fault;
};

static bool stop_trap(struct walker *w, uint64_t gpa, unsigned access) {
    exit_trap(w->cpu, gpa, w->linear, access);
    *w->fault = (struct fault){.vector = FAULT_STOP};
    return false;
}

/* Reads an entry of 4 or 8 bytes. Where there is no RAM the bus answers all-ones. */
static bool entry_read(struct walker *w, uint64_t gpa, unsigned size, struct entry *entry) {
    struct mem_page page;
    view_page(w->cpu->view, gpa, &page);
    *entry = (struct entry){.gpa = gpa, .flags = page.flags, .value = UINT64_MAX};
    if (page.host == NULL)
        return true;
    if (!(page.rights & MEM_READ) && !(w->access & ACCESS_PROBE))
        return stop_trap(w, gpa, MEM_READ);
    entry->host = page.host + (gpa & (PAGE_SIZE - 1));
    entry->readonly = page.rom;
    if (size == 8)
        entry->value = __atomic_load_n((uint64_t *)(void *)entry->host, __ATOMIC_RELAXED);
    else
        entry->value = __atomic_load_n((uint32_t *)(void *)entry->host, __ATOMIC_RELAXED);
    return true;
}

static bool next_level(struct walker *w, uint64_t gpa, unsigned size) {
    return entry_read(w, gpa, size, &w->entry[w->levels++]);
}

/* Takes the present entry into account. False: not present or a reserved bit is set. */
static bool entry_check(struct walker *w, uint64_t reserved) {
    uint64_t value = w->entry[w->levels - 1].value;
    if (!(value & PTE_P)) {
        w->error = 0;
        return false;
    }
    if (!(w->cpu->efer & EFER_NXE))
        reserved |= PTE_NX;
    if (value & reserved) {
        w->error = PF_PRESENT | PF_RESERVED;
        return false;
    }
    return true;
}

static void entry_rights(struct walker *w) {
    uint64_t value = w->entry[w->levels - 1].value;
    if (!(value & PTE_W))
        w->rights &= ~PAGE_WRITE;
    if (!(value & PTE_U))
        w->rights &= ~PAGE_USER;
    if (value & PTE_NX)
        w->rights &= ~PAGE_EXECUTE;
}

/* Sets bits in an entry that still holds what the walk saw. */
static enum walk_result entry_mark(struct walker *w, struct entry *entry, uint64_t bits,
                                   unsigned size) {
    if ((entry->value & bits) == bits || entry->host == NULL || entry->readonly)
        return WALK_DONE;
    struct mem_page page;
    view_page(w->cpu->view, entry->gpa, &page);
    if (!(page.rights & MEM_WRITE)) {
        stop_trap(w, entry->gpa, MEM_WRITE);
        return WALK_FAULT;
    }
    atomic_fetch_or_explicit(entry->flags, MEM_PAGE_DIRTY, memory_order_relaxed);
    bool same;
    if (size == 8) {
        uint64_t old = entry->value;
        same = __atomic_compare_exchange_n((uint64_t *)(void *)entry->host, &old, old | bits, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    } else {
        uint32_t old = (uint32_t)entry->value;
        same =
            __atomic_compare_exchange_n((uint32_t *)(void *)entry->host, &old, old | (uint32_t)bits,
                                        false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    if (!same)
        return WALK_AGAIN;
    entry->value |= bits;
    if (unlikely(w->cpu->verifying))
        verify_marked(w->cpu, entry->host);
    if (atomic_load_explicit(entry->flags, memory_order_relaxed) & MEM_PAGE_CODE)
        outside_code_written(w->cpu, page.region_gpa + (entry->gpa & (PAGE_SIZE - 1)), size);
    return WALK_DONE;
}

/* The walk reached a leaf of w->levels entries: rights, then accessed and dirty bits. */
static enum walk_result walk_finish(struct walker *w, unsigned entry_size) {
    struct entry *leaf = &w->entry[w->levels - 1];
    if (w->access & ACCESS_PROBE)
        return WALK_DONE;
    if (leaf->value & PTE_D)
        w->rights |= PAGE_DIRTY;
    unsigned needed = w->rights | (w->access & ACCESS_WRITE ? PAGE_DIRTY : 0);
    if (!mmu_allows(w->cpu, needed, w->access)) {
        w->error = PF_PRESENT;
        return WALK_FAULT;
    }
    for (unsigned i = 0; i < w->levels; i++) {
        bool dirty = &w->entry[i] == leaf && (w->access & ACCESS_WRITE);
        enum walk_result result =
            entry_mark(w, &w->entry[i], dirty ? PTE_A | PTE_D : PTE_A, entry_size);
        if (result != WALK_DONE)
            return result;
    }
    w->rights = (uint8_t)needed;
    return WALK_DONE;
}

static struct mmu_directory *directory_slot(const struct walker *w, uint64_t *tag) {
    uint64_t number = w->linear >> 21;
    *tag = number << 12 | w->cpu->tlb_context;
    return &mmu_of(w->cpu)->directories[number % MMU_DIRECTORIES];
}

/* The last level of PAE and four-level paging, its table known. */
static enum walk_result walk_table(struct walker *w, uint64_t table, struct walk *walk) {
    if (!next_level(w, table + (w->linear >> 12 & 511) * 8, 8) ||
        !entry_check(w, w->cpu->pte_beyond))
        return WALK_FAULT;
    entry_rights(w);
    uint64_t value = w->entry[w->levels - 1].value;
    walk->gpa = value & PTE_ADDRESS;
    walk->global = value & PTE_G;
    walk->size = PAGE_SIZE;
    return walk_finish(w, 8);
}

static enum walk_result walk_large(struct walker *w, unsigned shift, struct walk *walk) {
    uint64_t value = w->entry[w->levels - 1].value, size = UINT64_C(1) << shift;
    /* Bit 12 is PAT; the others below the page's size are reserved. */
    if (!entry_check(w, w->cpu->pte_beyond | ((size - 1) & PAGE_MASK & ~UINT64_C(0x1000))))
        return WALK_FAULT;
    entry_rights(w);
    walk->gpa = (value & PTE_ADDRESS & ~(size - 1)) | (w->linear & (size - 1) & PAGE_MASK);
    walk->global = value & PTE_G;
    walk->size = size;
    return walk_finish(w, 8);
}

/* The upper levels of 8-byte entries, from `shift` down to the page directory. */
static enum walk_result walk_upper(struct walker *w, uint64_t table, unsigned shift,
                                   struct walk *walk) {
    for (; shift >= 21; shift -= 9) {
        if (!next_level(w, table + (w->linear >> shift & 511) * 8, 8))
            return WALK_FAULT;
        uint64_t value = w->entry[w->levels - 1].value;
        if (shift < 39 && (value & (PTE_P | PTE_PS)) == (PTE_P | PTE_PS))
            return walk_large(w, shift, walk);
        if (!entry_check(w, w->cpu->pte_beyond | (shift == 39 ? PTE_PS : 0)))
            return WALK_FAULT;
        entry_rights(w);
        table = value & PTE_ADDRESS;
    }
    uint8_t upper = w->rights;
    enum walk_result result = walk_table(w, table, walk);
    if (result == WALK_DONE && !(w->access & ACCESS_PROBE)) {
        uint64_t tag;
        struct mmu_directory *slot = directory_slot(w, &tag);
        *slot = (struct mmu_directory){.tag = tag, .table = table, .rights = upper};
    }
    return result;
}

/* PAE's page-directory-pointer entries have no rights and no accessed bit (APM vol. 2, 5.2.3). */
static enum walk_result walk_pae(struct walker *w, struct walk *walk) {
    uint64_t cr3 = w->cpu->cr3 & UINT32_C(0xffffffe0);
    struct entry top;
    if (!entry_read(w, cr3 + (w->linear >> 30 & 3) * 8, 8, &top))
        return WALK_FAULT;
    if (!(top.value & PTE_P)) {
        w->error = 0;
        return WALK_FAULT;
    }
    if (top.value & (w->cpu->pte_beyond | (UINT64_C(0xfff) << 52) | 0x1e6)) {
        w->error = PF_PRESENT | PF_RESERVED;
        return WALK_FAULT;
    }
    return walk_upper(w, top.value & PTE_ADDRESS, 21, walk);
}

/* Two levels of 4-byte entries. */
static enum walk_result walk_legacy(struct walker *w, struct walk *walk) {
    uint64_t directory = w->cpu->cr3 & UINT32_C(0xfffff000);
    if (!next_level(w, directory + (w->linear >> 22 & 1023) * 4, 4) || !entry_check(w, 0))
        return WALK_FAULT;
    uint64_t value = w->entry[0].value;
    entry_rights(w);
    if ((value & PTE_PS) && (w->cpu->cr4 & CR4_PSE)) {
        if (!entry_check(w, UINT64_C(1) << 21))
            return WALK_FAULT;
        /* PSE-36: bits 20:13 are address bits 39:32. */
        walk->gpa =
            (value & UINT32_C(0xffc00000)) | (value >> 13 & 0xff) << 32 | (w->linear & 0x3ff000);
        walk->size = UINT64_C(1) << 22;
    } else {
        uint64_t table = value & UINT32_C(0xfffff000);
        if (!next_level(w, table + (w->linear >> 12 & 1023) * 4, 4) || !entry_check(w, 0))
            return WALK_FAULT;
        value = w->entry[1].value;
        entry_rights(w);
        walk->gpa = value & UINT32_C(0xfffff000);
        walk->size = PAGE_SIZE;
    }
    walk->global = value & PTE_G;
    return walk_finish(w, 4);
}

static enum walk_result walk_once(struct walker *w, struct walk *walk) {
    const struct soft_cpu *cpu = w->cpu;
    w->levels = 0;
    w->rights = PAGE_USER | PAGE_WRITE | PAGE_EXECUTE;
    if (!(cpu->cr4 & CR4_PAE))
        return walk_legacy(w, walk);
    if (!(w->access & ACCESS_PROBE)) {
        uint64_t tag;
        const struct mmu_directory *slot = directory_slot(w, &tag);
        if (slot->tag == tag) {
            w->rights = slot->rights;
            return walk_table(w, slot->table, walk);
        }
    }
    if (!(cpu->efer & EFER_LMA))
        return walk_pae(w, walk);
    return walk_upper(w, cpu->cr3 & PTE_ADDRESS, 39, walk);
}

static bool walk_fault(const struct walker *w) {
    const struct soft_cpu *cpu = w->cpu;
    if (w->fault->vector == FAULT_STOP)
        return false;
    uint32_t error = w->error;
    error |= w->access & ACCESS_WRITE ? PF_WRITE : 0;
    error |= w->access & ACCESS_USER ? PF_USER : 0;
    bool fetch_told = (cpu->efer & EFER_NXE && cpu->cr4 & CR4_PAE) || cpu->cr4 & CR4_SMEP;
    error |= w->access & ACCESS_FETCH && fetch_told ? PF_FETCH : 0;
    *w->fault =
        (struct fault){.vector = EXC_PF, .has_error = true, .error = error, .address = w->linear};
    return false;
}

bool mmu_walk(struct soft_cpu *cpu, uint64_t linear, unsigned access, struct walk *walk,
              struct fault *fault) {
    struct walker w; /* the entries are filled as they are read */
    w.cpu = cpu;
    w.linear = linear;
    w.access = access;
    w.fault = fault;
    fault->vector = 0;
    if (!(cpu->cr0 & CR0_PG)) {
        *walk = (struct walk){.gpa = linear & PAGE_MASK,
                              .rights = PAGE_USER | PAGE_WRITE | PAGE_EXECUTE | PAGE_DIRTY,
                              .size = PAGE_SIZE};
        return true;
    }
    cpu->count.page_walks++;
    /* Another processor may change an entry between our read and our update of it. */
    enum walk_result result;
    do
        result = walk_once(&w, walk);
    while (result == WALK_AGAIN);
    if (result == WALK_FAULT)
        return walk_fault(&w);
    walk->rights = w.rights;
    walk->global = walk->global && (cpu->cr4 & CR4_PGE);
    return true;
}

bool mmu_allows(const struct soft_cpu *cpu, unsigned rights, unsigned access) {
    if ((access & ACCESS_WRITE) && !(rights & PAGE_DIRTY))
        return false;
    if ((access & ACCESS_FETCH) && !(rights & PAGE_EXECUTE))
        return false;
    if (access & ACCESS_USER)
        return (rights & PAGE_USER) && (!(access & ACCESS_WRITE) || (rights & PAGE_WRITE));
    if (rights & PAGE_USER && cpu->cr0 & CR0_PG) {
        if (access & ACCESS_FETCH)
            return !(cpu->cr4 & CR4_SMEP);
        if (cpu->cr4 & CR4_SMAP && (access & ACCESS_IMPLICIT || !(cpu->rflags & FLAG_AC)))
            return false;
    }
    return !(access & ACCESS_WRITE) || (rights & PAGE_WRITE) || !(cpu->cr0 & CR0_WP);
}

int mmu_probe(struct soft_cpu *cpu, uint64_t linear, uint64_t *gpa) {
    struct walk walk;
    struct fault fault;
    if (cpu->efer & EFER_LMA ? !linear_canonical(linear) : linear > UINT32_MAX)
        return -EFAULT;
    if (!mmu_walk(cpu, linear, ACCESS_PROBE, &walk, &fault))
        return -EFAULT;
    *gpa = walk.gpa | (linear & (PAGE_SIZE - 1));
    return 0;
}
