#include "base/uuid.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static const char digits[] = "0123456789abcdef";

void uuid_mark(uint8_t uuid[UUID_SIZE], unsigned version) {
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | version << 4);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

int uuid_make(uint8_t uuid[UUID_SIZE], struct error *err) {
    if (getrandom(uuid, UUID_SIZE, 0) != UUID_SIZE)
        return error_set_errno(err, -errno, "getrandom");
    uuid_mark(uuid, 4);
    return 0;
}

static bool has_dash_before(unsigned byte) {
    return byte == 4 || byte == 6 || byte == 8 || byte == 10;
}

void uuid_format(const uint8_t uuid[UUID_SIZE], char text[UUID_TEXT]) {
    for (unsigned i = 0; i < UUID_SIZE; i++) {
        if (has_dash_before(i))
            *text++ = '-';
        *text++ = digits[uuid[i] >> 4];
        *text++ = digits[uuid[i] & 15];
    }
    *text = 0;
}

/* -1: no hexadecimal digit. */
static int digit(char c) {
    if (c >= 'A' && c <= 'F')
        c = (char)(c - 'A' + 'a');
    const char *at = c != 0 ? strchr(digits, c) : NULL;
    return at != NULL ? (int)(at - digits) : -1;
}

bool uuid_parse(const char *text, uint8_t uuid[UUID_SIZE]) {
    uint8_t parsed[UUID_SIZE];
    if (strlen(text) != UUID_TEXT - 1)
        return false;
    for (unsigned i = 0; i < UUID_SIZE; i++) {
        if (has_dash_before(i) && *text++ != '-')
            return false;
        int high = digit(text[0]), low = digit(text[1]);
        if (high < 0 || low < 0)
            return false;
        parsed[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    memcpy(uuid, parsed, UUID_SIZE);
    return true;
}
