/*
 * The code between C and translated code, made once a vCPU: entering,
 * leaving, and call-outs. All guest registers, vector registers and MXCSR
 * change hands here.
 */
#include "cpu/soft/jit/fast.h"

enum { PUSH_FIRST = 0x50, POP_FIRST = 0x58 };
static const uint8_t callee_saved[] = {RBX, RBP, R12, R13, R14, R15};

static void emit_push_pop(struct emitter *e, unsigned opcode, unsigned reg) {
    if (reg >= 8)
        emit8(e, 0x41);
    emit8(e, (uint8_t)(opcode | (reg & 7)));
}

/* VMOVDQU between YMMn and the vCPU's vector register n. load 6F, store 7F. */
static void emit_vector(struct emitter *e, uint8_t opcode, unsigned n) {
    emit8(e, 0x65);
    emit8(e, 0xc5);
    emit8(e, (uint8_t)((n < 8 ? 0x80 : 0) | 0x7e));
    emit8(e, opcode);
    emit8(e, (uint8_t)((n & 7) << 3 | 4));
    emit8(e, 0x25);
    emit32(e, (uint32_t)(offsetof(struct soft_cpu, vec) + n * sizeof(union x86_vector)));
}

/* LDMXCSR (2) or STMXCSR (3) gs:[at]. */
static void emit_mxcsr(struct emitter *e, unsigned which, int32_t at) {
    emit_gs(e, 0x0fae, 4, which, at);
}

static void emit_vzeroupper(struct emitter *e) {
    static const uint8_t bytes[] = {0xc5, 0xf8, 0x77};
    emit_bytes(e, bytes, sizeof bytes);
}

/* Everything the guest has in registers goes to the vCPU; the host's stack and MXCSR come back. */
static void emit_store_guest(struct emitter *e) {
    for (unsigned n = 0; n < FIRST_HOMED; n++)
        emit_gs(e, OP_MOV_STORE, 8, n, GPR_AT(n));
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, 0x7f, n);
    emit_mxcsr(e, 3, CPU_AT(mxcsr));
    emit_mxcsr(e, 2, CPU_AT(jit.host_mxcsr));
    emit_vzeroupper(e);
    emit_gs(e, OP_MOV_LOAD, 8, RSP, CPU_AT(jit.host_rsp));
}

/* The reverse; flags come from saved_flags; goes on at jit.resume. */
static void emit_load_guest(struct emitter *e) {
    emit_mxcsr(e, 2, CPU_AT(mxcsr));
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, 0x6f, n);
    emit_restore_flags(e);
    for (unsigned n = 0; n < FIRST_HOMED; n++)
        emit_gs(e, OP_MOV_LOAD, 8, n, GPR_AT(n));
    emit_gs(e, 0xff, 4, 4, CPU_AT(jit.resume)); /* JMP */
}

static const uint8_t *make_enter(struct jit *jit, struct emitter *e) {
    const uint8_t *start = e->at;
    for (unsigned i = 0; i < sizeof callee_saved; i++)
        emit_push_pop(e, PUSH_FIRST, callee_saved[i]);
    emit_group1(e, 5, 8, RSP, 8); /* 16-byte alignment for the calls of call-outs */
    emit_gs(e, OP_MOV_STORE, 8, RSP, CPU_AT(jit.host_rsp));
    emit_gs(e, OP_MOV_STORE, 8, RSI, CPU_AT(jit.resume));
    emit_load_guest(e);
    return code_executable(&jit->memory, start);
}

static void make_leave(struct jit *jit, struct emitter *e) {
    jit->leave_host = e->at;
    emit_save_flags(e);
    jit->leave_saved = e->at;
    emit_gs(e, OP_MOV_STORE, 4, TEMP_B, CPU_AT(jit.exit));
    uint8_t *common = emit_jmp(e);
    jit->leave_rip_host = e->at;
    emit_save_flags(e);
    jit->leave_rip_saved = e->at;
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(rip));
    emit_mov_imm(e, TEMP_B, JIT_EXIT_RIP);
    emit_gs(e, OP_MOV_STORE, 4, TEMP_B, CPU_AT(jit.exit));
    emit_aim(common, e->at);
    emit_store_guest(e);
    jit->leave_now = code_executable(&jit->memory, e->at);
    emit_group1(e, 0, 8, RSP, 8);
    for (unsigned i = sizeof callee_saved; i-- > 0;)
        emit_push_pop(e, POP_FIRST, callee_saved[i]);
    emit8(e, 0xc3);
}

/* TEMP_B: the site. C says where to go on; leave_now when it does not go on. */
static void make_callout(struct jit *jit, struct emitter *e, struct soft_cpu *cpu) {
    jit->callout = e->at;
    emit_store_guest(e);
    emit_mov_imm(e, RDI, (uintptr_t)cpu);
    emit_rr(e, OP_MOV_LOAD, 4, RSI, TEMP_B);
    emit_mov_imm(e, RAX, (uintptr_t)jit_callout);
    emit8(e, 0xff); /* CALL RAX */
    emit8(e, 0xd0);
    emit_mov_imm(e, RDX, (uintptr_t)jit->leave_now);
    emit_rr(e, OP_CMP_RM, 8, RAX, RDX);
    uint8_t *leaves = emit_jcc(e, COND_E);
    emit_aim(leaves, jit->memory.writable + (jit->leave_now - jit->memory.executable));
    emit_gs(e, OP_MOV_STORE, 8, RAX, CPU_AT(jit.resume));
    emit_load_guest(e);
}

/*
 * Calls a function of fast.c with TEMP_A or TEMP_B as its second argument.
 * Leaves TEMP_A and TEMP_B as they were. Goes on at TEMP_C's code when the
 * function answers 1, at `fail` when 0.
 */
static uint8_t *make_fast_call(struct emitter *e, struct soft_cpu *cpu, uintptr_t function,
                               unsigned argument, const uint8_t *fail) {
    static const uint8_t kept[] = {RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11};
    uint8_t *start = e->at;
    emit_gs(e, OP_MOV_STORE, 8, TEMP_C, CPU_AT(jit.resume_fast));
    emit_gs(e, OP_MOV_STORE, 8, TEMP_A, CPU_AT(jit.argument));
    /* The callee-saved registers stay where they are; TEMP_B, R14, is one of them. */
    for (unsigned i = 0; i < sizeof kept; i++)
        emit_gs(e, OP_MOV_STORE, 8, kept[i], GPR_AT(kept[i]));
    emit_gs(e, OP_MOV_STORE, 8, RSP, GPR_AT(RSP));
    emit_gs(e, OP_MOV_LOAD, 8, RSP, CPU_AT(jit.host_rsp));
    emit_mov_imm(e, RDI, (uintptr_t)cpu);
    emit_mov(e, RSI, argument);
    emit_mov_imm(e, RAX, function);
    emit8(e, 0xff); /* CALL RAX */
    emit8(e, 0xd0);
    emit_mov(e, TEMP_C, RAX);
    emit_gs(e, OP_MOV_LOAD, 8, RSP, GPR_AT(RSP));
    for (unsigned i = 0; i < sizeof kept; i++)
        emit_gs(e, OP_MOV_LOAD, 8, kept[i], GPR_AT(kept[i]));
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.argument));
    emit_rr(e, OP_TEST, 8, TEMP_C, TEMP_C);
    emit_aim(emit_jcc(e, COND_E), fail);
    emit_gs(e, 0xff, 4, 4, CPU_AT(jit.resume_fast));
    return start;
}

static void make_fast_calls(struct jit *jit, struct emitter *e, struct soft_cpu *cpu) {
    jit->find_or_callout = make_fast_call(e, cpu, (uintptr_t)jit_fast_find, TEMP_A, jit->callout);
    jit->find_or_leave = make_fast_call(e, cpu, (uintptr_t)jit_fast_find, TEMP_A, jit->leave_saved);
    jit->string = make_fast_call(e, cpu, (uintptr_t)jit_fast_string, TEMP_B, jit->callout);
}

void stubs_make(struct jit *jit, struct soft_cpu *cpu) {
    struct emitter e = {.at = jit->memory.writable, .end = jit->memory.writable + jit->memory.size};
    jit->enter = make_enter(jit, &e);
    make_leave(jit, &e);
    make_callout(jit, &e, cpu);
    make_fast_calls(jit, &e, cpu);
    jit->stubs_end = jit->memory.used = (size_t)(e.at - jit->memory.writable);
}
