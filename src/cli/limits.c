#include "cli/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"

static int parse_burst(struct block_limits *limits, const char *value, struct error *err) {
    char *end;
    double seconds = strtod(value, &end);
    if (end == value || *end != 0 || !(seconds >= 0.001 && seconds * 1000 <= BLOCK_BURST_MS_MAX))
        return error_set(err, -EINVAL, "burst=%.40s: a burst is from 0.001 to %d seconds", value,
                         BLOCK_BURST_MS_MAX / 1000);
    limits->burst_ms = (uint32_t)(seconds * 1000);
    return 0;
}

int parse_limit(struct block_limits *limits, const char *word, unsigned *given, struct error *err) {
    const char *value = strchr(word, '=');
    size_t length = value != NULL ? (size_t)(value - word) : 0;
    unsigned which = 0;
    while (which < BLOCK_LIMITS && (strlen(block_limit_names[which]) != length ||
                                    strncmp(block_limit_names[which], word, length) != 0))
        which++;
    bool burst = value != NULL && strncmp(word, "burst=", 6) == 0;
    if (which == BLOCK_LIMITS && !burst)
        return -ENOENT;
    if (given != NULL)
        *given |= 1u << which;
    if (burst)
        return parse_burst(limits, value + 1, err);
    int result = parse_size(value + 1, &limits->per_second[which], err);
    if (result == 0 && limits->per_second[which] > INT64_MAX)
        result = error_set(err, -EINVAL, "'%.40s' is too large", value + 1);
    return result == 0 ? 0 : error_prefix(err, "%s", block_limit_names[which]);
}

int parse_on_full(bool *errors_when_full, const char *word, struct error *err) {
    static const char *const policies[] = {"pause", "error", NULL};
    if (strncmp(word, "on-full=", 8) != 0)
        return -ENOENT;
    int policy = parse_choice("disk on-full", word + 8, policies, err);
    *errors_when_full = policy == 1;
    return policy < 0 ? policy : 0;
}
