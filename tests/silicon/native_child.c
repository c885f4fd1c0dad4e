/*
 * silicon-native: the child process in which cases run on the processor
 * itself. It lets the kernel do the state switching: a case ends in an
 * exception, whose signal frame holds all of the user state, including the
 * XSAVE image; the handler notes it, writes the next case's state into the
 * same frame and returns into the case. So one case costs one signal.
 * Compatibility mode needs no more than another CS in the frame.
 *
 * The handler's first instructions are hand-written: a case may leave any
 * flags (AC, NT) and any segment registers, FS among them, on which C depends.
 *
 * A program of its own, built without sanitizers: their shadow memory would
 * answer accesses that are to fault.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/bytes.h"
#include "silicon.h"

enum { CASE_TIMEOUT_MS = 100, SIGNAL_STACK = 1 << 18 };

static struct batch *batch;
static struct background background;
static bool running;        /* a case runs; else the INT3 that starts a batch */
static ucontext_t home;     /* where a finished batch returns to */
static uint8_t *code_alias; /* the code pages, to write to */
static const struct arena arena = {
    .data = (uint8_t *)DATA_BASE, .stack = (uint8_t *)STACK_BASE, .mixed = (uint8_t *)MIXED_BASE};

/* What the entry code saves and puts right. */
struct segments {
    uint64_t fs_base, gs_base;
    uint16_t ds, es, fs, gs;
};
struct segments native_segments __attribute__((visibility("hidden")));
uint64_t native_home_fs __attribute__((visibility("hidden")));
uint64_t native_next_fs __attribute__((visibility("hidden")));

void native_entry(int number, siginfo_t *info, void *context);
void native_handler(int number, siginfo_t *info, void *context);

__asm__(".text\n"
        ".globl native_entry\n"
        ".hidden native_entry\n"
        ".type native_entry, @function\n"
        "native_entry:\n"
        "    pushq $0x202\n"
        "    popfq\n"
        "    movw %ds, native_segments+16(%rip)\n"
        "    movw %es, native_segments+18(%rip)\n"
        "    movw %fs, native_segments+20(%rip)\n"
        "    movw %gs, native_segments+22(%rip)\n"
        "    rdfsbase %rax\n"
        "    movq %rax, native_segments(%rip)\n"
        "    rdgsbase %rax\n"
        "    movq %rax, native_segments+8(%rip)\n"
        "    movl $0x2b, %eax\n"
        "    movl %eax, %ds\n"
        "    movl %eax, %es\n"
        "    xorl %eax, %eax\n"
        "    movl %eax, %fs\n"
        "    movl %eax, %gs\n"
        "    movq native_home_fs(%rip), %rax\n"
        "    wrfsbase %rax\n"
        "    movl $0x4ffff000, %eax\n" /* GS_BASE */
        "    wrgsbase %rax\n"
        "    subq $8, %rsp\n"
        "    call native_handler\n"
        "    addq $8, %rsp\n"
        "    movq native_next_fs(%rip), %rax\n" /* C is over */
        "    wrfsbase %rax\n"
        "    ret\n"
        ".size native_entry, . - native_entry\n");
_Static_assert(GS_BASE == 0x4ffff000, "as the entry code has it");

/* The signal frame's XSAVE image (SDM vol. 1, 13.4; the kernel uses the standard format). */
enum {
    XSAVE_FCW = 0,
    XSAVE_FSW = 2,
    XSAVE_FTW = 4,
    XSAVE_FOP = 6,
    XSAVE_FIP = 8,
    XSAVE_FDP = 16,
    XSAVE_MXCSR = 24,
    XSAVE_ST = 32,
    XSAVE_XMM = 160,
    XSAVE_BV = 512,
    XSAVE_YMM = 576,
    FEATURE_X87 = 1,
    FEATURE_SSE = 2,
    FEATURE_AVX = 4,
};

static void load_fp(uint8_t *image, const struct fp_state *fp) {
    unsigned top = fp->fsw >> 11 & 7;
    store_le16(image + XSAVE_FCW, fp->fcw);
    store_le16(image + XSAVE_FSW, fp->fsw);
    image[XSAVE_FTW] = fp->ftw;
    store_le16(image + XSAVE_FOP, fp->fop);
    store_le64(image + XSAVE_FIP, fp->fip);
    store_le64(image + XSAVE_FDP, fp->fdp);
    store_le32(image + XSAVE_MXCSR, fp->mxcsr);
    for (unsigned i = 0; i < 8; i++)
        memcpy(image + XSAVE_ST + 16 * i, &fp->x87[(top + i) & 7], 10);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(image + XSAVE_XMM + 16 * i, fp->ymm[i], 16);
        memcpy(image + XSAVE_YMM + 16 * i, fp->ymm[i] + 16, 16);
    }
    store_le64(image + XSAVE_BV, FEATURE_X87 | FEATURE_SSE | FEATURE_AVX);
}

/* A component whose bit is clear is in its initial state and was not written. */
static void save_fp(const uint8_t *image, struct fp_state *fp) {
    uint64_t present = load_le64(image + XSAVE_BV);
    memset(fp, 0, sizeof *fp);
    fp->mxcsr = load_le32(image + XSAVE_MXCSR);
    fp->fcw = 0x37f;
    if (present & FEATURE_X87) {
        fp->fcw = load_le16(image + XSAVE_FCW);
        fp->fsw = load_le16(image + XSAVE_FSW);
        fp->ftw = image[XSAVE_FTW];
        fp->fop = load_le16(image + XSAVE_FOP);
        fp->fip = load_le64(image + XSAVE_FIP);
        fp->fdp = load_le64(image + XSAVE_FDP);
        unsigned top = fp->fsw >> 11 & 7;
        for (unsigned i = 0; i < 8; i++)
            memcpy(&fp->x87[(top + i) & 7], image + XSAVE_ST + 16 * i, 10);
    }
    for (unsigned i = 0; i < 16; i++) {
        if (present & FEATURE_SSE)
            memcpy(fp->ymm[i], image + XSAVE_XMM + 16 * i, 16);
        if (present & FEATURE_AVX)
            memcpy(fp->ymm[i] + 16, image + XSAVE_YMM + 16 * i, 16);
    }
}

static const int gpr_slot[16] = {
    [RAX] = REG_RAX, [RCX] = REG_RCX, [RDX] = REG_RDX, [RBX] = REG_RBX,
    [RSP] = REG_RSP, [RBP] = REG_RBP, [RSI] = REG_RSI, [RDI] = REG_RDI,
    [R8] = REG_R8,   [R9] = REG_R9,   [R10] = REG_R10, [R11] = REG_R11,
    [R12] = REG_R12, [R13] = REG_R13, [R14] = REG_R14, [R15] = REG_R15,
};

static uint8_t *code_at(const struct test_case *test) {
    uint32_t offset = background_code(test->start);
    return offset < ARENA_SIZE ? background_at(&arena, offset)
                               : code_alias + (test->start - CODE_BASE);
}

static void start_case(const struct test_case *test, ucontext_t *uc) {
    greg_t *regs = uc->uc_mcontext.gregs;
    uint64_t selectors = test->mode32 ? SEL_CS32 : SEL_CS64;
    memcpy(code_at(test), test->code, test->code_length);
    for (unsigned i = 0; i < test->patch_count; i++)
        memcpy(background_at(&arena, test->patch[i].offset), test->patch[i].bytes, PATCH_SIZE);
    for (unsigned i = 0; i < 16; i++)
        regs[gpr_slot[i]] = (greg_t)test->state.gpr[i];
    regs[REG_RIP] = (greg_t)test->start;
    regs[REG_EFL] = (greg_t)test->state.rflags;
    regs[REG_CSGSFS] = (greg_t)(selectors | (uint64_t)SEL_DS << 48);
    load_fp((uint8_t *)uc->uc_mcontext.fpregs, &test->state.fp);
    native_next_fs = FS_BASE;
}

static void finish_case(const struct test_case *test, struct outcome *outcome, int number,
                        const ucontext_t *uc) {
    const greg_t *regs = uc->uc_mcontext.gregs;
    struct user_state *state = &outcome->state;
    bool timeout = number == SIGVTALRM || number == SIGSYS;
    outcome->vector = timeout ? VECTOR_TIMEOUT : (uint8_t)regs[REG_TRAPNO];
    outcome->error = timeout ? 0 : (uint32_t)regs[REG_ERR];
    outcome->cr2 = outcome->vector == EXC_PF ? (uint64_t)regs[REG_CR2] : 0;
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = (uint64_t)regs[gpr_slot[i]];
    state->rip = (uint64_t)regs[REG_RIP];
    state->rflags = (uint64_t)regs[REG_EFL];
    state->cs = (uint16_t)regs[REG_CSGSFS];
    state->ss = (uint16_t)(regs[REG_CSGSFS] >> 48);
    state->ds = native_segments.ds;
    state->es = native_segments.es;
    state->fs = native_segments.fs;
    state->gs = native_segments.gs;
    state->fs_base = native_segments.fs_base;
    state->gs_base = native_segments.gs_base;
    save_fp((const uint8_t *)uc->uc_mcontext.fpregs, &state->fp);
    if (background_code(test->start) == ARENA_SIZE)
        memset(code_at(test), 0xcc, test->code_length);
    background_collect(&background, &arena, outcome);
}

/* The C code that follows a batch wants plain floating-point state. */
static void go_home(ucontext_t *uc) {
    static const struct fp_state plain = {.fcw = 0x37f, .mxcsr = 0x1f80};
    memcpy(uc->uc_mcontext.gregs, home.uc_mcontext.gregs, sizeof home.uc_mcontext.gregs);
    load_fp((uint8_t *)uc->uc_mcontext.fpregs, &plain);
    native_next_fs = native_home_fs;
    running = false;
}

void native_handler(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)info;
    if (!running) {
        memcpy(home.uc_mcontext.gregs, uc->uc_mcontext.gregs, sizeof home.uc_mcontext.gregs);
        native_next_fs = native_home_fs;
        if (number == SIGVTALRM)
            return;
        running = true;
    } else {
        finish_case(&batch->test[batch->current], &batch->native[batch->current], number, uc);
        batch->current++;
    }
    if (batch->current < batch->count)
        start_case(&batch->test[batch->current], uc);
    else
        go_home(uc);
}

static uint8_t *map_at(uintptr_t address, size_t size, int protection, int fd, off_t offset) {
    void *at =
        mmap((void *)address, size, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, offset);
    if (at != (void *)address) {
        fprintf(stderr, "silicon: cannot map %#zx: %s\n", (size_t)address, strerror(errno));
        _exit(1);
    }
    return at;
}

static int memory_of(const char *name, size_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        _exit(1);
    return fd;
}

static void child_map(void) {
    enum { READ_WRITE = PROT_READ | PROT_WRITE, READ_EXECUTE = PROT_READ | PROT_EXEC };
    int code = memory_of("code", CODE_SIZE), writable = memory_of("arena", ARENA_SIZE);
    int constant = memory_of("constant", CONST_SIZE);
    map_at(CODE_BASE, CODE_SIZE, READ_EXECUTE, code, 0);
    code_alias = mmap(NULL, CODE_SIZE, READ_WRITE, MAP_SHARED, code, 0);
    if (code_alias == MAP_FAILED)
        _exit(1);
    memset(code_alias, 0xcc, CODE_SIZE);
    map_at(DATA_BASE, DATA_SIZE, READ_WRITE, writable, 0);
    map_at(STACK_BASE, STACK_SIZE, READ_WRITE, writable, DATA_SIZE);
    map_at(MIXED_BASE, MIXED_SIZE, READ_WRITE | PROT_EXEC, writable, ARENA_MIXED);
    map_at(MIXED_CODE, MIXED_SIZE, READ_EXECUTE, writable, ARENA_MIXED);
    memcpy(map_at(ALIAS_BASE, ARENA_SIZE, READ_WRITE, writable, 0), background.arena, ARENA_SIZE);
    memcpy(map_at(CONST_BASE, CONST_SIZE, READ_WRITE, constant, 0), background.constant,
           CONST_SIZE);
    mprotect((void *)CONST_BASE, CONST_SIZE, PROT_READ);
}

/*
 * Programs that changed or lost their way may come upon SYSCALL: from the pages of cases it raises
 * SIGSYS instead.
 */
static void child_filter(void) {
    enum { IP = offsetof(struct seccomp_data, instruction_pointer) };
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, IP + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, IP),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, STACK_BASE + STACK_SIZE + PAGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {.len = ARRAY_SIZE(code), .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(1);
}

static void child_signals(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGVTALRM, SIGSYS};
    stack_t stack = {.ss_size = SIGNAL_STACK};
    stack.ss_sp =
        mmap(NULL, SIGNAL_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction action = {.sa_sigaction = native_entry,
                                   .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigfillset(&action.sa_mask);
        sigaction(signals[i], &action, NULL);
    }
}

/* Ends endless loops: processor time, so that a busy host changes nothing. */
static void child_alarm(bool on) {
    struct itimerval timer = {.it_interval = {.tv_usec = on ? CASE_TIMEOUT_MS * 1000 : 0},
                              .it_value = {.tv_usec = on ? CASE_TIMEOUT_MS * 1000 : 0}};
    setitimer(ITIMER_VIRTUAL, &timer, NULL);
}

static void child_pin(unsigned processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static bool child_setup(int memory, unsigned processor) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    child_pin(processor);
    batch = mmap(NULL, sizeof *batch, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (batch == MAP_FAILED)
        return false;
    background_fill(&background);
    child_map();
    child_signals();
    child_filter();
    __asm__ volatile("rdfsbase %0" : "=r"(native_home_fs));
    /* Compatibility mode needs DS and ES; 64-bit mode does not mind them. */
    __asm__ volatile("movl %0, %%ds\n movl %0, %%es" : : "r"(SEL_DS));
    __asm__ volatile("wrgsbase %0" : : "r"(GS_BASE));
    return true;
}

/* Arguments: descriptors of the batch's memory, of commands, of answers; a processor's number. */
int main(int argc, char **argv) {
    char byte = 0;
    if (argc != 5 || !child_setup(atoi(argv[1]), (unsigned)atoi(argv[4])))
        return 1;
    int commands = atoi(argv[2]), answers = atoi(argv[3]);
    while (write(answers, &byte, 1) == 1 && read(commands, &byte, 1) == 1) {
        child_alarm(true);
        __asm__ volatile("int3" : : : "memory");
        child_alarm(false);
    }
    return 0;
}
