/*
 * What the files of the MMU share, and accesses that report a fault instead
 * of raising it: event delivery and segment loading look before they leap.
 *
 * Translations are held twice. The software TLB of soft.h (level 1, level1.c)
 * is what inlined accesses check; it holds the present address space's pages
 * and global ones, so that a check needs no name of the space. Behind it,
 * mmu_page entries (level 2) hold a page's translation with its rights,
 * whoever may use it; a level 1 miss that hits there costs no walk. They carry
 * a context number in their tags: a PCID's entries are forgotten by giving it
 * a fresh number, and outlive other spaces' turns. When numbers run out, all
 * is cleared.
 *
 * All on the vCPU's thread, except the listener's queue (mmu.c).
 */
#ifndef LODGE_CPU_SOFT_MMU_H
#define LODGE_CPU_SOFT_MMU_H

#include "cpu/soft/soft.h"

#define PAGE_MASK (~(uint64_t)(PAGE_SIZE - 1))

/* A fault that did not happen yet. FAULT_STOP: cpu->exit is filled, the guest stops here. */
enum { FAULT_STOP = 255 };
struct fault {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t address; /* #PF: CR2 */
};

_Noreturn void raise_fault(struct soft_cpu *cpu, const struct fault *fault);

/* Fills cpu->exit: the view refused an access (raise.c). */
void exit_trap(struct soft_cpu *cpu, uint64_t gpa, uint64_t gva, unsigned access);

/* Fills *fault and returns false, so that checks can `return fault_set(...)`. */
static inline bool fault_set(struct fault *fault, enum exception vector, uint32_t error) {
    *fault = (struct fault){.vector = vector, .has_error = true, .error = error};
    return false;
}

/* How an access is checked. USER: by the rights of CPL 3. IMPLICIT: by the processor itself
 * (descriptor tables, TSS): a supervisor access that SMAP never lets through to user pages. */
enum {
    ACCESS_WRITE = 1,
    ACCESS_FETCH = 2,
    ACCESS_USER = 4,
    ACCESS_IMPLICIT = 8,
    ACCESS_PROBE = 16, /* no side effects: no accessed bits, nothing cached, no rights checked */
};

/* Rights by the page tables. DIRTY: the leaf's dirty bit is set. */
enum { PAGE_USER = 1, PAGE_WRITE = 2, PAGE_EXECUTE = 4, PAGE_DIRTY = 8 };

/* A level 2 entry: one 4 KiB page. */
struct mmu_page {
    uint64_t tag;  /* linear page | context, or MMU_EMPTY */
    uint64_t gpa;  /* of the page */
    uint8_t *host; /* NULL: I/O, or nothing there */
    _Atomic(uint8_t) *flags;
    uint8_t rights;      /* PAGE_* */
    uint8_t view_rights; /* MEM_* */
    bool rom;
    bool lapic;      /* the local APIC's page */
    bool breakpoint; /* holds bytes that a data breakpoint watches */
    bool global;
};

#define MMU_EMPTY UINT64_MAX

/* A page table found before: skips the upper levels for 2 MiB of linear addresses. */
struct mmu_directory {
    uint64_t tag;   /* linear address >> 21 << 12 | context, or MMU_EMPTY */
    uint64_t table; /* gpa of the page table */
    uint8_t rights; /* what the upper levels allow */
};

enum {
    MMU_PAGE_BITS = 12,
    MMU_PAGES = 1 << MMU_PAGE_BITS,
    MMU_DIRECTORIES = 256,
    MMU_LARGE_BITS = 4096,
    MMU_ENTERED_MAX = 64,
    MMU_CODE_QUEUE = 64,
    MMU_REPLACED = 256,
    MMU_UNSETTLED = 1024,
    MMU_LAST_CONTEXT = 0xffe, /* 0xfff would let a tag equal MMU_EMPTY */
    PCID_COUNT = 4096,
};

struct code_change {
    uint64_t gpa;
    size_t length;
};

/* A page that not all others have answered for yet, when they had been asked this often. */
struct unsettled_page {
    uint64_t gpa;
    uint64_t asked;
};

/* Which level 1 entries were filled since they were last cleared: a bit each, by table and slot,
 * and above them a bit for each word. */
struct level1_filled {
    uint64_t words[TLB_INDEXES * TLB_KINDS][TLB_ENTRIES / 64];
    uint64_t any[TLB_INDEXES * TLB_KINDS];
};

struct mmu {
    struct soft_cpu *cpu;
    uint64_t global_context;
    unsigned next_context;
    uint32_t generation;             /* of context_of: entries of older generations are void */
    uint32_t context_of[PCID_COUNT]; /* generation << 12 | context */
    struct mmu_page pages[MMU_PAGES];
    struct mmu_directory directories[MMU_DIRECTORIES];
    /* Which 2 MiB / 1 GiB of linear addresses (hashed) hold fragments of large pages. */
    uint64_t large[MMU_LARGE_BITS / 64], huge[MMU_LARGE_BITS / 64];
    uint64_t fragments[MMU_PAGES / 64]; /* which level 2 entries are such */

    struct level1_filled of_space, of_all; /* pages of the address space; global ones */

    /* Flag bytes of the pages that level 1 write entries name. A page written through its entry is
     * not marked again, so it counts as dirty once more when the entry goes (mmu_drop_writes). */
    _Atomic(uint8_t) *write_flags[TLB_INDEXES][TLB_ENTRIES];

    /* In lock-step: write entries made since mmu_forget_writes, index * TLB_ENTRIES + slot; more
     * than the array holds: any. */
    uint16_t entered[MMU_ENTERED_MAX];
    unsigned entered_count;
    uint64_t flushes; /* how often cached translations may have been forgotten */

    /* A read-modify-write in progress. */
    struct {
        struct mmu_page page[2];
        unsigned first; /* bytes on the first page */
        bool direct;    /* on the page itself, which is watched code */
        bool two;       /* pages */
        bool alone;     /* all other vCPUs stand still (others.h) */
    } rmw;

    /* The last run for writing that access_run gave is watched code, from there on. */
    bool code_run;
    uint64_t code_run_gpa;

    /* Whose level 1 write entries others have replaced lately: a ring. A check that was made by one
     * of them may still be relied on by the rest of its block. */
    _Atomic(uint8_t) *replaced[MMU_REPLACED];
    unsigned replaced_next;

    /* Several vCPUs (others.h). */
    pthread_mutex_t busy; /* held by the vCPU's thread unless it is at rest */
    bool changed_at_rest; /* guarded by `busy`: somebody else has held it */
    _Atomic(uint64_t) asked, answered;
    struct unsettled_page unsettled[MMU_UNSETTLED];
    unsigned unsettled_count;
    bool unsettled_lost; /* there were more */

    /* From other threads. */
    struct lock lock; /* LOCK_VCPU */
    struct code_change changes[MMU_CODE_QUEUE];
    unsigned change_count;
    bool changes_lost;
    atomic_uint wanted; /* WANT_* */
};

enum {
    WANT_FLUSH = 1,
    WANT_DROP_WRITES = 2,
    WANT_CODE = 4,
    WANT_DROP_CODE = 8, /* others_drop */
    WANT_SETTLE = 16,   /* others_settle */
    WANT_REST = 32,     /* others_let_alone */
};

static inline struct mmu *mmu_of(const struct soft_cpu *cpu) {
    return cpu->mmu;
}

static inline bool linear_canonical(uint64_t linear) {
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* ---- walk.c ---- */

struct walk {
    uint64_t gpa; /* of the 4 KiB page */
    uint8_t rights;
    bool global;
    uint64_t size; /* of the page that maps it */
};

/*
 * Walks the page tables for a canonical (or 32-bit) linear address, sets
 * accessed and dirty bits, checks the access. False: *fault is set.
 */
bool mmu_walk(struct soft_cpu *cpu, uint64_t linear, unsigned access, struct walk *walk,
              struct fault *fault);

/* Whether rights allow the access, by CPL (in access), CR0.WP, SMEP, SMAP and AC. */
bool mmu_allows(const struct soft_cpu *cpu, unsigned rights, unsigned access);

/* ---- level1.c ---- */

/* Forgets the address space's pages; `global`: those of all spaces, too. */
void level1_flush(struct soft_cpu *cpu, bool global);
/* An entry for fetches that is there; where that is not known, false. */
bool level1_fetch_is_global(const struct soft_cpu *cpu, uint64_t linear);
void level1_drop_page(struct soft_cpu *cpu, uint64_t page);
/* Forgets a naturally aligned range of 64 to TLB_ENTRIES pages, a power of two. */
void level1_drop_pages(struct soft_cpu *cpu, uint64_t page, unsigned count);
/* Forgets everything, whatever it was. */
void level1_clear(struct soft_cpu *cpu);
/* Forgets write entries of the page at host. */
void level1_drop_host_writes(struct soft_cpu *cpu, const void *host);
/*
 * Forgets write entries of pages that are marked as code, at most `room` pages'
 * (then there may be more). Returns how many; their flags are in `found`.
 */
unsigned level1_drop_code_writes(struct soft_cpu *cpu, _Atomic(uint8_t) **found, unsigned room);
/* A page's address for writing is forgotten, while what was checked with it may still be used. */
void level1_note_replaced(struct soft_cpu *cpu, _Atomic(uint8_t) *flags);
/* A page is about to be written by its address without an entry. A full barrier. */
void level1_note_write(struct soft_cpu *cpu, _Atomic(uint8_t) *flags);
/* Enters a page for fast accesses of this kind by the present CPL, where that is allowed. */
void mmu_enter(struct soft_cpu *cpu, uint64_t linear, const struct mmu_page *page,
               enum tlb_kind kind);

/* The flags of the page that the level 1 write entry for a linear address names. */
_Atomic(uint8_t) *mmu_write_flags(const struct soft_cpu *cpu, uint64_t linear);

/* ---- mmu.c ---- */

/* Whether the page, which was translated before, is global. */
bool mmu_is_global(struct soft_cpu *cpu, uint64_t linear);

/*
 * The level 2 entry for a linear address, checked for the access; NULL with
 * *fault set. Stays valid until the next translation.
 */
struct mmu_page *mmu_translate(struct soft_cpu *cpu, uint64_t linear, unsigned access,
                               struct fault *fault);

/* mmu_fetch that does not raise: false with *fault set. host is NULL where there is no RAM. */
bool mmu_fetch_or(struct soft_cpu *cpu, uint64_t linear, struct code_page *code,
                  struct fault *fault);

/* Numbers have run out, or there were none yet: nothing cached survives, and counting starts anew.
 */
void mmu_restart(struct soft_cpu *cpu);

/* CR3 was loaded: pcid is 0 without CR4.PCIDE. keep: bit 63 was set. */
void mmu_set_space(struct soft_cpu *cpu, unsigned pcid, bool keep);
void mmu_flush_space(struct soft_cpu *cpu, unsigned pcid); /* all but global pages */
void mmu_flush_spaces(struct soft_cpu *cpu);               /* of every PCID, all but global pages */
/* INVLPG: the present address space's translation of a page, global or not, and all of the large
 * page that it may be part of. */
void mmu_flush_page(struct soft_cpu *cpu, uint64_t linear);

/* Forgets all write entries: what is written from here on is marked dirty anew, and so is what may
 * have been written through them since the flags were cleared. */
void mmu_drop_writes(struct soft_cpu *cpu);

/* For lock-step: forgets the write entries made since, so that mmu_enter sees what is written next.
 * The pages' dirty flags stay set. */
void mmu_forget_writes(struct soft_cpu *cpu);

/* ---- mmu_listen.c ---- */

/* Any thread: the vCPU serves WANT_* at its next look. */
void mmu_want(struct mmu *mmu, unsigned what);

/* Tells of writes to [gpa, gpa+length), which is watched code: listeners run at once. */
void mmu_code_written(struct soft_cpu *cpu, uint64_t gpa, size_t length);
/* A write to a device or port by this vCPU: where it changes what memory shows (a BAR that moves,
 * flash that turns from array to registers) the next access sees it. */
void mmu_io_write(struct soft_cpu *cpu, uint64_t gpa, uint64_t value, unsigned size);
void mmu_port_write(struct soft_cpu *cpu, uint16_t port, uint32_t value, unsigned size);

/* ---- access.c ---- */

/*
 * Reads or writes 1 to 64 bytes at a linear address, with the rights that
 * `access` names; all or nothing. False: *fault is set.
 */
bool linear_read(struct soft_cpu *cpu, uint64_t linear, void *to, unsigned size, unsigned access,
                 struct fault *fault);
bool linear_write(struct soft_cpu *cpu, uint64_t linear, const void *from, unsigned size,
                  unsigned access, struct fault *fault);

/* Sets bits of a byte of a system structure as the processor does, locked. */
bool linear_set_bits(struct soft_cpu *cpu, uint64_t linear, uint8_t bits, struct fault *fault);

/* ACCESS_USER at CPL 3, else 0. */
static inline unsigned access_by_cpl(const struct soft_cpu *cpu) {
    return cpu->cpl == 3 ? ACCESS_USER : 0;
}

/* The segment's part of a check: type, limit, canonical form. False: #GP or #SS in *fault. */
bool segment_check(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size, bool write,
                   uint64_t *linear, struct fault *fault);

#endif
