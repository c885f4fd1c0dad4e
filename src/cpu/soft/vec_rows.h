/*
 * The handlers' prototypes, made from the rows themselves.
 */
#ifndef LODGE_CPU_SOFT_VEC_ROWS_H
#define LODGE_CPU_SOFT_VEC_ROWS_H

#include "cpu/soft/insn.h"

#define V_RM(name, map, opcode, h, ...)    insn_exec h##_r, h##_m;
#define V_REG(name, map, opcode, h, ...)   insn_exec h;
#define V_MEM(name, map, opcode, h, ...)   insn_exec h;
#define V_Y(name, map, opcode, h, ...)     insn_exec h##_r32, h##_r64, h##_m32, h##_m64;
#define V_PLAIN(name, map, opcode, h, ...) insn_exec h;
#include "cpu/soft/vec_rows.inc"
#undef V_RM
#undef V_REG
#undef V_MEM
#undef V_Y
#undef V_PLAIN

#endif
