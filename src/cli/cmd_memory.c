/* How much memory a running VM has and takes of the host; less of it, or more. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"

enum { OPT_PAGE_OUT, OPT_KEEP, OPT_PAGE_IN, OPT_TIMEOUT, OPT_OUTPUT, OPT_HELP };
enum { TIMEOUT_SECONDS = 15 };

const struct option_spec memory_options[] = {
    [OPT_PAGE_OUT] = {"page-out", 0, NULL, "write its memory to a file and drop it"},
    [OPT_KEEP] = {"keep", 0, "SIZE", "with --page-out: as much may stay (0)"},
    [OPT_PAGE_IN] = {"page-in", 0, NULL, "bring all of that back now"},
    [OPT_TIMEOUT] = {"timeout", 't', "SECONDS",
                     "how long the guest may take for the next step (15); 0: do not wait"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

struct memory_verb {
    const char *name;
    unsigned seconds;
    bool json, page_out, page_in, keeps;
    uint64_t keep;
};

static int help(void) {
    puts(
        "usage: lodge memory [OPTIONS] NAME [SIZE]\n"
        "       lodge memory --page-out [--keep SIZE] NAME\n"
        "       lodge memory --page-in NAME\n\n"
        "Shows how much memory a running VM has, how much of it the host holds, and what the\n"
        "guest says of it. With SIZE the guest gives memory up, or takes it back, until it has\n"
        "so much: down by its balloon, above what it was started with by plugging memory in\n"
        "(lodge run --memory SIZE,max=MOST).\n\n"
        "--page-out writes what the guest does not change at the moment to a file without a name,\n"
        "in the VM's directory, and gives it back to the host; it is read when the guest touches\n"
        "it. The guest runs on. Options:");
    option_help(memory_options);
    return EXIT_OK;
}

static uint64_t bytes(const json_t *object, const char *member) {
    return (uint64_t)json_integer_value(json_object_get(object, member));
}

static double mib(const json_t *object, const char *member) {
    return (double)bytes(object, member) / (1 << 20);
}

/* ---- Showing ---- */

static void print_statistics(const json_t *memory) {
    static const char *const shown[] = {"total", "available", "free", "caches"};
    const json_t *statistics = json_object_get(memory, "statistics");
    if (!json_is_true(json_object_get(memory, "balloon-driver"))) {
        puts("the guest says nothing of its memory: its kernel has not loaded virtio_balloon");
        return;
    }
    if (statistics == NULL)
        return;
    puts("in the guest:");
    for (unsigned i = 0; i < ARRAY_SIZE(shown); i++)
        if (json_object_get(statistics, shown[i]) != NULL)
            printf("  %-9s %10.1f MiB\n", shown[i], mib(statistics, shown[i]));
}

static void print_memory(const json_t *memory) {
    printf("size        %10.1f MiB", mib(memory, "size"));
    if (bytes(memory, "target") != bytes(memory, "size"))
        printf(", is to be %.1f MiB", mib(memory, "target"));
    printf("\nmost        %10.1f MiB\n", mib(memory, "max"));
    printf("on the host %10.1f MiB", mib(memory, "resident"));
    puts(json_is_true(json_object_get(memory, "huge-pages")) ? ", huge pages, all reserved" : "");
    if (bytes(memory, "away") > 0)
        printf("paged out   %10.1f MiB\n", mib(memory, "away"));
    print_statistics(memory);
}

static int show(struct client *client, const struct memory_verb *verb, struct error *err) {
    json_t *memory = NULL;
    int result = client_call(client, "query-memory", NULL, &memory, err);
    if (result < 0)
        return result;
    if (verb->json)
        print_json(json_incref(memory));
    else
        print_memory(memory);
    json_decref(memory);
    return 0;
}

/* ---- Changing ---- */

static void progress(uint64_t size, uint64_t target, const char *end) {
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%.1f MiB, on the way to %.1f MiB%s", (double)size / (1 << 20),
                (double)target / (1 << 20), end);
}

/* Takes what events say until there are no more. */
static int take_events(struct client *client, uint64_t *size, struct error *err) {
    json_t *message;
    int result;
    while ((result = client_take(client, &message, err)) == 0 && message != NULL) {
        const char *event = json_string_value(json_object_get(message, "event"));
        if (event != NULL && strcmp(event, "MEMORY_CHANGE") == 0)
            *size = bytes(json_object_get(message, "data"), "size");
        json_decref(message);
    }
    return result;
}

static int gave_up(uint64_t size, uint64_t target, struct error *err) {
    return error_set(err, -ETIMEDOUT,
                     "the guest stays at %.1f MiB, on the way to %.1f MiB; %s. It goes on trying",
                     (double)size / (1 << 20), (double)target / (1 << 20),
                     size > target ? "it uses what it has" : "it does not take more");
}

static int wait_for(struct client *client, const struct memory_verb *verb, uint64_t target,
                    struct error *err) {
    json_t *memory = NULL;
    int result = client_call(client, "query-memory", NULL, &memory, err);
    if (result < 0)
        return result;
    uint64_t size = bytes(memory, "size"), last = size;
    uint64_t end = host_clock_ns() + verb->seconds * NS_PER_SECOND;
    json_decref(memory);
    while (size != target && result == 0) {
        uint64_t now = host_clock_ns();
        if (now >= end) {
            progress(size, target, "\n");
            return gave_up(size, target, err);
        }
        progress(size, target, "");
        client_wait(client, client_fd(client), (int)((end - now) / 1000000) + 1);
        result = take_events(client, &size, err);
        if (size != last)
            end = host_clock_ns() + verb->seconds * NS_PER_SECOND;
        last = size;
    }
    if (result == 0)
        progress(size, target, "\n");
    return result;
}

static int set(struct client *client, const struct memory_verb *verb, const char *text,
               struct error *err) {
    uint64_t size, target;
    json_t *answer = NULL;
    int result = parse_size(text, &size, err);
    if (result == 0 && size > INT64_MAX)
        result = error_set(err, -EINVAL, "'%.40s' is too large a size", text);
    if (result == 0)
        result = client_call(client, "set-memory", json_pack("{s:I}", "size", (json_int_t)size),
                             &answer, err);
    if (result < 0)
        return result;
    target = bytes(answer, "size");
    json_decref(answer);
    if (verb->seconds > 0)
        result = wait_for(client, verb, target, err);
    if (result == 0 && verb->json)
        return show(client, verb, err);
    return result;
}

/* ---- Paging ---- */

static void show_paging(void *context, const char *event, const json_t *data) {
    (void)context;
    if (strcmp(event, "PAGE_PROGRESS") == 0 && isatty(STDERR_FILENO))
        fprintf(stderr, "\r%.0f of %.0f MiB", mib(data, "done"), mib(data, "total"));
}

static int page(struct client *client, const struct memory_verb *verb, struct error *err) {
    json_t *answer = NULL;
    client_on_event(client, show_paging, NULL);
    int result = verb->page_in ? client_call(client, "memory-page-in", NULL, &answer, err)
                               : client_call(client, "memory-page-out",
                                             json_pack("{s:I}", "keep", (json_int_t)verb->keep),
                                             &answer, err);
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    if (result == 0 && verb->json)
        print_json(json_incref(answer));
    else if (result == 0)
        printf("%.1f MiB paged out, %.1f MiB on the host\n", mib(answer, "away"),
               mib(answer, "resident"));
    json_decref(answer);
    return result;
}

/* ---- The verb ---- */

static int parse_timeout(const char *text, unsigned *seconds, struct error *err) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != 0 || value > 86400)
        return error_set(err, -EINVAL, "--timeout %.40s: seconds, from 0 to 86400", text);
    *seconds = (unsigned)value;
    return 0;
}

static int parse_keep(const char *text, uint64_t *keep, struct error *err) {
    int result = parse_size(text, keep, err);
    if (result == 0 && *keep > INT64_MAX)
        result = error_set(err, -EINVAL, "--keep %.40s: too large a size", text);
    return result;
}

static int take_option(struct memory_verb *verb, int option, const char *value, struct error *err) {
    switch (option) {
    case OPT_PAGE_OUT: verb->page_out = true; return 0;
    case OPT_PAGE_IN: verb->page_in = true; return 0;
    case OPT_KEEP: verb->keeps = true; return parse_keep(value, &verb->keep, err);
    case OPT_TIMEOUT: return parse_timeout(value, &verb->seconds, err);
    default: return parse_output(value, &verb->json, err);
    }
}

static bool is_sensible(const struct memory_verb *verb, int left) {
    bool pages = verb->page_out || verb->page_in;
    return !(verb->page_out && verb->page_in) && !(verb->keeps && !verb->page_out) &&
           (left == 1 || (left == 2 && !pages));
}

static int run(const struct memory_verb *verb, const char *size, struct error *err) {
    struct client *client;
    int result = vm_connect(verb->name, &client, err);
    if (result < 0)
        return result;
    result = verb->page_out || verb->page_in ? page(client, verb, err)
             : size != NULL                  ? set(client, verb, size, err)
                                             : show(client, verb, err);
    client_close(client);
    return result < 0 ? error_prefix(err, "'%s'", verb->name) : 0;
}

int cmd_memory(int argc, char **argv) {
    struct option_parser parser = {.specs = memory_options, .argc = argc, .argv = argv, .at = 1};
    struct memory_verb verb = {.seconds = TIMEOUT_SECONDS};
    struct error err = {0};
    int option;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (option == OPT_HELP)
            return help();
        if (take_option(&verb, option, parser.value, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    int left = argc - parser.at;
    if (!is_sensible(&verb, left))
        return cli_error(EXIT_USAGE, "usage: lodge memory [OPTIONS] NAME [SIZE], "
                                     "lodge memory --page-out [--keep SIZE] NAME, "
                                     "lodge memory --page-in NAME");
    verb.name = argv[parser.at];
    int result = run(&verb, left == 2 ? argv[parser.at + 1] : NULL, &err);
    if (result == 0)
        return EXIT_OK;
    return cli_error(result == -EINVAL ? EXIT_USAGE : EXIT_FAILED, err.text);
}
