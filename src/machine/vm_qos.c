#include "machine/vm_qos.h"

#include <stdlib.h>
#include <string.h>

#include "block/qos.h"
#include "machine/private.h"

/* Those that there are, and for how long a burst. */
static json_t *describe_limits(const struct block_limits *limits) {
    json_t *object = json_object();
    for (unsigned i = 0; i < BLOCK_LIMITS; i++)
        if (limits->per_second[i] != 0)
            json_object_set_new(object, block_limit_names[i],
                                json_integer((json_int_t)limits->per_second[i]));
    if (json_object_size(object) > 0)
        json_object_set_new(object, "burst", json_real(limits->burst_ms / 1e3));
    return object;
}

/* [microseconds, requests that took no longer and longer than the entry before] */
static json_t *describe_latencies(const struct histogram *latencies) {
    json_t *list = json_array();
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        if (latencies->buckets[i] != 0)
            json_array_append_new(list, json_pack("[f, I]", (double)histogram_end_ns(i) / 1e3,
                                                  (json_int_t)latencies->buckets[i]));
    return list;
}

static json_t *describe(const struct qos_report *report, const char *path) {
    static const struct {
        const char *name;
        unsigned per_mille;
    } quantiles[] = {{"latency-us-50", 500}, {"latency-us-99", 990}, {"latency-us-99.9", 999}};
    json_t *disk =
        json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:i, s:i, s:o}", "name", report->name,
                  "file", path, "class", qos_class_names[report->settings.class], "limits",
                  describe_limits(&report->settings.limits), "requests",
                  (json_int_t)report->requests, "pieces", (json_int_t)report->pieces, "bytes",
                  (json_int_t)report->bytes, "waiting", (int)report->waiting, "in-flight",
                  (int)report->in_flight, "latencies-us", describe_latencies(&report->latencies));
    for (unsigned i = 0; i < ARRAY_SIZE(quantiles); i++)
        json_object_set_new(
            disk, quantiles[i].name,
            json_real((double)histogram_quantile_ns(&report->latencies, quantiles[i].per_mille) /
                      1e3));
    return disk;
}

void vm_qos_query(struct machine *machine, struct control_call *call) {
    struct qos_report *reports = calloc(MACHINE_DISKS_MAX, sizeof *reports);
    json_t *disks = json_array();
    unsigned count = 0;
    qos_watch(machine->qos);
    if (reports != NULL)
        count = qos_report(machine->qos, reports, MACHINE_DISKS_MAX);
    for (unsigned i = 0; i < count && i < MACHINE_DISKS_MAX; i++)
        json_array_append_new(disks, describe(&reports[i], machine->config.disks[i].path));
    free(reports);
    control_return(call, json_pack("{s:o}", "disks", disks));
}

/* Changes what the arguments name. */
static int take_settings(struct qos_settings *settings, const json_t *arguments,
                         struct error *err) {
    const char *class = json_string_value(json_object_get(arguments, "class"));
    const json_t *burst = json_object_get(arguments, "burst");
    unsigned value = 0;
    while (class != NULL && value < QOS_CLASSES && strcmp(qos_class_names[value], class) != 0)
        value++;
    if (value == QOS_CLASSES)
        return error_set(err, -EINVAL, "a class is urgent, high, medium, low or background");
    if (class != NULL)
        settings->class = (enum qos_class)value;
    for (unsigned i = 0; i < BLOCK_LIMITS; i++) {
        const json_t *limit = json_object_get(arguments, block_limit_names[i]);
        if (limit != NULL && json_integer_value(limit) < 0)
            return error_set(err, -EINVAL, "%s is 0 or more", block_limit_names[i]);
        if (limit != NULL)
            settings->limits.per_second[i] = (uint64_t)json_integer_value(limit);
    }
    double seconds = json_number_value(burst);
    if (burst != NULL && !(seconds >= 0.001 && seconds * 1000 <= BLOCK_BURST_MS_MAX))
        return error_set(err, -EINVAL, "a burst is from 0.001 to %d seconds",
                         BLOCK_BURST_MS_MAX / 1000);
    if (burst != NULL)
        settings->limits.burst_ms = (uint32_t)(seconds * 1000);
    return 0;
}

void vm_qos_set(struct machine *machine, struct control_call *call, const json_t *arguments) {
    const char *disk = json_string_value(json_object_get(arguments, "disk"));
    struct qos_settings settings;
    struct error err = {0};
    int result = qos_get(machine->qos, disk != NULL ? disk : "", &settings, &err);
    if (result == 0)
        result = take_settings(&settings, arguments, &err);
    if (result == 0)
        result = qos_set(machine->qos, disk, &settings, &err);
    if (result < 0)
        control_fail(call, "BadArgument", err.text);
    else
        control_return(call, NULL);
}
