/*
 * AVX2 gathers. Elements are loaded in order; each one done clears its mask
 * element, so that after a fault the instruction goes on where it stopped.
 */
#include "cpu/soft/mmu.h"
#include "cpu/soft/vec.h"

static uint64_t gather_offset(const struct soft_cpu *cpu, const struct insn *insn, int64_t index) {
    return wrap_offset(insn, cpu->gpr[insn->base] + ((uint64_t)index << insn->scale) +
                                 (uint64_t)insn->disp);
}

/* Gathers want the offset in canonical form as well, before FS or GS is added. */
static bool offset_is_canonical(const struct soft_cpu *cpu, const struct insn *insn,
                                uint64_t offset) {
    return (insn->seg != SEG_FS && insn->seg != SEG_GS) || cpu->mode != INSN_MODE_64 ||
           (uint64_t)((int64_t)(offset << 16) >> 16) == offset;
}

static bool would_fault(struct soft_cpu *cpu, const struct insn *insn, uint64_t offset,
                        unsigned size) {
    uint64_t linear, value;
    struct fault fault;
    return !offset_is_canonical(cpu, insn, offset) ||
           !segment_check(cpu, insn->seg, offset, size, false, &linear, &fault) ||
           !linear_read(cpu, linear, &value, size, access_by_cpl(cpu), &fault);
}

/*
 * `count` elements of `size` bytes; indexes of index_size bytes. False: the
 * instruction is to end with RIP on itself. That is how a single-step trap
 * comes between its elements, which goes before the next element's fault.
 */
static inline bool gather(struct soft_cpu *cpu, const struct insn *insn, unsigned count,
                          unsigned size, unsigned index_size) {
    uint8_t *to = cpu->vec[insn->reg].b, *mask = cpu->vec[insn->vvvv].b;
    const union x86_vector *indexes = &cpu->vec[insn->spare];
    bool stepping = false;
    if (insn->reg == insn->vvvv || insn->reg == insn->spare || insn->vvvv == insn->spare)
        raise_exception(cpu, EXC_UD);
    for (unsigned i = 0; i < count; i++) {
        int64_t index = index_size == 4 ? (int32_t)indexes->d[i] : (int64_t)indexes->q[i];
        uint64_t offset = gather_offset(cpu, insn, index);
        if (mask[i * size + size - 1] & 0x80) {
            if (unlikely(stepping) && would_fault(cpu, insn, offset, size))
                return false;
            if (!offset_is_canonical(cpu, insn, offset))
                raise_error(cpu, EXC_GP, 0);
            read_element(cpu, insn, offset, to + i * size, size);
            stepping = cpu->rflags & FLAG_TF;
        }
        memset(mask + i * size, 0, size);
    }
    memset(to + count * size, 0, 32 - count * size);
    memset(mask, 0, 32);
    return true;
}

#define GATHER_HANDLER(name, count, size, index_size)                                              \
    HANDLER(name) {                                                                                \
        AVX_BEGIN;                                                                                 \
        if (!gather(cpu, insn, count, size, index_size))                                           \
            INSN_JUMP(insn_rip(cpu, insn));                                                        \
        INSN_NEXT;                                                                                 \
    }
GATHER_HANDLER(v128_gather_dd, 4, 4, 4)
GATHER_HANDLER(v256_gather_dd, 8, 4, 4)
GATHER_HANDLER(v128_gather_dq, 2, 8, 4)
GATHER_HANDLER(v256_gather_dq, 4, 8, 4)
GATHER_HANDLER(v128_gather_qd, 2, 4, 8)
GATHER_HANDLER(v256_gather_qd, 4, 4, 8)
GATHER_HANDLER(v128_gather_qq, 2, 8, 8)
GATHER_HANDLER(v256_gather_qq, 4, 8, 8)
