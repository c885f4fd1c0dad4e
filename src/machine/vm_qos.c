#include "machine/vm_qos.h"

#include <string.h>

#include "block/qos.h"
#include "machine/private.h"

static json_t *describe(const struct qos_report *report, const char *path) {
    static const char *const names[] = {"latency-us-50", "latency-us-99", "latency-us-99.9"};
    json_t *disk =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:i}", "name", report->name, "file", path,
                  "class", qos_class_names[report->class], "requests", (json_int_t)report->requests,
                  "pieces", (json_int_t)report->pieces, "bytes", (json_int_t)report->bytes,
                  "waiting", (int)report->waiting, "in-flight", (int)report->in_flight);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        json_object_set_new(disk, names[i], json_real((double)report->latency_ns[i] / 1e3));
    return disk;
}

void vm_qos_query(struct machine *machine, struct control_call *call) {
    struct qos_report reports[MACHINE_DISKS_MAX];
    unsigned count = qos_report(machine->qos, reports, MACHINE_DISKS_MAX);
    json_t *disks = json_array();
    for (unsigned i = 0; i < count && i < MACHINE_DISKS_MAX; i++)
        json_array_append_new(disks, describe(&reports[i], machine->config.disks[i].path));
    control_return(call, json_pack("{s:o}", "disks", disks));
}

void vm_qos_set(struct machine *machine, struct control_call *call, const json_t *arguments) {
    const char *disk = json_string_value(json_object_get(arguments, "disk"));
    const char *class = json_string_value(json_object_get(arguments, "class"));
    struct error err = {0};
    unsigned value = 0;
    while (class != NULL && value < QOS_CLASSES && strcmp(qos_class_names[value], class) != 0)
        value++;
    if (disk == NULL || class == NULL || value == QOS_CLASSES)
        control_fail(call, "BadArgument", "disk, and class: urgent, high, medium or low");
    else if (qos_set_class(machine->qos, disk, (enum qos_class)value, &err) < 0)
        control_fail(call, "BadArgument", err.text);
    else
        control_return(call, NULL);
}
