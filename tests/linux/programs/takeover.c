/* Writes numbers to the port of src/device/takeover.h. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>

int main(int argc, char **argv) {
    if (iopl(3) != 0) {
        perror("iopl");
        return 1;
    }
    for (int i = 1; i < argc; i++)
        outb((unsigned char)atoi(argv[i]), 0x4e0);
    puts("still here");
    return 0;
}
