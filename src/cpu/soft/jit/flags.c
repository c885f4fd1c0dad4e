/*
 * Where the guest's flags are while its code is translated.
 *
 * EFLAGS hold them until a check of ours has to clobber them. Before that
 * they are saved, unless a recipe can bring them back: CMP and TEST can be
 * repeated, AND, OR and XOR's flags are those of TEST of their result, and ADD
 * and SUB can be undone and done again. Recipes matter because flags are
 * rarely read after a memory access, but must be exact if the access faults.
 */
#include "cpu/soft/jit/translation.h"

void emit_save_flags(struct emitter *e) {
    emit_mov(e, TEMP_B, RAX);
    emit8(e, 0x9f);                /* LAHF */
    emit_rr(e, 0x0f90, 1, 0, RAX); /* SETO AL */
    emit_gs(e, OP_MOV_STORE, 4, RAX, CPU_AT(jit.saved_flags));
    emit_mov(e, RAX, TEMP_B);
}

void emit_restore_flags(struct emitter *e) {
    emit_mov(e, TEMP_B, RAX);
    emit_gs(e, OP_MOV_LOAD, 4, RAX, CPU_AT(jit.saved_flags));
    emit8(e, 0x04); /* ADD AL, 7Fh: OF from bit 0 */
    emit8(e, 0x7f);
    emit8(e, 0x9e); /* SAHF */
    emit_mov(e, RAX, TEMP_B);
}

/*
 * The recipe's instruction once more, with stand-ins for homed registers. A
 * homed ModRM.reg is in TEMP_B, and not stored: undone and done again, it is
 * what it was. `loaded`: TEMP_B holds it from the undoing.
 */
static void emit_again(struct translation *t, const struct insn *insn, int opcode_change,
                       bool loaded) {
    struct raw raw;
    raw_parse(&raw, t->code + insn->offset, insn, t->mode, lowering_of(insn)->has_modrm);
    struct recode operands = recode_of(&raw);
    const struct lowering *l = lowering_of(insn);
    if (l->gpr_reg && is_homed(operands.reg)) {
        if (!loaded)
            emit_gs(&t->out, OP_MOV_LOAD, 8, TEMP_B, GPR_AT(operands.reg));
        operands.reg = TEMP_B;
    }
    if (l->gpr_rm && is_homed(operands.rm)) {
        operands.kind = RM_STATE;
        operands.disp = GPR_AT(operands.rm);
    }
    /* ADD and SUB differ by 28h in the opcode, or by 5 in ModRM.reg for the immediate forms. */
    uint8_t *opcode = &raw.bytes[raw.opcode_at];
    if (*opcode >= 0x80 && *opcode <= 0x83)
        operands.reg ^= opcode_change != 0 ? 5 : 0;
    else
        *opcode = (uint8_t)(*opcode + opcode_change);
    recode_emit(&t->out, &raw, &operands);
}

/* TEST of the destination with itself, in the instruction's size. */
static void emit_test_dest(struct translation *t, const struct insn *insn, unsigned dest) {
    unsigned size = insn->size, reg = dest;
    if (is_homed(dest)) {
        emit_gs(&t->out, OP_MOV_LOAD, 8, TEMP_B, GPR_AT(dest));
        reg = TEMP_B;
    }
    if (size == 2)
        emit8(&t->out, 0x66);
    emit_rr(&t->out, size == 1 ? 0x84 : OP_TEST, size == 2 ? 4 : size, reg, reg);
}

static unsigned destination(const struct insn *insn) {
    unsigned operand = insn_row_of(insn)->operand[0];
    bool in_reg = operand == OPERAND_Gb || operand == OPERAND_Gv;
    return in_reg ? insn->reg : insn->rm;
}

static void use_recipe(struct translation *t) {
    const struct insn *insn = &t->insns[t->recipe_insn];
    enum { ADD_TO_SUB = 0x28 };
    switch (t->recipe) {
    case RECIPE_REPEAT: emit_again(t, insn, 0, false); break;
    case RECIPE_TEST_DEST: emit_test_dest(t, insn, destination(insn)); break;
    case RECIPE_UNDO_ADD:
        emit_again(t, insn, -ADD_TO_SUB, false);
        emit_again(t, insn, 0, true);
        break;
    case RECIPE_UNDO_SUB:
        emit_again(t, insn, ADD_TO_SUB, false);
        emit_again(t, insn, 0, true);
        break;
    default: break;
    }
    t->flags |= FLAGS_HOST;
}

void flags_not_needed(struct translation *t) {
    if (!(t->flags & FLAGS_SAVED))
        t->flags |= FLAGS_SAVED | FLAGS_STALE;
}

void flags_protect(struct translation *t) {
    if (t->live[t->index] == 0)
        flags_not_needed(t);
    if (t->flags == FLAGS_HOST && t->recipe == RECIPE_NONE) {
        emit_save_flags(&t->out);
        t->flags |= FLAGS_SAVED;
    }
    t->flags &= ~(unsigned)FLAGS_HOST;
}

void flags_to_host(struct translation *t) {
    if (t->flags & FLAGS_HOST)
        return;
    if (t->flags & FLAGS_SAVED)
        emit_restore_flags(&t->out);
    else
        use_recipe(t);
    t->flags |= FLAGS_HOST;
}

void flags_to_saved(struct translation *t) {
    if (t->flags & FLAGS_SAVED)
        return;
    flags_to_host(t);
    emit_save_flags(&t->out);
    t->flags |= FLAGS_SAVED;
}

void flags_registers_change(struct translation *t, uint32_t mask) {
    if (t->recipe == RECIPE_NONE || !(t->recipe_registers & mask))
        return;
    if (t->flags == 0 && t->live[t->index] == 0)
        flags_not_needed(t);
    else if (t->flags == 0)
        flags_to_host(t);
    t->recipe = RECIPE_NONE;
}

/* Registers that a recipe of the present instruction needs; 0: it has none. */
static uint32_t recipe_needs(const struct insn *insn, const struct lowering *l) {
    const struct insn_row *row = insn_row_of(insn);
    if (l->recipe == RECIPE_NONE || (insn->flags & (I_MEMORY | I_LOCK)))
        return 0;
    /* AH to BH, and sizes whose upper halves undoing would change, are not worth it. */
    bool plain = insn->reg < 16 && insn->rm < 16;
    bool undo = l->recipe == RECIPE_UNDO_ADD || l->recipe == RECIPE_UNDO_SUB;
    if (!plain || (undo && insn->size < 4))
        return 0;
    uint32_t mask = 1u << destination(insn);
    if (l->recipe == RECIPE_TEST_DEST)
        return mask >> RSP & 1 ? 0 : mask;
    bool two_registers = l->gpr_reg && l->gpr_rm;
    if (undo && two_registers && insn->reg == insn->rm)
        return 0;
    if (undo && row->operand[0] == OPERAND_rAX)
        return 0; /* the short forms have no counterpart in the same place */
    if (l->gpr_reg)
        mask |= 1u << insn->reg;
    if (l->gpr_rm)
        mask |= 1u << insn->rm;
    return mask >> RSP & 1 ? 0 : mask;
}

void flags_written(struct translation *t, const struct lowering *l) {
    t->flags = FLAGS_HOST;
    t->recipe = RECIPE_NONE;
    uint32_t needs = recipe_needs(t->insn, l);
    if (needs != 0) {
        t->recipe = l->recipe;
        t->recipe_insn = (uint16_t)t->index;
        t->recipe_registers = needs;
    }
}

bool flags_by_recipe_only(struct translation *t, const struct lowering *l) {
    if (recipe_needs(t->insn, l) == 0)
        return false;
    flags_written(t, l);
    t->flags = 0;
    return true;
}
