/*
 * Options of a verb, from one table that the parser, the help and the
 * completion share. Long options take "--name VALUE" or "--name=VALUE";
 * letters without values can be put together: "-it".
 */
#ifndef LODGE_CLI_OPTIONS_H
#define LODGE_CLI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* A path of the host, of a file that is there or that may have to be made; words that `value` names
 * ("auto|FILE") are none. */
enum option_path { OPTION_NO_PATH, OPTION_PATH, OPTION_NEW_PATH, OPTION_VOLUME };

struct option_spec {
    const char *name;      /* without the dashes; NULL ends the table */
    char letter;           /* 0: none */
    const char *value;     /* what the help calls its value; NULL: takes none */
    const char *help;      /* NULL: works, but is not shown */
    enum option_path path; /* what the value is up to its first comma; a volume's: see volume.h */
};

struct option_parser {
    const struct option_spec *specs;
    int argc;
    char **argv;
    int at;              /* the next argument */
    const char *value;   /* of the option just returned */
    const char *letters; /* the rest of "-abc"; the parser's own */
};

enum { OPTION_END = -1, OPTION_ERROR = -2 };

/*
 * The next option's index in the table; OPTION_END at the first argument that is none or after
 * "--" (argv[at] on are the operands); OPTION_ERROR with err filled.
 */
int option_next(struct option_parser *parser, struct error *err);

/* The word of a list (ended by NULL) that is most like `word`; NULL when none is. */
const char *nearest_word(const char *word, const char *const *list);

/* Prints the table as help text. */
void option_help(const struct option_spec *specs);

/* "512M", "2G", "4096" (bytes), binary multiples K, M, G, T. -EINVAL. */
int parse_size(const char *text, uint64_t *size, struct error *err);
/* The index of text in a list (ended by NULL); -EINVAL names them all. */
int parse_choice(const char *option, const char *text, const char *const *list, struct error *err);

#endif
