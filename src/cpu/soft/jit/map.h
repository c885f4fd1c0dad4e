/*
 * Which translated code is where: host code addresses back to guest code, for
 * profiles and perf maps. Ranges are added as code memory fills, so they are
 * in order; all go at once when it is emptied.
 */
#ifndef LODGE_CPU_SOFT_JIT_MAP_H
#define LODGE_CPU_SOFT_JIT_MAP_H

#include <stddef.h>

#include "cpu/soft/soft.h"

enum { JIT_MAP_MAX = 1 << 18 };

struct jit_range {
    uint64_t rip;    /* linear, of the guest code */
    uint32_t offset; /* in code memory */
    uint32_t cpl;
};

struct jit_map {
    struct jit_range *entries; /* JIT_MAP_MAX of them, reserved */
    uint32_t count;
    const struct code_listener *listener; /* NULL: nobody wants to know */
};

struct block;

/* [offset, offset+size) of code memory now holds code made from the block; above all others. The
 * entry's number, or JIT_MAP_MAX. */
uint32_t jit_map_add(struct soft_cpu *cpu, size_t offset, size_t size, const struct block *block);
/* An entry's block moved. */
void jit_map_move(struct soft_cpu *cpu, uint32_t n, uint64_t delta);
/* Code memory was emptied. */
void jit_map_clear(struct soft_cpu *cpu);

enum jit_where { JIT_WHERE_OUTSIDE, JIT_WHERE_STUBS, JIT_WHERE_CODE };

/*
 * Where a host address is, and for translated code whose. The vCPU's thread,
 * also in a signal handler that interrupted it at that very address: code
 * memory and this map do not change while code in it runs.
 */
enum jit_where jit_find_host(const struct soft_cpu *cpu, uintptr_t host, uint64_t *rip,
                             unsigned *cpl);

/* engine_ops.listen_code. */
int soft_listen_code(struct vcpu *vcpu, const struct code_listener *listener, struct error *err);

#endif
