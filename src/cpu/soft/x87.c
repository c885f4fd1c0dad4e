/*
 * x87 instructions: operands, stack, status, environment. Arithmetic is
 * x87_host_run's.
 *
 * Sources: APM vol. 1, chapter 6; vol. 5. An exception that is not masked
 * leaves FSW.ES set; the next waiting instruction raises #MF.
 */
#include "cpu/soft/x87.h"
#include "base/bytes.h"
#include "cpu/soft/vec.h"
#include "cpu/soft/verify.h"

#define X87_BEGIN BEGIN_(x87_off, INSN_X87)
/* Control instructions that do not wait for a pending exception. */
#define X87_BEGIN_NO_WAIT                                                                          \
    cpu->insn = insn;                                                                              \
    if (unlikely(cpu->cr0 & (CR0_EM | CR0_TS)))                                                    \
    raise_exception(cpu, EXC_NM)

enum { FSW_NO_STORE = 0x19 }; /* IE, OE, UE: unmasked, they keep a store from happening */

/* ---- Running on the host ---- */

/* Where the last non-control instruction was, and its operand. */
static void note_pointers(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->fip = insn_rip(cpu, insn);
    cpu->fcs = cpu->segment[SEG_CS].selector;
    cpu->fop = (uint16_t)((insn->opcode & 7) << 8 | insn->modrm);
    if (insn->flags & I_MEMORY) {
        cpu->fdp = insn_offset(cpu, insn);
        cpu->fds = cpu->segment[insn->seg].selector;
    }
}

static uint8_t run(struct soft_cpu *cpu, const struct insn *insn, void *operand) {
    struct x87_image image;
    uint8_t flags;
    x87_put_image(cpu, &image);
    flags = x87_host_run(&image, insn->opcode, insn->modrm, operand, (uint8_t)flags_get(cpu));
    x87_get_image(cpu, &image);
    note_pointers(cpu, insn);
    return flags;
}

/* ---- Handlers of whole classes ---- */

/* Anything on registers but what follows. */
HANDLER(x87_register) {
    X87_BEGIN;
    run(cpu, insn, NULL);
    INSN_NEXT;
}

/* FCOMI and its like: RFLAGS change even with an invalid operand that is not masked. */
HANDLER(x87_compare_flags) {
    X87_BEGIN;
    flags_set_status(cpu, run(cpu, insn, NULL) & (FLAG_ZF | FLAG_PF | FLAG_CF));
    INSN_NEXT;
}

/* The operand is read. */
#define X87_LOAD(name, size)                                                                       \
    HANDLER(name) {                                                                                \
        uint8_t operand[size];                                                                     \
        X87_BEGIN;                                                                                 \
        access_read(cpu, insn->seg, insn_offset(cpu, insn), operand, size);                        \
        run(cpu, insn, operand);                                                                   \
        INSN_NEXT;                                                                                 \
    }
X87_LOAD(x87_load16, 2)
X87_LOAD(x87_load32, 4)
X87_LOAD(x87_load64, 8)

/* Eight bytes and two, which shows where canonical addresses end. */
HANDLER(x87_load80) {
    uint8_t operand[10];
    X87_BEGIN;
    access_read(cpu, insn->seg, insn_offset(cpu, insn), operand, 8);
    access_read(cpu, insn->seg, wrap_offset(insn, insn_offset(cpu, insn) + 8), operand + 8, 2);
    run(cpu, insn, operand);
    INSN_NEXT;
}

/* Faults that writing would raise. */
static void probe_write(struct soft_cpu *cpu, const struct insn *insn, uint64_t offset,
                        unsigned size) {
    rmw_begin(cpu, insn->seg, offset, size < 8 ? size : 8);
    rmw_end(cpu);
    if (size > 8)
        probe_write(cpu, insn, offset + 8, size - 8);
}

/* The operand is written; the state changes when that has succeeded. */
static void run_store(struct soft_cpu *cpu, const struct insn *insn, unsigned size) {
    struct x87_image image;
    uint8_t operand[10];
    x87_put_image(cpu, &image);
    x87_host_run(&image, insn->opcode, insn->modrm, operand, 0);
    bool stores = !(image.status & ~cpu->fcw & FSW_NO_STORE);
    if (!stores || size == 10)
        probe_write(cpu, insn, insn_offset(cpu, insn), size);
    if (stores)
        access_write(cpu, insn->seg, insn_offset(cpu, insn), operand, size);
    x87_get_image(cpu, &image);
    note_pointers(cpu, insn);
}

#define X87_STORE(name, size)                                                                      \
    HANDLER(name) {                                                                                \
        X87_BEGIN;                                                                                 \
        run_store(cpu, insn, size);                                                                \
        INSN_NEXT;                                                                                 \
    }
X87_STORE(x87_store16, 2)
X87_STORE(x87_store32, 4)
X87_STORE(x87_store64, 8)
X87_STORE(x87_store80, 10)

/* ---- Control ---- */

HANDLER(x87_fwait) {
    cpu->insn = insn;
    if ((cpu->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        raise_exception(cpu, EXC_NM);
    if (cpu->fsw & FSW_ES)
        raise_exception(cpu, EXC_MF);
    INSN_NEXT;
}

HANDLER(x87_fldcw) {
    X87_BEGIN;
    cpu->fcw = x87_control(load16(cpu, insn->seg, insn_offset(cpu, insn)));
    x87_update_pending(cpu);
    INSN_NEXT;
}

HANDLER(x87_fnstcw) {
    X87_BEGIN_NO_WAIT;
    store16(cpu, insn->seg, insn_offset(cpu, insn), cpu->fcw);
    INSN_NEXT;
}

HANDLER(x87_fnstsw) {
    X87_BEGIN_NO_WAIT;
    store16(cpu, insn->seg, insn_offset(cpu, insn), cpu->fsw);
    INSN_NEXT;
}

HANDLER(x87_fnstsw_ax) {
    X87_BEGIN_NO_WAIT;
    cpu->gpr[RAX] = (cpu->gpr[RAX] & ~UINT64_C(0xffff)) | cpu->fsw;
    INSN_NEXT;
}

HANDLER(x87_fnclex) {
    X87_BEGIN_NO_WAIT;
    cpu->fsw &= 0x7f00;
    INSN_NEXT;
}

static void initialise(struct soft_cpu *cpu) {
    cpu->fcw = 0x37f;
    cpu->fsw = 0;
    cpu->ftw = 0;
    cpu->fop = cpu->fcs = cpu->fds = 0;
    cpu->fip = cpu->fdp = 0;
}

HANDLER(x87_fninit) {
    X87_BEGIN_NO_WAIT;
    initialise(cpu);
    INSN_NEXT;
}

/* FNENI, FNDISI, FNSETPM of old coprocessors. */
HANDLER(x87_fnop_no_wait) {
    X87_BEGIN_NO_WAIT;
    INSN_NEXT;
}

/* ---- Environment: 7 fields of 16 or 32 bits ---- */

enum { ENV_CONTROL, ENV_STATUS, ENV_TAG, ENV_IP, ENV_CS, ENV_DP, ENV_DS, ENV_FIELDS };

/* 0 valid, 1 zero, 2 special, 3 empty. */
static unsigned tag_of(const struct soft_cpu *cpu, unsigned i) {
    const struct x86_x87 *r = &cpu->x87[i];
    unsigned exponent = r->sign_exponent & 0x7fff;
    if (!(cpu->ftw >> i & 1))
        return 3;
    if (exponent == 0 && r->significand == 0)
        return 1;
    return exponent == 0 || exponent == 0x7fff || !(r->significand >> 63) ? 2 : 0;
}

static bool real_format(const struct soft_cpu *cpu) {
    return !(cpu->cr0 & CR0_PE) || (cpu->rflags & FLAG_VM);
}

static void put_environment(const struct soft_cpu *cpu, uint32_t field[ENV_FIELDS]) {
    uint32_t ip = (uint32_t)cpu->fip, dp = (uint32_t)cpu->fdp;
    field[ENV_CONTROL] = cpu->fcw | 0xffff0000;
    field[ENV_STATUS] = cpu->fsw | 0xffff0000;
    field[ENV_TAG] = 0xffff0000;
    EACH(8, field[ENV_TAG] |= tag_of(cpu, i) << 2 * i)
    if (real_format(cpu)) {
        ip += (uint32_t)cpu->fcs << 4;
        dp += (uint32_t)cpu->fds << 4;
        field[ENV_IP] = ip | 0xffff0000;
        field[ENV_CS] = (ip >> 16 << 12) | cpu->fop;
        field[ENV_DP] = dp | 0xffff0000;
        field[ENV_DS] = dp >> 16 << 12;
        return;
    }
    field[ENV_IP] = ip;
    field[ENV_CS] = cpu->fcs | (uint32_t)cpu->fop << 16;
    field[ENV_DP] = dp;
    field[ENV_DS] = cpu->fds | 0xffff0000;
}

static void get_environment(struct soft_cpu *cpu, const uint32_t field[ENV_FIELDS]) {
    cpu->fcw = x87_control((uint16_t)field[ENV_CONTROL]);
    cpu->fsw = (uint16_t)field[ENV_STATUS];
    cpu->ftw = 0;
    EACH(8, cpu->ftw |= (field[ENV_TAG] >> 2 * i & 3) != 3 ? 1 << i : 0)
    x87_update_pending(cpu);
    if (real_format(cpu)) {
        cpu->fip = (field[ENV_IP] & 0xffff) | (field[ENV_CS] >> 12 << 16);
        cpu->fdp = (field[ENV_DP] & 0xffff) | (field[ENV_DS] >> 12 << 16);
        cpu->fop = field[ENV_CS] & 0x7ff;
        cpu->fcs = cpu->fds = 0;
        return;
    }
    cpu->fip = field[ENV_IP];
    cpu->fcs = (uint16_t)field[ENV_CS];
    cpu->fop = field[ENV_CS] >> 16 & 0x7ff;
    cpu->fdp = field[ENV_DP];
    cpu->fds = (uint16_t)field[ENV_DS];
}

/* Images are accessed field by field, which decides their alignment checks; the last byte is tried
 * after the first field, so that an image is written as a whole or not at all. */
static void write_image(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *image,
                        unsigned length) {
    uint64_t offset = insn_offset(cpu, insn);
    unsigned width = insn->size == 2 ? 2 : 4;
    probe_write(cpu, insn, offset, width);
    probe_write(cpu, insn, offset + length - 1, 1);
    for (unsigned at = 0; at < length; at += width)
        access_write(cpu, insn->seg, offset + at, image + at, width);
}

static void read_image(struct soft_cpu *cpu, const struct insn *insn, uint8_t *image,
                       unsigned length) {
    uint64_t offset = insn_offset(cpu, insn);
    unsigned width = insn->size == 2 ? 2 : 4;
    access_read(cpu, insn->seg, offset, image, width);
    access_read(cpu, insn->seg, offset + length - 1, image + length - 1, 1);
    for (unsigned at = 0; at < length; at += width)
        access_read(cpu, insn->seg, offset + at, image + at, width);
}

/* Returns the image's length. */
static unsigned environment_bytes(const struct soft_cpu *cpu, const struct insn *insn,
                                  uint8_t *image) {
    uint32_t field[ENV_FIELDS];
    unsigned width = insn->size == 2 ? 2 : 4;
    put_environment(cpu, field);
    EACH(ENV_FIELDS, store_le(image + i * width, field[i], width))
    return ENV_FIELDS * width;
}

static void environment_from(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *image) {
    uint32_t field[ENV_FIELDS];
    unsigned width = insn->size == 2 ? 2 : 4;
    EACH(ENV_FIELDS, field[i] = (uint32_t)load_le(image + i * width, width))
    if (width == 2 && !real_format(cpu)) /* has no opcode */
        field[ENV_CS] &= 0xffff;
    get_environment(cpu, field);
}

static unsigned environment_size(const struct insn *insn) {
    return ENV_FIELDS * (insn->size == 2 ? 2 : 4);
}

HANDLER(x87_fnstenv) {
    uint8_t image[28];
    X87_BEGIN_NO_WAIT;
    verify_once(cpu, insn); /* translated code does not note pointers */
    write_image(cpu, insn, image, environment_bytes(cpu, insn, image));
    cpu->fcw |= 0x3f;
    x87_update_pending(cpu);
    INSN_NEXT;
}

HANDLER(x87_fldenv) {
    uint8_t image[28];
    X87_BEGIN;
    read_image(cpu, insn, image, environment_size(insn));
    environment_from(cpu, insn, image);
    INSN_NEXT;
}

/* ---- The whole state ---- */

HANDLER(x87_fnsave) {
    uint8_t image[28 + 80];
    unsigned length, top = x87_top(cpu);
    X87_BEGIN_NO_WAIT;
    verify_once(cpu, insn);
    length = environment_bytes(cpu, insn, image);
    EACH(8, memcpy(image + length + 10 * i, &cpu->x87[(top + i) & 7], 10))
    write_image(cpu, insn, image, length + 80);
    initialise(cpu);
    INSN_NEXT;
}

HANDLER(x87_frstor) {
    uint8_t image[28 + 80];
    unsigned at = environment_size(insn), top;
    X87_BEGIN;
    read_image(cpu, insn, image, at + 80);
    environment_from(cpu, insn, image);
    top = x87_top(cpu);
    EACH(8, memcpy(&cpu->x87[(top + i) & 7], image + at + 10 * i, 10))
    INSN_NEXT;
}
