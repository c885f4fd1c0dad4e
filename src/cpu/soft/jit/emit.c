#include "cpu/soft/jit/emit.h"

/* REX when one is needed; byte registers 4 to 7 need an empty one. */
static void rex(struct emitter *e, unsigned size, unsigned reg, unsigned index, unsigned base) {
    unsigned bits =
        (size == 8) << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1);
    if (bits != 0 || size == 1)
        emit8(e, (uint8_t)(0x40 | bits));
}

static void opcode_bytes(struct emitter *e, unsigned opcode) {
    if (opcode > 0xff)
        emit8(e, (uint8_t)(opcode >> 8));
    emit8(e, (uint8_t)opcode);
}

static void modrm(struct emitter *e, unsigned mod, unsigned reg, unsigned rm) {
    emit8(e, (uint8_t)(mod << 6 | (reg & 7) << 3 | (rm & 7)));
}

void emit_rr(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, unsigned rm) {
    rex(e, size, reg, 0, rm);
    opcode_bytes(e, opcode);
    modrm(e, 3, reg, rm);
}

void emit_rm(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, unsigned base,
             int32_t disp) {
    rex(e, size, reg, 0, base);
    opcode_bytes(e, opcode);
    unsigned mod = disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 1 : 2;
    modrm(e, mod, reg, base);
    if ((base & 7) == RSP)
        emit8(e, 0x24);
    if (mod == 1)
        emit8(e, (uint8_t)disp);
    else if (mod == 2)
        emit32(e, (uint32_t)disp);
}

enum { PREFIX_GS = 0x65 };

static void gs_operand(struct emitter *e, unsigned reg, int32_t disp) {
    modrm(e, 0, reg, 4);
    emit8(e, 0x25); /* no base, no index: an absolute address */
    emit32(e, (uint32_t)disp);
}

void emit_gs(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, int32_t disp) {
    emit8(e, PREFIX_GS);
    rex(e, size, reg, 0, 0);
    opcode_bytes(e, opcode);
    gs_operand(e, reg, disp);
}

void emit_gs_at(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, unsigned index,
                int32_t disp) {
    emit8(e, PREFIX_GS);
    rex(e, size, reg, 0, index);
    opcode_bytes(e, opcode);
    modrm(e, 2, reg, index);
    if ((index & 7) == RSP)
        emit8(e, 0x24);
    emit32(e, (uint32_t)disp);
}

void emit_group1(struct emitter *e, unsigned group, unsigned size, unsigned reg, int32_t imm) {
    bool small = imm == (int8_t)imm;
    rex(e, size, 0, 0, reg);
    emit8(e, small ? 0x83 : 0x81);
    modrm(e, 3, group, reg);
    if (small)
        emit8(e, (uint8_t)imm);
    else
        emit32(e, (uint32_t)imm);
}

void emit_group1_gs(struct emitter *e, unsigned group, unsigned size, int32_t disp, int32_t imm) {
    emit8(e, PREFIX_GS);
    rex(e, size, 0, 0, 0);
    emit8(e, 0x81);
    gs_operand(e, group, disp);
    emit32(e, (uint32_t)imm);
}

void emit_store_imm_gs(struct emitter *e, int32_t disp, int32_t imm) {
    emit_gs(e, 0xc7, 4, 0, disp);
    emit32(e, (uint32_t)imm);
}

void emit_mov_imm(struct emitter *e, unsigned reg, uint64_t imm) {
    if (imm == (uint32_t)imm) {
        rex(e, 4, 0, 0, reg);
        emit8(e, (uint8_t)(0xb8 | (reg & 7)));
        emit32(e, (uint32_t)imm);
    } else if ((int64_t)imm == (int32_t)imm) {
        rex(e, 8, 0, 0, reg);
        emit8(e, 0xc7);
        modrm(e, 3, 0, reg);
        emit32(e, (uint32_t)imm);
    } else {
        rex(e, 8, 0, 0, reg);
        emit8(e, (uint8_t)(0xb8 | (reg & 7)));
        emit64(e, imm);
    }
}

void emit_rorx(struct emitter *e, unsigned reg, unsigned rm, unsigned count) {
    /* VEX.LZ.F2.0F3A.W1 F0 /r ib; R and B are inverted. */
    const uint8_t bytes[] = {
        0xc4,
        (uint8_t)((~reg >> 3 & 1) << 7 | 1 << 6 | (~rm >> 3 & 1) << 5 | 3),
        0xfb,
        0xf0,
        (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)),
        (uint8_t)count,
    };
    emit_bytes(e, bytes, sizeof bytes);
}

void emit_lea(struct emitter *e, unsigned size, unsigned reg, int base, int index, unsigned scale,
              int32_t disp) {
    unsigned b = base < 0 ? 5 : (unsigned)base, i = index < 0 ? 4 : (unsigned)index;
    rex(e, size, reg, i, base < 0 ? 0 : b);
    emit8(e, 0x8d);
    bool plain = base >= 0 && index < 0 && (b & 7) != RSP;
    unsigned mod = base < 0 ? 0 : disp == 0 && (b & 7) != RBP ? 0 : disp == (int8_t)disp ? 1 : 2;
    modrm(e, mod, reg, plain ? b : 4);
    if (!plain)
        emit8(e, (uint8_t)(scale << 6 | (i & 7) << 3 | (b & 7)));
    if (base < 0 || mod == 2)
        emit32(e, (uint32_t)disp);
    else if (mod == 1)
        emit8(e, (uint8_t)disp);
}

uint8_t *emit_lea_rip(struct emitter *e, unsigned reg) {
    rex(e, 8, reg, 0, 0);
    emit8(e, 0x8d);
    modrm(e, 0, reg, 5);
    emit32(e, 0);
    return e->at - 4;
}

uint8_t *emit_cmp_rip(struct emitter *e, unsigned reg) {
    rex(e, 8, reg, 0, 0);
    emit8(e, OP_CMP_RM);
    modrm(e, 0, reg, 5);
    emit32(e, 0);
    return e->at - 4;
}

void emit_store_imm(struct emitter *e, unsigned size, unsigned base, int32_t disp, int32_t imm) {
    emit_rm(e, 0xc7, size, 0, base, disp);
    emit32(e, (uint32_t)imm);
}

uint8_t *emit_jcc(struct emitter *e, unsigned condition) {
    emit8(e, 0x0f);
    emit8(e, (uint8_t)(0x80 | condition));
    emit32(e, 0);
    return e->at - 4;
}

uint8_t *emit_jmp(struct emitter *e) {
    emit8(e, 0xe9);
    emit32(e, 0);
    return e->at - 4;
}

uint8_t *emit_call(struct emitter *e) {
    emit8(e, 0xe8);
    emit32(e, 0);
    return e->at - 4;
}

void emit_aim(uint8_t *field, const uint8_t *target) {
    int32_t distance = (int32_t)(target - (field + 4));
    /* Aligned or not, a thread that runs the old jump meanwhile belongs to no other vCPU. */
    memcpy(field, &distance, sizeof distance);
}

void emit_gs_scaled8(struct emitter *e, unsigned opcode, unsigned size, unsigned reg,
                     unsigned index, int32_t disp) {
    emit8(e, PREFIX_GS);
    rex(e, size, reg, index, 0);
    opcode_bytes(e, opcode);
    modrm(e, 0, reg, 4);
    emit8(e, (uint8_t)(3 << 6 | (index & 7) << 3 | 5));
    emit32(e, (uint32_t)disp);
}

void emit_mov(struct emitter *e, unsigned to, unsigned from) {
    emit_rr(e, OP_MOV_LOAD, 8, to, from);
}
