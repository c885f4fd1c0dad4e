/*
 * Workloads that only compute: compute NAME COUNT. Each prints a result that depends on all of its
 * work, so that a machine that computes wrongly is found out.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Six instructions and a branch ---- */

static void integer_loop(uint64_t n) {
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
    printf("%lu %lu\n", a, b);
}

/* ---- Calls and returns ---- */

/* The empty statements keep the compiler from turning a call into a loop. */
__attribute__((noinline)) static uint64_t fibonacci(uint64_t n) {
    if (n < 2)
        return n;
    uint64_t first = fibonacci(n - 1);
    __asm__ volatile("" : "+r"(first));
    uint64_t second = fibonacci(n - 2);
    __asm__ volatile("" : "+r"(second));
    return first + second;
}

static void calls(uint64_t n) {
    printf("%lu\n", fibonacci(n));
}

/* ---- Five bodies under gravity, double precision ---- */

enum { BODIES = 5 };

struct body {
    double x[3], v[3], mass;
};

static void advance(struct body *b, double dt) {
    for (int i = 0; i < BODIES; i++) {
        for (int j = i + 1; j < BODIES; j++) {
            double d[3], square = 0;
            for (int k = 0; k < 3; k++) {
                d[k] = b[i].x[k] - b[j].x[k];
                square += d[k] * d[k];
            }
            double scale = dt / (square * sqrt(square));
            for (int k = 0; k < 3; k++) {
                b[i].v[k] -= d[k] * b[j].mass * scale;
                b[j].v[k] += d[k] * b[i].mass * scale;
            }
        }
    }
    for (int i = 0; i < BODIES; i++) {
        for (int k = 0; k < 3; k++)
            b[i].x[k] += dt * b[i].v[k];
    }
}

static void bodies(uint64_t steps) {
    struct body b[BODIES];
    for (int i = 0; i < BODIES; i++) {
        b[i] = (struct body){.x = {i * 3.1, i * i * 0.7 - i, 0.3 * i},
                             .v = {0.02 * i, 0.5 / (i + 1), 0.01 * i},
                             .mass = i == 0 ? 39.5 : 0.01 / i};
    }
    while (steps-- > 0)
        advance(b, 0.001);
    for (int i = 0; i < BODIES; i++)
        printf("%.9g %.9g %.9g\n", b[i].x[0], b[i].x[1], b[i].x[2]);
}

/* ---- A product of matrices, rows of the left one at a time ---- */

enum { SIZE = 1024 };

static double left[SIZE][SIZE], right[SIZE][SIZE], product[SIZE][SIZE];

static void matrix(uint64_t rows) {
    double sum = 0;
    for (int i = 0; i < SIZE; i++) {
        for (int j = 0; j < SIZE; j++) {
            left[i][j] = (i * 7 + j * 3) % 11 - 5;
            right[i][j] = (i * 5 + j) % 13 * 0.25;
        }
    }
    for (int i = 0; i < SIZE && (uint64_t)i < rows; i++) {
        for (int k = 0; k < SIZE; k++) {
            double factor = left[i][k];
            for (int j = 0; j < SIZE; j++)
                product[i][j] += factor * right[k][j];
        }
    }
    for (int i = 0; i < SIZE; i++) {
        for (int j = 0; j < SIZE; j++)
            sum += product[i][j] * ((i + 3 * j) % 7);
    }
    printf("%.6f\n", sum);
}

/* ---- Each load says where the next one is ---- */

enum { LINE = 64, LINES = 1 << 20 };

static void chase(uint64_t steps) {
    char *memory = aligned_alloc(4096, (size_t)LINE * LINES);
    if (memory == NULL)
        exit(1);
    /* A full period, by the rules for linear congruential generators. */
    for (uint32_t i = 0; i < LINES; i++) {
        char *next = memory + (size_t)((i * 726529u + 350867u) % LINES) * LINE;
        memcpy(memory + (size_t)i * LINE, &next, sizeof next);
    }
    char *at = memory;
    while (steps-- > 0)
        at = *(char **)at;
    printf("%ld\n", at - memory);
    free(memory);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(uint64_t);
    } all[] = {{"loop", integer_loop},
               {"calls", calls},
               {"bodies", bodies},
               {"matrix", matrix},
               {"chase", chase}};
    for (size_t i = 0; argc == 3 && i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(argv[1], all[i].name) == 0) {
            all[i].run(strtoull(argv[2], NULL, 10));
            return 0;
        }
    }
    fprintf(stderr, "usage: compute loop|calls|bodies|matrix|chase COUNT\n");
    return 2;
}
