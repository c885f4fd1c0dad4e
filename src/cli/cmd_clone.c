/* VMs that go on from another VM's snapshot, each as one of its own that lasts (machine/clone.h).
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/batch.h"
#include "cli/cli.h"
#include "cli/exit_codes.h"
#include "cli/from.h"
#include "cli/remove.h"
#include "cli/start.h"
#include "cli/vm.h"
#include "image/file.h"
#include "image/overlay.h"
#include "machine/snapshot_store.h"

enum { OPT_COUNT, OPT_NAME, OPT_PUBLISH, OPT_SSH_KEYS, OPT_OUTPUT, OPT_HELP };
enum { CLONES_MAX = 1000 };

const struct option_spec clone_options[] = {
    [OPT_COUNT] = {"count", 'n', "N", "how many (1)"},
    [OPT_NAME] = {"name", 0, "NAME", "what it is called; of several, the names' beginning"},
    [OPT_PUBLISH] = {"publish", 'p', "HOST:GUEST",
                     "a port of the host that leads to the guest's; of several, the next ports"},
    [OPT_SSH_KEYS] = {"ssh-keys", 0, "new|keep", "whether it gets SSH host keys of its own (new)"},
    [OPT_OUTPUT] = OUTPUT_OPTION,
    [OPT_HELP] = {"help", 'h', NULL, "show this help"},
    {NULL, 0, NULL, NULL},
};

struct request {
    struct clone_source source;
    unsigned count;
    const char *name;
    bool keep_ssh_keys, json;
    struct net_publish publish[MACHINE_PUBLISH_MAX]; /* the first clone's */
    unsigned publish_count;
};

static int help(void) {
    puts("usage: lodge clone [OPTIONS] VM|VM@SNAPSHOT\n\n"
         "Starts VMs that go on from where the VM is, or was in the snapshot, as VMs of their\n"
         "own that last: with another name, machine id, MAC address and randomness. Memory and\n"
         "disks are shared until they are written to. VM runs, and has a snapshot taken of it;\n"
         "one of VM@SNAPSHOT may be stopped. Of several, all come into being or none. Options:");
    option_help(clone_options);
    return EXIT_OK;
}

/* ---- Its directory ---- */

struct filling {
    const struct clone_source *source;
    bool has_image;
    unsigned disks; /* that it has on the source's */
};

static int add_disk(struct filling *filling, unsigned disk, const char *directory, const char *name,
                    struct error *err) {
    const char *file = clone_disk(filling->source, disk);
    char path[PATH_MAX], snapshot[SNAPSHOT_DISK_NAME_MAX];
    if (file == NULL) /* it is only read */
        return 0;
    snapshot_disk_name(filling->source->snapshot, snapshot);
    int result = path_join(path, directory, name, err);
    if (result == 0)
        result = overlay_create(file, snapshot, path, err);
    filling->disks += result == 0;
    return result;
}

static void disk_name(unsigned disk, char name[16]) {
    snprintf(name, 16, "disk%u.lodge", disk);
}

static int fill(void *context, const char *directory, struct error *err) {
    struct filling *filling = context;
    const char *from = filling->source->directory;
    int result = filling->has_image ? overlay_share(from, directory, err) : 0;
    if (result == 0)
        result = seed_share(from, directory, err);
    for (unsigned disk = 0; disk < MACHINE_DISKS_MAX && result == 0; disk++) {
        char name[16] = "disk.lodge"; /* as overlay_find wants it */
        if (disk > 0 || !filling->has_image)
            disk_name(disk, name);
        result = add_disk(filling, disk, directory, name, err);
    }
    return result == 0 ? clone_keep(filling->source, filling->disks, directory, err) : result;
}

/* ---- Its options ---- */

/* Words after the file that are still true: its own file is a lodge disk. */
static void append_words(char *text, size_t size, const char *words) {
    while (words[0] == ',') {
        size_t length = 1 + strcspn(words + 1, ","), used = strlen(text);
        if (strncmp(words, ",format=", 8) != 0)
            snprintf(text + used, size - used, "%.*s", (int)length, words);
        words += length;
    }
}

/* The option of a disk that it has in a file of its own; NULL: as it was. */
static json_t *own_disk(const struct clone_source *source, unsigned disk, const char *option,
                        const char *directory) {
    char text[PATH_MAX + 256], name[16];
    if (clone_disk(source, disk) == NULL)
        return NULL;
    disk_name(disk, name);
    snprintf(text, sizeof text, "%s/%s", directory, name);
    append_words(text, sizeof text, option + strcspn(option, ","));
    return json_string(text);
}

/* index: which one of the clones it is. */
static json_t *own_ports(const struct request *request, unsigned index) {
    json_t *ports = json_array();
    for (unsigned i = 0; i < request->publish_count; i++) {
        const struct net_publish *publish = &request->publish[i];
        char address[INET_ADDRSTRLEN] = "";
        inet_ntop(AF_INET, &publish->host_address, address, sizeof address);
        json_array_append_new(ports, json_sprintf("%s:%u:%u%s", address, publish->host_port + index,
                                                  publish->guest_port, publish->udp ? "/udp" : ""));
    }
    return ports;
}

static json_t *own_options(const struct request *request, unsigned index, const char *directory,
                           const struct clone_identity *identity) {
    const struct clone_source *source = &request->source;
    json_t *options = json_deep_copy(source->options), *disk, *disks = json_array();
    unsigned first = json_object_get(options, "image") != NULL;
    const uint8_t *mac = identity->mac;
    from_drop_options(options);
    json_t *given = json_object_get(options, "disk");
    size_t count = json_is_array(given) ? json_array_size(given) : given != NULL;
    for (size_t i = 0; i < count; i++) {
        disk = json_is_array(given) ? json_array_get(given, i) : given;
        json_t *own = own_disk(source, first + (unsigned)i, json_string_value(disk), directory);
        json_array_append_new(disks, own != NULL ? own : json_incref(disk));
    }
    if (count > 0)
        json_object_set(options, "disk", disks);
    json_decref(disks);
    if (request->publish_count > 0)
        json_object_set_new(options, "publish", own_ports(request, index));
    json_object_set_new(options, "mac",
                        json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
                                     mac[3], mac[4], mac[5]));
    return options;
}

/* ---- One clone ---- */

static int check_name(const char *name, struct error *err) {
    struct client *client;
    int result = vm_name_check(name, err);
    if (result == 0 && !vm_store_has(name) && vm_connect(name, &client, NULL) == 0) {
        client_close(client);
        result =
            error_set(err, -EEXIST, "a VM named '%s' is running already, from 'lodge run'", name);
    }
    return result;
}

/* Before the host has to choose what it ends. */
static int check_host_memory(struct error *err) {
    enum { LEAST_KIB = 64 << 10 };
    unsigned long kib = LEAST_KIB;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "MemAvailable: %lu kB", &kib) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kib >= LEAST_KIB
               ? 0
               : error_set(err, -ENOMEM, "the host has %lu MiB of memory left, a clone wants %d",
                           kib >> 10, LEAST_KIB >> 10);
}

static int start(const struct request *request, const char *name,
                 const struct vm_directory *directory, const struct clone_identity *identity,
                 json_t *options, const struct batch *batch, struct error *err) {
    struct start_from from = {.snapshot = request->source.saved,
                              .vcpus = clone_vcpus(&request->source),
                              .kvm = snapshot_is_kvm(request->source.about),
                              .source = &request->source,
                              .identity = identity,
                              .batch = batch};
    return start_vm(name, directory, options, &from, err);
}

/* > 0: an exit code of its monitor's, which has said why. */
static int make_clone(const struct request *request, unsigned index, const char *name,
                      const struct batch *batch, struct error *err) {
    const struct clone_source *source = &request->source;
    struct filling filling = {.source = source,
                              .has_image = json_object_get(source->options, "image") != NULL};
    struct clone_identity identity;
    struct vm_directory directory;
    char path[PATH_MAX];
    int result = check_name(name, err);
    if (result == 0)
        result = check_host_memory(err);
    if (result == 0)
        result = vm_store_path(name, "", path, err);
    if (result == 0)
        result = clone_identity_make(source->vm, name, &identity, err);
    if (result < 0)
        return result;
    path[strlen(path) - 1] = 0; /* the slash */
    identity.ssh_keys = !request->keep_ssh_keys;
    json_t *options = own_options(request, index, path, &identity);
    result = vm_store_create_starting(name, options, fill, &filling, &directory, err);
    if (result == 0) {
        result = start(request, name, &directory, &identity, options, batch, err);
        if (result != 0)
            vm_store_remove(name, &directory, NULL, NULL);
        vm_store_unlock(&directory);
    }
    json_decref(options);
    return result;
}

/* ---- All of them, or none ---- */

/* A clone is made by a process of its own, so that some are at a time. */
struct maker {
    char name[2 * VM_NAME_MAX];
    pid_t pid;  /* 0: it has ended */
    int said;   /* a file of what it said on standard error */
    int result; /* its exit code */
};

struct making {
    const struct request *request;
    struct maker *makers;
    struct batch batch;
    unsigned begun, ended, failed;
    bool shows; /* how far it is, on the terminal */
};

static void close_inherited(const struct making *making) {
    for (unsigned i = 0; i < making->begun; i++)
        close(making->makers[i].said);
}

__attribute__((noreturn)) static void make(struct making *making, const struct maker *maker) {
    struct error err = {0};
    batch_join(&making->batch);       /* before all else: none is to be there without the others */
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* who would end it if need be is gone */
    dup2(maker->said, STDERR_FILENO);
    close(maker->said);
    close_inherited(making); /* the monitor would keep them */
    unsigned index = (unsigned)(maker - making->makers);
    int result = make_clone(making->request, index, maker->name, &making->batch, &err);
    if (result < 0)
        result = cli_error(EXIT_FAILED, err.text);
    fflush(NULL);
    _exit(result);
}

static int begin_maker(struct making *making, struct maker *maker, struct error *err) {
    maker->said = memfd_create("said", MFD_CLOEXEC);
    if (maker->said < 0)
        return error_set_errno(err, -errno, "no file for what a clone's maker says");
    fflush(NULL);
    maker->pid = fork();
    if (maker->pid == 0)
        make(making, maker);
    if (maker->pid > 0) {
        making->begun++;
        return 0;
    }
    int result = -errno;
    close(maker->said);
    return error_set_errno(err, result, "fork");
}

static void pass_on(int said) {
    char text[4096];
    ssize_t got;
    off_t at = 0;
    while ((got = pread(said, text, sizeof text, at)) > 0 &&
           write(STDERR_FILENO, text, (size_t)got) == got)
        at += got;
    close(said);
}

/* Whoever ends next. */
static void await_maker(struct making *making) {
    int status;
    pid_t pid = wait(&status);
    for (unsigned i = 0; i < making->begun; i++) {
        struct maker *maker = &making->makers[i];
        if (maker->pid != pid)
            continue;
        maker->pid = 0;
        maker->result = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_SIGNAL + WTERMSIG(status);
        making->ended++;
        making->failed += maker->result != 0;
        if (making->shows)
            fprintf(stderr, "\r\033[K");
        pass_on(maker->said);
        if (making->shows && making->ended < making->request->count)
            fprintf(stderr, "lodge: %u of %u clones run", making->ended - making->failed,
                    making->request->count);
    }
}

/* The next one of BASE-1, BASE-2, … that nobody has. */
static int next_name(const char *base, unsigned *number, char name[2 * VM_NAME_MAX],
                     struct error *err) {
    struct client *client;
    for (;; ++*number) {
        snprintf(name, 2 * VM_NAME_MAX, "%.*s-%u", VM_NAME_MAX, base, *number);
        if (vm_store_has(name))
            continue;
        if (vm_connect(name, &client, NULL) < 0)
            break;
        client_close(client);
    }
    ++*number;
    return vm_name_check(name, err);
}

/* As many at a time as the host has processors; no more once one has failed. */
static int make_all(struct making *making, struct error *err) {
    const struct request *request = making->request;
    const char *base = request->name != NULL ? request->name : request->source.vm;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned at_a_time = processors > 1 ? (unsigned)processors : 1, number = 1;
    int result = 0;
    while (making->begun < request->count && making->failed == 0 && result == 0) {
        struct maker *maker = &making->makers[making->begun];
        if (request->name != NULL && request->count == 1)
            snprintf(maker->name, sizeof maker->name, "%.*s", VM_NAME_MAX, base);
        else
            result = next_name(base, &number, maker->name, err);
        if (result == 0)
            result = begin_maker(making, maker, err);
        while (making->begun - making->ended >= at_a_time)
            await_maker(making);
    }
    while (making->ended < making->begun)
        await_maker(making);
    return result;
}

static void remove_made(const struct making *making) {
    for (unsigned i = 0; i < making->begun; i++) {
        struct error err = {0};
        if (making->makers[i].result == 0 && vm_remove(making->makers[i].name, true, &err) < 0)
            fprintf(stderr, "lodge: %s\n", err.text);
    }
}

/* > 0: an exit code; why has been said. */
static int end_all(struct making *making, json_t *made) {
    struct error err = {0};
    int result = 0;
    for (unsigned i = 0; i < making->begun; i++) {
        const struct maker *maker = &making->makers[i];
        if (maker->result != 0 && result == 0)
            result = maker->result;
        if (maker->result != 0 && making->request->count > 1)
            fprintf(stderr, "lodge: '%s' could not be made, so none of the %u clones is there\n",
                    maker->name, making->request->count);
    }
    if (result == 0 && making->begun == making->request->count &&
        batch_commit(&making->batch, making->begun, &err) < 0)
        result = cli_error(EXIT_FAILED, err.text);
    if (result != 0 || making->begun < making->request->count) {
        remove_made(making);
        return result;
    }
    for (unsigned i = 0; i < making->begun; i++) {
        const char *name = making->makers[i].name;
        json_array_append_new(made, json_pack("{s:s, s:s}", "name", name, "status", "running"));
        if (!making->request->json)
            puts(name);
    }
    return 0;
}

static int make_clones(const struct request *request, json_t *made, struct error *err) {
    struct making making = {.request = request,
                            .makers = calloc(request->count, sizeof *making.makers),
                            .shows = request->count > 1 && isatty(STDERR_FILENO)};
    if (making.makers == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int code = 0, result = batch_open(&making.batch, err);
    if (result == 0) {
        result = make_all(&making, err);
        code = end_all(&making, made);
    }
    batch_close(&making.batch);
    free(making.makers);
    return code != 0 ? code : result;
}

/* ---- What they go on from ---- */

/* Of a VM as it is now. */
static int take_own_snapshot(struct clone_source *source, struct error *err) {
    struct timespec now;
    struct tm utc;
    json_t *answer = NULL;
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(source->snapshot, sizeof source->snapshot, "clone-%Y%m%d-%H%M%S",
             gmtime_r(&now.tv_sec, &utc));
    size_t length = strlen(source->snapshot);
    snprintf(source->snapshot + length, sizeof source->snapshot - length, ".%03ld",
             now.tv_nsec / 1000000);
    if (!vm_store_is_busy(source->vm) && vm_store_has(source->vm))
        return error_set(err, -ENOENT,
                         "'%s' does not run; 'lodge clone %s@SNAPSHOT' goes on from one of "
                         "'lodge snapshot ls %s'",
                         source->vm, source->vm, source->vm);
    int result = snapshot_take(source->vm, source->snapshot, "of lodge clone", false, &answer, err);
    json_decref(answer);
    return result;
}

static int find_source(struct request *request, const char *text, struct error *err) {
    struct clone_source *source = &request->source;
    int result;
    if (strchr(text, '@') != NULL) {
        result = clone_parse(text, source, err);
    } else {
        result = vm_name_check(text, err);
        if (result == 0) {
            snprintf(source->vm, sizeof source->vm, "%s", text);
            result = take_own_snapshot(source, err);
        }
    }
    return result == 0 ? clone_open(source, err) : result;
}

/* On a copy: options are cut up as they are looked at. */
static int check_source(const struct clone_source *source, struct error *err) {
    struct run_config config = RUN_DEFAULTS;
    struct clone_source copy = *source;
    copy.options = json_deep_copy(source->options);
    config.lasts = true;
    int result = from_configure(&config, &copy, err);
    json_decref(copy.options);
    return result;
}

static int run(struct request *request, const char *text) {
    struct error err = {0};
    json_t *made = json_array();
    from_be_frugal(); /* monitors inherit it */
    int result = find_source(request, text, &err);
    if (result == 0)
        result = check_source(&request->source, &err);
    if (result == 0)
        result = make_clones(request, made, &err);
    clone_close(&request->source);
    if (request->json && json_array_size(made) > 0)
        print_json(json_incref(made));
    json_decref(made);
    return result < 0 ? cli_error(EXIT_FAILED, err.text) : result;
}

/* ---- The verb ---- */

static int parse_count(const char *value, unsigned *count, struct error *err) {
    char *end;
    unsigned long number = strtoul(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != 0 || number < 1 || number > CLONES_MAX)
        return error_set(err, -EINVAL, "-n %.40s: 1 to %d clones at once", value, CLONES_MAX);
    *count = (unsigned)number;
    return 0;
}

static int add_port(struct request *request, const char *value, struct error *err) {
    if (request->publish_count == MACHINE_PUBLISH_MAX)
        return error_set(err, -EINVAL, "more than %d ports to publish", MACHINE_PUBLISH_MAX);
    return net_parse_publish(value, &request->publish[request->publish_count++], err);
}

/* Those of several clones follow each other. */
static int check_ports(const struct request *request, struct error *err) {
    for (unsigned i = 0; i < request->publish_count; i++)
        if (request->publish[i].host_port + request->count - 1 > UINT16_MAX)
            return error_set(err, -EINVAL, "--publish: there are no %u ports from %u on",
                             request->count, request->publish[i].host_port);
    return 0;
}

static int take_option(struct request *request, int option, const char *value, struct error *err) {
    static const char *const ssh_keys[] = {"new", "keep", NULL};
    int choice;
    switch (option) {
    case OPT_COUNT: return parse_count(value, &request->count, err);
    case OPT_NAME: request->name = value; return vm_name_check(value, err);
    case OPT_PUBLISH: return add_port(request, value, err);
    case OPT_SSH_KEYS:
        choice = parse_choice("SSH keys", value, ssh_keys, err);
        request->keep_ssh_keys = choice == 1;
        return choice < 0 ? choice : 0;
    case OPT_OUTPUT: return parse_output(value, &request->json, err);
    default: return 0;
    }
}

int cmd_clone(int argc, char **argv) {
    struct option_parser parser = {.specs = clone_options, .argc = argc, .argv = argv, .at = 1};
    struct request request = {.count = 1};
    const char *source = NULL;
    struct error err = {0};
    int option;
    while ((option = option_next(&parser, &err)) != OPTION_END || parser.at < argc) {
        if (option == OPT_HELP)
            return help();
        if (option == OPTION_ERROR ||
            (option >= 0 && take_option(&request, option, parser.value, &err) < 0))
            return cli_error(EXIT_USAGE, err.text);
        if (option == OPTION_END && source != NULL)
            return cli_error(EXIT_USAGE, "one VM or VM@SNAPSHOT is cloned at a time");
        if (option == OPTION_END)
            source = argv[parser.at++];
    }
    if (source == NULL)
        return cli_error(EXIT_USAGE, "usage: lodge clone [-n N] [--name NAME] VM|VM@SNAPSHOT");
    if (check_ports(&request, &err) < 0)
        return cli_error(EXIT_USAGE, err.text);
    return run(&request, source);
}
