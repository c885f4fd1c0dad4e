/* Features: 5.13, 5.21. None is saveable; every one can be changed. */
#include "nvme/private.h"

enum { SELECT_CURRENT = 0, SELECT_DEFAULT = 1, SELECT_SAVED = 2, SELECT_SUPPORTED = 3 };
enum { CHANGEABLE = 4, SAVE = 1u << 31 };
enum { TIMESTAMP_SIZE = 8, TIMESTAMP_BY_HOST = 1, UNDER = 1 };
#define EVENT_CONFIG_KNOWN 0x11fu /* health warnings, namespace attributes */
#define NS_PER_MS          UINT64_C(1000000)

static int timestamp(struct nvme_command *command, bool current) {
    struct nvme *nvme = command->nvme;
    const struct nvme_live *live = &nvme->live;
    uint64_t elapsed = vm_clock_ns(nvme->device.platform->clock) - live->timestamp_set_ns;
    uint8_t bytes[TIMESTAMP_SIZE];
    store_le64(bytes,
               current ? (live->timestamp + elapsed / NS_PER_MS) & UINT64_C(0xffffffffffff) : 0);
    bytes[6] = (uint8_t)(current ? live->timestamp_origin << 1 : 0);
    bytes[7] = 0;
    return nvme_reply(command, bytes, sizeof bytes);
}

static int set_timestamp(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    uint8_t bytes[TIMESTAMP_SIZE];
    int status = nvme_data_find(command, sizeof bytes);
    if (status == NVME_OK)
        status = nvme_data_read(command, 0, bytes, sizeof bytes);
    if (status != NVME_OK)
        return status;
    nvme->live.timestamp = load_le64(bytes) & UINT64_C(0xffffffffffff);
    nvme->live.timestamp_set_ns = vm_clock_ns(nvme->device.platform->clock);
    nvme->live.timestamp_origin = TIMESTAMP_BY_HOST;
    return NVME_OK;
}

/* The composite temperature's thresholds: there are no other sensors. */
static int temperature(struct nvme_command *command, bool current, bool set) {
    struct nvme_live *live = &command->nvme->live;
    uint32_t dword11 = nvme_dword(command, 11);
    unsigned sensor = dword11 >> 16 & 15, type = dword11 >> 20 & 3;
    if (type > UNDER || (sensor != 0 && !(set && sensor == 15)))
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    uint16_t *threshold = type == UNDER ? &live->under_temperature : &live->over_temperature;
    if (set) {
        *threshold = (uint16_t)dword11;
        nvme_check_temperature(command->nvme);
    } else {
        command->result = current ? *threshold : type == UNDER ? 0 : NVME_TEMPERATURE_WARNING;
    }
    return NVME_OK;
}

static int vector(struct nvme_command *command, bool current, bool set) {
    struct nvme_live *live = &command->nvme->live;
    uint32_t dword11 = nvme_dword(command, 11), n = dword11 & 0xffff;
    if (n >= NVME_QUEUES)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (set)
        live->no_coalescing[n] = dword11 >> 16 & 1;
    else
        command->result = n | (current ? (uint32_t)live->no_coalescing[n] << 16 : 0);
    return NVME_OK;
}

static int set_queues(struct nvme_command *command) {
    struct nvme_live *live = &command->nvme->live;
    uint32_t dword11 = nvme_dword(command, 11);
    for (unsigned i = 1; i < NVME_QUEUES; i++)
        if (live->sqs[i].valid || live->cqs[i].valid)
            return NVME_SEQUENCE | NVME_DO_NOT_RETRY;
    if ((dword11 & 0xffff) == 0xffff || dword11 >> 16 == 0xffff)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    command->result = (NVME_IO_QUEUES - 1) << 16 | (NVME_IO_QUEUES - 1);
    return NVME_OK;
}

/* Features that are a number which is kept. */
static uint32_t *simple(struct nvme_live *live, unsigned feature, uint32_t *mask) {
    *mask = UINT32_MAX;
    switch (feature) {
    case NVME_FEATURE_ARBITRATION: *mask = 0xffffff07; return &live->arbitration;
    case NVME_FEATURE_POWER: *mask = 0xff; return &live->power;
    case NVME_FEATURE_ERROR_RECOVERY: *mask = 0xffff; return &live->error_recovery;
    case NVME_FEATURE_WRITE_CACHE: *mask = 1; return &live->write_cache;
    case NVME_FEATURE_COALESCING: *mask = 0xffff; return &live->coalescing;
    case NVME_FEATURE_ATOMICITY: *mask = 1; return &live->atomicity_off;
    case NVME_FEATURE_EVENTS: *mask = EVENT_CONFIG_KNOWN; return &live->event_config;
    default: return NULL;
    }
}

static uint32_t simple_default(unsigned feature) {
    return feature == NVME_FEATURE_WRITE_CACHE ? 1 : 0;
}

/* What cannot be set, though it fits the field. */
static bool acceptable(unsigned feature, uint32_t value) {
    enum { POWER_STATE = 31, DEALLOCATED_ERROR = 1 << 16 };
    if (feature == NVME_FEATURE_POWER)
        return (value & POWER_STATE) == 0;
    return feature != NVME_FEATURE_ERROR_RECOVERY || !(value & DEALLOCATED_ERROR);
}

static bool exists(const struct nvme *nvme, unsigned feature) {
    if (feature == NVME_FEATURE_WRITE_CACHE && nvme->write_through)
        return false;
    return (feature >= NVME_FEATURE_ARBITRATION && feature <= NVME_FEATURE_EVENTS &&
            feature != 3 /* LBA range type */) ||
           feature == NVME_FEATURE_TIMESTAMP;
}

int nvme_get_feature(struct nvme_command *command) {
    const struct nvme *nvme = command->nvme;
    struct nvme_live *live = &command->nvme->live;
    unsigned feature = nvme_dword(command, 10) & 0xff, select = nvme_dword(command, 10) >> 8 & 7;
    bool current = select == SELECT_CURRENT;
    uint32_t mask, *value = simple(live, feature, &mask);
    if (!exists(nvme, feature) || select > SELECT_SUPPORTED)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (select == SELECT_SUPPORTED) {
        command->result = CHANGEABLE;
        return NVME_OK;
    }
    switch (feature) {
    case NVME_FEATURE_TEMPERATURE: return temperature(command, current, false);
    case NVME_FEATURE_VECTOR: return vector(command, current, false);
    case NVME_FEATURE_TIMESTAMP: return timestamp(command, current);
    case NVME_FEATURE_QUEUES:
        command->result = (NVME_IO_QUEUES - 1) << 16 | (NVME_IO_QUEUES - 1);
        return NVME_OK;
    default: command->result = current ? *value : simple_default(feature); return NVME_OK;
    }
}

int nvme_set_feature(struct nvme_command *command) {
    const struct nvme *nvme = command->nvme;
    struct nvme_live *live = &command->nvme->live;
    unsigned feature = nvme_dword(command, 10) & 0xff;
    uint32_t dword11 = nvme_dword(command, 11), mask, *value = simple(live, feature, &mask);
    if (!exists(nvme, feature))
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (nvme_dword(command, 10) & SAVE)
        return NVME_NOT_SAVEABLE | NVME_DO_NOT_RETRY;
    switch (feature) {
    case NVME_FEATURE_TEMPERATURE: return temperature(command, true, true);
    case NVME_FEATURE_VECTOR: return vector(command, true, true);
    case NVME_FEATURE_TIMESTAMP: return set_timestamp(command);
    case NVME_FEATURE_QUEUES: return set_queues(command);
    default: break;
    }
    if (!acceptable(feature, dword11))
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    *value = dword11 & mask;
    return NVME_OK;
}
