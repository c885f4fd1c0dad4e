#include "cpu/soft/jit/recode.h"

#include <string.h>

enum { VEX3 = 0xc4, VEX2 = 0xc5, ESCAPE = 0x0f };

static bool is_prefix(uint8_t byte) {
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3: return true;
    default: return false;
    }
}

/* A REX prefix counts only right before the opcode. */
static unsigned parse_prefixes(struct raw *raw, bool rex) {
    unsigned at = 0;
    for (;; at++) {
        uint8_t byte = raw->bytes[at];
        if (rex && (byte & 0xf0) == 0x40) {
            raw->rex = byte;
            continue;
        }
        if (!is_prefix(byte))
            return at;
        raw->rex = 0;
        raw->operand_size |= byte == 0x66;
        raw->lock |= byte == 0xf0;
        if (byte == 0xf2 || byte == 0xf3)
            raw->repeat = byte;
    }
}

/* VEX in its three-byte form, whichever was used. */
static unsigned parse_vex(struct raw *raw, unsigned at) {
    raw->vex[0] = VEX3;
    if (raw->bytes[at] == VEX3) {
        raw->vex[1] = raw->bytes[at + 1];
        raw->vex[2] = raw->bytes[at + 2];
        return at + 3;
    }
    uint8_t byte = raw->bytes[at + 1];
    raw->vex[1] = (uint8_t)((byte & 0x80) | 0x60 | 1); /* R; X and B not set (inverted); map 0F */
    raw->vex[2] = byte & 0x7f;
    return at + 2;
}

static unsigned memory_bytes(const struct raw *raw, unsigned at) {
    uint8_t modrm = raw->bytes[at];
    unsigned mod = modrm >> 6, rm = modrm & 7, length = 1;
    if (mod == 3)
        return length;
    uint8_t base = (uint8_t)rm;
    if (rm == 4) {
        base = raw->bytes[at + 1] & 7;
        length++;
    }
    if (mod == 1)
        return length + 1;
    /* Without displacement bits, base 5 stands for a 32-bit displacement (or RIP-relative). */
    if (mod == 2 || base == 5)
        return length + 4;
    return length;
}

/* C4 and C5 are LES and LDS outside 64-bit mode, unless the next byte would name a register. */
static bool is_vex(const struct raw *raw, unsigned at, enum insn_mode mode) {
    bool vex = raw->bytes[at] == VEX3 || raw->bytes[at] == VEX2;
    return vex && (mode == INSN_MODE_64 || raw->bytes[at + 1] >= 0xc0);
}

/* What 32-bit mode ignores of VEX and of a register in an immediate. */
static void clear_ignored(struct raw *raw, const struct insn *insn) {
    const struct insn_row *row = insn_row_of(insn);
    raw->vex[1] |= 0xe0; /* R, X, B and the top bit of vvvv, all inverted */
    raw->vex[2] |= 0x40;
    if (row->vw == VW_ANY)
        raw->vex[2] &= 0x7f;
    if (row->operand[3] == OPERAND_Lx)
        raw->bytes[raw->length - 1] &= 0x7f;
}

/* INC and DEC in 40 to 4F become FF /0 and /1, 82 becomes 80. */
static void make_modern(struct raw *raw) {
    uint8_t *opcode = &raw->bytes[raw->opcode_at];
    if (raw->opcode_length != 1 || raw->vex[0] != 0)
        return;
    if (*opcode == 0x82)
        *opcode = 0x80;
    if ((*opcode & 0xf0) != 0x40)
        return;
    opcode[1] = (uint8_t)(0xc0 | (*opcode & 15)); /* bit 3: DEC */
    opcode[0] = 0xff;
    raw->modrm_at = raw->opcode_at + 1;
    raw->length = raw->tail_at = raw->opcode_at + 2;
}

void raw_parse(struct raw *raw, const uint8_t *bytes, const struct insn *insn, enum insn_mode mode,
               bool has_modrm) {
    memset(raw, 0, sizeof *raw);
    memcpy(raw->bytes, bytes, insn->length);
    raw->length = insn->length;
    unsigned at = parse_prefixes(raw, mode == INSN_MODE_64);
    if (is_vex(raw, at, mode)) {
        at = parse_vex(raw, at);
        raw->opcode_at = (uint8_t)at++;
    } else {
        raw->opcode_at = (uint8_t)at;
        if (raw->bytes[at++] == ESCAPE) {
            uint8_t second = raw->bytes[at++];
            if (second == 0x38 || second == 0x3a)
                at++;
        }
    }
    raw->opcode_length = (uint8_t)(at - raw->opcode_at);
    if (has_modrm) {
        raw->modrm_at = (uint8_t)at;
        at += memory_bytes(raw, at);
    }
    raw->tail_at = (uint8_t)at;
    if (mode == INSN_MODE_64)
        return;
    if (raw->vex[0] != 0)
        clear_ignored(raw, insn);
    make_modern(raw);
}

struct recode recode_of(const struct raw *raw) {
    struct recode r = {0};
    bool vex = raw->vex[0] != 0;
    unsigned rex_r = vex ? ~raw->vex[1] >> 7 & 1 : raw->rex >> 2 & 1;
    unsigned rex_b = vex ? ~raw->vex[1] >> 5 & 1 : raw->rex & 1;
    if (vex)
        r.vvvv = ~raw->vex[2] >> 3 & 15;
    if (raw->modrm_at != 0) {
        uint8_t modrm = raw->bytes[raw->modrm_at];
        r.reg = (modrm >> 3 & 7) | rex_r << 3;
        r.rm = (modrm & 7) | rex_b << 3;
        r.kind = modrm >> 6 == 3 ? RM_REGISTER : RM_ADDRESS;
    } else {
        r.rm = (raw->bytes[raw->opcode_at + raw->opcode_length - 1] & 7) | rex_b << 3;
    }
    return r;
}

static void emit_vex(struct emitter *e, const struct raw *raw, const struct recode *r) {
    unsigned b = r->kind == RM_STATE ? 0 : r->rm >> 3;
    unsigned x = r->indexed ? r->index >> 3 : 0;
    emit8(e, VEX3);
    emit8(e, (uint8_t)((~r->reg >> 3 & 1) << 7 | (~x & 1) << 6 | (~b & 1) << 5 |
                       (raw->vex[1] & 0x1f)));
    emit8(e, (uint8_t)((raw->vex[2] & 0x87) | (~r->vvvv & 15) << 3));
}

static void emit_rex(struct emitter *e, const struct raw *raw, const struct recode *r) {
    unsigned bits = raw->rex & 8;
    if (raw->modrm_at != 0)
        bits |= (r->reg >> 3) << 2;
    if (r->kind != RM_STATE)
        bits |= r->rm >> 3;
    if (r->indexed)
        bits |= (r->index >> 3 & 1u) << 1;
    if (bits != 0 || raw->rex != 0)
        emit8(e, (uint8_t)(0x40 | bits));
}

static void emit_operands(struct emitter *e, const struct recode *r) {
    unsigned reg = (r->reg & 7) << 3;
    switch (r->kind) {
    case RM_REGISTER: emit8(e, (uint8_t)(0xc0 | reg | (r->rm & 7))); break;
    case RM_STATE:
        emit8(e, (uint8_t)(reg | 4));
        emit8(e, 0x25);
        emit32(e, (uint32_t)r->disp);
        break;
    case RM_ADDRESS: {
        unsigned mod = r->disp == 0 && (r->rm & 7) != RBP ? 0 : r->disp == (int8_t)r->disp ? 1 : 2;
        unsigned index = r->indexed ? r->index & 7u : RSP;
        bool sib = r->indexed || (r->rm & 7) == RSP;
        emit8(e, (uint8_t)(mod << 6 | reg | (sib ? RSP : r->rm & 7)));
        if (sib)
            emit8(e, (uint8_t)(r->scale << 6 | index << 3 | (r->rm & 7)));
        if (mod == 1)
            emit8(e, (uint8_t)r->disp);
        else if (mod == 2)
            emit32(e, (uint32_t)r->disp);
        break;
    }
    }
}

void recode_emit(struct emitter *e, const struct raw *raw, const struct recode *r) {
    if (r->kind == RM_STATE)
        emit8(e, 0x65);
    if (raw->lock)
        emit8(e, 0xf0);
    if (raw->vex[0] != 0) {
        emit_vex(e, raw, r);
    } else {
        if (raw->operand_size)
            emit8(e, 0x66);
        if (raw->repeat != 0)
            emit8(e, raw->repeat);
        emit_rex(e, raw, r);
    }
    unsigned opcode_end = raw->opcode_at + raw->opcode_length - 1u;
    emit_bytes(e, raw->bytes + raw->opcode_at, raw->opcode_length - 1u);
    if (raw->modrm_at != 0) {
        emit8(e, raw->bytes[opcode_end]);
        emit_operands(e, r);
    } else {
        emit8(e, (uint8_t)((raw->bytes[opcode_end] & ~7u) | (r->rm & 7)));
    }
    emit_bytes(e, raw->bytes + raw->tail_at, raw->length - (unsigned)raw->tail_at);
}
