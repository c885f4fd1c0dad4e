/*
 * A set of pages of a machine's RAM, and how one side of a move tells it to
 * the other: frames MISSING (machine/migration_stream.h), each an address (64
 * bits) and a bit for each page from there on, the first in the lowest bit of
 * the first byte. One thread's.
 */
#ifndef LODGE_MACHINE_PAGE_SET_H
#define LODGE_MACHINE_PAGE_SET_H

#include "machine/migration_stream.h"
#include "memory/memory.h"

struct page_set;

/* Empty. memory stays the caller's. -ENOMEM. */
int page_set_create(struct memory *memory, struct page_set **set);
void page_set_destroy(struct page_set *set); /* NULL is fine */

/* Regions, as memory_ram_region has them. NULL: no more. */
const struct memory_ram *page_set_region(const struct page_set *set, unsigned n);
/* Adds pages of region n: bit i of bits is its page i. */
void page_set_add_bits(struct page_set *set, unsigned n, const uint64_t *bits);

uint64_t page_set_count(const struct page_set *set);
bool page_set_has(const struct page_set *set, uint64_t gpa);
/* False: it was there already, or is no RAM. */
bool page_set_add(struct page_set *set, uint64_t gpa);
/* True: it was there, and is no more. */
bool page_set_take(struct page_set *set, uint64_t gpa);
void page_set_clear(struct page_set *set);

/* Where a walk is; zeroed: at the beginning. */
struct page_cursor {
    unsigned region;
    uint64_t page;
};
/* The next page of the set from there on, which the cursor is at then; false: none. */
bool page_set_next(const struct page_set *set, struct page_cursor *at, uint64_t *gpa);
/* At the page; false: no RAM. */
bool page_set_find(const struct page_set *set, uint64_t gpa, struct page_cursor *at);
uint8_t *page_set_host(const struct page_set *set, const struct page_cursor *at);

/* As frames. */
int page_set_send(const struct page_set *set, struct stream *stream, struct error *err);
/* A frame, which is not trusted: adds what it has. -EPROTO: not all of it is RAM, or some is in the
 * set already. */
int page_set_receive(struct page_set *set, const uint8_t *body, size_t length, struct error *err);

#endif
