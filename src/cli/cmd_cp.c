#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/exec.h"
#include "cli/exit_codes.h"
#include "cli/tar.h"
#include "cli/vm.h"

const struct option_spec cp_options[] = {
    {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

static int help(void) {
    puts("usage: lodge cp SOURCE NAME:PATH\n"
         "       lodge cp NAME:PATH DESTINATION\n\n"
         "Copies files and directories into a running VM's guest and out of it. Into a directory\n"
         "that is there they go under their own name; PATH/. is what is in a directory. '-' is a\n"
         "tar stream on standard input or output. Options:");
    option_help(cp_options);
    return EXIT_OK;
}

/* A path taken apart: what to go to, and the name there; "." for all that is in it. */
struct place {
    char parent[PATH_MAX], name[NAME_MAX + 1];
};

static int take_apart(const char *path, struct place *place, struct error *err) {
    char copy[PATH_MAX];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof copy)
        return error_set(err, -EINVAL, "'%.40s' is no path", path);
    memcpy(copy, path, length + 1);
    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = 0;
    const char *slash = strrchr(copy, '/'), *name = slash != NULL ? slash + 1 : copy;
    if (strlen(name) > NAME_MAX)
        return error_set(err, -ENAMETOOLONG, "'%.40s' is too long a name", name);
    bool up = strcmp(name, "..") == 0;
    snprintf(place->name, sizeof place->name, "%s", up || name[0] == 0 ? "." : name);
    if (up)
        snprintf(place->parent, sizeof place->parent, "%s", copy);
    else if (slash == NULL)
        strcpy(place->parent, ".");
    else
        snprintf(place->parent, sizeof place->parent, "%.*s",
                 slash == copy ? 1 : (int)(slash - copy), copy);
    return 0;
}

/* ---- The guest's side ---- */

struct copy {
    struct client *client;
    const char *inside, *outside; /* paths; outside may be "-" */
};

static int run(const struct copy *copy, json_t *command, int in, int out, int *code,
               struct error *err) {
    struct exec_request request = {
        .arguments = json_pack("{s:o, s:s}", "command", command, "directory", "/"),
        .in = in,
        .out = out,
        .err = STDERR_FILENO};
    return exec_run(copy->client, &request, code, err);
}

static int is_guest_directory(const struct copy *copy, bool *is, struct error *err) {
    int code, result = run(copy, json_pack("[s, s, s]", "test", "-d", copy->inside), -1,
                           STDOUT_FILENO, &code, err);
    *is = code == 0;
    return result;
}

/* The guest's tar has said why. */
static int run_tar(const struct copy *copy, json_t *command, int in, int out, struct error *err) {
    int code, result = run(copy, command, in, out, &code, err);
    if (result == 0 && code != 0)
        result = error_set(err, -EREMOTEIO, "the guest's tar ended with %d", code);
    return result;
}

/* ---- This side, in a process of its own ---- */

/* What its process ends with: FAILED has been said; BROKEN is the other side's to explain. */
enum { SIDE_FAILED = 1, SIDE_BROKEN };

static pid_t start_side(int (*side)(const void *context, int fd, struct error *err),
                        const void *context, int fd, int other) {
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    struct error err = {0};
    close(other);
    int result = side(context, fd, &err);
    if (result < 0 && result != -EPIPE)
        cli_error(EXIT_FAILED, err.text);
    _exit(result == -EPIPE ? SIDE_BROKEN : result < 0 ? SIDE_FAILED : 0);
}

/* Joins both sides by a pipe. to_guest: this side writes. */
static int join_sides(const struct copy *copy, json_t *command, bool to_guest,
                      int (*side)(const void *context, int fd, struct error *err),
                      const void *context, struct error *err) {
    int ends[2], status = 0;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set_errno(err, -errno, "pipe");
    int theirs = ends[to_guest], ours = ends[!to_guest];
    pid_t pid = start_side(side, context, theirs, ours);
    close(theirs);
    int result = pid < 0 ? error_set_errno(err, -errno, "fork")
                         : run_tar(copy, command, to_guest ? ours : -1,
                                   to_guest ? STDOUT_FILENO : ours, err);
    close(ours);
    if (pid > 0)
        waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == SIDE_FAILED) {
        err->text[0] = 0;
        return -EIO;
    }
    return result == 0 && status != 0 ? error_set(err, -EIO, "the copy was cut short") : result;
}

/* ---- Into the guest ---- */

struct pack {
    const char *path, *name;
};

static int pack(const void *context, int fd, struct error *err) {
    const struct pack *what = context;
    return tar_pack(what->path, what->name, fd, err);
}

static int copy_in(const struct copy *copy, struct error *err) {
    struct place source, target;
    struct stat status;
    bool into = false;
    if (strcmp(copy->outside, "-") == 0)
        return run_tar(copy,
                       json_pack("[s, s, s, s, s, s]", "tar", "-x", "-f", "-", "-C", copy->inside),
                       STDIN_FILENO, STDOUT_FILENO, err);
    int result = take_apart(copy->outside, &source, err);
    if (result == 0)
        result = take_apart(copy->inside, &target, err);
    if (result == 0 && lstat(copy->outside, &status) < 0)
        result = error_set_errno(err, -errno, "%s", copy->outside);
    if (result == 0)
        result = is_guest_directory(copy, &into, err);
    if (result < 0)
        return result;
    struct pack what = {copy->outside, into ? source.name : target.name};
    return join_sides(copy,
                      json_pack("[s, s, s, s, s, s]", "tar", "-x", "-f", "-", "-C",
                                into ? copy->inside : target.parent),
                      true, pack, &what, err);
}

/* ---- Out of the guest ---- */

struct unpack {
    const char *directory, *from, *to;
};

static int unpack(const void *context, int fd, struct error *err) {
    const struct unpack *what = context;
    if (chdir(what->directory) < 0)
        return error_set_errno(err, -errno, "%s", what->directory);
    return tar_unpack(fd, what->from, what->to, err);
}

static int copy_out(const struct copy *copy, struct error *err) {
    struct place source, target;
    struct stat status;
    char member[NAME_MAX + 3];
    int result = take_apart(copy->inside, &source, err);
    if (result < 0)
        return result;
    snprintf(member, sizeof member, "./%s", source.name);
    json_t *command =
        json_pack("[s, s, s, s, s, s, s]", "tar", "-c", "-f", "-", "-C", source.parent, member);
    if (strcmp(copy->outside, "-") == 0)
        return run_tar(copy, command, -1, STDOUT_FILENO, err);
    if ((result = take_apart(copy->outside, &target, err)) < 0) {
        json_decref(command);
        return result;
    }
    bool into = stat(copy->outside, &status) == 0 && S_ISDIR(status.st_mode);
    struct unpack what = {into ? copy->outside : target.parent, source.name,
                          into ? source.name : target.name};
    return join_sides(copy, command, false, unpack, &what, err);
}

/* ---- The command line ---- */

/* "NAME:PATH": where the path begins; NULL: a path of this host. Cuts the name off. */
static char *guest_path(char *text) {
    char *colon = strchr(text, ':'), *slash = strchr(text, '/');
    if (colon == NULL || colon == text || (slash != NULL && slash < colon))
        return NULL;
    *colon = 0;
    return colon + 1;
}

static int copy_files(char *from, char *to, struct error *err) {
    char *from_inside = guest_path(from), *to_inside = guest_path(to);
    if ((from_inside == NULL) == (to_inside == NULL))
        return error_set(err, -EINVAL, "one of the two is to be NAME:PATH, in a running VM");
    struct copy copy = {.inside = from_inside != NULL ? from_inside : to_inside,
                        .outside = from_inside != NULL ? to : from};
    int result = vm_connect(from_inside != NULL ? from : to, &copy.client, err);
    if (result < 0)
        return result;
    result = from_inside != NULL ? copy_out(&copy, err) : copy_in(&copy, err);
    client_close(copy.client);
    return result;
}

int cmd_cp(int argc, char **argv) {
    struct option_parser parser = {.specs = cp_options, .argc = argc, .argv = argv, .at = 1};
    struct error err = {0};
    int option = option_next(&parser, &err);
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (option >= 0)
        return help();
    if (argc - parser.at != 2)
        return cli_error(EXIT_USAGE, "usage: lodge cp SOURCE NAME:PATH, or NAME:PATH DESTINATION");
    int result = copy_files(argv[parser.at], argv[parser.at + 1], &err);
    if (result < 0 && err.text[0] != 0)
        cli_error(EXIT_FAILED, err.text);
    return result == 0 ? EXIT_OK : result == -EINVAL ? EXIT_USAGE : EXIT_FAILED;
}
