/*
 * Errors: one line that says what failed, why, and what to do about it.
 *
 * A function that can fail returns 0 or a negative errno value and takes a
 * `struct error *` last. On failure it has filled the message (unless the
 * caller passed NULL); on success it leaves the object alone. The first
 * message wins nothing: a caller that knows more may prefix it.
 *
 * Any thread; an object belongs to the caller that passed it.
 */
#ifndef LODGE_BASE_ERROR_H
#define LODGE_BASE_ERROR_H

#include <errno.h>

enum { ERROR_TEXT_MAX = 512 };

struct error {
    int code;                  /* negative errno, 0 when unused */
    char text[ERROR_TEXT_MAX]; /* one line, no trailing newline */
};

/* Fills err (when not NULL) and returns code, so that callers can `return error_set(...)`. */
int error_set(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Like error_set, and appends ": " and strerror(-code). */
int error_set_errno(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "PREFIX: " before the message already in err; returns err's code (-EINVAL if err is NULL).
 */
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
