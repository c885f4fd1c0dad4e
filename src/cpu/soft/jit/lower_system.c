/*
 * Instructions of the system. The frequent ones are real code in their common
 * forms, privileged code's above all; what else there is, C does in light
 * calls (light.c). A form that does not hold goes there, too, with nothing
 * done and flags saved.
 */
#include "cpu/soft/jit/lower_system.h"

#include "cpu/soft/int.h"
#include "cpu/soft/system.h"

enum { OP_GROUP3 = 0xf7, OP_SHIFT = 0xc1 };

/* ---- Light calls ---- */

/* Not where the block put another handler in its place: privilege, breakpoints. */
static bool has_own_handler(const struct insn *insn) {
    const struct insn_row *row = insn_row_of(insn);
    for (unsigned i = 0; i < 8; i++)
        if (row->exec[i / 4][i % 4] == insn->exec)
            return true;
    return false;
}

bool is_light(const struct insn *insn) {
    uint8_t kind = lowering_of(insn)->kind;
    bool system = kind == LOWER_LIGHT || (kind >= LOWER_SYSTEM && kind <= LOWER_SET_AC);
    return system && has_own_handler(insn);
}

/* Light calls find flags saved. */
static void settle_flags(struct translation *t) {
    if (t->live[t->index] == 0)
        flags_not_needed(t);
    flags_to_saved(t);
    t->recipe = RECIPE_NONE;
}

void lower_light(struct translation *t) {
    settle_flags(t);
    lower_to_stub(t, lower_site(t), t->jit->light);
    t->flags = FLAGS_SAVED;
    t->temp_group = NO_GROUP;
}

/* Instructions that clobber EFLAGS follow, and checks that go to a light call. */
void system_begin(struct translation *t) {
    settle_flags(t);
    t->flags &= ~(unsigned)FLAGS_HOST;
    t->temp_group = NO_GROUP;
}

void system_light_if(struct translation *t, unsigned condition) {
    lower_stub_if(t, condition, t->jit->light, lower_site(t));
}

/* ---- Emitting ---- */

void emit_shift(struct emitter *e, unsigned which, unsigned size, unsigned reg, unsigned count) {
    emit_rr(e, OP_SHIFT, size, which, reg);
    emit8(e, (uint8_t)count);
}

/* TEST reg, imm32 sign-extended. */
void emit_test_imm(struct emitter *e, unsigned size, unsigned reg, int32_t imm) {
    emit_rr(e, OP_GROUP3, size, 0, reg);
    emit32(e, (uint32_t)imm);
}

void emit_test_gs(struct emitter *e, int32_t disp, uint32_t imm) {
    emit_gs(e, OP_GROUP3, 4, 0, disp);
    emit32(e, imm);
}

static void store_gpr(struct translation *t, unsigned gpr, unsigned from) {
    if (gpr == RSP)
        lower_store_rsp(t, from);
    else if (is_homed(gpr))
        store_home(t, from, gpr);
    else
        emit_mov(&t->out, gpr, from);
}

static void load_gpr(struct translation *t, unsigned to, unsigned gpr) {
    if (gpr == RSP)
        lower_load_rsp(t, to);
    else if (is_homed(gpr))
        load_home(t, to, gpr);
    else
        emit_mov(&t->out, to, gpr);
}

/* ---- Interrupts ---- */

/* To a light call when the local APIC has something. Clobbers TEMP_B. */
void system_check_attention(struct translation *t) {
    if (t->cpu->lapic == NULL)
        return;
    struct emitter *e = &t->out;
    struct lapic_look look = lapic_where_to_look(t->cpu->lapic);
    emit_mov_imm(e, TEMP_B, (uintptr_t)look.signals);
    emit8(e, 0x41); /* TEST byte [TEMP_B], mask */
    emit8(e, 0xf6);
    emit8(e, TEMP_B & 7);
    emit8(e, look.mask);
    system_light_if(t, COND_NE);
    emit_mov_imm(e, TEMP_B, (uintptr_t)look.ready);
    emit8(e, 0x41); /* CMP byte [TEMP_B], 0 */
    emit8(e, 0x80);
    emit8(e, 0x38 | (TEMP_B & 7));
    emit8(e, 0);
    system_light_if(t, COND_NE);
}

static void lower_cli(struct translation *t) {
    system_begin(t);
    emit_group1_gs(&t->out, 4, 4, CPU_AT(rflags), ~FLAG_IF);
}

static void lower_direction(struct translation *t) {
    bool down = t->insn->exec == std;
    system_begin(t);
    if (down)
        emit_group1_gs(&t->out, 1, 4, CPU_AT(rflags), FLAG_DF);
    else
        emit_group1_gs(&t->out, 4, 4, CPU_AT(rflags), ~FLAG_DF);
}

static void emit_shadow(struct translation *t, bool on) {
    emit_gs(&t->out, 0xc6, 4, 0, CPU_AT(interrupt_shadow)); /* MOV byte, imm8 */
    emit8(&t->out, on);
}

/*
 * The instruction behind STI follows in the same block, so nothing comes in
 * between unless C runs for it: the shadow is there as long as that may be.
 */
static void lower_sti(struct translation *t) {
    struct emitter *e = &t->out;
    system_begin(t);
    emit_test_gs(e, CPU_AT(rflags), FLAG_IF);
    uint8_t *was_set = emit_jcc(e, COND_NE);
    system_check_attention(t);
    emit_group1_gs(e, 1, 4, CPU_AT(rflags), FLAG_IF);
    emit_shadow(t, true);
    emit_aim(was_set, e->at);
    t->in_shadow = true;
}

void lower_end_shadow(struct translation *t) {
    if (!t->in_shadow || t->insn->exec == sti)
        return;
    emit_shadow(t, false);
    t->in_shadow = false;
}

/* ---- Segment bases ---- */

static int32_t base_at(unsigned seg) {
    return CPU_AT(segment) +
           (int32_t)(seg * sizeof(struct x86_segment) + offsetof(struct x86_segment, base));
}

/* 64-bit mode: nothing but accesses depends on it. */
static void store_base(struct translation *t, unsigned seg, unsigned from) {
    const int32_t effective = CPU_AT(seg) + (int32_t)(seg * sizeof(struct soft_segment));
    emit_gs(&t->out, OP_MOV_STORE, 8, from, base_at(seg));
    emit_gs(&t->out, OP_MOV_STORE, 8, from,
            effective + (int32_t)offsetof(struct soft_segment, read.base));
    emit_gs(&t->out, OP_MOV_STORE, 8, from,
            effective + (int32_t)offsetof(struct soft_segment, write.base));
}

static void lower_swapgs(struct translation *t) {
    struct emitter *e = &t->out;
    t->temp_group = NO_GROUP;
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(kernel_gs_base));
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_B, base_at(SEG_GS));
    emit_gs(e, OP_MOV_STORE, 8, TEMP_B, CPU_AT(kernel_gs_base));
    store_base(t, SEG_GS, TEMP_A);
}

static void check_fsgsbase(struct translation *t) {
    system_begin(t);
    emit_test_gs(&t->out, CPU_AT(cr4), CR4_FSGSBASE);
    system_light_if(t, COND_E);
}

static void lower_read_base(struct translation *t) {
    const struct insn *insn = t->insn;
    check_fsgsbase(t);
    emit_gs(&t->out, OP_MOV_LOAD, insn->size, TEMP_A,
            base_at(insn->exec == rdfsbase ? SEG_FS : SEG_GS));
    store_gpr(t, insn->rm, TEMP_A);
}

static void lower_write_base(struct translation *t) {
    struct emitter *e = &t->out;
    const struct insn *insn = t->insn;
    check_fsgsbase(t);
    load_gpr(t, TEMP_A, insn->rm);
    if (insn->size == 4) {
        emit_rr(e, OP_MOV_LOAD, 4, TEMP_A, TEMP_A);
    } else {
        emit_mov(e, TEMP_B, TEMP_A);
        emit_shift(e, SHIFT_LEFT, 8, TEMP_B, 16);
        emit_shift(e, SHIFT_SIGNED, 8, TEMP_B, 16);
        emit_rr(e, OP_CMP_RM, 8, TEMP_B, TEMP_A);
        system_light_if(t, COND_NE);
    }
    store_base(t, insn->exec == wrfsbase ? SEG_FS : SEG_GS, TEMP_A);
}

/* ---- Control registers ---- */

static const struct {
    uint8_t number;
    int32_t at;
} control[] = {{0, CPU_AT(cr0)}, {2, CPU_AT(cr2)}, {3, CPU_AT(cr3)}, {4, CPU_AT(cr4)}};

static int32_t control_at(const struct insn *insn) {
    for (unsigned i = 0; i < sizeof control / sizeof control[0]; i++)
        if (insn->reg == control[i].number && !(insn->flags & I_LOCK))
            return control[i].at;
    return -1;
}

static void lower_read_control(struct translation *t) {
    t->temp_group = NO_GROUP;
    flags_registers_change(t, 1u << t->insn->rm);
    emit_gs(&t->out, OP_MOV_LOAD, 8, TEMP_A, control_at(t->insn));
    store_gpr(t, t->insn->rm, TEMP_A);
}

/* MOV of a selector to a register, or to its lower 16 bits. */
static void lower_read_selector(struct translation *t) {
    enum { OP_MOVZX16 = 0x0fb7 };
    const int32_t at = CPU_AT(segment) + (int32_t)(t->insn->reg * sizeof(struct x86_segment) +
                                                   offsetof(struct x86_segment, selector));
    t->temp_group = NO_GROUP;
    flags_registers_change(t, 1u << t->insn->rm);
    emit_gs(&t->out, OP_MOVZX16, 4, TEMP_A, at);
    if (t->insn->size != 2) {
        store_gpr(t, t->insn->rm, TEMP_A);
        return;
    }
    emit8(&t->out, 0x66);
    emit_rr(&t->out, OP_MOV_STORE, 4, TEMP_A, t->insn->rm);
}

static void lower_mfence(struct translation *t) {
    static const uint8_t bytes[] = {0x0f, 0xae, 0xf0};
    emit_bytes(&t->out, bytes, sizeof bytes);
}

static void lower_sfence(struct translation *t) {
    static const uint8_t bytes[] = {0x0f, 0xae, 0xf8};
    emit_bytes(&t->out, bytes, sizeof bytes);
}

/* ---- RFLAGS on the stack ---- */

void system_load_rflags(struct translation *t, unsigned to, unsigned temp) {
    struct emitter *e = &t->out;
    emit_gs(e, OP_MOV_LOAD, 4, to, CPU_AT(jit.saved_flags));
    emit_rr(e, OP_MOV_LOAD, 4, temp, to);
    emit_group1(e, 4, 4, temp, 1);
    emit_shift(e, SHIFT_LEFT, 4, temp, 11);
    emit_shift(e, SHIFT_RIGHT, 4, to, 8);
    emit_group1(e, 4, 4, to, FLAGS_STATUS & 0xff);
    emit_rr(e, OP_OR_RM, 4, to, temp);
    emit_gs(e, OP_OR_RM, 8, to, CPU_AT(rflags));
}

void lower_pushf(struct translation *t) {
    struct emitter *e = &t->out;
    system_begin(t);
    flags_registers_change(t, 1u << RSP);
    system_load_rflags(t, TEMP_B, TEMP_A);
    emit_group1(e, 4, 8, TEMP_B, ~(FLAG_RF | FLAG_VM));
    emit_gs(e, OP_MOV_STORE, 8, TEMP_B, CPU_AT(jit.target));
    struct operand to = lower_stack(t, TLB_WRITE, -8);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_B, CPU_AT(jit.target));
    emit_rm(e, OP_MOV_STORE, 8, TEMP_B, to.base, to.disp);
    lower_move_rsp(t, -8);
}

void system_save_status(struct translation *t) {
    struct emitter *e = &t->out;
    emit_rr(e, OP_MOV_LOAD, 4, TEMP_A, TEMP_B);
    emit_shift(e, SHIFT_LEFT, 4, TEMP_B, 8);
    emit_shift(e, SHIFT_RIGHT, 4, TEMP_A, 11);
    emit_group1(e, 4, 4, TEMP_A, 1);
    emit_rr(e, OP_OR_RM, 4, TEMP_B, TEMP_A);
    emit_gs(e, OP_MOV_STORE, 4, TEMP_B, CPU_AT(jit.saved_flags));
    t->temp_group = NO_GROUP;
}

/* Nothing changes but the status flags and, for privileged code, IF. */
void lower_popf(struct translation *t) {
    struct emitter *e = &t->out;
    bool privileged = cpl_of(t) == 0;
    uint32_t may_change = FLAGS_STATUS | (privileged ? FLAG_IF : 0);
    system_begin(t);
    flags_registers_change(t, 1u << RSP);
    struct operand from = lower_stack(t, TLB_READ, 0);
    emit_rm(e, OP_MOV_LOAD, 8, TEMP_B, from.base, from.disp);
    emit_gs(e, OP_XOR_RM, 8, TEMP_B, CPU_AT(rflags));
    emit_test_imm(e, 8, TEMP_B, (int32_t)~may_change);
    system_light_if(t, COND_NE);
    if (privileged) {
        emit_test_imm(e, 4, TEMP_B, FLAG_IF);
        uint8_t *same = emit_jcc(e, COND_E);
        system_check_attention(t);
        emit_group1_gs(e, 6, 4, CPU_AT(rflags), FLAG_IF);
        emit_aim(same, e->at);
    }
    if (t->live[t->index + 1] != 0) {
        emit_rm(e, OP_MOV_LOAD, 4, TEMP_B, from.base, from.disp);
        system_save_status(t);
    }
    lower_move_rsp(t, 8);
    t->flags = FLAGS_SAVED | (t->live[t->index + 1] != 0 ? 0 : FLAGS_STALE);
}

/* ---- Which ---- */

/* `bases`: changes what addresses are relative to. */
static const struct inline_form {
    insn_exec *exec;
    void (*lower)(struct translation *t);
    bool privileged, bases;
} forms[] = {
    {cli, lower_cli, true, false},
    {sti, lower_sti, true, false},
    {swapgs, lower_swapgs, true, true},
    {rdfsbase, lower_read_base, false, false},
    {rdgsbase, lower_read_base, false, false},
    {wrfsbase, lower_write_base, false, true},
    {wrgsbase, lower_write_base, false, true},
    {mov_r_c, lower_read_control, true, false},
    {mov_e_s_r, lower_read_selector, false, false},
    {cld, lower_direction, false, false},
    {std, lower_direction, false, false},
    {fence_full, lower_mfence, false, false},
    {fence_stores, lower_sfence, false, false},
    {fence_none, lower_lfence, false, false},
    {rdtsc, lower_rdtsc, false, false},
    {rdtscp, lower_rdtsc, false, false},
};

static const struct inline_form *form_of(const struct insn *insn) {
    for (unsigned i = 0; i < sizeof forms / sizeof forms[0]; i++)
        if (forms[i].exec == insn->exec)
            return &forms[i];
    return NULL;
}

/* The instruction behind STI is in the block and no branch. */
static bool has_shadowed_insn(const struct translation *t) {
    if (t->index + 1 >= t->count)
        return false;
    const struct insn *next = t->insn + 1;
    return !(insn_row_of(next)->properties & INSN_BRANCH) && next->exec != sti;
}

static bool holds_here(const struct translation *t, const struct inline_form *form) {
    const struct insn *insn = t->insn;
    if (form->privileged && cpl_of(t) != 0)
        return false;
    if (insn->exec == sti)
        return has_shadowed_insn(t);
    if (insn->exec == rdtsc || insn->exec == rdtscp)
        return lower_tsc_is_inline(t);
    if (insn->exec == mov_e_s_r)
        return insn->reg < SEG_COUNT && (insn->size != 2 || !is_elsewhere(insn->rm));
    return insn->exec != mov_r_c || (t->mode == INSN_MODE_64 && control_at(insn) >= 0);
}

void lower_system(struct translation *t) {
    const struct inline_form *form = form_of(t->insn);
    if (form != NULL && holds_here(t, form))
        form->lower(t);
    else
        lower_light(t);
}

uint32_t lower_system_changes(const struct insn *insn) {
    const struct inline_form *form = form_of(insn);
    if (form == NULL || form->bases)
        return UINT32_MAX;
    if (insn->exec == rdtsc || insn->exec == rdtscp)
        return 1u << RAX | 1u << RDX | (insn->exec == rdtscp ? 1u << RCX : 0);
    return insn->exec == rdfsbase || insn->exec == rdgsbase || insn->exec == mov_r_c ||
                   insn->exec == mov_e_s_r
               ? 1u << insn->rm
               : 0;
}

bool lower_system_calls_out(const struct insn *insn) {
    uint8_t kind = lowering_of(insn)->kind;
    bool narrow = (kind == LOWER_PUSHF || kind == LOWER_POPF) && insn->size != 8;
    return narrow || !has_own_handler(insn);
}

bool lower_system_goes_on_behind(const struct insn *insn) {
    return insn->exec == sti;
}
