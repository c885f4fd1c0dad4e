/*
 * Moves: MOV, MOVZX, MOVSX(D), LEA, XCHG, CMOVcc, SETcc, BSWAP, MOVBE, CBW and CWD families, XLAT,
 * LAHF, SAHF.
 */
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

#define MOV_FORMS(bits)                                                                            \
    void mov_e_g_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        set##bits(cpu, insn->rm, get##bits(cpu, insn->reg));                                       \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void mov_e_g_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        mem_store##bits(cpu, insn, get##bits(cpu, insn->reg));                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void mov_g_e_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        set##bits(cpu, insn->reg, get##bits(cpu, insn->rm));                                       \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void mov_g_e_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        set##bits(cpu, insn->reg, mem_load##bits(cpu, insn));                                      \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void mov_e_i_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        set##bits(cpu, insn->rm, (uint##bits##_t)insn->imm);                                       \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void mov_e_i_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                          \
        mem_store##bits(cpu, insn, (uint##bits##_t)insn->imm);                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void xchg_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint##bits##_t a = get##bits(cpu, insn->rm);                                               \
        set##bits(cpu, insn->rm, get##bits(cpu, insn->reg));                                       \
        set##bits(cpu, insn->reg, a);                                                              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    /* Atomic with or without LOCK. */                                                             \
    void xchg_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                             \
        uint##bits##_t *to = mem_rmw##bits(cpu, insn);                                             \
        uint##bits##_t old = __atomic_exchange_n(to, get##bits(cpu, insn->reg), __ATOMIC_SEQ_CST); \
        rmw_end(cpu);                                                                              \
        set##bits(cpu, insn->reg, old);                                                            \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_SIZE(MOV_FORMS)

/* MOVZX, MOVSX, MOVSXD: to `bits` from `narrow` bits. */
#define EXTEND_FORMS(name, type, narrow, bits)                                                     \
    void name##narrow##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                   \
        set##bits(cpu, insn->reg, (uint##bits##_t)(type##narrow##_t)get##narrow(cpu, insn->rm));   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void name##narrow##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                   \
        set##bits(cpu, insn->reg, (uint##bits##_t)(type##narrow##_t)mem_load##narrow(cpu, insn));  \
        INSN_NEXT;                                                                                 \
    }
#define EXTEND_SIZES(bits)                                                                         \
    EXTEND_FORMS(movzx, uint, 8, bits)                                                             \
    EXTEND_FORMS(movzx, uint, 16, bits)                                                            \
    EXTEND_FORMS(movsx, int, 8, bits)                                                              \
    EXTEND_FORMS(movsx, int, 16, bits)                                                             \
    EXTEND_FORMS(movsx, int, 32, bits)
FOR_EACH_WIDE(EXTEND_SIZES)

#define LEA_FORM(bits)                                                                             \
    void lea_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                              \
        set##bits(cpu, insn->reg, (uint##bits##_t)insn_offset(cpu, insn));                         \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(LEA_FORM)

/* The source is read in any case, and a 32-bit destination's upper half is cleared in any case. */
#define CMOV_FORMS(name, cond, bits)                                                               \
    void cmov##name##_r##bits(struct soft_cpu *cpu, const struct insn *insn) {                     \
        bool taken = COND_##cond(cpu);                                                             \
        set##bits(cpu, insn->reg, taken ? get##bits(cpu, insn->rm) : get##bits(cpu, insn->reg));   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void cmov##name##_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                     \
        uint##bits##_t value = mem_load##bits(cpu, insn);                                          \
        bool taken = COND_##cond(cpu);                                                             \
        set##bits(cpu, insn->reg, taken ? value : get##bits(cpu, insn->reg));                      \
        INSN_NEXT;                                                                                 \
    }
#define CONDITION_FORMS(name, cond, code, read)                                                    \
    CMOV_FORMS(name, cond, 16)                                                                     \
    CMOV_FORMS(name, cond, 32)                                                                     \
    CMOV_FORMS(name, cond, 64)                                                                     \
    void set##name##_r(struct soft_cpu *cpu, const struct insn *insn) {                            \
        set8(cpu, insn->rm, COND_##cond(cpu));                                                     \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void set##name##_m(struct soft_cpu *cpu, const struct insn *insn) {                            \
        mem_store8(cpu, insn, COND_##cond(cpu));                                                   \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_CONDITION(CONDITION_FORMS)

#define SWAP_FORMS(bits)                                                                           \
    void movbe_g_m_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                        \
        set##bits(cpu, insn->reg, __builtin_bswap##bits(mem_load##bits(cpu, insn)));               \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    void movbe_m_g_m##bits(struct soft_cpu *cpu, const struct insn *insn) {                        \
        mem_store##bits(cpu, insn, __builtin_bswap##bits(get##bits(cpu, insn->reg)));              \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(SWAP_FORMS)

/* The manuals leave BSWAP of 16 bits undefined; processors answer zero. */
void bswap_16(struct soft_cpu *cpu, const struct insn *insn) {
    set16(cpu, insn->rm, 0);
    INSN_NEXT;
}

void bswap_32(struct soft_cpu *cpu, const struct insn *insn) {
    set32(cpu, insn->rm, __builtin_bswap32(get32(cpu, insn->rm)));
    INSN_NEXT;
}

void bswap_64(struct soft_cpu *cpu, const struct insn *insn) {
    set64(cpu, insn->rm, __builtin_bswap64(get64(cpu, insn->rm)));
    INSN_NEXT;
}

/* CBW, CWDE, CDQE. */
void cbw_16(struct soft_cpu *cpu, const struct insn *insn) {
    set16(cpu, RAX, (uint16_t)(int8_t)get8(cpu, RAX));
    INSN_NEXT;
}

void cbw_32(struct soft_cpu *cpu, const struct insn *insn) {
    set32(cpu, RAX, (uint32_t)(int16_t)get16(cpu, RAX));
    INSN_NEXT;
}

void cbw_64(struct soft_cpu *cpu, const struct insn *insn) {
    set64(cpu, RAX, (uint64_t)(int32_t)get32(cpu, RAX));
    INSN_NEXT;
}

/* CWD, CDQ, CQO. */
#define CWD_FORM(bits)                                                                             \
    void cwd_##bits(struct soft_cpu *cpu, const struct insn *insn) {                               \
        set##bits(cpu, RDX, (int##bits##_t)get##bits(cpu, RAX) < 0 ? UINT##bits##_MAX : 0);        \
        INSN_NEXT;                                                                                 \
    }
FOR_EACH_WIDE(CWD_FORM)

void xlat(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t offset = cpu->gpr[RBX] + get8(cpu, RAX);
    cpu->insn = insn;
    if (insn->address_size != 8)
        offset = insn->address_size == 4 ? (uint32_t)offset : (uint16_t)offset;
    set8(cpu, RAX, load8(cpu, insn->seg, offset));
    INSN_NEXT;
}

/* Not in AMD's manual, but in its processors: AL takes CF in every bit. */
void salc(struct soft_cpu *cpu, const struct insn *insn) {
    set8(cpu, RAX, flag_cf(cpu) ? 0xff : 0);
    INSN_NEXT;
}

enum { AH = 20 };

void lahf(struct soft_cpu *cpu, const struct insn *insn) {
    set8(cpu, AH, (uint8_t)flags_get(cpu));
    INSN_NEXT;
}

void sahf(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t kept = flag_of(cpu) ? FLAG_OF : 0;
    flags_set_status(cpu, kept | get8(cpu, AH));
    INSN_NEXT;
}
