#include "cpu/soft/block.h"

#include <string.h>

#include "cpu/soft/block_private.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/mmu.h"

enum { INSN_BYTES_MAX = 15 };

/* ---- Pseudo-instructions ---- */

/* Ends a block that has no branch. */
static void block_fall(struct soft_cpu *cpu, const struct insn *insn) {
    BLOCK_CHAIN(0, insn_rip(cpu, insn));
}

static void refuse_ud(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    raise_exception(cpu, EXC_UD);
}

static void refuse_gp(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    raise_error(cpu, EXC_GP, 0);
}

static void stop_at_breakpoint(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    cpu->exit = (struct vcpu_exit){.stop = VCPU_BREAKPOINT, .gva = block_linear(cpu, cpu->rip)};
    raise_exit(cpu);
}

/* ---- Decoding ---- */

/* From here on writes to the page are told: before its bytes are read. */
static void watch(struct soft_cpu *cpu, const struct code_page *page) {
    if (page->flags == NULL || block_page_has_some(cpu->blocks, page->gpa))
        return;
    mmu_watch_code(cpu, page->gpa & PAGE_MASK, page->host - (page->gpa & (PAGE_SIZE - 1)));
}

/* The same for a page whose flags are not at hand. */
static void watch_again(struct soft_cpu *cpu, struct code_page *page) {
    struct mem_page found;
    view_page(cpu->view, page->gpa, &found);
    page->flags = found.flags;
    watch(cpu, page);
}

static bool is_breakpoint(const struct soft_cpu *cpu, uint64_t linear) {
    const struct block_store *store = cpu->blocks->store;
    for (unsigned i = 0; i < store->breakpoint_count; i++) {
        if (store->breakpoints[i] == linear)
            return true;
    }
    return false;
}

/* What the row alone does not say: privilege and mode. */
static insn_exec *checked_exec(const struct insn *insn, uint64_t key) {
    const struct insn_row *row = insn_row_of(insn);
    if (!(key & KEY_PROTECTED) && ((row->properties & INSN_PROTECTED) || row->encoding == ENC_VEX))
        return refuse_ud;
    if ((row->properties & INSN_CPL0) && (key & KEY_CPL))
        return refuse_gp;
    return insn->exec;
}

/* An extended block passes a few branches. */
static bool goes_on_behind(struct block *block, const struct insn *insn) {
    enum { ENDS = INSN_BRANCH | INSN_END, BRANCHES_MAX = 6 };
    if (!(insn_row_of(insn)->properties & ENDS))
        return true;
    if (block->run_count == 0)
        block->run_count = block->count;
    return block->extended && ++block->branches < BRANCHES_MAX && jit_goes_on_behind(insn);
}

/*
 * Adds the instruction that `bytes` hold. True: the block goes on behind it. A length of 0 (more
 * bytes are needed) adds nothing.
 */
static bool add_insn(struct soft_cpu *cpu, struct block *block, const uint8_t *bytes,
                     size_t available, int *length) {
    struct insn *insn = &block->insns[block->count];
    *length = insn_decode(insn, bytes, available, block->rip + block->length,
                          (enum insn_mode)(block->key & KEY_MODE), cpu->features);
    if (*length == 0 || (*length < 0 && block->extended && block->count != 0))
        return false;
    insn->offset = block->length;
    block->count++;
    if (*length < 0) {
        insn->exec = *length == -EXC_GP ? refuse_gp : refuse_ud;
        block->length += insn->length;
        return false;
    }
    insn->exec = checked_exec(insn, block->key);
    block->relative |= insn_is_rip_relative(insn);
    block->length += insn->length;
    return goes_on_behind(block, insn);
}

/* The pseudo-instruction behind the last. */
static void seal(struct block *block) {
    struct insn *end = &block->insns[block->count];
    if (block->run_count == 0)
        block->run_count = block->count;
    memset(end, 0, sizeof *end);
    end->exec = block_fall;
    end->offset = block->length;
}

/* The one instruction that begins on `page` and ends on the next. False: no RAM there. */
static bool decode_straddling(struct soft_cpu *cpu, struct block *block,
                              const struct code_page *page, uint64_t linear, uint64_t limit) {
    uint8_t bytes[INSN_BYTES_MAX];
    struct code_page second;
    size_t first = page->available, rest = INSN_BYTES_MAX - first;
    int length;
    if (limit < first)
        raise_error(cpu, EXC_GP, 0);
    if (!mmu_fetch(cpu, linear + first, &second))
        return false;
    watch(cpu, &second);
    if (rest > limit - first + 1)
        rest = limit - first + 1;
    memcpy(bytes, page->host, first);
    memcpy(bytes + first, second.host, rest);
    block->straddles = true;
    block->gpa[1] = second.gpa;
    add_insn(cpu, block, bytes, first + rest, &length);
    if (length == 0) /* the segment ends within the instruction */
        raise_error(cpu, EXC_GP, 0);
    return true;
}

/* Bytes of code as a processor fetches them: a naturally aligned quadword is read at once, so that
 * a store of another processor to it is seen whole or not at all (APM vol. 2, 7.6.1). */
struct code_copy {
    const uint64_t *from;
    size_t read; /* quadwords so far */
    uint64_t quads[BLOCK_BYTES_MAX / 8 + 1];
};

/* Where the bytes from `from` on will be; there are none yet. */
static const uint8_t *copy_begin(struct code_copy *copy, const uint8_t *from) {
    unsigned shift = (uintptr_t)from & 7;
    copy->from = (const uint64_t *)(const void *)(from - shift);
    copy->read = 0;
    return (const uint8_t *)copy->quads + shift;
}

/* All before `end`. */
static void copy_until(struct code_copy *copy, const uint8_t *end) {
    size_t quads = ((size_t)(end - (const uint8_t *)copy->quads) + 7) / 8;
    for (; copy->read < quads; copy->read++)
        copy->quads[copy->read] = __atomic_load_n(&copy->from[copy->read], __ATOMIC_RELAXED);
}

/* limit: the last byte, counted from the first, that the code segment lets be fetched. copy: where
 * the page's bytes are to be read to, or NULL. */
static bool decode_block(struct soft_cpu *cpu, struct block *block, const struct code_page *page,
                         struct code_copy *copy, uint64_t linear, uint64_t limit) {
    size_t available = page->available - 1 < limit ? page->available : limit + 1;
    unsigned most = block->key & KEY_STEP ? 1 : BLOCK_INSNS_MAX;
    bool breaks = !(block->key & KEY_NO_BREAK);
    int length = 1;
    while (block->count < most && available > block->length) {
        const uint8_t *at = page->host + block->length;
        size_t left = available - block->length;
        if (copy != NULL)
            copy_until(copy, at + (left < INSN_BYTES_MAX ? left : INSN_BYTES_MAX));
        if (!add_insn(cpu, block, at, left, &length) ||
            (breaks && is_breakpoint(cpu, linear + block->length)))
            break;
    }
    if (block->count != 0)
        return true;
    if (available < page->available)
        raise_error(cpu, EXC_GP, 0);
    return decode_straddling(cpu, block, page, linear, limit);
}

static struct block *make(struct soft_cpu *cpu, uint64_t key, const struct code_page *page,
                          uint64_t linear, uint64_t limit) {
    struct block *block;
    struct code_page source = *page;
    struct code_copy read, *copy = cpu->several ? &read : NULL;
    block = block_reserve(cpu);
    struct insn *insns = block_reserve_chunk(cpu)->insns;
    watch(cpu, page); /* now that no others of the page are dropped any more */
    if (copy != NULL) {
        if (source.available > BLOCK_BYTES_MAX)
            source.available = BLOCK_BYTES_MAX;
        source.host = copy_begin(copy, page->host);
    }
    *block = (struct block){.hash_next = block->hash_next, .dead = true};
    block->insns = insns;
    block->rip = cpu->rip;
    block->key = key;
    block->host = page->host;
    block->gpa[0] = page->gpa;
    block->heat = *block_heat(cpu->blocks->store, block);
    if (!decode_block(cpu, block, &source, copy, linear, limit))
        return NULL;
    seal(block);
    if (!(key & KEY_NO_BREAK) && is_breakpoint(cpu, linear))
        block->insns[0].exec = stop_at_breakpoint;
    block->dead = false;
    block_commit(cpu, block);
    cpu->count.decoded++;
    return block;
}

bool block_may_extend(const struct soft_cpu *cpu, const struct block *block) {
    enum { NOT_FURTHER = KEY_STEP | KEY_NO_BREAK | KEY_PLAIN | KEY_NO_FP | KEY_X87_RAISES };
    const struct insn *last = &block->insns[block->count - 1];
    return !(block->extended || block->straddles || block->dead || block->key & NOT_FURTHER ||
             last->exec == refuse_ud || last->exec == refuse_gp || !jit_goes_on_behind(last) ||
             is_breakpoint(cpu, block->rip));
}

struct block *block_extend(struct soft_cpu *cpu, struct block *block,
                           uint8_t copy[BLOCK_BYTES_MAX]) {
    if (!block_may_extend(cpu, block))
        return NULL;
    struct block old = *block;
    struct block *longer = block_reserve(cpu);
    struct insn *insns = block_reserve_chunk(cpu)->insns;
    bool emptied = block->dead; /* its segment was */
    unsigned left = PAGE_SIZE - (old.gpa[0] & (PAGE_SIZE - 1));
    struct code_page page = {.host = old.host, .gpa = old.gpa[0], .available = left};
    if (emptied)
        watch_again(cpu, &page);
    page.available = left < BLOCK_BYTES_MAX ? left : BLOCK_BYTES_MAX;
    struct code_copy whole;
    const uint8_t *bytes = copy_begin(&whole, old.host);
    copy_until(&whole, bytes + page.available);
    memcpy(copy, bytes, page.available);
    page.host = copy;
    *longer = (struct block){.hash_next = longer->hash_next,
                             .insns = insns,
                             .rip = old.rip,
                             .key = old.key,
                             .host = old.host,
                             .gpa = {old.gpa[0]},
                             .heat = old.heat,
                             .extended = true};
    decode_block(cpu, longer, &page, NULL, old.rip, UINT64_MAX - 1);
    seal(longer);
    block_commit(cpu, longer);
    if (!emptied)
        block_drop(cpu, block);
    cpu->blocks->jump[jump_hash(longer->rip)] = longer;
    return longer;
}

/* The bytes of a block as they are now. False: the second page is elsewhere. */
static bool copy_bytes(struct soft_cpu *cpu, const struct block *block,
                       uint8_t copy[BLOCK_BYTES_MAX]) {
    struct code_page second;
    struct fault fault;
    size_t first = PAGE_SIZE - (block->gpa[0] & (PAGE_SIZE - 1));
    if (!block->straddles) {
        memcpy(copy, block->host, block->length);
        return true;
    }
    if (!mmu_fetch_or(cpu, block_linear(cpu, block->rip) + first, &second, &fault) ||
        second.host == NULL || second.gpa != block->gpa[1])
        return false;
    memcpy(copy, block->host, first);
    memcpy(copy + first, second.host, block->length - first);
    return true;
}

bool block_decode(struct soft_cpu *cpu, struct block *block) {
    uint8_t bytes[BLOCK_BYTES_MAX];
    if (block->insns != NULL || block->dead)
        return !block->dead;
    uint16_t count = block->count, length = block->length;
    int last = 1;
    bool same = copy_bytes(cpu, block, bytes);
    block->insns = block_reserve_chunk(cpu)->insns;
    block->count = block->length = block->run_count = block->branches = 0;
    while (same && block->count < count && block->length < length &&
           add_insn(cpu, block, bytes + block->length, (size_t)(length - block->length), &last)) {
    }
    same = same && block->count == count && block->length == length;
    block->count = count;
    block->length = length;
    if (!same) {
        block->insns = NULL;
        block_drop(cpu, block);
        return false;
    }
    seal(block);
    block_commit_chunk(cpu->blocks->store, block);
    cpu->count.decoded++;
    return true;
}

/* ---- Finding ---- */

static struct block *no_memory(struct soft_cpu *cpu, uint64_t linear) {
    cpu->exit = (struct vcpu_exit){.stop = VCPU_FAILED, .gva = linear};
    snprintf(cpu->exit.text, sizeof cpu->exit.text,
             "instruction fetch at %#llx, where there is no memory", (unsigned long long)linear);
    return NULL;
}

struct block *block_find(struct soft_cpu *cpu, uint64_t key) {
    uint64_t linear = block_linear(cpu, cpu->rip), limit = UINT64_MAX - 1;
    struct code_page page;
    struct block *block;
    if (cpu->mode != INSN_MODE_64) {
        if (cpu->rip > cpu->segment[SEG_CS].limit)
            raise_error(cpu, EXC_GP, 0);
        limit = cpu->segment[SEG_CS].limit - cpu->rip;
    }
    if (!mmu_fetch(cpu, linear, &page))
        return no_memory(cpu, linear);
    block = block_on_page(cpu, key, &page, linear);
    if (block == NULL && cpu->mode == INSN_MODE_64 && cpu->blocks->store->breakpoint_count == 0 &&
        block_place_claim(cpu, key, page.gpa, linear))
        block = block_on_page(cpu, key, &page, linear);
    if (block == NULL)
        block = make(cpu, key, &page, linear, limit);
    if (block == NULL)
        return no_memory(cpu, linear);
    block_note(cpu, block);
    return block;
}

/* ---- Breakpoints ---- */

int block_set_breakpoint(struct soft_cpu *cpu, uint64_t linear, bool on) {
    struct block_store *store = cpu->blocks->store;
    unsigned i = 0;
    while (i < store->breakpoint_count && store->breakpoints[i] != linear)
        i++;
    if (on && i == BREAKPOINTS_MAX)
        return -ENOSPC;
    if (on)
        store->breakpoints[i] = linear;
    else if (i < store->breakpoint_count)
        store->breakpoints[i] = store->breakpoints[store->breakpoint_count - 1];
    else
        return 0;
    store->breakpoint_count = on ? (i == store->breakpoint_count ? i + 1 : store->breakpoint_count)
                                 : store->breakpoint_count - 1;
    block_invalidate_all(cpu);
    return 0;
}
