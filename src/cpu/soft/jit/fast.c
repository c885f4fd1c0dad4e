#include "cpu/soft/jit/fast.h"

#include "cpu/soft/access.h"
#include "cpu/soft/outside.h"

/* An element's size is a constant in each: the host's own instruction has the exact semantics of
 * overlapping operands. */
static void move_run(void *to, const void *from, uint64_t count, unsigned size) {
    switch (size) {
    case 1: __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
    default: __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count)::"memory"); break;
    }
}

static void store_run(void *to, uint64_t value, uint64_t count, unsigned size) {
    switch (size) {
    case 1: __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    default: __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    }
}

/* Elements from an offset to its page's end, at most count. */
static uint64_t on_page(uint64_t offset, uint64_t count, unsigned size) {
    uint64_t room = (PAGE_SIZE - (offset & (PAGE_SIZE - 1))) / size;
    return room < count ? room : count;
}

uint64_t jit_fast_string(struct soft_cpu *cpu, uint32_t number) {
    const struct jit_site *site = &cpu->jit.jit->sites[number];
    const struct insn *insn = &site->block->insns[site->insn];
    enum { LAST_MOVS = 0xa5 }; /* A4, A5; STOS is AA, AB */
    bool repeats = insn->flags & (I_REP | I_REPNE), moves = insn->opcode <= LAST_MOVS;
    unsigned size = insn->size;
    uint64_t count = repeats ? cpu->gpr[RCX] : 1;
    if ((cpu->rflags & FLAG_DF) || insn->address_size != 8)
        return 0;
    while (count != 0) {
        uint64_t to = cpu->gpr[RDI], from = cpu->gpr[RSI];
        /* Segment bases keep page offsets only when they are page-aligned: ES has none here. */
        uint64_t n = on_page(to, count, size);
        uint64_t linear = cpu->seg[insn->seg].read.base + from;
        if (moves)
            n = on_page(linear, n, size);
        void *target = n != 0 ? access_fast(cpu, TLB_WRITE, SEG_ES, to, size) : NULL;
        if (target == NULL || cpu->request != 0)
            return 0;
        if (moves) {
            const void *source = access_fast(cpu, TLB_READ, insn->seg, from, size);
            if (source == NULL)
                return 0;
            move_run(target, source, n, size);
            cpu->gpr[RSI] += n * size;
        } else {
            store_run(target, cpu->gpr[RAX], n, size);
        }
        cpu->gpr[RDI] += n * size;
        count -= n;
        if (repeats)
            cpu->gpr[RCX] = count;
    }
    return 1;
}

void jit_note_jump(struct soft_cpu *cpu, const struct block *block) {
    struct jit_jump *jump = &cpu->jit.jumps[jit_jump_slot(block->rip)];
    jump->rip = block->rip;
    jump->context = cpu->jit.context;
    jump->code = code_executable(&cpu->jit.jit->memory, block->code->entry_saved);
    jit_note_fetch(&cpu->jit, block->rip);
}

uint64_t jit_fast_find(struct soft_cpu *cpu, uint64_t rip) {
    cpu->rip = rip;
    const struct block *block = block_jump(cpu, cpu->jit.key);
    if (block == NULL || block->code == NULL)
        return 0;
    jit_note_jump(cpu, block);
    return 1;
}

static bool fill(struct soft_cpu *cpu, uint64_t linear, enum tlb_kind kind, bool maybe) {
    struct fault fault;
    unsigned access = access_by_cpl(cpu);
    if (kind == TLB_FETCH)
        access |= ACCESS_FETCH;
    else if (kind == TLB_WRITE && !maybe)
        access |= ACCESS_WRITE;
    if (!linear_canonical(linear))
        return false;
    const struct mmu_page *page = mmu_translate(cpu, linear, access, &fault);
    if (page == NULL)
        return false;
    /* Translated for reading: whether a write may follow is a question of its own. */
    if (kind == TLB_WRITE && maybe &&
        (!(page->view_rights & MEM_WRITE) || !mmu_allows(cpu, page->rights, access | ACCESS_WRITE)))
        return false;
    mmu_enter(cpu, linear, page, kind);
    return cpu->tlb[kind][tlb_slot(linear)].tag == (linear & PAGE_MASK);
}

uint64_t jit_fast_fill(struct soft_cpu *cpu, uint64_t linear, uint32_t kind) {
    light_begin(cpu);
    bool filled = fill(cpu, linear, kind & ~(uint32_t)FILL_MAYBE, kind & FILL_MAYBE);
    light_end(cpu);
    return filled;
}
