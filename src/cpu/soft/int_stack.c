/*
 * The stack: PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE. Operand size 64 exists in 64-bit
 * mode only, where the stack is flat; the narrow forms go through push() and its kin.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

static inline void push64(struct soft_cpu *cpu, uint64_t value) {
    store64(cpu, SEG_SS, cpu->gpr[RSP] - 8, value);
    cpu->gpr[RSP] -= 8;
}

static inline uint64_t pop64(struct soft_cpu *cpu) {
    uint64_t value = load64(cpu, SEG_SS, cpu->gpr[RSP]);
    cpu->gpr[RSP] += 8;
    return value;
}

#define NARROW_STACK(bits)                                                                         \
    static inline void push##bits(struct soft_cpu *cpu, uint##bits##_t value) {                    \
        push(cpu, value, bits / 8);                                                                \
    }                                                                                              \
    static inline uint##bits##_t pop##bits(struct soft_cpu *cpu) {                                 \
        uint##bits##_t value = (uint##bits##_t)stack_peek(cpu, 0, bits / 8);                       \
        stack_move(cpu, bits / 8);                                                                 \
        return value;                                                                              \
    }
NARROW_STACK(16)
NARROW_STACK(32)

#define PUSH_FORMS(bits)                                                                           \
    void push_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        cpu->insn = insn;                                                                          \
        push##bits(cpu, get##bits(cpu, insn->rm));                                                 \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void push_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                           \
        push##bits(cpu, mem_load##bits(cpu, insn));                                                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void push_i_##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        cpu->insn = insn;                                                                          \
        push##bits(cpu, (uint##bits##_t)insn->imm);                                                \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void pop_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        cpu->insn = insn;                                                                          \
        set##bits(cpu, insn->rm, pop##bits(cpu));                                                  \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(PUSH_FORMS)

/* POP to memory: an address made from rSP uses its value after the pop, but a fault undoes the pop.
 */
#define POP_MEMORY(bits)                                                                           \
    void pop_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                            \
        uint64_t old = cpu->gpr[RSP], offset;                                                      \
        uint##bits##_t value;                                                                      \
        cpu->insn = insn;                                                                          \
        value = pop##bits(cpu);                                                                    \
        offset = insn_offset(cpu, insn);                                                           \
        {                                                                                          \
            uint64_t popped = cpu->gpr[RSP];                                                       \
            cpu->gpr[RSP] = old;                                                                   \
            store##bits(cpu, insn->seg, offset, value);                                            \
            cpu->gpr[RSP] = popped;                                                                \
        }                                                                                          \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(POP_MEMORY)

/* ---- PUSHA, POPA ---- */

/* A fault in the middle leaves what came before it done, except for rSP, as AMD processors do. */
#define PUSH_ALL(bits)                                                                             \
    void pusha_##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint64_t at = cpu->gpr[RSP];                                                               \
        cpu->insn = insn;                                                                          \
        for (unsigned i = 0; i < 8; i++) {                                                         \
            at -= bits / 8;                                                                        \
            store##bits(cpu, SEG_SS, at & cpu->stack_mask, get##bits(cpu, i));                     \
        }                                                                                          \
        stack_move(cpu, -8 * (bits / 8));                                                          \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void popa_##bits(struct soft_cpu *cpu, const struct insn *insn) {                              \
        cpu->insn = insn;                                                                          \
        for (unsigned i = 0; i < 8; i++) {                                                         \
            uint##bits##_t value = (uint##bits##_t)stack_peek(cpu, i * (bits / 8), bits / 8);      \
            if (7 - i != RSP)                                                                      \
                set##bits(cpu, 7 - i, value);                                                      \
        }                                                                                          \
        stack_move(cpu, 8 * (bits / 8));                                                           \
        INSN_NEXT;                                                                                 \
    }

PUSH_ALL(16)
PUSH_ALL(32)

/* ---- PUSHF, POPF ---- */

static bool virtual_8086(const struct soft_cpu *cpu) {
    return cpu->rflags & FLAG_VM;
}

static unsigned iopl(const struct soft_cpu *cpu) {
    return cpu->rflags >> 12 & 3;
}

/* Virtual-8086 mode with an IOPL below 3 leaves both to the monitor (no VME here). */
static void check_flags_access(struct soft_cpu *cpu) {
    if (virtual_8086(cpu) && iopl(cpu) < 3)
        raise_error(cpu, EXC_GP, 0);
}

#define PUSH_FLAGS(bits)                                                                           \
    void pushf_##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        cpu->insn = insn;                                                                          \
        check_flags_access(cpu);                                                                   \
        push##bits(cpu, (uint##bits##_t)(flags_get(cpu) & ~(uint64_t)(FLAG_RF | FLAG_VM)));        \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(PUSH_FLAGS)

static void pop_flags(struct soft_cpu *cpu, uint64_t image, unsigned size) {
    uint64_t may = FLAGS_STATUS | FLAG_TF | FLAG_DF | FLAG_NT, old = flags_get(cpu);
    if (size != 2)
        may |= FLAG_AC | FLAG_ID;
    if (cpu->cpl == 0)
        may |= FLAG_IOPL;
    if (cpu->cpl <= iopl(cpu))
        may |= FLAG_IF;
    flags_set(cpu, (old & ~may & ~(uint64_t)FLAG_RF) | (image & may));
    if ((old ^ image) & may & FLAG_AC)
        mmu_mode_changed(cpu);
}

/* Ends the block only when a flag changes that the run loop or the MMU looks at. */
#define POP_FLAGS(bits)                                                                            \
    void popf_##bits(struct soft_cpu *cpu, const struct insn *insn) {                              \
        uint64_t old = cpu->rflags;                                                                \
        cpu->insn = insn;                                                                          \
        check_flags_access(cpu);                                                                   \
        pop_flags(cpu, pop##bits(cpu), bits / 8);                                                  \
        if ((old ^ cpu->rflags) & (FLAG_TF | FLAG_IF | FLAG_AC))                                   \
            INSN_END_BLOCK;                                                                        \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(POP_FLAGS)

/* ---- ENTER, LEAVE ---- */

/* Stores below *at, as PUSH does, without moving rSP yet. */
static void enter_push(struct soft_cpu *cpu, uint64_t *at, uint64_t value, unsigned size) {
    *at -= size;
    store_sized(cpu, SEG_SS, *at & cpu->stack_mask, value, size);
}

/* imm: frame bytes, nesting level above. rSP and rBP change after all that may raise; words pushed
 * before a fault stay written. The new top of the stack is tried as if it were written to. */
void enter(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = insn->size, level = insn->imm >> 16 & 31, bytes = insn->imm & 0xffff;
    uint64_t at = cpu->gpr[RSP], outer = cpu->gpr[RBP], frame;
    cpu->insn = insn;
    enter_push(cpu, &at, outer, size);
    frame = at;
    for (unsigned i = 1; i < level; i++) {
        outer -= size;
        enter_push(cpu, &at, load_sized(cpu, SEG_SS, outer & cpu->stack_mask, size), size);
    }
    if (level != 0)
        enter_push(cpu, &at, frame, size);
    rmw_begin(cpu, SEG_SS, (at - bytes) & cpu->stack_mask, size);
    rmw_end(cpu);
    set_sized(cpu, RBP, frame, size);
    stack_move(cpu, (int64_t)(at - bytes - cpu->gpr[RSP]));
    INSN_NEXT;
}

#define LEAVE_NARROW(bits)                                                                         \
    void leave_##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint64_t mask = cpu->stack_mask, frame = cpu->gpr[RBP] & mask;                             \
        uint##bits##_t value;                                                                      \
        cpu->insn = insn;                                                                          \
        value = load##bits(cpu, SEG_SS, frame);                                                    \
        cpu->gpr[RSP] = (cpu->gpr[RSP] & ~mask) | ((frame + bits / 8) & mask);                     \
        set##bits(cpu, RBP, value);                                                                \
        INSN_NEXT;                                                                                 \
    }
LEAVE_NARROW(16)
LEAVE_NARROW(32)

void leave_64(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t frame = cpu->gpr[RBP];
    cpu->insn = insn;
    cpu->gpr[RBP] = load64(cpu, SEG_SS, frame);
    cpu->gpr[RSP] = frame + 8;
    INSN_NEXT;
}
