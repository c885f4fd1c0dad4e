/*
 * The log: lines to standard error, "lodge: LEVEL: text". Any thread.
 *
 * What a guest can provoke is logged with log_guest(), which is rate limited
 * per call site, so that a guest cannot flood its monitor's log.
 */
#ifndef LODGE_BASE_LOG_H
#define LODGE_BASE_LOG_H

#include <stdatomic.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Lines above this level are dropped; LOG_WARNING at start. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_DEBUG, __VA_ARGS__)

struct log_limit {
    atomic_uint count;
};

/* True for the first LOG_LIMIT_BURST calls of a site, false after. */
enum { LOG_LIMIT_BURST = 8 };
int log_limit_pass(struct log_limit *limit);

#define log_guest(...)                                                                             \
    do {                                                                                           \
        static struct log_limit log_limit_;                                                        \
        if (log_limit_pass(&log_limit_))                                                           \
            log_write(LOG_INFO, __VA_ARGS__);                                                      \
    } while (0)

#endif
