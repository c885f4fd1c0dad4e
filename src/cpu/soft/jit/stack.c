/* The stack: PUSH, POP, LEAVE, and arithmetic on RSP. */
#include "cpu/soft/jit/translation.h"

#include <string.h>

void lower_move_rsp(struct translation *t, int32_t by) {
    emit_lea(&t->out, 8, STACK, STACK, -1, 0, by);
}

/* PUSH and POP in a row move RSP once: in a group that was checked nothing can stop them. */
static void move_later(struct translation *t, int32_t by) {
    unsigned g = t->stack_group[t->index];
    if (g != NO_GROUP && t->groups[g].checked)
        t->rsp_pending += by;
    else
        lower_move_rsp(t, by);
}

void lower_settle_rsp(struct translation *t) {
    if (t->rsp_pending != 0)
        lower_move_rsp(t, t->rsp_pending);
    t->rsp_pending = 0;
}

void lower_push_rip(struct translation *t, uint64_t rip) {
    int32_t word = (int32_t)t->word;
    struct operand operand = lower_stack(t, TLB_WRITE, -word);
    if (word == 4 || (int64_t)rip == (int32_t)rip) {
        emit_store_imm(&t->out, t->word, operand.base, operand.disp, (int32_t)rip);
    } else {
        emit_mov_address(t, TEMP_B, rip);
        emit_rm(&t->out, OP_MOV_STORE, 8, TEMP_B, operand.base, operand.disp);
    }
    move_later(t, -word);
}

void lower_push(struct translation *t) {
    const struct insn *insn = t->insn;
    unsigned reg = insn->rm;
    flags_registers_change(t, 1u << RSP);
    if (insn_row_of(insn)->operand[0] != OPERAND_Zv) {
        struct operand to = lower_stack(t, TLB_WRITE, -(int32_t)t->word);
        emit_store_imm(&t->out, t->word, to.base, to.disp, (int32_t)insn->imm);
        move_later(t, -(int32_t)t->word);
        return;
    }
    struct operand operand = lower_stack(t, TLB_WRITE, -(int32_t)t->word);
    if (reg == RSP)
        lower_load_rsp(t, TEMP_B);
    else if (is_homed(reg))
        load_home(t, TEMP_B, reg);
    emit_rm(&t->out, OP_MOV_STORE, t->word, is_elsewhere(reg) ? TEMP_B : reg, operand.base,
            operand.disp);
    move_later(t, -(int32_t)t->word);
}

/* The value waits in the state: the check of the stack needs both temporary registers. */
void lower_push_memory(struct translation *t) {
    struct emitter *e = &t->out;
    flags_registers_change(t, 1u << RSP);
    lower_check_stack(t, true);
    struct operand from = lower_operand(t, TLB_READ, t->word, 1);
    emit_rm(e, OP_MOV_LOAD, t->word, TEMP_B, from.base, from.disp);
    emit_gs(e, OP_MOV_STORE, 8, TEMP_B, CPU_AT(jit.target));
    struct operand to = lower_stack(t, TLB_WRITE, -(int32_t)t->word);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_B, CPU_AT(jit.target));
    emit_rm(e, OP_MOV_STORE, t->word, TEMP_B, to.base, to.disp);
    lower_move_rsp(t, -(int32_t)t->word); /* now: a call-out of the operand comes back behind it */
}

void lower_pop(struct translation *t) {
    unsigned reg = t->insn->rm;
    flags_registers_change(t, 1u << RSP | 1u << reg);
    struct operand operand = lower_stack(t, TLB_READ, 0);
    emit_rm(&t->out, OP_MOV_LOAD, t->word, is_elsewhere(reg) ? TEMP_B : reg, operand.base,
            operand.disp);
    if (reg == RSP) {
        lower_store_rsp(t, TEMP_B);
        return;
    }
    move_later(t, (int32_t)t->word);
    if (is_homed(reg))
        store_home(t, TEMP_B, reg);
}

bool lower_leaves_rsp_pending(const struct translation *t) {
    const struct insn *insn = t->insn;
    uint8_t kind = t->kinds[t->index];
    return (kind == LOWER_PUSH || kind == LOWER_POP) &&
           (insn->rm != RSP || insn_row_of(insn)->operand[0] != OPERAND_Zv);
}

void lower_leave(struct translation *t) {
    flags_registers_change(t, 1u << RSP | 1u << RBP);
    flags_protect(t);
    lower_check_rbp(t);
    emit_gs(&t->out, OP_MOV_LOAD, 8, STACK, CPU_AT(jit.stack_addend));
    emit_lea(&t->out, 8, STACK, STACK, RBP, 0, (int32_t)t->word);
    emit_rm(&t->out, OP_MOV_LOAD, t->word, RBP, TEMP_A, 0);
}

/* ADD and SUB of a constant, and an AND that only clears bits within the page, work on the host
 * address as on RSP, except for their flags. */
bool lower_rsp_arithmetic(struct translation *t, const struct lowering *l) {
    const struct insn *insn = t->insn;
    const struct insn_row *row = insn_row_of(insn);
    bool immediate = row->operand[1] == OPERAND_Iz || row->operand[1] == OPERAND_Ibs;
    if (!l->gpr_rm || insn->rm != RSP || !immediate || insn->size != t->word ||
        t->live[t->index + 1] != 0)
        return false;
    int64_t imm = (int64_t)insn->imm;
    bool add = strcmp(row->name, "add") == 0, sub = strcmp(row->name, "sub") == 0;
    if ((add || sub) && imm > INT32_MIN) {
        lower_move_rsp(t, (int32_t)(add ? imm : -imm));
    } else if (strcmp(row->name, "and") == 0 && imm < 0 && imm >= -PAGE_SIZE) {
        emit_group1(&t->out, 4, 8, STACK, (int32_t)imm);
    } else {
        return false;
    }
    t->flags = FLAGS_SAVED | FLAGS_STALE;
    t->recipe = RECIPE_NONE;
    return true;
}
