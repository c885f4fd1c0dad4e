#include "cli/run_image.h"

#include <string.h>

#include "image/file.h"
#include "machine/clone.h"
#include "machine/snapshot_store.h"

/* Of the VM, or of the one that it is a clone of for one run; NULL: there is none. */
static const char *home_of(const struct run_config *config) {
    return config->directory != NULL ? config->directory
           : config->source != NULL  ? config->source->directory
                                     : NULL;
}

int run_image_open(struct run_image *own, struct run_config *config, struct error *err) {
    struct machine_config *machine = &config->machine;
    const char *path = own->disk;
    int result;
    const char *directory = home_of(config);
    if (directory != NULL) {
        result = overlay_find(directory, &own->image, own->disk, err);
    } else {
        result = image_find_or_build(config->image, &own->image, err);
        if (result == 0)
            result = overlay_temporary(own->image.disk,
                                       &(struct block_options){.format = BLOCK_FORMAT_RAW},
                                       &own->overlay, err);
        path = own->overlay.path;
    }
    if (result < 0)
        return result;
    memmove(machine->disks + 1, machine->disks, machine->disk_count * sizeof machine->disks[0]);
    machine->disks[0] = (struct disk_config){
        .path = path, .qos.class = QOS_MEDIUM, .options.format = BLOCK_FORMAT_LODGE};
    machine->disk_count++;
    if (machine->firmware == FIRMWARE_NONE) {
        machine->kernel = own->image.kernel;
        machine->initrd = own->image.initrd;
    }
    return 0;
}

void run_image_follow(struct run_image *own, const char *directory) {
    overlay_find(directory, &own->image, own->disk, NULL);
    path_join(own->kept_seed, directory, seed_file, NULL);
}

int run_image_temporary(struct run_image *own, struct run_config *config, struct error *err) {
    for (unsigned i = 0; i < config->machine.disk_count; i++) {
        struct disk_config *disk = &config->machine.disks[i];
        struct nameless *top = &own->tops[i];
        if (!disk->temporary)
            continue;
        int result = overlay_temporary(disk->path, &disk->options, top, err);
        if (result < 0)
            return error_prefix(err, "--disk");
        disk->path = top->path;
        disk->options =
            (struct block_options){.format = BLOCK_FORMAT_LODGE, .direct = disk->options.direct};
    }
    return 0;
}

int run_image_clone(struct run_image *own, struct run_config *config, struct error *err) {
    char snapshot[SNAPSHOT_DISK_NAME_MAX];
    struct block_options options = {.format = BLOCK_FORMAT_LODGE, .snapshot = snapshot};
    snapshot_disk_name(config->source->snapshot, snapshot);
    for (unsigned i = 0; i < config->machine.disk_count; i++) {
        struct disk_config *disk = &config->machine.disks[i];
        const char *file = clone_disk(config->source, i);
        if (file == NULL) /* it was only read */
            continue;
        int result = overlay_temporary(file, &options, &own->tops[i], err);
        if (result < 0)
            return error_prefix(err, "%s@%s", config->source->vm, config->source->snapshot);
        disk->path = own->tops[i].path;
        disk->options = (struct block_options){.format = BLOCK_FORMAT_LODGE};
    }
    return 0;
}

/* One that the VM came with, or is just coming with. */
static bool has_kept_seed(struct run_image *own, const struct run_config *config) {
    const char *home = home_of(config);
    return home != NULL && (seed_find(home, own->kept_seed) || config->coming != NULL);
}

static int make_seed(struct run_image *own, const struct run_config *config, struct error *err) {
    const char *name = config->source != NULL  ? config->source->vm /* as its guest has seen it */
                       : config->name != NULL  ? config->name
                       : config->image != NULL ? config->image
                                               : "lodge";
    return seed_create(config->cloud_init, name, &own->seed, err);
}

int run_image_seed(struct run_image *own, struct run_config *config, struct error *err) {
    struct machine_config *machine = &config->machine;
    bool kept = has_kept_seed(own, config);
    int result = kept ? 0 : make_seed(own, config, err);
    if (result == 0)
        machine->disks[machine->disk_count++] =
            (struct disk_config){.path = kept ? own->kept_seed : own->seed.path,
                                 .qos.class = QOS_MEDIUM,
                                 .options = {.format = BLOCK_FORMAT_RAW, .readonly = true}};
    return result;
}

void run_image_close(struct run_image *own) {
    nameless_close(&own->overlay);
    nameless_close(&own->seed);
    for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++)
        nameless_close(&own->tops[i]);
}
