#include "virtio/net_backup.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* Chains whose memory is asked for before there is a frame for them. */
enum { LOOK_AHEAD = 64 };

/* A chain that was popped. */
struct buffer {
    struct buffer *next;
    struct virtq_token token;
    uint32_t length;
    unsigned count;
    struct virtq_segment segments[];
};

struct net_arrival {
    struct net_arrival *next;
    struct net_frame *frame;
    struct buffer *buffers, *last; /* NULL: none yet */
    unsigned count;
};

/* ---- The list ---- */

void net_backup_add(struct net_backup *backup, struct net_frame *frame) {
    struct net_arrival *arrival = calloc(1, sizeof *arrival);
    if (arrival == NULL) {
        backup->counters.dropped++;
        free(frame);
        return;
    }
    arrival->frame = frame;
    if (backup->first == NULL)
        backup->first = arrival;
    else
        backup->last->next = arrival;
    backup->last = arrival;
    if (backup->unplaced == NULL)
        backup->unplaced = arrival;
    backup->frames++;
    backup->bytes += frame->length;
    backup->counters.frames++;
    if (backup->frames > backup->counters.most)
        backup->counters.most = backup->frames;
}

/* Frees what it is in; the chains are dealt with. */
static void free_buffers(struct net_arrival *arrival) {
    for (struct buffer *buffer = arrival->buffers, *next; buffer != NULL; buffer = next) {
        next = buffer->next;
        free(buffer);
    }
    arrival->buffers = arrival->last = NULL;
    arrival->count = 0;
}

static void free_arrival(struct net_backup *backup, struct net_arrival *arrival) {
    backup->frames--;
    backup->bytes -= arrival->frame->length;
    free_buffers(arrival);
    free(arrival->frame);
    free(arrival);
}

static void remove_first(struct net_backup *backup) {
    struct net_arrival *arrival = backup->first;
    backup->first = arrival->next;
    if (backup->unplaced == arrival)
        backup->unplaced = arrival->next;
    free_arrival(backup, arrival);
}

/* A frame that cannot be delivered; it has no buffers. */
static void drop(struct net_backup *backup, struct net_arrival *arrival) {
    struct net_arrival *before = NULL;
    for (struct net_arrival *at = backup->first; at != NULL && at != arrival; at = at->next)
        before = at;
    if (before == NULL)
        backup->first = arrival->next;
    else
        before->next = arrival->next;
    if (backup->last == arrival)
        backup->last = before;
    if (backup->unplaced == arrival)
        backup->unplaced = arrival->next;
    backup->counters.dropped++;
    free_arrival(backup, arrival);
}

/* ---- Buffers ---- */

static void as_chain(const struct buffer *buffer, struct virtq_chain *chain) {
    chain->token = buffer->token;
    chain->readable = 0;
    chain->readable_length = 0;
    chain->count = (uint16_t)buffer->count;
    chain->writable_length = buffer->length;
    memcpy(chain->segments, buffer->segments, buffer->count * sizeof buffer->segments[0]);
}

static struct buffer *note(const struct virtq_chain *chain) {
    unsigned count = chain->count - chain->readable;
    struct buffer *buffer = malloc(sizeof *buffer + count * sizeof buffer->segments[0]);
    if (buffer == NULL)
        return NULL;
    buffer->next = NULL;
    buffer->token = chain->token;
    buffer->length = chain->writable_length;
    buffer->count = count;
    memcpy(buffer->segments, chain->segments + chain->readable, count * sizeof buffer->segments[0]);
    return buffer;
}

/* The buffers of the frame in reverse, as the queue wants them back. */
static void put_back(struct net_arrival *arrival, struct virtq *queue) {
    struct virtq_token tokens[VIRTQ_SIZE_MAX];
    unsigned count = 0;
    for (const struct buffer *buffer = arrival->buffers; buffer != NULL; buffer = buffer->next)
        tokens[count++] = buffer->token;
    while (count > 0)
        virtq_unpop(queue, tokens[--count]);
    free_buffers(arrival);
}

/* ---- Giving frames their buffers ---- */

enum placing { PLACED, NO_BUFFER, IMPOSSIBLE };

static enum placing add_buffer(struct net_backup *backup, struct net_arrival *arrival,
                               struct virtq *queue, uint64_t *room) {
    struct virtq_chain chain;
    while (!virtq_pop_away(queue, &chain))
        if (!virtq_listen(queue))
            return NO_BUFFER;
    bool first = arrival->buffers == NULL;
    if (chain.writable_length <= (first ? NET_VIRTIO_HEADER : 0)) {
        virtq_break(queue, "receive buffer too small");
        return NO_BUFFER;
    }
    struct buffer *buffer = note(&chain);
    if (buffer == NULL) {
        virtq_unpop(queue, chain.token);
        return IMPOSSIBLE;
    }
    if (first)
        arrival->buffers = buffer;
    else
        arrival->last->next = buffer;
    arrival->last = buffer;
    arrival->count++;
    *room += buffer->length;
    backup->counters.faulty += virtq_await(queue, &chain);
    return PLACED;
}

static enum placing place(struct net_backup *backup, struct net_arrival *arrival,
                          struct virtq *queue, unsigned merge) {
    uint64_t room = 0;
    while (room < NET_VIRTIO_HEADER + arrival->frame->length) {
        enum placing placing =
            arrival->count == merge ? IMPOSSIBLE : add_buffer(backup, arrival, queue, &room);
        if (placing == PLACED)
            continue;
        put_back(arrival, queue);
        return placing;
    }
    return PLACED;
}

/* ---- Delivering ---- */

/* False: memory is away; it has been asked for. */
static bool is_here(const struct net_arrival *arrival, struct virtq *queue) {
    struct virtq_chain chain;
    bool away = false;
    for (const struct buffer *buffer = arrival->buffers; buffer != NULL; buffer = buffer->next) {
        as_chain(buffer, &chain);
        away |= virtq_await(queue, &chain);
    }
    return !away;
}

static void deliver(const struct net_arrival *arrival, struct virtq *queue) {
    uint8_t header[NET_VIRTIO_HEADER] = {0};
    struct virtq_chain chain;
    size_t done = 0;
    store_le16(header + NET_VIRTIO_HEADER_BUFFERS, (uint16_t)arrival->count);
    for (const struct buffer *buffer = arrival->buffers; buffer != NULL; buffer = buffer->next) {
        uint32_t skip = buffer == arrival->buffers ? sizeof header : 0;
        as_chain(buffer, &chain);
        if (skip > 0)
            virtq_write(queue, &chain, 0, header, sizeof header);
        ssize_t written = virtq_write(queue, &chain, skip, arrival->frame->bytes + done,
                                      arrival->frame->length - done);
        if (written < 0)
            return;
        done += (size_t)written;
        virtq_push(queue, buffer->token, skip + (uint32_t)written);
    }
}

/* Those whose turn it is. */
static void deliver_ready(struct net_backup *backup, struct virtq *queue) {
    while (backup->first != NULL && backup->first != backup->unplaced &&
           is_here(backup->first, queue)) {
        deliver(backup->first, queue);
        remove_first(backup);
    }
}

/* Frames to come will want these. */
static void look_ahead(struct virtq *queue) {
    struct virtq_token tokens[LOOK_AHEAD];
    struct virtq_chain chain;
    unsigned count = 0;
    while (count < LOOK_AHEAD && virtq_pop_away(queue, &chain)) {
        tokens[count++] = chain.token;
        virtq_await(queue, &chain);
    }
    while (count > 0)
        virtq_unpop(queue, tokens[--count]);
}

void net_backup_serve(struct net_backup *backup, struct virtq *queue, unsigned merge) {
    enum placing placing = PLACED;
    deliver_ready(backup, queue);
    while (backup->unplaced != NULL && placing != NO_BUFFER) {
        struct net_arrival *arrival = backup->unplaced;
        placing = place(backup, arrival, queue, merge);
        if (placing == PLACED) {
            backup->unplaced = arrival->next;
            deliver_ready(backup, queue);
        } else if (placing == IMPOSSIBLE) {
            drop(backup, arrival);
        }
    }
    if (backup->unplaced == NULL && backup->first != NULL)
        look_ahead(queue);
    /* Last, since a queue waits for one page only. */
    deliver_ready(backup, queue);
}

/* ---- Resting ---- */

void net_backup_rest(struct net_backup *backup, struct virtq *queue) {
    /* From the back: what was popped last is put back first. */
    while (backup->first != NULL && backup->first != backup->unplaced) {
        struct net_arrival *last = backup->first;
        while (last->next != NULL && last->next != backup->unplaced)
            last = last->next;
        put_back(last, queue);
        backup->unplaced = last;
    }
}

void net_backup_forget(struct net_backup *backup) {
    while (backup->first != NULL)
        remove_first(backup);
}
