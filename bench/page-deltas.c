/*
 * What a page costs a move that has been sent before and was written to since
 * (machine/migration_pages.h): bytes on the way, and this processor's time, with
 * the table of earlier contents and without. Memory of random bytes, which zstd
 * alone makes nothing of, and of a text's kind, of which it does.
 *
 * usage: page-deltas
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "machine/migration_pages.h"
#include "memory/memory.h"

/* The packer keeps as many, and more. */
enum { PAGES = 8192 };

static uint64_t state = 1;

static uint64_t next_random(void) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void fill(uint8_t *page, bool text) {
    for (size_t i = 0; i < PAGE_SIZE; i += 8) {
        uint64_t word =
            text ? 0x3020303020207830 ^ (next_random() & 0x0707070707070707) : next_random();
        memcpy(page + i, &word, sizeof word);
    }
}

/* So many bytes in a row. */
static void change(uint8_t *page, size_t bytes) {
    size_t at = next_random() % (PAGE_SIZE - bytes + 1);
    for (size_t i = 0; i < bytes; i++)
        page[at + i] ^= (uint8_t)(1 + next_random() % 255);
}

static double processor_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* All pages; bytes a page. `again`: they are kept, so that the next time differences go. */
static double pack(struct page_packer *packer, const uint8_t *memory, bool again) {
    size_t all = 0, length;
    for (uint64_t i = 0; i < PAGES; i++) {
        page_packer_add(packer, i << PAGE_SHIFT, memory + (i << PAGE_SHIFT), again);
        if (page_packer_count(packer) == PAGES_MAX || i + 1 == PAGES) {
            page_packer_take(packer, &length);
            all += length;
        }
    }
    return (double)all / PAGES;
}

static void measure(bool text, size_t bytes, bool deltas) {
    struct page_packer *packer;
    uint8_t *memory = malloc((size_t)PAGES << PAGE_SHIFT);
    if (memory == NULL || page_packer_create(true, &packer, NULL) < 0)
        exit(1);
    for (size_t i = 0; i < PAGES; i++)
        fill(memory + (i << PAGE_SHIFT), text);
    pack(packer, memory, deltas);
    for (size_t i = 0; i < PAGES; i++)
        change(memory + (i << PAGE_SHIFT), bytes);
    double begun = processor_us();
    double size = pack(packer, memory, deltas);
    printf("%-6s  %4zu bytes changed  %-13s %6.0f bytes, %5.1f us a page\n",
           text ? "text" : "random", bytes, deltas ? "differences" : "zstd alone", size,
           (processor_us() - begun) / PAGES);
    page_packer_destroy(packer);
    free(memory);
}

int main(void) {
    static const size_t changed[] = {8, 64, 512, 4096};
    for (int text = 0; text < 2; text++)
        for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++)
            for (int deltas = 0; deltas < 2; deltas++)
                measure(text, changed[i], deltas);
    return 0;
}
