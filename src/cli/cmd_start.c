#include <stdio.h>

#include "cli/background.h"
#include "cli/cli.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "cli/vm_options.h"
#include "image/image.h"
#include "machine/vm_store.h"

const struct option_spec start_options[] = {
    {"attach", 'a', NULL, "stay, with the console on this terminal"},
    OUTPUT_OPTION,
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int monitor(void *context, struct background *background) {
    struct run_config *config = context;
    config->background = background;
    return run_guest(config);
}

/* In this process, where its progress is seen; the monitor then finds it there. */
static int fetch_guest(const struct run_config *config, struct error *err) {
    struct image_default image;
    return run_wants_default_guest(config) ? image_default(false, &image, err) : 0;
}

/* Locked until the monitor has ended: it inherits the lock. */
static int start_locked(const char *name, const struct vm_directory *directory, json_t *options,
                        struct error *err) {
    struct run_config config = RUN_DEFAULTS;
    char log[PATH_MAX];
    config.name = name;
    config.directory = directory->path;
    config.lasts = true;
    int result = vm_options_apply(options, &config, err);
    if (result < 0)
        return error_prefix(err, "'%s'", name);
    if ((result = fetch_guest(&config, err)) < 0 ||
        (result = vm_store_path(name, "monitor.log", log, err)) < 0)
        return result;
    return background_start(log, monitor, &config, err);
}

static int start(const char *name, struct names_request *request, struct error *err) {
    struct vm_directory directory;
    json_t *options = NULL;
    int result = vm_store_lock(name, &directory, err);
    if (result == -EBUSY)
        return error_set(err, result, "'%s' is running already", name);
    if (result < 0)
        return result;
    result = vm_store_load(name, &options, err);
    if (result == 0)
        result = start_locked(name, &directory, options, err);
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
