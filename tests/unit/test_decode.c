/*
 * The decoder against Zydis as a second opinion: lengths of random and of table-made encodings in
 * all three modes. Where the two differ for a reason, the reason is in `explained`.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/soft/insn.h"
#include "cpu/x86.h"

static const uint64_t all_features[(FEAT_COUNT + 63) / 64] = {UINT64_MAX};
static uint64_t seed = 1;

static uint32_t random32(void) {
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)(seed >> 33);
}

static void second_opinion(ZydisDecoder decoders[3]) {
    static const ZydisMachineMode modes[3] = {
        ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_MACHINE_MODE_LONG_64};
    static const ZydisStackWidth widths[3] = {ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32,
                                              ZYDIS_STACK_WIDTH_64};
    for (unsigned i = 0; i < 3; i++) {
        ZydisDecoderInit(&decoders[i], modes[i], widths[i]);
        ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_AMD_BRANCHES, ZYAN_TRUE);
        ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
    }
}

/*
 * Where we decode and Zydis refuses: registers that do not exist or must differ are the handlers'
 * task here; it takes 0F 1A and 0F 1B for MPX, which we do not offer (they are NOPs then), and does
 * not ignore F2 and F3 on RDRAND and RDSEED. It does not know AMD's LOCK MOV CR0 (CR8) and accepts
 * no LOCK on VERW, nor W0 for VPERMQ and VPERMPD. It gives UD0 and UD1 a ModRM byte, as Intel has
 * it.
 */
static bool explained(const struct insn *insn, ZyanStatus status) {
    const struct insn_row *row = insn_row_of(insn);
    if (status == ZYDIS_STATUS_BAD_REGISTER)
        return true;
    if (status == ZYDIS_STATUS_ILLEGAL_LOCK)
        return strcmp(row->name, "verw") == 0 || row->opcode == 0x20 || row->opcode == 0x22;
    if (row->encoding == ENC_VEX)
        return row->map == MAP_0F3A && row->opcode <= 1;
    return row->map == MAP_0F &&
           (row->opcode == 0x1a || row->opcode == 0x1b || row->opcode == 0xc7);
}

static bool is_ud(const struct insn *insn) {
    const struct insn_row *row = insn_row_of(insn);
    return row->map == MAP_0F && (row->opcode == 0xb9 || row->opcode == 0xff);
}

static unsigned compare(ZydisDecoder *decoder, const uint8_t *bytes, enum insn_mode mode) {
    ZydisDecodedInstruction theirs;
    struct insn ours;
    ZyanStatus status = ZydisDecoderDecodeInstruction(decoder, NULL, bytes, 15, &theirs);
    int length = insn_decode(&ours, bytes, 15, 0x1000, mode, all_features);
    if (length <= 0 || is_ud(&ours))
        return 0;
    if (ZYAN_SUCCESS(status) && theirs.length == length)
        return 0;
    if (!ZYAN_SUCCESS(status) && explained(&ours, status))
        return 0;
    printf("mode %u, %s: we say %d, Zydis %d (%#x):", mode, insn_row_of(&ours)->name, length,
           ZYAN_SUCCESS(status) ? theirs.length : -1, status);
    for (unsigned i = 0; i < 15; i++)
        printf(" %02x", bytes[i]);
    printf("\n");
    return 1;
}

static void random_bytes(uint8_t *bytes, unsigned from) {
    for (unsigned i = from; i < 15; i++)
        bytes[i] = (uint8_t)random32();
}

static unsigned add_prefixes(uint8_t *bytes) {
    static const uint8_t choices[] = {0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x64, 0x3e, 0xf0};
    unsigned count = random32() % 4, at = 0;
    for (unsigned i = 0; i < count; i++)
        bytes[at++] = choices[random32() % ARRAY_SIZE(choices)];
    if (random32() % 3 == 0)
        bytes[at++] = 0x40 | (random32() & 15);
    return at;
}

static void test_random(void **state) {
    ZydisDecoder decoders[3];
    unsigned differences = 0;
    uint8_t bytes[15];
    second_opinion(decoders);
    for (unsigned i = 0; i < 400000 && differences < 60; i++) {
        unsigned at = add_prefixes(bytes);
        random_bytes(bytes, at);
        if (random32() % 2 == 0)
            bytes[at] = 0x0f;
        differences += compare(&decoders[i % 3], bytes, (enum insn_mode)(i % 3));
    }
    assert_int_equal(differences, 0);
}

/* The bytes up to the opcode that a row asks for; the number of them. */
static unsigned encode_row(const struct insn_row *row, uint8_t *bytes) {
    static const uint8_t prefix[] = {0, 0, 0x66, 0xf3, 0xf2, 0};
    static const uint8_t pp[] = {0, 0, 1, 2, 3, 0};
    unsigned at = 0;
    bool w = row->vw == VW_1 || (row->vw == VW_ANY && random32() % 2 == 0);
    if (row->encoding == ENC_VEX) {
        bool l = row->vl == VL_256 || (row->vl == VL_ANY && random32() % 2 == 0);
        bytes[at++] = 0xc4;
        bytes[at++] = (uint8_t)((random32() & 0xe0) | row->map);
        bytes[at++] = (uint8_t)(w << 7 | (random32() & 15) << 3 | l << 2 | pp[row->prefix]);
    } else {
        if (prefix[row->prefix] != 0)
            bytes[at++] = prefix[row->prefix];
        bytes[at++] = (uint8_t)(0x40 | w << 3 | (random32() & 7));
        if (row->map != MAP_1B)
            bytes[at++] = 0x0f;
        if (row->map >= MAP_0F38)
            bytes[at++] = row->map == MAP_0F38 ? 0x38 : 0x3a;
    }
    bytes[at++] = row->opcode;
    return at;
}

static void test_rows(void **state) {
    ZydisDecoder decoders[3];
    const struct insn_row *row;
    unsigned differences = 0;
    uint8_t bytes[15];
    second_opinion(decoders);
    for (size_t n = 0; (row = insn_row_at(n)) != NULL && differences < 60; n++) {
        for (unsigned i = 0; i < 64; i++) {
            unsigned at = encode_row(row, bytes);
            random_bytes(bytes, at);
            if (row->reg >= 0)
                bytes[at] = (uint8_t)((bytes[at] & 0xc7) | row->reg << 3);
            if (row->rm >= 0)
                bytes[at] = (uint8_t)((bytes[at] & 0xf8) | row->rm);
            differences += compare(&decoders[2], bytes, INSN_MODE_64);
        }
    }
    assert_int_equal(differences, 0);
}

/* Every row can be reached: nothing in the tables is shadowed by another row. */
static void test_reachable(void **state) {
    const struct insn_row *row;
    struct insn insn;
    uint8_t bytes[15];
    for (size_t n = 0; (row = insn_row_at(n)) != NULL; n++) {
        bool reached = false;
        for (unsigned i = 0; i < 20000 && !reached; i++) {
            enum insn_mode mode = row->properties & INSN_NO64 ? INSN_MODE_32 : INSN_MODE_64;
            uint8_t full[15];
            unsigned at = encode_row(row, bytes);
            random_bytes(bytes, at);
            memcpy(full, bytes, sizeof full);
            if (mode == INSN_MODE_32 && row->encoding == ENC_LEGACY) {
                unsigned rex = row->prefix > PFX_NONE ? 1 : 0;
                memmove(full + rex, full + rex + 1, 14 - rex);
            }
            reached = insn_decode(&insn, full, 15, 0, mode, all_features) > 0 &&
                      insn_row_of(&insn) == row;
        }
        if (!reached)
            print_error("%s (%02x) is never reached\n", row->name, row->opcode);
        assert_true(reached);
    }
}

static int decode_64(struct insn *insn, const char *bytes, size_t length) {
    return insn_decode(insn, (const uint8_t *)bytes, length, 0x401000, INSN_MODE_64, all_features);
}
#define DECODE(insn, text) decode_64(insn, text, sizeof(text) - 1)

static void test_details(void **state) {
    struct insn insn;
    /* mov ah, cl: AH is register 20; with REX the same number is SPL. */
    assert_int_equal(DECODE(&insn, "\x88\xcc"), 2);
    assert_int_equal(insn.rm, 20);
    assert_int_equal(DECODE(&insn, "\x40\x88\xcc"), 3);
    assert_int_equal(insn.rm, RSP);
    /* mov rax, [rip + 0x10] */
    assert_int_equal(DECODE(&insn, "\x48\x8b\x05\x10\0\0\0"), 7);
    assert_int_equal(insn.disp, 0x401017);
    assert_int_equal(insn.base, REG_ZERO);
    /* A REX prefix before another prefix counts for nothing. */
    assert_int_equal(DECODE(&insn, "\x48\x66\x01\xc8"), 4);
    assert_int_equal(insn.size, 2);
    /* lock add [rax], ecx, and two that may not be locked */
    assert_int_equal(DECODE(&insn, "\xf0\x01\x08"), 3);
    assert_int_equal(DECODE(&insn, "\xf0\x01\xc8"), -EXC_UD);
    assert_int_equal(DECODE(&insn, "\xf0\x03\x08"), -EXC_UD);
    /* nop, xchg r8, rax, pause */
    assert_int_equal(DECODE(&insn, "\x90"), 1);
    assert_string_equal(insn_row_of(&insn)->name, "nop");
    assert_int_equal(DECODE(&insn, "\x49\x90"), 2);
    assert_string_equal(insn_row_of(&insn)->name, "xchg");
    assert_int_equal(DECODE(&insn, "\xf3\x90"), 2);
    assert_string_equal(insn_row_of(&insn)->name, "pause");
}

static void test_ends(void **state) {
    struct insn insn;
    uint8_t bytes[15];
    memset(bytes, 0x66, sizeof bytes);
    assert_int_equal(insn_decode(&insn, bytes, 15, 0, INSN_MODE_64, all_features), -EXC_GP);
    bytes[14] = 0x90;
    assert_int_equal(insn_decode(&insn, bytes, 15, 0, INSN_MODE_64, all_features), 15);
    assert_int_equal(insn_decode(&insn, bytes, 14, 0, INSN_MODE_64, all_features), 0);
    assert_int_equal(DECODE(&insn, "\x48\x8b"), 0);
    assert_int_equal(DECODE(&insn, "\x48\x8b\x05\x10\0\0"), 0);
    assert_int_equal(DECODE(&insn, "\xd6"), -EXC_UD);
}

static int setup(void **state) {
    insn_index_init();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_details),   cmocka_unit_test(test_ends),
        cmocka_unit_test(test_reachable), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
