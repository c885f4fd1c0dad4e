/*
 * The symbols of a guest's kernel, as the guest itself tells them: the text of
 * its /proc/kallsyms, read by lodge-agent. It knows modules and a randomized
 * base, and no layout of any kernel version is needed. What it says is the
 * guest's word and no more: it is bounded, and names are made printable.
 */
#ifndef LODGE_MACHINE_GUEST_SYMBOLS_H
#define LODGE_MACHINE_GUEST_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "machine/agent.h"

enum { GUEST_SYMBOLS_TEXT_MAX = 32 << 20, GUEST_SYMBOLS_MAX = 1 << 20 };

struct guest_symbol {
    uint64_t address;
    uint32_t name, module; /* offsets in the text; module 0: the kernel itself */
};

struct guest_symbols {
    struct guest_symbol *code; /* functions, by address */
    size_t count;
    char *text;
    /* Data that the profiler looks at; 0: not there. */
    uint64_t current_task, init_task;
    bool has_current_task;
};

/* Lines "ADDRESS TYPE NAME [MODULE]"; others are skipped. text, ended by a zero, becomes the
 * symbols'. -ENODATA: no function in it. */
int guest_symbols_parse(char *text, size_t length, struct guest_symbols **symbols,
                        struct error *err);
void guest_symbols_free(struct guest_symbols *symbols);

/* The function at or below address, NULL when that is farther than functions are long. */
const struct guest_symbol *guest_symbols_find(const struct guest_symbols *symbols,
                                              uint64_t address);
const char *guest_symbol_name(const struct guest_symbols *symbols, const struct guest_symbol *s);
const char *guest_symbol_module(const struct guest_symbols *symbols, const struct guest_symbol *s);

/*
 * Asks the agent. done is called once, from the loop: symbols (the callee's),
 * or NULL with a reason. Ends by itself after some seconds. The loop's thread.
 */
struct guest_symbols_fetch;
typedef void guest_symbols_done(void *context, struct guest_symbols *symbols, const char *reason);
int guest_symbols_fetch(struct agent *agent, struct loop *loop, guest_symbols_done *done,
                        void *context, struct guest_symbols_fetch **fetch, struct error *err);
/* Before it is done: done is not called. */
void guest_symbols_cancel(struct guest_symbols_fetch *fetch);

#endif
