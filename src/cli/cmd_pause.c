/* pause, resume and reset: one command of the control socket each. */
#include "cli/cli.h"
#include "cli/vm.h"

const struct option_spec pause_options[] = {
    OUTPUT_OPTION,
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

const struct option_spec resume_options[] = {
    {"force", 'f', NULL, "even one that may have moved elsewhere, if nobody there answers"},
    OUTPUT_OPTION,
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

/* arguments: the call's. */
static int tell(const char *name, const char *command, json_t *arguments, struct error *err) {
    struct client *client;
    int result = vm_connect(name, &client, err);
    if (result < 0) {
        json_decref(arguments);
        return result;
    }
    result = client_call(client, command, arguments, NULL, err);
    client_close(client);
    return result < 0 ? error_prefix(err, "'%s'", name) : 0;
}

static int pause_vm(const char *name, struct names_request *request, struct error *err) {
    return tell(name, "stop", NULL, err);
}

static int resume_vm(const char *name, struct names_request *request, struct error *err) {
    return tell(name, "cont", request->force ? json_pack("{s:b}", "force", 1) : NULL, err);
}

static int reset_vm(const char *name, struct names_request *request, struct error *err) {
    return tell(name, "system_reset", NULL, err);
}

int cmd_pause(int argc, char **argv) {
    static const struct names_verb verb = {
        .usage = "pause [OPTIONS] NAME...\n\nHolds running VMs, and their clocks.",
        .options = pause_options,
        .each = pause_vm,
        .done = "paused",
    };
    struct names_request request = {0};
    return names_verb_run(&verb, &request, argc, argv);
}

int cmd_resume(int argc, char **argv) {
    static const struct names_verb verb = {
        .usage = "resume [OPTIONS] NAME...\n\n"
                 "Lets paused VMs go on. One whose move broke off as it was handed over goes on\n"
                 "here only if the other side says that it does not run there.",
        .options = resume_options,
        .each = resume_vm,
        .done = "running",
    };
    struct names_request request = {0};
    return names_verb_run(&verb, &request, argc, argv);
}

int cmd_reset(int argc, char **argv) {
    static const struct names_verb verb = {
        .usage = "reset [OPTIONS] NAME...\n\n"
                 "Presses VMs' reset button: the guest starts anew, without shutting down.",
        .options = pause_options,
        .each = reset_vm,
        .done = "running",
    };
    struct names_request request = {0};
    return names_verb_run(&verb, &request, argc, argv);
}
