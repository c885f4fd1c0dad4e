/*
 * Rows of the instructions that look at or change the system: segments, far
 * transfers, control registers, MSRs, TLB control, interrupts, ports. See
 * table.h. Translated code calls all of these lightly (outside.h): this file
 * and what it names are compiled for general registers alone.
 */
#include "cpu/soft/int.h"
#include "cpu/soft/system.h"
#include "cpu/soft/table.h"

#define END    PROPS(INSN_END)
#define CPL0   PROPS(INSN_CPL0)
#define CPL0_E PROPS(INSN_CPL0 | INSN_END)

/* 0F 00: in real mode all of the group is #UD. */
#define GROUP_6(name, n, access, properties, handler, ...)                                         \
    ROW(name, 0F, 0x00, OPS(access), REG(n), PROPS(INSN_PROTECTED | (properties)),                 \
        EXEC_RM(handler##_r, handler##_m), ##__VA_ARGS__)

#define PUSH_SEG(map, opcode, properties)                                                          \
    ROW("push", map, opcode, NO_MODRM, PROPS(properties), EXEC(push_seg))
#define POP_SEG(map, opcode, properties)                                                           \
    ROW("pop", map, opcode, NO_MODRM, PROPS(INSN_END | (properties)), EXEC(pop_seg))

static const struct insn_row rows[] = {
    /* Segment registers. */
    ROW("mov", 1B, 0x8c, OPS(Ev, Sw), EXEC_RM(mov_e_s_r, mov_e_s_m)),
    ROW("mov", 1B, 0x8e, OPS(Sw, Ew), END, EXEC_RM(mov_s_e_r, mov_s_e_m)),
    PUSH_SEG(1B, 0x06, INSN_NO64),
    PUSH_SEG(1B, 0x0e, INSN_NO64),
    PUSH_SEG(1B, 0x16, INSN_NO64),
    PUSH_SEG(1B, 0x1e, INSN_NO64),
    PUSH_SEG(0F, 0xa0, INSN_DEFAULT64),
    PUSH_SEG(0F, 0xa8, INSN_DEFAULT64),
    POP_SEG(1B, 0x07, INSN_NO64),
    POP_SEG(1B, 0x17, INSN_NO64),
    POP_SEG(1B, 0x1f, INSN_NO64),
    POP_SEG(0F, 0xa1, INSN_DEFAULT64),
    POP_SEG(0F, 0xa9, INSN_DEFAULT64),
    ROW("les", 1B, 0xc4, OPS(Gv, Mp), MEM_FORM, PROPS(INSN_END | INSN_NO64),
        EXEC_RM(NULL, load_far_pointer)),
    ROW("lds", 1B, 0xc5, OPS(Gv, Mp), MEM_FORM, PROPS(INSN_END | INSN_NO64),
        EXEC_RM(NULL, load_far_pointer)),
    ROW("lss", 0F, 0xb2, OPS(Gv, Mp), MEM_FORM, END, EXEC_RM(NULL, load_far_pointer)),
    ROW("lfs", 0F, 0xb4, OPS(Gv, Mp), MEM_FORM, END, EXEC_RM(NULL, load_far_pointer)),
    ROW("lgs", 0F, 0xb5, OPS(Gv, Mp), MEM_FORM, END, EXEC_RM(NULL, load_far_pointer)),
    ROW("arpl", 1B, 0x63, OPS(Ew, Gw), PROPS(INSN_NO64 | INSN_PROTECTED), FLAGS(0, FL_Z, 0),
        EXEC_RM(arpl_r, arpl_m)),
    ROW("lar", 0F, 0x02, OPS(Gv, Ew), PROPS(INSN_PROTECTED), FLAGS(0, FL_Z, 0),
        EXEC_RM(lar_r, lar_m)),
    ROW("lsl", 0F, 0x03, OPS(Gv, Ew), PROPS(INSN_PROTECTED), FLAGS(0, FL_Z, 0),
        EXEC_RM(lsl_r, lsl_m)),
    GROUP_6("sldt", 0, Ev, 0, sldt),
    GROUP_6("str", 1, Ev, 0, str),
    GROUP_6("lldt", 2, Ew, INSN_CPL0, lldt),
    GROUP_6("ltr", 3, Ew, INSN_CPL0, ltr),
    GROUP_6("verr", 4, Ew, 0, verr, FLAGS(0, FL_Z, 0)),
    GROUP_6("verw", 5, Ew, 0, verw, FLAGS(0, FL_Z, 0)),
    ROW("sgdt", 0F, 0x01, OPS(M), MEM_FORM, REG(0), EXEC_RM(NULL, sgdt)),
    ROW("sidt", 0F, 0x01, OPS(M), MEM_FORM, REG(1), EXEC_RM(NULL, sidt)),
    ROW("lgdt", 0F, 0x01, OPS(M), MEM_FORM, REG(2), CPL0, EXEC_RM(NULL, lgdt)),
    ROW("lidt", 0F, 0x01, OPS(M), MEM_FORM, REG(3), CPL0, EXEC_RM(NULL, lidt)),
    ROW("swapgs", 0F, 0x01, REG_FORM, REG(7), RM(0), PROPS(INSN_CPL0 | INSN_ONLY64), EXEC(swapgs)),
    ROW("rdfsbase", 0F, 0xae, OPS(Ry), PREFIX(F3), REG_FORM, REG(0), PROPS(INSN_ONLY64),
        FEATURE(FSGSBASE), EXEC(rdfsbase)),
    ROW("rdgsbase", 0F, 0xae, OPS(Ry), PREFIX(F3), REG_FORM, REG(1), PROPS(INSN_ONLY64),
        FEATURE(FSGSBASE), EXEC(rdgsbase)),
    ROW("wrfsbase", 0F, 0xae, OPS(Ry), PREFIX(F3), REG_FORM, REG(2), PROPS(INSN_ONLY64),
        FEATURE(FSGSBASE), EXEC(wrfsbase)),
    ROW("wrgsbase", 0F, 0xae, OPS(Ry), PREFIX(F3), REG_FORM, REG(3), PROPS(INSN_ONLY64),
        FEATURE(FSGSBASE), EXEC(wrgsbase)),

    /* Far transfers. */
    ROW("jmp far", 1B, 0xea, OPS(Ap), NO_MODRM, PROPS(INSN_END | INSN_NO64), EXEC(jmp_far_a)),
    ROW("jmp far", 1B, 0xff, OPS(Mp), MEM_FORM, REG(5), END, EXEC_RM(NULL, jmp_far_m)),
    ROW("call far", 1B, 0x9a, OPS(Ap), NO_MODRM, PROPS(INSN_END | INSN_NO64), EXEC(call_far_a)),
    ROW("call far", 1B, 0xff, OPS(Mp), MEM_FORM, REG(3), END, EXEC_RM(NULL, call_far_m)),
    ROW("ret far", 1B, 0xca, OPS(Iw), NO_MODRM, END, EXEC(ret_far_i)),
    ROW("ret far", 1B, 0xcb, NO_MODRM, END, EXEC(ret_far)),
    ROW("iret", 1B, 0xcf, NO_MODRM, END, FLAGS(0, FL_ALL, 0), EXEC(iret)),
    ROW("syscall", 0F, 0x05, NO_MODRM, END, EXEC(syscall_enter)),
    ROW("sysret", 0F, 0x07, NO_MODRM, END, FLAGS(0, FL_ALL, 0), EXEC(sysret_leave)),
    ROW("sysenter", 0F, 0x34, NO_MODRM, END, EXEC(sysenter)),
    ROW("sysexit", 0F, 0x35, NO_MODRM, END, EXEC(sysexit)),

    /* Control and debug registers. */
    /* Privileged as well, but a register that does not exist is #UD before that: their handlers
     * look. LOCK names CR8 to CR15. */
    ROW("mov", 0F, 0x20, OPS(Ry, Cd), REG_FORM, PROPS(INSN_LOCK), EXEC(mov_r_c)),
    ROW("mov", 0F, 0x22, OPS(Cd, Ry), REG_FORM, PROPS(INSN_END | INSN_LOCK), EXEC(mov_c_r)),
    ROW("mov", 0F, 0x21, OPS(Ry, Dd), EXEC(mov_r_d)),
    ROW("mov", 0F, 0x23, OPS(Dd, Ry), END, EXEC(mov_d_r)),
    ROW("clts", 0F, 0x06, NO_MODRM, CPL0_E, EXEC(clts)),
    ROW("smsw", 0F, 0x01, OPS(Ev), REG(4), EXEC_RM(smsw_r, smsw_m)),
    ROW("lmsw", 0F, 0x01, OPS(Ew), REG(6), CPL0_E, EXEC_RM(lmsw_r, lmsw_m)),
    ROW("xgetbv", 0F, 0x01, PREFIX(NONE), REG_FORM, REG(2), RM(0), PROPS(INSN_NO_TEST),
        FEATURE(XSAVE), EXEC(xgetbv)),
    ROW("xsetbv", 0F, 0x01, PREFIX(NONE), REG_FORM, REG(2), RM(1), PROPS(INSN_END | INSN_NO_TEST),
        FEATURE(XSAVE), EXEC(xsetbv)),
    ROW("clac", 0F, 0x01, PREFIX(NONE), REG_FORM, REG(1), RM(2), FEATURE(SMAP), EXEC(clac)),
    ROW("stac", 0F, 0x01, PREFIX(NONE), REG_FORM, REG(1), RM(3), FEATURE(SMAP), EXEC(stac)),

    /* TLB and caches. */
    ROW("invlpg", 0F, 0x01, OPS(M), MEM_FORM, REG(7), CPL0_E, EXEC_RM(NULL, invlpg)),
    ROW("invpcid", 0F38, 0x82, OPS(Gy, Mdq), PREFIX(66), MEM_FORM, CPL0_E, FEATURE(INVPCID),
        EXEC_RM(NULL, invpcid)),
    ROW("invd", 0F, 0x08, NO_MODRM, CPL0, EXEC(cache_control)),
    ROW("wbinvd", 0F, 0x09, NO_MODRM, CPL0, EXEC(cache_control)),
    ROW("clflush", 0F, 0xae, OPS(Mb), PREFIX(NONE), MEM_FORM, REG(7), EXEC_RM(NULL, clflush)),
    ROW("clflushopt", 0F, 0xae, OPS(Mb), PREFIX(66), MEM_FORM, REG(7), FEATURE(CLFLUSHOPT),
        EXEC_RM(NULL, clflush)),
    ROW("clwb", 0F, 0xae, OPS(Mb), PREFIX(66), MEM_FORM, REG(6), FEATURE(CLWB),
        EXEC_RM(NULL, clflush)),

    ROW("lfence", 0F, 0xae, PREFIX(NONE), REG_FORM, REG(5), FEATURE(SSE2), EXEC(fence_none)),
    ROW("mfence", 0F, 0xae, PREFIX(NONE), REG_FORM, REG(6), FEATURE(SSE2), EXEC(fence_full)),
    ROW("sfence", 0F, 0xae, PREFIX(NONE), REG_FORM, REG(7), FEATURE(SSE), EXEC(fence_stores)),

    /* Time, identity, model-specific registers. */
    ROW("rdtsc", 0F, 0x31, NO_MODRM, PROPS(INSN_NO_TEST), EXEC(rdtsc)),
    ROW("rdtscp", 0F, 0x01, REG_FORM, REG(7), RM(1), PROPS(INSN_NO_TEST), FEATURE(RDTSCP),
        EXEC(rdtscp)),
    ROW("rdpid", 0F, 0xc7, OPS(Ry), PREFIX(F3), REG_FORM, REG(7), PROPS(INSN_NO_TEST),
        FEATURE(RDPID), EXEC(rdpid)),
    ROW("rdpmc", 0F, 0x33, NO_MODRM, PROPS(INSN_NO_TEST), EXEC(rdpmc)),
    ROW("cpuid", 0F, 0xa2, NO_MODRM, PROPS(INSN_NO_TEST), EXEC(cpuid)),
    ROW("rdmsr", 0F, 0x32, NO_MODRM, PROPS(INSN_CPL0 | INSN_NO_TEST), EXEC(rdmsr)),
    ROW("wrmsr", 0F, 0x30, NO_MODRM, PROPS(INSN_CPL0 | INSN_END), EXEC(wrmsr)),

    /* RFLAGS, software interrupts, waiting, ports. */
    ROW("pushf", 1B, 0x9c, OPS(Fv), NO_MODRM, PROPS(INSN_DEFAULT64), FLAGS(FL_ALL, 0, 0),
        EXEC_BY_WIDE(pushf)),
    ROW("popf", 1B, 0x9d, OPS(Fv), NO_MODRM, PROPS(INSN_DEFAULT64), FLAGS(0, FL_ALL, 0),
        EXEC_BY_WIDE(popf)),
    ROW("insb", 1B, 0x6c, OPS(Yb, DX), NO_MODRM, PROPS(INSN_REP | INSN_END | INSN_NO_TEST),
        EXEC(ins)),
    ROW("ins", 1B, 0x6d, OPS(Yv, DX), NO_MODRM, PROPS(INSN_REP | INSN_END | INSN_NO_TEST),
        EXEC(ins)),
    ROW("outsb", 1B, 0x6e, OPS(DX, Xb), NO_MODRM, PROPS(INSN_REP | INSN_END | INSN_NO_TEST),
        EXEC(outs)),
    ROW("outs", 1B, 0x6f, OPS(DX, Xv), NO_MODRM, PROPS(INSN_REP | INSN_END | INSN_NO_TEST),
        EXEC(outs)),
    ROW("in", 1B, 0xe4, OPS(AL, Ib), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(in_i)),
    ROW("in", 1B, 0xe5, OPS(rAX, Ib), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(in_i)),
    ROW("out", 1B, 0xe6, OPS(Ib, AL), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(out_i)),
    ROW("out", 1B, 0xe7, OPS(Ib, rAX), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(out_i)),
    ROW("in", 1B, 0xec, OPS(AL, DX), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(in_dx)),
    ROW("in", 1B, 0xed, OPS(rAX, DX), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(in_dx)),
    ROW("out", 1B, 0xee, OPS(DX, AL), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(out_dx)),
    ROW("out", 1B, 0xef, OPS(DX, rAX), NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(out_dx)),
    ROW("cli", 1B, 0xfa, NO_MODRM, PROPS(INSN_NO_TEST), EXEC(cli)),
    ROW("sti", 1B, 0xfb, NO_MODRM, PROPS(INSN_END | INSN_NO_TEST), EXEC(sti)),
    ROW("hlt", 1B, 0xf4, NO_MODRM, PROPS(INSN_CPL0 | INSN_END | INSN_NO_TEST), EXEC(hlt)),
    ROW("int1", 1B, 0xf1, NO_MODRM, PROPS(INSN_END), EXEC(int1)),
    ROW("int3", 1B, 0xcc, NO_MODRM, PROPS(INSN_END), EXEC(int3)),
    ROW("int", 1B, 0xcd, OPS(Ib), NO_MODRM, PROPS(INSN_END), EXEC(int_n)),
    ROW("into", 1B, 0xce, NO_MODRM, PROPS(INSN_END | INSN_NO64), FLAGS(FL_O, 0, 0), EXEC(into)),
};

const struct insn_table insn_table_system = TABLE_OF(rows);
