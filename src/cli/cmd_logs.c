#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "machine/vm_store.h"

enum { OPT_FOLLOW, OPT_MONITOR, OPT_HELP };

const struct option_spec logs_options[] = {
    [OPT_FOLLOW] = {"follow", 'f', NULL, "go on with what comes, until the VM ends"},
    [OPT_MONITOR] = {"monitor", 'm', NULL, "what lodge itself said of it, not its console"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge logs [OPTIONS] NAME\n\n"
         "Prints what a VM that 'lodge create' has made has said on its serial console, over its\n"
         "starts, up to 2 MiB back. Options:");
    option_help(logs_options);
    return EXIT_OK;
}

/* All from where it is. False: nobody reads it. */
static bool print_rest(int fd) {
    char text[8192];
    ssize_t got;
    while ((got = read(fd, text, sizeof text)) > 0)
        if (fwrite(text, 1, (size_t)got, stdout) != (size_t)got)
            return false;
    return fflush(stdout) == 0;
}

static bool is_same_file(int fd, const char *path) {
    struct stat ours, there;
    return fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_ino == there.st_ino;
}

/* A log that was rotated away is printed to its end before the new one. */
static bool print_more(int *fd, const char *path) {
    while (print_rest(*fd)) {
        if (is_same_file(*fd, path))
            return true;
        int next = open(path, O_RDONLY | O_CLOEXEC);
        if (next < 0)
            return true;
        bool printed = print_rest(*fd);
        close(*fd);
        *fd = next;
        if (!printed)
            return false;
    }
    return false;
}

/* The wait also ends by time: a monitor that is killed changes no file. */
static void follow(const char *name, const char *directory, const char *path, int *fd) {
    enum { LOOK_AGAIN_MS = 500 };
    int changes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    struct pollfd waiting = {.fd = changes, .events = POLLIN};
    char events[4096];
    if (changes >= 0)
        inotify_add_watch(changes, directory, IN_MODIFY | IN_MOVE | IN_CREATE);
    for (bool running = true; running;) {
        running = vm_store_is_busy(name); /* before the last look: nothing is missed */
        if (!print_more(fd, path))
            break;
        if (running)
            poll(&waiting, 1, LOOK_AGAIN_MS);
        while (read(changes, events, sizeof events) > 0)
            ;
    }
    if (changes >= 0)
        close(changes);
}

static int print_logs(const char *name, bool monitor, bool following, struct error *err) {
    char directory[PATH_MAX], path[PATH_MAX], older[PATH_MAX];
    int result = vm_store_path(name, "", directory, err);
    if (result == 0 && !vm_store_has(name))
        result =
            error_set(err, -ENOENT, "no VM named '%s' is kept; 'lodge ps -a' lists them", name);
    if (result == 0)
        result = vm_store_path(name, monitor ? "monitor.log" : "console.log", path, err);
    if (result == 0)
        result = vm_store_path(name, "console.log.1", older, err);
    if (result < 0)
        return result;
    int before = monitor ? -1 : open(older, O_RDONLY | O_CLOEXEC);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (before >= 0) {
        print_rest(before);
        close(before);
    }
    if (fd < 0)
        return errno == ENOENT ? 0 : error_set_errno(err, -errno, "%s", path);
    if (following)
        follow(name, directory, path, &fd);
    else
        print_rest(fd);
    close(fd);
    return 0;
}

int cmd_logs(int argc, char **argv) {
    struct option_parser parser = {.specs = logs_options, .argc = argc, .argv = argv, .at = 1};
    struct error err = {0};
    bool following = false, monitor = false;
    int option;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP)
            return help();
        following |= option == OPT_FOLLOW;
        monitor |= option == OPT_MONITOR;
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (argc - parser.at != 1)
        return cli_error(EXIT_USAGE, "usage: lodge logs [OPTIONS] NAME");
    int result = print_logs(argv[parser.at], monitor, following, &err);
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : EXIT_OK;
}
