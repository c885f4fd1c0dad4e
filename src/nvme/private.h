/*
 * The NVMe controller's own structures. Its files:
 *   controller.c  registers, enable, reset, shutdown, the device class
 *   queue.c       the one place that reads and writes queues
 *   doorbell.c    doorbells in registers and in memory, and who serves when
 *   data.c        PRPs and SGLs: where a command's data lies in guest memory
 *   io.c          I/O commands; runs commands that need the back end, step by step
 *   journal.c     what another process needs to go on after this one's end
 *   admin.c       admin commands; identify.c, log.c, feature.c, event.c: the larger ones
 *
 * Everything here runs under the device's lock.
 */
#ifndef LODGE_NVME_PRIVATE_H
#define LODGE_NVME_PRIVATE_H

#include "base/bytes.h"
#include "nvme/nvme.h"
#include "nvme/spec.h"
#include "pci/pci.h"

enum {
    NVME_IO_QUEUES = 16,
    NVME_QUEUES = NVME_IO_QUEUES + 1, /* the admin queue is number 0 */
    NVME_QUEUE_ENTRIES = 1024,
    NVME_ADMIN_ENTRIES = 4096,
    NVME_IN_FLIGHT_MAX = 1024, /* commands being worked on */
    NVME_TURN_MAX = 256,       /* commands fetched in one turn */
    NVME_MDTS = 8,             /* a command transfers up to 2^8 pages of 4 KiB */
    NVME_TRANSFER_MAX = 4096 << NVME_MDTS,
    NVME_SEGMENTS_MAX = 512, /* pieces of guest memory that a command's data is in */
    NVME_EVENT_COMMANDS = 4, /* asynchronous event requests outstanding */
    NVME_EVENTS = 8,         /* events that wait for a request */
    NVME_ERRORS = 64,        /* entries of the error log */
    NVME_PAGE = 4096,        /* identify data, doorbell buffers */
    NVME_CONTROLLER_ID = 1,
};

struct nvme;

/* ---- Queues: state ---- */

struct nvme_cq {
    bool valid, interrupts, phase;
    uint16_t size, head, tail, vector;
    uint16_t queues; /* submission queues whose completions go here */
    uint64_t base;

    /* Host-side bookkeeping: not state. */
    uint16_t promised; /* entries that commands in flight will need */
    uint16_t told;     /* event index that the driver sees */
    bool signal;       /* entries were posted since the last interrupt: */
    uint16_t posted;   /* so many */
};

struct nvme_sq {
    bool valid;
    uint8_t priority; /* 0 urgent to 3 low */
    uint16_t size, head, tail, cq;
    uint64_t base;

    uint16_t in_flight;
    uint16_t told;                 /* event index that the driver sees */
    struct nvme_command *deletion; /* the admin command that waits for in_flight to be 0 */
};

struct nvme_error {
    uint64_t count; /* 0: no entry */
    uint64_t lba;
    uint32_t namespace;
    uint16_t queue, command, status;
};

/* What a controller reset clears (7.3.2). */
struct nvme_live {
    uint32_t interrupt_mask;
    struct nvme_sq sqs[NVME_QUEUES];
    struct nvme_cq cqs[NVME_QUEUES];

    /* Doorbell buffers (5.7): 0 when there are none. */
    uint64_t shadow, event;

    /* Features. */
    uint32_t arbitration, power, error_recovery, coalescing, event_config;
    uint32_t write_cache, atomicity_off;
    uint16_t over_temperature, under_temperature;
    uint8_t no_coalescing[NVME_QUEUES];
    uint64_t timestamp, timestamp_set_ns;
    uint8_t timestamp_origin;

    /* Asynchronous events. */
    uint16_t event_commands[NVME_EVENT_COMMANDS];
    uint8_t event_command_count;
    uint32_t events[NVME_EVENTS];
    uint8_t event_count, events_masked; /* bit n: type n waits for its log page to be read */
    uint8_t critical;                   /* SMART critical warnings */
};

/* ---- Commands ---- */

struct nvme_segment {
    uint64_t address; /* as the DMA context sees it */
    uint32_t length;
};

enum { NVME_SMALL = 4 };

struct nvme_data {
    uint32_t length;
    unsigned count, room;
    struct nvme_segment *segments; /* small, or allocated */
    struct nvme_segment small[NVME_SMALL];
};

struct nvme_namespace {
    struct nvme *nvme;
    uint32_t id;
    struct block *block;
    unsigned shift; /* log2 of a logical block */
    uint64_t blocks;
    unsigned formatting; /* commands that do */
    uint8_t uuid[16];
};

/* A command that was fetched, until its completion is posted. */
struct nvme_command {
    struct nvme *nvme;
    struct nvme_command *next; /* of those that are free */
    uint8_t entry[NVME_SQE];   /* copied once */
    uint16_t sq, cq, id, status;
    uint16_t slot; /* in the journal */
    uint32_t result;
    struct nvme_namespace *namespace;
    struct nvme_data data;
    struct nvme_range *ranges; /* dataset management */

    /* Work for the back end: step prepares `block` for the next request, false when there is none;
     * settled (optional) looks at a request that has succeeded. */
    bool (*step)(struct nvme_command *command);
    void (*settled)(struct nvme_command *command);
    void (*ended)(struct nvme_command *command); /* instead of nvme_complete */
    struct block_request block;
    bool holds_memory, flush_after;
    uint64_t offset, left; /* bytes of the namespace that are still to do */
    uint32_t piece;        /* bytes of the request: the back end changes those in `block` */
    unsigned index;        /* the range or namespace that is next */
    uint8_t *bounce;
    struct iovec *vectors; /* small, or allocated */
    unsigned vector_room;
    struct iovec small[2 * NVME_SMALL];
};

struct nvme {
    struct device device;
    struct pci_function *function;
    const struct dma_context *dma;
    struct nvme_namespace namespaces[NVME_NAMESPACES_MAX];
    unsigned namespace_count;
    char serial[20];
    uint8_t uuid[16];

    /* Registers that outlive a controller reset. */
    uint32_t cc, csts, aqa;
    uint64_t asq, acq;
    struct nvme_live live;

    /* Logs: kept over resets. */
    uint64_t read_sectors, write_sectors, reads, writes, media_errors, error_count;
    struct nvme_error errors[NVME_ERRORS];
    uint32_t changed; /* bit n: namespace n + 1 changed */

    /* Host-side bookkeeping: not state. */
    struct nvme_command *free;
    unsigned allocated, in_flight;
    struct nvme_command shutdown; /* flushes what there is before a shutdown is complete */
    bool shutting_down, resetting, subsystem_reset;
    bool paused, inherited;                 /* inherited: from a predecessor, not yet resumed */
    bool late, write_through;               /* nvme_config */
    struct nvme_journal *journal;           /* NULL: none */
    uint64_t busy[NVME_IN_FLIGHT_MAX / 64]; /* its slots with commands in flight */
    struct nvme_posted {
        bool there;
        uint64_t address;
        uint8_t entry[NVME_CQE];
    } posted;          /* the last completion */
    uint64_t epoch_ns; /* the host's time when the controller's clock was 0 */
    bool turn_posted;
    struct vm_timer *poll_timer;
    struct vm_timer *signal_timer; /* interrupts that were held back */
    bool signal_armed;
    struct nvme_polling {
        bool on, proven;               /* it has paid when last measured */
        unsigned patience, rung;       /* doorbells until polling is tried, and since then */
        uint64_t since_ns;             /* the first of them; while polling: of the looks measured */
        uint64_t direct_ns;            /* a command took by doorbells */
        uint64_t interval_ns, busy_ns; /* between looks; when one last found something */
        unsigned looks, found;         /* those measured, and the commands that they found */
    } polling;
    bool intx;
    uint16_t last_queue; /* I/O queue served last, less one: round robin goes on behind it */
    uint8_t burst;       /* commands that the queue may still have in a row */
    uint8_t credits[4];  /* of each priority in this round of weighted round robin */
    struct nvme_counters counters;
};

/* What an operation answers that completes later; otherwise it answers a status. */
enum { NVME_PENDING = -1 };

/* ---- Fields of a submission entry (4.2) ---- */

static inline uint8_t nvme_opcode(const struct nvme_command *command) {
    return command->entry[0];
}
static inline uint32_t nvme_nsid(const struct nvme_command *command) {
    return load_le32(command->entry + 4);
}
static inline uint64_t nvme_prp(const struct nvme_command *command, unsigned n) {
    return load_le64(command->entry + 24 + 8 * n);
}
static inline uint32_t nvme_dword(const struct nvme_command *command, unsigned n) {
    return load_le32(command->entry + 4 * n);
}

static inline uint32_t nvme_page_size(const struct nvme *nvme) {
    return NVME_PAGE << (nvme->cc >> 7 & 15);
}

/* ---- controller.c ---- */

/* True while commands are fetched. */
bool nvme_running(const struct nvme *nvme);
/* Nothing that the driver does helps but a reset: CSTS.CFS. */
void nvme_fatal(struct nvme *nvme, const char *why);
/* A command has ended: goes on with a reset or a shutdown that waited for it. */
void nvme_drained(struct nvme *nvme);

/* ---- queue.c ---- */

extern const struct state_table nvme_sq_state, nvme_cq_state;

static inline uint16_t nvme_distance(uint16_t from, uint16_t to, uint16_t size) {
    return (uint16_t)(to >= from ? to - from : to + size - from);
}
/* Completions that the queue has room for beyond those promised. */
unsigned nvme_room(const struct nvme_cq *cq);
/* Fetches and starts up to NVME_TURN_MAX commands. True: there is more to do at once. */
bool nvme_turn(struct nvme *nvme);
/* Posts the completion of a command and frees it. */
void nvme_complete(struct nvme_command *command);
/* Frees a command without a completion: one may be posted later by its id. */
void nvme_withdraw(struct nvme_command *command);
/* Posts a completion for a command that is not in flight any more (events). False: no room. */
bool nvme_post(struct nvme *nvme, unsigned sq, uint16_t id, uint16_t status, uint32_t result);
/* Interrupts for what was posted, unless the driver wants them coalesced; INTx follows what is
 * unread. */
void nvme_signal(struct nvme *nvme);
int nvme_signal_init(struct nvme *nvme, struct error *err);
void nvme_signal_reset(struct nvme *nvme);
void nvme_signal_destroy(struct nvme *nvme);
void nvme_update_intx(struct nvme *nvme);
void nvme_free_commands(struct nvme *nvme);

/* Starts a command that was fetched by a predecessor. False: no memory. */
bool nvme_repeat(struct nvme *nvme, unsigned queue, const uint8_t *entry, uint16_t slot);

/* ---- journal.c ---- all do nothing without a journal */

/* Takes over what the journal holds, paused. */
void nvme_journal_open(struct nvme *nvme, struct nvme_journal *journal);
/* Goes on from there: commands in flight begin again. */
void nvme_journal_resume(struct nvme *nvme);
/* What happened so far is kept. */
void nvme_journal_commit(struct nvme *nvme);
/* The same, before a completion is written to its queue. */
void nvme_journal_post(struct nvme *nvme, uint64_t address, const uint8_t *entry);
/* A command was fetched, its queue's head moved. Commits. */
void nvme_journal_fetched(struct nvme_command *command);
/* It is over; kept by the next commit. */
void nvme_journal_ended(const struct nvme_command *command);

/* ---- doorbell.c ---- */

/* The driver wrote a doorbell: n is its number, 2 q for submission queue q, 2 q + 1 for its
 * completion queue. */
void nvme_doorbell(struct nvme *nvme, unsigned n, uint32_t value);
int nvme_doorbells_init(struct nvme *nvme, struct error *err);
void nvme_doorbells_reset(struct nvme *nvme);
void nvme_doorbells_destroy(struct nvme *nvme);
/* Fetches and starts what waits, signals what completed; goes on on the loop after a turn. */
void nvme_serve(struct nvme *nvme);
/* The same, on the loop. */
void nvme_serve_later(struct nvme *nvme);
/* Doorbell buffers were configured: both sides begin with where the queues are. */
void nvme_share_doorbells(struct nvme *nvme);
/* The queue of doorbell n is new. */
void nvme_queue_created(struct nvme *nvme, unsigned n);

/* ---- data.c ---- each answers a status */

/* Finds the command's data, `length` bytes, by its PRPs or SGL. */
int nvme_data_find(struct nvme_command *command, uint32_t length);
int nvme_data_read(struct nvme_command *command, uint32_t offset, void *to, uint32_t length);
int nvme_data_write(struct nvme_command *command, uint32_t offset, const void *from,
                    uint32_t length);
/* Host pointers to all of it, into command->block. */
int nvme_data_map(struct nvme_command *command, bool write);
/* The back end wrote all of it through nvme_data_map. */
void nvme_data_wrote(struct nvme_command *command);
void nvme_data_free(struct nvme_command *command);
/* Finds the data and writes it all: what most admin commands answer. */
int nvme_reply(struct nvme_command *command, const void *from, uint32_t length);

/* ---- io.c ---- */

int nvme_io(struct nvme_command *command);
/* Runs command->step until it is over, then completes the command. Answers NVME_PENDING. */
int nvme_run(struct nvme_command *command);
/* A step: flushes namespaces from command->index on. */
bool nvme_step_flush_all(struct nvme_command *command);
/* A step: zeroes [offset, offset + left) of the namespace, piece by piece, then flushes. */
bool nvme_step_zero(struct nvme_command *command);
/* The namespace of this id, or NULL. */
struct nvme_namespace *nvme_namespace(struct nvme *nvme, uint32_t id);

/* ---- admin.c and its larger commands ---- */

int nvme_admin(struct nvme_command *command);
void nvme_delete_ready(struct nvme *nvme, unsigned sq);
int nvme_identify(struct nvme_command *command);
int nvme_get_log_page(struct nvme_command *command);
/* Enters a failure in the error log where that has more to tell: answers NVME_MORE then, else 0. */
uint16_t nvme_log_failure(const struct nvme_command *command);
int nvme_get_feature(struct nvme_command *command);
int nvme_set_feature(struct nvme_command *command);
extern const struct state_table nvme_error_state;

/* ---- event.c ---- */

enum { NVME_TEMPERATURE = 313, NVME_TEMPERATURE_WARNING = 343, NVME_TEMPERATURE_CRITICAL = 353 };

/* Tells the driver, now or when it next asks. */
void nvme_event(struct nvme *nvme, unsigned type, unsigned information, unsigned log_page);
/* What waited for room, a request, or its log page to be read. */
void nvme_deliver_events(struct nvme *nvme);
int nvme_ask_events(struct nvme_command *command);
/* Takes the request with this id back. */
bool nvme_abort_event(struct nvme *nvme, uint16_t id);
/* The driver read the log page that told of this type. */
void nvme_event_read(struct nvme *nvme, unsigned type);
/* Thresholds changed. */
void nvme_check_temperature(struct nvme *nvme);

#endif
