/* What verify.c and verify_report.c share. */
#ifndef LODGE_CPU_SOFT_VERIFY_PRIVATE_H
#define LODGE_CPU_SOFT_VERIFY_PRIVATE_H

#include "cpu/soft/block.h"
#include "cpu/soft/verify.h"

enum {
    VERIFY_PAGES = 64, /* that a unit may write; one that wants more ends there */
    VERIFY_PATH = 64,  /* blocks that are remembered, the newest */
    VERIFY_LAST = 8,   /* units before */
    VERIFY_GUESSES = 1 << 13,
    VERIFY_LINES = 400,
    VERIFY_LINE = 160,
};

/* The parts of struct soft_cpu that instructions change, one behind another (verify_parts). */
struct verify_part {
    size_t offset, size;
};
#define VERIFY_PART(first, behind)                                                                 \
    {                                                                                              \
        offsetof(struct soft_cpu, first),                                                          \
            offsetof(struct soft_cpu, behind) - offsetof(struct soft_cpu, first)                   \
    }
enum { VERIFY_PARTS = 4, VERIFY_IMAGE = 4096 };
extern const struct verify_part verify_parts[VERIFY_PARTS];

struct verify_image {
    uint8_t bytes[VERIFY_IMAGE] __attribute__((aligned(64)));
    enum verify_stop stop;
};

/* Where an image holds a member of struct soft_cpu. */
const void *verify_image_at(const struct verify_image *image, size_t offset);
#define IMAGE(image, member)                                                                       \
    (*(const __typeof__(((struct soft_cpu *)0)->member) *)verify_image_at(                         \
        (image), offsetof(struct soft_cpu, member)))

struct verify_page {
    uint8_t *host; /* its first byte */
    uint64_t gpa;
};

struct verify_step {
    const struct block *block;
    uint64_t rip;
    uint16_t count;
};

/* How far a unit went the last time. */
struct verify_guess {
    uint64_t rip, extra_key;
    unsigned blocks;
};

struct verify_unit {
    uint64_t from, to;
    unsigned blocks;
};

struct verify {
    /* The unit. */
    struct verify_image start, earlier; /* earlier: where the run before the present one ended */
    struct verify_image now;            /* for reports */
    struct verify_page page[VERIFY_PAGES];
    uint8_t (*before)[PAGE_SIZE]; /* the pages at the start */
    uint8_t (*after)[PAGE_SIZE];  /* as the earlier run left them */
    unsigned pages;
    uint64_t flushes;      /* mmu.flushes at the start */
    bool marked;           /* a page walk has set bits in one of the pages */
    enum verify_stop stop; /* of the present run */
    /* The interpreter's run. */
    unsigned blocks, limit;
    uint64_t extra_key; /* KEY_STEP or 0 */
    uint32_t plain;     /* KEY_PLAIN or 0: how the translation is to run */
    bool searching, found, untranslated;
    /* Of a search in vain: the block after which they were the closest. */
    unsigned best, best_score;
    uint64_t best_key;
    struct verify_step path[VERIFY_PATH];
    uint64_t ran; /* instructions */
    jmp_buf outer;
    /* Over all units. */
    struct verify_guess guesses[VERIFY_GUESSES];
    struct verify_unit last[VERIFY_LAST];
    uint64_t units, instructions, searches, retries, once, unverified;
    struct soft_cpu *scratch; /* to ask flags.h about an image */
    char (*lines)[VERIFY_LINE];
    unsigned line_count;
};

/* All status and other flags of an image. */
uint64_t verify_flags(struct verify *v, const struct verify_image *image);

/* Writes the report of the difference between v->earlier (translator) and v->now (interpreter), the
 * pages' bytes being in v->after and where they are. */
void verify_write_report(struct soft_cpu *cpu, struct verify *v);

/* How many of the compared members differ; at: calls for each, may be NULL. */
unsigned verify_count_differences(struct verify *v, const struct verify_image *a,
                                  const struct verify_image *b);

#endif
