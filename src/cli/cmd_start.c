#include <stdio.h>

#include "cli/cli.h"
#include "cli/console.h"
#include "cli/start.h"
#include "cli/vm.h"

const struct option_spec start_options[] = {
    {"force", 'f', NULL, "even one that may have moved elsewhere"},
    {"attach", 'a', NULL, "stay, with the console on this terminal"},
    OUTPUT_OPTION,
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int start(const char *name, struct names_request *request, struct error *err) {
    struct vm_directory directory;
    json_t *options = NULL;
    int result = vm_store_lock(name, &directory, err);
    if (result == -EBUSY)
        return error_set(err, result, "'%s' is running already", name);
    if (result < 0)
        return result;
    result =
        request->force ? vm_store_unmark_left(directory.path, err) : start_check_left(name, err);
    if (result == 0)
        result = vm_store_load(name, &options, err);
    if (result == 0)
        result = start_vm(name, &directory, options, NULL, err);
    json_decref(options);
    vm_store_unlock(&directory);
    if (result == 0 && request->attach)
        result = console_attach(name, true, CONSOLE_HISTORY, err);
    return result;
}

int cmd_start(int argc, char **argv) {
    static const struct names_verb verb = {
        .usage = "start [OPTIONS] NAME...\n\n"
                 "Starts VMs that 'lodge create' has made, in the background; returns once they\n"
                 "are up. 'lodge exec NAME CMD' then runs programs in them.",
        .options = start_options,
        .each = start,
        .done = "running",
    };
    struct names_request request = {0};
    return names_verb_run(&verb, &request, argc, argv);
}
