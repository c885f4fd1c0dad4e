/*
 * A vCPU of the soft engine without its run loop, for tests of single parts:
 * 16 MiB of RAM at 0, page tables built on demand, descriptor tables by hand.
 */
#ifndef LODGE_TESTS_SOFT_FIXTURE_H
#define LODGE_TESTS_SOFT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "cpu/soft/access.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

enum {
    FIXTURE_RAM = 16 << 20,
    FIXTURE_CR3 = 0x100000,
    FIXTURE_GDT = 0x1000,
    FIXTURE_IDT = 0x2000,
    FIXTURE_TSS = 0x4000,
    PT_P = 1,
    PT_W = 2,
    PT_U = 4,
    PT_A = 0x20,
    PT_D = 0x40,
    PT_PS = 0x80,
    PT_G = 0x100,
};
#define PT_NX (UINT64_C(1) << 63)

struct fixture {
    struct memory *memory;
    struct vm_clock *clock;
    struct engine engine;
    struct soft_cpu *cpu;
    uint64_t next_table;
};

static inline void fixture_poke(struct fixture *f, uint64_t gpa, uint64_t value, unsigned size) {
    assert_int_equal(memory_write(f->memory, gpa, &value, size), 0);
}

static inline uint64_t fixture_peek(struct fixture *f, uint64_t gpa, unsigned size) {
    uint64_t value = 0;
    assert_int_equal(memory_read(f->memory, gpa, &value, size), 0);
    return value;
}

static inline struct fixture *fixture_create(void) {
    struct fixture *f = calloc(1, sizeof *f);
    assert_int_equal(memory_create(&f->memory, NULL), 0);
    assert_int_equal(memory_add_ram(f->memory, "ram", 0, FIXTURE_RAM, NULL), 0);
    assert_int_equal(vm_clock_create(&f->clock, NULL), 0);
    f->engine.config = (struct engine_config){.memory = f->memory, .clock = f->clock, .vcpus = 1};
    f->next_table = FIXTURE_CR3 + PAGE_SIZE;
    f->cpu = aligned_alloc(64, round_up(sizeof *f->cpu, 64));
    memset(f->cpu, 0, sizeof *f->cpu);
    f->cpu->vcpu.engine = &f->engine;
    f->cpu->memory = f->memory;
    f->cpu->view = memory_default_view(f->memory);
    f->cpu->rflags = FLAGS_FIXED;
    f->cpu->flags.result = 1;
    assert_int_equal(mmu_init(f->cpu, NULL), 0);
    return f;
}

static inline void fixture_destroy(struct fixture *f) {
    mmu_destroy(f->cpu);
    free(f->cpu);
    vm_clock_destroy(f->clock);
    memory_destroy(f->memory);
    free(f);
}

/* The entry of `linear` at the level whose pages are 1 << shift bytes, tables made on the way. */
static inline uint64_t fixture_entry(struct fixture *f, uint64_t linear, unsigned shift) {
    uint64_t table = FIXTURE_CR3;
    for (unsigned s = 39; s > shift; s -= 9) {
        uint64_t at = table + (linear >> s & 511) * 8, entry = fixture_peek(f, at, 8);
        if (!(entry & PT_P)) {
            entry = f->next_table | PT_P | PT_W | PT_U;
            f->next_table += PAGE_SIZE;
            fixture_poke(f, at, entry, 8);
        }
        table = entry & UINT64_C(0xffffffffff000);
    }
    return table + (linear >> shift & 511) * 8;
}

static inline void fixture_map(struct fixture *f, uint64_t linear, uint64_t gpa, uint64_t bits) {
    fixture_poke(f, fixture_entry(f, linear, 12), gpa | bits, 8);
}

/* 64-bit mode, CPL 0, paging with nothing mapped but the first 64 KiB (supervisor, writable). */
static inline void fixture_long_mode(struct fixture *f) {
    struct soft_cpu *cpu = f->cpu;
    cpu->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_ET | CR0_NE;
    cpu->cr4 = CR4_PAE | CR4_PGE;
    cpu->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    cpu->cr3 = FIXTURE_CR3;
    cpu->segment[SEG_CS] = segment_flat_of(8, 0xa09b);
    cpu->segment[SEG_SS] = segment_flat_of(0x10, 0xc093);
    for (uint64_t page = 0; page < 0x10000; page += PAGE_SIZE)
        fixture_map(f, page, page, PT_P | PT_W);
    mmu_flush_all(cpu);
    mmu_mode_changed(cpu);
}

static inline void fixture_cpl(struct fixture *f, unsigned cpl) {
    f->cpu->cpl = (uint8_t)cpl;
    f->cpu->segment[SEG_CS].selector = (uint16_t)((f->cpu->segment[SEG_CS].selector & ~3) | cpl);
    f->cpu->segment[SEG_CS].attributes =
        (uint16_t)((f->cpu->segment[SEG_CS].attributes & ~SEG_DPL) | cpl << 5);
    f->cpu->segment[SEG_SS].attributes =
        (uint16_t)((f->cpu->segment[SEG_SS].attributes & ~SEG_DPL) | cpl << 5);
    mmu_mode_changed(f->cpu);
}

#endif
