/*
 * Single instructions of a soft vCPU in 64-bit mode with all features: what
 * the tests of vectors and x87 share. Data goes below 64 KiB; what lies above
 * is not mapped.
 */
#ifndef LODGE_TESTS_VEC_RIG_H
#define LODGE_TESTS_VEC_RIG_H

#include "cpu/soft/run.h"
#include "soft_fixture.h"

enum { DATA = 0x8000, HOLE = 0x10000, NO_EXCEPTION = -1 };

static struct fixture *fixture;
static struct soft_cpu *cpu;
static struct soft_run rig_run;

static inline int rig_setup(void **state) {
    insn_index_init();
    fixture = fixture_create();
    fixture_long_mode(fixture);
    cpu = fixture->cpu;
    cpu->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    cpu->xcr0 = 7;
    cpu->mxcsr = 0x1f80;
    cpu->fcw = 0x37f;
    cpu->run = &rig_run;
    memset(cpu->features, 0xff, sizeof cpu->features);
    return 0;
}

static inline int rig_teardown(void **state) {
    fixture_destroy(fixture);
    return 0;
}

static void rig_stop(struct soft_cpu *c, const struct insn *insn) {
}

/* The exception's vector, or NO_EXCEPTION. */
static inline int rig_execute(const uint8_t *bytes, size_t length) {
    static struct insn insn[2];
    int decoded = insn_decode(insn, bytes, length, 0x1000, INSN_MODE_64, cpu->features);
    if (decoded < 0)
        return -decoded;
    assert_int_equal(decoded, length);
    insn[1].exec = rig_stop;
    cpu->rip = 0x1000;
    cpu->event.pending = false;
    if (setjmp(cpu->unwind) == 0)
        insn->exec(cpu, insn);
    return cpu->event.pending ? cpu->event.vector : NO_EXCEPTION;
}

#define RUN(...)    rig_execute((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))
#define RUN_OK(...) assert_int_equal(RUN(__VA_ARGS__), NO_EXCEPTION)

/* Sixteen bytes from hexadecimal digits, first byte first. */
static inline void rig_hex(void *to, const char *digits) {
    uint8_t *bytes = to;
    for (unsigned i = 0; digits[2 * i] != '\0'; i++) {
        unsigned value;
        assert_int_equal(sscanf(digits + 2 * i, "%2x", &value), 1);
        bytes[i] = (uint8_t)value;
    }
}

static inline void rig_store(uint64_t address, const void *bytes, size_t length) {
    assert_int_equal(memory_write(fixture->memory, address, bytes, length), 0);
}

static inline void rig_load(uint64_t address, void *bytes, size_t length) {
    assert_int_equal(memory_read(fixture->memory, address, bytes, length), 0);
}

#endif
