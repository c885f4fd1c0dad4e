/*
 * What segment.c, far.c, event.c, syscall.c, system.c and msr.c share:
 * descriptors, and the handlers that table_system.c names.
 */
#ifndef LODGE_CPU_SOFT_SYSTEM_H
#define LODGE_CPU_SOFT_SYSTEM_H

#include "cpu/soft/access.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/mmu.h"

/* ---- Descriptors (segment.c) ---- */

enum {
    SELECTOR_RPL = 3,
    SELECTOR_TI = 4,
    TYPE_ACCESSED = 1,
    TYPE_READ_WRITE = 2, /* data: writable; code: readable */
    TYPE_CONFORMING = 4, /* code; data: expand-down */
    TYPE_CODE = 8,
    /* System descriptors. */
    SYSTEM_TSS16 = 1,
    SYSTEM_LDT = 2,
    SYSTEM_CALL16 = 4,
    SYSTEM_TASK_GATE = 5,
    SYSTEM_INTERRUPT16 = 6,
    SYSTEM_TRAP16 = 7,
    SYSTEM_TSS = 9,
    SYSTEM_CALL = 12,
    SYSTEM_INTERRUPT = 14,
    SYSTEM_TRAP = 15,
};

struct descriptor {
    uint16_t selector;
    uint64_t linear;     /* where it is */
    uint64_t low;        /* its eight bytes */
    uint64_t high;       /* the next eight: system descriptors in long mode; else 0 */
    uint16_t attributes; /* SEG_* */
};

static inline unsigned attributes_dpl(unsigned attributes) {
    return (attributes & SEG_DPL) >> 5;
}

static inline bool selector_null(uint16_t selector) {
    return (selector & ~SELECTOR_RPL) == 0;
}

static inline bool descriptor_is_code(const struct descriptor *d) {
    return (d->attributes & (SEG_S | TYPE_CODE)) == (SEG_S | TYPE_CODE);
}

static inline bool descriptor_is_writable(const struct descriptor *d) {
    return (d->attributes & (SEG_S | TYPE_CODE | TYPE_READ_WRITE)) == (SEG_S | TYPE_READ_WRITE);
}

/* Protected mode, not virtual-8086: selectors name descriptors. */
static inline bool mode_protected(const struct soft_cpu *cpu) {
    return cpu->cr0 & CR0_PE && !(cpu->rflags & FLAG_VM);
}

/* Reads the descriptor of a selector that is not null. False: #GP(selector), or a page fault. */
bool descriptor_read(struct soft_cpu *cpu, uint16_t selector, struct descriptor *d,
                     struct fault *fault);

/* The same for a system descriptor, which is 16 bytes in long mode. */
bool descriptor_read_system(struct soft_cpu *cpu, uint16_t selector, struct descriptor *d,
                            struct fault *fault);

/* Sets type bits (accessed, busy) in memory and in *d, if they are not set. */
bool descriptor_set_type(struct soft_cpu *cpu, struct descriptor *d, unsigned bits,
                         struct fault *fault);

/* The descriptor cache that loading it fills. */
void descriptor_cache(const struct descriptor *d, struct x86_segment *segment);

/* A selector as real and virtual-8086 mode load it. */
void segment_load_real(struct soft_cpu *cpu, unsigned seg, uint16_t selector);

/* Loads ES, SS, DS, FS or GS with all checks; mmu_mode_changed is the caller's. */
bool segment_load(struct soft_cpu *cpu, unsigned seg, uint16_t selector, struct fault *fault);

/*
 * Checks a stack segment for the privilege level `cpl`; vector is what a bad
 * one raises (#GP or #TS). `ext` is or-ed into error codes. Null is bad.
 */
bool stack_segment_check(struct soft_cpu *cpu, uint16_t selector, unsigned cpl,
                         enum exception vector, unsigned ext, struct x86_segment *ss,
                         struct fault *fault);

/* A segment of flat 4 GiB, as SYSCALL and its like load it without looking at descriptors. */
struct x86_segment segment_flat_of(uint16_t selector, unsigned attributes);

/* What SYSCALL (cpl 0) and SYSRET (cpl 3) load in 64-bit mode. syscall.c. */
void syscall_segments(const struct soft_cpu *cpu, unsigned cpl, struct x86_segment *cs,
                      struct x86_segment *ss);

/*
 * The stack pointer of an inner level from the TSS; ss stays alone in long
 * mode. False: #TS or a page fault.
 */
bool tss_stack(struct soft_cpu *cpu, unsigned cpl, unsigned ext, uint64_t *rsp, uint16_t *ss,
               struct fault *fault);

/* ---- Handlers by file, named as table_system.c has them ---- */

/* segment.c */
/* A far pointer in memory: 16 or 32 bits of offset and a selector. AMD processors have none with 64
 * bits: REX.W changes nothing. cpu->insn is set. */
struct far_pointer {
    uint64_t offset;
    uint16_t selector;
};
struct far_pointer far_pointer_read(struct soft_cpu *cpu, const struct insn *insn);

insn_exec mov_e_s_r, mov_e_s_m, mov_s_e_r, mov_s_e_m, push_seg, pop_seg, load_far_pointer;
insn_exec lar_r, lar_m, lsl_r, lsl_m, verr_r, verr_m, verw_r, verw_m, arpl_r, arpl_m;
insn_exec sgdt, sidt, lgdt, lidt, sldt_r, sldt_m, str_r, str_m, lldt_r, lldt_m, ltr_r, ltr_m;
insn_exec swapgs, rdfsbase, rdgsbase, wrfsbase, wrgsbase;
/* far.c */
insn_exec jmp_far_a, jmp_far_m, call_far_a, call_far_m, ret_far, ret_far_i, iret;
/* syscall.c */
insn_exec syscall_enter, sysret_leave, sysenter, sysexit;
/* system.c */
insn_exec mov_r_c, mov_c_r, mov_r_d, mov_d_r, clts, smsw_r, smsw_m, lmsw_r, lmsw_m;
insn_exec invlpg, invpcid, cache_control, clflush, xgetbv, xsetbv, rdpmc, rdtsc, rdtscp, rdpid;
insn_exec clac, stac, cpuid, rdmsr, wrmsr, fence_full, fence_stores, fence_none;

#endif
