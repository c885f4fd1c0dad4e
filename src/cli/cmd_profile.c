#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/exit_codes.h"
#include "cli/vm.h"
#include "machine/control_names.h"

enum { OPT_SECONDS, OPT_TOP, OPT_INTERVAL, OPT_OUTPUT, OPT_PERF_MAP, OPT_HELP };

const struct option_spec profile_options[] = {
    [OPT_SECONDS] = {"seconds", 's', "N", "how long to look (10); Ctrl-C ends it earlier"},
    [OPT_TOP] = {"top", 'n', "N", "lines of each list (20)"},
    [OPT_INTERVAL] = {"interval", 0, "US", "microseconds between samples, on average (1000)"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_PERF_MAP] = {"perf-map", 0, NULL, "have the VM write a map of its code for perf(1), too"},
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

enum { SECONDS_MAX = 86400, TOP_MAX = 1000 };

struct request {
    const char *name;
    unsigned seconds, top, interval_us;
    bool json, perf_map;
};

/* ---- Text ---- */

static double number(const json_t *object, const char *member) {
    return json_number_value(json_object_get(object, member));
}

static const char *word(const json_t *object, const char *member) {
    const char *text = json_string_value(json_object_get(object, member));
    return text != NULL ? text : "";
}

static void print_time(const json_t *report) {
    size_t i;
    json_t *entry;
    printf("%.1f s, %u vCPU, %.0f samples, %.1f s of CPU (other threads %.1f s)\n\n",
           number(report, "seconds"), (unsigned)number(report, "vcpus"), number(report, "samples"),
           number(report, "cpu-seconds"), number(report, "other-threads-seconds"));
    json_array_foreach(json_object_get(report, "time"), i, entry) {
        if (number(entry, "share") >= 0.0005)
            printf("%7.1f %%  %s\n", 100 * number(entry, "share"), word(entry, "title"));
    }
}

static void print_functions(const json_t *report) {
    size_t i;
    json_t *entry;
    puts("\nGuest code, with all that is done for it, of the CPU time:");
    json_array_foreach(json_object_get(report, "functions"), i, entry) {
        bool user = strcmp(word(entry, "space"), "user") == 0;
        const char *owner = user ? word(entry, "process") : word(entry, "module");
        printf("%7.1f %%  %s%s%s\n", 100 * number(entry, "share"), word(entry, "name"),
               owner[0] != 0 ? "  " : "", owner);
    }
}

static void print_list(const json_t *report, const char *member, const char *title) {
    size_t i;
    json_t *entry;
    if (json_array_size(json_object_get(report, member)) > 0)
        puts(title);
    json_array_foreach(json_object_get(report, member), i, entry) {
        printf("%7.1f %%  %s", 100 * number(entry, "share"), word(entry, "name"));
        if (json_object_get(entry, "count") != NULL)
            printf("  %.0f times", number(entry, "count"));
        if (word(entry, "file")[0] != 0)
            printf("  %s", word(entry, "file"));
        putchar('\n');
    }
}

static void print_counters(const json_t *report) {
    const char *name;
    json_t *value;
    double took = number(report, "seconds");
    puts("\nCounted, a second:");
    json_object_foreach(json_object_get(report, "counters"), name, value) {
        if (strncmp(name, "callouts.", 9) != 0 && json_integer_value(value) != 0)
            printf("%14.0f  %s\n", (double)json_integer_value(value) / took, name);
    }
}

static void print_report(const json_t *report) {
    print_time(report);
    print_functions(report);
    print_list(report, "processes", "\nProcesses:");
    print_list(report, "instructions", "\nInstructions that C runs for translated code:");
    print_list(report, "lodge", "\nlodge's own functions:");
    print_counters(report);
    if (number(report, "lost") > 0)
        printf("\n%.0f samples were lost: use a longer --interval\n", number(report, "lost"));
}

/* ---- Asking ---- */

/* Until the time is over, a signal comes, or the VM ends (then negative). */
static int wait_for_end(struct client *client, unsigned seconds) {
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    int fd = signalfd(-1, &ends, SFD_CLOEXEC), result = 0;
    uint64_t end = host_clock_ns() + seconds * NS_PER_SECOND, now;
    struct signalfd_siginfo signal;
    while (result == 0 && (now = host_clock_ns()) < end) {
        result = client_wait(client, fd, (int)((end - now) / 1000000) + 1);
        if (result == 0 && host_clock_ns() < end && read(fd, &signal, sizeof signal) > 0)
            break;
    }
    close(fd);
    return result;
}

static int profile(struct client *client, const struct request *request, struct error *err) {
    json_t *reply = NULL;
    int result = 0;
    if (request->perf_map)
        result = client_call(client, "perf-map-start", NULL, &reply, err);
    if (result == 0 && request->perf_map)
        fprintf(stderr, "lodge: perf finds names in %s\n", word(reply, "path"));
    json_decref(reply);
    reply = NULL;
    if (result == 0)
        result =
            client_call(client, "profile-start",
                        json_pack("{s:i}", "interval-us", (int)request->interval_us), &reply, err);
    if (result < 0)
        return result;
    if (json_is_false(json_object_get(reply, "symbols")))
        fprintf(stderr, "lodge: no names of the guest's functions: %s\n",
                word(reply, "no-symbols"));
    json_decref(reply);
    if (wait_for_end(client, request->seconds) < 0)
        return error_set(err, -ECONNRESET, "the VM ended while it was profiled");
    result = client_call(client, "profile-stop", json_pack("{s:i}", "top", (int)request->top),
                         &reply, err);
    if (result < 0)
        return result;
    if (request->json)
        json_dumpf(reply, stdout, JSON_INDENT(2)), putchar('\n');
    else
        print_report(reply);
    json_decref(reply);
    return 0;
}

/* ---- The command line ---- */

static int parse_number(const char *option, const char *text, unsigned least, unsigned most,
                        unsigned *value, struct error *err) {
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != 0 || number < least || number > most)
        return error_set(err, -EINVAL, "--%s %.40s: a number from %u to %u", option, text, least,
                         most);
    *value = (unsigned)number;
    return 0;
}

static int help(void) {
    puts("usage: lodge profile [OPTIONS] VM\n\n"
         "Says where a running VM's time goes. 'lodge ps' lists VMs. Options:");
    option_help(profile_options);
    return EXIT_OK;
}

static int take_option(struct request *request, int option, const char *value, struct error *err) {
    switch (option) {
    case OPT_SECONDS: return parse_number("seconds", value, 1, SECONDS_MAX, &request->seconds, err);
    case OPT_TOP: return parse_number("top", value, 1, TOP_MAX, &request->top, err);
    case OPT_INTERVAL:
        return parse_number("interval", value, 100, 1000000, &request->interval_us, err);
    case OPT_OUTPUT: return parse_output(value, &request->json, err);
    case OPT_PERF_MAP: request->perf_map = true; break;
    }
    return 0;
}

/* Options may also follow the VM's name. */
static int parse(int argc, char **argv, struct request *request, bool *wants_help,
                 struct error *err) {
    struct option_parser parser = {.specs = profile_options, .argc = argc, .argv = argv, .at = 1};
    int option;
    do {
        while ((option = option_next(&parser, err)) >= 0) {
            *wants_help = *wants_help || option == OPT_HELP;
            if (take_option(request, option, parser.value, err) < 0)
                return -EINVAL;
        }
        if (option == OPTION_ERROR)
            return -EINVAL;
        if (parser.at < argc && request->name != NULL)
            return error_set(err, -EINVAL, "one VM at a time");
        if (parser.at < argc)
            request->name = argv[parser.at++];
    } while (parser.at < argc);
    if (request->name == NULL && !*wants_help)
        return error_set(err, -EINVAL, "which VM? 'lodge ps' lists them");
    return 0;
}

int cmd_profile(int argc, char **argv) {
    struct request request = {.seconds = 10, .top = 20, .interval_us = 1000};
    char directory[CONTROL_PATH_MAX];
    struct client *client = NULL;
    struct error err = {0};
    bool wants_help = false;
    if (parse(argc, argv, &request, &wants_help, &err) < 0)
        return cli_error(EXIT_USAGE, err.text);
    if (wants_help)
        return help();
    int result = vm_name_check(request.name, &err);
    if (result == 0) {
        result = control_directory(directory, sizeof directory, false, &err);
        if (result == -ENOENT)
            error_set(&err, result, "no VM named '%s' is running", request.name);
    }
    if (result == 0)
        result = client_open(directory, request.name, &client, &err);
    if (result < 0)
        return cli_error(EXIT_FAILED, err.text);
    result = profile(client, &request, &err);
    client_close(client);
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : EXIT_OK;
}
