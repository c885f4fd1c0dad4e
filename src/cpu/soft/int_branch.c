/*
 * Near control transfers: Jcc, JMP, CALL, RET, LOOPcc, JrCXZ. Targets wrap to the operand size (AMD
 * honours 66h on near branches in 64-bit mode); computed ones are checked before anything is
 * written. Far transfers are in event.c's company.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

static inline bool target_fits(const struct soft_cpu *cpu, uint64_t target) {
    if (cpu->mode == INSN_MODE_64)
        return (uint64_t)((int64_t)(target << 16) >> 16) == target;
    return target <= cpu->segment[SEG_CS].limit;
}

/* #GP(0) for a target outside the code segment or not canonical. */
static inline void check_target(struct soft_cpu *cpu, uint64_t target) {
    if (unlikely(!target_fits(cpu, target)))
        raise_error(cpu, EXC_GP, 0);
}

static inline uint64_t next_rip(const struct soft_cpu *cpu, const struct insn *insn) {
    return cpu->rip + insn->offset + insn->length;
}

/*
 * The next instruction in sequence. It does not wrap at 64 KiB in 16-bit code: running off the
 * segment's end is #GP.
 */
static inline uint64_t sequence_rip(const struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t rip = next_rip(cpu, insn);
    return cpu->mode == INSN_MODE_64 ? rip : (uint32_t)rip;
}

/* A relative target by operand size; the wide form cannot leave the canonical range unnoticed, the
 * fetch there faults. */
#define RELATIVE(bits) ((uint##bits##_t)(next_rip(cpu, insn) + insn->imm))

#define JCC_FORMS(name, cond, code, read)                                                          \
    void j##name##_16(struct soft_cpu *cpu, const struct insn *insn) {                             \
        if (COND_##cond(cpu))                                                                      \
            BLOCK_CHAIN(1, RELATIVE(16));                                                          \
        BLOCK_CHAIN(0, sequence_rip(cpu, insn));                                                   \
    }                                                                                              \
    void j##name##_32(struct soft_cpu *cpu, const struct insn *insn) {                             \
        if (COND_##cond(cpu))                                                                      \
            BLOCK_CHAIN(1, RELATIVE(32));                                                          \
        BLOCK_CHAIN(0, sequence_rip(cpu, insn));                                                   \
    }                                                                                              \
    void j##name##_64(struct soft_cpu *cpu, const struct insn *insn) {                             \
        if (COND_##cond(cpu))                                                                      \
            BLOCK_CHAIN(1, RELATIVE(64));                                                          \
        BLOCK_CHAIN(0, next_rip(cpu, insn));                                                       \
    }
FOR_EACH_CONDITION(JCC_FORMS)

#define JMP_FORMS(bits)                                                                            \
    void jmp_j_##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        BLOCK_CHAIN(1, RELATIVE(bits));                                                            \
    }                                                                                              \
    void jmp_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        uint##bits##_t target = get##bits(cpu, insn->rm);                                          \
        cpu->insn = insn;                                                                          \
        check_target(cpu, target);                                                                 \
        BLOCK_JUMP(target);                                                                        \
    }                                                                                              \
    void jmp_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        uint##bits##_t target = mem_load##bits(cpu, insn);                                         \
        check_target(cpu, target);                                                                 \
        BLOCK_JUMP(target);                                                                        \
    }
FOR_EACH_WIDE(JMP_FORMS)

/* Operand size 64 exists in 64-bit mode only, where the stack is flat: no need of push(). */
static inline void push64(struct soft_cpu *cpu, uint64_t value) {
    store64(cpu, SEG_SS, cpu->gpr[RSP] - 8, value);
    cpu->gpr[RSP] -= 8;
}
#define push16(cpu, value) push(cpu, value, 2)
#define push32(cpu, value) push(cpu, value, 4)

/* The push is tried before the target is refused, but nothing is written then. */
static inline void check_called(struct soft_cpu *cpu, uint64_t target, unsigned size) {
    if (likely(target_fits(cpu, target)))
        return;
    rmw_begin(cpu, SEG_SS, (cpu->gpr[RSP] - size) & cpu->stack_mask, size);
    rmw_end(cpu);
    raise_error(cpu, EXC_GP, 0);
}

#define CALL_FORMS(bits)                                                                           \
    void call_j_##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        cpu->insn = insn;                                                                          \
        push##bits(cpu, (uint##bits##_t)next_rip(cpu, insn));                                      \
        BLOCK_CHAIN(1, RELATIVE(bits));                                                            \
    }                                                                                              \
    void call_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        uint##bits##_t target = get##bits(cpu, insn->rm);                                          \
        cpu->insn = insn;                                                                          \
        check_called(cpu, target, bits / 8);                                                       \
        push##bits(cpu, (uint##bits##_t)next_rip(cpu, insn));                                      \
        BLOCK_JUMP(target);                                                                        \
    }                                                                                              \
    void call_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        uint##bits##_t target = mem_load##bits(cpu, insn);                                         \
        check_called(cpu, target, bits / 8);                                                       \
        push##bits(cpu, (uint##bits##_t)next_rip(cpu, insn));                                      \
        BLOCK_JUMP(target);                                                                        \
    }
FOR_EACH_WIDE(CALL_FORMS)

/* RET and RET imm16 (imm is 0 for the first). */
#define RET_NARROW(bits)                                                                           \
    void ret_##bits(struct soft_cpu *cpu, const struct insn *insn) {                               \
        uint##bits##_t target;                                                                     \
        cpu->insn = insn;                                                                          \
        target = (uint##bits##_t)stack_peek(cpu, 0, bits / 8);                                     \
        check_target(cpu, target);                                                                 \
        stack_move(cpu, (int64_t)(bits / 8 + insn->imm));                                          \
        BLOCK_JUMP(target);                                                                        \
    }
RET_NARROW(16)
RET_NARROW(32)

void ret_64(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t target;
    cpu->insn = insn;
    target = load64(cpu, SEG_SS, cpu->gpr[RSP]);
    check_target(cpu, target);
    cpu->gpr[RSP] += 8 + insn->imm;
    BLOCK_JUMP(target);
}

/* ---- Loops: the counter by address size, the target by operand size ---- */

static inline uint64_t counter(const struct soft_cpu *cpu, const struct insn *insn) {
    return cpu->gpr[RCX] & (UINT64_MAX >> (64 - 8 * insn->address_size));
}

static inline uint64_t relative_sized(const struct soft_cpu *cpu, const struct insn *insn) {
    return (next_rip(cpu, insn) + insn->imm) & (UINT64_MAX >> (64 - 8 * insn->size));
}

#define LOOP_FORM(name, condition)                                                                 \
    void name(struct soft_cpu *cpu, const struct insn *insn) {                                     \
        add_address(cpu, RCX, UINT64_MAX, insn->address_size);                                     \
        if (counter(cpu, insn) != 0 && (condition))                                                \
            BLOCK_CHAIN(1, relative_sized(cpu, insn));                                             \
        BLOCK_CHAIN(0, sequence_rip(cpu, insn));                                                   \
    }
LOOP_FORM(loop, true)
LOOP_FORM(loope, flag_zf(cpu))
LOOP_FORM(loopne, !flag_zf(cpu))

void jrcxz(struct soft_cpu *cpu, const struct insn *insn) {
    if (counter(cpu, insn) == 0)
        BLOCK_CHAIN(1, relative_sized(cpu, insn));
    BLOCK_CHAIN(0, sequence_rip(cpu, insn));
}
