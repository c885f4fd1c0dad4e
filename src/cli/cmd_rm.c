#include "cli/cli.h"
#include "cli/remove.h"
#include "cli/vm.h"

const struct option_spec rm_options[] = {
    {"force", 'f', NULL, "end it first when it runs"},
    OUTPUT_OPTION,
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int remove_vm(const char *name, struct names_request *request, struct error *err) {
    return vm_remove(name, request->force, err);
}

int cmd_rm(int argc, char **argv) {
    static const struct names_verb verb = {
        .usage = "rm [OPTIONS] NAME...\n\n"
                 "Removes VMs that 'lodge create' has made, with all that lodge keeps for them;\n"
                 "disks that were given by their path stay.",
        .options = rm_options,
        .each = remove_vm,
        .done = "removed",
    };
    struct names_request request = {0};
    return names_verb_run(&verb, &request, argc, argv);
}
