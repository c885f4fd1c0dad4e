/* What the files of this room share. */
#ifndef LODGE_ISOLATION_PRIVATE_H
#define LODGE_ISOLATION_PRIVATE_H

#include <stddef.h>
#include <stdint.h>

#include "isolation/isolation.h"

/* Who may make a call: any thread, and of the narrow ones which. */
enum { ANY = 1, VCPU = 2, DISK_IO = 4, VCPU_NET = 8, NETWORK = 16, SANITIZED = 32 };

/* A call may be made if one of its rows fits: (argument & mask) == value in each condition. */
struct call_condition {
    unsigned argument;
    uint64_t mask, value;
};
enum { CALL_CONDITIONS = 2 };

struct call {
    int number;
    unsigned who;
    struct call_condition when[CALL_CONDITIONS]; /* mask 0: none */
};

extern const struct call calls[];
extern const size_t call_count;

/* A filter as the kernel takes it; freed with free(). */
struct filter {
    void *instructions;
    unsigned short length; /* in instructions */
};

/* Of the rows that have one of the bits of `who`. */
int filter_build(unsigned who, struct filter *filter, struct error *err);
/* From now on for this thread and those that it starts. */
int filter_install(const struct filter *filter);

/* Tells of calls that are not done; `ending` as in struct isolation_grants. */
int report_begin(void (*ending)(void), struct error *err);
#ifdef LODGE_DEBUG
/* Of the calling thread: whether a refused call ends the process, or answers EPERM and is noted. */
enum { REPORT_ENDS, REPORT_COUNTS, REPORT_REFUSED };
extern _Thread_local volatile int report_refused_here;
#endif
/* On a thread that blocks all signals. */
void report_unblock(void);

#endif
