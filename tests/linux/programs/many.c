/*
 * A hundred thousand functions of two instructions, each called often enough to be translated,
 * and changed ten times: a million small blocks, more than there is room for.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { FUNCTIONS = 100000, SIZE = 16, CALLS = 40, ROUNDS = 10 };

int main(void) {
    uint8_t *code = mmap(NULL, FUNCTIONS * SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        return 1;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < FUNCTIONS; i++) {
            uint32_t value = i * 7919 + round;
            uint8_t *at = code + i * SIZE;
            at[0] = 0xb8; /* mov $value, %eax; ret */
            memcpy(at + 1, &value, 4);
            at[5] = 0xc3;
        }
        for (uint32_t i = 0; i < FUNCTIONS; i++) {
            uint32_t (*function)(void) = (uint32_t(*)(void))(uintptr_t)(code + i * SIZE);
            for (unsigned n = 0; n < CALLS; n++)
                if (function() != i * 7919 + round)
                    return 2;
        }
        printf("round %u ok\n", round + 1);
    }
    return 0;
}
