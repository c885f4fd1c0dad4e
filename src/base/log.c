#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static _Atomic(enum log_level) threshold = LOG_WARNING;

void log_set_level(enum log_level level) {
    threshold = level;
}

enum log_level log_get_level(void) {
    return threshold;
}

void log_write(enum log_level level, const char *format, ...) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if (level > threshold)
        return;
    char line[1024];
    int used = snprintf(line, sizeof line, "lodge: %s: ", names[level]);
    va_list args;
    va_start(args, format);
    int body = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    if (body < 0)
        return;
    size_t length = (size_t)used + (size_t)body;
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    /* One write a line, so that lines of several threads and processes do not mix. */
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
}

int log_limit_pass(struct log_limit *limit) {
    unsigned count = atomic_load_explicit(&limit->count, memory_order_relaxed);
    if (count >= LOG_LIMIT_BURST)
        return 0;
    atomic_fetch_add_explicit(&limit->count, 1, memory_order_relaxed);
    return 1;
}
