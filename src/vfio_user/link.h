/*
 * A client's connection to a server, made again whenever it breaks. See
 * client.h, whose inside this is.
 */
#ifndef LODGE_VFIO_USER_LINK_H
#define LODGE_VFIO_USER_LINK_H

#include "memory/dma.h"
#include "vfio_user/client.h"

enum { LINK_BARS = 6, LINK_CONFIG = 256 };

/* What the server's device is. */
struct link_shape {
    uint64_t bars[LINK_BARS]; /* sizes; 0: none */
    unsigned vectors;         /* of MSI-X */
    uint8_t config[LINK_CONFIG];
};

struct link;

/* Connects. The device is reset. -ENOENT and the like: nobody serves; -EPROTO: it speaks something
 * else; -ETIMEDOUT: it serves somebody else. */
int link_open(const char *path, struct memory *memory, struct link **link, struct link_shape *shape,
              struct error *err);
/* Begins: events are told, on the link's thread; the server's accesses to memory answered. */
struct link_events {
    void (*interrupt)(void *context, uint16_t vector);
    void (*full)(void *context); /* VU_LODGE_FULL */
    void *context;
};
int link_start(struct link *link, const struct dma_context *dma, const struct link_events *events,
               struct error *err);
void link_close(struct link *link); /* NULL is fine */

/* Any thread. All ones: the server did not answer. */
uint64_t link_read(struct link *link, uint32_t region, uint64_t offset, unsigned size);
void link_write(struct link *link, uint32_t region, uint64_t offset, uint64_t value, unsigned size);
/* The command register: the server learns of it, again with each connection. */
void link_command(struct link *link, uint16_t command);
void link_reset(struct link *link);
void link_count(struct link *link, struct vfio_user_counters *counters);

#endif
