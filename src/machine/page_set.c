#include "machine/page_set.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* A frame's address, and what of a region goes into one. */
enum { HEAD = 8, FRAME_PAGES = 8 << 20 };

struct region {
    struct memory_ram ram;
    uint64_t *bits;
};

struct page_set {
    struct region *regions;
    unsigned count;
    uint64_t pages;
};

static uint64_t pages_of(const struct region *region) {
    return region->ram.size >> PAGE_SHIFT;
}

static size_t words_of(const struct region *region) {
    return (size_t)(pages_of(region) + 63) / 64;
}

static int add_region(struct page_set *set, const struct memory_ram *ram) {
    struct region *grown = realloc(set->regions, (set->count + 1) * sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    set->regions = grown;
    struct region *region = &grown[set->count++];
    *region = (struct region){.ram = *ram};
    region->bits = calloc(words_of(region), sizeof *region->bits);
    return region->bits != NULL ? 0 : -ENOMEM;
}

int page_set_create(struct memory *memory, struct page_set **set) {
    struct page_set *made = calloc(1, sizeof *made);
    struct memory_ram ram;
    int result = made == NULL ? -ENOMEM : 0;
    for (unsigned i = 0; result == 0 && memory_ram_region(memory, i, &ram); i++)
        result = add_region(made, &ram);
    if (result < 0)
        page_set_destroy(made);
    else
        *set = made;
    return result;
}

void page_set_destroy(struct page_set *set) {
    if (set == NULL)
        return;
    for (unsigned i = 0; i < set->count; i++)
        free(set->regions[i].bits);
    free(set->regions);
    free(set);
}

/* ---- Pages ---- */

const struct memory_ram *page_set_region(const struct page_set *set, unsigned n) {
    return n < set->count ? &set->regions[n].ram : NULL;
}

void page_set_add_bits(struct page_set *set, unsigned n, const uint64_t *bits) {
    struct region *region = &set->regions[n];
    for (size_t i = 0; i < words_of(region); i++) {
        set->pages += (unsigned)__builtin_popcountll(bits[i] & ~region->bits[i]);
        region->bits[i] |= bits[i];
    }
}

uint64_t page_set_count(const struct page_set *set) {
    return set->pages;
}

bool page_set_find(const struct page_set *set, uint64_t gpa, struct page_cursor *at) {
    for (unsigned i = 0; i < set->count; i++)
        if (gpa - set->regions[i].ram.gpa < set->regions[i].ram.size) {
            *at = (struct page_cursor){i, (gpa - set->regions[i].ram.gpa) >> PAGE_SHIFT};
            return true;
        }
    return false;
}

uint8_t *page_set_host(const struct page_set *set, const struct page_cursor *at) {
    return set->regions[at->region].ram.host + (at->page << PAGE_SHIFT);
}

static bool has(const struct page_set *set, const struct page_cursor *at) {
    return set->regions[at->region].bits[at->page / 64] >> at->page % 64 & 1;
}

bool page_set_has(const struct page_set *set, uint64_t gpa) {
    struct page_cursor at;
    return page_set_find(set, gpa, &at) && has(set, &at);
}

bool page_set_add(struct page_set *set, uint64_t gpa) {
    struct page_cursor at;
    if (!page_set_find(set, gpa, &at) || has(set, &at))
        return false;
    set->regions[at.region].bits[at.page / 64] |= UINT64_C(1) << at.page % 64;
    set->pages++;
    return true;
}

bool page_set_take(struct page_set *set, uint64_t gpa) {
    struct page_cursor at;
    if (!page_set_find(set, gpa, &at) || !has(set, &at))
        return false;
    set->regions[at.region].bits[at.page / 64] &= ~(UINT64_C(1) << at.page % 64);
    set->pages--;
    return true;
}

void page_set_clear(struct page_set *set) {
    for (unsigned i = 0; i < set->count; i++)
        memset(set->regions[i].bits, 0, words_of(&set->regions[i]) * sizeof(uint64_t));
    set->pages = 0;
}

bool page_set_next(const struct page_set *set, struct page_cursor *at, uint64_t *gpa) {
    for (; at->region < set->count; *at = (struct page_cursor){at->region + 1, 0}) {
        const struct region *region = &set->regions[at->region];
        for (size_t word = at->page / 64; word < words_of(region); word++) {
            uint64_t bits = region->bits[word];
            if (word == at->page / 64)
                bits &= UINT64_MAX << at->page % 64;
            if (bits == 0)
                continue;
            at->page = word * 64 + (unsigned)__builtin_ctzll(bits);
            *gpa = region->ram.gpa + (at->page << PAGE_SHIFT);
            return true;
        }
    }
    return false;
}

/* ---- Frames ---- */

static int send_piece(const struct region *region, uint64_t first, struct stream *stream,
                      uint8_t *body, struct error *err) {
    uint64_t pages = pages_of(region) - first;
    size_t length = (size_t)((pages < FRAME_PAGES ? pages : FRAME_PAGES) + 7) / 8;
    bool any = false;
    store_le64(body, region->ram.gpa + (first << PAGE_SHIFT));
    for (size_t i = 0; i < length; i++) {
        body[HEAD + i] = (uint8_t)(region->bits[(first / 8 + i) / 8] >> (i % 8 * 8));
        any |= body[HEAD + i] != 0;
    }
    return any ? stream_send(stream, STREAM_MISSING, body, HEAD + length, err) : 0;
}

int page_set_send(const struct page_set *set, struct stream *stream, struct error *err) {
    uint8_t *body = malloc(HEAD + FRAME_PAGES / 8);
    int result = 0;
    if (body == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < set->count && result == 0; i++)
        for (uint64_t first = 0; first < pages_of(&set->regions[i]) && result == 0;
             first += FRAME_PAGES)
            result = send_piece(&set->regions[i], first, stream, body, err);
    free(body);
    return result;
}

int page_set_receive(struct page_set *set, const uint8_t *body, size_t length, struct error *err) {
    uint64_t gpa = length >= HEAD ? load_le64(body) : 1;
    bool good = gpa % PAGE_SIZE == 0;
    for (size_t i = 0; good && i < (length - HEAD) * 8; i++)
        if (body[HEAD + i / 8] >> i % 8 & 1)
            good = page_set_add(set, gpa + i * PAGE_SIZE);
    return good ? 0 : error_set(err, -EPROTO, "which memory is missing is not as lodge tells it");
}
