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

bool lower_is_backward(const struct translation *t, uint64_t rip) {
    return rip <= t->block->rip + t->insn->offset;
}

bool lower_is_same_page(const struct translation *t, uint64_t rip) {
    return rip >> PAGE_SHIFT == t->pages_rip;
}

/* Flags where the exit needs them. A loop's end looks at requests: to C when there are some. */
static void prepare_exit(struct translation *t, uint64_t rip) {
    if (lower_is_same_page(t, rip) && liveness_at(t, rip) == 0)
        flags_not_needed(t);
    if (!lower_is_same_page(t, rip) || lower_is_backward(t, rip))
        flags_to_saved(t);
    else if (t->flags == 0)
        flags_to_host(t);
}

/* Goes on at a known rip. Does not disturb the translation's flags state for what follows. */
void lower_goto(struct translation *t, uint64_t rip) {
    unsigned flags = t->flags;
    uint8_t recipe = t->recipe;
    prepare_exit(t, rip);
    lower_poll(t, rip);
    lower_exit(t, rip, EXIT_JMP, 0);
    t->flags = flags;
    t->recipe = recipe;
}

bool lower_goto_if(struct translation *t, unsigned condition, uint64_t rip) {
    if (!lower_is_same_page(t, rip) || lower_is_backward(t, rip))
        return false;
    unsigned flags = t->flags;
    if (liveness_at(t, rip) == 0)
        flags_not_needed(t);
    lower_exit(t, rip, EXIT_JCC, condition);
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
    lower_exit(t, target, EXIT_CALL, 0);
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
