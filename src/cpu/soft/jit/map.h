/*
 * Which translated code is where: host code addresses back to guest code, for
 * profiles and perf maps. The code of translations lies one behind the
 * other, and each leads to the next; all go at once.
 */
#ifndef LODGE_CPU_SOFT_JIT_MAP_H
#define LODGE_CPU_SOFT_JIT_MAP_H

#include <stddef.h>

#include "cpu/soft/jit/jit.h"
#include "cpu/soft/soft.h"

/* In which translation each so many bytes of code memory begin, or a number before it. */
enum { JIT_MAP_GRAIN = 256, JIT_MAP_GRAINS = JIT_CODE_SIZE / JIT_MAP_GRAIN };

struct jit_map {
    uint32_t starts[JIT_MAP_GRAINS];      /* numbers (struct jit_block) */
    const struct code_listener *listener; /* NULL: nobody wants to know */
};

struct jit_block;

/* A translation is at the end of the code memory that is used. */
void jit_map_add(struct soft_cpu *cpu, const struct jit_block *made);
/* Code memory was emptied. */
void jit_map_clear(struct soft_cpu *cpu);
/* The translation that has a place in code memory, behind the stubs. */
struct jit_block *jit_map_find(const struct jit *jit, size_t offset);

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
