#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "cli/vm_options.h"
#include "image/image.h"
#include "image/overlay.h"
#include "machine/control_names.h"
#include "machine/vm_store.h"

static int help(void) {
    puts("usage: lodge create --name NAME [OPTIONS] [IMAGE]\n\n"
         "Keeps a VM, with the options of lodge run, under a name. 'lodge start NAME' starts it\n"
         "in the background. With IMAGE ('lodge image ls'; 'debian') it gets a disk of its own\n"
         "that begins as the image's. Options:");
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
    config.lasts = true;
    json_t *copy = json_deep_copy(options);
    int result = vm_options_apply(copy, &config, err);
    json_decref(copy);
    return result;
}

static int fill(void *context, const char *directory, struct error *err) {
    return overlay_keep(context, directory, err);
}

/* A file that cloud-init would not take is not kept, either. */
static int try_cloud_init(json_t *options, struct error *err) {
    struct nameless seed = {0};
    const char *file = json_string_value(json_object_get(options, "cloud-init"));
    int result = file != NULL ? seed_create(file, "try", &seed, err) : 0;
    nameless_close(&seed);
    return result;
}

static int create(const char *name, json_t *options, struct error *err) {
    struct client *client;
    const char *from = json_string_value(json_object_get(options, "from"));
    if (from != NULL)
        return error_set(err, -EINVAL, "'lodge clone %.130s' makes VMs that go on from a snapshot",
                         from);
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
    const char *image_name = json_string_value(json_object_get(options, "image"));
    struct disk_image image;
    result = try_cloud_init(options, err);
    if (result == 0 && image_name != NULL && !vm_store_has(name))
        result = image_find_or_build(image_name, &image, err);
    if (result < 0)
        return result;
    return vm_store_create(name, options, image_name != NULL ? fill : NULL, &image, err);
}

static const struct option_spec *find_option(const char *name) {
    const struct option_spec *spec = run_options;
    while (strcmp(spec->name, name) != 0)
        spec++;
    return spec;
}

/* What is no option is the image. */
static int take_operand(json_t *options, struct option_parser *parser, struct error *err) {
    const char *word = parser->argv[parser->at++];
    if (strcmp(parser->argv[parser->at - 2], "--") == 0 ||
        json_object_get(options, "image") != NULL || image_name_check(word, NULL) < 0)
        return error_set(err, -EINVAL,
                         "'%.40s' is no option; commands are for 'lodge exec', once it runs", word);
    return vm_options_add(options, find_option("image"), word, err);
}

int cmd_create(int argc, char **argv) {
    struct option_parser parser = {.specs = run_options, .argc = argc, .argv = argv, .at = 1};
    json_t *options = json_object();
    const char *name = NULL;
    struct error err = {0};
    int result = 0;
    while (result == 0 && (parser.at < argc || parser.letters != NULL)) {
        int option = option_next(&parser, &err);
        if (option == OPTION_ERROR)
            result = -EINVAL;
        else if (option == OPTION_END && parser.at < argc)
            result = take_operand(options, &parser, &err);
        if (option < 0)
            continue;
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
    if (result == 0)
        result = create(name, options, &err);
    json_decref(options);
    if (result == -EINTR)
        return EXIT_SIGNAL + image_interrupted();
    if (result < 0)
        return cli_error(result == -EINVAL ? EXIT_USAGE : EXIT_FAILED, err.text);
    puts(name);
    return EXIT_OK;
}
