#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "image/image.h"

const struct option_spec image_options[] = {
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge image path      the default guest's kernel and initramfs, one a line\n"
         "       lodge image refresh   fetches newer packages for it first\n\n"
         "Both assemble the guest when it is not there yet. Options:");
    option_help(image_options);
    return EXIT_OK;
}

int cmd_image(int argc, char **argv) {
    struct option_parser parser = {.specs = image_options, .argc = argc, .argv = argv, .at = 1};
    struct error err;
    int option = option_next(&parser, &err);
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (option >= 0)
        return help();
    const char *what = parser.at < argc ? argv[parser.at] : "";
    bool refresh = strcmp(what, "refresh") == 0;
    if (!refresh && strcmp(what, "path") != 0)
        return cli_error(EXIT_USAGE, "usage: lodge image path|refresh");
    struct image_default image;
    if (image_default(refresh, &image, &err) < 0)
        return cli_error(EXIT_FAILED, err.text);
    printf("%s\n%s\n", image.kernel, image.initrd);
    return EXIT_OK;
}
