/*
 * Code that no row asked for: prefixes and opcode bytes at random, so that an
 * encoding which the tables lack, or have where the processor has none, shows
 * up as a difference.
 */
#include <string.h>

#include "base/bytes.h"
#include "silicon.h"

static const uint8_t legacy_prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26,
                                          0x2e, 0x36, 0x3e, 0x64, 0x65};

/* Prefixes that mean nothing, twice, or something else. */
void add_wild_prefixes(struct random *random, struct test_case *test) {
    unsigned count = 1 + random_below(random, 3);
    if (test->code_length + count > 15)
        return;
    memmove(test->code + count, test->code, test->code_length);
    for (unsigned i = 0; i < count; i++) {
        bool rex = random_once_in(random, 8) && !test->mode32;
        test->code[i] = rex ? 0x40 | random_below(random, 16)
                            : legacy_prefixes[random_below(random, ARRAY_SIZE(legacy_prefixes))];
    }
    test->code_length += count;
}

static void put_opcode(struct random *random, struct test_case *test) {
    static const uint8_t maps[][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    unsigned map = random_below(random, 5);
    uint8_t *at = test->code + test->code_length;
    if (map == 4) { /* VEX */
        at[0] = random_once_in(random, 3) ? 0xc5 : 0xc4;
        at[1] = at[0] == 0xc4 ? (random_next(random) & 0xe0) | (1 + random_below(random, 3))
                              : (uint8_t)random_next(random);
        at[2] = (uint8_t)random_next(random);
        if (random_once_in(random, 2)) /* no vvvv */
            at[at[0] == 0xc4 ? 2 : 1] |= 0x78;
        if (test->mode32)
            at[1] |= 0xc0;
        test->code_length += at[0] == 0xc4 ? 3 : 2;
    } else {
        memcpy(at, maps[map], 2);
        test->code_length += map >= 2 ? 2 : map;
    }
    test->code[test->code_length++] = (uint8_t)random_next(random);
}

/* VEX encodings of AVX-512's mask instructions, which guests are not offered either. */
static bool is_mask_insn(const uint8_t *vex) {
    unsigned map = vex[0] == 0xc5 ? 1 : vex[1] & 0x1f, opcode = vex[vex[0] == 0xc5 ? 2 : 3];
    if (map == 1)
        return (opcode >= 0x41 && opcode <= 0x4b) || (opcode >= 0x90 && opcode <= 0x99);
    return map == 3 && opcode >= 0x30 && opcode <= 0x33;
}

/* Others that run natively where the processor has them, whatever its CPUID offers: AVX-VNNI;
 * MOVDIR64B, ENQCMD, MOVDIRI. */
static bool is_vnni(const uint8_t *vex) {
    return vex[0] == 0xc4 && (vex[1] & 0x1f) == 2 && vex[3] >= 0x50 && vex[3] <= 0x53;
}

static bool is_direct_store(const uint8_t *p) {
    return p[1] == 0x38 && (p[2] == 0xf8 || p[2] == 0xf9);
}

/* What must not run natively, or cannot be compared: see classes.c for the same by row. EVEX and
 * XOP are for features that guests are not offered. */
static bool forbidden(const struct test_case *test) {
    const uint8_t *p = test->code, *end = p + test->code_length;
    while (p < end && (memchr(legacy_prefixes, *p, sizeof legacy_prefixes) != NULL ||
                       (!test->mode32 && (*p & 0xf0) == 0x40)))
        p++;
    if (end - p < 2)
        return true;
    if (*p == 0x62 || *p == 0x8f || *p == 0xf1)
        return true; /* EVEX, XOP, INT1 */
    if (*p == 0xcd)
        return p[1] == 0x80;
    if (*p >= 0xe0 && *p <= 0xe3)
        return true; /* LOOP with prefixes */
    if ((*p == 0xc4 || *p == 0xc5) && (!test->mode32 || p[1] >= 0xc0))
        return is_mask_insn(p) || is_vnni(p);
    if (*p != 0x0f)
        return false;
    if (is_direct_store(p))
        return true;
    /* SYSCALL, SYSENTER, group 7, group 15 and group 9 (in part emulated or told apart by the
     * host), RDPMC and its like, CPUID. */
    static const uint8_t no[] = {0x05, 0x34, 0x35, 0x00, 0x01, 0xae, 0xc7, 0x31, 0x33, 0xa2};
    return memchr(no, p[1], sizeof no) != NULL;
}

/* What follows the first instruction becomes INT3; what the decoder refuses stays. */
void trim_to_one(const struct generator *g, struct test_case *test) {
    struct insn insn;
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    int length = insn_decode(&insn, test->code, test->code_length, test->start, mode, g->features);
    if (length > 0)
        test->code_length = (uint32_t)length;
}

void generate_wild(struct generator *g, struct test_case *test) {
    struct random *random = &g->random;
    do {
        generate_state(g, test);
        if (random_once_in(random, 2))
            add_wild_prefixes(random, test);
        put_opcode(random, test);
        for (unsigned i = 0; i < 11; i++)
            test->code[test->code_length++] = (uint8_t)random_next(random);
    } while (forbidden(test));
    trim_to_one(g, test);
    for (unsigned i = 0; i < (test->mode32 ? 8 : 16); i++) {
        if (i != RSP && random_once_in(random, 2))
            test->state.gpr[i] = DATA_BASE + 256 + random_below(random, DATA_SIZE - 512);
    }
    test->state.gpr[RCX] = random_below(random, 16);
}
