/*
 * What comes back to the source of a move (docs/migration.md), and what it is told when it asks
 * about one: a machine runs, is told to move, and hears the input, as it is or as a script of
 * answers (frames.h), the first byte says which. Afterwards it has either gone, because it was told
 * that it runs there, or runs here, and its directory says the same; or, in post-copy, it is
 * neither, until the other side has had what it wants.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/log.h"
#include "feed.h"
#include "frames.h"
#include "machine/control_names.h"
#include "machine/migration_stream.h"
#include "machine/private.h"
#include "machine/vm_control.h"
#include "machine/vm_store.h"

enum { FIRMWARE_BYTES = 128 << 10, LINE_MAX_BYTES = 64 << 10, CONNECTIONS = 8 };

static char home[] = "/dev/shm/lodge-fuzz-XXXXXX";
static char firmware[64], there[64], directory[PATH_MAX];
static int listener;
static const char name[] = "fuzz";

static void must(bool good) {
    if (!good)
        __builtin_trap();
}

/* A machine that is made while inputs run is in memory where LeakSanitizer does not look. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}

/* ---- The monitor, on a thread of its own ---- */

static struct monitor {
    pthread_t thread;
    struct machine *machine;
    bool runs;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool up;
} monitor = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void on_up(void *context) {
    pthread_mutex_lock(&monitor.lock);
    monitor.up = true;
    pthread_cond_broadcast(&monitor.changed);
    pthread_mutex_unlock(&monitor.lock);
}

static void *run_monitor(void *context) {
    struct machine_config config = {.engine = ENGINE_SOFT,
                                    .memory = MIB(4),
                                    .vcpus = 1,
                                    .firmware = FIRMWARE_FILE,
                                    .firmware_file = firmware};
    struct machine *machine;
    struct vm_control *control;
    struct machine_result result;
    must(loop_create(&config.loop, NULL) == 0);
    must(machine_create(&config, NULL, &machine, NULL) == 0);
    machine->config.firmware =
        FIRMWARE_NONE; /* with which nothing moves; it has none that matters */
    must(vm_control_create(machine, name, &control, NULL) == 0);
    must(vm_control_snapshots(control, directory, NULL) == 0);
    must(vm_control_migration(control, name, directory, NULL, NULL) == 0);
    monitor.machine = machine;
    must(loop_post(config.loop, on_up, NULL) == 0);
    machine_run(machine, &result);
    vm_control_destroy(control);
    machine_destroy(machine);
    loop_destroy(config.loop);
    return NULL;
}

static void start_monitor(void) {
    struct vm_directory made;
    json_t *options = json_pack("{s:s}", "memory", "4M");
    must(vm_store_create(name, options, NULL, NULL, NULL) == 0);
    json_decref(options);
    must(vm_store_lock(name, &made, NULL) == 0);
    memcpy(directory, made.path, sizeof directory);
    vm_store_unlock(&made);
    monitor.up = false;
    must(pthread_create(&monitor.thread, NULL, run_monitor, NULL) == 0);
    pthread_mutex_lock(&monitor.lock);
    while (!monitor.up)
        pthread_cond_wait(&monitor.changed, &monitor.lock);
    pthread_mutex_unlock(&monitor.lock);
    monitor.runs = true;
}

/* ---- Its control socket ---- */

struct client {
    int fd;
    size_t length;
    char line[LINE_MAX_BYTES];
};

/* The next line, of which `line` keeps the beginning. */
static void take_line(struct client *client) {
    char byte = 0;
    client->length = 0;
    while (byte != '\n') {
        must(TEMP_FAILURE_RETRY(recv(client->fd, &byte, 1, 0)) == 1); /* libFuzzer has a timer */
        if (client->length + 1 < sizeof client->line)
            client->line[client->length++] = byte;
    }
    client->line[client->length] = 0;
}

static void open_client(struct client *client) {
    char path[CONTROL_PATH_MAX];
    must(control_directory(path, sizeof path, false, NULL) == 0);
    must(control_connect(path, name, &client->fd, NULL) == 0);
    take_line(client); /* the greeting */
}

static void tell(const struct client *client, const char *line) {
    must(send(client->fd, line, strlen(line), MSG_NOSIGNAL) == (ssize_t)strlen(line));
}

/* False: an event. */
static bool is_answer(const struct client *client) {
    return strncmp(client->line, "{\"event\"", 8) != 0;
}

static bool is_good(const struct client *client) {
    return strncmp(client->line, "{\"return\"", 9) == 0;
}

static bool is_error(const struct client *client, const char *class) {
    char begin[64];
    snprintf(begin, sizeof begin, "{\"error\":{\"class\":\"%s\"", class);
    return strncmp(client->line, begin, strlen(begin)) == 0;
}

static uint64_t count_exits(struct client *client) {
    const char *found;
    tell(client, "{\"execute\": \"query-counters\"}\n");
    do
        take_line(client);
    while (!is_answer(client));
    must((found = strstr(client->line, "\"exits\":")) != NULL);
    return strtoull(found + 8, NULL, 10);
}

/* ---- The other side ---- */

static void make_home(void) {
    /* Where processors begin: out 80h, al; jmp to it. Each is an exit that is counted. */
    static const uint8_t code[] = {0xe6, 0x80, 0xeb, 0xfc};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    must(mkdtemp(home) != NULL && setenv("XDG_DATA_HOME", home, 1) == 0 &&
         setenv("XDG_RUNTIME_DIR", home, 1) == 0);
    snprintf(firmware, sizeof firmware, "%s/firmware", home);
    int fd = open(firmware, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, FIRMWARE_BYTES) == 0 &&
         pwrite(fd, code, sizeof code, FIRMWARE_BYTES - 16) == sizeof code);
    close(fd);
    snprintf(there, sizeof there, "%s/there", home);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", there);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    must(listen(listener, CONNECTIONS) == 0);
}

static void end(void) {
    char command[sizeof home + 16];
    if (monitor.runs) {
        machine_stop(monitor.machine);
        pthread_join(monitor.thread, NULL);
    }
    snprintf(command, sizeof command, "rm -rf %s", home);
    must(system(command) == 0);
}

/* What each connection hears. */
struct answers {
    struct frames frames;
    size_t ends[CONNECTIONS];
    unsigned count;
};

static void end_connection(struct answers *answers) {
    answers->ends[answers->count++] = answers->frames.length;
    answers->frames.number = 0;
}

/* Addresses of pages. */
static void add_wanted(struct frames *frames) {
    uint8_t body[UINT8_MAX * 8], count = script_byte(frames->script);
    for (unsigned i = 0; i < count; i++)
        store_le64(body + (size_t)i * 8, (uint64_t)script_word(frames->script) << PAGE_SHIFT);
    frames_add(frames, STREAM_WANT, body, (size_t)count * 8);
}

/* Pages from an address on, a bit each. */
static void add_missing(struct frames *frames) {
    uint8_t body[8 + UINT8_MAX];
    size_t length;
    store_le64(body, (uint64_t)script_word(frames->script) << PAGE_SHIFT);
    const uint8_t *bits = script_bytes(frames->script, &length);
    if (length > 0)
        memcpy(body + 8, bits, length);
    frames_add(frames, STREAM_MISSING, body, 8 + length);
}

static void add_step(struct answers *answers) {
    struct frames *frames = &answers->frames;
    size_t length;
    const uint8_t *bytes;
    uint8_t type;
    frames->how = script_byte(frames->script);
    switch (frames->how & STEP_KIND) {
    case 0: frames_add(frames, STREAM_WELCOME, "{}", 2); break;
    case 1: frames_text(frames, STREAM_REFUSED, "{\"why\":\"it does not please\"}"); break;
    case 2: frames_add(frames, STREAM_ROUND_DONE, NULL, 0); break;
    case 3: frames_add(frames, STREAM_READY, NULL, 0); break;
    case 4: frames_add(frames, STREAM_RUNNING, NULL, 0); break;
    case 5: frames_add(frames, STREAM_ANSWER, "{\"runs\":true}", 13); break;
    case 6: frames_text(frames, STREAM_ANSWER, "{\"runs\":false}"); break;
    case 7:
        if (answers->count < CONNECTIONS - 2)
            end_connection(answers);
        break;
    case 8: frames_add(frames, STREAM_WELCOME, "{\"post-copy\":true}", 18); break;
    case 9: add_wanted(frames); break;
    case 10: add_missing(frames); break;
    case 11: frames_add(frames, STREAM_ROUND, NULL, 0); break;
    case 12: frames_text(frames, STREAM_WHOLE, "{\"ended\":false}"); break;
    default:
        type = script_byte(frames->script);
        bytes = script_bytes(frames->script, &length);
        frames_add(frames, type, bytes, length);
    }
}

/* Whatever the script says: who asks long enough hears that it does not run. */
static void add_last(struct answers *answers) {
    end_connection(answers);
    answers->frames.how = 0;
    frames_add(&answers->frames, STREAM_ANSWER, "{\"runs\":false}", 14);
    answers->ends[answers->count] = answers->frames.length;
}

static void take_connection(struct feed *feed, const struct answers *answers, unsigned number) {
    number = number < answers->count ? number : answers->count;
    size_t from = number > 0 ? answers->ends[number - 1] : 0;
    *feed = (struct feed){.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC),
                          .bytes = answers->frames.bytes + from,
                          .length = answers->ends[number] - from};
    must(feed->fd >= 0 && pthread_create(&feed->thread, NULL, feed_run, feed) == 0);
}

/* Until the command has its answer. `count`: connections so far. */
static void serve(struct client *client, const struct answers *answers, unsigned *count) {
    struct feed feeds[CONNECTIONS];
    unsigned first = *count;
    for (;;) {
        struct pollfd ready[] = {{.fd = listener, .events = POLLIN},
                                 {.fd = client->fd, .events = POLLIN}};
        must(TEMP_FAILURE_RETRY(poll(ready, 2, -1)) > 0);
        if (ready[0].revents != 0) {
            must(*count < CONNECTIONS);
            take_connection(&feeds[*count], answers, *count);
            (*count)++;
            continue;
        }
        take_line(client);
        if (is_answer(client))
            break;
    }
    for (unsigned i = first; i < *count; i++)
        pthread_join(feeds[i].thread, NULL);
}

/* ---- One move ---- */

static void check_here(struct client *client) {
    char path[PATH_MAX];
    must(vm_store_path(name, "moved-out.json", path, NULL) == 0 && access(path, F_OK) < 0);
    must(strchr(client->line, '\n') == client->line + client->length - 1);
    uint64_t before = count_exits(client);
    while (count_exits(client) <= before)
        usleep(100);
}

/* Some of its memory is still to go. */
static void check_away(struct client *client) {
    char path[PATH_MAX];
    must(vm_store_path(name, "moved-out.json", path, NULL) == 0 && access(path, F_OK) == 0);
    uint64_t before = count_exits(client);
    must(count_exits(client) == before);
}

static void check_gone(void) {
    pthread_join(monitor.thread, NULL);
    monitor.runs = false;
    must(!vm_store_has(name));
}

static void move(const struct answers *answers, bool compress, bool post_copy) {
    static struct client client;
    char line[256];
    unsigned connections = 0;
    open_client(&client);
    snprintf(line, sizeof line,
             "{\"execute\": \"migrate\", \"arguments\": {\"to\": \"unix:%s\", \"compress\": %s, "
             "\"post-copy\": \"%s\"}}\n",
             there, compress ? "true" : "false", post_copy ? "always" : "auto");
    tell(&client, line);
    serve(&client, answers, &connections);
    while (is_error(&client, "Interrupted")) {
        check_away(&client);
        tell(&client, "{\"execute\": \"migrate-resume\"}\n");
        serve(&client, answers, &connections);
    }
    if (is_good(&client) || is_error(&client, "Lost"))
        check_gone();
    else
        check_here(&client);
    close(client.fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (listener == 0) {
        log_set_level(LOG_ERROR);
        make_home();
        must(atexit(end) == 0);
    }
    if (size == 0)
        return 0;
    if (!monitor.runs)
        start_monitor();
    struct script script = {data + 1, size - 1};
    struct answers answers = {.frames = {.script = &script}};
    must((answers.frames.bytes = malloc(FRAMES_MAX)) != NULL);
    if (!(data[0] & 1))
        frames_raw(&answers.frames, data + 1, size - 1);
    while (data[0] & 1 && script.left > 0)
        add_step(&answers);
    add_last(&answers);
    move(&answers, data[0] & 2, data[0] & 4);
    free(answers.frames.bytes);
    return 0;
}
