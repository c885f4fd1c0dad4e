/*
 * Vector instructions: published vectors, SIMD exceptions, faults, VEX rules.
 * Every row against the host's processor is tests/silicon's matter.
 */
#include <stdio.h>

#include "vec_rig.h"

/* FIPS 197, appendix B: the cipher's key and the first round key after it. */
static void aes_key_expansion(void **state) {
    uint8_t expected[16];
    rig_hex(&cpu->vec[1], "2b7e151628aed2a6abf7158809cf4f3c");
    RUN_OK(0x66, 0x0f, 0x3a, 0xdf, 0xd1, 0x01); /* aeskeygenassist xmm2, xmm1, 1 */
    /* Dword 3 is RotWord(SubWord(w3)) xor Rcon: FIPS 197, appendix A.1, i = 4. */
    rig_hex(expected, "8b84eb01");
    assert_memory_equal(&cpu->vec[2].d[3], expected, 4);
}

/* FIPS 197, appendix B: start of round 1, its round key, start of round 2. */
static void aes_round(void **state) {
    uint8_t expected[16];
    rig_hex(&cpu->vec[0], "193de3bea0f4e22b9ac68d2ae9f84808");
    rig_hex(&cpu->vec[1], "a0fafe1788542cb123a339392a6c7605");
    rig_hex(expected, "a49c7ff2689f352b6b5bea43026a5049");
    RUN_OK(0x66, 0x0f, 0x38, 0xdc, 0xc1); /* aesenc xmm0, xmm1 */
    assert_memory_equal(&cpu->vec[0], expected, 16);
}

/* FIPS 180-4: SHA-256 of "abc", rounds by SHA256RNDS2 with the schedule worked out here. */
static const uint32_t sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t v, unsigned n) {
    return v >> n | v << (32 - n);
}

static void sha256_abc(void **state) {
    static const uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint32_t w[64] = {0x61626380, [15] = 24};
    for (unsigned i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    /* xmm1: C D G H, xmm2: A B E F, from the top. */
    memcpy(cpu->vec[1].d, (uint32_t[]){h[7], h[6], h[3], h[2]}, 16);
    memcpy(cpu->vec[2].d, (uint32_t[]){h[5], h[4], h[1], h[0]}, 16);
    for (unsigned i = 0; i < 64; i += 4) {
        cpu->vec[0].d[0] = w[i] + sha256_k[i];
        cpu->vec[0].d[1] = w[i + 1] + sha256_k[i + 1];
        RUN_OK(0x0f, 0x38, 0xcb, 0xca); /* sha256rnds2 xmm1, xmm2 */
        cpu->vec[0].d[0] = w[i + 2] + sha256_k[i + 2];
        cpu->vec[0].d[1] = w[i + 3] + sha256_k[i + 3];
        RUN_OK(0x0f, 0x38, 0xcb, 0xd1); /* sha256rnds2 xmm2, xmm1 */
    }
    assert_int_equal(cpu->vec[2].d[3] + h[0], 0xba7816bf);
    assert_int_equal(cpu->vec[2].d[2] + h[1], 0x8f01cfea);
    assert_int_equal(cpu->vec[1].d[0] + h[7], 0xf20015ad);
}

static void carryless_product(void **state) {
    cpu->vec[0].q[1] = 0x7b5b546573745665;
    cpu->vec[1].q[0] = 0x4869285368617929;
    RUN_OK(0x66, 0x0f, 0x3a, 0x44, 0xc1, 0x01); /* pclmulqdq xmm0, xmm1, 1 */
    /* Intel's white paper on PCLMULQDQ, example figures multiplied without carries. */
    uint64_t low = 0, high = 0;
    for (unsigned i = 0; i < 64; i++) {
        if (UINT64_C(0x4869285368617929) >> i & 1) {
            low ^= UINT64_C(0x7b5b546573745665) << i;
            high ^= i != 0 ? UINT64_C(0x7b5b546573745665) >> (64 - i) : 0;
        }
    }
    assert_true(cpu->vec[0].q[0] == low && cpu->vec[0].q[1] == high);
}

/* ---- Floating point ---- */

static void masked_divide_sets_a_flag(void **state) {
    cpu->vec[0].lf[0] = 1;
    cpu->vec[1].lf[0] = 0;
    RUN_OK(0xf2, 0x0f, 0x5e, 0xc1); /* divsd xmm0, xmm1 */
    assert_true(cpu->vec[0].q[0] == UINT64_C(0x7ff0000000000000));
    assert_int_equal(cpu->mxcsr, 0x1f84);
}

static void unmasked_divide(void) {
    cpu->mxcsr = 0x1d80;
    cpu->vec[0].lf[0] = 1;
    cpu->vec[1].lf[0] = 0;
    assert_int_equal(RUN(0xf2, 0x0f, 0x5e, 0xc1), EXC_XM);
    assert_true(cpu->vec[0].lf[0] == 1);
    assert_int_equal(cpu->mxcsr, 0x1d84);
    cpu->cr4 &= ~(uint64_t)CR4_OSXMMEXCPT;
    assert_int_equal(RUN(0xf2, 0x0f, 0x5e, 0xc1), EXC_UD);
}

/* An exact denormal result: no flag when underflow is masked, an exception when it is not. */
static void exact_underflow(void) {
    cpu->mxcsr = 0x1f80;
    cpu->cr4 |= CR4_OSXMMEXCPT;
    cpu->vec[0].q[0] = UINT64_C(0x0010000000000000);
    cpu->vec[1].lf[0] = 0.5;
    RUN_OK(0xf2, 0x0f, 0x59, 0xc1); /* mulsd xmm0, xmm1 */
    assert_int_equal(cpu->mxcsr, 0x1f80);
    cpu->vec[0].q[0] = UINT64_C(0x0010000000000000);
    cpu->mxcsr = 0x1780;
    assert_int_equal(RUN(0xf2, 0x0f, 0x59, 0xc1), EXC_XM);
    assert_int_equal(cpu->mxcsr, 0x1790);
}

static void flush_to_zero_and_rounding(void **state) {
    cpu->mxcsr = 0x9f80 | 0x6000; /* FTZ, towards zero */
    cpu->vec[0].q[0] = UINT64_C(0x0010000000000000);
    cpu->vec[1].lf[0] = 0.5;
    RUN_OK(0xf2, 0x0f, 0x59, 0xc1);
    assert_true(cpu->vec[0].q[0] == 0);
    cpu->vec[1].lf[0] = 2.9;
    RUN_OK(0xf2, 0x0f, 0x2d, 0xc1); /* cvtsd2si eax, xmm1 */
    assert_int_equal(cpu->gpr[RAX], 2);
}

/* The host's own mode must not change. */
static void host_state_survives(void) {
    uint32_t mxcsr;
    uint16_t control;
    cpu->fcw = 0x040;   /* everything unmasked, single precision */
    RUN_OK(0xd9, 0xe8); /* fld1 */
    RUN_OK(0xd9, 0xee); /* fldz */
    RUN_OK(0xde, 0xf9); /* fdivp */
    __asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(control));
    assert_int_equal(mxcsr & 0xffc0, 0x1f80);
    assert_int_equal(control, 0x37f);
    assert_int_equal(RUN(0xd9, 0xe8), EXC_MF);
}

/* One test: cmocka sets SIGFPE's handler before each, hostfp.c its own once. */
static void unmasked_exceptions(void **state) {
    unmasked_divide();
    exact_underflow();
    host_state_survives();
}

/* ---- Faults ---- */

static void alignment(void **state) {
    cpu->gpr[RBX] = DATA + 8;
    assert_int_equal(RUN(0x0f, 0x28, 0x03), EXC_GP);       /* movaps xmm0, [rbx] */
    RUN_OK(0x0f, 0x10, 0x03);                              /* movups */
    assert_int_equal(RUN(0x66, 0x0f, 0xfc, 0x03), EXC_GP); /* paddb xmm0, [rbx] */
    RUN_OK(0xc5, 0xf9, 0xfc, 0x03);                        /* vpaddb xmm0, xmm0, [rbx] */
    cpu->mxcsr |= 1 << 17;
    RUN_OK(0x66, 0x0f, 0xfc, 0x03);
    RUN_OK(0xf2, 0x0f, 0x58, 0xc1); /* addsd: the host never sees MM */
}

static void gather_keeps_progress(void **state) {
    uint32_t value = 0x12345678;
    rig_store(DATA, &value, 4);
    memset(&cpu->vec[2], 0xff, 16);                                /* mask */
    memcpy(cpu->vec[1].d, (uint32_t[]){0, 0, HOLE - DATA, 0}, 16); /* indexes */
    memset(&cpu->vec[0], 0, 16);
    cpu->gpr[RBX] = DATA;
    assert_int_equal(RUN(0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0b), EXC_PF); /* vpgatherdd */
    assert_true(cpu->cr2 == HOLE);
    assert_int_equal(cpu->vec[0].d[1], value);
    assert_true(cpu->vec[2].q[0] == 0 && cpu->vec[2].q[1] == UINT64_MAX);
    cpu->vec[1].d[2] = 0;
    RUN_OK(0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0b);
    assert_int_equal(cpu->vec[0].d[3], value);
    assert_true(cpu->vec[2].q[1] == 0);
}

static void masked_load_leaves_the_hole_alone(void **state) {
    memset(&cpu->vec[1], 0, 32);
    cpu->vec[1].d[0] = 1u << 31;
    cpu->gpr[RBX] = HOLE - 4;
    RUN_OK(0xc4, 0xe2, 0x75, 0x2c, 0x03); /* vmaskmovps ymm0, ymm1, [rbx] */
    cpu->vec[1].d[1] = 1u << 31;
    assert_int_equal(RUN(0xc4, 0xe2, 0x75, 0x2c, 0x03), EXC_PF);
}

/* ---- Registers and modes ---- */

static void vex_clears_the_upper_half(void **state) {
    memset(&cpu->vec[0], 0xff, 32);
    RUN_OK(0x66, 0x0f, 0xfc, 0xc1); /* paddb: legacy keeps it */
    assert_true(cpu->vec[0].q[2] == UINT64_MAX);
    RUN_OK(0xc5, 0xf9, 0xfc, 0xc1); /* vpaddb xmm */
    assert_true(cpu->vec[0].q[2] == 0);
    assert_int_equal(RUN(0xc5, 0xf0, 0x28, 0xc1), EXC_UD); /* vmovaps with vvvv = 1 */
}

static void availability(void **state) {
    cpu->cr0 |= CR0_TS;
    assert_int_equal(RUN(0x0f, 0x28, 0xc1), EXC_NM);
    assert_int_equal(RUN(0xc5, 0xf8, 0x28, 0xc1), EXC_NM);
    assert_int_equal(RUN(0xd9, 0xe8), EXC_NM);
    cpu->cr0 = (cpu->cr0 & ~(uint64_t)CR0_TS) | CR0_EM;
    assert_int_equal(RUN(0x0f, 0x28, 0xc1), EXC_UD);
    assert_int_equal(RUN(0x0f, 0xef, 0xc1), EXC_UD); /* pxor mm0, mm1 */
    assert_int_equal(RUN(0xd9, 0xe8), EXC_NM);
    RUN_OK(0xc5, 0xf8, 0x28, 0xc1); /* AVX does not look at EM */
    cpu->xcr0 = 3;
    assert_int_equal(RUN(0xc5, 0xf8, 0x28, 0xc1), EXC_UD);
}

static void mmx_shares_the_x87_stack(void **state) {
    RUN_OK(0xd9, 0xe8); /* fld1 */
    cpu->x87[1].significand = 0x1122334455667788;
    RUN_OK(0x0f, 0x6f, 0xc1); /* movq mm0, mm1 */
    assert_int_equal(cpu->fsw & 0x3800, 0);
    assert_int_equal(cpu->ftw, 0xff);
    assert_true(cpu->x87[0].significand == 0x1122334455667788);
    assert_int_equal(cpu->x87[0].sign_exponent, 0xffff);
    RUN_OK(0x0f, 0x77); /* emms */
    assert_int_equal(cpu->ftw, 0);
}

/* strlen("abc") the SSE4.2 way: equal each, negated. */
static void string_index(void **state) {
    rig_hex(&cpu->vec[0], "61626300000000000000000000000000");
    rig_hex(&cpu->vec[1], "61626364000000000000000000000000");
    RUN_OK(0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x18); /* pcmpistri xmm0, xmm1 */
    assert_int_equal(cpu->gpr[RCX], 3);
    assert_int_equal(flags_get(cpu) & FLAGS_STATUS, FLAG_CF | FLAG_ZF | FLAG_SF);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
        T(aes_key_expansion),
        T(aes_round),
        T(sha256_abc),
        T(carryless_product),
        T(masked_divide_sets_a_flag),
        T(unmasked_exceptions),
        T(flush_to_zero_and_rounding),
        T(alignment),
        T(gather_keeps_progress),
        T(masked_load_leaves_the_hole_alone),
        T(vex_clears_the_upper_half),
        T(availability),
        T(mmx_shares_the_x87_stack),
        T(string_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
