#include "cli/from.h"

#include <malloc.h>
#include <string.h>
#include <sys/prctl.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm_options.h"
#include "machine/snapshot_store.h"

/* The source VM's alone. */
static const char *const not_shared[] = {"publish", "firmware-vars", "mac",
                                         "name",    "perf-map",      "generation-id"};

void from_drop_options(json_t *options) {
    for (size_t i = 0; i < ARRAY_SIZE(not_shared); i++)
        json_object_del(options, not_shared[i]);
}

void from_be_frugal(void) {
    enum { MMAP_LEAST = 128 << 10 };
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    mallopt(M_MMAP_THRESHOLD, MMAP_LEAST); /* which else grows with what is freed */
}

static int check_disks(const struct run_config *config, struct error *err) {
    for (unsigned i = 0; i < config->machine.disk_count; i++)
        if (config->machine.disks[i].temporary)
            return error_set(err, -ENOTSUP,
                             "its disk %s is a temporary one, which ends with the VM's run",
                             config->machine.disks[i].path);
    return 0;
}

int from_configure(struct run_config *config, const struct clone_source *source,
                   struct error *err) {
    from_drop_options(source->options);
    const char *const *command = config->command;
    config->command = NULL; /* it is the VM that is described, as when it was started */
    int result = vm_options_apply(source->options, config, err);
    config->command = command;
    if (result == 0 && config->console != CONSOLE_AGENT)
        result = error_set(err, -ENOTSUP,
                           "it has no lodge-agent that could make a clone another machine");
    if (result == 0)
        result = check_disks(config, err);
    config->source = source;
    config->machine.restore = source->saved;
    config->machine.vcpus = clone_vcpus(source);
    if (config->machine.engine == ENGINE_AUTO)
        config->machine.engine = snapshot_is_kvm(source->about) ? ENGINE_KVM : ENGINE_SOFT;
    return result < 0 ? error_prefix(err, "no clone of '%s'", source->vm) : 0;
}

/* It ends when the guest reboots, so there is nothing to be booted. */
int from_run(struct run_config *config, const char *text) {
    struct clone_source source = {0};
    struct clone_identity identity;
    struct error err = {0};
    config->lasts = true; /* as the source's options were taken */
    int code, result = clone_parse(text, &source, &err);
    if (result == 0)
        result = clone_open(&source, &err);
    if (result == 0)
        result = from_configure(config, &source, &err);
    if (result == 0)
        result = clone_identity_make(source.vm, config->name, &identity, &err);
    config->identity = &identity;
    config->machine.on_reboot = REBOOT_STOP;
    code = result < 0 ? cli_error(EXIT_NOT_STARTED, err.text) : run_guest(config);
    clone_close(&source);
    return code;
}
