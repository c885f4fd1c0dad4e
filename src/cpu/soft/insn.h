/*
 * Instructions: one table row for each encoding, and the compact form that
 * decoding makes of one instruction. Interpreter and translator share both.
 *
 * Tables (table_*.c) are lists of rows; decode.c indexes them once at start.
 * Operand names follow the Intel SDM's opcode map notation (vol. 2, A.2).
 */
#ifndef LODGE_CPU_SOFT_INSN_H
#define LODGE_CPU_SOFT_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct soft_cpu;
struct insn;

/*
 * Executes one instruction. A handler either completes (all results written)
 * and tail-calls the next one with INSN_NEXT, ends the block with
 * INSN_END_BLOCK, or raises an exception (soft.h) with nothing written.
 */
typedef void insn_exec(struct soft_cpu *cpu, const struct insn *insn);

enum insn_map { MAP_1B, MAP_0F, MAP_0F38, MAP_0F3A };
enum insn_encoding { ENC_LEGACY, ENC_VEX };

/* Mandatory prefix. PFX_ANY: 66, F2, F3 keep their ordinary meaning (operand size, REP);
 * PFX_NO_REP: 66 does, F2 and F3 make another encoding of it. */
enum insn_prefix { PFX_ANY, PFX_NONE, PFX_66, PFX_F3, PFX_F2, PFX_NO_REP };

/* What ModRM.mod must be. */
enum insn_form { FORM_ANY, FORM_REG, FORM_MEM, FORM_NO_MODRM };

enum insn_operand {
    OPERAND_NONE,
    /* ModRM.rm: general register or memory; b byte, w word, d dword, q qword, v by operand size,
     * y dword or qword (by REX.W / VEX.W), p far pointer. */
    OPERAND_Eb,
    OPERAND_Ew,
    OPERAND_Ed,
    OPERAND_Eq,
    OPERAND_Ev,
    OPERAND_Ey,
    OPERAND_M, /* memory of a size the handler knows (or an address: LEA) */
    OPERAND_Mb,
    OPERAND_Mw,
    OPERAND_Md,
    OPERAND_Mq,
    OPERAND_Mdq,
    OPERAND_Mqq,
    OPERAND_Mp,
    OPERAND_Mv,
    OPERAND_Rv,
    OPERAND_Ry, /* ModRM.rm, register only */
    /* ModRM.reg: general register. */
    OPERAND_Gb,
    OPERAND_Gw,
    OPERAND_Gd,
    OPERAND_Gv,
    OPERAND_Gy,
    OPERAND_By, /* VEX.vvvv: general register */
    OPERAND_Sw,
    OPERAND_Cd,
    OPERAND_Dd, /* ModRM.reg: segment, control, debug register */
    /* Immediates: b byte, bs byte sign-extended to operand size, w word, z word or sign-extended
     * dword, v up to 64 bits, 1 the constant. */
    OPERAND_Ib,
    OPERAND_Ibs,
    OPERAND_Iw,
    OPERAND_Iz,
    OPERAND_Iv,
    OPERAND_1,
    OPERAND_Jb,
    OPERAND_Jz, /* relative branch targets (imm holds the displacement) */
    OPERAND_Ap, /* far pointer immediate: imm = selector << 32 | offset */
    OPERAND_Ob,
    OPERAND_Ov, /* absolute memory offset (in disp) */
    OPERAND_Zb,
    OPERAND_Zv, /* register in the opcode's low three bits (in rm) */
    OPERAND_AL,
    OPERAND_CL,
    OPERAND_DX,
    OPERAND_rAX,
    OPERAND_Xb,
    OPERAND_Xv,
    OPERAND_Yb,
    OPERAND_Yv, /* string source DS:rSI, destination ES:rDI */
    OPERAND_Fv, /* RFLAGS */
    /* Vector: V reg, W rm, H vvvv, U rm register only, L imm8[7:4], N/P/Q MMX.
     * x: 128 or 256 bits by VEX.L; ss/sd scalar; d/q low 32/64 bits; dq 128; qq 256. */
    OPERAND_Vx,
    OPERAND_Vdq,
    OPERAND_Vqq,
    OPERAND_Vss,
    OPERAND_Vsd,
    OPERAND_Vd,
    OPERAND_Vq,
    OPERAND_Wx,
    OPERAND_Wdq,
    OPERAND_Wqq,
    OPERAND_Wss,
    OPERAND_Wsd,
    OPERAND_Wd,
    OPERAND_Wq,
    OPERAND_Ww,
    OPERAND_Wb,
    OPERAND_Wh, /* Wh: half the width of x */
    OPERAND_Hx,
    OPERAND_Hdq,
    OPERAND_Hqq,
    OPERAND_Hss,
    OPERAND_Hsd,
    OPERAND_Ux,
    OPERAND_Udq,
    OPERAND_Uq,
    OPERAND_Lx,
    OPERAND_Pq,
    OPERAND_Qq,
    OPERAND_Qd,
    OPERAND_Nq,
    OPERAND_ST0,
    OPERAND_STi,  /* x87 */
    OPERAND_VSIB, /* memory by a vector of indexes: its register in insn.spare, insn.index unused */
};

/* Properties. */
enum {
    INSN_LOCK = 1 << 0,           /* LOCK is allowed with a memory destination */
    INSN_REP = 1 << 1,            /* REP/REPE/REPNE repeat it */
    INSN_BRANCH = 1 << 2,         /* ends a block: control may go elsewhere */
    INSN_END = 1 << 3,            /* ends a block: changes mode, rights, code, interrupts … */
    INSN_CPL0 = 1 << 4,           /* #GP(0) unless CPL is 0 */
    INSN_NO64 = 1 << 5,           /* #UD in 64-bit mode */
    INSN_ONLY64 = 1 << 6,         /* #UD outside 64-bit mode */
    INSN_DEFAULT64 = 1 << 7,      /* operand size is 64 in 64-bit mode (66h: 16) */
    INSN_FORCE64 = 1 << 8,        /* operand size is 64 in 64-bit mode, 66h ignored */
    INSN_X87 = 1 << 9,            /* #NM on CR0.EM|TS; pending x87 errors (#MF) */
    INSN_MMX = 1 << 10,           /* #UD on CR0.EM, #NM on TS; switches x87 tags */
    INSN_SSE = 1 << 11,           /* #UD on CR0.EM or no CR4.OSFXSR; #NM on TS */
    INSN_AVX = 1 << 12,           /* #UD without CR4.OSXSAVE and XCR0[2:1]=11b; #NM on TS */
    INSN_ALIGNED = 1 << 13,       /* legacy SSE: 16-byte memory operands must be aligned (#GP) */
    INSN_FP = 1 << 14,            /* may raise SIMD floating-point exceptions (#XM, or #UD without
                                     OSXMMEXCPT) */
    INSN_PROTECTED = 1 << 15,     /* #UD in real and virtual-8086 mode */
    INSN_UNDEFINED_REG = 1 << 16, /* leaves a destination undefined in some cases (BSF of 0) */
    INSN_NO_TEST = 1 << 17,    /* result depends on more than registers and memory (RDTSC, CPUID) */
    INSN_READS_DEST = 1 << 18, /* the first operand is also a source */
    INSN_WRITES_NONE = 1 << 19, /* the first operand is only read (CMP, TEST, BT) */
    INSN_BYTE_REGS = 1 << 20,   /* byte operands: AH..BH without REX */
};

enum { VL_ANY, VL_128, VL_256 }; /* VEX.L */
enum { VW_ANY, VW_0, VW_1 };     /* REX.W or VEX.W */

/* CPUID features a row needs: #UD when the vCPU does not offer it. FEAT_BASE: always there. */
enum insn_feature {
    FEAT_BASE,
    FEAT_X87,
    FEAT_MMX,
    FEAT_SSE,
    FEAT_SSE2,
    FEAT_SSE3,
    FEAT_SSSE3,
    FEAT_SSE41,
    FEAT_SSE42,
    FEAT_SSE4A,
    FEAT_POPCNT,
    FEAT_LZCNT,
    FEAT_AES,
    FEAT_PCLMUL,
    FEAT_SHA,
    FEAT_AVX,
    FEAT_AVX2,
    FEAT_F16C,
    FEAT_FMA,
    FEAT_BMI1,
    FEAT_BMI2,
    FEAT_ADX,
    FEAT_MOVBE,
    FEAT_RDRAND,
    FEAT_RDSEED,
    FEAT_XSAVE,
    FEAT_XSAVEOPT,
    FEAT_XSAVEC,
    FEAT_XSAVES,
    FEAT_FSGSBASE,
    FEAT_INVPCID,
    FEAT_RDTSCP,
    FEAT_RDPID,
    FEAT_CX16,
    FEAT_SMAP,
    FEAT_CLFLUSHOPT,
    FEAT_CLWB,
    FEAT_VAES,
    FEAT_VPCLMUL,
    FEAT_GFNI,
    FEAT_SVM,
    FEAT_MONITOR,
    FEAT_3DNOWPREFETCH,
    FEAT_CLZERO,
    FEAT_COUNT
};

struct insn_row {
    const char *name; /* lower case, as in the manuals */
    uint8_t map, opcode, encoding, prefix;
    uint8_t form;
    int8_t reg, rm; /* what ModRM.reg / ModRM.rm must be; -1: anything. The ROW macros fill -1. */
    uint8_t vl, vw;
    uint8_t feature;
    uint8_t operand[4];
    uint32_t properties;
    uint16_t flags_read, flags_written, flags_undefined; /* FLAG_* status bits */
    /*
     * Handlers by [memory form][log2 of operand size in bytes]. Rows whose
     * handler does not depend on one of them repeat the pointer. NULL: #UD.
     */
    insn_exec *exec[2][4];
};

struct insn_table {
    const struct insn_row *rows;
    size_t count;
};
extern const struct insn_table insn_table_integer; /* moves, arithmetic, strings, branches, BMI */
extern const struct insn_table insn_table_system; /* segments, CRs, MSRs, far transfers, INVLPG … */
extern const struct insn_table insn_table_x87;
extern const struct insn_table
    insn_table_vector; /* MMX, SSE*, AVX*, FMA, AES, SHA, FXSAVE, XSAVE */

/* Register numbers in insn.base and insn.index beyond 0 to 15: a slot of cpu->gpr that holds zero.
 */
enum { REG_ZERO = 16 };

/* insn.flags */
enum {
    I_MEMORY = 1 << 0, /* ModRM names memory: base, index, scale, disp, seg are valid */
    I_LOCK = 1 << 1,
    I_REP = 1 << 2,   /* F3 */
    I_REPNE = 1 << 3, /* F2 */
    I_REX_W = 1 << 4, /* REX.W or VEX.W */
    I_VEX_L = 1 << 5, /* VEX.256 */
    I_REX = 1 << 6,   /* any REX prefix: byte registers 4 to 7 are SPL..DIL, not AH..BH */
};

/*
 * One decoded instruction. RIP-relative addresses are folded: base REG_ZERO,
 * disp the absolute address (decoding knows the instruction's own address).
 * Byte registers AH, CH, DH, BH are numbered 20 to 23 in reg, rm (byte
 * operands only), so that handlers need not look at I_REX.
 */
struct insn {
    insn_exec *exec;
    int64_t disp;         /* displacement, or folded absolute address */
    uint64_t imm;         /* immediate, sign- or zero-extended as its operand says */
    uint16_t row;         /* insn_row_of(insn) */
    uint8_t length;       /* bytes, 1 to 15 */
    uint8_t size;         /* operand size in bytes: 1, 2, 4 or 8 */
    uint8_t address_size; /* in bytes: 2, 4 or 8 */
    uint8_t flags;
    uint8_t seg;                /* SEG_* that the memory operand uses, overrides applied */
    uint8_t base, index, scale; /* scale is a shift: 0 to 3 */
    uint8_t reg;                /* ModRM.reg with REX.R / VEX.R */
    uint8_t rm;                 /* ModRM.rm with REX.B, or the opcode's register */
    uint8_t vvvv;               /* VEX.vvvv */
    uint8_t opcode;             /* last opcode byte */
    uint8_t modrm;
    uint8_t spare;
    uint32_t offset; /* of this instruction from its block's first byte */
};
_Static_assert(sizeof(struct insn) == 48, "keep decoded instructions small");

enum insn_mode { INSN_MODE_16, INSN_MODE_32, INSN_MODE_64 };

/* In 64-bit mode: disp is an address that follows from the instruction's own. */
static inline bool insn_is_rip_relative(const struct insn *insn) {
    return (insn->flags & I_MEMORY) && (insn->modrm & 0xc7) == 5;
}

/* Builds the index over all tables. Once, before any decoding; safe to call again. */
void insn_index_init(void);

const struct insn_row *insn_row_of(const struct insn *insn);

/* Every row, for tests and tools: n from 0; NULL after the last. */
const struct insn_row *insn_row_at(size_t n);

/*
 * Decodes one instruction from `bytes` (up to 15, `available` of them there)
 * at guest linear offset `rip` in the given mode.
 *   > 0: the length; *insn is filled
 *   0: more bytes are needed than are available (page boundary)
 *   -EXC_UD: no such instruction (insn->length tells how far it read)
 *   -EXC_GP: longer than 15 bytes
 * Mode-dependent #UD (NO64, LOCK on the wrong instruction, missing feature)
 * is decided here as well. `features` is a bitmap of FEAT_* bits.
 */
int insn_decode(struct insn *insn, const uint8_t *bytes, size_t available, uint64_t rip,
                enum insn_mode mode, const uint64_t *features);

#endif
