/*
 * Guest-virtual memory as instructions see it: segment checks, software TLB,
 * page faults. Offsets are relative to the segment and already wrapped to the
 * address size (insn_offset does that). Everything here may raise, with
 * nothing written before it does; cpu->insn must name the instruction.
 *
 * Fast path: segment limit by one compare, TLB by one compare, no straddling
 * of a page. Everything else goes to mmu.c.
 */
#ifndef LODGE_CPU_SOFT_ACCESS_H
#define LODGE_CPU_SOFT_ACCESS_H

#include <string.h>

#include "cpu/soft/soft.h"

/* The offset that the memory operand names, wrapped to the address size. */
static inline uint64_t insn_offset(const struct soft_cpu *cpu, const struct insn *insn) {
    uint64_t offset =
        cpu->gpr[insn->base] + (cpu->gpr[insn->index] << insn->scale) + (uint64_t)insn->disp;
    if (unlikely(insn->address_size != 8))
        offset = insn->address_size == 4 ? (uint32_t)offset : (uint16_t)offset;
    return offset;
}

/* Slow paths (mmu.c). Accesses of 1 to 64 bytes; all-or-nothing. */
void access_read_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, void *to, unsigned size);
void access_write_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, const void *from,
                       unsigned size);

/*
 * The host address of [offset, offset+size) when the fast path holds, else NULL. size is 1 to 64.
 * Two compares: `last` is at least 63 wherever the fast path may hold, so the subtraction does not
 * wrap; a straddling access has its last byte on a page whose entry lies in another slot, so the
 * tag found cannot match.
 */
static inline void *access_fast(const struct soft_cpu *cpu, enum tlb_kind kind, unsigned seg,
                                uint64_t offset, unsigned size) {
    bool write = kind == TLB_WRITE;
    uint64_t base = write ? cpu->seg[seg].write.base : cpu->seg[seg].read.base;
    uint64_t last = write ? cpu->seg[seg].write.last : cpu->seg[seg].read.last;
    uint64_t linear = base + offset;
    const struct tlb_entry *e = &cpu->tlb[kind][tlb_slot(linear)];
    uint64_t tag = (linear + (size - 1)) & ~(uint64_t)(PAGE_SIZE - 1);
    if (unlikely(offset > last - (size - 1)) || unlikely(tag != e->tag))
        return NULL;
    return (void *)(e->host + (linear & (PAGE_SIZE - 1)));
}

static inline void access_read(struct soft_cpu *cpu, unsigned seg, uint64_t offset, void *to,
                               unsigned size) {
    const void *host = access_fast(cpu, TLB_READ, seg, offset, size);
    if (likely(host != NULL))
        memcpy(to, host, size);
    else
        access_read_slow(cpu, seg, offset, to, size);
}

static inline void access_write(struct soft_cpu *cpu, unsigned seg, uint64_t offset,
                                const void *from, unsigned size) {
    void *host = access_fast(cpu, TLB_WRITE, seg, offset, size);
    if (likely(host != NULL))
        memcpy(host, from, size);
    else
        access_write_slow(cpu, seg, offset, from, size);
}

/*
 * The slow paths by value: the fast paths below take no local's address, so that handlers can end
 * in tail calls.
 */
uint64_t access_load_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size);
void access_store_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, uint64_t value,
                       unsigned size);

#define ACCESS_SIZED(bits)                                                                         \
    static inline uint##bits##_t load##bits(struct soft_cpu *cpu, unsigned seg, uint64_t offset) { \
        const void *host = access_fast(cpu, TLB_READ, seg, offset, bits / 8);                      \
        uint##bits##_t value;                                                                      \
        if (unlikely(host == NULL))                                                                \
            return (uint##bits##_t)access_load_slow(cpu, seg, offset, bits / 8);                   \
        memcpy(&value, host, sizeof value);                                                        \
        return value;                                                                              \
    }                                                                                              \
    static inline void store##bits(struct soft_cpu *cpu, unsigned seg, uint64_t offset,            \
                                   uint##bits##_t value) {                                         \
        void *host = access_fast(cpu, TLB_WRITE, seg, offset, bits / 8);                           \
        if (likely(host != NULL))                                                                  \
            memcpy(host, &value, sizeof value);                                                    \
        else                                                                                       \
            access_store_slow(cpu, seg, offset, value, bits / 8);                                  \
    }
ACCESS_SIZED(8)
ACCESS_SIZED(16)
ACCESS_SIZED(32)
ACCESS_SIZED(64)
#undef ACCESS_SIZED

/*
 * Read-modify-write: a host pointer to the operand, checked for reading and
 * writing (a refusal is a write fault). Where the page cannot be used
 * directly (I/O, watched code, straddling) it points to cpu->bounce, filled;
 * rmw_end then writes it back. size is 1, 2, 4, 8 or 16. Between the two
 * nothing may raise. LOCKed instructions use host atomics on the pointer
 * (for one that is bounced all other vCPUs stand still, see others.h).
 */
void *rmw_begin_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size);
void rmw_end_slow(struct soft_cpu *cpu);

static inline void *rmw_begin(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size) {
    void *host = access_fast(cpu, TLB_WRITE, seg, offset, size);
    if (likely(host != NULL)) {
        /* A page that may be written may be read: paging has no write-only pages; write-only
         * segments do not exist. */
        return host;
    }
    return rmw_begin_slow(cpu, seg, offset, size);
}

static inline void rmw_end(struct soft_cpu *cpu) {
    if (unlikely(cpu->bounce.size != 0))
        rmw_end_slow(cpu);
}

/*
 * For string instructions: the host pointer for a run of bytes starting at
 * offset, at most to the page's end; *length is lowered to what is there. NULL:
 * go element by element. Who has written to a run calls access_run_written with
 * how many bytes: it may have been watched code.
 */
void *access_run(struct soft_cpu *cpu, enum tlb_kind kind, unsigned seg, uint64_t offset,
                 size_t *length);
void access_run_written(struct soft_cpu *cpu, size_t length);

/* System structures (descriptor tables, TSS, IDT): linear addresses, supervisor rights whatever the
 * CPL, exempt from SMAP (implicit accesses are not: see APM vol. 2, 5.6.6). May raise #PF. */
uint64_t system_load(struct soft_cpu *cpu, uint64_t linear, unsigned size);
void system_store(struct soft_cpu *cpu, uint64_t linear, uint64_t value, unsigned size);

/* A little-endian value of 1, 2, 4 or 8 bytes; folds when the size is a constant. */
static inline uint64_t load_sized(struct soft_cpu *cpu, unsigned seg, uint64_t offset,
                                  unsigned size) {
    switch (size) {
    case 1: return load8(cpu, seg, offset);
    case 2: return load16(cpu, seg, offset);
    case 4: return load32(cpu, seg, offset);
    default: return load64(cpu, seg, offset);
    }
}

static inline void store_sized(struct soft_cpu *cpu, unsigned seg, uint64_t offset, uint64_t value,
                               unsigned size) {
    switch (size) {
    case 1: store8(cpu, seg, offset, (uint8_t)value); break;
    case 2: store16(cpu, seg, offset, (uint16_t)value); break;
    case 4: store32(cpu, seg, offset, (uint32_t)value); break;
    default: store64(cpu, seg, offset, value); break;
    }
}

/* The stack in its segment and width (cpu->stack_mask). push raises before RSP changes. */
static inline void stack_move(struct soft_cpu *cpu, int64_t delta) {
    uint64_t rsp = cpu->gpr[RSP], mask = cpu->stack_mask;
    cpu->gpr[RSP] = (rsp & ~mask) | ((rsp + (uint64_t)delta) & mask);
}

static inline void push(struct soft_cpu *cpu, uint64_t value, unsigned size) {
    store_sized(cpu, SEG_SS, (cpu->gpr[RSP] - size) & cpu->stack_mask, value, size);
    stack_move(cpu, -(int64_t)size);
}

/* Reads `displacement` bytes above the top without moving RSP; stack_move moves it. */
static inline uint64_t stack_peek(struct soft_cpu *cpu, unsigned displacement, unsigned size) {
    return load_sized(cpu, SEG_SS, (cpu->gpr[RSP] + displacement) & cpu->stack_mask, size);
}

#endif
