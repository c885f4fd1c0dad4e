/*
 * Memory by the control socket: `query-memory`, `set-memory` and the event
 * `MEMORY_CHANGE` (docs/control.md). The loop's thread.
 */
#ifndef LODGE_MACHINE_VM_MEMORY_H
#define LODGE_MACHINE_VM_MEMORY_H

#include "machine/control.h"

struct machine;
struct vm_memory;

/* tell: sends an event, whose data becomes its own. -ENOMEM and others of timers. */
int vm_memory_create(struct machine *machine,
                     void (*tell)(void *context, const char *event, json_t *data), void *context,
                     struct vm_memory **memory, struct error *err);
void vm_memory_destroy(struct vm_memory *memory);

/* Answers when the guest has sent its statistics, or soon without. */
void vm_memory_query(struct vm_memory *memory, struct control_call *call);
void vm_memory_set(struct vm_memory *memory, struct control_call *call, const json_t *arguments);

#endif
