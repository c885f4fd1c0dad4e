/* What gdb single-steps in the guest: a loop whose every iteration can be followed. */
#include <stdio.h>

volatile int counter;

__attribute__((noinline)) static int step(int by) {
    counter += by;
    return counter;
}

int main(void) {
    int last = 0;
    for (int i = 1; i <= 10; i++)
        last = step(i);
    printf("sum %d\n", last);
    return last == 55 ? 0 : 1;
}
