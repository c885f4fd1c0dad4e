/* The integer handlers that table_integer.c names: one insn_exec each. */
#ifndef LODGE_CPU_SOFT_INT_H
#define LODGE_CPU_SOFT_INT_H

#include "cpu/soft/insn.h"
#include "cpu/soft/operand.h"

#define HANDLERS_R(h) insn_exec h##_r8, h##_r16, h##_r32, h##_r64
#define HANDLERS_M(h) insn_exec h##_m8, h##_m16, h##_m32, h##_m64
#define HANDLERS_N(h) insn_exec h##_16, h##_32, h##_64
#define HANDLERS_SIZED(h)                                                                          \
    HANDLERS_R(h);                                                                                 \
    HANDLERS_M(h)
#define HANDLERS_WIDE(h)                                                                           \
    insn_exec h##_r16, h##_r32, h##_r64;                                                           \
    insn_exec h##_m16, h##_m32, h##_m64
#define HANDLERS_Y(h) insn_exec h##_r32, h##_r64, h##_m32, h##_m64
#define HANDLERS_OPERANDS(h)                                                                       \
    HANDLERS_SIZED(h##_e_g);                                                                       \
    HANDLERS_SIZED(h##_g_e);                                                                       \
    HANDLERS_SIZED(h##_e_i)
#define HANDLERS_SHIFT(h)                                                                          \
    HANDLERS_SIZED(h##_1);                                                                         \
    HANDLERS_SIZED(h##_i);                                                                         \
    HANDLERS_SIZED(h##_cl)
#define HANDLERS_BIT(h)                                                                            \
    HANDLERS_WIDE(h##_e_g);                                                                        \
    HANDLERS_WIDE(h##_e_i)

/* int_alu.c */
HANDLERS_OPERANDS(add);
HANDLERS_OPERANDS(or);
HANDLERS_OPERANDS(adc);
HANDLERS_OPERANDS(sbb);
HANDLERS_OPERANDS(and);
HANDLERS_OPERANDS(sub);
HANDLERS_OPERANDS(xor);
HANDLERS_OPERANDS(cmp);
HANDLERS_OPERANDS(test);
HANDLERS_SIZED(inc);
HANDLERS_SIZED(dec);
HANDLERS_SIZED(neg);
HANDLERS_SIZED(not );
HANDLERS_SIZED(xadd);
HANDLERS_SIZED(cmpxchg);
HANDLERS_Y(adcx);
HANDLERS_Y(adox);
insn_exec cmpxchg8b, cmpxchg16b;

/* int_mov.c */
HANDLERS_OPERANDS(mov);
HANDLERS_SIZED(xchg);
HANDLERS_WIDE(movzx8);
HANDLERS_WIDE(movzx16);
HANDLERS_WIDE(movsx8);
HANDLERS_WIDE(movsx16);
HANDLERS_WIDE(movsx32);
insn_exec lea_m16, lea_m32, lea_m64;
insn_exec movbe_g_m_m16, movbe_g_m_m32, movbe_g_m_m64;
insn_exec movbe_m_g_m16, movbe_m_g_m32, movbe_m_g_m64;
HANDLERS_N(bswap);
HANDLERS_N(cbw);
HANDLERS_N(cwd);
insn_exec salc, xlat, lahf, sahf;

#define CONDITION_HANDLERS(name, cond, code, read)                                                 \
    HANDLERS_WIDE(cmov##name);                                                                     \
    insn_exec set##name##_r, set##name##_m;                                                        \
    HANDLERS_N(j##name);
FOR_EACH_CONDITION(CONDITION_HANDLERS)

/* int_shift.c */
HANDLERS_SHIFT(rol);
HANDLERS_SHIFT(ror);
HANDLERS_SHIFT(rcl);
HANDLERS_SHIFT(rcr);
HANDLERS_SHIFT(shl);
HANDLERS_SHIFT(shr);
HANDLERS_SHIFT(sar);
HANDLERS_WIDE(shld_i);
HANDLERS_WIDE(shld_cl);
HANDLERS_WIDE(shrd_i);
HANDLERS_WIDE(shrd_cl);

/* int_muldiv.c */
HANDLERS_SIZED(mul);
HANDLERS_SIZED(imul);
HANDLERS_SIZED(div);
HANDLERS_SIZED(idiv);
HANDLERS_WIDE(imul_g_e);
HANDLERS_WIDE(imul_g_e_i);

/* int_bit.c */
HANDLERS_BIT(bt);
HANDLERS_BIT(bts);
HANDLERS_BIT(btr);
HANDLERS_BIT(btc);
HANDLERS_WIDE(bsf);
HANDLERS_WIDE(bsr);
HANDLERS_WIDE(tzcnt);
HANDLERS_WIDE(lzcnt);
HANDLERS_WIDE(popcnt);
HANDLERS_Y(andn);
HANDLERS_Y(bextr);
HANDLERS_Y(blsr);
HANDLERS_Y(blsmsk);
HANDLERS_Y(blsi);
HANDLERS_Y(bzhi);
HANDLERS_Y(pdep);
HANDLERS_Y(pext);
HANDLERS_Y(sarx);
HANDLERS_Y(shlx);
HANDLERS_Y(shrx);
HANDLERS_Y(rorx);
HANDLERS_Y(mulx);
HANDLERS_WIDE(crc32);
insn_exec crc32_b_r, crc32_b_m;

/* int_branch.c */
HANDLERS_N(jmp_j);
HANDLERS_WIDE(jmp_e);
HANDLERS_N(call_j);
HANDLERS_WIDE(call_e);
HANDLERS_N(ret);
insn_exec loop, loope, loopne, jrcxz;

/* int_stack.c */
HANDLERS_WIDE(push_e);
HANDLERS_N(push_i);
HANDLERS_WIDE(pop_e);
HANDLERS_N(pushf);
HANDLERS_N(popf);
HANDLERS_N(leave);
insn_exec pusha_16, pusha_32, popa_16, popa_32, enter;

/* int_string.c, int_io.c */
insn_exec movs, stos, lods, cmps, scas, ins, outs, in_i, in_dx, out_i, out_dx;

/* int_bcd.c */
insn_exec daa, das, aaa, aas, aam, aad;

/* int_misc.c */
insn_exec nop, spin_hint, ud, clc, stc, cmc, cld, std, cli, sti, hlt, int_n, int1, int3, into,
    rdrand;
insn_exec bound_m16, bound_m32;

#endif
