/* The report of a stopped guest: registers, control state, the code at RIP. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/engine.h"

struct output {
    void (*line)(void *context, const char *text);
    void *context;
};

static void emit(const struct output *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void emit(const struct output *out, const char *format, ...) {
    char text[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    out->line(out->context, text);
}

static void dump_general(const struct output *out, const struct x86_state *state) {
    static const char *const names[16] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                          "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"};
    for (unsigned i = 0; i < 16; i += 4)
        emit(out, "%s %016lx  %s %016lx  %s %016lx  %s %016lx", names[i], state->gpr[i],
             names[i + 1], state->gpr[i + 1], names[i + 2], state->gpr[i + 2], names[i + 3],
             state->gpr[i + 3]);
    emit(out, "RIP %016lx  RFLAGS %08lx%s%s", state->rip, state->rflags,
         state->halted ? "  halted" : "", state->waiting_for_sipi ? "  waits for SIPI" : "");
}

static void dump_segment(const struct output *out, const char *name,
                         const struct x86_segment *segment) {
    emit(out, "%s  %04x  base %016lx  limit %08x  attributes %04x", name, segment->selector,
         segment->base, segment->limit, segment->attributes);
}

static void dump_system(const struct output *out, const struct x86_state *state) {
    static const char *const names[SEG_COUNT] = {"ES", "CS", "SS", "DS", "FS", "GS"};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        dump_segment(out, names[i], &state->segment[i]);
    dump_segment(out, "TR", &state->tr);
    emit(out, "GDTR %016lx %04x  IDTR %016lx %04x", state->gdtr.base, state->gdtr.limit,
         state->idtr.base, state->idtr.limit);
    emit(out, "CR0 %08lx  CR2 %016lx  CR3 %016lx  CR4 %08lx  EFER %04lx", state->cr0, state->cr2,
         state->cr3, state->cr4, state->efer);
}

/* Bytes at a guest-virtual address, up to the first that is not there. */
static size_t read_code(struct vcpu *vcpu, const struct x86_state *state, uint8_t *bytes,
                        size_t length) {
    uint64_t linear = state->segment[SEG_CS].attributes & SEG_L
                          ? state->rip
                          : (uint32_t)(state->segment[SEG_CS].base + state->rip);
    for (size_t i = 0; i < length; i++) {
        uint64_t gpa;
        if (vcpu_translate(vcpu, linear + i, &gpa) < 0 ||
            memory_read(vcpu->engine->config.memory, gpa, bytes + i, 1) < 0)
            return i;
    }
    return length;
}

void vcpu_dump(struct vcpu *vcpu, void (*line)(void *context, const char *text), void *context) {
    const struct output out = {line, context};
    struct x86_state state;
    vcpu_get_state(vcpu, &state);
    dump_general(&out, &state);
    dump_system(&out, &state);
    uint8_t bytes[16];
    char text[3 * sizeof bytes + 1] = "";
    size_t count = read_code(vcpu, &state, bytes, sizeof bytes);
    for (size_t i = 0; i < count; i++)
        snprintf(text + 3 * i, 4, " %02x", bytes[i]);
    emit(&out, "code at RIP:%s", count == 0 ? " not readable" : text);
    if (vcpu->engine->ops->report != NULL)
        vcpu->engine->ops->report(vcpu, line, context);
}
