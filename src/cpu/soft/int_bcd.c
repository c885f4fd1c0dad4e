/* Decimal adjustment (outside 64-bit mode): DAA, DAS, AAA, AAS, AAM, AAD. APM volume 3. */
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"

enum { AH = 20 };

static void flags_decimal(struct soft_cpu *cpu, uint8_t result, bool cf, bool af) {
    flags_logic8(cpu, result);
    cpu->flags.carries = af ? FLAGS_AF : 0;
    flags_set_cf_of(cpu, cf, false);
}

static void decimal_adjust(struct soft_cpu *cpu, int sign) {
    uint8_t al = get8(cpu, RAX), result = al;
    bool af = flag_af(cpu) || (al & 15) > 9, cf = flag_cf(cpu) || al > 0x99;
    bool borrow = flag_cf(cpu) || (sign < 0 && af && al < 6);
    if (af)
        result = (uint8_t)(result + sign * 6);
    if (cf)
        result = (uint8_t)(result + sign * 0x60);
    set8(cpu, RAX, result);
    flags_decimal(cpu, result, cf || (sign < 0 && borrow), af);
}

void daa(struct soft_cpu *cpu, const struct insn *insn) {
    decimal_adjust(cpu, 1);
    INSN_NEXT;
}

void das(struct soft_cpu *cpu, const struct insn *insn) {
    decimal_adjust(cpu, -1);
    INSN_NEXT;
}

static void ascii_adjust(struct soft_cpu *cpu, int sign) {
    uint16_t ax = get16(cpu, RAX);
    bool adjust = flag_af(cpu) || (ax & 15) > 9;
    if (adjust)
        ax = (uint16_t)(ax + sign * 0x106);
    set16(cpu, RAX, ax & 0xff0f);
    flags_decimal(cpu, (uint8_t)(ax & 15), adjust, adjust);
}

void aaa(struct soft_cpu *cpu, const struct insn *insn) {
    ascii_adjust(cpu, 1);
    INSN_NEXT;
}

void aas(struct soft_cpu *cpu, const struct insn *insn) {
    ascii_adjust(cpu, -1);
    INSN_NEXT;
}

void aam(struct soft_cpu *cpu, const struct insn *insn) {
    uint8_t al = get8(cpu, RAX), base = (uint8_t)insn->imm;
    cpu->insn = insn;
    if (base == 0)
        raise_exception(cpu, EXC_DE);
    set8(cpu, AH, al / base);
    set8(cpu, RAX, al % base);
    flags_logic8(cpu, al % base);
    INSN_NEXT;
}

void aad(struct soft_cpu *cpu, const struct insn *insn) {
    uint8_t result = (uint8_t)(get8(cpu, RAX) + get8(cpu, AH) * (uint8_t)insn->imm);
    set16(cpu, RAX, result);
    flags_logic8(cpu, result);
    INSN_NEXT;
}
