#include "machine/machine_idle.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/acpi_pm.h"
#include "image/file.h"
#include "machine/layout.h"
#include "machine/private.h"

enum { LATENCY_MAX_US = 1000000, TEXT_MAX = 4096 };

/* ---- Text ---- */

/* False: no state that may follow. */
static bool add_state(struct idle_table *table, const char *name, long latency, long power) {
    long last = table->count > 0 ? (long)table->states[table->count - 1].latency_us : -1;
    if (table->count == IDLE_STATES_MAX || latency <= last || latency > LATENCY_MAX_US ||
        power < 0 || power > INT32_MAX)
        return false;
    struct idle_state *state = &table->states[table->count++];
    *state = (struct idle_state){.latency_us = (uint32_t)latency, .power_mw = (uint32_t)power};
    snprintf(state->name, sizeof state->name, "%s", name);
    for (char *c = state->name; *c != 0; c++)
        if (!isgraph((unsigned char)*c))
            *c = '-';
    return true;
}

static bool parse_line(struct idle_table *table, char *line) {
    char name[IDLE_STATES_NAME];
    long latency = 0, power = 0;
    int end = 0, all = 0;
    line[strcspn(line, "#")] = 0;
    if (line[strspn(line, " \t\r")] == 0)
        return true;
    int found = sscanf(line, "%15s %9ld %n%9ld %n", name, &latency, &end, &power, &all);
    return found >= 2 && line[found == 3 ? all : end] == 0 &&
           add_state(table, name, latency, power);
}

static int parse(const char *text, size_t length, struct idle_table *table, struct error *err) {
    char copy[TEXT_MAX + 1], *save = NULL;
    *table = (struct idle_table){0};
    if (length > TEXT_MAX || memchr(text, 0, length) != NULL)
        return error_set(err, -EINVAL, "no table of idle states");
    memcpy(copy, text, length);
    copy[length] = 0;
    for (char *line = strtok_r(copy, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save))
        if (!parse_line(table, line))
            return error_set(
                err, -EINVAL,
                "idle states: '%.40s' is no NAME LATENCY-US [POWER-MW], of up to %d with "
                "rising latencies of up to a second",
                line, IDLE_STATES_MAX);
    return table->count > 0 ? 0 : error_set(err, -EINVAL, "idle states: there are none");
}

/* ---- The host's ---- */

static bool read_line(unsigned state, const char *file, char *text, size_t size) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cpuidle/state%u/%s", state, file);
    FILE *from = fopen(path, "re");
    bool good = from != NULL && fgets(text, (int)size, from) != NULL;
    if (from != NULL)
        fclose(from);
    text[good ? strcspn(text, "\n") : 0] = 0;
    return good;
}

/* Those that save something: polling does not. */
static int of_host(struct idle_table *table, struct error *err) {
    enum { STATES = 16 };
    char name[32], latency[32], power[32];
    *table = (struct idle_table){0};
    for (unsigned i = 0; i < STATES && read_line(i, "latency", latency, sizeof latency); i++) {
        long us = strtol(latency, NULL, 10), mw = 0;
        if (us == 0 || !read_line(i, "name", name, sizeof name))
            continue;
        if (read_line(i, "power", power, sizeof power))
            mw = strtol(power, NULL, 10);
        add_state(table, name, us, mw > 0 && mw <= INT32_MAX ? mw : 0);
    }
    return table->count > 0
               ? 0
               : error_set(err, -ENODATA,
                           "this host tells of no idle states; use --idle-states none or FILE");
}

int machine_idle_table(const char *source, struct idle_table *table, struct error *err) {
    struct file_bytes bytes;
    if (strcmp(source, "host") == 0)
        return of_host(table, err);
    int result = file_read(source, &bytes, err);
    if (result < 0)
        return result;
    result = parse((const char *)bytes.data, bytes.length, table, err);
    file_free(&bytes);
    return result < 0 ? error_prefix(err, "%s", source) : 0;
}

/* ---- A machine's ---- */

int machine_set_idle(struct machine *machine, const char *text, struct error *err) {
    struct idle_table table;
    if (machine->idle_states == NULL)
        return error_set(err, -ENODEV, "this VM was started without --idle-states");
    int result = text != NULL ? parse(text, strlen(text), &table, err)
                              : machine_idle_table(machine->config.idle_states, &table, err);
    if (result == 0 && idle_states_set(machine->idle_states, &table))
        acpi_pm_raise_gpe(machine->acpi_pm, LAYOUT_IDLE_GPE);
    return result;
}

json_t *machine_idle_json(struct machine *machine) {
    struct idle_states_report report;
    if (machine->idle_states == NULL)
        return NULL;
    idle_states_look(machine->idle_states, &report);
    json_t *states = json_array(), *read = json_array();
    for (uint32_t i = 0; i < report.table.count; i++) {
        const struct idle_state *state = &report.table.states[i];
        json_array_append_new(states, json_pack("{s:s, s:I, s:I, s:I}", "name", state->name,
                                                "latency-us", (json_int_t)state->latency_us,
                                                "power-mw", (json_int_t)state->power_mw, "entries",
                                                (json_int_t)report.entries[i]));
    }
    for (unsigned i = 0; i < machine->config.vcpus; i++)
        json_array_append_new(read, json_boolean(report.read[i]));
    return json_pack("{s:o, s:I, s:I, s:o}", "states", states, "gated", (json_int_t)report.gated,
                     "changes", (json_int_t)report.changes, "read", read);
}
