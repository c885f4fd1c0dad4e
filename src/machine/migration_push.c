/*
 * The side that a VM has left while its memory is still here (post-copy): what
 * the other side waits for is sent first, all the rest by and by. The guest
 * never runs here again; a connection that breaks is made anew, by itself a
 * few times, then when the user says so.
 *
 * One connection does for both: frames are small here, so that a page that is
 * wanted waits for one of them at most. A second connection would share the
 * way, need a handshake of its own, and could break alone.
 */
#include "base/clock.h"
#include "machine/migration_source.h"

/* How often the other side is connected to again, and how long is waited in between. */
enum { TRIES = 3, TRY_MS = 500 };

/* How long the other side may take to say that nothing is missing, when all has been sent. */
enum { LOOK_MS = 1000 };

/* 1: it has all that it needs. */
static int hear(struct move *move) {
    struct stream *stream = &move->stream;
    enum stream_type type;
    json_t *message;
    int result = stream_receive(stream, &type, &move->err);
    if (result < 0)
        return result;
    if (type == STREAM_WANT)
        return memory_sender_give(move->sender, stream->body, stream->length, &move->err);
    if (type != STREAM_WHOLE)
        return error_set(&move->err, -EPROTO, "the other side does not keep to the order");
    result = stream_json(stream, &message, &move->err);
    json_decref(message);
    return result < 0 ? result : 1;
}

/* Until the other side has all; 0, or what broke. */
static int serve(struct move *move) {
    unsigned idle_ms = 0;
    int result = 0;
    while (result == 0) {
        uint64_t left = memory_sender_left(move->sender);
        move_progress(move, left);
        if (tunnel_wait(move->stream.tunnel, left > 0 ? 0 : LOOK_MS)) {
            result = hear(move);
            idle_ms = 0;
        } else if (left > 0) {
            result = memory_sender_push(move->sender, &move->err);
        } else if ((idle_ms += LOOK_MS) >= TUNNEL_SILENCE_SECONDS * 1000) {
            result = error_set(&move->err, -ETIMEDOUT, "the other side has not answered for %d s",
                               TUNNEL_SILENCE_SECONDS);
        }
    }
    return result < 0 ? result : 0;
}

/* ---- Again ---- */

static int ask(struct move *move, struct stream *stream, struct error *err) {
    return stream_send_json(
        stream, STREAM_RESUME,
        json_pack("{s:s, s:s}", "name", move->migration->config.name, "id", move->id), err);
}

/* 1: it needs nothing more; -ENXIO: it has ended there before it had all. */
static int hear_end(struct stream *stream, struct error *err) {
    json_t *answer;
    int result = stream_json(stream, &answer, err);
    if (result < 0)
        return result;
    bool ended = json_is_true(json_object_get(answer, "ended"));
    json_decref(answer);
    return ended ? -ENXIO : 1;
}

/* 0: what is missing there is known; else as hear_end. */
static int hear_missing(struct move *move, struct stream *stream, struct error *err) {
    for (bool first = true;; first = false) {
        enum stream_type type;
        int result = stream_receive(stream, &type, err);
        if (result < 0)
            return result;
        if (first && (type == STREAM_MISSING || type == STREAM_ROUND))
            memory_sender_forget(move->sender);
        switch (type) {
        case STREAM_MISSING:
            result = memory_sender_hear(move->sender, stream->body, stream->length, err);
            break;
        case STREAM_ROUND: return 0;
        case STREAM_ANSWER: return hear_end(stream, err);
        case STREAM_REFUSED: return stream_refused(stream, err);
        default: result = error_set(err, -EPROTO, "the other side does not keep to the order");
        }
        if (result < 0)
            return result;
    }
}

/* As hear_missing; the new connection is the move's, then. */
static int connect_again(struct move *move, struct error *err) {
    struct stream stream = {0};
    int result = move_connect(move, &stream, err);
    if (result == 0)
        result = ask(move, &stream, err);
    if (result == 0)
        result = hear_missing(move, &stream, err);
    if (result != 0) {
        stream_close(&stream);
        return result;
    }
    stream.bytes += move->stream.bytes;
    stream.limit = move->limit;
    move->stream = stream;
    tunnel_be_prompt(stream.tunnel);
    return 0;
}

static int try_again(struct move *move) {
    struct error why = {0};
    int result = -ECONNRESET;
    for (unsigned i = 0; i < TRIES && result < 0 && result != -ENXIO && !move_is_ending(move);
         i++) {
        if (i > 0)
            move_rest(TRY_MS);
        result = connect_again(move, &why);
    }
    if (result < 0 && result != -ENXIO && why.code != 0)
        move->err = why;
    return result;
}

/* ---- All of it ---- */

/* Of no more use: the other side hears of that at once. */
static void drop_connection(struct move *move) {
    uint64_t sent = move->stream.bytes;
    stream_close(&move->stream);
    move->stream.bytes = sent;
}

static enum stage interrupted(struct move *move) {
    struct error why = move->err;
    move->result = error_set(
        &move->err, -ECONNRESET,
        "the VM runs at %.60s, but %llu KiB of its memory are still here: %.120s; 'lodge migrate "
        "--resume %s' goes on; it stands where it needs them, and cannot go on without this "
        "monitor",
        move->to, (unsigned long long)memory_sender_left(move->sender) >> 10, why.text,
        move->migration->config.name);
    return INTERRUPTED;
}

static enum stage lost(struct move *move) {
    move->result = error_set(&move->err, -ENXIO,
                             "it ended at %.100s before all of its memory had come; it is there, "
                             "its disks as after a power cut, and can be started there",
                             move->to);
    return LOST;
}

enum stage move_push(struct move *move, bool again) {
    int result = 0;
    move_enter(move, POST_COPY);
    if (!again)
        tunnel_be_prompt(move->stream.tunnel);
    while (again || (result = serve(move)) < 0) {
        drop_connection(move);
        result = try_again(move);
        if (result != 0)
            break;
        again = false;
    }
    if (result == -ENXIO)
        return lost(move);
    if (result < 0)
        return interrupted(move);
    move->result = 0;
    return MOVED;
}
