/* What the paths into the kernel cost a program: as init of a guest, or natively. See measure.h. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "measure.h"

enum { PAGE = 4096 };

static void say(const char *kind, const char *name, uint64_t cycles, uint64_t operations) {
    printf("%s %s %lu %lu\n", kind, name, cycles, operations);
}

_Noreturn static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* ---- Through the kernel ---- */

static void system_call(uint64_t n) {
    while (n-- > 0)
        syscall(SYS_getppid);
}

static char *map(size_t size) {
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    madvise(memory, size, MADV_NOHUGEPAGE);
    return memory;
}

/* Fresh pages; their mapping and unmapping is spread over 4096 of them. */
static void page_fault(uint64_t n) {
    enum { PAGES = 4096 };
    for (uint64_t done = 0; done < n; done += PAGES) {
        char *memory = map((size_t)PAGES * PAGE);
        for (size_t i = 0; i < PAGES && done + i < n; i++)
            memory[i * PAGE] = 1;
        munmap(memory, (size_t)PAGES * PAGE);
    }
}

/* A page's rights change, and it is written to: one TLB entry dies. */
static void protect(uint64_t n) {
    static char *memory;
    if (memory == NULL)
        memory = map(PAGE);
    while (n-- > 0) {
        mprotect(memory, PAGE, PROT_READ);
        mprotect(memory, PAGE, PROT_READ | PROT_WRITE);
        *(volatile char *)memory = 1;
    }
}

/* Half of a round trip through two pipes: a write, a switch to the other process, a read. */
static void context_switch(uint64_t n) {
    static int there[2], back[2];
    static pid_t other;
    char byte = 0;
    if (other == 0) {
        if (pipe(there) < 0 || pipe(back) < 0 || (other = fork()) < 0)
            fail("pipe");
        if (other == 0) {
            close(there[1]);
            while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
                ;
            _exit(0);
        }
    }
    for (uint64_t i = 0; i < n; i += 2) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
    }
}

static void on_signal(int number) {
    (void)number;
}

static void signal_self(uint64_t n) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    pid_t self = getpid();
    while (n-- > 0)
        kill(self, SIGUSR1);
}

/* Sleeps for the shortest time: an idle processor, a timer, an interrupt, a wake-up. */
static void nap(uint64_t n) {
    const struct timespec shortest = {.tv_nsec = 20000};
    while (n-- > 0)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &shortest, NULL);
}

static void read_clock(uint64_t n) {
    struct timespec t;
    while (n-- > 0)
        clock_gettime(CLOCK_MONOTONIC, &t);
}

/* ---- Instructions that kernels and runtimes live on ---- */

static char from[PAGE] __attribute__((aligned(PAGE))), to[PAGE] __attribute__((aligned(PAGE)));

static void copy_bytes(uint64_t n, size_t size) {
    while (n-- > 0) {
        void *target = to, *source = from;
        size_t count = size;
        __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(count)::"memory");
    }
}

static void copy_short(uint64_t n) {
    copy_bytes(n, 64);
}

static void copy_page(uint64_t n) {
    copy_bytes(n, PAGE);
}

static void fill_page(uint64_t n) {
    while (n-- > 0) {
        void *target = to;
        size_t count = PAGE / 8;
        __asm__ volatile("rep stosq" : "+D"(target), "+c"(count) : "a"(0) : "memory");
    }
}

static uint64_t word;

static void locked_add(uint64_t n) {
    while (n-- > 0)
        __asm__ volatile("lock addq $1, %0" : "+m"(word)::"cc");
}

static void compare_exchange(uint64_t n) {
    while (n-- > 0) {
        uint64_t old = word;
        __asm__ volatile("lock cmpxchgq %2, %0" : "+m"(word), "+a"(old) : "r"(n) : "cc");
    }
}

static void read_time(uint64_t n) {
    while (n-- > 0)
        __asm__ volatile("rdtsc" ::: "rax", "rdx");
}

static const struct cost costs[] = {
    {"getppid", system_call},    {"page-fault", page_fault},   {"mprotect", protect},
    {"switch", context_switch},  {"signal", signal_self},      {"nap", nap},
    {"clock", read_clock},       {"rep-movsb-64", copy_short}, {"rep-movsb-4k", copy_page},
    {"rep-stosq-4k", fill_page}, {"lock-add", locked_add},     {"lock-cmpxchg", compare_exchange},
    {"rdtsc", read_time},
};

static void set_up_guest(void) {
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_WRONLY);
    if (console < 0 || dup2(console, STDOUT_FILENO) < 0 || dup2(console, STDERR_FILENO) < 0)
        _exit(1);
}

int main(void) {
    int init = getpid() == 1;
    if (init)
        set_up_guest();
    setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_TIMERSLACK, 1);
    memset(from, 1, sizeof from);
    printf("ready\n");
    for (size_t i = 0; i < sizeof costs / sizeof costs[0]; i++)
        measure(&costs[i]);
    /* The processor has nothing to do: the reader sees what that costs. */
    printf("idle\n");
    sleep(2);
    printf("done\n");
    if (init) {
        sleep(1);
        reboot(RB_AUTOBOOT);
    }
    return 0;
}
