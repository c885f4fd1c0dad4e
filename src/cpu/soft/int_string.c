/*
 * MOVS, STOS, LODS, CMPS, SCAS with REP. APM volume 3, 1.2.6.
 *
 * Registers are brought up to date with each element (or run of elements), so that a fault or an
 * interrupt finds them exact and the instruction simply starts again. Runs (forward only) use the
 * host's memcpy and memset on the pages themselves.
 */
#include "cpu/soft/block.h"
#include "cpu/soft/int.h"
#include "cpu/soft/operand.h"
#include "cpu/soft/repeat.h"

/* Host bytes one run may take at once; requests are looked at between runs. */
enum { RUN_MAX = 16 * 1024 };

/* ---- Single elements ---- */

static void movs_one(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned size = insn->size;
    uint64_t value = load_sized(cpu, insn->seg, string_offset(cpu, insn, RSI), size);
    store_sized(cpu, SEG_ES, string_offset(cpu, insn, RDI), value, size);
    string_advance(cpu, insn, RSI, 1);
    string_advance(cpu, insn, RDI, 1);
}

static void stos_one(struct soft_cpu *cpu, const struct insn *insn) {
    store_sized(cpu, SEG_ES, string_offset(cpu, insn, RDI), cpu->gpr[RAX], insn->size);
    string_advance(cpu, insn, RDI, 1);
}

static void lods_one(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t value = load_sized(cpu, insn->seg, string_offset(cpu, insn, RSI), insn->size);
    set_sized(cpu, RAX, value, insn->size);
    string_advance(cpu, insn, RSI, 1);
}

/* Flags of a - b. */
static void compare(struct soft_cpu *cpu, uint64_t a, uint64_t b, unsigned size) {
    switch (size) {
    case 1: flags_sub8(cpu, (uint8_t)a, (uint8_t)b, (uint8_t)(a - b)); break;
    case 2: flags_sub16(cpu, (uint16_t)a, (uint16_t)b, (uint16_t)(a - b)); break;
    case 4: flags_sub32(cpu, (uint32_t)a, (uint32_t)b, (uint32_t)(a - b)); break;
    default: flags_sub64(cpu, a, b, a - b); break;
    }
}

static uint64_t cmps_load(struct soft_cpu *cpu, const struct insn *insn, unsigned reg) {
    unsigned seg = reg == RSI ? insn->seg : SEG_ES;
    return load_sized(cpu, seg, string_offset(cpu, insn, reg), insn->size);
}

/* Which of two faults is reported: AMD processors read ES:rDI first, but REPE CMPSB DS:rSI. */
static void cmps_one(struct soft_cpu *cpu, const struct insn *insn) {
    unsigned first = insn->size == 1 && insn->flags & I_REP ? RSI : RDI;
    uint64_t a = cmps_load(cpu, insn, first);
    uint64_t b = cmps_load(cpu, insn, first ^ RSI ^ RDI);
    compare(cpu, first == RSI ? a : b, first == RSI ? b : a, insn->size);
    string_advance(cpu, insn, RSI, 1);
    string_advance(cpu, insn, RDI, 1);
}

static void scas_one(struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t b = load_sized(cpu, SEG_ES, string_offset(cpu, insn, RDI), insn->size);
    compare(cpu, cpu->gpr[RAX], b, insn->size);
    string_advance(cpu, insn, RDI, 1);
}

/* ---- Runs ---- */

static bool forward(const struct soft_cpu *cpu) {
    return !(cpu->rflags & FLAG_DF);
}

/* Bytes that a run may have at most: the count's, and not past the address size's end. */
static size_t run_limit(const struct soft_cpu *cpu, const struct insn *insn, unsigned reg) {
    uint64_t count = string_count(cpu, insn), mask = string_mask(insn), offset = cpu->gpr[reg];
    uint64_t limit = count < RUN_MAX / insn->size ? count * insn->size : RUN_MAX;
    uint64_t room = mask - (offset & mask);
    return room < limit ? room : limit;
}

/*
 * Copies forward element by element as the instruction would: where the destination begins inside
 * the source, the bytes copied first are copied again.
 */
static void copy_forward(uint8_t *to, const uint8_t *from, size_t length) {
    size_t distance = (size_t)(to - from);
    if (to <= from || distance >= length) {
        memmove(to, from, length);
        return;
    }
    while (length != 0) {
        size_t part = length < distance ? length : distance;
        memcpy(to, from, part);
        to += part;
        from += part;
        length -= part;
    }
}

/* Both answer how many elements were done at once; 0: go by one. */
static uint64_t movs_run(struct soft_cpu *cpu, const struct insn *insn) {
    size_t from_length = run_limit(cpu, insn, RSI), to_length = run_limit(cpu, insn, RDI);
    size_t length, distance;
    const uint8_t *from;
    uint8_t *to;
    if (!forward(cpu) || from_length < 32 || to_length < 32)
        return 0;
    from = access_run(cpu, TLB_READ, insn->seg, string_offset(cpu, insn, RSI), &from_length);
    to = access_run(cpu, TLB_WRITE, SEG_ES, string_offset(cpu, insn, RDI), &to_length);
    if (from == NULL || to == NULL)
        return 0;
    length = from_length < to_length ? from_length : to_length;
    length -= length % insn->size;
    distance = (size_t)(to - from);
    if (length == 0 || (distance > 0 && distance < insn->size))
        return 0; /* no whole element, or elements overlap themselves */
    copy_forward(to, from, length);
    access_run_written(cpu, length);
    string_advance(cpu, insn, RSI, length / insn->size);
    string_advance(cpu, insn, RDI, length / insn->size);
    return length / insn->size;
}

static void fill(uint8_t *to, uint64_t value, size_t length, unsigned size) {
    if (size == 1) {
        memset(to, (uint8_t)value, length);
        return;
    }
    for (size_t i = 0; i < length; i += size)
        memcpy(to + i, &value, size);
}

static uint64_t stos_run(struct soft_cpu *cpu, const struct insn *insn) {
    size_t length = run_limit(cpu, insn, RDI);
    uint8_t *to;
    if (!forward(cpu) || length < 32)
        return 0;
    to = access_run(cpu, TLB_WRITE, SEG_ES, string_offset(cpu, insn, RDI), &length);
    length -= length % insn->size;
    if (to == NULL || length == 0)
        return 0;
    if (cpu->gpr[RAX] == 0)
        memset(to, 0, length);
    else
        fill(to, cpu->gpr[RAX], length, insn->size);
    access_run_written(cpu, length);
    string_advance(cpu, insn, RDI, length / insn->size);
    return length / insn->size;
}

/* ---- The instructions ---- */

/*
 * Leaves the block to start again when the run loop has something to do. The condition of REPE and
 * REPNE ends the loop as the exhausted count does.
 */
#define REPEAT(one, run, more)                                                                     \
    do {                                                                                           \
        cpu->insn = insn;                                                                          \
        if (!(insn->flags & (I_REP | I_REPNE))) {                                                  \
            one(cpu, insn);                                                                        \
            INSN_NEXT;                                                                             \
        }                                                                                          \
        while (string_count(cpu, insn) != 0) {                                                     \
            uint64_t done = cpu->rflags & FLAG_TF ? 0 : (run);                                     \
            if (done == 0) {                                                                       \
                one(cpu, insn);                                                                    \
                done = 1;                                                                          \
            }                                                                                      \
            add_address(cpu, RCX, -done, insn->address_size);                                      \
            if (!(more))                                                                           \
                break;                                                                             \
            if (unlikely(!string_may_go_on(cpu, 1 + (unsigned)done / 8)) &&                        \
                string_count(cpu, insn) != 0)                                                      \
                INSN_JUMP(insn_rip(cpu, insn));                                                    \
        }                                                                                          \
        INSN_NEXT;                                                                                 \
    } while (0)

/* REPE (F3) goes on while ZF, REPNE (F2) while not. */
static bool condition_holds(const struct soft_cpu *cpu, const struct insn *insn) {
    return flag_zf(cpu) == !!(insn->flags & I_REP);
}

void movs(struct soft_cpu *cpu, const struct insn *insn) {
    REPEAT(movs_one, movs_run(cpu, insn), true);
}

void stos(struct soft_cpu *cpu, const struct insn *insn) {
    REPEAT(stos_one, stos_run(cpu, insn), true);
}

void lods(struct soft_cpu *cpu, const struct insn *insn) {
    REPEAT(lods_one, 0, true);
}

void cmps(struct soft_cpu *cpu, const struct insn *insn) {
    REPEAT(cmps_one, 0, condition_holds(cpu, insn));
}

void scas(struct soft_cpu *cpu, const struct insn *insn) {
    REPEAT(scas_one, 0, condition_holds(cpu, insn));
}
