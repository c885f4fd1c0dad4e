/*
 * The software TLB: filling, flushing, contexts, and what follows from a
 * change of mode. What memory tells is in mmu_listen.c.
 *
 * Page table changes by other processors need nothing here: as on hardware,
 * the guest sends an interrupt and flushes.
 */
#include "cpu/soft/mmu.h"

#include "base/bytes.h"
#include "base/general.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/outside.h"

/* ---- Contexts and flushes ---- */

/* Numbers have run out: nothing cached survives, and counting starts anew. */
void mmu_restart(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    jit_forget_jumps(&cpu->jit);
    level1_clear(cpu);
    general_fill(mmu->pages, 0xff, sizeof mmu->pages);
    general_fill(mmu->directories, 0xff, sizeof mmu->directories);
    general_fill(mmu->large, 0, sizeof mmu->large);
    general_fill(mmu->huge, 0, sizeof mmu->huge);
    general_fill(mmu->context_of, 0, sizeof mmu->context_of);
    mmu->generation = 1;
    mmu->global_context = 0;
    mmu->next_context = 1;
}

static unsigned present_pcid(const struct soft_cpu *cpu) {
    return cpu->cr4 & CR4_PCIDE ? cpu->cr3 & (PCID_COUNT - 1) : 0;
}

static void context_assign(struct soft_cpu *cpu, unsigned pcid, unsigned context) {
    struct mmu *mmu = mmu_of(cpu);
    mmu->flushes++;
    mmu->context_of[pcid] = mmu->generation << 12 | context;
    cpu->tlb_context = context;
    level1_flush(cpu, false);
}

/* The present address space starts with nothing cached. */
static void context_renew(struct soft_cpu *cpu, unsigned pcid) {
    struct mmu *mmu = mmu_of(cpu);
    if (mmu->next_context > MMU_LAST_CONTEXT)
        mmu_restart(cpu);
    context_assign(cpu, pcid, mmu->next_context++);
}

void mmu_set_space(struct soft_cpu *cpu, unsigned pcid, bool keep) {
    struct mmu *mmu = mmu_of(cpu);
    uint32_t held = mmu->context_of[pcid];
    if (!keep || held >> 12 != mmu->generation) {
        context_renew(cpu, pcid);
    } else if (cpu->tlb_context != (held & 0xfff)) {
        cpu->tlb_context = held & 0xfff;
        mmu->flushes++;
        level1_flush(cpu, false);
    }
}

void mmu_flush_space(struct soft_cpu *cpu, unsigned pcid) {
    if (pcid == present_pcid(cpu))
        context_renew(cpu, pcid);
    else
        mmu_of(cpu)->context_of[pcid] = 0;
    mmu_of(cpu)->flushes++;
}

void mmu_flush_spaces(struct soft_cpu *cpu) {
    mmu_of(cpu)->generation++;
    context_renew(cpu, present_pcid(cpu));
}

void mmu_flush_all(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    /* Two numbers are needed; a restart between them would clear the first. */
    if (mmu->next_context + 1 > MMU_LAST_CONTEXT)
        mmu_restart(cpu);
    mmu->global_context = mmu->next_context++;
    jit_forget_jumps(&cpu->jit);
    level1_flush(cpu, true);
    mmu_flush_spaces(cpu);
}

/* Spreads regions of the kernel's half and of programs', which differ in their upper bits only. */
static unsigned large_hash(uint64_t region) {
    _Static_assert(MMU_LARGE_BITS == 1 << 12, "12 bits of hash");
    return (unsigned)(region * UINT64_C(0x9e3779b97f4a7c15) >> 52);
}

static bool bit_test(const uint64_t *bits, uint64_t region) {
    unsigned n = large_hash(region);
    return bits[n / 64] >> (n % 64) & 1;
}

static void bit_set(uint64_t *bits, uint64_t region) {
    unsigned n = large_hash(region);
    bits[n / 64] |= UINT64_C(1) << (n % 64);
}

/* Level 2 entries of a page: its own place in every address space, and one when it is global. */
static struct mmu_page *page_slot(struct mmu *mmu, uint64_t linear, uint64_t context) {
    enum { SPREAD = 0x9e5 };
    return &mmu->pages[((linear >> PAGE_SHIFT) ^ context * SPREAD) & (MMU_PAGES - 1)];
}

static void level2_drop_page(struct mmu *mmu, uint64_t page, uint64_t context) {
    struct mmu_page *entry = page_slot(mmu, page, context);
    if (entry->tag == (page | context))
        entry->tag = MMU_EMPTY;
}

/* A large page's entries: 512 in a row, in some order. */
static void level2_drop_fragments(struct mmu *mmu, uint64_t region, uint64_t context) {
    enum { RUN = MIB(2) / PAGE_SIZE };
    unsigned first = (unsigned)(page_slot(mmu, region, context) - mmu->pages) & ~(RUN - 1u);
    for (unsigned word = first / 64; word < (first + RUN) / 64; word++)
        for (uint64_t bits = mmu->fragments[word]; bits != 0; bits &= bits - 1) {
            struct mmu_page *entry = &mmu->pages[64 * word + (unsigned)__builtin_ctzll(bits)];
            if (entry->tag != MMU_EMPTY && (entry->tag & (PAGE_SIZE - 1)) == context &&
                ((entry->tag ^ region) & ~(MIB(2) - 1)) == 0)
                entry->tag = MMU_EMPTY;
        }
}

void mmu_flush_page(struct soft_cpu *cpu, uint64_t linear) {
    struct mmu *mmu = mmu_of(cpu);
    uint64_t page = linear & PAGE_MASK;
    mmu->flushes++;
    bool large = bit_test(mmu->large, linear >> 21);
    if (large ? jit_fetched_region(&cpu->jit, linear) : jit_fetched_page(&cpu->jit, linear))
        jit_forget_jumps(&cpu->jit);
    if (bit_test(mmu->huge, linear >> 30)) {
        mmu_flush_all(cpu);
        return;
    }
    /* INVLPG also forgets what upper levels said (APM vol. 2, 5.5.2); ours are few. */
    mmu->directories[(linear >> 21) % MMU_DIRECTORIES].tag = MMU_EMPTY;
    if (large) {
        uint64_t region = linear & ~(MIB(2) - 1);
        level1_drop_pages(cpu, region, MIB(2) / PAGE_SIZE);
        level2_drop_fragments(mmu, region, cpu->tlb_context);
        level2_drop_fragments(mmu, region, mmu->global_context);
    } else {
        level1_drop_page(cpu, page);
    }
    level2_drop_page(mmu, page, cpu->tlb_context);
    level2_drop_page(mmu, page, mmu->global_context);
}

/* ---- Filling ---- */

static bool is_lapic_page(const struct soft_cpu *cpu, uint64_t gpa) {
    enum { APIC_X2 = 1 << 10, APIC_ENABLED = 1 << 11 };
    if (cpu->lapic == NULL)
        return false;
    uint64_t base = lapic_base(cpu->lapic);
    return (base & (APIC_ENABLED | APIC_X2)) == APIC_ENABLED &&
           ((base ^ gpa) & ((UINT64_C(1) << 48) - 1) & PAGE_MASK) == 0;
}

/* 4 MiB pages of the 32-bit format are two of 2 MiB. */
static void remember_large(struct mmu *mmu, uint64_t linear, uint64_t size) {
    if (size == GIB(1))
        bit_set(mmu->huge, linear >> 30);
    else if (size == MIB(4)) {
        bit_set(mmu->large, linear >> 22 << 1);
        bit_set(mmu->large, linear >> 22 << 1 | 1);
    } else if (size == MIB(2))
        bit_set(mmu->large, linear >> 21);
}

static struct mmu_page *page_fill(struct soft_cpu *cpu, uint64_t linear, const struct walk *walk) {
    struct mmu *mmu = mmu_of(cpu);
    struct mem_page page;
    uint64_t context = walk->global ? mmu->global_context : cpu->tlb_context;
    struct mmu_page *entry = page_slot(mmu, linear, context);
    view_page(cpu->view, walk->gpa, &page);
    if (unlikely(page.fresh))
        outside_memory_touched(cpu, page.region_gpa);
    *entry = (struct mmu_page){
        .tag = (linear & PAGE_MASK) | context,
        .gpa = walk->gpa,
        .host = page.host,
        .flags = page.flags,
        .rights = walk->rights,
        .view_rights = page.rights,
        .rom = page.rom,
        .global = walk->global,
        .breakpoint = debug_watches_page(cpu, linear & PAGE_MASK),
    };
    if (is_lapic_page(cpu, walk->gpa)) {
        entry->host = NULL;
        entry->lapic = true;
    } else if (page.host != NULL) {
        entry->gpa = page.region_gpa;
    }
    remember_large(mmu, linear, walk->size);
    unsigned slot = (unsigned)(entry - mmu->pages);
    mmu->fragments[slot / 64] &= ~(UINT64_C(1) << slot % 64);
    if (walk->size > PAGE_SIZE)
        mmu->fragments[slot / 64] |= UINT64_C(1) << slot % 64;
    return entry;
}

/* What the view refuses ends the run: the machine decides (introspection, code integrity). */
static bool view_allows(struct soft_cpu *cpu, uint64_t linear, const struct mmu_page *page,
                        unsigned access, struct fault *fault) {
    unsigned wanted = access & ACCESS_FETCH   ? MEM_EXECUTE
                      : access & ACCESS_WRITE ? MEM_WRITE
                                              : MEM_READ;
    if (likely(page->view_rights & wanted) || page->host == NULL ||
        (page->rom && wanted == MEM_WRITE))
        return true;
    exit_trap(cpu, page->gpa | (linear & (PAGE_SIZE - 1)), linear, wanted);
    fault->vector = FAULT_STOP;
    return false;
}

/* The kernel's half of the address space is mostly global: looked up as such first. */
static struct mmu_page *page_find(struct soft_cpu *cpu, uint64_t linear) {
    struct mmu *mmu = mmu_of(cpu);
    uint64_t page = linear & PAGE_MASK;
    bool upper = linear >> 63;
    uint64_t first = upper ? mmu->global_context : cpu->tlb_context;
    uint64_t second = upper ? cpu->tlb_context : mmu->global_context;
    struct mmu_page *entry = page_slot(mmu, linear, first);
    if (likely(entry->tag == (page | first)))
        return entry;
    entry = page_slot(mmu, linear, second);
    return entry->tag == (page | second) ? entry : NULL;
}

bool mmu_is_global(struct soft_cpu *cpu, uint64_t linear) {
    const struct mmu_page *page = page_find(cpu, linear);
    return page != NULL ? page->global : level1_fetch_is_global(cpu, linear);
}

struct mmu_page *mmu_translate(struct soft_cpu *cpu, uint64_t linear, unsigned access,
                               struct fault *fault) {
    struct mmu_page *entry = page_find(cpu, linear);
    if (entry == NULL || !mmu_allows(cpu, entry->rights, access)) {
        struct walk walk;
        bool walked = mmu_walk(cpu, linear, access, &walk, fault);
        /* A fault forgets what was cached (APM vol. 2, 5.5.2); a walk may find another page. */
        if (entry != NULL && (!walked || walk.gpa != entry->gpa))
            mmu_flush_page(cpu, linear);
        if (!walked)
            return NULL;
        entry = page_fill(cpu, linear, &walk);
    }
    return view_allows(cpu, linear, entry, access, fault) ? entry : NULL;
}

bool mmu_fetch_or(struct soft_cpu *cpu, uint64_t linear, struct code_page *code,
                  struct fault *fault) {
    if (!(cpu->mode == INSN_MODE_64))
        linear = (uint32_t)linear;
    else if (unlikely(!linear_canonical(linear)))
        return fault_set(fault, EXC_GP, 0);
    struct mmu_page *page = mmu_translate(cpu, linear, ACCESS_FETCH | access_by_cpl(cpu), fault);
    if (unlikely(page == NULL))
        return false;
    unsigned offset = linear & (PAGE_SIZE - 1);
    *code = (struct code_page){.host = page->host,
                               .gpa = page->gpa + offset,
                               .available = PAGE_SIZE - offset,
                               .flags = page->flags};
    if (page->host == NULL)
        return true;
    code->host += offset;
    mmu_enter(cpu, linear, page, TLB_FETCH);
    return true;
}

bool mmu_fetch(struct soft_cpu *cpu, uint64_t linear, struct code_page *code) {
    struct fault fault;
    if (unlikely(!mmu_fetch_or(cpu, linear, code, &fault)))
        raise_fault(cpu, &fault);
    return code->host != NULL;
}

void mmu_ask_settle(struct soft_cpu *cpu) {
    atomic_fetch_or(&mmu_of(cpu)->wanted, WANT_SETTLE);
    atomic_fetch_or(&cpu->request, REQUEST_FLUSH);
}

/* ---- Mode ---- */

static const struct soft_segment segment_flat = {{0, UINT64_MAX}, {0, UINT64_MAX}};
static const struct soft_segment segment_slow = {{SEGMENT_SLOW, UINT64_MAX},
                                                 {SEGMENT_SLOW, UINT64_MAX}};

static void effective_legacy(const struct soft_cpu *cpu, unsigned seg, struct soft_segment *out) {
    const struct x86_segment *s = &cpu->segment[seg];
    uint64_t base = (uint32_t)s->base;
    *out = segment_slow;
    bool expand_down = (s->attributes & 0xc) == 4;
    if (!(s->attributes & SEG_P) || s->limit < 63 || base + s->limit > UINT32_MAX || expand_down)
        return;
    bool code = s->attributes & 8, second = s->attributes & 2;
    if (!code || second)
        out->read.base = base, out->read.last = s->limit;
    /* In real mode all segments may be written, whatever a far jump left in CS's attributes. */
    bool real = !(cpu->cr0 & CR0_PE) || cpu->rflags & FLAG_VM;
    if (real || (!code && second))
        out->write.base = base, out->write.last = s->limit;
}

static void segments_changed(struct soft_cpu *cpu) {
    if (cpu->cr0 & CR0_AM && cpu->rflags & FLAG_AC && cpu->cpl == 3) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            cpu->seg[i] = segment_slow;
        return;
    }
    if (cpu->mode != INSN_MODE_64) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            effective_legacy(cpu, i, &cpu->seg[i]);
        return;
    }
    for (unsigned i = SEG_ES; i <= SEG_DS; i++)
        cpu->seg[i] = segment_flat;
    for (unsigned i = SEG_FS; i <= SEG_GS; i++) {
        cpu->seg[i] = segment_flat;
        cpu->seg[i].read.base = cpu->seg[i].write.base = cpu->segment[i].base;
    }
}

/* All of 4 GiB, for reading and writing. */
static bool is_flat(const struct soft_segment *s) {
    return s->read.base == 0 && s->read.last == UINT32_MAX && s->write.base == 0 &&
           s->write.last == UINT32_MAX;
}

/* FS and GS outside 64-bit mode: threads' segments begin anywhere and wrap. */
static void narrow_changed(struct soft_cpu *cpu) {
    for (unsigned i = 0; i < 2; i++) {
        const struct x86_segment *s = &cpu->segment[SEG_FS + i];
        bool data = (s->attributes & (SEG_P | 0xe)) == (SEG_P | 2); /* expands up, writable */
        cpu->jit.narrow[i].base = (uint32_t)s->base;
        cpu->jit.narrow[i].mark = data && s->limit == UINT32_MAX ? 0 : SEGMENT_SLOW;
    }
}

/* What translated code takes for granted. */
static void flatness_changed(struct soft_cpu *cpu) {
    if (cpu->mode == INSN_MODE_64) {
        cpu->jit.flat = cpu->seg[SEG_DS].read.base == 0;
        return;
    }
    cpu->jit.flat = cpu->mode == INSN_MODE_32 && cpu->code_base == 0 &&
                    cpu->segment[SEG_CS].limit == UINT32_MAX && cpu->stack_mask == UINT32_MAX &&
                    is_flat(&cpu->seg[SEG_ES]) && is_flat(&cpu->seg[SEG_SS]) &&
                    is_flat(&cpu->seg[SEG_DS]);
    narrow_changed(cpu);
}

void mmu_mode_changed(struct soft_cpu *cpu) {
    unsigned cs = cpu->segment[SEG_CS].attributes, ss = cpu->segment[SEG_SS].attributes;
    if (!(cpu->cr0 & CR0_PE))
        cpu->cpl = 0;
    else if (cpu->rflags & FLAG_VM)
        cpu->cpl = 3;
    cpu->long_mode = cpu->efer & EFER_LMA;
    if (cpu->long_mode && cs & SEG_L) {
        cpu->mode = INSN_MODE_64;
        cpu->stack_mask = UINT64_MAX;
        cpu->code_base = 0;
    } else {
        cpu->mode = cs & SEG_DB ? INSN_MODE_32 : INSN_MODE_16;
        cpu->stack_mask = ss & SEG_DB ? UINT32_MAX : UINT16_MAX;
        cpu->code_base = (uint32_t)cpu->segment[SEG_CS].base;
    }
    cpu->jit.rsp_bits = cpu->stack_mask | UINT32_MAX;
    enum tlb_index index = cpu->cpl == 3                                     ? TLB_USER
                           : cpu->cr4 & CR4_SMAP && !(cpu->rflags & FLAG_AC) ? TLB_SUPERVISOR_SMAP
                                                                             : TLB_SUPERVISOR;
    cpu->tlb = cpu->tlbs[index];
    jit_mode_changed(cpu);
    segments_changed(cpu);
    flatness_changed(cpu);
}
