/*
 * Instructions against silicon: cases are generated from the instruction
 * tables, run natively on this host's processor and in a vCPU, and the two
 * outcomes compared.
 *
 *   random.c    numbers that are worth trying
 *   encode.c    table rows to bytes, memory operands that hit chosen addresses
 *   generate.c  whole cases: bytes, registers, memory, floating-point state
 *   native.c    the processor's side; native_child.c: the process in which cases run
 *   guest.c     the vCPU's side: a small supervisor around user-mode code
 *   compare.c   what counts as a difference, and how it is shown
 *   wild.c      code that no row asked for
 *   program.c   whole programs: branches, calls, strings, changing code, faults in the middle
 *   assemble.c  what programs are put together with
 *   dead.c      which flags nobody would have read
 *   shrink.c    a program that differs, made small
 *   check.c     whether the table's flags column tells the truth
 *   main.c      options, the loop over rows, the summary
 *
 * Both sides run the same bytes at the same virtual addresses with privilege
 * level 3, in 64-bit mode or in compatibility mode (32-bit code), under the
 * control registers that Linux runs its processes with.
 *
 * What is not compared is in compare.c, each mask with its reason.
 */
#ifndef LODGE_TESTS_SILICON_H
#define LODGE_TESTS_SILICON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "cpu/cpu.h"
#include "cpu/soft/insn.h"
#include "cpu/x86.h"

/* ---- Where things are, on both sides ---- */

enum {
    PAGE = 4096,
    CODE_BASE = 0x10000000, /* two pages to read and execute, then nothing */
    CODE_SIZE = 2 * PAGE,
    DATA_BASE = 0x50000000, /* two pages to write, a hole, one page to read, a hole */
    DATA_SIZE = 2 * PAGE,
    CONST_BASE = DATA_BASE + 3 * PAGE,
    CONST_SIZE = PAGE,
    STACK_BASE = 0x70000000, /* two pages with holes around */
    STACK_SIZE = 2 * PAGE,
    MIXED_BASE = 0x30000000, /* two pages to read, write and execute, with holes around */
    MIXED_SIZE = 2 * PAGE,
    MIXED_CODE = 0x38000000,       /* the same two pages to read and execute */
    ALIAS_BASE = 0x3c000000,       /* data, stack and mixed pages once more, to read and write */
    CASE_CODE = CODE_BASE + 0x800, /* where code usually starts */
};

/* Near enough to the data for displacements of any size. */
#define FS_BASE UINT64_C(0x4fffe000)
#define GS_BASE UINT64_C(0x4ffff000)

/* Writable memory as one array, for the difference lists: data, stack, mixed. */
enum { ARENA_MIXED = DATA_SIZE + STACK_SIZE, ARENA_SIZE = ARENA_MIXED + MIXED_SIZE };

/* Linux's user-mode selectors (arch/x86/include/asm/segment.h). */
enum { SEL_CS32 = 0x23, SEL_DS = 0x2b, SEL_CS64 = 0x33 };

/* ---- State ---- */

/* One XSAVE image's worth, with x87 registers in physical order. */
struct fp_state {
    struct x86_x87 x87[8];
    uint64_t fip, fdp;
    uint32_t mxcsr;
    uint16_t fcw, fsw, fop;
    uint8_t ftw; /* one bit a physical register: in use */
    uint8_t ymm[16][32];
};

struct user_state {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint64_t fs_base, gs_base;
    uint16_t cs, ss, ds, es, fs, gs;
    struct fp_state fp;
};

/* ---- Cases ---- */

enum { CODE_MAX = 2048, PATCHES_MAX = 4, PATCH_SIZE = 64, DIFFS_MAX = 512, SEQUENCE_MAX = 5 };
enum { PIECES_MAX = 160 };

struct patch {
    uint32_t offset; /* in the arena */
    uint8_t bytes[PATCH_SIZE];
};

struct test_case {
    uint64_t start; /* address of the first instruction */
    uint8_t code[CODE_MAX];
    uint32_t code_length;
    bool mode32;
    bool is_twin; /* of the case before it: check.c */
    uint8_t row_count;
    uint16_t rows[SEQUENCE_MAX]; /* table rows that it was made from */
    uint16_t flags_unknown;      /* of a sequence or program: left undefined at its end */
    uint16_t flags_unknown_any;  /* of a sequence: left undefined somewhere in it */
    bool is_program;
    uint16_t piece_count; /* of a program: what can be left out of it */
    struct {
        uint16_t at, length;
    } piece[PIECES_MAX];
    uint8_t patch_count;
    struct patch patch[PATCHES_MAX];
    struct user_state state;
};

struct word_diff {
    uint32_t offset; /* in the arena */
    uint64_t value;
};

/* TIMEOUT: an endless loop, or a system call: such cases do not count. */
enum { VECTOR_TIMEOUT = 0xfe, VECTOR_LOST = 0xff };

struct outcome {
    uint8_t vector; /* of the exception that ended it; 3: the INT3 behind the code */
    uint32_t error;
    uint64_t cr2; /* vector 14 */
    struct user_state state;
    uint8_t last[15];    /* a guest's: the bytes at rip where code can change itself, else zeros */
    uint32_t diff_count; /* words of the arena that differ from the background */
    struct word_diff diff[DIFFS_MAX];
};

/* The arena and the constant page before patches. */
struct background {
    uint8_t arena[ARENA_SIZE];
    uint8_t constant[CONST_SIZE];
};
/* The arena's parts as one side has them. restore, if set, puts a page back instead of memcpy. */
struct arena {
    uint8_t *data, *stack, *mixed;
    void (*restore)(void *context, uint32_t offset, const uint8_t *page);
    void *context;
};
void background_fill(struct background *background);
/* Lists what differs from the background and restores it. */
void background_collect(const struct background *background, const struct arena *arena,
                        struct outcome *outcome);
/* Where a patch goes. */
uint8_t *background_at(const struct arena *arena, uint32_t offset);
/* The address that user code has it at. */
uint64_t background_address(uint32_t offset);
/* Where code that starts at an address is in the arena, or ARENA_SIZE: in the code pages. */
uint32_t background_code(uint64_t start);

/* ---- random.c ---- */

struct random {
    uint64_t state;
};
uint64_t random_next(struct random *random);
/* 0 to n-1. */
unsigned random_below(struct random *random, unsigned n);
/* True once in n. */
bool random_once_in(struct random *random, unsigned n);
/* Integers near the boundaries of all sizes, and plain ones. */
uint64_t random_integer(struct random *random);
/* Fills bytes with elements of one kind: integers, single, double, extended, packed decimal. */
void random_bytes(struct random *random, uint8_t *bytes, unsigned length);
struct x86_x87 random_extended(struct random *random);

/* ---- encode.c ---- */

/* Builds one instruction of a row into the case, and puts into the case's registers what its memory
 * operand needs. `fixed`: memory operands name their address without registers. */
struct encoder {
    struct test_case *test;
    struct random *random;
    const struct insn_row *row;
    uint64_t target; /* address of the memory operand */
    uint64_t used;   /* bit n: register n holds an address and stays as it is */
    bool fixed;
    /* based: memory operands are [base + index * 2^scale + disp] of registers that hold the right
     * values already (index RSP: none), and registers in `keep` are not written. */
    bool based;
    unsigned base, index, scale;
    int32_t disp;
    uint32_t keep;
};
/* False: the row has no encoding in this mode. */
bool encode(struct encoder *encoder);
bool row_has_memory(const struct insn_row *row);
bool row_has_operand(const struct insn_row *row, unsigned first, unsigned last);

/* ---- generate.c ---- */

enum program_row_kind { ROWS_INTEGER, ROWS_VECTOR, ROWS_X87, PROGRAM_ROW_KINDS };

struct generator {
    struct random random;
    unsigned mode;                 /* of programs: 32, 64, or 0 for any */
    const uint64_t *features;      /* that guests are offered */
    const uint16_t *sequence_rows; /* rows that may stand in sequences */
    unsigned sequence_row_count;
    struct row_list {
        const uint16_t *rows;
        unsigned count;
    } program_rows[PROGRAM_ROW_KINDS];
};
/* One instruction of row n. False: this row cannot be made in the mode drawn. */
bool generate_single(struct generator *generator, unsigned n, struct test_case *test);
/* A few instructions in a row. */
void generate_sequence(struct generator *generator, struct test_case *test);
/* Registers and memory for code that somebody else fills in; no code yet. */
void generate_state(struct generator *generator, struct test_case *test);
bool row_fits_sequence(const struct insn_row *row);
/* Shifts and rotates, which with a count of 0 change no flags. */
bool count_varies(const struct insn_row *row);
/* Flags that one instruction leaves undefined, from its row and its operands. */
unsigned flags_undefined(const struct insn_row *row, const struct insn *insn,
                         const struct user_state *before);

/* NULL: the row is tested; else why not. */
const char *row_excluded(const struct insn_row *row);
/* A family of rows: "alu", "shift", … */
const char *row_class(const struct insn_row *row);

/* ---- wild.c ---- */

void generate_wild(struct generator *generator, struct test_case *test);
void add_wild_prefixes(struct random *random, struct test_case *test);
void trim_to_one(const struct generator *generator, struct test_case *test);

/* ---- program.c ---- */

bool row_fits_program(const struct insn_row *row);
enum program_row_kind program_row_kind(const struct insn_row *row);
void generate_program(struct generator *generator, struct test_case *test);

/* ---- dead.c ---- */

/* Status flags that are overwritten on every way from where a program faulted before anything
 * reads them: the translator need not keep those unless it is to be exact. */
unsigned flags_dead(const struct test_case *test, const struct outcome *native,
                    const uint64_t *features);

/* ---- shrink.c ---- */

struct native;
struct guest;
/* Leaves out of a program what can go without making the difference go. False: alone, it does not
 * differ. */
bool shrink_program(struct native *native, struct guest *guest, struct test_case *test,
                    struct outcome *native_outcome, struct outcome *guest_outcome,
                    const uint64_t *features);

/* ---- check.c ---- */

/* False: there is none (the instruction reads all flags). */
bool make_twin(struct random *random, const struct test_case *test, struct test_case *twin,
               const uint64_t *features);
/* Both outcomes are native ones; b is a's twin. */
bool table_agrees(const struct test_case *a, const struct outcome *oa, const struct test_case *b,
                  const struct outcome *ob, const uint64_t *features);
void show_table(const struct test_case *a, const struct outcome *oa, const struct test_case *b,
                const struct outcome *ob);

/* ---- native.c ---- */

enum { BATCH_SIZE = 256 };

struct native;
struct batch {
    uint32_t count;
    uint32_t current; /* the case that runs: what a lost child died of */
    struct test_case test[BATCH_SIZE];
    struct outcome native[BATCH_SIZE];
};
int native_create(struct native **native, struct error *err);
void native_destroy(struct native *native);
struct batch *native_batch(struct native *native);
/* The processor that the cases run on: user code can tell by a segment limit. */
unsigned native_processor(const struct native *native);
/* Runs the batch's cases. A case that ends the child gets VECTOR_LOST. */
int native_run(struct native *native, struct error *err);

/* ---- guest.c ---- */

struct guest;
/* engine: soft or kvm (the latter is as good as a second opinion on this harness). */
int guest_create(const struct background *background, enum engine_kind engine, unsigned processor,
                 struct guest **guest, struct error *err);
void guest_destroy(struct guest *guest);
void guest_run(struct guest *guest, const struct test_case *test, struct outcome *outcome);
/* CPUID features that the vCPU offers, as insn_decode takes them. */
const uint64_t *guest_features(const struct guest *guest);

/* ---- compare.c ---- */

/* True: the same. */
bool compare(const struct test_case *test, const struct outcome *native,
             const struct outcome *guest, const uint64_t *features);
void show_code(const struct test_case *test);
void show_difference(const struct test_case *test, const struct outcome *native,
                     const struct outcome *guest, const uint64_t *features);

#endif
