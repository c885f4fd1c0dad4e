/*
 * A plain integer loop with a known number of instructions: how many a second
 * the processor that runs it retires. Prints one number, instructions a second.
 * Takes about as long as its argument says, in tenths of a second.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { INSTRUCTIONS_PER_TURN = 6 };

static void turns(uint64_t n) {
    uint64_t a = 1, b = 2;
    __asm__ volatile("1:\n\t"
                     "add %1, %0\n\t"
                     "xor %0, %1\n\t"
                     "shr $1, %1\n\t"
                     "lea 3(%0,%1), %0\n\t"
                     "dec %2\n\t"
                     "jnz 1b"
                     : "+r"(a), "+r"(b), "+r"(n)
                     :
                     : "cc");
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    double wanted = (argc > 1 ? atof(argv[1]) : 10) / 10;
    uint64_t n = 1000000;
    for (;;) {
        double start = now();
        turns(n);
        double seconds = now() - start;
        if (seconds >= wanted) {
            printf("%.0f\n", (double)n * INSTRUCTIONS_PER_TURN / seconds);
            return 0;
        }
        n = seconds < wanted / 100 ? n * 10 : (uint64_t)((double)n * wanted / seconds * 1.1);
    }
}
