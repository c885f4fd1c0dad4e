/*
 * Branches. Known targets are linked: the jump is patched to the target's
 * code once that exists (link.c). Others are looked for in the jump table.
 * Calls are host calls and returns host returns: the host's processor
 * predicts them, the guest's return address is compared where they arrive.
 */
#include "base/bytes.h"
#include "cpu/soft/jit/translation.h"

uint64_t lower_target_rip(const struct translation *t, uint64_t offset) {
    uint64_t rip = t->block->rip + t->insn->offset + t->insn->length + offset;
    return t->mode == INSN_MODE_64 ? rip : (uint32_t)rip;
}

uint64_t lower_next_rip(const struct translation *t) {
    return lower_target_rip(t, 0);
}

/* ---- Known targets ---- */

static bool is_backward(const struct translation *t, uint64_t rip) {
    return rip <= t->block->rip + t->insn->offset;
}

static bool is_same_page(const struct translation *t, uint64_t rip) {
    return rip >> PAGE_SHIFT == t->pages_rip;
}

/* An exit by the jump or call at field, which is filled when the block is done. */
static struct jit_exit *new_exit(struct translation *t, uint64_t rip, uint8_t *field) {
    uint64_t from = rip - t->block->rip;
    int32_t distance = (int32_t)from;
    bool near = t->mode != INSN_MODE_64 || (int64_t)from == distance;
    if (t->exit_count >= ARRAY_SIZE(t->exits) || !near) {
        t->out.full = true;
        return &t->exits[0];
    }
    struct jit_exit *exit = &t->exits[t->exit_count++];
    *exit = (struct jit_exit){
        .rip = distance,
        .field = (uint16_t)(field - (uint8_t *)t->made),
        .side = (uint8_t)side_of_block(t->block),
        .flags_saved = t->flags & FLAGS_SAVED,
    };
    return exit;
}

void lower_goto_side(struct translation *t, uint64_t rip, unsigned side) {
    new_exit(t, rip, emit_jmp(&t->out))->side = (uint8_t)side;
}

void lower_plainly_if(struct translation *t, unsigned condition, uint64_t rip) {
    new_exit(t, rip, emit_jcc(&t->out, condition))->plain = true;
}

/* Flags where the exit needs them. A loop's end looks at requests: to C when there are some. */
static void prepare_exit(struct translation *t, uint64_t rip) {
    if (is_same_page(t, rip) && liveness_at(t, rip) == 0)
        flags_not_needed(t);
    if (!is_same_page(t, rip) || is_backward(t, rip))
        flags_to_saved(t);
    else if (t->flags == 0)
        flags_to_host(t);
}

void lower_poll(struct translation *t, uint64_t rip) {
    if (!is_backward(t, rip))
        return;
    emit_group1_gs(&t->out, 7, 4, CPU_AT(request), 0);
    new_exit(t, rip, emit_jcc(&t->out, COND_NE))->polls = true;
}

/* Goes on at a known rip. Does not disturb the translation's flags state for what follows. */
void lower_goto(struct translation *t, uint64_t rip) {
    unsigned flags = t->flags;
    uint8_t recipe = t->recipe;
    prepare_exit(t, rip);
    lower_poll(t, rip);
    new_exit(t, rip, emit_jmp(&t->out));
    t->flags = flags;
    t->recipe = recipe;
}

bool lower_goto_if(struct translation *t, unsigned condition, uint64_t rip) {
    if (!is_same_page(t, rip) || is_backward(t, rip))
        return false;
    unsigned flags = t->flags;
    if (liveness_at(t, rip) == 0)
        flags_not_needed(t);
    new_exit(t, rip, emit_jcc(&t->out, condition));
    t->flags = flags;
    return true;
}

bool lower_jcc(struct translation *t) {
    bool goes_on;
    uint64_t taken = lower_target_rip(t, t->insn->imm);
    if (loop_back(t, &goes_on))
        return goes_on;
    unsigned condition = t->insn->opcode & 15;
    flags_to_host(t);
    if (!lower_goto_if(t, condition, taken)) {
        uint8_t *over = emit_jcc(&t->out, condition ^ 1);
        lower_goto(t, taken);
        emit_aim(over, t->out.at);
    }
    return true;
}

/* ---- The jump table ---- */

/* TEMP_A: target, by the code from `retry` on. Its slot in TEMP_B, or to C for the whole
 * instruction. Clobbers TEMP_A. */
static void lower_find(struct translation *t, const uint8_t *retry) {
    struct emitter *e = &t->out;
    const int32_t jumps = CPU_AT(jit.jumps);
    unsigned site = lower_site(t);
    lower_retry_at(t, site, retry);
    unsigned half = t->block->rip >> 63;
    t->temp_group = NO_GROUP;
    /* slot * 32, as jit_jump_slot counts: (mixed rip & mask << 2) * 8. */
    emit_rorx(e, TEMP_B, TEMP_A, JIT_JUMP_FOLD);
    emit_rr(e, OP_XOR_RM, 8, TEMP_B, TEMP_A);
    emit_group1(e, 4, 4, TEMP_B, (JIT_JUMPS - 1) << 2);
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B,
                    jumps + (int32_t)offsetof(struct jit_jump, rip));
    lower_stub_if(t, COND_NE, t->jit->find, site);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A,
            CPU_AT(jit.context[0]) + (int32_t)(16 * side_of_block(t->block) + 8 * half));
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B,
                    jumps + (int32_t)offsetof(struct jit_jump, context));
    lower_stub_if(t, COND_NE, t->jit->find_slot, site);
    emit_group1_gs(e, 7, 4, CPU_AT(request), 0);
    lower_stub_if(t, COND_NE, t->jit->find_slot, site);
}

static void emit_jump_found(struct translation *t) {
    emit_gs_scaled8(&t->out, 0xff, 4, 4, TEMP_B,
                    CPU_AT(jit.jumps) + (int32_t)offsetof(struct jit_jump, code));
}

/* The target of an indirect branch in TEMP_A. */
static void load_target(struct translation *t) {
    const struct insn *insn = t->insn;
    if (insn->flags & I_MEMORY) {
        struct operand operand = lower_operand(t, TLB_READ, t->word, 1);
        emit_rm(&t->out, OP_MOV_LOAD, t->word, TEMP_A, operand.base, operand.disp);
    } else if (insn->rm == RSP) {
        lower_load_rsp(t, TEMP_A);
    } else if (is_homed(insn->rm)) {
        load_home(t, TEMP_A, insn->rm);
    } else {
        emit_rr(&t->out, OP_MOV_LOAD, t->word, TEMP_A, insn->rm);
    }
    t->temp_group = NO_GROUP;
}

void lower_jmp_indirect(struct translation *t) {
    flags_to_saved(t);
    t->temp_group = NO_GROUP;
    const uint8_t *retry = t->out.at;
    load_target(t);
    lower_find(t, retry);
    emit_jump_found(t);
}

/* ---- Calls and returns ---- */

/* Where the guest's return arrives, with the address that it found in TEMP_A: if that is another,
 * the return goes where it says. RSP moves now, so that a RET that may not return has not moved it.
 */
static void lower_return_point(struct translation *t) {
    struct emitter *e = &t->out;
    uint64_t rip = lower_next_rip(t);
    t->flags = FLAGS_SAVED | (t->live[t->index + 1] == 0 ? FLAGS_STALE : 0);
    t->recipe = RECIPE_NONE;
    t->x87_ready = false;
    t->temp_group = NO_GROUP;
    if (t->word == 4 || (int64_t)rip == (int32_t)rip) {
        emit_group1(e, 7, t->word, TEMP_A, (int32_t)rip);
    } else {
        uint8_t *field = emit_cmp_rip(e, TEMP_A);
        if (t->constant_count >= ARRAY_SIZE(t->constants)) {
            e->full = true;
            return;
        }
        t->constants[t->constant_count].field = field;
        t->constants[t->constant_count++].value = rip;
    }
    emit_aim(emit_jcc(e, COND_NE), t->jit->returned[side_of_block(t->block)]);
    lower_move_rsp(t, (int32_t)t->word);
}

void lower_call(struct translation *t) {
    uint64_t target = lower_target_rip(t, t->insn->imm);
    flags_registers_change(t, 1u << RSP);
    lower_push_rip(t, lower_next_rip(t));
    lower_settle_rsp(t);
    prepare_exit(t, target);
    lower_poll(t, target);
    new_exit(t, target, emit_call(&t->out));
    lower_return_point(t);
}

void lower_call_indirect(struct translation *t) {
    struct emitter *e = &t->out;
    flags_to_saved(t);
    t->temp_group = NO_GROUP;
    const uint8_t *retry = t->out.at;
    load_target(t);
    lower_find(t, retry);
    /* The target is looked up before the push, which may overwrite where it was read from. */
    emit_gs_scaled8(e, OP_MOV_LOAD, 8, TEMP_B, TEMP_B,
                    CPU_AT(jit.jumps) + (int32_t)offsetof(struct jit_jump, code));
    emit_gs(e, OP_MOV_STORE, 8, TEMP_B, CPU_AT(jit.target));
    lower_push_rip(t, lower_next_rip(t));
    lower_settle_rsp(t);
    emit_gs(e, 0xff, 4, 2, CPU_AT(jit.target)); /* CALL */
    lower_return_point(t);
}

void lower_ret(struct translation *t) {
    flags_to_saved(t);
    const uint8_t *retry = t->out.at;
    struct operand operand = lower_stack(t, TLB_READ, 0);
    emit_rm(&t->out, OP_MOV_LOAD, t->word, TEMP_A, operand.base, operand.disp);
    if (t->insn->imm == 0) {
        unsigned site = lower_site(t);
        t->sites[site].kind = SITE_RETURN;
        lower_load_site(t, site);
        emit8(&t->out, 0xc3);
        return;
    }
    lower_find(t, retry);
    lower_move_rsp(t, (int32_t)(t->word + t->insn->imm));
    emit_jump_found(t);
}

/* ---- Behind the block ---- */

/* cmp dword gs:[map], id; jne leave; jmp target. The id and the target are patched by jit_link. */
static void emit_guard(struct translation *t, struct jit_exit *exit, uint64_t rip,
                       uint8_t **leave_field) {
    struct emitter *e = &t->out;
    int32_t entry = (int32_t)(jit_map_slot(rip) * sizeof t->cpu->jit.code_map[0][0]);
    emit_group1_gs(e, 7, 4, CPU_AT(jit.code_map) + entry, -1);
    exit->guard = (uint16_t)(e->at - 4 - (uint8_t *)t->made);
    *leave_field = emit_jcc(e, COND_NE);
    uint8_t *field = emit_jmp(e);
    emit_aim(field, e->at);
}

static void lower_exit(struct translation *t, struct jit_exit *exit, uint32_t number) {
    struct emitter *e = &t->out;
    uint8_t *field = (uint8_t *)t->made + exit->field, *leave_field = NULL;
    uint64_t rip = t->block->rip + (uint64_t)(int64_t)exit->rip;
    if (t->mode != INSN_MODE_64)
        rip = (uint32_t)rip;
    if (!exit->polls && !is_same_page(t, rip)) {
        emit_aim(field, e->at);
        emit_guard(t, exit, rip, &leave_field);
    }
    emit_aim(leave_field != NULL ? leave_field : field, e->at);
    emit_to_stub(e, number, exit->flags_saved ? t->jit->exit : t->jit->exit_host);
}

/* Their notes are before their code, which has their numbers. */
static void lower_leaves(struct translation *t) {
    struct emitter *e = &t->out;
    struct jit_exit *notes;
    uint8_t *start = (uint8_t *)t->made;
    emit_align(e, JIT_WORD);
    notes = (struct jit_exit *)(void *)e->at;
    t->made->exits = (uint16_t)(e->at - start);
    t->made->exit_count = (uint8_t)t->exit_count;
    e->at += t->exit_count * sizeof *notes;
    for (unsigned i = 0; i < t->exit_count && emit_has_room(e); i++) {
        struct jit_exit *exit = &t->exits[i];
        exit->start = (uint16_t)(((uint8_t *)&notes[i] - start) / JIT_WORD);
        lower_exit(t, exit, jit_number(t->jit, &notes[i]));
        notes[i] = *exit;
    }
}

void lower_exits(struct translation *t) {
    t->out.full |= t->out.end - t->out.at < (ptrdiff_t)sizeof t->exits + EMIT_ROOM;
    if (t->out.full)
        return;
    lower_leaves(t);
    for (unsigned i = 0; i < t->constant_count && emit_has_room(&t->out); i++) {
        emit_aim(t->constants[i].field, t->out.at);
        relocate(t, t->out.at, RELOCATE_ADDRESS);
        emit64(&t->out, t->constants[i].value);
    }
}
