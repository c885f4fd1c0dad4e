#include "base/error.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The length of the character (UTF-8) at s; 0: a control character, or damaged. */
static unsigned character(const unsigned char *s) {
    unsigned length = s[0] < 0x80                   ? s[0] >= ' ' && s[0] != 0x7f
                      : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                      : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                      : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                    : 0;
    for (unsigned i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool bad = (s[0] == 0xc2 && s[1] < 0xa0) || (s[0] == 0xe0 && s[1] < 0xa0) ||
               (s[0] == 0xed && s[1] >= 0xa0) || (s[0] == 0xf0 && s[1] < 0x90) ||
               (s[0] == 0xf4 && s[1] >= 0x90);
    return bad ? 0 : length;
}

/* What others have said may be in it, and it may have been cut anywhere. */
static void make_printable(char *text) {
    for (unsigned length; *text != 0; text += length) {
        length = character((const unsigned char *)text);
        if (length == 0)
            *text = '?';
        length += length == 0;
    }
}

int error_set(struct error *err, int code, const char *format, ...) {
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        make_printable(err->text);
        err->code = code;
    }
    return code;
}

int error_set_errno(struct error *err, int code, const char *format, ...) {
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        int used = vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->code = code;
        if (used >= 0 && (size_t)used < sizeof err->text)
            snprintf(err->text + used, sizeof err->text - (size_t)used, ": %s", strerror(-code));
        make_printable(err->text);
    }
    return code;
}

int error_prefix(struct error *err, const char *format, ...) {
    if (err == NULL)
        return -EINVAL;
    char old[ERROR_TEXT_MAX];
    memcpy(old, err->text, sizeof old);
    va_list args;
    va_start(args, format);
    int used = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (used >= 0 && (size_t)used + 2 < sizeof err->text) {
        size_t room = sizeof err->text - (size_t)used;
        int fits = (int)(room - 3); /* ": " and the end; what is too long is cut */
        snprintf(err->text + used, room, ": %.*s", fits, old);
    }
    make_printable(err->text);
    return err->code;
}
