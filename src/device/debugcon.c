#include "device/debugcon.h"

#include <ctype.h>

#include "base/log.h"

enum { PRESENT = 0xe9, LINE_MAX_LENGTH = 200 };

struct debugcon {
    struct device device;
    struct port_range *ports;
    char line[LINE_MAX_LENGTH + 1];
    unsigned length;
};

static void flush(struct debugcon *debugcon) {
    if (debugcon->length > 0)
        log_debug("firmware: %.*s", (int)debugcon->length, debugcon->line);
    debugcon->length = 0;
}

static uint64_t debugcon_read(void *context, uint64_t offset, unsigned size) {
    (void)context, (void)offset, (void)size;
    /* Nobody who would see the text: then firmware need not write it. */
    return log_get_level() >= LOG_DEBUG ? PRESENT : 0xff;
}

static void debugcon_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct debugcon *debugcon = context;
    char character = (char)value;
    (void)offset, (void)size;
    lock_take(&debugcon->device.lock);
    if (character == '\n' || debugcon->length == LINE_MAX_LENGTH)
        flush(debugcon);
    if (isprint((unsigned char)character))
        debugcon->line[debugcon->length++] = character;
    lock_release(&debugcon->device.lock);
}

static const struct io_ops debugcon_ops = {debugcon_read, debugcon_write};

static int debugcon_init(struct device *device, const void *config, struct error *err) {
    struct debugcon *debugcon = (struct debugcon *)device;
    (void)config;
    return ports_add(device->platform->ports, device->name, DEBUGCON_PORT, 1, &debugcon_ops,
                     debugcon, &debugcon->ports, err);
}

static void debugcon_destroy(struct device *device) {
    struct debugcon *debugcon = (struct debugcon *)device;
    flush(debugcon);
    ports_remove(debugcon->ports);
}

const struct device_class debugcon_class = {
    .name = "debugcon",
    .size = sizeof(struct debugcon),
    .init = debugcon_init,
    .destroy = debugcon_destroy,
};
