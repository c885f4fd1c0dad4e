/* The guest's flags between C and translated code: cpu->flags and jit_state.saved_flags. */
#ifndef LODGE_CPU_SOFT_JIT_SAVED_FLAGS_H
#define LODGE_CPU_SOFT_JIT_SAVED_FLAGS_H

#include "cpu/soft/flags.h"

static inline uint32_t jit_pack_flags(const struct soft_cpu *cpu) {
    uint64_t f = flags_get(cpu);
    return (uint32_t)((f & (FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF)) << 8 |
                      !!(f & FLAG_OF));
}

static inline void jit_unpack_flags(struct soft_cpu *cpu) {
    uint32_t saved = cpu->jit.saved_flags;
    flags_set_status(cpu, (saved >> 8 & 0xff) | (saved & 1 ? FLAG_OF : 0));
}

#endif
