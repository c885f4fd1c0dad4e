/* Control registers, MSRs and CPUID: what may be set, what is refused, what is told. */
#include "soft_fixture.h"

static int start(void **state) {
    struct fixture *f = fixture_create();
    fixture_long_mode(f);
    insn_index_init();
    cpuid_init_features(f->cpu);
    *state = f;
    return 0;
}

static int stop(void **state) {
    fixture_destroy(*state);
    return 0;
}

struct msr_case {
    uint32_t msr;
    uint64_t value;
    bool writes;
    uint64_t reads; /* afterwards, when the write is taken */
};

static const struct msr_case msr_cases[] = {
    {MSR_LSTAR, UINT64_C(0xffffffff81000000), true, UINT64_C(0xffffffff81000000)},
    {MSR_LSTAR, UINT64_C(0x800000000000), false, 0},
    {MSR_SFMASK, UINT64_C(0x100000000), false, 0},
    {MSR_KERNEL_GS_BASE, UINT64_C(0x8000000000000000), false, 0},
    {MSR_FS_BASE, 0x7fff12345678, true, 0x7fff12345678},
    {MSR_GS_BASE, UINT64_C(0x800000000000), false, 0},
    {MSR_TSC_AUX, 7, true, 7},
    {MSR_TSC_AUX, UINT64_C(1) << 32, false, 0},
    {MSR_TSC_ADJUST, 1000, true, 1000},
    {MSR_PAT, UINT64_C(0x0007040600010406), true, UINT64_C(0x0007040600010406)},
    {MSR_PAT, 2, false, 0}, /* type 2 is reserved */
    {MSR_MTRR_DEF_TYPE, 0xc06, true, 0xc06},
    {MSR_MTRR_DEF_TYPE, 0xc07, false, 0}, /* UC- is PAT's alone */
    {0x200, 0x80000006, true, 0x80000006},
    {0x201, UINT64_C(0xffff80000800), true, UINT64_C(0xffff80000800)},
    {0x201, UINT64_C(1) << 52, false, 0},
    {0x26f, UINT64_C(0x0606060606060606), true, UINT64_C(0x0606060606060606)},
    {MSR_MTRRCAP, 0, false, 0},
    {MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE, true, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE},
    {MSR_EFER, EFER_SCE | EFER_NXE, false, 0},  /* LME with paging on */
    {MSR_EFER, EFER_SVME | EFER_LME, false, 0}, /* not offered */
    {0x1234567, 0, false, 0},
};

static void msrs(void **state) {
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(msr_cases); i++) {
        const struct msr_case *c = &msr_cases[i];
        uint64_t value;
        assert_int_equal(msr_write(f->cpu, c->msr, c->value), c->writes);
        if (!c->writes)
            continue;
        assert_true(msr_read(f->cpu, c->msr, &value));
        assert_int_equal(value, c->reads);
    }
    uint64_t value;
    assert_false(msr_read(f->cpu, 0x1234567, &value));
}

static void tsc_follows_writes(void **state) {
    struct fixture *f = *state;
    uint64_t value;
    assert_true(msr_write(f->cpu, MSR_TSC, UINT64_C(1) << 60));
    assert_true(msr_read(f->cpu, MSR_TSC, &value));
    assert_true(value >= UINT64_C(1) << 60 && value < UINT64_C(1) << 61);
    assert_true(msr_read(f->cpu, MSR_TSC_ADJUST, &value)); /* moved along */
    assert_int_equal(value, f->cpu->tsc_offset);
}

static void control_registers(void **state) {
    struct soft_cpu *cpu = ((struct fixture *)*state)->cpu;
    assert_false(system_set_cr0(cpu, cpu->cr0 & ~(uint64_t)CR0_PE));
    assert_false(system_set_cr0(cpu, cpu->cr0 & ~CR0_PG)); /* in 64-bit code */
    assert_false(system_set_cr0(cpu, cpu->cr0 | CR0_NW));
    assert_false(system_set_cr0(cpu, cpu->cr0 | UINT64_C(1) << 32));
    assert_false(system_set_cr4(cpu, cpu->cr4 & ~(uint64_t)CR4_PAE));
    assert_false(system_set_cr4(cpu, cpu->cr4 | 1 << 12)); /* five levels */
    assert_false(system_set_cr4(cpu, cpu->cr4 | CR4_VME));
    assert_false(system_set_cr3(cpu, UINT64_C(1) << 48));
    assert_false(system_set_xcr0(cpu, 0));
    assert_false(system_set_xcr0(cpu, 5)); /* AVX without SSE */
    assert_false(system_set_xcr0(cpu, 15));
    assert_true(system_set_xcr0(cpu, 7));
    /* To compatibility mode, then out of long mode. */
    cpu->segment[SEG_CS].attributes = 0xc09b;
    mmu_mode_changed(cpu);
    assert_true(system_set_cr0(cpu, cpu->cr0 & ~CR0_PG));
    assert_int_equal(cpu->efer & (EFER_LMA | EFER_LME), EFER_LME);
    assert_false(cpu->long_mode);
    assert_true(system_set_cr0(cpu, cpu->cr0 | CR0_PG));
    assert_true(cpu->long_mode);
}

static void cpuid_is_consistent(void **state) {
    struct soft_cpu *cpu = ((struct fixture *)*state)->cpu;
    uint32_t out[4], again[4];
    cpuid_query(cpu, 0, 0, out);
    assert_memory_equal(&out[1], "Auth", 4);
    uint32_t last = out[0];
    cpuid_query(cpu, 1, 0, out);
    cpuid_query(cpu, UINT32_C(0x80000001), 0, again);
    assert_int_equal(out[0], again[0]);
    assert_false(out[2] & 1 << 27); /* OSXSAVE mirrors CR4 */
    assert_true(system_set_cr4(cpu, cpu->cr4 | CR4_OSXSAVE));
    cpuid_query(cpu, 1, 0, out);
    assert_true(out[2] & 1 << 27);
    assert_true(out[3] & 1);   /* x87 */
    assert_true(again[3] & 1); /* told there, too */
    assert_true(again[3] & 1 << 29);
    cpuid_query(cpu, last + 1, 0, out);
    assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
    cpuid_query(cpu, UINT32_C(0x80000008), 0, out);
    assert_int_equal(out[0] & 0xffff, 0x3030); /* 48 bits of either address */
}

static void xsave_sizes(void **state) {
    struct soft_cpu *cpu = ((struct fixture *)*state)->cpu;
    uint32_t out[4];
    cpu->xcr0 = 1;
    cpuid_query(cpu, 0xd, 0, out);
    assert_int_equal(out[1], 576);
    assert_int_equal(out[2], 832);
    cpu->xcr0 = 7;
    cpuid_query(cpu, 0xd, 0, out);
    assert_int_equal(out[0], 7);
    assert_int_equal(out[1], 832);
    cpuid_query(cpu, 0xd, 2, out);
    assert_int_equal(out[0], 256);
    assert_int_equal(out[1], 576);
    cpuid_query(cpu, 0xd, 3, out);
    assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
}

/* What is told is what can run: every feature bit of a row that exists, and no other. */
static void features_have_rows(void **state) {
    struct soft_cpu *cpu = ((struct fixture *)*state)->cpu;
    static const struct {
        uint32_t leaf, reg, bit;
        enum insn_feature feature;
    } bits[] = {
        {1, 2, 12, FEAT_FMA},     {1, 2, 25, FEAT_AES},        {1, 2, 28, FEAT_AVX},
        {1, 2, 20, FEAT_SSE42},   {7, 1, 5, FEAT_AVX2},        {7, 1, 29, FEAT_SHA},
        {7, 1, 10, FEAT_INVPCID}, {7, 1, 20, FEAT_SMAP},       {7, 2, 22, FEAT_RDPID},
        {7, 1, 19, FEAT_ADX},     {7, 1, 23, FEAT_CLFLUSHOPT},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
        uint32_t out[4];
        cpuid_query(cpu, bits[i].leaf, 0, out);
        assert_int_equal(out[bits[i].reg] >> bits[i].bit & 1, soft_has(cpu, bits[i].feature));
    }
    assert_false(soft_has(cpu, FEAT_SVM));
    assert_false(soft_has(cpu, FEAT_MONITOR));
    assert_true(soft_has(cpu, FEAT_FSGSBASE));
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(msrs),        T(tsc_follows_writes), T(control_registers), T(cpuid_is_consistent),
        T(xsave_sizes), T(features_have_rows),
    };
    return cmocka_run_group_tests_name("soft system", tests, NULL, NULL);
}
