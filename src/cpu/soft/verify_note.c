/*
 * What accesses and page walks tell lock-step. Light calls come here: no
 * vector registers (outside.h).
 */
#include "base/general.h"
#include "cpu/soft/outside.h"
#include "cpu/soft/verify_private.h"

static unsigned page_index(const struct verify *v, const uint8_t *host) {
    unsigned i = v->pages;
    while (i-- > 0)
        if (v->page[i].host == host)
            return i;
    return VERIFY_PAGES;
}

enum verify_stop verify_note(struct soft_cpu *cpu, const struct mmu_page *page, bool write) {
    struct verify *v = cpu->verify;
    if (page->host == NULL || (write && page->rom))
        return VERIFY_ONCE;
    if (!write)
        return VERIFY_GOES_ON;
    if (atomic_load_explicit(page->flags, memory_order_relaxed) & MEM_PAGE_CODE)
        return VERIFY_ONCE;
    if (page_index(v, page->host) != VERIFY_PAGES)
        return VERIFY_GOES_ON;
    if (v->pages == VERIFY_PAGES)
        return VERIFY_FULL;
    unsigned i = v->pages++;
    v->page[i] = (struct verify_page){.host = page->host, .gpa = page->gpa};
    general_copy(v->before[i], page->host, PAGE_SIZE);
    general_copy(v->after[i], page->host, PAGE_SIZE); /* an earlier run has not written it */
    return VERIFY_GOES_ON;
}

bool verify_may_access(struct soft_cpu *cpu, const struct mmu_page *page, bool write) {
    enum verify_stop stop = verify_note(cpu, page, write);
    if (stop != VERIFY_GOES_ON)
        cpu->verify->stop = stop;
    return stop == VERIFY_GOES_ON;
}

void verify_marked(struct soft_cpu *cpu, const void *host) {
    const uint8_t *page = (const uint8_t *)((uintptr_t)host & ~(uintptr_t)(PAGE_SIZE - 1));
    if (page_index(cpu->verify, page) != VERIFY_PAGES)
        cpu->verify->marked = true;
}

void verify_stop_at(struct soft_cpu *cpu, const struct insn *insn) {
    cpu->insn = insn;
    cpu->verify->stop = VERIFY_ONCE;
    raise_exit(cpu);
}
