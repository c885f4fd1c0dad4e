/*
 * Several processors: the others are started by INIT and SIPI and then wait
 * for work. Their numbers are their local APICs' ids, 0 is the one that runs
 * program(). They share page tables, GDT, IDT and handlers, and have a stack
 * each; try_call and user mode are for processor 0.
 */
#ifndef BAREMETAL_MP_H
#define BAREMETAL_MP_H

#define MP_PAGE  0x8000
#define MP_STACK 0x2000

#ifdef __ASSEMBLER__
#include "runtime.h"
#else

#include "apic.h"

enum { MP_MOST = 16 };

/* What a processor found when it began. */
struct mp_arrival {
    unsigned times;
    uint32_t cs, cr0, signature;
};
extern volatile struct mp_arrival mp_arrivals[MP_MOST];

/* Starts all others, whose number the harness knows, and waits for them. How many processors there
 * are, this one included. */
unsigned mp_start(void);
/* The same as a program's first test, skipped where there is one. */
void mp_several(void);
/* INIT and two SIPIs to one, whatever it does; waits until it has arrived again. */
void mp_restart(unsigned cpu);

/* Runs work(cpu) on one of the others, without waiting; waits until it has done. */
void mp_begin(unsigned cpu, void (*work)(unsigned cpu));
void mp_wait(unsigned cpu);
/* Runs it on all, this one too, and waits. */
void mp_all(void (*work)(unsigned cpu));

/* All processors meet here. */
void mp_meet(void);

unsigned mp_count(void);
unsigned mp_self(void);

static inline void relax(void) {
    asm volatile("pause" ::: "memory");
}

#endif
#endif
