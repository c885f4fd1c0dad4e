/*
 * What counts as a difference. Everything is compared except:
 *
 * - Status flags that the row calls undefined (table column flags_undefined,
 *   which quotes APM vol. 3), when an instruction completed. Shifts by 0 and 1
 *   define more (generate.c, flags_undefined).
 * - Of programs, flags that nothing reads before they are overwritten, when a fault shows them and
 *   the translator need not be exact (dead.c).
 * - Bit P of a page fault's error code for addresses beyond user space: the
 *   host's kernel always reports it set there, so as not to tell what it has
 *   mapped (arch/x86/mm/fault.c, set_signal_archinfo); and where it is clear natively for addresses
 *   that are mapped: the host's kernel maps a page when it is first used.
 * - Which null selector (0 to 3) DS, ES, FS and GS hold: the host's own IRET into its signal
 * handler makes all of them 0.
 * - Which of two operands' faults CMPS raises: family 19h reads the first operand first, family 1Ah
 *   the second one.
 * - VERW with LOCK, which is #UD (APM vol. 3), but which family 19h runs.
 * - In compatibility mode R8 to R15 and upper register halves, which are
 *   undefined after a change of mode (APM vol. 1, 3.1.1).
 */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "silicon.h"

#define USER_SPACE_END UINT64_C(0x7ffffffff000)

/* The instruction that ended the case completed it, or was it the first one's fault? */
static bool nothing_ran(const struct test_case *test, const struct outcome *outcome) {
    return outcome->state.rip == test->start && outcome->vector != EXC_DB;
}

/* True: it ended where an instruction of it is, not in the middle of one or far away. */
static bool on_its_way(const struct test_case *test, uint64_t rip, const uint64_t *features) {
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    uint32_t at = 0;
    while (at < test->code_length && test->start + at < rip) {
        struct insn insn;
        int length = insn_decode(&insn, test->code + at, test->code_length - at, test->start + at,
                                 mode, features);
        at += length > 0 ? (unsigned)length : 1;
    }
    return test->start + at == rip;
}

/* A single-step trap may come before undefined flags are put right, and a program that has lost its
 * way may have come upon anything. */
static unsigned program_flags_unknown(const struct test_case *test, const struct outcome *native,
                                      const uint64_t *features) {
    bool behind = native->vector == EXC_BP;
    if (native->vector == EXC_DB)
        return test->flags_unknown_any;
    return on_its_way(test, native->state.rip - behind, features) ? test->flags_unknown
                                                                  : FLAGS_STATUS;
}

static uint64_t flags_mask(const struct test_case *test, const struct outcome *native,
                           const uint64_t *features) {
    struct insn insn;
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    if (test->is_program)
        return ~(uint64_t)program_flags_unknown(test, native, features);
    if (nothing_ran(test, native))
        return UINT64_MAX;
    if (test->row_count > 1) {
        bool whole = native->state.rip == test->start + test->code_length + 1;
        return ~(uint64_t)(whole ? test->flags_unknown : test->flags_unknown_any);
    }
    if (insn_decode(&insn, test->code, test->code_length, test->start, mode, features) <= 0)
        return UINT64_MAX;
    return ~(uint64_t)flags_undefined(insn_row_of(&insn), &insn, &test->state);
}

static bool same_flags(const struct test_case *test, const struct outcome *native,
                       const struct outcome *guest, const uint64_t *features) {
    uint64_t differ = native->state.rflags ^ guest->state.rflags;
    differ &= flags_mask(test, native, features);
    if (differ != 0 && test->is_program)
        differ &= ~(uint64_t)flags_dead(test, native, features);
    return differ == 0;
}

static uint64_t gpr_mask(const struct test_case *test, unsigned n) {
    if (!test->mode32)
        return UINT64_MAX;
    return n < 8 ? UINT32_MAX : 0;
}

static bool is_mapped(uint64_t address) {
    return address - CODE_BASE < CODE_SIZE || address - DATA_BASE < DATA_SIZE ||
           address - CONST_BASE < CONST_SIZE || address - STACK_BASE < STACK_SIZE ||
           address - MIXED_BASE < MIXED_SIZE || address - MIXED_CODE < MIXED_SIZE ||
           address - ALIAS_BASE < ARENA_SIZE;
}

static uint32_t error_mask(const struct outcome *native) {
    bool p_unknown =
        native->cr2 >= USER_SPACE_END || (!(native->error & PF_PRESENT) && is_mapped(native->cr2));
    return native->vector == EXC_PF && p_unknown ? ~(uint32_t)PF_PRESENT : UINT32_MAX;
}

static bool same_gprs(const struct test_case *test, const struct user_state *a,
                      const struct user_state *b) {
    for (unsigned i = 0; i < 16; i++) {
        if ((a->gpr[i] ^ b->gpr[i]) & gpr_mask(test, i))
            return false;
    }
    return true;
}

static uint16_t any_null(uint16_t selector) {
    return selector <= 3 ? 0 : selector;
}

static bool same_segments(const struct user_state *a, const struct user_state *b) {
    return a->cs == b->cs && a->ss == b->ss && any_null(a->ds) == any_null(b->ds) &&
           any_null(a->es) == any_null(b->es) && any_null(a->fs) == any_null(b->fs) &&
           any_null(a->gs) == any_null(b->gs) && a->fs_base == b->fs_base &&
           a->gs_base == b->gs_base;
}

/* Translated code does not note where the last x87 instruction was (jit/x87_live.h): what unmasks
 * an exception later shows another. */
static bool pointers_are_kept(const struct test_case *test) {
    const char *translate = getenv("LODGE_TRANSLATE");
    bool single = !test->is_program && test->row_count == 1;
    return single || (translate != NULL && strcmp(translate, "off") == 0);
}

static bool same_fp(const struct test_case *test, const struct fp_state *a,
                    const struct fp_state *b) {
    struct fp_state other = *b;
    if (!pointers_are_kept(test)) {
        other.fop = a->fop;
        other.fip = a->fip;
        other.fdp = a->fdp;
    }
    return memcmp(a, &other, sizeof other) == 0;
}

static bool same_memory(const struct outcome *a, const struct outcome *b) {
    uint32_t listed = a->diff_count < DIFFS_MAX ? a->diff_count : DIFFS_MAX;
    if (a->diff_count != b->diff_count)
        return false;
    for (uint32_t i = 0; i < listed; i++) {
        if (a->diff[i].offset != b->diff[i].offset || a->diff[i].value != b->diff[i].value)
            return false;
    }
    return true;
}

/* ---- What processors do differently ---- */

static bool is_operand_fault(const struct outcome *outcome) {
    return outcome->vector == EXC_PF || outcome->vector == EXC_GP || outcome->vector == EXC_SS ||
           outcome->vector == EXC_AC;
}

static bool faulted_in_cmps(const struct test_case *test, const struct outcome *native,
                            const struct outcome *guest, const uint64_t *features) {
    struct insn insn;
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    uint64_t rip = native->state.rip, at = rip - test->start;
    return at < test->code_length && is_operand_fault(native) && is_operand_fault(guest) &&
           insn_decode(&insn, test->code + at, test->code_length - at, rip, mode, features) > 0 &&
           insn_row_of(&insn)->map == MAP_1B && (insn.opcode | 1) == 0xa7;
}

static bool is_locked_verw(const struct test_case *test) {
    const uint8_t *opcode = memchr(test->code, 0x0f, test->code_length);
    return test->row_count == 1 && strcmp(insn_row_at(test->rows[0])->name, "verw") == 0 &&
           opcode != NULL && memchr(test->code, 0xf0, (size_t)(opcode - test->code)) != NULL;
}

static bool same_fault(const struct test_case *test, const struct outcome *native,
                       const struct outcome *guest, const uint64_t *features) {
    bool same = native->vector == guest->vector && native->cr2 == guest->cr2 &&
                ((native->error ^ guest->error) & error_mask(native)) == 0;
    return same || faulted_in_cmps(test, native, guest, features);
}

bool compare(const struct test_case *test, const struct outcome *native,
             const struct outcome *guest, const uint64_t *features) {
    const struct user_state *a = &native->state, *b = &guest->state;
    if (is_locked_verw(test))
        return guest->vector == EXC_UD;
    return same_fault(test, native, guest, features) && a->rip == b->rip &&
           same_flags(test, native, guest, features) && same_gprs(test, a, b) &&
           same_segments(a, b) && same_fp(test, &a->fp, &b->fp) && same_memory(native, guest);
}

/* ---- Showing one ---- */

void show_code(const struct test_case *test) {
    uint64_t address = test->start;
    ZyanUSize at = 0;
    ZydisDisassembledInstruction instruction;
    ZydisMachineMode mode =
        test->mode32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64;
    while (at < test->code_length &&
           ZYAN_SUCCESS(ZydisDisassembleIntel(mode, address + at, test->code + at,
                                              test->code_length - at, &instruction))) {
        uint8_t byte = test->code[at];
        if (test->is_program && (byte == 0x90 || byte == 0xcc)) { /* left out; nothing there */
            at++;
            continue;
        }
        printf("    %08jx ", (uintmax_t)(address + at));
        for (unsigned i = 0; i < instruction.info.length; i++)
            printf("%02x", test->code[at + i]);
        printf("  %s\n", instruction.text);
        at += instruction.info.length;
    }
    if (at < test->code_length) {
        printf("    ");
        for (; at < test->code_length; at++)
            printf("%02x", test->code[at]);
        printf("  (not known to Zydis)\n");
    }
}

static void show_value(const char *name, uint64_t before, uint64_t native, uint64_t guest) {
    if (native != guest)
        printf("    %-8s before %016jx  native %016jx  guest %016jx\n", name, (uintmax_t)before,
               (uintmax_t)native, (uintmax_t)guest);
}

static void show_hex(const void *bytes, unsigned size) {
    const uint8_t *p = bytes;
    for (unsigned i = size; i-- > 0;)
        printf("%02x%s", p[i], i % 8 == 0 && i != 0 ? "_" : "");
}

static void show_wide(const char *name, unsigned n, const void *before, const void *native,
                      const void *guest, unsigned size) {
    if (memcmp(native, guest, size) == 0)
        return;
    printf("    %s%u\n      before ", name, n);
    show_hex(before, size);
    printf("\n      native ");
    show_hex(native, size);
    printf("\n      guest  ");
    show_hex(guest, size);
    printf("\n");
}

static void show_fp(const struct fp_state *before, const struct fp_state *native,
                    const struct fp_state *guest) {
    show_value("fcw", before->fcw, native->fcw, guest->fcw);
    show_value("fsw", before->fsw, native->fsw, guest->fsw);
    show_value("ftw", before->ftw, native->ftw, guest->ftw);
    show_value("fop", before->fop, native->fop, guest->fop);
    show_value("fip", before->fip, native->fip, guest->fip);
    show_value("fdp", before->fdp, native->fdp, guest->fdp);
    show_value("mxcsr", before->mxcsr, native->mxcsr, guest->mxcsr);
    for (unsigned i = 0; i < 8; i++)
        show_wide("x87 R", i, &before->x87[i], &native->x87[i], &guest->x87[i], 10);
    for (unsigned i = 0; i < 16; i++)
        show_wide("ymm", i, before->ymm[i], native->ymm[i], guest->ymm[i], 32);
}

static const uint64_t *word_at(const struct outcome *outcome, uint32_t offset) {
    for (uint32_t i = 0; i < outcome->diff_count && i < DIFFS_MAX; i++) {
        if (outcome->diff[i].offset == offset)
            return &outcome->diff[i].value;
    }
    return NULL;
}

static void show_words(const struct outcome *from, const struct outcome *other, const char *a,
                       const char *b) {
    unsigned shown = 0;
    for (uint32_t i = 0; i < from->diff_count && i < DIFFS_MAX && shown < 8; i++) {
        uint32_t offset = from->diff[i].offset;
        const uint64_t *value = word_at(other, offset);
        if (value != NULL && *value == from->diff[i].value)
            continue;
        printf("    [%08jx] %s %016jx  %s ", (uintmax_t)background_address(offset), a,
               (uintmax_t)from->diff[i].value, b);
        if (value != NULL)
            printf("%016jx\n", (uintmax_t)*value);
        else
            printf("unchanged\n");
        shown++;
    }
}

static void show_registers(const struct test_case *test, const struct outcome *native,
                           const struct outcome *guest) {
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    const struct user_state *before = &test->state, *a = &native->state, *b = &guest->state;
    for (unsigned i = 0; i < 16; i++)
        show_value(names[i], before->gpr[i], a->gpr[i] & gpr_mask(test, i),
                   b->gpr[i] & gpr_mask(test, i));
    show_value("cs", 0, a->cs, b->cs);
    show_value("ss", SEL_DS, a->ss, b->ss);
    show_value("ds", SEL_DS, a->ds, b->ds);
    show_value("es", SEL_DS, a->es, b->es);
    show_value("fs", 0, a->fs, b->fs);
    show_value("gs", 0, a->gs, b->gs);
    show_value("fs.base", before->fs_base, a->fs_base, b->fs_base);
    show_value("gs.base", before->gs_base, a->gs_base, b->gs_base);
}

/* Operands that may matter: what the case began with. */
static void show_before(const struct test_case *test) {
    const struct user_state *s = &test->state;
    printf("    before: rax %jx rcx %jx rdx %jx rbx %jx rsp %jx rbp %jx rsi %jx rdi %jx flags "
           "%jx\n            r8 %jx r9 %jx r10 %jx r11 %jx r12 %jx r13 %jx r14 %jx r15 %jx\n"
           "            fcw %x fsw %x ftw %x mxcsr %x\n",
           (uintmax_t)s->gpr[RAX], (uintmax_t)s->gpr[RCX], (uintmax_t)s->gpr[RDX],
           (uintmax_t)s->gpr[RBX], (uintmax_t)s->gpr[RSP], (uintmax_t)s->gpr[RBP],
           (uintmax_t)s->gpr[RSI], (uintmax_t)s->gpr[RDI], (uintmax_t)s->rflags,
           (uintmax_t)s->gpr[R8], (uintmax_t)s->gpr[R9], (uintmax_t)s->gpr[R10],
           (uintmax_t)s->gpr[R11], (uintmax_t)s->gpr[R12], (uintmax_t)s->gpr[R13],
           (uintmax_t)s->gpr[R14], (uintmax_t)s->gpr[R15], s->fp.fcw, s->fp.fsw, s->fp.ftw,
           s->fp.mxcsr);
}

static void show_vector(const char *side, const struct outcome *o) {
    printf("    %s: vector %u error %#x cr2 %#jx rip %#jx\n", side, o->vector, o->error,
           (uintmax_t)o->cr2, (uintmax_t)o->state.rip);
}

void show_difference(const struct test_case *test, const struct outcome *native,
                     const struct outcome *guest, const uint64_t *features) {
    const char *name = test->row_count ? insn_row_at(test->rows[0])->name : "wild";
    printf("difference: %s%s, %s\n", test->is_program ? "program" : name,
           test->row_count > 1 ? " …" : "", test->mode32 ? "32-bit code" : "64-bit code");
    show_code(test);
    show_before(test);
    if (test->is_program || native->vector != guest->vector || native->error != guest->error ||
        native->cr2 != guest->cr2 || native->state.rip != guest->state.rip) {
        show_vector("native", native);
        show_vector("guest ", guest);
    }
    uint64_t mask = flags_mask(test, native, features);
    show_value("rflags", test->state.rflags, native->state.rflags & mask,
               guest->state.rflags & mask);
    show_registers(test, native, guest);
    show_fp(&test->state.fp, &native->state.fp, &guest->state.fp);
    show_words(native, guest, "native", "guest");
    show_words(guest, native, "guest", "native");
}
