/*
 * Clones, restores and moves, told to programs of the guest:
 *
 *     /run/lodge-agent/events     a line of JSON for each, in order; grows only
 *     /run/lodge-agent/identity   the ids of now, "name=value" lines; replaced as a whole
 *     /etc/lodge-agent/hooks.d/   programs, run one after the other in the order of their names:
 *                                 NAME KIND, and LODGE_KIND, LODGE_NUMBER, LODGE_GENERATION_ID,
 *                                 LODGE_HOST_ID, LODGE_TIME in the environment
 *
 * What is new follows from comparing numbers: the file of ids has that of the last event that was
 * reported. It is in memory, thus goes back with a snapshot and goes away with a reboot, and it
 * outlives this process.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

static const char directory[] = "/run/lodge-agent", events[] = "/run/lodge-agent/events",
                  current[] = "/run/lodge-agent/identity", fresh[] = "/run/lodge-agent/.identity";

enum { UUID_TEXT = 37 };

static const char *format_uuid(const uint8_t id[16], char text[UUID_TEXT]) {
    static const uint8_t parts[] = {4, 2, 2, 2, 6};
    char *to = text;
    for (size_t i = 0; i < sizeof parts; i++) {
        to = put_hex(to, id, parts[i]);
        *to++ = '-';
        id += parts[i];
    }
    to[-1] = 0;
    return text;
}

static const char *kind_name(uint32_t kind) {
    switch (kind) {
    case AGENT_EVENT_RESTORE: return "restore";
    case AGENT_EVENT_CLONE: return "clone";
    case AGENT_EVENT_MOVE: return "move";
    default: return "other"; /* of a newer host */
    }
}

/* ---- Files ---- */

/* Of the last event that was noted, once this process knows it. */
static struct {
    bool known;
    uint64_t number;
} noted;

/* False: nothing was ever noted since the system started. */
static bool read_number(uint64_t *number) {
    if (noted.known) {
        *number = noted.number;
        return true;
    }
    FILE *file = fopen(current, "re");
    char line[128];
    bool found = false;
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL)
        found = sscanf(line, "events=%" SCNu64, number) == 1;
    if (file != NULL)
        fclose(file);
    return found;
}

static void write_ids(const struct agent_identity *identity) {
    char generation[UUID_TEXT], host[UUID_TEXT];
    if (mkdir(directory, 0755) < 0 && errno != EEXIST)
        say("%s: %s", directory, strerror(errno));
    FILE *file = fopen(fresh, "we");
    if (file == NULL ||
        fprintf(file, "generation-id=%s\nhost-id=%s\nevents=%" PRIu64 "\n",
                format_uuid(identity->generation, generation), format_uuid(identity->host, host),
                identity->number) < 0 ||
        fflush(file) != 0 || rename(fresh, current) < 0)
        say("%s: %s", current, strerror(errno));
    if (file != NULL)
        fclose(file);
    noted.known = true;
    noted.number = identity->number;
}

static void append(const struct agent_identity_event *event) {
    char generation[UUID_TEXT], host[UUID_TEXT];
    int fd = open(events, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 ||
        dprintf(fd,
                "{\"event\":\"%s\",\"number\":%" PRIu64 ",\"generation-id\":\"%s\","
                "\"host-id\":\"%s\",\"time\":%" PRIu64 "}\n",
                kind_name(event->kind), event->number, format_uuid(event->generation, generation),
                format_uuid(event->host, host), event->seconds) < 0)
        say("%s: %s", events, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* ---- Hooks ---- */

/* The names that run-parts(8) takes, so that what package managers leave beside them is not run. */
static const char run_hooks[] =
    "for hook in /etc/lodge-agent/hooks.d/*; do\n"
    "    case ${hook##*/} in *[!A-Za-z0-9_-]*) continue ;; esac\n"
    "    if [ -f \"$hook\" ] && [ -x \"$hook\" ]; then \"$hook\" \"$LODGE_KIND\"; fi\n"
    "done";

static void set_number(const char *name, uint64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    setenv(name, text, 1);
}

/* In a child: those of one event after those of the one before. */
static void run_for(const struct agent_identity_event *event) {
    char text[UUID_TEXT];
    setenv("LODGE_KIND", kind_name(event->kind), 1);
    set_number("LODGE_NUMBER", event->number);
    setenv("LODGE_GENERATION_ID", format_uuid(event->generation, text), 1);
    setenv("LODGE_HOST_ID", format_uuid(event->host, text), 1);
    set_number("LODGE_TIME", event->seconds);
    if (system(run_hooks) < 0)
        say("hooks: %s", strerror(errno));
}

static void start_hooks(const struct agent_identity *identity, uint64_t known) {
    pid_t pid = access("/etc/lodge-agent/hooks.d", X_OK) == 0 ? fork() : 1;
    if (pid < 0)
        say("hooks: %s", strerror(errno));
    if (pid != 0)
        return;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    clearenv();
    for (char *const *entry = default_environment; *entry != NULL; entry++)
        putenv(*entry);
    for (uint32_t i = 0; i < identity->count; i++)
        if (identity->events[i].number > known)
            run_for(&identity->events[i]);
    _exit(0);
}

/* ---- What the host says ---- */

static void report(const struct agent_identity *identity, uint64_t known) {
    write_ids(identity);
    for (uint32_t i = 0; i < identity->count; i++)
        if (identity->events[i].number > known)
            append(&identity->events[i]);
    start_hooks(identity, known);
}

bool identity_take(const uint8_t *payload, size_t length) {
    struct agent_identity identity = {0};
    const size_t fixed = offsetof(struct agent_identity, events);
    uint64_t known;
    if (length < fixed || length > sizeof identity)
        return false;
    memcpy(&identity, payload, length);
    if (identity.count > AGENT_IDENTITY_EVENTS ||
        length != fixed + identity.count * sizeof identity.events[0])
        return false;
    if (!read_number(&known) || known > identity.number)
        write_ids(&identity);
    else if (known < identity.number)
        report(&identity, known);
    return true;
}
