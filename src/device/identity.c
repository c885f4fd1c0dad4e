#include "device/identity.h"

#include "base/bytes.h"

enum { PAGE_USED = 40 };

struct identity_device {
    struct device device;
    struct io_region *region;
    struct identity now;
    struct identity_event kept[IDENTITY_EVENTS_MAX]; /* event n at n % IDENTITY_EVENTS_MAX */
};

/* ---- What the guest sees ---- */

static void put_guid(uint8_t *to, const uint8_t uuid[UUID_SIZE]) {
    static const uint8_t order[UUID_SIZE] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    for (unsigned i = 0; i < UUID_SIZE; i++)
        to[i] = uuid[order[i]];
}

static uint64_t identity_read(void *context, uint64_t offset, unsigned size) {
    struct identity_device *identity = context;
    uint8_t page[PAGE_USED], bytes[8] = {0};
    lock_take(&identity->device.lock);
    put_guid(page, identity->now.generation);
    put_guid(page + IDENTITY_HOST_AT, identity->now.host);
    store_le64(page + IDENTITY_HOST_AT + UUID_SIZE, identity->now.events);
    lock_release(&identity->device.lock);
    for (unsigned i = 0; i < size && offset + i < sizeof page; i++)
        bytes[i] = page[offset + i];
    return load_le64(bytes);
}

static void identity_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    (void)context, (void)offset, (void)value, (void)size;
}

static const struct io_ops identity_ops = {identity_read, identity_write};

/* ---- What the machine does with it ---- */

void identity_get(struct device *device, struct identity *identity) {
    lock_take(&device->lock);
    *identity = ((struct identity_device *)device)->now;
    lock_release(&device->lock);
}

bool identity_get_event(struct device *device, uint64_t number, struct identity_event *event) {
    struct identity_device *identity = (struct identity_device *)device;
    lock_take(&device->lock);
    *event = identity->kept[number % IDENTITY_EVENTS_MAX];
    lock_release(&device->lock);
    return number > 0 && event->number == number;
}

void identity_add_event(struct device *device, const struct identity_event *event) {
    struct identity_device *identity = (struct identity_device *)device;
    lock_take(&device->lock);
    uint64_t number = ++identity->now.events;
    struct identity_event *kept = &identity->kept[number % IDENTITY_EVENTS_MAX];
    *kept = *event;
    kept->number = number;
    memcpy(identity->now.generation, event->generation, UUID_SIZE);
    memcpy(identity->now.host, event->host, UUID_SIZE);
    lock_release(&device->lock);
}

/* ---- Life: none of it changes by a reset ---- */

static const struct state_field event_fields[] = {
    STATE_FIELD(struct identity_event, number, 1, .keep = true),
    STATE_FIELD(struct identity_event, wall_seconds, 1, .keep = true),
    STATE_FIELD(struct identity_event, kind, 1, .keep = true),
    STATE_ARRAY(struct identity_event, generation, 1, .keep = true),
    STATE_ARRAY(struct identity_event, host, 1, .keep = true),
};
static const struct state_table event_state =
    STATE_TABLE("identity event", 1, struct identity_event, event_fields);

static const struct state_field now_fields[] = {
    STATE_ARRAY(struct identity, generation, 1, .keep = true),
    STATE_ARRAY(struct identity, host, 1, .keep = true),
    STATE_FIELD(struct identity, events, 1, .keep = true),
};
static const struct state_table now_state = STATE_TABLE("identity", 1, struct identity, now_fields);

static const struct state_field identity_fields[] = {
    STATE_NESTED(struct identity_device, now, &now_state, 1),
    STATE_NESTED_ARRAY(struct identity_device, kept, &event_state, 1),
};

/* So that numbers can be counted through. */
static int after_load(void *object, struct error *err) {
    const struct identity_device *identity = object;
    return identity->now.events <= INT64_MAX
               ? 0
               : error_set(err, -EINVAL, "more events than there can have been");
}

static const struct state_table identity_state =
    STATE_TABLE("identity", 1, struct identity_device, identity_fields, .after_load = after_load);

static int identity_init(struct device *device, const void *config_, struct error *err) {
    struct identity_device *identity = (struct identity_device *)device;
    const struct identity_config *config = config_;
    memcpy(identity->now.generation, config->generation, UUID_SIZE);
    memcpy(identity->now.host, config->host, UUID_SIZE);
    return memory_add_io(device->platform->memory, device->name, config->base, PAGE_SIZE,
                         &identity_ops, identity, &identity->region, err);
}

static void identity_destroy(struct device *device) {
    memory_remove_io(((struct identity_device *)device)->region);
}

const struct device_class identity_class = {
    .name = "identity",
    .size = sizeof(struct identity_device),
    .state = &identity_state,
    .later = true,
    .init = identity_init,
    .destroy = identity_destroy,
};
