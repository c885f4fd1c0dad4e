/*
 * The I/O port space of a VM (64 Ki ports). Ranges come and go like I/O
 * regions; of those that hold an access whole the latest wins. An access that
 * no range holds whole is split into bytes. Nobody there: reads answer
 * all-ones, writes go nowhere.
 *
 * port_read and port_write: any vCPU thread, no lock held on the call.
 */
#ifndef LODGE_MEMORY_PORTS_H
#define LODGE_MEMORY_PORTS_H

#include "memory/memory.h"

struct ports;
struct port_range;

int ports_create(struct ports **ports, struct error *err);
void ports_destroy(struct ports *ports);

int ports_add(struct ports *ports, const char *name, uint16_t base, unsigned count,
              const struct io_ops *ops, void *context, struct port_range **range,
              struct error *err);
void ports_move(struct port_range *range, uint16_t base, bool enabled);
void ports_remove(struct port_range *range);

/* size is 1, 2 or 4. */
uint32_t port_read(struct ports *ports, uint16_t port, unsigned size);
void port_write(struct ports *ports, uint16_t port, uint32_t value, unsigned size);

#endif
