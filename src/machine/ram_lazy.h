/*
 * RAM that goes on from a snapshot whose memory is compressed (ram_packed.h): nothing is read
 * before it is touched (memory/missing.h); then the chunk that the page is in comes as a whole.
 * Pages that layers above have uncompressed come from there, some at a time.
 *
 * A page that cannot be had ends the process (SIGBUS), with a line on standard error: as one of a
 * file that is mapped.
 */
#ifndef LODGE_MACHINE_RAM_LAZY_H
#define LODGE_MACHINE_RAM_LAZY_H

#include "machine/ram_image.h"

struct ram_lazy;

/*
 * The chain becomes its own. `kernel`: KVM's guest touches it. Control thread; no vCPU or device
 * has used memory. Errors as memory_missing_begin, then nothing has changed, and the chain is the
 * caller's; -EINVAL: it is damaged.
 */
int ram_lazy_begin(struct ram_chain *chain, struct memory *memory, bool kernel,
                   struct ram_lazy **lazy, struct error *err);
void ram_lazy_destroy(struct ram_lazy *lazy); /* after its memory; NULL is fine */

#endif
