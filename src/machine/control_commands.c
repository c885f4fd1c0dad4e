/* Commands: a request is checked against the table, then run. */
#include <stdio.h>
#include <string.h>

#include "machine/control.h"

static const struct control_command *find(const struct control_command *commands,
                                          const char *name) {
    for (; commands->name != NULL; commands++)
        if (strcmp(commands->name, name) == 0)
            return commands;
    return NULL;
}

/* The type letter that a command has for an argument; 0: it takes none of that name. */
static char type_of(const struct control_command *command, const char *name) {
    size_t length = strlen(name);
    for (size_t i = 0; command->arguments[i] != NULL; i++)
        if (strncmp(command->arguments[i], name, length) == 0 &&
            command->arguments[i][length] == ':')
            return command->arguments[i][length + 1];
    return 0;
}

static bool is_string_array(const json_t *value) {
    size_t i;
    json_t *element;
    if (!json_is_array(value))
        return false;
    json_array_foreach((json_t *)value, i, element) {
        if (!json_is_string(element))
            return false;
    }
    return true;
}

static bool has_type(const json_t *value, char type) {
    switch (type) {
    case 'i': return json_is_integer(value);
    case 'n': return json_is_number(value);
    case 'b': return json_is_boolean(value);
    case 'a': return is_string_array(value);
    default: return json_is_string(value);
    }
}

static bool check_arguments(const struct control_command *command, const json_t *arguments,
                            char *text, size_t size) {
    static const char *const types[] = {['i'] = "an integer",
                                        ['n'] = "a number",
                                        ['b'] = "a boolean",
                                        ['s'] = "a string",
                                        ['a'] = "an array of strings"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)arguments, name, value) {
        char type = type_of(command, name);
        if (type == 0)
            snprintf(text, size, "%s takes no argument '%.40s'", command->name, name);
        else if (!has_type(value, type))
            snprintf(text, size, "argument '%s' is to be %s", name, types[(unsigned char)type]);
        else
            continue;
        return false;
    }
    return true;
}

/* NULL: everything is as the protocol says. */
static const char *what_is_wrong(const json_t *request) {
    const char *name;
    json_t *value;
    if (!json_is_object(request))
        return "a command is an object";
    if (!json_is_string(json_object_get(request, "execute")))
        return "a command has a string 'execute'";
    const json_t *arguments = json_object_get(request, "arguments");
    if (arguments != NULL && !json_is_object(arguments))
        return "'arguments' is an object";
    json_object_foreach((json_t *)request, name, value) {
        if (strcmp(name, "execute") != 0 && strcmp(name, "arguments") != 0 &&
            strcmp(name, "id") != 0)
            return "a command has 'execute', 'arguments' and 'id', nothing else";
    }
    return NULL;
}

static void query_version(struct control_call *call) {
    control_return(call,
                   json_pack("{s:s, s:i}", "version", LODGE_VERSION, "protocol", CONTROL_PROTOCOL));
}

static void query_commands(const struct control_config *config, struct control_call *call) {
    json_t *list = json_array();
    json_array_append_new(list, json_string("query-commands"));
    json_array_append_new(list, json_string("query-version"));
    for (const struct control_command *c = config->commands; c->name != NULL; c++)
        json_array_append_new(list, json_string(c->name));
    control_return(call, json_pack("{s:o}", "commands", list));
}

void control_run(const struct control_config *config, struct control_call *call,
                 const json_t *request) {
    static const struct control_command none = {.name = ""};
    char text[160];
    const char *wrong = what_is_wrong(request);
    if (wrong != NULL) {
        control_fail(call, "BadRequest", wrong);
        return;
    }
    const char *name = json_string_value(json_object_get(request, "execute"));
    const json_t *arguments = json_object_get(request, "arguments");
    bool version = strcmp(name, "query-version") == 0;
    bool common = version || strcmp(name, "query-commands") == 0;
    const struct control_command *command = common ? &none : find(config->commands, name);
    if (command == NULL) {
        snprintf(text, sizeof text, "no command '%.40s'; query-commands lists what there is", name);
        control_fail(call, "CommandNotFound", text);
    } else if (arguments != NULL && !check_arguments(command, arguments, text, sizeof text)) {
        control_fail(call, "BadArgument", text);
    } else if (version) {
        query_version(call);
    } else if (common) {
        query_commands(config, call);
    } else {
        json_t *empty = arguments == NULL ? json_object() : NULL;
        command->run(config->context, call, arguments != NULL ? arguments : empty);
        json_decref(empty);
    }
}
