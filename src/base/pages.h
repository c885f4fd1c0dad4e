/*
 * Large tables straight from the host: zeroed, and taken as they are touched,
 * the first 2 MiB in small pages, so that a table of which little is used
 * takes little; the rest in huge ones, where the host has them. A processor
 * finds such a page's address in its own cache, where small ones would have
 * it walk tables, twice over if the host is a guest itself.
 */
#ifndef LODGE_BASE_PAGES_H
#define LODGE_BASE_PAGES_H

#include <stddef.h>

/* NULL: no room. */
void *pages_take(size_t size);
/* NULL: does nothing. size as it was taken. */
void pages_give_back(void *at, size_t size);

#endif
