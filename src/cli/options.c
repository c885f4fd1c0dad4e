#include "cli/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Likeness ---- */

static unsigned least(unsigned a, unsigned b, unsigned c) {
    unsigned m = a < b ? a : b;
    return m < c ? m : c;
}

/* Levenshtein's distance; words longer than the row are unlike anything. */
static unsigned distance(const char *a, const char *b) {
    enum { ROW = 32 };
    unsigned row[ROW + 1];
    size_t m = strlen(a), n = strlen(b);
    if (m > ROW || n > ROW)
        return UINT32_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= m; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= n; j++) {
            unsigned above = row[j];
            row[j] = least(row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[n];
}

const char *nearest_word(const char *word, const char *const *list) {
    const char *best = NULL;
    unsigned best_distance = (unsigned)strlen(word) / 2 + 1;
    for (; *list != NULL; list++) {
        unsigned d = distance(word, *list);
        if (d < best_distance) {
            best = *list;
            best_distance = d;
        }
    }
    return best;
}

/* ---- Parsing ---- */

static int unknown(const struct option_parser *parser, const char *name, struct error *err) {
    enum { NAMES = 64 };
    const char *names[NAMES + 1];
    unsigned count = 0;
    for (const struct option_spec *spec = parser->specs; spec->name != NULL && count < NAMES;
         spec++)
        if (spec->help != NULL)
            names[count++] = spec->name;
    names[count] = NULL;
    const char *nearest = nearest_word(name, names);
    if (nearest != NULL)
        error_set(err, -EINVAL, "unknown option --%s; did you mean --%s?", name, nearest);
    else
        error_set(err, -EINVAL, "unknown option --%s; --help lists what there is", name);
    return OPTION_ERROR;
}

/* The option's value: after the "=", or the next argument. */
static int take_value(struct option_parser *parser, const struct option_spec *spec,
                      const char *attached, struct error *err) {
    int index = (int)(spec - parser->specs);
    parser->value = attached;
    if (spec->value == NULL && attached != NULL) {
        error_set(err, -EINVAL, "--%s takes no value", spec->name);
        return OPTION_ERROR;
    }
    if (spec->value == NULL || attached != NULL)
        return index;
    if (parser->at >= parser->argc) {
        error_set(err, -EINVAL, "--%s needs a value: --%s %s", spec->name, spec->name, spec->value);
        return OPTION_ERROR;
    }
    parser->value = parser->argv[parser->at++];
    return index;
}

static int long_option(struct option_parser *parser, const char *text, struct error *err) {
    size_t length = strcspn(text, "=");
    const char *attached = text[length] == '=' ? text + length + 1 : NULL;
    for (const struct option_spec *spec = parser->specs; spec->name != NULL; spec++)
        if (strlen(spec->name) == length && strncmp(spec->name, text, length) == 0)
            return take_value(parser, spec, attached, err);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)length, text);
    return unknown(parser, name, err);
}

static int short_option(struct option_parser *parser, const char *text, struct error *err) {
    for (const struct option_spec *spec = parser->specs; spec->name != NULL; spec++) {
        if (spec->letter != text[0])
            continue;
        if (spec->value != NULL)
            return take_value(parser, spec, text[1] != 0 ? text + 1 : NULL, err);
        parser->letters = text[1] != 0 ? text + 1 : NULL;
        return take_value(parser, spec, NULL, err);
    }
    parser->letters = NULL;
    error_set(err, -EINVAL, "unknown option -%c; --help lists what there is", text[0]);
    return OPTION_ERROR;
}

int option_next(struct option_parser *parser, struct error *err) {
    if (parser->letters != NULL) {
        const char *letters = parser->letters;
        parser->letters = NULL;
        return short_option(parser, letters, err);
    }
    if (parser->at >= parser->argc)
        return OPTION_END;
    const char *text = parser->argv[parser->at];
    if (text[0] != '-' || text[1] == 0)
        return OPTION_END;
    parser->at++;
    if (text[1] != '-')
        return short_option(parser, text + 1, err);
    return text[2] == 0 ? OPTION_END : long_option(parser, text + 2, err);
}

void option_help(const struct option_spec *specs) {
    for (; specs->name != NULL; specs++) {
        char left[64];
        if (specs->help == NULL)
            continue;
        snprintf(left, sizeof left, "%c%c%s--%s%s%s", specs->letter != 0 ? '-' : ' ',
                 specs->letter != 0 ? specs->letter : ' ', specs->letter != 0 ? ", " : "  ",
                 specs->name, specs->value != NULL ? " " : "",
                 specs->value != NULL ? specs->value : "");
        printf("  %-34s %s\n", left, specs->help);
    }
}

/* ---- Values ---- */

int parse_size(const char *text, uint64_t *size, struct error *err) {
    static const char units[] = "KMGT";
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    const char *unit = end != text && *end != 0 ? strchr(units, *end & ~0x20) : NULL;
    unsigned shift = unit != NULL ? 10 * (unsigned)(unit - units + 1) : 0;
    if (unit != NULL)
        end += end[1] == 'i' && end[2] == 'B' ? 3 : end[1] == 'B' ? 2 : 1;
    if (text[0] < '0' || text[0] > '9' || *end != 0)
        return error_set(err, -EINVAL, "'%.40s' is no size; write it like 512M or 2G", text);
    if (errno == ERANGE || number > UINT64_MAX >> shift)
        return error_set(err, -EINVAL, "'%.40s' is too large a size", text);
    *size = (uint64_t)number << shift;
    return 0;
}

int parse_choice(const char *option, const char *text, const char *const *list, struct error *err) {
    char all[128] = "";
    size_t used = 0;
    for (int i = 0; list[i] != NULL; i++) {
        if (strcmp(text, list[i]) == 0)
            return i;
        used += (size_t)snprintf(all + used, used < sizeof all ? sizeof all - used : 0, "%s%s",
                                 i == 0                ? ""
                                 : list[i + 1] == NULL ? " or "
                                                       : ", ",
                                 list[i]);
    }
    return error_set(err, -EINVAL, "--%s %.40s: it can be %s", option, text, all);
}
