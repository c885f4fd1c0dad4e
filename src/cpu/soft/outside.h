/*
 * Light calls: C that translated code calls with the guest's vector registers
 * and MXCSR still in the host's. The files that such calls reach are compiled
 * for general registers alone (general_sources in the meson.build files), so
 * they cannot disturb them. Where they go on to anything else they must give
 * the vector registers up first: that is what this header wraps.
 *
 * Forgetting is not possible: scripts/check-general refuses a general object
 * that uses any symbol but those of general objects and those wrapped here,
 * and the wrapped names are poisoned for the files that include this header.
 */
#ifndef LODGE_CPU_SOFT_OUTSIDE_H
#define LODGE_CPU_SOFT_OUTSIDE_H

#include <sched.h>
#include <stdio.h>
#include <sys/random.h>

#include "base/log.h"
#include "cpu/soft/kvmclock.h"
#include "cpu/soft/others.h"
#include "memory/ahead.h"

/* The guest's vector registers and MXCSR go to the vCPU's state, the host's come back. */
void jit_spill_now(struct soft_cpu *cpu);

static inline void jit_spill(struct soft_cpu *cpu) {
    if (unlikely(cpu->jit.light))
        jit_spill_now(cpu);
}

/* The two ends of a light call. What was spilled meanwhile is loaded again. */
static inline void light_begin(struct soft_cpu *cpu) {
    cpu->jit.light = true;
#ifdef LODGE_SANITIZE
    jit_spill_now(cpu); /* its memcpy and the like are not ours to choose */
#endif
}
void light_reload(struct soft_cpu *cpu);
static inline void light_end(struct soft_cpu *cpu) {
    if (unlikely(!cpu->jit.light))
        light_reload(cpu);
    cpu->jit.light = false;
}

static inline void outside_code_written(struct soft_cpu *cpu, uint64_t gpa, size_t length) {
    jit_spill(cpu);
    mmu_code_written(cpu, gpa, length);
}

static inline uint64_t outside_io_read(struct soft_cpu *cpu, uint64_t gpa, unsigned size) {
    jit_spill(cpu);
    return memory_io_read(cpu->memory, gpa, size);
}

static inline void outside_io_write(struct soft_cpu *cpu, uint64_t gpa, uint64_t value,
                                    unsigned size) {
    jit_spill(cpu);
    mmu_io_write(cpu, gpa, value, size);
}

static inline void outside_memory_touched(struct soft_cpu *cpu, uint64_t gpa) {
    jit_spill(cpu);
    memory_ahead_touched(cpu->memory, gpa);
}

static inline uint32_t outside_lapic_read(struct soft_cpu *cpu, unsigned offset) {
    jit_spill(cpu);
    return lapic_mmio_read(cpu->lapic, offset);
}

static inline void outside_lapic_write(struct soft_cpu *cpu, unsigned offset, uint32_t value) {
    jit_spill(cpu);
    lapic_mmio_write(cpu->lapic, offset, value);
}

static inline void outside_alone_begin(struct soft_cpu *cpu) {
    jit_spill(cpu);
    others_alone_begin(cpu);
}

static inline void outside_alone_end(struct soft_cpu *cpu) {
    jit_spill(cpu);
    others_alone_end(cpu);
}

/* Write entries are about to go: nobody could tell any more what was written through them. */
static inline void outside_answer(struct soft_cpu *cpu) {
    if (likely(!others_have_asked(cpu)))
        return;
    jit_spill(cpu);
    others_drop(cpu);
}

static inline void outside_yield(struct soft_cpu *cpu) {
    jit_spill(cpu);
    sched_yield();
}

static inline uint64_t outside_clock_tsc(struct soft_cpu *cpu) {
    jit_spill(cpu);
    return vm_clock_tsc(cpu->vcpu.engine->config.clock);
}

static inline bool outside_lapic_msr_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *value) {
    jit_spill(cpu);
    return lapic_msr_read(cpu->lapic, msr, value);
}

static inline bool outside_lapic_msr_write(struct soft_cpu *cpu, uint32_t msr, uint64_t value) {
    jit_spill(cpu);
    return lapic_msr_write(cpu->lapic, msr, value);
}

static inline bool outside_lapic_set_base(struct soft_cpu *cpu, uint64_t value) {
    jit_spill(cpu);
    return lapic_set_base(cpu->lapic, value);
}

static inline void outside_lapic_set_deadline(struct soft_cpu *cpu, uint64_t tsc) {
    jit_spill(cpu);
    lapic_set_tsc_deadline(cpu->lapic, tsc);
}

static inline uint32_t outside_port_read(struct soft_cpu *cpu, uint16_t port, unsigned size) {
    jit_spill(cpu);
    return port_read(cpu->vcpu.engine->config.ports, port, size);
}

static inline void outside_port_write(struct soft_cpu *cpu, uint16_t port, uint32_t value,
                                      unsigned size) {
    jit_spill(cpu);
    mmu_port_write(cpu, port, value, size);
}

static inline void outside_kvmclock(struct soft_cpu *cpu, bool wall) {
    jit_spill(cpu);
    if (wall)
        kvmclock_write_wall_clock(cpu);
    else
        kvmclock_write_system_time(cpu);
}

static inline void outside_invalidate_all(struct soft_cpu *cpu) {
    jit_spill(cpu);
    block_invalidate_all(cpu);
}

static inline uint64_t outside_xsave_in_use(struct soft_cpu *cpu) {
    jit_spill(cpu);
    return xsave_in_use(cpu);
}

static inline bool outside_random(struct soft_cpu *cpu, uint64_t *value) {
    jit_spill(cpu);
    return getrandom(value, sizeof *value, GRND_NONBLOCK) == sizeof *value;
}

#define outside_log(cpu, ...)                                                                      \
    do {                                                                                           \
        jit_spill(cpu);                                                                            \
        log_guest(__VA_ARGS__);                                                                    \
    } while (0)

#define outside_print(cpu, ...) (jit_spill(cpu), (void)snprintf(__VA_ARGS__))

/* To cpu->unwind, out of whatever runs. */
static inline _Noreturn void outside_unwind(struct soft_cpu *cpu) {
    jit_spill(cpu);
    longjmp(cpu->unwind, 1);
}

#pragma GCC poison longjmp mmu_code_written memory_io_read memory_io_write
#pragma GCC poison vm_clock_tsc lapic_msr_read lapic_msr_write lapic_set_base
#pragma GCC poison lapic_set_tsc_deadline port_read port_write mmu_io_write mmu_port_write
#pragma GCC poison block_invalidate_all xsave_in_use memory_ahead_touched
#pragma GCC poison kvmclock_write_wall_clock kvmclock_write_system_time
#pragma GCC poison getrandom log_write log_limit_pass snprintf
#pragma GCC poison lapic_mmio_read lapic_mmio_write others_alone_begin others_alone_end others_drop
#pragma GCC poison sched_yield

#endif
