#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "image/image.h"
#include "image/store.h"

enum { OPT_SUITE, OPT_SIZE, OPT_INCLUDE, OPT_MIRROR, OPT_NAME, OPT_OUTPUT, OPT_HELP };

const struct option_spec image_options[] = {
    [OPT_SUITE] = {"suite", 's', "SUITE", "build: which Debian (bookworm)"},
    [OPT_SIZE] = {"size", 0, "SIZE", "build: of the disk, which is thin (8G)"},
    [OPT_INCLUDE] = {"include", 'i', "PACKAGE[,...]", "build: more packages; repeatable"},
    [OPT_MIRROR] = {"mirror", 0, "URL", "build: where packages come from (deb.debian.org)"},
    [OPT_NAME] = {"name", 'n', "NAME", "build: the image's name (debian, or debian-SUITE)"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

struct image_request {
    struct image_recipe recipe;
    bool json, builds; /* an option of build's was given */
    int count;
    char **operands;
};

static int help(void) {
    puts("usage: lodge image build debian [OPTIONS]   makes a bootable disk: lodge run debian\n"
         "       lodge image ls                       lists images\n"
         "       lodge image rm NAME...               removes images\n"
         "       lodge image path                     the default guest's kernel and initramfs\n"
         "       lodge image refresh                  fetches newer packages for it first\n\n"
         "build does nothing when the image is there and no package has a newer version. path\n"
         "and refresh assemble the default guest when it is not there yet. Options:");
    option_help(image_options);
    return EXIT_OK;
}

static int failed(int result, const struct error *err) {
    if (result == -EINTR)
        return EXIT_SIGNAL + image_interrupted();
    return cli_error(result == -EINVAL ? EXIT_USAGE : EXIT_FAILED, err->text);
}

/* ---- Each of them ---- */

static json_t *describe(const struct disk_image *image) {
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s}", "name", image->name, "suite",
                     image->suite, "kernel", image->release, "size", (json_int_t)image->size,
                     "used", (json_int_t)image->used, "made", (json_int_t)image->made, "disk",
                     image->disk);
}

static int build(struct image_request *request, struct error *err) {
    struct disk_image image;
    if (request->count != 1 || strcmp(request->operands[0], "debian") != 0)
        return error_set(err, -EINVAL, "usage: lodge image build debian [OPTIONS]");
    int result = image_build(&request->recipe, &image, err);
    if (result == 0 && request->json)
        print_json(describe(&image));
    else if (result == 0)
        puts(image.name);
    return result;
}

static int list(struct image_request *request, struct error *err) {
    struct disk_image *images = NULL;
    size_t count = 0;
    int result = request->count != 0 ? error_set(err, -EINVAL, "usage: lodge image ls")
                                     : image_list(&images, &count, err);
    if (result < 0)
        return result;
    json_t *all = json_array();
    if (!request->json)
        printf("%-20s %-10s %8s %8s  %-16s %s\n", "NAME", "SUITE", "SIZE", "USED", "MADE",
               "KERNEL");
    for (size_t i = 0; i < count; i++) {
        const struct disk_image *image = &images[i];
        char made[32] = "";
        time_t when = image->made;
        strftime(made, sizeof made, "%Y-%m-%d %H:%M", localtime(&when));
        if (request->json)
            json_array_append_new(all, describe(image));
        else
            printf("%-20s %-10s %7lluM %7lluM  %-16s %s\n", image->name, image->suite,
                   (unsigned long long)image->size >> 20, (unsigned long long)image->used >> 20,
                   made, image->release);
    }
    free(images);
    if (request->json)
        print_json(json_incref(all));
    json_decref(all);
    return 0;
}

static int remove_all(struct image_request *request, struct error *err) {
    if (request->count == 0)
        return error_set(err, -EINVAL, "usage: lodge image rm NAME...");
    int result = 0;
    for (int i = 0; i < request->count && result == 0; i++)
        result = image_remove(request->operands[i], err);
    return result;
}

static int default_guest(struct image_request *request, bool refresh, struct error *err) {
    struct image_default image;
    int result = image_default(refresh, &image, err);
    if (result == 0)
        printf("%s\n%s\n", image.kernel, image.initrd);
    return result;
}

static int path(struct image_request *request, struct error *err) {
    return default_guest(request, false, err);
}

static int refresh(struct image_request *request, struct error *err) {
    return default_guest(request, true, err);
}

/* ---- The command line ---- */

static const struct {
    const char *name;
    int (*run)(struct image_request *request, struct error *err);
} actions[] = {
    {"build", build}, {"ls", list}, {"rm", remove_all}, {"path", path}, {"refresh", refresh},
};

static int take_includes(struct image_recipe *recipe, char *value, struct error *err) {
    char *save = NULL;
    for (char *word = strtok_r(value, ",", &save); word != NULL;
         word = strtok_r(NULL, ",", &save)) {
        if (recipe->include_count == IMAGE_INCLUDES_MAX)
            return error_set(err, -EINVAL, "more than %d packages", IMAGE_INCLUDES_MAX);
        recipe->includes[recipe->include_count++] = word;
    }
    return 0;
}

static int take(struct image_request *request, int option, char *value, struct error *err) {
    struct image_recipe *recipe = &request->recipe;
    request->builds |= option < OPT_OUTPUT;
    switch (option) {
    case OPT_SUITE: recipe->suite = value; break;
    case OPT_SIZE: return parse_size(value, &recipe->size, err);
    case OPT_INCLUDE: return take_includes(recipe, value, err);
    case OPT_MIRROR: recipe->mirror = value; break;
    case OPT_NAME: recipe->name = value; return image_name_check(value, err);
    case OPT_OUTPUT: return parse_output(value, &request->json, err);
    }
    return 0;
}

/* Options may stand before and behind the operands. */
static int parse(struct image_request *request, struct option_parser *parser, bool *wants_help,
                 struct error *err) {
    request->operands = parser->argv + 1;
    while (parser->at < parser->argc || parser->letters != NULL) {
        int option = option_next(parser, err);
        *wants_help = option == OPT_HELP;
        if (option == OPTION_ERROR || *wants_help)
            return *wants_help ? 0 : -EINVAL;
        if (option == OPTION_END && parser->at < parser->argc)
            request->operands[request->count++] = parser->argv[parser->at++];
        else if (option >= 0 && take(request, option, (char *)parser->value, err) < 0)
            return -EINVAL;
    }
    return 0;
}

int cmd_image(int argc, char **argv) {
    struct option_parser parser = {.specs = image_options, .argc = argc, .argv = argv, .at = 1};
    struct image_request request = {0};
    struct error err = {0};
    bool wants_help = false;
    if (parse(&request, &parser, &wants_help, &err) < 0)
        return cli_error(EXIT_USAGE, err.text);
    if (wants_help)
        return help();
    const char *what = request.count > 0 ? request.operands[0] : "";
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++) {
        if (strcmp(what, actions[i].name) != 0)
            continue;
        if (request.builds && actions[i].run != build)
            return cli_error(EXIT_USAGE, "this option is for 'lodge image build'");
        request.operands++;
        request.count--;
        int result = actions[i].run(&request, &err);
        return result < 0 ? failed(result, &err) : EXIT_OK;
    }
    return cli_error(EXIT_USAGE, "usage: lodge image build|ls|rm|path|refresh; --help tells more");
}
