#include "cli/vm_options.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/volume.h"

/* One of the words that stand for themselves: those before the last in "auto|none|FILE". */
static bool is_word(const struct option_spec *spec, const char *value) {
    size_t length = strlen(value);
    for (const char *word = spec->value; (word = strstr(word, value)) != NULL; word++)
        if ((word == spec->value || word[-1] == '|') && word[length] == '|')
            return true;
    return false;
}

/* As realpath(), but the file itself need not be there. */
static bool resolve(const char *given, bool may_be_new, char path[PATH_MAX]) {
    char parent[PATH_MAX];
    if (realpath(given, path) != NULL)
        return true;
    if (!may_be_new || errno != ENOENT)
        return false;
    snprintf(parent, sizeof parent, "%s", given);
    char *slash = strrchr(parent, '/');
    const char *name = slash != NULL ? given + (slash - parent) + 1 : given;
    if (slash != NULL)
        slash[slash == parent] = 0;
    if (name[0] == 0 || realpath(slash != NULL ? parent : ".", path) == NULL)
        return false;
    size_t length = strlen(path);
    return snprintf(path + length, PATH_MAX - length, "%s%s", length > 1 ? "/" : "", name) <
           (int)(PATH_MAX - length);
}

/* The value with its path made absolute; addresses are. NULL and err. */
static json_t *absolute(const struct option_spec *spec, const char *value, struct error *err) {
    char given[PATH_MAX], path[PATH_MAX];
    size_t length = spec->path == OPTION_VOLUME ? volume_host_length(value) : strcspn(value, ",");
    if (is_word(spec, value) || strncmp(value, "nbd:", 4) == 0 ||
        strncmp(value, "nbd+unix:", 9) == 0)
        return json_string(value);
    if (length >= sizeof given) {
        error_set(err, -ENAMETOOLONG, "--%s: the path is too long", spec->name);
        return NULL;
    }
    memcpy(given, value, length);
    given[length] = 0;
    if (!resolve(given, spec->path == OPTION_NEW_PATH, path)) {
        error_set_errno(err, -errno, "--%s %s", spec->name, given);
        return NULL;
    }
    if (spec->path != OPTION_VOLUME && strchr(path, ',') != NULL) {
        error_set(err, -EINVAL, "--%s %s: lodge cannot keep a path that has a comma in it",
                  spec->name, path);
        return NULL;
    }
    return json_sprintf("%s%s", path, value + length);
}

int vm_options_add(json_t *options, const struct option_spec *spec, const char *value,
                   struct error *err) {
    json_t *there = json_object_get(options, spec->name);
    json_t *made = spec->value == NULL            ? json_true()
                   : spec->path != OPTION_NO_PATH ? absolute(spec, value, err)
                                                  : json_string(value);
    if (made == NULL)
        return spec->path != OPTION_NO_PATH
                   ? err->code
                   : error_set(err, -EINVAL, "--%s is no UTF-8", spec->name);
    /* Given once: a value. Given again: a list, in order. */
    if (there == NULL || spec->value == NULL) {
        json_object_set_new(options, spec->name, made);
    } else if (json_is_array(there)) {
        json_array_append_new(there, made);
    } else {
        json_t *list = json_array();
        json_array_append(list, there);
        json_array_append_new(list, made);
        json_object_set_new(options, spec->name, list);
    }
    return 0;
}

/* ---- Back ---- */

static int find(const char *name) {
    for (int i = 0; run_options[i].name != NULL; i++)
        if (strcmp(run_options[i].name, name) == 0)
            return i;
    return -1;
}

static int apply(struct run_config *config, int option, const json_t *value, struct error *err) {
    const struct option_spec *spec = &run_options[option];
    if (spec->value == NULL ? !json_is_true(value) : !json_is_string(value))
        return error_set(err, -EINVAL, "'%s' has a value of the wrong type", spec->name);
    return run_take_option(config, option, (char *)json_string_value(value), err);
}

int vm_options_apply(json_t *options, struct run_config *config, struct error *err) {
    const char *name;
    json_t *value;
    int result = 0;
    json_object_foreach(options, name, value) {
        int option = find(name);
        size_t count = json_is_array(value) ? json_array_size(value) : 1;
        if (option < 0)
            return error_set(err, -EINVAL, "this lodge knows no option '%.40s'", name);
        for (size_t i = 0; i < count && result == 0; i++)
            result =
                apply(config, option, json_is_array(value) ? json_array_get(value, i) : value, err);
        if (result < 0)
            return result;
    }
    return run_check(config, err);
}
