/*
 * The report of a difference: both states side by side, the bytes that were
 * written, the code that ran, and the units before.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cpu/soft/flags.h"
#include "cpu/soft/verify_private.h"

/* ---- What is compared, by name ---- */

struct field {
    const char *name;
    size_t offset;
    unsigned size; /* shown as one number up to 8, else as bytes */
};
#define FIELD(name, member)                                                                        \
    { name, offsetof(struct soft_cpu, member), sizeof(((struct soft_cpu *)0)->member) }
static const struct field fields[] = {
    FIELD("RAX", gpr[0]),
    FIELD("RCX", gpr[1]),
    FIELD("RDX", gpr[2]),
    FIELD("RBX", gpr[3]),
    FIELD("RSP", gpr[4]),
    FIELD("RBP", gpr[5]),
    FIELD("RSI", gpr[6]),
    FIELD("RDI", gpr[7]),
    FIELD("R8", gpr[8]),
    FIELD("R9", gpr[9]),
    FIELD("R10", gpr[10]),
    FIELD("R11", gpr[11]),
    FIELD("R12", gpr[12]),
    FIELD("R13", gpr[13]),
    FIELD("R14", gpr[14]),
    FIELD("R15", gpr[15]),
    FIELD("RIP", rip),
    FIELD("MXCSR", mxcsr),
    FIELD("CPL", cpl),
    FIELD("mode", mode),
    FIELD("halted", halted),
    FIELD("interrupt shadow", interrupt_shadow),
    FIELD("exception raised", event.pending),
    FIELD("CR0", cr0),
    FIELD("CR2", cr2),
    FIELD("CR3", cr3),
    FIELD("CR4", cr4),
    FIELD("XCR0", xcr0),
    FIELD("EFER", efer),
    FIELD("KERNEL_GS_BASE", kernel_gs_base),
    FIELD("ES", segment[SEG_ES]),
    FIELD("CS", segment[SEG_CS]),
    FIELD("SS", segment[SEG_SS]),
    FIELD("DS", segment[SEG_DS]),
    FIELD("FS", segment[SEG_FS]),
    FIELD("GS", segment[SEG_GS]),
    FIELD("bases of accesses", seg),
    FIELD("TLB", tlb), /* NOLINT(bugprone-sizeof-expression): the pointer is the state */
    FIELD("LDTR", ldtr),
    FIELD("TR", tr),
    FIELD("GDTR", gdtr),
    FIELD("IDTR", idtr),
    FIELD("debug registers", dr),
    FIELD("x87 registers", x87),
    FIELD("x87 control", fcw),
    FIELD("x87 status", fsw),
    FIELD("x87 tags", ftw),
};
enum { FIELDS = sizeof fields / sizeof fields[0], SHOWN_ALWAYS = 17, VECTORS = 16 };

static bool field_differs(const struct field *field, const struct verify_image *a,
                          const struct verify_image *b) {
    return memcmp(verify_image_at(a, field->offset), verify_image_at(b, field->offset),
                  field->size) != 0;
}

static const void *vector_at(const struct verify_image *image, unsigned n) {
    return verify_image_at(image, offsetof(struct soft_cpu, vec) + n * sizeof(union x86_vector));
}

static bool vector_differs(unsigned n, const struct verify_image *a, const struct verify_image *b) {
    return memcmp(vector_at(a, n), vector_at(b, n), sizeof(union x86_vector)) != 0;
}

unsigned verify_count_differences(struct verify *v, const struct verify_image *a,
                                  const struct verify_image *b) {
    unsigned count = verify_flags(v, a) != verify_flags(v, b);
    for (unsigned i = 0; i < FIELDS; i++)
        count += field_differs(&fields[i], a, b);
    for (unsigned n = 0; n < VECTORS; n++)
        count += vector_differs(n, a, b);
    return count;
}

/* ---- Lines ---- */

static void put(struct verify *v, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct verify *v, const char *format, ...) {
    va_list arguments;
    if (v->line_count == VERIFY_LINES)
        return;
    va_start(arguments, format);
    vsnprintf(v->lines[v->line_count++], VERIFY_LINE, format, arguments);
    va_end(arguments);
}

static void put_value(char text[40], const void *value, unsigned size) {
    if (size <= 8) {
        uint64_t number = 0;
        memcpy(&number, value, size);
        snprintf(text, 40, "%016llx", (unsigned long long)number);
        return;
    }
    snprintf(text, 40, "(%u bytes)", size);
}

static void put_field(struct verify *v, const struct field *field) {
    char t[40], i[40];
    put_value(t, verify_image_at(&v->earlier, field->offset), field->size);
    put_value(i, verify_image_at(&v->now, field->offset), field->size);
    put(v, "  %-18s %-34s %-34s%s", field->name, t, i,
        field_differs(field, &v->earlier, &v->now) ? "  <<<" : "");
    if (field->size <= 8 || !field_differs(field, &v->earlier, &v->now))
        return;
    const uint8_t *a = verify_image_at(&v->earlier, field->offset);
    const uint8_t *b = verify_image_at(&v->now, field->offset);
    for (unsigned at = 0; at < field->size; at++)
        if (a[at] != b[at])
            put(v, "    byte %u: %02x, %02x", at, a[at], b[at]);
}

static void put_flags(struct verify *v) {
    static const struct {
        uint64_t flag;
        const char *name;
    } names[] = {{FLAG_CF, "CF"}, {FLAG_PF, "PF"}, {FLAG_AF, "AF"},
                 {FLAG_ZF, "ZF"}, {FLAG_SF, "SF"}, {FLAG_OF, "OF"}};
    uint64_t t = verify_flags(v, &v->earlier), i = verify_flags(v, &v->now);
    char differ[40] = "";
    size_t used = 0;
    for (unsigned n = 0; n < sizeof names / sizeof names[0]; n++)
        if ((t ^ i) & names[n].flag)
            used += (size_t)snprintf(differ + used, sizeof differ - used, " %s", names[n].name);
    put(v, "  %-18s %016llx                   %016llx                  %s%s", "RFLAGS",
        (unsigned long long)t, (unsigned long long)i, t != i ? "  <<<" : "", differ);
}

static void put_vectors(struct verify *v) {
    for (unsigned n = 0; n < VECTORS; n++) {
        if (!vector_differs(n, &v->earlier, &v->now))
            continue;
        const uint64_t *t = vector_at(&v->earlier, n), *i = vector_at(&v->now, n);
        for (unsigned at = 0; at < 4; at++)
            put(v, "  YMM%-2u [%3u:%3u]     %016llx                   %016llx                  %s",
                n, at * 64 + 63, at * 64, (unsigned long long)t[at], (unsigned long long)i[at],
                t[at] != i[at] ? "  <<<" : "");
    }
}

static void put_event(struct verify *v, const char *who, const struct verify_image *image) {
    static const char *const stops[] = {"", "; before what is run once", "; at its bound of pages",
                                        "; the engine stops"};
    const __typeof__(((struct soft_cpu *)0)->event) *event = &IMAGE(image, event);
    if (event->pending)
        put(v, "  %s raised exception %u, error code %#x%s", who, event->vector,
            event->has_error ? event->error : 0, stops[image->stop]);
    else
        put(v, "  %s raised no exception%s", who, stops[image->stop]);
}

/* ---- Memory ---- */

static uint64_t word_at(const uint8_t *page, unsigned offset) {
    uint64_t word;
    memcpy(&word, page + offset, sizeof word);
    return word;
}

static void put_memory(struct verify *v) {
    enum { WORDS_MAX = 40 };
    unsigned shown = 0;
    put(v, "memory written (guest-physical): before, translator, interpreter");
    for (unsigned i = 0; i < v->pages; i++) {
        for (unsigned at = 0; at < PAGE_SIZE && shown < WORDS_MAX; at += 8) {
            uint64_t before = word_at(v->before[i], at), t = word_at(v->after[i], at),
                     now = word_at(v->page[i].host, at);
            if (t == before && now == before)
                continue;
            put(v, "  %012llx  %016llx  %016llx  %016llx%s",
                (unsigned long long)(v->page[i].gpa + at), (unsigned long long)before,
                (unsigned long long)t, (unsigned long long)now, t != now ? "  <<<" : "");
            shown++;
        }
    }
    if (shown == 0)
        put(v, "  none");
    if (shown == WORDS_MAX)
        put(v, "  and maybe more");
}

/* ---- Code ---- */

static void put_insn(struct verify *v, const struct block *block, const struct insn *insn) {
    char bytes[3 * 16 + 1] = "";
    bool there = !block->straddles;
    for (unsigned i = 0; i < insn->length && i < 15 && there; i++)
        snprintf(bytes + 3 * i, 4, "%02x ", block->host[insn->offset + i]);
    put(v, "  %016llx  %-46s%s", (unsigned long long)(block->rip + insn->offset), bytes,
        insn_row_of(insn)->name);
}

static void put_path(struct verify *v) {
    enum { BLOCKS_SHOWN = 12 };
    unsigned known = v->blocks < VERIFY_PATH ? v->blocks : VERIFY_PATH;
    unsigned shown = known < BLOCKS_SHOWN ? known : BLOCKS_SHOWN;
    put(v, "code, as interpreted: the last %u of %u blocks", shown, v->blocks);
    for (unsigned n = v->blocks - shown; n < v->blocks; n++) {
        const struct verify_step *step = &v->path[n % VERIFY_PATH];
        if (step->block->rip != step->rip || step->block->run_count != step->count ||
            step->block->insns == NULL)
            continue;
        put(v, "  block at %016llx", (unsigned long long)step->rip);
        for (unsigned i = 0; i < step->count; i++)
            put_insn(v, step->block, &step->block->insns[i]);
    }
}

static void put_last(struct verify *v) {
    unsigned count = v->units < VERIFY_LAST ? (unsigned)v->units : VERIFY_LAST;
    put(v, "the %u units before, which agreed: from, to, blocks", count);
    for (uint64_t n = v->units - count; n < v->units; n++) {
        const struct verify_unit *unit = &v->last[n % VERIFY_LAST];
        put(v, "  %016llx  %016llx  %u", (unsigned long long)unit->from,
            (unsigned long long)unit->to, unit->blocks);
    }
}

/* ---- All of it ---- */

void verify_write_report(struct soft_cpu *cpu, struct verify *v) {
    v->line_count = 0;
    put(v, "lock-step: interpreter and translator differ after the code at RIP %016llx, unit %llu",
        (unsigned long long)IMAGE(&v->start, rip), (unsigned long long)v->units);
    put(v, "  %-18s %-34s %s", "", "translator", "interpreter");
    for (unsigned i = 0; i < FIELDS; i++)
        if (i < SHOWN_ALWAYS || field_differs(&fields[i], &v->earlier, &v->now))
            put_field(v, &fields[i]);
    put_flags(v);
    put_vectors(v);
    put_event(v, "translator", &v->earlier);
    put_event(v, "interpreter", &v->now);
    put_memory(v);
    put_path(v);
    put(v, "both began with");
    for (unsigned i = 0; i + 3 < 16; i += 4)
        put(v, "  %-3s %016llx  %-3s %016llx  %-3s %016llx  %-3s %016llx", fields[i].name,
            (unsigned long long)IMAGE(&v->start, gpr[i]), fields[i + 1].name,
            (unsigned long long)IMAGE(&v->start, gpr[i + 1]), fields[i + 2].name,
            (unsigned long long)IMAGE(&v->start, gpr[i + 2]), fields[i + 3].name,
            (unsigned long long)IMAGE(&v->start, gpr[i + 3]));
    put(v, "  RFLAGS %08llx", (unsigned long long)verify_flags(v, &v->start));
    put_last(v);
}

void verify_report(struct vcpu *vcpu, void (*line)(void *context, const char *text),
                   void *context) {
    const struct verify *v = soft_cpu_of(vcpu)->verify;
    for (unsigned i = 0; v != NULL && i < v->line_count; i++)
        line(context, v->lines[i]);
}
