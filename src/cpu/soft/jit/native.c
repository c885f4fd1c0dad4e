/*
 * Instructions that run as themselves, with other registers and addresses
 * where theirs are not in the host's; LEA, division, strings; and call-outs
 * of the rest.
 */
#include "cpu/soft/jit/lower_system.h"
#include "cpu/soft/x87.h"

#include <string.h>

/* ---- The whole instruction in C ---- */

/* Comes back with its flags saved and in EFLAGS. */
void lower_callout(struct translation *t) {
    if (is_light(t->insn)) {
        lower_light(t);
        return;
    }
    if (t->live[t->index] == 0)
        flags_not_needed(t);
    if (!(t->flags & FLAGS_SAVED) && t->recipe == RECIPE_NONE)
        flags_to_saved(t);
    lower_load_site(t, lower_site(t));
    emit_aim(emit_jmp(&t->out), t->jit->callout);
    t->flags = FLAGS_SAVED | FLAGS_HOST;
    t->recipe = RECIPE_NONE;
    t->temp_group = NO_GROUP;
}

/* ---- What an instruction needs ---- */

/* Byte registers AH to BH, which can be named without REX only: nothing else may need one then. */
bool uses_high_byte(const struct insn *insn, const struct lowering *l) {
    return (l->gpr_reg && insn->reg >= 20) ||
           (l->gpr_rm && !(insn->flags & I_MEMORY) && insn->rm >= 20);
}

unsigned lower_elsewhere_count(const struct insn *insn, const struct lowering *l) {
    uint32_t mask = 0;
    if (l->gpr_reg && insn->reg < 16 && is_elsewhere(insn->reg))
        mask |= 1u << insn->reg;
    if (l->gpr_rm && !(insn->flags & I_MEMORY) && insn->rm < 16 && is_elsewhere(insn->rm))
        mask |= 1u << insn->rm;
    if (l->gpr_vvvv && is_elsewhere(insn->vvvv))
        mask |= 1u << insn->vvvv;
    /* __builtin_popcount is a library's without -mpopcnt. */
    unsigned count = 0;
    for (; mask != 0; mask &= mask - 1)
        count++;
    return count;
}

/* BT, BTS, BTR and BTC with the bit's number in a register, which reaches beyond the operand. */
static bool is_bit_string(const struct insn *insn) {
    const struct insn_row *row = insn_row_of(insn);
    return (insn->flags & I_MEMORY) && row->map == MAP_0F && row->operand[1] == OPERAND_Gv &&
           (row->opcode == 0xa3 || row->opcode == 0xab || row->opcode == 0xb3 ||
            row->opcode == 0xbb);
}

static bool native_calls_out(const struct insn *insn, const struct lowering *l) {
    bool memory = insn->flags & I_MEMORY;
    if (memory && (l->memory == MEMORY_NONE || is_bit_string(insn) || insn->address_size == 2))
        return true;
    unsigned count = lower_elsewhere_count(insn, l);
    if (count > (memory ? 1 : 2))
        return true;
    return uses_high_byte(insn, l) && (memory ? l->writes_rax_rdx : count != 0);
}

static bool calls_out(const struct insn *insn, const struct lowering *l) {
    bool narrow_branch = (insn_row_of(insn)->properties & INSN_BRANCH) &&
                         (insn->size == 2 || ((insn->flags & I_MEMORY) && insn->address_size == 2));
    /* Outside 64-bit mode; CS need not be readable, and is not to be written. */
    bool in_code = (insn->flags & I_MEMORY) && insn->seg == SEG_CS;
    switch (l->kind) {
    case LOWER_CALLOUT:
    case LOWER_LIGHT: return true;
    case LOWER_NATIVE: return in_code || native_calls_out(insn, l);
    case LOWER_SYSTEM:
    case LOWER_PUSHF:
    case LOWER_POPF:
    case LOWER_SYSCALL:
    case LOWER_SYSRET:
    case LOWER_SET_AC: return lower_system_calls_out(insn);
    case LOWER_NOP: return false;
    case LOWER_LEA: return insn->address_size == 2 || insn->size == 2;
    case LOWER_PUSH:
    case LOWER_POP:
    case LOWER_LEAVE: return insn->size == 2;
    case LOWER_PUSH_MEMORY:
        return insn->size == 2 || !(insn->flags & I_MEMORY) || in_code || insn->address_size == 2;
    case LOWER_DIV:
    case LOWER_IDIV: return insn->size < 4 || in_code || insn->address_size == 2;
    default: return narrow_branch || in_code;
    }
}

/* Outside 64-bit mode addresses wrap. */
static bool bits_are_inline(const struct insn *insn) {
    return is_bit_string(insn) && insn->size >= 4 && insn->address_size == 8;
}

uint8_t lower_kind(const struct insn *insn, const struct lowering *l) {
    if (l->kind == LOWER_NATIVE && bits_are_inline(insn))
        return LOWER_BITS;
    return calls_out(insn, l) ? LOWER_CALLOUT : l->kind;
}

/* XCHG rAX with a register, the one opcode register form with two. */
static bool changes_rax_too(const struct insn *insn) {
    return insn_row_of(insn)->operand[1] == OPERAND_rAX;
}

static uint32_t native_changes(const struct insn *insn, const struct lowering *l) {
    uint8_t first = insn_row_of(insn)->operand[0];
    uint32_t mask = (l->writes_rax_rdx ? 1u << RAX | 1u << RDX : 0) | (uint32_t)l->writes_rcx
                                                                          << RCX;
    if (changes_rax_too(insn))
        mask |= 1u << RAX;
    if (l->first_read_only)
        return mask;
    /* Byte registers AH to BH are 20 to 23: bits 16 to 19 of RAX to RBX. */
    if (l->gpr_reg)
        mask |= 1u << (insn->reg >= 20 ? insn->reg - 20 : insn->reg);
    if (l->gpr_rm && !(insn->flags & I_MEMORY))
        mask |= 1u << (insn->rm >= 20 ? insn->rm - 20 : insn->rm);
    if (l->gpr_vvvv)
        mask |= 1u << insn->vvvv;
    if (first == OPERAND_rAX || first == OPERAND_AL)
        mask |= 1u << RAX;
    return mask;
}

uint32_t lower_changes(const struct insn *insn, const struct lowering *l, uint8_t kind) {
    switch (kind) {
    case LOWER_CALLOUT: return UINT32_MAX;
    case LOWER_NATIVE: return native_changes(insn, l);
    case LOWER_LEA: return 1u << insn->reg;
    case LOWER_PUSH:
    case LOWER_PUSHF:
    case LOWER_POPF:
    case LOWER_PUSH_MEMORY: return 1u << RSP;
    case LOWER_SYSTEM: return lower_system_changes(insn);
    case LOWER_SYSCALL:
    case LOWER_SYSRET:
    case LOWER_SET_AC: return UINT32_MAX;
    case LOWER_POP: return 1u << RSP | 1u << insn->rm;
    case LOWER_LEAVE: return 1u << RSP | 1u << RBP;
    case LOWER_DIV:
    case LOWER_IDIV: return 1u << RAX | 1u << RDX;
    case LOWER_MOVS:
    case LOWER_STOS: return 1u << RCX | 1u << RSI | 1u << RDI;
    case LOWER_CALL:
    case LOWER_CALL_INDIRECT: return UINT32_MAX; /* when it has returned */
    default: return 0;
    }
}

/* ---- Stand-ins ---- */

void load_home(struct translation *t, unsigned temp, unsigned gpr) {
    emit_gs(&t->out, OP_MOV_LOAD, 8, temp, GPR_AT(gpr));
}

void store_home(struct translation *t, unsigned temp, unsigned gpr) {
    emit_gs(&t->out, OP_MOV_STORE, 8, temp, GPR_AT(gpr));
}

/* Temporary registers in place of guest registers that are elsewhere. */
struct stand_ins {
    struct {
        uint8_t guest, temp;
        bool load, store;
    } list[2];
    unsigned count;
};

static unsigned stand_in(struct stand_ins *s, unsigned guest, bool load, bool store) {
    static const uint8_t temps[] = {TEMP_B, TEMP_A};
    unsigned n = 0;
    while (n < s->count && s->list[n].guest != guest)
        n++;
    if (n == s->count) {
        s->count++;
        s->list[n].guest = (uint8_t)guest;
        s->list[n].temp = temps[n];
        s->list[n].load = s->list[n].store = false;
    }
    s->list[n].load |= load;
    s->list[n].store |= store;
    return s->list[n].temp;
}

/* The first operand's old value plays no part: all of the register is new. MUL's only operand is
 * a source. */
static bool first_is_new(const struct insn *insn, const struct lowering *l) {
    if (insn_row_of(insn)->operand[1] == OPERAND_NONE)
        return false;
    switch (insn_row_of(insn)->operand[0]) {
    case OPERAND_Ev:
    case OPERAND_Ey:
    case OPERAND_Gv:
    case OPERAND_Gy:
    case OPERAND_Zv: return insn->size >= 4 && !l->first_read;
    default: return false;
    }
}

enum field { FIELD_REG, FIELD_RM, FIELD_VVVV };

/* Which field of the encoding names the first operand. */
static enum field first_field(const struct insn *insn) {
    switch (insn_row_of(insn)->operand[0]) {
    case OPERAND_Gb:
    case OPERAND_Gw:
    case OPERAND_Gd:
    case OPERAND_Gv:
    case OPERAND_Gy: return FIELD_REG;
    case OPERAND_By: return FIELD_VVVV;
    default: return FIELD_RM;
    }
}

static unsigned replace(const struct translation *t, const struct lowering *l, struct stand_ins *s,
                        enum field field, unsigned guest, unsigned present) {
    if (guest >= 16 || !is_elsewhere(guest))
        return present;
    bool first = first_field(t->insn) == field;
    bool load = !first || !first_is_new(t->insn, l);
    return stand_in(s, guest, load, first ? !l->first_read_only : l->second_written);
}

static void load_stand_ins(struct translation *t, const struct stand_ins *s) {
    for (unsigned n = 0; n < s->count; n++) {
        if (s->list[n].temp == TEMP_A)
            t->temp_group = NO_GROUP;
        if (!s->list[n].load)
            continue;
        if (s->list[n].guest == RSP)
            lower_load_rsp(t, s->list[n].temp);
        else
            load_home(t, s->list[n].temp, s->list[n].guest);
    }
}

static void store_stand_ins(struct translation *t, const struct stand_ins *s) {
    for (unsigned n = 0; n < s->count; n++) {
        if (!s->list[n].store)
            continue;
        if (s->list[n].guest == RSP)
            lower_store_rsp(t, s->list[n].temp);
        else
            store_home(t, s->list[n].temp, s->list[n].guest);
    }
}

/* ---- Native instructions ---- */

/*
 * A homed register in ModRM.rm can be used where it is, as a memory operand,
 * unless it is written as 32 bits, which clears the rest of a register but not
 * of memory. XCHG would lock memory, BT and its like would reach beyond it.
 */
static bool rm_at_home(const struct insn *insn, const struct lowering *l) {
    const struct insn_row *row = insn_row_of(insn);
    if (!l->gpr_rm || insn->flags & I_MEMORY || insn->rm >= 16 || !is_homed(insn->rm) ||
        row->form != FORM_ANY || !l->has_modrm || l->second_written ||
        (l->gpr_reg && insn->reg == insn->rm))
        return false;
    bool bit_string = row->map == MAP_0F && (row->opcode & 0xe7) == 0xa3;
    bool vector = row->properties & (INSN_SSE | INSN_AVX);
    bool written = first_field(insn) == FIELD_RM && !l->first_read_only;
    return !bit_string && (!written || (insn->size == 8 && !vector));
}

/* MOV from a homed register, as the form that has it in ModRM.rm. */
static bool lower_move_from_home(struct translation *t) {
    const struct insn *insn = t->insn;
    const struct insn_row *row = insn_row_of(insn);
    bool plain =
        row->map == MAP_1B && insn->opcode == 0x89 && insn->size >= 4 && !(insn->flags & I_MEMORY);
    if (!plain || !is_homed(insn->reg) || is_elsewhere(insn->rm))
        return false;
    emit_gs(&t->out, OP_MOV_LOAD, insn->size, insn->rm, GPR_AT(insn->reg));
    return true;
}

/* AH to BH beside a memory operand, whose register needs REX: the register is turned, so that its
 * low byte is meant, and back. RORX leaves flags alone. */
static void turn_high_byte(struct translation *t, unsigned gpr, bool back) {
    emit_rorx(&t->out, gpr, gpr, back ? 64 - 8 : 8);
}

static void emit_recoded(struct translation *t, const struct lowering *l,
                         const struct operand *operand) {
    const struct insn *insn = t->insn;
    struct stand_ins s = {.count = 0};
    struct recode to = recode_of(&t->raw);
    bool turned = operand != NULL && uses_high_byte(insn, l);
    if (turned)
        turn_high_byte(t, to.reg = insn->reg - 20u, false);
    else if (l->gpr_reg)
        to.reg = replace(t, l, &s, FIELD_REG, insn->reg, to.reg);
    if (operand != NULL) {
        to.kind = RM_ADDRESS;
        to.rm = operand->base;
        to.disp = operand->disp;
        to.indexed = operand->indexed;
        to.index = operand->index;
        to.scale = operand->scale;
    } else if (rm_at_home(insn, l)) {
        to.kind = RM_STATE;
        to.disp = GPR_AT(insn->rm);
    } else if (l->gpr_rm) {
        to.rm = replace(t, l, &s, FIELD_RM, insn->rm, to.rm);
    }
    if (l->gpr_vvvv)
        to.vvvv = replace(t, l, &s, FIELD_VVVV, insn->vvvv, to.vvvv);
    load_stand_ins(t, &s);
    recode_emit(&t->out, &t->raw, &to);
    store_stand_ins(t, &s);
    if (turned)
        turn_high_byte(t, to.reg, true);
}

static void after_native(struct translation *t, const struct lowering *l) {
    if (l->full_flags) {
        flags_written(t, l);
    } else if (l->writes_flags) {
        t->flags = FLAGS_HOST;
        t->recipe = RECIPE_NONE;
    }
}

/* MOV between rAX and an absolute address, as the ModRM form that can name any. */
static void emit_absolute_move(struct translation *t, struct operand operand) {
    const struct insn *insn = t->insn;
    uint8_t opcode =
        (uint8_t)(insn->opcode < 0xa2 ? insn->opcode - 0xa0 + 0x8a : insn->opcode - 0xa2 + 0x88);
    if (insn->size == 2)
        emit8(&t->out, 0x66);
    emit_rm(&t->out, opcode, insn->size == 2 ? 4 : insn->size, RAX, operand.base, operand.disp);
}

/* True: done. VZEROUPPER and VZEROALL of 32-bit code, which has eight vector registers. */
static bool lower_clear_vectors(struct translation *t) {
    const struct insn_row *row = insn_row_of(t->insn);
    if (t->mode == INSN_MODE_64 || row->encoding != ENC_VEX || row->map != MAP_0F ||
        row->opcode != 0x77)
        return false;
    bool all = t->insn->flags & I_VEX_L;
    for (unsigned n = 0; n < 8; n++) { /* VXORPS n, n, n or VMOVAPS n, n: 16 bytes */
        emit8(&t->out, 0xc5);
        emit8(&t->out, (uint8_t)(all ? 0x80 | (~n & 15) << 3 : 0xf8));
        emit8(&t->out, all ? 0x57 : 0x28);
        emit8(&t->out, (uint8_t)(0xc0 | n << 3 | n));
    }
    return true;
}

/* ---- x87 ---- */

/* Once the state is in the host's registers it stays there until the block leaves, or a call has
 * returned. */
static void lower_x87_ready(struct translation *t) {
    struct emitter *e = &t->out;
    if (t->x87_ready)
        return;
    flags_protect(t);
    t->temp_group = NO_GROUP;
    unsigned site = lower_site(t);
    lower_retry_at(t, site, e->at);
    emit_group1_gs(e, 7, 4, CPU_AT(jit.x87_live), 0);
    lower_stub_if(t, COND_E, t->jit->x87, site);
    t->x87_ready = true;
}

/* FLDCW of what does not mask all exceptions is for C. */
static void check_control_word(struct translation *t, struct operand operand) {
    enum { OP_MOVZX16 = 0x0fb7, OP_GROUP3 = 0xf7, NOT = 2, FCW_MASKS = 0x3f };
    struct emitter *e = &t->out;
    flags_protect(t);
    emit_rm(e, OP_MOVZX16, 4, TEMP_B, operand.base, operand.disp);
    emit_rr(e, OP_GROUP3, 4, NOT, TEMP_B);
    emit_rr(e, OP_GROUP3, 4, 0, TEMP_B);
    emit32(e, FCW_MASKS);
    lower_slow_if(t, COND_NE);
}

/* Where the element is from the operand's address, in TEMP_B: the bit's number is signed. */
static void emit_element(struct translation *t) {
    enum { OP_MOVSXD = 0x63, SHIFT = 0xc1, SAR = 7, AND = 4 };
    const struct insn *insn = t->insn;
    struct emitter *e = &t->out;
    unsigned from = insn->reg;
    if (is_elsewhere(from)) {
        if (from == RSP)
            lower_load_rsp(t, TEMP_B);
        else
            load_home(t, TEMP_B, from);
        from = TEMP_B;
    }
    if (insn->size == 4)
        emit_rr(e, OP_MOVSXD, 8, TEMP_B, from);
    else
        emit_mov(e, TEMP_B, from);
    emit_rr(e, SHIFT, 8, SAR, TEMP_B);
    emit8(e, 3);
    emit_group1(e, AND, 8, TEMP_B, -(int32_t)insn->size);
}

/* The element is checked; the host's instruction finds it, from where the string would be. */
void lower_bits(struct translation *t, const struct lowering *l) {
    const struct insn *insn = t->insn;
    struct emitter *e = &t->out;
    struct operand operand = {.base = TEMP_A};
    flags_protect(t);
    const uint8_t *retry = e->at;
    lower_address(t, (int32_t)insn->disp);
    emit_element(t);
    emit_rr(e, OP_ADD_RM, 8, TEMP_A, TEMP_B);
    lower_check_single(t, retry, l->memory_written ? TLB_WRITE : TLB_READ, insn->size);
    emit_element(t);
    emit_rr(e, OP_SUB_RM, 8, TEMP_A, TEMP_B);
    t->temp_group = NO_GROUP;
    if ((t->live[t->index + 1] & ~l->flags_killed) != 0)
        flags_to_host(t);
    emit_recoded(t, l, &operand);
    after_native(t, l);
}

/* CMP and TEST for a jump whose condition is known: only made when somebody asks after all. */
static bool lower_in_vain(struct translation *t, const struct lowering *l) {
    unsigned next = t->index + 1;
    if (l->recipe != RECIPE_REPEAT || next >= t->count || t->kinds[next] != LOWER_NOP ||
        lowering_of(&t->insns[next])->kind != LOWER_JCC)
        return false;
    return flags_by_recipe_only(t, l);
}

void lower_native(struct translation *t, const struct lowering *l) {
    const struct insn *insn = t->insn;
    struct operand operand;
    bool memory = insn->flags & I_MEMORY;
    if (lower_in_vain(t, l))
        return;
    flags_registers_change(t, native_changes(insn, l));
    if (l->x87)
        lower_x87_ready(t);
    if (memory) {
        unsigned bytes = lowering_memory_bytes(l, insn);
        operand = lower_operand(t, l->memory_written ? TLB_WRITE : TLB_READ, bytes,
                                l->aligned ? bytes : 1);
        if (insn->exec == x87_fldcw)
            check_control_word(t, operand);
    } else if (lower_rsp_arithmetic(t, l) || lower_move_from_home(t) || lower_clear_vectors(t)) {
        return;
    }
    if (l->flags_read != 0 || (l->writes_flags && (t->live[t->index + 1] & ~l->flags_killed) != 0))
        flags_to_host(t);
    if (memory && !l->has_modrm)
        emit_absolute_move(t, operand);
    else
        emit_recoded(t, l, memory ? &operand : NULL);
    after_native(t, l);
}

bool lower_lea_is_near(const struct insn *insn) {
    return insn->base != REG_ZERO && !is_elsewhere(insn->base) && !is_elsewhere(insn->reg) &&
           (insn->index == REG_ZERO || !is_elsewhere(insn->index)) &&
           (insn->address_size == 8 || insn->size == 4);
}

void lower_lea(struct translation *t) {
    const struct insn *insn = t->insn;
    unsigned size = insn->size;
    flags_registers_change(t, 1u << insn->reg);
    if (insn->reg == RSP && insn->base == RSP && insn->index == REG_ZERO && size == t->word &&
        insn->address_size == t->word) {
        lower_move_rsp(t, (int32_t)insn->disp);
        return;
    }
    if (lower_lea_is_near(insn)) {
        emit_lea(&t->out, size, insn->reg, insn->base,
                 insn->index == REG_ZERO ? -1 : (int)insn->index, insn->scale, (int32_t)insn->disp);
        return;
    }
    struct insn flat = *insn;
    flat.seg = SEG_DS; /* no segment base in an address that is not used */
    t->insn = &flat;
    lower_address(t, (int32_t)insn->disp);
    t->insn = insn;
    if (size == 4 && is_elsewhere(insn->reg))
        emit_rr(&t->out, OP_MOV_LOAD, 4, TEMP_A, TEMP_A);
    if (insn->reg == RSP)
        lower_store_rsp(t, TEMP_A);
    else if (is_homed(insn->reg))
        store_home(t, TEMP_A, insn->reg);
    else
        emit_rr(&t->out, OP_MOV_LOAD, size, insn->reg, TEMP_A);
}

/* ---- Division ---- */

/* Slow unless a signed quotient surely fits: the dividend is one register's width, the divisor
 * neither 0 nor -1. TEMP_A: divisor. */
static void check_signed(struct translation *t, unsigned size) {
    struct emitter *e = &t->out;
    emit_rr(e, OP_MOV_LOAD, size, TEMP_B, RAX);
    emit8(e, size == 8 ? 0x49 : 0x41); /* SAR TEMP_B, 63 or 31 */
    emit8(e, 0xc1);
    emit8(e, 0xf8 | (TEMP_B & 7));
    emit8(e, (uint8_t)(8 * size - 1));
    emit_rr(e, OP_CMP_RM, size, TEMP_B, RDX);
    lower_slow_if(t, COND_NE);
    emit_lea(e, size, TEMP_B, TEMP_A, -1, 0, 1);
    emit_group1(e, 7, size, TEMP_B, 1);
    lower_slow_if(t, COND_BE);
}

static void load_divisor(struct translation *t) {
    const struct insn *insn = t->insn;
    if (insn->flags & I_MEMORY) {
        struct operand operand = lower_operand(t, TLB_READ, insn->size, 1);
        emit_rm(&t->out, OP_MOV_LOAD, insn->size, TEMP_A, operand.base, operand.disp);
    } else if (insn->rm == RSP) {
        lower_load_rsp(t, TEMP_A);
    } else if (is_homed(insn->rm)) {
        load_home(t, TEMP_A, insn->rm);
    } else {
        emit_mov(&t->out, TEMP_A, insn->rm);
    }
    t->temp_group = NO_GROUP;
}

/* DIV, IDIV: what would raise #DE is called out. */
void lower_divide(struct translation *t, bool is_signed) {
    unsigned size = t->insn->size;
    flags_registers_change(t, 1u << RAX | 1u << RDX);
    flags_protect(t);
    load_divisor(t);
    if (is_signed) {
        check_signed(t, size);
    } else {
        emit_rr(&t->out, OP_CMP_RM, size, RDX, TEMP_A);
        lower_slow_if(t, COND_AE);
    }
    emit_rr(&t->out, 0xf7, size, is_signed ? 7 : 6, TEMP_A);
    /* Flags are undefined after it: as they were before is as good as any. */
}

/* ---- Strings ---- */

void lower_string(struct translation *t) {
    flags_registers_change(t, 1u << RCX | 1u << RSI | 1u << RDI);
    flags_protect(t);
    lower_to_stub(t, lower_site(t), t->jit->string);
    t->temp_group = NO_GROUP;
}
