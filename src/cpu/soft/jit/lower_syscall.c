/*
 * SYSCALL, SYSRET, STAC and CLAC: where code of one side (state.h) goes on as
 * code of another. What the system's registers say is known when they are
 * translated; that they still say so is checked, and what else there is, the
 * handlers do in light calls.
 */
#include "cpu/soft/jit/lower_system.h"
#include "cpu/soft/system.h"

#define JUMP_AT(member) (CPU_AT(jit.jumps) + (int32_t)offsetof(struct jit_jump, member))

struct crossing {
    unsigned from, to; /* sides */
    unsigned cpl;
    uint64_t key;
};

static struct crossing crossing_to(const struct translation *t, unsigned cpl, unsigned side) {
    enum { KEPT = KEY_MODE | KEY_PROTECTED | KEY_NO_FP | KEY_X87_RAISES };
    return (struct crossing){.from = side_of_block(t->block),
                             .to = side,
                             .cpl = cpl,
                             .key = (t->block->key & KEPT) | cpl << 2 | (uint64_t)side << 7};
}

/* ---- Emitting ---- */

/* MOV gs:[at], imm32 sign-extended. */
static void emit_store_gs(struct emitter *e, unsigned size, int32_t at, int32_t imm) {
    emit_gs(e, size == 1 ? 0xc6 : 0xc7, size == 1 ? 4 : size, 0, at);
    if (size == 1)
        emit8(e, (uint8_t)imm);
    else
        emit32(e, (uint32_t)imm);
}

static void require_equal(struct translation *t, unsigned size, int32_t at, int32_t imm) {
    emit_group1_gs(&t->out, 7, size, at, imm);
    system_light_if(t, COND_NE);
}

/* The other side's shadow stack holds code of this key. */
static void require_side(struct translation *t, const struct crossing *to) {
    require_equal(t, 8, CPU_AT(jit.key_of[0]) + 8 * (int32_t)to->to, (int32_t)to->key);
}

static void require_smap(struct translation *t, bool on) {
    emit_test_gs(&t->out, CPU_AT(cr4), CR4_SMAP);
    system_light_if(t, on ? COND_E : COND_NE);
}

/* Shadow stack, stack window, TLB and key. Clobbers TEMP_A. */
static void cross(struct translation *t, const struct crossing *to) {
    struct emitter *e = &t->out;
    emit_gs(e, OP_MOV_STORE, 8, RSP, CPU_AT(jit.shadow_of[0]) + 8 * (int32_t)to->from);
    emit_gs(e, OP_MOV_LOAD, 8, RSP, CPU_AT(jit.shadow_of[0]) + 8 * (int32_t)to->to);
    emit_gs(e, OP_ADD_RM, 8, STACK, CPU_AT(jit.stack_subtrahend));
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.addend_of[0]) + 8 * (int32_t)to->to);
    emit_rr(e, OP_ADD_RM, 8, STACK, TEMP_A);
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.stack_addend));
    emit_rr(e, 0xf7, 8, 3, TEMP_A); /* NEG */
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.stack_subtrahend));
    emit_mov_imm(e, TEMP_A, (uintptr_t)t->cpu->tlbs[to->to]);
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(tlb));
    emit_store_gs(e, 8, CPU_AT(jit.key), (int32_t)to->key);
    t->temp_group = NO_GROUP;
}

static void store_segment(struct translation *t, unsigned seg, const struct x86_segment *value) {
    struct emitter *e = &t->out;
    const int32_t at = CPU_AT(segment) + (int32_t)(seg * sizeof *value);
    uint64_t rest;
    _Static_assert(sizeof *value == 16 && offsetof(struct x86_segment, limit) == 8, "two words");
    memcpy(&rest, &value->limit, sizeof rest);
    emit_store_gs(e, 8, at, 0);
    emit_mov_imm(e, TEMP_A, rest);
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, at + 8);
}

static void store_segments(struct translation *t, unsigned cpl) {
    struct x86_segment cs, ss;
    syscall_segments(t->cpu, cpl, &cs, &ss);
    store_segment(t, SEG_CS, &cs);
    store_segment(t, SEG_SS, &ss);
    emit_store_gs(&t->out, 1, CPU_AT(cpl), (int32_t)cpl);
}

/* ---- SYSCALL ---- */

/* What both rest on. */
static void require_syscall(struct translation *t) {
    emit_test_gs(&t->out, CPU_AT(efer), EFER_SCE);
    system_light_if(t, COND_E);
    require_equal(t, 4, CPU_AT(star) + 4, (int32_t)(t->cpu->star >> 32));
    require_equal(t, 4, CPU_AT(request), 0);
}

/* The jump table has LSTAR's code at its place. */
static int32_t require_target(struct translation *t, const struct crossing *to) {
    struct emitter *e = &t->out;
    uint64_t target = t->cpu->lstar;
    int32_t slot = (int32_t)(jit_jump_slot(target) * sizeof(struct jit_jump));
    emit_mov_imm(e, TEMP_A, target);
    emit_gs(e, OP_CMP_RM, 8, TEMP_A, CPU_AT(lstar));
    system_light_if(t, COND_NE);
    emit_gs(e, OP_CMP_RM, 8, TEMP_A, JUMP_AT(rip) + slot);
    system_light_if(t, COND_NE);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A,
            CPU_AT(jit.context[0]) + (int32_t)(16 * to->to + 8 * (target >> 63)));
    emit_gs(e, OP_CMP_RM, 8, TEMP_A, JUMP_AT(context) + slot);
    system_light_if(t, COND_NE);
    return JUMP_AT(code) + slot;
}

/* RCX, R11 and RFLAGS; the mask clears all status flags. */
static void save_caller(struct translation *t) {
    struct emitter *e = &t->out;
    system_load_rflags(t, R11, RCX);
    emit_group1(e, 4, 8, R11, ~FLAG_RF);
    emit_rr(e, OP_MOV_LOAD, 4, RCX, R11);
    emit_group1(e, 4, 4, RCX, (int32_t)~t->cpu->sfmask);
    emit_group1(e, 1, 4, RCX, FLAGS_FIXED);
    emit_gs(e, OP_MOV_STORE, 8, RCX, CPU_AT(rflags));
    emit_store_gs(e, 4, CPU_AT(jit.saved_flags), 0);
    emit_mov_address(t, RCX, lower_next_rip(t));
}

static bool is_user_64(const struct translation *t) {
    return cpl_of(t) == 3 && (t->block->key & KEY_MODE) == INSN_MODE_64 && !t->in_shadow;
}

static bool is_kernel_64(const struct translation *t) {
    return cpl_of(t) == 0 && (t->block->key & KEY_MODE) == INSN_MODE_64 && !t->in_shadow;
}

bool lower_syscall(struct translation *t) {
    const uint64_t cleared =
        FLAGS_STATUS | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_NT | FLAG_RF | FLAG_AC;
    const struct soft_cpu *cpu = t->cpu;
    bool smap = cpu->cr4 & CR4_SMAP;
    if (!is_user_64(t) || (cpu->sfmask & cleared) != cleared) {
        lower_light(t);
        return true;
    }
    struct crossing to = crossing_to(t, 0, smap ? TLB_SUPERVISOR_SMAP : TLB_SUPERVISOR);
    system_begin(t);
    require_syscall(t);
    require_equal(t, 4, CPU_AT(sfmask), (int32_t)cpu->sfmask);
    require_smap(t, smap);
    require_side(t, &to);
    int32_t target = require_target(t, &to);
    save_caller(t);
    store_segments(t, 0);
    cross(t, &to);
    emit_gs(&t->out, 0xff, 4, 4, target); /* JMP */
    return false;
}

/* ---- SYSRET ---- */

/* RCX's code, of a program in the lower half, in jit.target. */
static void require_return_target(struct translation *t) {
    struct emitter *e = &t->out;
    emit_mov(e, TEMP_A, RCX);
    emit_rorx(e, TEMP_B, TEMP_A, JIT_JUMP_FOLD);
    emit_rr(e, OP_XOR_RM, 8, TEMP_B, TEMP_A);
    emit_group1(e, 4, 4, TEMP_B, (JIT_JUMPS - 1) << 2);
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B, JUMP_AT(rip));
    system_light_if(t, COND_NE);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.context[TLB_USER][0]));
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B, JUMP_AT(context));
    system_light_if(t, COND_NE);
    emit_gs_scaled8(e, OP_MOV_LOAD, 8, TEMP_A, TEMP_B, JUMP_AT(code));
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.target));
}

bool lower_sysret(struct translation *t) {
    const uint32_t plain = FLAGS_STATUS | FLAG_IF | FLAG_DF | FLAG_IOPL | FLAG_ID | FLAGS_FIXED;
    struct emitter *e = &t->out;
    if (!is_kernel_64(t) || t->insn->size != 8) {
        lower_light(t);
        return true;
    }
    struct crossing to = crossing_to(t, 3, TLB_USER);
    system_begin(t);
    require_syscall(t);
    require_side(t, &to);
    emit_test_imm(e, 4, R11, (int32_t)~plain);
    system_light_if(t, COND_NE);
    system_check_attention(t);
    require_return_target(t);
    emit_rr(e, OP_MOV_LOAD, 4, TEMP_B, R11);
    emit_group1(e, 4, 4, TEMP_B, (int32_t)~FLAGS_STATUS);
    emit_group1(e, 1, 4, TEMP_B, FLAGS_FIXED);
    emit_gs(e, OP_MOV_STORE, 8, TEMP_B, CPU_AT(rflags));
    emit_rr(e, OP_MOV_LOAD, 4, TEMP_B, R11);
    system_save_status(t);
    store_segments(t, 3);
    cross(t, &to);
    emit_gs(e, 0xff, 4, 4, CPU_AT(jit.target)); /* JMP */
    return false;
}

/* ---- STAC, CLAC ---- */

/* Privileged code with SMAP in force is on one of two sides, by AC. */
bool lower_set_ac(struct translation *t) {
    struct emitter *e = &t->out;
    bool on = t->insn->exec == stac, was_on = side_of_block(t->block) == TLB_SUPERVISOR;
    if (!is_kernel_64(t) || (was_on && !(t->cpu->cr4 & CR4_SMAP))) {
        lower_light(t);
        return true;
    }
    if (!on && !was_on)
        return true;
    struct crossing to = crossing_to(t, 0, on ? TLB_SUPERVISOR : TLB_SUPERVISOR_SMAP);
    system_begin(t);
    require_smap(t, true);
    require_side(t, &to);
    if (on)
        emit_group1_gs(e, 1, 4, CPU_AT(rflags), FLAG_AC);
    else
        emit_group1_gs(e, 4, 4, CPU_AT(rflags), ~FLAG_AC);
    if (on && was_on)
        return true;
    cross(t, &to);
    lower_goto_side(t, lower_next_rip(t), to.to);
    return false;
}
