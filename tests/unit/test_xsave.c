/*
 * FXSAVE, the XSAVE family, FNSTENV and FNSAVE: formats and checks.
 */
#include <stdio.h>

#include "vec_rig.h"

static uint8_t area[832];

#define XSAVE64    0x48, 0x0f, 0xae, 0x23 /* [rbx] */
#define XRSTOR64   0x48, 0x0f, 0xae, 0x2b
#define XSAVEOPT64 0x48, 0x0f, 0xae, 0x33
#define XSAVEC64   0x48, 0x0f, 0xc7, 0x23

static void ask(uint32_t components) {
    cpu->gpr[RBX] = DATA;
    cpu->gpr[RAX] = components;
    cpu->gpr[RDX] = 0;
}

static void clear_area(void) {
    memset(area, 0, sizeof area);
    rig_store(DATA, area, sizeof area);
}

/* One value in each component. */
static void fill(void) {
    cpu->vec[3].q[0] = 0x1111;
    cpu->vec[3].q[2] = 0x2222;
    RUN_OK(0xd9, 0xe8); /* fld1 */
    cpu->mxcsr = 0x1fa0;
}

static void wipe(void) {
    memset(cpu->vec, 0, sizeof cpu->vec);
    memset(cpu->x87, 0, sizeof cpu->x87);
    cpu->fsw = 0;
    cpu->ftw = 0;
    cpu->mxcsr = 0x1f80;
}

static void check_restored(void) {
    assert_true(cpu->vec[3].q[0] == 0x1111 && cpu->vec[3].q[2] == 0x2222);
    assert_true(cpu->x87[7].significand == UINT64_C(1) << 63);
    assert_int_equal(cpu->fsw, 0x3800);
    assert_int_equal(cpu->ftw, 0x80);
    assert_int_equal(cpu->mxcsr, 0x1fa0);
}

static void fxsave_format(void **state) {
    fill();
    memset(area, 0xcc, sizeof area);
    rig_store(DATA, area, sizeof area);
    cpu->gpr[RBX] = DATA;
    RUN_OK(0x48, 0x0f, 0xae, 0x03);
    rig_load(DATA, area, sizeof area);
    assert_int_equal(load_le16(area), 0x37f);
    assert_int_equal(load_le16(area + 2), 0x3800);
    assert_int_equal(area[4], 0x80);
    assert_int_equal(load_le64(area + 8), 0); /* no exception pending */
    assert_int_equal(load_le32(area + 24), 0x1fa0);
    assert_int_equal(load_le16(area + 32 + 8), 0x3fff); /* ST(0) */
    assert_int_equal(load_le16(area + 160 + 48), 0x1111);
    assert_int_equal(area[416], 0xcc); /* left to software */
    wipe();
    cpu->vec[3].q[2] = 0x2222;
    RUN_OK(0x48, 0x0f, 0xae, 0x0b); /* fxrstor */
    check_restored();
}

static void fxrstor_checks(void **state) {
    clear_area();
    store_le32(area + 24, 0x80000000);
    rig_store(DATA, area, sizeof area);
    cpu->gpr[RBX] = DATA;
    assert_int_equal(RUN(0x0f, 0xae, 0x0b), EXC_GP);
    cpu->gpr[RBX] = DATA + 8;
    assert_int_equal(RUN(0x0f, 0xae, 0x03), EXC_GP);
}

static void standard_format(void **state) {
    clear_area();
    fill();
    ask(7);
    RUN_OK(XSAVE64);
    rig_load(DATA, area, sizeof area);
    assert_true(load_le64(area + 512) == 7 && load_le64(area + 520) == 0);
    assert_int_equal(load_le16(area + 576 + 48), 0x2222);
    wipe();
    RUN_OK(XRSTOR64);
    check_restored();
}

static void compact_format(void **state) {
    clear_area();
    fill();
    ask(7);
    RUN_OK(XSAVEC64);
    rig_load(DATA, area, sizeof area);
    assert_true(load_le64(area + 512) == 7);
    assert_true(load_le64(area + 520) == (UINT64_C(1) << 63 | 7));
    wipe();
    RUN_OK(XRSTOR64);
    check_restored();
}

/* Components in their initial state are not there, and come back as such. */
static void initial_state(void **state) {
    clear_area();
    ask(7);
    cpu->vec[3].q[0] = 0x1111;
    RUN_OK(XSAVEOPT64);
    rig_load(DATA, area, sizeof area);
    assert_int_equal(load_le64(area + 512), 2);
    fill();
    RUN_OK(XRSTOR64);
    assert_true(cpu->vec[3].q[0] == 0x1111 && cpu->vec[3].q[2] == 0);
    assert_int_equal(cpu->ftw, 0);
    assert_int_equal(cpu->mxcsr, 0x1f80);
}

/* What is not asked for stays, in memory and in registers. */
static void partial(void **state) {
    clear_area();
    fill();
    ask(7);
    RUN_OK(XSAVE64);
    wipe();
    ask(4);
    RUN_OK(XRSTOR64);
    assert_true(cpu->vec[3].q[0] == 0 && cpu->vec[3].q[2] == 0x2222);
    assert_int_equal(cpu->ftw, 0);
    cpu->vec[3].q[2] = 0x3333;
    RUN_OK(XSAVE64);
    rig_load(DATA, area, sizeof area);
    assert_int_equal(load_le64(area + 512), 7);
    assert_int_equal(load_le16(area + 160 + 48), 0x1111);
    assert_int_equal(load_le16(area + 576 + 48), 0x3333);
}

static void header_value(unsigned offset, uint64_t value) {
    clear_area();
    store_le64(area + offset, value);
    store_le32(area + 24, 0x1f80);
    rig_store(DATA, area, sizeof area);
    ask(7);
}

static void header_checks(void **state) {
    header_value(512, 8);
    assert_int_equal(RUN(XRSTOR64), EXC_GP);
    header_value(520, 1);
    assert_int_equal(RUN(XRSTOR64), EXC_GP);
    header_value(528, 1);
    assert_int_equal(RUN(XRSTOR64), EXC_GP);
    header_value(520, UINT64_C(1) << 63 | 8);
    assert_int_equal(RUN(XRSTOR64), EXC_GP);
    header_value(24, 0);
    RUN_OK(XRSTOR64);
    cpu->gpr[RBX] = DATA + 32;
    assert_int_equal(RUN(XSAVE64), EXC_GP);
    cpu->cr4 &= ~(uint64_t)CR4_OSXSAVE;
    assert_int_equal(RUN(XSAVE64), EXC_UD);
}

static void x87_environment(void **state) {
    uint32_t env[7];
    cpu->gpr[RBX] = DATA;
    cpu->fcw = 0x340;
    RUN_OK(0xd9, 0xee); /* fldz */
    RUN_OK(0xd8, 0xf0); /* fdiv st0, st0: invalid, unmasked, pending */
    RUN_OK(0xd9, 0x33); /* fnstenv [rbx] */
    rig_load(DATA, env, sizeof env);
    assert_int_equal(env[0], 0xffff0340);
    assert_int_equal(env[1] & 0xb8ff, 0xb881);
    assert_int_equal(env[2], 0xffff7fff); /* R7 is zero */
    assert_int_equal(env[3], 0x1000);
    assert_int_equal(env[4], 0x00f0 << 16 | 8);
    assert_int_equal(cpu->fcw, 0x37f); /* FNSTENV masks everything */
    RUN_OK(0xd9, 0xe8);
    RUN_OK(0xd9, 0x23); /* fldenv: it is pending again */
    assert_int_equal(RUN(0x9b), EXC_MF);
    RUN_OK(0xdb, 0xe2); /* fnclex */
    RUN_OK(0x9b);
}

static void fnsave_and_frstor(void **state) {
    fill();
    cpu->gpr[RBX] = DATA;
    RUN_OK(0xdd, 0x33); /* fnsave */
    assert_int_equal(cpu->ftw, 0);
    assert_int_equal(cpu->fsw, 0);
    RUN_OK(0xdd, 0x23); /* frstor */
    check_restored();
}

/* Nothing changes when the operand's page is not there. */
static void store_faults_first(void **state) {
    fill();
    cpu->gpr[RBX] = HOLE;
    assert_int_equal(RUN(0xdd, 0x1b), EXC_PF); /* fstp qword [rbx] */
    assert_int_equal(cpu->ftw, 0x80);
    assert_int_equal(cpu->fsw, 0x3800);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
        T(fxsave_format),      T(fxrstor_checks),  T(standard_format),
        T(compact_format),     T(initial_state),   T(partial),
        T(header_checks),      T(x87_environment), T(fnsave_and_frstor),
        T(store_faults_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
