/*
 * silicon: runs cases of every table row (and sequences of rows) natively and
 * in a vCPU. Exit code 0: no difference; 1: differences; 2: wrong usage; 77:
 * this host cannot run it.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/soft/soft.h"
#include "silicon.h"

enum { CLASSES_MAX = 32, SHOWN_PER_ROW = 2, ROWS_MAX = 4096, TWIN_EVERY = 8 };

#define VSYSCALL_PAGE (UINT64_C(0xffffffffff600000) >> 12)

struct options {
    unsigned long cases;     /* of each row */
    unsigned long at_least;  /* of each class */
    unsigned long sequences; /* in total */
    unsigned long wild;      /* in total */
    unsigned long programs;  /* in total */
    unsigned long seed;
    unsigned mode;  /* of programs: 32, 64, or 0 */
    unsigned shown; /* differences shown of a row */
    const char *only;
    bool list;
    enum engine_kind engine;
};

struct class_count {
    const char *name;
    unsigned rows;
    unsigned long cases, differences;
};

struct run {
    struct options options;
    struct native *native;
    struct guest *guest;
    struct class_count class[CLASSES_MAX];
    unsigned classes;
    unsigned long row_differences, row_shown;
};

/* ---- Counting ---- */

static struct class_count *count_of(struct run *run, const char *name) {
    for (unsigned i = 0; i < run->classes; i++) {
        if (strcmp(run->class[i].name, name) == 0)
            return &run->class[i];
    }
    if (run->classes == CLASSES_MAX)
        return &run->class[CLASSES_MAX - 1];
    run->class[run->classes].name = name;
    return &run->class[run->classes++];
}

static int summary(const struct run *run) {
    unsigned long cases = 0, differences = 0;
    printf("%-10s %6s %10s %12s\n", "class", "rows", "cases", "differences");
    for (unsigned i = 0; i < run->classes; i++) {
        const struct class_count *c = &run->class[i];
        printf("%-10s %6u %10lu %12lu\n", c->name, c->rows, c->cases, c->differences);
        cases += c->cases;
        differences += c->differences;
    }
    printf("silicon: %lu cases, %lu differences\n", cases, differences);
    return differences == 0 ? 0 : 1;
}

static bool offered(const struct run *run, const struct insn_row *row) {
    return row->feature == FEAT_BASE ||
           (guest_features(run->guest)[row->feature / 64] >> (row->feature % 64) & 1);
}

static const char *why_not(const struct run *run, const struct insn_row *row) {
    const char *why = row_excluded(row);
    return why == NULL && !offered(run, row) ? "not offered to guests" : why;
}

/* ---- Running ---- */

/* Shrinking uses the batch: what is in it is kept. */
static void show_program(struct run *run, const struct test_case *test,
                         const struct outcome *native, const struct outcome *guest) {
    static struct batch kept;
    static struct test_case small;
    static struct outcome small_native, small_guest;
    struct batch *batch = native_batch(run->native);
    const uint64_t *features = guest_features(run->guest);
    kept = *batch;
    small = *test;
    bool alone =
        shrink_program(run->native, run->guest, &small, &small_native, &small_guest, features);
    *batch = kept;
    if (alone) {
        show_difference(&small, &small_native, &small_guest, features);
    } else {
        printf("after the cases before it only:\n");
        show_difference(test, native, guest, features);
    }
}

/* A program has made itself an instruction that cannot be compared: classes.c says why not. */
static bool ended_in_excluded(const struct test_case *test, const struct outcome *guest,
                              const uint64_t *features) {
    struct insn insn;
    enum insn_mode mode = test->mode32 ? INSN_MODE_32 : INSN_MODE_64;
    return test->is_program && guest->vector != EXC_BP &&
           insn_decode(&insn, guest->last, sizeof guest->last, guest->state.rip, mode, features) >
               0 &&
           row_excluded(insn_row_of(&insn)) != NULL;
}

static void judge(struct run *run, const struct test_case *test, const struct outcome *native,
                  struct class_count *class) {
    static struct outcome guest;
    const uint64_t *features = guest_features(run->guest);
    if (native->vector == VECTOR_TIMEOUT)
        return; /* an endless loop that chance has made */
    if (native->state.rip >> 12 == VSYSCALL_PAGE)
        return; /* a jump to where the host's kernel answers instead */
    if (test->is_program && native->vector == EXC_DB && !(native->state.rflags & FLAG_TF))
        return; /* INT1, which chance has put somewhere: classes.c says why not */
    guest_run(run->guest, test, &guest);
    if (ended_in_excluded(test, &guest, features))
        return;
    class->cases++;
    if (compare(test, native, &guest, features))
        return;
    class->differences++;
    run->row_differences++;
    if (run->row_shown >= run->options.shown)
        return;
    run->row_shown++;
    if (test->is_program)
        show_program(run, test, native, &guest);
    else
        show_difference(test, native, &guest, features);
}

static void judge_table(struct run *run, uint32_t n, struct class_count *class) {
    const struct batch *batch = native_batch(run->native);
    if (table_agrees(&batch->test[n - 1], &batch->native[n - 1], &batch->test[n], &batch->native[n],
                     guest_features(run->guest)))
        return;
    class->differences++;
    run->row_differences++;
    if (run->row_shown++ < run->options.shown)
        show_table(&batch->test[n - 1], &batch->native[n - 1], &batch->test[n], &batch->native[n]);
}

/* Runs the batch's cases on both sides. */
static int run_batch(struct run *run, struct class_count *class) {
    struct batch *batch = native_batch(run->native);
    struct error err;
    int rc = native_run(run->native, &err);
    if (rc < 0) {
        fprintf(stderr, "silicon: %s\n", err.text);
        return rc;
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->test[i].is_twin)
            judge_table(run, i, class);
        judge(run, &batch->test[i], &batch->native[i], class);
    }
    return 0;
}

static struct generator row_generator(const struct run *run, unsigned n) {
    struct generator g = {.features = guest_features(run->guest)};
    g.random.state = (run->options.seed + 1) * UINT64_C(0x9e3779b97f4a7c15) ^
                     (n + 1) * UINT64_C(0xd1342543de82ef95);
    for (unsigned i = 0; i < 8; i++)
        random_next(&g.random);
    return g;
}

/* Classes of few rows get more of each. */
static unsigned long cases_of_row(const struct run *run, const struct class_count *class) {
    unsigned long share = (run->options.at_least + class->rows - 1) / class->rows;
    return share > run->options.cases ? share : run->options.cases;
}

static int run_row(struct run *run, unsigned n) {
    const struct insn_row *row = insn_row_at(n);
    struct class_count *class = count_of(run, row_class(row));
    struct generator g = row_generator(run, n);
    struct batch *batch = native_batch(run->native);
    unsigned long left = cases_of_row(run, class);
    unsigned long tries = left * 8;
    run->row_differences = run->row_shown = 0;
    while (left > 0 && tries > 0) {
        batch->count = 0;
        while (batch->count < BATCH_SIZE - 1 && left > 0 && tries-- > 0) {
            struct test_case *test = &batch->test[batch->count];
            if (!generate_single(&g, n, test))
                continue;
            left--;
            batch->count++;
            if (left > 0 && random_once_in(&g.random, TWIN_EVERY) &&
                make_twin(&g.random, test, test + 1, g.features)) {
                batch->count++;
                left--;
            }
        }
        if (batch->count > 0 && run_batch(run, class) < 0)
            return -1;
    }
    if (run->row_differences != 0)
        printf("row %u %s: %lu differences\n", n, row->name, run->row_differences);
    return 0;
}

static int run_sequences(struct run *run) {
    static uint16_t rows[ROWS_MAX];
    struct class_count *class = count_of(run, "sequences");
    struct generator g = row_generator(run, ROWS_MAX);
    struct batch *batch = native_batch(run->native);
    g.sequence_rows = rows;
    for (unsigned n = 0; n < ROWS_MAX && insn_row_at(n) != NULL; n++) {
        if (row_fits_sequence(insn_row_at(n)) && !(insn_row_at(n)->properties & INSN_NO64) &&
            offered(run, insn_row_at(n)))
            rows[g.sequence_row_count++] = (uint16_t)n;
    }
    class->rows = g.sequence_row_count;
    run->row_differences = run->row_shown = 0;
    for (unsigned long left = g.sequence_row_count != 0 ? run->options.sequences : 0; left > 0;) {
        batch->count = left < BATCH_SIZE ? (uint32_t)left : BATCH_SIZE;
        for (uint32_t i = 0; i < batch->count; i++)
            generate_sequence(&g, &batch->test[i]);
        if (run_batch(run, class) < 0)
            return -1;
        left -= batch->count;
    }
    return 0;
}

static int run_wild(struct run *run) {
    struct class_count *class = count_of(run, "wild");
    struct generator g = row_generator(run, ROWS_MAX + 1);
    struct batch *batch = native_batch(run->native);
    run->row_differences = run->row_shown = 0;
    for (unsigned long left = run->options.wild; left > 0;) {
        batch->count = left < BATCH_SIZE ? (uint32_t)left : BATCH_SIZE;
        for (uint32_t i = 0; i < batch->count; i++)
            generate_wild(&g, &batch->test[i]);
        if (run_batch(run, class) < 0)
            return -1;
        left -= batch->count;
    }
    return 0;
}

static void list_program_rows(struct run *run, struct generator *g) {
    static uint16_t rows[PROGRAM_ROW_KINDS][ROWS_MAX];
    for (unsigned n = 0; n < ROWS_MAX && insn_row_at(n) != NULL; n++) {
        const struct insn_row *row = insn_row_at(n);
        struct row_list *list = &g->program_rows[program_row_kind(row)];
        if (row_fits_program(row) && offered(run, row))
            rows[list - g->program_rows][list->count++] = (uint16_t)n;
    }
    for (unsigned kind = 0; kind < PROGRAM_ROW_KINDS; kind++)
        g->program_rows[kind].rows = rows[kind];
}

static int run_programs(struct run *run) {
    struct class_count *class = count_of(run, "programs");
    struct generator g = row_generator(run, ROWS_MAX + 2);
    g.mode = run->options.mode;
    struct batch *batch = native_batch(run->native);
    list_program_rows(run, &g);
    run->row_differences = run->row_shown = 0;
    for (unsigned long left = run->options.programs; left > 0;) {
        batch->count = left < BATCH_SIZE ? (uint32_t)left : BATCH_SIZE;
        for (uint32_t i = 0; i < batch->count; i++)
            generate_program(&g, &batch->test[i]);
        if (run_batch(run, class) < 0)
            return -1;
        left -= batch->count;
    }
    return 0;
}

static bool selected(const struct run *run, const struct insn_row *row) {
    const char *only = run->options.only;
    return only == NULL || strcmp(only, row->name) == 0 || strcmp(only, row_class(row)) == 0;
}

static bool wanted(const struct run *run, const char *class) {
    return run->options.only == NULL || strcmp(run->options.only, class) == 0;
}

static int run_all(struct run *run) {
    for (unsigned n = 0; insn_row_at(n) != NULL; n++) {
        const struct insn_row *row = insn_row_at(n);
        if (why_not(run, row) == NULL)
            count_of(run, row_class(row))->rows++;
    }
    for (unsigned n = 0; insn_row_at(n) != NULL; n++) {
        const struct insn_row *row = insn_row_at(n);
        if (selected(run, row) && why_not(run, row) == NULL && run_row(run, n) < 0)
            return 1;
    }
    if (wanted(run, "sequences") && run_sequences(run) < 0)
        return 1;
    if (wanted(run, "wild") && run_wild(run) < 0)
        return 1;
    if (wanted(run, "programs") && run_programs(run) < 0)
        return 1;
    return summary(run);
}

static int list(const struct run *run) {
    for (unsigned n = 0; insn_row_at(n) != NULL; n++) {
        const struct insn_row *row = insn_row_at(n);
        const char *why = why_not(run, row);
        if (selected(run, row))
            printf("%4u %-10s %-16s %s%s\n", n, row_class(row), row->name,
                   why != NULL ? "not run: " : "", why != NULL ? why : "");
    }
    return 0;
}

/* ---- Options ---- */

static int usage(void) {
    fprintf(stderr, "usage: silicon [--cases N] [--at-least N] [--sequences N] [--wild N] "
                    "[--programs N] [--mode 32|64] [--seed N] [--only ROW|CLASS] "
                    "[--show N] [--kvm] [--list]\n");
    return 2;
}

static bool parse(int argc, char **argv, struct options *options) {
    static const struct option known[] = {
        {"at-least", required_argument, NULL, 'a'},
        {"wild", required_argument, NULL, 'w'},
        {"programs", required_argument, NULL, 'p'},
        {"mode", required_argument, NULL, 'm'},
        {"cases", required_argument, NULL, 'c'},
        {"sequences", required_argument, NULL, 'q'},
        {"seed", required_argument, NULL, 's'},
        {"only", required_argument, NULL, 'o'},
        {"show", required_argument, NULL, 'n'},
        {"list", no_argument, NULL, 'l'},
        {"kvm", no_argument, NULL, 'k'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'c': options->cases = strtoul(optarg, NULL, 0); break;
        case 'a': options->at_least = strtoul(optarg, NULL, 0); break;
        case 'w': options->wild = strtoul(optarg, NULL, 0); break;
        case 'm': options->mode = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'p': options->programs = strtoul(optarg, NULL, 0); break;
        case 'q': options->sequences = strtoul(optarg, NULL, 0); break;
        case 's': options->seed = strtoul(optarg, NULL, 0); break;
        case 'n': options->shown = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'o': options->only = optarg; break;
        case 'l': options->list = true; break;
        case 'k': options->engine = ENGINE_KVM; break;
        default: return false;
        }
    }
    return optind == argc;
}

static bool host_fits(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

int main(int argc, char **argv) {
    static struct background background;
    static struct run run = {.options = {.cases = 200,
                                         .at_least = 5000,
                                         .sequences = 20000,
                                         .wild = 20000,
                                         .programs = 20000,
                                         .shown = SHOWN_PER_ROW,
                                         .engine = ENGINE_SOFT}};
    struct error err;
    if (!parse(argc, argv, &run.options))
        return usage();
    if (!host_fits()) {
        fprintf(stderr, "silicon: this host's processor lacks AVX2 or FMA\n");
        return 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    insn_index_init();
    background_fill(&background);
    /* The child first, while this process is small and has one thread. */
    if (native_create(&run.native, &err) < 0 ||
        guest_create(&background, run.options.engine, native_processor(run.native), &run.guest,
                     &err) < 0) {
        fprintf(stderr, "silicon: %s\n", err.text);
        return 1;
    }
    int rc = run.options.list ? list(&run) : run_all(&run);
    native_destroy(run.native);
    guest_destroy(run.guest);
    return rc;
}
