/*
 * What goes over a migration's connection (docs/migration.md): a preamble by
 * the side that connects, then frames, each numbered and with a sum.
 *
 * A stream is one thread's at a time. What comes in is not trusted.
 */
#ifndef LODGE_MACHINE_MIGRATION_STREAM_H
#define LODGE_MACHINE_MIGRATION_STREAM_H

#include <jansson.h>

#include "machine/migration_tunnel.h"

enum { MIGRATION_FORMAT = 3, STREAM_BODY_MAX = (1 << 20) + (8 << 10) };

enum stream_type {
    STREAM_HELLO = 1,  /* JSON: what wants to come */
    STREAM_WELCOME,    /* JSON: it may */
    STREAM_REFUSED,    /* JSON: {"why"}; the end */
    STREAM_PAGES,      /* migration_pages.h */
    STREAM_ROUND,      /* empty: all before it is wanted done */
    STREAM_ROUND_DONE, /* empty: it is */
    STREAM_STATE,      /* a piece of machine_save_state's bytes */
    STREAM_HANDOVER,   /* JSON: the source has let go of everything */
    STREAM_READY,      /* empty: the target has got everything */
    STREAM_GO,         /* empty: the VM is the target's */
    STREAM_RUNNING,    /* empty: it runs there */
    STREAM_QUERY,      /* JSON: {"name", "id"}: what has become of that one? */
    STREAM_ANSWER,     /* JSON: {"runs"}; to RESUME {"ended"}, too */
    STREAM_MISSING,    /* page_set.h: pages that the source still has */
    STREAM_WANT,       /* their addresses, 64 bits each: somebody waits for them */
    STREAM_WHOLE,      /* JSON: {"ended"}: the target needs nothing more */
    STREAM_RESUME,     /* JSON: {"name", "id"}: the connection broke after the switch */
    STREAM_IMAGE,      /* JSON: {"wanted"}: the VM's image */
    STREAM_FILE,       /* of it: migration_extents.h */
    STREAM_DISK,       /* of the VM's disks: migration_extents.h */
    STREAM_SNAPSHOTS,  /* empty: the VM's snapshots may come, as files */
    STREAM_LAYER,      /* JSON: of a disk that has snapshots: migration_layers.h */
    STREAM_TYPES,
};

struct stream {
    struct tunnel *tunnel;
    uint32_t sent, received; /* frames */
    uint64_t bytes;          /* sent, with headers */
    uint64_t limit;          /* bytes a second; 0: none */
    uint64_t due_ns;         /* when the next may go, by the limit; host time */
    uint8_t *body;           /* of the frame received last */
    size_t length;
};

/* The tunnel becomes the stream's. -ENOMEM: it has been closed. */
int stream_create(struct tunnel *tunnel, struct stream *stream, struct error *err);
void stream_close(struct stream *stream); /* a zeroed one is fine */

/* The preamble. -EPROTO: no lodge, or of another format. */
int stream_send_preamble(struct stream *stream, struct error *err);
int stream_receive_preamble(struct stream *stream, struct error *err);

/* Waits for its turn by the limit first. */
int stream_send(struct stream *stream, enum stream_type type, const void *body, size_t length,
                struct error *err);
/* message: becomes the stream's. */
int stream_send_json(struct stream *stream, enum stream_type type, json_t *message,
                     struct error *err);

/* The next frame, into body and length. -EPROTO: damaged, out of order, too long, unknown. */
int stream_receive(struct stream *stream, enum stream_type *type, struct error *err);
/* One of that type, and no other. -EREMOTEIO: the other side has refused; its words. */
int stream_expect(struct stream *stream, enum stream_type type, struct error *err);
/* A frame REFUSED has been received: -EREMOTEIO, its words. */
int stream_refused(struct stream *stream, struct error *err);
/* The body as a JSON object, the caller's. */
int stream_json(const struct stream *stream, json_t **message, struct error *err);

#endif
