/* Registers, enable, reset and shutdown (3.1, 7.3, 7.6); the PCI function and the device class. */
#include <stdio.h>

#include "base/log.h"
#include "nvme/private.h"

enum { VENDOR = 0x1b36, DEVICE = 0x4e56, CLASS = 0x010802 };
enum { BAR_REGISTERS = 0, BAR_MSIX = 4, BAR_SIZE = 0x4000, TIMEOUT_HALF_SECONDS = 60, MPS_MAX = 4 };
enum { ADMIN = 0 };

#define CAP_CONTIGUOUS (UINT64_C(1) << 16)
#define CAP_WEIGHTED   (UINT64_C(1) << 17)
#define CAP_NSSRS      (UINT64_C(1) << 36)
#define CAP_NVM        (UINT64_C(1) << 37)

static const struct state_field live_fields[] = {
    STATE_FIELD(struct nvme_live, interrupt_mask, 1),
    STATE_NESTED_ARRAY(struct nvme_live, sqs, &nvme_sq_state, 1),
    STATE_NESTED_ARRAY(struct nvme_live, cqs, &nvme_cq_state, 1),
    STATE_FIELD(struct nvme_live, shadow, 1),
    STATE_FIELD(struct nvme_live, event, 1),
    STATE_FIELD(struct nvme_live, arbitration, 1),
    STATE_FIELD(struct nvme_live, power, 1),
    STATE_FIELD(struct nvme_live, error_recovery, 1),
    STATE_FIELD(struct nvme_live, coalescing, 1),
    STATE_FIELD(struct nvme_live, event_config, 1),
    STATE_FIELD(struct nvme_live, write_cache, 1, .reset = 1),
    STATE_FIELD(struct nvme_live, atomicity_off, 1),
    STATE_FIELD(struct nvme_live, over_temperature, 1, .reset = NVME_TEMPERATURE_WARNING),
    STATE_FIELD(struct nvme_live, under_temperature, 1),
    STATE_ARRAY(struct nvme_live, no_coalescing, 1),
    STATE_FIELD(struct nvme_live, timestamp, 1),
    STATE_FIELD(struct nvme_live, timestamp_set_ns, 1),
    STATE_FIELD(struct nvme_live, timestamp_origin, 1),
    STATE_ARRAY(struct nvme_live, event_commands, 1),
    STATE_FIELD(struct nvme_live, event_command_count, 1),
    STATE_ARRAY(struct nvme_live, events, 1),
    STATE_FIELD(struct nvme_live, event_count, 1),
    STATE_FIELD(struct nvme_live, events_masked, 1),
    STATE_FIELD(struct nvme_live, critical, 1),
};
static const struct state_table live_state =
    STATE_TABLE("nvme controller", 1, struct nvme_live, live_fields);

static const struct state_field nvme_fields[] = {
    STATE_FIELD(struct nvme, cc, 1),
    STATE_FIELD(struct nvme, csts, 1),
    STATE_FIELD(struct nvme, aqa, 1),
    STATE_FIELD(struct nvme, asq, 1),
    STATE_FIELD(struct nvme, acq, 1),
    STATE_NESTED(struct nvme, live, &live_state, 1),
    STATE_FIELD(struct nvme, read_sectors, 1, .keep = true),
    STATE_FIELD(struct nvme, write_sectors, 1, .keep = true),
    STATE_FIELD(struct nvme, reads, 1, .keep = true),
    STATE_FIELD(struct nvme, writes, 1, .keep = true),
    STATE_FIELD(struct nvme, media_errors, 1, .keep = true),
    STATE_FIELD(struct nvme, error_count, 1, .keep = true),
    STATE_NESTED_ARRAY(struct nvme, errors, &nvme_error_state, 1),
    STATE_FIELD(struct nvme, changed, 1),
};

/* A saved file may be anybody's: what the code relies on holds afterwards. */
static bool queues_sound(const struct nvme_live *live) {
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        const struct nvme_sq *sq = &live->sqs[i];
        const struct nvme_cq *cq = &live->cqs[i];
        if (sq->valid && (sq->size < 2 || sq->size > NVME_ADMIN_ENTRIES || sq->head >= sq->size ||
                          sq->tail >= sq->size || sq->cq >= NVME_QUEUES || sq->priority > 3 ||
                          !live->cqs[sq->cq].valid))
            return false;
        if (cq->valid &&
            (cq->size < 2 || cq->size > NVME_ADMIN_ENTRIES || cq->head >= cq->size ||
             cq->tail >= cq->size || cq->vector >= NVME_QUEUES || cq->queues > NVME_QUEUES))
            return false;
    }
    return true;
}

static int after_load(void *object, struct error *err) {
    struct nvme *nvme = object;
    const struct nvme_live *live = &nvme->live;
    if (!queues_sound(live) || live->event_command_count > NVME_EVENT_COMMANDS ||
        live->event_count > NVME_EVENTS)
        return error_set(err, -EINVAL, "%s: the saved queues cannot be", nvme->device.name);
    lock_take(&nvme->device.lock);
    nvme_update_intx(nvme);
    nvme_serve_later(nvme); /* what came while it was quiet; the driver may not ring again */
    lock_release(&nvme->device.lock);
    return 0;
}

static const struct state_table nvme_state =
    STATE_TABLE("nvme", 1, struct nvme, nvme_fields, .after_load = after_load);

/* ---- Life cycle ---- */

bool nvme_running(const struct nvme *nvme) {
    return (nvme->csts & (NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST)) == NVME_CSTS_RDY &&
           !nvme->resetting && !nvme->paused;
}

void nvme_fatal(struct nvme *nvme, const char *why) {
    log_guest("%s: %s: the controller has failed until it is reset", nvme->device.name, why);
    nvme->csts |= NVME_CSTS_CFS;
}

static void enable(struct nvme *nvme) {
    struct nvme_live *live = &nvme->live;
    unsigned sq_entries = (nvme->aqa & 0xfff) + 1, cq_entries = (nvme->aqa >> 16 & 0xfff) + 1;
    unsigned sets = nvme->cc >> 4 & 7, page_shift = nvme->cc >> 7 & 15,
             arbiter = nvme->cc >> 11 & 7;
    if (sets != 0 || page_shift > MPS_MAX || arbiter > 1 || sq_entries < 2 || cq_entries < 2 ||
        ((nvme->asq | nvme->acq) & (NVME_PAGE - 1))) {
        nvme_fatal(nvme, "enabled with settings or admin queues that cannot be");
        return;
    }
    live->cqs[ADMIN] = (struct nvme_cq){.valid = true,
                                        .interrupts = true,
                                        .phase = true,
                                        .size = (uint16_t)cq_entries,
                                        .queues = 1,
                                        .base = nvme->acq};
    live->sqs[ADMIN] =
        (struct nvme_sq){.valid = true, .size = (uint16_t)sq_entries, .base = nvme->asq};
    nvme->csts |= NVME_CSTS_RDY;
}

static void finish_reset(struct nvme *nvme) {
    nvme->resetting = false;
    nvme->shutting_down = false;
    nvme->csts &= NVME_CSTS_NSSRO;
    if (nvme->subsystem_reset)
        nvme->csts |= NVME_CSTS_NSSRO;
    nvme->subsystem_reset = false;
    nvme->live = (struct nvme_live){0};
    state_reset(&live_state, &nvme->live);
    nvme_doorbells_reset(nvme);
    nvme_signal_reset(nvme);
    memset(nvme->credits, 0, sizeof nvme->credits);
    nvme->last_queue = 0;
    nvme->burst = 0;
    nvme->intx = false;
    pci_intx_set(nvme->function, false);
    memset(nvme->busy, 0, sizeof nvme->busy);
    nvme->posted.there = false;
    if (nvme->cc & NVME_CC_EN)
        enable(nvme);
    nvme_journal_commit(nvme);
}

static void begin_reset(struct nvme *nvme) {
    nvme->resetting = true;
    for (unsigned i = 0; i < nvme->namespace_count; i++)
        block_cancel(nvme->namespaces[i].block);
    if (nvme->in_flight == 0)
        finish_reset(nvme);
}

static void shutdown_ended(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    nvme->in_flight--;
    nvme->shutting_down = false;
    nvme->csts = (nvme->csts & ~(uint32_t)NVME_CSTS_SHST) | NVME_CSTS_SHST_COMPLETE;
    nvme_journal_commit(nvme);
    nvme_drained(nvme);
}

/* What was written is made to last; an abrupt shutdown is treated alike. */
static void finish_shutdown(struct nvme *nvme) {
    struct nvme_command *command = &nvme->shutdown;
    nvme->in_flight++;
    *command =
        (struct nvme_command){.nvme = nvme, .step = nvme_step_flush_all, .ended = shutdown_ended};
    nvme_run(command);
}

static void begin_shutdown(struct nvme *nvme) {
    if (nvme->csts & NVME_CSTS_SHST)
        return;
    nvme->csts |= NVME_CSTS_SHST_OCCURRING;
    nvme->shutting_down = true;
    if (nvme->in_flight == 0)
        finish_shutdown(nvme);
}

void nvme_drained(struct nvme *nvme) {
    if (nvme->in_flight > 0)
        return;
    if (nvme->resetting)
        finish_reset(nvme);
    else if (nvme->shutting_down)
        finish_shutdown(nvme);
    if (nvme->in_flight == 0 && nvme->paused && nvme->device.platform->idle != NULL)
        nvme->device.platform->idle(nvme->device.platform);
}

/* ---- Registers ---- */

static void write_cc(struct nvme *nvme, uint32_t value) {
    uint32_t old = nvme->cc;
    /* Settings change only while the controller is off. */
    if ((old & NVME_CC_EN) && (value & NVME_CC_EN))
        value = (old & ~(uint32_t)NVME_CC_SHN) | (value & NVME_CC_SHN);
    nvme->cc = value & 0x00fffff1;
    if ((old & NVME_CC_EN) && !(value & NVME_CC_EN))
        begin_reset(nvme);
    else if (!(old & NVME_CC_EN) && (value & NVME_CC_EN) && !nvme->resetting)
        enable(nvme);
    if ((value & NVME_CC_SHN) && !(old & NVME_CC_SHN) && !nvme->resetting)
        begin_shutdown(nvme);
}

static void reset_subsystem(struct nvme *nvme) {
    nvme->cc = 0;
    nvme->subsystem_reset = true;
    begin_reset(nvme);
}

static void write_half(uint64_t *address, unsigned half, uint32_t value) {
    unsigned shift = half != 0 ? 32 : 0;
    *address = (*address & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)value << shift;
}

static void write_mask(struct nvme *nvme, uint32_t mask) {
    nvme->live.interrupt_mask = mask;
    nvme_update_intx(nvme);
}

static void write_register(struct nvme *nvme, unsigned offset, uint32_t value) {
    switch (offset) {
    case NVME_REG_INTMS: write_mask(nvme, nvme->live.interrupt_mask | value); break;
    case NVME_REG_INTMC: write_mask(nvme, nvme->live.interrupt_mask & ~value); break;
    case NVME_REG_CC: write_cc(nvme, value); break;
    case NVME_REG_CSTS: nvme->csts &= ~(value & NVME_CSTS_NSSRO); break;
    case NVME_REG_NSSR:
        if (value == NVME_NSSR_RESET)
            reset_subsystem(nvme);
        break;
    case NVME_REG_AQA: nvme->aqa = value & 0x0fff0fff; break;
    case NVME_REG_ASQ:
    case NVME_REG_ASQ + 4: write_half(&nvme->asq, offset & 4, value); break;
    case NVME_REG_ACQ:
    case NVME_REG_ACQ + 4: write_half(&nvme->acq, offset & 4, value); break;
    default: break;
    }
}

static uint64_t read_register(struct nvme *nvme, unsigned offset, unsigned size) {
    uint8_t image[NVME_REG_END + 8] = {0};
    store_le64(image + NVME_REG_CAP, (NVME_QUEUE_ENTRIES - 1) | CAP_CONTIGUOUS | CAP_WEIGHTED |
                                         (uint64_t)TIMEOUT_HALF_SECONDS << 24 | CAP_NSSRS |
                                         CAP_NVM | (uint64_t)MPS_MAX << 52);
    store_le32(image + NVME_REG_VS, NVME_VERSION);
    store_le32(image + NVME_REG_INTMS, nvme->live.interrupt_mask);
    store_le32(image + NVME_REG_INTMC, nvme->live.interrupt_mask);
    store_le32(image + NVME_REG_CC, nvme->cc);
    store_le32(image + NVME_REG_CSTS, nvme->csts);
    store_le32(image + NVME_REG_AQA, nvme->aqa);
    store_le64(image + NVME_REG_ASQ, nvme->asq);
    store_le64(image + NVME_REG_ACQ, nvme->acq);
    return offset < NVME_REG_END ? load_le(image + offset, size) : 0;
}

static uint64_t bar_read(void *context, uint64_t offset, unsigned size) {
    struct nvme *nvme = context;
    lock_take(&nvme->device.lock);
    nvme->counters.registers++;
    uint64_t value = read_register(nvme, (unsigned)offset, size);
    lock_release(&nvme->device.lock);
    return value;
}

static void write_doorbell(struct nvme *nvme, unsigned n, uint32_t value, unsigned size) {
    nvme->counters.doorbells++;
    if (n < 2 * NVME_QUEUES && size == 4 && nvme_running(nvme))
        nvme_doorbell(nvme, n, value);
    else
        log_guest("%s: %u-byte write to doorbell %u ignored", nvme->device.name, size, n);
}

/* Registers take aligned writes of 4 and 8 bytes (3.1); anything else is ignored. */
static void bar_write(void *context, uint64_t offset, uint64_t value, unsigned size) {
    struct nvme *nvme = context;
    if (size < 4 || offset % 4 != 0) {
        log_guest("%s: %u-byte write at %#x ignored", nvme->device.name, size, (unsigned)offset);
        return;
    }
    lock_take(&nvme->device.lock);
    if (offset >= NVME_REG_DOORBELLS) {
        write_doorbell(nvme, (unsigned)(offset - NVME_REG_DOORBELLS) / 4, (uint32_t)value, size);
    } else {
        nvme->counters.registers++;
        write_register(nvme, (unsigned)offset, (uint32_t)value);
        if (size == 8)
            write_register(nvme, (unsigned)offset + 4, (uint32_t)(value >> 32));
    }
    nvme_journal_commit(nvme);
    lock_release(&nvme->device.lock);
}

static const struct io_ops bar_ops = {.read = bar_read, .write = bar_write};

/* ---- Device ---- */

/* A UUID (version 8, RFC 9562) that stays the same as long as the names do. */
static void make_uuid(uint8_t *uuid, const char *first, const char *second) {
    for (unsigned half = 0; half < 2; half++) {
        uint64_t hash = UINT64_C(0xcbf29ce484222325) + half;
        for (const char *text = first; text != NULL; text = text == first ? second : NULL)
            for (const char *c = text; *c != 0; c++)
                hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
        store_le64(uuid + (size_t)half * 8, hash);
    }
    uuid[6] = (uint8_t)(0x80 | (uuid[6] & 15));
    uuid[8] = (uint8_t)(0x80 | (uuid[8] & 63));
}

/* The disk has grown (block_on_resize): the driver hears of it, and looks. */
static void namespace_grown(void *context) {
    enum { NAMESPACE_NOTICES = 1 << 8 };
    struct nvme_namespace *namespace = context;
    struct nvme *nvme = namespace->nvme;
    lock_take(&nvme->device.lock);
    namespace->blocks = namespace->block->info.size >> namespace->shift;
    nvme->changed |= UINT32_C(1) << (namespace->id - 1);
    if (nvme->live.event_config & NAMESPACE_NOTICES)
        nvme_event(nvme, NVME_EVENT_NOTICE, NVME_NOTICE_NAMESPACE, NVME_LOG_CHANGED);
    lock_release(&nvme->device.lock);
}

static void add_namespace(struct nvme *nvme, struct block *block) {
    struct nvme_namespace *namespace = &nvme->namespaces[nvme->namespace_count++];
    char number[8];
    snprintf(number, sizeof number, "/%u", nvme->namespace_count);
    namespace->nvme = nvme;
    namespace->id = nvme->namespace_count;
    namespace->block = block;
    namespace->shift = (unsigned)__builtin_ctz(block->info.logical_block);
    namespace->blocks = block->info.size >> namespace->shift;
    make_uuid(namespace->uuid, block->info.name, number);
    block_on_resize(block, namespace_grown, namespace);
}

static int create_function(struct nvme *nvme, const struct nvme_config *config, struct error *err) {
    struct pci_function_config function = {
        .vendor = VENDOR,
        .device = DEVICE,
        .subsystem_vendor = VENDOR,
        .subsystem = DEVICE,
        .class_code = CLASS,
        .revision = 1,
        .interrupt_pin = true,
        .bars[BAR_REGISTERS] = {.kind = PCI_BAR_MEM64, .size = BAR_SIZE, .ops = &bar_ops},
        .bars[BAR_MSIX] = {.kind = PCI_BAR_MEM32},
        .msix_vectors = NVME_QUEUES,
        .msix_bar = BAR_MSIX,
        .slot = config->slot - 1,
        .context = nvme,
    };
    return pci_function_create(nvme->device.platform->pci, &function, &nvme->function, err);
}

static void nvme_destroy(struct device *device);

static int nvme_init(struct device *device, const void *data, struct error *err) {
    const struct nvme_config *config = data;
    struct nvme *nvme = container_of(device, struct nvme, device);
    const char *serial = config->serial != NULL ? config->serial : device->name;
    int result = nvme_doorbells_init(nvme, err);
    if (result < 0)
        return result;
    result = nvme_signal_init(nvme, err);
    if (result == 0)
        result = create_function(nvme, config, err);
    if (result < 0) {
        nvme_signal_destroy(nvme);
        nvme_doorbells_destroy(nvme);
        return result;
    }
    nvme->dma = pci_dma(nvme->function);
    memset(nvme->serial, ' ', sizeof nvme->serial);
    memcpy(nvme->serial, serial, strnlen(serial, sizeof nvme->serial));
    for (unsigned i = 0; i < config->count; i++)
        add_namespace(nvme, config->blocks[i]);
    nvme->late = config->late;
    nvme->write_through = config->write_through;
    nvme_journal_open(nvme, config->journal);
    if (nvme->inherited)
        result = after_load(nvme, err);
    if (result < 0) {
        nvme_destroy(device);
        return result;
    }
    make_uuid(nvme->uuid, serial, config->count > 0 ? config->blocks[0]->info.name : "");
    return 0;
}

static void drain(struct nvme *nvme) {
    for (unsigned i = 0; i < nvme->namespace_count; i++)
        block_drain(nvme->namespaces[i].block);
}

/* Ends what is in flight: nothing more is started, what the back ends have is waited for. */
static void quiesce(struct nvme *nvme) {
    lock_take(&nvme->device.lock);
    nvme->cc = 0;
    nvme->resetting = true;
    lock_release(&nvme->device.lock);
    drain(nvme);
}

void nvme_pause(struct device *device) {
    struct nvme *nvme = container_of(device, struct nvme, device);
    lock_take(&device->lock);
    nvme_journal_commit(nvme);
    nvme->paused = true;
    lock_release(&device->lock);
    drain(nvme);
}

void nvme_resume(struct device *device) {
    struct nvme *nvme = container_of(device, struct nvme, device);
    lock_take(&device->lock);
    nvme->paused = false;
    nvme_journal_resume(nvme);
    nvme_serve(nvme);
    lock_release(&device->lock);
}

static bool be_quiet(struct device *device, bool quiet) {
    struct nvme *nvme = container_of(device, struct nvme, device);
    lock_take(&device->lock);
    nvme->paused = quiet;
    if (quiet)
        nvme_signal(nvme); /* what was held back: nobody is told of it later */
    else
        nvme_serve(nvme);
    bool idle = nvme->in_flight == 0;
    lock_release(&device->lock);
    return idle;
}

static void nvme_reset(struct device *device) {
    struct nvme *nvme = container_of(device, struct nvme, device);
    quiesce(nvme);
    lock_take(&nvme->device.lock);
    nvme->subsystem_reset = false;
    finish_reset(nvme);
    nvme->csts = 0;
    lock_release(&nvme->device.lock);
}

static void nvme_destroy(struct device *device) {
    struct nvme *nvme = container_of(device, struct nvme, device);
    for (unsigned i = 0; i < nvme->namespace_count; i++)
        block_on_resize(nvme->namespaces[i].block, NULL, NULL);
    /* What is in flight stays so in the journal: the successor's. */
    lock_take(&device->lock);
    nvme->journal = NULL;
    lock_release(&device->lock);
    quiesce(nvme);
    nvme_free_commands(nvme);
    nvme_signal_destroy(nvme);
    nvme_doorbells_destroy(nvme);
    pci_function_destroy(nvme->function);
}

void nvme_count(struct device *device, struct nvme_counters *counters) {
    struct nvme *nvme = container_of(device, struct nvme, device);
    lock_take(&device->lock);
    *counters = nvme->counters;
    lock_release(&device->lock);
}

const struct device_class nvme_class = {
    .name = "nvme",
    .size = sizeof(struct nvme),
    .state = &nvme_state,
    .init = nvme_init,
    .reset = nvme_reset,
    .quiesce = be_quiet,
    .destroy = nvme_destroy,
};
