#include "cli/start.h"

#include "cli/background.h"
#include "cli/snapshot_disks.h"
#include "cli/vm_options.h"
#include "image/image.h"

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

int start_check_left(const char *name, struct error *err) {
    json_t *left = vm_store_left(name);
    if (left == NULL)
        return 0;
    int result = error_set(err, -EBUSY,
                           "'%s' was moving to %s when its monitor ended, and may run there; if it "
                           "does not, 'lodge start --force %s' starts it",
                           name, json_string_value(json_object_get(left, "to")), name);
    json_decref(left);
    return result;
}

int start_vm(const char *name, const struct vm_directory *directory, json_t *options,
             const struct start_from *from, struct error *err) {
    struct run_config config = RUN_DEFAULTS;
    char log[PATH_MAX];
    config.name = name;
    config.directory = directory->path;
    config.lasts = true;
    int result = vm_options_apply(options, &config, err);
    if (result < 0)
        return error_prefix(err, "'%s'", name);
    if (from == NULL && (result = snapshot_disks_settle(directory->path, err)) < 0)
        return result;
    if (from != NULL) {
        config.machine.restore = from->snapshot;
        config.machine.vcpus = from->vcpus;
        config.source = from->source;
        config.identity = from->identity;
        config.batch = from->batch;
        if (config.machine.engine == ENGINE_AUTO)
            config.machine.engine = from->kvm ? ENGINE_KVM : ENGINE_SOFT;
    }
    if ((result = fetch_guest(&config, err)) < 0 ||
        (result = vm_store_path(name, "monitor.log", log, err)) < 0)
        return result;
    return background_start(log, monitor, &config, err);
}
