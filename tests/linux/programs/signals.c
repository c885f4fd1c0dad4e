/*
 * Signals as programs see them: handlers for faults with the right address
 * and code, an alternate stack, restart of system calls, ptrace single-steps.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile int got, code;
static void *volatile address;

static void handler(int number, siginfo_t *info, void *context) {
    (void)context;
    got = number;
    code = info->si_code;
    address = info->si_addr;
    siglongjmp(back, 1);
}

static void expect(int ok, const char *what) {
    if (!ok) {
        printf("failed: %s (signal %d code %d address %p)\n", what, got, code, address);
        exit(1);
    }
}

#define FAULT(statement)                                                                           \
    do {                                                                                           \
        got = 0;                                                                                   \
        if (sigsetjmp(back, 1) == 0) {                                                             \
            statement;                                                                             \
        }                                                                                          \
    } while (0)

static void faults(void) {
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(page + 4096, 4096, PROT_READ);
    FAULT(*(volatile char *)(page + 4100) = 1);
    expect(got == SIGSEGV && code == SEGV_ACCERR && address == page + 4100, "write to read-only");
    FAULT(*(volatile char *)16 = 1);
    expect(got == SIGSEGV && code == SEGV_MAPERR && address == (void *)16, "write to nothing");
    FAULT(*(volatile uint64_t *)(page + 4092) = 1);
    expect(got == SIGSEGV && address == page + 4096, "straddling write");
    FAULT(__asm__ volatile("ud2"));
    expect(got == SIGILL, "ud2");
    FAULT(__asm__ volatile("xor %%edx,%%edx; xor %%ecx,%%ecx; div %%ecx" ::: "eax", "ecx", "edx"));
    expect(got == SIGFPE && code == FPE_INTDIV, "division by zero");
    FAULT(__asm__ volatile("hlt"));
    expect(got == SIGSEGV, "hlt in user mode");
    FAULT(((void (*)(void))(page))());
    expect(got == SIGSEGV && address == page, "execution of data");
    FAULT(__asm__ volatile("int3"));
    expect(got == SIGTRAP, "int3");
}

static void single_steps(void) {
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        volatile int x = 0;
        for (int i = 0; i < 100; i++)
            x += i;
        _exit(x == 4950 ? 9 : 1);
    }
    int status, steps = 0;
    waitpid(child, &status, 0);
    for (;;) {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status))
            break;
        expect(WSTOPSIG(status) == SIGTRAP, "each step traps");
        steps++;
    }
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 9 && steps > 300, "stepped to the end");
}

int main(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (unsigned i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        sigaction(numbers[i], &action, NULL);
    faults();
    single_steps();
    puts("signals ok");
    return 0;
}
