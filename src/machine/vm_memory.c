#include "machine/vm_memory.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "machine/private.h"
#include "memory/missing.h"
#include "virtio/balloon.h"
#include "virtio/mem.h"

/* A guest may change its size as often as it likes; events go out at most so often. How long
 * statistics are waited for. */
#define EVENT_NS      (NS_PER_SECOND / 10)
#define STATISTICS_NS NS_PER_SECOND

enum { CALLS_MAX = CONTROL_CLIENTS_MAX };

struct vm_memory {
    struct machine *machine;
    void (*tell)(void *context, const char *event, json_t *data);
    void *context;
    struct loop_timer *event, *statistics;
    atomic_bool event_due;
    struct control_call *calls[CALLS_MAX]; /* wait for statistics */
    unsigned call_count;
};

/* ---- Queries ---- */

static json_t *statistics(const struct vm_memory *memory, const struct balloon_report *balloon) {
    static const char *const names[BALLOON_STATISTICS] = {
        [BALLOON_SWAP_IN] = "swap-in",
        [BALLOON_SWAP_OUT] = "swap-out",
        [BALLOON_MAJOR_FAULTS] = "major-faults",
        [BALLOON_MINOR_FAULTS] = "minor-faults",
        [BALLOON_FREE] = "free",
        [BALLOON_TOTAL] = "total",
        [BALLOON_AVAILABLE] = "available",
        [BALLOON_CACHES] = "caches",
        [BALLOON_HUGETLB_ALLOCATED] = "hugetlb-allocated",
        [BALLOON_HUGETLB_FAILED] = "hugetlb-failed",
    };
    uint64_t now = vm_clock_ns(memory->machine->platform.clock);
    json_t *object = json_object();
    for (unsigned i = 0; i < BALLOON_STATISTICS; i++)
        if (balloon->present & 1u << i)
            json_object_set_new(object, names[i], json_integer((json_int_t)balloon->statistics[i]));
    json_object_set_new(object, "age-seconds",
                        json_real((double)(now - balloon->known_ns) / (double)NS_PER_SECOND));
    return object;
}

static json_t *describe(const struct vm_memory *memory) {
    const struct machine_config *config = &memory->machine->config;
    struct machine_memory now;
    struct balloon_report balloon;
    machine_get_memory(memory->machine, &now);
    virtio_balloon_report(memory->machine->balloon, &balloon);
    struct missing_counters missing;
    memory_missing_count(memory->machine->platform.memory, &missing);
    json_t *object = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:b}", "size",
        (json_int_t)now.size, "target", (json_int_t)now.target, "base", (json_int_t)config->memory,
        "max",
        (json_int_t)(config->memory_max > config->memory ? config->memory_max : config->memory),
        "away", (json_int_t)missing.away, "ballooned", (json_int_t)now.ballooned, "plugged",
        (json_int_t)now.plugged, "resident",
        (json_int_t)memory_resident(memory->machine->platform.memory), "returned",
        (json_int_t)balloon.returned, "balloon-driver", now.balloon_driver, "plug-driver",
        now.mem_driver, "huge-pages", config->huge_pages);
    if (balloon.known)
        json_object_set_new(object, "statistics", statistics(memory, &balloon));
    return object;
}

static void answer_all(void *context) {
    struct vm_memory *memory = context;
    loop_timer_cancel(memory->statistics);
    while (memory->call_count > 0)
        control_return(memory->calls[--memory->call_count], describe(memory));
}

/* A paused guest sends none; with others waiting they have been asked for. */
void vm_memory_query(struct vm_memory *memory, struct control_call *call) {
    bool asked = memory->call_count > 0;
    if (memory->call_count == CALLS_MAX || machine_is_paused(memory->machine)) {
        control_return(call, describe(memory));
        return;
    }
    memory->calls[memory->call_count++] = call;
    if (asked)
        return;
    loop_timer_arm(memory->statistics, host_clock_ns() + STATISTICS_NS);
    if (!virtio_balloon_ask(memory->machine->balloon))
        answer_all(memory);
}

/* ---- Changes ---- */

void vm_memory_set(struct vm_memory *memory, struct control_call *call, const json_t *arguments) {
    json_int_t size = json_integer_value(json_object_get(arguments, "size"));
    uint64_t bytes = size > 0 ? (uint64_t)size : 0;
    struct error err = {0};
    int result = machine_set_memory(memory->machine, &bytes, &err);
    if (result < 0)
        control_fail(call, result == -ENODEV ? "NotActive" : "BadArgument", err.text);
    else
        control_return(call, json_pack("{s:I}", "size", (json_int_t)bytes));
}

static void send_event(void *context) {
    struct vm_memory *memory = context;
    struct machine_memory now;
    atomic_store(&memory->event_due, false);
    machine_get_memory(memory->machine, &now);
    memory->tell(
        memory->context, "MEMORY_CHANGE",
        json_pack("{s:I, s:I}", "size", (json_int_t)now.size, "target", (json_int_t)now.target));
}

/* Any thread, a device's lock held. */
static void on_change(void *context) {
    struct vm_memory *memory = context;
    if (!atomic_exchange(&memory->event_due, true))
        loop_timer_arm(memory->event, host_clock_ns() + EVENT_NS);
}

static void on_balloon(void *context, bool news) {
    struct vm_memory *memory = context;
    if (news)
        loop_timer_arm(memory->statistics, host_clock_ns());
    else
        on_change(memory);
}

/* ---- Life ---- */

int vm_memory_create(struct machine *machine,
                     void (*tell)(void *context, const char *event, json_t *data), void *context,
                     struct vm_memory **memory, struct error *err) {
    struct vm_memory *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    struct loop *loop = machine->config.loop;
    made->machine = machine;
    made->tell = tell;
    made->context = context;
    int result = loop_timer_create(loop, send_event, made, &made->event, err);
    if (result == 0)
        result = loop_timer_create(loop, answer_all, made, &made->statistics, err);
    if (result < 0) {
        vm_memory_destroy(made);
        return result;
    }
    virtio_balloon_listen(machine->balloon, on_balloon, made);
    if (machine->mem != NULL)
        virtio_mem_listen(machine->mem, on_change, made);
    *memory = made;
    return 0;
}

void vm_memory_destroy(struct vm_memory *memory) {
    if (memory == NULL)
        return;
    virtio_balloon_listen(memory->machine->balloon, NULL, NULL);
    if (memory->machine->mem != NULL)
        virtio_mem_listen(memory->machine->mem, NULL, NULL);
    if (memory->statistics != NULL)
        answer_all(memory);
    if (memory->event != NULL)
        loop_timer_free(memory->event);
    if (memory->statistics != NULL)
        loop_timer_free(memory->statistics);
    free(memory);
}
