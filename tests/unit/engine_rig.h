/*
 * A machine of the smallest kind for tests of an engine: RAM, ports, an
 * interrupt controller, one vCPU through the public contract.
 */
#ifndef LODGE_TESTS_ENGINE_RIG_H
#define LODGE_TESTS_ENGINE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/bytes.h"
#include "cpu/engine.h"

struct engine_rig {
    struct memory *memory;
    struct ports *ports;
    struct vm_clock *clock;
    struct irqchip *irqchip;
    struct engine *engine;
    struct vcpu *vcpu;
};

/* Writing to it kicks the vCPU. */
enum { RIG_END_PORT = 0xf4 };

static inline void rig_end_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct engine_rig *rig = context;
    vcpu_kick(rig->vcpu);
}

static inline uint64_t rig_end_read(void *context, uint64_t offset, unsigned size) {
    return 0x5a;
}

/* Everything but the vCPU. What the config says beside the parts, the caller has filled in. The
 * error of making the engine. */
static inline int rig_create(struct engine_rig *rig, enum engine_kind kind, uint64_t ram,
                             struct engine_config config, struct error *err) {
    memset(rig, 0, sizeof *rig);
    assert_int_equal(memory_create(&rig->memory, NULL), 0);
    assert_int_equal(memory_add_ram(rig->memory, "ram", 0, ram, NULL), 0);
    assert_int_equal(ports_create(&rig->ports, NULL), 0);
    assert_int_equal(vm_clock_create(&rig->clock, NULL), 0);
    assert_int_equal(irqchip_create(rig->memory, rig->ports, rig->clock, &rig->irqchip, NULL), 0);
    config.memory = rig->memory;
    config.ports = rig->ports;
    config.irqchip = rig->irqchip;
    config.clock = rig->clock;
    return engine_create(kind, &config, &rig->engine, NULL, err);
}

static inline void rig_add_end_port(struct engine_rig *rig) {
    static const struct io_ops ops = {.read = rig_end_read, .write = rig_end_write};
    struct port_range *range;
    assert_int_equal(ports_add(rig->ports, "end", RIG_END_PORT, 1, &ops, rig, &range, NULL), 0);
}

static inline void rig_destroy(struct engine_rig *rig) {
    if (rig->vcpu != NULL)
        vcpu_destroy(rig->vcpu);
    engine_destroy(rig->engine);
    irqchip_destroy(rig->irqchip);
    ports_destroy(rig->ports);
    vm_clock_destroy(rig->clock);
    memory_destroy(rig->memory);
}

static inline void rig_poke(struct engine_rig *rig, uint64_t gpa, const void *bytes,
                            size_t length) {
    assert_int_equal(memory_write(rig->memory, gpa, bytes, length), 0);
}

static inline void rig_poke64(struct engine_rig *rig, uint64_t gpa, uint64_t value) {
    rig_poke(rig, gpa, &value, sizeof value);
}

/* Long mode at CPL 0: RAM at its physical addresses by 2 MiB pages, three page tables from `tables`
 * on, and a GDT with flat code (8) and data (16). */
static inline void rig_long_mode(struct engine_rig *rig, uint64_t tables, uint64_t gdt,
                                 uint64_t ram, struct x86_state *state) {
    rig_poke64(rig, tables, (tables + PAGE_SIZE) | 7);
    rig_poke64(rig, tables + PAGE_SIZE, (tables + 2 * PAGE_SIZE) | 7);
    for (uint64_t i = 0; i < ram >> 21; i++)
        rig_poke64(rig, tables + 2 * PAGE_SIZE + 8 * i, i << 21 | 0x87);
    rig_poke64(rig, gdt + 8, UINT64_C(0x00af9b000000ffff));
    rig_poke64(rig, gdt + 16, UINT64_C(0x00cf93000000ffff));
    vcpu_get_state(rig->vcpu, state);
    state->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_ET | CR0_NE;
    state->cr3 = tables;
    state->cr4 = CR4_PAE | CR4_OSFXSR;
    state->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] =
            (struct x86_segment){0, UINT32_MAX, 16, SEG_P | SEG_S | 3 | SEG_G | SEG_DB};
    state->segment[SEG_CS] =
        (struct x86_segment){0, UINT32_MAX, 8, SEG_P | SEG_S | 11 | SEG_G | SEG_L};
    state->gdtr = (struct x86_table){gdt, 23};
}

#endif
