/*
 * Units: taking state and pages back, running both ways, finding the place
 * where they meet.
 *
 * How many blocks a translation runs before it leaves is for the translator
 * to decide. So the interpreter runs as many as it took the last time from
 * this rip; if the two do not meet, it starts again and looks for the place
 * with the translation's rip and registers, block by block and then
 * instruction by instruction.
 */
#include "cpu/soft/verify.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/flags.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/run.h"
#include "cpu/soft/verify_private.h"

enum {
    BLOCKS_NEAR = 1 << 8, /* a search looks at, then: */
    STEPS = 1 << 12,
    BLOCKS_FAR = 1 << 16,
    ATTEMPTS = 3,
    PATIENCE = 1 << 30, /* cpu->budget of a run: it is not to end a string instruction */
};

/* ---- State ---- */

/* Without what other threads write, what derives from the place in memory, and what no guest sees.
 */
const struct verify_part verify_parts[VERIFY_PARTS] = {
    VERIFY_PART(gpr, request),
    VERIFY_PART(cpl, block),
    VERIFY_PART(segment, vec[16]),
    VERIFY_PART(event, lapic),
};

static void image_save(const struct soft_cpu *cpu, struct verify_image *image) {
    uint8_t *to = image->bytes;
    for (unsigned i = 0; i < VERIFY_PARTS; i++) {
        memcpy(to, (const char *)cpu + verify_parts[i].offset, verify_parts[i].size);
        to += verify_parts[i].size;
    }
}

static void image_restore(struct soft_cpu *cpu, const struct verify_image *image) {
    const uint8_t *from = image->bytes;
    for (unsigned i = 0; i < VERIFY_PARTS; i++) {
        memcpy((char *)cpu + verify_parts[i].offset, from, verify_parts[i].size);
        from += verify_parts[i].size;
    }
    cpu->insn = NULL;
}

const void *verify_image_at(const struct verify_image *image, size_t offset) {
    const uint8_t *at = image->bytes;
    for (unsigned i = 0; i < VERIFY_PARTS; i++) {
        if (offset - verify_parts[i].offset < verify_parts[i].size)
            return at + (offset - verify_parts[i].offset);
        at += verify_parts[i].size;
    }
    return NULL;
}

/* ---- Pages ---- */

/* Back to the unit's start. What a run has left is kept in v->earlier and v->after. */
static void rewind_unit(struct soft_cpu *cpu, struct verify *v, bool keep) {
    if (keep) {
        image_save(cpu, &v->earlier);
        v->earlier.stop = v->stop;
    }
    for (unsigned i = 0; i < v->pages; i++) {
        if (keep)
            memcpy(v->after[i], v->page[i].host, PAGE_SIZE);
        memcpy(v->page[i].host, v->before[i], PAGE_SIZE);
    }
    image_restore(cpu, &v->start);
    /* Translations of the future, and accessed bits that were taken back. */
    if (mmu_of(cpu)->flushes != v->flushes || v->marked) {
        mmu_flush_all(cpu);
        v->flushes = mmu_of(cpu)->flushes;
        v->marked = false;
    }
}

/* ---- Comparing ---- */

uint64_t verify_flags(struct verify *v, const struct verify_image *image) {
    v->scratch->flags = IMAGE(image, flags);
    v->scratch->rflags = IMAGE(image, rflags);
    return flags_get(v->scratch);
}

/* Whether the row makes an image of the flags: PUSHF, LAHF, SYSCALL, INT n. */
static bool shows_flags(const struct insn_row *row) {
    static const char *const names[] = {"pushf", "lahf", "syscall", "int", "int3"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(row->name, names[i]) == 0)
            return true;
    return false;
}

/*
 * Status flags that the instructions of the interpreter's path left undefined; *shown: those that
 * were so when one of them made an image of the flags.
 */
static uint64_t undefined_flags(const struct verify *v, uint64_t *shown) {
    uint64_t undefined = 0;
    *shown = 0;
    unsigned first = v->blocks > VERIFY_PATH ? v->blocks - VERIFY_PATH : 0;
    for (unsigned n = first; n < v->blocks; n++) {
        const struct verify_step *step = &v->path[n % VERIFY_PATH];
        if (step->block->rip != step->rip || step->block->run_count != step->count ||
            step->block->insns == NULL)
            continue; /* its memory is another's by now */
        for (unsigned i = 0; i < step->count; i++) {
            const struct insn_row *row = insn_row_of(&step->block->insns[i]);
            if (undefined != 0 && shows_flags(row))
                *shown |= undefined;
            undefined &= ~(uint64_t)(row->flags_written & ~row->flags_read);
            undefined |= row->flags_undefined;
        }
    }
    return undefined;
}

/* Code bytes at a rip of the present state, over a page's end as well; how many are there. */
static size_t code_at(struct soft_cpu *cpu, uint64_t rip, uint8_t *bytes, size_t length) {
    size_t done = 0;
    while (done < length) {
        struct mem_page page;
        uint64_t gpa;
        if (mmu_probe(cpu, block_linear(cpu, rip + done), &gpa) < 0)
            break;
        view_page(cpu->view, gpa, &page);
        if (page.host == NULL)
            break;
        size_t offset = gpa & (PAGE_SIZE - 1), part = PAGE_SIZE - offset;
        if (part > length - done)
            part = length - done;
        memcpy(bytes + done, page.host + offset, part);
        done += part;
    }
    return done;
}

/* Shifts by a count of 0 leave the flags as they were. Their rows say that as reading them. */
static bool passes_flags(const struct insn_row *row) {
    static const char *const names[] = {"shl", "shr", "sar", "rol", "ror", "shld", "shrd"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(row->name, names[i]) == 0)
            return row->flags_read != 0;
    return false;
}

/* A look ahead: where it has been, with which flags; what is found there is found already. */
struct flags_search {
    unsigned count;
    struct {
        uint64_t rip, flags;
    } been[64];
};

/* True: been there. No room is as good as not: the search ends by its depth. */
static bool been_there(struct flags_search *search, uint64_t rip, uint64_t flags) {
    for (unsigned i = 0; i < search->count; i++)
        if (search->been[i].rip == rip && (flags & ~search->been[i].flags) == 0)
            return true;
    if (search->count < ARRAY_SIZE(search->been)) {
        search->been[search->count].rip = rip;
        search->been[search->count++].flags = flags;
    }
    return false;
}

/* Whether the code at rip writes all these status flags before it reads one. */
static bool flags_are_dead(struct soft_cpu *cpu, uint64_t rip, uint64_t flags, unsigned depth,
                           struct flags_search *search) {
    enum { LOOK = 48, DEPTH = 6 };
    for (unsigned n = 0; n < LOOK && depth < DEPTH; n++) {
        uint8_t bytes[15];
        struct insn insn;
        size_t available = code_at(cpu, rip, bytes, sizeof bytes);
        int length = available == 0 ? 0
                                    : insn_decode(&insn, bytes, available, rip,
                                                  (enum insn_mode)cpu->mode, cpu->features);
        if (length <= 0)
            return false;
        const struct insn_row *row = insn_row_of(&insn);
        if (!passes_flags(row)) {
            if (row->flags_read & flags)
                return false;
            flags &= ~(uint64_t)(row->flags_written | row->flags_undefined);
        }
        if (flags == 0)
            return true;
        rip += (unsigned)length;
        if (!(row->properties & (INSN_BRANCH | INSN_END)) || strcmp(row->name, "sti") == 0)
            continue;
        bool direct = row->operand[0] == OPERAND_Jb || row->operand[0] == OPERAND_Jz;
        if (!direct)
            return false;
        bool always = strcmp(row->name, "jmp") == 0 || strcmp(row->name, "call") == 0;
        if (!always && !flags_are_dead(cpu, rip, flags, depth + 1, search))
            return false;
        rip += insn.imm;
        if (been_there(search, rip, flags))
            return true;
    }
    return false;
}

static bool flags_agree(struct soft_cpu *cpu, struct verify *v, const struct verify_image *image) {
    const struct soft_flags *other = &IMAGE(image, flags);
    if (other->result == cpu->flags.result && other->carries == cpu->flags.carries)
        return true;
    uint64_t differ = (verify_flags(v, image) ^ flags_get(cpu)) & FLAGS_STATUS;
    if (differ == 0)
        return true;
    uint64_t shown;
    differ &= ~undefined_flags(v, &shown);
    struct flags_search search = {.count = 0};
    return differ == 0 || flags_are_dead(cpu, cpu->rip, differ, 0, &search);
}

static bool event_agrees(const struct soft_cpu *cpu, const struct verify_image *image) {
    const __typeof__(cpu->event) *a = &cpu->event, *b = &IMAGE(image, event);
    if (a->pending != b->pending)
        return false;
    return !a->pending || (a->vector == b->vector && a->kind == b->kind &&
                           a->has_error == b->has_error && (!a->has_error || a->error == b->error));
}

static bool same(const struct soft_cpu *cpu, const struct verify_image *image, size_t offset,
                 size_t behind) {
    return memcmp((const char *)cpu + offset, verify_image_at(image, offset), behind - offset) == 0;
}
#define SAME(first, behind)                                                                        \
    same(cpu, image, offsetof(struct soft_cpu, first), offsetof(struct soft_cpu, behind))

/* But for bits that an image of undefined flags brought. */
static bool registers_agree(const struct soft_cpu *cpu, const struct verify_image *image,
                            uint64_t undefined) {
    const uint64_t *other = &IMAGE(image, gpr[0]);
    for (unsigned i = 0; i < 16; i++)
        if ((cpu->gpr[i] ^ other[i]) & ~(undefined | undefined << 8))
            return false;
    return true;
}

/* The present state is that of the image. */
static bool state_agrees(struct soft_cpu *cpu, struct verify *v, const struct verify_image *image,
                         uint64_t undefined) {
    return cpu->rip == IMAGE(image, rip) && registers_agree(cpu, image, undefined) &&
           cpu->rflags == IMAGE(image, rflags) && SAME(seg, tlb_context) &&
           cpu->tlb == IMAGE(image, tlb) && SAME(cpl, block) && SAME(segment, fop) &&
           SAME(mxcsr, fp_raised) && SAME(vec, vec[16]) && event_agrees(cpu, image) &&
           flags_agree(cpu, v, image);
}

static bool page_agrees(const uint8_t *a, const uint8_t *b, uint64_t undefined) {
    if (undefined == 0)
        return memcmp(a, b, PAGE_SIZE) == 0;
    for (unsigned at = 0; at < PAGE_SIZE; at += 8)
        if ((load_le64(a + at) ^ load_le64(b + at)) & ~undefined)
            return false;
    return true;
}

static bool pages_agree(const struct verify *v, uint64_t undefined) {
    for (unsigned i = 0; i < v->pages; i++)
        if (!page_agrees(v->page[i].host, v->after[i], undefined))
            return false;
    return true;
}

/* The present run and the earlier one meet here. */
static bool agrees(struct soft_cpu *cpu, struct verify *v) {
    if (cpu->rip != IMAGE(&v->earlier, rip))
        return false;
    if (state_agrees(cpu, v, &v->earlier, 0) && pages_agree(v, 0))
        return true;
    uint64_t shown;
    undefined_flags(v, &shown);
    return shown != 0 && state_agrees(cpu, v, &v->earlier, shown) && pages_agree(v, shown);
}

/* ---- Running one way ---- */

static void run_one_way(struct soft_cpu *cpu, struct verify *v,
                        void (*body)(struct soft_cpu *, struct verify *)) {
    v->stop = VERIFY_GOES_ON;
    cpu->verifying = true;
    memcpy(v->outer, cpu->unwind, sizeof v->outer);
    if (setjmp(cpu->unwind) == 0)
        body(cpu, v);
    else if (atomic_load(&cpu->request) & REQUEST_STOP)
        v->stop = v->stop != VERIFY_GOES_ON ? v->stop : VERIFY_EXIT;
    memcpy(cpu->unwind, v->outer, sizeof v->outer);
    cpu->verifying = false;
    atomic_fetch_and(&cpu->request, ~(unsigned)(REQUEST_STOP | REQUEST_VERIFY));
    cpu->insn = NULL;
}

static void translate_way(struct soft_cpu *cpu, struct verify *v) {
    struct block *block = soft_block(cpu, block_key(cpu) | v->plain);
    v->untranslated = false;
    cpu->jit.plain = 0;
    if (jit_wants(cpu, block))
        block = jit_translate(cpu, block);
    if (block->code == NULL) {
        v->untranslated = true;
        return;
    }
    atomic_fetch_or(&cpu->request, REQUEST_VERIFY);
    jit_run(cpu, block);
}

/* After these the run loop looks up, and so does translated code. */
static bool must_look_up(const struct soft_cpu *cpu) {
    bool waits = cpu->interrupt_shadow && cpu->lapic != NULL && lapic_attention(cpu->lapic);
    return cpu->halted || waits || cpu->rflags & FLAG_TF || debug_active(cpu);
}

static bool met(struct soft_cpu *cpu, struct verify *v) {
    if (cpu->rip != IMAGE(&v->earlier, rip))
        return false;
    if (agrees(cpu, v))
        return true;
    image_save(cpu, &v->now);
    unsigned score = verify_count_differences(v, &v->earlier, &v->now);
    if (score < v->best_score) {
        v->best_score = score;
        v->best = v->blocks;
        v->best_key = v->extra_key;
    }
    return false;
}

static struct block *decoded_block(struct soft_cpu *cpu, uint64_t extra_key) {
    struct block *block = soft_block(cpu, block_key(cpu) | extra_key);
    if (block->insns == NULL && !block_decode(cpu, block))
        block = soft_block(cpu, block_key(cpu) | extra_key); /* its bytes have changed */
    return block;
}

static void interpret_way(struct soft_cpu *cpu, struct verify *v) {
    v->blocks = 0;
    v->ran = 0;
    /* It may have left at once, to run without shared checks (KEY_PLAIN). */
    v->found = v->searching && met(cpu, v);
    while (!v->found && v->blocks < v->limit) {
        struct block *block = decoded_block(cpu, v->extra_key);
        cpu->interrupt_shadow = false; /* as between any two blocks, when nothing waits */
        v->path[v->blocks % VERIFY_PATH] =
            (struct verify_step){.block = block, .rip = block->rip, .count = block->run_count};
        v->blocks++;
        v->ran += block->run_count;
        soft_enter(cpu, block);
        v->found = v->searching && met(cpu, v);
        if (must_look_up(cpu))
            return;
    }
}

static void interpret(struct soft_cpu *cpu, struct verify *v, unsigned limit, bool search,
                      uint64_t extra_key) {
    v->limit = limit;
    v->searching = search;
    v->extra_key = extra_key;
    run_one_way(cpu, v, interpret_way);
    if (search && !v->found)
        v->found = met(cpu, v); /* with an exception, or before what happens once */
}

/* ---- Units ---- */

static struct verify_guess *guess(struct verify *v, uint64_t rip) {
    struct verify_guess *guess = &v->guesses[(rip ^ rip >> 13) & (VERIFY_GUESSES - 1)];
    if (guess->rip != rip)
        *guess = (struct verify_guess){.rip = rip, .blocks = 1};
    return guess;
}

/* The translation has run: looks for the place where it left. False: there is none. */
static bool search(struct soft_cpu *cpu, struct verify *v, uint64_t from) {
    static const struct {
        unsigned limit;
        uint64_t extra_key;
    } ways[] = {{BLOCKS_NEAR, 0}, {STEPS, KEY_STEP}, {BLOCKS_FAR, 0}};
    v->searches++;
    v->best = 1;
    v->best_key = 0;
    v->best_score = UINT32_MAX;
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        rewind_unit(cpu, v, i == 0);
        interpret(cpu, v, ways[i].limit, true, ways[i].extra_key);
        if (!v->found)
            continue;
        if (v->blocks != 0)
            *guess(v, from) = (struct verify_guess){from, ways[i].extra_key, v->blocks};
        return true;
    }
    return false;
}

/* Once more both ways, to the place where they came closest, for the report. */
static void show_difference(struct soft_cpu *cpu, struct verify *v) {
    rewind_unit(cpu, v, false);
    run_one_way(cpu, v, translate_way);
    rewind_unit(cpu, v, true);
    interpret(cpu, v, v->best, false, v->best_key);
    image_save(cpu, &v->now);
    v->now.stop = v->stop;
    verify_write_report(cpu, v);
    cpu->exit = (struct vcpu_exit){.stop = VCPU_DIFFERENCE};
    snprintf(cpu->exit.text, sizeof cpu->exit.text,
             "interpreter and translator differ after the code at RIP %#llx",
             (unsigned long long)IMAGE(&v->start, rip));
    atomic_fetch_or(&cpu->request, REQUEST_STOP);
}

static void note_unit(struct soft_cpu *cpu, struct verify *v) {
    v->last[v->units++ % VERIFY_LAST] =
        (struct verify_unit){IMAGE(&v->start, rip), cpu->rip, v->blocks};
    v->instructions += v->ran;
}

enum outcome { AGREED, DIFFERED, NOT_COMPARED };

static enum outcome try_unit(struct soft_cpu *cpu, struct verify *v) {
    uint64_t from = cpu->rip;
    interpret(cpu, v, guess(v, from)->blocks, false, guess(v, from)->extra_key);
    if (v->stop == VERIFY_EXIT) {
        rewind_unit(cpu, v, false);
        return NOT_COMPARED;
    }
    rewind_unit(cpu, v, true);
    run_one_way(cpu, v, translate_way);
    if (v->untranslated || v->stop == VERIFY_EXIT) {
        rewind_unit(cpu, v, false);
        return NOT_COMPARED;
    }
    if (agrees(cpu, v)) {
        cpu->flags = IMAGE(&v->earlier, flags); /* those that nobody reads, too */
        return AGREED;
    }
    if (search(cpu, v, from))
        return AGREED;
    rewind_unit(cpu, v, false);
    return DIFFERED;
}

/* A request that comes in while a string instruction runs ends it early: that does not come again.
 */
static enum outcome run_unit(struct soft_cpu *cpu, struct verify *v) {
    image_save(cpu, &v->start);
    v->plain = cpu->jit.plain;
    mmu_forget_writes(cpu);
    v->pages = 0;
    v->flushes = mmu_of(cpu)->flushes;
    v->marked = false;
    enum outcome outcome = try_unit(cpu, v);
    for (unsigned i = 1; i < ATTEMPTS && outcome == DIFFERED; i++) {
        v->retries++;
        outcome = try_unit(cpu, v);
    }
    if (outcome == DIFFERED)
        show_difference(cpu, v);
    else if (outcome == AGREED)
        note_unit(cpu, v);
    return outcome;
}

static void interpret_for_good(struct soft_cpu *cpu) {
    cpu->verify->unverified++;
    cpu->jit.plain = 0;
    soft_enter(cpu, decoded_block(cpu, 0));
}

void verify_run(struct soft_cpu *cpu) {
    struct verify *v = cpu->verify;
    jit_safe_point(cpu);
    soft_block(cpu, block_key(cpu)); /* what its fetch raises comes before the unit */
    if (!jit_usable(cpu) || !memory_freeze(cpu->memory)) {
        interpret_for_good(cpu);
        return;
    }
    int32_t budget = cpu->budget, granted = run_of(cpu)->granted;
    cpu->budget = PATIENCE;
    v->stop = VERIFY_GOES_ON;
    enum outcome outcome = run_unit(cpu, v);
    memory_thaw(cpu->memory);
    cpu->budget = v->ran < (uint64_t)budget ? budget - (int32_t)v->ran : 0;
    run_of(cpu)->granted = granted;
    bool stuck = outcome == AGREED && v->blocks == 0 && cpu->jit.plain == 0;
    if (outcome == NOT_COMPARED || stuck) {
        interpret_for_good(cpu);
    } else if (outcome == AGREED && v->stop == VERIFY_ONCE) {
        v->once++;
        soft_step(cpu, 0);
    }
}

/* ---- Life ---- */

int verify_create(struct soft_cpu *cpu, struct error *err) {
    struct verify *v = aligned_alloc(64, round_up(sizeof *v, 64));
    size_t pages = (size_t)VERIFY_PAGES * PAGE_SIZE;
    if (v == NULL)
        return error_set_errno(err, -ENOMEM, "no memory for lock-step");
    memset(v, 0, sizeof *v);
    cpu->verify = v;
    v->before = malloc(pages);
    v->after = malloc(pages);
    v->scratch = calloc(1, sizeof *v->scratch);
    v->lines = calloc(VERIFY_LINES, VERIFY_LINE);
    if (v->before == NULL || v->after == NULL || v->scratch == NULL || v->lines == NULL) {
        verify_destroy(cpu);
        return error_set_errno(err, -ENOMEM, "no memory for lock-step");
    }
    cpu->heat_limit = 0; /* everything is translated, and no handler goes on to the next block */
    if (memory_freeze(cpu->memory)) /* from now on devices look */
        memory_thaw(cpu->memory);
    return 0;
}

void verify_destroy(struct soft_cpu *cpu) {
    struct verify *v = cpu->verify;
    if (v == NULL)
        return;
    log_info("lock-step: %llu units, %llu instructions agreed; %llu instructions run once, %llu "
             "blocks not compared; %llu searches, %llu repeated",
             (unsigned long long)v->units, (unsigned long long)v->instructions,
             (unsigned long long)v->once, (unsigned long long)v->unverified,
             (unsigned long long)v->searches, (unsigned long long)v->retries);
    free(v->before);
    free(v->after);
    free(v->scratch);
    free(v->lines);
    free(v);
    cpu->verify = NULL;
}
