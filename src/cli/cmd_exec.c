#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/exec.h"
#include "cli/exit_codes.h"
#include "cli/terminal.h"
#include "cli/vm.h"

enum { OPT_INTERACTIVE, OPT_TTY, OPT_ENV, OPT_DIRECTORY, OPT_USER, OPT_HELP };

const struct option_spec exec_options[] = {
    [OPT_INTERACTIVE] = {"interactive", 'i', NULL,
                         "pass standard input on; without it there is none"},
    [OPT_TTY] = {"tty", 't', NULL, "run it on a terminal"},
    [OPT_ENV] = {"env", 'e', "NAME[=VALUE]",
                 "add to its environment (without a value: this one's); repeatable"},
    [OPT_DIRECTORY] = {"workdir", 'w', "DIR", "the directory it starts in (the user's home)"},
    [OPT_USER] = {"user", 'u', "USER[:GROUP]", "whom it runs as, names or numbers (root)"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge exec [OPTIONS] NAME CMD [ARGS]\n\n"
         "Runs CMD in the guest of a running VM. Its exit code becomes lodge's. Options:");
    option_help(exec_options);
    return EXIT_OK;
}

static void add_variable(json_t *environment, const char *text) {
    const char *value = strchr(text, '=') == NULL ? getenv(text) : NULL;
    if (strchr(text, '=') != NULL)
        json_array_append_new(environment, json_string(text));
    else if (value != NULL)
        json_array_append_new(environment, json_sprintf("%s=%s", text, value));
}

static void add_term(json_t *environment) {
    size_t i;
    json_t *entry;
    json_array_foreach(environment, i, entry) {
        if (strncmp(json_string_value(entry), "TERM=", 5) == 0)
            return;
    }
    const char *term = getenv("TERM");
    json_array_append_new(environment, json_sprintf("TERM=%s", term != NULL ? term : "linux"));
}

static int run(const char *name, struct exec_request *request, int *code, struct error *err) {
    struct client *client;
    int result = vm_connect(name, &client, err);
    if (result < 0) {
        json_decref(request->arguments);
        return result;
    }
    result = exec_run(client, request, code, err);
    client_close(client);
    return result;
}

static void take_option(int option, const char *value, json_t *arguments, bool *interactive) {
    switch (option) {
    case OPT_INTERACTIVE: *interactive = true; break;
    case OPT_TTY: json_object_set_new(arguments, "terminal", json_true()); break;
    case OPT_ENV: add_variable(json_object_get(arguments, "environment"), value); break;
    case OPT_DIRECTORY: json_object_set_new(arguments, "directory", json_string(value)); break;
    case OPT_USER: json_object_set_new(arguments, "user", json_string(value)); break;
    default: break;
    }
}

/* Text that is no UTF-8 has no place in JSON. */
static int add_command(json_t *arguments, char **words, struct error *err) {
    json_t *command = json_array();
    json_object_set_new(arguments, "command", command);
    for (; *words != NULL; words++)
        if (json_array_append_new(command, json_string(*words)) < 0)
            return error_set(err, -EINVAL, "an argument is no UTF-8");
    return 0;
}

int cmd_exec(int argc, char **argv) {
    struct option_parser parser = {.specs = exec_options, .argc = argc, .argv = argv, .at = 1};
    json_t *arguments = json_pack("{s:[]}", "environment");
    struct error err = {0};
    bool interactive = false;
    int option, code = 0;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP) {
            json_decref(arguments);
            return help();
        }
        take_option(option, parser.value, arguments, &interactive);
    }
    if (option == OPTION_END && argc - parser.at < 2)
        option = error_set(&err, -EINVAL, "usage: lodge exec [OPTIONS] NAME CMD [ARGS]");
    bool dashes =
        option == OPTION_END && argc - parser.at > 2 && strcmp(argv[parser.at + 1], "--") == 0;
    if (option != OPTION_END || add_command(arguments, argv + parser.at + 1 + dashes, &err) < 0) {
        json_decref(arguments);
        return cli_error(EXIT_NOT_STARTED, err.text);
    }
    bool terminal = json_is_true(json_object_get(arguments, "terminal"));
    if (terminal)
        add_term(json_object_get(arguments, "environment"));
    struct exec_request request = {
        .arguments = arguments,
        .in = interactive ? STDIN_FILENO : -1,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .terminal = terminal && interactive && terminal_is_there(),
    };
    int result = run(argv[parser.at], &request, &code, &err);
    if (result < 0)
        return cli_error(result == -ECONNRESET ? EXIT_LOST : EXIT_NOT_STARTED, err.text);
    return code;
}
