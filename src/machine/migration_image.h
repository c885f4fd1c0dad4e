/*
 * The image of a VM that boots one (image/overlay.h), which nobody changes: the target has the same
 * or gets it, before the VM comes. After HELLO, which has "image".
 */
#ifndef LODGE_MACHINE_MIGRATION_IMAGE_H
#define LODGE_MACHINE_MIGRATION_IMAGE_H

#include <jansson.h>

#include "machine/migration_memory.h"
#include "machine/migration_stream.h"

/* ---- The side that a VM leaves ---- */

/* What HELLO says of the image in a VM's directory; the caller's. */
int migration_image_describe(const char *directory, json_t **about, struct error *err);
/* What the target asks for. progress: as memory_sender_send's. */
int migration_image_send(const char *directory, struct stream *stream, bool compress,
                         memory_sender_progress *progress, void *context, struct error *err);

/* ---- The side that it comes to ---- */

/* Puts it into the VM's directory. about: HELLO's "image", which is not trusted. others: bytes that
 * come there besides. */
int migration_image_receive(const json_t *about, uint64_t others, struct stream *stream,
                            const char *directory, struct error *err);

#endif
