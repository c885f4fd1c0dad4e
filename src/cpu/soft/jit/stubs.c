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

/* VEX.op of YMMn, or XMMn, with 16 bytes or all of the vCPU's vector register `of`, from `at` on;
 * pp: 1 stands for 66, 2 for F3. first: the other source, or 0. */
static void emit_vector(struct emitter *e, uint8_t opcode, bool ymm, unsigned pp, unsigned n,
                        unsigned first, unsigned of, unsigned at) {
    emit8(e, 0x65);
    emit8(e, 0xc5);
    emit8(e, (uint8_t)((n < 8 ? 0x80 : 0) | (~first & 15) << 3 | (ymm ? 4 : 0) | pp));
    emit8(e, opcode);
    emit8(e, (uint8_t)((n & 7) << 3 | 4));
    emit8(e, 0x25);
    emit32(e, (uint32_t)(offsetof(struct soft_cpu, vec) + of * sizeof(union x86_vector) + at));
}

enum { VMOVDQU_LOAD = 0x6f, VMOVDQU_STORE = 0x7f, VPOR = 0xeb, PP_66 = 1, PP_F3 = 2 };

static void emit_store_vectors(struct emitter *e) {
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, VMOVDQU_STORE, true, PP_F3, n, 0, n, 0);
}

/* LDMXCSR (2) or STMXCSR (3) gs:[at]. */
static void emit_mxcsr(struct emitter *e, unsigned which, int32_t at) {
    emit_gs(e, 0x0fae, 4, which, at);
}

static void emit_vzeroupper(struct emitter *e) {
    static const uint8_t bytes[] = {0xc5, 0xf8, 0x77};
    emit_bytes(e, bytes, sizeof bytes);
}

/*
 * Upper halves that are zero must also be so in the host's eyes, as they are
 * after VZEROUPPER: once all of a YMM register has been loaded, each SSE
 * instruction that writes a register waits for the register's old value, to
 * keep its upper half.
 */
static void emit_load_vectors(struct emitter *e) {
    static const uint8_t vptest_0_0[] = {0xc4, 0xe2, 0x79, 0x17, 0xc0};
    emit_vector(e, VMOVDQU_LOAD, false, PP_F3, 0, 0, 0, 16);
    for (unsigned n = 1; n < 16; n++)
        emit_vector(e, VPOR, false, PP_66, 0, 0, n, 16);
    emit_bytes(e, vptest_0_0, sizeof vptest_0_0);
    uint8_t *in_use = emit_jcc(e, COND_NE);
    emit_vzeroupper(e);
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, VMOVDQU_LOAD, false, PP_F3, n, 0, n, 0);
    uint8_t *loaded = emit_jmp(e);
    emit_aim(in_use, e->at);
    for (unsigned n = 0; n < 16; n++)
        emit_vector(e, VMOVDQU_LOAD, true, PP_F3, n, 0, n, 0);
    emit_aim(loaded, e->at);
}

static void emit_store_gprs(struct emitter *e, unsigned temp) {
    emit_gs(e, OP_MOV_LOAD, 8, temp, CPU_AT(jit.stack_subtrahend));
    emit_lea(e, 8, temp, (int)temp, STACK, 0, 0);
    emit_gs(e, OP_AND_RM, 8, temp, CPU_AT(jit.rsp_bits));
    emit_gs(e, OP_MOV_STORE, 8, temp, GPR_AT(RSP));
    for (unsigned n = 0; n < 16; n++)
        if (!is_elsewhere(n))
            emit_gs(e, OP_MOV_STORE, 8, n, GPR_AT(n));
}

static void emit_load_stack(struct emitter *e) {
    emit_gs(e, OP_MOV_LOAD, 8, STACK, GPR_AT(RSP));
    emit_gs(e, OP_ADD_RM, 8, STACK, CPU_AT(jit.stack_addend));
}

static void emit_load_gprs(struct emitter *e) {
    for (unsigned n = 0; n < 16; n++)
        if (!is_elsewhere(n))
            emit_gs(e, OP_MOV_LOAD, 8, n, GPR_AT(n));
}

/* Between the shadow stack and the thread's own. */
static void emit_to_host_stack(struct emitter *e) {
    emit_gs(e, OP_MOV_STORE, 8, RSP, CPU_AT(jit.shadow_rsp));
    emit_gs(e, OP_MOV_LOAD, 8, RSP, CPU_AT(jit.host_rsp));
}

/* Everything the guest has in registers goes to the vCPU; the host's stack and MXCSR come back.
 * Leaves TEMP_B alone. */
static void emit_store_guest(struct emitter *e) {
    emit_store_gprs(e, TEMP_A);
    emit_store_vectors(e);
    emit_mxcsr(e, 3, CPU_AT(mxcsr));
    emit_mxcsr(e, 2, CPU_AT(jit.host_mxcsr));
    emit_vzeroupper(e);
    emit_to_host_stack(e);
}

/* The reverse; flags come from saved_flags; goes on at jit.resume. */
static void emit_load_guest(struct emitter *e) {
    emit_mxcsr(e, 2, CPU_AT(mxcsr));
    emit_load_vectors(e);
    emit_load_stack(e);
    emit_restore_flags(e);
    emit_load_gprs(e);
    emit_gs(e, OP_MOV_LOAD, 8, RSP, CPU_AT(jit.shadow_rsp));
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
    jit->leave_saved = e->at;
    emit_gs(e, OP_MOV_STORE, 4, TEMP_B, CPU_AT(jit.exit));
    uint8_t *common = emit_jmp(e);
    jit->leave_here = code_executable(&jit->memory, e->at);
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

static void emit_call_c(struct emitter *e, uintptr_t function) {
    emit_mov_imm(e, RAX, function);
    emit8(e, 0xff); /* CALL RAX */
    emit8(e, 0xd0);
}

/* TEMP_B: the site. C says where to go on; leave_now when it does not go on. */
static void make_callout(struct jit *jit, struct emitter *e, struct soft_cpu *cpu) {
    jit->callout = e->at;
    emit_store_guest(e);
    emit_mov_imm(e, RDI, (uintptr_t)cpu);
    emit_rr(e, OP_MOV_LOAD, 4, RSI, TEMP_B);
    emit_call_c(e, (uintptr_t)jit_callout);
    emit_mov_imm(e, RDX, (uintptr_t)jit->leave_now);
    emit_rr(e, OP_CMP_RM, 8, RAX, RDX);
    uint8_t *leaves = emit_jcc(e, COND_E);
    emit_aim(leaves, jit->memory.writable + (jit->leave_now - jit->memory.executable));
    emit_gs(e, OP_MOV_STORE, 8, RAX, CPU_AT(jit.resume));
    emit_load_guest(e);
}

/* ---- Light calls ---- */

typedef const uint8_t *light_call(struct soft_cpu *cpu, uint64_t value, uint32_t number);

/*
 * Calls a function of fast.c with TEMP_A's value and the number in jit.argument.
 * Goes on at the code that it names; when it names none, at `fail` with the
 * number in TEMP_B. Flags are saved by then, or come from a recipe.
 */
static uint8_t *make_light_of_argument(struct emitter *e, struct soft_cpu *cpu,
                                       light_call *function, const uint8_t *fail) {
    uint8_t *start = e->at;
    emit_store_gprs(e, TEMP_B);
    emit_mov(e, RSI, TEMP_A);
    emit_gs(e, OP_MOV_LOAD, 8, RDX, CPU_AT(jit.argument));
    emit_to_host_stack(e);
    emit_mov_imm(e, RDI, (uintptr_t)cpu);
    emit_call_c(e, (uintptr_t)function);
    emit_mov(e, TEMP_A, RAX);
    emit_gs(e, OP_MOV_LOAD, 8, RSP, CPU_AT(jit.shadow_rsp));
    emit_load_stack(e);
    emit_load_gprs(e);
    emit_rr(e, OP_TEST, 8, TEMP_A, TEMP_A);
    uint8_t *failed = emit_jcc(e, COND_E);
    emit8(e, 0x41); /* JMP TEMP_A */
    emit8(e, 0xff);
    emit8(e, 0xe0 | (TEMP_A & 7));
    emit_aim(failed, e->at);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_B, CPU_AT(jit.argument));
    emit_aim(emit_jmp(e), fail);
    return start;
}

/* The same with the number on the stack. */
static uint8_t *make_light(struct emitter *e, struct soft_cpu *cpu, light_call *function,
                           const uint8_t *fail) {
    uint8_t *start = e->at;
    emit_gs(e, 0x8f, 4, 0, CPU_AT(jit.argument)); /* POP */
    make_light_of_argument(e, cpu, function, fail);
    return start;
}

/* A miss of a table of the TLB: TEMP_A is the address again. */
static void make_misses(struct jit *jit, struct emitter *e, struct soft_cpu *cpu) {
    const uint8_t *miss = make_light(e, cpu, jit_fast_miss, jit->callout);
    for (unsigned index = 0; index < TLB_INDEXES; index++)
        for (unsigned kind = TLB_READ; kind <= TLB_WRITE; kind++) {
            size_t table = offsetof(struct soft_cpu, tlbs) +
                           (index * TLB_KINDS + kind) * sizeof cpu->tlbs[0][0];
            jit->miss[index][kind] = e->at;
            emit_gs_at(e, OP_XOR_RM, 8, TEMP_A, TEMP_B,
                       (int32_t)(table + offsetof(struct tlb_entry, tag)));
            emit_aim(emit_jmp(e), miss);
        }
    jit->constant_miss = make_light(e, cpu, jit_fast_constant_miss, jit->callout);
    jit->stack_miss = make_light(e, cpu, jit_fast_stack_miss, jit->callout);
}

/* ---- Checks that are called ---- */

/* As lower_look_up (memory.c) does; `number` says which it is. Nothing is pushed: at the shadow
 * stack's end that would lose where the check was called. */
static uint8_t *make_check(struct emitter *e, size_t table, unsigned size, uint32_t number,
                           const uint8_t *miss) {
    uint8_t *start = e->at;
    const int32_t tag = (int32_t)(table + offsetof(struct tlb_entry, tag));
    const int32_t host = (int32_t)(table + offsetof(struct tlb_entry, host));
    emit_rorx(e, TEMP_B, TEMP_A, PAGE_SHIFT - 4);
    emit_group1(e, 4, 4, TEMP_B, (TLB_ENTRIES - 1) << 4);
    emit_gs_at(e, OP_XOR_RM, 8, TEMP_A, TEMP_B, tag);
    emit_group1(e, 7, 8, TEMP_A, PAGE_SIZE - (int32_t)size);
    uint8_t *missed = emit_jcc(e, COND_A);
    emit_gs_at(e, OP_ADD_RM, 8, TEMP_A, TEMP_B, host);
    emit8(e, 0xc3);
    emit_aim(missed, e->at);
    emit_gs_at(e, OP_XOR_RM, 8, TEMP_A, TEMP_B, tag);
    emit_store_imm_gs(e, CPU_AT(jit.argument), (int32_t)number);
    emit_aim(emit_jmp(e), miss);
    return start;
}

static uint8_t *make_stack_check(struct emitter *e, unsigned side, unsigned span,
                                 const uint8_t *miss) {
    uint8_t *start = e->at;
    emit_gs(e, OP_SUB_RM, 8, TEMP_A, CPU_AT(jit.stack_host) + 8 * (int32_t)side);
    emit_group1(e, 7, 8, TEMP_A, PAGE_SIZE - (int32_t)span);
    emit_aim(emit_jcc(e, COND_A), miss);
    emit8(e, 0xc3);
    return start;
}

static void make_checks(struct jit *jit, struct emitter *e, struct soft_cpu *cpu) {
    const uint8_t *miss = make_light_of_argument(e, cpu, jit_fast_check, jit->callout);
    const uint8_t *stack_miss = make_light_of_argument(e, cpu, jit_fast_check_stack, jit->callout);
    jit->checked = code_executable(&jit->memory, e->at);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.checked));
    emit8(e, 0xc3);
    for (unsigned index = 0; index < TLB_INDEXES; index++)
        for (unsigned kind = TLB_READ; kind <= TLB_WRITE; kind++)
            for (unsigned n = 0; n < CHECK_SIZES; n++) {
                size_t table = offsetof(struct soft_cpu, tlbs) +
                               (index * TLB_KINDS + kind) * sizeof cpu->tlbs[0][0];
                jit->check[index][kind][n] =
                    make_check(e, table, 1u << n, jit_check_number(kind, 1u << n), miss);
            }
    for (unsigned side = 0; side < JIT_SIDES; side++)
        for (unsigned words = 1; words <= CHECK_STACK_WORDS; words++)
            jit->check_stack[side][words] = make_stack_check(e, side, 4 * words, stack_miss);
}

/* The present mapping's code for TEMP_A's rip: jumps there with RSP moved, or falls through with
 * TEMP_A as it was. The RET's site is in jit.argument. */
static void emit_return_elsewhere(struct emitter *e, unsigned side) {
    const int32_t jumps = CPU_AT(jit.jumps);
    const int32_t rip = jumps + (int32_t)offsetof(struct jit_jump, rip);
    const int32_t context = jumps + (int32_t)offsetof(struct jit_jump, context);
    emit_rorx(e, TEMP_B, TEMP_A, JIT_JUMP_FOLD);
    emit_rr(e, OP_XOR_RM, 8, TEMP_B, TEMP_A);
    emit_group1(e, 4, 4, TEMP_B, (JIT_JUMPS - 1) << 2);
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B, rip);
    uint8_t *other = emit_jcc(e, COND_NE);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.context[0]) + 16 * (int32_t)side);
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B, context);
    uint8_t *lower = emit_jcc(e, COND_E);
    emit_gs(e, OP_MOV_LOAD, 8, TEMP_A, CPU_AT(jit.context[0]) + 16 * (int32_t)side + 8);
    emit_gs_scaled8(e, OP_CMP_RM, 8, TEMP_A, TEMP_B, context);
    uint8_t *stale = emit_jcc(e, COND_NE);
    emit_aim(lower, e->at);
    emit_group1_gs(e, 7, 4, CPU_AT(request), 0);
    uint8_t *requested = emit_jcc(e, COND_NE);
    emit_gs(e, OP_ADD_RM, 8, STACK, CPU_AT(jit.word));
    emit_gs_scaled8(e, 0xff, 4, 4, TEMP_B, jumps + (int32_t)offsetof(struct jit_jump, code));
    emit_aim(stale, e->at);
    emit_aim(requested, e->at);
    emit_gs_scaled8(e, OP_MOV_LOAD, 8, TEMP_A, TEMP_B, rip);
    emit_aim(other, e->at);
}

static void make_finds(struct jit *jit, struct emitter *e, struct soft_cpu *cpu) {
    jit->find = make_light(e, cpu, jit_fast_find, jit->callout);
    jit->find_slot = e->at;
    emit_gs_scaled8(e, OP_MOV_LOAD, 8, TEMP_A, TEMP_B,
                    CPU_AT(jit.jumps) + (int32_t)offsetof(struct jit_jump, rip));
    emit_aim(emit_jmp(e), jit->find);
    for (unsigned side = 0; side < JIT_SIDES; side++) {
        /* A RET that found nothing on the shadow stack: what is below everything stays there. */
        jit->shadow_bottom[side] = code_executable(&jit->memory, e->at);
        emit_lea(e, 8, RSP, RSP, -1, 0, -8);
        jit->returned[side] = e->at;
        emit_gs(e, OP_MOV_STORE, 8, TEMP_B, CPU_AT(jit.argument));
        emit_return_elsewhere(e, side);
        emit_gs(e, 0xff, 4, 6, CPU_AT(jit.argument)); /* PUSH */
        emit_aim(emit_jmp(e), jit->find);
    }
    jit->exit = make_light_of_argument(e, cpu, jit_fast_exit, jit->leave_saved);
    jit->unguarded = make_light(e, cpu, jit_fast_unguarded, jit->leave_saved);
    jit->gone = make_light_of_argument(e, cpu, jit_fast_gone, jit->leave_saved);
    const uint8_t *polled = make_light_of_argument(e, cpu, jit_fast_poll, jit->leave_saved);
    jit->poll = e->at;
    emit_group1_gs(e, 7, 4, CPU_AT(request), 0);
    emit_aim(emit_jcc(e, COND_NE), polled);
    emit8(e, 0xc3);
    jit->exit_host = e->at;
    emit_save_flags(e);
    emit_aim(emit_jmp(e), jit->exit);
    jit->gone_host = e->at;
    emit_save_flags(e);
    emit_aim(emit_jmp(e), jit->gone);
}

void stubs_make(struct jit *jit, struct soft_cpu *cpu) {
    struct emitter e = {.at = jit->memory.writable, .end = jit->memory.writable + jit->memory.size};
    jit->enter = make_enter(jit, &e);
    make_leave(jit, &e);
    make_callout(jit, &e, cpu);
    make_misses(jit, &e, cpu);
    make_checks(jit, &e, cpu);
    make_finds(jit, &e, cpu);
    jit->light = make_light(&e, cpu, jit_fast_light, jit->callout);
    jit->x87 = make_light(&e, cpu, jit_fast_x87, jit->callout);
    jit->string = make_light(&e, cpu, jit_fast_string, jit->callout);
    emit_align(&e, JIT_NOTES_ALIGN);
    jit->stubs_end = jit->memory.used = (size_t)(e.at - jit->memory.writable);
}
