/*
 * Workloads that ask the kernel for things: system NAME COUNT [PROGRAM]. Each prints a result that
 * depends on all of its work.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

_Noreturn static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void collect(pid_t child, int expected) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child)
        fail("child");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != expected) {
        fprintf(stderr, "a child ended with %#x\n", (unsigned)status);
        exit(1);
    }
}

static unsigned long spawn(unsigned long n, char **program) {
    for (unsigned long i = 0; i < n; i++) {
        pid_t child = fork();
        if (child == 0) {
            execv(program[0], program);
            _exit(127);
        }
        collect(child, 0);
    }
    return n;
}

static unsigned long forks(unsigned long n, char **unused) {
    (void)unused;
    /* Pages of its own, as a program that forks has them. */
    char *memory = malloc(256 * PAGE);
    if (memory == NULL)
        fail("malloc");
    memset(memory, 1, 256 * PAGE);
    for (unsigned long i = 0; i < n; i++) {
        pid_t child = fork();
        if (child == 0) {
            memory[0] = 2;
            _exit(memory[PAGE] == 1 ? 7 : 8);
        }
        collect(child, 7);
    }
    free(memory);
    return n;
}

static unsigned long bytes(unsigned long n, char **unused) {
    (void)unused;
    int file = open("/tmp/bytes", O_RDWR | O_CREAT | O_TRUNC, 0600);
    unsigned long sum = 0;
    unlink("/tmp/bytes");
    for (unsigned long i = 0; i < n; i++) {
        unsigned char out = (unsigned char)i, in = 0;
        if (pwrite(file, &out, 1, (off_t)(i % PAGE)) != 1 ||
            pread(file, &in, 1, (off_t)(i % PAGE)) != 1)
            fail("bytes");
        sum += in;
    }
    close(file);
    return sum;
}

static unsigned long parents(unsigned long n, char **unused) {
    (void)unused;
    unsigned long same = 0;
    long first = syscall(SYS_getppid);
    for (unsigned long i = 0; i < n; i++)
        same += syscall(SYS_getppid) == first;
    return same;
}

static volatile unsigned long signalled;

static void on_signal(int number) {
    (void)number;
    signalled++;
}

static unsigned long signals(unsigned long n, char **unused) {
    (void)unused;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    pid_t self = getpid();
    for (unsigned long i = 0; i < n; i++)
        kill(self, SIGUSR1);
    return signalled;
}

static char *map(size_t size) {
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    /* Small pages everywhere, whatever the kernel's policy is. */
    madvise(memory, size, MADV_NOHUGEPAGE);
    return memory;
}

/* 256 MiB, a page at a time. */
static unsigned long touch(unsigned long n, char **unused) {
    (void)unused;
    const size_t size = (size_t)256 << 20;
    unsigned long sum = 0;
    for (unsigned long i = 0; i < n; i++) {
        char *memory = map(size);
        for (size_t at = 0; at < size; at += PAGE)
            memory[at] = 1;
        for (size_t at = 0; at < size; at += PAGE)
            sum += (unsigned long)memory[at];
        munmap(memory, size);
    }
    return sum;
}

static unsigned long mappings(unsigned long n, char **unused) {
    (void)unused;
    unsigned long sum = 0;
    for (unsigned long i = 0; i < n; i++) {
        char *memory = map(16 * PAGE);
        memory[0] = 1;
        memory[9 * PAGE] = 2;
        sum += (unsigned long)(memory[0] + memory[9 * PAGE] + memory[4 * PAGE]);
        munmap(memory, 16 * PAGE);
    }
    return sum;
}

/* A byte to the other process and one back. */
static unsigned long ping_pong(unsigned long n, char **unused) {
    (void)unused;
    int there[2], back[2];
    unsigned long sum = 0;
    if (pipe(there) < 0 || pipe(back) < 0)
        fail("pipe");
    pid_t child = fork();
    if (child == 0) {
        unsigned char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    close(there[0]);
    for (unsigned long i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)i;
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("ping-pong");
        sum += byte;
    }
    close(there[1]);
    collect(child, 0);
    return sum;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        unsigned long (*run)(unsigned long, char **);
    } all[] = {{"spawn", spawn},     {"fork", forks},  {"bytes", bytes},   {"getppid", parents},
               {"signals", signals}, {"touch", touch}, {"mmap", mappings}, {"pipe", ping_pong}};
    for (size_t i = 0; argc >= 3 && i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(argv[1], all[i].name) == 0 && (argc > 3) == (all[i].run == spawn)) {
            printf("%lu\n", all[i].run(strtoul(argv[2], NULL, 10), argv + 3));
            return 0;
        }
    }
    fprintf(stderr, "usage: system spawn|fork|bytes|getppid|signals|touch|mmap|pipe COUNT "
                    "[PROGRAM]\n");
    return 2;
}
