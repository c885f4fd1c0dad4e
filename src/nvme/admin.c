/* Admin commands: queues (5.3 to 5.6), Abort (5.1), doorbell buffers (5.7), format (5.23). */
#include "base/log.h"
#include "nvme/private.h"

/* ---- Creating queues ---- */

enum { CONTIGUOUS = 1, INTERRUPTS = 2 };

static int check_queue(const struct nvme_command *command, unsigned id, unsigned entries) {
    const struct nvme *nvme = command->nvme;
    bool contiguous = nvme_dword(command, 11) & CONTIGUOUS;
    if (id == 0 || id >= NVME_QUEUES)
        return NVME_INVALID_QUEUE | NVME_DO_NOT_RETRY;
    if (entries < 2 || entries > NVME_QUEUE_ENTRIES)
        return NVME_QUEUE_SIZE | NVME_DO_NOT_RETRY;
    if (!contiguous || nvme_prp(command, 0) % NVME_PAGE != 0 ||
        (nvme->cc >> NVME_CC_IOSQES_SHIFT & 15) != NVME_SQES ||
        (nvme->cc >> NVME_CC_IOCQES_SHIFT & 15) != NVME_CQES)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    return nvme_prp(command, 0) & (nvme_page_size(nvme) - 1) ? NVME_PRP_OFFSET | NVME_DO_NOT_RETRY
                                                             : NVME_OK;
}

static int create_cq(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    uint32_t dword10 = nvme_dword(command, 10), dword11 = nvme_dword(command, 11);
    unsigned id = dword10 & 0xffff, entries = (dword10 >> 16) + 1, vector = dword11 >> 16;
    int status = check_queue(command, id, entries);
    if (status != NVME_OK)
        return status;
    if (nvme->live.cqs[id].valid)
        return NVME_INVALID_QUEUE | NVME_DO_NOT_RETRY;
    /* Without MSI-X all queues share vector 0. */
    if (vector >= NVME_QUEUES || (vector != 0 && !pci_msix_enabled(nvme->function)))
        return NVME_INVALID_VECTOR | NVME_DO_NOT_RETRY;
    nvme->live.cqs[id] = (struct nvme_cq){
        .valid = true,
        .interrupts = dword11 & INTERRUPTS,
        .phase = true,
        .size = (uint16_t)entries,
        .vector = (uint16_t)vector,
        .base = nvme_prp(command, 0),
    };
    nvme_queue_created(nvme, 2 * id + 1);
    return NVME_OK;
}

static int create_sq(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    uint32_t dword10 = nvme_dword(command, 10), dword11 = nvme_dword(command, 11);
    unsigned id = dword10 & 0xffff, entries = (dword10 >> 16) + 1, cq = dword11 >> 16;
    int status = check_queue(command, id, entries);
    if (status != NVME_OK)
        return status;
    if (nvme->live.sqs[id].valid)
        return NVME_INVALID_QUEUE | NVME_DO_NOT_RETRY;
    if (cq == 0 || cq >= NVME_QUEUES || !nvme->live.cqs[cq].valid)
        return NVME_INVALID_CQ | NVME_DO_NOT_RETRY;
    nvme->live.sqs[id] = (struct nvme_sq){
        .valid = true,
        .priority = dword11 >> 1 & 3,
        .size = (uint16_t)entries,
        .cq = (uint16_t)cq,
        .base = nvme_prp(command, 0),
    };
    nvme->live.cqs[cq].queues++;
    nvme_queue_created(nvme, 2 * id);
    return NVME_OK;
}

/* ---- Deleting queues ---- */

static int delete_cq(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    unsigned id = nvme_dword(command, 10) & 0xffff;
    if (id == 0 || id >= NVME_QUEUES || !nvme->live.cqs[id].valid)
        return NVME_INVALID_QUEUE | NVME_DO_NOT_RETRY;
    if (nvme->live.cqs[id].queues > 0)
        return NVME_QUEUE_DELETION | NVME_DO_NOT_RETRY;
    nvme->live.cqs[id] = (struct nvme_cq){0};
    return NVME_OK;
}

/* Nothing of the queue is in flight any more. */
void nvme_delete_ready(struct nvme *nvme, unsigned sq) {
    struct nvme_command *deletion = nvme->live.sqs[sq].deletion;
    nvme->live.cqs[nvme->live.sqs[sq].cq].queues--;
    nvme->live.sqs[sq] = (struct nvme_sq){0};
    nvme_complete(deletion);
}

/* Completes when what was fetched from the queue has; what was not is forgotten. */
static int delete_sq(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    unsigned id = nvme_dword(command, 10) & 0xffff;
    struct nvme_sq *sq = &nvme->live.sqs[id < NVME_QUEUES ? id : 0];
    if (id == 0 || id >= NVME_QUEUES || !sq->valid || sq->deletion != NULL)
        return NVME_INVALID_QUEUE | NVME_DO_NOT_RETRY;
    sq->deletion = command;
    if (sq->in_flight == 0)
        nvme_delete_ready(nvme, id);
    return NVME_PENDING;
}

/* ---- The others ---- */

/* What the back end has been given comes to its end; only event requests can be taken back. */
static int abort_command(struct nvme_command *command) {
    enum { NOT_ABORTED = 1 };
    uint32_t dword10 = nvme_dword(command, 10);
    uint16_t sq = (uint16_t)dword10, id = (uint16_t)(dword10 >> 16);
    bool aborted = sq == 0 && nvme_abort_event(command->nvme, id);
    command->result = aborted ? 0 : NOT_ABORTED;
    return NVME_OK;
}

static int doorbell_buffer(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    uint64_t shadow = nvme_prp(command, 0), event = nvme_prp(command, 1);
    if (shadow == 0 || event == 0 || ((shadow | event) & (nvme_page_size(nvme) - 1)))
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    nvme->live.shadow = shadow;
    nvme->live.event = event;
    nvme_share_doorbells(nvme);
    return NVME_OK;
}

static void begin_format(struct nvme_command *command, struct nvme_namespace *namespace) {
    command->namespace = namespace;
    command->offset = 0;
    command->left = namespace->blocks << namespace->shift;
    command->flush_after = true;
    namespace->formatting++;
}

/* The namespace's contents; then, when all are meant, the next one's. */
static bool step_format(struct nvme_command *command) {
    struct nvme *nvme = command->nvme;
    bool all = nvme_nsid(command) == NVME_ALL_NAMESPACES;
    bool more = nvme_step_zero(command);
    if (more || !all || command->index == nvme->namespace_count)
        return more;
    command->namespace->formatting--;
    begin_format(command, &nvme->namespaces[command->index++]);
    return nvme_step_zero(command);
}

static void format_ended(struct nvme_command *command) {
    command->namespace->formatting--;
    nvme_complete(command);
}

static int check_format(const struct nvme_command *command) {
    const struct nvme *nvme = command->nvme;
    uint32_t nsid = nvme_nsid(command);
    for (unsigned i = 0; i < nvme->namespace_count; i++) {
        if (nsid != NVME_ALL_NAMESPACES && nsid != i + 1)
            continue;
        if (nvme->namespaces[i].block->info.readonly)
            return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
        if (nvme->namespaces[i].formatting)
            return NVME_FORMATTING;
    }
    return NVME_OK;
}

/* The one format there is; the contents go, whether as user data erase or not. */
static int format(struct nvme_command *command) {
    enum { FORMAT_INDEX = 15, METADATA_AND_PROTECTION = 0x1f0, ERASE_SHIFT = 9, CRYPTO = 2 };
    struct nvme *nvme = command->nvme;
    uint32_t dword10 = nvme_dword(command, 10), nsid = nvme_nsid(command);
    struct nvme_namespace *namespace = nvme_namespace(nvme, nsid == NVME_ALL_NAMESPACES ? 1 : nsid);
    if (namespace == NULL)
        return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
    if (dword10 & (FORMAT_INDEX | METADATA_AND_PROTECTION))
        return NVME_INVALID_FORMAT | NVME_DO_NOT_RETRY;
    if ((dword10 >> ERASE_SHIFT & 7) >= CRYPTO)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    int status = check_format(command);
    if (status != NVME_OK)
        return status;
    command->step = step_format;
    command->ended = format_ended;
    command->index = 1;
    command->block.may_unmap = true;
    begin_format(command, namespace);
    return nvme_run(command);
}

int nvme_admin(struct nvme_command *command) {
    switch (nvme_opcode(command)) {
    case NVME_ADMIN_DELETE_SQ: return delete_sq(command);
    case NVME_ADMIN_CREATE_SQ: return create_sq(command);
    case NVME_ADMIN_GET_LOG_PAGE: return nvme_get_log_page(command);
    case NVME_ADMIN_DELETE_CQ: return delete_cq(command);
    case NVME_ADMIN_CREATE_CQ: return create_cq(command);
    case NVME_ADMIN_IDENTIFY: return nvme_identify(command);
    case NVME_ADMIN_ABORT: return abort_command(command);
    case NVME_ADMIN_SET_FEATURES: return nvme_set_feature(command);
    case NVME_ADMIN_GET_FEATURES: return nvme_get_feature(command);
    case NVME_ADMIN_ASYNC_EVENT: return nvme_ask_events(command);
    case NVME_ADMIN_DOORBELL_BUFFER: return doorbell_buffer(command);
    case NVME_ADMIN_FORMAT: return format(command);
    default: return NVME_INVALID_OPCODE | NVME_DO_NOT_RETRY;
    }
}
