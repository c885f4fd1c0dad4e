/*
 * Bytes: appends x86-64 instructions of our own to a buffer. One function a
 * shape of operands, not one an instruction: callers pass opcodes.
 *
 * Nothing is checked byte by byte: callers see to it with emit_has_room that
 * EMIT_ROOM bytes are left before each instruction that they lower, which is
 * more than any needs. Addresses are those of the writable mapping; jumps are
 * relative, so the executable one needs no fixing.
 *
 * Source of encodings: AMD64 APM vol. 3, chapter 1.
 */
#ifndef LODGE_CPU_SOFT_JIT_EMIT_H
#define LODGE_CPU_SOFT_JIT_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "cpu/x86.h"

struct emitter {
    uint8_t *at;
    uint8_t *end;
    bool full; /* there was no room: what was emitted is to be thrown away */
};

enum { EMIT_ROOM = 1024 };

static inline bool emit_has_room(struct emitter *e) {
    e->full |= e->end - e->at < EMIT_ROOM;
    return !e->full;
}

static inline void emit_bytes(struct emitter *e, const void *bytes, unsigned count) {
    memcpy(e->at, bytes, count);
    e->at += count;
}

/* Bytes that are never run, up to a multiple of `to`. */
static inline void emit_align(struct emitter *e, unsigned to) {
    while ((uintptr_t)e->at % to != 0)
        *e->at++ = 0xcc;
}

static inline void emit8(struct emitter *e, uint8_t byte) {
    *e->at++ = byte;
}

static inline void emit32(struct emitter *e, uint32_t value) {
    emit_bytes(e, &value, 4);
}

static inline void emit64(struct emitter *e, uint64_t value) {
    emit_bytes(e, &value, 8);
}

/* Opcodes: up to two bytes, 0F escape as 0x0fXX. Sizes are 1, 4 or 8 bytes. */

/* OP reg, rm with two registers. */
void emit_rr(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, unsigned rm);
/* OP reg, [base + disp]. */
void emit_rm(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, unsigned base,
             int32_t disp);
/* OP reg, gs:[disp]: the vCPU's own state. */
void emit_gs(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, int32_t disp);
/* OP reg, gs:[index + disp]. */
void emit_gs_at(struct emitter *e, unsigned opcode, unsigned size, unsigned reg, unsigned index,
                int32_t disp);
/* OP reg, gs:[index * 8 + disp]. */
void emit_gs_scaled8(struct emitter *e, unsigned opcode, unsigned size, unsigned reg,
                     unsigned index, int32_t disp);
/* MOV to, from; 64 bits. */
void emit_mov(struct emitter *e, unsigned to, unsigned from);
/* Group 1 (ADD=0 OR=1 ADC=2 SBB=3 AND=4 SUB=5 XOR=6 CMP=7) reg, imm32 sign-extended. */
void emit_group1(struct emitter *e, unsigned group, unsigned size, unsigned reg, int32_t imm);
/* Group 1 on gs:[disp], 4 or 8 bytes. */
void emit_group1_gs(struct emitter *e, unsigned group, unsigned size, int32_t disp, int32_t imm);
/* MOV dword gs:[disp], imm32. */
void emit_store_imm_gs(struct emitter *e, int32_t disp, int32_t imm);
/* MOV reg, imm in its shortest form. */
void emit_mov_imm(struct emitter *e, unsigned reg, uint64_t imm);
/* RORX reg, rm, count (BMI2): a shift that leaves flags alone. */
void emit_rorx(struct emitter *e, unsigned reg, unsigned rm, unsigned count);
/* LEA reg, [base + index << scale + disp]; base or index may be -1. size 4 wraps to 32 bits. */
void emit_lea(struct emitter *e, unsigned size, unsigned reg, int base, int index, unsigned scale,
              int32_t disp);

/* LEA reg, [rip + rel32]; the field is aimed like a jump's. */
uint8_t *emit_lea_rip(struct emitter *e, unsigned reg);

/* CMP reg, [rip + rel32]. */
uint8_t *emit_cmp_rip(struct emitter *e, unsigned reg);
/* MOV [base + disp], imm32, sign-extended for 8 bytes. */
void emit_store_imm(struct emitter *e, unsigned size, unsigned base, int32_t disp, int32_t imm);

/* Jumps whose rel32 is filled later; the result names the field. */
uint8_t *emit_jcc(struct emitter *e, unsigned condition);
uint8_t *emit_jmp(struct emitter *e);
uint8_t *emit_call(struct emitter *e);
/* Makes the field's jump go to target. Both in the writable mapping. */
void emit_aim(uint8_t *field, const uint8_t *target);

/* Condition codes (low four bits of Jcc, SETcc, CMOVcc). */
enum { COND_O, COND_NO, COND_B, COND_AE, COND_E, COND_NE, COND_BE, COND_A, COND_S };

enum {
    OP_ADD_RM = 0x03,
    OP_OR_RM = 0x0b,
    OP_AND_RM = 0x23,
    OP_SUB_RM = 0x2b,
    OP_XOR_RM = 0x33,
    OP_CMP_RM = 0x3b,
    OP_TEST = 0x85,
    OP_MOV_STORE = 0x89,
    OP_MOV_LOAD = 0x8b,
};

#endif
