#include "cpu/soft/jit/fast.h"

#include "cpu/soft/access.h"
#include "cpu/soft/jit/x87_live.h"
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

static const struct jit_site *site_at(const struct soft_cpu *cpu, uint32_t number) {
    return jit_at(cpu->jit.jit, number);
}

static struct block *block_of(const struct jit_site *site) {
    return jit_block_of_site(site)->block;
}

static const uint8_t *code_at(const struct soft_cpu *cpu, const struct jit_site *site,
                              unsigned at) {
    return jit_code(cpu->jit.jit, jit_block_of_site(site), at);
}

/* Looking at page tables may have shown that something changed: the call-out leaves then. */
static bool earlier_checks_fail(const struct soft_cpu *cpu) {
    return cpu->jit.epoch != cpu->jit.entered_epoch;
}

/* ---- Strings ---- */

/* A pointer or counter of a string instruction, in its address size. */
static void set_address(struct soft_cpu *cpu, unsigned n, uint64_t value, uint64_t mask) {
    cpu->gpr[n] = value & mask;
}

/* The page of an element, looked for when the TLB does not have it. In 64-bit mode the access is
 * then sure to find it: its dirty bit is not set in vain. */
static void *page_of(struct soft_cpu *cpu, enum tlb_kind kind, unsigned seg, uint64_t offset,
                     unsigned size) {
    void *host = access_fast(cpu, kind, seg, offset, size);
    if (likely(host != NULL) || cpu->mode != INSN_MODE_64)
        return host;
    uint64_t base = kind == TLB_WRITE ? cpu->seg[seg].write.base : cpu->seg[seg].read.base;
    if (base == SEGMENT_SLOW || !jit_fast_fill(cpu, base + offset, kind) ||
        earlier_checks_fail(cpu))
        return NULL;
    return access_fast(cpu, kind, seg, offset, size);
}

/* True: all of it is done. What was done stands in any case. */
static bool run_string(struct soft_cpu *cpu, const struct insn *insn) {
    enum { LAST_MOVS = 0xa5 }; /* A4, A5; STOS is AA, AB */
    bool repeats = insn->flags & (I_REP | I_REPNE), moves = insn->opcode <= LAST_MOVS;
    unsigned size = insn->size;
    uint64_t mask = insn->address_size == 8 ? UINT64_MAX : UINT32_MAX;
    uint64_t count = repeats ? cpu->gpr[RCX] & mask : 1;
    if ((cpu->rflags & FLAG_DF) || insn->address_size == 2)
        return false;
    while (count != 0) {
        uint64_t to = cpu->gpr[RDI] & mask, from = cpu->gpr[RSI] & mask;
        /* Segment bases keep page offsets only when they are page-aligned: ES has none here. */
        uint64_t n = on_page(to, count, size);
        uint64_t linear = cpu->seg[insn->seg].read.base + from;
        if (moves)
            n = on_page(linear, n, size);
        if (n == 0 || soft_requested(cpu))
            return false;
        const void *source = moves ? page_of(cpu, TLB_READ, insn->seg, from, size) : NULL;
        if (moves && source == NULL)
            return false;
        void *target = page_of(cpu, TLB_WRITE, SEG_ES, to, size);
        if (target == NULL)
            return false;
        if (moves) {
            move_run(target, source, n, size);
            set_address(cpu, RSI, from + n * size, mask);
        } else {
            store_run(target, cpu->gpr[RAX], n, size);
        }
        set_address(cpu, RDI, to + n * size, mask);
        count -= n;
        if (repeats)
            set_address(cpu, RCX, count, mask);
    }
    return true;
}

const uint8_t *jit_fast_string(struct soft_cpu *cpu, uint64_t unused, uint32_t number) {
    const struct jit_site *site = site_at(cpu, number);
    const struct insn *insns = block_of(site)->insns;
    if (insns == NULL)
        return NULL;
    return run_string(cpu, &insns[site->insn]) ? code_at(cpu, site, site->resume) : NULL;
}

/* ---- x87 ---- */

const uint8_t *jit_fast_x87(struct soft_cpu *cpu, uint64_t unused, uint32_t number) {
    enum { FSW_ES = 0x80 };
    if ((cpu->fsw & FSW_ES) || block_x87_raises(cpu))
        return NULL;
    jit_x87_load(cpu);
    const struct jit_site *site = site_at(cpu, number);
    return code_at(cpu, site, site->retry);
}

/* ---- What is known by a call ---- */

/* Takes the call off the shadow stack. */
static const uint64_t *take_call(struct soft_cpu *cpu) {
    const uint64_t *top =
        (uint64_t *)(uintptr_t)cpu->jit.shadow_rsp; /* NOLINT(performance-no-int-to-ptr) */
    cpu->jit.shadow_rsp += sizeof *top;
    return top;
}

static void put_call(struct soft_cpu *cpu, uint64_t back) {
    cpu->jit.shadow_rsp -= sizeof back;
    *(uint64_t *)(uintptr_t)cpu->jit.shadow_rsp = back; /* NOLINT(performance-no-int-to-ptr) */
}

/* The call may be the last of its code: it comes back where other code begins. */
static struct jit_block *block_behind(const struct soft_cpu *cpu, uint64_t back) {
    const struct jit *jit = cpu->jit.jit;
    return jit_map_find(jit, back - 1 - (uintptr_t)jit->memory.executable);
}

static unsigned place_in(const struct soft_cpu *cpu, const struct jit_block *made, uint64_t back) {
    return (unsigned)(back - (uintptr_t)jit_code(cpu->jit.jit, made, 0));
}

/* ---- Finding code ---- */

void jit_note_entered(struct soft_cpu *cpu, uint64_t rip, uint64_t key) {
    struct jit_state *state = &cpu->jit;
    unsigned half = rip >> 63;
    if (half != 0 && !state->upper_is_local && !mmu_is_global(cpu, rip)) {
        /* From here on the upper half's code is this address space's own. */
        jit_forget_jumps(state);
        state->upper_is_local = true;
        jit_set_context(cpu);
    }
    state->lower_is_privileged |= half == 0 && !(key & KEY_CPL);
}

void jit_note_jump(struct soft_cpu *cpu, const struct block *block) {
    struct jit_jump *jump = &cpu->jit.jumps[jit_jump_slot(block->rip)];
    unsigned half = block->rip >> 63;
    jit_note_entered(cpu, block->rip, block->key);
    jump->rip = block->rip;
    jump->context = cpu->jit.context[jit_side_of(cpu->jit.key)][half];
    jump->code = jit_code(cpu->jit.jit, block->code, block->code->entry_saved);
    jit_note_fetch(&cpu->jit, block->rip);
}

void jit_forget_jump(struct soft_cpu *cpu, uint64_t rip) {
    struct jit_jump *jump = &cpu->jit.jumps[jit_jump_slot(rip)];
    if (jump->rip == rip)
        jump->context = UINT64_MAX;
}

void jit_set_context(struct soft_cpu *cpu) {
    enum { ALL_SPACES = 0xfff };
    struct jit_state *state = &cpu->jit;
    state->word = (state->key & KEY_MODE) == INSN_MODE_64 ? 8 : 4;
    uint64_t upper = state->upper_is_local ? cpu->tlb_context : ALL_SPACES;
    for (unsigned side = 0; side < JIT_SIDES; side++) {
        uint64_t rest = (state->key_of[side] & 0xfffff) << 12 | state->generation << 32;
        state->context[side][0] = cpu->tlb_context | rest;
        state->context[side][1] = upper | rest;
    }
}

void jit_set_key(struct soft_cpu *cpu, uint64_t key) {
    struct jit_state *state = &cpu->jit;
    unsigned side = jit_side_of(key);
    state->shadow_of[jit_side_of(state->key)] = state->shadow_rsp;
    if (state->key_of[side] != key)
        state->shadow_of[side] = state->shadow_top[side];
    state->key_of[side] = state->key = key;
    state->shadow_rsp = state->shadow_of[side];
    jit_set_context(cpu);
}

/* The translated block at cpu->rip in the present mapping, or NULL. plain: KEY_PLAIN or 0. */
static struct block *find_translated(struct soft_cpu *cpu, uint64_t plain) {
    uint64_t key = block_key(cpu);
    if (cpu->request != 0 || key != cpu->jit.key)
        return NULL;
    light_begin(cpu);
    struct block *block = block_look(cpu, key | plain);
    light_end(cpu);
    if (block == NULL || block->code == NULL || block->dead)
        return NULL;
    jit_note_fetch(&cpu->jit, block->rip); /* links and returns lead there from now on */
    return block;
}

const uint8_t *jit_fast_find(struct soft_cpu *cpu, uint64_t rip, uint32_t number) {
    cpu->rip = rip;
    const struct block *block = find_translated(cpu, 0);
    if (block == NULL)
        return NULL;
    const struct jit_site *site = site_at(cpu, number);
    jit_note_jump(cpu, block);
    if (site->kind == SITE_RETURN) {
        cpu->gpr[RSP] = (cpu->gpr[RSP] + cpu->jit.word) & cpu->stack_mask;
        return jit_entry(cpu, block);
    }
    /* Looked for anew, with the context of its own half of the address space. */
    if (earlier_checks_fail(cpu) || (rip ^ block_of(site)->rip) >> 63)
        return NULL;
    return code_at(cpu, site, site->retry);
}

static const uint8_t *leave_by(struct soft_cpu *cpu, struct jit_block *made,
                               struct jit_exit *exit) {
    cpu->jit.argument = jit_number(cpu->jit.jit, exit);
    cpu->jit.exit_from = jit_number(cpu->jit.jit, made);
    cpu->rip = jit_exit_rip(made, exit);
    const struct block *block = find_translated(cpu, exit->plain ? KEY_PLAIN : 0);
    if (block == NULL)
        return NULL;
    jit_link(cpu, made, exit, block);
    return jit_entry(cpu, block);
}

const uint8_t *jit_fast_exit(struct soft_cpu *cpu, uint64_t unused, uint32_t nothing) {
    uint64_t back = *take_call(cpu);
    struct jit_block *made = block_behind(cpu, back);
    struct jit_exit *exit = jit_exit_behind(made, place_in(cpu, made, back));
    if (exit->kind == EXIT_CALL)
        put_call(cpu, back);
    return leave_by(cpu, made, exit);
}

/* Whether the page of code at a linear address, which may be run, is this one. */
static bool is_mapped(struct soft_cpu *cpu, uint64_t linear, const struct block_place *place) {
    const struct tlb_entry *entry = &cpu->tlb[TLB_FETCH][tlb_slot(linear)];
    struct code_page page;
    struct fault fault;
    if (entry->tag == (linear & PAGE_MASK))
        return entry->host == place->host;
    light_begin(cpu);
    bool found = mmu_fetch_or(cpu, linear & PAGE_MASK, &page, &fault);
    light_end(cpu);
    return found && (uintptr_t)page.host == place->host && page.gpa == place->gpa;
}

const uint8_t *jit_fast_unguarded(struct soft_cpu *cpu, uint64_t unused, uint32_t number) {
    struct jit_exit *exit = jit_at(cpu->jit.jit, number);
    struct jit_block *made = jit_block_of_exit(exit);
    uint64_t rip = jit_exit_rip(made, exit), key = jit_exit_key(made, exit);
    struct block_place *place = jit_linked_place(cpu, made, exit, rip);
    /* Most fail because the address space has changed, and the link would lead to the same code. */
    if (place == NULL || cpu->request != 0 || block_key(cpu) != (key & ~(uint64_t)KEY_PLAIN) ||
        cpu->jit.key != block_key(cpu) || !is_mapped(cpu, rip, place))
        return leave_by(cpu, made, exit);
    return jit_link_again(cpu, made, exit, place);
}

const uint8_t *jit_fast_poll(struct soft_cpu *cpu, uint64_t unused, uint32_t nothing) {
    uint64_t back = *take_call(cpu);
    struct jit_block *made = block_behind(cpu, back);
    cpu->rip = jit_exit_rip(made, jit_exit_polled(cpu->jit.jit, made, place_in(cpu, made, back)));
    return cpu->jit.jit->leave_here;
}

const uint8_t *jit_fast_gone(struct soft_cpu *cpu, uint64_t unused, uint32_t nothing) {
    struct jit_block *gone = block_behind(cpu, *take_call(cpu));
    uint64_t plain = gone->key & KEY_PLAIN;
    cpu->rip = gone->rip;
    /* Without numbers for mappings it would come here again. */
    const struct block *block = cpu->jit.jit->full ? NULL : find_translated(cpu, plain);
    if (block == NULL || jit_is_worn(cpu, block->code)) {
        cpu->jit.plain = (uint32_t)plain;
        return cpu->jit.jit->leave_here;
    }
    if (!gone->dead) /* it could not be translated anew, or its second page is elsewhere */
        cpu->jit.runs_left[gone->counter] = (int32_t)cpu->jit.jit->runs;
    /* What moves together may jump to each other (move.c). */
    if (gone->dead && gone->place == block->code->place && gone->key == block->key)
        jit_replace(cpu->jit.jit, gone, block->code);
    return jit_entry(cpu, block);
}

/* ---- TLB misses ---- */

/* False: fault->vector is EXC_PF where the page tables say no. */
static bool fill(struct soft_cpu *cpu, uint64_t linear, enum tlb_kind kind, bool maybe,
                 struct fault *fault) {
    unsigned access = access_by_cpl(cpu);
    if (kind == TLB_FETCH)
        access |= ACCESS_FETCH;
    else if (kind == TLB_WRITE && !maybe)
        access |= ACCESS_WRITE;
    if (!linear_canonical(linear))
        return false;
    const struct mmu_page *page = mmu_translate(cpu, linear, access, fault);
    if (page == NULL)
        return false;
    /* Translated for reading: whether a write may follow is a question of its own. */
    if (kind == TLB_WRITE && maybe &&
        (!(page->view_rights & MEM_WRITE) || !mmu_allows(cpu, page->rights, access | ACCESS_WRITE)))
        return false;
    mmu_enter(cpu, linear, page, kind);
    return cpu->tlb[kind][tlb_slot(linear)].tag == (linear & PAGE_MASK);
}

static bool fill_or(struct soft_cpu *cpu, uint64_t linear, uint32_t kind, struct fault *fault) {
    *fault = (struct fault){0};
    light_begin(cpu);
    bool filled = fill(cpu, linear, kind & ~(uint32_t)FILL_MAYBE, kind & FILL_MAYBE, fault);
    light_end(cpu);
    return filled;
}

uint64_t jit_fast_fill(struct soft_cpu *cpu, uint64_t linear, uint32_t kind) {
    struct fault fault;
    return fill_or(cpu, linear, kind, &fault);
}

/* The code without shared checks from a site on; NULL: there is none yet, or it does not find its
 * flags saved. */
static const uint8_t *plain_code(struct soft_cpu *cpu, const struct jit_site *site) {
    if (site->recipe != RECIPE_NONE)
        return NULL;
    cpu->rip = jit_block_of_site(site)->rip + site->offset;
    const struct block *block = find_translated(cpu, KEY_PLAIN);
    return block == NULL ? NULL : jit_entry(cpu, block);
}

/* A group's page for all that its accesses may do; else it is run plainly. */
static const uint8_t *miss(struct soft_cpu *cpu, uint64_t linear, const struct jit_site *site) {
    uint32_t kind = site->tlb;
    bool group = site->kind == SITE_GROUP;
    if (group && kind == TLB_WRITE && !site->writes_now)
        kind |= FILL_MAYBE;
    struct fault fault = {0};
    bool filled =
        linear % PAGE_SIZE + site->span <= PAGE_SIZE && fill_or(cpu, linear, kind, &fault);
    if (!filled && fault.vector == EXC_PF && site->faults && cpu->verify == NULL)
        return jit_deliver(cpu, site, &fault);
    if (earlier_checks_fail(cpu))
        return NULL;
    if (filled)
        return code_at(cpu, site, site->retry);
    return group ? plain_code(cpu, site) : NULL;
}

const uint8_t *jit_fast_miss(struct soft_cpu *cpu, uint64_t linear, uint32_t number) {
    return miss(cpu, linear, site_at(cpu, number));
}

const uint8_t *jit_fast_constant_miss(struct soft_cpu *cpu, uint64_t unused, uint32_t number) {
    const struct jit_site *site = site_at(cpu, number);
    const struct insn *insns = block_of(site)->insns;
    if (insns == NULL)
        return NULL;
    return miss(cpu, lower_constant(&insns[site->insn]), site);
}

/* ---- Checks that are called ---- */

/* The site of the check that comes back to this host address. */
static const struct jit_site *site_behind(const struct soft_cpu *cpu, uint64_t back) {
    struct jit_block *made = block_behind(cpu, back);
    const struct jit_site *site = jit_sites(made);
    unsigned at = place_in(cpu, made, back);
    /* Others that are tried again may begin there, but come later. */
    while (site->retry != at || (site->kind != SITE_ACCESS && site->kind != SITE_STACK))
        site++;
    return site;
}

const uint8_t *jit_fast_check(struct soft_cpu *cpu, uint64_t linear, uint32_t check) {
    enum tlb_kind kind = check & 3;
    unsigned size = check >> 2, offset = linear % PAGE_SIZE;
    uint64_t back = *take_call(cpu);
    struct fault fault = {0};
    bool filled = offset + size <= PAGE_SIZE && fill_or(cpu, linear, kind, &fault);
    bool fails = earlier_checks_fail(cpu);
    if (filled && !fails) {
        cpu->jit.checked = cpu->tlb[kind][tlb_slot(linear)].host + offset;
        put_call(cpu, back);
        return cpu->jit.jit->checked;
    }
    const struct jit_site *site = site_behind(cpu, back);
    cpu->jit.argument = jit_number(cpu->jit.jit, site);
    if (!filled && fault.vector == EXC_PF && site->faults && cpu->verify == NULL)
        return jit_deliver(cpu, site, &fault);
    return NULL;
}

const uint8_t *jit_fast_check_stack(struct soft_cpu *cpu, uint64_t offset, uint32_t unused) {
    const struct jit_site *site = site_behind(cpu, *take_call(cpu));
    cpu->jit.argument = jit_number(cpu->jit.jit, site);
    return jit_fast_stack_miss(cpu, offset, (uint32_t)cpu->jit.argument);
}

/* ---- The stack window ---- */

static unsigned present_side(const struct soft_cpu *cpu) {
    return block_tlb_index(cpu);
}

/* RSP is in a register as what the present side's window makes of it. */
static void use_window(struct soft_cpu *cpu) {
    cpu->jit.stack_addend = cpu->jit.addend_of[present_side(cpu)];
    cpu->jit.stack_subtrahend = -cpu->jit.stack_addend;
}

static void mark_dirty(_Atomic(uint8_t) *flags) {
    if (flags != NULL)
        atomic_fetch_or_explicit(flags, MEM_PAGE_DIRTY, memory_order_relaxed);
}

void jit_mode_changed(struct soft_cpu *cpu) {
    cpu->jit.epoch++;
    use_window(cpu);
}

void jit_drop_window(struct soft_cpu *cpu) {
    cpu->jit.epoch++;
    if (cpu->jit.jit == NULL)
        return;
    /* xorshift64 (Marsaglia 2003) from a seed of the host's */
    uint64_t x = cpu->jit.jit->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    cpu->jit.jit->random = x;
    for (unsigned side = 0; side < JIT_SIDES; side++) {
        mark_dirty(cpu->jit.stack_flags[side]);
        cpu->jit.stack_flags[side] = NULL;
        cpu->jit.stack_host[side] = x;
        cpu->jit.addend_of[side] = 0;
    }
    use_window(cpu);
}

const uint8_t *jit_fast_stack_miss(struct soft_cpu *cpu, uint64_t offset, uint32_t number) {
    const struct jit_site *site = site_at(cpu, number);
    /* Its distance from RSP fits 32 bits, which those that RSP wraps by do not change. */
    uint64_t moved = offset + cpu->jit.stack_host[present_side(cpu)] - cpu->jit.stack_addend;
    int32_t disp = (int32_t)(uint32_t)(moved - cpu->gpr[RSP]);
    uint64_t linear = cpu->gpr[RSP] + (uint64_t)(int64_t)disp;
    uint64_t page = linear & PAGE_MASK;
    const struct tlb_entry *entry = &cpu->tlb[TLB_WRITE][tlb_slot(linear)];
    bool wraps = (linear & cpu->stack_mask) != linear;
    if (linear - page + site->span > PAGE_SIZE || wraps)
        return plain_code(cpu, site);
    if (entry->tag != page &&
        !jit_fast_fill(cpu, linear, TLB_WRITE | (site->writes_now ? 0 : FILL_MAYBE)))
        return earlier_checks_fail(cpu) ? NULL : plain_code(cpu, site);
    unsigned side = present_side(cpu);
    level1_note_replaced(cpu, cpu->jit.stack_flags[side]);
    if (earlier_checks_fail(cpu))
        return NULL;
    mark_dirty(cpu->jit.stack_flags[side]);
    cpu->jit.stack_flags[side] = mmu_write_flags(cpu, linear);
    cpu->jit.stack_host[side] = entry->host;
    cpu->jit.addend_of[side] = entry->host - page;
    use_window(cpu);
    return code_at(cpu, site, site->retry);
}
