#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"

enum { OPT_SCALE, OPT_OUTPUT, OPT_HELP };

const struct option_spec time_options[] = {
    [OPT_SCALE] = {"scale", 's', "X", "guest seconds in a second from now on, 0.01 to 100"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge time [OPTIONS] NAME\n\n"
         "Shows a running VM's time, or changes how fast it passes. Options:");
    option_help(time_options);
    return EXIT_OK;
}

static double number(const json_t *object, const char *member) {
    return json_number_value(json_object_get(object, member));
}

static void print_time(const json_t *state) {
    time_t wall = (time_t)number(state, "wall-seconds");
    char date[64] = "";
    struct tm broken_down;
    if (gmtime_r(&wall, &broken_down) != NULL)
        strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S UTC", &broken_down);
    printf("guest time  %.3f s%s\n", number(state, "guest-seconds"),
           json_is_true(json_object_get(state, "paused")) ? ", paused" : "");
    printf("wall clock  %s\n", date);
    printf("scale       %g\n", number(state, "scale"));
    if (number(state, "behind-seconds") > 0)
        printf("behind      %.3f s, which it catches up with\n", number(state, "behind-seconds"));
}

static int ask(const char *name, const char *scale, json_t **state, struct error *err) {
    char *end = NULL;
    double value = scale != NULL ? strtod(scale, &end) : 0;
    struct client *client;
    if (scale != NULL && (end == scale || *end != 0))
        return error_set(err, -EINVAL, "--scale %.40s: a number", scale);
    int result = vm_connect(name, &client, err);
    if (result < 0)
        return result;
    json_t *arguments = scale != NULL ? json_pack("{s:f}", "scale", value) : NULL;
    result = client_call(client, scale != NULL ? "set-time" : "query-time", arguments, state, err);
    client_close(client);
    return result < 0 ? error_prefix(err, "'%s'", name) : 0;
}

int cmd_time(int argc, char **argv) {
    struct option_parser parser = {.specs = time_options, .argc = argc, .argv = argv, .at = 1};
    struct error err = {0};
    const char *scale = NULL;
    json_t *state = NULL;
    bool json = false;
    int option;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP)
            return help();
        if (option == OPT_SCALE)
            scale = parser.value;
        else if (parse_output(parser.value, &json, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (argc - parser.at != 1)
        return cli_error(EXIT_USAGE, "usage: lodge time [OPTIONS] NAME");
    if (ask(argv[parser.at], scale, &state, &err) < 0)
        return cli_error(EXIT_FAILED, err.text);
    if (json)
        print_json(json_incref(state));
    else
        print_time(state);
    json_decref(state);
    return EXIT_OK;
}
