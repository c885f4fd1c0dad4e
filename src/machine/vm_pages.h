/*
 * Paging a guest out to a file and back in by the control socket
 * (docs/control.md): `memory-page-out`, `memory-page-in` and the event
 * `PAGE_PROGRESS`. The loop's thread; writing is a worker's.
 */
#ifndef LODGE_MACHINE_VM_PAGES_H
#define LODGE_MACHINE_VM_PAGES_H

#include "machine/control.h"

struct machine;
struct vm_pages;

/* tell: sends an event, whose data becomes its own. */
int vm_pages_create(struct machine *machine,
                    void (*tell)(void *context, const char *event, json_t *data), void *context,
                    struct vm_pages **pages, struct error *err);
/* The loop has stopped, no vCPU runs; memory is lost (memory/missing.h). NULL is fine. */
void vm_pages_destroy(struct vm_pages *pages);

/* Where the file is to be, from the next time on; borrowed. /var/tmp unless told. */
void vm_pages_place(struct vm_pages *pages, const char *directory);

/* Arguments: keep, bytes that may stay in memory. Answers when all is out that does not change. */
void vm_pages_out(struct vm_pages *pages, struct control_call *call, const json_t *arguments);
/* Answers when all is back, or not to be had. */
void vm_pages_in(struct vm_pages *pages, struct control_call *call);

/* Memory is on its way out: nobody may rely on what is there now. */
bool vm_pages_busy(const struct vm_pages *pages);

/* One line about why pages do not come; empty: they do. */
void vm_pages_why(const struct vm_pages *pages, char *text, size_t size);

#endif
