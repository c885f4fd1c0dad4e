#include "base/pages.h"

#include <stdint.h>
#include <sys/mman.h>

#include "base/bytes.h"

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, SMALL = HUGE_PAGE };

static void *map(size_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

void *pages_take(size_t size) {
    size = round_up(size, PAGE);
    if (size <= SMALL)
        return map(size);
    uint8_t *all = map(size + HUGE_PAGE);
    if (all == NULL)
        return NULL;
    size_t before = (size_t)(-(uintptr_t)all & (HUGE_PAGE - 1));
    if (before != 0)
        munmap(all, before);
    munmap(all + before + size, HUGE_PAGE - before);
    madvise(all + before + SMALL, size - SMALL, MADV_HUGEPAGE);
    return all + before;
}

void pages_give_back(void *at, size_t size) {
    if (at != NULL)
        munmap(at, round_up(size, PAGE));
}
