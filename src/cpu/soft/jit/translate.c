/*
 * One block from decoded instructions to host code: operands lowered, memory
 * checked, flags followed, exits and slow paths placed behind the code.
 */
#include "cpu/soft/jit/lower_system.h"

#include <string.h>

#include "base/bytes.h"
#include "cpu/soft/mmu.h"

/* ---- Blocks ---- */

/* True: the block goes on behind the instruction. */
static bool lower_insn(struct translation *t) {
    const struct lowering *l = lowering_of(t->insn);
    bool branch = insn_row_of(t->insn)->properties & INSN_BRANCH;
    switch (t->kinds[t->index]) {
    case LOWER_CALLOUT: lower_callout(t); return !branch;
    case LOWER_NATIVE: lower_native(t, l); return true;
    case LOWER_BITS: lower_bits(t, l); return true;
    case LOWER_NOP: return true;
    case LOWER_LEA: lower_lea(t); return true;
    case LOWER_SYSTEM: lower_system(t); return !branch;
    case LOWER_SYSCALL: return lower_syscall(t);
    case LOWER_SYSRET: return lower_sysret(t);
    case LOWER_SET_AC: return lower_set_ac(t);
    case LOWER_PUSHF: lower_pushf(t); return true;
    case LOWER_POPF: lower_popf(t); return true;
    case LOWER_DIV: lower_divide(t, false); return true;
    case LOWER_IDIV: lower_divide(t, true); return true;
    case LOWER_MOVS:
    case LOWER_STOS: lower_string(t); return true;
    case LOWER_PUSH: lower_push(t); return true;
    case LOWER_PUSH_MEMORY: lower_push_memory(t); return true;
    case LOWER_POP: lower_pop(t); return true;
    case LOWER_LEAVE: lower_leave(t); return true;
    case LOWER_CALL: lower_call(t); return true;
    case LOWER_CALL_INDIRECT: lower_call_indirect(t); return true;
    case LOWER_RET: lower_ret(t); return false;
    case LOWER_JMP: lower_goto(t, lower_target_rip(t, t->insn->imm)); return false;
    case LOWER_JMP_INDIRECT: lower_jmp_indirect(t); return false;
    case LOWER_JCC: return lower_jcc(t);
    default: return !branch;
    }
}

/* How a block wants to find flags: the first thing it does with them. */
static unsigned first_use_of_flags(const struct translation *t) {
    for (unsigned i = 0; i < t->count && t->live[i] != 0; i++) {
        const struct insn *insn = &t->insns[i];
        const struct lowering *l = lowering_of(insn);
        uint8_t kind = t->kinds[i] == LOWER_NOP ? LOWER_NOP : l->kind;
        if (kind == LOWER_NATIVE && !(insn->flags & I_MEMORY) && !uses_high_byte(insn, l)) {
            if (l->flags_read != 0 || l->writes_flags)
                return FLAGS_HOST;
        } else if (kind == LOWER_JCC) {
            return FLAGS_HOST;
        } else if (kind != LOWER_NOP && kind != LOWER_LEA) {
            return FLAGS_SAVED;
        }
    }
    return FLAGS_HOST;
}

/* JIT_DEAD_ENTRY bytes each. */
static void lower_dead_entries(struct translation *t, bool two) {
    if (two)
        emit_aim(emit_call(&t->out), t->jit->gone_host);
    emit_aim(emit_call(&t->out), t->jit->gone);
}

/* Who came here made sure of the first page's mapping. */
static void check_second_page(struct translation *t) {
    uint64_t second = t->block->rip + PAGE_SIZE;
    int32_t entry = (int32_t)(jit_map_slot(second) * sizeof t->cpu->jit.code_map[0][0]);
    uint32_t number = jit_mapping_of(t->cpu, t->block, 1);
    t->out.full |= number == 0;
    flags_to_saved(t);
    emit_group1_gs(&t->out, 7, 4, CPU_AT(jit.code_map) + entry, (int32_t)number);
    t->made->second_page = (uint16_t)(t->out.at - 4 - t->start);
    t->second_page_field = emit_jcc(&t->out, COND_NE);
    t->flags &= ~(unsigned)FLAGS_HOST;
}

/* Counts the block's runs, where flags are not in EFLAGS. */
static void emit_count(struct translation *t) {
    enum { OP_DEC = 0xff, OP_JS_SHORT = 0x78 };
    int32_t *left = &t->cpu->jit.runs_left[t->made->counter];
    emit_gs(&t->out, OP_DEC, 4, 1, (int32_t)((char *)left - (char *)t->cpu));
    emit8(&t->out, OP_JS_SHORT);
    const uint8_t *worn = t->start + jit_dead_entry(t->made, true);
    emit8(&t->out, (uint8_t)(worn - (t->out.at + 1)));
    t->made->counted = true;
    *left = (int32_t)t->jit->runs;
}

/* How the block wants to find flags: FLAGS_HOST, FLAGS_SAVED, or 0: it does not care. */
static unsigned entry_flags(const struct translation *t) {
    return t->live[0] == 0 ? 0 : t->loops ? FLAGS_SAVED : first_use_of_flags(t);
}

/* The two entries, and the state in which the body begins. Five bytes of each may be overwritten by
 * a jump once the block is dead. */
static void lower_entries(struct translation *t) {
    static const uint8_t nop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    enum { ENTRY_ALIGN = 16 };
    struct emitter *e = &t->out;
    struct jit_block *made = t->made;
    unsigned flags = entry_flags(t);
    lower_dead_entries(t, flags != 0);
    if (!t->dense)
        emit_align(e, ENTRY_ALIGN);
    uint16_t first = (uint16_t)(e->at - t->start);
    if (flags == FLAGS_SAVED)
        emit_save_flags(e);
    else if (flags == FLAGS_HOST)
        emit_restore_flags(e);
    uint16_t second = (uint16_t)(e->at - t->start);
    made->entry_host = flags == FLAGS_HOST ? second : first;
    made->entry_saved = flags == FLAGS_HOST ? first : second;
    t->flags = flags == 0 ? FLAGS_SAVED | FLAGS_STALE : flags;
    /* Where runs are counted, that is more than five bytes that nothing comes back to. */
    if (t->dense)
        emit_count(t);
    else
        emit_bytes(e, nop5, sizeof nop5);
    if (t->block->straddles)
        check_second_page(t);
}

/* True: the block goes on behind the instruction. */
static bool lower_next(struct translation *t) {
    unsigned first_site = t->site_count;
    t->insn = &t->insns[t->index];
    t->site = SITES_MAX;
    if (!lower_leaves_rsp_pending(t))
        lower_settle_rsp(t);
    t->leaves_second = temps_leave_second(t);
    if (!t->leaves_second)
        t->second_temp_group = NO_GROUP;
    raw_parse(&t->raw, t->code + t->insn->offset, t->insn, t->mode,
              lowering_of(t->insn)->has_modrm);
    bool goes_on = lower_insn(t);
    if (goes_on)
        lower_end_shadow(t);
    for (unsigned site = first_site; site < t->site_count; site++)
        t->sites[site].resume = (uint16_t)(t->out.at - t->start);
    return goes_on;
}

/* The first so many instructions, from a state in which nothing is known. */
static void lower_body(struct translation *t, unsigned count) {
    bool goes_on = true;
    t->x87_ready = t->in_shadow = false;
    t->temp_group = t->loop.running && t->loop.resident != 0 ? LOOP_TEMP_GROUP : NO_GROUP;
    t->second_temp_group = NO_GROUP;
    for (unsigned g = 0; g < t->group_count; g++)
        t->groups[g].checked = t->groups[g].aligned = false;
    for (t->index = 0; t->index < count && goes_on && emit_has_room(&t->out); t->index++)
        goes_on = lower_next(t);
    lower_settle_rsp(t);
    t->insn = &t->insns[count - 1];
    if (goes_on && emit_has_room(&t->out))
        lower_goto(t, lower_next_rip(t));
}

/* The jumps of checks before a loop that fail. */
struct loop_failures {
    uint8_t *field[LOOP_FAILS_MAX];
    unsigned count;
};

/* A loop's body once more, without the checks that are made before it. */
static void lower_loop(struct translation *t, unsigned flags, struct loop_failures *failures) {
    if (!emit_has_room(&t->out))
        return;
    t->flags = flags;
    t->recipe = RECIPE_NONE;
    failures->count = loop_enter(t, failures->field);
    t->loop.running = true;
    for (t->loop.copies_left = t->loop.copies; t->loop.copies_left-- != 0;) {
        lower_body(t, t->loop.count);
        t->flags = flags;
        t->recipe = RECIPE_NONE;
    }
    t->loop.running = false;
}

static void lower_bodies(struct translation *t) {
    struct loop_failures failures = {.count = 0};
    unsigned flags = t->flags & (FLAGS_SAVED | FLAGS_STALE);
    bool at_once = t->loops && loop_at_once(t);
    if (at_once)
        lower_loop(t, flags, &failures);
    if (t->loops)
        loop_begin(t);
    lower_body(t, t->count);
    if (!t->loops || !emit_has_room(&t->out))
        return;
    if (!at_once)
        lower_loop(t, flags, &failures);
    t->flags = flags;
    t->recipe = RECIPE_NONE;
    loop_fails(t, failures.field, failures.count);
}

static void lower_block(struct translation *t) {
    path_find(t);
    liveness_find(t);
    t->dense = t->counts && entry_flags(t) != FLAGS_HOST;
    groups_find(t);
    if (!t->dense)
        loop_find(t);
    lower_entries(t);
    lower_bodies(t);
    if (t->second_page_field != NULL)
        emit_aim(t->second_page_field, t->start + jit_dead_entry(t->made, true));
    lower_slow_paths(t);
    lower_exits(t);
}

static bool copy_bytes(struct translation *t) {
    const struct block *block = t->block;
    unsigned first = PAGE_SIZE - (block->rip & (PAGE_SIZE - 1));
    struct code_page second;
    struct fault fault;
    if (!block->straddles) {
        memcpy(t->code, block->host, block->length);
        return true;
    }
    if (!mmu_fetch_or(t->cpu, block->rip + first, &second, &fault) || second.host == NULL)
        return false;
    memcpy(t->code, block->host, first);
    memcpy(t->code + first, second.host, block->length - first);
    return true;
}

/* The bytes may have changed since they were decoded: then there is nothing to translate. */
static bool copy_code(struct translation *t) {
    const struct block *block = t->block;
    if (!copy_bytes(t))
        return false;
    for (unsigned i = 0; i < block->count; i++) {
        const struct insn *was = &block->insns[i];
        struct insn now;
        int length = insn_decode(&now, t->code + was->offset, block->length - was->offset,
                                 block->rip + was->offset, t->mode, t->cpu->features);
        if (length != was->length || now.row != was->row || now.imm != was->imm ||
            now.disp != was->disp || now.exec != was->exec)
            return false;
    }
    return true;
}

/* Native vector instructions do not ask whether they may run: where some may not, the handlers do.
 */
static bool must_ask(const struct block *block) {
    const unsigned x87 = INSN_X87 | INSN_MMX;
    unsigned asking = block->key & KEY_NO_FP ? INSN_SSE | INSN_AVX | x87 : 0;
    if (block->key & KEY_X87_RAISES)
        asking |= x87;
    for (unsigned i = 0; asking != 0 && i < block->count; i++)
        if (insn_row_of(&block->insns[i])->properties & asking)
            return true;
    return false;
}

static bool can_translate(const struct jit *jit, const struct block *block) {
    return !jit->full && !block->dead && !block->untranslatable && block->count != 0 &&
           (block->key & (KEY_STEP | KEY_NO_BREAK)) == 0;
}

/* From an empty translation at the end of code memory. */
static void begin(struct translation *t, struct soft_cpu *cpu) {
    struct code_memory *memory = &cpu->jit.jit->memory;
    uint8_t *end = memory->writable + memory->size - memory->at_end;
    memset(t, 0, offsetof(struct translation, code));
    t->made = &t->header;
    t->out.at = t->start = memory->writable + memory->used;
    t->out.end = end - t->start > JIT_CODE_MAX ? t->start + JIT_CODE_MAX : end;
    t->cpu = cpu;
    t->jit = cpu->jit.jit;
}

/* What is to be translated, in t->block; the header is begun. False: nothing. */
static bool choose(struct translation *t, struct block *block) {
    struct soft_cpu *cpu = t->cpu;
    struct jit *jit = t->jit;
    bool again = block->code != NULL;
    if (again) {
        cpu->jit.runs_left[block->code->counter] = (int32_t)jit->runs;
        block->code->counted = false;
    }
    t->mode = (enum insn_mode)(block->key & KEY_MODE);
    t->word = t->mode == INSN_MODE_64 ? 8 : 4;
    t->pages_rip = block->rip >> PAGE_SHIFT;
    t->block = block;
    t->counts = jit->runs != 0 && !again;
    if ((jit->runs == 0 || again) && block_may_extend(cpu, block))
        t->block = block_extend(cpu, block, t->code);
    else if (!copy_code(t))
        return false;
    block = t->block;
    *t->made = (struct jit_block){
        .block = block, .rip = block->rip, .key = block->key, .counter = jit->made % JIT_COUNTERS};
    return true;
}

/* Of the same block. Who is in the old code may stay there: it is as right as the new. */
static void replace_code(struct translation *t) {
    struct jit_block *old = t->block->code;
    jit_replace(t->jit, old, t->made);
    jit_forget_jump(t->cpu, old->rip);
    old->dead = true;
}

/* False: no room. */
static bool commit(struct translation *t) {
    struct soft_cpu *cpu = t->cpu;
    if (t->out.full || !notes_commit(t))
        return false;
    cpu->count.translations++;
    jit_map_add(cpu, t->made);
    if (t->block->code != NULL)
        replace_code(t);
    t->block->code = t->made;
    relocations_end(t);
    return true;
}

struct block *jit_translate(struct soft_cpu *cpu, struct block *block) {
    struct jit *jit = cpu->jit.jit;
    struct translation t;
    if (!can_translate(jit, block))
        return block;
    if ((block->insns == NULL && !block_decode(cpu, block)) || must_ask(block))
        return block;
    begin(&t, cpu);
    if (jit_is_over_budget(cpu)) {
        jit->full = true;
        return block;
    }
    if (!choose(&t, block))
        return block;
    block = t.block;
    block->watch_start = PAGE_SIZE - 1;
    relocations_begin(&t);
    lower_block(&t);
    if (commit(&t))
        return block;
    if (jit->made != 0 && t.out.end < t.start + JIT_CODE_MAX)
        jit->full = true;
    else
        block->untranslatable = true;
    return block;
}

bool jit_wants(const struct soft_cpu *cpu, const struct block *block) {
    return block->code == NULL || jit_is_worn(cpu, block->code);
}

bool jit_goes_on_behind(const struct insn *insn) {
    uint8_t kind = lowering_of(insn)->kind;
    if (lower_system_goes_on_behind(insn))
        return true;
    return (kind == LOWER_JCC || kind == LOWER_CALL || kind == LOWER_CALL_INDIRECT) &&
           lower_kind(insn, lowering_of(insn)) != LOWER_CALLOUT;
}
