/* How many processors a running VM has, and more of them. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"

const struct option_spec cpus_options[] = {
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge cpus NAME [COUNT]\n\n"
         "Says how many processors a running VM has, or plugs more of them in, up to what it\n"
         "was started with room for (lodge run --cpus N,max=M). Options:");
    option_help(cpus_options);
    return EXIT_OK;
}

static int set(struct client *client, const char *text, struct error *err) {
    char *end;
    unsigned long count = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != 0 || count > INT32_MAX)
        return error_set(err, -EINVAL, "'%.40s' is no number of processors", text);
    return client_call(client, "set-cpus", json_pack("{s:i}", "count", (int)count), NULL, err);
}

static int show(struct client *client, struct error *err) {
    json_t *status;
    int result = client_call(client, "query-status", NULL, &status, err);
    if (result < 0)
        return result;
    printf("%lld of %lld\n", (long long)json_integer_value(json_object_get(status, "vcpus")),
           (long long)json_integer_value(json_object_get(status, "vcpus-max")));
    json_decref(status);
    return 0;
}

int cmd_cpus(int argc, char **argv) {
    struct option_parser parser = {.specs = cpus_options, .argc = argc, .argv = argv, .at = 1};
    struct client *client;
    struct error err = {0};
    int option = option_next(&parser, &err);
    if (option >= 0)
        return help();
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    int left = argc - parser.at;
    if (left < 1 || left > 2)
        return cli_error(EXIT_USAGE, "usage: lodge cpus NAME [COUNT]");
    const char *name = argv[parser.at];
    int result = vm_connect(name, &client, &err);
    if (result < 0)
        return cli_error(EXIT_FAILED, err.text);
    result = left == 2 ? set(client, argv[parser.at + 1], &err) : show(client, &err);
    client_close(client);
    if (result < 0)
        error_prefix(&err, "'%s'", name);
    if (result == 0)
        return EXIT_OK;
    return cli_error(result == -EINVAL ? EXIT_USAGE : EXIT_FAILED, err.text);
}
