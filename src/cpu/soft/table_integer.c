/*
 * Integer instructions: moves, arithmetic, shifts, bits, strings, near branches, ports, BMI, ADX.
 * Order within an opcode matters only where rows overlap (see table.h).
 */
#include "cpu/soft/int.h"
#include "cpu/soft/table.h"

enum {
    DEST = INSN_READS_DEST,
    LOCKED = INSN_READS_DEST | INSN_LOCK,
    ONLY_READ = INSN_WRITES_NONE,
    FL_ARITHMETIC = FL_ALL,
    FL_LOGIC = FL_ALL & ~FL_A, /* AF is left undefined */
    FL_NO_CARRY = FL_ALL & ~FL_C,
};

/* The eight groups of opcodes 00 to 3F, and group 1 at 80 to 83. */
#define ALU(name, op, n, rw, props, read, defined)                                                 \
    ROW(name, 1B, (n)*8 + 0, OPS(Eb, Gb), PROPS(props), FLAGS(read, defined, FL_ALL & ~(defined)), \
        EXEC_SIZED(op##_e_g)),                                                                     \
        ROW(name, 1B, (n)*8 + 1, OPS(Ev, Gv), PROPS(props),                                        \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_g)),                      \
        ROW(name, 1B, (n)*8 + 2, OPS(Gb, Eb), PROPS(rw),                                           \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_g_e)),                      \
        ROW(name, 1B, (n)*8 + 3, OPS(Gv, Ev), PROPS(rw),                                           \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_g_e)),                      \
        ROW(name, 1B, (n)*8 + 4, OPS(AL, Ib), NO_MODRM, PROPS(rw),                                 \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_i)),                      \
        ROW(name, 1B, (n)*8 + 5, OPS(rAX, Iz), NO_MODRM, PROPS(rw),                                \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_i)),                      \
        ROW(name, 1B, 0x80, REG(n), OPS(Eb, Ib), PROPS(props),                                     \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_i)),                      \
        ROW(name, 1B, 0x81, REG(n), OPS(Ev, Iz), PROPS(props),                                     \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_i)),                      \
        ROW(name, 1B, 0x82, REG(n), OPS(Eb, Ib), PROPS((props) | INSN_NO64),                       \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_i)),                      \
        ROW(name, 1B, 0x83, REG(n), OPS(Ev, Ibs), PROPS(props),                                    \
            FLAGS(read, defined, FL_ALL & ~(defined)), EXEC_SIZED(op##_e_i))

/* Group 2: shifts by imm8, 1, CL. Where the count may be zero, which changes nothing, flags count
 * as read. */
#define SHIFT(name, op, n, read, defined, undefined)                                               \
    ROW(name, 1B, 0xc0, REG(n), OPS(Eb, Ib), PROPS(DEST), FLAGS(read, defined, undefined),         \
        EXEC_SIZED(op##_i)),                                                                       \
        ROW(name, 1B, 0xc1, REG(n), OPS(Ev, Ib), PROPS(DEST), FLAGS(read, defined, undefined),     \
            EXEC_SIZED(op##_i)),                                                                   \
        ROW(name, 1B, 0xd0, REG(n), OPS(Eb, 1), PROPS(DEST),                                       \
            FLAGS((read)&FL_C, (defined) | FL_O, (undefined) & ~FL_O), EXEC_SIZED(op##_1)),        \
        ROW(name, 1B, 0xd1, REG(n), OPS(Ev, 1), PROPS(DEST),                                       \
            FLAGS((read)&FL_C, (defined) | FL_O, (undefined) & ~FL_O), EXEC_SIZED(op##_1)),        \
        ROW(name, 1B, 0xd2, REG(n), OPS(Eb, CL), PROPS(DEST), FLAGS(read, defined, undefined),     \
            EXEC_SIZED(op##_cl)),                                                                  \
        ROW(name, 1B, 0xd3, REG(n), OPS(Ev, CL), PROPS(DEST), FLAGS(read, defined, undefined),     \
            EXEC_SIZED(op##_cl))

#define CONDITION_ROWS(name, cond, code, read)                                                     \
    ROW("j" #name, 1B, 0x70 + (code), OPS(Jb), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),      \
        FLAGS(read, 0, 0), EXEC_BY_WIDE(j##name)),                                                 \
        ROW("j" #name, 0F, 0x80 + (code), OPS(Jz), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),  \
            FLAGS(read, 0, 0), EXEC_BY_WIDE(j##name)),                                             \
        ROW("set" #name, 0F, 0x90 + (code), OPS(Eb), FLAGS(read, 0, 0),                            \
            EXEC_RM(set##name##_r, set##name##_m)),                                                \
        ROW("cmov" #name, 0F, 0x40 + (code), OPS(Gv, Ev), PROPS(DEST), FLAGS(read, 0, 0),          \
            EXEC_WIDE(cmov##name)),

#define BIT(name, op, opcode, n, props)                                                            \
    ROW(name, 0F, opcode, OPS(Ev, Gv), PROPS(props), FLAGS(0, FL_C, FL_O | FL_S | FL_A | FL_P),    \
        EXEC_WIDE(op##_e_g)),                                                                      \
        ROW(name, 0F, 0xba, REG(n), OPS(Ev, Ib), PROPS(props),                                     \
            FLAGS(0, FL_C, FL_O | FL_S | FL_A | FL_P), EXEC_WIDE(op##_e_i))

static const struct insn_row rows[] = {
    /* -- arithmetic and logic -- */
    ALU("add", add, 0, DEST, LOCKED, 0, FL_ARITHMETIC),
    ALU("or", or, 1, DEST, LOCKED, 0, FL_LOGIC),
    ALU("adc", adc, 2, DEST, LOCKED, FL_C, FL_ARITHMETIC),
    ALU("sbb", sbb, 3, DEST, LOCKED, FL_C, FL_ARITHMETIC),
    ALU("and", and, 4, DEST, LOCKED, 0, FL_LOGIC),
    ALU("sub", sub, 5, DEST, LOCKED, 0, FL_ARITHMETIC),
    ALU("xor", xor, 6, DEST, LOCKED, 0, FL_LOGIC),
    ALU("cmp", cmp, 7, ONLY_READ, ONLY_READ, 0, FL_ARITHMETIC),
    ROW("test", 1B, 0x84, OPS(Eb, Gb), PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_g)),
    ROW("test", 1B, 0x85, OPS(Ev, Gv), PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_g)),
    ROW("test", 1B, 0xa8, OPS(AL, Ib), NO_MODRM, PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_i)),
    ROW("test", 1B, 0xa9, OPS(rAX, Iz), NO_MODRM, PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_i)),
    ROW("test", 1B, 0xf6, REG(0), OPS(Eb, Ib), PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_i)),
    ROW("test", 1B, 0xf6, REG(1), OPS(Eb, Ib), PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_i)),
    ROW("test", 1B, 0xf7, REG(0), OPS(Ev, Iz), PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_i)),
    ROW("test", 1B, 0xf7, REG(1), OPS(Ev, Iz), PROPS(ONLY_READ), FLAGS(0, FL_LOGIC, FL_A),
        EXEC_SIZED(test_e_i)),
    ROW("inc", 1B, 0x40, OPS(Zv), NO_MODRM, PROPS(DEST | INSN_NO64), FLAGS(0, FL_NO_CARRY, 0),
        EXEC_SIZED(inc)),
    ROW("dec", 1B, 0x48, OPS(Zv), NO_MODRM, PROPS(DEST | INSN_NO64), FLAGS(0, FL_NO_CARRY, 0),
        EXEC_SIZED(dec)),
    ROW("inc", 1B, 0xfe, REG(0), OPS(Eb), PROPS(LOCKED), FLAGS(0, FL_NO_CARRY, 0), EXEC_SIZED(inc)),
    ROW("dec", 1B, 0xfe, REG(1), OPS(Eb), PROPS(LOCKED), FLAGS(0, FL_NO_CARRY, 0), EXEC_SIZED(dec)),
    ROW("inc", 1B, 0xff, REG(0), OPS(Ev), PROPS(LOCKED), FLAGS(0, FL_NO_CARRY, 0), EXEC_SIZED(inc)),
    ROW("dec", 1B, 0xff, REG(1), OPS(Ev), PROPS(LOCKED), FLAGS(0, FL_NO_CARRY, 0), EXEC_SIZED(dec)),
    ROW("not", 1B, 0xf6, REG(2), OPS(Eb), PROPS(LOCKED), EXEC_SIZED(not )),
    ROW("not", 1B, 0xf7, REG(2), OPS(Ev), PROPS(LOCKED), EXEC_SIZED(not )),
    ROW("neg", 1B, 0xf6, REG(3), OPS(Eb), PROPS(LOCKED), FLAGS(0, FL_ALL, 0), EXEC_SIZED(neg)),
    ROW("neg", 1B, 0xf7, REG(3), OPS(Ev), PROPS(LOCKED), FLAGS(0, FL_ALL, 0), EXEC_SIZED(neg)),
    ROW("xadd", 0F, 0xc0, OPS(Eb, Gb), PROPS(LOCKED), FLAGS(0, FL_ALL, 0), EXEC_SIZED(xadd)),
    ROW("xadd", 0F, 0xc1, OPS(Ev, Gv), PROPS(LOCKED), FLAGS(0, FL_ALL, 0), EXEC_SIZED(xadd)),
    ROW("cmpxchg", 0F, 0xb0, OPS(Eb, Gb), PROPS(LOCKED), FLAGS(0, FL_ALL, 0), EXEC_SIZED(cmpxchg)),
    ROW("cmpxchg", 0F, 0xb1, OPS(Ev, Gv), PROPS(LOCKED), FLAGS(0, FL_ALL, 0), EXEC_SIZED(cmpxchg)),
    ROW("cmpxchg16b", 0F, 0xc7, REG(1), MEM_FORM, W(1), OPS(Mdq), FEATURE(CX16), PROPS(LOCKED),
        FLAGS(0, FL_Z, 0), EXEC(cmpxchg16b)),
    ROW("cmpxchg8b", 0F, 0xc7, REG(1), MEM_FORM, OPS(Mq), PROPS(LOCKED), FLAGS(0, FL_Z, 0),
        EXEC(cmpxchg8b)),
    ROW("adcx", 0F38, 0xf6, PREFIX(66), OPS(Gy, Ey), FEATURE(ADX), PROPS(DEST),
        FLAGS(FL_C, FL_C, 0), EXEC_Y(adcx)),
    ROW("adox", 0F38, 0xf6, PREFIX(F3), OPS(Gy, Ey), FEATURE(ADX), PROPS(DEST),
        FLAGS(FL_O, FL_O, 0), EXEC_Y(adox)),

    /* -- moves -- */
    ROW("mov", 1B, 0x88, OPS(Eb, Gb), EXEC_SIZED(mov_e_g)),
    ROW("mov", 1B, 0x89, OPS(Ev, Gv), EXEC_SIZED(mov_e_g)),
    ROW("mov", 1B, 0x8a, OPS(Gb, Eb), EXEC_SIZED(mov_g_e)),
    ROW("mov", 1B, 0x8b, OPS(Gv, Ev), EXEC_SIZED(mov_g_e)),
    ROW("mov", 1B, 0xa0, OPS(AL, Ob), NO_MODRM, EXEC_SIZED(mov_g_e)),
    ROW("mov", 1B, 0xa1, OPS(rAX, Ov), NO_MODRM, EXEC_SIZED(mov_g_e)),
    ROW("mov", 1B, 0xa2, OPS(Ob, AL), NO_MODRM, EXEC_SIZED(mov_e_g)),
    ROW("mov", 1B, 0xa3, OPS(Ov, rAX), NO_MODRM, EXEC_SIZED(mov_e_g)),
    ROW("mov", 1B, 0xb0, OPS(Zb, Ib), NO_MODRM, EXEC_SIZED(mov_e_i)),
    ROW("mov", 1B, 0xb8, OPS(Zv, Iv), NO_MODRM, EXEC_SIZED(mov_e_i)),
    ROW("mov", 1B, 0xc6, REG(0), OPS(Eb, Ib), EXEC_SIZED(mov_e_i)),
    ROW("mov", 1B, 0xc7, REG(0), OPS(Ev, Iz), EXEC_SIZED(mov_e_i)),
    ROW("movzx", 0F, 0xb6, OPS(Gv, Eb), EXEC_WIDE(movzx8)),
    ROW("movzx", 0F, 0xb7, OPS(Gv, Ew), EXEC_WIDE(movzx16)),
    ROW("movsx", 0F, 0xbe, OPS(Gv, Eb), EXEC_WIDE(movsx8)),
    ROW("movsx", 0F, 0xbf, OPS(Gv, Ew), EXEC_WIDE(movsx16)),
    ROW("movsxd", 1B, 0x63, OPS(Gv, Ed), PROPS(INSN_ONLY64), EXEC_WIDE(movsx32)),
    ROW("lea", 1B, 0x8d, MEM_FORM, OPS(Gv, M), .exec = {{NULL}, {NULL, lea_m16, lea_m32, lea_m64}}),
    ROW("pause", 1B, 0x90, PREFIX(F3), NO_MODRM, RM(0), EXEC(spin_hint)),
    ROW("nop", 1B, 0x90, NO_MODRM, RM(0), EXEC(nop)),
    ROW("xchg", 1B, 0x90, OPS(Zv, rAX), NO_MODRM, PROPS(DEST), EXEC_SIZED(xchg)),
    ROW("xchg", 1B, 0x86, OPS(Eb, Gb), PROPS(LOCKED), EXEC_SIZED(xchg)),
    ROW("xchg", 1B, 0x87, OPS(Ev, Gv), PROPS(LOCKED), EXEC_SIZED(xchg)),
    ROW("bswap", 0F, 0xc8, OPS(Zv), NO_MODRM, PROPS(DEST | INSN_UNDEFINED_REG),
        EXEC_BY_WIDE(bswap)),
    ROW("crc32", 0F38, 0xf0, PREFIX(F2), OPS(Gd, Eb), FEATURE(SSE42), PROPS(DEST),
        EXEC_RM(crc32_b_r, crc32_b_m)),
    ROW("crc32", 0F38, 0xf1, PREFIX(F2), OPS(Gd, Ev), FEATURE(SSE42), PROPS(DEST),
        EXEC_WIDE(crc32)),
    ROW("movbe", 0F38, 0xf0, PREFIX(NO_REP), MEM_FORM, OPS(Gv, Mv), FEATURE(MOVBE),
        .exec = {{NULL}, {NULL, movbe_g_m_m16, movbe_g_m_m32, movbe_g_m_m64}}),
    ROW("movbe", 0F38, 0xf1, PREFIX(NO_REP), MEM_FORM, OPS(Mv, Gv), FEATURE(MOVBE),
        .exec = {{NULL}, {NULL, movbe_m_g_m16, movbe_m_g_m32, movbe_m_g_m64}}),
    ROW("cbw", 1B, 0x98, NO_MODRM, EXEC_BY_WIDE(cbw)),
    ROW("cwd", 1B, 0x99, NO_MODRM, EXEC_BY_WIDE(cwd)),
    ROW("salc", 1B, 0xd6, NO_MODRM, PROPS(INSN_NO64), FLAGS(FL_C, 0, 0), EXEC(salc)),
    ROW("xlat", 1B, 0xd7, NO_MODRM, EXEC(xlat)),
    ROW("sahf", 1B, 0x9e, NO_MODRM, FLAGS(0, FL_ALL & ~FL_O, 0), EXEC(sahf)),
    ROW("lahf", 1B, 0x9f, NO_MODRM, FLAGS(FL_ALL & ~FL_O, 0, 0), EXEC(lahf)),
    FOR_EACH_CONDITION(CONDITION_ROWS)

    /* -- shifts -- */
    SHIFT("rol", rol, 0, FL_ALL, FL_C, FL_O),
    SHIFT("ror", ror, 1, FL_ALL, FL_C, FL_O),
    SHIFT("rcl", rcl, 2, FL_ALL, FL_C, FL_O),
    SHIFT("rcr", rcr, 3, FL_ALL, FL_C, FL_O),
    SHIFT("shl", shl, 4, FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A),
    SHIFT("shr", shr, 5, FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A),
    SHIFT("shl", shl, 6, FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A),
    SHIFT("sar", sar, 7, FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A),
    ROW("shld", 0F, 0xa4, OPS(Ev, Gv, Ib), PROPS(DEST | INSN_UNDEFINED_REG),
        FLAGS(FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A), EXEC_WIDE(shld_i)),
    ROW("shld", 0F, 0xa5, OPS(Ev, Gv, CL), PROPS(DEST | INSN_UNDEFINED_REG),
        FLAGS(FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A), EXEC_WIDE(shld_cl)),
    ROW("shrd", 0F, 0xac, OPS(Ev, Gv, Ib), PROPS(DEST | INSN_UNDEFINED_REG),
        FLAGS(FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A), EXEC_WIDE(shrd_i)),
    ROW("shrd", 0F, 0xad, OPS(Ev, Gv, CL), PROPS(DEST | INSN_UNDEFINED_REG),
        FLAGS(FL_ALL, FL_C | FL_Z | FL_S | FL_P, FL_O | FL_A), EXEC_WIDE(shrd_cl)),

    /* -- multiplication and division -- */
    ROW("mul", 1B, 0xf6, REG(4), OPS(Eb), FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P),
        EXEC_SIZED(mul)),
    ROW("mul", 1B, 0xf7, REG(4), OPS(Ev), FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P),
        EXEC_SIZED(mul)),
    ROW("imul", 1B, 0xf6, REG(5), OPS(Eb), FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P),
        EXEC_SIZED(imul)),
    ROW("imul", 1B, 0xf7, REG(5), OPS(Ev), FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P),
        EXEC_SIZED(imul)),
    ROW("imul", 0F, 0xaf, OPS(Gv, Ev), PROPS(DEST),
        FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P), EXEC_WIDE(imul_g_e)),
    ROW("imul", 1B, 0x69, OPS(Gv, Ev, Iz), FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P),
        EXEC_WIDE(imul_g_e_i)),
    ROW("imul", 1B, 0x6b, OPS(Gv, Ev, Ibs), FLAGS(0, FL_C | FL_O, FL_S | FL_Z | FL_A | FL_P),
        EXEC_WIDE(imul_g_e_i)),
    ROW("div", 1B, 0xf6, REG(6), OPS(Eb), FLAGS(0, 0, FL_ALL), EXEC_SIZED(div)),
    ROW("div", 1B, 0xf7, REG(6), OPS(Ev), FLAGS(0, 0, FL_ALL), EXEC_SIZED(div)),
    ROW("idiv", 1B, 0xf6, REG(7), OPS(Eb), FLAGS(0, 0, FL_ALL), EXEC_SIZED(idiv)),
    ROW("idiv", 1B, 0xf7, REG(7), OPS(Ev), FLAGS(0, 0, FL_ALL), EXEC_SIZED(idiv)),

    /* -- decimal -- */
    ROW("daa", 1B, 0x27, NO_MODRM, PROPS(INSN_NO64), FLAGS(FL_C | FL_A, FL_ALL & ~FL_O, FL_O),
        EXEC(daa)),
    ROW("das", 1B, 0x2f, NO_MODRM, PROPS(INSN_NO64), FLAGS(FL_C | FL_A, FL_ALL & ~FL_O, FL_O),
        EXEC(das)),
    ROW("aaa", 1B, 0x37, NO_MODRM, PROPS(INSN_NO64),
        FLAGS(FL_A, FL_A | FL_C, FL_ALL & ~(FL_A | FL_C)), EXEC(aaa)),
    ROW("aas", 1B, 0x3f, NO_MODRM, PROPS(INSN_NO64),
        FLAGS(FL_A, FL_A | FL_C, FL_ALL & ~(FL_A | FL_C)), EXEC(aas)),
    ROW("aam", 1B, 0xd4, OPS(Ib), NO_MODRM, PROPS(INSN_NO64),
        FLAGS(0, FL_S | FL_Z | FL_P, FL_O | FL_A | FL_C), EXEC(aam)),
    ROW("aad", 1B, 0xd5, OPS(Ib), NO_MODRM, PROPS(INSN_NO64),
        FLAGS(0, FL_S | FL_Z | FL_P, FL_O | FL_A | FL_C), EXEC(aad)),

    /* -- bits -- */
    BIT("bt", bt, 0xa3, 4, ONLY_READ),
    BIT("bts", bts, 0xab, 5, LOCKED),
    BIT("btr", btr, 0xb3, 6, LOCKED),
    BIT("btc", btc, 0xbb, 7, LOCKED),
    ROW("tzcnt", 0F, 0xbc, PREFIX(F3), OPS(Gv, Ev), FEATURE(BMI1),
        FLAGS(0, FL_C | FL_Z, FL_ALL & ~(FL_C | FL_Z)), EXEC_WIDE(tzcnt)),
    ROW("bsf", 0F, 0xbc, OPS(Gv, Ev), PROPS(INSN_UNDEFINED_REG | DEST),
        FLAGS(0, FL_Z, FL_ALL & ~FL_Z), EXEC_WIDE(bsf)),
    ROW("lzcnt", 0F, 0xbd, PREFIX(F3), OPS(Gv, Ev), FEATURE(LZCNT),
        FLAGS(0, FL_C | FL_Z, FL_ALL & ~(FL_C | FL_Z)), EXEC_WIDE(lzcnt)),
    ROW("bsr", 0F, 0xbd, OPS(Gv, Ev), PROPS(INSN_UNDEFINED_REG | DEST),
        FLAGS(0, FL_Z, FL_ALL & ~FL_Z), EXEC_WIDE(bsr)),
    ROW("popcnt", 0F, 0xb8, PREFIX(F3), OPS(Gv, Ev), FEATURE(POPCNT), FLAGS(0, FL_ALL, 0),
        EXEC_WIDE(popcnt)),
    ROW("andn", 0F38, 0xf2, VEX(128, ANY), PREFIX(NONE), OPS(Gy, By, Ey), FEATURE(BMI1),
        FLAGS(0, FL_S | FL_Z | FL_O | FL_C, FL_A | FL_P), EXEC_Y(andn)),
    ROW("blsr", 0F38, 0xf3, VEX(128, ANY), PREFIX(NONE), REG(1), OPS(By, Ey), FEATURE(BMI1),
        FLAGS(0, FL_S | FL_Z | FL_O | FL_C, FL_A | FL_P), EXEC_Y(blsr)),
    ROW("blsmsk", 0F38, 0xf3, VEX(128, ANY), PREFIX(NONE), REG(2), OPS(By, Ey), FEATURE(BMI1),
        FLAGS(0, FL_S | FL_Z | FL_O | FL_C, FL_A | FL_P), EXEC_Y(blsmsk)),
    ROW("blsi", 0F38, 0xf3, VEX(128, ANY), PREFIX(NONE), REG(3), OPS(By, Ey), FEATURE(BMI1),
        FLAGS(0, FL_S | FL_Z | FL_O | FL_C, FL_A | FL_P), EXEC_Y(blsi)),
    ROW("bzhi", 0F38, 0xf5, VEX(128, ANY), PREFIX(NONE), OPS(Gy, Ey, By), FEATURE(BMI2),
        FLAGS(0, FL_S | FL_Z | FL_O | FL_C, FL_A | FL_P), EXEC_Y(bzhi)),
    ROW("pext", 0F38, 0xf5, VEX(128, ANY), PREFIX(F3), OPS(Gy, By, Ey), FEATURE(BMI2),
        EXEC_Y(pext)),
    ROW("pdep", 0F38, 0xf5, VEX(128, ANY), PREFIX(F2), OPS(Gy, By, Ey), FEATURE(BMI2),
        EXEC_Y(pdep)),
    ROW("mulx", 0F38, 0xf6, VEX(128, ANY), PREFIX(F2), OPS(Gy, By, Ey), FEATURE(BMI2),
        EXEC_Y(mulx)),
    ROW("bextr", 0F38, 0xf7, VEX(128, ANY), PREFIX(NONE), OPS(Gy, Ey, By), FEATURE(BMI1),
        FLAGS(0, FL_Z | FL_O | FL_C, FL_A | FL_P | FL_S), EXEC_Y(bextr)),
    ROW("shlx", 0F38, 0xf7, VEX(128, ANY), PREFIX(66), OPS(Gy, Ey, By), FEATURE(BMI2),
        EXEC_Y(shlx)),
    ROW("sarx", 0F38, 0xf7, VEX(128, ANY), PREFIX(F3), OPS(Gy, Ey, By), FEATURE(BMI2),
        EXEC_Y(sarx)),
    ROW("shrx", 0F38, 0xf7, VEX(128, ANY), PREFIX(F2), OPS(Gy, Ey, By), FEATURE(BMI2),
        EXEC_Y(shrx)),
    ROW("rorx", 0F3A, 0xf0, VEX(128, ANY), PREFIX(F2), OPS(Gy, Ey, Ib), FEATURE(BMI2),
        EXEC_Y(rorx)),

    /* -- branches -- */
    ROW("jmp", 1B, 0xeb, OPS(Jb), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),
        EXEC_BY_WIDE(jmp_j)),
    ROW("jmp", 1B, 0xe9, OPS(Jz), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),
        EXEC_BY_WIDE(jmp_j)),
    ROW("jmp", 1B, 0xff, REG(4), OPS(Ev), PROPS(INSN_BRANCH | INSN_DEFAULT64), EXEC_WIDE(jmp_e)),
    ROW("call", 1B, 0xe8, OPS(Jz), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),
        EXEC_BY_WIDE(call_j)),
    ROW("call", 1B, 0xff, REG(2), OPS(Ev), PROPS(INSN_BRANCH | INSN_DEFAULT64), EXEC_WIDE(call_e)),
    ROW("ret", 1B, 0xc3, NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64), EXEC_BY_WIDE(ret)),
    ROW("ret", 1B, 0xc2, OPS(Iw), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64), EXEC_BY_WIDE(ret)),
    ROW("loopne", 1B, 0xe0, OPS(Jb), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),
        FLAGS(FL_Z, 0, 0), EXEC(loopne)),
    ROW("loope", 1B, 0xe1, OPS(Jb), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64),
        FLAGS(FL_Z, 0, 0), EXEC(loope)),
    ROW("loop", 1B, 0xe2, OPS(Jb), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64), EXEC(loop)),
    ROW("jrcxz", 1B, 0xe3, OPS(Jb), NO_MODRM, PROPS(INSN_BRANCH | INSN_DEFAULT64), EXEC(jrcxz)),

    /* -- the stack -- */
    ROW("push", 1B, 0x50, OPS(Zv), NO_MODRM, PROPS(INSN_DEFAULT64), EXEC_WIDE(push_e)),
    ROW("pop", 1B, 0x58, OPS(Zv), NO_MODRM, PROPS(INSN_DEFAULT64), EXEC_WIDE(pop_e)),
    ROW("push", 1B, 0xff, REG(6), OPS(Ev), PROPS(INSN_DEFAULT64), EXEC_WIDE(push_e)),
    ROW("pop", 1B, 0x8f, REG(0), OPS(Ev), PROPS(INSN_DEFAULT64), EXEC_WIDE(pop_e)),
    ROW("push", 1B, 0x68, OPS(Iz), NO_MODRM, PROPS(INSN_DEFAULT64), EXEC_BY_WIDE(push_i)),
    ROW("push", 1B, 0x6a, OPS(Ibs), NO_MODRM, PROPS(INSN_DEFAULT64), EXEC_BY_WIDE(push_i)),
    ROW("pusha", 1B, 0x60, NO_MODRM, PROPS(INSN_NO64), .exec = {{NULL, pusha_16, pusha_32}}),
    ROW("popa", 1B, 0x61, NO_MODRM, PROPS(INSN_NO64), .exec = {{NULL, popa_16, popa_32}}),
    ROW("enter", 1B, 0xc8, OPS(Iw, Ib), NO_MODRM, PROPS(INSN_DEFAULT64), EXEC(enter)),
    ROW("leave", 1B, 0xc9, NO_MODRM, PROPS(INSN_DEFAULT64), EXEC_BY_WIDE(leave)),

    /* -- strings and ports -- */
    ROW("movsb", 1B, 0xa4, OPS(Yb, Xb), NO_MODRM, PROPS(INSN_REP), EXEC(movs)),
    ROW("movs", 1B, 0xa5, OPS(Yv, Xv), NO_MODRM, PROPS(INSN_REP), EXEC(movs)),
    ROW("cmpsb", 1B, 0xa6, OPS(Xb, Yb), NO_MODRM, PROPS(INSN_REP | ONLY_READ),
        FLAGS(FL_ALL, FL_ALL, 0), EXEC(cmps)),
    ROW("cmps", 1B, 0xa7, OPS(Xv, Yv), NO_MODRM, PROPS(INSN_REP | ONLY_READ),
        FLAGS(FL_ALL, FL_ALL, 0), EXEC(cmps)),
    ROW("stosb", 1B, 0xaa, OPS(Yb, AL), NO_MODRM, PROPS(INSN_REP), EXEC(stos)),
    ROW("stos", 1B, 0xab, OPS(Yv, rAX), NO_MODRM, PROPS(INSN_REP), EXEC(stos)),
    ROW("lodsb", 1B, 0xac, OPS(AL, Xb), NO_MODRM, PROPS(INSN_REP), EXEC(lods)),
    ROW("lods", 1B, 0xad, OPS(rAX, Xv), NO_MODRM, PROPS(INSN_REP), EXEC(lods)),
    ROW("scasb", 1B, 0xae, OPS(AL, Yb), NO_MODRM, PROPS(INSN_REP | ONLY_READ),
        FLAGS(FL_ALL, FL_ALL, 0), EXEC(scas)),
    ROW("scas", 1B, 0xaf, OPS(rAX, Yv), NO_MODRM, PROPS(INSN_REP | ONLY_READ),
        FLAGS(FL_ALL, FL_ALL, 0), EXEC(scas)),

    /* -- flags and the rest -- */
    ROW("cmc", 1B, 0xf5, NO_MODRM, FLAGS(FL_C, FL_C, 0), EXEC(cmc)),
    ROW("clc", 1B, 0xf8, NO_MODRM, FLAGS(0, FL_C, 0), EXEC(clc)),
    ROW("stc", 1B, 0xf9, NO_MODRM, FLAGS(0, FL_C, 0), EXEC(stc)),
    ROW("cld", 1B, 0xfc, NO_MODRM, EXEC(cld)),
    ROW("std", 1B, 0xfd, NO_MODRM, EXEC(std)),
    ROW("bound", 1B, 0x62, MEM_FORM, OPS(Gv, M), PROPS(INSN_NO64),
        .exec = {{NULL}, {NULL, bound_m16, bound_m32}}),
    ROW("ud2", 0F, 0x0b, NO_MODRM, EXEC(ud)),
    /* AMD processors raise #UD before they look for a ModRM byte. */
    ROW("ud1", 0F, 0xb9, NO_MODRM, EXEC(ud)),
    ROW("ud0", 0F, 0xff, NO_MODRM, EXEC(ud)),
    ROW("prefetch", 0F, 0x0d, MEM_FORM, OPS(M), FEATURE(3DNOWPREFETCH), EXEC(nop)),
    ROW("prefetch", 0F, 0x18, OPS(Ev), EXEC(nop)),
    ROW("nop", 0F, 0x19, OPS(Ev), EXEC(nop)),
    ROW("nop", 0F, 0x1a, OPS(Ev), EXEC(nop)),
    ROW("nop", 0F, 0x1b, OPS(Ev), EXEC(nop)),
    ROW("nop", 0F, 0x1c, OPS(Ev), EXEC(nop)),
    ROW("nop", 0F, 0x1d, OPS(Ev), EXEC(nop)),
    ROW("nop", 0F, 0x1e, OPS(Ev), EXEC(nop)), /* ENDBR32, ENDBR64 and RDSSP without CET */
    ROW("nop", 0F, 0x1f, OPS(Ev), EXEC(nop)),
    ROW("rdrand", 0F, 0xc7, REG(6), REG_FORM, OPS(Rv), FEATURE(RDRAND), PROPS(INSN_NO_TEST),
        FLAGS(0, FL_ALL, 0), EXEC(rdrand)),
    ROW("rdseed", 0F, 0xc7, REG(7), REG_FORM, OPS(Rv), FEATURE(RDSEED), PROPS(INSN_NO_TEST),
        FLAGS(0, FL_ALL, 0), EXEC(rdrand)),
};

const struct insn_table insn_table_integer = TABLE_OF(rows);
