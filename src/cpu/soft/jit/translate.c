/*
 * One block from decoded instructions to host code: operands lowered, memory
 * checked, flags followed, exits and slow paths placed behind the code.
 */
#include "cpu/soft/jit/translation.h"

#include <string.h>

#include "base/bytes.h"

/* ---- Slow path of one instruction ---- */

/* The present instruction runs in C. Comes back with its flags saved and in EFLAGS. */
static void lower_callout(struct translation *t) {
    if (t->live[t->index] == 0)
        flags_not_needed(t);
    if (!(t->flags & FLAGS_SAVED) && t->recipe == RECIPE_NONE)
        flags_to_saved(t);
    emit_mov_imm(&t->out, TEMP_B, lower_site(t));
    emit_aim(emit_jmp(&t->out), t->jit->callout);
    t->jit->sites[t->site].resume = (uint32_t)(t->out.at - t->jit->memory.writable);
    t->flags = FLAGS_SAVED | FLAGS_HOST;
    t->recipe = RECIPE_NONE;
}

/* ---- Native instructions ---- */

/* Which registers stand in for homed operands: distinct from the address in TEMP_A. */
struct stand_ins {
    struct recode operands;
    int reg, rm, vvvv; /* the homed registers, or -1 */
};

static void load_home(struct translation *t, unsigned temp, int gpr) {
    if (gpr >= 0)
        emit_gs(&t->out, OP_MOV_LOAD, 8, temp, GPR_AT(gpr));
}

static void store_home(struct translation *t, unsigned temp, int gpr) {
    if (gpr >= 0)
        emit_gs(&t->out, OP_MOV_STORE, 8, temp, GPR_AT(gpr));
}

static struct stand_ins choose_stand_ins(struct translation *t, const struct lowering *l) {
    struct stand_ins s = {.operands = recode_of(&t->raw), .reg = -1, .rm = -1, .vvvv = -1};
    bool memory = t->insn->flags & I_MEMORY;
    if (l->gpr_reg && is_homed(s.operands.reg)) {
        s.reg = (int)s.operands.reg;
        s.operands.reg = TEMP_C;
    }
    if (memory) {
        s.operands.kind = RM_ADDRESS;
        s.operands.rm = TEMP_A;
    } else if (l->gpr_rm && is_homed(s.operands.rm)) {
        s.rm = (int)s.operands.rm;
        s.operands.rm = TEMP_B;
    }
    if (l->gpr_vvvv && is_homed(s.operands.vvvv)) {
        s.vvvv = (int)s.operands.vvvv;
        s.operands.vvvv = memory ? TEMP_B : TEMP_A;
    }
    return s;
}

/* One register twice under two names would be two registers: make them one. */
static void merge_stand_ins(struct stand_ins *s) {
    if (s->reg >= 0 && s->reg == s->rm) {
        s->operands.rm = s->operands.reg;
        s->rm = -1;
    }
    if (s->vvvv >= 0 && (s->vvvv == s->reg || s->vvvv == s->rm)) {
        s->operands.vvvv = s->vvvv == s->reg ? s->operands.reg : s->operands.rm;
        s->vvvv = -1;
    }
}

/* Registers that the instruction may change. */
static uint32_t changed_registers(const struct translation *t, const struct lowering *l) {
    const struct insn *insn = t->insn;
    uint32_t mask = l->writes_rax_rdx ? 1u << RAX | 1u << RDX : 0;
    if (l->first_read_only)
        return mask;
    /* Byte registers AH to BH are 20 to 23: bits 16 to 19 of RAX to RBX. */
    if (l->gpr_reg)
        mask |= 1u << (insn->reg >= 20 ? insn->reg - 20 : insn->reg);
    if (l->gpr_rm && !(insn->flags & I_MEMORY))
        mask |= 1u << (insn->rm >= 20 ? insn->rm - 20 : insn->rm);
    if (l->gpr_vvvv)
        mask |= 1u << insn->vvvv;
    if (insn_row_of(insn)->operand[0] == OPERAND_rAX || insn_row_of(insn)->operand[0] == OPERAND_AL)
        mask |= 1u << RAX;
    return mask;
}

/* XCHG rAX with a register, the one opcode register form with two. */
static bool changes_rax_too(const struct insn *insn) {
    return insn_row_of(insn)->operand[1] == OPERAND_rAX;
}

static void emit_recoded(struct translation *t, const struct lowering *l) {
    struct stand_ins s = choose_stand_ins(t, l);
    merge_stand_ins(&s);
    load_home(t, TEMP_C, s.reg);
    load_home(t, TEMP_B, s.rm);
    load_home(t, s.operands.vvvv, s.vvvv);
    recode_emit(&t->out, &t->raw, &s.operands);
    store_home(t, TEMP_C, s.reg);
    store_home(t, TEMP_B, s.rm);
    store_home(t, s.operands.vvvv, s.vvvv);
}

static void after_native(struct translation *t, const struct lowering *l) {
    if (l->full_flags) {
        flags_written(t, l);
    } else if (l->writes_flags) {
        t->flags = FLAGS_HOST;
        t->recipe = RECIPE_NONE;
    }
}

/* MOV between rAX and an absolute address, as the ModRM form that can name TEMP_A. */
static void emit_absolute_move(struct translation *t) {
    const struct insn *insn = t->insn;
    uint8_t opcode =
        (uint8_t)(insn->opcode < 0xa2 ? insn->opcode - 0xa0 + 0x8a : insn->opcode - 0xa2 + 0x88);
    if (insn->size == 2)
        emit8(&t->out, 0x66);
    emit_rm(&t->out, opcode, insn->size == 2 ? 4 : insn->size, RAX, TEMP_A, 0);
}

/* Byte registers AH to BH, which can be named without REX only: nothing else may need one then. */
static bool uses_high_byte(const struct insn *insn, const struct lowering *l) {
    return (l->gpr_reg && insn->reg >= 20) ||
           (l->gpr_rm && !(insn->flags & I_MEMORY) && insn->rm >= 20);
}

static bool operand_needs_callout(const struct translation *t, const struct lowering *l) {
    const struct insn *insn = t->insn;
    const struct insn_row *row = insn_row_of(insn);
    bool memory = insn->flags & I_MEMORY;
    bool bit_string =
        row->map == MAP_0F && row->operand[1] == OPERAND_Gv &&
        (row->opcode == 0xa3 || row->opcode == 0xab || row->opcode == 0xb3 || row->opcode == 0xbb);
    if (memory && (l->memory == MEMORY_NONE || bit_string || insn->address_size == 2))
        return true;
    bool homed = is_homed(insn->reg) || is_homed(insn->rm);
    return uses_high_byte(insn, l) && (memory || homed);
}

static void lower_native(struct translation *t, const struct lowering *l) {
    const struct insn *insn = t->insn;
    if (operand_needs_callout(t, l)) {
        lower_callout(t);
        return;
    }
    uint32_t changed = changed_registers(t, l) | (changes_rax_too(insn) ? 1u << RAX : 0);
    flags_registers_change(t, changed);
    if (insn->flags & I_MEMORY) {
        unsigned bytes = lowering_memory_bytes(l, insn);
        flags_protect(t);
        lower_address(t);
        if (l->aligned && bytes > 1)
            lower_alignment(t, bytes);
        lower_check(t, l->memory_written ? TLB_WRITE : TLB_READ, bytes);
    }
    if (l->flags_read != 0 || (l->writes_flags && (t->live[t->index + 1] & ~l->flags_killed) != 0))
        flags_to_host(t);
    if ((insn->flags & I_MEMORY) && !l->has_modrm)
        emit_absolute_move(t);
    else
        emit_recoded(t, l);
    after_native(t, l);
}

static void lower_lea(struct translation *t) {
    const struct insn *insn = t->insn;
    unsigned size = insn->size;
    if (insn->address_size == 2 || size == 2) {
        lower_callout(t);
        return;
    }
    flags_registers_change(t, 1u << insn->reg);
    struct insn flat = *insn;
    flat.seg = SEG_DS; /* no segment base in an address that is not used */
    t->insn = &flat;
    lower_address(t);
    t->insn = insn;
    if (is_homed(insn->reg)) {
        if (size == 4)
            emit_rr(&t->out, OP_MOV_LOAD, 4, TEMP_A, TEMP_A);
        store_home(t, TEMP_A, insn->reg);
    } else {
        emit_rr(&t->out, OP_MOV_LOAD, size, insn->reg, TEMP_A);
    }
}

/* ---- Division ---- */

/* TEST that a signed quotient surely fits: the dividend is one register's width, the divisor
 * neither 0 nor -1. TEMP_C: divisor. */
static void check_signed(struct translation *t, unsigned size) {
    struct emitter *e = &t->out;
    emit_rr(e, OP_MOV_LOAD, size, TEMP_B, RAX);
    if (size == 8) /* SAR TEMP_B, 63 or 31 */
        emit8(e, 0x49);
    else
        emit8(e, 0x41);
    emit8(e, 0xc1);
    emit8(e, 0xf8 | (TEMP_B & 7));
    emit8(e, (uint8_t)(8 * size - 1));
    emit_rr(e, OP_CMP_RM, size, TEMP_B, RDX);
    lower_slow_if(t, COND_NE);
    emit_lea(e, size, TEMP_B, TEMP_C, -1, 0, 1);
    emit_group1(e, 7, size, TEMP_B, 1);
    lower_slow_if(t, COND_BE);
}

/* DIV, IDIV: what would raise #DE goes the slow way. */
static void lower_divide(struct translation *t, bool is_signed) {
    const struct insn *insn = t->insn;
    unsigned size = insn->size;
    if (size < 4 || insn->address_size == 2) {
        lower_callout(t);
        return;
    }
    flags_registers_change(t, 1u << RAX | 1u << RDX);
    flags_protect(t);
    if (insn->flags & I_MEMORY) {
        lower_address(t);
        lower_check(t, TLB_READ, size);
        emit_rm(&t->out, OP_MOV_LOAD, size, TEMP_C, TEMP_A, 0);
    } else if (is_homed(insn->rm)) {
        load_home(t, TEMP_C, insn->rm);
    } else {
        emit_mov(&t->out, TEMP_C, insn->rm);
    }
    if (is_signed) {
        check_signed(t, size);
    } else {
        emit_rr(&t->out, OP_CMP_RM, size, RDX, TEMP_C);
        lower_slow_if(t, COND_AE);
    }
    emit_rr(&t->out, 0xf7, size, is_signed ? 7 : 6, TEMP_C);
    /* Flags are undefined after it: as they were before is as good as any. */
}

/* ---- Strings ---- */

static void lower_string(struct translation *t) {
    struct emitter *e = &t->out;
    flags_registers_change(t, 1u << RCX | 1u << RSI | 1u << RDI);
    flags_protect(t);
    uint8_t *back = emit_lea_rip(e, TEMP_C);
    emit_mov_imm(e, TEMP_B, lower_site(t));
    emit_aim(emit_jmp(e), t->jit->string);
    emit_aim(back, e->at);
}

/* ---- The stack ---- */

static void move_rsp(struct translation *t, int32_t by) {
    emit_lea(&t->out, 8, RSP, RSP, -1, 0, by);
}

/* TEMP_A: host address of the 8 bytes at RSP + displacement. */
static void stack_address(struct translation *t, int32_t displacement, enum tlb_kind kind) {
    flags_registers_change(t, 1u << RSP);
    flags_protect(t);
    emit_lea(&t->out, 8, TEMP_A, RSP, -1, 0, displacement);
    lower_check(t, kind, 8);
}

/* MOV qword [TEMP_A], imm */
static void store_constant(struct translation *t, uint64_t value) {
    if ((int64_t)value == (int32_t)value) {
        emit8(&t->out, 0x49);
        emit8(&t->out, 0xc7);
        emit8(&t->out, TEMP_A & 7);
        emit32(&t->out, (uint32_t)value);
        return;
    }
    emit_mov_imm(&t->out, TEMP_C, value);
    emit_rm(&t->out, OP_MOV_STORE, 8, TEMP_C, TEMP_A, 0);
}

static void lower_push(struct translation *t) {
    const struct insn *insn = t->insn;
    bool immediate = insn_row_of(insn)->operand[0] != OPERAND_Zv;
    if (insn->size != 8) {
        lower_callout(t);
        return;
    }
    stack_address(t, -8, TLB_WRITE);
    if (immediate) {
        store_constant(t, insn->imm);
    } else {
        unsigned reg = insn->rm;
        if (is_homed(reg)) {
            load_home(t, TEMP_C, (int)reg);
            reg = TEMP_C;
        }
        emit_rm(&t->out, OP_MOV_STORE, 8, reg, TEMP_A, 0);
    }
    move_rsp(t, -8);
}

static void lower_pop(struct translation *t) {
    const struct insn *insn = t->insn;
    if (insn->size != 8) {
        lower_callout(t);
        return;
    }
    flags_registers_change(t, 1u << insn->rm);
    stack_address(t, 0, TLB_READ);
    move_rsp(t, 8);
    unsigned reg = is_homed(insn->rm) ? TEMP_C : insn->rm;
    emit_rm(&t->out, OP_MOV_LOAD, 8, reg, TEMP_A, 0);
    if (is_homed(insn->rm))
        store_home(t, TEMP_C, insn->rm);
}

static void lower_leave(struct translation *t) {
    if (t->insn->size != 8) {
        lower_callout(t);
        return;
    }
    flags_registers_change(t, 1u << RSP | 1u << RBP);
    flags_protect(t);
    emit_mov(&t->out, TEMP_A, RBP);
    lower_check(t, TLB_READ, 8);
    emit_lea(&t->out, 8, RSP, RBP, -1, 0, 8);
    emit_rm(&t->out, OP_MOV_LOAD, 8, RBP, TEMP_A, 0);
}

/* ---- Exits ---- */

static uint64_t next_rip(const struct translation *t) {
    return t->block->rip + t->insn->offset + t->insn->length;
}

static uint32_t new_exit(struct translation *t, uint64_t rip, bool saved) {
    struct jit *jit = t->jit;
    if (jit->exit_count >= EXITS_MAX) {
        t->out.full = true;
        return 0;
    }
    jit->exits[jit->exit_count] =
        (struct jit_exit){.rip = rip, .from = t->block, .flags_saved = saved};
    return jit->exit_count++;
}

/* Leaves to C, which looks for the next block: MOV TEMP_B, exit; JMP leave. */
static void emit_leave(struct translation *t, uint32_t exit, bool saved) {
    emit_mov_imm(&t->out, TEMP_B, exit);
    emit_aim(emit_jmp(&t->out), saved ? t->jit->leave_saved : t->jit->leave_host);
}

/* Goes on by the jump table's slot for a known rip, or leaves. Clobbers all of TEMP. */
static void emit_jump_slot(struct translation *t, uint64_t rip, uint32_t exit) {
    struct emitter *e = &t->out;
    int32_t slot = CPU_AT(jit.jumps) + (int32_t)(jit_jump_slot(rip) * sizeof(struct jit_jump));
    emit_mov_imm(e, TEMP_A, rip);
    const uint8_t *retry = e->at;
    emit_gs(e, OP_CMP_RM, 8, TEMP_A, slot + (int32_t)offsetof(struct jit_jump, rip));
    lower_find_if(t, COND_NE, retry, exit, true);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_C, CPU_AT(jit.context));
    emit_gs(e, OP_CMP_RM, 8, TEMP_C, slot + (int32_t)offsetof(struct jit_jump, context));
    lower_find_if(t, COND_NE, retry, exit, true);
    emit_gs(e, 0xff, 4, 4, slot + (int32_t)offsetof(struct jit_jump, code));
}

/* To C when something is requested. Flags are saved. */
static void emit_poll(struct translation *t, uint64_t rip) {
    struct emitter *e = &t->out;
    emit_group1_gs(e, 7, 4, CPU_AT(request), 0);
    uint8_t *quiet = emit_jcc(e, COND_E);
    emit_mov_imm(e, TEMP_A, rip);
    emit_aim(emit_jmp(e), t->jit->leave_rip_saved);
    emit_aim(quiet, e->at);
}

/* Goes on at a known rip. Does not disturb the translation's flags state for what follows. */
static void lower_goto(struct translation *t, uint64_t rip) {
    unsigned flags = t->flags;
    uint8_t recipe = t->recipe;
    bool same_page = rip >> PAGE_SHIFT == t->pages_rip;
    bool backward = rip <= t->block->rip + t->insn->offset;
    if (same_page && liveness_at(t, rip) == 0)
        flags_not_needed(t);
    if (!same_page || backward)
        flags_to_saved(t);
    else if (t->flags == 0)
        flags_to_host(t);
    if (backward || !same_page)
        emit_poll(t, rip);
    bool saved = t->flags & FLAGS_SAVED;
    uint32_t exit = new_exit(t, rip, saved);
    if (same_page) {
        uint8_t *field = emit_jmp(&t->out);
        emit_aim(field, t->out.at);
        emit_leave(t, exit, saved);
        if (!t->out.full)
            t->jit->exits[exit].field = field;
    } else {
        emit_jump_slot(t, rip, exit);
    }
    t->flags = flags;
    t->recipe = recipe;
}

/* TEMP_A holds a target: its code in jit.target, or the slow path for the whole instruction. */
static void lower_find_target(struct translation *t) {
    struct emitter *e = &t->out;
    const int32_t jumps = CPU_AT(jit.jumps);
    const uint8_t *retry = e->at;
    uint32_t site = lower_site(t);
    /* slot * 32, as jit_jump_slot counts: (mixed rip & mask << 2) * 8. */
    emit_rorx(e, TEMP_B, TEMP_A, JIT_JUMP_FOLD);
    emit_rr(e, OP_XOR_RM, 8, TEMP_B, TEMP_A);
    emit_group1(e, 4, 4, TEMP_B, (JIT_JUMPS - 1) << 2);
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B,
                    jumps + (int32_t)offsetof(struct jit_jump, rip));
    lower_find_if(t, COND_NE, retry, site, false);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_C, CPU_AT(jit.context));
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_C, TEMP_B,
                    jumps + (int32_t)offsetof(struct jit_jump, context));
    lower_find_if(t, COND_NE, retry, site, false);
    emit_group1_gs(e, 7, 4, CPU_AT(request), 0);
    lower_slow_if(t, COND_NE);
}

static void emit_jump_found(struct translation *t) {
    emit_gs_scaled8(&t->out, 0xff, 4, 4, TEMP_B,
                    CPU_AT(jit.jumps) + (int32_t)offsetof(struct jit_jump, code));
}

/* The target of an indirect branch in TEMP_A. */
static void load_target(struct translation *t) {
    const struct insn *insn = t->insn;
    if (insn->flags & I_MEMORY) {
        lower_address(t);
        lower_check(t, TLB_READ, 8);
        emit_rm(&t->out, OP_MOV_LOAD, 8, TEMP_A, TEMP_A, 0);
    } else if (is_homed(insn->rm)) {
        load_home(t, TEMP_A, insn->rm);
    } else {
        emit_mov(&t->out, TEMP_A, insn->rm);
    }
}

static bool branch_is_wide(const struct insn *insn) {
    return insn->size == 8 && (!(insn->flags & I_MEMORY) || insn->address_size != 2);
}

static void lower_jmp_indirect(struct translation *t) {
    flags_to_saved(t);
    load_target(t);
    lower_find_target(t);
    emit_jump_found(t);
}

static void lower_ret(struct translation *t) {
    flags_to_saved(t);
    emit_mov(&t->out, TEMP_A, RSP);
    lower_check(t, TLB_READ, 8);
    emit_rm(&t->out, OP_MOV_LOAD, 8, TEMP_A, TEMP_A, 0);
    lower_find_target(t);
    move_rsp(t, (int32_t)(8 + t->insn->imm));
    emit_jump_found(t);
}

static void push_return_address(struct translation *t) {
    stack_address(t, -8, TLB_WRITE);
    store_constant(t, next_rip(t));
    move_rsp(t, -8);
}

static void lower_call(struct translation *t) {
    push_return_address(t);
    lower_goto(t, next_rip(t) + t->insn->imm);
}

static void lower_call_indirect(struct translation *t) {
    struct emitter *e = &t->out;
    flags_to_saved(t);
    load_target(t);
    lower_find_target(t);
    /* The target is looked up before the push, which may overwrite where it was read from. */
    emit_gs_scaled8(e, OP_MOV_LOAD, 8, TEMP_C, TEMP_B,
                    CPU_AT(jit.jumps) + (int32_t)offsetof(struct jit_jump, code));
    emit_gs(e, OP_MOV_STORE, 8, TEMP_C, CPU_AT(jit.target));
    push_return_address(t);
    emit_gs(e, 0xff, 4, 4, CPU_AT(jit.target));
}

static void lower_jcc(struct translation *t) {
    flags_to_host(t);
    uint8_t *taken = emit_jcc(&t->out, t->insn->opcode & 15);
    lower_goto(t, next_rip(t));
    emit_aim(taken, t->out.at);
    lower_goto(t, next_rip(t) + t->insn->imm);
}

/* ---- Blocks ---- */

/* True: the block goes on behind the instruction. */
static bool lower_insn(struct translation *t) {
    const struct lowering *l = lowering_of(t->insn);
    bool branch = insn_row_of(t->insn)->properties & INSN_BRANCH;
    if (branch && !branch_is_wide(t->insn)) {
        lower_callout(t);
        return false;
    }
    switch (l->kind) {
    case LOWER_NATIVE: lower_native(t, l); return true;
    case LOWER_NOP: return true;
    case LOWER_LEA: lower_lea(t); return true;
    case LOWER_DIV: lower_divide(t, false); return true;
    case LOWER_IDIV: lower_divide(t, true); return true;
    case LOWER_MOVS:
    case LOWER_STOS: lower_string(t); return true;
    case LOWER_PUSH: lower_push(t); return true;
    case LOWER_POP: lower_pop(t); return true;
    case LOWER_LEAVE: lower_leave(t); return true;
    case LOWER_CALL: lower_call(t); return false;
    case LOWER_CALL_INDIRECT: lower_call_indirect(t); return false;
    case LOWER_RET: lower_ret(t); return false;
    case LOWER_JMP: lower_goto(t, next_rip(t) + t->insn->imm); return false;
    case LOWER_JMP_INDIRECT: lower_jmp_indirect(t); return false;
    case LOWER_JCC: lower_jcc(t); return false;
    default: lower_callout(t); return !branch;
    }
}

/* How a block wants to find flags: the first thing it does with them. */
static unsigned first_use_of_flags(const struct translation *t) {
    const struct block *block = t->block;
    for (unsigned i = 0; i < block->count && t->live[i] != 0; i++) {
        const struct insn *insn = &block->insns[i];
        const struct lowering *l = lowering_of(insn);
        if (l->kind == LOWER_NATIVE && !(insn->flags & I_MEMORY) && !uses_high_byte(insn, l)) {
            if (l->flags_read != 0 || l->writes_flags)
                return FLAGS_HOST;
        } else if (l->kind == LOWER_JCC) {
            return FLAGS_HOST;
        } else if (l->kind != LOWER_NOP && l->kind != LOWER_LEA) {
            return FLAGS_SAVED;
        }
    }
    return FLAGS_HOST;
}

static void lower_slow_paths(struct translation *t) {
    for (unsigned i = 0; i < t->slow_count && !t->out.full; i++) {
        const uint8_t *to = t->jit->callout;
        emit_aim(t->slow[i].field, t->out.at);
        if (t->slow[i].retry != NULL) {
            emit_aim(emit_lea_rip(&t->out, TEMP_C), t->slow[i].retry);
            to = t->slow[i].leaves ? t->jit->find_or_leave : t->jit->find_or_callout;
        }
        emit_mov_imm(&t->out, TEMP_B, t->slow[i].number);
        emit_aim(emit_jmp(&t->out), to);
    }
}

static void lower_dead_entries(struct translation *t) {
    t->made->dead_host = t->out.at;
    emit_mov_imm(&t->out, TEMP_A, t->block->rip);
    emit_aim(emit_jmp(&t->out), t->jit->leave_rip_host);
    t->made->dead_saved = t->out.at;
    emit_mov_imm(&t->out, TEMP_A, t->block->rip);
    emit_aim(emit_jmp(&t->out), t->jit->leave_rip_saved);
}

/* The two entries, and the state in which the body begins. Five bytes of each may be overwritten by
 * a jump once the block is dead. */
static void lower_entries(struct translation *t) {
    static const uint8_t nop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    struct emitter *e = &t->out;
    switch (t->live[0] == 0 ? 0 : first_use_of_flags(t)) {
    case FLAGS_SAVED:
        t->made->entry_host = e->at;
        emit_save_flags(e);
        t->made->entry_saved = e->at;
        t->flags = FLAGS_SAVED;
        break;
    case FLAGS_HOST:
        t->made->entry_saved = e->at;
        emit_restore_flags(e);
        t->made->entry_host = e->at;
        t->flags = FLAGS_HOST;
        break;
    default:
        t->made->entry_host = t->made->entry_saved = e->at;
        t->flags = FLAGS_SAVED | FLAGS_STALE;
        break;
    }
    emit_bytes(e, nop5, sizeof nop5);
}

static void lower_block(struct translation *t) {
    bool goes_on = true;
    liveness_find(t);
    lower_entries(t);
    for (t->index = 0; t->index < t->block->count && goes_on && !t->out.full; t->index++) {
        t->insn = &t->block->insns[t->index];
        t->site = SITES_MAX;
        raw_parse(&t->raw, t->code + t->insn->offset, t->insn, lowering_of(t->insn)->has_modrm);
        goes_on = lower_insn(t);
        if (t->site != SITES_MAX)
            t->jit->sites[t->site].resume = (uint32_t)(t->out.at - t->jit->memory.writable);
    }
    t->insn = &t->block->insns[t->block->count - 1];
    if (goes_on && !t->out.full)
        lower_goto(t, next_rip(t));
    lower_slow_paths(t);
    lower_dead_entries(t);
}

/* The bytes may have changed since they were decoded: then there is nothing to translate. */
static bool copy_code(struct translation *t) {
    const struct block *block = t->block;
    memcpy(t->code, block->host, block->length);
    for (unsigned i = 0; i < block->count; i++) {
        const struct insn *was = &block->insns[i];
        struct insn now;
        int length = insn_decode(&now, t->code + was->offset, block->length - was->offset,
                                 block->rip + was->offset, INSN_MODE_64, t->cpu->features);
        if (length != was->length || now.row != was->row || now.imm != was->imm ||
            now.disp != was->disp || now.exec != was->exec)
            return false;
    }
    return true;
}

/* Native vector instructions do not ask whether they may run: where some may not, the handlers do.
 */
static bool must_ask(const struct block *block) {
    if (!(block->key & KEY_NO_FP))
        return false;
    for (unsigned i = 0; i < block->count; i++)
        if (insn_row_of(&block->insns[i])->properties & (INSN_SSE | INSN_AVX))
            return true;
    return false;
}

static bool can_translate(const struct jit *jit, const struct block *block) {
    return !jit->full && !block->straddles && !block->dead && block->count != 0 &&
           (block->key & (KEY_STEP | KEY_NO_BREAK)) == 0 && !must_ask(block);
}

void jit_translate(struct soft_cpu *cpu, struct block *block) {
    struct jit *jit = cpu->jit.jit;
    if (!can_translate(jit, block))
        return;
    struct code_memory *memory = &jit->memory;
    uint32_t sites = jit->site_count, exits = jit->exit_count;
    struct translation t = {
        .out = {.at = memory->writable + memory->used, .end = memory->writable + memory->size},
        .cpu = cpu,
        .jit = jit,
        .block = block,
        .pages_rip = block->rip >> PAGE_SHIFT,
        .made = &jit->blocks[jit->block_count],
    };
    if (!copy_code(&t))
        return;
    t.made->block = block;
    block->watch_start = PAGE_SIZE - 1;
    lower_block(&t);
    if (t.out.full || jit->block_count >= BLOCKS_MAX - 1) {
        jit->full = true;
        jit->site_count = sites;
        jit->exit_count = exits;
        return;
    }
    size_t start = memory->used;
    memory->used = (size_t)round_up((uint64_t)(t.out.at - memory->writable), 16);
    jit->block_count++;
    cpu->count.translations++;
    jit_map_add(cpu, start, memory->used - start, block);
    block->code = t.made;
}
