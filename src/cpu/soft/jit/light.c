/* The vector registers between a light call and the rest of lodge: see outside.h. */
#include "cpu/soft/outside.h"

_Static_assert(sizeof(union x86_vector) == 64, "the registers' distance below");

#define EACH_REGISTER(X)                                                                           \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define STORE(n) "vmovdqu %%ymm" #n ", 64*" #n "(%0)\n\t"
#define LOAD(n)  "vmovdqu 64*" #n "(%0), %%ymm" #n "\n\t"

void jit_spill_now(struct soft_cpu *cpu) {
    cpu->jit.light = false;
    __asm__ volatile(EACH_REGISTER(STORE) "vzeroupper\n\tstmxcsr %1\n\tldmxcsr %2" ::"r"(cpu->vec),
                     "m"(cpu->mxcsr), "m"(cpu->jit.host_mxcsr)
                     : "memory");
}

void light_reload(struct soft_cpu *cpu) {
    __asm__ volatile("ldmxcsr %1\n\t" EACH_REGISTER(LOAD)::"r"(cpu->vec), "m"(cpu->mxcsr)
                     : "memory");
}
