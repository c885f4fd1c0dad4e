/* A running VM moves to another monitor. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/disk/tools.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "machine/vm_store.h"

enum {
    OPT_BANDWIDTH,
    OPT_DOWN_TIME,
    OPT_COMPRESS,
    OPT_POST_COPY,
    OPT_COPY_DISKS,
    OPT_CA,
    OPT_CERT,
    OPT_KEY,
    OPT_RESUME,
    OPT_CANCEL,
    OPT_STATUS,
    OPT_OUTPUT,
    OPT_HELP
};

const struct option_spec migrate_options[] = {
    [OPT_BANDWIDTH] = {"bandwidth", 'b', "SIZE", "send at most so many bytes a second", 0},
    [OPT_DOWN_TIME] = {"down-time", 'd', "MS", "how long the guest may stand at the end (300)", 0},
    [OPT_COMPRESS] = {"compress", 0, "auto|on|off", "pack memory (auto: with a limit, over TCP)",
                      0},
    [OPT_POST_COPY] = {"post-copy", 0, "auto|always|never",
                       "let memory come after the VM (auto: when the guest writes it faster than "
                       "it is copied)",
                       0},
    [OPT_COPY_DISKS] = {"copy-disks", 0, NULL,
                        "copy all disks, not only those in the VM's own directory", 0},
    [OPT_CA] = {"ca", 0, "FILE", "whose certificates are trusted (PEM); for TCP", OPTION_PATH},
    [OPT_CERT] = {"cert", 0, "FILE", "this host's certificate (PEM)", OPTION_PATH},
    [OPT_KEY] = {"key", 0, "FILE", "its key (PEM)", OPTION_PATH},
    [OPT_RESUME] = {"resume", 0, NULL, "connect again after the connection broke in post-copy", 0},
    [OPT_CANCEL] = {"cancel", 0, NULL, "call a move off that is under way", 0},
    [OPT_STATUS] = {"status", 0, NULL, "say how far it is", 0},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help", 0},
    {NULL, 0, NULL, NULL, 0},
};

struct request {
    const char *vm, *to;
    const char *files[3]; /* --ca, --cert, --key */
    uint64_t bandwidth;
    unsigned long down_ms;
    int compress;          /* of compress_words */
    const char *post_copy; /* of post_copy_words; NULL: not said */
    bool copy_disks, resume, cancel, status, json;
};

static const char *const compress_words[] = {"auto", "on", "off", NULL};
static const char *const post_copy_words[] = {"auto", "always", "never", NULL};

static int help(void) {
    puts("usage: lodge migrate [OPTIONS] VM ADDRESS\n"
         "       lodge migrate --resume VM [ADDRESS]\n"
         "       lodge migrate --cancel|--status VM\n\n"
         "Moves a running VM to where 'lodge receive' listens: unix:PATH, or HOST[:PORT] with\n"
         "certificates. It runs on while its memory is copied and stands only for the last of\n"
         "it. Disks in its own directory (an image's) go along, others only with --copy-disks:\n"
         "else both sides reach them by the same paths. When anything goes wrong it runs on here,\n"
         "and nothing is left there. With post-copy it runs there before all of its memory has\n"
         "come; if the connection breaks then, --resume goes on. Options:");
    option_help(migrate_options);
    return EXIT_OK;
}

/* ---- A move ---- */

static double number(const json_t *object, const char *name) {
    return json_number_value(json_object_get(object, name));
}

static uint64_t bytes_of(const json_t *object, const char *name) {
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

static void show_progress(const json_t *data) {
    const char *stage = json_string_value(json_object_get(data, "stage"));
    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r\033[K%s", stage);
    if (strcmp(stage, "copying") == 0)
        fprintf(stderr, ", round %d", (int)number(data, "round") + 1);
    fputs(": ", stderr);
    fprintf(stderr, "%s sent, ", disk_tool_bytes(bytes_of(data, "sent")));
    fprintf(stderr, "%s left", disk_tool_bytes(bytes_of(data, "left")));
    if (number(data, "left-seconds") > 0)
        fprintf(stderr, ", about %.1f s", number(data, "left-seconds"));
    if (number(data, "throttle") > 0)
        fprintf(stderr, "; guest slowed by %d %%", (int)number(data, "throttle"));
}

/* What was heard of a move last, if its monitor ends. */
struct last {
    char stage[32];
    uint64_t left;
};

static void note_progress(const json_t *data, struct last *last) {
    snprintf(last->stage, sizeof last->stage, "%s",
             json_string_value(json_object_get(data, "stage")));
    last->left = bytes_of(data, "left");
    show_progress(data);
}

/* An answer; 0: it was none, or none yet. */
static int take_message(const json_t *message, struct last *last, json_t **answer,
                        struct error *err) {
    const char *event = json_string_value(json_object_get(message, "event"));
    const json_t *error = json_object_get(message, "error");
    json_t *returned = json_object_get(message, "return");
    if (event != NULL && strcmp(event, "MIGRATION_PROGRESS") == 0)
        note_progress(json_object_get(message, "data"), last);
    if (error != NULL)
        return error_set(err, -EREMOTEIO, "%s", json_string_value(json_object_get(error, "desc")));
    if (returned == NULL)
        return 0;
    *answer = json_incref(returned);
    return 1;
}

/* The monitor here has ended without a word: what was heard last, and what its directory tells. */
static int explain(const struct request *request, const struct last *last, struct error *err) {
    if (strcmp(last->stage, "post-copy") == 0)
        return error_set(
            err, -ECONNRESET,
            "its monitor here has ended while some of its memory (%s) was still on "
            "its way: the VM at the other side is lost, and stands where it needs "
            "that; 'lodge stop --force' and 'lodge start' there boot it anew, its disks "
            "as after a power cut",
            disk_tool_bytes(last->left));
    json_t *left = vm_store_left(request->vm);
    bool doubtful = left != NULL;
    json_decref(left);
    if (doubtful)
        return error_set(err, -ECONNRESET,
                         "its monitor here has ended just as it was handed over; 'lodge ps' at "
                         "the other side says whether it runs there, and 'lodge start --force %s' "
                         "starts it here if it does not",
                         request->vm);
    return vm_store_has(request->vm)
               ? error_set(err, -ECONNRESET,
                           "its monitor has ended here, and it runs nowhere; its disks are as "
                           "after a power cut, and 'lodge start %s' starts it",
                           request->vm)
               : error_set(err, -ECONNRESET, "its monitor has ended here once it had moved");
}

/* However long it takes. */
static int wait_for_answer(const struct request *request, struct client *client, json_t **answer,
                           struct error *err) {
    struct last last = {0};
    int result = 0;
    while (result == 0) {
        json_t *message = NULL;
        result = client_take(client, &message, err);
        if (result == 0 && message == NULL)
            client_wait(client, client_fd(client), 1000);
        else if (result == 0)
            result = take_message(message, &last, answer, err);
        json_decref(message);
    }
    if (result == -ECONNRESET)
        explain(request, &last, err);
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    return result < 0 ? result : 0;
}

/* A file's path as the monitor, which is elsewhere, sees it. */
static int add_file(json_t *arguments, const char *name, const char *file, struct error *err) {
    char path[PATH_MAX];
    if (file == NULL)
        return 0;
    if (realpath(file, path) == NULL)
        return error_set_errno(err, -errno, "--%s %s", name, file);
    json_object_set_new(arguments, name, json_string(path));
    return 0;
}

/* A socket's, too. */
static int add_address(json_t *arguments, const char *to, struct error *err) {
    char directory[PATH_MAX];
    if (strncmp(to, "unix:", 5) != 0 || to[5] == '/' || to[5] == 0) {
        json_object_set_new(arguments, "to", json_string(to));
        return 0;
    }
    if (getcwd(directory, sizeof directory) == NULL)
        return error_set_errno(err, -errno, "the current directory");
    json_object_set_new(arguments, "to", json_sprintf("unix:%s/%s", directory, to + 5));
    return 0;
}

static int make_arguments(const struct request *request, json_t *arguments, struct error *err) {
    static const char *const names[] = {"ca", "cert", "key"};
    int result = request->to != NULL ? add_address(arguments, request->to, err) : 0;
    for (int i = 0; i < 3 && result == 0; i++)
        result = add_file(arguments, names[i], request->files[i], err);
    if (request->bandwidth > 0)
        json_object_set_new(arguments, "bandwidth", json_integer((json_int_t)request->bandwidth));
    if (request->down_ms > 0)
        json_object_set_new(arguments, "down-time", json_integer((json_int_t)request->down_ms));
    if (request->copy_disks)
        json_object_set_new(arguments, "copy-disks", json_true());
    if (request->compress > 0)
        json_object_set_new(arguments, "compress", json_boolean(request->compress == 1));
    if (request->post_copy != NULL)
        json_object_set_new(arguments, "post-copy", json_string(request->post_copy));
    return result;
}

static void show_moved(const struct request *request, const json_t *answer) {
    const json_t *disks = json_object_get(answer, "disks"), *one;
    size_t i;
    printf("%s runs at %s: %s in %.1f s; it stood for %.3f s\n", request->vm,
           json_string_value(json_object_get(answer, "to")),
           disk_tool_bytes(bytes_of(answer, "sent")), number(answer, "seconds"),
           number(answer, "stood-seconds"));
    json_array_foreach(json_object_get(disks, "left-behind"), i, one) printf(
        "%s was copied; %s stays here as it was\n", json_string_value(json_object_get(one, "disk")),
        json_string_value(json_object_get(one, "file")));
}

static int move(const struct request *request, struct error *err) {
    struct client *client = NULL;
    json_t *answer = NULL, *arguments = json_object();
    int result = make_arguments(request, arguments, err);
    if (result == 0)
        result = vm_connect(request->vm, &client, err);
    if (result < 0) {
        json_decref(arguments);
        return result;
    }
    result = client_send(client, request->resume ? "migrate-resume" : "migrate", arguments, err);
    if (result == 0)
        result = wait_for_answer(request, client, &answer, err);
    client_close(client);
    if (result < 0)
        return error_prefix(err, "'%s'", request->vm);
    if (request->json)
        print_json(json_incref(answer));
    else
        show_moved(request, answer);
    json_decref(answer);
    return 0;
}

/* ---- What else there is to say to one ---- */

static int tell(const struct request *request, const char *command, struct error *err) {
    struct client *client;
    json_t *answer = NULL;
    int result = vm_connect(request->vm, &client, err);
    if (result < 0)
        return result;
    result = client_call(client, command, NULL, &answer, err);
    client_close(client);
    if (result < 0)
        return error_prefix(err, "'%s'", request->vm);
    if (request->status && !request->json)
        printf("%s\n", json_string_value(json_object_get(answer, "stage")));
    else if (request->status)
        print_json(json_incref(answer));
    json_decref(answer);
    return 0;
}

/* ---- The verb ---- */

static int parse_ms(const char *text, unsigned long *ms, struct error *err) {
    char *end;
    *ms = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != 0 || *ms < 1 || *ms > 60000)
        return error_set(err, -EINVAL, "--down-time %.40s: milliseconds, from 1 to 60000", text);
    return 0;
}

static int take(struct request *request, int option, const char *value, struct error *err) {
    switch (option) {
    case OPT_BANDWIDTH: return parse_size(value, &request->bandwidth, err);
    case OPT_DOWN_TIME: return parse_ms(value, &request->down_ms, err);
    case OPT_COMPRESS:
        return (request->compress = parse_choice("compress", value, compress_words, err)) < 0
                   ? request->compress
                   : 0;
    case OPT_POST_COPY:
        request->post_copy = value;
        return parse_choice("post-copy", value, post_copy_words, err) < 0 ? -EINVAL : 0;
    case OPT_COPY_DISKS: request->copy_disks = true; return 0;
    case OPT_CA: request->files[0] = value; return 0;
    case OPT_CERT: request->files[1] = value; return 0;
    case OPT_KEY: request->files[2] = value; return 0;
    case OPT_RESUME: request->resume = true; return 0;
    case OPT_CANCEL: request->cancel = true; return 0;
    case OPT_STATUS: request->status = true; return 0;
    default: return parse_output(value, &request->json, err);
    }
}

static int run(const struct request *request) {
    struct error err = {0};
    int result = request->cancel   ? tell(request, "migrate-cancel", &err)
                 : request->status ? tell(request, "query-migrate", &err)
                                   : move(request, &err);
    return result == 0 ? EXIT_OK : cli_error(EXIT_FAILED, err.text);
}

int cmd_migrate(int argc, char **argv) {
    struct option_parser parser = {.specs = migrate_options, .argc = argc, .argv = argv, .at = 1};
    struct request request = {0};
    struct error err = {0};
    char *operands[2] = {NULL};
    int count = 0, option;
    while ((option = option_next(&parser, &err)) != OPTION_END || parser.at < argc) {
        if (option == OPTION_ERROR)
            return cli_error(EXIT_USAGE, err.text);
        if (option == OPT_HELP)
            return help();
        if (option != OPTION_END && take(&request, option, parser.value, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
        if (option == OPTION_END && count == 2)
            break;
        if (option == OPTION_END)
            operands[count++] = argv[parser.at++];
    }
    request.vm = operands[0];
    request.to = operands[1];
    int most = request.cancel || request.status ? 1 : 2;
    int least = request.resume ? 1 : most;
    if (count < least || count > most || parser.at < argc ||
        request.cancel + request.status + request.resume > 1)
        return cli_error(EXIT_USAGE, "usage: lodge migrate [OPTIONS] VM ADDRESS, or "
                                     "lodge migrate --resume VM [ADDRESS], or "
                                     "lodge migrate --cancel|--status VM");
    return run(&request);
}
