/*
 * x87: what x87.c, xsave.c and the host layer share. Private to the vector
 * room.
 *
 * All arithmetic runs on the host's own x87: the guest's whole state goes
 * there in an FSAVE image, with the guest's control word, then the very
 * instruction runs, and the state comes back. So results, C0 to C3, stack
 * faults, tags and unmasked responses are silicon's.
 */
#ifndef LODGE_CPU_SOFT_X87_H
#define LODGE_CPU_SOFT_X87_H

#include <stdint.h>

#include "cpu/soft/soft.h"

/* FSAVE's 32-bit protected-mode format. st[] is in stack order, tag in physical order. */
struct x87_image {
    uint32_t control, status, tag;
    uint32_t ip, cs_opcode, dp, ds;
    uint8_t st[8][10];
} __attribute__((packed));

/*
 * Runs one x87 instruction on the host (x87_run.c): opcode is D8 to DF. `operand` is the memory
 * operand for modrm below C0 (only ModRM.reg counts then), else unused. `flags`: the low byte of
 * RFLAGS that FCMOVcc sees; returns that byte as FCOMI and its like leave it. The image must have
 * no pending exception.
 */
uint8_t x87_host_run(struct x87_image *image, unsigned opcode, unsigned modrm, void *operand,
                     uint8_t flags);

static inline unsigned x87_top(const struct soft_cpu *cpu) {
    return cpu->fsw >> 11 & 7;
}

/* The state, without pointers, as FRSTOR loads it; and back, but for the control word. */
static inline void x87_put_image(const struct soft_cpu *cpu, struct x87_image *image) {
    unsigned top = x87_top(cpu);
    image->control = cpu->fcw;
    image->status = cpu->fsw;
    image->tag = 0;
    image->ip = image->cs_opcode = image->dp = image->ds = 0;
    for (unsigned i = 0; i < 8; i++) {
        image->tag |= (cpu->ftw >> i & 1 ? 0u : 3u) << 2 * i;
        __builtin_memcpy(image->st[i], &cpu->x87[(top + i) & 7], 10);
    }
}

static inline void x87_get_image(struct soft_cpu *cpu, const struct x87_image *image) {
    unsigned top;
    cpu->fsw = (uint16_t)image->status;
    cpu->ftw = 0;
    top = x87_top(cpu);
    for (unsigned i = 0; i < 8; i++) {
        cpu->ftw |= (image->tag >> 2 * i & 3) != 3 ? 1 << i : 0;
        __builtin_memcpy(&cpu->x87[(top + i) & 7], image->st[i], 10);
    }
}

/* The control word as the register holds it: reserved bits fixed. */
static inline uint16_t x87_control(uint16_t value) {
    return (value & 0x1f3f) | 0x40;
}

/* FSW.ES and FSW.B follow from the flags and the masks. */
static inline void x87_update_pending(struct soft_cpu *cpu) {
    cpu->fsw &= 0x7f7f;
    if (cpu->fsw & ~cpu->fcw & 0x3f)
        cpu->fsw |= 0x8080;
}

/* Handlers (x87.c). */
insn_exec x87_compare_flags, x87_fldcw, x87_fldenv, x87_fnclex, x87_fninit, x87_fnop_no_wait,
    x87_fnsave, x87_fnstcw, x87_fnstenv, x87_fnstsw, x87_fnstsw_ax, x87_frstor, x87_fwait,
    x87_load16, x87_load32, x87_load64, x87_load80, x87_register, x87_store16, x87_store32,
    x87_store64, x87_store80;

#endif
