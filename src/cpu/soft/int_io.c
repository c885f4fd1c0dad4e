/*
 * IN, OUT, INS, OUTS. A program may touch a port when its CPL is within IOPL, or the task's I/O
 * permission bitmap says so (APM vol. 2, 12.2.4).
 */
#include "cpu/soft/block.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/int.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/repeat.h"
#include "cpu/soft/verify.h"

static bool bitmap_allows(struct soft_cpu *cpu, uint16_t port, unsigned size) {
    uint64_t base, at;
    unsigned type = cpu->tr.attributes & SEG_TYPE;
    if (!(cpu->tr.attributes & SEG_P) || (type != 9 && type != 11) || cpu->tr.limit < 103)
        return false;
    base = system_load(cpu, cpu->tr.base + 102, 2);
    at = base + port / 8;
    if (at + 1 > cpu->tr.limit)
        return false;
    return !(system_load(cpu, cpu->tr.base + at, 2) >> (port & 7) & ((1u << size) - 1));
}

static void check_port(struct soft_cpu *cpu, uint16_t port, unsigned size) {
    bool by_level = cpu->cpl <= (cpu->rflags >> 12 & 3) && !(cpu->rflags & FLAG_VM);
    if (!by_level && !bitmap_allows(cpu, port, size))
        raise_error(cpu, EXC_GP, 0);
}

/* There is no 64-bit port access: REX.W counts as 32. */
static unsigned port_size(const struct insn *insn) {
    return insn->size == 8 ? 4 : insn->size;
}

static uint32_t input(struct soft_cpu *cpu, uint16_t port, unsigned size) {
    verify_once(cpu, cpu->insn);
    cpu->counters.exits++;
    debug_note_port(cpu, port, size);
    return outside_port_read(cpu, port, size);
}

static void output(struct soft_cpu *cpu, uint16_t port, uint32_t value, unsigned size) {
    verify_once(cpu, cpu->insn);
    cpu->counters.exits++;
    debug_note_port(cpu, port, size);
    outside_port_write(cpu, port, value, size);
}

static void in_port(struct soft_cpu *cpu, const struct insn *insn, uint16_t port) {
    unsigned size = port_size(insn);
    cpu->insn = insn;
    check_port(cpu, port, size);
    set_sized(cpu, RAX, input(cpu, port, size), size);
}

static void out_port(struct soft_cpu *cpu, const struct insn *insn, uint16_t port) {
    unsigned size = port_size(insn);
    cpu->insn = insn;
    check_port(cpu, port, size);
    output(cpu, port, (uint32_t)get_sized(cpu, RAX, size), size);
}

/* An access may have reset the machine, raised an interrupt or stopped time: let the loop look. */
void in_i(struct soft_cpu *cpu, const struct insn *insn) {
    in_port(cpu, insn, (uint8_t)insn->imm);
    INSN_END_BLOCK;
}

void in_dx(struct soft_cpu *cpu, const struct insn *insn) {
    in_port(cpu, insn, get16(cpu, RDX));
    INSN_END_BLOCK;
}

void out_i(struct soft_cpu *cpu, const struct insn *insn) {
    out_port(cpu, insn, (uint8_t)insn->imm);
    INSN_END_BLOCK;
}

void out_dx(struct soft_cpu *cpu, const struct insn *insn) {
    out_port(cpu, insn, get16(cpu, RDX));
    INSN_END_BLOCK;
}

/* The destination is tried before the port is read: reading has side effects. */
static void ins_one(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = port_size(insn);
    uint64_t offset = string_offset(cpu, insn, RDI);
    check_port(cpu, get16(cpu, RDX), size);
    rmw_begin(cpu, SEG_ES, offset, size);
    rmw_end(cpu);
    store_sized(cpu, SEG_ES, offset, input(cpu, get16(cpu, RDX), size), size);
    add_address(cpu, RDI, cpu->rflags & FLAG_DF ? -(uint64_t)size : size, insn->address_size);
}

static void outs_one(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = port_size(insn);
    uint64_t value;
    check_port(cpu, get16(cpu, RDX), size);
    value = load_sized(cpu, insn->seg, string_offset(cpu, insn, RSI), size);
    output(cpu, get16(cpu, RDX), (uint32_t)value, size);
    add_address(cpu, RSI, cpu->rflags & FLAG_DF ? -(uint64_t)size : size, insn->address_size);
}

static void repeat_port(struct soft_cpu *cpu, const struct insn *insn,
                        void (*one)(struct soft_cpu *, const struct insn *)) {
    bool repeat = insn->flags & (I_REP | I_REPNE), more = true;
    cpu->insn = insn;
    /* Whether the port may be used is asked even where nothing is to be done. */
    check_port(cpu, get16(cpu, RDX), port_size(insn));
    if (!repeat)
        one(cpu, insn);
    while (repeat && more && string_count(cpu, insn) != 0) {
        one(cpu, insn);
        add_address(cpu, RCX, UINT64_MAX, insn->address_size);
        more = string_may_go_on(cpu, 1);
    }
    if (repeat && string_count(cpu, insn) != 0)
        INSN_JUMP(insn_rip(cpu, insn));
    INSN_END_BLOCK;
}

void ins(struct soft_cpu *cpu, const struct insn *insn) {
    repeat_port(cpu, insn, ins_one);
}

void outs(struct soft_cpu *cpu, const struct insn *insn) {
    repeat_port(cpu, insn, outs_one);
}
