/*
 * Memory that is sent while the guest writes to it: what there is, then what
 * has been written since, and so on (memory_dirty_log). One thread's.
 */
#ifndef LODGE_MACHINE_MIGRATION_MEMORY_H
#define LODGE_MACHINE_MIGRATION_MEMORY_H

#include "machine/migration_pages.h"
#include "machine/migration_stream.h"
#include "memory/memory.h"

struct memory_sender;

/* Both stay the caller's. */
int memory_sender_create(struct memory *memory, struct stream *stream, bool compress,
                         struct memory_sender **sender, struct error *err);
void memory_sender_destroy(struct memory_sender *sender); /* NULL is fine */

/* All that may hold something is to be sent, but pluggable memory. */
int memory_sender_begin(struct memory_sender *sender, struct error *err);
/* What was written since the last look is to be sent, too. */
void memory_sender_look(struct memory_sender *sender);
uint64_t memory_sender_left(const struct memory_sender *sender); /* bytes */

/* Sends it. progress hears what is left now and then; false: -ECANCELED. */
typedef bool memory_sender_progress(void *context, uint64_t left);
int memory_sender_send(struct memory_sender *sender, memory_sender_progress *progress,
                       void *context, struct error *err);
/* Pluggable memory, all at once: the other side has it once it has the state of what plugs it. The
 * guest stands. */
int memory_sender_send_plugged(struct memory_sender *sender, struct error *err);

/* ---- Post-copy: the guest runs there, and never again here ---- */

/* Tells which pages (pluggable ones, too) the other side does not have, and keeps them. */
int memory_sender_leave(struct memory_sender *sender, struct error *err);
/* Sends what a frame WANT asks for, as far as it has not been sent. -EPROTO. */
enum { WANT_MAX = 512 }; /* pages in a frame */
int memory_sender_give(struct memory_sender *sender, const uint8_t *body, size_t length,
                       struct error *err);
/* Sends some more, if there is any. */
int memory_sender_push(struct memory_sender *sender, struct error *err);
/* The connection was made anew: what is missing is what the other side says, in frames MISSING. */
void memory_sender_forget(struct memory_sender *sender);
int memory_sender_hear(struct memory_sender *sender, const uint8_t *body, size_t length,
                       struct error *err);

void memory_sender_count(const struct memory_sender *sender, struct page_counts *counts);

#endif
