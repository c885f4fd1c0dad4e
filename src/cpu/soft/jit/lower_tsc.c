/*
 * RDTSC and RDTSCP: the host's TSC on the line of the VM's clock
 * (base/clock_line.h), as C reads it. Where the line has come to its end, is
 * being changed, or changes meanwhile, a light call reads it.
 */
#include "base/clock_line.h"
#include "cpu/soft/jit/lower_system.h"
#include "cpu/soft/system.h"

enum { OP_NEG_MUL = 0xf7, GROUP3_MUL = 4, GROUP1_AND = 4 };

#define LINE_AT(member) ((int32_t)offsetof(struct clock_line, member))

static void emit_lfence(struct emitter *e) {
    static const uint8_t bytes[] = {0x0f, 0xae, 0xe8};
    emit_bytes(e, bytes, sizeof bytes);
}

/* As on the host, it is what keeps RDTSC in its place. */
void lower_lfence(struct translation *t) {
    emit_lfence(&t->out);
}

/* The host's counter in RAX. */
static void emit_rdtsc(struct emitter *e) {
    static const uint8_t bytes[] = {0x0f, 0x31};
    emit_bytes(e, bytes, sizeof bytes);
    emit_shift(e, SHIFT_LEFT, 8, RDX, 32);
    emit_rr(e, OP_OR_RM, 8, RAX, RDX);
}

/*
 * TEMP_B is what `done` was. That `begun` is loaded behind the counter is not
 * left to chance: the address is made to depend on what the counter gave.
 */
static void require_unchanged(struct translation *t) {
    struct emitter *e = &t->out;
    emit_mov(e, RAX, RDX);
    emit_group1(e, GROUP1_AND, 4, RAX, 0);
    emit_rr(e, OP_ADD_RM, 8, RAX, TEMP_A);
    emit_rm(e, OP_CMP_RM, 8, TEMP_B, RAX, LINE_AT(begun));
    system_light_if(t, COND_NE);
}

/* The guest's TSC without its offset in RDX. RAX and RDX are lost when a light call is to do it;
 * it needs neither. */
static void read_line(struct translation *t) {
    struct emitter *e = &t->out;
    emit_rm(e, OP_MOV_LOAD, 8, TEMP_B, TEMP_A, LINE_AT(done));
    emit_rdtsc(e);
    emit_rm(e, OP_SUB_RM, 8, RAX, TEMP_A, LINE_AT(host));
    emit_rm(e, OP_CMP_RM, 8, RAX, TEMP_A, LINE_AT(span));
    system_light_if(t, COND_AE);
    emit_shift(e, SHIFT_LEFT, 8, RAX, 64 - CLOCK_LINE_SHIFT);
    emit_rm(e, OP_NEG_MUL, 8, GROUP3_MUL, TEMP_A, LINE_AT(rate));
    emit_rm(e, OP_ADD_RM, 8, RDX, TEMP_A, LINE_AT(guest));
    require_unchanged(t);
}

bool lower_tsc_is_inline(const struct translation *t) {
    return t->cpu->clock_line != NULL && t->cpu->verify == NULL;
}

void lower_rdtsc(struct translation *t) {
    struct emitter *e = &t->out;
    bool ordered = t->insn->exec == rdtscp;
    system_begin(t);
    if (cpl_of(t) != 0) {
        emit_test_gs(e, CPU_AT(cr4), CR4_TSD);
        system_light_if(t, COND_NE);
    }
    emit_mov_imm(e, TEMP_A, (uintptr_t)t->cpu->clock_line);
    if (ordered)
        emit_lfence(e);
    read_line(t);
    emit_gs(e, OP_ADD_RM, 8, RDX, CPU_AT(tsc_offset));
    emit_rr(e, OP_MOV_LOAD, 4, RAX, RDX);
    emit_shift(e, SHIFT_RIGHT, 8, RDX, 32);
    if (ordered)
        emit_gs(e, OP_MOV_LOAD, 4, RCX, CPU_AT(tsc_aux));
}
