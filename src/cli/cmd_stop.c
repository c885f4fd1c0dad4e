#include "cli/cli.h"
#include "cli/vm.h"

enum { STOP_SECONDS = 30 };

const struct option_spec stop_options[] = {
    {"time", 't', "SECONDS", "how long the guest may take (30); 0 ends it at once"},
    {"force", 'f', NULL, "end it at once, as -t 0"},
    OUTPUT_OPTION,
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int stop(const char *name, struct names_request *request, struct error *err) {
    return vm_stop(name, request->force ? 0 : request->seconds, err);
}

int cmd_stop(int argc, char **argv) {
    static const struct names_verb verb = {
        .usage = "stop [OPTIONS] NAME...\n\n"
                 "Asks guests to shut down, by their agent or the ACPI power button, and ends\n"
                 "those that take too long.",
        .options = stop_options,
        .each = stop,
        .done = "stopped",
    };
    struct names_request request = {.seconds = STOP_SECONDS};
    return names_verb_run(&verb, &request, argc, argv);
}
