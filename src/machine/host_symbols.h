/*
 * lodge's own functions, from the symbol table of its program file: names for
 * host addresses, and what each function's time counts as. Without a symbol
 * table (a stripped program) there are none.
 */
#ifndef LODGE_MACHINE_HOST_SYMBOLS_H
#define LODGE_MACHINE_HOST_SYMBOLS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* What a profile's time is spent on. The order is that of reports. */
enum time_kind {
    TIME_GUEST_USER,   /* translated guest code */
    TIME_GUEST_KERNEL, /* translated guest code */
    TIME_INTERPRETER,  /* instructions that are interpreted */
    TIME_CALLOUTS,     /* instructions that C runs for translated code */
    TIME_MEMORY,       /* TLB misses, page walks, accesses off the fast path */
    TIME_SWITCH,       /* in and out of translated code, finding the next block */
    TIME_TRANSLATION,  /* decoding, translating, forgetting */
    TIME_EVENTS,       /* delivering exceptions and interrupts, the run loop */
    TIME_DEVICES,      /* device models on the vCPU's thread */
    TIME_OTHER,        /* anything else of lodge */
    TIME_IDLE,         /* the guest halts */
    TIME_WAITING,      /* the host ran something else */
    TIME_KINDS
};
extern const char *const time_kind_names[TIME_KINDS];  /* for programs */
extern const char *const time_kind_titles[TIME_KINDS]; /* for people */

struct host_function {
    uint64_t start, end;
    const char *name;    /* without what the compiler appended */
    const char *file;    /* "" when not known */
    enum time_kind kind; /* TIME_CALLOUTS: an instruction's handler, called out or interpreted */
};

struct host_symbols {
    struct host_function *functions; /* by address */
    size_t count;
    void *image; /* the file, mapped: names point into it */
    size_t image_size;
};

/* Always succeeds, perhaps with no function at all. -ENOMEM. */
int host_symbols_load(struct host_symbols *symbols, struct error *err);
void host_symbols_free(struct host_symbols *symbols);
const struct host_function *host_symbols_find(const struct host_symbols *symbols, uint64_t address);

/* What a function of that name in that source file counts as. */
enum time_kind host_function_kind(const char *name, const char *file);

#endif
