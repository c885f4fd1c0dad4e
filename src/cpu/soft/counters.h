/*
 * What the soft engine counts, one line a counter: plain increments on the
 * vCPU's own thread, read from others as they happen to be (cpu/cpu.h,
 * vcpu_each_counter). A new counter is a line here and cpu->count.NAME++ where
 * it happens.
 */
#ifndef LODGE_CPU_SOFT_COUNTERS_H
#define LODGE_CPU_SOFT_COUNTERS_H

#include <stdint.h>

#include "cpu/soft/insn.h"

#define SOFT_COUNTERS(COUNTER)                                                                     \
    COUNTER(decoded, "blocks-decoded")    /* those whose instructions had no room come again */    \
    COUNTER(translations, "translations") /* blocks translated */                                  \
    COUNTER(flushes, "flushes")           /* of code memory, as a whole */                         \
    COUNTER(places_moved, "places-moved") /* pages of code that turned up at another address */    \
    COUNTER(leaves, "leaves")             /* out of translated code to the run loop */             \
    COUNTER(leaves_exit, "leaves.exit")   /* what comes next is not linked or not translated */    \
    COUNTER(leaves_plain, "leaves.plain") /* a check of several accesses failed */                 \
    COUNTER(leaves_request, "leaves.request") /* the run loop is to look */                        \
    COUNTER(leaves_state, "leaves.state")     /* an instruction changed what code rests on */      \
    COUNTER(callouts, "callouts")             /* instructions that C ran for translated code */    \
    COUNTER(tlb_fills, "tlb-fills")   /* entries of the TLB that translated code looks at */       \
    COUNTER(page_walks, "page-walks") /* of the guest's page tables */

/* Rows of the instruction tables, at most. */
enum { COUNT_ROWS_MAX = 4096 };

struct soft_counts {
#define COUNTER(field, name) uint64_t field;
    SOFT_COUNTERS(COUNTER)
#undef COUNTER
    uint64_t callouts_of[COUNT_ROWS_MAX]; /* by table row */
};

static inline void count_callout(struct soft_counts *count, const struct insn *insn) {
    count->callouts++;
    count->callouts_of[insn->row % COUNT_ROWS_MAX]++;
}

#endif
