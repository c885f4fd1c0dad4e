#include "machine/machine_identity.h"

#include <fcntl.h>
#include <limits.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "device/acpi_pm.h"
#include "machine/agent_protocol.h"
#include "machine/layout.h"
#include "machine/machine_idle.h"
#include "machine/private.h"

static const char *const kinds[] = {
    [IDENTITY_RESTORED] = "restore", [IDENTITY_CLONED] = "clone", [IDENTITY_MOVED] = "move"};

/* ---- The host's id ---- */

/* Up to size bytes of a small file; 0: there is nothing to read. */
static size_t read_text(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, size) : 0;
    if (fd >= 0)
        close(fd);
    return length > 0 ? (size_t)length : 0;
}

static void hash(const char *text, size_t length, uint8_t id[UUID_SIZE]) {
    static const char purpose[] = "lodge: a host's id, for its guests";
    struct sha256_ctx context;
    sha256_init(&context);
    sha256_update(&context, sizeof purpose, (const uint8_t *)purpose);
    sha256_update(&context, length, (const uint8_t *)text);
    sha256_digest(&context, UUID_SIZE, id);
    uuid_mark(id, 8);
}

static int find_host(uint8_t id[UUID_SIZE], struct error *err) {
    const char *given = getenv("LODGE_HOST_ID");
    char text[64];
    if (given != NULL)
        return uuid_parse(given, id)
                   ? 0
                   : error_set(err, -EINVAL, "LODGE_HOST_ID=%.40s is no UUID", given);
    size_t length = read_text("/etc/machine-id", text, sizeof text);
    if (length < 32)
        length = read_text("/proc/sys/kernel/random/boot_id", text, sizeof text);
    hash(text, length, id);
    return 0;
}

/* ---- The generation id and its file ---- */

/* -ENOENT: there is no file yet. */
static int read_generation(const char *path, uint8_t id[UUID_SIZE], struct error *err) {
    char text[UUID_TEXT + 1] = "";
    if (path == NULL || access(path, F_OK) < 0)
        return -ENOENT;
    text[read_text(path, text, UUID_TEXT)] = 0;
    text[strcspn(text, "\n")] = 0;
    return uuid_parse(text, id)
               ? 0
               : error_set(err, -EINVAL, "%s has no generation id: remove it for a new one", path);
}

/* As a whole or not at all. */
static int write_generation(const char *path, const uint8_t id[UUID_SIZE], struct error *err) {
    char new[PATH_MAX], text[UUID_TEXT];
    uint8_t old[UUID_SIZE];
    if (path == NULL || (read_generation(path, old, NULL) == 0 && memcmp(old, id, UUID_SIZE) == 0))
        return 0;
    if (snprintf(new, sizeof new, "%s.new", path) >= (int)sizeof new)
        return error_set(err, -ENAMETOOLONG, "%s: the path is too long", path);
    uuid_format(id, text);
    text[UUID_TEXT - 1] = '\n';
    int fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool written = fd >= 0 && write(fd, text, UUID_TEXT) == UUID_TEXT && fsync(fd) == 0;
    int result = written ? 0 : errno != 0 ? -errno : -EIO;
    if (fd >= 0)
        close(fd);
    if (result == 0 && rename(new, path) < 0)
        result = -errno;
    return result < 0 ? error_set_errno(err, result, "cannot keep the generation id in %s", path)
                      : 0;
}

int machine_identity_begin(const struct machine_config *config, struct identity_config *ids,
                           struct error *err) {
    int result = find_host(ids->host, err);
    if (result < 0 || config->restore != NULL) /* machine_new_identity makes one */
        return result;
    result = read_generation(config->generation_file, ids->generation, err);
    if (result != -ENOENT)
        return result;
    if (config->generation_id == NULL)
        result = uuid_make(ids->generation, err);
    else if (uuid_parse(config->generation_id, ids->generation))
        result = 0;
    else
        return error_set(err, -EINVAL, "'%.40s' is no UUID", config->generation_id);
    return result == 0 ? write_generation(config->generation_file, ids->generation, err) : result;
}

/* ---- Changes ---- */

int machine_new_identity(struct machine *machine, enum identity_kind kind, struct error *err) {
    struct vm_clock *clock = machine->platform.clock;
    struct identity_event event = {
        .wall_seconds = (uint64_t)vm_clock_wall_seconds(clock, vm_clock_ns(clock)), .kind = kind};
    struct identity now;
    identity_get(machine->identity, &now);
    memcpy(event.generation, now.generation, UUID_SIZE);
    int result = find_host(event.host, err);
    if (result == 0 && kind != IDENTITY_MOVED)
        result = uuid_make(event.generation, err);
    if (result == 0)
        result = write_generation(machine->config.generation_file, event.generation, err);
    if (result < 0)
        return result;
    identity_add_event(machine->identity, &event);
    acpi_pm_raise_gpe(machine->acpi_pm, LAYOUT_IDENTITY_GPE);
    return machine->idle_states != NULL ? machine_set_idle(machine, NULL, err) : 0;
}

/* ---- Telling ---- */

static uint64_t first_kept(const struct identity *now) {
    return now->events > IDENTITY_EVENTS_MAX ? now->events - IDENTITY_EVENTS_MAX + 1 : 1;
}

void machine_agent_identity(struct machine *machine, struct agent_identity *told) {
    struct identity now;
    struct identity_event event;
    *told = (struct agent_identity){0};
    identity_get(machine->identity, &now);
    memcpy(told->generation, now.generation, UUID_SIZE);
    memcpy(told->host, now.host, UUID_SIZE);
    told->number = now.events;
    for (uint64_t n = first_kept(&now); n <= now.events; n++) {
        if (!identity_get_event(machine->identity, n, &event))
            continue;
        struct agent_identity_event *to = &told->events[told->count++];
        *to = (struct agent_identity_event){
            .number = n, .seconds = event.wall_seconds, .kind = event.kind};
        memcpy(to->generation, event.generation, UUID_SIZE);
        memcpy(to->host, event.host, UUID_SIZE);
    }
}

void machine_tell_identity(struct machine *machine, struct agent *agent) {
    struct agent_identity told;
    machine_agent_identity(machine, &told);
    agent_tell_identity(agent, &told);
}

static void put_uuid(json_t *object, const char *name, const uint8_t id[UUID_SIZE]) {
    char text[UUID_TEXT];
    uuid_format(id, text);
    json_object_set_new(object, name, json_string(text));
}

json_t *machine_identity_json(struct machine *machine) {
    struct identity now;
    struct identity_event event;
    identity_get(machine->identity, &now);
    json_t *object = json_object(), *events = json_array();
    put_uuid(object, "generation-id", now.generation);
    put_uuid(object, "host-id", now.host);
    for (uint64_t n = first_kept(&now); n <= now.events; n++) {
        if (!identity_get_event(machine->identity, n, &event))
            continue;
        bool known = event.kind >= IDENTITY_RESTORED && event.kind <= IDENTITY_MOVED;
        json_t *one = json_pack("{s:I, s:s, s:I}", "number", (json_int_t)n, "kind",
                                known ? kinds[event.kind] : "unknown", "time",
                                (json_int_t)event.wall_seconds);
        put_uuid(one, "generation-id", event.generation);
        put_uuid(one, "host-id", event.host);
        json_array_append_new(events, one);
    }
    json_object_set_new(object, "events", events);
    return object;
}
