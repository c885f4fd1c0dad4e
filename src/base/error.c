#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int code, const char *format, ...) {
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
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
    return err->code;
}
