/* What a profile saw, as JSON: docs/control.md, profile-stop. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine/profile_private.h"

static double seconds(double ns) {
    return ns / (double)NS_PER_SECOND;
}

/* Weights are exact but for what was lost: what they add up to is made the time that was used. */
static double scale_of(const struct profile *profile) {
    double sum = (double)profile->uncounted_ns;
    for (unsigned i = 0; i < SPOTS; i++)
        sum += (double)profile->spots[i].ns;
    return sum > 0 && profile->times.cpu_ns > 0 ? (double)profile->times.cpu_ns / sum : 1;
}

/* ---- Kinds of work ---- */

static json_t *time_entry(enum time_kind kind, double ns, double all) {
    return json_pack("{s:s, s:s, s:f, s:f}", "kind", time_kind_names[kind], "title",
                     time_kind_titles[kind], "seconds", seconds(ns), "share",
                     all > 0 ? ns / all : 0);
}

static json_t *report_time(const struct profile *profile, double scale) {
    double kinds[TIME_KINDS], all = (double)profile->took_ns * profile->machine->config.vcpus;
    json_t *list = json_array();
    for (unsigned k = 0; k < TIME_KINDS; k++)
        kinds[k] = (double)profile->kind_ns[k] * scale;
    for (unsigned i = 0; i < SPOTS; i++)
        kinds[profile->spots[i].kind] += (double)profile->spots[i].ns * scale;
    double idle = all - (double)profile->times.cpu_ns - (double)profile->times.waiting_ns;
    kinds[TIME_IDLE] += idle > 0 ? idle : 0;
    kinds[TIME_WAITING] = (double)profile->times.waiting_ns;
    for (unsigned k = 0; k < TIME_KINDS; k++)
        json_array_append_new(list, time_entry(k, kinds[k], all));
    return list;
}

/* ---- Lists: one tally for each label ---- */

/* Adds to the tally of `label`; made with the members of `fresh`, which is taken, if new. */
static void tally(json_t *tallies, const char *label, double ns, json_t *fresh) {
    json_t *entry = json_object_get(tallies, label);
    if (entry == NULL) {
        json_object_set_new(fresh, "ns", json_real(0));
        json_object_set_new(tallies, label, fresh);
        entry = json_object_get(tallies, label);
    } else {
        json_decref(fresh);
    }
    json_t *sum = json_object_get(entry, "ns");
    if (sum != NULL)
        json_real_set(sum, json_real_value(sum) + ns);
}

static int by_ns(const void *a, const void *b) {
    double x = json_real_value(json_object_get(*(json_t *const *)a, "ns"));
    double y = json_real_value(json_object_get(*(json_t *const *)b, "ns"));
    return (x < y) - (x > y);
}

/* The largest tallies as a list. Takes `tallies`. */
static json_t *largest(const struct profile *profile, json_t *tallies, unsigned top) {
    size_t count = json_object_size(tallies), n = 0;
    json_t **all = calloc(count + 1, sizeof(json_t *)), *list = json_array(), *entry;
    double cpu = (double)profile->times.cpu_ns;
    const char *label;
    json_object_foreach(tallies, label, entry) {
        if (all != NULL)
            all[n++] = entry;
    }
    if (all != NULL)
        qsort(all, n, sizeof(json_t *), by_ns);
    for (size_t i = 0; i < n && i < top; i++) {
        double ns = json_real_value(json_object_get(all[i], "ns"));
        json_object_del(all[i], "ns");
        json_object_set_new(all[i], "seconds", json_real(seconds(ns)));
        json_object_set_new(all[i], "share", json_real(cpu > 0 ? ns / cpu : 0));
        json_array_append(list, all[i]);
    }
    free(all);
    json_decref(tallies);
    return list;
}

static bool is_in_guest(const struct spot *spot) {
    return spot->samples != 0 && spot->kind != TIME_IDLE;
}

static void tally_function(const struct profile *profile, json_t *tallies, const struct spot *spot,
                           double ns) {
    char label[64], address[32];
    const char *process = profile->processes[spot->process];
    if (spot->named) {
        const struct guest_symbol *s = &profile->symbols->code[spot->guest];
        snprintf(label, sizeof label, "k%" PRIu64, spot->guest);
        snprintf(address, sizeof address, "0x%" PRIx64, s->address);
        tally(tallies, label, ns,
              json_pack("{s:s, s:s, s:s, s:s}", "space", "kernel", "name",
                        guest_symbol_name(profile->symbols, s), "module",
                        guest_symbol_module(profile->symbols, s), "address", address));
        return;
    }
    snprintf(address, sizeof address, "0x%" PRIx64, spot->guest);
    snprintf(label, sizeof label, "%c%s%s", spot->user ? 'u' : 'k', address,
             spot->user ? process : "");
    tally(tallies, label, ns,
          json_pack("{s:s, s:s, s:s, s:s}", "space", spot->user ? "user" : "kernel", "name",
                    address, spot->user ? "process" : "module", spot->user ? process : "",
                    "address", address));
}

/* All time on behalf of guest code, whoever spends it. */
static json_t *report_functions(const struct profile *profile, double scale, unsigned top) {
    json_t *tallies = json_object();
    for (unsigned i = 0; i < SPOTS; i++)
        if (is_in_guest(&profile->spots[i]))
            tally_function(profile, tallies, &profile->spots[i],
                           (double)profile->spots[i].ns * scale);
    return largest(profile, tallies, top);
}

static json_t *report_processes(const struct profile *profile, double scale, unsigned top) {
    json_t *tallies = json_object();
    for (unsigned i = 0; i < SPOTS; i++) {
        const struct spot *spot = &profile->spots[i];
        if (is_in_guest(spot) && spot->process != 0)
            tally(tallies, profile->processes[spot->process], (double)spot->ns * scale,
                  json_pack("{s:s}", "name", profile->processes[spot->process]));
    }
    return largest(profile, tallies, top);
}

/* Time in C on behalf of one instruction, and how often that was. */
static json_t *report_instructions(const struct profile *profile, double scale, unsigned top) {
    json_t *tallies = json_object();
    for (unsigned i = 0; i < SPOTS; i++) {
        const struct spot *spot = &profile->spots[i];
        const char *name = spot->samples != 0 ? sample_insn_name(spot->insn) : NULL;
        char counter[64];
        if (name == NULL)
            continue;
        snprintf(counter, sizeof counter, "callouts.%s", name);
        json_t *times = json_object_get(profile->counters, counter);
        tally(tallies, name, (double)spot->ns * scale,
              json_pack("{s:s, s:I}", "name", name, "count", json_integer_value(times)));
    }
    return largest(profile, tallies, top);
}

static json_t *report_lodge(const struct profile *profile, double scale, unsigned top) {
    json_t *tallies = json_object();
    for (unsigned i = 0; i < SPOTS; i++) {
        const struct spot *spot = &profile->spots[i];
        char label[160];
        if (spot->samples == 0 || spot->host == HOST_UNKNOWN)
            continue;
        const struct host_function *f = &profile->host.functions[spot->host];
        snprintf(label, sizeof label, "%s %s", f->name, f->file);
        tally(tallies, label, (double)spot->ns * scale,
              json_pack("{s:s, s:s, s:s}", "name", f->name, "file", f->file, "kind",
                        time_kind_names[spot->kind]));
    }
    return largest(profile, tallies, top);
}

/* ---- All of it ---- */

/* What was counted since the start, in place of what had been before. */
static void subtract_counters(struct profile *profile) {
    json_t *now = machine_counters_json(profile->machine), *value;
    const char *name;
    json_object_foreach(now, name, value) {
        json_int_t before = json_integer_value(json_object_get(profile->counters, name));
        json_integer_set(value, json_integer_value(value) - before);
    }
    json_decref(profile->counters);
    profile->counters = now;
}

json_t *profile_report(struct profile *profile, unsigned top) {
    double scale = scale_of(profile);
    double others = (double)profile->process_ns - (double)profile->times.cpu_ns;
    subtract_counters(profile);
    json_t *report = json_pack(
        "{s:f, s:f, s:f, s:f, s:i, s:I, s:I, s:i, s:b}", "seconds",
        seconds((double)profile->took_ns), "cpu-seconds", seconds((double)profile->times.cpu_ns),
        "other-threads-seconds", seconds(others > 0 ? others : 0), "unplaced-seconds",
        seconds((double)profile->uncounted_ns * scale), "vcpus",
        (int)profile->machine->config.vcpus, "samples", (json_int_t)profile->samples, "lost",
        (json_int_t)profile->lost, "interval-us", (int)profile->interval_us, "symbols",
        profile->symbols != NULL);
    json_object_set_new(report, "time", report_time(profile, scale));
    json_object_set_new(report, "functions", report_functions(profile, scale, top));
    json_object_set_new(report, "processes", report_processes(profile, scale, top));
    json_object_set_new(report, "instructions", report_instructions(profile, scale, top));
    json_object_set_new(report, "lodge", report_lodge(profile, scale, top));
    json_object_set(report, "counters", profile->counters);
    return report;
}
