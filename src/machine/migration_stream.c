#include "machine/migration_stream.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc32c.h"

/* A frame's header: type, length of the body, its number, and the sum of all that and the body. */
enum { TYPE = 0, LENGTH = 4, NUMBER = 8, SUM = 12, HEADER = 16, PREAMBLE = 12 };

static const uint8_t magic[8] = "LODGEMV\n";

/* How far a sender that had nothing to send may get ahead of its limit. */
#define BURST_NS UINT64_C(5000000)

int stream_create(struct tunnel *tunnel, struct stream *stream, struct error *err) {
    *stream = (struct stream){.tunnel = tunnel, .body = malloc(STREAM_BODY_MAX)};
    if (stream->body != NULL)
        return 0;
    tunnel_close(tunnel);
    stream->tunnel = NULL;
    return error_set(err, -ENOMEM, "out of memory");
}

void stream_close(struct stream *stream) {
    tunnel_close(stream->tunnel);
    free(stream->body);
    *stream = (struct stream){0};
}

int stream_send_preamble(struct stream *stream, struct error *err) {
    uint8_t bytes[PREAMBLE];
    memcpy(bytes, magic, sizeof magic);
    store_le32(bytes + sizeof magic, MIGRATION_FORMAT);
    return tunnel_write(stream->tunnel, bytes, sizeof bytes, err);
}

int stream_receive_preamble(struct stream *stream, struct error *err) {
    uint8_t bytes[PREAMBLE];
    int result = tunnel_read(stream->tunnel, bytes, sizeof bytes, err);
    if (result < 0)
        return result;
    if (memcmp(bytes, magic, sizeof magic) != 0)
        return error_set(err, -EPROTO, "what has connected is no lodge");
    uint32_t format = load_le32(bytes + sizeof magic);
    if (format == MIGRATION_FORMAT)
        return 0;
    return error_set(err, -EPROTO, "the other lodge moves VMs in format %u, this one in %d", format,
                     MIGRATION_FORMAT);
}

/* ---- Sending ---- */

static void wait_until(uint64_t ns) {
    uint64_t now = host_clock_ns();
    struct timespec rest = {.tv_sec = (time_t)((ns - now) / NS_PER_SECOND),
                            .tv_nsec = (long)((ns - now) % NS_PER_SECOND)};
    if (now < ns)
        nanosleep(&rest, NULL);
}

static void keep_to_limit(struct stream *stream, size_t length) {
    uint64_t now = host_clock_ns();
    if (stream->limit == 0)
        return;
    if (stream->due_ns + BURST_NS < now)
        stream->due_ns = now - BURST_NS;
    wait_until(stream->due_ns);
    stream->due_ns += (uint64_t)((double)length * (double)NS_PER_SECOND / (double)stream->limit);
}

int stream_send(struct stream *stream, enum stream_type type, const void *body, size_t length,
                struct error *err) {
    uint8_t header[HEADER];
    store_le32(header + TYPE, type);
    store_le32(header + LENGTH, (uint32_t)length);
    store_le32(header + NUMBER, stream->sent);
    store_le32(header + SUM, crc32c(crc32c(0, header, SUM), body, length));
    keep_to_limit(stream, sizeof header + length);
    int result = tunnel_write(stream->tunnel, header, sizeof header, err);
    if (result == 0 && length > 0)
        result = tunnel_write(stream->tunnel, body, length, err);
    stream->sent++;
    stream->bytes += sizeof header + length;
    return result;
}

int stream_send_json(struct stream *stream, enum stream_type type, json_t *message,
                     struct error *err) {
    char *text = json_dumps(message, JSON_COMPACT);
    json_decref(message);
    if (text == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    size_t length = strlen(text);
    int result = length <= STREAM_BODY_MAX
                     ? stream_send(stream, type, text, length, err)
                     : error_set(err, -E2BIG, "the VM's options are too long");
    free(text);
    return result;
}

/* ---- Receiving ---- */

static int damaged(struct error *err) {
    return error_set(err, -EPROTO, "what comes over the connection is damaged");
}

int stream_receive(struct stream *stream, enum stream_type *type, struct error *err) {
    uint8_t header[HEADER];
    int result = tunnel_read(stream->tunnel, header, sizeof header, err);
    if (result < 0)
        return result;
    uint32_t kind = load_le32(header + TYPE), length = load_le32(header + LENGTH);
    if (load_le32(header + NUMBER) != stream->received || kind == 0 || kind >= STREAM_TYPES ||
        length > STREAM_BODY_MAX)
        return damaged(err);
    result = tunnel_read(stream->tunnel, stream->body, length, err);
    if (result < 0)
        return result;
    if (crc32c(crc32c(0, header, SUM), stream->body, length) != load_le32(header + SUM))
        return damaged(err);
    stream->received++;
    stream->length = length;
    *type = (enum stream_type)kind;
    return 0;
}

int stream_json(const struct stream *stream, json_t **message, struct error *err) {
    *message = json_loadb((const char *)stream->body, stream->length, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(*message))
        return 0;
    json_decref(*message);
    *message = NULL;
    return damaged(err);
}

int stream_refused(struct stream *stream, struct error *err) {
    json_t *message;
    int result = stream_json(stream, &message, err);
    if (result < 0)
        return result;
    const char *why = json_string_value(json_object_get(message, "why"));
    error_set(err, -EREMOTEIO, "%s", why != NULL ? why : "the other side refuses");
    json_decref(message);
    return -EREMOTEIO;
}

int stream_expect(struct stream *stream, enum stream_type type, struct error *err) {
    enum stream_type came = STREAM_TYPES;
    int result = stream_receive(stream, &came, err);
    if (result < 0)
        return result;
    if (came == STREAM_REFUSED)
        return stream_refused(stream, err);
    return came == type ? 0 : error_set(err, -EPROTO, "the other side does not keep to the order");
}
