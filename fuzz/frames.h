/*
 * Scripts that become what goes over a migration's connection (docs/migration.md). A step is a
 * byte: its kind in the low bits, what is done to the frame in the high ones. What a kind needs
 * follows; where the script ends there are zeros.
 */
#ifndef LODGE_FUZZ_FRAMES_H
#define LODGE_FUZZ_FRAMES_H

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"

enum { FRAME_HEADER = 16, FRAMES_MAX = 8 << 20, STEP_KIND = 0x1f };
enum { STEP_FLIP = 0x20, STEP_TWICE = 0x40, STEP_SKIP = 0x80 /* a number */ };

struct script {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t script_byte(struct script *script) {
    if (script->left == 0)
        return 0;
    script->left--;
    return *script->at++;
}

static inline uint16_t script_word(struct script *script) {
    uint16_t low = script_byte(script);
    return (uint16_t)(low | script_byte(script) << 8);
}

/* A length, then so many bytes; fewer where there are no more. */
static inline const uint8_t *script_bytes(struct script *script, size_t *length) {
    const uint8_t *bytes;
    *length = script_byte(script);
    if (*length > script->left)
        *length = script->left;
    bytes = script->at;
    script->at += *length;
    script->left -= *length;
    return bytes;
}

struct frames {
    uint8_t *bytes; /* FRAMES_MAX */
    size_t length;
    uint32_t number;
    uint8_t how; /* of the step that makes the next */
    struct script *script;
};

static inline void frames_raw(struct frames *frames, const void *bytes, size_t length) {
    size_t room = FRAMES_MAX - frames->length;
    length = length < room ? length : room;
    if (length > 0)
        memcpy(frames->bytes + frames->length, bytes, length);
    frames->length += length;
}

static inline void frames_preamble(struct frames *frames) {
    static const uint8_t preamble[12] = "LODGEMV\n\2\0\0";
    frames_raw(frames, preamble, sizeof preamble);
}

static inline void frames_add(struct frames *frames, uint32_t type, const void *body,
                              size_t length) {
    uint8_t header[FRAME_HEADER];
    size_t begin = frames->length;
    frames->number += (frames->how & STEP_SKIP) != 0;
    store_le32(header, type);
    store_le32(header + 4, (uint32_t)length);
    store_le32(header + 8, frames->number++);
    store_le32(header + 12, crc32c(crc32c(0, header, 12), body, length));
    frames_raw(frames, header, sizeof header);
    frames_raw(frames, body, length);
    size_t size = frames->length - begin;
    if (frames->how & STEP_FLIP && size > 0) {
        unsigned bit = script_word(frames->script);
        frames->bytes[begin + bit / 8 % size] ^= (uint8_t)(1 << bit % 8);
    }
    if (frames->how & STEP_TWICE)
        frames_raw(frames, frames->bytes + begin, size);
}

/* A text with a piece of it replaced. */
static inline void frames_text(struct frames *frames, uint32_t type, const char *text) {
    size_t length = strlen(text), inserted;
    size_t at = script_word(frames->script) % (length + 1), gone = script_byte(frames->script);
    const uint8_t *bytes = script_bytes(frames->script, &inserted);
    gone = gone < length - at ? gone : length - at;
    uint8_t changed[4096];
    if (length - gone + inserted > sizeof changed)
        return;
    memcpy(changed, text, at);
    if (inserted > 0)
        memcpy(changed + at, bytes, inserted);
    memcpy(changed + at + inserted, text + at + gone, length - at - gone);
    frames_add(frames, type, changed, length - gone + inserted);
}

#endif
