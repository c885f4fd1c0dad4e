/*
 * Pages of guest memory on their way: packed at the source, unpacked at the
 * target. A page of zeros is its address; one that has been sent before may
 * be the difference; what is left goes through zstd where that pays.
 *
 * A body: how many pages (32 bits), the length of what follows once it is unpacked or 0: it is as
 * it is (32 bits); for each page its address with its kind in the lowest bits (64 bits); then the
 * bytes of those that have some. Little-endian.
 */
#ifndef LODGE_MACHINE_MIGRATION_PAGES_H
#define LODGE_MACHINE_MIGRATION_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { PAGES_MAX = 256 }; /* in a body */

struct page_packer;

int page_packer_create(bool compress, struct page_packer **packer, struct error *err);
void page_packer_destroy(struct page_packer *packer); /* NULL is fine */

/*
 * Adds a page, copied before it is looked at: guests write meanwhile. again: it may come once more,
 * so that the difference is worth keeping. False: there was no need to, the target has it like
 * that. Room: page_packer_count is below PAGES_MAX.
 */
bool page_packer_add(struct page_packer *packer, uint64_t gpa, const uint8_t *page, bool again);
unsigned page_packer_count(const struct page_packer *packer);
/* What is packed, valid until the next page is added; the packer is empty then. */
const uint8_t *page_packer_take(struct page_packer *packer, size_t *length);

/* What was told of pages, for the report. */
struct page_counts {
    uint64_t pages, zeros, deltas, unchanged;
    uint64_t bytes, packed; /* of those with contents: before, after */
};
void page_packer_count_all(const struct page_packer *packer, struct page_counts *counts);

struct page_unpacker;
int page_unpacker_create(struct page_unpacker **unpacker, struct error *err);
void page_unpacker_destroy(struct page_unpacker *unpacker); /* NULL is fine */

enum page_kind { PAGE_RAW, PAGE_ZERO, PAGE_DELTA, PAGE_KINDS };
/* bytes: a page's; NULL: of zeros. A delta is to be XORed. False: there is no such page. */
typedef bool page_sink(void *context, uint64_t gpa, enum page_kind kind, const uint8_t *bytes);
/* A body, which is not trusted. -EPROTO; pages before what is wrong have been told. */
int page_unpack(struct page_unpacker *unpacker, const uint8_t *body, size_t length, page_sink *sink,
                void *context, struct error *err);

#endif
