/* The I/O port space: a list of ranges, latest first, under a lock. See ports.h. */
#include "memory/ports.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/lock.h"

enum { PORT_COUNT = 0x10000, PORT_NAME = 32 };

struct port_range {
    struct ports *ports;
    struct port_range *next; /* latest first */
    char name[PORT_NAME];
    uint32_t base, count;
    bool enabled;
    struct io_ops ops;
    void *context;
};

struct ports {
    struct lock lock;
    struct port_range *ranges;
};

int ports_create(struct ports **ports, struct error *err) {
    struct ports *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "cannot make the port space");
    lock_init(&made->lock, LOCK_MEMORY, "ports");
    *ports = made;
    return 0;
}

void ports_destroy(struct ports *ports) {
    if (ports == NULL)
        return;
    for (struct port_range *range = ports->ranges, *next; range != NULL; range = next) {
        next = range->next;
        free(range);
    }
    lock_destroy(&ports->lock);
    free(ports);
}

int ports_add(struct ports *ports, const char *name, uint16_t base, unsigned count,
              const struct io_ops *ops, void *context, struct port_range **range,
              struct error *err) {
    if (count == 0 || !range_within(base, count, PORT_COUNT))
        return error_set(err, -EINVAL, "ports %s: bad range %#x+%u", name, base, count);
    struct port_range *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set_errno(err, -ENOMEM, "ports %s", name);
    *made = (struct port_range){.ports = ports,
                                .base = base,
                                .count = count,
                                .enabled = true,
                                .ops = *ops,
                                .context = context};
    snprintf(made->name, sizeof made->name, "%s", name);
    lock_take(&ports->lock);
    made->next = ports->ranges;
    ports->ranges = made;
    lock_release(&ports->lock);
    if (range != NULL)
        *range = made;
    return 0;
}

/* A guest may program a BAR to the end of the space; what lies past it answers nothing. */
void ports_move(struct port_range *range, uint16_t base, bool enabled) {
    lock_take(&range->ports->lock);
    range->base = base;
    range->enabled = enabled;
    lock_release(&range->ports->lock);
}

void ports_remove(struct port_range *range) {
    if (range == NULL)
        return;
    struct ports *ports = range->ports;
    lock_take(&ports->lock);
    struct port_range **at = &ports->ranges;
    while (*at != range)
        at = &(*at)->next;
    *at = range->next;
    lock_release(&ports->lock);
    free(range);
}

static bool holds(const struct port_range *range, uint32_t port, unsigned size) {
    return range->enabled && port >= range->base &&
           range_within(port - range->base, size, range->count) &&
           range_within(port, size, PORT_COUNT);
}

/* The latest range that holds the whole access; copied, so that it is called without the lock. */
static bool find(struct ports *ports, uint32_t port, unsigned size, struct port_range *found) {
    lock_take(&ports->lock);
    const struct port_range *range = ports->ranges;
    while (range != NULL && !holds(range, port, size))
        range = range->next;
    if (range != NULL)
        *found = *range;
    lock_release(&ports->lock);
    return range != NULL;
}

uint32_t port_read(struct ports *ports, uint16_t port, unsigned size) {
    struct port_range range;
    if (find(ports, port, size, &range))
        return (uint32_t)(range.ops.read(range.context, port - range.base, size) &
                          bytes_mask(size));
    if (size <= 1)
        return 0xff;
    uint32_t value = 0;
    for (unsigned i = 0; i < size && i < 4; i++) {
        uint32_t byte = port + i < PORT_COUNT ? port_read(ports, (uint16_t)(port + i), 1) : 0xff;
        value |= byte << (8 * i);
    }
    return value;
}

void port_write(struct ports *ports, uint16_t port, uint32_t value, unsigned size) {
    struct port_range range;
    if (find(ports, port, size, &range)) {
        range.ops.write(range.context, port - range.base, value & bytes_mask(size), size);
        return;
    }
    for (unsigned i = 0; size > 1 && i < size && port + i < PORT_COUNT && i < 4; i++)
        port_write(ports, (uint16_t)(port + i), value >> (8 * i) & 0xff, 1);
}
