/*
 * Is the table's flags column right? The translator's liveness analysis rests
 * on it, and outcomes alone do not show a flag too many. A *twin* is a case
 * again with other values in the status flags that the instruction is said
 * not to read: natively it must do the same.
 */
#include <stdio.h>
#include <string.h>

#include "silicon.h"

static const struct insn_row *decode(const struct test_case *test, const uint64_t *features,
                                     struct insn *insn) {
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    int length = insn_decode(insn, test->code, test->code_length, test->start, mode, features);
    return length > 0 ? insn_row_of(insn) : NULL;
}

bool make_twin(struct random *random, const struct test_case *test, struct test_case *twin,
               const uint64_t *features) {
    struct insn insn;
    const struct insn_row *row = decode(test, features, &insn);
    if (row == NULL || test->row_count != 1 || (test->state.rflags & FLAG_TF))
        return false;
    uint64_t flip = random_next(random) & FLAGS_STATUS & ~(uint64_t)row->flags_read;
    if (flip == 0)
        return false;
    *twin = *test;
    twin->state.rflags ^= flip;
    twin->is_twin = true;
    return true;
}

/* Flags that the row does not say it writes stay as they were; the others come out the same. */
static bool flags_agree(const struct insn_row *row, uint64_t undefined, const struct test_case *a,
                        const struct outcome *oa, const struct test_case *b,
                        const struct outcome *ob) {
    uint64_t kept = FLAGS_STATUS & ~(uint64_t)(row->flags_written | row->flags_undefined);
    uint64_t written = row->flags_written & ~undefined;
    return ((a->state.rflags ^ oa->state.rflags) & kept) == 0 &&
           ((b->state.rflags ^ ob->state.rflags) & kept) == 0 &&
           ((oa->state.rflags ^ ob->state.rflags) & written) == 0;
}

bool table_agrees(const struct test_case *a, const struct outcome *oa, const struct test_case *b,
                  const struct outcome *ob, const uint64_t *features) {
    struct insn insn;
    const struct insn_row *row = decode(a, features, &insn);
    if (row == NULL)
        return true;
    bool same = oa->vector == ob->vector && oa->cr2 == ob->cr2 && oa->state.rip == ob->state.rip &&
                memcmp(oa->state.gpr, ob->state.gpr, sizeof oa->state.gpr) == 0 &&
                memcmp(&oa->state.fp, &ob->state.fp, sizeof oa->state.fp) == 0 &&
                oa->diff_count == ob->diff_count;
    for (uint32_t i = 0; same && i < oa->diff_count && i < DIFFS_MAX; i++)
        same = oa->diff[i].value == ob->diff[i].value;
    bool ran = oa->state.rip != a->start;
    return same && (!ran || flags_agree(row, flags_undefined(row, &insn, &a->state), a, oa, b, ob));
}

void show_table(const struct test_case *a, const struct outcome *oa, const struct test_case *b,
                const struct outcome *ob) {
    printf("table: %s: flags read or written otherwise than its row says\n",
           insn_row_at(a->rows[0])->name);
    show_code(a);
    printf("    rflags %#jx gives %#jx, %#jx gives %#jx\n", (uintmax_t)a->state.rflags,
           (uintmax_t)oa->state.rflags, (uintmax_t)b->state.rflags, (uintmax_t)ob->state.rflags);
}
