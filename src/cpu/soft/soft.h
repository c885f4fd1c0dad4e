/*
 * The soft engine's processor: one struct holds all of a vCPU's state, and
 * this header says which file of the room provides what.
 *
 *   decode.c, table_*.c   bytes to struct insn (insn.h)
 *   block.c, block_*.c    decoded blocks, found by physical address; code watch
 *   run.c                 the run loop: blocks, exceptions, interrupts, HLT
 *   flags.h               lazy status flags
 *   access.h, access.c    guest-virtual memory: the fast path, what it leaves, segment checks
 *   mmu.c, walk.c         software TLB, flushes, listeners; page walks
 *   others.h, others.c    what vCPUs of one VM are to each other
 *   segment.c, far.c      descriptors and segment registers; far transfers, IRET
 *   event.c, syscall.c    exception and interrupt delivery; SYSCALL and its like
 *   system.c, msr.c, cpuid.c   control registers, MSRs, CPUID
 *   debug.c               debug registers
 *   counters.h, profile.c what is counted; sampling for the profiler
 *   int_*.c               integer instructions
 *   x87.c, vec_*.c, xsave.c    floating point and vectors
 *   verify.c              lock-step of interpreter and translator
 *   engine.c              cpu/engine.h for all of it
 *
 * Everything here runs on the vCPU's own thread except `request` and what
 * says otherwise.
 */
#ifndef LODGE_CPU_SOFT_SOFT_H
#define LODGE_CPU_SOFT_SOFT_H

#include <setjmp.h>
#include <stdatomic.h>

#include "base/clock_line.h"
#include "base/lock.h"
#include "cpu/engine.h"
#include "cpu/soft/counters.h"
#include "cpu/soft/insn.h"
#include "cpu/soft/jit/state.h"
#include "cpu/x86.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* ---- Software TLB ---- */

enum { TLB_BITS = 12, TLB_ENTRIES = 1 << TLB_BITS };
enum tlb_kind { TLB_READ, TLB_WRITE, TLB_FETCH, TLB_KINDS };

/*
 * Level 1 of the software TLB, for the present address space. An entry holds
 * for the linear page that equals tag; host is that page in this process.
 * Pages that need more than a plain access (I/O, code watch for writes,
 * breakpoints) are never entered. An empty entry's tag differs in the bits
 * that choose the slot from all addresses that come to it, canonical or not:
 * (address ^ tag) is an offset into the page exactly when the entry holds.
 */
struct tlb_entry {
    uint64_t tag;
    uintptr_t host;
};

static inline unsigned tlb_slot(uint64_t linear) {
    return (linear >> PAGE_SHIFT) & (TLB_ENTRIES - 1);
}

static inline uint64_t tlb_empty(unsigned slot) {
    return (uint64_t)(slot ^ 1) << PAGE_SHIFT | (PAGE_SIZE - 1);
}

/*
 * Access rights contexts: a TLB each, so that a change of privilege needs no
 * flush. EXPLICIT accesses of the supervisor with SMAP in force and AC clear
 * use SUPERVISOR_SMAP.
 */
enum tlb_index { TLB_USER, TLB_SUPERVISOR, TLB_SUPERVISOR_SMAP, TLB_INDEXES };

/* ---- Segments, as accesses see them ---- */

/*
 * last: the last offset that an access may touch without a further check,
 * never below 63; 64-bit mode: UINT64_MAX. Where every access needs the slow
 * check (null, expand-down, tiny or wrapping segments, not readable or not
 * writable; alignment checking in force), base is SEGMENT_SLOW, which no TLB
 * entry matches. Effective bases: 0 for ES, CS, SS, DS in 64-bit mode. Code
 * fetches do not look here: cpu->code_base.
 */
#define SEGMENT_SLOW (UINT64_C(1) << 62)
struct soft_segment {
    struct {
        uint64_t base, last;
    } read, write;
};

/* ---- Lazy flags (flags.h) ---- */

struct soft_flags {
    uint64_t result;  /* sign-extended result: ZF, SF, PF */
    uint64_t carries; /* carry-out vector, see flags.h: CF, OF, AF */
};

/* cpu->request: why the run loop must look up. Set by any thread with atomic_fetch_or. */
enum {
    REQUEST_KICK = 1,      /* leave vcpu_run */
    REQUEST_INTERRUPT = 2, /* the local APIC has something, or IF/shadow changed */
    REQUEST_FLUSH = 4,     /* drop cached translations and blocks as asked by the listener */
    REQUEST_STOP = 8,      /* vcpu_run must return cpu->exit */
    REQUEST_REST = 64,     /* wait between two instructions: vcpu_rest */
    REQUEST_VERIFY = 32,   /* translated code leaves where it looks (verify.h); C goes on */
};

/* Leaves of CPUID that hold feature bits. */
enum cpuid_group {
    CPUID_1,
    CPUID_7,
    CPUID_D1,
    CPUID_EXT_1,
    CPUID_EXT_8,
    CPUID_EXT_21,
    CPUID_GROUPS
};

/* Of physical addresses; fewer when the machine wants it (engine_config.address_bits). */
enum { ADDRESS_BITS_MOST = 48 };

struct block;
struct block_cache;

struct soft_cpu {
    struct vcpu vcpu; /* first */
    bool several;     /* the VM has other vCPUs, or may get some */
    bool unsettled;   /* others.h: serialising instructions have something to do */
    uint32_t pauses;  /* PAUSE instructions so far */

    /* -- hot: touched by nearly every instruction -- */
    uint64_t gpr[32]; /* 0 to 15; [REG_ZERO] stays 0; 17 to 31 scratch for the engine */
    uint64_t rip;     /* of the running block's first byte; exact only between blocks */
    const struct insn
        *insn; /* the instruction that runs now (set before anything that can raise) */
    struct soft_flags flags;
    uint64_t rflags; /* without the status bits, FLAGS_FIXED set */
    struct soft_segment seg[SEG_COUNT];
    uint64_t code_base;   /* linear address of a fetch = code_base + RIP (32 bits outside 64-bit
                           * mode); CS's limit is checked apart */
    uint64_t stack_mask;  /* RSP bits that the stack uses: 16, 32 or 64 of them */
    uint64_t tlb_context; /* 12 bits that name the address space in level 2 (mmu.h) */
    struct tlb_entry (*tlb)[TLB_ENTRIES]; /* the current index's three tables: tlb[kind][entry] */
    atomic_uint request;
    int32_t budget; /* instructions until the run loop looks at the clock */
    uint8_t cpl;
    uint8_t mode;   /* enum insn_mode of the code segment */
    bool long_mode; /* EFER.LMA */
    bool interrupt_shadow;
    struct block *block; /* that runs now */
    jmp_buf unwind;      /* where raise() goes */

    /* -- architectural -- */
    struct x86_segment segment[SEG_COUNT];
    struct x86_segment ldtr, tr;
    struct x86_table gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, xcr0, xss;
    uint64_t dr[8];
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    uint64_t tsc_offset, kvm_wall_clock, kvm_system_time;
    bool halted, nmi_blocked, nmi_pending, waiting_for_sipi;

    struct x86_x87 x87[8];
    uint16_t fcw, fsw;
    uint8_t ftw; /* as x86_state.ftw */
    uint16_t fop, fcs, fds;
    uint64_t fip, fdp;
    uint32_t mxcsr;
    uint32_t fp_raised; /* exception flags of the running instruction, not yet in mxcsr (vec.c) */
    union x86_vector vec[32] __attribute__((aligned(64)));

    /* -- the event being raised (event.c) -- */
    struct {
        bool pending; /* to deliver before the next instruction */
        uint8_t vector;
        bool has_error;
        uint8_t kind; /* enum event_kind */
        uint32_t error;
    } event;

    uint64_t debug_hits; /* DR6 bits of data breakpoints that this instruction met (debug.h) */

    /* -- a read-modify-write that could not use the page directly (access.h) -- */
    struct {
        uint64_t linear;
        unsigned size; /* 0: none open */
        uint8_t bytes[16];
    } bounce;

    /* -- the rest of the engine -- */
    const struct clock_line *clock_line; /* the TSC without tsc_offset, or NULL: only C can tell */
    struct lapic *lapic;
    struct view *view;
    struct memory *memory;
    struct block_cache *blocks;
    uint64_t features[(FEAT_COUNT + 63) / 64];
    uint32_t cpuid_features[CPUID_GROUPS][4]; /* EAX, EBX, ECX, EDX */
    uint8_t address_bits;                     /* of physical addresses, CPUID 80000008h */
    uint64_t pte_beyond;                      /* bits of an entry's address that go past them */
    uint32_t tsc_khz;
    struct vcpu_exit exit;
    struct vcpu_counters counters;
    struct lock wake_lock; /* LOCK_VCPU */
    pthread_cond_t wake;
    uint32_t heat_limit; /* runs of a block before it is translated; UINT32_MAX: never */
    struct jit_state jit;
    struct tlb_entry tlbs[TLB_INDEXES][TLB_KINDS][TLB_ENTRIES] __attribute__((aligned(64)));
    void *mmu;                    /* mmu.c's own: PCID contexts, listener queue */
    void *run;                    /* run.c's own: breakpoints, single-step */
    struct soft_profile *profile; /* profile.h; NULL: never profiled */
    struct soft_counts count;
    struct verify *verify; /* lock-step of interpreter and translator (verify.h), or NULL */
    bool verifying;        /* one of the two runs now: nothing may happen that happens once */
};

static inline struct soft_cpu *soft_cpu_of(struct vcpu *vcpu) {
    return (struct soft_cpu *)vcpu;
}

/* What C in the middle of guest code looks at: whether it must come to an end soon. */
static inline bool soft_requested(const struct soft_cpu *cpu) {
    return (atomic_load_explicit(&cpu->request, memory_order_relaxed) &
            ~(unsigned)REQUEST_VERIFY) != 0;
}

/* ---- Handlers' ends ---- */

/* Both need the handler's parameters to be named cpu and insn. Handlers are tail calls where the
 * compiler makes them so; a block is short enough that plain calls do no harm. */
#define INSN_NEXT return (insn + 1)->exec(cpu, insn + 1)

/* The same behind a serialising instruction. */
#define INSN_NEXT_SERIALISED                                                                       \
    do {                                                                                           \
        soft_serialise(cpu);                                                                       \
        if (unlikely(soft_requested(cpu)))                                                         \
            INSN_END_BLOCK;                                                                        \
        INSN_NEXT;                                                                                 \
    } while (0)

/* Control goes on at `target` (an offset in CS; wrapped to the mode's width by the caller). */
#define INSN_JUMP(target)                                                                          \
    do {                                                                                           \
        cpu->rip = (target);                                                                       \
        return;                                                                                    \
    } while (0)
/* The block ends; control goes on with the next instruction in sequence. */
#define INSN_END_BLOCK INSN_JUMP(insn_next_rip(cpu, insn))

/* The offset in CS of this instruction, and of the one after it. */
uint64_t insn_rip(const struct soft_cpu *cpu, const struct insn *insn);
uint64_t insn_next_rip(const struct soft_cpu *cpu, const struct insn *insn);

/* ---- Raising (run.c). None of these returns. cpu->insn must be the present instruction. ---- */

_Noreturn void raise_exception(struct soft_cpu *cpu, enum exception vector);
_Noreturn void raise_error(struct soft_cpu *cpu, enum exception vector, uint32_t error);
_Noreturn void raise_page_fault(struct soft_cpu *cpu, uint64_t linear,
                                uint32_t error); /* sets CR2 */
/* Leaves vcpu_run with cpu->exit; the instruction has not run. */
_Noreturn void raise_exit(struct soft_cpu *cpu);

/* ---- Events (event.c) ---- */

/* After IF was set, the shadow ended or the task priority fell: makes the run loop look if the
 * local APIC has something. */
static inline void soft_check_interrupts(struct soft_cpu *cpu) {
    if (cpu->lapic != NULL && lapic_attention(cpu->lapic))
        atomic_fetch_or_explicit(&cpu->request, REQUEST_INTERRUPT, memory_order_relaxed);
}

enum event_kind {
    EVENT_FAULT,     /* RIP of the instruction that faulted; sets RF in the pushed image */
    EVENT_TRAP,      /* after the instruction: #DB single-step, data breakpoints */
    EVENT_SOFTWARE,  /* INT n, INT3, INTO: gate DPL is checked; RIP after the instruction */
    EVENT_INTERRUPT, /* external */
    EVENT_NMI,
};

/*
 * Delivers an event through the IDT with cpu->rip exact. A fault while
 * delivering becomes #DF or shutdown by the rules of APM vol. 2, 8.2.9; on
 * shutdown cpu->exit is set, REQUEST_STOP raised, and false returned.
 */
bool event_deliver(struct soft_cpu *cpu, uint8_t vector, enum event_kind kind, bool has_error,
                   uint32_t error);

/*
 * INT n, INT3, INTO, from their handlers: delivers with RIP after the
 * instruction and returns (the handler then returns, too: cpu->rip is set),
 * or raises the fault that delivery met, with the instruction's own RIP.
 */
void event_software(struct soft_cpu *cpu, const struct insn *insn, uint8_t vector);

/* ---- MMU (mmu.c) ---- */

int mmu_init(struct soft_cpu *cpu, struct error *err);
void mmu_destroy(struct soft_cpu *cpu);
void mmu_flush_all(struct soft_cpu *cpu); /* every context, globals too */
/* The page is about to be read as code: stores to it are told from here on. Between blocks. */
void mmu_watch_code(struct soft_cpu *cpu, uint64_t gpa, const void *host_page);
/*
 * CPL, AC, CR0/CR4, EFER, segments changed: recompute cpu->tlb, seg[], stack_mask, mode, long_mode.
 * cpu->cpl is an input (it is state: whoever changes it sets it first; loading a whole state takes
 * it from SS.DPL), but real mode forces 0 and virtual-8086 mode 3.
 */
void mmu_mode_changed(struct soft_cpu *cpu);
/* Asks for it (others.h), from the vCPU's own thread. */
void mmu_ask_settle(struct soft_cpu *cpu);
/*
 * A serialising instruction, from its handler: code that others have changed
 * before is not run any more behind it. The handler's end looks at requests.
 */
static inline void soft_serialise(struct soft_cpu *cpu) {
    if (unlikely(cpu->unsettled))
        mmu_ask_settle(cpu);
}
/* Serves REQUEST_FLUSH, and REQUEST_BLOCKS if it comes of that. Between blocks. */
void mmu_serve_requests(struct soft_cpu *cpu);
/* The same of what it was asked about dirty pages alone; the vCPU does not run. */
void mmu_settle_writes(struct soft_cpu *cpu);

/*
 * Translates a code fetch at linear address: host pointer to the byte, guest-
 * physical address, how many bytes to the page's end, its flag byte. Raises
 * #PF. False: the address holds no RAM (the run loop stops the guest with a report).
 */
struct code_page {
    const uint8_t *host;
    uint64_t gpa;
    unsigned available;
    _Atomic(uint8_t) *flags;
};
bool mmu_fetch(struct soft_cpu *cpu, uint64_t linear, struct code_page *page);

/* Page walk without side effects: 0 or -EFAULT. */
int mmu_probe(struct soft_cpu *cpu, uint64_t linear, uint64_t *gpa);

/* ---- Blocks (block_drop.c) ---- */

/* Forgets blocks that overlap [gpa, gpa+length). The running block's remaining instructions are
 * replaced by ones that leave it, so that changed code takes effect with the next instruction. */
void block_invalidate(struct soft_cpu *cpu, uint64_t gpa, size_t length);
void block_invalidate_all(struct soft_cpu *cpu);

/* ---- System state (system.c, msr.c, cpuid.c) ---- */

/* Setters with the architecture's checks; false: #GP(0). They call mmu_mode_changed as needed. */
bool system_set_cr0(struct soft_cpu *cpu, uint64_t value);
bool system_set_cr3(struct soft_cpu *cpu, uint64_t value);
bool system_set_cr4(struct soft_cpu *cpu, uint64_t value);
bool system_set_xcr0(struct soft_cpu *cpu, uint64_t value);
bool system_set_efer(struct soft_cpu *cpu, uint64_t value);
/* Values that a whole state may have; no processor is asked. */
bool system_xcr0_legal(uint64_t value);
bool system_offers(uint64_t cr4, uint64_t efer);
bool msr_read(struct soft_cpu *cpu, uint32_t msr, uint64_t *value);
bool msr_write(struct soft_cpu *cpu, uint32_t msr, uint64_t value);
void cpuid_query(const struct soft_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
/* Whether guests of that baseline are shown a feature, if the host has what it takes. */
bool cpu_baseline_has(enum cpu_baseline baseline, enum insn_feature feature);
void cpuid_init_features(struct soft_cpu *cpu); /* and what else it answers of this host */
uint64_t soft_tsc(struct soft_cpu *cpu);

static inline bool soft_has(const struct soft_cpu *cpu, enum insn_feature feature) {
    return cpu->features[feature / 64] >> (feature % 64) & 1;
}

/* ---- Vector and x87 (vec_*.c, x87.c) ---- */

/* The checks that INSN_X87, INSN_MMX, INSN_SSE, INSN_AVX ask for; raises #UD, #NM, #MF in the
 * architecture's order. Handlers call it when their own quick check fails (vec.h). */
void fp_check(struct soft_cpu *cpu, uint32_t properties);

/* XSAVE components 0 to 2 that are not in their initial state (XGETBV with ECX 1: and XCR0). */
uint64_t xsave_in_use(const struct soft_cpu *cpu);

#endif
