/*
 * MMX, SSE, AVX and their state: the rows of vec_rows.inc as a table.
 */
#include "cpu/soft/table.h"
#include "cpu/soft/vec_rows.h"

#define V_RM(name, map, opcode, h, ...) ROW(name, map, opcode, __VA_ARGS__, EXEC_RM(h##_r, h##_m)),
#define V_REG(name, map, opcode, h, ...)                                                           \
    ROW(name, map, opcode, __VA_ARGS__, REG_FORM, EXEC_RM(h, NULL)),
#define V_MEM(name, map, opcode, h, ...)                                                           \
    ROW(name, map, opcode, __VA_ARGS__, MEM_FORM, EXEC_RM(NULL, h)),
#define V_Y(name, map, opcode, h, ...)     ROW(name, map, opcode, __VA_ARGS__, EXEC_Y(h)),
#define V_PLAIN(name, map, opcode, h, ...) ROW(name, map, opcode, __VA_ARGS__, NO_MODRM, EXEC(h)),

static const struct insn_row rows[] = {
#include "cpu/soft/vec_rows.inc"
};

const struct insn_table insn_table_vector = TABLE_OF(rows);
