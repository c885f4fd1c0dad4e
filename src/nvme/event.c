/* Asynchronous events: 5.2. */
#include "nvme/private.h"

/* An event of each type that is not masked until its log page was read, as long as the driver has
 * requests outstanding. */
void nvme_deliver_events(struct nvme *nvme) {
    struct nvme_live *live = &nvme->live;
    for (unsigned i = 0;
         i < live->event_count && live->event_command_count > 0 && nvme_room(&live->cqs[0]) > 0;) {
        uint32_t event = live->events[i];
        unsigned type = event & 7;
        if (live->events_masked & 1u << type) {
            i++;
            continue;
        }
        uint16_t id = live->event_commands[--live->event_command_count];
        live->events_masked |= (uint8_t)(1u << type);
        live->event_count--;
        memmove(&live->events[i], &live->events[i + 1],
                (live->event_count - i) * sizeof live->events[0]);
        nvme_post(nvme, 0, id, NVME_OK, event);
    }
}

void nvme_event(struct nvme *nvme, unsigned type, unsigned information, unsigned log_page) {
    struct nvme_live *live = &nvme->live;
    uint32_t event = type | information << 8 | log_page << 16;
    if (!nvme_running(nvme))
        return;
    for (unsigned i = 0; i < live->event_count; i++)
        if (live->events[i] == event)
            return;
    if (live->event_count == NVME_EVENTS)
        return;
    live->events[live->event_count++] = event;
    nvme_deliver_events(nvme);
    nvme_signal(nvme);
}

int nvme_ask_events(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    struct nvme_live *live = &nvme->live;
    if (live->event_command_count == NVME_EVENT_COMMANDS)
        return NVME_EVENT_LIMIT | NVME_DO_NOT_RETRY;
    live->event_commands[live->event_command_count++] = command->id;
    nvme_withdraw(command);
    nvme_journal_commit(nvme);
    nvme_deliver_events(nvme);
    return NVME_PENDING;
}

bool nvme_abort_event(struct nvme *nvme, uint16_t id) {
    struct nvme_live *live = &nvme->live;
    for (unsigned i = 0; i < live->event_command_count; i++) {
        if (live->event_commands[i] != id || nvme_room(&live->cqs[0]) == 0)
            continue;
        live->event_command_count--;
        memmove(&live->event_commands[i], &live->event_commands[i + 1],
                (live->event_command_count - i) * sizeof live->event_commands[0]);
        nvme_post(nvme, 0, id, NVME_ABORTED, 0);
        return true;
    }
    return false;
}

void nvme_event_read(struct nvme *nvme, unsigned type) {
    nvme->live.events_masked &= (uint8_t) ~(1u << type);
    nvme_deliver_events(nvme);
}

void nvme_check_temperature(struct nvme *nvme) {
    struct nvme_live *live = &nvme->live;
    enum { CRITICAL_TEMPERATURE = 2 };
    bool beyond =
        NVME_TEMPERATURE >= live->over_temperature || NVME_TEMPERATURE <= live->under_temperature;
    bool was = live->critical & CRITICAL_TEMPERATURE;
    live->critical = beyond ? CRITICAL_TEMPERATURE : 0;
    if (beyond && !was && (live->event_config & CRITICAL_TEMPERATURE))
        nvme_event(nvme, NVME_EVENT_HEALTH, NVME_HEALTH_TEMPERATURE, NVME_LOG_HEALTH);
}
