#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "cli/vm_options.h"
#include "machine/control_names.h"
#include "machine/vm_store.h"

static int help(void) {
    puts("usage: lodge create --name NAME [OPTIONS]\n\n"
         "Keeps a VM, with the options of lodge run, under a name. 'lodge start NAME' starts it\n"
         "in the background. Options:");
    option_help(run_options);
    return EXIT_OK;
}

/* These say how a single run is done, not what the VM is. */
static bool is_kept(const struct option_spec *spec) {
    return strcmp(spec->name, "name") != 0 && strcmp(spec->name, "verbose") != 0;
}

/* Everything is tried out before it is kept. */
static int check_all(json_t *options, struct error *err) {
    struct run_config config = RUN_DEFAULTS;
    json_t *copy = json_deep_copy(options);
    int result = vm_options_apply(copy, &config, err);
    json_decref(copy);
    return result;
}

static int create(const char *name, json_t *options, struct error *err) {
    struct client *client;
    if (name == NULL)
        return error_set(err, -EINVAL, "a VM that lasts needs a name: lodge create --name NAME");
    int result = vm_name_check(name, err);
    if (result == 0)
        result = check_all(options, err);
    if (result < 0)
        return result;
    if (!vm_store_has(name) && vm_connect(name, &client, NULL) == 0) {
        client_close(client);
        return error_set(err, -EEXIST, "a VM named '%s' is running already, from 'lodge run'",
                         name);
    }
    return vm_store_create(name, options, err);
}

int cmd_create(int argc, char **argv) {
    struct option_parser parser = {.specs = run_options, .argc = argc, .argv = argv, .at = 1};
    json_t *options = json_object();
    const char *name = NULL;
    struct error err = {0};
    int option, result = 0;
    while (result == 0 && (option = option_next(&parser, &err)) >= 0) {
        const struct option_spec *spec = &run_options[option];
        if (spec->letter == 'h') {
            json_decref(options);
            return help();
        }
        if (strcmp(spec->name, "name") == 0)
            name = parser.value;
        if (is_kept(spec))
            result = vm_options_add(options, spec, parser.value, &err);
    }
    if (result == 0 && option == OPTION_ERROR)
        result = -EINVAL;
    if (result == 0 && parser.at < argc)
        result = error_set(&err, -EINVAL,
                           "'%.40s' is no option; commands are for 'lodge exec', once it runs",
                           argv[parser.at]);
    if (result == 0)
        result = create(name, options, &err);
    json_decref(options);
    if (result < 0)
        return cli_error(result == -EINVAL ? EXIT_USAGE : EXIT_FAILED, err.text);
    puts(name);
    return EXIT_OK;
}
