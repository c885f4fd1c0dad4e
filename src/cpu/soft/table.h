/*
 * How the instruction tables are written: one ROW an encoding, columns as
 * macros in any order after name, map and opcode.
 *
 *     ROW("adc", 1B, 0x11, OPS(Ev, Gv), PROPS(INSN_LOCK | INSN_READS_DEST),
 *         FLAGS(FL_C, FL_ALL, 0), EXEC_SIZED(adc_e_g)),
 *     ROW("vpaddb", 0F, 0xfc, VEX(ANY, ANY), PREFIX(66), OPS(Vx, Hx, Wx),
 *         FEATURE(AVX), PROPS(INSN_AVX), EXEC(vpaddb)),
 *
 * What decode.c makes of a row:
 * - OPS with Zb or Zv covers the eight opcodes from `opcode` on.
 * - insn.size: 1 when the first operand is a byte (Eb Gb Zb AL Ob Xb Yb, or OUT's source); 4 or 8
 *   by REX.W/VEX.W when some operand is of type y; else the operand size (66h as a mandatory
 *   prefix does not count).
 * - rAX or AL as the first operand sets insn.rm to RAX, as a later one insn.reg: `add rAX, Iz`
 *   takes the handlers of `add Ev, Iz`, `mov rAX, Ov` sets insn.reg and those of `mov Gv, Ev`.
 * - Ob and Ov are memory operands (I_MEMORY, no base, no index).
 * - Two immediates: the second is above the first in insn.imm. Ib, Iw are zero-extended, Ibs,
 *   Iz, Jb, Jz sign-extended to 64 bits whatever the operand size.
 * - A VEX row whose operands do not use vvvv (H.. or By) demands 1111b there.
 * - More than one row may fit an encoding: rows with a mandatory prefix come before PFX_ANY, then
 *   table order decides. Rows of features that are not offered, or of another mode (NO64, ONLY64),
 *   count as not there: F3 0F BD is BSR where LZCNT is not offered.
 * - CPL0 and PROTECTED need no check in handlers: block.c puts a raising handler in place of the
 *   row's. The FP properties describe; x87 and vector handlers make their own checks.
 * - VSIB (gathers): ModRM.rm must be 100b; insn.spare is the vector index register.
 */
#ifndef LODGE_CPU_SOFT_TABLE_H
#define LODGE_CPU_SOFT_TABLE_H

#include "cpu/soft/insn.h"
#include "cpu/x86.h"

/* A column overrides ROW's default: that is the idea. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#define ROW(name_, map_, opcode_, ...)                                                             \
    { .name = (name_), .map = MAP_##map_, .opcode = (opcode_), .reg = -1, .rm = -1, __VA_ARGS__ }

#define OPS_1(a)                        .operand = {OPERAND_##a}
#define OPS_2(a, b)                     .operand = {OPERAND_##a, OPERAND_##b}
#define OPS_3(a, b, c)                  .operand = {OPERAND_##a, OPERAND_##b, OPERAND_##c}
#define OPS_4(a, b, c, d)               .operand = {OPERAND_##a, OPERAND_##b, OPERAND_##c, OPERAND_##d}
#define OPS_PICK(a, b, c, d, pick, ...) pick
#define OPS(...)                        OPS_PICK(__VA_ARGS__, OPS_4, OPS_3, OPS_2, OPS_1, 0)(__VA_ARGS__)

#define NO_MODRM   .form = FORM_NO_MODRM
#define REG_FORM   .form = FORM_REG
#define MEM_FORM   .form = FORM_MEM
#define REG(n)     .reg = (n) /* ModRM.reg, "/n" in the manuals */
#define RM(n)      .rm = (n)  /* ModRM.rm */
#define PREFIX(p)  .prefix = PFX_##p
#define VEX(l, w)  .encoding = ENC_VEX, .vl = VL_##l, .vw = VW_##w
#define W(w)       .vw = VW_##w /* REX.W decides (legacy rows) */
#define FEATURE(f) .feature = FEAT_##f
#define PROPS(p)   .properties = (p)
/* Status flags read, written (defined results), and left undefined. */
#define FLAGS(r, w, u) .flags_read = (r), .flags_written = (w), .flags_undefined = (u)

enum {
    FL_C = FLAG_CF,
    FL_P = FLAG_PF,
    FL_A = FLAG_AF,
    FL_Z = FLAG_ZF,
    FL_S = FLAG_SF,
    FL_O = FLAG_OF,
    FL_ALL = FLAGS_STATUS,
};

#define EXEC_4(h)                                                                                  \
    { h, h, h, h }
/* One handler whatever the form and size. */
#define EXEC(h) .exec = {EXEC_4(h), EXEC_4(h)}
/* Register form, memory form; NULL is #UD. */
#define EXEC_RM(r, m) .exec = {EXEC_4(r), EXEC_4(m)}
/* By size: NAME_r8 … NAME_r64, NAME_m8 … NAME_m64; without memory forms; without 8-bit forms. */
#define EXEC_R8_64(h)                                                                              \
    { h##_r8, h##_r16, h##_r32, h##_r64 }
#define EXEC_M8_64(h)                                                                              \
    { h##_m8, h##_m16, h##_m32, h##_m64 }
#define EXEC_R16_64(h)                                                                             \
    { NULL, h##_r16, h##_r32, h##_r64 }
#define EXEC_M16_64(h)                                                                             \
    { NULL, h##_m16, h##_m32, h##_m64 }
#define EXEC_SIZED(h) .exec = {EXEC_R8_64(h), EXEC_M8_64(h)}
#define EXEC_WIDE(h)  .exec = {EXEC_R16_64(h), EXEC_M16_64(h)}
#define EXEC_Y(h)     .exec = {{NULL, NULL, h##_r32, h##_r64}, {NULL, NULL, h##_m32, h##_m64}}
/* By size alone: NAME_8 … NAME_64. */
#define EXEC_BY_SIZE(h) .exec = {{h##_8, h##_16, h##_32, h##_64}, {h##_8, h##_16, h##_32, h##_64}}
#define EXEC_BY_WIDE(h) .exec = {{NULL, h##_16, h##_32, h##_64}, {NULL, h##_16, h##_32, h##_64}}

#define TABLE_OF(array)                                                                            \
    { (array), sizeof(array) / sizeof((array)[0]) }

#endif
