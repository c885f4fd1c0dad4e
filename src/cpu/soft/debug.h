/*
 * Debug registers: which breakpoints an instruction or an access meets.
 * AMD64 APM vol. 2, 13.1. The run loop, while debug_active says so, runs one
 * instruction at a time: before it, debug_match_execute; after it, the bits
 * that debug_take answers become a #DB trap (with BS for single-step).
 */
#ifndef LODGE_CPU_SOFT_DEBUG_H
#define LODGE_CPU_SOFT_DEBUG_H

#include "cpu/soft/soft.h"

enum {
    DR6_B0 = 1 << 0,
    DR6_BD = 1 << 13, /* access to a debug register with DR7.GD */
    DR6_BS = 1 << 14, /* single-step */
    DR6_BT = 1 << 15,
    DR7_GD = 1 << 13,
};
#define DR6_FIXED UINT64_C(0xffff0ff0)
#define DR7_FIXED UINT64_C(0x400)

enum debug_kind { DEBUG_EXECUTE, DEBUG_WRITE, DEBUG_IO, DEBUG_ACCESS };

/* Any breakpoint is enabled. */
static inline bool debug_active(const struct soft_cpu *cpu) {
    return cpu->dr[7] & 0xff;
}

/* DR6 bits of enabled instruction breakpoints at a linear address. Callers look at RF first. */
uint64_t debug_match_execute(const struct soft_cpu *cpu, uint64_t linear);

/* Notes data breakpoints that an access meets in cpu->debug_hits. */
void debug_note_access(struct soft_cpu *cpu, uint64_t linear, unsigned size, bool write);

/* Notes I/O breakpoints (CR4.DE) that a port access meets. */
void debug_note_port(struct soft_cpu *cpu, uint16_t port, unsigned size);

/* A data breakpoint watches bytes of this page. */
bool debug_watches_page(const struct soft_cpu *cpu, uint64_t page);

/* Takes the noted hits. */
static inline uint64_t debug_take(struct soft_cpu *cpu) {
    uint64_t hits = cpu->debug_hits;
    cpu->debug_hits = 0;
    return hits;
}

/* Sets DR6's B0-3, BD, BS, BT for a #DB that is about to be delivered (the others stay) and clears
 * DR7.GD. */
void debug_enter(struct soft_cpu *cpu, uint64_t bits);

#endif
