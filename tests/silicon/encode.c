/*
 * Table rows to bytes. What a row leaves open (prefixes, registers, the form
 * of the memory operand, immediates) is drawn at random; registers of a memory
 * operand are then given the values that make it name encoder->target.
 *
 * Encoding as APM vol. 3, chapter 1. A few combinations are wrong on purpose
 * (LOCK where it is not allowed, VEX.vvvv not 1111b): their #UD is compared too.
 */
#include <string.h>

#include "base/bytes.h"
#include "silicon.h"

struct builder {
    struct encoder *e;
    struct random *random;
    const struct insn_row *row;
    bool mode32;
    uint8_t bytes[32];
    unsigned length;
    /* what the prefixes say */
    uint8_t legacy[6];
    unsigned legacy_count;
    bool operand_override, address_override;
    int seg; /* override, -1: none */
    bool w, l;
    unsigned reg, rm, index, vvvv; /* four bits each; rm is the base register in memory forms */
    bool memory;
    uint8_t modrm, sib;
    bool has_sib;
    int64_t disp;
    unsigned disp_size;
    bool rip_relative;
};

static const uint8_t segment_prefix[6] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};

static void put(struct builder *b, uint64_t value, unsigned size) {
    store_le(b->bytes + b->length, value, size);
    b->length += size;
}

bool row_has_operand(const struct insn_row *row, unsigned first, unsigned last) {
    for (unsigned i = 0; i < 4; i++) {
        if (row->operand[i] >= first && row->operand[i] <= last)
            return true;
    }
    return false;
}

static bool has(const struct insn_row *row, unsigned operand) {
    return row_has_operand(row, operand, operand);
}

static bool uses_vvvv(const struct insn_row *row) {
    return row_has_operand(row, OPERAND_Hx, OPERAND_Hsd) || has(row, OPERAND_By);
}

static bool is_string(const struct insn_row *row) {
    return row_has_operand(row, OPERAND_Xb, OPERAND_Yv);
}

bool row_has_memory(const struct insn_row *row) {
    if (row->form == FORM_NO_MODRM || row->form == FORM_REG)
        return is_string(row) || has(row, OPERAND_Ob) || has(row, OPERAND_Ov);
    for (unsigned i = 0; i < 4; i++) {
        if (row->exec[1][i] != NULL)
            return true;
    }
    return false;
}

static bool sized_by_prefix(const struct insn_row *row) {
    static const uint8_t operands[] = {OPERAND_Ev, OPERAND_Mv, OPERAND_Mp, OPERAND_Rv,
                                       OPERAND_Gv, OPERAND_Iz, OPERAND_Iv, OPERAND_Jz,
                                       OPERAND_Ap, OPERAND_Ov, OPERAND_Zv, OPERAND_rAX,
                                       OPERAND_Xv, OPERAND_Yv, OPERAND_Fv, OPERAND_Ibs};
    for (unsigned i = 0; i < ARRAY_SIZE(operands); i++) {
        if (has(row, operands[i]))
            return true;
    }
    return false;
}

/* ---- Prefixes ---- */

static void add_legacy(struct builder *b, uint8_t prefix) {
    unsigned at = random_below(b->random, b->legacy_count + 1);
    memmove(b->legacy + at + 1, b->legacy + at, b->legacy_count - at);
    b->legacy[at] = prefix;
    b->legacy_count++;
}

static void choose_operand_size(struct builder *b) {
    const struct insn_row *row = b->row;
    b->w = row->vw == VW_1 || (row->vw == VW_ANY && random_once_in(b->random, 3));
    if (b->mode32 && row->encoding == ENC_LEGACY)
        b->w = false;
    if (row->encoding == ENC_VEX || row->prefix == PFX_NONE)
        return;
    b->operand_override =
        row->prefix == PFX_66 || random_once_in(b->random, sized_by_prefix(row) ? 4 : 32);
    if (b->operand_override)
        add_legacy(b, 0x66);
}

static void choose_repeat(struct builder *b) {
    const struct insn_row *row = b->row;
    if (row->encoding == ENC_VEX)
        return;
    bool repeats = row->properties & INSN_REP;
    /* With F2 or F3, LOOPE and LOOPNE take their condition from the prefix on AMD processors; the
     * manual reserves the combination (APM vol. 3, 1.2.6). */
    if (strncmp(row->name, "loop", 4) == 0)
        return;
    if (row->prefix == PFX_F2 || row->prefix == PFX_F3)
        add_legacy(b, row->prefix == PFX_F2 ? 0xf2 : 0xf3);
    else if (row->prefix == PFX_ANY &&
             (repeats ? !random_once_in(b->random, 3) : random_once_in(b->random, 64)))
        add_legacy(b, random_once_in(b->random, 2) ? 0xf2 : 0xf3);
}

static void choose_segment(struct builder *b) {
    b->seg = -1;
    if (b->e->fixed || b->e->based || !random_once_in(b->random, 16))
        return;
    b->seg = (int)random_below(b->random, 6);
    add_legacy(b, segment_prefix[b->seg]);
}

static void choose_prefixes(struct builder *b) {
    bool lockable = (b->row->properties & INSN_LOCK) && b->memory;
    choose_operand_size(b);
    choose_repeat(b);
    if (!b->e->fixed && !b->e->based && random_once_in(b->random, b->mode32 ? 64 : 16)) {
        b->address_override = true;
        add_legacy(b, 0x67);
    }
    choose_segment(b);
    if (random_once_in(b->random, lockable ? 6 : 512))
        add_legacy(b, 0xf0);
}

/* ---- Registers and the memory operand ---- */

static unsigned any_register(struct builder *b) {
    return random_below(b->random, b->mode32 ? 8 : 16);
}

static bool may_write(const struct builder *b, unsigned n) {
    return !(b->e->keep >> n & 1);
}

/* Registers that the caller wants kept are not written: a first operand often is, and the second
 * of those that write two. */
static bool keeps_registers(const struct builder *b) {
    const struct insn_row *row = b->row;
    bool two = strcmp(row->name, "xchg") == 0 || strcmp(row->name, "xadd") == 0 ||
               strcmp(row->name, "mulx") == 0;
    for (unsigned i = 0; i < (two ? 2 : 1); i++) {
        unsigned operand = row->operand[i];
        if ((operand >= OPERAND_Gb && operand <= OPERAND_Gy && !may_write(b, b->reg)) ||
            (operand == OPERAND_By && !may_write(b, b->vvvv)))
            return false;
        bool rm = (operand >= OPERAND_Eb && operand <= OPERAND_Ey) || operand == OPERAND_Rv ||
                  operand == OPERAND_Ry || operand == OPERAND_Zb || operand == OPERAND_Zv;
        if (rm && !b->memory && !may_write(b, b->rm))
            return false;
    }
    return true;
}

static void choose_registers(struct builder *b) {
    const struct insn_row *row = b->row;
    b->reg = row->reg >= 0 ? (unsigned)row->reg : any_register(b);
    b->rm = row->rm >= 0 ? (unsigned)row->rm : any_register(b);
    b->vvvv = uses_vvvv(row) ? any_register(b) : 0;
    if (row->encoding == ENC_VEX && random_once_in(b->random, 512))
        b->vvvv = any_register(b);
    b->l = row->vl == VL_256 || (row->vl == VL_ANY && random_once_in(b->random, 2));
    b->memory = row->form == FORM_MEM ||
                (row->form == FORM_ANY && !random_once_in(b->random, row_has_memory(row) ? 2 : 1));
    if (row->form == FORM_ANY && !row_has_memory(row) && random_once_in(b->random, 64))
        b->memory = true;
}

static uint64_t segment_base(const struct builder *b) {
    if (b->mode32)
        return 0;
    if (b->seg == SEG_FS)
        return b->e->test->state.fs_base;
    return b->seg == SEG_GS ? b->e->test->state.gs_base : 0;
}

/* Offsets of 32-bit addressing leave the registers' upper halves to chance. */
static void set_register(struct builder *b, unsigned n, uint64_t value) {
    if (b->mode32)
        value = (uint32_t)value;
    else if (b->address_override)
        value = (uint32_t)value | (random_next(b->random) << 32);
    b->e->test->state.gpr[n] = value;
    b->e->used |= UINT64_C(1) << n;
}

static void choose_displacement(struct builder *b) {
    switch (random_below(b->random, 3)) {
    case 0: b->disp_size = 0; break;
    case 1: b->disp_size = 1; break;
    default: b->disp_size = 4; break;
    }
    b->disp = b->disp_size == 0   ? 0
              : b->disp_size == 1 ? (int8_t)random_next(b->random)
                                  : (int32_t)random_integer(b->random);
}

/* Base, index and scale whose sum is offset - disp. */
static void solve(struct builder *b, uint64_t offset, bool has_index, unsigned scale) {
    uint64_t rest = offset - (uint64_t)b->disp;
    if (!has_index) {
        set_register(b, b->rm, rest);
    } else if (b->index == b->rm) {
        uint64_t factor = (UINT64_C(1) << scale) + 1;
        set_register(b, b->rm, rest / factor);
        b->disp += (int64_t)(rest % factor);
        if (b->disp_size == 0 || (int8_t)b->disp != b->disp)
            b->disp_size = 4;
    } else {
        uint64_t index =
            random_once_in(b->random, 4) ? random_integer(b->random) : random_below(b->random, 64);
        set_register(b, b->index, index);
        set_register(b, b->rm, rest - (index << scale));
    }
}

static void memory_by_base(struct builder *b, uint64_t offset) {
    bool has_index = random_once_in(b->random, 2);
    unsigned scale = random_below(b->random, 4);
    b->rm = any_register(b);
    do
        b->index = any_register(b);
    while (b->index == RSP);
    b->has_sib = has_index || (b->rm & 7) == RSP || random_once_in(b->random, 4);
    choose_displacement(b);
    solve(b, offset, has_index, scale);
    if (!has_index)
        b->index = RSP;
    if (b->disp_size == 0 && (b->rm & 7) == RBP)
        b->disp_size = 1; /* of 0: mod 0 has no RBP and no R13 */
    b->sib = (uint8_t)(scale << 6 | (b->index & 7) << 3 | (b->rm & 7));
    b->modrm = (uint8_t)((b->disp_size == 0   ? 0
                          : b->disp_size == 1 ? 0x40
                                              : 0x80) |
                         (b->has_sib ? 4 : b->rm & 7));
    if (!b->has_sib)
        b->index = 0;
}

/* disp32 alone; in 64-bit mode relative to RIP, or absolute by way of an empty SIB byte. */
static void memory_by_displacement(struct builder *b, uint64_t offset) {
    b->rm = RBP;
    b->disp_size = 4;
    b->disp = (int64_t)offset;
    b->has_sib = !b->mode32 && random_once_in(b->random, 2);
    b->sib = RSP << 3 | RBP;
    b->modrm = b->has_sib ? 4 : 5;
    b->index = b->has_sib ? RSP : 0;
    b->rip_relative = !b->mode32 && !b->has_sib;
}

/* disp32 and a scaled index. */
static void memory_by_index(struct builder *b, uint64_t offset) {
    unsigned scale = random_below(b->random, 4);
    do
        b->index = any_register(b);
    while (b->index == RSP);
    b->rm = RBP;
    b->has_sib = true;
    b->disp_size = 4;
    uint64_t index = (offset >> scale) - random_below(b->random, 4096);
    b->disp = (int32_t)(offset - (index << scale));
    set_register(b, b->index, index);
    b->sib = (uint8_t)(scale << 6 | (b->index & 7) << 3 | RBP);
    b->modrm = 4;
}

/* 16-bit addressing reaches nothing that is mapped; faults are compared. */
static void memory_16(struct builder *b) {
    unsigned mod = random_below(b->random, 3), rm = random_below(b->random, 8);
    b->rm = rm;
    b->modrm = (uint8_t)(mod << 6 | rm);
    b->disp = (int16_t)random_next(b->random);
    b->disp_size = mod == 0 ? (rm == 6 ? 2 : 0) : mod;
}

/*
 * Gathers: lanes of 32-bit or 64-bit indexes near 0 from a base at the target;
 * the index register is not known to be wide or narrow, so 64-bit lanes serve
 * both (their upper halves are small 32-bit indexes too).
 */
static void memory_vsib(struct builder *b, uint64_t offset) {
    unsigned scale = random_below(b->random, 4);
    bool wild = random_once_in(b->random, 16), narrow = random_once_in(b->random, 2);
    b->index = any_register(b);
    b->rm = any_register(b);
    b->has_sib = true;
    b->disp_size = (b->rm & 7) == RBP ? 1 : 0;
    set_register(b, b->rm, offset);
    b->sib = (uint8_t)(scale << 6 | (b->index & 7) << 3 | (b->rm & 7));
    b->modrm = b->disp_size == 0 ? 0x04 : 0x44;
    uint8_t *lanes = b->e->test->state.fp.ymm[b->index];
    for (unsigned i = 0; i < 8; i++) {
        int32_t index = (int32_t)random_below(b->random, wild ? 8192 : 128) - (wild ? 4096 : 64);
        if (narrow)
            store_le32(lanes + 4 * i, (uint32_t)index);
        else if (i % 2 == 0)
            store_le64(lanes + 4 * i, (uint64_t)(int64_t)index);
    }
}

/* [base + index * 2^scale + disp] as the caller says. */
static void memory_based(struct builder *b) {
    const struct encoder *e = b->e;
    bool short_disp = (int8_t)e->disp == e->disp && !random_once_in(b->random, 4);
    b->rm = e->base;
    b->index = e->index;
    b->has_sib = e->index != RSP || (e->base & 7) == RSP;
    b->disp = e->disp;
    b->disp_size = short_disp ? 1 : 4;
    if (e->disp == 0 && (e->base & 7) != RBP && !random_once_in(b->random, 4))
        b->disp_size = 0;
    b->sib = (uint8_t)(e->scale << 6 | (b->index & 7) << 3 | (b->rm & 7));
    b->modrm = (uint8_t)((b->disp_size == 0   ? 0
                          : b->disp_size == 1 ? 0x40
                                              : 0x80) |
                         (b->has_sib ? 4 : b->rm & 7));
    if (!b->has_sib)
        b->index = 0;
}

static void choose_memory(struct builder *b) {
    if (b->e->based) {
        memory_based(b);
        return;
    }
    uint64_t offset = b->e->target - segment_base(b);
    bool low = offset <= INT32_MAX;
    if (b->mode32 && b->address_override) {
        memory_16(b);
    } else if (has(b->row, OPERAND_VSIB)) {
        memory_vsib(b, offset);
    } else if (b->e->fixed || (low && random_once_in(b->random, 6))) {
        memory_by_displacement(b, offset);
    } else if (low && random_once_in(b->random, 6)) {
        memory_by_index(b, offset);
    } else {
        memory_by_base(b, offset);
    }
}

/* Memory operands that ModRM does not name. */
static void choose_implicit_memory(struct builder *b) {
    const struct insn_row *row = b->row;
    uint64_t base = segment_base(b);
    if (row_has_operand(row, OPERAND_Xb, OPERAND_Xv))
        set_register(b, RSI, b->e->target - base);
    if (row_has_operand(row, OPERAND_Yb, OPERAND_Yv) &&
        !row_has_operand(row, OPERAND_Xb, OPERAND_Xv))
        set_register(b, RDI, b->e->target);
    if (strcmp(row->name, "xlat") == 0 || strcmp(row->name, "xlatb") == 0)
        set_register(b, RBX, b->e->target - base - (uint8_t)b->e->test->state.gpr[RAX]);
    if (strncmp(row->name, "maskmov", 7) == 0 || strncmp(row->name, "vmaskmovdqu", 11) == 0)
        set_register(b, RDI, b->e->target - base);
    if (strcmp(row->name, "clzero") == 0)
        set_register(b, RAX, b->e->target - base);
}

/* ---- Putting it together ---- */

static void put_vex(struct builder *b) {
    static const uint8_t pp[] = {
        [PFX_ANY] = 0, [PFX_NONE] = 0, [PFX_66] = 1, [PFX_F3] = 2, [PFX_F2] = 3};
    unsigned last = (~b->vvvv & 15) << 3 | (b->l ? 4 : 0) | pp[b->row->prefix];
    bool r = b->reg & 8, x = b->memory && (b->index & 8), base = b->rm & 8;
    bool is_short = !x && !base && !b->w && b->row->map == MAP_0F;
    if (is_short && !random_once_in(b->random, 3)) {
        put(b, 0xc5, 1);
        put(b, (r ? 0 : 0x80) | last, 1);
        return;
    }
    put(b, 0xc4, 1);
    put(b, (r ? 0 : 0x80) | (x ? 0 : 0x40) | (base ? 0 : 0x20) | b->row->map, 1);
    put(b, (b->w ? 0x80 : 0) | last, 1);
}

static void put_legacy(struct builder *b) {
    unsigned rex = (b->w ? 8 : 0) | (b->reg & 8 ? 4 : 0) | (b->memory && (b->index & 8) ? 2 : 0) |
                   (b->rm & 8 ? 1 : 0);
    if (!b->mode32 && (rex != 0 || random_once_in(b->random, 6)))
        put(b, 0x40 | rex, 1);
    if (b->row->map != MAP_1B)
        put(b, 0x0f, 1);
    if (b->row->map == MAP_0F38)
        put(b, 0x38, 1);
    if (b->row->map == MAP_0F3A)
        put(b, 0x3a, 1);
}

static unsigned operand_size(const struct builder *b) {
    if (!b->mode32 && b->w)
        return 8;
    if (b->operand_override && b->row->prefix != PFX_66)
        return 2;
    return 4;
}

/* Somewhere in the code pages but not at the instruction itself. */
static int64_t branch_distance(struct builder *b, bool near) {
    int64_t distance = random_below(b->random, near ? 112 : 0x700);
    return random_once_in(b->random, 2) ? distance : -16 - distance;
}

static void put_immediate(struct builder *b, unsigned operand) {
    unsigned size = operand_size(b), z = size == 2 ? 2 : 4;
    switch (operand) {
    case OPERAND_Ib:
    case OPERAND_Ibs:
    case OPERAND_Lx: put(b, random_integer(b->random) & 0xff, 1); break;
    case OPERAND_Iw: put(b, random_integer(b->random) & 0xffff, 2); break;
    case OPERAND_Iz: put(b, random_integer(b->random), z); break;
    case OPERAND_Iv: put(b, random_integer(b->random), size); break;
    case OPERAND_Jb: put(b, (uint64_t)branch_distance(b, true), 1); break;
    case OPERAND_Jz: put(b, (uint64_t)branch_distance(b, false), z); break;
    case OPERAND_Ap:
        put(b, CASE_CODE + 64 + random_below(b->random, 256), z);
        put(b, random_once_in(b->random, 2) ? SEL_CS32 : random_below(b->random, 0x48), 2);
        break;
    case OPERAND_Ob:
    case OPERAND_Ov:
        put(b, b->e->target - segment_base(b),
            b->mode32 ? (b->address_override ? 2 : 4) : (b->address_override ? 4 : 8));
        break;
    default: break;
    }
}

/* INT n: every vector but Linux's own entry. */
static void fix_int(struct builder *b) {
    static const uint8_t common[] = {0, 1, 3, 3, 4, 4, 5, 6, 13, 14, 15, 31, 32, 255};
    if (strcmp(b->row->name, "int") != 0)
        return;
    b->bytes[b->length - 1] = random_once_in(b->random, 2)
                                  ? common[random_below(b->random, ARRAY_SIZE(common))]
                                  : (uint8_t)(0x81 + random_below(b->random, 127));
}

static void put_all(struct builder *b) {
    unsigned opcode = b->row->opcode;
    for (unsigned i = 0; i < b->legacy_count; i++)
        put(b, b->legacy[i], 1);
    if (b->row->encoding == ENC_VEX)
        put_vex(b);
    else
        put_legacy(b);
    if (has(b->row, OPERAND_Zb) || has(b->row, OPERAND_Zv))
        opcode |= b->rm & 7;
    put(b, opcode, 1);
    if (b->row->form != FORM_NO_MODRM) {
        put(b, b->memory ? b->modrm | (b->reg & 7) << 3 : 0xc0 | (b->reg & 7) << 3 | (b->rm & 7),
            1);
        if (b->memory && b->has_sib)
            put(b, b->sib, 1);
    }
    unsigned disp_at = b->length;
    if (b->memory)
        put(b, (uint64_t)b->disp, b->disp_size);
    for (unsigned i = 0; i < 4; i++)
        put_immediate(b, b->row->operand[i]);
    fix_int(b);
    if (b->memory && b->rip_relative) {
        uint64_t next = b->e->test->start + b->e->test->code_length + b->length;
        store_le32(b->bytes + disp_at, (uint32_t)((uint64_t)b->disp - next));
    }
}

/* In 64-bit mode these bytes are prefixes: 62h EVEX, C4h and C5h VEX, 40h to 4Fh REX. */
static bool another_meaning_in_64(const struct insn_row *row) {
    return row->map == MAP_1B && (row->opcode == 0x62 || row->opcode == 0xc4 ||
                                  row->opcode == 0xc5 || (row->opcode & 0xf0) == 0x40);
}

bool encode(struct encoder *e) {
    struct builder b = {
        .e = e, .random = e->random, .row = e->row, .mode32 = e->test->mode32, .seg = -1};
    uint32_t properties = e->row->properties;
    if (b.mode32 &&
        ((properties & INSN_ONLY64) || (e->row->encoding == ENC_LEGACY && e->row->vw == VW_1)))
        return false;
    if (!b.mode32 && (properties & INSN_NO64) && another_meaning_in_64(e->row))
        return false;
    do
        choose_registers(&b);
    while (e->keep != 0 && !keeps_registers(&b));
    choose_prefixes(&b);
    if (b.memory)
        choose_memory(&b);
    else
        choose_implicit_memory(&b);
    put_all(&b);
    if (b.length > 15 || e->test->code_length + b.length > CODE_MAX)
        return false;
    memcpy(e->test->code + e->test->code_length, b.bytes, b.length);
    e->test->code_length += b.length;
    return true;
}
