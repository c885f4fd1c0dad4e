#include "cli/vm.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/exit_codes.h"
#include "machine/control_names.h"
#include "machine/vm_store.h"

static void not_running(const char *name, struct error *err) {
    if (vm_store_is_busy(name))
        error_set(err, -ENOENT, "'%s' is just being started or ended", name);
    else
        error_set(err, -ENOENT, "'%s' is not running; 'lodge start %s' starts it", name, name);
}

int vm_connect(const char *name, struct client **client, struct error *err) {
    char directory[CONTROL_PATH_MAX];
    int result = vm_name_check(name, err);
    if (result < 0)
        return result;
    result = control_directory(directory, sizeof directory, false, err);
    if (result == 0)
        result = client_open(directory, name, client, err);
    if (result == -ENOENT && vm_store_has(name))
        not_running(name, err);
    else if (result == -ENOENT)
        error_set(err, result, "no VM named '%s'; 'lodge ps -a' lists them", name);
    return result;
}

/* ---- Stopping ---- */

enum { QUIT_SECONDS = 10, GONE_SECONDS = 10, SILENT_SECONDS = 1 };

/* The monitor holds its VM's lock a little longer than its socket. */
static bool wait_unlocked(const char *name) {
    const struct timespec turn = {.tv_nsec = 10 * 1000 * 1000};
    uint64_t began = host_clock_ns();
    bool silent = isatty(STDERR_FILENO);
    while (vm_store_is_busy(name)) {
        uint64_t waited = host_clock_ns() - began;
        if (waited > GONE_SECONDS * NS_PER_SECOND)
            return false;
        if (silent && waited > SILENT_SECONDS * NS_PER_SECOND) {
            fprintf(stderr, "waiting for the monitor of '%s' to end\n", name);
            silent = false;
        }
        nanosleep(&turn, NULL);
    }
    return true;
}

/* True: its monitor says so, or has let go of its socket and holds the lock alone. */
static bool is_ending(const char *name) {
    struct client *client;
    json_t *status = NULL;
    struct error err = {0};
    int result = vm_connect(name, &client, &err);
    if (result == 0) {
        result = client_call(client, "query-status", NULL, &status, &err);
        client_close(client);
    }
    const char *text = json_string_value(json_object_get(status, "status"));
    bool ended = text != NULL && strcmp(text, "ended") == 0;
    json_decref(status);
    return ended || result == -ENOENT || result == -ECONNRESET;
}

bool vm_wait_ending(const char *name) {
    return is_ending(name) && wait_unlocked(name);
}

/* True when it has ended the connection, within that time. */
static bool wait_end(struct client *client, unsigned seconds) {
    uint64_t now = host_clock_ns(), end = now + seconds * NS_PER_SECOND;
    for (; now < end; now = host_clock_ns()) {
        json_t *message = NULL;
        client_wait(client, client_fd(client), (int)((end - now) / 1000000) + 1);
        do {
            json_decref(message);
            if (client_take(client, &message, NULL) < 0)
                return true;
        } while (message != NULL);
    }
    return false;
}

/* Its monitor's process, as the kernel tells it; 0: there is none. */
static pid_t find_monitor(const char *name) {
    char directory[CONTROL_PATH_MAX];
    struct ucred peer = {0};
    socklen_t size = sizeof peer;
    int fd;
    if (control_directory(directory, sizeof directory, false, NULL) < 0 ||
        control_connect(directory, name, &fd, NULL) < 0)
        return 0;
    int result = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    close(fd);
    return result == 0 ? peer.pid : 0;
}

/* False: it does not answer. */
static bool ask_to_end(struct client *client, unsigned seconds) {
    if (seconds > 0 && client_call(client, "system_powerdown", NULL, NULL, NULL) == 0 &&
        wait_end(client, seconds))
        return true;
    int result = client_call(client, "quit", NULL, NULL, NULL);
    return result == -ECONNRESET || wait_end(client, QUIT_SECONDS);
}

int vm_stop(const char *name, unsigned seconds, struct error *err) {
    struct client *client;
    pid_t pid = find_monitor(name);
    int result = vm_connect(name, &client, err);
    if (result < 0 && result != -ETIMEDOUT)
        return result;
    bool ended = result == 0 && ask_to_end(client, seconds);
    if (result == 0)
        client_close(client);
    if (!ended && pid > 0)
        kill(pid, SIGKILL);
    return wait_unlocked(name)
               ? 0
               : error_set(err, -ETIMEDOUT, "'%s' does not end; its monitor is process %d", name,
                           (int)pid);
}

/* ---- Output ---- */

int parse_output(const char *value, bool *json, struct error *err) {
    static const char *const kinds[] = {"text", "json", NULL};
    int kind = parse_choice("output", value, kinds, err);
    *json = kind == 1;
    return kind < 0 ? kind : 0;
}

void print_json(json_t *value) {
    json_dumpf(value, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(value);
}

/* ---- Verbs on names ---- */

static int parse_seconds(const char *text, unsigned *seconds, struct error *err) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != 0 || value > 86400)
        return error_set(err, -EINVAL, "'%.40s': seconds, from 0 to 86400", text);
    *seconds = (unsigned)value;
    return 0;
}

static int take(const struct option_spec *spec, const char *value, struct names_request *request,
                struct error *err) {
    switch (spec->letter) {
    case 't': return parse_seconds(value, &request->seconds, err);
    case 'o': return parse_output(value, &request->json, err);
    case 'f': request->force = true; break;
    default: request->attach = true; break;
    }
    return 0;
}

static int do_all(const struct names_verb *verb, struct names_request *request, int count,
                  char **names) {
    json_t *list = json_array();
    int code = EXIT_OK;
    for (int i = 0; i < count; i++) {
        struct error err = {0};
        int result = verb->each(names[i], request, &err);
        if (result < 0)
            cli_error(code = EXIT_FAILED, err.text);
        else if (result > 0)
            code = result; /* it has said why */
        else if (request->json)
            json_array_append_new(list,
                                  json_pack("{s:s, s:s}", "name", names[i], "status", verb->done));
    }
    if (request->json)
        print_json(json_incref(list));
    json_decref(list);
    return code;
}

int names_verb_run(const struct names_verb *verb, struct names_request *request, int argc,
                   char **argv) {
    struct option_parser parser = {.specs = verb->options, .argc = argc, .argv = argv, .at = 1};
    struct error err = {0};
    int option;
    while ((option = option_next(&parser, &err)) >= 0) {
        if (verb->options[option].letter == 'h') {
            printf("usage: lodge %s\n\nOptions:\n", verb->usage);
            option_help(verb->options);
            return EXIT_OK;
        }
        if (take(&verb->options[option], parser.value, request, &err) < 0)
            return cli_error(EXIT_USAGE, err.text);
    }
    if (option == OPTION_ERROR)
        return cli_error(EXIT_USAGE, err.text);
    if (parser.at >= argc) {
        error_set(&err, -EINVAL, "lodge %s needs the name of a VM", argv[0]);
        return cli_error(EXIT_USAGE, err.text);
    }
    return do_all(verb, request, argc - parser.at, argv + parser.at);
}
