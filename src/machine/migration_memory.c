#include "machine/migration_memory.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "machine/page_set.h"

/* After the switch: so many pages a frame, so that what is wanted waits for no more. */
enum { PUSH_PAGES = 16 };

struct memory_sender {
    struct memory *memory;
    struct stream *stream;
    struct page_packer *packer;
    struct page_packer *late; /* after the switch: knows of no earlier contents; NULL: before */
    struct dirty_log *log;
    struct page_set *todo;
    uint64_t *fetched; /* of one region; bit n: page n */
    struct page_cursor at;
    unsigned round;
    bool compress;
};

static int make_fetched(struct memory_sender *sender) {
    const struct memory_ram *ram;
    uint64_t most = 0;
    for (unsigned i = 0; (ram = page_set_region(sender->todo, i)) != NULL; i++)
        most = ram->size > most ? ram->size : most;
    sender->fetched = calloc((size_t)(most >> PAGE_SHIFT) / 64 + 1, sizeof *sender->fetched);
    return sender->fetched != NULL ? 0 : -ENOMEM;
}

int memory_sender_create(struct memory *memory, struct stream *stream, bool compress,
                         struct memory_sender **sender, struct error *err) {
    struct memory_sender *made = calloc(1, sizeof *made);
    int result = made == NULL ? -ENOMEM : page_packer_create(compress, &made->packer, NULL);
    if (result == 0)
        result = page_set_create(memory, &made->todo);
    if (result == 0)
        result = make_fetched(made);
    if (result == 0)
        result = memory_dirty_log_open(memory, &made->log);
    if (result < 0) {
        memory_sender_destroy(made);
        return error_set(err, result, "out of memory");
    }
    made->memory = memory;
    made->stream = stream;
    made->compress = compress;
    *sender = made;
    return 0;
}

void memory_sender_destroy(struct memory_sender *sender) {
    if (sender == NULL)
        return;
    if (sender->log != NULL)
        memory_dirty_log_close(sender->log);
    page_set_destroy(sender->todo);
    page_packer_destroy(sender->packer);
    page_packer_destroy(sender->late);
    free(sender->fetched);
    free(sender);
}

/* ---- What is to be sent ---- */

static void add_written(struct memory_sender *sender, unsigned n, const struct memory_ram *ram) {
    memory_dirty_log_fetch(sender->log, ram->gpa, ram->size, sender->fetched);
    page_set_add_bits(sender->todo, n, sender->fetched);
}

static void add_touched(struct memory_sender *sender, unsigned n, const struct memory_ram *ram) {
    memory_find_touched(sender->memory, ram->gpa, ram->size, sender->fetched);
    page_set_add_bits(sender->todo, n, sender->fetched);
}

/* What is written from here on is seen by the next look. */
int memory_sender_begin(struct memory_sender *sender, struct error *err) {
    const struct memory_ram *ram;
    for (unsigned i = 0; (ram = page_set_region(sender->todo, i)) != NULL; i++) {
        if (ram->pluggable)
            continue;
        memory_dirty_log_fetch(sender->log, ram->gpa, ram->size, sender->fetched);
        add_touched(sender, i, ram);
    }
    return 0;
}

void memory_sender_look(struct memory_sender *sender) {
    const struct memory_ram *ram;
    sender->round++;
    for (unsigned i = 0; (ram = page_set_region(sender->todo, i)) != NULL; i++)
        if (!ram->pluggable)
            add_written(sender, i, ram);
}

static void add_plugged(struct memory_sender *sender) {
    const struct memory_ram *ram;
    for (unsigned i = 0; (ram = page_set_region(sender->todo, i)) != NULL; i++)
        if (ram->pluggable)
            add_touched(sender, i, ram);
}

uint64_t memory_sender_left(const struct memory_sender *sender) {
    return page_set_count(sender->todo) << PAGE_SHIFT;
}

/* ---- Sending ---- */

static int flush(struct memory_sender *sender, struct page_packer *packer, struct error *err) {
    size_t length;
    if (page_packer_count(packer) == 0)
        return 0;
    const uint8_t *body = page_packer_take(packer, &length);
    return stream_send(sender->stream, STREAM_PAGES, body, length, err);
}

static void pack(struct memory_sender *sender, struct page_packer *packer, uint64_t gpa,
                 const struct page_cursor *at, bool again) {
    page_set_take(sender->todo, gpa);
    page_packer_add(packer, gpa, page_set_host(sender->todo, at), again);
}

int memory_sender_send(struct memory_sender *sender, memory_sender_progress *progress,
                       void *context, struct error *err) {
    struct page_cursor at = {0};
    uint64_t gpa;
    int result = 0;
    while (result == 0 && page_set_next(sender->todo, &at, &gpa)) {
        pack(sender, sender->packer, gpa, &at, sender->round > 0);
        if (page_packer_count(sender->packer) < PAGES_MAX)
            continue;
        result = flush(sender, sender->packer, err);
        if (result == 0 && progress != NULL && !progress(context, memory_sender_left(sender)))
            result = error_set(err, -ECANCELED, "cancelled");
    }
    return result == 0 ? flush(sender, sender->packer, err) : result;
}

int memory_sender_send_plugged(struct memory_sender *sender, struct error *err) {
    add_plugged(sender);
    return memory_sender_send(sender, NULL, NULL, err);
}

/* ---- After the switch ---- */

int memory_sender_leave(struct memory_sender *sender, struct error *err) {
    add_plugged(sender);
    int result = page_packer_create(sender->compress, &sender->late, err);
    return result == 0 ? page_set_send(sender->todo, sender->stream, err) : result;
}

void memory_sender_forget(struct memory_sender *sender) {
    page_set_clear(sender->todo);
}

int memory_sender_hear(struct memory_sender *sender, const uint8_t *body, size_t length,
                       struct error *err) {
    return page_set_receive(sender->todo, body, length, err);
}

/* What follows on what was wanted comes next. */
int memory_sender_give(struct memory_sender *sender, const uint8_t *body, size_t length,
                       struct error *err) {
    int result = 0;
    if (length == 0 || length % 8 != 0 || length / 8 > WANT_MAX)
        return error_set(err, -EPROTO, "what the other side wants is not as lodge says it");
    for (size_t i = 0; i < length && result == 0; i += 8) {
        uint64_t gpa = load_le64(body + i);
        if (gpa % PAGE_SIZE != 0 || !page_set_find(sender->todo, gpa, &sender->at))
            return error_set(err, -EPROTO, "the other side wants memory that there is not");
        if (!page_set_has(sender->todo, gpa))
            continue; /* it is on its way */
        pack(sender, sender->late, gpa, &sender->at, false);
        if (page_packer_count(sender->late) == PUSH_PAGES)
            result = flush(sender, sender->late, err);
    }
    return result == 0 ? flush(sender, sender->late, err) : result;
}

int memory_sender_push(struct memory_sender *sender, struct error *err) {
    uint64_t gpa;
    for (unsigned i = 0; i < PUSH_PAGES && memory_sender_left(sender) > 0; i++) {
        if (!page_set_next(sender->todo, &sender->at, &gpa)) {
            sender->at = (struct page_cursor){0};
            page_set_next(sender->todo, &sender->at, &gpa);
        }
        pack(sender, sender->late, gpa, &sender->at, false);
    }
    return flush(sender, sender->late, err);
}

void memory_sender_count(const struct memory_sender *sender, struct page_counts *counts) {
    struct page_counts late = {0};
    page_packer_count_all(sender->packer, counts);
    if (sender->late != NULL)
        page_packer_count_all(sender->late, &late);
    counts->pages += late.pages;
    counts->zeros += late.zeros;
    counts->bytes += late.bytes;
    counts->packed += late.packed;
}
