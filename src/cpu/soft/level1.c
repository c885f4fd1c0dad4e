/*
 * Level 1 of the software TLB: what inlined accesses check (soft.h, access.h
 * and translated code). Entries are noted as they are filled, so that the
 * flush that each change of address space needs costs what was used since.
 */
#include "base/general.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/verify.h"

enum { TABLES = TLB_INDEXES * TLB_KINDS };

static struct tlb_entry *table_at(struct soft_cpu *cpu, unsigned table) {
    return cpu->tlbs[table / TLB_KINDS][table % TLB_KINDS];
}

static void note_filled(struct level1_filled *filled, unsigned table, unsigned slot) {
    filled->words[table][slot / 64] |= UINT64_C(1) << (slot % 64);
    filled->any[table] |= UINT64_C(1) << (slot / 64);
}

static void empty(struct tlb_entry *entries, unsigned slot) {
    entries[slot] = (struct tlb_entry){.tag = tlb_empty(slot)};
}

static void clear_filled(struct soft_cpu *cpu, struct level1_filled *filled, unsigned table) {
    _Static_assert(TLB_ENTRIES / 64 <= 64, "a bit of `any` for each word");
    struct tlb_entry *entries = table_at(cpu, table);
    for (; filled->any[table] != 0; filled->any[table] &= filled->any[table] - 1) {
        unsigned word = (unsigned)__builtin_ctzll(filled->any[table]);
        uint64_t *bits = &filled->words[table][word];
        for (; *bits != 0; *bits &= *bits - 1)
            empty(entries, 64 * word + (unsigned)__builtin_ctzll(*bits));
    }
}

void level1_flush(struct soft_cpu *cpu, bool global) {
    struct mmu *mmu = mmu_of(cpu);
    outside_answer(cpu);
    jit_change_space(&cpu->jit);
    jit_drop_window(cpu);
    for (unsigned table = 0; table < TABLES; table++) {
        clear_filled(cpu, &mmu->of_space, table);
        if (global)
            clear_filled(cpu, &mmu->of_all, table);
    }
}

void level1_clear(struct soft_cpu *cpu) {
    mmu_drop_writes(cpu);
    for (unsigned table = 0; table < TABLES; table++)
        for (unsigned slot = 0; slot < TLB_ENTRIES; slot++)
            empty(table_at(cpu, table), slot);
    general_fill(&mmu_of(cpu)->of_space, 0, sizeof mmu_of(cpu)->of_space);
    general_fill(&mmu_of(cpu)->of_all, 0, sizeof mmu_of(cpu)->of_all);
}

void level1_drop_page(struct soft_cpu *cpu, uint64_t page) {
    unsigned slot = tlb_slot(page);
    outside_answer(cpu);
    jit_drop_window(cpu);
    for (unsigned table = 0; table < TABLES; table++)
        if (table_at(cpu, table)[slot].tag == page)
            empty(table_at(cpu, table), slot);
}

/* Entries of one list that lie in [page, page + count pages), which its slots do not wrap around.
 */
static void drop_filled(struct soft_cpu *cpu, const struct level1_filled *filled, unsigned table,
                        uint64_t page, unsigned count) {
    struct tlb_entry *entries = table_at(cpu, table);
    for (unsigned word = tlb_slot(page) / 64, left = count / 64; left != 0; word++, left--)
        for (uint64_t bits = filled->words[table][word]; bits != 0; bits &= bits - 1) {
            unsigned slot = 64 * word + (unsigned)__builtin_ctzll(bits);
            if (entries[slot].tag - page < (uint64_t)count * PAGE_SIZE)
                empty(entries, slot);
        }
}

void level1_drop_pages(struct soft_cpu *cpu, uint64_t page, unsigned count) {
    struct mmu *mmu = mmu_of(cpu);
    outside_answer(cpu);
    jit_drop_window(cpu);
    for (unsigned table = 0; table < TABLES; table++) {
        drop_filled(cpu, &mmu->of_space, table, page, count);
        drop_filled(cpu, &mmu->of_all, table, page, count);
    }
}

static void drop_host(struct soft_cpu *cpu, const struct level1_filled *filled, unsigned table,
                      const void *host) {
    struct tlb_entry *entries = table_at(cpu, table);
    for (uint64_t any = filled->any[table]; any != 0; any &= any - 1) {
        unsigned word = (unsigned)__builtin_ctzll(any);
        for (uint64_t bits = filled->words[table][word]; bits != 0; bits &= bits - 1) {
            unsigned slot = 64 * word + (unsigned)__builtin_ctzll(bits);
            if (entries[slot].host == (uintptr_t)host)
                empty(entries, slot);
        }
    }
}

void level1_drop_host_writes(struct soft_cpu *cpu, const void *host) {
    struct mmu *mmu = mmu_of(cpu);
    outside_answer(cpu);
    jit_drop_window(cpu);
    for (unsigned table = TLB_WRITE; table < TABLES; table += TLB_KINDS) {
        drop_host(cpu, &mmu->of_space, table, host);
        drop_host(cpu, &mmu->of_all, table, host);
    }
}

/* ---- Pages that have become code ---- */

static bool is_code(const _Atomic(uint8_t) *flags) {
    return flags != NULL && atomic_load_explicit(flags, memory_order_relaxed) & MEM_PAGE_CODE;
}

/*
 * Whether the entry of a page may stay. The mark says that somebody has one: who watches the page
 * next asks for it then, even if another had watched it, cleared the mark and stopped watching
 * before we answered. As with mmu_enter, the mark comes first and the look at the flag after it.
 */
static bool may_keep(_Atomic(uint8_t) *flags) {
    if (flags == NULL)
        return true;
    uint8_t now = atomic_load_explicit(flags, memory_order_relaxed);
    if (!(now & (MEM_PAGE_CODE | MEM_PAGE_WRITTEN)))
        now = atomic_fetch_or(flags, MEM_PAGE_WRITTEN);
    return !(now & MEM_PAGE_CODE);
}

struct code_pages {
    _Atomic(uint8_t) **found;
    unsigned count, room;
};

static void drop_code(struct soft_cpu *cpu, const struct level1_filled *filled, unsigned index,
                      struct code_pages *pages) {
    unsigned table = index * TLB_KINDS + TLB_WRITE;
    struct tlb_entry *entries = table_at(cpu, table);
    for (uint64_t any = filled->any[table]; any != 0; any &= any - 1) {
        unsigned word = (unsigned)__builtin_ctzll(any);
        for (uint64_t bits = filled->words[table][word]; bits != 0; bits &= bits - 1) {
            unsigned slot = 64 * word + (unsigned)__builtin_ctzll(bits);
            _Atomic(uint8_t) *flags = mmu_of(cpu)->write_flags[index][slot];
            if (entries[slot].tag == tlb_empty(slot) || may_keep(flags))
                continue;
            if (pages->count == pages->room)
                return;
            empty(entries, slot);
            pages->found[pages->count++] = flags;
        }
    }
}

/* Pages that were written by an address that no entry holds any more. */
static void take_replaced(struct mmu *mmu, struct code_pages *pages) {
    for (unsigned i = 0; i < MMU_REPLACED && pages->count < pages->room; i++) {
        if (is_code(mmu->replaced[i]))
            pages->found[pages->count++] = mmu->replaced[i];
        mmu->replaced[i] = NULL;
    }
}

static void take_windows(const struct soft_cpu *cpu, struct code_pages *pages) {
    for (unsigned side = 0; side < JIT_SIDES; side++)
        if (is_code(cpu->jit.stack_flags[side]) && pages->count < pages->room)
            pages->found[pages->count++] = cpu->jit.stack_flags[side];
}

unsigned level1_drop_code_writes(struct soft_cpu *cpu, _Atomic(uint8_t) **found, unsigned room) {
    struct mmu *mmu = mmu_of(cpu);
    struct code_pages pages = {.found = found, .room = room};
    take_windows(cpu, &pages);
    jit_drop_window(cpu);
    take_replaced(mmu, &pages);
    for (unsigned index = 0; index < TLB_INDEXES; index++) {
        drop_code(cpu, &mmu->of_space, index, &pages);
        drop_code(cpu, &mmu->of_all, index, &pages);
    }
    return pages.count;
}

/* Half of the ring holds what translated code may rely on: it checks anew before the ring comes
 * round. */
void level1_note_replaced(struct soft_cpu *cpu, _Atomic(uint8_t) *flags) {
    struct mmu *mmu = mmu_of(cpu);
    mmu->replaced[mmu->replaced_next++ % MMU_REPLACED] = flags;
    if (unlikely(cpu->several) && mmu->replaced_next % (MMU_REPLACED / 2) == 0)
        cpu->jit.epoch++;
}

void level1_note_write(struct soft_cpu *cpu, _Atomic(uint8_t) *flags) {
    level1_note_replaced(cpu, flags);
    atomic_fetch_or(flags, MEM_PAGE_DIRTY | MEM_PAGE_WRITTEN);
}

/* ---- Dirty pages ---- */

static void mark_dirty(_Atomic(uint8_t) *flags) {
    if (flags != NULL)
        atomic_fetch_or_explicit(flags, MEM_PAGE_DIRTY, memory_order_relaxed);
}

_Atomic(uint8_t) *mmu_write_flags(const struct soft_cpu *cpu, uint64_t linear) {
    return mmu_of(cpu)->write_flags[(cpu->tlb - cpu->tlbs[0]) / TLB_KINDS][tlb_slot(linear)];
}

void mmu_drop_writes(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    outside_answer(cpu);
    jit_drop_window(cpu);
    for (unsigned index = 0; index < TLB_INDEXES; index++) {
        for (unsigned slot = 0; slot < TLB_ENTRIES; slot++) {
            empty(cpu->tlbs[index][TLB_WRITE], slot);
            mark_dirty(mmu->write_flags[index][slot]);
        }
    }
    general_fill(mmu->write_flags, 0, sizeof mmu->write_flags);
}

/* ---- In lock-step ---- */

/* What mmu_forget_writes has to forget. */
static void note_entered(struct mmu *mmu, unsigned at) {
    if (mmu->entered_count < MMU_ENTERED_MAX)
        mmu->entered[mmu->entered_count++] = (uint16_t)at;
    else
        mmu->entered_count = MMU_ENTERED_MAX + 1;
}

void mmu_forget_writes(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    jit_drop_window(cpu);
    if (mmu->entered_count > MMU_ENTERED_MAX) {
        for (unsigned at = 0; at < TLB_INDEXES * TLB_ENTRIES; at++)
            empty(cpu->tlbs[at / TLB_ENTRIES][TLB_WRITE], at % TLB_ENTRIES);
        mmu->entered_count = 0;
    }
    while (mmu->entered_count != 0) {
        uint16_t at = mmu->entered[--mmu->entered_count];
        empty(cpu->tlbs[at / TLB_ENTRIES][TLB_WRITE], at % TLB_ENTRIES);
    }
}

/* ---- Filling ---- */

static bool is_filled(const struct level1_filled *filled, unsigned table, unsigned slot) {
    return filled->words[table][slot / 64] >> slot % 64 & 1;
}

/* Entries of both kinds may have been there in turn: then it is not known. */
bool level1_fetch_is_global(const struct soft_cpu *cpu, uint64_t linear) {
    struct mmu *mmu = mmu_of(cpu);
    unsigned slot = tlb_slot(linear), table = (unsigned)(&cpu->tlb[TLB_FETCH] - cpu->tlbs[0]);
    return cpu->tlb[TLB_FETCH][slot].tag == (linear & PAGE_MASK) &&
           is_filled(&mmu->of_all, table, slot) && !is_filled(&mmu->of_space, table, slot);
}

static void enter(struct soft_cpu *cpu, uint64_t linear, const struct mmu_page *page,
                  enum tlb_kind kind) {
    struct mmu *mmu = mmu_of(cpu);
    cpu->count.tlb_fills++;
    unsigned slot = tlb_slot(linear), table = (unsigned)(&cpu->tlb[kind] - cpu->tlbs[0]);
    cpu->tlb[kind][slot] =
        (struct tlb_entry){.tag = linear & PAGE_MASK, .host = (uintptr_t)page->host};
    note_filled(page->global ? &mmu->of_all : &mmu->of_space, table, slot);
}

void mmu_enter(struct soft_cpu *cpu, uint64_t linear, const struct mmu_page *page,
               enum tlb_kind kind) {
    if (page->host == NULL || page->breakpoint)
        return;
    if (kind != TLB_WRITE) {
        enter(cpu, linear, page, kind);
        return;
    }
    if (page->rom)
        return;
    unsigned slot = tlb_slot(linear), index = (unsigned)((cpu->tlb - cpu->tlbs[0]) / TLB_KINDS);
    _Atomic(uint8_t) **flags = &mmu_of(cpu)->write_flags[index][slot];
    if (unlikely(cpu->verify != NULL)) {
        if (cpu->verifying && verify_note(cpu, page, true) != VERIFY_GOES_ON)
            return;
        note_entered(mmu_of(cpu), index * TLB_ENTRIES + slot);
    }
    if (*flags != page->flags) {
        mark_dirty(*flags);
        level1_note_replaced(cpu, *flags);
    }
    *flags = page->flags;
    /* First the entry, then the look at the flag: whoever marks the page as code after that finds
     * the entry, or asks us to drop it (others_watch). */
    atomic_fetch_or(page->flags, MEM_PAGE_DIRTY | MEM_PAGE_WRITTEN);
    enter(cpu, linear, page, kind);
    if (atomic_load(page->flags) & MEM_PAGE_CODE)
        empty(cpu->tlb[TLB_WRITE], slot);
}
