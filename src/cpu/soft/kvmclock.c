/*
 * KVM's paravirtual clock: two MSRs by which a guest has its time written into
 * its memory. Source: Linux's Documentation/virt/kvm/x86/msr.rst and cpuid.rst.
 *
 * The guest works out its time from its TSC and a line that is told here. Its
 * TSC is the VM's time already (base/clock.h), scaled, paused and caught up:
 * the line is the same for ever, and is written once.
 */
#include "cpu/soft/kvmclock.h"

#include "base/clock.h"

struct wall_clock {
    uint32_t version; /* odd while it is being written */
    uint32_t seconds, nanoseconds;
};

struct system_time {
    uint32_t version, pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
_Static_assert(sizeof(struct system_time) == 32, "as the guest knows it");

enum { TSC_STABLE = 1 }; /* flags: the same on all processors */

/* time = (ticks << shift) * mul >> 32, the shift being to the right when it is negative. */
static void set_line(struct system_time *time, uint64_t tsc_hz) {
    while (tsc_hz <= NS_PER_SECOND) {
        tsc_hz <<= 1;
        time->tsc_shift++;
    }
    while (tsc_hz > 2 * NS_PER_SECOND) {
        tsc_hz >>= 1;
        time->tsc_shift--;
    }
    time->tsc_to_system_mul = (uint32_t)((NS_PER_SECOND << 32) / tsc_hz);
}

/* Where there is no RAM nothing is written, as for a device. */
void kvmclock_write_system_time(struct soft_cpu *cpu) {
    uint64_t gpa = cpu->kvm_system_time & ~(uint64_t)KVM_SYSTEM_TIME_ON;
    struct system_time time = {.tsc_timestamp = cpu->tsc_offset, .flags = TSC_STABLE};
    if (!(cpu->kvm_system_time & KVM_SYSTEM_TIME_ON))
        return;
    set_line(&time, vm_clock_tsc_hz(cpu->vcpu.engine->config.clock));
    time.version = 1;
    memory_write(cpu->memory, gpa, &time, sizeof time);
    time.version = 2;
    memory_write(cpu->memory, gpa, &time, sizeof time);
}

void kvmclock_write_wall_clock(struct soft_cpu *cpu) {
    uint64_t wall = vm_clock_wall_ns(cpu->vcpu.engine->config.clock, 0);
    struct wall_clock now = {.version = 2,
                             .seconds = (uint32_t)(wall / NS_PER_SECOND),
                             .nanoseconds = (uint32_t)(wall % NS_PER_SECOND)};
    memory_write(cpu->memory, cpu->kvm_wall_clock, &now, sizeof now);
}
