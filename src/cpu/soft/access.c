/*
 * Accesses that the inlined fast path of access.h leaves: page straddling,
 * I/O, watched code, breakpoints, faults, and segments that need a look.
 */
#include "cpu/soft/access.h"

#include "base/bytes.h"
#include "base/general.h"
#include "cpu/soft/block.h"
#include "cpu/soft/debug.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/verify.h"

/* ---- Segments ---- */

static bool limit_check(const struct x86_segment *s, uint64_t offset, unsigned size) {
    uint64_t last = offset + (size - 1);
    if ((s->attributes & 0xc) != 4 || !(s->attributes & SEG_S))
        return last <= s->limit;
    return offset > s->limit && last <= (s->attributes & SEG_DB ? UINT32_MAX : UINT16_MAX);
}

static bool type_check(const struct soft_cpu *cpu, const struct x86_segment *s, bool write) {
    if (!(cpu->cr0 & CR0_PE) || cpu->rflags & FLAG_VM)
        return true;
    if (!(s->attributes & SEG_P))
        return false;
    bool code = s->attributes & 8, second = s->attributes & 2;
    return write ? !code && second : !code || second;
}

bool segment_check(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size, bool write,
                   uint64_t *linear, struct fault *fault) {
    enum exception vector = seg == SEG_SS ? EXC_SS : EXC_GP;
    const struct x86_segment *s = &cpu->segment[seg];
    if (cpu->mode == INSN_MODE_64) {
        *linear = (seg >= SEG_FS ? s->base : 0) + offset;
        /* The offset, too: AMD processors check both. (A translation that the software TLB holds is
         * used without asking; no sane program can tell.) */
        if (linear_canonical(offset) && linear_canonical(*linear) &&
            linear_canonical(*linear + (size - 1)))
            return true;
        return fault_set(fault, vector, 0);
    }
    *linear = (uint32_t)(s->base + offset);
    if (!type_check(cpu, s, write) || !limit_check(s, offset, size))
        return fault_set(fault, vector, 0);
    return true;
}

/* ---- Pages ---- */

/* An access over at most two pages. */
struct span {
    const struct mmu_page *page[2]; /* the second is NULL when there is just one */
    struct mmu_page copy;           /* the first, when there are two */
    uint64_t linear;
    unsigned first; /* bytes on the first page */
    unsigned size;
};

static bool span_find(struct soft_cpu *cpu, uint64_t linear, unsigned size, unsigned access,
                      struct span *span, struct fault *fault) {
    unsigned room = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
    bool wide = cpu->mode == INSN_MODE_64 || (cpu->long_mode && access & ACCESS_IMPLICIT);
    if (wide && !(linear_canonical(linear) && linear_canonical(linear + (size - 1))))
        return fault_set(fault, EXC_GP, 0);
    span->linear = linear;
    span->size = size;
    span->first = size < room ? size : room;
    span->page[0] = mmu_translate(cpu, linear, access, fault);
    span->page[1] = NULL;
    if (span->page[0] == NULL)
        return false;
    if (span->first == size)
        return true;
    span->copy = *span->page[0];
    span->page[0] = &span->copy;
    uint64_t second = linear + room;
    span->page[1] = mmu_translate(cpu, wide ? second : (uint32_t)second, access, fault);
    return span->page[1] != NULL;
}

/* In lock-step, what the access will reach: I/O happens once, written pages are remembered. */
static bool span_may_pass(struct soft_cpu *cpu, const struct span *span, unsigned access,
                          struct fault *fault) {
    for (unsigned i = 0; i < 2 && span->page[i] != NULL; i++) {
        if (verify_may_access(cpu, span->page[i], access & ACCESS_WRITE))
            continue;
        fault->vector = FAULT_STOP;
        return false;
    }
    return true;
}

static bool span_translate(struct soft_cpu *cpu, uint64_t linear, unsigned size, unsigned access,
                           struct span *span, struct fault *fault) {
    return span_find(cpu, linear, size, access, span, fault) &&
           (likely(!cpu->verifying) || span_may_pass(cpu, span, access, fault));
}

static void note_breakpoints(struct soft_cpu *cpu, const struct span *span, unsigned access) {
    bool watched = span->page[0]->breakpoint || (span->page[1] && span->page[1]->breakpoint);
    if (unlikely(watched) && !(access & ACCESS_IMPLICIT))
        debug_note_access(cpu, span->linear, span->size, access & ACCESS_WRITE);
}

/* Plain copies of the sizes that must not tear. */
static void copy_bytes(void *to, const void *from, unsigned size) {
    switch (size) {
    case 1: memcpy(to, from, 1); break;
    case 2: memcpy(to, from, 2); break;
    case 4: memcpy(to, from, 4); break;
    case 8: memcpy(to, from, 8); break;
    case 16: memcpy(to, from, 16); break;
    default: general_copy(to, from, size); break;
    }
}

/* The largest naturally aligned piece of at most 8 bytes that starts at gpa. */
static unsigned piece_of(uint64_t gpa, unsigned size) {
    unsigned piece = 8;
    while (piece > size || gpa & (piece - 1))
        piece /= 2;
    return piece;
}

/* The local APIC's registers are 32 bits wide on 16-byte boundaries; other sizes read a part. */
static uint64_t lapic_read_piece(struct soft_cpu *cpu, unsigned offset, unsigned size) {
    uint64_t value = outside_lapic_read(cpu, offset & ~3u);
    return value >> 8 * (offset & 3) & bytes_mask(size);
}

static void io_read(struct soft_cpu *cpu, const struct mmu_page *page, unsigned offset, void *to,
                    unsigned size) {
    cpu->counters.exits++;
    while (size != 0) {
        unsigned piece = piece_of(page->gpa + offset, size);
        uint64_t value = page->lapic ? lapic_read_piece(cpu, offset, piece)
                                     : outside_io_read(cpu, page->gpa + offset, piece);
        copy_bytes(to, &value, piece);
        to = (uint8_t *)to + piece;
        offset += piece;
        size -= piece;
    }
}

static void io_write(struct soft_cpu *cpu, const struct mmu_page *page, unsigned offset,
                     const void *from, unsigned size) {
    cpu->counters.exits++;
    uint64_t base = page->gpa;
    bool lapic = page->lapic; /* a write may flush the entry */
    while (size != 0) {
        unsigned piece = piece_of(base + offset, size);
        uint64_t value = 0;
        copy_bytes(&value, from, piece);
        if (!lapic)
            outside_io_write(cpu, base + offset, value, piece);
        else if (piece >= 4)
            outside_lapic_write(cpu, offset, (uint32_t)value);
        from = (const uint8_t *)from + piece;
        offset += piece;
        size -= piece;
    }
}

static void page_read(struct soft_cpu *cpu, const struct mmu_page *page, uint64_t linear, void *to,
                      unsigned size) {
    unsigned offset = linear & (PAGE_SIZE - 1);
    if (likely(page->host != NULL))
        copy_bytes(to, page->host + offset, size);
    else
        io_read(cpu, page, offset, to, size);
}

/* Pages that can be used where they are. */
static bool is_plain(const struct mmu_page *page) {
    return page->host != NULL && !page->rom;
}

static void mark_dirty(const struct mmu_page *page) {
    if (!(atomic_load_explicit(page->flags, memory_order_relaxed) & MEM_PAGE_DIRTY))
        atomic_fetch_or(page->flags, MEM_PAGE_DIRTY);
}

static bool is_watched_code(const struct mmu_page *page) {
    return atomic_load_explicit(page->flags, memory_order_relaxed) & MEM_PAGE_CODE;
}

static void page_write(struct soft_cpu *cpu, const struct mmu_page *page, uint64_t linear,
                       const void *from, unsigned size) {
    unsigned offset = linear & (PAGE_SIZE - 1);
    if (unlikely(page->host == NULL || page->rom)) {
        io_write(cpu, page, offset, from, size);
        return;
    }
    mark_dirty(page);
    copy_bytes(page->host + offset, from, size);
    /* Who marks the page as code either reads these bytes or is seen (memory_watch). */
    if (unlikely(cpu->several))
        atomic_thread_fence(memory_order_seq_cst);
    if (unlikely(is_watched_code(page)))
        outside_code_written(cpu, page->gpa + offset, size);
}

static void span_read(struct soft_cpu *cpu, const struct span *span, void *to) {
    page_read(cpu, span->page[0], span->linear, to, span->first);
    if (span->page[1] != NULL)
        page_read(cpu, span->page[1], 0, (uint8_t *)to + span->first, span->size - span->first);
}

static void span_write(struct soft_cpu *cpu, const struct span *span, const void *from) {
    /* Copies: what an I/O write does to the translations must not reach the second part. */
    struct mmu_page second = span->page[1] != NULL ? *span->page[1] : (struct mmu_page){0};
    page_write(cpu, span->page[0], span->linear, from, span->first);
    if (span->page[1] != NULL)
        page_write(cpu, &second, 0, (const uint8_t *)from + span->first, span->size - span->first);
}

bool linear_read(struct soft_cpu *cpu, uint64_t linear, void *to, unsigned size, unsigned access,
                 struct fault *fault) {
    struct span span;
    if (!span_translate(cpu, linear, size, access, &span, fault))
        return false;
    note_breakpoints(cpu, &span, access);
    span_read(cpu, &span, to);
    return true;
}

bool linear_write(struct soft_cpu *cpu, uint64_t linear, const void *from, unsigned size,
                  unsigned access, struct fault *fault) {
    struct span span;
    if (!span_translate(cpu, linear, size, access | ACCESS_WRITE, &span, fault))
        return false;
    note_breakpoints(cpu, &span, access | ACCESS_WRITE);
    span_write(cpu, &span, from);
    return true;
}

bool linear_set_bits(struct soft_cpu *cpu, uint64_t linear, uint8_t bits, struct fault *fault) {
    struct span span;
    if (!span_translate(cpu, linear, 1, ACCESS_IMPLICIT | ACCESS_WRITE, &span, fault))
        return false;
    const struct mmu_page *page = span.page[0];
    if (!is_plain(page)) {
        uint8_t byte = 0;
        span_read(cpu, &span, &byte);
        byte |= bits;
        span_write(cpu, &span, &byte);
        return true;
    }
    unsigned offset = linear & (PAGE_SIZE - 1);
    mark_dirty(page);
    __atomic_fetch_or(page->host + offset, bits, __ATOMIC_SEQ_CST);
    if (unlikely(is_watched_code(page)))
        outside_code_written(cpu, page->gpa + offset, 1);
    return true;
}

/* ---- By segment and offset ---- */

/* #AC comes before page faults (APM vol. 2, 8.2.18 lets the processor choose; AMD's do it that
 * way). x87's ten bytes count as eight, vectors of 32 as 16. */
static bool alignment_check(const struct soft_cpu *cpu, uint64_t linear, unsigned size,
                            struct fault *fault) {
    if (likely(!(cpu->rflags & FLAG_AC)) || !(cpu->cr0 & CR0_AM) || cpu->cpl != 3)
        return true;
    unsigned natural = size == 10 ? 8 : size > 16 ? 16 : size;
    if (natural > 1 && is_power_of_two(natural) && linear & (natural - 1))
        return fault_set(fault, EXC_AC, 0);
    return true;
}

static bool operand_translate(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                              unsigned access, struct span *span, struct fault *fault) {
    uint64_t linear;
    access |= access_by_cpl(cpu);
    if (!segment_check(cpu, seg, offset, size, access & ACCESS_WRITE, &linear, fault) ||
        !alignment_check(cpu, linear, size, fault) ||
        !span_translate(cpu, linear, size, access, span, fault))
        return false;
    note_breakpoints(cpu, span, access);
    return true;
}

void access_read_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, void *to,
                      unsigned size) {
    struct fault fault;
    struct span span;
    if (!operand_translate(cpu, seg, offset, size, 0, &span, &fault))
        raise_fault(cpu, &fault);
    if (span.page[1] == NULL)
        mmu_enter(cpu, span.linear, span.page[0], TLB_READ);
    span_read(cpu, &span, to);
}

void access_write_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, const void *from,
                       unsigned size) {
    struct fault fault;
    struct span span;
    if (!operand_translate(cpu, seg, offset, size, ACCESS_WRITE, &span, &fault))
        raise_fault(cpu, &fault);
    if (span.page[1] == NULL)
        mmu_enter(cpu, span.linear, span.page[0], TLB_WRITE);
    span_write(cpu, &span, from);
}

/* ---- Read-modify-write ---- */

/* Locked, or XCHG, which always is: of all that come here no other has its opcodes. */
static bool runs_locked(const struct insn *insn) {
    return insn->flags & I_LOCK || (insn->opcode & 0xfe) == 0x86;
}

/* An operand on one page: the page itself, in no need of rmw_end unless it is watched. */
static void *rmw_on_page(struct soft_cpu *cpu, const struct mmu_page *page, unsigned size) {
    struct mmu *mmu = mmu_of(cpu);
    mmu_enter(cpu, cpu->bounce.linear, page, TLB_WRITE);
    level1_note_write(cpu, page->flags);
    if (is_watched_code(page)) {
        cpu->bounce.size = size;
        mmu->rmw.direct = true;
    }
    return page->host + (cpu->bounce.linear & (PAGE_SIZE - 1));
}

/* A locked operand on two pages that are neighbours in this process, too: as one. NULL: it is not.
 */
static void *rmw_on_neighbours(struct soft_cpu *cpu, const struct span *span) {
    if (!is_plain(span->page[0]) || !is_plain(span->page[1]) ||
        span->page[1]->host != span->page[0]->host + PAGE_SIZE)
        return NULL;
    level1_note_write(cpu, span->page[0]->flags);
    level1_note_write(cpu, span->page[1]->flags);
    if (is_watched_code(span->page[0]) || is_watched_code(span->page[1]))
        return NULL;
    return span->page[0]->host + (span->linear & (PAGE_SIZE - 1));
}

void *rmw_begin_slow(struct soft_cpu *cpu, unsigned seg, uint64_t offset, unsigned size) {
    struct fault fault;
    struct span span;
    struct mmu *mmu = mmu_of(cpu);
    if (!operand_translate(cpu, seg, offset, size, ACCESS_WRITE, &span, &fault))
        raise_fault(cpu, &fault);
    bool single = span.page[1] == NULL, locked = !single && runs_locked(cpu->insn);
    cpu->bounce.linear = span.linear;
    mmu->rmw.page[0] = *span.page[0];
    mmu->rmw.direct = false;
    if (single && is_plain(span.page[0]))
        return rmw_on_page(cpu, span.page[0], size);
    void *neighbours = locked ? rmw_on_neighbours(cpu, &span) : NULL;
    if (neighbours != NULL)
        return neighbours;
    mmu->rmw.two = !single;
    if (!single)
        mmu->rmw.page[1] = *span.page[1];
    mmu->rmw.first = span.first;
    mmu->rmw.alone = locked;
    cpu->bounce.size = size;
    if (locked)
        outside_alone_begin(cpu);
    span_read(cpu, &span, cpu->bounce.bytes);
    return cpu->bounce.bytes;
}

void rmw_end_slow(struct soft_cpu *cpu) {
    struct mmu *mmu = mmu_of(cpu);
    struct span span = {.page = {&mmu->rmw.page[0], mmu->rmw.two ? &mmu->rmw.page[1] : NULL},
                        .linear = cpu->bounce.linear,
                        .first = mmu->rmw.first,
                        .size = cpu->bounce.size};
    cpu->bounce.size = 0;
    if (mmu->rmw.direct) {
        outside_code_written(cpu, span.page[0]->gpa + (span.linear & (PAGE_SIZE - 1)), span.size);
        return;
    }
    span_write(cpu, &span, cpu->bounce.bytes);
    if (mmu->rmw.alone)
        outside_alone_end(cpu);
}

/* ---- Runs ---- */

static bool is_on_page(const struct block *block, uint64_t gpa) {
    return block->gpa[0] >> PAGE_SHIFT == gpa >> PAGE_SHIFT ||
           (block->straddles && block->gpa[1] >> PAGE_SHIFT == gpa >> PAGE_SHIFT);
}

/*
 * A run of watched code, which is told of as a whole: pages that held a program are cleared and
 * filled anew. NULL: the page is something else, or holds the running block, which must see what
 * it overwrites of itself.
 */
static void *run_on_code(struct soft_cpu *cpu, const struct mmu_page *page, uint64_t linear) {
    struct mmu *mmu = mmu_of(cpu);
    if (!is_plain(page) || page->breakpoint || cpu->verify != NULL || !is_watched_code(page) ||
        cpu->block == NULL || is_on_page(cpu->block, page->gpa))
        return NULL;
    mmu->code_run = true;
    mmu->code_run_gpa = page->gpa + (linear & (PAGE_SIZE - 1));
    return page->host + (linear & (PAGE_SIZE - 1));
}

void access_run_written(struct soft_cpu *cpu, size_t length) {
    struct mmu *mmu = mmu_of(cpu);
    if (likely(!mmu->code_run))
        return;
    mmu->code_run = false;
    outside_code_written(cpu, mmu->code_run_gpa, length);
}

void *access_run(struct soft_cpu *cpu, enum tlb_kind kind, unsigned seg, uint64_t offset,
                 size_t *length) {
    void *host = access_fast(cpu, kind, seg, offset, 1);
    uint64_t linear;
    struct fault fault;
    if (kind == TLB_WRITE)
        mmu_of(cpu)->code_run = false;
    if (!segment_check(cpu, seg, offset, 1, kind == TLB_WRITE, &linear, &fault))
        return NULL;
    if (host == NULL) {
        unsigned access = (kind == TLB_WRITE ? ACCESS_WRITE : 0) | access_by_cpl(cpu);
        struct mmu_page *page = mmu_translate(cpu, linear, access, &fault);
        if (page == NULL)
            return NULL;
        mmu_enter(cpu, linear, page, kind);
        host = access_fast(cpu, kind, seg, offset, 1);
        if (host == NULL && kind == TLB_WRITE)
            host = run_on_code(cpu, page, linear);
        if (host == NULL)
            return NULL;
    }
    size_t room = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
    uint64_t last = kind == TLB_WRITE ? cpu->seg[seg].write.last : cpu->seg[seg].read.last;
    if (last - offset < room)
        room = last - offset + 1;
    if (*length > room)
        *length = room;
    return host;
}

/* ---- The processor's own accesses ---- */

uint64_t system_load(struct soft_cpu *cpu, uint64_t linear, unsigned size) {
    struct fault fault;
    uint64_t value = 0;
    if (!linear_read(cpu, linear, &value, size, ACCESS_IMPLICIT, &fault))
        raise_fault(cpu, &fault);
    return value;
}

void system_store(struct soft_cpu *cpu, uint64_t linear, uint64_t value, unsigned size) {
    struct fault fault;
    if (!linear_write(cpu, linear, &value, size, ACCESS_IMPLICIT, &fault))
        raise_fault(cpu, &fault);
}
