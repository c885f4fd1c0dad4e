/*
 * Which status flags somebody will still read. Flags that nobody reads need
 * not survive the checks of memory accesses.
 *
 * Backwards over the block; behind it, a look at the code that follows in the
 * same page. That look rests on bytes outside the block: the block is then
 * dropped when those change, too (block.watch_end and watch_start).
 *
 * A store may change the very code that this rests on. Where that is to be
 * expected (code_may_change below) all flags live at stores.
 */
#include "base/bytes.h"
#include "cpu/soft/jit/translation.h"
#include "cpu/soft/mmu.h"

enum { LOOK_AHEAD = 12 };

static bool writes_memory(const struct insn *insn, const struct lowering *l) {
    switch (l->kind) {
    case LOWER_NATIVE: return l->memory_written && insn->flags & I_MEMORY;
    case LOWER_PUSH:
    case LOWER_PUSH_MEMORY:
    case LOWER_CALL:
    case LOWER_MOVS:
    case LOWER_STOS: return true;
    default: return false; /* the rest count as readers of all flags anyhow */
    }
}

/* 66h cuts a branch's target to 16 bits: nobody looks for it there. */
static uint8_t kind_of(const struct insn *insn) {
    bool branch = insn_row_of(insn)->properties & INSN_BRANCH;
    return branch && insn->size == 2 ? LOWER_CALLOUT : lowering_of(insn)->kind;
}

static unsigned live_before(const struct translation *t, const struct insn *insn,
                            unsigned live_after) {
    const struct lowering *l = lowering_of(insn);
    /* Code that is written may read any. */
    if (t->code_may_change && writes_memory(insn, l))
        live_after = FLAGS_STATUS;
    switch (kind_of(insn)) {
    case LOWER_NATIVE: return (live_after & ~(unsigned)l->flags_killed) | l->flags_read;
    case LOWER_NOP:
    case LOWER_LEA:
    case LOWER_PUSH:
    case LOWER_PUSH_MEMORY:
    case LOWER_POP:
    case LOWER_LEAVE:
    case LOWER_CALL:
    case LOWER_JMP:
    case LOWER_SET_AC: return live_after;
    case LOWER_SYSTEM: return insn->flags & I_MEMORY ? FLAGS_STATUS : live_after;
    case LOWER_SYSRET:
    case LOWER_POPF: return 0;
    case LOWER_MOVS:
    case LOWER_STOS: return live_after;
    case LOWER_DIV:
    case LOWER_IDIV: return 0;
    case LOWER_JCC: return live_after | insn_row_of(insn)->flags_read;
    default: return FLAGS_STATUS;
    }
}

static void rest_on(struct block *block, unsigned first, unsigned end) {
    if (first < block->watch_start)
        block->watch_start = (uint16_t)first;
    if (end > block->watch_end)
        block->watch_end = (uint16_t)end;
}

/* The same page's bytes at rip, as the block itself is mapped. */
static const uint8_t *page_bytes(const struct translation *t, uint64_t rip) {
    return t->block->host + (int64_t)(rip - t->block->rip);
}

/* A look ahead: how many instructions are left, and where it has been with which flags. */
struct search {
    unsigned fuel, count;
    struct {
        uint64_t rip;
        unsigned live;
    } been[2 * LOOK_AHEAD + 1];
};

/* True: what can be found there is found already, or being looked for. */
static bool been_there(struct search *search, uint64_t rip, unsigned live) {
    for (unsigned i = 0; i < search->count; i++)
        if (search->been[i].rip == rip && (live & ~search->been[i].live) == 0)
            return true;
    if (search->count < ARRAY_SIZE(search->been)) {
        search->been[search->count].rip = rip;
        search->been[search->count++].live = live;
    }
    return false;
}

/* Of `live`, what code at rip may read before it writes it. */
static unsigned look(struct translation *t, uint64_t rip, unsigned live, struct search *search) {
    if (been_there(search, rip, live))
        return 0;
    while (live != 0 && rip >> PAGE_SHIFT == t->pages_rip && search->fuel > 0) {
        struct insn insn;
        unsigned offset = rip & (PAGE_SIZE - 1);
        int length = insn_decode(&insn, page_bytes(t, rip), PAGE_SIZE - offset, rip, t->mode,
                                 t->cpu->features);
        if (length <= 0)
            return live;
        search->fuel--;
        rest_on(t->block, offset, offset + (unsigned)length);
        const struct lowering *l = lowering_of(&insn);
        rip += (unsigned)length;
        /* What was killed is dead unless it was read before: `read` bits count at once. */
        if (live_before(t, &insn, 0) & live)
            return live;
        uint8_t kind = kind_of(&insn);
        if (kind == LOWER_JMP || kind == LOWER_CALL)
            rip += insn.imm;
        else if (kind == LOWER_JCC)
            return look(t, rip + insn.imm, live, search) | look(t, rip, live, search);
        else if (kind == LOWER_NATIVE)
            live &= ~(unsigned)l->flags_killed;
    }
    return live;
}

/* The page's code has changed itself before; or a program may write it where it runs. (Kernels boot
 * with all of theirs writable and hardly use it.) */
static bool code_may_change(const struct translation *t) {
    struct soft_cpu *cpu = t->cpu;
    struct fault fault;
    const struct mmu_page *page;
    if (block_page_changes_itself(cpu, t->block->gpa[0]))
        return true;
    if (cpu->cpl != 3)
        return false;
    page = mmu_translate(cpu, block_linear(cpu, t->block->rip), ACCESS_FETCH | ACCESS_USER, &fault);
    return page == NULL || page->rights & PAGE_WRITE;
}

unsigned liveness_at(struct translation *t, uint64_t rip) {
    struct search search = {.fuel = LOOK_AHEAD};
    unsigned n = rip % ARRAY_SIZE(t->looked);
    if (t->jit->exact)
        return FLAGS_STATUS;
    if (t->looked[n].rip != rip || rip == 0)
        t->looked[n].live = look(t, rip, FLAGS_STATUS, &search);
    t->looked[n].rip = rip;
    return t->looked[n].live;
}

/* Before an instruction of the path, when `live` is read behind it. */
static unsigned live_at_insn(struct translation *t, unsigned i, unsigned live) {
    const struct insn *insn = &t->insns[i];
    uint8_t kind = kind_of(insn);
    /* A jump whose condition is known goes one way only; code entered before it still asks. */
    if (t->kinds[i] == LOWER_NOP)
        return live | insn_row_of(insn)->flags_read;
    uint64_t next = t->block->rip + insn->offset + insn->length;
    if (kind == LOWER_JMP || kind == LOWER_CALL)
        return liveness_at(t, next + insn->imm);
    if (kind == LOWER_JCC)
        live |= liveness_at(t, next + insn->imm);
    return live_before(t, insn, live);
}

void liveness_find(struct translation *t) {
    struct block *block = t->block;
    const struct insn *last = &t->insns[t->count - 1];
    uint64_t next = block->rip + last->offset + last->length;
    t->code_may_change = code_may_change(t);
    unsigned live = liveness_at(t, next);
    t->live[t->count] = (uint16_t)live;
    for (unsigned i = t->count; i-- > 0;) {
        live = t->jit->exact ? FLAGS_STATUS : live_at_insn(t, i, live);
        t->live[i] = (uint16_t)live;
    }
}
